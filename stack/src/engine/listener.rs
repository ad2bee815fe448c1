//! Listening sockets: SYNs become half-open connections, established ones wait in the backlog for the client to accept
//! them. With several engines each takes the SYNs of the flows it owns. Opening connections is here too.

use super::tcp_socket::{End, TcpSocket};
use super::{AcceptEnd, Engine, Flow, Host};
use crate::clock::Instant;
use crate::handle::{ConnectRequest, SocketId, SocketOptions};
use crate::registry::DYNAMIC_PORTS;
use crate::socket_info::{Reason, SocketInfo, SocketKind};
use crate::tcp::{COOKIE_LIFE, Connection, FlowKey, KeepAlive, Segment, SeqNumber};
use bytes::BytesMut;
use rustix::io::Errno;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use uktls_record::header::{HEADER_LEN, MAX_CIPHERTEXT_TLS12};

/// The smallest receive buffer: a record is opened, and its room given back, only when all of it is there, so a window that
/// cannot hold a whole one would stay closed for good. Twice that, so that the next can come meanwhile.
const LEAST_RECEIVE_BUFFER: usize = 2 * (HEADER_LEN + MAX_CIPHERTEXT_TLS12);

/// A listening socket in one engine.
#[derive(Debug)]
pub(super) struct Listener<L> {
    pub(super) end: L,
    half_open: usize,
    /// Until when an acknowledgement may bring a SYN cookie back.
    cookies_until: Option<Instant>,
}

impl<L: AcceptEnd> Listener<L> {
    /// What `uktls stat` shows.
    pub(super) fn info(&self, shard: usize) -> SocketInfo {
        let listening = self.end.listening();
        SocketInfo {
            id: listening.id.0,
            kind: SocketKind::TcpListener,
            shard,
            uid: listening.uid,
            local: listening.local,
            remote: None,
            state: None,
            tcp: None,
            ulp: false,
            tx: None,
            rx: None,
            records: (0, 0),
            reason: Reason::Open,
            memory: 0,
        }
    }
}

impl<H: Host> Engine<H> {
    /// TCP settings of a socket with these options towards this address.
    fn tcp_config(&mut self, options: &SocketOptions, remote: SocketAddr) -> crate::tcp::Config {
        let capabilities = self.host.device().capabilities();
        let ip = if remote.is_ipv4() { 20 } else { 40 };
        let mss =
            (capabilities.mtu.saturating_sub(ip + 20)).clamp(88, usize::from(u16::MAX)) as u16;
        let max_gso = if capabilities.tso {
            capabilities.max_packet - ip - 60
        } else {
            usize::from(mss)
        };
        crate::tcp::Config {
            mss,
            max_gso,
            nodelay: options.nodelay,
            recv_buffer: options
                .receive_buffer
                .min(self.settings.config.limits.receive_per_socket)
                .max(LEAST_RECEIVE_BUFFER),
            keepalive: options.keepalive.map(keep_alive),
            ..self.settings.config.tcp
        }
    }

    /// Puts a new connection into slab and flow table.
    fn add_socket(
        &mut self,
        id: SocketId,
        uid: u32,
        key: FlowKey,
        connection: Connection,
        options: SocketOptions,
    ) -> usize {
        let charge = self.settings.budget.charge(uid);
        let index = self
            .sockets
            .insert(TcpSocket::new(id, uid, key, connection, options, charge));
        self.flows.insert(key, Flow::Socket(index));
        self.queue(index);
        index
    }

    /// Takes SYNs for a listener from now on, and gives its number in this engine.
    pub(crate) fn listen(&mut self, end: H::Listener) -> usize {
        let port = end.listening().local.port();
        let index = self.listeners.insert(Listener {
            end,
            half_open: 0,
            cookies_until: None,
        });
        self.listening.entry(port).or_default().push(index);
        index
    }

    /// The number that the next listener will have.
    pub(crate) fn next_listener(&self) -> usize {
        self.listeners.vacant_key()
    }

    fn listener_for(&self, local: SocketAddr) -> Option<usize> {
        let indices = self.listening.get(&local.port())?;
        indices.iter().copied().find(|&index| {
            let bound = self.listeners[index].end.listening().local;
            bound.ip() == local.ip()
                || (bound.ip().is_unspecified() && bound.is_ipv4() == local.is_ipv4())
        })
    }

