//! DTLS associations on UDP sockets: one stack against another, and against a peer whose records are made by hand.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::fs::File;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::time::Duration;
use uktls_record::dtls::{DiscardKind, EpochKeys, Opener, SEQUENCE_END, Sealer};
use uktls_record::{CipherSuite, ContentType};
use uktls_stack::address::{self, ADDRESS_LEN};
use uktls_stack::device::memory;
use uktls_stack::dtls::DtlsInfo;
use uktls_stack::dtls::end::read_note;
use uktls_stack::handle::{
    ClientEnd, Direction, Reply, SocketId, SocketOp, SocketReply, UdpRequest,
};
use uktls_stack::mark::{Mark, SendfileResult};
use uktls_stack::stack::{Handle, Limits, Stack, StackConfig};

const LIMIT: Duration = Duration::from_secs(20);
const DATA: u8 = 23;

fn start(address: &str, device: impl uktls_stack::device::Device + Send + 'static) -> Stack {
    let ip: IpAddr = address.parse().expect("literal");
    let config = StackConfig {
        addresses: vec![(ip, 24)],
        mtu: 1500,
        tcp: Default::default(),
        limits: Limits::default(),
    };
    Stack::start(config, vec![Box::new(device)]).expect("a stack")
}

fn ask<T: Send + 'static>(request: impl FnOnce(Reply<T>)) -> Result<T, Errno> {
    let (sender, answer) = mpsc::channel();
    request(Box::new(move |result| {
        let _ = sender.send(result);
    }));
    answer.recv_timeout(LIMIT).expect("an answer in time")
}

/// A UDP socket on one of the two stacks, with or without an association.
struct Socket {
    handle: Handle,
    id: SocketId,
    local: SocketAddr,
    raw: OwnedFd,
    end: Option<OwnedFd>,
}

impl Socket {
    fn bind(stack: &Stack, local: &str) -> Socket {
        let local = local.parse().expect("literal");
        let request = UdpRequest {
            local,
            remote: None,
            uid: 0,
        };
        let handle = stack.handle();
        let ClientEnd { id, fd, local, .. } =
            ask(|reply| handle.bind_udp(request, reply)).expect("a UDP socket");
        Socket {
            handle,
            id,
            local,
            raw: fd,
            end: None,
        }
    }

    fn act(&self, op: SocketOp) -> Result<SocketReply, Errno> {
        ask(|reply| self.handle.socket(self.id, op, reply))
    }

    fn attach(&mut self, peer: SocketAddr) {
        match self.act(SocketOp::DtlsAttach { peer }) {
            Ok(SocketReply::End(end)) => self.end = Some(end),
            other => panic!("no end but {other:?}"),
        }
    }

    fn end(&self) -> &OwnedFd {
        self.end.as_ref().expect("an association was attached")
    }

    fn set_rx(&self, keys: &EpochKeys) {
        let done = self.act(SocketOp::DtlsRxKeys(keys.clone()));
        assert!(matches!(done, Ok(SocketReply::Done)), "{done:?}");
    }

    fn set_tx(&self, keys: &EpochKeys) {
        let Ok(SocketReply::KeyId(key_id)) = self.act(SocketOp::DtlsStageTx(keys.clone())) else {
            panic!("keys were not staged")
        };
        send_mark(self.end(), Mark::TxKeys { key_id }, &[self.end()]);
    }

    fn info(&self) -> DtlsInfo {
        match self.act(SocketOp::DtlsInfo) {
            Ok(SocketReply::Dtls(info)) => *info,
            other => panic!("no information but {other:?}"),
        }
    }

    fn dropped(&self, kind: DiscardKind) -> u64 {
        self.info().dropped[kind as usize]
    }

    fn send(&self, plaintext: &[u8]) {
        let message = [&[DATA], plaintext].concat();
        wait_for(self.end(), PollFlags::OUT);
        let sent = rustix::net::send(self.end(), &message, SendFlags::empty());
        assert_eq!(sent, Ok(message.len()));
    }

    fn recv(&self) -> Vec<u8> {
        let message = receive(self.end());
        assert_eq!(message[0], DATA, "{message:?}");
        message[1..].to_vec()
    }

    /// A datagram on the socket itself, past the association.
    fn send_raw(&self, to: SocketAddr, payload: &[u8]) {
        let message = [&address::encode(to)[..], payload].concat();
        let sent = rustix::net::send(&self.raw, &message, SendFlags::empty());
        assert_eq!(sent, Ok(message.len()));
    }

