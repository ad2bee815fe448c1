//! What a socket can be born with.

use crate::protocol::SocketOptions;
use std::net::SocketAddr;
use std::time::Duration;

/// How a connection is opened, for [`TcpStream::connect_with`](super::TcpStream::connect_with).
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// Local address; port 0 or an unspecified address is filled in.
    pub local: Option<SocketAddr>,
    /// How long to wait for the connection to stand. `None` leaves it to TCP's own retries.
    pub timeout: Option<Duration>,
    /// Return at once with a non-blocking stream that polls writable when the connection stands; then ask
    /// [`take_error`](super::TcpStream::take_error).
    pub nonblocking: bool,
    /// Options of the socket.
    pub socket: SocketOptions,
}

/// How a listener is opened, for [`TcpListener::bind_with`](super::TcpListener::bind_with).
#[derive(Debug, Clone)]
pub struct ListenOptions {
    /// Connections that may wait to be accepted. Default 1024.
    pub backlog: u32,
    /// Options of accepted sockets.
    pub socket: SocketOptions,
}

impl Default for ListenOptions {
    fn default() -> Self {
        ListenOptions {
            backlog: 1024,
            socket: SocketOptions::default(),
        }
    }
}
