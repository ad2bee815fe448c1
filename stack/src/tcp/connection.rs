//! The connection: its public face, opening and closing, and what timers do. A segment's way in is in `input`, its way
//! out in `output`.

use core::time::Duration;

use bytes::BytesMut;

use super::config::{Config, Events, KeepAlive, State, Stats, Unreachable};
use super::path_mtu::PathMtu;
use super::receive::{Receive, window_scale};
use super::recovery::Phase;
use super::segment::{Flags, FlowKey, Segment};
use super::send::Send;
use super::seq::SeqNumber;
use super::time_wait::TimeWait;
use super::timers::{Timers, expired};
use crate::clock::Instant;

/// The least time before a tail loss probe.
const MIN_PROBE_TIMEOUT: Duration = Duration::from_millis(2);

/// RFC 8985 §7.2, WCDelAckT: how long the peer may delay the acknowledgement of a lone segment.
const PEER_DELAYED_ACK: Duration = Duration::from_millis(200);

/// Challenge acknowledgements a second and connection (RFC 5961 §7: "an ACK throttling mechanism").
const CHALLENGES_PER_SECOND: u32 = 10;

/// Our SYN or SYN-ACK.
#[derive(Debug, Default)]
pub(super) struct Syn {
    /// To be sent (again).
    pub(super) due: bool,
    pub(super) sent_at: Option<Instant>,
    pub(super) sent: u32,
}

/// What [`Connection::transmit`] owes the peer besides data.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// An acknowledgement, now.
    pub(super) ack: bool,
    /// A reset with this sequence number, and whether it carries an acknowledgement.
    pub(super) reset: Option<(SeqNumber, bool)>,
    /// One byte into a closed window, or whatever fits into a small one.
    pub(super) window_probe: bool,
    pub(super) keepalive_probe: bool,
    pub(super) tail_probe: bool,
}

/// The timestamps option (RFC 7323) in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timestamps {
    pub(super) offset: u32,
    /// TS.Recent and when it was taken.
    pub(super) recent: u32,
    pub(super) recent_at: Instant,
}

/// ECN (RFC 3168), once both ends agreed.
#[derive(Debug, Default)]
pub(super) struct Ecn {
    pub(super) on: bool,
    /// Echo congestion until the peer says CWR.
    pub(super) echo: bool,
}

/// One TCP connection. See the [module](super) for how to drive it.
#[derive(Debug)]
pub struct Connection {
    pub(super) config: Config,
    pub(super) key: FlowKey,
    pub(super) state: State,
    pub(super) send: Send,
    pub(super) receive: Receive,
    pub(super) timestamps: Option<Timestamps>,
    pub(super) ts_offset: u32,
    pub(super) sack: bool,
    /// The peer's SYN had a window scale option.
    pub(super) peer_scales: bool,
    pub(super) ecn: Ecn,
    pub(super) syn: Syn,
    /// We opened it.
    pub(super) active: bool,
    pub(super) owed: Owed,
    pub(super) timers: Timers,
    /// RCV.NXT as we acknowledged it last (Last.ACK.sent).
    pub(super) last_ack: u64,
    /// Timeouts in a row, and probes without an answer.
    pub(super) backoff: u32,
    pub(super) unanswered: u32,
    keepalives: u32,
    /// Since when the oldest unacknowledged byte waits.
    pub(super) stalled_since: Option<Instant>,
    heard: Instant,
    challenges: (Instant, u32),
    /// Segments still to be acknowledged at once, and when the last one with data came.
    pub(super) quick_acks: u32,
    /// Data was answered with data: acknowledgements find company.
    pub(super) converses: bool,
    pub(super) data_in_at: Instant,
    /// No reader is left: new data is answered by a reset.
    pub(super) detached: bool,
    pub(super) segments_in: u64,
    pub(super) segments_out: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) retransmits: u64,
    timeouts: u64,
}

