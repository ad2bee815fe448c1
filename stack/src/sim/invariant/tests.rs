//! Histories that keep the invariants, and for each invariant histories that break it.

use super::*;
use crate::sim::packets::tcp;
use uktls_record::suite::{CipherSuite, ProtocolVersion};

const CLIENT: &str = "10.0.0.1:40000";
const SERVER: &str = "10.0.0.2:443";
/// So that numbers wrap within the test.
const ISN: u32 = u32::MAX - 50;

struct History {
    checker: Checker,
    now: Instant,
}

impl History {
    /// A connection is open; the client's stream is what is looked at.
    fn open() -> History {
        let mut checker = Checker::new(1);
        checker.name("10.0.0.1".parse().expect("literal"), "client");
        checker.name("10.0.0.2".parse().expect("literal"), "server");
        let mut history = History {
            checker,
            now: Instant::ZERO,
        };
        history
            .packet(&tcp(CLIENT, SERVER, ISN, None, Flags::SYN, b""))
            .expect("a SYN");
        history
            .packet(&tcp(
                SERVER,
                CLIENT,
                7000,
                Some(ISN.wrapping_add(1)),
                Flags::SYN,
                b"",
            ))
            .expect("its answer");
        history
    }

    fn packet(&mut self, packet: &[u8]) -> Verdict {
        self.now += std::time::Duration::from_millis(1);
        self.checker.sent(self.now, 0, packet, Cause::First)?;
        self.checker.delivered(self.now, 1, packet)
    }

    /// The client sends `payload` at stream offset `offset`.
    fn send(&mut self, offset: u32, payload: &[u8]) -> Verdict {
        let seq = ISN.wrapping_add(1 + offset);
        self.packet(&tcp(CLIENT, SERVER, seq, Some(7001), Flags::NONE, payload))
    }

    /// The server acknowledges everything in front of stream offset `offset`.
    fn acknowledge(&mut self, offset: u32) {
        let ack = ISN.wrapping_add(1 + offset);
        self.packet(&tcp(SERVER, CLIENT, 7001, Some(ack), Flags::NONE, b""))
            .expect("an acknowledgement");
    }

    fn keys(&mut self, direction: Direction, offset: u64, keys: &CryptoInfo) -> Verdict {
        let flow = if direction == Direction::Send {
            client()
        } else {
            server()
        };
        self.checker
            .keys_in_force(self.now, &flow, direction, offset, keys)
    }

    fn sealed(&mut self, range: Range<u64>, nonce: u8) -> Verdict {
        self.checker
            .sealed(self.now, &client(), range, &[nonce; NONCE_LEN])
    }

    fn out(&mut self, bytes: &[u8]) -> Verdict {
        self.checker.handed_out(self.now, &server(), bytes)
    }
}

fn client() -> FlowKey {
    FlowKey {
        local: CLIENT.parse().expect("literal"),
        remote: SERVER.parse().expect("literal"),
    }
}

fn server() -> FlowKey {
    Ends::from(&client()).reverse().into()
}

fn keys(byte: u8) -> CryptoInfo {
    let (version, cipher) = (ProtocolVersion::Tls13, CipherSuite::Aes128Gcm);
    CryptoInfo::from_key_and_iv(version, cipher, &[byte; 16], &[byte; 12], 0)
        .expect("the right lengths")
}

/// A record of `len` bytes in all, of the outer shape that any ciphertext has.
fn record(len: u8) -> Vec<u8> {
    let mut record = vec![23, 3, 3, 0, len - 5];
    record.extend(5..len);
    record
}

fn broken(verdict: Verdict, what: &str, packet: &str) {
    let violation = verdict.expect_err("the invariant is broken");
    assert!(violation.what.contains(what), "{violation}");
    assert!(violation.packet.contains(packet), "{violation}");
}

#[test]
fn a_history_without_fault_breaks_nothing() {
    let mut history = History::open();
    let plaintext = [b"x".repeat(20), b"y".repeat(30)].concat();
    history.checker.handed_in(&client(), b"hello");
    history.send(0, b"hello").expect("plain bytes");
    history
        .keys(Direction::Send, 5, &keys(1))
        .expect("the switch");
    history
        .keys(Direction::Receive, 5, &keys(1))
        .expect("the switch");
    history.checker.handed_in(&client(), &plaintext);
    history.sealed(5..45, 1).expect("a record");
    history.sealed(45..95, 2).expect("a record");
    let stream = [record(40), record(50)].concat();
    history.send(5, &stream[..60]).expect("the first part");
    history.send(65, &stream[60..]).expect("the rest");
    // Again, with other boundaries, across the wrap of the ring and of the numbers.
    history.send(25, &stream[20..70]).expect("a retransmission");
    history.out(b"hello").expect("plain bytes");
    history.checker.opened(&server(), 5..45, 20);
    history.out(&plaintext[..15]).expect("verified");
    history.checker.opened(&server(), 45..95, 30);
    history.out(&plaintext[15..]).expect("verified");
    history.acknowledge(95);
    let streams: Vec<StreamReport> = history.checker.streams().collect();
    assert_eq!((streams[0].in_flight, streams[0].inside), (0, Some(0)));
    assert_eq!(
        (streams[0].counts.retransmitted, streams[0].counts.sealed),
        (1, 2)
    );
    assert_eq!(
        (streams[0].counts.handed_in, streams[0].counts.handed_out),
        (55, 55)
    );
}

