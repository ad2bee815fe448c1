//! The receiving half: putting what arrives in order, and the window that is offered for more.
//!
//! Payloads stay slices of the buffers they arrived in. What waits out of order could pin a large buffer for a few bytes,
//! so short slices are copied out, gathered with their neighbours.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BytesMut};
use core::time::Duration;

use super::options::SackBlocks;
use super::seq::SeqNumber;
use crate::clock::Instant;

/// Out-of-order slices shorter than this are copied out of their buffer.
const COPY_BELOW: usize = 4096;

/// Separate out-of-order runs kept at most; a segment that would begin another is dropped (and sent again).
const MAX_RUNS: usize = 1024;

/// What is offered at least when memory is short and the reader has taken everything, or waits for the rest of a record; in
/// segments.
const PRESSURE_SEGMENTS: u64 = 4;

/// Taken for the round trip until it is measured.
const UNKNOWN_RTT: Duration = Duration::from_millis(100);

/// Consecutive bytes that wait for the ones before them.
#[derive(Debug, Default)]
struct Run {
    end: u64,
    slices: VecDeque<BytesMut>,
}

/// What [`Receive::insert`] did with a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Inserted {
    /// Bytes that became readable.
    pub(super) in_order: u64,
    /// Some of it lies behind a gap, or filled one (or part of one): RFC 5681 §4.2 wants an immediate acknowledgement.
    pub(super) out_of_order: bool,
    /// Nothing of it was new.
    pub(super) duplicate: bool,
}

/// The last measurement of what the reader takes.
#[derive(Debug)]
struct Tuned {
    at: Instant,
    /// Bytes of the stream that it had taken.
    consumed: u64,
    /// Bytes that it took in a round trip.
    a_round_trip: u64,
}

/// Sequence variables, queues and window of the receiving half. Offsets are 64-bit: 0 the peer's SYN.
#[derive(Debug)]
pub(super) struct Receive {
    pub(super) irs: SeqNumber,
    /// RCV.NXT.
    pub(super) nxt: u64,
    /// Right edge of the window offered last: RCV.NXT + RCV.WND. Never moves left.
    advertised: u64,
    /// Shift of the window field we send.
    pub(super) scale: u8,
    /// Bytes that may wait here, and the most that they may become.
    buffer: u64,
    limit: u64,
    tuned: Tuned,
    /// Memory is short, and so many bytes more are needed by a reader that cannot use those it has taken.
    pressure: Option<u64>,
    queue: VecDeque<BytesMut>,
    queued: u64,
    /// Taken by the reader's side, not yet reported consumed.
    taken: u64,
    runs: BTreeMap<u64, Run>,
    /// Bytes in them.
    held: u64,
    /// Where segments arrived out of order, latest first: RFC 2018 §4 wants their runs reported in that order.
    recent: VecDeque<u64>,
    /// A range that arrived twice (RFC 2883), reported once.
    dsack: Option<(u64, u64)>,
    /// Offset of the peer's FIN, once seen.
    pub(super) fin: Option<u64>,
    /// Largest payload of one wire segment seen, as an estimate of the peer's segment size.
    pub(super) peer_mss: u64,
}

/// The shift for a buffer of `bytes`: RFC 7323 §2.2, the smallest that lets the window field say it; at most 14.
pub(super) fn window_scale(bytes: usize) -> u8 {
    (0..14)
        .find(|&shift| bytes >> shift <= usize::from(u16::MAX))
        .unwrap_or(14)
}

impl Receive {
    /// At first `initial` bytes may wait, at most `limit`.
    pub(super) fn new(initial: usize, limit: usize, now: Instant) -> Receive {
        Receive {
            irs: SeqNumber(0),
            nxt: 0,
            advertised: 0,
            scale: 0,
            buffer: initial.min(limit) as u64,
            limit: limit as u64,
            tuned: Tuned {
                at: now,
                consumed: 0,
                a_round_trip: 0,
            },
            pressure: None,
            queue: VecDeque::new(),
            queued: 0,
            taken: 0,
            runs: BTreeMap::new(),
            held: 0,
            recent: VecDeque::new(),
            dsack: None,
            fin: None,
            peer_mss: 536,
        }
    }

    /// The peer's SYN came. What our SYN offered counts from the first byte behind it.
    pub(super) fn start(&mut self, irs: SeqNumber) {
        self.irs = irs;
        self.nxt = 1;
        self.advertised += 1;
    }

