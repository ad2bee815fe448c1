//! The keys of one direction of a connection, as `setsockopt(SOL_TLS, TLS_TX | TLS_RX)` takes them.
//!
//! The fields and their byte layout are those of Linux's `struct tls12_crypto_info_*` (`include/uapi/linux/tls.h`):
//!
//! ```text
//!   u16 version | u16 cipher |  iv  | key | salt | rec_seq          (both u16 in the machine's byte order)
//!                              8      16    4      8      AES-128-GCM         40 bytes
//!                              8      32    4      8      AES-256-GCM         56 bytes
//!                              12     32    0      8      ChaCha20-Poly1305   56 bytes
//! ```
//!
//! `salt ‖ iv` is always 12 bytes, a whole nonce. Under TLS 1.2 with GCM, `iv` is where the explicit nonces start; otherwise
//! the 12 bytes are the static iv that the sequence number is mixed into.
//!
//! Keys live in one heap allocation that is wiped on drop, so moving a `CryptoInfo` leaves no copies behind, and `Debug`
//! shows lengths only.

use core::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::Error;
use crate::suite::{CipherSuite, NONCE_LEN, ProtocolVersion};

const MAX_KEY_LEN: usize = 32;

/// Key, salt, iv and next sequence number of one direction.
#[derive(Clone)]
pub struct CryptoInfo {
    version: ProtocolVersion,
    cipher: CipherSuite,
    rec_seq: u64,
    secrets: Box<Secrets>,
}

/// The bytes that must not outlive their use. Only the first `key_len` bytes of `key` mean something.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Secrets {
    key: [u8; MAX_KEY_LEN],
    /// `salt ‖ iv`.
    nonce_base: [u8; NONCE_LEN],
}

/// Wiped by the drop of the secrets; the sequence number is no secret.
impl ZeroizeOnDrop for CryptoInfo {}

impl CryptoInfo {
    /// Keys from Linux's fields.
    ///
    /// * `key`: [`CipherSuite::key_len`] bytes
    /// * `salt`: [`CipherSuite::salt_len`] bytes
    /// * `iv`: [`CipherSuite::iv_len`] bytes
    /// * `rec_seq`: the sequence number of the next record
    ///
    /// # Errors
    /// [`Error::CryptoInfoLength`] names the field that has the wrong length.
    pub fn new(
        version: ProtocolVersion,
        cipher: CipherSuite,
        key: &[u8],
        salt: &[u8],
        iv: &[u8],
        rec_seq: u64,
    ) -> Result<Self, Error> {
        for (field, expected, found) in [
            ("key", cipher.key_len(), key.len()),
            ("salt", cipher.salt_len(), salt.len()),
            ("iv", cipher.iv_len(), iv.len()),
        ] {
            if expected != found {
                return Err(Error::CryptoInfoLength {
                    field,
                    expected,
                    found,
                });
            }
        }
        let mut secrets = Box::new(Secrets {
            key: [0; MAX_KEY_LEN],
            nonce_base: [0; NONCE_LEN],
        });
        secrets.key[..key.len()].copy_from_slice(key);
        secrets.nonce_base[..salt.len()].copy_from_slice(salt);
        secrets.nonce_base[salt.len()..].copy_from_slice(iv);
        Ok(Self {
            version,
            cipher,
            rec_seq,
            secrets,
        })
    }

    /// Keys as rustls hands them out: a key and a 12-byte iv, for every version and cipher.
    ///
    /// For TLS 1.3 and ChaCha20 the 12 bytes are the static iv. For TLS 1.2 with GCM they are the salt
    /// (`server_write_IV` of RFC 5288 §3) and a base for the explicit nonces. That is what `ConnectionTrafficSecrets` holds,
    /// so the glue is one line: `CryptoInfo::from_key_and_iv(version, cipher, key.as_ref(), iv.as_ref(), seq)`.
    ///
    /// The base is not simply where counting may start. rustls makes its explicit nonces as `base XOR sequence`, so the
    /// `rec_seq` records it has sealed already (the Finished message, at least) took nonces of the aligned block of 2^k ≥
    /// `rec_seq` numbers around `base`. Starting to count at `base` would use Finished's nonce a second time, and two GCM
    /// records under one nonce give away the authentication key. Counting therefore starts right behind that block.
    ///
    /// # Errors
    /// [`Error::CryptoInfoLength`] when key or iv have the wrong length.
    pub fn from_key_and_iv(
        version: ProtocolVersion,
        cipher: CipherSuite,
        key: &[u8],
        iv: &[u8],
        rec_seq: u64,
    ) -> Result<Self, Error> {
        if iv.len() != NONCE_LEN {
            return Err(Error::CryptoInfoLength {
                field: "iv",
                expected: NONCE_LEN,
                found: iv.len(),
            });
        }
        let (salt, iv) = iv.split_at(cipher.salt_len());
        let mut info = Self::new(version, cipher, key, salt, iv, rec_seq)?;
        if cipher.explicit_nonce_len(version) > 0 && rec_seq > 0 {
            // Every bit that may differ between `base XOR 0` and `base XOR (rec_seq - 1)`.
            let block_mask = u64::MAX
                .checked_shr((rec_seq - 1).leading_zeros())
                .unwrap_or(0);
            info.set_explicit_start((info.explicit_start() | block_mask).wrapping_add(1));
        }
        Ok(info)
    }

