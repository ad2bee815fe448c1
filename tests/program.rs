//! Where the program under test is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The program `uktls` of this build: `$UKTLS_BIN`, or else what cargo builds of the sources in the tests' own profile.
pub fn uktls_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("UKTLS_BIN") {
        Some(path) => {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "no program at {path:?} ($UKTLS_BIN)");
            path
        }
        None => build(),
    })
}

/// An example's program of this build.
pub fn example(name: &str) -> PathBuf {
    let profile = cargo_build(&["--package", "uktls-examples", "--example", name]);
    profile.join("examples").join(name)
}

/// Cargo gives `CARGO_BIN_EXE_…` to tests of the program's own package only. With DTLS, as `cargo test --workspace` builds it.
fn build() -> PathBuf {
    let words = ["--package", "uktls", "--bin", "uktls"];
    cargo_build(&[&words[..], &["--features", "openssl"]].concat()).join("uktls")
}

/// Builds what the words name in the tests' own profile, and gives the folder of that profile.
fn cargo_build(what: &[&str]) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own file");
    // target/PROFILE/deps/test-…
    let profile = test.ancestors().nth(2).expect("a test is in deps");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.args(["build", "--quiet"]).args(what);
    if let Some(target) = profile.parent() {
        cargo.arg("--target-dir").arg(target);
    }
    if profile.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "cargo build {what:?} failed");
    profile.to_path_buf()
}
