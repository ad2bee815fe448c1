//! A shard: one thread, one device queue, the sockets that it owns, and the loop that drives them.
//!
//! | file | what |
//! | --- | --- |
//! | `mod` | the loop: what woke us, whose turn it is, when to wake next |
//! | `input` | a packet's way from the device to its socket |
//! | `output` | a segment's way to the device |
//! | `tcp_socket` | one connection with emission path, intake and client end |
//! | `listener` | SYNs, the backlog, handing accepted descriptors over |
//! | `udp_socket` | datagrams |
//! | `ops` | requests from the socket server |
//! | `helpers` | threads for what may wait for a disk |
//!
//! **Who owns a flow.** The owner is a keyed hash of the flow's addresses modulo the number of shards, so every shard knows it
//! without asking: a packet that the kernel put on another queue (its steering forgets a flow after some idle seconds) is
//! forwarded over a bounded channel, and only the owner, who knows, ever answers with a reset. A shard opens connections
//! from ports that make it their owner.
//!
//! No lock is taken for a packet. Readiness is edge-triggered; what is ready is worked on in turns, so that one busy
//! socket does not starve the device or the others.

mod helpers;
mod input;
mod listener;
mod ops;
mod output;
mod tcp_socket;
mod udp_socket;

pub(crate) use helpers::Helpers;
pub(crate) use listener::SharedListener;
pub(crate) use udp_socket::UdpSocket;

use crate::clock::Instant;
use crate::counters::Counters;
use crate::device::{Device, MAX_PACKET, Offload};
use crate::emit::arena::Pool;
use crate::emit::job::Helped;
use crate::fragment::{Limits as FragmentLimits, Reassembler};
use crate::handle::{ClientEnd, ConnectRequest, Reply, SocketId, SocketOp, SocketReply};
use crate::registry::Registry;
use crate::socket_info::{Reason, SocketInfo};
use crate::stack::{Limits, StackConfig};
use crate::tcp::{FlowKey, IsnGenerator, TimeWait};
use bytes::BytesMut;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use listener::Listener;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use output::Output;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use siphasher::sip::SipHasher13;
use slab::Slab;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::io;
use std::sync::Arc;
use tcp_socket::{End, TcpSocket, Turn};

/// Packets read from the device before sockets get their turn.
const PACKETS_PER_ROUND: usize = 64;
/// Requests taken before packets get their turn.
const REQUESTS_PER_ROUND: usize = 64;
/// Room for requests and forwarded packets in a shard's channel.
pub(crate) const CHANNEL: usize = 4096;
/// The device buffer's size: many small packets, or a few super-segments, a piece.
const RECEIVE_CHUNK: usize = 4 * MAX_PACKET;
/// A packet shorter than this is copied out, so that it does not pin the device buffer.
const COPY_BELOW: usize = 2048;

/// What others tell a shard.
pub(crate) enum ToShard {
    /// Open a connection.
    Connect(ConnectRequest, Reply<ClientEnd>),
    /// Take SYNs for a listener.
    Listen(Arc<SharedListener>, OwnedFd),
    /// Take a UDP socket.
    Udp(Box<UdpSocket>),
    /// Act on a socket.
    Op(SocketId, SocketOp, Reply<SocketReply>),
    /// List sockets: the answer is merged by the caller.
    List(Box<dyn FnOnce(Vec<SocketInfo>) + Send>),
    /// A packet of a flow that this shard owns, checked.
    Packet(BytesMut, Offload),
    /// A helper finished its work on this file.
    Helped(SocketId, Arc<OwnedFd>, Helped),
    /// End everything.
    Stop,
}

/// How others reach a shard.
#[derive(Clone)]
pub(crate) struct Port {
    pub(crate) sender: Sender<ToShard>,
    pub(crate) waker: Arc<Waker>,
}

impl Port {
    /// Sends what must arrive; waits for room, which a shard makes in bounded time. A shard that ended answers nobody.
    pub(crate) fn send(&self, message: ToShard) {
        if self.sender.send(message).is_ok() {
            let _ = self.waker.wake();
        }
    }

    /// Sends unless there is no room.
    pub(crate) fn try_send(&self, message: ToShard) -> Result<(), Box<ToShard>> {
        match self.sender.try_send(message) {
            Ok(()) => {
                let _ = self.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => {
                Err(Box::new(message))
            }
        }
    }
}

/// SipHash with the stack's secret: flows cannot be made to collide, and every shard agrees.
#[derive(Clone, Copy)]
pub(crate) struct FlowHash(pub(crate) SipHasher13);

impl BuildHasher for FlowHash {
    type Hasher = SipHasher13;
    fn build_hasher(&self) -> SipHasher13 {
        self.0
    }
}

impl FlowHash {
    /// The shard that owns what hashes so.
    pub(crate) fn owner(&self, of: impl Hash, shards: usize) -> usize {
        if shards == 1 {
            return 0;
        }
        (self.hash_one(of) % shards as u64) as usize
    }
}

/// What is known of a flow.
enum Flow {
    Socket(usize),
    TimeWait(TimeWait),
}

/// What a socket needs of its shard for a turn.
struct Cx<'a> {
    pool: &'a mut Pool,
    output: &'a mut Output,
    device: &'a mut dyn Device,
    counters: &'a Counters,
    helpers: &'a Helpers,
    port: &'a Port,
    limits: &'a Limits,
    /// What marks towards the client carry.
    descriptor: BorrowedFd<'a>,
}

