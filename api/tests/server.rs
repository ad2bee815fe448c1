//! The daemon's socket and what clients may do to it.

mod support;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect,
    socket_with, socketpair,
};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use support::{World, errno, eventually, keys, mock};
use uktls::ProtocolVersion::Tls13;
use uktls::client::{Daemon, DaemonError};
use uktls::protocol::{
    self, Capabilities, MAGIC, MAX_MESSAGE, Reply, Request, SocketRequest, VERSION,
};
use uktls::server::{Server, ServerConfig};
use uktls_stack::device::capture::Capture;

/// A control connection without the library.
struct Raw(OwnedFd);

impl Raw {
    fn new(path: &Path) -> Raw {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Raw(socket)
    }

    fn greeted(path: &Path) -> Raw {
        let raw = Raw::new(path);
        raw.send(&hello(VERSION), &[]).unwrap();
        assert!(matches!(
            raw.reply(),
            Some(Reply::Hello {
                version: VERSION,
                ..
            })
        ));
        raw
    }

    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
        mock::send(self.0.as_fd(), bytes, fds, SendFlags::empty())
    }

    /// The next reply; `None` when the daemon hung up.
    fn reply(&self) -> Option<Reply> {
        let mut bytes = vec![0; MAX_MESSAGE];
        match mock::receive(self.0.as_fd(), &mut bytes, RecvFlags::empty()) {
            Ok((0, _)) | Err(Errno::CONNRESET) => None,
            Ok((len, _)) => Some(protocol::decode(&bytes[..len]).unwrap()),
            Err(errno) => panic!("{errno}"),
        }
    }
}

fn hello(version: u16) -> Vec<u8> {
    encoded(&Request::Hello {
        magic: MAGIC,
        version,
        capabilities: Capabilities::all(),
    })
}

fn encoded(request: &Request) -> Vec<u8> {
    protocol::encode(request).unwrap().to_vec()
}

#[test]
fn the_socket_is_the_owners_alone_and_leaves_with_the_daemon() {
    let mut world = World::new();
    let path = world.daemon.path().to_path_buf();
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    world.kill();
    assert_eq!(
        std::fs::read_dir(world.directory.path()).unwrap().count(),
        0,
        "something was left behind"
    );
    assert_eq!(
        world.daemon.sockets().unwrap_err(),
        DaemonError::NotRunning { path }
    );
}

#[test]
fn a_second_daemon_on_the_path_is_told_what_to_do() {
    let world = World::new();
    let path = world.daemon.path();
    let refused = Server::bind(path, world.stack.clone(), ServerConfig::default()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::AddrInUse);
    let text = refused.to_string();
    assert!(
        text.contains(path.to_str().unwrap()) && text.contains("--socket") && !text.contains('\n'),
        "{text}"
    );
    // The first is unharmed.
    assert!(world.daemon.counters().is_ok());
}

