//! The client library: sockets of the stack as descriptors of this process.
//!
//! [`TcpStream`], [`TcpListener`] and [`UdpSocket`] look like `std::net`'s. Each is one real descriptor, so `poll`, `epoll`,
//! mio and tokio's `AsyncFd` wait on it, and `fork`, `dup` and passing it on do what they always do. [`TcpStream`] also has
//! Linux's kTLS calls, in its methods from [`set_ulp_tls`](TcpStream::set_ulp_tls) on.
//!
//! [`af_ktls`] has the sockets of the 2016 module, for TLS over TCP and DTLS over UDP.
//!
//! A [`Daemon`] says which stack a socket belongs to: the one at `$UKTLS_SOCKET`, else at the default path.
//!
//! What this library keeps of a socket, beside the descriptor, is little: which control record is being read, whether a
//! `MSG_MORE` record is open, what is owed (a mark that found no room), and why the stream ended. Clones
//! ([`TcpStream::try_clone`]) share it; a descriptor that reached another process by `exec` or by passing starts with what
//! the daemon knows ([`TcpStream::from_fd`]). So hand a stream over between records, as with any TLS library.
//!
//! Errors are `io::Error`s that carry the errno a kernel socket would give. Three are about the daemon itself:
//! `ENETDOWN` when a new socket is asked for and no daemon runs, `ECONNABORTED` on a socket whose daemon is gone (never an end of
//! file), `EPROTONOSUPPORT` when library and daemon are of different versions.

pub mod af_ktls;
mod end;
mod kept;
mod ktls;
mod options;
mod pool;
mod receive;
mod recvfile;
pub(crate) mod scm;
mod send;
mod sendfile;
mod tcp;
mod udp;

pub use crate::protocol::Reason;
pub use ktls::{Received, RecvFlags, SendFlags};
pub use options::{ConnectOptions, ListenOptions};
pub use sendfile::SENDFILE_QUOTA;
pub use tcp::{TcpListener, TcpStream};
pub use udp::UdpSocket;

use crate::paths;
use crate::protocol::{
    BoundedBytes, Capabilities, Reply, Request, SocketKind, SocketRequest, SocketStat,
};
use pool::Pool;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One daemon, by the path of its socket. Cheap to clone; nothing is opened before the first request.
#[derive(Clone)]
pub struct Daemon {
    pool: Arc<Pool>,
}

/// What keeps a request from being answered, in words for people; as an `io::Error` it is one errno.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DaemonError {
    /// No socket, or nobody listens on it.
    #[error(
        "no uktls daemon at {path}; start one with `uktls up`, or name another with --socket or UKTLS_SOCKET"
    )]
    NotRunning {
        /// The path tried.
        path: PathBuf,
    },
    /// The socket belongs to somebody else.
    #[error(
        "the daemon at {path} belongs to another user; run as that user, or start your own with `uktls up`"
    )]
    Forbidden {
        /// The path tried.
        path: PathBuf,
    },
    /// Something else listens there.
    #[error(
        "what listens at {path} is not a uktls daemon; name the right socket with --socket or UKTLS_SOCKET"
    )]
    NotADaemon {
        /// The path tried.
        path: PathBuf,
    },
    /// Longer than a Unix socket address can be.
    #[error("{path} is no path for a Unix socket (107 bytes at most); choose a shorter one")]
    BadPath {
        /// The path tried.
        path: PathBuf,
    },
    /// It speaks another protocol version.
    #[error(
        "the daemon at {path} speaks protocol version {version}, this program {}; use both from one build",
        crate::protocol::VERSION
    )]
    OtherVersion {
        /// The path tried.
        path: PathBuf,
        /// The daemon's version.
        version: u16,
    },
    /// It hung up before it answered.
    #[error("the daemon at {path} went away before it answered; its own output tells why")]
    Gone {
        /// The path tried.
        path: PathBuf,
    },
    /// The daemon or the system refused.
    #[error("{}", io::Error::from(*.0))]
    System(Errno),
}

impl From<Errno> for DaemonError {
    fn from(errno: Errno) -> Self {
        DaemonError::System(errno)
    }
}

impl From<DaemonError> for io::Error {
    fn from(error: DaemonError) -> Self {
        io::Error::from(match error {
            DaemonError::NotRunning { .. }
            | DaemonError::NotADaemon { .. }
            | DaemonError::Gone { .. } => Errno::NETDOWN,
            DaemonError::Forbidden { .. } => Errno::ACCESS,
            DaemonError::BadPath { .. } => Errno::NAMETOOLONG,
            DaemonError::OtherVersion { .. } => Errno::PROTONOSUPPORT,
            DaemonError::System(errno) => errno,
        })
    }
}

