//! Lesson: what a TLS record is made of. No network, no handshake: keys are made up, and one short message becomes a record in
//! each version; every byte's role is printed. Then a bit is turned, and a record is repeated, to see what the tag is for.
//!
//! `cargo run -p uktls-examples --example record_by_hand`

use uktls_record::{CipherSuite, ContentType, CryptoInfo, Error, Opener, ProtocolVersion, Sealer};

const MESSAGE: &[u8] = b"hello, record";

fn main() -> Result<(), Error> {
    one(
        "TLS 1.2, AES-128-GCM (RFC 5288)",
        ProtocolVersion::Tls12,
        CipherSuite::Aes128Gcm,
    )?;
    one(
        "TLS 1.2, ChaCha20-Poly1305 (RFC 7905)",
        ProtocolVersion::Tls12,
        CipherSuite::ChaCha20Poly1305,
    )?;
    one(
        "TLS 1.3, AES-128-GCM (RFC 8446)",
        ProtocolVersion::Tls13,
        CipherSuite::Aes128Gcm,
    )
}

/// What both ends of a connection would have agreed on. Record 5 is the next, so that the nonce has something to show.
fn made_up_keys(version: ProtocolVersion, cipher: CipherSuite) -> Result<CryptoInfo, Error> {
    let key = vec![0x11; cipher.key_len()];
    let salt = vec![0xaa; cipher.salt_len()];
    let iv = vec![0; cipher.iv_len()];
    CryptoInfo::new(version, cipher, &key, &salt, &iv, 5)
}

fn one(title: &str, version: ProtocolVersion, cipher: CipherSuite) -> Result<(), Error> {
    println!("\n{title}");
    let keys = made_up_keys(version, cipher)?;
    let mut sealer = Sealer::new(&keys)?;

    // The plaintext lies where it will be sealed: behind room for what comes in front, before room for what comes after.
    let front = sealer.prefix_len();
    let mut record = vec![0; sealer.overhead() + MESSAGE.len()];
    record[front..][..MESSAGE.len()].copy_from_slice(MESSAGE);
    show("plaintext", MESSAGE, "as the application wrote it");

    let sequence = sealer.sequence();
    sealer.seal_in_place(ContentType::APPLICATION_DATA, &mut record)?;

    show(
        "type",
        &record[..1],
        "application_data; TLS 1.3 claims that of every record",
    );
    show(
        "version",
        &record[1..3],
        "TLS 1.2 is written 0303, and TLS 1.3 writes the same",
    );
    show("length", &record[3..5], "of all that follows, big-endian");
    if front > 5 {
        show(
            "explicit nonce",
            &record[5..front],
            "the half of the nonce that travels",
        );
    }
    let tag = record.len() - 16;
    let sealed_len = tag - front;
    show(
        "ciphertext",
        &record[front..tag],
        match sealed_len - MESSAGE.len() {
            0 => "as long as the plaintext",
            _ => "one byte longer: the real type is encrypted, behind the plaintext",
        },
    );
    show(
        "tag",
        &record[tag..],
        "vouches for all of the above and for the number of the record",
    );
    println!(
        "  {:<16}{sequence} (never sent: both ends count)",
        "record number"
    );

    // The other end: the same keys, the same count.
    let sealed = record.clone();
    let mut opener = Opener::new(&keys)?;
    let opened = opener.open_in_place(&mut record)?;
    assert_eq!(&record[opened.plaintext], MESSAGE);
    println!("  opened          {} by the other end", opened.content_type);

    // The same record a second time: the other end expects number 6 now, and the nonce is another.
    let mut repeated = sealed.clone();
    match opener.open_in_place(&mut repeated) {
        Err(refused) => println!("  sent again      refused: {refused}"),
        Ok(_) => unreachable!("a repeated record cannot have the next one's tag"),
    }

    // One bit of the ciphertext.
    let mut harmed = sealed;
    harmed[front] ^= 1;
    match Opener::new(&keys)?.open_in_place(&mut harmed) {
        Err(refused) => println!("  one bit turned  refused: {refused}"),
        Ok(_) => unreachable!("a turned bit cannot have the same tag"),
    }
    // Nothing of what was not authentic is left to be seen.
    assert!(harmed[front..tag].iter().all(|&byte| byte == 0));
    Ok(())
}

fn show(role: &str, bytes: &[u8], remark: &str) {
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("  {role:<16}{}\n  {:<16}  {remark}", hex.join(" "), "");
}

#[test]
fn the_lesson_is_true() {
    main().expect("every step works");
}
