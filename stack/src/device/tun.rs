//! The kernel's TUN device with offload: each packet travels behind a virtio-net header.
//!
//! The header says what was left undone (partial checksum, super-segment), in both directions, so that one `writev` hands the kernel up to
//! 64 KiB of TCP payload which it never cuts when the receiver is on this machine, and one `readv` takes as much. The interface
//! exists as long as one queue is open and vanishes with the last; nothing needs to be removed.
//!
//! Not done here: persistent interfaces are attached to when they exist, never made; giving the interface addresses is
//! [`interface`](super::interface)'s work. Constants and layouts follow `linux/if_tun.h` and `linux/virtio_net.h`.

use super::{Capabilities, CsumRequest, Device, Error, Gso, GsoKind, MAX_PACKET, Offload};
use bytes::{Buf, BytesMut};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, IntegerSetter, Opcode, Setter, Updater};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const IFF_TUN: u16 = 0x0001;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

const TUNSETIFF: Opcode = ioctl::opcode::write::<i32>(b'T', 202);
const TUNSETOFFLOAD: Opcode = ioctl::opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = ioctl::opcode::write::<i32>(b'T', 216);

/// What the kernel may leave undone in packets that it gives us (`TUN_F_*`).
const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;
const TUN_F_TSO6: usize = 0x04;
const TUN_F_TSO_ECN: usize = 0x08;
const TUN_F_USO4: usize = 0x20;
const TUN_F_USO6: usize = 0x40;

/// Longest interface name, without the NUL behind it.
const MAX_NAME: usize = 15;

/// `struct ifreq` as far as TUNSETIFF looks at it: name, flags, and the rest of its 40 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; MAX_NAME + 1],
    flags: u16,
    rest: [u8; 22],
}

/// How a TUN is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunOptions {
    /// Queues, each a [`TunQueue`] for one shard. The kernel steers flows among them by what each last sent.
    pub queues: usize,
    /// MTU that [`Capabilities`] will name; [`interface::configure`](super::interface::configure) gives it to the kernel.
    pub mtu: usize,
    /// TCP super-segments, both ways. Without them a test's link model meets packets of wire size.
    pub tso: bool,
    /// UDP super-datagrams, both ways, where the kernel has them (Linux 6.2).
    pub uso: bool,
}

impl Default for TunOptions {
    fn default() -> Self {
        TunOptions {
            queues: 1,
            mtu: 1500,
            tso: true,
            uso: true,
        }
    }
}

/// Opens TUN interfaces.
#[derive(Debug)]
pub struct Tun;

impl Tun {
    /// Opens the interface `name` with so many queues, all offload on and an MTU of 1500. An empty name lets the kernel choose one.
    pub fn open(name: &str, queues: usize) -> Result<Vec<TunQueue>, Error> {
        Tun::open_with(
            name,
            &TunOptions {
                queues,
                ..TunOptions::default()
            },
        )
    }

    /// Opens the interface `name`, in the network namespace of the calling thread.
    pub fn open_with(name: &str, options: &TunOptions) -> Result<Vec<TunQueue>, Error> {
        check_name(name)?;
        let flags = IFF_TUN
            | IFF_NO_PI
            | IFF_VNET_HDR
            | if options.queues > 1 {
                IFF_MULTI_QUEUE
            } else {
                0
            };
        let mut name = name.to_owned();
        let mut queues = Vec::with_capacity(options.queues.max(1));
        for _ in 0..options.queues.max(1) {
            let fd = open_node()?;
            name = attach(&fd, &name, flags)?;
            set_header_size(&fd).map_err(|source| Error::Offload {
                name: name.clone(),
                source: source.into(),
            })?;
            let uso = set_offload(&fd, options).map_err(|source| Error::Offload {
                name: name.clone(),
                source: source.into(),
            })?;
            let capabilities = Capabilities {
                mtu: options.mtu,
                tso: options.tso,
                uso,
                checksum: true,
                max_packet: if options.tso || uso {
                    MAX_PACKET
                } else {
                    options.mtu
                },
            };
            queues.push(TunQueue {
                fd,
                name: name.clone(),
                capabilities,
            });
        }
        Ok(queues)
    }
}

