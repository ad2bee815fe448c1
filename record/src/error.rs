//! What can go wrong with records and keys: one enum, each variant with what was expected and what came.
//!
//! [`Error::fault`] says whose mistake it is, and [`Error::errno`] which number Linux's kTLS answers with, so that the
//! socket API above does not need a table of its own.

use crate::dtls::DtlsVersion;
use crate::suite::{CipherSuite, ProtocolVersion};

/// Linux's numbers for the errors that records cause (`asm-generic/errno*.h`; the same on every Linux architecture in use).
pub mod errno {
    /// No such file or directory; here: the cipher is not available.
    pub const ENOENT: i32 = 2;
    /// Device or resource busy; here: TLS 1.2 keys cannot be replaced.
    pub const EBUSY: i32 = 16;
    /// Invalid argument.
    pub const EINVAL: i32 = 22;
    /// Bad message; here: the record is not what the keys say it should be.
    pub const EBADMSG: i32 = 74;
    /// Message too long.
    pub const EMSGSIZE: i32 = 90;
}

/// Whose mistake an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The peer, or whoever changed the bytes on their way.
    Peer,
    /// The caller of this crate: a wrong key length, a wrong buffer length.
    Caller,
    /// Nobody: the key is used up.
    Key,
}

/// Why a record of acceptable length was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BadRecord {
    /// The tag does not fit: wrong key, wrong sequence number, or changed bytes.
    Tag,
    /// TLS 1.3: nothing but zeros inside, so there is no content type.
    ///
    /// RFC 8446 §5.4: "If a receiving implementation does not find a non-zero octet in the cleartext, it MUST terminate
    /// the connection with an "unexpected_message" alert."
    NoContentType,
    /// TLS 1.3: the outer type is not application data (23), so the record is not a protected one.
    OuterType(u8),
}

impl core::fmt::Display for BadRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Tag => {
                f.write_str("its tag does not verify (wrong keys, wrong order or changed bytes)")
            }
            Self::NoContentType => f.write_str("it holds only zeros, and no content type"),
            Self::OuterType(found) => write!(f, "its outer type is {found}, expected 23"),
        }
    }
}

/// Everything this crate refuses to do, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The header's version bytes are not 03 03. `EINVAL`.
    #[error("peer sent a record header with version {found:#06x}; expected 0x0303 ({version})")]
    WrongVersion {
        /// The version in force, whose records all carry 0x0303.
        version: ProtocolVersion,
        /// The two bytes that came.
        found: u16,
    },

    /// The header announces more than a record of this version and cipher can hold. `EMSGSIZE`.
    #[error("peer announced a record of {length} bytes; at most {max} are allowed")]
    TooLong {
        /// What the header says.
        length: usize,
        /// The most it may say.
        max: usize,
    },

    /// The header announces less than nonce, tag and type need. `EBADMSG`.
    #[error("peer announced a record of {length} bytes; nonce, type and tag alone need {min}")]
    TooShort {
        /// What the header says.
        length: usize,
        /// The least it may say.
        min: usize,
    },

    /// The record does not open. `EBADMSG`.
    #[error("peer's record number {sequence} cannot be opened: {reason}")]
    BadRecord {
        /// The sequence number it was expected to have.
        sequence: u64,
        /// What is wrong with it.
        reason: BadRecord,
    },

    /// The slice handed over is not the whole record, or is more than it. `EINVAL`.
    #[error("caller handed over {found} bytes for a record of {expected}")]
    RecordBuffer {
        /// Header plus the length it announces.
        expected: usize,
        /// Length of the slice.
        found: usize,
    },

    /// The slice to seal into or to open into has the wrong size. `EINVAL`.
    #[error("caller's buffer has {found} bytes; {expected} are needed")]
    OutputBuffer {
        /// Bytes needed.
        expected: usize,
        /// Length of the slice.
        found: usize,
    },

    /// More plaintext (and padding) than one record may carry. `EMSGSIZE`.
    #[error("caller asked for a record with {length} bytes of plaintext; at most {max} fit")]
    PlaintextTooLong {
        /// Plaintext and padding, in bytes.
        length: usize,
        /// [`header::MAX_PLAINTEXT`](crate::header::MAX_PLAINTEXT).
        max: usize,
    },

    /// Padding was asked for in TLS 1.2, or content type 0 in TLS 1.3, where 0 means padding. `EINVAL`.
    #[error("{version} records cannot have {what}")]
    Inexpressible {
        /// The version in force.
        version: ProtocolVersion,
        /// What cannot be said in it.
        what: &'static str,
    },

    /// The key has protected all it may. `EBADMSG`.
    ///
    /// New keys help (TLS 1.3); under TLS 1.2 the connection is over.
    #[error(
        "no record may follow sequence number {sequence} under this key ({sealed} sealed); new keys are needed"
    )]
    LimitReached {
        /// The sequence number that was refused.
        sequence: u64,
        /// Records sealed with this key since it was set.
        sealed: u64,
    },

    /// Not a version this crate speaks. `EINVAL`.
    #[error(
        "caller asked for protocol version {found:#06x}; expected 0x0303 (TLS 1.2) or 0x0304 (TLS 1.3)"
    )]
    UnknownVersion {
        /// The number that came.
        found: u16,
    },

    /// Not a cipher this crate speaks. `EINVAL`.
    #[error(
        "caller asked for cipher {found}; expected 51 (AES-128-GCM), 52 (AES-256-GCM) or 54 (ChaCha20-Poly1305)"
    )]
    UnknownCipher {
        /// The `TLS_CIPHER_*` number that came.
        found: u16,
    },

    /// A key, salt, iv or whole `crypto_info` of the wrong length. `EINVAL`.
    #[error("caller's {field} has {found} bytes; {expected} are needed")]
    CryptoInfoLength {
        /// `key`, `salt`, `iv` or `crypto_info`.
        field: &'static str,
        /// The length it must have.
        expected: usize,
        /// The length it has.
        found: usize,
    },

    /// New keys for another version or cipher than the socket's. `EINVAL`.
    #[error(
        "caller's new keys are for {found_version} {found_cipher}; the connection uses {version} {cipher}"
    )]
    RekeyMismatch {
        /// Version in force.
        version: ProtocolVersion,
        /// Cipher in force.
        cipher: CipherSuite,
        /// Version of the new keys.
        found_version: ProtocolVersion,
        /// Cipher of the new keys.
        found_cipher: CipherSuite,
    },

    /// New keys for a TLS 1.2 connection, which has no key update. `EBUSY`.
    #[error("caller set keys twice; {version} cannot change keys once they are in force")]
    RekeyUnsupported {
        /// The version in force.
        version: ProtocolVersion,
    },

    /// DTLS keys that do not follow those in force: an epoch that is not later, or another version. `EINVAL`.
    #[error(
        "caller's new keys are for {found_version} epoch {found_epoch}; {version} and an epoch after {epoch} are needed"
    )]
    NotANewEpoch {
        /// Version in force.
        version: DtlsVersion,
        /// Epoch in force.
        epoch: u64,
        /// Version of the new keys.
        found_version: DtlsVersion,
        /// Epoch of the new keys.
        found_epoch: u64,
    },

    /// The AEAD provider does not have this cipher, or refused the key. `ENOENT`.
    #[error("provider {provider} cannot do {cipher}")]
    Unavailable {
        /// [`Provider::name`](crate::provider::Provider::name).
        provider: &'static str,
        /// The cipher asked for.
        cipher: CipherSuite,
    },

    /// The AEAD provider failed to encrypt, which none does for inputs this crate gives it. `EBADMSG`.
    #[error("the AEAD provider failed to seal record number {sequence}")]
    Provider {
        /// The record's sequence number; it does not count as used.
        sequence: u64,
    },
}

