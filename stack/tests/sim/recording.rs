//! Runs as capture files.

use super::{echo, exchange, lossy, noise, serve, two};
use hex_literal::hex;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::Command;
use uktls_record::dtls::EpochKeys;
use uktls_record::suite::CipherSuite;
use uktls_stack::clock::Duration;
use uktls_stack::sim::{self, KtlsSocket, Net, TcpStream, UdpSocket};

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

/// What tshark writes of a capture; `None` where it is not installed.
fn tshark(path: &Path, options: &str) -> Option<String> {
    let tshark = Command::new("tshark")
        .arg("-r")
        .arg(path)
        .args(options.split(' '))
        .output();
    let output = match tshark {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("tshark is not installed: its view of the recording was not checked");
            return None;
        }
        Err(error) => panic!("tshark: {error}"),
    };
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
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
    let Some(shown) = tshark(&path, fields) else {
        return;
    };
    assert_eq!(
        shown,
        "server\t1\t0\trecord epoch 1 #0\n\
         server\t1\t1\trecord epoch 1 #1; dropped by a fault\n\
         server\t2\t0\trecord epoch 2 #0; duplicated\n\
         server\t2\t1\trecord epoch 2 #1\n"
    );
}

/// A DTLS 1.2 record of epoch 0, which is in the clear.
fn clear(content_type: u8, sequence: u8, body: &[u8]) -> Vec<u8> {
    let header = [
        content_type,
        254,
        253,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        sequence,
        0,
        body.len() as u8,
    ];
    [&header[..], body].concat()
}

/// A hello: version, random, no session, a cookie's length for the client's, the suite and what else there is.
fn hello(message_type: u8, random: [u8; 32], rest: &[u8]) -> Vec<u8> {
    let body = [&[254, 253][..], &random, &[0], rest].concat();
    let len = body.len() as u8;
    let header = [message_type, 0, 0, len, 0, 0, 0, 0, 0, 0, 0, len];
    clear(22, 0, &[&header[..], &body].concat())
}

/// What a handshake shows is enough: the hellos for randoms and suite, and that each side changes to the keys. A key log has the
/// master secret.
#[test]
fn tshark_opens_datagrams_when_it_sees_the_handshake_that_their_keys_are_from() {
    // RFC 5246 §6.3, of a master secret of 0x33s: client_write_key, server_write_key, client_write_IV, server_write_IV.
    const CLIENT_KEY: [u8; 16] = hex!("97b7659a2efdf34b534321328dc7f748");
    const SERVER_KEY: [u8; 16] = hex!("e8aabb2db1133615c2f2dd40db5a0ed2");
    const CLIENT_IV: [u8; 4] = hex!("d5091a30");
    const SERVER_IV: [u8; 4] = hex!("a4327f95");
    const CLIENT_RANDOM: [u8; 32] = [0x11; 32];
    const SERVER_RANDOM: [u8; 32] = [0x22; 32];
    const CHANGE: [u8; 1] = [1];
    let keys = |key: [u8; 16], iv: [u8; 4]| {
        EpochKeys::dtls12(CipherSuite::Aes128Gcm, &key, &iv, 1, 0).expect("its lengths")
    };
    let (up, down) = (keys(CLIENT_KEY, CLIENT_IV), keys(SERVER_KEY, SERVER_IV));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("handshake.pcapng");
    let net = Net::new(1);
    net.record(&path).expect("a temporary file");
    let (random, master) = ("11".repeat(32), "33".repeat(48));
    writeln!(net.secrets(), "CLIENT_RANDOM {random} {master}").expect("memory takes it");
    let (client, server) = two(&net, lossy(0));
    let server_keys = (down.clone(), up.clone());
    server.spawn(async move {
        let socket = UdpSocket::bind("0.0.0.0:4433").await.expect("bound");
        let (_, from) = socket.recv_from(&mut [0; 99]).await.expect("a hello");
        socket.connect(from).await.expect("an address");
        let suite = [0xc0, 0x2f, 0];
        for record in [hello(2, SERVER_RANDOM, &suite), clear(20, 1, &CHANGE)] {
            socket.send(&record).await.expect("sent");
        }
        let records = KtlsSocket::bind(&socket).expect("connected");
        records.set_send_keys(&server_keys.0).expect("keys");
        records.set_receive_keys(&server_keys.1).expect("keys");
        let mut buffer = [0; 99];
        let len = records.recv(&mut buffer).await.expect("a record").len;
        records.send(&buffer[..len]).await.expect("sent back");
    });
    client.spawn(async move {
        let socket = UdpSocket::bind("0.0.0.0:5000").await.expect("bound");
        socket.connect("server:4433").await.expect("an address");
        let one_suite = [0, 0, 2, 0xc0, 0x2f, 1, 0];
        socket
            .send(&hello(1, CLIENT_RANDOM, &one_suite))
            .await
            .expect("sent");
        for _ in 0..2 {
            socket.recv(&mut [0; 99]).await.expect("the server's");
        }
        socket.send(&clear(20, 1, &CHANGE)).await.expect("sent");
        let records = KtlsSocket::bind(&socket).expect("connected");
        records.set_send_keys(&up).expect("keys");
        records.set_receive_keys(&down).expect("keys");
        records.send(b"there and back").await.expect("sent");
        records.recv(&mut [0; 99]).await.expect("a record");
    });
    net.run();
    let fields = "-d udp.port==4433,dtls -Y dtls.record.content_type==23 -T fields -e dtls.record.epoch -e data.data";
    if let Some(shown) = tshark(&path, fields) {
        let plaintext: String = b"there and back"
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(shown, format!("1\t{plaintext}\n").repeat(2));
    }
}
