//! One run: a sender, a wire, a receiver, in a process of their own.
//!
//! ```text
//!   Linux's TCP in a namespace, TUN ─┐
//!              or                    ├─ wire (link model, real time) ─ TUN, Linux's TCP in a namespace, counts bytes
//!   our stack, a device inside ──────┘
//! ```
//!
//! A process a run, so that the kernel's per-destination memory (`tcp_metrics`) of one run is not the next one's start. Neither TUN has
//! offload: what the model meets are packets of wire size. The receiver and its settings are the same for both senders.

use super::super::super::{Context, Failure, Outcome, netns};
use super::wire::{self, Account, End, Wire};
use super::{Sender, Trouble};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use uktls_stack::device::capture::Capture;
use uktls_stack::device::interface::{self, IpCidr};
use uktls_stack::device::plain_tun::PlainTun;
use uktls_stack::handle::{ConnectRequest, SocketOptions};
use uktls_stack::sim::link::Direction;
use uktls_stack::stack::{Limits, Stack, StackConfig};

const MTU: usize = 1500;
const SENDER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const RECEIVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PORT: u16 = 5001;

/// All connections must stand within this time, lost SYNs included.
const CONNECT: Duration = Duration::from_secs(60);
/// Unacknowledged bytes that our socket may hold. Linux's default `tcp_wmem` grows to 4 MiB.
const SEND_BUFFER: usize = 4 << 20;
/// Bytes a write hands over.
const CHUNK: usize = 64 << 10;
/// Bytes a read discards at most.
const DISCARD: usize = 1 << 20;

/// One transfer over an emulated wire.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) trouble: Trouble,
    /// Who sends
    #[arg(long, value_enum)]
    pub(super) sender: Sender,
    /// What the wire's dice depend on
    #[arg(long)]
    pub(super) seed: u64,
    /// Connections at once
    #[arg(long, default_value_t = 1)]
    pub(super) flows: usize,
    /// Seconds after all connections stand that are not counted
    #[arg(long, default_value_t = 0.0)]
    pub(super) warm_up: f64,
    /// Seconds that are counted
    #[arg(long)]
    pub(super) seconds: f64,
    /// Write the sender's packets to this file (pcapng)
    #[arg(long)]
    pub(super) pcap: Option<PathBuf>,
}

/// What a run came to, one line of JSON on its stdout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Outcomes {
    /// Bytes that each connection's receiver got while it was counted.
    pub(super) bytes: Vec<u64>,
    /// How long was counted.
    pub(super) seconds: f64,
    /// What the wire says.
    pub(super) wire: Account,
    /// Retransmission timeouts of our side.
    pub(super) timeouts: u64,
    /// Segments sent again by our side.
    pub(super) retransmits: u64,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> Outcome {
    netns::enter()?;
    let (far, listener) = in_namespace(|| {
        let end = tun(RECEIVER)?;
        let listener = TcpListener::bind((RECEIVER, PORT)).context(|| "cannot listen".into())?;
        Ok((end, listener))
    })?;
    let (near, origin) = Origin::start(args)?;
    let near: End = match &args.pcap {
        None => near,
        Some(path) => tapped(near, path)?,
    };
    let [there, back] = args.trouble.knobs();
    let wire = Wire {
        ends: [near, far],
        directions: [
            Direction::new(args.seed, "sender>receiver", there),
            Direction::new(args.seed, "receiver>sender", back),
        ],
    };
    let stop = Arc::new(AtomicBool::new(false));
    let wire = on_thread("wire", &stop, |stop| wire.run(stop))?;
    let outgoing = origin.connect(args.flows)?;
    let incoming = accept(&listener, args.flows)?;
    let sender = on_thread("sender", &stop, move |stop| send(&outgoing, stop))?;
    let bytes = count(&incoming, args.warm_up, args.seconds)?;
    let (timeouts, retransmits) = origin.figures();
    stop.store(true, Ordering::Relaxed);
    joined(sender)?;
    let outcomes = Outcomes {
        bytes,
        seconds: args.seconds,
        wire: joined(wire)?,
        timeouts,
        retransmits,
    };
    let line = serde_json::to_string(&outcomes).context(|| "cannot write JSON".into())?;
    println!("{line}");
    Ok(ExitCode::SUCCESS)
}

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

fn tapped(end: End, path: &PathBuf) -> Result<End, Failure> {
    let failed = || format!("cannot write {}", path.display());
    let capture = Capture::create(path).context(failed)?;
    let interface = capture.add_interface("wire").context(failed)?;
    let now = || {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since_epoch.map_or(0, |time| time.as_nanos() as u64)
    };
    Ok(Box::new(capture.tap(end, interface, now)))
}

/// Where connections come from.
enum Origin {
    /// Sockets of the sender's namespace, not connected yet.
    Linux(Vec<OwnedFd>),
    Uktls(Box<Stack>),
}