    fn recv_raw(&self) -> Vec<u8> {
        receive(&self.raw)[ADDRESS_LEN..].to_vec()
    }
}

fn wait_for(fd: &OwnedFd, flags: PollFlags) {
    let mut fds = [PollFd::new(fd, flags)];
    let limit = Timespec {
        tv_sec: LIMIT.as_secs() as i64,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "nothing came in time");
}

fn receive(fd: &OwnedFd) -> Vec<u8> {
    wait_for(fd, PollFlags::IN);
    let mut message = vec![0; 70_000];
    let (_, len) = rustix::net::recv(fd, &mut message[..], RecvFlags::empty()).expect("a message");
    assert!(len > 0, "the end was closed");
    message.truncate(len);
    message
}

/// Asserts that nothing waits. What is asked of a socket is answered after what came before, so a request flushes.
fn nothing(socket: &Socket, fd: &OwnedFd) {
    let _ = socket.act(SocketOp::Info);
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut fds, Some(&now)), Ok(0));
}

fn send_mark(fd: &OwnedFd, mark: Mark, descriptors: &[&OwnedFd]) {
    let descriptors: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let bytes = mark.encode();
    let sent = sendmsg(
        fd,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::empty(),
    );
    assert_eq!(sent, Ok(bytes.len()));
}

fn keys(cipher: CipherSuite, direction: u8, epoch: u16, sequence: u64) -> EpochKeys {
    let key = [direction ^ epoch as u8; 32];
    let iv_len = if cipher.salt_len() == 4 { 4 } else { 12 };
    EpochKeys::dtls12(
        cipher,
        &key[..cipher.key_len()],
        &[direction; 12][..iv_len],
        epoch,
        sequence,
    )
    .expect("lengths that fit")
}

const THERE: u8 = 0x10;
const BACK: u8 = 0x20;

struct Pair {
    left_stack: Stack,
    right_stack: Stack,
    left: Socket,
    right: Socket,
}

/// Two UDP sockets on two stacks, no association yet.
fn plain_pair(offload: bool) -> Pair {
    let (a, b) = memory::pair(1500, offload);
    let (left_stack, right_stack) = (start("10.0.0.1", a), start("10.0.0.2", b));
    let left = Socket::bind(&left_stack, "10.0.0.1:4433");
    let right = Socket::bind(&right_stack, "10.0.0.2:4433");
    Pair {
        left_stack,
        right_stack,
        left,
        right,
    }
}

/// Both with an association and keys.
fn pair(offload: bool, cipher: CipherSuite) -> Pair {
    let mut pair = plain_pair(offload);
    let (left, right) = (pair.left.local, pair.right.local);
    pair.left.attach(right);
    pair.right.attach(left);
    pair.left.set_tx(&keys(cipher, THERE, 1, 1));
    pair.right.set_rx(&keys(cipher, THERE, 1, 1));
    pair.right.set_tx(&keys(cipher, BACK, 1, 1));
    pair.left.set_rx(&keys(cipher, BACK, 1, 1));
    pair
}

/// The left one by hand, the right one with an association that opens what comes from there.
fn by_hand(offload: bool) -> (Pair, Sealer) {
    let mut pair = plain_pair(offload);
    pair.right.attach(pair.left.local);
    pair.right
        .set_rx(&keys(CipherSuite::Aes128Gcm, THERE, 1, 0));
    let sealer = Sealer::new(&keys(CipherSuite::Aes128Gcm, THERE, 1, 0)).expect("keys");
    (pair, sealer)
}

fn sealed(sealer: &mut Sealer, content_type: u8, plaintext: &[u8]) -> Vec<u8> {
    let mut record = vec![0; plaintext.len() + sealer.overhead()];
    sealer
        .seal_from(ContentType(content_type), plaintext, &mut record)
        .expect("a record");
    record
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + len) as u8).collect()
}

fn counter(stack: &Stack, name: &str) -> u64 {
    let counters = stack.handle().counters();
    let found = counters.iter().find(|(counter, _)| *counter == name);
    found.expect("a counter of this name").1
}

