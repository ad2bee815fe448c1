//! The keys of one direction and one epoch.

use core::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{DtlsVersion, SEQUENCE_END};
use crate::error::Error;
use crate::suite::{CipherSuite, NONCE_LEN};

const MAX_KEY_LEN: usize = 32;

/// Key, iv, epoch and next sequence number of one direction; in DTLS 1.3 the sequence-number key as well.
#[derive(Clone)]
pub struct EpochKeys {
    version: DtlsVersion,
    cipher: CipherSuite,
    epoch: u64,
    /// Invariant: at most [`SEQUENCE_END`].
    sequence: u64,
    secrets: Box<Secrets>,
}

/// The bytes that must not outlive their use. Only the first `key_len` bytes of the keys mean something.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Secrets {
    key: [u8; MAX_KEY_LEN],
    sn_key: [u8; MAX_KEY_LEN],
    /// The iv, or DTLS 1.2's GCM salt with zeros behind it.
    nonce_base: [u8; NONCE_LEN],
}

/// Wiped by the drop of the secrets.
impl ZeroizeOnDrop for EpochKeys {}

impl EpochKeys {
    /// Keys for DTLS 1.2, as a key block holds them.
    ///
    /// * `key`: [`CipherSuite::key_len`] bytes
    /// * `iv`: `client_write_IV` or `server_write_IV`. For AES-GCM that is the 4-byte salt, for ChaCha20-Poly1305 12 bytes
    /// * `epoch`: 1 after the first handshake
    /// * `sequence`: of the next record. A handshake's Finished is record 0 of its epoch, retransmissions of it take more
    ///
    /// A `sequence` of more than 48 bits is taken as the end: no record follows.
    ///
    /// # Errors
    /// [`Error::CryptoInfoLength`] names the field that has the wrong length.
    pub fn dtls12(
        cipher: CipherSuite,
        key: &[u8],
        iv: &[u8],
        epoch: u16,
        sequence: u64,
    ) -> Result<Self, Error> {
        let iv_len = NONCE_LEN - cipher.explicit_nonce_len(DtlsVersion::Dtls12.as_tls());
        check("key", cipher.key_len(), key)?;
        check("iv", iv_len, iv)?;
        let secrets = Secrets::new(key, iv, &[]);
        Ok(Self {
            version: DtlsVersion::Dtls12,
            cipher,
            epoch: u64::from(epoch),
            sequence: sequence.min(SEQUENCE_END),
            secrets,
        })
    }

    /// Keys for DTLS 1.3: what RFC 8446 §7.3 and RFC 9147 §4.2.3 derive from a traffic secret.
    ///
    /// * `key`: [`CipherSuite::key_len`] bytes, label "key"
    /// * `iv`: 12 bytes, label "iv"
    /// * `sn_key`: as long as the key, label "sn"
    /// * `epoch`: 3 for the first application data
    /// * `sequence`: of the next record
    ///
    /// # Errors
    /// As [`EpochKeys::dtls12`].
    pub fn dtls13(
        cipher: CipherSuite,
        key: &[u8],
        iv: &[u8],
        sn_key: &[u8],
        epoch: u64,
        sequence: u64,
    ) -> Result<Self, Error> {
        check("key", cipher.key_len(), key)?;
        check("iv", NONCE_LEN, iv)?;
        check("sn_key", cipher.key_len(), sn_key)?;
        let secrets = Secrets::new(key, iv, sn_key);
        Ok(Self {
            version: DtlsVersion::Dtls13,
            cipher,
            epoch,
            sequence: sequence.min(SEQUENCE_END),
            secrets,
        })
    }

    /// Protocol version.
    pub fn version(&self) -> DtlsVersion {
        self.version
    }

    /// Cipher.
    pub fn cipher(&self) -> CipherSuite {
        self.cipher
    }

    /// The epoch these keys belong to.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Sequence number of the next record.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The key, [`CipherSuite::key_len`] bytes.
    pub fn key(&self) -> &[u8] {
        &self.secrets.key[..self.cipher.key_len()]
    }

    /// The iv: 12 bytes, or DTLS 1.2's 4-byte salt for AES-GCM.
    pub fn iv(&self) -> &[u8] {
        let explicit = self.cipher.explicit_nonce_len(self.version.as_tls());
        &self.secrets.nonce_base[..NONCE_LEN - explicit]
    }

    /// DTLS 1.3's sequence-number key.
    pub fn sn_key(&self) -> Option<&[u8]> {
        match self.version {
            DtlsVersion::Dtls12 => None,
            DtlsVersion::Dtls13 => Some(&self.secrets.sn_key[..self.cipher.key_len()]),
        }
    }

