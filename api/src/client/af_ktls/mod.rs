//! AF_KTLS: the socket family of the 2016 kernel module, for `SOCK_DGRAM` (DTLS 1.2 over UDP).
//!
//! | module call | here |
//! | --- | --- |
//! | `socket(AF_KTLS, type, 0)` | [`KtlsSocket::new`] |
//! | `bind` with a `sockaddr_ktls` | [`KtlsSocket::bind`] |
//! | `setsockopt(AF_KTLS, KTLS_SET_*)`, `getsockopt(AF_KTLS, KTLS_GET_*)` | [`KtlsSocket::setsockopt`], [`KtlsSocket::getsockopt`] |
//! | `KTLS_UNATTACH` | the same by `setsockopt`, or [`KtlsSocket::unattach`] |
//! | `send`, `sendmsg`, `write` | [`KtlsSocket::send`] |
//! | `recv`, `recvmsg`, `read` | [`KtlsSocket::recv`] |
//! | `sendfile` | [`KtlsSocket::sendfile`] |
//! | `splice` from and to a pipe | [`KtlsSocket::splice_from`], [`KtlsSocket::splice_to`] |
//!
//! A KTLS socket is laid over a connected [`UdpSocket`], which stays usable: handshakes and alerts of the peer arrive there, as
//! they came, and what is sent on it leaves in the raw. So a re-handshake is: [`unattach`](KtlsSocket::unattach), talk on the UDP
//! socket, [`bind`](KtlsSocket::bind) again, set the new keys; records of the old epoch that are late still open for a while.
//!
//! Its descriptor shows what `poll` promises: readable when a record waits, writable when there is room. Until it is bound, the
//! descriptor polls as nothing. `bind` and `unattach` put another open file under the same number, so `epoll` has to be told anew.
//!
//! `SOCK_STREAM` (TLS over TCP) is answered with `ESOCKTNOSUPPORT`: on TCP, [`TcpStream`](crate::TcpStream)'s Linux-kTLS calls
//! do that work. Beyond the module's one cipher, `bind` takes AES-256-GCM (52; key 32 bytes) and ChaCha20-Poly1305 (54;
//! key 32, salt 12, which is the whole iv).
//!
//! What arrives late differs from a kernel in one point: a datagram that cannot leave (longer than the path's MTU and not to be
//! fragmented, or keys used up) is reported by the next `recv`, as an asynchronous socket error is, not by the `send` itself.

mod io;
mod options;

pub use io::{DatagramFlags, KtlsReceived};
pub use options::{
    AF_KTLS, KTLS_CIPHER_AES_GCM_128, KTLS_GET_IV_RECV, KTLS_GET_IV_SEND, KTLS_GET_KEY_RECV,
    KTLS_GET_KEY_SEND, KTLS_GET_MTU, KTLS_GET_SALT_RECV, KTLS_GET_SALT_SEND, KTLS_SET_IV_RECV,
    KTLS_SET_IV_SEND, KTLS_SET_KEY_RECV, KTLS_SET_KEY_SEND, KTLS_SET_MTU, KTLS_SET_SALT_RECV,
    KTLS_SET_SALT_SEND, KTLS_UNATTACH, KTLS_VERSION_1_2, KTLS_VERSION_LATEST, PF_KTLS,
};

use super::UdpSocket;
use super::scm;
use crate::protocol::{
    BoundedBytes, DatagramRequest, DtlsStat, EpochKeyBytes, MAX_RX_BYTES, Reply, Request,
    SocketRequest,
};
use options::Options;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::{DupFlags, Errno, IoSlice, dup3};
use rustix::net::SendFlags;
use std::io as std_io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use uktls_record::CipherSuite;
use uktls_record::dtls::EpochKeys;
use uktls_stack::mark::Mark;

/// `SOCK_STREAM` and `SOCK_DGRAM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KtlsType {
    /// TLS over TCP; not supported here.
    Stream,
    /// DTLS over UDP.
    Datagram,
}

/// A `struct sockaddr_ktls`, but for the socket, which is passed as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KtlsAddress {
    /// `sa_cipher`
    pub cipher: u16,
    /// `sa_version`
    pub version: u16,
}

impl KtlsAddress {
    /// Length of the C struct in bytes.
    pub const LEN: usize = 6;

    /// AES-128-GCM, the latest version.
    pub const LATEST: Self = Self {
        cipher: KTLS_CIPHER_AES_GCM_128,
        version: KTLS_VERSION_LATEST,
    };

