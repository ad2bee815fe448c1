//! TCP sockets.

use super::options::{ConnectOptions, ListenOptions};
use super::receive::{Reader, Receive, Step};
use super::send::Send;
use super::{Daemon, end, scm};
use crate::protocol::{Reason, Reply, Request, SocketKind, SocketRequest, SocketStat};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, IoSliceMut};
use rustix::net::{RecvFlags, Shutdown, sockopt};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uktls_record::ProtocolVersion;
use uktls_stack::address::{self, ACCEPTED_LEN, ADDRESS_LEN};

/// How long ending a stream waits for room for what it still owes the stack.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a mark waits for the daemon to take others: Linux lets a user have only so many descriptors in flight.
const MARKS_TIMEOUT: Duration = Duration::from_secs(1);

/// A TCP connection through the stack. See the [module](super) for what it is made of.
#[derive(Debug)]
pub struct TcpStream {
    fd: OwnedFd,
    shared: Arc<Shared>,
}

/// What clones of a stream share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) daemon: Daemon,
    local: SocketAddr,
    peer: SocketAddr,
    receive: Mutex<Receive>,
    send: Mutex<Send>,
    /// Why reading ended, once it did.
    read_end: Mutex<Option<Reason>>,
}

impl Shared {
    fn new(daemon: Daemon, local: SocketAddr, peer: SocketAddr) -> Self {
        let (receive, send, read_end) = Default::default();
        Shared {
            daemon,
            local,
            peer,
            receive,
            send,
            read_end,
        }
    }

    pub(super) fn receive(&self) -> MutexGuard<'_, Receive> {
        self.receive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn send(&self) -> MutexGuard<'_, Send> {
        self.send.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why reading ended; asked once, unless it is this side's own doing.
    pub(super) fn read_end(&self, stream: &TcpStream) -> io::Result<Reason> {
        let mut known = self.read_end.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = *known {
            return Ok(reason);
        }
        let reason = stream.ask_reason()?;
        if reason != Reason::Open {
            *known = Some(reason);
        }
        Ok(reason)
    }
}

impl TcpStream {
    /// Connects through the default daemon to the first of `addresses` that answers.
    ///
    /// # Errors
    /// As `std::net::TcpStream::connect`; `ENETDOWN` when no daemon runs.
    pub fn connect(addresses: impl ToSocketAddrs) -> io::Result<TcpStream> {
        let daemon = Daemon::default();
        let mut last = Errno::INVAL.into();
        for address in addresses.to_socket_addrs()? {
            match TcpStream::connect_on(&daemon, address) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Connects through the default daemon, for at most `timeout`.
    ///
    /// # Errors
    /// `ETIMEDOUT` when time is up; as [`connect`](Self::connect).
    pub fn connect_timeout(address: &SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        let options = ConnectOptions {
            timeout: Some(timeout),
            ..ConnectOptions::default()
        };
        TcpStream::connect_with(&Daemon::default(), *address, &options)
    }

    /// Connects through `daemon`.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_on(daemon: &Daemon, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect_with(daemon, address, &ConnectOptions::default())
    }

    /// Connects through `daemon` with options.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_with(
        daemon: &Daemon,
        address: SocketAddr,
        options: &ConnectOptions,
    ) -> io::Result<TcpStream> {
        let request = Request::Connect {
            remote: address,
            local: options.local,
            options: options.socket.clone(),
        };
        let (fd, local) = open(daemon, &request)?;
        let stream = TcpStream {
            fd,
            shared: Arc::new(Shared::new(daemon.clone(), local, address)),
        };
        stream.set_nonblocking(options.nonblocking)?;
        if !options.nonblocking {
            stream.wait_connected(options.timeout)?;
        }
        Ok(stream)
    }

