//! The stack's front door for the socket server: requests that create sockets and act on them.
//!
//! A request is handed to the shard that owns the socket over a bounded channel and answered by calling the closure
//! that came with it, on the shard's thread; the closure should only pass the answer on (a channel, a waker).
//! Everything that has a place in a socket's byte order does not come this way but as a [`mark`](crate::mark) on the
//! socket's own descriptor.

use crate::dtls::DtlsInfo;
use crate::ingress::sink::SinkRequest;
use crate::socket_info::{Reason, SocketInfo};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::net::SocketAddr;
use std::time::Duration;
use uktls_record::crypto_info::CryptoInfo;
use uktls_record::dtls::EpochKeys;

/// A socket's number: unique in the daemon's life, tells the owning shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u64);

impl SocketId {
    /// The shard that owns the socket.
    pub fn shard(self) -> usize {
        (self.0 >> 56) as usize
    }
}

/// Options a socket is born with; accepted sockets inherit their listener's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOptions {
    /// Send small segments at once (no Nagle). Default true: a record's tail must not wait.
    pub nodelay: bool,
    /// Probe an idle peer after this long.
    pub keepalive: Option<Duration>,
    /// Records of one MSS while the window is small or after idle, full ones in bulk (DESIGN: adaptive layout).
    pub adaptive_records: bool,
    /// Largest window to offer, in bytes; it begins smaller and follows what the reader takes.
    pub receive_buffer: usize,
}

impl Default for SocketOptions {
    fn default() -> Self {
        SocketOptions {
            nodelay: true,
            keepalive: None,
            adaptive_records: false,
            receive_buffer: 4 << 20,
        }
    }
}

/// A new socket's client end.
#[derive(Debug)]
pub struct ClientEnd {
    /// The socket's number.
    pub id: SocketId,
    /// The client's descriptor: a `SOCK_STREAM` end for TCP, a `SOCK_SEQPACKET` end for listeners and UDP.
    pub fd: OwnedFd,
    /// `SO_COOKIE` of that descriptor: how requests that pass the descriptor name the socket.
    pub cookie: u64,
    /// Local address, port filled in.
    pub local: SocketAddr,
}

/// Which direction's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Sending (`TLS_TX`).
    Tx,
    /// Receiving (`TLS_RX`).
    Rx,
}

/// An act on one socket.
#[derive(Debug)]
pub enum SocketOp {
    /// Attach the TLS ULP: `ENOTCONN` unless established, `EEXIST` the second time.
    SetUlp,
    /// Stage keys for sending; they come into force at the [`Mark::TxKeys`](crate::mark::Mark::TxKeys) with the number returned.
    /// Errors and their order as for `setsockopt(TLS_TX)`.
    /// From the answer on they count as set: [`GetKeys`](Self::GetKeys) and [`Info`](Self::Info) show them, the next keys are new
    /// ones (or `EBUSY` under TLS 1.2), although the mark may still be on its way.
    StageTx(CryptoInfo),
    /// First step of `TLS_RX`: stop writing to the client's end; after the answer the client drains its end.
    RxFreeze,
    /// A piece of what the client drained: raw stream bytes that were received before the keys came.
    RxBytes(Vec<u8>),
    /// Last step of `TLS_RX`: these keys open everything from the first drained byte on. Without a freeze before it, new keys on a
    /// TLS 1.3 direction that has keys (`None`: give up, deliver the bytes back as plain).
    RxKeys(Option<CryptoInfo>),
    /// `getsockopt(TLS_TX|TLS_RX)`: the current state of a direction's keys.
    GetKeys(Direction),
    /// `TLS_TX_MAX_PAYLOAD_LEN`: `EBUSY` while a record is open.
    SetMaxPayload(u16),
    /// `TLS_RX_EXPECT_NO_PAD`.
    SetExpectNoPad(bool),
    /// `TCP_NODELAY`.
    SetNoDelay(bool),
    /// Keep-alive, idle time; `None` turns it off.
    SetKeepAlive(Option<Duration>),
    /// Adaptive record layout.
    SetAdaptiveRecords(bool),
    /// Announce data records too, so that the client learns where each ends.
    SetRecordEnds(bool),
    /// Whether an AF_KTLS socket is attached: `EINVAL` when there is one already, or the ULP; `ENOTCONN` for a connection whose end
    /// the client was told of. Given up, what is not opened yet goes on as it came; [`SocketReply::Released`] says where.
    SetAttached(bool),
    /// First step of receiving to a file: stop writing to the client's end; after the answer the client takes what is there. A
    /// file that is being received to takes no more, and answers.
    RxHold,
    /// Gives that up.
    RxRelease,
    /// Last step: what comes next goes to this file. `EINVAL` without [`RxHold`](Self::RxHold) before it, or for a file that
    /// cannot be received to; `EBUSY` while another is.
    ReceiveTo(Box<SinkRequest>),
    /// Everything that `uktls stat` shows of it, the end's reason included.
    Info,
    /// Reset the connection now.
    Abort,
    /// UDP: datagrams longer than the path's MTU are refused instead of fragmented.
    SetDontFragment(bool),
    /// UDP: the path's MTU, as far as it is known.
    PathMtu,
    /// UDP: attach an association with this peer; answered by [`SocketReply::End`]. `EINVAL` when there is one already.
    DtlsAttach {
        /// The peer. On a socket with a fixed one it must be that one.
        peer: SocketAddr,
    },
    /// UDP: give the peer's records back to the socket.
    DtlsDetach,
    /// UDP: stage keys for sending; a [`Mark::TxKeys`](crate::mark::Mark::TxKeys) on the association's end puts them in force.
    DtlsStageTx(EpochKeys),
    /// UDP: keys for receiving, in force at once. Those of an earlier epoch stay for a while beside them.
    DtlsRxKeys(EpochKeys),
    /// UDP: a direction's keys as they stand.
    DtlsGetKeys(Direction),
    /// UDP: how long the records are that a file is sent in, overhead included; `None`: as long as records can be.
    DtlsSetMtu(Option<u16>),
    /// UDP: a datagram that was delivered on the socket before the association was attached: take it as if it came now.
    DtlsGiveBack {
        /// Its sender.
        from: SocketAddr,
        /// Its payload.
        datagram: Vec<u8>,
    },
    /// UDP: what can be told of the association.
    DtlsInfo,
}

