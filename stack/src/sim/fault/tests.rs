//! Which packets a fault means, and what happens to them.

use super::*;
use crate::sim::damage::tests::packet;
use crate::sim::link::{Delivery, Direction, DropCause, Knobs};

fn direction(faults: impl IntoIterator<Item = Fault>) -> Direction {
    let mut direction = Direction::new(1, "a>b", Knobs::default());
    faults
        .into_iter()
        .for_each(|fault| direction.add_fault(fault));
    direction
}

/// The positions of those packets, counted from one, that a fault dropped.
fn dropped(fault: Fault, packets: &[Vec<u8>]) -> Vec<usize> {
    let mut direction = direction([fault]);
    let mut dropped = Vec::new();
    for (index, packet) in packets.iter().enumerate() {
        let now = Instant::from_millis(index as u64);
        let verdict = direction.offer(now, packet.clone(), &mut Vec::new());
        assert!(verdict.chance.is_none());
        if verdict.dropped == Some(DropCause::Fault) {
            dropped.push(index + 1);
        }
    }
    dropped
}

fn record(kind: u8, length: u8) -> Vec<u8> {
    let mut record = vec![kind, 3, 3, 0, length];
    record.resize(5 + usize::from(length), 0xaa);
    record
}

/// SYN; ClientHello; application data 1 and the start of 2; the rest of 2; the second segment again; alert; FIN.
fn conversation(v6: bool) -> Vec<Vec<u8>> {
    let data = [record(23, 40), record(23, 60)].concat();
    vec![
        packet(v6, TCP, 1_000, SYN, &[]),
        packet(v6, TCP, 1_001, ACK, &record(22, 30)),
        packet(v6, TCP, 1_036, ACK, &data[..70]),
        packet(v6, TCP, 1_106, ACK | PSH, &data[70..]),
        packet(v6, TCP, 1_036, ACK, &data[..70]),
        packet(v6, TCP, 1_146, ACK | PSH, &record(21, 2)),
        packet(v6, TCP, 1_153, ACK | FIN, &[]),
    ]
}

#[test]
fn packets_are_told_apart_by_everything_in_them() {
    let drop = Fault::new(Action::Drop);
    for v6 in [false, true] {
        let packets = conversation(v6);
        let (src, dst) = if v6 {
            ("fd00::1", "fd00::2")
        } else {
            ("10.0.0.1", "10.0.0.2")
        };
        let (src, dst): (IpAddr, IpAddr) =
            (src.parse().expect("literal"), dst.parse().expect("literal"));
        for (fault, wanted) in [
            (drop.clone(), &[1, 2, 3, 4, 5, 6, 7][..]),
            (
                drop.clone()
                    .from_ip(src)
                    .to_ip(dst)
                    .from_port(40_000)
                    .to_port(443)
                    .tcp(),
                &[1, 2, 3, 4, 5, 6, 7],
            ),
            (drop.clone().from_ip(dst), &[]),
            (drop.clone().to_ip(src), &[]),
            (drop.clone().from_port(443), &[]),
            (drop.clone().to_port(40_000), &[]),
            (drop.clone().udp(), &[]),
            (drop.clone().flags(SYN, ACK), &[1]),
            (drop.clone().flags(FIN, 0), &[7]),
            (drop.clone().flags(ACK, PSH | FIN), &[2, 3, 5]),
            (drop.clone().with_payload(), &[2, 3, 4, 5, 6]),
            (drop.clone().content_type(22), &[2]),
            (drop.clone().content_type(23), &[3, 5]),
            (drop.clone().content_type(23).nth(1), &[3]),
            (drop.clone().content_type(23).record(2), &[3, 5]),
            (drop.clone().content_type(23).record(3), &[]),
            (drop.clone().record(1), &[2]),
            (drop.clone().record(3), &[3, 5]),
            (drop.clone().record(4), &[6]),
            (drop.clone().content_type(21), &[6]),
            (
                drop.clone()
                    .since(Instant::from_millis(2))
                    .until(Instant::from_millis(4)),
                &[3, 4],
            ),
            (drop.clone().every(3), &[3, 6]),
            (drop.clone().dtls_epoch(0), &[]),
        ] {
            assert_eq!(
                dropped(fault.clone(), &packets),
                wanted,
                "{fault:?}, v6: {v6}"
            );
        }
    }
}

