//! Two whole stacks on a link within the process, driven as the socket server drives them: descriptors, marks, requests.

#![expect(
    clippy::disallowed_methods,
    reason = "whole stacks on threads of their own, in real time"
)]

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::time::Duration;
use uktls_record::crypto_info::CryptoInfo;
use uktls_record::suite::{CipherSuite, ProtocolVersion};
use uktls_stack::address::ACCEPTED_LEN;
use uktls_stack::device::memory;
use uktls_stack::handle::{
    ClientEnd, ConnectRequest, ListenRequest, Named, Reply, SocketId, SocketOp, SocketOptions,
    SocketReply, UdpRequest,
};
use uktls_stack::mark::{MARK_LEN, Mark, SendfileResult, bytes_in_hand};
use uktls_stack::socket_info::{Reason, SocketInfo};
use uktls_stack::stack::{Handle, Limits, Stack, StackConfig};

const LIMIT: Duration = Duration::from_secs(20);

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

/// Both ends of a connection, as a client holds them.
struct Pair {
    client: Stack,
    server: Stack,
    listener: ClientEnd,
    near: OwnedFd,
    near_cookie: u64,
    near_id: SocketId,
    far: OwnedFd,
    far_id: SocketId,
}

fn ask<T: Send + 'static>(request: impl FnOnce(Reply<T>)) -> Result<T, Errno> {
    let (sender, answer) = mpsc::channel();
    request(Box::new(move |result| {
        let _ = sender.send(result);
    }));
    answer.recv_timeout(LIMIT).expect("an answer in time")
}

fn act(handle: &Handle, id: SocketId, op: SocketOp) -> Result<SocketReply, Errno> {
    ask(|reply| handle.socket(id, op, reply))
}

fn info(handle: &Handle, id: SocketId) -> SocketInfo {
    match act(handle, id, SocketOp::Info) {
        Ok(SocketReply::Info(info)) => *info,
        other => panic!("no information but {other:?}"),
    }
}

fn wait_for(fd: &OwnedFd, flags: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(fd, flags)];
    let limit = Timespec {
        tv_sec: LIMIT.as_secs() as i64,
        tv_nsec: 0,
    };
    assert_eq!(
        poll(&mut fds, Some(&limit)),
        Ok(1),
        "nothing happened in time"
    );
    fds[0].revents()
}

fn connect(handle: &Handle, remote: SocketAddr) -> ClientEnd {
    let request = ConnectRequest {
        remote,
        local: None,
        options: SocketOptions::default(),
        uid: 0,
    };
    ask(|reply| handle.connect(request, reply)).expect("a connecting socket")
}

fn cookie(fd: &OwnedFd) -> u64 {
    rustix::net::sockopt::socket_cookie(fd).expect("a cookie")
}

fn accept(listener: &ClientEnd) -> OwnedFd {
    let mut header = [0; ACCEPTED_LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    wait_for(&listener.fd, PollFlags::IN);
    let message = recvmsg(
        &listener.fd,
        &mut [IoSliceMut::new(&mut header)],
        &mut ancillary,
        RecvFlags::empty(),
    );
    assert_eq!(message.expect("an accepted socket").bytes, ACCEPTED_LEN);
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            return fds.next().expect("a descriptor");
        }
    }
    panic!("no descriptor came")
}

fn pair(offload: bool) -> Pair {
    let (a, b) = memory::pair(1500, offload);
    let (client, server) = (start("10.0.0.1", a), start("10.0.0.2", b));
    let local: SocketAddr = "10.0.0.2:443".parse().expect("literal");
    let request = ListenRequest {
        local,
        backlog: 8,
        options: SocketOptions::default(),
        uid: 0,
    };
    let listener = ask(|reply| server.handle().listen(request, reply)).expect("a listener");
    let near = connect(&client.handle(), local);
    let far = accept(&listener);
    wait_for(&near.fd, PollFlags::OUT);
    let Some(Named::Live { id: far_id, .. }) = server.handle().named(cookie(&far)) else {
        panic!("the accepted socket has no name")
    };
    Pair {
        client,
        server,
        listener,
        near_cookie: near.cookie,
        near_id: near.id,
        near: near.fd,
        far,
        far_id,
    }
}

impl Pair {
    fn stop(self) {
        drop((self.near, self.far, self.listener));
        self.client.stop();
        self.server.stop();
    }

