//! Receiving to a file inside the stack: two daemons whose stacks are joined within the process, the one that sends seals its
//! records itself where it has to.

use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use uktls::client::{Reason, RecvFlags, SendFlags};
use uktls::server::{Running, Server, ServerConfig};
use uktls::{
    CipherSuite, ContentType, CryptoInfo, Daemon, ProtocolVersion, TcpListener, TcpStream,
};
use uktls_record::Sealer;
use uktls_stack::device::memory;
use uktls_stack::stack::{Limits, Stack, StackConfig};

const VERSIONS: [ProtocolVersion; 2] = [ProtocolVersion::Tls12, ProtocolVersion::Tls13];
const LIMIT: Duration = Duration::from_secs(20);

struct Side {
    daemon: Daemon,
    server: Option<Running>,
    stack: Option<Stack>,
    _directory: tempfile::TempDir,
}

impl Side {
    fn new(address: &str, device: memory::MemoryDevice) -> Side {
        let ip: IpAddr = address.parse().expect("literal");
        let config = StackConfig {
            addresses: vec![(ip, 24)],
            mtu: 1500,
            tcp: Default::default(),
            limits: Limits::default(),
        };
        let stack = Stack::start(config, vec![Box::new(device)]).expect("a stack");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("uktls.sock");
        let server =
            Server::bind(&path, stack.handle(), ServerConfig::default()).expect("a fresh path");
        let server = server.spawn().expect("a thread");
        Side {
            daemon: Daemon::at(path),
            server: Some(server),
            stack: Some(stack),
            _directory: directory,
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().expect("a sound server");
        }
        if let Some(stack) = self.stack.take() {
            stack.stop();
        }
    }
}

struct World {
    listener: TcpListener,
    address: SocketAddr,
    a: Side,
    _b: Side,
}

impl World {
    fn new() -> World {
        let (a, b) = memory::pair(1500, true);
        let (a, b) = (Side::new("10.0.0.1", a), Side::new("10.0.0.2", b));
        let address = "10.0.0.2:443".parse().expect("literal");
        let listener = TcpListener::bind_on(&b.daemon, address).expect("a free port");
        World {
            listener,
            address,
            a,
            _b: b,
        }
    }

    /// The sender's stream and the receiver's, both plain.
    fn pair(&self) -> (TcpStream, TcpStream) {
        let receiver = TcpStream::connect_on(&self.a.daemon, self.address).expect("a listener");
        let (sender, _) = self.listener.accept().expect("a connection");
        (sender, receiver)
    }

    /// The receiver has keys; the sender's are in a sealer, to be used by hand.
    fn sealed_by_hand(&self, version: ProtocolVersion) -> (TcpStream, TcpStream, Sealer) {
        let (sender, receiver) = self.pair();
        receiver.set_ulp_tls().expect("an open stream");
        receiver.set_tls_rx(&keys(version)).expect("fresh keys");
        let sealer = Sealer::new(&keys(version)).expect("sound keys");
        (sender, receiver, sealer)
    }
}

fn keys(version: ProtocolVersion) -> CryptoInfo {
    CryptoInfo::from_key_and_iv(version, CipherSuite::Aes128Gcm, &[7; 16], &[9; 12], 0)
        .expect("lengths")
}

fn record(sealer: &mut Sealer, content_type: ContentType, plaintext: &[u8]) -> Vec<u8> {
    let mut out = vec![0; plaintext.len() + sealer.overhead()];
    sealer
        .seal_from(content_type, plaintext, &mut out)
        .expect("a sound record");
    out
}

/// `bytes` as full records and the rest.
fn records(sealer: &mut Sealer, bytes: &[u8]) -> Vec<u8> {
    bytes
        .chunks(16_384)
        .flat_map(|chunk| record(sealer, ContentType::APPLICATION_DATA, chunk))
        .collect()
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 977) as u8).collect()
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_io_error(&result.expect_err("an error was expected")).expect("an errno")
}

fn file() -> File {
    tempfile::tempfile().expect("a file")
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().expect("a file").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("its length");
    bytes
}

