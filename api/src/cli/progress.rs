//! The bar that long transfers show.

use super::Globals;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// A transfer that lasts longer gets a bar.
const LONG: Duration = Duration::from_millis(750);

/// A bar on stderr if that is a terminal; drawn only once the transfer has lasted for a while.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// For this many bytes, if that is known.
    pub(crate) fn new(globals: &Globals, len: Option<u64>) -> Progress {
        let started = Instant::now();
        if globals.quiet {
            let bar = ProgressBar::hidden();
            return Progress { bar, started };
        }
        let template = match len {
            Some(_) => "{bar:30} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left",
            None => "{spinner} {bytes}  {binary_bytes_per_sec}",
        };
        let target = ProgressDrawTarget::stderr_with_hz(4);
        let style =
            ProgressStyle::with_template(template).expect("the templates above are well-formed");
        Progress {
            bar: ProgressBar::with_draw_target(len, target).with_style(style),
            started,
        }
    }

    /// How far it has come.
    pub(crate) fn at(&self, bytes: u64) {
        if self.started.elapsed() > LONG {
            self.bar.set_position(bytes);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
