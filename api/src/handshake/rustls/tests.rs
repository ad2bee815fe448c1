//! Both sides of the glue against rustls's own streams, over a socket pair whose one end does in this process what the
//! stack does: seal and open with exactly the keys it was handed.

use super::*;
use rustls::pki_types::ServerName;
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, ServerConfig, ServerConnection, SideData,
    StreamOwned,
};
use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use uktls_record::{CipherSuite, ContentType, CryptoInfo, Opener, ProtocolVersion, Sealer};

/// A socket with kTLS in software: data in `received`, or one control record that a plain read answers with EIO.
struct Software {
    wire: UnixStream,
    keys: RefCell<Keys>,
}

#[derive(Default)]
struct Keys {
    attached: bool,
    tx: Option<Sealer>,
    rx: Option<Opener>,
    received: Vec<u8>,
    control: Option<(ContentType, Vec<u8>)>,
}

impl Software {
    fn over(wire: UnixStream) -> Software {
        Software {
            wire,
            keys: RefCell::default(),
        }
    }

    fn send(&self, content_type: ContentType, bytes: &[u8]) -> io::Result<usize> {
        let mut keys = self.keys.borrow_mut();
        let Some(sealer) = keys.tx.as_mut() else {
            return (&self.wire).write(bytes);
        };
        let mut record = vec![0; bytes.len() + sealer.overhead()];
        sealer
            .seal_from(content_type, bytes, &mut record)
            .map_err(io::Error::other)?;
        (&self.wire).write_all(&record).map(|()| bytes.len())
    }

    /// Opens the next record, if nothing is left of the last one. `false` at the end.
    fn fill(&self) -> io::Result<bool> {
        let mut keys = self.keys.borrow_mut();
        if !keys.received.is_empty() || keys.control.is_some() {
            return Ok(true);
        }
        let mut record = vec![0; 5];
        match (&self.wire).read_exact(&mut record) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
        record.resize(5 + len, 0);
        (&self.wire).read_exact(&mut record[5..])?;
        let opened = keys
            .rx
            .as_mut()
            .expect("keys are set")
            .open_in_place(&mut record)
            .map_err(io::Error::other)?;
        let plaintext = record[opened.plaintext].to_vec();
        match opened.content_type {
            ContentType::APPLICATION_DATA => keys.received = plaintext,
            other => keys.control = Some((other, plaintext)),
        }
        Ok(true)
    }
}

impl Read for Software {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.keys.borrow().rx.is_none() {
            return self.wire.read(buf);
        }
        if !self.fill()? {
            return Ok(0);
        }
        let mut keys = self.keys.borrow_mut();
        if keys.control.is_some() {
            return Err(io::Error::from_raw_os_error(5));
        }
        let now = buf.len().min(keys.received.len());
        buf[..now].copy_from_slice(&keys.received[..now]);
        keys.received.drain(..now);
        Ok(now)
    }
}

impl Write for Software {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.send(ContentType::APPLICATION_DATA, &buf[..buf.len().min(16384)])
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl KtlsSocket for Software {
    fn attach(&self) -> io::Result<()> {
        assert!(
            !std::mem::replace(&mut self.keys.borrow_mut().attached, true),
            "the ULP is attached once"
        );
        Ok(())
    }
    fn set_tx(&self, keys: &CryptoInfo) -> io::Result<()> {
        assert!(self.keys.borrow().attached);
        self.keys.borrow_mut().tx = Some(Sealer::new(keys).map_err(io::Error::other)?);
        Ok(())
    }
    fn set_rx(&self, keys: &CryptoInfo) -> io::Result<()> {
        assert!(self.keys.borrow().attached);
        self.keys.borrow_mut().rx = Some(Opener::new(keys).map_err(io::Error::other)?);
        Ok(())
    }
    fn send_control(&self, content_type: ContentType, bytes: &[u8]) -> io::Result<usize> {
        self.send(content_type, bytes)
    }
    fn receive(&self, buf: &mut [u8]) -> io::Result<(ContentType, usize)> {
        if !self.fill()? {
            return Ok((ContentType::APPLICATION_DATA, 0));
        }
        let mut keys = self.keys.borrow_mut();
        let (content_type, bytes) = match keys.control.take() {
            Some(control) => control,
            None => (
                ContentType::APPLICATION_DATA,
                std::mem::take(&mut keys.received),
            ),
        };
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok((content_type, bytes.len()))
    }
}

fn all_choices() -> impl Iterator<Item = Choice> {
    [ProtocolVersion::Tls12, ProtocolVersion::Tls13]
        .into_iter()
        .flat_map(|version| {
            CipherSuite::ALL.map(|cipher| Choice {
                versions: vec![version],
                ciphers: vec![cipher],
            })
        })
}

fn configs(choice: &Choice) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let identity = Identity::self_signed(vec!["peer.test".into()]).expect("a certificate");
    let server = server_config(identity, choice, None).expect("a server's configuration");
    let client = client_config(&Trust::Anybody, choice, None).expect("a client's configuration");
    (server, client)
}

