//! Descriptors that clients handed over, and how they are closed: on a thread of its own.
//!
//! Closing can block: a TCP socket with `SO_LINGER`, a large file that was removed, a file on a slow network file system, a
//! Unix socket that has any of them in its queue. The last copy may well be ours, and a client that arranges that must stall
//! nobody but that thread. So such a descriptor is a [`ClientFd`] from the moment it arrives, and so is our end of every
//! socket that a client can send descriptors to; dropping it is all there is to do.

use crossbeam_channel::{Sender, unbounded};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use std::sync::LazyLock;

/// A descriptor that is closed where that may take its time.
#[derive(Debug)]
pub struct ClientFd(Option<OwnedFd>);

impl From<OwnedFd> for ClientFd {
    fn from(fd: OwnedFd) -> ClientFd {
        ClientFd(Some(fd))
    }
}

/// A socket pair for a client's socket: the stack's end, the client's, and the client's cookie. Streams for connections, messages for
/// listeners and datagrams.
pub(crate) fn pair(kind: SocketType) -> Result<(ClientFd, OwnedFd, u64), Errno> {
    let (ours, client) = socketpair(
        AddressFamily::UNIX,
        kind,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // The client decides itself whether its end blocks.
    rustix::io::ioctl_fionbio(&client, false)?;
    let cookie = sockopt::socket_cookie(&client)?;
    Ok((ours.into(), client, cookie))
}

impl AsFd for ClientFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0
            .as_ref()
            .expect("it is taken out only when it is dropped")
            .as_fd()
    }
}

impl AsRawFd for ClientFd {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for ClientFd {
    fn drop(&mut self) {
        let Some(fd) = self.0.take() else { return };
        if !is_memory(&fd)
            && let Some(closer) = &*CLOSER
        {
            // The thread never ends; should it have, the descriptor is closed with the error, here.
            let _ = closer.send(fd);
        }
    }
}

/// The way to the thread. What waits there is bounded by the process's descriptors. `None`, if no thread could be started:
/// then closing here is what is left.
static CLOSER: LazyLock<Option<Sender<OwnedFd>>> = LazyLock::new(|| {
    let (queue, doomed) = unbounded();
    std::thread::Builder::new()
        .name("uktls-closer".into())
        .spawn(move || doomed.into_iter().for_each(drop::<OwnedFd>))
        .inspect_err(|error| tracing::error!("no thread to close descriptors: {error}"))
        .ok()?;
    Some(queue)
});

/// The file system that all memfds are on.
static MEMORY: LazyLock<Option<u64>> = LazyLock::new(|| {
    let memfd = memfd_create("uktls-probe", MemfdFlags::CLOEXEC).ok()?;
    fstat(memfd).map(|stat| stat.st_dev).ok()
});

/// A memfd, as the client library attaches to marks: closing it blocks nobody, and there is one for every record.
fn is_memory(fd: &OwnedFd) -> bool {
    MEMORY.is_some_and(|memory| fstat(fd).is_ok_and(|stat| stat.st_dev == memory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn a_socket_that_lingers_is_closed_without_waiting_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut reader = listener.accept().unwrap().0;
        sender.set_nonblocking(true).unwrap();
        let mut unread = 0;
        while let Ok(sent) = sender.write(&[7; 65_536]) {
            unread += sent;
        }
        sender.set_nonblocking(false).unwrap();
        sockopt::set_socket_linger(&sender, Some(Duration::from_secs(60))).unwrap();
        // Closed here, it would wait a minute for a reader that comes only behind it, and then be reset.
        drop(ClientFd::from(OwnedFd::from(sender)));
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), unread);
    }

    #[test]
    fn memory_is_told_from_files() {
        let memfd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        assert!(is_memory(&memfd));
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(!is_memory(&file.into()));
    }
}
