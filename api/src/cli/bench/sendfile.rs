//! The main job: a file out of the page cache, as TLS records, to a real client.
//!
//! One namespace holds every contender, each a process of its own; only one is asked at a time, and they take turns in every
//! round, so that a slow minute of the machine hits all of them. Before the rounds each is asked once without counting.

use super::super::limits::parse_bytes;
use super::super::supervise::{Child, Supervisor, ourselves, program};
use super::super::{Context, Failure};
use super::client::Drained;
use super::cpu::CpuTime;
use super::limit::{self, Pieces};
use super::peers;
use super::report::{Metric, Report};
use super::stack::{Daemon, Wanted};
use super::stats::{Rounds, Sample};
use super::workload::Workload;
use std::net::SocketAddr;
use std::time::Duration;

/// The longest that one transfer may take: 2 GiB at 20 MB/s.
const TRANSFER: Duration = Duration::from_secs(110);

/// The plain TUN is slow and only printed: a few rounds will do.
const PLAIN_ROUNDS: usize = 3;

/// Send a file through TLS: GB/s, and CPU-seconds per GB of the server's side, beside nginx and rustls
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Length of the file (with K, M or G: powers of 1024)
    #[arg(long, default_value = "2G", value_parser = parse_bytes)]
    file_size: u64,
    /// MTU of the TUN device
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(576..=65520))]
    mtu: u16,
    /// Rounds that count, each contender once a round
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Only the peers and the limits
    #[arg(long, hide = true)]
    peers_only: bool,
}

/// A server that takes part.
struct Contender {
    name: String,
    address: SocketAddr,
    /// Its processes; descendants are found when counted.
    processes: Vec<u32>,
    rounds: Rounds,
}

/// Runs the benchmark. The caller has entered a namespace.
pub(super) fn run(args: &Args, say: &dyn Fn(&str)) -> Result<Report, Failure> {
    // The client of every figure; said before a long file is written.
    program("openssl", "openssl")?;
    let mut workload = Workload::new("bench")?;
    let supervisor = Supervisor::new(&workload.logs())?;
    say(&format!("writing a file of {} bytes", args.file_size));
    workload.make_file(args.file_size)?;
    workload.settle()?;
    let mtu = usize::from(args.mtu);

    let mut running: Vec<Child> = Vec::new();
    let mut daemons: Vec<Daemon> = Vec::new();
    let mut contenders: Vec<Contender> = Vec::new();
    if !args.peers_only {
        for (name, subnet, offload) in [("uktls", 77, true), ("uktls-plain-tun", 78, false)] {
            let wanted = Wanted {
                offload,
                ..Wanted::new(subnet, mtu)
            };
            let daemon = Daemon::start(&supervisor, workload.folder(), &wanted)?;
            let server = daemon.serve(&supervisor, &workload, "1.2")?;
            contenders.push(Contender {
                name: name.into(),
                address: daemon.stack(443),
                processes: vec![daemon.child.pid(), server.pid()],
                rounds: Rounds::default(),
            });
            running.push(server);
            daemons.push(daemon);
        }
    }
    let address = ([127, 0, 0, 1], 8443).into();
    let nginx = peers::nginx::start(&supervisor, &workload, address)?;
    contenders.push(Contender {
        name: peers::nginx::NAME.into(),
        address,
        processes: vec![nginx.pid()],
        rounds: Rounds::default(),
    });
    running.push(nginx);
    for kilobytes in [16, 64] {
        let (server, address) = peers::rustls::start(&supervisor, &workload, kilobytes << 10)?;
        contenders.push(Contender {
            name: format!("{}-{kilobytes}k", peers::rustls::NAME),
            address,
            processes: vec![server.pid()],
            rounds: Rounds::default(),
        });
        running.push(server);
    }
    let mut limits = Pieces::ALL.map(|(pieces, name)| (pieces, name, Rounds::default()));

    for round in 0..=usize::from(args.rounds) {
        match round {
            0 => say("warm-up"),
            _ => say(&format!("round {round} of {}", args.rounds)),
        }
        for contender in &mut contenders {
            if contender.name.ends_with("plain-tun") && round > PLAIN_ROUNDS {
                continue;
            }
            workload.warm()?;
            let sample = transfer(
                &supervisor,
                &workload,
                contender.address,
                &contender.processes,
                false,
            )
            .context(|| contender.name.clone())?;
            say(&format!(
                "  {:28} {:6.3} GB/s {:6.3} CPU-s/GB",
                contender.name, sample.throughput, sample.cpu_seconds_per_gb
            ));
            if round > 0 {
                contender.rounds.push(sample);
            }
        }
        for (pieces, name, rounds) in &mut limits {
            workload.warm()?;
            let (mut sender, address) = limit::start(&supervisor, &workload, *pieces, mtu)?;
            let sample = transfer(&supervisor, &workload, address, &[sender.pid()], true)
                .map_err(|failure| sender.failure(format_args!("({name}: {failure})")))?;
            supervisor.ended(&mut sender, Duration::from_secs(10))?;
            sender.reap()?;
            say(&format!(
                "  {name:28} {:6.3} GB/s {:6.3} CPU-s/GB",
                sample.throughput, sample.cpu_seconds_per_gb
            ));
            if round > 0 {
                rounds.push(sample);
            }
        }
    }
    let mut report = report(&contenders, &limits);
    report.note(format!(
        "A file of {} bytes from the page cache ({} on {}), TLS 1.2 AES-128-GCM, MTU {}, medians of {} rounds.",
        args.file_size,
        workload.file().display(),
        workload.file_system(),
        args.mtu,
        args.rounds,
    ));
    report.note(
        "CPU-seconds are user and system time of all the server's processes (ours: `up` and `serve`), from handshake to close.",
    );
    report.note(
        "limit_*: a sender without a stack on the same device: prepared bytes; + the file read; + records sealed.",
    );
    Ok(report)
}

