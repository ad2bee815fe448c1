//! The table of calls: what moves bytes, and what stops it.

use crate::ground::*;
use crate::table;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use uktls::client::SendFlags;
use uktls::client::af_ktls::*;
use uktls_record::ContentType;
use uktls_record::dtls::SEQUENCE_END;

table! {
    one_record_per_call, BOTH, "send, sendmsg: one record per call up to 2^14";
    longer_writes, STREAM, "send: longer stream writes become several records";
    more_gathers, STREAM, "send: MSG_MORE gathers";
    more_does_not_gather, DATAGRAM, "send: MSG_MORE gathers (never on DTLS)";
    send_without_keys, BOTH, "send: no keys EBADMSG";
    send_too_long, DATAGRAM, "send: DTLS over 2^14 E2BIG";
    out_of_band, BOTH, "send: MSG_OOB refused";
    sendmsg_gathers, BOTH, "sendmsg: several buffers, one record";
    bytes_across_records, STREAM, "recv: bytes across records";
    part_of_a_record, STREAM, "recv: what does not fit is there for the next call; MSG_EOR at the record's end";
    one_record_a_call, DATAGRAM, "recv: one record a call, MSG_TRUNC when the buffer is short";
    recvmsg_scatters, BOTH, "recvmsg: several buffers";
    peek, BOTH, "recv: MSG_PEEK honoured";
    dontwait, BOTH, "recv: MSG_DONTWAIT honoured";
    nonblocking, BOTH, "recv: O_NONBLOCK honoured";
    recv_without_keys, BOTH, "recv: no keys EBADMSG";
    record_fails, STREAM, "recv: record fails EBADMSG";
    record_fails_to_parse, STREAM, "recv: a record too long, too short or of another version EBADMSG";
    record_is_dropped, DATAGRAM, "recv: a record that fails is dropped and counted, and stops nothing";
    control_record, BOTH, "record of another type than 0x17: untouched on the underlying socket";
    control_record_stops, STREAM, "record of another type: reading stops: EBADMSG, polls as in error";
    control_record_directly, STREAM, "record of another type: read by its owner directly, then KTLS_SET_IV_RECV";
    control_record_unattached, STREAM, "record of another type: read by its owner after KTLS_UNATTACH, then bind";
    control_records_in_a_row, STREAM, "records of other types in a row, data behind them";
    owner_writes_between_records, STREAM, "the owner's raw record between two of the AF_KTLS socket's";
    owner_may_not_read_data, STREAM, "the owner's read where data is next: EBUSY; sendfile: EBUSY";
    splice_to_a_pipe, BOTH, "splice to a pipe: plaintext moves record by record";
    splice_to_without_keys, BOTH, "splice to a pipe: no keys EBADMSG";
    splice_from_a_pipe, BOTH, "splice from a pipe: pages become records, up to 2^14 each";
    splice_from_a_pipe_mtu, BOTH, "splice from a pipe: KTLS_SET_MTU minus overhead where set";
    sendfile, BOTH, "sendfile: pages become records, up to 2^14 each";
    sendfile_mtu, BOTH, "sendfile: KTLS_SET_MTU minus overhead where set, and send as before";
    sendfile_without_keys, BOTH, "sendfile: no keys EBADMSG";
    sendfile_of_what, BOTH, "sendfile: of a pipe EINVAL, at the end 0, a short file its length";
    receive_to_a_file, BOTH, "recvfile: records to a file";
    sequence_overflow_sending, BOTH, "sequence overflow: error, socket stops: EBADMSG (sending)";
    sequence_overflow_receiving, STREAM, "sequence overflow: EBADMSG (receiving)";
    replayed, DATAGRAM, "DTLS replay window: seen before: dropped silently";
    outside_the_window, DATAGRAM, "DTLS replay window: 64 entries; outside: dropped silently";
    other_epoch, DATAGRAM, "DTLS replay window: other epoch: dropped silently";
    past_a_long_loss, DATAGRAM, "DTLS replay window: jumps forward past a long loss";
}

const DATA: ContentType = ContentType::APPLICATION_DATA;
const RECORD: usize = 1 << 14;