/// What all shards share.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) config: Arc<StackConfig>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) helpers: Arc<Helpers>,
    pub(crate) hash: FlowHash,
    pub(crate) isn: IsnGenerator,
    pub(crate) ports: Vec<Port>,
    pub(crate) epoch: std::time::Instant,
}

pub(crate) struct Shard {
    index: usize,
    common: Common,
    inbox: Receiver<ToShard>,
    poll: Poll,
    timer: OwnedFd,
    timer_set: Option<Instant>,
    /// A descriptor of no meaning, for marks.
    null: OwnedFd,
    device: Box<dyn Device + Send>,
    device_ready: bool,
    receive_buffer: BytesMut,
    now: Instant,
    flows: HashMap<FlowKey, Flow, FlowHash>,
    sockets: Slab<TcpSocket>,
    listeners: Slab<Listener>,
    udp: Slab<UdpSocket>,
    /// Listeners by port.
    listening: HashMap<u16, Vec<usize>, FlowHash>,
    /// UDP sockets by port.
    udp_bound: HashMap<u16, Vec<usize>, FlowHash>,
    timers: BTreeSet<(Instant, usize)>,
    time_waits: BTreeSet<(Instant, u64)>,
    time_wait_keys: HashMap<u64, FlowKey, FlowHash>,
    turns: VecDeque<usize>,
    reassembler: Reassembler,
    pool: Pool,
    output: Output,
    next_generation: u32,
    next_time_wait: u64,
    next_port: u16,
    stopping: bool,
}

const DEVICE: Token = Token(0);
const WAKE: Token = Token(1);
const TIMER: Token = Token(2);
const TCP: usize = 0;
const LISTENER: usize = 1;
const UDP: usize = 2;

fn token(kind: usize, index: usize) -> Token {
    Token(4 + index * 4 + kind)
}

