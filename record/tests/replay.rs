//! The replay window against a model that remembers everything.

use std::collections::BTreeSet;

use proptest::prelude::*;
use uktls_record::replay::{Replay, ReplayWindow, WINDOW};

/// Every number ever accepted, and nothing forgotten.
#[derive(Default)]
struct Model {
    accepted: BTreeSet<u64>,
    /// Numbers below this count as accepted.
    start: u64,
}

impl Model {
    /// One more than the highest number that was accepted, or counts as such.
    fn next(&self) -> u64 {
        let after_highest = self.accepted.last().map_or(0, |highest| highest + 1);
        after_highest.max(self.start)
    }

    fn check(&self, sequence: u64) -> Result<(), Replay> {
        if self.next() > sequence + WINDOW {
            return Err(Replay::TooOld);
        }
        if sequence < self.start || self.accepted.contains(&sequence) {
            return Err(Replay::Seen);
        }
        Ok(())
    }
}

/// What a network does to a row of numbers, relative to the next expected one.
#[derive(Clone, Debug)]
enum Event {
    /// So many numbers are lost, then one arrives.
    Arrive { lost: u64 },
    /// A number this far behind the newest arrives: late, or again.
    Late { behind: u64 },
    /// As above, but it does not verify, so the window must not move.
    Forged { ahead: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..3_u64).prop_map(|lost| Event::Arrive { lost }),
        2 => (0..130_u64).prop_map(|lost| Event::Arrive { lost }),
        1 => (0..1_u64 << 40).prop_map(|lost| Event::Arrive { lost }),
        8 => (0..80_u64).prop_map(|behind| Event::Late { behind }),
        1 => any::<u32>().prop_map(|behind| Event::Late { behind: u64::from(behind) }),
        2 => (0..1_u64 << 47).prop_map(|ahead| Event::Forged { ahead }),
    ]
}

proptest! {
    #[test]
    fn the_window_agrees_with_perfect_memory(
        start in prop_oneof![Just(None), (0..200_u64).prop_map(Some), (0..1_u64 << 47).prop_map(Some)],
        events in prop::collection::vec(event(), 1..400),
    ) {
        let mut window = start.map_or(ReplayWindow::new(), ReplayWindow::starting_at);
        let mut model = Model { start: start.unwrap_or(0), ..Model::default() };
        for event in events {
            let next = model.next();
            let (sequence, verifies) = match event {
                Event::Arrive { lost } => (next + lost, true),
                Event::Late { behind } => match next.checked_sub(1 + behind) {
                    Some(sequence) => (sequence, true),
                    None => continue,
                },
                Event::Forged { ahead } => (next + ahead, false),
            };
            let verdict = window.check(sequence);
            prop_assert_eq!(verdict, model.check(sequence), "{} when {} is next", sequence, next);
            if verdict.is_ok() && verifies {
                window.accept(sequence);
                model.accepted.insert(sequence);
            }
            prop_assert_eq!(window.next(), model.next());
        }
    }

    #[test]
    fn any_order_within_the_window_delivers_each_number_once(
        order in Just((0..WINDOW).collect::<Vec<_>>()).prop_shuffle(),
        base in 0..1_u64 << 47,
    ) {
        let mut window = ReplayWindow::new();
        for round in 0..2 {
            let fresh = order.iter().filter(|sequence| {
                let fresh = window.check(base + **sequence).is_ok();
                if fresh {
                    window.accept(base + **sequence);
                }
                fresh
            });
            prop_assert_eq!(fresh.count(), if round == 0 { WINDOW as usize } else { 0 });
        }
    }
}
