//! AF_KTLS: the socket family of the 2016 kernel module: TLS 1.2 over TCP (`SOCK_STREAM`) and DTLS 1.2 over UDP (`SOCK_DGRAM`).
//!
//! | module call | here |
//! | --- | --- |
//! | `socket(AF_KTLS, type, 0)` | [`KtlsSocket::new`] |
//! | `bind` with a `sockaddr_ktls` | [`KtlsSocket::bind`], [`KtlsSocket::bind_address`] |
//! | `setsockopt(AF_KTLS, KTLS_SET_*)`, `getsockopt(AF_KTLS, KTLS_GET_*)` | [`KtlsSocket::setsockopt`], [`KtlsSocket::getsockopt`] |
//! | `KTLS_UNATTACH` | the same by `setsockopt`, or [`KtlsSocket::unattach`] |
//! | `send`, `sendmsg`, `write` | [`KtlsSocket::send`], [`KtlsSocket::sendmsg`] |
//! | `recv`, `recvmsg`, `read` | [`KtlsSocket::recv`], [`KtlsSocket::recvmsg`] |
//! | `poll` | the descriptor's own, or [`KtlsSocket::poll`] |
//! | `sendfile` | [`KtlsSocket::sendfile`] |
//! | `splice` from and to a pipe | [`KtlsSocket::splice_from`], [`KtlsSocket::splice_to`] |
//!
//! A KTLS socket is laid over a [`TcpStream`] or a connected [`UdpSocket`], which stays usable: handshakes and alerts of the peer
//! arrive there, as they came, and what is sent on it leaves in the raw. So a re-handshake is: [`unattach`](KtlsSocket::unattach),
//! talk on the socket beneath, [`bind`](KtlsSocket::bind) again, set the new keys. Late records of a DTLS epoch still open for a while.
//!
//! **Streams.** Reading stops with `EBADMSG` at a record that is not application data, which then waits on the TCP stream; it has a
//! sequence number like any other, and `KTLS_GET_IV_RECV` says which. Its owner reads it there, and then either unattaches, or
//! sets `KTLS_SET_IV_RECV` to the number behind it, and reading goes on. What a KTLS socket was given to read and has not read
//! when it is unattached stays its own, and is read first when it is bound again. A KTLS socket that is dropped is unattached.
//!
//! A stream's descriptor is a duplicate of the TCP stream's, so both poll alike, and whether they block is one flag.
//! While keys are set, reading the TCP stream gives records that were left to it, `EBUSY` where data is next. `KTLS_GET_IV_SEND`
//! waits until what was sent is sealed, since only then the number is known; a peer that does not read makes that long.
//! A TCP stream whose end of file was already delivered cannot be bound any more (`ENOTCONN`).
//!
//! **The descriptor** shows what `poll` promises: readable when a record waits, writable when there is room, hung up with the
//! socket beneath. `bind` and `unattach` put another open file under the same number, so `epoll` has to be told anew.
//!
//! Beyond the module's one cipher, `bind` takes AES-256-GCM (52; key 32 bytes) and ChaCha20-Poly1305 (54; key 32, salt 12, which is
//! the whole iv).
//!
//! What arrives late differs from a kernel in one point: a datagram that cannot leave (longer than the path's MTU and not to be
//! fragmented, or keys used up) is reported by the next `recv`, as an asynchronous socket error is, not by the `send` itself.

mod association;
mod io;
mod options;
mod stream;

pub use io::{DatagramFlags, KtlsFlags, KtlsReceived};
pub use options::{
    AF_KTLS, KTLS_CIPHER_AES_GCM_128, KTLS_GET_IV_RECV, KTLS_GET_IV_SEND, KTLS_GET_KEY_RECV,
    KTLS_GET_KEY_SEND, KTLS_GET_MTU, KTLS_GET_SALT_RECV, KTLS_GET_SALT_SEND, KTLS_SET_IV_RECV,
    KTLS_SET_IV_SEND, KTLS_SET_KEY_RECV, KTLS_SET_KEY_SEND, KTLS_SET_MTU, KTLS_SET_SALT_RECV,
    KTLS_SET_SALT_SEND, KTLS_UNATTACH, KTLS_VERSION_1_2, KTLS_VERSION_LATEST, PF_KTLS,
};

