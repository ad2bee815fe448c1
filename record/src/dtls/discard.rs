//! Why a record was dropped. In DTLS that is an everyday event, so it is a value to count, not an error.
//!
//! RFC 6347 §4.1.2.7: "Unlike TLS, DTLS is resilient in the face of invalid records (e.g., invalid formatting, length, MAC,
//! etc.). In general, invalid records SHOULD be silently discarded, thus preserving the association".

use core::fmt;

/// A record that was dropped, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Discard {
    /// Not a record that this version and cipher could have made.
    #[error("malformed record: {0}")]
    Malformed(Malformed),
    /// Under an epoch whose keys are not here: not yet, no longer, or never. Records of epoch 0 are unprotected.
    #[error("record of epoch {epoch}, whose keys are not here")]
    WrongEpoch {
        /// The epoch in the header; of DTLS 1.3's protected records its last two bits.
        epoch: u64,
    },
    /// A record with this number was opened before.
    #[error("record {sequence} of epoch {epoch} was seen before")]
    Replayed {
        /// Its epoch.
        epoch: u64,
        /// Its sequence number.
        sequence: u64,
    },
    /// So old that whether it was seen is no longer known.
    #[error("record {sequence} of epoch {epoch} is left of the replay window")]
    TooOld {
        /// Its epoch.
        epoch: u64,
        /// Its sequence number.
        sequence: u64,
    },
    /// The tag does not verify: forged, damaged, or under other keys.
    #[error("record {sequence} of epoch {epoch} does not verify")]
    Unverified {
        /// Its epoch.
        epoch: u64,
        /// The sequence number it claims; in DTLS 1.3 the guess made from its last bits.
        sequence: u64,
    },
    /// So many records of this epoch failed to verify that its keys may not be tried again.
    #[error("too many records of epoch {epoch} failed to verify; its keys are used up")]
    KeyExhausted {
        /// Its epoch.
        epoch: u64,
    },
}

/// What is wrong with a [malformed](Discard::Malformed) record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// The datagram ends within the header.
    Header,
    /// The first byte is not one that a DTLS 1.3 record can start with.
    FirstByte(u8),
    /// The header's version is not FE FD.
    Version(u16),
    /// A DTLS 1.3 record with a connection id, which nobody agreed on.
    ConnectionId,
    /// The header announces more than the datagram holds.
    Cut {
        /// Bytes announced.
        length: usize,
        /// Bytes there.
        left: usize,
    },
    /// Longer than a record may be.
    TooLong {
        /// What the header says, or the datagram holds.
        length: usize,
        /// The most it may be.
        max: usize,
    },
    /// Too short for nonce, type and tag.
    TooShort {
        /// What the header says, or the datagram holds.
        length: usize,
        /// The least it may be.
        min: usize,
    },
    /// DTLS 1.3: it verified, and holds nothing but zeros where a content type should be.
    NoContentType,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the datagram ends within its header"),
            Self::FirstByte(byte) => write!(f, "no record starts with {byte:#04x}"),
            Self::Version(found) => write!(f, "its version is {found:#06x}, expected 0xfefd"),
            Self::ConnectionId => f.write_str("it has a connection id, and none was agreed on"),
            Self::Cut { length, left } => {
                write!(f, "it announces {length} bytes, and {left} are there")
            }
            Self::TooLong { length, max } => {
                write!(f, "it has {length} bytes, and {max} are allowed")
            }
            Self::TooShort { length, min } => {
                write!(f, "it has {length} bytes, and {min} are needed")
            }
            Self::NoContentType => f.write_str("it holds only zeros, and no content type"),
        }
    }
}

/// The kinds of [`Discard`], to count by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiscardKind {
    /// [`Discard::Malformed`]
    Malformed,
    /// [`Discard::WrongEpoch`]
    WrongEpoch,
    /// [`Discard::Replayed`]
    Replayed,
    /// [`Discard::TooOld`]
    TooOld,
    /// [`Discard::Unverified`]
    Unverified,
    /// [`Discard::KeyExhausted`]
    KeyExhausted,
}

impl DiscardKind {
    /// All of them; a kind's place in here is its `as usize`.
    pub const ALL: [Self; 6] = [
        Self::Malformed,
        Self::WrongEpoch,
        Self::Replayed,
        Self::TooOld,
        Self::Unverified,
        Self::KeyExhausted,
    ];

    /// A name for a counter.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::WrongEpoch => "wrong epoch",
            Self::Replayed => "replayed",
            Self::TooOld => "too old",
            Self::Unverified => "unverified",
            Self::KeyExhausted => "key exhausted",
        }
    }
}

impl Discard {
    /// What to count it as.
    pub const fn kind(&self) -> DiscardKind {
        match self {
            Self::Malformed(_) => DiscardKind::Malformed,
            Self::WrongEpoch { .. } => DiscardKind::WrongEpoch,
            Self::Replayed { .. } => DiscardKind::Replayed,
            Self::TooOld { .. } => DiscardKind::TooOld,
            Self::Unverified { .. } => DiscardKind::Unverified,
            Self::KeyExhausted { .. } => DiscardKind::KeyExhausted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_its_place() {
        for (place, kind) in DiscardKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place, "{}", kind.name());
        }
    }

    #[test]
    fn messages_say_what_came() {
        let cut = Discard::Malformed(Malformed::Cut {
            length: 100,
            left: 20,
        });
        assert_eq!(
            cut.to_string(),
            "malformed record: it announces 100 bytes, and 20 are there"
        );
        let replayed = Discard::Replayed {
            epoch: 1,
            sequence: 7,
        };
        assert_eq!(replayed.to_string(), "record 7 of epoch 1 was seen before");
    }
}