    fn wait_connected(&self, timeout: Option<Duration>) -> io::Result<()> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let shown = rustix::io::retry_on_intr(|| scm::wait(self, PollFlags::OUT, deadline))?;
        if shown.is_empty() {
            return Err(Errno::TIMEDOUT.into());
        }
        self.take_error()?.map_or(Ok(()), Err)
    }

    /// A stream from a descriptor that came from elsewhere: inherited, passed, or taken out of a stream. What its library
    /// kept is lost; the daemon tells the rest.
    ///
    /// # Errors
    /// `ENOTSOCK` when it is no TCP connection of `daemon`.
    pub fn from_fd(daemon: &Daemon, fd: OwnedFd) -> io::Result<TcpStream> {
        let stat = match daemon.ask(&Request::OnSocket(SocketRequest::Info), Some(fd.as_fd()))? {
            (Reply::Info(stat), _) => stat,
            (Reply::Gone(_), _) => return Err(Errno::NOTCONN.into()),
            _ => return Err(daemon.nonsense().into()),
        };
        let (SocketKind::Tcp, Some(peer)) = (stat.kind, stat.remote) else {
            return Err(Errno::NOTSOCK.into());
        };
        let mut shared = Shared::new(daemon.clone(), stat.local, peer);
        let version = stat
            .rx
            .and_then(|keys| ProtocolVersion::from_wire(keys.version).ok());
        shared.receive = Mutex::new(Receive::with_keys(version));
        shared.send = Mutex::new(Send::with_keys(stat.tx.is_some()));
        Ok(TcpStream {
            fd,
            shared: Arc::new(shared),
        })
    }

    /// The daemon that carries it.
    pub fn daemon(&self) -> &Daemon {
        &self.shared.daemon
    }

    /// This side's address.
    ///
    /// # Errors
    /// None; as in `std`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.shared.local)
    }

    /// The peer's address.
    ///
    /// # Errors
    /// None; as in `std`.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.shared.peer)
    }

    /// Another handle to the same connection, which shares everything.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn try_clone(&self) -> io::Result<TcpStream> {
        Ok(TcpStream {
            fd: self.fd.try_clone()?,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Whether calls return `EAGAIN` instead of waiting. Clones share it.
    ///
    /// # Errors
    /// None in practice.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        set_nonblocking(&self.fd, nonblocking)
    }

    pub(super) fn is_nonblocking(&self) -> Result<bool, Errno> {
        Ok(fcntl_getfl(&self.fd)?.contains(OFlags::NONBLOCK))
    }

    /// `TCP_NODELAY`, on from the start.
    ///
    /// # Errors
    /// `ECONNABORTED` when the daemon is gone.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.act(SocketRequest::SetNoDelay(nodelay))
    }

    /// Probes an idle peer after `idle`; `None` stops that.
    ///
    /// # Errors
    /// `ECONNABORTED` when the daemon is gone.
    pub fn set_keepalive(&self, idle: Option<Duration>) -> io::Result<()> {
        self.act(SocketRequest::SetKeepAlive(idle))
    }

    /// Resets the connection now: the peer gets a RST.
    ///
    /// # Errors
    /// `ECONNABORTED` when the daemon is gone.
    pub fn abort(&self) -> io::Result<()> {
        self.act(SocketRequest::Abort)
    }

    /// How long a read waits; `None` is for ever.
    ///
    /// # Errors
    /// `EINVAL` for a time of zero.
    pub fn set_read_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        set_timeout(&self.fd, sockopt::Timeout::Recv, time)
    }

    /// How long a write waits; `None` is for ever.
    ///
    /// # Errors
    /// `EINVAL` for a time of zero.
    pub fn set_write_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        set_timeout(&self.fd, sockopt::Timeout::Send, time)
    }

    /// See [`set_read_timeout`](Self::set_read_timeout).
    ///
    /// # Errors
    /// None in practice.
    pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(sockopt::socket_timeout(&self.fd, sockopt::Timeout::Recv)?)
    }

    /// See [`set_write_timeout`](Self::set_write_timeout).
    ///
    /// # Errors
    /// None in practice.
    pub fn write_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(sockopt::socket_timeout(&self.fd, sockopt::Timeout::Send)?)
    }

    /// Ends reading, writing (the peer gets a FIN behind everything sent) or both.
    ///
    /// # Errors
    /// `ENOTCONN`.
    pub fn shutdown(&self, how: std::net::Shutdown) -> io::Result<()> {
        if !matches!(how, std::net::Shutdown::Read) {
            self.settle_before_end();
        }
        Ok(rustix::net::shutdown(
            &self.fd,
            match how {
                std::net::Shutdown::Read => Shutdown::Read,
                std::net::Shutdown::Write => Shutdown::Write,
                std::net::Shutdown::Both => Shutdown::Both,
            },
        )?)
    }

    /// Reads without taking: data only, at most up to the next control record.
    ///
    /// # Errors
    /// As `read`.
    pub fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_data(buf, true)
    }

    /// Why the stream ended, or [`Reason::Open`].
    ///
    /// # Errors
    /// `ECONNABORTED` when the daemon is gone.
    pub fn reason(&self) -> io::Result<Reason> {
        self.ask_reason()
    }

    /// Everything the daemon tells of this connection.
    ///
    /// # Errors
    /// `ENOTCONN` when it is over, `ECONNABORTED` when the daemon is gone.
    pub fn stat(&self) -> io::Result<SocketStat> {
        match self.ask(SocketRequest::Info)? {
            Reply::Info(stat) => Ok(*stat),
            _ => Err(Errno::NOTCONN.into()),
        }
    }

    /// Why a connection attempt failed or the connection broke, if it did. For non-blocking connects.
    ///
    /// # Errors
    /// `ECONNABORTED` when the daemon is gone.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        if !scm::glance(self, PollFlags::empty())?.intersects(PollFlags::HUP | PollFlags::ERR) {
            return Ok(None);
        }
        Ok(end::of_connecting(self.ask_reason()?).map(io::Error::from))
    }

    fn ask_reason(&self) -> io::Result<Reason> {
        // Not `self.ask`: a socket that is gone is exactly what may be asked about here.
        match self.shared.daemon.ask(
            &Request::OnSocket(SocketRequest::Info),
            Some(self.fd.as_fd()),
        ) {
            Ok((Reply::Info(stat), _)) => Ok(stat.reason),
            Ok((Reply::Gone(reason), _)) => Ok(reason),
            Ok(_) => Err(self.shared.daemon.nonsense().into()),
            Err(error) => Err(end::of_request(error)),
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn ask(&self, request: SocketRequest) -> io::Result<Reply> {
        self.ask_with(&Request::OnSocket(request), &[self.fd.as_fd()])
    }

    pub(super) fn ask_with(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<Reply> {
        match self.shared.daemon.ask_with(request, fds) {
            Ok((Reply::Gone(_), _)) => Err(Errno::NOTCONN.into()),
            Ok((reply, _)) => Ok(reply),
            Err(error) => Err(end::of_request(error)),
        }
    }

    pub(super) fn act(&self, request: SocketRequest) -> io::Result<()> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            _ => Err(self.shared.daemon.nonsense().into()),
        }
    }

    fn read_data(&self, buf: &mut [u8], peek: bool) -> io::Result<usize> {
        match self.reading(buf, Reader::Owner, false, peek, false)? {
            Step::Data { len, .. } => Ok(len),
            Step::Control { .. } | Step::Nothing | Step::End => Ok(0),
        }
    }

    /// Repeats one attempt to write until it works, waiting in between if it may.
    pub(super) fn writing<T>(
        &self,
        dontwait: bool,
        mut attempt: impl FnMut(&mut Send, BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> io::Result<T> {
        let mut deadline = None;
        let mut marks_deadline = None;
        loop {
            let tried = attempt(&mut self.shared.send(), self.fd.as_fd());
            match tried {
                Ok(done) => return Ok(done),
                Err(Errno::AGAIN) => {
                    if dontwait || self.is_nonblocking()? {
                        return Err(Errno::AGAIN.into());
                    }
                    if deadline.is_none() {
                        deadline = self.write_timeout()?.map(|time| Instant::now() + time);
                    }
                    self.wait_writable(deadline)?;
                }
                Err(Errno::TOOMANYREFS) => {
                    // Nothing polls for this: the kernel counts descriptors in flight per user, and it falls as the
                    // daemon reads.
                    let until =
                        *marks_deadline.get_or_insert_with(|| Instant::now() + MARKS_TIMEOUT);
                    if Instant::now() >= until {
                        return Err(Errno::TOOMANYREFS.into());
                    }
                    scm::wait(
                        self,
                        PollFlags::empty(),
                        Some(Instant::now() + Duration::from_millis(1)),
                    )?;
                }
                Err(errno) => return Err(self.write_error(errno)),
            }
        }
    }

    /// The error of a write that the socket refused, with the reason in place of a bare EPIPE.
    pub(super) fn write_error(&self, errno: Errno) -> io::Error {
        match errno {
            Errno::PIPE | Errno::CONNRESET => match self.ask_reason() {
                Ok(reason) => end::of_writing(reason).into(),
                Err(gone) => gone,
            },
            errno => errno.into(),
        }
    }

    fn settle_before_end(&self) {
        let mut state = self.shared.send();
        let deadline = Some(Instant::now() + SETTLE_TIMEOUT);
        // Only ever owes something after another process took the room it had looked for.
        while state.owes() && state.settle(self.fd.as_fd()) == Err(Errno::AGAIN) {
            if self.wait_writable(deadline).is_err() {
                break;
            }
        }
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        if Arc::strong_count(&self.shared) == 1 {
            self.settle_before_end();
        }
    }
}

impl Read for &TcpStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_data(buf, false)
    }
}

