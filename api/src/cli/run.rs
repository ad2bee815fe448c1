//! `uktls run`: a program inside a network of its own.
//!
//! Three processes. The *outer* one, which the user started, makes a private folder, starts the inner one in a fresh
//! user and network namespace, passes signals on and removes the folder. The *inner* one is the same program again
//! (told apart by an environment variable): it brings the stack up and starts the command. The *command* runs with
//! `UKTLS_SOCKET` set, and with every capability inside the namespace, so that `ip` and `tc` work.
//!
//! Nothing is left behind, whoever is killed: the kernel ends the inner process with the outer one and the command with
//! the inner one (`PR_SET_PDEATHSIG`), daemons that the command started become the inner process's children
//! (`PR_SET_CHILD_SUBREAPER`) and are killed at its end, and the network namespace goes with its last process.

use super::host::Host;
use super::options::{Cidr, StackOptions};
use super::{Context, Failure, Globals, Outcome, up};
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process, set_child_subreaper,
    set_parent_process_death_signal, wait,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use signal_hook::consts::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin};
use std::ffi::OsString;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use uktls::paths::SOCKET_VARIABLE;

/// Tells the inner process what it is, and where its folder is.
const INNER_VARIABLE: &str = "UKTLS_RUN_FOLDER";
/// The shells' numbers for a command that cannot be run, or is not there.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Signals passed on to the command.
const PASSED_ON: [i32; 8] = [
    SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCONT, SIGWINCH,
];
/// IPv6 inside, unless the MTU is too small for it.
const DEFAULT_ADDRESS_V6: Cidr = Cidr {
    ip: IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2)),
    prefix: 64,
};
const MIN_MTU_V6: usize = 1280;
/// Rounds of killing what the command left running; each round ends a generation of children.
const KILL_ROUNDS: usize = 64;

/// Run a command in a network namespace of its own, with a stack on the other side of its interface. No root needed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  uktls run -- sh                  look around: ip addr; ping 10.77.0.2; uktls stat
  uktls run -- uktls get -k https://10.77.0.1/      (with a server in the same namespace)
  uktls run --mtu 9000 --pcap /tmp/x.pcapng -- ./my-test

Inside, the kernel is 10.77.0.1 and the stack 10.77.0.2 (and fd77::1, fd77::2), on the
interface uktls0; nothing else of the machine's network is there. UKTLS_SOCKET is set, so
other uktls commands find the stack. The exit status is the command's; 128 and the signal's
number if one ended it; 126 or 127 if it could not be started; 1 if there is no network.")]
pub(crate) struct Args {
    #[command(flatten)]
    stack: StackOptions,
    /// The command and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
}

/// The outer process's part, or the inner one's.
pub(crate) fn run(args: Args, globals: &Globals) -> Outcome {
    match std::env::var_os(INNER_VARIABLE) {
        None => outer(&args),
        Some(folder) => inner(args, globals, Path::new(&folder)),
    }
}

// ---- outer ----------------------------------------------------------------------------------------------------------

fn outer(args: &Args) -> Outcome {
    // Before anything is made: what is wrong with the options alone.
    args.stack.addresses()?;
    let mut signals = listen()?;
    let folder = tempfile::Builder::new()
        .prefix("uktls-run-")
        .tempdir()
        .context(|| "cannot make a temporary folder".into())?;
    let inner = spawn_in_namespace(folder.path())?;
    let status = supervise(&mut signals, inner, |_| {})?;
    // A failure to remove it would hide the command's own status; the folder is the system's temporary one anyway.
    drop(folder);
    Ok(ExitCode::from(status))
}

