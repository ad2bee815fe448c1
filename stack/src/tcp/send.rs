//! The sending half: sequence variables, the peer's window, and what may go out next.
//!
//! Offsets are 64-bit sequence offsets: 0 our SYN, 1 the stream's first byte, 1 + appended the FIN.

use core::ops::Range;
use core::time::Duration;

use super::config::Config;
use super::congestion::{Ack, Congestion};
use super::pacing::{Pacing, Rate};
use super::path_mtu::PathMtu;
use super::recovery::{AckInfo, Phase, Recovery};
use super::rtt::RttEstimator;
use super::scoreboard::{Delivery, Scoreboard};
use super::seq::SeqNumber;
use crate::clock::Instant;

/// The longest payload of a super-segment: 65,535 less the largest IP and TCP headers.
const MAX_SUPER: u64 = 65_535 - 40 - 60;

/// RFC 7765 §4, rrthresh.
const RESTART_THRESHOLD: u64 = 4;

/// State of the sending half.
#[derive(Debug)]
pub(super) struct Send {
    pub(super) iss: SeqNumber,
    /// SND.UNA.
    pub(super) una: u64,
    /// SND.NXT.
    pub(super) nxt: u64,
    /// The highest offset the peer may acknowledge: SND.NXT, or one more while a window probe's byte is out.
    pub(super) max: u64,
    /// SND.WND in bytes, and the largest it ever was.
    pub(super) wnd: u64,
    pub(super) max_wnd: u64,
    /// SND.WL1 and SND.WL2.
    pub(super) wl1: u64,
    pub(super) wl2: u64,
    /// Shift of the window field we receive.
    pub(super) scale: u8,
    /// Stream bytes appended, and whether a FIN follows them.
    pub(super) appended: u64,
    pub(super) fin: bool,
    pub(super) more: bool,
    pub(super) nodelay: bool,
    /// Segment size agreed on, and what the options of every segment take of it.
    pub(super) mss: u64,
    pub(super) options_len: u64,
    pub(super) max_gso: u64,
    pub(super) board: Scoreboard,
    pub(super) congestion: Congestion,
    pub(super) recovery: Recovery,
    pub(super) rtt: RttEstimator,
    /// Congestion window reduced: to be told to the peer with the next new data (RFC 3168 §6.1.2).
    pub(super) cwr: bool,
    /// The most that was in flight in this round and in the last, and where the round ends.
    peak: u64,
    last_peak: u64,
    round_end: u64,
    pub(super) last_sent: Instant,
    /// `None`: off.
    pacing: Option<Pacing>,
    pub(super) path: PathMtu,
}

/// An acceptable acknowledgement.
pub(super) struct Acknowledgement<'a> {
    pub(super) now: Instant,
    /// The offset it acknowledges, within what it may.
    pub(super) ack: u64,
    pub(super) blocks: &'a [(SeqNumber, SeqNumber)],
    /// It is a duplicate as RFC 5681 §2 defines it.
    pub(super) duplicate: bool,
    /// TSecr and the offset of our timestamps, and the round trip that the two mean.
    pub(super) echo: Option<(u32, u32)>,
    pub(super) echo_rtt: Option<Duration>,
    /// SACK is agreed on.
    pub(super) sack: bool,
    /// The peer echoes congestion.
    pub(super) ece: bool,
}

/// What an acknowledgement did.
pub(super) struct Acked {
    /// SND.UNA moved.
    pub(super) advanced: bool,
    /// When to look for losses again.
    pub(super) look_again: Option<Instant>,
}

impl Send {
    pub(super) fn new(config: &Config, iss: SeqNumber, now: Instant) -> Send {
        let mss = u64::from(config.mss);
        Send {
            iss,
            una: 0,
            nxt: 0,
            max: 0,
            wnd: 0,
            max_wnd: 0,
            wl1: 0,
            wl2: 0,
            scale: 0,
            appended: 0,
            fin: false,
            more: false,
            nodelay: config.nodelay,
            mss,
            options_len: 0,
            // A device without offload is told by a `max_gso` of one segment; a peer with smaller ones does not change that.
            max_gso: if config.max_gso <= usize::from(config.mss) {
                0
            } else {
                config.max_gso as u64
            },
            board: Scoreboard::default(),
            congestion: Congestion::new(config.congestion, config.initial_window, mss),
            recovery: Recovery::new(),
            rtt: RttEstimator::new(config.initial_rto, config.rto_min, config.rto_max),
            cwr: false,
            peak: 0,
            last_peak: 0,
            round_end: 0,
            last_sent: now,
            pacing: config.pacing.then(Pacing::default),
            path: PathMtu::new(mss),
        }
    }

