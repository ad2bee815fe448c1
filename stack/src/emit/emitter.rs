//! A socket's sending side up to TCP: pull from the client's end (or a file), lay out records, seal, append.
//!
//! ```text
//!  client's end ──readv──►  [hdr|nonce| plaintext |tag][hdr|nonce| plaintext |tag]…   slots in the arena
//!  file mapping ──seal───►     └───────── sealed in place, or straight from the mapping ─────────┘
//! ```
//! A record that is not full yet stays *open*: its plaintext lies in its slot, behind room for the header, and does not
//! belong to the stream before it is closed. It is closed by a mark, by being full, or because the client has
//! nothing more to say right now.

mod memory;

use super::arena::{Arena, LARGE_CHUNK, Pool, SMALL_CHUNK};
use super::file::{FileRange, READ_AHEAD, Way, prefetch};
use super::job::{Helped, Job, JobKind};
use super::sigbus::Window;
use super::source::Then;
use crate::client_fd::ClientFd;
use crate::engine::{ClientEnd, RecordEvent};
use crate::mark::{HOLD_FILLER, Mark};
use crate::socket_info::Reason;
use memory::MemoryRange;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::sync::Arc;
use uktls_record::crypto_info::CryptoInfo;
use uktls_record::header::{ContentType, MAX_PLAINTEXT};
use uktls_record::suite::ProtocolVersion;
use uktls_record::tls::Sealer;

/// Records that one read may fill.
const MAX_SLOTS: usize = 8;
/// Keys that may be staged and not yet in force.
const MAX_STAGED: usize = 4;

/// Why [`Emitter::fill`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// The room is used; there may be more to send.
    Full,
    /// The client has nothing more right now.
    Drained,
    /// A helper thread is at work.
    Waiting,
    /// The client finished its direction; everything before it is in the arena.
    End,
    /// The client closed its end with unread bytes on it: the connection is to be reset.
    Reset,
    /// The connection is to be reset for this reason.
    Failed(Reason),
}

#[derive(Debug)]
enum Item {
    /// Plain bytes as they come.
    Bytes,
    /// The next `left` bytes are records of this type.
    Control {
        content_type: ContentType,
        left: usize,
    },
    /// The next `left` bytes leave as they are.
    Raw { left: usize },
    /// A file's range.
    File(Box<FileRange>),
    /// A range of memory, of which `done` bytes belong to the stream.
    Memory(MemoryRange),
    /// Bytes that mean nothing.
    Filler { left: usize },
}

/// A socket's sending side.
#[derive(Debug)]
pub struct Emitter {
    /// What is sealed and not acknowledged.
    pub arena: Arena,
    sealer: Option<Sealer>,
    staged: VecDeque<(u32, CryptoInfo)>,
    next_key_id: u32,
    /// Largest plaintext of a record.
    max_payload: usize,
    /// Plaintext bytes in the open record.
    open: usize,
    /// The open record stays open although nothing more comes right now (`MSG_MORE`).
    hold_open: bool,
    item: Item,
    ended: bool,
    /// Work for a helper thread, to be fetched after each [`fill`](Self::fill).
    job: Option<Job>,
    records: u64,
}

enum Step {
    Go,
    Stop(Filled),
}

impl Default for Emitter {
    fn default() -> Self {
        Self::new()
    }
}

impl Emitter {
    /// A sender of plain bytes.
    pub fn new() -> Emitter {
        Emitter {
            arena: Arena::new(),
            sealer: None,
            staged: VecDeque::new(),
            next_key_id: 1,
            max_payload: MAX_PLAINTEXT,
            open: 0,
            hold_open: false,
            item: Item::Bytes,
            ended: false,
            job: None,
            records: 0,
        }
    }

    /// Records sealed so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The keys in force.
    pub fn sealer(&self) -> Option<&Sealer> {
        self.sealer.as_ref()
    }

    /// The keys as they will be after everything that is staged: what the order of checks in `setsockopt(TLS_TX)` goes by.
    pub fn latest_keys(&self) -> Option<CryptoInfo> {
        self.staged
            .back()
            .map(|(_, keys)| keys.clone())
            .or_else(|| self.sealer.as_ref().map(Sealer::crypto_info))
    }

    /// Stages keys, and gives the number by which a mark brings them into force.
    ///
    /// # Errors
    /// `ENOBUFS` when too many are staged already.
    pub fn stage(&mut self, keys: CryptoInfo) -> Result<u32, Errno> {
        if self.staged.len() >= MAX_STAGED {
            return Err(Errno::NOBUFS);
        }
        let key_id = self.next_key_id;
        self.next_key_id = self.next_key_id.wrapping_add(1);
        self.staged.push_back((key_id, keys));
        Ok(key_id)
    }

