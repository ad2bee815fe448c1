//! DTLS for host programs: AF_KTLS's datagram socket, laid over a UDP socket.
//!
//! The calls, their names and their errors are those of the daemon's client library, and the stack beneath is the same: records are
//! sealed in the buffer that leaves, and opened, or dropped and counted by kind, in the packet that came. What `setsockopt` sets
//! byte by byte is set here as [`EpochKeys`], and a file's range is memory.

use super::association::{Association, AssociationEnd, Incoming, SharedAssociation};
use super::executor::Waiting;
use super::tcp::{errno, host_down};
use super::udp::{Bound, UdpSocket};
use crate::dtls::DtlsInfo;
use crate::handle::{Direction, SocketOp, SocketReply};
use crate::mark::Mark;
use crate::tcp::FlowKey;
use bytes::Bytes;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use uktls_record::ContentType;
use uktls_record::dtls::EpochKeys;
use uktls_record::header::MAX_PLAINTEXT;

/// What [`KtlsSocket::recv`] received: one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KtlsReceived {
    /// Bytes in the buffer.
    pub len: usize,
    /// The record's type.
    pub content_type: ContentType,
    /// The record was longer than the buffer, and the rest of it is lost.
    pub truncated: bool,
}

/// A DTLS association of the calling task's host, over a connected UDP socket.
///
/// Application data of the peer's belongs here from [`bind`](Self::bind) on; handshakes, alerts and whatever is no record stay on
/// the UDP socket. Dropping it gives the UDP socket back, as [`unattach`](Self::unattach) does.
pub struct KtlsSocket {
    under: Rc<Bound>,
    shared: SharedAssociation,
    peer: SocketAddr,
    /// Keys were set for sending, and for receiving.
    armed: Cell<(bool, bool)>,
}