/// Receives until `count` bytes are there or something else ends it.
fn receive_all(stream: &TcpStream, file: &File, count: u64) -> u64 {
    let mut received = 0;
    while received < count {
        match stream.recvfile(file, None, count - received).expect("data") {
            0 => break,
            n => received += n,
        }
    }
    received
}

#[test]
fn every_size_around_pages_and_records_arrives_whole() {
    let world = World::new();
    for version in VERSIONS {
        let (sender, receiver) = world.pair();
        for stream in [&sender, &receiver] {
            stream.set_ulp_tls().expect("an open stream");
        }
        sender.set_tls_tx(&keys(version)).expect("fresh keys");
        receiver.set_tls_rx(&keys(version)).expect("fresh keys");
        let around = [4096, 16_384, 65_536, 1 << 20];
        let sizes = around
            .into_iter()
            .flat_map(|size| [size - 1, size, size + 1])
            .chain([1, 3_000_001]);
        for size in sizes {
            let content = text(size);
            std::thread::scope(|scope| {
                scope.spawn(|| (&sender).write_all(&content).expect("a reader"));
                // Some by a read, some at an offset, the rest at the file's position.
                let file = file();
                let mut front = vec![0; size / 7];
                (&receiver).read_exact(&mut front).expect("the front");
                (&file).write_all(&front).expect("room");
                let mut at = front.len() as u64;
                let want = (size / 3) as u64;
                let got = receiver
                    .recvfile(&file, Some(&mut at), want)
                    .expect("the middle");
                assert_eq!(got, want, "a blocking stream waits for all of it");
                assert_eq!(at, front.len() as u64 + want);
                (&file).seek(std::io::SeekFrom::Start(at)).expect("a file");
                let rest = size as u64 - at;
                assert_eq!(
                    receiver.recvfile(&file, None, rest).expect("the rest"),
                    rest
                );
                assert_eq!((&file).stream_position().expect("a file"), size as u64);
                assert!(contents(&file) == content, "{size} bytes, {version:?}");
            });
        }
        drop(sender);
        assert_eq!(receiver.recvfile(&file(), None, 10).expect("the end"), 0);
    }
}

#[test]
fn plain_streams_receive_to_files_too_and_the_end_ends_it() {
    let world = World::new();
    let (sender, receiver) = world.pair();
    let content = text(700_000);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (&sender).write_all(&content).expect("a reader");
            sender.shutdown(Shutdown::Write).expect("an open stream");
        });
        let file = file();
        assert_eq!(receive_all(&receiver, &file, u64::MAX), 700_000);
        assert!(contents(&file) == content);
    });
    assert_eq!(receiver.reason().expect("known"), Reason::CleanEnd);
}

#[test]
fn what_is_behind_the_limit_is_read_in_order() {
    let world = World::new();
    let (mut sender, receiver, mut sealer) = world.sealed_by_hand(ProtocolVersion::Tls13);
    let content = text(100_000);
    sender
        .write_all(&records(&mut sealer, &content))
        .expect("room");
    let file = file();
    let mut at = 0;
    let mut by_read = Vec::new();
    for (i, piece) in [1_u64, 16_384, 20_000, 3, 16_383].into_iter().enumerate() {
        assert_eq!(receiver.recvfile(&file, None, piece).expect("data"), piece);
        at += piece;
        let mut bytes = vec![0; 1000 * (i + 1)];
        (&receiver).read_exact(&mut bytes).expect("data");
        assert!(bytes == content[at as usize..][..bytes.len()]);
        at += bytes.len() as u64;
        by_read.push((at, bytes));
    }
    assert!(receive_all(&receiver, &file, 100_000 - at) == 100_000 - at);
    let mut expected = content.clone();
    for (end, bytes) in by_read.into_iter().rev() {
        expected.drain(end as usize - bytes.len()..end as usize);
    }
    assert!(contents(&file) == expected);
}

