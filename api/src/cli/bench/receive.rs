//! The way in: a file from nginx over the TUN, opened by the stack, beside curl on kernel loopback.
//!
//! The same nginx sends to both, one after the other in every round; both throw the plaintext away. Time is that of the whole
//! process, start and handshake included, and so is the CPU time; ours has the daemon's added.

use super::super::limits::parse_bytes;
use super::super::supervise::{Supervisor, program};
use super::super::{Context, Failure};
use super::cpu::CpuTime;
use super::peers;
use super::report::{Metric, Report};
use super::stack::{Daemon, Wanted};
use super::stats::{Rounds, Sample};
use super::workload::Workload;
use std::process::Command;
use std::time::{Duration, Instant};

const TRANSFER: Duration = Duration::from_secs(110);

const PEER: &str = "curl-nginx-loopback";

/// Receive a file through TLS: GB/s, and CPU-seconds per GB of the client's side, beside curl
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Length of the file (with K, M or G: powers of 1024)
    #[arg(long, default_value = "2G", value_parser = parse_bytes)]
    file_size: u64,
    /// MTU of the TUN device
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(576..=65520))]
    mtu: u16,
    /// Rounds that count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
}

/// Runs the benchmark. The caller has entered a namespace.
pub(super) fn run(args: &Args, say: &dyn Fn(&str)) -> Result<Report, Failure> {
    let curl = program("curl", "curl")?;
    let mut workload = Workload::new("bench")?;
    let supervisor = Supervisor::new(&workload.logs())?;
    say(&format!("writing a file of {} bytes", args.file_size));
    workload.make_file(args.file_size)?;
    workload.settle()?;
    let wanted = Wanted::new(77, usize::from(args.mtu));
    let daemon = Daemon::start(&supervisor, workload.folder(), &wanted)?;
    // One server for both: on every address of this namespace, loopback and the TUN's.
    let _nginx = peers::nginx::start(&supervisor, &workload, ([0, 0, 0, 0], 8443).into())?;

    let (mut ours, mut theirs) = (Rounds::default(), Rounds::default());
    for round in 0..=args.rounds {
        match round {
            0 => say("warm-up"),
            _ => say(&format!("round {round} of {}", args.rounds)),
        }
        let mut get = daemon.get("1.2")?;
        get.arg(workload.url(daemon.host(8443)))
            .args(["-o", "/dev/null"]);
        let mut peer = Command::new(&curl);
        peer.args(["--silent", "--show-error", "--fail", "--insecure"])
            .args(["--http1.1", "--noproxy", "*", "-o", "/dev/null"])
            .arg(workload.url(([127, 0, 0, 1], 8443).into()));
        let sides = [
            ("uktls get", get, Some(daemon.child.pid()), &mut ours),
            ("curl", peer, None, &mut theirs),
        ];
        for (name, command, daemon, rounds) in sides {
            workload.warm()?;
            let sample = transfer(&supervisor, name, command, daemon, args.file_size)?;
            say(&format!(
                "  {name:28} {:6.3} GB/s {:6.3} CPU-s/GB",
                sample.throughput, sample.cpu_seconds_per_gb
            ));
            if round > 0 {
                rounds.push(sample);
            }
        }
    }
    let mut report = Report::default();
    let figures = [
        ("throughput", "GB/s", ours.throughput(), theirs.throughput()),
        (
            "cpu_seconds_per_gb",
            "s/GB",
            ours.cpu_seconds_per_gb(),
            theirs.cpu_seconds_per_gb(),
        ),
    ];
    for (name, unit, value, peer_value) in figures {
        if let (Some(value), Some(peer_value)) = (value, peer_value) {
            report.metric(Metric::beside(
                "receive", name, unit, value, PEER, peer_value,
            ));
        }
    }
    report.note(format!(
        "A file of {} bytes from nginx, TLS 1.2 AES-128-GCM, MTU {}, to /dev/null, medians of {} rounds.",
        args.file_size, args.mtu, args.rounds
    ));
    report
        .note("CPU-seconds are user and system time of the receiving side (ours: `up` and `get`).");
    Ok(report)
}

/// Runs one client to its end.
fn transfer(
    supervisor: &Supervisor,
    name: &str,
    command: Command,
    daemon: Option<u32>,
    bytes: u64,
) -> Result<Sample, Failure> {
    let daemon: Vec<u32> = daemon.into_iter().collect();
    let before = CpuTime::of(&daemon)?;
    let start = Instant::now();
    let mut client = supervisor.spawn(name, command)?;
    supervisor.ended(&mut client, TRANSFER)?;
    let seconds = start.elapsed().as_secs_f64();
    // It has ended but is not waited for yet, so /proc still knows what it used.
    let spent = CpuTime::of(&[client.pid()])?.since(&CpuTime::default());
    let spent = spent + CpuTime::of(&daemon)?.since(&before);
    client.reap().context(|| "receiving".into())?;
    Ok(Sample::new(bytes, seconds, spent))
}
