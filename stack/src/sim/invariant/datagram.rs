//! DTLS associations: what their senders sealed, what went on the wire, and what was handed to the programs at the other ends.
//!
//! * No nonce is used twice under one key.
//! * The numbers of the records on the wire increase within an epoch, and each of them was sealed. (DTLS 1.3 hides its numbers; there
//!   only the first holds.)
//! * A record that is handed to a program is one that the other end sealed, of the same type and content, and is handed over
//!   once. Where the other end is a program with a record layer of its own, the second half remains.
//!
//! A digest is kept of every record that was sealed, so a run's memory grows by some bytes a record, up to a bound.

use super::nonce::Nonces;
use super::segment::Ends;
use super::{Checker, Fingerprint, Table, Verdict, Violation};
use crate::clock::Instant;
use crate::sim::decode::{View, dtls_records};
use crate::tcp::FlowKey;
use std::collections::BTreeMap;
use uktls_record::dtls::{DiscardKind, DtlsVersion, EpochKeys};
use uktls_record::suite::NONCE_LEN;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Digests that are kept for one key.
const MAX_DIGESTS: usize = 1 << 20;

/// A record, as the stack at one end reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    epoch: u64,
    sequence: u64,
    /// Of its type and plaintext.
    digest: u64,
}

impl Record {
    /// Takes note of a record's plaintext.
    pub fn new(epoch: u64, sequence: u64, content_type: u8, plaintext: &[u8]) -> Record {
        Record {
            epoch,
            sequence,
            digest: xxh3_64_with_seed(plaintext, u64::from(content_type)),
        }
    }
}

/// One host's view of an association, for a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AssociationReport {
    /// The host is its local end.
    pub flow: FlowKey,
    /// Records sealed.
    pub sealed: u64,
    /// Records opened.
    pub opened: u64,
    /// Records that came and were dropped, by [`DiscardKind`].
    pub dropped: [u64; DiscardKind::ALL.len()],
}

/// What one key has sealed.
#[derive(Debug)]
struct Key {
    fingerprint: Fingerprint,
    /// By number.
    digests: BTreeMap<u64, u64>,
    /// Digests below this number are forgotten.
    forgotten: u64,
    /// One more than the highest number that was sealed, and that was seen on the wire.
    sealed: u64,
    on_wire: u64,
}

/// All associations of a run.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    reports: Vec<AssociationReport>,
    by_flow: Table<Ends, usize>,
    /// The keys of a sender and an epoch; the last is in force.
    keys: Table<(Ends, u64), Vec<Key>>,
    /// Numbers that were handed over, by key and receiver.
    delivered: Nonces,
}

impl Datagrams {
    pub(super) fn is_empty(&self) -> bool {
        self.reports.is_empty()
    }

    pub(super) fn reports(&self) -> &[AssociationReport] {
        &self.reports
    }

    fn report(&mut self, flow: &FlowKey) -> &mut AssociationReport {
        let index = *self.by_flow.entry(flow.into()).or_insert_with(|| {
            self.reports.push(AssociationReport {
                flow: *flow,
                sealed: 0,
                opened: 0,
                dropped: Default::default(),
            });
            self.reports.len() - 1
        });
        &mut self.reports[index]
    }

    fn use_keys(&mut self, flow: &FlowKey, keys: &EpochKeys) {
        self.report(flow);
        let fingerprint = Fingerprint::of_epoch(keys);
        let all = self.keys.entry((flow.into(), keys.epoch())).or_default();
        let key = match all.iter().position(|key| key.fingerprint == fingerprint) {
            Some(at) => all.remove(at),
            None => Key {
                fingerprint,
                digests: BTreeMap::new(),
                forgotten: 0,
                sealed: 0,
                on_wire: 0,
            },
        };
        all.push(key);
    }

    fn sealed(&mut self, flow: &FlowKey, record: Record) {
        self.report(flow).sealed += 1;
        let key = self.keys.get_mut(&(flow.into(), record.epoch));
        let Some(key) = key.and_then(|all| all.last_mut()) else {
            return;
        };
        key.digests.insert(record.sequence, record.digest);
        key.sealed = key.sealed.max(record.sequence + 1);
        if key.digests.len() > MAX_DIGESTS
            && let Some((oldest, _)) = key.digests.pop_first()
        {
            key.forgotten = oldest + 1;
        }
    }

