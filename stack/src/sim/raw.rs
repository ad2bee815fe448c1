//! Hosts whose stack is somebody else's: packets in, packets out.
//!
//! Another TCP as the peer, a middlebox that rewrites what passes, a scanner, a flood: whatever is written as an async program over
//! IP packets has its place in the network like any host. Links, partitions, faults, captures and the checks of
//! [`invariant`](super::invariant) apply to its packets as to everybody's (what it receives is not compared with what went in: nobody here
//! knows what becomes of it).
//!
//! A program on it sleeps and spawns as elsewhere, but the simulator's sockets are of no use there: there is no stack beneath.

use super::executor::{JoinHandle, Waiting, spawn_on};
use super::net::Node;
use super::world::World;
use bytes::BytesMut;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Packets that wait to be received; more are dropped, as by a network card that nobody serves.
const ROOM: usize = 16_384;

/// What has arrived at a raw host.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    packets: VecDeque<BytesMut>,
    reader: Option<Waker>,
}

impl Inbox {
    /// Takes a packet, or gives it back when there is no room.
    pub(super) fn put(&mut self, packet: BytesMut) -> Result<(), BytesMut> {
        if self.packets.len() == ROOM {
            return Err(packet);
        }
        self.packets.push_back(packet);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    /// The host crashed.
    pub(super) fn clear(&mut self) {
        *self = Inbox::default();
    }
}

/// A host without a stack; see [`Net::raw_host`](super::Net::raw_host). Copies name the same one.
#[derive(Clone)]
pub struct RawHost {
    world: Rc<World>,
    node: usize,
    inbox: Rc<RefCell<Inbox>>,
}

impl fmt::Debug for RawHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RawHost").field(&self.name()).finish()
    }
}

impl Node for RawHost {
    fn number(&self) -> usize {
        self.node
    }
}

impl RawHost {
    pub(super) fn new(world: Rc<World>, node: usize, inbox: Rc<RefCell<Inbox>>) -> RawHost {
        RawHost { world, node, inbox }
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.world.node_name(self.node)
    }

    /// Its addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.world.addresses(self.node)
    }

    /// The smallest MTU of its links: the longest packet that all of them take.
    pub fn mtu(&self) -> usize {
        self.world.mtu(self.node)
    }

    /// Puts an IP packet, complete with its checksums, on the link that leads to its destination. One without a way, or longer than the
    /// link takes, is answered with the ICMP error that a kernel would give.
    pub fn send(&self, packet: &[u8]) {
        self.world.send_raw(self.node, packet);
    }

    /// The next packet that arrives, with all its checksums.
    pub async fn recv(&self) -> BytesMut {
        poll_fn(|cx| {
            let mut inbox = self.inbox.borrow_mut();
            match inbox.packets.pop_front() {
                Some(packet) => Poll::Ready(packet),
                None => {
                    inbox.reader = Some(cx.waker().clone());
                    self.world.executor.waits_for(Waiting::Packet);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The next packet, if one has arrived.
    pub fn try_recv(&self) -> Option<BytesMut> {
        self.inbox.borrow_mut().packets.pop_front()
    }

    /// Runs a task on it. The run ends when all such tasks have ended.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
    {
        spawn_on(&self.world, Some(self.node), false, future)
    }

    /// Runs a task on it that the run does not wait for.
    pub fn spawn_background<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
    {
        spawn_on(&self.world, Some(self.node), true, future)
    }
}
