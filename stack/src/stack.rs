//! The running stack: one shard a device queue, and the front door ([`Handle`]) that spreads requests over them.

use crate::budget::Budget;
use crate::client_fd::{self, ClientFd};
use crate::counters::Counters;
use crate::device::Device;
use crate::engine::{FlowHash, Listening, UdpSocket};
use crate::handle::{
    ClientEnd, ConnectRequest, ListenRequest, Named, Reply, SocketId, SocketOp, SocketReply,
    UdpRequest,
};
use crate::registry::{Registry, Transport};
use crate::shard::{CHANNEL, Common, DatagramsEnd, Helpers, Port, Shard, SharedListener, ToShard};
use crate::socket_info::SocketInfo;
use crate::tcp::{self, FlowKey, IsnGenerator};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::SocketType;
use siphasher::sip::SipHasher13;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What a stack is.
#[derive(Debug, Clone)]
pub struct StackConfig {
    /// The stack's own addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// MTU of the device.
    pub mtu: usize,
    /// TCP settings; MSS, buffer and the like are filled in for each connection.
    pub tcp: tcp::Config,
    /// Limits.
    pub limits: Limits,
}

/// Bounds on what clients may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sockets altogether.
    pub sockets: usize,
    /// Sockets of one user.
    pub sockets_per_uid: usize,
    /// Sealed and unacknowledged bytes of one socket.
    pub memory_per_socket: usize,
    /// Largest window that one socket may offer, whatever its options say.
    pub receive_per_socket: usize,
    /// Stream bytes that all sockets of one user may hold, in both directions.
    pub memory_per_uid: usize,
    /// Stream bytes that all sockets may hold.
    pub memory_total: usize,
    /// Helper threads.
    pub helper_threads: usize,
    /// Helper threads that one user may keep busy at once.
    pub helpers_per_uid: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            sockets: 262_144,
            sockets_per_uid: 131_072,
            // What Linux's default tcp_wmem maximum of 4 MiB holds of payload; and still mostly in a core's own cache.
            memory_per_socket: 2 << 20,
            receive_per_socket: 16 << 20,
            memory_per_uid: 512 << 20,
            memory_total: 1 << 30,
            helper_threads: 4,
            helpers_per_uid: 2,
        }
    }
}

/// A running stack. Dropping it without [`stop`](Stack::stop) leaves its threads to the process's end.
pub struct Stack {
    handle: Handle,
    threads: Vec<JoinHandle<()>>,
    helpers: Arc<Helpers>,
}

/// The front door; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    common: Arc<Common>,
    next: Arc<AtomicUsize>,
    next_id: Arc<AtomicU64>,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("threads", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl Stack {
    /// Starts one shard for each device queue. Also sets the process's SIGBUS handler, which sealing from mapped files needs.
    ///
    /// # Errors
    /// When a thread, a timer or an epoll instance cannot be had, or there is no queue.
    #[expect(
        clippy::disallowed_methods,
        reason = "the daemon's edge: real secrets, and the start of real time"
    )]
    pub fn start(config: StackConfig, queues: Vec<Box<dyn Device + Send>>) -> io::Result<Stack> {
        if queues.is_empty() || queues.len() > 128 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a stack has 1 to 128 device queues",
            ));
        }
        crate::emit::sigbus::install()?;
        let mut secret = [0u8; 32];
        getrandom::fill(&mut secret).map_err(|error| io::Error::other(error.to_string()))?;
        let (mut flows, mut isn) = ([0; 16], [0; 16]);
        flows.copy_from_slice(&secret[..16]);
        isn.copy_from_slice(&secret[16..]);
        let helpers = Arc::new(Helpers::start(
            config.limits.helper_threads.max(1),
            config.limits.helpers_per_uid,
        )?);
        let mut inboxes = Vec::new();
        let mut ports = Vec::new();
        for _ in &queues {
            let (sender, inbox) = crossbeam_channel::bounded(CHANNEL);
            let (poll, waker) = Shard::poll()?;
            ports.push(Port { sender, waker });
            inboxes.push((inbox, poll));
        }
        let common = Common {
            registry: Arc::new(Registry::new(
                config.limits.sockets,
                config.limits.sockets_per_uid,
            )),
            budget: Arc::new(Budget::new(
                config.limits.memory_per_uid,
                config.limits.memory_total,
            )),
            config: Arc::new(config),
            counters: Arc::new(Counters::default()),
            helpers: helpers.clone(),
            hash: FlowHash(SipHasher13::new_with_key(&flows)),
            isn: IsnGenerator::new(isn),
            ports,
            epoch: std::time::Instant::now(),
        };
        let mut threads = Vec::new();
        for (index, ((inbox, poll), device)) in inboxes.into_iter().zip(queues).enumerate() {
            let shard = Shard::new(index, common.clone(), inbox, poll, device)?;
            threads.push(
                std::thread::Builder::new()
                    .name(format!("shard-{index}"))
                    .spawn(move || shard.run())?,
            );
        }
        let handle = Handle {
            common: Arc::new(common),
            next: Arc::new(AtomicUsize::new(0)),
            next_id: Arc::new(AtomicU64::new(1)),
        };
        Ok(Stack {
            handle,
            threads,
            helpers,
        })
    }

    /// The front door.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Resets every connection, ends every client's end, and waits for the shards.
    pub fn stop(self) {
        for port in &self.handle.common.ports {
            port.send(ToShard::Stop);
        }
        for thread in self.threads {
            let _ = thread.join();
        }
        self.helpers.stop();
    }
}

