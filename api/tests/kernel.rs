//! The socket API over the real stack, with the kernel's TCP as the peer: each test in a network namespace of its own.

#[path = "../../stack/tests/namespace/mod.rs"]
mod namespace;

use namespace::Namespace;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags as SysSendFlags, sendmsg};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::time::{Duration, Instant};
use uktls::client::{ConnectOptions, Reason, RecvFlags, SENDFILE_QUOTA, SendFlags};
use uktls::server::{Running, Server, ServerConfig};
use uktls::{CipherSuite, ContentType, CryptoInfo, Daemon, ProtocolVersion};
use uktls::{TcpListener, TcpStream, UdpSocket};
use uktls_record::{Opener, Sealer};
use uktls_stack::device::Device;
use uktls_stack::device::interface::{self, IpCidr};
use uktls_stack::device::tun::{Tun, TunOptions};
use uktls_stack::mark::Mark;
use uktls_stack::stack::{Limits, Stack, StackConfig};

const KERNEL: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const STACK: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const MTU: usize = 1500;

/// A stack on a TUN device whose other side is this namespace's kernel.
struct Net {
    daemon: Daemon,
    server: Option<Running>,
    stack: Option<Stack>,
    _directory: tempfile::TempDir,
}

impl Net {
    fn new() -> Net {
        let options = TunOptions {
            queues: 1,
            mtu: MTU,
            ..TunOptions::default()
        };
        let queues = Tun::open_with("uktls0", &options).expect("a TUN device");
        interface::configure("uktls0", MTU, &[IpCidr::new(KERNEL.into(), 24)])
            .expect("an interface");
        let queues = queues
            .into_iter()
            .map(|queue| Box::new(queue) as Box<dyn Device + Send>)
            .collect();
        let config = StackConfig {
            addresses: vec![(IpAddr::V4(STACK), 24)],
            mtu: MTU,
            tcp: Default::default(),
            limits: Limits::default(),
        };
        let stack = Stack::start(config, queues).expect("a stack");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("uktls.sock");
        let server =
            Server::bind(&path, stack.handle(), ServerConfig::default()).expect("a fresh path");
        let server = Some(server.spawn().expect("a thread"));
        Net {
            daemon: Daemon::at(path),
            server,
            stack: Some(stack),
            _directory: directory,
        }
    }

    fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().expect("a sound server");
        }
        if let Some(stack) = self.stack.take() {
            stack.stop();
        }
    }

    /// A socket of the stack and the kernel's socket at the other end; the kernel accepted.
    fn pair(&self) -> (TcpStream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind((KERNEL, 0)).expect("bind");
        let ours = TcpStream::connect_on(&self.daemon, listener.local_addr().expect("bound"))
            .expect("connect");
        let (theirs, peer) = listener.accept().expect("accept");
        assert_eq!(peer, ours.local_addr().expect("connected"));
        theirs
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        ours.set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        (ours, theirs)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.kill();
    }
}

fn inside(name: &str, body: impl FnOnce(&mut Net)) {
    namespace::run(name, Namespace::Network, || body(&mut Net::new()));
}

fn keys(version: ProtocolVersion, seed: u8) -> CryptoInfo {
    CryptoInfo::from_key_and_iv(
        version,
        CipherSuite::Aes128Gcm,
        &[seed; 16],
        &[seed ^ 0x5a; 12],
        0,
    )
    .expect("lengths")
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    let error = result.expect_err("an error was expected");
    Errno::from_io_error(&error).expect("an errno")
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "{what} did not come about in 10 s"
        );
        std::thread::yield_now();
    }
}

/// The next record on the kernel's socket: type and plaintext.
fn open_next(stream: &mut std::net::TcpStream, opener: &mut Opener) -> (u8, Vec<u8>) {
    let mut header = [0; 5];
    stream.read_exact(&mut header).expect("a header");
    let parsed = opener.parse_header(&header).expect("a sound header");
    let mut record = header.to_vec();
    record.resize(parsed.record_len(), 0);
    stream.read_exact(&mut record[5..]).expect("a record");
    let opened = opener.open_in_place(&mut record).expect("it authenticates");
    (opened.content_type.0, record[opened.plaintext].to_vec())
}

