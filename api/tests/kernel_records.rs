//! The kTLS calls on sockets of the real stack: what leaves, and what is made of what arrives.

#[path = "support/kernel.rs"]
mod kernel;

use kernel::*;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::net::Shutdown;
use uktls::TcpStream;
use uktls::client::{Reason, RecvFlags, SENDFILE_QUOTA, SendFlags};
use uktls::{CipherSuite, ContentType, CryptoInfo, ProtocolVersion};
use uktls_record::{Opener, Sealer};

#[test]
fn records_leave_as_the_calls_say() {
    inside("records_leave_as_the_calls_say", |net| {
        for version in [ProtocolVersion::Tls12, ProtocolVersion::Tls13] {
            let (mut ours, mut theirs) = net.pair();
            ours.set_ulp_tls().unwrap();
            assert_eq!(errno(ours.set_ulp_tls()), Errno::EXIST);
            assert_eq!(errno(ours.tls_tx()), Errno::BUSY);
            ours.write_all(b"plain").unwrap();
            ours.set_tls_tx(&keys(version, 1)).unwrap();
            assert_eq!(
                *ours.tls_tx().unwrap().to_bytes(),
                *keys(version, 1).to_bytes()
            );
            ours.send(b"one", SendFlags::empty()).unwrap();
            ours.send(b"tw", SendFlags::MORE).unwrap();
            ours.send(b"o", SendFlags::EOR).unwrap();
            let big = pattern(100_000);
            ours.send(&big, SendFlags::empty()).unwrap();
            ours.send(b"five", SendFlags::MORE).unwrap();
            ours.send_record(ContentType::HANDSHAKE, &[4; 1000], SendFlags::empty())
                .unwrap();
            ours.send_record(ContentType::ALERT, &[1, 0], SendFlags::empty())
                .unwrap();
            ours.shutdown(Shutdown::Write).unwrap();

            let mut plain = [0; 5];
            theirs.read_exact(&mut plain).unwrap();
            assert_eq!(&plain, b"plain");
            let mut opener = Opener::new(&keys(version, 1)).unwrap();
            assert_eq!(open_next(&mut theirs, &mut opener), (23, b"one".to_vec()));
            assert_eq!(open_next(&mut theirs, &mut opener), (23, b"two".to_vec()));
            for chunk in big.chunks(16_384) {
                assert!(
                    open_next(&mut theirs, &mut opener) == (23, chunk.to_vec()),
                    "a record of another shape"
                );
            }
            assert_eq!(open_next(&mut theirs, &mut opener), (23, b"five".to_vec()));
            assert_eq!(open_next(&mut theirs, &mut opener), (22, vec![4; 1000]));
            assert_eq!(open_next(&mut theirs, &mut opener), (21, vec![1, 0]));
            assert_eq!(theirs.read(&mut plain).unwrap(), 0);
        }
    });
}

#[test]
fn sendfile_leaves_as_full_records_in_every_mode() {
    inside("sendfile_leaves_as_full_records_in_every_mode", |net| {
        let content = pattern(3_000_000);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        for (nonblocking, from, count) in [
            (false, 0, 3_000_000),
            (false, 5, 16_384),
            (false, 17, 70_000),
            (true, 1, 16_385),
            (true, 3, 2_000_000),
        ] {
            let (ours, mut theirs) = net.pair();
            ours.set_ulp_tls().unwrap();
            ours.set_tls_tx(&keys(ProtocolVersion::Tls13, 1)).unwrap();
            ours.set_nonblocking(nonblocking).unwrap();
            let mut opener = Opener::new(&keys(ProtocolVersion::Tls13, 1)).unwrap();
            std::thread::scope(|scope| {
                let sending = scope.spawn(|| {
                    let mut offset = from;
                    let sent = ours.sendfile(&file, Some(&mut offset), count).unwrap();
                    ours.set_nonblocking(false).unwrap();
                    ours.send(b"behind", SendFlags::empty()).unwrap();
                    (sent, offset)
                });
                let range = &content[from as usize..(from + count) as usize];
                for (i, chunk) in range.chunks(16_384).enumerate() {
                    let got = open_next(&mut theirs, &mut opener);
                    assert!(
                        got == (23, chunk.to_vec()),
                        "record {i} of {count} from {from}: {} bytes",
                        got.1.len()
                    );
                }
                assert_eq!(
                    open_next(&mut theirs, &mut opener),
                    (23, b"behind".to_vec())
                );
                assert_eq!(sending.join().unwrap(), (count, from + count));
            });
        }
    });
}

