//! What each knob does, seen over many packets.

use super::*;
use crate::packet::{TCP, UDP};
use crate::sim::damage::tests::packet;
use proptest::prelude::*;

const COUNT: u64 = 100_000;

/// What comes of `COUNT` packets of 100 bytes, one a millisecond: verdicts and deliveries (packet number, time on the way).
fn run(knobs: Knobs) -> (Vec<Verdict>, Vec<(u64, Duration)>, LinkCounters) {
    let mut direction = Direction::new(11, "a>b", knobs);
    let (mut verdicts, mut arrivals, mut deliveries) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=COUNT {
        let now = Instant::from_millis(number);
        let packet = packet(false, TCP, number as u32, 0x10, &[7; 60]);
        verdicts.push(direction.offer(now, packet, &mut deliveries));
        arrivals.extend(
            deliveries
                .drain(..)
                .map(|delivery| (number, delivery.at - now)),
        );
    }
    (verdicts, arrivals, *direction.counters())
}

fn assert_about(found: u64, wanted: u64, tolerance: u64) {
    assert!(
        found.abs_diff(wanted) <= tolerance,
        "{found}, not about {wanted}"
    );
}

#[test]
fn a_perfect_wire_changes_nothing() {
    let (verdicts, arrivals, counters) = run(Knobs::default());
    assert!(
        verdicts
            .iter()
            .all(|v| v.dropped.is_none() && v.chance.is_none() && v.fault.is_none())
    );
    assert!(arrivals.iter().all(|&(_, late)| late == Duration::ZERO));
    assert_eq!(
        (counters.delivered, counters.delivered_bytes),
        (COUNT, COUNT * 100)
    );
}

#[test]
fn random_loss_has_its_rate_with_and_without_correlation() {
    for correlation in [Chance::NEVER, Chance::percent(50)] {
        let loss = Loss::Random {
            chance: Chance::percent(2),
            correlation,
        };
        let (verdicts, arrivals, counters) = run(Knobs {
            loss,
            ..Knobs::default()
        });
        assert_about(counters.lost, 2_000, 300);
        assert_eq!(arrivals.len() as u64 + counters.lost, COUNT);
        let lost = |v: &Verdict| v.dropped == Some(DropCause::Loss);
        let again = verdicts
            .windows(2)
            .filter(|pair| lost(&pair[0]) && lost(&pair[1]))
            .count() as u64;
        // P(lost | lost before): 2 %, or 50 % + 50 % × 2 %.
        let wanted = if correlation == Chance::NEVER {
            20
        } else {
            510
        };
        assert_about(again * 1_000 / counters.lost, wanted, 60);
    }
}

#[test]
fn gilbert_and_elliott_lose_in_bursts_of_the_stated_length() {
    let loss = Loss::GilbertElliott {
        to_bad: Chance::percent(1),
        to_good: Chance::percent(25),
        good: Chance::NEVER,
        bad: Chance::ALWAYS,
    };
    let (verdicts, _, counters) = run(Knobs {
        loss,
        ..Knobs::default()
    });
    // Stationary share of the bad state: p / (p + r) = 1/26; mean burst 1/r = 4.
    assert_about(counters.lost, COUNT / 26, 400);
    let lost: Vec<bool> = verdicts.iter().map(|v| v.dropped.is_some()).collect();
    let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count() as u64;
    assert_about(counters.lost * 100 / bursts, 400, 40);
}

#[test]
fn nth_and_list_lose_just_those() {
    let lost = |loss| -> Vec<u64> {
        let (verdicts, ..) = run(Knobs {
            loss,
            ..Knobs::default()
        });
        verdicts
            .iter()
            .filter(|v| v.dropped.is_some())
            .map(|v| v.number)
            .collect()
    };
    assert_eq!(lost(Loss::Nth(30_000)), [30_000, 60_000, 90_000]);
    assert_eq!(lost(Loss::List(vec![1, 5, 99_999])), [1, 5, 99_999]);
    assert!(lost(Loss::Nth(0)).is_empty());
}

