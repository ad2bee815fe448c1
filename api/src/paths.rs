//! Where daemon and client library meet.

use rustix::process::geteuid;
use std::path::PathBuf;

/// Environment variable that names the daemon's socket.
pub const SOCKET_VARIABLE: &str = "UKTLS_SOCKET";

/// The default socket: `$XDG_RUNTIME_DIR/uktls.sock`; for root `/run/uktls/uktls.sock`.
///
/// A user without `XDG_RUNTIME_DIR` gets `/run/user/<uid>/uktls.sock`, which is where it would point: a directory that only
/// that user can put sockets into. `/tmp` would let anybody stand in for the daemon.
pub fn default_socket() -> PathBuf {
    let uid = geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/uktls/uktls.sock");
    }
    let runtime = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(directory) if !directory.is_empty() => PathBuf::from(directory),
        _ => PathBuf::from(format!("/run/user/{}", uid.as_raw())),
    };
    runtime.join("uktls.sock")
}

/// The socket a client talks to when none is named: `$UKTLS_SOCKET`, else [`default_socket`].
pub fn client_socket() -> PathBuf {
    match std::env::var_os(SOCKET_VARIABLE) {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => default_socket(),
    }
}
