//! What must hold in every run, checked on every packet and event of it, always.
//!
//! | invariant | how it is checked |
//! | --- | --- |
//! | no (key, nonce) protects two plaintexts | every seal reports its nonce; ranges of used nonces a key |
//! | a retransmitted range is byte-identical | what is in flight is kept and compared, whatever the boundaries of the segments |
//! | no plaintext behind the switch to keys | everything sent behind it must have been sealed, and must read as records |
//! | nothing delivered before its tag is verified | bytes out may not exceed the bytes of opened records; and they are the bytes that went in, forged packets or not |
//! | bytes in = bytes out + in flight | what programs hand in is kept until the other end hands it out, and compared; at a stream's end nothing may be left |
//! | DTLS records are authentic and come at most once | a digest of every record that is sealed; ranges of the numbers that were handed out |
//! | their numbers increase on the wire | the headers of every datagram |
//!
//! The [`Checker`] believes packets, not the stack: it reads the headers itself. What packets cannot tell, the stack reports by a handful of calls
//! ([`keys_in_force`](Checker::keys_in_force), [`sealed`](Checker::sealed), [`opened`](Checker::opened), [`handed_in`](Checker::handed_in), [`handed_out`](Checker::handed_out),
//! [`ended`](Checker::ended)).
//! A call that finds an invariant broken gives a [`Violation`], which ends the run and shows the packet.
//!
//! It has to keep up with a million packets a second, so a packet costs one look-up, one hash over its bytes and one copy of its payload; nothing is allocated once the
//! rings have the windows' size. Two limits follow. What was acknowledged is no longer kept, so a retransmission of *that* is not compared; and
//! the check of the records' content is left to the receiver's AEAD, which sees every byte anyway.

mod datagram;
mod nonce;
mod segment;
mod stream;
#[cfg(test)]
mod tests;

pub use crate::tcp::Cause;
pub use datagram::{AssociationReport, Record};
pub use stream::Counts;

use super::decode::{Context, Line, Names, View};
use super::recording::{Recording, Secrets};
use super::trace::{Journal, Kept, Kind, Parting, Trace};
use crate::clock::Instant;
use crate::tcp::{Flags, FlowKey, Segment, SeqNumber};
use datagram::Datagrams;
use nonce::Nonces;
use segment::{Ends, TcpHeader};
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;
use std::ops::Range;
use std::path::Path;
use stream::{Broken, Stream};
use uktls_record::crypto_info::CryptoInfo;
use uktls_record::suite::NONCE_LEN;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Looked up, never walked through: the order of a hash map must not show.
type Table<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Which way keys are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// For what is sent.
    Send,
    /// For what is received.
    Receive,
}

/// Names a key without giving it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// The fingerprint of these keys. The AEAD key alone counts: a nonce is used up for it whatever salt and iv come with it.
    pub fn of(keys: &CryptoInfo) -> Fingerprint {
        Fingerprint(xxh3_64(keys.key()))
    }
}

/// An invariant is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// When.
    pub now: Instant,
    /// What is wrong.
    pub what: String,
    /// The packet or the connection that it showed on.
    pub packet: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  {}", self.what, self.packet)
    }
}

impl std::error::Error for Violation {}

/// A call's outcome: on the path of every packet, so the error is one word.
pub type Verdict = Result<(), Box<Violation>>;

/// Totals of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that hosts sent.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these, TCP segments with payload.
    pub data_packets: u64,
    /// TCP segments with bytes that had been sent before.
    pub retransmitted: u64,
    /// Packets that reached a host.
    pub delivered: u64,
    /// Of these, TCP segments with payload.
    pub data_delivered: u64,
    /// Records sealed.
    pub sealed: u64,
    /// Records opened.
    pub opened: u64,
}

/// One direction of a connection, for a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamReport {
    /// The sender is its local end.
    pub flow: FlowKey,
    /// What it carried.
    pub counts: Counts,
    /// Bytes sent and not acknowledged.
    pub in_flight: u64,
    /// Bytes that went in and did not come out; `None` when the ends speak of different bytes (TLS of a program's own at one of them).
    pub inside: Option<u64>,
}

#[derive(Debug)]
struct Known {
    ends: Ends,
    stream: Stream,
    /// The other direction, once it was looked for and found.
    reverse: Option<usize>,
}

