//! The way in: one whole record at a time, verified before a byte of it is handed out.

use core::ops::Range;

use super::{Aad, Keys};
use crate::crypto_info::CryptoInfo;
use crate::error::{BadRecord, Error};
use crate::header::{ContentType, HEADER_LEN, RecordHeader};
use crate::provider::{self, Provider};
use crate::suite::{CipherSuite, NONCE_LEN, ProtocolVersion, TAG_LEN};

/// Opens the records of one direction, in order.
#[derive(Debug)]
pub struct Opener {
    keys: Keys,
}

/// What a record held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its type; under TLS 1.3 the inner one.
    pub content_type: ContentType,
    /// Where the plaintext lies in the slice it was opened in. May be empty.
    pub plaintext: Range<usize>,
}

/// A record whose header and length were checked: where its parts lie and what its tag is over.
struct Parts {
    header: RecordHeader,
    nonce: [u8; NONCE_LEN],
    aad: Aad,
    tag: [u8; TAG_LEN],
    /// Encrypted bytes without the tag: plaintext, and TLS 1.3's type and padding.
    inner: Range<usize>,
}

impl Opener {
    /// An opener on the default provider.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the provider lacks the cipher.
    pub fn new(info: &CryptoInfo) -> Result<Self, Error> {
        Self::with_provider(provider::default(), info)
    }

    /// An opener on this provider.
    ///
    /// # Errors
    /// As [`Opener::new`].
    pub fn with_provider(
        provider: &'static dyn Provider,
        info: &CryptoInfo,
    ) -> Result<Self, Error> {
        Ok(Self {
            keys: Keys::new(provider, info)?,
        })
    }

    /// Bytes in front of the plaintext: 13 for TLS 1.2 with GCM (header and explicit nonce), else 5.
    pub fn prefix_len(&self) -> usize {
        self.keys.prefix_len()
    }

    /// Sequence number that the next record must have. 2^64−1 means that there can be none.
    pub fn sequence(&self) -> u64 {
        self.keys.sequence()
    }

    /// Protocol version.
    pub fn version(&self) -> ProtocolVersion {
        self.keys.version()
    }

    /// Cipher.
    pub fn cipher(&self) -> CipherSuite {
        self.keys.info.cipher()
    }

    /// Puts new keys in force for the records from here on; their `rec_seq` is the next sequence number.
    ///
    /// # Errors
    /// [`Error::RekeyUnsupported`] under TLS 1.2, [`Error::RekeyMismatch`] when version or cipher differ. The old keys stay
    /// then.
    pub fn rekey(&mut self, info: &CryptoInfo) -> Result<(), Error> {
        self.keys.rekey(info)
    }

    /// The keys as they are now, as `getsockopt(TLS_RX)` shows them; see [`Sealer::crypto_info`](super::Sealer::crypto_info).
    ///
    /// Like Linux, `iv` counts records under TLS 1.2 with GCM, although the nonce itself is read from each record.
    pub fn crypto_info(&self) -> CryptoInfo {
        self.keys.info.after(self.keys.used)
    }

    /// Reads a header with everything known: version, and what this cipher needs and allows.
    ///
    /// Stricter than [`RecordHeader::parse`]: a length this lets through holds at most 2^14 bytes of plaintext, so that no
    /// buffer is ever filled for a record that cannot be valid. These are the bounds Linux checks.
    ///
    /// # Errors
    /// [`Error::WrongVersion`], [`Error::TooLong`], [`Error::TooShort`]. TLS 1.3's unencrypted `change_cipher_spec` passes;
    /// see [`RecordHeader::is_compatibility_ccs`].
    pub fn parse_header(&self, bytes: &[u8; HEADER_LEN]) -> Result<RecordHeader, Error> {
        let header = RecordHeader::read(bytes, self.version())?;
        if header.is_compatibility_ccs(self.version()) {
            return Ok(header);
        }
        let (min, max) = self.keys.length_bounds();
        header.check_length(min, max)
    }

