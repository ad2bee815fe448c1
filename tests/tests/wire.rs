//! Our TCP against the kernel's, with every fault of [`presets::faults`] on the wire between them: what
//! `stack/tests/tcp_smoltcp.rs` does in virtual time against another peer, here in real time against Linux's.

#![allow(missing_docs)]

use openssl::pkey::PKey;
use openssl::ssl::{SslAcceptor, SslMethod};
use openssl::x509::X509;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};
use uktls::handshake::rustls::{Choice, TlsStream, Trust, client_config};
use uktls::{TcpListener, TcpStream};
use uktls_stack::sim::link::Knobs;
use uktls_stack::sim::presets;
use uktls_tests::{
    Certificate, Folder, HOST, Network, PATIENCE, STACK, Wired, as_root, checksum, pattern,
};

/// Bytes each way.
const SIZE: usize = 2_000_003;
/// Under any fault, on a machine under load.
const LIMIT: Duration = Duration::from_secs(50);

/// Does `work` under every fault, all at the same time, each on a wire of its own.
fn under_every_fault(work: impl Fn(&Wired) + Sync) {
    std::thread::scope(|scope| {
        for (seed, (name, knobs)) in (1..).zip(presets::faults()) {
            let work = &work;
            let run = move || one(name, seed, &knobs, work);
            let thread = std::thread::Builder::new().name(name.to_owned());
            thread.spawn_scoped(scope, run).expect("a thread");
        }
    });
}

fn one(name: &str, seed: u64, knobs: &Knobs, work: impl Fn(&Wired)) {
    let mut wired = Wired::new(seed, knobs);
    let begin = Instant::now();
    work(&wired);
    let took = begin.elapsed();
    let account = wired.cut();
    assert!(took < LIMIT, "{name} took {took:?}");
    // Both ways, or nothing was tested.
    for counters in account.directions {
        let struck = match name {
            "loss" | "burst loss" => counters.lost,
            "reordering" => counters.reordered,
            "duplication" => counters.duplicated,
            "corruption" | "truncation" => counters.damaged,
            "all at once" => (counters.lost.min(counters.reordered))
                .min(counters.duplicated)
                .min(counters.damaged),
            _ => counters.offered,
        };
        assert!(struck > 0, "{name}: {account:?}");
    }
}

/// What each side sends: as long, and different.
fn sent_by_us() -> Vec<u8> {
    pattern(SIZE)
}

fn sent_by_linux() -> Vec<u8> {
    pattern(SIZE).into_iter().rev().collect()
}

/// Writes everything and shuts while it reads to the end; both ends' sockets look alike here.
macro_rules! exchange {
    ($stream:expr, $bytes:expr) => {{
        let (mut reader, mut writer) = ($stream.try_clone().expect("a copy"), $stream);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                writer.write_all(&$bytes).expect("written");
                writer.shutdown(Shutdown::Write).expect("shut");
            });
            reader.set_read_timeout(Some(LIMIT)).expect("set");
            checksum(&mut reader)
        })
    }};
}

/// Bytes both ways at once on one connection; `ours` and `linux` are its ends.
fn both_ways(ours: TcpStream, linux: std::net::TcpStream) {
    std::thread::scope(|scope| {
        let linux = scope.spawn(|| exchange!(linux, sent_by_linux()));
        let got = exchange!(ours, sent_by_us());
        assert!(got == checksum(&sent_by_linux()[..]), "we got {}", got.0);
        let got = linux.join().expect("Linux's side");
        assert!(got == checksum(&sent_by_us()[..]), "Linux got {}", got.0);
    });
}

fn linux_listens(network: &Network) -> std::net::TcpListener {
    network.within(|| std::net::TcpListener::bind((HOST, 5001)).expect("a port"))
}

#[test]
fn bytes_go_both_ways_when_we_connect() {
    as_root("bytes_go_both_ways_when_we_connect", || {
        under_every_fault(|wired| {
            let listener = linux_listens(&wired.network);
            let at = listener.local_addr().expect("bound");
            let ours = TcpStream::connect_on(&wired.client(), at).expect("connected");
            let (linux, _) = listener.accept().expect("a connection");
            both_ways(ours, linux);
        });
    });
}

#[test]
fn bytes_go_both_ways_when_linux_connects() {
    as_root("bytes_go_both_ways_when_linux_connects", || {
        under_every_fault(|wired| {
            let at = format!("{STACK}:5001").parse().expect("an address");
            let listener = TcpListener::bind_on(&wired.client(), at).expect("a port");
            let connect = || std::net::TcpStream::connect_timeout(&at, PATIENCE);
            let linux = wired.network.within(connect).expect("connected");
            let (ours, _) = listener.accept().expect("a connection");
            both_ways(ours, linux);
        });
    });
}

/// Records of ours to OpenSSL over the kernel's TCP, and its records to us.
#[test]
fn tls_goes_both_ways() {
    as_root("tls_goes_both_ways", || {
        let files = Folder::new();
        let certificate = Certificate::make(&files);
        let pem = |path| std::fs::read(path).expect("a file of our own making");
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).expect("OpenSSL");
        let key = PKey::private_key_from_pem(&pem(&certificate.key)).expect("a key");
        let cert = X509::from_pem(&pem(&certificate.cert)).expect("a certificate");
        acceptor.set_private_key(&key).expect("fits");
        acceptor.set_certificate(&cert).expect("fits");
        let acceptor = acceptor.build();
        let trust = || client_config(&Trust::Anybody, &Choice::default(), None).expect("a choice");
        under_every_fault(|wired| {
            let listener = linux_listens(&wired.network);
            let at = listener.local_addr().expect("bound");
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (linux, _) = listener.accept().expect("a connection");
                    linux.set_read_timeout(Some(LIMIT)).expect("set");
                    let mut stream = acceptor.accept(linux).expect("a handshake");
                    let mut got = vec![0; SIZE];
                    stream.read_exact(&mut got).expect("all of it");
                    assert!(got == sent_by_us(), "Linux got something else");
                    stream.write_all(&sent_by_linux()).expect("written");
                    stream.shutdown().expect("close_notify");
                });
                let socket = TcpStream::connect_on(&wired.client(), at).expect("connected");
                socket.set_read_timeout(Some(LIMIT)).expect("set");
                let name = "localhost".try_into().expect("a name");
                let mut stream = TlsStream::connect(socket, trust(), name).expect("a handshake");
                stream.write_all(&sent_by_us()).expect("written");
                let mut got = Vec::new();
                stream.read_to_end(&mut got).expect("to the end");
                assert!(got == sent_by_linux(), "we got something else");
                assert!(stream.received_close_notify());
            });
        });
    });
}
