//! `uktls demo --dtls`: a file by `uktls dtls-send` to the DTLS servers everybody has, and what they make of it compared record by
//! record.
//!
//! OpenSSL's server writes plaintext down as it comes; a record that was lost is known by its payload being absent, since no two
//! are alike. GnuTLS's server prints each record with its number. The file is text, because that one prints texts. The sender is
//! paced, so that on a link that loses nothing all arrives; what is lost all the same is counted and told.

use super::super::bench::stack::{Daemon, Wanted};
use super::super::bench::workload::Workload;
use super::super::supervise::{self, Child, Supervisor, find, ourselves};
use super::super::{Context, Failure, Globals, Outcome, dtls, netns};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Enough for some 1,500 records.
const SIZE: u64 = 2 << 20;
const PORT: u16 = 4433;
/// A step that takes longer has failed.
const STEP: Duration = Duration::from_secs(20);
/// A server that wrote nothing for so long has read all there was.
const SETTLED: Duration = Duration::from_millis(400);
/// The number of the first record behind the handshake's Finished, which is number 0.
const FIRST: u64 = 1;

/// A server that people have.
struct Server {
    program: &'static str,
    package: &'static str,
    /// How many bytes a second it keeps up with, as `--rate` is given it.
    rate: &'static str,
    words: &'static [&'static str],
    certificate: [&'static str; 2],
    compare: fn(&[u8], &[u8], usize) -> Compared,
}

const SERVERS: [Server; 2] = [
    Server {
        program: "openssl",
        package: "openssl",
        rate: "16M",
        words: &[
            "s_server",
            "-dtls1_2",
            "-quiet",
            "-accept",
            "10.77.0.1:4433",
        ],
        certificate: ["-cert", "-key"],
        compare: by_payload,
    },
    Server {
        program: "gnutls-serv",
        package: "gnutls-bin",
        // It reads by 255 bytes, and prints and sends back each piece.
        rate: "2M",
        words: &["--udp", "--port", "4433", "--mtu", "1500"],
        certificate: ["--x509certfile", "--x509keyfile"],
        compare: by_number,
    },
];

