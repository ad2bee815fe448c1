//! The two ends of a run: Linux's TCP in a namespace of its own, or our stack in this process.

use super::super::super::{Context, Failure};
use super::Whose;
use super::run::{joined, ready};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, sockopt,
};
use rustix::thread::UnshareFlags;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};
use uktls_stack::address::ACCEPTED_LEN;
use uktls_stack::device::interface::{self, IpCidr};
use uktls_stack::device::plain_tun::PlainTun;
use uktls_stack::handle::{ClientEnd, ConnectRequest, ListenRequest, Reply, SocketOptions};
use uktls_stack::sim::wire::{self, End};
use uktls_stack::stack::{Limits, Stack, StackConfig};

const MTU: usize = 1500;
const SENDER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const RECEIVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PORT: u16 = 5001;

/// All connections must stand within this time, lost SYNs included.
const CONNECT: Duration = Duration::from_secs(60);
/// Unacknowledged bytes that our socket may hold. Linux's default `tcp_wmem` grows to 4 MiB.
const SEND_BUFFER: usize = 4 << 20;

/// Does `work` on a thread that moves to a network namespace of its own first. What is opened there stays there.
fn in_namespace<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let thread = std::thread::spawn(move || {
        // SAFETY: the danger that `unshare_unsafe` names is in UnshareFlags::FILES, which is not among the flags.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .context(|| "cannot make a network namespace".into())?;
        work()
    });
    joined(thread)
}

/// A TUN of the calling thread's namespace, without offload, up and with this address.
fn tun(address: Ipv4Addr) -> Result<End, Failure> {
    let tun = PlainTun::open("wire", MTU).map_err(Failure::new)?;
    let cidr = IpCidr::new(address.into(), 24);
    interface::configure(tun.name(), MTU, &[cidr]).map_err(Failure::new)?;
    Ok(Box::new(tun))
}

/// Our stack at this address, and the wire's end of its device.
fn our_stack(address: Ipv4Addr) -> Result<(End, Stack), Failure> {
    let (device, end) = wire::inside(MTU).context(|| "cannot make a device".into())?;
    let config = StackConfig {
        addresses: vec![(address.into(), 24)],
        mtu: MTU,
        tcp: uktls_stack::tcp::Config::default(),
        limits: Limits {
            memory_per_socket: SEND_BUFFER,
            ..Limits::default()
        },
    };
    let stack =
        Stack::start(config, vec![Box::new(device)]).context(|| "cannot start the stack".into())?;
    Ok((Box::new(end), stack))
}

/// The client's end that the stack answers a request with, non-blocking.
fn answered(request: impl FnOnce(Reply<ClientEnd>)) -> Result<OwnedFd, Failure> {
    let (answer, answered) = crossbeam_channel::bounded(1);
    request(Box::new(move |end| {
        let _ = answer.send(end);
    }));
    let end = answered
        .recv_timeout(CONNECT)
        .context(|| "the stack does not answer".into())?
        .context(|| "the stack refuses a socket".into())?;
    rustix::io::ioctl_fionbio(&end.fd, true).context(|| "cannot use a socket".into())?;
    Ok(end.fd)
}

/// Where connections come from.
pub(super) enum Origin {
    /// Sockets of the sender's namespace, not connected yet.
    Linux(Vec<OwnedFd>),
    /// A running stack.
    Uktls(Box<Stack>),
}

impl Origin {
    /// The sender and its end of the wire.
    pub(super) fn start(sender: Whose, flows: usize) -> Result<(End, Origin), Failure> {
        match sender {
            Whose::Linux => {
                // A socket belongs to the namespace that it is made in.
                let (end, sockets) = in_namespace(move || {
                    let end = tun(SENDER)?;
                    let sockets: Result<_, Failure> = (0..flows).map(|_| cubic_socket()).collect();
                    Ok((end, sockets?))
                })?;
                Ok((end, Origin::Linux(sockets)))
            }
            Whose::Uktls => {
                let (end, stack) = our_stack(SENDER)?;
                Ok((end, Origin::Uktls(Box::new(stack))))
            }
        }
    }

