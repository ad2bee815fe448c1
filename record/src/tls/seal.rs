//! The way out: plaintext in, one record at a time, or several that count together.

use super::{Aad, Keys, outer_type};
use crate::crypto_info::CryptoInfo;
use crate::error::Error;
use crate::header::{ContentType, HEADER_LEN, MAX_PLAINTEXT, RecordHeader};
use crate::provider::{self, Provider};
use crate::suite::{CipherSuite, NONCE_LEN, ProtocolVersion, TAG_LEN};

/// Seals the records of one direction, in order.
///
/// A record is a slice of exactly [`prefix_len`](Self::prefix_len) + plaintext + [`suffix_len`](Self::suffix_len) bytes.
/// [`seal_in_place`](Self::seal_in_place) finds the plaintext already in its middle; [`seal_from`](Self::seal_from) takes
/// it from elsewhere. Either way every other byte is written here.
#[derive(Debug)]
pub struct Sealer {
    keys: Keys,
    /// Records these keys may seal; the AEAD's limit, or less.
    limit: u64,
}

impl Sealer {
    /// A sealer on the default provider.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the provider lacks the cipher.
    pub fn new(info: &CryptoInfo) -> Result<Self, Error> {
        Self::with_provider(provider::default(), info)
    }

    /// A sealer on this provider.
    ///
    /// # Errors
    /// As [`Sealer::new`].
    pub fn with_provider(
        provider: &'static dyn Provider,
        info: &CryptoInfo,
    ) -> Result<Self, Error> {
        Ok(Self {
            keys: Keys::new(provider, info)?,
            limit: info.cipher().confidentiality_limit(),
        })
    }

    /// Bytes in front of the plaintext: 13 for TLS 1.2 with GCM (header and explicit nonce), else 5.
    pub fn prefix_len(&self) -> usize {
        self.keys.prefix_len()
    }

    /// Bytes behind the plaintext: 16 (tag), or 17 for TLS 1.3 (content type and tag).
    pub fn suffix_len(&self) -> usize {
        self.keys.suffix_len()
    }

    /// What a record has more than its plaintext: 29, 21 or 22 bytes.
    pub fn overhead(&self) -> usize {
        self.keys.overhead()
    }

    /// Sequence number of the next record. 2^64−1 means that there is none.
    pub fn sequence(&self) -> u64 {
        self.keys.sequence()
    }

    /// The nonce of the next record: for whoever checks that none is used twice.
    pub fn next_nonce(&self) -> [u8; NONCE_LEN] {
        self.keys.nonce(0)
    }

    /// Protocol version.
    pub fn version(&self) -> ProtocolVersion {
        self.keys.version()
    }

    /// Cipher.
    pub fn cipher(&self) -> CipherSuite {
        self.keys.info.cipher()
    }

    /// How many records may still be sealed with these keys: what is left of the sequence numbers or of the AEAD's
    /// [limit](CipherSuite::confidentiality_limit), whichever is less.
    ///
    /// The limit counts records sealed here since the keys were set. Keys that were used before, elsewhere, have a past this
    /// cannot know.
    pub fn records_left(&self) -> u64 {
        self.keys
            .sequence_left()
            .min(self.limit.saturating_sub(self.keys.used))
    }

    /// Lets these keys seal at most `records` records in all; more than the AEAD's limit has no effect.
    ///
    /// For a policy stricter than the RFC's, and for seeing a key run out without sealing 24 million records. New keys
    /// start with the AEAD's limit again.
    pub fn lower_limit(&mut self, records: u64) {
        self.limit = self.limit.min(records);
    }

    /// Puts new keys in force for the records from here on; their `rec_seq` is the next sequence number.
    ///
    /// # Errors
    /// [`Error::RekeyUnsupported`] under TLS 1.2, [`Error::RekeyMismatch`] when version or cipher differ. The old keys stay
    /// then.
    pub fn rekey(&mut self, info: &CryptoInfo) -> Result<(), Error> {
        self.keys.rekey(info)?;
        self.limit = info.cipher().confidentiality_limit();
        Ok(())
    }

