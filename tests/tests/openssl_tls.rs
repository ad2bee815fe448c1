//! TLS 1.2 with hands shaken by OpenSSL on the stack's sockets, and keys handed over by both vocabularies, with OpenSSL's own
//! programs at the other end.

#![allow(missing_docs)]

use openssl::pkey::PKey;
use openssl::ssl::SslContextBuilder;
use openssl::x509::X509;
use std::io::{Read, Write};
use uktls::client::af_ktls::{AF_KTLS, KTLS_GET_IV_SEND, KtlsFlags};
use uktls::client::{RecvFlags, SendFlags};
use uktls::handshake::openssl::{CLOSE_NOTIFY, TlsSession, close, tls_context};
use uktls::{ContentType, TcpListener, TcpStream};
use uktls_tests::{
    CIPHERS, Certificate, Daemon, Folder, HOST, Network, PATIENCE, Process, SServer, STACK,
    openssl_options, pattern, wait_for,
};

const NONE: KtlsFlags = KtlsFlags::empty();

/// A context for one of [`CIPHERS`], with the certificate where it is a server's.
fn suite(cipher: &str, certificate: Option<&Certificate>) -> SslContextBuilder {
    let mut context = tls_context().expect("OpenSSL");
    let [_, _, suite] = openssl_options("1.2", cipher);
    context.set_cipher_list(suite).expect("a suite");
    if let Some(certificate) = certificate {
        let pem = |path| std::fs::read(path).expect("a file of our own making");
        let key = PKey::private_key_from_pem(&pem(&certificate.key)).expect("a key");
        let cert = X509::from_pem(&pem(&certificate.cert)).expect("a certificate");
        context.set_private_key(&key).expect("fits");
        context.set_certificate(&cert).expect("fits");
    }
    context
}

fn connect(daemon: &Daemon<'_>, port: u16) -> TcpStream {
    let server = format!("{HOST}:{port}").parse().expect("an address");
    let stream = TcpStream::connect_on(&daemon.client(), server).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream
}

/// `openssl s_client` of a server on the stack, and the connection it has.
fn accept(daemon: &Daemon<'_>, port: u16, cipher: &str) -> (Process, TcpStream) {
    let address = format!("{STACK}:{port}").parse().expect("an address");
    let listener = TcpListener::bind_on(&daemon.client(), address).expect("free");
    let mut command = daemon.network.command("openssl");
    command.args(["s_client", "-quiet", "-no_ign_eof"]);
    command.args(openssl_options("1.2", cipher));
    command.args(["-connect", &format!("{STACK}:{port}")]);
    let client = Process::start_piped(command);
    let (stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    (client, stream)
}

/// Waits until a program has written this.
fn reads(peer: &Process, wanted: &[u8]) {
    wait_for("the peer reads what was sent", PATIENCE, || {
        (peer.stdout().len() >= wanted.len()).then_some(())
    });
    assert!(peer.stdout() == wanted, "{}", peer.describe());
}

/// Both ways by Linux's calls, and close_notify: first the peer's, then ours.
fn by_ktls_calls(stream: &mut TcpStream, session: &TlsSession, peer: &mut Process) {
    // Finished was number 0 of each direction.
    assert_eq!((session.tx.rec_seq(), session.rx.rec_seq()), (1, 1));
    session.attach(stream).expect("attached");
    let content = pattern(100_003);
    stream.write_all(&content).expect("sent");
    reads(peer, &content);
    peer.input(b"typed\n");
    let mut typed = [0; 6];
    stream.read_exact(&mut typed).expect("a record");
    assert_eq!(&typed, b"typed\n");
    peer.end_input();
    let mut alert = [0; 16];
    let received = stream.recv_record(&mut alert, RecvFlags::empty());
    let received = received.expect("an alert");
    assert_eq!(received.content_type, Some(ContentType::ALERT));
    assert_eq!(alert[..received.len], CLOSE_NOTIFY);
    stream
        .send_record(ContentType::ALERT, &CLOSE_NOTIFY, SendFlags::empty())
        .expect("sent");
}

/// The same by AF_KTLS.
fn by_af_ktls(stream: &TcpStream, session: &TlsSession, peer: &mut Process) {
    let mut ktls = session.bind(stream).expect("bound");
    let content = pattern(100_003);
    let mut sent = 0;
    while sent < content.len() {
        sent += ktls.send(&content[sent..], NONE).expect("sent");
    }
    reads(peer, &content);
    peer.input(b"typed\n");
    let mut typed = [0; 64];
    let received = ktls.recv(&mut typed, NONE).expect("a record");
    assert_eq!(&typed[..received.len], b"typed\n");
    peer.end_input();
    let stopped = ktls.recv(&mut typed, NONE).expect_err("no data any more");
    assert_eq!(stopped.raw_os_error(), Some(74), "EBADMSG: {stopped}");
    let alert = session.control_record(stream, &mut ktls);
    assert_eq!(
        alert.expect("an alert"),
        (ContentType::ALERT, CLOSE_NOTIFY.to_vec())
    );
    let mut number = [0; 8];
    ktls.getsockopt(AF_KTLS, KTLS_GET_IV_SEND, &mut number)
        .expect("armed");
    // 100,003 bytes are seven records, behind Finished.
    assert_eq!(u64::from_be_bytes(number), 8);
    close(&ktls).expect("sent");
}

#[test]
fn the_stack_as_client_of_openssl() {
    let (network, files) = (Network::new(), Folder::new());
    let certificate = Certificate::make(&files);
    let daemon = Daemon::start(&network, &[]);
    for (port, cipher) in (4433..).step_by(2).zip(CIPHERS) {
        for (port, af_ktls) in [(port, false), (port + 1, true)] {
            let options = openssl_options("1.2", cipher);
            let server = SServer::start(&network, files.path(), port, &certificate, &options);
            let mut peer = server.process;
            let mut stream = connect(&daemon, port);
            let context = suite(cipher, None);
            let session = TlsSession::connect(&stream, context, "localhost", PATIENCE);
            let session = session.expect("a handshake");
            match af_ktls {
                false => by_ktls_calls(&mut stream, &session, &mut peer),
                true => by_af_ktls(&stream, &session, &mut peer),
            }
        }
    }
    daemon.stop().success();
}

#[test]
fn the_stack_as_server_of_openssl() {
    let (network, files) = (Network::new(), Folder::new());
    let certificate = Certificate::make(&files);
    let daemon = Daemon::start(&network, &[]);
    for (port, cipher) in (4433..).step_by(2).zip(CIPHERS) {
        for (port, af_ktls) in [(port, false), (port + 1, true)] {
            let (mut peer, mut stream) = accept(&daemon, port, cipher);
            let context = suite(cipher, Some(&certificate));
            let session = TlsSession::accept(&stream, context, PATIENCE);
            let session = session.expect("a handshake");
            match af_ktls {
                false => by_ktls_calls(&mut stream, &session, &mut peer),
                true => by_af_ktls(&stream, &session, &mut peer),
            }
            // Told in order that it is over, and so ends in order.
            peer.end(PATIENCE).success();
        }
    }
    daemon.stop().success();
}