/// Looked-up streams that are remembered; a power of two.
const RECENT: usize = 64;

/// The invariants of a run, and its trace.
#[derive(Debug)]
pub struct Checker {
    names: Names,
    /// Receivers that do not tell what they hand to their programs.
    foreign: Vec<IpAddr>,
    trace: Trace,
    nonces: Nonces,
    datagrams: Datagrams,
    index: Table<Ends, usize>,
    /// In the order of their first packets.
    streams: Vec<Known>,
    /// What was looked up last, by ports.
    recent: Box<[usize; RECENT]>,
    totals: Totals,
    recording: Option<Recording>,
}

impl Checker {
    /// For a run with this seed.
    pub fn new(seed: u64) -> Checker {
        Checker {
            names: Names::default(),
            foreign: Vec::new(),
            trace: Trace::new(seed),
            nonces: Nonces::default(),
            datagrams: Datagrams::default(),
            index: Table::default(),
            streams: Vec::new(),
            recent: Box::new([0; RECENT]),
            totals: Totals::default(),
            recording: None,
        }
    }

    /// The host called `name` has this address.
    pub fn name(&mut self, address: IpAddr, name: &str) {
        self.names.add(address, name);
    }

    /// What this address receives, nobody will tell: its stack is somebody else's.
    pub fn foreign(&mut self, address: IpAddr) {
        self.foreign.push(address);
    }

    /// Who is who.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// A host hands a packet to its link, complete with headers (checksums are not looked at).
    ///
    /// # Errors
    /// A retransmission that differs, or plaintext behind the switch to keys.
    pub fn sent(&mut self, now: Instant, host: u32, packet: &[u8], cause: Cause) -> Verdict {
        self.totals.packets += 1;
        self.totals.bytes += packet.len() as u64;
        let mut broken = None;
        let tcp = TcpHeader::read(packet);
        let index = tcp.as_ref().map(|tcp| self.stream_of_sender(tcp));
        let kept = self.trace.keep(now, host, Kind::Sent, packet);
        kept.note = cause.note();
        if let Some(index) = index
            && let Some(tcp) = &tcp
        {
            let stream = &mut self.streams[index].stream;
            stream.counts.packets += 1;
            stream.ends |= tcp.flags.intersects(Flags::FIN | Flags::RST);
            if !tcp.payload.is_empty() {
                let seq = tcp.seq + u32::from(tcp.flags.syn());
                stream.counts.data_packets += 1;
                stream.counts.payload += tcp.payload.len() as u64;
                self.totals.data_packets += 1;
                match stream.send(seq, tcp.payload, |record| kept.add_record(record)) {
                    Ok(again) => {
                        stream.counts.retransmitted += u64::from(again);
                        self.totals.retransmitted += u64::from(again);
                    }
                    Err(error) => broken = Some(error),
                }
                kept.followed = stream.followed();
            }
        }
        if let Some(recording) = &mut self.recording {
            let name = || self.names.sender(packet);
            let records = kept.records().unwrap_or_default();
            recording.sent(now, host, name, packet, records, kept.note);
        }
        let parting = self
            .trace
            .mix(now, host, Kind::Sent, packet, xxh3_64(packet));
        let broken = match broken {
            Some(broken) => Some(broken.to_string()),
            None if tcp.is_none() => self.datagram_sent(packet).err(),
            None => None,
        };
        match (broken, parting) {
            (None, Ok(())) => Ok(()),
            (Some(what), _) => Err(self.violation(now, what)),
            (None, Err(parting)) => Err(self.parted(parting)),
        }
    }

    /// A packet reaches a host.
    ///
    /// # Errors
    /// Only when compared with another run.
    pub fn delivered(&mut self, now: Instant, host: u32, packet: &[u8]) -> Verdict {
        self.totals.delivered += 1;
        let mut ends = false;
        if let Some(tcp) = TcpHeader::read(packet) {
            self.totals.data_delivered += u64::from(!tcp.payload.is_empty());
            ends = tcp.flags.rst();
            if tcp.flags.ack()
                && let Some(index) = self.find(tcp.ends)
                && let Some(acknowledged) = self.reverse_of(index)
            {
                acknowledged.acknowledged(tcp.ack);
            }
        }
        // Its bytes went into the hash when it was sent, and whoever changes it on the way says so.
        let content = xxh3_64(&packet[..packet.len().min(64)]);
        let outcome = self.trace.mix(now, host, Kind::Delivered, packet, content);
        if ends || outcome.is_err() {
            self.trace.keep(now, host, Kind::Delivered, packet);
        }
        outcome.map_err(|parting| self.parted(parting))
    }

