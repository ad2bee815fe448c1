//! `recvfile`: what a stream receives goes to a file, without passing through this process.
//!
//! The stack writes what it opened itself, in large pieces, on threads that may wait for a disk. What was delivered to this
//! end before it was asked to comes first, so the two sides take three steps:
//!
//! ```text
//!   RxHold ─→            the stack stops writing to this end
//!   what lies there      is looked at, written to the file here, and only then taken
//!   ReceiveTo + file ─→  the stack goes on, exactly behind it
//! ```
//! It ends where a plain read would: at a record of another type, at an error, at the end. Then everything before that is
//! in the file, and that itself is still to be read. What the file refuses (a full disk) stays unread as well. So no byte is lost, and none
//! is written twice.

use super::receive::{Reader, Step};
use super::scm;
use super::sendfile::{answer_socket, await_answer};
use super::tcp::TcpStream;
use crate::protocol::{Reply, Request, SocketRequest};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{FileType, OFlags, SeekFrom, fcntl_getfl, fstat, seek};
use rustix::io::Errno;
use std::io;
use std::time::Instant;
use uktls_stack::mark::SendfileResult;

/// What lies on this end is looked at in pieces of this size.
const PIECE: usize = 64 * 1024;

/// What became of the bytes that lay on this end.
enum Taken {
    /// All of them, or as many as were wanted, are in the file.
    Some(u64),
    /// Nothing lies there any more: the stack is to go on behind so many bytes.
    All(u64),
}

impl TcpStream {
    /// Receives up to `count` bytes to `file`, at `offset` (which is moved on) or, without one, at the file's own position
    /// (which is moved on). The stack decrypts and writes; nothing is copied to this process. Returns how many bytes were
    /// written: fewer than `count` when a record of another type, an error or the end comes first, which the next call (or
    /// read) then meets; 0 at the stream's end.
    ///
    /// A blocking stream waits until `count` bytes are there; with a [read timeout](Self::set_read_timeout), no longer than
    /// that. A non-blocking one takes what has arrived. Either may wait for the file.
    ///
    /// # Errors
    /// `EINVAL` for anything but a regular file or one of `/dev/null`, `/dev/zero` and `/dev/full`; `EBADF` for one that is
    /// not open for writing; `EBUSY` while an AF_KTLS socket has keys for receiving; what writing to it gives (`ENOSPC`, `EFBIG`) when nothing was written; and what
    /// [`Read`](io::Read) gives.
    pub fn recvfile(
        &self,
        file: &impl AsFd,
        offset: Option<&mut u64>,
        count: u64,
    ) -> io::Result<u64> {
        let file = file.as_fd();
        let access = fcntl_getfl(file)?;
        if access.contains(OFlags::PATH) || access & OFlags::RWMODE == OFlags::RDONLY {
            return Err(Errno::BADF.into());
        }
        let place = match (FileType::from_raw_mode(fstat(file)?.st_mode), &offset) {
            (FileType::RegularFile, Some(offset)) => Some(**offset),
            (FileType::RegularFile, None) => Some(seek(file, SeekFrom::Current(0))?),
            (FileType::CharacterDevice, _) => None,
            _ => return Err(Errno::INVAL.into()),
        };
        let received = self.receive_to(file, place, count, Reader::Owner)?;
        match (offset, place) {
            (Some(offset), _) => *offset += received,
            (None, Some(place)) => {
                seek(file, SeekFrom::Start(place + received))?;
            }
            (None, None) => {}
        }
        Ok(received)
    }

    /// Receives to a file whose kind was checked, for one of those who may read.
    pub(super) fn receive_to(
        &self,
        file: BorrowedFd<'_>,
        place: Option<u64>,
        count: u64,
        reader: Reader,
    ) -> io::Result<u64> {
        if count == 0 {
            return Ok(0);
        }
        loop {
            let received = self.receive_some(file, place, count, reader)?;
            if received > 0 {
                return Ok(received);
            }
            // Something that is not data came first, or nothing at all: a read says which, and waits if it may.
            match self.reading(&mut [0], reader, false, true, false)? {
                Step::Data { .. } => {}
                Step::Control { .. } | Step::Nothing | Step::End => return Ok(0),
            }
        }
    }

