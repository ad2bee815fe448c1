//! What a socket pair cannot say by itself, and plain use of TCP and UDP sockets.

mod support;

use mio::{Events, Interest, Poll, Token};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};
use support::{World, any, errno, eventually, keys, mock};
use uktls::ProtocolVersion::Tls13;
use uktls::client::{ConnectOptions, Daemon, Reason};
use uktls::{TcpListener, TcpStream, UdpSocket};

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn close(fd: i32) -> i32;
    fn _exit(status: i32) -> !;
}

/// Runs `child` in a forked process and gives its exit status.
fn forked(child: impl FnOnce() -> bool) -> i32 {
    // SAFETY: the child runs `child` and leaves by `_exit`; what it uses of this library takes no lock that another thread of
    // these tests could have held at the fork, since each test has a daemon of its own.
    let pid = unsafe { fork() };
    assert!(pid >= 0, "fork failed");
    if pid == 0 {
        let good = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(false);
        // SAFETY: ends the child at once, without the parent's destructors.
        unsafe { _exit(i32::from(!good)) };
    }
    let mut status = 0;
    // SAFETY: waits for the child started above; `status` outlives the call.
    assert_eq!(unsafe { waitpid(pid, &mut status, 0) }, pid);
    status
}

/// What `closefrom(3)` does, except for `spared`; then other files take the numbers.
fn close_all_but(spared: &TcpStream) -> Vec<OwnedFd> {
    let highest = 1024;
    for number in (3..highest).filter(|&number| number != spared.as_raw_fd()) {
        // SAFETY: this is a forked process that leaves by `_exit`; who owned the descriptor finds it closed, which is the test.
        unsafe { close(number) };
    }
    let (one, _other) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::empty(),
        None,
    )
    .expect("descriptors are free now");
    (0..100)
        .map(|_| one.try_clone().expect("descriptors are free now"))
        .collect()
}

#[test]
fn a_process_that_closes_what_it_does_not_know_keeps_its_streams() {
    let world = World::new();
    let (client, server) = world.tls_pair(Tls13);
    // The library has a connection to the daemon and a descriptor for marks by now.
    client
        .send(b"before", uktls::client::SendFlags::empty())
        .unwrap();
    let status = forked(|| {
        let _strangers = close_all_but(&client);
        let mut client = &client;
        client.write_all(b"behind").unwrap();
        client.set_tls_tx(&keys(Tls13, 7)).unwrap();
        client.stat().unwrap().tx.is_some()
    });
    assert_eq!(status, 0);
    let mut got = [0; 12];
    (&server).read_exact(&mut got).unwrap();
    assert_eq!(&got, b"beforebehind");
}

#[test]
fn bytes_go_both_ways_and_half_closing_ends_one() {
    let world = World::new();
    let (mut client, mut server) = world.pair();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    server.write_all(b"answer").unwrap();
    drop(server);
    text.clear();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer");
    assert_eq!(client.reason().unwrap(), Reason::CleanEnd);
}

#[test]
fn much_goes_through_little_buffers() {
    let world = World::new();
    let (client, mut server) = world.pair();
    let content: Vec<u8> = (0..4_000_000u32).map(|i| (i % 253) as u8).collect();
    let mut got = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (&client).write_all(&content).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        server.read_to_end(&mut got).unwrap();
    });
    assert!(got == content);
}

#[test]
fn a_refused_connection_says_so() {
    let world = World::new();
    let nobody: SocketAddr = "10.77.0.2:9".parse().unwrap();
    assert_eq!(
        errno(TcpStream::connect_on(&world.daemon, nobody)),
        Errno::CONNREFUSED.raw_os_error()
    );
    let options = ConnectOptions {
        nonblocking: true,
        ..ConnectOptions::default()
    };
    let stream = TcpStream::connect_with(&world.daemon, nobody, &options).unwrap();
    let error = stream.take_error().unwrap().expect("an error");
    assert_eq!(
        error.raw_os_error(),
        Some(Errno::CONNREFUSED.raw_os_error())
    );
}

