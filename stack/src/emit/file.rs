//! A range of a regular file as a source, read without ever blocking the shard.
//!
//! Three ways, the first that works:
//!
//! 1. **mapped**: a helper thread maps a window of the file and populates it; the shard seals *from* the mapping *into*
//!    the arena, one pass and no copy;
//! 2. **`preadv2(RWF_NOWAIT)`** straight into the arena's record slots, on file systems known to honour the flag: what is
//!    not in the page cache answers `EAGAIN`, and a helper thread brings it in;
//! 3. **read by a helper** into a buffer, for every other file system.
//!
//! A range that is shorter than [`SHORT`] starts with the second: mapping it would cost a helper's turn, and save nothing.
//!
//! A mapped file may be cut while it is being sealed. So the output of a window is kept only if `fstat`
//! afterwards still shows the whole range ([`FileRange::still_whole`]); a fault in between is caught by
//! [`sigbus`](super::sigbus).

use super::job::{Helped, Job, JobKind};
use crate::client_fd::ClientFd;
use crate::mark::SendfileResult;
use rustix::fs::{AtFlags, FileType, StatxFlags};
use rustix::io::Errno;
use std::io::IoSliceMut;
use std::sync::Arc;

/// Bytes that a helper maps first; each window is four times as long as the one before it.
const FIRST_WINDOW: u64 = 4 * 1024 * 1024;
/// Bytes that a helper maps at most. Each window costs two hand-overs between threads.
const LAST_WINDOW: u64 = 64 * 1024 * 1024;
/// Bytes of a page, as far as [`prefetch`] is concerned.
pub const PAGE: usize = 4096;
/// Bytes of a line of the cache, and lines that are asked for at the beginning of a page.
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;
#[cfg(target_arch = "x86_64")]
const PREFETCHED_LINES: usize = 8;
/// Bytes that a helper reads into a buffer at a time.
pub const READ_AHEAD: u64 = 512 * 1024;

/// Ranges below this are not worth a mapping.
pub const SHORT: u64 = 64 * 1024;

/// What the shard should do for more of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Seal from mapped windows.
    Mapped,
    /// Read what is in the page cache.
    NoWait,
    /// Let a helper read.
    Helper,
}

/// File systems where a mapping cannot stall on somebody's user-space server, and `RWF_NOWAIT` means it
/// (`include/uapi/linux/magic.h`): ext2/3/4, XFS, Btrfs, tmpfs.
const LOCAL_FILE_SYSTEMS: [i64; 4] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994];
const TMPFS: i64 = 0x0102_1994;

/// A range of a file that is on its way.
#[derive(Debug)]
pub struct FileRange {
    /// The file, shared with the helper that works on it.
    pub file: Arc<ClientFd>,
    /// Next byte.
    pub offset: u64,
    /// Bytes left.
    pub left: u64,
    /// Bytes that belong to the stream.
    pub sent: u64,
    /// Where the result goes.
    pub reply: Option<ClientFd>,
    /// Filler follows on the client's end.
    pub hold: bool,
    /// How it is read.
    pub way: Way,
    /// A helper is at work.
    pub waiting: bool,
    /// Bytes a helper read, and how many of them are used.
    pub buffer: Option<(Vec<u8>, usize)>,
    /// The mapped window that is being sealed from.
    pub window: Option<super::sigbus::Window>,
    /// The next one, if it came early.
    pub next_window: Option<super::sigbus::Window>,
    /// A helper maps a window.
    pub prefetching: bool,
    /// Length of the next window.
    window_len: u64,
    /// It is a pipe: what waits in it is taken once, and that is all.
    pipe: bool,
    /// A helper could not read.
    pub failed: Option<Errno>,
}

