//! What the server needs of a stack, in the protocol's own words, so that it can be tried without one.

use crate::protocol::{Reason, Reply, SocketOptions, SocketRequest, SocketStat};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::net::SocketAddr;
use uktls_stack::ingress::sink::SinkRequest;

/// How a request is answered: called once, from any thread, and quick to return.
pub type Answer<T> = Box<dyn FnOnce(T) + Send>;

/// A socket to be opened.
#[derive(Debug, Clone)]
pub enum Open {
    /// A TCP connection.
    Connect {
        /// Peer.
        remote: SocketAddr,
        /// Local address, where it matters.
        local: Option<SocketAddr>,
        /// Options.
        options: SocketOptions,
    },
    /// A listening TCP socket.
    Listen {
        /// Address.
        local: SocketAddr,
        /// Connections that may wait.
        backlog: usize,
        /// Options of accepted sockets.
        options: SocketOptions,
    },
    /// A UDP socket.
    Udp {
        /// Address.
        local: SocketAddr,
        /// Fixed peer.
        remote: Option<SocketAddr>,
    },
}

/// A socket that was opened.
#[derive(Debug)]
pub struct Opened {
    /// Number, unique in the stack's life.
    pub id: u64,
    /// The client's end.
    pub fd: OwnedFd,
    /// Local address, port filled in.
    pub local: SocketAddr,
}

/// What the cookie of a descriptor names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// A socket that exists.
    Live {
        /// Its number.
        id: u64,
        /// Its creator.
        uid: u32,
    },
    /// One that ended while the client still holds its end.
    Gone(Reason),
}

/// The stack as the server sees it. No call may block; answers come from the stack's own threads.
pub trait StackHandle: Send + 'static {
    /// Opens a socket for a user.
    fn open(&self, open: Open, uid: u32, answer: Answer<Result<Opened, Errno>>);

    /// Acts on a socket.
    fn act(&self, id: u64, act: SocketRequest, answer: Answer<Result<Reply, Errno>>);

    /// Has what a socket receives next written to a file.
    fn receive_to(&self, id: u64, sink: SinkRequest, answer: Answer<Result<Reply, Errno>>);

    /// Attaches a DTLS association with `peer` to a UDP socket, and gives the client's end of it.
    fn attach_dtls(&self, id: u64, peer: SocketAddr, answer: Answer<Result<OwnedFd, Errno>>);

    /// What the descriptor with this `SO_COOKIE` is, if it is a client's end.
    fn named(&self, cookie: u64) -> Option<Named>;

    /// All sockets, in any order.
    fn sockets(&self, answer: Answer<Vec<SocketStat>>);

    /// All counters, Linux's `tls_stat` names first.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}
