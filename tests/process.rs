//! Programs that a test starts, waits for within a limit, and never leaves behind.

use crate::{PATIENCE, wait_for};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The program `name` in `PATH` or where administrators' programs live. Either every system has it, or `tests/run` installs it.
#[track_caller]
pub fn tool(name: &str) -> PathBuf {
    let installs = |line: &str| line.trim().starts_with(&format!("\"{name} "));
    assert!(
        ["sh", "cat"].contains(&name) || include_str!("run").lines().any(installs),
        "tests/run does not know that {name} is needed"
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed; tests/run says how"))
}

/// `program` started by somebody without rights, in the folder `home`, with this `PATH`: as the user nobody, if the test is
/// root's, and with a device node that everybody may open, as it is on most systems.
#[track_caller]
pub fn unprivileged(program: &Path, home: &Path, path: &str) -> Command {
    const NOBODY: u32 = 65534;
    let mut command;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(home, Some(NOBODY), Some(NOBODY)).expect("root may");
        // The program may lie where nobody can look.
        let copy = home.join(program.file_name().expect("a program has a name"));
        std::fs::copy(program, &copy).expect("room for a copy");
        let script = format!(
            "mount -t tmpfs -o mode=755 none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && \
             exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups env PATH=\"$0\" \"$@\""
        );
        command = Command::new(tool("unshare"));
        command.args(["--mount", "sh", "-c", &script, path]);
        command.arg(copy);
    } else {
        command = Command::new(program);
        command.env("PATH", path);
    }
    command.current_dir(home);
    // The default place of the daemon's socket must be this user's as well.
    command.env("XDG_RUNTIME_DIR", home);
    command
        .env_remove("UKTLS_SOCKET")
        .env_remove("SSLKEYLOGFILE");
    command
}

/// A running program, ended with the guard. Its output goes to files, so that it never waits for a reader.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pidfd: OwnedFd,
    outputs: tempfile::TempDir,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    /// What it is called in failures: its command line.
    pub name: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it wrote to stdout.
    pub stdout: Vec<u8>,
    /// Everything it wrote to stderr, as text.
    pub stderr: String,
}

impl Process {
    /// Starts `command` with `input` on its stdin.
    #[track_caller]
    pub fn start(mut command: Command, input: &[u8]) -> Process {
        let name = format!("{command:?}");
        let outputs = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str| File::create(outputs.path().join(name)).expect("an output file");
        command.stdout(file("stdout")).stderr(file("stderr"));
        command.stdin(match input {
            [] => Stdio::null(),
            input => {
                let path = outputs.path().join("stdin");
                let written = File::create(&path).and_then(|mut file| file.write_all(input));
                written
                    .and_then(|()| File::open(path))
                    .expect("an input file")
                    .into()
            }
        });
        Process::guard(name, command, outputs)
    }

    /// Starts `command` with a pipe as its stdin, which stays open until [`Process::input`]'s owner drops it.
    #[track_caller]
    pub fn start_piped(mut command: Command) -> Process {
        let name = format!("{command:?}");
        let outputs = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str| File::create(outputs.path().join(name)).expect("an output file");
        command.stdin(Stdio::piped());
        command.stdout(file("stdout")).stderr(file("stderr"));
        Process::guard(name, command, outputs)
    }

    #[track_caller]
    fn guard(name: String, mut command: Command, outputs: tempfile::TempDir) -> Process {
        // SAFETY: between fork and exec the closure makes one system call.
        unsafe {
            command.pre_exec(|| {
                Ok(rustix::process::set_parent_process_death_signal(Some(
                    Signal::KILL,
                ))?)
            });
        }
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        Process {
            name,
            child,
            pidfd: pidfd.expect("a child that was not waited for has a pidfd"),
            outputs,
        }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to the stdin of a program started by [`Process::start_piped`].
    #[track_caller]
    pub fn input(&mut self, bytes: &[u8]) {
        let stdin = self.child.stdin.as_mut().expect("started with a pipe");
        let written = stdin.write_all(bytes).and_then(|()| stdin.flush());
        written.unwrap_or_else(|error| panic!("{}: cannot write: {error}", self.describe()));
    }

    /// Ends the stdin of a program started by [`Process::start_piped`].
    pub fn end_input(&mut self) {
        self.child.stdin = None;
    }

    /// What it wrote to stdout so far.
    pub fn stdout(&self) -> Vec<u8> {
        std::fs::read(self.outputs.path().join("stdout")).unwrap_or_default()
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        let bytes = std::fs::read(self.outputs.path().join("stderr")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The first line on stdout, once it is there; panics if the program ends before.
    #[track_caller]
    pub fn first_line(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        wait_for(&format!("a line from {}", self.name), PATIENCE * 2, || {
            let ended = self.ended_within(Duration::ZERO);
            let stdout = String::from_utf8_lossy(&self.stdout()).into_owned();
            if let Some((line, _)) = stdout.split_once('\n') {
                return Some(line.to_owned());
            }
            assert!(!ended, "ended early: {}", self.describe());
            assert!(Instant::now() < deadline, "no line: {}", self.describe());
            None
        })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // It may have ended meanwhile; it was not waited for, so the number is still its own.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Whether it ends within `limit`; it stays a zombie until it is waited for.
    pub fn ended_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                ready => return ready.expect("poll of one descriptor") > 0,
            }
        }
    }

    /// Waits until it ends; panics after `limit`.
    #[track_caller]
    pub fn end(mut self, limit: Duration) -> Finished {
        assert!(
            self.ended_within(limit),
            "still running after {limit:?}: {}",
            self.describe()
        );
        let status = self.child.wait().expect("a child of this process");
        Finished {
            name: self.name.clone(),
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }

    /// Its command line and what it said, for failures.
    pub fn describe(&self) -> String {
        describe(&self.name, &self.stdout(), &self.stderr())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        self.signal(Signal::TERM);
        if !self.ended_within(Duration::from_secs(5)) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Itself, if the program ended with status 0; panics with what it said otherwise.
    #[track_caller]
    pub fn success(self) -> Finished {
        assert!(self.status.success(), "{}", self.describe());
        self
    }

    /// Its command line, status and what it said.
    pub fn describe(&self) -> String {
        format!(
            "{}\n{}",
            self.status,
            describe(&self.name, &self.stdout, &self.stderr)
        )
    }

    /// Asserts that it failed as `uktls` promises: status 1 and one line, which holds every one of `words`.
    #[track_caller]
    pub fn one_line(&self, words: &[&str]) {
        assert_eq!(self.status.code(), Some(1), "{}", self.describe());
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.describe());
        assert!(self.stderr.starts_with("uktls: "), "{}", self.describe());
        for word in words {
            assert!(
                self.stderr.contains(word),
                "no {word:?}: {}",
                self.describe()
            );
        }
    }
}

fn describe(name: &str, stdout: &[u8], stderr: &str) -> String {
    let shown = &stdout[..stdout.len().min(500)];
    format!(
        "{name}\nstdout ({} bytes): {}\nstderr: {stderr}",
        stdout.len(),
        shown.escape_ascii()
    )
}

/// Starts `command`, waits until it ends.
#[track_caller]
pub(crate) fn finish(command: Command, limit: Duration) -> Finished {
    Process::start(command, &[]).end(limit)
}

/// A file's content as text; empty if it is not there.
pub(crate) fn read_text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
