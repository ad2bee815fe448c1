//! Fragments against the real kernel: what it cuts is put together here, and what is cut here it puts together.

#![expect(
    clippy::disallowed_methods,
    reason = "the kernel is the peer: it answers in real time"
)]

mod namespace;

use namespace::Namespace;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;
use uktls_stack::clock::Instant;
use uktls_stack::device::tun::Tun;
use uktls_stack::device::{Device, MAX_PACKET, Offload, checksum, interface};
use uktls_stack::fragment::{Limits, Outcome, Reassembler, fragment};

const PATIENCE: Duration = Duration::from_secs(10);

fn payload() -> Vec<u8> {
    (0..8_000usize)
        .map(|at| (at * 3 + at / 255) as u8)
        .collect()
}

/// Host and stack, over both families.
fn pairs() -> [(IpAddr, IpAddr); 2] {
    let v6 = |last| Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last).into();
    [
        (
            Ipv4Addr::new(10, 77, 0, 1).into(),
            Ipv4Addr::new(10, 77, 0, 2).into(),
        ),
        (v6(1), v6(2)),
    ]
}

fn open() -> impl Device {
    let queue = Tun::open("u0", 1)
        .unwrap_or_else(|error| panic!("{error}"))
        .remove(0);
    let addresses = [
        "10.77.0.1/24".parse().unwrap(),
        "fd77::1/64".parse().unwrap(),
    ];
    interface::configure("u0", 1500, &addresses).unwrap_or_else(|error| panic!("{error}"));
    queue
}

#[test]
fn what_the_kernel_cuts_is_put_together() {
    namespace::run(
        "what_the_kernel_cuts_is_put_together",
        Namespace::Network,
        || {
            let mut device = open();
            let mut reassembler = Reassembler::new(Limits::default());
            let mut packet = vec![0; MAX_PACKET];
            for (host, stack) in pairs() {
                let socket = UdpSocket::bind((host, 0)).unwrap();
                socket.send_to(&payload(), (stack, 4433)).unwrap();
                let deadline = std::time::Instant::now() + PATIENCE;
                let whole = loop {
                    match device.receive(&mut packet) {
                        Ok((length, _)) => {
                            assert!(length <= 1500);
                            match reassembler.push(Instant::ZERO, &packet[..length]) {
                                Outcome::Complete(whole) => break whole,
                                Outcome::Dropped(reason) => panic!("{reason:?}"),
                                Outcome::NotFragment | Outcome::Pending => {}
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            assert!(
                                std::time::Instant::now() < deadline,
                                "the fragments never came"
                            );
                            let timeout = Timespec {
                                tv_sec: 1,
                                tv_nsec: 0,
                            };
                            let fd = device.fd().expect("a TUN has a descriptor");
                            poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
                        }
                        Err(error) => panic!("{error}"),
                    }
                };
                assert!(checksum::ip_header_is_valid(&whole));
                let datagram = &whole[if host.is_ipv4() { 20 } else { 40 }..];
                assert!(checksum::transport_is_valid(host, stack, 17, datagram));
                assert!(datagram[8..] == payload());
            }
            assert_eq!(reassembler.counters().reassembled, 2);
            assert!(reassembler.counters().fragments >= 12);
        },
    );
}

#[test]
fn what_is_cut_here_the_kernel_puts_together() {
    namespace::run(
        "what_is_cut_here_the_kernel_puts_together",
        Namespace::Network,
        || {
            let mut device = open();
            for (host, stack) in pairs() {
                let socket = UdpSocket::bind((host, 0)).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                let stack = SocketAddr::from((stack, 4433));
                let payload = payload();
                let mut headers = match (stack.ip(), host) {
                    (IpAddr::V4(src), IpAddr::V4(dst)) => {
                        let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
                        header.extend_from_slice(&src.octets());
                        header.extend_from_slice(&dst.octets());
                        header
                    }
                    (IpAddr::V6(src), IpAddr::V6(dst)) => {
                        let mut header = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
                        header.extend_from_slice(&src.octets());
                        header.extend_from_slice(&dst.octets());
                        header
                    }
                    _ => unreachable!("one family"),
                };
                let length = 8 + payload.len();
                let mut udp = [
                    stack.port().to_be_bytes(),
                    socket.local_addr().unwrap().port().to_be_bytes(),
                ]
                .concat();
                udp.extend_from_slice(&(length as u16).to_be_bytes());
                let mut sum = checksum::pseudo_header(stack.ip(), host, 17, length as u32).unwrap();
                sum.add(&udp);
                sum.add(&payload);
                udp.extend_from_slice(&sum.checksum_not_zero().to_be_bytes());
                headers.extend_from_slice(&udp);

                let (front, back) = payload.split_at(3_001);
                let mut fragments: Vec<Vec<u8>> = fragment(
                    &headers,
                    &[IoSlice::new(front), IoSlice::new(back)],
                    1500,
                    0x77,
                )
                .unwrap()
                .collect();
                assert_eq!(fragments.len(), 6);
                fragments.swap(1, 4);
                for packet in &fragments {
                    device.send(&Offload::NONE, packet, &[]).unwrap();
                }
                let mut received = vec![0; 9_000];
                let (length, from) = socket.recv_from(&mut received).unwrap();
                assert_eq!(from, stack);
                assert!(received[..length] == payload);
            }
        },
    );
}
