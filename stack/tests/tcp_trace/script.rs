//! A small language for packet traces in virtual time. A line is a time in milliseconds and what happens then:
//!
//! ```text
//! 0   > S 0 win 10000 <mss 1000>      our TCP must send this, at exactly this time
//! 10  < S. 0 ack 1 win 20000          this arrives
//! 10  = ESTABLISHED                   the last segment or timer must have reported this
//! 20  write 1500                      bytes are appended; `read N`, `shut`, `close`, `abort`, `more`, `nomore`, `nodelay`,
//!                                     `mtu N`, `icmp hard`, `nokeepalive` likewise
//! 20  state ESTAB                     the state must be this; `room N`, `acked N`, `eof`, `cwnd N`, `ssthresh N`, `mss N`,
//!                                     `undone N`, `timeouts N`, `rwnd N`, `inflight N`, `outstanding N`, `forgotten N` likewise
//! ```
//!
//! `1:4001/1000` are four segments of 1000 bytes, one after the other. `ce` behind a segment that arrives is congestion
//! experienced, `ect` and `noect` behind one that is sent its ECN field, `gso N` the size it is to be cut into.
//!
//! Flags are S, F, R, P, E, W and `.` for ACK; numbers are relative to each side's initial one (which lie just before the
//! wrap); `1:1001` are bytes 1 up to but not 1001. PSH is not compared, `win` and options only where the line names them.
//! A segment that no line expects fails the trace.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use uktls_stack::clock::Instant;
use uktls_stack::tcp::{
    Config, Connection, EcnCodepoint, Events, Flags, FlowKey, MAX_HEADER_LEN, Options, Segment,
    SeqNumber, Transmit, Unreachable,
};

const OURS: SeqNumber = SeqNumber(0xffff_fc00);
const PEERS: SeqNumber = SeqNumber(0xffff_ff00);

/// What most traces use: no options, segments of 1000 bytes, a window of 10,000.
pub(crate) fn plain() -> Config {
    Config {
        mss: 1000,
        max_gso: 1000,
        recv_buffer: 10_000,
        quick_acks: 0,
        pacing: false,
        timestamps: false,
        window_scaling: false,
        sack: false,
        ..Config::default()
    }
}

struct Packet {
    flags: Flags,
    seq: u32,
    len: u32,
    ack: Option<u32>,
    window: Option<u16>,
    options: Option<Options>,
    /// Arriving: congestion experienced. Sent: whether it must be ECN-capable.
    ecn: Option<bool>,
    gso: Option<u16>,
}

fn number(text: &str) -> u32 {
    text.parse::<i64>()
        .unwrap_or_else(|_| panic!("{text:?} is not a number")) as u32
}

/// `a:b`, or `a` for an empty range.
fn range(text: &str) -> (u32, u32) {
    match text.split_once(':') {
        Some((start, end)) => (number(start), number(end)),
        None => (number(text), number(text)),
    }
}

fn options(text: &str, sack_base: SeqNumber) -> Options {
    let mut options = Options::default();
    for option in text
        .split(',')
        .map(str::trim)
        .filter(|option| !option.is_empty())
    {
        let words: Vec<&str> = option.split_whitespace().collect();
        match words[..] {
            ["mss", mss] => options.mss = Some(number(mss) as u16),
            ["wscale", shift] => options.window_scale = Some(number(shift) as u8),
            ["sackOK"] => options.sack_permitted = true,
            ["ts", value, echo] => options.timestamps = Some((number(value), number(echo))),
            ["sack", ref blocks @ ..] => {
                for block in blocks {
                    let (left, right) = range(block);
                    options.sack.push(sack_base + left, sack_base + right);
                }
            }
            _ => panic!("{option:?} is no option"),
        }
    }
    options
}