    /// Something happens to a packet, or besides packets (then `packet` is empty): a fault, a link that goes down. `name` says what, `number` may say more.
    ///
    /// # Errors
    /// Only when compared with another run.
    pub fn event(
        &mut self,
        now: Instant,
        host: u32,
        name: &'static str,
        packet: &[u8],
        number: u64,
    ) -> Verdict {
        let kind = Kind::Event(name);
        let content = xxh3_64_with_seed(packet, number);
        self.trace.keep(now, host, kind, packet);
        if let Some(recording) = &mut self.recording
            && !packet.is_empty()
        {
            recording.happened(name, packet);
        }
        let outcome = self.trace.mix(now, host, kind, packet, content);
        outcome.map_err(|parting| self.parted(parting))
    }

    /// A fault changed a packet so that its checksums hold, or made one up: what arrives need no longer be what was sent, unless keys are in force.
    ///
    /// # Errors
    /// As [`event`](Self::event).
    pub fn forged(&mut self, now: Instant, host: u32, packet: &[u8]) -> Verdict {
        if let Some(flow) = View::parse(packet).and_then(|view| view.flow())
            && let Some(stream) = self.stream(Ends::from(&flow))
        {
            stream.forged = true;
        }
        self.event(now, host, "forged", packet, 0)
    }

    /// Keys come into force on a socket: for what it sends or receives from stream offset `offset` on (0 is the byte behind the SYN). To be called before any of that is
    /// sent, or handed out. `flow` is the socket's own view, here and below.
    ///
    /// # Errors
    /// Bytes behind the offset have been sent already.
    pub fn keys_in_force(
        &mut self,
        now: Instant,
        flow: &FlowKey,
        direction: Direction,
        offset: u64,
        keys: &CryptoInfo,
    ) -> Verdict {
        let Fingerprint(fingerprint) = Fingerprint::of(keys);
        let outcome = match direction {
            Direction::Send => match self.stream(flow.into()) {
                Some(stream) => stream.switch_tx(offset, fingerprint, keys.rec_seq()),
                None => Ok(()),
            },
            Direction::Receive => {
                if let Some(stream) = self.stream(Ends::from(flow).reverse()) {
                    stream.switch_rx(offset);
                }
                Ok(())
            }
        };
        self.on_socket(now, flow, outcome)
    }

    /// A record was sealed and will be sent: it has `range` of the stream. A record that is never sent (the file got shorter meanwhile) does not count.
    ///
    /// # Errors
    /// The nonce was used before under the keys in force, or the record does not lie right behind the one before.
    pub fn sealed(
        &mut self,
        now: Instant,
        flow: &FlowKey,
        range: Range<u64>,
        nonce: &[u8; NONCE_LEN],
    ) -> Verdict {
        self.totals.sealed += 1;
        let Some(stream) = self.stream(flow.into()) else {
            return Ok(());
        };
        let key = stream.tx_key;
        let outcome = stream.sealed(range);
        self.on_socket(now, flow, outcome)?;
        self.nonce_used(now, flow, Fingerprint(key), nonce)
    }

    /// A nonce was used to seal: what [`sealed`](Self::sealed) does for streams, and all there is to do for a DTLS record.
    ///
    /// # Errors
    /// It was used before under this key.
    pub fn nonce_used(
        &mut self,
        now: Instant,
        flow: &FlowKey,
        key: Fingerprint,
        nonce: &[u8; NONCE_LEN],
    ) -> Verdict {
        if self.nonces.insert(key.0, nonce) {
            return Ok(());
        }
        let what = format!("a nonce protects two plaintexts: {nonce:02x?} under one key");
        Err(Box::new(Violation {
            now,
            what,
            packet: self.show_flow(flow),
        }))
    }

    /// A record was opened: its tag is verified. It has `range` of the stream that the socket receives, and `plaintext` bytes of application data (0 for
    /// other records).
    pub fn opened(&mut self, flow: &FlowKey, range: Range<u64>, plaintext: usize) {
        self.totals.opened += 1;
        if let Some(stream) = self.stream(Ends::from(flow).reverse()) {
            stream.opened(range, plaintext as u64);
        }
    }

