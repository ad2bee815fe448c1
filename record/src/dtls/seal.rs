//! The way out: plaintext in, one record at a time, or several that count together.

use super::{Aad, DtlsVersion, EpochKeys, Header, Keys, SEQUENCE_END, UnifiedHeader};
use crate::error::Error;
use crate::header::{ContentType, MAX_PLAINTEXT};
use crate::provider::{self, Provider};
use crate::suite::{CipherSuite, NONCE_LEN, ProtocolVersion, TAG_LEN};

/// Seals the records of one direction.
///
/// A record is a slice of exactly [`prefix_len`](Self::prefix_len) + plaintext + [`suffix_len`](Self::suffix_len) bytes, and
/// several of them one behind the other may make a datagram. [`seal_in_place`](Self::seal_in_place) finds the plaintext
/// already in its middle; [`seal_from`](Self::seal_from) takes it from elsewhere. Either way every other byte is written here.
#[derive(Debug)]
pub struct Sealer {
    provider: &'static dyn Provider,
    keys: Keys,
    /// Sequence number of the next record. Invariant: at most [`SEQUENCE_END`].
    sequence: u64,
    /// Records sealed under these keys, here.
    sealed: u64,
    /// Records these keys may seal; the AEAD's limit, or less.
    limit: u64,
}

impl Sealer {
    /// A sealer on the default provider.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the provider lacks the cipher.
    pub fn new(keys: &EpochKeys) -> Result<Self, Error> {
        Self::with_provider(provider::default(), keys)
    }

    /// A sealer on this provider.
    ///
    /// # Errors
    /// As [`Sealer::new`].
    pub fn with_provider(provider: &'static dyn Provider, keys: &EpochKeys) -> Result<Self, Error> {
        Ok(Self {
            provider,
            sequence: keys.sequence(),
            sealed: 0,
            limit: keys.cipher().confidentiality_limit(),
            keys: Keys::new(provider, keys)?,
        })
    }

    /// Bytes in front of the plaintext: 21 for DTLS 1.2 with AES-GCM, 13 with ChaCha20, 5 for DTLS 1.3.
    pub fn prefix_len(&self) -> usize {
        self.version().prefix_len(self.cipher())
    }

    /// Bytes behind the plaintext: 16 (tag), or 17 for DTLS 1.3 (content type and tag).
    pub fn suffix_len(&self) -> usize {
        self.version().suffix_len()
    }

    /// What a record has more than its plaintext: 37, 29 or 22 bytes.
    pub fn overhead(&self) -> usize {
        self.version().overhead(self.cipher())
    }

    /// The epoch of the next record.
    pub fn epoch(&self) -> u64 {
        self.keys.info.epoch()
    }

    /// Sequence number of the next record. [`SEQUENCE_END`] means that there is none.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Protocol version.
    pub fn version(&self) -> DtlsVersion {
        self.keys.version()
    }

    /// Cipher.
    pub fn cipher(&self) -> CipherSuite {
        self.keys.info.cipher()
    }

    /// How many records may still be sealed in this epoch: what is left of the sequence numbers or of the AEAD's
    /// [limit](CipherSuite::confidentiality_limit), whichever is less.
    pub fn records_left(&self) -> u64 {
        (SEQUENCE_END - self.sequence).min(self.limit.saturating_sub(self.sealed))
    }

    /// Lets these keys seal at most `records` records in all; more than the AEAD's limit has no effect.
    ///
    /// For a policy stricter than the RFC's, and for seeing a key run out without sealing 24 million records. A new epoch
    /// starts with the AEAD's limit again.
    pub fn lower_limit(&mut self, records: u64) {
        self.limit = self.limit.min(records);
    }

    /// Puts a new epoch's keys in force for the records from here on. The cipher may be another one.
    ///
    /// # Errors
    /// [`Error::NotANewEpoch`] for an epoch that is not later, or for another version; [`Error::Unavailable`]. The old keys
    /// stay then.
    pub fn install(&mut self, keys: &EpochKeys) -> Result<(), Error> {
        self.keys.info.check_successor(keys)?;
        *self = Self::with_provider(self.provider, keys)?;
        Ok(())
    }

    /// The keys as they are now, with the sequence number of the next record.
    pub fn keys(&self) -> EpochKeys {
        self.keys.info.at(self.sequence)
    }

    /// Seals a record whose plaintext already lies in it, behind [`prefix_len`](Self::prefix_len) bytes of room.
    ///
    /// # Errors
    /// Nothing counts as used and the record must not be sent:
    /// * [`Error::OutputBuffer`]: shorter than [`overhead`](Self::overhead)
    /// * [`Error::PlaintextTooLong`]: more than [`MAX_PLAINTEXT`] bytes of plaintext
    /// * [`Error::Inexpressible`]: content type 0 in DTLS 1.3
    /// * [`Error::LimitReached`]: these keys are used up
    pub fn seal_in_place(
        &mut self,
        content_type: ContentType,
        record: &mut [u8],
    ) -> Result<(), Error> {
        self.in_place(0, content_type, record)?;
        self.count(1);
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
        self.count(1);
        Ok(())
    }

