//! Runs a test in a network namespace of its own, so that nothing of the machine's network is touched and nothing is left behind.
//!
//! The test program starts itself once more, in the namespace, for that one test. (Unsharing in a thread would do as root only: a user
//! namespace can be entered by a process with one thread.)

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::os::unix::process::CommandExt;
use std::process::Command;

const INSIDE: &str = "UKTLS_TEST_INSIDE";

/// Which namespaces the test gets.
#[derive(Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "not every test program uses both")]
pub(crate) enum Namespace {
    /// A network namespace, and a user namespace around it where the first alone is not permitted.
    Network,
    /// Both, whoever runs the test.
    UserAndNetwork,
}

/// Runs `body` for the test function `name` (its path as `cargo test` prints it) in fresh namespaces. Panics if it fails there.
pub(crate) fn run(name: &str, namespace: Namespace, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == name) {
        return body();
    }
    let uid_map = format!("0 {} 1", rustix::process::getuid().as_raw());
    let gid_map = format!("0 {} 1", rustix::process::getgid().as_raw());
    let mut command =
        Command::new(std::env::current_exe().expect("a test program knows its own path"));
    command
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, name);
    // SAFETY: between fork and exec the closure makes system calls only; the strings were formatted before.
    unsafe { command.pre_exec(move || enter(namespace, &uid_map, &gid_map)) };
    let output = command.output().expect(
        "the test program starts in a namespace of its own (needs user namespaces or root)",
    );
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && out.contains("1 passed"),
        "{name} in its namespace:\n{out}\n{err}"
    );
}

fn enter(namespace: Namespace, uid_map: &str, gid_map: &str) -> std::io::Result<()> {
    if namespace == Namespace::Network {
        // SAFETY: CLONE_NEWNET leaves memory and descriptors shared as they were.
        match unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
            Err(Errno::PERM) => {}
            outcome => return Ok(outcome?),
        }
    }
    // SAFETY: as above.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }?;
    write_file(c"/proc/self/setgroups", "deny")?;
    write_file(c"/proc/self/uid_map", uid_map)?;
    write_file(c"/proc/self/gid_map", gid_map)?;
    Ok(())
}

fn write_file(path: &std::ffi::CStr, text: &str) -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let file = open(path, OFlags::WRONLY, Mode::empty())?;
    rustix::io::write(file, text.as_bytes())?;
    Ok(())
}
