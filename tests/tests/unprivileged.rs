//! No root: what works without, works; the rest says in one line what to do.

#![allow(missing_docs)]

use std::process::Command;
use uktls_tests::{Finished, Folder, PATIENCE, Process, uktls_program, unprivileged};

/// `uktls` with these words, by somebody without rights whose folder is `home`.
fn uktls(home: &Folder, words: &[&str]) -> Command {
    let mut command = unprivileged(uktls_program(), home.path(), "/usr/sbin:/usr/bin:/bin");
    command.args(words);
    command
}

fn ended(command: Command) -> Finished {
    Process::start(command, &[]).end(PATIENCE * 3)
}

#[test]
fn the_demo_needs_neither_root_nor_curl_nor_openssl() {
    let home = Folder::new();
    let mut demo = unprivileged(uktls_program(), home.path(), "/nowhere");
    demo.arg("demo");
    let finished = ended(demo).success();
    let said = String::from_utf8_lossy(&finished.stdout);
    for sentence in [
        "curl is not installed (Debian: apt-get install curl)",
        "openssl is not installed (Debian: apt-get install openssl)",
        "uktls serve -> uktls get, TLS 1.2",
        "uktls serve -> uktls get, TLS 1.3",
    ] {
        assert!(said.contains(sentence), "{}", finished.describe());
    }
    let matches = said.matches("SHA-256 matches").count();
    assert_eq!(matches, 3, "{}", finished.describe());
    let capture = std::fs::metadata(home.join("uktls-demo.pcapng")).expect("a capture");
    assert!(capture.len() > 8 << 20);
}

#[test]
fn run_serves_and_gets_in_a_network_of_its_own() {
    let home = Folder::new();
    // The page comes from the stack, the other direction from a server on the kernel's side.
    let script = r#"
        set -e
        mkdir site && echo a page > site/page
        "$0" serve --json --listen 10.77.0.2:443 site > ready & serve=$!
        openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -subj /CN=x 2>/dev/null
        (cd site && exec openssl s_server -quiet -WWW -accept 10.77.0.1:8443 -cert ../cert -key ../key) & peer=$!
        trap 'kill $serve $peer; wait' EXIT
        for i in $(seq 100); do grep -q ready ready && break; sleep 0.1; done
        curl -sSk --retry 20 --retry-connrefused --noproxy '*' https://10.77.0.2/page
        for i in $(seq 100); do "$0" -q get -k https://10.77.0.1:8443/page -o got && break; sleep 0.1; done
        cat got
        "$0" stat --json | grep -c '"counter"'
    "#;
    let program = uktls(&home, &[]);
    let words: Vec<_> = program.get_args().map(ToOwned::to_owned).collect();
    let itself = words
        .last()
        .map_or(uktls_program().into(), std::path::PathBuf::from);
    let mut run = uktls(&home, &["run", "--", "sh", "-c", script]);
    run.arg(itself);
    let finished = ended(run).success();
    let said = String::from_utf8_lossy(&finished.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["a page"; 2], "{}", finished.describe());
    assert!(lines[2].parse::<u32>().is_ok_and(|counters| counters > 10));
}

#[test]
fn the_benchmarks_run() {
    for words in [
        &["sendfile", "--rounds", "1"][..],
        &["receive", "--rounds", "1"],
        &["idle", "--conns", "50"],
    ] {
        let home = Folder::new();
        let bench = ["bench", "--quiet", "--json"];
        let bench = [&bench, words, &["--file-size", "16M"]].concat();
        let finished = ended(uktls(&home, &bench)).success();
        assert!(!finished.stdout.is_empty(), "{}", finished.describe());
    }
}

#[test]
fn what_needs_more_says_what_to_do() {
    let home = Folder::new();
    let listen = ["serve", "--listen", "10.77.0.2:443", "."];
    for words in [&["up"][..], &listen] {
        ended(uktls(&home, words)).one_line(&["CAP_NET_ADMIN", "`uktls run`"]);
    }
    for words in [&["stat"][..], &["get", "-k", "https://10.77.0.1/"]] {
        ended(uktls(&home, words)).one_line(&["no uktls daemon", "`uktls up`"]);
    }
}

#[test]
fn a_device_node_for_root_alone_is_named() {
    if !rustix::process::geteuid().is_root() {
        // Nobody else can make the node so.
        return;
    }
    let home = Folder::new();
    let inner = uktls(&home, &["run", "--", "true"]);
    let words = inner.get_args().map(|word| {
        let word = word.to_string_lossy();
        word.replace("mknod -m 666", "mknod -m 600")
    });
    let mut command = Command::new(inner.get_program());
    command.args(words).current_dir(home.path());
    ended(command).one_line(&["/dev/net/tun", "chmod 666"]);
}
