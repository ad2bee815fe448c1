//! The newcomer's command: one GiB over TLS to programs everybody knows, and back, each time compared by its SHA-256; then a small
//! transfer captured, to look at.
//!
//! Everything happens in a network namespace of its own and in a temporary folder; what stays is the capture, in the current
//! folder. The stack, the server and the clients are the programs that a user would start by hand, and the lines printed name them.

mod dtls;
mod tally;

use super::bench::client::accepts;
use super::bench::cpu::CpuTime;
use super::bench::stack::{Daemon, Wanted};
use super::bench::workload::Workload;
use super::supervise::{Supervisor, find, ourselves};
use super::{Context, Failure, Globals, Outcome, netns};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use tally::Tally;

/// One GiB.
const BIG: u64 = 1 << 30;
/// 8 MiB: a capture that Wireshark opens at once.
const SMALL: u64 = 8 << 20;
const SMALL_FILE: &str = "small";
const CAPTURE: &str = "uktls-demo.pcapng";
/// A transfer that takes longer has failed; all together stay far below.
const TRANSFER: Duration = Duration::from_secs(25);
const START: Duration = Duration::from_secs(10);

/// See it work.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It needs no root and touches nothing of this machine's network: all of it happens in a
network namespace of its own. What stays is uktls-demo.pcapng in the current folder, a
capture with its keys inside, so that Wireshark shows the plaintext.

With --dtls it is a file by DTLS 1.2 to `openssl s_server -dtls1_2` and `gnutls-serv --udp`,
compared record by record. That needs a build with `--features openssl`.")]
pub(crate) struct Args {
    /// Write no capture
    #[arg(long)]
    no_capture: bool,
    /// Show DTLS instead of TLS; nothing stays
    #[arg(long, conflicts_with = "no_capture")]
    dtls: bool,
}

type Digested = sha2::digest::Output<Sha256>;

/// What all steps need.
struct Demo<'a> {
    workload: &'a Workload,
    supervisor: &'a Supervisor,
    curl: Option<PathBuf>,
    quiet: bool,
}