    /// A datagram is on the wire; says what is wrong with it.
    fn sent(&mut self, packet: &[u8]) -> Result<(), String> {
        let Some(view) = View::parse(packet) else {
            return Ok(());
        };
        let Some(flow) = view.flow().filter(|_| view.protocol == crate::packet::UDP) else {
            return Ok(());
        };
        let ends = Ends::from(&flow);
        for header in dtls_records(view.transport.get(8..).unwrap_or_default()) {
            let (epoch, number) = (u64::from(header.epoch), header.sequence);
            let key = self.keys.get_mut(&(ends, epoch));
            // Other types may be the program's own, under the same keys with numbers of its own.
            let Some(key) = key
                .and_then(|all| all.last_mut())
                .filter(|_| header.content_type == uktls_record::ContentType::APPLICATION_DATA)
            else {
                continue;
            };
            if number >= key.sealed {
                return Err(format!(
                    "a record that was never sealed is on the wire: epoch {epoch} #{number}"
                ));
            }
            if number < key.on_wire {
                return Err(format!(
                    "the numbers of records on the wire do not increase: epoch {epoch} #{number} comes behind #{}",
                    key.on_wire - 1
                ));
            }
            key.on_wire = number + 1;
        }
        Ok(())
    }

    /// A record is handed to the program of this life at this end; says what is wrong with it.
    fn opened(&mut self, flow: &FlowKey, life: u64, record: Record) -> Result<(), String> {
        self.report(flow).opened += 1;
        let Record {
            epoch, sequence, ..
        } = record;
        let sender = Ends::from(flow).reverse();
        let Some(keys) = self.keys.get(&(sender, epoch)) else {
            return Ok(());
        };
        let sealed_it = |key: &&Key| key.digests.get(&sequence) == Some(&record.digest);
        let Some(key) = keys.iter().rev().find(sealed_it) else {
            if keys.iter().any(|key| sequence < key.forgotten) {
                return Ok(());
            }
            return Err(format!(
                "a record is delivered that was never sealed, or not so: epoch {epoch} #{sequence}"
            ));
        };
        let mut receiver = [0; 16];
        receiver[..8].copy_from_slice(&key.fingerprint.0.to_be_bytes());
        receiver[8..].copy_from_slice(&life.to_be_bytes());
        let mut number = [0; NONCE_LEN];
        number[4..].copy_from_slice(&sequence.to_be_bytes());
        if self.delivered.insert(xxh3_64(&receiver), &number) {
            Ok(())
        } else {
            Err(format!(
                "a record is delivered twice: epoch {epoch} #{sequence}"
            ))
        }
    }
}

impl Fingerprint {
    /// The fingerprint of these DTLS keys.
    fn of_epoch(keys: &EpochKeys) -> Fingerprint {
        Fingerprint(xxh3_64(keys.key()))
    }
}

/// RFC 5288 §3 and RFC 6347 §4.1.2.1, RFC 7905 §2, RFC 9147 §4.2.3: what a record's number makes of the iv.
fn nonce(keys: &EpochKeys, sequence: u64) -> [u8; NONCE_LEN] {
    let number = match keys.version() {
        DtlsVersion::Dtls12 => keys.epoch() << 48 | sequence,
        DtlsVersion::Dtls13 => sequence,
    };
    let mut nonce = [0; NONCE_LEN];
    nonce[..keys.iv().len()].copy_from_slice(keys.iv());
    for (byte, number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
        *byte ^= number;
    }
    nonce
}

impl Checker {
    /// These keys seal the records of this association from now on; `flow` is the sender's view.
    pub fn datagrams_sealed_with(&mut self, flow: &FlowKey, keys: &EpochKeys) {
        self.datagrams.use_keys(flow, keys);
    }

    /// A record was sealed with `keys`.
    ///
    /// # Errors
    /// Its nonce was used before.
    pub fn datagram_sealed(
        &mut self,
        now: Instant,
        flow: &FlowKey,
        keys: &EpochKeys,
        record: Record,
    ) -> Verdict {
        self.totals.sealed += 1;
        self.datagrams.sealed(flow, record);
        let nonce = nonce(keys, record.sequence);
        self.nonce_used(now, flow, Fingerprint::of_epoch(keys), &nonce)
    }

    /// A record was opened and is handed to a program; `flow` is the receiver's view, and `life` differs between a host before and
    /// after a crash.
    ///
    /// # Errors
    /// Nobody sealed it so, or it was handed over before.
    pub fn datagram_opened(
        &mut self,
        now: Instant,
        flow: &FlowKey,
        life: u64,
        record: Record,
    ) -> Verdict {
        self.totals.opened += 1;
        let outcome = self.datagrams.opened(flow, life, record);
        outcome.map_err(|what| {
            Box::new(Violation {
                now,
                what,
                packet: self.show_flow(flow),
            })
        })
    }