fn name() -> ServerName<'static> {
    ServerName::try_from("peer.test").expect("a name")
}

/// What rustls's own end does in every test: say hello, refresh keys and ask for new ones, echo, close.
fn foreign_end<C, D: SideData>(mut stream: StreamOwned<C, UnixStream>, tls13: bool)
where
    C: DerefMut + Deref<Target = ConnectionCommon<D>>,
{
    let mut line = [0; 5];
    stream.read_exact(&mut line).expect("the first bytes");
    assert_eq!(&line, b"first");
    if tls13 {
        stream.conn.refresh_traffic_keys().expect("a key update");
    }
    stream.write_all(b"answer").expect("an answer");
    stream.flush().expect("flushed");
    stream
        .read_exact(&mut line)
        .expect("more bytes, under new keys");
    assert_eq!(&line, b"again");
    stream.conn.send_close_notify();
    stream.flush().expect("flushed");
    assert_eq!(stream.read(&mut line).expect("close_notify came"), 0);
}

/// The other end, ours: the mirror of it.
fn our_end(mut stream: TlsStream<Software>, choice: &Choice) {
    let tls13 = choice.versions == [ProtocolVersion::Tls13];
    assert_eq!(
        stream.negotiated().expect("negotiated"),
        (choice.versions[0], choice.ciphers[0])
    );
    stream.write_all(b"first").expect("sent");
    let mut answer = [0; 6];
    stream
        .read_exact(&mut answer)
        .expect("the answer, behind tickets and a key update");
    assert_eq!(&answer, b"answer");
    assert_eq!(stream.key_update(true).is_ok(), tls13);
    stream.write_all(b"again").expect("sent under new keys");
    assert_eq!(stream.read(&mut answer).expect("close_notify came"), 0);
    assert!(stream.received_close_notify());
    stream.close_notify().expect("close_notify sent");
    assert_eq!(
        stream.write(b"x").expect_err("closed").kind(),
        ErrorKind::BrokenPipe
    );
}

#[test]
fn as_client_every_version_and_cipher_with_tickets_key_updates_and_a_clean_end() {
    for choice in all_choices() {
        let tls13 = choice.versions == [ProtocolVersion::Tls13];
        let (server, client) = configs(&choice);
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let peer = std::thread::spawn(move || {
            foreign_end(
                StreamOwned::new(ServerConnection::new(server).expect("a server"), theirs),
                tls13,
            )
        });
        let stream = TlsStream::connect(Software::over(ours), client, name()).expect("a handshake");
        our_end(stream, &choice);
        peer.join().expect("the peer is content");
    }
}

#[test]
fn as_server_every_version_and_cipher_with_tickets_key_updates_and_a_clean_end() {
    for choice in all_choices() {
        let tls13 = choice.versions == [ProtocolVersion::Tls13];
        let (server, client) = configs(&choice);
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let peer = std::thread::spawn(move || {
            let connection = ClientConnection::new(client, name()).expect("a client");
            foreign_end(StreamOwned::new(connection, theirs), tls13)
        });
        let stream = TlsStream::accept(Software::over(ours), server).expect("a handshake");
        our_end(stream, &choice);
        peer.join().expect("the peer is content");
    }
}