    /// Keys for TLS 1.2 with AES-GCM, as a key block holds them: key and 4-byte salt, and where the explicit nonces start.
    ///
    /// The explicit nonce may be any number the sender never repeats. OpenSSL and rustls start at a random one, Linux's
    /// own users often at the sequence number.
    ///
    /// # Errors
    /// [`Error::CryptoInfoLength`] when a length is wrong; for a cipher without salt (ChaCha20-Poly1305) that is always.
    pub fn tls12_gcm(
        cipher: CipherSuite,
        key: &[u8],
        salt: &[u8],
        explicit_start: u64,
        rec_seq: u64,
    ) -> Result<Self, Error> {
        Self::new(
            ProtocolVersion::Tls12,
            cipher,
            key,
            salt,
            &explicit_start.to_be_bytes(),
            rec_seq,
        )
    }

    /// Keys from the bytes of a `struct tls12_crypto_info_*`.
    ///
    /// # Errors
    /// In Linux's order: shorter than version and cipher, unknown version, unknown cipher, not exactly the struct's size.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let Some((&[v0, v1, c0, c1], mut rest)) = bytes.split_first_chunk::<4>() else {
            return Err(Error::CryptoInfoLength {
                field: "crypto_info",
                expected: 4,
                found: bytes.len(),
            });
        };
        let version = ProtocolVersion::from_wire(u16::from_ne_bytes([v0, v1]))?;
        let cipher = CipherSuite::from_linux_id(u16::from_ne_bytes([c0, c1]))?;
        let expected = cipher.crypto_info_len();
        if bytes.len() != expected {
            return Err(Error::CryptoInfoLength {
                field: "crypto_info",
                expected,
                found: bytes.len(),
            });
        }
        let mut take = |len| {
            let (field, tail) = rest.split_at(len);
            rest = tail;
            field
        };
        let (iv, key, salt) = (
            take(cipher.iv_len()),
            take(cipher.key_len()),
            take(cipher.salt_len()),
        );
        let rec_seq = take(8).iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        Self::new(version, cipher, key, salt, iv, rec_seq)
    }

    /// The bytes of the `struct tls12_crypto_info_*` with these keys.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.cipher.crypto_info_len()));
        bytes.extend_from_slice(&self.version.wire().to_ne_bytes());
        bytes.extend_from_slice(&self.cipher.linux_id().to_ne_bytes());
        bytes.extend_from_slice(self.iv());
        bytes.extend_from_slice(self.key());
        bytes.extend_from_slice(self.salt());
        bytes.extend_from_slice(&self.rec_seq.to_be_bytes());
        bytes
    }

    /// Protocol version.
    pub fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// Cipher.
    pub fn cipher(&self) -> CipherSuite {
        self.cipher
    }

    /// The key, [`CipherSuite::key_len`] bytes.
    pub fn key(&self) -> &[u8] {
        &self.secrets.key[..self.cipher.key_len()]
    }

    /// The salt, [`CipherSuite::salt_len`] bytes.
    pub fn salt(&self) -> &[u8] {
        &self.secrets.nonce_base[..self.cipher.salt_len()]
    }

    /// The iv, [`CipherSuite::iv_len`] bytes.
    pub fn iv(&self) -> &[u8] {
        &self.secrets.nonce_base[self.cipher.salt_len()..]
    }

    /// Sequence number of the next record.
    pub fn rec_seq(&self) -> u64 {
        self.rec_seq
    }

    /// `salt ‖ iv`.
    pub(crate) fn nonce_base(&self) -> &[u8; NONCE_LEN] {
        &self.secrets.nonce_base
    }

    /// GCM's `iv` as a number: the last 8 bytes of `salt ‖ iv`.
    fn explicit_start(&self) -> u64 {
        self.secrets.nonce_base[NONCE_LEN - 8..]
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn set_explicit_start(&mut self, start: u64) {
        self.secrets.nonce_base[NONCE_LEN - 8..].copy_from_slice(&start.to_be_bytes());
    }

    /// The same keys `records` later: what `getsockopt` shows.
    ///
    /// `iv` and `rec_seq` are separate counters. Only TLS 1.2 with GCM counts `iv`; a static iv stays.
    pub(crate) fn after(&self, records: u64) -> Self {
        let mut later = self.clone();
        later.rec_seq = self.rec_seq.wrapping_add(records);
        if self.cipher.explicit_nonce_len(self.version) > 0 {
            later.set_explicit_start(self.explicit_start().wrapping_add(records));
        }
        later
    }
}

