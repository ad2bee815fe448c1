//! TCP for host programs: sockets that a library written for tokio runs on, with Linux's kTLS calls on them.
//!
//! What is written goes to the host's stack as it does in the daemon: into a bounded queue, from which it is pulled when the
//! windows have room; keys, record types and memory to send stand in that queue in their place.

use super::executor::Waiting;
use super::host::{Backlog, Incoming, ListenerEnd, Outgoing, Place, SharedStream, Touch};
use super::net::ToAddress;
use super::world::{self, World};
use crate::engine::Listening;
use crate::handle::{ConnectRequest, Direction, SocketId, SocketOp, SocketOptions, SocketReply};
use crate::mark::{Mark, bytes_behind};
use crate::registry::Transport;
use crate::socket_info::{Reason, SocketInfo};
use bytes::{Buf, Bytes};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uktls_record::crypto_info::CryptoInfo;
use uktls_record::header::ContentType;

pub(super) fn errno(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw_os_error())
}

/// The world and the host of the task that calls.
pub(super) fn here() -> (Rc<World>, usize) {
    let world = world::expect_current();
    let host = world
        .executor
        .current_host()
        .expect("sockets belong to hosts: use them in tasks that were spawned on one");
    (world, host)
}

pub(super) fn host_down() -> io::Error {
    errno(Errno::NETDOWN)
}

/// What a socket that ended this way says to whoever uses it; `None` is an orderly end.
fn error_of(reason: Reason) -> Option<Errno> {
    match reason {
        Reason::Open | Reason::CleanEnd | Reason::Truncated => None,
        Reason::Reset => Some(Errno::CONNRESET),
        Reason::Refused => Some(Errno::CONNREFUSED),
        Reason::TimedOut => Some(Errno::TIMEDOUT),
        Reason::Unreachable => Some(Errno::HOSTUNREACH),
        Reason::BadRecord(number) | Reason::FileFailed(number) => {
            Some(Errno::from_raw_os_error(number))
        }
        Reason::KeysExhausted => Some(Errno::BADMSG),
        Reason::Aborted => Some(Errno::CONNABORTED),
    }
}

/// A listening socket on the calling task's host.
pub struct TcpListener {
    world: Rc<World>,
    place: Place,
    index: usize,
    local: SocketAddr,
    backlog: Rc<RefCell<Backlog>>,
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

impl TcpListener {
    /// Listens, with a backlog of 128 connections.
    ///
    /// # Errors
    /// `EADDRINUSE`, `EADDRNOTAVAIL`, or `EINVAL` for a name that nobody has.
    pub async fn bind(address: impl ToAddress) -> io::Result<TcpListener> {
        TcpListener::bind_with(address, 128, SocketOptions::default()).await
    }

    /// Listens, with this backlog and these options on accepted sockets.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub async fn bind_with(
        address: impl ToAddress,
        backlog: usize,
        options: SocketOptions,
    ) -> io::Result<TcpListener> {
        let (world, node) = here();
        let wanted = address.to_address(&world, Some(node))?;
        check_local(&world, node, wanted)?;
        let place = world.place(node);
        let shared = Rc::new(RefCell::new(Backlog {
            accepted: VecDeque::new(),
            acceptor: None,
            dropped: false,
        }));
        let (index, local) = world
            .with_engine(node, |engine, _| {
                let local = engine.host.registry.reserve(Transport::Tcp, wanted)?;
                let index = engine.next_listener();
                let end = ListenerEnd {
                    listening: Listening {
                        // Above every connection's number.
                        id: SocketId(0xffff_ffff | (index as u64) << 32),
                        uid: 0,
                        local,
                        backlog,
                        options,
                    },
                    backlog: shared.clone(),
                };
                Ok((engine.listen(end), local))
            })
            .ok_or_else(host_down)?
            .map_err(errno)?;
        Ok(TcpListener {
            world,
            place,
            index,
            local,
            backlog: shared,
        })
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// None; the signature is tokio's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// When the host is down.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Waits for a connection.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let mut backlog = self.backlog.borrow_mut();
        match backlog.accepted.pop_front() {
            Some((local, remote, shared)) => {
                let stream = TcpStream {
                    world: self.world.clone(),
                    shared,
                    local,
                    remote,
                };
                Poll::Ready(Ok((stream, remote)))
            }
            None => {
                backlog.acceptor = Some(cx.waker().clone());
                self.world.executor.waits_for(Waiting::Accept(self.local));
                Poll::Pending
            }
        }
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.backlog.borrow_mut().dropped = true;
        self.world
            .touches()
            .push(self.place, Touch::ListenerGone(self.index));
    }
}

