//! Runs as capture files.

use super::{echo, exchange, lossy, noise, serve, two};
use std::io::ErrorKind;
use std::process::Command;
use uktls_stack::clock::Duration;
use uktls_stack::sim::{self, Net, TcpStream};

/// Runs and gives the file that was recorded.
fn recorded(seed: u64, break_the_link: bool) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("run.pcapng");
    let net = Net::new(seed);
    net.record(&path).expect("a temporary file");
    let client = net.host("client", "10.0.0.1");
    let server = net.host("server", "10.0.0.2");
    let link = net.link(&client, &server, lossy(if break_the_link { 0 } else { 3 }));
    serve(&server, "0.0.0.0:7", echo);
    let outcome = client.spawn(async move {
        let stream = TcpStream::connect("server:7").await.expect("connected");
        exchange(stream, noise(seed, 300_000)).await
    });
    if break_the_link {
        client.spawn(async move {
            sim::sleep(Duration::from_millis(60)).await;
            link.down();
            sim::sleep(Duration::from_secs(3)).await;
            link.up();
        });
    }
    net.run();
    assert!(outcome.try_take().expect("it has ended") == noise(seed, 300_000));
    std::fs::read(&path).expect("it was written")
}

fn says(file: &[u8], comment: &str) -> bool {
    file.windows(comment.len())
        .any(|window| window == comment.as_bytes())
}

#[test]
fn comments_say_what_was_lost_and_why_it_is_sent_again() {
    let lossy = recorded(1, false);
    assert!(says(&lossy, "lost") && says(&lossy, "sent again: fast"));
    let broken = recorded(1, true);
    assert!(says(&broken, "dropped: link down") && says(&broken, "sent again: RTO"));
    assert!(says(&broken, "TLP"), "a probe comes before the timeout");
    assert!(!says(&broken, "window probe"));
}

#[test]
fn the_same_seed_is_the_same_file() {
    assert!(recorded(1, false) == recorded(1, false));
    assert!(recorded(1, false) != recorded(2, false));
}

#[test]
fn a_run_that_fails_is_recorded_too() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("run.pcapng");
    let net = Net::new(1);
    net.record(&path).expect("a temporary file");
    let (client, _server) = two(&net, lossy(0));
    client.spawn(async {
        let refused = TcpStream::connect("server:7").await;
        refused.expect("nobody listens there");
    });
    let failure = net.try_run().expect_err("the task panics");
    assert!(failure.detail.contains("nobody listens there"), "{failure}");
    let file = std::fs::read(&path).expect("it was written");
    assert!(says(&file, "client") && file.len() > 200);
    let nowhere = Net::new(1).record(directory.path().join("no such directory/run.pcapng"));
    assert_eq!(
        nowhere.map_err(|error| error.kind()),
        Err(std::io::ErrorKind::NotFound)
    );
}

/// There is no handshake in the file, so nobody can derive keys from secrets: what is to be seen is headers, names and comments.
#[test]
fn datagrams_say_which_records_they_hold_and_what_became_of_them() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("dtls.pcapng");
    let net = Net::new(1);
    net.record(&path).expect("a temporary file");
    super::dtls::exchange_of_four(&net);
    net.run();
    let fields = "-N n -d udp.port==4433,dtls -T fields -e ip.dst_host -e dtls.record.epoch -e dtls.record.sequence_number -e frame.comment";
    let tshark = Command::new("tshark")
        .arg("-r")
        .arg(&path)
        .args(fields.split(' '))
        .output();
    let output = match tshark {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("tshark is not installed: its view of the recording was not checked");
            return;
        }
        Err(error) => panic!("tshark: {error}"),
    };
    let shown = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        shown,
        "server\t1\t0\trecord epoch 1 #0\n\
         server\t1\t1\trecord epoch 1 #1; dropped by a fault\n\
         server\t2\t0\trecord epoch 2 #0; duplicated\n\
         server\t2\t1\trecord epoch 2 #1\n"
    );
}
