//! One direction of a link: what becomes of a packet, and when it arrives.
//!
//! The knobs have netem's names and, where nothing else is said, its meaning. A packet passes them in this order:
//!
//! ```text
//!   up? ─ mtu ─ loss, duplicate, corrupt, truncate, reorder ─ targeted faults ─ limit, ECN mark ─ rate ─ delay ± jitter ─→
//!               (dice, or a recorded schedule)                                 (the bottleneck's queue)
//! ```
//!
//! It is sans-IO: time is an argument and [`Direction::offer`] answers at once with the times of arrival, so the simulator and a wire in
//! real time drive the same code, and a packet costs some tens of nanoseconds. Trade-off: a packet's future is settled when it is
//! offered; a knob turned later changes the packets behind it, not those under way.
//!
//! Where it departs from netem, because a model of a *link* is wanted and not a shaper's parts:
//! `limit` counts the packets that wait for the line and not those in flight; jitter does not reorder unless `jitter_reorders` says so;
//! correlation does not change how often something happens ([`Correlated`]).

use super::damage::{self, Corruption, Packet};
use super::distribution::Distribution;
use super::fault::{Fault, Faults};
use super::random::{Chance, Correlated, Stream};
use crate::clock::{Duration, Instant};
use std::collections::{BTreeMap, VecDeque};

/// Bits per second.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

impl Rate {
    /// Packets take no time to send and never queue.
    pub const UNLIMITED: Rate = Rate(0);

    /// `bits` a second; zero is [`Rate::UNLIMITED`], as in netem.
    pub const fn bits(bits: u64) -> Rate {
        Rate(bits)
    }

    /// `kilobits` thousand bits a second.
    pub const fn kbit(kilobits: u64) -> Rate {
        Rate(kilobits.saturating_mul(1_000))
    }

    /// `megabits` million bits a second.
    pub const fn mbit(megabits: u64) -> Rate {
        Rate(megabits.saturating_mul(1_000_000))
    }

    /// Bits a second, zero for no limit.
    pub const fn as_bits(self) -> u64 {
        self.0
    }

    /// How long `bytes` occupy the line.
    pub fn time_for(self, bytes: usize) -> Duration {
        if self.0 == 0 {
            return Duration::ZERO;
        }
        let bits = (bytes as u64).saturating_mul(8);
        Duration::from_nanos(bits.saturating_mul(1_000_000_000) / self.0)
    }
}

impl std::fmt::Debug for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => write!(f, "Rate::UNLIMITED"),
            bits if bits % 1_000_000 == 0 => write!(f, "Rate::mbit({})", bits / 1_000_000),
            bits if bits % 1_000 == 0 => write!(f, "Rate::kbit({})", bits / 1_000),
            bits => write!(f, "Rate::bits({bits})"),
        }
    }
}

/// Which packets are lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Loss {
    /// None.
    #[default]
    None,
    /// Each by chance; `correlation` is how much one loss brings the next.
    Random {
        /// How often.
        chance: Chance,
        /// How often the last packet's luck is repeated.
        correlation: Chance,
    },
    /// Gilbert and Elliott's two states, each with its own loss.
    GilbertElliott {
        /// Good to bad, per packet (netem's p).
        to_bad: Chance,
        /// Bad to good, per packet (netem's r).
        to_good: Chance,
        /// Loss while good (netem's 1-k).
        good: Chance,
        /// Loss while bad (netem's 1-h).
        bad: Chance,
    },
    /// Every nth packet: the nth, the 2nth and so on. Zero loses none.
    Nth(u64),
    /// The packets with these numbers, the direction's first being 1. In rising order.
    List(Vec<u64>),
}

impl Loss {
    /// Each packet by chance, on its own.
    pub const fn random(chance: Chance) -> Loss {
        Loss::Random {
            chance,
            correlation: Chance::NEVER,
        }
    }
}

/// Something done to some packets by chance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dice {
    /// How often.
    pub chance: Chance,
    /// How often the last packet's luck is repeated.
    pub correlation: Chance,
}

