//! What client library and daemon say to each other on a control connection.
//!
//! A control connection is a `SOCK_SEQPACKET` Unix socket, so a message is a message: one [`Request`] or [`Reply`],
//! postcard-encoded, at most [`MAX_MESSAGE`] bytes, with at most one descriptor attached (three: [`Request::ReceiveTo`]). Each request is answered by
//! exactly one reply, in order; the daemon reads a connection's next request only after the last one was answered.
//!
//! ```text
//!   client                                   daemon
//!     Hello { magic, version, capabilities } ─→
//!     ←─ Hello { version, capabilities }                what this daemon can do, said explicitly
//!     Connect { remote, … } ─→
//!     ←─ Socket { id, local } + descriptor              the client's end; it *is* the socket from now on
//!     OnSocket(StageTx(keys)) + that descriptor ─→      the descriptor names the socket and proves the right to it
//!     ←─ KeyId(n)
//! ```
//!
//! Nothing that has a place in a stream's byte order is said here; that travels as a [mark](uktls_stack::mark) on the
//! socket itself. Sockets that are gone are answered for: every request on them yields [`Reply::Gone`] while the
//! daemon still remembers why they ended.
//!
//! Decoding trusts nothing: lengths are bounded by the message, the message by the receive buffer, and bytes behind the
//! message's end are an error. Keys cross as Linux's `tls12_crypto_info_*` bytes in buffers that are wiped after use.

mod bytes;

pub use bytes::{BoundedBytes, EpochKeyBytes, KeyBytes};

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;
use zeroize::Zeroizing;

pub use uktls_stack::socket_info::{Reason, SocketKind};

/// Starts every first message, so that a stranger on the socket is recognised.
pub const MAGIC: [u8; 4] = *b"uktl";

/// Version of the messages below. Any change to an existing message's bytes raises it; daemon and library must agree.
pub const VERSION: u16 = 1;

/// Largest piece of a [`SocketRequest::RxBytes`], in bytes.
pub const MAX_RX_BYTES: usize = 64 * 1024;

/// Longest [`Request::Secrets`], in bytes: a few lines of a key log.
pub const MAX_SECRETS: usize = 4096;

/// Largest encoded message, in bytes, either way.
pub const MAX_MESSAGE: usize = MAX_RX_BYTES + 1024;

/// Sockets in one [`Reply::Sockets`]; each takes well below 512 bytes.
pub const SOCKETS_PER_REPLY: usize = MAX_MESSAGE / 512;

/// What a daemon can do, as bits. A library asks before it relies on one, instead of falling back in silence.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// TLS 1.2 records.
    pub const TLS12: Self = Self(1 << 0);
    /// TLS 1.3 records.
    pub const TLS13: Self = Self(1 << 1);
    /// AES-128-GCM.
    pub const AES_128_GCM: Self = Self(1 << 2);
    /// AES-256-GCM.
    pub const AES_256_GCM: Self = Self(1 << 3);
    /// ChaCha20-Poly1305.
    pub const CHACHA20_POLY1305: Self = Self(1 << 4);
    /// `sendfile` inside the stack.
    pub const SENDFILE: Self = Self(1 << 5);
    /// UDP sockets.
    pub const UDP: Self = Self(1 << 6);
    /// Keys may be read back (no `--no-key-export`).
    pub const KEY_EXPORT: Self = Self(1 << 7);
    /// New keys on a TLS 1.3 direction that has keys.
    pub const REKEY: Self = Self(1 << 8);
    /// DTLS 1.2 and 1.3 records on UDP sockets.
    pub const DTLS: Self = Self(1 << 9);
    /// It writes a capture (`--pcap`), and takes the secrets that open it.
    pub const CAPTURE: Self = Self(1 << 10);
    /// `recvfile` inside the stack.
    pub const RECVFILE: Self = Self(1 << 11);

    const NAMES: [(Self, &'static str); 12] = [
        (Self::TLS12, "tls1.2"),
        (Self::TLS13, "tls1.3"),
        (Self::AES_128_GCM, "aes-128-gcm"),
        (Self::AES_256_GCM, "aes-256-gcm"),
        (Self::CHACHA20_POLY1305, "chacha20-poly1305"),
        (Self::SENDFILE, "sendfile"),
        (Self::UDP, "udp"),
        (Self::KEY_EXPORT, "key-export"),
        (Self::REKEY, "rekey"),
        (Self::DTLS, "dtls"),
        (Self::CAPTURE, "capture"),
        (Self::RECVFILE, "recvfile"),
    ];

    /// Everything this version knows of.
    pub fn all() -> Self {
        Self(Self::NAMES.iter().fold(0, |bits, (one, _)| bits | one.0))
    }

    /// Whether every bit of `other` is set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These without `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The names of the bits that are set and known.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .into_iter()
            .filter(move |(one, _)| self.contains(*one))
            .map(|(_, name)| name)
    }
}

