//! Our TCP against smoltcp's, an independent peer, in virtual time over a link that loses, duplicates and reorders: every
//! seed must deliver every byte both ways and close. `UKTLS_TCP_SEEDS` says how many. smoltcp's buffers
//! stay at 32 KiB: with 64 KiB and more its receive window arithmetic can panic.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use bytes::BytesMut;
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpCidr, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr};
use uktls_stack::clock::Instant;
use uktls_stack::tcp::{
    Config, CongestionKind, Connection, Events, FlowKey, MAX_HEADER_LEN, Segment, SeqNumber, State,
    Transmit, reset_for,
};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// The peer's device: two queues of IP packets.
#[derive(Default)]
struct Queues {
    to_smoltcp: VecDeque<Vec<u8>>,
    from_smoltcp: VecDeque<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl phy::Device for Queues {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;
    fn receive(&mut self, _: SmolInstant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.to_smoltcp.pop_front()?), Tx(&mut self.from_smoltcp)))
    }
    fn transmit(&mut self, _: SmolInstant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.from_smoltcp))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

fn byte(who: u8, offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9) >> 13) as u8 ^ who
}

const OURS: Ipv4Address = Ipv4Address::new(10, 0, 0, 1);
const PEERS: Ipv4Address = Ipv4Address::new(10, 0, 0, 2);

/// When, a tie-breaker, whether to the peer, what.
type Arrival = Reverse<(Instant, u64, bool, Vec<u8>)>;

struct Run {
    now: Instant,
    ours: Connection,
    sent_by_peer: u64,
    got: u64,
    peer_got: u64,
    to_send: u64,
    peer_to_send: u64,
    queues: Queues,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    wire: BinaryHeap<Arrival>,
    count: u64,
    random: Random,
    /// Per mille.
    loss: u64,
    duplicate: u64,
    jitter_us: u64,
    /// Per mille of packets that come this much later than the others.
    late: (u64, u64),
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = Random(seed);
        let mut queues = Queues::default();
        let mut interface = Interface::new(
            InterfaceConfig::new(HardwareAddress::Ip),
            &mut queues,
            SmolInstant::ZERO,
        );
        interface.update_ip_addrs(|addresses| {
            addresses
                .push(IpCidr::new(PEERS.into(), 24))
                .expect("room for one address");
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 32 * 1024]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(80).expect("a fresh socket listens");
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        let key = FlowKey {
            local: (OURS, 1000).into(),
            remote: (PEERS, 80).into(),
        };
        let config = Config {
            mss: [536, 1000, 1460][random.below(3) as usize],
            recv_buffer: 1 << (11 + random.below(8)),
            recv_initial: 1 << (11 + random.below(8)),
            sack: random.below(4) > 0,
            timestamps: random.below(4) > 0,
            nodelay: random.below(2) > 0,
            pacing: random.below(2) > 0,
            quick_acks: [0, 16][random.below(2) as usize],
            congestion: [CongestionKind::Cubic, CongestionKind::Reno][random.below(2) as usize],
            // Bad links must not be taken for dead ones.
            retries: 100,
            syn_retries: 100,
            rto_max: Duration::from_secs(10),
            ..Config::default()
        };
        let isn = SeqNumber(0xffff_0000 | random.below(1 << 16) as u32);
        Run {
            now: Instant::ZERO,
            ours: Connection::connect(&config, key, isn, 0, Instant::ZERO),
            sent_by_peer: 0,
            got: 0,
            peer_got: 0,
            to_send: random.below(200_000),
            peer_to_send: random.below(200_000),
            queues,
            interface,
            sockets,
            handle,
            wire: BinaryHeap::new(),
            count: 0,
            loss: [0, 10, 50, 150, 250][random.below(5) as usize],
            duplicate: [0, 0, 20, 150][random.below(4) as usize],
            jitter_us: [0, 200, 8_000, 40_000][random.below(4) as usize],
            late: [(0, 0), (20, 15_000), (100, 60_000)][random.below(3) as usize],
            random,
        }
    }

    fn put(&mut self, to_peer: bool, packet: Vec<u8>) {
        if self.random.below(1000) < self.loss {
            return;
        }
        let copies = 1 + u64::from(self.random.below(1000) < self.duplicate);
        for _ in 0..copies {
            let mut micros = 5_000 + self.random.below(self.jitter_us + 1);
            if self.random.below(1000) < self.late.0 {
                micros += self.late.1;
            }
            self.count += 1;
            let at = self.now + Duration::from_micros(micros);
            self.wire
                .push(Reverse((at, self.count, to_peer, packet.clone())));
        }
    }

    /// A segment of ours goes out.
    fn emit(&mut self, transmit: &Transmit) {
        let mut header = [0; MAX_HEADER_LEN];
        let len = transmit.emit_header(&self.ours.key(), &mut header);
        let ip = Ipv4Repr {
            src_addr: OURS,
            dst_addr: PEERS,
            next_header: IpProtocol::Tcp,
            payload_len: len + transmit.payload_len(),
            hop_limit: 64,
        };
        let mut packet = vec![0; 20];
        ip.emit(
            &mut Ipv4Packet::new_unchecked(&mut packet),
            &ChecksumCapabilities::ignored(),
        );
        packet.extend(&header[..len]);
        packet.extend(transmit.payload.clone().map(|offset| byte(1, offset)));
        self.put(true, packet);
    }

