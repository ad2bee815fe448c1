//! What a simulated host's [engine](crate::engine) stands on: queues in memory for clients' ends, and a network card that
//! cuts super-segments into packets.
//!
//! A client's end holds what the program wrote and the stack has not pulled, and what the stack delivered and the program
//! has not read; both are bounded, as a Unix socket's are in the daemon. A program that does something to its end puts a
//! *touch* on the world's list, which the world hands to the engine before time goes on.

use super::association::AssociationEnd;
use super::invariant::Cause;
use super::watch::Watch;
use crate::device::{Capabilities, CsumRequest, Device, MAX_PACKET, Offload, checksum, segment};
use crate::emit::job::Job;
use crate::emit::source::{PullError, Pulled, Then};
use crate::engine::{AcceptEnd, ClientEnd, Datagram, DatagramEnd, Host, Listening, RecordEvent};
use crate::handle::SocketId;
use crate::ingress::sink::WriteJob;
use crate::mark::{MARK_LEN, Mark};
use crate::registry::{Registry, Transport};
use crate::socket_info::Reason;
use crate::tcp::{FlowKey, Transmit};
use bytes::{Buf, Bytes, BytesMut};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Waker;

/// Bytes that may wait in each direction of a stream's end: what a Unix socket holds with Linux's defaults, about.
pub(super) const STREAM_ROOM: usize = 192 * 1024;
/// Bytes of datagrams that may wait for a program.
const DATAGRAM_ROOM: usize = 192 * 1024;
/// Bytes from which on a buffer is handed over whole and not copied.
const WHOLE: usize = 4096;
/// Bytes that one piece of a program's writes may gather.
const PIECE: usize = 64 * 1024;

/// Something a program did to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touch {
    /// Wrote, read, shut or (`hung_up`) dropped a stream.
    Stream { id: SocketId, hung_up: bool },
    /// Dropped a listener.
    ListenerGone(usize),
    /// Sent on a UDP socket.
    Datagrams(usize),
    /// Dropped a UDP socket.
    DatagramsGone(usize),
    /// Sent on, or dropped, the association of a UDP socket.
    Records(usize),
}

/// What programs did since the world looked last, with the host and its incarnation.
#[derive(Debug, Default)]
pub(super) struct Touches(RefCell<VecDeque<(Place, Touch)>>);

/// A host in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: usize,
    pub(super) incarnation: u32,
}

impl Touches {
    pub(super) fn push(&self, place: Place, touch: Touch) {
        self.0.borrow_mut().push_back((place, touch));
    }

    pub(super) fn pop(&self) -> Option<(Place, Touch)> {
        self.0.borrow_mut().pop_front()
    }
}

/// Something on its way from a program to the stack.
#[derive(Debug)]
pub(super) enum Outgoing {
    Plain(BytesMut),
    Mark(Mark),
    Memory(Bytes),
}

/// Something on its way from the stack to a program.
#[derive(Debug)]
pub(super) enum Incoming {
    Plain(BytesMut),
    Mark(Mark),
}

/// Both sides' view of one TCP socket.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) place: Place,
    pub(super) id: SocketId,
    pub(super) flow: FlowKey,
    touches: Rc<Touches>,
    pub(super) watch: Rc<Watch>,
    /// A touch is on the list already.
    touched: bool,
    pub(super) connected: bool,
    pub(super) outgoing: VecDeque<Outgoing>,
    pub(super) outgoing_bytes: usize,
    /// The program writes nothing more.
    pub(super) shut: bool,
    /// The program dropped its end.
    dropped: bool,
    pub(super) incoming: VecDeque<Incoming>,
    pub(super) incoming_bytes: usize,
    /// The stack found the program's side full.
    blocked: bool,
    /// The stack wants to know when everything is read.
    awaited: bool,
    /// Nothing more comes.
    pub(super) finished: bool,
    /// The socket is over.
    pub(super) closed: Option<Reason>,
    /// Memory ranges handed over, and those that are sealed.
    pub(super) ranges: u64,
    pub(super) sealed_ranges: u64,
    /// Keys were set, by direction.
    pub(super) tls_tx: bool,
    pub(super) tls_rx: bool,
    /// A control record that is being read: its type, and its bytes left.
    pub(super) control: Option<(u8, usize)>,
    /// Receiving stopped with this error, for good.
    pub(super) failed: Option<Errno>,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