#[test]
fn records_pass_both_ways_in_every_size() {
    for cipher in CipherSuite::ALL {
        for offload in [true, false] {
            let Pair { left, right, .. } = pair(offload, cipher);
            // Around the MTU, where datagrams start to be fragmented; around the pages; the least and the most.
            for len in [0, 1, 1434, 1435, 1436, 4095, 4096, 4097, 16_383, 16_384] {
                left.send(&text(len));
                assert!(right.recv() == text(len), "{cipher}, {len} bytes");
                right.send(&text(len));
                assert!(left.recv() == text(len), "{cipher}, {len} bytes back");
            }
            let (sent, received) = (left.info(), right.info());
            assert_eq!((sent.sealed, received.opened), (10, 10));
            assert_eq!(sent.tx.map(|tx| (tx.epoch, tx.sequence)), Some((1, 11)));
            assert_eq!(received.rx.map(|rx| (rx.epoch, rx.sequence)), Some((1, 11)));
            assert_eq!(received.dropped, [0; 6]);
        }
    }
}

#[test]
fn a_burst_arrives_in_order_and_in_few_packets() {
    let pair = pair(true, CipherSuite::Aes128Gcm);
    let before = counter(&pair.left_stack, "PacketsOut");
    // Three lengths in turn: runs of equal records, ends of runs, and records carried over to the next.
    // No more than the reader's end holds, since nobody reads meanwhile.
    let lengths: Vec<usize> = (0..60)
        .map(|i| [1200, 1200, 1200, 700, 1300][i % 5])
        .collect();
    for len in &lengths {
        pair.left.send(&text(*len));
    }
    for (i, len) in lengths.iter().enumerate() {
        assert!(pair.right.recv() == text(*len), "record {i}");
    }
    let packets = counter(&pair.left_stack, "PacketsOut") - before;
    assert!(packets <= 60, "{packets} packets for 60 records");
    assert_eq!(counter(&pair.left_stack, "DtlsSealed"), 60);
    assert_eq!(counter(&pair.right_stack, "DtlsOpened"), 60);
}

/// Everything is on the Unix socket before the stack gets to see any of it, or nearly so: it is taken in batches.
#[test]
fn records_and_files_in_one_batch_keep_their_order() {
    let pair = pair(true, CipherSuite::Aes128Gcm);
    let done = pair.left.act(SocketOp::DtlsSetMtu(Some(1037)));
    assert!(matches!(done, Ok(SocketReply::Done)));
    let mut expected = Vec::new();
    let bytes = text(2500);
    let file = file(&bytes, None);
    for round in 0..4 {
        for len in [900, 900, 400, 0, 1000, 5000] {
            let record = text(len + round);
            pair.left.send(&record);
            expected.push(record);
        }
        let mark = Mark::File {
            offset: 0,
            len: 2500,
            reply: false,
            hold: false,
        };
        send_mark(pair.left.end(), mark, &[&file]);
        expected.extend(bytes.chunks(1000).map(<[u8]>::to_vec));
    }
    for (i, record) in expected.iter().enumerate() {
        assert!(pair.right.recv() == *record, "record {i}");
    }
}

#[test]
fn what_was_sent_before_a_detach_leaves() {
    let mut pair = pair(true, CipherSuite::Aes128Gcm);
    for round in 0..20 {
        let sent: Vec<Vec<u8>> = (0..40).map(|i| text([600, 50][i % 2] + i)).collect();
        for record in &sent {
            pair.left.send(record);
        }
        let done = pair.left.act(SocketOp::DtlsDetach);
        assert!(matches!(done, Ok(SocketReply::Done)));
        for (i, record) in sent.iter().enumerate() {
            assert!(pair.right.recv() == *record, "round {round}, record {i}");
        }
        pair.left.attach(pair.right.local);
        let sequence = 1 + 40 * (round + 1);
        let keys = keys(CipherSuite::Aes128Gcm, THERE, 1, sequence);
        pair.left.set_tx(&keys);
    }
}

#[test]
fn a_record_that_is_too_long_is_refused_among_others_that_are_not() {
    let Pair { left, right, .. } = pair(true, CipherSuite::Aes128Gcm);
    left.send(b"before");
    left.send(&text(16_385));
    left.send(b"behind");
    assert_eq!(right.recv(), b"before");
    assert_eq!(right.recv(), b"behind");
    let note = receive(left.end());
    assert_eq!(read_note(&note), Some(Errno::TOOBIG.raw_os_error()));
}

