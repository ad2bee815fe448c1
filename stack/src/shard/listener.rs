//! Listening sockets: SYNs become half-open connections, established ones wait in the backlog for the client to accept
//! them.
//!
//! The client's end of a listener is a `SOCK_SEQPACKET` socket on which accepted descriptors arrive. A Unix queue holds few
//! messages and a user may have only so many descriptors in flight, so the queue that honours `backlog` is here; it is
//! refilled when the client's end has room. With several shards each takes the SYNs of the flows it owns.

use super::tcp_socket::{End, TcpSocket};
use super::{Flow, LISTENER, Shard, TCP};
use crate::address::{self, ACCEPTED_LEN};
use crate::handle::{ClientEnd, ConnectRequest, Reply, SocketId, SocketOptions};
use crate::registry::{DYNAMIC_PORTS, Registry, Transport};
use crate::socket_info::{Reason, SocketInfo, SocketKind};
use crate::tcp::{Connection, FlowKey, KeepAlive, Segment, SeqNumber};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, sockopt,
};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What all shards share of one listening socket. When the last lets go of it, its port and its cookie are free.
#[derive(Debug)]
pub(crate) struct SharedListener {
    pub(crate) id: SocketId,
    pub(crate) uid: u32,
    pub(crate) local: SocketAddr,
    pub(crate) backlog: usize,
    pub(crate) options: SocketOptions,
    pub(crate) cookie: u64,
    pub(crate) registry: Arc<Registry>,
}

impl Drop for SharedListener {
    fn drop(&mut self) {
        self.registry.free(Transport::Tcp, self.local);
        self.registry.remove(self.cookie, None);
    }
}

/// A listening socket in one shard.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) shared: Arc<SharedListener>,
    end: OwnedFd,
    half_open: usize,
    /// Accepted connections whose descriptor the client's end has no room for yet.
    waiting: VecDeque<Accepted>,
    /// The user has too many descriptors in flight: nothing will tell when that changes.
    retry: bool,
}

#[derive(Debug)]
struct Accepted {
    header: [u8; ACCEPTED_LEN],
    client: OwnedFd,
}

impl Listener {
    pub(super) fn must_retry(&self) -> bool {
        self.retry
    }

