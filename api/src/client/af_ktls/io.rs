//! Sending and receiving on an AF_KTLS socket.

use super::{Bound, KtlsSocket, Way, send_mark};
use crate::client::scm;
use crate::client::udp::gone;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair, sockopt,
};
use std::io;
use std::ops::BitOr;
use std::time::Duration;
use uktls_record::ContentType;
use uktls_record::header::MAX_PLAINTEXT;
use uktls_stack::dtls::end::{NOTE, read_note};
use uktls_stack::mark::{MAX_FILE_RANGE, Mark, SendfileResult};

/// Flags of [`KtlsSocket::send`] and [`KtlsSocket::recv`], with Linux's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatagramFlags(u32);

impl DatagramFlags {
    /// Out-of-band data; refused.
    pub const OOB: Self = Self(0x1);
    /// Receive: leave the record queued.
    pub const PEEK: Self = Self(0x2);
    /// Receive: give the record's own length although the buffer is shorter.
    pub const TRUNC: Self = Self(0x20);
    /// Do not wait.
    pub const DONTWAIT: Self = Self(0x40);
    /// Send: the record ends here. So it does anyway.
    pub const EOR: Self = Self(0x80);
    /// No SIGPIPE; never raised anyway.
    pub const NOSIGNAL: Self = Self(0x4000);
    /// Send: more is to come. It is never gathered: a record is one call.
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

impl BitOr for DatagramFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What [`KtlsSocket::recv`] received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KtlsReceived {
    /// Bytes in the buffer; with [`DatagramFlags::TRUNC`] the record's length, which may be more.
    pub len: usize,
    /// `MSG_TRUNC`: the record was longer than the buffer, and the rest of it is lost (unless it was peeked at).
    pub truncated: bool,
    /// `MSG_EOR`: the record ends here. A record a call, so it always does.
    pub end_of_record: bool,
}

impl KtlsSocket {
    /// Sends one record, which is one datagram.
    ///
    /// # Errors
    /// `EBADMSG` without keys, `E2BIG` for more than 2^14 bytes, `EOPNOTSUPP` for `MSG_OOB`, `EAGAIN` when there is no room and the
    /// call may not wait, `ECONNABORTED` when the daemon is gone.
    pub fn send(&self, bytes: &[u8], flags: DatagramFlags) -> io::Result<usize> {
        let bound = self.bound()?;
        if flags.contains(DatagramFlags::OOB) {
            return Err(Errno::OPNOTSUPP.into());
        }
        check_armed(bound, Way::Send)?;
        if bytes.len() > MAX_PLAINTEXT {
            return Err(Errno::TOOBIG.into());
        }
        let mut system = SendFlags::empty();
        if flags.contains(DatagramFlags::DONTWAIT) {
            system |= SendFlags::DONTWAIT;
        }
        let content_type = [ContentType::APPLICATION_DATA.0];
        let message = [IoSlice::new(&content_type), IoSlice::new(bytes)];
        scm::send(&self.fd, &message, &[], system).map_err(gone)?;
        Ok(bytes.len())
    }

    /// Sends one record of another type: an alert, such as close_notify, under the same keys and the next number. Whoever shook
    /// hands must not seal it, since its numbers have been overtaken.
    ///
    /// # Errors
    /// As [`send`](Self::send); `EINVAL` for type 0, which no record has.
    pub fn send_control(&self, content_type: ContentType, bytes: &[u8]) -> io::Result<()> {
        check_armed(self.bound()?, Way::Send)?;
        if bytes.len() > MAX_PLAINTEXT {
            return Err(Errno::TOOBIG.into());
        }
        if content_type.0 == NOTE {
            return Err(Errno::INVAL.into());
        }
        let content_type = [content_type.0];
        let message = [IoSlice::new(&content_type), IoSlice::new(bytes)];
        scm::send(&self.fd, &message, &[], SendFlags::empty()).map_err(gone)?;
        Ok(())
    }

