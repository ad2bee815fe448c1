//! A segment's way out: what is sent next, and its header.
//!
//! The order is: a reset; the SYN; acknowledgements that carry SACK blocks (they go alone, so that full segments stay full);
//! lost ranges; new data; probes; a bare acknowledgement, if nothing carried it.

use core::ops::Range;

use super::config::State;
use super::connection::Connection;
use super::options::{Options, SackBlocks};
use super::recovery::Phase;
use super::segment::{Cause, EcnCodepoint, Flags, Transmit};
use super::timestamp;
use crate::clock::Instant;

impl Connection {
    /// The next segment to send, or `None`. Call it until `None` after every event: a segment that came, a timer, bytes
    /// appended, consumed or shut.
    pub fn transmit(&mut self, now: Instant) -> Option<Transmit> {
        if let Some((seq, ack)) = self.owed.reset.take() {
            let mut reset = self.bare(now, Flags::RST);
            reset.seq = seq;
            if !ack {
                (reset.ack, reset.flags) = (None, Flags::RST);
            }
            reset.options = Options::default();
            self.segments_out += 1;
            return Some(reset);
        }
        match self.state {
            State::Closed => None,
            State::SynSent | State::SynReceived => self.transmit_syn(now),
            State::TimeWait => self.transmit_acknowledgement(now),
            State::FinWait2 => self
                .transmit_probe(now)
                .or_else(|| self.transmit_acknowledgement(now)),
            _ => {
                if self.owed.ack
                    && self.sack
                    && (self.receive.has_gap() || self.receive.has_dsack())
                {
                    return self.transmit_acknowledgement(now);
                }
                self.transmit_again(now)
                    .or_else(|| self.transmit_new(now))
                    .or_else(|| self.transmit_probe(now))
                    .or_else(|| {
                        // What could not go out now may need the persist timer.
                        self.arm(now, false);
                        self.transmit_acknowledgement(now)
                    })
            }
        }
    }

    fn transmit_syn(&mut self, now: Instant) -> Option<Transmit> {
        if !self.syn.due {
            if self.state == State::SynReceived && self.owed.ack {
                return self.transmit_acknowledgement(now);
            }
            return None;
        }
        self.syn.due = false;
        self.owed.ack = false;
        self.syn.sent += 1;
        let again = self.syn.sent > 1;
        self.syn.sent_at = Some(now);
        self.send.max = 1;
        self.segments_out += 1;
        self.retransmits += u64::from(again);
        self.stalled_since.get_or_insert(now);
        if self.timers.retransmit.is_none() {
            self.timers.retransmit = Some(now + self.send.rtt.rto(self.backoff));
        }
        let reply = self.state == State::SynReceived;
        let mut flags = Flags::SYN;
        let mut ack = None;
        if reply {
            flags |= Flags::ACK;
            ack = Some(self.receive.irs.at(self.receive.nxt));
            self.last_ack = self.receive.nxt;
        }
        if self.config.ecn && !reply && !again {
            flags |= Flags::ECE | Flags::CWR;
        } else if self.ecn.on && reply {
            flags |= Flags::ECE;
        }
        // RFC 7323 §2.2: "may be sent in an initial <SYN> segment ... It may also be sent in a <SYN,ACK> segment, but only if a
        // Window Scale option was received in the initial <SYN> segment". The others follow the same rule.
        let scaling = self.config.window_scaling && (!reply || self.peer_scales);
        let recent = self.timestamps.map_or(0, |ts| ts.recent);
        let timestamps = if reply {
            self.timestamps.is_some()
        } else {
            self.config.timestamps
        };
        Some(Transmit {
            seq: self.send.iss,
            ack,
            flags,
            window: self.receive.advertise(0),
            options: Options {
                mss: Some(self.config.mss),
                window_scale: scaling
                    .then(|| super::receive::window_scale(self.config.recv_buffer)),
                sack_permitted: if reply { self.sack } else { self.config.sack },
                sack: SackBlocks::EMPTY,
                timestamps: timestamps.then(|| (timestamp(self.ts_offset, now), recent)),
            },
            payload: 0..0,
            retransmission: again,
            cause: if again { Cause::Timeout } else { Cause::First },
            gso_size: 0,
            ecn: EcnCodepoint::NotEct,
        })
    }

