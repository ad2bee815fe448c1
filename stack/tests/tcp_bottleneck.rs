//! Several of our flows through one bottleneck, in virtual time: they share it fairly, fill it, and do not overrun a short
//! queue by bursts.
//!
//! The bottleneck is a drop-tail queue before a line of fixed rate; the way back is never full.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use bytes::BytesMut;
use uktls_stack::clock::Instant;
use uktls_stack::tcp::{
    Config, CongestionKind, Connection, FlowKey, Segment, SeqNumber, State, Transmit,
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

#[derive(Clone, Copy)]
struct Bottleneck {
    /// Nanoseconds a byte takes.
    pace: u64,
    /// Bytes that may wait.
    limit: u64,
    /// One way.
    delay: Duration,
}

/// 100 Mbit/s and 40 ms there and back: 500 kB fit the pipe.
const LINE: Bottleneck = Bottleneck {
    pace: 80,
    limit: 500_000,
    delay: Duration::from_millis(20),
};

struct Flow {
    ends: [Connection; 2],
    starts: Instant,
    started: bool,
    delivered: u64,
}

/// When, which came first, for which flow's which end, what.
type Arrival = Reverse<(Instant, u64, usize, usize, Packet)>;

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    header: Vec<u8>,
    payload: usize,
}

struct Network {
    now: Instant,
    line: Bottleneck,
    flows: Vec<Flow>,
    arrivals: BinaryHeap<Arrival>,
    count: u64,
    busy_until: Instant,
    dropped: u64,
}

fn key(port: u16, who: usize) -> FlowKey {
    let ends = [([10, 0, 0, 1], port).into(), ([10, 0, 0, 2], 443).into()];
    FlowKey {
        local: ends[who],
        remote: ends[1 - who],
    }
}

impl Network {
    fn new(seed: u64, flows: u16, line: Bottleneck, config: Config) -> Network {
        let mut random = Random(seed);
        let flows = (0..flows).map(|port| {
            let isn = SeqNumber(random.below(1 << 32) as u32);
            let starts = Instant::from_micros(random.below(500_000));
            let client = Connection::connect(&config, key(port, 0), isn, 0, starts);
            // The server's end takes the place of this one when the SYN comes.
            let server = Connection::connect(&config, key(port, 1), isn, 0, starts);
            Flow {
                ends: [client, server],
                starts,
                started: false,
                delivered: 0,
            }
        });
        Network {
            now: Instant::ZERO,
            line,
            flows: flows.collect(),
            arrivals: BinaryHeap::new(),
            count: 0,
            busy_until: Instant::ZERO,
            dropped: 0,
        }
    }

    fn put(&mut self, flow: usize, from: usize, transmit: &Transmit) {
        let mut header = vec![0; transmit.header_len()];
        transmit.emit_header(&key(flow as u16, from), &mut header);
        let payload = transmit.payload_len();
        let mut at = self.now;
        if from == 0 {
            let waiting = self.busy_until.since(self.now).as_nanos() as u64 / self.line.pace;
            if waiting > self.line.limit {
                self.dropped += 1;
                return;
            }
            let bytes = (header.len() + payload + 20) as u64;
            self.busy_until =
                self.busy_until.max(self.now) + Duration::from_nanos(bytes * self.line.pace);
            at = self.busy_until;
        }
        self.count += 1;
        let packet = Packet { header, payload };
        self.arrivals.push(Reverse((
            at + self.line.delay,
            self.count,
            flow,
            1 - from,
            packet,
        )));
    }

    fn drive(&mut self, flow: usize, who: usize) {
        let now = self.now;
        loop {
            let end = &mut self.flows[flow].ends[who];
            let mut got = 0;
            while let Some(slice) = end.take_received() {
                got += slice.len();
            }
            end.consumed(got);
            let room = end.send_room();
            if who == 0 && room > 0 {
                end.append(room);
            }
            let transmit = end.transmit(now);
            self.flows[flow].delivered += got as u64;
            let Some(transmit) = transmit else {
                return;
            };
            self.put(flow, who, &transmit);
        }
    }

    fn arrive(&mut self, flow: usize, who: usize, packet: &Packet, config: &Config) {
        let mut segment = Segment::parse(&packet.header).expect("a header of ours");
        segment.payload_len = packet.payload;
        let end = &mut self.flows[flow].ends[who];
        if who == 1 && segment.flags.syn() && end.state() == State::SynSent {
            *end = Connection::accept(
                config,
                key(flow as u16, 1),
                &segment,
                SeqNumber(7),
                0,
                self.now,
            );
        } else {
            end.on_segment(self.now, &segment, BytesMut::zeroed(packet.payload));
        }
        self.drive(flow, who);
    }