/// Runs the demonstration.
pub(super) fn run(globals: &Globals) -> Outcome {
    if !dtls::IN_THIS_BUILD {
        return Err(dtls::missing("demo --dtls"));
    }
    let started = Instant::now();
    let found = SERVERS.map(|server| find(server.program));
    if found.iter().all(Option::is_none) {
        return Err(Failure::new(
            "demo --dtls needs a DTLS server to talk to; on Debian: apt-get install openssl gnutls-bin",
        ));
    }
    netns::enter()?;
    let workload = Workload::new("demo")?;
    let supervisor = Supervisor::new(&workload.logs())?;
    let say = |text: &str| {
        if !globals.quiet {
            println!("{text}");
        }
    };
    say(
        "A network of its own: the stack is 10.77.0.2, the kernel 10.77.0.1, a TUN device between them.",
    );
    let text = text(&workload)?;
    say(
        "A file of 2 MiB of text goes by DTLS 1.2 from the stack, a record a datagram, to servers on the kernel's UDP.",
    );
    let daemon = Daemon::start(&supervisor, workload.folder(), &Wanted::new(77, 1500))?;
    for (server, program) in SERVERS.iter().zip(found) {
        let (name, package) = (server.program, server.package);
        let Some(program) = program else {
            say(&format!(
                "{name} is not installed (Debian: apt-get install {package}); left out."
            ));
            continue;
        };
        let sent = Transfer {
            workload: &workload,
            supervisor: &supervisor,
            daemon: &daemon,
            text: &text,
        }
        .to(server, &program)?;
        say(&sent.to_string());
        sent.compared.check(name)?;
    }
    daemon.child.stop();
    say("Go on with:  uktls run -- bash            a shell in such a network");
    say(
        "             uktls dtls-echo --help       an echo server on the stack; dtls-send, dtls-recv",
    );
    say(
        "             uktls bench dtls             the same beside OpenSSL, by the million records",
    );
    say(&format!(
        "Done in {:.0} s.",
        started.elapsed().as_secs_f64()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Writes the file; gives where it is.
fn text(workload: &Workload) -> Result<PathBuf, Failure> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    workload.make_named("text", SIZE)?;
    let path = workload.site().join("text");
    let failed = || format!("cannot write {}", path.display());
    let mut bytes = std::fs::read(&path).context(failed)?;
    for byte in &mut bytes {
        *byte = LETTERS[usize::from(*byte % 64)];
    }
    std::fs::write(&path, bytes).context(failed)?;
    Ok(path)
}

/// What a transfer needs.
struct Transfer<'a> {
    workload: &'a Workload,
    supervisor: &'a Supervisor,
    daemon: &'a Daemon,
    text: &'a Path,
}

/// How a transfer went.
struct Sent {
    name: &'static str,
    cipher: String,
    payload: usize,
    compared: Compared,
}

impl Transfer<'_> {
    fn to(&self, server: &Server, program: &Path) -> Result<Sent, Failure> {
        let name = server.program;
        let printed = self.workload.folder().join(format!("{name}.out"));
        let output =
            File::create(&printed).context(|| format!("cannot write {}", printed.display()))?;
        // At the end of its input it would end.
        let (input, _held) = io::pipe().context(|| "cannot make a pipe".into())?;
        let [cert, key] = server.certificate;
        // GnuTLS's would keep the last lines in its buffer, and lose them when it is ended.
        let mut command = Command::new(supervise::program("stdbuf", "coreutils")?);
        command.arg("-oL").arg(program).args(server.words);
        command.arg(cert).arg(self.workload.cert());
        command.arg(key).arg(self.workload.key());
        let mut peer = self
            .supervisor
            .spawn_between(name, command, input.into(), output.into())?;
        self.supervisor
            .until("server on its port", STEP, &mut [&mut peer], || {
                Ok(is_bound(PORT).then_some(()))
            })?;
        let report = self.send(server.rate)?;
        self.settle(&mut peer, &printed)?;
        peer.stop();

        let read =
            |path: &Path| std::fs::read(path).context(|| format!("cannot read {}", path.display()));
        let odd = || Failure::new("uktls dtls-send does not say what it sent");
        let payload = report["payload"].as_u64().ok_or_else(odd)? as usize;
        let records = report["records"].as_u64().ok_or_else(odd)?;
        let compared = (server.compare)(&read(self.text)?, &read(&printed)?, payload);
        if records != compared.sent {
            return Err(Failure::new(format_args!(
                "the file is {} records of {payload} bytes, but {records} were sealed",
                compared.sent
            )));
        }
        Ok(Sent {
            name,
            cipher: report["cipher"].as_str().unwrap_or_default().to_owned(),
            payload,
            compared,
        })
    }

    /// Runs `uktls dtls-send`, and gives what it reports.
    fn send(&self, rate: &str) -> Result<serde_json::Value, Failure> {
        let mut command = ourselves()?;
        command
            .args(["dtls-send", "--json", "--rate", rate, "--connect"])
            .arg(self.daemon.host(PORT).to_string())
            .arg("--cacert")
            .arg(self.workload.cert())
            .arg("--socket")
            .arg(&self.daemon.socket)
            .arg(self.text);
        let mut sender = self.supervisor.spawn("uktls dtls-send", command)?;
        let report = self.supervisor.rest(&mut sender, STEP)?;
        self.supervisor.ended(&mut sender, STEP)?;
        sender.reap()?;
        serde_json::from_str(&report).context(|| "uktls dtls-send says no JSON".into())
    }

    /// Waits until the server has written nothing for a while.
    fn settle(&self, peer: &mut Child, printed: &Path) -> Result<(), Failure> {
        let mut last = (0, Instant::now());
        self.supervisor
            .until("end of what arrives", STEP, &mut [peer], || {
                let len = std::fs::metadata(printed).map_or(0, |file| file.len());
                if len != last.0 {
                    last = (len, Instant::now());
                }
                Ok((last.1.elapsed() >= SETTLED).then_some(()))
            })
    }
}

/// Whether a UDP socket of the kernel's has this port.
fn is_bound(port: u16) -> bool {
    let local = format!(":{port:04X}");
    ["/proc/net/udp", "/proc/net/udp6"].iter().any(|table| {
        let table = std::fs::read_to_string(table).unwrap_or_default();
        let mut locals = table
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1));
        locals.any(|at| at.ends_with(&local))
    })
}