#[test]
fn a_connection_that_is_not_answered_times_out_and_polls_unwritable() {
    let world = World::new();
    let silent: SocketAddr = "10.77.0.2:10".parse().unwrap();
    world.stack.silence(silent);
    let options = ConnectOptions {
        timeout: Some(Duration::from_millis(30)),
        ..ConnectOptions::default()
    };
    let start = Instant::now();
    assert_eq!(
        errno(TcpStream::connect_with(&world.daemon, silent, &options)),
        Errno::TIMEDOUT.raw_os_error()
    );
    assert!(start.elapsed() >= Duration::from_millis(30));
    let options = ConnectOptions {
        nonblocking: true,
        ..ConnectOptions::default()
    };
    let stream = TcpStream::connect_with(&world.daemon, silent, &options).unwrap();
    assert_eq!(
        errno((&stream).write(b"early")),
        Errno::AGAIN.raw_os_error()
    );
    assert!(stream.take_error().unwrap().is_none());
}

#[test]
fn each_end_of_a_connection_has_its_errno() {
    for (reason, reading, writing) in [
        (Reason::Reset, Some(Errno::CONNRESET), Errno::CONNRESET),
        (Reason::TimedOut, Some(Errno::TIMEDOUT), Errno::TIMEDOUT),
        (
            Reason::Unreachable,
            Some(Errno::HOSTUNREACH),
            Errno::HOSTUNREACH,
        ),
        (Reason::BadRecord(90), Some(Errno::MSGSIZE), Errno::MSGSIZE),
        (Reason::KeysExhausted, Some(Errno::BADMSG), Errno::BADMSG),
        (Reason::FileFailed(5), Some(Errno::CONNABORTED), Errno::IO),
        (
            Reason::Aborted,
            Some(Errno::CONNABORTED),
            Errno::CONNABORTED,
        ),
        (Reason::CleanEnd, None, Errno::PIPE),
        (Reason::Truncated, None, Errno::PIPE),
    ] {
        let world = World::new();
        let (client, _server) = world.pair();
        world.stack.break_off(&client, reason);
        let mut buf = [0; 10];
        for _ in 0..2 {
            match reading {
                Some(expected) => assert_eq!(
                    errno((&client).read(&mut buf)),
                    expected.raw_os_error(),
                    "{reason:?}"
                ),
                None => assert_eq!((&client).read(&mut buf).unwrap(), 0, "{reason:?}"),
            }
            assert_eq!(
                errno((&client).write(b"x")),
                writing.raw_os_error(),
                "{reason:?}"
            );
        }
        assert_eq!(client.reason().unwrap(), reason);
        assert_eq!(errno(client.set_ulp_tls()), Errno::NOTCONN.raw_os_error());
    }
}

#[test]
fn a_socket_that_ends_while_it_is_asked_about_still_says_why() {
    let world = World::new();
    let (client, server) = world.pair();
    world.stack.end_when_asked(&client, Reason::TimedOut);
    assert_eq!(client.reason().unwrap(), Reason::TimedOut);
    world.stack.end_when_asked(&server, Reason::Reset);
    assert_eq!(errno(server.set_ulp_tls()), Errno::NOTCONN.raw_os_error());
}

#[test]
fn data_in_front_of_a_reset_is_read_first() {
    let world = World::new();
    let (client, server) = world.pair();
    (&server).write_all(b"last words").unwrap();
    let mut buf = [0; 20];
    eventually("the words", || client.peek(&mut buf).unwrap() == 10);
    world.stack.break_off(&client, Reason::Reset);
    assert_eq!((&client).read(&mut buf).unwrap(), 10);
    assert_eq!(
        errno((&client).read(&mut buf)),
        Errno::CONNRESET.raw_os_error()
    );
}

