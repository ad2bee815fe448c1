//! DTLS keys on simulated UDP sockets, and everything that a path does to datagrams.

use super::noise;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use uktls_record::dtls::{DiscardKind, EpochKeys, SEQUENCE_END};
use uktls_record::header::ContentType;
use uktls_record::suite::CipherSuite;
use uktls_stack::clock::{Duration, Instant};
use uktls_stack::sim::fault::{Action, Fault};
use uktls_stack::sim::link::{Dice, Knobs, Loss, Reorder};
use uktls_stack::sim::random::Chance;
use uktls_stack::sim::schedule::Schedule;
use uktls_stack::sim::{self, FailureKind, Host, KtlsSocket, Link, Net, Runs, UdpSocket, Way};

const EBADMSG: i32 = 74;
const EMSGSIZE: i32 = 90;

/// The keys of one direction and epoch.
fn keys(direction: &str, epoch: u16, sequence: u64) -> EpochKeys {
    let fill = noise(u64::from(epoch), 64);
    let first = direction.as_bytes()[0];
    let key: Vec<u8> = fill[..16].iter().map(|byte| byte ^ first).collect();
    EpochKeys::dtls12(CipherSuite::Aes128Gcm, &key, &fill[16..20], epoch, sequence)
        .expect("lengths of AES-128-GCM")
}

/// Two hosts with addresses of both families on one link; the client's records go *there*.
struct Pair {
    client: Host,
    server: Host,
    link: Link,
}

fn pair(net: &Net, knobs: Knobs) -> Pair {
    let client = net.host("client", ["10.0.0.1", "fd00::1"]);
    let server = net.host("server", ["10.0.0.2", "fd00::2"]);
    let link = net.link(&client, &server, knobs);
    Pair {
        client,
        server,
        link,
    }
}

fn delay(milliseconds: u64) -> Knobs {
    Knobs {
        delay: Duration::from_millis(milliseconds),
        ..Knobs::default()
    }
}

/// A connected socket with an association on it, keys of epoch 1 set both ways.
async fn attached(local: &str, remote: &str, is_client: bool) -> (UdpSocket, KtlsSocket) {
    let socket = UdpSocket::bind(local).await.expect("a free port");
    socket.connect(remote).await.expect("an address");
    let records = KtlsSocket::bind(&socket).expect("a connected socket");
    let (ours, theirs) = directions(is_client);
    records.set_send_keys(&keys(ours, 1, 0)).expect("keys");
    records.set_receive_keys(&keys(theirs, 1, 0)).expect("keys");
    (socket, records)
}

fn directions(is_client: bool) -> (&'static str, &'static str) {
    if is_client {
        ("up", "down")
    } else {
        ("down", "up")
    }
}

const CLIENT: (&str, &str) = ("10.0.0.1:5000", "10.0.0.2:4433");
const SERVER: (&str, &str) = ("10.0.0.2:4433", "10.0.0.1:5000");

/// A record's plaintext, which says which one it is.
fn message(number: u64) -> Vec<u8> {
    number.to_be_bytes().repeat(1 + (number % 90) as usize)
}

/// Sends `count` records, this far apart.
async fn send_all(records: &KtlsSocket, from: u64, count: u64, apart: Duration) {
    for number in from..from + count {
        records.send(&message(number)).await.expect("sealed");
        sim::sleep(apart).await;
    }
}

/// Receives until nothing has come for ten minutes, checks each record, and gives their numbers in the order of their arrival.
async fn receive_all(records: &KtlsSocket) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut buffer = [0; 2048];
    while let Ok(received) = sim::timeout(Duration::from_secs(600), records.recv(&mut buffer)).await
    {
        let received = received.expect("a record");
        let record = &buffer[..received.len];
        let number = u64::from_be_bytes(*record.first_chunk().expect("eight bytes at least"));
        assert_eq!(record, message(number));
        numbers.push(number);
    }
    numbers
}

/// A run's outcome at the receiver: what came, and what was dropped by kind.
type Outcome = Rc<RefCell<(Vec<u64>, [u64; 6])>>;

/// One direction of records over a link, as a whole run.
fn one_way(pair: &Pair, count: u64, apart: Duration) -> Outcome {
    let outcome = Outcome::default();
    let seen = outcome.clone();
    pair.server.spawn(async move {
        let (_socket, records) = attached(SERVER.0, SERVER.1, false).await;
        let numbers = receive_all(&records).await;
        *seen.borrow_mut() = (numbers, records.stat().expect("attached").dropped);
    });
    pair.client.spawn(async move {
        let (_socket, records) = attached(CLIENT.0, CLIENT.1, true).await;
        send_all(&records, 0, count, apart).await;
    });
    outcome
}

