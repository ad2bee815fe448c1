//! What of the stream is between us and the peer: every sent range with the time it was sent and what became of it.
//!
//! One entry is one transmission (a super-segment is one entry), split where the peer acknowledges a part of it and
//! merged where neighbours share a fate. Offsets are 64-bit sequence offsets: 0 the SYN, 1 the stream's first byte; a
//! FIN is one more byte at the end. Entries are contiguous from SND.UNA to SND.NXT, so a lookup is a binary search; sums
//! are kept, so the bytes in flight (`pipe` of RFC 6675) cost nothing to know.
//!
//! Beside the entries, which lie in sequence order, a log holds the transmissions in order of time, which is the order
//! in which RACK gives up on them: looking for losses costs what it finds, however much is in flight.

use core::ops::Range;
use core::time::Duration;
use std::collections::VecDeque;

use crate::clock::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    InFlight,
    Sacked,
    /// Taken for lost and not sent again since.
    Lost,
}

#[derive(Debug, Clone)]
struct Sent {
    start: u64,
    end: u64,
    /// The last transmission.
    at: Instant,
    fate: Fate,
    /// Sent more than once: a round trip measured on it is ambiguous (Karn).
    again: bool,
}

impl Sent {
    fn len(&self) -> u64 {
        self.end - self.start
    }
}

/// A transmission in the log. What of its range was delivered, lost or sent again since has another fate or time in the
/// entries.
#[derive(Debug, Clone)]
struct Logged {
    at: Instant,
    start: u64,
    end: u64,
}

/// A transmission, ordered as RFC 8985 §5.2 orders them: by time, by sequence where times are equal.
pub(super) type Transmission = (Instant, u64);

/// What one acknowledgement, with its SACK blocks, delivered.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    now: Instant,
    min_rtt: Duration,
    /// TSecr, and the offset of our timestamps.
    echo: Option<(u32, u32)>,
    /// Bytes newly known to have arrived.
    pub(super) bytes: u64,
    /// Of these, bytes by SACK blocks.
    pub(super) sacked: u64,
    /// When the newest newly delivered range was sent, of those sent only once.
    pub(super) sent_once_at: Option<Instant>,
    /// The newest delivered transmission (RACK.xmit_ts and RACK.end_seq).
    pub(super) newest: Option<Transmission>,
    /// A range sent only once arrived after a later one: the network reorders.
    pub(super) reordered: bool,
    /// A range that was sent again was delivered.
    pub(super) again: bool,
}

impl Delivery {
    pub(super) fn new(now: Instant, min_rtt: Duration, echo: Option<(u32, u32)>) -> Delivery {
        Delivery {
            now,
            min_rtt,
            echo,
            bytes: 0,
            sacked: 0,
            sent_once_at: None,
            newest: None,
            reordered: false,
            again: false,
        }
    }

    fn take(&mut self, sent: &Sent, bytes: u64, fack: u64) {
        self.bytes += bytes;
        if sent.again {
            self.again = true;
            // RFC 8985 §6.2, step 2: what was sent again and is acknowledged less than a round trip later, or with the echo of an
            // older timestamp, may be the original that arrived late: no conclusion.
            let older = |(tsecr, offset): (u32, u32)| {
                (tsecr.wrapping_sub(super::timestamp(offset, sent.at)) as i32) < 0
            };
            if self.now.since(sent.at) < self.min_rtt || self.echo.is_some_and(older) {
                return;
            }
        } else {
            self.sent_once_at = self.sent_once_at.max(Some(sent.at));
            // Step 3: "RACK.fack ... if Segment.end_seq < RACK.fack and never retransmitted: reordering seen".
            self.reordered |= sent.end < fack;
        }
        self.newest = self.newest.max(Some((sent.at, sent.end)));
    }
}

