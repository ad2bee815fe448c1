//! The table of calls: `socket`, `bind`, options, `KTLS_UNATTACH`, and `poll`. What moves bytes is in [`transfer`](crate::transfer).

use crate::ground::*;
use crate::table;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, AsRawFd};
use rustix::io::Errno;
use std::net::Shutdown;
use uktls::client::af_ktls::*;
use uktls::{TcpListener, UdpSocket};
use uktls_record::ContentType;

table! {
    socket_type, BOTH, "socket: SOCK_STREAM = TLS, SOCK_DGRAM = DTLS; other type ESOCKTNOSUPPORT";
    socket_protocol, BOTH, "socket: protocol other than 0 EPROTONOSUPPORT";
    bind_then_records_belong, BOTH, "bind attaches: later records belong to the AF_KTLS socket";
    bind_what_came_before, BOTH, "also those that came between the handshake's end and bind";
    bind_what_came_in_part, STREAM, "also a record of which a part came before bind";
    bind_wrong_size, BOTH, "bind: wrong size EBADMSG";
    bind_already_bound, BOTH, "bind: already bound EINVAL";
    bind_taken, BOTH, "bind to what another is bound to: EINVAL";
    bind_unknown_cipher, BOTH, "bind: cipher unknown ENOENT";
    bind_unknown_version, BOTH, "bind: version unknown ENOENT";
    bind_bad_descriptor, BOTH, "bind: bad fd ENOENT";
    bind_other_family, BOTH, "bind: not TCP/UDP over IPv4/IPv6 EAFNOSUPPORT";
    bind_by_number, BOTH, "bind: sa_socket is the fd of the connected TCP or UDP socket";
    bind_the_other_transport, BOTH, "bind: TLS over UDP EBADF (and DTLS over TCP)";
    bind_unconnected, BOTH, "bind: the connected TCP or UDP socket (else ENOTCONN)";
    bind_beside_the_ulp, STREAM, "the ULP and AF_KTLS exclude each other: EINVAL, EEXIST";
    key_and_salt_arm_send, BOTH, "setsockopt: key+salt together arm the direction (sending)";
    key_and_salt_arm_receive, BOTH, "setsockopt: key+salt together arm the direction (receiving)";
    options_in_any_order, BOTH, "setsockopt: whatever comes last, with records waiting";
    iv_is_the_next_number_sending, BOTH, "getsockopt: the IV is the next sequence number (sending)";
    iv_is_the_next_number_receiving, BOTH, "getsockopt: the IV is the next sequence number (receiving)";
    new_key_goes_on_counting, BOTH, "setsockopt of a key alone leaves the sequence number where it is";
    given_as_a_whole, BOTH, "keys given as a whole, then an option alone";
    other_ciphers, BOTH, "AES-256-GCM and ChaCha20-Poly1305, beyond the module";
    unattach_gives_back, BOTH, "KTLS_UNATTACH gives the socket back: raw read and write";
    unattach_then_bind_again, BOTH, "KTLS_UNATTACH, and bind again with new keys";
    unattach_keeps_what_was_sent, STREAM, "KTLS_UNATTACH: what was sent leaves under the old keys, before what the owner sends";
    unattach_keeps_what_was_opened, STREAM, "KTLS_UNATTACH: what was opened and not read is read after bind";
    unattach_leaves_the_rest_raw, STREAM, "KTLS_UNATTACH: what was not opened is the owner's, from the number that it tells";
    drop_gives_back, BOTH, "close of the AF_KTLS socket gives the socket back";
    poll_readable, BOTH, "poll: readable when a decrypted-or-decryptable record is queued";
    poll_not_readable_by_halves, STREAM, "poll: not readable by a part of a record";
    poll_writable, BOTH, "poll: writable is the underlying socket's";
    poll_not_writable, STREAM, "poll: not writable while the underlying socket has no room";
    poll_hang_up, STREAM, "poll: hang-up is the underlying socket's";
    poll_end_of_file, STREAM, "poll: the end of the stream is readable";
}

