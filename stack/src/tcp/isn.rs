//! Initial sequence numbers and timestamp offsets that an off-path attacker cannot guess.
//!
//! RFC 6528 §3: "ISN = M + F(localip, localport, remoteip, remoteport, secretkey), where M is the 4 microsecond timer,
//! and F() is a pseudorandom function (PRF) of the connection-id." F is SipHash-2-4 with a key drawn at start (or from
//! the simulator's seed). For one pair of addresses the numbers grow with time, which is what lets a new connection
//! take over from one in TIME-WAIT. The timestamp offset (RFC 7323 §5.4) comes from the same function under another
//! label and has no clock in it, so timestamps of successive connections between two addresses grow too.

use core::hash::Hasher;
use core::net::SocketAddr;

use siphasher::sip::SipHasher24;

use super::segment::FlowKey;
use super::seq::SeqNumber;
use crate::clock::Instant;

/// What is computed, mixed in first, so that one output says nothing about the other.
#[derive(Clone, Copy)]
pub(super) enum Label {
    Isn = 1,
    TimestampOffset = 2,
    Cookie = 3,
}

/// Generates initial sequence numbers and timestamp offsets from a secret key.
#[derive(Clone)]
pub struct IsnGenerator {
    keyed: SipHasher24,
}

impl core::fmt::Debug for IsnGenerator {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("IsnGenerator { key: 16 bytes }")
    }
}

impl IsnGenerator {
    /// A generator with the given secret. All shards of a stack share one key, so that a flow gets the same numbers
    /// wherever it lives.
    pub fn new(key: [u8; 16]) -> IsnGenerator {
        IsnGenerator {
            keyed: SipHasher24::new_with_key(&key),
        }
    }

    /// The initial sequence number for a connection between `key`'s addresses opened at `now`.
    pub fn isn(&self, key: &FlowKey, now: Instant) -> SeqNumber {
        let timer = now.as_nanos() / 4_000;
        SeqNumber((timer as u32).wrapping_add(self.hash(Label::Isn, key, &[]) as u32))
    }

    /// What is added to the millisecond clock to make this connection's timestamps (RFC 7323 §5.4).
    pub fn ts_offset(&self, key: &FlowKey) -> u32 {
        self.hash(Label::TimestampOffset, key, &[]) as u32
    }

    pub(super) fn hash(&self, label: Label, key: &FlowKey, more: &[u32]) -> u64 {
        let mut hasher = self.keyed;
        hasher.write_u8(label as u8);
        for end in [key.local, key.remote] {
            match end {
                SocketAddr::V4(v4) => hasher.write(&v4.ip().octets()),
                SocketAddr::V6(v6) => hasher.write(&v6.ip().octets()),
            }
            hasher.write(&end.port().to_be_bytes());
        }
        for word in more {
            hasher.write(&word.to_be_bytes());
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn flow(remote_port: u16) -> FlowKey {
        FlowKey {
            local: ([10, 0, 0, 1], 443).into(),
            remote: ([10, 0, 0, 2], remote_port).into(),
        }
    }

    #[test]
    fn numbers_differ_by_flow_and_key_and_grow_with_time() {
        let generator = IsnGenerator::new([7; 16]);
        let now = Instant::from_millis(1_000);
        let isn = generator.isn(&flow(1), now);
        assert_eq!(isn, generator.isn(&flow(1), now));
        assert_ne!(isn, generator.isn(&flow(2), now));
        assert_ne!(isn, IsnGenerator::new([8; 16]).isn(&flow(1), now));
        assert_eq!(
            generator.isn(&flow(1), now + Duration::from_millis(4)),
            isn + 1_000
        );
        assert_ne!(generator.ts_offset(&flow(1)), generator.ts_offset(&flow(2)));
        assert_ne!(generator.ts_offset(&flow(1)), isn.0.wrapping_sub(250_000));
    }
}
