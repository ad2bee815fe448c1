//! A segment's way in: RFC 9293 §3.10.7, in its order, with the checks that RFC 7323 (timestamps) and RFC 5961 (blind
//! attacks) put in front.

use core::time::Duration;

use bytes::{Buf, BytesMut};

use super::config::{Events, State};
use super::connection::Connection;
use super::segment::Segment;
use super::send::Acknowledgement;
use super::time_wait::TimeWaitAnswer;
use super::{Flags, timestamp};
use crate::clock::Instant;

/// RFC 7323 §5.5: a TS.Recent older than this says nothing, as the peer's clock may have wrapped.
const TS_RECENT_VALID: Duration = Duration::from_secs(24 * 24 * 3600);

impl Connection {
    /// A segment for this connection came; `payload` is what lies behind its header (at most a super-segment of 64 KiB)
    /// and is kept as it is. Then call [`transmit`](Connection::transmit).
    pub fn on_segment(&mut self, now: Instant, segment: &Segment, payload: BytesMut) -> Events {
        self.segments_in += 1;
        match self.state {
            State::Closed => Events::NONE,
            State::SynSent => self.in_syn_sent(now, segment),
            State::TimeWait => self.in_time_wait(now, segment),
            _ => self.in_synchronised(now, segment, payload),
        }
    }

    /// RFC 9293 §3.10.7.3.
    fn in_syn_sent(&mut self, now: Instant, segment: &Segment) -> Events {
        let flags = segment.flags;
        let acceptable = flags.ack() && self.send.max == 1 && segment.ack == self.send.iss.at(1);
        if flags.ack() && !acceptable {
            // "If SEG.ACK =< ISS or SEG.ACK > SND.NXT, send a reset (unless the RST bit is set ...) <SEQ=SEG.ACK><CTL=RST>".
            if !flags.rst() {
                self.owed.reset = Some((segment.ack, false));
            }
            return Events::NONE;
        }
        if flags.rst() {
            // "If the ACK was acceptable, then signal to the user 'error: connection reset', drop the segment, enter CLOSED".
            if !acceptable {
                return Events::NONE;
            }
            self.die();
            return Events::REFUSED | Events::CLOSED;
        }
        if !flags.syn() {
            return Events::NONE;
        }
        self.take_syn(now, segment);
        self.unanswered = 0;
        if !acceptable {
            // Simultaneous open: "Otherwise, enter SYN-RECEIVED, form a SYN,ACK segment and send it". Data on the SYN is not taken;
            // it comes again.
            self.state = State::SynReceived;
            self.syn.due = true;
            return Events::NONE;
        }
        self.established(now);
        self.owed.ack = true;
        Events::ESTABLISHED
    }

    fn in_time_wait(&mut self, now: Instant, segment: &Segment) -> Events {
        let mut time_wait = self.into_time_wait();
        if let TimeWaitAnswer::Send(_) = time_wait.on_segment(now, segment) {
            self.owed.ack = true;
        }
        self.timers.linger = Some(time_wait.deadline());
        Events::NONE
    }

