//! The reading half of a stream: plain bytes, and the marks among them.
//!
//! A [`Receive`] makes one attempt at a time and never waits, so its lock is never held across a wait. Linux promises that
//! a read stops at a mark's end at the latest, and hands the attached descriptor to the read that takes the mark's first
//! byte. So whenever a descriptor arrives, the last byte read is a mark's, and its index tells how many of the mark's bytes
//! the caller's buffer ends with; those are taken off again, the missing ones are the front of the queue.
//!
//! ```text
//!   socket:  d d d d │M M M … M│ c c │ d d …        d data, M a Control mark (64 bytes, descriptor), c its record
//!   read of 16 →  d d d d M M … (12 of M)  + descriptor   → 4 bytes of data; 52 bytes of M fetched; pending: record of 2
//! ```
//!
//! An empty control record has one byte behind its mark all the same, so that the socket polls readable while it waits.
//!
//! A control record is delivered only when it is here as a whole. Its bytes stay on the socket until then (so `poll`
//! shows them) unless only a part of them has come.

use super::scm;
use rustix::fd::BorrowedFd;
use rustix::io::{Errno, IoSliceMut, ioctl_fionread};
use rustix::net::{RecvFlags, recv};
use uktls_record::{ContentType, ProtocolVersion};
use uktls_stack::mark::{MARK_LEN, Mark, bytes_behind, bytes_in_hand};

/// First byte of a KeyUpdate message (RFC 8446 §4: `key_update(24)`).
const KEY_UPDATE: u8 = 24;

/// Longest control record that the daemon may announce: RFC 8446 §5.1, "The length MUST NOT exceed 2^14 bytes."
const MAX_CONTROL: u32 = 1 << 14;

/// What the library keeps of the reading half.
#[derive(Debug, Default)]
pub(super) struct Receive {
    /// A control record whose mark was read.
    pending: Option<Pending>,
    /// Receiving stopped for good.
    error: Option<Errno>,
    /// A KeyUpdate was delivered: nothing can be read until new keys are set.
    expired: bool,
    /// Version of the keys for receiving, once set.
    keys: Option<ProtocolVersion>,
    /// Bytes left of the data record that was announced last; `None` while data records are not announced.
    data_left: Option<usize>,
    attached: Attached,
}

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// The owner of the TCP socket.
    Owner,
    /// The AF_KTLS socket that is attached to it.
    Records,
}

/// What an AF_KTLS socket does to the stream; see [`af_ktls`](super::af_ktls).
///
/// ```text
///   socket:  │RxKeys│ d d d d │Raw│ r r r │RxKeys│ d d … │RxEnd│ p p …      d: the AF_KTLS socket's, r and p: the owner's
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Attached {
    /// None is attached, or it has no keys for receiving yet.
    #[default]
    No,
    /// It has keys.
    Yes {
        /// Times that keys were set and their mark was not read yet. An error in front of it is over.
        awaited: usize,
        /// Bytes of a record in front that are the owner's.
        raw: usize,
        /// Such a record came, and no keys were set since.
        stopped: bool,
    },
    /// It is being unattached: data in front of the next mark of the owner's are still its own.
    Leaving,
    /// It is not attached any more; all that comes is the owner's, although its last mark was not read yet.
    Left,
}

#[derive(Debug)]
struct Pending {
    content_type: ContentType,
    /// Its bytes that are still on the socket.
    left: usize,
    /// It is empty: one byte on the socket stands for it.
    empty: bool,
    /// Its bytes that came off the socket before the rest was there.
    front: Vec<u8>,
    /// Its first byte was not delivered yet.
    untouched: bool,
    /// It is a KeyUpdate.
    key_update: bool,
}

/// What one attempt found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Application data, or plain bytes; `ends_record` when they are known to be their record's last.
    Data { len: usize, ends_record: bool },
    /// Bytes of a control record; `whole` when they are its last.
    Control {
        content_type: ContentType,
        len: usize,
        whole: bool,
    },
    /// Nothing yet.
    Nothing,
    /// The stream's end.
    End,
}

impl Receive {
    /// The state of a stream that has these keys.
    pub(super) fn with_keys(keys: Option<ProtocolVersion>) -> Self {
        Receive {
            keys,
            ..Receive::default()
        }
    }

    /// Version of the keys for receiving.
    pub(super) fn keys(&self) -> Option<ProtocolVersion> {
        self.keys
    }

    /// Keys for receiving were set.
    pub(super) fn set_keys(&mut self, version: ProtocolVersion) {
        self.keys = Some(version);
        self.expired = false;
    }

    /// Whether an AF_KTLS socket has keys for receiving.
    pub(super) fn is_attached(&self) -> bool {
        matches!(self.attached, Attached::Yes { .. })
    }