fn only(kind: DiscardKind, count: u64) -> [u64; 6] {
    let mut dropped = [0; 6];
    dropped[kind as usize] = count;
    dropped
}

#[test]
fn what_is_lost_stays_lost_and_the_rest_arrives_once() {
    let loss = Knobs {
        loss: Loss::random(Chance::percent(10)),
        ..delay(5)
    };
    let net = Net::new(1);
    let pair = pair(&net, loss);
    let outcome = one_way(&pair, 1000, Duration::from_micros(100));
    let report = net.run();
    let lost = pair.link.counters(Way::There).lost;
    let (numbers, dropped) = &*outcome.borrow();
    assert!(lost > 50, "{lost}");
    assert_eq!(numbers.len() as u64, 1000 - lost);
    assert!(numbers.is_sorted());
    assert_eq!(dropped, &[0; 6]);
    assert_eq!(report.totals.sealed, 1000);
    assert_eq!(report.totals.opened, 1000 - lost);
}

#[test]
fn what_comes_twice_is_delivered_once() {
    let twice = Knobs {
        duplicate: Dice::of(Chance::percent(30)),
        ..delay(5)
    };
    let net = Net::new(1);
    let pair = pair(&net, twice);
    let outcome = one_way(&pair, 500, Duration::from_micros(100));
    let report = net.run();
    let copies = pair.link.counters(Way::There).duplicated;
    let (numbers, dropped) = &*outcome.borrow();
    assert!(copies > 100, "{copies}");
    assert_eq!(numbers, &Vec::from_iter(0..500));
    assert_eq!(dropped, &only(DiscardKind::Replayed, copies));
    let [server, client] = &report.associations[..] else {
        panic!("two views of one association: {:?}", report.associations);
    };
    assert_eq!((client.sealed, client.opened), (500, 0));
    assert_eq!((server.sealed, server.opened), (0, 500));
    assert_eq!(&server.dropped, dropped);
    assert!(
        report.to_string().contains("dropped as replayed"),
        "{report}"
    );
}

/// RFC 6347 §4.1.2.6: "Records that contain sequence numbers lower than the 'left' edge of the window are rejected."
#[test]
fn what_comes_later_than_the_window_reaches_is_too_old() {
    let net = Net::new(1);
    let pair = pair(&net, delay(1));
    // Records leave every 100 µs: 6.3 ms later 63 others have come, and 6.5 ms later 65.
    for (nth, held) in [(100, 6_350), (300, 6_550)] {
        let hold = Fault::new(Action::Delay(Duration::from_micros(held)));
        pair.link.fault(Way::There, hold.dtls_epoch(1).nth(nth));
    }
    let outcome = one_way(&pair, 500, Duration::from_micros(100));
    net.run();
    let (numbers, dropped) = &*outcome.borrow();
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, Vec::from_iter((0..500).filter(|n| *n != 299)));
    assert_eq!(numbers[98..101], [98, 100, 101], "one was held back");
    assert_eq!(dropped, &only(DiscardKind::TooOld, 1));
}

#[test]
fn forged_records_are_dropped_and_do_not_move_the_window() {
    let forge = Knobs {
        forge: Dice::of(Chance::percent(20)),
        ..delay(5)
    };
    let net = Net::new(2);
    let pair = pair(&net, forge);
    let outcome = one_way(&pair, 1000, Duration::from_micros(100));
    net.run();
    let damaged = pair.link.counters(Way::There).damaged;
    let (numbers, dropped) = &*outcome.borrow();
    assert!(damaged > 150, "{damaged}");
    assert_eq!(numbers.len() as u64, 1000 - damaged);
    let of = |kind: DiscardKind| dropped[kind as usize];
    // A flipped bit in a header makes the record another one, or none; some are not even the association's any more.
    assert!(of(DiscardKind::Unverified) > 100, "{dropped:?}");
    assert!(of(DiscardKind::Malformed) > 0, "{dropped:?}");
    assert!(dropped.iter().sum::<u64>() <= damaged, "{dropped:?}");
}

