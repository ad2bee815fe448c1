//! Linux's kTLS calls, row by row, over real records.

mod support;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;
use support::{World, errno, eventually, keys};
use uktls::ProtocolVersion::{Tls12, Tls13};
use uktls::client::{Reason, Received, RecvFlags, SendFlags};
use uktls::{ContentType, TcpStream};
use uktls_record::Sealer;

const DATA: Option<ContentType> = Some(ContentType::APPLICATION_DATA);

fn control(content_type: ContentType, len: usize) -> Received {
    Received {
        len,
        content_type: Some(content_type),
        end_of_record: true,
    }
}

/// A pair whose receiver has keys, and a sealer for what arrives at it.
fn fed(version: uktls::ProtocolVersion) -> (World, TcpStream, TcpStream, Sealer) {
    let world = World::new();
    let (peer, stream) = world.pair();
    stream.set_ulp_tls().unwrap();
    stream.set_tls_rx(&keys(version, 1)).unwrap();
    let sealer = Sealer::new(&keys(version, 1)).unwrap();
    (world, peer, stream, sealer)
}

fn record(sealer: &mut Sealer, content_type: ContentType, plaintext: &[u8]) -> Vec<u8> {
    let mut record = vec![0; plaintext.len() + sealer.overhead()];
    sealer
        .seal_from(content_type, plaintext, &mut record)
        .unwrap();
    record
}

#[test]
fn attaching_has_linux_errors() {
    let world = World::new();
    let (client, _server) = world.pair();
    assert_eq!(
        errno(client.set_tls_tx(&keys(Tls12, 1))),
        Errno::NOPROTOOPT.raw_os_error()
    );
    assert_eq!(
        errno(client.set_tls_rx(&keys(Tls12, 1))),
        Errno::NOPROTOOPT.raw_os_error()
    );
    client.set_ulp_tls().unwrap();
    assert_eq!(errno(client.set_ulp_tls()), Errno::EXIST.raw_os_error());
    assert_eq!(errno(client.tls_tx()), Errno::BUSY.raw_os_error());
    client.set_tls_tx(&keys(Tls12, 1)).unwrap();
    assert_eq!(
        errno(client.set_tls_tx(&keys(Tls12, 1))),
        Errno::BUSY.raw_os_error()
    );
}

#[test]
fn bytes_before_the_keys_stay_plain_and_bytes_behind_are_sealed() {
    let world = World::new();
    let (mut client, mut server) = world.pair();
    client.set_ulp_tls().unwrap();
    client.write_all(b"plain").unwrap();
    client.set_tls_tx(&keys(Tls13, 1)).unwrap();
    client.write_all(b"secret").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut wire = Vec::new();
    server.read_to_end(&mut wire).unwrap();
    assert!(wire.starts_with(b"plain\x17\x03\x03"));
    assert_eq!(wire.len(), 5 + 5 + 6 + 17);
}

#[test]
fn keys_that_come_late_open_what_came_early() {
    let world = World::new();
    let (peer, stream) = world.pair();
    let mut sealer = Sealer::new(&keys(Tls12, 1)).unwrap();
    let mut sent = Vec::new();
    // More than a request's piece, so that the drained bytes travel back in several.
    for i in 0..20u8 {
        sent.extend(record(
            &mut sealer,
            ContentType::APPLICATION_DATA,
            &vec![i; 9_000],
        ));
    }
    (&peer).write_all(&sent[..sent.len() - 7]).unwrap();
    stream.set_ulp_tls().unwrap();
    // Some of it waits on the socket, some still with the stack.
    let mut one = [0];
    eventually("the first bytes", || matches!(stream.peek(&mut one), Ok(1)));
    stream.set_tls_rx(&keys(Tls12, 1)).unwrap();
    (&peer).write_all(&sent[sent.len() - 7..]).unwrap();
    let mut plain = vec![0; 20 * 9_000];
    (&stream).read_exact(&mut plain).unwrap();
    assert!(
        plain
            .chunks(9_000)
            .enumerate()
            .all(|(i, chunk)| chunk.iter().all(|&b| usize::from(b) == i))
    );
}

#[test]
fn keys_refused_leave_the_bytes_readable() {
    let world = World::new();
    let (peer, stream) = world.pair();
    stream.set_ulp_tls().unwrap();
    (&peer).write_all(b"still plain").unwrap();
    let mut one = [0];
    eventually("the first bytes", || matches!(stream.peek(&mut one), Ok(1)));
    // A cipher of the other direction's would be refused so: keys that are none.
    world.stack.refuse_keys(&stream);
    assert_eq!(
        errno(stream.set_tls_rx(&keys(Tls12, 1))),
        Errno::INVAL.raw_os_error()
    );
    let mut buf = [0; 11];
    (&stream).read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"still plain");
}