    /// RFC 9293 §3.10.7.4.
    fn in_synchronised(
        &mut self,
        now: Instant,
        segment: &Segment,
        mut payload: BytesMut,
    ) -> Events {
        let mut flags = segment.flags;
        let mut seq = segment.seq.unwrap_near(self.receive.irs, self.receive.nxt);
        if self.state == State::SynReceived && flags.syn() && seq == 0 && !flags.rst() {
            if !flags.ack() {
                // The peer's SYN again: ours, or its acknowledgement, was lost.
                self.syn.due = true;
                return Events::NONE;
            }
            // Simultaneous open: the peer's SYN,ACK repeats the SYN we know; what is left is an acknowledgement.
            flags = Flags::from_bits(flags.bits() & !Flags::SYN.bits());
            seq = 1;
        }
        if !flags.rst() && !self.timestamp_acceptable(now, segment) {
            return Events::NONE;
        }

        // First, the sequence number.
        let len = payload.len() as i64 + i64::from(flags.fin()) + i64::from(flags.syn());
        let (nxt, window) = (self.receive.nxt as i64, self.receive.window() as i64);
        let in_window = |at: i64| at >= nxt && at < nxt + window;
        let acceptable = match (len, window) {
            (0, 0) => seq == nxt,
            (0, _) => in_window(seq) || seq == nxt,
            // "If the RCV.WND is zero, no segments will be acceptable, but special allowance should be made to accept valid ACKs,
            // URGs, and RSTs": the text is cut off below.
            (_, 0) => seq == nxt,
            _ => in_window(seq) || in_window(seq + len - 1) || (seq <= nxt && seq + len > nxt),
        };
        if !acceptable {
            // "If an incoming segment is not acceptable, an acknowledgment should be sent in reply (unless the RST bit is set".
            if !flags.rst() {
                self.refuse(now, seq, payload);
            }
            return Events::NONE;
        }
        self.hear(now);

        // Second, RST.
        if flags.rst() {
            // RFC 5961 §3.2: "If the RST bit is set and the sequence number exactly matches the next expected sequence number
            // (RCV.NXT), then TCP MUST reset the connection ... does not exactly match ..., yet is within the current receive window,
            // TCP MUST send an acknowledgment (challenge ACK)".
            if seq != nxt {
                self.challenge(now);
                return Events::NONE;
            }
            let refused = self.state == State::SynReceived && self.active;
            self.die();
            return Events::CLOSED
                | if refused {
                    Events::REFUSED
                } else {
                    Events::RESET
                };
        }
        // Fourth, SYN. RFC 5961 §4.2: "If the SYN bit is set, irrespective of the sequence number, TCP MUST send an ACK (also
        // referred to as challenge ACK)".
        if flags.syn() {
            self.challenge(now);
            return Events::NONE;
        }
        // Fifth, ACK: "if the ACK bit is off, drop the segment and return".
        if !flags.ack() {
            return Events::NONE;
        }
        let mut events = Events::NONE;
        let ack = segment.ack.unwrap_near(self.send.iss, self.send.una);
        if self.state == State::SynReceived {
            // "If SND.UNA < SEG.ACK =< SND.NXT, then enter ESTABLISHED state ... If the segment acknowledgment is not acceptable,
            // form a reset segment <SEQ=SEG.ACK><CTL=RST> and send it."
            if ack != 1 {
                self.owed.reset = Some((segment.ack, false));
                return Events::NONE;
            }
            self.unanswered = 0;
            self.established(now);
            self.send.wnd = u64::from(segment.window) << self.send.scale;
            self.send.max_wnd = self.send.max_wnd.max(self.send.wnd);
            events |= Events::ESTABLISHED;
        }
        self.take_timestamp(now, segment, seq);
        // RFC 5961 §5.2: "((SND.UNA - MAX.SND.WND) <= SEG.ACK <= SND.NXT). All incoming segments whose ACK value doesn't satisfy the
        // above condition MUST be discarded and an ACK sent back."
        if ack > self.send.max as i64
            || ack < self.send.una as i64 - self.send.max_wnd.max(65_535) as i64
        {
            self.challenge(now);
            return events;
        }
        events |=
            self.take_acknowledgement(now, segment, ack, seq, payload.is_empty() && !flags.fin());
        if self.state == State::Closed {
            return events;
        }

        // Seventh, the text, cut to the window.
        if self.ecn.on {
            // RFC 3168 §6.1.3: echo until CWR; a segment with both begins anew.
            if flags.contains(Flags::CWR) {
                self.ecn.echo = false;
            }
            if segment.ecn_ce {
                self.ecn.echo = true;
                self.owed.ack = true;
            }
        }
        let mut fin = flags.fin();
        let right = nxt + window;
        if seq + payload.len() as i64 > right {
            // Not negative: an acceptable segment starts before the window's end, or at it with nothing left.
            payload.truncate((right - seq).max(0) as usize);
            fin = false;
            self.owed.ack = true;
        }
        let receiving = matches!(
            self.state,
            State::Established | State::FinWait1 | State::FinWait2
        );
        if !payload.is_empty() && receiving {
            if self.detached && seq + payload.len() as i64 > nxt {
                // RFC 1122 §4.2.2.13: "if such a host issues a CLOSE call while received data is still pending in TCP, or if new data is
                // received after CLOSE is called, its TCP SHOULD send a RST to show that data was lost."
                self.abort();
                return events | Events::RESET | Events::CLOSED;
            }
            events |= self.take_text(now, seq, payload);
        } else if !payload.is_empty() {
            self.owed.ack = true;
        }
        // Eighth, FIN.
        if fin {
            let at = seq + len - 1;
            if receiving && at >= self.receive.nxt as i64 {
                self.receive.fin = Some(at as u64);
            }
            self.owed.ack = true;
        }
        if receiving && self.receive.fin == Some(self.receive.nxt) {
            self.receive.nxt += 1;
            events |= self.take_fin(now);
        }
        events
    }

