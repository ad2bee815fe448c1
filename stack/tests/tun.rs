//! Devices and interfaces against the real kernel, each test in a network namespace of its own.

#![expect(
    clippy::disallowed_methods,
    reason = "the kernel is the peer: it answers in real time"
)]

mod namespace;

use namespace::Namespace;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::wire::{IpAddress, IpCidr, TcpPacket, UdpPacket};
use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};
use uktls_stack::device::plain_tun::PlainTun;
use uktls_stack::device::tun::{Tun, TunOptions};
use uktls_stack::device::{
    CsumRequest, Device, Error, Gso, GsoKind, MAX_PACKET, Offload, checksum, interface,
};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
const STACK: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));
const STACK6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2));

/// Longest wait for anything; nothing here takes a hundredth of it.
const PATIENCE: Duration = Duration::from_secs(10);

fn host_addresses() -> [IpCidr; 2] {
    [
        "10.77.0.1/24".parse().unwrap(),
        "fd77::1/64".parse().unwrap(),
    ]
}

fn open_offloading(mtu: usize) -> impl Device {
    let options = TunOptions {
        mtu,
        ..TunOptions::default()
    };
    let queue = Tun::open_with("u0", &options)
        .unwrap_or_else(|error| panic!("{error}"))
        .remove(0);
    interface::configure("u0", mtu, &host_addresses()).unwrap_or_else(|error| panic!("{error}"));
    queue
}

fn open_plain(mtu: usize) -> impl Device {
    let device = PlainTun::open("u0", mtu).unwrap_or_else(|error| panic!("{error}"));
    interface::configure("u0", mtu, &host_addresses()).unwrap_or_else(|error| panic!("{error}"));
    device
}

