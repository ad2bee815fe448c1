//! Devices: where IP packets leave the stack and come in.
//!
//! A [`Device`] sends and receives one IP packet a call, without blocking. What makes it more than a pipe is [`Offload`]:
//! a packet may be a *super-segment* of up to 65,535 bytes whose cutting into segments, and a checksum whose
//! computation, are left to whoever is behind the device. One `writev` then moves 64 KiB through the kernel's whole receive
//! path, which is where the speed of this stack comes from.
//!
//! | module | device | offload |
//! | --- | --- | --- |
//! | [`tun`] | kernel TUN with virtio-net headers, one or several queues | TSO, USO, partial checksums, both ways |
//! | [`plain_tun`] | kernel TUN as the `tun-tap` crate opens it | none |
//! | [`memory`] | two ends in one process, for tests | as asked for |
//! | [`capture`] | wraps any of them, writes pcapng | that of the inner device |
//!
//! [`interface`] gives the kernel's side of a TUN its addresses, MTU and queue length. [`segment`]
//! cuts super-segments the way hardware would; [`checksum`] is the arithmetic under all of it.
//!
//! What is deliberately not here: Ethernet (a TUN carries bare IP, so there is no ARP and no neighbour discovery), routing, and
//! retries. A device that is full says [`WouldBlock`](std::io::ErrorKind::WouldBlock); what to do then is TCP's business.

pub mod capture;
pub mod checksum;
pub mod interface;
pub mod memory;
pub mod plain_tun;
pub mod segment;
pub mod tun;

use bytes::BytesMut;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

/// The longest IP packet: its length field has 16 bits. (An IPv6 payload could be 40 bytes longer; no device here goes there.)
pub const MAX_PACKET: usize = 65_535;

/// A partial checksum: the field holds the pseudo header's folded sum, and who completes the packet replaces it by the
/// complement of the sum over everything from `start` to the packet's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CsumRequest {
    /// Where summing starts, in bytes from the start of the IP header: the transport header.
    pub start: u16,
    /// Where the field is, in bytes from `start`: 16 for TCP, 6 for UDP.
    pub offset: u16,
}

/// What kind of segments a super-segment is to be cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4, each segment a datagram of its own (USO; not IP fragmentation).
    Udp4,
    /// UDP over IPv6, likewise.
    Udp6,
}

impl GsoKind {
    /// Whether segments are TCP's.
    pub fn is_tcp(self) -> bool {
        matches!(self, GsoKind::Tcp4 | GsoKind::Tcp6)
    }

    /// Whether segments are IPv6's.
    pub fn is_v6(self) -> bool {
        matches!(self, GsoKind::Tcp6 | GsoKind::Udp6)
    }
}

/// How a super-segment is to be cut (on send), or was put together (on receive).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Protocols of the segments.
    pub kind: GsoKind,
    /// Length of IP and transport header together. On receive a hint at best (the kernel may give more): parse instead.
    pub hdr_len: u16,
    /// Payload bytes in each segment but the last, which may have fewer.
    pub size: u16,
}

/// What goes with one outgoing IP packet, or came with an incoming one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The transport checksum is partial. Required with `gso`.
    pub needs_csum: Option<CsumRequest>,
    /// The packet is a super-segment.
    pub gso: Option<Gso>,
    /// On receive: no check of the transport checksum is needed, because the sender is this very machine (the checksum
    /// is still partial) or somebody checked it already. Of no meaning on send.
    pub verified: bool,
}

impl Offload {
    /// A packet as the wire would carry it: complete, and not checked by anybody.
    pub const NONE: Offload = Offload {
        needs_csum: None,
        gso: None,
        verified: false,
    };
}

/// What a device can take off its user's hands. Fixed while the device is open, but for `mtu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Largest IP packet that the link carries uncut, in bytes, IP header included.
    pub mtu: usize,
    /// TCP super-segments may be sent, and will be received.
    pub tso: bool,
    /// UDP super-datagrams may be sent, and will be received.
    pub uso: bool,
    /// Packets with partial checksums may be sent, and will be received.
    pub checksum: bool,
    /// Largest IP packet that [`Device::send`] takes: [`MAX_PACKET`] with `tso` or `uso`, else the MTU.
    pub max_packet: usize,
}

