//! What goes wrong in the middle of a transfer: the one who is concerned gets an error, the others notice nothing.

#![allow(missing_docs)]

use rustix::process::Signal;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::time::Duration;
use uktls_tests::{
    Daemon, Folder, Network, PATIENCE, Process, Serve, checksum, dense, pattern, sparse, wait_for,
};

const BIG: u64 = 1 << 30;

/// A curl that takes `/big` slowly enough to be met in the middle.
fn slow_curl(network: &Network, serve: &Serve, out: &Path) -> Process {
    let out = out.to_str().expect("a path of our own making");
    let curl = serve.curl(network, "/big", &["--limit-rate", "20M", "-o", out]);
    let curl = Process::start(curl, &[]);
    wait_for("the first bytes of the body", PATIENCE, || {
        assert!(!curl.ended_within(Duration::ZERO), "{}", curl.describe());
        let length = std::fs::metadata(out).map_or(0, |file| file.len());
        (length > 0).then_some(())
    });
    curl
}

fn sockets(daemon: &Daemon<'_>, kind: &str) -> usize {
    let stat = daemon.stat();
    stat.iter()
        .filter(|line| line["socket"]["kind"] == kind)
        .count()
}

fn no_connection_is_left(daemon: &Daemon<'_>) {
    wait_for("the connection's end in the stack", PATIENCE, || {
        (sockets(daemon, "tcp") == 0).then_some(())
    });
}

#[test]
fn a_client_killed_in_the_middle_leaves_nothing_and_others_go_on() {
    let (network, files) = (Network::new(), Folder::new());
    sparse(&files.join("big"), BIG);
    files.write("small", &pattern(100_000));
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    for _ in 0..3 {
        let curl = slow_curl(&network, &serve, &files.join("out"));
        assert_eq!(sockets(&daemon, "tcp"), 1);
        curl.signal(Signal::KILL);
        drop(curl);
        std::fs::remove_file(files.join("out")).expect("written");
        no_connection_is_left(&daemon);
        assert!(serve.fetch(&network, "/small", &[]) == pattern(100_000));
    }
}

#[test]
fn a_file_cut_while_it_is_sent_ends_in_an_error_for_its_client_alone() {
    const MIB: u64 = 256;
    let (network, files) = (Network::new(), Folder::new());
    let (site, whole) = (files.join("site"), files.join("whole"));
    std::fs::create_dir(&site).expect("a folder");
    // No byte of it is zero, so that what a mapping shows behind the cut is seen if it gets out.
    dense(&site.join("big"), MIB);
    std::fs::copy(site.join("big"), &whole).expect("room");
    files.write("site/small", &pattern(100_000));
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, &site, &[]);
    for cut in [4097, 1 << 20] {
        std::fs::copy(&whole, site.join("big")).expect("room");
        let curl = slow_curl(&network, &serve, &files.join("out"));
        let big = OpenOptions::new().write(true).open(site.join("big"));
        big.and_then(|file| file.set_len(cut)).expect("cut");
        let finished = curl.end(PATIENCE);
        // 18: fewer bytes than announced; 56: the connection was reset.
        assert!(
            matches!(finished.status.code(), Some(18 | 56)),
            "{}",
            finished.describe()
        );
        // What came before the cut is the file's, in order and unharmed.
        let got = File::open(files.join("out")).expect("written");
        let length = got.metadata().expect("a file").len();
        assert!(length < MIB << 20);
        let beginning = File::open(&whole).expect("written").take(length);
        assert!(checksum(got) == checksum(beginning), "{length} bytes");
        no_connection_is_left(&daemon);
        assert!(serve.fetch(&network, "/small", &[]) == pattern(100_000));
        std::fs::remove_file(files.join("out")).expect("written");
    }
}

#[test]
fn a_daemon_stopped_in_the_middle_resets_its_connections_and_takes_its_interface_along() {
    let (network, files) = (Network::new(), Folder::new());
    sparse(&files.join("big"), BIG);
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    assert!(network.has_interface("uktls0"));
    let curl = slow_curl(&network, &serve, &files.join("out"));
    let socket = daemon.socket().to_owned();
    daemon.stop().success();
    assert!(!network.has_interface("uktls0"));
    assert!(!socket.exists());
    let finished = curl.end(PATIENCE);
    assert_eq!(finished.status.code(), Some(56), "{}", finished.describe());
    // The server on the other side of the socket learns it too.
    let served = serve.process.end(PATIENCE);
    assert_eq!(served.status.code(), Some(1), "{}", served.describe());
}

#[test]
fn a_server_killed_in_the_middle_resets_its_clients_and_the_port_is_free_again() {
    let (network, files) = (Network::new(), Folder::new());
    sparse(&files.join("big"), BIG);
    files.write("small", &pattern(100_000));
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    let curl = slow_curl(&network, &serve, &files.join("out"));
    assert_eq!(sockets(&daemon, "tcp-listener"), 1);
    serve.process.signal(Signal::KILL);
    drop(serve);
    let finished = curl.end(PATIENCE);
    assert!(
        matches!(finished.status.code(), Some(18 | 56)),
        "{}",
        finished.describe()
    );
    wait_for("the listener's end in the stack", PATIENCE, || {
        (sockets(&daemon, "tcp-listener") + sockets(&daemon, "tcp") == 0).then_some(())
    });
    let serve = Serve::start(&daemon, files.path(), &[]);
    assert!(serve.fetch(&network, "/small", &[]) == pattern(100_000));
}