/// The IV that lies so many records behind the first one.
fn iv(behind: u64) -> [u8; 8] {
    (u64::from_be_bytes(IV) + behind).to_be_bytes()
}

fn one_record_per_call(ground: &Ground) {
    let (socket, wire) = ground.to_the_wire();
    let sizes = [1, 2, 100, 1000, RECORD - 1, RECORD, 3];
    for len in sizes {
        send(&socket, &text(len));
    }
    for len in sizes {
        assert_eq!(wire.plaintext(), len);
    }
}

fn longer_writes(ground: &Ground) {
    let (socket, wire) = ground.to_the_wire();
    for (len, records) in [
        (RECORD + 1, &[RECORD, 1][..]),
        (2 * RECORD, &[RECORD, RECORD]),
        (40_000, &[RECORD, RECORD, 40_000 - 2 * RECORD]),
    ] {
        send(&socket, &text(len));
        for expected in records {
            assert_eq!(wire.plaintext(), *expected, "of {len} bytes");
        }
    }
}

fn more_gathers(ground: &Ground) {
    let (socket, wire) = ground.to_the_wire();
    for _ in 0..3 {
        assert_eq!(socket.send(&text(100), KtlsFlags::MORE).expect("sent"), 100);
    }
    send(&socket, &text(50));
    assert_eq!(wire.plaintext(), 350);
    socket.send(&text(RECORD), KtlsFlags::MORE).expect("sent");
    socket.send(&text(1), KtlsFlags::MORE).expect("sent");
    send(&socket, &text(1));
    assert_eq!(wire.plaintext(), RECORD, "a full one leaves");
    assert_eq!(wire.plaintext(), 2);
    let both = socket.send(b"x", KtlsFlags::MORE | KtlsFlags::EOR);
    assert_eq!(errno(both), Errno::INVAL);
}

fn more_does_not_gather(ground: &Ground) {
    let (socket, wire) = ground.to_the_wire();
    for len in [100, 1, 7] {
        assert_eq!(socket.send(&text(len), KtlsFlags::MORE).expect("sent"), len);
        assert_eq!(wire.plaintext(), len);
    }
}

fn send_without_keys(ground: &Ground) {
    let pair = ground.bound();
    for len in [0, 1, RECORD, RECORD + 1] {
        assert_eq!(errno(pair.left.send(&text(len), NONE)), Errno::BADMSG);
    }
}

fn send_too_long(ground: &Ground) {
    let (socket, wire) = ground.to_the_wire();
    for len in [RECORD + 1, 20_000, 100_000] {
        assert_eq!(errno(socket.send(&text(len), NONE)), Errno::TOOBIG);
    }
    send(&socket, b"x");
    assert_eq!(wire.plaintext(), 1);
}

fn out_of_band(ground: &Ground) {
    let pair = ground.armed();
    let error = pair.left.send(b"x", KtlsFlags::OOB);
    assert_eq!(errno(error), Errno::OPNOTSUPP);
    let error = pair.left.recv(&mut [0], KtlsFlags::OOB);
    assert_eq!(errno(error), Errno::OPNOTSUPP);
}

fn sendmsg_gathers(ground: &Ground) {
    let (socket, wire) = ground.to_the_wire();
    let (a, b) = (text(1000), text(500));
    let sent = socket.sendmsg(&[IoSlice::new(&a), IoSlice::new(&b)], NONE);
    assert_eq!(sent.expect("sent"), 1500);
    assert_eq!(wire.plaintext(), 1500);
}

fn bytes_across_records(ground: &Ground) {
    let pair = ground.armed();
    let whole = text(3000);
    for piece in whole.chunks(700) {
        send(&pair.left, piece);
    }
    assert!(read(&pair.right, 3000) == whole);
    // What waits comes in one call.
    for piece in whole.chunks(700) {
        send(&pair.left, piece);
    }
    pair.wait_for_records(10);
    let mut buf = vec![0; 4000];
    let received = pair.right.recv(&mut buf, NONE).expect("five records");
    assert_eq!((received.len, received.end_of_record), (3000, true));
    assert!(buf[..3000] == whole);
}

