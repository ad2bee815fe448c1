//! The way in: a datagram's records one after the other, each verified before a byte of it is handed out.

use core::ops::Range;

use super::{
    Aad, DTLS12_HEADER_LEN, Discard, DtlsVersion, EpochKeys, Header, Keys, Malformed, SEQUENCE_END,
    UnifiedHeader,
};
use crate::error::Error;
use crate::header::{ContentType, MAX_PLAINTEXT};
use crate::provider::{self, Provider};
use crate::replay::{Replay, ReplayWindow};
use crate::suite::{NONCE_LEN, TAG_LEN};

/// Opens the records of one direction, in whatever order they come.
///
/// It holds the keys of the current epoch and, after [`install`](Self::install), those of the one before.
#[derive(Debug)]
pub struct Opener {
    provider: &'static dyn Provider,
    current: Epoch,
    previous: Option<Epoch>,
    /// Records of one epoch that may fail to verify.
    integrity_limit: u64,
}

/// One epoch's keys and what has come under them.
#[derive(Debug)]
struct Epoch {
    keys: Keys,
    window: ReplayWindow,
    /// Records that did not verify.
    failures: u64,
}

impl Epoch {
    fn new(provider: &'static dyn Provider, keys: &EpochKeys) -> Result<Self, Error> {
        Ok(Self {
            window: ReplayWindow::starting_at(keys.sequence()),
            failures: 0,
            keys: Keys::new(provider, keys)?,
        })
    }

    fn number(&self) -> u64 {
        self.keys.info.epoch()
    }
}

/// What a record held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its type; in DTLS 1.3 the inner one.
    pub content_type: ContentType,
    /// The epoch it came under.
    pub epoch: u64,
    /// Its sequence number.
    pub sequence: u64,
    /// Where the plaintext lies in the slice it was opened in. May be empty.
    pub plaintext: Range<usize>,
}

/// One record of a datagram, taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the datagram that are done with. At least one, unless the datagram was empty; all that is left where the
    /// next record cannot be found.
    pub len: usize,
    /// What the record held, or why it was dropped.
    pub opened: Result<Opened, Discard>,
}

/// A record whose header was read: where its parts lie, and what its tag is over.
struct Parts {
    previous: bool,
    content_type: ContentType,
    sequence: u64,
    nonce: [u8; NONCE_LEN],
    aad: Aad,
    /// Ciphertext and tag.
    body: Range<usize>,
}

impl Opener {
    /// An opener on the default provider. Records before the keys' sequence number count as seen.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the provider lacks the cipher.
    pub fn new(keys: &EpochKeys) -> Result<Self, Error> {
        Self::with_provider(provider::default(), keys)
    }

    /// An opener on this provider.
    ///
    /// # Errors
    /// As [`Opener::new`].
    pub fn with_provider(provider: &'static dyn Provider, keys: &EpochKeys) -> Result<Self, Error> {
        Ok(Self {
            provider,
            current: Epoch::new(provider, keys)?,
            previous: None,
            integrity_limit: keys.cipher().integrity_limit(),
        })
    }

    /// Protocol version.
    pub fn version(&self) -> DtlsVersion {
        self.current.keys.version()
    }

    /// The current epoch.
    pub fn epoch(&self) -> u64 {
        self.current.number()
    }

    /// The epoch before, if its keys are still here.
    pub fn previous_epoch(&self) -> Option<u64> {
        self.previous.as_ref().map(Epoch::number)
    }

    /// One more than the highest sequence number opened in the current epoch.
    pub fn sequence(&self) -> u64 {
        self.current.window.next()
    }

    /// The current epoch's keys, with [`sequence`](Self::sequence) as their next sequence number.
    pub fn keys(&self) -> EpochKeys {
        self.current.keys.info.at(self.sequence())
    }

    /// Puts a new epoch's keys in force and keeps those of the epoch so far, so that records overtaken by the change still
    /// open. Those of the epoch before that go. The cipher may be another one.
    ///
    /// RFC 6347 §4.1: "Note that because DTLS records may be reordered, a record from epoch 1 may be received after epoch 2
    /// has begun. In general, implementations SHOULD discard packets from earlier epochs, but if packet loss causes
    /// noticeable problems they MAY choose to retain keying material from previous epochs for up to the default MSL specified
    /// for TCP".
    ///
    /// # Errors
    /// [`Error::NotANewEpoch`] for an epoch that is not later, or for another version; [`Error::Unavailable`]. Nothing changes
    /// then.
    pub fn install(&mut self, keys: &EpochKeys) -> Result<(), Error> {
        self.current.keys.info.check_successor(keys)?;
        let new = Epoch::new(self.provider, keys)?;
        self.previous = Some(core::mem::replace(&mut self.current, new));
        Ok(())
    }

    /// Forgets the epoch before the current one.
    pub fn retire_previous(&mut self) {
        self.previous = None;
    }

    /// Lets at most this many records of one epoch fail to verify; more than the AEAD's limit has no effect.
    pub fn lower_integrity_limit(&mut self, records: u64) {
        self.integrity_limit = self.integrity_limit.min(records);
    }

