//! Keys from a master secret: RFC 5246's key block, for records of TLS 1.2 and DTLS 1.2.

use super::hmac;
use openssl::hash::MessageDigest;
use openssl::ssl::SslRef;
use std::io;
use uktls_record::dtls::EpochKeys;
use uktls_record::{CipherSuite, CryptoInfo, ProtocolVersion};
use zeroize::Zeroizing;

/// Who of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who began.
    Client,
    /// Who was waited on.
    Server,
}

impl Side {
    /// The side that OpenSSL is on.
    pub fn of(ssl: &SslRef) -> Side {
        match ssl.is_server() {
            true => Side::Server,
            false => Side::Client,
        }
    }

    /// The peer's.
    pub fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

/// One side's write key and write iv.
struct KeyAndIv {
    key: Zeroizing<Vec<u8>>,
    iv: Zeroizing<Vec<u8>>,
}

/// What both sides seal with.
pub struct KeyBlock {
    cipher: CipherSuite,
    client: KeyAndIv,
    server: KeyAndIv,
}

impl std::fmt::Debug for KeyBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "KeyBlock({}, {}-byte keys)",
            self.cipher,
            self.cipher.key_len()
        )
    }
}

impl KeyBlock {
    fn of(&self, side: Side) -> &KeyAndIv {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    /// What `side` seals DTLS 1.2 records with, from this number on.
    ///
    /// # Errors
    /// For a number that an epoch does not have.
    pub fn dtls(&self, side: Side, epoch: u16, sequence: u64) -> io::Result<EpochKeys> {
        let KeyAndIv { key, iv } = self.of(side);
        EpochKeys::dtls12(self.cipher, key, iv, epoch, sequence).map_err(io::Error::other)
    }

    /// What `side` seals TLS 1.2 records with, from this number on, and with explicit nonces from `explicit` on where the cipher has
    /// them.
    ///
    /// # Errors
    /// None in practice: the lengths fit.
    pub fn tls(&self, side: Side, sequence: u64, explicit: u64) -> io::Result<CryptoInfo> {
        let KeyAndIv { key, iv } = self.of(side);
        let (salt, iv) = iv.split_at(self.cipher.salt_len());
        let explicit = explicit.to_be_bytes();
        let iv = if iv.is_empty() { &explicit[..] } else { iv };
        CryptoInfo::new(ProtocolVersion::Tls12, self.cipher, key, salt, iv, sequence)
            .map_err(io::Error::other)
    }
}

/// RFC 5246 §6.3: the key block, from the master secret and both randoms; AEADs have no MAC keys in it.
///
/// # Errors
/// When OpenSSL has agreed on a cipher whose records the stack does not make, or on nothing yet.
pub fn key_block(ssl: &SslRef) -> io::Result<KeyBlock> {
    let unknown = || io::Error::other("OpenSSL agreed on a cipher that the stack does not have");
    let agreed = ssl.current_cipher().ok_or_else(unknown)?;
    let cipher = match agreed.name() {
        name if name.contains("AES128-GCM") => CipherSuite::Aes128Gcm,
        name if name.contains("AES256-GCM") => CipherSuite::Aes256Gcm,
        name if name.contains("CHACHA20-POLY1305") => CipherSuite::ChaCha20Poly1305,
        _ => return Err(unknown()),
    };
    let digest = match cipher {
        CipherSuite::Aes256Gcm => MessageDigest::sha384(),
        CipherSuite::Aes128Gcm | CipherSuite::ChaCha20Poly1305 => MessageDigest::sha256(),
    };
    let session = ssl
        .session()
        .ok_or_else(|| io::Error::other("a handshake without a session"))?;
    let mut master = Zeroizing::new(vec![0; session.master_key_len()]);
    session.master_key(&mut master);
    let (mut client_random, mut server_random) = ([0; 32], [0; 32]);
    ssl.client_random(&mut client_random);
    ssl.server_random(&mut server_random);

    let iv_len = if cipher.salt_len() > 0 { 4 } else { 12 };
    let (key_len, wanted) = (cipher.key_len(), 2 * (cipher.key_len() + iv_len));
    // RFC 5246 §5: P_hash, with the label and both randoms as its seed, the server's first.
    let seed = [&b"key expansion"[..], &server_random, &client_random].concat();
    let (mut a, mut block) = (Zeroizing::new(seed.clone()), Zeroizing::new(Vec::new()));
    while block.len() < wanted {
        a = Zeroizing::new(hmac(digest, &master, &[&a])?);
        block.extend(hmac(digest, &master, &[&a, &seed])?);
    }
    let (client_key, rest) = block.split_at(key_len);
    let (server_key, rest) = rest.split_at(key_len);
    let (client_iv, rest) = rest.split_at(iv_len);
    let wiped = |bytes: &[u8]| Zeroizing::new(bytes.to_vec());
    let side = |key, iv| KeyAndIv {
        key: wiped(key),
        iv: wiped(iv),
    };
    Ok(KeyBlock {
        cipher,
        client: side(client_key, client_iv),
        server: side(server_key, &rest[..iv_len]),
    })
}
