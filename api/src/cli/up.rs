//! `uktls up`: the daemon in the foreground.

use super::host::Host;
use super::options::{SocketOption, StackOptions};
use super::{Context, Globals, Outcome};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use uktls::paths;

/// Bring a stack up and keep it up, until Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  uktls up                         the stack is 10.77.0.2, this machine 10.77.0.1
  uktls up --tun t0 --addr 10.1.0.2/24 --addr6 fd01::2/64 --socket /tmp/t0.sock
  uktls up --pcap all.pcapng --json | { read ready; uktls serve --listen 10.77.0.2:443 .; }

It needs CAP_NET_ADMIN to create the interface and gives every privilege up afterwards.
Without root, `uktls run` does the same in a network namespace of its own.")]
pub(crate) struct Args {
    #[command(flatten)]
    socket: SocketOption,
    #[command(flatten)]
    stack: StackOptions,
    #[command(flatten)]
    ready: ReadyOptions,
}

/// How a script learns that it can go on.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ReadyOptions {
    /// Say that it is ready as one line of JSON on stdout
    #[arg(long)]
    pub(crate) json: bool,
    /// Write that line to this descriptor, which the caller opened
    #[arg(long, value_name = "FD")]
    pub(crate) ready_fd: Option<u32>,
}

impl ReadyOptions {
    /// Tells whoever wants to know; people read `words` on stderr.
    pub(crate) fn announce(
        &self,
        globals: &Globals,
        message: &serde_json::Value,
        words: &str,
    ) -> Result<(), super::Failure> {
        if let Some(fd) = self.ready_fd {
            let path = format!("/proc/self/fd/{fd}");
            let written = std::fs::File::options()
                .write(true)
                .open(path)
                .and_then(|mut file| writeln!(file, "{message}"));
            written.context(|| format!("cannot write to descriptor {fd} (--ready-fd)"))?;
        }
        if self.json {
            let mut stdout = std::io::stdout().lock();
            let written = writeln!(stdout, "{message}").and_then(|()| stdout.flush());
            written.context(|| "cannot write to stdout".into())?;
        } else if !globals.quiet {
            eprintln!("{words}");
        }
        Ok(())
    }
}

/// Runs the daemon.
pub(crate) fn run(args: Args, globals: &Globals) -> Outcome {
    // From here on a signal ends the daemon in order, wherever it has got to.
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context(|| "cannot wait for signals".into())?;
    let socket = args
        .socket
        .socket
        .clone()
        .unwrap_or_else(paths::default_socket);
    let host = Host::start(&args.stack, &socket)?;
    args.ready
        .announce(globals, &message(&host, &socket), &words(&host, &socket))?;
    signals.forever().next();
    host.stop()?;
    Ok(ExitCode::SUCCESS)
}

/// The ready message for programs.
pub(crate) fn message(host: &Host, socket: &Path) -> serde_json::Value {
    let pairs = &host.addresses.pairs;
    json!({
        "ready": true,
        "socket": socket,
        "tun": host.tun,
        "addresses": pairs.iter().map(|pair| pair.stack.to_string()).collect::<Vec<_>>(),
        "host_addresses": pairs.iter().map(|pair| pair.host.to_string()).collect::<Vec<_>>(),
        "mtu": host.capabilities.mtu,
        "tso": host.capabilities.tso,
        "pid": std::process::id(),
    })
}

/// The ready message for people.
fn words(host: &Host, socket: &Path) -> String {
    let stack: Vec<String> = host
        .addresses
        .pairs
        .iter()
        .map(|pair| pair.stack.ip.to_string())
        .collect();
    let option = match socket == paths::client_socket() {
        true => String::new(),
        false => format!("--socket {} ", socket.display()),
    };
    format!(
        "uktls: the stack {} is up on {}; try: uktls serve {option}--listen {}:443 DIR   (Ctrl-C ends it)",
        stack.join(" and "),
        host.tun,
        stack[0],
    )
}
