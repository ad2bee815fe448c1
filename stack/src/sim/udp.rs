//! UDP for host programs.

use super::executor::Waiting;
use super::host::{DatagramsEnd, Mailbox, Place, Touch};
use super::net::ToAddress;
use super::tcp::{check_local, errno, here, host_down};
use super::world::World;
use crate::engine::UdpSocket as EngineSocket;
use crate::handle::{SocketId, SocketOp, SocketReply};
use crate::registry::Transport;
use bytes::Bytes;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;

/// Largest payload over IPv4.
const MAX_PAYLOAD: usize = 65_507;

/// A UDP socket on the calling task's host. Datagrams larger than the MTU go in fragments, unless it is told otherwise.
///
/// DTLS keys go on a [`KtlsSocket`](super::KtlsSocket) over it.
pub struct UdpSocket {
    pub(super) bound: Rc<Bound>,
}

/// A bound socket; what is laid over it keeps it alive.
pub(super) struct Bound {
    pub(super) world: Rc<World>,
    pub(super) place: Place,
    /// Its number in the engine.
    pub(super) index: usize,
    id: SocketId,
    pub(super) local: SocketAddr,
    pub(super) remote: Cell<Option<SocketAddr>>,
    dont_fragment: Cell<bool>,
    mailbox: Rc<RefCell<Mailbox>>,
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket")
            .field("local", &self.bound.local)
            .field("remote", &self.bound.remote.get())
            .finish_non_exhaustive()
    }
}

impl Bound {
    pub(super) fn alive(&self) -> io::Result<()> {
        if self.world.place(self.place.node) == self.place {
            Ok(())
        } else {
            Err(host_down())
        }
    }

    /// A request that acts on the socket.
    pub(super) fn act(&self, op: SocketOp) -> io::Result<SocketReply> {
        self.alive()?;
        self.world
            .with_engine(self.place.node, |engine, now| engine.act(now, self.id, op))
            .unwrap_or(Err(Errno::NETDOWN))
            .map_err(errno)
    }

    fn path_mtu(&self) -> io::Result<usize> {
        match self.act(SocketOp::PathMtu)? {
            SocketReply::PathMtu(mtu) => Ok(mtu),
            _ => Err(errno(Errno::PROTO)),
        }
    }

    /// What was delivered and not read.
    pub(super) fn drain(&self) -> VecDeque<(SocketAddr, Bytes)> {
        let mut mailbox = self.mailbox.borrow_mut();
        mailbox.incoming_bytes = 0;
        std::mem::take(&mut mailbox.incoming)
    }

    fn put(&self, to: Option<SocketAddr>, payload: &[u8]) -> io::Result<usize> {
        self.alive()?;
        let most = if self.dont_fragment.get() {
            let headers = if self.local.is_ipv4() { 28 } else { 48 };
            self.path_mtu()?.saturating_sub(headers)
        } else {
            MAX_PAYLOAD
        };
        if payload.len() > most {
            return Err(errno(Errno::MSGSIZE));
        }
        let mut mailbox = self.mailbox.borrow_mut();
        if mailbox.outgoing.is_empty() {
            self.world
                .touches()
                .push(self.place, Touch::Datagrams(self.index));
        }
        mailbox
            .outgoing
            .push_back((to, Bytes::copy_from_slice(payload)));
        Ok(payload.len())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.world
            .touches()
            .push(self.place, Touch::DatagramsGone(self.index));
    }
}

