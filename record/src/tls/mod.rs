//! TLS records over a stream: [`Sealer`] for the way out, [`Opener`] for the way in.
//!
//! One direction of one connection is a key, a nonce rule and a counter. The counter is the whole state: record number *k*
//! under these keys has exactly one nonce and one additional data, both computed from *k*, so nothing else has to be kept
//! and nothing can get out of step.
//!
//! | | nonce | additional data |
//! | --- | --- | --- |
//! | TLS 1.2 GCM (RFC 5288 §3) | `salt ‖ explicit`, the explicit part counts from `iv` and travels | `seq ‖ type ‖ 0303 ‖ n` |
//! | TLS 1.2 ChaCha20 (RFC 7905 §2) | `iv XOR seq` | the same |
//! | TLS 1.3 (RFC 8446 §5.3) | `(salt ‖ iv) XOR seq` | the header |
//!
//! # Sequence numbers end before they repeat
//!
//! RFC 8446 §5.3: "Because the size of sequence numbers is 64-bit, they should not wrap. If a TLS implementation would need
//! to wrap a sequence number, it MUST either rekey or terminate the connection." Here 2^64−1 is the end mark and never
//! used: the last record has number 2^64−2. One record is given away so that the counter itself says that it ended, and
//! keys exported at the end cannot be put to use again.
//!
//! # After a failure
//!
//! A record that does not open leaves the opener as it was, and its bytes wiped. Whether to go on is the caller's choice;
//! a TLS stream cannot, since the next record's number is no longer certain.

mod open;
mod seal;

pub use open::{Opened, Opener};
pub use seal::{SealBatch, Sealer};

use crate::crypto_info::CryptoInfo;
use crate::error::Error;
use crate::header::{ContentType, HEADER_LEN, MAX_PLAINTEXT, RecordHeader};
use crate::provider::{Aead, Provider};
use crate::suite::{NONCE_LEN, ProtocolVersion, TAG_LEN};

/// The first sequence number that no record may have.
const SEQUENCE_END: u64 = u64::MAX;

/// The keys of one direction and how many records they have served.
#[derive(Debug)]
struct Keys {
    provider: &'static dyn Provider,
    aead: Box<dyn Aead>,
    /// As they were set; `used` says how far they have moved on since.
    info: CryptoInfo,
    /// Records sealed or opened since. Invariant: `info.rec_seq() + used <= SEQUENCE_END`.
    used: u64,
}

impl Keys {
    fn new(provider: &'static dyn Provider, info: &CryptoInfo) -> Result<Self, Error> {
        let aead = provider.aead(info.cipher(), info.key())?;
        Ok(Self {
            provider,
            aead,
            info: info.clone(),
            used: 0,
        })
    }

    /// Puts new keys in the place of these.
    fn rekey(&mut self, info: &CryptoInfo) -> Result<(), Error> {
        let (version, cipher) = (self.info.version(), self.info.cipher());
        if version == ProtocolVersion::Tls12 {
            return Err(Error::RekeyUnsupported { version });
        }
        if (info.version(), info.cipher()) != (version, cipher) {
            let (found_version, found_cipher) = (info.version(), info.cipher());
            return Err(Error::RekeyMismatch {
                version,
                cipher,
                found_version,
                found_cipher,
            });
        }
        *self = Self::new(self.provider, info)?;
        Ok(())
    }

    fn version(&self) -> ProtocolVersion {
        self.info.version()
    }

    /// Sequence number of the next record.
    fn sequence(&self) -> u64 {
        self.info.rec_seq() + self.used
    }

    fn sequence_left(&self) -> u64 {
        SEQUENCE_END - self.sequence()
    }

    fn explicit_nonce_len(&self) -> usize {
        self.info.cipher().explicit_nonce_len(self.version())
    }

    /// Header and explicit nonce.
    fn prefix_len(&self) -> usize {
        HEADER_LEN + self.explicit_nonce_len()
    }

    /// TLS 1.3's type byte, and the tag.
    fn suffix_len(&self) -> usize {
        TAG_LEN + usize::from(self.version() == ProtocolVersion::Tls13)
    }

    fn overhead(&self) -> usize {
        self.prefix_len() + self.suffix_len()
    }

    /// What a record's length field may say: the least, and the most.
    fn length_bounds(&self) -> (usize, usize) {
        let min = self.overhead() - HEADER_LEN;
        (min, min + MAX_PLAINTEXT)
    }

    /// The nonce of the record `ahead` records from now, without looking at the wire.
    fn nonce(&self, ahead: u64) -> [u8; NONCE_LEN] {
        let mut nonce = *self.info.nonce_base();
        let [.., a, b, c, d, e, f, g, h] = nonce;
        let tail = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let tail = if self.explicit_nonce_len() > 0 {
            // Any value may start it, so it may wrap; the sequence number's end keeps it from coming round.
            tail.wrapping_add(self.used + ahead)
        } else {
            tail ^ (self.sequence() + ahead)
        };
        nonce[NONCE_LEN - 8..].copy_from_slice(&tail.to_be_bytes());
        nonce
    }
}

/// What the tag vouches for besides the ciphertext: 13 bytes under TLS 1.2, 5 under TLS 1.3.
struct Aad {
    bytes: [u8; 13],
    len: usize,
}

impl Aad {
    /// * TLS 1.2, RFC 5246 §6.2.3.3: "additional_data = seq_num + TLSCompressed.type + TLSCompressed.version +
    ///   TLSCompressed.length", where the length is the plaintext's.
    /// * TLS 1.3, RFC 8446 §5.2: "additional_data = TLSCiphertext.opaque_type || TLSCiphertext.legacy_record_version ||
    ///   TLSCiphertext.length".
    fn new(
        version: ProtocolVersion,
        sequence: u64,
        header: RecordHeader,
        plaintext_len: usize,
    ) -> Self {
        let mut bytes = [0; 13];
        match version {
            ProtocolVersion::Tls12 => {
                // Fits: at most MAX_PLAINTEXT, which header parsing and sealing have checked.
                let inner = RecordHeader {
                    length: plaintext_len as u16,
                    ..header
                };
                bytes[..8].copy_from_slice(&sequence.to_be_bytes());
                bytes[8..].copy_from_slice(&inner.emit());
                Self { bytes, len: 13 }
            }
            ProtocolVersion::Tls13 => {
                bytes[..HEADER_LEN].copy_from_slice(&header.emit());
                Self {
                    bytes,
                    len: HEADER_LEN,
                }
            }
        }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The type a record shows on the outside.
fn outer_type(version: ProtocolVersion, content_type: ContentType) -> ContentType {
    match version {
        ProtocolVersion::Tls12 => content_type,
        // RFC 8446 §5.2: "The outer opaque_type field of a TLSCiphertext record is always set to the value 23".
        ProtocolVersion::Tls13 => ContentType::APPLICATION_DATA,
    }
}