impl Connection {
    fn new(
        config: &Config,
        key: FlowKey,
        state: State,
        isn: SeqNumber,
        ts_offset: u32,
        now: Instant,
    ) -> Connection {
        let mut receive = Receive::new(config.recv_initial, config.recv_buffer, now);
        if config.window_scaling {
            receive.scale = window_scale(config.recv_buffer);
        }
        Connection {
            config: *config,
            key,
            state,
            send: Send::new(config, isn, now),
            receive,
            timestamps: None,
            ts_offset,
            sack: false,
            peer_scales: false,
            ecn: Ecn::default(),
            syn: Syn {
                due: true,
                ..Syn::default()
            },
            active: state == State::SynSent,
            owed: Owed::default(),
            timers: Timers::default(),
            last_ack: 0,
            backoff: 0,
            unanswered: 0,
            keepalives: 0,
            stalled_since: None,
            heard: now,
            challenges: (now, 0),
            quick_acks: config.quick_acks,
            converses: false,
            data_in_at: now,
            detached: false,
            segments_in: 0,
            segments_out: 0,
            bytes_in: 0,
            bytes_out: 0,
            retransmits: 0,
            timeouts: 0,
        }
    }

    /// Opens a connection actively: the state is SYN-SENT and [`transmit`](Connection::transmit) yields the SYN.
    pub fn connect(
        config: &Config,
        key: FlowKey,
        isn: SeqNumber,
        ts_offset: u32,
        now: Instant,
    ) -> Connection {
        Connection::new(config, key, State::SynSent, isn, ts_offset, now)
    }

    /// Opens a connection passively, for a `syn` that a listener takes: the state is SYN-RECEIVED and
    /// [`transmit`](Connection::transmit) yields the SYN-ACK.
    pub fn accept(
        config: &Config,
        key: FlowKey,
        syn: &Segment,
        isn: SeqNumber,
        ts_offset: u32,
        now: Instant,
    ) -> Connection {
        let mut connection = Connection::new(config, key, State::SynReceived, isn, ts_offset, now);
        connection.segments_in = 1;
        connection.take_syn(now, syn);
        connection
    }

    /// The connection of [`accept`](Connection::accept) whose SYN-ACK went out some time ago and was forgotten.
    pub(super) fn accepted_by_cookie(
        config: &Config,
        key: FlowKey,
        syn: &Segment,
        isn: SeqNumber,
        ts_offset: u32,
        now: Instant,
    ) -> Connection {
        let mut connection = Connection::accept(config, key, syn, isn, ts_offset, now);
        // What the SYN-ACK said of the window holds; when it was sent is not known.
        let _sent_before = connection.transmit(now);
        connection.syn.sent_at = None;
        connection.timers.retransmit = None;
        connection
    }

    /// Takes the peer's SYN in: its number, and what its options and ours agree on.
    pub(super) fn take_syn(&mut self, now: Instant, syn: &Segment) {
        self.receive.start(syn.seq);
        self.last_ack = 1;
        let options = &syn.options;
        // RFC 9293 §3.7.1: "If an MSS option is not received at connection setup, TCP implementations MUST assume a default send
        // MSS of 536 (576 - 40) for IPv4 or 1220 (1280 - 60) for IPv6". A floor keeps a malicious MSS from making every
        // byte a segment.
        let default = if self.key.remote.is_ipv4() { 536 } else { 1220 };
        let mss = options
            .mss
            .unwrap_or(default)
            .clamp(64, self.config.mss.max(64));
        let old = self.send.mss;
        self.send.mss = u64::from(mss);
        self.send.path = PathMtu::new(self.send.mss);
        if self.config.timestamps
            && let Some((tsval, _)) = options.timestamps
        {
            self.timestamps = Some(Timestamps {
                offset: self.ts_offset,
                recent: tsval,
                recent_at: now,
            });
            self.send.options_len = 12;
        }
        self.send.congestion.on_mss_change(old, self.send.segment());
        self.peer_scales = options.window_scale.is_some();
        match options.window_scale {
            // RFC 7323 §2.3: "If a Window Scale option is received with a shift.cnt value larger than 14, the TCP SHOULD log the
            // error but MUST use 14".
            Some(shift) if self.config.window_scaling => self.send.scale = shift.min(14),
            _ => self.receive.scale = 0,
        }
        self.sack = self.config.sack && options.sack_permitted;
        // RFC 3168 §6.1.1: ECN-setup SYN has ECE and CWR, ECN-setup SYN-ACK has ECE alone.
        let setup = Flags::ECE | Flags::CWR;
        let accepts = self.config.ecn || self.config.ecn_passive && !self.active;
        self.ecn.on = accepts
            && if syn.flags.ack() {
                syn.flags.contains(Flags::ECE) && !syn.flags.contains(Flags::CWR)
            } else {
                syn.flags.contains(setup)
            };
        self.receive.peer_mss = u64::from(self.config.mss)
            .saturating_sub(self.send.options_len)
            .min(536);
        // RFC 7323 §2.2: "The window field in a segment where the SYN bit is set ... MUST NOT be scaled".
        self.send.wnd = u64::from(syn.window);
        self.send.max_wnd = self.send.wnd;
        (self.send.wl1, self.send.wl2) = (0, 0);
    }

