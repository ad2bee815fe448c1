//! Clients' ends as the daemon has them: Unix sockets, watched by mio, entered in the registry.
//!
//! A TCP client's end is a stream socket pair; a listener's a `SOCK_SEQPACKET` socket on which accepted descriptors arrive;
//! a UDP socket's one whose messages are datagrams with the peer's address in front. A Unix queue holds few messages and a
//! user may have only so many descriptors in flight, so the queue that honours `backlog` is here; it is refilled when the
//! client's end has room.

use super::helpers::Task;
use super::records::RecordsEnd;
use super::{Helpers, LISTENER, Port, RECORDS, TCP, ToShard, UDP, token};
use crate::address::{self, ACCEPTED_LEN, ADDRESS_LEN};
use crate::client_fd::{self, ClientFd};
use crate::device::{Device, Offload};
use crate::emit::job::Job;
use crate::emit::source::{self, PullError, Pulled};
use crate::engine::{AcceptEnd, ClientEnd, Datagram, DatagramEnd, Host, Listening};
use crate::handle::SocketId;
use crate::ingress::sink::WriteJob;
use crate::mark::MARK_LEN;
use crate::registry::{Registry, Transport};
use crate::socket_info::Reason;
use crate::tcp::FlowKey;
use bytes::BytesMut;
use mio::Interest;
use mio::unix::SourceFd;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketType, sendmsg,
};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::Arc;

const FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// Our side of a TCP socket's pair.
#[derive(Debug)]
pub(crate) struct StreamEnd {
    fd: ClientFd,
    /// Cookie of the client's side.
    cookie: u64,
    /// Bytes on a connecting socket's end that keep it unwritable, and mean nothing.
    filler: usize,
    /// A descriptor of no meaning, for marks.
    null: Arc<OwnedFd>,
}

impl ClientEnd for StreamEnd {
    fn waiting(&self) -> usize {
        source::waiting(&self.fd)
    }

