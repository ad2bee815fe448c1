//! OpenSSL as the other end: its cipher API on single records, and whole TLS 1.2 and 1.3 connections in memory whose
//! records we open and into whose stream we seal our own.

mod support;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use openssl::hash::MessageDigest;
use openssl::ssl::{
    ShutdownState, Ssl, SslContext, SslContextBuilder, SslMethod, SslStream, SslVersion,
};
use openssl::symm::{Cipher, decrypt_aead, encrypt_aead};
use uktls_record::provider::{self, Provider};
use uktls_record::{CipherSuite, ContentType, CryptoInfo, Opener, ProtocolVersion, Sealer};

use ProtocolVersion::{Tls12, Tls13};
use support::{KeyBlock, certificate, hmac};

fn openssl_cipher(cipher: CipherSuite) -> Cipher {
    match cipher {
        CipherSuite::Aes128Gcm => Cipher::aes_128_gcm(),
        CipherSuite::Aes256Gcm => Cipher::aes_256_gcm(),
        CipherSuite::ChaCha20Poly1305 => Cipher::chacha20_poly1305(),
    }
}

/// Records put together by hand from the RFCs' words and OpenSSL's AEAD are ours, byte for byte.
#[test]
fn openssl_cipher_api_makes_the_same_records() {
    let (salt, iv, sequence) = (
        [0xA1, 0xA2, 0xA3, 0xA4],
        0x1122_3344_5566_7788_u64,
        0x0000_0001_0000_00FE_u64,
    );
    let content_type = ContentType::HANDSHAKE;
    for version in [Tls12, Tls13] {
        for cipher in CipherSuite::ALL {
            let key = vec![0x5C; cipher.key_len()];
            let nonce_base = [&salt[..], &iv.to_be_bytes()].concat();
            let (own_salt, own_iv) = nonce_base.split_at(cipher.salt_len());
            let keys = CryptoInfo::new(version, cipher, &key, own_salt, own_iv, sequence).unwrap();
            for provider in provider::all() {
                let mut sealer = Sealer::with_provider(*provider, &keys).unwrap();
                let mut opener = Opener::with_provider(*provider, &keys).unwrap();
                for ahead in 0..4 {
                    let plaintext = vec![ahead as u8; [0, 1, 1000, 16384][ahead as usize]];
                    let explicit = version == Tls12 && cipher != CipherSuite::ChaCha20Poly1305;
                    let counter = if explicit {
                        iv + ahead
                    } else {
                        iv ^ (sequence + ahead)
                    };
                    let nonce = [&salt[..], &counter.to_be_bytes()].concat();
                    let mut inner = plaintext.clone();
                    let mut head = vec![22, 3, 3];
                    if version == Tls13 {
                        inner.push(content_type.0);
                        head[0] = 23;
                    }
                    let length = (inner.len() + 16 + if explicit { 8 } else { 0 }) as u16;
                    head.extend(length.to_be_bytes());
                    let aad = match version {
                        Tls12 => {
                            let n = (plaintext.len() as u16).to_be_bytes();
                            [&(sequence + ahead).to_be_bytes()[..], &[22, 3, 3], &n].concat()
                        }
                        Tls13 => head.clone(),
                    };
                    let mut tag = [0; 16];
                    let body = encrypt_aead(
                        openssl_cipher(cipher),
                        &key,
                        Some(&nonce),
                        &aad,
                        &inner,
                        &mut tag,
                    )
                    .unwrap();
                    let wire_nonce: &[u8] = if explicit { &nonce[4..] } else { &[] };
                    let theirs = [&head, wire_nonce, &body, &tag[..]].concat();

                    let mut ours = vec![0; plaintext.len() + sealer.overhead()];
                    sealer
                        .seal_from(content_type, &plaintext, &mut ours)
                        .unwrap();
                    assert!(
                        ours == theirs,
                        "{version} {cipher}, record {ahead}, {}",
                        provider.name()
                    );

                    let back = decrypt_aead(
                        openssl_cipher(cipher),
                        &key,
                        Some(&nonce),
                        &aad,
                        &ours[sealer.prefix_len()..ours.len() - 16],
                        &ours[ours.len() - 16..],
                    );
                    assert!(back.unwrap() == inner);
                    let mut record = theirs;
                    let opened = opener.open_in_place(&mut record).unwrap();
                    assert_eq!(opened.content_type, content_type);
                    assert!(record[opened.plaintext] == plaintext);
                }
            }
        }
    }
}

