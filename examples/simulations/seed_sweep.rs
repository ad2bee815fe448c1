//! Finding a bug by trying seeds, and making what triggers it small.
//!
//! The bug is planted, and an old acquaintance: the server takes one `read` for one message. On a good network that works, since the message
//! comes in one segment. On a bad one it comes in pieces now and then.
//!
//! The sweep finds a seed for which the test fails, and shrinks what went wrong in that run (all that the dice had rolled) to the
//! least that still makes it fail. For a test of one's own the same is had without code, by `UKTLS_SEEDS=1000 UKTLS_SHRINK=1 cargo test`.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uktls_stack::clock::Duration;
use uktls_stack::sim::link::{Dice, Knobs, Loss, Rate};
use uktls_stack::sim::random::Chance;
use uktls_stack::sim::{self, Failure, Net, Runs, TcpListener, TcpStream};

/// Too long for one segment.
const MESSAGE: usize = 4_000;

/// A server that reads messages of a known length, rightly or not.
async fn serve(right: bool) {
    let listener = TcpListener::bind("0.0.0.0:9").await.expect("a free port");
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut message = vec![0; MESSAGE];
    loop {
        // Gives the sender's three segments the time to arrive, if they do: the bug does not show on a desk.
        sim::sleep(Duration::from_millis(60)).await;
        let length = if right {
            match stream.read_exact(&mut message).await {
                Ok(length) => length,
                Err(_) => return,
            }
        } else {
            match stream.read(&mut message).await.expect("a message") {
                0 => return,
                length => length,
            }
        };
        assert_eq!(length, MESSAGE, "half a message was taken for a whole one");
        stream.write_all(b"+").await.expect("a client that listens");
    }
}

fn network(net: &Net, right: bool) {
    let client = net.host("client", "10.0.0.1");
    let server = net.host("server", "10.0.0.2");
    let knobs = Knobs {
        rate: Rate::mbit(20),
        delay: Duration::from_millis(15),
        loss: Loss::random(Chance::per_mille(4)),
        duplicate: Dice::of(Chance::per_mille(5)),
        ..Knobs::default()
    };
    net.link(&client, &server, knobs);
    server.spawn(serve(right));
    client.spawn(async {
        let mut stream = TcpStream::connect("server:9").await.expect("a listener");
        for _ in 0..10 {
            stream
                .write_all(&[b'm'; MESSAGE])
                .await
                .expect("a server that reads");
            stream.read_exact(&mut [0]).await.expect("an answer");
        }
    });
}

/// The network with the right server, which no seed breaks.
pub(crate) fn scenario(net: &Net) {
    network(net, true);
}

fn sweep() -> Failure {
    let runs = Runs::from_env().seeds(1, 200).shrink(true);
    *runs
        .try_run(|net| network(net, false))
        .expect_err("a seed that shows the bug")
}

#[test]
fn a_planted_bug_is_found_and_made_small() {
    let failure = sweep();
    println!("{failure}");
    assert!(failure.detail.contains("half a message"), "{failure}");
    // Of all that went wrong in that run, one event is to blame.
    let shrunk = failure.shrunk.as_ref().expect("it was asked for");
    assert_eq!(shrunk.events().len(), 1, "{shrunk}");
    // The same sweep finds the same.
    assert_eq!(sweep(), failure);
}

#[test]
fn no_seed_breaks_the_right_server() {
    Runs::from_env().seeds(1, 200).run(scenario);
}
