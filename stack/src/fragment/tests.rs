use super::*;
use proptest::prelude::*;
use std::io::IoSlice;

const T0: Instant = Instant::ZERO;

/// IP and UDP headers from .1 to .2, IP lengths and checksum right.
fn headers(v6: bool, payload: usize) -> Vec<u8> {
    let mut header = if v6 {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, UDP, 64];
        header.extend_from_slice(&[0xfd; 15]);
        header.push(1);
        header.extend_from_slice(&[0xfd; 15]);
        header.push(2);
        header
    } else {
        vec![
            0x45, 0, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]
    };
    set_length(&mut header, 8 + payload);
    header.extend_from_slice(&[0x10, 0x01, 0x10, 0x02]);
    header.extend_from_slice(&((8 + payload) as u16).to_be_bytes());
    header.extend_from_slice(&[0xab, 0xcd]);
    header
}

/// The fragments of a datagram, and the packet that must come out.
fn cut(v6: bool, payload: &[u8], mtu: usize, id: u32) -> (Vec<Vec<u8>>, Vec<u8>) {
    let headers = headers(v6, payload.len());
    let (front, back) = payload.split_at(payload.len() / 2);
    let packets = fragment(
        &headers,
        &[IoSlice::new(front), IoSlice::new(back)],
        mtu,
        id,
    )
    .expect("possible");
    let mut whole = headers[..if v6 { 40 } else { 20 }].to_vec();
    if !v6 {
        whole[4..6].copy_from_slice(&(id as u16).to_be_bytes());
    }
    set_length(&mut whole, 8 + payload.len());
    whole.extend_from_slice(&headers[whole.len()..]);
    whole.extend_from_slice(payload);
    (packets.collect(), whole)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn reassembler() -> Reassembler {
    Reassembler::new(Limits::default())
}

/// Gives `fragment` another payload of the same length.
fn altered(fragment: &[u8]) -> Vec<u8> {
    let mut fragment = fragment.to_vec();
    *fragment.last_mut().expect("not empty") ^= 0xff;
    fragment
}

#[test]
fn in_order_the_last_fragment_completes() {
    for v6 in [false, true] {
        let (packets, whole) = cut(v6, &bytes(4_000), 1500, 7);
        assert_eq!(packets.len(), 3);
        let mut reassembler = reassembler();
        assert_eq!(reassembler.push(T0, &packets[0]), Outcome::Pending);
        assert_eq!(reassembler.push(T0, &packets[1]), Outcome::Pending);
        assert_eq!(
            reassembler.push(T0, &packets[2]),
            Outcome::Complete(whole[..].into())
        );
        assert_eq!(
            (
                reassembler.bytes(),
                reassembler.datagrams(),
                reassembler.next_deadline()
            ),
            (0, 0, None)
        );
        assert_eq!(reassembler.counters().reassembled, 1);
    }
}

#[test]
fn whole_packets_are_none_of_its_business() {
    for v6 in [false, true] {
        let (packets, whole) = cut(v6, &bytes(1_000), 1500, 7);
        assert_eq!(packets, [whole]);
        assert_eq!(reassembler().push(T0, &packets[0]), Outcome::NotFragment);
    }
    let (mut packets, _) = cut(false, &[], 1500, 7);
    assert_eq!(packets.remove(0).len(), 28);
}

#[test]
fn fragments_fit_the_mtu_and_waste_little_of_it() {
    for (v6, mtu) in [
        (false, 68),
        (false, 576),
        (true, 1280),
        (false, 1500),
        (true, 1500),
        (true, 9_000),
    ] {
        let (packets, _) = cut(v6, &bytes(20_000), mtu, 7);
        let (last, others) = packets.split_last().expect("not empty");
        assert!(last.len() <= mtu);
        assert!(
            others
                .iter()
                .all(|packet| packet.len() <= mtu && packet.len() + 8 > mtu)
        );
    }
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let payload = [0; 2_000];
    let payload = [IoSlice::new(&payload)];
    let mut whole_only = headers(false, 2_000);
    whole_only[6] = 0x40;
    assert_eq!(
        fragment(&whole_only, &payload, 1500, 1).err(),
        Some(CannotFragment::DontFragment)
    );
    assert!(fragment(&whole_only, &payload, 9_000, 1).is_ok());
    assert_eq!(
        fragment(&headers(false, 0), &payload, 27, 1).err(),
        Some(CannotFragment::Mtu)
    );
    assert_eq!(
        fragment(&[0x46; 60], &payload, 1500, 1).err(),
        Some(CannotFragment::Headers)
    );
    assert_eq!(
        fragment(&[0x60; 39], &payload, 1500, 1).err(),
        Some(CannotFragment::Headers)
    );
    let long = vec![0; 65_508];
    assert_eq!(
        fragment(&headers(false, 0), &[IoSlice::new(&long)], 1500, 1).err(),
        Some(CannotFragment::TooLong)
    );
}

#[test]
fn the_longest_datagram_goes_through() {
    for (v6, length) in [(false, 65_507), (true, 65_527)] {
        let (packets, whole) = cut(v6, &bytes(length), 1280, 7);
        let mut reassembler = reassembler();
        let (last, others) = packets.split_last().expect("not empty");
        others
            .iter()
            .for_each(|packet| assert_eq!(reassembler.push(T0, packet), Outcome::Pending));
        assert_eq!(
            reassembler.push(T0, last),
            Outcome::Complete(whole[..].into())
        );
    }
}

#[test]
fn an_atomic_fragment_passes_by_the_others() {
    let (packets, _) = cut(true, &bytes(4_000), 1500, 7);
    let mut reassembler = reassembler();
    assert_eq!(reassembler.push(T0, &packets[0]), Outcome::Pending);
    // Same identification, offset 0, no more fragments, UDP header inside.
    let mut atomic = packets[0][..60].to_vec();
    atomic[4..6].copy_from_slice(&20u16.to_be_bytes());
    atomic[42..44].copy_from_slice(&[0, 0]);
    let Outcome::Complete(whole) = reassembler.push(T0, &atomic) else {
        panic!("not complete")
    };
    assert_eq!(
        (whole.len(), whole[6], &whole[4..6]),
        (52, UDP, &[0, 12][..])
    );
    assert_eq!(whole[40..], atomic[48..]);
    assert_eq!(reassembler.push(T0, &packets[1]), Outcome::Pending);
    assert!(matches!(
        reassembler.push(T0, &packets[2]),
        Outcome::Complete(_)
    ));
}

#[test]
fn an_overlap_ends_an_ipv6_datagram_for_good() {
    let (packets, _) = cut(true, &bytes(4_000), 1500, 7);
    let mut reassembler = reassembler();
    reassembler.push(T0, &packets[0]);
    reassembler.push(T0, &packets[1]);
    assert_eq!(
        reassembler.push(T0, &altered(&packets[1])),
        Outcome::Dropped(DropReason::Overlap)
    );
    assert_eq!(reassembler.bytes(), 0);
    for packet in &packets {
        assert_eq!(
            reassembler.push(T0, packet),
            Outcome::Dropped(DropReason::Overlap)
        );
    }
    // RFC 5722's memory ends with the datagram's time.
    let later = T0 + Limits::default().timeout;
    for packet in &packets[..2] {
        assert_eq!(reassembler.push(later, packet), Outcome::Pending);
    }
    assert!(matches!(
        reassembler.push(later, &packets[2]),
        Outcome::Complete(_)
    ));
}

#[test]
fn an_overlap_ends_an_ipv4_datagram_until_its_identification_comes_again() {
    let (packets, whole) = cut(false, &bytes(4_000), 1500, 7);
    let (other, _) = cut(false, &bytes(4_000), 1004, 7);
    let mut reassembler = reassembler();
    reassembler.push(T0, &packets[0]);
    assert_eq!(
        reassembler.push(T0, &other[1]),
        Outcome::Dropped(DropReason::Overlap)
    );
    assert_eq!((reassembler.bytes(), reassembler.datagrams()), (0, 0));
    reassembler.push(T0, &packets[2]);
    reassembler.push(T0, &packets[1]);
    assert_eq!(
        reassembler.push(T0, &packets[0]),
        Outcome::Complete(whole[..].into())
    );
}

#[test]
fn two_ends_do_not_go_together() {
    let (packets, _) = cut(false, &bytes(4_000), 1500, 7);
    let (longer, _) = cut(false, &bytes(6_000), 1500, 7);
    for (first, second) in [
        (&packets[2], &longer[4]), // the end, then another end behind it
        (&longer[4], &packets[2]), // the end, then another end before it
        (&packets[2], &longer[3]), // the end, then something behind it
        (&longer[3], &packets[2]), // something, then an end before it
    ] {
        let mut reassembler = reassembler();
        assert_eq!(reassembler.push(T0, first), Outcome::Pending);
        assert_eq!(
            reassembler.push(T0, second),
            Outcome::Dropped(DropReason::Overlap)
        );
    }
}

#[test]
fn time_runs_from_the_first_fragment() {
    let (packets, _) = cut(true, &bytes(4_000), 1500, 7);
    let mut reassembler = reassembler();
    let deadline = T0 + Duration::from_secs(60);
    reassembler.push(T0, &packets[0]);
    assert_eq!(reassembler.next_deadline(), Some(deadline));
    reassembler.push(T0 + Duration::from_secs(59), &packets[1]);
    assert_eq!(reassembler.next_deadline(), Some(deadline));
    assert_eq!(reassembler.expire(deadline - Duration::from_nanos(1)), 0);
    assert_eq!(reassembler.expire(deadline), 1);
    assert_eq!(
        (reassembler.bytes(), reassembler.next_deadline()),
        (0, None)
    );
    assert_eq!(reassembler.counters().timed_out, 1);
    assert_eq!(reassembler.push(deadline, &packets[2]), Outcome::Pending);
}

#[test]
fn the_oldest_datagram_makes_room() {
    let limits = Limits {
        max_datagrams: 2,
        ..Limits::default()
    };
    let mut reassembler = Reassembler::new(limits);
    let datagrams: Vec<_> = (0..3)
        .map(|id| cut(false, &bytes(2_000), 1500, id))
        .collect();
    for (packets, _) in &datagrams {
        assert_eq!(reassembler.push(T0, &packets[0]), Outcome::Pending);
    }
    assert_eq!(
        (reassembler.datagrams(), reassembler.counters().evicted),
        (2, 1)
    );
    for (packets, whole) in &datagrams[1..] {
        assert_eq!(
            reassembler.push(T0, &packets[1]),
            Outcome::Complete(whole[..].into())
        );
    }
    assert_eq!(
        reassembler.push(T0, &datagrams[0].0[1]),
        Outcome::Pending,
        "its first fragment is gone"
    );
}

#[test]
fn a_datagram_larger_than_all_room_is_dropped_alone() {
    let limits = Limits {
        max_bytes: 8_000,
        ..Limits::default()
    };
    let mut reassembler = Reassembler::new(limits);
    let (packets, _) = cut(false, &bytes(20_000), 1500, 7);
    let outcomes: Vec<Outcome> = packets
        .iter()
        .map(|packet| reassembler.push(T0, packet))
        .collect();
    assert!(outcomes.contains(&Outcome::Dropped(DropReason::NoRoom)));
    assert!(
        !outcomes
            .iter()
            .any(|outcome| matches!(outcome, Outcome::Complete(_)))
    );
    assert!(reassembler.bytes() <= limits.max_bytes);
}

#[test]
fn malformed_fragments_are_told_apart() {
    let (v4, _) = cut(false, &bytes(4_000), 1500, 7);
    let (v6, _) = cut(true, &bytes(4_000), 1500, 7);
    let push = |packet: &[u8]| reassembler().push(T0, packet);

    let mut wrong_checksum = v4[0].clone();
    wrong_checksum[8] ^= 1;
    assert_eq!(
        push(&wrong_checksum),
        Outcome::Dropped(DropReason::Malformed)
    );
    assert_eq!(
        push(&v4[0][..1_000]),
        Outcome::Dropped(DropReason::Malformed),
        "cut off"
    );

    let mut uneven = v6[1].clone();
    uneven.pop();
    let length = (uneven.len() - 40) as u16;
    uneven[4..6].copy_from_slice(&length.to_be_bytes());
    assert_eq!(push(&uneven), Outcome::Dropped(DropReason::Malformed));

    let mut empty = v6[1][..48].to_vec();
    empty[4..6].copy_from_slice(&[0, 8]);
    assert_eq!(push(&empty), Outcome::Dropped(DropReason::Malformed));

    let mut beyond = v6[1].clone();
    beyond[42..44].copy_from_slice(&0xfff9u16.to_be_bytes());
    assert_eq!(push(&beyond), Outcome::Dropped(DropReason::TooLong));

    // RFC 7112: destination options that do not end within the first fragment.
    let mut long_chain = v6[0].clone();
    long_chain[40] = DESTINATION_OPTIONS;
    long_chain[48..50].copy_from_slice(&[UDP, 0xff]);
    assert_eq!(push(&long_chain), Outcome::Dropped(DropReason::Malformed));
    long_chain[49] = 0;
    assert_eq!(push(&long_chain), Outcome::Pending);
    long_chain[40] = FRAGMENT;
    assert_eq!(push(&long_chain), Outcome::Dropped(DropReason::Malformed));
}

#[test]
fn congestion_marks_survive_reassembly() {
    const ECT: u8 = 2;
    const CE: u8 = 3;
    let with_ecn = |packet: &[u8], ecn: u8| {
        let mut packet = packet.to_vec();
        if packet[0] >> 4 == 6 {
            packet[1] |= ecn << 4;
        } else {
            packet[1] |= ecn;
            packet[10..12].copy_from_slice(&[0, 0]);
            let header_checksum = checksum::checksum(&packet[..20]);
            packet[10..12].copy_from_slice(&header_checksum.to_be_bytes());
        }
        packet
    };
    for v6 in [false, true] {
        let (packets, _) = cut(v6, &bytes(2_000), 1500, 7);
        let mut reassembler = reassembler();
        reassembler.push(T0, &with_ecn(&packets[0], ECT));
        let Outcome::Complete(whole) = reassembler.push(T0, &with_ecn(&packets[1], CE)) else {
            panic!("not complete")
        };
        assert_eq!(if v6 { whole[1] >> 4 } else { whole[1] }, CE);
        assert!(checksum::ip_header_is_valid(&whole));
        reassembler.push(T0, &packets[0]);
        assert_eq!(
            reassembler.push(T0, &with_ecn(&packets[1], CE)),
            Outcome::Dropped(DropReason::EcnMismatch)
        );
    }
}

/// The order in which fragments arrive: each at least once, some more often.
fn arrivals(count: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..count, 0..6)
        .prop_map(move |again| (0..count).chain(again).collect::<Vec<_>>())
        .prop_shuffle()
}