#[test]
fn records_arrive_and_control_records_come_alone() {
    inside("records_arrive_and_control_records_come_alone", |net| {
        let (mut ours, mut theirs) = net.pair();
        let mut sealer = Sealer::new(&keys(ProtocolVersion::Tls13, 2)).unwrap();
        // Some of it is there before the keys are, and half a record.
        let early = pattern(50_000);
        let mut wire = Vec::new();
        for chunk in early.chunks(9_000) {
            wire.extend(seal(&mut sealer, ContentType::APPLICATION_DATA, chunk));
        }
        let (first, second) = wire.split_at(wire.len() - 100);
        theirs.write_all(first).unwrap();
        let mut one = [0; 1];
        eventually("the first bytes", || ours.peek(&mut one).unwrap() == 1);
        ours.set_ulp_tls().unwrap();
        ours.set_tls_rx(&keys(ProtocolVersion::Tls13, 2)).unwrap();
        theirs.write_all(second).unwrap();
        let mut got = vec![0; early.len()];
        ours.read_exact(&mut got).unwrap();
        assert!(got == early);

        let mut wire = seal(&mut sealer, ContentType::APPLICATION_DATA, b"data");
        wire.extend(seal(&mut sealer, ContentType::HANDSHAKE, &[4; 300]));
        wire.extend(seal(&mut sealer, ContentType::APPLICATION_DATA, b"old"));
        wire.extend(seal(&mut sealer, ContentType::HANDSHAKE, &[24, 0, 0, 1, 0]));
        let mut next = Sealer::new(&keys(ProtocolVersion::Tls13, 3)).unwrap();
        wire.extend(seal(&mut next, ContentType::APPLICATION_DATA, b"new"));
        theirs.write_all(&wire).unwrap();
        let mut buf = [0; 1000];
        assert_eq!(ours.read(&mut buf).unwrap(), 4);
        assert_eq!(errno(ours.read(&mut buf)), Errno::IO);
        let ticket = ours.recv_record(&mut buf, RecvFlags::empty()).unwrap();
        assert_eq!(
            (ticket.len, ticket.content_type),
            (300, Some(ContentType::HANDSHAKE))
        );
        assert_eq!(ours.read(&mut buf).unwrap(), 3);
        assert_eq!(
            ours.recv_record(&mut buf, RecvFlags::empty()).unwrap().len,
            5
        );
        assert_eq!(errno(ours.read(&mut buf)), Errno::KEYEXPIRED);
        ours.set_tls_rx(&keys(ProtocolVersion::Tls13, 3)).unwrap();
        assert_eq!(ours.read(&mut buf).unwrap(), 3);
        assert_eq!(ours.tls_rx().unwrap().rec_seq(), 1);

        // The end: without close_notify it can be told.
        drop(theirs);
        assert_eq!(ours.read(&mut buf).unwrap(), 0);
        assert_eq!(ours.reason().unwrap(), Reason::Truncated);
    });
}

/// The mark of an empty record may be read with the data in front of it; whoever then waits for the socket must not wait in vain.
#[test]
fn an_empty_control_record_keeps_the_socket_readable() {
    inside("an_empty_control_record_keeps_the_socket_readable", |net| {
        let (mut ours, mut theirs) = net.pair();
        ours.set_ulp_tls().unwrap();
        ours.set_tls_rx(&keys(ProtocolVersion::Tls12, 2)).unwrap();
        let mut sealer = Sealer::new(&keys(ProtocolVersion::Tls12, 2)).unwrap();
        let mut wire = seal(&mut sealer, ContentType::APPLICATION_DATA, b"data");
        wire.extend(seal(&mut sealer, ContentType::HANDSHAKE, b""));
        theirs.write_all(&wire).unwrap();
        let mut buf = [0; 100];
        assert_eq!(ours.read(&mut buf).unwrap(), 4);
        let readable = || {
            let mut fds = [PollFd::new(&ours, PollFlags::IN)];
            rustix::event::poll(&mut fds, Some(&Timespec::default())).unwrap();
            !fds[0].revents().is_empty()
        };
        eventually("the record", readable);
        let empty = ours.recv_record(&mut buf, RecvFlags::empty()).unwrap();
        assert_eq!(
            (empty.len, empty.content_type),
            (0, Some(ContentType::HANDSHAKE))
        );
        assert!(!readable());
        let more = seal(&mut sealer, ContentType::APPLICATION_DATA, b"more");
        theirs.write_all(&more).unwrap();
        assert_eq!(ours.read(&mut buf).unwrap(), 4);
        assert_eq!(&buf[..4], b"more");
    });
}

