//! DTLS under attack: somebody on the path plays old datagrams again and holds others back, while the two ends change their keys.
//!
//! Three calls make a UDP socket a DTLS one, as with AF_KTLS in the daemon; the stacks seal and open. The program on top sends
//! numbered commands, and carries each of them out as it comes. None may be carried out twice, whatever comes when; how many
//! datagrams were dropped, and why, can be asked of the socket and stands in the run's report.

use std::collections::BTreeSet;
use uktls_record::CipherSuite;
use uktls_record::dtls::{DiscardKind, EpochKeys};
use uktls_stack::clock::Duration;
use uktls_stack::sim::fault::{Action, Fault};
use uktls_stack::sim::link::{Dice, Knobs, Reorder};
use uktls_stack::sim::random::{Chance, Stream};
use uktls_stack::sim::{self, KtlsSocket, Net, UdpSocket, Way};

const COMMANDS: u64 = 400;
/// From here on epoch 2 is in force.
const REKEY_AT: u64 = 200;

/// Keys from the run's seed: each epoch and direction has its own.
fn keys(seed: u64, direction: &str, epoch: u16) -> EpochKeys {
    let (mut key, mut salt) = ([0; 16], [0; 4]);
    let mut stream = Stream::new(seed, direction, &format!("keys of epoch {epoch}"));
    stream.fill(&mut key);
    stream.fill(&mut salt);
    EpochKeys::dtls12(CipherSuite::Aes128Gcm, &key, &salt, epoch, 0)
        .expect("the lengths of AES-128-GCM")
}

/// A UDP socket, and DTLS over it.
async fn socket(local: &str, peer: &str) -> (UdpSocket, KtlsSocket) {
    let udp = UdpSocket::bind(local).await.expect("a free port");
    udp.connect(peer).await.expect("an address");
    let dtls = KtlsSocket::bind(&udp).expect("a connected socket");
    (udp, dtls)
}

async fn command(seed: u64) {
    let (_udp, dtls) = socket("0.0.0.0:5000", "robot:4433").await;
    for number in 0..COMMANDS {
        if number == 0 || number == REKEY_AT {
            let epoch = if number < REKEY_AT { 1 } else { 2 };
            dtls.set_send_keys(&keys(seed, "commands", epoch))
                .expect("keys");
        }
        dtls.send(&number.to_be_bytes()).await.expect("sealed");
        sim::sleep(Duration::from_millis(1)).await;
    }
}

async fn obey(seed: u64) {
    let (_udp, dtls) = socket("0.0.0.0:4433", "operator:5000").await;
    dtls.set_receive_keys(&keys(seed, "commands", 1))
        .expect("keys");
    let mut obeyed = BTreeSet::new();
    let mut late = 0;
    let mut buffer = [0; 64];
    // Until nothing has come for five seconds, of virtual time.
    while let Ok(received) = sim::timeout(Duration::from_secs(5), dtls.recv(&mut buffer)).await {
        let len = received.expect("a record").len;
        let number = u64::from_be_bytes(buffer[..len].try_into().expect("a command"));
        assert!(obeyed.insert(number), "{number} was obeyed twice");
        late += u64::from(obeyed.last() != Some(&number));
        // The next keys are there before they are needed; those before stay in force beside them.
        if number == REKEY_AT / 2 {
            dtls.set_receive_keys(&keys(seed, "commands", 2))
                .expect("keys");
        }
    }
    let dropped = dtls.stat().expect("the host is up").dropped;
    let of = |kind: DiscardKind| dropped[kind as usize];
    println!("{} obeyed, {late} of them late", obeyed.len());
    // What was held back longer than the window reaches is dropped, with its copy if it has one, and nothing else is missing.
    assert!(of(DiscardKind::TooOld) >= 1);
    assert_eq!(obeyed.len() as u64, COMMANDS - 1);
    assert!(of(DiscardKind::Replayed) > 30, "{dropped:?}");
    assert!(late > 10);
}

/// Builds the network and starts its programs.
pub(crate) fn scenario(net: &Net) {
    let operator = net.host("operator", "10.0.0.1");
    let robot = net.host("robot", "10.0.0.2");
    let tampered = Knobs {
        delay: Duration::from_millis(20),
        duplicate: Dice::of(Chance::percent(15)),
        reorder: Reorder {
            dice: Dice::of(Chance::percent(10)),
            gap: 0,
            ahead: Some(Duration::from_millis(7)),
        },
        ..Knobs::default()
    };
    let link = net.link(&operator, &robot, tampered);
    // A window reaches 64 records back, and a record leaves each millisecond.
    let hold = Fault::new(Action::Delay(Duration::from_millis(150)));
    link.fault(Way::There, hold.dtls_epoch(2).nth(20));
    let seed = net.seed();
    robot.spawn(obey(seed));
    operator.spawn(command(seed));
}

#[test]
fn no_command_is_obeyed_twice() {
    let report = sim::run(scenario);
    println!("{report}");
    assert_eq!(report.totals.sealed, COMMANDS);
}
