//! The anti-replay window of a datagram protocol: which of the last 64 sequence numbers have been seen.
//!
//! It is the sliding window of IPsec (RFC 4303 §3.4.3) that RFC 6347 §4.1.2.6 takes over, and RFC 9147 §4.5.1 after it. One
//! window belongs to one epoch of one direction. Asking ([`ReplayWindow::check`]) and moving ([`ReplayWindow::accept`]) are
//! two calls on purpose, with the verification of the record between them:
//!
//! RFC 6347 §4.1.2.6: "The receive window is updated only if the MAC verification succeeds."
//!
//! A window that moves before can be blinded by one forged record with a high number: everything genuine is then to its left.
//!
//! There is no limit to how far the window may jump forward. After a loss of any length the next genuine record is to its
//! right, verifies, and takes the window along.

/// How many sequence numbers the window remembers.
///
/// RFC 6347 §4.1.2.6: "A minimum window size of 32 MUST be supported, but a window size of 64 is preferred and SHOULD be
/// employed as the default."
pub const WINDOW: u64 = 64;

/// Why a sequence number is not acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Replay {
    /// A record with this number was accepted before.
    Seen,
    /// Left of the window: whether it was seen is no longer known.
    TooOld,
}

/// Which of the last [`WINDOW`] sequence numbers were accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayWindow {
    /// One more than the highest accepted number; the window is the [`WINDOW`] numbers below.
    next: u64,
    /// Bit *i* is set when `next - 1 - i` was accepted, or lies before the window's start.
    seen: u64,
}

impl ReplayWindow {
    /// A window that has seen nothing: every number is acceptable, 0 too.
    pub const fn new() -> Self {
        Self { next: 0, seen: 0 }
    }

    /// A window for keys that are taken over in use: `next` comes next, and all before it count as seen.
    ///
    /// Who used the keys before knows which of those records it has delivered; here nobody does, and delivering one twice
    /// would be worse than losing one that was late.
    pub const fn starting_at(next: u64) -> Self {
        Self {
            next,
            seen: u64::MAX,
        }
    }

    /// One more than the highest number accepted so far.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Whether a record with this number may be new. Nothing moves.
    ///
    /// # Errors
    /// [`Replay`] says why it is not.
    pub const fn check(&self, sequence: u64) -> Result<(), Replay> {
        if sequence >= self.next {
            return Ok(());
        }
        let age = self.next - 1 - sequence;
        if age >= WINDOW {
            Err(Replay::TooOld)
        } else if self.seen >> age & 1 == 1 {
            Err(Replay::Seen)
        } else {
            Ok(())
        }
    }

    /// Takes note of a record that was verified. Its number must have passed [`check`](Self::check); a number left of the
    /// window changes nothing.
    pub const fn accept(&mut self, sequence: u64) {
        if sequence >= self.next {
            let ahead = sequence - self.next;
            self.seen = if ahead >= WINDOW - 1 {
                0
            } else {
                self.seen << (ahead + 1)
            };
            self.seen |= 1;
            self.next = sequence.saturating_add(1);
        } else if self.next - 1 - sequence < WINDOW {
            self.seen |= 1 << (self.next - 1 - sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(window: &mut ReplayWindow, sequence: u64) -> Result<(), Replay> {
        window.check(sequence)?;
        window.accept(sequence);
        Ok(())
    }

    #[test]
    fn the_very_first_record_may_have_any_number() {
        for first in [0, 1, 63, 64, 65, 1 << 40, (1 << 48) - 1] {
            let mut window = ReplayWindow::new();
            assert_eq!(take(&mut window, first), Ok(()), "{first}");
            assert_eq!(take(&mut window, first), Err(Replay::Seen), "{first}");
            assert_eq!(window.next(), first + 1);
        }
    }

    #[test]
    fn zero_arrives_once_whenever_it_comes() {
        let mut window = ReplayWindow::new();
        for sequence in (1..=63).rev() {
            assert_eq!(take(&mut window, sequence), Ok(()));
        }
        assert_eq!(take(&mut window, 0), Ok(()));
        assert_eq!(take(&mut window, 0), Err(Replay::Seen));
        assert_eq!(take(&mut window, 64), Ok(()));
        assert_eq!(window.check(0), Err(Replay::TooOld));
    }

    #[test]
    fn the_window_is_64_wide_to_the_record() {
        let mut window = ReplayWindow::new();
        take(&mut window, 1000).unwrap();
        assert_eq!(window.check(936), Err(Replay::TooOld));
        for sequence in 937..1000 {
            assert_eq!(window.check(sequence), Ok(()), "{sequence}");
        }
        assert_eq!(window.check(1000), Err(Replay::Seen));
    }

    #[test]
    fn it_jumps_past_a_long_loss_and_forgets_what_was_before() {
        for jump in [62, 63, 64, 65, 127, 128, 1 << 30] {
            let mut window = ReplayWindow::new();
            for sequence in 0..10 {
                take(&mut window, sequence).unwrap();
            }
            assert_eq!(take(&mut window, 9 + jump), Ok(()));
            let ninth = if jump < 64 {
                Replay::Seen
            } else {
                Replay::TooOld
            };
            assert_eq!(window.check(9), Err(ninth), "jump of {jump}");
            assert_eq!(window.check(9 + jump - 1), Ok(()), "jump of {jump}");
        }
    }

    #[test]
    fn asking_moves_nothing() {
        let mut window = ReplayWindow::new();
        take(&mut window, 5).unwrap();
        let before = window;
        for sequence in [0, 4, 5, 6, 1 << 47] {
            let _ = window.check(sequence);
        }
        assert_eq!(window, before);
    }

    #[test]
    fn keys_in_use_start_with_everything_before_seen() {
        for next in [0, 1, 63, 64, 1 << 40] {
            let mut window = ReplayWindow::starting_at(next);
            for before in next.saturating_sub(100)..next {
                assert!(window.check(before).is_err(), "{before} before {next}");
            }
            assert_eq!(take(&mut window, next + 3), Ok(()));
            assert_eq!(take(&mut window, next), Ok(()));
            assert_eq!(take(&mut window, next), Err(Replay::Seen));
        }
    }
}
