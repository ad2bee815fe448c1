//! The way out: plaintext sealed in, or in one pass into, the buffer that leaves.
//!
//! Records of one length lie one behind the other as a *run*, which a device with UDP segmentation offload takes as one
//! super-datagram and cuts into one datagram a record; the last may be shorter. Messages are [taken](super::taken) in batches;
//! one that does not fit its run begins the next. A file's range is sealed from a mapping where that can be had, and read into
//! the records otherwise; as with TCP, what may wait for a disk is a helper thread's.

mod memory;

use super::end::{FromClient, RecordEnd, RecordEvent};
use super::taken::{First, Staging, Taken};
use crate::client_fd::ClientFd;
use crate::emit::file::{FileRange, PAGE, READ_AHEAD, Way, answer, prefetch};
use crate::emit::job::{Helped, Job, JobKind};
use crate::mark::Mark;
use memory::MemoryRange;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::sync::Arc;
use uktls_record::dtls::{EpochKeys, Sealer};
use uktls_record::header::{ContentType, MAX_PLAINTEXT};

/// Largest payload of a UDP datagram or super-datagram: 65,535 less IPv6's header and UDP's.
const MAX_RUN: usize = 65_535 - 40 - 8;
/// Datagrams that Linux takes in one super-datagram (`UDP_MAX_SEGMENTS`, before 6.9).
const MAX_SEGMENTS: usize = 64;
/// Room that [`Outgoing::fill`] needs.
pub(crate) const ROOM: usize = MAX_RUN;
/// Keys that may be staged and not yet in force.
const MAX_STAGED: usize = 4;

/// The way out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    sealer: Option<Sealer>,
    staged: VecDeque<(u32, EpochKeys)>,
    next_key_id: u32,
    /// What a file's records are cut by: the record's length as a whole.
    mtu: Option<u16>,
    /// From the client, and not sent yet.
    taken: Taken,
    file: Option<Box<FileRange>>,
    memory: Option<MemoryRange>,
    /// Work for a helper thread, to be fetched after each [`fill`](Self::fill).
    job: Option<Job>,
    sealed: u64,
}

impl Default for Outgoing {
    fn default() -> Self {
        Outgoing {
            sealer: None,
            staged: VecDeque::new(),
            next_key_id: 1,
            mtu: None,
            taken: Taken::default(),
            file: None,
            memory: None,
            job: None,
            sealed: 0,
        }
    }
}

/// What may be one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunLimits {
    /// The longest record that leaves in one packet. A longer one is a run of its own.
    pub(crate) datagram: usize,
    /// Whether the device cuts super-datagrams.
    pub(crate) offload: bool,
}

/// Sealed records at the front of the buffer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    /// Their bytes, and those of each but the last.
    pub(crate) len: usize,
    pub(crate) stride: usize,
    records: usize,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// There may be more.
    More,
    /// The client has nothing more right now.
    Rest,
    /// A helper thread is at work.
    Waiting,
    /// A message was not sent, and the client is to be told why.
    Note(Errno),
    /// The client is gone, or does not speak the protocol.
    Closed,
}

impl Run {
    /// Whether a record of `len` bytes fits behind the others.
    fn takes(&self, len: usize) -> bool {
        self.records == 0 || (len <= self.stride && self.len + len <= MAX_RUN)
    }

    /// Counts the record of `len` bytes that lies behind the run now. False when the run is over.
    fn push(&mut self, len: usize, limits: RunLimits) -> bool {
        if self.records == 0 {
            self.stride = len;
        }
        self.len += len;
        self.records += 1;
        len == self.stride && self.records < most_segments(self.stride, limits)
    }
}

/// How many records of this length may be one run.
fn most_segments(stride: usize, limits: RunLimits) -> usize {
    if limits.offload && stride <= limits.datagram {
        (MAX_RUN / stride.max(1)).clamp(1, MAX_SEGMENTS)
    } else {
        1
    }
}

impl Outgoing {
    /// Records sealed.
    pub(crate) fn sealed(&self) -> u64 {
        self.sealed
    }