impl Daemon {
    /// The daemon whose socket is at `path`.
    pub fn at(path: impl AsRef<Path>) -> Daemon {
        // One pool a path, so that however many handles there are, connections stay few.
        static POOLS: Mutex<BTreeMap<PathBuf, Weak<Pool>>> = Mutex::new(BTreeMap::new());
        let path = path.as_ref();
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(path).and_then(Weak::upgrade) {
            return Daemon { pool };
        }
        pools.retain(|_, pool| pool.strong_count() > 0);
        let pool = Arc::new(Pool::new(path.to_path_buf()));
        pools.insert(path.to_path_buf(), Arc::downgrade(&pool));
        Daemon { pool }
    }

    /// Where its socket is.
    pub fn path(&self) -> &Path {
        self.pool.path()
    }

    /// Asks the daemon what it can do; the way to find out whether one runs, with an error that says what to do.
    pub fn capabilities(&self) -> Result<Capabilities, DaemonError> {
        self.pool.capabilities()
    }

    /// Every socket of the daemon, in order of their numbers.
    pub fn sockets(&self) -> Result<Vec<SocketStat>, DaemonError> {
        let mut all: Vec<SocketStat> = Vec::new();
        loop {
            match self.ask(
                &Request::Sockets {
                    after: all.last().map(|last| last.id),
                },
                None,
            )? {
                (Reply::Sockets { sockets, more }, _) => {
                    let got_some = !sockets.is_empty();
                    all.extend(sockets);
                    if !(more && got_some) {
                        return Ok(all);
                    }
                }
                _ => return Err(self.nonsense()),
            }
        }
    }

    /// Every counter: Linux's `tls_stat` names first, in Linux's order, then the stack's own.
    pub fn counters(&self) -> Result<Vec<(String, u64)>, DaemonError> {
        match self.ask(&Request::Counters, None)? {
            (Reply::Counters(counters), _) => Ok(counters),
            _ => Err(self.nonsense()),
        }
    }

    /// Puts lines of a key log (`SSLKEYLOGFILE`) into the daemon's capture, in front of the packets that follow. Ask for
    /// [`Capabilities::CAPTURE`] first.
    ///
    /// # Errors
    /// `EOPNOTSUPP` when it writes none, `EPERM` for another user than its own.
    pub fn record_secrets(&self, lines: &str) -> Result<(), DaemonError> {
        let lines = BoundedBytes::new(lines.as_bytes().to_vec())
            .ok_or(DaemonError::System(Errno::MSGSIZE))?;
        match self.ask(&Request::Secrets(lines), None)? {
            (Reply::Done, _) => Ok(()),
            _ => Err(self.nonsense()),
        }
    }

    /// Linux's counters as `/proc/net/tls_stat` prints them.
    pub fn tls_stat(&self) -> Result<String, DaemonError> {
        let linux = self
            .counters()?
            .into_iter()
            .filter(|(name, _)| name.starts_with("Tls"));
        Ok(linux
            .map(|(name, value)| format!("{name:<32}\t{value}\n"))
            .collect())
    }

    pub(crate) fn ask(
        &self,
        request: &Request,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Option<OwnedFd>), DaemonError> {
        self.ask_with(request, fd.as_slice())
    }

    pub(crate) fn ask_with(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Option<OwnedFd>), DaemonError> {
        match self.pool.ask(request, fds)? {
            (Reply::Error(errno), _) => Err(DaemonError::System(Errno::from_raw_os_error(errno))),
            answer => Ok(answer),
        }
    }

    /// What kind of socket a descriptor is; `ENOTSOCK` for none of this daemon's.
    fn kind_of(&self, fd: BorrowedFd<'_>) -> Result<SocketKind, DaemonError> {
        match self.ask(&Request::OnSocket(SocketRequest::Info), Some(fd))? {
            (Reply::Info(stat), _) => Ok(stat.kind),
            (Reply::Gone(_), _) => Err(DaemonError::System(Errno::NOTCONN)),
            _ => Err(self.nonsense()),
        }
    }

    /// The error for an answer that does not belong to the question.
    pub(crate) fn nonsense(&self) -> DaemonError {
        DaemonError::NotADaemon {
            path: self.path().to_path_buf(),
        }
    }
}

impl Default for Daemon {
    /// The daemon at `$UKTLS_SOCKET`, else at [`paths::default_socket`].
    fn default() -> Self {
        Daemon::at(paths::client_socket())
    }
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Daemon").field(&self.path()).finish()
    }
}
