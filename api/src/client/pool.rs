//! Control connections to one daemon: a few, shared by the threads of this process.
//!
//! A request takes a connection for itself, asks, waits for the answer and puts it back, so that a slow answer in one
//! thread keeps no other thread waiting. At most [`MAX_CONNECTIONS`] exist at a time. Connections belong to the process
//! that opened them: after `fork` the child closes its copies unused and opens its own, since two processes that read
//! answers from one socket would get each other's. One that the process has closed without knowing is replaced.

use super::DaemonError;
use super::kept::Kept;
use super::scm;
use crate::protocol::{self, Capabilities, MAGIC, MAX_MESSAGE, Reply, Request, VERSION};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect,
    socket_with, sockopt,
};
use rustix::process::{Pid, getpid};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use zeroize::Zeroizing;

/// Connections a process holds to one daemon at most.
pub(super) const MAX_CONNECTIONS: usize = 8;

/// How long an answer may take. Answers need no peer on the network, so a daemon that is this late hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The pool of one daemon's path.
pub(super) struct Pool {
    path: PathBuf,
    state: Mutex<State>,
    returned: Condvar,
}

struct State {
    owner: Pid,
    idle: Vec<Connection>,
    /// Connections that exist, idle ones included.
    open: usize,
}

struct Connection {
    socket: Kept,
    capabilities: Capabilities,
}

/// An answer and the descriptor that came with it.
pub(super) type Answer = (Reply, Option<OwnedFd>);

