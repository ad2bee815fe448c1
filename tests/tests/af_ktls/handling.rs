//! The tool's `--verify-handling`: every option before it may be used, too short and too long, and back; every call unbound.

use crate::ground::*;
use crate::table;
use rustix::event::PollFlags;
use rustix::io::Errno;
use uktls::client::af_ktls::*;

table! {
    set_unbound, BOTH, "every set before bind: EBADMSG";
    get_unbound, BOTH, "every get before bind: EBADMSG";
    unattach_unbound, BOTH, "KTLS_UNATTACH before bind: EBADMSG";
    set_too_short, BOTH, "every set of too few bytes: EBADMSG";
    set_too_long, BOTH, "every set of too many bytes: EBADMSG";
    get_not_set, BOTH, "every get before its set: EBADMSG";
    get_too_short, BOTH, "every get with too small a buffer: ENOMEM, set or not";
    get_with_room_to_spare, BOTH, "every get with too large a buffer: the value and its length";
    set_then_get, BOTH, "set-then-get equality, one by one";
    set_then_get_armed, BOTH, "set-then-get equality, with both directions armed";
    set_again_then_get, BOTH, "set-then-get equality, set a second time";
    mtu_set_then_get, BOTH, "set-then-get equality of KTLS_SET_MTU";
    set_unknown, BOTH, "unknown option, set: EBADMSG";
    get_unknown, BOTH, "unknown option, get: EBADMSG";
    other_level, BOTH, "other level: ENOPROTOOPT, bound or not";
    send_unbound, BOTH, "send on an unbound socket: EBADMSG";
    recv_unbound, BOTH, "recv on an unbound socket: EBADMSG";
    splice_unbound, BOTH, "splice from and to an unbound socket: EBADMSG";
    sendfile_unbound, BOTH, "sendfile on an unbound socket: EBADMSG";
    poll_unbound, BOTH, "an unbound socket polls as nothing";
    calls_without_keys, BOTH, "send, recv, splice, sendfile on a bound socket without keys: EBADMSG";
    calls_with_half_keys, BOTH, "key without salt, salt without key: EBADMSG";
}

/// What sets, and the length that it takes. What gets has a number that is 10 higher.
const OPTIONS: [(i32, usize); 7] = [
    (KTLS_SET_IV_RECV, 8),
    (KTLS_SET_KEY_RECV, 16),
    (KTLS_SET_SALT_RECV, 4),
    (KTLS_SET_IV_SEND, 8),
    (KTLS_SET_KEY_SEND, 16),
    (KTLS_SET_SALT_SEND, 4),
    (KTLS_SET_MTU, size_of::<usize>()),
];

const UNKNOWN: [i32; 6] = [-1, 0, 9, 10, 18, 100];

fn value(option: i32, len: usize) -> Vec<u8> {
    (1..=len as u8)
        .map(|byte| byte.wrapping_mul(option as u8 + 1))
        .collect()
}

/// All but the MTU, which always has a value.
fn keys() -> impl Iterator<Item = (i32, usize)> {
    OPTIONS
        .into_iter()
        .filter(|(option, _)| *option != KTLS_SET_MTU)
}

fn set_unbound(ground: &Ground) {
    let mut socket = ground.socket();
    for (option, len) in OPTIONS {
        let error = socket.setsockopt(AF_KTLS, option, &vec![0; len]);
        assert_eq!(errno(error), Errno::BADMSG, "option {option}");
    }
}

fn get_unbound(ground: &Ground) {
    let socket = ground.socket();
    for (option, _) in OPTIONS {
        let error = socket.getsockopt(AF_KTLS, option + 10, &mut [0; 64]);
        assert_eq!(errno(error), Errno::BADMSG, "option {}", option + 10);
    }
}

fn unattach_unbound(ground: &Ground) {
    let mut socket = ground.socket();
    let error = socket.setsockopt(AF_KTLS, KTLS_UNATTACH, &[]);
    assert_eq!(errno(error), Errno::BADMSG);
}

