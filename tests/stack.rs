//! The programs under test: `uktls up` and `uktls serve`, running.

use crate::process::Process;
use crate::{Finished, Folder, Network, PATIENCE};
use rustix::process::Signal;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A running `uktls up`: the stack 10.77.0.2 on the interface `uktls0`, the kernel's side of it 10.77.0.1.
#[derive(Debug)]
pub struct Daemon<'n> {
    /// Where it runs.
    pub network: &'n Network,
    /// The program.
    pub process: Process,
    socket: PathBuf,
    _folder: Folder,
}

impl<'n> Daemon<'n> {
    /// Starts one with these options beside `--socket` and waits until it is ready.
    #[track_caller]
    pub fn start(network: &'n Network, options: &[&str]) -> Daemon<'n> {
        let folder = Folder::new();
        let socket = folder.join("uktls.sock");
        let mut command = network.uktls(&["up", "--json", "--socket"]);
        command.arg(&socket).args(options);
        let mut process = Process::start(command, &[]);
        let ready = ready(&mut process);
        assert_eq!(ready["socket"].as_str(), socket.to_str());
        Daemon {
            network,
            process,
            socket,
            _folder: folder,
        }
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The library's handle to it: the test itself can be a client.
    pub fn client(&self) -> uktls::Daemon {
        uktls::Daemon::at(&self.socket)
    }

    /// The program under test with `--socket`, inside.
    #[track_caller]
    pub fn uktls(&self, words: &[&str]) -> Command {
        let mut command = self.network.uktls(words);
        command.arg("--socket").arg(&self.socket);
        command
    }

    /// Runs `uktls get` with these words to its end.
    #[track_caller]
    pub fn get(&self, words: &[&str]) -> Finished {
        let mut command = self.uktls(&["get"]);
        command.args(words);
        Process::start(command, &[]).end(PATIENCE)
    }

    /// What `uktls stat --json` says: a value a line.
    #[track_caller]
    pub fn stat(&self) -> Vec<Value> {
        let command = self.uktls(&["stat", "--json", "--all"]);
        let finished = Process::start(command, &[]).end(PATIENCE).success();
        String::from_utf8_lossy(&finished.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line of JSON"))
            .collect()
    }

    /// The sockets of [`Daemon::stat`] that are in this state.
    #[track_caller]
    pub fn sockets_in_state(&self, state: &str) -> Vec<Value> {
        self.stat()
            .into_iter()
            .filter(|line| line["socket"]["state"] == state)
            .collect()
    }

    /// Asks it to end and gives how it ended.
    #[track_caller]
    pub fn stop(self) -> Finished {
        self.process.signal(Signal::TERM);
        self.process.end(PATIENCE)
    }
}

/// A running `uktls serve`.
#[derive(Debug)]
pub struct Serve {
    /// The program.
    pub process: Process,
    address: SocketAddr,
    certificate: PathBuf,
    _folder: Folder,
}

impl Serve {
    /// Serves `dir` on the daemon's stack, with these options.
    #[track_caller]
    pub fn start(daemon: &Daemon<'_>, dir: &Path, options: &[&str]) -> Serve {
        Serve::start_on(daemon.uktls(&["serve"]), "10.77.0.2:443", dir, options)
    }

    /// Serves `dir` by `command`, a `uktls serve` that says which stack to use, at this address.
    #[track_caller]
    pub fn start_on(mut command: Command, listen: &str, dir: &Path, options: &[&str]) -> Serve {
        let folder = Folder::new();
        let certificate = folder.join("cert.pem");
        command.args(["--json", "--listen", listen]).args(options);
        command.arg("--cert-out").arg(&certificate).arg(dir);
        let mut process = Process::start(command, &[]);
        let ready = ready(&mut process);
        let address = ready["listen"][0].as_str().and_then(|at| at.parse().ok());
        Serve {
            address: address.unwrap_or_else(|| panic!("no address in {ready}")),
            process,
            certificate,
            _folder: folder,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its certificate, for `--cacert` and `-CAfile`.
    pub fn certificate(&self) -> &str {
        self.certificate.to_str().expect("a path of our own making")
    }

    /// The URL of a path that begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// curl of `path`, its body to stdout and what goes wrong to stderr, trusting this certificate alone.
    #[track_caller]
    pub fn curl(&self, network: &Network, path: &str, options: &[&str]) -> Command {
        let mut command = network.command("curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "120"]);
        command.args(["--noproxy", "*", "--cacert", self.certificate()]);
        command.args(options).arg(self.url(path));
        command
    }

    /// What curl gets from `path`; panics unless it ends well.
    #[track_caller]
    pub fn fetch(&self, network: &Network, path: &str, options: &[&str]) -> Vec<u8> {
        let curl = Process::start(self.curl(network, path, options), &[]);
        let finished = curl.end(PATIENCE * 2);
        assert!(
            finished.status.success(),
            "{}\nserver: {}",
            finished.describe(),
            self.process.describe()
        );
        finished.stdout
    }
}

/// The ready message that `--json` asks for.
#[track_caller]
fn ready(process: &mut Process) -> Value {
    let line = process.first_line();
    let ready: Value = serde_json::from_str(&line).expect("a line of JSON");
    assert_eq!(ready["ready"], true, "{}", process.describe());
    ready
}
