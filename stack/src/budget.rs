//! How much memory streams may hold: each user's and everybody's, counted together over all shards.
//!
//! A socket settles its [`Charge`] once a turn, when its arena took or returned chunks or its receive side filled or
//! drained; nothing is counted by the packet. Being full refuses nothing that is already held: a sender stops taking
//! bytes from its client, and a receiver stops moving its window, until others return memory. So a limit can be passed
//! by one chunk, and one window's worth of data under way, for each socket that was busy when it was reached.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What is charged is rounded up to this many bytes.
const STEP: usize = 4096;

/// Bytes in use, and how many may be.
#[derive(Debug)]
struct Account {
    used: AtomicUsize,
    limit: usize,
}

impl Account {
    fn new(limit: usize) -> Arc<Account> {
        Arc::new(Account {
            used: AtomicUsize::new(0),
            limit,
        })
    }

    fn is_full(&self) -> bool {
        self.used.load(Relaxed) >= self.limit
    }

    fn change(&self, from: usize, to: usize) {
        if to > from {
            self.used.fetch_add(to - from, Relaxed);
        } else {
            self.used.fetch_sub(from - to, Relaxed);
        }
    }
}

/// The accounts of a stack.
#[derive(Debug)]
pub struct Budget {
    all: Arc<Account>,
    limit_per_uid: usize,
    /// Users with sockets. An account ends with its last charge.
    users: Mutex<HashMap<u32, Weak<Account>>>,
}

impl Budget {
    /// Accounts limited to `per_uid` bytes for each user and `total` for all.
    pub fn new(per_uid: usize, total: usize) -> Budget {
        Budget {
            all: Account::new(total),
            limit_per_uid: per_uid,
            users: Mutex::default(),
        }
    }

    /// Bytes charged altogether.
    pub fn used(&self) -> usize {
        self.all.used.load(Relaxed)
    }

    /// Opens a charge for a socket of `uid`, of nothing so far.
    pub fn charge(&self, uid: u32) -> Charge {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = users.entry(uid).or_default();
        let user = slot.upgrade().unwrap_or_else(|| {
            let account = Account::new(self.limit_per_uid);
            *slot = Arc::downgrade(&account);
            account
        });
        // Users come and go; whoever left no socket is forgotten when there are many.
        if users.len() > 1024 {
            #[expect(
                clippy::disallowed_methods,
                reason = "who stays does not depend on the order"
            )]
            users.retain(|_, account| account.strong_count() > 0);
        }
        Charge {
            user,
            all: self.all.clone(),
            charged: 0,
        }
    }
}

/// What one socket is charged. Dropping it returns everything.
#[derive(Debug)]
pub struct Charge {
    user: Arc<Account>,
    all: Arc<Account>,
    charged: usize,
}

impl Charge {
    /// The socket holds `used` bytes now.
    pub fn settle(&mut self, used: usize) {
        let used = used.next_multiple_of(STEP);
        if used != self.charged {
            self.user.change(self.charged, used);
            self.all.change(self.charged, used);
            self.charged = used;
        }
    }

    /// Whether the user, or all together, hold as much as they may.
    pub fn is_full(&self) -> bool {
        self.user.is_full() || self.all.is_full()
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.settle(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_at_the_limit_does_not_stop_another() {
        let budget = Budget::new(100_000, 250_000);
        let (mut a, mut b) = (budget.charge(1), budget.charge(1));
        let mut c = budget.charge(2);
        a.settle(60_000);
        assert!(!b.is_full());
        b.settle(40_000);
        assert!(a.is_full() && b.is_full() && !c.is_full());
        // Others fill up what there is for all.
        c.settle(90_000);
        let mut d = budget.charge(3);
        d.settle(80_000);
        assert!(c.is_full() && d.is_full());
        drop(d);
        assert!(!c.is_full());
    }

    #[test]
    fn what_is_charged_is_returned_to_the_byte() {
        let budget = Budget::new(1 << 20, 1 << 20);
        let mut charge = budget.charge(7);
        for used in [1, 4096, 4097, 300_000, 0, 262_144] {
            charge.settle(used);
            assert_eq!(budget.used(), used.next_multiple_of(STEP));
        }
        let other = budget.charge(7);
        drop(charge);
        assert_eq!(budget.used(), 0);
        assert!(!other.is_full());
    }
}