    /// Receives one record.
    ///
    /// # Errors
    /// `EBADMSG` without keys, `EAGAIN` when none waits and the call may not wait, and whatever kept an earlier datagram from
    /// leaving: `EMSGSIZE`, `EBADMSG`.
    pub fn recv(&self, buf: &mut [u8], flags: DatagramFlags) -> io::Result<KtlsReceived> {
        check_armed(self.bound()?, Way::Receive)?;
        let mut system = RecvFlags::empty();
        for (flag, same) in [
            (DatagramFlags::PEEK, RecvFlags::PEEK),
            (DatagramFlags::DONTWAIT, RecvFlags::DONTWAIT),
        ] {
            if flags.contains(flag) {
                system |= same;
            }
        }
        if flags.contains(DatagramFlags::OOB) {
            return Err(Errno::OPNOTSUPP.into());
        }
        let room = buf.len();
        let mut content_type = [0];
        // A note is five bytes, and must be seen whole however small the caller's buffer is.
        let mut spill = [0; 4];
        let mut slices = [
            IoSliceMut::new(&mut content_type),
            IoSliceMut::new(buf),
            IoSliceMut::new(&mut spill),
        ];
        let received =
            scm::receive(&self.fd, &mut slices, system | RecvFlags::TRUNC).map_err(gone)?;
        let len = received.len.checked_sub(1).ok_or(Errno::CONNABORTED)?;
        if content_type[0] == NOTE {
            let mut note = vec![NOTE];
            note.extend_from_slice(&buf[..room.min(len)]);
            note.extend_from_slice(&spill[..len.saturating_sub(room).min(4)]);
            if flags.contains(DatagramFlags::PEEK) {
                // An error is reported once, peeked at or not.
                scm::receive(
                    &self.fd,
                    &mut [IoSliceMut::new(&mut [0; 8])],
                    RecvFlags::empty(),
                )
                .map_err(gone)?;
            }
            let errno = read_note(&note).unwrap_or(Errno::PROTO.raw_os_error());
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(KtlsReceived {
            len: if flags.contains(DatagramFlags::TRUNC) {
                len
            } else {
                len.min(room)
            },
            truncated: len > room,
            end_of_record: true,
        })
    }

    /// `sendfile`: a range of a regular file, in records of the `KTLS_SET_MTU` less the overhead, or of 2^14 bytes. Not a byte of
    /// it passes through this process. Returns how many bytes were sent; fewer when the file ends earlier.
    ///
    /// Nothing paces it: a path or a peer that is slower than the stack loses datagrams.
    ///
    /// # Errors
    /// `EBADMSG` without keys, `EINVAL` for anything but a regular file, `EBADF` for one that is not open for reading.
    pub fn sendfile(&self, file: &impl AsFd, offset: u64, count: u64) -> io::Result<u64> {
        check_armed(self.bound()?, Way::Send)?;
        let file = file.as_fd();
        let stat = fstat(file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let len = size.saturating_sub(offset).min(count).min(MAX_FILE_RANGE);
        if len == 0 {
            return Ok(0);
        }
        let (near, far) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let mark = Mark::File {
            offset,
            len,
            reply: true,
            hold: false,
        };
        send_mark(&self.fd, mark, &[file, far.as_fd()])?;
        drop(far);
        let result = await_result(&near)?;
        match result.errno {
            0 => Ok(result.sent),
            _ if result.sent > 0 => Ok(result.sent),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// `splice` from a pipe: what waits in it becomes records of at most 2^14 bytes, or of the `KTLS_SET_MTU` less the overhead.
    /// Returns how many bytes were taken, at most `count`; 0 at the pipe's end. One pass moves what is there; it does not wait for
    /// more once something was sent.
    ///
    /// # Errors
    /// `EBADMSG` without keys, `EAGAIN` when the pipe is empty and non-blocking.
    pub fn splice_from(&self, pipe: &impl AsFd, count: usize) -> io::Result<usize> {
        let bound = self.bound()?;
        check_armed(bound, Way::Send)?;
        let payload = bound.options().payload();
        let mut buffer = vec![0; payload.min(count)];
        let mut moved = 0;
        while moved < count {
            if moved > 0 && !scm::glance(pipe, PollFlags::IN)?.contains(PollFlags::IN) {
                break;
            }
            let room = buffer.len().min(count - moved);
            match rustix::io::read(pipe, &mut buffer[..room]) {
                Ok(0) => break,
                Ok(n) => {
                    self.send(&buffer[..n], DatagramFlags::empty())?;
                    moved += n;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if moved > 0 => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(moved)
    }

    /// `splice` to a pipe: the next record's plaintext goes into it. Returns its length. A record leaves this socket only once it
    /// is in the pipe; one that is longer than `count` is cut there, as with [`recv`](Self::recv).
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and what writing to the pipe gives.
    pub fn splice_to(&self, pipe: &impl AsFd, count: usize) -> io::Result<usize> {
        let mut buffer = vec![0; count.min(MAX_PLAINTEXT)];
        let record = self.recv(&mut buffer, DatagramFlags::PEEK)?;
        write_all(pipe, &buffer[..record.len])?;
        self.recv(&mut [], DatagramFlags::DONTWAIT)?;
        Ok(record.len)
    }

    /// Receives records into a file, from `offset` on, until `count` bytes are there or no record waits. The first is waited for.
    /// A record that would not fit any more stays. Returns how many bytes were written.
    ///
    /// # Errors
    /// As [`recv`](Self::recv) while nothing was received, and what writing to the file gives.
    pub fn recvfile(&self, file: &impl AsFd, offset: u64, count: u64) -> io::Result<u64> {
        let mut buffer = vec![0; MAX_PLAINTEXT];
        let mut received = 0;
        loop {
            let wait = if received == 0 {
                DatagramFlags::PEEK
            } else {
                DatagramFlags::PEEK | DatagramFlags::DONTWAIT
            };
            let record = match self.recv(&mut buffer, wait) {
                Ok(record) => record,
                Err(_) if received > 0 => return Ok(received),
                Err(error) => return Err(error),
            };
            let len = record.len as u64;
            if received + len > count {
                return Ok(received);
            }
            let mut at = 0;
            while at < record.len {
                let offset = offset + received + at as u64;
                match rustix::io::pwrite(file, &buffer[at..record.len], offset) {
                    Ok(n) => at += n,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            self.recv(&mut [], DatagramFlags::DONTWAIT)?;
            received += len;
        }
    }

    /// Whether calls return `EAGAIN` instead of waiting.
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

fn check_armed(bound: &Bound, way: Way) -> Result<(), Errno> {
    if bound.options().is_armed(way) {
        Ok(())
    } else {
        Err(Errno::BADMSG)
    }
}

/// The answer to a file's mark; that there is none means that the association is gone.
fn await_result(near: &OwnedFd) -> Result<SendfileResult, Errno> {
    let mut bytes = [0; SendfileResult::LEN];
    loop {
        match rustix::net::recv(near, &mut bytes, RecvFlags::empty()) {
            Ok((_, n)) if n == bytes.len() => return Ok(SendfileResult::decode(&bytes)),
            Ok(_) => return Err(Errno::CONNABORTED),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
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
