//! Keys on simulated sockets.

use super::{lossy, noise, two};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uktls_record::crypto_info::CryptoInfo;
use uktls_record::header::ContentType;
use uktls_record::suite::{CipherSuite, ProtocolVersion};
use uktls_stack::clock::Duration;
use uktls_stack::sim::damage::Corruption;
use uktls_stack::sim::fault::{Action, Fault};
use uktls_stack::sim::{self, Net, TcpListener, TcpStream, Way};
use uktls_stack::socket_info::Reason;

/// Keys for one direction of a test.
fn keys(version: ProtocolVersion, suite: CipherSuite, fill: u8) -> CryptoInfo {
    let (salt, iv) = (vec![fill; suite.salt_len()], vec![fill ^ 1; suite.iv_len()]);
    let key = vec![fill ^ 2; suite.key_len()];
    CryptoInfo::new(version, suite, &key, &salt, &iv, 0).expect("lengths of this suite")
}

fn secure(stream: &TcpStream, version: ProtocolVersion, suite: CipherSuite, is_client: bool) {
    // Every connection has keys of its own: the port that was drawn for it is part of them.
    let port = if is_client {
        stream.local_addr()
    } else {
        stream.peer_addr()
    };
    let own = port.expect("an address").port() as u8;
    let (ours, theirs) = if is_client { (own, !own) } else { (!own, own) };
    stream.set_ulp_tls().expect("established");
    stream
        .set_tls_tx(&keys(version, suite, ours))
        .expect("keys to send with");
    stream
        .set_tls_rx(&keys(version, suite, theirs), &[])
        .expect("keys to receive with");
}

const BOTH: [ProtocolVersion; 2] = [ProtocolVersion::Tls12, ProtocolVersion::Tls13];
const GCM: CipherSuite = CipherSuite::Aes128Gcm;

#[test]
fn both_versions_and_every_cipher_carry_bytes_over_loss() {
    for version in BOTH {
        for suite in [
            CipherSuite::Aes128Gcm,
            CipherSuite::Aes256Gcm,
            CipherSuite::ChaCha20Poly1305,
        ] {
            let net = Net::new(3);
            let (client, server) = two(&net, lossy(2));
            server.spawn(async move {
                let listener = TcpListener::bind("0.0.0.0:443").await.expect("bound");
                let (mut stream, _) = listener.accept().await.expect("a connection");
                secure(&stream, version, suite, false);
                let mut bytes = vec![0; 200_000];
                stream.read_exact(&mut bytes).await.expect("read");
                assert_eq!(bytes, noise(4, 200_000));
                stream.write_all(&bytes).await.expect("written");
                stream
                    .send_record(ContentType::ALERT, &[1, 0])
                    .await
                    .expect("sent");
                stream.shutdown().await.expect("shut");
                assert_eq!(stream.read(&mut [0; 9]).await.expect("the end"), 0);
            });
            client.spawn(async move {
                let mut stream = TcpStream::connect("server:443").await.expect("connected");
                secure(&stream, version, suite, true);
                stream.write_all(&noise(4, 200_000)).await.expect("written");
                let mut bytes = vec![0; 200_000];
                stream.read_exact(&mut bytes).await.expect("read");
                assert_eq!(bytes, noise(4, 200_000));
                // Plain reading cannot take an alert, as on Linux.
                let error = stream.read(&mut [0; 9]).await.expect_err("an alert");
                assert_eq!(error.raw_os_error(), Some(5)); // EIO
                let mut alert = [0; 9];
                let received = stream.recv_record(&mut alert).await.expect("the alert");
                assert_eq!(received.content_type, ContentType::ALERT);
                assert_eq!(
                    (&alert[..received.len], received.end_of_record),
                    (&[1, 0][..], true)
                );
                assert_eq!(stream.read(&mut [0; 9]).await.expect("the end"), 0);
                assert_eq!(stream.reason(), Reason::CleanEnd);
            });
            let report = net.run();
            assert!(report.totals.sealed >= 26, "{:?}", report.totals);
            assert_eq!(report.totals.sealed, report.totals.opened);
        }
    }
}

