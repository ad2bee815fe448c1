//! Waits for readiness, gives connections their turns, and ends those that are overdue.

use super::Settings;
use super::connection::{Connection, Next, SCRATCH};
use mio::event::Event;
use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use slab::Slab;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};
use uktls::TcpListener;

const SIGNALS: Token = Token(usize::MAX);
/// Listeners count down from here, connections up from 0.
const LISTENERS: usize = usize::MAX - 1;
/// How often deadlines are looked at: a scan, but a cheap one, and none is finer than a second.
const TICK: Duration = Duration::from_secs(1);
/// Connections accepted in one go before those that exist get their turn.
const ACCEPT_TURN: usize = 64;

/// Signals that end the server, as a descriptor to wait on.
pub(super) struct Signals(UnixStream);

impl Signals {
    pub(super) fn listen() -> io::Result<Signals> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            pipe::register(signal, theirs.try_clone()?)?;
        }
        ours.set_nonblocking(true)?;
        Ok(Signals(UnixStream::from_std(ours)))
    }
}

struct Loop<'a> {
    settings: &'a Settings,
    poll: Poll,
    listeners: Vec<TcpListener>,
    connections: Slab<Connection>,
    /// Connections whose turn is due without a new event.
    due: VecDeque<usize>,
    /// A listener may have more; readiness will not be told again.
    accept_again: bool,
    scratch: Vec<u8>,
}

/// Serves until a signal comes.
///
/// # Errors
/// When the daemon goes away, or the system has no readiness to give.
pub(super) fn run(
    settings: &Settings,
    mut listeners: Vec<TcpListener>,
    mut signals: Signals,
) -> io::Result<()> {
    let poll = Poll::new()?;
    poll.registry()
        .register(&mut signals.0, SIGNALS, Interest::READABLE)?;
    for (number, listener) in listeners.iter_mut().enumerate() {
        listener.set_nonblocking(true)?;
        poll.registry()
            .register(listener, Token(LISTENERS - number), Interest::READABLE)?;
    }
    let server = Loop {
        settings,
        poll,
        listeners,
        connections: Slab::new(),
        due: VecDeque::new(),
        accept_again: true,
        scratch: vec![0; SCRATCH],
    };
    server.run()
}

impl Loop<'_> {
    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut next_tick = Instant::now() + TICK;
        loop {
            let timeout = if !self.due.is_empty() || (self.accept_again && self.has_room()) {
                Duration::ZERO
            } else {
                next_tick.saturating_duration_since(Instant::now())
            };
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    SIGNALS => return Ok(()),
                    Token(place) if self.is_listener(place) => self.accept_again = true,
                    Token(place) => self.event(place, event),
                }
            }
            if self.accept_again && self.has_room() {
                self.accept()?;
            }
            for _ in 0..self.due.len() {
                if let Some(place) = self.due.pop_front() {
                    self.turn(place);
                }
            }
            if Instant::now() >= next_tick {
                self.end_overdue();
                next_tick = Instant::now() + TICK;
            }
        }
    }

    fn is_listener(&self, place: usize) -> bool {
        place > LISTENERS - self.listeners.len()
    }

    fn has_room(&self) -> bool {
        self.connections.len() < self.settings.max_connections
    }

    fn accept(&mut self) -> io::Result<()> {
        let mut drained = 0;
        for number in 0..self.listeners.len() {
            for _ in 0..ACCEPT_TURN {
                if !self.has_room() {
                    return Ok(());
                }
                match self.listeners[number].accept() {
                    Ok((socket, peer)) => match Connection::new(socket, peer, self.settings) {
                        Ok(connection) => self.admit(connection),
                        Err(error) => tracing::warn!("cannot serve {peer}: {error}"),
                    },
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        drained += 1;
                        break;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {
                        return Err(io::Error::new(error.kind(), "the daemon is gone"));
                    }
                    // Out of descriptors: that connection is lost, the others go on.
                    Err(error) => {
                        tracing::warn!("cannot accept: {error}");
                        break;
                    }
                }
            }
        }
        self.accept_again = drained < self.listeners.len();
        Ok(())
    }

    fn admit(&mut self, mut connection: Connection) {
        let place = self.connections.vacant_key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let Some(socket) = connection.socket_mut() else {
            return;
        };
        match self
            .poll
            .registry()
            .register(socket, Token(place), interest)
        {
            Ok(()) => {
                self.connections.insert(connection);
                self.due.push_back(place);
            }
            Err(error) => tracing::warn!("cannot watch a connection: {error}"),
        }
    }

    fn event(&mut self, place: usize, event: &Event) {
        tracing::trace!("connection {place}: {event:?}");
        self.turn(place);
    }

    fn turn(&mut self, place: usize) {
        let Some(connection) = self.connections.get_mut(place) else {
            return;
        };
        let next = connection.turn(self.settings, &mut self.scratch);
        self.settle(place, next);
    }

    fn settle(&mut self, place: usize, next: Next) {
        match next {
            Next::Wait => {}
            Next::Again => self.due.push_back(place),
            // Closing the socket takes it out of epoll.
            Next::Drop => drop(self.connections.try_remove(place)),
        }
    }

    fn end_overdue(&mut self) {
        let now = Instant::now();
        let overdue: Vec<usize> = self
            .connections
            .iter()
            .filter(|(_, c)| c.deadline() <= now)
            .map(|(place, _)| place)
            .collect();
        for place in overdue {
            let Some(connection) = self.connections.get_mut(place) else {
                continue;
            };
            let next = connection.expired(self.settings, &mut self.scratch);
            self.settle(place, next);
        }
    }
}