fn packet(text: &str, sack_base: SeqNumber) -> Packet {
    let (words, opts) = match text.split_once('<') {
        Some((words, opts)) => (words, Some(opts.trim_end().trim_end_matches('>'))),
        None => (text, None),
    };
    let mut words = words.split_whitespace();
    let mut flags = Flags::NONE;
    for letter in words.next().expect("flags").chars() {
        flags |= match letter {
            'S' => Flags::SYN,
            'F' => Flags::FIN,
            'R' => Flags::RST,
            'P' => Flags::PSH,
            'E' => Flags::ECE,
            'W' => Flags::CWR,
            '.' => Flags::ACK,
            _ => panic!("{letter:?} is no flag"),
        };
    }
    let (seq, end) = range(words.next().expect("a sequence number"));
    let mut packet = Packet {
        flags,
        seq,
        len: end.wrapping_sub(seq),
        ack: None,
        window: None,
        options: None,
        ecn: None,
        gso: None,
    };
    while let Some(word) = words.next() {
        if let "ce" | "ect" | "noect" = word {
            packet.ecn = Some(word != "noect");
            continue;
        }
        let value = number(words.next().expect("a value"));
        match word {
            "ack" => packet.ack = Some(value),
            "win" => packet.window = Some(value as u16),
            "gso" => packet.gso = Some(value as u16),
            _ => panic!("{word:?} is not understood"),
        }
    }
    packet.options = opts.map(|opts| options(opts, sack_base));
    packet
}

/// `> . 1:4001/1000 ack 1` written out.
fn several(what: &str) -> Vec<String> {
    let words: Vec<&str> = what.split_whitespace().collect();
    let size = words.get(2).and_then(|word| word.split_once('/'));
    let (Some(">" | "<"), Some((all, size))) = (words.first().copied(), size) else {
        return vec![what.to_owned()];
    };
    let ((start, end), size) = (range(all), number(size));
    let pieces = (start..end).step_by(size as usize).map(|at| {
        let to = end.min(at + size);
        format!(
            "{} {} {at}:{to} {}",
            words[0],
            words[1],
            words[3..].join(" ")
        )
    });
    pieces.collect()
}

pub(crate) struct Script {
    config: Config,
    key: FlowKey,
    connection: Option<Connection>,
    now: Instant,
    sent: VecDeque<(Instant, Transmit)>,
    events: Events,
    held: usize,
    reading: bool,
    line: String,
}

fn key() -> FlowKey {
    FlowKey {
        local: ([10, 0, 0, 1], 1).into(),
        remote: ([10, 0, 0, 2], 2).into(),
    }
}

fn key_v6() -> FlowKey {
    FlowKey {
        local: ([0xfd00, 0, 0, 0, 0, 0, 0, 1], 1).into(),
        remote: ([0xfd00, 0, 0, 0, 0, 0, 0, 2], 2).into(),
    }
}

