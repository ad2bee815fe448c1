//! Published vectors for datagram records, on every provider and by every way of sealing.
//!
//! * RFC 9001 appendices A.2, A.3 and A.5: QUIC's header protection, which is DTLS 1.3's sequence-number encryption
//! * M. Driscoll, "The Illustrated DTLS Connection" (dtls.xargs.org): the application data and alert of a recorded DTLS 1.3
//!   connection between wolfSSL ends
//!
//! DTLS 1.2 has no published vectors; there, records are put together from RFC 6347's words with OpenSSL's ciphers, and whole
//! connections of OpenSSL are in `dtls_openssl.rs`.

use hex_literal::hex;
use openssl::symm::{Cipher, Crypter, Mode, encrypt_aead};
use uktls_record::dtls::{DtlsVersion, EpochKeys, Opener, Sealer};
use uktls_record::provider::{self, Provider};
use uktls_record::{CipherSuite, ContentType};

fn mask(provider: &dyn Provider, cipher: CipherSuite, key: &[u8], sample: &[u8; 16]) -> [u8; 2] {
    let key = provider.sequence_mask(cipher, key).unwrap();
    key.mask(sample).unwrap()
}

#[test]
fn rfc9001_header_protection_masks() {
    for provider in provider::all() {
        // A.2: the client's Initial packet.
        assert_eq!(
            mask(
                *provider,
                CipherSuite::Aes128Gcm,
                &hex!("9f50449e04a0e810283a1e9933adedd2"),
                &hex!("d1b1c98dd7689fb8ec11d242b123dc9b"),
            ),
            hex!("437b"),
        );
        // A.3: the server's.
        assert_eq!(
            mask(
                *provider,
                CipherSuite::Aes128Gcm,
                &hex!("c206b8d9b9f0f37644430b490eeaa314"),
                &hex!("2cd0991cd25b0aac406a5816b6394100"),
            ),
            hex!("2ec0"),
        );
        // A.5: ChaCha20-Poly1305.
        assert_eq!(
            mask(
                *provider,
                CipherSuite::ChaCha20Poly1305,
                &hex!("25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4"),
                &hex!("5e5cd55c41f69080575d7999c25a5bfb"),
            ),
            hex!("aefe"),
        );
    }
}

/// The mask by OpenSSL's ciphers, which share no line with the providers.
fn openssl_mask(cipher: CipherSuite, key: &[u8], sample: &[u8; 16]) -> [u8; 2] {
    let (cipher, iv, input): (_, Option<&[u8]>, _) = match cipher {
        CipherSuite::Aes128Gcm => (Cipher::aes_128_ecb(), None, *sample),
        CipherSuite::Aes256Gcm => (Cipher::aes_256_ecb(), None, *sample),
        // OpenSSL's iv is counter and nonce, as the sample has them.
        CipherSuite::ChaCha20Poly1305 => (Cipher::chacha20(), Some(&sample[..]), [0; 16]),
    };
    let mut crypter = Crypter::new(cipher, Mode::Encrypt, key, iv).unwrap();
    crypter.pad(false);
    let mut out = [0; 32];
    crypter.update(&input, &mut out).unwrap();
    [out[0], out[1]]
}

#[test]
fn masks_are_what_openssl_computes() {
    for provider in provider::all() {
        for cipher in CipherSuite::ALL {
            for round in 0..64_u8 {
                let key: Vec<u8> = (0..cipher.key_len() as u8)
                    .map(|i| i.wrapping_mul(round | 1) ^ 0x5A)
                    .collect();
                let mut sample = [round; 16];
                sample[..4].copy_from_slice(&[round, 0xFF, 0, round.wrapping_mul(91)]);
                if round == 0 {
                    // The block counter's last value is as good as any.
                    sample[..4].fill(0xFF);
                }
                assert_eq!(
                    mask(*provider, cipher, &key, &sample),
                    openssl_mask(cipher, &key, &sample),
                    "{} {cipher}",
                    provider.name(),
                );
            }
        }
    }
}

/// Seals both ways and opens: the record must be this one, byte for byte.
fn check(keys: &EpochKeys, content_type: ContentType, plaintext: &[u8], record: &[u8]) {
    for provider in provider::all() {
        let name = provider.name();
        let mut sealer = Sealer::with_provider(*provider, keys).unwrap();
        let mut own = vec![0xEE; plaintext.len() + sealer.overhead()];
        sealer.seal_from(content_type, plaintext, &mut own).unwrap();
        assert_eq!(own, record, "{name}, from elsewhere");

        let mut sealer = Sealer::with_provider(*provider, keys).unwrap();
        own.fill(0xEE);
        own[sealer.prefix_len()..][..plaintext.len()].copy_from_slice(plaintext);
        sealer.seal_in_place(content_type, &mut own).unwrap();
        assert_eq!(own, record, "{name}, in place");

        let mut opener = Opener::with_provider(*provider, keys).unwrap();
        let step = opener.open_next(&mut own);
        assert_eq!(step.len, record.len());
        let opened = step.opened.unwrap();
        assert_eq!(
            (opened.content_type, opened.epoch, opened.sequence),
            (content_type, keys.epoch(), keys.sequence()),
            "{name}"
        );
        assert_eq!(&own[opened.plaintext], plaintext);
    }
}