    /// A segment outside the window: an acknowledgement tells the peer what we expect. Old data is a lost acknowledgement's
    /// doing and is answered always, as is a probe of a closed window; bare acknowledgements share a budget, so that two
    /// confused ends cannot keep each other busy.
    fn refuse(&mut self, now: Instant, seq: i64, payload: BytesMut) {
        if payload.is_empty() {
            self.challenge(now);
            return;
        }
        if let Ok(seq) = u64::try_from(seq)
            && seq + payload.len() as u64 <= self.receive.nxt
        {
            // Entirely old: reported as a duplicate (RFC 2883).
            self.receive.insert(seq, payload);
        }
        self.owed.ack = true;
    }

    /// PAWS, RFC 7323 §5.3 R1: "If there is a Timestamps option in the arriving segment, SEG.TSval < TS.Recent, TS.Recent is valid
    /// ..., and the RST bit is not set, then treat the arriving segment as not acceptable: Send an acknowledgment in reply ... drop
    /// the segment." And §3.2: "if a non-<RST> segment is received without a TSopt, an endpoint SHOULD silently drop the segment".
    fn timestamp_acceptable(&mut self, now: Instant, segment: &Segment) -> bool {
        let Some(ts) = self.timestamps else {
            return true;
        };
        let Some((tsval, _)) = segment.options.timestamps else {
            return false;
        };
        let old =
            (tsval.wrapping_sub(ts.recent) as i32) < 0 && now.since(ts.recent_at) < TS_RECENT_VALID;
        if old {
            self.challenge(now);
        }
        !old
    }

    /// RFC 7323 §4.3: "If SEG.TSval >= TS.Recent and SEG.SEQ <= Last.ACK.sent, then SEG.TSval is copied to TS.Recent".
    fn take_timestamp(&mut self, now: Instant, segment: &Segment, seq: i64) {
        let (Some(ts), Some((tsval, _))) = (&mut self.timestamps, segment.options.timestamps)
        else {
            return;
        };
        if seq <= self.last_ack as i64 {
            ts.recent = tsval;
            ts.recent_at = now;
        }
    }

    /// The acknowledgement and the window of an acceptable segment.
    fn take_acknowledgement(
        &mut self,
        now: Instant,
        segment: &Segment,
        ack: i64,
        seq: i64,
        bare: bool,
    ) -> Events {
        let mut events = Events::NONE;
        let acked_before = self.acked();
        // Not negative: at least SND.UNA when it counts.
        let ack = ack.max(0) as u64;
        let old = ack < self.send.una;
        let window = u64::from(segment.window) << self.send.scale;
        let seq = seq.max(0) as u64;
        let window_before = self.send.wnd;
        if !old {
            // RFC 9293: "If SND.WL1 < SEG.SEQ or (SND.WL1 = SEG.SEQ and SND.WL2 =< SEG.ACK), set SND.WND <- SEG.WND".
            if self.send.wl1 < seq || (self.send.wl1 == seq && self.send.wl2 <= ack) {
                self.send.wnd = window;
                self.send.max_wnd = self.send.max_wnd.max(window);
                (self.send.wl1, self.send.wl2) = (seq, ack);
            }
        }
        if old {
            return events;
        }
        // RFC 5681 §2: a duplicate acknowledgement has outstanding data, no data, no SYN or FIN, the same number and window.
        let duplicate =
            bare && ack == self.send.una && window == window_before && !self.send.board.is_empty();
        let echo = match (self.timestamps, segment.options.timestamps) {
            (Some(ts), Some((_, tsecr))) => Some((tsecr, ts.offset)),
            _ => None,
        };
        let echo_rtt = echo.and_then(|(tsecr, offset)| {
            let elapsed = timestamp(offset, now).wrapping_sub(tsecr);
            (elapsed < 1 << 20).then(|| Duration::from_millis(u64::from(elapsed)))
        });
        let blocks = if self.sack {
            segment.options.sack.as_slice()
        } else {
            &[]
        };
        let acked = self.send.on_ack(&Acknowledgement {
            now,
            ack,
            blocks,
            duplicate,
            echo,
            echo_rtt,
            sack: self.sack,
            ece: self.ecn.on && segment.flags.contains(Flags::ECE),
        });
        self.timers.reorder = acked.look_again;
        if acked.advanced {
            self.backoff = 0;
            self.unanswered = 0;
            self.stalled_since = (!self.send.board.is_empty()).then_some(now);
        } else if self.send.board.is_empty() || self.send.wnd == 0 {
            // RFC 1122 §4.2.2.17: "A TCP MAY keep its offered receive window closed indefinitely. As long as the receiving TCP
            // continues to send acknowledgments in response to the probe segments, the sending TCP MUST allow the connection to stay
            // open."
            self.unanswered = 0;
            if self.send.window_room() > 0 && self.send.board.is_empty() {
                self.backoff = 0;
                self.timers.persist = None;
                self.stalled_since = None;
            }
        }
        if !self.send.board.is_empty() || acked.advanced {
            self.arm(now, acked.advanced);
            self.arm_probe(now);
        }
        if self.acked() > acked_before {
            events |= Events::ACKED;
        }
        if self.send.fin_acked() {
            match self.state {
                State::FinWait1 => {
                    self.state = State::FinWait2;
                    if self.detached {
                        self.timers.linger = Some(now + self.config.fin_wait);
                    }
                }
                State::Closing => events |= self.enter_time_wait(now),
                State::LastAck => {
                    self.die();
                    events |= Events::CLOSED;
                }
                _ => {}
            }
        }
        events
    }