/// A program's handle on a TCP socket.
pub(super) type SharedStream = Rc<RefCell<Stream>>;

pub(super) fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Stream {
    /// Lets the engine look at this socket.
    pub(super) fn touch(&mut self) {
        if !self.touched && self.closed.is_none() {
            self.touched = true;
            let touch = Touch::Stream {
                id: self.id,
                hung_up: self.dropped,
            };
            self.touches.push(self.place, touch);
        }
    }

    /// Room for what the program writes.
    pub(super) fn write_room(&self) -> usize {
        STREAM_ROOM.saturating_sub(self.outgoing_bytes)
    }

    /// Takes bytes that the program writes, all of them.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.outgoing_bytes += bytes.len();
        match self.outgoing.back_mut() {
            Some(Outgoing::Plain(last)) if last.len() + bytes.len() <= PIECE => {
                last.extend_from_slice(bytes);
            }
            _ => self
                .outgoing
                .push_back(Outgoing::Plain(BytesMut::from(bytes))),
        }
    }

    /// `n` bytes were read.
    pub(super) fn took(&mut self, n: usize) {
        self.incoming_bytes -= n;
        if self.blocked && self.incoming_bytes <= STREAM_ROOM / 2 {
            self.blocked = false;
            self.touch();
        }
        if self.awaited && self.incoming.is_empty() {
            self.awaited = false;
            self.touch();
        }
    }

    /// The program lets go of the socket.
    pub(super) fn drop_end(&mut self) {
        self.dropped = true;
        self.touched = false;
        self.touch();
    }

    /// The host crashed, or the run is over.
    pub(super) fn kill(&mut self) {
        self.closed.get_or_insert(Reason::Aborted);
        wake(&mut self.reader);
        wake(&mut self.writer);
    }
}

/// The stack's side of a TCP socket's end.
#[derive(Debug)]
pub(super) struct StreamEnd(SharedStream);

impl ClientEnd for StreamEnd {
    fn waiting(&self) -> usize {
        self.0.borrow().outgoing_bytes
    }

