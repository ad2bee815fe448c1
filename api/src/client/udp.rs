//! UDP sockets.

use super::tcp::{descriptor, open, set_nonblocking, set_timeout};
use super::{Daemon, scm};
use crate::protocol::{DatagramRequest, Reply, Request, SocketKind, SocketRequest};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{RecvFlags, SendFlags, sockopt};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use uktls_stack::address::{self, ADDRESS_LEN};

/// Largest UDP payload: 65,535 less the UDP header, and under IPv4 the IP header too.
const MAX_PAYLOAD_V4: usize = 65_507;
const MAX_PAYLOAD_V6: usize = 65_527;

/// A UDP socket on the stack. Its descriptor is a `SOCK_SEQPACKET` one that carries each datagram behind its peer's address.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    pub(super) daemon: Daemon,
    local: SocketAddr,
    /// Fixed peer; datagrams of others are not delivered.
    peer: Mutex<Option<SocketAddr>>,
    /// Largest payload while datagrams may not be fragmented, else 0. Shared by clones, as the option is.
    largest: Arc<AtomicUsize>,
}

impl UdpSocket {
    /// Binds on the default daemon. Port 0 takes a free one.
    ///
    /// # Errors
    /// `EADDRINUSE`, `EADDRNOTAVAIL`; `ENETDOWN` when no daemon runs.
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<UdpSocket> {
        let daemon = Daemon::default();
        let mut last = Errno::INVAL.into();
        for address in address.to_socket_addrs()? {
            match UdpSocket::bind_on(&daemon, address, None) {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Binds on `daemon`; with `peer`, the stack delivers only that peer's datagrams.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_on(
        daemon: &Daemon,
        address: SocketAddr,
        peer: Option<SocketAddr>,
    ) -> io::Result<UdpSocket> {
        let (fd, local) = open(
            daemon,
            &Request::BindUdp {
                local: address,
                remote: peer,
            },
        )?;
        set_nonblocking(&fd, false)?;
        Ok(UdpSocket {
            fd,
            daemon: daemon.clone(),
            local,
            peer: Mutex::new(peer),
            largest: Arc::default(),
        })
    }

    /// A socket from a descriptor that came from elsewhere: inherited, passed, or taken out of one. A peer is known only where it was
    /// given at birth.
    ///
    /// # Errors
    /// `ENOTSOCK` when it is no UDP socket of `daemon`.
    pub fn from_fd(daemon: &Daemon, fd: OwnedFd) -> io::Result<UdpSocket> {
        let stat = match daemon.ask(&Request::OnSocket(SocketRequest::Info), Some(fd.as_fd()))? {
            (Reply::Info(stat), _) if stat.kind == SocketKind::Udp => stat,
            _ => return Err(Errno::NOTSOCK.into()),
        };
        Ok(UdpSocket {
            fd,
            daemon: daemon.clone(),
            local: stat.local,
            peer: Mutex::new(stat.remote),
            largest: Arc::default(),
        })
    }

    /// Fixes the peer for [`send`](Self::send) and [`recv`](Self::recv). Unlike a peer given at birth it is this handle's own:
    /// datagrams of others still arrive and are dropped as they are read.
    ///
    /// # Errors
    /// That the name does not resolve.
    pub fn connect(&self, address: impl ToSocketAddrs) -> io::Result<()> {
        let address = address.to_socket_addrs()?.next().ok_or(Errno::INVAL)?;
        *self.peer.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
        Ok(())
    }

    /// This side's address.
    ///
    /// # Errors
    /// None; as in `std`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    /// The fixed peer.
    ///
    /// # Errors
    /// `ENOTCONN` when there is none.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.peer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ok_or_else(|| Errno::NOTCONN.into())
    }

    /// Sends one datagram to `address`.
    ///
    /// # Errors
    /// `EMSGSIZE` for more than a datagram can hold, `EAGAIN`, `ECONNABORTED` when the daemon is gone.
    pub fn send_to(&self, bytes: &[u8], address: SocketAddr) -> io::Result<usize> {
        let most = if address.is_ipv4() {
            MAX_PAYLOAD_V4
        } else {
            MAX_PAYLOAD_V6
        };
        let most = match self.largest.load(Ordering::Relaxed) {
            0 => most,
            largest => largest.min(most),
        };
        if bytes.len() > most {
            return Err(Errno::MSGSIZE.into());
        }
        let header = address::encode(address);
        match scm::send(
            &self.fd,
            &[IoSlice::new(&header), IoSlice::new(bytes)],
            &[],
            SendFlags::empty(),
        ) {
            Ok(_) => Ok(bytes.len()),
            Err(errno) => Err(gone(errno).into()),
        }
    }

    /// Sends one datagram to the fixed peer.
    ///
    /// # Errors
    /// `EDESTADDRREQ` when there is none; as [`send_to`](Self::send_to).
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let peer = self.peer_addr().map_err(|_| Errno::DESTADDRREQ)?;
        self.send_to(bytes, peer)
    }

