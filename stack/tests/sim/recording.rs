//! Runs as capture files.

use super::{echo, exchange, lossy, noise, serve, two};
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
