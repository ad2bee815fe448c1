//! Counters: where they end, how they move with batches, and what new keys do to them.

use uktls_record::provider;
use uktls_record::suite::{AES_GCM_CONFIDENTIALITY_LIMIT, INTEGRITY_LIMIT};
use uktls_record::{CipherSuite, ContentType, CryptoInfo, Error, Opener, ProtocolVersion, Sealer};

use CipherSuite::{Aes128Gcm, Aes256Gcm, ChaCha20Poly1305};
use ProtocolVersion::{Tls12, Tls13};

const DATA: ContentType = ContentType::APPLICATION_DATA;

fn keys(version: ProtocolVersion, cipher: CipherSuite, key_byte: u8, rec_seq: u64) -> CryptoInfo {
    let (salt, iv) = ([0x17; 12], [0x29; 12]);
    let key = vec![key_byte; cipher.key_len()];
    CryptoInfo::new(
        version,
        cipher,
        &key,
        &salt[..cipher.salt_len()],
        &iv[..cipher.iv_len()],
        rec_seq,
    )
    .unwrap()
}

fn each(mut case: impl FnMut(ProtocolVersion, CipherSuite)) {
    for version in [Tls12, Tls13] {
        for cipher in CipherSuite::ALL {
            case(version, cipher);
        }
    }
}

fn seal(sealer: &mut Sealer, plaintext: &[u8]) -> Result<Vec<u8>, Error> {
    let mut record = vec![0; plaintext.len() + sealer.overhead()];
    sealer.seal_from(DATA, plaintext, &mut record)?;
    Ok(record)
}

fn open(opener: &mut Opener, record: &[u8]) -> Result<Vec<u8>, Error> {
    let mut record = record.to_vec();
    let opened = opener.open_in_place(&mut record)?;
    Ok(record[opened.plaintext].to_vec())
}

#[test]
fn sequence_numbers_end_before_they_repeat() {
    each(|version, cipher| {
        let keys = keys(version, cipher, 1, u64::MAX - 2);
        let mut sealer = Sealer::new(&keys).unwrap();
        let mut opener = Opener::new(&keys).unwrap();
        for left in [2, 1] {
            assert_eq!(sealer.records_left(), left);
            let record = seal(&mut sealer, b"near the end").unwrap();
            assert_eq!(open(&mut opener, &record).unwrap(), b"near the end");
        }
        assert_eq!((sealer.sequence(), sealer.records_left()), (u64::MAX, 0));

        let end = Error::LimitReached {
            sequence: u64::MAX,
            sealed: 2,
        };
        assert_eq!(end.errno_name(), "EBADMSG");
        for _ in 0..3 {
            assert_eq!(seal(&mut sealer, b"over"), Err(end.clone()));
            let mut batch = sealer.batch();
            let mut record = [0; 64];
            assert_eq!(batch.seal_in_place(DATA, &mut record), Err(end.clone()));
            batch.commit();
        }
        // A record with number 2^64-1 is not accepted either, however good: `MAX` is an end mark on both sides.
        let some_record = seal(
            &mut Sealer::new(&self::keys(version, cipher, 1, 0)).unwrap(),
            b"x",
        )
        .unwrap();
        assert_eq!(open(&mut opener, &some_record), Err(end));
        // Keys exported at the end are of no use elsewhere.
        assert_eq!(
            Sealer::new(&sealer.crypto_info()).unwrap().records_left(),
            0
        );
    });
}

#[test]
fn limits_are_the_rfcs() {
    each(|version, cipher| {
        let sealer = Sealer::new(&keys(version, cipher, 1, 0)).unwrap();
        let expected = if cipher == ChaCha20Poly1305 {
            u64::MAX
        } else {
            AES_GCM_CONFIDENTIALITY_LIMIT
        };
        assert_eq!(sealer.records_left(), expected);
        assert_eq!(cipher.integrity_limit(), INTEGRITY_LIMIT);
        // What came before under other hands is not counted, whatever number it is at.
        let later = Sealer::new(&keys(version, cipher, 1, 1 << 40)).unwrap();
        assert_eq!(later.records_left(), expected.min(u64::MAX - (1 << 40)));
    });
}

#[test]
fn a_used_up_key_seals_no_more_until_the_next() {
    let mut sealer = Sealer::new(&keys(Tls13, Aes128Gcm, 1, 100)).unwrap();
    sealer.lower_limit(3);
    sealer.lower_limit(u64::MAX);
    for left in [3, 2, 1] {
        assert_eq!(sealer.records_left(), left);
        seal(&mut sealer, b"x").unwrap();
    }
    assert_eq!(
        seal(&mut sealer, b"x"),
        Err(Error::LimitReached {
            sequence: 103,
            sealed: 3
        })
    );
    sealer.rekey(&keys(Tls13, Aes128Gcm, 2, 0)).unwrap();
    assert_eq!(
        (sealer.sequence(), sealer.records_left()),
        (0, AES_GCM_CONFIDENTIALITY_LIMIT)
    );
    seal(&mut sealer, b"x").unwrap();
}

