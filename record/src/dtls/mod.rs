//! DTLS records in datagrams: [`Sealer`] for the way out, [`Opener`] for the way in.
//!
//! Datagrams get lost, doubled and reordered, so a DTLS record carries what a TLS record leaves out: which keys it is under
//! (the *epoch*) and which number it has. The receiver needs no order, but a memory of what it has seen
//! ([`ReplayWindow`](crate::replay::ReplayWindow)).
//!
//! **DTLS 1.2** (RFC 6347; AES-GCM as in RFC 5288, ChaCha20-Poly1305 as in RFC 7905):
//!
//! ```text
//!  0      1       3       5          11       13                 21                      21+n          37+n
//!  +------+-------+-------+----------+--------+------------------+-----------------------+-------------+
//!  | type | FE FD | epoch | sequence | length |  explicit nonce  | [ plaintext, n bytes ]|     tag     |
//!  +------+-------+-------+----------+--------+------------------+-----------------------+-------------+
//!   1       2       2       6          2        8, AES-GCM only    n ≤ 16384               16
//!
//!   nonce = salt(4) ‖ explicit nonce(8), which a sender sets to epoch ‖ sequence         AES-GCM, overhead 37
//!         = iv(12) XOR (0(4) ‖ epoch(2) ‖ sequence(6))                                   ChaCha20, overhead 29
//!   AAD   = epoch ‖ sequence ‖ type ‖ FE FD ‖ n(2)
//! ```
//!
//! **DTLS 1.3** (RFC 9147), every cipher. Epoch and sequence number are cut down to their last bits, and the latter is hidden
//! behind a mask that is computed from the ciphertext:
//!
//! ```text
//!  0           1              3        5                                               5+n+1         21+n+1
//!  +-----------+--------------+--------+-----------------------------------------------+-------------+
//!  | 0010SLEE  | {sequence}   | length | [ plaintext, n bytes | type | zeros ]         |     tag     |
//!  +-----------+--------------+--------+-----------------------------------------------+-------------+
//!   1            2 (S) or 1     2 or 0 (L)                                               16
//!
//!   nonce = iv(12) XOR (0(4) ‖ sequence(8))          the whole sequence number, without the epoch
//!   AAD   = the header, before the mask
//!   mask  = AES-ECB(sn key, ciphertext[0..16])  or  ChaCha20(sn key, counter ct[0..4], nonce ct[4..16])
//! ```
//!
//! # What differs from TLS
//!
//! * A record that cannot be opened is dropped and the association lives on (RFC 6347 §4.1.2.7), so opening answers with a
//!   [`Discard`] that says of which kind it was, for a counter, and never with an error that ends anything.
//! * A datagram may hold several records; [`Opener::open_next`] takes one and says where the next begins.
//! * New keys are a new epoch, in both versions. An opener keeps the previous one until
//!   [`Opener::retire_previous`]: records that were overtaken by the change are still good. How long is for the
//!   caller, who has a clock.
//!
//! # What it deliberately does not do
//!
//! No connection ids (RFC 9146, RFC 9147 §9): a DTLS 1.3 record with one is dropped as malformed, since none was agreed on.
//! No retransmission, no acknowledgement records, no key schedule: those belong to handshakes. No path MTU: a record is as
//! long as the slice it is sealed into. The sealer writes DTLS 1.3's long header form only (16-bit sequence number, length
//! present), which is unambiguous where the short forms save three bytes; the opener takes every form.
//!
//! # Sequence numbers end before they repeat
//!
//! RFC 6347 §4.1: "As in TLS, implementations MUST either abandon an association or rehandshake prior to allowing the
//! sequence number to wrap." They have 48 bits in DTLS 1.2; DTLS 1.3 computes with 64, and this crate stops at the same
//! 2^48−1 there. As in [`tls`](crate::tls) the largest number is an end mark that no record is sealed with, so that keys
//! exported at the end are of no use. A peer that uses it is understood.

mod discard;
mod header;
mod keys;
mod open;
mod seal;

pub use discard::{Discard, DiscardKind, Malformed};
pub use header::{DTLS12_HEADER_LEN, Header, UnifiedHeader};
pub use keys::EpochKeys;
pub use open::{Opened, Opener, Step};
pub use seal::{SealBatch, Sealer};

use core::fmt;

use crate::error::Error;
use crate::provider::{Aead, Provider, SequenceMask};
use crate::suite::{CipherSuite, NONCE_LEN, ProtocolVersion, TAG_LEN};

/// The largest sequence number that can be written: 48 bits. No record is sealed with it.
pub const SEQUENCE_END: u64 = (1 << 48) - 1;

/// The DTLS versions that have records of this crate's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DtlsVersion {
    /// DTLS 1.2, RFC 6347.
    Dtls12,
    /// DTLS 1.3, RFC 9147.
    Dtls13,
}

