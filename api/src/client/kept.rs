//! Descriptors that the library keeps for itself, in a process that may close them without knowing.
//!
//! Programs that become daemons call `closefrom(3)`, and what they open next gets the numbers of what was closed. So a kept
//! descriptor is looked at before each use: one that is not the file it was any more is neither used nor closed.

use rustix::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::io::Errno;
use std::sync::{Mutex, PoisonError};

/// A descriptor, and which file it was.
#[derive(Debug)]
pub(super) struct Kept {
    /// `None` only while it is dropped.
    fd: Option<OwnedFd>,
    identity: (u64, u64),
}

impl Kept {
    /// Keeps `fd`, a file or socket with an inode of its own (an eventfd has none).
    pub(super) fn new(fd: OwnedFd) -> Result<Kept, Errno> {
        Ok(Kept {
            identity: identity(fd.as_fd())?,
            fd: Some(fd),
        })
    }

    /// The descriptor, if it still is what it was.
    pub(super) fn get(&self) -> Option<BorrowedFd<'_>> {
        self.fd
            .as_ref()
            .map(AsFd::as_fd)
            .filter(|&fd| identity(fd) == Ok(self.identity))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.get().is_none() {
            // The number is nobody's, or another's.
            let _ = self.fd.take().map(IntoRawFd::into_raw_fd);
        }
    }
}

fn identity(fd: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

/// A descriptor to attach to marks that need none: any open file proves as well that no peer wrote the mark.
pub(super) fn token() -> Result<BorrowedFd<'static>, Errno> {
    // Leaked, so that a send needs no lock while it uses it; as often as the process closes what it did not open.
    static TOKEN: Mutex<Option<&'static Kept>> = Mutex::new(None);
    let mut token = TOKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(fd) = token.and_then(Kept::get) {
        return Ok(fd);
    }
    let fresh = Kept::new(memfd_create("uktls-mark", MemfdFlags::CLOEXEC)?)?;
    let fresh = &*Box::leak(Box::new(fresh));
    *token = Some(fresh);
    fresh.get().ok_or(Errno::BADF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::{AsRawFd, FromRawFd};
    use rustix::fs::{Mode, OFlags, open};

    fn null() -> OwnedFd {
        open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn a_stranger_in_its_place_is_neither_used_nor_closed() {
        let kept = Kept::new(memfd_create("kept", MemfdFlags::CLOEXEC).unwrap()).unwrap();
        let number = kept.get().unwrap().as_raw_fd();
        // What another part of the program does: it closes the number and gets it again for a file of its own. In one call,
        // since tests run beside each other.
        // SAFETY: the number is open, and forgotten by this binding below.
        let mut same = unsafe { OwnedFd::from_raw_fd(number) };
        rustix::io::dup2(null(), &mut same).unwrap();
        assert!(kept.get().is_none());
        drop(kept);
        assert_eq!(identity(same.as_fd()), identity(null().as_fd()));
    }

    #[test]
    fn a_token_is_one_until_it_is_lost() {
        let first = token().unwrap();
        assert_eq!(token().unwrap().as_raw_fd(), first.as_raw_fd());
        assert!(identity(first).is_ok());
    }
}