/// The next packet for which `wanted` says yes; others (the kernel's own multicast reports) are passed over.
fn receive_until(device: &mut impl Device, wanted: impl Fn(&[u8]) -> bool) -> (Vec<u8>, Offload) {
    let deadline = Instant::now() + PATIENCE;
    let mut packet = vec![0; MAX_PACKET];
    loop {
        match device.receive(&mut packet) {
            Ok((length, offload)) if wanted(&packet[..length]) => {
                return (packet[..length].to_vec(), offload);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < deadline, "the packet never came");
                let fd = device.fd().expect("a TUN has a descriptor");
                let timeout = Timespec {
                    tv_sec: 1,
                    tv_nsec: 0,
                };
                poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Where the transport header starts, and its protocol.
fn transport_of(packet: &[u8]) -> (usize, u8) {
    if packet[0] >> 4 == 4 {
        (usize::from(packet[0] & 15) * 4, packet[9])
    } else {
        (40, packet[6])
    }
}

/// An IP header from the stack to the host for a transport header and payload of so many bytes.
fn ip_header(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            header[2..4].copy_from_slice(&((20 + length) as u16).to_be_bytes());
            header.extend_from_slice(&src.octets());
            header.extend_from_slice(&dst.octets());
            let header_checksum = checksum::checksum(&header);
            header[10..12].copy_from_slice(&header_checksum.to_be_bytes());
            header
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            header[4..6].copy_from_slice(&(length as u16).to_be_bytes());
            header.extend_from_slice(&src.octets());
            header.extend_from_slice(&dst.octets());
            header
        }
        _ => unreachable!("one family"),
    }
}

/// IP and UDP headers with a partial checksum, and the request to complete it.
fn udp_headers(src: SocketAddr, dst: SocketAddr, payload: usize) -> (Vec<u8>, CsumRequest) {
    let length = 8 + payload;
    let mut headers = ip_header(src.ip(), dst.ip(), 17, length);
    let request = CsumRequest {
        start: headers.len() as u16,
        offset: 6,
    };
    headers.extend_from_slice(&src.port().to_be_bytes());
    headers.extend_from_slice(&dst.port().to_be_bytes());
    headers.extend_from_slice(&(length as u16).to_be_bytes());
    let partial = checksum::pseudo_header(src.ip(), dst.ip(), 17, length as u32)
        .unwrap()
        .fold();
    headers.extend_from_slice(&partial.to_be_bytes());
    (headers, request)
}

fn host_socket(address: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn kernel_sends_udp(device: &mut impl Device, host: IpAddr, stack: IpAddr) {
    let socket = host_socket(host);
    socket.send_to(b"from the kernel", (stack, 4433)).unwrap();
    let (mut packet, offload) = receive_until(device, |packet| transport_of(packet).1 == 17);
    let (transport, _) = transport_of(&packet);
    if device.capabilities().checksum {
        let request = CsumRequest {
            start: transport as u16,
            offset: 6,
        };
        assert_eq!(
            offload,
            Offload {
                needs_csum: Some(request),
                gso: None,
                verified: true
            }
        );
        checksum::complete(&mut packet, request).unwrap();
    } else {
        assert_eq!(offload, Offload::NONE);
    }
    assert!(checksum::ip_header_is_valid(&packet));
    let udp = UdpPacket::new_checked(&packet[transport..]).unwrap();
    assert!(udp.verify_checksum(&IpAddress::from(host), &IpAddress::from(stack)));
    assert_eq!(
        (udp.src_port(), udp.dst_port()),
        (socket.local_addr().unwrap().port(), 4433)
    );
    assert_eq!(udp.payload(), b"from the kernel");
}

fn kernel_receives_udp(device: &mut impl Device, host: IpAddr, stack: IpAddr) {
    let socket = host_socket(host);
    let (mut headers, request) =
        udp_headers((stack, 4433).into(), socket.local_addr().unwrap(), 10);
    let payload = [IoSlice::new(b"two "), IoSlice::new(b"pieces")];
    // A partial checksum that nobody is asked to complete is a wrong one. The kernel drops it, which shows that it checks.
    device.send(&Offload::NONE, &headers, &payload).unwrap();
    let mut offload = Offload {
        needs_csum: Some(request),
        ..Offload::NONE
    };
    if !device.capabilities().checksum {
        let refused = device.send(&offload, &headers, &payload).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        let mut packet = [&headers[..], b"two pieces"].concat();
        checksum::complete(&mut packet, request).unwrap();
        headers = packet[..headers.len()].to_vec();
        offload = Offload::NONE;
    }
    device.send(&offload, &headers, &payload).unwrap();
    let mut datagram = [0; 100];
    let (length, from) = socket.recv_from(&mut datagram).unwrap();
    assert_eq!(
        (&datagram[..length], from),
        (&b"two pieces"[..], SocketAddr::from((stack, 4433)))
    );
    socket.set_nonblocking(true).unwrap();
    assert_eq!(
        socket.recv(&mut datagram).unwrap_err().kind(),
        io::ErrorKind::WouldBlock,
        "the wrong one came too"
    );
}

#[test]
fn udp_goes_both_ways_with_offload() {
    namespace::run(
        "udp_goes_both_ways_with_offload",
        Namespace::Network,
        || {
            let mut device = open_offloading(1500);
            assert!(device.capabilities().tso && device.capabilities().checksum);
            for (host, stack) in [(HOST, STACK), (HOST6, STACK6)] {
                kernel_sends_udp(&mut device, host, stack);
                kernel_receives_udp(&mut device, host, stack);
            }
        },
    );
}

#[test]
fn udp_goes_both_ways_without_offload() {
    namespace::run(
        "udp_goes_both_ways_without_offload",
        Namespace::Network,
        || {
            let mut device = open_plain(1500);
            for (host, stack) in [(HOST, STACK), (HOST6, STACK6)] {
                kernel_sends_udp(&mut device, host, stack);
                kernel_receives_udp(&mut device, host, stack);
            }
        },
    );
}

#[test]
fn a_user_namespace_is_enough() {
    namespace::run(
        "a_user_namespace_is_enough",
        Namespace::UserAndNetwork,
        || {
            let mut device = open_offloading(9000);
            kernel_sends_udp(&mut device, HOST, STACK);
            kernel_receives_udp(&mut device, HOST6, STACK6);
            assert_eq!(
                interface::state("u0").unwrap().tx_queue_length,
                interface::TX_QUEUE_LENGTH
            );
        },
    );
}

#[test]
fn a_super_datagram_arrives_as_datagrams() {
    namespace::run(
        "a_super_datagram_arrives_as_datagrams",
        Namespace::Network,
        || {
            let mut device = open_offloading(1500);
            if !device.capabilities().uso {
                eprintln!("this kernel has no UDP segmentation offload on TUN (Linux 6.2 has)");
                return;
            }
            for (host, stack, kind) in
                [(HOST, STACK, GsoKind::Udp4), (HOST6, STACK6, GsoKind::Udp6)]
            {
                let socket = host_socket(host);
                let (headers, request) =
                    udp_headers((stack, 4433).into(), socket.local_addr().unwrap(), 2_500);
                let gso = Some(Gso {
                    kind,
                    hdr_len: headers.len() as u16,
                    size: 1_000,
                });
                let offload = Offload {
                    needs_csum: Some(request),
                    gso,
                    verified: false,
                };
                device
                    .send(
                        &offload,
                        &headers,
                        &[IoSlice::new(&[1; 1_500]), IoSlice::new(&[2; 1_000])],
                    )
                    .unwrap();
                let mut datagram = [0; 3_000];
                let lengths: Vec<usize> = (0..3)
                    .map(|_| socket.recv(&mut datagram).unwrap())
                    .collect();
                assert_eq!(lengths, [1_000, 1_000, 500]);
            }
        },
    );
}

/// One end of a TCP connection just able to shake hands and exchange one super-segment each way.
struct Peer<'a, D> {
    device: &'a mut D,
    host: SocketAddr,
    stack: SocketAddr,
    seq: u32,
    ack: u32,
}

impl<D: Device> Peer<'_, D> {
    fn send(&mut self, flags: u8, options: &[u8], payload: &[u8], gso: Option<u16>) {
        let length = 20 + options.len() + payload.len();
        let mut headers = ip_header(self.stack.ip(), self.host.ip(), 6, length);
        let start = headers.len();
        headers.extend_from_slice(&self.stack.port().to_be_bytes());
        headers.extend_from_slice(&self.host.port().to_be_bytes());
        headers.extend_from_slice(&self.seq.to_be_bytes());
        headers.extend_from_slice(&self.ack.to_be_bytes());
        headers.extend_from_slice(&[((20 + options.len()) as u8 / 4) << 4, flags, 0xff, 0xff]);
        let partial = checksum::pseudo_header(self.stack.ip(), self.host.ip(), 6, length as u32)
            .unwrap()
            .fold();
        headers.extend_from_slice(&partial.to_be_bytes());
        headers.extend_from_slice(&[0, 0]);
        headers.extend_from_slice(options);
        let kind = if self.host.is_ipv4() {
            GsoKind::Tcp4
        } else {
            GsoKind::Tcp6
        };
        let gso = gso.map(|size| Gso {
            kind,
            hdr_len: headers.len() as u16,
            size,
        });
        let offload = Offload {
            needs_csum: Some(CsumRequest {
                start: start as u16,
                offset: 16,
            }),
            gso,
            verified: false,
        };
        let (front, back) = payload.split_at(payload.len() / 3);
        self.device
            .send(
                &offload,
                &headers,
                &[IoSlice::new(front), IoSlice::new(back)],
            )
            .unwrap();
        self.seq = self
            .seq
            .wrapping_add(payload.len() as u32 + u32::from(flags & 0x03 != 0));
    }

    fn receive(&mut self, wanted: impl Fn(&TcpPacket<&[u8]>) -> bool) -> (Vec<u8>, u32, Offload) {
        let (packet, offload) = receive_until(self.device, |packet| {
            let (transport, protocol) = transport_of(packet);
            protocol == 6 && wanted(&TcpPacket::new_checked(&packet[transport..]).unwrap())
        });
        let tcp = TcpPacket::new_checked(&packet[transport_of(&packet).0..]).unwrap();
        (tcp.payload().to_vec(), tcp.seq_number().0 as u32, offload)
    }
}

