//! What a newcomer needs: Rust and a C compiler.

#![allow(missing_docs)]

use std::process::Command;
use uktls_tests::{PATIENCE, Process};

/// `cargo run --release -- demo` and `cargo build --release` build this much of the dependencies; tests and examples need more.
#[test]
fn what_is_built_needs_no_library_of_the_system() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    cargo.args(["tree", "--workspace", "--edges", "normal,build"]);
    cargo.args(["--prefix", "none", "--locked", "--offline"]);
    let tree = Process::start(cargo, &[]).end(PATIENCE).success();
    let tree = String::from_utf8(tree.stdout).expect("names");
    assert!(tree.contains("rustls v") && tree.contains("aws-lc-sys v"));
    // (aws-lc-sys has pkg-config and cmake for other ways of building than with the compiler alone.)
    for wanting in ["openssl-sys v", "vcpkg v", "bindgen v"] {
        let found = tree.lines().find(|line| line.starts_with(wanting));
        assert_eq!(found, None);
    }
}
