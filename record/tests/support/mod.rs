//! What the tests with a live OpenSSL share: a certificate, and the key schedule of TLS 1.2 and DTLS 1.2.

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;
use openssl::ssl::SslRef;
use openssl::x509::{X509, X509NameBuilder};
use uktls_record::CipherSuite;

/// One HMAC.
pub(crate) fn hmac(digest: MessageDigest, key: &[u8], message: &[u8]) -> Vec<u8> {
    let key = PKey::hmac(key).unwrap();
    let mut signer = Signer::new(digest, &key).unwrap();
    signer.update(message).unwrap();
    signer.sign_to_vec().unwrap()
}

/// RFC 5246 §5: `P_hash(secret, label + seed)`.
pub(crate) fn prf(
    digest: MessageDigest,
    secret: &[u8],
    label_and_seed: &[u8],
    len: usize,
) -> Vec<u8> {
    let (mut a, mut out) = (label_and_seed.to_vec(), Vec::new());
    while out.len() < len {
        a = hmac(digest, secret, &a);
        out.extend(hmac(digest, secret, &[&a, label_and_seed].concat()));
    }
    out.truncate(len);
    out
}

/// Key and implicit iv of each side.
pub(crate) struct KeyBlock {
    /// What the client writes with.
    pub(crate) client: (Vec<u8>, Vec<u8>),
    /// What the server writes with.
    pub(crate) server: (Vec<u8>, Vec<u8>),
}

impl KeyBlock {
    /// RFC 5246 §6.3: the key block of a finished handshake, which has no MAC keys for AEADs.
    pub(crate) fn of(ssl: &SslRef, digest: MessageDigest, cipher: CipherSuite) -> Self {
        let session = ssl.session().expect("the handshake has finished");
        let mut master = vec![0; session.master_key_len()];
        session.master_key(&mut master);
        let (mut client_random, mut server_random) = ([0; 32], [0; 32]);
        ssl.client_random(&mut client_random);
        ssl.server_random(&mut server_random);

        let (key_len, iv_len) = (
            cipher.key_len(),
            if cipher.salt_len() == 4 { 4 } else { 12 },
        );
        let seed = [&b"key expansion"[..], &server_random, &client_random].concat();
        let block = prf(digest, &master, &seed, 2 * (key_len + iv_len));
        let (client_key, rest) = block.split_at(key_len);
        let (server_key, rest) = rest.split_at(key_len);
        let (client_iv, server_iv) = rest.split_at(iv_len);
        Self {
            client: (client_key.to_vec(), client_iv.to_vec()),
            server: (server_key.to_vec(), server_iv.to_vec()),
        }
    }
}

/// A self-signed certificate for an OpenSSL server.
pub(crate) fn certificate() -> (PKey<Private>, X509) {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let key = PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "uktls.test").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder
        .set_not_before(&Asn1Time::days_from_now(0).unwrap())
        .unwrap();
    builder
        .set_not_after(&Asn1Time::days_from_now(1).unwrap())
        .unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    (key, builder.build())
}