fn part_of_a_record(ground: &Ground) {
    let pair = ground.armed();
    send(&pair.left, b"0123456789");
    let mut buf = [0; 4];
    for (expected, ends) in [(&b"0123"[..], false), (b"4567", false), (b"89", true)] {
        let received = pair.right.recv(&mut buf, NONE).expect("a part");
        assert_eq!(&buf[..received.len], expected);
        assert_eq!((received.end_of_record, received.truncated), (ends, false));
    }
}

fn one_record_a_call(ground: &Ground) {
    let pair = ground.armed();
    send(&pair.left, b"first");
    send(&pair.left, b"second");
    let mut buf = [0; 100];
    let received = pair.right.recv(&mut buf, NONE).expect("a record");
    assert_eq!(&buf[..received.len], b"first");
    assert!(received.end_of_record && !received.truncated);
    soon(&pair.right, PollFlags::IN);
    let whole = pair
        .right
        .recv(&mut buf[..3], KtlsFlags::PEEK | KtlsFlags::TRUNC);
    let whole = whole.expect("a record");
    assert_eq!((whole.len, whole.truncated), (6, true));
    let cut = pair.right.recv(&mut buf[..3], NONE).expect("a record");
    assert_eq!((cut.len, cut.truncated, &buf[..3]), (3, true, &b"sec"[..]));
    let nothing = pair.right.recv(&mut buf, KtlsFlags::DONTWAIT);
    assert_eq!(errno(nothing), Errno::AGAIN, "the rest is lost");
}

fn recvmsg_scatters(ground: &Ground) {
    let pair = ground.armed();
    send(&pair.left, b"0123456789");
    soon(&pair.right, PollFlags::IN);
    let (mut a, mut b) = ([0; 4], [0; 20]);
    let mut buffers = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
    let received = pair.right.recvmsg(&mut buffers, NONE).expect("a record");
    assert_eq!((received.len, received.end_of_record), (10, true));
    assert_eq!((&a, &b[..6]), (b"0123", &b"456789"[..]));
}

fn peek(ground: &Ground) {
    let pair = ground.armed();
    send(&pair.left, b"look");
    send(&pair.left, b"again");
    soon(&pair.right, PollFlags::IN);
    for room in [2, 4, 100] {
        let mut buf = vec![0; room];
        let peeked = pair.right.recv(&mut buf, KtlsFlags::PEEK).expect("there");
        assert_eq!(buf[..peeked.len], b"look"[..room.min(4)]);
    }
    assert_eq!(read(&pair.right, 4)[..4], b"look"[..]);
}

fn dontwait(ground: &Ground) {
    let pair = ground.armed();
    let empty = pair.right.recv(&mut [0; 9], KtlsFlags::DONTWAIT);
    assert_eq!(errno(empty), Errno::AGAIN);
    let empty = pair
        .right
        .recv(&mut [0; 9], KtlsFlags::DONTWAIT | KtlsFlags::PEEK);
    assert_eq!(errno(empty), Errno::AGAIN);
    send(&pair.left, b"x");
    soon(&pair.right, PollFlags::IN);
    let there = pair.right.recv(&mut [0; 9], KtlsFlags::DONTWAIT);
    assert_eq!(there.expect("waits").len, 1);
    let sent = pair.left.send(b"y", KtlsFlags::DONTWAIT);
    assert_eq!(sent.expect("there is room"), 1);
}

fn nonblocking(ground: &Ground) {
    let pair = ground.armed();
    pair.right.set_nonblocking(true).expect("a socket");
    assert_eq!(errno(pair.right.recv(&mut [0; 9], NONE)), Errno::AGAIN);
    send(&pair.left, b"x");
    soon(&pair.right, PollFlags::IN);
    assert_eq!(pair.right.recv(&mut [0; 9], NONE).expect("waits").len, 1);
}

fn recv_without_keys(ground: &Ground) {
    let mut pair = ground.bound();
    arm_send(&mut pair.left, 1, IV);
    send(&pair.left, b"sealed");
    for flags in [NONE, KtlsFlags::PEEK, KtlsFlags::DONTWAIT] {
        let error = pair.right.recv(&mut [0; 9], flags);
        assert_eq!(errno(error), Errno::BADMSG);
    }
}