#[test]
fn memory_is_sent_as_a_file_would_be_in_full_records() {
    for version in BOTH {
        let net = Net::new(3);
        let (client, server) = two(&net, lossy(1));
        let file = noise(5, 1_000_000);
        let expected = file.clone();
        server.spawn(async move {
            let listener = TcpListener::bind("0.0.0.0:443").await.expect("bound");
            let (stream, _) = listener.accept().await.expect("a connection");
            secure(&stream, version, GCM, false);
            assert_eq!(stream.sendfile(file).await.expect("sealed"), 1_000_000);
            assert_eq!(stream.sendfile(Vec::new()).await.expect("nothing"), 0);
            stream
                .send_record(ContentType::ALERT, &[1, 0])
                .await
                .expect("sent");
        });
        client.spawn(async move {
            let mut stream = TcpStream::connect("server:443").await.expect("connected");
            secure(&stream, version, GCM, true);
            let mut bytes = vec![0; 1_000_000];
            stream.read_exact(&mut bytes).await.expect("read");
            assert!(bytes == expected, "the file came out changed");
        });
        let report = net.run();
        // ⌈1,000,000 / 16,384⌉ records, and the alert.
        assert_eq!(report.totals.sealed, 62 + 1);
    }
}

/// RFC 5246 §6.1: "Sequence numbers … do not wrap."
#[test]
fn the_last_sequence_number_ends_a_direction_with_a_bad_message() {
    for version in BOTH {
        let net = Net::new(3);
        let (client, server) = two(&net, lossy(0));
        let near_the_end = move |fill: u8| {
            let fresh = keys(version, GCM, fill);
            CryptoInfo::new(
                version,
                GCM,
                fresh.key(),
                fresh.salt(),
                fresh.iv(),
                u64::MAX - 2,
            )
            .expect("lengths of this suite")
        };
        server.spawn(async move {
            let listener = TcpListener::bind("0.0.0.0:443").await.expect("bound");
            let (mut stream, _) = listener.accept().await.expect("a connection");
            stream.set_ulp_tls().expect("established");
            stream.set_tls_rx(&near_the_end(1), &[]).expect("keys");
            let mut all = Vec::new();
            // Two records come whole; then the sender can say nothing more, not even goodbye.
            stream.read_to_end(&mut all).await.expect_err("a reset");
            assert_eq!(all, b"onetwo");
        });
        client.spawn(async move {
            let mut stream = TcpStream::connect("server:443").await.expect("connected");
            stream.set_ulp_tls().expect("established");
            stream.set_tls_tx(&near_the_end(1)).expect("keys");
            for bytes in [&b"one"[..], b"two", b"three"] {
                stream.write_all(bytes).await.expect("queued");
                sim::sleep(Duration::from_secs(1)).await;
            }
            let error = stream.write_all(b"four").await.expect_err("used up");
            assert_eq!(error.raw_os_error(), Some(74)); // EBADMSG
            assert_eq!(stream.reason(), Reason::KeysExhausted);
        });
        let report = net.run();
        assert_eq!((report.totals.sealed, report.totals.opened), (2, 2));
    }
}

/// Each host's memory is full of what it cannot send before the other has room, and each has beginnings of records.
#[test]
fn hosts_with_little_memory_wait_for_no_record_for_ever() {
    const PAIRS: u16 = 6;
    let net = Net::new(4);
    let (client, server) = two(&net, lossy(1));
    for host in [&client, &server] {
        host.configure(|config| {
            config.limits.memory_per_uid = 48 << 10;
            config.limits.memory_total = 48 << 10;
        });
    }
    async fn exchange(stream: TcpStream, is_client: bool) {
        let stream = std::rc::Rc::new(stream);
        secure(&stream, ProtocolVersion::Tls13, GCM, is_client);
        let writer = stream.clone();
        let writing = sim::spawn(async move {
            for chunk in noise(6, 200_000).chunks(3_001) {
                writer.send_all(chunk).await.expect("sent");
            }
            writer.shutdown_write();
        });
        let (mut all, mut buffer) = (Vec::new(), vec![0; 20_000]);
        loop {
            let received = stream.recv_record(&mut buffer).await.expect("received");
            if received.len == 0 {
                break;
            }
            all.extend_from_slice(&buffer[..received.len]);
        }
        assert!(all == noise(6, 200_000));
        writing.await.expect("not crashed");
    }
    for port in 1..=PAIRS {
        server.spawn(async move {
            let listener = TcpListener::bind((
                "0.0.0.0".parse::<std::net::IpAddr>().expect("literal"),
                port,
            ))
            .await
            .expect("bound");
            let (stream, _) = listener.accept().await.expect("a connection");
            exchange(stream, false).await;
        });
        client.spawn(async move {
            let stream = TcpStream::connect(("server", port))
                .await
                .expect("connected");
            exchange(stream, true).await;
        });
    }
    net.try_run_within(Duration::from_secs(3600))
        .expect("nobody waits for ever");
}

