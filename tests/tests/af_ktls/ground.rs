//! Where the cases run: two stacks that reach each other, within this process or as two daemons in a network namespace.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::io::Errno;
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use uktls::client::af_ktls::*;
use uktls::server::{Running, Server, ServerConfig};
use uktls::{Daemon, TcpListener, TcpStream, UdpSocket};
use uktls_record::dtls::{self, EpochKeys};
use uktls_record::{CipherSuite, ContentType, CryptoInfo, tls};
use uktls_stack::device::memory;
use uktls_stack::stack::{Limits, Stack, StackConfig};
use uktls_tests::{Folder, Network, PATIENCE, wait_for};

pub const NONE: KtlsFlags = KtlsFlags::empty();
pub const BOTH: [KtlsType; 2] = [KtlsType::Stream, KtlsType::Datagram];
pub const STREAM: [KtlsType; 1] = [KtlsType::Stream];
pub const DATAGRAM: [KtlsType; 1] = [KtlsType::Datagram];

/// Bytes that the module's cipher adds to a record: header, explicit nonce, tag.
pub fn overhead(kind: KtlsType) -> usize {
    match kind {
        KtlsType::Stream => 5 + 8 + 16,
        KtlsType::Datagram => 13 + 8 + 16,
    }
}

/// What the case runs on. Ports are given out once each, so that cases do not meet.
pub struct Ground {
    /// The type of the sockets that it is run for.
    pub kind: KtlsType,
    pub daemons: [Daemon; 2],
    addresses: [IpAddr; 2],
    ports: Cell<u16>,
}

/// Two stacks in this process, joined by a link in memory.
pub fn in_process(no_key_export: bool, run: impl FnOnce(&mut Ground)) {
    let addresses = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().expect("literal"));
    let (a, b) = memory::pair(1500, true);
    let folder = Folder::new();
    let mut running: Vec<(Running, Stack)> = Vec::new();
    for (address, device) in addresses.into_iter().zip([a, b]) {
        let config = StackConfig {
            addresses: vec![(address, 24)],
            mtu: 1500,
            tcp: Default::default(),
            limits: Limits::default(),
        };
        let stack = Stack::start(config, vec![Box::new(device)]).expect("a stack");
        let config = ServerConfig {
            no_key_export,
            ..ServerConfig::default()
        };
        let server = Server::bind(folder.join(&address.to_string()), stack.handle(), config);
        let server = server.expect("a fresh path").spawn().expect("a thread");
        running.push((server, stack));
    }
    let daemons = addresses.map(|address| Daemon::at(folder.join(&address.to_string())));
    run(&mut Ground::new(daemons, addresses));
    for (server, stack) in running {
        server.stop().expect("a sound server");
        stack.stop();
    }
}

/// Two `uktls up` in a namespace whose kernel forwards between their interfaces.
pub fn daemons(options: &[&str], run: impl FnOnce(&mut Ground)) {
    let network = Network::new();
    network
        .run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        .success();
    let start = |tun, address| {
        let options = [&["--tun", tun, "--addr", address], options].concat();
        uktls_tests::Daemon::start(&network, &options)
    };
    let processes = [
        start("uktls0", "10.77.0.2/24"),
        start("uktls1", "10.78.0.2/24"),
    ];
    let addresses = ["10.77.0.2", "10.78.0.2"].map(|ip| ip.parse().expect("literal"));
    let daemons = [processes[0].client(), processes[1].client()];
    run(&mut Ground::new(daemons, addresses));
}

impl Ground {
    fn new(daemons: [Daemon; 2], addresses: [IpAddr; 2]) -> Ground {
        Ground {
            kind: KtlsType::Stream,
            daemons,
            addresses,
            ports: Cell::new(4433),
        }
    }

    /// An address on one side that no other socket has.
    pub fn address(&self, side: usize) -> SocketAddr {
        let port = self.ports.get();
        self.ports.set(port + 1);
        SocketAddr::new(self.addresses[side], port)
    }