/// A link that carries IP packets. Calls never block.
pub trait Device {
    /// What the device can do.
    fn capabilities(&self) -> Capabilities;

    /// Sends one IP packet: `headers` (IP and transport header, contiguous), then the `payload` pieces, gathered by one
    /// system call.
    ///
    /// # Errors
    /// `WouldBlock` when the queue is full and the packet was not taken; `InvalidInput` for a packet or a request that the device cannot
    /// take (longer than [`Capabilities::max_packet`], an offload it does not have). Any other error means this packet is lost, as
    /// packets sometimes are; a TUN whose interface is down gives `EIO`.
    fn send(
        &mut self,
        offload: &Offload,
        headers: &[u8],
        payload: &[IoSlice<'_>],
    ) -> io::Result<()>;

    /// Receives one IP packet to the start of `packet`, and gives its length and offload.
    ///
    /// `packet` must have room for [`MAX_PACKET`] bytes; what does not fit is cut off by the kernel without a word.
    ///
    /// # Errors
    /// `WouldBlock` when none waits.
    fn receive(&mut self, packet: &mut [u8]) -> io::Result<(usize, Offload)>;

    /// Receives one IP packet to the spare room of an empty buffer, splits it off, and leaves the rest of the room behind it.
    ///
    /// Where packets are long, clearing room for them first costs a tenth of everything: a device that can, lets the kernel write to room
    /// that was never cleared.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    fn receive_split(&mut self, room: &mut BytesMut) -> io::Result<(BytesMut, Offload)> {
        room.resize(MAX_PACKET, 0);
        let received = self.receive(room);
        room.truncate(received.as_ref().map_or(0, |(length, _)| *length));
        let (_, offload) = received?;
        Ok((room.split(), offload))
    }

    /// The descriptor whose readability says that a packet waits; `None` for devices within the process.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

impl<D: Device + ?Sized> Device for Box<D> {
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }
    fn send(
        &mut self,
        offload: &Offload,
        headers: &[u8],
        payload: &[IoSlice<'_>],
    ) -> io::Result<()> {
        (**self).send(offload, headers, payload)
    }
    fn receive(&mut self, packet: &mut [u8]) -> io::Result<(usize, Offload)> {
        (**self).receive(packet)
    }
    fn receive_split(&mut self, room: &mut BytesMut) -> io::Result<(BytesMut, Offload)> {
        (**self).receive_split(room)
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (**self).fd()
    }
}

/// A packet whose headers do not say what its offload claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The checksum field to complete lies outside the packet.
    #[error("the checksum request points outside the packet")]
    ChecksumField,
    /// IP or transport header missing, cut off, or not of the kind that the super-segment claims to be.
    #[error("the headers are not those of the super-segment that the packet claims to be")]
    Headers,
    /// A super-segment with segments of no bytes.
    #[error("a super-segment with a segment size of zero")]
    SegmentSize,
}

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, malformed)
    }
}

