use super::*;
use proptest::prelude::*;
use uktls_record::{CipherSuite, CryptoInfo, ProtocolVersion};

fn keys(cipher: CipherSuite) -> CryptoInfo {
    let (key, iv) = (vec![7; cipher.key_len()], [9; 12]);
    CryptoInfo::from_key_and_iv(ProtocolVersion::Tls12, cipher, &key, &iv, 5)
        .expect("lengths are the cipher's own")
}

fn stat(id: u64) -> SocketStat {
    let longest: SocketAddr = "[fd77:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
        .parse()
        .expect("a literal");
    let keys = KeyStat {
        version: 0x0304,
        cipher: 54,
        rec_seq: u64::MAX,
        records_left: u64::MAX,
    };
    SocketStat {
        id,
        kind: SocketKind::Tcp,
        shard: u32::MAX,
        uid: u32::MAX,
        local: longest,
        remote: Some(longest),
        state: Some("SYN-RECEIVED".into()),
        tcp: Some(TcpStat {
            cwnd: u64::MAX,
            srtt_us: Some(u64::MAX),
            mss: u64::MAX,
            in_flight: u64::MAX,
            segments_sent: u64::MAX,
            segments_received: u64::MAX,
            bytes_sent: u64::MAX,
            bytes_received: u64::MAX,
            retransmits: u64::MAX,
        }),
        ulp: true,
        tx: Some(keys.clone()),
        rx: Some(keys),
        records_sent: u64::MAX,
        records_received: u64::MAX,
        reason: Reason::BadRecord(i32::MIN),
        memory: u64::MAX,
    }
}

/// Messages hold keys and are not compared by value; their bytes are.
fn comes_back<T: Serialize + for<'a> Deserialize<'a>>(message: &T) {
    let bytes = encode(message).expect("fits");
    let again: T = decode(&bytes).expect("decodes");
    assert_eq!(encode(&again).expect("fits"), bytes);
}

#[test]
fn requests_come_back_equal() {
    let address: SocketAddr = "10.77.0.2:443".parse().expect("a literal");
    let options = SocketOptions {
        keepalive: Some(Duration::from_secs(60)),
        ..SocketOptions::default()
    };
    comes_back(&Request::Hello {
        magic: MAGIC,
        version: VERSION,
        capabilities: Capabilities::all(),
    });
    comes_back(&Request::Connect {
        remote: address,
        local: Some(address),
        options: options.clone(),
    });
    comes_back(&Request::Listen {
        local: address,
        backlog: 9,
        options,
    });
    let lines = BoundedBytes::new(vec![b'a'; MAX_SECRETS]).expect("just so long");
    comes_back(&Request::Secrets(lines));
    comes_back(&Request::BindUdp {
        local: address,
        remote: None,
    });
    comes_back(&Request::Sockets { after: Some(1) });
    comes_back(&Request::Counters);
    for cipher in CipherSuite::ALL {
        comes_back(&Request::OnSocket(SocketRequest::StageTx(KeyBytes::from(
            &keys(cipher),
        ))));
    }
    let full = BoundedBytes::new(vec![1; MAX_RX_BYTES]).expect("just fits");
    comes_back(&Request::OnSocket(SocketRequest::RxBytes(full)));
}

#[test]
fn keys_cross_unchanged_and_unprinted() {
    for cipher in CipherSuite::ALL {
        let keys = keys(cipher);
        let request = Request::OnSocket(SocketRequest::StageTx(KeyBytes::from(&keys)));
        assert!(
            !format!("{request:?}").contains("7, 7"),
            "a key was printed"
        );
        let bytes = encode(&request).expect("fits");
        let Ok(Request::OnSocket(SocketRequest::StageTx(back))) = decode(&bytes) else {
            panic!("another message")
        };
        assert_eq!(
            *back.crypto_info().expect("sound keys").to_bytes(),
            *keys.to_bytes()
        );
    }
}

#[test]
fn dtls_keys_cross_unchanged_and_unprinted_and_every_cut_is_refused() {
    use rustix::io::Errno;
    use uktls_record::dtls::EpochKeys;
    for cipher in CipherSuite::ALL {
        let key = vec![7; cipher.key_len()];
        let iv = [8; 12];
        let salt = &iv[..if cipher.salt_len() == 4 { 4 } else { 12 }];
        for keys in [
            EpochKeys::dtls12(cipher, &key, salt, 1, 5).expect("lengths that fit"),
            EpochKeys::dtls13(cipher, &key, &iv, &key, 1 << 40, 6).expect("lengths that fit"),
        ] {
            let bytes = EpochKeyBytes::from(&keys);
            assert!(!format!("{bytes:?}").contains("7, 7"), "a key was printed");
            let encoded = encode(&bytes).expect("fits");
            let back: EpochKeyBytes = decode(&encoded).expect("a message");
            let back = back.epoch_keys().expect("sound keys");
            assert!(back.is_same_epoch(&keys));
            assert_eq!(
                (back.sequence(), back.sn_key()),
                (keys.sequence(), keys.sn_key())
            );
            // The encoding is a length and the bytes: cut, they are keys no more.
            let whole = encoded.len() - 1;
            for len in 0..whole {
                let cut = [&[len as u8], &encoded[1..1 + len]].concat();
                let cut: EpochKeyBytes = decode(&cut).expect("a message");
                assert_eq!(cut.epoch_keys().err(), Some(Errno::INVAL), "{len} bytes");
            }
        }
    }
}

#[test]
fn a_full_page_of_the_largest_sockets_fits_a_message() {
    comes_back(&Reply::Sockets {
        sockets: vec![stat(u64::MAX); SOCKETS_PER_REPLY],
        more: true,
    });
}

#[test]
fn longer_strings_than_promised_are_refused() {
    assert!(BoundedBytes::<4>::new(vec![0; 5]).is_none());
    let eight = encode(&BoundedBytes::<8>::new(vec![0; 8]).expect("just fits")).expect("fits");
    assert!(decode::<BoundedBytes<8>>(&eight).is_ok());
    assert!(decode::<BoundedBytes<7>>(&eight).is_err());
}

#[test]
fn bytes_behind_a_message_are_refused() {
    let mut bytes = encode(&Request::Counters).expect("fits").to_vec();
    bytes.push(0);
    assert_eq!(
        decode::<Request>(&bytes).err(),
        Some(ProtocolError::Malformed(bytes.len()))
    );
    assert_eq!(
        decode::<Request>(&vec![0; MAX_MESSAGE + 1]).err(),
        Some(ProtocolError::TooLong)
    );
}

#[test]
fn the_hello_of_version_1_has_these_bytes() {
    let hello = Request::Hello {
        magic: MAGIC,
        version: 1,
        capabilities: Capabilities(0b101),
    };
    assert_eq!(
        **encode(&hello).expect("fits"),
        [0, b'u', b'k', b't', b'l', 1, 0b101]
    );
}

proptest! {
    #[test]
    fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode::<Request>(&bytes);
        let _ = decode::<Reply>(&bytes);
    }

    #[test]
    fn damaged_messages_decode_or_are_refused(at in 0usize..4096, bit in 0u8..8) {
        for message in [
            encode(&Reply::Sockets { sockets: vec![stat(3); 4], more: false }).expect("fits"),
            encode(&Request::OnSocket(SocketRequest::StageTx(KeyBytes::from(&keys(CipherSuite::Aes128Gcm))))).expect("fits"),
        ] {
            let mut message = message.to_vec();
            let at = at % message.len();
            message[at] ^= 1 << bit;
            let _ = decode::<Request>(&message);
            let _ = decode::<Reply>(&message);
        }
    }
}
