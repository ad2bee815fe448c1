//! Links of every kind: MTUs, offload, several queues, IPv6.

#![allow(missing_docs)]

use std::time::{Duration, Instant};
use uktls_tests::{
    Certificate, Daemon, Folder, Network, Nginx, PATIENCE, Process, Serve, pattern, wait_for,
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
    daemon.stop().success();
}

#[test]
fn every_mtu_with_offload() {
    for mtu in ["576", "1280", "1500", "9000", "65520"] {
        both_ways(&["--mtu", mtu]);
    }
}

#[test]
fn every_mtu_on_a_plain_tun() {
    for mtu in ["576", "1280", "1500", "9000", "65520"] {
        both_ways(&["--mtu", mtu, "--offload", "off"]);
    }
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

/// The kernel forgets after some idle seconds which queue a flow belongs to; what it then sends to another one must reach
/// its connection all the same.
#[test]
fn connections_over_two_shards_survive_ten_idle_seconds() {
    let (network, files) = (Network::new(), Folder::new());
    files.write("file", &pattern(1000));
    let daemon = Daemon::start(&network, &["--shards", "2"]);
    let serve = Serve::start(&daemon, files.path(), &[]);
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
    };
    everybody_has(1);
    // Ten seconds are what is tested here: that long nothing is sent, and nobody may be told that it is over.
    let idle = Instant::now();
    wait_for("ten idle seconds", Duration::from_secs(20), || {
        (idle.elapsed() > Duration::from_secs(10)).then_some(())
    });
    everybody_has(2);
}
