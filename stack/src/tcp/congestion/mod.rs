//! Congestion control: how large `cwnd` is. What may be sent during loss recovery is `recovery`'s (PRR); this module is
//! told of acknowledged bytes and of congestion, and keeps `cwnd` and `ssthresh`, in bytes.

mod cubic;
mod hystart;
mod reno;

use core::time::Duration;

use self::cubic::Cubic;
use self::hystart::HyStart;
use self::reno::Reno;
use super::config::CongestionKind;
use crate::clock::Instant;

#[derive(Debug, Clone)]
enum Algorithm {
    Cubic(Cubic),
    Reno(Reno),
}

/// `cwnd`, `ssthresh` and what moves them.
#[derive(Debug, Clone)]
pub(super) struct Congestion {
    pub(super) cwnd: u64,
    pub(super) ssthresh: u64,
    initial_window: u64,
    algorithm: Algorithm,
    hystart: HyStart,
}

/// What [`Congestion::undo`] goes back to.
#[derive(Debug, Clone)]
pub(super) struct Saved {
    cwnd: u64,
    ssthresh: u64,
    algorithm: Algorithm,
}

/// An acknowledgement, as the algorithms see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    pub(super) now: Instant,
    /// Bytes newly delivered: acknowledged or selectively acknowledged.
    pub(super) delivered: u64,
    pub(super) mss: u64,
    pub(super) srtt: Duration,
    /// A round trip measured by this acknowledgement.
    pub(super) rtt: Option<Duration>,
    /// SND.UNA and SND.NXT as 64-bit offsets: rounds are counted by them.
    pub(super) snd_una: u64,
    pub(super) snd_nxt: u64,
    /// The window, not the application, was what limited the sender. RFC 9438 §4.2, §5.8; RFC 7661: a window that was not
    /// used says nothing about the path and does not grow.
    pub(super) cwnd_limited: bool,
}

impl Congestion {
    /// RFC 6928 §2: "min (10*MSS, max (2*MSS, 14600))" with `segments` for 10.
    pub(super) fn new(kind: CongestionKind, segments: u32, mss: u64) -> Congestion {
        let segments = u64::from(segments);
        let initial_window = (segments * mss).min((2 * mss).max(segments * 1460));
        Congestion {
            cwnd: initial_window,
            ssthresh: u64::MAX,
            initial_window,
            algorithm: match kind {
                CongestionKind::Cubic => Algorithm::Cubic(Cubic::default()),
                CongestionKind::Reno => Algorithm::Reno(Reno::default()),
            },
            hystart: HyStart::default(),
        }
    }

    pub(super) fn initial_window(&self) -> u64 {
        self.initial_window
    }

    pub(super) fn in_slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    /// Bytes were delivered outside fast recovery.
    ///
    /// Slow start counts bytes (RFC 3465) and without a limit L on one acknowledgement: super-segments are acknowledged
    /// in big steps, and what they cover really has left the network.
    pub(super) fn on_ack(&mut self, ack: Ack) {
        let mut left = ack.delivered;
        if self.in_slow_start() {
            if self.ssthresh == u64::MAX && self.hystart.on_ack(&ack) {
                self.ssthresh = self.cwnd;
            } else if ack.cwnd_limited {
                let grow = self
                    .hystart
                    .slow_start_growth(left)
                    .min(self.ssthresh - self.cwnd);
                self.cwnd += grow;
                if self.in_slow_start() {
                    return;
                }
                left = left.saturating_sub(grow);
            } else {
                return;
            }
        }
        if left == 0 {
            return;
        }
        if !ack.cwnd_limited {
            if let Algorithm::Cubic(cubic) = &mut self.algorithm {
                cubic.application_limited(ack.now);
            }
            return;
        }
        let ack = Ack {
            delivered: left,
            ..ack
        };
        self.cwnd = match &mut self.algorithm {
            Algorithm::Cubic(cubic) => cubic.avoid(self.cwnd, &ack),
            Algorithm::Reno(reno) => reno.avoid(self.cwnd, &ack),
        };
    }

