//! The way in: slices of the received stream become records, records become what the client reads.
//!
//! ```text
//!  tcp receive ──slices──►  reassembly of one record ──open in place──►  pieces ──deliver──► the client's end
//! ```
//! A record that lies whole in one device buffer is opened where it lies; only one that straddles two buffers is
//! gathered. Nothing is handed on before its tag is verified. What the client has not taken stays here, bounded, and the
//! TCP window with it.
//!
//! A client may name a [file](sink) that the bytes go to, for a while, in place of its end.

pub mod sink;

use crate::clock::Instant;
use crate::engine::{ClientEnd, RecordEvent};
use crate::mark::{MARK_LEN, Mark, bytes_behind};
use bytes::{Buf, BytesMut};
use rustix::io::Errno;
use sink::{Sink, SinkRequest, WriteJob, Written};
use std::collections::VecDeque;
use std::io::IoSlice;
use uktls_record::crypto_info::CryptoInfo;
use uktls_record::error::Error;
use uktls_record::header::{ContentType, HEADER_LEN};
use uktls_record::suite::ProtocolVersion;
use uktls_record::tls::Opener;

/// Opened bytes that may wait for the client; then records stay sealed, and the window closes.
const MAX_WAITING: usize = 256 * 1024;
/// Pieces handed over by one system call.
const MAX_GATHER: usize = 32;
/// First byte of a KeyUpdate message (RFC 8446 §4: `key_update(24)`).
const KEY_UPDATE: u8 = 24;
/// RFC 5246 §6.2.3: "The length MUST NOT exceed 2^14 + 2048."
const MAX_CIPHERTEXT: usize = (1 << 14) + 2048;
/// A close_notify alert (RFC 8446 §6.1), whatever its level byte says.
const CLOSE_NOTIFY: u8 = 0;

/// Something that goes to the client in one place of its stream.
#[derive(Debug)]
enum Piece {
    Plain(BytesMut),
    Mark([u8; MARK_LEN]),
}

#[derive(Debug)]
struct Waiting {
    piece: Piece,
    /// Bytes of the TCP stream that are done with when this piece is taken.
    credit: usize,
}

/// How handing over ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Everything is with the client.
    Empty,
    /// The client's end is full.
    Blocked,
    /// The client does not read any more; what comes is thrown away.
    Gone,
}

/// A socket's receiving side from TCP on.
#[derive(Debug, Default)]
pub struct Intake {
    opener: Option<Opener>,
    /// Stream bytes that are not opened yet: the front of a record, or more while opening is stopped.
    raw: BytesMut,
    pieces: VecDeque<Waiting>,
    waiting: usize,
    /// Credit that belongs to no piece.
    free_credit: usize,
    /// Bytes of the stream that were credited before they came back by `TLS_RX`.
    credited: usize,
    /// The client is about to set `TLS_RX`: nothing is written to it.
    frozen: bool,
    /// The client is about to name a file, and takes what was delivered first: nothing is written to it.
    awaiting_sink: bool,
    /// Where bytes go in place of the client's end.
    sink: Option<Box<Sink>>,
    /// What the client gave back.
    returned: BytesMut,
    failed: Option<Error>,
    /// A KeyUpdate was delivered: nothing is opened before new keys are there.
    awaiting_keys: bool,
    /// Data records are announced like the others, so that the client knows where they end.
    announces: bool,
    /// An AF_KTLS socket reads here: it opens application data only, and leaves other records as they came.
    attached: bool,
    /// A record was left to the socket's owner: none is opened behind it before keys are set again.
    stopped: bool,
    /// A data record stands behind the one that was left.
    holding: bool,
    /// The first record under new keys of an AF_KTLS socket is kept sealed while it is tried: options come one by one, so the
    /// keys may not be whole yet.
    fresh: bool,
    close_notify: bool,
    gone: bool,
    records: u64,
    /// Stream bytes taken in so far.
    fed: u64,
    /// Stream offset of the next record.
    position: u64,
}

impl Intake {
    /// A receiver of plain bytes.
    pub fn new() -> Intake {
        Intake::default()
    }

    /// Records opened so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The keys in force.
    pub fn opener(&self) -> Option<&Opener> {
        self.opener.as_ref()
    }