    /// Keys for an AF_KTLS socket were set.
    pub(super) fn attach_keys(&mut self) {
        if let Attached::Yes { awaited, .. } = &mut self.attached {
            *awaited += 1;
        } else {
            self.attached = Attached::Yes {
                awaited: 1,
                raw: 0,
                stopped: false,
            };
        }
    }

    /// What an AF_KTLS socket's next read fails with, as far as it is known.
    pub(super) fn attached_error(&self) -> Option<Errno> {
        match self.attached {
            Attached::Yes {
                awaited,
                raw,
                stopped,
            } => {
                if raw > 0 || (stopped && awaited == 0) {
                    // af-ktls.md: "record of another type than 0x17: reading stops: `EBADMSG`".
                    Some(Errno::BADMSG)
                } else {
                    self.error.filter(|_| awaited == 0)
                }
            }
            _ => None,
        }
    }

    /// The stack gives the stream back to its owner; [`leave`](Self::leave) finds what is still the AF_KTLS socket's.
    pub(super) fn start_leaving(&mut self) {
        self.attached = match self.attached {
            Attached::Yes { raw: 0, .. } => Attached::Leaving,
            Attached::Yes { .. } => Attached::Left,
            other => other,
        };
        self.error = None;
    }

    /// Reads what is still the AF_KTLS socket's into `held`. Whether that is all of it.
    pub(super) fn leave(&mut self, fd: BorrowedFd<'_>, held: &mut Vec<u8>) -> Result<bool, Errno> {
        let mut buf = [0; 4096];
        while self.attached == Attached::Leaving {
            match self.step(fd, &mut buf, Reader::Records, false, false)? {
                Step::Data { len, .. } => held.extend_from_slice(&buf[..len]),
                Step::Nothing => return Ok(self.attached != Attached::Leaving),
                Step::End => self.attached = Attached::No,
                Step::Control { .. } => return Err(self.stop(Errno::PROTO)),
            }
        }
        Ok(true)
    }

    /// What the owner of the TCP socket may read while an AF_KTLS socket is attached: records that were left to it.
    fn owners_step(
        &mut self,
        fd: BorrowedFd<'_>,
        buf: &mut [u8],
        peek: bool,
    ) -> Result<Step, Errno> {
        loop {
            let Attached::Yes { raw, .. } = &mut self.attached else {
                return Err(Errno::PROTO);
            };
            if *raw > 0 || buf.is_empty() {
                let room = buf.len().min(*raw);
                let flags = if peek {
                    RecvFlags::DONTWAIT | RecvFlags::PEEK
                } else {
                    RecvFlags::DONTWAIT
                };
                let len = match recv(fd, &mut buf[..room], flags) {
                    Ok((_, len)) if len > 0 || room == 0 => len,
                    Ok(_) | Err(Errno::CONNRESET) => return Ok(Step::End),
                    Err(Errno::AGAIN) => return Ok(Step::Nothing),
                    Err(errno) => return Err(errno),
                };
                let ends_record = len == *raw;
                if !peek {
                    *raw -= len;
                }
                return Ok(Step::Data { len, ends_record });
            }
            match self.look(fd, &mut [0])? {
                None => {}
                Some(Step::Data { .. }) => return Err(Errno::BUSY),
                Some(other) => return Ok(other),
            }
        }
    }

    /// One attempt to fill `buf`. `types`: the caller can take control records; with `peek` everything stays queued.
    ///
    /// # Errors
    /// `EIO` when a control record is next and the caller cannot take it, `EKEYEXPIRED` behind a KeyUpdate, the record
    /// layer's error behind the last good byte, `EPROTO` for a stream that the daemon cannot have written.
    pub(super) fn step(
        &mut self,
        fd: BorrowedFd<'_>,
        buf: &mut [u8],
        reader: Reader,
        types: bool,
        peek: bool,
    ) -> Result<Step, Errno> {
        if self.is_attached() && reader == Reader::Owner {
            return self.owners_step(fd, buf, peek);
        }
        loop {
            if let Some(error) = self.attached_error() {
                return Err(error);
            }
            if let Some(pending) = &mut self.pending {
                if !types {
                    return Err(Errno::IO);
                }
                match pending.complete(fd)? {
                    Completeness::Whole => {}
                    Completeness::Partial => return Ok(Step::Nothing),
                    Completeness::CutOff => {
                        self.pending = None;
                        return Ok(Step::End);
                    }
                }
                return self.deliver_pending(fd, buf, peek);
            }
            if let (Some(error), false) = (self.error, self.is_attached()) {
                return Err(error);
            }
            if self.expired {
                return Err(Errno::KEYEXPIRED);
            }
            if buf.is_empty() {
                return Ok(Step::Data {
                    len: 0,
                    ends_record: false,
                });
            }
            if peek {
                match self.look(fd, buf)? {
                    Some(step) => return Ok(step),
                    None => continue,
                }
            }
            let received = match scm::receive(fd, &mut [IoSliceMut::new(buf)], RecvFlags::DONTWAIT)
            {
                Ok(received) => received,
                Err(Errno::AGAIN) => return Ok(Step::Nothing),
                Err(Errno::CONNRESET) => return Ok(Step::End),
                Err(errno) => return Err(errno),
            };
            if received.len == 0 {
                return Ok(Step::End);
            }
            // A descriptor that this process had no room for still marks the mark.
            if received.fds.is_empty() && !received.fds_cut {
                return Ok(self.data(received.len, false));
            }
            let in_hand = bytes_in_hand(buf[received.len - 1]);
            let Some(data) = received.len.checked_sub(in_hand) else {
                return Err(self.stop(Errno::PROTO));
            };
            let mut mark = [0; MARK_LEN];
            mark[..in_hand].copy_from_slice(&buf[data..received.len]);
            buf[data..received.len].fill(0);
            // The mark may announce the next record: first the bytes in front of it.
            let step = self.data(data, false);
            let leaving = self.attached == Attached::Leaving;
            self.take_mark(fd, mark, in_hand)?;
            if data > 0 {
                return Ok(step);
            }
            if leaving && self.attached != Attached::Leaving {
                // What follows is the owner's.
                return Ok(Step::Nothing);
            }
        }
    }