fn record_fails(ground: &Ground) {
    let mut pair = ground.bound();
    arm_recv(&mut pair.right, 1, IV);
    let good = seal(ground.kind, 1, IV, DATA, b"good");
    let mut forged = seal(ground.kind, 1, iv(1), DATA, b"forged");
    forged[20] ^= 1;
    let next = seal(ground.kind, 1, iv(2), DATA, b"next");
    pair.beneath[0].send(&[good, forged, next].concat());
    assert_eq!(read(&pair.right, 4), b"good");
    for _ in 0..2 {
        assert_eq!(errno(pair.right.recv(&mut [0; 9], NONE)), Errno::BADMSG);
    }
    assert!(now(&pair.right, PollFlags::IN).contains(PollFlags::ERR));
    assert_eq!(
        next_number(&pair.right, KTLS_GET_IV_RECV),
        u64::from_be_bytes(iv(1)),
        "the one that failed"
    );
}

fn record_fails_to_parse(ground: &Ground) {
    for header in [
        [23, 3, 3, 0xFF, 0xFF],
        [23, 3, 3, 0, 3],
        [23, 3, 1, 0, 40],
        [23, 9, 9, 0, 40],
    ] {
        let mut pair = ground.bound();
        arm_recv(&mut pair.right, 1, IV);
        pair.beneath[0].send(&seal(ground.kind, 1, IV, DATA, b"good"));
        pair.beneath[0].send(&[&header[..], &[0; 100]].concat());
        assert_eq!(read(&pair.right, 4), b"good");
        let error = pair.right.recv(&mut [0; 9], NONE);
        assert_eq!(errno(error), Errno::BADMSG, "{header:?}");
    }
}

fn record_is_dropped(ground: &Ground) {
    let mut pair = ground.bound();
    arm_recv(&mut pair.right, 1, IV);
    let mut forged = seal(ground.kind, 1, iv(0), DATA, b"forged");
    forged[25] ^= 1;
    pair.beneath[0].send(&forged);
    pair.beneath[0].send(&seal(ground.kind, 1, iv(1), DATA, b"next"));
    assert_eq!(read(&pair.right, 4), b"next");
    assert_eq!(dropped(&pair.right, "unverified"), 1);
}

fn control_record(ground: &Ground) {
    let mut pair = ground.bound();
    arm_recv(&mut pair.right, 1, IV);
    for (number, content_type) in [20, 21, 22, 24].into_iter().enumerate() {
        let number = iv(number as u64);
        let record = seal(
            ground.kind,
            1,
            number,
            ContentType(content_type),
            b"not data",
        );
        pair.beneath[0].send(&record);
        let left = pair.beneath[1].recv(record.len());
        assert_eq!(left, record, "type {content_type}");
    }
}

/// Data, a record of another type, data; the first data is read already.
fn stopped(ground: &Ground) -> (Pair, Vec<u8>) {
    let mut pair = ground.bound();
    arm_recv(&mut pair.right, 1, IV);
    let control = seal(
        ground.kind,
        1,
        iv(1),
        ContentType::HANDSHAKE,
        b"hello request",
    );
    pair.beneath[0].send(&seal(ground.kind, 1, iv(0), DATA, b"before"));
    pair.beneath[0].send(&control);
    pair.beneath[0].send(&seal(ground.kind, 1, iv(2), DATA, b"behind"));
    assert_eq!(read(&pair.right, 6), b"before");
    (pair, control)
}

fn control_record_stops(ground: &Ground) {
    let (pair, control) = stopped(ground);
    let shown = soon(&pair.right, PollFlags::IN);
    assert!(shown.contains(PollFlags::ERR), "{shown:?}");
    for flags in [NONE, KtlsFlags::PEEK, KtlsFlags::DONTWAIT] {
        let error = pair.right.recv(&mut [0; 99], flags);
        assert_eq!(errno(error), Errno::BADMSG);
    }
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    assert_eq!(errno(pair.right.splice_to(&writer, 9)), Errno::BADMSG);
    assert_eq!(
        next_number(&pair.right, KTLS_GET_IV_RECV),
        u64::from_be_bytes(iv(1)),
        "the number of the record that stopped it"
    );
    assert_eq!(pair.beneath[1].recv(control.len()), control);
    let error = pair.right.recv(&mut [0; 99], NONE);
    assert_eq!(errno(error), Errno::BADMSG, "still");
    assert!(now(&pair.right, PollFlags::IN).contains(PollFlags::ERR));
}

