//! The command line `uktls`: one program that is the daemon, its clients and its benchmarks.
//!
//! Each subcommand is a module of [`cli`]; each gets its parsed arguments and gives an exit status or one line that
//! says what went wrong and what to do.

mod cli;
mod http;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    cli::log(&arguments.globals);
    match cli::dispatch(arguments) {
        Ok(status) => status,
        Err(failure) => {
            eprintln!("uktls: {failure}");
            ExitCode::FAILURE
        }
    }
}
