//! A file that received bytes go to, in place of the client's end.
//!
//! ```text
//!  opened records ──taken over whole──►  batch ──1 MiB at a time──►  helper thread: pwritev ──►  the client's file
//! ```
//! Nothing is copied on the way: a batch is the very slices that the device wrote and the record layer opened. Writing to a
//! file may wait for a disk, for somebody's file server, for another process that holds the file's lock; so the shard never
//! does it, with one exception: Linux's memory devices (`/dev/null`, `/dev/zero`, `/dev/full`), whose drivers only look at
//! the length.
//!
//! What the file does not take (a full disk) is put back in front of what follows, for the client to read: nothing is lost.
//! What a helper has in hand counts as memory of the socket; when it is [`MAX_HELD`], the TCP window closes.

use crate::client_fd::ClientFd;
use crate::clock::Instant;
use crate::emit::file::answer;
use bytes::{Buf, BytesMut};
use rustix::fs::{AtFlags, OFlags, StatxFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

/// A batch is handed to a helper when it is this long: waking a thread costs as much as writing 50 KiB or more.
const BATCH: usize = 1 << 20;
/// A shorter batch is handed over when its oldest byte has waited this long.
const LINGER: Duration = Duration::from_millis(1);
/// Bytes in hand, here and with a helper, before no more are taken.
pub const MAX_HELD: usize = 4 << 20;
/// Slices in one system call (`UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;
/// Linux's memory devices have this major number (`include/uapi/linux/major.h`: `MEM_MAJOR`)...
const MEMORY_MAJOR: u32 = 1;
/// ...and those that swallow, or refuse, what is written without looking at it these minor ones: null, zero, full.
const SWALLOWING_MINORS: [u32; 3] = [3, 5, 7];

/// Where a client wants its bytes.
#[derive(Debug)]
pub struct SinkRequest {
    /// A regular file or a memory device, open for writing.
    pub to: ClientFd,
    /// Where the [result](crate::mark::SendfileResult) goes.
    pub reply: ClientFd,
    /// Where in the file the first byte goes; `None` for what has no positions.
    pub offset: Option<u64>,
    /// Bytes at most.
    pub len: u64,
    /// Goes on until `len` bytes are there, or something ends it; otherwise only what has arrived is taken.
    pub wait: bool,
}

/// Who writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The shard itself: it cannot block.
    Here,
    /// A helper thread.
    Helper,
}

/// Received bytes on their way to a file.
#[derive(Debug)]
pub struct Sink {
    to: Arc<ClientFd>,
    way: Way,
    offset: Option<u64>,
    /// Bytes that may still be taken over.
    left: u64,
    written: u64,
    batch: VecDeque<BytesMut>,
    batched: usize,
    /// When the oldest byte of the batch came.
    since: Option<Instant>,
    /// Bytes that a helper has in hand.
    in_hand: usize,
    /// Nothing more is taken over.
    closing: bool,
    /// It waits for more than what has arrived.
    wait: bool,
    failed: Option<Errno>,
    reply: Option<ClientFd>,
}