#[test]
fn a_retransmission_that_differs_is_seen_whatever_its_boundaries() {
    for at in 0..100 {
        let mut history = History::open();
        let mut bytes: Vec<u8> = (0..100).collect();
        history.send(0, &bytes[..30]).expect("new");
        history.acknowledge(10);
        history.send(30, &bytes[30..]).expect("new");
        bytes[at] ^= 0x80;
        if at < 10 {
            history
                .send(0, &bytes[..60])
                .expect("what was acknowledged is not kept");
            continue;
        }
        let verdict = history.send(0, &bytes);
        broken(
            verdict,
            &format!("stream byte {at} was {at:#04x}"),
            "client→server TCP 40000→443",
        );
    }
}

#[test]
fn plaintext_behind_the_switch_is_seen() {
    // Never sealed.
    let mut history = History::open();
    history
        .keys(Direction::Send, 0, &keys(1))
        .expect("the switch");
    broken(history.send(0, &record(40)), "never sealed", "seq 1:41");
    // Sealed in part.
    let mut history = History::open();
    history
        .keys(Direction::Send, 0, &keys(1))
        .expect("the switch");
    history.sealed(0..40, 1).expect("a record");
    broken(
        history.send(0, &[record(40), vec![1]].concat()),
        "stream byte 40",
        "seq 1:42",
    );
    // Said to be sealed, and not a record.
    let mut history = History::open();
    history
        .keys(Direction::Send, 0, &keys(1))
        .expect("the switch");
    history.sealed(0..40, 1).expect("a record");
    history.sealed(40..80, 2).expect("a record");
    history.send(0, &record(40)).expect("a record");
    broken(
        history.send(40, &b"GET / HTTP/1.1\r\n".repeat(2)),
        "where a record must begin",
        "seq 41:73",
    );
    // Bytes behind the switch were sent before it.
    let mut history = History::open();
    history.send(0, b"hello").expect("plain bytes");
    broken(
        history.keys(Direction::Send, 4, &keys(1)),
        "plaintext behind the switch",
        "client:40000→server:443",
    );
    // A gap between records.
    let mut history = History::open();
    history
        .keys(Direction::Send, 0, &keys(1))
        .expect("the switch");
    broken(
        history.sealed(1..40, 1),
        "plaintext behind the switch",
        "client:40000→server:443",
    );
}

#[test]
fn a_nonce_used_twice_is_seen() {
    let mut history = History::open();
    history
        .keys(Direction::Send, 0, &keys(1))
        .expect("the switch");
    history.sealed(0..40, 1).expect("a record");
    broken(
        history.sealed(40..80, 1),
        "a nonce protects two plaintexts",
        "client:40000→server:443",
    );
    // The same nonce is fine under another key, and not when the first key comes back.
    let mut history = History::open();
    history
        .keys(Direction::Send, 0, &keys(1))
        .expect("the switch");
    history.sealed(0..40, 1).expect("a record");
    history
        .keys(Direction::Send, 40, &keys(2))
        .expect("new keys");
    history.sealed(40..80, 1).expect("another key");
    history
        .keys(Direction::Send, 80, &keys(1))
        .expect("old keys");
    broken(
        history.sealed(80..120, 1),
        "a nonce protects two plaintexts",
        "client:40000→server:443",
    );
}

#[test]
fn a_datagrams_nonce_used_twice_is_seen() {
    let mut checker = Checker::new(1);
    let (now, key) = (Instant::ZERO, Fingerprint::of(&keys(1)));
    checker
        .nonce_used(now, &client(), key, &[1; NONCE_LEN])
        .expect("the first");
    let again = checker.nonce_used(now, &client(), key, &[1; NONCE_LEN]);
    broken(again, "a nonce protects two plaintexts", "10.0.0.1:40000");
}

#[test]
fn bytes_out_before_their_tag_was_verified_are_seen() {
    let mut history = History::open();
    history
        .keys(Direction::Send, 0, &keys(1))
        .expect("the switch");
    history
        .keys(Direction::Receive, 0, &keys(1))
        .expect("the switch");
    history.checker.handed_in(&client(), &[9; 20]);
    history.sealed(0..40, 1).expect("a record");
    history.send(0, &record(40)).expect("a record");
    history.checker.opened(&server(), 0..40, 18);
    history.out(&[9; 18]).expect("verified");
    broken(
        history.out(&[9; 1]),
        "19 bytes are out, 18 were verified",
        "server:443→client:40000",
    );
}