    /// The keys as they will be after everything that is staged.
    pub(crate) fn latest_keys(&self) -> Option<EpochKeys> {
        self.staged
            .back()
            .map(|(_, keys)| keys.clone())
            .or_else(|| self.sealer.as_ref().map(Sealer::keys))
    }

    /// Stages keys, and gives the number by which a mark brings them into force.
    ///
    /// # Errors
    /// `ENOBUFS` when too many are staged already.
    pub(crate) fn stage(&mut self, keys: EpochKeys) -> Result<u32, Errno> {
        if self.staged.len() >= MAX_STAGED {
            return Err(Errno::NOBUFS);
        }
        let key_id = self.next_key_id;
        self.next_key_id = self.next_key_id.wrapping_add(1);
        self.staged.push_back((key_id, keys));
        Ok(key_id)
    }

    /// Sets how long a file's records may be, overhead included.
    pub(crate) fn set_mtu(&mut self, mtu: Option<u16>) {
        self.mtu = mtu;
    }

    /// Fetches the work that the last [`fill`](Self::fill) left for a helper thread.
    pub(crate) fn take_job(&mut self) -> Option<Job> {
        self.job.take()
    }

    /// The association is going away: whoever waits for a result is told.
    pub(crate) fn abandon(&mut self) {
        if let Some(mut range) = self.file.take() {
            range.finish(Errno::PIPE.raw_os_error());
        }
    }

    /// Bytes of memory that what waits for its turn takes.
    pub(crate) fn memory(&self) -> usize {
        self.taken.memory()
    }

    /// The turn is over, and staging somebody else's.
    pub(crate) fn keep(&mut self, staging: &Staging) {
        self.taken.keep(staging);
    }

    /// Fills the front of `buffer`, of at least [`ROOM`] bytes, with a run.
    pub(crate) fn fill(
        &mut self,
        end: &mut impl RecordEnd,
        staging: &mut Staging,
        buffer: &mut [u8],
        limits: RunLimits,
    ) -> (Run, Then) {
        let mut run = Run::default();
        let then = loop {
            if self.file.is_some() || self.memory.is_some() {
                if run.len > 0 {
                    break Then::More;
                }
                return match self.memory {
                    Some(_) => self.fill_from_memory(end, buffer, limits),
                    None => self.fill_from_file(buffer, limits),
                };
            }
            if self.taken.is_empty() {
                end.pull_batch(staging, &mut self.taken);
            }
            let next = match self.taken.first(staging) {
                Some(First::Record(..)) => self.seal_first(end, staging, &mut run, buffer, limits),
                Some(First::Other) => {
                    let other = self.taken.pop_other();
                    self.on_other(end, other).map(|()| true)
                }
                None => Err(Then::Rest),
            };
            match next {
                Ok(true) => {}
                Ok(false) => break Then::More,
                Err(then) => break then,
            }
        };
        (run, then)
    }

    /// Seals the record that is first in line behind the run. False when the run is over; a record that does not fit it stays.
    fn seal_first(
        &mut self,
        end: &mut impl RecordEnd,
        staging: &Staging,
        run: &mut Run,
        buffer: &mut [u8],
        limits: RunLimits,
    ) -> Result<bool, Then> {
        let Some(First::Record(content_type, plaintext)) = self.taken.first(staging) else {
            return Ok(true);
        };
        let content_type = ContentType(content_type);
        let sealed = match &mut self.sealer {
            None => Err(Errno::BADMSG),
            Some(_) if plaintext.len() > MAX_PLAINTEXT => Err(Errno::TOOBIG),
            Some(sealer) => {
                let len = sealer.overhead() + plaintext.len();
                if !run.takes(len) {
                    return Ok(false);
                }
                let sequence = sealer.sequence();
                let record = &mut buffer[run.len..run.len + len];
                match sealer.seal_from(content_type, plaintext, record) {
                    Ok(()) => {
                        end.observe(|| RecordEvent::Sealed {
                            sequence,
                            content_type,
                            plaintext,
                        });
                        Ok(len)
                    }
                    Err(error) => {
                        tracing::info!("sending stops: {error}");
                        Err(Errno::BADMSG)
                    }
                }
            }
        };
        self.taken.drop_first();
        let len = sealed.map_err(Then::Note)?;
        self.sealed += 1;
        Ok(run.push(len, limits))
    }

