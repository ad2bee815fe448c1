//! What can be told of a socket from outside: state, ends, path and keys (never the keys themselves).

use crate::tcp::{State, Stats};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use uktls_record::suite::{CipherSuite, ProtocolVersion};

/// Why a TCP socket's stream ended, or that it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Still connecting or open.
    Open,
    /// The peer finished its direction in order; on a TLS socket after its close_notify.
    CleanEnd,
    /// The peer finished without close_notify, or inside a record: bytes may have been cut off.
    Truncated,
    /// The peer reset the connection.
    Reset,
    /// The peer, or an ICMP error, refused the connection.
    Refused,
    /// Retransmissions or the handshake ran out.
    TimedOut,
    /// ICMP says that there is no way to the peer.
    Unreachable,
    /// A received record failed; the errno that the API promises (`EBADMSG`, `EMSGSIZE`, `EINVAL`).
    BadRecord(i32),
    /// This side ended it: a file that was being sent got shorter or could not be read.
    FileFailed(i32),
    /// This side ended it: the sequence numbers or the AEAD's limit were used up.
    KeysExhausted,
    /// This side ended it for another reason, such as a limit or the daemon's end.
    Aborted,
}

/// One direction's keys as `uktls stat` shows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyInfo {
    /// Protocol version.
    pub version: ProtocolVersion,
    /// Cipher.
    pub cipher: CipherSuite,
    /// Sequence number of the next record.
    pub rec_seq: u64,
    /// Records that the keys may still protect.
    pub records_left: u64,
}

/// What kind of socket it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketKind {
    /// A TCP connection, opened or accepted.
    Tcp,
    /// A listening TCP socket.
    TcpListener,
    /// A UDP socket.
    Udp,
}

/// One socket, as `uktls stat` lists it.
#[derive(Debug, Clone)]
pub struct SocketInfo {
    /// The socket's number, unique in the daemon's life.
    pub id: u64,
    /// Kind.
    pub kind: SocketKind,
    /// Shard that owns it.
    pub shard: usize,
    /// Creator's uid.
    pub uid: u32,
    /// Local address.
    pub local: SocketAddr,
    /// Remote address of a connection.
    pub remote: Option<SocketAddr>,
    /// TCP state, where it has one.
    pub state: Option<State>,
    /// TCP figures, where it has them.
    pub tcp: Option<Stats>,
    /// Whether the TLS ULP is attached.
    pub ulp: bool,
    /// Keys for sending.
    pub tx: Option<KeyInfo>,
    /// Keys for receiving.
    pub rx: Option<KeyInfo>,
    /// Records sealed and opened so far.
    pub records: (u64, u64),
    /// Why it ended.
    pub reason: Reason,
    /// Bytes of daemon memory its buffers hold right now.
    pub memory: usize,
}