#[test]
fn every_send_is_its_own_record_unless_more_is_said() {
    let world = World::new();
    let (client, server) = world.tls_pair(Tls13);
    client.send(b"one", SendFlags::empty()).unwrap();
    client.send(b"tw", SendFlags::MORE).unwrap();
    client.send(b"o", SendFlags::EOR).unwrap();
    client.send(b"three", SendFlags::MORE).unwrap();
    client.send(b"", SendFlags::empty()).unwrap();
    client.send(&[4; 40_000], SendFlags::empty()).unwrap();
    client.send(b"five", SendFlags::MORE).unwrap();
    client
        .send_record(ContentType::ALERT, &[1, 0], SendFlags::empty())
        .unwrap();
    let mut got = vec![0; 3 + 3 + 5 + 40_000 + 4];
    (&server).read_exact(&mut got).unwrap();
    let sizes = [
        (23, 3),
        (23, 3),
        (23, 5),
        (23, 16_384),
        (23, 16_384),
        (23, 7_232),
        (23, 4),
        (21, 2),
    ];
    eventually("all records", || {
        world.stack.sealed(&client).len() == sizes.len()
    });
    assert_eq!(world.stack.sealed(&client), sizes);
}

#[test]
fn flags_are_checked_as_linux_does() {
    let world = World::new();
    let (client, _server) = world.tls_pair(Tls12);
    const MSG_OOB: u32 = 1;
    assert_eq!(
        errno(client.send(b"x", SendFlags::from_bits(MSG_OOB))),
        Errno::OPNOTSUPP.raw_os_error()
    );
    assert_eq!(
        errno(client.send(b"x", SendFlags::MORE | SendFlags::EOR)),
        Errno::INVAL.raw_os_error()
    );
    let more = client.send_record(ContentType::ALERT, b"x", SendFlags::MORE);
    assert_eq!(errno(more), Errno::INVAL.raw_os_error());
    let (plain, _other) = world.pair();
    let alert = plain.send_record(ContentType::ALERT, &[1, 0], SendFlags::empty());
    assert_eq!(errno(alert), Errno::NOPROTOOPT.raw_os_error());
}

#[test]
fn a_control_record_comes_alone_and_a_plain_read_meets_eio() {
    let (world, _peer, stream, mut sealer) = fed(Tls13);
    let mut wire = record(&mut sealer, ContentType::APPLICATION_DATA, b"data");
    wire.extend(record(&mut sealer, ContentType::HANDSHAKE, b"a ticket"));
    wire.extend(record(&mut sealer, ContentType::APPLICATION_DATA, b"more"));
    world.stack.inject(&stream, &wire);
    let mut buf = [0; 100];
    // Data first; then EIO, as long as the caller does not ask for types.
    assert_eq!((&stream).read(&mut buf).unwrap(), 4);
    assert_eq!(errno((&stream).read(&mut buf)), Errno::IO.raw_os_error());
    assert_eq!(errno((&stream).read(&mut buf)), Errno::IO.raw_os_error());
    // A partial read keeps the rest, a peek everything.
    let some = |len| Received {
        len,
        content_type: Some(ContentType::HANDSHAKE),
        end_of_record: false,
    };
    assert_eq!(
        stream
            .recv_record(&mut buf[..3], RecvFlags::empty())
            .unwrap(),
        some(3)
    );
    assert_eq!(&buf[..3], b"a t");
    assert_eq!(
        stream.recv_record(&mut buf, RecvFlags::PEEK).unwrap(),
        control(ContentType::HANDSHAKE, 5)
    );
    assert_eq!(
        stream.recv_record(&mut buf, RecvFlags::empty()).unwrap(),
        control(ContentType::HANDSHAKE, 5)
    );
    assert_eq!(&buf[..5], b"icket");
    let data = stream.recv_record(&mut buf, RecvFlags::empty()).unwrap();
    assert_eq!(
        (data.len, data.content_type, &buf[..4]),
        (4, DATA, &b"more"[..])
    );
}