impl Shard {
    /// Opens what a shard needs besides its device. The waker for its [`Port`] comes with it.
    pub(crate) fn poll() -> io::Result<(Poll, Arc<Waker>)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        Ok((poll, waker))
    }

    pub(crate) fn new(
        index: usize,
        common: Common,
        inbox: Receiver<ToShard>,
        poll: Poll,
        device: Box<dyn Device + Send>,
    ) -> io::Result<Shard> {
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        poll.registry()
            .register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        if let Some(fd) = device.fd() {
            poll.registry()
                .register(&mut SourceFd(&fd.as_raw_fd()), DEVICE, Interest::READABLE)?;
        }
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let hash = common.hash;
        Ok(Shard {
            index,
            inbox,
            poll,
            timer,
            timer_set: None,
            null,
            output: Output::new(device.capabilities()),
            device,
            device_ready: true,
            receive_buffer: BytesMut::new(),
            now: Instant::ZERO,
            flows: HashMap::with_hasher(hash),
            sockets: Slab::new(),
            listeners: Slab::new(),
            udp: Slab::new(),
            listening: HashMap::with_hasher(hash),
            udp_bound: HashMap::with_hasher(hash),
            timers: BTreeSet::new(),
            time_waits: BTreeSet::new(),
            time_wait_keys: HashMap::with_hasher(hash),
            turns: VecDeque::new(),
            reassembler: Reassembler::new(FragmentLimits::default()),
            pool: Pool::new(),
            next_generation: 0,
            next_time_wait: 0,
            next_port: common.hash.owner((index, "first port"), 16_384) as u16,
            stopping: false,
            common,
        })
    }

    /// Runs until told to stop.
    pub(crate) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        while !self.stopping {
            if let Err(error) = self.wait(&mut events) {
                tracing::error!(
                    "shard {} ends: waiting for events failed: {error}",
                    self.index
                );
                break;
            }
            self.tick();
            for event in &events {
                match event.token() {
                    DEVICE => self.device_ready = true,
                    WAKE | TIMER => {}
                    Token(token) => self.on_client(token, event),
                }
            }
            self.take_requests();
            self.read_device();
            self.fire_timers();
            self.give_turns();
        }
        self.end_all();
    }

    fn tick(&mut self) {
        self.now = Instant::from_nanos(self.common.epoch.elapsed().as_nanos() as u64);
    }

    fn idle(&self) -> bool {
        !self.device_ready && self.turns.is_empty() && self.inbox.is_empty()
    }

    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = if self.idle() {
            self.set_timer();
            // A device within the process has no descriptor to wait on: it is looked at every millisecond.
            self.device
                .fd()
                .is_none()
                .then_some(std::time::Duration::from_millis(1))
        } else {
            Some(std::time::Duration::ZERO)
        };
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => other?,
        }
        if self.device.fd().is_none() {
            self.device_ready = true;
        }
        Ok(())
    }

    /// Arms the timerfd for the earliest deadline.
    fn set_timer(&mut self) {
        let next = [
            self.timers.first().map(|(at, _)| *at),
            self.time_waits.first().map(|(at, _)| *at),
            self.reassembler.next_deadline(),
            self.listeners
                .iter()
                .any(|(_, l)| l.must_retry())
                .then(|| self.now + std::time::Duration::from_millis(5)),
        ]
        .into_iter()
        .flatten()
        .min();
        if next == self.timer_set && next.is_none_or(|at| at > self.now) {
            return;
        }
        self.timer_set = next;
        let delay = next.map_or(0, |at| {
            at.saturating_duration_since(self.now).as_nanos().max(1) as u64
        });
        let spec = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: (delay / 1_000_000_000) as i64,
                tv_nsec: (delay % 1_000_000_000) as i64,
            },
        };
        if let Err(errno) =
            rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)
        {
            tracing::error!("setting a timer failed: {errno}");
        }
    }

    /// A client's descriptor became ready.
    fn on_client(&mut self, token: usize, event: &mio::event::Event) {
        let (index, kind) = ((token - 4) / 4, (token - 4) % 4);
        match kind {
            TCP => {
                let Some(socket) = self.sockets.get_mut(index) else {
                    return;
                };
                if event.is_write_closed()
                    && let Some(end) = &mut socket.end
                {
                    end.hung_up = true;
                }
                self.queue(index);
            }
            LISTENER => self.on_listener(index, event.is_read_closed() || event.is_write_closed()),
            UDP => self.on_udp_client(index, event.is_read_closed() && event.is_write_closed()),
            _ => {}
        }
    }

    fn queue(&mut self, index: usize) {
        if let Some(socket) = self.sockets.get_mut(index)
            && !socket.queued
        {
            socket.queued = true;
            self.turns.push_back(index);
        }
    }

    fn take_requests(&mut self) {
        for _ in 0..REQUESTS_PER_ROUND {
            let Ok(message) = self.inbox.try_recv() else {
                return;
            };
            match message {
                ToShard::Connect(request, reply) => self.connect(request, reply),
                ToShard::Listen(shared, end) => self.listen(shared, end),
                ToShard::Udp(socket) => self.add_udp(*socket),
                ToShard::Op(id, op, reply) => reply(self.act(id, op)),
                ToShard::List(reply) => reply(self.list()),
                ToShard::Packet(packet, offload) => self.on_packet(packet, offload),
                ToShard::Helped(id, file, helped) => {
                    if let Some(index) = self.index_of(id) {
                        self.sockets[index].emitter.helped(&file, helped);
                        self.queue(index);
                    }
                }
                ToShard::Stop => self.stopping = true,
            }
        }
    }

    fn read_device(&mut self) {
        for _ in 0..PACKETS_PER_ROUND {
            if !self.device_ready {
                return;
            }
            if self.receive_buffer.len() < MAX_PACKET {
                self.receive_buffer.clear();
                self.receive_buffer.reserve(RECEIVE_CHUNK);
                self.receive_buffer.resize(RECEIVE_CHUNK, 0);
            }
            match self.device.receive(&mut self.receive_buffer) {
                Ok((n, offload)) => {
                    self.common.counters.packets_in.add(1);
                    let packet = if n < COPY_BELOW {
                        BytesMut::from(&self.receive_buffer[..n])
                    } else {
                        self.receive_buffer.split_to(n)
                    };
                    self.on_packet(packet, offload);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.device_ready = false
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!("reading the device failed: {error}");
                    self.device_ready = false;
                }
            }
        }
    }

    fn fire_timers(&mut self) {
        self.tick();
        while let Some(&(at, index)) = self.timers.first()
            && at <= self.now
        {
            self.timers.pop_first();
            if let Some(socket) = self.sockets.get_mut(index) {
                socket.armed = None;
                let events = socket.connection.on_timer(self.now);
                self.on_events(index, events);
            }
        }
        while let Some(&(at, number)) = self.time_waits.first()
            && at <= self.now
        {
            self.time_waits.pop_first();
            let Some(key) = self.time_wait_keys.remove(&number) else {
                continue;
            };
            match self.flows.get(&key) {
                // A late segment may have started the wait over.
                Some(Flow::TimeWait(wait)) if wait.deadline() > self.now => {
                    self.time_waits.insert((wait.deadline(), number));
                    self.time_wait_keys.insert(number, key);
                }
                Some(Flow::TimeWait(_)) => {
                    self.flows.remove(&key);
                }
                _ => {}
            }
        }
        let expired = self.reassembler.expire(self.now);
        self.common.counters.fragments_dropped.add(expired as u64);
        self.retry_listeners();
    }

    fn give_turns(&mut self) {
        for _ in 0..self.turns.len() {
            let Some(index) = self.turns.pop_front() else {
                return;
            };
            let Some(socket) = self.sockets.get_mut(index) else {
                continue;
            };
            socket.queued = false;
            let mut cx = Cx {
                pool: &mut self.pool,
                output: &mut self.output,
                device: &mut *self.device,
                counters: &self.common.counters,
                helpers: &self.common.helpers,
                port: &self.common.ports[self.index],
                limits: &self.common.config.limits,
                descriptor: self.null.as_fd(),
            };
            let turn = socket.turn(self.now, &mut cx);
            if socket.connection_done {
                let key = socket.key;
                self.forget_flow(&key, index);
            }
            self.rearm(index);
            match turn {
                Turn::Rest => {}
                Turn::Again => self.queue(index),
                Turn::Finished => self.remove(index),
            }
        }
    }

    fn rearm(&mut self, index: usize) {
        let Some(socket) = self.sockets.get_mut(index) else {
            return;
        };
        let wanted = if socket.connection_done {
            None
        } else {
            socket.connection.deadline()
        };
        if wanted != socket.armed {
            if let Some(at) = socket.armed {
                self.timers.remove(&(at, index));
            }
            if let Some(at) = wanted {
                self.timers.insert((at, index));
            }
            socket.armed = wanted;
        }
    }

    /// Takes a connection that is over out of the flow table; a client that has not read everything yet keeps the rest.
    fn forget_flow(&mut self, key: &FlowKey, index: usize) {
        if matches!(self.flows.get(key), Some(Flow::Socket(at)) if *at == index) {
            self.flows.remove(key);
        }
    }

    /// A socket is done with: connection over, and the client told or gone.
    fn remove(&mut self, index: usize) {
        let Some(mut socket) = self.sockets.try_remove(index) else {
            return;
        };
        if let Some(at) = socket.armed {
            self.timers.remove(&(at, index));
        }
        self.forget_flow(&socket.key, index);
        socket.emitter.abandon(&mut self.pool);
        if socket.emitter.sealer().is_some() {
            self.common.counters.curr_tx.sub(1);
        }
        if socket.intake.opener().is_some() {
            self.common.counters.curr_rx.sub(1);
        }
        if let Some(listener) = socket.listener {
            self.forget_half_open(listener);
        }
        if let Some(end) = socket.end.take() {
            self.close_end(&end, socket.reason);
        }
    }

    fn close_end(&mut self, end: &End, reason: Reason) {
        let _ = self
            .poll
            .registry()
            .deregister(&mut SourceFd(&end.fd.as_raw_fd()));
        let reason = if reason == Reason::Open {
            Reason::Aborted
        } else {
            reason
        };
        self.common
            .registry
            .remove(end.cookie, (!end.hung_up).then_some(reason));
    }

    fn register(&self, fd: &OwnedFd, kind: usize, index: usize) -> Result<(), Errno> {
        self.poll
            .registry()
            .register(
                &mut SourceFd(&fd.as_raw_fd()),
                token(kind, index),
                Interest::READABLE | Interest::WRITABLE,
            )
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOMEM))
    }

    fn new_id(&mut self, index: usize) -> SocketId {
        self.next_generation = (self.next_generation + 1) & 0xff_ffff;
        SocketId((self.index as u64) << 56 | u64::from(self.next_generation) << 32 | index as u64)
    }

    fn index_of(&self, id: SocketId) -> Option<usize> {
        let index = (id.0 & 0xffff_ffff) as usize;
        self.sockets
            .get(index)
            .filter(|socket| socket.id == id)
            .map(|_| index)
    }

    fn end_all(&mut self) {
        let now = self.now;
        for (_, socket) in &mut self.sockets {
            if !socket.connection_done {
                socket.connection.abort();
                let mut cx = Cx {
                    pool: &mut self.pool,
                    output: &mut self.output,
                    device: &mut *self.device,
                    counters: &self.common.counters,
                    helpers: &self.common.helpers,
                    port: &self.common.ports[self.index],
                    limits: &self.common.config.limits,
                    descriptor: self.null.as_fd(),
                };
                socket.turn(now, &mut cx);
            }
        }
    }
}
