//! `uktls dtls-send`, `dtls-recv` and `dtls-echo`, as server and as client, with the programs of OpenSSL and GnuTLS at the other end.

#![allow(missing_docs)]

use rustix::process::Signal;
use serde_json::Value;
use std::path::Path;
use uktls_tests::{
    CIPHERS, Certificate, Daemon, Finished, Folder, HOST, Network, PATIENCE, Process, STACK,
    checksum, pattern, wait_for,
};

/// What a datagram of 1,500 bytes has room for beside the headers of IPv4, UDP and an AES-GCM record.
const PAYLOAD: usize = 1500 - 28 - 37;

/// An association of the host's with a server on it, by these words of `openssl`.
fn s_server(network: &Network, certificate: &Certificate, options: &[&str]) -> Process {
    let mut command = network.command("openssl");
    command.args(["s_server", "-dtls1_2", "-quiet", "-listen"]);
    command.args(["-accept", &format!("{HOST}:4433")]);
    command.arg("-cert").arg(&certificate.cert);
    command.arg("-key").arg(&certificate.key);
    command.args(options);
    Process::start_piped(command)
}

fn s_client(network: &Network, options: &[&str]) -> Process {
    let mut command = network.command("openssl");
    command.args(["s_client", "-dtls1_2", "-quiet"]);
    command.args(["-connect", &format!("{STACK}:4433")]);
    command.args(options);
    Process::start_piped(command)
}

/// `uktls` with these words on the daemon; a server has said that it listens when this is done.
fn start(daemon: &Daemon<'_>, words: &[&str]) -> Process {
    let mut command = daemon.uktls(words);
    command.arg("--json");
    let mut process = Process::start(command, &[]);
    if words.contains(&"--listen") {
        let ready: Value = serde_json::from_str(&process.first_line()).expect("a line of JSON");
        assert_eq!(ready["ready"], true, "{}", process.describe());
    }
    process
}

/// The last line on stdout, as JSON.
fn result(finished: &Finished) -> Value {
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    let last = said.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {}", finished.describe()))
}