impl DtlsVersion {
    /// Both, the older first.
    pub const ALL: [Self; 2] = [Self::Dtls12, Self::Dtls13];

    /// The number in a handshake: 0xFEFD or 0xFEFC (the ones' complement of 1.2 and 1.3).
    pub const fn wire(self) -> u16 {
        match self {
            Self::Dtls12 => 0xFEFD,
            Self::Dtls13 => 0xFEFC,
        }
    }

    /// The TLS version whose protection of a record's payload it shares.
    pub const fn as_tls(self) -> ProtocolVersion {
        match self {
            Self::Dtls12 => ProtocolVersion::Tls12,
            Self::Dtls13 => ProtocolVersion::Tls13,
        }
    }

    /// Bytes of header: 13, or 5 for the form of the unified header that the sealer writes.
    const fn header_len(self) -> usize {
        match self {
            Self::Dtls12 => DTLS12_HEADER_LEN,
            Self::Dtls13 => UnifiedHeader::LONG_LEN,
        }
    }

    /// Bytes a record of this version and cipher has in front of its plaintext, as the sealer lays it out.
    pub const fn prefix_len(self, cipher: CipherSuite) -> usize {
        self.header_len() + cipher.explicit_nonce_len(self.as_tls())
    }

    /// Bytes a record has behind its plaintext: the tag, and DTLS 1.3's type byte.
    pub const fn suffix_len(self) -> usize {
        match self {
            Self::Dtls12 => TAG_LEN,
            Self::Dtls13 => TAG_LEN + 1,
        }
    }

    /// What a record has more than its plaintext: 37 (DTLS 1.2, AES-GCM), 29 (DTLS 1.2, ChaCha20) or 22 (DTLS 1.3).
    pub const fn overhead(self, cipher: CipherSuite) -> usize {
        self.prefix_len(cipher) + self.suffix_len()
    }
}

impl fmt::Display for DtlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dtls12 => "DTLS 1.2",
            Self::Dtls13 => "DTLS 1.3",
        })
    }
}

/// The keys of one direction and epoch, expanded.
#[derive(Debug)]
struct Keys {
    aead: Box<dyn Aead>,
    /// DTLS 1.3 only.
    mask: Option<Box<dyn SequenceMask>>,
    info: EpochKeys,
}

impl Keys {
    fn new(provider: &'static dyn Provider, info: &EpochKeys) -> Result<Self, Error> {
        let mask = match info.sn_key() {
            Some(key) => Some(provider.sequence_mask(info.cipher(), key)?),
            None => None,
        };
        Ok(Self {
            aead: provider.aead(info.cipher(), info.key())?,
            mask,
            info: info.clone(),
        })
    }

    fn version(&self) -> DtlsVersion {
        self.info.version()
    }

    fn explicit_nonce_len(&self) -> usize {
        self.info
            .cipher()
            .explicit_nonce_len(self.version().as_tls())
    }

    /// The nonce of the record with this number, without looking at the wire.
    fn nonce(&self, sequence: u64) -> [u8; NONCE_LEN] {
        let number = match self.version() {
            DtlsVersion::Dtls12 => record_number(self.info.epoch(), sequence),
            DtlsVersion::Dtls13 => sequence,
        };
        // GCM's explicit part has no iv beneath it: those eight bytes are zero there.
        let mut nonce = *self.info.nonce_base();
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }
}

/// DTLS 1.2's `epoch ‖ sequence`.
const fn record_number(epoch: u64, sequence: u64) -> u64 {
    epoch << 48 | sequence
}

/// What the tag vouches for besides the ciphertext: 13 bytes in DTLS 1.2, the header of 2 to 5 bytes in DTLS 1.3.
struct Aad {
    bytes: [u8; 13],
    len: usize,
}

impl Aad {
    /// RFC 6347 §4.1.2.1 and RFC 5246 §6.2.3.3: "additional_data = seq_num + TLSCompressed.type + TLSCompressed.version +
    /// TLSCompressed.length", where the DTLS sequence number includes the epoch and the length is the plaintext's.
    fn dtls12(header: &Header, plaintext_len: usize) -> Self {
        let mut bytes = [0; 13];
        let number = record_number(u64::from(header.epoch), header.sequence);
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes[8] = header.content_type.0;
        bytes[9..11].copy_from_slice(&DtlsVersion::Dtls12.wire().to_be_bytes());
        // Fits: at most MAX_PLAINTEXT, which sealing and opening have checked.
        bytes[11..].copy_from_slice(&(plaintext_len as u16).to_be_bytes());
        Self { bytes, len: 13 }
    }

    /// RFC 9147 §4: the additional data is the header as it is before sequence-number encryption.
    fn dtls13(header: &[u8]) -> Self {
        let mut bytes = [0; 13];
        bytes[..header.len()].copy_from_slice(header);
        Self {
            bytes,
            len: header.len(),
        }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