    /// A segment other than a SYN that belongs to no connection. It may bring a SYN cookie back; else it is refused.
    pub(super) fn on_stray(&mut self, key: FlowKey, segment: &Segment, payload: BytesMut) {
        let found = self.listener_for(key.local).filter(|&at| {
            let until = self.listeners[at].cookies_until;
            until.is_some_and(|until| self.now < until) && segment.flags.ack()
        });
        let Some(at) = found else {
            return self.refuse(&key, segment);
        };
        let listening = self.listeners[at].end.listening().clone();
        if self.listeners[at].end.waiting() >= listening.backlog.max(1) {
            // The peer sends it again, with its first data.
            return self.settings.counters.backlog_full.add(1);
        }
        let config = self.tcp_config(&listening.options, key.remote);
        let isn = &self.settings.isn;
        let Some(connection) = isn.cookie_accept(&config, &key, segment, self.now) else {
            self.settings.counters.syncookies_failed.add(1);
            return self.refuse(&key, segment);
        };
        self.settings.counters.syncookies_received.add(1);
        self.listeners[at].half_open += 1;
        let id = self.new_id(self.sockets.vacant_key());
        let index = self.add_socket(id, listening.uid, key, connection, listening.options);
        self.sockets[index].listener = Some(at);
        let connection = &mut self.sockets[index].connection;
        let events = connection.on_segment(self.now, segment, payload);
        self.on_events(index, events);
    }

    /// A SYN for something that may be listened to. `isn_after`: the old incarnation's last sequence number.
    pub(super) fn on_syn(&mut self, key: FlowKey, segment: &Segment, isn_after: Option<SeqNumber>) {
        let Some(at) = self.listener_for(key.local) else {
            return self.refuse(&key, segment);
        };
        let listener = &mut self.listeners[at];
        let listening = listener.end.listening().clone();
        let backlog = listening.backlog.max(1);
        if listener.half_open + listener.end.waiting() >= backlog {
            if listener.end.waiting() >= backlog || isn_after.is_some() {
                // As in Linux: the peer tries again.
                return self.settings.counters.backlog_full.add(1);
            }
            listener.cookies_until = Some(self.now + COOKIE_LIFE);
            let config = self.tcp_config(&listening.options, key.remote);
            let isn = &self.settings.isn;
            if let Some(reply) = isn.cookie_reply(&config, &key, segment, self.now) {
                self.settings.counters.syncookies_sent.add(1);
                self.send_alone(&key, &reply);
            }
            return;
        }
        listener.half_open += 1;
        let config = self.tcp_config(&listening.options, key.remote);
        let mut isn = self.settings.isn.isn(&key, self.now);
        if let Some(after) = isn_after
            && isn.le(after)
        {
            // RFC 1122 §4.2.2.13: "its initial sequence number for the new connection is larger than the largest sequence
            // number it used on the previous connection incarnation".
            isn = after + 64_000;
        }
        let ts_offset = self.settings.isn.ts_offset(&key);
        let connection = Connection::accept(&config, key, segment, isn, ts_offset, self.now);
        let entry = self.sockets.vacant_key();
        let id = self.new_id(entry);
        let index = self.add_socket(id, listening.uid, key, connection, listening.options);
        self.sockets[index].listener = Some(at);
    }

    /// A half-open connection is established: its descriptor goes to the client.
    pub(super) fn accept(&mut self, index: usize) {
        let socket = &mut self.sockets[index];
        let Some(at) = socket.listener.take() else {
            return;
        };
        let (id, uid, key) = (socket.id, socket.uid, socket.key);
        let listener = &mut self.listeners[at];
        listener.half_open = listener.half_open.saturating_sub(1);
        let (end, client) = match self.host.open(index, id, uid, &key, false) {
            Ok(pair) => pair,
            Err(errno) => {
                tracing::warn!("a connection from {} is reset: {errno}", key.remote);
                self.sockets[index].abort(Reason::Aborted);
                return;
            }
        };
        self.sockets[index].end = Some(End::new(end));
        self.settings.counters.accepted.add(1);
        let listener = &mut self.listeners[at];
        if !listener.end.accepted(key.local, key.remote, client) {
            self.remove_listener(at);
        }
    }

    /// The client's end of a listener became ready, or was closed.
    pub(crate) fn on_listener(&mut self, at: usize, closed: bool) {
        let Some(listener) = self.listeners.get_mut(at) else {
            return;
        };
        if closed || !listener.end.hand_over() {
            self.remove_listener(at);
        }
    }

    pub(super) fn retry_listeners(&mut self) {
        let due: Vec<usize> = self
            .listeners
            .iter()
            .filter(|(_, listener)| listener.end.must_retry())
            .map(|(at, _)| at)
            .collect();
        for at in due {
            self.on_listener(at, false);
        }
    }

    /// A half-open connection ended before it was accepted.
    pub(super) fn forget_half_open(&mut self, at: usize) {
        if let Some(listener) = self.listeners.get_mut(at) {
            listener.half_open = listener.half_open.saturating_sub(1);
        }
    }