impl fmt::Debug for CryptoInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CryptoInfo")
            .field("version", &self.version)
            .field("cipher", &self.cipher)
            .field("key", &format_args!("[{} bytes]", self.key().len()))
            .field("salt", &format_args!("[{} bytes]", self.salt().len()))
            .field("iv", &format_args!("[{} bytes]", self.iv().len()))
            .field("rec_seq", &self.rec_seq)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CipherSuite::{Aes128Gcm, Aes256Gcm, ChaCha20Poly1305};
    use ProtocolVersion::{Tls12, Tls13};

    fn counting(len: usize, from: u8) -> Vec<u8> {
        (0..len).map(|i| from.wrapping_add(i as u8)).collect()
    }

    fn keys(version: ProtocolVersion, cipher: CipherSuite) -> CryptoInfo {
        CryptoInfo::new(
            version,
            cipher,
            &counting(cipher.key_len(), 0x40),
            &counting(cipher.salt_len(), 0xa0),
            &counting(cipher.iv_len(), 0x10),
            0x0102_0304_0506_0708,
        )
        .unwrap()
    }

    #[test]
    fn layout_is_version_cipher_iv_key_salt_rec_seq() {
        let bytes = keys(Tls12, Aes128Gcm).to_bytes();
        let mut expected = Vec::new();
        expected.extend_from_slice(&0x0303_u16.to_ne_bytes());
        expected.extend_from_slice(&51_u16.to_ne_bytes());
        expected.extend(counting(8, 0x10));
        expected.extend(counting(16, 0x40));
        expected.extend(counting(4, 0xa0));
        expected.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(*bytes, expected);

        let bytes = keys(Tls13, ChaCha20Poly1305).to_bytes();
        let mut expected = Vec::new();
        expected.extend_from_slice(&0x0304_u16.to_ne_bytes());
        expected.extend_from_slice(&54_u16.to_ne_bytes());
        expected.extend(counting(12, 0x10));
        expected.extend(counting(32, 0x40));
        expected.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(*bytes, expected);
    }

    #[test]
    fn bytes_round_trip_and_every_other_length_is_refused() {
        for version in [Tls12, Tls13] {
            for cipher in CipherSuite::ALL {
                let bytes = keys(version, cipher).to_bytes();
                let back = CryptoInfo::from_bytes(&bytes).unwrap();
                assert_eq!(*back.to_bytes(), *bytes);
                assert_eq!(back.rec_seq(), 0x0102_0304_0506_0708);

                for len in (0..100).filter(|len| *len != bytes.len()) {
                    let mut wrong = bytes.to_vec();
                    wrong.resize(len, 0);
                    let expected = if len < 4 { 4 } else { bytes.len() };
                    assert_eq!(
                        CryptoInfo::from_bytes(&wrong).unwrap_err(),
                        Error::CryptoInfoLength {
                            field: "crypto_info",
                            expected,
                            found: len
                        }
                    );
                }
            }
        }
    }

    #[test]
    fn version_is_judged_before_cipher_and_cipher_before_length() {
        let header =
            |version: u16, cipher: u16| [version.to_ne_bytes(), cipher.to_ne_bytes()].concat();
        assert_eq!(
            CryptoInfo::from_bytes(&header(0x0302, 99)).unwrap_err(),
            Error::UnknownVersion { found: 0x0302 }
        );
        assert_eq!(
            CryptoInfo::from_bytes(&header(0x0303, 99)).unwrap_err(),
            Error::UnknownCipher { found: 99 }
        );
        assert_eq!(
            CryptoInfo::from_bytes(&header(0x0303, 52)).unwrap_err(),
            Error::CryptoInfoLength {
                field: "crypto_info",
                expected: 56,
                found: 4
            }
        );
    }

    #[test]
    fn a_wrong_field_is_named() {
        let error = |key, salt, iv| {
            CryptoInfo::new(
                Tls12,
                Aes256Gcm,
                &[0; 64][..key],
                &[0; 64][..salt],
                &[0; 64][..iv],
                0,
            )
            .unwrap_err()
        };
        assert_eq!(
            error(16, 4, 8),
            Error::CryptoInfoLength {
                field: "key",
                expected: 32,
                found: 16
            }
        );
        assert_eq!(
            error(32, 0, 8),
            Error::CryptoInfoLength {
                field: "salt",
                expected: 4,
                found: 0
            }
        );
        assert_eq!(
            error(32, 4, 12),
            Error::CryptoInfoLength {
                field: "iv",
                expected: 8,
                found: 12
            }
        );
        assert!(CryptoInfo::tls12_gcm(ChaCha20Poly1305, &[0; 32], &[0; 4], 0, 0).is_err());
    }

    #[test]
    fn a_12_byte_iv_is_salt_and_iv() {
        let iv = counting(12, 1);
        let gcm = CryptoInfo::from_key_and_iv(Tls12, Aes128Gcm, &[9; 16], &iv, 0).unwrap();
        assert_eq!((gcm.salt(), gcm.iv()), (&iv[..4], &iv[4..]));
        let chacha =
            CryptoInfo::from_key_and_iv(Tls13, ChaCha20Poly1305, &[9; 32], &iv, 1).unwrap();
        assert_eq!((chacha.salt(), chacha.iv()), (&[][..], &iv[..]));
        let start =
            CryptoInfo::tls12_gcm(Aes128Gcm, &[9; 16], &iv[..4], 0x0506_0708_090a_0b0c, 0).unwrap();
        assert_eq!(*start.to_bytes(), *gcm.to_bytes());
        assert_eq!(
            CryptoInfo::from_key_and_iv(Tls13, Aes128Gcm, &[9; 16], &iv[..8], 1).unwrap_err(),
            Error::CryptoInfoLength {
                field: "iv",
                expected: 12,
                found: 8
            }
        );
    }

    #[test]
    fn a_hand_over_never_repeats_an_explicit_nonce() {
        for base in [
            0,
            1,
            5,
            0xfe,
            0xff,
            0x1234_5678_9abc_deff,
            u64::MAX - 3,
            u64::MAX,
        ] {
            let iv = [&[7; 4][..], &base.to_be_bytes()].concat();
            for rec_seq in 0..70_u64 {
                let taken: Vec<u64> = (0..rec_seq).map(|sequence| base ^ sequence).collect();
                let keys =
                    CryptoInfo::from_key_and_iv(Tls12, Aes128Gcm, &[9; 16], &iv, rec_seq).unwrap();
                assert_eq!(keys.salt(), [7; 4]);
                for ahead in 0..200 {
                    let explicit = keys.after(ahead).explicit_start();
                    assert!(
                        !taken.contains(&explicit),
                        "base {base:#x}, {rec_seq} sealed, {ahead} ahead"
                    );
                }
            }
        }
    }

    #[test]
    fn only_the_explicit_nonce_counts_with_the_records() {
        let gcm12 = CryptoInfo::tls12_gcm(Aes128Gcm, &[9; 16], &[1; 4], u64::MAX - 1, 5)
            .unwrap()
            .after(3);
        assert_eq!((gcm12.iv(), gcm12.rec_seq()), (&1_u64.to_be_bytes()[..], 8));
        assert_eq!(gcm12.salt(), [1; 4], "the carry stays within the iv");
        for (version, cipher) in [
            (Tls13, Aes128Gcm),
            (Tls13, ChaCha20Poly1305),
            (Tls12, ChaCha20Poly1305),
        ] {
            let before = keys(version, cipher);
            let after = before.after(3);
            assert_eq!(
                (after.iv(), after.rec_seq()),
                (before.iv(), before.rec_seq() + 3)
            );
        }
    }

    #[test]
    fn debug_shows_lengths_only() {
        let text = format!("{:?}", keys(Tls13, Aes128Gcm));
        assert_eq!(
            text,
            "CryptoInfo { version: Tls13, cipher: Aes128Gcm, key: [16 bytes], salt: [4 bytes], iv: [8 bytes], rec_seq: 72623859790382856 }"
        );
    }
}