/// The new keys are set at the sender in the middle of a stream of records, on a path that mixes up their order.
fn epoch_change(net: &Net, late: Option<Duration>) -> Outcome {
    let pair = pair(
        net,
        Knobs {
            reorder: Reorder {
                dice: Dice::of(Chance::percent(30)),
                gap: 0,
                ahead: Some(Duration::from_millis(3)),
            },
            ..delay(5)
        },
    );
    if let Some(late) = late {
        let hold = Fault::new(Action::Delay(late)).dtls_epoch(1).nth(50);
        pair.link.fault(Way::There, hold);
    }
    let outcome = Outcome::default();
    let seen = outcome.clone();
    pair.server.spawn(async move {
        let (_socket, records) = attached(SERVER.0, SERVER.1, false).await;
        // As with a handshake: the receiver knows the new keys before the first record under them comes.
        sim::sleep(Duration::from_millis(5)).await;
        records.set_receive_keys(&keys("up", 2, 0)).expect("keys");
        let numbers = receive_all(&records).await;
        *seen.borrow_mut() = (numbers, records.stat().expect("attached").dropped);
    });
    pair.client.spawn(async move {
        let (_socket, records) = attached(CLIENT.0, CLIENT.1, true).await;
        send_all(&records, 0, 100, Duration::from_micros(100)).await;
        records.set_send_keys(&keys("up", 2, 0)).expect("keys");
        send_all(&records, 100, 100, Duration::from_micros(100)).await;
        let next = records.send_keys().expect("keys are set");
        assert_eq!((next.epoch(), next.sequence()), (2, 100));
    });
    outcome
}

#[test]
fn an_epoch_change_under_reordering_loses_nothing_and_doubles_nothing() {
    for (seed, late) in [(1, None), (2, Some(Duration::from_secs(119)))] {
        let net = Net::new(seed);
        let outcome = epoch_change(&net, late);
        net.run();
        let (numbers, dropped) = &*outcome.borrow();
        let unique: BTreeSet<u64> = numbers.iter().copied().collect();
        assert_eq!(numbers.len(), 200);
        assert_eq!(unique.len(), 200);
        assert!(!numbers.is_sorted(), "nothing overtook");
        // The old epoch has a window of its own, and a record of it comes behind records of the new one.
        assert_eq!(dropped, &[0; 6]);
    }
}

#[test]
fn the_epoch_before_is_taken_for_two_minutes_and_no_longer() {
    let net = Net::new(3);
    let outcome = epoch_change(&net, Some(Duration::from_secs(121)));
    net.run();
    let (numbers, dropped) = &*outcome.borrow();
    assert_eq!(numbers.len(), 199);
    assert!(!numbers.contains(&49));
    assert_eq!(dropped, &only(DiscardKind::WrongEpoch, 1));
}

#[test]
fn a_fault_can_mean_one_epoch() {
    let net = Net::new(4);
    let outcome = epoch_change(&net, None);
    // Hosts and link exist: the fault is a schedule's, as a failing run prints it.
    let drop_second = Fault::new(Action::Drop).dtls_epoch(2).every(2);
    net.schedule(&Schedule::new().fault("client>server", drop_second));
    net.run();
    let (numbers, _) = &*outcome.borrow();
    let first = numbers.iter().filter(|number| **number < 100).count();
    assert_eq!((first, numbers.len() - first), (100, 50));
}

