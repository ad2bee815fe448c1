//! The daemon's side of the [protocol](crate::protocol): takes requests from clients and has a stack answer them.
//!
//! One thread and one mio loop. No request blocks it: the stack answers through a channel and a waker, received descriptors are
//! closed elsewhere, and a client that does not read its answers is not read either. No packet passes here; what flows on
//! sockets flows between the client's descriptor and the stack's shards.
//!
//! ```text
//!   clients ══ SEQPACKET ══ Server (this thread) ── StackHandle ──→ shards
//!                               ↑ waker, channel ←── answers ──────────┘
//! ```
//!
//! Who may ask: processes of the daemon's own user, and root. Which socket a request is about is said by passing the
//! socket's descriptor, so that holding it is the right to use it. Keys are shown to the socket's creator only, and to
//! nobody under `no_key_export`. Secrets for a capture are taken from the daemon's own user only.

mod binding;
mod connection;
mod handle;
pub mod privileges;
mod stack;

pub use handle::{Answer, Named, Open, Opened, StackHandle};

use binding::Binding;
use connection::{Ended, Handled, Outgoing};
use crossbeam_channel::{Receiver, Sender, unbounded};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::fd::AsRawFd;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};
use rustix::process::geteuid;
use slab::Slab;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use uktls_stack::client_fd::ClientFd;
use uktls_stack::device::capture::Capture;

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

/// Requests answered for one connection before the others get their turn.
const TURN: usize = 16;

/// How soon accepting is tried again when the process was out of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What a server allows.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Show keys to nobody.
    pub no_key_export: bool,
    /// Control connections in all. Default 4096.
    pub max_clients: usize,
    /// Control connections of one user. Default 1024.
    pub max_clients_per_uid: usize,
    /// The capture of the stack's devices, for secrets that clients hand in.
    pub capture: Option<Capture>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            no_key_export: false,
            max_clients: 4096,
            max_clients_per_uid: 1024,
            capture: None,
        }
    }
}

/// A daemon's socket and its clients.
#[derive(Debug)]
pub struct Server<H> {
    binding: Binding,
    stack: H,
    config: ServerConfig,
    owner: u32,
    poll: Poll,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    answers: (Sender<Late>, Receiver<Late>),
    connections: Slab<Connection>,
    per_uid: BTreeMap<u32, usize>,
    /// Never used twice, so that a late answer does not reach a later connection in the same place.
    next_serial: u64,
    accept_paused: bool,
    /// Connections that used up their turn.
    again: Vec<usize>,
}

#[derive(Debug)]
struct Connection {
    /// Requests that are not read yet may hold any descriptor.
    socket: ClientFd,
    serial: u64,
    uid: u32,
    greeted: bool,
    /// A request is with the stack.
    busy: bool,
    outgoing: Option<Outgoing>,
    /// The answer on its way is the last.
    last: bool,
}

/// An answer that the stack gave after its request was put aside.
#[derive(Debug)]
struct Late {
    place: usize,
    serial: u64,
    outgoing: Outgoing,
}

