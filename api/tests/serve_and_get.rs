//! `uktls serve` and `uktls get` as programs, over a daemon whose stack is the mock's records: everything but TCP is real.

#![allow(missing_docs)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::World;
use uktls::TcpStream;
use uktls::handshake::rustls::{Choice, TlsStream, Trust, client_config};

const PATIENCE: Duration = Duration::from_secs(30);

fn uktls(world: &World, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uktls"));
    command.args(words).arg("--socket").arg(world.daemon.path());
    command
        .env_remove("UKTLS_SOCKET")
        .env_remove("SSLKEYLOGFILE")
        .env_remove("RUST_LOG");
    command
}

/// A running `serve`, ended with the test.
struct Serve {
    process: Child,
    address: SocketAddr,
    _stderr: BufReader<ChildStderr>,
}

impl Serve {
    fn start(world: &World, dir: &Path, words: &[&str]) -> Serve {
        let mut command = uktls(world, &["serve", "--json", "--listen", "10.77.0.2:0"]);
        command
            .args(words)
            .arg(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn().expect("the program starts");
        let stderr = BufReader::new(process.stderr.take().expect("piped"));
        let mut ready = String::new();
        BufReader::new(process.stdout.take().expect("piped"))
            .read_line(&mut ready)
            .expect("a ready line");
        let ready: serde_json::Value = serde_json::from_str(&ready).expect("JSON");
        let address = ready["listen"][0]
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("an address");
        Serve {
            process,
            address,
            _stderr: stderr,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn get(world: &World, words: &[&str]) -> Output {
    let mut words = words.to_vec();
    words.insert(0, "get");
    uktls(world, &words).output().expect("the program ran")
}

fn connect(world: &World, address: SocketAddr) -> TlsStream {
    let config = client_config(&Trust::Anybody, &Choice::default(), None).expect("a configuration");
    let stream = TcpStream::connect_on(&world.daemon, address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let name = "x.test".try_into().expect("a name");
    TlsStream::connect(stream, Arc::clone(&config), name).expect("a handshake")
}

/// Sends raw bytes and gives everything that comes back until close_notify.
fn exchange(world: &World, address: SocketAddr, request: &str) -> String {
    let mut stream = connect(world, address);
    stream.write_all(request.as_bytes()).expect("sent");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("an end in order");
    String::from_utf8_lossy(&all).into_owned()
}

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

#[test]
fn files_of_every_awkward_size_arrive_whole_in_every_version_and_cipher() {
    let world = World::new();
    let dir = tempfile::tempdir().expect("a folder");
    let sizes = [
        0,
        1,
        16383,
        16384,
        16385,
        65535,
        65536,
        65537,
        5 << 20,
        (9 << 20) + 7,
    ];
    for size in sizes {
        std::fs::write(dir.path().join(format!("{size}.bin")), pattern(size)).expect("written");
    }
    for tls in ["1.2", "1.3"] {
        for cipher in ["aes128gcm", "aes256gcm", "chacha20"] {
            let serve = Serve::start(&world, dir.path(), &["--tls", tls, "--cipher", cipher]);
            for size in sizes {
                let out = dir.path().join("out");
                let url = serve.url(&format!("/{size}.bin"));
                let got = get(
                    &world,
                    &["-k", "--json", &url, "-o", out.to_str().expect("UTF-8")],
                );
                assert!(
                    got.status.success(),
                    "{url}: {}",
                    String::from_utf8_lossy(&got.stderr)
                );
                assert!(
                    std::fs::read(&out).expect("written") == pattern(size),
                    "{url} differs"
                );
                let summary: serde_json::Value = serde_json::from_slice(&got.stdout).expect("JSON");
                assert_eq!(
                    (&summary["tls"], &summary["cipher"]),
                    (&tls.into(), &cipher.into())
                );
                assert_eq!(summary["bytes"], size);
            }
        }
    }
}

#[test]
fn one_connection_carries_many_requests_even_sent_at_once() {
    let world = World::new();
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("a"), "alpha").expect("written");
    std::fs::write(dir.path().join("big"), pattern(300_000)).expect("written");
    let serve = Serve::start(&world, dir.path(), &[]);
    let mut request = String::new();
    for _ in 0..40 {
        request.push_str("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    request.push_str("HEAD /big HTTP/1.1\r\nHost: x\r\n\r\n");
    request.push_str(
        "GET /big HTTP/1.1\r\nHost: x\r\nRange: bytes=299999-\r\nConnection: close\r\n\r\n",
    );
    let all = exchange(&world, serve.address, &request);
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 41);
    assert_eq!(all.matches("\r\n\r\nalpha").count(), 40);
    assert!(
        all.contains("Content-Length: 300000\r\n")
            && all.contains("Content-Range: bytes 299999-299999/300000\r\n")
    );
    let head = all.rfind("\r\n\r\n").expect("the last head");
    assert_eq!(
        all.len() - head - 4,
        String::from_utf8_lossy(&pattern(300_000)[299_999..]).len()
    );
}

#[test]
fn bad_requests_get_their_status_and_an_end_in_order() {
    let world = World::new();
    let dir = tempfile::tempdir().expect("a folder");
    let serve = Serve::start(&world, dir.path(), &[]);
    for (request, status) in [
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        ("GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505),
        (
            "GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            404,
        ),
        (
            "GET /../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            400,
        ),
        ("GET / HTTP/1.0\r\n\r\n", 200),
    ] {
        let answer = exchange(&world, serve.address, request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {answer}"
        );
    }
    let endless = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "y".repeat(20_000));
    assert!(exchange(&world, serve.address, &endless).starts_with("HTTP/1.1 431 "));
}

#[test]
fn an_idle_connection_is_ended_and_half_a_request_is_told_so() {
    let world = World::new();
    let dir = tempfile::tempdir().expect("a folder");
    let serve = Serve::start(&world, dir.path(), &["--idle-timeout", "1"]);
    let started = Instant::now();
    assert_eq!(exchange(&world, serve.address, ""), "");
    assert!(started.elapsed() >= Duration::from_secs(1) && started.elapsed() < PATIENCE);
    assert!(exchange(&world, serve.address, "GET / HT").starts_with("HTTP/1.1 408 "));
}

#[test]
fn a_key_update_in_the_middle_of_a_keep_alive_connection() {
    let world = World::new();
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("a"), "alpha").expect("written");
    let serve = Serve::start(&world, dir.path(), &["--tls", "1.3"]);
    let mut stream = connect(&world, serve.address);
    for round in 0..3 {
        stream
            .write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            .expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"alpha") {
            let mut piece = [0; 1000];
            let got = stream.read(&mut piece).expect("more");
            assert!(got > 0, "round {round}");
            answer.extend_from_slice(&piece[..got]);
        }
        stream.key_update(true).expect("new keys");
    }
}

#[test]
fn hundreds_of_connections_at_once_and_a_limit_that_makes_others_wait() {
    let world = World::new();
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("a"), "alpha").expect("written");
    let serve = Serve::start(&world, dir.path(), &["--max-connections", "50"]);
    let mut idle: Vec<TlsStream> = (0..50).map(|_| connect(&world, serve.address)).collect();
    // The fifty-first is served once another one ends.
    std::thread::scope(|scope| {
        let late = scope.spawn(|| {
            exchange(
                &world,
                serve.address,
                "GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            )
        });
        for stream in &mut idle {
            stream
                .write_all(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
                .expect("sent");
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("an answer");
        }
        assert!(!late.is_finished());
        drop(idle.pop());
        assert!(late.join().expect("served").ends_with("alpha"));
    });
}

#[test]
fn get_says_what_went_wrong_and_fails() {
    let mut world = World::new();
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("a"), "alpha").expect("written");
    let serve = Serve::start(&world, dir.path(), &[]);
    let fails = |world: &World, words: &[&str], want: &str| {
        let output = get(world, words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("uktls: ") && said.contains(want), "{said}");
    };
    fails(&world, &[&serve.url("/a"), "-o", "-"], "certificate");
    fails(
        &world,
        &["-k", &serve.url("/none"), "-o", "-"],
        "404 Not Found",
    );
    fails(
        &world,
        &["-k", &serve.url("/a"), "-o", "/nonexistent/x"],
        "cannot write to /nonexistent/x",
    );
    fails(
        &world,
        &["-k", "--range", "9-", &serve.url("/a"), "-o", "-"],
        "416",
    );
    fails(
        &world,
        &["-k", "https://10.77.0.2:1/", "-o", "-"],
        "refused",
    );
    world.kill();
    fails(
        &world,
        &["-k", &serve.url("/a"), "-o", "-"],
        "no uktls daemon",
    );
}

#[test]
fn serve_ends_with_its_daemon_and_with_a_signal() {
    let mut world = World::new();
    let dir = tempfile::tempdir().expect("a folder");
    let mut ended = Serve::start(&world, dir.path(), &[]);
    let pid = rustix::process::Pid::from_child(&ended.process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    assert!(ended.process.wait().expect("ended").success());
    let mut orphan = Serve::start(&world, dir.path(), &[]);
    world.kill();
    assert_eq!(orphan.process.wait().expect("ended").code(), Some(1));
}

#[test]
fn a_certificate_written_out_is_believed() {
    let world = World::new();
    let dir = tempfile::tempdir().expect("a folder");
    let pem = dir.path().join("ca.pem");
    let pem = pem.to_str().expect("UTF-8");
    let log = dir.path().join("keys.log");
    let log = log.to_str().expect("UTF-8");
    let serve = Serve::start(&world, dir.path(), &["--cert-out", pem, "--keylog", log]);
    let got = get(&world, &["--cacert", pem, &serve.url("/ca.pem"), "-o", "-"]);
    assert!(
        got.status.success(),
        "{}",
        String::from_utf8_lossy(&got.stderr)
    );
    assert_eq!(got.stdout, std::fs::read(pem).expect("the certificate"));
    let secrets = std::fs::read_to_string(log).expect("a key log");
    assert!(
        secrets
            .lines()
            .any(|line| line.starts_with("SERVER_TRAFFIC_SECRET_0 ")),
        "{secrets}"
    );
}