#[test]
fn super_segments_go_both_ways() {
    namespace::run("super_segments_go_both_ways", Namespace::Network, || {
        let mut device = open_offloading(1500);
        for (host, stack, kind) in [(HOST, STACK, GsoKind::Tcp4), (HOST6, STACK6, GsoKind::Tcp6)] {
            let listener = TcpListener::bind((host, 0)).unwrap();
            let mut peer = Peer {
                device: &mut device,
                host: listener.local_addr().unwrap(),
                stack: (stack, 40_000).into(),
                seq: 1_000,
                ack: 0,
            };
            peer.send(0x02, &[2, 4, 0x05, 0x78], &[], None); // SYN, MSS 1400
            let (_, seq, _) = peer.receive(|tcp| tcp.syn() && tcp.ack());
            peer.ack = seq.wrapping_add(1);
            peer.send(0x10, &[], &[], None);
            let (mut accepted, _) = listener.accept().unwrap();
            accepted.set_read_timeout(Some(PATIENCE)).unwrap();

            let sent: Vec<u8> = (0..40_000u32).map(|byte| byte as u8).collect();
            peer.send(0x18, &[], &sent, Some(1_400));
            let mut arrived = vec![0; sent.len()];
            accepted.read_exact(&mut arrived).unwrap();
            assert!(arrived == sent);

            accepted.write_all(&sent[..10_000]).unwrap();
            let (payload, seq, offload) = peer.receive(|tcp| !tcp.payload().is_empty());
            assert_eq!(seq, peer.ack);
            let gso = offload
                .gso
                .expect("10,000 bytes in one write come as a super-segment");
            assert_eq!((gso.kind, gso.size), (kind, 1_400));
            assert!(payload.len() > 1_400 && sent.starts_with(&payload));
        }
    });
}

