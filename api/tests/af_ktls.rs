//! What AF_KTLS does for datagrams beyond its contract: late epochs, the UDP socket's own, the path's MTU, a daemon's end.
//!
//! The contract itself is tried row by row among the end-to-end tests. Two daemons here, whose stacks are joined in this process.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use uktls::client::af_ktls::*;
use uktls::server::{Running, Server, ServerConfig};
use uktls::{Daemon, UdpSocket};
use uktls_record::CipherSuite;
use uktls_record::dtls::{EpochKeys, Sealer};
use uktls_record::header::ContentType;
use uktls_stack::device::memory;
use uktls_stack::stack::{Limits, Stack, StackConfig};

const NONE: DatagramFlags = DatagramFlags::empty();
const KEY: [u8; 16] = [0x4B; 16];
const SALT: [u8; 4] = [0x5A; 4];
/// Epoch 1, sequence number 1.
const IV: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 1];

struct Side {
    under: UdpSocket,
    server: Option<Running>,
    stack: Option<Stack>,
    _directory: tempfile::TempDir,
}

impl Side {
    fn new(address: &str, peer: &str, device: memory::MemoryDevice, no_key_export: bool) -> Side {
        let address: SocketAddr = address.parse().expect("literal");
        let config = StackConfig {
            addresses: vec![(address.ip(), 24)],
            mtu: 1500,
            tcp: Default::default(),
            limits: Limits::default(),
        };
        let stack = Stack::start(config, vec![Box::new(device)]).expect("a stack");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("uktls.sock");
        let config = ServerConfig {
            no_key_export,
            ..ServerConfig::default()
        };
        let server = Server::bind(&path, stack.handle(), config).expect("a fresh path");
        let server = server.spawn().expect("a thread");
        let daemon = Daemon::at(path);
        let under = UdpSocket::bind_on(&daemon, address, None).expect("a UDP socket");
        under.connect(peer).expect("an address");
        Side {
            under,
            server: Some(server),
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
}

impl Drop for Side {
    fn drop(&mut self) {
        self.kill();
    }
}

fn sides_with(no_key_export: bool) -> (Side, Side) {
    let (a, b) = memory::pair(1500, true);
    (
        Side::new("10.0.0.1:4433", "10.0.0.2:4433", a, no_key_export),
        Side::new("10.0.0.2:4433", "10.0.0.1:4433", b, no_key_export),
    )
}

fn sides() -> (Side, Side) {
    sides_with(false)
}

fn socket() -> KtlsSocket {
    KtlsSocket::new(KtlsType::Datagram, 0).expect("a socket")
}

fn bound(side: &Side) -> KtlsSocket {
    let mut socket = socket();
    socket
        .bind(&side.under, KtlsAddress::LATEST)
        .expect("a connected socket");
    socket
}

fn arm(socket: &mut KtlsSocket, send: bool, receive: bool) {
    let mut set = |option, value: &[u8]| {
        socket
            .setsockopt(AF_KTLS, option, value)
            .expect("a sound option");
    };
    if send {
        set(KTLS_SET_IV_SEND, &IV);
        set(KTLS_SET_KEY_SEND, &KEY);
        set(KTLS_SET_SALT_SEND, &SALT);
    }
    if receive {
        set(KTLS_SET_IV_RECV, &IV);
        set(KTLS_SET_KEY_RECV, &KEY);
        set(KTLS_SET_SALT_RECV, &SALT);
    }
}

/// Both ends, the left one sending under the keys that the right one receives with, and back.
fn pair() -> (Side, Side, KtlsSocket, KtlsSocket) {
    let (left_side, right_side) = sides();
    let (mut left, mut right) = (bound(&left_side), bound(&right_side));
    arm(&mut left, true, true);
    arm(&mut right, true, true);
    (left_side, right_side, left, right)
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    let error = result.expect_err("an error was expected");
    Errno::from_io_error(&error).expect("an errno")
}

fn shows(fd: impl AsFd, flags: PollFlags, seconds: i64) -> PollFlags {
    let mut fds = [PollFd::new(&fd, flags)];
    let limit = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&limit)).expect("poll");
    fds[0].revents()
}

fn read(socket: &KtlsSocket) -> Vec<u8> {
    assert!(shows(socket, PollFlags::IN, 10).contains(PollFlags::IN));
    let mut buf = vec![0; 17_000];
    let received = socket.recv(&mut buf, NONE).expect("a record");
    assert!(received.end_of_record && !received.truncated);
    buf.truncate(received.len);
    buf
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + len) as u8).collect()
}

#[test]
fn what_came_before_bind_belongs_to_the_ktls_socket() {
    let (left_side, right_side) = sides();
    let mut left = bound(&left_side);
    arm(&mut left, true, false);
    left.send(b"before bind", NONE).expect("armed");
    left_side.under.send(b"a message in the raw").expect("sent");
    assert!(shows(&right_side.under, PollFlags::IN, 10).contains(PollFlags::IN));
    let mut right = bound(&right_side);
    left.send(b"before keys", NONE).expect("armed");
    arm(&mut right, false, true);
    let mut both = [read(&right), read(&right)];
    both.sort();
    assert_eq!(both, [&b"before bind"[..], b"before keys"]);
    let mut buf = [0; 100];
    let n = right_side.under.recv(&mut buf).expect("given back");
    assert_eq!(&buf[..n], b"a message in the raw");
}