    /// Why opening stopped for good.
    pub fn failed(&self) -> Option<&Error> {
        self.failed.as_ref()
    }

    /// Whether the stream may end here: on a TLS socket after close_notify and between two records.
    pub fn may_end(&self) -> bool {
        self.opener.is_none() || (self.close_notify && self.raw.is_empty())
    }

    /// Whether another slice of the stream is wanted.
    pub fn wants(&self) -> bool {
        let (most, held) = match &self.sink {
            Some(sink) => (sink::MAX_HELD, sink.held()),
            None => (MAX_WAITING, 0),
        };
        self.gone || (self.can_open() && self.waiting + held < most)
    }

    /// Bytes that have to come, at least, before the record that has begun can be opened.
    pub fn missing(&self) -> usize {
        if self.raw.is_empty() || !self.can_open() {
            return 0;
        }
        let header = self.raw.first_chunk::<HEADER_LEN>();
        let parsed = header.and_then(|header| self.opener.as_ref()?.parse_header(header).ok());
        let total = parsed.map_or(HEADER_LEN, |header| header.record_len());
        total.saturating_sub(self.raw.len())
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        let held = self.sink.as_ref().map_or(0, |sink| sink.held());
        self.waiting + held + self.raw.capacity() + self.returned.capacity()
    }

    /// Nothing waits for the client, and nothing that could be opened is left.
    pub fn is_idle(&self) -> bool {
        self.pieces.is_empty() && !self.frozen
    }

    /// Whether the client may be told that nothing more comes, as far as this side knows.
    pub fn may_finish(&self) -> bool {
        self.is_idle()
            && self.sink.is_none()
            && !self.awaiting_keys
            && !(self.attached && (self.holding || self.failed.is_some()))
    }

    /// Whether a record that failed ends the stream for its reader. An AF_KTLS socket may set other keys, or give it back.
    pub fn failure_is_final(&self) -> bool {
        self.failed.is_some() && !self.attached
    }

    fn can_open(&self) -> bool {
        !self.frozen && self.failed.is_none() && !self.awaiting_keys && !self.holding
    }

    /// Whether data records are announced from now on.
    pub fn announce_data(&mut self, on: bool) {
        self.announces = on;
    }

    /// `TLS_RX` is about to be set: from now on nothing is written to the client.
    pub fn freeze(&mut self) {
        if self.opener.is_none() {
            self.frozen = true;
        }
    }

    /// The client is about to name a sink: until it has, or gives up, nothing is written to it. A sink in use takes no more,
    /// and answers when what it has in hand is written.
    pub fn await_sink(&mut self) {
        self.awaiting_sink = true;
        if let Some(sink) = &mut self.sink {
            sink.close();
        }
    }

    /// Gives up [waiting for a sink](Self::await_sink).
    pub fn forgo_sink(&mut self) {
        self.awaiting_sink = false;
    }

    /// What comes next goes to a file. The wait for it ends, whatever is answered.
    ///
    /// # Errors
    /// `EINVAL` when it was not waited for, `EBUSY` when the sink before has not finished; what [`Sink::new`] says.
    pub fn set_sink(&mut self, request: SinkRequest) -> Result<(), Errno> {
        if !std::mem::take(&mut self.awaiting_sink) {
            return Err(Errno::INVAL);
        }
        if self.sink.is_some() {
            return Err(Errno::BUSY);
        }
        self.sink = Some(Box::new(Sink::new(request)?));
        Ok(())
    }

    /// Bytes that the client had received before it set `TLS_RX`.
    ///
    /// # Errors
    /// `EINVAL` when the socket is not frozen or that much never came, `EMSGSIZE` when it is more than can have been there.
    pub fn give_back(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if !self.frozen {
            return Err(Errno::INVAL);
        }
        if self.returned.len() + bytes.len() > 4 << 20 {
            return Err(Errno::MSGSIZE);
        }
        // What is kept here, raw or unread, was never the client's to return.
        let kept = self.returned.len() + self.waiting + self.raw.len();
        if (kept + bytes.len()) as u64 > self.fed {
            return Err(Errno::INVAL);
        }
        self.returned.extend_from_slice(bytes);
        Ok(())
    }