    /// Looks at what is next without taking it; a mark at the very front is taken, and `None` says so.
    ///
    /// Linux hands a peek that ends just in front of a message with descriptors those descriptors as well (seen). So room
    /// for a whole mark is added: only where all of it is used may the mark lie, in part or whole, behind what was asked for.
    fn look(&mut self, fd: BorrowedFd<'_>, buf: &mut [u8]) -> Result<Option<Step>, Errno> {
        let mut room = vec![0; buf.len() + MARK_LEN];
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        let received = match scm::receive(fd, &mut [IoSliceMut::new(&mut room)], flags) {
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(Some(Step::Nothing)),
            Err(Errno::CONNRESET) => return Ok(Some(Step::End)),
            Err(errno) => return Err(errno),
        };
        if received.len == 0 {
            return Ok(Some(Step::End));
        }
        let marked = !received.fds.is_empty() || received.fds_cut;
        let data = if marked && received.len < room.len() {
            received.len.checked_sub(MARK_LEN)
        } else {
            Some(received.len.min(buf.len()))
        };
        match data {
            None => Err(self.stop(Errno::PROTO)),
            Some(0) => self.take_mark(fd, [0; MARK_LEN], 0).map(|()| None),
            Some(data) => {
                buf[..data].copy_from_slice(&room[..data]);
                Ok(Some(self.data(data, true)))
            }
        }
    }

    /// Takes what is missing of a mark off the socket, and acts on it.
    fn take_mark(
        &mut self,
        fd: BorrowedFd<'_>,
        mut mark: [u8; MARK_LEN],
        in_hand: usize,
    ) -> Result<(), Errno> {
        take_rest(fd, &mut mark[in_hand..]).map_err(|errno| self.stop(errno))?;
        self.apply(&mark);
        Ok(())
    }

    /// Data was read, or looked at.
    fn data(&mut self, len: usize, peek: bool) -> Step {
        let left = self.data_left.map(|left| left.saturating_sub(len));
        if !peek {
            self.data_left = left;
        }
        Step::Data {
            len,
            ends_record: left == Some(0),
        }
    }

    fn apply(&mut self, mark: &[u8; MARK_LEN]) {
        match Mark::decode(mark) {
            Ok(Mark::Control { content_type, len })
                if content_type == ContentType::APPLICATION_DATA.0 && len <= MAX_CONTROL =>
            {
                self.data_left = Some(len as usize);
            }
            Ok(Mark::Control { content_type, len }) if len <= MAX_CONTROL => {
                self.pending = Some(Pending {
                    content_type: ContentType(content_type),
                    left: len as usize,
                    empty: len == 0,
                    front: Vec::new(),
                    untouched: true,
                    key_update: false,
                });
            }
            Ok(Mark::Error { errno }) => {
                if !matches!(self.attached, Attached::Leaving | Attached::Left) {
                    self.error = Some(Errno::from_raw_os_error(errno));
                }
            }
            Ok(mark @ (Mark::Raw { .. } | Mark::RxKeys | Mark::RxEnd)) => self.apply_attached(mark),
            Ok(_) | Err(_) => self.error = Some(Errno::PROTO),
        }
    }

