//! DTLS 1.2 where the path loses, doubles and reorders: handshakes come through by sending again, and what arrives is what
//! was sent, each record at most once, both ways, with OpenSSL and GnuTLS as server and as client.
//!
//! Records on the way to the peer are up to a thousand bytes longer than the MTU, so that some go in fragments.

use super::{CIPHERS, PRIORITIES, client, priority, s_server, server, udp};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use uktls::client::af_ktls::{DatagramFlags, KtlsSocket};
use uktls::handshake::openssl::{Session, close};
use uktls_stack::sim::link::{Dice, Knobs, Loss, Reorder};
use uktls_stack::sim::random::Chance;
use uktls_tests::{Certificate, Folder, PATIENCE, Process, STACK, Wired, as_root, wait_for};

const MTUS: [usize; 4] = [576, 1280, 1500, 9000];
/// Different records that must arrive each way.
const ENOUGH: usize = 40;
/// How long a record is waited for before the next one is asked for; more than the path's delay.
const WAIT: Duration = Duration::from_millis(60);

/// What a good transport over UDP meets on a very bad day.
fn bad(mtu: usize) -> Knobs {
    Knobs {
        mtu,
        delay: Duration::from_millis(5),
        loss: Loss::random(Chance::percent(8)),
        duplicate: Dice::of(Chance::percent(10)),
        reorder: Reorder {
            dice: Dice::of(Chance::percent(10)),
            gap: 0,
            ahead: Some(Duration::from_millis(4)),
        },
        ..Knobs::default()
    }
}

/// Runs `work` on a bad path for each of `cases`, all at the same time.
fn on_bad_paths<T: Copy + Send + Sync + std::fmt::Debug>(
    cases: &[(T, usize)],
    work: impl Fn(&Wired, T, usize) + Sync,
) {
    std::thread::scope(|scope| {
        for (seed, &(case, mtu)) in (1..).zip(cases) {
            let work = &work;
            let run = move || {
                let mut wired = Wired::new(seed, &bad(mtu));
                work(&wired, case, mtu);
                let [there, back] = wired.cut().directions;
                let struck = [
                    there.lost + back.lost,
                    there.duplicated + back.duplicated,
                    there.reordered + back.reordered,
                ];
                assert!(!struck.contains(&0), "nothing was tested: {struck:?}");
            };
            let thread = std::thread::Builder::new().name(format!("{case:?}, MTU {mtu}"));
            thread.spawn_scoped(scope, run).expect("a thread");
        }
    });
}

/// Every cipher at every MTU.
fn all() -> Vec<(&'static str, usize)> {
    let pairs = CIPHERS.map(|cipher| MTUS.map(|mtu| (cipher, mtu)));
    pairs.concat()
}

/// The line of this number, of `len` bytes with its end.
fn line(number: usize, len: usize) -> Vec<u8> {
    let mut line = format!("{number:05} ").into_bytes();
    let letters = b"abcdefghijklmnopqrstuvwxyz".iter().cycle().skip(number);
    line.extend(letters.take(len.saturating_sub(line.len() + 1)));
    line.push(b'\n');
    line
}

/// The numbers of the lines in `text`, which must be whole, ours, and there once. Other lines and a last one without an end are passed over.
fn numbers(text: &[u8], len: impl Fn(usize) -> usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    for got in text.split_inclusive(|byte| *byte == b'\n') {
        let number = got.get(..5).and_then(|digits| str::from_utf8(digits).ok());
        let Some(number) = number.and_then(|digits| digits.parse().ok()) else {
            continue;
        };
        if got.ends_with(b"\n") {
            let expected = line(number, len(number));
            assert!(got == expected, "damaged: {}", got.escape_ascii());
            assert!(found.insert(number), "{number} came twice");
        }
    }
    found
}

/// The next record, if one comes soon. Answers the peer's handshake meanwhile.
fn receive(session: &mut Session, ktls: &KtlsSocket) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 1 << 15];
    ktls.set_read_timeout(Some(WAIT)).expect("set");
    let received = ktls.recv(&mut buffer, DatagramFlags::empty());
    session.peer_closed().expect("no alert");
    buffer.truncate(received.ok()?.len);
    Some(buffer)
}

