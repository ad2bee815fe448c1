//! A truncation attack: somebody between client and server relays their TLS, and ends it early with a perfectly good FIN.
//!
//! TCP's end is not TLS's: that one is an alert (close_notify), which only who has the keys can seal. A client that takes the FIN for the end
//! of the file has half a file and does not know. On a socket with keys the reader gets its end of file, as in Linux, and
//! `reason()` says which it was. The same transfer without the attacker ends cleanly.

use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uktls::handshake::rustls::dangerous_seeded::Seeded;
use uktls::handshake::rustls::{Choice, Complete, Handshake};
use uktls_record::ContentType;
use uktls_stack::sim::link::Knobs;
use uktls_stack::sim::{self, Net, TcpListener, TcpStream};
use uktls_stack::socket_info::Reason;

const FILE: usize = 300_000;
/// How many bytes of TLS the attacker lets through.
const ENOUGH: usize = 100_000;
/// Warning, close_notify.
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

fn set_keys(stream: &TcpStream, complete: &Complete) -> io::Result<()> {
    stream.set_ulp_tls()?;
    stream.set_tls_tx(&complete.tx)?;
    stream.set_tls_rx(&complete.rx, &complete.early)
}

/// Everything until the end.
async fn receive(stream: &TcpStream) -> io::Result<usize> {
    let mut total = 0;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let received = stream.recv_record(&mut buffer).await?;
        match received.content_type {
            ContentType::APPLICATION_DATA if received.len == 0 => return Ok(total),
            ContentType::APPLICATION_DATA => total += received.len,
            _ => {} // tickets, close_notify
        }
    }
}

/// Relays a connection, and ends the answer when it has had enough.
async fn mallory() {
    let listener = TcpListener::bind("0.0.0.0:443").await.expect("a free port");
    let (client, _) = listener.accept().await.expect("a connection");
    let server = TcpStream::connect("server:443").await.expect("a listener");
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (from_server, mut to_server) = tokio::io::split(server);
    sim::spawn_background(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    tokio::io::copy(&mut from_server.take(ENOUGH as u64), &mut to_client)
        .await
        .expect("a client that reads");
    to_client.shutdown().await.expect("a FIN");
}

/// Builds the network and starts its programs: a download from the server, and one over the attacker.
pub(crate) fn scenario(net: &Net) {
    let hub = net.switch("hub");
    let client = net.host("client", "10.0.0.1");
    let server = net.host("server", "10.0.0.2");
    let attacker = net.host("mallory", "10.0.0.3");
    for host in [&client, &server, &attacker] {
        net.link(host, &hub, Knobs::default());
    }
    attacker.spawn_background(mallory());

    let choice = Choice::default();
    let party = Seeded::new(net.seed(), "server");
    let identity = party.identity(vec!["server".to_owned()]).expect("a name");
    let client_config = Seeded::new(net.seed(), "client")
        .client_config(&[&identity], &choice, None)
        .expect("a configuration");
    let server_config = party
        .server_config(identity, &choice, None)
        .expect("a configuration");

    server.spawn_background(async move {
        let listener = TcpListener::bind("0.0.0.0:443").await.expect("a free port");
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let handshake =
                Handshake::server(server_config.clone()).expect("a configuration for it");
            sim::spawn_background(async move {
                let complete = handshake.run(&mut stream).await.expect("an honest client");
                set_keys(&stream, &complete).expect("keys of a cipher that the stack has");
                // Over the attacker this fails in the middle.
                if stream.sendfile(vec![b'x'; FILE]).await.is_ok() {
                    let _ = stream.send_record(ContentType::ALERT, &CLOSE_NOTIFY).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });

    client.spawn(async move {
        for (peer, honest) in [("server:443", true), ("mallory:443", false)] {
            let mut stream = TcpStream::connect(peer).await.expect("a listener");
            // It believes the certificate, and rightly so: mallory only relays.
            let name = "server".try_into().expect("a name");
            let handshake =
                Handshake::client(client_config.clone(), name).expect("a configuration for it");
            let complete = handshake
                .run(&mut stream)
                .await
                .expect("the server's handshake");
            set_keys(&stream, &complete).expect("keys of a cipher that the stack has");
            let received = receive(&stream)
                .await
                .expect("an end, of one kind or the other");
            if honest {
                assert_eq!((received, stream.reason()), (FILE, Reason::CleanEnd));
            } else {
                assert!(received < ENOUGH);
                assert_eq!(stream.reason(), Reason::Truncated);
            }
        }
    });
}

#[test]
fn an_end_without_close_notify_is_told_from_a_clean_one() {
    let report = sim::run(scenario);
    println!("{report}");
}
