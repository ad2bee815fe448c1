//! What must be dropped, and as which kind: every changed bit, every cut, every length and every epoch, on both providers.
//!
//! "Exhaustively" is meant: the records are small enough to try each position. And a dropped record must change nothing.

use uktls_record::dtls::{
    Discard, DiscardKind, DtlsVersion, EpochKeys, Malformed, Opener, SEQUENCE_END, Sealer,
};
use uktls_record::provider::{self, Provider};
use uktls_record::{CipherSuite, ContentType, Error};

use DtlsVersion::{Dtls12, Dtls13};

const DATA: ContentType = ContentType::APPLICATION_DATA;
const SEQUENCE: u64 = 0x0102;
const EPOCH: u64 = 5;

fn keys(version: DtlsVersion, cipher: CipherSuite, epoch: u64, sequence: u64) -> EpochKeys {
    let (key, iv) = ([0x42 ^ epoch as u8; 32], [0x17; 12]);
    let key = &key[..cipher.key_len()];
    match version {
        Dtls12 => {
            let iv_len = if cipher.salt_len() == 4 { 4 } else { 12 };
            EpochKeys::dtls12(cipher, key, &iv[..iv_len], epoch as u16, sequence)
        }
        Dtls13 => EpochKeys::dtls13(cipher, key, &iv, key, epoch, sequence),
    }
    .unwrap()
}