    /// The client closed a listener: what is half open, or waits to be accepted, is reset.
    fn remove_listener(&mut self, at: usize) {
        let Some(listener) = self.listeners.try_remove(at) else {
            return;
        };
        let port = listener.end.listening().local.port();
        if let Some(indices) = self.listening.get_mut(&port) {
            indices.retain(|&index| index != at);
            if indices.is_empty() {
                self.listening.remove(&port);
            }
        }
        let half_open: Vec<usize> = self
            .sockets
            .iter()
            .filter(|(_, socket)| socket.listener == Some(at))
            .map(|(index, _)| index)
            .collect();
        for index in half_open {
            self.sockets[index].listener = None;
            self.sockets[index].abort(Reason::Aborted);
            self.queue(index);
        }
        // Closing drops the waiting clients' ends; their sockets see that and end.
        self.host.close_listener(listener.end);
    }

    /// Opens a connection from a port that makes this engine its owner: the socket's number, what its client gets, and
    /// the local address.
    pub(crate) fn connect(
        &mut self,
        now: Instant,
        request: ConnectRequest,
    ) -> Result<(SocketId, H::Client, SocketAddr), Errno> {
        self.now = now;
        let remote = request.remote;
        if remote.port() == 0 || remote.ip().is_unspecified() {
            return Err(Errno::ADDRNOTAVAIL);
        }
        let ip = match request
            .local
            .map(|local| local.ip())
            .filter(|ip| !ip.is_unspecified())
        {
            Some(ip) if !self.is_ours(ip) => return Err(Errno::ADDRNOTAVAIL),
            Some(ip) => ip,
            None => self.source_for(remote.ip()).ok_or(Errno::NETUNREACH)?,
        };
        if ip.is_ipv4() != remote.is_ipv4() {
            return Err(Errno::AFNOSUPPORT);
        }
        let key = self.free_flow(ip, request.local.map_or(0, |local| local.port()), remote)?;
        let config = self.tcp_config(&request.options, remote);
        let entry = self.sockets.vacant_key();
        let id = self.new_id(entry);
        let (end, client) = self.host.open(entry, id, request.uid, &key, true)?;
        let isn = self.settings.isn.isn(&key, self.now);
        let ts_offset = self.settings.isn.ts_offset(&key);
        let connection = Connection::connect(&config, key, isn, ts_offset, self.now);
        let index = self.add_socket(id, request.uid, key, connection, request.options);
        debug_assert_eq!(index, entry, "the slab was not touched in between");
        self.sockets[index].end = Some(End::new(end));
        Ok((id, client, key.local))
    }

    /// The stack's own address to reach `remote` from: the first one on its network, else the first of its family.
    pub(crate) fn source_for(&self, remote: IpAddr) -> Option<IpAddr> {
        let addresses = &self.settings.config.addresses;
        addresses
            .iter()
            .find(|(ours, prefix)| same_network(*ours, remote, *prefix))
            .or_else(|| {
                addresses
                    .iter()
                    .find(|(ours, _)| ours.is_ipv4() == remote.is_ipv4())
            })
            .map(|(ours, _)| *ours)
    }

    /// A flow to `remote` that nobody uses and this engine owns.
    fn free_flow(&mut self, ip: IpAddr, port: u16, remote: SocketAddr) -> Result<FlowKey, Errno> {
        let engines = self.settings.engines;
        if port != 0 {
            let key = FlowKey {
                local: SocketAddr::new(ip, port),
                remote,
            };
            // A port that the client insists on may make another engine the owner; the front door asked that one.
            if self.flows.contains_key(&key)
                || self.settings.hash.owner(key, engines) != self.settings.index
            {
                return Err(Errno::ADDRINUSE);
            }
            return Ok(key);
        }
        let span = DYNAMIC_PORTS.end() - DYNAMIC_PORTS.start() + 1;
        for _ in 0..span {
            self.next_port = (self.next_port + 1) % span;
            let port = DYNAMIC_PORTS.start() + self.next_port;
            let key = FlowKey {
                local: SocketAddr::new(ip, port),
                remote,
            };
            if self.settings.hash.owner(key, engines) == self.settings.index
                && !self.flows.contains_key(&key)
                && !self.listening.contains_key(&port)
            {
                return Ok(key);
            }
        }
        Err(Errno::ADDRNOTAVAIL)
    }
}

/// Linux's interval and count (`tcp_keepalive_intvl`, `tcp_keepalive_probes`) behind the caller's idle time.
pub(super) fn keep_alive(idle: Duration) -> KeepAlive {
    KeepAlive {
        idle,
        interval: Duration::from_secs(75),
        count: 9,
    }
}

/// Whether the first `prefix` bits agree.
pub(crate) fn same_network(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    let shift = |bits: u32| bits.saturating_sub(u32::from(prefix));
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.to_bits() ^ b.to_bits())
                .checked_shr(shift(32))
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits())
                .checked_shr(shift(128))
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}
