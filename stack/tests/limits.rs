//! What bounds a stack: memory by user and altogether, and the backlog, with SYN cookies behind it.

#![expect(
    clippy::disallowed_methods,
    reason = "whole stacks on threads of their own, in real time"
)]

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use uktls_stack::address::ACCEPTED_LEN;
use uktls_stack::device::{Device, Offload, checksum, memory};
use uktls_stack::handle::{ClientEnd, ConnectRequest, ListenRequest, Reply, SocketOptions};
use uktls_stack::packet;
use uktls_stack::stack::{Handle, Limits, Stack, StackConfig};
use uktls_stack::tcp::{
    Cause, EcnCodepoint, Flags, FlowKey, MAX_HEADER_LEN, Options, Segment, SeqNumber, Transmit,
};

const LIMIT: Duration = Duration::from_secs(20);

fn start(address: &str, limits: Limits, device: memory::MemoryDevice) -> Stack {
    let ip: IpAddr = address.parse().expect("literal");
    let config = StackConfig {
        addresses: vec![(ip, 24)],
        mtu: 1500,
        tcp: Default::default(),
        limits,
    };
    Stack::start(config, vec![Box::new(device)]).expect("a stack")
}

fn ask<T: Send + 'static>(request: impl FnOnce(Reply<T>)) -> T {
    let (sender, answer) = mpsc::channel();
    request(Box::new(move |result: Result<T, Errno>| {
        let _ = sender.send(result);
    }));
    let answer = answer.recv_timeout(LIMIT).expect("an answer in time");
    answer.expect("the request succeeds")
}

fn listen(handle: &Handle, local: SocketAddr, backlog: usize, uid: u32) -> ClientEnd {
    let request = ListenRequest {
        local,
        backlog,
        options: SocketOptions::default(),
        uid,
    };
    ask(|reply| handle.listen(request, reply))
}

fn connect(handle: &Handle, remote: SocketAddr, uid: u32) -> OwnedFd {
    let request = ConnectRequest {
        remote,
        local: None,
        options: SocketOptions::default(),
        uid,
    };
    ask(|reply| handle.connect(request, reply)).fd
}

/// Whether one of `flags` comes up in time.
fn wait_for(fd: &OwnedFd, flags: PollFlags, limit: Duration) -> bool {
    let mut fds = [PollFd::new(fd, flags)];
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    poll(&mut fds, Some(&limit)).expect("polling works") == 1
}

fn accept(listener: &ClientEnd) -> OwnedFd {
    let mut header = [0; ACCEPTED_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    assert!(wait_for(&listener.fd, PollFlags::IN, LIMIT), "nobody came");
    let mut into = [IoSliceMut::new(&mut header)];
    recvmsg(&listener.fd, &mut into, &mut ancillary, RecvFlags::empty()).expect("accepted");
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return fds.next().expect("a descriptor");
        }
    }
    panic!("no descriptor came")
}

