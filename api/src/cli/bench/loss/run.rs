//! One run: a sender, a wire, a receiver, in a process of their own.
//!
//! ```text
//!   Linux's TCP in a namespace, TUN ─┐                               ┌─ TUN, Linux's TCP in a namespace
//!              or                    ├─ wire (link model, real time) ─┤             or                  ─ counts bytes
//!   our stack, a device inside ──────┘                               └─ a device inside, our stack
//! ```
//!
//! A process a run, so that the kernel's per-destination memory (`tcp_metrics`) of one run is not the next one's start. Neither TUN has
//! offload: what the model meets are packets of wire size.

use super::super::super::{Context, Failure, Outcome, netns};
use super::ends::{Origin, Target};
use super::{Trouble, Whose};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use uktls_stack::device::capture::Capture;
use uktls_stack::sim::link::Direction;
use uktls_stack::sim::wire::{End, Wire};

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
    pub(super) sender: Whose,
    /// Who receives
    #[arg(long, value_enum)]
    pub(super) receiver: Whose,
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
    /// How late the wire handed packets on, on average, in microseconds.
    pub(super) late_mean: f64,
    /// Packets on their way there that the wire lost, and that found its queue full.
    pub(super) lost: u64,
    pub(super) overflowed: u64,
    /// Retransmission timeouts of our side.
    pub(super) timeouts: u64,
    /// Segments sent again by our side.
    pub(super) retransmits: u64,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> Outcome {
    netns::enter()?;
    let (far, target) = Target::start(args.receiver)?;
    let (near, origin) = Origin::start(args.sender, args.flows)?;
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
    let wire = wire.start().context(|| "cannot start the wire".into())?;
    let outgoing = origin.connect(args.flows)?;
    let incoming = target.accept(args.flows)?;
    let sender = on_thread("sender", &stop, move |stop| send(&outgoing, stop))?;
    let bytes = count(&incoming, args.warm_up, args.seconds)?;
    let (timeouts, retransmits) = origin.figures();
    stop.store(true, Ordering::Relaxed);
    joined(sender)?;
    let account = wire.stop().context(|| "the wire failed".into())?;
    let outcomes = Outcomes {
        bytes,
        seconds: args.seconds,
        late_mean: account.late_mean,
        lost: account.directions[0].lost,
        overflowed: account.directions[0].overflowed,
        timeouts,
        retransmits,
    };
    let line = serde_json::to_string(&outcomes).context(|| "cannot write JSON".into())?;
    println!("{line}");
    Ok(ExitCode::SUCCESS)
}

fn tapped(end: End, path: &Path) -> Result<End, Failure> {
    let failed = || format!("cannot write {}", path.display());
    let capture = Capture::create(path).context(failed)?;
    let interface = capture.add_interface("wire").context(failed)?;
    let now = || {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since_epoch.map_or(0, |time| time.as_nanos() as u64)
    };
    Ok(Box::new(capture.tap(end, interface, now)))
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
pub(super) fn ready(
    fds: &[BorrowedFd<'_>],
    events: PollFlags,
    deadline: Instant,
) -> Result<bool, Failure> {
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

pub(super) fn joined<T>(thread: JoinHandle<Result<T, Failure>>) -> Result<T, Failure> {
    thread
        .join()
        .unwrap_or_else(|_| Err(Failure::new("a thread of the run panicked")))
}
