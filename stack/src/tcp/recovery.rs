//! Loss detection and recovery: which of the sent bytes are lost (RACK-TLP, RFC 8985; NewReno, RFC 6582, when the peer
//! has no SACK), how fast the window comes down meanwhile (PRR, RFC 6937), and when it was all a mistake: by the echo of a
//! timestamp (Eifel, RFC 3522), by reports that everything sent again arrived twice (DSACK, RFC 3708), or, for a peer
//! without timestamps, by what a little new data brings back after a timeout (F-RTO, RFC 5682).
//!
//! RACK replaces the counting rules of RFC 6675 §4 (IsLost): until reordering has been seen its window is zero as soon as
//! three segments' worth is sacked, which is the old threshold.

use core::ops::Range;
use core::time::Duration;

use super::congestion::Saved;
use super::scoreboard::{Delivery, Transmission};
use super::send::Send;
use crate::clock::Instant;

/// RFC 5681 §3.2, DupThresh.
const DUP_THRESH: u64 = 3;

/// RFC 8985 §6.2, step 4: recoveries after which a widened reordering window is forgotten.
const REO_WND_PERSIST: u32 = 16;

/// The widest reordering window in quarters of a round trip; it ends at SRTT anyhow.
const MAX_REO_WND_MULT: u32 = 64;

/// Where the sender stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing is known to be lost.
    Open,
    /// Fast recovery (or an ECN signal): the window comes down while lost ranges are sent again.
    Recovery {
        /// Bytes in flight when it began (RecoverFS).
        flight: u64,
        /// prr_delivered and prr_out of RFC 6937 §3.
        delivered: u64,
        /// Bytes sent since.
        out: u64,
    },
    /// After a retransmission timeout: slow start from one segment.
    Loss,
}

/// What to go back to when the loss was none, and the proof that it was.
#[derive(Debug, Clone)]
struct Undo {
    saved: Saved,
    /// SND.UNA when it began.
    from: u64,
    /// TSval of the first retransmission of what lay at SND.UNA, once it is out. An acknowledgement that echoes an older one was
    /// caused by the original.
    first_again: Option<u32>,
    /// The echo has spoken: the loss was real. Or it cannot speak, as what lies at SND.UNA was sent again before, in an
    /// earlier recovery: then an older echo may be that retransmission's.
    judged: bool,
    /// Bytes sent again, and bytes that the peer reported to have got twice.
    repeated: u64,
    reported: u64,
}

/// F-RTO (RFC 5682 §2.1): how far the question is whether a timeout was spurious.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frto {
    /// It is not asked, or answered.
    Off,
    /// The first segment was sent again.
    Repeated,
    /// That was acknowledged, and new data is on its way instead of what was taken for lost.
    NewData,
}

/// A tail loss probe is out.
#[derive(Debug, Clone, Copy)]
struct Probe {
    /// SND.NXT after it (TLP.end_seq).
    end: u64,
    /// TSval of the probe when it was a retransmission: then its loss was repaired silently, unless proven otherwise.
    again: Option<u32>,
}

/// Recovery state.
#[derive(Debug)]
pub(super) struct Recovery {
    pub(super) phase: Phase,
    /// SND.NXT when recovery began: it ends when this is acknowledged.
    recover: u64,
    /// It began with a loss, not with an ECN signal.
    repairs: bool,
    /// The first retransmission of a recovery goes out whatever PRR says.
    pub(super) force: bool,
    /// RACK.xmit_ts and RACK.end_seq.
    newest: Option<Transmission>,
    /// RACK.rtt.
    rack_rtt: Duration,
    reordering_seen: bool,
    /// RACK.reo_wnd_mult: grows when a duplicate shows that the window was too short.
    reo_wnd_mult: u32,
    /// Recoveries until it shrinks back, and SND.NXT when it grew last: once a round trip.
    reo_wnd_persist: u32,
    dsack_round: u64,
    frto: Frto,
    /// Duplicate acknowledgements without SACK, in bytes they stand for.
    pub(super) duplicates: u64,
    probe: Option<Probe>,
    undo: Option<Undo>,
    pub(super) undone: u64,
}