/// Every provider, version and cipher.
fn each(mut case: impl FnMut(&'static dyn Provider, DtlsVersion, CipherSuite)) {
    for provider in provider::all() {
        for version in DtlsVersion::ALL {
            for cipher in CipherSuite::ALL {
                case(*provider, version, cipher);
            }
        }
    }
}

fn sealed(sealer: &mut Sealer, plaintext: &[u8]) -> Vec<u8> {
    let mut record = vec![0; plaintext.len() + sealer.overhead()];
    sealer.seal_from(DATA, plaintext, &mut record).unwrap();
    record
}

/// The opener before anything came, with room in its window for `SEQUENCE` and some before it.
fn opener(provider: &'static dyn Provider, version: DtlsVersion, cipher: CipherSuite) -> Opener {
    Opener::with_provider(provider, &keys(version, cipher, EPOCH, SEQUENCE)).unwrap()
}

fn one(
    provider: &'static dyn Provider,
    version: DtlsVersion,
    cipher: CipherSuite,
    plaintext: &[u8],
) -> Vec<u8> {
    let keys = keys(version, cipher, EPOCH, SEQUENCE);
    sealed(
        &mut Sealer::with_provider(provider, &keys).unwrap(),
        plaintext,
    )
}

/// Must be dropped, without a trace.
fn dropped(opener: &mut Opener, datagram: &[u8], plaintext: &[u8]) -> (usize, Discard) {
    let before = (opener.epoch(), opener.previous_epoch(), opener.sequence());
    let mut copy = datagram.to_vec();
    let step = opener.open_next(&mut copy);
    let discard = step.opened.unwrap_err();
    let after = (opener.epoch(), opener.previous_epoch(), opener.sequence());
    assert_eq!(before, after, "{discard}");
    assert!(
        !copy
            .windows(plaintext.len())
            .any(|window| window == plaintext),
        "{discard}: plaintext left behind"
    );
    (step.len, discard)
}

#[test]
fn every_flipped_bit_is_dropped_as_its_kind() {
    let plaintext = b"attack at dawn";
    each(|provider, version, cipher| {
        let good = one(provider, version, cipher, plaintext);
        let mut opener = opener(provider, version, cipher);
        for bit in 0..good.len() * 8 {
            let mut record = good.clone();
            let byte = bit / 8;
            record[byte] ^= 1 << (bit % 8);
            let (len, discard) = dropped(&mut opener, &record, plaintext);
            let kinds: &[DiscardKind] = match (version, byte) {
                // The type is vouched for by the tag.
                (Dtls12, 0) => &[DiscardKind::Unverified],
                (Dtls12, 1 | 2) => &[DiscardKind::Malformed],
                (Dtls12, 3 | 4) => &[DiscardKind::WrongEpoch],
                // Another number: left of the window, seen, or to the right, where the tag decides.
                (Dtls12, 5..=10) => &[
                    DiscardKind::TooOld,
                    DiscardKind::Replayed,
                    DiscardKind::Unverified,
                ],
                (Dtls12, 11 | 12) => &[DiscardKind::Malformed, DiscardKind::Unverified],
                (Dtls13, 0) if bit % 8 < 2 => &[DiscardKind::WrongEpoch],
                // A short number or no length: other bytes take their place, and the tag or the window says no.
                (Dtls13, 0) if bit % 8 < 4 => &[
                    DiscardKind::Malformed,
                    DiscardKind::Unverified,
                    DiscardKind::TooOld,
                    DiscardKind::Replayed,
                ],
                (Dtls13, 0) => &[DiscardKind::Malformed],
                (Dtls13, 1 | 2) => &[
                    DiscardKind::TooOld,
                    DiscardKind::Replayed,
                    DiscardKind::Unverified,
                ],
                (Dtls13, 3 | 4) => &[DiscardKind::Malformed, DiscardKind::Unverified],
                // The ciphertext's start decides what the sequence number reads as.
                (Dtls13, 5..21) => &[
                    DiscardKind::TooOld,
                    DiscardKind::Replayed,
                    DiscardKind::Unverified,
                ],
                _ => &[DiscardKind::Unverified],
            };
            assert!(
                kinds.contains(&discard.kind()),
                "bit {bit} of {version} {cipher}: {discard}"
            );
            assert!(len > 0 && len <= record.len());
        }
        // The association lives on.
        let mut record = good;
        let opened = opener.open_next(&mut record).opened.unwrap();
        assert_eq!(&record[opened.plaintext], plaintext);
    });
}

#[test]
fn every_cut_is_dropped() {
    let plaintext = b"attack at dawn";
    each(|provider, version, cipher| {
        let good = one(provider, version, cipher, plaintext);
        let header_len = if version == Dtls12 { 13 } else { 5 };
        let body_len = good.len() - header_len;
        let min = body_len - plaintext.len();
        let mut opener = opener(provider, version, cipher);
        for len in 1..good.len() {
            let (taken, discard) = dropped(&mut opener, &good[..len], plaintext);
            let expected = match len.checked_sub(header_len) {
                None => Malformed::Header,
                Some(left) => Malformed::Cut {
                    length: body_len,
                    left,
                },
            };
            assert_eq!((taken, discard), (len, Discard::Malformed(expected)));

            // The same bytes with a header that fits their number.
            if let Some(length) = len.checked_sub(header_len) {
                let mut record = good[..len].to_vec();
                record[header_len - 2..header_len].copy_from_slice(&(length as u16).to_be_bytes());
                let (taken, discard) = dropped(&mut opener, &record, plaintext);
                assert_eq!(taken, len);
                if length < min {
                    let expected = Malformed::TooShort { length, min };
                    assert_eq!(discard, Discard::Malformed(expected));
                } else {
                    // The tag is over the length. (Cut short, DTLS 1.3's sample is still whole.)
                    assert_eq!(discard.kind(), DiscardKind::Unverified, "{discard}");
                }
            }
        }
        assert_eq!(
            dropped(&mut opener, &[], b"x"),
            (0, Discard::Malformed(Malformed::Header))
        );
    });
}

#[test]
fn every_length_field_gets_its_answer() {
    each(|provider, version, cipher| {
        let mut opener = opener(provider, version, cipher);
        let mut datagram = one(provider, version, cipher, b"");
        let header_len = if version == Dtls12 { 13 } else { 5 };
        let min = datagram.len() - header_len;
        datagram.resize(header_len + 20_000, 0);
        for length in (0..=20_001_usize).filter(|length| {
            // Those in between only now and then: each is an AEAD operation.
            *length <= min + 20 || *length >= min + 16_380 || length % 500 == 0
        }) {
            datagram[header_len - 2..header_len].copy_from_slice(&(length as u16).to_be_bytes());
            let step = opener.open_next(&mut datagram.clone());
            let (max, left) = (min + 16384, 20_000);
            let malformed = match length {
                _ if length > left => Some(Malformed::Cut { length, left }),
                _ if length > max => Some(Malformed::TooLong { length, max }),
                _ if length < min => Some(Malformed::TooShort { length, min }),
                _ => None,
            };
            match malformed {
                Some(malformed) => {
                    assert_eq!(step.opened, Err(Discard::Malformed(malformed)));
                }
                None if length == min => {
                    assert!(step.opened.is_ok());
                    opener = self::opener(provider, version, cipher);
                }
                None => assert!(matches!(step.opened, Err(Discard::Unverified { .. }))),
            }
            let taken = if length > left {
                datagram.len()
            } else {
                header_len + length
            };
            assert_eq!(step.len, taken);
        }
    });
}

#[test]
fn other_epochs_are_dropped_and_the_record_behind_them_is_found() {
    each(|provider, version, cipher| {
        let good = one(provider, version, cipher, b"good");
        for epoch in (0..40).filter(|epoch| *epoch != EPOCH) {
            let mut opener = opener(provider, version, cipher);
            let other = keys(version, cipher, epoch, SEQUENCE);
            let other = sealed(
                &mut Sealer::with_provider(provider, &other).unwrap(),
                b"other",
            );
            let mut datagram = [other.clone(), good.clone()].concat();
            let step = opener.open_next(&mut datagram);
            let discard = step.opened.unwrap_err();
            match version {
                Dtls12 => assert_eq!(discard, Discard::WrongEpoch { epoch }),
                // Only the last two bits travel; where those are the same, the tag decides, or the number read from them.
                Dtls13 if epoch % 4 != EPOCH % 4 => {
                    assert_eq!(discard, Discard::WrongEpoch { epoch: epoch % 4 });
                }
                Dtls13 => assert_ne!(discard.kind(), DiscardKind::Malformed),
            }
            assert_eq!(step.len, other.len());
            let rest = &mut datagram[step.len..];
            let opened = opener.open_next(rest).opened.unwrap();
            assert_eq!(&rest[opened.plaintext], b"good");
        }
    });
}

#[test]
fn unprotected_records_are_dropped_and_the_record_behind_them_is_found() {
    each(|provider, version, cipher| {
        let mut opener = opener(provider, version, cipher);
        let good = one(provider, version, cipher, b"good");
        // A ServerHello's retransmission and an unprotected alert: anybody can forge those.
        for content_type in [21, 22] {
            let plain = [content_type, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 9, 0, 2, 1, 0];
            let datagram = [&plain[..], &good].concat();
            let (taken, discard) = dropped(&mut opener, &datagram, b"good");
            assert_eq!(
                (taken, discard),
                (plain.len(), Discard::WrongEpoch { epoch: 0 })
            );
        }
    });
}

#[test]
fn replayed_and_late_records_are_told_apart() {
    each(|provider, version, cipher| {
        let keys = keys(version, cipher, EPOCH, 0);
        let mut sealer = Sealer::with_provider(provider, &keys).unwrap();
        let mut opener = Opener::with_provider(provider, &keys).unwrap();
        let records: Vec<Vec<u8>> = (0..100)
            .map(|i| sealed(&mut sealer, format!("record {i:3}").as_bytes()))
            .collect();
        // 0 first, then 99: 36 to 98 may still come, 1 to 35 are too late.
        for sequence in [0, 99] {
            let mut record = records[sequence].clone();
            let opened = opener.open_next(&mut record).opened.unwrap();
            assert_eq!(opened.sequence, sequence as u64);
        }
        let (epoch, plaintext) = (EPOCH, b"record");
        for (sequence, record) in records.iter().enumerate() {
            let number = sequence as u64;
            match sequence {
                99 => {
                    let (_, discard) = dropped(&mut opener, record, plaintext);
                    let sequence = number;
                    assert_eq!(discard, Discard::Replayed { epoch, sequence });
                }
                0..36 => {
                    let (_, discard) = dropped(&mut opener, record, plaintext);
                    let sequence = number;
                    assert_eq!(discard, Discard::TooOld { epoch, sequence });
                }
                _ => {
                    let opened = opener.open_next(&mut record.clone()).opened.unwrap();
                    assert_eq!(opened.sequence, number);
                    let (_, discard) = dropped(&mut opener, record, plaintext);
                    let sequence = number;
                    assert_eq!(discard, Discard::Replayed { epoch, sequence });
                }
            }
        }
    });
}

/// The fault of the first AF_KTLS: one forged record with a high number must not blind the window.
#[test]
fn a_forged_high_number_does_not_move_the_window() {
    for provider in provider::all() {
        for cipher in CipherSuite::ALL {
            let keys = keys(Dtls12, cipher, 1, 0);
            let mut sealer = Sealer::with_provider(*provider, &keys).unwrap();
            let mut opener = Opener::with_provider(*provider, &keys).unwrap();
            let first = sealed(&mut sealer, b"genuine");
            for high in [64, 1 << 32, SEQUENCE_END] {
                let mut forged = first.clone();
                forged[5..11].copy_from_slice(&u64::to_be_bytes(high)[2..]);
                let (_, discard) = dropped(&mut opener, &forged, b"genuine");
                let expected = Discard::Unverified {
                    epoch: 1,
                    sequence: high,
                };
                assert_eq!(discard, expected);
            }
            let mut record = first;
            let opened = opener.open_next(&mut record).opened.unwrap();
            assert_eq!(opened.sequence, 0);
        }
    }
}

#[test]
fn a_dtls13_record_of_zeros_only_has_no_type() {
    for provider in provider::all() {
        for cipher in CipherSuite::ALL {
            let keys = keys(Dtls13, cipher, EPOCH, SEQUENCE);
            for (first_byte, inner_len) in [(0x2D, 1), (0x2D, 100), (0x29, 5), (0x25, 5), (0x21, 5)]
            {
                // Sealed by hand, since the sealer refuses to; in every form of the header.
                let sequence_len = if first_byte & 8 != 0 { 2 } else { 1 };
                let mut header = vec![first_byte];
                header.extend(&SEQUENCE.to_be_bytes()[8 - sequence_len..]);
                if first_byte & 4 != 0 {
                    header.extend((inner_len as u16 + 16).to_be_bytes());
                }
                let mut nonce = [0x17; 12];
                for (byte, number) in nonce[4..].iter_mut().zip(SEQUENCE.to_be_bytes()) {
                    *byte ^= number;
                }
                for content_type in [0, 23] {
                    let mut body = vec![0; inner_len];
                    body[0] = content_type;
                    let mut tag = [0; 16];
                    let aead = provider.aead(cipher, keys.key()).unwrap();
                    aead.seal_in_place(&nonce, &header, &mut body, &mut tag)
                        .unwrap();
                    body.extend(tag);
                    let mask = provider.sequence_mask(cipher, keys.key()).unwrap();
                    let mask = mask.mask(body.first_chunk().unwrap()).unwrap();
                    let mut record = header.clone();
                    for (byte, mask) in record[1..=sequence_len].iter_mut().zip(mask) {
                        *byte ^= mask;
                    }
                    record.extend(body);
                    let mut opener = Opener::with_provider(*provider, &keys).unwrap();
                    let step = opener.open_next(&mut record);
                    assert_eq!(step.len, record.len());
                    if content_type == 0 {
                        let malformed = Malformed::NoContentType;
                        assert_eq!(step.opened, Err(Discard::Malformed(malformed)));
                    } else {
                        let opened = step.opened.unwrap();
                        assert_eq!((opened.content_type, opened.plaintext.len()), (DATA, 0));
                    }
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_sealed_counts_for_nothing() {
    each(|provider, version, cipher| {
        let keys = keys(version, cipher, EPOCH, SEQUENCE);
        let mut sealer = Sealer::with_provider(provider, &keys).unwrap();
        let overhead = sealer.overhead();
        let expected_overhead = match (version, cipher) {
            (Dtls12, CipherSuite::ChaCha20Poly1305) => 29,
            (Dtls12, _) => 37,
            (Dtls13, _) => 22,
        };
        assert_eq!(overhead, expected_overhead);
        for found in 0..overhead {
            let error = sealer.seal_in_place(DATA, &mut vec![0; found]);
            let expected = overhead;
            assert_eq!(error, Err(Error::OutputBuffer { expected, found }));
        }
        let too_long = vec![0; 16385];
        let error = sealer.seal_from(DATA, &too_long, &mut vec![0; 16385 + overhead]);
        let (length, max) = (16385, 16384);
        assert_eq!(error, Err(Error::PlaintextTooLong { length, max }));
        for room in [0, overhead - 1, overhead + 1] {
            let error = sealer.seal_from(DATA, b"", &mut vec![0; room]);
            let (expected, found) = (overhead, room);
            assert_eq!(error, Err(Error::OutputBuffer { expected, found }));
        }
        let mut record = vec![0; overhead];
        let zero = sealer.seal_in_place(ContentType(0), &mut record);
        match version {
            Dtls12 => assert_eq!(zero, Ok(())),
            Dtls13 => {
                assert!(matches!(zero, Err(Error::Inexpressible { .. })));
                assert_eq!(sealer.sequence(), SEQUENCE);
            }
        }
    });
}