/// RFC 6347 §4.1: "DTLS implementations SHOULD NOT … MUST … rehandshake prior to allowing the sequence number to wrap."
#[test]
fn the_last_sequence_number_stops_the_socket_until_there_are_new_keys() {
    let net = Net::new(1);
    let pair = pair(&net, delay(1));
    let outcome = Outcome::default();
    let seen = outcome.clone();
    let near_the_end = SEQUENCE_END - 3;
    pair.server.spawn(async move {
        let (_socket, records) = attached(SERVER.0, SERVER.1, false).await;
        records
            .set_receive_keys(&keys("up", 1, near_the_end))
            .expect("keys");
        sim::sleep(Duration::from_millis(500)).await;
        records.set_receive_keys(&keys("up", 2, 0)).expect("keys");
        let numbers = receive_all(&records).await;
        *seen.borrow_mut() = (numbers, records.stat().expect("attached").dropped);
    });
    pair.client.spawn(async move {
        let (_socket, records) = attached(CLIENT.0, CLIENT.1, true).await;
        records
            .set_send_keys(&keys("up", 1, near_the_end))
            .expect("keys");
        // 2^48 − 4, − 3 and − 2; − 1 says that there is none left.
        send_all(&records, 0, 3, Duration::from_millis(1)).await;
        assert_eq!(records.send_keys().expect("set").sequence(), SEQUENCE_END);
        records.send(b"one too many").await.expect("taken");
        let error = records.recv(&mut [0; 9]).await.expect_err("a note");
        assert_eq!(error.raw_os_error(), Some(EBADMSG));
        for _ in 0..3 {
            let error = records.send(b"stopped").await.expect_err("used up");
            assert_eq!(error.raw_os_error(), Some(EBADMSG));
            let error = records.sendfile(vec![0; 99]).await.expect_err("used up");
            assert_eq!(error.raw_os_error(), Some(EBADMSG));
            sim::sleep(Duration::from_millis(1)).await;
        }
        sim::sleep(Duration::from_secs(1)).await;
        records.set_send_keys(&keys("up", 2, 0)).expect("keys");
        send_all(&records, 3, 3, Duration::from_millis(1)).await;
    });
    let report = net.run();
    assert_eq!(*outcome.borrow(), (Vec::from_iter(0..6), [0; 6]));
    assert_eq!((report.totals.sealed, report.totals.opened), (6, 6));
}

#[test]
fn a_file_from_memory_stops_where_the_numbers_end() {
    let net = Net::new(1);
    let pair = pair(&net, delay(1));
    pair.client.spawn(async move {
        let (_socket, records) = attached(CLIENT.0, CLIENT.1, true).await;
        records
            .set_send_keys(&keys("up", 1, SEQUENCE_END - 2))
            .expect("keys");
        records.set_mtu(Some(1037)).expect("attached");
        let sent = records.sendfile(vec![7; 5000]).await.expect("two records");
        assert_eq!(sent, 2000);
        let error = records.recv(&mut [0; 9]).await.expect_err("a note");
        assert_eq!(error.raw_os_error(), Some(EBADMSG));
    });
    assert_eq!(net.run().totals.sealed, 2);
}

#[test]
fn memory_goes_in_records_of_the_mtu_that_was_set() {
    let net = Net::new(1);
    let pair = pair(&net, delay(1));
    let file = noise(5, 100_000);
    let expected = file.clone();
    pair.server.spawn(async move {
        let (_socket, records) = attached(SERVER.0, SERVER.1, false).await;
        let mut all = Vec::new();
        let mut buffer = vec![0; 20_000];
        while all.len() < expected.len() {
            let received = records.recv(&mut buffer).await.expect("a record");
            assert!(!received.truncated);
            all.extend_from_slice(&buffer[..received.len]);
        }
        assert!(all == expected, "the file came out changed");
    });
    pair.client.spawn(async move {
        let (_socket, records) = attached(CLIENT.0, CLIENT.1, true).await;
        records.set_mtu(Some(1437)).expect("attached");
        assert_eq!(records.sendfile(file).await.expect("sealed"), 100_000);
        assert_eq!(records.sendfile(Vec::new()).await.expect("nothing"), 0);
    });
    // ⌈100,000 / 1,400⌉
    assert_eq!(net.run().totals.sealed, 72);
}

