//! The examples that need a stack do what they say.

#![allow(missing_docs)]

use std::process::Command;
use uktls_tests::{PATIENCE, Process, example, uktls_program};

#[test]
fn an_echo_on_the_ktls_calls_talks_to_openssl() {
    let mut run = Command::new(uktls_program());
    run.args(["run", "--"]).arg(example("ktls_echo"));
    let finished = Process::start(run, &[]).end(PATIENCE).success();
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    for line in [
        "server: read  \"one line, in the clear to both programs\"",
        "client: got   \"ONE LINE, IN THE CLEAR TO BOTH PROGRAMS\"",
        "client: OpenSSL agreed on TLSv1.3",
    ] {
        assert!(said.contains(line), "{}", finished.describe());
    }
    // The stack did the sealing and the opening.
    let counted = said.lines().find_map(|line| line.strip_prefix("stack:  "));
    let counted = counted.unwrap_or_else(|| panic!("{}", finished.describe()));
    assert!(!counted.starts_with("0 records sealed"), "{counted}");
    assert!(counted.contains(" 1 opened"), "{counted}");
}