pub(super) fn check_local(world: &World, node: usize, wanted: SocketAddr) -> io::Result<()> {
    let ip = wanted.ip();
    if ip.is_unspecified() || world.addresses(node).contains(&ip) {
        Ok(())
    } else {
        Err(errno(Errno::ADDRNOTAVAIL))
    }
}

/// What [`TcpStream::recv_record`] received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the buffer; 0 with application data is the end of the stream.
    pub len: usize,
    /// Type of the record or records that they come from.
    pub content_type: ContentType,
    /// They are the last of a control record.
    pub end_of_record: bool,
}

/// A TCP connection of the calling task's host.
///
/// It reads and writes by tokio's traits. The kTLS calls are those of the daemon's client library, under the same names.
pub struct TcpStream {
    world: Rc<World>,
    shared: SharedStream,
    local: SocketAddr,
    remote: SocketAddr,
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStream")
            .field("local", &self.local)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

impl TcpStream {
    /// Connects to "name:port", an address, or a pair of either and a port.
    ///
    /// # Errors
    /// `ECONNREFUSED`, `ETIMEDOUT`, `EHOSTUNREACH` as in life.
    pub async fn connect(address: impl ToAddress) -> io::Result<TcpStream> {
        TcpStream::connect_with(address, None, SocketOptions::default()).await
    }

    /// Connects from this local address, with these options.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_with(
        address: impl ToAddress,
        local: Option<SocketAddr>,
        options: SocketOptions,
    ) -> io::Result<TcpStream> {
        let (world, node) = here();
        let remote = address.to_address(&world, Some(node))?;
        let request = ConnectRequest {
            remote,
            local,
            options,
            uid: 0,
        };
        let (_, shared, local) = world
            .with_engine(node, |engine, now| engine.connect(now, request))
            .ok_or_else(host_down)?
            .map_err(errno)?;
        let stream = TcpStream {
            world,
            shared,
            local,
            remote,
        };
        poll_fn(|cx| stream.poll_connected(cx)).await?;
        Ok(stream)
    }

    fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.shared.borrow_mut();
        if shared.connected {
            return Poll::Ready(Ok(()));
        }
        match shared.closed {
            Some(reason) => Poll::Ready(Err(errno(error_of(reason).unwrap_or(Errno::CONNABORTED)))),
            None => {
                shared.writer = Some(cx.waker().clone());
                self.waits_for(Waiting::Connect(self.remote));
                Poll::Pending
            }
        }
    }

    fn waits_for(&self, waiting: Waiting) {
        self.world.executor.waits_for(waiting);
    }

    /// Local address.
    ///
    /// # Errors
    /// None; the signature is tokio's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    /// The peer's address.
    ///
    /// # Errors
    /// None; the signature is tokio's.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.remote)
    }

    fn act(&self, op: SocketOp) -> Result<SocketReply, Errno> {
        let (place, id) = {
            let shared = self.shared.borrow();
            (shared.place, shared.id)
        };
        if self.world.place(place.node) != place {
            return Err(Errno::NETDOWN);
        }
        self.world
            .with_engine(place.node, |engine, now| engine.act(now, id, op))
            .unwrap_or(Err(Errno::NETDOWN))
    }

    /// Switches Nagle's algorithm off (true, as it is) or on.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.act(SocketOp::SetNoDelay(nodelay))
            .map(drop)
            .map_err(errno)
    }

    /// Resets the connection.
    pub fn abort(&self) {
        // A connection that is over needs no reset.
        let _ = self.act(SocketOp::Abort);
    }

    /// What `uktls stat` shows of a socket: state, TCP's figures, records, why it ended.
    ///
    /// # Errors
    /// When the stack has forgotten the socket already; then [`reason`](Self::reason) still knows why it ended.
    pub fn info(&self) -> io::Result<SocketInfo> {
        match self.act(SocketOp::Info).map_err(errno)? {
            SocketReply::Info(info) => Ok(*info),
            _ => Err(errno(Errno::PROTO)),
        }
    }

    /// Why the connection's stream ended, or that it has not.
    pub fn reason(&self) -> Reason {
        let closed = self.shared.borrow().closed;
        closed
            .or_else(|| self.info().ok().map(|info| info.reason))
            .unwrap_or(Reason::Aborted)
    }

    // --- Linux's kTLS calls ---

    /// Attaches the TLS ULP: `setsockopt(SOL_TCP, TCP_ULP, "tls")`.
    ///
    /// # Errors
    /// `ENOTCONN` unless established, `EEXIST` the second time.
    pub fn set_ulp_tls(&self) -> io::Result<()> {
        self.act(SocketOp::SetUlp).map(drop).map_err(errno)
    }

    /// `setsockopt(SOL_TLS, TLS_TX)`: what is written from here on is sealed with these keys.
    ///
    /// # Errors
    /// As Linux: `EBUSY` when TLS 1.2 has keys, `EINVAL` when the directions disagree.
    pub fn set_tls_tx(&self, keys: &CryptoInfo) -> io::Result<()> {
        match self.act(SocketOp::StageTx(keys.clone())).map_err(errno)? {
            SocketReply::KeyId(key_id) => {
                self.push_mark(Mark::TxKeys { key_id });
                self.shared.borrow_mut().tls_tx = true;
                Ok(())
            }
            _ => Err(errno(Errno::PROTO)),
        }
    }

    /// `setsockopt(SOL_TLS, TLS_RX)`: the stream is opened with these keys, from the first byte of `handed_back` on: what was
    /// read already and belongs to records. What the program has not read yet follows it.
    ///
    /// # Errors
    /// As [`set_tls_tx`](Self::set_tls_tx).
    pub fn set_tls_rx(&self, keys: &CryptoInfo, handed_back: &[u8]) -> io::Result<()> {
        let first = !std::mem::replace(&mut self.shared.borrow_mut().tls_rx, true);
        if first {
            self.act(SocketOp::RxFreeze).map_err(errno)?;
            let mut bytes = handed_back.to_vec();
            let mut shared = self.shared.borrow_mut();
            let mut taken = 0;
            while let Some(Incoming::Plain(piece)) = shared.incoming.front() {
                bytes.extend_from_slice(piece);
                taken += piece.len();
                shared.incoming.pop_front();
            }
            shared.took(taken);
            drop(shared);
            if !bytes.is_empty() {
                self.act(SocketOp::RxBytes(bytes)).map_err(errno)?;
            }
        }
        self.act(SocketOp::RxKeys(Some(keys.clone())))
            .map(drop)
            .map_err(errno)
    }

    /// `getsockopt(SOL_TLS, TLS_TX)`.
    ///
    /// # Errors
    /// `EBUSY` without keys.
    pub fn tls_tx(&self) -> io::Result<CryptoInfo> {
        self.keys(Direction::Tx)
    }

    /// `getsockopt(SOL_TLS, TLS_RX)`.
    ///
    /// # Errors
    /// `EBUSY` without keys.
    pub fn tls_rx(&self) -> io::Result<CryptoInfo> {
        self.keys(Direction::Rx)
    }

    fn keys(&self, direction: Direction) -> io::Result<CryptoInfo> {
        match self.act(SocketOp::GetKeys(direction)).map_err(errno)? {
            SocketReply::Keys(keys) => Ok(keys),
            _ => Err(errno(Errno::PROTO)),
        }
    }

    /// `TLS_TX_MAX_PAYLOAD_LEN`.
    ///
    /// # Errors
    /// `EINVAL` out of range, `EBUSY` while a record is open.
    pub fn set_tx_max_payload(&self, bytes: u16) -> io::Result<()> {
        self.act(SocketOp::SetMaxPayload(bytes))
            .map(drop)
            .map_err(errno)
    }

    fn push_mark(&self, mark: Mark) {
        let mut shared = self.shared.borrow_mut();
        shared.outgoing.push_back(Outgoing::Mark(mark));
        shared.touch();
    }

    /// Writes some of the bytes, as `AsyncWrite` does, without needing the stream for itself: a reader may wait at the same time.
    ///
    /// # Errors
    /// When the connection is over, or was shut.
    pub async fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_send(cx, bytes)).await
    }

    /// Writes all of the bytes.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.send(bytes).await?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Nothing more will be written: the peer reads the end behind what was.
    pub fn shutdown_write(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.shut = true;
        shared.touch();
    }

    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut shared = self.shared.borrow_mut();
        if let Some(error) = write_error(&shared) {
            return Poll::Ready(Err(error));
        }
        let n = bytes.len().min(shared.write_room());
        if n == 0 && !bytes.is_empty() {
            shared.writer = Some(cx.waker().clone());
            self.waits_for(Waiting::Write(self.local, self.remote));
            return Poll::Pending;
        }
        shared.watch.handed_in(&shared.flow, &bytes[..n]);
        shared.write(&bytes[..n]);
        if shared.tls_tx {
            // One write is one record, or several full ones and a last one, as in Linux.
            shared.outgoing.push_back(Outgoing::Mark(Mark::RecordEnd));
        }
        shared.touch();
        Poll::Ready(Ok(n))
    }

    /// Sends a record of this type: `sendmsg` with `TLS_SET_RECORD_TYPE`.
    ///
    /// # Errors
    /// When the connection is over.
    pub async fn send_record(&self, content_type: ContentType, bytes: &[u8]) -> io::Result<()> {
        poll_fn(|cx| {
            let mut shared = self.shared.borrow_mut();
            if let Some(error) = write_error(&shared) {
                return Poll::Ready(Err(error));
            }
            if shared.write_room() < bytes.len() && shared.outgoing_bytes > 0 {
                shared.writer = Some(cx.waker().clone());
                self.waits_for(Waiting::Write(self.local, self.remote));
                return Poll::Pending;
            }
            shared.outgoing.push_back(Outgoing::Mark(Mark::Record {
                content_type: content_type.0,
                len: bytes.len() as u32,
            }));
            if !bytes.is_empty() {
                // A buffer of its own: it must not be glued to data.
                shared.outgoing_bytes += bytes.len();
                shared
                    .outgoing
                    .push_back(Outgoing::Plain(bytes::BytesMut::from(bytes)));
                shared.outgoing.push_back(Outgoing::Mark(Mark::RecordEnd));
            }
            shared.touch();
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Sends memory as `sendfile` sends a file: it is sealed straight from where it lies, into records of 16 KiB, and this
    /// returns when the last one is sealed.
    ///
    /// # Errors
    /// When the connection is over first.
    pub async fn sendfile(&self, bytes: impl Into<Bytes>) -> io::Result<usize> {
        let bytes = bytes.into();
        let len = bytes.len();
        let ticket = {
            let mut shared = self.shared.borrow_mut();
            if let Some(error) = write_error(&shared) {
                return Err(error);
            }
            shared.watch.handed_in(&shared.flow, &bytes);
            shared.outgoing.push_back(Outgoing::Memory(bytes));
            shared.touch();
            shared.ranges += 1;
            shared.ranges
        };
        poll_fn(|cx| {
            let mut shared = self.shared.borrow_mut();
            if shared.sealed_ranges >= ticket {
                return Poll::Ready(Ok(len));
            }
            if let Some(error) = write_error(&shared) {
                return Poll::Ready(Err(error));
            }
            shared.writer = Some(cx.waker().clone());
            self.waits_for(Waiting::Sendfile(self.local, self.remote));
            Poll::Pending
        })
        .await
    }

    /// Receives data, or one control record: `recvmsg` with room for `TLS_GET_RECORD_TYPE`.
    ///
    /// # Errors
    /// `EBADMSG` for a record that does not authenticate (sticky), and whatever ended the connection.
    pub async fn recv_record(&self, buffer: &mut [u8]) -> io::Result<Received> {
        poll_fn(|cx| self.poll_recv(cx, buffer, true)).await
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        types: bool,
    ) -> Poll<io::Result<Received>> {
        let mut shared = self.shared.borrow_mut();
        let shared = &mut *shared;
        loop {
            if let Some((content_type, left)) = shared.control {
                if !types {
                    return Poll::Ready(Err(errno(Errno::IO)));
                }
                // A record is given whole, so all of it has to be there.
                if shared.incoming_bytes < bytes_behind(left) {
                    break;
                }
                if left == 0 {
                    shared.incoming.pop_front();
                    shared.took(1);
                }
                let mut got = 0;
                while got < left.min(buffer.len()) {
                    let Some(Incoming::Plain(piece)) = shared.incoming.front_mut() else {
                        return Poll::Ready(Err(errno(Errno::PROTO)));
                    };
                    let n = piece.len().min(left.min(buffer.len()) - got);
                    piece.copy_to_slice(&mut buffer[got..got + n]);
                    if piece.is_empty() {
                        shared.incoming.pop_front();
                    }
                    got += n;
                }
                shared.took(got);
                let end_of_record = got == left;
                shared.control = (!end_of_record).then_some((content_type, left - got));
                return Poll::Ready(Ok(Received {
                    len: got,
                    content_type: ContentType(content_type),
                    end_of_record,
                }));
            }
            if let Some(error) = shared.failed {
                return Poll::Ready(Err(errno(error)));
            }
            match shared.incoming.front_mut() {
                Some(Incoming::Plain(_)) => {
                    let mut got = 0;
                    while got < buffer.len()
                        && let Some(Incoming::Plain(piece)) = shared.incoming.front_mut()
                    {
                        let n = piece.len().min(buffer.len() - got);
                        piece.copy_to_slice(&mut buffer[got..got + n]);
                        if piece.is_empty() {
                            shared.incoming.pop_front();
                        }
                        got += n;
                    }
                    shared.took(got);
                    shared.watch.handed_out(&shared.flow, &buffer[..got]);
                    return Poll::Ready(Ok(Received {
                        len: got,
                        content_type: ContentType::APPLICATION_DATA,
                        end_of_record: false,
                    }));
                }
                Some(Incoming::Mark(mark)) => {
                    match *mark {
                        Mark::Control { content_type, len } => {
                            shared.control = Some((content_type, len as usize));
                        }
                        Mark::Error { errno } => {
                            shared.failed = Some(Errno::from_raw_os_error(errno));
                        }
                        _ => shared.failed = Some(Errno::PROTO),
                    }
                    shared.incoming.pop_front();
                }
                None => break,
            }
        }
        let end = Received {
            len: 0,
            content_type: ContentType::APPLICATION_DATA,
            end_of_record: false,
        };
        let error = shared.closed.and_then(error_of);
        if shared.finished || (shared.closed.is_some() && error.is_none()) {
            shared.watch.ended(&shared.flow);
            return Poll::Ready(Ok(end));
        }
        if let Some(error) = error {
            return Poll::Ready(Err(errno(error)));
        }
        shared.reader = Some(cx.waker().clone());
        self.waits_for(Waiting::Read(self.local, self.remote));
        Poll::Pending
    }
}

/// Why nothing can be written any more.
fn write_error(shared: &super::host::Stream) -> Option<io::Error> {
    if shared.shut {
        return Some(errno(Errno::PIPE));
    }
    shared
        .closed
        .map(|reason| errno(error_of(reason).unwrap_or(Errno::PIPE)))
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match self.poll_recv(cx, buffer.initialize_unfilled(), false) {
            Poll::Ready(Ok(received)) => {
                buffer.advance(received.len);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutdown_write();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.shared.borrow_mut().drop_end();
    }
}