#[test]
fn duplicates_arrive_twice() {
    let duplicate = Dice::of(Chance::percent(5));
    let (verdicts, arrivals, counters) = run(Knobs {
        duplicate,
        ..Knobs::default()
    });
    assert_about(counters.duplicated, 5_000, 400);
    assert_eq!(arrivals.len() as u64, COUNT + counters.duplicated);
    let twice: Vec<u64> = arrivals
        .windows(2)
        .filter(|p| p[0].0 == p[1].0)
        .map(|p| p[0].0)
        .collect();
    let said: Vec<u64> = verdicts
        .iter()
        .filter(|v| v.chance.duplicate)
        .map(|v| v.number)
        .collect();
    assert_eq!(twice, said);
}

#[test]
fn a_reordered_packet_comes_ahead_by_as_much_as_asked() {
    for (ahead, wanted) in [(None, 0), (Some(Duration::from_millis(3)), 7)] {
        let reorder = Reorder {
            dice: Dice::of(Chance::percent(10)),
            gap: 0,
            ahead,
        };
        let delay = Duration::from_millis(10);
        let (verdicts, arrivals, counters) = run(Knobs {
            reorder,
            delay,
            ..Knobs::default()
        });
        assert_about(counters.reordered, 10_000, 600);
        for (verdict, (_, late)) in verdicts.iter().zip(arrivals) {
            let wanted = if verdict.chance.reorder { wanted } else { 10 };
            assert_eq!(late, Duration::from_millis(wanted));
        }
    }
}

#[test]
fn a_gap_lets_only_every_so_many_packets_overtake() {
    let reorder = Reorder {
        dice: Dice::of(Chance::ALWAYS),
        gap: 5,
        ahead: None,
    };
    let (verdicts, ..) = run(Knobs {
        reorder,
        delay: Duration::from_millis(10),
        ..Knobs::default()
    });
    for verdict in verdicts {
        assert_eq!(verdict.chance.reorder, verdict.number % 5 == 0);
    }
}

#[test]
fn jitter_scatters_and_keeps_the_order_unless_told() {
    let knobs = Knobs {
        delay: Duration::from_millis(50),
        jitter: Duration::from_millis(5),
        ..Knobs::default()
    };
    let arrival_times = |knobs| -> Vec<Duration> {
        let (_, arrivals, _) = run(knobs);
        arrivals
            .iter()
            .map(|&(number, late)| Duration::from_millis(number) + late)
            .collect()
    };
    let kept = arrival_times(knobs.clone());
    assert!(kept.is_sorted());
    let (_, arrivals, _) = run(Knobs {
        jitter_reorders: true,
        ..knobs.clone()
    });
    let total: Duration = arrivals.iter().map(|(_, late)| *late).sum();
    assert_about((total / COUNT as u32).as_micros() as u64, 50_000, 100);
    let within = Duration::from_millis(45)..=Duration::from_millis(55);
    assert!(arrivals.iter().all(|(_, late)| within.contains(late)));
    assert!(
        !arrival_times(Knobs {
            jitter_reorders: true,
            ..knobs
        })
        .is_sorted()
    );
}

#[test]
fn correlated_jitter_has_the_same_spread_and_longer_runs() {
    let knobs = Knobs {
        delay: Duration::from_millis(50),
        jitter: Duration::from_millis(5),
        jitter_correlation: Chance::percent(80),
        distribution: Distribution::Normal,
        jitter_reorders: true,
        ..Knobs::default()
    };
    let (_, arrivals, _) = run(knobs);
    let same = arrivals
        .windows(2)
        .filter(|pair| pair[0].1 == pair[1].1)
        .count() as u64;
    assert_about(same, COUNT * 80 / 100, 1_000);
}

