//! Random inputs: every provider and every way of sealing makes the same bytes, and any of them opens the others'.
//! Random bytes: nothing panics.

use proptest::prelude::*;
use uktls_record::provider;
use uktls_record::{
    CipherSuite, ContentType, CryptoInfo, Opener, ProtocolVersion, RecordHeader, Sealer,
};

fn version() -> impl Strategy<Value = ProtocolVersion> {
    prop_oneof![Just(ProtocolVersion::Tls12), Just(ProtocolVersion::Tls13)]
}

fn cipher() -> impl Strategy<Value = CipherSuite> {
    prop::sample::select(CipherSuite::ALL.to_vec())
}

fn crypto_info() -> impl Strategy<Value = CryptoInfo> {
    (
        version(),
        cipher(),
        any::<[u8; 32]>(),
        any::<[u8; 12]>(),
        0..u64::MAX,
    )
        .prop_map(|(version, cipher, key, iv, rec_seq)| {
            let key = &key[..cipher.key_len()];
            CryptoInfo::from_key_and_iv(version, cipher, key, &iv, rec_seq).unwrap()
        })
}

/// Mostly short, with the lengths around cipher blocks and the largest record among them.
fn plaintext() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..300),
        1 => prop::collection::vec(any::<u8>(), 16300..=16384),
    ]
}

proptest! {
    #[test]
    fn all_ways_make_the_same_record(keys in crypto_info(), plaintext in plaintext(), content_type in 1..=255_u8) {
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
            sealer.seal_in_place(content_type, &mut record).unwrap();
            records.push(record);
        }
        for record in &records {
            prop_assert_eq!(record, &records[0]);
        }

        for provider in provider::all() {
            let mut out = vec![0; plaintext.len() + 1];
            let opened = Opener::with_provider(*provider, &keys).unwrap().open_separate(&records[0], &mut out).unwrap();
            prop_assert_eq!(opened.content_type, content_type);
            prop_assert_eq!(&out[opened.plaintext], &plaintext[..]);

            let mut record = records[0].clone();
            let opened = Opener::with_provider(*provider, &keys).unwrap().open_in_place(&mut record).unwrap();
            prop_assert_eq!(opened.content_type, content_type);
            prop_assert_eq!(&record[opened.plaintext], &plaintext[..]);
        }
    }

    #[test]
    fn crypto_info_survives_its_bytes(keys in crypto_info()) {
        let bytes = keys.to_bytes();
        prop_assert_eq!(bytes.len(), keys.cipher().crypto_info_len());
        let back = CryptoInfo::from_bytes(&bytes).unwrap();
        prop_assert_eq!((back.version(), back.cipher(), back.rec_seq()), (keys.version(), keys.cipher(), keys.rec_seq()));
        prop_assert_eq!((back.key(), back.salt(), back.iv()), (keys.key(), keys.salt(), keys.iv()));
    }

    #[test]
    fn random_bytes_never_open_and_never_panic(
        keys in crypto_info(),
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        plausible in any::<bool>(),
    ) {
        // Half the time with a header that gets past the first checks.
        if plausible && let Some(length) = bytes.len().checked_sub(5) {
            bytes[..3].copy_from_slice(&[23, 3, 3]);
            bytes[3..5].copy_from_slice(&(length as u16).to_be_bytes());
        }
        let _ = CryptoInfo::from_bytes(&bytes);
        if let Some(header) = bytes.first_chunk() {
            let _ = RecordHeader::parse(header, keys.version());
        }
        let mut opener = Opener::new(&keys).unwrap();
        let mut out = vec![0; bytes.len()];
        let separate = opener.open_separate(&bytes, &mut out).unwrap_err();
        prop_assert_eq!(opener.open_in_place(&mut bytes).unwrap_err(), separate);
        prop_assert_eq!(opener.sequence(), keys.rec_seq());
    }
}