#[test]
fn a_batch_counts_when_committed() {
    each(|version, cipher| {
        for provider in provider::all() {
            let keys = keys(version, cipher, 1, 5);
            let mut sealer = Sealer::with_provider(*provider, &keys).unwrap();
            let mut one_by_one = Sealer::with_provider(*provider, &keys).unwrap();
            let overhead = sealer.overhead();
            let prefix = sealer.prefix_len();

            // Sealed and dropped: as if it had never been.
            let mut record = vec![0; overhead + 8];
            let mut batch = sealer.batch();
            for _ in 0..4 {
                batch.seal_from(DATA, b"unseen!!", &mut record).unwrap();
            }
            assert_eq!(batch.records(), 4);
            drop(batch);
            assert_eq!(sealer.sequence(), 5);
            assert_eq!(sealer.crypto_info().iv(), keys.iv());

            // Sealed and committed, both ways mixed, one refusal in between: what a sealer alone would have made.
            let mut batch = sealer.batch();
            let mut records = Vec::new();
            for n in 0..4_u8 {
                let plaintext = [n; 8];
                let mut record = vec![0; overhead + 8];
                if n % 2 == 0 {
                    batch.seal_from(DATA, &plaintext, &mut record).unwrap();
                } else {
                    record[prefix..][..8].copy_from_slice(&plaintext);
                    batch.seal_in_place(DATA, &mut record).unwrap();
                }
                records.push(record);
                batch.seal_in_place(DATA, &mut [0; 3]).unwrap_err();
            }
            batch.commit();
            assert_eq!(sealer.sequence(), 9);
            let mut opener = Opener::with_provider(*provider, &keys).unwrap();
            for (n, record) in records.iter().enumerate() {
                assert_eq!(*record, seal(&mut one_by_one, &[n as u8; 8]).unwrap());
                assert_eq!(open(&mut opener, record).unwrap(), [n as u8; 8]);
            }
            assert_eq!(seal(&mut sealer, b"next"), seal(&mut one_by_one, b"next"));
        }
    });
}

#[test]
fn a_batch_stops_at_the_limit() {
    let mut sealer = Sealer::new(&keys(Tls13, Aes256Gcm, 1, 5)).unwrap();
    sealer.lower_limit(2);
    let mut record = vec![0; sealer.overhead()];
    let mut batch = sealer.batch();
    batch.seal_in_place(DATA, &mut record).unwrap();
    batch.seal_in_place(DATA, &mut record).unwrap();
    let error = batch.seal_in_place(DATA, &mut record).unwrap_err();
    assert_eq!(
        error,
        Error::LimitReached {
            sequence: 7,
            sealed: 2
        }
    );
    batch.commit();
    assert_eq!((sealer.sequence(), sealer.records_left()), (7, 0));
}

#[test]
fn exported_keys_continue_where_they_were() {
    each(|version, cipher| {
        let start = keys(version, cipher, 1, 5);
        let mut sealer = Sealer::new(&start).unwrap();
        let mut opener = Opener::new(&start).unwrap();
        for _ in 0..3 {
            let record = seal(&mut sealer, b"x").unwrap();
            open(&mut opener, &record).unwrap();
        }
        assert_eq!(
            *sealer.crypto_info().to_bytes(),
            *opener.crypto_info().to_bytes()
        );
        assert_eq!(sealer.crypto_info().rec_seq(), 8);
        let moved = sealer.crypto_info().iv() != start.iv();
        assert_eq!(
            moved,
            cipher.explicit_nonce_len(version) > 0,
            "only an explicit nonce counts"
        );

        let bytes = sealer.crypto_info().to_bytes();
        let mut continued = Sealer::new(&CryptoInfo::from_bytes(&bytes).unwrap()).unwrap();
        let record = seal(&mut continued, b"next").unwrap();
        assert_eq!(seal(&mut sealer, b"next"), Ok(record.clone()));
        assert_eq!(open(&mut opener, &record).unwrap(), b"next");
    });
}

#[test]
fn the_explicit_nonce_counts_apart_and_may_wrap() {
    let keys = CryptoInfo::tls12_gcm(Aes128Gcm, &[1; 16], &[2; 4], u64::MAX, 40).unwrap();
    let mut sealer = Sealer::new(&keys).unwrap();
    let mut opener = Opener::new(&keys).unwrap();
    for explicit in [u64::MAX, 0, 1] {
        let record = seal(&mut sealer, b"x").unwrap();
        assert_eq!(record[5..13], explicit.to_be_bytes());
        assert_eq!(open(&mut opener, &record).unwrap(), b"x");
    }
    assert_eq!(opener.sequence(), 43);

    // A receiver takes the explicit part from the wire, wherever the sender starts or jumps to.
    let elsewhere = CryptoInfo::tls12_gcm(Aes128Gcm, &[1; 16], &[2; 4], 0x1234_5678, 43).unwrap();
    let record = seal(&mut Sealer::new(&elsewhere).unwrap(), b"y").unwrap();
    assert_eq!(open(&mut opener, &record).unwrap(), b"y");
}