impl Script {
    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("no SYN has come yet")
    }

    fn drain(&mut self) {
        let (now, reading, key) = (self.now, self.reading, self.key);
        let connection = self.connection();
        let mut sent = Vec::new();
        let mut held = 0;
        while let Some(slice) = connection.take_received() {
            held += slice.len();
        }
        if reading {
            connection.consumed(held);
            held = 0;
        }
        while let Some(transmit) = connection.transmit(now) {
            // What is written must read back.
            let mut header = [0; MAX_HEADER_LEN];
            let len = transmit.emit_header(&key, &mut header);
            let parsed = Segment::parse(&header[..len]).expect("a header of ours");
            assert_eq!(parsed.options, transmit.options);
            sent.push((now, transmit));
            assert!(sent.len() < 1000, "transmit without end");
        }
        self.held += held;
        self.sent.extend(sent);
    }

    fn advance(&mut self, to: Instant) {
        for _ in 0..10_000 {
            let due = self
                .connection
                .as_ref()
                .and_then(Connection::deadline)
                .filter(|at| *at <= to);
            let Some(at) = due else {
                self.now = to;
                return;
            };
            self.now = self.now.max(at);
            let now = self.now;
            self.events = self.connection().on_timer(now);
            self.drain();
        }
        panic!("timers without end before {}", self.line);
    }

    fn nothing_sent(&self) {
        if let Some((at, transmit)) = self.sent.front() {
            panic!(
                "before {:?}: nobody expects, at {at}: {}",
                self.line,
                show(transmit)
            );
        }
    }

    fn arrive(&mut self, packet: &Packet) {
        let segment = Segment {
            src_port: 2,
            dst_port: 1,
            seq: PEERS + packet.seq,
            ack: OURS + packet.ack.unwrap_or(0),
            flags: packet.flags,
            window: packet.window.unwrap_or(20_000),
            options: packet.options.unwrap_or_default(),
            header_len: 20,
            payload_len: packet.len as usize,
            ecn_ce: packet.ecn == Some(true),
        };
        let (config, now, key) = (self.config, self.now, self.key);
        self.events = Events::NONE;
        match &mut self.connection {
            Some(connection) => {
                self.events =
                    connection.on_segment(now, &segment, BytesMut::zeroed(packet.len as usize))
            }
            None => {
                self.connection = Some(Connection::accept(&config, key, &segment, OURS, 0, now))
            }
        }
        self.drain();
    }

    fn expect(&mut self, packet: &Packet) {
        let line = self.line.clone();
        let Some((at, transmit)) = self.sent.pop_front() else {
            panic!("{line:?}: nothing was sent")
        };
        let shown = show(&transmit);
        assert_eq!(at, self.now, "{line:?}: sent at another time: {shown}");
        let without_push = |flags: Flags| flags.bits() & !Flags::PSH.bits();
        assert_eq!(
            without_push(transmit.flags),
            without_push(packet.flags),
            "{line:?}: {shown}"
        );
        assert_eq!(transmit.seq, OURS + packet.seq, "{line:?}: {shown}");
        assert_eq!(
            transmit.payload_len() as u32,
            packet.len,
            "{line:?}: {shown}"
        );
        if packet.len > 0 {
            assert_eq!(
                transmit.payload.start as u32,
                packet.seq.wrapping_sub(1),
                "{line:?}: {shown}"
            );
        }
        assert_eq!(
            transmit.ack,
            packet.ack.map(|ack| PEERS + ack),
            "{line:?}: {shown}"
        );
        if let Some(capable) = packet.ecn {
            let ecn = transmit.ecn == EcnCodepoint::Ect0;
            assert_eq!(ecn, capable, "{line:?}: {shown}");
        }
        if let Some(gso) = packet.gso {
            assert_eq!(transmit.gso_size, gso, "{line:?}: {shown}");
        }
        if let Some(window) = packet.window {
            assert_eq!(transmit.window, window, "{line:?}: {shown}");
        }
        if let Some(options) = packet.options {
            assert_eq!(transmit.options, options, "{line:?}: {shown}");
        }
    }

    fn step(&mut self, what: &str) {
        let (verb, rest) = what.split_once(' ').unwrap_or((what, ""));
        match verb {
            ">" => return self.expect(&packet(rest, PEERS)),
            "<" => {
                self.nothing_sent();
                return self.arrive(&packet(rest, OURS));
            }
            "=" => {
                let shown = format!("{:?}", self.events).replace(['{', '}', ','], " ");
                let mut names: Vec<&str> = shown.split_whitespace().collect();
                let mut expected: Vec<&str> = rest.split_whitespace().collect();
                names.sort_unstable();
                expected.sort_unstable();
                return assert_eq!(names, expected, "{:?}", self.line);
            }
            "state" => {
                return assert_eq!(self.connection().state().name(), rest, "{:?}", self.line);
            }
            "room" => {
                return assert_eq!(
                    self.connection().send_room(),
                    number(rest) as usize,
                    "{:?}",
                    self.line
                );
            }
            "acked" => {
                return assert_eq!(
                    self.connection().acked(),
                    u64::from(number(rest)),
                    "{:?}",
                    self.line
                );
            }
            "eof" => return assert!(self.connection().receive_closed(), "{:?}", self.line),
            "cwnd" | "ssthresh" | "mss" | "undone" | "timeouts" | "rwnd" | "inflight" => {
                let stats = self.connection().stats();
                let value = match verb {
                    "cwnd" => stats.cwnd,
                    "ssthresh" => stats.ssthresh,
                    "mss" => u64::from(stats.mss),
                    "undone" => stats.undone,
                    "timeouts" => stats.timeouts,
                    "rwnd" => stats.rwnd,
                    _ => stats.in_flight,
                };
                // -1: not known yet.
                let expected = rest.parse().unwrap_or(u64::MAX);
                return assert_eq!(value, expected, "{:?}", self.line);
            }
            "outstanding" | "forgotten" => {
                let known = self.connection().is_in_flight(OURS + number(rest));
                return assert_eq!(known, verb == "outstanding", "{:?}", self.line);
            }
            _ => {}
        }
        self.nothing_sent();
        match verb {
            "write" => self.connection().append(number(rest) as usize),
            "more" => self.connection().set_more(true),
            "nomore" => self.connection().set_more(false),
            "hold" => self.reading = false,
            "read" => {
                let n = number(rest) as usize;
                assert!(
                    n <= self.held,
                    "{:?}: only {} bytes came",
                    self.line,
                    self.held
                );
                self.held -= n;
                self.connection().consumed(n);
            }
            "shut" => self.connection().shut_write(),
            "close" => self.connection().close(),
            "abort" => self.connection().abort(),
            "nodelay" => self.connection().set_nodelay(true),
            "nokeepalive" => {
                let now = self.now;
                self.connection().set_keepalive(None, now);
            }
            "icmp" => {
                let error = match rest {
                    "hard" => Unreachable::Hard,
                    "soft" => Unreachable::Soft,
                    _ => panic!("{rest:?} is no kind of error"),
                };
                self.events = self.connection().on_icmp_unreachable(error);
            }
            "mtu" => {
                let now = self.now;
                self.connection().set_mtu(number(rest) as u16, now);
            }
            _ => panic!("{what:?} is not understood"),
        }
        self.drain();
    }

    fn run(mut self, text: &str) {
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with("//"))
        {
            self.line = line.to_owned();
            let (time, what) = line
                .split_once(char::is_whitespace)
                .unwrap_or_else(|| panic!("{line:?} is half a line"));
            let micros: u64 = match time.split_once('.') {
                Some((ms, us)) => format!("{ms}{us:0<3}").parse(),
                None => format!("{time}000").parse(),
            }
            .unwrap_or_else(|_| panic!("{time:?} is no time"));
            let at = Instant::ZERO + Duration::from_micros(micros);
            if at > self.now {
                self.advance(at);
            }
            for what in several(what.trim()) {
                self.step(&what);
            }
        }
        self.line = "the end".into();
        self.nothing_sent();
    }
}