    /// Lost ranges.
    fn transmit_again(&mut self, now: Instant) -> Option<Transmit> {
        let range = self.send.next_again()?;
        let head = range.start == self.send.una;
        if !self.send.recovery.force && self.holds_back(now) {
            return None;
        }
        self.send.path.on_sent_again(now, &range, self.send.mss);
        self.send.board.sent_again(range.clone(), now);
        self.send.recovery.force = false;
        let transmit = self.repeat(now, range);
        if head {
            // It has its round trip to come back before the timer calls it lost again.
            self.timers.retransmit = Some(now + self.send.rtt.rto(self.backoff));
        }
        Some(transmit)
    }

    /// Whether pacing holds data back now; its timer is set then.
    fn holds_back(&mut self, now: Instant) -> bool {
        self.timers.pace = self.send.paced_until(now);
        self.timers.pace.is_some()
    }

    /// The segment that carries `range`, sent before.
    fn repeat(&mut self, now: Instant, range: Range<u64>) -> Transmit {
        let tsval = self.timestamps.map(|ts| timestamp(ts.offset, now));
        self.send.count_sent(&range, Some(tsval));
        self.send.pace(now, range.end - range.start);
        self.send.last_sent = now;
        let transmit = self.carry(now, range, true);
        self.arm(now, false);
        transmit
    }

    /// New data, or the FIN.
    fn transmit_new(&mut self, now: Instant) -> Option<Transmit> {
        let (idle, rto) = (now.since(self.send.last_sent), self.send.rtt.rto(0));
        if self.send.board.is_empty() && idle > rto && self.send.unsent() > 0 {
            // Not zero: a timeout is longer than its floor.
            let timeouts = idle.as_nanos() / rto.as_nanos().max(1);
            self.send.congestion.on_idle(timeouts.min(32) as u32);
            self.send.last_sent = now;
        }
        if let Some((range, mss)) = self.send.path_probe(now) {
            self.send.path.sent(range.clone(), mss);
            let len = range.end - range.start;
            let mut probe = self.first(now, range);
            // One segment, at most as large as the ends agreed on.
            probe.gso_size = len as u16;
            return Some(probe);
        }
        let range = self.send.next_new()?;
        if !range.is_empty() && self.holds_back(now) {
            return None;
        }
        Some(self.first(now, range))
    }

    /// The segment that carries `range` for the first time.
    fn first(&mut self, now: Instant, range: Range<u64>) -> Transmit {
        let fin = self.send.fin && range.end == self.send.end();
        self.send.sent_new(&range, fin, now);
        self.send.pace(now, range.end - range.start);
        self.interactive(now);
        self.send.count_sent(&range, None);
        self.stalled_since.get_or_insert(now);
        self.owed.window_probe = false;
        if core::mem::take(&mut self.owed.tail_probe) {
            self.send.probe_sent(None);
        }
        self.arm(now, false);
        self.arm_probe(now);
        let mut transmit = self.carry(now, range.start..range.end + u64::from(fin), false);
        if self.ecn.on && !transmit.payload.is_empty() {
            // RFC 3168 §6.1.4, §6.1.5: new data is ECN-capable, bare acknowledgements and retransmissions are not.
            transmit.ecn = EcnCodepoint::Ect0;
            if self.send.cwr {
                transmit.flags |= Flags::CWR;
                self.send.cwr = false;
            }
        }
        transmit
    }

    fn transmit_probe(&mut self, now: Instant) -> Option<Transmit> {
        if core::mem::take(&mut self.owed.tail_probe)
            && self.send.recovery.may_probe()
            && !self.send.board.is_empty()
        {
            return Some(self.tail_probe(now));
        }
        if core::mem::take(&mut self.owed.window_probe)
            && self.send.unsent() > 0
            && self.send.board.is_empty()
        {
            return Some(self.window_probe(now));
        }
        if core::mem::take(&mut self.owed.keepalive_probe) {
            // RFC 1122 §4.2.3.6: "SEG.SEQ = SND.NXT-1 ... Such a segment generally does not contain any data".
            let mut probe = self.bare(now, Flags::NONE);
            probe.seq = self.send.iss.at(self.send.nxt.saturating_sub(1));
            self.acknowledged();
            self.segments_out += 1;
            return Some(probe);
        }
        None
    }

