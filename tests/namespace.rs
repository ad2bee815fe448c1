//! A network of the test's own.

use crate::process::{Process, finish, read_text, tool};
use crate::{Finished, PATIENCE, uktls_program, wait_for};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// A network namespace with loopback, and a user namespace around it where the first alone is not permitted.
///
/// The test itself stays outside; the programs that it starts by [`Network::command`] are inside.
#[derive(Debug)]
pub struct Network {
    /// `cat`, which does nothing until its stdin ends: with this guard, or with the test.
    holder: Child,
    user: Option<Arc<File>>,
    network: Arc<File>,
}

/// Runs `body`, the test function of this name, with the right to move threads between networks: as root of a user namespace, in a process of its own,
/// unless it is root's already.
#[track_caller]
pub fn as_root(test: &str, body: impl FnOnce()) {
    const INSIDE: &str = "UKTLS_TEST_AS_ROOT";
    if rustix::process::geteuid().is_root() {
        return body();
    }
    assert!(
        std::env::var_os(INSIDE).is_none(),
        "a user namespace in which nobody is root"
    );
    let own = std::env::current_exe().expect("a test program knows its own path");
    let mut command = Command::new(tool("unshare"));
    command.args(["--map-root-user"]).arg(own);
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    command.env(INSIDE, "1");
    let finished = finish(command, PATIENCE * 2);
    let passed = finished.stdout.windows(8).any(|at| at == b"1 passed");
    assert!(passed, "{}", finished.describe());
}

impl Network {
    /// Makes one.
    #[track_caller]
    #[expect(
        clippy::new_without_default,
        reason = "it asks the kernel for something"
    )]
    pub fn new() -> Network {
        let uid_map = format!("0 {} 1", rustix::process::geteuid().as_raw());
        let gid_map = format!("0 {} 1", rustix::process::getegid().as_raw());
        let mut command = Command::new(tool("cat"));
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        // SAFETY: between fork and exec the closure makes system calls only; the strings were formatted before.
        unsafe { command.pre_exec(move || enter_fresh(&uid_map, &gid_map)) };
        let holder = command
            .spawn()
            .expect("a network namespace (needs root or unprivileged user namespaces)");
        let open = |name: &str| {
            let path = format!("/proc/{}/ns/{name}", holder.id());
            Arc::new(File::open(path).expect("a namespace of the holder"))
        };
        let own = std::fs::read_link("/proc/self/ns/user").expect("a namespace");
        let its = std::fs::read_link(format!("/proc/{}/ns/user", holder.id()));
        let user = (its.expect("a namespace") != own).then(|| open("user"));
        let network = Network {
            network: open("net"),
            holder,
            user,
        };
        network.run("ip", &["link", "set", "lo", "up"]).success();
        network
    }

    /// Does `work` on a thread that is inside. Sockets and devices that it opens stay there. For tests that run [`as_root`].
    #[track_caller]
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        assert!(self.user.is_none(), "only root's threads move");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.network.as_fd(), network).expect("may enter");
                work()
            });
            thread.join().expect("the thread that was inside")
        })
    }

    /// A command that will run inside.
    #[track_caller]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let program = program.as_ref();
        let mut command = match program.to_str() {
            Some(name) if !name.contains('/') => Command::new(tool(name)),
            _ => Command::new(program),
        };
        command
            .env_remove("UKTLS_SOCKET")
            .env_remove("SSLKEYLOGFILE")
            .env_remove("RUST_LOG");
        let (user, network) = (self.user.clone(), Arc::clone(&self.network));
        // SAFETY: between fork and exec the closure makes system calls only.
        unsafe {
            command.pre_exec(move || {
                if let Some(user) = &user {
                    move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
                }
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(())
            });
        }
        command
    }

    /// The program under test, with these words, inside.
    #[track_caller]
    pub fn uktls(&self, words: &[&str]) -> Command {
        let mut command = self.command(uktls_program());
        command.args(words);
        command
    }

    /// Runs a program inside until it ends, for [`PATIENCE`] at most.
    #[track_caller]
    pub fn run(&self, program: &str, words: &[&str]) -> Finished {
        self.run_for(PATIENCE, program, words)
    }

    /// Runs a program inside until it ends, for `limit` at most.
    #[track_caller]
    pub fn run_for(&self, limit: Duration, program: &str, words: &[&str]) -> Finished {
        let mut command = self.command(program);
        command.args(words);
        finish(command, limit)
    }

    /// Starts a program inside.
    #[track_caller]
    pub fn start(&self, program: &str, words: &[&str]) -> Process {
        let mut command = self.command(program);
        command.args(words);
        Process::start(command, &[])
    }

    /// Waits until something listens on this TCP port of the kernel's.
    #[track_caller]
    pub fn wait_for_listener(&self, port: u16, by: &Process) {
        let local = format!(":{port:04X}");
        wait_for(&format!("a listener on port {port}"), PATIENCE, || {
            assert!(
                !by.ended_within(Duration::ZERO),
                "ended early: {}",
                by.describe()
            );
            let tables = ["tcp", "tcp6"]
                .map(|table| read_text(format!("/proc/{}/net/{table}", self.holder.id())));
            tables
                .iter()
                .flat_map(|table| table.lines())
                .any(|line| {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    matches!(words[..], [_, at, _, "0A", ..] if at.ends_with(&local))
                })
                .then_some(())
        });
    }

    /// Whether there is an interface of this name.
    pub fn has_interface(&self, name: &str) -> bool {
        read_text(format!("/proc/{}/net/dev", self.holder.id()))
            .lines()
            .any(|line| line.trim_start().starts_with(&format!("{name}:")))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Its stdin ends, and so does it; a kill is for the case that it was stopped.
        self.holder.stdin = None;
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn enter_fresh(uid_map: &str, gid_map: &str) -> std::io::Result<()> {
    // SAFETY: NEWNET leaves memory and descriptors shared as they were.
    match unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
        Err(Errno::PERM) => {}
        outcome => return Ok(outcome?),
    }
    // SAFETY: as above, and NEWUSER as well.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }?;
    write_file(c"/proc/self/setgroups", "deny")?;
    write_file(c"/proc/self/uid_map", uid_map)?;
    write_file(c"/proc/self/gid_map", gid_map)?;
    Ok(())
}

fn write_file(path: &CStr, text: &str) -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let file = open(path, OFlags::WRONLY, Mode::empty())?;
    rustix::io::write(file, text.as_bytes())?;
    Ok(())
}