    /// The address and `sa_socket` from a C struct's bytes.
    ///
    /// # Errors
    /// `EBADMSG` for any other length.
    pub fn from_bytes(bytes: &[u8]) -> std_io::Result<(Self, u16)> {
        let Ok([c0, c1, s0, s1, v0, v1]) = <[u8; Self::LEN]>::try_from(bytes) else {
            return Err(Errno::BADMSG.into());
        };
        let address = Self {
            cipher: u16::from_ne_bytes([c0, c1]),
            version: u16::from_ne_bytes([v0, v1]),
        };
        Ok((address, u16::from_ne_bytes([s0, s1])))
    }
}

/// Which direction's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Send,
    Receive,
}

/// An AF_KTLS socket. See the [module](self).
#[derive(Debug)]
pub struct KtlsSocket {
    /// The association's end; nothing of meaning while unbound.
    fd: OwnedFd,
    bound: Option<Bound>,
}

/// What a socket is laid over.
#[derive(Debug)]
struct Bound {
    under: UdpSocket,
    peer: SocketAddr,
    options: Mutex<Options>,
}

impl Bound {
    fn options(&self) -> MutexGuard<'_, Options> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, request: DatagramRequest) -> std_io::Result<Reply> {
        self.under.ask(SocketRequest::Datagram(request))
    }

    fn act(&self, request: DatagramRequest) -> std_io::Result<()> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            _ => Err(self.under.daemon.nonsense().into()),
        }
    }

    fn stat(&self) -> std_io::Result<DtlsStat> {
        match self.ask(DatagramRequest::Info)? {
            Reply::Dtls(stat) => Ok(*stat),
            _ => Err(self.under.daemon.nonsense().into()),
        }
    }

    fn keys(&self, way: Way) -> std_io::Result<EpochKeys> {
        let request = match way {
            Way::Send => DatagramRequest::GetTx,
            Way::Receive => DatagramRequest::GetRx,
        };
        match self.ask(request)? {
            Reply::EpochKeys(keys) => Ok(keys.epoch_keys()?),
            _ => Err(self.under.daemon.nonsense().into()),
        }
    }

    /// Puts keys in force: those for receiving at once, those for sending behind what was sent so far.
    fn set_keys(&self, fd: &OwnedFd, way: Way, keys: &EpochKeys) -> std_io::Result<()> {
        let bytes = EpochKeyBytes::from(keys);
        match way {
            Way::Receive => self.act(DatagramRequest::RxKeys(bytes)),
            Way::Send => match self.ask(DatagramRequest::StageTx(bytes))? {
                Reply::KeyId(key_id) => {
                    send_mark(fd, Mark::TxKeys { key_id }, &[fd.as_fd()])?;
                    Ok(())
                }
                _ => Err(self.under.daemon.nonsense().into()),
            },
        }
    }
}

/// Sends a mark on an association's end, waiting for room.
fn send_mark(fd: &OwnedFd, mark: Mark, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let bytes = mark.encode();
    loop {
        match scm::send(fd, &[IoSlice::new(&bytes)], descriptors, SendFlags::empty()) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                scm::wait(fd, rustix::event::PollFlags::OUT, None)?;
            }
            Err(errno) => return Err(super::udp::gone(errno)),
        }
    }
}

impl KtlsSocket {
    /// `socket(AF_KTLS, kind, protocol)`.
    ///
    /// # Errors
    /// `ESOCKTNOSUPPORT` for a stream (see the [module](self)), `EPROTONOSUPPORT` for any protocol but 0.
    pub fn new(kind: KtlsType, protocol: i32) -> std_io::Result<KtlsSocket> {
        if kind != KtlsType::Datagram {
            return Err(Errno::SOCKTNOSUPPORT.into());
        }
        if protocol != 0 {
            return Err(Errno::PROTONOSUPPORT.into());
        }
        Ok(KtlsSocket {
            fd: placeholder()?,
            bound: None,
        })
    }

    /// `bind`: attaches to a connected UDP socket. From now on its peer's application data belongs here, also what came
    /// before and has not been read yet.
    ///
    /// # Errors
    /// `EINVAL` when this socket, or that one, is bound already; `ENOENT` for a cipher or version that does not exist;
    /// `ENOTCONN` when the UDP socket has no peer.
    pub fn bind(&mut self, under: &UdpSocket, address: KtlsAddress) -> std_io::Result<()> {
        if self.bound.is_some() {
            return Err(Errno::INVAL.into());
        }
        let cipher = CipherSuite::from_linux_id(address.cipher).map_err(|_| Errno::NOENT)?;
        if address.version > KTLS_VERSION_1_2 {
            return Err(Errno::NOENT.into());
        }
        let peer = under.peer_addr()?;
        let under = under.try_clone()?;
        let request = Request::AttachDtls { peer };
        let end = match under.daemon.ask(&request, Some(under.as_fd()))? {
            (Reply::Association, Some(end)) => end,
            _ => return Err(under.daemon.nonsense().into()),
        };
        self.replace(&end)?;
        let bound = Bound {
            under,
            peer,
            options: Mutex::new(Options::new(cipher)),
        };
        // What the UDP socket holds unread goes through the association once more; its own comes back to it.
        let waiting = bound.under.drain()?;
        self.bound = Some(bound);
        for (from, datagram) in waiting {
            let Some(datagram) = BoundedBytes::<MAX_RX_BYTES>::new(datagram) else {
                continue;
            };
            self.bound()?
                .act(DatagramRequest::GiveBack { from, datagram })?;
        }
        Ok(())
    }