fn socket_type(_: &Ground) {
    assert_eq!(KtlsType::try_from(1).expect("exists"), KtlsType::Stream);
    assert_eq!(KtlsType::try_from(2).expect("exists"), KtlsType::Datagram);
    for number in [-1, 0, 3, 4, 5, 6, 10, 2048] {
        let error = KtlsType::try_from(number);
        assert_eq!(errno(error), Errno::SOCKTNOSUPPORT, "type {number}");
    }
}

fn socket_protocol(ground: &Ground) {
    assert!(KtlsSocket::new(ground.kind, 0).is_ok());
    for protocol in [-1, 1, 6, 17] {
        let error = KtlsSocket::new(ground.kind, protocol);
        assert_eq!(errno(error), Errno::PROTONOSUPPORT, "{protocol}");
    }
}

fn bind_then_records_belong(ground: &Ground) {
    let pair = ground.armed();
    send(&pair.left, b"record");
    assert_eq!(read(&pair.right, 6), b"record");
}

fn bind_what_came_before(ground: &Ground) {
    let beneath = ground.beneath();
    let mut left = ground.socket();
    bind(&mut left, &beneath[0]);
    arm(&mut left, 1, 2);
    send(&left, b"before bind");
    beneath[1].wait_readable();
    let mut right = ground.socket();
    bind(&mut right, &beneath[1]);
    send(&left, b"before keys");
    arm(&mut right, 2, 1);
    let both = match ground.kind {
        KtlsType::Stream => read(&right, 22),
        KtlsType::Datagram => {
            let mut both = [read(&right, 11), read(&right, 11)];
            both.sort();
            both.concat()
        }
    };
    assert_eq!(both, b"before bindbefore keys");
}

fn bind_what_came_in_part(ground: &Ground) {
    let beneath = ground.beneath();
    let record = seal(
        ground.kind,
        1,
        IV,
        ContentType::APPLICATION_DATA,
        b"in parts",
    );
    let (front, behind) = record.split_at(9);
    beneath[0].send(front);
    beneath[1].wait_readable();
    let mut right = ground.socket();
    bind(&mut right, &beneath[1]);
    arm_recv(&mut right, 1, IV);
    beneath[0].send(behind);
    assert_eq!(read(&right, 8), b"in parts");
}

fn address_of(socket: u16) -> Vec<u8> {
    [KTLS_CIPHER_AES_GCM_128, socket, KTLS_VERSION_LATEST]
        .map(u16::to_ne_bytes)
        .concat()
}

fn number_of(fd: impl AsFd) -> u16 {
    u16::try_from(fd.as_fd().as_raw_fd()).expect("few descriptors")
}

fn bind_wrong_size(ground: &Ground) {
    let [left, _right] = ground.tcp();
    let whole = [address_of(number_of(&left)), vec![0; 10]].concat();
    for len in [0, 1, 5, 7, 16] {
        let error = ground
            .socket()
            .bind_address(&ground.daemons[0], &whole[..len]);
        assert_eq!(errno(error), Errno::BADMSG, "{len} bytes");
    }
}

fn bind_already_bound(ground: &Ground) {
    let mut pair = ground.bound();
    let again = pair.left.bind(pair.beneath[0].under(), KtlsAddress::LATEST);
    assert_eq!(errno(again), Errno::INVAL);
    let [other, _peer] = ground.beneath();
    let other = pair.left.bind(other.under(), KtlsAddress::LATEST);
    assert_eq!(errno(other), Errno::INVAL);
}

fn bind_taken(ground: &Ground) {
    let pair = ground.bound();
    let second = ground
        .socket()
        .bind(pair.beneath[0].under(), KtlsAddress::LATEST);
    assert_eq!(errno(second), Errno::INVAL);
}

fn bind_unknown_cipher(ground: &Ground) {
    let [left, _right] = ground.beneath();
    for cipher in [0, 1, 50, 53, 55, 0xFFFF] {
        let address = KtlsAddress {
            cipher,
            ..KtlsAddress::LATEST
        };
        let error = ground.socket().bind(left.under(), address);
        assert_eq!(errno(error), Errno::NOENT, "cipher {cipher}");
    }
    bind(&mut ground.socket(), &left);
}

