//! Sockets of the real stack against the kernel's TCP and UDP: bytes, ends, errors, many clients.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::*;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags as SysSendFlags, sendmsg};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::time::Duration;
use uktls::client::{ConnectOptions, Reason};
use uktls::{TcpListener, TcpStream, UdpSocket};
use uktls_stack::device::interface::{self};
use uktls_stack::mark::Mark;

#[test]
fn plain_bytes_go_both_ways_and_end_cleanly() {
    inside("plain_bytes_go_both_ways_and_end_cleanly", |net| {
        let (mut ours, mut theirs) = net.pair();
        let content = pattern(3_000_000);
        for direction in 0..2 {
            let mut got = vec![0; content.len()];
            std::thread::scope(|scope| {
                let (from, to): (&mut (dyn Write + Send), &mut dyn Read) = if direction == 0 {
                    (&mut ours, &mut theirs)
                } else {
                    (&mut theirs, &mut ours)
                };
                scope.spawn(|| from.write_all(&content).expect("written"));
                to.read_exact(&mut got).expect("read");
            });
            assert!(got == content, "direction {direction}");
        }
        ours.shutdown(Shutdown::Write).unwrap();
        assert_eq!(theirs.read(&mut [0; 10]).unwrap(), 0);
        theirs.write_all(b"after").unwrap();
        drop(theirs);
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"after");
        assert_eq!(ours.reason().unwrap(), Reason::CleanEnd);
    });
}

#[test]
fn what_is_written_the_moment_a_connection_stands_arrives() {
    inside(
        "what_is_written_the_moment_a_connection_stands_arrives",
        |net| {
            for round in 0..200u8 {
                // Written as soon as the socket polls writable, while the stack may still be clearing it.
                let listener = std::net::TcpListener::bind((KERNEL, 0)).expect("bind");
                let address = listener.local_addr().expect("bound");
                let mut ours = TcpStream::connect_on(&net.daemon, address).expect("connect");
                ours.write_all(&[round; 90]).expect("room");
                let (mut theirs, _) = listener.accept().expect("accept");
                theirs
                    .set_read_timeout(Some(Duration::from_secs(10)))
                    .expect("a timeout");
                let mut got = [0; 90];
                theirs.read_exact(&mut got).expect("all of it");
                assert_eq!(got, [round; 90]);
            }
        },
    );
}

#[test]
fn the_kernel_connects_to_a_listener() {
    inside("the_kernel_connects_to_a_listener", |net| {
        let listener = TcpListener::bind_on(&net.daemon, (STACK, 8080).into()).unwrap();
        let taken = TcpListener::bind_on(&net.daemon, (STACK, 8080).into());
        assert_eq!(errno(taken), Errno::ADDRINUSE);
        let elsewhere = TcpListener::bind_on(&net.daemon, (Ipv4Addr::new(192, 0, 2, 1), 80).into());
        assert_eq!(errno(elsewhere), Errno::ADDRNOTAVAIL);
        let mut kernel: Vec<std::net::TcpStream> = (0..300)
            .map(|_| std::net::TcpStream::connect((STACK, 8080)).expect("connect"))
            .collect();
        for (i, stream) in kernel.iter_mut().enumerate() {
            stream.write_all(&(i as u32).to_be_bytes()).unwrap();
        }
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..300 {
            let (mut stream, peer) = listener.accept().unwrap();
            assert_eq!(peer, stream.peer_addr().unwrap());
            assert_eq!(
                stream.local_addr().unwrap(),
                SocketAddr::from((STACK, 8080))
            );
            let mut number = [0; 4];
            stream.read_exact(&mut number).unwrap();
            seen.insert(u32::from_be_bytes(number));
        }
        assert_eq!(seen.len(), 300);
        drop(listener);
        assert!(std::net::TcpStream::connect((STACK, 8080)).is_err());
    });
}

#[test]
fn connections_fail_with_their_errno() {
    inside("connections_fail_with_their_errno", |net| {
        let refused = TcpStream::connect_on(&net.daemon, (KERNEL, 9).into());
        assert_eq!(errno(refused), Errno::CONNREFUSED);
        // Nobody has this address; nothing answers.
        let options = ConnectOptions {
            timeout: Some(Duration::from_millis(200)),
            ..ConnectOptions::default()
        };
        let silent = TcpStream::connect_with(
            &net.daemon,
            (Ipv4Addr::new(10, 77, 0, 99), 9).into(),
            &options,
        );
        assert!(matches!(
            errno(silent),
            Errno::TIMEDOUT | Errno::HOSTUNREACH
        ));
        let options = ConnectOptions {
            nonblocking: true,
            ..ConnectOptions::default()
        };
        let stream = TcpStream::connect_with(&net.daemon, (KERNEL, 9).into(), &options).unwrap();
        let mut error = None;
        eventually("the refusal", || {
            error = stream.take_error().unwrap();
            error.is_some()
        });
        assert_eq!(
            error.unwrap().raw_os_error(),
            Some(Errno::CONNREFUSED.raw_os_error())
        );
    });
}

#[test]
fn a_reset_is_told_behind_the_data_in_front_of_it() {
    inside("a_reset_is_told_behind_the_data_in_front_of_it", |net| {
        let (mut ours, mut theirs) = net.pair();
        theirs.write_all(b"last words").unwrap();
        let mut buf = [0; 20];
        eventually("the words", || ours.peek(&mut buf).unwrap() == 10);
        rustix::net::sockopt::set_socket_linger(&theirs, Some(Duration::ZERO)).unwrap();
        drop(theirs);
        eventually("the reset", || ours.reason().unwrap() == Reason::Reset);
        assert_eq!(ours.read(&mut buf).unwrap(), 10);
        for _ in 0..2 {
            assert_eq!(errno(ours.read(&mut buf)), Errno::CONNRESET);
            assert_eq!(errno(ours.write(b"x")), Errno::CONNRESET);
        }
        assert_eq!(errno(ours.set_ulp_tls()), Errno::NOTCONN);
    });
}

