//! DTLS records in datagrams, over a link on which everything happens to datagrams: some are lost, some come twice, some
//! overtake others, and in some a bit is flipped that UDP's checksum does not give away.
//!
//! The program seals and opens by itself, with the record layer alone (`uktls_record::dtls`); its keys come from the run's seed. Whatever the link does, a record is
//! delivered once or not at all, and as it was sent. What is dropped is counted by kind.

use std::collections::{BTreeMap, BTreeSet};
use uktls_record::dtls::{DiscardKind, EpochKeys, Opener, Sealer};
use uktls_record::{CipherSuite, ContentType};
use uktls_stack::clock::Duration;
use uktls_stack::sim::link::{Dice, Knobs, Loss, Reorder};
use uktls_stack::sim::random::{Chance, Stream};
use uktls_stack::sim::{self, Net, UdpSocket};

const RECORDS: u64 = 2_000;

fn keys(seed: u64) -> EpochKeys {
    let suite = CipherSuite::Aes128Gcm;
    let (mut key, mut salt) = ([0; 16], [0; 4]);
    let mut stream = Stream::new(seed, "client", "dtls keys");
    stream.fill(&mut key);
    stream.fill(&mut salt);
    EpochKeys::dtls12(suite, &key, &salt, 1, 0).expect("the lengths of AES-128-GCM")
}

/// The plaintext of a record, which says which one it is.
fn message(number: u64) -> Vec<u8> {
    number.to_be_bytes().repeat(1 + (number % 100) as usize)
}

async fn send(seed: u64) {
    let mut sealer = Sealer::new(&keys(seed)).expect("the record layer has AES-128-GCM");
    let socket = UdpSocket::bind("[::]:0").await.expect("a free port");
    for number in 0..RECORDS {
        let plaintext = message(number);
        let mut record = vec![0; plaintext.len() + sealer.overhead()];
        sealer
            .seal_from(ContentType::APPLICATION_DATA, &plaintext, &mut record)
            .expect("the keys are far from used up");
        socket
            .send_to(&record, "server:4433")
            .await
            .expect("a datagram");
        sim::sleep(Duration::from_micros(200)).await;
    }
}

async fn receive(seed: u64) {
    let mut opener = Opener::new(&keys(seed)).expect("the record layer has AES-128-GCM");
    let socket = UdpSocket::bind("[::]:4433").await.expect("a free port");
    let mut delivered = BTreeSet::new();
    let mut dropped: BTreeMap<DiscardKind, u64> = BTreeMap::new();
    let mut buffer = [0; 2048];
    // Until nothing has come for a second, of virtual time.
    while let Ok(received) =
        sim::timeout(Duration::from_secs(1), socket.recv_from(&mut buffer)).await
    {
        let (length, _) = received.expect("a datagram");
        let datagram = &mut buffer[..length];
        match opener.open_next(datagram).opened {
            Ok(opened) => {
                assert_eq!(
                    datagram[opened.plaintext],
                    message(opened.sequence),
                    "not as it was sent"
                );
                assert!(
                    delivered.insert(opened.sequence),
                    "delivered twice: {}",
                    opened.sequence
                );
            }
            Err(discard) => *dropped.entry(discard.kind()).or_default() += 1,
        }
    }
    println!(
        "{} of {RECORDS} delivered; dropped: {dropped:?}",
        delivered.len()
    );
    let lost = RECORDS - delivered.len() as u64;
    assert!(lost > 0 && lost < RECORDS / 5, "{lost}");
    assert!(dropped[&DiscardKind::Replayed] > 0 && dropped[&DiscardKind::Unverified] > 0);
}

/// Builds the network and starts its programs.
pub(crate) fn scenario(net: &Net) {
    let client = net.host("client", "fd00::1");
    let server = net.host("server", "fd00::2");
    let wild = Knobs {
        delay: Duration::from_millis(20),
        loss: Loss::random(Chance::percent(3)),
        duplicate: Dice::of(Chance::percent(2)),
        forge: Dice::of(Chance::percent(2)),
        reorder: Reorder {
            dice: Dice::of(Chance::percent(5)),
            gap: 0,
            ahead: Some(Duration::from_millis(5)),
        },
        ..Knobs::default()
    };
    net.link(&client, &server, wild);
    let seed = net.seed();
    server.spawn(receive(seed));
    client.spawn(send(seed));
}

#[test]
fn a_record_is_delivered_once_or_not_at_all() {
    let report = sim::run(scenario);
    println!("{report}");
}
