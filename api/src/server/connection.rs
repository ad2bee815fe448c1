//! One control connection: reads a request, has it answered, sends the answer, reads the next.
//!
//! Strictly one after the other. So answers keep the requests' order, and a client that does not read its answers stops
//! being read: it holds one answer's memory, and its further requests wait in the kernel's queue.

use super::ServerConfig;
use super::handle::{Named, Open, Opened, StackHandle};
use crate::client::scm;
use crate::protocol::{
    self, Capabilities, DatagramRequest, MAGIC, MAX_MESSAGE, Reply, Request, SOCKETS_PER_REPLY,
    SocketRequest, SocketStat, VERSION,
};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, sockopt};
use rustix::process::geteuid;
use uktls_stack::client_fd::ClientFd;
use uktls_stack::ingress::sink::SinkRequest;
use zeroize::Zeroizing;

/// Longest backlog a listener may ask for.
const MAX_BACKLOG: u32 = 4096;

/// Messages that a refused client may have sent and will still learn why.
const TAKEN_OUT: usize = 4;

/// An answer on its way to the client.
#[derive(Debug)]
pub(super) struct Outgoing {
    message: Zeroizing<Vec<u8>>,
    fd: Option<OwnedFd>,
    /// The request met a socket with this cookie that had ended since it was named.
    vanished: Option<u64>,
}

impl Outgoing {
    pub(super) fn new(reply: &Reply, fd: Option<OwnedFd>) -> Self {
        let message = protocol::encode(reply).unwrap_or_else(|_| {
            // Only a list could grow so long, and lists are cut.
            protocol::encode(&Reply::Error(Errno::MSGSIZE.raw_os_error()))
                .expect("an errno fits any message")
        });
        Outgoing {
            message,
            fd,
            vanished: None,
        }
    }

    pub(super) fn error(errno: Errno) -> Self {
        Outgoing::new(&Reply::Error(errno.raw_os_error()), None)
    }

    pub(super) fn opened(result: Result<Opened, Errno>) -> Self {
        match result {
            Ok(Opened { id, fd, local }) => Outgoing::new(&Reply::Socket { id, local }, Some(fd)),
            Err(errno) => Outgoing::error(errno),
        }
    }

    /// What the stack said to an act on the socket with `cookie`.
    pub(super) fn acted(result: Result<Reply, Errno>, cookie: u64) -> Self {
        match result {
            Ok(reply) => Outgoing::new(&reply, None),
            Err(Errno::BADF | Errno::NOTSOCK) => Outgoing {
                vanished: Some(cookie),
                ..Outgoing::error(Errno::NOTSOCK)
            },
            Err(errno) => Outgoing::error(errno),
        }
    }

    /// With the reason in place of an error, if the socket ended between being named and being acted on.
    pub(super) fn resolved<H: StackHandle>(self, stack: &H) -> Self {
        match self.vanished.and_then(|cookie| stack.named(cookie)) {
            Some(Named::Gone(reason)) => Outgoing::new(&Reply::Gone(reason), None),
            _ => self,
        }
    }

    pub(super) fn listed(mut sockets: Vec<SocketStat>, after: Option<u64>) -> Self {
        sockets.retain(|socket| after.is_none_or(|after| socket.id > after));
        sockets.sort_unstable_by_key(|socket| socket.id);
        let more = sockets.len() > SOCKETS_PER_REPLY;
        sockets.truncate(SOCKETS_PER_REPLY);
        Outgoing::new(&Reply::Sockets { sockets, more }, None)
    }

    /// Sends it at once or not at all.
    pub(super) fn send(&self, socket: &ClientFd) -> Result<(), Errno> {
        let fd = self.fd.as_ref().map(|fd| fd.as_fd());
        let message = [IoSlice::new(&self.message)];
        rustix::io::retry_on_intr(|| {
            scm::send(socket, &message, fd.as_slice(), SendFlags::DONTWAIT)
        })
        .map(|_| ())
    }
}

/// What became of a request.
pub(super) enum Handled {
    /// The answer.
    Answered(Outgoing),
    /// The answer; then the connection ends.
    Last(Outgoing),
    /// The stack will answer.
    Pending,
}

/// Why a connection ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ended {
    #[error("the client closed it")]
    Closed,
    #[error("nothing more could be read or written: {0}")]
    Broken(Errno),
    #[error(transparent)]
    Protocol(#[from] protocol::ProtocolError),
    #[error(
        "a message of more than {MAX_MESSAGE} bytes or {} descriptors",
        scm::MAX_FDS
    )]
    Cut,
    #[error("{0} descriptors where they do not belong")]
    Descriptors(usize),
    #[error("the first message must be a Hello, and only the first")]
    Hello,
    #[error("said what it had to say")]
    Done,
}

