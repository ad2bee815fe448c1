//! The stack without its surroundings: flow table, sockets, timers and turns, with time and packets passed in.
//!
//! | file | what |
//! | --- | --- |
//! | `mod` | tables, timers, whose turn it is |
//! | `host` | what an engine stands on: a device below, clients' ends above |
//! | `input` | a packet's way from the device to its socket |
//! | `output` | a segment's way to the device |
//! | `tcp_socket` | one connection with emission path, intake and client end |
//! | `listener` | SYNs, the backlog, connecting |
//! | `udp_socket` | datagrams |
//! | `record_socket` | DTLS over them |
//! | `ops` | requests that act on one socket |
//!
//! Two things drive it: the daemon's shard, with descriptors and the machine's clock, and the simulator, with memory and a
//! virtual one. **How to drive it:** tell it what happened (`on_packet`, `on_client`, `fire_timers`, requests), then
//! `give_turns` until `is_idle`, then wait until `next_deadline`.
//!
//! What is ready is worked on in turns, so that one busy socket does not starve the others. Nothing scans all sockets.

mod host;
mod input;
mod listener;
mod ops;
mod output;
mod record_socket;
mod tcp_socket;
mod udp_socket;

pub(crate) use host::{AcceptEnd, Datagram, DatagramEnd, Host, Listening};
pub use host::{ClientEnd, RecordEvent};
pub(crate) use listener::same_network;
pub(crate) use udp_socket::{UdpSocket, UdpTurn};

use crate::budget::Budget;
use crate::client_fd::ClientFd;
use crate::clock::Instant;
use crate::counters::Counters;
use crate::dtls::taken::Staging;
use crate::emit::arena::Pool;
use crate::emit::job::Helped;
use crate::fragment::{Limits as FragmentLimits, Reassembler};
use crate::handle::SocketId;
use crate::ingress::sink::Written;
use crate::socket_info::Reason;
use crate::stack::{Limits, StackConfig};
use crate::tcp::{FlowKey, IsnGenerator, TimeWait};
use listener::Listener;
use output::Output;
use record_socket::UdpExtras;
use siphasher::sip::SipHasher13;
use slab::Slab;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::time::Duration;
use tcp_socket::{End, TcpSocket, Turn};

/// How soon a listener that nobody will call is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// SipHash with the stack's secret: flows cannot be made to collide, and every engine agrees.
#[derive(Clone, Copy)]
pub(crate) struct FlowHash(pub(crate) SipHasher13);

impl BuildHasher for FlowHash {
    type Hasher = SipHasher13;
    fn build_hasher(&self) -> SipHasher13 {
        self.0
    }
}

impl FlowHash {
    /// The engine that owns what hashes so.
    pub(crate) fn owner(&self, of: impl Hash, engines: usize) -> usize {
        if engines == 1 {
            return 0;
        }
        (self.hash_one(of) % engines as u64) as usize
    }
}

/// What is known of a flow.
enum Flow {
    Socket(usize),
    TimeWait(TimeWait),
}

/// What a socket needs of its engine for a turn.
struct Cx<'a, H> {
    pool: &'a mut Pool,
    output: &'a mut Output,
    host: &'a mut H,
    counters: &'a Counters,
    limits: &'a Limits,
}

/// What an engine is told at birth.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) config: Arc<StackConfig>,
    pub(crate) counters: Arc<Counters>,
    /// What streams may hold, here and in the other engines together.
    pub(crate) budget: Arc<Budget>,
    pub(crate) hash: FlowHash,
    pub(crate) isn: IsnGenerator,
    /// Number of this engine, and how many share the stack.
    pub(crate) index: usize,
    pub(crate) engines: usize,
}

pub(crate) struct Engine<H: Host> {
    settings: Settings,
    /// What it stands on.
    pub(crate) host: H,
    now: Instant,
    flows: HashMap<FlowKey, Flow, FlowHash>,
    sockets: Slab<TcpSocket<H::End>>,
    listeners: Slab<Listener<H::Listener>>,
    udp: Slab<UdpSocket<H::Datagrams>>,
    /// What some UDP sockets have besides, by their place.
    udp_extras: HashMap<usize, UdpExtras<H::Records>, FlowHash>,
    /// Listeners by port.
    listening: HashMap<u16, Vec<usize>, FlowHash>,
    /// UDP sockets by port.
    udp_bound: HashMap<u16, Vec<usize>, FlowHash>,
    timers: BTreeSet<(Instant, usize)>,
    time_waits: BTreeSet<(Instant, u64)>,
    time_wait_keys: HashMap<u64, FlowKey, FlowHash>,
    turns: VecDeque<usize>,
    /// UDP sockets whose association waits for a turn.
    record_turns: VecDeque<usize>,
    reassembler: Reassembler,
    pool: Pool,
    output: Output,
    next_generation: u32,
    next_time_wait: u64,
    next_port: u16,
    /// Where UDP clients' messages are pulled to.
    udp_buffer: Vec<u8>,
    /// Where records are sealed.
    record_buffer: Vec<u8>,
    /// Where records' plaintext is taken to.
    staging: Staging,
}