/// Runs the demonstration.
pub(crate) fn run(args: Args, globals: &Globals) -> Outcome {
    if args.dtls {
        return dtls::run(globals);
    }
    let started = Instant::now();
    netns::enter()?;
    let mut workload = Workload::new("demo")?;
    let supervisor = Supervisor::new(&workload.logs())?;
    let (curl, openssl) = (find("curl"), find("openssl"));
    let say = |text: &str| {
        if !globals.quiet {
            println!("{text}");
        }
    };
    say(
        "A network of its own: the stack is 10.77.0.2, the kernel 10.77.0.1, a TUN device between them.",
    );
    workload.make_file(BIG)?;
    workload.make_named(SMALL_FILE, SMALL)?;
    let expected = digest(&workload.file())?;
    say(&format!(
        "A file of 1 GiB of noise, SHA-256 {}…",
        short(&expected)
    ));
    let demo = Demo {
        workload: &workload,
        supervisor: &supervisor,
        curl,
        quiet: globals.quiet,
    };

    let daemon = Daemon::start(&supervisor, workload.folder(), &Wanted::new(77, 1500))?;
    let server = daemon.serve(&supervisor, &workload, "both")?;
    let serving = [daemon.child.pid(), server.pid()];
    // A stack of its own for the client, where one is needed; packets between the two go through the kernel.
    let second = match &demo.curl {
        Some(_) => None,
        None => {
            say(
                "curl is not installed (Debian: apt-get install curl); `uktls get` on a second stack stands in.",
            );
            Some(demo.second_stack()?)
        }
    };
    let url = workload.url(daemon.stack(443));
    let mut sent = Vec::new();
    for tls in ["1.2", "1.3"] {
        let name = match second {
            None => format!("uktls serve -> curl, TLS {tls}"),
            Some(_) => format!("uktls serve -> uktls get, TLS {tls}"),
        };
        let command = demo.client(second.as_ref(), tls, &url)?;
        sent.push(demo.transfer(&name, command, &serving, &expected, BIG)?);
    }

    match openssl {
        Some(openssl) => {
            let address = daemon.host(4433);
            let mut command = Command::new(openssl);
            command
                .args(["s_server", "-WWW", "-accept", &address.to_string()])
                .arg("-cert")
                .arg(workload.cert())
                .arg("-key")
                .arg(workload.key())
                .current_dir(workload.site());
            let mut peer = supervisor.spawn("openssl s_server", command)?;
            supervisor.until("answer on its port", START, &mut [&mut peer], || {
                Ok(accepts(address).then_some(()))
            })?;
            let mut get = daemon.get("1.3")?;
            get.arg(workload.url(address));
            demo.transfer(
                "openssl s_server -> uktls get, TLS 1.3",
                get,
                &[daemon.child.pid()],
                &expected,
                BIG,
            )?;
            peer.stop();
        }
        None => {
            say(
                "openssl is not installed (Debian: apt-get install openssl); `uktls serve` stands in as the server.",
            );
            if second.is_none() {
                let second = demo.second_stack()?;
                let mut get = second.get("1.3")?;
                get.arg(&url);
                demo.transfer(
                    "uktls serve -> uktls get, TLS 1.3",
                    get,
                    &serving,
                    &expected,
                    BIG,
                )?;
            }
        }
    }
    let tally = Tally::read(&daemon, &supervisor)?;
    server.stop();
    daemon.child.stop();

    if !args.no_capture {
        demo.capture(second.as_ref())?;
    }
    say("");
    say(&summary(&sent, &tally));
    if !args.no_capture {
        say(&format!(
            "Look inside: wireshark {CAPTURE}   (8 MiB over TLS 1.3; the keys are in the file, so the plaintext shows)"
        ));
    }
    say("Go on with:  uktls run -- bash            a shell in such a network");
    say("             uktls serve --help           serve a folder of your own");
    say("             uktls bench sendfile         the same beside nginx and rustls");
    say(&format!(
        "Done in {:.0} s.",
        started.elapsed().as_secs_f64()
    ));
    Ok(ExitCode::SUCCESS)
}

/// A transfer's figures.
#[derive(Debug, Clone, Copy)]
struct Figures {
    bytes: u64,
    seconds: f64,
    cpu_seconds: f64,
}

impl Figures {
    fn throughput(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.seconds
    }
    fn cpu_seconds_per_gb(&self) -> f64 {
        self.cpu_seconds / (self.bytes as f64 / 1e9)
    }
}

