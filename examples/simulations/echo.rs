//! A first deterministic test: an echo server behind a link that loses every tenth packet.
//!
//! ```sh
//! cargo test -p uktls-examples echo
//! UKTLS_SEEDS=100 cargo test -p uktls-examples echo # a hundred other networks
//! UKTLS_PCAP=/tmp/echo.pcapng cargo test -p uktls-examples echo # and look at one in Wireshark
//! ```
//!
//! Nothing here waits for real: the seconds that TCP spends on its timers are virtual. The same seed gives the same losses, the same
//! retransmissions and the same packets, byte for byte, on every machine.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uktls_stack::clock::Duration;
use uktls_stack::sim::link::{Knobs, Loss};
use uktls_stack::sim::random::Chance;
use uktls_stack::sim::{self, Net, TcpListener, TcpStream};

const LENGTH: usize = 100_000;

/// Builds the network and starts its programs.
pub(crate) fn scenario(net: &Net) {
    let client = net.host("client", "10.0.0.1");
    let server = net.host("server", "10.0.0.2");
    let lossy = Knobs {
        delay: Duration::from_millis(20),
        loss: Loss::random(Chance::percent(10)),
        ..Knobs::default()
    };
    net.link(&client, &server, lossy);

    // A program runs in the background: the run does not wait for it.
    server.program(|| async {
        let listener = TcpListener::bind("0.0.0.0:7").await.expect("a free port");
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            sim::spawn_background(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                tokio::io::copy(&mut read, &mut write)
                    .await
                    .expect("everything comes back");
                write.shutdown().await.expect("the end comes back, too");
            });
        }
    });

    // The run ends when what was spawned has ended. A failed assertion ends it at once, with the last packets shown.
    client.spawn(async {
        let sent: Vec<u8> = (0..LENGTH).map(|i| i as u8).collect();
        let stream = TcpStream::connect("server:7")
            .await
            .expect("TCP tries again");
        let (mut read, mut write) = tokio::io::split(stream);
        let writer = {
            let sent = sent.clone();
            sim::spawn(async move {
                write.write_all(&sent).await.expect("TCP sends again");
                write.shutdown().await.expect("not yet shut");
            })
        };
        let mut received = Vec::new();
        read.read_to_end(&mut received).await.expect("an end");
        writer.await.expect("nothing crashed");
        assert!(received == sent, "the echo is not what was sent");
    });
}

#[test]
fn an_echo_survives_the_loss_of_every_tenth_packet() {
    let report = sim::run(scenario);
    println!("{report}");
    assert!(report.totals.retransmitted > 0, "nothing was lost");
    // A minute would be a stall.
    assert!(report.ended < Duration::from_secs(60).into());
}