    /// The keys that open everything from here on; `None` thaws the socket as it was.
    ///
    /// # Errors
    /// What the record layer says of the keys.
    pub fn set_keys<E: ClientEnd>(
        &mut self,
        keys: Option<&CryptoInfo>,
        end: &mut E,
    ) -> Result<(), Error> {
        let was_plain = self.opener.is_none();
        let outcome = match (keys, &mut self.opener) {
            (Some(keys), opener) if self.attached => {
                Opener::new(keys).map(|new| *opener = Some(new))
            }
            (Some(keys), Some(opener)) => opener.rekey(keys).map(|()| self.awaiting_keys = false),
            (Some(keys), opener @ None) => Opener::new(keys).map(|new| *opener = Some(new)),
            (None, _) => Ok(()),
        };
        let returned = std::mem::take(&mut self.returned);
        self.frozen = false;
        if outcome.is_err() || keys.is_none() {
            if !returned.is_empty() {
                self.waiting += returned.len();
                self.pieces.push_front(Waiting {
                    piece: Piece::Plain(returned),
                    credit: 0,
                });
            }
            return outcome;
        }
        if self.attached {
            (self.failed, self.stopped, self.holding) = (None, false, false);
            self.fresh = true;
        }
        if was_plain && !(returned.is_empty() && self.pieces.is_empty()) {
            // In the order of the stream: what the client gave back, what waited for it, what came since.
            self.credited = returned.len();
            let mut stream = returned;
            let mut marks = VecDeque::new();
            for waiting in self.pieces.drain(..) {
                match waiting.piece {
                    Piece::Plain(bytes) => stream.extend_from_slice(&bytes),
                    // Left from an AF_KTLS socket before this one: its reader is gone.
                    Piece::Mark(_) if self.attached => self.free_credit += waiting.credit,
                    Piece::Mark(_) => marks.push_back(waiting),
                }
            }
            self.pieces = marks;
            self.waiting = 0;
            stream.extend_from_slice(&self.raw);
            self.raw.clear();
            self.position = self.fed - stream.len() as u64;
            self.fed = self.position;
            self.tell_keys(end);
            self.announce_keys();
            self.feed(stream, end);
        } else {
            self.position = self.fed - self.raw.len() as u64;
            self.tell_keys(end);
            self.announce_keys();
            self.feed(BytesMut::new(), end);
        }
        Ok(())
    }

    /// An AF_KTLS socket is attached.
    pub fn attach(&mut self) {
        self.attached = true;
    }

    /// The AF_KTLS socket gives the stream back: what is not opened goes on as it came, from the record with the number given.
    pub fn release(&mut self) -> Option<u64> {
        self.attached = false;
        (self.failed, self.stopped, self.holding) = (None, false, false);
        self.announces = false;
        let number = self.opener.take()?.sequence();
        self.push_mark(Mark::RxEnd);
        let raw = std::mem::take(&mut self.raw);
        self.position += raw.len() as u64;
        if !raw.is_empty() {
            self.push_plain(raw.len(), raw);
        }
        Some(number)
    }

    fn announce_keys(&mut self) {
        if self.attached {
            self.push_mark(Mark::RxKeys);
        }
    }

    fn tell_keys<E: ClientEnd>(&self, end: &mut E) {
        if let Some(opener) = &self.opener {
            end.observe(|| RecordEvent::OpensWith(self.position, opener.crypto_info()));
        }
    }

    /// Takes the next slice of the stream.
    pub fn feed<E: ClientEnd>(&mut self, mut slice: BytesMut, end: &mut E) {
        self.fed += slice.len() as u64;
        if self.gone {
            self.free_credit += slice.len();
            return;
        }
        if self.opener.is_none() && self.can_open() {
            if !slice.is_empty() {
                self.push_plain(slice.len(), slice);
            }
            return;
        }
        loop {
            if !self.can_open() {
                self.raw.extend_from_slice(&slice);
                return;
            }
            if self.raw.is_empty() {
                self.raw = std::mem::take(&mut slice);
            }
            let Some(total) = self.record_len(&mut slice) else {
                return;
            };
            if self.raw.len() < total {
                self.gather(total, &mut slice);
                if self.raw.len() < total {
                    return;
                }
            }
            if self.leaves() {
                let record = self.raw.split_to(total);
                self.leave(record);
                continue;
            }
            if self.stopped {
                self.holding = true;
                continue;
            }
            let record = self.raw.split_to(total);
            self.open(record, end);
        }
    }

