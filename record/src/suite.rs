//! Protocol versions and cipher suites: sizes, numbers and how much one key may protect.
//!
//! "Suite" here is what is left of a TLS cipher suite once the handshake is over: the AEAD. The numbers are those of
//! Linux's `include/uapi/linux/tls.h`, because that is what callers of `setsockopt(TLS_TX)` have in hand.

use core::fmt;

use crate::error::Error;

/// Length of every nonce here, in bytes (RFC 5116: `N_MIN` = `N_MAX` = 12 for all three AEADs).
pub const NONCE_LEN: usize = 12;

/// Length of every authentication tag here, in bytes.
pub const TAG_LEN: usize = 16;

/// How many records one AES-GCM key may seal: 2^24.5, rounded down.
///
/// RFC 8446 §5.5: "For AES-GCM, up to 2^24.5 full-size records (about 24 million) may be encrypted on a given connection
/// while keeping a safety margin of approximately 2^-57 for Authenticated Encryption (AE) security."
///
/// Counted in records, whatever their size, so small records stop earlier than the mathematics asks for. That is 388 GB in
/// full records. TLS 1.3 gets new keys by KeyUpdate; a TLS 1.2 connection ends there, since it has no rekey of its own.
pub const AES_GCM_CONFIDENTIALITY_LIMIT: u64 = 23_726_566;

/// How many records one ChaCha20-Poly1305 key may seal: no limit below the sequence number's.
///
/// RFC 8446 §5.5: "For ChaCha20/Poly1305, the record sequence number would wrap before the safety limit is reached."
pub const CHACHA20_POLY1305_CONFIDENTIALITY_LIMIT: u64 = u64::MAX;

/// How many records may fail to open under one key before the key must go: 2^36, for all three AEADs.
///
/// RFC 9147 §4.5.3 gives this limit for DTLS, where a forged record is dropped and the next one tried. A TLS stream ends at
/// its first forged record and never gets near it.
pub const INTEGRITY_LIMIT: u64 = 1 << 36;

/// The protocol versions that have records of this crate's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProtocolVersion {
    /// TLS 1.2, RFC 5246.
    Tls12,
    /// TLS 1.3, RFC 8446.
    Tls13,
}

impl ProtocolVersion {
    /// The number in `crypto_info.version` and in a handshake: 0x0303 or 0x0304.
    ///
    /// A *record header* carries 0x0303 for both; see [`header::WIRE_VERSION`](crate::header::WIRE_VERSION).
    pub const fn wire(self) -> u16 {
        match self {
            Self::Tls12 => 0x0303,
            Self::Tls13 => 0x0304,
        }
    }

    /// The version with this number, or [`Error::UnknownVersion`].
    pub const fn from_wire(wire: u16) -> Result<Self, Error> {
        match wire {
            0x0303 => Ok(Self::Tls12),
            0x0304 => Ok(Self::Tls13),
            found => Err(Error::UnknownVersion { found }),
        }
    }
}

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls12 => "TLS 1.2",
            Self::Tls13 => "TLS 1.3",
        })
    }
}

/// The AEADs a record can be protected with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CipherSuite {
    /// AES-128-GCM, `TLS_CIPHER_AES_GCM_128`.
    Aes128Gcm,
    /// AES-256-GCM, `TLS_CIPHER_AES_GCM_256`.
    Aes256Gcm,
    /// ChaCha20-Poly1305, `TLS_CIPHER_CHACHA20_POLY1305`.
    ChaCha20Poly1305,
}