fn seal(sealer: &mut Sealer, content_type: ContentType, plaintext: &[u8]) -> Vec<u8> {
    let mut record = vec![0; plaintext.len() + sealer.overhead()];
    sealer
        .seal_from(content_type, plaintext, &mut record)
        .expect("sealed");
    record
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

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
fn records_leave_as_the_calls_say() {
    inside("records_leave_as_the_calls_say", |net| {
        for version in [ProtocolVersion::Tls12, ProtocolVersion::Tls13] {
            let (mut ours, mut theirs) = net.pair();
            ours.set_ulp_tls().unwrap();
            assert_eq!(errno(ours.set_ulp_tls()), Errno::EXIST);
            assert_eq!(errno(ours.tls_tx()), Errno::BUSY);
            ours.write_all(b"plain").unwrap();
            ours.set_tls_tx(&keys(version, 1)).unwrap();
            assert_eq!(
                *ours.tls_tx().unwrap().to_bytes(),
                *keys(version, 1).to_bytes()
            );
            ours.send(b"one", SendFlags::empty()).unwrap();
            ours.send(b"tw", SendFlags::MORE).unwrap();
            ours.send(b"o", SendFlags::EOR).unwrap();
            let big = pattern(100_000);
            ours.send(&big, SendFlags::empty()).unwrap();
            ours.send(b"five", SendFlags::MORE).unwrap();
            ours.send_record(ContentType::HANDSHAKE, &[4; 1000], SendFlags::empty())
                .unwrap();
            ours.send_record(ContentType::ALERT, &[1, 0], SendFlags::empty())
                .unwrap();
            ours.shutdown(Shutdown::Write).unwrap();

            let mut plain = [0; 5];
            theirs.read_exact(&mut plain).unwrap();
            assert_eq!(&plain, b"plain");
            let mut opener = Opener::new(&keys(version, 1)).unwrap();
            assert_eq!(open_next(&mut theirs, &mut opener), (23, b"one".to_vec()));
            assert_eq!(open_next(&mut theirs, &mut opener), (23, b"two".to_vec()));
            for chunk in big.chunks(16_384) {
                assert!(
                    open_next(&mut theirs, &mut opener) == (23, chunk.to_vec()),
                    "a record of another shape"
                );
            }
            assert_eq!(open_next(&mut theirs, &mut opener), (23, b"five".to_vec()));
            assert_eq!(open_next(&mut theirs, &mut opener), (22, vec![4; 1000]));
            assert_eq!(open_next(&mut theirs, &mut opener), (21, vec![1, 0]));
            assert_eq!(theirs.read(&mut plain).unwrap(), 0);
        }
    });
}

#[test]
fn sendfile_leaves_as_full_records_in_every_mode() {
    inside("sendfile_leaves_as_full_records_in_every_mode", |net| {
        let content = pattern(3_000_000);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        for (nonblocking, from, count) in [
            (false, 0, 3_000_000),
            (false, 5, 16_384),
            (false, 17, 70_000),
            (true, 1, 16_385),
            (true, 3, 2_000_000),
        ] {
            let (ours, mut theirs) = net.pair();
            ours.set_ulp_tls().unwrap();
            ours.set_tls_tx(&keys(ProtocolVersion::Tls13, 1)).unwrap();
            ours.set_nonblocking(nonblocking).unwrap();
            let mut opener = Opener::new(&keys(ProtocolVersion::Tls13, 1)).unwrap();
            std::thread::scope(|scope| {
                let sending = scope.spawn(|| {
                    let mut offset = from;
                    let sent = ours.sendfile(&file, Some(&mut offset), count).unwrap();
                    ours.set_nonblocking(false).unwrap();
                    ours.send(b"behind", SendFlags::empty()).unwrap();
                    (sent, offset)
                });
                let range = &content[from as usize..(from + count) as usize];
                for (i, chunk) in range.chunks(16_384).enumerate() {
                    let got = open_next(&mut theirs, &mut opener);
                    assert!(
                        got == (23, chunk.to_vec()),
                        "record {i} of {count} from {from}: {} bytes",
                        got.1.len()
                    );
                }
                assert_eq!(
                    open_next(&mut theirs, &mut opener),
                    (23, b"behind".to_vec())
                );
                assert_eq!(sending.join().unwrap(), (count, from + count));
            });
        }
    });
}

#[test]
fn records_arrive_and_control_records_come_alone() {
    inside("records_arrive_and_control_records_come_alone", |net| {
        let (mut ours, mut theirs) = net.pair();
        let mut sealer = Sealer::new(&keys(ProtocolVersion::Tls13, 2)).unwrap();
        // Some of it is there before the keys are, and half a record.
        let early = pattern(50_000);
        let mut wire = Vec::new();
        for chunk in early.chunks(9_000) {
            wire.extend(seal(&mut sealer, ContentType::APPLICATION_DATA, chunk));
        }
        let (first, second) = wire.split_at(wire.len() - 100);
        theirs.write_all(first).unwrap();
        let mut one = [0; 1];
        eventually("the first bytes", || ours.peek(&mut one).unwrap() == 1);
        ours.set_ulp_tls().unwrap();
        ours.set_tls_rx(&keys(ProtocolVersion::Tls13, 2)).unwrap();
        theirs.write_all(second).unwrap();
        let mut got = vec![0; early.len()];
        ours.read_exact(&mut got).unwrap();
        assert!(got == early);

        let mut wire = seal(&mut sealer, ContentType::APPLICATION_DATA, b"data");
        wire.extend(seal(&mut sealer, ContentType::HANDSHAKE, &[4; 300]));
        wire.extend(seal(&mut sealer, ContentType::APPLICATION_DATA, b"old"));
        wire.extend(seal(&mut sealer, ContentType::HANDSHAKE, &[24, 0, 0, 1, 0]));
        let mut next = Sealer::new(&keys(ProtocolVersion::Tls13, 3)).unwrap();
        wire.extend(seal(&mut next, ContentType::APPLICATION_DATA, b"new"));
        theirs.write_all(&wire).unwrap();
        let mut buf = [0; 1000];
        assert_eq!(ours.read(&mut buf).unwrap(), 4);
        assert_eq!(errno(ours.read(&mut buf)), Errno::IO);
        let ticket = ours.recv_record(&mut buf, RecvFlags::empty()).unwrap();
        assert_eq!(
            (ticket.len, ticket.content_type),
            (300, Some(ContentType::HANDSHAKE))
        );
        assert_eq!(ours.read(&mut buf).unwrap(), 3);
        assert_eq!(
            ours.recv_record(&mut buf, RecvFlags::empty()).unwrap().len,
            5
        );
        assert_eq!(errno(ours.read(&mut buf)), Errno::KEYEXPIRED);
        ours.set_tls_rx(&keys(ProtocolVersion::Tls13, 3)).unwrap();
        assert_eq!(ours.read(&mut buf).unwrap(), 3);
        assert_eq!(ours.tls_rx().unwrap().rec_seq(), 1);

        // The end: without close_notify it can be told.
        drop(theirs);
        assert_eq!(ours.read(&mut buf).unwrap(), 0);
        assert_eq!(ours.reason().unwrap(), Reason::Truncated);
    });
}

#[test]
fn a_record_that_fails_stops_the_stream_with_its_errno() {
    inside(
        "a_record_that_fails_stops_the_stream_with_its_errno",
        |net| {
            // A bit of the ciphertext, of the version, of the length's upper byte; and a record with no room for a tag.
            let too_short = [23, 3, 3, 0, 5, 1, 2, 3, 4, 5];
            for (damage, expected) in [
                (Some(8), Errno::BADMSG),
                (Some(1), Errno::INVAL),
                (Some(3), Errno::MSGSIZE),
                (None, Errno::BADMSG),
            ] {
                let (mut ours, mut theirs) = net.pair();
                ours.set_ulp_tls().unwrap();
                ours.set_tls_rx(&keys(ProtocolVersion::Tls13, 2)).unwrap();
                let mut sealer = Sealer::new(&keys(ProtocolVersion::Tls13, 2)).unwrap();
                let mut wire = seal(&mut sealer, ContentType::APPLICATION_DATA, b"good");
                let mut bad = seal(&mut sealer, ContentType::APPLICATION_DATA, b"bad");
                match damage {
                    Some(at) => bad[at] ^= 0x50,
                    None => bad = too_short.to_vec(),
                }
                wire.extend(bad);
                theirs.write_all(&wire).unwrap();
                let mut buf = [0; 100];
                assert_eq!(ours.read(&mut buf).unwrap(), 4);
                for _ in 0..3 {
                    assert_eq!(errno(ours.read(&mut buf)), expected);
                }
                assert_eq!(
                    ours.reason().unwrap(),
                    Reason::BadRecord(expected.raw_os_error())
                );
            }
            let counters = net.daemon.counters().unwrap();
            let errors = counters
                .iter()
                .find(|(name, _)| name == "TlsDecryptError")
                .expect("Linux's counter")
                .1;
            assert!(errors >= 1);
        },
    );
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
fn a_large_file_leaves_in_quotas_while_others_are_served() {
    inside(
        "a_large_file_leaves_in_quotas_while_others_are_served",
        |net| {
            const LEN: u64 = 2 * SENDFILE_QUOTA + 1_000_000;
            let content = pattern(LEN as usize);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&content).unwrap();
            let (ours, mut theirs) = net.pair();
            ours.set_ulp_tls().unwrap();
            ours.set_tls_tx(&keys(ProtocolVersion::Tls12, 1)).unwrap();
            ours.set_nonblocking(true).unwrap();
            let (mut other, mut their_other) = net.pair();
            std::thread::scope(|scope| {
                let receiving = scope.spawn(|| {
                    let mut opener = Opener::new(&keys(ProtocolVersion::Tls12, 1)).unwrap();
                    let mut got = Vec::new();
                    while got.len() < LEN as usize {
                        got.extend(open_next(&mut theirs, &mut opener).1);
                    }
                    got
                });
                let (mut offset, mut calls) = (0, 0);
                while offset < LEN {
                    match ours.sendfile(&file, Some(&mut offset), LEN) {
                        Ok(_) => calls += 1,
                        Err(error) => {
                            assert_eq!(Errno::from_io_error(&error), Some(Errno::AGAIN));
                            let mut poll = [rustix::event::PollFd::new(
                                &ours,
                                rustix::event::PollFlags::OUT,
                            )];
                            rustix::event::poll(&mut poll, None).unwrap();
                        }
                    }
                    other.write_all(b"ping").unwrap();
                    their_other.read_exact(&mut [0; 4]).unwrap();
                }
                assert!(calls >= 3, "more than the quota in one call");
                assert!(receiving.join().unwrap() == content);
            });
        },
    );
}

#[test]
fn a_file_that_gets_shorter_after_it_was_taken_resets_the_connection() {
    inside(
        "a_file_that_gets_shorter_after_it_was_taken_resets_the_connection",
        |net| {
            let (mut ours, mut theirs) = net.pair();
            let file = tempfile::tempfile().unwrap();
            file.set_len(4 << 20).unwrap();
            ours.set_nonblocking(true).unwrap();
            // The peer does not read: most of it cannot have left, and so was not read from the file either.
            rustix::net::sockopt::set_socket_recv_buffer_size(&theirs, 4096).unwrap();
            let (mut offset, mut taken) = (0, 0);
            eventually("a full pipe", || {
                match ours.sendfile(&file, Some(&mut offset), 4 << 20) {
                    Ok(sent) => taken += sent,
                    Err(error) => return Errno::from_io_error(&error) == Some(Errno::AGAIN),
                }
                offset = 0;
                taken >= 64 << 20
            });
            file.set_len(100).unwrap();
            let mut buf = vec![0; 1 << 20];
            let mut total = 0;
            let end = loop {
                match theirs.read(&mut buf) {
                    Ok(0) => panic!("the cut looked like the end, after {total} bytes"),
                    Ok(len) => total += len as u64,
                    Err(error) => break Errno::from_io_error(&error),
                }
            };
            assert_eq!(end, Some(Errno::CONNRESET));
            assert!(total < taken);
            assert!(matches!(ours.reason().unwrap(), Reason::FileFailed(_)));
            assert_eq!(errno(ours.read(&mut buf)), Errno::CONNABORTED);
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

/// The stack's socket, with the ULP; the peer has sent `stream` and its FIN, and both are here.
fn finished_early(net: &Net, stream: &[u8]) -> TcpStream {
    let (ours, mut theirs) = net.pair();
    ours.set_ulp_tls().unwrap();
    theirs.write_all(stream).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    eventually("the peer's end", || {
        ours.stat().unwrap().state.as_deref() == Some("CLOSE-WAIT")
    });
    ours
}

#[test]
fn keys_that_come_behind_the_peers_end_still_open_what_came_before() {
    inside(
        "keys_that_come_behind_the_peers_end_still_open_what_came_before",
        |net| {
            let keys = keys(ProtocolVersion::Tls13, 1);
            let mut sealer = Sealer::new(&keys).unwrap();
            let mut stream = b"plain".to_vec();
            let content = pattern(30_000);
            for piece in content.chunks(10_000) {
                stream.extend(seal(&mut sealer, ContentType::APPLICATION_DATA, piece));
            }
            stream.extend(seal(&mut sealer, ContentType::ALERT, &[1, 0]));
            let mut ours = finished_early(net, &stream);
            let mut plain = [0; 5];
            ours.read_exact(&mut plain).unwrap();
            assert_eq!(&plain, b"plain");
            ours.set_tls_rx(&keys).unwrap();
            let mut got = vec![0; content.len()];
            ours.read_exact(&mut got).unwrap();
            assert!(got == content);
            let mut alert = [0; 10];
            let received = ours.recv_record(&mut alert, RecvFlags::empty()).unwrap();
            assert_eq!(received.content_type, Some(ContentType::ALERT));
            assert_eq!(ours.read(&mut alert).unwrap(), 0);
            assert_eq!(ours.reason().unwrap(), Reason::CleanEnd);
            // Who never sets keys reads plain bytes and their end.
            let mut ours = finished_early(net, b"only plain");
            let mut all = Vec::new();
            ours.read_to_end(&mut all).unwrap();
            assert_eq!(all, b"only plain");
        },
    );
}

#[test]
fn new_keys_behind_the_peers_end_open_what_waited_for_them() {
    inside(
        "new_keys_behind_the_peers_end_open_what_waited_for_them",
        |net| {
            let (first, second) = (
                keys(ProtocolVersion::Tls13, 1),
                keys(ProtocolVersion::Tls13, 2),
            );
            let mut sealer = Sealer::new(&first).unwrap();
            // RFC 8446 §4.6.3: a KeyUpdate, update_not_requested.
            let mut stream = seal(&mut sealer, ContentType::HANDSHAKE, &[24, 0, 0, 1, 0]);
            sealer.rekey(&second).unwrap();
            stream.extend(seal(&mut sealer, ContentType::APPLICATION_DATA, b"behind"));
            let mut ours = finished_early(net, &stream);
            ours.set_tls_rx(&first).unwrap();
            let mut buf = [0; 100];
            let update = ours.recv_record(&mut buf, RecvFlags::empty()).unwrap();
            assert_eq!(update.content_type, Some(ContentType::HANDSHAKE));
            assert_eq!(errno(ours.read(&mut buf)), Errno::KEYEXPIRED);
            ours.set_tls_rx(&second).unwrap();
            assert_eq!(ours.read(&mut buf).unwrap(), 6);
            assert_eq!(&buf[..6], b"behind");
            assert_eq!(ours.read(&mut buf).unwrap(), 0);
            assert_eq!(ours.reason().unwrap(), Reason::Truncated);
        },
    );
}

#[test]
fn a_record_that_fails_keeps_the_socket_readable_behind_the_data_in_front_of_it() {
    inside(
        "a_record_that_fails_keeps_the_socket_readable_behind_the_data_in_front_of_it",
        |net| {
            let keys = keys(ProtocolVersion::Tls12, 1);
            let (mut ours, mut theirs) = net.pair();
            ours.set_ulp_tls().unwrap();
            ours.set_tls_rx(&keys).unwrap();
            let mut sealer = Sealer::new(&keys).unwrap();
            let mut stream = seal(&mut sealer, ContentType::APPLICATION_DATA, b"good");
            let mut bad = seal(&mut sealer, ContentType::APPLICATION_DATA, b"bad");
            bad[20] ^= 1;
            stream.extend(bad);
            theirs.write_all(&stream).unwrap();
            eventually("the failure", || {
                ours.reason().unwrap() == Reason::BadRecord(Errno::BADMSG.raw_os_error())
            });
            // One read takes the data and the mark of the error behind it. Whoever polls now, level-triggered, must be told
            // that there is more to be had than silence.
            let mut buf = [0; 1000];
            assert_eq!(ours.read(&mut buf).unwrap(), 4);
            for _ in 0..2 {
                let mut polled = [rustix::event::PollFd::new(
                    &ours,
                    rustix::event::PollFlags::IN,
                )];
                let limit = rustix::event::Timespec {
                    tv_sec: 10,
                    tv_nsec: 0,
                };
                assert_eq!(rustix::event::poll(&mut polled, Some(&limit)).unwrap(), 1);
                assert_eq!(errno(ours.read(&mut buf)), Errno::BADMSG);
            }
            // Sending goes on, as with Linux.
            ours.write_all(b"still here").unwrap();
            theirs.read_exact(&mut buf[..10]).unwrap();
            assert_eq!(&buf[..10], b"still here");
        },
    );
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

#[test]
fn sequence_numbers_that_end_stop_the_socket_and_none_is_used_twice() {
    inside(
        "sequence_numbers_that_end_stop_the_socket_and_none_is_used_twice",
        |net| {
            for version in [ProtocolVersion::Tls12, ProtocolVersion::Tls13] {
                let last = CryptoInfo::from_key_and_iv(
                    version,
                    CipherSuite::Aes128Gcm,
                    &[1; 16],
                    &[2; 12],
                    u64::MAX - 2,
                )
                .expect("lengths");
                let (ours, mut theirs) = net.pair();
                ours.set_ulp_tls().unwrap();
                ours.set_tls_tx(&last).unwrap();
                let mut sent = 0;
                let refused = loop {
                    match ours.send(b"x", SendFlags::empty()) {
                        Ok(_) => sent += 1,
                        Err(error) => break Errno::from_io_error(&error),
                    }
                    assert!(sent < 10_000, "sending goes on");
                };
                assert_eq!(refused, Some(Errno::BADMSG));
                assert_eq!(ours.reason().unwrap(), Reason::KeysExhausted);
                let mut wire = Vec::new();
                // A reset, behind the records that still had a number.
                assert!(theirs.read_to_end(&mut wire).is_err());
                let overhead = Sealer::new(&last).unwrap().overhead();
                assert!(wire.len() <= 3 * (1 + overhead), "{} bytes", wire.len());
            }
        },
    );
}

/// Linux lets a user have only so many descriptors on their way: `RLIMIT_NOFILE`, without privileges.
#[test]
fn too_many_marks_in_flight_are_an_error_that_passes() {
    inside("too_many_marks_in_flight_are_an_error_that_passes", |net| {
        const LEN: usize = 1000;
        let keys = keys(ProtocolVersion::Tls12, 1);
        let (ours, mut theirs) = net.pair();
        ours.set_ulp_tls().unwrap();
        ours.set_tls_tx(&keys).unwrap();
        ours.set_nonblocking(true).unwrap();
        let before = getrlimit(Resource::Nofile);
        // This thread alone; the stack's have theirs already.
        uktls::server::privileges::drop_all().unwrap();
        let few = Rlimit {
            current: Some(30),
            maximum: before.maximum,
        };
        setrlimit(Resource::Nofile, few).unwrap();
        // The peer does not read: at some point nothing is taken off the socket any more.
        let mut sent = 0;
        let refused = loop {
            match (&ours).write(&[7; LEN]) {
                Ok(len) => sent += len,
                Err(error) => break Errno::from_io_error(&error),
            }
            assert!(sent < 1 << 30, "somebody takes everything");
        };
        assert_eq!(refused, Some(Errno::TOOMANYREFS));
        // What was taken arrives; then the socket goes on.
        let mut opener = Opener::new(&keys).unwrap();
        let mut got = 0;
        while got < sent {
            let (content_type, plaintext) = open_next(&mut theirs, &mut opener);
            assert!(content_type == 23 && plaintext.iter().all(|&byte| byte == 7));
            got += plaintext.len();
        }
        assert_eq!(got, sent);
        (&ours).write_all(b"goes on").unwrap();
        assert_eq!(open_next(&mut theirs, &mut opener).1, b"goes on");
    });
}

#[test]
fn the_ends_of_data_records_are_told_to_who_asks() {
    inside("the_ends_of_data_records_are_told_to_who_asks", |net| {
        let keys = keys(ProtocolVersion::Tls13, 1);
        let (ours, mut theirs) = net.pair();
        assert_eq!(errno(ours.set_record_ends(true)), Errno::NOPROTOOPT);
        ours.set_ulp_tls().unwrap();
        ours.set_tls_rx(&keys).unwrap();
        let mut sealer = Sealer::new(&keys).unwrap();
        let mut buf = [0; 20_000];
        let mut read = |size: usize, flags| {
            let got = ours.recv_record(&mut buf[..size], flags).unwrap();
            (got.len, got.content_type.unwrap().0, got.end_of_record)
        };
        theirs
            .write_all(&seal(&mut sealer, ContentType::APPLICATION_DATA, b"before"))
            .unwrap();
        assert_eq!(read(100, RecvFlags::empty()), (6, 23, false));
        ours.set_record_ends(true).unwrap();
        let mut wire = Vec::new();
        for len in [5, 16_384, 0, 7] {
            wire.extend(seal(
                &mut sealer,
                ContentType::APPLICATION_DATA,
                &vec![9; len],
            ));
        }
        wire.extend(seal(&mut sealer, ContentType::ALERT, &[1, 0]));
        theirs.write_all(&wire).unwrap();
        assert_eq!(read(5, RecvFlags::PEEK | RecvFlags::WAITALL), (5, 23, true));
        assert_eq!(read(3, RecvFlags::WAITALL), (3, 23, false));
        assert_eq!(read(2, RecvFlags::WAITALL), (2, 23, true));
        assert_eq!(read(16_000, RecvFlags::WAITALL), (16_000, 23, false));
        assert_eq!(read(384, RecvFlags::WAITALL), (384, 23, true));
        assert_eq!(read(7, RecvFlags::WAITALL), (7, 23, true));
        assert_eq!(read(100, RecvFlags::empty()), (2, 21, true));
    });
}

#[test]
fn a_peek_that_ends_where_a_control_record_begins_sees_the_data() {
    inside(
        "a_peek_that_ends_where_a_control_record_begins_sees_the_data",
        |net| {
            let keys = keys(ProtocolVersion::Tls13, 1);
            let (ours, mut theirs) = net.pair();
            ours.set_ulp_tls().unwrap();
            ours.set_tls_rx(&keys).unwrap();
            let mut sealer = Sealer::new(&keys).unwrap();
            let mut wire = seal(&mut sealer, ContentType::APPLICATION_DATA, &[9; 5]);
            wire.extend(seal(&mut sealer, ContentType::ALERT, &[1, 0]));
            theirs.write_all(&wire).unwrap();
            // Data, a mark of 64 bytes, the alert.
            eventually("all of it", || {
                rustix::io::ioctl_fionread(&ours).unwrap() == 5 + 64 + 2
            });
            for size in [1, 4, 5, 6, 68, 69, 100] {
                let mut buf = vec![0; size];
                let got = ours.recv_record(&mut buf, RecvFlags::PEEK).unwrap();
                assert_eq!(got.len, size.min(5), "a peek of {size}");
                assert!(buf[..got.len].iter().all(|&byte| byte == 9));
            }
            let mut buf = [0; 100];
            for (len, content_type) in [(5, ContentType::APPLICATION_DATA), (2, ContentType::ALERT)]
            {
                let got = ours.recv_record(&mut buf, RecvFlags::empty()).unwrap();
                assert_eq!((got.len, got.content_type), (len, Some(content_type)));
            }
        },
    );
}