fn control_record_directly(ground: &Ground) {
    let (mut pair, control) = stopped(ground);
    assert_eq!(pair.beneath[1].recv(control.len()), control);
    set(&mut pair.right, KTLS_SET_IV_RECV, &iv(2));
    assert_eq!(read(&pair.right, 6), b"behind");
    assert_eq!(now(&pair.right, PollFlags::IN), PollFlags::empty());
}

fn control_record_unattached(ground: &Ground) {
    let (mut pair, control) = stopped(ground);
    assert_eq!(errno(pair.right.recv(&mut [0; 99], NONE)), Errno::BADMSG);
    let number = pair.right.unattach().expect("bound");
    assert_eq!(number, Some(u64::from_be_bytes(iv(1))));
    assert_eq!(pair.beneath[1].recv(control.len()), control);
    bind(&mut pair.right, &pair.beneath[1]);
    arm_recv(&mut pair.right, 1, iv(2));
    assert_eq!(read(&pair.right, 6), b"behind");
}

fn control_records_in_a_row(ground: &Ground) {
    let mut pair = ground.bound();
    arm_recv(&mut pair.right, 1, IV);
    let controls: Vec<u8> = (0..3)
        .flat_map(|n| seal(ground.kind, 1, iv(n), ContentType::HANDSHAKE, &text(5000)))
        .collect();
    pair.beneath[0].send(&controls);
    pair.beneath[0].send(&seal(ground.kind, 1, iv(3), DATA, b"data"));
    pair.beneath[0].send(&seal(ground.kind, 1, iv(4), ContentType::ALERT, b"!!"));
    assert!(pair.beneath[1].recv(controls.len()) == controls);
    set(&mut pair.right, KTLS_SET_IV_RECV, &iv(3));
    assert_eq!(read(&pair.right, 4), b"data");
    assert_eq!(errno(pair.right.recv(&mut [0; 9], NONE)), Errno::BADMSG);
}

fn owner_writes_between_records(ground: &Ground) {
    let (mut socket, wire) = ground.to_the_wire();
    send(&socket, b"one");
    let number = next_number(&socket, KTLS_GET_IV_SEND);
    assert_eq!(number, u64::from_be_bytes(iv(1)));
    let alert = seal(ground.kind, 1, iv(1), ContentType::ALERT, b"!!");
    wire.beneath[0].send(&alert);
    set(&mut socket, KTLS_SET_IV_SEND, &iv(2));
    send(&socket, b"two");
    assert_eq!(wire.record(), seal(ground.kind, 1, iv(0), DATA, b"one"));
    assert_eq!(wire.record(), alert);
    assert_eq!(wire.record(), seal(ground.kind, 1, iv(2), DATA, b"two"));
}

fn owner_may_not_read_data(ground: &Ground) {
    let pair = ground.armed();
    let [Beneath::Tcp(left), Beneath::Tcp(right)] = &pair.beneath else {
        unreachable!("a stream's");
    };
    send(&pair.left, b"data");
    soon(&pair.right, PollFlags::IN);
    let read_raw = (&*right).read(&mut [0; 9]);
    assert_eq!(errno(read_raw), Errno::BUSY);
    assert_eq!(read(&pair.right, 4), b"data", "nothing is lost by it");
    let file = tempfile::tempfile().expect("a file");
    send(&pair.left, b"keys are in force");
    assert_eq!(errno(left.sendfile(&file, None, 1)), Errno::BUSY);
    let record = left.send_record(ContentType::ALERT, b"!!", SendFlags::empty());
    assert!(record.is_err(), "there is no ULP");
}

fn splice_to_a_pipe(ground: &Ground) {
    let pair = ground.armed();
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    for len in [1, 4096, 5000] {
        send(&pair.left, &text(len));
    }
    for len in [1, 4096, 5000] {
        let moved = pair.right.splice_to(&writer, 1 << 20).expect("a record");
        assert_eq!(moved, len);
        let mut bytes = vec![0; len];
        reader.read_exact(&mut bytes).expect("there");
        assert!(bytes == text(len));
    }
}

