//! Pacing: a window's worth of segments is spread over the round trip instead of leaving back to back, so that it does not
//! overrun a queue on the way that is shorter than the window.
//!
//! The rate is what other stacks took over from each other: twice `cwnd` a round trip while slow start doubles, 1.2
//! times later, so that pacing follows the window and does not bound it. A burst is what the rate yields in a millisecond: timers
//! stay few. Paths whose round trip is shorter than that are not paced: their queues hold a window, and their speed is
//! the processor's. Of a rate that a late timer lost, a burst's time is made up for.

use core::time::Duration;

use crate::clock::Instant;

/// A burst's time; shorter round trips are not paced.
const BURST: Duration = Duration::from_millis(1);

/// When the next burst may go.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pacing {
    next: Instant,
}

/// Bytes and the time that they may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    bytes: u64,
    nanos: u64,
}

impl Rate {
    /// The rate for a window of `cwnd` bytes and the path's round trips, or `None` where pacing does not pay.
    pub(super) fn new(
        cwnd: u64,
        doubling: bool,
        srtt: Duration,
        min_rtt: Duration,
    ) -> Option<Rate> {
        if min_rtt < BURST {
            return None;
        }
        Some(Rate {
            // At most a few GiB.
            bytes: cwnd * if doubling { 10 } else { 6 },
            nanos: (srtt.as_nanos() as u64).saturating_mul(5).max(1),
        })
    }

    fn time_for(self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * u128::from(self.nanos) / u128::from(self.bytes.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Bytes in one burst: at least two segments.
    pub(super) fn burst(self, segment: u64) -> u64 {
        let bytes = u128::from(self.bytes) * BURST.as_nanos() / u128::from(self.nanos);
        u64::try_from(bytes).unwrap_or(u64::MAX).max(2 * segment)
    }
}

impl Pacing {
    /// Until when nothing may go, if not now.
    pub(super) fn blocked(&self, now: Instant) -> Option<Instant> {
        Some(self.next).filter(|next| *next > now)
    }

    /// `bytes` went out.
    pub(super) fn sent(&mut self, now: Instant, bytes: u64, rate: Rate) {
        self.next = self.next.max(now - BURST) + rate.time_for(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_window_takes_its_share_of_a_round_trip() {
        let rate = Rate::new(100_000, false, ms(60), ms(50)).expect("50 ms are paced");
        // 1.2 windows in 60 ms.
        assert_eq!(rate.time_for(100_000), ms(50));
        assert_eq!(rate.burst(100), 2_000);
        assert_eq!(rate.burst(1460), 2_920);
        let doubling = Rate::new(100_000, true, ms(60), ms(50)).expect("50 ms are paced");
        assert_eq!(doubling.time_for(100_000), ms(30));
        assert_eq!(
            Rate::new(1 << 20, true, ms(5), Duration::from_micros(80)),
            None
        );
    }

    #[test]
    fn a_late_timer_loses_nothing_and_an_idle_time_saves_nothing_up() {
        let rate = Rate::new(100_000, false, ms(60), ms(50)).expect("50 ms are paced");
        let mut pacing = Pacing::default();
        let start = Instant::from_secs(1);
        assert_eq!(pacing.blocked(start), None);
        pacing.sent(start, 2_000, rate);
        // The idle second counts for one burst.
        assert_eq!(pacing.blocked(start), None);
        pacing.sent(start, 2_000, rate);
        assert_eq!(pacing.blocked(start), Some(start + ms(1)));
        // Half a millisecond late: the next is not.
        let late = start + Duration::from_micros(1_500);
        pacing.sent(late, 2_000, rate);
        assert_eq!(pacing.blocked(late), Some(start + ms(2)));
    }
}