fn set_too_short(ground: &Ground) {
    let mut pair = ground.bound();
    for (option, len) in OPTIONS {
        for short in [0, 1, len - 1] {
            let error = pair
                .left
                .setsockopt(AF_KTLS, option, &value(option, len)[..short]);
            assert_eq!(errno(error), Errno::BADMSG, "option {option}: {short}");
        }
    }
}

fn set_too_long(ground: &Ground) {
    let mut pair = ground.bound();
    for (option, len) in OPTIONS {
        for long in [len + 1, 64] {
            let error = pair.left.setsockopt(AF_KTLS, option, &value(option, long));
            assert_eq!(errno(error), Errno::BADMSG, "option {option}: {long}");
        }
    }
}

fn get_not_set(ground: &Ground) {
    let pair = ground.bound();
    for (option, _) in keys() {
        let error = pair.left.getsockopt(AF_KTLS, option + 10, &mut [0; 64]);
        assert_eq!(errno(error), Errno::BADMSG, "option {}", option + 10);
    }
}

fn get_too_short(ground: &Ground) {
    let mut pair = ground.bound();
    for is_set in [false, true] {
        for (option, len) in OPTIONS {
            if is_set {
                set(&mut pair.left, option, &value(option, len));
            }
            for short in [0, len - 1] {
                let mut room = vec![0xEE; short];
                let error = pair.left.getsockopt(AF_KTLS, option + 10, &mut room);
                assert_eq!(errno(error), Errno::NOMEM, "option {}", option + 10);
                assert_eq!(room, vec![0xEE; short], "untouched");
            }
        }
    }
}

fn get_with_room_to_spare(ground: &Ground) {
    let mut pair = ground.bound();
    for (option, len) in OPTIONS {
        set(&mut pair.left, option, &value(option, len));
        for room in [len, len + 1, 1000] {
            let mut place = vec![0xEE; room];
            let got = pair.left.getsockopt(AF_KTLS, option + 10, &mut place);
            assert_eq!(got.expect("set"), len, "option {}", option + 10);
            assert_eq!(place[..len], value(option, len));
            assert!(place[len..].iter().all(|byte| *byte == 0xEE), "untouched");
        }
    }
}

fn set_then_get(ground: &Ground) {
    for (option, len) in OPTIONS {
        let mut pair = ground.bound();
        set(&mut pair.left, option, &value(option, len));
        assert_eq!(get(&pair.left, option + 10), value(option, len));
    }
}

fn set_then_get_armed(ground: &Ground) {
    let mut pair = ground.bound();
    for (option, len) in OPTIONS {
        set(&mut pair.left, option, &value(option, len));
    }
    for (option, len) in OPTIONS {
        assert_eq!(get(&pair.left, option + 10), value(option, len));
    }
}

fn set_again_then_get(ground: &Ground) {
    let mut pair = ground.armed();
    for (option, len) in OPTIONS {
        set(&mut pair.left, option, &value(option, len));
        assert_eq!(get(&pair.left, option + 10), value(option, len));
    }
    // And what was set first has not suffered from what was set behind it.
    for (option, len) in OPTIONS {
        assert_eq!(get(&pair.left, option + 10), value(option, len));
    }
}

fn mtu_set_then_get(ground: &Ground) {
    let mut pair = ground.bound();
    for mtu in [1280_usize, 1500, 16_384, 65_535] {
        set(&mut pair.left, KTLS_SET_MTU, &mtu.to_ne_bytes());
        assert_eq!(get(&pair.left, KTLS_GET_MTU), mtu.to_ne_bytes());
    }
}

fn set_unknown(ground: &Ground) {
    let mut pair = ground.bound();
    // Numbers that get do not set.
    for option in UNKNOWN.into_iter().chain(11..=17) {
        for len in [0, 4, 8, 16] {
            let error = pair.left.setsockopt(AF_KTLS, option, &vec![0; len]);
            assert_eq!(errno(error), Errno::BADMSG, "option {option}");
        }
    }
}

fn get_unknown(ground: &Ground) {
    let pair = ground.armed();
    for option in UNKNOWN.into_iter().chain(1..=8) {
        let error = pair.left.getsockopt(AF_KTLS, option, &mut [0; 64]);
        assert_eq!(errno(error), Errno::BADMSG, "option {option}");
    }
}