fn send(fd: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    rustix::net::send(fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn memory_of(handle: &Handle, uid: u32) -> usize {
    let (sender, answer) = mpsc::channel();
    handle.sockets(Box::new(move |sockets| {
        let _ = sender.send(sockets);
    }));
    let sockets = answer.recv_timeout(LIMIT).expect("an answer in time");
    let of_uid = sockets.iter().filter(|socket| socket.uid == uid);
    of_uid.map(|socket| socket.memory).sum()
}

#[test]
fn what_nobody_reads_fills_one_users_memory_and_not_anothers() {
    let (a, b) = memory::pair(1500, true);
    let limits = Limits {
        memory_per_uid: 1 << 20,
        ..Limits::default()
    };
    let near = start("10.0.0.1", Limits::default(), a);
    let far = start("10.0.0.2", limits, b);
    let addresses = ["10.0.0.2:1", "10.0.0.2:2"].map(|text| text.parse().expect("literal"));
    let listeners = [
        listen(&far.handle(), addresses[0], 8, 1),
        listen(&far.handle(), addresses[1], 8, 2),
    ];
    let open = |uid: usize| {
        let near = connect(&near.handle(), addresses[uid - 1], 0);
        let far = accept(&listeners[uid - 1]);
        assert!(wait_for(&near, PollFlags::OUT, LIMIT), "not connected");
        (near, far)
    };
    let piece = [7; 65_536];
    let mut unread = Vec::new();
    // Each takes a window and what waits for its reader, until the limit is reached: from then on windows stay shut.
    let started = Instant::now();
    while memory_of(&far.handle(), 1) < 1 << 20 {
        assert!(started.elapsed() < LIMIT, "the limit is never reached");
        if unread.len() < 8 {
            unread.push((open(1), 0));
        }
        for ((near, _), written) in &mut unread {
            while let Ok(n) = send(near, &piece) {
                *written += n;
            }
        }
    }
    let held = memory_of(&far.handle(), 1);
    assert!(held <= 4 << 20, "{held} bytes are held");
    let (other, other_far) = open(2);
    assert_eq!(send(&other, &piece), Ok(65_536));
    assert!(wait_for(&other_far, PollFlags::IN, LIMIT));
    // Once they are read, all goes on.
    let mut buffer = vec![0; 1 << 16];
    for ((near, far), written) in unread {
        let mut read = 0;
        while read < written {
            assert!(
                wait_for(&far, PollFlags::IN, LIMIT),
                "stalled at {read} of {written}"
            );
            let (_, n) =
                rustix::net::recv(&far, &mut buffer[..], RecvFlags::empty()).expect("read");
            assert!(buffer[..n].iter().all(|&byte| byte == 7));
            read += n;
        }
        drop(near);
    }
    drop((other, other_far, listeners));
    near.stop();
    far.stop();
}

/// A peer made of packets.
struct Raw {
    device: memory::MemoryDevice,
    listens: bool,
}

impl Raw {
    /// Of the two ports one is 443, ours when the stack opened the connection from `port`.
    fn key(&self, port: u16) -> FlowKey {
        let (ours, theirs) = if self.listens {
            (443, port)
        } else {
            (port, 443)
        };
        FlowKey {
            local: ([10, 0, 0, 1], ours).into(),
            remote: ([10, 0, 0, 2], theirs).into(),
        }
    }

    fn send(
        &mut self,
        port: u16,
        flags: Flags,
        seq: SeqNumber,
        ack: Option<SeqNumber>,
        ts: (u32, u32),
    ) {
        let key = self.key(port);
        let syn = flags.syn();
        let segment = Transmit {
            seq,
            ack,
            flags,
            window: 1000,
            options: Options {
                mss: syn.then_some(1460),
                window_scale: syn.then_some(7),
                sack_permitted: syn,
                timestamps: Some(ts),
                ..Options::default()
            },
            payload: 0..0,
            retransmission: false,
            cause: Cause::First,
            gso_size: 0,
            ecn: EcnCodepoint::NotEct,
        };
        let mut header = [0; MAX_HEADER_LEN];
        let len = segment.emit_header(&key, &mut header);
        let (src, dst) = (key.local.ip(), key.remote.ip());
        let mut sum =
            checksum::pseudo_header(src, dst, packet::TCP, len as u32).expect("one family");
        sum.add(&header[..len]);
        header[16..18].copy_from_slice(&sum.checksum().to_be_bytes());
        let mut ip = [0; packet::MAX_IP_HEADER];
        let ip_len =
            packet::emit_header(src, dst, packet::TCP, len, 1, 0, &mut ip).expect("it fits");
        let packet = [&ip[..ip_len], &header[..len]].concat();
        self.device
            .send(&Offload::NONE, &packet, &[])
            .expect("room");
    }

    fn receive_within(&mut self, limit: Duration) -> Option<Segment> {
        let (started, mut packet) = (Instant::now(), vec![0; 65_536]);
        while started.elapsed() < limit {
            if let Ok((n, _)) = self.device.receive(&mut packet) {
                return Some(Segment::parse(&packet[20..n]).expect("a TCP segment"));
            }
            std::thread::yield_now();
        }
        None
    }

    fn receive(&mut self) -> Segment {
        self.receive_within(LIMIT).expect("something comes")
    }

    /// The first segment with bytes that `port` sends within the limit; others are passed over.
    fn data_from(&mut self, port: u16, limit: Duration) -> Option<Segment> {
        let started = Instant::now();
        while let Some(left) = limit.checked_sub(started.elapsed()) {
            let segment = self.receive_within(left)?;
            if segment.src_port == port && segment.payload_len > 0 {
                return Some(segment);
            }
        }
        None
    }

    /// Takes a connection that the stack opens; returns its port and the number of its first byte.
    fn accept(&mut self) -> (u16, SeqNumber) {
        let syn = loop {
            let segment = self.receive();
            if segment.flags.syn() {
                break segment;
            }
        };
        let ts = (1, syn.options.timestamps.expect("timestamps are offered").0);
        let flags = Flags::SYN | Flags::ACK;
        self.send(syn.src_port, flags, SeqNumber(9), Some(syn.seq + 1), ts);
        (syn.src_port, syn.seq + 1)
    }
}

#[test]
fn a_flood_of_syns_does_not_keep_others_out() {
    let (device, b) = memory::pair(1500, false);
    let far = start("10.0.0.2", Limits::default(), b);
    let listener = listen(
        &far.handle(),
        "10.0.0.2:443".parse().expect("literal"),
        2,
        0,
    );
    let mut raw = Raw {
        device,
        listens: false,
    };
    let mut answers = Vec::new();
    for port in 5000..5005 {
        raw.send(port, Flags::SYN, SeqNumber(9), None, (100, 0));
        answers.push(raw.receive());
    }
    let counter = |name: &str| {
        let counters = far.handle().counters();
        counters
            .iter()
            .find(|(known, _)| *known == name)
            .expect("a counter")
            .1
    };
    assert_eq!(counter("SyncookiesSent"), 3);
    // The first two are half open, the others are cookies; the last one is genuine.
    let last = answers[4];
    assert!(last.flags.contains(Flags::SYN | Flags::ACK));
    let echo = (
        101,
        last.options.timestamps.expect("timestamps are agreed on").0,
    );
    raw.send(5004, Flags::ACK, SeqNumber(10), Some(last.seq + 1), echo);
    let accepted = accept(&listener);
    assert_eq!(send(&accepted, b"hello"), Ok(5));
    let data = raw.receive();
    assert_eq!((data.payload_len, data.ack), (5, SeqNumber(10)));
    assert_eq!(counter("SyncookiesRecv"), 1);
    // A forged one is answered by a reset.
    raw.send(5003, Flags::ACK, SeqNumber(10), Some(last.seq + 1), echo);
    assert!(raw.receive().flags.rst());
    assert_eq!(counter("SyncookiesFailed"), 1);
    drop((accepted, listener));
    far.stop();
}

#[test]
fn a_user_whose_peers_acknowledge_nothing_waits_and_others_do_not() {
    let (device, b) = memory::pair(1500, false);
    // Two chunks of the sealed stream.
    let limits = Limits {
        memory_per_uid: 512 * 1024,
        ..Limits::default()
    };
    let stack = start("10.0.0.2", limits, b);
    let mut raw = Raw {
        device,
        listens: true,
    };
    let mut open = |uid| {
        let fd = connect(
            &stack.handle(),
            "10.0.0.1:443".parse().expect("literal"),
            uid,
        );
        let (port, first) = raw.accept();
        assert!(wait_for(&fd, PollFlags::OUT, LIMIT), "not connected");
        (fd, port, first)
    };
    let (a, a_port, a_first) = open(1);
    let (b, b_port, _) = open(1);
    let (meek, meek_port, _) = open(1);
    let (other, other_port, _) = open(2);
    for (fd, port) in [(&a, a_port), (&b, b_port)] {
        assert!(send(fd, &[7; 100_000]).is_ok());
        assert!(raw.data_from(port, LIMIT).is_some());
    }
    assert_eq!(memory_of(&stack.handle(), 1), 512 * 1024);
    assert!(send(&meek, b"patience").is_ok() && send(&other, b"no hurry").is_ok());
    assert!(raw.data_from(other_port, LIMIT).is_some());
    assert!(
        raw.data_from(meek_port, Duration::from_millis(100))
            .is_none()
    );
    // Everything that the first one sent is acknowledged, again and again, until it has sent all.
    let started = Instant::now();
    let mut acked = a_first;
    while acked.distance(a_first) < 100_000 {
        assert!(started.elapsed() < LIMIT, "stalled");
        if let Some(data) = raw.data_from(a_port, LIMIT) {
            let end = data.seq + data.payload_len as u32;
            acked = if acked.lt(end) { end } else { acked };
            let ts = (2, data.options.timestamps.expect("in use").0);
            raw.send(a_port, Flags::ACK, SeqNumber(10), Some(acked), ts);
        }
    }
    assert!(raw.data_from(meek_port, LIMIT).is_some());
    drop((a, b, meek, other));
    stack.stop();
}