/// The sent ranges.
#[derive(Debug, Clone, Default)]
pub(super) struct Scoreboard {
    sent: VecDeque<Sent>,
    /// Transmissions by time; those whose range is acknowledged go when they come to the front.
    log: VecDeque<Logged>,
    in_flight: u64,
    sacked: u64,
    lost: u64,
    /// No lost range starts below this.
    lost_from: u64,
    /// End of the highest delivered range.
    fack: u64,
}

impl Scoreboard {
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Bytes thought to be in the network: `pipe`.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Bytes held by the peer out of order.
    pub(super) fn sacked(&self) -> u64 {
        self.sacked
    }

    /// Bytes taken for lost and not yet sent again.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// New bytes went out.
    pub(super) fn sent(&mut self, range: Range<u64>, at: Instant) {
        self.in_flight += range.end - range.start;
        self.record(&range, at);
        if let Some(last) = self.sent.back_mut()
            && last.at == at
            && last.fate == Fate::InFlight
            && !last.again
        {
            last.end = range.end;
            return;
        }
        self.sent.push_back(Sent {
            start: range.start,
            end: range.end,
            at,
            fate: Fate::InFlight,
            again: false,
        });
    }

    fn record(&mut self, range: &Range<u64>, at: Instant) {
        if let Some(last) = self.log.back_mut()
            && last.at == at
            && last.end == range.start
        {
            last.end = range.end;
            return;
        }
        self.log.push_back(Logged {
            at,
            start: range.start,
            end: range.end,
        });
    }

    /// Whether the first unacknowledged byte was sent more than once.
    pub(super) fn head_sent_again(&self) -> bool {
        self.sent.front().is_some_and(|sent| sent.again)
    }

    /// When the first unacknowledged byte was sent last.
    pub(super) fn oldest_at(&self) -> Option<Instant> {
        self.sent.front().map(|sent| sent.at)
    }

    fn sum(&mut self, fate: Fate) -> &mut u64 {
        match fate {
            Fate::InFlight => &mut self.in_flight,
            Fate::Sacked => &mut self.sacked,
            Fate::Lost => &mut self.lost,
        }
    }

    fn set(&mut self, index: usize, fate: Fate) {
        let (len, old, start) = (
            self.sent[index].len(),
            self.sent[index].fate,
            self.sent[index].start,
        );
        *self.sum(old) -= len;
        *self.sum(fate) += len;
        self.sent[index].fate = fate;
        if fate == Fate::Lost {
            self.lost_from = self.lost_from.min(start);
        }
    }

    /// Splits the entry at `index` so that one ends at `at`, which lies strictly inside it.
    fn split(&mut self, index: usize, at: u64) {
        let mut tail = self.sent[index].clone();
        tail.start = at;
        self.sent[index].end = at;
        self.sent.insert(index + 1, tail);
    }

    /// Everything below `una` is acknowledged.
    pub(super) fn acknowledge(&mut self, una: u64, delivery: &mut Delivery) {
        while let Some(front) = self.sent.front_mut() {
            if front.start >= una {
                break;
            }
            let bytes = front.end.min(una) - front.start;
            let mut sent = front.clone();
            sent.end = front.start + bytes;
            front.start += bytes;
            let done = front.start == front.end;
            *self.sum(sent.fate) -= bytes;
            if sent.fate != Fate::Sacked {
                delivery.take(&sent, bytes, self.fack);
            }
            if done {
                self.sent.pop_front();
            }
        }
        while self.log.front().is_some_and(|logged| logged.end <= una) {
            self.log.pop_front();
        }
        self.fack = self.fack.max(una);
        self.lost_from = self.lost_from.max(una);
    }

