//! What must be refused, and with which error: every changed bit, every cut, every length, on both providers.
//!
//! "Exhaustively" is meant: the records are small enough to try each position.

use uktls_record::error::{BadRecord, Fault, errno};
use uktls_record::provider::{self, Provider};
use uktls_record::{CipherSuite, ContentType, CryptoInfo, Error, Opener, ProtocolVersion, Sealer};

use ProtocolVersion::{Tls12, Tls13};

const SEQUENCE: u64 = 7;

/// Every provider, version and cipher.
fn each(mut case: impl FnMut(&'static dyn Provider, CryptoInfo)) {
    for provider in provider::all() {
        for version in [Tls12, Tls13] {
            for cipher in CipherSuite::ALL {
                case(*provider, keys(version, cipher, SEQUENCE));
            }
        }
    }
}

fn keys(version: ProtocolVersion, cipher: CipherSuite, rec_seq: u64) -> CryptoInfo {
    let key = vec![0x42; cipher.key_len()];
    CryptoInfo::from_key_and_iv(version, cipher, &key, &[0x17; 12], rec_seq).unwrap()
}

fn sealed(sealer: &mut Sealer, plaintext: &[u8]) -> Vec<u8> {
    let mut record = vec![0; plaintext.len() + sealer.overhead()];
    sealer
        .seal_from(ContentType::APPLICATION_DATA, plaintext, &mut record)
        .unwrap();
    record
}

/// Opens by both ways, expects the same error from both, and that nothing counted and no plaintext is left anywhere.
fn refused(opener: &mut Opener, record: &[u8], plaintext: &[u8]) -> Error {
    let mut copy = record.to_vec();
    let error = opener.open_in_place(&mut copy).unwrap_err();
    let mut out = vec![0xEE; record.len()];
    assert_eq!(opener.open_separate(record, &mut out).unwrap_err(), error);
    assert_eq!(opener.sequence(), SEQUENCE);
    for bytes in [&copy, &out] {
        assert!(
            !bytes
                .windows(plaintext.len())
                .any(|window| window == plaintext),
            "{error}: plaintext left behind"
        );
    }
    error
}

/// The error for a header whose length field says `length` in a record that has `actual` bytes.
fn length_error(opener: &Opener, length: usize, actual: usize) -> Error {
    let min = opener.prefix_len() - 5 + 16 + usize::from(opener.version() == Tls13);
    let max = min + 16384;
    match length {
        _ if length > max => Error::TooLong { length, max },
        _ if length < min => Error::TooShort { length, min },
        _ => Error::RecordBuffer {
            expected: length + 5,
            found: actual,
        },
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let plaintext = b"attack at dawn";
    each(|provider, keys| {
        let good = sealed(
            &mut Sealer::with_provider(provider, &keys).unwrap(),
            plaintext,
        );
        let mut opener = Opener::with_provider(provider, &keys).unwrap();
        for bit in 0..good.len() * 8 {
            let mut record = good.clone();
            record[bit / 8] ^= 1 << (bit % 8);
            let error = refused(&mut opener, &record, plaintext);
            let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
            let expected = match bit / 8 {
                0 if keys.version() == Tls13 => Error::BadRecord {
                    sequence: SEQUENCE,
                    reason: BadRecord::OuterType(record[0]),
                },
                1 | 2 => Error::WrongVersion {
                    version: keys.version(),
                    found: u16::from_be_bytes([record[1], record[2]]),
                },
                3 | 4 => length_error(&opener, length, record.len()),
                _ => Error::BadRecord {
                    sequence: SEQUENCE,
                    reason: BadRecord::Tag,
                },
            };
            assert_eq!(error, expected, "bit {bit} of a {} record", keys.version());
        }
        // The opener is none the worse for it.
        let mut record = good;
        let opened = opener.open_in_place(&mut record).unwrap();
        assert_eq!(&record[opened.plaintext], plaintext);
    });
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let plaintext = b"attack at dawn";
    each(|provider, keys| {
        let good = sealed(
            &mut Sealer::with_provider(provider, &keys).unwrap(),
            plaintext,
        );
        let mut opener = Opener::with_provider(provider, &keys).unwrap();
        for len in (0..good.len() + 20).filter(|len| *len != good.len()) {
            let mut record = good.clone();
            record.resize(len, 0);
            let error = refused(&mut opener, &record, plaintext);
            let expected = if len < 5 { 5 } else { good.len() };
            assert_eq!(
                error,
                Error::RecordBuffer {
                    expected,
                    found: len
                }
            );
            assert_eq!(
                (error.fault(), error.errno()),
                (Fault::Caller, errno::EINVAL)
            );

            // The same bytes with a header that fits their number: now the peer is to blame.
            if len >= 5 {
                let length = len - 5;
                record[3..5].copy_from_slice(&(length as u16).to_be_bytes());
                let error = refused(&mut opener, &record, plaintext);
                let expected = match length_error(&opener, length, len) {
                    Error::RecordBuffer { .. } => Error::BadRecord {
                        sequence: SEQUENCE,
                        reason: BadRecord::Tag,
                    },
                    too_short => too_short,
                };
                assert_eq!(error, expected, "{len} bytes");
                assert_eq!(
                    (error.fault(), error.errno()),
                    (Fault::Peer, errno::EBADMSG)
                );
            }
        }
    });
}

#[test]
fn every_length_field_gets_the_right_error() {
    each(|provider, keys| {
        let mut opener = Opener::with_provider(provider, &keys).unwrap();
        for length in 0..=u16::MAX {
            let [high, low] = length.to_be_bytes();
            let header = [23, 3, 3, high, low];
            // The record is not there, so where the length is acceptable that is what is said.
            let expected = length_error(&opener, usize::from(length), 5);
            match opener.parse_header(&header) {
                Ok(header) => assert_eq!(header.record_len(), usize::from(length) + 5),
                Err(error) => assert_eq!(error, expected),
            }
            if length != 0 {
                assert_eq!(
                    opener.open_in_place(&mut header.to_vec()).unwrap_err(),
                    expected
                );
            }
        }
        let max = opener
            .parse_header(&[23, 3, 3, 0x40, 16])
            .map(|header| header.length);
        assert_eq!(
            max,
            Ok(16400),
            "2^14 plaintext bytes fit with every suite's tag"
        );
    });
}

#[test]
fn a_record_opens_only_in_its_place() {
    each(|provider, keys| {
        let mut sealer = Sealer::with_provider(provider, &keys).unwrap();
        let first = sealed(&mut sealer, b"first");
        let second = sealed(&mut sealer, b"second");
        let mut opener = Opener::with_provider(provider, &keys).unwrap();
        // Swapped or lost: the second record comes while the first is expected.
        let early = refused(&mut opener, &second, b"second");
        assert_eq!(
            early,
            Error::BadRecord {
                sequence: SEQUENCE,
                reason: BadRecord::Tag
            }
        );
        opener.open_in_place(&mut first.clone()).unwrap();
        // Replayed.
        let again = opener.open_in_place(&mut first.clone()).unwrap_err();
        assert_eq!(
            again,
            Error::BadRecord {
                sequence: SEQUENCE + 1,
                reason: BadRecord::Tag
            }
        );
        opener.open_in_place(&mut second.clone()).unwrap();
        assert_eq!(opener.sequence(), SEQUENCE + 2);
    });
}

#[test]
fn a_tls13_record_of_zeros_only_has_no_type() {
    for provider in provider::all() {
        for cipher in CipherSuite::ALL {
            for inner_len in [1, 2, 100, 16385] {
                let keys = keys(Tls13, cipher, SEQUENCE);
                // Sealed by hand, since the sealer refuses to.
                let mut record = vec![0; 5 + inner_len + 16];
                record[..3].copy_from_slice(&[23, 3, 3]);
                record[3..5].copy_from_slice(&((inner_len + 16) as u16).to_be_bytes());
                let (header, body) = record.split_at_mut(5);
                let mut nonce: [u8; 12] = [0x17; 12];
                nonce[11] ^= SEQUENCE as u8;
                let (inner, tag) = body.split_last_chunk_mut().unwrap();
                provider
                    .aead(cipher, keys.key())
                    .unwrap()
                    .seal_in_place(&nonce, header, inner, tag)
                    .unwrap();
                let mut opener = Opener::with_provider(*provider, &keys).unwrap();
                let error = refused(&mut opener, &record, &[0xAA]);
                assert_eq!(
                    error,
                    Error::BadRecord {
                        sequence: SEQUENCE,
                        reason: BadRecord::NoContentType
                    }
                );
                assert_eq!(
                    (error.fault(), error.errno_name()),
                    (Fault::Peer, "EBADMSG")
                );
            }
        }
    }
}

#[test]
fn the_unencrypted_change_cipher_spec_is_shown_but_not_opened() {
    let mut opener = Opener::new(&keys(Tls13, CipherSuite::Aes128Gcm, SEQUENCE)).unwrap();
    let ccs = [20, 3, 3, 0, 1, 1];
    let header = opener.parse_header(&[20, 3, 3, 0, 1]).unwrap();
    assert!(header.is_compatibility_ccs(opener.version()));
    let error = refused(&mut opener, &ccs, b"plaintext");
    assert_eq!(
        error,
        Error::BadRecord {
            sequence: SEQUENCE,
            reason: BadRecord::OuterType(20)
        }
    );
}

#[test]
fn what_cannot_be_sealed_counts_for_nothing() {
    each(|provider, keys| {
        let mut sealer = Sealer::with_provider(provider, &keys).unwrap();
        let overhead = sealer.overhead();
        let data = ContentType::APPLICATION_DATA;

        for found in 0..overhead {
            let error = sealer.seal_in_place(data, &mut vec![0; found]).unwrap_err();
            assert_eq!(
                error,
                Error::OutputBuffer {
                    expected: overhead,
                    found
                }
            );
        }
        let too_long = Error::PlaintextTooLong {
            length: 16385,
            max: 16384,
        };
        assert_eq!(
            sealer
                .seal_in_place(data, &mut vec![0; 16385 + overhead])
                .unwrap_err(),
            too_long
        );
        assert_eq!(
            sealer
                .seal_from(data, &[0; 16385], &mut vec![0; 16385 + overhead])
                .unwrap_err(),
            too_long
        );
        assert_eq!(too_long.errno_name(), "EMSGSIZE");
        for found in [9 + overhead, 11 + overhead] {
            let error = sealer
                .seal_from(data, &[0; 10], &mut vec![0; found])
                .unwrap_err();
            assert_eq!(
                error,
                Error::OutputBuffer {
                    expected: 10 + overhead,
                    found
                }
            );
        }
        assert_eq!(sealer.sequence(), SEQUENCE);

        // The largest record that is allowed, and the smallest.
        for len in [0, 1, 16384] {
            let plaintext = vec![0x55; len];
            let mut record = sealed(&mut sealer, &plaintext);
            let mut opener = Opener::with_provider(provider, &keys).unwrap();
            if len == 0 {
                let opened = opener.open_in_place(&mut record).unwrap();
                assert!(opened.plaintext.is_empty());
            }
        }
        assert_eq!(sealer.sequence(), SEQUENCE + 3);
    });
}

#[test]
fn an_output_too_short_leaves_the_record_to_be_opened_again() {
    each(|provider, keys| {
        let record = sealed(
            &mut Sealer::with_provider(provider, &keys).unwrap(),
            &[0x55; 100],
        );
        let mut opener = Opener::with_provider(provider, &keys).unwrap();
        let expected = record.len() - opener.prefix_len() - 16;
        for found in 0..expected {
            let error = opener
                .open_separate(&record, &mut vec![0; found])
                .unwrap_err();
            assert_eq!(error, Error::OutputBuffer { expected, found });
        }
        let mut out = vec![0; expected];
        let opened = opener.open_separate(&record, &mut out).unwrap();
        assert_eq!(out[opened.plaintext], [0x55; 100]);
    });
}

#[test]
fn versions_differ_in_what_they_can_say() {
    let mut tls12 = Sealer::new(&keys(Tls12, CipherSuite::Aes128Gcm, SEQUENCE)).unwrap();
    let mut tls13 = Sealer::new(&keys(Tls13, CipherSuite::Aes128Gcm, SEQUENCE)).unwrap();
    let error = tls12
        .seal_padded_in_place(ContentType::ALERT, &mut [0; 64], 1)
        .unwrap_err();
    assert_eq!(
        error,
        Error::Inexpressible {
            version: Tls12,
            what: "padding"
        }
    );
    assert_eq!(error.errno_name(), "EINVAL");
    let error = tls13
        .seal_in_place(ContentType(0), &mut [0; 64])
        .unwrap_err();
    assert_eq!(
        error,
        Error::Inexpressible {
            version: Tls13,
            what: "content type 0"
        }
    );
    // TLS 1.2 carries any type; TLS 1.3 any but 0.
    for content_type in 0..=255 {
        let mut record = [0; 64];
        tls12
            .seal_in_place(ContentType(content_type), &mut record)
            .unwrap();
        assert_eq!(record[0], content_type);
        if content_type != 0 {
            tls13
                .seal_in_place(ContentType(content_type), &mut record)
                .unwrap();
            assert_eq!(record[0], 23);
        }
    }
}
