//! Links people know, as pairs of knobs: from the device to the network, and back.
//!
//! The figures are ordinary ones for links in everyday use, not the best of a data sheet; each function says them. A preset is a start: every
//! knob of it can be turned. Queues hold about what such equipment buffers, which on slow links is far more than the bandwidth-delay product.

use super::distribution::Distribution;
use super::link::{Dice, Knobs, Loss, Rate, Reorder};
use super::random::Chance;
use crate::clock::Duration;

/// The two directions of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preset {
    /// From the device to the network.
    pub up: Knobs,
    /// From the network to the device.
    pub down: Knobs,
}

impl Preset {
    /// The same knobs both ways.
    pub fn symmetric(knobs: Knobs) -> Preset {
        Preset {
            up: knobs.clone(),
            down: knobs,
        }
    }
}

/// Wi-Fi in a home with neighbours: 80 Mbit/s each way, round trip 4 ms ± 2 ms with a long tail (the MAC sends again what was
/// lost, which costs time and rarely a packet), 0.1 % loss in bursts.
pub fn wifi() -> Preset {
    Preset::symmetric(Knobs {
        rate: Rate::mbit(80),
        limit: 256,
        delay: Duration::from_millis(2),
        jitter: Duration::from_millis(1),
        distribution: Distribution::Pareto,
        loss: Loss::GilbertElliott {
            to_bad: Chance::ppm(500),
            to_good: Chance::percent(25),
            good: Chance::NEVER,
            bad: Chance::percent(50),
        },
        ..Knobs::default()
    })
}

/// LTE with a middling signal: 30 Mbit/s down, 10 Mbit/s up, round trip 50 ms ± 10 ms, deep buffers, next to no loss (the radio
/// link control sends again).
pub fn lte() -> Preset {
    let knobs = Knobs {
        delay: Duration::from_millis(25),
        jitter: Duration::from_millis(5),
        jitter_correlation: Chance::percent(25),
        distribution: Distribution::Normal,
        loss: Loss::random(Chance::ppm(100)),
        limit: 500,
        mtu: 1428,
        ..Knobs::default()
    };
    Preset {
        up: Knobs {
            rate: Rate::mbit(10),
            ..knobs.clone()
        },
        down: Knobs {
            rate: Rate::mbit(30),
            ..knobs
        },
    }
}

/// UMTS with HSPA: 3 Mbit/s down, 0.8 Mbit/s up, round trip 150 ms ± 40 ms, 0.5 % loss.
pub fn umts() -> Preset {
    let knobs = Knobs {
        delay: Duration::from_millis(75),
        jitter: Duration::from_millis(20),
        jitter_correlation: Chance::percent(25),
        distribution: Distribution::Normal,
        loss: Loss::random(Chance::ppm(5_000)),
        limit: 200,
        mtu: 1428,
        ..Knobs::default()
    };
    Preset {
        up: Knobs {
            rate: Rate::kbit(800),
            ..knobs.clone()
        },
        down: Knobs {
            rate: Rate::mbit(3),
            ..knobs
        },
    }
}

/// Satellites in low orbit: 100 Mbit/s down, 15 Mbit/s up, round trip 40 ms ± 8 ms, 0.8 % loss in bursts (hand-overs every
/// few seconds), some reordering.
pub fn leo() -> Preset {
    let knobs = Knobs {
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(4),
        distribution: Distribution::Normal,
        loss: Loss::GilbertElliott {
            to_bad: Chance::ppm(800),
            to_good: Chance::percent(8),
            good: Chance::ppm(200),
            bad: Chance::percent(75),
        },
        reorder: Reorder {
            dice: Dice::of(Chance::per_mille(1)),
            gap: 0,
            ahead: Some(Duration::from_millis(2)),
        },
        limit: 400,
        ..Knobs::default()
    };
    Preset {
        up: Knobs {
            rate: Rate::mbit(15),
            ..knobs.clone()
        },
        down: Knobs {
            rate: Rate::mbit(100),
            ..knobs
        },
    }
}

/// A satellite in geostationary orbit: 50 Mbit/s down, 3 Mbit/s up, round trip 600 ms (twice 35,786 km there and back, and the ground
/// stations), 0.1 % loss.
pub fn geo() -> Preset {
    let knobs = Knobs {
        delay: Duration::from_millis(300),
        jitter: Duration::from_millis(3),
        distribution: Distribution::Normal,
        loss: Loss::random(Chance::per_mille(1)),
        limit: 2_000,
        ..Knobs::default()
    };
    Preset {
        up: Knobs {
            rate: Rate::mbit(3),
            ..knobs.clone()
        },
        down: Knobs {
            rate: Rate::mbit(50),
            ..knobs
        },
    }
}

/// VDSL: 50 Mbit/s down, 10 Mbit/s up, round trip 20 ms ± 1 ms, one packet in 100,000 lost, PPPoE's MTU of 1,492.
pub fn dsl() -> Preset {
    let knobs = Knobs {
        delay: Duration::from_millis(10),
        jitter: Duration::from_micros(500),
        loss: Loss::random(Chance::ppm(10)),
        limit: 300,
        mtu: 1492,
        ..Knobs::default()
    };
    Preset {
        up: Knobs {
            rate: Rate::mbit(10),
            ..knobs.clone()
        },
        down: Knobs {
            rate: Rate::mbit(50),
            ..knobs
        },
    }
}