    /// Keys from the client to the server, in force from here.
    fn arm(&self, version: ProtocolVersion, cipher: CipherSuite) {
        let keys = CryptoInfo::new(
            version,
            cipher,
            &vec![7; cipher.key_len()],
            &vec![8; cipher.salt_len()],
            &vec![9; cipher.iv_len()],
            0,
        )
        .expect("keys of the right lengths");
        let (client, server) = (self.client.handle(), self.server.handle());
        act(&client, self.near_id, SocketOp::SetUlp).expect("the ULP");
        act(&server, self.far_id, SocketOp::SetUlp).expect("the ULP");
        act(&server, self.far_id, SocketOp::RxFreeze).expect("frozen");
        act(&server, self.far_id, SocketOp::RxKeys(Some(keys.clone()))).expect("keys");
        match act(&client, self.near_id, SocketOp::StageTx(keys)) {
            Ok(SocketReply::KeyId(key_id)) => send_mark(&self.near, Mark::TxKeys { key_id }, &[]),
            other => panic!("no key number but {other:?}"),
        }
    }
}

fn send_mark(fd: &OwnedFd, mark: Mark, descriptors: &[&OwnedFd]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let own = [fd];
    let descriptors = if descriptors.is_empty() {
        &own
    } else {
        descriptors
    };
    let descriptors: Vec<_> = descriptors.iter().map(|fd| fd.as_fd()).collect();
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = sendmsg(
        fd,
        &[IoSlice::new(&mark.encode())],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    );
    assert_eq!(sent, Ok(MARK_LEN));
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect()
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let n = rustix::net::send(fd, bytes, SendFlags::NOSIGNAL).expect("room in time");
        bytes = &bytes[n..];
    }
}

/// Everything up to the end, or to `limit` bytes; marks are listed with the place where they stood.
fn read_all(fd: &OwnedFd, limit: usize) -> (Vec<u8>, Vec<(usize, Mark)>) {
    let (mut bytes, mut marks) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 1 << 16];
    while bytes.len() < limit {
        wait_for(fd, PollFlags::IN);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let n = recvmsg(
            fd,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut ancillary,
            RecvFlags::empty(),
        )
        .expect("readable")
        .bytes;
        if n == 0 {
            break;
        }
        if ancillary.drain().count() > 0 {
            assert_eq!(
                bytes_in_hand(buffer[n - 1]),
                MARK_LEN,
                "the buffer is larger than what waits"
            );
            let mark = buffer[n - MARK_LEN..n].try_into().expect("64 bytes");
            bytes.extend_from_slice(&buffer[..n - MARK_LEN]);
            marks.push((bytes.len(), Mark::decode(mark).expect("a mark")));
        } else {
            bytes.extend_from_slice(&buffer[..n]);
        }
    }
    (bytes, marks)
}

#[test]
fn plain_bytes_go_both_ways_and_end_in_order() {
    for offload in [true, false] {
        let pair = pair(offload);
        let bytes = pattern(3_000_000);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                write_all(&pair.near, &bytes);
                rustix::net::shutdown(&pair.near, Shutdown::Write).expect("shut");
            });
            let (received, marks) = read_all(&pair.far, usize::MAX);
            assert!(
                received == bytes && marks.is_empty(),
                "{} bytes arrived",
                received.len()
            );
            writer.join().expect("written");
        });
        write_all(&pair.far, b"and back");
        assert_eq!(read_all(&pair.near, 8).0, b"and back");
        let Pair {
            client,
            server,
            listener,
            near,
            far,
            near_cookie,
            ..
        } = pair;
        drop(far);
        assert_eq!(read_all(&near, usize::MAX).0, b"");
        let reason = loop {
            match client.handle().named(near_cookie) {
                Some(Named::Gone(epitaph)) => break epitaph.reason,
                // It may go between the two questions.
                Some(Named::Live { id, .. }) => match act(&client.handle(), id, SocketOp::Info) {
                    Ok(SocketReply::Info(info)) => break info.reason,
                    other => assert_eq!(other.err(), Some(Errno::BADF)),
                },
                None => panic!("the socket is forgotten"),
            }
        };
        assert_eq!(reason, Reason::CleanEnd);
        drop((near, listener));
        client.stop();
        server.stop();
    }
}