/// A file's records held against what a server printed.
#[derive(Debug, PartialEq)]
struct Compared {
    sent: u64,
    /// Arrived as they were sent.
    intact: u64,
    /// Arrived, but not as they were sent.
    differ: u64,
}

impl Compared {
    fn check(&self, name: &str) -> Result<(), Failure> {
        if self.differ > 0 || self.intact == 0 {
            return Err(Failure::new(format_args!(
                "{name}: of {} records {} arrived as they were sent, {} otherwise",
                self.sent, self.intact, self.differ
            )));
        }
        Ok(())
    }
}

impl std::fmt::Display for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Compared {
            sent,
            intact,
            differ,
        } = self.compared;
        let name = format!("uktls dtls-send -> {}", self.name);
        let lost = sent.saturating_sub(intact + differ);
        write!(
            f,
            "  {name:<30} {sent} records of {} bytes, {}: {intact} arrived and match, {lost} lost",
            self.payload, self.cipher
        )
    }
}

/// `printed` are payloads one behind the other, of which some may be missing.
fn by_payload(text: &[u8], mut printed: &[u8], payload: usize) -> Compared {
    let mut compared = Compared {
        sent: 0,
        intact: 0,
        differ: 0,
    };
    for record in text.chunks(payload) {
        compared.sent += 1;
        if let Some(rest) = printed.strip_prefix(record) {
            compared.intact += 1;
            printed = rest;
        }
    }
    // What is of no record, in records.
    compared.differ = printed.len().div_ceil(payload) as u64;
    compared
}

/// `printed` are lines "received[EPOCH‖NUMBER]: TEXT", one or more of them a record.
fn by_number(text: &[u8], printed: &[u8], payload: usize) -> Compared {
    let mut arrived: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for line in printed.split(|&byte| byte == b'\n') {
        let Some((number, piece)) = line.strip_prefix(b"received[").and_then(|line| {
            let number = std::str::from_utf8(line.get(..16)?).ok()?;
            let number = u64::from_str_radix(number, 16).ok()?;
            Some((number, line[16..].strip_prefix(b"]: ")?))
        }) else {
            continue;
        };
        const NUMBER: u64 = (1 << 48) - 1;
        arrived.entry(number & NUMBER).or_default().extend(piece);
    }
    let mut compared = Compared {
        sent: 0,
        intact: 0,
        differ: 0,
    };
    for (number, record) in (FIRST..).zip(text.chunks(payload)) {
        compared.sent += 1;
        match arrived.remove(&number) {
            Some(piece) if piece == record => compared.intact += 1,
            Some(_) => compared.differ += 1,
            None => {}
        }
    }
    compared.differ += arrived.len() as u64;
    compared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(sent: u64, intact: u64, differ: u64) -> Compared {
        Compared {
            sent,
            intact,
            differ,
        }
    }

    #[test]
    fn payloads_that_are_missing_or_strange_are_counted() {
        for (printed, want) in [
            ("aabbccd", compared(4, 4, 0)),
            ("aaccd", compared(4, 3, 0)),
            ("", compared(4, 0, 0)),
            ("aaxxccd", compared(4, 1, 3)),
            ("aabbccdd", compared(4, 4, 1)),
        ] {
            let found = by_payload(b"aabbccd", printed.as_bytes(), 2);
            assert_eq!(found, want, "{printed}");
        }
    }

    #[test]
    fn numbers_find_their_records() {
        let line = |number: u64, text: &str| format!("received[0001{number:012x}]: {text}\n");
        for (printed, want) in [
            (
                line(1, "a") + "hello\n" + &line(1, "a") + &line(2, "bb"),
                compared(2, 2, 0),
            ),
            (line(2, "bb"), compared(2, 1, 0)),
            (line(1, "aa") + &line(2, "xx"), compared(2, 1, 1)),
            (line(1, "aa") + &line(9, "bb"), compared(2, 1, 1)),
        ] {
            let found = by_number(b"aabb", printed.as_bytes(), 2);
            assert_eq!(found, want, "{printed}");
        }
    }
}
