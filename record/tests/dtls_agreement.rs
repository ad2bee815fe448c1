//! Random inputs for datagram records: every provider and every way of sealing makes the same bytes, and any of them opens
//! the others'. Random bytes: nothing panics, nothing opens, and a loop over a datagram ends.

use proptest::prelude::*;
use uktls_record::dtls::{
    DtlsVersion, EpochKeys, Header, Opener, SEQUENCE_END, Sealer, UnifiedHeader,
};
use uktls_record::provider;
use uktls_record::{CipherSuite, ContentType};

fn epoch_keys() -> impl Strategy<Value = EpochKeys> {
    (
        prop::sample::select(DtlsVersion::ALL.to_vec()),
        prop::sample::select(CipherSuite::ALL.to_vec()),
        any::<[u8; 32]>(),
        any::<[u8; 32]>(),
        any::<[u8; 12]>(),
        any::<u16>(),
        0..SEQUENCE_END - 1,
    )
        .prop_map(|(version, cipher, key, sn_key, iv, epoch, sequence)| {
            let (key, sn_key) = (&key[..cipher.key_len()], &sn_key[..cipher.key_len()]);
            match version {
                DtlsVersion::Dtls12 => {
                    let iv_len = if cipher.salt_len() == 4 { 4 } else { 12 };
                    EpochKeys::dtls12(cipher, key, &iv[..iv_len], epoch, sequence)
                }
                DtlsVersion::Dtls13 => {
                    EpochKeys::dtls13(cipher, key, &iv, sn_key, u64::from(epoch), sequence)
                }
            }
            .unwrap()
        })
}

/// Mostly what fits a datagram, with the lengths around cipher blocks and the largest record among them.
fn plaintext() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..300),
        2 => prop::collection::vec(any::<u8>(), 1300..1500),
        1 => prop::collection::vec(any::<u8>(), 16300..=16384),
    ]
}

proptest! {
    #[test]
    fn all_ways_make_the_same_record(keys in epoch_keys(), plaintext in plaintext(), content_type in 1..=255_u8) {
        let content_type = ContentType(content_type);
        let mut records = Vec::new();
        for provider in provider::all() {
            let mut sealer = Sealer::with_provider(*provider, &keys).unwrap();
            let mut record = vec![0xEE; plaintext.len() + sealer.overhead()];
            sealer.seal_from(content_type, &plaintext, &mut record).unwrap();
            records.push(record);

            let mut sealer = Sealer::with_provider(*provider, &keys).unwrap();
            let mut record = vec![0xEE; plaintext.len() + sealer.overhead()];
            record[sealer.prefix_len()..][..plaintext.len()].copy_from_slice(&plaintext);
            sealer.batch().seal_in_place(content_type, &mut record).unwrap();
            records.push(record);
        }
        for record in &records {
            prop_assert_eq!(record, &records[0]);
        }
        for provider in provider::all() {
            let mut record = records[0].clone();
            let mut opener = Opener::with_provider(*provider, &keys).unwrap();
            let opened = opener.open_next(&mut record).opened.unwrap();
            prop_assert_eq!(opened.content_type, content_type);
            prop_assert_eq!((opened.epoch, opened.sequence), (keys.epoch(), keys.sequence()));
            prop_assert_eq!(&record[opened.plaintext], &plaintext[..]);
        }
    }

    #[test]
    fn random_datagrams_never_open_and_always_end(
        keys in epoch_keys(),
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        plausible in any::<bool>(),
    ) {
        // Half the time with a header that gets past the first checks.
        if plausible {
            let header: Vec<u8> = match keys.version() {
                DtlsVersion::Dtls12 => {
                    let length = bytes.len().saturating_sub(13) as u16 / 2;
                    Header { content_type: ContentType(23), epoch: keys.epoch() as u16, sequence: keys.sequence(), length }
                        .emit()
                        .to_vec()
                }
                DtlsVersion::Dtls13 => {
                    UnifiedHeader::emit(keys.epoch(), keys.sequence(), bytes.len().saturating_sub(5) as u16 / 2).to_vec()
                }
            };
            if bytes.len() >= header.len() {
                bytes[..header.len()].copy_from_slice(&header);
            }
        }
        let mut opener = Opener::new(&keys).unwrap();
        let (mut at, mut steps) = (0, 0);
        while at < bytes.len() {
            let left = bytes.len() - at;
            let step = opener.open_next(&mut bytes[at..]);
            prop_assert!(step.opened.is_err());
            prop_assert!(step.len > 0 && step.len <= left);
            at += step.len;
            steps += 1;
        }
        prop_assert!(steps <= 400);
        prop_assert_eq!(opener.sequence(), keys.sequence());
    }
}