impl Dice {
    /// Each packet on its own.
    pub const fn of(chance: Chance) -> Dice {
        Dice {
            chance,
            correlation: Chance::NEVER,
        }
    }
}

/// Packets that overtake others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reorder {
    /// Which.
    pub dice: Dice,
    /// Only every `gap`th packet may (netem's *gap*); zero and one mean any.
    pub gap: u32,
    /// By how much of the delay it comes earlier; `None` is all of it, which is what netem does.
    pub ahead: Option<Duration>,
}

/// Everything that can be turned on one direction of a link, at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// A link that is down drops what it is offered; packets under way still arrive.
    pub up: bool,
    /// Longest IP packet in bytes; longer ones are dropped.
    pub mtu: usize,
    /// Time on the way, after the last bit was sent.
    pub delay: Duration,
    /// How much the delay scatters; see [`Distribution`] for what that means. A delay is never below zero.
    pub jitter: Duration,
    /// How often the last packet's scatter is repeated.
    pub jitter_correlation: Chance,
    /// The scatter's shape.
    pub distribution: Distribution,
    /// A packet with less delay may overtake, as in netem. Otherwise it arrives with the one in front.
    pub jitter_reorders: bool,
    /// Which packets are lost.
    pub loss: Loss,
    /// Which packets come twice.
    pub duplicate: Dice,
    /// Which packets overtake others.
    pub reorder: Reorder,
    /// Which packets have a bit flipped that the checksum catches.
    pub corrupt: Dice,
    /// Which packets have a payload bit flipped and the checksum repaired.
    pub forge: Dice,
    /// Which packets lose some of their end; their headers still promise it.
    pub truncate: Dice,
    /// How fast the line sends.
    pub rate: Rate,
    /// How many packets may wait for the line, the one being sent included; more are dropped. Only a rate makes a queue.
    pub limit: usize,
    /// A packet that finds this many in the queue is marked *congestion experienced* if its transport does ECN (RFC 3168).
    pub ecn_threshold: Option<usize>,
}

impl Default for Knobs {
    /// A perfect wire with Ethernet's MTU and netem's queue of 1,000 packets.
    fn default() -> Knobs {
        Knobs {
            up: true,
            mtu: 1500,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            jitter_correlation: Chance::NEVER,
            distribution: Distribution::Uniform,
            jitter_reorders: false,
            loss: Loss::None,
            duplicate: Dice::default(),
            reorder: Reorder::default(),
            corrupt: Dice::default(),
            forge: Dice::default(),
            truncate: Dice::default(),
            rate: Rate::UNLIMITED,
            limit: 1_000,
            ecn_threshold: None,
        }
    }
}

/// One thing done to one packet, with every choice made: what a schedule stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is lost.
    Drop,
    /// It arrives twice.
    Duplicate,
    /// It overtakes, as the knob [`Reorder::ahead`] says.
    Reorder,
    /// It arrives this much later than it would have.
    Delay(Duration),
    /// The bit of this number flips; see [`damage::corrupt`].
    Corrupt(Corruption, u32),
    /// Only the first so many bytes of the IP packet are left.
    Truncate(u32),
}

/// Everything done to one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// It is lost.
    pub drop: bool,
    /// It arrives twice.
    pub duplicate: bool,
    /// It overtakes.
    pub reorder: bool,
    /// It arrives this much later.
    pub delay: Duration,
    /// A bit flips.
    pub corrupt: Option<(Corruption, u32)>,
    /// Bytes that are left.
    pub truncate: Option<u32>,
}

impl Effects {
    /// Nothing is done.
    pub const NONE: Effects = Effects {
        drop: false,
        duplicate: false,
        reorder: false,
        delay: Duration::ZERO,
        corrupt: None,
        truncate: None,
    };

    /// Adds one more.
    pub fn add(&mut self, effect: Effect) {
        match effect {
            Effect::Drop => self.drop = true,
            Effect::Duplicate => self.duplicate = true,
            Effect::Reorder => self.reorder = true,
            Effect::Delay(delay) => self.delay += delay,
            Effect::Corrupt(corruption, bit) => self.corrupt = Some((corruption, bit)),
            Effect::Truncate(len) => self.truncate = Some(len),
        }
    }

