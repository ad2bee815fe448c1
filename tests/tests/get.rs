//! `uktls get` from real servers on the kernel's TCP: every record is opened in the stack (`TLS_RX`).

#![allow(missing_docs)]

use serde_json::Value;
use std::fs::File;
use std::time::Duration;
use uktls_tests::{
    CIPHERS, Certificate, Daemon, Folder, Network, Nginx, PATIENCE, Process, SIZES, SServer,
    VERSIONS, checksum, openssl_options, pattern, sparse, wait_for,
};

#[test]
fn openssl_s_server_in_every_version_and_cipher() {
    let (network, files) = (Network::new(), Folder::new());
    files.write_sizes(&SIZES);
    let certificate = Certificate::make(&files);
    let daemon = Daemon::start(&network, &[]);
    let out = files.join("out");
    let out = out.to_str().expect("a path of our own making");
    let mut port = 4433;
    for version in VERSIONS {
        for cipher in CIPHERS {
            let mut options = openssl_options(version, cipher).to_vec();
            options.push("-WWW");
            let server = SServer::start(&network, files.path(), port, &certificate, &options);
            port += 1;
            for size in SIZES {
                let url = server.url(&format!("{size}.bin"));
                let words = ["--json", "--cacert", certificate.path(), &url, "-o", out];
                let got = daemon.get(&words);
                assert!(
                    got.status.success(),
                    "TLS {version}, {cipher}: {}\nserver: {}",
                    got.describe(),
                    server.process.describe()
                );
                let summary: Value = serde_json::from_slice(&got.stdout).expect("JSON");
                assert_eq!(
                    (&summary["tls"], &summary["cipher"]),
                    (&version.into(), &cipher.into())
                );
                let body = std::fs::read(out).expect("written");
                assert!(body == pattern(size), "{url}: {} bytes differ", body.len());
            }
        }
    }
}

#[test]
fn nginx_over_both_families_and_versions() {
    let (network, files) = (Network::new(), Folder::new());
    files.write_sizes(&SIZES);
    let certificate = Certificate::make(&files);
    let daemon = Daemon::start(&network, &["--addr6", "fd77::2/64"]);
    let nginx = Nginx::start(&network, files.path(), 8443, &certificate, "");
    let out = files.join("out");
    let out = out.to_str().expect("a path of our own making");
    for version in VERSIONS {
        for size in SIZES {
            let name = format!("{size}.bin");
            for url in [nginx.url(&name), nginx.url6(&name)] {
                let trust = ["--tls", version, "--cacert", certificate.path()];
                let got = daemon.get(&[&trust[..], &[&url, "-o", out]].concat());
                got.success();
                let body = std::fs::read(out).expect("written");
                assert!(body == pattern(size), "{url}: {} bytes differ", body.len());
            }
        }
    }
}

#[test]
fn a_gibibyte_from_nginx() {
    let (network, files) = (Network::new(), Folder::new());
    let path = files.join("big");
    sparse(&path, 1 << 30);
    let expected = checksum(File::open(&path).expect("just written"));
    let certificate = Certificate::make(&files);
    let daemon = Daemon::start(&network, &[]);
    let nginx = Nginx::start(&network, files.path(), 8443, &certificate, "");
    let mut get = daemon.uktls(&["get", "-k", &nginx.url("big"), "-o", "-"]);
    let mut child = get
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    let got = checksum(child.stdout.take().expect("piped"));
    assert!(child.wait().expect("a child of this process").success());
    assert!(got == expected, "{} bytes differ", got.0);
}

#[test]
fn a_body_that_breaks_off_is_an_error_and_so_is_a_certificate_of_another() {
    let (network, files) = (Network::new(), Folder::new());
    sparse(&files.join("big"), 1 << 30);
    let other = Folder::new();
    let (certificate, stranger) = (Certificate::make(&files), Certificate::make(&other));
    let daemon = Daemon::start(&network, &[]);
    let nginx = Nginx::start(&network, files.path(), 8443, &certificate, "limit_rate 2m;");
    let url = nginx.url("big");
    daemon
        .get(&["--cacert", stranger.path(), &url, "-o", "/dev/null"])
        .one_line(&["certificate"]);

    let out = files.join("out");
    let words = ["get", "-k", &url, "-o", out.to_str().expect("UTF-8")];
    let get = Process::start(daemon.uktls(&words), &[]);
    wait_for("the first bytes of the body", PATIENCE, || {
        assert!(!get.ended_within(Duration::ZERO), "{}", get.describe());
        let length = std::fs::metadata(&out).map_or(0, |file| file.len());
        (length > 0).then_some(())
    });
    drop(nginx);
    get.end(PATIENCE).one_line(&["broke off"]);
}

#[test]
fn a_port_where_nobody_listens_is_refused() {
    let network = Network::new();
    let daemon = Daemon::start(&network, &[]);
    daemon
        .get(&["-k", "https://10.77.0.1:1/", "-o", "/dev/null"])
        .one_line(&["10.77.0.1:1", "refused"]);
}
