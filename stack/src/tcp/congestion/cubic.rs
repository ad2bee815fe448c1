//! CUBIC (RFC 9438) in integer arithmetic: bytes and microseconds, products in 128 bits, so that every machine computes
//! the same window.

use super::Ack;
use crate::clock::Instant;

/// C = 4/10 segments per second cubed (§4.6, §5: "C SHOULD be set to 0.4").
const C_NUMERATOR: u128 = 4;
const C_DENOMINATOR: u128 = 10;
/// Microseconds in a second, cubed.
const MICROS_CUBED: u128 = 1_000_000_000_000_000_000;

/// One epoch is the time between two congestion events.
#[derive(Debug, Clone)]
struct Epoch {
    start: Instant,
    /// Until when it has run.
    counted: Instant,
    /// K of §4.2 in microseconds: when W_cubic reaches W_max.
    k: u64,
    /// Where the cubic's plateau lies, in bytes.
    origin: u64,
    /// W_est of §4.3, in bytes, and the remainder of its last step.
    w_est: u64,
    w_est_remainder: u64,
    /// Remainder of the last step of `cwnd`.
    remainder: u64,
}

/// CUBIC's state between acknowledgements.
#[derive(Debug, Clone, Default)]
pub(super) struct Cubic {
    w_max: u64,
    /// `cwnd` just before the last reduction.
    cwnd_prior: u64,
    epoch: Option<Epoch>,
}

impl Cubic {
    /// Multiplicative decrease: the new `ssthresh`.
    ///
    /// §4.6: "ssthresh = flight_size * beta_cubic", beta_cubic = 0.7; `cwnd` is what of it was in use. §4.7, fast convergence: "if cwnd < W_max ... W_max = cwnd * (1 + beta_cubic) / 2".
    pub(super) fn on_congestion(&mut self, cwnd: u64) -> u64 {
        self.w_max = if cwnd < self.w_max {
            cwnd * 17 / 20
        } else {
            cwnd
        };
        self.cwnd_prior = cwnd;
        self.epoch = None;
        cwnd * 7 / 10
    }

    /// The next acknowledgement in congestion avoidance begins a new epoch.
    pub(super) fn forget_epoch(&mut self) {
        self.epoch = None;
    }

    /// §5.8: time in which the application did not fill the window is no time in which the path bore it. The epoch's clock
    /// stood still since the acknowledgement before.
    pub(super) fn application_limited(&mut self, now: Instant) {
        if let Some(epoch) = &mut self.epoch {
            epoch.start += now.since(epoch.counted);
            epoch.counted = now;
        }
    }

    /// The window after an acknowledgement in congestion avoidance.
    pub(super) fn avoid(&mut self, cwnd: u64, ack: &Ack) -> u64 {
        let (w_max, cwnd_prior) = (self.w_max, self.cwnd_prior);
        let epoch = self.epoch.get_or_insert_with(|| {
            // §4.8: after slow start without a known W_max the plateau is here.
            let origin = w_max.max(cwnd);
            Epoch {
                start: ack.now,
                counted: ack.now,
                k: time_to_grow(origin - cwnd, ack.mss),
                origin,
                w_est: cwnd,
                w_est_remainder: 0,
                remainder: 0,
            }
        });
        epoch.counted = ack.now;
        let t = ack.now.since(epoch.start).as_micros() as u64;
        // §4.3: "W_est = W_est + alpha_cubic * (segments_acked / cwnd)", alpha = 3 (1 - beta) / (1 + beta) = 9/17 until
        // W_est reaches cwnd_prior, 1 from there.
        let (numerator, denominator) = if epoch.w_est < cwnd_prior {
            (9, 17)
        } else {
            (1, 1)
        };
        let step = ack.delivered * ack.mss * numerator + epoch.w_est_remainder;
        epoch.w_est += step / (cwnd * denominator);
        epoch.w_est_remainder = step % (cwnd * denominator);

        if epoch.cubic(t, ack.mss) < epoch.w_est {
            // §4.3, the Reno-friendly region: "cwnd SHOULD be set to W_est".
            return cwnd.max(epoch.w_est);
        }
        // §4.2: "target = cwnd if W_cubic(t + RTT) < cwnd; 1.5 * cwnd if W_cubic(t + RTT) > 1.5 * cwnd", and §4.4: "cwnd MUST
        // be incremented by (target - cwnd)/cwnd for each new ACK", a segment each.
        let target = epoch
            .cubic(t + ack.srtt.as_micros() as u64, ack.mss)
            .clamp(cwnd, cwnd + cwnd / 2);
        let step =
            u128::from(target - cwnd) * u128::from(ack.delivered) + u128::from(epoch.remainder);
        epoch.remainder = (step % u128::from(cwnd)) as u64;
        // Never more than half of what was delivered: the quotient fits.
        cwnd + (step / u128::from(cwnd)) as u64
    }
}