    /// A program's bytes are taken into the socket's stream, to be sent as they are or sealed as application data.
    pub fn handed_in(&mut self, flow: &FlowKey, bytes: &[u8]) {
        if let Some(stream) = self.stream(flow.into()) {
            stream.handed_in(bytes);
        }
    }

    /// Bytes that were received are given to a program.
    ///
    /// # Errors
    /// They are not what went in at the other end, or their record's tag was not verified.
    pub fn handed_out(&mut self, now: Instant, flow: &FlowKey, bytes: &[u8]) -> Verdict {
        let outcome = match self.stream(Ends::from(flow).reverse()) {
            Some(stream) => stream.handed_out(bytes),
            None => Ok(()),
        };
        self.on_socket(now, flow, outcome)
    }

    /// A program that receives is told that the stream ended as it should.
    ///
    /// # Errors
    /// Bytes went in at the other end that did not come out.
    pub fn ended(&mut self, now: Instant, flow: &FlowKey) -> Verdict {
        let outcome = match self.stream(Ends::from(flow).reverse()) {
            Some(stream) => stream.ended(),
            None => Ok(()),
        };
        self.on_socket(now, flow, outcome)
    }

    /// The run's identity so far.
    pub fn hash(&self) -> u64 {
        self.trace.hash()
    }

    /// Packets and events so far.
    pub fn events(&self) -> u64 {
        self.trace.events()
    }

    /// Totals so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Every direction of every connection, in the order of their first packets.
    pub fn streams(&self) -> impl Iterator<Item = StreamReport> {
        self.streams.iter().map(|known| StreamReport {
            flow: known.ends.into(),
            counts: known.stream.counts,
            in_flight: known.stream.in_flight(),
            inside: known.stream.inside(),
        })
    }