#[test]
fn unattach_talk_raw_and_bind_again() {
    let (left_side, right_side, mut left, mut right) = pair();
    left.send(b"epoch 1", NONE).expect("armed");
    assert_eq!(read(&right), b"epoch 1");
    left.setsockopt(AF_KTLS, KTLS_UNATTACH, &[]).expect("bound");
    right.unattach().expect("bound");
    assert_eq!(errno(left.send(b"x", NONE)), Errno::BADMSG);
    left_side.under.send(b"ClientHello").expect("sent");
    let mut buf = [0; 100];
    let n = right_side.under.recv(&mut buf).expect("a datagram");
    assert_eq!(&buf[..n], b"ClientHello");
    for (socket, side) in [(&mut left, &left_side), (&mut right, &right_side)] {
        socket
            .bind(&side.under, KtlsAddress::LATEST)
            .expect("free again");
    }
    let old = EpochKeys::dtls12(CipherSuite::Aes128Gcm, &KEY, &SALT, 1, 2).expect("lengths");
    let mut late = vec![0; 37 + 4];
    Sealer::new(&old)
        .expect("keys")
        .seal_from(ContentType::APPLICATION_DATA, b"late", &mut late)
        .expect("a record");
    let new = EpochKeys::dtls12(CipherSuite::Aes256Gcm, &[7; 32], &SALT, 2, 0).expect("lengths");
    left.set_send_keys(&new).expect("bound");
    right.set_receive_keys(&new).expect("bound");
    left.send(b"epoch 2", NONE).expect("armed");
    assert_eq!(read(&right), b"epoch 2");
    left_side.under.send(&late).expect("sent");
    assert_eq!(read(&right), b"late");
    left_side.under.send(&late).expect("sent");
    left.send(b"end", NONE).expect("armed");
    assert_eq!(read(&right), b"end", "and the late one not twice");
}

#[test]
fn pipes_with_nothing_in_them_hold_up_nobody() {
    let (_a, _b, left, right) = pair();
    let pipes: Vec<_> = (0..6).map(|_| std::io::pipe().expect("a pipe")).collect();
    std::thread::scope(|scope| {
        // More than there are helper threads; their flags promise to block.
        let waiting: Vec<_> = pipes
            .iter()
            .map(|(reader, _)| scope.spawn(|| left.splice_from(reader, 100)))
            .collect();
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&text(200_000)).expect("written");
        for _ in 0..20 {
            assert_eq!(left.sendfile(&file, 0, 5000).expect("a file"), 5000);
            assert!(read(&right) == text(200_000)[..5000]);
        }
        for (_, writer) in &pipes {
            let mut writer = writer;
            writer.write_all(b"at last").expect("room");
        }
        for waited in waiting {
            assert_eq!(waited.join().expect("no panic").expect("bytes"), 7);
            assert_eq!(read(&right), b"at last");
        }
    });
    let (reader, writer) = &pipes[0];
    let flags = rustix::fs::fcntl_getfl(reader).expect("a pipe");
    rustix::fs::fcntl_setfl(reader, flags | rustix::fs::OFlags::NONBLOCK).expect("a pipe");
    assert_eq!(errno(left.splice_from(reader, 1)), Errno::AGAIN);
    assert_eq!(errno(left.splice_from(writer, 1)), Errno::BADF);
    let file = tempfile::tempfile().expect("a file");
    assert_eq!(errno(left.splice_from(&file, 1)), Errno::INVAL);
}

#[test]
fn datagrams_that_may_not_be_fragmented() {
    let (left_side, _b, left, right) = pair();
    assert_eq!(left_side.under.path_mtu().expect("a daemon"), 1500);
    left_side.under.set_dont_fragment(true).expect("an option");
    assert_eq!(errno(left_side.under.send(&text(1473))), Errno::MSGSIZE);
    left_side.under.send(&text(1472)).expect("it just fits");
    left.send(&text(1436), NONE).expect("taken");
    assert!(shows(&left, PollFlags::IN, 10).contains(PollFlags::IN));
    // The error is reported once, and peeking is reporting.
    let error = left.recv(&mut [], DatagramFlags::PEEK);
    assert_eq!(errno(error), Errno::MSGSIZE);
    let nothing = left.recv(&mut [], DatagramFlags::DONTWAIT);
    assert_eq!(errno(nothing), Errno::AGAIN);
    left.send(&text(1435), NONE).expect("taken");
    assert!(read(&right) == text(1435));
}

#[test]
fn a_daemon_that_is_gone_is_an_error() {
    let (mut left_side, _b, left, _right) = pair();
    left_side.kill();
    // Its end is closed on a thread of its own.
    assert!(shows(&left, PollFlags::IN, 10).contains(PollFlags::HUP));
    assert_eq!(errno(left.send(b"x", NONE)), Errno::CONNABORTED);
    assert_eq!(errno(left.recv(&mut [0; 9], NONE)), Errno::CONNABORTED);
    let _: IpAddr = left.peer_addr().expect("bound").ip();
}