    /// Obeys a message that is no record.
    fn on_other(&mut self, end: &mut impl RecordEnd, other: FromClient) -> Result<(), Then> {
        match other {
            FromClient::Mark(mark, fds) => self.on_mark(end, mark, fds),
            FromClient::Memory(_) if self.sealer.is_none() => {
                end.memory_sealed(0);
                Err(Then::Note(Errno::BADMSG))
            }
            FromClient::Memory(bytes) => {
                self.memory = Some(MemoryRange::new(bytes));
                Ok(())
            }
            FromClient::Malformed | FromClient::Closed => Err(Then::Closed),
            FromClient::Empty | FromClient::Record(..) => Err(Then::Rest),
        }
    }

    /// Bytes in front of and behind a record's plaintext.
    fn overhead(&self) -> (usize, usize) {
        self.sealer
            .as_ref()
            .map_or((0, 0), |sealer| (sealer.prefix_len(), sealer.suffix_len()))
    }

    fn on_mark(
        &mut self,
        end: &mut impl RecordEnd,
        mark: Mark,
        fds: Vec<ClientFd>,
    ) -> Result<(), Then> {
        match mark {
            Mark::TxKeys { key_id } => self.use_keys(end, key_id),
            Mark::Pipe { len } => {
                let mut fds = fds.into_iter();
                let (Some(pipe), Some(reply)) = (fds.next(), fds.next()) else {
                    return Err(Then::Closed);
                };
                if self.sealer.is_none() {
                    answer(Some(reply), 0, Errno::BADMSG.raw_os_error());
                    return Ok(());
                }
                match FileRange::of_pipe(pipe, len, reply) {
                    Ok(range) => self.file = Some(Box::new(range)),
                    Err((errno, reply)) => answer(Some(reply), 0, errno.raw_os_error()),
                }
                Ok(())
            }
            Mark::File {
                offset, len, reply, ..
            } => {
                let mut fds = fds.into_iter();
                let file = fds.next().ok_or(Then::Closed)?;
                let reply = if reply { fds.next() } else { None };
                if self.sealer.is_none() {
                    answer(reply, 0, Errno::BADMSG.raw_os_error());
                    return Ok(());
                }
                match FileRange::new(file, offset, len, reply, false) {
                    Ok(range) => self.file = Some(Box::new(range)),
                    Err((errno, reply)) => answer(reply, 0, errno.raw_os_error()),
                }
                Ok(())
            }
            _ => {
                tracing::info!("an association ends: its client sent a mark that has no meaning");
                Err(Then::Closed)
            }
        }
    }

    fn use_keys(&mut self, end: &mut impl RecordEnd, key_id: u32) -> Result<(), Then> {
        let keys = match self.staged.pop_front() {
            Some((id, keys)) if id == key_id => keys,
            _ => {
                tracing::info!("an association ends: its client named keys that are not staged");
                return Err(Then::Closed);
            }
        };
        // The keys in force may be set once more; numbers that were used are not used again.
        let keys = match &self.sealer {
            Some(sealer) if sealer.keys().is_same_epoch(&keys) => {
                keys.at(keys.sequence().max(sealer.sequence()))
            }
            _ => keys,
        };
        self.sealer = Some(Sealer::new(&keys).map_err(|_| Then::Closed)?);
        end.observe(|| RecordEvent::SealsWith(keys));
        Ok(())
    }

    /// A helper finished its work on `file`.
    pub(crate) fn helped(&mut self, file: &Arc<ClientFd>, helped: Helped) {
        if let Some(range) = &mut self.file {
            range.helped(file, helped);
        }
    }

