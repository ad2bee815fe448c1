//! Virtual time for host programs.

use super::executor::Waiting;
use super::world::{self, TimerId, World};
use crate::clock::{Duration, Instant};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// The virtual time.
///
/// # Panics
/// Outside a simulation.
pub fn now() -> Instant {
    world::expect_current().now()
}

/// Waits.
///
/// # Panics
/// Outside a simulation.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(now() + duration)
}

/// Waits until then.
///
/// # Panics
/// Outside a simulation.
pub fn sleep_until(until: Instant) -> Sleep {
    Sleep {
        world: world::expect_current(),
        until,
        timer: None,
    }
}

/// The future of [`sleep`].
pub struct Sleep {
    world: Rc<World>,
    until: Instant,
    timer: Option<TimerId>,
}

impl std::fmt::Debug for Sleep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sleep")
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.world.now() >= self.until {
            return Poll::Ready(());
        }
        let timer = self
            .world
            .wake_at(self.until, self.timer, cx.waker().clone());
        self.timer = Some(timer);
        self.world.executor.waits_for(Waiting::Sleep(self.until));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.world.cancel_wake(timer);
        }
    }
}

/// The time given to [`timeout`] was over first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the time was over before the work was done")]
pub struct Elapsed;

impl From<Elapsed> for std::io::Error {
    fn from(elapsed: Elapsed) -> std::io::Error {
        std::io::Error::new(std::io::ErrorKind::TimedOut, elapsed)
    }
}

/// Waits for `future`, but no longer than this. What is done at that very time counts as done.
///
/// # Errors
/// [`Elapsed`] when the time was over first; the future is dropped.
///
/// # Panics
/// Outside a simulation.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut sleep = sleep(duration);
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut sleep).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}
