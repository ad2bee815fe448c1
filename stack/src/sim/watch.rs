//! Who sees everything: the clock, and the checker of invariants that every packet and record is shown to.

use super::host::Place;
use super::invariant::{Cause, Checker, Direction, Record, Verdict, Violation};
use super::link::{self, Effect};
use crate::clock::Instant;
use crate::dtls::end as dtls;
use crate::engine::RecordEvent;
use crate::tcp::FlowKey;
use std::cell::{Cell, RefCell, RefMut};
use uktls_record::dtls::EpochKeys;

/// The watch of one run.
#[derive(Debug)]
pub(super) struct Watch {
    now: Cell<Instant>,
    checker: RefCell<Checker>,
    violation: RefCell<Option<Box<Violation>>>,
    broken: Cell<bool>,
}

impl Watch {
    pub(super) fn new(checker: Checker) -> Watch {
        Watch {
            now: Cell::new(Instant::ZERO),
            checker: RefCell::new(checker),
            violation: RefCell::new(None),
            broken: Cell::new(false),
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.now.get()
    }

    pub(super) fn set_now(&self, now: Instant) {
        self.now.set(now);
    }

    pub(super) fn checker(&self) -> RefMut<'_, Checker> {
        self.checker.borrow_mut()
    }

    /// An invariant is broken: the run is over.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    pub(super) fn take_violation(&self) -> Option<Box<Violation>> {
        self.violation.borrow_mut().take()
    }

    /// The first one counts.
    pub(super) fn note(&self, verdict: Verdict) {
        if let Err(violation) = verdict
            && !self.broken.replace(true)
        {
            *self.violation.borrow_mut() = Some(violation);
        }
    }

    pub(super) fn sent(&self, node: usize, packet: &[u8], cause: Cause) {
        let verdict = self.checker().sent(self.now(), node as u32, packet, cause);
        self.note(verdict);
    }

    pub(super) fn delivered(&self, node: usize, packet: &[u8]) {
        let verdict = self.checker().delivered(self.now(), node as u32, packet);
        self.note(verdict);
    }

    pub(super) fn event(&self, node: usize, name: &'static str, packet: &[u8], number: u64) {
        let verdict = self
            .checker()
            .event(self.now(), node as u32, name, packet, number);
        self.note(verdict);
    }

    /// What a link did to a packet, as far as it is worth a line.
    pub(super) fn offered(&self, node: usize, wire: usize, verdict: &link::Verdict, packet: &[u8]) {
        let place = (wire as u64) << 40 | verdict.number;
        if let Some(cause) = verdict.dropped {
            let name = match cause {
                link::DropCause::Down => "dropped: link down",
                link::DropCause::Mtu => "dropped: too long",
                link::DropCause::Loss => "lost",
                link::DropCause::Fault => "dropped by a fault",
                link::DropCause::Limit => "dropped: queue full",
            };
            return self.event(node, name, packet, place);
        }
        for effect in verdict.chance.iter().chain(verdict.fault.iter()) {
            let name = match effect {
                Effect::Drop => continue,
                Effect::Duplicate => "duplicated",
                Effect::Reorder => "overtakes",
                Effect::Delay(_) => "held back",
                Effect::Corrupt(super::damage::Corruption::Wire, _) => "corrupted",
                Effect::Corrupt(super::damage::Corruption::Forged, _) => {
                    let told = self.checker().forged(self.now(), node as u32, packet);
                    self.note(told);
                    continue;
                }
                Effect::Truncate(_) => "truncated",
            };
            self.event(node, name, packet, place);
        }
        if verdict.marked {
            self.event(node, "congestion marked", packet, place);
        }
    }

    pub(super) fn record(&self, flow: &FlowKey, event: RecordEvent) {
        let now = self.now();
        let mut checker = self.checker();
        let verdict = match event {
            RecordEvent::SealsWith(offset, keys) => {
                checker.keys_in_force(now, flow, Direction::Send, offset, &keys)
            }
            RecordEvent::OpensWith(offset, keys) => {
                checker.keys_in_force(now, flow, Direction::Receive, offset, &keys)
            }
            RecordEvent::Sealed(range, nonce) => checker.sealed(now, flow, range, &nonce),
            RecordEvent::Opened(range, plaintext) => {
                checker.opened(flow, range, plaintext);
                Ok(())
            }
        };
        drop(checker);
        self.note(verdict);
    }

    /// Something happened in a DTLS association; `keys` are those that it seals with.
    pub(super) fn association(
        &self,
        place: Place,
        flow: &FlowKey,
        keys: Option<&EpochKeys>,
        event: &dtls::RecordEvent<'_>,
    ) {
        let (now, host) = (self.now(), place.node as u32);
        let mut checker = self.checker();
        let verdict = match (event, keys) {
            (dtls::RecordEvent::SealsWith(keys), _) => {
                checker.datagrams_sealed_with(flow, keys);
                Ok(())
            }
            (
                dtls::RecordEvent::Sealed {
                    sequence,
                    content_type,
                    plaintext,
                },
                Some(keys),
            ) => {
                let record = Record::new(keys.epoch(), *sequence, content_type.0, plaintext);
                checker.datagram_sealed(now, flow, keys, record)
            }
            (
                dtls::RecordEvent::Opened {
                    epoch,
                    sequence,
                    content_type,
                    plaintext,
                },
                _,
            ) => {
                let record = Record::new(*epoch, *sequence, content_type.0, plaintext);
                let life = u64::from(host) << 32 | u64::from(place.incarnation);
                checker.datagram_opened(now, flow, life, record)
            }
            (dtls::RecordEvent::Dropped(kind), _) => {
                checker.datagram_dropped(now, host, flow, *kind)
            }
            (dtls::RecordEvent::Sealed { .. }, None) => Ok(()),
        };
        drop(checker);
        self.note(verdict);
    }

    pub(super) fn handed_in(&self, flow: &FlowKey, bytes: &[u8]) {
        self.checker().handed_in(flow, bytes);
    }

    pub(super) fn handed_out(&self, flow: &FlowKey, bytes: &[u8]) {
        let verdict = self.checker().handed_out(self.now(), flow, bytes);
        self.note(verdict);
    }

    /// A program was told that nothing more comes.
    pub(super) fn ended(&self, flow: &FlowKey) {
        let verdict = self.checker().ended(self.now(), flow);
        self.note(verdict);
    }
}