    /// The keys as they are now, as `getsockopt(TLS_TX)` shows them: with the *current* `iv` and `rec_seq`, which are
    /// separate counters. Under TLS 1.2 with GCM both move with each record, otherwise only `rec_seq` does.
    pub fn crypto_info(&self) -> CryptoInfo {
        self.keys.info.after(self.keys.used)
    }

    /// Seals a record whose plaintext already lies in it, behind [`prefix_len`](Self::prefix_len) bytes of room.
    ///
    /// # Errors
    /// Nothing counts as used and the record must not be sent:
    /// * [`Error::OutputBuffer`]: shorter than [`overhead`](Self::overhead)
    /// * [`Error::PlaintextTooLong`]: more than [`MAX_PLAINTEXT`] bytes of plaintext
    /// * [`Error::Inexpressible`]: content type 0 under TLS 1.3
    /// * [`Error::LimitReached`]: these keys are used up
    pub fn seal_in_place(
        &mut self,
        content_type: ContentType,
        record: &mut [u8],
    ) -> Result<(), Error> {
        self.seal_padded_in_place(content_type, record, 0)
    }

    /// Seals a TLS 1.3 record with `padding_len` zeros behind the content type, which hide how long the plaintext is.
    ///
    /// `record` is prefix, plaintext, suffix *and* padding, the plaintext again right behind the prefix.
    ///
    /// # Errors
    /// As [`seal_in_place`](Self::seal_in_place), and [`Error::Inexpressible`] for padding under TLS 1.2. Plaintext and padding
    /// together may have [`MAX_PLAINTEXT`] bytes.
    pub fn seal_padded_in_place(
        &mut self,
        content_type: ContentType,
        record: &mut [u8],
        padding_len: usize,
    ) -> Result<(), Error> {
        self.in_place(0, content_type, record, padding_len)?;
        self.keys.used += 1;
        Ok(())
    }

    /// Seals `plaintext` into `record`, which must have exactly [`overhead`](Self::overhead) bytes more, in one pass.
    ///
    /// # Errors
    /// As [`seal_in_place`](Self::seal_in_place).
    pub fn seal_from(
        &mut self,
        content_type: ContentType,
        plaintext: &[u8],
        record: &mut [u8],
    ) -> Result<(), Error> {
        self.out_of_place(0, content_type, plaintext, record)?;
        self.keys.used += 1;
        Ok(())
    }

