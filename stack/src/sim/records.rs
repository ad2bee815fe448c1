//! Where TLS and DTLS records begin in the packets that pass.
//!
//! For TLS a [`Flow`] follows one direction of a TCP connection from record header to record header. It reads no record's
//! contents and keeps no bytes but those of a header that is split over two segments. A segment that was lost before it came here leaves
//! a gap: the flow waits for the bytes (they will be sent again) while later segments pass without records. Where bytes are no record header (plain bytes in front of
//! the handshake), it tries again at each following segment's start.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

/// Length of a TLS record header.
const TLS_HEADER: usize = 5;
/// RFC 5246 §6.2.3: a record is at most 2¹⁴ + 2,048 bytes.
const MAX_RECORD: usize = (1 << 14) + 2048;
/// Record starts that a flow remembers for segments that are sent again.
const REMEMBERED: usize = 4096;
/// Connections that are followed at a time.
const MAX_FLOWS: usize = 1024;

/// A record's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Sequence number of its first byte.
    pub seq: u32,
    /// Content type in its header.
    pub content_type: u8,
    /// How many records began before it, plus one.
    pub number: u64,
    /// The same among those of its type.
    pub number_of_type: u64,
}

/// The records that begin in one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment(Vec<Start>);

impl Segment {
    /// Whether a record of this type (if any is asked for) and this number (of that type, if one is asked for) is among them.
    pub fn has(&self, content_type: Option<u8>, number: Option<u64>) -> bool {
        self.0.iter().any(|start| {
            let count = if content_type.is_some() {
                start.number_of_type
            } else {
                start.number
            };
            content_type.is_none_or(|wanted| wanted == start.content_type)
                && number.is_none_or(|wanted| wanted == count)
        })
    }

    /// In the order of the stream.
    pub fn starts(&self) -> &[Start] {
        &self.0
    }
}

/// One direction of a TCP connection.
#[derive(Debug)]
pub struct Flow {
    /// Sequence number at which the next record header begins.
    next: u32,
    /// The bytes of that header that came so far.
    header: Vec<u8>,
    /// What stood at `next` was no record header.
    lost: bool,
    records: u64,
    by_type: BTreeMap<u8, u64>,
    starts: VecDeque<Start>,
}

impl Flow {
    /// A flow whose first byte has this sequence number.
    pub fn new(first: u32) -> Flow {
        Flow {
            next: first,
            header: Vec::with_capacity(TLS_HEADER),
            lost: false,
            records: 0,
            by_type: BTreeMap::new(),
            starts: VecDeque::new(),
        }
    }

    /// Follows the stream through a segment and names the records that begin in it.
    pub fn pass(&mut self, seq: u32, payload: &[u8]) -> Segment {
        if self.lost && !payload.is_empty() && plausible(payload) {
            self.lost = false;
            self.next = seq;
        }
        let mut at = self
            .next
            .wrapping_add(self.header.len() as u32)
            .wrapping_sub(seq) as usize;
        // An offset outside the segment: the header lies behind it or (wrapped) in front of it.
        while !self.lost && at < payload.len() {
            let missing = TLS_HEADER - self.header.len();
            let taken = &payload[at..payload.len().min(at + missing)];
            if self.header.is_empty() {
                // The type and number are known from the first byte on, which is where the record begins.
                self.begin(taken[0]);
            }
            self.header.extend_from_slice(taken);
            if !plausible(&self.header) {
                self.forget();
                break;
            }
            if self.header.len() < TLS_HEADER {
                break;
            }
            let length = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
            self.header.clear();
            self.next = self.next.wrapping_add((TLS_HEADER + length) as u32);
            at += missing + length;
        }
        let begins_here = |start: &&Start| (start.seq.wrapping_sub(seq) as usize) < payload.len();
        Segment(self.starts.iter().filter(begins_here).copied().collect())
    }

