//! Closes descriptors that clients handed over, on a thread of its own.
//!
//! Closing can block: a TCP socket with `SO_LINGER`, a file on a slow network file system, a Unix socket that has either in
//! its queue. The last copy may well be ours, and a client that arranges that must stall nobody but this thread.

use crossbeam_channel::{Sender, unbounded};
use rustix::fd::OwnedFd;
use std::io;
use std::thread;

/// A handle to the thread, which ends when the handle is dropped and the queue is empty.
#[derive(Debug)]
pub(super) struct Closer(Sender<OwnedFd>);

impl Closer {
    pub(super) fn start() -> io::Result<Closer> {
        // What waits here is bounded by the process's descriptors.
        let (queue, doomed) = unbounded();
        thread::Builder::new()
            .name("uktls-closer".into())
            .spawn(move || doomed.into_iter().for_each(drop::<OwnedFd>))?;
        Ok(Closer(queue))
    }

    /// Closes `fd` soon.
    pub(super) fn close(&self, fd: OwnedFd) {
        // Without the thread, which only a panic in `close` could have ended, closing here is what is left.
        if let Err(unsent) = self.0.send(fd) {
            drop(unsent.into_inner());
        }
    }
}
