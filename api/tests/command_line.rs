//! What goes wrong is said in one line, with exit status 1; usage errors are clap's, with status 2.

#![allow(missing_docs)]

use std::path::Path;
use std::process::{Command, Output};

fn uktls(folder: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uktls"));
    command.args(words).current_dir(folder);
    command
        .env_remove("UKTLS_SOCKET")
        .env_remove("SSLKEYLOGFILE")
        .env_remove("RUST_LOG");
    command.output().expect("the program ran")
}

#[test]
fn faults_are_one_line_that_says_what_and_status_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    std::fs::write(at.join("noise"), "no PEM").expect("written");
    let made = rcgen::generate_simple_self_signed(vec!["a.test".into()]).expect("a certificate");
    let other = rcgen::generate_simple_self_signed(vec!["b.test".into()]).expect("a certificate");
    std::fs::write(at.join("cert"), made.cert.pem()).expect("written");
    std::fs::write(at.join("other"), other.signing_key.serialize_pem()).expect("written");
    for (line, wants) in [
        (
            "serve --listen 10.77.0.2:443 /nonexistent/dir",
            &["cannot serve /nonexistent/dir", "No such file"][..],
        ),
        (
            "serve --listen 10.77.0.2:443 noise",
            &["cannot serve noise", "Not a directory"],
        ),
        (
            "serve --listen 10.77.0.2:443 --cert none --key noise .",
            &["certificate none", "No such file"],
        ),
        (
            "serve --listen 10.77.0.2:443 --cert noise --key noise .",
            &["noise holds no certificate"],
        ),
        (
            "serve --listen 10.77.0.2:443 --cert cert --key noise .",
            &["noise holds no private key"],
        ),
        (
            "serve --listen 10.77.0.2:443 --cert cert --key other .",
            &["cert", "other"],
        ),
        (
            "serve --socket ./none.sock --listen 10.77.0.2:443 .",
            &["no uktls daemon at ./none.sock", "uktls up"],
        ),
        ("up --addr fd77::2/64", &["--addr6"]),
        (
            "up --addr 10.1.0.2/24 --host-addr fd77::1/64",
            &["different families"],
        ),
        ("up --mtu 575", &["576 to 65520"]),
        ("up --mtu 1279 --addr6 fd77::2/64", &["IPv6 needs 1280"]),
        ("run --addr 10.1.0.1/32 -- true", &["no room for the host"]),
        (
            "get --socket ./none.sock https://10.77.0.1/",
            &["no uktls daemon", "--socket"],
        ),
        ("get ftp://10.77.0.1/", &["ftp:// is not supported"]),
        (
            "get --cacert noise https://10.77.0.1/",
            &["noise holds no certificate"],
        ),
        (
            "stat --socket ./none.sock",
            &["no uktls daemon at ./none.sock"],
        ),
        ("stat --socket noise", &["noise"]),
    ] {
        is_one_line(at, line, wants);
    }
}

