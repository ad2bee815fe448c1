//! The newcomer's command.

use super::{Failure, Globals, Outcome};

/// See it work.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the demonstration.
pub(crate) fn run(_args: Args, _globals: &Globals) -> Outcome {
    Err(Failure::new("no demonstration is built in"))
}