    fn apply_attached(&mut self, mark: Mark) {
        match (mark, &mut self.attached) {
            (Mark::Raw { len }, Attached::Yes { raw, stopped, .. }) => {
                *raw = len as usize;
                *stopped = true;
            }
            (
                Mark::RxKeys,
                Attached::Yes {
                    awaited, stopped, ..
                },
            ) if *awaited > 0 => {
                *awaited -= 1;
                *stopped = false;
                self.error = None;
            }
            (Mark::Raw { .. }, attached @ Attached::Leaving) => *attached = Attached::Left,
            (Mark::RxEnd, attached @ (Attached::Leaving | Attached::Left)) => {
                *attached = Attached::No;
                self.data_left = None;
            }
            (Mark::Raw { .. }, Attached::Left)
            | (Mark::RxKeys, Attached::Leaving | Attached::Left) => {}
            _ => self.error = Some(Errno::PROTO),
        }
    }

    fn stop(&mut self, errno: Errno) -> Errno {
        self.error = Some(errno);
        errno
    }

    fn deliver_pending(
        &mut self,
        fd: BorrowedFd<'_>,
        buf: &mut [u8],
        peek: bool,
    ) -> Result<Step, Errno> {
        let Some(pending) = &mut self.pending else {
            return Ok(Step::Nothing);
        };
        let whole = pending.front.len() + pending.left;
        let from_front = pending.front.len().min(buf.len());
        buf[..from_front].copy_from_slice(&pending.front[..from_front]);
        let from_socket = pending.left.min(buf.len() - from_front);
        if from_socket > 0 {
            let flags = if peek {
                RecvFlags::DONTWAIT | RecvFlags::PEEK
            } else {
                RecvFlags::DONTWAIT
            };
            let got = read_exactly(
                fd,
                &mut buf[from_front..from_front + from_socket],
                flags,
                peek,
            )?;
            debug_assert_eq!(got, from_socket, "completeness was checked");
        }
        let len = from_front + from_socket;
        let content_type = pending.content_type;
        if pending.untouched && len > 0 {
            pending.key_update = content_type == ContentType::HANDSHAKE
                && self.keys == Some(ProtocolVersion::Tls13)
                && buf[0] == KEY_UPDATE;
            pending.untouched = peek;
        }
        if !peek {
            pending.front.drain(..from_front);
            pending.left -= from_socket;
            if len == whole {
                if pending.empty {
                    read_exactly(fd, &mut [0], RecvFlags::DONTWAIT, false)?;
                }
                self.expired = pending.key_update;
                self.pending = None;
            }
        }
        Ok(Step::Control {
            content_type,
            len,
            whole: len == whole,
        })
    }
}

enum Completeness {
    Whole,
    Partial,
    CutOff,
}

impl Pending {
    /// Whether the whole record is here. What is here of an incomplete one comes off the socket, so that the socket polls
    /// readable again only when more of it has come.
    fn complete(&mut self, fd: BorrowedFd<'_>) -> Result<Completeness, Errno> {
        let wanted = if self.empty {
            bytes_behind(0)
        } else {
            self.left
        };
        if wanted as u64 <= ioctl_fionread(fd)? {
            return Ok(Completeness::Whole);
        }
        if self.empty {
            return Ok(
                match recv(fd, &mut [0], RecvFlags::DONTWAIT | RecvFlags::PEEK) {
                    Ok((_, 0)) | Err(Errno::CONNRESET) => Completeness::CutOff,
                    _ => Completeness::Partial,
                },
            );
        }
        let mut piece = [0; 4096];
        while self.left > 0 {
            let want = self.left.min(piece.len());
            match recv(fd, &mut piece[..want], RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(Completeness::CutOff),
                Ok((_, got)) => {
                    self.front.extend_from_slice(&piece[..got]);
                    self.left -= got;
                }
                Err(Errno::AGAIN) => return Ok(Completeness::Partial),
                Err(errno) => return Err(errno),
            }
        }
        Ok(Completeness::Whole)
    }
}

/// Takes the rest of a mark off the socket; it is there, since a mark is one message.
fn take_rest(fd: BorrowedFd<'_>, rest: &mut [u8]) -> Result<(), Errno> {
    let mut at = 0;
    while at < rest.len() {
        match scm::receive(
            fd,
            &mut [IoSliceMut::new(&mut rest[at..])],
            RecvFlags::DONTWAIT,
        ) {
            Ok(received) if received.len > 0 => at += received.len,
            Ok(_) | Err(Errno::AGAIN) => return Err(Errno::PROTO),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Reads bytes that are known to be queued. A peek cannot continue where it stopped, but sees all of them at once.
fn read_exactly(
    fd: BorrowedFd<'_>,
    buf: &mut [u8],
    flags: RecvFlags,
    once: bool,
) -> Result<usize, Errno> {
    let mut at = 0;
    while at < buf.len() {
        let (_, got) = recv(fd, &mut buf[at..], flags)?;
        at += got;
        if once || got == 0 {
            break;
        }
    }
    Ok(at)
}