/// Starts this program again with the same arguments in a fresh namespace.
fn spawn_in_namespace(folder: &Path) -> Result<Pid, Failure> {
    let said = "cannot make a pipe";
    let (unshared, mut say_unshared) = io::pipe().context(|| said.into())?;
    let (mut mapped, say_mapped) = io::pipe().context(|| said.into())?;
    let root = rustix::process::geteuid().is_root();
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("uktls")
        .args(std::env::args_os().skip(1))
        .env(INNER_VARIABLE, folder);
    let outer = getpid();
    let become_inner = move || {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        if getppid() != Some(outer) {
            return Err(ErrorKind::NotFound.into()); // the outer process died just now
        }
        // SAFETY: FILES is not among the flags.
        let both = unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) };
        let in_user_namespace = match both {
            // Root can do without a user namespace where they are switched off.
            Err(_) if root => {
                // SAFETY: FILES is not among the flags.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
                false
            }
            other => other.map(|()| true)?,
        };
        // The pid is the same seen from outside: there is no new PID namespace.
        let pid = getpid().as_raw_nonzero().get();
        say_unshared.write_all(&(if in_user_namespace { pid } else { 0 }).to_ne_bytes())?;
        mapped.read_exact(&mut [0])
    };
    // SAFETY: the closure runs between fork and exec and only makes system calls: no allocation, no lock.
    unsafe { command.pre_exec(become_inner) };
    let mapper = std::thread::spawn(move || map_ids(unshared, say_mapped, root));
    let spawned = command.spawn();
    // Closes this process's copy of the pipes, so that the mapper ends if the child did not get far enough to speak.
    drop(command);
    let mapping = mapper
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the mapper panicked")));
    mapping.context(|| "cannot map this user into a namespace of its own".into())?;
    let child = spawned.context(|| {
        "cannot make a user and network namespace (unprivileged ones may be switched off: see \
         `sysctl user.max_user_namespaces kernel.unprivileged_userns_clone`, or run as root)"
            .into()
    })?;
    Ok(Pid::from_child(&child))
}

/// Waits for the child to have its namespace, maps this user into it and lets it go on.
///
/// Root keeps all ids, so that programs which change their user (nginx) work; anybody else becomes root inside.
fn map_ids(mut unshared: PipeReader, mut say_mapped: PipeWriter, root: bool) -> io::Result<()> {
    let mut pid = [0; 4];
    if let Err(error) = unshared.read_exact(&mut pid) {
        // The child ended before; its own error says why.
        return if error.kind() == ErrorKind::UnexpectedEof {
            Ok(())
        } else {
            Err(error)
        };
    }
    let pid = i32::from_ne_bytes(pid);
    if pid != 0 {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        if !(root && map_all(&proc).is_ok()) {
            std::fs::write(proc.join("setgroups"), "deny")?;
            std::fs::write(
                proc.join("uid_map"),
                format!("0 {} 1", rustix::process::geteuid().as_raw()),
            )?;
            std::fs::write(
                proc.join("gid_map"),
                format!("0 {} 1", rustix::process::getegid().as_raw()),
            )?;
        }
    }
    match say_mapped.write_all(&[1]) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()), // the child is gone
        other => other,
    }
}

/// Every id that exists here is the same one inside.
fn map_all(proc: &Path) -> io::Result<()> {
    for map in ["gid_map", "uid_map"] {
        let own = std::fs::read_to_string(Path::new("/proc/self").join(map))?;
        let lines = own.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (first, _, count) = (words.next()?, words.next()?, words.next()?);
            Some(format!("{first} {first} {count}\n"))
        });
        std::fs::write(proc.join(map), lines.collect::<String>())?;
    }
    Ok(())
}

// ---- inner ----------------------------------------------------------------------------------------------------------

fn inner(mut args: Args, globals: &Globals, folder: &Path) -> Outcome {
    let outcome = inside(&mut args, globals, folder);
    // The outer process removes it too; but it may have been killed.
    if let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", folder.display());
    }
    outcome
}

fn inside(args: &mut Args, globals: &Globals, folder: &Path) -> Outcome {
    let outer = getppid();
    let mut signals = listen()?;
    set_child_subreaper(Some(getpid())).context(|| "cannot adopt the command's children".into())?;
    if args.stack.addr6.is_none() && args.stack.mtu >= MIN_MTU_V6 {
        args.stack.addr6 = Some(DEFAULT_ADDRESS_V6);
    }
    let socket = folder.join("uktls.sock");
    let host = Host::start(&args.stack, &socket)?;
    if globals.verbose > 0 {
        eprintln!("uktls: {}", up::message(&host, &socket));
    }
    let result = run_command(args, &socket, &mut signals, outer);
    kill_leftovers();
    host.stop()?;
    result
}