impl UdpSocket {
    /// Binds; port 0 takes a free one.
    ///
    /// # Errors
    /// `EADDRINUSE`, `EADDRNOTAVAIL`, or `EINVAL` for a name that nobody has.
    pub async fn bind(address: impl ToAddress) -> io::Result<UdpSocket> {
        let (world, node) = here();
        let wanted = address.to_address(&world, Some(node))?;
        check_local(&world, node, wanted)?;
        let place = world.place(node);
        let mailbox = Rc::new(RefCell::new(Mailbox {
            outgoing: VecDeque::new(),
            incoming: VecDeque::new(),
            incoming_bytes: 0,
            reader: None,
        }));
        let (index, id, local) = world
            .with_engine(node, |engine, _| {
                let local = engine.host.registry.reserve(Transport::Udp, wanted)?;
                let index = engine.next_udp();
                // Above every connection's number.
                let id = SocketId(0xffff_fffe | (index as u64) << 32);
                let socket = EngineSocket {
                    id,
                    uid: 0,
                    local,
                    remote: None,
                    end: DatagramsEnd {
                        local,
                        mailbox: mailbox.clone(),
                    },
                };
                Ok((engine.add_udp(socket), id, local))
            })
            .ok_or_else(host_down)?
            .map_err(errno)?;
        Ok(UdpSocket {
            bound: Rc::new(Bound {
                world,
                place,
                index,
                id,
                local,
                remote: Cell::new(None),
                dont_fragment: Cell::new(false),
                mailbox,
            }),
        })
    }

    /// From now on only this peer's datagrams are received, and [`send`](Self::send) goes there.
    ///
    /// # Errors
    /// When the host is down, or nobody has that name.
    pub async fn connect(&self, address: impl ToAddress) -> io::Result<()> {
        let bound = &self.bound;
        let remote = address.to_address(&bound.world, Some(bound.place.node))?;
        bound.alive()?;
        bound
            .world
            .with_engine(bound.place.node, |engine, _| {
                engine.connect_udp(bound.index, remote);
            })
            .ok_or_else(host_down)?;
        bound.remote.set(Some(remote));
        Ok(())
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// None; the signature is tokio's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.bound.local)
    }

    /// The connected peer.
    ///
    /// # Errors
    /// `ENOTCONN` when there is none.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.bound.remote.get().ok_or_else(|| errno(Errno::NOTCONN))
    }

    /// The largest IP packet that the path carries uncut, as far as it is known: the link's MTU, or what a router reported.
    ///
    /// # Errors
    /// When the host is down.
    pub fn path_mtu(&self) -> io::Result<usize> {
        self.bound.path_mtu()
    }

    /// Whether datagrams longer than the path's MTU are refused with `EMSGSIZE` instead of fragmented.
    ///
    /// # Errors
    /// When the host is down.
    pub fn set_dont_fragment(&self, on: bool) -> io::Result<()> {
        self.bound.act(SocketOp::SetDontFragment(on))?;
        self.bound.dont_fragment.set(on);
        Ok(())
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// `EMSGSIZE` for more than a datagram holds, or may; when the host is down.
    pub async fn send_to(&self, payload: &[u8], address: impl ToAddress) -> io::Result<usize> {
        let bound = &self.bound;
        let to = address.to_address(&bound.world, Some(bound.place.node))?;
        bound.put(Some(to), payload)
    }

    /// Sends a datagram to the connected peer.
    ///
    /// # Errors
    /// `EDESTADDRREQ` when there is none, and as [`send_to`](Self::send_to).
    pub async fn send(&self, payload: &[u8]) -> io::Result<usize> {
        if self.bound.remote.get().is_none() {
            return Err(errno(Errno::DESTADDRREQ));
        }
        self.bound.put(None, payload)
    }

    /// Receives a datagram and its sender; what does not fit the buffer is cut off.
    ///
    /// # Errors
    /// When the host is down.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        poll_fn(|cx| {
            self.bound.alive()?;
            let mut mailbox = self.bound.mailbox.borrow_mut();
            match mailbox.incoming.pop_front() {
                Some((from, payload)) => {
                    mailbox.incoming_bytes -= payload.len().max(64);
                    let n = payload.len().min(buffer.len());
                    buffer[..n].copy_from_slice(&payload[..n]);
                    Poll::Ready(Ok((n, from)))
                }
                None => {
                    mailbox.reader = Some(cx.waker().clone());
                    let waiting = Waiting::Datagram(self.bound.local);
                    self.bound.world.executor.waits_for(waiting);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Receives a datagram.
    ///
    /// # Errors
    /// When the host is down.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.recv_from(buffer).await.map(|(n, _)| n)
    }
}
