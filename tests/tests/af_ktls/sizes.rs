//! The tool's `--verify-transmission`, `--verify-sendpage` and `--verify-splice-read`: sizes around page and record boundaries.

use crate::ground::*;
use crate::table;
use rustix::io::Errno;
use std::io::{Read, Write};
use uktls::client::af_ktls::*;

table! {
    verify_transmission, BOTH, "every size around page and record boundaries goes out by send and comes back equal";
    verify_transmission_too_long, DATAGRAM, "more than a record's maximum is refused where the socket is a datagram one";
    verify_sendpage, BOTH, "every size goes out by sendfile and comes equal";
    verify_sendpage_offsets, BOTH, "and from every place around a page's boundary";
    verify_sendpage_pipe, BOTH, "every size goes out by splice from a pipe and comes equal";
    verify_splice_read, BOTH, "every size comes equal by splice to a pipe";
    verify_splice_echo, BOTH, "splice echo: socket, pipe, socket";
    verify_mtu_boundaries, BOTH, "sizes around KTLS_SET_MTU's payload";
}

const PAGE: usize = 4096;
const RECORD: usize = 16_384;

/// One less, the same and one more than so many pages and records; none of more than `most`.
fn boundaries(most: usize) -> Vec<usize> {
    let pages = (1..=5).map(|n| n * PAGE);
    let records = (1..=4).map(|n| n * RECORD);
    let mut sizes: Vec<usize> = pages
        .chain(records)
        .flat_map(|size| [size - 1, size, size + 1])
        .chain([1, 2, 15, 16, 17, 1000, 16_000])
        .filter(|size| *size <= most)
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// What one send may be.
fn most(kind: KtlsType) -> usize {
    match kind {
        KtlsType::Stream => usize::MAX,
        KtlsType::Datagram => RECORD,
    }
}

/// Reads so many bytes of records of at most `record` each.
fn read_all(ground: &Ground, socket: &KtlsSocket, len: usize, record: usize) -> Vec<u8> {
    if ground.kind == KtlsType::Stream {
        return read(socket, len);
    }
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let expected = record.min(len - bytes.len());
        let one = read(socket, expected);
        assert_eq!(one.len(), expected, "{len} bytes");
        bytes.extend(one);
    }
    bytes
}

fn file_of(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file
}

fn verify_transmission(ground: &Ground) {
    let pair = ground.armed();
    for len in boundaries(most(ground.kind)) {
        send(&pair.left, &text(len));
        let there = read(&pair.right, len);
        assert!(there == text(len), "{len} bytes");
        send(&pair.right, &there);
        assert!(read(&pair.left, len) == text(len), "{len} bytes back");
    }
}

fn verify_transmission_too_long(ground: &Ground) {
    let pair = ground.armed();
    for len in [RECORD + 1, 2 * RECORD, 100_000] {
        let error = pair.left.send(&text(len), NONE);
        assert_eq!(errno(error), Errno::TOOBIG, "{len} bytes");
    }
    send(&pair.left, &text(RECORD));
    assert!(
        read(&pair.right, RECORD) == text(RECORD),
        "nothing of them left"
    );
}

fn verify_sendpage(ground: &Ground) {
    let pair = ground.armed();
    for len in boundaries(usize::MAX) {
        let sent = pair.left.sendfile(&file_of(&text(len)), 0, u64::MAX);
        assert_eq!(sent.expect("sent"), len as u64);
        let there = read_all(ground, &pair.right, len, RECORD);
        assert!(there == text(len), "{len} bytes");
    }
}

fn verify_sendpage_offsets(ground: &Ground) {
    let pair = ground.armed();
    let whole = text(3 * RECORD);
    let file = file_of(&whole);
    for offset in [1, PAGE - 1, PAGE, PAGE + 1, RECORD - 1, RECORD, RECORD + 1] {
        for len in [1, PAGE, RECORD - 1, RECORD, RECORD + 1] {
            let sent = pair.left.sendfile(&file, offset as u64, len as u64);
            assert_eq!(sent.expect("sent"), len as u64);
            let there = read_all(ground, &pair.right, len, RECORD);
            assert!(there == whole[offset..offset + len], "{len} from {offset}");
        }
    }
}

fn verify_sendpage_pipe(ground: &Ground) {
    let pair = ground.armed();
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    // What a pipe holds.
    for len in boundaries(65_536) {
        writer.write_all(&text(len)).expect("room");
        let mut moved = 0;
        while moved < len {
            moved += pair.left.splice_from(&reader, len - moved).expect("moved");
        }
        assert_eq!(moved, len);
        let there = read_all(ground, &pair.right, len, RECORD);
        assert!(there == text(len), "{len} bytes");
    }
    drop(writer);
    assert_eq!(pair.left.splice_from(&reader, 1).expect("its end"), 0);
}

fn verify_splice_read(ground: &Ground) {
    let pair = ground.armed();
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    for len in boundaries(most(ground.kind).min(65_536)) {
        send(&pair.left, &text(len));
        let mut there = vec![0; len];
        let mut at = 0;
        while at < len {
            let moved = pair.right.splice_to(&writer, 1 << 20).expect("a record");
            assert!((1..=RECORD).contains(&moved), "{moved}");
            reader
                .read_exact(&mut there[at..at + moved])
                .expect("there");
            at += moved;
        }
        assert!(there == text(len), "{len} bytes");
    }
}

fn verify_splice_echo(ground: &Ground) {
    let pair = ground.armed();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    for len in boundaries(RECORD) {
        send(&pair.left, &text(len));
        let mut at = 0;
        while at < len {
            let moved = pair.right.splice_to(&writer, len - at).expect("a record");
            let back = pair.right.splice_from(&reader, moved).expect("waits");
            assert_eq!(back, moved);
            at += moved;
        }
        let there = read_all(ground, &pair.left, len, RECORD);
        assert!(there == text(len), "{len} bytes");
    }
}

fn verify_mtu_boundaries(ground: &Ground) {
    let mut pair = ground.armed();
    for mtu in [576_usize, 1400, 9000] {
        let payload = mtu - overhead(ground.kind);
        set(&mut pair.left, KTLS_SET_MTU, &mtu.to_ne_bytes());
        for len in [
            payload - 1,
            payload,
            payload + 1,
            5 * payload - 1,
            5 * payload,
        ] {
            let sent = pair.left.sendfile(&file_of(&text(len)), 0, u64::MAX);
            assert_eq!(sent.expect("sent"), len as u64);
            let there = read_all(ground, &pair.right, len, payload);
            assert!(there == text(len), "MTU {mtu}, {len} bytes");
        }
    }
}
