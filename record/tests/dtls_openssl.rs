//! A live OpenSSL as the other end: whole DTLS 1.2 connections in memory, datagram by datagram, whose records we open and
//! into which we seal our own.

mod support;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::rc::Rc;

use openssl::hash::MessageDigest;
use openssl::ssl::{
    ShutdownState, Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslStream, SslVersion,
};
use support::{KeyBlock, certificate};
use uktls_record::dtls::{Discard, EpochKeys, Malformed, Opener, Sealer};
use uktls_record::provider::{self, Provider};
use uktls_record::{CipherSuite, ContentType};

/// Datagrams under way in one direction.
type Wire = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// One end of two wires: a read takes a datagram, a write makes one.
#[derive(Debug)]
struct End {
    incoming: Wire,
    outgoing: Wire,
}

impl Read for End {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let datagram = self.incoming.borrow_mut().pop_front();
        let datagram = datagram.ok_or(io::ErrorKind::WouldBlock)?;
        let len = datagram.len().min(buf.len());
        buf[..len].copy_from_slice(&datagram[..len]);
        Ok(len)
    }
}

impl Write for End {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.outgoing.borrow_mut().push_back(buf.to_vec());
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What OpenSSL calls a cipher suite, and the hash of its key schedule.
struct Suite {
    cipher: CipherSuite,
    name: &'static str,
    digest: MessageDigest,
}

fn suites() -> [Suite; 3] {
    let row = |cipher, name, digest| Suite {
        cipher,
        name,
        digest,
    };
    [
        row(
            CipherSuite::Aes128Gcm,
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            MessageDigest::sha256(),
        ),
        row(
            CipherSuite::Aes256Gcm,
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            MessageDigest::sha384(),
        ),
        row(
            CipherSuite::ChaCha20Poly1305,
            "ECDHE-ECDSA-CHACHA20-POLY1305",
            MessageDigest::sha256(),
        ),
    ]
}

fn context(suite: &Suite) -> SslContextBuilder {
    let mut context = SslContext::builder(SslMethod::dtls()).unwrap();
    context
        .set_min_proto_version(Some(SslVersion::DTLS1_2))
        .unwrap();
    context.set_cipher_list(suite.name).unwrap();
    // The size of a datagram is ours to say, there being no socket to ask.
    context.set_options(SslOptions::NO_QUERY_MTU);
    context
}

/// A finished handshake between two OpenSSL ends, the wires between them, and each direction's keys.
struct Connection {
    client: SslStream<End>,
    server: SslStream<End>,
    to_client: Wire,
    to_server: Wire,
    client_keys: EpochKeys,
    server_keys: EpochKeys,
    /// The datagrams of the handshake that the client sent.
    handshake: Vec<Vec<u8>>,
}

fn connect(suite: &Suite) -> Connection {
    let (key, certificate) = certificate();
    let mut server_context = context(suite);
    server_context.set_private_key(&key).unwrap();
    server_context.set_certificate(&certificate).unwrap();
    let (to_client, to_server) = (Wire::default(), Wire::default());
    let end = |context: SslContext, incoming: &Wire, outgoing: &Wire| {
        let mut ssl = Ssl::new(&context).unwrap();
        ssl.set_mtu(1400).unwrap();
        let end = End {
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
        };
        SslStream::new(ssl, end).unwrap()
    };
    let mut server = end(server_context.build(), &to_server, &to_client);
    let mut client = end(context(suite).build(), &to_client, &to_server);
    let (mut done, mut handshake) = ((false, false), Vec::new());
    for _ in 0..6 {
        done.0 = client.connect().is_ok();
        handshake.extend(to_server.borrow().iter().cloned());
        done.1 = server.accept().is_ok();
        if done == (true, true) {
            break;
        }
    }
    assert_eq!(done, (true, true), "{}", suite.name);
    assert_eq!(client.ssl().current_cipher().unwrap().name(), suite.name);

    // Each side has sent its Finished as record 0 of epoch 1.
    let block = KeyBlock::of(server.ssl(), suite.digest, suite.cipher);
    let keys =
        |(key, iv): &(Vec<u8>, Vec<u8>)| EpochKeys::dtls12(suite.cipher, key, iv, 1, 1).unwrap();
    Connection {
        client_keys: keys(&block.client),
        server_keys: keys(&block.server),
        client,
        server,
        to_client,
        to_server,
        handshake,
    }
}

fn message(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + len) as u8).collect()
}

/// Opens a copy of every datagram under way on a wire, and leaves them there for their receiver.
fn watch(wire: &Wire, opener: &mut Opener) -> Vec<(ContentType, u64, Vec<u8>)> {
    let mut seen = Vec::new();
    for datagram in wire.borrow().iter() {
        let (mut datagram, mut at) = (datagram.clone(), 0);
        while at < datagram.len() {
            let record = &mut datagram[at..];
            let step = opener.open_next(record);
            let opened = step.opened.unwrap();
            let plaintext = record[opened.plaintext].to_vec();
            seen.push((opened.content_type, opened.sequence, plaintext));
            at += step.len;
        }
    }
    seen
}

fn read_one(end: &mut SslStream<End>) -> Vec<u8> {
    let mut bytes = vec![0; 17000];
    let len = end.read(&mut bytes).unwrap();
    bytes.truncate(len);
    bytes
}

const LENGTHS: [usize; 4] = [1, 100, 1363, 16384];