fn bind_unknown_version(ground: &Ground) {
    let [left, _right] = ground.beneath();
    for version in [2, 3, 0x0303, 0xFFFF] {
        let address = KtlsAddress {
            version,
            ..KtlsAddress::LATEST
        };
        let error = ground.socket().bind(left.under(), address);
        assert_eq!(errno(error), Errno::NOENT, "version {version}");
    }
    let address = KtlsAddress {
        version: KTLS_VERSION_1_2,
        ..KtlsAddress::LATEST
    };
    let bound = ground.socket().bind(left.under(), address);
    bound.expect("both numbers are 1.2");
}

fn bind_bad_descriptor(ground: &Ground) {
    // Above every limit of open files.
    let error = ground
        .socket()
        .bind_address(&ground.daemons[0], &address_of(u16::MAX));
    assert_eq!(errno(error), Errno::NOENT);
}

fn bind_other_family(ground: &Ground) {
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let (unix, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let kernels = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback");
    for number in [number_of(&reader), number_of(&unix), number_of(&kernels)] {
        let error = ground
            .socket()
            .bind_address(&ground.daemons[0], &address_of(number));
        assert_eq!(errno(error), Errno::AFNOSUPPORT);
    }
    let listener = TcpListener::bind_on(&ground.daemons[0], ground.address(0));
    let number = number_of(listener.expect("bound"));
    let error = ground
        .socket()
        .bind_address(&ground.daemons[0], &address_of(number));
    assert!(error.is_err(), "no connection");
}

fn bind_by_number(ground: &Ground) {
    let (mut left, mut right) = (ground.socket(), ground.socket());
    let beneath = match ground.kind {
        KtlsType::Stream => ground.tcp().map(Beneath::Tcp),
        KtlsType::Datagram => {
            let addresses = [ground.address(0), ground.address(1)];
            [0, 1].map(|side| {
                let (own, peer) = (addresses[side], addresses[1 - side]);
                let socket = UdpSocket::bind_on(&ground.daemons[side], own, Some(peer));
                Beneath::Udp(socket.expect("bound"))
            })
        }
    };
    for (side, socket) in [&mut left, &mut right].into_iter().enumerate() {
        let number = match &beneath[side] {
            Beneath::Tcp(stream) => number_of(stream),
            Beneath::Udp(socket) => number_of(socket),
        };
        socket
            .bind_address(&ground.daemons[side], &address_of(number))
            .expect("a connected socket");
    }
    arm(&mut left, 1, 2);
    arm(&mut right, 2, 1);
    send(&left, b"by number");
    assert_eq!(read(&right, 9), b"by number");
}

fn bind_the_other_transport(ground: &Ground) {
    let (tcp, udp) = (ground.tcp(), ground.udp());
    let under = match ground.kind {
        KtlsType::Stream => Under::Udp(&udp[0]),
        KtlsType::Datagram => Under::Tcp(&tcp[0]),
    };
    let error = ground.socket().bind(under, KtlsAddress::LATEST);
    assert_eq!(errno(error), Errno::BADF);
}

fn bind_unconnected(ground: &Ground) {
    let mut socket = ground.socket();
    let error = match ground.kind {
        KtlsType::Stream => {
            let [left, right] = ground.tcp();
            right.abort().expect("reset");
            shown_soon(&left, PollFlags::HUP);
            socket.bind(&left, KtlsAddress::LATEST)
        }
        KtlsType::Datagram => {
            let lonely = UdpSocket::bind_on(&ground.daemons[0], ground.address(0), None);
            socket.bind(&lonely.expect("bound"), KtlsAddress::LATEST)
        }
    };
    assert_eq!(errno(error), Errno::NOTCONN);
}

fn bind_beside_the_ulp(ground: &Ground) {
    let [left, right] = ground.tcp();
    left.set_ulp_tls().expect("established");
    let error = ground.socket().bind(&left, KtlsAddress::LATEST);
    assert_eq!(errno(error), Errno::INVAL);
    let mut socket = ground.socket();
    socket.bind(&right, KtlsAddress::LATEST).expect("free");
    assert_eq!(errno(right.set_ulp_tls()), Errno::EXIST);
    socket.unattach().expect("bound");
    right.set_ulp_tls().expect("free again");
}

fn key_and_salt_arm_send(ground: &Ground) {
    let mut pair = ground.bound();
    set(&mut pair.left, KTLS_SET_KEY_SEND, &key(1));
    assert_eq!(errno(pair.left.send(b"x", NONE)), Errno::BADMSG, "no salt");
    set(&mut pair.left, KTLS_SET_SALT_SEND, &salt(1));
    assert_eq!(errno(pair.left.recv(&mut [0], NONE)), Errno::BADMSG);
    arm_recv(&mut pair.right, 1, [0; 8]);
    send(&pair.left, b"armed");
    assert_eq!(read(&pair.right, 5), b"armed", "numbers start with 0");
}

fn key_and_salt_arm_receive(ground: &Ground) {
    let mut pair = ground.bound();
    arm_send(&mut pair.left, 1, [0; 8]);
    set(&mut pair.right, KTLS_SET_SALT_RECV, &salt(1));
    let dontwait = KtlsFlags::DONTWAIT;
    assert_eq!(errno(pair.right.recv(&mut [0], dontwait)), Errno::BADMSG);
    set(&mut pair.right, KTLS_SET_KEY_RECV, &key(1));
    assert_eq!(errno(pair.right.recv(&mut [0], dontwait)), Errno::AGAIN);
    assert_eq!(errno(pair.right.send(b"x", NONE)), Errno::BADMSG);
    send(&pair.left, b"armed");
    assert_eq!(read(&pair.right, 5), b"armed");
}

fn options_in_any_order(ground: &Ground) {
    type Option = (i32, Vec<u8>);
    let options = |seed| -> [Option; 3] {
        [
            (KTLS_SET_IV_RECV, IV.to_vec()),
            (KTLS_SET_KEY_RECV, key(seed).to_vec()),
            (KTLS_SET_SALT_RECV, salt(seed).to_vec()),
        ]
    };
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        if ground.kind == KtlsType::Datagram && order[2] == 0 {
            // Where keys of the wrong epoch come first, they drop what waits.
            continue;
        }
        let mut pair = ground.bound();
        arm_send(&mut pair.left, 1, IV);
        send(&pair.left, b"it waited");
        pair.beneath[1].wait_readable_if_stream();
        for place in order {
            let (option, value) = &options(1)[place];
            set(&mut pair.right, *option, value);
        }
        assert_eq!(read(&pair.right, 9), b"it waited", "{order:?}");
    }
}

