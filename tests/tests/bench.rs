//! The benchmarks run and print what they promise. How fast anything is, is not a test.

#![allow(missing_docs)]

use serde_json::Value;
use std::process::Command;
use uktls_tests::{PATIENCE, Process, uktls_program};

/// The metrics of one run, a value a line.
fn bench(words: &[&str]) -> Vec<Value> {
    let mut command = Command::new(uktls_program());
    command.args(["bench", "--quiet", "--json"]).args(words);
    let finished = Process::start(command, &[]).end(PATIENCE * 3).success();
    let lines = String::from_utf8_lossy(&finished.stdout).into_owned();
    let metrics: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    for metric in &metrics {
        assert_eq!(metric["bench"], words[0], "{lines}");
        let value = metric["value"].as_f64().expect("a number");
        // What is there alone has no peer to be compared with.
        match metric["peer"].as_str() {
            Some(_) => {
                let peer = metric["peer_value"].as_f64().expect("a number");
                let ratio = metric["ratio"].as_f64().expect("a number");
                assert!(
                    value > 0.0 && (ratio - value / peer).abs() < 0.01,
                    "{lines}"
                );
            }
            None => assert!(metric["peer_value"].is_null() && metric["ratio"].is_null()),
        }
    }
    metrics
}

/// Metric and peer of each.
fn names(metrics: &[Value]) -> Vec<(&str, Option<&str>)> {
    let name = |metric: &'_ Value| metric["metric"].as_str().expect("a name").len();
    assert!(metrics.iter().all(|metric| name(metric) > 0));
    metrics
        .iter()
        .map(|metric| {
            let name = metric["metric"].as_str().unwrap_or_default();
            (name, metric["peer"].as_str())
        })
        .collect()
}

#[test]
fn sendfile_prints_both_peers_and_the_pieces_of_the_limit() {
    let metrics = bench(&["sendfile", "--file-size", "16M", "--rounds", "1"]);
    let (nginx, rustls) = ("nginx-openssl-loopback", "rustls-aws-lc-loopback");
    assert_eq!(
        names(&metrics),
        [
            ("throughput", Some(nginx)),
            ("throughput", Some(rustls)),
            ("cpu_seconds_per_gb", Some(nginx)),
            ("cpu_seconds_per_gb", Some(rustls)),
            ("throughput_plain_tun", None),
            ("limit_write", None),
            ("limit_write_read", None),
            ("limit_write_read_seal", None),
        ]
    );
}

#[test]
fn receive_prints_itself_beside_curl() {
    let metrics = bench(&["receive", "--file-size", "16M", "--rounds", "1"]);
    let names = names(&metrics);
    assert_eq!(names.len(), 2, "{metrics:?}");
    assert_eq!(
        (names[0].0, names[1].0),
        ("throughput", "cpu_seconds_per_gb")
    );
    assert!(names.iter().all(|(_, peer)| peer.is_some()), "{metrics:?}");
}

#[test]
fn idle_prints_what_a_connection_costs() {
    let metrics = bench(&["idle", "--conns", "100", "--file-size", "16M"]);
    assert_eq!(names(&metrics), [("bytes_per_connection", None)]);
}

#[test]
fn sim_counts_data_packets_with_loss_and_without() {
    let metrics = bench(&["sim", "--bytes", "8M", "--rounds", "1"]);
    let of_both = [
        "packets_per_second",
        "throughput",
        "acknowledgements_per_second",
    ];
    let expected: Vec<String> = (of_both.iter().map(|name| name.to_string()))
        .chain(of_both.iter().map(|name| format!("{name}_loss_1")))
        .collect();
    let names: Vec<&str> = names(&metrics).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, expected);
}

#[test]
fn loss_compares_with_linux_and_says_how_sure_it_is() {
    let metrics = bench(&[
        "loss",
        "--cells",
        "goodput_1pct_10ms,fairness_4",
        "--seconds",
        "1",
        "--runs",
        "2",
    ]);
    let linux = Some("linux-cubic");
    assert_eq!(
        names(&metrics),
        [
            ("goodput_1pct_10ms", linux),
            ("fairness_4", linux),
            ("geometric_mean", linux),
            ("wire_late", None),
        ]
    );
    for metric in [&metrics[0], &metrics[2]] {
        let bound = |name: &str| metric[name].as_f64().expect("a bound");
        assert!(bound("ratio_low") <= bound("ratio_high"), "{metric}");
    }
}