    /// Length of the record at the front, or `None` when its header is not whole or is wrong.
    fn record_len(&mut self, slice: &mut BytesMut) -> Option<usize> {
        if self.raw.len() < HEADER_LEN {
            self.gather(HEADER_LEN, slice);
        }
        let header = *self.raw.first_chunk::<HEADER_LEN>()?;
        if let (true, [_, 3, _, high, low]) = (self.leaves(), header) {
            let len = usize::from(u16::from_be_bytes([high, low]));
            if len <= MAX_CIPHERTEXT {
                return Some(HEADER_LEN + len);
            }
        }
        let parsed = self.opener.as_ref()?.parse_header(&header);
        match parsed {
            Ok(header) => Some(header.record_len()),
            Err(error) => {
                self.fail(error);
                self.raw.extend_from_slice(slice);
                None
            }
        }
    }

    /// Whether the record at the front is another's than an AF_KTLS socket's.
    fn leaves(&self) -> bool {
        self.attached && self.raw.first() != Some(&ContentType::APPLICATION_DATA.0)
    }

    /// Leaves a record to the owner of the socket beneath.
    fn leave(&mut self, record: BytesMut) {
        self.stopped = true;
        self.position += record.len() as u64;
        let len = record.len() as u32; // a header and 2^14 + 2048 bytes at most
        self.push_mark(Mark::Raw { len });
        self.push_plain(record.len(), record);
    }

    /// Moves bytes of `slice` behind `raw` until it has `total`, in a buffer of its own.
    fn gather(&mut self, total: usize, slice: &mut BytesMut) {
        let missing = (total - self.raw.len()).min(slice.len());
        if self.raw.capacity() < total || missing > 0 {
            let mut whole = BytesMut::with_capacity(total);
            whole.extend_from_slice(&self.raw);
            self.raw = whole;
        } else if !self.raw.is_empty() && slice.is_empty() {
            // A record's front must not pin the device buffer that it lies in.
            self.raw = BytesMut::from(&self.raw[..]);
        }
        self.raw.extend_from_slice(&slice[..missing]);
        slice.advance(missing);
        if slice.is_empty() {
            *slice = BytesMut::new();
        }
    }

    fn open<E: ClientEnd>(&mut self, mut record: BytesMut, end: &mut E) {
        let credit = record.len();
        let range = self.position..self.position + credit as u64;
        self.position = range.end;
        let Some(opener) = &mut self.opener else {
            return;
        };
        let version = opener.version();
        if record.first() == Some(&ContentType::CHANGE_CIPHER_SPEC.0)
            && version == ProtocolVersion::Tls13
        {
            // RFC 8446 §5: "An implementation may receive an unencrypted record of type change_cipher_spec consisting of
            // the single byte value 0x01 [...] and MUST simply drop it".
            if record.get(HEADER_LEN..) == Some(&[1]) {
                self.free_credit += credit;
                return;
            }
        }
        let kept = self.fresh.then(|| record.clone());
        match opener.open_in_place(&mut record) {
            Err(error) => {
                if let Some(mut kept) = kept {
                    self.position -= credit as u64;
                    kept.extend_from_slice(&self.raw);
                    self.raw = kept;
                }
                self.fail(error);
            }
            Ok(opened) => {
                self.fresh = false;
                self.records += 1;
                record.truncate(opened.plaintext.end);
                record.advance(opened.plaintext.start);
                end.observe(|| {
                    let is_data = opened.content_type == ContentType::APPLICATION_DATA;
                    RecordEvent::Opened(range, if is_data { record.len() } else { 0 })
                });
                if opened.content_type == ContentType::APPLICATION_DATA {
                    if record.is_empty() {
                        self.free_credit += credit;
                    } else {
                        if self.announces {
                            self.announce(opened.content_type, record.len());
                        }
                        self.push_plain(credit, record);
                    }
                    return;
                }
                if opened.content_type == ContentType::ALERT && record.get(1) == Some(&CLOSE_NOTIFY)
                {
                    self.close_notify = true;
                }
                if version == ProtocolVersion::Tls13
                    && opened.content_type == ContentType::HANDSHAKE
                    && record.first() == Some(&KEY_UPDATE)
                {
                    self.awaiting_keys = true;
                }
                self.announce(opened.content_type, record.len());
                // The byte behind an empty record.
                record.resize(bytes_behind(record.len()), 0);
                self.push_plain(credit, record);
            }
        }
    }