    /// Whether these are the same keys for the same epoch, whatever the sequence number.
    pub fn is_same_epoch(&self, other: &Self) -> bool {
        (self.version, self.cipher, self.epoch) == (other.version, other.cipher, other.epoch)
            && self.key() == other.key()
            && self.iv() == other.iv()
    }

    /// The same keys with another next sequence number.
    #[must_use]
    pub fn at(&self, sequence: u64) -> Self {
        Self {
            sequence: sequence.min(SEQUENCE_END),
            ..self.clone()
        }
    }

    /// What sequence numbers are mixed into.
    pub(super) fn nonce_base(&self) -> &[u8; NONCE_LEN] {
        &self.secrets.nonce_base
    }

    /// Whether `new` may follow these keys.
    pub(super) fn check_successor(&self, new: &Self) -> Result<(), Error> {
        if new.version != self.version || new.epoch <= self.epoch {
            return Err(Error::NotANewEpoch {
                version: self.version,
                epoch: self.epoch,
                found_version: new.version,
                found_epoch: new.epoch,
            });
        }
        Ok(())
    }
}

impl Secrets {
    fn new(key: &[u8], iv: &[u8], sn_key: &[u8]) -> Box<Self> {
        let mut secrets = Box::new(Self {
            key: [0; MAX_KEY_LEN],
            sn_key: [0; MAX_KEY_LEN],
            nonce_base: [0; NONCE_LEN],
        });
        secrets.key[..key.len()].copy_from_slice(key);
        secrets.sn_key[..sn_key.len()].copy_from_slice(sn_key);
        secrets.nonce_base[..iv.len()].copy_from_slice(iv);
        secrets
    }
}

fn check(field: &'static str, expected: usize, bytes: &[u8]) -> Result<(), Error> {
    if bytes.len() == expected {
        return Ok(());
    }
    Err(Error::CryptoInfoLength {
        field,
        expected,
        found: bytes.len(),
    })
}

impl fmt::Debug for EpochKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochKeys")
            .field("version", &self.version)
            .field("cipher", &self.cipher)
            .field("key", &format_args!("[{} bytes]", self.key().len()))
            .field("iv", &format_args!("[{} bytes]", self.iv().len()))
            .field("epoch", &self.epoch)
            .field("sequence", &self.sequence)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_field_is_named() {
        let error = |field, expected, found| Error::CryptoInfoLength {
            field,
            expected,
            found,
        };
        let gcm = CipherSuite::Aes128Gcm;
        let chacha = CipherSuite::ChaCha20Poly1305;
        assert_eq!(
            EpochKeys::dtls12(gcm, &[0; 32], &[0; 4], 1, 0).unwrap_err(),
            error("key", 16, 32)
        );
        assert_eq!(
            EpochKeys::dtls12(gcm, &[0; 16], &[0; 12], 1, 0).unwrap_err(),
            error("iv", 4, 12)
        );
        assert_eq!(
            EpochKeys::dtls12(chacha, &[0; 32], &[0; 4], 1, 0).unwrap_err(),
            error("iv", 12, 4)
        );
        assert_eq!(
            EpochKeys::dtls13(gcm, &[0; 16], &[0; 4], &[0; 16], 3, 0).unwrap_err(),
            error("iv", 12, 4)
        );
        assert_eq!(
            EpochKeys::dtls13(gcm, &[0; 16], &[0; 12], &[0; 12], 3, 0).unwrap_err(),
            error("sn_key", 16, 12)
        );
    }

    #[test]
    fn fields_come_back_and_debug_shows_lengths_only() {
        let keys =
            EpochKeys::dtls12(CipherSuite::Aes128Gcm, &[7; 16], &[1, 2, 3, 4], 1, 5).unwrap();
        assert_eq!((keys.key(), keys.iv()), (&[7; 16][..], &[1, 2, 3, 4][..]));
        assert_eq!((keys.epoch(), keys.sequence(), keys.sn_key()), (1, 5, None));
        assert_eq!(
            format!("{keys:?}"),
            "EpochKeys { version: Dtls12, cipher: Aes128Gcm, key: [16 bytes], iv: [4 bytes], epoch: 1, sequence: 5 }"
        );
        let keys = EpochKeys::dtls13(
            CipherSuite::Aes256Gcm,
            &[7; 32],
            &[1; 12],
            &[9; 32],
            3,
            u64::MAX,
        )
        .unwrap();
        assert_eq!(keys.sn_key(), Some(&[9; 32][..]));
        assert_eq!(keys.sequence(), SEQUENCE_END);
    }
}