/// An acknowledgement as recovery sees it.
pub(super) struct AckInfo<'a> {
    pub(super) now: Instant,
    pub(super) delivery: &'a Delivery,
    /// SND.UNA moved by this many bytes.
    pub(super) advanced: u64,
    /// It moved nothing and says nothing new but that something arrived (RFC 5681 §2).
    pub(super) duplicate: bool,
    /// What arrived twice, if it says so.
    pub(super) dsack: Option<Range<u64>>,
    pub(super) tsecr: Option<u32>,
    pub(super) sack_permitted: bool,
    /// Bytes in flight before it.
    pub(super) prior_in_flight: u64,
    /// The peer echoed congestion experienced.
    pub(super) ece: bool,
}

impl Recovery {
    pub(super) fn new() -> Recovery {
        Recovery {
            phase: Phase::Open,
            recover: 0,
            repairs: false,
            force: false,
            newest: None,
            rack_rtt: Duration::ZERO,
            reordering_seen: false,
            reo_wnd_mult: 1,
            reo_wnd_persist: 0,
            dsack_round: 0,
            frto: Frto::Off,
            duplicates: 0,
            probe: None,
            undo: None,
            undone: 0,
        }
    }

    /// Whether a tail loss probe may be scheduled: RFC 8985 §7.2, not while one is out, not in recovery.
    pub(super) fn may_probe(&self) -> bool {
        self.probe.is_none() && self.phase == Phase::Open
    }

    /// Whether what is taken for lost must not be sent again yet, as the next acknowledgement will say whether it is.
    pub(super) fn waits_for_verdict(&self) -> bool {
        self.frto == Frto::NewData
    }
}

impl Send {
    /// `pipe`: bytes thought to be in the network.
    pub(super) fn in_flight(&self) -> u64 {
        self.board
            .in_flight()
            .saturating_sub(self.recovery.duplicates)
    }

    /// The congestion window's free part.
    pub(super) fn cwnd_room(&self) -> u64 {
        self.congestion.cwnd.saturating_sub(self.in_flight())
    }

    /// Draws the conclusions from an acknowledgement. Returns when to look again for losses (the reordering timer).
    pub(super) fn recover(&mut self, ack: &AckInfo<'_>) -> Option<Instant> {
        self.check_echo(ack);
        self.check_duplicates(ack);
        self.check_new_data(ack);
        self.check_probe(ack);
        let mut delivered = ack.delivery.bytes;
        let look_again = if ack.sack_permitted {
            self.rack(ack)
        } else {
            delivered += self.new_reno(ack, delivered);
            None
        };
        let was_open = self.recovery.phase == Phase::Open;
        self.leave_if_over();
        // What was sent since the last signal and is lost is a new one, even where this acknowledgement ends its recovery.
        if self.recovery.phase == Phase::Open && self.board.lost() > 0 {
            // RFC 4821 §7.6: a lost probe alone is no sign of congestion.
            if self.only_a_probe_is_lost() {
                self.recovery.force = true;
            } else {
                self.enter(ack.prior_in_flight);
            }
        } else if was_open && ack.ece && self.una > self.recovery.recover {
            // RFC 3168 §6.1.2: "treats a congestion indication ... just like a dropped packet", "only once per window".
            self.enter(ack.prior_in_flight);
            self.recovery.repairs = false;
            self.recovery.force = false;
            self.recovery.undo = None;
            self.leave_if_over();
        }
        if matches!(self.recovery.phase, Phase::Recovery { .. }) {
            self.reduce(delivered);
        }
        look_again
    }

    /// RFC 8985 §6.2.
    fn rack(&mut self, ack: &AckInfo<'_>) -> Option<Instant> {
        let recovery = &mut self.recovery;
        if ack.delivery.newest > recovery.newest {
            recovery.newest = ack.delivery.newest;
            recovery.rack_rtt = recovery
                .newest
                .map_or(Duration::ZERO, |(at, _)| ack.now.since(at));
        }
        recovery.reordering_seen |= ack.delivery.reordered;
        let nothing_amiss =
            self.board.sacked() == 0 && recovery.phase == Phase::Open && !ack.delivery.again;
        if nothing_amiss {
            None
        } else {
            self.detect(ack.now)
        }
    }