#[test]
fn a_read_of_any_size_finds_the_marks_edge() {
    // The mark and its record behind 0 to 70 bytes of data, read with buffers that end in front of, inside and behind it.
    for data in [0usize, 1, 63, 64, 70] {
        for size in [1usize, 2, 63, 64, 65, 128, 200] {
            let (world, _peer, stream, mut sealer) = fed(Tls12);
            let mut wire = Vec::new();
            if data > 0 {
                wire.extend(record(
                    &mut sealer,
                    ContentType::APPLICATION_DATA,
                    &vec![0xbf; data],
                ));
            }
            wire.extend(record(&mut sealer, ContentType::ALERT, &[1, 90]));
            wire.extend(record(
                &mut sealer,
                ContentType::APPLICATION_DATA,
                b"behind",
            ));
            world.stack.inject(&stream, &wire);
            let (mut before, mut alert, mut behind) = (Vec::new(), Vec::new(), Vec::new());
            while behind.len() < 6 {
                let mut buf = vec![0; size];
                let got = stream.recv_record(&mut buf, RecvFlags::empty()).unwrap();
                assert!(
                    got.len > 0,
                    "an end, with {data} bytes of data read by {size}"
                );
                let into = match got.content_type {
                    Some(ContentType::ALERT) => &mut alert,
                    DATA if alert.is_empty() => &mut before,
                    _ => &mut behind,
                };
                into.extend(&buf[..got.len]);
            }
            assert_eq!(
                (before, &alert[..], &behind[..]),
                (vec![0xbf; data], &[1, 90][..], &b"behind"[..])
            );
        }
    }
}

#[test]
fn a_peek_never_crosses_into_another_type() {
    let (world, _peer, stream, mut sealer) = fed(Tls12);
    let mut wire = record(&mut sealer, ContentType::APPLICATION_DATA, b"data");
    wire.extend(record(&mut sealer, ContentType::ALERT, &[1, 0]));
    world.stack.inject(&stream, &wire);
    let mut buf = [0; 100];
    for _ in 0..2 {
        eventually("all four bytes", || stream.peek(&mut buf).unwrap() == 4);
    }
    assert_eq!((&stream).read(&mut buf).unwrap(), 4);
    for _ in 0..2 {
        assert_eq!(
            stream.recv_record(&mut buf, RecvFlags::PEEK).unwrap(),
            control(ContentType::ALERT, 2)
        );
    }
    assert_eq!(
        stream.recv_record(&mut buf, RecvFlags::empty()).unwrap(),
        control(ContentType::ALERT, 2)
    );
}

#[test]
fn bytes_of_a_peer_are_never_a_mark() {
    let (world, _peer, stream, mut sealer) = fed(Tls13);
    let fake = uktls_stack::mark::Mark::Control {
        content_type: 21,
        len: 2,
    }
    .encode();
    world.stack.inject(
        &stream,
        &record(&mut sealer, ContentType::APPLICATION_DATA, &fake),
    );
    let mut buf = [0; 64];
    let got = stream.recv_record(&mut buf, RecvFlags::WAITALL).unwrap();
    assert_eq!((got.len, got.content_type, buf), (64, DATA, fake));
}

#[test]
fn empty_records_are_skipped_or_told_apart() {
    let (world, _peer, stream, mut sealer) = fed(Tls13);
    let mut wire = record(&mut sealer, ContentType::APPLICATION_DATA, b"");
    wire.extend(record(&mut sealer, ContentType::HANDSHAKE, b""));
    wire.extend(record(&mut sealer, ContentType::APPLICATION_DATA, b"x"));
    world.stack.inject(&stream, &wire);
    let mut buf = [0; 10];
    assert_eq!(
        stream.recv_record(&mut buf, RecvFlags::empty()).unwrap(),
        control(ContentType::HANDSHAKE, 0)
    );
    assert_eq!(
        stream
            .recv_record(&mut buf, RecvFlags::empty())
            .unwrap()
            .len,
        1
    );
}

fn is_readable(stream: &TcpStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())).expect("polled");
    !fds[0].revents().is_empty()
}

/// A read that ends in front of an empty control record has taken its mark; nobody may wait for that record in vain.
#[test]
fn an_empty_control_record_polls_readable_until_it_is_taken() {
    let (world, _peer, stream, mut sealer) = fed(Tls13);
    let mut wire = record(&mut sealer, ContentType::APPLICATION_DATA, b"data");
    wire.extend(record(&mut sealer, ContentType::HANDSHAKE, b""));
    world.stack.inject(&stream, &wire);
    let mut buf = [0; 100];
    assert_eq!((&stream).read(&mut buf).unwrap(), 4);
    eventually("the record", || is_readable(&stream));
    for flags in [RecvFlags::PEEK, RecvFlags::DONTWAIT] {
        assert_eq!(
            errno((&stream).read(&mut buf)),
            Errno::IO.raw_os_error(),
            "a plain read"
        );
        assert!(is_readable(&stream));
        assert_eq!(
            stream.recv_record(&mut buf, flags).unwrap(),
            control(ContentType::HANDSHAKE, 0)
        );
    }
    assert!(!is_readable(&stream));
    world.stack.inject(
        &stream,
        &record(&mut sealer, ContentType::APPLICATION_DATA, b"x"),
    );
    assert_eq!((&stream).read(&mut buf).unwrap(), 1);
    assert_eq!(buf[0], b'x');
}

