//! The path's MTU, found by the segments themselves (RFC 8899, RFC 4821), for paths that drop what is too large and say
//! nothing.
//!
//! *Down:* three timeouts in a row with the same segment at the head, if it is larger than that, and segments become as small as every path
//! should carry. ICMP ([`Connection::set_mtu`](super::Connection::set_mtu)) gets there faster where it arrives. *Up again:*
//! ten minutes later one segment of new data is sent larger; when it is acknowledged, all are. When it is lost three
//! times, half the distance is tried. A lost probe is sent again in pieces and is no sign of congestion.

use core::ops::Range;
use core::time::Duration;

use crate::clock::Instant;

/// Timeouts in a row that make a black hole (RFC 8899 §5.1.2, MAX_PROBES).
const BLACK_HOLE: u32 = 3;
/// Times that one size is tried (the same).
const MAX_PROBES: u32 = 3;
/// RFC 8899 §5.1.1, PMTU_RAISE_TIMER: "This value is suggested to be 600 seconds".
const RAISE_AFTER: Duration = Duration::from_secs(600);
/// A gain in bytes that is not worth a probe.
const WORTHLESS: u64 = 32;

/// A probe that is out.
#[derive(Debug, Clone)]
struct Probe {
    range: Range<u64>,
    mss: u64,
}

/// What is known of the path. Sizes are segment sizes, TCP options included.
#[derive(Debug, Clone)]
pub(super) struct PathMtu {
    /// What both ends agreed on.
    ceiling: u64,
    /// The smallest size that is thought not to pass.
    fails: u64,
    /// Timeouts in a row.
    timeouts: u32,
    tries: u32,
    /// When to look for a larger size.
    raise_at: Option<Instant>,
    probe: Option<Probe>,
}

impl PathMtu {
    pub(super) fn new(ceiling: u64) -> PathMtu {
        PathMtu {
            ceiling,
            fails: ceiling + 1,
            timeouts: 0,
            tries: 0,
            raise_at: None,
            probe: None,
        }
    }

    /// Segments have become smaller than the ends agreed on.
    pub(super) fn lowered(&mut self, now: Instant) {
        *self = PathMtu {
            raise_at: Some(now + RAISE_AFTER),
            ..PathMtu::new(self.ceiling)
        };
    }

    /// A segment of `size` bytes, options included, timed out. Returns the smaller size to go on with, when this begins to look
    /// like a black hole.
    pub(super) fn on_timeout(&mut self, size: u64, v4: bool) -> Option<u64> {
        self.timeouts += 1;
        if self.timeouts < BLACK_HOLE {
            return None;
        }
        // RFC 8899 §5.1.2: "BASE_PLPMTU ... 1200 bytes"; RFC 8200 §5: 1280 passes every IPv6 link; RFC 1122 §3.3.3: 576.
        let sizes: [u64; 2] = if v4 { [1160, 536] } else { [1220, 1220] };
        let smaller = sizes.into_iter().find(|&smaller| smaller < size)?;
        self.timeouts = 0;
        Some(smaller)
    }

    /// The peer acknowledged new data: whatever size it had, it passes.
    pub(super) fn on_progress(&mut self) {
        self.timeouts = 0;
    }

    /// The size to probe with next, if it is time to, and segments have `mss` now.
    pub(super) fn candidate(&self, now: Instant, mss: u64) -> Option<u64> {
        if self.probe.is_some() || self.raise_at.is_none_or(|at| at > now) {
            return None;
        }
        let largest = self.fails - 1;
        // First what was agreed on: the path may have changed back. Then halfway.
        Some(if largest == self.ceiling {
            largest
        } else {
            mss + (largest - mss).div_ceil(2)
        })
    }

    pub(super) fn sent(&mut self, range: Range<u64>, mss: u64) {
        self.probe = Some(Probe { range, mss });
    }

