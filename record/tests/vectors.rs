//! Published vectors, each on every provider and by every way of sealing and opening.
//!
//! * McGrew & Viega, "The Galois/Counter Mode of Operation", appendix B: cases 1–4 (AES-128) and 13–16 (AES-256)
//! * RFC 8439 §2.8.2: ChaCha20-Poly1305
//! * RFC 8448 §3: every protected record of the TLS 1.3 handshake trace

use hex_literal::hex;
use uktls_record::provider::{self, AeadFailed};
use uktls_record::{CipherSuite, ContentType, CryptoInfo, Opened, Opener, ProtocolVersion, Sealer};

/// Checks one vector: sealed both ways, with the plaintext's end as trailer, opened both ways, refused when changed.
fn check(
    cipher: CipherSuite,
    key: &[u8],
    nonce: &[u8; 12],
    aad: &[u8],
    plaintext: &[u8],
    ciphertext: &[u8],
    tag: &[u8; 16],
) {
    for provider in provider::all() {
        let name = provider.name();
        let aead = provider.aead(cipher, key).unwrap();

        let mut bytes = plaintext.to_vec();
        let mut sealed_tag = [0; 16];
        aead.seal_in_place(nonce, aad, &mut bytes, &mut sealed_tag)
            .unwrap();
        assert_eq!(
            (&bytes[..], &sealed_tag),
            (ciphertext, tag),
            "{name}, in place"
        );

        for trailer_len in 0..=plaintext.len().min(2) {
            let (front, trailer) = plaintext.split_at(plaintext.len() - trailer_len);
            let mut out = vec![0xEE; plaintext.len() + 16];
            aead.seal_from(nonce, aad, front, trailer, &mut out)
                .unwrap();
            assert_eq!(
                out,
                [ciphertext, tag].concat(),
                "{name}, trailer of {trailer_len}"
            );
        }

        aead.open_in_place(nonce, aad, &mut bytes, tag).unwrap();
        assert_eq!(bytes, plaintext, "{name}, opened in place");
        let mut out = vec![0xEE; plaintext.len()];
        aead.open_from(nonce, aad, ciphertext, tag, &mut out)
            .unwrap();
        assert_eq!(out, plaintext, "{name}, opened from");

        let mut wrong_tag = *tag;
        wrong_tag[15] ^= 1;
        assert_eq!(
            aead.open_from(nonce, aad, ciphertext, &wrong_tag, &mut out),
            Err(AeadFailed)
        );
        let mut wrong_aad = aad.to_vec();
        wrong_aad.push(0);
        assert_eq!(
            aead.open_in_place(nonce, &wrong_aad, &mut ciphertext.to_vec(), tag),
            Err(AeadFailed)
        );

        // Buffers of the wrong length are refused, not written past.
        assert_eq!(
            aead.seal_from(
                nonce,
                aad,
                plaintext,
                &[],
                &mut vec![0; plaintext.len() + 15]
            ),
            Err(AeadFailed)
        );
        assert_eq!(
            aead.seal_from(
                nonce,
                aad,
                plaintext,
                &[1],
                &mut vec![0; plaintext.len() + 16]
            ),
            Err(AeadFailed)
        );
        assert_eq!(
            aead.open_from(
                nonce,
                aad,
                ciphertext,
                tag,
                &mut vec![0; plaintext.len() + 1]
            ),
            Err(AeadFailed)
        );
    }
}

const GCM_IV: [u8; 12] = hex!("cafebabefacedbaddecaf888");
const GCM_AAD: [u8; 20] = hex!("feedfacedeadbeeffeedfacedeadbeefabaddad2");
const GCM_PLAINTEXT: [u8; 64] = hex!(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
);