    /// Opens the record at the front of `datagram` where it lies. Call again with what follows [`Step::len`] while there is
    /// something.
    ///
    /// The order of checks is RFC 6347 §4.1.2.6's: what the replay window rules out is not decrypted, and the window moves
    /// only for a record that verified. A record that is dropped leaves the opener as it was (but for the count of failures),
    /// and if it did not verify, its ciphertext is wiped.
    pub fn open_next(&mut self, datagram: &mut [u8]) -> Step {
        let (len, parts) = match self.version() {
            DtlsVersion::Dtls12 => self.parts12(datagram),
            DtlsVersion::Dtls13 => self.parts13(datagram),
        };
        let opened = parts.and_then(|parts| self.open_parts(datagram, &parts));
        Step { len, opened }
    }

    fn known(&self, previous: bool) -> &Epoch {
        match &self.previous {
            Some(epoch) if previous => epoch,
            _ => &self.current,
        }
    }

    /// How long the body of a record of this epoch must and may be.
    fn check_length(epoch: &Epoch, length: usize) -> Result<(), Discard> {
        let min = epoch.keys.explicit_nonce_len() + epoch.keys.version().suffix_len();
        let max = min + MAX_PLAINTEXT;
        if length < min {
            return Err(Discard::Malformed(Malformed::TooShort { length, min }));
        }
        if length > max {
            return Err(Discard::Malformed(Malformed::TooLong { length, max }));
        }
        Ok(())
    }

    /// What the replay window and the key's age say before any decryption.
    fn check_number(&self, epoch: &Epoch, sequence: u64) -> Result<(), Discard> {
        let number = epoch.number();
        epoch
            .window
            .check(sequence)
            .map_err(|replay| match replay {
                Replay::Seen => Discard::Replayed {
                    epoch: number,
                    sequence,
                },
                Replay::TooOld => Discard::TooOld {
                    epoch: number,
                    sequence,
                },
            })?;
        // RFC 9147 §4.5.3 has failures counted for each key and the connection given up at the limit: these keys open nothing
        // more, and whether others follow is not for the record layer.
        if epoch.failures >= self.integrity_limit {
            return Err(Discard::KeyExhausted { epoch: number });
        }
        Ok(())
    }

    fn parts12(&self, datagram: &[u8]) -> (usize, Result<Parts, Discard>) {
        let header = match Header::parse(datagram) {
            Ok(header) => header,
            // Without a trustworthy length the next record cannot be found.
            Err(malformed) => return (datagram.len(), Err(Discard::Malformed(malformed))),
        };
        (header.record_len(), self.parts12_of(datagram, header))
    }

    fn parts12_of(&self, datagram: &[u8], header: Header) -> Result<Parts, Discard> {
        let number = u64::from(header.epoch);
        let previous = self.previous_epoch() == Some(number);
        if !previous && number != self.epoch() {
            return Err(Discard::WrongEpoch { epoch: number });
        }
        let epoch = self.known(previous);
        Self::check_length(epoch, usize::from(header.length))?;
        self.check_number(epoch, header.sequence)?;
        let explicit_len = epoch.keys.explicit_nonce_len();
        let body = DTLS12_HEADER_LEN + explicit_len..header.record_len();
        let mut nonce = epoch.keys.nonce(header.sequence);
        // RFC 5288 §3: the explicit part is the sender's to choose; what is on the wire counts.
        nonce[NONCE_LEN - explicit_len..].copy_from_slice(&datagram[DTLS12_HEADER_LEN..body.start]);
        Ok(Parts {
            previous,
            content_type: header.content_type,
            sequence: header.sequence,
            nonce,
            aad: Aad::dtls12(&header, body.len() - TAG_LEN),
            body,
        })
    }

    fn parts13(&self, datagram: &mut [u8]) -> (usize, Result<Parts, Discard>) {
        // RFC 9147 §4.1: alerts, handshake messages and acknowledgements may come unprotected, with the old header.
        if let Some(21 | 22 | 26) = datagram.first() {
            return match Header::parse(datagram) {
                Ok(header) => {
                    let epoch = u64::from(header.epoch);
                    (header.record_len(), Err(Discard::WrongEpoch { epoch }))
                }
                Err(malformed) => (datagram.len(), Err(Discard::Malformed(malformed))),
            };
        }
        match UnifiedHeader::parse(datagram) {
            Ok(header) => (header.record_len(), self.parts13_of(datagram, header)),
            Err(malformed) => (datagram.len(), Err(Discard::Malformed(malformed))),
        }
    }

