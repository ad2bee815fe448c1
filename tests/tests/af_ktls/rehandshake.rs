//! New keys while data flows both ways: nothing is lost, nothing doubled.
//!
//! ```text
//!   left                                                        right
//!     data, data … ─────────────────────────────────────────→   ←──────────── data, data …
//!     unattach
//!     raw: handshake record under the old keys ─────────────→    EBADMSG; unattach; reads it raw
//!     bind, new keys for sending                                 ←── raw: its answer under its old keys
//!     data … ───────────────────────────────────────────────→    bind, new keys both ways
//!     EBADMSG; reads the answer directly                         ←──────────── data, data …
//!     sets the new keys for receiving
//! ```

use crate::ground::*;
use crate::table;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::time::Duration;
use uktls::client::af_ktls::*;
use uktls_record::ContentType;

table! {
    rehandshakes_while_data_flows, STREAM, "re-handshake while data flows: unattach, raw control message, bind again";
    rekeys_in_place_while_data_flows, STREAM, "new keys without KTLS_UNATTACH, between two records";
}

const ROUNDS: u8 = 5;
/// Bytes that go each way between two handshakes, at least, and altogether.
const BETWEEN: usize = 400_000;
const GOAL: usize = 4_000_000;
const FIRST: [u8; 8] = [0; 8];

/// One side of the connection, and how far it has got.
struct Side<'a> {
    socket: KtlsSocket,
    beneath: &'a Beneath,
    /// What tells this direction's bytes from the other's.
    salt: usize,
    sent: usize,
    received: usize,
}

impl Side<'_> {
    fn byte(position: usize, salt: usize) -> u8 {
        (position * 31 + position / 251 + salt) as u8
    }

    /// Sends and receives what is possible right now. Whether reading stopped at a record of another type.
    fn flow(&mut self, buffer: &mut [u8]) -> bool {
        let goal = GOAL.min(self.sent + 50_000);
        let events = if self.sent < GOAL {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        let shown = self.socket.poll(events, Some(PATIENT)).expect("poll");
        assert!(!shown.is_empty(), "nothing moves any more");
        if shown.contains(PollFlags::OUT) && self.sent < goal {
            let bytes: Vec<u8> = (self.sent..goal)
                .map(|position| Self::byte(position, self.salt))
                .collect();
            match self.socket.send(&bytes, KtlsFlags::DONTWAIT) {
                Ok(sent) => self.sent += sent,
                Err(error) => assert_eq!(errno::<()>(Err(error)), Errno::AGAIN),
            }
        }
        match self.socket.recv(buffer, KtlsFlags::DONTWAIT) {
            Ok(received) => {
                assert!(received.len > 0, "the end, too early");
                for (i, byte) in buffer[..received.len].iter().enumerate() {
                    let expected = Self::byte(self.received + i, 1 - self.salt);
                    assert_eq!(*byte, expected, "at {}", self.received + i);
                }
                self.received += received.len;
                false
            }
            Err(error) => match errno::<()>(Err(error)) {
                Errno::AGAIN => false,
                Errno::BADMSG => true,
                other => panic!("{other}"),
            },
        }
    }

    fn flow_until(&mut self, what: &str, done: impl Fn(&Self, bool) -> bool) {
        let mut buffer = vec![0; 100_000];
        // Every pass moves something or waits; the bound is far above what it takes.
        for _ in 0..1_000_000 {
            let stopped = self.flow(&mut buffer);
            if done(self, stopped) {
                return;
            }
            assert!(
                !stopped,
                "a record of another type where {what} was awaited"
            );
        }
        panic!("{what} did not come about");
    }

    /// Sends a handshake record in the raw, sealed under this side's old keys.
    fn say(&self, seed: u8, number: u64, words: &[u8]) {
        let record = seal(
            KtlsType::Stream,
            seed,
            number.to_be_bytes(),
            ContentType::HANDSHAKE,
            words,
        );
        self.beneath.send(&record);
    }

    /// Reads a handshake record in the raw, which must say this under the peer's old keys.
    fn hear(&self, seed: u8, number: u64, words: &[u8]) {
        let expected = seal(
            KtlsType::Stream,
            seed,
            number.to_be_bytes(),
            ContentType::HANDSHAKE,
            words,
        );
        assert_eq!(self.beneath.recv(expected.len()), expected);
    }

    fn finish(&mut self) {
        self.flow_until("the goal", |side, _| {
            side.sent == GOAL && side.received == GOAL
        });
    }
}

