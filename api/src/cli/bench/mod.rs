//! Benchmarks, each with its peer in the same run.

use super::{Failure, Globals, Outcome};

/// Measure the stack beside its peers.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One line of JSON a metric
    #[arg(long)]
    json: bool,
}

/// Runs a benchmark.
pub(crate) fn run(args: Args, _globals: &Globals) -> Outcome {
    Err(Failure::new(format_args!(
        "no benchmark is built in (json: {})",
        args.json
    )))
}