    /// A TCP connection, or two UDP sockets that are each other's peer.
    pub fn beneath(&self) -> [Beneath; 2] {
        match self.kind {
            KtlsType::Stream => self.tcp().map(Beneath::Tcp),
            KtlsType::Datagram => self.udp().map(Beneath::Udp),
        }
    }

    pub fn tcp(&self) -> [TcpStream; 2] {
        let listener = TcpListener::bind_on(&self.daemons[1], self.address(1)).expect("bound");
        let address = listener.local_addr().expect("bound");
        let left = TcpStream::connect_on(&self.daemons[0], address).expect("connected");
        let (right, _) = listener.accept().expect("accepted");
        for stream in [&left, &right] {
            stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        }
        [left, right]
    }

    pub fn udp(&self) -> [UdpSocket; 2] {
        let addresses = [self.address(0), self.address(1)];
        [0, 1].map(|side| {
            let own = addresses[side];
            let socket = UdpSocket::bind_on(&self.daemons[side], own, None).expect("bound");
            socket.connect(addresses[1 - side]).expect("an address");
            socket.set_read_timeout(Some(PATIENCE)).expect("a time");
            socket
        })
    }

    /// A socket that is not bound.
    pub fn socket(&self) -> KtlsSocket {
        KtlsSocket::new(self.kind, 0).expect("a socket")
    }

    /// Sockets that are bound and have no keys.
    pub fn bound(&self) -> Pair {
        let beneath = self.beneath();
        let [left, right] = [0, 1].map(|side| {
            let mut socket = self.socket();
            bind(&mut socket, &beneath[side]);
            socket
        });
        Pair {
            left,
            right,
            beneath,
        }
    }

    /// A socket that sends under the first keys, and its peer, who looks at what is on the wire.
    pub fn to_the_wire(&self) -> (KtlsSocket, Wire) {
        let beneath = self.beneath();
        let mut socket = self.socket();
        bind(&mut socket, &beneath[0]);
        arm_send(&mut socket, 1, IV);
        let overhead = overhead(self.kind);
        (socket, Wire { beneath, overhead })
    }

    /// Sockets that are bound and have keys, each other's for receiving.
    pub fn armed(&self) -> Pair {
        let mut pair = self.bound();
        arm(&mut pair.left, 1, 2);
        arm(&mut pair.right, 2, 1);
        pair
    }
}

/// What KTLS sockets are laid over.
#[derive(Debug)]
pub enum Beneath {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Beneath {
    pub fn under(&self) -> Under<'_> {
        match self {
            Beneath::Tcp(stream) => Under::Tcp(stream),
            Beneath::Udp(socket) => Under::Udp(socket),
        }
    }

    /// Sends in the raw.
    pub fn send(&self, bytes: &[u8]) {
        let sent = match self {
            Beneath::Tcp(stream) => stream.send(bytes, uktls::client::SendFlags::empty()),
            Beneath::Udp(socket) => socket.send(bytes),
        };
        assert_eq!(sent.expect("sent in the raw"), bytes.len());
    }

    /// Sends in the raw, without waiting for room: it may not be on its way yet.
    pub fn send_later(&self, bytes: &[u8]) {
        let Beneath::Tcp(stream) = self else {
            return self.send(bytes);
        };
        let (stream, bytes) = (stream.try_clone().expect("a descriptor"), bytes.to_vec());
        std::thread::spawn(move || {
            let sent = stream.send(&bytes, uktls::client::SendFlags::empty());
            assert_eq!(sent.expect("sent in the raw"), bytes.len());
        });
    }

    /// Sends in the raw until the peer has received it: a datagram may come while its socket is not given back yet.
    pub fn send_until_received(&self, peer: &Beneath, bytes: &[u8]) {
        for _ in 0..100 {
            self.send(bytes);
            match peer {
                Beneath::Tcp(_) => break,
                Beneath::Udp(socket) => {
                    let soon = Some(Duration::from_millis(200));
                    socket.set_read_timeout(soon).expect("a time");
                    let mut buf = vec![0; bytes.len()];
                    if socket.recv(&mut buf).is_ok() {
                        return assert_eq!(buf, bytes);
                    }
                }
            }
        }
        assert_eq!(peer.recv(bytes.len()), bytes);
    }