    fn begin(&mut self, content_type: u8) {
        self.records += 1;
        let of_type = self.by_type.entry(content_type).or_default();
        *of_type += 1;
        if self.starts.len() == REMEMBERED {
            self.starts.pop_front();
        }
        self.starts.push_back(Start {
            seq: self.next,
            content_type,
            number: self.records,
            number_of_type: *of_type,
        });
    }

    /// What was taken for a record's start was none.
    fn forget(&mut self) {
        if let Some(start) = self.starts.pop_back() {
            self.records -= 1;
            if let Some(of_type) = self.by_type.get_mut(&start.content_type) {
                *of_type -= 1;
            }
        }
        self.header.clear();
        self.lost = true;
    }
}

/// Whether these may be the first bytes of a record header: a known content type, version 3.x, a length that is allowed.
fn plausible(bytes: &[u8]) -> bool {
    let length = match bytes.get(3..5) {
        Some(field) => usize::from(u16::from_be_bytes([field[0], field[1]])),
        None => 0,
    };
    bytes.first().is_none_or(|kind| (20..=24).contains(kind))
        && bytes.get(1).is_none_or(|&major| major == 3)
        && length <= MAX_RECORD
}

/// Source and destination, each address and port.
pub type FlowKey = (IpAddr, u16, IpAddr, u16);

/// All connections of one direction of a link.
#[derive(Debug, Default)]
pub struct Flows(BTreeMap<FlowKey, Flow>);

impl Flows {
    /// Follows a segment's connection. A SYN starts it anew; a connection whose SYN was not seen starts at this segment.
    pub fn pass(&mut self, key: FlowKey, syn: bool, seq: u32, payload: &[u8]) -> Segment {
        if syn || !self.0.contains_key(&key) {
            if self.0.len() >= MAX_FLOWS {
                self.0.pop_first();
            }
            self.0
                .insert(key, Flow::new(seq.wrapping_add(u32::from(syn))));
        }
        match self.0.get_mut(&key) {
            Some(flow) if !syn => flow.pass(seq, payload),
            _ => Segment::default(),
        }
    }
}

/// The DTLS records of one datagram: content type and epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Datagram(Vec<(Option<u8>, Epoch)>);

/// A record's epoch as its header tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Epoch {
    Whole(u16),
    /// RFC 9147 §4: the unified header has "the low two bits of the epoch".
    LowBits(u16),
}

impl Datagram {
    /// Reads the record headers; whatever is not DTLS has none.
    pub fn read(mut payload: &[u8]) -> Datagram {
        let mut records = Vec::new();
        loop {
            match *payload {
                // RFC 6347 §4.1: type, version {254, 253 or 255}, epoch (2), sequence number (6), length (2).
                [
                    kind,
                    254,
                    253 | 255,
                    high,
                    low,
                    _,
                    _,
                    _,
                    _,
                    _,
                    _,
                    len_high,
                    len_low,
                    ref rest @ ..,
                ] => {
                    let length = usize::from(u16::from_be_bytes([len_high, len_low]));
                    records.push((Some(kind), Epoch::Whole(u16::from_be_bytes([high, low]))));
                    payload = rest.get(length..).unwrap_or(&[]);
                }
                // RFC 9147 §4: 001CSLEE, connection id only where one was agreed (not here), sequence number of 1 or 2 bytes, length if L.
                [first, ref rest @ ..] if first & 0xe0 == 0x20 => {
                    records.push((None, Epoch::LowBits(u16::from(first & 3))));
                    let number = if first & 0x08 != 0 { 2 } else { 1 };
                    payload = match rest.get(number..number + 2) {
                        Some(field) if first & 0x04 != 0 => {
                            let length = usize::from(u16::from_be_bytes([field[0], field[1]]));
                            rest.get(number + 2 + length..).unwrap_or(&[])
                        }
                        _ => &[],
                    };
                }
                _ => return Datagram(records),
            }
        }
    }

    /// Whether a record says, or may say, this epoch.
    pub fn has_epoch(&self, wanted: u16) -> bool {
        self.0.iter().any(|(_, epoch)| match *epoch {
            Epoch::Whole(epoch) => epoch == wanted,
            Epoch::LowBits(bits) => bits == wanted & 3,
        })
    }