/// A server that runs in a thread of its own.
#[derive(Debug)]
pub struct Running {
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl<H: StackHandle> Server<H> {
    /// Takes `path` over and listens there. Nothing is answered before [`run`](Self::run) or [`spawn`](Self::spawn).
    ///
    /// # Errors
    /// One line that says what is wrong and what to do: another daemon serves the path, the path is something else's, its
    /// directory is missing.
    pub fn bind(path: impl AsRef<Path>, stack: H, config: ServerConfig) -> io::Result<Server<H>> {
        let binding = Binding::new(path.as_ref())?;
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        poll.registry().register(
            &mut SourceFd(&binding.listener.as_raw_fd()),
            LISTENER,
            Interest::READABLE,
        )?;
        Ok(Server {
            binding,
            stack,
            config,
            owner: geteuid().as_raw(),
            poll,
            waker,
            stop: Arc::default(),
            // Bounded by the connections: each has at most one request with the stack.
            answers: unbounded(),
            connections: Slab::new(),
            per_uid: BTreeMap::new(),
            next_serial: 0,
            accept_paused: false,
            again: Vec::new(),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.binding.path
    }

    /// Serves in a thread of its own.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn spawn(self) -> io::Result<Running> {
        let (waker, stop) = (Arc::clone(&self.waker), Arc::clone(&self.stop));
        let thread = std::thread::Builder::new()
            .name("uktls-server".into())
            .spawn(move || self.run())?;
        Ok(Running {
            waker,
            stop,
            thread: Some(thread),
        })
    }

    /// Serves until [`Running::stop`]; removes the socket at the end.
    ///
    /// # Errors
    /// Only of waiting itself; nothing a client does ends it.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let mut buffer = vec![0; crate::protocol::MAX_MESSAGE];
        while !self.stop.load(Ordering::Acquire) {
            let timeout = if !self.again.is_empty() {
                Some(Duration::ZERO)
            } else {
                self.accept_paused.then_some(ACCEPT_AGAIN)
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let mut accept = self.accept_paused;
            for event in &events {
                match event.token() {
                    LISTENER => accept = true,
                    WAKER => {}
                    Token(place) => self.again.push(place),
                }
            }
            while let Ok(late) = self.answers.1.try_recv() {
                self.answered(late);
            }
            if accept {
                self.accept();
            }
            for place in std::mem::take(&mut self.again) {
                self.turn(place, &mut buffer);
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        self.accept_paused = false;
        loop {
            match accept_with(
                &self.binding.listener,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            ) {
                Ok(socket) => self.admit(socket.into()),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    // Out of descriptors or memory. The client waits in the backlog; readiness will not be told again.
                    tracing::warn!(
                        "cannot accept a control connection: {}",
                        io::Error::from(errno)
                    );
                    self.accept_paused = true;
                    return;
                }
            }
        }
    }

    fn admit(&mut self, socket: ClientFd) {
        let refusal = match sockopt::socket_peercred(&socket) {
            Ok(peer) => {
                let uid = peer.uid.as_raw();
                let count = self.per_uid.get(&uid).copied().unwrap_or(0);
                if uid != self.owner && uid != 0 {
                    Errno::PERM
                } else if self.connections.len() >= self.config.max_clients
                    || count >= self.config.max_clients_per_uid
                {
                    Errno::USERS
                } else {
                    match self.register(socket, uid) {
                        Ok(place) => return self.again.push(place),
                        Err(error) => {
                            return tracing::warn!("cannot watch a control connection: {error}");
                        }
                    }
                }
            }
            Err(errno) => errno,
        };
        tracing::warn!("refused a control connection: {}", io::Error::from(refusal));
        connection::refuse(&socket, refusal);
    }

    fn register(&mut self, socket: ClientFd, uid: u32) -> io::Result<usize> {
        let place = self.connections.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(
            &mut SourceFd(&socket.as_raw_fd()),
            Token(place.key()),
            interest,
        )?;
        let key = place.key();
        place.insert(Connection {
            socket,
            serial: self.next_serial,
            uid,
            greeted: false,
            busy: false,
            outgoing: None,
            last: false,
        });
        self.next_serial += 1;
        *self.per_uid.entry(uid).or_default() += 1;
        Ok(key)
    }

    fn answered(&mut self, late: Late) {
        let Some(connection) = self
            .connections
            .get_mut(late.place)
            .filter(|c| c.serial == late.serial)
        else {
            return;
        };
        connection.busy = false;
        connection.outgoing = Some(late.outgoing.resolved(&self.stack));
        self.again.push(late.place);
    }

    /// Goes on with one connection as far as it can without waiting, within its turn.
    fn turn(&mut self, place: usize, buffer: &mut [u8]) {
        for _ in 0..TURN {
            match self.step(place, buffer) {
                Ok(true) => {}
                Ok(false) => return,
                Err(ended) => return self.disconnect(place, &ended),
            }
        }
        self.again.push(place);
    }

    /// Whether something was done and more may be possible.
    fn step(&mut self, place: usize, buffer: &mut [u8]) -> Result<bool, Ended> {
        let Some(connection) = self.connections.get_mut(place) else {
            return Ok(false);
        };
        if let Some(outgoing) = &connection.outgoing {
            match outgoing.send(&connection.socket) {
                Ok(()) => connection.outgoing = None,
                Err(Errno::AGAIN) => return Ok(false),
                // The client has as many descriptors in flight as it may; ours has no place among them.
                Err(Errno::TOOMANYREFS) => {
                    connection.outgoing = Some(Outgoing::error(Errno::TOOMANYREFS))
                }
                Err(errno) => return Err(Ended::Broken(errno)),
            }
            return Ok(true);
        }
        if connection.last {
            return Err(Ended::Done);
        }
        if connection.busy {
            return Ok(false);
        }
        let Some(incoming) = connection::receive(&connection.socket, buffer)? else {
            return Ok(false);
        };
        let serial = connection.serial;
        let later = || -> Box<dyn FnOnce(Outgoing) + Send> {
            let (answers, waker) = (self.answers.0.clone(), Arc::clone(&self.waker));
            Box::new(move |outgoing| {
                // The server may be gone by now; then nobody waits for the answer.
                if answers
                    .send(Late {
                        place,
                        serial,
                        outgoing,
                    })
                    .is_ok()
                {
                    let _ = waker.wake();
                }
            })
        };
        let (uid, greeted) = (connection.uid, &mut connection.greeted);
        match connection::handle(incoming, greeted, uid, &self.stack, &self.config, later)? {
            Handled::Answered(outgoing) => connection.outgoing = Some(outgoing),
            Handled::Last(outgoing) => {
                (connection.outgoing, connection.last) = (Some(outgoing), true)
            }
            Handled::Pending => connection.busy = true,
        }
        Ok(true)
    }

    fn disconnect(&mut self, place: usize, ended: &Ended) {
        let Some(connection) = self.connections.try_remove(place) else {
            return;
        };
        if ended.is_fault() {
            tracing::warn!("disconnected a client of uid {}: {ended}", connection.uid);
        }
        let _ = self
            .poll
            .registry()
            .deregister(&mut SourceFd(&connection.socket.as_raw_fd()));
        if let Some(count) = self.per_uid.get_mut(&connection.uid) {
            *count -= 1;
            if *count == 0 {
                self.per_uid.remove(&connection.uid);
            }
        }
    }
}

impl Running {
    /// Ends the server and removes its socket. Sockets it opened live on in the stack.
    ///
    /// # Errors
    /// What ended it before.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.stop.store(true, Ordering::Release);
        self.waker.wake()?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the server's thread panicked")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("the server ended badly: {error}");
        }
    }
}
