//! Our TCP against itself through a pipe that loses, duplicates, delays, reorders, marks, and swallows what is too large, in virtual time: thousands of seeds,
//! every one of which must deliver every byte in both directions, close cleanly, and never stall.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use bytes::BytesMut;
use uktls_stack::clock::Instant;
use uktls_stack::tcp::{
    Config, CongestionKind, Connection, EcnCodepoint, Events, Flags, FlowKey, MAX_HEADER_LEN,
    Segment, SeqNumber, State,
};

/// SplitMix64: a random stream that is the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    fn per_mille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }
}

/// Byte `offset` of the stream that end `who` sends.
fn stream_byte(who: usize, offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9) >> 13) as u8 ^ (who as u8 * 0x5a)
}

/// One direction.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// Per mille.
    loss: u64,
    /// Packets lost in a row, each time.
    burst: u64,
    /// Marked as congested, of those that may be.
    mark: u64,
    duplicate: u64,
    delay: Duration,
    jitter: Duration,
    /// Nanoseconds a byte takes.
    pace: u64,
    /// A drop-tail queue of this many bytes.
    limit: u64,
    /// TCP segments with more bytes vanish, and nobody says so.
    largest: usize,
}

struct End {
    connection: Option<Connection>,
    config: Config,
    to_send: u64,
    received: u64,
    /// Taken and not yet reported consumed: the reader is slow.
    held: usize,
    slow_reader: bool,
    peer_fin: bool,
    over: bool,
    busy_until: Instant,
}

type Arrival = Reverse<(Instant, u64, usize, Vec<u8>)>;

struct Wire {
    links: [Link; 2],
    arrivals: BinaryHeap<Arrival>,
    packets: u64,
    /// Packets of each direction still to be lost in this burst.
    losing: [u64; 2],
    random: Random,
}

impl Wire {
    /// The first byte of a packet is what its ECN field says: not capable, capable, congestion experienced.
    fn put(&mut self, now: Instant, busy_until: &mut Instant, from: usize, mut packet: Vec<u8>) {
        let link = self.links[from];
        let random = &mut self.random;
        if self.losing[from] == 0 && random.below(1000 * link.burst) < link.loss {
            self.losing[from] = link.burst;
        }
        if self.losing[from] > 0 {
            self.losing[from] -= 1;
            return;
        }
        if packet.len() > link.largest
            || (*busy_until - now).as_nanos() as u64 > link.limit * link.pace
        {
            return;
        }
        *busy_until =
            (*busy_until).max(now) + Duration::from_nanos((packet.len() as u64 + 20) * link.pace);
        if packet[0] == 1 && random.per_mille(link.mark) {
            packet[0] = 2;
        }
        for _ in 0..1 + u64::from(random.per_mille(link.duplicate)) {
            let jitter = Duration::from_nanos(random.below(link.jitter.as_nanos() as u64 + 1));
            self.packets += 1;
            self.arrivals.push(Reverse((
                *busy_until + link.delay + jitter,
                self.packets,
                1 - from,
                packet.clone(),
            )));
        }
    }
}

struct Pipe {
    now: Instant,
    ends: [End; 2],
    wire: Wire,
    random: Random,
}

fn key(who: usize) -> FlowKey {
    let addresses = [([10, 0, 0, 1], 1000).into(), ([10, 0, 0, 2], 2000).into()];
    FlowKey {
        local: addresses[who],
        remote: addresses[1 - who],
    }
}

