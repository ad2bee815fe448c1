//! The timers of a connection. A handful of optional points in time; the event loop arms one timer for the earliest.

use crate::clock::Instant;

/// When what is due. `None` is "not running".
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Timers {
    /// Retransmission timeout (RFC 6298); SYN and SYN-ACK use it too.
    pub(super) retransmit: Option<Instant>,
    /// Tail loss probe (RFC 8985 §7).
    pub(super) probe: Option<Instant>,
    /// Reordering timer of RACK (RFC 8985 §6.3).
    pub(super) reorder: Option<Instant>,
    /// The next paced burst.
    pub(super) pace: Option<Instant>,
    /// Zero-window probes, and the override of sender-side SWS avoidance.
    pub(super) persist: Option<Instant>,
    /// Delayed acknowledgement.
    pub(super) acknowledge: Option<Instant>,
    /// Keep-alive.
    pub(super) keepalive: Option<Instant>,
    /// End of TIME-WAIT, or of a FIN-WAIT-2 without a reader.
    pub(super) linger: Option<Instant>,
}

impl Timers {
    /// The earliest.
    pub(super) fn earliest(&self) -> Option<Instant> {
        [
            self.retransmit,
            self.probe,
            self.reorder,
            self.pace,
            self.persist,
            self.acknowledge,
            self.keepalive,
            self.linger,
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// Whether `timer` is due; a due timer is stopped.
pub(super) fn expired(timer: &mut Option<Instant>, now: Instant) -> bool {
    let due = timer.is_some_and(|at| at <= now);
    if due {
        *timer = None;
    }
    due
}