    /// Stream bytes from offset `seq` on, and when to acknowledge them.
    ///
    /// RFC 9293 §3.8.6.3: "an ACK SHOULD be generated for at least every second full-sized segment"; a super-segment is as
    /// many as it holds. RFC 5681 §4.2: "Out-of-order data segments SHOULD be acknowledged immediately ... also ... when it
    /// receives a data segment that fills in all or part of a gap".
    fn take_text(&mut self, now: Instant, seq: i64, mut payload: BytesMut) -> Events {
        if seq < 1 {
            // The SYN's own number lies before the stream.
            payload.advance(((1 - seq) as usize).min(payload.len()));
        }
        let own = u64::from(self.config.mss).saturating_sub(self.send.options_len);
        self.receive.peer_mss = self.receive.peer_mss.max((payload.len() as u64).min(own));
        if now.since(self.data_in_at) > self.send.rtt.rto(0) && !self.converses {
            // The peer's window may have shrunk meanwhile.
            self.quick_acks = self.config.quick_acks;
        }
        self.data_in_at = now;
        let inserted = self.receive.insert(seq.max(1) as u64, payload);
        self.bytes_in += inserted.in_order;
        self.receive.tune(now, self.send.rtt.srtt());
        let two_segments = self.receive.nxt - self.last_ack >= 2 * self.receive.peer_mss;
        if inserted.out_of_order || inserted.duplicate {
            // The peer recovers: it needs every acknowledgement.
            self.quick_acks = self.config.quick_acks;
        }
        if two_segments || inserted.out_of_order || inserted.duplicate || self.quick_acks > 0 {
            self.quick_acks = self.quick_acks.saturating_sub(1);
            self.owed.ack = true;
        } else if self.timers.acknowledge.is_none() {
            self.timers.acknowledge = Some(now + self.config.delayed_ack);
        }
        if inserted.in_order > 0 {
            Events::READABLE
        } else {
            Events::NONE
        }
    }

    /// The peer's FIN is next in order.
    fn take_fin(&mut self, now: Instant) -> Events {
        self.owed.ack = true;
        Events::PEER_FIN
            | match self.state {
                State::Established => {
                    self.state = State::CloseWait;
                    if self.send.fin {
                        self.state = State::LastAck;
                    }
                    Events::NONE
                }
                State::FinWait1 => {
                    // Its acknowledgement, had it come along, would have moved us to FIN-WAIT-2 already.
                    self.state = State::Closing;
                    Events::NONE
                }
                State::FinWait2 => self.enter_time_wait(now),
                _ => Events::NONE,
            }
    }

    fn enter_time_wait(&mut self, now: Instant) -> Events {
        self.state = State::TimeWait;
        let owed_ack = self.owed.ack;
        self.timers = Default::default();
        self.owed.ack = owed_ack;
        self.timers.linger = Some(now + self.config.time_wait);
        Events::TIME_WAIT
    }

    /// Whether the retained receive queue still holds something for the reader.
    pub fn has_received(&self) -> bool {
        self.receive.readable()
    }
}