#[test]
fn illustrated_dtls13_connection() {
    let client = EpochKeys::dtls13(
        CipherSuite::Aes128Gcm,
        &hex!("9ba90dbce8857bc1fcb81d41a0465cfe"),
        &hex!("682219974631fa0656ee4eff"),
        &hex!("5cb5bd8bac29777c650c0dde22d16d47"),
        3,
        0,
    )
    .unwrap();
    check(
        &client,
        ContentType::APPLICATION_DATA,
        b"ping",
        &hex!("2f 683f 0015 7d72278b6c 649f1e7b56b3cad411faf7bd518bfb15"),
    );
    let server = |sequence| {
        EpochKeys::dtls13(
            CipherSuite::Aes128Gcm,
            &hex!("2b65fffbbc8189474aa2003c43c32d4d"),
            &hex!("582f5a11bdaf973fe3ffeb4e"),
            &hex!("57ba02596c6a1352d7fe8416c7e17d5a"),
            3,
            sequence,
        )
        .unwrap()
    };
    check(
        &server(1),
        ContentType::APPLICATION_DATA,
        b"pong",
        &hex!("2f a258 0015 f5bd33f27b 72780e351fa00703fb9f658c689f95ae"),
    );
    check(
        &server(2),
        ContentType::ALERT,
        &[1, 0],
        &hex!("2f 690c 0013 dd8cd0 7daa964fd1ab508825378fc96fa8b1e8"),
    );
}

/// Records put together by hand from the RFCs' words and OpenSSL's AEAD are ours, byte for byte.
#[test]
fn openssl_ciphers_make_the_same_records() {
    let sn_key = [0x77; 32];
    for version in DtlsVersion::ALL {
        for cipher in CipherSuite::ALL {
            for (epoch, sequence) in [
                (1_u16, 0_u64),
                (1, 0x0102_0304_0506),
                (0xFFFF, 255),
                (3, 0xFFFF),
            ] {
                for len in [0, 1, 1400, 16384] {
                    let plaintext: Vec<u8> = (0..len).map(|i| i as u8).collect();
                    let (key, iv) = (vec![0x5C; cipher.key_len()], [0xA1; 12]);
                    let (gcm, number) = (
                        cipher != CipherSuite::ChaCha20Poly1305,
                        u64::from(epoch) << 48 | sequence,
                    );
                    let evp = match cipher {
                        CipherSuite::Aes128Gcm => Cipher::aes_128_gcm(),
                        CipherSuite::Aes256Gcm => Cipher::aes_256_gcm(),
                        CipherSuite::ChaCha20Poly1305 => Cipher::chacha20_poly1305(),
                    };
                    let seal = |nonce: &[u8], aad: &[u8], inner: &[u8]| {
                        let mut tag = [0; 16];
                        let mut out =
                            encrypt_aead(evp, &key, Some(nonce), aad, inner, &mut tag).unwrap();
                        out.extend(tag);
                        out
                    };
                    let xored = |number: u64| {
                        let mut nonce = iv;
                        for (byte, number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
                            *byte ^= number;
                        }
                        nonce
                    };
                    let (keys, record) = match version {
                        DtlsVersion::Dtls12 => {
                            let aad = [
                                &number.to_be_bytes()[..],
                                &[23, 0xFE, 0xFD],
                                &(len as u16).to_be_bytes(),
                            ]
                            .concat();
                            let (nonce, explicit, iv) = if gcm {
                                let nonce = [&iv[..4], &number.to_be_bytes()].concat();
                                (nonce, number.to_be_bytes().to_vec(), &iv[..4])
                            } else {
                                (xored(number).to_vec(), vec![], &iv[..])
                            };
                            let body = [explicit, seal(&nonce, &aad, &plaintext)].concat();
                            let record = [
                                &[23, 0xFE, 0xFD][..],
                                &number.to_be_bytes(),
                                &(body.len() as u16).to_be_bytes(),
                                &body,
                            ]
                            .concat();
                            let keys = EpochKeys::dtls12(cipher, &key, iv, epoch, sequence);
                            (keys.unwrap(), record)
                        }
                        DtlsVersion::Dtls13 => {
                            let sn_key = &sn_key[..cipher.key_len()];
                            let mut header = vec![0b0010_1100 | epoch as u8 & 3];
                            header.extend((sequence as u16).to_be_bytes());
                            header.extend((len as u16 + 17).to_be_bytes());
                            let inner = [&plaintext[..], &[23]].concat();
                            let body = seal(&xored(sequence), &header, &inner);
                            let mask = openssl_mask(cipher, sn_key, body.first_chunk().unwrap());
                            header[1] ^= mask[0];
                            header[2] ^= mask[1];
                            let epoch = u64::from(epoch);
                            let keys =
                                EpochKeys::dtls13(cipher, &key, &iv, sn_key, epoch, sequence);
                            (keys.unwrap(), [header, body].concat())
                        }
                    };
                    check(&keys, ContentType::APPLICATION_DATA, &plaintext, &record);
                }
            }
        }
    }
}
