//! Where the AEAD comes from: two providers behind one small trait.
//!
//! | provider | what it is | needs |
//! | --- | --- | --- |
//! | `aws_lc` | aws-lc-rs: assembly for AES-NI, VAES, AVX-512; one pass in place and out of place | a C compiler, feature `aws-lc` (default) |
//! | `rust_crypto` | RustCrypto's `aes-gcm` and `chacha20poly1305`: pure Rust, constant time | nothing |
//!
//! [`default()`] is the first one that was compiled in. The second is always there: as the only provider where there is no
//! C compiler, and as the oracle in tests, since two independent implementations rarely make the same mistake.
//!
//! The trait works on whole slices and returns nothing but success: no allocation, one virtual call per record. It knows
//! nothing of records; nonces, additional data and layout are [`tls`](crate::tls)'s business.

use core::fmt;

use crate::error::Error;
use crate::suite::{CipherSuite, NONCE_LEN, TAG_LEN};

#[cfg(feature = "aws-lc")]
pub mod aws_lc;
pub mod rust_crypto;

/// A source of AEAD keys. Implementations are stateless; a `static` of them serves every connection.
pub trait Provider: Send + Sync + fmt::Debug {
    /// A short name for messages and reports.
    fn name(&self) -> &'static str;

    /// A key, expanded and ready.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for a cipher this provider does not have, [`Error::CryptoInfoLength`] for a key of another
    /// length than [`CipherSuite::key_len`].
    fn aead(&self, cipher: CipherSuite, key: &[u8]) -> Result<Box<dyn Aead>, Error>;

    /// What hides DTLS 1.3 sequence numbers where this cipher protects the records: its block cipher, or its key stream.
    ///
    /// # Errors
    /// As [`Provider::aead`].
    fn sequence_mask(
        &self,
        cipher: CipherSuite,
        key: &[u8],
    ) -> Result<Box<dyn SequenceMask>, Error>;
}

/// Bytes of ciphertext that a sequence number's mask is computed from.
pub const SAMPLE_LEN: usize = 16;

/// A sequence-number key of DTLS 1.3, ready. It wipes itself on drop and its `Debug` shows no key bytes.
pub trait SequenceMask: Send + Sync + fmt::Debug {
    /// The bytes that a record's sequence number is XORed with, the first one alone where it has 8 bits.
    ///
    /// RFC 9147 §4.2.3: `AES-ECB(sn_key, Ciphertext[0..15])`, or ChaCha20's block with the first 4 bytes as the (little-endian)
    /// counter and the next 12 as the nonce. It is QUIC's header protection (RFC 9001 §5.4), of which two bytes are used.
    fn mask(&self, sample: &[u8; SAMPLE_LEN]) -> Result<[u8; 2], AeadFailed>;
}

/// One expanded key. It wipes itself on drop and its `Debug` shows no key bytes.
///
/// The caller chooses nonces and must never seal twice with the same one.
pub trait Aead: Send + Sync + fmt::Debug {
    /// Encrypts `in_out` where it lies and writes the tag.
    fn seal_in_place(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
        tag: &mut [u8; TAG_LEN],
    ) -> Result<(), AeadFailed>;

    /// Encrypts `plaintext ‖ trailer` into `out`, tag behind it, reading each plaintext byte once.
    ///
    /// `trailer` is TLS 1.3's content-type byte, which does not lie behind the plaintext when that comes from a page cache.
    /// `out` must have exactly `plaintext.len() + trailer.len() + TAG_LEN` bytes.
    fn seal_from(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        plaintext: &[u8],
        trailer: &[u8],
        out: &mut [u8],
    ) -> Result<(), AeadFailed>;

    /// Verifies the tag and decrypts `in_out` where it lies. On failure its content is unspecified.
    fn open_in_place(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), AeadFailed>;

    /// Verifies the tag and decrypts `ciphertext` into `out`, which must be as long. On failure its content is unspecified.
    fn open_from(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN],
        out: &mut [u8],
    ) -> Result<(), AeadFailed>;
}

/// The AEAD said no: the tag does not verify, or the lengths do not fit. An AEAD does not say more, on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the AEAD operation failed")]
pub struct AeadFailed;

/// The fastest provider that was compiled in.
pub fn default() -> &'static dyn Provider {
    #[cfg(feature = "aws-lc")]
    return &aws_lc::AwsLc;
    #[cfg(not(feature = "aws-lc"))]
    return &rust_crypto::RustCrypto;
}

/// Every provider that was compiled in, the default first.
pub fn all() -> &'static [&'static dyn Provider] {
    &[
        #[cfg(feature = "aws-lc")]
        &aws_lc::AwsLc,
        &rust_crypto::RustCrypto,
    ]
}

/// The key, if it has the cipher's length.
fn check_key(cipher: CipherSuite, key: &[u8]) -> Result<(), Error> {
    if key.len() != cipher.key_len() {
        return Err(Error::CryptoInfoLength {
            field: "key",
            expected: cipher.key_len(),
            found: key.len(),
        });
    }
    Ok(())
}
