//! Both sides' view of a DTLS association: queues in memory for what a program sends and what was opened for it.
//!
//! Both are bounded, as the association's Unix socket is in the daemon: a program that sends waits for room, and a record for
//! which there is none is lost, as datagrams are.

use super::host::{Place, Touch, Touches, wake};
use super::watch::Watch;
use crate::dtls::end::{FromClient, RecordEnd, RecordEvent};
use crate::dtls::taken::{Staging, Taken};
use crate::mark::Mark;
use crate::tcp::FlowKey;
use bytes::Bytes;
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;
use uktls_record::ContentType;
use uktls_record::dtls::EpochKeys;

/// Bytes that may wait in each direction.
const ROOM: usize = 192 * 1024;
/// What a record counts for besides its plaintext.
const OVERHEAD: usize = 64;

/// Something on its way from a program to the stack.
#[derive(Debug)]
enum Outgoing {
    Record(ContentType, Bytes),
    Mark(Mark),
    Memory(Bytes),
}

/// Something on its way from the stack to a program.
#[derive(Debug)]
pub(super) enum Incoming {
    Record(ContentType, Bytes),
    Note(Errno),
}

/// Both sides' view of one association.
#[derive(Debug)]
pub(super) struct Association {
    place: Place,
    /// The UDP socket's number in its engine.
    index: usize,
    /// The UDP socket's address and the peer's, as packets have them.
    flow: FlowKey,
    touches: Rc<Touches>,
    watch: Rc<Watch>,
    outgoing: VecDeque<Outgoing>,
    outgoing_bytes: usize,
    incoming: VecDeque<Incoming>,
    incoming_bytes: usize,
    /// Keys that seal, as the stack reported them.
    seals_with: Option<EpochKeys>,
    /// The keys are used up: nothing is sent before there are others.
    pub(super) exhausted: bool,
    /// The program dropped its end.
    dropped: bool,
    /// Memory ranges handed over, and how much was sealed of those that are done.
    ranges: u64,
    sealed: VecDeque<(u64, usize)>,
    sealed_ranges: u64,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

impl Association {
    pub(super) fn new(
        place: Place,
        index: usize,
        flow: FlowKey,
        touches: Rc<Touches>,
        watch: Rc<Watch>,
    ) -> Association {
        Association {
            place,
            index,
            flow,
            touches,
            watch,
            outgoing: VecDeque::new(),
            outgoing_bytes: 0,
            incoming: VecDeque::new(),
            incoming_bytes: 0,
            seals_with: None,
            exhausted: false,
            dropped: false,
            ranges: 0,
            sealed: VecDeque::new(),
            sealed_ranges: 0,
            reader: None,
            writer: None,
        }
    }

    fn touch(&self) {
        self.touches.push(self.place, Touch::Records(self.index));
    }

    fn put(&mut self, item: Outgoing) {
        // While something waits the stack has a turn for it already.
        if self.outgoing.is_empty() {
            self.touch();
        }
        self.outgoing.push_back(item);
    }

    /// Takes a record to be sealed; false when there is no room for it.
    pub(super) fn send(&mut self, content_type: ContentType, plaintext: &[u8]) -> bool {
        let size = plaintext.len() + OVERHEAD;
        if self.outgoing_bytes > 0 && self.outgoing_bytes + size > ROOM {
            return false;
        }
        self.outgoing_bytes += size;
        self.put(Outgoing::Record(
            content_type,
            Bytes::copy_from_slice(plaintext),
        ));
        true
    }

    /// Keys that were staged come into force behind what was sent so far.
    pub(super) fn mark(&mut self, mark: Mark) {
        self.exhausted = false;
        self.put(Outgoing::Mark(mark));
    }

    /// Takes memory to be sent as a file, and gives a number to ask for its end with.
    pub(super) fn send_memory(&mut self, bytes: Bytes) -> u64 {
        self.put(Outgoing::Memory(bytes));
        self.ranges += 1;
        self.ranges
    }

    /// How much of a memory range was sealed, if that is all that will be.
    pub(super) fn take_sealed(&mut self, range: u64) -> Option<usize> {
        let at = self
            .sealed
            .iter()
            .position(|(number, _)| *number == range)?;
        self.sealed.remove(at).map(|(_, len)| len)
    }

    /// What came first, taken or only looked at.
    pub(super) fn receive(&mut self) -> Option<Incoming> {
        let first = self.incoming.pop_front()?;
        if let Incoming::Record(_, plaintext) = &first {
            self.incoming_bytes -= plaintext.len() + OVERHEAD;
        }
        Some(first)
    }

    /// The program lets go of it.
    pub(super) fn drop_end(&mut self) {
        self.dropped = true;
        self.touch();
    }
}

/// A program's handle on an association.
pub(super) type SharedAssociation = Rc<RefCell<Association>>;

/// The stack's side of an association's end.
#[derive(Debug)]
pub(super) struct AssociationEnd(pub(super) SharedAssociation);

impl AssociationEnd {
    /// Takes the next message; a record's plaintext goes to the front of `buffer`.
    fn pull(&self, buffer: &mut [u8]) -> FromClient {
        let mut association = self.0.borrow_mut();
        match association.outgoing.pop_front() {
            Some(Outgoing::Record(content_type, plaintext)) => {
                association.outgoing_bytes -= plaintext.len() + OVERHEAD;
                if association.outgoing_bytes <= ROOM / 2 {
                    wake(&mut association.writer);
                }
                let len = plaintext.len().min(buffer.len());
                buffer[..len].copy_from_slice(&plaintext[..len]);
                FromClient::Record(content_type.0, len)
            }
            Some(Outgoing::Mark(mark)) => FromClient::Mark(mark, Vec::new()),
            Some(Outgoing::Memory(bytes)) => FromClient::Memory(bytes),
            None if association.dropped => FromClient::Closed,
            None => FromClient::Empty,
        }
    }
}

impl RecordEnd for AssociationEnd {
    fn pull_batch(&mut self, staging: &mut Staging, taken: &mut Taken) {
        taken.take_one(staging, |buffer| self.pull(buffer));
    }

    fn deliver(&mut self, content_type: u8, plaintext: &[u8]) -> bool {
        let mut association = self.0.borrow_mut();
        let size = plaintext.len() + OVERHEAD;
        if association.incoming_bytes + size > ROOM {
            return false;
        }
        association.incoming_bytes += size;
        let plaintext = Bytes::copy_from_slice(plaintext);
        association
            .incoming
            .push_back(Incoming::Record(ContentType(content_type), plaintext));
        wake(&mut association.reader);
        true
    }

    fn deliver_note(&mut self, errno: i32) {
        let mut association = self.0.borrow_mut();
        let errno = Errno::from_raw_os_error(errno);
        association.exhausted |= errno == Errno::BADMSG;
        association.incoming.push_back(Incoming::Note(errno));
        wake(&mut association.reader);
        wake(&mut association.writer);
    }

    fn memory_sealed(&mut self, len: usize) {
        let mut association = self.0.borrow_mut();
        association.sealed_ranges += 1;
        let range = association.sealed_ranges;
        association.sealed.push_back((range, len));
        wake(&mut association.writer);
    }

    fn observe<'a>(&mut self, event: impl FnOnce() -> RecordEvent<'a>) {
        let association = &mut *self.0.borrow_mut();
        let event = event();
        if let RecordEvent::SealsWith(keys) = &event {
            association.seals_with = Some(keys.clone());
        }
        let keys = association.seals_with.as_ref();
        association
            .watch
            .association(association.place, &association.flow, keys, &event);
    }
}
