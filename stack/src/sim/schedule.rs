//! What went wrong in a run, as data: so that it can be repeated, made smaller, and kept.
//!
//! A [`Schedule`] holds three kinds of event: what struck one packet of one direction (each loss that the dice once rolled, with
//! every choice made), faults aimed at packets by what they are, and changes at a time: knobs, partitions, crashes. A run records
//! into one; a run that is given one rolls no dice. It prints as the Rust expression that makes it, to be pasted into a test.
//!
//! Directions and hosts are named as the network names them. A packet's number counts what was offered to its direction, so taking
//! an early event out may move a later one to another packet; shrinking tries and sees.

use super::distribution::Distribution;
use super::fault::Fault;
use super::link::{Dice, Effect, Knobs, Loss, Rate, Reorder, Verdict};
use super::random::Chance;
use super::source;
use crate::clock::{Duration, Instant};
use std::fmt;

/// One knob at its new place.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of the same name in Knobs")]
pub enum Knob {
    Up(bool),
    Mtu(usize),
    Delay(Duration),
    Jitter(Duration),
    JitterCorrelation(Chance),
    Distribution(Distribution),
    JitterReorders(bool),
    Loss(Loss),
    Duplicate(Dice),
    Reorder(Reorder),
    Corrupt(Dice),
    Forge(Dice),
    Truncate(Dice),
    Rate(Rate),
    Limit(usize),
    EcnThreshold(Option<usize>),
}

impl Knob {
    /// Turns it.
    pub fn turn(&self, knobs: &mut Knobs) {
        match self.clone() {
            Knob::Up(up) => knobs.up = up,
            Knob::Mtu(mtu) => knobs.mtu = mtu,
            Knob::Delay(delay) => knobs.delay = delay,
            Knob::Jitter(jitter) => knobs.jitter = jitter,
            Knob::JitterCorrelation(correlation) => knobs.jitter_correlation = correlation,
            Knob::Distribution(distribution) => knobs.distribution = distribution,
            Knob::JitterReorders(reorders) => knobs.jitter_reorders = reorders,
            Knob::Loss(loss) => knobs.loss = loss,
            Knob::Duplicate(dice) => knobs.duplicate = dice,
            Knob::Reorder(reorder) => knobs.reorder = reorder,
            Knob::Corrupt(dice) => knobs.corrupt = dice,
            Knob::Forge(dice) => knobs.forge = dice,
            Knob::Truncate(dice) => knobs.truncate = dice,
            Knob::Rate(rate) => knobs.rate = rate,
            Knob::Limit(limit) => knobs.limit = limit,
            Knob::EcnThreshold(threshold) => knobs.ecn_threshold = threshold,
        }
    }
}

impl Knob {
    /// The knobs that are not the same in both, as they are `after`.
    pub fn turned(before: &Knobs, after: &Knobs) -> Vec<Knob> {
        let all = |knobs: &Knobs| {
            let Knobs {
                up,
                mtu,
                delay,
                jitter,
                jitter_correlation,
                distribution,
                jitter_reorders,
                loss,
                duplicate,
                reorder,
                corrupt,
                forge,
                truncate,
                rate,
                limit,
                ecn_threshold,
            } = knobs.clone();
            [
                Knob::Up(up),
                Knob::Mtu(mtu),
                Knob::Delay(delay),
                Knob::Jitter(jitter),
                Knob::JitterCorrelation(jitter_correlation),
                Knob::Distribution(distribution),
                Knob::JitterReorders(jitter_reorders),
                Knob::Loss(loss),
                Knob::Duplicate(duplicate),
                Knob::Reorder(reorder),
                Knob::Corrupt(corrupt),
                Knob::Forge(forge),
                Knob::Truncate(truncate),
                Knob::Rate(rate),
                Knob::Limit(limit),
                Knob::EcnThreshold(ecn_threshold),
            ]
        };
        let pairs = all(before).into_iter().zip(all(after));
        pairs
            .filter(|(before, after)| before != after)
            .map(|(_, after)| after)
            .collect()
    }
}

