//! A shard: one thread, one device queue, the sockets that it owns, and the loop that drives them.
//!
//! | file | what |
//! | --- | --- |
//! | `mod` | the loop: what woke us, when to wake next |
//! | `ends` | clients' ends: Unix sockets |
//! | `helpers` | threads for what may wait for a disk |
//! | `records` | clients' ends of DTLS associations |
//! | `rooms` | memory that packets are received to |
//!
//! What happens to packets and sockets is the [engine](crate::engine)'s; the shard waits, reads, and tells it.
//!
//! **Who owns a flow.** The owner is a keyed hash of the flow's addresses modulo the number of shards, so every shard knows it
//! without asking: a packet that the kernel put on another queue (its steering forgets a flow after some idle seconds) is
//! forwarded over a bounded channel, and only the owner, who knows, ever answers with a reset. A shard opens connections
//! from ports that make it their owner.
//!
//! No lock is taken for a packet. Readiness is edge-triggered; what is ready is worked on in turns, so that one busy
//! socket does not starve the device or the others.

mod ends;
mod helpers;
mod records;
mod rooms;

pub(crate) use ends::{DatagramsEnd, SharedListener};
pub(crate) use helpers::Helpers;

use crate::budget::Budget;
use crate::client_fd::ClientFd;
use crate::clock::Instant;
use crate::counters::Counters;
use crate::device::{Device, Offload};
use crate::emit::job::Helped;
use crate::engine::{Engine, FlowHash, Settings, UdpSocket, UdpTurn};
use crate::handle::{ClientEnd, ConnectRequest, Reply, SocketId, SocketOp, SocketReply};
use crate::ingress::sink::Written;
use crate::registry::Registry;
use crate::socket_info::SocketInfo;
use crate::stack::StackConfig;
use crate::tcp::IsnGenerator;
use bytes::BytesMut;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use ends::ShardHost;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rooms::Rooms;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// Packets read from the device before sockets get their turn.
const PACKETS_PER_ROUND: usize = 64;
/// Requests taken before packets get their turn.
const REQUESTS_PER_ROUND: usize = 64;
/// Room for requests and forwarded packets in a shard's channel.
pub(crate) const CHANNEL: usize = 4096;
/// A packet shorter than this is copied out, so that it does not pin the device buffer.
const COPY_BELOW: usize = 2048;

/// What others tell a shard.
pub(crate) enum ToShard {
    /// Open a connection.
    Connect(ConnectRequest, Reply<ClientEnd>),
    /// Take SYNs for a listener.
    Listen(Arc<SharedListener>, ClientFd),
    /// Take a UDP socket.
    Udp(Box<UdpSocket<DatagramsEnd>>),
    /// Act on a socket.
    Op(SocketId, SocketOp, Reply<SocketReply>),
    /// List sockets: the answer is merged by the caller.
    List(Box<dyn FnOnce(Vec<SocketInfo>) + Send>),
    /// A packet of a flow that this shard owns, checked.
    Packet(BytesMut, Offload),
    /// A helper finished its work on this file.
    Helped(SocketId, Arc<ClientFd>, Helped),
    /// A helper wrote what this socket received.
    Written(SocketId, Written),
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

/// What all shards share.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) config: Arc<StackConfig>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) helpers: Arc<Helpers>,
    pub(crate) hash: FlowHash,
    pub(crate) isn: IsnGenerator,
    pub(crate) ports: Vec<Port>,
    pub(crate) epoch: std::time::Instant,
}

pub(crate) struct Shard {
    epoch: std::time::Instant,
    inbox: Receiver<ToShard>,
    poll: Poll,
    timer: OwnedFd,
    timer_set: Option<Instant>,
    device_ready: bool,
    rooms: Rooms,
    now: Instant,
    engine: Engine<ShardHost>,
    counters: Arc<Counters>,
    index: usize,
    stopping: bool,
}