    fn fail(&mut self, error: Error) {
        // reference/af-ktls.md: "record fails `EBADMSG`", whatever is wrong with it.
        let errno = if self.attached {
            Errno::BADMSG.raw_os_error()
        } else {
            error.errno()
        };
        self.push_mark(Mark::Error { errno });
        self.failed = Some(error);
    }

    /// Tells the client of the record whose bytes follow.
    fn announce(&mut self, content_type: ContentType, len: usize) {
        let mark = Mark::Control {
            content_type: content_type.0,
            len: len as u32,
        };
        self.push_mark(mark);
    }

    fn push_plain(&mut self, credit: usize, bytes: BytesMut) {
        self.waiting += bytes.len();
        self.pieces.push_back(Waiting {
            piece: Piece::Plain(bytes),
            credit,
        });
    }

    fn push_mark(&mut self, mark: Mark) {
        self.pieces.push_back(Waiting {
            piece: Piece::Mark(mark.encode()),
            credit: 0,
        });
    }

    /// Moves opened bytes to the sink. The number is how many bytes of the TCP stream are done with: the sink's memory is
    /// bounded by itself.
    fn pour(&mut self) -> usize {
        let mut credit = 0;
        let Some(sink) = &mut self.sink else {
            return 0;
        };
        while sink.room() > 0
            && let Some(first) = self.pieces.front_mut()
        {
            match &mut first.piece {
                Piece::Mark(mark) if announces_data(mark) => {}
                Piece::Mark(_) => {
                    sink.close();
                    break;
                }
                Piece::Plain(bytes) => {
                    let take = bytes.len().min(sink.room());
                    let rest = bytes.split_off(take);
                    self.waiting -= take;
                    sink.push(std::mem::replace(bytes, rest));
                    if !bytes.is_empty() {
                        break;
                    }
                }
            }
            credit += first.credit;
            self.pieces.pop_front();
        }
        credit
    }

    /// Gives the sink its turn: `over` when nothing more comes. True when it has just finished, and what is left is the client's.
    pub fn drive_sink(&mut self, now: Instant, over: bool) -> (Option<WriteJob>, bool) {
        let Some(sink) = &mut self.sink else {
            return (None, false);
        };
        if over && self.pieces.is_empty() {
            sink.close();
        }
        sink.caught_up();
        let job = sink.hand_over(now);
        let finished = sink.is_finished();
        if finished {
            self.end_sink();
        }
        (job, finished)
    }

    /// Whether bytes go to a file in place of the client's end.
    pub fn has_sink(&self) -> bool {
        self.sink.is_some()
    }