    /// Receives once. 0: something else than data is next.
    fn receive_some(
        &self,
        file: BorrowedFd<'_>,
        place: Option<u64>,
        count: u64,
        reader: Reader,
    ) -> io::Result<u64> {
        let wait = !self.is_nonblocking()?;
        let (ours, theirs) = answer_socket()?;
        // Other threads' reads wait until the order of bytes is settled; not for the answer.
        let mut state = self.shared().receive();
        if state.is_attached() != (reader == Reader::Records) {
            return Err(Errno::BUSY.into());
        }
        let held = match self.act(SocketRequest::RxHold) {
            Ok(()) => true,
            Err(error) if is_over(&error) => false,
            Err(error) => return Err(error),
        };
        let already = match take_delivered(self.as_fd(), &mut state, reader, file, place, count) {
            Ok(Taken::All(already)) if held => already,
            outcome => {
                self.release()?;
                return Ok(outcome.map(|taken| match taken {
                    Taken::Some(taken) | Taken::All(taken) => taken,
                })?);
            }
        };
        let request = Request::ReceiveTo {
            offset: place.map(|place| place + already),
            len: count - already,
            wait,
        };
        let asked = self.ask_with(&request, &[self.as_fd(), file, theirs.as_fd()]);
        drop(state);
        drop(theirs);
        match asked {
            Ok(Reply::Done) => {}
            Ok(_) => return Err(self.shared().daemon.nonsense().into()),
            Err(error) if already > 0 || is_over(&error) => return Ok(already),
            Err(error) => return Err(error),
        }
        let deadline = self.read_timeout()?.map(|time| Instant::now() + time);
        if let Some(deadline) = deadline
            && rustix::io::retry_on_intr(|| scm::wait(&ours, PollFlags::IN, Some(deadline)))?
                .is_empty()
        {
            // A hold makes the stack finish; until it has, the file is its own.
            match self.act(SocketRequest::RxHold) {
                Err(error) if !is_over(&error) => return Err(error),
                _ => {}
            }
            let answer = await_answer(&ours)?;
            self.release()?;
            return outcome(answer, already);
        }
        outcome(await_answer(&ours)?, already)
    }

    fn release(&self) -> io::Result<()> {
        match self.act(SocketRequest::RxRelease) {
            Err(error) if !is_over(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// The connection ended meanwhile: what it delivered is all there is, and a read says why.
fn is_over(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error())
}

fn outcome(answer: Option<SendfileResult>, already: u64) -> io::Result<u64> {
    match answer {
        Some(SendfileResult { sent: 0, errno }) if errno != 0 && already == 0 => {
            Err(Errno::from_raw_os_error(errno).into())
        }
        Some(SendfileResult { sent, .. }) => Ok(already + sent),
        // The socket is over, and so is what it had in hand.
        None => Ok(already),
    }
}

/// Writes what lies on the held end to the file, up to `count` bytes. Bytes leave the end only when they are in the file.
fn take_delivered(
    end: BorrowedFd<'_>,
    state: &mut super::receive::Receive,
    reader: Reader,
    file: BorrowedFd<'_>,
    place: Option<u64>,
    count: u64,
) -> Result<Taken, Errno> {
    let mut piece = vec![0; PIECE];
    let mut taken = 0;
    while taken < count {
        let want = usize::try_from(count - taken).map_or(PIECE, |left| left.min(PIECE));
        let looked = match state.step(end, &mut piece[..want], reader, false, true) {
            Ok(Step::Data { len, .. }) => len,
            Ok(Step::Nothing) => return Ok(Taken::All(taken)),
            Ok(Step::Control { .. } | Step::End) => break,
            Err(_) if taken > 0 => break,
            Err(errno) => return Err(errno),
        };
        let wrote = match place {
            Some(place) => rustix::io::pwrite(file, &piece[..looked], place + taken),
            None => rustix::io::write(file, &piece[..looked]),
        };
        let mut wrote = match wrote {
            Ok(wrote) => wrote,
            Err(Errno::INTR) => continue,
            Err(_) if taken > 0 => break,
            Err(errno) => return Err(errno),
        };
        taken += wrote as u64;
        while wrote > 0 {
            match state.step(end, &mut piece[..wrote], reader, false, false)? {
                Step::Data { len, .. } => wrote -= len,
                // Another process shares the end and took them meanwhile.
                Step::Control { .. } | Step::Nothing | Step::End => return Err(Errno::IO),
            }
        }
    }
    Ok(Taken::Some(taken))
}