    /// RCV.WND as offered.
    pub(super) fn window(&self) -> u64 {
        self.advertised.saturating_sub(self.nxt)
    }

    /// Once a round trip: makes the buffer what the reader takes in two of them, as a window that is lost from must last until
    /// the repetition arrives; in four while that grows, so that a sender that doubles is not held up. It never shrinks,
    /// as nothing is taken until the peer fills it.
    pub(super) fn tune(&mut self, now: Instant, rtt: Option<Duration>) {
        let (elapsed, rtt) = (now.since(self.tuned.at), rtt.unwrap_or(UNKNOWN_RTT));
        if elapsed < rtt || self.buffer >= self.limit {
            return;
        }
        let consumed = self.nxt - self.queued - self.taken;
        let taken =
            u128::from(consumed - self.tuned.consumed) * rtt.as_nanos() / elapsed.as_nanos().max(1);
        // Not more than was consumed.
        let taken = taken as u64;
        let factor = if taken > self.tuned.a_round_trip {
            4
        } else {
            2
        };
        self.buffer = (factor * taken).clamp(self.buffer, self.limit);
        self.tuned = Tuned {
            at: now,
            consumed,
            a_round_trip: taken,
        };
    }

    /// Whether bytes wait behind a gap.
    pub(super) fn has_gap(&self) -> bool {
        !self.runs.is_empty()
    }

    /// Takes `payload`, whose first byte is at `start`. The caller has cut it to the window.
    pub(super) fn insert(&mut self, mut start: u64, mut payload: BytesMut) -> Inserted {
        let mut inserted = Inserted {
            duplicate: true,
            ..Inserted::default()
        };
        if payload.is_empty() {
            inserted.duplicate = false;
            return inserted;
        }
        if start < self.nxt {
            let old = (self.nxt - start).min(payload.len() as u64);
            self.dsack = Some((start, start + old));
            // At most the payload's length.
            payload.advance(old as usize);
            start += old;
        }
        let before = self.nxt;
        if start == self.nxt && self.runs.is_empty() && !payload.is_empty() {
            inserted.duplicate = false;
            self.deliver(payload);
        } else {
            let had_gap = self.has_gap();
            while !payload.is_empty() {
                let len = payload.len() as u64;
                let covered = self
                    .runs
                    .range(..=start)
                    .next_back()
                    .map_or(0, |(_, run)| run.end);
                if covered > start {
                    // What came first stays: a later copy with other bytes changes nothing.
                    let old = (covered - start).min(len);
                    self.dsack = Some((start, start + old));
                    // RFC 2883 §4.2: the block behind it is the one that holds it.
                    self.recent.push_front(start);
                    self.recent.truncate(4);
                    payload.advance(old as usize);
                    start += old;
                    continue;
                }
                let gap_end = self
                    .runs
                    .range(start..)
                    .next()
                    .map_or(u64::MAX, |(&next, _)| next);
                let piece = payload.split_to((gap_end - start).min(len) as usize);
                let piece_len = piece.len() as u64;
                inserted.duplicate = false;
                if start == self.nxt {
                    self.deliver(piece);
                } else {
                    self.hold(start, piece);
                }
                start += piece_len;
            }
            while let Some(first) = self.runs.first_entry()
                && *first.key() == self.nxt
            {
                for slice in first.remove().slices {
                    self.held -= slice.len() as u64;
                    self.deliver(slice);
                }
            }
            inserted.out_of_order = had_gap || self.has_gap();
        }
        inserted.in_order = self.nxt - before;
        inserted
    }

    fn deliver(&mut self, slice: BytesMut) {
        self.nxt += slice.len() as u64;
        self.queued += slice.len() as u64;
        self.queue.push_back(slice);
    }