    /// The peer holds `range`.
    pub(super) fn sack(&mut self, range: Range<u64>, delivery: &mut Delivery) {
        let mut index = self.sent.partition_point(|sent| sent.end <= range.start);
        while let Some(sent) = self.sent.get(index) {
            if sent.start >= range.end {
                break;
            }
            if sent.fate == Fate::Sacked {
                index += 1;
                continue;
            }
            if sent.start < range.start {
                self.split(index, range.start);
                index += 1;
            }
            if self.sent[index].end > range.end {
                self.split(index, range.end);
            }
            let sent = self.sent[index].clone();
            delivery.take(&sent, sent.len(), self.fack);
            delivery.sacked += sent.len();
            self.set(index, Fate::Sacked);
            self.fack = self.fack.max(sent.end);
            if index > 0 && self.sent[index - 1].fate == Fate::Sacked {
                self.sent[index - 1].end = sent.end;
                self.sent.remove(index);
            } else {
                index += 1;
            }
            // A sacked neighbour above joins too, so that holes and not segments are what a scan meets.
            if index < self.sent.len() && self.sent[index].fate == Fate::Sacked {
                self.sent[index - 1].end = self.sent[index].end;
                self.sent.remove(index);
            }
        }
    }

    /// RFC 8985 §6.2, step 5 (RACK_detect_loss): marks as lost what was sent before the newest delivered transmission and
    /// more than `window` (RACK.rtt + RACK.reo_wnd) ago. Returns how long until the next range would be, if any: the RFC
    /// arms its timer for the last of them, but the first can be sent again as soon as it is known to be lost.
    pub(super) fn detect_lost(
        &mut self,
        now: Instant,
        newest: Transmission,
        window: Duration,
    ) -> Option<Duration> {
        while let Some(logged) = self.log.front().cloned() {
            if (logged.at, logged.start) >= newest {
                return None;
            }
            let end = if logged.at == newest.0 {
                logged.end.min(newest.1)
            } else {
                logged.end
            };
            let due = logged.at + window;
            if due > now {
                if self.is_out(&logged) {
                    return Some(due.since(now));
                }
            } else {
                self.lose(logged.at, logged.start..end);
                if end < logged.end {
                    // What was sent at the same time and lies behind what arrived may still arrive.
                    self.log[0].start = end;
                    return None;
                }
            }
            self.log.pop_front();
        }
        None
    }

    /// Whether some of a logged transmission is still the last one of its range, and in flight.
    fn is_out(&self, logged: &Logged) -> bool {
        let first = self.sent.partition_point(|sent| sent.end <= logged.start);
        self.sent
            .range(first..)
            .take_while(|sent| sent.start < logged.end)
            .any(|sent| sent.fate == Fate::InFlight && sent.at == logged.at)
    }

    /// What of `range` is in flight since `at` is lost.
    fn lose(&mut self, at: Instant, range: Range<u64>) {
        let mut index = self.sent.partition_point(|sent| sent.end <= range.start);
        while let Some(sent) = self.sent.get(index) {
            if sent.start >= range.end {
                break;
            }
            if sent.fate == Fate::InFlight && sent.at == at {
                if sent.start < range.start {
                    self.split(index, range.start);
                    index += 1;
                }
                if self.sent[index].end > range.end {
                    self.split(index, range.end);
                }
                self.set(index, Fate::Lost);
            }
            index += 1;
        }
    }

    /// The first `mss` bytes are lost (NewReno, which knows no more).
    pub(super) fn lose_head(&mut self, mss: u64) {
        if let Some(front) = self.sent.front()
            && front.fate == Fate::InFlight
        {
            let at = front.start + mss;
            if front.end > at {
                self.split(0, at);
            }
            self.set(0, Fate::Lost);
        }
    }

    /// A retransmission timeout: everything in flight is taken for lost. When the peer has gone back on a SACK (the byte
    /// at SND.UNA is sacked and yet not acknowledged), its SACKs are forgotten: RFC 2018 §8, "after a retransmit timeout the
    /// data sender SHOULD turn off all of the SACKed bits, since the timeout might indicate that the data receiver has
    /// reneged".
    pub(super) fn lose_all(&mut self) {
        let reneged = self
            .sent
            .front()
            .is_some_and(|front| front.fate == Fate::Sacked);
        for index in 0..self.sent.len() {
            if self.sent[index].fate == Fate::InFlight || reneged {
                self.set(index, Fate::Lost);
            }
        }
        self.log.clear();
    }