#[test]
fn records_of_every_suite_keep_their_boundaries_and_types() {
    for version in [ProtocolVersion::Tls12, ProtocolVersion::Tls13] {
        for cipher in CipherSuite::ALL {
            let pair = pair(true);
            pair.arm(version, cipher);
            let bytes = pattern(100_000);
            write_all(&pair.near, &bytes);
            send_mark(&pair.near, Mark::RecordEnd, &[]);
            send_mark(
                &pair.near,
                Mark::Record {
                    content_type: 21,
                    len: 2,
                },
                &[],
            );
            write_all(&pair.near, &[1, 0]);
            rustix::net::shutdown(&pair.near, Shutdown::Write).expect("shut");
            let (received, marks) = read_all(&pair.far, usize::MAX);
            assert!(received[..100_000] == bytes[..], "{version:?} {cipher:?}");
            assert_eq!(&received[100_000..], &[1, 0]);
            assert_eq!(
                marks,
                [(
                    100_000,
                    Mark::Control {
                        content_type: 21,
                        len: 2
                    }
                )]
            );
            let far = info(&pair.server.handle(), pair.far_id);
            assert_eq!(far.reason, Reason::CleanEnd);
            assert_eq!(far.rx.expect("keys").cipher, cipher);
            pair.stop();
        }
    }
}

#[test]
fn an_end_without_close_notify_is_told_from_an_orderly_one() {
    let pair = pair(true);
    pair.arm(ProtocolVersion::Tls13, CipherSuite::Aes128Gcm);
    write_all(&pair.near, b"cut off");
    rustix::net::shutdown(&pair.near, Shutdown::Write).expect("shut");
    assert_eq!(read_all(&pair.far, usize::MAX).0, b"cut off");
    assert_eq!(
        info(&pair.server.handle(), pair.far_id).reason,
        Reason::Truncated
    );
    pair.stop();
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file
}

fn sendfile(pair: &Pair, file: &File, offset: u64, len: u64) -> mpsc::Receiver<SendfileResult> {
    let (result, reply) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .expect("a pair");
    let file = OwnedFd::from(file.try_clone().expect("a copy"));
    send_mark(
        &pair.near,
        Mark::File {
            offset,
            len,
            reply: true,
            hold: false,
        },
        &[&file, &reply],
    );
    drop(reply);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; SendfileResult::LEN];
        wait_for(&result, PollFlags::IN);
        if let Ok((_, SendfileResult::LEN)) =
            rustix::net::recv(&result, &mut bytes[..], RecvFlags::empty())
        {
            let _ = sender.send(SendfileResult::decode(&bytes));
        }
    });
    receiver
}

#[test]
fn a_file_leaves_as_full_records_between_other_bytes() {
    for size in [1, 16_383, 16_384, 16_385, 65_536, 5_000_001] {
        let pair = pair(true);
        pair.arm(ProtocolVersion::Tls12, CipherSuite::Aes128Gcm);
        let bytes = pattern(size);
        let file = file(&bytes);
        write_all(&pair.near, b"before");
        let result = sendfile(&pair, &file, 0, size as u64);
        write_all(&pair.near, b"after");
        let (received, _) = read_all(&pair.far, size + 11);
        assert_eq!(&received[..6], b"before");
        assert!(received[6..size + 6] == bytes[..], "size {size}");
        assert_eq!(&received[size + 6..], b"after");
        assert_eq!(
            result.recv_timeout(LIMIT),
            Ok(SendfileResult {
                sent: size as u64,
                errno: 0
            })
        );
        let (sealed, _) = info(&pair.client.handle(), pair.near_id).records;
        assert_eq!(sealed, 2 + (size as u64).div_ceil(16_384), "size {size}");
        pair.stop();
    }
}

#[test]
fn a_file_that_is_shorter_than_asked_for_gives_the_count_so_far() {
    let pair = pair(true);
    pair.arm(ProtocolVersion::Tls13, CipherSuite::ChaCha20Poly1305);
    let file = file(&pattern(20_000));
    let result = sendfile(&pair, &file, 100, 1 << 20);
    assert_eq!(read_all(&pair.far, 19_900).0, &pattern(20_000)[100..]);
    assert_eq!(
        result.recv_timeout(LIMIT),
        Ok(SendfileResult {
            sent: 19_900,
            errno: 0
        })
    );
    pair.stop();
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let pair = pair(true);
    let directory = File::open("/").expect("a directory");
    let result = sendfile(&pair, &directory, 0, 10);
    let einval = Errno::INVAL.raw_os_error();
    assert_eq!(
        result.recv_timeout(LIMIT),
        Ok(SendfileResult {
            sent: 0,
            errno: einval
        })
    );
    write_all(&pair.near, b"still there");
    assert_eq!(read_all(&pair.far, 11).0, b"still there");
    pair.stop();
}