    fn pull(&mut self, slices: &mut [IoSliceMut<'_>]) -> Result<Pulled, PullError> {
        let mut stream = self.0.borrow_mut();
        let stream = &mut *stream;
        let mut plain = 0;
        let mut slices = slices.iter_mut();
        let mut slice: &mut [u8] = slices.next().map_or(&mut [], |slice| &mut slice[..]);
        let then = loop {
            while slice.is_empty() {
                match slices.next() {
                    Some(next) => slice = &mut next[..],
                    None => break,
                }
            }
            match stream.outgoing.front_mut() {
                Some(Outgoing::Plain(bytes)) => {
                    if slice.is_empty() {
                        break Then::More;
                    }
                    let n = slice.len().min(bytes.len());
                    bytes.copy_to_slice(&mut slice[..n]);
                    slice = &mut std::mem::take(&mut slice)[n..];
                    plain += n;
                    stream.outgoing_bytes -= n;
                    if bytes.is_empty() {
                        stream.outgoing.pop_front();
                    }
                }
                Some(Outgoing::Mark(mark)) => {
                    let mark = *mark;
                    stream.outgoing.pop_front();
                    break Then::Mark(mark, Vec::new());
                }
                Some(Outgoing::Memory(_)) => {
                    if let Some(Outgoing::Memory(bytes)) = stream.outgoing.pop_front() {
                        break Then::Memory(bytes);
                    }
                }
                // Linux tells a peer that closed with unread bytes from one that closed.
                None if stream.dropped && stream.incoming_bytes > 0 => break Then::Reset,
                None if stream.dropped || stream.shut => break Then::End,
                None => break Then::Drained,
            }
        };
        if plain > 0 && stream.write_room() >= STREAM_ROOM / 4 {
            wake(&mut stream.writer);
        }
        Ok(Pulled { plain, then })
    }

    fn memory_sealed(&mut self, _len: usize) {
        let mut stream = self.0.borrow_mut();
        stream.sealed_ranges += 1;
        wake(&mut stream.writer);
    }

    fn deliver(&mut self, slices: &[IoSlice<'_>]) -> Result<usize, Errno> {
        let mut stream = self.0.borrow_mut();
        let stream = &mut *stream;
        if stream.dropped {
            return Err(Errno::PIPE);
        }
        let mut room = STREAM_ROOM.saturating_sub(stream.incoming_bytes);
        if room == 0 {
            stream.blocked = true;
            return Err(Errno::AGAIN);
        }
        let mut taken = 0;
        for slice in slices {
            let n = slice.len().min(room);
            match stream.incoming.back_mut() {
                Some(Incoming::Plain(last)) if last.len() + n <= PIECE => {
                    last.extend_from_slice(&slice[..n]);
                }
                _ => {
                    let mut piece = BytesMut::with_capacity(n.max(PIECE / 4));
                    piece.extend_from_slice(&slice[..n]);
                    stream.incoming.push_back(Incoming::Plain(piece));
                }
            }
            taken += n;
            room -= n;
        }
        stream.incoming_bytes += taken;
        wake(&mut stream.reader);
        Ok(taken)
    }

    fn deliver_buffer(&mut self, bytes: &mut BytesMut) -> Option<Result<usize, Errno>> {
        if bytes.len() < WHOLE {
            return None;
        }
        let mut stream = self.0.borrow_mut();
        if stream.dropped {
            return Some(Err(Errno::PIPE));
        }
        if stream.incoming_bytes >= STREAM_ROOM {
            stream.blocked = true;
            return Some(Err(Errno::AGAIN));
        }
        let n = bytes.len();
        stream.incoming_bytes += n;
        stream
            .incoming
            .push_back(Incoming::Plain(std::mem::take(bytes)));
        wake(&mut stream.reader);
        Some(Ok(n))
    }

    fn deliver_mark(&mut self, mark: &[u8; MARK_LEN]) -> Result<usize, Errno> {
        let mut stream = self.0.borrow_mut();
        if stream.dropped {
            return Err(Errno::PIPE);
        }
        let mark = Mark::decode(mark).map_err(|_| Errno::PROTO)?;
        stream.incoming.push_back(Incoming::Mark(mark));
        wake(&mut stream.reader);
        Ok(MARK_LEN)
    }

    fn connected(&mut self) {
        let mut stream = self.0.borrow_mut();
        stream.connected = true;
        wake(&mut stream.writer);
    }

    fn has_unread(&self) -> bool {
        let mut stream = self.0.borrow_mut();
        stream.awaited = !stream.incoming.is_empty();
        stream.awaited
    }

    fn finish(&mut self) {
        let mut stream = self.0.borrow_mut();
        stream.finished = true;
        wake(&mut stream.reader);
    }

    fn observe(&mut self, event: impl FnOnce() -> RecordEvent) {
        let stream = self.0.borrow();
        stream.watch.record(&stream.flow, event());
    }
}

/// Both sides' view of one listener.
#[derive(Debug)]
pub(super) struct Backlog {
    pub(super) accepted: VecDeque<(SocketAddr, SocketAddr, SharedStream)>,
    pub(super) acceptor: Option<Waker>,
    pub(super) dropped: bool,
}

/// The stack's side of a listener.
#[derive(Debug)]
pub(super) struct ListenerEnd {
    pub(super) listening: Listening,
    pub(super) backlog: Rc<RefCell<Backlog>>,
}

impl AcceptEnd for ListenerEnd {
    type Client = SharedStream;

    fn listening(&self) -> &Listening {
        &self.listening
    }

    fn waiting(&self) -> usize {
        self.backlog.borrow().accepted.len()
    }

    fn accepted(&mut self, local: SocketAddr, remote: SocketAddr, client: SharedStream) -> bool {
        let mut backlog = self.backlog.borrow_mut();
        backlog.accepted.push_back((local, remote, client));
        wake(&mut backlog.acceptor);
        !backlog.dropped
    }

    fn hand_over(&mut self) -> bool {
        !self.backlog.borrow().dropped
    }

    fn must_retry(&self) -> bool {
        false
    }
}

/// Both sides' view of one UDP socket.
#[derive(Debug)]
pub(super) struct Mailbox {
    pub(super) outgoing: VecDeque<(Option<SocketAddr>, Bytes)>,
    pub(super) incoming: VecDeque<(SocketAddr, Bytes)>,
    pub(super) incoming_bytes: usize,
    pub(super) reader: Option<Waker>,
}

/// The stack's side of a UDP socket.
#[derive(Debug)]
pub(super) struct DatagramsEnd {
    pub(super) local: SocketAddr,
    pub(super) mailbox: Rc<RefCell<Mailbox>>,
}

impl DatagramEnd for DatagramsEnd {
    fn pull(&mut self, buffer: &mut [u8]) -> Datagram {
        match self.mailbox.borrow_mut().outgoing.pop_front() {
            Some((to, payload)) if payload.len() <= buffer.len() => {
                buffer[..payload.len()].copy_from_slice(&payload);
                Datagram::To(to, 0..payload.len())
            }
            Some(_) => Datagram::Malformed,
            None => Datagram::Empty,
        }
    }

    fn has_more(&self) -> bool {
        !self.mailbox.borrow().outgoing.is_empty()
    }

    fn deliver(&mut self, from: SocketAddr, payload: &[u8]) -> bool {
        let mut mailbox = self.mailbox.borrow_mut();
        // An empty datagram takes room too.
        let size = payload.len().max(64);
        if mailbox.incoming_bytes + size > DATAGRAM_ROOM {
            return false;
        }
        mailbox.incoming_bytes += size;
        mailbox
            .incoming
            .push_back((from, Bytes::copy_from_slice(payload)));
        wake(&mut mailbox.reader);
        true
    }
}

/// A packet on its way.
///
/// A TCP checksum stays partial until somebody changes the packet or wants to see it: a receiver need not verify what nobody
/// touched.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) bytes: BytesMut,
    /// The checksum that is to be completed.
    partial: Option<CsumRequest>,
    /// Somebody changed it since it was sent, so its checksum has to be looked at.
    pub(super) touched: bool,
}

impl Frame {
    /// A packet with all its checksums.
    pub(super) fn complete(bytes: BytesMut) -> Frame {
        Frame {
            bytes,
            partial: None,
            touched: false,
        }
    }