#[test]
fn a_daemon_that_is_gone_is_never_an_end_of_file() {
    let mut world = World::new();
    let (client, server) = world.pair();
    let listener = TcpListener::bind_on(&world.daemon, any()).unwrap();
    let udp = UdpSocket::bind_on(&world.daemon, any(), None).unwrap();
    let gone = Errno::CONNABORTED.raw_os_error();
    std::thread::scope(|scope| {
        // One blocked in the middle of a read, one that asks afterwards.
        let reader = scope.spawn(|| (&client).read(&mut [0; 10]));
        let acceptor = scope.spawn(|| listener.accept().map(|_| ()));
        let receiver = scope.spawn(|| udp.recv(&mut [0; 10]));
        world.kill();
        assert_eq!(errno(reader.join().unwrap()), gone);
        assert_eq!(errno(acceptor.join().unwrap()), gone);
        assert_eq!(errno(receiver.join().unwrap()), gone);
    });
    assert_eq!(errno((&server).read(&mut [0; 10])), gone);
    assert_eq!(errno((&server).write(b"x")), gone);
    assert_eq!(errno(server.set_ulp_tls()), gone);
    assert_eq!(
        errno(TcpStream::connect_on(&world.daemon, any())),
        Errno::NETDOWN.raw_os_error()
    );
}

#[test]
fn another_daemon_on_the_same_path_does_not_know_the_old_sockets() {
    let mut world = World::new();
    let (client, _server) = world.pair();
    world.kill();
    let stack = mock::MockStack::default();
    let server = uktls::server::Server::bind(world.daemon.path(), stack, Default::default())
        .unwrap()
        .spawn()
        .unwrap();
    // The library's idle connections to the dead one are replaced without an error.
    assert!(world.daemon.sockets().unwrap().is_empty());
    assert_eq!(
        errno((&client).read(&mut [0; 10])),
        Errno::CONNABORTED.raw_os_error()
    );
    server.stop().unwrap();
}