    /// Runs until `until`; returns what each flow delivered since it was called last.
    fn run(&mut self, until: Instant, config: &Config) -> Vec<u64> {
        while self.now < until {
            let wire = self.arrivals.peek().map(|Reverse((at, ..))| *at);
            let timers = self.flows.iter().flat_map(|flow| {
                let begin = (!flow.started).then_some(flow.starts);
                let timers = flow
                    .started
                    .then(|| [flow.ends[0].deadline(), flow.ends[1].deadline()]);
                [begin].into_iter().chain(timers.into_iter().flatten())
            });
            let next = timers
                .flatten()
                .chain(wire)
                .min()
                .expect("something always goes on");
            self.now = self.now.max(next);
            if wire == Some(next)
                && let Some(Reverse((_, _, flow, who, packet))) = self.arrivals.pop()
            {
                self.arrive(flow, who, &packet, config);
                continue;
            }
            for flow in 0..self.flows.len() {
                let now = self.now;
                if !self.flows[flow].started {
                    self.flows[flow].started = self.flows[flow].starts <= now;
                    if self.flows[flow].started {
                        self.drive(flow, 0);
                    }
                    continue;
                }
                for who in 0..2 {
                    let end = &mut self.flows[flow].ends[who];
                    if end.state() == State::SynSent && who == 1 {
                        continue;
                    }
                    if end.deadline().is_some_and(|at| at <= now) {
                        end.on_timer(now);
                        self.drive(flow, who);
                    }
                }
            }
        }
        let delivered = self.flows.iter_mut();
        delivered
            .map(|flow| std::mem::take(&mut flow.delivered))
            .collect()
    }
}

/// Jain's index in per mille: (Σx)² / (n Σx²).
fn jain(shares: &[u64]) -> u64 {
    let sum: u128 = shares.iter().map(|&x| u128::from(x)).sum();
    let squares: u128 = shares.iter().map(|&x| u128::from(x) * u128::from(x)).sum();
    (sum * sum * 1000 / (shares.len() as u128 * squares.max(1))) as u64
}

/// Fairness and use of the line in per mille, of `seconds` after as many to settle.
fn share(seed: u64, flows: u16, seconds: u64, config: &Config) -> (u64, u64) {
    let mut network = Network::new(seed, flows, LINE, *config);
    network.run(Instant::from_secs(seconds), config);
    let shares = network.run(Instant::from_secs(2 * seconds), config);
    let line = seconds * 1_000_000_000 / LINE.pace;
    (jain(&shares), shares.iter().sum::<u64>() * 1000 / line)
}

#[test]
fn flows_share_a_bottleneck_fairly_and_fill_it() {
    for (kind, flows, seconds) in [
        (CongestionKind::Cubic, 2, 40),
        (CongestionKind::Cubic, 4, 30),
        (CongestionKind::Cubic, 16, 20),
        (CongestionKind::Cubic, 64, 20),
        (CongestionKind::Reno, 4, 30),
    ] {
        let config = Config {
            congestion: kind,
            recv_buffer: 4 << 20,
            ..Config::default()
        };
        let (fair, used) = share(1, flows, seconds, &config);
        println!("{flows} {kind:?} flows: Jain {fair} per mille, {used} per mille of the line");
        assert!(fair >= 900, "{flows} {kind:?} flows: Jain {fair} per mille");
        assert!(
            used >= 880,
            "{flows} {kind:?} flows: {used} per mille of the line"
        );
    }
}

#[test]
fn pacing_keeps_bursts_out_of_a_short_queue() {
    // A queue of 20 packets, on a path that holds 340.
    let line = Bottleneck {
        limit: 30_000,
        ..LINE
    };
    let run = |pacing| {
        let config = Config {
            pacing,
            recv_buffer: 4 << 20,
            ..Config::default()
        };
        let mut network = Network::new(1, 1, line, config);
        let delivered = network.run(Instant::from_secs(20), &config);
        (delivered[0] * 8 / 20_000_000, network.dropped)
    };
    let ((paced, paced_drops), (bursty, bursty_drops)) = (run(true), run(false));
    println!(
        "short queue: {paced} Mbit/s paced, {paced_drops} lost; {bursty} Mbit/s not, {bursty_drops} lost"
    );
    assert!(paced >= 75, "{paced} Mbit/s");
    assert!(paced * 10 >= bursty * 11, "{paced} and {bursty} Mbit/s");
}

#[test]
fn options_survive_the_model() {
    // The model writes headers and reads them back; a flow that lost its options would not scale its window.
    let config = Config {
        recv_buffer: 4 << 20,
        ..Config::default()
    };
    let mut network = Network::new(3, 1, LINE, config);
    network.run(Instant::from_secs(5), &config);
    let stats = network.flows[0].ends[0].stats();
    assert!(stats.rwnd > 65_535 && stats.mss == 1448, "{stats:?}");
}