    /// Keeps `piece`, which overlaps no run, for later.
    fn hold(&mut self, start: u64, piece: BytesMut) {
        let end = start + piece.len() as u64;
        let left = self
            .runs
            .range(..start)
            .next_back()
            .filter(|(_, run)| run.end == start)
            .map(|(&at, _)| at);
        if left.is_none() && self.runs.len() >= MAX_RUNS {
            return;
        }
        self.held += piece.len() as u64;
        let right = self.runs.remove(&end);
        let run = self.runs.entry(left.unwrap_or(start)).or_default();
        run.end = end;
        match run.slices.back_mut() {
            Some(last) if piece.len() < COPY_BELOW && last.len() + piece.len() <= COPY_BELOW => {
                last.extend_from_slice(&piece);
            }
            _ if piece.len() < COPY_BELOW => run.slices.push_back(BytesMut::from(&piece[..])),
            _ => run.slices.push_back(piece),
        }
        if let Some(mut right) = right {
            run.end = right.end;
            if right.slices.len() > run.slices.len() {
                while let Some(slice) = run.slices.pop_back() {
                    right.slices.push_front(slice);
                }
                run.slices = right.slices;
            } else {
                run.slices.append(&mut right.slices);
            }
        }
        self.recent.push_front(start);
        self.recent.truncate(4);
    }

    /// The blocks for the next acknowledgement: a duplicate first (RFC 2883 §4), then the runs, latest first (RFC 2018 §4).
    pub(super) fn sack_blocks(&mut self, room: usize) -> SackBlocks {
        let mut blocks = SackBlocks::EMPTY;
        let mut reported: [u64; 4] = [u64::MAX; 4];
        let mut count = 0;
        if let Some((left, right)) = self.dsack.take() {
            blocks.push(self.irs.at(left), self.irs.at(right));
            count = 1;
        }
        let nxt = self.nxt;
        self.recent.retain(|&at| at > nxt);
        for &at in &self.recent {
            if count >= room.min(4) {
                break;
            }
            if let Some((&left, run)) = self.runs.range(..=at).next_back()
                && run.end > at
                && !reported.contains(&left)
            {
                blocks.push(self.irs.at(left), self.irs.at(run.end));
                reported[count] = left;
                count += 1;
            }
        }
        blocks
    }

    /// Whether the peer should be told of a duplicate.
    pub(super) fn has_dsack(&self) -> bool {
        self.dsack.is_some()
    }

    /// What may be offered: the right edge that the free buffer allows and a window field shifted by `scale` can say.
    fn offer(&self, scale: u8) -> u64 {
        let mut free = self.buffer.saturating_sub(self.queued + self.taken);
        if let Some(missing) = self.pressure {
            // Who waits for the rest of a record returns no memory before it has come: two hosts that fill each other's memory
            // with beginnings of records would wait for each other.
            let missing = missing.saturating_sub(self.queued);
            let idle = self.queued + self.taken + self.held == 0;
            free = free.min(if idle || missing > 0 {
                missing.max(PRESSURE_SEGMENTS * self.peer_mss)
            } else {
                0
            });
        }
        self.nxt + ((free >> scale).min(u64::from(u16::MAX)) << scale)
    }

    /// The window field for a segment sent now, with `scale` (0 on SYNs), moving the offered edge.
    ///
    /// RFC 9293 §3.8.6.2.2: "the suggested SWS avoidance algorithm for the receiver is to keep RCV.NXT+RCV.WND fixed until
    /// the reduction satisfies: RCV.BUFF - RCV.USER - RCV.WND >= min( Fr * RCV.BUFF, Eff.snd.MSS )". §3.8.6: "a TCP receiver
    /// SHOULD NOT shrink the window": the edge does not move left, and an edge that the shift cannot say is rounded up.
    pub(super) fn advertise(&mut self, scale: u8) -> u16 {
        let unit = 1u64 << scale;
        let (offer, step) = (self.offer(scale), (self.buffer / 2).min(self.peer_mss));
        if offer >= self.advertised + step.max(1) {
            self.advertised = offer;
        }
        let field = self.window().div_ceil(unit).min(u64::from(u16::MAX));
        self.advertised = self.nxt + field * unit;
        // Capped above.
        field as u16
    }

    /// Whether the reader made enough room to say so without being asked: the window at least doubles, and by a segment or
    /// half the buffer.
    pub(super) fn update_due(&self) -> bool {
        let (offer, open) = (self.offer(self.scale), self.window());
        let gained = offer.saturating_sub(self.advertised);
        gained >= (self.buffer / 2).min(self.peer_mss).max(1)
            && gained >= open
            && open <= self.buffer / 2
    }

    pub(super) fn take(&mut self) -> Option<BytesMut> {
        let slice = self.queue.pop_front()?;
        self.queued -= slice.len() as u64;
        self.taken += slice.len() as u64;
        Some(slice)
    }