#[test]
fn datagrams_are_told_apart_by_epoch_and_type() {
    let datagram = |v6, kind, epoch| {
        let record = [
            &[kind, 254, 253, 0, epoch, 0, 0, 0, 0, 0, 1, 0, 2][..],
            b"xy",
        ]
        .concat();
        packet(v6, UDP, 0, 0, &record)
    };
    for v6 in [false, true] {
        let packets = [
            datagram(v6, 22, 0),
            datagram(v6, 20, 0),
            datagram(v6, 22, 1),
            datagram(v6, 23, 1),
        ];
        let drop = Fault::new(Action::Drop).udp();
        assert_eq!(dropped(drop.clone().dtls_epoch(1), &packets), [3, 4]);
        assert_eq!(dropped(drop.clone().content_type(22), &packets), [1, 3]);
        assert_eq!(
            dropped(drop.clone().content_type(22).dtls_epoch(1), &packets),
            [3]
        );
        assert_eq!(dropped(drop.clone().dtls_epoch(0).nth(2), &packets), [2]);
    }
}

#[test]
fn two_connections_count_their_records_apart() {
    let mut packets = conversation(false);
    packets.extend(conversation(true));
    assert_eq!(
        dropped(
            Fault::new(Action::Drop).content_type(23).record(1),
            &packets
        ),
        [3, 5, 10, 12]
    );
}

#[test]
fn each_action_does_what_it_says() {
    let sent = packet(false, TCP, 1, ACK, &[5; 100]);
    let strike = |action| -> Vec<Delivery<Vec<u8>>> {
        let mut deliveries = Vec::new();
        direction([Fault::new(action).with_payload()]).offer(
            Instant::ZERO,
            sent.clone(),
            &mut deliveries,
        );
        deliveries
    };
    assert!(strike(Action::Drop).is_empty());
    assert_eq!(strike(Action::Duplicate).len(), 2);
    assert_eq!(
        strike(Action::Delay(Duration::from_millis(7)))[0].at,
        Instant::from_millis(7)
    );
    assert_eq!(strike(Action::Truncate(30))[0].packet, sent[..30]);
    for (action, intact) in [
        (Action::Corrupt(Corruption::Wire), false),
        (Action::CorruptBit(Corruption::Wire, 9), false),
        (Action::Corrupt(Corruption::Forged), true),
        (Action::CorruptBit(Corruption::Forged, 9), true),
    ] {
        let arrived = &strike(action)[0].packet;
        assert_ne!(*arrived, sent);
        assert_eq!(damage::is_intact(arrived), intact, "{action:?}");
    }
}

#[test]
fn faults_add_up_and_leave_the_others_alone() {
    let mut direction = direction([
        Fault::new(Action::Duplicate).flags(SYN, 0),
        Fault::new(Action::Delay(Duration::from_millis(3))).flags(SYN, 0),
        Fault::new(Action::Drop).flags(RST, 0),
    ]);
    let mut deliveries = Vec::new();
    for packet in conversation(false) {
        direction.offer(Instant::ZERO, packet, &mut deliveries);
    }
    let times: Vec<u64> = deliveries
        .iter()
        .map(|delivery| delivery.at.as_millis())
        .collect();
    assert_eq!(times, [3, 3, 0, 0, 0, 0, 0, 0]);
    direction.clear_faults();
    deliveries.clear();
    direction.offer(
        Instant::ZERO,
        packet(false, TCP, 1, SYN, &[]),
        &mut deliveries,
    );
    assert_eq!(deliveries.len(), 1);
}

#[test]
fn what_is_not_ip_is_met_by_no_fault() {
    assert!(
        dropped(
            Fault::new(Action::Drop),
            &[vec![], vec![0; 40], vec![0x45; 10]]
        )
        .is_empty()
    );
}