#[test]
fn a_record_that_fails_is_ebadmsg_for_good_and_data_comes_first() {
    for (damage, expected) in [
        (6usize, Errno::BADMSG), // a bit of the ciphertext
        (1, Errno::INVAL),       // the version
    ] {
        let (world, _peer, stream, mut sealer) = fed(Tls13);
        let mut wire = record(&mut sealer, ContentType::APPLICATION_DATA, b"good");
        let mut bad = record(&mut sealer, ContentType::APPLICATION_DATA, b"bad");
        bad[damage] ^= 0x40;
        wire.extend(bad);
        world.stack.inject(&stream, &wire);
        let mut buf = [0; 100];
        assert_eq!((&stream).read(&mut buf).unwrap(), 4);
        for _ in 0..3 {
            assert_eq!(errno((&stream).read(&mut buf)), expected.raw_os_error());
        }
        assert_eq!(
            stream.reason().unwrap(),
            Reason::BadRecord(expected.raw_os_error())
        );
    }
}

#[test]
fn behind_a_key_update_reads_need_new_keys() {
    let (world, _peer, stream, mut sealer) = fed(Tls13);
    let mut wire = record(&mut sealer, ContentType::APPLICATION_DATA, b"old");
    wire.extend(record(
        &mut sealer,
        ContentType::HANDSHAKE,
        &[24, 0, 0, 1, 0],
    ));
    let mut next = Sealer::new(&keys(Tls13, 9)).unwrap();
    wire.extend(record(&mut next, ContentType::APPLICATION_DATA, b"new"));
    world.stack.inject(&stream, &wire);
    let mut buf = [0; 100];
    assert_eq!((&stream).read(&mut buf).unwrap(), 3);
    assert_eq!(
        stream.recv_record(&mut buf, RecvFlags::empty()).unwrap(),
        control(ContentType::HANDSHAKE, 5)
    );
    for _ in 0..2 {
        assert_eq!(errno((&stream).read(&mut buf)), 127, "EKEYEXPIRED");
    }
    stream.set_tls_rx(&keys(Tls13, 9)).unwrap();
    assert_eq!((&stream).read(&mut buf).unwrap(), 3);
    assert_eq!(&buf[..3], b"new");
}

#[test]
fn new_keys_for_sending_need_no_pause() {
    let world = World::new();
    let (client, server) = world.tls_pair(Tls13);
    client.send(b"before", SendFlags::empty()).unwrap();
    client
        .send_record(
            ContentType::HANDSHAKE,
            &[24, 0, 0, 1, 0],
            SendFlags::empty(),
        )
        .unwrap();
    client.set_tls_tx(&keys(Tls13, 7)).unwrap();
    client.send(b"after", SendFlags::empty()).unwrap();
    let mut buf = [0; 100];
    assert_eq!((&server).read(&mut buf).unwrap(), 6);
    assert_eq!(
        server.recv_record(&mut buf, RecvFlags::empty()).unwrap(),
        control(ContentType::HANDSHAKE, 5)
    );
    server.set_tls_rx(&keys(Tls13, 7)).unwrap();
    assert_eq!((&server).read(&mut buf).unwrap(), 5);
    assert_eq!(client.tls_tx().unwrap().rec_seq(), 1);
}

#[test]
fn keys_can_be_read_back_with_the_current_sequence() {
    let world = World::new();
    let (client, server) = world.tls_pair(Tls12);
    for _ in 0..3 {
        client.send(b"x", SendFlags::empty()).unwrap();
    }
    (&server).read_exact(&mut [0; 3]).unwrap();
    let tx = client.tls_tx().unwrap();
    assert_eq!((tx.key(), tx.rec_seq()), (&[1; 16][..], 3));
    assert_eq!(server.tls_rx().unwrap().rec_seq(), 3);
}

