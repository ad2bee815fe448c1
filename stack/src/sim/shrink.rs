//! Making a failing schedule small: delta debugging.
//!
//! Zeller and Hildebrandt's *ddmin* ("Simplifying and Isolating Failure-Inducing Input", 2002): try ever smaller parts of the schedule and
//! what is left without them, keep whatever still fails. The result is 1-minimal: it fails, and without any one of its events it does not. It need not be
//! the smallest there is.

use super::schedule::{Event, Schedule};

/// What shrinking came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shrunk {
    /// The smallest failing schedule found.
    pub schedule: Schedule,
    /// How many runs it took.
    pub runs: usize,
    /// No single event of it can be left out; otherwise the runs were used up.
    pub minimal: bool,
}

/// The least of `schedule` for which `fails` still says yes, within `max_runs` calls of it.
///
/// `fails` must say the same each time it is asked the same, which is what the simulator is for. `None` when `schedule` itself does not
/// fail: there is nothing to make smaller.
pub fn shrink(
    schedule: &Schedule,
    max_runs: usize,
    mut fails: impl FnMut(&Schedule) -> bool,
) -> Option<Shrunk> {
    let mut runs = 0;
    let mut try_it = |events: &[Event]| -> Option<bool> {
        if runs == max_runs {
            return None;
        }
        runs += 1;
        Some(fails(&events.iter().cloned().collect()))
    };
    let mut events = schedule.events().to_vec();
    if try_it(&events) != Some(true) {
        return None;
    }
    let minimal = minimise(&mut events, &mut try_it).is_some();
    Some(Shrunk {
        schedule: events.into_iter().collect(),
        runs,
        minimal,
    })
}

/// Takes out of the failing `events` what is not needed; `None` when the runs were used up before the end.
fn minimise(
    events: &mut Vec<Event>,
    try_it: &mut impl FnMut(&[Event]) -> Option<bool>,
) -> Option<()> {
    // The commonest discovery of all: it fails without any fault.
    if !events.is_empty() && try_it(&[])? {
        events.clear();
    }
    let mut parts = 2;
    while events.len() >= 2 {
        let size = events.len().div_ceil(parts);
        match smaller(events, size, try_it)? {
            Some((fewer, is_part)) => {
                // A part starts over in halves; a rest keeps the size of its parts.
                parts = if is_part { 2 } else { (parts - 1).max(2) };
                *events = fewer;
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(events.len()),
        }
    }
    Some(())
}

/// A part of `size` events that fails alone, or what is left without such a part; which of the two is said beside it.
fn smaller(
    events: &[Event],
    size: usize,
    try_it: &mut impl FnMut(&[Event]) -> Option<bool>,
) -> Option<Option<(Vec<Event>, bool)>> {
    for part in events.chunks(size) {
        if try_it(part)? {
            return Some(Some((part.to_vec(), true)));
        }
    }
    for start in (0..events.len()).step_by(size) {
        let end = events.len().min(start + size);
        let rest = [&events[..start], &events[end..]].concat();
        // With two parts each rest is the other part, which was tried.
        if events.len() > 2 * size && try_it(&rest)? {
            return Some(Some((rest, false)));
        }
    }
    Some(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::link::Effect;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn drops(numbers: impl IntoIterator<Item = u64>) -> Schedule {
        (numbers.into_iter()).fold(Schedule::new(), |schedule, number| {
            schedule.packet("a>b", number, Effect::Drop)
        })
    }

    fn numbers(schedule: &Schedule) -> BTreeSet<u64> {
        schedule.effects("a>b").map(|(number, _)| number).collect()
    }

    proptest! {
        #[test]
        fn finds_exactly_what_is_needed(len in 1u64..200, needed in prop::collection::btree_set(0u64..200, 0..6)) {
            let needed: BTreeSet<u64> = needed.into_iter().filter(|&number| number < len).collect();
            let shrunk = shrink(&drops(0..len), usize::MAX, |schedule| needed.is_subset(&numbers(schedule))).expect("all of it fails");
            prop_assert!(shrunk.minimal);
            prop_assert_eq!(numbers(&shrunk.schedule), needed);
        }

        #[test]
        fn whatever_the_failure_the_result_fails_and_is_minimal(len in 1u64..60, modulus in 1u64..7, sum in 1u64..100) {
            // Neither more nor fewer events keep this failing: the sum must be just so.
            let fails = |schedule: &Schedule| {
                let total: u64 = numbers(schedule).iter().sum();
                total >= sum && total % modulus == sum % modulus
            };
            let all = drops(0..len);
            let shrunk = shrink(&all, usize::MAX, fails);
            prop_assert_eq!(shrunk.is_some(), fails(&all));
            if let Some(shrunk) = shrunk {
                prop_assert!(shrunk.minimal && fails(&shrunk.schedule));
                let events = shrunk.schedule.events();
                for left_out in 0..events.len() {
                    let rest = [&events[..left_out], &events[left_out + 1..]].concat();
                    prop_assert!(!fails(&rest.into_iter().collect()));
                }
            }
        }
    }

    #[test]
    fn stops_when_the_runs_are_used_up_and_still_fails() {
        let fails = |schedule: &Schedule| numbers(schedule).contains(&77);
        let shrunk = shrink(&drops(0..1_000), 7, fails).expect("all of it fails");
        assert_eq!((shrunk.runs, shrunk.minimal), (7, false));
        assert!(fails(&shrunk.schedule));
    }

    #[test]
    fn one_needed_event_is_found_in_logarithmic_time() {
        let shrunk = shrink(&drops(0..1_000), usize::MAX, |schedule| {
            numbers(schedule).contains(&321)
        })
        .expect("all of it fails");
        assert_eq!(numbers(&shrunk.schedule), BTreeSet::from([321]));
        assert!(shrunk.runs < 40, "{} runs", shrunk.runs);
    }
}
