//! Handshakes whose every random byte comes from a seed, for the simulator: the same seed gives the same handshake, byte for byte, and so the
//! same keys.
//!
//! **Dangerous:** whoever knows the seed knows the keys. Nothing here may meet a network that is not simulated.
//!
//! Giving rustls a [`SecureRandom`] of one's own is not enough, because its providers draw randomness in other places too. All of them are replaced:
//!
//! | what is random in a handshake | where it comes from here |
//! | --- | --- |
//! | hello randoms, session ids, order of extensions, ticket ages | [`SecureRandom`] on a stream of the seed |
//! | the key exchange | X25519, the private key from a stream of the seed; no other group is offered |
//! | the certificate, its key and signatures | Ed25519: key from the seed, signatures without randomness; serial number and dates are fixed |
//! | what encrypts tickets | key from the seed, nonces that count |
//! | the time | a fixed one |
//!
//! Each party has streams of its own, named after it, so that one that does more handshakes does not shift the others.

use super::config::{Choice, ConfigError, Identity, provider as ordinary_provider, versions};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret,
    SupportedKxGroup,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::ProducesTickets;
use rustls::time_provider::TimeProvider;
use rustls::{
    ClientConfig, Error, KeyLog, NamedGroup, PeerMisbehaved, RootCertStore, ServerConfig,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use uktls_stack::sim::random::Stream;
use uktls_stack::sim::recording::EPOCH;

/// What every seeded handshake takes for now: the start of the run.
pub const NOW: UnixTime = UnixTime::since_unix_epoch(EPOCH);

/// RFC 8410 §7: an Ed25519 private key in PKCS#8, up to its 32 bytes.
const ED25519_PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// How long tickets are good for, in seconds. Simulated time does not reach TLS, so they always are.
const TICKET_LIFETIME: u32 = 24 * 60 * 60;

/// A party to handshakes that repeat.
#[derive(Debug, Clone)]
pub struct Seeded {
    seed: u64,
    party: String,
    provider: Arc<CryptoProvider>,
}

impl Seeded {
    /// The party called `party` (its host's name, say) in the run with this seed.
    ///
    /// rustls wants random sources that live as long as the program, so each party leaves some hundred bytes behind for good; that is
    /// of no weight in a test, and in a sweep of a million seeds it is.
    pub fn new(seed: u64, party: &str) -> Seeded {
        let provider = CryptoProvider {
            secure_random: Box::leak(Box::new(Source::new(seed, party, "tls random"))),
            kx_groups: vec![Box::leak(Box::new(SeededX25519(Source::new(
                seed,
                party,
                "tls key exchange",
            ))))],
            ..CryptoProvider::clone(&ordinary_provider(&Choice::default()))
        };
        Seeded {
            seed,
            party: party.to_owned(),
            provider: Arc::new(provider),
        }
    }

    /// The provider, for configurations of one's own. Those need [`FixedTime`] too, and a server's
    /// [`ticketer`](Self::ticketer).
    pub fn provider(&self) -> Arc<CryptoProvider> {
        self.provider.clone()
    }

    /// A certificate for these names (host names or IP addresses), signed by itself; the same each time.
    ///
    /// # Errors
    /// A name that cannot stand in a certificate.
    pub fn identity(&self, names: Vec<String>) -> Result<Identity, ConfigError> {
        let mut key = ED25519_PKCS8.to_vec();
        key.resize(ED25519_PKCS8.len() + 32, 0);
        Stream::new(self.seed, &self.party, "tls certificate key")
            .fill(&mut key[ED25519_PKCS8.len()..]);
        let key = PrivatePkcs8KeyDer::from(key);
        let signing = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&key, &rcgen::PKCS_ED25519)?;
        let certificate = rcgen::CertificateParams::new(names)?.self_signed(&signing)?;
        Ok(Identity::from_der(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key),
        ))
    }

    /// What encrypts a server's tickets.
    pub fn ticketer(&self) -> Arc<dyn ProducesTickets> {
        let mut key = [0; 32];
        Stream::new(self.seed, &self.party, "tls tickets").fill(&mut key);
        let key = UnboundKey::new(&AES_256_GCM, &key).expect("AES-256 has keys of 32 bytes");
        Arc::new(SeededTicketer {
            key: LessSafeKey::new(key),
            tickets: AtomicU64::new(0),
        })
    }

    /// A server's configuration: tickets, secrets extractable.
    ///
    /// # Errors
    /// A certificate that does not fit its key; no cipher left for the versions.
    pub fn server_config(
        &self,
        identity: Identity,
        choice: &Choice,
        key_log: Option<Arc<dyn KeyLog>>,
    ) -> Result<Arc<ServerConfig>, ConfigError> {
        let (chain, key) = identity.into_der();
        let mut config =
            ServerConfig::builder_with_details(self.narrowed(choice), Arc::new(FixedTime))
                .with_protocol_versions(&versions(choice))?
                .with_no_client_auth()
                .with_single_cert(chain, key)?;
        config.ticketer = self.ticketer();
        config.enable_secret_extraction = true;
        if let Some(key_log) = key_log {
            config.key_log = key_log;
        }
        Ok(Arc::new(config))
    }

    /// The configuration of a client that believes these certificates: secrets extractable.
    ///
    /// # Errors
    /// A certificate that is none; no cipher left for the versions.
    pub fn client_config(
        &self,
        believed: &[&Identity],
        choice: &Choice,
        key_log: Option<Arc<dyn KeyLog>>,
    ) -> Result<Arc<ClientConfig>, ConfigError> {
        let mut roots = RootCertStore::empty();
        for identity in believed {
            roots.add(CertificateDer::from(identity.certificate().to_vec()))?;
        }
        let mut config =
            ClientConfig::builder_with_details(self.narrowed(choice), Arc::new(FixedTime))
                .with_protocol_versions(&versions(choice))?
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.enable_secret_extraction = true;
        if let Some(key_log) = key_log {
            config.key_log = key_log;
        }
        Ok(Arc::new(config))
    }

    /// The same sources, with the chosen ciphers only.
    fn narrowed(&self, choice: &Choice) -> Arc<CryptoProvider> {
        let suites = ordinary_provider(choice).cipher_suites.clone();
        Arc::new(CryptoProvider {
            cipher_suites: suites,
            ..CryptoProvider::clone(&self.provider)
        })
    }
}

