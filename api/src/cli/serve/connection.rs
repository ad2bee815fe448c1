//! One connection: handshake, requests, responses, farewell. Never waits; what cannot go on now goes on at the next call.

use super::Settings;
use crate::http::answer::{self, Response};
use crate::http::request::{MAX_HEAD, Method, Parsed, parse};
use crate::http::status::Status;
use rustls::pki_types::UnixTime;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant, SystemTime};
use uktls::TcpStream;
use uktls::handshake::rustls::{Handshake, Progress, TlsStream};

/// A client that has not finished its handshake by then is no client.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);
/// From the first byte of a request head to its last; less if idle connections are kept for less.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Without any progress of a response. Long, since `sendfile` takes MiB at a time and a slow client takes its time.
const SEND_TIMEOUT: Duration = Duration::from_secs(600);
/// How long the last bytes of a client are waited for once everything is said.
const LINGER_TIMEOUT: Duration = Duration::from_secs(3);
/// Requests answered in one go before other connections get their turn.
const TURN: usize = 16;

/// A connection, as small as it can be while it is idle: an accepted socket, TLS's secrets and an empty buffer.
pub(super) struct Connection {
    phase: Phase,
    peer: SocketAddr,
    /// When patience ends; what that means depends on the phase.
    deadline: Instant,
}

enum Phase {
    Handshake(Box<(TcpStream, Handshake)>),
    Open(Box<Open>),
    /// Everything is said; what still comes is thrown away until the client closes. A socket that is closed with unread
    /// data would be reset, and the end of the response lost.
    Linger(Box<TlsStream>),
    /// Left behind while one phase becomes another, and for good after an error.
    Over,
}

struct Open {
    stream: TlsStream,
    /// Bytes of request heads that are not parsed yet; not allocated while there are none.
    head: Vec<u8>,
    sending: Option<Sending>,
    /// The farewell has begun.
    closing: bool,
}

/// A response on its way.
struct Sending {
    response: Response,
    /// Bytes of `response.memory` that are sent.
    at: usize,
}

/// What is to be done with a connection after its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Call again at the next event.
    Wait,
    /// Call again soon, whether or not there is an event.
    Again,
    /// Drop it.
    Drop,
}

/// Why a turn ended.
enum Turn {
    Blocked,
    UsedUp,
    Finished,
}

impl Connection {
    pub(super) fn new(
        socket: TcpStream,
        peer: SocketAddr,
        settings: &Settings,
    ) -> io::Result<Connection> {
        socket.set_nonblocking(true)?;
        let handshake = Handshake::server(settings.tls.clone())?;
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        Ok(Connection {
            phase: Phase::Handshake(Box::new((socket, handshake))),
            peer,
            deadline,
        })
    }

