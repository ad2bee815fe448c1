//! The contract of AF_KTLS, row by row, for `SOCK_DGRAM`: two daemons whose stacks are joined within the process.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use uktls::client::af_ktls::*;
use uktls::server::{Running, Server, ServerConfig};
use uktls::{Daemon, UdpSocket};
use uktls_record::CipherSuite;
use uktls_record::dtls::{EpochKeys, SEQUENCE_END, Sealer};
use uktls_record::header::ContentType;
use uktls_stack::device::memory;
use uktls_stack::stack::{Limits, Stack, StackConfig};

const NONE: DatagramFlags = DatagramFlags::empty();
const KEY: [u8; 16] = [0x4B; 16];
const SALT: [u8; 4] = [0x5A; 4];
/// Epoch 1, sequence number 1.
const IV: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 1];

struct Side {
    daemon: Daemon,
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
            daemon,
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
fn names_have_the_modules_numbers() {
    let table = [
        (AF_KTLS, 12),
        (PF_KTLS, 12),
        (KTLS_SET_IV_RECV, 1),
        (KTLS_SET_KEY_RECV, 2),
        (KTLS_SET_SALT_RECV, 3),
        (KTLS_SET_IV_SEND, 4),
        (KTLS_SET_KEY_SEND, 5),
        (KTLS_SET_SALT_SEND, 6),
        (KTLS_SET_MTU, 7),
        (KTLS_UNATTACH, 8),
        (KTLS_GET_IV_RECV, 11),
        (KTLS_GET_KEY_RECV, 12),
        (KTLS_GET_SALT_RECV, 13),
        (KTLS_GET_IV_SEND, 14),
        (KTLS_GET_KEY_SEND, 15),
        (KTLS_GET_SALT_SEND, 16),
        (KTLS_GET_MTU, 17),
        (i32::from(KTLS_CIPHER_AES_GCM_128), 51),
        (i32::from(KTLS_VERSION_LATEST), 0),
        (i32::from(KTLS_VERSION_1_2), 1),
    ];
    for (row, (name, number)) in table.into_iter().enumerate() {
        assert_eq!(name, number, "row {row}");
    }
    let bytes = [
        51_u16.to_ne_bytes(),
        7_u16.to_ne_bytes(),
        1_u16.to_ne_bytes(),
    ]
    .concat();
    let (address, fd) = KtlsAddress::from_bytes(&bytes).expect("six bytes");
    assert_eq!((address.cipher, fd, address.version), (51, 7, 1));
    for len in [0, 5, 7] {
        let error = KtlsAddress::from_bytes(&vec![0; len]);
        assert_eq!(errno(error), Errno::BADMSG, "{len} bytes");
    }
}

#[test]
fn socket_and_bind() {
    for number in [0, 3, 5] {
        assert_eq!(errno(KtlsType::try_from(number)), Errno::SOCKTNOSUPPORT);
    }
    let protocol = KtlsSocket::new(KtlsType::Datagram, 1);
    assert_eq!(errno(protocol), Errno::PROTONOSUPPORT);

    let (side, _other) = sides();
    let address = |cipher, version| KtlsAddress { cipher, version };
    for (address, expected) in [
        (address(0, 0), Errno::NOENT),
        (address(53, 0), Errno::NOENT),
        (address(51, 2), Errno::NOENT),
    ] {
        let error = socket().bind(&side.under, address);
        assert_eq!(errno(error), expected, "{address:?}");
    }
    let lonely = UdpSocket::bind_on(&side.daemon, "10.0.0.1:0".parse().expect("literal"), None)
        .expect("a UDP socket");
    let error = socket().bind(&lonely, KtlsAddress::LATEST);
    assert_eq!(errno(error), Errno::NOTCONN);

    let mut first = bound(&side);
    let again = first.bind(&side.under, KtlsAddress::LATEST);
    assert_eq!(errno(again), Errno::INVAL, "bound already");
    let second = socket().bind(&side.under, KtlsAddress::LATEST);
    assert_eq!(errno(second), Errno::INVAL, "that socket is taken");
    assert_eq!(
        first.peer_addr().expect("bound"),
        "10.0.0.2:4433".parse().expect("literal")
    );
    first.unattach().expect("bound");
    first
        .bind(&side.under, address(51, KTLS_VERSION_1_2))
        .expect("free again");
}

const SETS: [(i32, usize); 6] = [
    (KTLS_SET_IV_RECV, 8),
    (KTLS_SET_KEY_RECV, 16),
    (KTLS_SET_SALT_RECV, 4),
    (KTLS_SET_IV_SEND, 8),
    (KTLS_SET_KEY_SEND, 16),
    (KTLS_SET_SALT_SEND, 4),
];

#[test]
fn everything_on_an_unbound_socket_is_ebadmsg() {
    let mut socket = socket();
    let mut buf = [0; 64];
    let bad = Errno::BADMSG;
    for (option, len) in SETS {
        assert_eq!(errno(socket.setsockopt(AF_KTLS, option, &buf[..len])), bad);
        assert_eq!(
            errno(socket.getsockopt(AF_KTLS, option + 10, &mut buf)),
            bad
        );
    }
    assert_eq!(
        errno(socket.setsockopt(AF_KTLS, KTLS_SET_MTU, &[0; 8])),
        bad
    );
    assert_eq!(
        errno(socket.getsockopt(AF_KTLS, KTLS_GET_MTU, &mut buf)),
        bad
    );
    assert_eq!(errno(socket.setsockopt(AF_KTLS, KTLS_UNATTACH, &[])), bad);
    assert_eq!(
        errno(socket.setsockopt(6, KTLS_SET_MTU, &[0; 8])),
        Errno::NOPROTOOPT
    );
    assert_eq!(
        errno(socket.getsockopt(6, KTLS_GET_MTU, &mut buf)),
        Errno::NOPROTOOPT
    );
    assert_eq!(errno(socket.send(b"x", NONE)), bad);
    assert_eq!(errno(socket.recv(&mut buf, NONE)), bad);
    let file = tempfile::tempfile().expect("a file");
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    assert_eq!(errno(socket.sendfile(&file, 0, 1)), bad);
    assert_eq!(errno(socket.splice_from(&reader, 1)), bad);
    assert_eq!(errno(socket.splice_to(&writer, 1)), bad);
    assert_eq!(errno(socket.recvfile(&file, 0, 1)), bad);
    assert_eq!(shows(&socket, PollFlags::IN, 0), PollFlags::empty());
}

#[test]
fn options_before_they_are_set_too_short_too_long_and_back() {
    let (side, _other) = sides();
    let mut socket = bound(&side);
    for (option, len) in SETS {
        let get = option + 10;
        let mut buf = [0xEE; 64];
        let unset = socket.getsockopt(AF_KTLS, get, &mut buf);
        assert_eq!(errno(unset), Errno::BADMSG, "option {get} before it is set");
        for wrong in [0, len - 1, len + 1] {
            let error = socket.setsockopt(AF_KTLS, option, &buf[..wrong]);
            assert_eq!(
                errno(error),
                Errno::BADMSG,
                "option {option}, {wrong} bytes"
            );
        }
        let value: Vec<u8> = (1..=len as u8).collect();
        socket
            .setsockopt(AF_KTLS, option, &value)
            .expect("the right length");
        let short = socket.getsockopt(AF_KTLS, get, &mut buf[..len - 1]);
        assert_eq!(errno(short), Errno::NOMEM, "option {get}, buffer too short");
        for room in [len, len + 1, 64] {
            let n = socket.getsockopt(AF_KTLS, get, &mut buf[..room]);
            assert_eq!(n.expect("set"), len);
            assert_eq!(buf[..len], value, "option {get} as it was set");
        }
    }
    for (option, len) in SETS {
        // All are set now, both directions armed: they still read as they were set, from the daemon.
        let mut buf = [0; 64];
        let n = socket.getsockopt(AF_KTLS, option + 10, &mut buf);
        assert_eq!(n.expect("armed"), len);
        let value: Vec<u8> = (1..=len as u8).collect();
        assert_eq!(buf[..len], value, "option {option} after arming");
    }

    let size = size_of::<usize>();
    for wrong in [0, 4, size + 1] {
        let error = socket.setsockopt(AF_KTLS, KTLS_SET_MTU, &vec![0; wrong]);
        assert_eq!(errno(error), Errno::BADMSG);
    }
    for mtu in [1280_usize, 16_384] {
        socket
            .setsockopt(AF_KTLS, KTLS_SET_MTU, &mtu.to_ne_bytes())
            .expect("a size_t");
        let mut buf = [0; 8];
        let short = socket.getsockopt(AF_KTLS, KTLS_GET_MTU, &mut buf[..size - 1]);
        assert_eq!(errno(short), Errno::NOMEM);
        let n = socket.getsockopt(AF_KTLS, KTLS_GET_MTU, &mut buf);
        assert_eq!((n.expect("set"), usize::from_ne_bytes(buf)), (size, mtu));
    }
    for unknown in [-1, 0, 9, 10, 18, 100] {
        assert_eq!(
            errno(socket.setsockopt(AF_KTLS, unknown, &[])),
            Errno::BADMSG
        );
        let get = socket.getsockopt(AF_KTLS, unknown, &mut [0; 64]);
        assert_eq!(errno(get), Errno::BADMSG, "option {unknown}");
    }
    // Numbers that read do not set, and the other way round.
    let set = socket.setsockopt(AF_KTLS, KTLS_GET_KEY_SEND, &KEY);
    assert_eq!(errno(set), Errno::BADMSG);
    let get = socket.getsockopt(AF_KTLS, KTLS_SET_KEY_SEND, &mut [0; 64]);
    assert_eq!(errno(get), Errno::BADMSG);
}

#[test]
fn keys_are_the_owners_and_can_be_kept_from_everybody() {
    let (side, _other) = sides_with(true);
    let mut socket = bound(&side);
    arm(&mut socket, true, true);
    let mut buf = [0; 16];
    for option in [
        KTLS_GET_KEY_RECV,
        KTLS_GET_KEY_SEND,
        KTLS_GET_SALT_RECV,
        KTLS_GET_SALT_SEND,
    ] {
        let error = socket.getsockopt(AF_KTLS, option, &mut buf);
        assert_eq!(errno(error), Errno::PERM, "option {option}");
    }
    let iv = socket.getsockopt(AF_KTLS, KTLS_GET_IV_SEND, &mut buf);
    assert_eq!(iv.expect("no secret"), 8);
    assert_eq!(buf[..8], IV);
}

#[test]
fn key_and_salt_arm_a_direction() {
    let (left_side, right_side) = sides();
    let (mut left, mut right) = (bound(&left_side), bound(&right_side));
    let mut buf = [0; 16];
    left.setsockopt(AF_KTLS, KTLS_SET_KEY_SEND, &KEY)
        .expect("sound");
    assert_eq!(errno(left.send(b"x", NONE)), Errno::BADMSG, "no salt");
    left.setsockopt(AF_KTLS, KTLS_SET_SALT_SEND, &SALT)
        .expect("sound");
    left.setsockopt(AF_KTLS, KTLS_SET_IV_SEND, &IV)
        .expect("sound");
    assert_eq!(
        errno(left.recv(&mut buf, NONE)),
        Errno::BADMSG,
        "one way only"
    );
    arm(&mut right, false, true);
    assert_eq!(errno(right.send(b"x", NONE)), Errno::BADMSG, "one way only");
    assert_eq!(left.send(b"armed", NONE).expect("armed"), 5);
    assert_eq!(read(&right), b"armed");
    // The IV is the next number, whichever way.
    for (socket, option) in [(&left, KTLS_GET_IV_SEND), (&right, KTLS_GET_IV_RECV)] {
        socket.getsockopt(AF_KTLS, option, &mut buf).expect("armed");
        assert_eq!(buf[..8], [0, 1, 0, 0, 0, 0, 0, 2]);
    }
}

#[test]
fn send_and_receive_in_every_size() {
    let (_a, _b, left, right) = pair();
    for len in [
        0, 1, 15, 16, 17, 1000, 1435, 1436, 4095, 4096, 4097, 8191, 8192, 8193, 16_000, 16_347,
        16_383, 16_384,
    ] {
        assert_eq!(left.send(&text(len), NONE).expect("armed"), len);
        assert!(read(&right) == text(len), "{len} bytes");
        assert_eq!(right.send(&text(len), NONE).expect("armed"), len);
        assert!(read(&left) == text(len), "{len} bytes back");
    }
    for len in [16_385, 20_000, 100_000] {
        let error = left.send(&text(len), NONE);
        assert_eq!(errno(error), Errno::TOOBIG, "{len} bytes");
    }
}

#[test]
fn flags_of_send_and_recv() {
    let (_a, _b, left, right) = pair();
    let mut buf = [0; 8];
    assert_eq!(errno(left.send(b"x", DatagramFlags::OOB)), Errno::OPNOTSUPP);
    assert_eq!(
        errno(left.recv(&mut buf, DatagramFlags::OOB)),
        Errno::OPNOTSUPP
    );
    let empty = left.recv(&mut buf, DatagramFlags::DONTWAIT);
    assert_eq!(errno(empty), Errno::AGAIN);
    left.set_nonblocking(true).expect("a socket");
    assert_eq!(errno(left.recv(&mut buf, NONE)), Errno::AGAIN);

    // MSG_MORE does not gather: a record a call.
    left.send(b"first", DatagramFlags::MORE).expect("armed");
    left.send(b"second", DatagramFlags::EOR | DatagramFlags::NOSIGNAL)
        .expect("armed");
    assert_eq!(read(&right), b"first");
    assert!(shows(&right, PollFlags::IN, 10).contains(PollFlags::IN));
    for _ in 0..2 {
        let peeked = right.recv(&mut buf, DatagramFlags::PEEK).expect("queued");
        assert_eq!(
            (peeked.len, peeked.truncated, &buf[..6]),
            (6, false, &b"second"[..])
        );
    }
    // A buffer that is too short: MSG_TRUNC, and the rest of the record is gone.
    let peeked = right
        .recv(&mut buf[..3], DatagramFlags::PEEK)
        .expect("queued");
    assert_eq!((peeked.len, peeked.truncated), (3, true));
    let whole = right
        .recv(&mut buf[..3], DatagramFlags::PEEK | DatagramFlags::TRUNC)
        .expect("queued");
    assert_eq!((whole.len, whole.truncated), (6, true));
    let cut = right.recv(&mut buf[..3], NONE).expect("queued");
    assert_eq!((cut.len, cut.truncated, &buf[..3]), (3, true, &b"sec"[..]));
    let nothing = right.recv(&mut buf, DatagramFlags::DONTWAIT);
    assert_eq!(errno(nothing), Errno::AGAIN);
}

#[test]
fn poll_says_what_there_is() {
    let (_a, _b, left, right) = pair();
    assert_eq!(shows(&right, PollFlags::IN, 0), PollFlags::empty());
    assert_eq!(shows(&right, PollFlags::OUT, 0), PollFlags::OUT);
    left.send(b"x", NONE).expect("armed");
    assert_eq!(shows(&right, PollFlags::IN, 10), PollFlags::IN);
    read(&right);
    assert_eq!(shows(&right, PollFlags::IN, 0), PollFlags::empty());
}

#[test]
fn records_of_another_type_stay_on_the_socket_beneath() {
    let (left_side, right_side) = sides();
    let mut right = bound(&right_side);
    arm(&mut right, false, true);
    let keys = EpochKeys::dtls12(CipherSuite::Aes128Gcm, &KEY, &SALT, 1, 1).expect("lengths");
    let mut sealer = Sealer::new(&keys).expect("keys");
    let mut seal = |content_type, plaintext: &[u8]| {
        let mut record = vec![0; plaintext.len() + sealer.overhead()];
        sealer
            .seal_from(ContentType(content_type), plaintext, &mut record)
            .expect("a record");
        record
    };
    for content_type in [20, 21, 22, 24] {
        let record = seal(content_type, b"not data");
        left_side.under.send(&record).expect("sent");
        left_side.under.send(&seal(23, b"data")).expect("sent");
        assert_eq!(read(&right), b"data");
        let mut buf = [0; 100];
        let n = right_side.under.recv(&mut buf).expect("a datagram");
        assert_eq!(buf[..n], record, "type {content_type}: untouched");
    }
    // A record that does not open is dropped, counted, and stops nothing.
    let mut forged = seal(23, b"forged");
    forged[25] ^= 1;
    left_side.under.send(&forged).expect("sent");
    left_side.under.send(&seal(23, b"next")).expect("sent");
    assert_eq!(read(&right), b"next");
    let dropped = right.stat().expect("bound").dropped;
    assert!(
        dropped.contains(&("unverified".to_owned(), 1)),
        "{dropped:?}"
    );
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
fn the_sequence_ends_and_the_socket_stops() {
    let (_a, _b, mut left, right) = pair();
    let last = SEQUENCE_END - 1;
    let iv = (1_u64 << 48 | last).to_be_bytes();
    left.setsockopt(AF_KTLS, KTLS_SET_IV_SEND, &iv)
        .expect("8 bytes");
    left.send(b"the last", NONE).expect("armed");
    assert_eq!(read(&right), b"the last");
    left.send(b"one too many", NONE).expect("taken");
    assert!(shows(&left, PollFlags::IN, 10).contains(PollFlags::IN));
    assert_eq!(errno(left.recv(&mut [0; 2], NONE)), Errno::BADMSG);
    let mut buf = [0; 8];
    left.getsockopt(AF_KTLS, KTLS_GET_IV_SEND, &mut buf)
        .expect("armed");
    assert_eq!(u64::from_be_bytes(buf), 1 << 48 | SEQUENCE_END);
}

#[test]
fn files_leave_and_arrive_by_the_record() {
    let (_a, _b, mut left, right) = pair();
    let mtu = 1400_usize;
    left.setsockopt(AF_KTLS, KTLS_SET_MTU, &mtu.to_ne_bytes())
        .expect("a size_t");
    let payload = mtu - 37;
    for len in [1, payload - 1, payload, payload + 1, 4096, 40 * payload + 9] {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&text(len + 5)).expect("written");
        let sent = left.sendfile(&file, 5, u64::MAX).expect("a file");
        assert_eq!(sent, len as u64);
        let sink = tempfile::tempfile().expect("a file");
        let mut received = 0;
        while received < len as u64 {
            assert!(shows(&right, PollFlags::IN, 10).contains(PollFlags::IN));
            received += right
                .recvfile(&sink, received, len as u64 - received)
                .expect("records");
        }
        let mut bytes = vec![0; len];
        std::os::unix::fs::FileExt::read_exact_at(&sink, &mut bytes, 0).expect("written");
        assert!(bytes == text(len + 5)[5..], "{len} bytes");
    }
    let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
    assert_eq!(errno(left.sendfile(&reader, 0, 1)), Errno::INVAL);
    let empty = tempfile::tempfile().expect("a file");
    assert_eq!(left.sendfile(&empty, 0, 10).expect("a file"), 0);
}

#[test]
fn plaintext_moves_between_pipes_record_by_record() {
    let (_a, _b, left, right) = pair();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let (mut out, sink) = std::io::pipe().expect("a pipe");
    for len in [1, 4095, 4096, 4097, 16_384, 16_385, 40_000] {
        (&writer).write_all(&text(len)).expect("a pipe's room");
        let mut moved = 0;
        while moved < len {
            moved += left.splice_from(&reader, len - moved).expect("bytes");
        }
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let n = right.splice_to(&sink, 1 << 20).expect("a record");
            assert!(n <= 16_384);
            let at = bytes.len();
            bytes.resize(at + n, 0);
            out.read_exact(&mut bytes[at..]).expect("in the pipe");
        }
        assert!(bytes == text(len), "{len} bytes");
    }
    drop(writer);
    assert_eq!(left.splice_from(&reader, 10).expect("the end"), 0);
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