    /// Keeps all packets from now on, for a capture file at `path` with these secrets in it.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn record_to(&mut self, path: &Path, secrets: Secrets) -> std::io::Result<()> {
        self.recording = Some(Recording::create(path, secrets)?);
        Ok(())
    }

    /// Writes the capture file, if there is to be one: the run is over, whatever became of it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_recording(&mut self) -> std::io::Result<()> {
        match self.recording.take() {
            Some(recording) => recording.write(&self.names),
            None => Ok(()),
        }
    }

    /// Keeps all events, so that another run can be compared with this one.
    pub fn keep_journal(&mut self) {
        self.trace.keep_journal();
    }

    /// What was kept since [`keep_journal`](Self::keep_journal).
    pub fn take_journal(&mut self) -> Option<Journal> {
        self.trace.take_journal()
    }

    /// From here on, the first event that is not the one of that run is an error.
    pub fn compare_with(&mut self, journal: Journal) {
        self.trace.compare(journal);
    }

    /// The run is over.
    ///
    /// # Errors
    /// The run it was compared with went on.
    pub fn finish(&self, now: Instant) -> Verdict {
        match self.trace.missing() {
            None => Ok(()),
            Some(kept) => Err(Box::new(Violation {
                now,
                what: "two runs of the same seed differ: this one ended where the other went on"
                    .to_owned(),
                packet: self.show(kept),
            })),
        }
    }

    /// The last packets and events, oldest first, a line each.
    pub fn last_lines(&self) -> Vec<String> {
        self.trace.last().map(|kept| self.show(kept)).collect()
    }

    /// Where the latest stream with this sender lies.
    #[inline]
    fn find(&mut self, ends: Ends) -> Option<usize> {
        let slot = ends.spread() % RECENT;
        let index = self.recent[slot];
        if self.streams.get(index).is_some_and(|it| it.ends == ends) {
            return Some(index);
        }
        let index = *self.index.get(&ends)?;
        self.recent[slot] = index;
        Some(index)
    }

    fn stream(&mut self, sender: Ends) -> Option<&mut Stream> {
        let index = self.find(sender)?;
        Some(&mut self.streams[index].stream)
    }

    /// The other direction of a connection.
    fn reverse_of(&mut self, index: usize) -> Option<&mut Stream> {
        let other = match self.streams[index].reverse {
            Some(other) => other,
            None => {
                let other = self.find(self.streams[index].ends.reverse())?;
                self.streams[index].reverse = Some(other);
                other
            }
        };
        Some(&mut self.streams[other].stream)
    }

    /// The stream that a segment belongs to; a new SYN begins a new one.
    fn stream_of_sender(&mut self, tcp: &TcpHeader<'_>) -> usize {
        let known = self.find(tcp.ends);
        if !tcp.flags.syn()
            && let Some(index) = known
        {
            return index;
        }
        let index = match known {
            Some(index) if self.streams[index].stream.isn == tcp.seq => index,
            _ => self.begin(tcp, known),
        };
        if tcp.flags.syn() {
            let options = Segment::parse(tcp.segment).map(|segment| segment.options);
            let scale = options.ok().and_then(|options| options.window_scale);
            self.streams[index].stream.window_scale = scale.unwrap_or(0);
        }
        index
    }

    fn begin(&mut self, tcp: &TcpHeader<'_>, before: Option<usize>) -> usize {
        let index = self.streams.len();
        if let Some(before) = before {
            self.streams[before].stream.forget();
        }
        // The other direction's answer belongs to this connection from now on.
        if let Some(other) = self.find(tcp.ends.reverse()) {
            self.streams[other].reverse = Some(index);
        }
        let mut stream = if tcp.flags.syn() {
            Stream::new(tcp.seq)
        } else {
            Stream::joined(tcp.seq)
        };
        let receiver = FlowKey::from(tcp.ends).remote.ip();
        if self.foreign.contains(&receiver) {
            stream.nobody_tells();
        }
        self.streams.push(Known {
            ends: tcp.ends,
            stream,
            reverse: None,
        });
        self.index.insert(tcp.ends, index);
        self.recent[tcp.ends.spread() % RECENT] = index;
        index
    }

    fn on_socket(&self, now: Instant, flow: &FlowKey, outcome: Result<(), Broken>) -> Verdict {
        outcome.map_err(|broken| {
            let (what, packet) = (broken.to_string(), self.show_flow(flow));
            Box::new(Violation { now, what, packet })
        })
    }

    /// About the packet that was kept last.
    #[cold]
    fn violation(&self, now: Instant, what: String) -> Box<Violation> {
        let packet = self.show_newest();
        Box::new(Violation { now, what, packet })
    }

    #[cold]
    fn parted(&self, parting: Parting) -> Box<Violation> {
        let number = parting.index;
        let before = match &parting.expected {
            Some(expected) => self.show(expected),
            None => "nothing: it had ended".to_owned(),
        };
        Box::new(Violation {
            now: self.trace.newest().map_or(Instant::ZERO, |kept| kept.now),
            what: format!("two runs of the same seed differ, from event {number} on"),
            packet: format!("first run:  {before}\n  second run: {}", self.show_newest()),
        })
    }

    fn show_newest(&self) -> String {
        self.trace
            .newest()
            .map_or(String::new(), |kept| self.show(kept))
    }

    fn show_flow(&self, flow: &FlowKey) -> String {
        format!("on the socket {}", self.names.connection(flow))
    }

    fn show(&self, kept: &Kept) -> String {
        let known = |ends: Ends| {
            let index = self.index.get(&ends)?;
            Some(&self.streams[*index].stream)
        };
        let flow = View::parse(kept.packet()).and_then(|view| view.flow());
        let ends = flow.as_ref().map(Ends::from);
        let sender = ends.and_then(known);
        let receiver = ends.map(Ends::reverse).and_then(known);
        let scaled = sender.is_some_and(|_| receiver.is_some());
        let isn = |stream: Option<&Stream>| -> Option<SeqNumber> { stream.map(|it| it.isn) };
        let note = match kept.kind {
            Kind::Sent => kept.note,
            Kind::Delivered => "arrives",
            Kind::Event(name) => name,
        };
        if kept.packet_len == 0 {
            return format!("{} {note} (host {})", kept.now, kept.host);
        }
        let context = Context {
            isn: isn(sender),
            peer_isn: isn(receiver),
            window_scale: if scaled {
                sender.map_or(0, |it| it.window_scale)
            } else {
                0
            },
            records: kept.records(),
            more_records: kept.more_records,
            packet_len: Some(kept.packet_len as usize),
            note,
        };
        let (now, packet, names) = (kept.now, kept.packet(), &self.names);
        Line {
            now,
            packet,
            names,
            context,
        }
        .to_string()
    }
}
