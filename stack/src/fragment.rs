//! IP fragments, both ways: what UDP and DTLS datagrams larger than the MTU travel as. TCP never comes here.
//!
//! [`Reassembler`] is sans-IO and bounded: in bytes, in datagrams, in time. It follows RFC 791 and RFC 8200 §4.5, discards datagrams with overlapping
//! fragments (RFC 5722, applied to IPv4 too, as Linux does), and handles atomic fragments by themselves (RFC 6946). When room runs out
//! the oldest unfinished datagram makes place: a flood of first fragments costs the flood's own datagrams before it costs one whose
//! fragments arrive within the same millisecond.
//!
//! [`fragment`] cuts a packet that this host sends. Routers' work, cutting what somebody else sent, is not done; neither are IPv4 options, which nothing
//! here sends. No ICMP "time exceeded" is sent for a datagram that stays incomplete: the sender has no use for it, and it would tell a stranger that somebody listens.

mod cut;

use crate::clock::{Duration, Instant};
use crate::device::checksum;
use bytes::{BufMut, BytesMut};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

pub use cut::{CannotFragment, Fragments, fragment};

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const FRAGMENT_HEADER: usize = 8;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMP_V6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_V4: u16 = 0x1fff;

/// The longest reassembled packet: both families' length fields have 16 bits.
const MAX_LENGTH: usize = 65_535;
/// What a stored fragment costs beside its bytes (tree node, allocation), so that many tiny ones are charged for what they are.
const PIECE_COST: usize = 64;

/// Bounds on what unfinished datagrams may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of stored fragments, their bookkeeping included.
    pub max_bytes: usize,
    /// Datagrams that may be unfinished at the same time.
    pub max_datagrams: usize,
    /// How long after its first fragment a datagram is given up. RFC 8200 §4.5: 60 seconds.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_bytes: 4 << 20,
            max_datagrams: 1024,
            timeout: Duration::from_secs(60),
        }
    }
}

/// Why a fragment, and what was stored of its datagram, was thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Not a fragment that a correct sender makes: cut off, wrong header checksum, a length that is no multiple of eight before the end,
    /// or an IPv6 header chain that reaches beyond the first fragment (RFC 7112).
    Malformed,
    /// Overlaps another fragment of its datagram without being its exact copy, or disagrees about the datagram's end.
    Overlap,
    /// The datagram would be longer than 65,535 bytes.
    TooLong,
    /// Larger than [`Limits::max_bytes`] by itself.
    NoRoom,
    /// Fragments that crossed a congested queue as ECN-capable, and others that are not (RFC 3168 §5.3).
    EcnMismatch,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not a fragment: go on with the packet itself.
    NotFragment,
    /// Stored, or known already; the datagram is not complete.
    Pending,
    /// The whole IP packet, without any trace of fragments.
    Complete(BytesMut),
    /// Thrown away.
    Dropped(DropReason),
}

/// What happened so far, in fragments unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Fragments seen, atomic ones included.
    pub fragments: u64,
    /// Packets put together, atomic fragments included.
    pub reassembled: u64,
    /// Exact copies of a fragment that was there already.
    pub duplicates: u64,
    /// Dropped as [`DropReason::Malformed`].
    pub malformed: u64,
    /// Dropped as [`DropReason::Overlap`].
    pub overlaps: u64,
    /// Dropped as [`DropReason::TooLong`].
    pub too_long: u64,
    /// Dropped as [`DropReason::NoRoom`].
    pub no_room: u64,
    /// Dropped as [`DropReason::EcnMismatch`].
    pub ecn_mismatches: u64,
    /// Datagrams given up because their time was over.
    pub timed_out: u64,
    /// Datagrams given up to make room for newer ones.
    pub evicted: u64,
}

/// What fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// RFC 791 §3.2: identification, source, destination and protocol.
    V4 {
        src: Ipv4Addr,
        dst: Ipv4Addr,
        id: u16,
        protocol: u8,
    },
    /// RFC 8200 §4.5: source, destination and identification.
    V6 {
        src: Ipv6Addr,
        dst: Ipv6Addr,
        id: u32,
    },
}