    /// A packet that no stack of ours made: its checksums have to be looked at.
    pub(super) fn foreign(bytes: &[u8]) -> Frame {
        Frame {
            touched: true,
            ..Frame::complete(BytesMut::from(bytes))
        }
    }

    /// A piece of this packet, which must not be verified less than it.
    pub(super) fn like(&self, bytes: BytesMut) -> Frame {
        Frame {
            bytes,
            partial: None,
            touched: self.touched,
        }
    }

    /// Somebody is about to change it, or to look at its checksum.
    pub(super) fn finish(&mut self) {
        if let Some(request) = self.partial.take() {
            // The request was made for this packet, so it points inside.
            let _ = checksum::complete(&mut self.bytes, request);
        }
    }
}

impl super::damage::Packet for Frame {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.finish();
        self.touched = true;
        &mut self.bytes
    }

    fn truncate(&mut self, len: usize) {
        self.finish();
        self.touched = true;
        self.bytes.truncate(len);
    }

    fn duplicate(&self) -> Frame {
        Frame {
            bytes: BytesMut::from(&self.bytes[..]),
            ..*self
        }
    }
}

/// A host's network card. It takes super-segments and cuts them as hardware would; what it made waits in `outbox` for the
/// world.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) mtu: usize,
    pub(super) outbox: Vec<(Frame, Cause)>,
    /// Why the next packet is sent.
    cause: Cause,
}

impl Card {
    pub(super) fn new(mtu: usize) -> Card {
        Card {
            mtu,
            outbox: Vec::new(),
            cause: Cause::First,
        }
    }
}