#[test]
fn mcgrew_aes_128_gcm() {
    let suite = CipherSuite::Aes128Gcm;
    check(
        suite,
        &[0; 16],
        &[0; 12],
        b"",
        b"",
        b"",
        &hex!("58e2fccefa7e3061367f1d57a4e7455a"),
    );
    check(
        suite,
        &[0; 16],
        &[0; 12],
        b"",
        &[0; 16],
        &hex!("0388dace60b6a392f328c2b971b2fe78"),
        &hex!("ab6e47d42cec13bdf53a67b21257bddf"),
    );
    let key = hex!("feffe9928665731c6d6a8f9467308308");
    let ciphertext = hex!(
        "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
        "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091473f5985"
    );
    let tag = hex!("4d5c2af327cd64a62cf35abd2ba6fab4");
    check(suite, &key, &GCM_IV, b"", &GCM_PLAINTEXT, &ciphertext, &tag);
    let tag = hex!("5bc94fbc3221a5db94fae95ae7121a47");
    check(
        suite,
        &key,
        &GCM_IV,
        &GCM_AAD,
        &GCM_PLAINTEXT[..60],
        &ciphertext[..60],
        &tag,
    );
}

#[test]
fn mcgrew_aes_256_gcm() {
    let suite = CipherSuite::Aes256Gcm;
    check(
        suite,
        &[0; 32],
        &[0; 12],
        b"",
        b"",
        b"",
        &hex!("530f8afbc74536b9a963b4f1c4cb738b"),
    );
    check(
        suite,
        &[0; 32],
        &[0; 12],
        b"",
        &[0; 16],
        &hex!("cea7403d4d606b6e074ec5d3baf39d18"),
        &hex!("d0d1c8a799996bf0265b98b5d48ab919"),
    );
    let key = hex!("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
    let ciphertext = hex!(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
    );
    let tag = hex!("b094dac5d93471bdec1a502270e3cc6c");
    check(suite, &key, &GCM_IV, b"", &GCM_PLAINTEXT, &ciphertext, &tag);
    let tag = hex!("76fc6ece0f4e1768cddf8853bb2d551b");
    check(
        suite,
        &key,
        &GCM_IV,
        &GCM_AAD,
        &GCM_PLAINTEXT[..60],
        &ciphertext[..60],
        &tag,
    );
}

#[test]
fn rfc_8439_chacha20_poly1305() {
    check(
        CipherSuite::ChaCha20Poly1305,
        &hex!("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f"),
        &hex!("070000004041424344454647"),
        &hex!("50515253c0c1c2c3c4c5c6c7"),
        b"Ladies and Gentlemen of the class of '99: \
          If I could offer you only one tip for the future, sunscreen would be it.",
        &hex!(
            "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
            "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
            "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
            "3ff4def08e4b7a9de576d26586cec64b6116"
        ),
        &hex!("1ae10b594f09e26a7e902ecbd0600691"),
    );
}

/// A record, its content type, and a check of what it holds.
type TracedRecord = (&'static [u8], ContentType, fn(&[u8]));

/// One direction of RFC 8448 §3 under one key: its records in order, each with its type and what is known of its content.
struct Trace {
    key: [u8; 16],
    iv: [u8; 12],
    records: &'static [TracedRecord],
}

/// "payload (50 octets): 00 01 02 03 … 2f 30 31"
fn is_the_payload(plaintext: &[u8]) {
    assert_eq!(plaintext, (0..50).collect::<Vec<u8>>());
}

/// "payload (2 octets): 01 00": a warning, close_notify.
fn is_close_notify(plaintext: &[u8]) {
    assert_eq!(plaintext, [1, 0]);
}

/// EncryptedExtensions, Certificate, CertificateVerify, Finished: 657 octets.
fn is_server_flight(plaintext: &[u8]) {
    assert_eq!(plaintext.len(), 657);
    let mut rest = plaintext;
    let mut types = Vec::new();
    while let [message, a, b, c, tail @ ..] = rest {
        types.push(*message);
        rest = &tail[u32::from_be_bytes([0, *a, *b, *c]) as usize..];
    }
    assert_eq!(types, [8, 11, 15, 20]);
    assert!(plaintext.ends_with(&hex!(
        "140000209b9b141d906337fbd2cbdce71df4deda4ab42c309572cb7fffee5454b78f0718"
    )));
}

fn is_client_finished(plaintext: &[u8]) {
    assert_eq!(
        plaintext,
        hex!("14000020a8ec436d677634ae525ac1fcebe11a039ec17694fac6e98527b642f2edd5ce61")
    );
}

/// NewSessionTicket with a lifetime of 30 seconds: 205 octets.
fn is_session_ticket(plaintext: &[u8]) {
    assert_eq!(plaintext.len(), 205);
    assert_eq!(plaintext[..8], hex!("040000c90000001e"));
}

const SERVER_FLIGHT: &[u8] = &hex!(
    "17030302a2d1ff334a56f5bff6594a07cc87b580233f500f45e489e7f33af35edf7869fcf40aa40aa2b8ea73f848a7ca"
    "07612ef9f945cb960b4068905123ea78b111b429ba9191cd05d2a389280f526134aadc7fc78c4b729df828b5ecf7b13b"
    "d9aefb0e57f271585b8ea9bb355c7c79020716cfb9b1183ef3ab20e37d57a6b9d7477609aee6e122a4cf51427325250c"
    "7d0e509289444c9b3a648f1d71035d2ed65b0e3cdd0cbae8bf2d0b227812cbb360987255cc744110c453baa4fcd61092"
    "8d809810e4b7ed1a8fd991f06aa6248204797e36a6a73b70a2559c09ead686945ba246ab66e5edd8044b4c6de3fcf2a8"
    "9441ac66272fd8fb330ef8190579b3684596c960bd596eea520a56a8d650f563aad27409960dca63d3e688611ea5e22f"
    "4415cf9538d51a200c27034272968a264ed6540c84838d89f72c24461aad6d26f59ecaba9acbbb317b66d902f4f292a3"
    "6ac1b639c637ce343117b659622245317b49eeda0c6258f100d7d961ffb138647e92ea330faeea6dfa31c7a84dc3bd7e"
    "1b7a6c7178af36879018e3f252107f243d243dc7339d5684c8b0378bf30244da8c87c843f5e56eb4c5e8280a2b48052c"
    "f93b16499a66db7cca71e4599426f7d461e66f99882bd89fc50800becca62d6c74116dbd2972fda1fa80f85df881edbe"
    "5a37668936b335583b599186dc5c6918a396fa48a181d6b6fa4f9d62d513afbb992f2b992f67f8afe67f76913fa388cb"
    "5630c8ca01e0c65d11c66a1e2ac4c85977b7c7a6999bbf10dc35ae69f5515614636c0b9b68c19ed2e31c0b3b66763038"
    "ebba42f3b38edc0399f3a9f23faa63978c317fc9fa66a73f60f0504de93b5b845e275592c12335ee340bbc4fddd50278"
    "4016e4b3be7ef04dda49f4b440a30cb5d2af939828fd4ae3794e44f94df5a631ede42c1719bfdabf0253fe5175be898e"
    "750edc53370d2b"
);

const CLIENT_FINISHED: &[u8] = &hex!(
    "170303003575ec4dc238cce60b298044a71e219c56cc77b0517fe9b93c7a4bfc44d87f38f80338ac98fc46deb384bd1c"
    "aeacab6867d726c40546"
);

const SESSION_TICKET: &[u8] = &hex!(
    "17030300de3a6b8f90414a97d6959c3487680de5134a2b240e6cffac116e95d41d6af8f6b580dcf3d11d63c758db289a"
    "015940252f55713e061dc13e078891a38efbcf5753ad8ef170ad3c7353d16d9da773b9ca7f2b9fa1b6c0d4a3d03f75e0"
    "9c30ba1e62972ac46f75f7b981be63439b2999ce13064615139891d5e4c5b406f16e3fc181a77ca475840025db2f0a77"
    "f81b5ab05b94c01346755f69232c86519d86cbeeac87aac347d143f9605d64f650db4d023e70e952ca49fe5137121c74"
    "bc2697687e248746d6df353005f3bce18696129c8153556b3b6c6779b37bf15985684f"
);

const SERVER_DATA: &[u8] = &hex!(
    "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8"
    "fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d"
);

const SERVER_ALERT: &[u8] = &hex!("1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9");

const CLIENT_DATA: &[u8] = &hex!(
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b"
    "62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4"
);

const CLIENT_ALERT: &[u8] = &hex!("1703030013c9872760655666b74d7ff1153efd6db6d0b0e3");

const TRACES: [Trace; 4] = [
    Trace {
        key: hex!("3fce516009c21727d0f2e4e86ee403bc"),
        iv: hex!("5d313eb2671276ee13000b30"),
        records: &[(SERVER_FLIGHT, ContentType::HANDSHAKE, is_server_flight)],
    },
    Trace {
        key: hex!("dbfaa693d1762c5b666af5d950258d01"),
        iv: hex!("5bd3c71b836e0b76bb73265f"),
        records: &[(CLIENT_FINISHED, ContentType::HANDSHAKE, is_client_finished)],
    },
    Trace {
        key: hex!("9f02283b6c9c07efc26bb9f2ac92e356"),
        iv: hex!("cf782b88dd83549aadf1e984"),
        records: &[
            (SESSION_TICKET, ContentType::HANDSHAKE, is_session_ticket),
            (SERVER_DATA, ContentType::APPLICATION_DATA, is_the_payload),
            (SERVER_ALERT, ContentType::ALERT, is_close_notify),
        ],
    },
    Trace {
        key: hex!("17422dda596ed5d9acd890e3c63f5051"),
        iv: hex!("5b78923dee08579033e523d9"),
        records: &[
            (CLIENT_DATA, ContentType::APPLICATION_DATA, is_the_payload),
            (CLIENT_ALERT, ContentType::ALERT, is_close_notify),
        ],
    },
];

#[test]
fn rfc_8448_records_open_and_seal_to_the_same_bytes() {
    for Trace { key, iv, records } in TRACES {
        let keys = CryptoInfo::from_key_and_iv(
            ProtocolVersion::Tls13,
            CipherSuite::Aes128Gcm,
            &key,
            &iv,
            0,
        )
        .unwrap();
        for provider in provider::all() {
            let mut in_place = Opener::with_provider(*provider, &keys).unwrap();
            let mut separate = Opener::with_provider(*provider, &keys).unwrap();
            let mut sealer = Sealer::with_provider(*provider, &keys).unwrap();
            let mut sealer_from = Sealer::with_provider(*provider, &keys).unwrap();
            for (sequence, (record, content_type, is_expected)) in records.iter().enumerate() {
                assert_eq!(in_place.sequence(), sequence as u64);
                let mut bytes = record.to_vec();
                let opened = in_place.open_in_place(&mut bytes).unwrap();
                assert_eq!(opened.content_type, *content_type);
                let plaintext = bytes[opened.plaintext].to_vec();
                is_expected(&plaintext);

                let mut out = vec![0; record.len()];
                let opened = separate.open_separate(record, &mut out).unwrap();
                let expected = Opened {
                    content_type: *content_type,
                    plaintext: 0..plaintext.len(),
                };
                assert_eq!(opened, expected);
                assert_eq!(out[opened.plaintext], plaintext);

                let mut sealed = [&[0; 5], &plaintext[..], &[0; 17]].concat();
                sealer.seal_in_place(*content_type, &mut sealed).unwrap();
                assert_eq!(sealed, *record, "{}", provider.name());
                sealed.fill(0xEE);
                sealer_from
                    .seal_from(*content_type, &plaintext, &mut sealed)
                    .unwrap();
                assert_eq!(sealed, *record, "{}", provider.name());
            }
        }
    }
}
