//! Handshakes by OpenSSL (feature `openssl`): DTLS 1.2, which rustls does not speak, and TLS 1.2.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`dtls`] | DTLS 1.2 over a UDP socket of the stack: [`Session`] |
//! | [`tls`] | TLS 1.2 over a TCP socket of the stack: [`TlsSession`] |
//! | `keys` | the key block, from the master secret and both randoms |
//!
//! In both, OpenSSL is watched while it shakes hands, so that the stack goes on behind the last record it has sealed, and seals
//! nothing more once the keys were handed over. TLS 1.3 is [`rustls`](super::rustls)'s part here: OpenSSL keeps its secrets to itself.

pub mod dtls;
mod keys;
pub mod tls;

pub use dtls::Session;
pub use keys::{KeyBlock, Side, key_block};
pub use tls::TlsSession;

use crate::client::af_ktls::KtlsSocket;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::ssl::{Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslVersion};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;
use uktls_record::ContentType;

/// The names by which OpenSSL knows the suites whose records the stack can make.
pub const CIPHERS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
    ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:\
    ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";

/// An alert's bytes (RFC 5246 §7.2): the warning close_notify.
pub const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// A context for DTLS 1.2 with the ciphers that the stack has. Certificates and verification are the caller's to set.
///
/// # Errors
/// What OpenSSL says.
pub fn context() -> io::Result<SslContextBuilder> {
    let mut context = restricted(SslMethod::dtls(), SslVersion::DTLS1_2)?;
    // The path's MTU is the stack's to say.
    context.set_options(SslOptions::NO_QUERY_MTU);
    Ok(context)
}

/// As [`context`], for TLS 1.2.
///
/// # Errors
/// What OpenSSL says.
pub fn tls_context() -> io::Result<SslContextBuilder> {
    restricted(SslMethod::tls(), SslVersion::TLS1_2)
}

fn restricted(method: SslMethod, version: SslVersion) -> io::Result<SslContextBuilder> {
    let mut context = SslContext::builder(method)?;
    context.set_min_proto_version(Some(version))?;
    context.set_max_proto_version(Some(version))?;
    context.set_cipher_list(CIPHERS)?;
    // It would be one under keys that are elsewhere.
    context.set_options(SslOptions::NO_RENEGOTIATION);
    Ok(context)
}

/// Sends close_notify (RFC 5246 §7.2.1), sealed by the stack.
///
/// # Errors
/// As [`KtlsSocket::send_control`].
pub fn close(ktls: &KtlsSocket) -> io::Result<()> {
    ktls.send_control(ContentType::ALERT, &CLOSE_NOTIFY)
}

/// `name` is the server's: for SNI, and for verification if the context asks for it.
fn expect_name(ssl: &mut Ssl, name: &str) -> io::Result<()> {
    match name.parse() {
        Ok(ip) => ssl.param_mut().set_ip(ip)?,
        Err(_) => {
            ssl.set_hostname(name)?;
            ssl.param_mut().set_host(name)?;
        }
    }
    Ok(())
}

/// Whether `socket` is readable, or became so within `limit`.
fn wait(socket: &impl AsFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    match poll(&mut fds, Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn hmac(digest: MessageDigest, key: &[u8], parts: &[&[u8]]) -> io::Result<Vec<u8>> {
    let key = PKey::hmac(key)?;
    let mut signer = Signer::new(digest, &key)?;
    for part in parts {
        signer.update(part)?;
    }
    Ok(signer.sign_to_vec()?)
}
