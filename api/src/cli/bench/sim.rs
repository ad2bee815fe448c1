//! How fast the simulator is: data packets a second of real time, on one core.
//!
//! One TLS 1.2 connection with AES-128-GCM between two simulated hosts on a link of 10 Gbit/s and 100 µs each way; the server sends
//! from memory, the client reads. Both ends' TCP and record layer run, each packet passes the link model, and all
//! invariants are checked. Virtual time does not matter for the figure: what is counted is packets with payload that arrived, of at most 1,500
//! bytes, against the real time that the run took. Acknowledgements are counted beside them. Once without loss and once with 1 %.

use super::super::limits::parse_bytes;
use super::Failure;
use super::report::{Metric, Report};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uktls_record::{CipherSuite, CryptoInfo, ProtocolVersion};
use uktls_stack::clock::Duration;
use uktls_stack::handle::SocketOptions;
use uktls_stack::sim::link::{Knobs, Loss, Rate};
use uktls_stack::sim::random::Chance;
use uktls_stack::sim::{self, Net, TcpListener, TcpStream};

const SUITE: CipherSuite = CipherSuite::Aes128Gcm;
/// Bytes that the server sends at once: they stay in the processor's cache, as the simulator is measured and not the memory.
const PIECE: usize = 256 << 10;
/// The receiver's window: more than the link holds.
const WINDOW: usize = 256 << 10;
/// Required without loss; the goal is three times as much.
const REQUIRED: f64 = 500_000.0;

/// Packets a second of the simulator
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bytes to send in each run
    #[arg(long, default_value = "1G", value_parser = parse_bytes)]
    bytes: u64,
    /// Runs of each kind; the best counts
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// The seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What one run gave.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    seconds: f64,
    data_packets: u64,
    acknowledgements: u64,
    bytes: u64,
    hash: u64,
}

pub(super) fn run(args: &Args, say: &dyn Fn(&str)) -> Result<Report, Failure> {
    let mut report = Report::default();
    for (percent, suffix) in [(0, ""), (1, "_loss_1")] {
        let mut best: Option<Outcome> = None;
        for round in 1..=args.rounds.max(1) {
            say(&format!("{percent} % loss, round {round}"));
            let outcome = simulate(args.seed, args.bytes, percent)?;
            if best.is_some_and(|best| best.hash != outcome.hash) {
                return Err(Failure::new("two runs of one seed differ"));
            }
            if best.is_none_or(|best| outcome.seconds < best.seconds) {
                best = Some(outcome);
            }
        }
        let Some(best) = best else {
            continue;
        };
        let per_second = |count: u64| count as f64 / best.seconds;
        let alone =
            |name: &str, unit, value| Metric::alone("sim", format!("{name}{suffix}"), unit, value);
        let packets = per_second(best.data_packets);
        report.metric(alone("packets_per_second", "1/s", packets));
        report.metric(alone("throughput", "GB/s", per_second(best.bytes) / 1e9));
        report.metric(alone(
            "acknowledgements_per_second",
            "1/s",
            per_second(best.acknowledgements),
        ));
        if percent == 0 && packets < REQUIRED {
            report.note(format!(
                "required: {REQUIRED} packets a second without loss"
            ));
        }
    }
    report.note(
        "data packets of at most 1,500 bytes that arrived, a second of real time; one core, TLS 1.2 AES-128-GCM at both ends, \
         invariants on",
    );
    Ok(report)
}

fn keys() -> CryptoInfo {
    CryptoInfo::new(ProtocolVersion::Tls12, SUITE, &[7; 16], &[7; 4], &[7; 8], 0)
        .expect("lengths of AES-128-GCM")
}

fn simulate(seed: u64, bytes: u64, percent: u32) -> Result<Outcome, Failure> {
    let net = Net::new(seed);
    let client = net.host("client", "10.0.0.1");
    let server = net.host("server", "10.0.0.2");
    net.link(
        &client,
        &server,
        Knobs {
            rate: Rate::mbit(10_000),
            delay: Duration::from_micros(100),
            loss: Loss::random(Chance::percent(percent)),
            ..Knobs::default()
        },
    );
    server.spawn(async move {
        let listener = TcpListener::bind("0.0.0.0:443").await?;
        let (mut stream, _) = listener.accept().await?;
        stream.set_ulp_tls()?;
        stream.set_tls_tx(&keys())?;
        let piece = bytes::Bytes::from(vec![7; PIECE]);
        let mut left = bytes;
        while left > 0 {
            let next = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            stream.sendfile(piece.slice(..next)).await?;
            left -= next as u64;
        }
        stream.shutdown().await?;
        stream.read(&mut [0; 1]).await
    });
    let read = client.spawn(async move {
        let options = SocketOptions {
            receive_buffer: WINDOW,
            ..SocketOptions::default()
        };
        let mut stream = TcpStream::connect_with("server:443", None, options).await?;
        stream.set_ulp_tls()?;
        stream.set_tls_rx(&keys(), &[])?;
        let mut buffer = vec![0; WINDOW];
        let mut read = 0;
        loop {
            match stream.read(&mut buffer).await? {
                0 => return Ok::<u64, std::io::Error>(read),
                n => read += n as u64,
            }
        }
    });
    let start = Instant::now();
    let outcome: Result<sim::Report, _> = net.try_run();
    let seconds = start.elapsed().as_secs_f64();
    let outcome = outcome.map_err(Failure::new)?;
    match read.try_take() {
        Some(Ok(read)) if read == bytes => {}
        other => {
            return Err(Failure::new(format_args!(
                "of {bytes} bytes the client read {other:?}"
            )));
        }
    }
    let totals = outcome.totals;
    Ok(Outcome {
        seconds,
        data_packets: totals.data_delivered,
        acknowledgements: totals.delivered - totals.data_delivered,
        bytes,
        hash: outcome.hash,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_arrives_in_packets_that_fit_and_runs_repeat() {
        for percent in [0, 1] {
            let first = simulate(1, 3_000_000, percent).expect("a run");
            // 1,448 bytes of payload a packet at most.
            assert!(first.data_packets >= 3_000_000 / 1448, "{first:?}");
            assert!(first.acknowledgements > 0);
            let again = simulate(1, 3_000_000, percent).expect("a run");
            assert_eq!(first.hash, again.hash);
        }
    }
}