    /// Whether nothing is done.
    pub fn is_none(&self) -> bool {
        *self == Effects::NONE
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = Effect> + use<> {
        [
            self.drop.then_some(Effect::Drop),
            self.duplicate.then_some(Effect::Duplicate),
            self.reorder.then_some(Effect::Reorder),
            (self.delay > Duration::ZERO).then_some(Effect::Delay(self.delay)),
            self.corrupt
                .map(|(corruption, bit)| Effect::Corrupt(corruption, bit)),
            self.truncate.map(Effect::Truncate),
        ]
        .into_iter()
        .flatten()
    }

    /// What either of two does.
    fn union(mut self, other: &Effects) -> Effects {
        other.iter().for_each(|effect| self.add(effect));
        self
    }
}

/// Why a packet does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropCause {
    /// The link is down.
    Down,
    /// Longer than the MTU.
    Mtu,
    /// The loss knob, or a recorded loss.
    Loss,
    /// A targeted fault.
    Fault,
    /// The queue was full.
    Limit,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The packet's number in this direction; the first is 1. Copies share their original's.
    pub number: u64,
    /// Why it does not arrive at all; `None` when at least one copy does.
    pub dropped: Option<DropCause>,
    /// What the dice, or the schedule in their place, did: what has to be recorded to repeat it.
    pub chance: Effects,
    /// What targeted faults did.
    pub fault: Effects,
    /// It was marked *congestion experienced*.
    pub marked: bool,
}

/// A packet that will arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery<P> {
    /// When its last bit arrives.
    pub at: Instant,
    /// What arrives.
    pub packet: P,
}

/// What happened so far in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Packets offered.
    pub offered: u64,
    /// Packets that arrive, copies included.
    pub delivered: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Lost by the loss knob or by schedule.
    pub lost: u64,
    /// Dropped by targeted faults.
    pub faulted: u64,
    /// Dropped because the queue was full.
    pub overflowed: u64,
    /// Dropped because the link was down.
    pub down: u64,
    /// Dropped for their length.
    pub too_long: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Packets that overtook.
    pub reordered: u64,
    /// Packets damaged: corrupted, forged, truncated.
    pub damaged: u64,
    /// Packets marked *congestion experienced*.
    pub marked: u64,
}

/// Dice of one direction, one stream a purpose.
#[derive(Debug)]
struct Streams {
    loss: Correlated,
    /// Gilbert and Elliott's state.
    bad: bool,
    duplicate: Correlated,
    reorder: Correlated,
    jitter: Correlated,
    corrupt: Correlated,
    forge: Correlated,
    truncate: Correlated,
    /// Which bit flips and how much is cut off.
    place: Stream,
    /// The same for targeted faults.
    fault: Stream,
}

/// One direction of a link.
#[derive(Debug)]
pub struct Direction {
    /// May be turned between any two packets.
    pub knobs: Knobs,
    streams: Streams,
    faults: Faults,
    /// Effects by packet number, in place of the dice.
    recorded: Option<BTreeMap<u64, Effects>>,
    /// When the line has sent everything it was given.
    idle_at: Instant,
    /// When each packet in the queue will have been sent.
    queue: VecDeque<Instant>,
    /// When the last packet arrives that did not overtake.
    last_arrival: Instant,
    since_reorder: u32,
    counters: LinkCounters,
}

impl Direction {
    /// A direction whose dice depend on the seed and on its name alone.
    pub fn new(seed: u64, name: &str, knobs: Knobs) -> Direction {
        let stream = |purpose| Stream::new(seed, name, purpose);
        let dice = |purpose| Correlated::new(stream(purpose));
        Direction {
            knobs,
            streams: Streams {
                loss: dice("loss"),
                bad: false,
                duplicate: dice("duplicate"),
                reorder: dice("reorder"),
                jitter: dice("jitter"),
                corrupt: dice("corrupt"),
                forge: dice("forge"),
                truncate: dice("truncate"),
                place: stream("place"),
                fault: stream("fault"),
            },
            faults: Faults::default(),
            recorded: None,
            idle_at: Instant::ZERO,
            queue: VecDeque::new(),
            last_arrival: Instant::ZERO,
            since_reorder: 0,
            counters: LinkCounters::default(),
        }
    }