    pub(super) fn consumed(&mut self, n: usize) {
        debug_assert!(
            n as u64 <= self.taken,
            "consumed {n} of {} bytes taken",
            self.taken
        );
        self.taken = self.taken.saturating_sub(n as u64);
    }

    /// Bytes that wait, in order or not.
    pub(super) fn memory(&self) -> usize {
        // Never more than was offered.
        (self.queued + self.held) as usize
    }

    /// Returns whether it changed.
    pub(super) fn set_pressure(&mut self, pressure: Option<u64>) -> bool {
        core::mem::replace(&mut self.pressure, pressure) != pressure
    }

    pub(super) fn readable(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The FIN is consumed and everything before it taken.
    pub(super) fn closed(&self) -> bool {
        self.fin.is_some_and(|fin| self.nxt > fin) && self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn receiver() -> Receive {
        let mut receive = Receive::new(10_000, 10_000, Instant::ZERO);
        receive.nxt = 1;
        receive.advertise(0);
        receive
    }

    #[test]
    fn blocks_name_the_latest_arrival_first() {
        let mut receive = receiver();
        receive.insert(101, BytesMut::from(&[1; 50][..]));
        receive.insert(301, BytesMut::from(&[2; 50][..]));
        receive.insert(151, BytesMut::from(&[3; 10][..]));
        let blocks = receive.sack_blocks(3);
        assert_eq!(
            blocks.as_slice(),
            [
                (SeqNumber(101), SeqNumber(161)),
                (SeqNumber(301), SeqNumber(351))
            ]
        );
        receive.insert(101, BytesMut::from(&[9; 20][..]));
        assert_eq!(
            receive.sack_blocks(3).as_slice()[0],
            (SeqNumber(101), SeqNumber(121))
        );
        assert_eq!(
            receive.insert(1, BytesMut::from(&[0; 100][..])).in_order,
            160
        );
        assert_eq!(
            receive.sack_blocks(3).as_slice(),
            [(SeqNumber(301), SeqNumber(351))]
        );
    }

    #[test]
    fn the_window_never_moves_left_and_opens_in_steps() {
        let mut receive = Receive::new(10_000, 10_000, Instant::ZERO);
        receive.nxt = 1;
        receive.peer_mss = 1000;
        assert_eq!(receive.advertise(0), 10_000);
        receive.insert(1, BytesMut::from(&[0; 9_500][..]));
        assert_eq!(receive.advertise(0), 500);
        receive.take();
        receive.consumed(900);
        assert!(!receive.update_due());
        assert_eq!(receive.advertise(0), 500);
        receive.consumed(200);
        assert!(receive.update_due());
        assert_eq!(receive.advertise(0), 1_600);
    }

    proptest! {
        /// Segments cut anywhere, in any order, any number of times, with wrong bytes in the repeated parts or not: what
        /// is delivered is the stream, and what is reported is what is held.
        #[test]
        fn reassembly_matches_a_model(
            pieces in proptest::collection::vec((0usize..3000, 1usize..600), 1..60),
        ) {
            let stream: Vec<u8> = (0..4000usize).map(|n| (n * 7 + n / 256) as u8).collect();
            let mut receive = receiver();
            let mut have = vec![false; stream.len()];
            let mut delivered = Vec::new();
            for (start, len) in pieces {
                let end = (start + len).min(stream.len());
                receive.insert(1 + start as u64, BytesMut::from(&stream[start..end]));
                have[start..end].fill(true);
                while let Some(slice) = receive.take() {
                    delivered.extend_from_slice(&slice);
                }
                let expect = have.iter().position(|have| !have).unwrap_or(have.len());
                prop_assert_eq!(receive.nxt, 1 + expect as u64);
                prop_assert_eq!(delivered.len(), expect);
                for (&at, run) in &receive.runs {
                    prop_assert!(at > receive.nxt && run.end > at);
                    prop_assert_eq!(run.slices.iter().map(|s| s.len() as u64).sum::<u64>(), run.end - at);
                    prop_assert!(have[at as usize - 1..run.end as usize - 1].iter().all(|have| *have));
                    prop_assert!(have.get(run.end as usize - 1) != Some(&true));
                }
            }
            prop_assert_eq!(&delivered[..], &stream[..delivered.len()]);
        }
    }
}