#[test]
fn clones_and_passed_descriptors_are_the_same_socket() {
    let world = World::new();
    let (client, server) = world.tls_pair(Tls13);
    let clone = client.try_clone().unwrap();
    clone.send(b"cl", uktls::client::SendFlags::MORE).unwrap();
    drop(clone);
    client.send(b"one", Default::default()).unwrap();
    (&server).read_exact(&mut [0; 5]).unwrap();
    assert_eq!(
        world.stack.sealed(&client),
        [(23, 5)],
        "the record stayed open across the clones"
    );

    let (here, there) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    mock::send(here.as_fd(), b"!", &[client.as_fd()], SendFlags::empty()).unwrap();
    let local = client.local_addr().unwrap();
    drop(client);
    let (_, mut fds) = mock::receive(there.as_fd(), &mut [0], RecvFlags::empty()).unwrap();
    let passed = TcpStream::from_fd(&world.daemon, fds.remove(0)).unwrap();
    assert_eq!(passed.local_addr().unwrap(), local);
    passed.send(b"passed", Default::default()).unwrap();
    (&server).read_exact(&mut [0; 6]).unwrap();
    assert_eq!(
        world.stack.sealed(&passed),
        [(23, 5), (23, 6)],
        "it knew that keys are set"
    );
    // The last copy is closed: now the peer sees the end.
    drop(passed);
    assert_eq!((&server).read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn other_descriptors_are_no_sockets() {
    let world = World::new();
    let (a, _b) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    assert_eq!(
        errno(TcpStream::from_fd(&world.daemon, a)),
        Errno::NOTSOCK.raw_os_error()
    );
    let tcp = OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    assert_eq!(
        errno(TcpStream::from_fd(&world.daemon, tcp)),
        Errno::NOTSOCK.raw_os_error()
    );
    let file = OwnedFd::from(tempfile::tempfile().unwrap());
    assert_eq!(
        errno(TcpStream::from_fd(&world.daemon, file)),
        Errno::NOTSOCK.raw_os_error()
    );
    let listener = OwnedFd::from(TcpListener::bind_on(&world.daemon, any()).unwrap());
    assert_eq!(
        errno(TcpStream::from_fd(&world.daemon, listener)),
        Errno::NOTSOCK.raw_os_error()
    );
}

#[test]
fn sockets_work_on_both_sides_of_a_fork() {
    let world = World::new();
    let (client, server) = world.pair();
    let listener = TcpListener::bind_on(&world.daemon, any()).unwrap();
    let daemon = Daemon::clone(&world.daemon);
    let status = forked(|| {
        // The inherited stream, a request about it, and a new socket over a control connection of the child's own.
        let stat = client.stat().expect("an answer");
        (&client).write_all(b"child").expect("a stream");
        let second =
            TcpStream::connect_on(&daemon, listener.local_addr().expect("bound")).expect("connect");
        (&second).write_all(b"new").expect("a stream");
        stat.local == client.local_addr().expect("open")
    });
    assert_eq!(status, 0);
    let mut buf = [0; 5];
    (&server).read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"child");
    // The parent's own control connections still get their own answers.
    assert_eq!(client.stat().unwrap().local, client.local_addr().unwrap());
    let (mut second, _) = listener.accept().unwrap();
    let mut text = String::new();
    second.read_to_string(&mut text).unwrap();
    assert_eq!(text, "new", "and the child's death closed its socket");
}

#[test]
fn mio_sees_readiness() {
    let world = World::new();
    let mut listener = TcpListener::bind_on(&world.daemon, any()).unwrap();
    listener.set_nonblocking(true).unwrap();
    assert_eq!(
        errno(listener.accept().map(|_| ())),
        Errno::AGAIN.raw_os_error()
    );
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(8);
    poll.registry()
        .register(&mut listener, Token(0), Interest::READABLE)
        .unwrap();
    let options = ConnectOptions {
        nonblocking: true,
        ..ConnectOptions::default()
    };
    let mut client =
        TcpStream::connect_with(&world.daemon, listener.local_addr().unwrap(), &options).unwrap();
    poll.registry()
        .register(
            &mut client,
            Token(1),
            Interest::WRITABLE | Interest::READABLE,
        )
        .unwrap();
    let (mut acceptable, mut writable, mut server) = (false, false, None);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !(acceptable && writable) {
        assert!(Instant::now() < deadline, "no readiness");
        poll.poll(&mut events, Some(Duration::from_secs(1)))
            .unwrap();
        for event in &events {
            match event.token() {
                Token(0) => {
                    acceptable = true;
                    server = Some(listener.accept().unwrap().0);
                }
                _ => writable |= event.is_writable(),
            }
        }
    }
    assert!(client.take_error().unwrap().is_none());
    let server = server.expect("accepted");
    (&server).write_all(b"ready").unwrap();
    let mut got: Vec<u8> = Vec::new();
    while got.len() < 5 {
        assert!(Instant::now() < deadline, "no data");
        poll.poll(&mut events, Some(Duration::from_secs(1)))
            .unwrap();
        let mut buf = [0; 16];
        while let Ok(len) = (&client).read(&mut buf) {
            got.extend(&buf[..len]);
        }
    }
    assert_eq!(got, b"ready");
}

#[test]
fn a_reader_in_one_thread_does_not_stop_another_thread() {
    let world = World::new();
    let (client, server) = world.pair();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| (&client).read(&mut [0; 10]).unwrap());
        // Writing, asking and non-waiting reads while the first thread waits.
        (&client).write_all(b"ping").unwrap();
        (&server).read_exact(&mut [0; 4]).unwrap();
        assert_eq!(client.reason().unwrap(), Reason::Open);
        let early = client.recv_record(&mut [0; 10], uktls::client::RecvFlags::DONTWAIT);
        assert_eq!(errno(early), Errno::AGAIN.raw_os_error());
        (&server).write_all(b"pong").unwrap();
        assert_eq!(reader.join().unwrap(), 4);
    });
}

