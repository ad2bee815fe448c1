//! The table of calls.

use crate::ground::*;
use crate::table;
use rustix::event::PollFlags;
use rustix::io::Errno;
use uktls::client::af_ktls::*;

const STREAM: [KtlsType; 1] = [KtlsType::Stream];

table! {
    send_and_recv, BOTH, "send, recv: what is sent arrives";
    poll_readable, BOTH, "readable: a decrypted-or-decryptable record is queued";
    a_file_in_records_of_the_mtu, BOTH, "KTLS_SET_MTU minus overhead where set";
    unbound_send_and_recv, BOTH, "no keys EBADMSG";
    control_record_stops_reading, STREAM,
        "record of another type than 0x17: EBADMSG, the underlying socket keeps the record untouched, polls as in error";
    unattach_and_bind_again, BOTH, "KTLS_UNATTACH gives the socket back; bind again with new keys";
}

fn send_and_recv(ground: &Ground) {
    let pair = ground.armed();
    for len in [1, 100, 16_384] {
        send(&pair.left, &text(len));
        assert!(read(&pair.right, len) == text(len), "{len} bytes");
        send(&pair.right, &text(len));
        assert!(read(&pair.left, len) == text(len), "{len} bytes back");
    }
}

fn unbound_send_and_recv(ground: &Ground) {
    let socket = ground.socket();
    assert_eq!(errno(socket.send(b"x", NONE)), Errno::BADMSG);
    assert_eq!(errno(socket.recv(&mut [0; 9], NONE)), Errno::BADMSG);
}

fn control_record_stops_reading(ground: &Ground) {
    use uktls_record::ContentType;
    let mut pair = ground.armed();
    send(&pair.left, b"before");
    pair.left
        .send_control(ContentType::HANDSHAKE, b"hello request")
        .expect("sent");
    send(&pair.left, b"behind");
    assert_eq!(read(&pair.right, 6), b"before");
    assert!(soon(&pair.right, PollFlags::IN).contains(PollFlags::ERR));
    for _ in 0..2 {
        assert_eq!(errno(pair.right.recv(&mut [0; 9], NONE)), Errno::BADMSG);
    }
    let number = next_number(&pair.right, KTLS_GET_IV_RECV);
    let record = pair.beneath[1].recv(5 + 8 + 13 + 16);
    assert_eq!(record[..5], [22, 3, 3, 0, 37]);
    assert_eq!(errno(pair.right.recv(&mut [0; 9], NONE)), Errno::BADMSG);
    set(
        &mut pair.right,
        KTLS_SET_IV_RECV,
        &(number + 1).to_be_bytes(),
    );
    assert_eq!(read(&pair.right, 6), b"behind");
}

fn unattach_and_bind_again(ground: &Ground) {
    let mut pair = ground.armed();
    send(&pair.left, b"first");
    assert_eq!(read(&pair.right, 5), b"first");
    set(&mut pair.left, KTLS_UNATTACH, &[]);
    set(&mut pair.right, KTLS_UNATTACH, &[]);
    assert_eq!(errno(pair.left.send(b"x", NONE)), Errno::BADMSG);
    pair.beneath[0].send(b"in the raw");
    assert_eq!(pair.beneath[1].recv(10), b"in the raw");
    bind(&mut pair.left, &pair.beneath[0]);
    bind(&mut pair.right, &pair.beneath[1]);
    arm(&mut pair.left, 3, 4);
    arm(&mut pair.right, 4, 3);
    send(&pair.left, b"second");
    assert_eq!(read(&pair.right, 6), b"second");
}

fn poll_readable(ground: &Ground) {
    let pair = ground.armed();
    assert_eq!(now(&pair.right, PollFlags::IN), PollFlags::empty());
    send(&pair.left, b"x");
    assert_eq!(soon(&pair.right, PollFlags::IN), PollFlags::IN);
    read(&pair.right, 1);
    assert_eq!(now(&pair.right, PollFlags::IN), PollFlags::empty());
}

fn a_file_in_records_of_the_mtu(ground: &Ground) {
    let mut pair = ground.armed();
    let mtu = 1400_usize;
    let payload = mtu - overhead(ground.kind);
    set(&mut pair.left, KTLS_SET_MTU, &mtu.to_ne_bytes());
    let mut file = tempfile::tempfile().expect("a file");
    let len = 3 * payload + 1;
    std::io::Write::write_all(&mut file, &text(len)).expect("written");
    let sent = pair.left.sendfile(&file, 0, u64::MAX).expect("sent");
    assert_eq!(sent, len as u64);
    let mut received = Vec::new();
    for expected in [payload, payload, payload, 1] {
        let mut buf = vec![0; expected];
        let record = pair.right.recv(&mut buf, NONE).expect("a record");
        assert_eq!((record.len, record.end_of_record), (expected, true));
        received.extend(buf);
    }
    assert!(received == text(len));
}
