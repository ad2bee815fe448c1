//! What Wireshark sees: given the keys, a capture decrypts to the file's bytes.

#![allow(missing_docs)]

use std::path::Path;
use uktls_tests::{
    Certificate, Daemon, Folder, Network, Nginx, PATIENCE, Process, Serve, VERSIONS, pattern, tool,
};

const SIZE: usize = 8 << 20;

/// The body that `tshark` finds in the only response of a capture, and what it calls malformed or retransmitted.
fn dissect(capture: &Path, keys: Option<&Path>, folder: &Folder) -> Vec<u8> {
    let objects = folder.join("objects");
    let mut tshark = std::process::Command::new(tool("tshark"));
    tshark
        .arg("-r")
        .arg(capture)
        .args(["-q", "--export-objects"]);
    tshark.arg(format!("http,{}", objects.display()));
    tshark.args(["-o", "tcp.desegment_tcp_streams:TRUE"]);
    if let Some(keys) = keys {
        tshark
            .arg("-o")
            .arg(format!("tls.keylog_file:{}", keys.display()));
    }
    // Settings of whoever runs the tests must not matter.
    tshark
        .env("HOME", folder.path())
        .env_remove("SSLKEYLOGFILE");
    let finished = Process::start(tshark, &[]).end(PATIENCE * 2).success();
    let name = std::fs::read_dir(&objects)
        .ok()
        .and_then(|mut files| files.next())
        .unwrap_or_else(|| panic!("no object: {}", finished.describe()));
    let path = name.expect("readable").path();
    let body = std::fs::read(&path).expect("written by tshark");
    std::fs::remove_dir_all(objects).expect("removed");
    body
}

#[test]
fn tshark_decrypts_a_capture_with_the_key_log() {
    for version in VERSIONS {
        let (network, files) = (Network::new(), Folder::new());
        let (capture, keys) = (files.join("all.pcapng"), files.join("keys"));
        std::fs::create_dir(files.join("site")).expect("a folder");
        files.write("site/file", &pattern(SIZE));
        let path = |path: &Path| path.to_str().expect("a path of our own making").to_owned();
        let daemon = Daemon::start(&network, &["--pcap", &path(&capture)]);
        let options = ["--tls", version, "--keylog", &path(&keys)];
        let serve = Serve::start(&daemon, &files.join("site"), &options);
        assert!(serve.fetch(&network, "/file", &[]) == pattern(SIZE));
        drop(serve);
        daemon.stop().success();
        let body = dissect(&capture, Some(&keys), &files);
        assert!(body == pattern(SIZE), "TLS {version}: {} bytes", body.len());
    }
}

#[test]
fn a_capture_of_serve_with_its_own_stack_carries_its_keys() {
    let (network, files) = (Network::new(), Folder::new());
    let (capture, socket) = (files.join("all.pcapng"), files.join("own.sock"));
    std::fs::create_dir(files.join("site")).expect("a folder");
    files.write("site/file", &pattern(SIZE));
    let mut command = network.uktls(&["serve", "--addr", "10.77.0.2/24", "--socket"]);
    command.arg(socket).arg("--pcap").arg(&capture);
    let serve = Serve::start_on(command, "10.77.0.2:443", &files.join("site"), &[]);
    assert!(serve.fetch(&network, "/file", &[]) == pattern(SIZE));
    serve.process.signal(rustix::process::Signal::TERM);
    serve.process.end(PATIENCE).success();
    let body = dissect(&capture, None, &files);
    assert!(body == pattern(SIZE), "{} bytes", body.len());
}

#[test]
fn a_capture_of_the_daemon_gets_the_keys_of_those_who_use_it() {
    for version in VERSIONS {
        let (network, files) = (Network::new(), Folder::new());
        let capture = files.join("all.pcapng");
        std::fs::create_dir(files.join("site")).expect("a folder");
        files.write("site/file", &pattern(SIZE));
        let pcap = [
            "--pcap",
            capture.to_str().expect("a path of our own making"),
        ];
        let daemon = Daemon::start(&network, &pcap);
        let serve = Serve::start(&daemon, &files.join("site"), &["--tls", version]);
        assert!(serve.fetch(&network, "/file", &[]) == pattern(SIZE));
        drop(serve);
        daemon.stop().success();
        let body = dissect(&capture, None, &files);
        assert!(body == pattern(SIZE), "TLS {version}: {} bytes", body.len());
    }
}

/// Under TLS 1.3 a client knows its secrets only from the packet that holds the server's first protected record; who reads the
/// capture once from front to back must find them in front of it.
#[test]
fn a_capture_of_the_daemon_gets_the_keys_of_a_client_as_well() {
    for version in VERSIONS {
        let (network, files) = (Network::new(), Folder::new());
        let capture = files.join("all.pcapng");
        files.write("file", &pattern(SIZE));
        let pcap = [
            "--pcap",
            capture.to_str().expect("a path of our own making"),
        ];
        let daemon = Daemon::start(&network, &pcap);
        let certificate = Certificate::make(&files);
        let nginx = Nginx::start(&network, files.path(), 8443, &certificate, "");
        let got = daemon.get(&["-k", "--tls", version, &nginx.url("file"), "-o", "-"]);
        assert!(got.success().stdout == pattern(SIZE));
        daemon.stop().success();
        let body = dissect(&capture, None, &files);
        assert!(body == pattern(SIZE), "TLS {version}: {} bytes", body.len());
    }
}