#[test]
fn tickets_that_arrive_after_the_hand_over_resume_the_next_connection() {
    for version in [ProtocolVersion::Tls12, ProtocolVersion::Tls13] {
        let (server, client) = configs(&Choice {
            versions: vec![version],
            ciphers: Vec::new(),
        });
        for expected in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
            let (ours, theirs) = UnixStream::pair().expect("a socket pair");
            let server = server.clone();
            let peer = std::thread::spawn(move || {
                let mut stream =
                    StreamOwned::new(ServerConnection::new(server).expect("a server"), theirs);
                stream.write_all(b"x").expect("sent");
                stream.flush().expect("flushed");
                stream.conn.handshake_kind()
            });
            let mut stream = TlsStream::connect(Software::over(ours), client.clone(), name())
                .expect("a handshake");
            stream
                .read_exact(&mut [0])
                .expect("a byte behind the tickets");
            assert_eq!(
                peer.join().expect("the peer is content"),
                Some(expected),
                "{version:?}"
            );
        }
    }
}

#[test]
fn nothing_behind_the_last_handshake_record_is_consumed() {
    for version in [ProtocolVersion::Tls12, ProtocolVersion::Tls13] {
        let (server, client) = configs(&Choice {
            versions: vec![version],
            ciphers: Vec::new(),
        });
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let mut connection = ClientConnection::new(client, name()).expect("a client");
        connection
            .writer()
            .write_all(b"right behind Finished")
            .expect("buffered");
        let peer = std::thread::spawn(move || {
            let mut stream = StreamOwned::new(connection, theirs);
            stream.flush().expect("Finished and data in one go");
            stream
        });
        let mut stream = TlsStream::accept(Software::over(ours), server).expect("a handshake");
        let mut early = [0; 21];
        stream.read_exact(&mut early).expect("the early bytes");
        assert_eq!(&early, b"right behind Finished");
        drop(peer.join().expect("the peer is content"));
    }
}

#[test]
fn an_end_without_close_notify_is_an_error() {
    let (server, client) = configs(&Choice::default());
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let peer = std::thread::spawn(move || {
        let mut stream = StreamOwned::new(ServerConnection::new(server).expect("a server"), theirs);
        stream.write_all(b"cut").expect("sent");
        stream.flush().expect("flushed");
    });
    let mut stream = TlsStream::connect(Software::over(ours), client, name()).expect("a handshake");
    let mut all = Vec::new();
    let error = stream.read_to_end(&mut all).expect_err("cut off");
    assert_eq!(
        (error.kind(), &all[..]),
        (ErrorKind::UnexpectedEof, &b"cut"[..])
    );
    peer.join().expect("the peer is content");
}

#[test]
fn a_nonblocking_handshake_goes_on_where_it_stopped() {
    let (server, client) = configs(&Choice::default());
    let (mut a, mut b) = UnixStream::pair().expect("a socket pair");
    a.set_nonblocking(true).expect("non-blocking");
    b.set_nonblocking(true).expect("non-blocking");
    let mut one = Handshake::client(client, name()).expect("a client");
    let mut two = Handshake::server(server).expect("a server");
    let mut steps = 0;
    loop {
        let progress = (
            one.step(&mut a).expect("a step"),
            two.step(&mut b).expect("a step"),
        );
        if progress == (Progress::Done, Progress::Done) {
            break;
        }
        steps += 1;
        assert!(steps < 10, "{progress:?}");
    }
    let (one, two) = (
        one.complete().expect("complete"),
        two.complete().expect("complete"),
    );
    // Our client's keys for sending are the server's for receiving. Explicit nonces aside, they are byte-identical.
    assert_eq!(
        (one.tx.key(), one.tx.rec_seq()),
        (two.rx.key(), two.rx.rec_seq())
    );
    assert_eq!((one.rx.key(), one.rx.salt()), (two.tx.key(), two.tx.salt()));
}

#[test]
fn what_is_not_tls_is_refused_with_an_alert() {
    let (server, _) = configs(&Choice::default());
    let (mut ours, mut theirs) = UnixStream::pair().expect("a socket pair");
    theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    let mut handshake = Handshake::server(server).expect("a server");
    let error = handshake.step(&mut ours).expect_err("no TLS");
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    let mut alert = [0; 7];
    theirs.read_exact(&mut alert).expect("an alert");
    assert_eq!((alert[0], alert[5]), (21, 2), "a fatal alert");
}