#[test]
fn a_record_of_another_type_stops_it_and_is_read_as_ever() {
    let world = World::new();
    for version in VERSIONS {
        let (mut sender, receiver, mut sealer) = world.sealed_by_hand(version);
        let content = text(150_000);
        let mut stream = records(&mut sealer, &content[..100_000]);
        stream.extend(record(&mut sealer, ContentType::ALERT, &[1, 90]));
        stream.extend(records(&mut sealer, &content[100_000..]));
        sender.write_all(&stream).expect("room");
        let file = file();
        assert_eq!(
            receiver.recvfile(&file, None, u64::MAX).expect("data"),
            100_000
        );
        assert_eq!(errno(receiver.recvfile(&file, None, 1)), Errno::IO);
        let mut alert = [0; 100];
        let received = receiver
            .recv_record(&mut alert, RecvFlags::empty())
            .expect("the alert");
        assert_eq!(received.content_type, Some(ContentType::ALERT));
        assert_eq!(alert[..received.len], [1, 90]);
        assert_eq!(
            receiver.recvfile(&file, None, 50_000).expect("data"),
            50_000
        );
        assert!(contents(&file) == content);
    }
}

#[test]
fn nothing_of_a_forged_record_or_behind_it_is_written() {
    let world = World::new();
    for version in VERSIONS {
        for cut in [0, 1, 40_000, 1_500_000] {
            let (sender, receiver, mut sealer) = world.sealed_by_hand(version);
            let content = text(cut);
            let mut stream = records(&mut sealer, &content);
            let mut forged = record(&mut sealer, ContentType::APPLICATION_DATA, &text(5000));
            let middle = forged.len() / 2;
            forged[middle] ^= 1;
            stream.extend(forged);
            stream.extend(records(&mut sealer, &text(30_000)));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // The receiver may reset it before everything is taken.
                    let _ = (&sender).write_all(&stream);
                });
                let file = file();
                let mut received = 0;
                let error = loop {
                    match receiver.recvfile(&file, None, u64::MAX) {
                        Ok(n) => {
                            assert!(n > 0, "a bad record is no end of file");
                            received += n;
                        }
                        Err(error) => break error,
                    }
                };
                assert_eq!(received, cut as u64);
                assert_eq!(error.raw_os_error(), Some(Errno::BADMSG.raw_os_error()));
                assert!(contents(&file) == content, "{cut} bytes, {version:?}");
                assert_eq!(errno(receiver.recvfile(&file, None, 1)), Errno::BADMSG);
                drop(receiver);
            });
        }
    }
}