/// A fragment, parsed: what it belongs to and which part of that it is.
struct Fragment<'a> {
    key: Key,
    /// Everything in front of the payload that each fragment carries: the IPv4 header, or the IPv6 header with the extension headers before the fragment header.
    unfragmentable: &'a [u8],
    /// IPv6: where in `unfragmentable` the next-header field is that names the fragment header, and what it will name instead.
    next_header: Option<(usize, u8)>,
    /// In bytes, a multiple of eight.
    offset: usize,
    more: bool,
    payload: &'a [u8],
    /// The two ECN bits (RFC 3168 §5).
    ecn: u8,
}

impl Fragment<'_> {
    fn is_atomic(&self) -> bool {
        self.offset == 0 && !self.more
    }

    fn end(&self) -> usize {
        self.offset + self.payload.len()
    }

    /// Refuses what no correct sender makes.
    fn check(&self) -> Result<(), DropReason> {
        if self.payload.is_empty() && !self.is_atomic()
            || self.more && !self.payload.len().is_multiple_of(8)
        {
            return Err(DropReason::Malformed);
        }
        let counted = match self.key {
            Key::V4 { .. } => self.unfragmentable.len(),
            Key::V6 { .. } => self.unfragmentable.len() - V6_HEADER,
        };
        if counted + self.end() > MAX_LENGTH {
            return Err(DropReason::TooLong);
        }
        match self.next_header {
            // RFC 8200 §4.5: "If the first fragment does not include all headers through an Upper-Layer header, then that fragment should be discarded".
            Some((_, next))
                if self.offset == 0 && self.more && !reaches_upper_layer(next, self.payload) =>
            {
                Err(DropReason::Malformed)
            }
            _ => Ok(()),
        }
    }

    /// The headers in front of a whole payload of `length` bytes.
    fn whole_header(&self, length: usize) -> Box<[u8]> {
        let mut header: Box<[u8]> = self.unfragmentable.into();
        if let Some((at, next)) = self.next_header {
            header[at] = next;
        } else {
            let flags = u16::from_be_bytes([header[6], header[7]]) & DONT_FRAGMENT;
            header[6..8].copy_from_slice(&flags.to_be_bytes());
        }
        set_length(&mut header, length);
        header
    }
}

/// Writes the length fields of the IP header at the start of `header` for `payload` bytes behind it, and the IPv4 checksum.
/// Callers have checked that the packet is at most 65,535 bytes long by its family's count.
fn set_length(header: &mut [u8], payload: usize) {
    if header[0] >> 4 == 6 {
        let length = (header.len() - V6_HEADER + payload) as u16;
        header[4..6].copy_from_slice(&length.to_be_bytes());
    } else {
        let length = (header.len() + payload) as u16;
        header[2..4].copy_from_slice(&length.to_be_bytes());
        header[10..12].copy_from_slice(&[0, 0]);
        let header_checksum = checksum::checksum(header);
        header[10..12].copy_from_slice(&header_checksum.to_be_bytes());
    }
}

/// Sets the ECN bits to "congestion experienced"; an IPv4 checksum is wrong afterwards.
fn mark_congestion(header: &mut [u8]) {
    if header[0] >> 4 == 6 {
        header[1] |= 0x30
    } else {
        header[1] |= 0x03
    }
}

/// Whether the headers from `next` on, of which `bytes` is the start, end within it with the upper layer's.
fn reaches_upper_layer(mut next: u8, mut bytes: &[u8]) -> bool {
    loop {
        let (length, last) = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => match bytes {
                [_, eighths, ..] => ((usize::from(*eighths) + 1) * 8, false),
                _ => return false,
            },
            FRAGMENT => return false, // fragments of fragments
            TCP => (20, true),
            UDP => (8, true),
            ICMP_V6 => (4, true),
            _ => (0, true),
        };
        if bytes.len() < length {
            return false;
        }
        if last {
            return true;
        }
        next = bytes[0];
        bytes = &bytes[length..];
    }
}

/// The fragment that `packet` is, or `None` if it is something else; whether that is well formed is then not known.
fn parse(packet: &[u8]) -> Result<Option<Fragment<'_>>, DropReason> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => parse_v4(packet),
        Some(6) => parse_v6(packet),
        _ => Ok(None),
    }
}