impl FileRange {
    /// Takes over a range that a client named, after checking that it is a regular file open for reading.
    ///
    /// # Errors
    /// `EINVAL` for anything but a regular file, `EBADF` when it is not open for reading.
    pub fn new(
        file: ClientFd,
        offset: u64,
        len: u64,
        reply: Option<ClientFd>,
        hold: bool,
    ) -> Result<FileRange, (Errno, Option<ClientFd>)> {
        let checked = (|| {
            let stat = rustix::fs::fstat(&file)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(Errno::INVAL);
            }
            let flags = rustix::fs::fcntl_getfl(&file)?;
            if flags.intersects(rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::PATH) {
                return Err(Errno::BADF);
            }
            rustix::fs::fstatfs(&file)
        })();
        let kind = match checked {
            Ok(file_system) => file_system.f_type,
            Err(errno) => return Err((errno, reply)),
        };
        let way = match kind {
            kind if !LOCAL_FILE_SYSTEMS.contains(&kind) => Way::Helper,
            // tmpfs refuses RWF_NOWAIT.
            kind if len < SHORT && kind != TMPFS => Way::NoWait,
            _ => Way::Mapped,
        };
        Ok(FileRange {
            way,
            ..FileRange::unread(file, offset, len, reply, hold)
        })
    }

    /// Takes over a pipe that a client named, after checking that it is one and open for reading.
    ///
    /// # Errors
    /// `EINVAL` for anything else, `EBADF` when it is not open for reading.
    pub fn of_pipe(
        pipe: ClientFd,
        len: u64,
        reply: ClientFd,
    ) -> Result<FileRange, (Errno, ClientFd)> {
        let checked = (|| {
            // DONT_SYNC: a file server that is asked may take its time, or for ever.
            let stat = rustix::fs::statx(
                &pipe,
                c"",
                AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
                StatxFlags::TYPE,
            )?;
            if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Fifo {
                return Err(Errno::INVAL);
            }
            let flags = rustix::fs::fcntl_getfl(&pipe)?;
            if flags.intersects(rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::PATH) {
                return Err(Errno::BADF);
            }
            Ok(())
        })();
        match checked {
            Ok(()) => Ok(FileRange {
                pipe: true,
                ..FileRange::unread(pipe, 0, len, Some(reply), false)
            }),
            Err(errno) => Err((errno, reply)),
        }
    }

    /// A range that nothing was read of, and that a helper will read.
    fn unread(
        file: ClientFd,
        offset: u64,
        len: u64,
        reply: Option<ClientFd>,
        hold: bool,
    ) -> FileRange {
        FileRange {
            file: Arc::new(file),
            offset,
            left: len,
            sent: 0,
            reply,
            hold,
            way: Way::Helper,
            waiting: false,
            buffer: None,
            window: None,
            next_window: None,
            prefetching: false,
            window_len: FIRST_WINDOW,
            pipe: false,
            failed: None,
        }
    }

    /// The work of mapping the next window, which begins `ahead` bytes behind what was sealed last. It ends where a record of `payload` bytes
    /// does, so that none is cut short at a window's end.
    pub fn map_ahead(&mut self, ahead: u64, payload: u64) -> Job {
        let whole_records = (self.window_len / payload).max(1) * payload;
        self.window_len = (self.window_len * 4).min(LAST_WINDOW);
        self.prefetching = true;
        Job {
            file: self.file.clone(),
            offset: self.offset + ahead,
            len: whole_records.min(self.left - ahead),
            kind: JobKind::Map,
        }
    }

    /// Work on the next `len` bytes that nothing goes on without.
    pub fn wait_for(&mut self, kind: JobKind, len: u64) -> Job {
        self.waiting = true;
        Job {
            file: self.file.clone(),
            offset: self.offset,
            len: self.left.min(len),
            kind: if self.pipe { JobKind::Pipe } else { kind },
        }
    }

    /// A helper finished its work on `file`. Work on a file that is done with meanwhile is thrown away.
    pub fn helped(&mut self, file: &Arc<ClientFd>, helped: Helped) {
        if !Arc::ptr_eq(&self.file, file) {
            return;
        }
        match helped {
            Helped::Window(window) => {
                self.prefetching = false;
                self.next_window = Some(window);
            }
            Helped::Warm => {}
            Helped::Bytes(bytes) => {
                if self.pipe {
                    self.left = bytes.len() as u64;
                }
                self.buffer = Some((bytes, 0));
            }
            Helped::Failed(JobKind::Map, _) => {
                self.prefetching = false;
                self.fall_back();
            }
            Helped::Failed(_, errno) => self.failed = Some(errno),
        }
        self.waiting = false;
    }

    /// Goes to the next way of reading: the one in use does not work on this file.
    pub fn fall_back(&mut self) {
        self.window = None;
        self.next_window = None;
        let tmpfs = rustix::fs::fstatfs(&*self.file).is_ok_and(|fs| fs.f_type == TMPFS);
        self.way = if self.way == Way::Mapped && !tmpfs {
            Way::NoWait
        } else {
            Way::Helper
        };
    }

    /// Whether the file still has every byte up to `end`.
    pub fn still_whole(&self, end: u64) -> bool {
        rustix::fs::fstat(&*self.file).is_ok_and(|stat| stat.st_size as u64 >= end)
    }

    /// Reads what is in the page cache into the slices.
    ///
    /// # Errors
    /// `EAGAIN`: nothing of it is; `EOPNOTSUPP`: the file system cannot say.
    pub fn read_cached(&self, slices: &mut [IoSliceMut<'_>]) -> Result<usize, Errno> {
        rustix::io::preadv2(
            &*self.file,
            slices,
            self.offset,
            rustix::io::ReadWriteFlags::NOWAIT,
        )
    }

    /// `n` bytes went into the stream.
    pub fn advance(&mut self, n: usize) {
        self.offset += n as u64;
        self.left -= n as u64;
        self.sent += n as u64;
    }

    /// Tells who waits for the result. A reader that is gone is nobody's loss.
    pub fn finish(&mut self, errno: i32) {
        answer(self.reply.take(), self.sent, errno);
    }
}

/// Asks the processor for the beginning of each page of what is sealed next.
///
/// Processors fetch ahead within a page and stop at its end, and a cipher that works on a kilobyte at a time looks no further
/// either, so that each page of a mapped file would begin with a wait for memory. It took 11 % of the time of sealing.
pub fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for page in bytes.chunks(PAGE) {
        for line in page.chunks(CACHE_LINE).take(PREFETCHED_LINES) {
            // SAFETY: a hint, which reads nothing and cannot fault, whatever the address.
            unsafe {
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                    line.as_ptr().cast(),
                );
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// Sends a result to whoever waits for it.
pub fn answer(reply: Option<ClientFd>, sent: u64, errno: i32) {
    if let Some(reply) = reply {
        let result = SendfileResult { sent, errno };
        let _ = rustix::net::send(
            &reply,
            &result.encode(),
            rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL,
        );
    }
}