fn iv_is_the_next_number_sending(ground: &Ground) {
    let pair = ground.armed();
    let first = u64::from_be_bytes(IV);
    assert_eq!(next_number(&pair.left, KTLS_GET_IV_SEND), first);
    for sent in 1..=3 {
        send(&pair.left, b"x");
        read(&pair.right, 1);
        assert_eq!(next_number(&pair.left, KTLS_GET_IV_SEND), first + sent);
    }
}

fn iv_is_the_next_number_receiving(ground: &Ground) {
    let pair = ground.armed();
    let first = u64::from_be_bytes(IV);
    assert_eq!(next_number(&pair.right, KTLS_GET_IV_RECV), first);
    for sent in 1..=3 {
        send(&pair.left, b"x");
        read(&pair.right, 1);
        assert_eq!(next_number(&pair.right, KTLS_GET_IV_RECV), first + sent);
    }
}

fn new_key_goes_on_counting(ground: &Ground) {
    let mut pair = ground.armed();
    for len in 1..=3 {
        send(&pair.left, &text(len));
        read(&pair.right, len);
    }
    let number = next_number(&pair.left, KTLS_GET_IV_SEND);
    set(&mut pair.left, KTLS_SET_KEY_SEND, &key(7));
    set(&mut pair.right, KTLS_SET_KEY_RECV, &key(7));
    assert_eq!(next_number(&pair.left, KTLS_GET_IV_SEND), number);
    send(&pair.left, b"the fourth");
    assert_eq!(read(&pair.right, 10), b"the fourth");
    assert_eq!(next_number(&pair.right, KTLS_GET_IV_RECV), number + 1);
}