    /// Adds a targeted fault; it counts matches from now on.
    pub fn add_fault(&mut self, fault: Fault) {
        self.faults.add(fault);
    }

    /// Takes all targeted faults away.
    pub fn clear_faults(&mut self) {
        self.faults = Faults::default();
    }

    /// From now on the dice do nothing and these effects strike the packets of these numbers. Jitter, which is the link's
    /// nature and not a fault, still comes from the seed; targeted faults stay in force.
    pub fn replay(&mut self, effects: impl IntoIterator<Item = (u64, Effect)>) {
        let recorded = self.recorded.get_or_insert_default();
        for (number, effect) in effects {
            recorded.entry(number).or_default().add(effect);
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> &LinkCounters {
        &self.counters
    }

    /// Packets that wait for the line at `now`, the one being sent included.
    pub fn queued(&mut self, now: Instant) -> usize {
        while self.queue.front().is_some_and(|&sent| sent <= now) {
            self.queue.pop_front();
        }
        self.queue.len()
    }

    /// Offers the link a packet; what arrives of it is appended to `deliveries`. Calls come in the order of `now`.
    pub fn offer<P: Packet>(
        &mut self,
        now: Instant,
        mut packet: P,
        deliveries: &mut Vec<Delivery<P>>,
    ) -> Verdict {
        self.counters.offered += 1;
        let mut verdict = Verdict {
            number: self.counters.offered,
            dropped: None,
            chance: Effects::NONE,
            fault: Effects::NONE,
            marked: false,
        };
        if !self.knobs.up {
            self.counters.down += 1;
            verdict.dropped = Some(DropCause::Down);
            return verdict;
        }
        if packet.bytes().len() > self.knobs.mtu {
            self.counters.too_long += 1;
            verdict.dropped = Some(DropCause::Mtu);
            return verdict;
        }
        verdict.chance = match &self.recorded {
            None => self.roll(verdict.number, packet.bytes()),
            Some(recorded) => recorded
                .get(&verdict.number)
                .copied()
                .unwrap_or(Effects::NONE),
        };
        if !self.faults.is_empty() {
            verdict.fault = self
                .faults
                .inspect(now, packet.bytes(), &mut self.streams.fault);
        }
        if verdict.fault.drop {
            self.counters.faulted += 1;
            verdict.dropped = Some(DropCause::Fault);
            return verdict;
        }
        if verdict.chance.drop {
            self.counters.lost += 1;
            verdict.dropped = Some(DropCause::Loss);
            return verdict;
        }
        let effects = verdict.chance.union(&verdict.fault);
        if !effects.is_none() {
            if let Some((corruption, bit)) = effects.corrupt {
                damage::corrupt(packet.bytes_mut(), corruption, bit);
            }
            if let Some(len) = effects.truncate {
                packet.truncate(len as usize);
            }
            self.counters.damaged +=
                u64::from(effects.corrupt.is_some() || effects.truncate.is_some());
        }
        let copy = effects.duplicate.then(|| packet.duplicate());
        let arrives = self.send(now, packet, &effects, &mut verdict.marked, deliveries);
        let copy_arrives = copy.is_some_and(|copy| {
            self.counters.duplicated += 1;
            self.send(now, copy, &effects, &mut verdict.marked, deliveries)
        });
        if !arrives && !copy_arrives {
            verdict.dropped = Some(DropCause::Limit);
        }
        verdict
    }

    /// The queue, the line and the way; says whether the packet arrives.
    fn send<P: Packet>(
        &mut self,
        now: Instant,
        mut packet: P,
        effects: &Effects,
        marked: &mut bool,
        deliveries: &mut Vec<Delivery<P>>,
    ) -> bool {
        let mut sent = now;
        if self.knobs.rate != Rate::UNLIMITED {
            let waiting = self.queued(now);
            if waiting >= self.knobs.limit {
                self.counters.overflowed += 1;
                return false;
            }
            if self
                .knobs
                .ecn_threshold
                .is_some_and(|threshold| waiting >= threshold)
                && damage::mark_congestion(packet.bytes_mut())
            {
                self.counters.marked += 1;
                *marked = true;
            }
            sent = self.idle_at.max(now) + self.knobs.rate.time_for(packet.bytes().len());
            self.idle_at = sent;
            self.queue.push_back(sent);
        }
        let mut delay = self.knobs.delay;
        if self.knobs.jitter > Duration::ZERO {
            let bits = self.streams.jitter.bits(self.knobs.jitter_correlation);
            let offset = self
                .knobs
                .distribution
                .offset(self.knobs.jitter.as_nanos() as u64, bits);
            let nanos = (delay.as_nanos() as u64).saturating_add_signed(offset);
            delay = Duration::from_nanos(nanos);
        }
        let at = if effects.reorder {
            self.counters.reordered += 1;
            let ahead = self.knobs.reorder.ahead.unwrap_or(delay);
            sent + delay.saturating_sub(ahead) + effects.delay
        } else if effects.delay > Duration::ZERO {
            // Held back alone: those behind it are not.
            sent + delay + effects.delay
        } else {
            let at = sent + delay;
            let at = if self.knobs.jitter_reorders {
                at
            } else {
                at.max(self.last_arrival)
            };
            self.last_arrival = self.last_arrival.max(at);
            at
        };
        self.counters.delivered += 1;
        self.counters.delivered_bytes += packet.bytes().len() as u64;
        deliveries.push(Delivery { at, packet });
        true
    }

    /// Rolls the dice for one packet.
    fn roll(&mut self, number: u64, packet: &[u8]) -> Effects {
        let mut effects = Effects {
            drop: self.is_lost(number),
            ..Effects::NONE
        };
        let Direction { knobs, streams, .. } = self;
        if streams
            .duplicate
            .happens(knobs.duplicate.chance, knobs.duplicate.correlation)
        {
            effects.duplicate = true;
        }
        if knobs.reorder.dice.chance != Chance::NEVER {
            // netem's rule: the packets of a gap go the long way, then one may overtake.
            self.since_reorder += 1;
            if self.since_reorder >= knobs.reorder.gap
                && streams
                    .reorder
                    .happens(knobs.reorder.dice.chance, knobs.reorder.dice.correlation)
            {
                effects.reorder = true;
                self.since_reorder = 0;
            }
        }
        for (corruption, dice, draws) in [
            (Corruption::Wire, knobs.corrupt, &mut streams.corrupt),
            (Corruption::Forged, knobs.forge, &mut streams.forge),
        ] {
            if draws.happens(dice.chance, dice.correlation) {
                let bits = damage::damageable_bits(packet, corruption);
                if bits > 0 {
                    effects.corrupt = Some((corruption, streams.place.below(bits) as u32));
                }
            }
        }
        if streams
            .truncate
            .happens(knobs.truncate.chance, knobs.truncate.correlation)
        {
            effects.truncate = Some(streams.place.below(packet.len() as u64) as u32);
        }
        effects
    }

    fn is_lost(&mut self, number: u64) -> bool {
        match &self.knobs.loss {
            Loss::None => false,
            Loss::Random {
                chance,
                correlation,
            } => self.streams.loss.happens(*chance, *correlation),
            Loss::GilbertElliott {
                to_bad,
                to_good,
                good,
                bad,
            } => {
                let draws = &mut self.streams.loss;
                let change = if self.streams.bad { *to_good } else { *to_bad };
                self.streams.bad ^= draws.happens(change, Chance::NEVER);
                draws.happens(if self.streams.bad { *bad } else { *good }, Chance::NEVER)
            }
            Loss::Nth(n) => *n > 0 && number.is_multiple_of(*n),
            Loss::List(numbers) => numbers.binary_search(&number).is_ok(),
        }
    }
}

#[cfg(test)]
mod tests;
