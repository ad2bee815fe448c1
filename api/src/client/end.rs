//! Why a stream ended, and what a read or write says of it.

use crate::protocol::Reason;
use rustix::io::Errno;
use std::io;

/// What a read at the end says: `None` is end of file.
///
/// An error stays: a stream that was cut must not look finished to whoever reads once more. (Linux reports a reset once
/// and then end of file.)
pub(super) fn of_reading(reason: Reason) -> Option<Errno> {
    match reason {
        // Open: this side shut its reading down.
        Reason::Open | Reason::CleanEnd | Reason::Truncated => None,
        Reason::Reset => Some(Errno::CONNRESET),
        Reason::Refused => Some(Errno::CONNREFUSED),
        Reason::TimedOut => Some(Errno::TIMEDOUT),
        Reason::Unreachable => Some(Errno::HOSTUNREACH),
        Reason::BadRecord(errno) => Some(Errno::from_raw_os_error(errno)),
        Reason::KeysExhausted => Some(Errno::BADMSG),
        Reason::FileFailed(_) | Reason::Aborted => Some(Errno::CONNABORTED),
    }
}

/// What a write that found nobody to read it says.
pub(super) fn of_writing(reason: Reason) -> Errno {
    match reason {
        Reason::Open | Reason::CleanEnd | Reason::Truncated => Errno::PIPE,
        Reason::FileFailed(errno) => Errno::from_raw_os_error(errno),
        other => of_reading(other).unwrap_or(Errno::PIPE),
    }
}

/// What a connection attempt says; `None`: it did succeed.
pub(super) fn of_connecting(reason: Reason) -> Option<Errno> {
    match reason {
        // RFC 9293 §3.10.7.3: a reset in SYN-SENT is "connection reset"; the socket API calls it refused.
        Reason::Reset => Some(Errno::CONNREFUSED),
        Reason::Open | Reason::CleanEnd | Reason::Truncated => None,
        other => of_reading(other),
    }
}

/// What a request about a socket failed with, as the socket's own error: a daemon that cannot be reached or does not know
/// the socket is not the one that carried it.
pub(super) fn of_request(error: super::DaemonError) -> io::Error {
    use super::DaemonError::{Gone, NotADaemon, NotRunning, System};
    match error {
        NotRunning { .. } | NotADaemon { .. } | Gone { .. } | System(Errno::NOTSOCK) => {
            Errno::CONNABORTED.into()
        }
        other => other.into(),
    }
}
