//! DTLS 1.2 to real peers on the kernel's UDP, over a TUN device: OpenSSL's and GnuTLS's programs, as server and as client.

#![allow(missing_docs)]

mod faults;

use openssl::pkey::PKey;
use openssl::ssl::SslContextBuilder;
use openssl::x509::X509;
use std::process::Command;
use uktls::UdpSocket;
use uktls::client::af_ktls::{AF_KTLS, DatagramFlags, KTLS_SET_MTU, KtlsSocket};
use uktls::handshake::openssl::{Session, close, context};
use uktls_tests::{
    Certificate, Daemon, Folder, HOST, Network, PATIENCE, Process, STACK, pattern, wait_for,
};

const NONE: DatagramFlags = DatagramFlags::empty();

const CIPHERS: [&str; 3] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
];

fn udp(daemon: &uktls::Daemon, port: u16) -> UdpSocket {
    let local = format!("{STACK}:{port}").parse().expect("an address");
    let socket = UdpSocket::bind_on(daemon, local, None).expect("a UDP socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    socket
}

/// The context for one suite, with the certificate where it is a server's.
fn suite(cipher: &str, certificate: Option<&Certificate>) -> SslContextBuilder {
    let mut context = context().expect("OpenSSL");
    context.set_cipher_list(cipher).expect("a suite");
    if let Some(certificate) = certificate {
        let pem = |path| std::fs::read(path).expect("a file of our own making");
        let key = PKey::private_key_from_pem(&pem(&certificate.key)).expect("a key");
        let cert = X509::from_pem(&pem(&certificate.cert)).expect("a certificate");
        context.set_private_key(&key).expect("fits");
        context.set_certificate(&cert).expect("fits");
    }
    context
}

/// A session of the stack's as client, with the peer on the host.
fn client(daemon: &uktls::Daemon, port: u16, cipher: &str) -> (UdpSocket, Session, KtlsSocket) {
    let udp = udp(daemon, 0);
    udp.connect(format!("{HOST}:{port}")).expect("an address");
    let session = Session::connect(&udp, suite(cipher, None), "localhost", PATIENCE);
    let session = session.expect("a handshake");
    assert_eq!(
        session.ssl().current_cipher().map(|cipher| cipher.name()),
        Some(cipher)
    );
    let ktls = session.bind(&udp).expect("bound");
    ktls.set_read_timeout(Some(PATIENCE)).expect("set");
    (udp, session, ktls)
}

/// A session of the stack's as server.
fn server(socket: &UdpSocket, cipher: &str, certificate: &Certificate) -> (Session, KtlsSocket) {
    let context = suite(cipher, Some(certificate));
    let session = Session::accept(socket, context, PATIENCE).expect("a handshake");
    let ktls = session.bind(socket).expect("bound");
    ktls.set_read_timeout(Some(PATIENCE)).expect("set");
    (session, ktls)
}

fn s_server(network: &Network, certificate: &Certificate, options: &[&str]) -> Process {
    let mut command = network.command("openssl");
    command.args(["s_server", "-dtls1_2", "-quiet"]);
    command.args(["-accept", &format!("{HOST}:4433")]);
    command.arg("-cert").arg(&certificate.cert);
    command.arg("-key").arg(&certificate.key);
    command.args(options);
    Process::start_piped(command)
}

fn set_mtu(ktls: &mut KtlsSocket, mtu: usize) {
    ktls.setsockopt(AF_KTLS, KTLS_SET_MTU, &mtu.to_ne_bytes())
        .expect("a size_t");
}

fn recv(ktls: &KtlsSocket) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 15];
    let received = ktls.recv(&mut buffer, NONE).expect("a record");
    buffer.truncate(received.len);
    buffer
}