    fn drive_ours(&mut self) {
        while let Some(slice) = self.ours.take_received() {
            for got in &slice {
                assert_eq!(*got, byte(2, self.got), "byte {}", self.got);
                self.got += 1;
            }
            self.ours.consumed(slice.len());
        }
        loop {
            let left = self.to_send - self.ours.appended();
            if left > 0 && self.ours.send_room() > 0 {
                self.ours.append(left.min(16_406) as usize);
            }
            if left == 0 && matches!(self.ours.state(), State::Established | State::CloseWait) {
                self.ours.shut_write();
            }
            let Some(transmit) = self.ours.transmit(self.now) else {
                return;
            };
            self.emit(&transmit);
        }
    }

    fn drive_peer(&mut self) {
        let now = SmolInstant::from_micros(self.now.as_micros() as i64);
        loop {
            self.interface
                .poll(now, &mut self.queues, &mut self.sockets);
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
            let mut busy = false;
            while socket.can_recv() {
                let got = socket
                    .recv(|bytes| {
                        for (n, got) in bytes.iter().enumerate() {
                            assert_eq!(*got, byte(1, self.peer_got + n as u64));
                        }
                        (bytes.len(), bytes.len())
                    })
                    .expect("can_recv said so");
                self.peer_got += got as u64;
                busy = true;
            }
            while socket.can_send() && self.sent_by_peer < self.peer_to_send {
                let piece: Vec<u8> = (self.sent_by_peer
                    ..self.peer_to_send.min(self.sent_by_peer + 1000))
                    .map(|at| byte(2, at))
                    .collect();
                self.sent_by_peer += socket.send_slice(&piece).expect("can_send said so") as u64;
                busy = true;
            }
            if self.sent_by_peer == self.peer_to_send && socket.may_send() {
                socket.close();
                busy = true;
            }
            if !busy && self.queues.to_smoltcp.is_empty() {
                break;
            }
        }
        while let Some(packet) = self.queues.from_smoltcp.pop_front() {
            self.put(false, packet);
        }
    }

    fn run(&mut self) {
        self.drive_ours();
        let mut events = Events::NONE;
        for _ in 0..2_000_000 {
            let socket = self.sockets.get::<tcp::Socket<'_>>(self.handle);
            let peer_done = matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait);
            if peer_done && events.intersects(Events::CLOSED | Events::TIME_WAIT) {
                assert_eq!((self.got, self.peer_got), (self.peer_to_send, self.to_send));
                return;
            }
            let smol_now = SmolInstant::from_micros(self.now.as_micros() as i64);
            let peer_timer = self
                .interface
                .poll_at(smol_now, &self.sockets)
                .map(|at| Instant::from_micros(at.total_micros().max(0) as u64).max(self.now));
            let wire = self.wire.peek().map(|Reverse((at, ..))| *at);
            let next = [wire, self.ours.deadline(), peer_timer]
                .into_iter()
                .flatten()
                .min();
            let Some(next) = next else {
                panic!("stalled: {}", self.describe())
            };
            self.now = self.now.max(next);
            assert!(
                self.now < Instant::from_secs(7200),
                "not done in time: {}",
                self.describe()
            );
            if wire == Some(next)
                && let Some(Reverse((_, _, to_peer, packet))) = self.wire.pop()
            {
                if to_peer {
                    self.queues.to_smoltcp.push_back(packet);
                } else {
                    let segment =
                        Segment::parse(&packet[20..]).expect("smoltcp writes whole headers");
                    let payload = BytesMut::from(&packet[20 + segment.header_len..]);
                    if self.ours.state() == State::Closed {
                        // TIME-WAIT is over, and the peer still asks.
                        if let Some(reset) = reset_for(&segment) {
                            self.emit(&reset);
                        }
                    } else {
                        events |= self.ours.on_segment(self.now, &segment, payload);
                    }
                }
            }
            if self.ours.deadline().is_some_and(|at| at <= self.now) {
                events |= self.ours.on_timer(self.now);
            }
            if events.contains(Events::RESET) {
                // smoltcp forgets a connection after ten seconds of TIME-WAIT, and resets a FIN that comes again later.
                let socket = self.sockets.get::<tcp::Socket<'_>>(self.handle);
                let whole = (self.got, self.peer_got) == (self.peer_to_send, self.to_send);
                assert!(
                    whole && socket.state() == tcp::State::Closed,
                    "reset: {}",
                    self.describe()
                );
                return;
            }
            assert!(
                !events.intersects(Events::TIMED_OUT | Events::REFUSED),
                "{events:?}"
            );
            self.drive_ours();
            self.drive_peer();
        }
        panic!("too many steps: {}", self.describe());
    }

    fn describe(&self) -> String {
        let socket = self.sockets.get::<tcp::Socket<'_>>(self.handle);
        format!(
            "at {}: got {} of {}, peer got {} of {}, {:?} and {:?}, {:?}",
            self.now,
            self.got,
            self.peer_to_send,
            self.peer_got,
            self.to_send,
            self.ours.state(),
            socket.state(),
            self.ours.stats()
        )
    }
}

#[test]
fn both_directions_arrive_whole_for_every_seed() {
    let seeds = std::env::var("UKTLS_TCP_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1_000);
    for seed in 0..seeds {
        let result = std::panic::catch_unwind(|| Run::new(seed).run());
        if let Err(panic) = result {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