/// Runs `uktls LINE` in the folder `at`, which must fail in one line that holds every one of `wants`.
fn is_one_line(at: &Path, line: &str, wants: &[&str]) {
    let output = uktls(at, &line.split(' ').collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{line}: {said}");
    assert_eq!(said.lines().count(), 1, "{line}: {said}");
    assert!(said.starts_with("uktls: "), "{line}: {said}");
    for want in wants {
        assert!(said.contains(want), "{line}: {said}");
    }
    assert!(!said.contains("os error"), "{line}: {said}");
}

#[cfg(feature = "openssl")]
#[test]
fn faults_of_dtls_commands_are_one_line_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    std::fs::write(at.join("noise"), "no PEM").expect("written");
    let made = rcgen::generate_simple_self_signed(vec!["a.test".into()]).expect("a certificate");
    let other = rcgen::generate_simple_self_signed(vec!["b.test".into()]).expect("a certificate");
    std::fs::write(at.join("cert"), made.cert.pem()).expect("written");
    std::fs::write(at.join("other"), other.signing_key.serialize_pem()).expect("written");
    let no_daemon = &["no uktls daemon at ./none.sock", "uktls up"][..];
    for (line, wants) in [
        (
            "dtls-send --connect 10.77.0.1:4433 none",
            &["cannot read none", "No such file"][..],
        ),
        (
            "dtls-send --connect 10.77.0.1:4433 .",
            &[". is no regular file"],
        ),
        (
            "dtls-send --socket ./none.sock --connect 10.77.0.1:4433 noise",
            no_daemon,
        ),
        (
            "dtls-recv --socket ./none.sock --listen 10.77.0.2:4433",
            no_daemon,
        ),
        (
            "dtls-recv --listen 10.77.0.2:4433 -o /nonexistent/got",
            &["cannot write to /nonexistent/got", "No such file"],
        ),
        (
            "dtls-echo --listen 10.77.0.2:4433 --cert noise --key noise",
            &["noise holds no certificate"],
        ),
        (
            "dtls-echo --listen 10.77.0.2:4433 --cert cert --key noise",
            &["noise holds no private key"],
        ),
        (
            "dtls-echo --listen 10.77.0.2:4433 --cert cert --key other",
            &["other is not the key of the certificate cert"],
        ),
        (
            "dtls-echo --listen 10.77.0.2:4433 --cert none --key noise",
            &["cannot read the certificate none", "No such file"],
        ),
        (
            "dtls-echo --listen 10.77.0.2:4433 --cert-out /nonexistent/cert",
            &["cannot write the certificate /nonexistent/cert"],
        ),
        (
            "dtls-recv --listen [fd77::2]:1 --mtu 575",
            &["576 to 65520"],
        ),
    ] {
        is_one_line(at, line, wants);
    }
}

/// Who finds the commands in `--help` learns in one line which build has them.
#[cfg(not(feature = "openssl"))]
#[test]
fn dtls_commands_name_the_build_that_has_them() {
    let folder = tempfile::tempdir().expect("a folder");
    for line in [
        "dtls-send --connect 10.77.0.1:4433 file",
        "dtls-recv --listen 10.77.0.2:4433",
        "dtls-echo --listen 10.77.0.2:4433",
        "demo --dtls",
    ] {
        let command = line.split(" --").next().unwrap_or(line);
        is_one_line(
            folder.path(),
            line,
            &["--features openssl", "libssl-dev", command],
        );
    }
}

#[test]
fn usage_errors_are_status_2_and_help_is_0() {
    let folder = tempfile::tempdir().expect("a folder");
    for line in [
        "nonsense",
        "serve --listen nowhere .",
        "serve --listen 10.0.0.1:1 --cert x .",
        "up --addr 10.0.0.1",
        "up --shards 0",
        "run",
        "get --insecure --cacert x https://x/",
        "stat -v -q",
        "dtls-send --connect 10.77.0.1:1",
        "dtls-recv",
        "dtls-recv --listen 10.77.0.2:1 --connect 10.77.0.1:1",
        "dtls-recv --listen 10.77.0.2",
        "dtls-recv --listen 10.77.0.2:1 --sha256 00",
        "dtls-recv --listen 10.77.0.2:1 --size x",
        "dtls-send --connect 10.77.0.1:1 --payload 16385 x",
        "dtls-send --connect 10.77.0.1:1 --rate fast x",
        "dtls-echo --connect 10.77.0.1:1 --cert x --key y",
        "dtls-echo --listen 10.77.0.2:1 --insecure",
        "dtls-echo --listen 10.77.0.2:1 --timeout 0",
    ] {
        let output = uktls(folder.path(), &line.split(' ').collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2), "{line}");
    }
    for command in [
        "demo",
        "run",
        "serve",
        "get",
        "dtls-send",
        "dtls-recv",
        "dtls-echo",
        "up",
        "stat",
        "bench",
    ] {
        let output = uktls(folder.path(), &[command, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("Usage: uktls"),
            "{command}"
        );
    }
}
