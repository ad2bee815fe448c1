//! Values as the Rust expressions that make them, for schedules that are pasted into tests.

use super::fault::Action;
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