#[test]
fn what_may_not_be_fragmented_is_refused_alone_in_a_batch() {
    let Pair { left, right, .. } = pair(true, CipherSuite::Aes128Gcm);
    left.act(SocketOp::SetDontFragment(true))
        .expect("an option");
    for _ in 0..10 {
        left.send(&text(800));
        left.send(&text(1500));
        left.send(&text(800));
    }
    for _ in 0..10 {
        assert!(right.recv() == text(800) && right.recv() == text(800));
        let note = receive(left.end());
        assert_eq!(read_note(&note), Some(Errno::MSGSIZE.raw_os_error()));
    }
    assert_eq!((left.info().too_long, right.info().opened), (10, 20));
}

#[test]
fn the_udp_socket_stays_usable_beside_the_association() {
    let (pair, mut sealer) = by_hand(true);
    let (left, right) = (&pair.left, &pair.right);
    let handshake = sealed(&mut sealer, 22, b"encrypted handshake");
    let alert = sealed(&mut sealer, 21, &[1, 0]);
    let data = sealed(&mut sealer, DATA, b"data");
    left.send_raw(right.local, &handshake);
    assert_eq!(right.recv_raw(), handshake, "as it came");
    left.send_raw(right.local, &[&data[..], &alert].concat());
    assert_eq!(right.recv(), b"data");
    assert_eq!(right.recv_raw(), alert);
    // The owner answers in the raw, to the peer and to others.
    right.send_raw(left.local, b"raw answer");
    assert_eq!(left.recv_raw(), b"raw answer");
    // A stranger's datagrams are not the association's, whatever they look like.
    let stranger = Socket::bind(&pair.left_stack, "10.0.0.1:9");
    stranger.send_raw(right.local, &data);
    assert_eq!(right.recv_raw(), data);
    assert_eq!(right.info().opened, 1);
}

#[test]
fn what_is_dropped_is_counted_by_kind_and_the_association_lives_on() {
    let (pair, mut sealer) = by_hand(true);
    let (left, right) = (&pair.left, &pair.right);
    let records: Vec<_> = (0..100)
        .map(|i| sealed(&mut sealer, DATA, format!("record {i}").as_bytes()))
        .collect();
    left.send_raw(right.local, &records[0]);
    left.send_raw(right.local, &records[90]);
    assert_eq!(right.recv(), b"record 0");
    assert_eq!(right.recv(), b"record 90");

    let mut damaged = records[91].clone();
    *damaged.last_mut().expect("not empty") ^= 1;
    let mut forged_high = records[91].clone();
    forged_high[5] = 0x7F;
    let mut other_epoch = records[91].clone();
    other_epoch[4] = 9;
    for datagram in [
        &records[90],
        &records[0],
        &records[5],
        &damaged,
        &forged_high,
        &other_epoch,
        &records[91][..20].to_vec(),
        &vec![DATA, 1, 2, 3],
    ] {
        left.send_raw(right.local, datagram);
    }
    // The window has not been moved by what did not verify.
    left.send_raw(right.local, &records[91]);
    assert_eq!(right.recv(), b"record 91");
    nothing(right, right.end());
    nothing(right, &right.raw);
    let expected = [
        (DiscardKind::Replayed, "DropDtlsReplayed", 1),
        (DiscardKind::TooOld, "DropDtlsTooOld", 2),
        (DiscardKind::Unverified, "DropDtlsUnverified", 2),
        (DiscardKind::WrongEpoch, "DropDtlsWrongEpoch", 1),
        (DiscardKind::Malformed, "DropDtlsMalformed", 2),
        (DiscardKind::KeyExhausted, "DropDtlsKeyExhausted", 0),
    ];
    for (kind, name, times) in expected {
        assert_eq!(right.dropped(kind), times, "{}", kind.name());
        assert_eq!(counter(&pair.right_stack, name), times, "{name}");
    }
}

#[test]
fn records_that_came_before_their_keys_are_opened_once_these_are_set() {
    let mut pair = plain_pair(true);
    let mut sealer = Sealer::new(&keys(CipherSuite::Aes256Gcm, THERE, 1, 1)).expect("keys");
    // Before the association: the socket's own, handed back by the client.
    let first = sealed(&mut sealer, DATA, b"before bind");
    pair.left.send_raw(pair.right.local, &first);
    let drained = pair.right.recv_raw();
    pair.right.attach(pair.left.local);
    let second = sealed(&mut sealer, DATA, b"before keys");
    pair.left.send_raw(pair.right.local, &second);
    let given_back = pair.right.act(SocketOp::DtlsGiveBack {
        from: pair.left.local,
        datagram: drained,
    });
    assert!(matches!(given_back, Ok(SocketReply::Done)));
    nothing(&pair.right, pair.right.end());
    pair.right
        .set_rx(&keys(CipherSuite::Aes256Gcm, THERE, 1, 1));
    let mut received = [pair.right.recv(), pair.right.recv()];
    received.sort();
    assert_eq!(received, [&b"before bind"[..], b"before keys"]);
}