fn given_as_a_whole(ground: &Ground) {
    let mut pair = ground.bound();
    let number = u64::from_be_bytes(IV);
    let (left, right) = (&mut pair.left, &mut pair.right);
    match ground.kind {
        KtlsType::Stream => {
            let keys = tls_keys(1, number);
            left.set_send_keys(&keys).expect("bound");
            right.set_receive_keys(&keys).expect("bound");
        }
        KtlsType::Datagram => {
            let keys = dtls_keys(1, number);
            left.set_send_keys(&keys).expect("bound");
            right.set_receive_keys(&keys).expect("bound");
        }
    }
    send(left, b"as a whole");
    assert_eq!(read(right, 10), b"as a whole");
    let later = (number + 10).to_be_bytes();
    set(left, KTLS_SET_IV_SEND, &later);
    set(right, KTLS_SET_IV_RECV, &later);
    send(left, b"and later");
    assert_eq!(read(right, 9), b"and later");
    assert_eq!(next_number(right, KTLS_GET_IV_RECV), number + 11);
    let wrong = match ground.kind {
        KtlsType::Stream => left.set_send_keys(&dtls_keys(1, number)),
        KtlsType::Datagram => left.set_send_keys(&tls_keys(1, number)),
    };
    assert_eq!(errno(wrong), Errno::INVAL);
}

fn other_ciphers(ground: &Ground) {
    for (cipher, salt) in [(52, 4), (54, 12)] {
        let beneath = ground.beneath();
        let address = KtlsAddress {
            cipher,
            ..KtlsAddress::LATEST
        };
        let [mut left, mut right] = [ground.socket(), ground.socket()];
        left.bind(beneath[0].under(), address).expect("known");
        right.bind(beneath[1].under(), address).expect("known");
        let short = left.setsockopt(AF_KTLS, KTLS_SET_KEY_SEND, &[1; 16]);
        assert_eq!(errno(short), Errno::BADMSG, "its key is 32 bytes");
        set(&mut left, KTLS_SET_IV_SEND, &IV);
        set(&mut left, KTLS_SET_KEY_SEND, &[1; 32]);
        set(&mut left, KTLS_SET_SALT_SEND, &vec![2; salt]);
        set(&mut right, KTLS_SET_IV_RECV, &IV);
        set(&mut right, KTLS_SET_KEY_RECV, &[1; 32]);
        set(&mut right, KTLS_SET_SALT_RECV, &vec![2; salt]);
        send(&left, b"another cipher");
        assert_eq!(read(&right, 14), b"another cipher");
        assert_eq!(get(&left, KTLS_GET_KEY_SEND), [1; 32]);
        assert_eq!(get(&left, KTLS_GET_SALT_SEND), vec![2; salt]);
        assert_eq!(
            next_number(&left, KTLS_GET_IV_SEND),
            u64::from_be_bytes(IV) + 1
        );
    }
}

fn unattach_gives_back(ground: &Ground) {
    let mut pair = ground.armed();
    send(&pair.left, b"record");
    assert_eq!(read(&pair.right, 6), b"record");
    set(&mut pair.left, KTLS_UNATTACH, &[]);
    set(&mut pair.right, KTLS_UNATTACH, &[]);
    pair.beneath[0].send(b"there, in the raw");
    assert_eq!(pair.beneath[1].recv(17), b"there, in the raw");
    pair.beneath[1].send(b"and back");
    assert_eq!(pair.beneath[0].recv(8), b"and back");
    assert_eq!(errno(pair.left.send(b"x", NONE)), Errno::BADMSG);
    assert_eq!(errno(pair.left.recv(&mut [0], NONE)), Errno::BADMSG);
    let again = pair.left.setsockopt(AF_KTLS, KTLS_UNATTACH, &[]);
    assert_eq!(errno(again), Errno::BADMSG);
}