impl Ended {
    /// Whether the client did what no client of this protocol does.
    pub(super) fn is_fault(&self) -> bool {
        !matches!(self, Ended::Closed | Ended::Broken(_) | Ended::Done)
    }
}

/// A request as it came.
pub(super) struct Incoming {
    request: Request,
    fd: Option<ClientFd>,
    /// The file and the socket for the result that come with [`Request::ReceiveTo`].
    file_and_reply: Option<[ClientFd; 2]>,
}

/// Takes the next request off the socket; `None` when none waits.
pub(super) fn receive(socket: &ClientFd, buffer: &mut [u8]) -> Result<Option<Incoming>, Ended> {
    let received = rustix::io::retry_on_intr(|| {
        scm::receive(
            socket,
            &mut [IoSliceMut::new(&mut buffer[..MAX_MESSAGE])],
            RecvFlags::DONTWAIT,
        )
    });
    let received = match received {
        Ok(received) => received,
        Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(Ended::Broken(errno)),
    };
    let count = received.fds.len();
    let mut fds = received.fds.into_iter().map(ClientFd::from);
    let request = if received.cut {
        Err(Ended::Cut)
    } else if received.len == 0 {
        Err(Ended::Closed)
    } else {
        protocol::decode::<Request>(&buffer[..received.len]).map_err(Ended::from)
    };
    use zeroize::Zeroize;
    buffer[..received.len.min(MAX_MESSAGE)].zeroize();
    let right = match &request {
        Ok(Request::OnSocket(_) | Request::AttachDtls { .. }) => count <= 1,
        Ok(Request::ReceiveTo { .. }) => count == 3,
        Ok(_) => count == 0,
        Err(_) => true,
    };
    match request {
        Ok(request) if right => Ok(Some(Incoming {
            request,
            fd: fds.next(),
            file_and_reply: fds.next().zip(fds.next()).map(<[_; 2]>::from),
        })),
        request => Err(request.err().unwrap_or(Ended::Descriptors(count))),
    }
}

/// Says why a connection is refused, which is then to be closed.
pub(super) fn refuse(socket: &ClientFd, errno: Errno) {
    // Said if there is room; the close says the rest.
    let _ = Outgoing::error(errno).send(socket);
    // A Unix socket that is closed with something unread in it resets its peer, which then never reads what was said. So nothing
    // more comes in, and what is there is taken out: a client that waits for its answers has sent one message.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Read);
    for _ in 0..TAKEN_OUT {
        let mut nowhere = [0; 1];
        let taken = scm::receive(
            socket,
            &mut [IoSliceMut::new(&mut nowhere)],
            RecvFlags::DONTWAIT,
        );
        if !taken.is_ok_and(|taken| taken.len > 0) {
            return;
        }
    }
}