use super::{Daemon, DaemonError, TcpStream, UdpSocket};
use crate::protocol::{DtlsStat, SocketKind};
use association::Association;
use options::Options;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::{DupFlags, Errno, dup3, fcntl_dupfd_cloexec};
use std::collections::VecDeque;
use std::io as io_std;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use stream::Attachment;
use uktls_record::dtls::EpochKeys;
use uktls_record::{CipherSuite, CryptoInfo};

/// `SOCK_STREAM` and `SOCK_DGRAM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KtlsType {
    /// TLS 1.2 over TCP.
    Stream,
    /// DTLS over UDP.
    Datagram,
}

impl TryFrom<i32> for KtlsType {
    type Error = io_std::Error;

    /// The type with this number in Linux: 1 or 2; `ESOCKTNOSUPPORT` for any other.
    fn try_from(number: i32) -> io_std::Result<KtlsType> {
        match number {
            1 => Ok(KtlsType::Stream),
            2 => Ok(KtlsType::Datagram),
            _ => Err(Errno::SOCKTNOSUPPORT.into()),
        }
    }
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
    pub fn from_bytes(bytes: &[u8]) -> io_std::Result<(Self, u16)> {
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

/// What a KTLS socket is laid over.
#[derive(Debug, Clone, Copy)]
pub enum Under<'a> {
    /// TLS goes over TCP.
    Tcp(&'a TcpStream),
    /// DTLS goes over UDP.
    Udp(&'a UdpSocket),
}

impl<'a> From<&'a TcpStream> for Under<'a> {
    fn from(stream: &'a TcpStream) -> Self {
        Under::Tcp(stream)
    }
}

impl<'a> From<&'a UdpSocket> for Under<'a> {
    fn from(socket: &'a UdpSocket) -> Self {
        Under::Udp(socket)
    }
}

/// Everything of one direction: what a handshake ends with, of any cipher.
#[derive(Debug, Clone, Copy)]
pub enum KtlsKeys<'a> {
    /// Of TLS 1.2.
    Tls(&'a CryptoInfo),
    /// Of DTLS.
    Dtls(&'a EpochKeys),
}

impl<'a> From<&'a CryptoInfo> for KtlsKeys<'a> {
    fn from(keys: &'a CryptoInfo) -> Self {
        KtlsKeys::Tls(keys)
    }
}

impl<'a> From<&'a EpochKeys> for KtlsKeys<'a> {
    fn from(keys: &'a EpochKeys) -> Self {
        KtlsKeys::Dtls(keys)
    }
}

/// An AF_KTLS socket. See the [module](self).
#[derive(Debug)]
pub struct KtlsSocket {
    kind: KtlsType,
    /// The descriptor of what it is bound to, under a number of its own; nothing of meaning while unbound.
    fd: OwnedFd,
    bound: Option<Bound>,
    /// Of a stream: what was opened and not read when it was unattached.
    held: Mutex<VecDeque<u8>>,
}

#[derive(Debug)]
enum Bound {
    Stream(Attachment),
    Datagram(Association),
}

impl Bound {
    fn options(&self) -> MutexGuard<'_, Options> {
        match self {
            Bound::Stream(attachment) => attachment.options(),
            Bound::Datagram(association) => association.options(),
        }
    }

    fn check_armed(&self, way: Way) -> Result<(), Errno> {
        if self.options().is_armed(way) {
            Ok(())
        } else {
            Err(Errno::BADMSG)
        }
    }
}

impl KtlsSocket {
    /// `socket(AF_KTLS, kind, protocol)`.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` for any protocol but 0. (`ESOCKTNOSUPPORT` is [`KtlsType::try_from`]'s.)
    pub fn new(kind: KtlsType, protocol: i32) -> io_std::Result<KtlsSocket> {
        if protocol != 0 {
            return Err(Errno::PROTONOSUPPORT.into());
        }
        Ok(KtlsSocket {
            kind,
            fd: placeholder()?,
            bound: None,
            held: Mutex::default(),
        })
    }

