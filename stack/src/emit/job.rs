//! Work on a file that may wait for a disk: what a helper thread does for a socket, and what it brings.

use super::sigbus::Window;
use crate::client_fd::ClientFd;
use rustix::io::Errno;
use std::sync::Arc;

/// Work on a file that may wait for a disk: for a helper thread.
#[derive(Debug)]
pub struct Job {
    /// The file.
    pub file: Arc<ClientFd>,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// What to do with them.
    pub kind: JobKind,
}

/// What a helper does with a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Map and populate it.
    Map,
    /// Bring it into the page cache.
    Warm,
    /// Read it into a buffer.
    Read,
}

/// What a helper brought.
#[derive(Debug)]
pub enum Helped {
    /// A populated window.
    Window(Window),
    /// The range is in the page cache.
    Warm,
    /// The bytes; fewer than asked for only at the file's end.
    Bytes(Vec<u8>),
    /// The work failed.
    Failed(JobKind, Errno),
}

impl Job {
    /// Does the work, waiting as long as it takes.
    pub fn run(&self) -> Helped {
        let len = self.len as usize;
        match self.kind {
            JobKind::Map => match Window::map(&*self.file, self.offset, len) {
                Ok(window) => Helped::Window(window),
                Err(errno) => Helped::Failed(self.kind, errno),
            },
            JobKind::Warm | JobKind::Read => {
                let mut bytes = vec![0; len];
                let mut at = 0;
                while at < len {
                    match rustix::io::pread(&*self.file, &mut bytes[at..], self.offset + at as u64)
                    {
                        Ok(0) => break,
                        Ok(n) => at += n,
                        Err(Errno::INTR) => {}
                        Err(errno) => return Helped::Failed(self.kind, errno),
                    }
                }
                bytes.truncate(at);
                if self.kind == JobKind::Warm {
                    Helped::Warm
                } else {
                    Helped::Bytes(bytes)
                }
            }
        }
    }
}