#[test]
fn every_cipher_and_version_and_address_family_carries_records() {
    let suites = [
        CipherSuite::Aes128Gcm,
        CipherSuite::Aes256Gcm,
        CipherSuite::ChaCha20Poly1305,
    ];
    for (suite, newer) in suites
        .into_iter()
        .flat_map(|suite| [(suite, false), (suite, true)])
    {
        let net = Net::new(1);
        let pair = pair(&net, delay(1));
        let keys = move |first: u8| {
            let bytes = [first; 64];
            let (key, iv) = (&bytes[..suite.key_len()], &bytes[..12]);
            if newer {
                EpochKeys::dtls13(suite, key, iv, key, 3, 0)
            } else {
                let iv_len = if suite == CipherSuite::ChaCha20Poly1305 {
                    12
                } else {
                    4
                };
                EpochKeys::dtls12(suite, key, &iv[..iv_len], 1, 0)
            }
            .expect("lengths of this suite")
        };
        pair.server.spawn(async move {
            let socket = UdpSocket::bind("[::]:4433").await.expect("a free port");
            socket.connect("[fd00::1]:5000").await.expect("an address");
            let records = KtlsSocket::bind(&socket).expect("connected");
            records.set_receive_keys(&keys(1)).expect("keys");
            records.set_send_keys(&keys(2)).expect("keys");
            let mut buffer = vec![0; 1 << 14];
            loop {
                let received = records.recv(&mut buffer).await.expect("a record");
                if received.len == 0 {
                    return;
                }
                records.send(&buffer[..received.len]).await.expect("sent");
            }
        });
        pair.client.spawn(async move {
            let socket = UdpSocket::bind("[::]:5000").await.expect("a free port");
            socket.connect("[fd00::2]:4433").await.expect("an address");
            let records = KtlsSocket::bind(&socket).expect("connected");
            records.set_send_keys(&keys(1)).expect("keys");
            records.set_receive_keys(&keys(2)).expect("keys");
            let mut buffer = vec![0; 1 << 14];
            // The longest goes in fragments.
            for len in [1, 100, 1400, 1 << 14] {
                records.send(&noise(9, len)).await.expect("sent");
                let received = records.recv(&mut buffer).await.expect("it comes back");
                assert_eq!(&buffer[..received.len], noise(9, len));
                assert_eq!(received.content_type, ContentType::APPLICATION_DATA);
            }
            let error = records
                .send(&vec![0; (1 << 14) + 1])
                .await
                .expect_err("too long");
            assert_eq!(error.raw_os_error(), Some(7)); // E2BIG
            records.send(b"").await.expect("an empty one");
        });
        let report = net.run();
        assert_eq!((report.totals.sealed, report.totals.opened), (9, 9));
    }
}

#[test]
fn a_path_that_becomes_narrower_is_told_and_found() {
    let net = Net::new(1);
    let client = net.host("client", "10.1.0.1");
    let server = net.host("server", "10.2.0.1");
    let router = net.router("router", "10.1.0.254");
    net.link(&client, &router, delay(5));
    let narrow = net.link(&router, &server, delay(5));
    let seen = Outcome::default();
    let at_the_end = seen.clone();
    server.spawn(async move {
        let (_socket, records) = attached("10.2.0.1:4433", "10.1.0.1:5000", false).await;
        let mut buffer = [0; 2048];
        while let Ok(received) =
            sim::timeout(Duration::from_secs(5), records.recv(&mut buffer)).await
        {
            let len = received.expect("a record").len;
            at_the_end.borrow_mut().0.push(len as u64);
        }
    });
    client.spawn(async move {
        let (socket, records) = attached("10.1.0.1:5000", "10.2.0.1:4433", true).await;
        socket.set_dont_fragment(true).expect("the host is up");
        records.send(&[1; 1400]).await.expect("fits");
        sim::sleep(Duration::from_secs(1)).await;
        narrow.turn_both(|knobs| knobs.mtu = 1280);
        // Lost, and the router says why.
        records
            .send(&[2; 1401])
            .await
            .expect("fits, as far as is known");
        sim::sleep(Duration::from_secs(1)).await;
        assert_eq!(socket.path_mtu().expect("the host is up"), 1280);
        records.send(&[3; 1402]).await.expect("taken");
        let error = records.recv(&mut [0; 9]).await.expect_err("a note");
        assert_eq!(error.raw_os_error(), Some(EMSGSIZE));
        // 1,280 less IP's, UDP's and the record's headers and tag.
        records.send(&[4; 1280 - 28 - 37]).await.expect("fits");
        socket.set_dont_fragment(false).expect("the host is up");
        records.send(&[5; 1403]).await.expect("goes in fragments");
        assert_eq!(records.stat().expect("attached").too_long, 1);
    });
    net.run();
    assert_eq!(seen.borrow().0, [1400, 1215, 1403]);
}