impl Epoch {
    /// W_cubic(t) = C * (t - K)^3 + W_max (§4.2), in bytes; `t` in microseconds.
    fn cubic(&self, t: u64, mss: u64) -> u64 {
        let distance = u128::from(t.abs_diff(self.k)).min(1 << 34);
        let grown = distance * distance * distance / 1_000_000 * u128::from(mss) * C_NUMERATOR
            / (C_DENOMINATOR * (MICROS_CUBED / 1_000_000));
        let grown = u64::try_from(grown).unwrap_or(u64::MAX);
        if t >= self.k {
            self.origin.saturating_add(grown)
        } else {
            self.origin.saturating_sub(grown)
        }
    }
}

/// K (§4.2, "K = cubic root of ((W_max - cwnd_epoch) / C)") in microseconds.
fn time_to_grow(bytes: u64, mss: u64) -> u64 {
    cube_root(
        u128::from(bytes) * C_DENOMINATOR * MICROS_CUBED / (C_NUMERATOR * u128::from(mss.max(1))),
    )
}

/// The largest integer whose cube is at most `n`, found bit by bit.
fn cube_root(n: u128) -> u64 {
    let mut root = 0u128;
    for bit in (0..42).rev() {
        let next = root | 1 << bit;
        if next * next * next <= n {
            root = next;
        }
    }
    // At most 42 bits are set.
    root as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use proptest::prelude::*;

    #[test]
    fn the_window_comes_back_to_w_max_at_k() {
        let mss = 1000;
        let mut cubic = Cubic::default();
        let mut cwnd = cubic.on_congestion(1_000_000);
        assert_eq!(cwnd, 700_000);
        // K = cbrt(300 / 0.4) = 9.08 s.
        let mut now = Instant::from_millis(5);
        let mut at_plateau = None;
        for _ in 0..150 {
            now += Duration::from_millis(100);
            let ack = Ack {
                now,
                delivered: cwnd,
                mss,
                srtt: Duration::from_millis(100),
                rtt: None,
                snd_una: 0,
                snd_nxt: 0,
                cwnd_limited: true,
            };
            let next = cubic.avoid(cwnd, &ack);
            assert!(next >= cwnd && next <= cwnd * 3 / 2 + mss);
            cwnd = next;
            if at_plateau.is_none() && now >= Instant::from_millis(9_200) {
                at_plateau = Some(cwnd);
            }
        }
        let at_plateau = at_plateau.expect("the loop runs for 15 s");
        assert!((990_000..=1_002_000).contains(&at_plateau), "{at_plateau}");
        // 0.4 * 5.9^3 = 82 segments above the plateau after 15 s.
        assert!((1_070_000..1_100_000).contains(&cwnd), "{cwnd}");
    }

    #[test]
    fn fast_convergence_gives_way() {
        let mut cubic = Cubic::default();
        assert_eq!(cubic.on_congestion(100_000), 70_000);
        assert_eq!(cubic.w_max, 100_000);
        assert_eq!(cubic.on_congestion(80_000), 56_000);
        assert_eq!(cubic.w_max, 68_000);
    }

    proptest! {
        #[test]
        fn cube_roots_are_exact(root in 0u64..(1 << 41), above in 0u128..1000) {
            let cube = u128::from(root).pow(3);
            let next = u128::from(root + 1).pow(3);
            prop_assert_eq!(cube_root((cube + above).min(next - 1)), root);
        }
    }
}
