//! Counters and epochs: where numbers end, how batches move them, and what a new epoch does.

use uktls_record::dtls::{Discard, DtlsVersion, EpochKeys, Opener, SEQUENCE_END, Sealer};
use uktls_record::suite::{AES_GCM_CONFIDENTIALITY_LIMIT, INTEGRITY_LIMIT};
use uktls_record::{CipherSuite, ContentType, Error};

use CipherSuite::{Aes128Gcm, ChaCha20Poly1305};
use DtlsVersion::{Dtls12, Dtls13};

const DATA: ContentType = ContentType::APPLICATION_DATA;

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

fn each(mut case: impl FnMut(DtlsVersion, CipherSuite)) {
    for version in DtlsVersion::ALL {
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

fn open(opener: &mut Opener, record: &[u8]) -> Result<Vec<u8>, Discard> {
    let mut record = record.to_vec();
    let opened = opener.open_next(&mut record).opened?;
    Ok(record[opened.plaintext].to_vec())
}

#[test]
fn sequence_numbers_end_before_they_repeat() {
    each(|version, cipher| {
        let keys = keys(version, cipher, 3, SEQUENCE_END - 2);
        let mut sealer = Sealer::new(&keys).unwrap();
        let mut opener = Opener::new(&keys).unwrap();
        for left in [2, 1] {
            assert_eq!(sealer.records_left(), left);
            let record = seal(&mut sealer, b"near the end").unwrap();
            assert_eq!(open(&mut opener, &record).unwrap(), b"near the end");
        }
        let end = Error::LimitReached {
            sequence: SEQUENCE_END,
            sealed: 2,
        };
        assert_eq!(end.errno_name(), "EBADMSG");
        for _ in 0..3 {
            assert_eq!(seal(&mut sealer, b"over"), Err(end.clone()));
            let mut batch = sealer.batch();
            assert_eq!(batch.seal_in_place(DATA, &mut [0; 64]), Err(end.clone()));
            batch.commit();
        }
        assert_eq!((sealer.sequence(), sealer.epoch()), (SEQUENCE_END, 3));
        // Keys exported at the end are of no use elsewhere, and a number beyond the end is the end.
        let exported = sealer.keys();
        assert_eq!(Sealer::new(&exported).unwrap().records_left(), 0);
        let beyond = self::keys(version, cipher, 3, u64::MAX);
        assert_eq!(Sealer::new(&beyond).unwrap().records_left(), 0);

        // A new epoch starts anew.
        sealer.install(&self::keys(version, cipher, 4, 0)).unwrap();
        opener.install(&self::keys(version, cipher, 4, 0)).unwrap();
        let record = seal(&mut sealer, b"next epoch").unwrap();
        assert_eq!(open(&mut opener, &record).unwrap(), b"next epoch");
    });
}

/// This crate never seals with 2^48-1, but a peer may.
#[test]
fn the_last_number_of_all_is_understood() {
    let provider = uktls_record::provider::default();
    let keys = keys(Dtls12, ChaCha20Poly1305, 1, 0);
    let number = 1 << 48 | SEQUENCE_END;
    let mut record = [&[23, 0xFE, 0xFD][..], &u64::to_be_bytes(number), &[0, 20]].concat();
    let mut nonce = [0x17; 12];
    for (byte, number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
        *byte ^= number;
    }
    let aad = [&number.to_be_bytes()[..], &[23, 0xFE, 0xFD, 0, 4]].concat();
    let (mut body, mut tag) = (*b"last", [0; 16]);
    let aead = provider.aead(ChaCha20Poly1305, keys.key()).unwrap();
    aead.seal_in_place(&nonce, &aad, &mut body, &mut tag)
        .unwrap();
    record.extend([&body[..], &tag].concat());
    let mut opener = Opener::new(&keys).unwrap();
    assert_eq!(open(&mut opener, &record).unwrap(), b"last");
    assert!(matches!(
        open(&mut opener, &record),
        Err(Discard::Replayed { .. })
    ));
    // What comes next cannot be numbered: the export says so.
    assert_eq!(opener.keys().sequence(), SEQUENCE_END);
}

#[test]
fn a_key_stops_at_its_confidentiality_limit() {
    each(|version, cipher| {
        let sealer = Sealer::new(&keys(version, cipher, 1, 0)).unwrap();
        let expected = match cipher {
            ChaCha20Poly1305 => SEQUENCE_END,
            _ => AES_GCM_CONFIDENTIALITY_LIMIT,
        };
        assert_eq!(sealer.records_left(), expected);
    });
    each(|version, cipher| {
        let mut sealer = Sealer::new(&keys(version, cipher, 1, 0)).unwrap();
        sealer.lower_limit(2);
        sealer.lower_limit(5);
        seal(&mut sealer, b"one").unwrap();
        seal(&mut sealer, b"two").unwrap();
        let limit = Error::LimitReached {
            sequence: 2,
            sealed: 2,
        };
        assert_eq!(seal(&mut sealer, b"three"), Err(limit));
        sealer.install(&keys(version, cipher, 2, 0)).unwrap();
        seal(&mut sealer, b"three").unwrap();
    });
}

#[test]
fn a_key_is_given_up_after_too_many_forgeries() {
    each(|version, cipher| {
        let keys = keys(version, cipher, 1, 0);
        let mut sealer = Sealer::new(&keys).unwrap();
        let mut opener = Opener::new(&keys).unwrap();
        assert_eq!(cipher.integrity_limit(), INTEGRITY_LIMIT);
        opener.lower_integrity_limit(3);
        opener.lower_integrity_limit(INTEGRITY_LIMIT);
        let first = seal(&mut sealer, b"first").unwrap();
        assert_eq!(open(&mut opener, &first).unwrap(), b"first");
        let genuine = seal(&mut sealer, b"genuine").unwrap();
        let mut forged = genuine.clone();
        *forged.last_mut().unwrap() ^= 1;
        for _ in 0..3 {
            let discard = open(&mut opener, &forged).unwrap_err();
            let sequence = 1;
            assert_eq!(discard, Discard::Unverified { epoch: 1, sequence });
        }
        // Not even the genuine one is tried any more; a replay is still called one.
        let discard = open(&mut opener, &genuine).unwrap_err();
        assert_eq!(discard, Discard::KeyExhausted { epoch: 1 });
        let discard = open(&mut opener, &first).unwrap_err();
        let sequence = 0;
        assert_eq!(discard, Discard::Replayed { epoch: 1, sequence });

        // New keys have failed nothing yet.
        let next = self::keys(version, cipher, 2, 0);
        opener.install(&next).unwrap();
        let record = seal(&mut Sealer::new(&next).unwrap(), b"next").unwrap();
        assert_eq!(open(&mut opener, &record).unwrap(), b"next");
    });
}

#[test]
fn a_batch_counts_at_commit_and_its_records_open() {
    each(|version, cipher| {
        let keys = keys(version, cipher, 1, 10);
        let mut sealer = Sealer::new(&keys).unwrap();
        let overhead = sealer.overhead();
        let mut abandoned = vec![0; 4 + overhead];
        {
            let mut batch = sealer.batch();
            batch.seal_from(DATA, b"gone", &mut abandoned).unwrap();
            assert_eq!(batch.records(), 1);
        }
        assert_eq!(sealer.sequence(), 10);

        // Four equal records side by side, as one super-datagram holds them.
        let stride = 4 + overhead;
        let mut datagrams = vec![0; 4 * stride];
        let mut batch = sealer.batch();
        for (i, record) in datagrams.chunks_mut(stride).enumerate() {
            if i % 2 == 0 {
                batch.seal_from(DATA, b"kept", record).unwrap();
            } else {
                let prefix_len = version.prefix_len(cipher);
                record[prefix_len..][..4].copy_from_slice(b"kept");
                batch.seal_in_place(DATA, record).unwrap();
            }
        }
        batch.commit();
        assert_eq!(sealer.sequence(), 14);
        let mut opener = Opener::new(&keys).unwrap();
        for record in datagrams.chunks(stride) {
            assert_eq!(open(&mut opener, record).unwrap(), b"kept");
        }
        assert_eq!(opener.sequence(), 14);
        // Cut from the same buffer or not, the records of one datagram open one after the other.
        let mut opener = Opener::new(&keys).unwrap();
        let mut at = 0;
        while at < datagrams.len() {
            let step = opener.open_next(&mut datagrams[at..]);
            assert_eq!((step.len, step.opened.is_ok()), (stride, true));
            at += step.len;
        }
    });
}

#[test]
fn an_epoch_change_under_reordering_loses_and_doubles_nothing() {
    each(|version, cipher| {
        let (old, new) = (keys(version, cipher, 1, 0), keys(version, cipher, 2, 0));
        let mut sealer = Sealer::new(&old).unwrap();
        let mut opener = Opener::new(&old).unwrap();
        let before: Vec<_> = (0..4)
            .map(|_| seal(&mut sealer, b"before").unwrap())
            .collect();
        sealer.install(&new).unwrap();
        let after: Vec<_> = (0..4)
            .map(|_| seal(&mut sealer, b"after").unwrap())
            .collect();

        assert_eq!(open(&mut opener, &before[0]).unwrap(), b"before");
        // The new epoch overtakes: its keys are not here yet.
        let discard = open(&mut opener, &after[0]).unwrap_err();
        assert_eq!(discard, Discard::WrongEpoch { epoch: 2 });
        opener.install(&new).unwrap();
        assert_eq!((opener.epoch(), opener.previous_epoch()), (2, Some(1)));
        for (old, new) in before[1..3].iter().zip(&after) {
            assert_eq!(open(&mut opener, new).unwrap(), b"after");
            assert_eq!(open(&mut opener, old).unwrap(), b"before");
        }
        // Each epoch has a window of its own.
        for (record, epoch, sequence) in [(&before[0], 1, 0), (&before[2], 1, 2), (&after[1], 2, 1)]
        {
            let discard = open(&mut opener, record).unwrap_err();
            assert_eq!(discard, Discard::Replayed { epoch, sequence });
        }
        opener.retire_previous();
        let discard = open(&mut opener, &before[3]).unwrap_err();
        assert_eq!(discard, Discard::WrongEpoch { epoch: 1 });
        for record in &after[2..] {
            assert_eq!(open(&mut opener, record).unwrap(), b"after");
        }
    });
}

#[test]
fn only_a_later_epoch_of_the_same_version_follows() {
    each(|version, cipher| {
        let current = keys(version, cipher, 5, 9);
        let mut sealer = Sealer::new(&current).unwrap();
        let mut opener = Opener::new(&current).unwrap();
        let other = if version == Dtls12 { Dtls13 } else { Dtls12 };
        for wrong in [
            keys(version, cipher, 5, 0),
            keys(version, cipher, 4, 0),
            keys(other, cipher, 6, 0),
        ] {
            let error = Error::NotANewEpoch {
                version,
                epoch: 5,
                found_version: wrong.version(),
                found_epoch: wrong.epoch(),
            };
            assert_eq!(sealer.install(&wrong), Err(error.clone()));
            assert_eq!(opener.install(&wrong), Err(error.clone()));
            assert_eq!(error.errno_name(), "EINVAL");
        }
        assert_eq!((sealer.epoch(), sealer.sequence()), (5, 9));
        assert_eq!((opener.epoch(), opener.previous_epoch()), (5, None));
        // A re-handshake may agree on another cipher, and skip epochs that were given up.
        for later in [
            keys(version, ChaCha20Poly1305, 6, 0),
            keys(version, Aes128Gcm, 9, 0),
        ] {
            sealer.install(&later).unwrap();
            opener.install(&later).unwrap();
            let record = seal(&mut sealer, b"later").unwrap();
            assert_eq!(open(&mut opener, &record).unwrap(), b"later");
        }
    });
}

#[test]
fn dtls13_finds_the_whole_number_from_its_last_bits() {
    for cipher in CipherSuite::ALL {
        let mut opener = Opener::new(&keys(Dtls13, cipher, 3, 0)).unwrap();
        // Steps of just under half of the 16 bits that travel, losses of 32,000 records each.
        for sequence in (0..2_000_000_u64)
            .step_by(32_000)
            .chain([2_000_001, 2_000_000])
        {
            let mut sealer = Sealer::new(&keys(Dtls13, cipher, 3, sequence)).unwrap();
            let mut record = seal(&mut sealer, b"number").unwrap();
            let opened = opener.open_next(&mut record).opened.unwrap();
            assert_eq!(opened.sequence, sequence);
        }
        // Beyond that it cannot be told, and the record is lost, not misread.
        let mut sealer = Sealer::new(&keys(Dtls13, cipher, 3, 2_000_000 + 40_000)).unwrap();
        let record = seal(&mut sealer, b"number").unwrap();
        assert!(open(&mut opener, &record).is_err());
    }
}