/// A batch for a helper thread.
#[derive(Debug)]
pub struct WriteJob {
    to: Arc<ClientFd>,
    offset: Option<u64>,
    batch: VecDeque<BytesMut>,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Written {
    to: Arc<ClientFd>,
    bytes: u64,
    /// What was not written, and why.
    failed: Option<(Errno, VecDeque<BytesMut>)>,
}

/// Writes as much of the slices as goes, and takes it off them.
fn write(
    to: &ClientFd,
    offset: Option<u64>,
    batch: &mut VecDeque<BytesMut>,
) -> (u64, Result<(), Errno>) {
    let mut written = 0;
    while !batch.is_empty() {
        let wrote = {
            let slices: Vec<IoSlice<'_>> = batch
                .iter()
                .take(MAX_SLICES)
                .map(|slice| IoSlice::new(slice))
                .collect();
            match offset {
                Some(offset) => rustix::io::pwritev(to, &slices, offset + written),
                None => rustix::io::writev(to, &slices),
            }
        };
        match wrote {
            // A file that takes nothing and says nothing would be asked for ever.
            Ok(0) => return (written, Err(Errno::IO)),
            Ok(mut n) => {
                written += n as u64;
                while let Some(first) = batch.front_mut() {
                    if first.len() > n {
                        first.advance(n);
                        break;
                    }
                    n -= first.len();
                    batch.pop_front();
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return (written, Err(errno)),
        }
    }
    (written, Ok(()))
}

impl WriteJob {
    /// Writes, waiting as long as it takes.
    pub fn run(mut self) -> Written {
        let (bytes, outcome) = write(&self.to, self.offset, &mut self.batch);
        Written {
            to: self.to,
            bytes,
            failed: outcome.err().map(|errno| (errno, self.batch)),
        }
    }
}

impl Sink {
    /// Takes a file over after checking what it is.
    ///
    /// # Errors
    /// `EINVAL` for anything but a regular file or a memory device, `EBADF` when it is not open for writing.
    pub fn new(request: SinkRequest) -> Result<Sink, Errno> {
        let flags = rustix::fs::fcntl_getfl(&request.to)?;
        if flags.contains(OFlags::PATH) || flags & OFlags::RWMODE == OFlags::RDONLY {
            return Err(Errno::BADF);
        }
        // DONT_SYNC: a file server that is asked may take its time, or for ever.
        let stat = rustix::fs::statx(
            &request.to,
            c"",
            AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
            StatxFlags::TYPE,
        )?;
        let swallows =
            stat.stx_rdev_major == MEMORY_MAJOR && SWALLOWING_MINORS.contains(&stat.stx_rdev_minor);
        let (way, offset) = match rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()) {
            rustix::fs::FileType::RegularFile => (Way::Helper, request.offset),
            rustix::fs::FileType::CharacterDevice if swallows => (Way::Here, None),
            _ => return Err(Errno::INVAL),
        };
        Ok(Sink {
            to: Arc::new(request.to),
            way,
            offset,
            left: request.len,
            written: 0,
            batch: VecDeque::new(),
            batched: 0,
            since: None,
            in_hand: 0,
            closing: false,
            wait: request.wait,
            failed: None,
            reply: Some(request.reply),
        })
    }

    /// How many bytes it takes over now.
    pub(super) fn room(&self) -> usize {
        if self.closing || self.failed.is_some() {
            return 0;
        }
        let room = MAX_HELD.saturating_sub(self.held());
        room.min(usize::try_from(self.left).unwrap_or(usize::MAX))
    }

    /// Whether it never takes more than it did.
    pub(super) fn is_full(&self) -> bool {
        self.left == 0 || self.closing || self.failed.is_some()
    }

    /// Bytes in hand.
    pub(super) fn held(&self) -> usize {
        self.batched + self.in_hand
    }

    /// Takes bytes over, at most [`room`](Self::room).
    pub(super) fn push(&mut self, bytes: BytesMut) {
        self.left -= bytes.len() as u64;
        self.batched += bytes.len();
        self.batch.push_back(bytes);
    }

    /// Nothing more is taken over; it is finished when what is in hand is written.
    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    /// What has arrived was taken over, as far as there was room.
    pub(super) fn caught_up(&mut self) {
        self.closing |= !self.wait;
    }

    /// Writes what cannot block, and gives work for a helper when it is worth a hand-over.
    pub(super) fn hand_over(&mut self, now: Instant) -> Option<WriteJob> {
        if self.batch.is_empty() || self.failed.is_some() || self.in_hand > 0 {
            return None;
        }
        if self.way == Way::Here {
            let (bytes, outcome) = write(&self.to, None, &mut self.batch);
            self.wrote(bytes);
            self.batched -= bytes as usize;
            self.failed = outcome.err();
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if self.batched < BATCH && now < since + LINGER && !self.is_full() {
            return None;
        }
        self.since = None;
        self.in_hand = std::mem::take(&mut self.batched);
        Some(WriteJob {
            to: self.to.clone(),
            offset: self.offset,
            batch: std::mem::take(&mut self.batch),
        })
    }

    /// When [`hand_over`](Self::hand_over) has something to do, whatever happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waiting = self.in_hand == 0 && !self.batch.is_empty();
        self.since.filter(|_| waiting).map(|since| since + LINGER)
    }

    fn wrote(&mut self, bytes: u64) {
        self.written += bytes;
        self.offset = self.offset.map(|offset| offset + bytes);
    }

    /// A helper brings a batch back. False when it is another file's.
    pub(super) fn written(&mut self, written: Written) -> bool {
        if !Arc::ptr_eq(&self.to, &written.to) {
            return false;
        }
        self.in_hand = 0;
        self.wrote(written.bytes);
        if let Some((errno, rest)) = written.failed {
            self.failed = Some(errno);
            for slice in rest.into_iter().rev() {
                self.batched += slice.len();
                self.batch.push_front(slice);
            }
        }
        true
    }

    /// Whether nothing is left to do but to answer.
    pub(super) fn is_finished(&self) -> bool {
        self.in_hand == 0 && (self.failed.is_some() || (self.is_full() && self.batch.is_empty()))
    }

    /// Answers, and gives back what was not written.
    pub(super) fn finish(mut self) -> VecDeque<BytesMut> {
        let errno = self.failed.map_or(0, Errno::raw_os_error);
        answer(self.reply.take(), self.written, errno);
        self.batch
    }
}