/// Something that changes in the network at a time.
#[derive(Clone, PartialEq, Eq)]
pub enum Change {
    /// A knob of this direction is turned.
    Knob(String, Knob),
    /// Nothing passes between the hosts of the two groups.
    Partition(Vec<String>, Vec<String>),
    /// Nothing passes from the first group's hosts to the second's; the other way is open.
    OneWayPartition(Vec<String>, Vec<String>),
    /// All partitions end.
    Heal,
    /// The host stops: its programs, its connections and what it knew are gone.
    Crash(String),
    /// The crashed host starts again.
    Restart(String),
}

/// One thing that goes wrong, or right again.
#[derive(Clone, PartialEq, Eq)]
pub enum Event {
    /// This strikes the direction's packet of this number.
    Packet(String, u64, Effect),
    /// This fault is in force on the direction from the start of the run.
    Fault(String, Fault),
    /// This changes at this time.
    At(Instant, Change),
}

/// All that goes wrong in a run.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    events: Vec<Event>,
}

impl Schedule {
    /// Nothing goes wrong.
    pub const fn new() -> Schedule {
        Schedule { events: Vec::new() }
    }

    /// Adds an effect on one packet.
    pub fn packet(mut self, direction: &str, number: u64, effect: Effect) -> Schedule {
        self.events
            .push(Event::Packet(direction.to_owned(), number, effect));
        self
    }

    /// Adds a targeted fault.
    pub fn fault(mut self, direction: &str, fault: Fault) -> Schedule {
        self.events.push(Event::Fault(direction.to_owned(), fault));
        self
    }

    /// Adds a change at a time.
    pub fn at(mut self, at: Instant, change: Change) -> Schedule {
        self.events.push(Event::At(at, change));
        self
    }

    /// Writes down what the dice did to a packet of this direction. What targeted faults did is not: they are events themselves.
    pub fn record(&mut self, direction: &str, verdict: &Verdict) {
        let events = verdict.chance.iter();
        self.events.extend(
            events.map(|effect| Event::Packet(direction.to_owned(), verdict.number, effect)),
        );
    }

    /// Adds an event of any kind.
    pub fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// The targeted faults of this direction end now, those that began.
    pub(super) fn end_faults(&mut self, direction: &str, now: Instant) {
        for event in &mut self.events {
            if let Event::Fault(name, fault) = event
                && name == direction
            {
                fault.end(now);
            }
        }
    }

    /// Everything, in the order it was added.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// What strikes this direction's packets, for [`super::link::Direction::replay`].
    pub fn effects<'a>(&'a self, direction: &'a str) -> impl Iterator<Item = (u64, Effect)> + 'a {
        self.events.iter().filter_map(move |event| match event {
            Event::Packet(name, number, effect) if name == direction => Some((*number, *effect)),
            _ => None,
        })
    }

    /// The faults of this direction, for [`super::link::Direction::add_fault`].
    pub fn faults<'a>(&'a self, direction: &'a str) -> impl Iterator<Item = &'a Fault> + 'a {
        self.events.iter().filter_map(move |event| match event {
            Event::Fault(name, fault) if name == direction => Some(fault),
            _ => None,
        })
    }

    /// The changes in the order of their times; those of one time in the order they were added.
    pub fn changes(&self) -> Vec<(Instant, &Change)> {
        let mut changes: Vec<(Instant, &Change)> = (self.events.iter())
            .filter_map(|event| match event {
                Event::At(at, change) => Some((*at, change)),
                _ => None,
            })
            .collect();
        changes.sort_by_key(|&(at, _)| at);
        changes
    }
}

impl FromIterator<Event> for Schedule {
    fn from_iter<I: IntoIterator<Item = Event>>(events: I) -> Schedule {
        Schedule {
            events: events.into_iter().collect(),
        }
    }
}

