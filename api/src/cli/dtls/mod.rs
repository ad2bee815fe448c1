//! `uktls dtls-send`, `dtls-recv` and `dtls-echo`: DTLS 1.2 on the stack, with any DTLS peer at the other end.
//!
//! OpenSSL shakes hands, then an AF_KTLS socket takes the keys and the stack seals and opens. A record is a datagram; there is
//! no framing of our own, so that `openssl s_client -dtls1_2` and the like are peers: a file is the payloads of the records, one
//! behind the other, and ends with close_notify. What DTLS does not do is not made up for: a datagram that is lost stays
//! lost. So a sender is paced, and a receiver tells which records never came and can be told what to expect.
//!
//! Each command is server or client, one peer at a time.
//!
//! The commands are in every build, to be found by `--help`, but work in those with the feature `openssl` only.

mod options;

#[cfg(feature = "openssl")]
mod association;
#[cfg(feature = "openssl")]
mod echo;
#[cfg(feature = "openssl")]
mod recv;
#[cfg(feature = "openssl")]
mod send;

#[cfg(feature = "openssl")]
pub(crate) use {echo::run as echo, recv::run as recv, send::run as send};

#[cfg(not(feature = "openssl"))]
pub(crate) use without_openssl::{echo, recv, send};

pub(crate) use options::{EchoArgs, RecvArgs, SendArgs};

use super::Failure;

/// Whether this build can shake hands.
pub(crate) const IN_THIS_BUILD: bool = cfg!(feature = "openssl");

/// What `command` says in a build that cannot.
pub(crate) fn missing(command: &str) -> Failure {
    Failure::new(format_args!(
        "{command} shakes hands by OpenSSL, which is not in this build: cargo build --release --features openssl \
         (on Debian it needs: apt-get install libssl-dev pkg-config)"
    ))
}

/// What the commands are in such a build.
#[cfg(not(feature = "openssl"))]
mod without_openssl {
    use super::super::{Globals, Outcome};
    use super::{EchoArgs, RecvArgs, SendArgs, missing};

    pub(crate) fn send(_: SendArgs, _: &Globals) -> Outcome {
        Err(missing("dtls-send"))
    }

    pub(crate) fn recv(_: RecvArgs, _: &Globals) -> Outcome {
        Err(missing("dtls-recv"))
    }

    pub(crate) fn echo(_: EchoArgs, _: &Globals) -> Outcome {
        Err(missing("dtls-echo"))
    }
}
