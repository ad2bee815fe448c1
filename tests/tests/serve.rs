//! `uktls serve` to real clients on the kernel's TCP: what they get is the file, whatever was negotiated.

#![allow(missing_docs)]

use std::process::Stdio;
use std::time::Duration;
use uktls_tests::{
    CIPHERS, Daemon, Folder, Network, PATIENCE, Process, SIZES, STACK, STACK6, Serve, VERSIONS,
    checksum, openssl_options, pattern, sparse, uktls_program, wait_for,
};

/// curl's options for one TLS version alone.
fn curl_version(version: &str) -> [&str; 3] {
    match version {
        "1.2" => ["--tlsv1.2", "--tls-max", "1.2"],
        _ => ["--tlsv1.3", "--tls-max", "1.3"],
    }
}

#[test]
fn curl_gets_files_of_every_awkward_size_in_every_version_and_cipher() {
    let (network, files) = (Network::new(), Folder::new());
    files.write_sizes(&SIZES);
    let daemon = Daemon::start(&network, &[]);
    for cipher in CIPHERS {
        let serve = Serve::start(&daemon, files.path(), &["--cipher", cipher]);
        for version in VERSIONS {
            for size in SIZES {
                let path = format!("/{size}.bin");
                let body = serve.fetch(&network, &path, &curl_version(version));
                assert!(body == pattern(size), "{path}, TLS {version}, {cipher}");
            }
        }
    }
}

#[test]
fn openssl_s_client_agrees_on_every_version_and_cipher_and_sees_an_end_in_order() {
    let (network, files) = (Network::new(), Folder::new());
    files.write("file", &pattern(200_000));
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    for version in VERSIONS {
        for cipher in CIPHERS {
            let mut client = network.command("openssl");
            client.args(["s_client", "-quiet", "-verify_return_error"]);
            client.args(["-connect", &serve.address().to_string()]);
            client.args(["-CAfile", serve.certificate(), "-verify_ip", STACK]);
            client.args(openssl_options(version, cipher));
            let request = b"GET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            let finished = Process::start(client, request).end(PATIENCE).success();
            let text = &finished.stdout;
            let head = text.windows(4).position(|four| four == b"\r\n\r\n");
            let head = head.unwrap_or_else(|| panic!("no head: {}", finished.describe()));
            assert!(
                text.starts_with(b"HTTP/1.1 200 "),
                "{}",
                finished.describe()
            );
            assert!(
                text[head + 4..] == pattern(200_000),
                "TLS {version}, {cipher}: {}",
                finished.describe()
            );
            // OpenSSL 3 calls a missing close_notify an error.
            assert!(
                !finished.stderr.contains("unexpected eof"),
                "TLS {version}, {cipher}: {}",
                finished.describe()
            );
        }
    }
}

/// `K` at the beginning of a line makes `s_client` change its keys and ask the server for the same.
#[test]
fn a_client_that_changes_its_keys_is_followed_and_answered_under_new_ones() {
    let (network, files) = (Network::new(), Folder::new());
    files.write("file", b"the end of the body");
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &["--tls", "1.3"]);
    let mut client = network.command("openssl");
    client.args(["s_client", "-connect", &serve.address().to_string()]);
    client.args(["-CAfile", serve.certificate()]);
    let mut client = Process::start_piped(client);
    for round in 1..=3 {
        client.input(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n");
        wait_for("an answer", PATIENCE, || {
            let ended = client.ended_within(Duration::ZERO);
            assert!(!ended, "round {round}: {}", client.describe());
            let said = String::from_utf8_lossy(&client.stdout()).into_owned();
            (said.matches("the end of the body").count() == round).then_some(())
        });
        client.input(b"K\n");
        wait_for("the change of keys", PATIENCE, || {
            (client.stderr().matches("KEYUPDATE").count() == round).then_some(())
        });
    }
}

#[test]
fn a_session_is_resumed_by_its_ticket_in_both_versions() {
    let (network, files) = (Network::new(), Folder::new());
    files.write("file", &pattern(50_000));
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    let session = files.join("session");
    let session = session.to_str().expect("a path of our own making");
    for version in VERSIONS {
        for (option, expected) in [("-sess_out", "New, TLSv"), ("-sess_in", "Reused, TLSv")] {
            let mut client = network.command("openssl");
            client.args(["s_client", "-connect", &serve.address().to_string()]);
            client.args(["-CAfile", serve.certificate(), "-ign_eof", option, session]);
            client.args(openssl_options(version, "aes128gcm"));
            let request = b"GET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
            let finished = Process::start(client, request).end(PATIENCE).success();
            let said = String::from_utf8_lossy(&finished.stdout);
            assert!(
                said.contains(expected),
                "{version}: {}",
                finished.describe()
            );
        }
    }
}

