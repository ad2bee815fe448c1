//! What a run *was*: a hash over every packet and event, and the last of them to look at.
//!
//! Two runs are the same run if their hashes are. The hash is XXH3 (64 bits): its output is specified, the same on every machine and in every
//! build. It guards against accidents, not against somebody who wants two runs to look alike.
//!
//! To find out *where* two runs part, the first one keeps a [`Journal`] of all its events, and the second is compared with it while it runs. Only then anything
//! grows with the length of a run; otherwise a trace is a few kilobytes.

use super::decode::RecordStart;
use crate::clock::Instant;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Packets and events that are kept to be shown.
const KEPT: usize = 64;
/// Bytes of a packet that are kept: IP and TCP headers with all options.
const FRONT: usize = 104;
/// Record starts that are kept with a packet.
pub(super) const MAX_RECORDS: usize = 3;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A host handed a packet to its link.
    Sent,
    /// A packet reached a host.
    Delivered,
    /// Something else, by name: a fault, a link that goes down, a host that restarts.
    Event(&'static str),
}

impl Kind {
    fn number(self) -> u64 {
        match self {
            Kind::Sent => 1,
            Kind::Delivered => 2,
            Kind::Event(name) => xxh3_64(name.as_bytes()),
        }
    }
}

/// An event that is kept to be shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub(super) now: Instant,
    pub(super) host: u32,
    pub(super) kind: Kind,
    pub(super) note: &'static str,
    pub(super) packet_len: u32,
    front_len: u8,
    record_count: u8,
    pub(super) more_records: bool,
    /// Whether somebody followed the stream, so that `records` says all there is.
    pub(super) followed: bool,
    front: [u8; FRONT],
    records: [RecordStart; MAX_RECORDS],
}

impl Kept {
    const EMPTY: Kept = Kept {
        now: Instant::ZERO,
        host: 0,
        kind: Kind::Sent,
        note: "",
        packet_len: 0,
        front_len: 0,
        record_count: 0,
        more_records: false,
        followed: false,
        front: [0; FRONT],
        records: [RecordStart {
            content_type: 0,
            number: 0,
            length: 0,
        }; MAX_RECORDS],
    };

    pub(super) fn new(now: Instant, host: u32, kind: Kind, packet: &[u8]) -> Kept {
        let mut kept = Kept::EMPTY;
        kept.set(now, host, kind, packet);
        kept
    }

    /// Overwrites what means something: this happens on every packet.
    fn set(&mut self, now: Instant, host: u32, kind: Kind, packet: &[u8]) {
        let len = packet.len().min(FRONT);
        self.front[..len].copy_from_slice(&packet[..len]);
        self.front_len = len as u8;
        self.packet_len = packet.len() as u32;
        (self.now, self.host, self.kind, self.note) = (now, host, kind, "");
        (self.record_count, self.more_records, self.followed) = (0, false, false);
    }

    /// The packet's front.
    pub(super) fn packet(&self) -> &[u8] {
        &self.front[..usize::from(self.front_len)]
    }

    /// The records that begin in it, as far as there was room to keep them.
    pub(super) fn records(&self) -> Option<&[RecordStart]> {
        self.followed
            .then(|| &self.records[..usize::from(self.record_count)])
    }

    pub(super) fn add_record(&mut self, record: RecordStart) {
        match self.records.get_mut(usize::from(self.record_count)) {
            Some(slot) => {
                *slot = record;
                self.record_count += 1;
            }
            None => self.more_records = true,
        }
    }
}

/// Every event of a run, for comparing another run with it.
#[derive(Debug, Default)]
pub struct Journal(Vec<(u64, Kept)>);

impl Journal {
    /// Number of events.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nothing happened.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Debug)]
enum Memory {
    Short,
    Writing(Journal),
    Comparing { with: Journal, at: usize },
}

/// Two runs that should have been the same part here.
#[derive(Debug)]
pub(super) struct Parting {
    pub(super) index: usize,
    pub(super) expected: Option<Box<Kept>>,
}

/// The trace of a run.
pub(super) struct Trace {
    hash: u64,
    events: u64,
    /// A ring: the oldest is overwritten.
    last: Vec<Kept>,
    /// How many were ever put there.
    kept: usize,
    memory: Memory,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace")
            .field("hash", &format_args!("{:016x}", self.hash()))
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

impl Trace {
    pub(super) fn new(seed: u64) -> Trace {
        Trace {
            hash: seed,
            events: 0,
            last: Vec::with_capacity(KEPT),
            kept: 0,
            memory: Memory::Short,
        }
    }

    /// Keeps all events from now on.
    pub(super) fn keep_journal(&mut self) {
        self.memory = Memory::Writing(Journal::default());
    }

    /// Compares with a run that was before.
    pub(super) fn compare(&mut self, with: Journal) {
        self.memory = Memory::Comparing { with, at: 0 };
    }

    pub(super) fn take_journal(&mut self) -> Option<Journal> {
        match std::mem::replace(&mut self.memory, Memory::Short) {
            Memory::Writing(journal) => Some(journal),
            other => {
                self.memory = other;
                None
            }
        }
    }

