//! Our side: the daemon and what runs on it, as the processes a user would start.

use super::super::Failure;
use super::super::supervise::{Child, Supervisor, ourselves};
use super::workload::Workload;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A daemon or a server that takes longer to start has failed.
const START: Duration = Duration::from_secs(10);

/// How a daemon is started. Each has a subnet of its own: 10.SUBNET.0.0/24, the host at .1 and the stack at .2.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) subnet: u8,
    pub(crate) mtu: usize,
    pub(crate) offload: bool,
}

impl Wanted {
    /// With offload.
    pub(crate) fn new(subnet: u8, mtu: usize) -> Wanted {
        Wanted {
            subnet,
            mtu,
            offload: true,
        }
    }
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
    subnet: u8,
}

impl Daemon {
    /// Starts `uktls up` and waits until it answers.
    pub(crate) fn start(
        supervisor: &Supervisor,
        folder: &Path,
        wanted: &Wanted,
    ) -> Result<Daemon, Failure> {
        let subnet = wanted.subnet;
        let socket = folder.join(format!("uktls-{subnet}.sock"));
        let mut command = ourselves()?;
        command
            .args(["up", "--json"])
            .args(["--tun", &format!("uktls{subnet}")])
            .args(["--addr", &format!("10.{subnet}.0.2/24")])
            .args(["--host-addr", &format!("10.{subnet}.0.1/24")])
            .args(["--mtu", &wanted.mtu.to_string()])
            .args(["--offload", if wanted.offload { "on" } else { "off" }])
            .arg("--socket")
            .arg(&socket);
        let mut child = supervisor.spawn(&format!("uktls up {subnet}"), command)?;
        supervisor.line(&mut child, START)?;
        Ok(Daemon {
            child,
            socket,
            subnet,
        })
    }

    /// An address of the stack.
    pub(crate) fn stack(&self, port: u16) -> SocketAddr {
        (Ipv4Addr::new(10, self.subnet, 0, 2), port).into()
    }

    /// An address of the kernel's, as the stack sees it.
    pub(crate) fn host(&self, port: u16) -> SocketAddr {
        (Ipv4Addr::new(10, self.subnet, 0, 1), port).into()
    }

    /// Starts `uktls serve` on this daemon, for the workload's site, and waits until it listens.
    pub(crate) fn serve(
        &self,
        supervisor: &Supervisor,
        workload: &Workload,
        tls: &str,
    ) -> Result<Child, Failure> {
        let listen = self.stack(443);
        let mut command = ourselves()?;
        command
            .args(["serve", "--json", "--tls", tls])
            .args(["--listen", &listen.to_string()])
            // Longer than anything measured here lies idle.
            .args(["--idle-timeout", "3600"])
            .arg("--socket")
            .arg(&self.socket)
            .arg("--cert")
            .arg(workload.cert())
            .arg("--key")
            .arg(workload.key())
            .arg(workload.site());
        let mut server = supervisor.spawn(&format!("uktls serve {}", self.subnet), command)?;
        supervisor.line(&mut server, START)?;
        Ok(server)
    }

    /// The command `uktls get` on this daemon; URL and output are the caller's to add.
    pub(crate) fn get(&self, tls: &str) -> Result<Command, Failure> {
        let mut command = ourselves()?;
        command
            .args(["get", "--insecure", "--tls", tls, "--socket"])
            .arg(&self.socket);
        Ok(command)
    }

    /// The command `uktls stat --json` on this daemon.
    pub(crate) fn stat(&self) -> Result<Command, Failure> {
        let mut command = ourselves()?;
        command
            .args(["stat", "--json", "--all", "--socket"])
            .arg(&self.socket);
        Ok(command)
    }
}