    /// `KTLS_UNATTACH`: gives the UDP socket back to its owner. Keys and options are forgotten; this socket may be bound again.
    ///
    /// # Errors
    /// `EBADMSG` when it is not bound.
    pub fn unattach(&mut self) -> std_io::Result<()> {
        let bound = self.bound.take().ok_or(Errno::BADMSG)?;
        let detached = bound.act(DatagramRequest::Detach);
        self.replace(&placeholder()?)?;
        detached
    }

    /// `setsockopt`. Lengths must match exactly; key and salt together arm a direction, and what is set afterwards counts at
    /// once. `KTLS_UNATTACH` needs no value.
    ///
    /// # Errors
    /// `ENOPROTOOPT` for another level; `EBADMSG` when not bound, for a wrong length and for an option that does not exist.
    pub fn setsockopt(&mut self, level: i32, option: i32, value: &[u8]) -> std_io::Result<()> {
        if level != AF_KTLS {
            return Err(Errno::NOPROTOOPT.into());
        }
        if option == KTLS_UNATTACH {
            return self.unattach();
        }
        options::set(self.bound()?, &self.fd, option, value)
    }

    /// `getsockopt`: the value goes to the front of `value`, and its length comes back. The IV is the *next* sequence number.
    ///
    /// # Errors
    /// `ENOPROTOOPT` for another level; `EBADMSG` when not bound, not set, or no such option; `ENOMEM` when `value` is too short;
    /// `EPERM` for keys, unless the caller created the UDP socket and the daemon lets keys be read.
    pub fn getsockopt(&self, level: i32, option: i32, value: &mut [u8]) -> std_io::Result<usize> {
        if level != AF_KTLS {
            return Err(Errno::NOPROTOOPT.into());
        }
        options::get(self.bound()?, option, value)
    }

    /// Sets everything of the sending direction at once: what a handshake ends with, of any cipher and version.
    ///
    /// # Errors
    /// `EBADMSG` when not bound.
    pub fn set_send_keys(&self, keys: &EpochKeys) -> std_io::Result<()> {
        self.set_keys(Way::Send, keys)
    }

    /// Sets everything of the receiving direction at once. Keys of a later epoch leave those of the one before in force beside
    /// them for two minutes.
    ///
    /// # Errors
    /// `EBADMSG` when not bound.
    pub fn set_receive_keys(&self, keys: &EpochKeys) -> std_io::Result<()> {
        self.set_keys(Way::Receive, keys)
    }

    fn set_keys(&self, way: Way, keys: &EpochKeys) -> std_io::Result<()> {
        let bound = self.bound()?;
        bound.set_keys(&self.fd, way, keys)?;
        bound.options().armed(way);
        Ok(())
    }

    /// Keys, sequence numbers and what was dropped, by kind.
    ///
    /// # Errors
    /// `EBADMSG` when not bound.
    pub fn stat(&self) -> std_io::Result<DtlsStat> {
        self.bound()?.stat()
    }

    /// The peer.
    ///
    /// # Errors
    /// `ENOTCONN` when not bound.
    pub fn peer_addr(&self) -> std_io::Result<SocketAddr> {
        let bound = self.bound.as_ref().ok_or(Errno::NOTCONN)?;
        Ok(bound.peer)
    }

    /// What it is bound to, or the error that everything answers with until it is.
    fn bound(&self) -> std_io::Result<&Bound> {
        self.bound.as_ref().ok_or_else(|| Errno::BADMSG.into())
    }

    /// Puts another open file under this socket's descriptor, which keeps its number and whether it blocks.
    fn replace(&mut self, with: &OwnedFd) -> std_io::Result<()> {
        let nonblocking = self.is_nonblocking()?;
        dup3(with, &mut self.fd, DupFlags::CLOEXEC)?;
        self.set_nonblocking(nonblocking)
    }
}

/// A descriptor that never becomes readable.
fn placeholder() -> Result<OwnedFd, Errno> {
    eventfd(0, EventfdFlags::CLOEXEC)
}

impl AsFd for KtlsSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for KtlsSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