#[test]
fn keys_set_late_open_what_came_before_them() {
    let net = Net::new(3);
    let (client, server) = two(&net, lossy(0));
    server.spawn(async {
        let listener = TcpListener::bind("0.0.0.0:443").await.expect("bound");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.write_all(b"hello").await.expect("plain");
        stream.set_ulp_tls().expect("established");
        stream
            .set_tls_tx(&keys(ProtocolVersion::Tls13, GCM, 2))
            .expect("keys");
        stream.write_all(&noise(1, 50_000)).await.expect("sealed");
        // Held open until everything is read.
        assert_eq!(stream.read(&mut [0; 1]).await.expect("the end"), 0);
    });
    client.spawn(async {
        let mut stream = TcpStream::connect("server:443").await.expect("connected");
        sim::sleep(Duration::from_secs(1)).await;
        // What a handshake does: it reads more than is its own.
        let mut buffer = vec![0; 105];
        stream.read_exact(&mut buffer).await.expect("read");
        assert_eq!(&buffer[..5], b"hello");
        stream.set_ulp_tls().expect("established");
        stream
            .set_tls_rx(&keys(ProtocolVersion::Tls13, GCM, 2), &buffer[5..])
            .expect("keys");
        let mut bytes = vec![0; 50_000];
        stream.read_exact(&mut bytes).await.expect("opened");
        assert_eq!(bytes, noise(1, 50_000));
    });
    net.run();
}

#[test]
fn a_forged_bit_is_a_bad_message_and_a_cut_stream_is_truncated() {
    let net = Net::new(3);
    let client = net.host("client", "10.0.0.1");
    let server = net.host("server", "10.0.0.2");
    let link = net.link(&client, &server, lossy(0));
    // The first connection's third data segment.
    let forge = Fault::new(Action::CorruptBit(Corruption::Forged, 4_000))
        .with_payload()
        .nth(3);
    link.fault(Way::Back, forge);
    server.spawn(async {
        let listener = TcpListener::bind("0.0.0.0:443").await.expect("bound");
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            secure(&stream, ProtocolVersion::Tls12, GCM, false);
            stream.write_all(&noise(1, 40_000)).await.expect("queued");
            stream.shutdown().await.expect("shut");
            // Its end, or its reset: the forged one's reader stops.
            let _ = stream.read(&mut [0; 1]).await;
        }
    });
    client.spawn(async {
        let mut stream = TcpStream::connect("server:443").await.expect("connected");
        secure(&stream, ProtocolVersion::Tls12, GCM, true);
        let mut all = Vec::new();
        let error = stream
            .read_to_end(&mut all)
            .await
            .expect_err("a forged record");
        assert_eq!(error.raw_os_error(), Some(74)); // EBADMSG
        assert!(all.len() < 40_000 && all == noise(1, 40_000)[..all.len()]);
        let again = stream.read(&mut [0; 1]).await.expect_err("it stays so");
        assert_eq!(again.raw_os_error(), Some(74));
        drop(stream);

        let mut stream = TcpStream::connect("server:443").await.expect("connected");
        secure(&stream, ProtocolVersion::Tls12, GCM, true);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("an end");
        assert_eq!(all, noise(1, 40_000));
        assert_eq!(
            stream.reason(),
            Reason::Truncated,
            "there was no close_notify"
        );
    });
    net.run();
}