    /// RFC 8985 §7.3: new data if the peer's window has room, the last segment again if not.
    fn tail_probe(&mut self, now: Instant) -> Transmit {
        let segment = self.send.segment();
        let new = self.send.unsent().min(self.send.window_room()).min(segment);
        let mut transmit = if new > 0 {
            let at = self.send.nxt;
            let transmit = self.first(now, at..at + new);
            self.send.probe_sent(None);
            transmit
        } else {
            let range = self
                .send
                .board
                .tail(segment)
                .unwrap_or(self.send.una..self.send.nxt);
            self.send.board.sent_again(range.clone(), now);
            let transmit = self.repeat(now, range);
            self.send.probe_sent(Some(
                transmit.options.timestamps.map_or(0, |(tsval, _)| tsval),
            ));
            transmit
        };
        transmit.cause = Cause::TailProbe;
        self.timers.probe = None;
        // RFC 8985 §7.3: "the sender MUST ... re-arm the RTO timer" after the probe.
        self.timers.retransmit = Some(now + self.send.rtt.rto(self.backoff));
        transmit
    }

    /// What a small window holds, or one byte into a closed one. The byte is not counted as sent: if the peer takes it, its
    /// acknowledgement says so.
    fn window_probe(&mut self, now: Instant) -> Transmit {
        let at = self.send.nxt;
        let fits = self.send.unsent().min(self.send.window_room());
        if fits > 0 {
            let mut transmit = self.first(now, at..at + fits.min(self.send.segment()));
            transmit.cause = Cause::WindowProbe;
            return transmit;
        }
        self.send.max = self.send.max.max(at + 1);
        let again = self.unanswered > 1;
        let mut transmit = self.carry(now, at..at + 1, again);
        transmit.cause = Cause::WindowProbe;
        self.timers.persist = Some(now + self.send.rtt.rto(self.backoff));
        transmit
    }

    /// A segment with the sequence range `range` (the FIN counts as a byte).
    fn carry(&mut self, now: Instant, range: Range<u64>, again: bool) -> Transmit {
        let end = self.send.end();
        // Offset 1 is stream byte 0.
        let payload = range.start - 1..range.end.min(end) - 1;
        let mut flags = Flags::NONE;
        if range.end >= end && !payload.is_empty() {
            flags |= Flags::PSH;
        }
        if range.end > end {
            flags |= Flags::FIN;
        }
        let mut transmit = self.bare(now, flags);
        transmit.seq = self.send.iss.at(range.start);
        transmit.retransmission = again;
        transmit.cause = match self.send.recovery.phase {
            _ if !again => Cause::First,
            Phase::Loss => Cause::Timeout,
            Phase::Open | Phase::Recovery { .. } => Cause::Fast,
        };
        let len = payload.end - payload.start;
        let segments = len.div_ceil(self.send.segment()).max(1);
        transmit.payload = payload;
        self.acknowledged();
        self.segments_out += segments;
        self.bytes_out += len;
        self.retransmits += if again { segments } else { 0 };
        transmit
    }

    /// An acknowledgement without data, if one is owed.
    fn transmit_acknowledgement(&mut self, now: Instant) -> Option<Transmit> {
        if !self.owed.ack {
            return None;
        }
        let mut transmit = self.bare(now, Flags::NONE);
        if self.sack {
            // RFC 2018 §3: "a SACK option that specifies n blocks will have a length of 8*n+2 bytes, so the 40 bytes available
            // for TCP options can specify a maximum of 4 blocks", three beside timestamps.
            let room = if self.timestamps.is_some() { 3 } else { 4 };
            transmit.options.sack = self.receive.sack_blocks(room);
        }
        self.acknowledged();
        self.segments_out += 1;
        Some(transmit)
    }

    /// A segment that carries RCV.NXT goes out: nothing is owed any more.
    fn acknowledged(&mut self) {
        self.owed.ack = false;
        self.timers.acknowledge = None;
        self.last_ack = self.receive.nxt;
    }

    /// A segment at SND.NXT with an acknowledgement and no payload.
    fn bare(&mut self, now: Instant, flags: Flags) -> Transmit {
        let mut flags = flags | Flags::ACK;
        if self.ecn.echo {
            flags |= Flags::ECE;
        }
        let scale = self.receive.scale;
        Transmit {
            // RFC 9293 §3.4: SND.NXT is behind our SYN as soon as that is sent.
            seq: self.send.iss.at(self.send.nxt.max(self.send.max.min(1))),
            ack: Some(self.receive.irs.at(self.receive.nxt)),
            flags,
            window: self.receive.advertise(scale),
            options: Options {
                timestamps: self
                    .timestamps
                    .map(|ts| (timestamp(ts.offset, now), ts.recent)),
                ..Options::default()
            },
            payload: 0..0,
            retransmission: false,
            cause: Cause::First,
            // Segments have at most 65,535 bytes.
            gso_size: self.send.segment() as u16,
            ecn: EcnCodepoint::NotEct,
        }
    }
}
