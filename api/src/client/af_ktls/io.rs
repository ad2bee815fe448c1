//! Sending and receiving on an AF_KTLS socket.

use super::{Association, Bound, KtlsSocket, Way};
use crate::client::scm;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::sockopt;
use std::io;
use std::ops::BitOr;
use std::sync::PoisonError;
use std::time::{Duration, Instant};
use uktls_record::ContentType;
use uktls_record::header::MAX_PLAINTEXT;

/// Flags of [`KtlsSocket::send`] and [`KtlsSocket::recv`], with Linux's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KtlsFlags(u32);

/// The same, by the name that it had while there were only datagrams.
pub type DatagramFlags = KtlsFlags;

impl KtlsFlags {
    /// Out-of-band data; refused.
    pub const OOB: Self = Self(0x1);
    /// Receive: leave everything queued. Of a stream, one record at most is looked at.
    pub const PEEK: Self = Self(0x2);
    /// Receive, datagrams: give the record's own length although the buffer is shorter. In a stream nothing is cut.
    pub const TRUNC: Self = Self(0x20);
    /// Do not wait.
    pub const DONTWAIT: Self = Self(0x40);
    /// Send: the record ends here. So it does without [`MORE`](Self::MORE).
    pub const EOR: Self = Self(0x80);
    /// No SIGPIPE; never raised anyway.
    pub const NOSIGNAL: Self = Self(0x4000);
    /// Send: more is to come for the same record. Datagrams are never gathered: there a record is one call.
    pub const MORE: Self = Self(0x8000);

    /// No flags.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for KtlsFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What [`KtlsSocket::recv`] received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KtlsReceived {
    /// Bytes in the buffer; of a datagram with [`KtlsFlags::TRUNC`] the record's length, which may be more. 0 of a stream is its end.
    pub len: usize,
    /// `MSG_TRUNC`: the record was longer than the buffer, and the rest of it is lost (unless it was peeked at).
    pub truncated: bool,
    /// `MSG_EOR`: a record ends here. Of datagrams it always does.
    pub end_of_record: bool,
}

impl KtlsSocket {
    /// `send(2)`. A datagram socket sends one record, which is one datagram. A stream sends one record a call up to 2^14 bytes,
    /// several beyond that; with [`MORE`](KtlsFlags::MORE) the last one stays open for the next call. Returns how many bytes were
    /// taken, which is fewer than all only on a stream that may not wait.
    ///
    /// # Errors
    /// `EBADMSG` without keys, `E2BIG` for a datagram of more than 2^14 bytes, `EOPNOTSUPP` for `MSG_OOB`, `EAGAIN` when there is no
    /// room and the call may not wait, `ECONNABORTED` when the daemon is gone; of a stream what a write gives once it has ended, and
    /// `EINVAL` for `MORE` with `EOR`.
    pub fn send(&self, bytes: &[u8], flags: KtlsFlags) -> io::Result<usize> {
        let bound = self.bound()?;
        if flags.contains(KtlsFlags::OOB) {
            return Err(Errno::OPNOTSUPP.into());
        }
        bound.check_armed(Way::Send)?;
        match bound {
            Bound::Datagram(association) => {
                association.send(ContentType::APPLICATION_DATA, bytes, flags)
            }
            Bound::Stream(_) if flags.contains(KtlsFlags::MORE | KtlsFlags::EOR) => {
                Err(Errno::INVAL.into())
            }
            Bound::Stream(attachment) => attachment.send(bytes, flags),
        }
    }

