//! Byte strings inside messages: one with a largest length, one that is wiped.

use rustix::io::Errno;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use uktls_record::CryptoInfo;
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