/// One transfer to a client process, and what it cost the server.
fn transfer(
    supervisor: &Supervisor,
    workload: &Workload,
    address: SocketAddr,
    processes: &[u32],
    plain: bool,
) -> Result<Sample, Failure> {
    let mut command = ourselves()?;
    command
        .args(["bench", "drain", "--connect", &address.to_string()])
        .args(["--bytes", &workload.file_bytes().to_string()]);
    if plain {
        command.arg("--plain");
    }
    let before = CpuTime::of(processes)?;
    let mut client = supervisor.spawn("client", command)?;
    let line = supervisor.line(&mut client, TRANSFER)?;
    let after = CpuTime::of(processes)?;
    let drained: Drained =
        serde_json::from_str(&line).context(|| format!("the client said {line:?}"))?;
    supervisor.ended(&mut client, Duration::from_secs(10))?;
    client.reap()?;
    Ok(Sample::new(
        workload.file_bytes(),
        drained.seconds,
        after.since(&before),
    ))
}

fn report(contenders: &[Contender], limits: &[(Pieces, &str, Rounds)]) -> Report {
    let mut report = Report::default();
    let named = |prefix: &str| {
        let prefix = prefix.to_owned();
        contenders
            .iter()
            .filter(move |contender| contender.name.starts_with(&prefix))
            .map(|contender| &contender.rounds)
    };
    let ours = contenders
        .iter()
        .find(|contender| contender.name == "uktls")
        .map(|contender| &contender.rounds);
    if let Some(ours) = ours {
        for peer in [peers::nginx::NAME, peers::rustls::NAME] {
            // Of several variants of a peer the better one counts, for each figure apart.
            let best = named(peer).filter_map(Rounds::throughput).reduce(f64::max);
            if let (Some(value), Some(best)) = (ours.throughput(), best) {
                report.metric(Metric::beside(
                    "sendfile",
                    "throughput",
                    "GB/s",
                    value,
                    peer,
                    best,
                ));
            }
        }
        for peer in [peers::nginx::NAME, peers::rustls::NAME] {
            let best = named(peer)
                .filter_map(Rounds::cpu_seconds_per_gb)
                .reduce(f64::min);
            if let (Some(value), Some(best)) = (ours.cpu_seconds_per_gb(), best) {
                report.metric(Metric::beside(
                    "sendfile",
                    "cpu_seconds_per_gb",
                    "s/GB",
                    value,
                    peer,
                    best,
                ));
            }
        }
    }
    let alone = named("uktls-plain-tun")
        .map(|rounds| ("throughput_plain_tun", rounds))
        .chain(limits.iter().map(|(_, name, rounds)| (*name, rounds)));
    for (name, rounds) in alone {
        if let Some(value) = rounds.throughput() {
            report.metric(Metric::alone("sendfile", name, "GB/s", value));
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(name: &str, seconds: f64, cpu: f64) -> Contender {
        let mut rounds = Rounds::default();
        rounds.push(Sample::new(1_000_000_000, seconds, cpu));
        Contender {
            name: name.into(),
            address: ([127, 0, 0, 1], 1).into(),
            processes: Vec::new(),
            rounds,
        }
    }

    #[test]
    fn the_better_variant_of_a_peer_counts_for_each_figure() {
        let contenders = [
            contender("uktls", 0.25, 0.25),
            contender("uktls-plain-tun", 2.0, 2.0),
            contender("nginx-openssl-loopback", 1.0, 1.0),
            contender("rustls-aws-lc-loopback-16k", 0.5, 0.75),
            contender("rustls-aws-lc-loopback-64k", 0.8, 0.5),
        ];
        let json = report(&contenders, &[]).json();
        let lines: Vec<&str> = json.lines().collect();
        assert_eq!(lines.len(), 5);
        assert_eq!(
            lines[1],
            r#"{"bench":"sendfile","metric":"throughput","unit":"GB/s","value":4.0,"peer":"rustls-aws-lc-loopback","peer_value":2.0,"ratio":2.0}"#
        );
        assert_eq!(
            lines[3],
            r#"{"bench":"sendfile","metric":"cpu_seconds_per_gb","unit":"s/GB","value":0.25,"peer":"rustls-aws-lc-loopback","peer_value":0.5,"ratio":0.5}"#
        );
        assert!(lines[4].contains("throughput_plain_tun") && lines[4].contains("\"peer\":null"));
    }
}