    /// A loss was not one: what is marked lost is in flight after all.
    pub(super) fn unlose(&mut self) {
        for index in 0..self.sent.len() {
            if self.sent[index].fate == Fate::Lost {
                self.set(index, Fate::InFlight);
            }
        }
        let out = self.sent.iter().filter(|sent| sent.fate == Fate::InFlight);
        let mut log: Vec<Logged> = out
            .map(|sent| Logged {
                at: sent.at,
                start: sent.start,
                end: sent.end,
            })
            .collect();
        log.sort_by_key(|logged| (logged.at, logged.end));
        self.log = log.into();
    }

    /// The first lost range, cut after `limit` bytes.
    pub(super) fn next_lost(&mut self, limit: u64) -> Option<Range<u64>> {
        if self.lost == 0 {
            return None;
        }
        let first = self.sent.partition_point(|sent| sent.end <= self.lost_from);
        let index = (first..self.sent.len()).find(|&index| self.sent[index].fate == Fate::Lost)?;
        let start = self.sent[index].start;
        self.lost_from = start;
        let mut end = start;
        for sent in self.sent.range(index..) {
            if sent.fate != Fate::Lost || end - start >= limit {
                break;
            }
            end = sent.end;
        }
        Some(start..end.min(start + limit))
    }

    /// `range`, lost before or not (a probe), was sent again.
    pub(super) fn sent_again(&mut self, range: Range<u64>, at: Instant) {
        self.record(&range, at);
        let mut index = self.sent.partition_point(|sent| sent.end <= range.start);
        if self
            .sent
            .get(index)
            .is_some_and(|sent| sent.start < range.start)
        {
            self.split(index, range.start);
            index += 1;
        }
        while let Some(sent) = self.sent.get(index) {
            if sent.start >= range.end {
                break;
            }
            if sent.end > range.end {
                self.split(index, range.end);
            }
            self.set(index, Fate::InFlight);
            let sent = &mut self.sent[index];
            (sent.at, sent.again) = (at, true);
            index += 1;
        }
    }

    /// The last `mss` bytes sent, for a tail loss probe.
    pub(super) fn tail(&self, mss: u64) -> Option<Range<u64>> {
        let last = self.sent.back()?;
        Some(last.start.max(last.end.saturating_sub(mss))..last.end)
    }