    /// Both SYNs are acknowledged.
    pub(super) fn established(&mut self, now: Instant) {
        self.state = State::Established;
        self.timers.retransmit = None;
        self.backoff = 0;
        self.stalled_since = None;
        self.syn.due = false;
        (self.send.una, self.send.nxt, self.send.max) = (1, 1, 1);
        if let (Some(at), 1) = (self.syn.sent_at, self.syn.sent) {
            self.send.rtt.sample(now.since(at));
        } else if self.syn.sent > 1 && self.timestamps.is_none() {
            // RFC 5681 §3.1: "if the SYN or SYN/ACK is lost, the initial window used by a sender after a correctly transmitted
            // SYN MUST be one segment". With timestamps the lost SYN is told from a slow one; others keep the window too.
            self.send.congestion.cwnd = self.send.segment();
        }
        self.send.last_sent = now;
        self.restart_keepalive(now);
        if self.send.fin {
            self.state = State::FinWait1;
        }
    }

    /// A timer may be due: call at or after [`deadline`](Connection::deadline).
    pub fn on_timer(&mut self, now: Instant) -> Events {
        if self.state == State::Closed {
            return Events::NONE;
        }
        let mut events = Events::NONE;
        if expired(&mut self.timers.acknowledge, now) {
            self.owed.ack = true;
        }
        if expired(&mut self.timers.reorder, now) {
            self.timers.reorder = self.send.on_reordering_timer(now);
        }
        if expired(&mut self.timers.probe, now)
            && self.send.recovery.may_probe()
            && !self.send.board.is_empty()
        {
            self.owed.tail_probe = true;
            if expired(&mut self.timers.retransmit, now) {
                self.timers.retransmit = Some(now + self.send.rtt.rto(self.backoff));
            }
        }
        // The burst that is due goes out with the next `transmit`.
        expired(&mut self.timers.pace, now);
        if expired(&mut self.timers.persist, now) {
            events |= self.on_persist(now);
        }
        if expired(&mut self.timers.retransmit, now) {
            events |= self.on_retransmission_timeout(now);
        }
        if expired(&mut self.timers.keepalive, now) {
            events |= self.on_keepalive(now);
        }
        if expired(&mut self.timers.linger, now) {
            self.die();
            events |= Events::CLOSED;
        }
        events
    }

    fn on_retransmission_timeout(&mut self, now: Instant) -> Events {
        let handshake = matches!(self.state, State::SynSent | State::SynReceived);
        let limit = if handshake {
            self.config.syn_retries
        } else {
            self.config.retries
        };
        if !handshake && self.send.board.is_empty() {
            return Events::NONE;
        }
        self.unanswered += 1;
        if self.unanswered > limit || self.out_of_patience(now) {
            return self.give_up();
        }
        self.timeouts += 1;
        self.backoff += 1;
        self.timers.probe = None;
        self.timers.reorder = None;
        if handshake {
            self.syn.due = true;
        } else {
            let timestamps = self.timestamps.is_some();
            self.send.on_retransmission_timeout(timestamps);
            // Of a short flight the one segment counts: it too may be larger than the path.
            let head = self.send.segment().min(self.send.nxt - self.send.una);
            if let Some(mss) = self
                .send
                .path
                .on_timeout(head + self.send.options_len, self.key.remote.is_ipv4())
            {
                self.send.shrink_mss(now, mss);
            }
        }
        // RFC 6298 §5.6: "Start the retransmission timer, such that it expires after RTO seconds".
        self.timers.retransmit = Some(now + self.send.rtt.rto(self.backoff));
        Events::NONE
    }

    fn on_persist(&mut self, now: Instant) -> Events {
        self.unanswered += 1;
        if self.unanswered > self.config.retries.max(1) || self.out_of_patience(now) {
            return self.give_up();
        }
        // RFC 9293 §3.8.6.1: "The transmitting host SHOULD send the first zero-window probe when a zero window has existed
        // for the retransmission timeout period, and SHOULD increase exponentially the interval between successive probes."
        self.backoff += 1;
        self.owed.window_probe = true;
        Events::NONE
    }