#[test]
fn a_file_that_takes_no_more_loses_nothing() {
    let world = World::new();
    let (sender, receiver, mut sealer) = world.sealed_by_hand(ProtocolVersion::Tls12);
    let content = text(2_000_000);
    let stream = records(&mut sealer, &content);
    std::thread::scope(|scope| {
        scope.spawn(|| (&sender).write_all(&stream).expect("a reader"));
        let memory = memfd_create("short", MemfdFlags::ALLOW_SEALING).expect("memory");
        ftruncate(&memory, 1_300_000).expect("memory");
        fcntl_add_seals(&memory, SealFlags::GROW).expect("a fresh memfd");
        let memory = File::from(memory);
        let mut received = 0;
        let error = loop {
            match receiver.recvfile(&memory, None, u64::MAX) {
                Ok(n) => received += n as usize,
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(Errno::PERM.raw_os_error()));
        assert!(received > 0 && received <= 1_300_000, "{received}");
        assert!(contents(&memory)[..received] == content[..received]);
        // The same with a device, which the stack writes to itself.
        let full = File::options().write(true).open("/dev/full").expect("it");
        assert_eq!(errno(receiver.recvfile(&full, None, 100)), Errno::NOSPC);
        // All the rest is still there.
        let mut next = vec![0; 10_000];
        (&receiver).read_exact(&mut next).expect("data");
        assert!(next == content[received..][..10_000]);
        let rest = file();
        let left = content.len() - received - 10_000;
        assert_eq!(receive_all(&receiver, &rest, left as u64), left as u64);
        assert!(contents(&rest) == content[received + 10_000..]);
    });
}

#[test]
fn memory_devices_swallow_what_they_are_given() {
    let world = World::new();
    let (sender, receiver, mut sealer) = world.sealed_by_hand(ProtocolVersion::Tls13);
    let stream = records(&mut sealer, &text(5_000_000));
    std::thread::scope(|scope| {
        scope.spawn(|| (&sender).write_all(&stream).expect("a reader"));
        for device in ["/dev/null", "/dev/zero"] {
            let device = File::options().write(true).open(device).expect("it");
            assert_eq!(
                receiver.recvfile(&device, None, 2_000_000).expect("data"),
                2_000_000
            );
        }
        let mut rest = vec![0; 1_000_000];
        (&receiver).read_exact(&mut rest).expect("data");
        assert!(rest == text(5_000_000)[4_000_000..]);
    });
}

#[test]
fn only_files_that_are_open_for_writing_are_received_to() {
    let world = World::new();
    let (mut sender, receiver) = world.pair();
    sender.write_all(b"untouched").expect("room");
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let terminal: OwnedFd = File::open("/dev/random").expect("it").into();
    let wrong: [(&dyn Fn() -> std::io::Result<u64>, Errno); 5] = [
        (&|| receiver.recvfile(&writer, None, 5), Errno::INVAL),
        (&|| receiver.recvfile(&reader, None, 5), Errno::BADF),
        (&|| receiver.recvfile(&socket, None, 5), Errno::INVAL),
        (&|| receiver.recvfile(&terminal, None, 5), Errno::BADF),
        (
            &|| {
                let random = File::options().write(true).open("/dev/urandom")?;
                receiver.recvfile(&random, None, 5)
            },
            Errno::INVAL,
        ),
    ];
    for (ask, expected) in wrong {
        assert_eq!(errno(ask()), expected);
    }
    let null = File::options().write(true).open("/dev/null").expect("it");
    assert_eq!(receiver.recvfile(&null, None, 0).expect("nothing"), 0);
    let mut bytes = [0; 9];
    (&receiver).read_exact(&mut bytes).expect("data");
    assert_eq!(&bytes, b"untouched");
}

#[test]
fn a_stream_that_does_not_block_takes_what_has_arrived() {
    let world = World::new();
    let (mut sender, receiver, mut sealer) = world.sealed_by_hand(ProtocolVersion::Tls13);
    receiver.set_nonblocking(true).expect("a socket");
    let file = file();
    assert_eq!(errno(receiver.recvfile(&file, None, 10)), Errno::AGAIN);
    let content = text(400_000);
    let stream = records(&mut sealer, &content);
    std::thread::scope(|scope| {
        scope.spawn(move || sender.write_all(&stream).expect("a reader"));
        let deadline = Instant::now() + LIMIT;
        let mut received = 0;
        while received < 400_000 {
            assert!(Instant::now() < deadline, "only {received} bytes came");
            match receiver.recvfile(&file, None, 400_000) {
                Ok(n) => received += n,
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    std::thread::yield_now();
                }
            }
        }
    });
    assert!(contents(&file) == content);
}

#[test]
fn a_read_timeout_ends_the_wait_with_what_there_is() {
    let world = World::new();
    let (mut sender, receiver, mut sealer) = world.sealed_by_hand(ProtocolVersion::Tls13);
    receiver
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("a socket");
    let file = file();
    assert_eq!(errno(receiver.recvfile(&file, None, 10)), Errno::AGAIN);
    let content = text(50_000);
    sender
        .write_all(&records(&mut sealer, &content))
        .expect("room");
    assert_eq!(receive_all_until_silence(&receiver, &file), 50_000);
    assert!(contents(&file) == content);
    // Nothing is left behind: what comes now is a read's.
    sender
        .write_all(&record(&mut sealer, ContentType::APPLICATION_DATA, b"more"))
        .expect("room");
    let mut more = [0; 4];
    (&receiver).read_exact(&mut more).expect("data");
    assert_eq!(&more, b"more");
}

