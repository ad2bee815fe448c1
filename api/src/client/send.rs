//! The writing half of a stream: plain bytes, and the marks put among them.
//!
//! A [`Send`] makes one attempt at a time and never waits. What was promised but found no room (the mark that closes a
//! record, the rest of an alert) is *owed* and goes ahead of everything else next time.
//!
//! ```text
//!   send(d)                     d d d │RecordEnd│          of more than one record: │RecordOpen│ in front
//!   send(d, MORE); send(e)      │RecordOpen│ d d d   e e │RecordEnd│
//!   send_record(ALERT, a)       │Record 21, 2│ a a
//!   an owner's send(r), while an AF_KTLS socket is attached: │Raw│ r r
//! ```

use super::kept::token;
use super::scm::{self, Outgoing};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::VecDeque;
use uktls_stack::mark::{MARK_LEN, Mark};

/// Plaintext of one record at most; also what a record written with its type is cut into, since that much fits beside its
/// mark whenever the socket polls writable.
pub(super) const MAX_RECORD: usize = 1 << 14;

/// What the library keeps of the writing half.
#[derive(Debug, Default)]
pub(super) struct Send {
    owed: VecDeque<Owed>,
    record: Record,
    /// Keys for sending are set.
    armed: bool,
    /// They are an AF_KTLS socket's.
    attached: bool,
}

/// The data record behind the last byte sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Record {
    #[default]
    Closed,
    /// The caller left it open (`MSG_MORE`); at close it is dropped, as in Linux.
    Open,
    /// A send was cut short by lack of room; the rest is expected, but what was taken is promised.
    Unfinished,
}

#[derive(Debug)]
struct Owed {
    bytes: Vec<u8>,
    /// Goes with a descriptor: a mark.
    marked: bool,
    sent: usize,
}

impl Send {
    /// The state of a stream that has keys for sending, or has not.
    pub(super) fn with_keys(armed: bool) -> Self {
        Send {
            armed,
            ..Send::default()
        }
    }

    /// Whether keys for sending are set.
    pub(super) fn armed(&self) -> bool {
        self.armed
    }

    /// Whether what is sent belongs to an AF_KTLS socket, so that the owner's own bytes go between its records.
    pub(super) fn is_attached(&self) -> bool {
        self.attached
    }

    /// Whether something must go before the stream may end.
    pub(super) fn owes(&mut self) -> bool {
        if self.record == Record::Unfinished {
            self.owe_mark(Mark::RecordEnd);
            self.record = Record::Closed;
        }
        !self.owed.is_empty()
    }

    /// Sends what is owed; `AGAIN` when there is no room for all of it.
    pub(super) fn settle(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        while let Some(owed) = self.owed.front_mut() {
            let token = if owed.marked && owed.sent == 0 {
                Some(token()?)
            } else {
                None
            };
            let [sent, ..] = scm::send_all_now(
                fd,
                &[Outgoing {
                    bytes: &owed.bytes[owed.sent..],
                    fd: token,
                }],
            )?;
            owed.sent += sent;
            if owed.sent == owed.bytes.len() {
                self.owed.pop_front();
            }
        }
        Ok(())
    }