fn show(transmit: &Transmit) -> String {
    let seq = transmit.seq.distance(OURS);
    let ack = transmit.ack.map(|ack| ack.distance(PEERS));
    format!(
        "{:?} {seq}:{} ack {ack:?} win {} {:?}",
        transmit.flags,
        seq + transmit.payload_len() as i32,
        transmit.window,
        transmit.options
    )
}

fn script(config: Config, connection: Option<Connection>) -> Script {
    Script {
        config,
        key: key(),
        connection,
        now: Instant::ZERO,
        sent: VecDeque::new(),
        events: Events::NONE,
        held: 0,
        reading: true,
        line: String::new(),
    }
}

/// Runs `text` against a connection of ours that opens actively at time 0.
pub(crate) fn client(config: Config, text: &str) {
    let connection = Connection::connect(&config, key(), OURS, 0, Instant::ZERO);
    let mut script = script(config, Some(connection));
    script.drain();
    script.run(text);
}

/// Runs `text` against a connection of ours that the first arriving segment, a SYN, opens.
pub(crate) fn server(config: Config, text: &str) {
    script(config, None).run(text);
}

/// Runs `text` against a client whose handshake (10 ms, the peer's window 20,000) is done.
pub(crate) fn open(config: Config, text: &str) {
    let open = "0 > S 0
        10 < S. 0 ack 1 win 20000 <mss 1000>
        10 > . 1 ack 1
        10 = ESTABLISHED\n";
    client(config, &format!("{open}{text}"));
}

/// The same with SACK agreed on.
pub(crate) fn open_sack(text: &str) {
    let open = "0 > S 0 <mss 1000,sackOK>
        10 < S. 0 ack 1 win 20000 <mss 1000,sackOK>
        10 > . 1 ack 1
        10 = ESTABLISHED\n";
    client(
        Config {
            sack: true,
            ..plain()
        },
        &format!("{open}{text}"),
    );
}

/// The same with SACK and timestamps; segments still carry 1000 bytes. The peer's clock is 1000 ms ahead of ours.
pub(crate) fn open_stamped(text: &str) {
    let open = "0 > S 0 <mss 1012,sackOK,ts 0 0>
        10 < S. 0 ack 1 win 20000 <mss 1012,sackOK,ts 1010 0>
        10 > . 1 ack 1 <ts 10 1010>
        10 = ESTABLISHED\n";
    client(stamped(), &format!("{open}{text}"));
}

/// Settings of [`open_stamped`].
pub(crate) fn stamped() -> Config {
    Config {
        mss: 1012,
        max_gso: 1012,
        sack: true,
        timestamps: true,
        ..plain()
    }
}

/// As [`server`], over IPv6.
pub(crate) fn server_v6(config: Config, text: &str) {
    let mut script = script(config, None);
    script.key = key_v6();
    script.run(text);
}
