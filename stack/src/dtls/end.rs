//! What passes over an association's end, a `SOCK_SEQPACKET` Unix socket.
//!
//! ```text
//!   a record   content type (1)  plaintext (0 to 16384)                  both ways
//!   a note     0 (1)             errno (4, LE)                           stack → client
//!   a mark     64 bytes, with descriptors attached (see mark)            client → stack
//! ```
//!
//! A message is a record, so a record of no plaintext is a message of one byte, and a message of none is an end. No record has
//! content type 0 (in DTLS 1.3 it cannot be said, in DTLS 1.2 nobody uses it). Of the marks only
//! [`Mark::TxKeys`] and [`Mark::File`] have a meaning here; a file's range is answered for when it has been sent.

use super::taken::{Staging, Taken};
use crate::client_fd::ClientFd;
use crate::mark::{MARK_LEN, Mark};
use bytes::Bytes;
use uktls_record::ContentType;
use uktls_record::dtls::{DiscardKind, EpochKeys};

/// Content type of a message that is no record but a note.
pub const NOTE: u8 = 0;

/// Length of a note.
pub const NOTE_LEN: usize = 5;

/// The bytes of a note that something went wrong: `EMSGSIZE`, a datagram was longer than the path's MTU and may not be
/// fragmented; `EBADMSG`, there are no keys, or they are used up; `E2BIG`, more than a record holds.
pub const fn note(errno: i32) -> [u8; NOTE_LEN] {
    let [a, b, c, d] = errno.to_le_bytes();
    [NOTE, a, b, c, d]
}

/// The errno of a note.
pub const fn read_note(message: &[u8]) -> Option<i32> {
    match *message {
        [NOTE, a, b, c, d] => Some(i32::from_le_bytes([a, b, c, d])),
        _ => None,
    }
}

/// What a client put on its end.
#[derive(Debug)]
pub enum FromClient {
    /// A record's content type, and the length of its plaintext, which is in the buffer.
    Record(u8, usize),
    /// A mark, with its descriptors.
    Mark(Mark, Vec<ClientFd>),
    /// Memory to be sent as a file would be: what `sendfile` is to a client in the same process.
    Memory(Bytes),
    /// A message that is neither.
    Malformed,
    /// Nothing waits.
    Empty,
    /// The client is gone.
    Closed,
}

/// The stack's side of an association's end. No call blocks.
pub trait RecordEnd: std::fmt::Debug {
    /// Takes some of the messages that wait, in their order, behind what was taken already: records into slots of `staging`, from
    /// the first on. When none waits, or the client is gone, that is pushed as a message as well.
    fn pull_batch(&mut self, staging: &mut Staging, taken: &mut Taken);

    /// Hands a record to the client. False when it was dropped for want of room.
    fn deliver(&mut self, content_type: u8, plaintext: &[u8]) -> bool;

    /// Hands a note to the client, if there is room.
    fn deliver_note(&mut self, errno: i32);

    /// So much of the [memory](FromClient::Memory) that was pulled last is sealed, and no more of it will be.
    fn memory_sealed(&mut self, _len: usize) {}

    /// What an observer of the association is told; nobody, unless the end says otherwise.
    fn observe<'a>(&mut self, _event: impl FnOnce() -> RecordEvent<'a>) {}
}

/// What happened in an association.
#[derive(Debug)]
pub enum RecordEvent<'a> {
    /// These keys seal every record from now on.
    SealsWith(EpochKeys),
    /// A record is sealed with the keys in force.
    Sealed {
        /// Its number.
        sequence: u64,
        /// Its content type.
        content_type: ContentType,
        /// Its plaintext.
        plaintext: &'a [u8],
    },
    /// A record that came was opened, and is handed to the client.
    Opened {
        /// The epoch it came under.
        epoch: u64,
        /// Its number.
        sequence: u64,
        /// Its content type.
        content_type: ContentType,
        /// Its plaintext.
        plaintext: &'a [u8],
    },
    /// A record that came was dropped.
    Dropped(DiscardKind),
}

/// What a message that came with descriptors is.
pub fn mark_of(message: &[u8], fds: Vec<ClientFd>) -> FromClient {
    let mark = <&[u8; MARK_LEN]>::try_from(message)
        .ok()
        .and_then(|bytes| Mark::decode(bytes).ok());
    match mark {
        Some(mark) => FromClient::Mark(mark, fds),
        None => FromClient::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_equal_and_records_are_none() {
        for errno in [7, 74, 90, i32::MAX] {
            assert_eq!(read_note(&note(errno)), Some(errno));
        }
        assert_eq!(read_note(&[23, 0, 0, 0, 0]), None);
        assert_eq!(read_note(&[0, 1]), None);
    }

    #[test]
    fn only_a_mark_is_a_mark() {
        let mark = Mark::TxKeys { key_id: 3 };
        assert!(matches!(
            mark_of(&mark.encode(), Vec::new()),
            FromClient::Mark(found, _) if found == mark
        ));
        for message in [&[][..], b"x", &[0; 63], &[0; 64], &[0; 65]] {
            assert!(matches!(
                mark_of(message, Vec::new()),
                FromClient::Malformed
            ));
        }
    }
}