/// The Rust expression that makes it, one event a line.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule::new()")?;
        for event in &self.events {
            match event {
                Event::Packet(direction, number, effect) => {
                    let effect = source::effect(effect);
                    write!(f, "\n    .packet({direction:?}, {number}, {effect})")?;
                }
                Event::Fault(direction, fault) => {
                    write!(f, "\n    .fault({direction:?}, {fault:?})")?;
                }
                Event::At(at, change) => {
                    let (at, change) = (source::instant(*at), source::change(change));
                    write!(f, "\n    .at({at}, {change})")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::damage::Corruption;
    use crate::sim::fault::{Action, SYN};
    use crate::sim::link::Direction;

    /// A value and the source text it came from.
    macro_rules! pasted {
        ($expression:expr) => {
            ($expression, stringify!($expression))
        };
    }

    #[test]
    fn what_it_prints_is_the_code_that_makes_it() {
        let (schedule, text) = pasted!(
            Schedule::new()
                .packet("client>server", 17, Effect::Drop)
                .packet(
                    "client>server",
                    18,
                    Effect::Corrupt(Corruption::Forged, 4312)
                )
                .packet(
                    "server>client",
                    3,
                    Effect::Delay(Duration::from_micros(1500))
                )
                .packet("server>client", 4, Effect::Truncate(30))
                .packet("server>client", 5, Effect::Reorder)
                .packet("server>client", 6, Effect::Duplicate)
                .fault(
                    "server>client",
                    Fault::new(Action::Drop).flags(0x02, 0x10).nth(1)
                )
                .fault(
                    "server>client",
                    Fault::new(Action::Corrupt(Corruption::Forged))
                        .from_ip("10.0.0.2".parse().unwrap())
                        .from_port(443)
                        .tcp()
                        .content_type(23)
                        .record(3)
                )
                .fault(
                    "server>client",
                    Fault::new(Action::Delay(Duration::from_secs(1)))
                        .udp()
                        .dtls_epoch(1)
                        .since(Instant::from_millis(5))
                        .until(Instant::from_secs(2))
                        .every(2)
                )
                .at(
                    Instant::from_millis(250),
                    Change::Knob("client>server".into(), Knob::Up(false))
                )
                .at(
                    Instant::from_millis(260),
                    Change::Knob("client>server".into(), Knob::Rate(Rate::mbit(3)))
                )
                .at(
                    Instant::from_millis(270),
                    Change::Knob(
                        "client>server".into(),
                        Knob::Loss(Loss::GilbertElliott {
                            to_bad: Chance::percent(1),
                            to_good: Chance::percent(30),
                            good: Chance::percent(0),
                            bad: Chance::per_mille(999)
                        })
                    )
                )
                .at(
                    Instant::from_millis(280),
                    Change::Knob(
                        "client>server".into(),
                        Knob::Loss(Loss::List(vec![1, 2, 9]))
                    )
                )
                .at(
                    Instant::from_millis(285),
                    Change::Knob(
                        "client>server".into(),
                        Knob::Reorder(Reorder {
                            dice: Dice {
                                chance: Chance::percent(2),
                                correlation: Chance::percent(0)
                            },
                            gap: 5,
                            ahead: Some(Duration::from_millis(5))
                        })
                    )
                )
                .at(
                    Instant::from_millis(290),
                    Change::Knob(
                        "client>server".into(),
                        Knob::Distribution(Distribution::Pareto)
                    )
                )
                .at(
                    Instant::from_secs(1),
                    Change::Partition(vec!["a".into(), "b".into()], vec!["c".into()])
                )
                .at(Instant::from_secs(2), Change::Heal)
                .at(Instant::from_secs(3), Change::Crash("server".into()))
                .at(
                    Instant::from_nanos(3_000_000_001),
                    Change::Restart("server".into())
                )
        );
        let bare = |text: &str| -> String {
            text.chars()
                .filter(|c| !c.is_whitespace() && *c != '_')
                .collect()
        };
        // Trailing commas are the formatter's business.
        let bare = |text: &str| {
            bare(text)
                .replace(",)", ")")
                .replace(",}", "}")
                .replace(",]", "]")
        };
        assert_eq!(bare(&schedule.to_string()), bare(text));
    }

    #[test]
    fn every_knob_turns_its_field_and_no_other() {
        let knobs = [
            Knob::Up(false),
            Knob::Mtu(600),
            Knob::Delay(Duration::from_millis(1)),
            Knob::Jitter(Duration::from_millis(1)),
            Knob::JitterCorrelation(Chance::percent(1)),
            Knob::Distribution(Distribution::Normal),
            Knob::JitterReorders(true),
            Knob::Loss(Loss::Nth(5)),
            Knob::Duplicate(Dice::of(Chance::percent(1))),
            Knob::Reorder(Reorder {
                gap: 5,
                ..Reorder::default()
            }),
            Knob::Corrupt(Dice::of(Chance::percent(1))),
            Knob::Forge(Dice::of(Chance::percent(1))),
            Knob::Truncate(Dice::of(Chance::percent(1))),
            Knob::Rate(Rate::mbit(1)),
            Knob::Limit(5),
            Knob::EcnThreshold(Some(5)),
        ];
        let mut turned: Vec<Knobs> = vec![Knobs::default()];
        for knob in &knobs {
            let mut one = Knobs::default();
            knob.turn(&mut one);
            assert!(!turned.contains(&one), "{}", source::knob(knob));
            assert!(Knob::turned(&Knobs::default(), &one) == std::slice::from_ref(knob));
            turned.push(one);
        }
    }

    #[test]
    fn changes_come_in_the_order_of_their_times() {
        let schedule = Schedule::new()
            .at(Instant::from_secs(2), Change::Heal)
            .at(Instant::from_secs(1), Change::Crash("b".into()))
            .at(Instant::from_secs(1), Change::Crash("a".into()));
        let found: Vec<String> = (schedule.changes().iter())
            .map(|(_, change)| source::change(change))
            .collect();
        let crash = |host: &str| source::change(&Change::Crash(host.into()));
        assert_eq!(
            found,
            [crash("b"), crash("a"), source::change(&Change::Heal)]
        );
    }

    #[test]
    fn a_recorded_run_replays_without_the_dice() {
        let knobs = Knobs {
            delay: Duration::from_millis(10),
            jitter: Duration::from_millis(3),
            rate: Rate::mbit(50),
            loss: Loss::Random {
                chance: Chance::percent(3),
                correlation: Chance::percent(40),
            },
            duplicate: Dice::of(Chance::percent(2)),
            reorder: Reorder {
                dice: Dice::of(Chance::percent(2)),
                gap: 3,
                ahead: Some(Duration::from_millis(2)),
            },
            corrupt: Dice::of(Chance::percent(2)),
            forge: Dice::of(Chance::percent(2)),
            truncate: Dice::of(Chance::percent(2)),
            ..Knobs::default()
        };
        let run = |direction: &mut Direction, schedule: &mut Schedule| {
            let mut deliveries = Vec::new();
            for number in 0..5_000u32 {
                let packet =
                    crate::sim::damage::tests::packet(number % 2 == 0, 6, number, SYN, &[7; 200]);
                let verdict = direction.offer(
                    Instant::from_micros(u64::from(number) * 40),
                    packet,
                    &mut deliveries,
                );
                schedule.record("a>b", &verdict);
            }
            deliveries
        };
        let mut recorded = Schedule::new();
        let rolled = run(&mut Direction::new(3, "a>b", knobs.clone()), &mut recorded);
        assert!(recorded.events().len() > 400);
        let mut replaying = Direction::new(3, "a>b", knobs);
        replaying.replay(recorded.effects("a>b"));
        let mut again = Schedule::new();
        assert_eq!(run(&mut replaying, &mut again), rolled);
        assert_eq!(again, recorded);
    }
}