fn parse_v4(packet: &[u8]) -> Result<Option<Fragment<'_>>, DropReason> {
    if packet.len() < V4_HEADER {
        return Ok(None);
    }
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let flags = word(6);
    if flags & (MORE_FRAGMENTS | OFFSET_V4) == 0 {
        return Ok(None);
    }
    let header = usize::from(packet[0] & 0x0f) * 4;
    let total = usize::from(word(2));
    if header < V4_HEADER
        || total < header
        || total > packet.len()
        || !checksum::ip_header_is_valid(packet)
    {
        return Err(DropReason::Malformed);
    }
    let address =
        |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    Ok(Some(Fragment {
        key: Key::V4 {
            src: address(12),
            dst: address(16),
            id: word(4),
            protocol: packet[9],
        },
        unfragmentable: &packet[..header],
        next_header: None,
        offset: usize::from(flags & OFFSET_V4) * 8,
        more: flags & MORE_FRAGMENTS != 0,
        payload: &packet[header..total],
        ecn: packet[1] & 0x03,
    }))
}

fn parse_v6(packet: &[u8]) -> Result<Option<Fragment<'_>>, DropReason> {
    if packet.len() < V6_HEADER {
        return Ok(None);
    }
    let total = V6_HEADER + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    let Some(packet) = packet.get(..total) else {
        return Ok(None);
    };
    // RFC 8200 §4.1: what may stand before a fragment header.
    let (mut field, mut at) = (6, V6_HEADER);
    while matches!(packet[field], HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
        let Some([_, eighths]) = packet.get(at..at + 2) else {
            return Ok(None);
        };
        (field, at) = (at, at + (usize::from(*eighths) + 1) * 8);
        if at > packet.len() {
            return Ok(None);
        }
    }
    if packet[field] != FRAGMENT {
        return Ok(None);
    }
    let Some(&[next, _, high, low, a, b, c, d]) = packet.get(at..at + FRAGMENT_HEADER) else {
        return Err(DropReason::Malformed);
    };
    let offset_and_more = u16::from_be_bytes([high, low]);
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&packet[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    Ok(Some(Fragment {
        key: Key::V6 {
            src: address(8),
            dst: address(24),
            id: u32::from_be_bytes([a, b, c, d]),
        },
        unfragmentable: &packet[..at],
        next_header: Some((field, next)),
        offset: usize::from(offset_and_more & !7),
        more: offset_and_more & 1 != 0,
        payload: &packet[at + FRAGMENT_HEADER..],
        ecn: (packet[1] >> 4) & 0x03,
    }))
}

/// A datagram of which not all is there.
#[derive(Debug)]
struct Datagram {
    /// Order of arrival among all datagrams: the oldest expires first and is evicted first.
    serial: u64,
    deadline: Instant,
    /// Overlapped once: every further fragment is to be dropped.
    poisoned: bool,
    /// Payloads by their offset; no two overlap.
    pieces: BTreeMap<usize, Box<[u8]>>,
    /// Sum of the pieces' lengths.
    present: usize,
    /// Length of the whole payload, known from the last fragment.
    total: Option<usize>,
    /// The first fragment's headers, made those of the whole but for the length.
    header: Option<Box<[u8]>>,
    /// Which of the four ECN codepoints were seen, one bit each.
    ecn_seen: u8,
    /// What this datagram is charged for.
    cost: usize,
}

/// Where a fragment goes among those that are there.
enum Fit {
    New,
    Duplicate,
    Conflict,
}

impl Datagram {
    fn fit(&self, fragment: &Fragment<'_>) -> Fit {
        if let Some(piece) = self.pieces.get(&fragment.offset)
            && **piece == *fragment.payload
            && (fragment.more || self.total == Some(fragment.end()))
        {
            return Fit::Duplicate;
        }
        let reaches_in = self
            .pieces
            .range(..fragment.end())
            .next_back()
            .is_some_and(|(offset, piece)| offset + piece.len() > fragment.offset);
        let beyond_end = match self.total {
            Some(total) if fragment.more => fragment.end() >= total,
            Some(total) => fragment.end() != total,
            None => false,
        };
        let ends_before_others = !fragment.more
            && self
                .pieces
                .last_key_value()
                .is_some_and(|(offset, _)| *offset >= fragment.offset);
        if reaches_in || beyond_end || ends_before_others {
            Fit::Conflict
        } else {
            Fit::New
        }
    }