impl Pipe {
    fn new(
        seed: u64,
        configs: [Config; 2],
        links: [Link; 2],
        bytes: [u64; 2],
        slow: [bool; 2],
    ) -> Pipe {
        let mut random = Random(seed);
        let end = |who: usize| End {
            connection: None,
            config: configs[who],
            to_send: bytes[who],
            received: 0,
            held: 0,
            slow_reader: slow[who],
            peer_fin: false,
            over: false,
            busy_until: Instant::ZERO,
        };
        let mut ends = [end(0), end(1)];
        // Close to the wrap more often than not.
        let isn = SeqNumber(
            (random.next() as u32)
                | if random.per_mille(600) {
                    0xffff_0000
                } else {
                    0
                },
        );
        ends[0].connection = Some(Connection::connect(
            &configs[0],
            key(0),
            isn,
            random.next() as u32,
            Instant::ZERO,
        ));
        let wire = Wire {
            links,
            arrivals: BinaryHeap::new(),
            packets: 0,
            losing: [0, 0],
            random: Random(seed ^ 1),
        };
        Pipe {
            now: Instant::ZERO,
            ends,
            wire,
            random,
        }
    }

    /// Lets an end read, append and send all it may.
    fn drive(&mut self, who: usize) {
        let now = self.now;
        loop {
            let end = &mut self.ends[who];
            let Some(connection) = end.connection.as_mut() else {
                return;
            };
            while let Some(slice) = connection.take_received() {
                for byte in &slice {
                    assert_eq!(
                        *byte,
                        stream_byte(1 - who, end.received),
                        "byte {}",
                        end.received
                    );
                    end.received += 1;
                }
                end.held += slice.len();
            }
            let read = if end.slow_reader {
                end.held.min(self.random.below(3000) as usize)
            } else {
                end.held
            };
            connection.consumed(read);
            end.held -= read;
            if connection.send_room() > 0 && connection.appended() < end.to_send {
                // Records are sealed whole, whatever the window has room for.
                let record =
                    (end.to_send - connection.appended()).min(1 + self.random.below(16_406));
                connection.append(record as usize);
            }
            if connection.appended() >= end.to_send
                && !matches!(
                    connection.state(),
                    State::SynSent | State::SynReceived | State::Closed
                )
            {
                connection.shut_write();
            }
            let Some(transmit) = connection.transmit(now) else {
                if connection.send_room() > 0 && connection.appended() < end.to_send {
                    continue;
                }
                return;
            };
            assert!(
                transmit.payload.end <= end.to_send,
                "bytes that were not appended"
            );
            let gso = u64::from(transmit.gso_size).max(1);
            assert!(transmit.payload_len() as u64 <= (end.config.max_gso as u64).max(gso));
            // The device cuts super-segments, as the wire would show them.
            let mut at = transmit.payload.start;
            loop {
                let to = transmit.payload.end.min(at + gso);
                let mut piece = transmit.clone();
                piece.seq = transmit.seq + (at - transmit.payload.start) as u32;
                if to < transmit.payload.end {
                    piece.flags = Flags::ACK;
                }
                let mut header = [0; MAX_HEADER_LEN];
                let len = piece.emit_header(&key(who), &mut header);
                assert!(
                    len - 20 + (to - at) as usize <= usize::from(end.config.mss),
                    "larger than the MSS"
                );
                let capable = transmit.ecn == EcnCodepoint::Ect0;
                let mut packet = vec![u8::from(capable)];
                packet.extend(&header[..len]);
                packet.extend((at..to).map(|offset| stream_byte(who, offset)));
                self.wire.put(now, &mut end.busy_until, who, packet);
                at = to;
                if at >= transmit.payload.end {
                    break;
                }
            }
        }
    }

    fn arrive(&mut self, who: usize, packet: &[u8]) {
        let mut segment = Segment::parse(&packet[1..]).expect("what we wrote");
        segment.ecn_ce = packet[0] == 2;
        let payload = BytesMut::from(&packet[1 + segment.header_len..]);
        let now = self.now;
        let end = &mut self.ends[who];
        let events = match &mut end.connection {
            Some(connection) => connection.on_segment(now, &segment, payload),
            None if segment.flags.syn() && !segment.flags.ack() => {
                let isn = SeqNumber(self.random.next() as u32);
                end.connection = Some(Connection::accept(
                    &end.config,
                    key(who),
                    &segment,
                    isn,
                    77,
                    now,
                ));
                Events::NONE
            }
            None => Events::NONE,
        };
        self.note(who, events);
    }

