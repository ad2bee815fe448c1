//! What the environment says of runs, to a process that has it in its own environment: this test program, started again.

use super::{echo, exchange, lossy, noise, serve, two};
use std::cell::Cell;
use std::ffi::OsStr;
use std::process::Command;
use uktls_stack::sim::{Runs, TcpStream};

/// Says what the program that was started again is to do.
const INSIDE: &str = "UKTLS_TEST_INSIDE";
/// What this test's own environment may have, and the other program's must not.
const VARIABLES: [&str; 5] = [
    "UKTLS_SEED",
    "UKTLS_SEEDS",
    "UKTLS_CHECK_DETERMINISM",
    "UKTLS_SHRINK",
    "UKTLS_PCAP",
];

/// Runs [`a_run_as_the_environment_says`] with these variables. Gives whether it passed, and what it printed.
fn inside(what: &str, variables: &[(&str, &OsStr)]) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command
        .args(["--exact", "environment::a_run_as_the_environment_says"])
        .arg("--nocapture");
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    let output = command
        .env(INSIDE, what)
        .envs(variables.iter().copied())
        .output()
        .expect("it starts");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// The seeds that passing runs had, in their order.
fn seeds(what: &str, variables: &[(&str, &str)]) -> Vec<u64> {
    let variables: Vec<_> = variables
        .iter()
        .map(|(name, value)| (*name, OsStr::new(value)))
        .collect();
    let (passed, text) = inside(what, &variables);
    assert!(passed, "{text}");
    text.lines()
        .filter_map(|line| line.strip_prefix("a run with seed "))
        .map(|seed| seed.parse().expect("a number"))
        .collect()
}

/// What `inside` starts; nothing otherwise.
#[test]
fn a_run_as_the_environment_says() {
    let Ok(what) = std::env::var(INSIDE) else {
        return;
    };
    println!(); // the line has the test's name on it
    let runs = match &*what {
        "three" => Runs::from_env().seeds(1, 3),
        _ => Runs::from_env(),
    };
    let count = Cell::new(0);
    runs.run(|net| {
        println!("a run with seed {}", net.seed());
        let (client, server) = two(net, lossy(2));
        serve(&server, "0.0.0.0:7", echo);
        count.set(count.get() + 1);
        let len = if what == "differs" { count.get() } else { 10 };
        let fails = what == "fails";
        client.spawn(async move {
            let stream = TcpStream::connect("server:7").await.expect("connected");
            exchange(stream, noise(1, len)).await;
            assert!(!fails, "the planted bug");
        });
    });
}

#[test]
fn seeds_are_chosen_by_the_environment() {
    assert_eq!(seeds("one", &[]), [1]);
    assert_eq!(seeds("one", &[("UKTLS_SEED", "0x2a")]), [42]);
    assert_eq!(
        seeds("one", &[("UKTLS_SEED", "7"), ("UKTLS_SEEDS", "3")]),
        [7, 8, 9]
    );
    // A test that has seeds of its own gives way to who names one.
    assert_eq!(seeds("three", &[]), [1, 2, 3]);
    assert_eq!(seeds("three", &[("UKTLS_SEED", "7")]), [7]);
    let (passed, text) = inside("one", &[("UKTLS_SEED", OsStr::new("seven"))]);
    assert!(
        !passed && text.contains(r#"UKTLS_SEED="seven" is no number"#),
        "{text}"
    );
}

#[test]
fn runs_are_compared_when_the_environment_says_so() {
    let twice = ("UKTLS_CHECK_DETERMINISM", "1");
    assert_eq!(seeds("one", &[twice, ("UKTLS_SEED", "7")]), [7, 7]);
    let (passed, text) = inside("differs", &[(twice.0, OsStr::new(twice.1))]);
    assert!(
        !passed && text.contains("two runs of the same seed differ"),
        "{text}"
    );
    assert!(inside("differs", &[]).0);
}

#[test]
fn failures_shrink_when_the_environment_says_so() {
    let alone = "it still fails with this alone";
    let (passed, text) = inside("fails", &[("UKTLS_SHRINK", OsStr::new("1"))]);
    assert!(!passed && text.contains(alone), "{text}");
    let (passed, text) = inside("fails", &[]);
    assert!(!passed && !text.contains(alone), "{text}");
}

#[test]
fn a_run_is_recorded_where_the_environment_says() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("run.pcapng");
    let (passed, text) = inside("one", &[("UKTLS_PCAP", path.as_os_str())]);
    assert!(passed, "{text}");
    let file = std::fs::read(&path).expect("it was written");
    // The block type that every pcapng file begins with, and a host's name.
    assert!(file.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]), "{file:02x?}");
    assert!(file.windows(6).any(|name| name == b"server"), "{file:02x?}");
}
