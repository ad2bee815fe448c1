//! Work on a file that may wait for a disk: what a helper thread does for a socket, and what it brings.

use super::sigbus::Window;
use crate::client_fd::ClientFd;
use rustix::io::{Errno, ReadWriteFlags};
use std::io::IoSliceMut;
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
    /// Take what waits in a pipe, and no more.
    Pipe,
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
            JobKind::Pipe => match take_from_pipe(&self.file, len) {
                Ok(bytes) => Helped::Bytes(bytes),
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

/// Up to `most` bytes that wait in a pipe. Nothing is waited for, whatever the pipe's own flags say: the client that has it may
/// change them at any time. (Whoever writes to the pipe may hold its lock, which is why this is a helper's work.)
fn take_from_pipe(pipe: &ClientFd, most: usize) -> Result<Vec<u8>, Errno> {
    // The position that means none.
    const HERE: u64 = u64::MAX;
    let waiting = rustix::io::ioctl_fionread(pipe)?;
    // An empty pipe is read as well, to tell one that nobody writes to any more.
    let room = usize::try_from(waiting)
        .unwrap_or(most)
        .clamp(1, most.max(1));
    let mut bytes = vec![0; room];
    let mut at = 0;
    while at < room {
        let mut slices = [IoSliceMut::new(&mut bytes[at..])];
        match rustix::io::preadv2(pipe, &mut slices, HERE, ReadWriteFlags::NOWAIT) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(Errno::INTR) => {}
            Err(errno) if at == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}
