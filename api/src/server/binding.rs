//! The daemon's socket in the file system: one daemon a path, nobody else's hands on it, nothing left behind.
//!
//! `<path>.lock` is held by `flock` for as long as the daemon lives; only its holder removes or replaces the socket, so a
//! socket that a killed daemon left is replaced and a living daemon's never is. The socket's mode is set on the descriptor
//! *before* `bind`, which Linux gives to the file it makes: there is no moment in which others could connect, and the
//! process's umask stays alone.

use rustix::fd::OwnedFd;
use rustix::fs::{
    FileType, FlockOperation, Mode, OFlags, fchmod, flock, fstat, lstat, open, unlink,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Owner only.
const SOCKET_MODE: Mode = Mode::from_raw_mode(0o600);

/// Control connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// The listening socket, removed with its lock on drop.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) listener: OwnedFd,
    pub(super) path: PathBuf,
    lock_path: PathBuf,
    /// Held by being open.
    _lock: OwnedFd,
}

impl Binding {
    /// Takes the path over. Every error is one line that says what to do.
    pub(super) fn new(path: &Path) -> io::Result<Binding> {
        let address = SocketAddrUnix::new(path).map_err(|_| {
            failure(Errno::NAMETOOLONG, format!("{} is too long for a Unix socket (107 bytes); choose a shorter path with --socket", path.display()))
        })?;
        prepare_directory(path)?;
        let mut lock_path = OsString::from(path);
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = lock_file(path, &lock_path)?;

        match lstat(path) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => unlink(path)?,
            Ok(_) => {
                return Err(failure(
                    Errno::EXIST,
                    format!(
                        "{} exists and is not a socket; remove it, or choose another path with --socket",
                        path.display()
                    ),
                ));
            }
            Err(Errno::NOENT) => {}
            Err(errno) => {
                return Err(failure(
                    errno,
                    format!("{}: {}", path.display(), io::Error::from(errno)),
                ));
            }
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        fchmod(&listener, SOCKET_MODE)?;
        bind(&listener, &address).map_err(|errno| {
            failure(
                errno,
                format!(
                    "cannot make the socket {}: {}",
                    path.display(),
                    io::Error::from(errno)
                ),
            )
        })?;
        let binding = Binding {
            listener,
            path: path.to_path_buf(),
            lock_path,
            _lock: lock,
        };
        listen(&binding.listener, BACKLOG)?;
        Ok(binding)
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        // The lock is still held, so both are this daemon's. A failure leaves a stale socket, which the next one replaces.
        let _ = unlink(&self.path);
        let _ = unlink(&self.lock_path);
    }
}

/// Makes the socket's own directory, as `/run/uktls`; not its parents.
fn prepare_directory(path: &Path) -> io::Result<()> {
    let Some(directory) = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
    else {
        return Ok(());
    };
    match std::fs::DirBuilder::new().mode(0o755).create(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // An existing directory of a read-only or foreign parent; `open` of the lock tells whether it can be used.
        Err(_) if directory.is_dir() => Ok(()),
        Err(error) => {
            let text = format!(
                "no directory {} for the socket ({error}); create it, or choose another path with --socket",
                directory.display()
            );
            Err(io::Error::new(error.kind(), text))
        }
    }
}

fn lock_file(path: &Path, lock_path: &Path) -> io::Result<OwnedFd> {
    loop {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = open(lock_path, flags, SOCKET_MODE).map_err(|errno| {
            failure(
                errno,
                format!(
                    "cannot open {} ({}); choose another path with --socket",
                    lock_path.display(),
                    io::Error::from(errno)
                ),
            )
        })?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN) => {
                return Err(failure(
                    Errno::ADDRINUSE,
                    format!(
                        "another uktls daemon serves {}; stop it, or choose another path with --socket",
                        path.display()
                    ),
                ));
            }
            Err(errno) => return Err(errno.into()),
        }
        // A daemon that was just ending may have removed the file between `open` and `flock`: then this lock is on nothing.
        let ours = fstat(&lock)?;
        if lstat(lock_path)
            .is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino))
        {
            return Ok(lock);
        }
    }
}

fn failure(errno: Errno, text: String) -> io::Error {
    io::Error::new(io::Error::from(errno).kind(), text)
}