    /// The run's hash so far.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// Packets and events so far.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Takes an event into the hash. `content` is what the packet hashes to, or a number that belongs to the event.
    pub(super) fn mix(
        &mut self,
        now: Instant,
        host: u32,
        kind: Kind,
        packet: &[u8],
        content: u64,
    ) -> Result<(), Parting> {
        let mut words = [0; 32];
        let place = u64::from(host) << 32 | packet.len() as u64;
        for (slot, word) in
            words
                .chunks_exact_mut(8)
                .zip([now.as_nanos(), kind.number(), place, content])
        {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        self.hash = xxh3_64_with_seed(&words, self.hash);
        self.events += 1;
        match &mut self.memory {
            Memory::Short => Ok(()),
            Memory::Writing(journal) => {
                journal
                    .0
                    .push((xxh3_64(&words), Kept::new(now, host, kind, packet)));
                Ok(())
            }
            Memory::Comparing { with, at } => {
                let index = *at;
                *at += 1;
                match with.0.get(index) {
                    Some((hash, _)) if *hash == xxh3_64(&words) => Ok(()),
                    other => Err(Parting {
                        index,
                        expected: other.map(|(_, kept)| Box::new(*kept)),
                    }),
                }
            }
        }
    }

    /// The event that the run before had and this one, which is over, did not reach.
    pub(super) fn missing(&self) -> Option<&Kept> {
        match &self.memory {
            Memory::Comparing { with, at } => with.0.get(*at).map(|(_, kept)| kept),
            _ => None,
        }
    }

    /// Keeps an event to be shown, in the place of the oldest, and gives it for what else is to be noted.
    pub(super) fn keep(&mut self, now: Instant, host: u32, kind: Kind, packet: &[u8]) -> &mut Kept {
        if self.last.len() < KEPT {
            self.last.push(Kept::EMPTY);
        }
        let kept = &mut self.last[self.kept % KEPT];
        self.kept += 1;
        kept.set(now, host, kind, packet);
        kept
    }

    /// What was kept last.
    pub(super) fn newest(&self) -> Option<&Kept> {
        self.last.get(self.kept.checked_sub(1)? % KEPT)
    }

    /// What was kept, oldest first.
    pub(super) fn last(&self) -> impl Iterator<Item = &Kept> {
        let oldest = if self.kept > KEPT {
            self.kept % KEPT
        } else {
            0
        };
        self.last[oldest..].iter().chain(&self.last[..oldest])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(trace: &mut Trace, packets: &[&[u8]]) -> Result<(), Parting> {
        for (i, packet) in packets.iter().enumerate() {
            let now = Instant::from_micros(i as u64);
            trace.mix(now, 7, Kind::Sent, packet, xxh3_64(packet))?;
            trace.keep(now, 7, Kind::Sent, packet);
        }
        Ok(())
    }

    /// A golden value: whoever changes it has changed what a run's identity is, for every hash that is written down somewhere.
    #[test]
    fn the_hash_is_the_same_everywhere() {
        let mut trace = Trace::new(1);
        run(&mut trace, &[b"one", b"two"]).expect("nothing to compare with");
        assert_eq!(format!("{:016x}", trace.hash()), "4372e6cc1588e913");
    }

    #[test]
    fn every_part_of_an_event_counts() {
        let hash = |now: u64, host: u32, kind: Kind, packet: &[u8], content: u64| {
            let mut trace = Trace::new(1);
            trace
                .mix(Instant::from_nanos(now), host, kind, packet, content)
                .expect("nothing to compare with");
            trace.hash()
        };
        let base = hash(1, 2, Kind::Sent, b"abc", 3);
        assert_eq!(base, hash(1, 2, Kind::Sent, b"abc", 3));
        for other in [
            hash(2, 2, Kind::Sent, b"abc", 3),
            hash(1, 3, Kind::Sent, b"abc", 3),
            hash(1, 2, Kind::Delivered, b"abc", 3),
            hash(1, 2, Kind::Event("lost"), b"abc", 3),
            hash(1, 2, Kind::Sent, b"abcd", 3),
            hash(1, 2, Kind::Sent, b"abc", 4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_first_difference_is_found() {
        let mut first = Trace::new(1);
        first.keep_journal();
        run(&mut first, &[b"one", b"two", b"three"]).expect("nothing to compare with");
        let journal = first.take_journal().expect("one was kept");
        let mut second = Trace::new(1);
        second.compare(journal);
        let parting = run(&mut second, &[b"one", b"TWO", b"three"]).expect_err("they differ");
        assert_eq!(parting.index, 1);
        assert_eq!(parting.expected.expect("there was one").packet(), b"two");
    }

    #[test]
    fn a_run_that_ends_early_is_a_difference() {
        let mut first = Trace::new(1);
        first.keep_journal();
        run(&mut first, &[b"one", b"two"]).expect("nothing to compare with");
        let mut second = Trace::new(1);
        second.compare(first.take_journal().expect("one was kept"));
        run(&mut second, &[b"one"]).expect("the same so far");
        assert_eq!(second.missing().expect("one more").packet(), b"two");
    }

    #[test]
    fn the_last_are_kept_in_order() {
        let mut trace = Trace::new(1);
        let packets: Vec<[u8; 1]> = (0..200).map(|i| [i]).collect();
        let packets: Vec<&[u8]> = packets.iter().map(|packet| &packet[..]).collect();
        run(&mut trace, &packets).expect("nothing to compare with");
        let last: Vec<u8> = trace.last().map(|kept| kept.packet()[0]).collect();
        assert_eq!(last, (200 - KEPT as u8..200).collect::<Vec<u8>>());
    }
}