const DEVICE: Token = Token(0);
const WAKE: Token = Token(1);
const TIMER: Token = Token(2);
const TCP: usize = 0;
const LISTENER: usize = 1;
const UDP: usize = 2;
const RECORDS: usize = 3;

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
        let host = ShardHost {
            device,
            watch: poll.registry().try_clone()?,
            registry: common.registry,
            helpers: common.helpers,
            ports: common.ports.clone(),
            index,
            null: Arc::new(null),
        };
        let settings = Settings {
            config: common.config,
            counters: common.counters.clone(),
            budget: common.budget,
            hash: common.hash,
            isn: common.isn,
            index,
            engines: common.ports.len(),
        };
        Ok(Shard {
            epoch: common.epoch,
            inbox,
            poll,
            timer,
            timer_set: None,
            device_ready: true,
            rooms: Rooms::default(),
            now: Instant::ZERO,
            engine: Engine::new(settings, host),
            counters: common.counters,
            index,
            stopping: false,
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
            self.tick();
            self.engine.fire_timers(self.now);
            self.engine.give_turns(self.now);
        }
        self.engine.end_all();
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the daemon's clock; everything behind it gets the time as an argument"
    )]
    fn tick(&mut self) {
        self.now = Instant::from_nanos(self.epoch.elapsed().as_nanos() as u64);
    }

    fn idle(&self) -> bool {
        !self.device_ready && self.engine.is_idle() && self.inbox.is_empty()
    }

    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = if self.idle() {
            self.set_timer();
            // A device within the process has no descriptor to wait on: it is looked at every millisecond.
            self.engine
                .host
                .device
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
        if self.engine.host.device.fd().is_none() {
            self.device_ready = true;
        }
        Ok(())
    }

    /// Arms the timerfd for the earliest deadline.
    fn set_timer(&mut self) {
        let next = self.engine.next_deadline();
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
            TCP => self.engine.on_client(index, event.is_write_closed()),
            LISTENER => self
                .engine
                .on_listener(index, event.is_read_closed() || event.is_write_closed()),
            UDP => self.on_udp_client(index, event.is_read_closed() && event.is_write_closed()),
            _ => self.engine.on_records_client(index),
        }
    }

    fn on_udp_client(&mut self, index: usize, closed: bool) {
        match self.engine.udp_turn(self.now, index) {
            UdpTurn::More => {
                if let Some(end) = self.engine.udp_end(index) {
                    self.engine.host.watch_again(&end.fd, index);
                }
            }
            UdpTurn::Rest | UdpTurn::Closed if closed => self.engine.remove_udp(index),
            UdpTurn::Rest | UdpTurn::Closed => {}
        }
    }

    fn connect(&mut self, request: ConnectRequest) -> Result<ClientEnd, Errno> {
        let (id, (fd, cookie), local) = self.engine.connect(self.now, request)?;
        Ok(ClientEnd {
            id,
            fd,
            cookie,
            local,
        })
    }

    fn add_udp(&mut self, socket: UdpSocket<DatagramsEnd>) {
        let index = self.engine.next_udp();
        if let Err(errno) = self.engine.host.register(&socket.end.fd, UDP, index) {
            tracing::error!("a UDP socket cannot be watched: {errno}");
            return;
        }
        self.engine.add_udp(socket);
    }

    /// Attaches an association to a UDP socket, and gives the client's end of it.
    fn attach_records(&mut self, id: SocketId, peer: SocketAddr) -> Result<OwnedFd, Errno> {
        let index = self.engine.udp_index(id).ok_or(Errno::OPNOTSUPP)?;
        let (end, client) = self.engine.host.record_pair(index)?;
        self.engine.attach_records(self.now, index, peer, end)?;
        Ok(client)
    }

    fn take_requests(&mut self) {
        for _ in 0..REQUESTS_PER_ROUND {
            let Ok(message) = self.inbox.try_recv() else {
                return;
            };
            match message {
                ToShard::Connect(request, reply) => reply(self.connect(request)),
                ToShard::Listen(shared, end) => self.listen(shared, end),
                ToShard::Udp(socket) => self.add_udp(*socket),
                ToShard::Op(id, SocketOp::DtlsAttach { peer }, reply) => {
                    reply(self.attach_records(id, peer).map(SocketReply::End));
                }
                ToShard::Op(id, op, reply) => reply(self.engine.act(self.now, id, op)),
                ToShard::List(reply) => reply(self.engine.list()),
                ToShard::Packet(packet, offload) => {
                    self.engine.on_packet(self.now, packet, offload);
                }
                ToShard::Helped(id, file, helped) => {
                    self.engine.on_helped(id, &file, helped);
                }
                ToShard::Written(id, written) => self.engine.on_written(id, written),
                ToShard::Stop => self.stopping = true,
            }
        }
    }

    fn read_device(&mut self) {
        for _ in 0..PACKETS_PER_ROUND {
            if !self.device_ready {
                return;
            }
            match self.engine.host.device.receive_split(self.rooms.next()) {
                Ok((packet, offload)) => {
                    self.counters.packets_in.add(1);
                    let packet = if packet.len() < COPY_BELOW {
                        BytesMut::from(&packet[..])
                    } else {
                        packet
                    };
                    self.engine.on_packet(self.now, packet, offload);
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
}