    /// When the sink wants its turn, whatever happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.sink.as_ref().and_then(|sink| sink.deadline())
    }

    /// A helper brings a batch back. One of a sink that is gone is nobody's.
    pub fn written(&mut self, written: Written) {
        if let Some(sink) = &mut self.sink {
            sink.written(written);
        }
    }

    /// Answers whoever waits for the sink; what it did not write is the client's to read.
    pub fn end_sink(&mut self) {
        let Some(sink) = self.sink.take() else {
            return;
        };
        if self.announces
            && let Some(Piece::Plain(rest)) = self.pieces.front().map(|first| &first.piece)
        {
            let len = rest.len();
            self.put_back_mark(len);
        }
        for bytes in sink.finish().into_iter().rev() {
            let len = bytes.len();
            self.waiting += len;
            self.pieces.push_front(Waiting {
                piece: Piece::Plain(bytes),
                credit: 0,
            });
            if self.announces {
                self.put_back_mark(len);
            }
        }
    }

    /// Announces the data record that is now the first again.
    fn put_back_mark(&mut self, len: usize) {
        let mark = Mark::Control {
            content_type: ContentType::APPLICATION_DATA.0,
            len: len as u32,
        };
        self.pieces.push_front(Waiting {
            piece: Piece::Mark(mark.encode()),
            credit: 0,
        });
    }

    /// Hands over what the client's end takes, or its sink. The number is how many bytes of the TCP stream are done with.
    pub fn flush<E: ClientEnd>(&mut self, end: &mut E) -> (Flushed, usize) {
        let mut credit = std::mem::take(&mut self.free_credit);
        credit += self.pour();
        let flushed = loop {
            if self.sink.is_some() {
                break if self.pieces.is_empty() {
                    Flushed::Empty
                } else {
                    Flushed::Blocked
                };
            }
            if self.frozen || self.awaiting_sink {
                break Flushed::Blocked;
            }
            let Some(first) = self.pieces.front_mut() else {
                break Flushed::Empty;
            };
            let len = match &first.piece {
                Piece::Plain(bytes) => bytes.len(),
                Piece::Mark(_) => 0,
            };
            let whole = match &mut first.piece {
                Piece::Plain(bytes) => end.deliver_buffer(bytes),
                Piece::Mark(_) => None,
            };
            if let Some(Ok(_)) = whole {
                self.waiting -= len;
                credit += first.credit;
                self.pieces.pop_front();
                continue;
            }
            let sent = match (&first.piece, whole) {
                (_, Some(refused)) => refused,
                (Piece::Mark(bytes), None) => end.deliver_mark(bytes),
                (Piece::Plain(_), None) => {
                    let mut slices = [IoSlice::new(&[]); MAX_GATHER];
                    let mut count = 0;
                    for (slice, waiting) in slices.iter_mut().zip(&self.pieces) {
                        let Piece::Plain(bytes) = &waiting.piece else {
                            break;
                        };
                        *slice = IoSlice::new(bytes);
                        count += 1;
                    }
                    end.deliver(&slices[..count])
                }
            };
            match sent {
                Ok(n) => credit += self.taken(n),
                Err(Errno::AGAIN) => break Flushed::Blocked,
                Err(_) => {
                    self.gone = true;
                    credit += self
                        .pieces
                        .drain(..)
                        .map(|waiting| waiting.credit)
                        .sum::<usize>();
                    credit += self.raw.len();
                    self.raw = BytesMut::new();
                    self.waiting = 0;
                    break Flushed::Gone;
                }
            }
        };
        let already = credit.min(self.credited);
        self.credited -= already;
        (flushed, credit - already)
    }

    /// The client's end took `n` bytes.
    fn taken(&mut self, mut n: usize) -> usize {
        let mut credit = 0;
        while let Some(first) = self.pieces.front_mut() {
            match &mut first.piece {
                Piece::Mark(_) if n >= MARK_LEN => n -= MARK_LEN,
                Piece::Plain(bytes) if n >= bytes.len() && n > 0 => {
                    n -= bytes.len();
                    self.waiting -= bytes.len();
                }
                Piece::Plain(bytes) => {
                    bytes.advance(n);
                    self.waiting -= n;
                    break;
                }
                Piece::Mark(_) => break,
            }
            credit += first.credit;
            self.pieces.pop_front();
            if n == 0 {
                break;
            }
        }
        credit
    }
}

/// Whether a mark only says where a data record begins.
fn announces_data(mark: &[u8; MARK_LEN]) -> bool {
    matches!(
        Mark::decode(mark),
        Ok(Mark::Control { content_type, .. }) if content_type == ContentType::APPLICATION_DATA.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gives_back_what_never_came() {
        let mut intake = Intake::new();
        assert_eq!(intake.give_back(b""), Err(Errno::INVAL), "not frozen");
        intake.freeze();
        assert_eq!(intake.give_back(b"made up"), Err(Errno::INVAL));
        intake.fed = 5;
        intake.waiting = 2;
        assert_eq!(intake.give_back(b"more"), Err(Errno::INVAL));
        assert_eq!(intake.give_back(b"som"), Ok(()));
        assert_eq!(intake.give_back(b"e"), Err(Errno::INVAL));
    }
}