#[test]
fn what_came_before_the_keys_and_what_is_no_record_find_their_readers() {
    let net = Net::new(1);
    let pair = pair(&net, delay(1));
    pair.server.spawn(async move {
        let socket = UdpSocket::bind("10.0.0.2:4433").await.expect("a free port");
        let mut buffer = [0; 2048];
        let (len, from) = socket.recv_from(&mut buffer).await.expect("a datagram");
        assert_eq!(&buffer[..len], b"hello");
        socket.connect(from).await.expect("an address");
        // Records come and nobody has laid anything over the socket.
        sim::sleep(Duration::from_millis(100)).await;
        let records = KtlsSocket::bind(&socket).expect("connected");
        let error = records.send(b"x").await.expect_err("no keys");
        assert_eq!(error.raw_os_error(), Some(EBADMSG));
        let error = records.recv(&mut buffer).await.expect_err("no keys");
        assert_eq!(error.raw_os_error(), Some(EBADMSG));
        let error = KtlsSocket::bind(&socket).expect_err("attached already");
        assert_eq!(error.raw_os_error(), Some(22));
        records.set_receive_keys(&keys("up", 1, 0)).expect("keys");
        for expected in [&b"early"[..], b"late"] {
            let received = records.recv(&mut buffer).await.expect("a record");
            assert_eq!(&buffer[..received.len], expected);
        }
        assert_eq!(socket.recv(&mut buffer).await.expect("raw"), 3);
        // Given back: the next record is the UDP socket's.
        records.unattach().expect("attached");
        socket.send(b"go on").await.expect("sent");
        let len = socket.recv(&mut buffer).await.expect("a record");
        assert_eq!((buffer[0], len), (23, 37 + 4));
    });
    pair.client.spawn(async move {
        let socket = UdpSocket::bind("10.0.0.1:5000").await.expect("a free port");
        let error = KtlsSocket::bind(&socket).expect_err("no peer");
        assert_eq!(error.raw_os_error(), Some(107)); // ENOTCONN
        socket.connect("10.0.0.2:4433").await.expect("an address");
        socket.send(b"hello").await.expect("sent");
        let records = KtlsSocket::bind(&socket).expect("connected");
        records.set_send_keys(&keys("up", 1, 0)).expect("keys");
        records.send(b"early").await.expect("sent");
        sim::sleep(Duration::from_secs(1)).await;
        socket.send(b"raw").await.expect("sent");
        records.send(b"late").await.expect("sent");
        let len = socket.recv(&mut [0; 99]).await.expect("raw");
        assert_eq!(len, 5);
        records.send(b"last").await.expect("sent");
    });
    net.run();
}

#[test]
fn the_same_seed_is_the_same_run() {
    let wild = || Knobs {
        loss: Loss::random(Chance::percent(3)),
        duplicate: Dice::of(Chance::percent(3)),
        forge: Dice::of(Chance::percent(3)),
        jitter: Duration::from_millis(4),
        jitter_reorders: true,
        ..delay(5)
    };
    let hash = |seed| {
        let net = Net::new(seed);
        let pair = pair(&net, wild());
        one_way(&pair, 300, Duration::from_micros(200));
        net.run()
    };
    assert_eq!(hash(1), hash(1));
    assert_ne!(hash(1).hash, hash(2).hash);
    let report = Runs::from_env()
        .seeds(1, 3)
        .check_determinism(true)
        .run(|net| {
            let pair = pair(net, wild());
            one_way(&pair, 300, Duration::from_micros(200));
        });
    assert!(report.ended > Instant::from_secs(600));
}

#[test]
fn one_key_on_two_sockets_breaks_an_invariant() {
    let net = Net::new(1);
    let pair = pair(&net, delay(1));
    pair.client.spawn(async move {
        for port in [5000, 5001] {
            let local = format!("10.0.0.1:{port}");
            let (_socket, records) = attached(&local, CLIENT.1, true).await;
            records.send(b"the same number").await.expect("taken");
            sim::sleep(Duration::from_millis(1)).await;
        }
    });
    let failure = net.try_run().expect_err("a nonce is used twice");
    assert_eq!(failure.kind, FailureKind::Invariant);
    let text = failure.to_string();
    for part in [
        "a nonce protects two plaintexts",
        "client:5001→server:4433",
        "UDP 5000→4433 len 52 | DTLS data epoch 1 #0 39",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

/// Two records of each of two epochs, the second of all lost and the third doubled.
pub(crate) fn exchange_of_four(net: &Net) {
    let pair = pair(net, delay(1));
    pair.link
        .fault(Way::There, Fault::new(Action::Drop).dtls_epoch(1).nth(2));
    pair.link.fault(
        Way::There,
        Fault::new(Action::Duplicate).dtls_epoch(2).nth(1),
    );
    pair.client.spawn(async {
        let (_socket, records) = attached(CLIENT.0, CLIENT.1, true).await;
        send_all(&records, 0, 2, Duration::from_millis(1)).await;
        records.set_send_keys(&keys("up", 2, 0)).expect("keys");
        send_all(&records, 2, 2, Duration::from_millis(1)).await;
    });
}