    /// What `uktls stat` shows.
    pub(super) fn info(&self, shard: usize) -> SocketInfo {
        SocketInfo {
            id: self.shared.id.0,
            kind: SocketKind::TcpListener,
            shard,
            uid: self.shared.uid,
            local: self.shared.local,
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

    /// Hands over what the client's end takes. False when the client is gone.
    fn hand_over(&mut self) -> bool {
        self.retry = false;
        while let Some(first) = self.waiting.front() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors = [first.client.as_fd()];
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            debug_assert!(fits, "the space was made for one descriptor");
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(
                &self.end,
                &[IoSlice::new(&first.header)],
                &mut ancillary,
                flags,
            ) {
                Ok(_) => {
                    self.waiting.pop_front();
                }
                Err(Errno::INTR) => {}
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
}

/// A stream socket pair for a TCP socket: ours, the client's, and the client's cookie.
pub(super) fn stream_pair() -> Result<(OwnedFd, OwnedFd, u64), Errno> {
    let (ours, client) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // The client decides itself whether its end blocks.
    rustix::io::ioctl_fionbio(&client, false)?;
    let cookie = sockopt::socket_cookie(&client)?;
    Ok((ours, client, cookie))
}

/// Fills a client's end, so that it polls as not writable until the connection stands. Gives the number of bytes.
fn fill(client: &OwnedFd) -> Result<usize, Errno> {
    let filler = [0; 32 * 1024];
    let mut filled = 0;
    loop {
        match rustix::net::send(client, &filler, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => filled += sent,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(filled),
            Err(errno) => return Err(errno),
        }
    }
}

impl Shard {
    /// TCP settings of a socket with these options towards this address.
    fn tcp_config(&self, options: &SocketOptions, remote: SocketAddr) -> crate::tcp::Config {
        let capabilities = self.device.capabilities();
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
            recv_buffer: options.receive_buffer,
            keepalive: options.keepalive.map(keep_alive),
            ..self.common.config.tcp
        }
    }

    /// Puts a new connection into slab and flow table.
    fn add_socket(
        &mut self,
        uid: u32,
        key: FlowKey,
        connection: Connection,
        options: SocketOptions,
    ) -> usize {
        let entry = self.sockets.vacant_key();
        let id = self.new_id(entry);
        let index = self
            .sockets
            .insert(TcpSocket::new(id, uid, key, connection, options));
        self.flows.insert(key, Flow::Socket(index));
        self.queue(index);
        index
    }

    pub(super) fn listen(&mut self, shared: Arc<SharedListener>, end: OwnedFd) {
        let index = self.listeners.vacant_key();
        if let Err(errno) = self.register(&end, LISTENER, index) {
            tracing::error!("a listener cannot be watched: {errno}");
            return;
        }
        let port = shared.local.port();
        self.listeners.insert(Listener {
            shared,
            end,
            half_open: 0,
            waiting: VecDeque::new(),
            retry: false,
        });
        self.listening.entry(port).or_default().push(index);
    }

    /// A SYN for something that may be listened to. `isn_after`: the old incarnation's last sequence number.
    pub(super) fn on_syn(&mut self, key: FlowKey, segment: &Segment, isn_after: Option<SeqNumber>) {
        let found = self.listening.get(&key.local.port()).and_then(|indices| {
            indices.iter().copied().find(|&index| {
                let local = self.listeners[index].shared.local;
                local.ip() == key.local.ip()
                    || (local.ip().is_unspecified() && local.is_ipv4() == key.local.is_ipv4())
            })
        });
        let Some(at) = found else {
            return self.refuse(&key, segment);
        };
        let listener = &mut self.listeners[at];
        if listener.half_open + listener.waiting.len() >= listener.shared.backlog.max(1) {
            // As in Linux: the peer tries again.
            return self.common.counters.backlog_full.add(1);
        }
        listener.half_open += 1;
        let shared = listener.shared.clone();
        let config = self.tcp_config(&shared.options, key.remote);
        let mut isn = self.common.isn.isn(&key, self.now);
        if let Some(after) = isn_after
            && isn.le(after)
        {
            // RFC 1122 §4.2.2.13: "its initial sequence number for the new connection is larger than the largest sequence
            // number it used on the previous connection incarnation".
            isn = after + 64_000;
        }
        let ts_offset = self.common.isn.ts_offset(&key);
        let connection = Connection::accept(&config, key, segment, isn, ts_offset, self.now);
        let index = self.add_socket(shared.uid, key, connection, shared.options.clone());
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
        let made = stream_pair()
            .and_then(|pair| self.common.registry.add(pair.2, id, uid).map(|()| pair))
            .and_then(|pair| match self.register(&pair.0, TCP, index) {
                Ok(()) => Ok(pair),
                Err(errno) => {
                    self.common.registry.remove(pair.2, None);
                    Err(errno)
                }
            });
        let (ours, client, cookie) = match made {
            Ok(pair) => pair,
            Err(errno) => {
                tracing::warn!("a connection from {} is reset: {errno}", key.remote);
                self.sockets[index].abort(Reason::Aborted);
                return;
            }
        };
        self.sockets[index].end = Some(End::new(ours, cookie));
        self.common.counters.accepted.add(1);
        let mut header = [0; ACCEPTED_LEN];
        header[..ACCEPTED_LEN / 2].copy_from_slice(&address::encode(key.local));
        header[ACCEPTED_LEN / 2..].copy_from_slice(&address::encode(key.remote));
        let listener = &mut self.listeners[at];
        listener.waiting.push_back(Accepted { header, client });
        if !listener.hand_over() {
            self.remove_listener(at);
        }
    }

    /// The client's end of a listener became ready, or was closed.
    pub(super) fn on_listener(&mut self, at: usize, closed: bool) {
        let Some(listener) = self.listeners.get_mut(at) else {
            return;
        };
        if closed || !listener.hand_over() {
            self.remove_listener(at);
        }
    }

    pub(super) fn retry_listeners(&mut self) {
        let due: Vec<usize> = self
            .listeners
            .iter()
            .filter(|(_, listener)| listener.retry)
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
        let _ = self.poll.registry().deregister(&mut mio::unix::SourceFd(
            &rustix::fd::AsRawFd::as_raw_fd(&listener.end),
        ));
        if let Some(indices) = self.listening.get_mut(&listener.shared.local.port()) {
            indices.retain(|&index| index != at);
        }
        self.listening.retain(|_, indices| !indices.is_empty());
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
        // Dropping the waiting descriptors closes their last copies; their sockets see that and end.
    }

    /// Opens a connection from a port that makes this shard its owner.
    pub(super) fn connect(&mut self, request: ConnectRequest, reply: Reply<ClientEnd>) {
        reply(self.try_connect(request));
    }

    fn try_connect(&mut self, request: ConnectRequest) -> Result<ClientEnd, Errno> {
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
            None => self
                .common
                .config
                .addresses
                .iter()
                .map(|(ip, _)| *ip)
                .find(|ip| ip.is_ipv4() == remote.is_ipv4())
                .ok_or(Errno::NETUNREACH)?,
        };
        if ip.is_ipv4() != remote.is_ipv4() {
            return Err(Errno::AFNOSUPPORT);
        }
        let key = self.free_flow(ip, request.local.map_or(0, |local| local.port()), remote)?;
        let (ours, client, cookie) = stream_pair()?;
        let filler = fill(&client)?;
        let config = self.tcp_config(&request.options, remote);
        let isn = self.common.isn.isn(&key, self.now);
        let ts_offset = self.common.isn.ts_offset(&key);
        let connection = Connection::connect(&config, key, isn, ts_offset, self.now);
        let index = self.add_socket(request.uid, key, connection, request.options);
        let id = self.sockets[index].id;
        let added = self
            .common
            .registry
            .add(cookie, id, request.uid)
            .and_then(|()| self.register(&ours, TCP, index));
        if let Err(errno) = added {
            self.common.registry.remove(cookie, None);
            self.flows.remove(&key);
            self.sockets.remove(index);
            return Err(errno);
        }
        self.sockets[index].end = Some(End::new(ours, cookie));
        self.sockets[index].filler = filler;
        Ok(ClientEnd {
            id,
            fd: client,
            cookie,
            local: key.local,
        })
    }

    /// A flow to `remote` that nobody uses and this shard owns.
    fn free_flow(
        &mut self,
        ip: std::net::IpAddr,
        port: u16,
        remote: SocketAddr,
    ) -> Result<FlowKey, Errno> {
        let shards = self.common.ports.len();
        if port != 0 {
            let key = FlowKey {
                local: SocketAddr::new(ip, port),
                remote,
            };
            // A port that the client insists on may make another shard the owner; the front door asked that one.
            if self.flows.contains_key(&key) || self.common.hash.owner(key, shards) != self.index {
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
            if self.common.hash.owner(key, shards) == self.index
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