/// Refuses names that the kernel would refuse or, worse, cut off.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let wrong = |byte: u8| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace();
    if name.len() > MAX_NAME || name == "." || name == ".." || name.bytes().any(wrong) {
        return Err(Error::Name {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// Opens the device node, non-blocking.
fn open_node() -> Result<OwnedFd, Error> {
    rustix::fs::open(
        "/dev/net/tun",
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(node_error)
}

/// What is wrong with the device node.
fn node_error(errno: Errno) -> Error {
    match errno {
        Errno::NOENT => Error::NoNode,
        Errno::NODEV | Errno::NXIO => Error::NoDriver,
        Errno::ACCESS | Errno::PERM => Error::NodeDenied,
        errno => Error::System {
            action: "open /dev/net/tun".into(),
            source: errno.into(),
        },
    }
}

/// What is wrong with the interface that was to be created or attached to.
pub(super) fn attach_error(name: &str, errno: Errno) -> Error {
    match errno {
        Errno::PERM | Errno::ACCESS => Error::NotPermitted {
            action: format!("create the TUN interface {name}"),
        },
        Errno::BUSY => Error::Busy {
            name: name.to_owned(),
        },
        Errno::INVAL | Errno::EXIST => Error::OtherKind {
            name: name.to_owned(),
        },
        errno => Error::System {
            action: format!("create the TUN interface {name}"),
            source: errno.into(),
        },
    }
}

/// As [`node_error`] and [`attach_error`] for an opener that does both and gives one error.
pub(super) fn open_error(name: &str, error: io::Error) -> Error {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(errno @ (Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::ACCESS)) => {
            node_error(errno)
        }
        Some(errno) => attach_error(name, errno),
        None => Error::System {
            action: format!("open the TUN interface {name}"),
            source: error,
        },
    }
}

/// Makes `fd` a queue of the interface `name`, creating that if need be, and gives the name it really has.
fn attach(fd: &OwnedFd, name: &str, flags: u16) -> Result<String, Error> {
    let mut request = InterfaceRequest {
        name: [0; MAX_NAME + 1],
        flags,
        rest: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF takes a pointer to a `struct ifreq` (40 bytes on every 64-bit Linux, which InterfaceRequest has), reads
    // name and flags from it and writes the name back. `request` lives until the call returns.
    unsafe {
        ioctl::ioctl(
            fd,
            Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request),
        )
    }
    .map_err(|errno| attach_error(name, errno))?;
    let length = request
        .name
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(MAX_NAME);
    Ok(String::from_utf8_lossy(&request.name[..length]).into_owned())
}

/// Sets the size of the header before each packet: the ten bytes of `struct virtio_net_hdr`.
fn set_header_size(fd: &OwnedFd) -> rustix::io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ takes a pointer to an `int` that it only reads; `Setter` passes one to its own copy.
    unsafe {
        ioctl::ioctl(
            fd,
            Setter::<TUNSETVNETHDRSZ, i32>::new(VnetHeader::LEN as i32),
        )
    }
}

/// Tells the kernel what it may leave undone, the most it knows of what is wanted, and gives whether that includes UDP super-datagrams.
fn set_offload(fd: &OwnedFd, options: &TunOptions) -> rustix::io::Result<bool> {
    // SAFETY: TUNSETOFFLOAD takes its flags as the argument itself, no pointer.
    let set = |flags: usize| unsafe {
        ioctl::ioctl(fd, IntegerSetter::<TUNSETOFFLOAD>::new_usize(flags))
    };
    let base = TUN_F_CSUM
        | if options.tso {
            TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
        } else {
            0
        };
    if options.uso {
        match set(base | TUN_F_USO4 | TUN_F_USO6) {
            Err(Errno::INVAL) => {} // Linux before 6.2 knows no USO and refuses the whole set.
            outcome => return outcome.map(|()| true),
        }
    }
    set(base).map(|()| false)
}

/// One queue of a TUN interface with offload.
#[derive(Debug)]
pub struct TunQueue {
    fd: OwnedFd,
    name: String,
    capabilities: Capabilities,
}

impl TunQueue {
    /// The interface's name, as the kernel knows it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Device for TunQueue {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn send(
        &mut self,
        offload: &Offload,
        headers: &[u8],
        payload: &[IoSlice<'_>],
    ) -> io::Result<()> {
        super::check_sendable(
            &self.capabilities,
            offload,
            super::packet_len(headers, payload),
        )?;
        let vnet = VnetHeader::for_packet(offload, headers).to_bytes();
        write_gathered(&self.fd, &[&vnet, headers], payload)
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<(usize, Offload)> {
        let mut vnet = [0; VnetHeader::LEN];
        let read = rustix::io::readv(
            &self.fd,
            &mut [IoSliceMut::new(&mut vnet), IoSliceMut::new(packet)],
        )?;
        let length = read.saturating_sub(VnetHeader::LEN);
        Ok((
            length,
            VnetHeader::from_bytes(vnet).to_offload(packet, length),
        ))
    }

    fn receive_split(&mut self, room: &mut BytesMut) -> io::Result<(BytesMut, Offload)> {
        room.reserve(VnetHeader::LEN + MAX_PACKET);
        let (read, _) = rustix::io::read(&self.fd, room.spare_capacity_mut())?;
        let length = read.len();
        // SAFETY: the kernel has just written so many bytes to the start of the spare room.
        unsafe { room.set_len(room.len() + length) };
        let mut packet = room.split();
        let Some(vnet) = packet.first_chunk::<{ VnetHeader::LEN }>().copied() else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        packet.advance(VnetHeader::LEN);
        let offload = VnetHeader::from_bytes(vnet).to_offload(&packet, packet.len());
        Ok((packet, offload))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }
}

/// Writes `heads` and `payload` as one packet by one system call. A packet device takes all of it or nothing.
pub(super) fn write_gathered(
    fd: impl AsFd,
    heads: &[&[u8]],
    payload: &[IoSlice<'_>],
) -> io::Result<()> {
    /// Pieces that need no allocation: two heads and as many payload slices as even a super-segment of small records rarely has.
    const INLINE: usize = 32;
    /// The kernel's `IOV_MAX`.
    const MOST: usize = 1024;
    let pieces = heads.len() + payload.len();
    if pieces <= INLINE {
        let mut slices = [IoSlice::new(&[]); INLINE];
        for (slice, head) in slices.iter_mut().zip(heads) {
            *slice = IoSlice::new(head);
        }
        slices[heads.len()..pieces].copy_from_slice(payload);
        rustix::io::writev(fd, &slices[..pieces])?;
    } else if pieces <= MOST {
        let slices: Vec<IoSlice<'_>> = heads
            .iter()
            .map(|head| IoSlice::new(head))
            .chain(payload.iter().copied())
            .collect();
        rustix::io::writev(fd, &slices)?;
    } else {
        let mut packet = heads.concat();
        payload
            .iter()
            .for_each(|slice| packet.extend_from_slice(slice));
        rustix::io::write(fd, &packet)?;
    }
    Ok(())
}

/// `struct virtio_net_hdr`, in the machine's byte order as TUN has it by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct VnetHeader {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl VnetHeader {
    const LEN: usize = 10;

    const F_NEEDS_CSUM: u8 = 1;
    const F_DATA_VALID: u8 = 2;

    const GSO_NONE: u8 = 0;
    const GSO_TCPV4: u8 = 1;
    const GSO_TCPV6: u8 = 4;
    const GSO_UDP_L4: u8 = 5;
    /// Bit beside the type: CWR is set, to be kept on the first segment only.
    const GSO_ECN: u8 = 0x80;

    fn for_packet(offload: &Offload, headers: &[u8]) -> VnetHeader {
        let mut vnet = VnetHeader {
            // The kernel copies this much to the linear part of its buffer and the rest to pages. With zero it would try to find a
            // linear buffer for all of a 64 KiB packet.
            hdr_len: u16::try_from(headers.len()).unwrap_or(u16::MAX),
            ..VnetHeader::default()
        };
        if let Some(request) = offload.needs_csum {
            vnet.flags = Self::F_NEEDS_CSUM;
            vnet.csum_start = request.start;
            vnet.csum_offset = request.offset;
        }
        if let Some(gso) = offload.gso {
            vnet.gso_type = match gso.kind {
                GsoKind::Tcp4 => Self::GSO_TCPV4,
                GsoKind::Tcp6 => Self::GSO_TCPV6,
                GsoKind::Udp4 | GsoKind::Udp6 => Self::GSO_UDP_L4,
            };
            vnet.gso_size = gso.size;
            // RFC 3168 §6.1.2 wants CWR on the first segment after the window was cut; GSO_ECN says to clear it on the others.
            let cwr = headers
                .get(usize::from(vnet.csum_start) + 13)
                .is_some_and(|flags| flags & 0x80 != 0);
            if gso.kind.is_tcp() && cwr {
                vnet.gso_type |= Self::GSO_ECN;
            }
        }
        vnet
    }

    /// What the header in front of a received packet means. `length` bytes of `packet` are the packet.
    fn to_offload(self, packet: &[u8], length: usize) -> Offload {
        let needs_csum = self.flags & Self::F_NEEDS_CSUM != 0;
        let v6 = length > 0 && packet[0] >> 4 == 6;
        let kind = match self.gso_type & !Self::GSO_ECN {
            Self::GSO_NONE => None,
            Self::GSO_TCPV4 => Some(GsoKind::Tcp4),
            Self::GSO_TCPV6 => Some(GsoKind::Tcp6),
            Self::GSO_UDP_L4 if v6 => Some(GsoKind::Udp6),
            Self::GSO_UDP_L4 => Some(GsoKind::Udp4),
            _ => None, // UFO and tunnels, which TUNSETOFFLOAD did not ask for.
        };
        Offload {
            needs_csum: needs_csum.then_some(CsumRequest {
                start: self.csum_start,
                offset: self.csum_offset,
            }),
            gso: kind.filter(|_| self.gso_size > 0).map(|kind| Gso {
                kind,
                hdr_len: self.hdr_len,
                size: self.gso_size,
            }),
            verified: needs_csum || self.flags & Self::F_DATA_VALID != 0,
        }
    }

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; Self::LEN]) -> VnetHeader {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        VnetHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_request_has_the_size_of_ifreq() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
    }

    #[test]
    fn vnet_header_survives_its_bytes() {
        let vnet = VnetHeader {
            flags: 1,
            gso_type: 0x81,
            hdr_len: 52,
            gso_size: 1448,
            csum_start: 20,
            csum_offset: 16,
        };
        assert_eq!(VnetHeader::from_bytes(vnet.to_bytes()), vnet);
    }

    #[test]
    fn congestion_window_reduced_asks_for_ecn_segmentation() {
        let mut headers = [0u8; 40];
        headers[0] = 0x45;
        let offload = Offload {
            needs_csum: Some(CsumRequest {
                start: 20,
                offset: 16,
            }),
            gso: Some(Gso {
                kind: GsoKind::Tcp4,
                hdr_len: 40,
                size: 1448,
            }),
            verified: false,
        };
        assert_eq!(
            VnetHeader::for_packet(&offload, &headers).gso_type,
            VnetHeader::GSO_TCPV4
        );
        headers[20 + 13] = 0x80;
        assert_eq!(
            VnetHeader::for_packet(&offload, &headers).gso_type,
            VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN
        );
    }

    #[test]
    fn received_headers_become_offload() {
        let vnet = VnetHeader {
            flags: 1,
            gso_type: 5,
            hdr_len: 48,
            gso_size: 1000,
            csum_start: 40,
            csum_offset: 6,
        };
        let packet = [0x60; 64];
        let offload = vnet.to_offload(&packet, 64);
        assert_eq!(offload.gso.map(|gso| gso.kind), Some(GsoKind::Udp6));
        assert_eq!(
            offload.needs_csum,
            Some(CsumRequest {
                start: 40,
                offset: 6
            })
        );
        assert!(offload.verified);
        assert!(
            VnetHeader {
                flags: 2,
                ..VnetHeader::default()
            }
            .to_offload(&packet, 64)
            .verified
        );
        assert_eq!(VnetHeader::default().to_offload(&packet, 0), Offload::NONE);
    }

    #[test]
    fn bad_names_are_named() {
        for name in ["sixteen-letters-", "a b", "a/b", "..", "a:1"] {
            assert!(
                matches!(Tun::open(name, 1), Err(Error::Name { .. })),
                "{name}"
            );
        }
    }

    #[test]
    fn refusals_of_the_device_node_are_told_apart() {
        let open = |errno: Errno| open_error("u0", errno.into());
        assert!(matches!(node_error(Errno::NOENT), Error::NoNode));
        assert!(matches!(node_error(Errno::ACCESS), Error::NodeDenied));
        assert!(matches!(open(Errno::NOENT), Error::NoNode));
        assert!(matches!(open(Errno::NODEV), Error::NoDriver));
        assert!(matches!(open(Errno::PERM), Error::NotPermitted { .. }));
        assert!(matches!(open(Errno::BUSY), Error::Busy { .. }));
        assert!(matches!(open(Errno::NOMEM), Error::System { .. }));
    }
}