    /// Sets the largest plaintext of a record.
    ///
    /// # Errors
    /// `EBUSY` while a record is open.
    pub fn set_max_payload(&mut self, bytes: usize) -> Result<(), Errno> {
        if self.open > 0 {
            return Err(Errno::BUSY);
        }
        self.max_payload = bytes;
        Ok(())
    }

    /// Changes the record size where no record is open; used by the adaptive layout.
    pub fn adapt_payload(&mut self, bytes: usize) {
        if self.open == 0 {
            self.max_payload = bytes.clamp(1, MAX_PLAINTEXT);
        }
    }

    /// The client's direction is finished and everything is in the arena.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Fetches the work that the last [`fill`](Self::fill) left for a helper thread.
    pub fn take_job(&mut self) -> Option<Job> {
        self.job.take()
    }

    /// Gives back memory of what the peer acknowledged.
    pub fn release(&mut self, pool: &mut Pool, acked: u64) {
        self.arena.release(pool, acked, self.open > 0);
    }

    /// Bytes in front of and behind a record's plaintext.
    fn overhead(&self) -> (usize, usize) {
        self.sealer
            .as_ref()
            .filter(|_| self.seals())
            .map_or((0, 0), |sealer| (sealer.prefix_len(), sealer.suffix_len()))
    }

    /// Whether what comes next becomes records.
    fn seals(&self) -> bool {
        self.sealer.is_some() && !matches!(self.item, Item::Raw { .. })
    }

    /// Appends at least `room` bytes to the arena if the sources have them; never more than a record and a read beyond.
    pub fn fill<E: ClientEnd>(&mut self, end: &mut E, pool: &mut Pool, room: usize) -> Filled {
        if self.ended {
            return Filled::End;
        }
        let start = self.arena.end();
        loop {
            let produced = (self.arena.end() - start) as usize;
            if produced >= room {
                return Filled::Full;
            }
            let step = match &self.item {
                Item::Filler { .. } => self.discard_filler(end),
                Item::File(_) => self.pull_file(end, pool, room - produced),
                Item::Memory(_) => self.seal_memory(end, pool, room - produced),
                Item::Bytes | Item::Control { .. } | Item::Raw { .. } => {
                    self.pull_end(end, pool, room - produced)
                }
            };
            match step {
                Ok(Step::Go) => {}
                Ok(Step::Stop(filled)) => return filled,
                Err(reason) => return Filled::Failed(reason),
            }
        }
    }

    /// A helper finished its work on `file` for this socket.
    pub fn helped(&mut self, file: &Arc<ClientFd>, helped: Helped) {
        if let Item::File(range) = &mut self.item {
            range.helped(file, helped);
        }
    }

    /// The socket is going away: whoever waits for a result is told.
    pub fn abandon(&mut self, pool: &mut Pool) {
        if let Item::File(range) = &mut self.item {
            range.finish(Errno::PIPE.raw_os_error());
        }
        self.item = Item::Bytes;
        self.open = 0;
        self.ended = true;
        self.arena.clear(pool);
    }