#[test]
fn a_gibibyte_arrives_whole_over_both_versions_and_its_records_are_counted() {
    let (network, files) = (Network::new(), Folder::new());
    let path = files.join("big");
    sparse(&path, 1 << 30);
    let expected = checksum(std::fs::File::open(path).expect("just written"));
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &["--adaptive", "off"]);
    let mut sealed = 0;
    for version in VERSIONS {
        let mut curl = serve.curl(&network, "/big", &curl_version(version));
        let mut child = curl
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl is installed");
        let got = checksum(child.stdout.take().expect("piped"));
        let status = child.wait().expect("a child of this process");
        assert!(status.success(), "{status}: {}", serve.process.describe());
        assert!(got == expected, "TLS {version}: {} bytes differ", got.0);
        // ⌈2^30 / 16384⌉ records of body, whatever pages and quotas it came in; beside them a head, a farewell, tickets.
        let before = sealed;
        sealed = counter(&daemon, "RecordsSealed");
        let others = (sealed - before).checked_sub(1 << 16);
        assert!(
            others.is_some_and(|others| (1..=6).contains(&others)),
            "TLS {version}: {} records",
            sealed - before
        );
    }
    // Nothing of it went through the server's own hands: both transfers were done by TLS_TX in the stack.
    assert_eq!(counter(&daemon, "TlsTxSw"), 2);
}

/// What the stack counted under this name.
fn counter(daemon: &Daemon<'_>, name: &str) -> u64 {
    let lines = daemon.stat();
    let line = lines.iter().find(|line| line["counter"] == name);
    line.and_then(|line| line["value"].as_u64())
        .unwrap_or_else(|| panic!("no counter {name}"))
}

#[test]
fn a_hundred_files_of_awkward_sizes_arrive_over_one_connection() {
    let (network, files) = (Network::new(), Folder::new());
    // The awkward sizes, every step of a few bytes around 64 KiB, and the last one is 1 GiB.
    let sizes: Vec<usize> = SIZES
        .into_iter()
        .filter(|&size| size < 1 << 20)
        .chain((0..).map(|step| (1 << 16) - 460 + 10 * step))
        .take(99)
        .collect();
    sparse(&files.join("99.bin"), 1 << 30);
    let expected = checksum(std::fs::File::open(files.join("99.bin")).expect("just written"));
    for (number, &size) in sizes.iter().enumerate() {
        files.write(&format!("{number}.bin"), &pattern(size));
    }
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    let out = Folder::new();
    for version in VERSIONS {
        let into = out.join("#1");
        let into = into.to_str().expect("a path of our own making");
        let words = [
            &curl_version(version)[..],
            &["-w", "%{num_connects}", "-o", into],
        ]
        .concat();
        let curl = serve.curl(&network, "/[0-99].bin", &words);
        let finished = Process::start(curl, &[]).end(PATIENCE * 2).success();
        let connects = String::from_utf8_lossy(&finished.stdout).into_owned();
        assert_eq!(connects.trim_end_matches('0'), "1", "TLS {version}");
        for (number, &size) in sizes.iter().enumerate() {
            let got = std::fs::read(out.join(&number.to_string())).expect("written by curl");
            assert!(
                got == pattern(size),
                "TLS {version}: file {number}, {size} bytes"
            );
        }
        let big = std::fs::File::open(out.join("99")).expect("written by curl");
        assert!(checksum(big) == expected, "TLS {version}: the last file");
    }
}

/// Bytes that a process has read from files so far: `rchar` of proc(5), in which messages of sockets do not count.
fn bytes_read(process: &Process) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{}/io", process.pid())).expect("readable");
    let count = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    count
        .and_then(|count| count.parse().ok())
        .expect("a number")
}

#[test]
fn no_body_passes_through_the_server_however_small() {
    let (network, files) = (Network::new(), Folder::new());
    let sizes = [1000, 16_384, 65_535, 65_536, 1_000_000];
    files.write_sizes(&sizes);
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    // What is read once, such as randomness, is read by now.
    serve.fetch(&network, "/1000.bin", &[]);
    for size in sizes {
        let before = bytes_read(&serve.process);
        let body = serve.fetch(&network, &format!("/{size}.bin"), &[]);
        assert!(body == pattern(size), "{size}");
        let read = bytes_read(&serve.process) - before;
        assert!(read < 500, "{size}: the server has read {read} bytes");
    }
}

#[test]
fn two_hundred_curls_at_once_each_get_their_file() {
    let (network, files) = (Network::new(), Folder::new());
    let size = 300_000;
    files.write("file", &pattern(size));
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    let curls: Vec<Process> = (0..200)
        .map(|_| Process::start(serve.curl(&network, "/file", &[]), &[]))
        .collect();
    for curl in curls {
        let finished = curl.end(PATIENCE * 2);
        assert!(
            finished.status.success() && finished.stdout == pattern(size),
            "{}\n{}",
            finished.describe(),
            serve.process.describe()
        );
    }
}

