//! The table of names and numbers, and the sizes under it.

use crate::ground::*;
use crate::table;
use rustix::io::Errno;
use uktls::client::af_ktls::*;
use uktls_record::header::MAX_PLAINTEXT;

table! {
    the_family, BOTH, "AF_KTLS = PF_KTLS 12";
    options_that_set, BOTH, "KTLS_SET_* 1 to 7, KTLS_UNATTACH 8";
    options_that_get, BOTH, "KTLS_GET_* 11 to 17";
    cipher_and_versions, BOTH, "KTLS_CIPHER_AES_GCM_128 51, KTLS_VERSION_LATEST 0, KTLS_VERSION_1_2 1";
    sizes_of_values, BOTH, "key 16, salt 4, IV 8, largest payload 2^14";
    the_address, BOTH, "struct sockaddr_ktls { u16 sa_cipher; u16 sa_socket; u16 sa_version; }, 6 bytes";
    overheads, BOTH, "overheads: TLS 5+8+16, DTLS 13+8+16";
    the_iv_on_the_wire, BOTH, "explicit nonce = record sequence, for DTLS epoch and sequence";
}

fn the_family(_: &Ground) {
    assert_eq!((AF_KTLS, PF_KTLS), (12, 12));
}

fn options_that_set(_: &Ground) {
    let numbers = [
        KTLS_SET_IV_RECV,
        KTLS_SET_KEY_RECV,
        KTLS_SET_SALT_RECV,
        KTLS_SET_IV_SEND,
        KTLS_SET_KEY_SEND,
        KTLS_SET_SALT_SEND,
        KTLS_SET_MTU,
        KTLS_UNATTACH,
    ];
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
}

fn options_that_get(_: &Ground) {
    let numbers = [
        KTLS_GET_IV_RECV,
        KTLS_GET_KEY_RECV,
        KTLS_GET_SALT_RECV,
        KTLS_GET_IV_SEND,
        KTLS_GET_KEY_SEND,
        KTLS_GET_SALT_SEND,
        KTLS_GET_MTU,
    ];
    assert_eq!(numbers, [11, 12, 13, 14, 15, 16, 17]);
}

fn cipher_and_versions(_: &Ground) {
    let numbers = [
        KTLS_CIPHER_AES_GCM_128,
        KTLS_VERSION_LATEST,
        KTLS_VERSION_1_2,
    ];
    assert_eq!(numbers, [51, 0, 1]);
}

fn sizes_of_values(ground: &Ground) {
    let pair = ground.armed();
    for (option, len) in [
        (KTLS_GET_KEY_SEND, 16),
        (KTLS_GET_SALT_SEND, 4),
        (KTLS_GET_IV_SEND, 8),
        (KTLS_GET_KEY_RECV, 16),
        (KTLS_GET_SALT_RECV, 4),
        (KTLS_GET_IV_RECV, 8),
    ] {
        assert_eq!(get(&pair.left, option).len(), len, "option {option}");
    }
    assert_eq!(MAX_PLAINTEXT, 1 << 14);
    let mtu = get(&pair.left, KTLS_GET_MTU).try_into().expect("a size_t");
    assert_eq!(
        usize::from_ne_bytes(mtu),
        (1 << 14) + overhead(ground.kind),
        "what a record is at most"
    );
}

fn the_address(_: &Ground) {
    let fields: [u16; 3] = [51, 7, 1];
    let bytes = fields.map(u16::to_ne_bytes).concat();
    let (address, socket) = KtlsAddress::from_bytes(&bytes).expect("six bytes");
    assert_eq!((address.cipher, socket, address.version), (51, 7, 1));
    assert_eq!(KtlsAddress::LEN, 6);
    for len in [0, 5, 7, 16] {
        let error = KtlsAddress::from_bytes(&vec![0; len]);
        assert_eq!(errno(error), Errno::BADMSG, "{len} bytes");
    }
}

fn overheads(ground: &Ground) {
    let (socket, wire) = ground.to_the_wire();
    for len in [1, 1000, 16_000] {
        send(&socket, &text(len));
        assert_eq!(wire.record().len(), len + overhead(ground.kind));
    }
}

fn the_iv_on_the_wire(ground: &Ground) {
    let (socket, wire) = ground.to_the_wire();
    for number in 1..4 {
        send(&socket, b"x");
        let record = wire.record();
        let nonce = u64::from_be_bytes(IV) + number - 1;
        let header = overhead(ground.kind) - 24;
        assert_eq!(record[header..header + 8], nonce.to_be_bytes());
        if ground.kind == KtlsType::Datagram {
            assert_eq!(record[3..11], nonce.to_be_bytes());
        }
    }
}