    /// Segments have another size from now on.
    pub(super) fn set_mss(&mut self, mss: u64) {
        let old = self.segment();
        self.mss = mss;
        self.congestion.on_mss_change(old, self.segment());
    }

    /// The path carries no larger segments than `mss`: what is in flight is taken for lost, as its segments were larger.
    pub(super) fn shrink_mss(&mut self, now: Instant, mss: u64) {
        self.path.lowered(now);
        self.set_mss(mss);
        self.board.lose_all();
        self.recovery.force = true;
    }

    /// New bytes for a larger segment that finds out whether the path carries it, and the size it stands for. Only when
    /// enough follows it to tell at once whether it arrived.
    pub(super) fn path_probe(&self, now: Instant) -> Option<(Range<u64>, u64)> {
        let mss = self.path.candidate(now, self.mss)?;
        let payload = mss - self.options_len;
        let with_rest = payload + 4 * self.segment();
        let room = self.unsent().min(self.window_room()).min(self.cwnd_room());
        let fits = room >= with_rest && self.recovery.phase == Phase::Open;
        fits.then(|| (self.nxt..self.nxt + payload, mss))
    }

    /// Whether nothing but a probe of the path is lost.
    pub(super) fn only_a_probe_is_lost(&mut self) -> bool {
        let lost = self.board.lost();
        let first = self.board.next_lost(lost);
        first.is_some_and(|range| range.end - range.start == lost && self.path.is_probe(&range))
    }

    /// Payload of a full segment.
    pub(super) fn segment(&self) -> u64 {
        self.mss - self.options_len
    }

    /// Payload of the largest super-segment, or paced burst: whole segments.
    fn super_segment(&self) -> u64 {
        let segment = self.segment();
        let burst = self.rate().map_or(u64::MAX, |rate| rate.burst(segment));
        (self.max_gso.min(MAX_SUPER).min(burst) / segment).max(1) * segment
    }

    /// What is paced is paced at this rate.
    fn rate(&self) -> Option<Rate> {
        self.pacing?;
        // The first flight is for the path to bear, as everywhere.
        if self.nxt <= self.congestion.initial_window() {
            return None;
        }
        let window = self.congestion.cwnd.max(self.in_flight());
        // An initial window may go at once from anywhere, so it may from here.
        if window <= self.congestion.initial_window() {
            return None;
        }
        let doubling = self.congestion.cwnd < self.congestion.ssthresh / 2;
        Rate::new(window, doubling, self.rtt.srtt()?, self.rtt.min_rtt()?)
    }

    /// Until when pacing holds back what the windows let out, if it does.
    pub(super) fn paced_until(&self, now: Instant) -> Option<Instant> {
        self.rate()?;
        self.pacing?.blocked(now)
    }

    /// `bytes` of the stream went out.
    pub(super) fn pace(&mut self, now: Instant, bytes: u64) {
        if let Some(rate) = self.rate()
            && let Some(pacing) = &mut self.pacing
        {
            pacing.sent(now, bytes, rate);
        }
    }

    /// End of the stream's bytes, the FIN's offset if there is one.
    pub(super) fn end(&self) -> u64 {
        1 + self.appended
    }

    /// Stream bytes that were appended and never sent.
    pub(super) fn unsent(&self) -> u64 {
        self.end().saturating_sub(self.nxt)
    }

    pub(super) fn fin_sent(&self) -> bool {
        self.nxt > self.end()
    }

    pub(super) fn fin_acked(&self) -> bool {
        self.fin && self.una > self.end()
    }

    /// Bytes of the peer's window not used yet.
    pub(super) fn window_room(&self) -> u64 {
        (self.una + self.wnd).saturating_sub(self.nxt)
    }