#[test]
fn damage_is_of_the_kind_and_rate_asked_for() {
    let knobs = Knobs {
        corrupt: Dice::of(Chance::percent(2)),
        forge: Dice::of(Chance::percent(3)),
        truncate: Dice::of(Chance::percent(1)),
        ..Knobs::default()
    };
    let mut direction = Direction::new(1, "a>b", knobs);
    let (mut deliveries, mut kinds) = (Vec::new(), [0u64; 3]);
    for number in 0..COUNT {
        let protocol = if number % 2 == 0 { TCP } else { UDP };
        let sent = packet(number % 3 == 0, protocol, 1, 0x10, &[9; 40]);
        let verdict = direction.offer(Instant::ZERO, sent.clone(), &mut deliveries);
        let arrived = deliveries.pop().expect("nothing is lost here").packet;
        match (verdict.chance.truncate, verdict.chance.corrupt) {
            (Some(len), _) => {
                assert_eq!(arrived.len(), len as usize);
                kinds[0] += 1;
            }
            (None, Some((corruption, _))) => {
                let forged = corruption == Corruption::Forged;
                assert_eq!(damage::is_intact(&arrived), forged);
                assert_ne!(arrived, sent);
                kinds[if forged { 1 } else { 2 }] += 1;
            }
            (None, None) => assert_eq!(arrived, sent),
        }
    }
    assert_about(kinds[0], 1_000, 200);
    assert_about(kinds[1], 2_970, 300);
    assert_about(kinds[2], 1_920, 300);
}

#[test]
fn the_line_sends_one_packet_after_the_other_and_its_queue_is_bounded() {
    let knobs = Knobs {
        rate: Rate::mbit(8),
        limit: 3,
        delay: Duration::from_millis(10),
        ..Knobs::default()
    };
    let mut direction = Direction::new(1, "a>b", knobs);
    let mut deliveries = Vec::new();
    let mut offer = |direction: &mut Direction, micros| {
        let now = Instant::from_micros(micros);
        let verdict = direction.offer(now, vec![0x45; 1_000], &mut deliveries);
        (
            verdict.dropped,
            deliveries.pop().map(|delivery| delivery.at.as_micros()),
        )
    };
    // 1,000 bytes at 8 Mbit/s take a millisecond.
    assert_eq!(offer(&mut direction, 0), (None, Some(11_000)));
    assert_eq!(offer(&mut direction, 0), (None, Some(12_000)));
    assert_eq!(offer(&mut direction, 500), (None, Some(13_000)));
    assert_eq!(offer(&mut direction, 999), (Some(DropCause::Limit), None));
    assert_eq!(direction.queued(Instant::from_micros(999)), 3);
    assert_eq!(offer(&mut direction, 1_000), (None, Some(14_000)));
    assert_eq!(direction.queued(Instant::from_micros(4_000)), 0);
    assert_eq!(offer(&mut direction, 9_000), (None, Some(20_000)));
}

#[test]
fn knobs_may_be_turned_while_packets_are_under_way() {
    let mut direction = Direction::new(
        1,
        "a>b",
        Knobs {
            delay: Duration::from_millis(20),
            ..Knobs::default()
        },
    );
    let mut deliveries = Vec::new();
    let mut offer = |direction: &mut Direction, millis| {
        let verdict = direction.offer(
            Instant::from_millis(millis),
            vec![0x45; 100],
            &mut deliveries,
        );
        (
            verdict.dropped,
            deliveries.pop().map(|delivery| delivery.at.as_millis()),
        )
    };
    assert_eq!(offer(&mut direction, 0), (None, Some(20)));
    direction.knobs.delay = Duration::from_millis(5);
    assert_eq!(
        offer(&mut direction, 1),
        (None, Some(20)),
        "the way got shorter: it waits for the one in front"
    );
    assert_eq!(offer(&mut direction, 30), (None, Some(35)));
    direction.knobs.up = false;
    assert_eq!(offer(&mut direction, 31), (Some(DropCause::Down), None));
    direction.knobs.up = true;
    direction.knobs.mtu = 99;
    assert_eq!(offer(&mut direction, 32), (Some(DropCause::Mtu), None));
    direction.knobs.mtu = 100;
    assert_eq!(offer(&mut direction, 33), (None, Some(38)));
}