impl std::fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// Options that a socket is born with; accepted sockets inherit their listener's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOptions {
    /// Send small segments at once (`TCP_NODELAY`). Default true: a record's tail must not wait.
    pub nodelay: bool,
    /// Probe an idle peer after this long.
    pub keepalive: Option<Duration>,
    /// Records of one MSS while the window is small or after idle, full ones in bulk.
    pub adaptive_records: bool,
    /// Largest window to offer, in bytes.
    pub receive_buffer: u64,
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

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// First on every connection, and only first. This variant's bytes are the same in every version.
    Hello {
        /// [`MAGIC`].
        magic: [u8; 4],
        /// The library's [`VERSION`].
        version: u16,
        /// What the library would like to use; for the daemon's log.
        capabilities: Capabilities,
    },
    /// Open a TCP connection. Answered at once by [`Reply::Socket`]; the end polls writable when the connection stands.
    Connect {
        /// Peer.
        remote: SocketAddr,
        /// Local address, where it matters.
        local: Option<SocketAddr>,
        /// Options.
        options: SocketOptions,
    },
    /// Open a listening TCP socket.
    Listen {
        /// Address to listen on; port 0 takes a free one.
        local: SocketAddr,
        /// Connections that may wait to be accepted.
        backlog: u32,
        /// Options of accepted sockets.
        options: SocketOptions,
    },
    /// Open a UDP socket.
    BindUdp {
        /// Address to bind.
        local: SocketAddr,
        /// Fixed peer.
        remote: Option<SocketAddr>,
    },
    /// An act on the socket whose descriptor is attached.
    OnSocket(SocketRequest),
    /// The sockets with numbers above `after`, in order, at most [`SOCKETS_PER_REPLY`].
    Sockets {
        /// Last number seen; `None` starts at the beginning.
        after: Option<u64>,
    },
    /// All counters.
    Counters,
    /// Attach a DTLS association with this peer to the UDP socket whose descriptor is attached. Answered by
    /// [`Reply::Association`].
    AttachDtls {
        /// The peer.
        peer: SocketAddr,
    },
    /// Lines of a key log (`SSLKEYLOGFILE`) for the daemon's capture. The daemon's own user only; `EOPNOTSUPP` without a
    /// capture. Answered when they are written, so that they stand in front of the packets they open.
    Secrets(BoundedBytes<MAX_SECRETS>),
    /// What the socket receives next goes to a file. Attached are the socket's descriptor, the file's, and a stream socket
    /// to which a [`SendfileResult`](uktls_stack::mark::SendfileResult) is written when that is over. Needs
    /// [`SocketRequest::RxHold`] before it, which it ends.
    ReceiveTo {
        /// Where in the file the first byte goes; not for devices.
        offset: Option<u64>,
        /// Bytes at most.
        len: u64,
        /// Goes on until all of them are there, or something ends it; otherwise only what has arrived is taken.
        wait: bool,
    },
}

