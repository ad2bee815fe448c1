//! Programs that a command starts, waits for and never leaves behind.
//!
//! Every wait has a limit and ends early on SIGINT, SIGTERM and SIGHUP with an error, so that the caller's ordinary way out, dropping
//! its [`Child`]ren, is the only clean-up there is. Should this process be killed outright, the kernel ends the children
//! (PR_SET_PDEATHSIG).

use super::{Context, Failure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(3);

/// How often a condition without a descriptor is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Starts programs and waits for what they do, with an ear for signals.
#[derive(Debug)]
pub(crate) struct Supervisor {
    signalled: UnixStream,
    /// Where the programs' stderr goes, a file each.
    logs: PathBuf,
}

impl Supervisor {
    /// Takes over SIGINT, SIGTERM and SIGHUP. The programs' stderr goes to files in `logs`.
    pub(crate) fn new(logs: &Path) -> Result<Supervisor, Failure> {
        let (signalled, write) =
            UnixStream::pair().context(|| "cannot make a socket pair".into())?;
        for signal in [
            signal_hook::consts::SIGINT,
            signal_hook::consts::SIGTERM,
            signal_hook::consts::SIGHUP,
        ] {
            write
                .try_clone()
                .and_then(|write| signal_hook::low_level::pipe::register(signal, write))
                .context(|| "cannot handle signals".into())?;
        }
        Ok(Supervisor {
            signalled,
            logs: logs.to_owned(),
        })
    }

    /// Starts `command`, called `name` in errors, with nothing on stdin and its stdout to be read by [`line`](Self::line).
    pub(crate) fn spawn(&self, name: &str, command: Command) -> Result<Child, Failure> {
        self.spawn_between(name, command, Stdio::null(), Stdio::piped())
    }

    /// As [`spawn`](Self::spawn), with another stdin and stdout.
    pub(crate) fn spawn_between(
        &self,
        name: &str,
        mut command: Command,
        stdin: Stdio,
        stdout: Stdio,
    ) -> Result<Child, Failure> {
        let log = self
            .logs
            .join(format!("{}.log", name.replace([' ', '/'], "-")));
        let stderr = File::create(&log).context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr)
            // A terminal's ^C must not reach them before the supervisor has seen it.
            .process_group(0);
        // SAFETY: the closure runs between fork and exec and makes one system call, which neither allocates nor takes locks.
        unsafe {
            command.pre_exec(|| {
                Ok(rustix::process::set_parent_process_death_signal(Some(
                    Signal::TERM,
                ))?)
            });
        }
        let mut process = command
            .spawn()
            .context(|| format!("cannot start {name} ({})", command.get_program().display()))?;
        let stdout = process.stdout.take();
        let pid = Pid::from_child(&process);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty());
        let mut child = Child {
            name: name.to_owned(),
            process,
            pidfd: None,
            stdout: stdout.map(OwnedFd::from).map(File::from),
            unread: Vec::new(),
            log,
        };
        child.pidfd = Some(pidfd.context(|| format!("cannot watch {name}"))?);
        Ok(child)
    }

    /// Everything that `child` writes to its stdout until it closes it.
    pub(crate) fn rest(&self, child: &mut Child, limit: Duration) -> Result<String, Failure> {
        let deadline = Instant::now() + limit;
        while let Some(stdout) = &mut child.stdout {
            if !self.ready(stdout, deadline)? {
                return Err(child.failure(format_args!("is not done after {} s", limit.as_secs())));
            }
            let mut piece = [0; 4096];
            match stdout
                .read(&mut piece)
                .context(|| format!("cannot read from {}", child.name))?
            {
                0 => break,
                length => child.unread.extend_from_slice(&piece[..length]),
            }
        }
        let text = std::mem::take(&mut child.unread);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The next line that `child` writes to its stdout.
    pub(crate) fn line(&self, child: &mut Child, limit: Duration) -> Result<String, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = child.unread.iter().position(|&byte| byte == b'\n') {
                let rest = child.unread.split_off(end + 1);
                let line = std::mem::replace(&mut child.unread, rest);
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let Some(stdout) = &mut child.stdout else {
                return Err(Failure::new(format_args!(
                    "{}: nothing to read",
                    child.name
                )));
            };
            if !self.ready(stdout, deadline)? {
                return Err(child.failure(format_args!("said nothing for {} s", limit.as_secs())));
            }
            let mut piece = [0; 4096];
            let got = stdout
                .read(&mut piece)
                .context(|| format!("cannot read from {}", child.name))?;
            if got == 0 {
                let ended = self.end_within(child, deadline)?;
                return Err(child.failure(match ended {
                    true => "ended early",
                    false => "closed its output",
                }));
            }
            child.unread.extend_from_slice(&piece[..got]);
        }
    }

    /// Waits until `child` has ended, and leaves it to be looked at in /proc until [`Child::reap`].
    pub(crate) fn ended(&self, child: &mut Child, limit: Duration) -> Result<(), Failure> {
        if self.end_within(child, Instant::now() + limit)? {
            Ok(())
        } else {
            Err(child.failure(format_args!("is not done after {} s", limit.as_secs())))
        }
    }

    /// Waits until `condition` gives something. `what` completes the sentence "… did not happen within 5 s". A
    /// `needed` program that ends meanwhile ends the wait.
    pub(crate) fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        needed: &mut [&mut Child],
        mut condition: impl FnMut() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = condition()? {
                return Ok(found);
            }
            for child in needed.iter_mut() {
                if child.is_gone() {
                    return Err(child.failure(format_args!("ended while waiting for {what}")));
                }
            }
            if Instant::now() >= deadline {
                let seconds = limit.as_secs();
                return Err(match needed.first() {
                    Some(child) => child.failure(format_args!("no {what} within {seconds} s")),
                    None => Failure::new(format_args!("no {what} within {seconds} s")),
                });
            }
            self.pause(LOOK)?;
        }
    }

    /// Lets this long pass, unless a signal comes.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + time;
        let mut fds = [PollFd::new(&self.signalled, PollFlags::IN)];
        poll(&mut fds, deadline)?;
        interrupted(&fds[0])
    }

    fn end_within(&self, child: &Child, deadline: Instant) -> Result<bool, Failure> {
        match &child.pidfd {
            Some(pidfd) => self.ready(pidfd, deadline),
            None => Ok(true),
        }
    }

    /// Whether `fd` became readable before the deadline.
    fn ready(&self, fd: &impl AsFd, deadline: Instant) -> Result<bool, Failure> {
        let mut fds = [
            PollFd::new(&self.signalled, PollFlags::IN),
            PollFd::new(fd, PollFlags::IN),
        ];
        poll(&mut fds, deadline)?;
        interrupted(&fds[0])?;
        Ok(!fds[1].revents().is_empty())
    }
}