    /// Starts a batch: records with consecutive sequence numbers that count as used only at [`SealBatch::commit`].
    pub fn batch(&mut self) -> SealBatch<'_> {
        SealBatch {
            sealer: self,
            records: 0,
        }
    }

    /// What both ways of sealing need before they start: room checked, the header and explicit nonce written.
    fn begin(
        &self,
        ahead: u64,
        content_type: ContentType,
        record: &mut [u8],
        padding_len: usize,
    ) -> Result<(Aad, [u8; NONCE_LEN]), Error> {
        let version = self.version();
        if version == ProtocolVersion::Tls12 && padding_len > 0 {
            return Err(Error::Inexpressible {
                version,
                what: "padding",
            });
        }
        if version == ProtocolVersion::Tls13 && content_type.0 == 0 {
            // Inside a TLS 1.3 record a zero is padding, so the receiver could not find this type.
            return Err(Error::Inexpressible {
                version,
                what: "content type 0",
            });
        }
        let overhead = self.overhead();
        // Plaintext and padding; what `padding_len` claims must lie within.
        let length = record
            .len()
            .checked_sub(overhead)
            .filter(|length| *length >= padding_len)
            .ok_or(Error::OutputBuffer {
                expected: overhead.saturating_add(padding_len),
                found: record.len(),
            })?;
        if length > MAX_PLAINTEXT {
            return Err(Error::PlaintextTooLong {
                length,
                max: MAX_PLAINTEXT,
            });
        }
        if ahead >= self.records_left() {
            let (sequence, sealed) = (
                self.sequence().saturating_add(ahead),
                self.keys.used + ahead,
            );
            return Err(Error::LimitReached { sequence, sealed });
        }

        // Fits: MAX_PLAINTEXT and an overhead of at most 29.
        let header = RecordHeader {
            content_type: outer_type(version, content_type),
            length: (record.len() - HEADER_LEN) as u16,
        };
        let nonce = self.keys.nonce(ahead);
        let prefix_len = self.prefix_len();
        let (head, explicit) = record[..prefix_len].split_at_mut(HEADER_LEN);
        head.copy_from_slice(&header.emit());
        explicit.copy_from_slice(&nonce[NONCE_LEN - explicit.len()..]);
        Ok((
            Aad::new(version, self.sequence() + ahead, header, length),
            nonce,
        ))
    }

    fn in_place(
        &self,
        ahead: u64,
        content_type: ContentType,
        record: &mut [u8],
        padding_len: usize,
    ) -> Result<(), Error> {
        let (aad, nonce) = self.begin(ahead, content_type, record, padding_len)?;
        // `begin` has seen that the overhead fits, and the tag is part of it.
        let Some((inner, tag)) = record[self.prefix_len()..].split_last_chunk_mut::<TAG_LEN>()
        else {
            return Err(Error::OutputBuffer {
                expected: self.overhead(),
                found: record.len(),
            });
        };
        if self.version() == ProtocolVersion::Tls13 {
            let type_at = inner.len() - 1 - padding_len;
            inner[type_at] = content_type.0;
            inner[type_at + 1..].fill(0);
        }
        let sequence = self.sequence() + ahead;
        self.keys
            .aead
            .seal_in_place(&nonce, aad.as_slice(), inner, tag)
            .map_err(|_| Error::Provider { sequence })
    }

    fn out_of_place(
        &self,
        ahead: u64,
        content_type: ContentType,
        plaintext: &[u8],
        record: &mut [u8],
    ) -> Result<(), Error> {
        let expected = plaintext.len().saturating_add(self.overhead());
        if record.len() != expected {
            return Err(Error::OutputBuffer {
                expected,
                found: record.len(),
            });
        }
        let (aad, nonce) = self.begin(ahead, content_type, record, 0)?;
        let type_byte = [content_type.0];
        let trailer: &[u8] = match self.version() {
            ProtocolVersion::Tls12 => &[],
            ProtocolVersion::Tls13 => &type_byte,
        };
        let (sequence, prefix_len) = (self.sequence() + ahead, self.prefix_len());
        self.keys
            .aead
            .seal_from(
                &nonce,
                aad.as_slice(),
                plaintext,
                trailer,
                &mut record[prefix_len..],
            )
            .map_err(|_| Error::Provider { sequence })
    }
}

/// Records that are sealed, but do not count until [`commit`](Self::commit).
///
/// Made for sealing from a file that may change under the reader: seal, look whether the file is still what it was, then
/// commit or start over. **Dropping a batch rolls back**: the next record gets the same nonce as the batch's first. What a
/// batch sealed must therefore never leave the caller before the commit, and be overwritten if there is none; two
/// different ciphertexts under one nonce give both plaintexts away.
#[derive(Debug)]
#[must_use = "a batch that is not committed counts for nothing"]
pub struct SealBatch<'a> {
    sealer: &'a mut Sealer,
    /// Sealed so far, uncommitted.
    records: u64,
}

impl SealBatch<'_> {
    /// As [`Sealer::seal_in_place`].
    ///
    /// # Errors
    /// As there; the batch keeps what it has and can go on.
    pub fn seal_in_place(
        &mut self,
        content_type: ContentType,
        record: &mut [u8],
    ) -> Result<(), Error> {
        self.sealer
            .in_place(self.records, content_type, record, 0)?;
        self.records += 1;
        Ok(())
    }

    /// As [`Sealer::seal_from`].
    ///
    /// # Errors
    /// As there; the batch keeps what it has and can go on.
    pub fn seal_from(
        &mut self,
        content_type: ContentType,
        plaintext: &[u8],
        record: &mut [u8],
    ) -> Result<(), Error> {
        self.sealer
            .out_of_place(self.records, content_type, plaintext, record)?;
        self.records += 1;
        Ok(())
    }

    /// How many records the batch holds.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Counts the batch's records as used. Now they may be sent.
    pub fn commit(self) {
        self.sealer.keys.used += self.records;
    }
}