/// Has a request answered. `greeted`: the Hello was exchanged. `later` makes the function that brings a late answer.
pub(super) fn handle<H: StackHandle>(
    incoming: Incoming,
    greeted: &mut bool,
    uid: u32,
    stack: &H,
    config: &ServerConfig,
    later: impl FnOnce() -> Box<dyn FnOnce(Outgoing) + Send>,
) -> Result<Handled, Ended> {
    let Incoming {
        request,
        fd,
        file_and_reply,
    } = incoming;
    if *greeted == matches!(request, Request::Hello { .. }) {
        return Err(Ended::Hello);
    }
    Ok(match request {
        Request::Hello { magic, version, .. } => {
            if magic != MAGIC {
                return Err(Ended::Hello);
            }
            *greeted = true;
            let reply = Outgoing::new(
                &Reply::Hello {
                    version: VERSION,
                    capabilities: config.capabilities(),
                },
                None,
            );
            if version == VERSION {
                Handled::Answered(reply)
            } else {
                Handled::Last(reply)
            }
        }
        Request::Connect {
            remote,
            local,
            options,
        } => {
            let answer = later();
            stack.open(
                Open::Connect {
                    remote,
                    local,
                    options,
                },
                uid,
                Box::new(|opened| answer(Outgoing::opened(opened))),
            );
            Handled::Pending
        }
        Request::Listen {
            local,
            backlog,
            options,
        } => {
            let answer = later();
            let backlog = backlog.clamp(1, MAX_BACKLOG) as usize;
            stack.open(
                Open::Listen {
                    local,
                    backlog,
                    options,
                },
                uid,
                Box::new(|opened| answer(Outgoing::opened(opened))),
            );
            Handled::Pending
        }
        Request::BindUdp { local, remote } => {
            let answer = later();
            stack.open(
                Open::Udp { local, remote },
                uid,
                Box::new(|opened| answer(Outgoing::opened(opened))),
            );
            Handled::Pending
        }
        Request::OnSocket(act) => match name(fd, stack) {
            Err(errno) => Handled::Answered(Outgoing::error(errno)),
            Ok((_, Named::Gone(reason))) => {
                Handled::Answered(Outgoing::new(&Reply::Gone(reason), None))
            }
            Ok((cookie, Named::Live { id, uid: creator })) => {
                let keys_wanted = matches!(
                    act,
                    SocketRequest::GetTx
                        | SocketRequest::GetRx
                        | SocketRequest::Datagram(DatagramRequest::GetTx | DatagramRequest::GetRx)
                );
                if keys_wanted && (config.no_key_export || creator != uid) {
                    Handled::Answered(Outgoing::error(Errno::PERM))
                } else {
                    let answer = later();
                    stack.act(
                        id,
                        act,
                        Box::new(move |acted| answer(Outgoing::acted(acted, cookie))),
                    );
                    Handled::Pending
                }
            }
        },
        Request::AttachDtls { peer } => match name(fd, stack) {
            Err(errno) => Handled::Answered(Outgoing::error(errno)),
            Ok((_, Named::Gone(reason))) => {
                Handled::Answered(Outgoing::new(&Reply::Gone(reason), None))
            }
            Ok((_, Named::Live { id, .. })) => {
                let answer = later();
                stack.attach_dtls(
                    id,
                    peer,
                    Box::new(move |attached| {
                        answer(match attached {
                            Ok(end) => Outgoing::new(&Reply::Association, Some(end)),
                            Err(errno) => Outgoing::error(errno),
                        });
                    }),
                );
                Handled::Pending
            }
        },
        Request::ReceiveTo { offset, len, wait } => match (name(fd, stack), file_and_reply) {
            (Err(errno), _) => Handled::Answered(Outgoing::error(errno)),
            (Ok(_), None) => Handled::Answered(Outgoing::error(Errno::BADF)),
            (Ok((_, Named::Gone(reason))), _) => {
                Handled::Answered(Outgoing::new(&Reply::Gone(reason), None))
            }
            (Ok((cookie, Named::Live { id, .. })), Some([to, reply])) => {
                let answer = later();
                let sink = SinkRequest {
                    to,
                    reply,
                    offset,
                    len,
                    wait,
                };
                stack.receive_to(
                    id,
                    sink,
                    Box::new(move |acted| answer(Outgoing::acted(acted, cookie))),
                );
                Handled::Pending
            }
        },
        Request::Sockets { after } => {
            let answer = later();
            stack.sockets(Box::new(move |sockets| {
                answer(Outgoing::listed(sockets, after))
            }));
            Handled::Pending
        }
        Request::Counters => {
            let counters = stack
                .counters()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect();
            Handled::Answered(Outgoing::new(&Reply::Counters(counters), None))
        }
        Request::Secrets(lines) => {
            let lines = Zeroizing::new(lines.into_vec());
            Handled::Answered(match record_secrets(&lines, uid, config) {
                Ok(()) => Outgoing::new(&Reply::Done, None),
                Err(errno) => Outgoing::error(errno),
            })
        }
    })
}

/// Puts lines of a key log into the capture.
fn record_secrets(lines: &[u8], uid: u32, config: &ServerConfig) -> Result<(), Errno> {
    let capture = config.capture.as_ref().ok_or(Errno::OPNOTSUPP)?;
    if uid != geteuid().as_raw() {
        return Err(Errno::PERM);
    }
    // A label and hexadecimal numbers; whoever reads the capture trusts that it is text.
    let text = lines
        .iter()
        .all(|&byte| byte == b'\n' || (b' '..=b'~').contains(&byte));
    match std::str::from_utf8(lines) {
        Ok(lines) if text => {
            capture.write_secrets(lines);
            Ok(())
        }
        _ => Err(Errno::INVAL),
    }
}

/// The cookie of a descriptor, and the socket whose client's end it is. The descriptor itself is not kept.
fn name<H: StackHandle>(fd: Option<ClientFd>, stack: &H) -> Result<(u64, Named), Errno> {
    let fd = fd.ok_or(Errno::BADF)?;
    match sockopt::socket_domain(&fd) {
        // The cookie of another family's socket is no name here, though its number may be.
        Ok(AddressFamily::UNIX) => sockopt::socket_cookie(&fd).and_then(|cookie| {
            stack
                .named(cookie)
                .map(|named| (cookie, named))
                .ok_or(Errno::NOTSOCK)
        }),
        Ok(_) | Err(_) => Err(Errno::NOTSOCK),
    }
}

impl ServerConfig {
    fn capabilities(&self) -> Capabilities {
        let mut all = Capabilities::all();
        if self.no_key_export {
            all = all.without(Capabilities::KEY_EXPORT);
        }
        if self.capture.is_none() {
            all = all.without(Capabilities::CAPTURE);
        }
        all
    }
}