    /// `bind`: attaches to a connected socket. From now on its peer's application data belongs here, also what came before and
    /// has not been read yet.
    ///
    /// # Errors
    /// `EINVAL` when this socket, or that one, is bound already, or has the TLS ULP; `ENOENT` for a cipher or version that does not
    /// exist; `EBADF` for TLS over UDP and DTLS over TCP; `ENOTCONN` when the socket beneath has no peer, or its stream has ended.
    pub fn bind<'a>(
        &mut self,
        under: impl Into<Under<'a>>,
        address: KtlsAddress,
    ) -> io_std::Result<()> {
        if self.bound.is_some() {
            return Err(Errno::INVAL.into());
        }
        let cipher = CipherSuite::from_linux_id(address.cipher).map_err(|_| Errno::NOENT)?;
        if address.version > KTLS_VERSION_1_2 {
            return Err(Errno::NOENT.into());
        }
        let bound = match (self.kind, under.into()) {
            (KtlsType::Stream, Under::Tcp(stream)) => {
                Bound::Stream(Attachment::new(stream, cipher)?)
            }
            (KtlsType::Datagram, Under::Udp(socket)) => {
                Bound::Datagram(Association::new(socket, cipher)?)
            }
            _ => return Err(Errno::BADF.into()),
        };
        match &bound {
            Bound::Stream(attachment) => {
                let nonblocking = self.is_nonblocking()?;
                dup3(attachment.end(), &mut self.fd, DupFlags::CLOEXEC)?;
                if nonblocking {
                    self.set_nonblocking(true)?;
                }
            }
            Bound::Datagram(association) => self.replace(association.end())?,
        }
        self.bound = Some(bound);
        Ok(())
    }

    /// `bind` as in C: the bytes of a `struct sockaddr_ktls`, whose `sa_socket` is the number of a descriptor of `daemon`'s. Of a UDP
    /// socket the peer must have been fixed when it was made. What the caller's own handle to that socket knows of control
    /// records and open ones is not known here.
    ///
    /// # Errors
    /// As [`bind`](Self::bind); `EBADMSG` for another length, `ENOENT` for a number that is not open, `EAFNOSUPPORT` for anything but a
    /// socket of this daemon's.
    pub fn bind_address(&mut self, daemon: &Daemon, address: &[u8]) -> io_std::Result<()> {
        let (address, number) = KtlsAddress::from_bytes(address)?;
        // SAFETY: the number is used for one system call that duplicates it, and says so where it is not open.
        let fd = unsafe { BorrowedFd::borrow_raw(number.into()) };
        let fd = fcntl_dupfd_cloexec(fd, 0).map_err(|_| Errno::NOENT)?;
        match daemon.kind_of(fd.as_fd()) {
            Ok(SocketKind::Tcp) => self.bind(&TcpStream::from_fd(daemon, fd)?, address),
            Ok(SocketKind::Udp) => self.bind(&UdpSocket::from_fd(daemon, fd)?, address),
            Ok(SocketKind::TcpListener) => Err(Errno::NOTCONN.into()),
            Err(DaemonError::System(Errno::NOTSOCK)) => Err(Errno::AFNOSUPPORT.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// `KTLS_UNATTACH`: gives the socket beneath back to its owner. Keys and options are forgotten; this socket may be bound again.
    /// What was sent before leaves under the keys it was sent with.
    ///
    /// Returns the sequence number of the first record that the owner of a stream gets back, if there were keys for receiving: what
    /// they go on with where they are set again. (That of the sending direction is `KTLS_GET_IV_SEND` before.)
    ///
    /// # Errors
    /// `EBADMSG` when it is not bound.
    pub fn unattach(&mut self) -> io_std::Result<Option<u64>> {
        let bound = self.bound.take().ok_or(Errno::BADMSG)?;
        let detached = match &bound {
            Bound::Stream(attachment) => {
                let mut opened = Vec::new();
                let detached = attachment.detach(&mut opened);
                let held = self.held.get_mut();
                held.unwrap_or_else(PoisonError::into_inner).extend(opened);
                detached
            }
            Bound::Datagram(association) => association.detach().map(|()| None),
        };
        self.replace(placeholder()?.as_fd())?;
        detached
    }

    /// `setsockopt`. Lengths must match exactly; key and salt together arm a direction, and what is set afterwards counts at
    /// once. `KTLS_UNATTACH` needs no value.
    ///
    /// # Errors
    /// `ENOPROTOOPT` for another level; `EBADMSG` when not bound, for a wrong length and for an option that does not exist.
    pub fn setsockopt(&mut self, level: i32, option: i32, value: &[u8]) -> io_std::Result<()> {
        if level != AF_KTLS {
            return Err(Errno::NOPROTOOPT.into());
        }
        if option == KTLS_UNATTACH {
            return self.unattach().map(|_| ());
        }
        match self.bound()? {
            Bound::Stream(attachment) => attachment.set(option, value),
            Bound::Datagram(association) => association.set(option, value),
        }
    }

    /// `getsockopt`: the value goes to the front of `value`, and its length comes back. The IV is the *next* sequence number.
    ///
    /// # Errors
    /// `ENOPROTOOPT` for another level; `EBADMSG` when not bound, not set, or no such option; `ENOMEM` when `value` is too short;
    /// `EPERM` for keys, unless the caller created the socket beneath and the daemon lets keys be read.
    pub fn getsockopt(&self, level: i32, option: i32, value: &mut [u8]) -> io_std::Result<usize> {
        if level != AF_KTLS {
            return Err(Errno::NOPROTOOPT.into());
        }
        let found = match self.bound()? {
            Bound::Stream(attachment) => attachment.get(option, value.len())?,
            Bound::Datagram(association) => association.get(option, value.len())?,
        };
        let place = value.get_mut(..found.len()).ok_or(Errno::NOMEM)?;
        place.copy_from_slice(&found);
        Ok(found.len())
    }

    /// Sets everything of the sending direction at once.
    ///
    /// # Errors
    /// `EBADMSG` when not bound; `EINVAL` for DTLS keys on a stream, TLS keys on datagrams, and TLS 1.3.
    pub fn set_send_keys<'a>(&self, keys: impl Into<KtlsKeys<'a>>) -> io_std::Result<()> {
        self.set_keys(Way::Send, keys.into())
    }

    /// Sets everything of the receiving direction at once. DTLS keys of a later epoch leave those of the one before in force
    /// beside them for two minutes.
    ///
    /// # Errors
    /// As [`set_send_keys`](Self::set_send_keys).
    pub fn set_receive_keys<'a>(&self, keys: impl Into<KtlsKeys<'a>>) -> io_std::Result<()> {
        self.set_keys(Way::Receive, keys.into())
    }

    fn set_keys(&self, way: Way, keys: KtlsKeys<'_>) -> io_std::Result<()> {
        match (self.bound()?, keys) {
            (Bound::Stream(attachment), KtlsKeys::Tls(keys)) => attachment.set_keys(way, keys),
            (Bound::Datagram(association), KtlsKeys::Dtls(keys)) => association.set_keys(way, keys),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Keys, sequence numbers and what was dropped, by kind. (Of a stream, [`TcpStream::stat`] tells.)
    ///
    /// # Errors
    /// `EBADMSG` when not bound, `EOPNOTSUPP` for a stream.
    pub fn stat(&self) -> io_std::Result<DtlsStat> {
        match self.bound()? {
            Bound::Stream(_) => Err(Errno::OPNOTSUPP.into()),
            Bound::Datagram(association) => association.stat(),
        }
    }

    /// The peer.
    ///
    /// # Errors
    /// `ENOTCONN` when not bound.
    pub fn peer_addr(&self) -> io_std::Result<SocketAddr> {
        match self.bound.as_ref().ok_or(Errno::NOTCONN)? {
            Bound::Stream(attachment) => attachment.peer(),
            Bound::Datagram(association) => Ok(association.peer),
        }
    }

    /// What it is bound to, or the error that everything answers with until it is.
    fn bound(&self) -> io_std::Result<&Bound> {
        self.bound.as_ref().ok_or_else(|| Errno::BADMSG.into())
    }

    /// Puts another open file under this socket's descriptor, which keeps its number and whether it blocks.
    fn replace(&mut self, with: BorrowedFd<'_>) -> io_std::Result<()> {
        let nonblocking = self.is_nonblocking()?;
        dup3(with, &mut self.fd, DupFlags::CLOEXEC)?;
        self.set_nonblocking(nonblocking)
    }
}

impl Drop for KtlsSocket {
    fn drop(&mut self) {
        if let Some(Bound::Stream(_)) = self.bound {
            // As close(2): the TCP socket is its owner's again, and nobody is left to be told that it could not be.
            let _ = self.unattach();
        }
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