#[test]
fn datagrams_reach_the_kernel_and_come_back() {
    inside("datagrams_reach_the_kernel_and_come_back", |net| {
        let theirs = std::net::UdpSocket::bind((KERNEL, 0)).unwrap();
        theirs
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let ours = UdpSocket::bind_on(&net.daemon, (STACK, 0).into(), None).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut buf = vec![0; 70_000];
        // The large one is cut into fragments on its way.
        for size in [0, 1, 1_400, 20_000] {
            let datagram = pattern(size);
            ours.send_to(&datagram, theirs.local_addr().unwrap())
                .unwrap();
            let (len, from) = theirs.recv_from(&mut buf).unwrap();
            assert_eq!(
                (len, from, &buf[..len]),
                (size, ours.local_addr().unwrap(), &datagram[..])
            );
            theirs.send_to(&datagram, from).unwrap();
            let (len, from) = ours.recv_from(&mut buf).unwrap();
            assert_eq!(
                (len, from, &buf[..len]),
                (size, theirs.local_addr().unwrap(), &datagram[..])
            );
        }
    });
}

#[test]
fn closed_sockets_leave_nothing_and_a_dead_daemon_is_an_error() {
    inside(
        "closed_sockets_leave_nothing_and_a_dead_daemon_is_an_error",
        |net| {
            for _ in 0..20 {
                let (mut ours, mut theirs) = net.pair();
                theirs.write_all(b"unread").unwrap();
                ours.write_all(b"x").unwrap();
                theirs.read_exact(&mut [0]).unwrap();
            }
            eventually("no sockets but those in TIME-WAIT", || {
                net.daemon
                    .sockets()
                    .unwrap()
                    .iter()
                    .all(|socket| socket.state.as_deref() == Some("TIME-WAIT"))
            });
            let (mut ours, mut theirs) = net.pair();
            ours.write_all(b"held").unwrap();
            net.kill();
            assert_eq!(errno(ours.read(&mut [0; 10])), Errno::CONNABORTED);
            assert_eq!(errno(ours.write(b"x")), Errno::CONNABORTED);
            let mut buf = [0; 10];
            let end = theirs.read(&mut buf).and_then(|_| theirs.read(&mut buf));
            assert_eq!(errno(end), Errno::CONNRESET, "the peer is told");
            assert_eq!(
                errno(TcpStream::connect_on(&net.daemon, (KERNEL, 9).into())),
                Errno::NETDOWN
            );
        },
    );
}

#[test]
fn a_client_that_dies_takes_its_sockets_along() {
    inside("a_client_that_dies_takes_its_sockets_along", |net| {
        // A program of its own holds the socket's only descriptor, and is killed.
        let (ours, mut theirs) = net.pair();
        theirs.write_all(b"to nobody").unwrap();
        let mut buf = [0; 20];
        eventually("the bytes", || ours.peek(&mut buf).unwrap() == 9);
        let ours = std::os::fd::OwnedFd::try_from(ours).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .stdin(std::process::Stdio::from(ours))
            .spawn()
            .expect("a program");
        child.kill().unwrap();
        child.wait().unwrap();
        // Closed with unread data: a reset, not a clean end.
        assert_eq!(errno(theirs.read(&mut [0; 10])), Errno::CONNRESET);
        eventually("no sockets", || net.daemon.sockets().unwrap().is_empty());
    });
}

#[test]
fn a_descriptor_that_takes_its_time_to_close_stalls_nobody() {
    inside(
        "a_descriptor_that_takes_its_time_to_close_stalls_nobody",
        |net| {
            interface::loopback_up().unwrap();
            // A socket that waits for a minute when it is closed, as its peer does not read.
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut lingering =
                std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let _silent = listener.accept().unwrap();
            lingering.set_nonblocking(true).unwrap();
            while lingering.write(&[7; 65_536]).is_ok() {}
            lingering.set_nonblocking(false).unwrap();
            rustix::net::sockopt::set_socket_linger(&lingering, Some(Duration::from_secs(60)))
                .unwrap();
            // It goes to the stack for good: once with a mark, once behind it, where nobody will ever take it.
            let (marked, mut theirs) = net.pair();
            let mark = Mark::RecordEnd.encode();
            for _ in 0..2 {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                let fds = [lingering.as_fd()];
                assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
                let message = [std::io::IoSlice::new(&mark)];
                sendmsg(&marked, &message, &mut ancillary, SysSendFlags::empty()).unwrap();
            }
            drop(lingering);
            (&marked).write_all(b"behind").unwrap();
            theirs.read_exact(&mut [0; 6]).unwrap();
            drop(marked);
            let (mut ours, mut theirs) = net.pair();
            ours.write_all(b"others").unwrap();
            theirs.read_exact(&mut [0; 6]).unwrap();
        },
    );
}

#[test]
fn many_tiny_writes_need_no_reader() {
    inside("many_tiny_writes_need_no_reader", |net| {
        // A Unix socket alone takes 278 of them.
        let (ours, mut theirs) = net.pair();
        ours.set_write_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        for i in 0..5000u32 {
            assert_eq!((&ours).write(&[i as u8]).unwrap(), 1, "write {i}");
        }
        let mut got = vec![0; 5000];
        theirs.read_exact(&mut got).unwrap();
        assert!(got.iter().enumerate().all(|(i, &byte)| byte == i as u8));
    });
}