/// What a listener or a UDP socket has before a shard takes it.
struct Reserved {
    id: SocketId,
    local: SocketAddr,
    ours: ClientFd,
    client: OwnedFd,
    cookie: u64,
}

impl Handle {
    fn port(&self, shard: usize) -> &Port {
        &self.common.ports[shard % self.common.ports.len()]
    }

    /// A number for a socket that is not a connection; its low half lies above every slab index.
    fn other_id(&self, shard: usize) -> SocketId {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        SocketId((shard as u64) << 56 | (number & 0xff_ffff) << 32 | 0xffff_ffff)
    }

    fn check_local(&self, local: SocketAddr) -> Result<(), Errno> {
        let ip: IpAddr = local.ip();
        if ip.is_unspecified()
            || self
                .common
                .config
                .addresses
                .iter()
                .any(|(ours, _)| *ours == ip)
        {
            Ok(())
        } else {
            Err(Errno::ADDRNOTAVAIL)
        }
    }

    /// Opens a connection.
    pub fn connect(&self, request: ConnectRequest, reply: Reply<ClientEnd>) {
        let shard = match request.local {
            Some(local) if local.port() != 0 && !local.ip().is_unspecified() => {
                let key = FlowKey {
                    local,
                    remote: request.remote,
                };
                self.common.hash.owner(key, self.common.ports.len())
            }
            _ => self.next.fetch_add(1, Ordering::Relaxed),
        };
        self.port(shard).send(ToShard::Connect(request, reply));
    }

    /// Reserves a port, and makes and enters the socket pair of a listener or a UDP socket.
    fn reserve(
        &self,
        transport: Transport,
        wanted: SocketAddr,
        uid: u32,
    ) -> Result<Reserved, Errno> {
        let local = self.common.registry.reserve(transport, wanted)?;
        let shard = match transport {
            // Every shard takes a listener's SYNs; the first one tells of it.
            Transport::Tcp => 0,
            Transport::Udp => self
                .common
                .hash
                .owner(local.port(), self.common.ports.len()),
        };
        let id = self.other_id(shard);
        let made = client_fd::pair(SocketType::SEQPACKET).and_then(|pair| {
            self.common.registry.add(pair.2, id, uid)?;
            Ok(pair)
        });
        match made {
            Ok((ours, client, cookie)) => Ok(Reserved {
                id,
                local,
                ours,
                client,
                cookie,
            }),
            Err(errno) => {
                self.common.registry.free(transport, local);
                Err(errno)
            }
        }
    }