/// The bytes under way in one direction.
type Wire = Rc<RefCell<VecDeque<u8>>>;

/// One end of a connection in memory: reads from one wire, writes to the other, never waits.
#[derive(Debug)]
struct End {
    incoming: Wire,
    outgoing: Wire,
}

impl Read for End {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.incoming.borrow_mut().read(buf)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }
}

impl Write for End {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.outgoing.borrow_mut().write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// RFC 8446 §7.1: `HKDF-Expand-Label(secret, label, "", len)`.
fn expand_label(digest: MessageDigest, secret: &[u8], label: &str, len: usize) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let mut info = (len as u16).to_be_bytes().to_vec();
    info.push(label.len() as u8);
    info.extend(label.as_bytes());
    info.push(0);
    let (mut block, mut out) = (Vec::new(), Vec::new());
    for counter in 1.. {
        if out.len() >= len {
            break;
        }
        block = hmac(digest, secret, &[&block[..], &info, &[counter]].concat());
        out.extend(&block);
    }
    out.truncate(len);
    out
}

/// RFC 8446 §7.3: a TLS 1.3 traffic secret's key and iv.
fn tls13_keys(suite: &Suite, secret: &[u8]) -> CryptoInfo {
    let key = expand_label(suite.digest, secret, "key", suite.cipher.key_len());
    let iv = expand_label(suite.digest, secret, "iv", 12);
    CryptoInfo::from_key_and_iv(Tls13, suite.cipher, &key, &iv, 0).unwrap()
}

/// What OpenSSL calls a cipher suite, and the hash of its key schedule.
struct Suite {
    version: ProtocolVersion,
    cipher: CipherSuite,
    name: &'static str,
    digest: MessageDigest,
}

fn suites() -> [Suite; 6] {
    let (sha256, sha384) = (MessageDigest::sha256(), MessageDigest::sha384());
    let row = |version, cipher, name, digest| Suite {
        version,
        cipher,
        name,
        digest,
    };
    [
        row(
            Tls12,
            CipherSuite::Aes128Gcm,
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            sha256,
        ),
        row(
            Tls12,
            CipherSuite::Aes256Gcm,
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            sha384,
        ),
        row(
            Tls12,
            CipherSuite::ChaCha20Poly1305,
            "ECDHE-ECDSA-CHACHA20-POLY1305",
            sha256,
        ),
        row(
            Tls13,
            CipherSuite::Aes128Gcm,
            "TLS_AES_128_GCM_SHA256",
            sha256,
        ),
        row(
            Tls13,
            CipherSuite::Aes256Gcm,
            "TLS_AES_256_GCM_SHA384",
            sha384,
        ),
        row(
            Tls13,
            CipherSuite::ChaCha20Poly1305,
            "TLS_CHACHA20_POLY1305_SHA256",
            sha256,
        ),
    ]
}

fn context(suite: &Suite, key_log: &Arc<Mutex<Vec<String>>>) -> SslContextBuilder {
    let mut context = SslContext::builder(SslMethod::tls()).unwrap();
    let version = match suite.version {
        Tls12 => SslVersion::TLS1_2,
        Tls13 => SslVersion::TLS1_3,
    };
    context.set_min_proto_version(Some(version)).unwrap();
    context.set_max_proto_version(Some(version)).unwrap();
    match suite.version {
        Tls12 => context.set_cipher_list(suite.name).unwrap(),
        Tls13 => context.set_ciphersuites(suite.name).unwrap(),
    }
    let key_log = key_log.clone();
    context.set_keylog_callback(move |_, line| key_log.lock().unwrap().push(line.to_owned()));
    context
}

/// A finished handshake between two OpenSSL ends, the wires between them, and each direction's keys.
struct Connection {
    client: SslStream<End>,
    server: SslStream<End>,
    to_client: Wire,
    to_server: Wire,
    /// Next to be sent by the server, and by the client.
    server_keys: CryptoInfo,
    client_keys: CryptoInfo,
    /// TLS 1.3: the server's `application_traffic_secret_0`.
    server_secret: Vec<u8>,
}

