//! Deterministic network tests, each file one that can be copied into a project's `tests/`.
//!
//! | file | what it shows |
//! | --- | --- |
//! | `echo.rs` | the least there is: two hosts, a lossy link, a server and a client |
//! | `forged_bit.rs` | kernel-TLS calls on simulated sockets, a handshake that repeats, a fault aimed at one record: `EBADMSG` |
//! | `truncation.rs` | an attacker as a host of its own; a clean end told from one that was cut |
//! | `http_over_3g.rs` | hyper and tokio-rustls, unchanged, over a preset; what has to be switched off in them |
//! | `datagrams.rs` | DTLS records by hand, over a link that loses, doubles, swaps and forges datagrams |
//! | `dtls_replay.rs` | DTLS keys on simulated sockets: datagrams played again and held back while the keys change |
//! | `seed_sweep.rs` | a planted bug found by trying seeds, and shrunk to what triggers it |
//!
//! ```sh
//! cargo test -p uktls-examples --test simulations            # all of them, in a second
//! cargo test -p uktls-examples --test simulations echo       # one
//! ```
//!
//! The test in this file runs each of them twice and holds the runs against each other, packet by packet; `tests/run` does so in an unoptimised
//! and in an optimised build, and compares the hashes.

mod datagrams;
mod dtls_replay;
mod echo;
mod forged_bit;
mod http_over_3g;
mod seed_sweep;
mod truncation;

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::process::Command;
use uktls_stack::sim::{Net, Runs};

/// A network and its programs.
type Scenario = fn(&Net);

const ALL: [(&str, Scenario); 7] = [
    ("datagrams", datagrams::scenario),
    ("dtls_replay", dtls_replay::scenario),
    ("echo", echo::scenario),
    ("forged_bit", forged_bit::scenario),
    ("http_over_3g", http_over_3g::scenario),
    ("seed_sweep", seed_sweep::scenario),
    ("truncation", truncation::scenario),
];

/// A recording needs nothing beside it: names and keys are inside.
#[test]
fn tshark_shows_what_was_inside_the_records() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("http.pcapng");
    let net = Net::new(1);
    net.record(&path).expect("a temporary file");
    http_over_3g::scenario(&net);
    net.run();
    let fields = "-N n -o tcp.check_checksum:TRUE -Y http||!(tcp.checksum.status==1) -T fields -e ip.src_host -e http.request.uri -e http.response.code";
    let tshark = Command::new("tshark")
        .arg("-r")
        .arg(&path)
        .args(fields.split(' '))
        .output();
    let output = match tshark {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("tshark is not installed: its view of the recording was not checked");
            return;
        }
        Err(error) => panic!("tshark: {error}"),
    };
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        shown,
        "phone\t/page\t\nserver\t\t200\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Where the hashes go, for `tests/run`.
const HASHES: &str = "UKTLS_HASHES";

#[test]
fn every_simulation_repeats() {
    let mut hashes = String::new();
    for (name, scenario) in ALL {
        for seed in [1, 2] {
            let runs = Runs::from_env().only(seed, 1).check_determinism(true);
            let report = runs.run(scenario);
            writeln!(hashes, "{name} seed {seed}: {:016x}", report.hash)
                .expect("memory takes everything");
        }
    }
    print!("{hashes}");
    let mut different: Vec<&str> = hashes.lines().collect();
    different.sort_by_key(|line| line.rsplit_once(' ').map(|(_, hash)| hash));
    different.dedup_by_key(|line| line.rsplit_once(' ').map(|(_, hash)| hash));
    assert_eq!(
        different.len(),
        2 * ALL.len(),
        "other seeds and other networks are other runs"
    );
    if let Some(path) = std::env::var_os(HASHES) {
        std::fs::write(path, hashes).expect("the file that was asked for");
    }
}