fn receive_all_until_silence(stream: &TcpStream, file: &File) -> u64 {
    let mut received = 0;
    loop {
        match stream.recvfile(file, None, u64::MAX) {
            Ok(n) => received += n,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return received,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_reset_comes_behind_what_arrived_before_it() {
    let world = World::new();
    let (mut sender, receiver, mut sealer) = world.sealed_by_hand(ProtocolVersion::Tls13);
    let file = file();
    receiver
        .send(b"never read", SendFlags::empty())
        .expect("room");
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.recvfile(&file, None, u64::MAX));
        sender
            .write_all(&records(&mut sealer, &text(60_000)))
            .expect("room");
        eventually("the file", || {
            file.metadata().expect("a file").len() == 60_000
        });
        eventually("something unread", || {
            sender.peek(&mut [0]).expect("an open stream") == 1
        });
        drop(sender);
        let received = receiving.join().expect("no panic");
        assert_eq!(received.expect("the front"), 60_000);
    });
    assert_eq!(errno(receiver.recvfile(&file, None, 1)), Errno::CONNRESET);
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::yield_now();
    }
}

#[test]
fn ends_of_records_are_told_behind_a_file_as_well() {
    let world = World::new();
    let (mut sender, receiver, mut sealer) = world.sealed_by_hand(ProtocolVersion::Tls13);
    receiver.set_record_ends(true).expect("a TLS stream");
    for len in [1000, 2000, 3000] {
        sender
            .write_all(&record(
                &mut sealer,
                ContentType::APPLICATION_DATA,
                &text(len),
            ))
            .expect("room");
    }
    let file = file();
    // One record, and a part of the next.
    assert_eq!(receiver.recvfile(&file, None, 1500).expect("data"), 1500);
    for (len, rest) in [(1500, text(2000)[500..].to_vec()), (3000, text(3000))] {
        let mut bytes = [0; 10_000];
        let received = receiver
            .recv_record(&mut bytes, RecvFlags::empty())
            .expect("data");
        assert_eq!((received.len, received.end_of_record), (len, true));
        assert!(bytes[..len] == rest);
    }
    let expected = [text(1000), text(2000)[..500].to_vec()].concat();
    assert!(contents(&file) == expected);
}

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn kill(pid: i32, signal: i32) -> i32;
    fn _exit(status: i32) -> !;
}

#[test]
fn a_receiver_that_is_killed_leaves_the_daemon_as_it_was() {
    const SIGKILL: i32 = 9;
    let world = World::new();
    let (bystander, watcher) = world.pair();
    let (sender, receiver, mut sealer) = world.sealed_by_hand(ProtocolVersion::Tls13);
    let stream = records(&mut sealer, &text(16 << 20));
    let file = file();
    // SAFETY: the child only receives, with a connection to the daemon of its own, and leaves by a signal or `_exit`.
    let child = unsafe { fork() };
    assert!(child >= 0, "fork failed");
    if child == 0 {
        let _ = receiver.recvfile(&file, None, u64::MAX);
        // SAFETY: ends the child at once, without the parent's destructors.
        unsafe { _exit(0) };
    }
    drop(receiver);
    // It may be reset before all of it is taken.
    let sent = std::thread::spawn(move || (&sender).write_all(&stream));
    eventually("the file", || {
        file.metadata().expect("a file").len() > 1 << 20
    });
    let mut status = 0;
    // SAFETY: the child above, which nobody has waited for.
    unsafe { kill(child, SIGKILL) };
    // SAFETY: as above; `status` outlives the call.
    assert_eq!(unsafe { waitpid(child, &mut status, 0) }, child);
    let _ = sent.join().expect("no panic");
    for i in 0..100_u8 {
        (&bystander).write_all(&[i]).expect("an open stream");
        let mut byte = [0];
        (&watcher).read_exact(&mut byte).expect("an open stream");
        assert_eq!(byte, [i]);
    }
    eventually("the memory's return", || {
        let all = world.a.daemon.sockets().expect("a daemon");
        all.iter().map(|socket| socket.memory).sum::<u64>() == 0
    });
}

#[test]
fn senders_of_the_other_direction_are_not_held_up() {
    let world = World::new();
    let (sender, receiver) = world.pair();
    let file = file();
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.recvfile(&file, None, 5));
        for _ in 0..50 {
            receiver.send(b"ping", SendFlags::empty()).expect("room");
            let mut ping = [0; 4];
            (&sender).read_exact(&mut ping).expect("an open stream");
        }
        (&sender).write_all(b"12345").expect("room");
        assert_eq!(receiving.join().expect("no panic").expect("data"), 5);
    });
    assert_eq!(contents(&file), b"12345");
}