fn hex(bytes: &[u8]) -> String {
    let (_, digest) = checksum(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of our own making")
}

#[test]
fn a_file_to_openssl_by_every_cipher() {
    for cipher in CIPHERS {
        let (network, files) = (Network::new(), Folder::new());
        let certificate = Certificate::make(&files);
        let daemon = Daemon::start(&network, &[]);
        let peer = s_server(&network, &certificate, &[]);
        let content = pattern(1_000_003);
        let file = files.write("file", &content);
        let words = ["dtls-send", path(&file), "--cipher", cipher, "--cacert"];
        let connect = [certificate.path(), "--connect", "10.77.0.1:4433"];
        let sent = start(&daemon, &[&words[..], &connect].concat());
        let sent = sent.end(PATIENCE).success();
        wait_for("s_server reads the file", PATIENCE, || {
            (peer.stdout().len() >= content.len()).then_some(())
        });
        assert!(peer.stdout() == content, "{cipher}");
        let sent = result(&sent);
        let overhead = if cipher == "chacha20" { 29 } else { 37 };
        let records = content.len().div_ceil(1500 - 28 - overhead);
        assert_eq!(sent["records"], records, "{sent}");
        assert_eq!(sent["cipher"], cipher);
        assert_eq!(sent["close_answered"], true, "{}", peer.describe());
        daemon.stop().success();
    }
}

#[test]
fn a_file_to_gnutls_which_comes_as_a_client() {
    let (network, files) = (Network::new(), Folder::new());
    let daemon = Daemon::start(&network, &[]);
    let content = pattern(100_001);
    let file = files.write("file", &content);
    let cert = files.join("made.pem");
    let words = ["dtls-send", path(&file), "--payload", "1000"];
    let listen = ["--cert-out", path(&cert), "--listen", "10.77.0.2:4433"];
    let sender = start(&daemon, &[&words[..], &listen].concat());
    let mut command = network.command("gnutls-cli");
    command.args(["--udp", "--port", "4433", "--x509cafile", path(&cert)]);
    command.args(["--logfile", path(&files.join("log")), STACK]);
    let peer = Process::start_piped(command);
    let sent = result(&sender.end(PATIENCE).success());
    assert_eq!(
        (&sent["records"], &sent["payload"]),
        (&101.into(), &1000.into())
    );
    // The certificate names the address, so the client trusts it, and prints what it reads.
    wait_for("gnutls-cli prints the file", PATIENCE, || {
        (peer.stdout().len() >= content.len()).then_some(())
    });
    let printed = peer.stdout();
    assert!(printed.windows(1000).any(|part| part == &content[..1000]));
    assert!(printed.windows(1000).any(|part| part == &content[99_001..]));
    daemon.stop().success();
}

#[test]
fn what_openssl_types_is_received_and_compared() {
    let (network, files) = (Network::new(), Folder::new());
    let daemon = Daemon::start(&network, &[]);
    let content = pattern(20_000);
    let out = files.join("got");
    let digest = hex(&content);
    for (size, digest, lines) in [
        ("20000", &digest[..], &[][..]),
        ("20001", &digest, &["expected 20001 bytes, received 20000"]),
        (
            "20000",
            &hex(b"another"),
            &["expected SHA-256", &digest[..]],
        ),
    ] {
        let words = ["dtls-recv", "--size", size, "--sha256", digest, "-o"];
        let listen = [path(&out), "--listen", "10.77.0.2:4433"];
        let receiver = start(&daemon, &[&words[..], &listen].concat());
        let mut peer = s_client(&network, &["-no_ign_eof"]);
        // It seals what a read gives, so each piece waits for the one before.
        let before = opened(&daemon);
        for (number, piece) in (1..).zip(content.chunks(1000)) {
            peer.input(piece);
            wait_for("the piece has come", PATIENCE, || {
                (opened(&daemon) == before + number).then_some(())
            });
        }
        peer.end_input();
        let finished = receiver.end(PATIENCE);
        let got = result(&finished);
        assert_eq!(
            (&got["records"], &got["bytes"], &got["missing"]),
            (&20.into(), &20_000.into(), &0.into()),
            "{got}"
        );
        assert_eq!(
            (&got["closed"], &got["sha256"]),
            (&true.into(), &hex(&content).into())
        );
        assert!(std::fs::read(&out).expect("written") == content);
        match lines {
            [] => assert_eq!(finished.status.code(), Some(0), "{}", finished.describe()),
            words => finished.one_line(words),
        }
    }
    daemon.stop().success();
}

/// Records that the stack has opened.
fn opened(daemon: &Daemon<'_>) -> u64 {
    let lines = daemon.stat();
    let counter = lines.iter().find(|line| line["counter"] == "DtlsOpened");
    counter
        .and_then(|line| line["value"].as_u64())
        .expect("a counter")
}

#[test]
fn what_was_sent_and_lost_is_told() {
    let (network, files) = (Network::new(), Folder::new());
    let daemon = Daemon::start(&network, &[]);
    let out = files.join("got");
    let receiver = start(
        &daemon,
        &["dtls-recv", "-o", path(&out), "--listen", "10.77.0.2:4433"],
    );
    let mut peer = s_client(&network, &["-no_ign_eof"]);
    peer.input(b"heard\n");
    wait_for("the first line", PATIENCE, || {
        (opened(&daemon) == 1).then_some(())
    });
    // More than a datagram without fragments: the kernel refuses it, and OpenSSL has numbered it.
    peer.input(&[b'x'; 5000]);
    let finished = receiver.end(PATIENCE).success();
    let got = result(&finished);
    assert_eq!(
        (&got["records"], &got["missing"]),
        (&1.into(), &1.into()),
        "{got}"
    );
    assert_eq!(std::fs::read(&out).expect("written"), b"heard\n");
    daemon.stop().success();
}

#[test]
fn one_stack_sends_to_another_and_what_is_lost_is_an_error() {
    let (network, files) = (Network::new(), Folder::new());
    let forward = ["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"];
    network.run("sh", &forward).success();
    let here = Daemon::start(&network, &[]);
    let other = ["--tun", "other", "--addr", "10.78.0.2/24"];
    let there = Daemon::start(&network, &other);
    let content = pattern(3_000_000);
    let file = files.write("file", &content);
    let out = files.join("got");
    let digest = hex(&content);
    let receive = || {
        let words = ["dtls-recv", "-o", path(&out), "--listen", "10.78.0.2:4433"];
        start(&there, &[&words[..], &["--sha256", &digest]].concat())
    };
    let send = |words: &[&str]| {
        let connect = [
            "dtls-send",
            path(&file),
            "-k",
            "--connect",
            "10.78.0.2:4433",
        ];
        let sent = start(&here, &[&connect[..], words].concat()).end(PATIENCE);
        result(&sent.success())
    };
    let receiver = receive();
    let sent = send(&[]);
    let finished = receiver.end(PATIENCE).success();
    let got = result(&finished);
    assert_eq!(got["records"], sent["records"]);
    assert_eq!(sent["records"], content.len().div_ceil(PAYLOAD));
    assert_eq!((&got["missing"], &got["unread"]), (&0.into(), &0.into()));

    // Nobody reads as fast as a file that nobody paces comes.
    let receiver = receive();
    let sent = send(&["--rate", "0"]);
    let finished = receiver.end(PATIENCE);
    finished.one_line(&["expected SHA-256", "did not come"]);
    let got = result(&finished);
    let number = |value: &Value| value.as_u64().expect("a number");
    let lost = number(&got["missing"]) + number(&got["unread"]);
    assert!(lost > 0, "{got}");
    assert_eq!(
        number(&got["records"]) + lost,
        number(&sent["records"]),
        "{got}"
    );
    there.stop().success();
    here.stop().success();
}

#[test]
fn an_echo_server_takes_one_peer_after_the_other_until_a_signal() {
    let network = Network::new();
    let daemon = Daemon::start(&network, &[]);
    let echo = start(&daemon, &["dtls-echo", "--listen", "10.77.0.2:4433"]);
    for _ in 0..2 {
        let mut peer = s_client(&network, &["-no_ign_eof"]);
        peer.input(b"from openssl\n");
        wait_for("the line comes back", PATIENCE, || {
            (peer.stdout() == b"from openssl\n").then_some(())
        });
        peer.end_input();
        peer.end(PATIENCE);
        let mut command = network.command("gnutls-cli");
        command.args(["--udp", "--insecure", "--port", "4433", STACK]);
        let mut peer = Process::start_piped(command);
        peer.input(b"from gnutls\n");
        wait_for("the line comes back", PATIENCE, || {
            let printed = String::from_utf8_lossy(&peer.stdout()).into_owned();
            printed.contains("from gnutls").then_some(())
        });
        peer.end_input();
        peer.end(PATIENCE);
    }
    wait_for("four associations were told of", PATIENCE, || {
        let said = String::from_utf8_lossy(&echo.stdout()).into_owned();
        (said.matches("\"closed\":true").count() == 4).then_some(())
    });
    echo.signal(Signal::TERM);
    echo.end(PATIENCE).success();
    daemon.stop().success();
}

#[test]
fn an_echo_client_sends_back_what_a_server_types() {
    let (network, files) = (Network::new(), Folder::new());
    let certificate = Certificate::make(&files);
    let daemon = Daemon::start(&network, &[]);
    let mut peer = s_server(&network, &certificate, &[]);
    let echo = start(
        &daemon,
        &["dtls-echo", "--insecure", "--connect", "10.77.0.1:4433"],
    );
    wait_for("a line that was typed comes back", PATIENCE, || {
        peer.input(b"typed\n");
        peer.stdout().starts_with(b"typed\n").then_some(())
    });
    peer.end_input();
    let echoed = result(&echo.end(PATIENCE).success());
    assert_eq!(
        (&echoed["closed"], &echoed["missing"]),
        (&true.into(), &0.into())
    );
    daemon.stop().success();
}

#[test]
fn peers_that_are_not_there_or_not_trusted_are_said_in_one_line() {
    let (network, files) = (Network::new(), Folder::new());
    let others = Folder::new();
    let (certificate, stranger) = (Certificate::make(&files), Certificate::make(&others));
    let daemon = Daemon::start(&network, &[]);
    let run = |words: &[&str]| {
        let mut command = daemon.uktls(words);
        command.arg("--quiet");
        Process::start(command, &[]).end(PATIENCE)
    };
    run(&["dtls-recv", "--listen", "10.77.0.9:1"]).one_line(&["none of the stack's addresses"]);
    let wait = ["--timeout", "1"];
    run(&[&["dtls-recv", "--listen", "10.77.0.2:1"][..], &wait].concat())
        .one_line(&["no DTLS client at 10.77.0.2:1 within 1 s"]);
    run(&[&["dtls-recv", "--connect", "10.77.0.1:1"][..], &wait].concat())
        .one_line(&["10.77.0.1:1 does not answer by DTLS within 1 s"]);
    let file = files.write("file", b"secret");
    let send = ["dtls-send", path(&file), "--connect", "10.77.0.1:4433"];
    for trust in [&[][..], &["--cacert", stranger.path()]] {
        let _peer = s_server(&network, &certificate, &[]);
        run(&[&send[..], trust].concat()).one_line(&["certificate"]);
    }
    daemon.stop().success();
}