impl Origin {
    /// The sender and its end of the wire.
    fn start(args: &Args) -> Result<(End, Origin), Failure> {
        match args.sender {
            Sender::Linux => {
                let flows = args.flows;
                // A socket belongs to the namespace that it is made in.
                let (end, sockets) = in_namespace(move || {
                    let end = tun(SENDER)?;
                    let sockets: Result<_, Failure> = (0..flows).map(|_| cubic_socket()).collect();
                    Ok((end, sockets?))
                })?;
                Ok((end, Origin::Linux(sockets)))
            }
            Sender::Uktls => {
                let (device, end) = wire::inside(MTU)?;
                let config = StackConfig {
                    addresses: vec![(SENDER.into(), 24)],
                    mtu: MTU,
                    tcp: uktls_stack::tcp::Config::default(),
                    limits: Limits {
                        memory_per_socket: SEND_BUFFER,
                        ..Limits::default()
                    },
                };
                let stack = Stack::start(config, vec![Box::new(device)])
                    .context(|| "cannot start the stack".into())?;
                Ok((Box::new(end), Origin::Uktls(Box::new(stack))))
            }
        }
    }

    /// Begins so many connections to the receiver; each is writable when it stands.
    fn connect(&self, flows: usize) -> Result<Vec<OwnedFd>, Failure> {
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
                    let (answer, answered) = crossbeam_channel::bounded(1);
                    let request = ConnectRequest {
                        remote: receiver,
                        local: None,
                        options: SocketOptions::default(),
                        uid: 0,
                    };
                    let reply = Box::new(move |end| {
                        let _ = answer.send(end);
                    });
                    stack.handle().connect(request, reply);
                    let end = answered
                        .recv_timeout(CONNECT)
                        .context(|| "the stack does not answer".into())?
                        .context(|| "cannot connect".into())?;
                    rustix::io::ioctl_fionbio(&end.fd, true).context(|| "cannot connect".into())?;
                    Ok(end.fd)
                })
                .collect(),
        }
    }

    /// Timeouts and segments sent again, as far as our side can tell.
    fn figures(&self) -> (u64, u64) {
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

/// Takes so many connections.
fn accept(listener: &TcpListener, flows: usize) -> Result<Vec<OwnedFd>, Failure> {
    let deadline = Instant::now() + CONNECT;
    let mut accepted = Vec::with_capacity(flows);
    while accepted.len() < flows {
        if !ready(&[listener.as_fd()], PollFlags::IN, deadline)? {
            let seconds = CONNECT.as_secs();
            return Err(Failure::new(format_args!(
                "not every connection stands after {seconds} s"
            )));
        }
        let (stream, _) = listener.accept().context(|| "cannot accept".into())?;
        stream
            .set_nonblocking(true)
            .context(|| "cannot accept".into())?;
        accepted.push(OwnedFd::from(stream));
    }
    Ok(accepted)
}

/// Keeps every connection full until told to stop.
fn send(flows: &[OwnedFd], stop: &AtomicBool) -> Result<(), Failure> {
    let chunk = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        let fds: Vec<_> = flows.iter().map(AsFd::as_fd).collect();
        ready(
            &fds,
            PollFlags::OUT,
            Instant::now() + Duration::from_millis(20),
        )?;
        for flow in flows {
            match rustix::net::send(flow, &chunk, rustix::net::SendFlags::NOSIGNAL) {
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                // The run is over and the other side gone.
                Err(_) if stop.load(Ordering::Relaxed) => return Ok(()),
                Err(errno) => return Err(errno).context(|| "the sender's connection ended".into()),
            }
        }
    }
    Ok(())
}

/// Discards what comes and counts it, connection by connection, after the warm-up and for so many seconds.
fn count(flows: &[OwnedFd], warm_up: f64, seconds: f64) -> Result<Vec<u64>, Failure> {
    let begin = Instant::now() + Duration::from_secs_f64(warm_up);
    let end = begin + Duration::from_secs_f64(seconds);
    let mut room = vec![0; DISCARD];
    let mut bytes = vec![0; flows.len()];
    let fds: Vec<_> = flows.iter().map(AsFd::as_fd).collect();
    loop {
        let now = Instant::now();
        if now >= end {
            return Ok(bytes);
        }
        ready(&fds, PollFlags::IN, if now < begin { begin } else { end })?;
        for (flow, bytes) in flows.iter().zip(&mut bytes) {
            match rustix::net::recv(flow, &mut room[..], RecvFlags::TRUNC) {
                Ok((_, 0)) => return Err(Failure::new("the sender closed a connection")),
                Ok((_, length)) if Instant::now() >= begin => *bytes += length as u64,
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno).context(|| "cannot receive".into()),
            }
        }
    }
}

/// Whether one of these became ready before the deadline.
fn ready(fds: &[BorrowedFd<'_>], events: PollFlags, deadline: Instant) -> Result<bool, Failure> {
    let mut fds: Vec<_> = (fds.iter())
        .map(|fd| PollFd::from_borrowed_fd(*fd, events))
        .collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Err(Errno::INTR) => {}
            other => {
                return other
                    .map(|ready| ready > 0)
                    .context(|| "cannot wait".into());
            }
        }
    }
}

fn on_thread<T: Send + 'static>(
    name: &str,
    stop: &Arc<AtomicBool>,
    work: impl FnOnce(&AtomicBool) -> Result<T, Failure> + Send + 'static,
) -> Result<JoinHandle<Result<T, Failure>>, Failure> {
    let stop = stop.clone();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || work(&stop))
        .context(|| "cannot start a thread".into())
}

fn joined<T>(thread: JoinHandle<Result<T, Failure>>) -> Result<T, Failure> {
    thread
        .join()
        .unwrap_or_else(|_| Err(Failure::new("a thread of the run panicked")))
}