fn unattach_then_bind_again(ground: &Ground) {
    let mut pair = ground.armed();
    for round in 2..6 {
        send(&pair.left, &text(round));
        assert!(read(&pair.right, round) == text(round));
        set(&mut pair.left, KTLS_UNATTACH, &[]);
        set(&mut pair.right, KTLS_UNATTACH, &[]);
        pair.beneath[0].send(b"shall we?");
        assert_eq!(pair.beneath[1].recv(9), b"shall we?");
        bind(&mut pair.left, &pair.beneath[0]);
        bind(&mut pair.right, &pair.beneath[1]);
        let seed = round as u8 * 2;
        let iv = [0, round as u8, 0, 0, 0, 0, 0, 0];
        arm_send(&mut pair.left, seed, iv);
        arm_recv(&mut pair.left, seed + 1, iv);
        arm_send(&mut pair.right, seed + 1, iv);
        arm_recv(&mut pair.right, seed, iv);
        send(&pair.right, b"new keys, round and round");
        assert_eq!(read(&pair.left, 25), b"new keys, round and round");
    }
}

fn unattach_keeps_what_was_sent(ground: &Ground) {
    let (mut socket, wire) = ground.to_the_wire();
    let [Beneath::Tcp(_), Beneath::Tcp(reader)] = &wire.beneath else {
        unreachable!("a stream's");
    };
    // More than there is room for on the way, since nobody reads.
    socket.set_nonblocking(true).expect("a socket");
    let mut sent = 0;
    while let Ok(more) = socket.send(&text(50_000), NONE) {
        sent += more;
    }
    socket.set_nonblocking(false).expect("a socket");
    socket.unattach().expect("bound");
    wire.beneath[0].send_later(b"raw");
    let mut received = 0;
    while received < sent {
        let record = wire.record();
        assert_eq!(record[..3], [23, 3, 3]);
        received += record.len() - overhead(ground.kind);
    }
    assert_eq!(received, sent);
    let mut raw = [0; 3];
    std::io::Read::read_exact(&mut &*reader, &mut raw).expect("raw");
    assert_eq!(&raw, b"raw");
}

fn unattach_keeps_what_was_opened(ground: &Ground) {
    let mut pair = ground.armed();
    let whole = text(40_000);
    send(&pair.left, &whole);
    let front = read(&pair.right, 1);
    // All of it is opened by now, or will be raw: the number tells.
    let number = pair.right.unattach().expect("bound").expect("it had keys");
    bind(&mut pair.right, &pair.beneath[1]);
    arm_recv(&mut pair.right, 1, number.to_be_bytes());
    let mut all = front;
    let rest = read(&pair.right, whole.len() - all.len());
    all.extend(rest);
    while all.len() < whole.len() {
        let rest = read(&pair.right, whole.len() - all.len());
        all.extend(rest);
    }
    assert!(all == whole);
}

fn unattach_leaves_the_rest_raw(ground: &Ground) {
    let mut pair = ground.armed();
    send(&pair.left, b"opened");
    assert_eq!(read(&pair.right, 6), b"opened");
    let number = pair.right.unattach().expect("bound").expect("it had keys");
    assert_eq!(number, u64::from_be_bytes(IV) + 1);
    send(&pair.left, b"raw");
    let record = pair.beneath[1].recv(3 + overhead(ground.kind));
    let sealed = seal(
        ground.kind,
        1,
        number.to_be_bytes(),
        ContentType::APPLICATION_DATA,
        b"raw",
    );
    assert_eq!(record, sealed, "as it came");
}

fn drop_gives_back(ground: &Ground) {
    let pair = ground.armed();
    send(&pair.left, b"record");
    assert_eq!(read(&pair.right, 6), b"record");
    let Pair {
        left,
        right,
        beneath,
    } = pair;
    drop((left, right));
    beneath[0].send_until_received(&beneath[1], b"in the raw");
}