    /// How a file's records are laid out: plaintext of each, and the whole record.
    fn layout(&self) -> (usize, usize) {
        let (prefix, suffix) = self.overhead();
        let overhead = prefix + suffix;
        let payload = self.mtu.map_or(MAX_PLAINTEXT, |mtu| {
            usize::from(mtu)
                .saturating_sub(overhead)
                .clamp(1, MAX_PLAINTEXT)
        });
        (payload, payload + overhead)
    }

    fn fill_from_file(&mut self, buffer: &mut [u8], limits: RunLimits) -> (Run, Then) {
        let (payload, stride) = self.layout();
        let most = (most_segments(stride, limits) * payload) as u64;
        let Some(range) = &mut self.file else {
            return (Run::default(), Then::More);
        };
        if let Some(errno) = range.failed.take() {
            return self.file_ends(errno.raw_os_error());
        }
        if range.left == 0 {
            return self.file_ends(0);
        }
        if range.waiting {
            return (Run::default(), Then::Waiting);
        }
        let wanted = range.left.min(most) as usize;
        match range.way {
            Way::Mapped => self.seal_window(buffer, payload, wanted),
            Way::NoWait => self.read_page_cache(buffer, payload, wanted),
            Way::Helper => self.copy_buffer(buffer, payload, wanted),
        }
    }

    /// The range is done, or cannot go on.
    fn file_ends(&mut self, errno: i32) -> (Run, Then) {
        if let Some(mut range) = self.file.take() {
            range.finish(errno);
        }
        (Run::default(), Then::More)
    }

    /// Seals from a mapped window into the buffer.
    fn seal_window(&mut self, buffer: &mut [u8], payload: usize, wanted: usize) -> (Run, Then) {
        let (Some(range), Some(sealer)) = (&mut self.file, &mut self.sealer) else {
            return (Run::default(), Then::More);
        };
        if range
            .window
            .as_ref()
            .is_none_or(|window| window.available(range.offset) == 0)
        {
            range.window = range.next_window.take();
        }
        let offset = range.offset;
        let available = range
            .window
            .as_ref()
            .map_or(0, |window| window.available(offset) as u64)
            .min(range.left);
        let behind = range.left - available;
        if behind > 0 && range.next_window.is_none() && !range.prefetching {
            self.job = Some(range.map_ahead(available, payload as u64));
        }
        let Some(window) = range.window.as_ref().filter(|_| available > 0) else {
            range.waiting = true;
            return (Run::default(), Then::Waiting);
        };
        let take = wanted.min(available as usize);
        let overhead = sealer.overhead();
        let mut run = Run {
            stride: payload.min(take) + overhead,
            ..Run::default()
        };
        let mut batch = sealer.batch();
        let sealed = window.with(offset, |bytes| {
            // Where the next page begins that was not asked for yet; those of a record are asked for two pages before it.
            let mut page = PAGE - (offset % PAGE as u64) as usize;
            for (i, plaintext) in bytes[..take].chunks(payload).enumerate() {
                let ahead = (i * payload + 2 * PAGE).min(bytes.len());
                while page < ahead {
                    prefetch(&bytes[page..bytes.len().min(page + PAGE)]);
                    page += PAGE;
                }
                let record = &mut buffer[run.len..run.len + plaintext.len() + overhead];
                batch.seal_from(ContentType::APPLICATION_DATA, plaintext, record)?;
                run.len += record.len();
            }
            Ok::<_, uktls_record::Error>(())
        });
        let plaintext = run.len - batch.records() as usize * overhead;
        if sealed.is_err() || !range.still_whole(offset + plaintext as u64) {
            // The file was cut meanwhile: nothing of this is sent, and what is left of the range is read.
            drop(batch);
            buffer[..run.len].fill(0);
            range.fall_back();
            return (Run::default(), Then::More);
        }
        self.sealed += batch.records();
        batch.commit();
        range.advance(plaintext);
        if let Ok(Err(error)) = sealed
            && run.len == 0
        {
            tracing::info!("sending stops: {error}");
            return self.file_ends(Errno::BADMSG.raw_os_error());
        }
        (run, Then::More)
    }