    /// The socket, for mio.
    pub(super) fn socket_mut(&mut self) -> Option<&mut TcpStream> {
        match &mut self.phase {
            Phase::Handshake(both) => Some(&mut both.0),
            Phase::Open(open) => Some(open.stream.socket_mut()),
            Phase::Linger(stream) => Some(stream.socket_mut()),
            Phase::Over => None,
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Goes on as far as possible. `scratch` is shared by all connections.
    pub(super) fn turn(&mut self, settings: &Settings, scratch: &mut [u8]) -> Next {
        match self.go_on(settings, scratch) {
            Ok(Turn::Blocked) => Next::Wait,
            Ok(Turn::UsedUp) => Next::Again,
            Ok(Turn::Finished) => Next::Drop,
            Err(error) => {
                // A client that goes away is its own business; the rest helps to find out what is wrong with one.
                tracing::debug!("{}: {error}", self.peer);
                Next::Drop
            }
        }
    }

    /// The deadline has passed.
    pub(super) fn expired(&mut self, settings: &Settings, scratch: &mut [u8]) -> Next {
        match &mut self.phase {
            Phase::Open(open) if open.sending.is_none() && !open.closing => {
                if open.head.is_empty() {
                    open.closing = true;
                } else {
                    open.sending = Some(Sending::of(answer::refuse(
                        Status::RequestTimeout,
                        SystemTime::now(),
                    )));
                }
                self.deadline = Instant::now() + LINGER_TIMEOUT;
                self.turn(settings, scratch)
            }
            _ => Next::Drop,
        }
    }

    fn go_on(&mut self, settings: &Settings, scratch: &mut [u8]) -> io::Result<Turn> {
        if let Phase::Handshake(both) = &mut self.phase {
            let (socket, handshake) = &mut **both;
            if handshake.step(socket)? != Progress::Done {
                return Ok(Turn::Blocked);
            }
            self.open(settings)?;
        }
        if let Phase::Open(open) = &mut self.phase {
            match open.serve(settings, self.peer, &mut self.deadline, scratch)? {
                Turn::Finished => {}
                other => return Ok(other),
            }
            if !self.linger()? {
                return Ok(Turn::Finished);
            }
        }
        match &mut self.phase {
            Phase::Linger(stream) => drain(stream, scratch),
            _ => Ok(Turn::Finished),
        }
    }

    fn open(&mut self, settings: &Settings) -> io::Result<()> {
        let Phase::Handshake(both) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return Ok(());
        };
        let (socket, handshake) = *both;
        let stream = TlsStream::new(socket, handshake.complete()?)?;
        if settings.adaptive {
            stream.socket().set_adaptive_records(true)?;
        }
        self.deadline = Instant::now() + settings.idle_timeout;
        self.phase = Phase::Open(Box::new(Open {
            stream,
            head: Vec::new(),
            sending: None,
            closing: false,
        }));
        Ok(())
    }

    /// Half-closes; `false` when the client is gone already and there is nothing to wait for.
    fn linger(&mut self) -> io::Result<bool> {
        let Phase::Open(open) = std::mem::replace(&mut self.phase, Phase::Over) else {
            return Ok(false);
        };
        if open.stream.received_close_notify() {
            return Ok(false);
        }
        open.stream.socket().shutdown(Shutdown::Write)?;
        self.deadline = Instant::now() + LINGER_TIMEOUT;
        self.phase = Phase::Linger(Box::new(open.stream));
        Ok(true)
    }
}

impl Open {
    /// Requests and responses, until there is nothing to do (`Blocked`), the turn is used up, or everything is said.
    fn serve(
        &mut self,
        settings: &Settings,
        peer: SocketAddr,
        deadline: &mut Instant,
        scratch: &mut [u8],
    ) -> io::Result<Turn> {
        let mut answered = 0;
        loop {
            if let Some(sending) = &mut self.sending {
                match sending.go_on(&mut self.stream, deadline) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        return Ok(Turn::Blocked);
                    }
                    Err(error) => return Err(error),
                }
                self.closing |= !sending.response.keep_alive;
                self.sending = None;
                *deadline = Instant::now() + settings.idle_timeout;
                answered += 1;
            }
            if self.closing {
                return match self.stream.close_notify() {
                    Ok(()) => Ok(Turn::Finished),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Turn::Blocked),
                    Err(error) => Err(error),
                };
            }
            if answered >= TURN {
                return Ok(Turn::UsedUp);
            }
            match self.next_response(settings, peer) {
                Some(response) => {
                    self.sending = Some(Sending::of(response));
                    *deadline = Instant::now() + SEND_TIMEOUT;
                    continue;
                }
                None if self.head.is_empty() => self.head = Vec::new(),
                None => {}
            }
            match self.stream.read(scratch) {
                Ok(0) => self.closing = true,
                Ok(got) => {
                    if self.head.is_empty() {
                        *deadline = Instant::now() + HEAD_TIMEOUT.min(settings.idle_timeout);
                    }
                    self.head.extend_from_slice(&scratch[..got]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Blocked),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The response to the request at the front of what was read, if there is a whole one.
    fn next_response(&mut self, settings: &Settings, peer: SocketAddr) -> Option<Response> {
        // RFC 9112 §2.2: "a server that is expecting to receive and parse a request-line SHOULD ignore at least one empty
        // line (CRLF) received prior to the request-line"; the parser does.
        if self.head.is_empty() {
            return None;
        }
        let now = SystemTime::now();
        match parse(&self.head) {
            Ok(Parsed::Partial) => None,
            Ok(Parsed::Complete(request, len)) => {
                self.head.drain(..len);
                let response = answer::answer(&settings.site, &request, now);
                if settings.log {
                    let method = match request.method {
                        Method::Get => "GET",
                        Method::Head => "HEAD",
                    };
                    let bytes = response.file.as_ref().map_or(0, |file| file.len);
                    let seconds = UnixTime::since_unix_epoch(
                        now.duration_since(SystemTime::UNIX_EPOCH)
                            .unwrap_or_default(),
                    )
                    .as_secs();
                    eprintln!(
                        "{seconds} {peer} {method} {} {} {bytes}",
                        request.target,
                        response.status.code()
                    );
                }
                Some(response)
            }
            Err(status) => {
                if settings.log {
                    eprintln!("{peer} refused: {status}");
                }
                self.head.clear();
                Some(answer::refuse(status, now))
            }
        }
    }
}

impl Sending {
    fn of(response: Response) -> Sending {
        Sending { response, at: 0 }
    }

    /// Sends until everything is with the stack, or `WouldBlock`.
    fn go_on(&mut self, stream: &mut TlsStream, deadline: &mut Instant) -> io::Result<()> {
        while self.at < self.response.memory.len() {
            self.at += stream.write(&self.response.memory[self.at..])?;
            *deadline = Instant::now() + SEND_TIMEOUT;
        }
        let Some(body) = &mut self.response.file else {
            return Ok(());
        };
        while body.len > 0 {
            let sent = stream.sendfile(&body.file, Some(&mut body.offset), body.len)?;
            if sent == 0 {
                // The file got shorter than the length that was promised. A reset says so; an end in order would not.
                stream.socket().abort()?;
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "the file got shorter while it was sent",
                ));
            }
            body.len -= sent;
            *deadline = Instant::now() + SEND_TIMEOUT;
        }
        Ok(())
    }
}

/// Throws away what comes, until the end.
fn drain(stream: &mut TlsStream, scratch: &mut [u8]) -> io::Result<Turn> {
    for _ in 0..TURN {
        match stream.read(scratch) {
            Ok(0) => return Ok(Turn::Finished),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Blocked),
            Err(_) => return Ok(Turn::Finished),
        }
    }
    Ok(Turn::UsedUp)
}

/// A scratch buffer holds a whole head, so that nearly every request is read at once.
pub(super) const SCRATCH: usize = MAX_HEAD;
