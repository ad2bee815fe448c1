//! What every socket test uses, whatever is beneath the sockets.

#![allow(dead_code, unreachable_pub, missing_docs)] // each test file uses its own part

use std::time::{Duration, Instant};
use uktls::{CipherSuite, CryptoInfo, ProtocolVersion};

/// Keys that differ by `seed`.
pub fn keys(version: ProtocolVersion, seed: u8) -> CryptoInfo {
    CryptoInfo::from_key_and_iv(
        version,
        CipherSuite::Aes128Gcm,
        &[seed; 16],
        &[seed ^ 0x5a; 12],
        0,
    )
    .expect("lengths")
}

/// Polls `condition` until it holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "{what} did not come about in 10 s"
        );
        std::thread::yield_now();
    }
}
