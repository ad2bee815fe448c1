//! Messages taken from an association's end, several with one system call.
//!
//! A client's end gives messages of any length, and what becomes one run must lie one behind the other. So they are taken into
//! *staging*, a slot each, and sealed from there to where they leave from, in one pass; a message that turns out not to
//! fit its run is the first of the next. Staging is the engine's, and everything in it is worked off in the turn that took it,
//! but for messages behind a file's range: those are copied out, and wait with their association.

use super::end::FromClient;
use std::collections::VecDeque;
use uktls_record::header::MAX_PLAINTEXT;

/// Messages taken at a time at most.
pub const BATCH: usize = 64;
/// A content type, a record's plaintext, and a byte too many to be seen.
pub const MESSAGE_ROOM: usize = 1 + MAX_PLAINTEXT + 1;
/// From one slot to the next. Not a multiple of a page, so that short messages spread over the cache.
const SLOT: usize = MESSAGE_ROOM.next_multiple_of(4096) + 1600;

/// Room for a batch of messages. Memory is used only where messages were that long.
#[derive(Debug, Default)]
pub struct Staging {
    room: Vec<u8>,
}

impl Staging {
    /// The slots, each of [`MESSAGE_ROOM`] bytes.
    pub fn slots(&mut self) -> impl Iterator<Item = &mut [u8]> {
        if self.room.is_empty() {
            self.room = vec![0; BATCH * SLOT];
        }
        self.room
            .chunks_exact_mut(SLOT)
            .map(|slot| &mut slot[..MESSAGE_ROOM])
    }

    fn message(&self, slot: usize, len: usize) -> &[u8] {
        &self.room[slot * SLOT..][..len]
    }
}

/// What was taken and is still to be sent.
#[derive(Debug)]
enum Message {
    /// The first bytes of this slot: content type and plaintext.
    Staged { slot: usize, len: usize },
    /// The same, copied out.
    Kept(Vec<u8>),
    /// No record.
    Other(FromClient),
}

/// What stands first in line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum First<'a> {
    /// A record's content type and plaintext. It stays until [`Taken::drop_first`].
    Record(u8, &'a [u8]),
    /// Something else, for [`Taken::pop_other`].
    Other,
}

/// Messages in the order in which they came.
#[derive(Debug, Default)]
pub struct Taken {
    messages: VecDeque<Message>,
}

impl Taken {
    /// Adds what was put into this slot, of which `len` bytes are the message: a content type and the plaintext.
    pub fn push_record(&mut self, slot: usize, len: usize) {
        self.messages.push_back(Message::Staged { slot, len });
    }

    /// Adds a message that is no record.
    pub fn push_other(&mut self, other: FromClient) {
        self.messages.push_back(Message::Other(other));
    }

    /// Adds one message, for ends that give no more at a time. `pull` puts a record's plaintext to the front of what it gets; one that
    /// fills it may have been cut.
    pub fn take_one(&mut self, staging: &mut Staging, pull: impl FnOnce(&mut [u8]) -> FromClient) {
        let Some((first, room)) = staging.slots().next().and_then(<[u8]>::split_first_mut) else {
            return;
        };
        match pull(room) {
            FromClient::Record(content_type, len) => {
                *first = content_type;
                self.push_record(0, 1 + len);
            }
            other => self.push_other(other),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(crate) fn first<'a>(&'a self, staging: &'a Staging) -> Option<First<'a>> {
        let message = match self.messages.front()? {
            Message::Staged { slot, len } => staging.message(*slot, *len),
            Message::Kept(message) => message,
            Message::Other(_) => return Some(First::Other),
        };
        let (content_type, plaintext) = message.split_first()?;
        Some(First::Record(*content_type, plaintext))
    }

    pub(crate) fn drop_first(&mut self) {
        self.messages.pop_front();
    }

    /// Takes the first message out, which is no record.
    pub(crate) fn pop_other(&mut self) -> FromClient {
        match self.messages.pop_front() {
            Some(Message::Other(other)) => other,
            _ => FromClient::Empty,
        }
    }

    /// Copies out what is in staging still, which others will use now.
    pub(crate) fn keep(&mut self, staging: &Staging) {
        for message in &mut self.messages {
            if let Message::Staged { slot, len } = *message {
                *message = Message::Kept(staging.message(slot, len).to_vec());
            }
        }
    }

    /// Bytes that were copied out.
    pub(crate) fn memory(&self) -> usize {
        self.messages
            .iter()
            .map(|message| match message {
                Message::Kept(message) => message.len(),
                _ => 0,
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_order_and_bytes_when_staging_is_used_again() {
        let (mut staging, mut taken) = (Staging::default(), Taken::default());
        for (slot, room) in staging.slots().enumerate() {
            room[..3].fill(slot as u8);
        }
        for slot in 0..3 {
            taken.push_record(slot, 3);
        }
        taken.push_other(FromClient::Malformed);
        assert_eq!(taken.first(&staging), Some(First::Record(0, &[0, 0])));
        taken.drop_first();
        assert_eq!(taken.memory(), 0);
        taken.keep(&staging);
        assert_eq!(taken.memory(), 6);
        staging.slots().for_each(|slot| slot.fill(9));
        for expected in [1, 2] {
            let first = taken.first(&staging);
            assert_eq!(first, Some(First::Record(expected, &[expected; 2])));
            taken.drop_first();
        }
        assert_eq!(taken.first(&staging), Some(First::Other));
        assert!(matches!(taken.pop_other(), FromClient::Malformed));
        assert!(taken.is_empty() && taken.memory() == 0);
    }

    #[test]
    fn a_batch_has_a_slot_for_every_message() {
        let mut staging = Staging::default();
        assert_eq!(staging.slots().count(), BATCH);
        assert!(staging.slots().all(|slot| slot.len() == MESSAGE_ROOM));
    }
}