/// An act on one socket.
#[derive(Debug, Serialize, Deserialize)]
pub enum SocketRequest {
    /// Attach the TLS ULP.
    SetUlp,
    /// Stage keys for sending; a mark on the socket puts them in force.
    StageTx(KeyBytes),
    /// Stop writing to the client's end, so that it can be drained before `RxKeys`.
    RxFreeze,
    /// A piece of what was drained.
    RxBytes(BoundedBytes<MAX_RX_BYTES>),
    /// These keys open everything from the first drained byte on. Without a freeze before it: new keys on a direction that has keys.
    RxKeys(KeyBytes),
    /// Give a freeze up; the drained bytes that were handed back are delivered again as they are.
    RxThaw,
    /// The keys for sending as they stand now. Creator's uid only.
    GetTx,
    /// The keys for receiving as they stand now. Creator's uid only.
    GetRx,
    /// Largest plaintext of a record sent.
    SetMaxPayload(u16),
    /// `TLS_RX_EXPECT_NO_PAD`.
    SetExpectNoPad(bool),
    /// `TCP_NODELAY`.
    SetNoDelay(bool),
    /// Keep-alive idle time.
    SetKeepAlive(Option<Duration>),
    /// Adaptive record layout.
    SetAdaptiveRecords(bool),
    /// Everything there is to tell.
    Info,
    /// Reset the connection.
    Abort,
    /// An act on a UDP socket or its association.
    Datagram(DatagramRequest),
    /// Announce data records as well, so that the client learns where each ends.
    SetRecordEnds(bool),
    /// Whether an AF_KTLS socket is attached to a TCP connection. Giving it up is answered by [`Reply::Released`].
    SetAttached(bool),
    /// Stop writing to the client's end, so that what lies there can be taken before [`Request::ReceiveTo`]. A file that is
    /// being received to takes no more, and answers.
    RxHold,
    /// Give that up.
    RxRelease,
}

/// An act on a UDP socket, or on the DTLS association that is attached to it.
#[derive(Debug, Serialize, Deserialize)]
pub enum DatagramRequest {
    /// Datagrams longer than the path's MTU are refused instead of fragmented.
    SetDontFragment(bool),
    /// The path's MTU. Answered by [`Reply::PathMtu`].
    PathMtu,
    /// Give the peer's records back to the socket.
    Detach,
    /// Stage keys for sending; a mark on the association's end puts them in force.
    StageTx(EpochKeyBytes),
    /// Keys for receiving, in force at once.
    RxKeys(EpochKeyBytes),
    /// The keys for sending as they stand now. Creator's uid only.
    GetTx,
    /// The keys for receiving as they stand now. Creator's uid only.
    GetRx,
    /// How long the records are that a file is sent in, overhead included.
    SetMtu(Option<u16>),
    /// A datagram that was delivered on the socket before the association was attached: take it as if it came now.
    GiveBack {
        /// Its sender.
        from: SocketAddr,
        /// Its payload.
        datagram: BoundedBytes<MAX_RX_BYTES>,
    },
    /// What can be told of the association. Answered by [`Reply::Dtls`].
    Info,
}

/// What the daemon answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Hello`]. With another version than asked for, the daemon closes the connection behind it.
    Hello {
        /// The daemon's [`VERSION`].
        version: u16,
        /// What it can do.
        capabilities: Capabilities,
    },
    /// It did not work: a Linux errno.
    Error(i32),
    /// Done.
    Done,
    /// A new socket; its descriptor is attached.
    Socket {
        /// Number, unique in the daemon's life.
        id: u64,
        /// Local address, port filled in.
        local: SocketAddr,
    },
    /// Number of the staged keys, for the mark.
    KeyId(u32),
    /// Keys.
    Keys(KeyBytes),
    /// One socket.
    Info(Box<SocketStat>),
    /// The socket ended; all that is left of it is why.
    Gone(Reason),
    /// Some sockets, in order of their numbers.
    Sockets {
        /// At most [`SOCKETS_PER_REPLY`].
        sockets: Vec<SocketStat>,
        /// Whether there are more behind the last.
        more: bool,
    },
    /// Counters: Linux's `tls_stat` names first, in Linux's order.
    Counters(Vec<(String, u64)>),
    /// A DTLS association was attached; the client's end of it is attached here.
    Association,
    /// Keys of an association.
    EpochKeys(EpochKeyBytes),
    /// An association.
    Dtls(Box<DtlsStat>),
    /// A path's MTU in bytes.
    PathMtu(u32),
    /// The stream is its owner's again, from the record with this number on; `None` where none was ever opened.
    Released(Option<u64>),
}

/// One direction of an association, without the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStat {
    /// The number on the wire: 0xFEFD or 0xFEFC.
    pub version: u16,
    /// Linux's `TLS_CIPHER_*` number.
    pub cipher: u16,
    /// Epoch.
    pub epoch: u64,
    /// Sequence number of the next record; receiving, one more than the highest that came.
    pub sequence: u64,
}