    /// Reads a protected record's sequence number, which leaves the header as it was before its encryption.
    fn parts13_of(&self, datagram: &mut [u8], header: UnifiedHeader) -> Result<Parts, Discard> {
        // RFC 9147 §4.2.2: "if the epoch bits do not match those from the current epoch, implementations SHOULD use the most
        // recent past epoch which has matching bits".
        let bits = u64::from(header.epoch_bits);
        let previous = match (self.epoch() & 3 == bits, self.previous_epoch()) {
            (true, _) => false,
            (false, Some(epoch)) if epoch & 3 == bits => true,
            _ => return Err(Discard::WrongEpoch { epoch: bits }),
        };
        let epoch = self.known(previous);
        Self::check_length(epoch, header.length)?;
        let unverified = Discard::Unverified {
            epoch: epoch.number(),
            sequence: epoch.window.next(),
        };
        let (head, rest) = datagram.split_at_mut(header.header_len);
        let mask = match (&epoch.keys.mask, rest.first_chunk()) {
            (Some(cipher), Some(sample)) => cipher.mask(sample).map_err(|_| unverified)?,
            _ => return Err(unverified),
        };
        let mut truncated = 0;
        for (byte, mask) in head[1..=header.sequence_len].iter_mut().zip(mask) {
            *byte ^= mask;
            truncated = truncated << 8 | u64::from(*byte);
        }
        let bits = 8 * header.sequence_len as u32;
        let sequence = reconstruct(epoch.window.next(), truncated, bits);
        self.check_number(epoch, sequence)?;
        Ok(Parts {
            previous,
            // The real type is inside.
            content_type: ContentType::APPLICATION_DATA,
            sequence,
            nonce: epoch.keys.nonce(sequence),
            aad: Aad::dtls13(head),
            body: header.header_len..header.record_len(),
        })
    }

    fn open_parts(&mut self, datagram: &mut [u8], parts: &Parts) -> Result<Opened, Discard> {
        let epoch = match &mut self.previous {
            Some(epoch) if parts.previous => epoch,
            _ => &mut self.current,
        };
        let (number, sequence) = (epoch.number(), parts.sequence);
        let body = &mut datagram[parts.body.clone()];
        let unverified = Discard::Unverified {
            epoch: number,
            sequence,
        };
        // `check_length` has seen to it that a tag fits.
        let Some((inner, tag)) = body.split_last_chunk_mut::<TAG_LEN>() else {
            return Err(unverified);
        };
        let verified =
            epoch
                .keys
                .aead
                .open_in_place(&parts.nonce, parts.aad.as_slice(), inner, tag);
        if verified.is_err() {
            epoch.failures += 1;
            inner.fill(0);
            return Err(unverified);
        }
        epoch.window.accept(sequence);
        let (content_type, len) = match epoch.keys.version() {
            DtlsVersion::Dtls12 => (parts.content_type, inner.len()),
            DtlsVersion::Dtls13 => match inner.iter().rposition(|byte| *byte != 0) {
                Some(type_at) => (ContentType(inner[type_at]), type_at),
                None => return Err(Discard::Malformed(Malformed::NoContentType)),
            },
        };
        Ok(Opened {
            content_type,
            epoch: number,
            sequence,
            plaintext: parts.body.start..parts.body.start + len,
        })
    }
}

/// The sequence number that ends in these bits.
///
/// RFC 9147 §4.2.2: "implementations SHOULD reconstruct the sequence number by computing the full sequence number which is
/// numerically closest to one plus the sequence number of the highest successfully deprotected record in the current epoch."
fn reconstruct(expected: u64, truncated: u64, bits: u32) -> u64 {
    let span = 1 << bits;
    let candidate = expected & !(span - 1) | truncated;
    if candidate + span / 2 <= expected && candidate + span <= SEQUENCE_END {
        candidate + span
    } else if candidate > expected + span / 2 && candidate >= span {
        candidate - span
    } else {
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, by trying every candidate in reach.
    fn closest(expected: u64, truncated: u64, bits: u32) -> Vec<u64> {
        let span = 1_u64 << bits;
        let base = expected & !(span - 1);
        let candidates = [base.checked_sub(span), Some(base), base.checked_add(span)];
        let candidates: Vec<u64> = candidates
            .into_iter()
            .flatten()
            .map(|base| base | truncated)
            .filter(|candidate| *candidate <= SEQUENCE_END)
            .collect();
        let nearest = candidates
            .iter()
            .map(|candidate| candidate.abs_diff(expected))
            .min();
        candidates
            .into_iter()
            .filter(|candidate| Some(candidate.abs_diff(expected)) == nearest)
            .collect()
    }

    #[test]
    fn the_nearest_number_is_found() {
        let around = |at: u64| at.saturating_sub(300)..=(at + 300).min(SEQUENCE_END);
        for bits in [8, 16] {
            for expected in [0, 300, 1 << 8, 1 << 16, 1 << 40, SEQUENCE_END]
                .into_iter()
                .flat_map(around)
            {
                let step = if bits == 8 { 1 } else { 251 };
                for truncated in (0..1 << bits).step_by(step) {
                    let found = reconstruct(expected, truncated, bits);
                    assert!(
                        closest(expected, truncated, bits).contains(&found),
                        "expected {expected}, ..{truncated:x} gave {found}"
                    );
                }
            }
        }
    }
}