fn datagram_and_arrivals() -> impl Strategy<Value = (bool, Vec<u8>, usize, Vec<usize>)> {
    (any::<bool>(), 1_500usize..12_000, 600usize..1_500).prop_flat_map(|(v6, length, mtu)| {
        let count = cut(v6, &bytes(length), mtu, 9).0.len();
        (Just(v6), Just(bytes(length)), Just(mtu), arrivals(count))
    })
}

proptest! {
    #[test]
    fn any_order_with_any_copies_gives_the_original((v6, payload, mtu, order) in datagram_and_arrivals()) {
        let (packets, whole) = cut(v6, &payload, mtu, 9);
        let mut reassembler = reassembler();
        let mut arrived = vec![false; packets.len()];
        let mut outcome = Outcome::Pending;
        for index in order {
            if arrived.contains(&false) {
                prop_assert_eq!(outcome, Outcome::Pending);
                arrived[index] = true;
                outcome = reassembler.push(T0, &packets[index]);
            }
        }
        prop_assert_eq!(outcome, Outcome::Complete(whole[..].into()));
    }

    #[test]
    fn a_datagram_with_an_overlap_never_comes_out((payload, mtu, other_mtu) in (2_000usize..9_000, 600usize..1_500, 600usize..1_500), pick in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()) {
        let (packets, _) = cut(true, &bytes(payload), mtu, 9);
        let (others, _) = cut(true, &bytes(payload), other_mtu, 9);
        let other = altered(&others[pick.index(others.len())]);
        // One that starts where a genuine one does might stand in for it; any other overlaps one that is needed.
        prop_assume!(packets.iter().all(|packet| packet[42..43] != other[42..43] || packet[43] & !1 != other[43] & !1));
        let at = at.index(packets.len());
        let mut reassembler = reassembler();
        for (index, packet) in packets.iter().enumerate() {
            if index == at {
                let outcome = reassembler.push(T0, &other);
                prop_assert!(!matches!(outcome, Outcome::Complete(_)));
            }
            prop_assert!(!matches!(reassembler.push(T0, packet), Outcome::Complete(_)));
        }
    }

    #[test]
    fn memory_stays_within_its_bounds(fragments in prop::collection::vec((0u32..50, 0u16..400, 1usize..40, any::<bool>()), 1..400)) {
        let limits = Limits { max_bytes: 6_000, max_datagrams: 10, timeout: Duration::from_secs(60) };
        let mut reassembler = Reassembler::new(limits);
        for (step, (id, place, eighths, more)) in fragments.into_iter().enumerate() {
            let mut packet = headers(true, 0)[..40].to_vec();
            packet[6] = FRAGMENT;
            packet.extend_from_slice(&[UDP, 0]);
            packet.extend_from_slice(&((place * 8) | u16::from(more)).to_be_bytes());
            packet.extend_from_slice(&id.to_be_bytes());
            set_length(&mut packet[..40], 8 + eighths * 8);
            packet.resize(packet.len() + eighths * 8, step as u8);
            reassembler.push(Instant::from_secs(step as u64), &packet);
            prop_assert!(reassembler.bytes() <= limits.max_bytes);
            prop_assert!(reassembler.datagrams() <= limits.max_datagrams);
            let charged: usize = reassembler.datagrams.values().map(|datagram| datagram.cost).sum();
            prop_assert_eq!(charged, reassembler.bytes());
            prop_assert_eq!(reassembler.by_age.len(), reassembler.datagrams());
        }
        reassembler.expire(Instant::FAR_FUTURE);
        prop_assert_eq!((reassembler.bytes(), reassembler.datagrams()), (0, 0));
    }

    #[test]
    fn garbage_never_panics(packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..120), 0usize..4), 1..20)) {
        let mut reassembler = reassembler();
        for (mut packet, shape) in packets {
            // Most random packets are dismissed by their first bytes; these get past them.
            if packet.len() > 48 && shape > 0 {
                packet[0] = if shape == 1 { 0x45 } else { 0x60 };
                let length = packet.len() as u16 - if shape == 1 { 0 } else { 40 };
                let at = if shape == 1 { 2 } else { 4 };
                packet[at..at + 2].copy_from_slice(&length.to_be_bytes());
                if shape == 1 {
                    set_length(&mut packet[..20], usize::from(length) - 20);
                } else {
                    packet[6] = if shape == 2 { FRAGMENT } else { DESTINATION_OPTIONS };
                }
            }
            reassembler.push(T0, &packet);
            let _ = fragment(&packet, &[IoSlice::new(&packet)], packet.len(), 3).map(Iterator::count);
        }
    }
}