/// What OpenSSL sends in `from`'s direction, opened by us; then `to` reads it, so that both stay in step.
fn openssl_seals(
    from: &mut SslStream<End>,
    to: &mut SslStream<End>,
    wire: &Wire,
    opener: &mut Opener,
) {
    for (sequence, len) in (1..).zip(LENGTHS) {
        let sent = message(len);
        assert_eq!(from.write(&sent).unwrap(), len);
        let seen = watch(wire, opener);
        assert!(seen == [(ContentType::APPLICATION_DATA, sequence, sent.clone())]);
        assert!(read_one(to) == sent);
    }
}

fn sealed(sealer: &mut Sealer, content_type: ContentType, plaintext: &[u8]) -> Vec<u8> {
    let mut record = vec![0; plaintext.len() + sealer.overhead()];
    sealer
        .seal_from(content_type, plaintext, &mut record)
        .unwrap();
    record
}

/// What we seal, read by OpenSSL: alone, several in a datagram, late, doubled, and after a loss.
fn openssl_opens(to: &mut SslStream<End>, wire: &Wire, sealer: &mut Sealer) {
    let data = ContentType::APPLICATION_DATA;
    for len in LENGTHS {
        let record = sealed(sealer, data, &message(len));
        wire.borrow_mut().push_back(record);
        assert!(read_one(to) == message(len));

        let mut record = vec![0; len + sealer.overhead()];
        record[sealer.prefix_len()..][..len].copy_from_slice(&message(len));
        sealer.seal_in_place(data, &mut record).unwrap();
        wire.borrow_mut().push_back(record);
        assert!(read_one(to) == message(len));
    }

    let datagram = [
        sealed(sealer, data, b"one"),
        sealed(sealer, data, b"two"),
        sealed(sealer, data, b"three"),
    ];
    wire.borrow_mut().push_back(datagram.concat());
    for expected in [&b"one"[..], b"two", b"three"] {
        assert_eq!(read_one(to), expected);
    }

    let first = sealed(sealer, data, b"first");
    let second = sealed(sealer, data, b"second");
    for _ in 0..1000 {
        sealed(sealer, data, b"lost");
    }
    let far = sealed(sealer, data, b"far");
    let mut damaged = far.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for datagram in [&second, &first, &second, &damaged, &far] {
        wire.borrow_mut().push_back(datagram.clone());
    }
    for expected in [&b"second"[..], b"first", b"far"] {
        assert_eq!(read_one(to), expected);
    }
}

fn talk(suite: &Suite, provider: &'static dyn Provider) {
    let mut connection = connect(suite);
    let (client, server) = (&mut connection.client, &mut connection.server);
    let (to_client, to_server) = (&connection.to_client, &connection.to_server);
    let mut from_server = Opener::with_provider(provider, &connection.server_keys).unwrap();
    let mut from_client = Opener::with_provider(provider, &connection.client_keys).unwrap();
    openssl_seals(server, client, to_client, &mut from_server);
    openssl_seals(client, server, to_server, &mut from_client);

    // From here on we are both sides' record layer, with the keys as they are now.
    let mut as_server = Sealer::with_provider(provider, &from_server.keys()).unwrap();
    let mut as_client = Sealer::with_provider(provider, &from_client.keys()).unwrap();
    assert_eq!(as_server.sequence(), 1 + LENGTHS.len() as u64);
    openssl_opens(client, to_client, &mut as_server);
    openssl_opens(server, to_server, &mut as_client);

    let close_notify = sealed(&mut as_server, ContentType::ALERT, &[1, 0]);
    to_client.borrow_mut().push_back(close_notify);
    assert_eq!(client.read(&mut [0; 16]).unwrap(), 0);
    assert!(client.get_shutdown().contains(ShutdownState::RECEIVED));
}

#[test]
fn openssl_connections() {
    for suite in suites() {
        for provider in provider::all() {
            talk(&suite, *provider);
        }
    }
}

/// The handshake's own datagrams: epoch 0 is passed over record by record, and the Finished in epoch 1 opens.
#[test]
fn a_recorded_handshake_opens_at_its_finished() {
    for suite in suites() {
        let connection = connect(&suite);
        let keys = connection.client_keys;
        let keys = EpochKeys::dtls12(suite.cipher, keys.key(), keys.iv(), 1, 0).unwrap();
        let mut opener = Opener::new(&keys).unwrap();
        let (mut finished, mut unprotected) = (0, 0);
        for mut datagram in connection.handshake {
            let mut at = 0;
            while at < datagram.len() {
                let step = opener.open_next(&mut datagram[at..]);
                match step.opened {
                    Ok(opened) => {
                        assert_eq!(
                            (opened.content_type, opened.sequence),
                            (ContentType::HANDSHAKE, 0)
                        );
                        // A handshake header of 12 bytes and verify_data of 12.
                        let plaintext = &datagram[at..][opened.plaintext];
                        assert_eq!((plaintext[0], plaintext.len()), (20, 24));
                        finished += 1;
                    }
                    // The first ClientHello's header says DTLS 1.0, before a version was agreed on.
                    Err(
                        Discard::WrongEpoch { epoch: 0 }
                        | Discard::Malformed(Malformed::Version(0xFEFF)),
                    ) => unprotected += 1,
                    Err(other) => panic!("{other}"),
                }
                at += step.len;
            }
        }
        assert_eq!(finished, 1, "{}", suite.name);
        // ClientHello, ClientKeyExchange and ChangeCipherSpec at the least.
        assert!(unprotected >= 3, "{unprotected}");
    }
}