    /// Waits until something can be read in the raw.
    pub fn wait_readable(&self) {
        match self {
            Beneath::Tcp(stream) => shown_soon(stream, PollFlags::IN),
            Beneath::Udp(socket) => shown_soon(socket, PollFlags::IN),
        };
    }

    /// As [`wait_readable`](Self::wait_readable); the records of an association are not shown before it has keys.
    pub fn wait_readable_if_stream(&self) {
        if let Beneath::Tcp(_) = self {
            self.wait_readable();
        }
    }

    /// Receives so many bytes in the raw, or a datagram of that length.
    pub fn recv(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len + 1];
        match self {
            Beneath::Tcp(stream) => {
                bytes.truncate(len);
                std::io::Read::read_exact(&mut &*stream, &mut bytes).expect("received in the raw");
            }
            Beneath::Udp(socket) => {
                let got = socket.recv(&mut bytes).expect("received in the raw");
                bytes.truncate(got);
            }
        }
        bytes
    }
}

/// Two KTLS sockets and what they are laid over.
pub struct Pair {
    pub left: KtlsSocket,
    pub right: KtlsSocket,
    pub beneath: [Beneath; 2],
}

impl Pair {
    /// Waits until the right side's stack has opened so many records.
    pub fn wait_for_records(&self, records: u64) {
        let Beneath::Tcp(stream) = &self.beneath[1] else {
            unreachable!("a stream's");
        };
        wait_for("records to be opened", PATIENCE, || {
            let opened = stream.stat().expect("open").records_received;
            (opened >= records).then_some(())
        });
    }
}

/// The receiving side of a socket, without one.
pub struct Wire {
    pub beneath: [Beneath; 2],
    overhead: usize,
}

impl Wire {
    /// The next record as it is.
    pub fn record(&self) -> Vec<u8> {
        match &self.beneath[1] {
            Beneath::Tcp(_) => {
                let mut record = self.beneath[1].recv(5);
                let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
                record.extend(self.beneath[1].recv(len));
                record
            }
            Beneath::Udp(_) => self.beneath[1].recv(1 << 16),
        }
    }

    /// Length of the plaintext of the next record, which must be data.
    pub fn plaintext(&self) -> usize {
        let record = self.record();
        assert_eq!(record[0], 23, "application data");
        record.len() - self.overhead
    }
}

pub fn tls_keys(seed: u8, number: u64) -> CryptoInfo {
    let cipher = CipherSuite::Aes128Gcm;
    CryptoInfo::tls12_gcm(cipher, &key(seed), &salt(seed), number, number).expect("lengths")
}

pub fn dtls_keys(seed: u8, iv: u64) -> EpochKeys {
    let (epoch, number) = ((iv >> 48) as u16, iv & ((1 << 48) - 1));
    let cipher = CipherSuite::Aes128Gcm;
    EpochKeys::dtls12(cipher, &key(seed), &salt(seed), epoch, number).expect("lengths")
}

/// A record that another implementation would send, under the keys with this seed and the IV with this value.
pub fn seal(
    kind: KtlsType,
    seed: u8,
    iv: [u8; 8],
    content_type: ContentType,
    plaintext: &[u8],
) -> Vec<u8> {
    let mut record = vec![0; plaintext.len() + overhead(kind)];
    let number = u64::from_be_bytes(iv);
    let sealed = match kind {
        KtlsType::Stream => tls::Sealer::new(&tls_keys(seed, number))
            .and_then(|mut sealer| sealer.seal_from(content_type, plaintext, &mut record)),
        KtlsType::Datagram => dtls::Sealer::new(&dtls_keys(seed, number))
            .and_then(|mut sealer| sealer.seal_from(content_type, plaintext, &mut record)),
    };
    sealed.expect("a record");
    record
}