    /// Reads the client's end into record slots (or, without keys, as a plain stream).
    fn pull_end<E: ClientEnd>(
        &mut self,
        end: &mut E,
        pool: &mut Pool,
        room: usize,
    ) -> Result<Step, Reason> {
        let limit = match self.item {
            Item::Control { left, .. } | Item::Raw { left } => left,
            _ => usize::MAX,
        };
        let waiting = end.waiting().max(1);
        let (slices_of, pulled) = {
            let mut slots = self.slots(pool, room, limit, waiting);
            let pulled = end.pull(&mut slots);
            (slots.len(), pulled)
        };
        debug_assert!(slices_of > 0, "there is always room for one slot");
        let pulled = pulled.map_err(|error| {
            tracing::info!("a client's socket is reset: {error}");
            Reason::Aborted
        })?;
        self.absorb(end, pool, pulled.plain)?;
        match &mut self.item {
            Item::Control { left, .. } => {
                *left -= pulled.plain;
                if *left == 0 {
                    self.close(end, pool)?;
                    self.item = Item::Bytes;
                }
            }
            Item::Raw { left } => {
                *left -= pulled.plain;
                if *left == 0 {
                    self.item = Item::Bytes;
                }
            }
            _ => {}
        }
        match pulled.then {
            Then::More => Ok(Step::Go),
            Then::Drained => {
                if matches!(self.item, Item::Bytes) && !self.hold_open {
                    self.close(end, pool)?;
                }
                // A read bounded by a control record's or raw bytes' length may have left more behind.
                Ok(if limit == usize::MAX || pulled.plain < limit {
                    Step::Stop(Filled::Drained)
                } else {
                    Step::Go
                })
            }
            Then::Mark(mark, fds) => {
                self.on_mark(end, pool, mark, fds)?;
                Ok(Step::Go)
            }
            Then::Memory(bytes) => {
                if let Item::Control { .. } | Item::Raw { .. } = self.item {
                    return Err(Reason::Aborted);
                }
                self.close(end, pool)?;
                self.hold_open = false;
                self.item = Item::Memory(MemoryRange::new(bytes));
                Ok(Step::Go)
            }
            Then::End => {
                if self.hold_open {
                    // As in Linux: a record left open by MSG_MORE is dropped at close.
                    self.open = 0;
                }
                self.close(end, pool)?;
                self.ended = true;
                Ok(Step::Stop(Filled::End))
            }
            Then::Reset => Ok(Step::Stop(Filled::Reset)),
        }
    }