    /// Every sum is what the entries say, and the entries are contiguous.
    #[cfg(test)]
    fn check(&self) {
        for fate in [Fate::InFlight, Fate::Sacked, Fate::Lost] {
            let sum: u64 = self
                .sent
                .iter()
                .filter(|sent| sent.fate == fate)
                .map(Sent::len)
                .sum();
            assert_eq!(sum, *self.clone().sum(fate), "{fate:?}");
        }
        for (a, b) in self.sent.iter().zip(self.sent.iter().skip(1)) {
            assert!(a.end == b.start && a.start < a.end);
            assert!(a.fate != Fate::Sacked || b.fate != Fate::Sacked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn ten_segments() -> Scoreboard {
        let mut board = Scoreboard::default();
        for n in 0..10 {
            board.sent(1 + n * 100..101 + n * 100, at(n));
        }
        board
    }

    #[test]
    fn a_hole_is_lost_once_a_later_transmission_arrived() {
        let mut board = ten_segments();
        let mut delivery = Delivery::new(at(50), Duration::ZERO, None);
        board.acknowledge(101, &mut delivery);
        board.sack(301..601, &mut delivery);
        board.check();
        assert_eq!(
            (delivery.bytes, delivery.sacked, delivery.newest),
            (400, 300, Some((at(5), 601)))
        );
        assert_eq!(
            (board.in_flight(), board.sacked(), board.lost()),
            (600, 300, 0)
        );
        let newest = delivery.newest.expect("something was delivered");
        assert_eq!(
            board.detect_lost(at(50), newest, Duration::from_millis(49)),
            Some(Duration::from_millis(1))
        );
        assert_eq!(board.lost(), 100);
        board.detect_lost(at(51), newest, Duration::from_millis(49));
        assert_eq!(board.next_lost(1000), Some(101..301));
        assert_eq!(board.next_lost(150), Some(101..251));
        board.sent_again(101..251, at(51));
        board.check();
        assert_eq!(board.next_lost(1000), Some(251..301));
        board.sent_again(251..301, at(51));
        assert_eq!((board.next_lost(1000), board.in_flight()), (None, 600));
    }

    #[test]
    fn of_one_burst_only_what_lies_before_what_arrived_can_be_lost() {
        let mut board = Scoreboard::default();
        board.sent(1..1001, at(0));
        let mut delivery = Delivery::new(at(50), Duration::ZERO, None);
        board.acknowledge(301, &mut delivery);
        assert_eq!(delivery.newest, Some((at(0), 301)));
        board.sack(501..701, &mut delivery);
        let newest = delivery.newest.expect("something was delivered");
        assert_eq!(board.detect_lost(at(50), newest, Duration::ZERO), None);
        assert_eq!((board.next_lost(1000), board.lost()), (Some(301..501), 200));
        board.sack(901..1001, &mut delivery);
        let newest = delivery.newest.expect("something was delivered");
        board.detect_lost(at(50), newest, Duration::ZERO);
        assert_eq!(board.lost(), 400);
        board.check();
    }

    #[test]
    fn reneging_is_met_at_a_timeout() {
        let mut board = ten_segments();
        let mut delivery = Delivery::new(at(50), Duration::ZERO, None);
        board.sack(101..301, &mut delivery);
        board.lose_all();
        assert_eq!((board.lost(), board.sacked()), (800, 200));
        board.acknowledge(101, &mut delivery);
        board.lose_all();
        assert_eq!((board.lost(), board.sacked()), (900, 0));
    }

    proptest! {
        #[test]
        fn sums_hold_whatever_happens(steps in proptest::collection::vec((0u8..6, 0u64..3000, 1u64..800), 1..80)) {
            let mut board = Scoreboard::default();
            let (mut una, mut nxt) = (1u64, 1u64);
            for (now, (what, a, len)) in steps.into_iter().enumerate() {
                let now = at(now as u64 / 2);
                let mut delivery = Delivery::new(now, Duration::ZERO, None);
                match what {
                    0 => { board.sent(nxt..nxt + len, now); nxt += len; }
                    1 => { una = (una + a % 500).min(nxt); board.acknowledge(una, &mut delivery); }
                    2 => { let left = (una + a).min(nxt); let right = (left + len).min(nxt);
                           if left < right { board.sack(left..right, &mut delivery); } }
                    3 => {
                        // The log finds exactly what a scan would.
                        let newest = (now - Duration::from_millis(a % 5), nxt + 1);
                        let window = Duration::from_millis(len % 4);
                        let due = |sent: &&Sent| sent.fate == Fate::InFlight && (sent.at, sent.end) < newest && sent.at + window <= now;
                        let expected: u64 = board.sent.iter().filter(due).map(Sent::len).sum();
                        let before = board.lost();
                        board.detect_lost(now, newest, window);
                        prop_assert_eq!(board.lost() - before, expected);
                    }
                    5 if a % 3 == 0 => board.unlose(),
                    4 => { if let Some(range) = board.next_lost(len) { board.sent_again(range, now); } }
                    _ => board.lose_all(),
                }
                board.check();
                let total = board.in_flight() + board.sacked() + board.lost();
                prop_assert_eq!(total, nxt - una);
                if board.lost() > 0 {
                    prop_assert!(board.next_lost(100).is_some());
                }
            }
        }
    }
}