fn poll_readable(ground: &Ground) {
    let pair = ground.armed();
    assert_eq!(now(&pair.right, PollFlags::IN), PollFlags::empty());
    send(&pair.left, b"x");
    assert_eq!(soon(&pair.right, PollFlags::IN), PollFlags::IN);
    assert_eq!(shown_soon(&pair.right, PollFlags::IN), PollFlags::IN);
    read(&pair.right, 1);
    assert_eq!(now(&pair.right, PollFlags::IN), PollFlags::empty());
}

fn poll_not_readable_by_halves(ground: &Ground) {
    let beneath = ground.beneath();
    let mut right = ground.socket();
    bind(&mut right, &beneath[1]);
    arm_recv(&mut right, 1, IV);
    let first = seal(ground.kind, 1, IV, ContentType::APPLICATION_DATA, b"whole");
    let mut iv = IV;
    iv[7] += 1;
    let second = seal(ground.kind, 1, iv, ContentType::APPLICATION_DATA, b"halves");
    beneath[0].send(&[&first[..], &second[..20]].concat());
    assert_eq!(soon(&right, PollFlags::IN), PollFlags::IN);
    assert_eq!(read(&right, 5), b"whole");
    assert_eq!(now(&right, PollFlags::IN), PollFlags::empty());
    beneath[0].send(&second[20..]);
    assert_eq!(soon(&right, PollFlags::IN), PollFlags::IN);
    assert_eq!(read(&right, 6), b"halves");
}

fn poll_writable(ground: &Ground) {
    let pair = ground.armed();
    assert_eq!(now(&pair.left, PollFlags::OUT), PollFlags::OUT);
    assert_eq!(shown_soon(&pair.left, PollFlags::OUT), PollFlags::OUT);
}

fn poll_not_writable(ground: &Ground) {
    let pair = ground.armed();
    pair.left.set_nonblocking(true).expect("a socket");
    let mut sent = 0;
    let full = loop {
        match pair.left.send(&text(60_000), NONE) {
            Ok(more) => sent += more,
            Err(error) => break error,
        }
    };
    assert_eq!(errno::<()>(Err(full)), Errno::AGAIN);
    let Beneath::Tcp(beneath) = &pair.beneath[0] else {
        unreachable!("a stream's");
    };
    let own = glance(beneath, PollFlags::OUT);
    assert_eq!(now(&pair.left, PollFlags::OUT), own);
    // The last record stays open until the rest of what was to be sent comes.
    let closed = sent - sent % (1 << 14);
    let mut received = 0;
    while received + (1 << 14) < closed {
        received += read(&pair.right, (closed - received).min(1 << 14)).len();
    }
    assert_eq!(soon(&pair.left, PollFlags::OUT), PollFlags::OUT);
    send(&pair.left, b"the rest");
    while received < sent + 8 {
        received += read(&pair.right, (sent + 8 - received).min(1 << 14)).len();
    }
    assert_eq!(received, sent + 8);
}

fn poll_hang_up(ground: &Ground) {
    let pair = ground.armed();
    let Beneath::Tcp(peer) = &pair.beneath[0] else {
        unreachable!("a stream's");
    };
    assert!(!now(&pair.right, PollFlags::IN).contains(PollFlags::HUP));
    peer.abort().expect("reset");
    assert!(soon(&pair.right, PollFlags::empty()).contains(PollFlags::HUP));
    let error = pair.right.recv(&mut [0; 9], NONE);
    assert_eq!(errno(error), Errno::CONNRESET);
}

fn poll_end_of_file(ground: &Ground) {
    let pair = ground.armed();
    let Beneath::Tcp(peer) = &pair.beneath[0] else {
        unreachable!("a stream's");
    };
    send(&pair.left, b"the last");
    peer.shutdown(Shutdown::Write).expect("open");
    assert_eq!(read(&pair.right, 8), b"the last");
    assert!(soon(&pair.right, PollFlags::IN).contains(PollFlags::IN));
    let end = pair.right.recv(&mut [0; 9], NONE).expect("the end");
    assert_eq!(end.len, 0);
    // The other direction goes on.
    send(&pair.right, b"and yet");
    assert_eq!(read(&pair.left, 7), b"and yet");
}