/// Lines to the peer and lines typed to it, until both sides have enough.
///
/// OpenSSL's programs wait in a blocking read when a datagram was dropped as a replay, until another one comes: so both ways take turns. Some
/// peers end when records come before the handshake's last message; nothing is sent to those that must be `heard_first`.
fn exchange(
    session: &mut Session,
    ktls: &KtlsSocket,
    peer: &mut Process,
    mtu: usize,
    heard_first: bool,
) {
    let length = |number: usize| 20 + number * 97 % (mtu + 1000);
    let (mut got, mut sent, mut typed, begin) = (Vec::new(), 0, 0, Instant::now());
    for turn in 0.. {
        let at_peer = numbers(&peer.stdout(), length).len();
        let here = numbers(&got, |_| 50).len();
        if at_peer.min(here) >= ENOUGH {
            break;
        }
        // What waits while a handshake goes on is read at once and goes as one long record: seldom, then.
        if at_peer + here > 0 || turn % 16 == 0 {
            peer.input(&line(typed, 50));
            typed += 1;
        }
        if here > 0 || !heard_first {
            ktls.send(&line(sent, length(sent)), DatagramFlags::empty())
                .expect("sent");
            sent += 1;
        }
        while let Some(record) = receive(session, ktls) {
            got.extend(record);
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "{at_peer} of {sent}, {here} of {typed}: {}, {:?}",
            peer.describe(),
            ktls.stat()
        );
    }
    close(ktls).expect("sent");
}

#[test]
fn openssl_as_server() {
    as_root("faults::openssl_as_server", || {
        on_bad_paths(&all(), |wired, cipher, mtu| {
            let files = Folder::new();
            let certificate = Certificate::make(&files);
            let mut peer = s_server(&wired.network, &certificate, &["-listen"]);
            let (_udp, mut session, ktls) = client(&wired.client(), 4433, cipher);
            exchange(&mut session, &ktls, &mut peer, mtu, false);
        });
    });
}

#[test]
fn openssl_as_client() {
    as_root("faults::openssl_as_client", || {
        on_bad_paths(&all(), |wired, cipher, mtu| {
            let files = Folder::new();
            let certificate = Certificate::make(&files);
            let socket = udp(&wired.client(), 4433);
            let mut command = wired.network.command("openssl");
            command.args(["s_client", "-dtls1_2", "-quiet", "-cipher", cipher]);
            command.args(["-connect", &format!("{STACK}:4433")]);
            let mut peer = Process::start_piped(command);
            let (mut session, ktls) = server(&socket, cipher, &certificate);
            exchange(&mut session, &ktls, &mut peer, mtu, false);
        });
    });
}

/// GnuTLS's programs, by name of the cipher, at an MTU each.
fn gnutls() -> Vec<((&'static str, &'static str), usize)> {
    PRIORITIES.into_iter().zip([576, 1500, 9000]).collect()
}

#[test]
fn gnutls_as_server() {
    as_root("faults::gnutls_as_server", || {
        on_bad_paths(&gnutls(), |wired, (name, cipher), mtu| {
            let files = Folder::new();
            let certificate = Certificate::make(&files);
            let mut command = wired.network.command("gnutls-serv");
            command.args(["--udp", "--echo", "--port", "4433", "--quiet"]);
            command.args(["--priority", &priority(name), "--mtu", &mtu.to_string()]);
            command.arg("--x509certfile").arg(&certificate.cert);
            command.arg("--x509keyfile").arg(&certificate.key);
            let _peer = Process::start_piped(command);
            let (_udp, mut session, ktls) = client(&wired.client(), 4433, cipher);
            let (mut echoed, mut sent) = (Vec::new(), 0);
            wait_for("enough echoes", PATIENCE, || {
                // It reads, and so echoes, by 128 bytes.
                ktls.send(&line(sent, 100), DatagramFlags::empty())
                    .expect("sent");
                sent += 1;
                while let Some(record) = receive(&mut session, &ktls) {
                    echoed.extend(record);
                }
                (numbers(&echoed, |_| 100).len() >= ENOUGH).then_some(())
            });
            close(&ktls).expect("sent");
        });
    });
}

#[test]
fn gnutls_as_client() {
    as_root("faults::gnutls_as_client", || {
        on_bad_paths(&gnutls(), |wired, (name, cipher), mtu| {
            let files = Folder::new();
            let certificate = Certificate::make(&files);
            let socket = udp(&wired.client(), 4433);
            let mut command = wired.network.command("gnutls-cli");
            command.args(["--udp", "--insecure", "--port", "4433"]);
            command.args(["--priority", &priority(name), "--mtu", &mtu.to_string()]);
            command.arg(STACK);
            let mut peer = Process::start_piped(command);
            let (mut session, ktls) = server(&socket, cipher, &certificate);
            exchange(&mut session, &ktls, &mut peer, mtu, true);
        });
    });
}