#[test]
fn a_stale_socket_is_replaced_and_other_files_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("uktls.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = Server::bind(&path, mock::MockStack::default(), ServerConfig::default())
        .unwrap()
        .spawn()
        .unwrap();
    assert!(Daemon::at(&path).counters().is_ok());
    server.stop().unwrap();

    std::fs::write(&path, "precious").unwrap();
    let refused =
        Server::bind(&path, mock::MockStack::default(), ServerConfig::default()).unwrap_err();
    assert!(refused.to_string().contains("not a socket"), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn paths_that_cannot_be_are_refused_in_one_line() {
    for path in [
        "/nonexistent/deep/uktls.sock",
        &format!("/tmp/{}", "x".repeat(120)),
        "/proc/uktls.sock",
    ] {
        let refused = Server::bind(path, mock::MockStack::default(), ServerConfig::default())
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("--socket") && !refused.contains('\n'),
            "{refused}"
        );
    }
}

#[test]
fn other_versions_are_answered_with_ours_and_then_the_end() {
    let world = World::new();
    let raw = Raw::new(world.daemon.path());
    raw.send(&hello(VERSION + 1), &[]).unwrap();
    assert!(matches!(
        raw.reply(),
        Some(Reply::Hello {
            version: VERSION,
            ..
        })
    ));
    assert!(raw.reply().is_none());
}

#[test]
fn what_is_no_request_ends_that_connection_only() {
    let world = World::new();
    let path = world.daemon.path();
    let bystander = Raw::greeted(path);
    let counters = encoded(&Request::Counters);
    let info = encoded(&Request::OnSocket(SocketRequest::Info));
    let (a, b) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let (a, b) = (a.as_fd(), b.as_fd());
    let mut trailing = counters.clone();
    trailing.push(0);
    let cases: [(&str, &[u8], &[BorrowedFd<'_>]); 8] = [
        ("garbage", &[0xff; 40], &[]),
        ("bytes behind a request", &trailing, &[]),
        ("too long", &[0; MAX_MESSAGE + 1], &[]),
        ("a descriptor where none belongs", &counters, &[a]),
        ("two descriptors", &info, &[a, b]),
        ("more than are received", &info, &[a, b, a, b, a, b]),
        ("garbage with a descriptor", &[9; 9], &[a]),
        ("a second hello", &hello(VERSION), &[]),
    ];
    for (what, bytes, fds) in cases {
        let raw = Raw::greeted(path);
        raw.send(bytes, fds).unwrap();
        assert!(raw.reply().is_none(), "{what} was answered");
    }
    let unannounced = Raw::new(path);
    unannounced.send(&counters, &[]).unwrap();
    assert!(
        unannounced.reply().is_none(),
        "a request without a hello was answered"
    );
    bystander.send(&counters, &[]).unwrap();
    assert!(matches!(bystander.reply(), Some(Reply::Counters(_))));
}

#[test]
fn a_flood_of_nonsense_leaves_the_daemon_serving() {
    let world = World::new();
    let path = world.daemon.path();
    let before = open_files();
    // A cheap generator with a fixed seed: the same flood every time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let (a, _b) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    for _ in 0..300 {
        let raw = if next() % 2 == 0 {
            Raw::new(path)
        } else {
            Raw::greeted(path)
        };
        for _ in 0..next() % 8 {
            let len = 1 + next() % 90;
            let bytes: Vec<u8> = (0..len).map(|_| (next() % 12) as u8).collect();
            let fds = [a.as_fd(), a.as_fd()];
            // The daemon may have hung up already.
            let _ = raw.send(&bytes, &fds[..(next() % 3) as usize]);
        }
    }
    assert!(world.daemon.counters().is_ok());
    drop(a);
    eventually("all descriptors closed", || open_files() <= before + 4);
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_client_that_does_not_read_stalls_itself_alone() {
    let world = World::new();
    let raw = Raw::greeted(world.daemon.path());
    let counters = encoded(&Request::Counters);
    let mut sent = 0;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    // Until neither the daemon nor the kernel takes more: no answer is read.
    let mut refused = 0;
    while refused < 50 && std::time::Instant::now() < deadline {
        match mock::send(raw.0.as_fd(), &counters, &[], SendFlags::DONTWAIT) {
            Ok(_) => (sent, refused) = (sent + 1, 0),
            Err(Errno::AGAIN) => {
                refused += 1;
                assert!(
                    world.daemon.counters().is_ok(),
                    "somebody else was kept waiting"
                );
            }
            Err(errno) => panic!("{errno}"),
        }
    }
    assert_eq!(refused, 50, "the daemon takes requests without end: {sent}");
    // Every request gets its answer once it is read.
    for _ in 0..sent {
        assert!(matches!(raw.reply(), Some(Reply::Counters(_))));
    }
}

#[test]
fn connections_are_limited_per_user() {
    let world = World::with(ServerConfig {
        max_clients_per_uid: 3,
        ..ServerConfig::default()
    });
    let path = world.daemon.path();
    let some: Vec<Raw> = (0..3).map(|_| Raw::greeted(path)).collect();
    let refused = Raw::new(path);
    assert!(
        matches!(refused.reply(), Some(Reply::Error(errno)) if errno == Errno::USERS.raw_os_error())
    );
    assert!(refused.reply().is_none());
    drop(some);
    eventually("room again", || {
        let raw = Raw::new(path);
        raw.send(&hello(VERSION), &[]).is_ok() && matches!(raw.reply(), Some(Reply::Hello { .. }))
    });
}

#[test]
fn keys_are_shown_to_nobody_where_the_daemon_says_so() {
    let world = World::with(ServerConfig {
        no_key_export: true,
        ..ServerConfig::default()
    });
    let (client, server) = world.tls_pair(Tls13);
    assert_eq!(errno(client.tls_tx()), Errno::PERM.raw_os_error());
    assert_eq!(errno(server.tls_rx()), Errno::PERM.raw_os_error());
    assert!(
        !world
            .daemon
            .capabilities()
            .unwrap()
            .contains(Capabilities::KEY_EXPORT)
    );
}

#[test]
fn secrets_go_into_a_capture_as_text_and_only_where_there_is_one() {
    let without = World::new();
    let has = |world: &World| {
        let can = world.daemon.capabilities().unwrap();
        can.contains(Capabilities::CAPTURE)
    };
    assert!(!has(&without));
    let refused = std::io::Error::from(without.daemon.record_secrets("A b c\n").unwrap_err());
    assert_eq!(
        refused.raw_os_error(),
        Some(Errno::OPNOTSUPP.raw_os_error())
    );

    let file = without.directory.path().join("all.pcapng");
    let capture = Capture::create(&file).unwrap();
    let world = World::with(ServerConfig {
        capture: Some(capture.clone()),
        ..ServerConfig::default()
    });
    assert!(has(&world));
    for (lines, errno) in [
        ("A \u{7}b\n".to_owned(), Errno::INVAL),
        ("A b\u{e4}\n".to_owned(), Errno::INVAL),
        ("x".repeat(4097), Errno::MSGSIZE),
    ] {
        let refused = std::io::Error::from(world.daemon.record_secrets(&lines).unwrap_err());
        assert_eq!(refused.raw_os_error(), Some(errno.raw_os_error()));
    }
    world
        .daemon
        .record_secrets("CLIENT_RANDOM 0011 2233\n")
        .unwrap();
    capture.flush().unwrap();
    let written = std::fs::read(file).unwrap();
    let has = |text: &[u8]| written.windows(text.len()).any(|at| at == text);
    assert!(has(b"CLIENT_RANDOM 0011 2233\n") && !has(b"A b"));
}

#[test]
fn keys_are_shown_to_the_creator_only() {
    let world = World::new();
    let (client, _server) = world.tls_pair(Tls13);
    assert_eq!(
        *client.tls_tx().unwrap().to_bytes(),
        *keys(Tls13, 1).to_bytes()
    );
    world.stack.give_away(&client, u32::MAX - 1);
    assert_eq!(errno(client.tls_tx()), Errno::PERM.raw_os_error());
    // Holding the descriptor is the right to everything else.
    client.set_nodelay(false).unwrap();
}

#[test]
fn long_lists_come_in_pages() {
    let world = World::new();
    let count = protocol::SOCKETS_PER_REPLY * 2 + 5;
    let sockets: Vec<_> = (0..count)
        .map(|_| uktls::UdpSocket::bind_on(&world.daemon, support::any(), None).unwrap())
        .collect();
    let listed = world.daemon.sockets().unwrap();
    assert_eq!(listed.len(), count);
    assert!(listed.is_sorted_by_key(|socket| socket.id));
    drop(sockets);
}

#[test]
fn a_path_without_a_daemon_says_how_to_start_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nobody.sock");
    let error = Daemon::at(&path).capabilities().unwrap_err();
    assert!(error.to_string().contains("uktls up"), "{error}");
    assert_eq!(
        std::io::Error::from(error).raw_os_error(),
        Some(Errno::NETDOWN.raw_os_error())
    );
    // Something else listens there.
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert_eq!(
        Daemon::at(&path).capabilities().unwrap_err(),
        DaemonError::NotADaemon { path }
    );
}

#[test]
fn other_users_are_refused_even_where_the_mode_lets_them_in() {
    if !rustix::process::geteuid().is_root() {
        // Nobody else to be: the mode test above is what an ordinary user can see.
        return;
    }
    let world = World::new();
    let path = world.daemon.path().to_path_buf();
    for (path, mode) in [(world.directory.path(), 0o755), (&*path, 0o666)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    // Credentials belong to a thread as far as the kernel goes.
    let stranger = std::thread::spawn(move || {
        let uid = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        let raw = Raw::new(&path);
        (raw.reply(), raw.reply().is_none())
    });
    let (reply, ended) = stranger.join().unwrap();
    assert!(
        matches!(reply, Some(Reply::Error(errno)) if errno == Errno::PERM.raw_os_error()),
        "{reply:?}"
    );
    assert!(ended);
}

#[test]
fn privileges_are_gone_for_good_once_dropped() {
    // In a thread: capabilities are a thread's, and the other tests keep theirs.
    let dropped = std::thread::spawn(|| {
        uktls::server::privileges::drop_all().unwrap();
        let held = rustix::thread::capabilities(None).unwrap();
        let none = rustix::thread::CapabilitySet::empty();
        assert_eq!(
            (held.effective, held.permitted, held.inheritable),
            (none, none, none)
        );
        assert!(rustix::thread::no_new_privs().unwrap());
        let setpcap = rustix::thread::CapabilitySet::SETPCAP;
        let regained = rustix::thread::CapabilitySets {
            effective: setpcap,
            permitted: setpcap,
            inheritable: none,
        };
        assert_eq!(
            rustix::thread::set_capabilities(None, regained),
            Err(Errno::PERM)
        );
    });
    dropped.join().unwrap();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    assert_eq!(limit.current, limit.maximum);
}