    /// When to time out. RFC 7765 §4: with fewer than four segments out and nothing to follow them, duplicates will not come
    /// to tell of a loss, so the timer runs from when the oldest of them was sent, not from the last acknowledgement.
    pub(super) fn timeout(&self, now: Instant, rto: Duration) -> Instant {
        let few = self.nxt - self.una < RESTART_THRESHOLD * self.segment() && self.unsent() == 0;
        self.board
            .oldest_at()
            .filter(|_| few)
            .map(|at| at + rto)
            .filter(|at| *at > now)
            .unwrap_or(now + rto)
    }

    /// See [`Connection::send_room`](super::Connection::send_room).
    pub(super) fn room(&self) -> u64 {
        let unsent = self.unsent();
        let by_window = self.window_room().saturating_sub(unsent);
        let by_cwnd = self.cwnd_room().saturating_sub(self.board.lost() + unsent);
        let room = by_window.min(by_cwnd);
        if room == 0 && self.wnd == 0 && unsent == 0 && self.board.is_empty() {
            1
        } else {
            room
        }
    }

    /// The peer acknowledged something, or reports what it holds.
    pub(super) fn on_ack(&mut self, given: &Acknowledgement<'_>) -> Acked {
        let (now, ack) = (given.now, given.ack);
        let prior_in_flight = self.in_flight();
        let min_rtt = self.rtt.min_rtt().unwrap_or_default();
        let mut delivery = Delivery::new(now, min_rtt, given.echo);
        let advanced = ack.saturating_sub(self.una);
        if advanced > 0 {
            self.board.acknowledge(ack, &mut delivery);
            self.path.on_progress();
            if let Some(mss) = self.path.on_acknowledged(now, ack) {
                self.set_mss(mss);
            }
            self.una = ack;
            self.nxt = self.nxt.max(ack);
            self.max = self.max.max(ack);
        }
        let dsack = self.take_blocks(given.blocks, &mut delivery);
        let rtt = delivery.sent_once_at.map(|at| now.since(at));
        if let Some(rtt) = rtt {
            self.rtt.sample(rtt);
        } else if advanced > 0
            && let Some(rtt) = given.echo_rtt
        {
            self.rtt.sample_coarse(rtt);
        }
        let before = self.recovery.phase;
        let look_again = self.recover(&AckInfo {
            now,
            delivery: &delivery,
            advanced,
            duplicate: given.duplicate && delivery.sacked == 0,
            dsack,
            tsecr: given.echo.map(|(tsecr, _)| tsecr),
            sack_permitted: given.sack,
            prior_in_flight,
            ece: given.ece,
        });
        // What recovery delivered is no sign that the path bears more.
        let recovering = |phase| matches!(phase, Phase::Recovery { .. });
        if delivery.bytes > 0 && !recovering(before) && !recovering(self.recovery.phase) {
            let cwnd_limited = self.cwnd_limited() || before == Phase::Loss;
            self.congestion.on_ack(Ack {
                now,
                delivered: delivery.bytes,
                mss: self.segment(),
                srtt: self.rtt.srtt().unwrap_or_default(),
                rtt,
                snd_una: self.una,
                snd_nxt: self.nxt,
                cwnd_limited,
            });
        }
        if self.una >= self.round_end {
            self.round_end = self.nxt;
            self.last_peak = self.peak;
            self.peak = self.in_flight();
        }
        Acked {
            advanced: advanced > 0,
            look_again,
        }
    }

    /// Marks what SACK blocks say the peer holds; returns the range that it got twice, if it says so.
    fn take_blocks(
        &mut self,
        blocks: &[(SeqNumber, SeqNumber)],
        delivery: &mut Delivery,
    ) -> Option<Range<u64>> {
        let mut dsack: Option<Range<u64>> = None;
        for (index, &(left, right)) in blocks.iter().enumerate() {
            let left = left.unwrap_near(self.iss, self.una);
            let right = right.unwrap_near(self.iss, self.una);
            let (Ok(left), Ok(right)) = (u64::try_from(left), u64::try_from(right)) else {
                continue;
            };
            if left >= right {
                continue;
            }
            // RFC 2883 §4: a first block that lies below the acknowledgement, or within the second block, is what arrived twice.
            if index == 0 && right <= self.una {
                dsack = Some(left..right);
            } else if index == 0
                && let Some(&(outer_left, outer_right)) = blocks.get(1)
                && outer_left.unwrap_near(self.iss, self.una) <= left as i64
                && outer_right.unwrap_near(self.iss, self.una) >= right as i64
            {
                dsack = Some(left..right);
            }
            if left >= self.una && right <= self.nxt {
                self.board.sack(left..right, delivery);
            }
        }
        dsack
    }