#[test]
fn many_threads_share_few_control_connections() {
    let world = World::new();
    let (client, _server) = world.pair();
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(client.stat().unwrap().local, client.local_addr().unwrap());
                }
            });
        }
    });
}

#[test]
fn datagrams_keep_their_edges_and_may_be_empty() {
    let world = World::new();
    let a = UdpSocket::bind_on(&world.daemon, any(), None).unwrap();
    let b = UdpSocket::bind_on(&world.daemon, any(), None).unwrap();
    let (at_a, at_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
    for size in [0usize, 1, 1400, 65_507] {
        let datagram = vec![size as u8; size];
        assert_eq!(a.send_to(&datagram, at_b).unwrap(), size);
        let mut buf = vec![0; 70_000];
        assert_eq!(b.recv_from(&mut buf).unwrap(), (size, at_a));
        assert_eq!(&buf[..size], datagram);
    }
    assert_eq!(
        errno(a.send_to(&[0; 65_508], at_b)),
        Errno::MSGSIZE.raw_os_error()
    );
    assert_eq!(errno(a.send(b"x")), Errno::DESTADDRREQ.raw_os_error());
    // What does not fit is lost, as in UDP.
    a.send_to(b"12345", at_b).unwrap();
    a.send_to(b"next", at_b).unwrap();
    let mut small = [0; 3];
    assert_eq!(b.peek_from(&mut small).unwrap(), (3, at_a));
    assert_eq!(b.recv_from(&mut small).unwrap(), (3, at_a));
    // A fixed peer: others are not heard.
    let c = UdpSocket::bind_on(&world.daemon, any(), None).unwrap();
    let mut buf = [0; 10];
    assert_eq!(b.recv_from(&mut buf).unwrap().0, 4);
    c.send_to(b"stranger", at_b).unwrap();
    eventually("the stranger's datagram", || {
        b.peek_from(&mut buf).unwrap().1 == c.local_addr().unwrap()
    });
    a.send_to(b"friend", at_b).unwrap();
    b.connect(at_a).unwrap();
    assert_eq!(b.recv(&mut buf).unwrap(), 6);
    b.set_nonblocking(true).unwrap();
    assert_eq!(errno(b.recv(&mut buf)), Errno::AGAIN.raw_os_error());
}

#[test]
fn shutting_the_reading_side_discards_and_does_not_reset() {
    let world = World::new();
    let (client, server) = world.pair();
    client.shutdown(Shutdown::Read).unwrap();
    (&server).write_all(&[0; 100_000]).unwrap();
    assert_eq!((&client).read(&mut [0; 10]).unwrap(), 0);
    (&client).write_all(b"still writing").unwrap();
    (&server).read_exact(&mut [0; 13]).unwrap();
}

#[test]
fn counters_and_sockets_can_be_listed() {
    let world = World::new();
    let (client, _server) = world.tls_pair(Tls13);
    let sockets = world.daemon.sockets().unwrap();
    assert_eq!(
        sockets.len(),
        3,
        "listener gone or still there, and both ends: {sockets:?}"
    );
    let mine = sockets
        .iter()
        .find(|socket| socket.local == client.local_addr().unwrap())
        .unwrap();
    assert_eq!(
        (mine.ulp, mine.tx.as_ref().unwrap().version),
        (true, 0x0304)
    );
    let text = world.daemon.tls_stat().unwrap();
    assert_eq!(
        text,
        format!("{:<32}\t3\n{:<32}\t1\n", "TlsCurrTxSw", "TlsDecryptError")
    );
    assert!(
        world
            .daemon
            .capabilities()
            .unwrap()
            .contains(uktls::protocol::Capabilities::SENDFILE)
    );
    client.abort().unwrap();
    assert_eq!(client.reason().unwrap(), Reason::Aborted);
    let _ = keys(Tls13, 1);
    assert!(client.as_raw_fd() > 2);
}