/// [`NOW`], always.
#[derive(Debug, Clone, Copy, Default)]
pub struct FixedTime;

impl TimeProvider for FixedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(NOW)
    }
}

/// A stream of the seed that rustls may draw from.
#[derive(Debug)]
struct Source(Mutex<Stream>);

impl Source {
    fn new(seed: u64, party: &str, purpose: &str) -> Source {
        Source(Mutex::new(Stream::new(seed, party, purpose)))
    }
}

impl SecureRandom for Source {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stream.fill(bytes);
        Ok(())
    }
}

#[derive(Debug)]
struct SeededX25519(Source);

impl SupportedKxGroup for SeededX25519 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut private = [0; 32];
        self.0.fill(&mut private)?;
        let refused = |_| Error::General("a seeded X25519 key was refused".to_owned());
        let private = PrivateKey::from_private_key(&X25519, &private)
            .map_err(|_| refused(aws_lc_rs::error::Unspecified))?;
        let public = private.compute_public_key().map_err(refused)?;
        Ok(Box::new(Exchange {
            private,
            public: public.as_ref().to_vec(),
        }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

struct Exchange {
    private: PrivateKey,
    public: Vec<u8>,
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        agreement::agree(
            &self.private,
            UnparsedPublicKey::new(&X25519, peer),
            PeerMisbehaved::InvalidKeyShare.into(),
            |secret| Ok(SharedSecret::from(secret)),
        )
    }

    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

/// A ticket is a nonce and what is sealed under it.
struct SeededTicketer {
    key: LessSafeKey,
    tickets: AtomicU64,
}

impl std::fmt::Debug for SeededTicketer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SeededTicketer")
    }
}