fn connect(suite: &Suite) -> Connection {
    let key_log = Arc::new(Mutex::new(Vec::new()));
    let (key, certificate) = certificate();
    let mut server_context = context(suite, &key_log);
    server_context.set_private_key(&key).unwrap();
    server_context.set_certificate(&certificate).unwrap();
    let client_context = context(suite, &Arc::default());

    let (to_client, to_server) = (Wire::default(), Wire::default());
    let server_end = End {
        incoming: to_server.clone(),
        outgoing: to_client.clone(),
    };
    let client_end = End {
        incoming: to_client.clone(),
        outgoing: to_server.clone(),
    };
    let mut server =
        SslStream::new(Ssl::new(&server_context.build()).unwrap(), server_end).unwrap();
    let mut client =
        SslStream::new(Ssl::new(&client_context.build()).unwrap(), client_end).unwrap();

    // Two round trips at most; each call goes on until it needs bytes the other has not sent.
    let mut done = (false, false);
    for _ in 0..4 {
        done = (client.connect().is_ok(), server.accept().is_ok());
        if done == (true, true) {
            break;
        }
    }
    assert_eq!(done, (true, true), "{}", suite.name);
    assert_eq!(client.ssl().current_cipher().unwrap().name(), suite.name);

    let mut server_secret = Vec::new();
    let (server_keys, client_keys) = match suite.version {
        Tls13 => {
            let secret = |label: &str| {
                let log = key_log.lock().unwrap();
                let line = log
                    .iter()
                    .find(|line| line.starts_with(label))
                    .expect("the handshake logged its secrets");
                from_hex(line.rsplit(' ').next().unwrap())
            };
            server_secret = secret("SERVER_TRAFFIC_SECRET_0");
            (
                tls13_keys(suite, &server_secret),
                tls13_keys(suite, &secret("CLIENT_TRAFFIC_SECRET_0")),
            )
        }
        Tls12 => tls12_keys(suite, &server),
    };
    Connection {
        client,
        server,
        to_client,
        to_server,
        server_keys,
        client_keys,
        server_secret,
    }
}

/// The keys of both sides, each of which has sent its Finished as record 0.
fn tls12_keys(suite: &Suite, server: &SslStream<End>) -> (CryptoInfo, CryptoInfo) {
    let block = KeyBlock::of(server.ssl(), suite.digest, suite.cipher);
    let keys = |(key, iv): &(Vec<u8>, Vec<u8>)| match suite.cipher {
        CipherSuite::ChaCha20Poly1305 => {
            CryptoInfo::new(Tls12, suite.cipher, key, &[], iv, 1).unwrap()
        }
        // OpenSSL starts its explicit nonces at random, so any other start will do for ours.
        _ => CryptoInfo::tls12_gcm(suite.cipher, key, iv, 1, 1).unwrap(),
    };
    (keys(&block.server), keys(&block.client))
}

fn from_hex(text: &str) -> Vec<u8> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    text.as_bytes().chunks(2).map(byte).collect()
}

/// Opens everything under way on a wire, and leaves it there for its receiver.
fn watch(wire: &Wire, opener: &mut Opener) -> Vec<(ContentType, Vec<u8>)> {
    let bytes: Vec<u8> = wire.borrow().iter().copied().collect();
    let (mut rest, mut seen) = (&bytes[..], Vec::new());
    while let Some(header) = rest.first_chunk() {
        let len = opener.parse_header(header).unwrap().record_len();
        let mut record = rest[..len].to_vec();
        let opened = opener.open_in_place(&mut record).unwrap();
        seen.push((opened.content_type, record[opened.plaintext].to_vec()));
        rest = &rest[len..];
    }
    assert!(rest.is_empty());
    seen
}

fn read_exactly(end: &mut SslStream<End>, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    end.read_exact(&mut bytes).unwrap();
    bytes
}

fn message(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + len) as u8).collect()
}

/// What OpenSSL sends in `from`'s direction, opened by us; then `to` reads it, so that both stay in step.
fn openssl_seals(
    from: &mut SslStream<End>,
    to: &mut SslStream<End>,
    wire: &Wire,
    opener: &mut Opener,
) {
    for len in [1, 1000, 16384, 16385, 40000] {
        let sent = message(len);
        from.write_all(&sent).unwrap();
        let seen = watch(wire, opener);
        assert_eq!(seen.len(), len.div_ceil(16384));
        assert!(
            seen.iter()
                .all(|(content_type, _)| *content_type == ContentType::APPLICATION_DATA)
        );
        assert!(
            seen.into_iter()
                .flat_map(|(_, plaintext)| plaintext)
                .eq(sent.iter().copied())
        );
        assert!(read_exactly(to, len) == sent);
    }
}