    fn note(&mut self, who: usize, events: Events) {
        assert!(
            !events.intersects(Events::RESET | Events::REFUSED),
            "{who}: {events:?} at {}",
            self.now
        );
        let end = &mut self.ends[who];
        end.peer_fin |= events.contains(Events::PEER_FIN);
        end.over |= events.intersects(Events::TIME_WAIT | Events::CLOSED | Events::TIMED_OUT);
    }

    fn delivered(&self) -> bool {
        (0..2).all(|who| {
            self.ends[who].received == self.ends[1 - who].to_send && self.ends[who].peer_fin
        })
    }

    /// Runs until both ends are done; returns the time until all was delivered.
    fn run(&mut self, limit: Duration) -> Duration {
        self.drive(0);
        let mut done_at = None;
        for _ in 0..3_000_000u64 {
            if done_at.is_none() && self.delivered() {
                done_at = Some(self.now);
            }
            if self.ends.iter().all(|end| end.over) {
                let Some(at) = done_at else {
                    panic!("over before all was delivered: {}", self.describe())
                };
                return at.since(Instant::ZERO);
            }
            let timer = |who: usize| {
                self.ends[who]
                    .connection
                    .as_ref()
                    .and_then(Connection::deadline)
            };
            let wire = self.wire.arrivals.peek().map(|Reverse((at, ..))| *at);
            // A slow reader looks again every 5 ms.
            let reader = self.ends.iter().any(|end| end.slow_reader && end.held > 0);
            let reader = reader.then(|| self.now + Duration::from_millis(5));
            let next = [wire, timer(0), timer(1), reader]
                .into_iter()
                .flatten()
                .min();
            let Some(next) = next else {
                panic!("stalled, no packet and no timer: {}", self.describe())
            };
            self.now = self.now.max(next);
            assert!(
                self.now < Instant::ZERO + limit,
                "not done after {limit:?}: {}",
                self.describe()
            );
            if wire == Some(next)
                && let Some(Reverse((_, _, to, packet))) = self.wire.arrivals.pop()
            {
                self.arrive(to, &packet);
                self.drive(to);
                continue;
            }
            for who in 0..2 {
                let now = self.now;
                if let Some(connection) = &mut self.ends[who].connection
                    && connection.deadline().is_some_and(|at| at <= now)
                {
                    let events = connection.on_timer(now);
                    self.note(who, events);
                }
                self.drive(who);
            }
        }
        panic!("too many events: {}", self.describe());
    }

    fn describe(&self) -> String {
        let mut text = format!("at {}, {} packets", self.now, self.wire.packets);
        for (who, end) in self.ends.iter().enumerate() {
            let expected = self.ends[1 - who].to_send;
            text += &format!(
                "\n  end {who}: received {} of {expected}, fin {}, over {}",
                end.received, end.peer_fin, end.over
            );
            if let Some(c) = &end.connection {
                text += &format!(
                    "\n    {:?} appended {} acked {} room {} deadline {:?}\n    {:?}",
                    c.state(),
                    c.appended(),
                    c.acked(),
                    c.send_room(),
                    c.deadline(),
                    c.stats()
                );
            }
        }
        text
    }
}

/// 100 Mbit/s, 10 ms each way.
fn link(loss: u64, jitter_ms: u64) -> Link {
    Link {
        loss,
        burst: 1,
        mark: 0,
        duplicate: 0,
        delay: Duration::from_millis(10),
        jitter: Duration::from_millis(jitter_ms),
        pace: 80,
        limit: 200_000,
        largest: usize::MAX,
    }
}

