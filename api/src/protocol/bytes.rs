//! Byte strings inside messages: one with a largest length, one that is wiped.

use rustix::io::Errno;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use uktls_record::dtls::{DtlsVersion, EpochKeys};
use uktls_record::{CipherSuite, CryptoInfo};
use zeroize::Zeroizing;

/// At most `MAX` bytes; a longer string does not decode.
#[derive(Clone, PartialEq, Eq)]
pub struct BoundedBytes<const MAX: usize>(Vec<u8>);

impl<const MAX: usize> BoundedBytes<MAX> {
    /// These bytes, unless there are more than `MAX`.
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() <= MAX).then_some(BoundedBytes(bytes))
    }

    /// The bytes.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl<const MAX: usize> fmt::Debug for BoundedBytes<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} bytes]", self.0.len())
    }
}

impl<const MAX: usize> Serialize for BoundedBytes<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for BoundedBytes<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_bytes(AtMost::<MAX>)
            .map(|bytes| BoundedBytes(bytes.to_vec()))
    }
}

/// Longest `tls12_crypto_info_*` struct there is.
const MAX_KEY_BYTES: usize = 56;

/// Keys as the bytes of Linux's `tls12_crypto_info_*`: never printed, wiped on drop. They are checked where they are used,
/// so that a client that sends nonsense gets the errno Linux would give.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyBytes(Zeroizing<Vec<u8>>);

impl KeyBytes {
    /// The keys, checked.
    ///
    /// # Errors
    /// The errno that `setsockopt` gives for such bytes.
    pub fn crypto_info(&self) -> Result<CryptoInfo, Errno> {
        CryptoInfo::from_bytes(&self.0).map_err(|e| Errno::from_raw_os_error(e.errno()))
    }
}

impl From<&CryptoInfo> for KeyBytes {
    fn from(keys: &CryptoInfo) -> Self {
        KeyBytes(keys.to_bytes())
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[keys, {} bytes]", self.0.len())
    }
}

impl Serialize for KeyBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_bytes(AtMost::<MAX_KEY_BYTES>)
            .map(|bytes| KeyBytes(Zeroizing::new(bytes.to_vec())))
    }
}

/// Version, cipher, epoch, sequence number, and the longest key, iv and sequence-number key.
const MAX_EPOCH_KEY_BYTES: usize = 2 + 2 + 8 + 8 + 32 + 12 + 32;

/// DTLS keys of one direction and epoch: never printed, wiped on drop. Checked where they are used.
///
/// ```text
///   version (2)  cipher (2)  epoch (8)  sequence (8)  key  iv  sn_key        all big-endian; lengths follow from cipher and version
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct EpochKeyBytes(Zeroizing<Vec<u8>>);

impl EpochKeyBytes {
    /// The keys, checked.
    ///
    /// # Errors
    /// `EINVAL` for bytes that are no keys.
    pub fn epoch_keys(&self) -> Result<EpochKeys, Errno> {
        let split = self.0.split_first_chunk::<20>().ok_or(Errno::INVAL)?;
        let (
            &[
                v0,
                v1,
                c0,
                c1,
                e0,
                e1,
                e2,
                e3,
                e4,
                e5,
                e6,
                e7,
                ref sequence @ ..,
            ],
            rest,
        ) = split;
        let cipher =
            CipherSuite::from_linux_id(u16::from_be_bytes([c0, c1])).map_err(|_| Errno::INVAL)?;
        let epoch = u64::from_be_bytes([e0, e1, e2, e3, e4, e5, e6, e7]);
        let sequence = u64::from_be_bytes(*sequence);
        let (key, rest) = rest
            .split_at_checked(cipher.key_len())
            .ok_or(Errno::INVAL)?;
        let version = u16::from_be_bytes([v0, v1]);
        let keys = if version == DtlsVersion::Dtls12.wire() {
            let epoch = u16::try_from(epoch).map_err(|_| Errno::INVAL)?;
            EpochKeys::dtls12(cipher, key, rest, epoch, sequence)
        } else if version == DtlsVersion::Dtls13.wire() {
            let (iv, sn_key) = rest.split_at_checked(12).ok_or(Errno::INVAL)?;
            EpochKeys::dtls13(cipher, key, iv, sn_key, epoch, sequence)
        } else {
            return Err(Errno::INVAL);
        };
        keys.map_err(|error| Errno::from_raw_os_error(error.errno()))
    }
}

impl From<&EpochKeys> for EpochKeyBytes {
    fn from(keys: &EpochKeys) -> Self {
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_EPOCH_KEY_BYTES));
        bytes.extend_from_slice(&keys.version().wire().to_be_bytes());
        bytes.extend_from_slice(&keys.cipher().linux_id().to_be_bytes());
        bytes.extend_from_slice(&keys.epoch().to_be_bytes());
        bytes.extend_from_slice(&keys.sequence().to_be_bytes());
        bytes.extend_from_slice(keys.key());
        bytes.extend_from_slice(keys.iv());
        bytes.extend_from_slice(keys.sn_key().unwrap_or_default());
        EpochKeyBytes(bytes)
    }
}

impl fmt::Debug for EpochKeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[keys, {} bytes]", self.0.len())
    }
}

impl Serialize for EpochKeyBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for EpochKeyBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_bytes(AtMost::<MAX_EPOCH_KEY_BYTES>)
            .map(|bytes| EpochKeyBytes(Zeroizing::new(bytes.to_vec())))
    }
}

/// Borrows at most `MAX` bytes from the message. Nothing is copied before the length is known to be fine.
struct AtMost<const MAX: usize>;

impl<'de, const MAX: usize> Visitor<'de> for AtMost<MAX> {
    type Value = &'de [u8];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX} bytes")
    }

    fn visit_borrowed_bytes<E: serde::de::Error>(self, bytes: &'de [u8]) -> Result<&'de [u8], E> {
        if bytes.len() > MAX {
            return Err(E::invalid_length(bytes.len(), &self));
        }
        Ok(bytes)
    }
}