/// What we seal, read by OpenSSL.
fn openssl_opens(to: &mut SslStream<End>, wire: &Wire, sealer: &mut Sealer) {
    for len in [1, 0, 1000, 16384] {
        let sent = message(len);
        let mut record = vec![0; len + sealer.overhead()];
        sealer
            .seal_from(ContentType::APPLICATION_DATA, &sent, &mut record)
            .unwrap();
        wire.borrow_mut().extend(&record);
        assert!(read_exactly(to, len) == sent);

        record.fill(0);
        record[sealer.prefix_len()..][..len].copy_from_slice(&sent);
        sealer
            .seal_in_place(ContentType::APPLICATION_DATA, &mut record)
            .unwrap();
        wire.borrow_mut().extend(&record);
        assert!(read_exactly(to, len) == sent);
    }
}

fn seal(sealer: &mut Sealer, content_type: ContentType, plaintext: &[u8]) -> Vec<u8> {
    let mut record = vec![0; plaintext.len() + sealer.overhead()];
    sealer
        .seal_from(content_type, plaintext, &mut record)
        .unwrap();
    record
}

fn talk(suite: &Suite, provider: &'static dyn Provider) {
    let Connection {
        mut client,
        mut server,
        to_client,
        to_server,
        server_keys,
        client_keys,
        server_secret,
    } = connect(suite);
    let (client, server) = (&mut client, &mut server);
    let mut from_server = Opener::with_provider(provider, &server_keys).unwrap();
    let mut from_client = Opener::with_provider(provider, &client_keys).unwrap();

    // A TLS 1.3 server's session tickets are the first records under its application keys.
    let tickets = watch(&to_client, &mut from_server);
    assert_eq!(tickets.len(), if suite.version == Tls13 { 2 } else { 0 });
    for (content_type, plaintext) in tickets {
        assert_eq!((content_type, plaintext[0]), (ContentType::HANDSHAKE, 4));
    }
    // The client takes them off the wire while it looks for data, and finds none.
    let nothing = client.read(&mut [0; 16]).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    openssl_seals(server, client, &to_client, &mut from_server);
    openssl_seals(client, server, &to_server, &mut from_client);

    // From here on we are the server's and the client's record layer: keys as they are now, both directions.
    let mut as_server = Sealer::with_provider(provider, &from_server.crypto_info()).unwrap();
    let mut as_client = Sealer::with_provider(provider, &from_client.crypto_info()).unwrap();
    openssl_opens(client, &to_client, &mut as_server);
    openssl_opens(server, &to_server, &mut as_client);

    if suite.version == Tls13 {
        let mut padded = vec![0; 4 + 1000 + as_server.overhead()];
        padded[5..9].copy_from_slice(b"shh!");
        as_server
            .seal_padded_in_place(ContentType::APPLICATION_DATA, &mut padded, 1000)
            .unwrap();
        to_client.borrow_mut().extend(&padded);
        assert_eq!(read_exactly(client, 4), b"shh!");

        // RFC 8446 §4.6.3: KeyUpdate(update_not_requested), then §7.2's next secret.
        let key_update = seal(&mut as_server, ContentType::HANDSHAKE, &[24, 0, 0, 1, 0]);
        to_client.borrow_mut().extend(&key_update);
        let next = expand_label(
            suite.digest,
            &server_secret,
            "traffic upd",
            server_secret.len(),
        );
        as_server.rekey(&tls13_keys(suite, &next)).unwrap();
        openssl_opens(client, &to_client, &mut as_server);
    }

    // close_notify, which is not end of file but an alert that OpenSSL must recognise as one.
    let close_notify = seal(&mut as_server, ContentType::ALERT, &[1, 0]);
    to_client.borrow_mut().extend(&close_notify);
    assert_eq!(client.read(&mut [0; 16]).unwrap(), 0);
    assert!(client.get_shutdown().contains(ShutdownState::RECEIVED));
}

#[test]
fn openssl_connections_tls12() {
    for suite in suites().iter().filter(|suite| suite.version == Tls12) {
        for provider in provider::all() {
            talk(suite, *provider);
        }
    }
}

#[test]
fn openssl_connections_tls13() {
    for suite in suites().iter().filter(|suite| suite.version == Tls13) {
        for provider in provider::all() {
            talk(suite, *provider);
        }
    }
}