    /// RFC 8985 §6.2, step 4: "if RACK.reordering_seen is FALSE: if in loss recovery or RACK.segs_sacked >= DupThresh: return
    /// 0", else "MIN(RACK.reo_wnd_mult * RACK.min_RTT / 4, SRTT)".
    fn reordering_window(&self) -> Duration {
        let recovery = &self.recovery;
        if !recovery.reordering_seen
            && (recovery.phase != Phase::Open || self.board.sacked() >= DUP_THRESH * self.segment())
        {
            return Duration::ZERO;
        }
        let min_rtt = self.rtt.min_rtt().unwrap_or_default();
        (min_rtt * recovery.reo_wnd_mult / 4).min(self.rtt.srtt().unwrap_or_default())
    }

    /// Marks what is lost by now; returns when more may be.
    fn detect(&mut self, now: Instant) -> Option<Instant> {
        let newest = self.recovery.newest?;
        let window = self.recovery.rack_rtt + self.reordering_window();
        self.board
            .detect_lost(now, newest, window)
            .map(|wait| now + wait)
    }

    /// The reordering timer: RFC 8985 §6.3, "upon expiration of the timer, run RACK_detect_loss".
    pub(super) fn on_reordering_timer(&mut self, now: Instant) -> Option<Instant> {
        let prior = self.in_flight();
        let again = self.detect(now);
        if self.recovery.phase == Phase::Open
            && self.board.lost() > 0
            && !self.only_a_probe_is_lost()
        {
            self.enter(prior);
            self.reduce(0);
        }
        again
    }

    /// RFC 6582 and 5681 §3.2, for a peer without SACK. Returns bytes that a duplicate stands for.
    fn new_reno(&mut self, ack: &AckInfo<'_>, delivered: u64) -> u64 {
        let mss = self.segment();
        if ack.advanced > 0 {
            self.recovery.duplicates = self
                .recovery
                .duplicates
                .saturating_sub(delivered.saturating_sub(mss));
            if matches!(self.recovery.phase, Phase::Recovery { .. })
                && self.recovery.repairs
                && self.una < self.recovery.recover
            {
                // RFC 6582 §3.2, step 3: a partial acknowledgement, "retransmit the first unacknowledged segment".
                self.board.lose_head(mss);
                self.recovery.force = true;
            } else if self.recovery.phase == Phase::Open {
                self.recovery.duplicates = 0;
            }
            return 0;
        }
        // RFC 6582 §4: duplicates of what was outstanding at the last timeout begin no recovery. Once new data was sent behind
        // it, they tell that this leaves the network.
        let after_timeout = self.recovery.phase == Phase::Loss;
        if !ack.duplicate || after_timeout && self.nxt == self.recovery.recover {
            return 0;
        }
        self.recovery.duplicates = (self.recovery.duplicates + mss).min(self.board.in_flight());
        let reducing =
            matches!(self.recovery.phase, Phase::Recovery { .. }) && !self.recovery.repairs;
        let told = self.recovery.duplicates >= DUP_THRESH * mss;
        if self.recovery.phase == Phase::Open && told && self.una >= self.recovery.recover {
            self.board.lose_head(mss);
        } else if reducing && told {
            // A loss in a window that comes down for an ECN signal: it is repaired without another reduction.
            self.recovery.repairs = true;
            self.recovery.force = true;
            self.board.lose_head(mss);
        }
        mss
    }

    /// Begins fast recovery.
    fn enter(&mut self, in_flight: u64) {
        self.reduce_threshold();
        let mss = self.segment();
        let recovery = &mut self.recovery;
        recovery.recover = self.nxt;
        recovery.repairs = true;
        recovery.phase = Phase::Recovery {
            flight: in_flight.max(mss),
            delivered: 0,
            out: 0,
        };
        recovery.force = true;
        recovery.probe = None;
    }