#[test]
fn sendfile_makes_the_records_linux_makes_in_every_mode() {
    let world = World::new();
    let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let path = world.directory.path().join("file");
    std::fs::write(&path, &content).unwrap();
    let file = File::open(&path).unwrap();
    for (nonblocking, from, count) in [
        (false, 0u64, u64::MAX),
        (false, 5, 16_384),
        (false, 17, 70_000),
        (true, 1, 16_385),
        (true, 0, 300_000),
        (false, 299_999, 10),
        (false, 300_000, 10),
    ] {
        let (client, server) = world.tls_pair(Tls13);
        client.set_nonblocking(nonblocking).unwrap();
        let mut offset = from;
        let sent = client.sendfile(&file, Some(&mut offset), count).unwrap();
        let expected = &content[from as usize..(from + count.min(300_000 - from)) as usize];
        assert_eq!((sent, offset), (expected.len() as u64, from + sent));
        let mut got = vec![0; expected.len()];
        (&server).read_exact(&mut got).unwrap();
        assert!(got == expected, "another file arrived");
        assert_eq!(
            world.stack.sealed(&client).len(),
            expected.len().div_ceil(16_384)
        );
        // The stream goes on behind it; a held socket becomes writable again.
        client.set_nonblocking(false).unwrap();
        client.send(b"behind", SendFlags::empty()).unwrap();
        (&server).read_exact(&mut [0; 6]).unwrap();
    }
    // Without an offset the file's own position is used and moved.
    let (client, _server) = world.tls_pair(Tls12);
    assert_eq!(client.sendfile(&file, None, 100_000).unwrap(), 100_000);
    assert_eq!(client.sendfile(&file, None, u64::MAX).unwrap(), 200_000);
    assert_eq!(client.sendfile(&file, None, u64::MAX).unwrap(), 0);
}

#[test]
fn a_non_blocking_sendfile_takes_a_quota_and_holds_the_socket_unwritable() {
    const QUOTA: usize = uktls::client::SENDFILE_QUOTA as usize;
    let world = World::new();
    let (client, server) = world.pair();
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * QUOTA as u64).unwrap();
    client.set_nonblocking(true).unwrap();
    world.stack.stall(&client, true);
    let mut offset = 0;
    assert_eq!(
        client.sendfile(&file, Some(&mut offset), u64::MAX).unwrap(),
        QUOTA as u64
    );
    let again = Errno::AGAIN.raw_os_error();
    assert_eq!(
        errno(client.sendfile(&file, Some(&mut offset), u64::MAX)),
        again
    );
    assert_eq!(offset, QUOTA as u64);
    let mut poll = [rustix::event::PollFd::new(
        &client,
        rustix::event::PollFlags::OUT,
    )];
    assert_eq!(
        rustix::event::poll(&mut poll, Some(&Default::default())).unwrap(),
        0,
        "polls writable while held"
    );
    world.stack.stall(&client, false);
    let mut got = vec![0; QUOTA];
    (&server).read_exact(&mut got).unwrap();
    assert!(rustix::event::poll(&mut poll, None).is_ok());
    assert_eq!((&client).write(b"x").unwrap(), 1);
    assert_eq!(
        (&server).read(&mut got).unwrap(),
        1,
        "filler reached the peer"
    );
}

#[test]
fn small_non_blocking_ranges_fill_the_socket_like_bytes_do() {
    const LEN: usize = 10_000;
    let world = World::new();
    let (client, server) = world.tls_pair(Tls13);
    let content: Vec<u8> = (0..LEN as u32).map(|i| (i % 251) as u8).collect();
    let path = world.directory.path().join("file");
    std::fs::write(&path, &content).unwrap();
    let file = File::open(&path).unwrap();
    client.set_nonblocking(true).unwrap();
    world.stack.stall(&client, true);
    let taken = (0..10_000)
        .take_while(|_| match client.sendfile(&file, Some(&mut 0), u64::MAX) {
            Ok(sent) => sent == LEN as u64,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                false
            }
        })
        .count();
    assert!((10..1000).contains(&taken), "{taken} ranges wait");
    world.stack.stall(&client, false);
    let mut got = vec![0; LEN];
    for range in 0..taken {
        (&server).read_exact(&mut got).unwrap();
        assert!(got == content, "range {range} of {taken}");
    }
    let mut poll = [rustix::event::PollFd::new(
        &client,
        rustix::event::PollFlags::OUT,
    )];
    assert!(rustix::event::poll(&mut poll, None).is_ok());
}