const PATIENT: Duration = Duration::from_secs(30);

/// Keys of a round: the left side's, and the right side's.
fn seeds(round: u8) -> (u8, u8) {
    (1 + 2 * round, 2 + 2 * round)
}

/// Runs both sides, each on a thread of its own, on armed sockets.
fn run_sides(
    ground: &Ground,
    left: impl FnOnce(&mut Side<'_>) + Send,
    right: impl FnOnce(&mut Side<'_>) + Send,
) {
    let mut pair = ground.bound();
    let (ours, theirs) = seeds(0);
    arm_send(&mut pair.left, ours, FIRST);
    arm_recv(&mut pair.left, theirs, FIRST);
    arm_send(&mut pair.right, theirs, FIRST);
    arm_recv(&mut pair.right, ours, FIRST);
    let side = |socket, place: usize| Side {
        socket,
        beneath: &pair.beneath[place],
        salt: place,
        sent: 0,
        received: 0,
    };
    let (mut near, mut far) = (side(pair.left, 0), side(pair.right, 1));
    std::thread::scope(|scope| {
        let far = scope.spawn(move || {
            right(&mut far);
            far.finish();
        });
        left(&mut near);
        near.finish();
        far.join().expect("the right side");
    });
}

fn rehandshakes_while_data_flows(ground: &Ground) {
    let left = |side: &mut Side<'_>| {
        for round in 0..ROUNDS {
            let ((ours, theirs), next) = (seeds(round), seeds(round + 1));
            let goal = (usize::from(round) + 1) * BETWEEN;
            side.flow_until("data", |side, _| side.sent >= goal && side.received >= goal);
            let number = next_number(&side.socket, KTLS_GET_IV_SEND);
            let heard = side.socket.unattach().expect("bound").expect("keys");
            side.say(ours, number, b"new keys?");
            bind(&mut side.socket, side.beneath);
            arm_send(&mut side.socket, next.0, FIRST);
            arm_recv(&mut side.socket, theirs, heard.to_be_bytes());
            side.flow_until("the answer", |_, stopped| stopped);
            let number = next_number(&side.socket, KTLS_GET_IV_RECV);
            side.hear(theirs, number, b"so be it");
            arm_recv(&mut side.socket, next.1, FIRST);
        }
    };
    let right = |side: &mut Side<'_>| {
        for round in 0..ROUNDS {
            let ((theirs, ours), next) = (seeds(round), seeds(round + 1));
            side.flow_until("the question", |_, stopped| stopped);
            let own = next_number(&side.socket, KTLS_GET_IV_SEND);
            let number = side.socket.unattach().expect("bound").expect("keys");
            side.hear(theirs, number, b"new keys?");
            side.say(ours, own, b"so be it");
            bind(&mut side.socket, side.beneath);
            arm_send(&mut side.socket, next.1, FIRST);
            arm_recv(&mut side.socket, next.0, FIRST);
        }
    };
    run_sides(ground, left, right);
}

fn rekeys_in_place_while_data_flows(ground: &Ground) {
    let left = |side: &mut Side<'_>| {
        for round in 0..ROUNDS {
            let goal = (usize::from(round) + 1) * BETWEEN;
            side.flow_until("data", |side, _| side.sent >= goal);
            let record = ContentType::HANDSHAKE;
            let sent = side.socket.send_control(record, b"new keys follow");
            sent.expect("sent");
            arm_send(&mut side.socket, seeds(round + 1).0, FIRST);
        }
    };
    let right = |side: &mut Side<'_>| {
        for round in 0..ROUNDS {
            side.flow_until("new keys", |_, stopped| stopped);
            let number = next_number(&side.socket, KTLS_GET_IV_RECV);
            side.hear(seeds(round).0, number, b"new keys follow");
            arm_recv(&mut side.socket, seeds(round + 1).0, FIRST);
        }
    };
    run_sides(ground, left, right);
}