/// Why a device cannot be opened or its interface not be set up: one line that says what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device node is not there.
    #[error(
        "/dev/net/tun does not exist: load the driver (`modprobe tun`), or give the container the device (`--device /dev/net/tun`)"
    )]
    NoNode,
    /// The device node is there, the driver behind it is not.
    #[error("/dev/net/tun has no driver behind it: load it (`modprobe tun`)")]
    NoDriver,
    /// The device node may not be opened by this user.
    #[error(
        "no permission to open /dev/net/tun for reading and writing: make it accessible (`chmod 666 /dev/net/tun`, the usual mode) or run as root"
    )]
    NodeDenied,
    /// The interface may not be created or changed: CAP_NET_ADMIN is missing in this network namespace.
    #[error(
        "not allowed to {action}: that takes CAP_NET_ADMIN; run as root, or in a network namespace of your own, as `uktls run` does without root"
    )]
    NotPermitted {
        /// What was to be done, as in "create the TUN interface u0".
        action: String,
    },
    /// Another program has the interface open.
    #[error(
        "the interface {name} is in use by another program: choose another name, or stop that program"
    )]
    Busy {
        /// Name of the interface.
        name: String,
    },
    /// The interface exists and is of another kind.
    #[error(
        "the interface {name} exists already and is not a TUN interface with the same options: choose another name"
    )]
    OtherKind {
        /// Name of the interface.
        name: String,
    },
    /// The kernel would not take the name.
    #[error(
        "{name:?} cannot be the name of an interface: 1 to 15 bytes, without '/', ':' and white space, and not '.' or '..'"
    )]
    Name {
        /// The name asked for.
        name: String,
    },
    /// The kernel refused the wanted offload.
    #[error(
        "the kernel refuses offload on the interface {name} ({source}): use the plain device (`--offload off`)"
    )]
    Offload {
        /// Name of the interface.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No such interface in this network namespace.
    #[error("there is no interface {name} in this network namespace")]
    NoInterface {
        /// Name of the interface.
        name: String,
    },
    /// An MTU that the interface, or IPv6 on it, cannot have.
    #[error("the MTU {mtu} is not possible: {reason}")]
    Mtu {
        /// The MTU asked for.
        mtu: usize,
        /// Which limit it breaks.
        reason: &'static str,
    },
    /// The interface was set up, but does not look as it should when read back.
    #[error("the interface {name} was set up, but the kernel reports {found} instead of {wanted}")]
    ReadBack {
        /// Name of the interface.
        name: String,
        /// What was asked for.
        wanted: String,
        /// What is there.
        found: String,
    },
    /// Anything else that the kernel answered.
    #[error("cannot {action}: {source}")]
    System {
        /// What was to be done.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// `source` as the answer to `action`, with the common refusals told apart.
    fn system(action: impl Into<String>, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Error::NotPermitted {
                action: action.into(),
            },
            _ => Error::System {
                action: action.into(),
                source,
            },
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::NoNode | Error::NoDriver | Error::NoInterface { .. } => io::ErrorKind::NotFound,
            Error::NodeDenied | Error::NotPermitted { .. } => io::ErrorKind::PermissionDenied,
            Error::Busy { .. } => io::ErrorKind::ResourceBusy,
            Error::OtherKind { .. } => io::ErrorKind::AlreadyExists,
            Error::Name { .. } | Error::Mtu { .. } => io::ErrorKind::InvalidInput,
            Error::Offload { .. } | Error::ReadBack { .. } => io::ErrorKind::Unsupported,
            Error::System { source, .. } => source.kind(),
        };
        io::Error::new(kind, error)
    }
}

/// Total length of a packet given in pieces.
fn packet_len(headers: &[u8], payload: &[IoSlice<'_>]) -> usize {
    headers.len() + payload.iter().map(|slice| slice.len()).sum::<usize>()
}

/// Refuses what a device with these capabilities cannot send.
fn check_sendable(capabilities: &Capabilities, offload: &Offload, length: usize) -> io::Result<()> {
    let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if offload.needs_csum.is_some() && !capabilities.checksum {
        return refuse("a partial checksum on a device without checksum offload");
    }
    let limit = match offload.gso {
        None => capabilities.mtu,
        Some(gso)
            if if gso.kind.is_tcp() {
                capabilities.tso
            } else {
                capabilities.uso
            } =>
        {
            if offload.needs_csum.is_none() {
                return refuse("a super-segment without a checksum request");
            }
            if gso.size == 0 {
                return refuse("a super-segment with segments of no bytes");
            }
            capabilities.max_packet
        }
        Some(_) => return refuse("a super-segment of a kind that the device cannot cut"),
    };
    if length > limit {
        return refuse("a packet longer than the device carries");
    }
    Ok(())
}