    /// Whether `range` is no more than the probe.
    pub(super) fn is_probe(&self, range: &Range<u64>) -> bool {
        self.probe
            .as_ref()
            .is_some_and(|probe| probe.range.start <= range.start && range.end <= probe.range.end)
    }

    /// Everything below `una` is acknowledged. Returns the new size when the probe was.
    pub(super) fn on_acknowledged(&mut self, now: Instant, una: u64) -> Option<u64> {
        let probe = self.probe.take_if(|probe| probe.range.end <= una)?;
        self.tries = 0;
        self.next_or_rest(now, probe.mss);
        Some(probe.mss)
    }

    /// `range` is sent again: if it is the probe, it did not pass.
    pub(super) fn on_sent_again(&mut self, now: Instant, range: &Range<u64>, mss: u64) {
        let Some(probe) = self
            .probe
            .take_if(|probe| range.start < probe.range.end && probe.range.start < range.end)
        else {
            return;
        };
        self.tries += 1;
        if self.tries >= MAX_PROBES {
            self.tries = 0;
            self.fails = probe.mss;
            self.next_or_rest(now, mss);
        }
    }

    /// Goes on searching at once while it pays, else rests and begins anew.
    fn next_or_rest(&mut self, now: Instant, mss: u64) {
        if mss == self.ceiling {
            *self = PathMtu::new(self.ceiling);
        } else if self.fails - 1 < mss + WORTHLESS {
            self.lowered(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_timeouts_make_a_black_hole() {
        let mut path = PathMtu::new(1460);
        assert_eq!(
            (path.on_timeout(1460, true), path.on_timeout(1460, true)),
            (None, None)
        );
        path.on_progress();
        assert_eq!(
            (path.on_timeout(1460, true), path.on_timeout(1460, true)),
            (None, None)
        );
        assert_eq!(path.on_timeout(1460, true), Some(1160));
        path.on_timeout(1160, true);
        path.on_timeout(1160, true);
        assert_eq!(path.on_timeout(1160, true), Some(536));
        path.on_timeout(536, true);
        path.on_timeout(536, true);
        assert_eq!(path.on_timeout(536, true), None);
        // A last segment that is not full may be too large all the same.
        assert_eq!(path.on_timeout(900, true), Some(536));
    }

    #[test]
    fn the_search_ends_close_to_what_passes() {
        let passes = 1400;
        let mut path = PathMtu::new(1460);
        let mut mss = 1160;
        let mut now = Instant::ZERO;
        path.lowered(now);
        assert_eq!(path.candidate(now, mss), None);
        now += RAISE_AFTER;
        let mut at = 1;
        let mut probes = 0;
        while let Some(size) = path.candidate(now, mss) {
            path.sent(at..at + size, size);
            assert_eq!(path.candidate(now, mss), None, "one at a time");
            if size <= passes {
                assert_eq!(path.on_acknowledged(now, at + size), Some(size));
                mss = size;
            } else {
                path.on_sent_again(now, &(at..at + 100), mss);
            }
            at += size;
            probes += 1;
        }
        assert!(mss <= passes && mss + WORTHLESS > passes, "{mss}");
        assert!(probes <= 16, "{probes}");
        // Ten minutes later it begins again with the largest.
        assert_eq!(path.candidate(now + RAISE_AFTER, mss), Some(1460));
    }

    #[test]
    fn a_path_that_changed_back_is_found_by_one_probe() {
        let mut path = PathMtu::new(1460);
        path.lowered(Instant::ZERO);
        let now = Instant::ZERO + RAISE_AFTER;
        assert_eq!(path.candidate(now, 536), Some(1460));
        path.sent(1..1461, 1460);
        assert!(path.is_probe(&(1..1461)) && !path.is_probe(&(1..1462)));
        assert_eq!(path.on_acknowledged(now, 1461), Some(1460));
        assert_eq!(path.candidate(now + RAISE_AFTER, 1460), None);
    }
}