impl CipherSuite {
    /// All of them, in Linux's order.
    pub const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// Key length in bytes: 16 or 32.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 32,
        }
    }

    /// Length of `salt` in Linux's struct: 4 for GCM, none for ChaCha20.
    pub const fn salt_len(self) -> usize {
        NONCE_LEN - self.iv_len()
    }

    /// Length of `iv` in Linux's struct: 8 for GCM, 12 for ChaCha20.
    pub const fn iv_len(self) -> usize {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm => 8,
            Self::ChaCha20Poly1305 => 12,
        }
    }

    /// Length of the authentication tag in bytes: 16.
    pub const fn tag_len(self) -> usize {
        TAG_LEN
    }

    /// Bytes of nonce that travel in each record: 8 for GCM under TLS 1.2 (RFC 5288 §3), else none.
    pub const fn explicit_nonce_len(self, version: ProtocolVersion) -> usize {
        match (version, self) {
            (ProtocolVersion::Tls12, Self::Aes128Gcm | Self::Aes256Gcm) => 8,
            (ProtocolVersion::Tls12, Self::ChaCha20Poly1305) | (ProtocolVersion::Tls13, _) => 0,
        }
    }

    /// `TLS_CIPHER_*` of `linux/tls.h`: 51, 52 or 54.
    pub const fn linux_id(self) -> u16 {
        match self {
            Self::Aes128Gcm => 51,
            Self::Aes256Gcm => 52,
            Self::ChaCha20Poly1305 => 54,
        }
    }

    /// The suite with this `TLS_CIPHER_*` number, or [`Error::UnknownCipher`].
    pub const fn from_linux_id(id: u16) -> Result<Self, Error> {
        match id {
            51 => Ok(Self::Aes128Gcm),
            52 => Ok(Self::Aes256Gcm),
            54 => Ok(Self::ChaCha20Poly1305),
            found => Err(Error::UnknownCipher { found }),
        }
    }

    /// Size of Linux's `struct tls12_crypto_info_*` for this suite: 40 or 56 bytes.
    pub const fn crypto_info_len(self) -> usize {
        2 + 2 + self.iv_len() + self.key_len() + self.salt_len() + 8
    }

    /// How many records one key may seal: [`AES_GCM_CONFIDENTIALITY_LIMIT`] or [`CHACHA20_POLY1305_CONFIDENTIALITY_LIMIT`].
    pub const fn confidentiality_limit(self) -> u64 {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm => AES_GCM_CONFIDENTIALITY_LIMIT,
            Self::ChaCha20Poly1305 => CHACHA20_POLY1305_CONFIDENTIALITY_LIMIT,
        }
    }

    /// How many records may fail to open under one key: [`INTEGRITY_LIMIT`].
    pub const fn integrity_limit(self) -> u64 {
        INTEGRITY_LIMIT
    }
}

impl fmt::Display for CipherSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes128Gcm => "AES-128-GCM",
            Self::Aes256Gcm => "AES-256-GCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_linux_structs() {
        let rows = [
            (CipherSuite::Aes128Gcm, 51, 40, 8, 16, 4),
            (CipherSuite::Aes256Gcm, 52, 56, 8, 32, 4),
            (CipherSuite::ChaCha20Poly1305, 54, 56, 12, 32, 0),
        ];
        for (suite, id, len, iv, key, salt) in rows {
            assert_eq!(suite.linux_id(), id);
            assert_eq!(CipherSuite::from_linux_id(id), Ok(suite));
            assert_eq!(suite.crypto_info_len(), len, "{suite}");
            assert_eq!(
                (suite.iv_len(), suite.key_len(), suite.salt_len()),
                (iv, key, salt),
                "{suite}"
            );
        }
    }

    #[test]
    fn every_other_number_is_unknown() {
        for id in (0..=u16::MAX).filter(|id| ![51, 52, 54].contains(id)) {
            assert_eq!(
                CipherSuite::from_linux_id(id),
                Err(Error::UnknownCipher { found: id })
            );
        }
        for wire in (0..=u16::MAX).filter(|wire| ![0x0303, 0x0304].contains(wire)) {
            assert_eq!(
                ProtocolVersion::from_wire(wire),
                Err(Error::UnknownVersion { found: wire })
            );
        }
    }

    #[test]
    fn the_gcm_limit_is_two_to_the_24_and_a_half() {
        // l² ≤ 2^49 < (l+1)², in integers.
        let l = u128::from(AES_GCM_CONFIDENTIALITY_LIMIT);
        assert!(l * l <= 1 << 49 && (l + 1) * (l + 1) > 1 << 49);
    }
}