#[test]
fn without_tso_the_kernel_cuts_before_the_device() {
    namespace::run(
        "without_tso_the_kernel_cuts_before_the_device",
        Namespace::Network,
        || {
            let options = TunOptions {
                tso: false,
                uso: false,
                ..TunOptions::default()
            };
            let mut device = Tun::open_with("u0", &options).unwrap().remove(0);
            interface::configure("u0", 1500, &host_addresses()).unwrap();
            let listener = TcpListener::bind((HOST, 0)).unwrap();
            let host = listener.local_addr().unwrap();
            let mut peer = Peer {
                device: &mut device,
                host,
                stack: (STACK, 40_000).into(),
                seq: 1_000,
                ack: 0,
            };
            peer.send(0x02, &[2, 4, 0x05, 0x78], &[], None);
            let (_, seq, _) = peer.receive(|tcp| tcp.syn() && tcp.ack());
            peer.ack = seq.wrapping_add(1);
            peer.send(0x10, &[], &[], None);
            let (mut accepted, _) = listener.accept().unwrap();
            accepted.write_all(&[7; 10_000]).unwrap();
            let (payload, _, offload) = peer.receive(|tcp| !tcp.payload().is_empty());
            assert_eq!((payload.len(), offload.gso), (1_400, None));
        },
    );
}

#[test]
fn interfaces_are_set_up_as_asked_and_vanish_with_the_last_queue() {
    namespace::run(
        "interfaces_are_set_up_as_asked_and_vanish_with_the_last_queue",
        Namespace::Network,
        || {
            let [v4, v6] = host_addresses();
            for mtu in [576, 1280, 1500, 9000, 65_520] {
                let mut queues = Tun::open("u0", 2).unwrap();
                let addresses = if mtu < 1280 { vec![v4] } else { vec![v4, v6] };
                let state = interface::configure("u0", mtu, &addresses).unwrap();
                assert_eq!(
                    (state.up, state.mtu, state.tx_queue_length),
                    (true, mtu, 10_000)
                );
                assert_eq!(state.addresses, addresses, "and no link-local address");
                assert_eq!(
                    interface::configure("u0", mtu, &addresses).unwrap(),
                    state,
                    "a second time changes nothing"
                );
                assert!(interface::state("lo").unwrap().up);
                queues.pop();
                assert!(interface::state("u0").is_ok(), "one queue is left");
                drop(queues);
                assert!(matches!(
                    interface::state("u0"),
                    Err(Error::NoInterface { .. })
                ));
            }
        },
    );
}

#[test]
fn the_kernel_names_an_interface_without_a_name() {
    namespace::run(
        "the_kernel_names_an_interface_without_a_name",
        Namespace::Network,
        || {
            let queues = Tun::open("", 2).unwrap();
            assert_eq!((queues[0].name(), queues[1].name()), ("tun0", "tun0"));
            assert_eq!(PlainTun::open("", 1500).unwrap().name(), "tun1");
        },
    );
}

#[test]
fn refusals_say_what_is_wrong() {
    namespace::run("refusals_say_what_is_wrong", Namespace::Network, || {
        let _holder = Tun::open("u0", 1).unwrap();
        assert!(matches!(Tun::open("u0", 1), Err(Error::Busy { .. })));
        assert!(matches!(
            PlainTun::open("u0", 1500),
            Err(Error::Busy { .. } | Error::OtherKind { .. })
        ));
        assert!(matches!(Tun::open("lo", 1), Err(Error::OtherKind { .. })));
        assert!(matches!(
            interface::configure("u1", 1500, &[]),
            Err(Error::NoInterface { .. })
        ));

        let nothing = rustix::thread::CapabilitySets {
            effective: rustix::thread::CapabilitySet::empty(),
            permitted: rustix::thread::CapabilitySet::empty(),
            inheritable: rustix::thread::CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, nothing).unwrap();
        for error in [
            Tun::open("u2", 1).unwrap_err(),
            PlainTun::open("u2", 1500).unwrap_err(),
            interface::configure("u0", 1500, &host_addresses()).unwrap_err(),
        ] {
            assert!(matches!(error, Error::NotPermitted { .. }), "{error}");
            assert!(!error.to_string().contains('\n'));
        }
    });
}
