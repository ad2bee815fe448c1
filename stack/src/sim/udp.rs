//! UDP for host programs.

use super::executor::Waiting;
use super::host::{DatagramsEnd, Mailbox, Place, Touch};
use super::net::ToAddress;
use super::tcp::{check_local, here, host_down};
use super::world::World;
use crate::engine::UdpSocket as EngineSocket;
use crate::handle::SocketId;
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

/// A UDP socket on the calling task's host. Datagrams larger than the MTU go in fragments.
pub struct UdpSocket {
    world: Rc<World>,
    place: Place,
    index: usize,
    local: SocketAddr,
    remote: Cell<Option<SocketAddr>>,
    mailbox: Rc<RefCell<Mailbox>>,
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket")
            .field("local", &self.local)
            .field("remote", &self.remote.get())
            .finish_non_exhaustive()
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
        let (index, local) = world
            .with_engine(node, |engine, _| {
                let local = engine.host.registry.reserve(Transport::Udp, wanted)?;
                let index = engine.next_udp();
                let socket = EngineSocket {
                    id: SocketId(0xffff_ffff | (index as u64) << 32),
                    uid: 0,
                    local,
                    remote: None,
                    end: DatagramsEnd {
                        local,
                        mailbox: mailbox.clone(),
                    },
                };
                Ok((engine.add_udp(socket), local))
            })
            .ok_or_else(host_down)?
            .map_err(|errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error()))?;
        Ok(UdpSocket {
            world,
            place,
            index,
            local,
            remote: Cell::new(None),
            mailbox,
        })
    }

    /// From now on only this peer's datagrams are received, and [`send`](Self::send) goes there.
    ///
    /// # Errors
    /// When the host is down, or nobody has that name.
    pub async fn connect(&self, address: impl ToAddress) -> io::Result<()> {
        let remote = address.to_address(&self.world, Some(self.place.node))?;
        self.alive()?;
        self.world
            .with_engine(self.place.node, |engine, _| {
                engine.connect_udp(self.index, remote);
            })
            .ok_or_else(host_down)?;
        self.remote.set(Some(remote));
        Ok(())
    }

    fn alive(&self) -> io::Result<()> {
        if self.world.place(self.place.node) == self.place {
            Ok(())
        } else {
            Err(host_down())
        }
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// None; the signature is tokio's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// `EMSGSIZE` for more than a datagram holds; when the host is down.
    pub async fn send_to(&self, payload: &[u8], address: impl ToAddress) -> io::Result<usize> {
        let to = address.to_address(&self.world, Some(self.place.node))?;
        self.put(Some(to), payload)
    }

    /// Sends a datagram to the connected peer.
    ///
    /// # Errors
    /// `EDESTADDRREQ` when there is none, and as [`send_to`](Self::send_to).
    pub async fn send(&self, payload: &[u8]) -> io::Result<usize> {
        if self.remote.get().is_none() {
            return Err(io::Error::from_raw_os_error(
                Errno::DESTADDRREQ.raw_os_error(),
            ));
        }
        self.put(None, payload)
    }

    fn put(&self, to: Option<SocketAddr>, payload: &[u8]) -> io::Result<usize> {
        self.alive()?;
        if payload.len() > MAX_PAYLOAD {
            return Err(io::Error::from_raw_os_error(Errno::MSGSIZE.raw_os_error()));
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

    /// Receives a datagram and its sender; what does not fit the buffer is cut off.
    ///
    /// # Errors
    /// When the host is down.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        poll_fn(|cx| {
            let mut mailbox = self.mailbox.borrow_mut();
            match mailbox.incoming.pop_front() {
                Some((from, payload)) => {
                    mailbox.incoming_bytes -= payload.len().max(64);
                    let n = payload.len().min(buffer.len());
                    buffer[..n].copy_from_slice(&payload[..n]);
                    Poll::Ready(Ok((n, from)))
                }
                None => {
                    mailbox.reader = Some(cx.waker().clone());
                    self.world.executor.waits_for(Waiting::Datagram(self.local));
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

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.world
            .touches()
            .push(self.place, Touch::DatagramsGone(self.index));
    }
}