    /// Whether a record has this content type in the clear.
    pub fn has_type(&self, wanted: u8) -> bool {
        self.0.iter().any(|(kind, _)| *kind == Some(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u8, length: usize) -> Vec<u8> {
        let mut record = vec![kind, 3, 3, (length >> 8) as u8, length as u8];
        record.resize(TLS_HEADER + length, 0xaa);
        record
    }

    proptest! {
        #[test]
        fn every_record_begins_in_exactly_one_segment(
            records in prop::collection::vec((20u8..=23, 0usize..40), 1..20),
            sizes in prop::collection::vec(1usize..30, 1..200),
            first: u32,
        ) {
            let stream: Vec<u8> = records.iter().flat_map(|&(kind, length)| record(kind, length)).collect();
            let mut flow = Flow::new(first);
            let (mut at, mut found, mut sent) = (0, Vec::new(), Vec::new());
            for size in sizes.iter().cycle() {
                let end = stream.len().min(at + size);
                let seq = first.wrapping_add(at as u32);
                let segment = flow.pass(seq, &stream[at..end]);
                found.extend_from_slice(segment.starts());
                sent.push((seq, at..end, segment));
                at = end;
                if at == stream.len() {
                    break;
                }
            }
            let mut seq = first;
            for (index, (start, &(kind, length))) in found.iter().zip(&records).enumerate() {
                prop_assert_eq!((start.seq, start.content_type, start.number), (seq, kind, index as u64 + 1));
                seq = seq.wrapping_add((TLS_HEADER + length) as u32);
            }
            prop_assert_eq!(found.len(), records.len());
            // A segment sent again tells the same.
            for (seq, range, segment) in sent {
                prop_assert_eq!(flow.pass(seq, &stream[range]), segment);
            }
        }

        #[test]
        fn garbage_never_panics(pieces in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..60)), 0..30)) {
            let mut flow = Flow::new(0);
            for (seq, piece) in &pieces {
                flow.pass(*seq, piece);
                Datagram::read(piece);
            }
        }
    }

    #[test]
    fn plain_bytes_in_front_of_the_handshake_are_stepped_over() {
        let mut flow = Flow::new(100);
        assert!(flow.pass(100, b"EHLO x\r\n").starts().is_empty());
        let segment = flow.pass(108, &record(22, 10));
        assert!(segment.has(Some(22), Some(1)) && segment.has(None, Some(1)));
    }

    #[test]
    fn a_gap_is_waited_for() {
        let stream: Vec<u8> = (0..4).flat_map(|_| record(23, 10)).collect();
        let mut flow = Flow::new(0);
        assert!(flow.pass(0, &stream[..15]).has(Some(23), Some(1)));
        assert!(flow.pass(30, &stream[30..]).starts().is_empty());
        assert!(flow.pass(15, &stream[15..30]).has(Some(23), Some(2)));
        assert!(flow.pass(30, &stream[30..45]).has(Some(23), Some(3)));
    }

    #[test]
    fn datagrams_tell_epoch_and_type_of_each_record() {
        let old = |kind, epoch: u8| {
            [
                &[kind, 254, 253, 0, epoch, 0, 0, 0, 0, 0, 1, 0, 2][..],
                b"xy",
            ]
            .concat()
        };
        let both = Datagram::read(&[old(20, 0), old(22, 1)].concat());
        assert!(both.has_epoch(0) && both.has_epoch(1) && !both.has_epoch(2));
        assert!(both.has_type(20) && both.has_type(22) && !both.has_type(23));
        let unified = Datagram::read(&[0x2c | 3, 0, 1, 0, 1, b'x', 0x28 | 2, 0, 2, b'y']);
        assert!(unified.has_epoch(3) && unified.has_epoch(2) && !unified.has_epoch(1));
        assert_eq!(Datagram::read(b"plain"), Datagram::default());
    }
}
