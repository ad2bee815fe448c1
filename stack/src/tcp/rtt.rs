//! Round-trip time and the retransmission timeout (RFC 6298), in integer nanoseconds.

use core::time::Duration;

/// The clock of timestamps.
const TICK: Duration = Duration::from_millis(1);

/// The estimator's state.
#[derive(Debug, Clone)]
pub(super) struct RttEstimator {
    srtt: Option<Duration>,
    rttvar: Duration,
    min_rtt: Option<Duration>,
    /// Before back-off, within `[floor, ceiling]`.
    rto: Duration,
    floor: Duration,
    ceiling: Duration,
}

impl RttEstimator {
    pub(super) fn new(initial: Duration, floor: Duration, ceiling: Duration) -> RttEstimator {
        RttEstimator {
            srtt: None,
            rttvar: Duration::ZERO,
            min_rtt: None,
            rto: initial,
            floor,
            ceiling,
        }
    }

    /// A round trip was measured.
    ///
    /// RFC 6298 §2.2, §2.3: "SRTT <- R, RTTVAR <- R/2" first; then "RTTVAR <- (1 - beta) * RTTVAR + beta * |SRTT - R'|,
    /// SRTT <- (1 - alpha) * SRTT + alpha * R'" with alpha = 1/8 and beta = 1/4; "RTO <- SRTT + max (G, K*RTTVAR)" with K = 4.
    /// The floor is put under the variation term, not the sum, as other stacks do: a floor of 200 ms then still leaves
    /// 200 ms beyond a round trip of 300 ms.
    pub(super) fn sample(&mut self, rtt: Duration) {
        self.min_rtt = Some(self.min_rtt.map_or(rtt, |min| min.min(rtt)));
        self.smooth(rtt);
    }

    /// A round trip was measured by timestamps, whose ticks of a millisecond are too coarse to say what the shortest was.
    pub(super) fn sample_coarse(&mut self, rtt: Duration) {
        self.smooth(rtt.max(TICK));
    }

    fn smooth(&mut self, rtt: Duration) {
        let srtt = match self.srtt {
            None => {
                self.rttvar = rtt / 2;
                rtt
            }
            Some(srtt) => {
                self.rttvar = self.rttvar * 3 / 4 + srtt.abs_diff(rtt) / 4;
                srtt * 7 / 8 + rtt / 8
            }
        };
        self.srtt = Some(srtt);
        let variation = (self.rttvar * 4).max(self.floor);
        self.rto = (srtt + variation).min(self.ceiling);
    }

    pub(super) fn srtt(&self) -> Option<Duration> {
        self.srtt
    }

    pub(super) fn rttvar(&self) -> Duration {
        self.rttvar
    }

    /// The smallest round trip seen.
    pub(super) fn min_rtt(&self) -> Option<Duration> {
        self.min_rtt
    }

    /// The timeout after `backoff` timeouts in a row: RFC 6298 §5.5, "RTO <- RTO * 2 ('back off the timer')".
    pub(super) fn rto(&self, backoff: u32) -> Duration {
        self.rto
            .saturating_mul(1 << backoff.min(16))
            .min(self.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn follows_the_rfc_between_floor_and_ceiling() {
        let mut rtt = RttEstimator::new(ms(1000), ms(200), ms(60_000));
        assert_eq!(
            (rtt.rto(0), rtt.rto(1), rtt.rto(2)),
            (ms(1000), ms(2000), ms(4000))
        );
        rtt.sample(ms(100));
        assert_eq!(
            (rtt.srtt(), rtt.rttvar(), rtt.rto(0)),
            (Some(ms(100)), ms(50), ms(300))
        );
        rtt.sample(ms(500));
        // 3/4 * 50 + 1/4 * 400; 7/8 * 100 + 1/8 * 500.
        assert_eq!(
            (rtt.srtt(), rtt.rttvar()),
            (Some(ms(150)), Duration::from_micros(137_500))
        );
        assert_eq!(rtt.rto(0), ms(700));
        assert_eq!(rtt.rto(60), ms(60_000));
        for _ in 0..200 {
            rtt.sample(ms(1));
        }
        assert_eq!(rtt.min_rtt(), Some(ms(1)));
        assert!(rtt.rto(0) >= ms(200) && rtt.rto(0) < ms(203));
    }
}
