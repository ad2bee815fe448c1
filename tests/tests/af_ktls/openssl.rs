//! A stream to `openssl s_server` on the kernel's TCP: data, a file, a HelloRequest in between, close_notify at the end.

use crate::ground::{NONE, errno, next_number, read, set};
use rustix::io::Errno;
use std::net::SocketAddr;
use uktls::TcpStream;
use uktls::client::Reason;
use uktls::client::af_ktls::*;
use uktls::handshake::rustls::{Choice, Complete, Handshake, Progress, Trust, client_config};
use uktls_record::{CipherSuite, CryptoInfo, ProtocolVersion, tls};
use uktls_tests::{
    Certificate, Daemon, Folder, HOST, Network, PATIENCE, Process, pattern, wait_for,
};

fn shake(stream: &TcpStream, certificate: &Certificate, cipher: CipherSuite) -> Complete {
    let choice = Choice {
        versions: vec![ProtocolVersion::Tls12],
        ciphers: vec![cipher],
    };
    let trust = Trust::File(certificate.cert.clone());
    let config = client_config(&trust, &choice, None).expect("a configuration");
    let name = "localhost".try_into().expect("a name");
    let mut handshake = Handshake::client(config, name).expect("a client");
    let progress = handshake.step(&mut &*stream).expect("a handshake");
    assert_eq!(progress, Progress::Done);
    let complete = handshake.complete().expect("keys");
    assert!(complete.early.is_empty());
    complete
}

/// Reads a record in the raw and opens it as the one with this number.
fn open_raw(stream: &TcpStream, keys: &CryptoInfo, number: u64) -> (u8, Vec<u8>) {
    use std::io::Read;
    let mut record = vec![0; 5];
    (&*stream).read_exact(&mut record).expect("a header");
    let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + len, 0);
    (&*stream).read_exact(&mut record[5..]).expect("a record");
    let (cipher, salt, iv) = (keys.cipher(), keys.salt(), keys.iv());
    let keys = CryptoInfo::new(ProtocolVersion::Tls12, cipher, keys.key(), salt, iv, number);
    let mut opener = tls::Opener::new(&keys.expect("lengths")).expect("keys");
    let opened = opener.open_in_place(&mut record).expect("opens");
    (
        opened.content_type.0,
        record[opened.plaintext.clone()].to_vec(),
    )
}

/// A session with an `openssl s_server` that was started with these options: the daemon, which runs the stack, the peer, the TCP
/// stream, the AF_KTLS socket and the handshake's keys go to `run`.
fn with_s_server(
    cipher: CipherSuite,
    options: &[&str],
    run: impl FnOnce(&mut Process, &TcpStream, &mut KtlsSocket, &Complete),
) {
    let (network, files) = (Network::new(), Folder::new());
    let certificate = Certificate::make(&files);
    let daemon = Daemon::start(&network, &[]);
    let mut command = network.command("openssl");
    command.args(["s_server", "-tls1_2", "-naccept", "1"]);
    command
        .args(["-accept", &format!("{HOST}:4433")])
        .args(options);
    command.arg("-cert").arg(&certificate.cert);
    command.arg("-key").arg(&certificate.key);
    let mut peer = Process::start_piped(command);
    network.wait_for_listener(4433, &peer);
    let address: SocketAddr = format!("{HOST}:4433").parse().expect("literal");
    let stream = TcpStream::connect_on(&daemon.client(), address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    let complete = shake(&stream, &certificate, cipher);

    let mut ktls = KtlsSocket::new(KtlsType::Stream, 0).expect("a socket");
    let address = KtlsAddress {
        cipher: cipher.linux_id(),
        ..KtlsAddress::LATEST
    };
    ktls.bind(&stream, address).expect("connected");
    ktls.set_send_keys(&complete.tx).expect("bound");
    ktls.set_receive_keys(&complete.rx).expect("bound");
    run(&mut peer, &stream, &mut ktls, &complete);
    drop((ktls, stream));
    peer.end(PATIENCE);
    daemon.stop().success();
}

/// Waits until the peer has printed this.
fn printed(peer: &Process, text: &[u8]) {
    wait_for("s_server prints what was sent", PATIENCE, || {
        let printed = peer.stdout();
        let found = printed.windows(text.len()).any(|part| part == text);
        found.then_some(())
    });
}

#[test]
fn s_server_asks_for_a_renegotiation() {
    with_s_server(CipherSuite::Aes128Gcm, &[], |peer, stream, ktls, keys| {
        ktls.send(b"sent by AF_KTLS\n", NONE).expect("sent");
        let text: Vec<u8> = pattern(100_000).iter().map(|b| b'a' + b % 26).collect();
        let files = Folder::new();
        let file = std::fs::File::open(files.write("file", &text)).expect("a file");
        assert_eq!(ktls.sendfile(&file, 0, u64::MAX).expect("sent"), 100_000);
        printed(peer, &[b"sent by AF_KTLS\n", &text[..]].concat());
        peer.input(b"typed\n");
        assert_eq!(read(ktls, 6), b"typed\n");

        // RFC 5246 §7.4.1.1, of HelloRequest: "This message may be ignored by the client".
        peer.input(b"r\n");
        assert_stopped(ktls);
        let number = next_number(ktls, KTLS_GET_IV_RECV);
        let hello_request = (22, vec![0, 0, 0, 0]);
        assert_eq!(open_raw(stream, &keys.rx, number), hello_request);
        set(ktls, KTLS_SET_IV_RECV, &(number + 1).to_be_bytes());
        ktls.send(b"still here\n", NONE).expect("sent");
        printed(peer, b"still here\n");
        // It closes its socket, and no more.
        peer.input(b"q\n");
        let end = ktls.recv(&mut [0; 99], NONE).expect("the end");
        assert_eq!(end.len, 0);
        assert_eq!(stream.reason().expect("a daemon"), Reason::Truncated);
    });
}

/// Lines go there and come back reversed, until it is told to close: its alert is the owner's to read.
fn s_server_closes(cipher: CipherSuite) {
    with_s_server(cipher, &["-rev"], |_, stream, ktls, keys| {
        for line in [&b"sent by AF_KTLS\n"[..], b"and again\n"] {
            ktls.send(line, NONE).expect("sent");
            let mut reversed = line[..line.len() - 1].to_vec();
            reversed.reverse();
            reversed.push(b'\n');
            assert_eq!(read(ktls, line.len()), reversed);
        }
        ktls.send(b"CLOSE\n", NONE).expect("sent");
        assert_stopped(ktls);
        let number = ktls.unattach().expect("bound").expect("it had keys");
        let close_notify = (21, vec![1, 0]);
        assert_eq!(open_raw(stream, &keys.rx, number), close_notify);
    });
}

#[test]
fn s_server_closes_aes_256_gcm() {
    s_server_closes(CipherSuite::Aes256Gcm);
}

#[test]
fn s_server_closes_chacha20_poly1305() {
    s_server_closes(CipherSuite::ChaCha20Poly1305);
}

/// Reading meets a record that is not data.
fn assert_stopped(ktls: &KtlsSocket) {
    let stopped = ktls.recv(&mut [0; 99], NONE);
    assert_eq!(errno(stopped), Errno::BADMSG);
}