    /// One attempt to send `bytes`: how many were taken.
    pub(super) fn data(
        &mut self,
        fd: BorrowedFd<'_>,
        bytes: &[u8],
        more: bool,
    ) -> Result<usize, Errno> {
        self.settle(fd)?;
        if !self.armed {
            return rustix::net::send(fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
        if bytes.is_empty() {
            if self.record != Record::Closed && !more {
                self.owe_mark(Mark::RecordEnd);
                self.record = Record::Closed;
                return self.settle(fd).map(|()| 0);
            }
            return Ok(0);
        }
        let token = Some(token()?);
        let (open, end) = (Mark::RecordOpen.encode(), Mark::RecordEnd.encode());
        let mut messages = Vec::with_capacity(3);
        // More than one record arrives in pieces. Told nothing, the stack closes a record whenever it has drained what
        // is there, so a piece's end would become a record's.
        if self.record == Record::Closed && (more || bytes.len() > MAX_RECORD) {
            messages.push(Outgoing {
                bytes: &open,
                fd: token,
            });
        }
        let at = messages.len();
        messages.push(Outgoing { bytes, fd: None });
        if !more {
            messages.push(Outgoing {
                bytes: &end,
                fd: token,
            });
        }
        let sent = scm::send_all_now(fd, &messages)?;
        if sent[at] < bytes.len() {
            if at == 1 {
                self.record = Record::Unfinished;
            }
        } else if more {
            self.record = Record::Open;
        } else {
            self.record = Record::Closed;
            if sent[at + 1] == 0 {
                self.owe_mark(Mark::RecordEnd);
            }
        }
        if sent[at] == 0 {
            Err(Errno::AGAIN)
        } else {
            Ok(sent[at])
        }
    }

    /// One attempt to send a record of a type: at most [`MAX_RECORD`] of `bytes`, all or nothing.
    pub(super) fn record(
        &mut self,
        fd: BorrowedFd<'_>,
        content_type: u8,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        self.announced(fd, bytes, |len| Mark::Record { content_type, len })
    }

    /// One attempt to send bytes as they are: at most [`MAX_RECORD`], all or nothing.
    pub(super) fn raw(&mut self, fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
        self.announced(fd, bytes, |len| Mark::Raw { len })
    }

    /// Sends a mark that says what the bytes behind it are, and these.
    fn announced(
        &mut self,
        fd: BorrowedFd<'_>,
        bytes: &[u8],
        mark: impl FnOnce(u32) -> Mark,
    ) -> Result<usize, Errno> {
        self.settle(fd)?;
        if !scm::glance(fd, PollFlags::OUT)?.contains(PollFlags::OUT) {
            return Err(Errno::AGAIN);
        }
        let bytes = &bytes[..bytes.len().min(MAX_RECORD)];
        let mark = mark(bytes.len() as u32).encode();
        let messages = [
            Outgoing {
                bytes: &mark,
                fd: Some(token()?),
            },
            Outgoing { bytes, fd: None },
        ];
        let [_, sent, _] = scm::send_all_now(fd, &messages)?;
        self.record = Record::Closed;
        // Another process that writes to the same socket may have taken the room.
        if sent < bytes.len() {
            self.owed.push_back(Owed {
                bytes: bytes[sent..].to_vec(),
                marked: false,
                sent: 0,
            });
        }
        Ok(bytes.len())
    }

    /// The keys staged as `key_id` are in force for everything sent from now on.
    pub(super) fn keys(&mut self, fd: BorrowedFd<'_>, key_id: u32) -> Result<(), Errno> {
        self.armed = true;
        self.mark(fd, Mark::TxKeys { key_id })
    }

    /// As [`keys`](Self::keys), for an AF_KTLS socket.
    pub(super) fn attach_keys(&mut self, fd: BorrowedFd<'_>, key_id: u32) -> Result<(), Errno> {
        self.attached = true;
        self.keys(fd, key_id)
    }

    /// An AF_KTLS socket's keys are in force no more.
    pub(super) fn end_keys(&mut self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        (self.armed, self.attached) = (false, false);
        self.mark(fd, Mark::TxEnd)
    }

    /// Puts a mark that closes an open record behind what was sent so far. It may be owed.
    pub(super) fn mark(&mut self, fd: BorrowedFd<'_>, mark: Mark) -> Result<(), Errno> {
        self.owe_mark(mark);
        self.record = Record::Closed;
        match self.settle(fd) {
            Err(Errno::AGAIN | Errno::TOOMANYREFS) => Ok(()),
            settled => settled,
        }
    }

    /// One attempt to send a mark with descriptors of its own, such as a file's: all or nothing.
    pub(super) fn with_descriptors(
        &mut self,
        fd: BorrowedFd<'_>,
        mark: Mark,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Errno> {
        self.settle(fd)?;
        let bytes = mark.encode();
        let sent = scm::send(
            fd,
            &[rustix::io::IoSlice::new(&bytes)],
            fds,
            SendFlags::DONTWAIT,
        )?;
        debug_assert_eq!(
            sent, MARK_LEN,
            "so short a message goes whole or not at all"
        );
        self.record = Record::Closed;
        Ok(())
    }

    /// As [`with_descriptors`](Self::with_descriptors), with `filler` meaningless bytes behind it that keep the socket from polling writable.
    pub(super) fn held_file(
        &mut self,
        fd: BorrowedFd<'_>,
        mark: Mark,
        file: BorrowedFd<'_>,
        filler: usize,
    ) -> Result<(), Errno> {
        self.settle(fd)?;
        if !scm::glance(fd, PollFlags::OUT)?.contains(PollFlags::OUT) {
            return Err(Errno::AGAIN);
        }
        let bytes = mark.encode();
        let filler = vec![0; filler];
        let messages = [
            Outgoing {
                bytes: &bytes,
                fd: Some(file.as_fd()),
            },
            Outgoing {
                bytes: &filler,
                fd: None,
            },
        ];
        let [_, sent, _] = scm::send_all_now(fd, &messages)?;
        self.record = Record::Closed;
        if sent < filler.len() {
            self.owed.push_back(Owed {
                bytes: filler[sent..].to_vec(),
                marked: false,
                sent: 0,
            });
        }
        Ok(())
    }

    fn owe_mark(&mut self, mark: Mark) {
        self.owed.push_back(Owed {
            bytes: mark.encode().to_vec(),
            marked: true,
            sent: 0,
        });
    }
}