impl fmt::Debug for KtlsSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KtlsSocket")
            .field("local", &self.under.local)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl KtlsSocket {
    /// Attaches to a connected UDP socket: its peer's application data belongs here, also what came before and has not been
    /// read yet.
    ///
    /// # Errors
    /// `ENOTCONN` when the UDP socket has no peer, `EINVAL` when something is attached to it already.
    pub fn bind(under: &UdpSocket) -> io::Result<KtlsSocket> {
        let under = under.bound.clone();
        let peer = under.remote.get().ok_or_else(|| errno(Errno::NOTCONN))?;
        under.alive()?;
        let shared = under
            .world
            .with_engine(under.place.node, |engine, now| {
                let ip = match under.local.ip() {
                    ip if ip.is_unspecified() => {
                        engine.source_for(peer.ip()).ok_or(Errno::NETUNREACH)?
                    }
                    ip => ip,
                };
                let flow = FlowKey {
                    local: SocketAddr::new(ip, under.local.port()),
                    remote: peer,
                };
                let association = Association::new(
                    under.place,
                    under.index,
                    flow,
                    under.world.shared_touches(),
                    under.world.watch.clone(),
                );
                let shared = Rc::new(RefCell::new(association));
                let end = AssociationEnd(shared.clone());
                engine.attach_records(now, under.index, peer, end)?;
                Ok(shared)
            })
            .ok_or_else(host_down)?
            .map_err(errno)?;
        // What the UDP socket holds unread goes through the association once more; its own comes back to it.
        for (from, datagram) in under.drain() {
            under.act(SocketOp::DtlsGiveBack {
                from,
                datagram: datagram.to_vec(),
            })?;
        }
        Ok(KtlsSocket {
            under,
            shared,
            peer,
            armed: Cell::new((false, false)),
        })
    }

    /// Gives the UDP socket back to its owner, who may read and write it raw, and lay another one over it. What was sent
    /// before is sealed and sent first. Records of the epoch so far still open for a while under later keys.
    ///
    /// # Errors
    /// When the host is down.
    pub fn unattach(self) -> io::Result<()> {
        self.under.alive()?;
        self.under
            .world
            .with_engine(self.under.place.node, |engine, now| {
                engine.on_records_client(self.under.index);
                while !engine.is_idle() {
                    engine.give_turns(now);
                }
            });
        self.under.act(SocketOp::DtlsDetach).map(drop)
    }

    /// The peer.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Everything that is sent from here on is sealed with these keys: those of the first epoch, or of the next.
    ///
    /// # Errors
    /// When the host is down.
    pub fn set_send_keys(&self, keys: &EpochKeys) -> io::Result<()> {
        match self.under.act(SocketOp::DtlsStageTx(keys.clone()))? {
            SocketReply::KeyId(key_id) => {
                self.shared.borrow_mut().mark(Mark::TxKeys { key_id });
                self.armed.set((true, self.armed.get().1));
                Ok(())
            }
            _ => Err(errno(Errno::PROTO)),
        }
    }

    /// Records are opened with these keys. Keys of a later epoch leave those of the one before in force beside them for two
    /// minutes.
    ///
    /// # Errors
    /// When the host is down.
    pub fn set_receive_keys(&self, keys: &EpochKeys) -> io::Result<()> {
        self.under.act(SocketOp::DtlsRxKeys(keys.clone()))?;
        self.armed.set((self.armed.get().0, true));
        Ok(())
    }

    /// The keys for sending, with the number of the next record.
    ///
    /// # Errors
    /// `EBADMSG` when none were set.
    pub fn send_keys(&self) -> io::Result<EpochKeys> {
        self.keys(Direction::Tx)
    }

    /// The keys for receiving, with one more than the highest number that came.
    ///
    /// # Errors
    /// `EBADMSG` when none were set.
    pub fn receive_keys(&self) -> io::Result<EpochKeys> {
        self.keys(Direction::Rx)
    }

    fn keys(&self, direction: Direction) -> io::Result<EpochKeys> {
        match self.under.act(SocketOp::DtlsGetKeys(direction))? {
            SocketReply::EpochKeys(keys) => Ok(keys),
            _ => Err(errno(Errno::PROTO)),
        }
    }

    /// `KTLS_SET_MTU`: how long the records of [`sendfile`](Self::sendfile) are, overhead included; `None`: as long as records
    /// can be.
    ///
    /// # Errors
    /// When the host is down.
    pub fn set_mtu(&self, mtu: Option<u16>) -> io::Result<()> {
        self.under.act(SocketOp::DtlsSetMtu(mtu)).map(drop)
    }

    /// Keys, sequence numbers, and what was dropped, by kind.
    ///
    /// # Errors
    /// When the host is down.
    pub fn stat(&self) -> io::Result<DtlsInfo> {
        match self.under.act(SocketOp::DtlsInfo)? {
            SocketReply::Dtls(info) => Ok(*info),
            _ => Err(errno(Errno::PROTO)),
        }
    }

    /// Sends one record, which is one datagram.
    ///
    /// # Errors
    /// `EBADMSG` without keys, or when they are used up; `E2BIG` for more than 2^14 bytes.
    pub async fn send(&self, plaintext: &[u8]) -> io::Result<usize> {
        self.send_control(ContentType::APPLICATION_DATA, plaintext)
            .await?;
        Ok(plaintext.len())
    }

    /// Sends one record of another type: an alert, such as close_notify.
    ///
    /// # Errors
    /// As [`send`](Self::send); `EINVAL` for type 0, which no record has.
    pub async fn send_control(
        &self,
        content_type: ContentType,
        plaintext: &[u8],
    ) -> io::Result<()> {
        if plaintext.len() > MAX_PLAINTEXT {
            return Err(errno(Errno::TOOBIG));
        }
        if content_type.0 == 0 {
            return Err(errno(Errno::INVAL));
        }
        poll_fn(|cx| {
            self.may_send()?;
            let mut shared = self.shared.borrow_mut();
            if shared.send(content_type, plaintext) {
                return Poll::Ready(Ok(()));
            }
            shared.writer = Some(cx.waker().clone());
            self.waits_for(Waiting::Write(self.under.local, self.peer));
            Poll::Pending
        })
        .await
    }

    fn may_send(&self) -> io::Result<()> {
        self.under.alive()?;
        if !self.armed.get().0 || self.shared.borrow().exhausted {
            return Err(errno(Errno::BADMSG));
        }
        Ok(())
    }

    fn waits_for(&self, waiting: Waiting) {
        self.under.world.executor.waits_for(waiting);
    }

    /// Sends memory as `sendfile` sends a file: sealed straight from where it lies into records of the MTU that was
    /// [set](Self::set_mtu), or of 2^14 bytes. Gives how many bytes were sent; fewer when the keys are used up first.
    ///
    /// Nothing paces it: a link with a queue that is shorter than what is sent loses the rest.
    ///
    /// # Errors
    /// `EBADMSG` without keys, or when none of it could be sealed.
    pub async fn sendfile(&self, bytes: impl Into<Bytes>) -> io::Result<usize> {
        self.may_send()?;
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Ok(0);
        }
        let range = self.shared.borrow_mut().send_memory(bytes);
        poll_fn(|cx| {
            let mut shared = self.shared.borrow_mut();
            match shared.take_sealed(range) {
                Some(0) => return Poll::Ready(Err(errno(Errno::BADMSG))),
                Some(len) => return Poll::Ready(Ok(len)),
                None => {}
            }
            shared.writer = Some(cx.waker().clone());
            self.waits_for(Waiting::Sendfile(self.under.local, self.peer));
            Poll::Pending
        })
        .await
    }

    /// Receives one record; what does not fit the buffer is cut off.
    ///
    /// # Errors
    /// `EBADMSG` without keys, and whatever kept an earlier record from leaving: `EMSGSIZE` for one longer than the path's MTU that may
    /// not be fragmented, `EBADMSG` when the keys were used up.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<KtlsReceived> {
        poll_fn(|cx| {
            self.under.alive()?;
            if !self.armed.get().1 {
                return Poll::Ready(Err(errno(Errno::BADMSG)));
            }
            let mut shared = self.shared.borrow_mut();
            match shared.receive() {
                Some(Incoming::Record(content_type, plaintext)) => {
                    let len = plaintext.len().min(buffer.len());
                    buffer[..len].copy_from_slice(&plaintext[..len]);
                    Poll::Ready(Ok(KtlsReceived {
                        len,
                        content_type,
                        truncated: plaintext.len() > len,
                    }))
                }
                Some(Incoming::Note(error)) => Poll::Ready(Err(errno(error))),
                None => {
                    shared.reader = Some(cx.waker().clone());
                    self.waits_for(Waiting::Read(self.under.local, self.peer));
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for KtlsSocket {
    fn drop(&mut self) {
        self.shared.borrow_mut().drop_end();
    }
}