#[test]
fn one_connection_serves_many_requests_ranges_and_heads() {
    let (network, files) = (Network::new(), Folder::new());
    files.write("file", &pattern(100_000));
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, files.path(), &[]);
    let url = serve.url("/file");
    let words = ["-w", "%{num_connects} %{http_code}\n", "-o", "/dev/null"];
    let mut curl = serve.curl(&network, "/file", &words);
    for _ in 0..9 {
        curl.args(["-o", "/dev/null", &url]);
    }
    let finished = Process::start(curl, &[]).end(PATIENCE).success();
    let said = String::from_utf8_lossy(&finished.stdout);
    let expected = format!("1 200\n{}", "0 200\n".repeat(9));
    assert_eq!(said, expected, "{}", finished.describe());

    let part = serve.fetch(&network, "/file", &["--range", "99990-"]);
    assert!(part == pattern(100_000)[99_990..]);
    let head = serve.fetch(&network, "/file", &["--head"]);
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    assert!(head.contains("content-length: 100000"), "{head}");
    let missing = Process::start(serve.curl(&network, "/none", &[]), &[]).end(PATIENCE);
    assert_eq!(missing.status.code(), Some(22), "{}", missing.describe());
}

#[test]
fn ipv6_serves_as_well() {
    let (network, files) = (Network::new(), Folder::new());
    files.write_sizes(&[0, 1, 1_000_000]);
    let daemon = Daemon::start(&network, &["--addr6", "fd77::2/64"]);
    let at = format!("[{STACK6}]:443");
    let serve = Serve::start_on(daemon.uktls(&["serve"]), &at, files.path(), &[]);
    for size in [0, 1, 1_000_000] {
        let body = serve.fetch(&network, &format!("/{size}.bin"), &["-6"]);
        assert!(body == pattern(size), "{size}");
    }
}

#[test]
fn without_a_daemon_serve_brings_up_a_stack_of_its_own() {
    let (network, files) = (Network::new(), Folder::new());
    files.write("file", &pattern(1_000_000));
    let socket = files.join("own.sock");
    let mut command =
        network.uktls(&["serve", "--tun", "t0", "--addr", "10.77.0.2/24", "--socket"]);
    command.arg(&socket);
    let serve = Serve::start_on(command, "10.77.0.2:443", files.path(), &[]);
    assert!(network.has_interface("t0"));
    let body = serve.fetch(&network, "/file", &[]);
    assert!(body == pattern(1_000_000));
    serve.process.signal(rustix::process::Signal::TERM);
    serve.process.end(PATIENCE).success();
    assert!(!network.has_interface("t0") && !socket.exists());
}

#[test]
fn run_gives_a_command_a_stack_and_its_own_exit_status_and_leaves_nothing() {
    let folder = Folder::new();
    let mut command = std::process::Command::new(uktls_program());
    let script = "
        set -e
        test -S \"$UKTLS_SOCKET\"
        for address in 10.77.0.2 fd77::2; do ping -c 1 -s 3000 -W 5 $address >&2; done
        echo $UKTLS_SOCKET
        exit 7";
    command
        .args(["run", "--", "sh", "-c", script])
        .env("TMPDIR", folder.path());
    let finished = Process::start(command, &[]).end(PATIENCE);
    assert_eq!(finished.status.code(), Some(7), "{}", finished.describe());
    let said = String::from_utf8_lossy(&finished.stdout);
    assert!(
        said.trim().ends_with("uktls.sock"),
        "{}",
        finished.describe()
    );
    assert!(!std::path::Path::new(said.trim()).exists());
    let left = std::fs::read_dir(folder.path())
        .expect("the folder")
        .count();
    assert_eq!(left, 0, "{}", finished.describe());
}

#[test]
fn no_path_and_no_link_leads_out_of_the_folder() {
    let (network, files) = (Network::new(), Folder::new());
    files.write("secret", b"not to be seen");
    std::fs::create_dir(files.join("site")).expect("a folder");
    std::os::unix::fs::symlink("../secret", files.join("site/link")).expect("a link");
    let daemon = Daemon::start(&network, &[]);
    let serve = Serve::start(&daemon, &files.join("site"), &[]);
    for path in ["/link", "/../secret", "/%2e%2e/secret"] {
        let curl = serve.curl(&network, path, &["--path-as-is"]);
        let finished = Process::start(curl, &[]).end(PATIENCE);
        assert_eq!(
            finished.status.code(),
            Some(22),
            "{path}: {}",
            finished.describe()
        );
        assert!(
            finished.stdout.is_empty(),
            "{path}: {}",
            finished.describe()
        );
    }
}