    fn on_keepalive(&mut self, now: Instant) -> Events {
        let Some(keepalive) = self.config.keepalive else {
            return Events::NONE;
        };
        let silent = now.since(self.heard);
        if silent < keepalive.idle {
            self.timers.keepalive = Some(self.heard + keepalive.idle);
            return Events::NONE;
        }
        if !self.send.board.is_empty() || self.send.unsent() > 0 {
            // Other timers are finding out whether it lives.
            self.timers.keepalive = Some(now + keepalive.interval);
            return Events::NONE;
        }
        if self.keepalives >= keepalive.count {
            return self.give_up();
        }
        self.keepalives += 1;
        self.owed.keepalive_probe = true;
        self.timers.keepalive = Some(now + keepalive.interval);
        Events::NONE
    }

    fn out_of_patience(&self, now: Instant) -> bool {
        match (self.config.user_timeout, self.stalled_since) {
            (Some(patience), Some(since)) => now.since(since) >= patience,
            _ => false,
        }
    }

    /// RFC 9293 §3.8.3: "the connection is closed" when R2 is exceeded.
    fn give_up(&mut self) -> Events {
        self.die();
        Events::TIMED_OUT | Events::CLOSED
    }

    /// The state is CLOSED; only a reset that is owed may still go out.
    pub(super) fn die(&mut self) {
        self.state = State::Closed;
        self.timers = Timers::default();
        self.owed = Owed {
            reset: self.owed.reset,
            ..Owed::default()
        };
        self.syn.due = false;
    }

    /// Data goes out: shortly after data came it makes a conversation.
    pub(super) fn interactive(&mut self, now: Instant) {
        if self.bytes_in > 0 && now.since(self.data_in_at) < self.config.delayed_ack {
            self.quick_acks = 0;
            self.converses = true;
        }
    }

    /// A segment came: the peer lives.
    pub(super) fn hear(&mut self, now: Instant) {
        self.heard = now;
        if self.keepalives > 0 {
            self.keepalives = 0;
            self.restart_keepalive(now);
        }
    }

    fn restart_keepalive(&mut self, now: Instant) {
        self.timers.keepalive = self.config.keepalive.map(|keepalive| now + keepalive.idle);
    }

    /// An acknowledgement in answer to something dubious, within the budget of RFC 5961 §7.
    pub(super) fn challenge(&mut self, now: Instant) {
        let (since, sent) = &mut self.challenges;
        if now.since(*since) >= Duration::from_secs(1) {
            (*since, *sent) = (now, 0);
        }
        if *sent < CHALLENGES_PER_SECOND {
            *sent += 1;
            self.owed.ack = true;
        }
    }

    /// Sets the timers that follow from what is in flight and what waits. Called when either changed; `progress` says that
    /// the peer acknowledged something, which restarts the retransmission timer (RFC 6298 §5.3).
    pub(super) fn arm(&mut self, now: Instant, progress: bool) {
        if matches!(
            self.state,
            State::SynSent | State::SynReceived | State::TimeWait | State::Closed
        ) {
            return;
        }
        let rto = self.send.rtt.rto(self.backoff);
        if self.send.board.is_empty() {
            // RFC 6298 §5.2: "When all outstanding data has been acknowledged, turn off the retransmission timer."
            self.timers.retransmit = None;
            self.timers.probe = None;
            self.timers.reorder = None;
            if self.send.unsent() == 0 || self.send.next_new().is_some() {
                self.timers.persist = None;
            } else if self.timers.persist.is_none() && !self.owed.window_probe {
                self.stalled_since.get_or_insert(now);
                self.timers.persist = Some(now + rto);
            }
            return;
        }
        self.timers.persist = None;
        if progress || self.timers.retransmit.is_none() {
            self.timers.retransmit = Some(self.send.timeout(now, rto));
        }
    }