fn other_level(ground: &Ground) {
    let (mut unbound, mut pair) = (ground.socket(), ground.bound());
    for socket in [&mut unbound, &mut pair.left] {
        for level in [0, 1, 6, 11, 282] {
            let set = socket.setsockopt(level, KTLS_SET_KEY_SEND, &[0; 16]);
            assert_eq!(errno(set), Errno::NOPROTOOPT);
            let get = socket.getsockopt(level, KTLS_GET_MTU, &mut [0; 8]);
            assert_eq!(errno(get), Errno::NOPROTOOPT);
            let unattach = socket.setsockopt(level, KTLS_UNATTACH, &[]);
            assert_eq!(errno(unattach), Errno::NOPROTOOPT);
        }
    }
}

fn send_unbound(ground: &Ground) {
    let socket = ground.socket();
    for len in [0, 1, 16_384, 16_385] {
        assert_eq!(errno(socket.send(&text(len), NONE)), Errno::BADMSG);
    }
    let one = [std::io::IoSlice::new(b"x")];
    assert_eq!(errno(socket.sendmsg(&one, NONE)), Errno::BADMSG);
    assert_eq!(errno(socket.send(b"x", KtlsFlags::OOB)), Errno::BADMSG);
}

fn recv_unbound(ground: &Ground) {
    let socket = ground.socket();
    for flags in [NONE, KtlsFlags::PEEK, KtlsFlags::DONTWAIT] {
        assert_eq!(errno(socket.recv(&mut [0; 9], flags)), Errno::BADMSG);
    }
    let mut buf = [0; 9];
    let mut one = [std::io::IoSliceMut::new(&mut buf)];
    assert_eq!(errno(socket.recvmsg(&mut one, NONE)), Errno::BADMSG);
}

fn splices_fail(socket: &KtlsSocket) {
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    rustix::io::write(&writer, b"waits").expect("room");
    assert_eq!(errno(socket.splice_from(&reader, 5)), Errno::BADMSG);
    assert_eq!(errno(socket.splice_to(&writer, 5)), Errno::BADMSG);
    let left = rustix::io::ioctl_fionread(&reader).expect("a pipe");
    assert_eq!(left, 5, "neither took nor gave");
}

fn splice_unbound(ground: &Ground) {
    splices_fail(&ground.socket());
}

fn sendfile_unbound(ground: &Ground) {
    let file = tempfile::tempfile().expect("a file");
    let socket = ground.socket();
    assert_eq!(errno(socket.sendfile(&file, 0, 1)), Errno::BADMSG);
    assert_eq!(errno(socket.recvfile(&file, 0, 1)), Errno::BADMSG);
}

fn poll_unbound(ground: &Ground) {
    assert_eq!(now(&ground.socket(), PollFlags::IN), PollFlags::empty());
}

fn calls_fail(socket: &KtlsSocket) {
    assert_eq!(errno(socket.send(b"x", NONE)), Errno::BADMSG);
    assert_eq!(errno(socket.recv(&mut [0; 9], NONE)), Errno::BADMSG);
    splices_fail(socket);
    let file = tempfile::tempfile().expect("a file");
    assert_eq!(errno(socket.sendfile(&file, 0, 1)), Errno::BADMSG);
    assert_eq!(errno(socket.recvfile(&file, 0, 1)), Errno::BADMSG);
}

fn calls_without_keys(ground: &Ground) {
    calls_fail(&ground.bound().left);
}

fn calls_with_half_keys(ground: &Ground) {
    for halves in [
        [KTLS_SET_KEY_SEND, KTLS_SET_KEY_RECV],
        [KTLS_SET_SALT_SEND, KTLS_SET_SALT_RECV],
        [KTLS_SET_IV_SEND, KTLS_SET_IV_RECV],
    ] {
        let mut pair = ground.bound();
        for (option, len) in OPTIONS {
            if halves.contains(&option) {
                set(&mut pair.left, option, &value(option, len));
            }
        }
        calls_fail(&pair.left);
    }
}