    /// Opens a whole record where it lies. The plaintext's range in it is [`Opened::plaintext`].
    ///
    /// # Errors
    /// The sequence number stays where it is, and after [`Error::BadRecord`] the encrypted part of the record is wiped.
    /// * the errors of [`parse_header`](Self::parse_header)
    /// * [`Error::RecordBuffer`]: `record` is not exactly as long as its header says
    /// * [`Error::BadRecord`]: the tag does not verify, nothing but zeros inside, or not a protected record at all
    /// * [`Error::LimitReached`]: no sequence number is left
    pub fn open_in_place(&mut self, record: &mut [u8]) -> Result<Opened, Error> {
        let parts = self.parts(record)?;
        let inner = &mut record[parts.inner.clone()];
        let verified =
            self.keys
                .aead
                .open_in_place(&parts.nonce, parts.aad.as_slice(), inner, &parts.tag);
        let opened = self.finish(verified.is_ok(), &parts, inner);
        if opened.is_err() {
            inner.fill(0);
        }
        let (content_type, len) = opened?;
        Ok(Opened {
            content_type,
            plaintext: parts.inner.start..parts.inner.start + len,
        })
    }

    /// Opens a whole record into `out`, leaving the record as it is. The plaintext starts at `out[0]`.
    ///
    /// `out` needs room for everything encrypted but the tag: the plaintext, and TLS 1.3's type byte and padding. The
    /// record's length less [`prefix_len`](Self::prefix_len) less 16 is enough.
    ///
    /// # Errors
    /// As [`open_in_place`](Self::open_in_place), with `out` wiped instead of the record, and [`Error::OutputBuffer`] when `out`
    /// is too short.
    pub fn open_separate(&mut self, record: &[u8], out: &mut [u8]) -> Result<Opened, Error> {
        let parts = self.parts(record)?;
        let ciphertext = &record[parts.inner.clone()];
        let found = out.len();
        let inner = out.get_mut(..ciphertext.len()).ok_or(Error::OutputBuffer {
            expected: ciphertext.len(),
            found,
        })?;
        let verified = self.keys.aead.open_from(
            &parts.nonce,
            parts.aad.as_slice(),
            ciphertext,
            &parts.tag,
            inner,
        );
        let opened = self.finish(verified.is_ok(), &parts, inner);
        if opened.is_err() {
            inner.fill(0);
        }
        let (content_type, len) = opened?;
        Ok(Opened {
            content_type,
            plaintext: 0..len,
        })
    }

    /// Everything that can be said about a record before its tag is tried.
    fn parts(&self, record: &[u8]) -> Result<Parts, Error> {
        let Some(header) = record.first_chunk::<HEADER_LEN>() else {
            return Err(Error::RecordBuffer {
                expected: HEADER_LEN,
                found: record.len(),
            });
        };
        let header = self.parse_header(header)?;
        if record.len() != header.record_len() {
            return Err(Error::RecordBuffer {
                expected: header.record_len(),
                found: record.len(),
            });
        }
        let sequence = self.sequence();
        if self.version() == ProtocolVersion::Tls13
            && header.content_type != ContentType::APPLICATION_DATA
        {
            return Err(Error::bad_record(
                sequence,
                BadRecord::OuterType(header.content_type.0),
            ));
        }
        if self.keys.sequence_left() == 0 {
            return Err(Error::LimitReached {
                sequence,
                sealed: self.keys.used,
            });
        }
        let (min, _) = self.keys.length_bounds();
        let Some((front, tag)) = record.split_last_chunk::<TAG_LEN>() else {
            return Err(Error::TooShort {
                length: usize::from(header.length),
                min,
            });
        };
        let mut nonce = self.keys.nonce(0);
        let explicit = &front[HEADER_LEN..self.prefix_len()];
        nonce[NONCE_LEN - explicit.len()..].copy_from_slice(explicit);
        let inner = self.prefix_len()..front.len();
        let aad = Aad::new(self.version(), sequence, header, inner.len());
        Ok(Parts {
            header,
            nonce,
            aad,
            tag: *tag,
            inner,
        })
    }

    /// Takes the verdict on the tag; a good record counts, and its type and plaintext length come back.
    fn finish(
        &mut self,
        verified: bool,
        parts: &Parts,
        inner: &[u8],
    ) -> Result<(ContentType, usize), Error> {
        let sequence = self.sequence();
        if !verified {
            return Err(Error::bad_record(sequence, BadRecord::Tag));
        }
        let opened = match self.version() {
            ProtocolVersion::Tls12 => (parts.header.content_type, inner.len()),
            // RFC 8446 §5.4: the receiver "scans the field from the end toward the beginning until it finds a non-zero
            // octet. This non-zero octet is the content type of the message."
            ProtocolVersion::Tls13 => match inner.iter().rposition(|byte| *byte != 0) {
                Some(type_at) => (ContentType(inner[type_at]), type_at),
                None => return Err(Error::bad_record(sequence, BadRecord::NoContentType)),
            },
        };
        self.keys.used += 1;
        Ok(opened)
    }
}