/// The answer to a [`SocketOp`].
#[derive(Debug)]
pub enum SocketReply {
    /// Done.
    Done,
    /// Number of the staged keys.
    KeyId(u32),
    /// Current keys.
    Keys(CryptoInfo),
    /// State.
    Info(Box<SocketInfo>),
    /// The client's end of an association.
    End(OwnedFd),
    /// Current keys of an association.
    EpochKeys(EpochKeys),
    /// State of an association.
    Dtls(Box<DtlsInfo>),
    /// A path's MTU in bytes.
    PathMtu(usize),
    /// The stream is its owner's again, from the record with this number on.
    Released(Option<u64>),
}

/// Why a request failed: an errno that the client library turns into an `io::Error`.
pub type RequestResult<T> = Result<T, Errno>;

/// How a request is answered.
pub type Reply<T> = Box<dyn FnOnce(RequestResult<T>) + Send>;

/// Open a TCP connection. Answered at once with the client's end, which polls writable when the connection stands and
/// hangs up when it failed; [`SocketOp::Info`] then tells why.
#[derive(Debug, Clone)]
pub struct ConnectRequest {
    /// Peer.
    pub remote: SocketAddr,
    /// Local address to use; unspecified address or port 0 are filled in.
    pub local: Option<SocketAddr>,
    /// Options.
    pub options: SocketOptions,
    /// Creator.
    pub uid: u32,
}

/// Open a listening socket.
#[derive(Debug, Clone)]
pub struct ListenRequest {
    /// Address to listen on; port 0 takes a free one, an unspecified address means every address of the stack.
    pub local: SocketAddr,
    /// Connections that may wait to be accepted.
    pub backlog: usize,
    /// Options of accepted sockets.
    pub options: SocketOptions,
    /// Creator.
    pub uid: u32,
}

/// Open a UDP socket.
#[derive(Debug, Clone)]
pub struct UdpRequest {
    /// Address to bind.
    pub local: SocketAddr,
    /// Only datagrams from this peer are delivered, and every datagram goes there.
    pub remote: Option<SocketAddr>,
    /// Creator.
    pub uid: u32,
}

/// The end of a socket that is gone, kept for a while so that a late question is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epitaph {
    /// Which socket.
    pub id: SocketId,
    /// Why it ended.
    pub reason: Reason,
}

/// What a descriptor's cookie names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// A socket that exists.
    Live {
        /// Which.
        id: SocketId,
        /// Who created it.
        uid: u32,
    },
    /// One that ended while the client still held its descriptor.
    Gone(Epitaph),
}
