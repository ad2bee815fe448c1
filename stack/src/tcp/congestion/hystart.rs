//! HyStart++ (RFC 9406): leave slow start when the round trip grows, before packets are lost.

use core::time::Duration;

use super::Ack;

/// §4.3: "It is RECOMMENDED that ... MIN_RTT_THRESH = 4 msec, MAX_RTT_THRESH = 16 msec, MIN_RTT_DIVISOR = 8, N_RTT_SAMPLE =
/// 8, CSS_GROWTH_DIVISOR = 4, CSS_ROUNDS = 5".
const MIN_RTT_THRESH: Duration = Duration::from_millis(4);
const MAX_RTT_THRESH: Duration = Duration::from_millis(16);
const MIN_RTT_DIVISOR: u32 = 8;
const N_RTT_SAMPLE: u32 = 8;
const CSS_GROWTH_DIVISOR: u64 = 4;
const CSS_ROUNDS: u32 = 5;

/// Conservative slow start: the round trip grew; is it a queue, or was it noise?
#[derive(Debug, Clone)]
struct Conservative {
    baseline: Duration,
    rounds: u32,
}

/// State of the rounds of the first slow start.
#[derive(Debug, Clone, Default)]
pub(super) struct HyStart {
    /// The round ends when this offset is acknowledged.
    window_end: u64,
    last_round_min: Option<Duration>,
    this_round_min: Option<Duration>,
    samples: u32,
    conservative: Option<Conservative>,
}

impl HyStart {
    /// Takes an acknowledgement in; returns whether slow start is over.
    pub(super) fn on_ack(&mut self, ack: &Ack) -> bool {
        if ack.snd_una >= self.window_end {
            self.window_end = ack.snd_nxt;
            self.last_round_min = self.this_round_min.take().or(self.last_round_min);
            self.samples = 0;
            if let Some(conservative) = &mut self.conservative {
                conservative.rounds += 1;
                if conservative.rounds >= CSS_ROUNDS {
                    return true;
                }
            }
        }
        let Some(rtt) = ack.rtt else { return false };
        self.samples += 1;
        let this = self.this_round_min.map_or(rtt, |min| min.min(rtt));
        self.this_round_min = Some(this);
        if self.samples < N_RTT_SAMPLE {
            return false;
        }
        match (&self.conservative, self.last_round_min) {
            (None, Some(last)) => {
                // §4.2: "RttThresh = max(MIN_RTT_THRESH, min(lastRoundMinRTT / MIN_RTT_DIVISOR, MAX_RTT_THRESH)); if
                // (currentRoundMinRTT >= (lastRoundMinRTT + RttThresh)) cssBaselineMinRtt = currentRoundMinRTT; exit slow
                // start and enter CSS".
                let threshold = (last / MIN_RTT_DIVISOR)
                    .min(MAX_RTT_THRESH)
                    .max(MIN_RTT_THRESH);
                if this >= last + threshold {
                    self.conservative = Some(Conservative {
                        baseline: this,
                        rounds: 0,
                    });
                }
            }
            (Some(conservative), _) if this < conservative.baseline => {
                // §4.2: "if (currentRoundMinRTT < cssBaselineMinRtt) cssBaselineMinRtt = infinity; resume slow start".
                self.conservative = None;
            }
            _ => {}
        }
        false
    }

    /// How much `delivered` bytes add to the window.
    pub(super) fn slow_start_growth(&self, delivered: u64) -> u64 {
        if self.conservative.is_some() {
            delivered / CSS_GROWTH_DIVISOR
        } else {
            delivered
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Instant;

    fn round(hystart: &mut HyStart, number: u64, rtt_ms: u64) -> bool {
        let mut over = false;
        for n in 0..10 {
            over |= hystart.on_ack(&Ack {
                now: Instant::ZERO,
                delivered: 1000,
                mss: 1000,
                srtt: Duration::from_millis(rtt_ms),
                rtt: Some(Duration::from_millis(rtt_ms)),
                snd_una: number * 10 + n,
                snd_nxt: number * 10 + 10,
                cwnd_limited: true,
            });
        }
        over
    }

    #[test]
    fn a_growing_round_trip_slows_and_then_ends_slow_start() {
        let mut hystart = HyStart::default();
        assert!(!round(&mut hystart, 0, 40));
        assert!(!round(&mut hystart, 1, 42));
        assert_eq!(hystart.slow_start_growth(1000), 1000);
        assert!(!round(&mut hystart, 2, 50));
        assert_eq!(hystart.slow_start_growth(1000), 250);
        assert!((3..7).all(|number| !round(&mut hystart, number, 50)));
        assert!(round(&mut hystart, 7, 50));
    }

    #[test]
    fn noise_is_forgiven() {
        let mut hystart = HyStart::default();
        round(&mut hystart, 0, 40);
        round(&mut hystart, 1, 50);
        assert_eq!(hystart.slow_start_growth(1000), 250);
        round(&mut hystart, 2, 41);
        assert_eq!(hystart.slow_start_growth(1000), 1000);
    }
}
