//! `sendfile`: a range of a regular file goes to the stack as one mark, the file's descriptor attached.
//!
//! Not a byte of the file passes through this process. Three ways, by whether the caller may wait, and by size:
//!
//! * blocking: the mark asks for an answer, which comes when the last byte is sealed, so the file may be changed afterwards;
//! * non-blocking, below [`SMALL`]: the mark alone. It takes a message's room in the socket until its turn has come, so
//!   that a few hundred of them make the socket unwritable;
//! * non-blocking: at most [`SENDFILE_QUOTA`] is taken, and filler behind the mark keeps the socket unwritable until it is done.

use super::send::Send;
use super::tcp::TcpStream;
use super::{end, scm};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, OFlags, SeekFrom, fcntl_getfl, fstat, seek};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use std::io;
use uktls_stack::mark::{HOLD_FILLER, MAX_FILE_RANGE, Mark, SendfileResult};

/// Non-blocking ranges below this need no filler: what a full socket of them asks of the stack is no more than one large one.
const SMALL: u64 = 64 * 1024;

/// What one non-blocking [`TcpStream::sendfile`] takes at most, in bytes.
pub const SENDFILE_QUOTA: u64 = 64 << 20;

impl TcpStream {
    /// `sendfile(2)`: sends up to `count` bytes of `file`, from `offset` (which is moved on) or, without one, from the file's own
    /// position (which is moved on). Returns how many bytes belong to the stream now: fewer when the file ends
    /// earlier, 0 at its end. Records are cut every 16384 bytes and the last one is closed.
    ///
    /// A non-blocking stream takes a part of a large range and polls writable when it is ready for the next. A file that gets
    /// shorter after it was taken resets the connection: a peer must not mistake the cut for the end.
    ///
    /// # Errors
    /// `EINVAL` for anything but a regular file, `EBADF` for one that is not open for reading, `EAGAIN` when the stream is
    /// non-blocking and has no room, `EBUSY` while an AF_KTLS socket with keys for sending is attached, and what
    /// [`send`](Self::send) gives.
    pub fn sendfile(
        &self,
        file: &impl AsFd,
        offset: Option<&mut u64>,
        count: u64,
    ) -> io::Result<u64> {
        if self.shared().send().is_attached() {
            return Err(Errno::BUSY.into());
        }
        self.send_file(file, offset, count)
    }

    /// `sendfile` by whoever may.
    pub(super) fn send_file(
        &self,
        file: &impl AsFd,
        offset: Option<&mut u64>,
        count: u64,
    ) -> io::Result<u64> {
        let file = file.as_fd();
        let access = fcntl_getfl(file)?;
        if access.contains(OFlags::PATH) || access & OFlags::RWMODE == OFlags::WRONLY {
            return Err(Errno::BADF.into());
        }
        let stat = fstat(file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        let from = match &offset {
            Some(offset) => **offset,
            None => seek(file, SeekFrom::Current(0))?,
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let len = size.saturating_sub(from).min(count).min(MAX_FILE_RANGE);
        if len == 0 {
            return Ok(0);
        }
        let sent = match self.is_nonblocking()? {
            false => self.send_awaited_file(file, from, len)?,
            true if len < SMALL => self.send_small_file(file, from, len)?,
            true => self.send_held_file(file, from, len.min(SENDFILE_QUOTA))?,
        };
        match offset {
            Some(offset) => *offset = from + sent,
            None => {
                seek(file, SeekFrom::Start(from + sent))?;
            }
        }
        Ok(sent)
    }

    fn send_small_file(&self, file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<u64> {
        let mark = Mark::File {
            offset,
            len,
            reply: false,
            hold: false,
        };
        self.writing(true, |state, fd| state.with_descriptors(fd, mark, &[file]))?;
        Ok(len)
    }

    fn send_held_file(&self, file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<u64> {
        let mark = Mark::File {
            offset,
            len,
            reply: false,
            hold: true,
        };
        self.writing(true, |state, fd| {
            state.held_file(fd, mark, file, HOLD_FILLER)
        })?;
        Ok(len)
    }

    fn send_awaited_file(&self, file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<u64> {
        let mark = Mark::File {
            offset,
            len,
            reply: true,
            hold: false,
        };
        let SendfileResult { sent, errno } =
            self.answered(|state, fd, theirs| state.with_descriptors(fd, mark, &[file, theirs]))?;
        if sent == 0 && errno != 0 {
            let errno = Errno::from_raw_os_error(errno);
            return Err(if errno == Errno::PIPE {
                self.write_error(errno)
            } else {
                errno.into()
            });
        }
        Ok(sent)
    }

    /// Sends a mark that asks for an answer on the descriptor that `send` is given, and waits for it.
    pub(super) fn answered(
        &self,
        send: impl Fn(&mut Send, BorrowedFd<'_>, BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> io::Result<SendfileResult> {
        let (ours, theirs) = answer_socket()?;
        self.writing(false, |state, fd| send(state, fd, theirs.as_fd()))?;
        drop(theirs);
        await_answer(&ours)?.ok_or_else(|| match self.reason() {
            Ok(reason) => end::of_writing(reason).into(),
            Err(gone) => gone,
        })
    }

    /// Waits until the stack has taken everything handed to the socket so far, or the stream ended.
    pub(super) fn wait_writable(&self, deadline: Option<std::time::Instant>) -> Result<(), Errno> {
        if scm::wait(self, PollFlags::OUT, deadline)?.is_empty() {
            Err(Errno::AGAIN)
        } else {
            Ok(())
        }
    }
}

/// A socket pair for the stack's answer: this side's end and the one that goes with the file.
pub(super) fn answer_socket() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// Waits for the answer; `None` when the socket ended without one.
pub(super) fn await_answer(ours: &OwnedFd) -> Result<Option<SendfileResult>, Errno> {
    let mut answer = [0; SendfileResult::LEN];
    let mut at = 0;
    while at < answer.len() {
        // The file belongs to the stack by now: a signal must not make the caller begin again.
        match rustix::io::retry_on_intr(|| {
            rustix::net::recv(ours, &mut answer[at..], RecvFlags::empty())
        }) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => return Ok(None),
            Ok((_, got)) => at += got,
            Err(errno) => return Err(errno),
        }
    }
    Ok(Some(SendfileResult::decode(&answer)))
}