#[test]
fn a_blocking_sendfile_returns_when_the_last_byte_is_taken() {
    let world = World::new();
    let (client, server) = world.pair();
    let file = tempfile::tempfile().unwrap();
    file.set_len(100_000).unwrap();
    world.stack.stall(&client, true);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| client.sendfile(&file, Some(&mut 0), u64::MAX));
        // Others write meanwhile; their bytes go behind the file.
        server
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        assert_eq!(errno((&server).read(&mut [0])), Errno::AGAIN.raw_os_error());
        assert!(
            !sending.is_finished(),
            "returned while the file was not even read"
        );
        world.stack.stall(&client, false);
        assert_eq!(sending.join().unwrap().unwrap(), 100_000);
    });
    server.set_read_timeout(None).unwrap();
    (&server).read_exact(&mut vec![0; 100_000]).unwrap();
}

#[test]
fn a_daemon_that_dies_during_sendfile_is_an_error() {
    let mut world = World::new();
    let (client, _server) = world.pair();
    let file = tempfile::tempfile().unwrap();
    file.set_len(100_000).unwrap();
    world.stack.stall(&client, true);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| client.sendfile(&file, Some(&mut 0), u64::MAX));
        world.kill();
        assert_eq!(
            errno(sending.join().unwrap()),
            Errno::CONNABORTED.raw_os_error()
        );
    });
}

#[test]
fn sendfile_takes_readable_regular_files_only() {
    let world = World::new();
    let (client, _server) = world.tls_pair(Tls12);
    let pipe = rustix::pipe::pipe().unwrap().0;
    assert_eq!(
        errno(client.sendfile(&pipe, None, 1)),
        Errno::INVAL.raw_os_error()
    );
    assert_eq!(
        errno(client.sendfile(&File::open(world.directory.path()).unwrap(), None, 1)),
        Errno::INVAL.raw_os_error()
    );
    let write_only = File::create(world.directory.path().join("w")).unwrap();
    assert_eq!(
        errno(client.sendfile(&write_only, None, 1)),
        Errno::BADF.raw_os_error()
    );
}

#[test]
fn the_end_says_whether_it_was_clean() {
    let world = World::new();
    let mut buf = [0; 10];
    let (client, server) = world.tls_pair(Tls13);
    client
        .send_record(ContentType::ALERT, &[1, 0], SendFlags::empty())
        .unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        server.recv_record(&mut buf, RecvFlags::empty()).unwrap(),
        control(ContentType::ALERT, 2)
    );
    assert_eq!((&server).read(&mut buf).unwrap(), 0);
    assert_eq!(server.reason().unwrap(), Reason::CleanEnd);

    let (client, server) = world.tls_pair(Tls13);
    client.send(b"cut", SendFlags::empty()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&server).read(&mut buf).unwrap(), 3);
    assert_eq!(
        (&server).read(&mut buf).unwrap(),
        0,
        "end of file, as in Linux"
    );
    assert_eq!(
        server.reason().unwrap(),
        Reason::Truncated,
        "but it can be told"
    );
}

#[test]
fn a_blocked_reader_gets_the_control_record_whole() {
    let (world, _peer, stream, mut sealer) = fed(Tls12);
    let big = record(&mut sealer, ContentType::HANDSHAKE, &[7; 16_000]);
    let reader = stream.try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        let mut buf = vec![0; 17_000];
        reader.recv_record(&mut buf, RecvFlags::empty()).unwrap()
    });
    for piece in big.chunks(1_000) {
        world.stack.inject(&stream, piece);
    }
    assert_eq!(
        thread.join().unwrap(),
        control(ContentType::HANDSHAKE, 16_000)
    );
}

#[test]
fn a_read_that_may_not_wait_does_not() {
    let (world, _peer, stream, mut sealer) = fed(Tls12);
    let mut buf = [0; 10];
    assert_eq!(
        errno(stream.recv_record(&mut buf, RecvFlags::DONTWAIT)),
        Errno::AGAIN.raw_os_error()
    );
    stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    assert_eq!(errno((&stream).read(&mut buf)), Errno::AGAIN.raw_os_error());
    // Half a record is nothing.
    let wire = record(&mut sealer, ContentType::APPLICATION_DATA, b"12");
    world.stack.inject(&stream, &wire[..10]);
    assert_eq!(errno((&stream).read(&mut buf)), Errno::AGAIN.raw_os_error());
    world.stack.inject(&stream, &wire[10..]);
    stream.set_read_timeout(None).unwrap();
    assert_eq!((&stream).read(&mut buf).unwrap(), 2);
}