    /// Begins so many connections to the receiver; each is writable when it stands.
    pub(super) fn connect(&self, flows: usize) -> Result<Vec<OwnedFd>, Failure> {
        let receiver: SocketAddr = (RECEIVER, PORT).into();
        match self {
            Origin::Linux(sockets) => (sockets.iter())
                .map(|socket| {
                    match rustix::net::connect(socket, &receiver) {
                        Ok(()) | Err(Errno::INPROGRESS) => socket.try_clone(),
                        Err(errno) => Err(errno.into()),
                    }
                    .context(|| "cannot connect".into())
                })
                .collect(),
            Origin::Uktls(stack) => (0..flows)
                .map(|_| {
                    let request = ConnectRequest {
                        remote: receiver,
                        local: None,
                        options: SocketOptions::default(),
                        uid: 0,
                    };
                    answered(|reply| stack.handle().connect(request, reply))
                })
                .collect(),
        }
    }

    /// Timeouts and segments sent again, as far as our side can tell.
    pub(super) fn figures(&self) -> (u64, u64) {
        let Origin::Uktls(stack) = self else {
            return (0, 0);
        };
        let (answer, answered) = crossbeam_channel::bounded(1);
        let reply = Box::new(move |sockets| {
            let _ = answer.send(sockets);
        });
        stack.handle().sockets(reply);
        let sockets = answered.recv_timeout(CONNECT).unwrap_or_default();
        let stats = sockets.iter().filter_map(|socket| socket.tcp);
        stats.fold((0, 0), |sum, tcp| {
            (sum.0 + tcp.timeouts, sum.1 + tcp.retransmits)
        })
    }
}

/// Where connections go to.
pub(super) enum Target {
    /// A listener in the receiver's namespace.
    Linux(TcpListener),
    /// The end of our stack's listener, on which accepted descriptors arrive. The stack runs as long as the process.
    Uktls(OwnedFd),
}

impl Target {
    /// The receiver, which listens, and its end of the wire.
    pub(super) fn start(receiver: Whose) -> Result<(End, Target), Failure> {
        let local: SocketAddr = (RECEIVER, PORT).into();
        match receiver {
            Whose::Linux => {
                let (end, listener) = in_namespace(move || {
                    let end = tun(RECEIVER)?;
                    let listener = TcpListener::bind(local).context(|| "cannot listen".into())?;
                    Ok((end, listener))
                })?;
                Ok((end, Target::Linux(listener)))
            }
            Whose::Uktls => {
                let (end, stack) = our_stack(RECEIVER)?;
                let request = ListenRequest {
                    local,
                    backlog: 128,
                    options: SocketOptions::default(),
                    uid: 0,
                };
                let listener = answered(|reply| stack.handle().listen(request, reply))?;
                Ok((end, Target::Uktls(listener)))
            }
        }
    }

    /// Takes so many connections.
    pub(super) fn accept(&self, flows: usize) -> Result<Vec<OwnedFd>, Failure> {
        let deadline = Instant::now() + CONNECT;
        let mut accepted = Vec::with_capacity(flows);
        let listener = match self {
            Target::Linux(listener) => listener.as_fd(),
            Target::Uktls(listener) => listener.as_fd(),
        };
        while accepted.len() < flows {
            if !ready(&[listener], PollFlags::IN, deadline)? {
                let seconds = CONNECT.as_secs();
                return Err(Failure::new(format_args!(
                    "not every connection stands after {seconds} s"
                )));
            }
            let stream = match self {
                Target::Linux(listener) => {
                    OwnedFd::from(listener.accept().context(|| "cannot accept".into())?.0)
                }
                Target::Uktls(listener) => handed_over(listener)?,
            };
            rustix::io::ioctl_fionbio(&stream, true).context(|| "cannot accept".into())?;
            accepted.push(stream);
        }
        Ok(accepted)
    }
}

/// The descriptor that comes with the next message on our listener's end.
fn handed_over(listener: &OwnedFd) -> Result<OwnedFd, Failure> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut addresses = [0; ACCEPTED_LEN];
    let mut slices = [IoSliceMut::new(&mut addresses)];
    recvmsg(listener, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
        .context(|| "cannot accept".into())?;
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    rights.ok_or_else(|| Failure::new("the stack accepted a connection without a descriptor"))
}

/// A TCP socket of Linux's with CUBIC, whatever this machine prefers.
fn cubic_socket() -> Result<OwnedFd, Failure> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let made = || -> Result<OwnedFd, Errno> {
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_congestion(&socket, "cubic")?;
        Ok(socket)
    };
    made().context(|| "cannot make a TCP socket with CUBIC".into())
}