fn run_command(
    args: &Args,
    socket: &Path,
    signals: &mut SignalsInfo<WithOrigin>,
    outer: Option<Pid>,
) -> Outcome {
    let mut command = Command::new(&args.command[0]);
    command
        .args(&args.command[1..])
        .env(SOCKET_VARIABLE, socket)
        .env_remove(INNER_VARIABLE);
    let inner = getpid();
    let die_with_parent = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() == Some(inner) {
            Ok(())
        } else {
            Err(ErrorKind::NotFound.into())
        }
    };
    // SAFETY: the closure runs between fork and exec and makes two system calls.
    unsafe { command.pre_exec(die_with_parent) };
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let name = args.command[0].to_string_lossy();
            eprintln!(
                "uktls: {}",
                Err::<(), _>(error.to_string())
                    .context(|| format!("cannot run {name}"))
                    .unwrap_err()
            );
            let status = if error.kind() == ErrorKind::NotFound {
                NOT_FOUND
            } else {
                CANNOT_RUN
            };
            return Ok(ExitCode::from(status));
        }
    };
    let orphaned = |command: Pid| {
        // The signal may be the kernel's word that the outer process is gone: then nobody waits, and nothing may stay.
        if getppid() != outer {
            pass_on(command, Signal::KILL);
        }
    };
    let status = supervise(signals, Pid::from_child(&child), orphaned)?;
    Ok(ExitCode::from(status))
}

/// Ends what the command left running in the background, generation by generation.
fn kill_leftovers() {
    for _ in 0..KILL_ROUNDS {
        let children = children();
        if children.is_empty() {
            return;
        }
        for child in children {
            pass_on(child, Signal::KILL);
        }
        // Their own children come to this process as they end.
        match wait(WaitOptions::empty()) {
            Ok(_) => while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {},
            Err(_) => return,
        }
    }
}

/// The living children of this process.
fn children() -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = getpid().as_raw_nonzero().get();
    let parent = |pid: i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // pid (name) state ppid …; the name may hold anything, parentheses too.
        stat.rsplit_once(')')?
            .1
            .split_whitespace()
            .nth(1)?
            .parse()
            .ok()
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| parent(pid) == Some(own))
        .filter_map(Pid::from_raw)
        .collect()
}

// ---- both -----------------------------------------------------------------------------------------------------------

fn listen() -> Result<SignalsInfo<WithOrigin>, Failure> {
    SignalsInfo::new(PASSED_ON.iter().chain(&[SIGCHLD]))
        .context(|| "cannot wait for signals".into())
}

/// Passes signals on to `child` until it ends; reaps whatever else ends meanwhile. Gives the exit status.
fn supervise(
    signals: &mut SignalsInfo<WithOrigin>,
    child: Pid,
    mut noticed: impl FnMut(Pid),
) -> Result<u8, Failure> {
    loop {
        // First, since it may have ended before anybody listened.
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((ended, status))) if ended == child => return Ok(exit_status(status)),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(errno) => {
                    return Err(Failure::new(format_args!(
                        "cannot wait for the command: {errno}"
                    )));
                }
            }
        }
        for origin in signals.wait() {
            if origin.signal == SIGCHLD {
                continue;
            }
            if let Some(signal) = Signal::from_named_raw(origin.signal)
                && !went_to_all(&origin)
            {
                pass_on(child, signal);
            }
            noticed(child);
        }
    }
}

/// What a terminal sends (Ctrl-C, Ctrl-\, a hang-up, a new size) reaches the child as well, which is in the same group.
fn went_to_all(origin: &Origin) -> bool {
    origin.cause == Cause::Kernel
}

fn pass_on(to: Pid, signal: Signal) {
    // It may have ended meanwhile.
    let _ = kill_process(to, signal);
}

/// As shells have it.
fn exit_status(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}