    /// The parts of the arena's room that the next plaintext goes to: one slice a record.
    ///
    /// `limit` bounds the bytes altogether; `waiting` is how many are known to wait, so that little takes little room.
    fn slots<'a>(
        &'a mut self,
        pool: &mut Pool,
        room: usize,
        limit: usize,
        waiting: usize,
    ) -> Vec<IoSliceMut<'a>> {
        let (prefix, suffix) = self.overhead();
        if !self.seals() {
            let least = if waiting <= SMALL_CHUNK {
                waiting
            } else {
                SMALL_CHUNK + 1
            };
            let tail = self.arena.room(pool, least);
            let take = tail
                .len()
                .min(room.max(waiting.min(LARGE_CHUNK / 2)))
                .min(limit);
            return vec![IoSliceMut::new(&mut tail[..take])];
        }
        let payload = self.max_payload;
        let stride = prefix + payload + suffix;
        // A short record in a slot of its own: no more room than it needs.
        let wanted = (self.open + waiting.min(limit)).min(payload);
        let slot = if prefix + wanted + suffix <= SMALL_CHUNK {
            prefix + wanted + suffix
        } else {
            stride
        };
        self.keep_open_record(pool, slot);
        let open = self.open;
        let tail = self.arena.room(pool, slot);
        if slot < stride && tail.len() < stride {
            return vec![IoSliceMut::new(&mut tail[prefix + open..prefix + wanted])];
        }
        let count = room
            .div_ceil(stride)
            .clamp(1, MAX_SLOTS)
            .min(tail.len() / stride);
        let mut left = limit;
        let mut slices = Vec::with_capacity(count);
        for (i, slot) in tail.chunks_exact_mut(stride).take(count).enumerate() {
            let from = if i == 0 { prefix + open } else { prefix };
            let take = (prefix + payload - from).min(left);
            if take == 0 {
                break;
            }
            slices.push(IoSliceMut::new(&mut slot[from..from + take]));
            left -= take;
        }
        slices
    }

    /// Moves the open record to where `slot` bytes fit, if they do not where it lies.
    fn keep_open_record(&mut self, pool: &mut Pool, slot: usize) {
        if self.open == 0 {
            return;
        }
        let (prefix, _) = self.overhead();
        let used = prefix + self.open;
        let tail = self.arena.room(pool, used);
        if tail.len() < slot {
            let plaintext = tail[..used].to_vec();
            self.arena.room(pool, slot)[..used].copy_from_slice(&plaintext);
        }
    }

    /// `n` bytes arrived in the slots: seals the records that are full.
    fn absorb<E: ClientEnd>(
        &mut self,
        end: &mut E,
        pool: &mut Pool,
        n: usize,
    ) -> Result<(), Reason> {
        if !self.seals() {
            self.arena.commit(n);
            return Ok(());
        }
        self.open += n;
        while self.open >= self.max_payload {
            let rest = self.open - self.max_payload;
            self.open = self.max_payload;
            self.close(end, pool)?;
            self.open = rest;
        }
        Ok(())
    }

    /// Seals the open record, if there is one.
    fn close<E: ClientEnd>(&mut self, end: &mut E, pool: &mut Pool) -> Result<(), Reason> {
        if self.open == 0 || self.sealer.is_none() {
            return Ok(());
        }
        self.seal_open(end, pool)
    }

    fn seal_open<E: ClientEnd>(&mut self, end: &mut E, pool: &mut Pool) -> Result<(), Reason> {
        let (prefix, suffix) = self.overhead();
        let content_type = match self.item {
            Item::Control { content_type, .. } => content_type,
            _ => ContentType::APPLICATION_DATA,
        };
        let len = prefix + self.open + suffix;
        let record = &mut self.arena.room(pool, len)[..len];
        let sealer = self
            .sealer
            .as_mut()
            .expect("callers checked that there are keys");
        let nonce = sealer.next_nonce();
        sealer
            .seal_in_place(content_type, record)
            .map_err(|error| {
                tracing::info!("sending stops: {error}");
                Reason::KeysExhausted
            })?;
        let start = self.arena.end();
        end.observe(|| RecordEvent::Sealed(start..start + len as u64, nonce));
        self.arena.commit(len);
        self.open = 0;
        self.records += 1;
        Ok(())
    }

    fn on_mark<E: ClientEnd>(
        &mut self,
        end: &mut E,
        pool: &mut Pool,
        mark: Mark,
        fds: Vec<ClientFd>,
    ) -> Result<(), Reason> {
        if let Item::Control { .. } | Item::Raw { .. } = self.item {
            tracing::info!("a client's socket is reset: a mark inside a record");
            return Err(Reason::Aborted);
        }
        if mark != Mark::RecordOpen {
            self.close(end, pool)?;
            self.hold_open = false;
        }
        match mark {
            Mark::RecordEnd => {}
            Mark::RecordOpen => self.hold_open = true,
            Mark::TxKeys { key_id } => self.use_keys(end, key_id)?,
            Mark::TxEnd => {
                self.sealer = None;
                self.max_payload = MAX_PLAINTEXT;
            }
            Mark::MaxPayload { bytes } => {
                self.max_payload = (bytes as usize).clamp(1, MAX_PLAINTEXT);
            }
            Mark::Sequence => {
                let (sequence, errno) = self
                    .sealer
                    .as_ref()
                    .map_or((0, Errno::BADMSG.raw_os_error()), |sealer| {
                        (sealer.sequence(), 0)
                    });
                super::file::answer(fds.into_iter().next(), sequence, errno);
            }
            Mark::Raw { len } => {
                if len > 0 {
                    self.item = Item::Raw { left: len as usize };
                }
            }
            Mark::Record { content_type, len } => {
                let content_type = ContentType(content_type);
                self.item = Item::Control {
                    content_type,
                    left: len as usize,
                };
                if len == 0 {
                    if self.sealer.is_some() {
                        self.seal_open(end, pool)?;
                    }
                    self.item = Item::Bytes;
                }
            }
            Mark::Pipe { len } => {
                let mut fds = fds.into_iter();
                let (Some(pipe), Some(reply)) = (fds.next(), fds.next()) else {
                    return Err(Reason::Aborted);
                };
                match FileRange::of_pipe(pipe, len, reply) {
                    Ok(range) => self.item = Item::File(Box::new(range)),
                    Err((errno, reply)) => {
                        super::file::answer(Some(reply), 0, errno.raw_os_error());
                    }
                }
            }
            Mark::File {
                offset,
                len,
                reply,
                hold,
            } => {
                let mut fds = fds.into_iter();
                let file = fds.next().ok_or(Reason::Aborted)?;
                let reply = if reply {
                    Some(fds.next().ok_or(Reason::Aborted)?)
                } else {
                    None
                };
                let accepted = reply.is_none();
                match FileRange::new(file, offset, len, reply, hold) {
                    Ok(range) => self.item = Item::File(Box::new(range)),
                    Err((errno, _)) if accepted => {
                        return Err(Reason::FileFailed(errno.raw_os_error()));
                    }
                    Err((errno, reply)) => {
                        super::file::answer(reply, 0, errno.raw_os_error());
                        self.item = if hold {
                            Item::Filler { left: HOLD_FILLER }
                        } else {
                            Item::Bytes
                        };
                    }
                }
            }
            Mark::Control { .. } | Mark::Error { .. } | Mark::RxKeys | Mark::RxEnd => {
                tracing::info!(
                    "a client's socket is reset: it sent a mark that only the stack sends"
                );
                return Err(Reason::Aborted);
            }
        }
        Ok(())
    }

    fn use_keys<E: ClientEnd>(&mut self, end: &mut E, key_id: u32) -> Result<(), Reason> {
        let Some((id, keys)) = self.staged.pop_front() else {
            tracing::info!("a client's socket is reset: it named keys that are not staged");
            return Err(Reason::Aborted);
        };
        if id != key_id {
            tracing::info!("a client's socket is reset: it named keys out of order");
            return Err(Reason::Aborted);
        }
        match &mut self.sealer {
            Some(sealer) if keys.version() == ProtocolVersion::Tls13 => {
                sealer.rekey(&keys).map_err(|_| Reason::Aborted)?;
            }
            // TLS 1.2 has no rekeying; an AF_KTLS socket that sets keys anew starts over with them.
            sealer => *sealer = Some(Sealer::new(&keys).map_err(|_| Reason::Aborted)?),
        }
        let offset = self.arena.end();
        end.observe(|| RecordEvent::SealsWith(offset, keys));
        Ok(())
    }

    fn discard_filler<E: ClientEnd>(&mut self, end: &mut E) -> Result<Step, Reason> {
        let Item::Filler { left } = &mut self.item else {
            return Ok(Step::Go);
        };
        let mut scratch = [0; 16 * 1024];
        let take = scratch.len().min(*left);
        let pulled = end
            .pull(&mut [IoSliceMut::new(&mut scratch[..take])])
            .map_err(|_| Reason::Aborted)?;
        *left -= pulled.plain;
        let done = *left == 0;
        if done {
            self.item = Item::Bytes;
        }
        match pulled.then {
            Then::Mark(..) | Then::Memory(_) => Err(Reason::Aborted),
            Then::End => {
                self.ended = true;
                Ok(Step::Stop(Filled::End))
            }
            Then::Reset => Ok(Step::Stop(Filled::Reset)),
            Then::Drained if !done => Ok(Step::Stop(Filled::Drained)),
            Then::Drained | Then::More => Ok(Step::Go),
        }
    }

    fn pull_file<E: ClientEnd>(
        &mut self,
        end: &mut E,
        pool: &mut Pool,
        room: usize,
    ) -> Result<Step, Reason> {
        let Item::File(range) = &mut self.item else {
            return Ok(Step::Go);
        };
        if let Some(errno) = range.failed.take() {
            return self.file_ends(end, pool, errno.raw_os_error());
        }
        if range.left == 0 {
            return self.file_ends(end, pool, 0);
        }
        if range.waiting {
            return Ok(Step::Stop(Filled::Waiting));
        }
        match range.way {
            Way::Mapped if self.sealer.is_some() && self.open == 0 => self.seal_window(pool, room),
            Way::Mapped => {
                range.fall_back();
                Ok(Step::Go)
            }
            Way::NoWait => self.pull_page_cache(end, pool, room),
            Way::Helper => self.pull_buffer(end, pool, room),
        }
    }

    /// The range is done, or cannot go on: with `errno`, or because the file got shorter.
    fn file_ends<E: ClientEnd>(
        &mut self,
        end: &mut E,
        pool: &mut Pool,
        errno: i32,
    ) -> Result<Step, Reason> {
        self.close(end, pool)?;
        let Item::File(range) = &mut self.item else {
            return Ok(Step::Go);
        };
        if range.left > 0 && range.reply.is_none() {
            // The bytes were promised: the peer must not take the end for the file's.
            return Err(Reason::FileFailed(errno));
        }
        range.finish(errno);
        self.item = if range.hold {
            Item::Filler { left: HOLD_FILLER }
        } else {
            Item::Bytes
        };
        Ok(Step::Go)
    }

    /// Seals from a mapped window into the arena.
    fn seal_window(&mut self, pool: &mut Pool, room: usize) -> Result<Step, Reason> {
        let Item::File(range) = &mut self.item else {
            return Ok(Step::Go);
        };
        let payload = self.max_payload;
        let usable = |window: &Option<Window>, range: &FileRange| {
            window.as_ref().is_some_and(|window| {
                window.available(range.offset) as u64 >= range.left.min(payload as u64)
            })
        };
        if !usable(&range.window, range) {
            range.window = range.next_window.take();
        }
        if !usable(&range.window, range) {
            range.window = None;
            if !range.prefetching {
                self.job = Some(range.map_ahead(0, payload as u64));
            }
            range.waiting = true;
            return Ok(Step::Stop(Filled::Waiting));
        }
        let available = range
            .window
            .as_ref()
            .map_or(0, |window| window.available(range.offset)) as u64;
        let available = available.min(range.left);
        if available < range.left && range.next_window.is_none() && !range.prefetching {
            self.job = Some(range.map_ahead(available, payload as u64));
        }
        let Some(window) = &range.window else {
            return Ok(Step::Go);
        };
        let sealer = self
            .sealer
            .as_mut()
            .expect("pull_file checked that there are keys");
        let overhead = sealer.overhead();
        let stride = payload + overhead;
        let tail = self
            .arena
            .room(pool, stride.min(available as usize + overhead));
        let whole_range = available == range.left;
        let (mut from, mut to) = (0, 0);
        let mut batch = sealer.batch();
        let sealed = window.with(range.offset, |bytes| {
            while to < room {
                let left = available as usize - from;
                let take = left.min(payload);
                if take == 0
                    || (take < payload && !whole_range)
                    || tail.len() - to < take + overhead
                {
                    break;
                }
                prefetch(&bytes[from..from + take]);
                batch.seal_from(
                    ContentType::APPLICATION_DATA,
                    &bytes[from..from + take],
                    &mut tail[to..to + take + overhead],
                )?;
                from += take;
                to += take + overhead;
            }
            Ok::<_, uktls_record::error::Error>(())
        });
        if sealed.is_err() || !range.still_whole(range.offset + from as u64) {
            // The file was cut meanwhile: nothing of this is sent, and what is left of the range is read.
            drop(batch);
            tail[..to].fill(0);
            range.fall_back();
            return Ok(Step::Go);
        }
        if let Ok(Err(error)) = sealed
            && to == 0
        {
            tracing::info!("sending stops: {error}");
            return Err(Reason::KeysExhausted);
        }
        self.records += batch.records();
        batch.commit();
        self.arena.commit(to);
        range.advance(from);
        Ok(Step::Go)
    }

    /// Reads what is in the page cache into record slots.
    fn pull_page_cache<E: ClientEnd>(
        &mut self,
        end: &mut E,
        pool: &mut Pool,
        room: usize,
    ) -> Result<Step, Reason> {
        let Item::File(range) = &self.item else {
            return Ok(Step::Go);
        };
        let left = range.left.min(LARGE_CHUNK as u64) as usize;
        // The slots borrow the emitter, the read only needs the range: taken out for the call.
        let Item::File(range) = std::mem::replace(&mut self.item, Item::Bytes) else {
            return Ok(Step::Go);
        };
        let read = range.read_cached(&mut self.slots(pool, room, left, left));
        self.item = Item::File(range);
        let Item::File(range) = &mut self.item else {
            return Ok(Step::Go);
        };
        match read {
            Ok(0) => self.file_ends(end, pool, 0),
            Ok(n) => {
                range.advance(n);
                self.absorb(end, pool, n)?;
                Ok(Step::Go)
            }
            Err(Errno::AGAIN) => {
                self.job = Some(range.wait_for(JobKind::Warm, READ_AHEAD));
                Ok(Step::Stop(Filled::Waiting))
            }
            Err(Errno::INTR) => Ok(Step::Go),
            Err(_) => {
                range.way = Way::Helper;
                Ok(Step::Go)
            }
        }
    }

    /// Copies what a helper read into record slots.
    fn pull_buffer<E: ClientEnd>(
        &mut self,
        end: &mut E,
        pool: &mut Pool,
        room: usize,
    ) -> Result<Step, Reason> {
        let Item::File(range) = &mut self.item else {
            return Ok(Step::Go);
        };
        let Some((bytes, used)) = range.buffer.take() else {
            self.job = Some(range.wait_for(JobKind::Read, READ_AHEAD));
            return Ok(Step::Stop(Filled::Waiting));
        };
        let mut rest = &bytes[used..];
        if rest.is_empty() && used == 0 {
            return self.file_ends(end, pool, 0);
        }
        let limit = rest.len();
        let mut copied = 0;
        for slot in &mut self.slots(pool, room, limit, limit) {
            let take = rest.len().min(slot.len());
            slot[..take].copy_from_slice(&rest[..take]);
            rest = &rest[take..];
            copied += take;
        }
        let left_over = !rest.is_empty();
        self.absorb(end, pool, copied)?;
        let Item::File(range) = &mut self.item else {
            return Ok(Step::Go);
        };
        range.advance(copied);
        if left_over {
            range.buffer = Some((bytes, used + copied));
        }
        Ok(Step::Go)
    }
}