impl Pool {
    pub(super) fn new(path: PathBuf) -> Self {
        let state = State {
            owner: getpid(),
            idle: Vec::new(),
            open: 0,
        };
        Pool {
            path,
            state: Mutex::new(state),
            returned: Condvar::new(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// One request and its answer. The first of `fds` names the socket the request is about.
    pub(super) fn ask(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer, DaemonError> {
        let message = protocol::encode(request).map_err(|_| DaemonError::System(Errno::MSGSIZE))?;
        loop {
            let (lease, fresh) = self.take()?;
            match lease.connection().exchange(&message, fds) {
                Ok(answer) => {
                    lease.give_back();
                    return Ok(answer);
                }
                // An idle connection whose daemon was replaced since. The request got no answer, and whatever the old
                // daemon did with it went with that daemon.
                Err(Errno::PIPE | Errno::CONNRESET) if !fresh => {}
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    return Err(DaemonError::Gone {
                        path: self.path.clone(),
                    });
                }
                Err(errno) => return Err(DaemonError::System(errno)),
            }
        }
    }

    /// What the daemon said of itself.
    pub(super) fn capabilities(&self) -> Result<Capabilities, DaemonError> {
        // Asks something small first, so that a stale connection does not speak for a daemon that is gone.
        self.ask(&Request::Counters, &[])?;
        let (lease, _) = self.take()?;
        let capabilities = lease.connection().capabilities;
        lease.give_back();
        Ok(capabilities)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection for exclusive use, and whether it is a new one.
    fn take(&self) -> Result<(Lease<'_>, bool), DaemonError> {
        let mut state = self.lock();
        loop {
            let here = getpid();
            if state.owner != here {
                *state = State {
                    owner: here,
                    idle: Vec::new(),
                    open: 0,
                };
            }
            if let Some(connection) = state.idle.pop() {
                return Ok((
                    Lease {
                        pool: self,
                        owner: here,
                        connection: Some(connection),
                        given_back: false,
                    },
                    false,
                ));
            }
            if state.open < MAX_CONNECTIONS {
                state.open += 1;
                drop(state);
                let mut lease = Lease {
                    pool: self,
                    owner: here,
                    connection: None,
                    given_back: false,
                };
                lease.connection = Some(Connection::open(&self.path)?);
                return Ok((lease, true));
            }
            state = self
                .returned
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A connection taken out of the pool; dropped without [`give_back`](Lease::give_back), its place is free again.
struct Lease<'a> {
    pool: &'a Pool,
    owner: Pid,
    /// `None` while it is being opened and once it was given back.
    connection: Option<Connection>,
    given_back: bool,
}

impl Lease<'_> {
    fn connection(&self) -> &Connection {
        self.connection
            .as_ref()
            .expect("a lease is handed out with its connection in it")
    }

    fn give_back(mut self) {
        let mut state = self.pool.lock();
        if state.owner == self.owner {
            state.idle.extend(self.connection.take());
            self.given_back = true;
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        if !self.given_back && state.owner == self.owner {
            state.open -= 1;
        }
        drop(state);
        self.pool.returned.notify_one();
    }
}

impl Connection {
    fn open(path: &Path) -> Result<Self, DaemonError> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let address =
            SocketAddrUnix::new(path).map_err(|_| DaemonError::BadPath { path: path.into() })?;
        connect(&socket, &address).map_err(|errno| match errno {
            Errno::NOENT | Errno::CONNREFUSED | Errno::NOTDIR => {
                DaemonError::NotRunning { path: path.into() }
            }
            Errno::ACCESS | Errno::PERM => DaemonError::Forbidden { path: path.into() },
            Errno::PROTOTYPE => DaemonError::NotADaemon { path: path.into() },
            errno => DaemonError::System(errno),
        })?;
        for direction in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
            sockopt::set_socket_timeout(&socket, direction, Some(ANSWER_TIMEOUT))?;
        }
        let mut connection = Connection {
            socket: Kept::new(socket)?,
            capabilities: Capabilities(0),
        };
        let hello = Request::Hello {
            magic: MAGIC,
            version: VERSION,
            capabilities: Capabilities::all(),
        };
        let hello = protocol::encode(&hello).map_err(|_| DaemonError::System(Errno::MSGSIZE))?;
        let answer = match connection.send(&hello, &[]) {
            // A daemon that refuses a connection may have said so, and closed it, before it heard anything.
            Ok(()) | Err(Errno::PIPE) => connection.receive(),
            Err(errno) => Err(errno),
        };
        match answer {
            Ok((
                Reply::Hello {
                    version: VERSION,
                    capabilities,
                },
                _,
            )) => connection.capabilities = capabilities,
            Ok((Reply::Hello { version, .. }, _)) => {
                return Err(DaemonError::OtherVersion {
                    path: path.into(),
                    version,
                });
            }
            Ok((Reply::Error(errno), _)) => match Errno::from_raw_os_error(errno) {
                Errno::PERM | Errno::ACCESS => {
                    return Err(DaemonError::Forbidden { path: path.into() });
                }
                errno => return Err(DaemonError::System(errno)),
            },
            Ok(_) | Err(Errno::BADMSG) => {
                return Err(DaemonError::NotADaemon { path: path.into() });
            }
            Err(Errno::PIPE | Errno::CONNRESET) => {
                return Err(DaemonError::Gone { path: path.into() });
            }
            Err(errno) => return Err(DaemonError::System(errno)),
        }
        Ok(connection)
    }

    /// `PIPE` or `CONNRESET` when there is nobody at the other end, `BADMSG` for an answer that is none.
    fn exchange(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Answer, Errno> {
        self.send(message, fds)?;
        self.receive()
    }

    fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let socket = self.socket.get().ok_or(Errno::PIPE)?;
        rustix::io::retry_on_intr(|| {
            scm::send(socket, &[IoSlice::new(message)], fds, SendFlags::empty())
        })
        .map_err(late)?;
        Ok(())
    }

    fn receive(&self) -> Result<Answer, Errno> {
        let socket = self.socket.get().ok_or(Errno::PIPE)?;
        let mut buffer = Zeroizing::new(vec![0; MAX_MESSAGE]);
        let received = rustix::io::retry_on_intr(|| {
            scm::receive(
                socket,
                &mut [IoSliceMut::new(&mut buffer)],
                RecvFlags::empty(),
            )
        })
        .map_err(late)?;
        if received.fds_cut {
            return Err(Errno::MFILE);
        }
        if received.len == 0 {
            return Err(Errno::PIPE);
        }
        if received.cut {
            return Err(Errno::BADMSG);
        }
        let reply = protocol::decode(&buffer[..received.len]).map_err(|_| Errno::BADMSG)?;
        Ok((reply, received.fds.into_iter().next()))
    }
}

/// A timeout set by `SO_RCVTIMEO` shows as EAGAIN.
fn late(errno: Errno) -> Errno {
    if errno == Errno::AGAIN {
        Errno::TIMEDOUT
    } else {
        errno
    }
}