impl Demo<'_> {
    /// Runs a client to its end, and compares what it has written. CPU time is that of `processes`.
    fn transfer(
        &self,
        name: &str,
        mut command: Command,
        processes: &[u32],
        expected: &Digested,
        bytes: u64,
    ) -> Result<Figures, Failure> {
        let output = self.workload.folder().join("received");
        command.arg("-o").arg(&output);
        let before = CpuTime::of(processes)?;
        let start = Instant::now();
        let mut client = self.supervisor.spawn(name, command)?;
        self.supervisor.ended(&mut client, TRANSFER)?;
        let figures = Figures {
            bytes,
            seconds: start.elapsed().as_secs_f64(),
            cpu_seconds: CpuTime::of(processes)?.since(&before),
        };
        client.reap()?;
        let length = std::fs::metadata(&output)
            .context(|| format!("{name}: cannot read what was received"))?
            .len();
        let found = digest(&output)?;
        if found != *expected {
            return Err(Failure::new(format_args!(
                "{name}: the file sent has {bytes} bytes and SHA-256 {}, the one received {length} bytes and {}",
                hex(expected),
                hex(&found)
            )));
        }
        std::fs::remove_file(&output).context(|| format!("cannot remove {}", output.display()))?;
        if !self.quiet {
            println!(
                "  {name:<40} {:5.2} GB/s {:6.2} CPU-s/GB   SHA-256 matches",
                figures.throughput(),
                figures.cpu_seconds_per_gb()
            );
        }
        Ok(figures)
    }

    /// curl, or `uktls get` on a stack of its own; the output is the caller's to add.
    fn client(&self, stack: Option<&Daemon>, tls: &str, url: &str) -> Result<Command, Failure> {
        let mut command = match (stack, &self.curl) {
            (Some(stack), _) => stack.get(tls)?,
            (None, Some(curl)) => {
                let mut command = Command::new(curl);
                command
                    .args(["--silent", "--show-error", "--fail", "--noproxy", "*"])
                    .args([&format!("--tlsv{tls}"), "--tls-max", tls])
                    .arg("--cacert")
                    .arg(self.workload.cert());
                command
            }
            (None, None) => return Err(Failure::new("neither curl nor a second stack")),
        };
        command.arg(url);
        Ok(command)
    }

    /// A stack that reaches the first through the kernel.
    fn second_stack(&self) -> Result<Daemon, Failure> {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
            .context(|| "cannot make the kernel forward packets".into())?;
        Daemon::start(
            self.supervisor,
            self.workload.folder(),
            &Wanted::new(78, 1500),
        )
    }

    /// The small file once more, from a server with a stack of its own that writes down every packet and every key.
    fn capture(&self, second: Option<&Daemon>) -> Result<(), Failure> {
        let expected = digest(&self.workload.site().join(SMALL_FILE))?;
        let mut command = ourselves()?;
        command
            .args(["serve", "--json", "--tun", "uktls79"])
            .args(["--addr", "10.79.0.2/24", "--host-addr", "10.79.0.1/24"])
            .args(["--listen", "10.79.0.2:443", "--pcap", CAPTURE])
            .arg("--socket")
            .arg(self.workload.folder().join("capture.sock"))
            .arg("--cert")
            .arg(self.workload.cert())
            .arg("--key")
            .arg(self.workload.key())
            .arg(self.workload.site());
        let mut server = self
            .supervisor
            .spawn("uktls serve with a capture", command)?;
        self.supervisor.line(&mut server, START)?;
        let url = format!("https://10.79.0.2/{SMALL_FILE}");
        let client = self.client(second, "1.3", &url)?;
        self.transfer(
            "captured: 8 MiB, TLS 1.3",
            client,
            &[server.pid()],
            &expected,
            SMALL,
        )?;
        server.stop();
        let written = std::fs::metadata(CAPTURE)
            .context(|| format!("no capture was written to {CAPTURE}"))?
            .len();
        if written < SMALL {
            return Err(Failure::new(format_args!(
                "{CAPTURE} has only {written} bytes: the transfer is not in it"
            )));
        }
        Ok(())
    }
}

fn summary(sent: &[Figures], tally: &Tally) -> String {
    let total = Figures {
        bytes: sent.iter().map(|figures| figures.bytes).sum(),
        seconds: sent.iter().map(|figures| figures.seconds).sum(),
        cpu_seconds: sent.iter().map(|figures| figures.cpu_seconds).sum(),
    };
    format!(
        "Sent {} files of 1 GiB at {:.2} GB/s and {:.2} CPU-seconds per GB (page cache to TLS records, `up` and `serve` together).\n{tally}",
        sent.len(),
        total.throughput(),
        total.cpu_seconds_per_gb(),
    )
}

/// SHA-256 of a file.
fn digest(path: &Path) -> Result<Digested, Failure> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = std::fs::File::open(path).context(failed)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 18];
    loop {
        match file.read(&mut piece).context(failed)? {
            0 => return Ok(hash.finalize()),
            length => hash.update(&piece[..length]),
        }
    }
}

fn hex(digest: &Digested) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn short(digest: &Digested) -> String {
    hex(digest)[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_digested_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            hex(&digest(&file).unwrap()),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