    fn pull(&mut self, slices: &mut [IoSliceMut<'_>]) -> Result<Pulled, PullError> {
        source::pull(&self.fd, slices)
    }

    fn deliver(&mut self, slices: &[IoSlice<'_>]) -> Result<usize, Errno> {
        send(&self.fd, slices, &mut SendAncillaryBuffer::default())
    }

    fn deliver_mark(&mut self, mark: &[u8; MARK_LEN]) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [self.null.as_fd()];
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        debug_assert!(fits, "the space was made for one descriptor");
        match send(&self.fd, &[IoSlice::new(mark)], &mut ancillary) {
            // Too many descriptors on their way to this user's sockets: as good as a full end.
            Err(Errno::TOOMANYREFS) => Err(Errno::AGAIN),
            other => other,
        }
    }

    /// Takes the filler off, and not a byte more: the client may write as soon as three quarters are gone.
    fn connected(&mut self) {
        let mut scratch = [0; 16 * 1024];
        let mut left = std::mem::take(&mut self.filler);
        while left > 0 {
            let piece = left.min(scratch.len());
            match rustix::net::recv(&self.fd, &mut scratch[..piece], RecvFlags::DONTWAIT) {
                Ok((_, n)) if n > 0 => left -= n,
                Err(Errno::INTR) => {}
                // The client has closed; what it left unread goes with it.
                _ => break,
            }
        }
    }

    fn has_unread(&self) -> bool {
        // The kernel tells of the room before it has counted a message's last byte as gone; no message counts for so few.
        unread(&self.fd) > 64
    }

    fn finish(&mut self) {
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
    }
}

/// Lets the client know at once; the descriptor itself is closed in its own time.
fn hang_up(end: &ClientFd) {
    let _ = rustix::net::shutdown(end, Shutdown::Both);
}

/// What the other end of a Unix socket has not read yet, in bytes of the kernel's memory.
fn unread(fd: &ClientFd) -> i32 {
    const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: unix(7): "SIOCOUTQ" is answered with one int.
    let getter = unsafe { rustix::ioctl::Getter::<SIOCOUTQ, i32>::new() };
    // SAFETY: the request changes nothing, whatever the descriptor is.
    unsafe { rustix::ioctl::ioctl(fd, getter) }.unwrap_or(0)
}

pub(super) fn send(
    fd: &ClientFd,
    slices: &[IoSlice<'_>],
    ancillary: &mut SendAncillaryBuffer<'_, '_, '_>,
) -> Result<usize, Errno> {
    loop {
        match sendmsg(fd, slices, ancillary, FLAGS) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// What all shards share of one listening socket. When the last lets go of it, its port and its cookie are free.
#[derive(Debug)]
pub(crate) struct SharedListener {
    pub(crate) listening: Listening,
    pub(crate) cookie: u64,
    pub(crate) registry: Arc<Registry>,
}

impl Drop for SharedListener {
    fn drop(&mut self) {
        self.registry.free(Transport::Tcp, self.listening.local);
        self.registry.remove(self.cookie, None);
    }
}

/// A TCP socket's client side: the descriptor, and its cookie.
pub(crate) type StreamClient = (OwnedFd, u64);

/// A listener's end in one shard.
#[derive(Debug)]
pub(crate) struct ListenerEnd {
    pub(super) shared: Arc<SharedListener>,
    pub(super) end: ClientFd,
    /// Accepted connections whose descriptor the client's end has no room for yet.
    pub(super) waiting: VecDeque<Accepted>,
    /// The user has too many descriptors in flight: nothing will tell when that changes.
    pub(super) retry: bool,
}

#[derive(Debug)]
pub(crate) struct Accepted {
    header: [u8; ACCEPTED_LEN],
    client: OwnedFd,
}

impl AcceptEnd for ListenerEnd {
    type Client = StreamClient;

    fn listening(&self) -> &Listening {
        &self.shared.listening
    }

    fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn accepted(&mut self, local: SocketAddr, remote: SocketAddr, client: StreamClient) -> bool {
        let mut header = [0; ACCEPTED_LEN];
        header[..ADDRESS_LEN].copy_from_slice(&address::encode(local));
        header[ADDRESS_LEN..].copy_from_slice(&address::encode(remote));
        let (client, _) = client;
        self.waiting.push_back(Accepted { header, client });
        self.hand_over()
    }

    fn hand_over(&mut self) -> bool {
        self.retry = false;
        while let Some(first) = self.waiting.front() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors = [first.client.as_fd()];
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            debug_assert!(fits, "the space was made for one descriptor");
            match send(&self.end, &[IoSlice::new(&first.header)], &mut ancillary) {
                Ok(_) => {
                    self.waiting.pop_front();
                }
                Err(Errno::AGAIN) => return true,
                Err(Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => {
                    self.retry = true;
                    return true;
                }
                Err(_) => return false,
            }
        }
        true
    }

    fn must_retry(&self) -> bool {
        self.retry
    }
}

/// A UDP socket's end. It is made by the front door.
#[derive(Debug)]
pub(crate) struct DatagramsEnd {
    pub(crate) local: SocketAddr,
    pub(crate) cookie: u64,
    pub(crate) fd: ClientFd,
    pub(crate) registry: Arc<Registry>,
}

impl Drop for DatagramsEnd {
    fn drop(&mut self) {
        self.registry.free(Transport::Udp, self.local);
        self.registry.remove(self.cookie, None);
    }
}

impl DatagramEnd for DatagramsEnd {
    fn pull(&mut self, buffer: &mut [u8]) -> Datagram {
        loop {
            match rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Datagram::Closed,
                Ok((_, n)) => {
                    let Some(peer) = address::decode(&buffer[..n]) else {
                        return Datagram::Malformed;
                    };
                    let peer = (peer.port() != 0).then_some(peer);
                    return Datagram::To(peer, ADDRESS_LEN..n);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Datagram::Empty,
                Err(_) => return Datagram::Closed,
            }
        }
    }

    fn has_more(&self) -> bool {
        source::waiting(&self.fd) > 0
    }

    fn deliver(&mut self, from: SocketAddr, payload: &[u8]) -> bool {
        let from = address::encode(from);
        let message = [IoSlice::new(&from), IoSlice::new(payload)];
        send(&self.fd, &message, &mut SendAncillaryBuffer::default()).is_ok()
    }
}

/// What a shard's engine stands on.
pub(super) struct ShardHost {
    pub(super) device: Box<dyn Device + Send>,
    pub(super) watch: mio::Registry,
    pub(super) registry: Arc<Registry>,
    pub(super) helpers: Arc<Helpers>,
    pub(super) ports: Vec<Port>,
    pub(super) index: usize,
    pub(super) null: Arc<OwnedFd>,
}

impl ShardHost {
    /// Watches a client's end.
    pub(super) fn register(&self, fd: &ClientFd, kind: usize, index: usize) -> Result<(), Errno> {
        self.watch
            .register(
                &mut SourceFd(&fd.as_raw_fd()),
                token(kind, index),
                Interest::READABLE | Interest::WRITABLE,
            )
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOMEM))
    }

    /// Makes both ends of an association on the UDP socket at `index`.
    pub(super) fn record_pair(&self, index: usize) -> Result<(RecordsEnd, OwnedFd), Errno> {
        let (ours, client, _) = client_fd::pair(SocketType::SEQPACKET)?;
        self.register(&ours, RECORDS, index)?;
        Ok((RecordsEnd::new(ours), client))
    }

    pub(super) fn deregister(&self, fd: &ClientFd) {
        let _ = self.watch.deregister(&mut SourceFd(&fd.as_raw_fd()));
    }

    /// Asks again for readiness that came already: edge-triggered, it would not come by itself.
    pub(super) fn watch_again(&self, fd: &ClientFd, index: usize) {
        let _ = self.watch.reregister(
            &mut SourceFd(&fd.as_raw_fd()),
            token(UDP, index),
            Interest::READABLE | Interest::WRITABLE,
        );
    }
}

impl Host for ShardHost {
    type End = StreamEnd;
    type Client = StreamClient;
    type Listener = ListenerEnd;
    type Datagrams = DatagramsEnd;
    type Records = RecordsEnd;

    fn device(&mut self) -> &mut dyn Device {
        &mut *self.device
    }

    fn open(
        &mut self,
        index: usize,
        id: SocketId,
        uid: u32,
        _key: &FlowKey,
        connecting: bool,
    ) -> Result<(StreamEnd, StreamClient), Errno> {
        let (ours, client, cookie) = client_fd::pair(SocketType::STREAM)?;
        let filler = if connecting { fill(&client)? } else { 0 };
        self.registry.add(cookie, id, uid)?;
        if let Err(errno) = self.register(&ours, TCP, index) {
            self.registry.remove(cookie, None);
            return Err(errno);
        }
        let end = StreamEnd {
            fd: ours,
            cookie,
            filler,
            null: self.null.clone(),
        };
        Ok((end, (client, cookie)))
    }

    fn close(&mut self, end: StreamEnd, hung_up: bool, reason: Reason) {
        self.deregister(&end.fd);
        self.registry
            .remove(end.cookie, (!hung_up).then_some(reason));
        hang_up(&end.fd);
    }

    fn close_listener(&mut self, listener: ListenerEnd) {
        self.deregister(&listener.end);
        hang_up(&listener.end);
    }

    fn close_datagrams(&mut self, end: DatagramsEnd) {
        self.deregister(&end.fd);
        hang_up(&end.fd);
    }

    fn forward(&mut self, owner: usize, packet: BytesMut, offload: Offload) -> bool {
        self.ports[owner]
            .try_send(ToShard::Packet(packet, offload))
            .is_ok()
    }

    fn help(&mut self, uid: u32, socket: SocketId, job: Job) {
        self.helpers
            .submit(uid, socket, Task::Read(job), self.ports[self.index].clone());
    }

    fn write(&mut self, uid: u32, socket: SocketId, job: WriteJob) {
        self.helpers.submit(
            uid,
            socket,
            Task::Write(job),
            self.ports[self.index].clone(),
        );
    }
}

/// Fills a client's end, so that it polls as not writable until the connection stands. Gives the number of bytes.
fn fill(client: &OwnedFd) -> Result<usize, Errno> {
    let filler = [0; 32 * 1024];
    let mut filled = 0;
    loop {
        match rustix::net::send(client, &filler, FLAGS) {
            Ok(sent) => filled += sent,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(filled),
            Err(errno) => return Err(errno),
        }
    }
}

impl super::Shard {
    /// Watches a new listener's end, and lets the engine take its SYNs.
    pub(super) fn listen(&mut self, shared: Arc<SharedListener>, end: ClientFd) {
        let index = self.engine.next_listener();
        if let Err(errno) = self.engine.host.register(&end, LISTENER, index) {
            tracing::error!("a listener cannot be watched: {errno}");
            return;
        }
        self.engine.listen(ListenerEnd {
            shared,
            end,
            waiting: VecDeque::new(),
            retry: false,
        });
    }
}