impl ProducesTickets for SeededTicketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        TICKET_LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        let number = self.tickets.fetch_add(1, Ordering::Relaxed);
        nonce[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
        let mut sealed = plain.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::empty(),
                &mut sealed,
            )
            .ok()?;
        Some([&nonce[..], &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.split_first_chunk::<NONCE_LEN>()?;
        let mut opened = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self
            .key
            .open_in_place(nonce, Aad::empty(), &mut opened)
            .ok()?;
        Some(plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Complete, Handshake, KeyLogWriter, Progress};
    use super::*;
    use rustls::HandshakeKind;
    use std::io::{self, Read, Write};
    use uktls_record::{CipherSuite, ContentType, Opener, ProtocolVersion, Sealer};

    /// Two ends of a wire in one place: what is written is kept, what is read comes from the other's.
    #[derive(Default)]
    struct Wire {
        to_client: Vec<u8>,
        to_server: Vec<u8>,
        /// How much of each was read.
        read: [usize; 2],
    }

    struct End<'a> {
        wire: &'a mut Wire,
        server: bool,
    }

    impl Read for End<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let (bytes, read) = if self.server {
                (&self.wire.to_server, &mut self.wire.read[1])
            } else {
                (&self.wire.to_client, &mut self.wire.read[0])
            };
            let n = buf.len().min(bytes.len() - *read);
            if n == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            buf[..n].copy_from_slice(&bytes[*read..*read + n]);
            *read += n;
            Ok(n)
        }
    }

    impl Write for End<'_> {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let to = if self.server {
                &mut self.wire.to_client
            } else {
                &mut self.wire.to_server
            };
            to.extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Parties {
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
        log: Arc<Mutex<Vec<u8>>>,
    }

    #[derive(Clone)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .expect("no test panics while logging")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Parties {
        fn new(seed: u64, version: ProtocolVersion) -> Parties {
            let choice = Choice {
                versions: vec![version],
                ..Choice::default()
            };
            let (client, server) = (Seeded::new(seed, "client"), Seeded::new(seed, "server"));
            let identity = server.identity(vec!["server".to_owned()]).expect("a name");
            let log = Arc::default();
            let key_log = Arc::new(KeyLogWriter::new(Log(Arc::clone(&log))));
            Parties {
                client: client
                    .client_config(&[&identity], &choice, Some(key_log))
                    .expect("a configuration"),
                server: server
                    .server_config(identity, &choice, None)
                    .expect("a configuration"),
                log,
            }
        }

        fn shake_hands(&self) -> (Wire, Complete, Complete) {
            let mut wire = Wire::default();
            let name = "server".try_into().expect("a name");
            let mut client = Handshake::client(self.client.clone(), name).expect("a client");
            let mut server = Handshake::server(self.server.clone()).expect("a server");
            let mut done = [false; 2];
            for _ in 0..10 {
                let steps: [(&mut Handshake, bool); 2] =
                    [(&mut client, false), (&mut server, true)];
                for (handshake, is_server) in steps {
                    if !done[usize::from(is_server)] {
                        let mut end = End {
                            wire: &mut wire,
                            server: is_server,
                        };
                        let progress = handshake.step(&mut end).expect("an honest handshake");
                        done[usize::from(is_server)] = progress == Progress::Done;
                    }
                }
                if done == [true; 2] {
                    let (client, server) = (client.complete(), server.complete());
                    return (wire, client.expect("keys"), server.expect("keys"));
                }
            }
            panic!("the handshake does not end");
        }
    }

    const VERSIONS: [ProtocolVersion; 2] = [ProtocolVersion::Tls12, ProtocolVersion::Tls13];

    #[test]
    fn the_same_seed_is_the_same_handshake_and_another_is_another() {
        for version in VERSIONS {
            // Twice each: the second draws on where the first left the streams.
            let run = |seed| {
                let parties = Parties::new(seed, version);
                let [first, second] = [(); 2].map(|()| {
                    let (wire, client, server) = parties.shake_hands();
                    let keys = [client.tx, client.rx, server.tx, server.rx].map(|it| it.to_bytes());
                    (wire.to_client, wire.to_server, keys)
                });
                let log = parties
                    .log
                    .lock()
                    .expect("no test panics while logging")
                    .clone();
                (first, second, log)
            };
            let (one, again, other) = (run(1), run(1), run(2));
            assert!(one == again, "{version:?}: the same seed gives other bytes");
            assert_ne!(one.0.0, other.0.0);
            assert_ne!(one.0.1, other.0.1);
            assert_ne!(one.0.2, other.0.2);
            assert_ne!(
                one.0.1, one.1.1,
                "handshakes of one run differ from each other"
            );
            assert!(one.2.starts_with(b"CLIENT_"), "the key log has lines");
        }
    }

    #[test]
    fn a_ticket_is_the_same_again_and_resumes() {
        let run = || {
            let parties = Parties::new(3, ProtocolVersion::Tls13);
            let name = || "server".try_into().expect("a name");
            let mut kinds = Vec::new();
            let mut bytes = Vec::new();
            for _ in 0..2 {
                let mut client = rustls::ClientConnection::new(parties.client.clone(), name())
                    .expect("a client");
                let mut server =
                    rustls::ServerConnection::new(parties.server.clone()).expect("a server");
                for _ in 0..4 {
                    let mut flight = Vec::new();
                    client
                        .write_tls(&mut flight)
                        .expect("memory takes everything");
                    server.read_tls(&mut &flight[..]).expect("room");
                    server.process_new_packets().expect("an honest client");
                    bytes.append(&mut flight);
                    server
                        .write_tls(&mut flight)
                        .expect("memory takes everything");
                    client.read_tls(&mut &flight[..]).expect("room");
                    client.process_new_packets().expect("an honest server");
                    bytes.append(&mut flight);
                }
                kinds.push(client.handshake_kind());
            }
            (kinds, bytes)
        };
        let (kinds, bytes) = run();
        assert_eq!(
            kinds,
            [Some(HandshakeKind::Full), Some(HandshakeKind::Resumed)]
        );
        assert!(run().1 == bytes, "the same seed gives other bytes");
    }

    #[test]
    fn the_keys_are_taken_over_by_the_record_layer() {
        for version in VERSIONS {
            let (wire, client, server) = Parties::new(4, version).shake_hands();
            assert_eq!(client.tx.cipher(), CipherSuite::Aes128Gcm);
            let unread = [
                &wire.to_client[wire.read[0]..],
                &wire.to_server[wire.read[1]..],
            ];
            let directions = [(&server.tx, &client.rx), (&client.tx, &server.rx)];
            for ((tx, rx), mut unread) in directions.into_iter().zip(unread) {
                let mut sealer = Sealer::new(tx).expect("keys");
                let mut opener = Opener::new(rx).expect("keys");
                let mut hello = vec![0; 5 + sealer.overhead()];
                let data = ContentType::APPLICATION_DATA;
                sealer.seal_from(data, b"hello", &mut hello).expect("room");
                // Tickets that the server sent behind the handshake come first.
                while let Some(&[_, _, _, high, low]) = unread.first_chunk::<5>() {
                    let (ticket, rest) =
                        unread.split_at(5 + usize::from(u16::from_be_bytes([high, low])));
                    let opened = opener
                        .open_in_place(&mut ticket.to_vec())
                        .expect("the same keys");
                    assert_eq!(opened.content_type, ContentType::HANDSHAKE);
                    unread = rest;
                }
                let opened = opener.open_in_place(&mut hello).expect("the same keys");
                assert_eq!(&hello[opened.plaintext], b"hello");
            }
        }
    }

    #[test]
    fn a_ticket_that_was_touched_is_none() {
        let ticketer = Seeded::new(1, "server").ticketer();
        let mut ticket = ticketer.encrypt(b"state").expect("sealing does not fail");
        assert_eq!(ticketer.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        ticket[3] ^= 1;
        assert_eq!(ticketer.decrypt(&ticket), None);
        assert_eq!(ticketer.decrypt(&ticket[..5]), None);
    }
}
