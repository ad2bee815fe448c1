//! Links of every kind: MTUs, offload, several queues, IPv6.

#![allow(missing_docs)]

use std::io::{Read, Write};
use std::time::{Duration, Instant};
use uktls::TcpStream;
use uktls::handshake::rustls::{Choice, TlsStream, Trust, client_config};
use uktls_tests::{
    Certificate, Daemon, Folder, HOST, Network, Nginx, PATIENCE, Process, STACK6, Serve, pattern,
    wait_for,
};

const SIZE: usize = 3_000_001;

/// A file to curl and a file from nginx over this stack.
fn both_ways(options: &[&str]) {
    let (network, files) = (Network::new(), Folder::new());
    files.write("file", &pattern(SIZE));
    let certificate = Certificate::make(&files);
    let daemon = Daemon::start(&network, options);
    let serve = Serve::start(&daemon, files.path(), &[]);
    assert!(
        serve.fetch(&network, "/file", &[]) == pattern(SIZE),
        "to curl, {options:?}"
    );
    let nginx = Nginx::start(&network, files.path(), 8443, &certificate, "");
    let got = daemon.get(&["-k", &nginx.url("file"), "-o", "-"]).success();
    assert!(got.stdout == pattern(SIZE), "from nginx, {options:?}");
    if options.contains(&"--addr6") {
        let at = format!("[{STACK6}]:443");
        let serve = Serve::start_on(daemon.uktls(&["serve"]), &at, files.path(), &[]);
        let body = serve.fetch(&network, "/file", &["-6"]);
        assert!(body == pattern(SIZE), "to curl by IPv6, {options:?}");
        let got = daemon
            .get(&["-k", &nginx.url6("file"), "-o", "-"])
            .success();
        assert!(
            got.stdout == pattern(SIZE),
            "from nginx by IPv6, {options:?}"
        );
    }
    daemon.stop().success();
}

/// Every MTU there is a reason for; IPv6 as well where RFC 8200 lets it be.
fn every_mtu(options: &[&str]) {
    both_ways(&[options, &["--mtu", "576"]].concat());
    for mtu in ["1280", "1500", "9000", "65520"] {
        both_ways(&[options, &["--mtu", mtu, "--addr6", "fd77::2/64"]].concat());
    }
}

#[test]
fn every_mtu_with_offload() {
    every_mtu(&[]);
}

#[test]
fn every_mtu_on_a_plain_tun() {
    every_mtu(&["--offload", "off"]);
}

#[test]
fn many_connections_over_several_queues() {
    let (network, files) = (Network::new(), Folder::new());
    files.write("file", &pattern(SIZE));
    let certificate = Certificate::make(&files);
    let daemon = Daemon::start(&network, &["--shards", "2"]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    let nginx = Nginx::start(&network, files.path(), 8443, &certificate, "");
    let curls: Vec<Process> = (0..24)
        .map(|_| Process::start(serve.curl(&network, "/file", &[]), &[]))
        .collect();
    let gets: Vec<Process> = (0..24)
        .map(|_| {
            let get = daemon.uktls(&["get", "-k", &nginx.url("file"), "-o", "-"]);
            Process::start(get, &[])
        })
        .collect();
    for transfer in curls.into_iter().chain(gets) {
        let finished = transfer.end(PATIENCE * 2).success();
        assert!(finished.stdout == pattern(SIZE), "{}", finished.describe());
    }
}

/// A connection of the stack's to a server of the kernel's, opened by the test itself as a client of the daemon.
fn from_the_stack(daemon: &Daemon<'_>, port: u16) -> TlsStream {
    let trust = client_config(&Trust::Anybody, &Choice::default(), None).expect("a configuration");
    let address = format!("{HOST}:{port}").parse().expect("an address");
    let stream = TcpStream::connect_on(&daemon.client(), address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    TlsStream::connect(stream, trust, "x.test".try_into().expect("a name")).expect("a handshake")
}

/// One request on a connection that stays open, and the whole answer.
fn ask_once_more(stream: &mut TlsStream) {
    let request = b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request).expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(&pattern(1000)) {
        let mut piece = [0; 2000];
        let got = stream.read(&mut piece).expect("more of the answer");
        assert!(got > 0, "ended early: {}", answer.escape_ascii());
        answer.extend_from_slice(&piece[..got]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

/// The kernel forgets after some idle seconds which queue a flow belongs to; what it then sends to another one must reach
/// its connection all the same.
#[test]
fn connections_over_two_shards_survive_ten_idle_seconds() {
    let (network, files) = (Network::new(), Folder::new());
    files.write("file", &pattern(1000));
    let daemon = Daemon::start(&network, &["--shards", "2"]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    let certificate = Certificate::make(&files);
    let nginx = Nginx::start(&network, files.path(), 8443, &certificate, "");
    let mut outgoing: Vec<TlsStream> = (0..12).map(|_| from_the_stack(&daemon, 8443)).collect();
    let request = b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut clients: Vec<Process> = (0..12)
        .map(|_| {
            let mut client = network.command("openssl");
            client.args(["s_client", "-quiet", "-CAfile", serve.certificate()]);
            client.args(["-connect", &serve.address().to_string()]);
            Process::start_piped(client)
        })
        .collect();
    let mut everybody_has = |answers: usize| {
        for client in &mut clients {
            client.input(request);
        }
        for client in &clients {
            wait_for("an answer", PATIENCE, || {
                assert!(
                    !client.ended_within(Duration::ZERO),
                    "{}",
                    client.describe()
                );
                let text = client.stdout();
                let heads = text.windows(12).filter(|at| at == b"HTTP/1.1 200").count();
                (heads == answers && text.ends_with(&pattern(1000))).then_some(())
            });
        }
        outgoing.iter_mut().for_each(ask_once_more);
    };
    everybody_has(1);
    // Ten seconds are what is tested here: that long nothing is sent, and nobody may be told that it is over.
    let idle = Instant::now();
    wait_for("ten idle seconds", Duration::from_secs(20), || {
        (idle.elapsed() > Duration::from_secs(10)).then_some(())
    });
    everybody_has(2);
    // Both shards had their share, or nothing was tested.
    let established = daemon.sockets_in_state("ESTAB");
    for shard in [0, 1] {
        let its = established
            .iter()
            .filter(|line| line["socket"]["shard"] == shard);
        assert!(its.count() > 0, "{established:?}");
    }
    // And no packet was taken for a stranger's.
    let resets = daemon
        .stat()
        .into_iter()
        .find(|line| line["counter"] == "ResetsOut")
        .expect("the stack counts them");
    assert_eq!(resets["value"], 0);
    drop(nginx);
}
