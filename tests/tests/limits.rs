//! What one client may take is bounded by options of the daemon, and who asks for more is told.

#![allow(missing_docs)]

use std::time::Duration;
use uktls::{TcpListener, UdpSocket};
use uktls_tests::{Daemon, Folder, Network, PATIENCE, Process, Serve, dense, wait_for};

fn address(port: u16) -> std::net::SocketAddr {
    format!("10.77.0.2:{port}").parse().expect("a literal")
}

#[test]
fn a_user_gets_as_many_sockets_as_said_and_one_more_when_one_is_closed() {
    let network = Network::new();
    let daemon = Daemon::start(&network, &["--max-sockets-per-user", "2"]);
    let client = daemon.client();
    let listener = TcpListener::bind_on(&client, address(1)).expect("the first");
    let _second = UdpSocket::bind_on(&client, address(1), None).expect("the second");
    let error = TcpListener::bind_on(&client, address(2)).expect_err("the third");
    assert_eq!(error.to_string(), "Too many open files (os error 24)");
    drop(listener);
    wait_for("room for another", PATIENCE, || {
        TcpListener::bind_on(&client, address(2)).ok()
    });
}

#[test]
fn the_daemon_has_as_many_sockets_as_said() {
    let network = Network::new();
    let daemon = Daemon::start(&network, &["--max-sockets", "1"]);
    let client = daemon.client();
    let _first = TcpListener::bind_on(&client, address(1)).expect("the first");
    let error = TcpListener::bind_on(&client, address(2)).expect_err("the second");
    assert_eq!(
        error.to_string(),
        "Too many open files in system (os error 23)"
    );
}

#[test]
fn a_client_too_many_is_told_so_in_one_line() {
    let network = Network::new();
    for option in ["--max-clients", "--max-clients-per-user"] {
        let daemon = Daemon::start(&network, &[option, "1"]);
        let client = daemon.client();
        client.capabilities().expect("the only client");
        let stat = Process::start(daemon.uktls(&["stat"]), &[]).end(PATIENCE);
        stat.one_line(&["Too many users"]);
        daemon.stop().success();
    }
}

/// A file to a client that reads too slowly for it fills what the limit says and no more, of one socket or of its user.
#[test]
fn sealed_bytes_wait_in_no_more_memory_than_said() {
    const KIB: u64 = 1024;
    for option in ["--max-send-memory", "--max-memory-per-user", "--max-memory"] {
        let (network, files) = (Network::new(), Folder::new());
        dense(&files.join("big"), 64);
        let daemon = Daemon::start(&network, &[option, "256K"]);
        let serve = Serve::start(&daemon, files.path(), &[]);
        let curl = serve.curl(&network, "/big", &["--limit-rate", "1M"]);
        let curl = Process::start(curl, &[]);
        let mut most = 0;
        wait_for("a socket that is as full as it may be", PATIENCE, || {
            assert!(!curl.ended_within(Duration::ZERO), "{}", curl.describe());
            let stat = daemon.sockets_in_state("ESTAB");
            let memory = stat.first()?["socket"]["memory"].as_u64()?;
            most = memory.max(most);
            (most >= 256 * KIB).then_some(())
        });
        // It stays so while the file goes on: limits can be passed by a chunk of 256 KiB, and by what is received.
        let sent = || {
            let stat = daemon.sockets_in_state("ESTAB");
            stat[0]["socket"]["tcp"]["bytes_sent"]
                .as_u64()
                .expect("a count")
        };
        let until = sent() + 2048 * KIB;
        wait_for("two further MiB", PATIENCE, || {
            let stat = daemon.sockets_in_state("ESTAB");
            let memory = stat[0]["socket"]["memory"].as_u64().expect("a count");
            most = memory.max(most);
            (sent() > until).then_some(())
        });
        assert!(most <= 576 * KIB, "{option}: {most} bytes");
        drop(curl);
        daemon.stop().success();
    }
}

#[test]
fn limits_that_make_no_sense_are_usage_errors() {
    let network = Network::new();
    for words in [
        ["--max-memory", "0"],
        ["--max-send-memory", "2T"],
        ["--max-sockets", "0"],
        ["--helper-threads", "65"],
    ] {
        let mut command = network.uktls(&["up"]);
        command.args(words);
        let finished = Process::start(command, &[]).end(PATIENCE);
        assert_eq!(finished.status.code(), Some(2), "{}", finished.describe());
    }
    // An error of another kind, so that nothing else is at fault here.
    let mut command = network.uktls(&["up", "--max-memory", "1M"]);
    command.args(["--mtu", "1"]);
    Process::start(command, &[])
        .end(PATIENCE)
        .one_line(&["--mtu"]);
}