    /// Reads what is in the page cache straight into records.
    fn read_page_cache(&mut self, buffer: &mut [u8], payload: usize, wanted: usize) -> (Run, Then) {
        let (prefix, suffix) = self.overhead();
        let Some(range) = &mut self.file else {
            return (Run::default(), Then::More);
        };
        let mut slots = Vec::with_capacity(wanted.div_ceil(payload));
        let mut left = wanted;
        for slot in buffer.chunks_mut(prefix + payload + suffix) {
            if left == 0 {
                break;
            }
            let take = left.min(payload);
            slots.push(IoSliceMut::new(&mut slot[prefix..prefix + take]));
            left -= take;
        }
        let read = range.read_cached(&mut slots);
        match read {
            Ok(0) => self.file_ends(0),
            // Whole records only, unless it is the end: a record is not cut where the page cache is.
            Ok(n) if n < wanted && n < payload => self.warm(),
            Ok(n) if n < wanted => self.seal_slots(buffer, payload, n - n % payload),
            Ok(n) => self.seal_slots(buffer, payload, n),
            Err(Errno::AGAIN) => self.warm(),
            Err(Errno::INTR) => (Run::default(), Then::More),
            Err(_) => {
                range.fall_back();
                (Run::default(), Then::More)
            }
        }
    }

    /// Lets a helper bring more into the page cache. Twice in vain at the same place, and the helper reads instead.
    fn warm(&mut self) -> (Run, Then) {
        if let Some(range) = &mut self.file {
            if range.prefetching {
                range.prefetching = false;
                range.fall_back();
                return (Run::default(), Then::More);
            }
            range.prefetching = true;
            self.job = Some(range.wait_for(JobKind::Warm, READ_AHEAD));
        }
        (Run::default(), Then::Waiting)
    }

    /// Takes from what a helper read.
    fn copy_buffer(&mut self, buffer: &mut [u8], payload: usize, wanted: usize) -> (Run, Then) {
        let (prefix, suffix) = self.overhead();
        let Some(range) = &mut self.file else {
            return (Run::default(), Then::More);
        };
        let Some((bytes, used)) = &mut range.buffer else {
            let whole_records = (READ_AHEAD / payload as u64).max(1) * payload as u64;
            self.job = Some(range.wait_for(JobKind::Read, whole_records));
            return (Run::default(), Then::Waiting);
        };
        let rest = &bytes[*used..];
        if rest.is_empty() {
            let file_is_short = bytes.is_empty();
            range.buffer = None;
            return if file_is_short {
                self.file_ends(0)
            } else {
                (Run::default(), Then::More)
            };
        }
        let take = rest.len().min(wanted);
        for (plaintext, slot) in rest[..take]
            .chunks(payload)
            .zip(buffer.chunks_mut(prefix + payload + suffix))
        {
            slot[prefix..prefix + plaintext.len()].copy_from_slice(plaintext);
        }
        *used += take;
        self.seal_slots(buffer, payload, take)
    }

    /// Seals `n` bytes of a file that lie in the buffer's record slots.
    fn seal_slots(&mut self, buffer: &mut [u8], payload: usize, n: usize) -> (Run, Then) {
        let (prefix, suffix) = self.overhead();
        let (Some(range), Some(sealer)) = (&mut self.file, &mut self.sealer) else {
            return (Run::default(), Then::More);
        };
        let mut run = Run {
            stride: prefix + payload.min(n) + suffix,
            ..Run::default()
        };
        let mut left = n;
        while left > 0 {
            let take = left.min(payload);
            let record = &mut buffer[run.len..run.len + prefix + take + suffix];
            if let Err(error) = sealer.seal_in_place(ContentType::APPLICATION_DATA, record) {
                tracing::info!("sending stops: {error}");
                break;
            }
            run.len += record.len();
            self.sealed += 1;
            left -= take;
        }
        range.prefetching = false;
        range.advance(n - left);
        if left > 0 && run.len == 0 {
            return self.file_ends(Errno::BADMSG.raw_os_error());
        }
        if left > 0 {
            // What was read and cannot be sealed belongs to nobody; the next round ends the range.
            range.buffer = None;
        }
        (run, Then::More)
    }
}