    /// The window is too large: sets `ssthresh`, and keeps what it was.
    ///
    /// RFC 7661 §4.4.1: a window that was not in use says nothing of the path, so what was in use counts.
    fn reduce_threshold(&mut self) {
        let used = if self.cwnd_limited() {
            self.congestion.cwnd
        } else {
            // The initial window needs no proof.
            self.peak().max(self.congestion.initial_window())
        };
        self.recovery.undo = Some(Undo {
            saved: self.congestion.save(),
            from: self.una,
            first_again: None,
            judged: self.board.head_sent_again(),
            repeated: 0,
            reported: 0,
        });
        self.congestion.on_congestion(used, self.segment());
        // RFC 3168 §6.1.2: told to the peer whatever the reason was.
        self.cwr = true;
    }

    /// Ends recovery when everything that was in flight as it began is acknowledged.
    fn leave_if_over(&mut self) {
        if self.recovery.phase == Phase::Open || self.una < self.recovery.recover {
            return;
        }
        if self.recovery.phase != Phase::Loss {
            self.congestion.cwnd = self.congestion.ssthresh;
        }
        let recovery = &mut self.recovery;
        recovery.phase = Phase::Open;
        recovery.duplicates = 0;
        recovery.frto = Frto::Off;
        recovery.reo_wnd_persist = recovery.reo_wnd_persist.saturating_sub(1);
        if recovery.reo_wnd_persist == 0 {
            recovery.reo_wnd_mult = 1;
        }
    }

    /// RFC 6937 §3: "if (pipe > ssthresh) sndcnt = CEIL(prr_delivered * ssthresh / RecoverFS) - prr_out", else slow start
    /// towards ssthresh: "limit = MAX(prr_delivered - prr_out, DeliveredData) + MSS; sndcnt = MIN(ssthresh - pipe, limit)".
    fn reduce(&mut self, newly: u64) {
        let (pipe, ssthresh, mss) = (self.in_flight(), self.congestion.ssthresh, self.segment());
        let Phase::Recovery {
            flight,
            delivered,
            out,
        } = &mut self.recovery.phase
        else {
            return;
        };
        *delivered += newly;
        let quota = if pipe > ssthresh {
            let target = u128::from(*delivered) * u128::from(ssthresh);
            // ssthresh is below RecoverFS here or close to it: the quotient fits.
            (target.div_ceil(u128::from(*flight)) as u64).saturating_sub(*out)
        } else {
            (ssthresh - pipe).min(delivered.saturating_sub(*out).max(newly) + mss)
        };
        self.congestion.cwnd = (pipe + quota).max(mss);
    }

    /// Bytes went out; `again` is the segment's TSval, if it has one, when they were lost ones.
    pub(super) fn count_sent(&mut self, range: &Range<u64>, again: Option<Option<u32>>) {
        let bytes = range.end - range.start;
        if let Phase::Recovery { out, .. } = &mut self.recovery.phase {
            *out += bytes;
        }
        if let (Some(tsval), Some(undo)) = (again, &mut self.recovery.undo)
            && self.recovery.phase != Phase::Open
        {
            if range.start == undo.from {
                undo.first_again = undo.first_again.or(tsval);
            }
            undo.repeated += bytes;
        }
    }

    /// The retransmission timer fired; `timestamps` are in use.
    pub(super) fn on_retransmission_timeout(&mut self, timestamps: bool) {
        let mss = self.segment();
        let first = self.recovery.phase != Phase::Loss;
        if self.recovery.phase == Phase::Open {
            // RFC 5681 §3.1: ssthresh is reduced once, "when ... the given segment has not yet been resent".
            self.reduce_threshold();
        }
        self.congestion.on_timeout(mss);
        self.recovery.phase = Phase::Loss;
        self.recovery.recover = self.nxt;
        self.recovery.duplicates = 0;
        self.recovery.force = true;
        self.recovery.probe = None;
        self.recovery.frto = if first && !timestamps {
            Frto::Repeated
        } else {
            Frto::Off
        };
        self.board.lose_all();
    }

    /// The loss was none.
    fn undo(&mut self) {
        let Some(undo) = self.recovery.undo.take() else {
            return;
        };
        self.congestion.undo(undo.saved);
        if self.recovery.phase != Phase::Loss {
            // Not a timeout too early but segments out of order made us think so.
            self.recovery.reordering_seen = true;
        }
        if self.recovery.phase != Phase::Open {
            self.board.unlose();
            self.recovery.phase = Phase::Open;
            self.recovery.duplicates = 0;
            self.recovery.frto = Frto::Off;
        }
        self.recovery.undone += 1;
    }