#[test]
fn a_record_that_fails_stops_the_stream_with_its_errno() {
    inside(
        "a_record_that_fails_stops_the_stream_with_its_errno",
        |net| {
            // A bit of the ciphertext, of the version, of the length's upper byte; and a record with no room for a tag.
            let too_short = [23, 3, 3, 0, 5, 1, 2, 3, 4, 5];
            for (damage, expected) in [
                (Some(8), Errno::BADMSG),
                (Some(1), Errno::INVAL),
                (Some(3), Errno::MSGSIZE),
                (None, Errno::BADMSG),
            ] {
                let (mut ours, mut theirs) = net.pair();
                ours.set_ulp_tls().unwrap();
                ours.set_tls_rx(&keys(ProtocolVersion::Tls13, 2)).unwrap();
                let mut sealer = Sealer::new(&keys(ProtocolVersion::Tls13, 2)).unwrap();
                let mut wire = seal(&mut sealer, ContentType::APPLICATION_DATA, b"good");
                let mut bad = seal(&mut sealer, ContentType::APPLICATION_DATA, b"bad");
                match damage {
                    Some(at) => bad[at] ^= 0x50,
                    None => bad = too_short.to_vec(),
                }
                wire.extend(bad);
                theirs.write_all(&wire).unwrap();
                let mut buf = [0; 100];
                assert_eq!(ours.read(&mut buf).unwrap(), 4);
                for _ in 0..3 {
                    assert_eq!(errno(ours.read(&mut buf)), expected);
                }
                assert_eq!(
                    ours.reason().unwrap(),
                    Reason::BadRecord(expected.raw_os_error())
                );
            }
            let counters = net.daemon.counters().unwrap();
            let errors = counters
                .iter()
                .find(|(name, _)| name == "TlsDecryptError")
                .expect("Linux's counter")
                .1;
            assert!(errors >= 1);
        },
    );
}

#[test]
fn a_large_file_leaves_in_quotas_while_others_are_served() {
    inside(
        "a_large_file_leaves_in_quotas_while_others_are_served",
        |net| {
            const LEN: u64 = 2 * SENDFILE_QUOTA + 1_000_000;
            let content = pattern(LEN as usize);
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&content).unwrap();
            let (ours, mut theirs) = net.pair();
            ours.set_ulp_tls().unwrap();
            ours.set_tls_tx(&keys(ProtocolVersion::Tls12, 1)).unwrap();
            ours.set_nonblocking(true).unwrap();
            let (mut other, mut their_other) = net.pair();
            std::thread::scope(|scope| {
                let receiving = scope.spawn(|| {
                    let mut opener = Opener::new(&keys(ProtocolVersion::Tls12, 1)).unwrap();
                    let mut got = Vec::new();
                    while got.len() < LEN as usize {
                        got.extend(open_next(&mut theirs, &mut opener).1);
                    }
                    got
                });
                let (mut offset, mut calls) = (0, 0);
                while offset < LEN {
                    match ours.sendfile(&file, Some(&mut offset), LEN) {
                        Ok(_) => calls += 1,
                        Err(error) => {
                            assert_eq!(Errno::from_io_error(&error), Some(Errno::AGAIN));
                            let mut poll = [rustix::event::PollFd::new(
                                &ours,
                                rustix::event::PollFlags::OUT,
                            )];
                            rustix::event::poll(&mut poll, None).unwrap();
                        }
                    }
                    other.write_all(b"ping").unwrap();
                    their_other.read_exact(&mut [0; 4]).unwrap();
                }
                assert!(calls >= 3, "more than the quota in one call");
                assert!(receiving.join().unwrap() == content);
            });
        },
    );
}