/// A run whose every choice comes from the seed.
fn run_seed(seed: u64) {
    let mut random = Random(seed ^ 0xabcd);
    let mut config = || {
        let mss = [536u16, 1220, 1460, 8960][random.below(4) as usize];
        Config {
            mss,
            recv_buffer: [2_000, 10_000, 65_535, 300_000][random.below(4) as usize],
            nodelay: random.per_mille(700),
            congestion: if random.per_mille(500) {
                CongestionKind::Cubic
            } else {
                CongestionKind::Reno
            },
            max_gso: if random.per_mille(500) {
                65_000
            } else {
                usize::from(mss)
            },
            timestamps: random.per_mille(700),
            window_scaling: random.per_mille(700),
            sack: random.per_mille(700),
            ecn: random.per_mille(300),
            pacing: random.per_mille(500),
            quick_acks: [0, 16][random.below(2) as usize],
            recv_initial: [2_000, 300_000][random.below(2) as usize],
            initial_window: [1, 10, 40][random.below(3) as usize],
            time_wait: Duration::from_secs(60),
            retries: 60,
            syn_retries: 60,
            rto_max: Duration::from_secs(5),
            ..Config::default()
        }
    };
    let configs = [config(), config()];
    let mut link = || Link {
        loss: [0, 10, 50, 150, 250][random.below(5) as usize],
        burst: [1, 1, 4, 12][random.below(4) as usize],
        mark: [0, 30, 300][random.below(3) as usize],
        duplicate: [0, 0, 20, 100][random.below(4) as usize],
        delay: Duration::from_micros([20, 1_000, 30_000][random.below(3) as usize]),
        jitter: Duration::from_micros([0, 0, 500, 20_000][random.below(4) as usize]),
        pace: [1, 80, 800][random.below(3) as usize],
        limit: [20_000, 100_000, 1_000_000][random.below(3) as usize],
        largest: [usize::MAX, usize::MAX, usize::MAX, 1_000][random.below(4) as usize],
    };
    let links = [link(), link()];
    let mut bytes = || [0, 1, 700, 20_000, 100_000][random.below(5) as usize];
    let bytes = [bytes(), bytes()];
    let slow = [random.per_mille(200), random.per_mille(200)];
    let result = std::panic::catch_unwind(|| {
        let mut pipe = Pipe::new(seed, configs, links, bytes, slow);
        pipe.run(Duration::from_secs(3600));
    });
    if let Err(panic) = result {
        eprintln!("seed {seed}: {bytes:?} bytes, slow {slow:?}\n{links:?}\n{configs:?}");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn every_seed_delivers_every_byte() {
    let seeds = std::env::var("UKTLS_TCP_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(3_000);
    for seed in 0..seeds {
        run_seed(seed);
    }
}

/// Goodput in Mbit/s of a transfer of `bytes` over the link.
fn goodput(seed: u64, bytes: u64, links: [Link; 2], config: Config) -> u64 {
    let mut pipe = Pipe::new(seed, [config, config], links, [bytes, 0], [false; 2]);
    let time = pipe.run(Duration::from_secs(600));
    bytes * 8 / time.as_micros() as u64
}

#[test]
fn a_clean_link_is_filled_and_loss_costs_what_it_should() {
    let config = Config {
        recv_buffer: 4 << 20,
        ..Config::default()
    };
    let clean = goodput(1, 20 << 20, [link(0, 0); 2], config);
    let one_percent = goodput(1, 20 << 20, [link(10, 0), link(0, 0)], config);
    let reordered = goodput(1, 20 << 20, [link(0, 3), link(0, 0)], config);
    println!(
        "100 Mbit/s, 20 ms: clean {clean}, 1 % loss {one_percent}, 3 ms jitter {reordered} Mbit/s"
    );
    assert!(clean >= 85, "{clean} Mbit/s");
    assert!(one_percent >= 8, "{one_percent} Mbit/s");
    assert!(reordered >= 40, "{reordered} Mbit/s");
}