    /// `sendmsg(2)`: as [`send`](Self::send), gathered from several buffers.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn sendmsg(&self, buffers: &[io::IoSlice<'_>], flags: KtlsFlags) -> io::Result<usize> {
        match buffers {
            [one] => self.send(one, flags),
            many => {
                let whole: Vec<u8> = many.iter().flat_map(|one| one.iter().copied()).collect();
                self.send(&whole, flags)
            }
        }
    }

    /// Sends one record of another type: an alert, such as close_notify, under the same keys and the next number. Whoever shook
    /// hands must not seal it, since its numbers have been overtaken.
    ///
    /// # Errors
    /// As [`send`](Self::send); `EINVAL` for a datagram of type 0, which no record has.
    pub fn send_control(&self, content_type: ContentType, bytes: &[u8]) -> io::Result<()> {
        let bound = self.bound()?;
        bound.check_armed(Way::Send)?;
        match bound {
            Bound::Datagram(association) => association
                .send(content_type, bytes, KtlsFlags::empty())
                .map(|_| ()),
            Bound::Stream(attachment) => attachment.send_control(content_type, bytes),
        }
    }

    /// `recv(2)`: one record of a datagram socket; of a stream, bytes across records as long as they are there.
    ///
    /// # Errors
    /// `EBADMSG` without keys, `EAGAIN` when nothing waits and the call may not wait. Of a datagram socket whatever kept an
    /// earlier datagram from leaving: `EMSGSIZE`, `EBADMSG`. Of a stream `EBADMSG` at a record that fails or is not application data,
    /// until keys are set anew; and what a read gives once it has ended.
    pub fn recv(&self, buf: &mut [u8], flags: KtlsFlags) -> io::Result<KtlsReceived> {
        let bound = self.bound()?;
        bound.check_armed(Way::Receive)?;
        if flags.contains(KtlsFlags::OOB) {
            return Err(Errno::OPNOTSUPP.into());
        }
        match bound {
            Bound::Datagram(association) => association.recv(buf, flags),
            Bound::Stream(attachment) => attachment.recv(&self.held, buf, flags),
        }
    }

    /// `recvmsg(2)`: as [`recv`](Self::recv), scattered to several buffers.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recvmsg(
        &self,
        buffers: &mut [io::IoSliceMut<'_>],
        flags: KtlsFlags,
    ) -> io::Result<KtlsReceived> {
        if let [one] = buffers {
            return self.recv(one, flags);
        }
        let mut whole = vec![0; buffers.iter().map(|buffer| buffer.len()).sum()];
        let received = self.recv(&mut whole, flags)?;
        let mut rest = &whole[..received.len.min(whole.len())];
        for buffer in buffers {
            let (front, behind) = rest.split_at(buffer.len().min(rest.len()));
            buffer[..front.len()].copy_from_slice(front);
            rest = behind;
        }
        Ok(received)
    }

    /// `sendfile(2)`: a range of a regular file, in records of the `KTLS_SET_MTU` less the overhead, or of 2^14 bytes. Not a byte of
    /// it passes through this process. Returns how many bytes were sent; fewer when the file ends earlier.
    ///
    /// Nothing paces datagrams: a path or a peer that is slower than the stack loses them. A stream that may not wait takes
    /// what [`TcpStream::sendfile`](crate::TcpStream::sendfile) takes.
    ///
    /// # Errors
    /// `EBADMSG` without keys, `EINVAL` for anything but a regular file, `EBADF` for one that is not open for reading.
    pub fn sendfile(&self, file: &impl AsFd, offset: u64, count: u64) -> io::Result<u64> {
        let bound = self.bound()?;
        bound.check_armed(Way::Send)?;
        match bound {
            Bound::Datagram(association) => association.sendfile(file, offset, count),
            Bound::Stream(attachment) => attachment.sendfile(file, offset, count),
        }
    }

    /// `splice` from a pipe: what waits in it becomes records of at most 2^14 bytes, or of the `KTLS_SET_MTU` less the overhead.
    /// Returns how many bytes were taken, at most `count`; 0 at the pipe's end. One pass moves what is there; it does not wait for
    /// more once something was sent. The stack takes what datagrams are made of out of the pipe itself: not a byte of it
    /// passes through this process.
    ///
    /// # Errors
    /// `EBADMSG` without keys, `EAGAIN` when the pipe is empty and non-blocking.
    pub fn splice_from(&self, pipe: &impl AsFd, count: usize) -> io::Result<usize> {
        let bound = self.bound()?;
        bound.check_armed(Way::Send)?;
        if let Bound::Datagram(association) = bound {
            match self.splice_in_stack(association, pipe.as_fd(), count) {
                // Before Linux 6.4 nobody can read a pipe without possibly waiting: then it is read here.
                Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {}
                outcome => return outcome,
            }
        }
        let payload = bound.options().payload();
        let mut buffer = vec![0; payload.min(count)];
        let mut moved = 0;
        while moved < count {
            if moved > 0 && !scm::glance(pipe, PollFlags::IN)?.contains(PollFlags::IN) {
                break;
            }
            if moved > 0 && !scm::glance(&self.fd, PollFlags::OUT)?.contains(PollFlags::OUT) {
                break;
            }
            let room = buffer.len().min(count - moved);
            match rustix::io::read(pipe, &mut buffer[..room]) {
                Ok(0) => break,
                Ok(n) => {
                    self.send_all(&buffer[..n])?;
                    moved += n;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if moved > 0 => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(moved)
    }

    /// Has the stack take what waits in a pipe; the wait for that is here, where it holds up nobody else.
    fn splice_in_stack(
        &self,
        association: &Association,
        pipe: BorrowedFd<'_>,
        count: usize,
    ) -> io::Result<usize> {
        if count == 0 {
            return Ok(0);
        }
        let may_wait = !fcntl_getfl(pipe)?.contains(OFlags::NONBLOCK);
        loop {
            match association.splice_from(pipe, count as u64) {
                Ok(moved) => return Ok(moved as usize), // at most `count`
                Err(error) if may_wait && error.kind() == io::ErrorKind::WouldBlock => {
                    scm::wait(pipe, PollFlags::IN, None)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends what was taken out of a pipe and cannot go back, waiting for room even where the socket may not.
    fn send_all(&self, bytes: &[u8]) -> io::Result<()> {
        let mut at = 0;
        loop {
            match self.send(&bytes[at..], KtlsFlags::empty()) {
                Ok(sent) => at += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    scm::wait(&self.fd, PollFlags::OUT, None)?;
                }
                Err(error) => return Err(error),
            }
            if at >= bytes.len() {
                return Ok(());
            }
        }
    }

    /// `splice` to a pipe: the next record's plaintext goes into it. Returns its length; 0 at a stream's end. A record leaves this
    /// socket only once it is in the pipe; a datagram that is longer than `count` is cut there, as with [`recv`](Self::recv).
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and what writing to the pipe gives.
    pub fn splice_to(&self, pipe: &impl AsFd, count: usize) -> io::Result<usize> {
        let mut buffer = vec![0; count.min(MAX_PLAINTEXT)];
        let record = self.recv(&mut buffer, KtlsFlags::PEEK)?;
        let bytes = &mut buffer[..record.len];
        write_all(pipe, bytes)?;
        self.recv(bytes, KtlsFlags::DONTWAIT)?;
        Ok(record.len)
    }

    /// Receives into a file, from `offset` on, until `count` bytes are there or nothing waits. The first record is waited for.
    /// A datagram that would not fit any more stays. Returns how many bytes were written; 0 also at a stream's end.
    ///
    /// # Errors
    /// As [`recv`](Self::recv) while nothing was received, and what writing to the file gives.
    pub fn recvfile(&self, file: &impl AsFd, offset: u64, count: u64) -> io::Result<u64> {
        let stream = matches!(self.bound()?, Bound::Stream(_));
        let mut buffer = vec![0; MAX_PLAINTEXT];
        let mut received = 0;
        while received < count || !stream {
            let wait = if received == 0 {
                KtlsFlags::PEEK
            } else {
                KtlsFlags::PEEK | KtlsFlags::DONTWAIT
            };
            let room = if stream {
                usize::try_from(count - received).unwrap_or(usize::MAX)
            } else {
                MAX_PLAINTEXT
            };
            let bytes = &mut buffer[..room.min(MAX_PLAINTEXT)];
            let record = match self.recv(bytes, wait) {
                Ok(record) => record,
                Err(_) if received > 0 => return Ok(received),
                Err(error) => return Err(error),
            };
            let len = record.len as u64;
            if received + len > count || (stream && len == 0) {
                return Ok(received);
            }
            let bytes = &mut buffer[..record.len];
            let mut at = 0;
            while at < bytes.len() {
                let offset = offset + received + at as u64;
                match rustix::io::pwrite(file, &bytes[at..], offset) {
                    Ok(n) => at += n,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            self.recv(bytes, KtlsFlags::DONTWAIT)?;
            received += len;
        }
        Ok(received)
    }

    /// `poll(2)`, for at most `time`: which of `events` there are, and whether it has hung up or is in error. The descriptor itself
    /// shows the same, but for an error: that shows as readable, since a Unix socket has no other way to tell.
    ///
    /// # Errors
    /// None in practice.
    pub fn poll(&self, events: PollFlags, time: Option<Duration>) -> io::Result<PollFlags> {
        let deadline = time.map(|time| Instant::now() + time);
        loop {
            let waits = !self
                .held
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_empty();
            let known = match &self.bound {
                Some(Bound::Stream(attachment)) if attachment.has_failed() => PollFlags::ERR,
                Some(Bound::Stream(_)) if waits => PollFlags::IN & events,
                _ => PollFlags::empty(),
            };
            // What is asked for besides may be there as well.
            let deadline = if known.is_empty() {
                deadline
            } else {
                Some(Instant::now())
            };
            // An error counts as readable, so it is looked for whatever was asked.
            let shown = scm::wait(&self.fd, events | PollFlags::IN, deadline)?;
            let shown = match &self.bound {
                _ if !known.is_empty() => shown | known,
                Some(Bound::Stream(attachment)) => attachment.shown(shown),
                Some(Bound::Datagram(association))
                    if shown.contains(PollFlags::IN) && association.error_waits() =>
                {
                    shown | PollFlags::ERR
                }
                _ => shown,
            };
            let always = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
            if shown.intersects(events | always) {
                return Ok(shown & (events | always));
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(PollFlags::empty());
            }
        }
    }

    /// Whether calls return `EAGAIN` instead of waiting. A stream's descriptor is the TCP socket's, and so is this.
    ///
    /// # Errors
    /// None in practice.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        let flags = fcntl_getfl(&self.fd)?;
        if flags.contains(OFlags::NONBLOCK) != nonblocking {
            fcntl_setfl(&self.fd, flags ^ OFlags::NONBLOCK)?;
        }
        Ok(())
    }

    pub(super) fn is_nonblocking(&self) -> io::Result<bool> {
        Ok(fcntl_getfl(&self.fd)?.contains(OFlags::NONBLOCK))
    }

    /// How long a receive waits; `None` is for ever.
    ///
    /// # Errors
    /// `EINVAL` for a time of zero; `ENOTSOCK` when not bound.
    pub fn set_read_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        crate::client::tcp::set_timeout(&self.fd, sockopt::Timeout::Recv, time)
    }
}

fn write_all(pipe: &impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(pipe, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            // Part of the record is in the pipe already: it must not be lost, nor come twice.
            Err(Errno::AGAIN) => {
                scm::wait(pipe, PollFlags::OUT, None)?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