#[test]
fn rekey_is_for_tls13_and_the_same_cipher() {
    for cipher in CipherSuite::ALL {
        let old = keys(Tls13, cipher, 1, 5);
        let new = keys(Tls13, cipher, 2, 0);
        let mut sealer = Sealer::new(&old).unwrap();
        let mut opener = Opener::new(&old).unwrap();
        let last_old = seal(&mut sealer, b"old").unwrap();
        sealer.rekey(&new).unwrap();
        let first_new = seal(&mut sealer, b"new").unwrap();
        assert_eq!(sealer.sequence(), 1);

        assert_eq!(open(&mut opener, &last_old).unwrap(), b"old");
        assert!(
            open(&mut opener, &first_new).is_err(),
            "not before the opener has the new keys"
        );
        opener.rekey(&new).unwrap();
        assert_eq!(open(&mut opener, &first_new).unwrap(), b"new");
        assert_eq!(opener.sequence(), 1);

        // Refused keys leave the old ones in force.
        for other in CipherSuite::ALL
            .into_iter()
            .filter(|other| *other != cipher)
        {
            let error = sealer.rekey(&keys(Tls13, other, 3, 0)).unwrap_err();
            let expected = Error::RekeyMismatch {
                version: Tls13,
                cipher,
                found_version: Tls13,
                found_cipher: other,
            };
            assert_eq!((&error, error.errno_name()), (&expected, "EINVAL"));
            assert_eq!(
                opener.rekey(&keys(Tls13, other, 3, 0)).unwrap_err(),
                expected
            );
        }
        sealer.rekey(&keys(Tls12, cipher, 3, 0)).unwrap_err();
        let record = seal(&mut sealer, b"still").unwrap();
        assert_eq!(open(&mut opener, &record).unwrap(), b"still");

        let mut tls12 = Sealer::new(&keys(Tls12, cipher, 1, 5)).unwrap();
        let error = tls12.rekey(&keys(Tls12, cipher, 2, 0)).unwrap_err();
        assert_eq!(
            (&error, error.errno_name()),
            (&Error::RekeyUnsupported { version: Tls12 }, "EBUSY")
        );
    }
}

#[test]
fn padding_hides_the_length_and_is_stripped() {
    for cipher in CipherSuite::ALL {
        let keys = keys(Tls13, cipher, 1, 0);
        let mut sealer = Sealer::new(&keys).unwrap();
        let mut opener = Opener::new(&keys).unwrap();
        // Plaintext ending in zeros must not be taken for padding.
        for (plaintext, padding) in [
            (&b"secret\0\0"[..], 0),
            (b"secret\0\0", 1),
            (b"", 0),
            (b"", 300),
            (b"0", 16383),
            (&[0; 16384], 0),
        ] {
            let mut record = vec![0xEE; sealer.overhead() + plaintext.len() + padding];
            record[5..][..plaintext.len()].copy_from_slice(plaintext);
            sealer
                .seal_padded_in_place(ContentType::ALERT, &mut record, padding)
                .unwrap();
            let opened = opener.open_in_place(&mut record).unwrap();
            assert_eq!(opened.content_type, ContentType::ALERT);
            assert_eq!(&record[opened.plaintext], plaintext);
        }
        let mut record = vec![0; sealer.overhead() + 16385];
        let error = sealer
            .seal_padded_in_place(DATA, &mut record, 16384)
            .unwrap_err();
        assert_eq!(
            error,
            Error::PlaintextTooLong {
                length: 16385,
                max: 16384
            }
        );
        for padding in [11, usize::MAX] {
            let mut record = vec![0; sealer.overhead() + 10];
            let found = record.len();
            let error = sealer
                .seal_padded_in_place(DATA, &mut record, padding)
                .unwrap_err();
            let expected = sealer.overhead().saturating_add(padding);
            assert_eq!(error, Error::OutputBuffer { expected, found });
        }
    }
}

#[test]
fn debug_shows_no_key_bytes() {
    for provider in provider::all() {
        let keys = keys(Tls13, Aes128Gcm, 0xAB, 0);
        let sealer = Sealer::with_provider(*provider, &keys).unwrap();
        let opener = Opener::with_provider(*provider, &keys).unwrap();
        for text in [
            format!("{sealer:?}"),
            format!("{opener:?}"),
            format!("{keys:?}"),
        ] {
            for leak in ["171, 171", "abab", "ABAB", "23, 23", "41, 41"] {
                assert!(!text.contains(leak), "{text}");
            }
        }
    }
}
