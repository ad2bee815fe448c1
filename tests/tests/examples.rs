//! The examples that need a stack do what they say.

#![allow(missing_docs)]

use std::process::Command;
use std::time::Duration;
use uktls_tests::{
    Certificate, Daemon, Folder, HOST, Network, PATIENCE, Process, example, uktls_program, wait_for,
};

#[test]
fn an_echo_on_the_ktls_calls_talks_to_openssl() {
    let mut run = Command::new(uktls_program());
    run.args(["run", "--"]).arg(example("ktls_echo"));
    let finished = Process::start(run, &[]).end(PATIENCE).success();
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    for line in [
        "server: read  \"one line, in the clear to both programs\"",
        "client: got   \"ONE LINE, IN THE CLEAR TO BOTH PROGRAMS\"",
        "client: OpenSSL agreed on TLSv1.3",
    ] {
        assert!(said.contains(line), "{}", finished.describe());
    }
    // The stack did the sealing and the opening.
    let counted = said.lines().find_map(|line| line.strip_prefix("stack:  "));
    let counted = counted.unwrap_or_else(|| panic!("{}", finished.describe()));
    assert!(!counted.starts_with("0 records sealed"), "{counted}");
    assert!(counted.contains(" 1 opened"), "{counted}");
}

/// A daemon in a network, and a server of OpenSSL's on the host that answers each line with the line reversed.
fn answering_server(network: &Network, files: &Folder, words: &[&str], port: u16) -> Process {
    let certificate = Certificate::make(files);
    let mut command = network.command("openssl");
    command.args(["s_server", "-quiet", "-accept", &format!("{HOST}:{port}")]);
    command.arg("-cert").arg(&certificate.cert);
    command.arg("-key").arg(&certificate.key);
    command.args(words);
    Process::start_piped(command)
}

/// The example with these words, on the daemon.
fn on(daemon: &Daemon<'_>, name: &str, words: &[&str]) -> Process {
    let mut command = daemon.network.command(example(name));
    command.env("UKTLS_SOCKET", daemon.socket()).args(words);
    Process::start(command, &[])
}

#[test]
fn forty_lines_of_tls() {
    let (network, files) = (Network::new(), Folder::new());
    let daemon = Daemon::start(&network, &[]);
    let server = answering_server(&network, &files, &["-tls1_2", "-rev"], 4433);
    network.wait_for_listener(4433, &server);
    let run = on(&daemon, "af_ktls_tls", &["10.77.0.1:4433"]);
    let finished = run.end(PATIENCE).success();
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    for line in [
        "agreed on ECDHE-ECDSA-AES128-GCM-SHA256",
        "answered: ereh raelc eht ni ,enil a",
        "next record: number 2",
        "closed by alert: true",
    ] {
        assert!(said.contains(line), "{line}: {}", finished.describe());
    }
}

#[test]
fn forty_lines_of_dtls() {
    let (network, files) = (Network::new(), Folder::new());
    let daemon = Daemon::start(&network, &[]);
    let certificate = Certificate::make(&files);
    let mut command = network.command("gnutls-serv");
    command.args(["--udp", "--echo", "--port", "4433", "--quiet"]);
    command.arg("--x509certfile").arg(&certificate.cert);
    command.arg("--x509keyfile").arg(&certificate.key);
    let _server = Process::start_piped(command);
    let run = on(&daemon, "af_ktls_dtls", &["10.77.0.1:4433"]);
    let finished = run.end(PATIENCE).success();
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    for line in [
        "answered: a message, in the clear here",
        "next record: epoch 1, number 2",
    ] {
        assert!(said.contains(line), "{line}: {}", finished.describe());
    }
}

#[test]
fn a_dtls_socket_with_a_server_of_its_own() {
    let mut run = Command::new(uktls_program());
    run.args(["run", "--"]).arg(example("dtls_ktls"));
    let finished = Process::start(run, &[]).end(PATIENCE).success();
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    let line = "\"is a datagram\" came back as \"IS A DATAGRAM\"";
    assert!(said.contains(line), "{}", finished.describe());
}

#[test]
fn a_relay_between_dtls_and_tls() {
    let (network, files) = (Network::new(), Folder::new());
    let daemon = Daemon::start(&network, &[]);
    let mut left = answering_server(&network, &files, &["-dtls1_2", "-listen"], 4433);
    let mut right = answering_server(&network, &files, &["-tls1_2"], 4434);
    network.wait_for_listener(4434, &right);
    let relay = on(
        &daemon,
        "relay",
        &["dtls:10.77.0.1:4433", "tls:10.77.0.1:4434"],
    );
    wait_for("the relay shakes hands", PATIENCE, || {
        assert!(!relay.ended_within(Duration::ZERO), "{}", relay.describe());
        relay.stdout().starts_with(b"relaying\n").then_some(())
    });
    for round in 0..3 {
        let (to_right, to_left) = (format!("right {round}\n"), format!("left {round}\n"));
        left.input(to_right.as_bytes());
        wait_for("what is said left is heard right", PATIENCE, || {
            right.stdout().ends_with(to_right.as_bytes()).then_some(())
        });
        right.input(to_left.as_bytes());
        wait_for("what is said right is heard left", PATIENCE, || {
            left.stdout().ends_with(to_left.as_bytes()).then_some(())
        });
    }
    assert_eq!(right.stdout(), b"right 0\nright 1\nright 2\n");
    right.end_input();
    drop(right);
    let finished = relay.end(PATIENCE).success();
    assert!(
        String::from_utf8_lossy(&finished.stdout).contains("right ended"),
        "{}",
        finished.describe()
    );
}