impl Error {
    /// A record that does not open, and why.
    pub(crate) const fn bad_record(sequence: u64, reason: BadRecord) -> Self {
        Self::BadRecord { sequence, reason }
    }

    /// Whose mistake it is.
    pub const fn fault(&self) -> Fault {
        match self {
            Self::WrongVersion { .. }
            | Self::TooLong { .. }
            | Self::TooShort { .. }
            | Self::BadRecord { .. } => Fault::Peer,
            Self::LimitReached { .. } => Fault::Key,
            Self::RecordBuffer { .. }
            | Self::OutputBuffer { .. }
            | Self::PlaintextTooLong { .. }
            | Self::Inexpressible { .. }
            | Self::UnknownVersion { .. }
            | Self::UnknownCipher { .. }
            | Self::CryptoInfoLength { .. }
            | Self::RekeyMismatch { .. }
            | Self::RekeyUnsupported { .. }
            | Self::NotANewEpoch { .. }
            | Self::Unavailable { .. }
            | Self::Provider { .. } => Fault::Caller,
        }
    }

    /// The number Linux's kTLS answers with in this case; one of [`errno`].
    pub const fn errno(&self) -> i32 {
        match self {
            Self::BadRecord { .. }
            | Self::TooShort { .. }
            | Self::LimitReached { .. }
            | Self::Provider { .. } => errno::EBADMSG,
            Self::TooLong { .. } | Self::PlaintextTooLong { .. } => errno::EMSGSIZE,
            Self::WrongVersion { .. }
            | Self::RecordBuffer { .. }
            | Self::OutputBuffer { .. }
            | Self::Inexpressible { .. }
            | Self::UnknownVersion { .. }
            | Self::UnknownCipher { .. }
            | Self::CryptoInfoLength { .. }
            | Self::RekeyMismatch { .. }
            | Self::NotANewEpoch { .. } => errno::EINVAL,
            Self::RekeyUnsupported { .. } => errno::EBUSY,
            Self::Unavailable { .. } => errno::ENOENT,
        }
    }

    /// The name of [`Error::errno`], as man pages write it.
    pub const fn errno_name(&self) -> &'static str {
        match self.errno() {
            errno::ENOENT => "ENOENT",
            errno::EBUSY => "EBUSY",
            errno::EMSGSIZE => "EMSGSIZE",
            errno::EBADMSG => "EBADMSG",
            _ => "EINVAL",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_names_who_is_at_fault() {
        let peer = Error::TooLong {
            length: 20000,
            max: 16401,
        };
        assert_eq!(
            peer.to_string(),
            "peer announced a record of 20000 bytes; at most 16401 are allowed"
        );
        assert_eq!((peer.fault(), peer.errno_name()), (Fault::Peer, "EMSGSIZE"));

        let tag = Error::bad_record(7, BadRecord::Tag);
        assert_eq!(
            tag.to_string(),
            "peer's record number 7 cannot be opened: its tag does not verify (wrong keys, wrong order or changed bytes)"
        );
        assert_eq!((tag.fault(), tag.errno_name()), (Fault::Peer, "EBADMSG"));

        let caller = Error::CryptoInfoLength {
            field: "key",
            expected: 16,
            found: 32,
        };
        assert_eq!(
            caller.to_string(),
            "caller's key has 32 bytes; 16 are needed"
        );
        assert_eq!(
            (caller.fault(), caller.errno_name()),
            (Fault::Caller, "EINVAL")
        );

        let limit = Error::LimitReached {
            sequence: u64::MAX,
            sealed: 3,
        };
        assert_eq!((limit.fault(), limit.errno_name()), (Fault::Key, "EBADMSG"));
    }
}