#[test]
fn a_file_that_gets_shorter_after_it_was_taken_resets_the_connection() {
    inside(
        "a_file_that_gets_shorter_after_it_was_taken_resets_the_connection",
        |net| {
            let (mut ours, mut theirs) = net.pair();
            let file = tempfile::tempfile().unwrap();
            file.set_len(4 << 20).unwrap();
            ours.set_nonblocking(true).unwrap();
            // The peer does not read: most of it cannot have left, and so was not read from the file either.
            rustix::net::sockopt::set_socket_recv_buffer_size(&theirs, 4096).unwrap();
            let (mut offset, mut taken) = (0, 0);
            eventually("a full pipe", || {
                match ours.sendfile(&file, Some(&mut offset), 4 << 20) {
                    Ok(sent) => taken += sent,
                    Err(error) => return Errno::from_io_error(&error) == Some(Errno::AGAIN),
                }
                offset = 0;
                taken >= 64 << 20
            });
            file.set_len(100).unwrap();
            let mut buf = vec![0; 1 << 20];
            let mut total = 0;
            let end = loop {
                match theirs.read(&mut buf) {
                    Ok(0) => panic!("the cut looked like the end, after {total} bytes"),
                    Ok(len) => total += len as u64,
                    Err(error) => break Errno::from_io_error(&error),
                }
            };
            assert_eq!(end, Some(Errno::CONNRESET));
            assert!(total < taken);
            assert!(matches!(ours.reason().unwrap(), Reason::FileFailed(_)));
            assert_eq!(errno(ours.read(&mut buf)), Errno::CONNABORTED);
        },
    );
}

/// The stack's socket, with the ULP; the peer has sent `stream` and its FIN, and both are here.
fn finished_early(net: &Net, stream: &[u8]) -> TcpStream {
    let (ours, mut theirs) = net.pair();
    ours.set_ulp_tls().unwrap();
    theirs.write_all(stream).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    eventually("the peer's end", || {
        ours.stat().unwrap().state.as_deref() == Some("CLOSE-WAIT")
    });
    ours
}

#[test]
fn keys_that_come_behind_the_peers_end_still_open_what_came_before() {
    inside(
        "keys_that_come_behind_the_peers_end_still_open_what_came_before",
        |net| {
            let keys = keys(ProtocolVersion::Tls13, 1);
            let mut sealer = Sealer::new(&keys).unwrap();
            let mut stream = b"plain".to_vec();
            let content = pattern(30_000);
            for piece in content.chunks(10_000) {
                stream.extend(seal(&mut sealer, ContentType::APPLICATION_DATA, piece));
            }
            stream.extend(seal(&mut sealer, ContentType::ALERT, &[1, 0]));
            let mut ours = finished_early(net, &stream);
            let mut plain = [0; 5];
            ours.read_exact(&mut plain).unwrap();
            assert_eq!(&plain, b"plain");
            ours.set_tls_rx(&keys).unwrap();
            let mut got = vec![0; content.len()];
            ours.read_exact(&mut got).unwrap();
            assert!(got == content);
            let mut alert = [0; 10];
            let received = ours.recv_record(&mut alert, RecvFlags::empty()).unwrap();
            assert_eq!(received.content_type, Some(ContentType::ALERT));
            assert_eq!(ours.read(&mut alert).unwrap(), 0);
            assert_eq!(ours.reason().unwrap(), Reason::CleanEnd);
            // Who never sets keys reads plain bytes and their end.
            let mut ours = finished_early(net, b"only plain");
            let mut all = Vec::new();
            ours.read_to_end(&mut all).unwrap();
            assert_eq!(all, b"only plain");
        },
    );
}

#[test]
fn new_keys_behind_the_peers_end_open_what_waited_for_them() {
    inside(
        "new_keys_behind_the_peers_end_open_what_waited_for_them",
        |net| {
            let (first, second) = (
                keys(ProtocolVersion::Tls13, 1),
                keys(ProtocolVersion::Tls13, 2),
            );
            let mut sealer = Sealer::new(&first).unwrap();
            // RFC 8446 §4.6.3: a KeyUpdate, update_not_requested.
            let mut stream = seal(&mut sealer, ContentType::HANDSHAKE, &[24, 0, 0, 1, 0]);
            sealer.rekey(&second).unwrap();
            stream.extend(seal(&mut sealer, ContentType::APPLICATION_DATA, b"behind"));
            let mut ours = finished_early(net, &stream);
            ours.set_tls_rx(&first).unwrap();
            let mut buf = [0; 100];
            let update = ours.recv_record(&mut buf, RecvFlags::empty()).unwrap();
            assert_eq!(update.content_type, Some(ContentType::HANDSHAKE));
            assert_eq!(errno(ours.read(&mut buf)), Errno::KEYEXPIRED);
            ours.set_tls_rx(&second).unwrap();
            assert_eq!(ours.read(&mut buf).unwrap(), 6);
            assert_eq!(&buf[..6], b"behind");
            assert_eq!(ours.read(&mut buf).unwrap(), 0);
            assert_eq!(ours.reason().unwrap(), Reason::Truncated);
        },
    );
}

