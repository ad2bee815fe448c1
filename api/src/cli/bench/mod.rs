//! Benchmarks, each with its peer in the same run.
//!
//! A benchmark moves into a network namespace of its own, starts all sides there as the processes a user would start, lets them take turns,
//! and prints medians and ratios: a table, or one line of JSON a metric. CPU-seconds are counted beside throughput because a busy
//! machine bends the one less than the other.
//!
//! | module | what it measures |
//! | --- | --- |
//! | [`sendfile`] | `uktls serve` beside nginx and rustls, and the limits of the path |
//! | [`receive`] | `uktls get` beside curl |
//! | [`loss`] | TCP's goodput under loss beside Linux's CUBIC, and fairness |
//! | [`sim`] | packets a second of the simulator |
//! | `dtls` | DTLS records a second beside OpenSSL over kernel UDP (feature `openssl`) |
//! | [`idle`] | memory of idle connections, and of the daemon after a long transfer |

pub(crate) mod client;
pub(crate) mod cpu;
#[cfg(feature = "openssl")]
mod dtls;
mod idle;
mod limit;
mod loss;
mod peers;
mod receive;
mod report;
mod s_client;
mod sendfile;
mod sim;
pub(crate) mod stack;
mod stats;
pub(crate) mod workload;

use super::{Failure, Globals, Outcome, netns};
use std::process::ExitCode;

/// Measure the stack beside its peers.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One line of JSON a metric
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    name: Name,
}

#[derive(Debug, clap::Subcommand)]
enum Name {
    Sendfile(sendfile::Args),
    Receive(receive::Args),
    Idle(idle::Args),
    #[cfg(feature = "openssl")]
    Dtls(dtls::Args),
    Loss(loss::Args),
    Sim(sim::Args),
    #[command(hide = true)]
    LossRun(loss::run::Args),
    #[command(hide = true)]
    Drain(client::DrainArgs),
    #[command(hide = true)]
    Hold(client::HoldArgs),
    #[command(hide = true)]
    RustlsServer(peers::rustls::ServerArgs),
    #[command(hide = true)]
    Limit(limit::LimitArgs),
}

/// Runs a benchmark.
pub(crate) fn run(args: Args, globals: &Globals) -> Outcome {
    let quiet = globals.quiet;
    let say = move |text: &str| {
        if !quiet {
            eprintln!("{text}");
        }
    };
    let report = match args.name {
        Name::Drain(args) => return client::drain(args),
        Name::Hold(args) => return client::hold(args),
        Name::RustlsServer(args) => return peers::rustls::serve(args),
        Name::Limit(args) => return limit::run(args),
        Name::LossRun(args) => return loss::run::run(&args),
        Name::Loss(args) => loss::run(&args, &say)?,
        Name::Sim(args) => sim::run(&args, &say)?,
        Name::Sendfile(args) => {
            netns::enter()?;
            sendfile::run(&args, &say)?
        }
        Name::Receive(args) => {
            netns::enter()?;
            receive::run(&args, &say)?
        }
        Name::Idle(args) => {
            netns::enter()?;
            idle::run(&args, &say)?
        }
        #[cfg(feature = "openssl")]
        Name::Dtls(args) => {
            netns::enter()?;
            dtls::run(&args, &say)?
        }
    };
    print!(
        "{}",
        if args.json {
            report.json()
        } else {
            report.table()
        }
    );
    Ok(ExitCode::SUCCESS)
}
