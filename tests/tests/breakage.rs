//! What goes wrong in the middle of a transfer: the one who is concerned gets an error, the others notice nothing.

#![allow(missing_docs)]

use rustix::process::Signal;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Duration;
use uktls_tests::{Daemon, Folder, Network, PATIENCE, Process, Serve, pattern, sparse, wait_for};

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
    let (network, files) = (Network::new(), Folder::new());
    sparse(&files.join("big"), BIG);
    files.write("small", &pattern(100_000));
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    let curl = slow_curl(&network, &serve, &files.join("out"));
    let big = OpenOptions::new().write(true).open(files.join("big"));
    big.and_then(|file| file.set_len(4097)).expect("cut");
    let finished = curl.end(PATIENCE);
    // 18: fewer bytes than announced; 56: the connection was reset.
    assert!(
        matches!(finished.status.code(), Some(18 | 56)),
        "{}",
        finished.describe()
    );
    // What came before the cut is the file's, in order and unharmed.
    let got = File::open(files.join("out")).expect("written");
    let whole = Folder::new();
    sparse(&whole.join("big"), BIG);
    let whole = File::open(whole.join("big")).expect("written");
    let length = got.metadata().expect("a file").len();
    assert!(length < BIG);
    // The cut may have met pages that were on their way as zeros behind the new end: never anything else.
    assert!(same_or_zero(got, whole), "{length} bytes");
    no_connection_is_left(&daemon);
    assert!(serve.fetch(&network, "/small", &[]) == pattern(100_000));
}

/// Whether `got` is a beginning of `whole`, up to zeros in place of what was cut.
fn same_or_zero(got: File, whole: File) -> bool {
    use std::os::unix::fs::FileExt;
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let n = got.read_at(&mut a, at).expect("readable");
        if n == 0 {
            return true;
        }
        whole
            .read_exact_at(&mut b[..n], at)
            .expect("longer than what came");
        if a[..n] != b[..n] {
            let differing = (0..n).find(|&i| a[i] != b[i] && a[i] != 0);
            if differing.is_some() {
                return false;
            }
        }
        at += n as u64;
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