    /// Opens a listening socket. Answered when every shard takes its SYNs.
    pub fn listen(&self, request: ListenRequest, reply: Reply<ClientEnd>) {
        let outcome = self.check_local(request.local).and_then(|()| {
            let Reserved {
                id,
                local,
                ours,
                client,
                cookie,
            } = self.reserve(Transport::Tcp, request.local, request.uid)?;
            let shared = Arc::new(SharedListener {
                listening: Listening {
                    id,
                    uid: request.uid,
                    local,
                    backlog: request.backlog,
                    options: request.options,
                },
                cookie,
                registry: self.common.registry.clone(),
            });
            for port in &self.common.ports {
                port.send(ToShard::Listen(
                    shared.clone(),
                    ours.as_fd()
                        .try_clone_to_owned()
                        .map_err(|_| Errno::MFILE)?
                        .into(),
                ));
            }
            Ok(ClientEnd {
                id,
                fd: client,
                cookie,
                local,
            })
        });
        match outcome {
            Err(errno) => reply(Err(errno)),
            Ok(end) => self.after_all_shards(move || reply(Ok(end))),
        }
    }

    /// Calls `then` once every shard has worked through what was sent to it before.
    fn after_all_shards(&self, then: impl FnOnce() + Send + 'static) {
        let left = Arc::new(AtomicUsize::new(self.common.ports.len()));
        let then = Arc::new(Mutex::new(Some(then)));
        for port in &self.common.ports {
            let (left, then) = (left.clone(), then.clone());
            port.send(ToShard::List(Box::new(move |_| {
                if left.fetch_sub(1, Ordering::AcqRel) == 1
                    && let Some(then) = then.lock().ok().and_then(|mut slot| slot.take())
                {
                    then();
                }
            })));
        }
    }

    /// Opens a UDP socket.
    pub fn bind_udp(&self, request: UdpRequest, reply: Reply<ClientEnd>) {
        let outcome = self.check_local(request.local).and_then(|()| {
            let Reserved {
                id,
                local,
                ours,
                client,
                cookie,
            } = self.reserve(Transport::Udp, request.local, request.uid)?;
            let socket = UdpSocket {
                id,
                uid: request.uid,
                local,
                remote: request.remote,
                end: DatagramsEnd {
                    local,
                    cookie,
                    fd: ours,
                    registry: self.common.registry.clone(),
                },
            };
            self.port(id.shard()).send(ToShard::Udp(Box::new(socket)));
            Ok(ClientEnd {
                id,
                fd: client,
                cookie,
                local,
            })
        });
        match outcome {
            Err(errno) => reply(Err(errno)),
            Ok(end) => self.after_all_shards(move || reply(Ok(end))),
        }
    }

    /// Acts on a socket.
    pub fn socket(&self, id: SocketId, op: SocketOp, reply: Reply<SocketReply>) {
        if id.shard() >= self.common.ports.len() {
            return reply(Err(Errno::BADF));
        }
        self.port(id.shard()).send(ToShard::Op(id, op, reply));
    }

    /// What a descriptor's cookie names.
    pub fn named(&self, cookie: u64) -> Option<Named> {
        self.common.registry.named(cookie)
    }

    /// All sockets, ordered by number.
    pub fn sockets(&self, reply: Box<dyn FnOnce(Vec<SocketInfo>) + Send>) {
        let shards = self.common.ports.len();
        type Gather = (
            usize,
            Vec<SocketInfo>,
            Option<Box<dyn FnOnce(Vec<SocketInfo>) + Send>>,
        );
        let gather: Arc<Mutex<Gather>> = Arc::new(Mutex::new((shards, Vec::new(), Some(reply))));
        for port in &self.common.ports {
            let gather = gather.clone();
            port.send(ToShard::List(Box::new(move |sockets| {
                let Ok(mut state) = gather.lock() else { return };
                state.1.extend(sockets);
                state.0 -= 1;
                if state.0 == 0
                    && let Some(reply) = state.2.take()
                {
                    let mut all = std::mem::take(&mut state.1);
                    drop(state);
                    all.sort_by_key(|socket| socket.id);
                    reply(all);
                }
            })));
        }
    }

    /// All counters, Linux's `tls_stat` names first.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.common.counters.snapshot()
    }
}
