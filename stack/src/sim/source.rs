//! Values as the Rust expressions that make them, for schedules that are pasted into tests.

use super::fault::Action;
use super::link::{Dice, Effect, Loss, Reorder};
use super::schedule::{Change, Knob};
use crate::clock::{Duration, Instant};

/// `Duration::from_millis(20)` and the like, in the largest unit that is exact.
pub(super) fn duration(duration: Duration) -> String {
    format!("Duration::{}", units(duration.as_nanos() as u64))
}

/// `Instant::from_millis(20)` and the like.
pub(super) fn instant(instant: Instant) -> String {
    match instant {
        Instant::ZERO => "Instant::ZERO".to_owned(),
        _ => format!("Instant::{}", units(instant.as_nanos())),
    }
}

fn units(nanos: u64) -> String {
    match nanos {
        nanos if nanos % 1_000_000_000 == 0 => format!("from_secs({})", nanos / 1_000_000_000),
        nanos if nanos % 1_000_000 == 0 => format!("from_millis({})", nanos / 1_000_000),
        nanos if nanos % 1_000 == 0 => format!("from_micros({})", nanos / 1_000),
        nanos => format!("from_nanos({nanos})"),
    }
}

/// `Action::Drop` and the like.
pub(super) fn action(action: &Action) -> String {
    match action {
        Action::Drop => "Action::Drop".to_owned(),
        Action::Duplicate => "Action::Duplicate".to_owned(),
        Action::Delay(delay) => format!("Action::Delay({})", duration(*delay)),
        Action::Corrupt(corruption) => format!("Action::Corrupt(Corruption::{corruption:?})"),
        Action::CorruptBit(corruption, bit) => {
            format!("Action::CorruptBit(Corruption::{corruption:?}, {bit})")
        }
        Action::Truncate(len) => format!("Action::Truncate({len})"),
    }
}

/// `Effect::Drop` and the like.
pub(super) fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Drop => "Effect::Drop".to_owned(),
        Effect::Duplicate => "Effect::Duplicate".to_owned(),
        Effect::Reorder => "Effect::Reorder".to_owned(),
        Effect::Delay(delay) => format!("Effect::Delay({})", duration(*delay)),
        Effect::Corrupt(corruption, bit) => {
            format!("Effect::Corrupt(Corruption::{corruption:?}, {bit})")
        }
        Effect::Truncate(len) => format!("Effect::Truncate({len})"),
    }
}

/// `Change::Heal` and the like.
pub(super) fn change(change: &Change) -> String {
    match change {
        Change::Knob(direction, turned) => {
            format!("Change::Knob({direction:?}.into(), {})", knob(turned))
        }
        Change::Partition(a, b) => format!("Change::Partition({}, {})", hosts(a), hosts(b)),
        Change::OneWayPartition(from, to) => {
            format!("Change::OneWayPartition({}, {})", hosts(from), hosts(to))
        }
        Change::Heal => "Change::Heal".to_owned(),
        Change::Crash(host) => format!("Change::Crash({host:?}.into())"),
        Change::Restart(host) => format!("Change::Restart({host:?}.into())"),
    }
}

fn hosts(names: &[String]) -> String {
    let names: Vec<String> = names
        .iter()
        .map(|name| format!("{name:?}.into()"))
        .collect();
    format!("vec![{}]", names.join(", "))
}

/// `Knob::Rate(Rate::mbit(3))` and the like.
pub(super) fn knob(knob: &Knob) -> String {
    match knob {
        Knob::Up(up) => format!("Knob::Up({up})"),
        Knob::Mtu(mtu) => format!("Knob::Mtu({mtu})"),
        Knob::Delay(delay) => format!("Knob::Delay({})", duration(*delay)),
        Knob::Jitter(jitter) => format!("Knob::Jitter({})", duration(*jitter)),
        Knob::JitterCorrelation(chance) => format!("Knob::JitterCorrelation({chance:?})"),
        Knob::Distribution(shape) => format!("Knob::Distribution(Distribution::{shape:?})"),
        Knob::JitterReorders(reorders) => format!("Knob::JitterReorders({reorders})"),
        Knob::Loss(kind) => format!("Knob::Loss({})", loss(kind)),
        Knob::Duplicate(thrown) => format!("Knob::Duplicate({})", dice(thrown)),
        Knob::Reorder(Reorder {
            dice: thrown,
            gap,
            ahead,
        }) => {
            let ahead = match ahead {
                Some(ahead) => format!("Some({})", duration(*ahead)),
                None => "None".to_owned(),
            };
            let thrown = dice(thrown);
            format!("Knob::Reorder(Reorder {{ dice: {thrown}, gap: {gap}, ahead: {ahead} }})")
        }
        Knob::Corrupt(thrown) => format!("Knob::Corrupt({})", dice(thrown)),
        Knob::Forge(thrown) => format!("Knob::Forge({})", dice(thrown)),
        Knob::Truncate(thrown) => format!("Knob::Truncate({})", dice(thrown)),
        Knob::Rate(rate) => format!("Knob::Rate({rate:?})"),
        Knob::Limit(limit) => format!("Knob::Limit({limit})"),
        Knob::EcnThreshold(threshold) => format!("Knob::EcnThreshold({threshold:?})"),
    }
}

fn dice(dice: &Dice) -> String {
    format!("{dice:?}")
}

fn loss(loss: &Loss) -> String {
    match loss {
        Loss::List(numbers) => format!("Loss::List(vec!{numbers:?})"),
        loss => format!("Loss::{loss:?}"),
    }
}