fn splice_to_without_keys(ground: &Ground) {
    let pair = ground.bound();
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    assert_eq!(errno(pair.left.splice_to(&writer, 1)), Errno::BADMSG);
}

/// Splices all of `len` bytes from a pipe.
fn splice_all(socket: &KtlsSocket, len: usize) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(&text(len)).expect("room");
    let mut moved = 0;
    while moved < len {
        moved += socket.splice_from(&reader, len - moved).expect("moved");
    }
}

fn splice_from_a_pipe(ground: &Ground) {
    let (socket, wire) = ground.to_the_wire();
    splice_all(&socket, 2 * RECORD + 5);
    for expected in [RECORD, RECORD, 5] {
        assert_eq!(wire.plaintext(), expected);
    }
}

fn splice_from_a_pipe_mtu(ground: &Ground) {
    let (mut socket, wire) = ground.to_the_wire();
    let mtu = 1400_usize;
    let payload = mtu - overhead(ground.kind);
    set(&mut socket, KTLS_SET_MTU, &mtu.to_ne_bytes());
    splice_all(&socket, 2 * payload + 5);
    for expected in [payload, payload, 5] {
        assert_eq!(wire.plaintext(), expected);
    }
}

fn file_of(len: usize) -> std::fs::File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&text(len)).expect("written");
    file
}

fn sendfile(ground: &Ground) {
    let (socket, wire) = ground.to_the_wire();
    let sent = socket.sendfile(&file_of(2 * RECORD + 5), 0, u64::MAX);
    assert_eq!(sent.expect("sent"), 2 * RECORD as u64 + 5);
    for expected in [RECORD, RECORD, 5] {
        assert_eq!(wire.plaintext(), expected);
    }
}

fn sendfile_mtu(ground: &Ground) {
    let (mut socket, wire) = ground.to_the_wire();
    let mtu = 1400_usize;
    let payload = mtu - overhead(ground.kind);
    set(&mut socket, KTLS_SET_MTU, &mtu.to_ne_bytes());
    for _ in 0..2 {
        let sent = socket.sendfile(&file_of(3 * payload + 5), 0, u64::MAX);
        assert_eq!(sent.expect("sent"), 3 * payload as u64 + 5);
        send(&socket, &text(5000));
        for expected in [payload, payload, payload, 5, 5000] {
            assert_eq!(wire.plaintext(), expected);
        }
    }
}

fn sendfile_without_keys(ground: &Ground) {
    let pair = ground.bound();
    let error = pair.left.sendfile(&file_of(10), 0, 10);
    assert_eq!(errno(error), Errno::BADMSG);
}

fn sendfile_of_what(ground: &Ground) {
    let (socket, wire) = ground.to_the_wire();
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    assert_eq!(errno(socket.sendfile(&reader, 0, 1)), Errno::INVAL);
    let file = file_of(100);
    assert_eq!(socket.sendfile(&file, 100, 1).expect("its end"), 0);
    assert_eq!(socket.sendfile(&file, 90, 1000).expect("short"), 10);
    assert_eq!(wire.plaintext(), 10);
}

fn receive_to_a_file(ground: &Ground) {
    let pair = ground.armed();
    let whole = text(60_000);
    for piece in whole.chunks(10_000) {
        send(&pair.left, piece);
    }
    let file = tempfile::tempfile().expect("a file");
    let mut received = 0;
    while received < 60_000 {
        soon(&pair.right, PollFlags::IN);
        received += pair
            .right
            .recvfile(&file, 3 + received, 60_000 - received)
            .expect("records");
    }
    let mut bytes = vec![0; 60_003];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).expect("written");
    assert!(bytes[3..] == whole);
}