    fn is_complete(&self) -> bool {
        self.total == Some(self.present) && self.header.is_some()
    }

    /// The whole packet. `None` if its fragments' ECN bits do not go together.
    fn assemble(self) -> Option<BytesMut> {
        let mut header = self.header?;
        // RFC 3168 §5.3: a packet with a CE fragment must come out as CE, or not at all if some other fragment was not ECN-capable.
        const NOT_ECT: u8 = 1 << 0;
        const CE: u8 = 1 << 3;
        if self.ecn_seen & CE != 0 {
            if self.ecn_seen & NOT_ECT != 0 {
                return None;
            }
            mark_congestion(&mut header);
        }
        set_length(&mut header, self.present);
        let mut packet = BytesMut::with_capacity(header.len() + self.present);
        packet.put_slice(&header);
        // Without overlap, and with as many bytes as the total, the pieces leave no hole.
        self.pieces
            .values()
            .for_each(|piece| packet.put_slice(piece));
        Some(packet)
    }
}

/// Puts IP fragments together.
#[derive(Debug)]
pub struct Reassembler {
    limits: Limits,
    datagrams: BTreeMap<Key, Datagram>,
    /// Keys by their datagrams' serial numbers. All wait equally long, so this is also the order of their deadlines.
    by_age: BTreeMap<u64, Key>,
    next_serial: u64,
    /// Sum of all datagrams' costs; at most `limits.max_bytes`.
    bytes: usize,
    counters: Counters,
}

impl Reassembler {
    /// An empty one.
    pub fn new(limits: Limits) -> Reassembler {
        Reassembler {
            limits,
            datagrams: BTreeMap::new(),
            by_age: BTreeMap::new(),
            next_serial: 0,
            bytes: 0,
            counters: Counters::default(),
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Bytes charged for unfinished datagrams.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Unfinished datagrams.
    pub fn datagrams(&self) -> usize {
        self.datagrams.len()
    }

    /// When [`Reassembler::expire`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let (_, key) = self.by_age.first_key_value()?;
        self.datagrams.get(key).map(|datagram| datagram.deadline)
    }

    /// Gives up datagrams whose time is over, and gives their number.
    pub fn expire(&mut self, now: Instant) -> usize {
        let mut expired = 0;
        while self.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.remove_oldest();
            expired += 1;
        }
        self.counters.timed_out += expired as u64;
        expired
    }

    /// Takes one received IP packet.
    ///
    /// Bytes behind the length that the IP header gives are ignored. Transport checksums are not looked at: only the whole packet has one.
    pub fn push(&mut self, now: Instant, packet: &[u8]) -> Outcome {
        let fragment = match parse(packet) {
            Ok(None) => return Outcome::NotFragment,
            Ok(Some(fragment)) => fragment,
            Err(reason) => {
                self.counters.fragments += 1;
                return self.dropped(reason);
            }
        };
        self.counters.fragments += 1;
        self.expire(now);
        if let Err(reason) = fragment.check() {
            return self.dropped(reason);
        }
        if fragment.is_atomic() {
            // RFC 6946 §4: "processed in isolation from any other packets/fragments", even with the same identification.
            let header = fragment.whole_header(fragment.payload.len());
            let mut whole = BytesMut::with_capacity(header.len() + fragment.payload.len());
            whole.put_slice(&header);
            whole.put_slice(fragment.payload);
            self.counters.reassembled += 1;
            return Outcome::Complete(whole);
        }
        self.store(now, &fragment)
    }

