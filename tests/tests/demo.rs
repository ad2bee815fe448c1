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