impl<H: Host> Engine<H> {
    pub(crate) fn new(settings: Settings, mut host: H) -> Engine<H> {
        let hash = settings.hash;
        Engine {
            now: Instant::ZERO,
            flows: HashMap::with_hasher(hash),
            sockets: Slab::new(),
            listeners: Slab::new(),
            udp: Slab::new(),
            udp_extras: HashMap::with_hasher(hash),
            listening: HashMap::with_hasher(hash),
            udp_bound: HashMap::with_hasher(hash),
            timers: BTreeSet::new(),
            time_waits: BTreeSet::new(),
            time_wait_keys: HashMap::with_hasher(hash),
            turns: VecDeque::new(),
            record_turns: VecDeque::new(),
            reassembler: Reassembler::new(FragmentLimits::default()),
            pool: Pool::new(),
            output: Output::new(host.device().capabilities()),
            next_generation: 0,
            next_time_wait: 0,
            next_port: hash.owner((settings.index, "first port"), 16_384) as u16,
            udp_buffer: Vec::new(),
            record_buffer: Vec::new(),
            staging: Staging::default(),
            host,
            settings,
        }
    }

    /// Nobody waits for a turn.
    pub(crate) fn is_idle(&self) -> bool {
        self.turns.is_empty() && self.record_turns.is_empty()
    }

    /// When [`fire_timers`](Self::fire_timers) has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        [
            self.timers.first().map(|(at, _)| *at),
            self.time_waits.first().map(|(at, _)| *at),
            self.reassembler.next_deadline(),
            self.listeners
                .iter()
                .any(|(_, listener)| listener.end.must_retry())
                .then(|| self.now + RETRY),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// A TCP client's end has something for us, or room; `hung_up`: the client closed its last copy of it.
    pub(crate) fn on_client(&mut self, index: usize, hung_up: bool) {
        let Some(socket) = self.sockets.get_mut(index) else {
            return;
        };
        if hung_up && let Some(end) = &mut socket.end {
            end.hung_up = true;
        }
        self.queue(index);
    }

    /// [`on_client`](Self::on_client) for the socket with this number, if it still exists.
    pub(crate) fn on_client_of(&mut self, id: SocketId, hung_up: bool) {
        if let Some(index) = self.index_of(id) {
            self.on_client(index, hung_up);
        }
    }

    /// A helper finished its work on this file for this socket.
    pub(crate) fn on_helped(&mut self, id: SocketId, file: &Arc<ClientFd>, helped: Helped) {
        if let Some(index) = self.index_of(id) {
            self.sockets[index].emitter.helped(file, helped);
            self.queue(index);
        } else {
            self.on_records_helped(id, file, helped);
        }
    }

    /// A helper wrote, or could not write, what this socket received.
    pub(crate) fn on_written(&mut self, id: SocketId, written: Written) {
        if let Some(index) = self.index_of(id) {
            self.sockets[index].intake.written(written);
            self.queue(index);
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

    /// Lets happen what is due.
    pub(crate) fn fire_timers(&mut self, now: Instant) {
        self.now = now;
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
        self.settings.counters.fragments_dropped.add(expired as u64);
        self.retry_listeners();
    }

    /// One turn for every socket that waits for one.
    pub(crate) fn give_turns(&mut self, now: Instant) {
        self.now = now;
        self.give_record_turns();
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
                host: &mut self.host,
                counters: &self.settings.counters,
                limits: &self.settings.config.limits,
            };
            let turn = socket.turn(now, &mut cx);
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
            socket.deadline()
        };
        // A deadline that moved away stays where it is armed: it comes to nothing when it fires, which costs less than moving
        // it with every acknowledgement.
        if let Some(at) = wanted
            && socket.armed.is_none_or(|armed| at < armed)
        {
            if let Some(armed) = socket.armed.replace(at) {
                self.timers.remove(&(armed, index));
            }
            self.timers.insert((at, index));
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
        // Linux's counters are of sockets with the ULP.
        if socket.ulp && socket.emitter.sealer().is_some() {
            self.settings.counters.curr_tx.sub(1);
        }
        if socket.ulp && socket.intake.opener().is_some() {
            self.settings.counters.curr_rx.sub(1);
        }
        if let Some(listener) = socket.listener {
            self.forget_half_open(listener);
        }
        if let Some(End { end, hung_up, .. }) = socket.end.take() {
            let reason = if socket.reason == Reason::Open {
                Reason::Aborted
            } else {
                socket.reason
            };
            self.host.close(end, hung_up, reason);
        }
    }

    fn new_id(&mut self, index: usize) -> SocketId {
        self.next_generation = (self.next_generation + 1) & 0xff_ffff;
        SocketId(
            (self.settings.index as u64) << 56
                | u64::from(self.next_generation) << 32
                | index as u64,
        )
    }

    fn index_of(&self, id: SocketId) -> Option<usize> {
        let index = (id.0 & 0xffff_ffff) as usize;
        self.sockets
            .get(index)
            .filter(|socket| socket.id == id)
            .map(|_| index)
    }

    /// Resets every connection.
    pub(crate) fn end_all(&mut self) {
        let now = self.now;
        for (_, socket) in &mut self.sockets {
            if !socket.connection_done {
                socket.connection.abort();
                let mut cx = Cx {
                    pool: &mut self.pool,
                    output: &mut self.output,
                    host: &mut self.host,
                    counters: &self.settings.counters,
                    limits: &self.settings.config.limits,
                };
                socket.turn(now, &mut cx);
            }
        }
    }
}