#[test]
fn bytes_that_come_out_other_than_they_went_in_are_seen() {
    let mut history = History::open();
    history.checker.handed_in(&client(), b"one two three");
    history.send(0, b"one two three").expect("new");
    history.out(b"one ").expect("what went in");
    broken(
        history.out(b"tWo"),
        "byte 5 went in as 0x77 and came out as 0x57",
        "server:443→client:40000",
    );
    let mut history = History::open();
    history.checker.handed_in(&client(), b"one");
    broken(
        history.out(b"one!"),
        "1 more than the 3",
        "server:443→client:40000",
    );
}

#[test]
fn bytes_that_are_missing_at_a_streams_end_are_seen() {
    let mut history = History::open();
    history.checker.handed_in(&client(), b"one two");
    history.send(0, b"one two").expect("new");
    history.out(b"one ").expect("what went in");
    broken(
        history.checker.ended(history.now, &server()),
        "did not come out: 3 behind the 4 that did",
        "server:443→client:40000",
    );
    history.out(b"two").expect("the rest");
    history
        .checker
        .ended(history.now, &server())
        .expect("everything came out");
    // Whoever forges a segment may forge an end.
    history.checker.handed_in(&client(), b"three");
    let seq = ISN.wrapping_add(8);
    let forged = tcp(CLIENT, SERVER, seq, Some(7001), Flags::NONE, b"three");
    history
        .checker
        .forged(history.now, 0, &forged)
        .expect("an event");
    history
        .checker
        .ended(history.now, &server())
        .expect("excused");
}

#[test]
fn a_forged_packet_excuses_plain_bytes_and_never_opened_ones() {
    let forged = tcp(
        CLIENT,
        SERVER,
        ISN.wrapping_add(1),
        Some(7001),
        Flags::NONE,
        b"evil",
    );
    let mut history = History::open();
    history.checker.handed_in(&client(), b"good");
    history
        .checker
        .forged(history.now, 0, &forged)
        .expect("an event");
    history.out(b"evil").expect("TCP cannot know");
    let mut history = History::open();
    history
        .keys(Direction::Send, 0, &keys(1))
        .expect("the switch");
    history
        .keys(Direction::Receive, 0, &keys(1))
        .expect("the switch");
    history.checker.handed_in(&client(), b"good");
    history
        .checker
        .forged(history.now, 0, &forged)
        .expect("an event");
    history.checker.opened(&server(), 0..30, 4);
    broken(
        history.out(b"evil"),
        "what comes out is not what went in",
        "server:443→client:40000",
    );
}

#[test]
fn ends_that_speak_of_different_bytes_are_not_compared() {
    // Keys on the sender's socket; the receiver has a TLS of its own.
    let mut history = History::open();
    history
        .keys(Direction::Send, 0, &keys(1))
        .expect("the switch");
    history.checker.handed_in(&client(), b"plaintext");
    history.sealed(0..40, 1).expect("a record");
    history.send(0, &record(40)).expect("a record");
    history.out(&record(40)).expect("nobody can compare");
    let stream = history.checker.streams().next().expect("one");
    assert_eq!(stream.inside, None);
}

#[test]
fn records_are_numbered_in_the_last_lines() {
    let mut history = History::open();
    history
        .keys(Direction::Send, 0, &keys(1))
        .expect("the switch");
    for i in 0..5 {
        history
            .sealed(i * 40..i * 40 + 40, i as u8)
            .expect("a record");
    }
    let stream = record(40).repeat(5);
    history
        .send(0, &stream[..43])
        .expect("one record, and a part of a header");
    history.send(43, &stream[43..]).expect("the rest");
    let lines = history.checker.last_lines();
    assert!(
        lines[2].ends_with("len 43 | TLS data #0 35"),
        "{}",
        lines[2]
    );
    assert!(
        lines[3].ends_with("len 157 | TLS data #1 35, data #2 35, data #3 35, …"),
        "{}",
        lines[3]
    );
}

#[test]
fn another_run_is_held_against_the_first() {
    let run = |history: &mut History, bytes: &[u8]| history.send(0, bytes);
    let mut first = History::open();
    first.checker.keep_journal();
    run(&mut first, b"the same").expect("nothing to compare with");
    let journal = first.checker.take_journal().expect("one was kept");
    let mut second = History::open();
    second.checker.compare_with(journal);
    broken(
        run(&mut second, b"not same"),
        "differ, from event 0 on",
        "first run:  0.003000000 client→server",
    );
}

#[test]
fn new_connections_begin_new_streams() {
    let mut history = History::open();
    history.send(0, b"first connection").expect("new");
    history
        .packet(&tcp(CLIENT, SERVER, 5, None, Flags::SYN, b""))
        .expect("a SYN");
    let again = tcp(
        CLIENT,
        SERVER,
        6,
        Some(7001),
        Flags::NONE,
        b"other connection",
    );
    history
        .packet(&again)
        .expect("the second connection's first bytes");
    assert_eq!(history.checker.streams().count(), 3);
}