impl Read for TcpStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_data(buf, false)
    }
}

impl Write for &TcpStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send(buf, super::SendFlags::empty())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for TcpStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send(buf, super::SendFlags::empty())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TryFrom<TcpStream> for OwnedFd {
    type Error = io::Error;

    /// The bare descriptor, a duplicate of the stream's own. Fails with `EMFILE`.
    fn try_from(stream: TcpStream) -> io::Result<OwnedFd> {
        stream.fd.try_clone()
    }
}

/// A TCP socket that accepts connections through the stack.
#[derive(Debug)]
pub struct TcpListener {
    fd: OwnedFd,
    daemon: Daemon,
    local: SocketAddr,
}

impl TcpListener {
    /// Listens on the default daemon. Port 0 takes a free one.
    ///
    /// # Errors
    /// `EADDRINUSE`, `EADDRNOTAVAIL`; `ENETDOWN` when no daemon runs.
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<TcpListener> {
        let daemon = Daemon::default();
        let mut last = Errno::INVAL.into();
        for address in address.to_socket_addrs()? {
            match TcpListener::bind_on(&daemon, address) {
                Ok(listener) => return Ok(listener),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Listens on `daemon`.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_on(daemon: &Daemon, address: SocketAddr) -> io::Result<TcpListener> {
        TcpListener::bind_with(daemon, address, &ListenOptions::default())
    }

    /// Listens on `daemon` with options.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_with(
        daemon: &Daemon,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> io::Result<TcpListener> {
        let request = Request::Listen {
            local: address,
            backlog: options.backlog,
            options: options.socket.clone(),
        };
        let (fd, local) = open(daemon, &request)?;
        set_nonblocking(&fd, false)?;
        Ok(TcpListener {
            fd,
            daemon: daemon.clone(),
            local,
        })
    }

    /// Takes the next connection, and the peer's address. The stream is blocking, whatever the listener is.
    ///
    /// # Errors
    /// `EAGAIN`; `EMFILE` (that connection is lost); `ECONNABORTED` when the daemon is gone.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let mut addresses = [0; ACCEPTED_LEN];
        let received = scm::receive(
            &self.fd,
            &mut [IoSliceMut::new(&mut addresses)],
            RecvFlags::empty(),
        );
        let received = match received {
            Ok(received) => received,
            Err(Errno::CONNRESET) => return Err(Errno::CONNABORTED.into()),
            Err(errno) => return Err(errno.into()),
        };
        if received.fds_cut {
            return Err(Errno::MFILE.into());
        }
        if received.len == 0 {
            return Err(Errno::CONNABORTED.into());
        }
        let (Some(local), Some(peer), Some(fd)) = (
            address::decode(&addresses),
            address::decode(&addresses[ADDRESS_LEN..]),
            received.fds.into_iter().next(),
        ) else {
            return Err(Errno::PROTO.into());
        };
        set_nonblocking(&fd, false)?;
        Ok((
            TcpStream {
                fd,
                shared: Arc::new(Shared::new(self.daemon.clone(), local, peer)),
            },
            peer,
        ))
    }

    /// Connections as they come, for ever.
    pub fn incoming(&self) -> impl Iterator<Item = io::Result<TcpStream>> + '_ {
        std::iter::repeat_with(|| self.accept().map(|(stream, _)| stream))
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// None; as in `std`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    /// Whether [`accept`](Self::accept) returns `EAGAIN` instead of waiting.
    ///
    /// # Errors
    /// None in practice.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        set_nonblocking(&self.fd, nonblocking)
    }

    /// Another handle to the same listener.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn try_clone(&self) -> io::Result<TcpListener> {
        Ok(TcpListener {
            fd: self.fd.try_clone()?,
            daemon: self.daemon.clone(),
            local: self.local,
        })
    }
}