fn poll(fds: &mut [PollFd<'_>], deadline: Instant) -> Result<(), Failure> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match rustix::event::poll(fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(|_| ()).context(|| "cannot wait".into()),
        }
    }
}

fn interrupted(signalled: &PollFd<'_>) -> Result<(), Failure> {
    if signalled.revents().is_empty() {
        Ok(())
    } else {
        Err(Failure::new("interrupted by a signal"))
    }
}

/// A program that was started, and is ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    process: std::process::Child,
    pidfd: Option<OwnedFd>,
    stdout: Option<File>,
    unread: Vec<u8>,
    log: PathBuf,
}

impl Child {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Takes the exit status of a program that has [ended](Supervisor::ended); an error unless it was success.
    pub(crate) fn reap(mut self) -> Result<(), Failure> {
        let status = self
            .process
            .wait()
            .context(|| format!("cannot wait for {}", self.name))?;
        if status.success() {
            Ok(())
        } else {
            Err(self.failure(format_args!("failed ({status})")))
        }
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(self) {
        drop(self);
    }

    /// What happened, with the program's own last words.
    pub(crate) fn failure(&self, what: impl std::fmt::Display) -> Failure {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        match log.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(last) => {
                let last = last.strip_prefix("uktls: ").unwrap_or(last);
                Failure::new(format_args!("{} {what}: {last}", self.name))
            }
            None => Failure::new(format_args!("{} {what}", self.name)),
        }
    }

    /// Whether it has ended; it stays a zombie.
    fn is_gone(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let pid = Pid::from_child(&self.process);
        !matches!(rustix::process::waitid(WaitId::Pid(pid), options), Ok(None))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Once waited for, the number may be another's: try_wait remembers.
        if !matches!(self.process.try_wait(), Ok(None)) {
            return;
        }
        let pid = Pid::from_child(&self.process);
        let asked = rustix::process::kill_process(pid, Signal::TERM).is_ok();
        if asked && let Some(pidfd) = &self.pidfd {
            let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
            let _ = poll(&mut fds, Instant::now() + GRACE);
        }
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// The program `name` in `PATH` or where administrators' programs live.
///
/// # Errors
/// One line that names the Debian package to install.
pub(crate) fn program(name: &str, package: &str) -> Result<PathBuf, Failure> {
    find(name).ok_or_else(|| {
        Failure::new(format_args!(
            "{name} is not installed; on Debian: apt-get install {package}"
        ))
    })
}

/// The program `name`, if it is there.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// This very program, for subcommands of its own.
pub(crate) fn ourselves() -> Result<Command, Failure> {
    std::env::current_exe()
        .map(Command::new)
        .context(|| "cannot find this program's own file".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS_5: Duration = Duration::from_secs(5);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_come_one_by_one_and_an_early_end_carries_the_last_words() {
        let logs = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new(logs.path()).unwrap();
        let mut child = supervisor
            .spawn(
                "talker",
                shell("printf 'one\\ntwo\\n'; echo 'it broke' >&2; exit 3"),
            )
            .unwrap();
        assert_eq!(supervisor.line(&mut child, SECONDS_5).unwrap(), "one");
        assert_eq!(supervisor.line(&mut child, SECONDS_5).unwrap(), "two");
        let failure = supervisor.line(&mut child, SECONDS_5).unwrap_err();
        assert_eq!(failure.to_string(), "talker ended early: it broke");
        supervisor.ended(&mut child, SECONDS_5).unwrap();
        let failure = child.reap().unwrap_err();
        assert_eq!(
            failure.to_string(),
            "talker failed (exit status: 3): it broke"
        );
    }

    #[test]
    fn a_program_that_hangs_is_named_and_ended() {
        let logs = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new(logs.path()).unwrap();
        let mut child = supervisor
            .spawn("sleeper", shell("exec sleep 600"))
            .unwrap();
        let pid = Pid::from_child(&child.process);
        let failure = supervisor
            .ended(&mut child, Duration::from_millis(20))
            .unwrap_err();
        assert_eq!(failure.to_string(), "sleeper is not done after 0 s");
        child.stop();
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let failure = program("uktls-no-such-program", "some-package").unwrap_err();
        assert_eq!(
            failure.to_string(),
            "uktls-no-such-program is not installed; on Debian: apt-get install some-package"
        );
    }
}