#[test]
fn a_port_where_nobody_listens_refuses() {
    let pair = pair(true);
    let refused = connect(
        &pair.client.handle(),
        "10.0.0.2:444".parse().expect("literal"),
    );
    wait_for(&refused.fd, PollFlags::IN);
    let Some(Named::Gone(epitaph)) = pair.client.handle().named(refused.cookie) else {
        panic!("not gone")
    };
    assert_eq!(epitaph.reason, Reason::Refused);
    pair.stop();
}

#[test]
fn a_client_that_sends_nonsense_with_a_descriptor_loses_its_socket_only() {
    let pair = pair(true);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [pair.far.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(
        &pair.near,
        &[IoSlice::new(&[0x55; 64])],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .expect("sent");
    wait_for(&pair.near, PollFlags::IN);
    let Some(Named::Gone(epitaph)) = pair.client.handle().named(pair.near_cookie) else {
        panic!("not gone")
    };
    assert_eq!(epitaph.reason, Reason::Aborted);
    wait_for(&pair.far, PollFlags::HUP);
    let again = connect(
        &pair.client.handle(),
        "10.0.0.2:443".parse().expect("literal"),
    );
    wait_for(&again.fd, PollFlags::OUT);
    assert!(rustix::net::send(&again.fd, b"x", SendFlags::NOSIGNAL).is_ok());
    pair.stop();
}

#[test]
fn datagrams_keep_their_bounds_up_to_the_largest() {
    let (a, b) = memory::pair(1500, true);
    let (client, server) = (start("10.0.0.1", a), start("10.0.0.2", b));
    let bind = |stack: &Stack, local: &str| {
        let request = UdpRequest {
            local: local.parse().expect("literal"),
            remote: None,
            uid: 0,
        };
        ask(|reply| stack.handle().bind_udp(request, reply)).expect("a UDP socket")
    };
    let (near, far) = (bind(&client, "10.0.0.1:0"), bind(&server, "0.0.0.0:53"));
    for len in [0, 1, 1472, 1473, 8_000, 65_507] {
        let payload = pattern(len);
        let header = uktls_stack::address::encode("10.0.0.2:53".parse().expect("literal"));
        let message = [IoSlice::new(&header), IoSlice::new(&payload)];
        sendmsg(
            &near.fd,
            &message,
            &mut SendAncillaryBuffer::default(),
            SendFlags::NOSIGNAL,
        )
        .expect("sent");
        wait_for(&far.fd, PollFlags::IN);
        let mut buffer = vec![0; 70_000];
        let (_, n) =
            rustix::net::recv(&far.fd, &mut buffer[..], RecvFlags::empty()).expect("received");
        assert_eq!(uktls_stack::address::decode(&buffer), Some(near.local));
        assert!(buffer[20..n] == payload[..], "length {len}");
    }
    drop((near, far));
    client.stop();
    server.stop();
}

#[test]
fn a_file_beyond_the_send_memory_goes_on_when_the_reader_does() {
    let pair = pair(true);
    pair.arm(ProtocolVersion::Tls12, CipherSuite::Aes128Gcm);
    let size = 4 * Limits::default().memory_per_socket;
    let file = file(&pattern(size));
    let result = sendfile(&pair, &file, 0, size as u64);
    // The reader stalls until the sender can do nothing more, then takes everything.
    let handle = pair.client.handle();
    let mut before = 0;
    loop {
        let sealed = info(&handle, pair.near_id).records.0;
        if sealed == before && sealed > 0 {
            break;
        }
        before = sealed;
        assert_eq!(
            result.recv_timeout(Duration::from_millis(50)),
            Err(mpsc::RecvTimeoutError::Timeout)
        );
    }
    assert!(read_all(&pair.far, size).0 == pattern(size));
    assert_eq!(
        result.recv_timeout(LIMIT),
        Ok(SendfileResult {
            sent: size as u64,
            errno: 0
        })
    );
    pair.stop();
}