    fn store(&mut self, now: Instant, fragment: &Fragment<'_>) -> Outcome {
        match self
            .datagrams
            .get(&fragment.key)
            .map(|datagram| (datagram.poisoned, datagram.fit(fragment)))
        {
            Some((true, _)) => return self.dropped(DropReason::Overlap),
            Some((false, Fit::Conflict)) => {
                self.poison(&fragment.key);
                return self.dropped(DropReason::Overlap);
            }
            Some((false, Fit::Duplicate)) => {
                self.counters.duplicates += 1;
                return Outcome::Pending;
            }
            Some((false, Fit::New)) | None => {}
        }
        let first = fragment.offset == 0;
        let cost = PIECE_COST
            + fragment.payload.len()
            + if first {
                fragment.unfragmentable.len()
            } else {
                0
            };
        if !self.make_room(&fragment.key, cost) {
            self.remove(&fragment.key);
            return self.dropped(DropReason::NoRoom);
        }

        let datagram = self.datagrams.entry(fragment.key).or_insert_with(|| {
            let serial = self.next_serial;
            self.next_serial += 1;
            self.by_age.insert(serial, fragment.key);
            Datagram {
                serial,
                deadline: now + self.limits.timeout,
                poisoned: false,
                pieces: BTreeMap::new(),
                present: 0,
                total: None,
                header: None,
                ecn_seen: 0,
                cost: 0,
            }
        });
        datagram
            .pieces
            .insert(fragment.offset, fragment.payload.into());
        datagram.present += fragment.payload.len();
        datagram.ecn_seen |= 1 << fragment.ecn;
        datagram.cost += cost;
        self.bytes += cost;
        if !fragment.more {
            datagram.total = Some(fragment.end());
        }
        if first {
            datagram.header = Some(fragment.whole_header(0));
        }
        if !datagram.is_complete() {
            return Outcome::Pending;
        }
        let whole = self.remove(&fragment.key).and_then(Datagram::assemble);
        match whole {
            // The last fragment's end was checked against the headers of its own; the first's may be longer.
            Some(whole)
                if whole.len() > MAX_LENGTH + V6_HEADER * usize::from(whole[0] >> 4 == 6) =>
            {
                self.dropped(DropReason::TooLong)
            }
            Some(whole) => {
                self.counters.reassembled += 1;
                Outcome::Complete(whole)
            }
            None => self.dropped(DropReason::EcnMismatch),
        }
    }

    /// Evicts the oldest datagrams, but not `key`'s, until `cost` more bytes fit. False if they cannot.
    fn make_room(&mut self, key: &Key, cost: usize) -> bool {
        let own = self.datagrams.get(key).map(|datagram| datagram.cost);
        if own.unwrap_or(0) + cost > self.limits.max_bytes || self.limits.max_datagrams == 0 {
            return false;
        }
        while self.bytes + cost > self.limits.max_bytes
            || own.is_none() && self.datagrams.len() >= self.limits.max_datagrams
        {
            let Some(oldest) = self.by_age.values().find(|&oldest| oldest != key).copied() else {
                return false;
            };
            self.remove(&oldest);
            self.counters.evicted += 1;
        }
        true
    }

    /// Throws away what is there of a datagram with overlapping fragments.
    ///
    /// RFC 5722 §4: "the entire datagram (and any constituent fragments, including those not yet received) MUST be silently discarded": the
    /// entry stays, empty, until its time is over. IPv4's identification has 16 bits only and comes round within
    /// that time, so there the memory would hit innocent datagrams, and the entry goes.
    fn poison(&mut self, key: &Key) {
        if let Key::V4 { .. } = key {
            self.remove(key);
        } else if let Some(datagram) = self.datagrams.get_mut(key) {
            self.bytes -= datagram.cost;
            *datagram = Datagram {
                poisoned: true,
                pieces: BTreeMap::new(),
                present: 0,
                total: None,
                header: None,
                cost: 0,
                ..*datagram
            };
        }
    }

    fn remove_oldest(&mut self) {
        if let Some((_, &key)) = self.by_age.first_key_value() {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Datagram> {
        let datagram = self.datagrams.remove(key)?;
        self.by_age.remove(&datagram.serial);
        self.bytes -= datagram.cost;
        Some(datagram)
    }

    fn dropped(&mut self, reason: DropReason) -> Outcome {
        *match reason {
            DropReason::Malformed => &mut self.counters.malformed,
            DropReason::Overlap => &mut self.counters.overlaps,
            DropReason::TooLong => &mut self.counters.too_long,
            DropReason::NoRoom => &mut self.counters.no_room,
            DropReason::EcnMismatch => &mut self.counters.ecn_mismatches,
        } += 1;
        Outcome::Dropped(reason)
    }
}

#[cfg(test)]
mod tests;