fn sequence_overflow_sending(ground: &Ground) {
    let (mut socket, wire) = ground.to_the_wire();
    // The last number that the record layer uses.
    let last = match ground.kind {
        KtlsType::Stream => u64::MAX - 1,
        KtlsType::Datagram => 1 << 48 | (SEQUENCE_END - 1),
    };
    set(&mut socket, KTLS_SET_IV_SEND, &last.to_be_bytes());
    send(&socket, b"the last");
    let record = seal(ground.kind, 1, last.to_be_bytes(), DATA, b"the last");
    assert_eq!(wire.record(), record);
    assert_eq!(next_number(&socket, KTLS_GET_IV_SEND), last + 1);
    send(&socket, b"one too many");
    if ground.kind == KtlsType::Stream {
        soon(&socket, PollFlags::empty());
        assert_eq!(errno(socket.send(b"x", NONE)), Errno::BADMSG);
    } else {
        assert!(soon(&socket, PollFlags::IN).contains(PollFlags::ERR));
        arm_recv(&mut socket, 2, IV);
    }
    let error = match ground.kind {
        KtlsType::Stream => {
            arm_recv_fails(&mut socket);
            return;
        }
        KtlsType::Datagram => socket.recv(&mut [0; 9], NONE),
    };
    assert_eq!(errno(error), Errno::BADMSG);
}

/// The connection is over: keys for receiving find nothing to be set on.
fn arm_recv_fails(socket: &mut KtlsSocket) {
    set(socket, KTLS_SET_KEY_RECV, &key(2));
    let error = socket.setsockopt(AF_KTLS, KTLS_SET_SALT_RECV, &salt(2));
    assert!(error.is_err());
}

fn sequence_overflow_receiving(ground: &Ground) {
    let mut pair = ground.bound();
    let last = u64::MAX - 1;
    arm_recv(&mut pair.right, 1, last.to_be_bytes());
    let record = seal(ground.kind, 1, last.to_be_bytes(), DATA, b"the last");
    pair.beneath[0].send(&[&record[..], &record].concat());
    assert_eq!(read(&pair.right, 8), b"the last");
    assert_eq!(errno(pair.right.recv(&mut [0; 9], NONE)), Errno::BADMSG);
}

/// How many records of a kind were dropped.
fn dropped(socket: &KtlsSocket, kind: &str) -> u64 {
    let all = socket.stat().expect("bound").dropped;
    let found = all.iter().find(|(name, _)| name == kind);
    found.unwrap_or_else(|| panic!("{kind} of {all:?}")).1
}

/// Records with these numbers reach a socket; which of them it reads until the one with the number `end`.
fn delivered(ground: &Ground, numbers: &[[u8; 8]], end: [u8; 8]) -> (KtlsSocket, Vec<Vec<u8>>) {
    let mut pair = ground.bound();
    arm_recv(&mut pair.right, 1, IV);
    for number in numbers {
        pair.beneath[0].send(&seal(ground.kind, 1, *number, DATA, number));
    }
    pair.beneath[0].send(&seal(ground.kind, 1, end, DATA, b"the end!"));
    let mut read_so_far = Vec::new();
    loop {
        let record = read(&pair.right, 8);
        if record == b"the end!" {
            return (pair.right, read_so_far);
        }
        read_so_far.push(record);
    }
}

fn replayed(ground: &Ground) {
    let numbers = [iv(0), iv(1), iv(1), iv(0), iv(2)];
    let (socket, read) = delivered(ground, &numbers, iv(3));
    assert_eq!(read, [iv(0), iv(1), iv(2)]);
    assert_eq!(dropped(&socket, "replayed"), 2);
}

fn outside_the_window(ground: &Ground) {
    // 64 entries: of 70, those down to 70 - 63.
    let numbers = [iv(70), iv(7), iv(6), iv(8)];
    let (socket, read) = delivered(ground, &numbers, iv(71));
    assert_eq!(read, [iv(70), iv(7), iv(8)]);
    assert_eq!(dropped(&socket, "too old"), 1);
}

fn other_epoch(ground: &Ground) {
    let mut earlier = iv(0);
    earlier[1] = 0;
    let mut later = iv(0);
    later[1] = 2;
    let (socket, read) = delivered(ground, &[earlier, later, iv(0)], iv(1));
    assert_eq!(read, [iv(0)]);
    assert_eq!(dropped(&socket, "wrong epoch"), 2);
}

fn past_a_long_loss(ground: &Ground) {
    let numbers = [iv(0), iv(1 << 40), iv(1), iv((1 << 40) - 63)];
    let (_, read) = delivered(ground, &numbers, iv((1 << 40) + 1));
    assert_eq!(read, [iv(0), iv(1 << 40), iv((1 << 40) - 63)]);
}
