//! What an engine stands on: the device below it, and the clients' ends above it.
//!
//! The engine itself does no I/O and knows no descriptor. The daemon's shard gives it Unix sockets for ends, mio to hear
//! from them and threads that read files; the simulator gives it queues in memory and a virtual clock. Both are type
//! parameters, so the packet path has no indirect call that it did not have before.

use crate::device::{Device, Offload};
use crate::dtls::end::RecordEnd;
use crate::emit::job::Job;
use crate::emit::source::{PullError, Pulled};
use crate::handle::{SocketId, SocketOptions};
use crate::ingress::sink::WriteJob;
use crate::mark::MARK_LEN;
use crate::socket_info::Reason;
use crate::tcp::{FlowKey, Transmit};
use bytes::BytesMut;
use rustix::io::Errno;
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::ops::Range;
use uktls_record::crypto_info::CryptoInfo;
use uktls_record::suite::NONCE_LEN;

/// The client's end of a TCP socket, as the engine holds it. No call blocks.
pub trait ClientEnd {
    /// Bytes that wait to be pulled, marks included; as good a guess as there is.
    fn waiting(&self) -> usize;

    /// Takes plain bytes from the client into the slices, up to a mark or an end.
    ///
    /// # Errors
    /// [`PullError`] when the client does not speak the protocol; its socket is to be reset.
    fn pull(&mut self, slices: &mut [IoSliceMut<'_>]) -> Result<Pulled, PullError>;

    /// A memory range that [`pull`](Self::pull) brought is sealed to its end.
    fn memory_sealed(&mut self, _len: usize) {}

    /// Hands plain bytes to the client, and gives how many it took.
    ///
    /// # Errors
    /// `EAGAIN` when there is no room, anything else when the client does not read any more.
    fn deliver(&mut self, slices: &[IoSlice<'_>]) -> Result<usize, Errno>;

    /// Hands a whole buffer to a client that can have it without a copy: as [`deliver`](Self::deliver), but all of it or
    /// nothing. `None`: it is to be delivered by a copy.
    fn deliver_buffer(&mut self, _bytes: &mut BytesMut) -> Option<Result<usize, Errno>> {
        None
    }

    /// Hands a mark to the client, or what is left of one.
    ///
    /// # Errors
    /// As [`deliver`](Self::deliver).
    fn deliver_mark(&mut self, mark: &[u8; MARK_LEN]) -> Result<usize, Errno>;

    /// The connection stands: the client may write.
    fn connected(&mut self);

    /// Whether the client has not read yet all that was delivered. When it has, the engine is told as of new room.
    fn has_unread(&self) -> bool {
        false
    }

    /// Nothing more will be delivered: end of file, once the client has read what is there.
    fn finish(&mut self);

    /// What an observer of the record layer is told; nobody, unless the end says otherwise.
    fn observe(&mut self, _event: impl FnOnce() -> RecordEvent) {}
}

/// What happened in a socket's record layer. Offsets are of the TCP stream, from its first byte.
#[derive(Debug)]
pub enum RecordEvent {
    /// These keys seal everything from this offset on.
    SealsWith(u64, CryptoInfo),
    /// A record was sealed and has this range.
    Sealed(Range<u64>, [u8; NONCE_LEN]),
    /// These keys open everything from this offset on.
    OpensWith(u64, CryptoInfo),
    /// The record in this range was opened, and holds so many bytes of application data.
    Opened(Range<u64>, usize),
}

/// What a listener was asked to be.
#[derive(Debug, Clone)]
pub(crate) struct Listening {
    pub(crate) id: SocketId,
    pub(crate) uid: u32,
    pub(crate) local: SocketAddr,
    pub(crate) backlog: usize,
    pub(crate) options: SocketOptions,
}

/// The client's end of a listener.
pub(crate) trait AcceptEnd {
    /// What an accepted connection's client gets.
    type Client;

    /// What was asked for.
    fn listening(&self) -> &Listening;

    /// Connections that the client has not been given yet.
    fn waiting(&self) -> usize;

    /// An accepted connection, for the client. False when the client is gone.
    fn accepted(&mut self, local: SocketAddr, remote: SocketAddr, client: Self::Client) -> bool;

    /// Hands over what waits. False when the client is gone.
    fn hand_over(&mut self) -> bool;

    /// Nothing will tell when [`hand_over`](Self::hand_over) gets further: it is to be tried again.
    fn must_retry(&self) -> bool;
}

/// What a UDP socket's client wants sent, or why there is nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Datagram {
    /// The payload's place in the buffer, and the peer unless it is the connected one.
    To(Option<SocketAddr>, Range<usize>),
    /// A message that is no datagram.
    Malformed,
    /// Nothing waits.
    Empty,
    /// The client is gone.
    Closed,
}

/// The client's end of a UDP socket.
pub(crate) trait DatagramEnd {
    /// Takes the next datagram into `buffer`.
    fn pull(&mut self, buffer: &mut [u8]) -> Datagram;

    /// Whether more waits to be pulled.
    fn has_more(&self) -> bool;

    /// Hands a datagram to the client. False when it was dropped for want of room.
    fn deliver(&mut self, from: SocketAddr, payload: &[u8]) -> bool;
}

/// What surrounds an engine.
pub(crate) trait Host {
    /// TCP sockets' ends.
    type End: ClientEnd;
    /// What the client gets for a TCP socket.
    type Client;
    /// Listeners' ends.
    type Listener: AcceptEnd<Client = Self::Client>;
    /// UDP sockets' ends.
    type Datagrams: DatagramEnd;
    /// DTLS associations' ends.
    type Records: RecordEnd;

    /// Where packets go.
    fn device(&mut self) -> &mut dyn Device;

    /// A segment is about to be handed to the device.
    fn about_to_send(&mut self, _segment: &Transmit) {}

    /// Makes both ends of the TCP socket `id`, which will be number `index` in the engine. A `connecting` one is not
    /// writable before [`ClientEnd::connected`].
    ///
    /// # Errors
    /// When a limit is reached.
    fn open(
        &mut self,
        index: usize,
        id: SocketId,
        uid: u32,
        key: &FlowKey,
        connecting: bool,
    ) -> Result<(Self::End, Self::Client), Errno>;

    /// A TCP socket is over. `hung_up`: its client closed first, and nobody will ask why.
    fn close(&mut self, end: Self::End, hung_up: bool, reason: Reason);

    /// A listener is over.
    fn close_listener(&mut self, listener: Self::Listener);

    /// A UDP socket is over.
    fn close_datagrams(&mut self, end: Self::Datagrams);

    /// A checked packet that belongs to the engine with number `owner`. False when it was lost on the way.
    fn forward(&mut self, owner: usize, packet: BytesMut, offload: Offload) -> bool;

    /// Work for a thread that may wait for a disk; the answer is [`super::Engine::on_helped`].
    fn help(&mut self, uid: u32, socket: SocketId, job: Job);

    /// Received bytes for a thread that may wait for a disk; the answer is [`super::Engine::on_written`].
    fn write(&mut self, uid: u32, socket: SocketId, job: WriteJob);
}