pub fn bind(socket: &mut KtlsSocket, beneath: &Beneath) {
    socket
        .bind(beneath.under(), KtlsAddress::LATEST)
        .expect("a connected socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time");
}

pub fn key(seed: u8) -> [u8; 16] {
    [seed; 16]
}

pub fn salt(seed: u8) -> [u8; 4] {
    [seed ^ 0x5A; 4]
}

/// Number 1, as behind a handshake: of epoch 1 where there are epochs.
pub const IV: [u8; 8] = [0, 1, 0, 0, 0, 0, 0, 1];

pub fn set(socket: &mut KtlsSocket, option: i32, value: &[u8]) {
    socket
        .setsockopt(AF_KTLS, option, value)
        .unwrap_or_else(|error| panic!("option {option}: {error}"));
}

pub fn get(socket: &KtlsSocket, option: i32) -> Vec<u8> {
    let mut value = [0; 64];
    let len = socket
        .getsockopt(AF_KTLS, option, &mut value)
        .unwrap_or_else(|error| panic!("option {option}: {error}"));
    value[..len].to_vec()
}

/// The IV as the number that it is.
pub fn next_number(socket: &KtlsSocket, option: i32) -> u64 {
    u64::from_be_bytes(get(socket, option).try_into().expect("8 bytes"))
}

pub fn arm_send(socket: &mut KtlsSocket, seed: u8, iv: [u8; 8]) {
    set(socket, KTLS_SET_IV_SEND, &iv);
    set(socket, KTLS_SET_KEY_SEND, &key(seed));
    set(socket, KTLS_SET_SALT_SEND, &salt(seed));
}

pub fn arm_recv(socket: &mut KtlsSocket, seed: u8, iv: [u8; 8]) {
    set(socket, KTLS_SET_IV_RECV, &iv);
    set(socket, KTLS_SET_KEY_RECV, &key(seed));
    set(socket, KTLS_SET_SALT_RECV, &salt(seed));
}

pub fn arm(socket: &mut KtlsSocket, send: u8, receive: u8) {
    arm_send(socket, send, IV);
    arm_recv(socket, receive, IV);
}

/// The errno that something must fail with.
#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    let error = result.expect_err("an error was expected");
    Errno::from_io_error(&error).expect("an errno")
}

/// What a poll for `events` shows, now or soon.
pub fn soon(socket: &KtlsSocket, events: PollFlags) -> PollFlags {
    socket.poll(events, Some(PATIENCE)).expect("poll")
}

/// What a poll for `events` shows now.
pub fn now(socket: &KtlsSocket, events: PollFlags) -> PollFlags {
    socket.poll(events, Some(Duration::ZERO)).expect("poll")
}

/// What the descriptor itself shows, now or soon.
pub fn shown_soon(fd: impl AsFd, events: PollFlags) -> PollFlags {
    shown_within(fd, events, PATIENCE.as_secs())
}

/// What the descriptor itself shows now.
pub fn glance(fd: impl AsFd, events: PollFlags) -> PollFlags {
    shown_within(fd, events, 0)
}

fn shown_within(fd: impl AsFd, events: PollFlags, seconds: u64) -> PollFlags {
    let mut fds = [PollFd::new(&fd, events)];
    let limit = Timespec {
        tv_sec: seconds as i64,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&limit)).expect("poll");
    fds[0].revents()
}

/// Reads so many bytes: a stream's in as many calls as it takes, a datagram in one.
#[track_caller]
pub fn read(socket: &KtlsSocket, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len + 1];
    let mut at = 0;
    loop {
        let received = socket.recv(&mut bytes[at..], NONE).expect("received");
        at += received.len;
        if at >= len || received.len == 0 {
            bytes.truncate(at);
            return bytes;
        }
    }
}

#[track_caller]
pub fn send(socket: &KtlsSocket, bytes: &[u8]) {
    assert_eq!(socket.send(bytes, NONE).expect("sent"), bytes.len());
}

/// Bytes that differ by their place and by their number.
pub fn text(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + len) as u8).collect()
}