#[test]
fn a_certificate_from_the_trusted_file_is_believed_even_if_it_is_an_authoritys_own_but_for_its_name_only()
 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    for (number, is_ca) in [
        rcgen::IsCa::NoCa,
        rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
    ]
    .into_iter()
    .enumerate()
    {
        let mut params = rcgen::CertificateParams::new(vec!["peer.test".into()]).expect("a name");
        params.is_ca = is_ca;
        let key = rcgen::KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate");
        std::fs::write(path("cert"), cert.pem()).expect("written");
        std::fs::write(path("key"), key.serialize_pem()).expect("written");
        let identity = Identity::from_pem_files(&path("cert"), &path("key")).expect("an identity");
        let server = server_config(identity, &Choice::default(), None).expect("a configuration");
        let client = client_config(&Trust::File(path("cert")), &Choice::default(), None)
            .expect("a configuration");
        let shakes_hands = |name: &'static str| {
            let (ours, theirs) = UnixStream::pair().expect("a socket pair");
            let server = server.clone();
            // Its end fails when the client refuses; what matters is the client's.
            let peer =
                std::thread::spawn(move || drop(TlsStream::accept(Software::over(theirs), server)));
            let name = ServerName::try_from(name).expect("a name");
            let outcome = TlsStream::connect(Software::over(ours), client.clone(), name).map(drop);
            peer.join().expect("no panic");
            outcome
        };
        shakes_hands("peer.test").unwrap_or_else(|error| panic!("certificate {number}: {error}"));
        shakes_hands("other.test").expect_err("another name");
    }
}

/// A stream of given bytes that swallows what is written.
struct Given<'a>(&'a [u8]);

impl Read for Given<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Given<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client's first flight.
fn client_hello() -> Vec<u8> {
    let (_, client) = configs(&Choice::default());
    let (mut ours, mut theirs) = UnixStream::pair().expect("a socket pair");
    ours.set_nonblocking(true).expect("non-blocking");
    let mut handshake = Handshake::client(client, name()).expect("a client");
    assert_eq!(
        handshake.step(&mut ours).expect("a hello"),
        Progress::WantRead
    );
    drop(ours);
    let mut hello = Vec::new();
    theirs.read_to_end(&mut hello).expect("the hello");
    hello
}

mod properties {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static HELLO: LazyLock<Vec<u8>> = LazyLock::new(client_hello);
    static CONFIGS: LazyLock<(Arc<ServerConfig>, Arc<ClientConfig>)> =
        LazyLock::new(|| configs(&Choice::default()));

    /// Whatever comes, a handshake ends with an error: nobody completes one without keys.
    fn both_sides_refuse(bytes: &[u8]) {
        let mut server = Handshake::server(CONFIGS.0.clone()).expect("a server");
        server.step(&mut Given(bytes)).expect_err("no handshake");
        let mut client = Handshake::client(CONFIGS.1.clone(), name()).expect("a client");
        client.step(&mut Given(bytes)).expect_err("no handshake");
    }

    proptest! {
        #[test]
        fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            both_sides_refuse(&bytes);
        }

        #[test]
        fn records_of_noise_are_refused(
            records in proptest::collection::vec((20u8..24, proptest::collection::vec(any::<u8>(), 0..100)), 0..6),
        ) {
            let mut bytes = Vec::new();
            for (content_type, body) in &records {
                bytes.extend_from_slice(&[*content_type, 3, 3, 0, body.len() as u8]);
                bytes.extend_from_slice(body);
            }
            both_sides_refuse(&bytes);
        }

        #[test]
        fn a_damaged_hello_is_refused(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..=255), 0..4),
            cut in any::<prop::sample::Index>(),
            split in any::<prop::sample::Index>(),
        ) {
            let mut bytes = HELLO.clone();
            for (at, flip) in &flips {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
            // The same message in two records, as a peer may send it, and then cut off.
            let split = 5 + split.index(bytes.len() - 5);
            let mut records = Vec::new();
            for part in [&bytes[5..split], &bytes[split..]] {
                records.extend_from_slice(&[22, 3, 1]);
                records.extend_from_slice(&(part.len() as u16).to_be_bytes());
                records.extend_from_slice(part);
            }
            both_sides_refuse(&records);
            records.truncate(cut.index(records.len()));
            both_sides_refuse(&records);
            both_sides_refuse(&bytes);
        }
    }
}