impl Device for Card {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mtu: self.mtu,
            tso: true,
            uso: false,
            checksum: true,
            max_packet: MAX_PACKET,
        }
    }

    fn send(
        &mut self,
        offload: &Offload,
        headers: &[u8],
        payload: &[IoSlice<'_>],
    ) -> io::Result<()> {
        let cause = std::mem::take(&mut self.cause);
        let partial = offload.needs_csum;
        let mut put = |bytes| {
            let frame = Frame {
                bytes,
                partial,
                touched: false,
            };
            self.outbox.push((frame, cause));
        };
        if offload.gso.is_some() {
            segment::cut_partial(headers, payload, offload, put)?;
            return Ok(());
        }
        let len = headers.len() + payload.iter().map(|slice| slice.len()).sum::<usize>();
        let mut bytes = BytesMut::with_capacity(len);
        bytes.extend_from_slice(headers);
        for slice in payload {
            bytes.extend_from_slice(slice);
        }
        put(bytes);
        Ok(())
    }

    fn receive(&mut self, _packet: &mut [u8]) -> io::Result<(usize, Offload)> {
        // Packets are handed to the engine by the world.
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What a simulated host's engine stands on.
pub(super) struct SimHost {
    pub(super) place: Place,
    pub(super) card: Card,
    touches: Rc<Touches>,
    watch: Rc<Watch>,
    pub(super) registry: Registry,
    /// Streams that live, so that a crash can tell their programs.
    pub(super) streams: slab::Slab<SharedStream>,
    /// Where in `streams` each engine's socket is.
    slots: Vec<Option<usize>>,
}

impl SimHost {
    pub(super) fn new(place: Place, mtu: usize, touches: Rc<Touches>, watch: Rc<Watch>) -> SimHost {
        SimHost {
            place,
            card: Card::new(mtu),
            touches,
            watch,
            registry: Registry::new(usize::MAX, usize::MAX),
            streams: slab::Slab::new(),
            slots: Vec::new(),
        }
    }
}

impl SimHost {
    /// The engine is about to look at this socket: the next touch is news again.
    pub(super) fn untouch(&self, id: SocketId) {
        let index = (id.0 & 0xffff_ffff) as usize;
        if let Some(&Some(slot)) = self.slots.get(index) {
            self.streams[slot].borrow_mut().touched = false;
        }
    }
}

impl Host for SimHost {
    type End = StreamEnd;
    type Client = SharedStream;
    type Listener = ListenerEnd;
    type Datagrams = DatagramsEnd;
    type Records = AssociationEnd;

    fn device(&mut self) -> &mut dyn Device {
        &mut self.card
    }

    fn about_to_send(&mut self, segment: &Transmit) {
        self.card.cause = segment.cause;
    }

    fn open(
        &mut self,
        index: usize,
        id: SocketId,
        _uid: u32,
        key: &FlowKey,
        connecting: bool,
    ) -> Result<(StreamEnd, SharedStream), Errno> {
        let stream = Rc::new(RefCell::new(Stream {
            place: self.place,
            id,
            flow: *key,
            touches: self.touches.clone(),
            watch: self.watch.clone(),
            touched: false,
            connected: !connecting,
            outgoing: VecDeque::new(),
            outgoing_bytes: 0,
            shut: false,
            dropped: false,
            incoming: VecDeque::new(),
            incoming_bytes: 0,
            blocked: false,
            awaited: false,
            finished: false,
            closed: None,
            ranges: 0,
            sealed_ranges: 0,
            tls_tx: false,
            tls_rx: false,
            control: None,
            failed: None,
            reader: None,
            writer: None,
        }));
        if self.slots.len() <= index {
            self.slots.resize(index + 1, None);
        }
        self.slots[index] = Some(self.streams.insert(stream.clone()));
        Ok((StreamEnd(stream.clone()), stream))
    }

    fn close(&mut self, end: StreamEnd, _hung_up: bool, reason: Reason) {
        let mut stream = end.0.borrow_mut();
        stream.closed = Some(reason);
        wake(&mut stream.reader);
        wake(&mut stream.writer);
        let index = (stream.id.0 & 0xffff_ffff) as usize;
        drop(stream);
        if let Some(slot) = self.slots.get_mut(index).and_then(Option::take) {
            self.streams.try_remove(slot);
        }
    }

    fn close_listener(&mut self, listener: ListenerEnd) {
        self.registry.free(Transport::Tcp, listener.listening.local);
        // Accepted and never fetched: their clients' ends go, and the engine sees that.
        let waiting = std::mem::take(&mut listener.backlog.borrow_mut().accepted);
        for (_, _, stream) in waiting {
            stream.borrow_mut().drop_end();
        }
    }

    fn close_datagrams(&mut self, end: DatagramsEnd) {
        self.registry.free(Transport::Udp, end.local);
    }

    fn forward(&mut self, _owner: usize, _packet: BytesMut, _offload: Offload) -> bool {
        unreachable!("a simulated host has one engine, which owns every flow")
    }

    fn help(&mut self, _uid: u32, _socket: SocketId, _job: Job) {
        unreachable!("a simulated host sends from memory: no file has to be waited for")
    }

    fn write(&mut self, _uid: u32, _socket: SocketId, _job: WriteJob) {
        unreachable!("a simulated host receives to memory: it names no file")
    }
}