    /// Starts a batch: records with consecutive sequence numbers that count as used only at [`SealBatch::commit`].
    pub fn batch(&mut self) -> SealBatch<'_> {
        SealBatch {
            sealer: self,
            records: 0,
        }
    }

    fn count(&mut self, records: u64) {
        self.sequence += records;
        self.sealed += records;
    }

    /// What both ways of sealing need before they start: room checked, the header and explicit nonce written.
    fn begin(
        &self,
        ahead: u64,
        content_type: ContentType,
        record: &mut [u8],
    ) -> Result<(Aad, [u8; NONCE_LEN]), Error> {
        let version = self.version();
        if version == DtlsVersion::Dtls13 && content_type.0 == 0 {
            // Inside the record a zero is padding, so the receiver could not find this type.
            return Err(Error::Inexpressible {
                version: ProtocolVersion::Tls13,
                what: "content type 0",
            });
        }
        let overhead = self.overhead();
        let length = record
            .len()
            .checked_sub(overhead)
            .ok_or(Error::OutputBuffer {
                expected: overhead,
                found: record.len(),
            })?;
        if length > MAX_PLAINTEXT {
            return Err(Error::PlaintextTooLong {
                length,
                max: MAX_PLAINTEXT,
            });
        }
        if ahead >= self.records_left() {
            return Err(Error::LimitReached {
                sequence: self.sequence.saturating_add(ahead).min(SEQUENCE_END),
                sealed: self.sealed + ahead,
            });
        }

        let sequence = self.sequence + ahead;
        let nonce = self.keys.nonce(sequence);
        // Fits: MAX_PLAINTEXT and an overhead of at most 37.
        let body_len = (record.len() - version.header_len()) as u16;
        let (head, body) = record.split_at_mut(version.header_len());
        let aad = match version {
            DtlsVersion::Dtls12 => {
                let header = Header {
                    content_type,
                    // Keys for DTLS 1.2 are made with a 16-bit epoch.
                    epoch: self.epoch() as u16,
                    sequence,
                    length: body_len,
                };
                head.copy_from_slice(&header.emit());
                let explicit_len = self.keys.explicit_nonce_len();
                body[..explicit_len].copy_from_slice(&nonce[NONCE_LEN - explicit_len..]);
                Aad::dtls12(&header, length)
            }
            DtlsVersion::Dtls13 => {
                head.copy_from_slice(&UnifiedHeader::emit(self.epoch(), sequence, body_len));
                Aad::dtls13(head)
            }
        };
        Ok((aad, nonce))
    }

    /// Hides the sequence number of a sealed record, in DTLS 1.3.
    fn finish(&self, sequence: u64, record: &mut [u8]) -> Result<(), Error> {
        let Some(mask) = &self.keys.mask else {
            return Ok(());
        };
        let (head, body) = record.split_at_mut(UnifiedHeader::LONG_LEN);
        let sample = body.first_chunk().ok_or(Error::Provider { sequence })?;
        let mask = mask
            .mask(sample)
            .map_err(|_| Error::Provider { sequence })?;
        for (byte, mask) in head[1..3].iter_mut().zip(mask) {
            *byte ^= mask;
        }
        Ok(())
    }

    fn in_place(
        &self,
        ahead: u64,
        content_type: ContentType,
        record: &mut [u8],
    ) -> Result<(), Error> {
        let (aad, nonce) = self.begin(ahead, content_type, record)?;
        let found = record.len();
        // `begin` has seen that the overhead fits, and the tag is part of it.
        let Some((inner, tag)) = record[self.prefix_len()..].split_last_chunk_mut::<TAG_LEN>()
        else {
            return Err(Error::OutputBuffer {
                expected: self.overhead(),
                found,
            });
        };
        if self.version() == DtlsVersion::Dtls13
            && let Some(last) = inner.last_mut()
        {
            *last = content_type.0;
        }
        let sequence = self.sequence + ahead;
        self.keys
            .aead
            .seal_in_place(&nonce, aad.as_slice(), inner, tag)
            .map_err(|_| Error::Provider { sequence })?;
        self.finish(sequence, record)
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
        let (aad, nonce) = self.begin(ahead, content_type, record)?;
        let type_byte = [content_type.0];
        let trailer: &[u8] = match self.version() {
            DtlsVersion::Dtls12 => &[],
            DtlsVersion::Dtls13 => &type_byte,
        };
        let sequence = self.sequence + ahead;
        self.keys
            .aead
            .seal_from(
                &nonce,
                aad.as_slice(),
                plaintext,
                trailer,
                &mut record[self.prefix_len()..],
            )
            .map_err(|_| Error::Provider { sequence })?;
        self.finish(sequence, record)
    }
}

/// Records that are sealed, but do not count until [`commit`](Self::commit).
///
/// As [`tls::SealBatch`](crate::tls::SealBatch), and with the same warning: **dropping a batch rolls back**, so what it
/// sealed must never leave the caller before the commit, and be overwritten if there is none. Two ciphertexts under one
/// nonce give both plaintexts away.
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
        self.sealer.in_place(self.records, content_type, record)?;
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
        self.sealer.count(self.records);
    }
}