    /// The most in flight in this round and the last: how much of the window is in use.
    pub(super) fn peak(&self) -> u64 {
        self.peak.max(self.last_peak)
    }

    /// Whether the window was used as far as a sender of super-segments can use it.
    pub(super) fn cwnd_limited(&self) -> bool {
        let (cwnd, peak) = (self.congestion.cwnd, self.peak());
        if self.congestion.in_slow_start() {
            cwnd < 2 * peak
        } else {
            peak + self.super_segment().min(cwnd / 3).max(self.segment()) >= cwnd
        }
    }

    /// The next lost range to send again, as far as the windows allow.
    pub(super) fn next_again(&mut self) -> Option<Range<u64>> {
        if self.board.lost() == 0 || self.recovery.waits_for_verdict() {
            return None;
        }
        let (segment, room) = (self.segment(), self.cwnd_room());
        let forced = self.recovery.force || self.in_flight() == 0;
        if room < segment && !forced {
            return None;
        }
        let limit = (room / segment * segment).clamp(segment, self.super_segment());
        let range = self.board.next_lost(limit)?;
        // What the peer's window no longer covers is not repeated, but for the head, which finds out whether the peer lives.
        if range.start != self.una && range.end > self.una + self.wnd {
            return None;
        }
        Some(range)
    }

    /// The next new bytes to send (the FIN not counted), or `None`. An empty range means a FIN alone.
    pub(super) fn next_new(&self) -> Option<Range<u64>> {
        let unsent = self.unsent();
        if unsent == 0 {
            return (self.fin && !self.fin_sent()).then_some(self.nxt..self.nxt);
        }
        let (segment, by_window, by_cwnd) = (self.segment(), self.window_room(), self.cwnd_room());
        let limit = by_window.min(by_cwnd);
        let mut len = unsent.min(limit);
        if len < unsent {
            if len >= segment {
                if self.deferred(limit, unsent) {
                    return None;
                }
                len -= len % segment;
            } else if by_cwnd < segment || 2 * len < self.max_wnd || len == 0 {
                // RFC 9293 §3.8.6.2.1: what the peer's window lets out is sent when it is a full segment, all there is, or "at least a
                // fraction Fs of the maximum window", Fs = 1/2. The persist timer overrides.
                return None;
            }
        } else {
            // What more will follow waits for a whole super-segment: the device's work is by the packet, and so are the receiver's
            // wake-ups.
            let whole = if self.more {
                self.super_segment()
            } else {
                segment
            };
            let tail = len % whole;
            if tail > 0 && !self.board.is_empty() && !self.fin && (self.more || !self.nodelay) {
                // Nagle, RFC 9293 §3.7.4: "if there is unacknowledged data ... buffer all user data ... until ... acknowledged or
                // until the TCP endpoint can send a full-sized segment".
                len -= tail;
            }
        }
        let len = len.min(self.super_segment());
        (len > 0).then(|| self.nxt..self.nxt + len)
    }

    /// Whether to wait for acknowledgements in flight to let out a larger super-segment: less than a third of the window
    /// is free, and less than a whole super-segment.
    fn deferred(&self, limit: u64, unsent: u64) -> bool {
        let window = self.congestion.cwnd.min(self.wnd);
        self.recovery.phase == Phase::Open
            && self.in_flight() > 0
            && self.board.sacked() == 0
            && self.recovery.duplicates == 0
            && limit < self.super_segment().min(window / 3).min(unsent)
    }

    /// New bytes `range`, and the FIN behind them if `fin`, go out now.
    pub(super) fn sent_new(&mut self, range: &Range<u64>, fin: bool, now: Instant) {
        let end = range.end + u64::from(fin);
        self.board.sent(range.start..end, now);
        self.nxt = end;
        self.max = self.max.max(end);
        self.last_sent = now;
        self.peak = self.peak.max(self.in_flight());
    }
}