/// A file to `openssl s_server`, record by record and whole, and what it types back.
fn to_s_server(mtu: usize, offload: &str, cipher: &str, cookies: bool) {
    let (network, files) = (Network::new(), Folder::new());
    let certificate = Certificate::make(&files);
    let options = ["--mtu", &mtu.to_string(), "--offload", offload];
    let daemon = Daemon::start(&network, &options);
    let listen: &[&str] = if cookies { &["-listen"] } else { &[] };
    let mut peer = s_server(&network, &certificate, listen);
    let (_udp, mut session, mut ktls) = client(&daemon.client(), 4433, cipher);

    let mut expected = Vec::new();
    for len in [1, 100, 1000, mtu - 28 - 37, mtu, 4097, 16_384] {
        ktls.send(&pattern(len), NONE).expect("sent");
        expected.extend(pattern(len));
    }
    set_mtu(&mut ktls, mtu - 28);
    // As much as the host's socket holds unread, at most: nothing paces a file's datagrams.
    let size = 60_001;
    let path = files.write("file", &pattern(size));
    let file = std::fs::File::open(path).expect("a file");
    wait_for("s_server reads what was sent before", PATIENCE, || {
        (peer.stdout().len() >= expected.len()).then_some(())
    });
    let sent = ktls.sendfile(&file, 0, u64::MAX).expect("sent");
    assert_eq!(sent, size as u64);
    expected.extend(pattern(size));
    wait_for("s_server reads the file", PATIENCE, || {
        (peer.stdout().len() >= expected.len()).then_some(())
    });
    assert!(peer.stdout() == expected, "{cipher}, MTU {mtu}");
    let records = ktls.stat().expect("bound").sealed;
    assert_eq!(records, 7 + size.div_ceil(mtu - 28 - 37) as u64);

    peer.input(b"typed back\n");
    assert_eq!(recv(&ktls), b"typed back\n");
    // Its close_notify comes on the UDP socket; ours ends it.
    peer.end_input();
    wait_for("s_server closes", PATIENCE, || {
        session.peer_closed().expect("no error").then_some(())
    });
    close(&ktls).expect("sent");
    daemon.stop().success();
}

#[test]
fn files_to_openssl_by_every_cipher() {
    for cipher in CIPHERS {
        to_s_server(1500, "on", cipher, true);
    }
}

#[test]
fn files_to_openssl_at_every_mtu() {
    for mtu in [576, 1280, 9000] {
        to_s_server(mtu, "on", CIPHERS[0], true);
    }
}

#[test]
fn files_to_openssl_without_offload() {
    to_s_server(1500, "off", CIPHERS[0], false);
}

#[test]
fn openssl_as_client_is_served_after_a_cookie() {
    for cipher in CIPHERS {
        let (network, files) = (Network::new(), Folder::new());
        let certificate = Certificate::make(&files);
        let daemon = Daemon::start(&network, &[]);
        let socket = udp(&daemon.client(), 4433);
        let mut command = network.command("openssl");
        command.args(["s_client", "-dtls1_2", "-quiet", "-cipher", cipher]);
        command.args(["-connect", &format!("{STACK}:4433")]);
        let mut peer = Process::start_piped(command);
        let (mut session, ktls) = server(&socket, cipher, &certificate);
        // Two ClientHellos at least, the second with the cookie; record 0 of epoch 1 was Finished.
        assert_eq!((session.tx.sequence(), session.rx.sequence()), (1, 1));
        peer.input(b"hello\n");
        assert_eq!(recv(&ktls), b"hello\n");
        let answer = pattern(5000);
        for piece in answer.chunks(1200) {
            ktls.send(piece, NONE).expect("sent");
        }
        wait_for("s_client reads the answer", PATIENCE, || {
            (peer.stdout().len() >= answer.len()).then_some(())
        });
        assert!(peer.stdout() == answer, "{cipher}");
        close(&ktls).expect("sent");
        peer.end(PATIENCE);
        wait_for("s_client closes", PATIENCE, || {
            session.peer_closed().expect("no error").then_some(())
        });
        daemon.stop().success();
    }
}

const PRIORITIES: [(&str, &str); 3] = [
    ("AES-128-GCM", CIPHERS[0]),
    ("AES-256-GCM", CIPHERS[1]),
    ("CHACHA20-POLY1305", CIPHERS[2]),
];

