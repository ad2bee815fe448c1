//! The newcomer's command does what it says, and the capture it leaves can be looked into.

#![allow(missing_docs)]

use std::process::Command;
use uktls_tests::{Folder, PATIENCE, Process, tool, uktls_program};

#[test]
fn the_demo_moves_its_files_whole_and_leaves_a_capture_that_opens() {
    let folder = Folder::new();
    let mut demo = Command::new(uktls_program());
    demo.arg("demo").current_dir(folder.path());
    demo.env_remove("UKTLS_SOCKET").env_remove("SSLKEYLOGFILE");
    let finished = Process::start(demo, &[]).end(PATIENCE * 3).success();
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    // TLS 1.2 and 1.3 to curl, 1.3 from OpenSSL, and the one that is captured.
    assert_eq!(said.matches("SHA-256 matches").count(), 4, "{said}");
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .expect("the folder")
        .map(|file| file.expect("readable").file_name())
        .collect();
    assert_eq!(left, ["uktls-demo.pcapng"]);

    let objects = folder.join("objects");
    let mut tshark = Command::new(tool("tshark"));
    tshark.arg("-r").arg(folder.join("uktls-demo.pcapng"));
    tshark.args(["-q", "--export-objects"]);
    tshark.arg(format!("http,{}", objects.display()));
    tshark
        .env("HOME", folder.path())
        .env_remove("SSLKEYLOGFILE");
    let finished = Process::start(tshark, &[]).end(PATIENCE * 2).success();
    let body = std::fs::metadata(objects.join("small"));
    let body = body.unwrap_or_else(|error| panic!("{error}: {}", finished.describe()));
    assert_eq!(body.len(), 8 << 20);
}

#[test]
fn the_demo_of_dtls_is_compared_record_by_record_and_leaves_nothing() {
    let folder = Folder::new();
    let mut demo = Command::new(uktls_program());
    demo.args(["demo", "--dtls"]).current_dir(folder.path());
    demo.env_remove("UKTLS_SOCKET").env_remove("SSLKEYLOGFILE");
    let finished = Process::start(demo, &[]).end(PATIENCE).success();
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    for server in ["openssl", "gnutls-serv"] {
        // "…-> openssl    1462 records of 1435 bytes, …: 1462 arrived and match, 0 lost"
        let line = said
            .lines()
            .find(|line| line.contains(&format!("-> {server} ")));
        let line = line.unwrap_or_else(|| panic!("{}", finished.describe()));
        let words: Vec<&str> = line.split_whitespace().collect();
        let before = |word| {
            let at = words.iter().position(|&found| found == word).expect(line);
            words[at - 1].parse::<u64>().expect(line)
        };
        assert_eq!(before("records"), before("arrived"), "{line}");
        assert_eq!(before("lost"), 0, "{line}");
    }
    assert_eq!(
        std::fs::read_dir(folder.path())
            .expect("the folder")
            .count(),
        0
    );
}

#[test]
fn the_demo_of_dtls_says_who_is_missing() {
    let folder = Folder::new();
    let mut demo = Command::new(uktls_program());
    demo.args(["demo", "--dtls"]).current_dir(folder.path());
    demo.env("PATH", folder.path());
    let finished = Process::start(demo, &[]).end(PATIENCE);
    finished.one_line(&["apt-get install openssl gnutls-bin"]);
}