#[test]
fn a_rehandshake_loses_and_doubles_nothing() {
    let cipher = CipherSuite::ChaCha20Poly1305;
    let mut pair = pair(true, cipher);
    pair.left.send(b"old 1");
    assert_eq!(pair.right.recv(), b"old 1");
    // What the old epoch sends while the new keys are set at the other end.
    let mut old = Sealer::new(&keys(cipher, THERE, 1, 2)).expect("keys");
    let late = [
        sealed(&mut old, DATA, b"old 2"),
        sealed(&mut old, DATA, b"old 3"),
    ];

    // Unattach, talk raw, attach again: AF_KTLS's way.
    let done = pair.right.act(SocketOp::DtlsDetach);
    assert!(matches!(done, Ok(SocketReply::Done)));
    pair.left.send_raw(pair.right.local, b"handshake");
    assert_eq!(pair.right.recv_raw(), b"handshake");
    pair.right.attach(pair.left.local);
    pair.right.set_rx(&keys(cipher, THERE, 2, 0));
    // And without: new keys on the association that is there.
    pair.left.send(b"old 4");
    pair.left.set_tx(&keys(cipher, THERE, 2, 0));
    pair.left.send(b"new 1");
    // The hand-made ones take numbers that "old 4" has, so that one of the two must be a replay.
    assert_eq!(pair.right.recv(), b"old 4");
    assert_eq!(pair.right.recv(), b"new 1");
    pair.left.send_raw(pair.right.local, &late[1]);
    pair.left.send_raw(pair.right.local, &late[0]);
    assert_eq!(pair.right.recv(), b"old 3");
    nothing(&pair.right, pair.right.end());
    assert_eq!(pair.right.dropped(DiscardKind::Replayed), 1);
    let info = pair.right.info();
    assert_eq!(info.rx.map(|rx| (rx.epoch, rx.sequence)), Some((2, 1)));
}

#[test]
fn numbers_that_were_used_are_not_used_again() {
    let cipher = CipherSuite::Aes128Gcm;
    let pair = pair(true, cipher);
    for _ in 0..3 {
        pair.left.send(b"x");
        pair.right.recv();
    }
    // The same keys once more, from the beginning: that must not reuse a nonce.
    pair.left.set_tx(&keys(cipher, THERE, 1, 0));
    pair.left.send(b"fourth");
    assert_eq!(pair.right.recv(), b"fourth");
    let exported = pair.left.act(SocketOp::DtlsGetKeys(Direction::Tx));
    let Ok(SocketReply::EpochKeys(exported)) = exported else {
        panic!("no keys but {exported:?}")
    };
    assert_eq!(exported.sequence(), 5);
}

#[test]
fn an_epoch_ends_before_its_numbers_repeat() {
    let cipher = CipherSuite::Aes128Gcm;
    let pair = pair(true, cipher);
    pair.left.set_tx(&keys(cipher, THERE, 2, SEQUENCE_END - 1));
    pair.right.set_rx(&keys(cipher, THERE, 2, SEQUENCE_END - 1));
    pair.left.send(b"the last");
    assert_eq!(pair.right.recv(), b"the last");
    pair.left.send(b"one too many");
    let note = receive(pair.left.end());
    assert_eq!(read_note(&note), Some(Errno::BADMSG.raw_os_error()));
    pair.left.set_tx(&keys(cipher, THERE, 3, 0));
    pair.right.set_rx(&keys(cipher, THERE, 3, 0));
    pair.left.send(b"next epoch");
    assert_eq!(pair.right.recv(), b"next epoch");
}

fn send_file(socket: &Socket, file: &OwnedFd, offset: u64, len: u64) -> SendfileResult {
    let (near, far) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .expect("a socket pair");
    let mark = Mark::File {
        offset,
        len,
        reply: true,
        hold: false,
    };
    send_mark(socket.end(), mark, &[file, &far]);
    drop(far);
    let message = receive(&near);
    SendfileResult::decode(message[..].try_into().expect("a result's length"))
}