fn priority(cipher: &str) -> String {
    format!("NORMAL:-VERS-ALL:+VERS-DTLS1.2:-CIPHER-ALL:+{cipher}")
}

#[test]
fn gnutls_as_server_echoes() {
    for (name, cipher) in PRIORITIES {
        let (network, files) = (Network::new(), Folder::new());
        let certificate = Certificate::make(&files);
        let daemon = Daemon::start(&network, &[]);
        let mut command: Command = network.command("gnutls-serv");
        command.args(["--udp", "--echo", "--port", "4433", "--quiet"]);
        command.args(["--priority", &priority(name), "--mtu", "1500"]);
        command.arg("--x509certfile").arg(&certificate.cert);
        command.arg("--x509keyfile").arg(&certificate.key);
        let peer = Process::start_piped(command);
        let (_udp, _session, ktls) = client(&daemon.client(), 4433, cipher);
        for len in [1, 100, 1000, 1400] {
            let mut line = vec![b'x'; len];
            line.push(b'\n');
            ktls.send(&line, NONE).expect("sent");
            // It reads, and so echoes, by 128 bytes.
            let mut echoed = Vec::new();
            while echoed.len() < line.len() {
                echoed.extend(recv(&ktls));
            }
            assert!(echoed == line, "{name}: {}", peer.describe());
        }
        close(&ktls).expect("sent");
        drop(peer);
        daemon.stop().success();
    }
}

#[test]
fn gnutls_as_client_is_served_after_a_cookie() {
    for (name, cipher) in PRIORITIES {
        let (network, files) = (Network::new(), Folder::new());
        let certificate = Certificate::make(&files);
        let daemon = Daemon::start(&network, &[]);
        let socket = udp(&daemon.client(), 4433);
        let mut command = network.command("gnutls-cli");
        command.args(["--udp", "--insecure", "--port", "4433"]);
        command.args(["--priority", &priority(name), STACK]);
        let mut peer = Process::start_piped(command);
        let (_session, ktls) = server(&socket, cipher, &certificate);
        peer.input(b"hello\n");
        assert_eq!(recv(&ktls), b"hello\n");
        ktls.send(b"served by the stack\n", NONE).expect("sent");
        wait_for("gnutls-cli prints the answer", PATIENCE, || {
            let printed = String::from_utf8_lossy(&peer.stdout()).into_owned();
            printed.contains("served by the stack").then_some(())
        });
        close(&ktls).expect("sent");
        peer.end(PATIENCE);
        daemon.stop().success();
    }
}

/// The peer drops what is forged and goes on; so do we.
#[test]
fn a_flood_from_the_peers_address_ends_nothing() {
    let (network, files) = (Network::new(), Folder::new());
    let certificate = Certificate::make(&files);
    let daemon = Daemon::start(&network, &[]);
    let mut peer = s_server(&network, &certificate, &[]);
    let (udp, _session, ktls) = client(&daemon.client(), 4433, CIPHERS[0]);
    // In the raw on the same socket: records of no epoch, cut ones, and rubbish.
    for i in 0..100_u8 {
        let mut forged = vec![23, 0xFE, 0xFD, 0, 1, 0, 0, 0, 0, 1, i, 0, 60];
        forged.extend(vec![i; 60]);
        udp.send(&forged).expect("sent");
        udp.send(&forged[..20]).expect("sent");
        udp.send(&[i; 40]).expect("sent");
    }
    // The flood may have filled the peer's socket, and DTLS sends nothing again by itself.
    let heard = wait_for("s_server reads on", PATIENCE, || {
        ktls.send(b"still here\n", NONE).expect("sent");
        Some(peer.stdout()).filter(|heard| heard.ends_with(b"\n"))
    });
    assert!(heard.starts_with(b"still here\n"));
    peer.input(b"so am I\n");
    assert_eq!(recv(&ktls), b"so am I\n");
    daemon.stop().success();
}