/// Every kind of fault that a transport must survive, each by its name and alone, and then all at once: on a link of 50 Mbit/s with a
/// round trip of 10 ms, the same both ways.
///
/// No fault is so bad that a transfer takes long, so that a test may go through them all, in real time too.
pub fn faults() -> Vec<(&'static str, Knobs)> {
    let plain = Knobs {
        rate: Rate::mbit(50),
        delay: Duration::from_millis(5),
        limit: 100,
        ..Knobs::default()
    };
    let loss = Loss::random(Chance::percent(1));
    let duplicate = Dice::of(Chance::percent(3));
    let corrupt = Dice::of(Chance::percent(1));
    let reorder = Reorder {
        dice: Dice::of(Chance::percent(3)),
        gap: 0,
        ahead: Some(Duration::from_millis(2)),
    };
    let from = |change: &dyn Fn(&mut Knobs)| {
        let mut knobs = plain.clone();
        change(&mut knobs);
        knobs
    };
    vec![
        ("none", plain.clone()),
        ("loss", from(&|knobs| knobs.loss = loss.clone())),
        (
            "burst loss",
            from(&|knobs| {
                knobs.loss = Loss::GilbertElliott {
                    to_bad: Chance::per_mille(2),
                    to_good: Chance::percent(25),
                    good: Chance::NEVER,
                    bad: Chance::percent(90),
                };
            }),
        ),
        ("reordering", from(&|knobs| knobs.reorder = reorder)),
        ("duplication", from(&|knobs| knobs.duplicate = duplicate)),
        ("corruption", from(&|knobs| knobs.corrupt = corrupt)),
        ("truncation", from(&|knobs| knobs.truncate = corrupt)),
        (
            "jitter",
            from(&|knobs| {
                knobs.jitter = Duration::from_millis(3);
                knobs.jitter_reorders = true;
            }),
        ),
        (
            "a long way",
            from(&|knobs| knobs.delay = Duration::from_millis(60)),
        ),
        ("a short queue", from(&|knobs| knobs.limit = 12)),
        ("MTU 576", from(&|knobs| knobs.mtu = 576)),
        ("MTU 1280", from(&|knobs| knobs.mtu = 1280)),
        ("MTU 9000", from(&|knobs| knobs.mtu = 9000)),
        (
            "all at once",
            from(&|knobs| {
                knobs.loss = loss.clone();
                knobs.duplicate = duplicate;
                knobs.corrupt = corrupt;
                knobs.truncate = Dice::of(Chance::per_mille(3));
                knobs.reorder = reorder;
                knobs.jitter = Duration::from_millis(1);
                knobs.mtu = 1400;
            }),
        ),
    ]
}

/// The preset of this name: `wifi`, `4g`, `3g`, `leo`, `geo` or `dsl`.
pub fn by_name(name: &str) -> Option<Preset> {
    Some(match name {
        "wifi" => wifi(),
        "4g" => lte(),
        "3g" => umts(),
        "leo" => leo(),
        "geo" => geo(),
        "dsl" => dsl(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Instant;
    use crate::sim::link::Direction;

    /// Packets that arrive of 100,000 and their mean time on the way, at a tenth of the rate.
    fn measure(knobs: Knobs) -> (usize, Duration) {
        let interval = knobs.rate.time_for(1_000) * 10;
        let mut direction = Direction::new(5, "preset", knobs);
        let (mut deliveries, mut total) = (Vec::new(), Duration::ZERO);
        for number in 0..100_000 {
            let now = Instant::ZERO + interval * number;
            let before = deliveries.len();
            direction.offer(now, vec![0x45; 1_000], &mut deliveries);
            if let Some(delivery) = deliveries.get(before) {
                total += delivery.at - now;
            }
        }
        (deliveries.len(), total / deliveries.len() as u32)
    }

    #[test]
    fn each_has_the_delay_and_loss_that_it_states() {
        for (name, round_trip, lost) in [
            ("wifi", 4, 50..200),
            ("4g", 50, 0..30),
            ("3g", 150, 400..600),
            ("leo", 40, 500..1_100),
            ("geo", 600, 60..140),
            ("dsl", 20, 0..8),
        ] {
            let preset = by_name(name).expect("a known name");
            for knobs in [preset.up, preset.down] {
                let line = knobs.rate.time_for(1_000);
                let (arrived, mean) = measure(knobs);
                let one_way = Duration::from_millis(round_trip) / 2 + line;
                // Packets that wait for a late one in front make the mean a little longer than the knobs' own.
                assert!(
                    lost.contains(&(100_000 - arrived)),
                    "{name}: {arrived} arrive"
                );
                assert!(
                    mean >= one_way * 19 / 20 && mean <= one_way * 6 / 5,
                    "{name}: {mean:?}"
                );
            }
        }
        assert_eq!(by_name("5g"), None);
    }
}