    /// A record came and was dropped.
    ///
    /// # Errors
    /// As [`event`](Self::event).
    pub fn datagram_dropped(
        &mut self,
        now: Instant,
        host: u32,
        flow: &FlowKey,
        kind: DiscardKind,
    ) -> Verdict {
        let report = self.datagrams.report(flow);
        report.dropped[kind as usize] += 1;
        let count = report.dropped[kind as usize];
        let name = match kind {
            DiscardKind::Malformed => "a record is dropped: malformed",
            DiscardKind::WrongEpoch => "a record is dropped: wrong epoch",
            DiscardKind::Replayed => "a record is dropped: replayed",
            DiscardKind::TooOld => "a record is dropped: too old",
            DiscardKind::Unverified => "a record is dropped: unverified",
            DiscardKind::KeyExhausted => "a record is dropped: key exhausted",
        };
        self.event(now, host, name, &[], count)
    }

    /// Every host's view of every association, in the order of their first keys.
    pub fn associations(&self) -> &[AssociationReport] {
        self.datagrams.reports()
    }

    /// A datagram is on the wire.
    pub(super) fn datagram_sent(&mut self, packet: &[u8]) -> Result<(), String> {
        if self.datagrams.is_empty() {
            return Ok(());
        }
        self.datagrams.sent(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::invariant::Cause;
    use crate::sim::packets::udp;
    use uktls_record::suite::CipherSuite;

    const CLIENT: &str = "10.0.0.1:40000";
    const SERVER: &str = "10.0.0.2:4433";

    fn client() -> FlowKey {
        FlowKey {
            local: CLIENT.parse().expect("literal"),
            remote: SERVER.parse().expect("literal"),
        }
    }

    fn server() -> FlowKey {
        Ends::from(&client()).reverse().into()
    }

    fn keys() -> EpochKeys {
        EpochKeys::dtls12(CipherSuite::Aes128Gcm, &[7; 16], &[7; 4], 1, 0)
            .expect("the right lengths")
    }

    /// A client whose epoch 1 has sealed the records 0, 1, 2 and so on with these contents.
    fn sealed(contents: &[&[u8]]) -> Checker {
        let mut checker = Checker::new(1);
        checker.datagrams_sealed_with(&client(), &keys());
        for (number, content) in (0..).zip(contents) {
            let record = Record::new(1, number, 23, content);
            checker
                .datagram_sealed(Instant::ZERO, &client(), &keys(), record)
                .expect("a new nonce");
        }
        checker
    }

    /// The client sends a record of epoch 1.
    fn send(checker: &mut Checker, number: u8) -> Verdict {
        let record = [23, 254, 253, 0, 1, 0, 0, 0, 0, 0, number, 0, 2, b'x', b'y'];
        checker.sent(
            Instant::ZERO,
            0,
            &udp(CLIENT, SERVER, &record),
            Cause::First,
        )
    }

    /// The program at the server is handed a record of epoch 1.
    fn open(checker: &mut Checker, life: u64, number: u64, content: &[u8]) -> Verdict {
        let record = Record::new(1, number, 23, content);
        checker.datagram_opened(Instant::ZERO, &server(), life, record)
    }

    fn broken(verdict: Verdict, what: &str) {
        let violation = verdict.expect_err("the invariant is broken");
        assert!(violation.what.contains(what), "{violation}");
    }

    #[test]
    fn a_record_on_the_wire_that_was_never_sealed_is_seen() {
        let mut checker = sealed(&[b"zero", b"one"]);
        send(&mut checker, 1).expect("sealed");
        broken(
            send(&mut checker, 2),
            "never sealed is on the wire: epoch 1 #2",
        );
    }

    #[test]
    fn numbers_that_do_not_increase_on_the_wire_are_seen() {
        for (first, second) in [(1, 0), (1, 1)] {
            let mut checker = sealed(&[b"zero", b"one", b"two"]);
            send(&mut checker, first).expect("sealed");
            let what = format!("do not increase: epoch 1 #{second} comes behind #{first}");
            broken(send(&mut checker, second), &what);
        }
    }

    #[test]
    fn a_record_that_is_delivered_other_than_sealed_is_seen() {
        let mut checker = sealed(&[b"zero", b"one"]);
        open(&mut checker, 1, 1, b"one").expect("sealed so");
        broken(
            open(&mut checker, 1, 0, b"nil"),
            "never sealed, or not so: epoch 1 #0",
        );
        broken(
            open(&mut checker, 1, 2, b"two"),
            "never sealed, or not so: epoch 1 #2",
        );
    }

    #[test]
    fn a_record_that_is_delivered_twice_is_seen() {
        let mut checker = sealed(&[b"zero", b"one"]);
        open(&mut checker, 1, 1, b"one").expect("the first time");
        open(&mut checker, 1, 0, b"zero").expect("out of order is fine");
        // A host that crashed has forgotten what it received.
        open(&mut checker, 2, 1, b"one").expect("in another life");
        broken(
            open(&mut checker, 1, 1, b"one"),
            "delivered twice: epoch 1 #1",
        );
    }
}