#[test]
fn a_long_queue_marks_packets_that_know_ecn() {
    let knobs = Knobs {
        rate: Rate::mbit(8),
        ecn_threshold: Some(2),
        ..Knobs::default()
    };
    let mut direction = Direction::new(1, "a>b", knobs);
    let mut deliveries = Vec::new();
    let capable = packet(false, TCP, 1, 0x10, &[0; 960]);
    let mut incapable = capable.clone();
    incapable[1] &= !3;
    for sent in [&capable, &capable, &capable, &incapable] {
        direction.offer(Instant::ZERO, sent.clone(), &mut deliveries);
    }
    let marked: Vec<bool> = deliveries
        .iter()
        .map(|delivery| delivery.packet[1] & 3 == 3)
        .collect();
    assert_eq!(marked, [false, false, true, false]);
    assert!(damage::is_intact(&deliveries[2].packet));
    assert_eq!(direction.counters().marked, 1);
}

#[test]
fn turning_one_knob_leaves_the_other_dice_alone() {
    let lost = |knobs: Knobs| -> Vec<u64> {
        let (verdicts, ..) = run(knobs);
        verdicts
            .iter()
            .filter(|v| v.chance.drop)
            .map(|v| v.number)
            .collect()
    };
    let loss = Loss::random(Chance::percent(1));
    let plain = lost(Knobs {
        loss: loss.clone(),
        ..Knobs::default()
    });
    let busy = Knobs {
        loss,
        duplicate: Dice::of(Chance::percent(9)),
        corrupt: Dice::of(Chance::percent(9)),
        jitter: Duration::from_millis(1),
        ..Knobs::default()
    };
    assert_eq!(plain, lost(busy));
}

proptest! {
    #[test]
    fn every_packet_is_delivered_or_accounted_for(
        seed: u64,
        loss in 0u32..300_000, duplicate in 0u32..300_000, reorder in 0u32..300_000,
        rate in 0u64..50, limit in 0usize..20, delay in 0u64..5_000, jitter in 0u64..9_000, jitter_reorders: bool,
        gaps in prop::collection::vec(0u64..2_000, 1..300),
    ) {
        let knobs = Knobs {
            loss: Loss::random(Chance::ppm(loss)),
            duplicate: Dice::of(Chance::ppm(duplicate)),
            reorder: Reorder { dice: Dice::of(Chance::ppm(reorder)), gap: 0, ahead: None },
            rate: Rate::mbit(rate),
            limit,
            delay: Duration::from_micros(delay),
            jitter: Duration::from_micros(jitter),
            jitter_reorders,
            ..Knobs::default()
        };
        let mut direction = Direction::new(seed, "a>b", knobs.clone());
        let mut again = Direction::new(seed, "a>b", knobs);
        let (mut deliveries, mut repeated, mut now) = (Vec::new(), Vec::new(), Instant::ZERO);
        for gap in gaps {
            now += Duration::from_micros(gap);
            let before = deliveries.len();
            let verdict = direction.offer(now, vec![0x45; 500], &mut deliveries);
            prop_assert_eq!(again.offer(now, vec![0x45; 500], &mut repeated), verdict);
            prop_assert_eq!(verdict.dropped.is_none(), deliveries.len() > before);
            prop_assert!(deliveries[before..].iter().all(|delivery| delivery.at >= now));
        }
        prop_assert_eq!(&deliveries, &repeated);
        let c = direction.counters();
        prop_assert_eq!(c.offered + c.duplicated, c.delivered + c.lost + c.overflowed);
        prop_assert_eq!(c.delivered, deliveries.len() as u64);
    }
}