#[test]
fn a_record_that_fails_keeps_the_socket_readable_behind_the_data_in_front_of_it() {
    inside(
        "a_record_that_fails_keeps_the_socket_readable_behind_the_data_in_front_of_it",
        |net| {
            let keys = keys(ProtocolVersion::Tls12, 1);
            let (mut ours, mut theirs) = net.pair();
            ours.set_ulp_tls().unwrap();
            ours.set_tls_rx(&keys).unwrap();
            let mut sealer = Sealer::new(&keys).unwrap();
            let mut stream = seal(&mut sealer, ContentType::APPLICATION_DATA, b"good");
            let mut bad = seal(&mut sealer, ContentType::APPLICATION_DATA, b"bad");
            bad[20] ^= 1;
            stream.extend(bad);
            theirs.write_all(&stream).unwrap();
            eventually("the failure", || {
                ours.reason().unwrap() == Reason::BadRecord(Errno::BADMSG.raw_os_error())
            });
            // One read takes the data and the mark of the error behind it. Whoever polls now, level-triggered, must be told
            // that there is more to be had than silence.
            let mut buf = [0; 1000];
            assert_eq!(ours.read(&mut buf).unwrap(), 4);
            for _ in 0..2 {
                let mut polled = [rustix::event::PollFd::new(
                    &ours,
                    rustix::event::PollFlags::IN,
                )];
                let limit = rustix::event::Timespec {
                    tv_sec: 10,
                    tv_nsec: 0,
                };
                assert_eq!(rustix::event::poll(&mut polled, Some(&limit)).unwrap(), 1);
                assert_eq!(errno(ours.read(&mut buf)), Errno::BADMSG);
            }
            // Sending goes on, as with Linux.
            ours.write_all(b"still here").unwrap();
            theirs.read_exact(&mut buf[..10]).unwrap();
            assert_eq!(&buf[..10], b"still here");
        },
    );
}

#[test]
fn sequence_numbers_that_end_stop_the_socket_and_none_is_used_twice() {
    inside(
        "sequence_numbers_that_end_stop_the_socket_and_none_is_used_twice",
        |net| {
            for version in [ProtocolVersion::Tls12, ProtocolVersion::Tls13] {
                let last = CryptoInfo::from_key_and_iv(
                    version,
                    CipherSuite::Aes128Gcm,
                    &[1; 16],
                    &[2; 12],
                    u64::MAX - 2,
                )
                .expect("lengths");
                let (ours, mut theirs) = net.pair();
                ours.set_ulp_tls().unwrap();
                ours.set_tls_tx(&last).unwrap();
                let mut sent = 0;
                let refused = loop {
                    match ours.send(b"x", SendFlags::empty()) {
                        Ok(_) => sent += 1,
                        Err(error) => break Errno::from_io_error(&error),
                    }
                    assert!(sent < 10_000, "sending goes on");
                };
                assert_eq!(refused, Some(Errno::BADMSG));
                assert_eq!(ours.reason().unwrap(), Reason::KeysExhausted);
                let mut wire = Vec::new();
                // A reset, behind the records that still had a number.
                assert!(theirs.read_to_end(&mut wire).is_err());
                let overhead = Sealer::new(&last).unwrap().overhead();
                assert!(wire.len() <= 3 * (1 + overhead), "{} bytes", wire.len());
            }
        },
    );
}

/// Linux lets a user have only so many descriptors on their way: `RLIMIT_NOFILE`, without privileges.
#[test]
fn too_many_marks_in_flight_are_an_error_that_passes() {
    inside("too_many_marks_in_flight_are_an_error_that_passes", |net| {
        const LEN: usize = 1000;
        let keys = keys(ProtocolVersion::Tls12, 1);
        let (ours, mut theirs) = net.pair();
        ours.set_ulp_tls().unwrap();
        ours.set_tls_tx(&keys).unwrap();
        ours.set_nonblocking(true).unwrap();
        let before = getrlimit(Resource::Nofile);
        // This thread alone; the stack's have theirs already.
        uktls::server::privileges::drop_all().unwrap();
        let few = Rlimit {
            current: Some(30),
            maximum: before.maximum,
        };
        setrlimit(Resource::Nofile, few).unwrap();
        // The peer does not read: at some point nothing is taken off the socket any more.
        let mut sent = 0;
        let refused = loop {
            match (&ours).write(&[7; LEN]) {
                Ok(len) => sent += len,
                Err(error) => break Errno::from_io_error(&error),
            }
            assert!(sent < 1 << 30, "somebody takes everything");
        };
        assert_eq!(refused, Some(Errno::TOOMANYREFS));
        // What was taken arrives; then the socket goes on.
        let mut opener = Opener::new(&keys).unwrap();
        let mut got = 0;
        while got < sent {
            let (content_type, plaintext) = open_next(&mut theirs, &mut opener);
            assert!(content_type == 23 && plaintext.iter().all(|&byte| byte == 7));
            got += plaintext.len();
        }
        assert_eq!(got, sent);
        (&ours).write_all(b"goes on").unwrap();
        assert_eq!(open_next(&mut theirs, &mut opener).1, b"goes on");
    });
}