fn file(bytes: &[u8], directory: Option<&str>) -> OwnedFd {
    let mut file = match directory {
        Some(directory) => tempfile::tempfile_in(directory),
        None => tempfile::tempfile(),
    }
    .expect("a temporary file");
    file.write_all(bytes).expect("written");
    File::into(file)
}

#[test]
fn a_file_leaves_in_records_of_the_asked_length() {
    for (offload, directory) in [(true, None), (true, Some("/dev/shm")), (false, None)] {
        let pair = pair(offload, CipherSuite::Aes128Gcm);
        let done = pair.left.act(SocketOp::DtlsSetMtu(Some(1400)));
        assert!(matches!(done, Ok(SocketReply::Done)));
        let payload = 1400 - 37;
        // Shorter than a record, around one, around a run of 46, and long enough to be mapped; never more than the reader's
        // end holds, since nothing paces a file's datagrams.
        for len in [
            1,
            payload,
            payload + 1,
            46 * payload - 1,
            46 * payload,
            60 * payload + 1,
        ] {
            let bytes = text(len + 7);
            let file = file(&bytes, directory);
            let before = counter(&pair.left_stack, "PacketsOut");
            let result = send_file(&pair.left, &file, 7, len as u64);
            assert_eq!((result.sent, result.errno), (len as u64, 0));
            let mut received = Vec::new();
            while received.len() < len {
                let record = pair.right.recv();
                assert!(record.len() == payload || received.len() + record.len() == len);
                received.extend(record);
            }
            assert!(received == bytes[7..], "{len} bytes");
            let packets = (counter(&pair.left_stack, "PacketsOut") - before) as usize;
            let records = len.div_ceil(payload);
            let expected = if offload {
                records.div_ceil(46)
            } else {
                records
            };
            assert!(
                (expected..=expected + 3).contains(&packets),
                "{packets} packets for {records} records, offload {offload}"
            );
        }
        assert_eq!(pair.right.info().full, 0);
    }
}

#[test]
fn a_file_without_an_mtu_leaves_in_the_largest_records() {
    let pair = pair(true, CipherSuite::Aes256Gcm);
    let bytes = text(3 * 16_384 + 5);
    let result = send_file(&pair.left, &file(&bytes, None), 0, bytes.len() as u64);
    assert_eq!(result.sent, bytes.len() as u64);
    for chunk in bytes.chunks(16_384) {
        assert!(pair.right.recv() == chunk);
    }
}

#[test]
fn a_file_that_is_too_short_or_none_is_answered_for() {
    let pair = pair(true, CipherSuite::Aes128Gcm);
    let short = file(&text(5_000), None);
    let result = send_file(&pair.left, &short, 0, 10_000);
    assert_eq!((result.sent, result.errno), (5_000, 0));
    assert!(pair.right.recv() == text(5_000));
    let (pipe, _writer) = rustix::pipe::pipe().expect("a pipe");
    let result = send_file(&pair.left, &pipe, 0, 1);
    let invalid = Errno::INVAL.raw_os_error();
    assert_eq!((result.sent, result.errno), (0, invalid));
    // Messages behind a file keep their place.
    pair.left.send(b"after");
    assert_eq!(pair.right.recv(), b"after");
}

#[test]
fn what_may_not_be_fragmented_is_refused_and_the_path_is_told() {
    let pair = pair(true, CipherSuite::Aes128Gcm);
    let mtu = pair.left.act(SocketOp::PathMtu);
    assert!(matches!(mtu, Ok(SocketReply::PathMtu(1500))), "{mtu:?}");
    pair.left
        .act(SocketOp::SetDontFragment(true))
        .expect("an option");
    let fits = 1500 - 20 - 8 - 37;
    pair.left.send(&text(fits));
    assert!(pair.right.recv() == text(fits));
    pair.left.send(&text(fits + 1));
    let note = receive(pair.left.end());
    assert_eq!(read_note(&note), Some(Errno::MSGSIZE.raw_os_error()));
    assert_eq!(pair.left.info().too_long, 1);
    nothing(&pair.right, pair.right.end());
    pair.left
        .act(SocketOp::SetDontFragment(false))
        .expect("an option");
    pair.left.send(&text(fits + 1));
    assert!(pair.right.recv() == text(fits + 1));
}

