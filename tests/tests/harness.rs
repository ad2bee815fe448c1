//! The harness itself: what the other tests believe about their network must be true without a stack.

#![allow(missing_docs)]

use std::process::Stdio;
use std::time::Duration;
use uktls_tests::{Certificate, Folder, Network, Nginx, PATIENCE, Process, pattern};

#[test]
fn a_network_has_its_own_interfaces_and_ports_and_its_programs_end_with_their_guards() {
    let folder = Folder::new();
    folder.write("x.bin", &pattern(100_000));
    let certificate = Certificate::make(&folder);
    let network = Network::new();
    assert!(network.has_interface("lo"));
    assert!(!network.has_interface("eth0") && !network.has_interface("uktls0"));
    for address in ["10.77.0.1/24", "fd77::1/64"] {
        network
            .run("ip", &["addr", "add", address, "dev", "lo", "nodad"])
            .success();
    }
    let nginx = Nginx::start(&network, folder.path(), 443, &certificate, "");
    for url in [nginx.url("x.bin"), nginx.url6("x.bin")] {
        let options = ["-sS", "--noproxy", "*", "--cacert", certificate.path()];
        let mut curl = network.command("curl");
        curl.args(options).arg(url);
        let got = Process::start(curl, &[]).end(PATIENCE).success();
        assert!(got.stdout == pattern(100_000), "{}", got.describe());
    }
    // A second network: the same port is free.
    let other = Network::new();
    let refused = other.run("curl", &["-sS", "--noproxy", "*", "http://127.0.0.1:443/"]);
    assert_eq!(refused.status.code(), Some(7), "{}", refused.describe());

    let pid = nginx.process.pid();
    drop(nginx);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_process_that_hangs_is_noticed_and_its_input_and_output_are_seen() {
    let network = Network::new();
    let mut cat = Process::start_piped(network.command("cat"));
    assert!(!cat.ended_within(Duration::from_millis(10)));
    cat.input(b"a line\nand more");
    assert_eq!(cat.first_line(), "a line");
    cat.end_input();
    let finished = cat.end(PATIENCE).success();
    assert_eq!(finished.stdout, b"a line\nand more");

    let mut told = network.command("sh");
    told.args(["-c", "echo uktls: it broke >&2; exit 1"]);
    told.stdin(Stdio::null());
    Process::start(told, &[])
        .end(PATIENCE)
        .one_line(&["it broke"]);
}