    /// RFC 3522 §3.2: "If the value of the Timestamp Echo Reply field of the ACK is smaller than RetransmitTS then ... the
    /// retransmission was spurious". The first acknowledgement that moves SND.UNA decides.
    fn check_echo(&mut self, ack: &AckInfo<'_>) {
        if ack.advanced == 0 || self.recovery.phase == Phase::Open {
            return;
        }
        let (Some(undo), Some(tsecr)) = (&mut self.recovery.undo, ack.tsecr) else {
            return;
        };
        let Some(first_again) = undo.first_again.filter(|_| !undo.judged) else {
            return;
        };
        undo.judged = true;
        if (tsecr.wrapping_sub(first_again) as i32) < 0 {
            self.undo();
        }
    }

    /// A range arrived twice. RFC 8985 §6.2, step 4: the reordering window grows, once a round trip. RFC 3708 §2: when all that
    /// was sent again arrived twice, none of it was lost; the reports may come when recovery is over.
    fn check_duplicates(&mut self, ack: &AckInfo<'_>) {
        let Some(dsack) = &ack.dsack else {
            return;
        };
        let recovery = &mut self.recovery;
        if self.una >= recovery.dsack_round {
            recovery.dsack_round = self.nxt;
            recovery.reo_wnd_mult = (recovery.reo_wnd_mult + 1).min(MAX_REO_WND_MULT);
            recovery.reo_wnd_persist = REO_WND_PERSIST;
        }
        if let Some(undo) = &mut recovery.undo
            && dsack.start >= undo.from
            && dsack.end <= recovery.recover
        {
            undo.reported += dsack.end - dsack.start;
            if undo.repeated > 0 && undo.reported >= undo.repeated {
                self.undo();
            }
        }
    }

    /// RFC 5682 §2.1, steps 2 and 3: the first acknowledgement after a timeout lets out new data; when the second one moves
    /// SND.UNA too, it acknowledges what was not sent again, and the timeout was spurious.
    fn check_new_data(&mut self, ack: &AckInfo<'_>) {
        let says_lost = ack.duplicate || ack.delivery.sacked > 0;
        match self.recovery.frto {
            Frto::Off => {}
            Frto::Repeated if ack.advanced > 0 => {
                let some = self.unsent().min(self.window_room()) >= self.segment();
                self.recovery.frto = if self.una < self.recovery.recover && some {
                    Frto::NewData
                } else {
                    Frto::Off
                };
            }
            Frto::NewData if ack.advanced > 0 => self.undo(),
            Frto::Repeated | Frto::NewData if says_lost => {
                self.recovery.force = self.recovery.frto == Frto::NewData;
                self.recovery.frto = Frto::Off;
            }
            Frto::Repeated | Frto::NewData => {}
        }
    }

    /// A tail loss probe went out; `again` is its TSval when it repeated old bytes.
    pub(super) fn probe_sent(&mut self, again: Option<u32>) {
        self.recovery.probe = Some(Probe {
            end: self.nxt,
            again,
        });
    }

    /// RFC 8985 §7.4: a probe that repeated the last segment may have repaired a loss that nobody noticed; then the
    /// window is reduced all the same.
    fn check_probe(&mut self, ack: &AckInfo<'_>) {
        let Some(probe) = self.recovery.probe else {
            return;
        };
        if self.una < probe.end {
            return;
        }
        let original_arrived = match (probe.again, ack.tsecr) {
            (None, _) => true,
            (Some(sent), Some(tsecr)) => (tsecr.wrapping_sub(sent) as i32) < 0,
            (Some(_), None) => false,
        };
        if original_arrived || ack.dsack.is_some() || ack.duplicate {
            self.recovery.probe = None;
        } else if self.una > probe.end {
            self.recovery.probe = None;
            self.reduce_threshold();
            self.recovery.undo = None;
            self.congestion.cwnd = self.congestion.cwnd.min(self.congestion.ssthresh);
        }
    }
}