    /// Schedules a tail loss probe after new data or an acknowledgement: RFC 8985 §7.2, "PTO = 2 * SRTT; if FlightSize is one
    /// segment: PTO += TLP.max_ack_delay", and no later than the retransmission timeout.
    pub(super) fn arm_probe(&mut self, now: Instant) {
        let send = &self.send;
        let may = self.sack
            && send.recovery.may_probe()
            && !send.board.is_empty()
            && send.board.sacked() == 0;
        self.timers.probe = match (may, send.rtt.srtt(), self.timers.retransmit) {
            (true, Some(srtt), Some(timeout)) => {
                let lone = if send.in_flight() <= send.segment() {
                    PEER_DELAYED_ACK
                } else {
                    Duration::ZERO
                };
                // At the latest in the timeout's stead: it finds out as much and does not cost the window.
                Some((now + (srtt * 2 + lone).max(MIN_PROBE_TIMEOUT)).min(timeout))
            }
            _ => None,
        };
    }

    /// The earliest timer, if any runs.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.earliest()
    }

    /// How many *new* stream bytes, beyond those appended, the peer's window and the congestion window would let out now; 0
    /// before the handshake is done, after [`shut_write`](Connection::shut_write), and when the connection is over.
    ///
    /// It is at least 1 when the peer's window is zero and nothing is in flight or waits: append a record (if there is
    /// one), so that the window probe has a byte to carry.
    pub fn send_room(&self) -> usize {
        match self.state {
            State::Established | State::CloseWait if !self.send.fin => {
                usize::try_from(self.send.room()).unwrap_or(usize::MAX)
            }
            _ => 0,
        }
    }

    /// `n` bytes joined the end of the sealed stream. Bytes appended before the handshake is done wait for it.
    pub fn append(&mut self, n: usize) {
        debug_assert!(!self.send.fin, "bytes behind the FIN");
        if !self.send.fin {
            self.send.appended += n as u64;
        }
    }

    /// More bytes will be appended shortly: a last piece shorter than a segment waits for them while anything is in
    /// flight (it goes out when all is acknowledged, whatever was promised).
    pub fn set_more(&mut self, more: bool) {
        self.send.more = more;
    }

    /// Stream offset of the end of what was appended.
    pub fn appended(&self) -> u64 {
        self.send.appended
    }

    /// Stream offset below which everything is acknowledged: those bytes may be freed.
    pub fn acked(&self) -> u64 {
        self.send.una.saturating_sub(1).min(self.send.appended)
    }

    /// A FIN follows the last appended byte.
    pub fn shut_write(&mut self) {
        if self.send.fin {
            return;
        }
        self.send.fin = true;
        match self.state {
            State::Established => self.state = State::FinWait1,
            State::CloseWait => self.state = State::LastAck,
            // During the handshake the FIN waits; `established` moves on.
            _ => {}
        }
    }

    /// [`shut_write`](Connection::shut_write), and no reader is left: data that arrives from now on is answered by a
    /// reset, and FIN-WAIT-2 ends after [`Config::fin_wait`].
    pub fn close(&mut self) {
        self.shut_write();
        self.detached = true;
        if self.state == State::FinWait2 {
            self.timers.linger = Some(self.heard + self.config.fin_wait);
        }
    }

    /// Ends the connection at once: the next [`transmit`](Connection::transmit) yields a RST where RFC 9293 §3.10.5 wants one,
    /// and the state is CLOSED.
    pub fn abort(&mut self) {
        if matches!(
            self.state,
            State::SynReceived
                | State::Established
                | State::FinWait1
                | State::FinWait2
                | State::CloseWait
        ) {
            let nxt = if self.state == State::SynReceived {
                1
            } else {
                self.send.nxt
            };
            self.owed.reset = Some((self.send.iss.at(nxt), true));
        }
        self.die();
    }

    /// The next slice received in order.
    pub fn take_received(&mut self) -> Option<BytesMut> {
        self.receive.take()
    }

    /// The reader has taken `n` bytes out of what [`take_received`](Connection::take_received) gave: the window opens by
    /// that much. An update may be due: call [`transmit`](Connection::transmit).
    pub fn consumed(&mut self, n: usize) {
        self.receive.consumed(n);
        if n > 0 {
            self.consumed_now();
        }
    }

    /// There is more room than a moment ago.
    fn consumed_now(&mut self) {
        let reading = matches!(
            self.state,
            State::Established | State::FinWait1 | State::FinWait2
        );
        if reading && self.receive.update_due() {
            self.owed.ack = true;
        }
    }

    /// Bytes received that wait here: for their reader, or for the bytes before them.
    pub fn received_memory(&self) -> usize {
        self.receive.memory()
    }

    /// Memory is short (`None`: not any more). Meanwhile the window offered does not grow, but for a few segments to a reader that
    /// keeps up, and what a reader needs who cannot use what it has taken before so many bytes more have come.
    pub fn set_memory_pressure(&mut self, pressure: Option<u64>) {
        if self.receive.set_pressure(pressure) && pressure != Some(0) {
            self.consumed_now();
        }
    }

    /// The peer's FIN came and everything before it was taken: end of file.
    pub fn receive_closed(&self) -> bool {
        self.receive.closed()
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// The addresses.
    pub fn key(&self) -> FlowKey {
        self.key
    }

    /// A look inside.
    pub fn stats(&self) -> Stats {
        Stats {
            cwnd: self.send.congestion.cwnd,
            ssthresh: self.send.congestion.ssthresh,
            srtt: self.send.rtt.srtt(),
            rttvar: self.send.rtt.rttvar(),
            rto: self.send.rtt.rto(self.backoff),
            rwnd: self.send.wnd,
            in_flight: self.send.in_flight(),
            retransmits: self.retransmits,
            timeouts: self.timeouts,
            undone: self.send.recovery.undone,
            segments_in: self.segments_in,
            segments_out: self.segments_out,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            // Segments have at most 65,535 bytes.
            mss: self.send.segment() as u16,
        }
    }

    /// Switches Nagle's algorithm off (true) or on.
    pub fn set_nodelay(&mut self, nodelay: bool) {
        self.send.nodelay = nodelay;
    }

    /// Sets or clears keep-alive.
    pub fn set_keepalive(&mut self, keepalive: Option<KeepAlive>, now: Instant) {
        self.config.keepalive = keepalive;
        self.keepalives = 0;
        if !matches!(
            self.state,
            State::SynSent | State::SynReceived | State::TimeWait | State::Closed
        ) {
            self.restart_keepalive(now);
        }
    }

    /// The path's MTU is `mtu` bytes of IP packet: segments get no larger, until a probe ten minutes later finds that they
    /// may. What is in flight is taken for lost when its segments were larger, as they will not arrive.
    pub fn set_mtu(&mut self, mtu: u16, now: Instant) {
        let headers = if self.key.remote.is_ipv4() { 40 } else { 60 };
        let mss = u64::from(mtu.saturating_sub(headers))
            .max(64 + self.send.options_len)
            .min(u64::from(self.config.mss));
        if mss < self.send.mss {
            self.send.shrink_mss(now, mss);
        }
    }

    /// An ICMP error about this connection came, whose quoted sequence number the caller has checked with
    /// [`is_in_flight`](Connection::is_in_flight).
    ///
    /// RFC 5927 §4.1, §5.2: in a synchronised state even hard errors are treated as soft, as a blind attacker may send them;
    /// while opening, a hard one ends the attempt.
    pub fn on_icmp_unreachable(&mut self, error: Unreachable) -> Events {
        match (self.state, error) {
            (State::SynSent | State::SynReceived, Unreachable::Hard) => {
                self.die();
                Events::REFUSED | Events::CLOSED
            }
            _ => Events::NONE,
        }
    }

    /// Whether `seq` is of something sent and not acknowledged (SYN and FIN included): what an ICMP error must quote to be
    /// believed. RFC 5927 §4.1: "the TCP sequence number ... should be within the range of the data already sent but not yet
    /// acknowledged".
    pub fn is_in_flight(&self, seq: SeqNumber) -> bool {
        let offset = seq.unwrap_near(self.send.iss, self.send.una);
        offset >= self.send.una as i64 && offset < self.send.max as i64
    }

    /// What has to stay of a connection in TIME-WAIT.
    pub fn into_time_wait(&self) -> TimeWait {
        TimeWait {
            snd_nxt: self.send.iss.at(self.send.nxt),
            rcv_nxt: self.receive.irs.at(self.receive.nxt),
            // At most what the field can say.
            window: (self.receive.window() >> self.receive.scale).min(u64::from(u16::MAX)) as u16,
            timestamps: self.timestamps.map(|ts| (ts.recent, ts.offset)),
            deadline: self
                .timers
                .linger
                .unwrap_or(self.heard + self.config.time_wait),
            duration: self.config.time_wait,
        }
    }

    /// Whether loss recovery is under way.
    pub fn in_recovery(&self) -> bool {
        self.send.recovery.phase != Phase::Open
    }
}