    /// Receives one datagram and its sender. What does not fit is lost.
    ///
    /// # Errors
    /// `EAGAIN`; `ECONNABORTED` when the daemon is gone.
    pub fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.receive(buf, RecvFlags::empty())
    }

    /// As [`recv_from`](Self::recv_from), without taking the datagram.
    ///
    /// # Errors
    /// As [`recv_from`](Self::recv_from).
    pub fn peek_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.receive(buf, RecvFlags::PEEK)
    }

    /// Receives one datagram of the fixed peer.
    ///
    /// # Errors
    /// As [`recv_from`](Self::recv_from).
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.recv_from(buf).map(|(len, _)| len)
    }

    /// As [`recv`](Self::recv), but `EAGAIN` where it would wait, whatever the descriptor's own mode.
    #[cfg(feature = "openssl")]
    pub(crate) fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.receive(buf, RecvFlags::DONTWAIT).map(|(len, _)| len)
    }

    /// One datagram, whoever sent it.
    fn receive_from_anybody(
        &self,
        buf: &mut [u8],
        flags: RecvFlags,
    ) -> Result<(usize, SocketAddr), Errno> {
        let mut header =
            address::encode(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)));
        let mut bufs = [IoSliceMut::new(&mut header), IoSliceMut::new(buf)];
        let received = scm::receive(&self.fd, &mut bufs, flags).map_err(gone)?;
        if received.len == 0 {
            return Err(Errno::CONNABORTED);
        }
        match (
            address::decode(&header),
            received.len.checked_sub(ADDRESS_LEN),
        ) {
            (Some(from), Some(len)) => Ok((len, from)),
            _ => Err(Errno::PROTO),
        }
    }

    fn receive(&self, buf: &mut [u8], flags: RecvFlags) -> io::Result<(usize, SocketAddr)> {
        let peer = *self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (len, from) = self.receive_from_anybody(buf, flags)?;
            if peer.is_none_or(|peer| peer == from) {
                return Ok((len, from));
            }
            if flags.contains(RecvFlags::PEEK) {
                // A stranger's, in the way of what is looked for.
                let mut nothing = [0; 0];
                scm::receive(
                    &self.fd,
                    &mut [IoSliceMut::new(&mut nothing)],
                    RecvFlags::empty(),
                )
                .map_err(gone)?;
            }
        }
    }

    /// The largest IP packet that the path carries uncut, as far as it is known: the link's MTU, or what a router reported.
    ///
    /// # Errors
    /// `ECONNABORTED` when the daemon is gone.
    pub fn path_mtu(&self) -> io::Result<usize> {
        match self.ask(SocketRequest::Datagram(DatagramRequest::PathMtu))? {
            Reply::PathMtu(mtu) => Ok(mtu as usize),
            _ => Err(self.daemon.nonsense().into()),
        }
    }

    /// Whether datagrams longer than the path's MTU are refused with `EMSGSIZE`, instead of fragmented. Where the path has become
    /// narrower since this was set, what is too long is lost and counted; [`path_mtu`](Self::path_mtu) tells.
    ///
    /// # Errors
    /// `ECONNABORTED` when the daemon is gone.
    pub fn set_dont_fragment(&self, on: bool) -> io::Result<()> {
        let request = DatagramRequest::SetDontFragment(on);
        match self.ask(SocketRequest::Datagram(request))? {
            Reply::Done => {}
            _ => return Err(self.daemon.nonsense().into()),
        }
        let headers = if self.local.is_ipv4() { 28 } else { 48 };
        let largest = if on {
            self.path_mtu()?.saturating_sub(headers)
        } else {
            0
        };
        self.largest.store(largest, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn ask(&self, request: SocketRequest) -> io::Result<Reply> {
        match self
            .daemon
            .ask(&Request::OnSocket(request), Some(self.fd.as_fd()))
        {
            Ok((Reply::Gone(_), _)) => Err(Errno::CONNABORTED.into()),
            Ok((reply, _)) => Ok(reply),
            Err(error) => Err(super::end::of_request(error)),
        }
    }

    /// Everything that waits on the socket, taken off it.
    pub(super) fn drain(&self) -> io::Result<Vec<(SocketAddr, Vec<u8>)>> {
        let mut all = Vec::new();
        let mut buffer = vec![0; MAX_PAYLOAD_V6];
        loop {
            match self.receive_from_anybody(&mut buffer, RecvFlags::DONTWAIT) {
                Ok((len, from)) => all.push((from, buffer[..len].to_vec())),
                Err(Errno::AGAIN) => return Ok(all),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Whether calls return `EAGAIN` instead of waiting.
    ///
    /// # Errors
    /// None in practice.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        set_nonblocking(&self.fd, nonblocking)
    }

    /// How long a receive waits; `None` is for ever.
    ///
    /// # Errors
    /// `EINVAL` for a time of zero.
    pub fn set_read_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        set_timeout(&self.fd, sockopt::Timeout::Recv, time)
    }

    /// How long a send waits; `None` is for ever.
    ///
    /// # Errors
    /// `EINVAL` for a time of zero.
    pub fn set_write_timeout(&self, time: Option<Duration>) -> io::Result<()> {
        set_timeout(&self.fd, sockopt::Timeout::Send, time)
    }

    /// Another handle to the same socket.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn try_clone(&self) -> io::Result<UdpSocket> {
        let peer = *self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(UdpSocket {
            fd: self.fd.try_clone()?,
            daemon: self.daemon.clone(),
            local: self.local,
            peer: Mutex::new(peer),
            largest: self.largest.clone(),
        })
    }
}

impl From<UdpSocket> for OwnedFd {
    fn from(socket: UdpSocket) -> OwnedFd {
        socket.fd
    }
}

descriptor!(UdpSocket);

/// A socket pair's other end is the daemon's: nobody else can have closed it.
pub(super) fn gone(errno: Errno) -> Errno {
    match errno {
        Errno::PIPE | Errno::CONNRESET => Errno::CONNABORTED,
        errno => errno,
    }
}