impl From<TcpListener> for OwnedFd {
    fn from(listener: TcpListener) -> OwnedFd {
        listener.fd
    }
}

macro_rules! descriptor {
    ($($socket:ty),*) => {$(
        impl AsFd for $socket {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.fd.as_fd()
            }
        }

        impl AsRawFd for $socket {
            fn as_raw_fd(&self) -> RawFd {
                self.fd.as_raw_fd()
            }
        }

        /// Readiness is the descriptor's own, edge-triggered as all of mio.
        impl mio::event::Source for $socket {
            fn register(&mut self, registry: &mio::Registry, token: mio::Token, interests: mio::Interest) -> std::io::Result<()> {
                mio::unix::SourceFd(&self.fd.as_raw_fd()).register(registry, token, interests)
            }

            fn reregister(&mut self, registry: &mio::Registry, token: mio::Token, interests: mio::Interest) -> std::io::Result<()> {
                mio::unix::SourceFd(&self.fd.as_raw_fd()).reregister(registry, token, interests)
            }

            fn deregister(&mut self, registry: &mio::Registry) -> std::io::Result<()> {
                mio::unix::SourceFd(&self.fd.as_raw_fd()).deregister(registry)
            }
        }
    )*};
}
pub(super) use descriptor;

descriptor!(TcpStream, TcpListener);

/// Opens a socket: its client end and its local address.
pub(super) fn open(daemon: &Daemon, request: &Request) -> io::Result<(OwnedFd, SocketAddr)> {
    match daemon.ask(request, None)? {
        (Reply::Socket { local, .. }, Some(fd)) => Ok((fd, local)),
        _ => Err(daemon.nonsense().into()),
    }
}

pub(super) fn set_nonblocking(fd: &OwnedFd, nonblocking: bool) -> io::Result<()> {
    let flags = fcntl_getfl(fd)?;
    if flags.contains(OFlags::NONBLOCK) != nonblocking {
        fcntl_setfl(fd, flags ^ OFlags::NONBLOCK)?;
    }
    Ok(())
}

pub(super) fn set_timeout(
    fd: &OwnedFd,
    which: sockopt::Timeout,
    time: Option<Duration>,
) -> io::Result<()> {
    // Zero would mean "for ever" to the kernel.
    if time.is_some_and(|time| time.is_zero()) {
        return Err(Errno::INVAL.into());
    }
    Ok(sockopt::set_socket_timeout(fd, which, time)?)
}