#[test]
fn requests_and_messages_out_of_order_are_answered_and_hurt_nobody() {
    let mut pair = plain_pair(true);
    let cipher = CipherSuite::Aes128Gcm;
    let (left, right) = (pair.left.local, pair.right.local);
    let badmsg = |result: Result<SocketReply, Errno>| {
        assert_eq!(result.err(), Some(Errno::BADMSG));
    };
    badmsg(pair.left.act(SocketOp::DtlsInfo));
    badmsg(pair.left.act(SocketOp::DtlsDetach));
    badmsg(pair.left.act(SocketOp::DtlsSetMtu(None)));
    badmsg(pair.left.act(SocketOp::DtlsStageTx(keys(cipher, 1, 1, 0))));
    badmsg(pair.left.act(SocketOp::DtlsRxKeys(keys(cipher, 1, 1, 0))));
    pair.left.attach(right);
    badmsg(pair.left.act(SocketOp::DtlsGetKeys(Direction::Tx)));
    badmsg(pair.left.act(SocketOp::DtlsGetKeys(Direction::Rx)));
    let again = pair.left.act(SocketOp::DtlsAttach { peer: right });
    assert_eq!(again.err(), Some(Errno::INVAL));
    let v6 = "[fd00::1]:1".parse().expect("literal");
    let v6 = pair.right.act(SocketOp::DtlsAttach { peer: v6 });
    assert_eq!(v6.err(), Some(Errno::AFNOSUPPORT));

    // No keys: the message is lost, and its sender told.
    pair.left.send(b"too early");
    let note = receive(pair.left.end());
    assert_eq!(read_note(&note), Some(Errno::BADMSG.raw_os_error()));
    pair.left.set_tx(&keys(cipher, THERE, 1, 0));
    pair.left.send(&text(16_385));
    let note = receive(pair.left.end());
    assert_eq!(read_note(&note), Some(Errno::TOOBIG.raw_os_error()));

    // Keys that nobody staged end the association, and only it.
    send_mark(
        pair.left.end(),
        Mark::TxKeys { key_id: 77 },
        &[&pair.left.raw],
    );
    wait_for(pair.left.end(), PollFlags::HUP);
    badmsg(pair.left.act(SocketOp::DtlsInfo));
    pair.left.send_raw(right, b"still here");
    assert_eq!(pair.right.recv_raw(), b"still here");

    // Closing the end detaches.
    pair.right.attach(left);
    pair.right.end = None;
    for attempt in 0.. {
        assert!(attempt < 1000, "the association stays");
        if pair.right.act(SocketOp::DtlsInfo).is_err() {
            break;
        }
        std::thread::yield_now();
    }
    pair.right.attach(left);
}

#[test]
fn a_flood_of_rubbish_costs_the_others_nothing() {
    let (pair, mut sealer) = by_hand(true);
    let bystander = (
        Socket::bind(&pair.left_stack, "10.0.0.1:7"),
        Socket::bind(&pair.right_stack, "10.0.0.2:7"),
    );
    let mut forged = sealed(&mut sealer, DATA, &text(1000));
    forged[500] ^= 1;
    for round in 0..100_u8 {
        for _ in 0..10 {
            pair.left.send_raw(pair.right.local, &forged);
        }
        bystander.0.send_raw(bystander.1.local, &[round]);
        assert_eq!(bystander.1.recv_raw(), [round]);
    }
    let genuine = sealed(&mut sealer, DATA, b"genuine");
    pair.left.send_raw(pair.right.local, &genuine);
    assert_eq!(pair.right.recv(), b"genuine");
    assert_eq!(pair.right.dropped(DiscardKind::Unverified), 1000);
    assert_eq!(pair.right.info().opened, 1);
}

#[test]
fn what_leaves_is_what_the_record_layer_opens() {
    let mut pair = plain_pair(false);
    let cipher = CipherSuite::Aes256Gcm;
    pair.left.attach(pair.right.local);
    pair.left.set_tx(&keys(cipher, THERE, 1, 41));
    let mut opener = Opener::new(&keys(cipher, THERE, 1, 41)).expect("keys");
    for sequence in 41..50 {
        pair.left.send(b"by hand");
        let mut datagram = pair.right.recv_raw();
        assert_eq!(datagram[3..11], (1_u64 << 48 | sequence).to_be_bytes());
        assert_eq!(datagram[13..21], (1_u64 << 48 | sequence).to_be_bytes());
        let opened = opener.open_next(&mut datagram).opened.expect("a record");
        assert_eq!(&datagram[opened.plaintext], b"by hand");
    }
}
