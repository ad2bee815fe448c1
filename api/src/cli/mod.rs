//! Argument parsing and what all subcommands share: verbosity and the one-line failure.
//!
//! Usage errors end with status 2 (clap's), everything else that goes wrong with one line on stderr and status 1.

pub(crate) mod bench;
pub(crate) mod demo;
pub(crate) mod dtls;
pub(crate) mod failure;
pub(crate) mod get;
pub(crate) mod host;
pub(crate) mod limits;
pub(crate) mod netns;
pub(crate) mod options;
pub(crate) mod progress;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod stat;
pub(crate) mod supervise;
pub(crate) mod up;

pub(crate) use failure::{Context, Failure};

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// What a subcommand gives back: the exit status, or the one line that says what went wrong.
pub(crate) type Outcome = Result<ExitCode, Failure>;

/// Kernel TLS without the kernel: a TCP/UDP stack in user space whose segments are TLS records.
#[derive(Debug, Parser)]
#[command(
    name = "uktls",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every subcommand takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Globals {
    /// Say more on stderr (-v: a line per connection or request, -vv: what the stack does)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
}

/// The subcommands, the newcomer's first.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// See it work: a network of its own, 1 GiB over TLS to curl and back, a capture to look at
    Demo(demo::Args),
    /// Run a command in a network namespace of its own with a stack in it; needs no root
    Run(run::Args),
    /// Serve a folder by HTTPS, each file by one in-stack sendfile
    Serve(serve::Args),
    /// Fetch a URL through the stack, which decrypts it
    Get(get::Args),
    /// Send a file by DTLS, each record a datagram, by in-stack sendfile
    DtlsSend(dtls::SendArgs),
    /// Receive what a DTLS peer sends, and tell what was lost
    DtlsRecv(dtls::RecvArgs),
    /// Send back what DTLS peers send
    DtlsEcho(dtls::EchoArgs),
    /// Bring a stack up on a TUN interface and keep it up
    Up(up::Args),
    /// Show sockets and counters
    Stat(stat::Args),
    /// Measure it, each figure beside its peer's from the same run
    Bench(bench::Args),
}

/// Sends the library's log lines to stderr, as many as the verbosity (or `RUST_LOG`) asks for.
pub(crate) fn log(globals: &Globals) {
    use tracing_subscriber::EnvFilter;
    let level = match (globals.quiet, globals.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}

/// Runs the subcommand.
pub(crate) fn dispatch(arguments: Cli) -> Outcome {
    let Cli { globals, command } = arguments;
    match command {
        Command::Demo(args) => demo::run(args, &globals),
        Command::Run(args) => run::run(args, &globals),
        Command::Serve(args) => serve::run(args, &globals),
        Command::Get(args) => get::run(args, &globals),
        Command::DtlsSend(args) => dtls::send(args, &globals),
        Command::DtlsRecv(args) => dtls::recv(args, &globals),
        Command::DtlsEcho(args) => dtls::echo(args, &globals),
        Command::Up(args) => up::run(args, &globals),
        Command::Stat(args) => stat::run(args, &globals),
        Command::Bench(args) => bench::run(args, &globals),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