    /// Congestion was detected by loss or ECN when `used` bytes of the window were in use: sets `ssthresh` and leaves `cwnd`
    /// to the caller (PRR brings it down during recovery, a timeout cuts it at once).
    pub(super) fn on_congestion(&mut self, used: u64, mss: u64) {
        let used = used.min(self.cwnd);
        let reduced = match &mut self.algorithm {
            Algorithm::Cubic(cubic) => cubic.on_congestion(used),
            Algorithm::Reno(_) => used / 2,
        };
        // RFC 5681 §3.1, equation 4: "ssthresh = max (FlightSize / 2, 2*SMSS)".
        self.ssthresh = reduced.max(2 * mss);
    }

    /// A retransmission timeout. RFC 5681 §3.1: "upon a timeout ... cwnd MUST be set to no more than the loss window, LW,
    /// which equals 1 full-sized segment".
    pub(super) fn on_timeout(&mut self, mss: u64) {
        self.cwnd = mss;
        if let Algorithm::Cubic(cubic) = &mut self.algorithm {
            cubic.forget_epoch();
        }
    }

    /// Nothing was sent for `timeouts` retransmission timeouts. RFC 5681 §4.1: "a TCP SHOULD set cwnd to no more than
    /// RW before beginning transmission", RW = min(IW, cwnd); RFC 2861 §3.2 goes there by halves, and lets `ssthresh`
    /// remember three quarters of what the path carried, so that slow start comes back to it.
    pub(super) fn on_idle(&mut self, timeouts: u32) {
        if self.cwnd <= self.initial_window {
            return;
        }
        self.ssthresh = self.ssthresh.max(self.cwnd * 3 / 4);
        self.cwnd = (self.cwnd >> timeouts.min(32)).max(self.initial_window);
        if let Algorithm::Cubic(cubic) = &mut self.algorithm {
            cubic.forget_epoch();
        }
    }

    /// The path carries segments of another size than thought. When they are smaller the window keeps its count of them, when
    /// larger its bytes: it never grows by that.
    pub(super) fn on_mss_change(&mut self, old: u64, new: u64) {
        if new < old {
            self.cwnd = self.cwnd / old * new;
        }
        self.cwnd = self.cwnd.max(new);
    }

    /// The state before a reduction that may turn out to be wrong.
    pub(super) fn save(&self) -> Saved {
        Saved {
            cwnd: self.cwnd,
            ssthresh: self.ssthresh,
            algorithm: self.algorithm.clone(),
        }
    }

    /// The reduction was for nothing (RFC 9438 §4.9: "CUBIC SHOULD restore the original values").
    pub(super) fn undo(&mut self, saved: Saved) {
        self.cwnd = self.cwnd.max(saved.cwnd);
        self.ssthresh = saved.ssthresh;
        self.algorithm = saved.algorithm;
        if let Algorithm::Cubic(cubic) = &mut self.algorithm {
            cubic.forget_epoch();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(delivered: u64, cwnd_limited: bool) -> Ack {
        Ack {
            now: Instant::from_millis(1),
            delivered,
            mss: 1000,
            srtt: Duration::from_millis(50),
            rtt: None,
            snd_una: 0,
            snd_nxt: 0,
            cwnd_limited,
        }
    }

    #[test]
    fn slow_start_counts_bytes_and_stops_at_ssthresh() {
        let mut reno = Congestion::new(CongestionKind::Reno, 10, 1000);
        assert_eq!(reno.cwnd, 10_000);
        reno.on_ack(ack(10_000, true));
        assert_eq!(reno.cwnd, 20_000);
        reno.on_ack(ack(10_000, false));
        assert_eq!(reno.cwnd, 20_000, "an unused window does not grow");
        reno.on_congestion(20_000, 1000);
        assert_eq!((reno.cwnd, reno.ssthresh), (20_000, 10_000));
        reno.on_timeout(1000);
        reno.on_ack(ack(30_000, true));
        assert!((10_000..13_000).contains(&reno.cwnd), "{}", reno.cwnd);
    }

    #[test]
    fn an_undone_reduction_leaves_no_trace_in_cwnd() {
        let mut cubic = Congestion::new(CongestionKind::Cubic, 10, 1000);
        let saved = cubic.save();
        cubic.on_congestion(10_000, 1000);
        cubic.on_timeout(1000);
        assert_eq!((cubic.cwnd, cubic.ssthresh), (1000, 7000));
        cubic.undo(saved);
        assert_eq!((cubic.cwnd, cubic.ssthresh), (10_000, u64::MAX));
    }
}