#[test]
fn the_ends_of_data_records_are_told_to_who_asks() {
    inside("the_ends_of_data_records_are_told_to_who_asks", |net| {
        let keys = keys(ProtocolVersion::Tls13, 1);
        let (ours, mut theirs) = net.pair();
        assert_eq!(errno(ours.set_record_ends(true)), Errno::NOPROTOOPT);
        ours.set_ulp_tls().unwrap();
        ours.set_tls_rx(&keys).unwrap();
        let mut sealer = Sealer::new(&keys).unwrap();
        let mut buf = [0; 20_000];
        let mut read = |size: usize, flags| {
            let got = ours.recv_record(&mut buf[..size], flags).unwrap();
            (got.len, got.content_type.unwrap().0, got.end_of_record)
        };
        theirs
            .write_all(&seal(&mut sealer, ContentType::APPLICATION_DATA, b"before"))
            .unwrap();
        assert_eq!(read(100, RecvFlags::empty()), (6, 23, false));
        ours.set_record_ends(true).unwrap();
        let mut wire = Vec::new();
        for len in [5, 16_384, 0, 7] {
            wire.extend(seal(
                &mut sealer,
                ContentType::APPLICATION_DATA,
                &vec![9; len],
            ));
        }
        wire.extend(seal(&mut sealer, ContentType::ALERT, &[1, 0]));
        theirs.write_all(&wire).unwrap();
        assert_eq!(read(5, RecvFlags::PEEK | RecvFlags::WAITALL), (5, 23, true));
        assert_eq!(read(3, RecvFlags::WAITALL), (3, 23, false));
        assert_eq!(read(2, RecvFlags::WAITALL), (2, 23, true));
        assert_eq!(read(16_000, RecvFlags::WAITALL), (16_000, 23, false));
        assert_eq!(read(384, RecvFlags::WAITALL), (384, 23, true));
        assert_eq!(read(7, RecvFlags::WAITALL), (7, 23, true));
        assert_eq!(read(100, RecvFlags::empty()), (2, 21, true));
    });
}

#[test]
fn a_peek_that_ends_where_a_control_record_begins_sees_the_data() {
    inside(
        "a_peek_that_ends_where_a_control_record_begins_sees_the_data",
        |net| {
            let keys = keys(ProtocolVersion::Tls13, 1);
            let (ours, mut theirs) = net.pair();
            ours.set_ulp_tls().unwrap();
            ours.set_tls_rx(&keys).unwrap();
            let mut sealer = Sealer::new(&keys).unwrap();
            let mut wire = seal(&mut sealer, ContentType::APPLICATION_DATA, &[9; 5]);
            wire.extend(seal(&mut sealer, ContentType::ALERT, &[1, 0]));
            theirs.write_all(&wire).unwrap();
            // Data, a mark of 64 bytes, the alert.
            eventually("all of it", || {
                rustix::io::ioctl_fionread(&ours).unwrap() == 5 + 64 + 2
            });
            for size in [1, 4, 5, 6, 68, 69, 100] {
                let mut buf = vec![0; size];
                let got = ours.recv_record(&mut buf, RecvFlags::PEEK).unwrap();
                assert_eq!(got.len, size.min(5), "a peek of {size}");
                assert!(buf[..got.len].iter().all(|&byte| byte == 9));
            }
            let mut buf = [0; 100];
            for (len, content_type) in [(5, ContentType::APPLICATION_DATA), (2, ContentType::ALERT)]
            {
                let got = ours.recv_record(&mut buf, RecvFlags::empty()).unwrap();
                assert_eq!((got.len, got.content_type), (len, Some(content_type)));
            }
        },
    );
}
