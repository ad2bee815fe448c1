//! Bad input: one line that says what is wrong and what to do, and exit status 1. Those that need a stack or a device; the
//! others are tests of the program's own crate.

#![allow(missing_docs)]

use std::process::Command;
use uktls_tests::{Daemon, Folder, Network, PATIENCE, Process, Serve, pattern, tool};

fn fails(command: Command, words: &[&str]) {
    Process::start(command, &[]).end(PATIENCE).one_line(words);
}

#[test]
fn a_second_daemon_on_the_same_socket_or_interface_is_refused() {
    let network = Network::new();
    let daemon = Daemon::start(&network, &[]);
    fails(
        daemon.uktls(&["up", "--tun", "other0"]),
        &["already", "--socket"],
    );
    assert!(!network.has_interface("other0"));
    let folder = Folder::new();
    let mut second = network.uktls(&["up", "--socket"]);
    second.arg(folder.join("second.sock"));
    fails(second, &["uktls0"]);
    // The first one has noticed nothing.
    assert!(network.has_interface("uktls0"));
    assert!(!daemon.stat().is_empty());
}

#[test]
fn a_busy_port_and_an_address_of_somebody_else_are_named() {
    let (network, files) = (Network::new(), Folder::new());
    files.write("file", &pattern(1000));
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    let listen = |address: &str| {
        let mut second = daemon.uktls(&["serve", "--listen", address]);
        second.arg(files.path());
        second
    };
    fails(listen("10.77.0.2:443"), &["10.77.0.2:443", "another port"]);
    fails(listen("10.77.0.3:443"), &["10.77.0.3:443", "address"]);
    assert!(serve.fetch(&network, "/file", &[]) == pattern(1000));
}

#[test]
fn a_missing_device_node_is_named() {
    let (network, folder) = (Network::new(), Folder::new());
    // A mount namespace of its own, in which /dev/net is an empty folder.
    let mut command = network.command("unshare");
    let script = "mount -t tmpfs none /dev/net && exec \"$0\" up --socket \"$1\"";
    command.args(["--mount", "sh", "-c", script]);
    command.arg(uktls_tests::uktls_program());
    command.arg(folder.join("uktls.sock"));
    fails(command, &["/dev/net/tun"]);
}

#[test]
fn without_the_privilege_up_names_the_command_that_needs_none() {
    let folder = Folder::new();
    let mut command = Command::new(tool("setpriv"));
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]);
    command.arg(uktls_tests::uktls_program());
    command
        .args(["up", "--socket"])
        .arg(folder.join("uktls.sock"));
    fails(command, &["CAP_NET_ADMIN", "uktls run"]);
}
