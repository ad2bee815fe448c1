//! The fast provider: [aws-lc-rs](https://docs.rs/aws-lc-rs).
//!
//! Its `LessSafeKey` is the right tool despite the name: the nonce sequence is what a record layer *is*, so it cannot be
//! delegated. The scatter calls write ciphertext and tag straight to where the record wants them, and the out-of-place one
//! reads the source once, so a record can be sealed from a mapped file without a copy.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};

use aws_lc_rs::aead::quic;

use super::{Aead, AeadFailed, Provider, SAMPLE_LEN, SequenceMask, check_key};
use crate::error::Error;
use crate::suite::{CipherSuite, NONCE_LEN, TAG_LEN};

/// AEADs from aws-lc-rs.
#[derive(Clone, Copy, Debug, Default)]
pub struct AwsLc;

impl Provider for AwsLc {
    fn name(&self) -> &'static str {
        "aws-lc-rs"
    }

    fn aead(&self, cipher: CipherSuite, key: &[u8]) -> Result<Box<dyn Aead>, Error> {
        check_key(cipher, key)?;
        let algorithm: &'static Algorithm = match cipher {
            CipherSuite::Aes128Gcm => &AES_128_GCM,
            CipherSuite::Aes256Gcm => &AES_256_GCM,
            CipherSuite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        match UnboundKey::new(algorithm, key) {
            Ok(key) => Ok(Box::new(Key(LessSafeKey::new(key)))),
            Err(_) => Err(Error::Unavailable {
                provider: self.name(),
                cipher,
            }),
        }
    }

    fn sequence_mask(
        &self,
        cipher: CipherSuite,
        key: &[u8],
    ) -> Result<Box<dyn SequenceMask>, Error> {
        check_key(cipher, key)?;
        let algorithm: &'static quic::Algorithm = match cipher {
            CipherSuite::Aes128Gcm => &quic::AES_128,
            CipherSuite::Aes256Gcm => &quic::AES_256,
            CipherSuite::ChaCha20Poly1305 => &quic::CHACHA20,
        };
        match quic::HeaderProtectionKey::new(algorithm, key) {
            Ok(key) => Ok(Box::new(MaskKey(key))),
            Err(_) => Err(Error::Unavailable {
                provider: self.name(),
                cipher,
            }),
        }
    }
}

/// QUIC's header protection is DTLS 1.3's sequence-number encryption.
struct MaskKey(quic::HeaderProtectionKey);

impl core::fmt::Debug for MaskKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("sequence-number key")
    }
}

impl SequenceMask for MaskKey {
    fn mask(&self, sample: &[u8; SAMPLE_LEN]) -> Result<[u8; 2], AeadFailed> {
        let [first, second, ..] = self.0.new_mask(sample).map_err(|_| AeadFailed)?;
        Ok([first, second])
    }
}

/// aws-lc cleanses its key schedule when it frees it.
#[derive(Debug)]
struct Key(LessSafeKey);

fn nonce(bytes: &[u8; NONCE_LEN]) -> Nonce {
    Nonce::assume_unique_for_key(*bytes)
}

impl Aead for Key {
    fn seal_in_place(
        &self,
        nonce_bytes: &[u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
        tag: &mut [u8; TAG_LEN],
    ) -> Result<(), AeadFailed> {
        self.0
            .seal_in_place_scatter(nonce(nonce_bytes), Aad::from(aad), in_out, &[], tag)
            .map_err(|_| AeadFailed)
    }

    fn seal_from(
        &self,
        nonce_bytes: &[u8; NONCE_LEN],
        aad: &[u8],
        plaintext: &[u8],
        trailer: &[u8],
        out: &mut [u8],
    ) -> Result<(), AeadFailed> {
        let (ciphertext, rest) = out
            .split_at_mut_checked(plaintext.len())
            .ok_or(AeadFailed)?;
        self.0
            .seal_out_of_place_scatter(
                nonce(nonce_bytes),
                Aad::from(aad),
                plaintext,
                ciphertext,
                trailer,
                rest,
            )
            .map_err(|_| AeadFailed)
    }

    fn open_in_place(
        &self,
        nonce_bytes: &[u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), AeadFailed> {
        match self
            .0
            .open_in_place_separate_tag(nonce(nonce_bytes), Aad::from(aad), tag, in_out)
        {
            Ok(_) => Ok(()),
            Err(_) => Err(AeadFailed),
        }
    }

    fn open_from(
        &self,
        nonce_bytes: &[u8; NONCE_LEN],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN],
        out: &mut [u8],
    ) -> Result<(), AeadFailed> {
        if out.len() != ciphertext.len() {
            return Err(AeadFailed);
        }
        self.0
            .open_separate_gather(nonce(nonce_bytes), Aad::from(aad), ciphertext, tag, out)
            .map_err(|_| AeadFailed)
    }
}