/// A DTLS association as it can be told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DtlsStat {
    /// The peer.
    pub peer: SocketAddr,
    /// Sending.
    pub tx: Option<EpochStat>,
    /// Receiving.
    pub rx: Option<EpochStat>,
    /// Records sealed.
    pub sealed: u64,
    /// Records opened.
    pub opened: u64,
    /// Records dropped, by kind, with the kind's name.
    pub dropped: Vec<(String, u64)>,
    /// Records opened and lost because nobody read them.
    pub full: u64,
    /// Datagrams not sent because they were longer than the path's MTU and may not be fragmented.
    pub too_long: u64,
}

/// One direction's keys, without the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStat {
    /// `TLS 1.2` or `TLS 1.3`, as the number on the wire: 0x0303 or 0x0304.
    pub version: u16,
    /// Linux's `TLS_CIPHER_*` number: 51, 52, 54.
    pub cipher: u16,
    /// Sequence number of the next record.
    pub rec_seq: u64,
    /// Records that the keys may still protect.
    pub records_left: u64,
}

/// TCP's figures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpStat {
    /// Congestion window in bytes.
    pub cwnd: u64,
    /// Smoothed round trip in microseconds; `None` before the first sample.
    pub srtt_us: Option<u64>,
    /// Maximum segment size in bytes.
    pub mss: u64,
    /// Bytes sent and not yet acknowledged.
    pub in_flight: u64,
    /// Segments sent; super-segments count by their pieces.
    pub segments_sent: u64,
    /// Segments received; super-segments count as one.
    pub segments_received: u64,
    /// Stream bytes sent, those sent again included.
    pub bytes_sent: u64,
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Segments sent again.
    pub retransmits: u64,
}

/// One socket as `uktls stat` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketStat {
    /// Number, unique in the daemon's life.
    pub id: u64,
    /// Kind.
    pub kind: SocketKind,
    /// Shard that owns it.
    pub shard: u32,
    /// Creator's uid.
    pub uid: u32,
    /// Local address.
    pub local: SocketAddr,
    /// Remote address of a connection.
    pub remote: Option<SocketAddr>,
    /// TCP state by the name that `ss` gives it, such as `ESTAB`.
    pub state: Option<String>,
    /// TCP's figures.
    pub tcp: Option<TcpStat>,
    /// Whether the TLS ULP is attached.
    pub ulp: bool,
    /// Keys for sending.
    pub tx: Option<KeyStat>,
    /// Keys for receiving.
    pub rx: Option<KeyStat>,
    /// Records sealed so far.
    pub records_sent: u64,
    /// Records opened so far.
    pub records_received: u64,
    /// Why it ended.
    pub reason: Reason,
    /// Bytes of daemon memory that its buffers hold.
    pub memory: u64,
}

/// Why bytes are not a message. The sender is at fault and gets disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Not a message of this version.
    #[error(
        "{0} bytes that are no message of protocol version {VERSION}; the sender is not uktls, or another version of it"
    )]
    Malformed(usize),
    /// Longer than any message.
    #[error("a message of more than {MAX_MESSAGE} bytes; the sender is not uktls")]
    TooLong,
}

/// The message's bytes, in a buffer that is wiped on drop.
///
/// # Errors
/// [`ProtocolError::TooLong`] where it would exceed [`MAX_MESSAGE`].
pub fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, ProtocolError> {
    // Sized first: a buffer that grows would leave unwiped copies of keys behind.
    let len =
        postcard::experimental::serialized_size(message).map_err(|_| ProtocolError::TooLong)?;
    if len > MAX_MESSAGE {
        return Err(ProtocolError::TooLong);
    }
    let mut bytes = Zeroizing::new(vec![0; len]);
    postcard::to_slice(message, &mut bytes).map_err(|_| ProtocolError::TooLong)?;
    Ok(bytes)
}

/// The message that `bytes` are, all of them.
///
/// # Errors
/// [`ProtocolError`] when they are not exactly one message.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ProtocolError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(ProtocolError::TooLong);
    }
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) | Err(_) => Err(ProtocolError::Malformed(bytes.len())),
    }
}

#[cfg(test)]
mod tests;
