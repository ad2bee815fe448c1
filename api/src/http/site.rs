//! The served folder: opens what a path names, never outside of it.
//!
//! Every open is one `openat2` with `RESOLVE_BENEATH`, so that neither `..` nor a symbolic link, not even one that is
//! swapped in at the same moment, leads out. `O_NONBLOCK` keeps a FIFO from stopping the server; what is not a regular
//! file or a folder is refused after `fstat`.

use super::listing;
use super::status::Status;
use super::target::Target;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A folder that is served.
#[derive(Debug)]
pub(crate) struct Site {
    root: OwnedFd,
}

/// What a path named.
#[derive(Debug)]
pub(crate) enum Found {
    /// A regular file.
    File(FoundFile),
    /// A folder without an index, as a page.
    Listing(Vec<u8>),
    /// A folder that was named without the slash at the end.
    MissingSlash,
}

/// A regular file that is open.
#[derive(Debug)]
pub(crate) struct FoundFile {
    pub(crate) file: File,
    pub(crate) len: u64,
    pub(crate) modified: SystemTime,
    /// Strong validator (RFC 9110 §8.8.3): changes when the file's time or length does.
    pub(crate) etag: String,
    pub(crate) content_type: String,
}

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
/// `RESOLVE_BENEATH` answers EAGAIN when a rename raced with the look-up of `..`; a few tries settle it.
const TRIES: usize = 8;

impl Site {
    /// Opens the folder.
    pub(crate) fn open(path: &Path) -> io::Result<Site> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Site {
            root: rustix::fs::open(path, flags, Mode::empty())?,
        })
    }

    /// Finds what `target` names; `shown` is the path that a listing is titled with.
    pub(crate) fn find(&self, target: &Target, shown: &str) -> Result<Found, Status> {
        let (fd, stat) = self.open_beneath(&target.path)?;
        match FileType::from_raw_mode(stat.st_mode) {
            // `/file/` is not `/file`.
            FileType::RegularFile if target.folder => Err(Status::NotFound),
            FileType::RegularFile => Ok(Found::File(found_file(fd, &stat, &target.path))),
            FileType::Directory if !target.folder => Ok(Found::MissingSlash),
            FileType::Directory => {
                let index = target.path.join("index.html");
                match self.open_beneath(&index) {
                    Ok((file, stat))
                        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile =>
                    {
                        Ok(Found::File(found_file(file, &stat, &index)))
                    }
                    Ok(_) | Err(Status::NotFound) => listing::page(fd.as_fd(), shown)
                        .map(Found::Listing)
                        .map_err(refusal),
                    Err(status) => Err(status),
                }
            }
            _ => Err(Status::Forbidden),
        }
    }

    fn open_beneath(&self, path: &Path) -> Result<(OwnedFd, Stat), Status> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let mut tries = 0;
        let fd = loop {
            tries += 1;
            match openat2(&self.root, path, flags, Mode::empty(), RESOLVE) {
                Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => {}
                other => break other.map_err(refusal)?,
            }
        };
        let stat = fstat(&fd).map_err(refusal)?;
        Ok((fd, stat))
    }
}

fn found_file(fd: OwnedFd, stat: &Stat, path: &Path) -> FoundFile {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let modified = UNIX_EPOCH + Duration::from_secs(seconds);
    let etag = format!(
        "\"{:x}.{:x}-{:x}\"",
        stat.st_mtime, stat.st_mtime_nsec, stat.st_size
    );
    let mime = mime_guess::from_path(path).first_or_octet_stream();
    let charset = if mime.type_() == mime_guess::mime::TEXT {
        "; charset=utf-8"
    } else {
        ""
    };
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    FoundFile {
        file: File::from(fd),
        len,
        modified,
        etag,
        content_type: format!("{mime}{charset}"),
    }
}

fn refusal(errno: Errno) -> Status {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::INVAL => Status::NotFound,
        // XDEV is RESOLVE_BENEATH's answer to a link that leads out; NXIO a socket in the file system.
        Errno::ACCESS | Errno::PERM | Errno::XDEV | Errno::LOOP | Errno::NXIO | Errno::NODEV => {
            Status::Forbidden
        }
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN => Status::ServiceUnavailable,
        _ => Status::InternalServerError,
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::resolve;
    use super::*;
    use std::os::unix::fs::symlink;

    struct Fixture {
        _folder: tempfile::TempDir,
        site: Site,
    }

    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("sub/with-index")).expect("mkdir");
        std::fs::write(folder.path().join("secret"), "secret").expect("write");
        std::fs::write(root.join("a.txt"), "hello").expect("write");
        std::fs::write(root.join("sub/with-index/index.html"), "<p>").expect("write");
        symlink("../secret", root.join("out")).expect("link");
        symlink("/etc/passwd", root.join("absolute")).expect("link");
        symlink("a.txt", root.join("in")).expect("link");
        symlink("/proc/self/root/etc", root.join("sub/magic")).expect("link");
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            root.join("fifo"),
            Mode::from_raw_mode(0o644),
        )
        .expect("mkfifo");
        let site = Site::open(&root).expect("open");
        Fixture {
            _folder: folder,
            site,
        }
    }

    fn find(fixture: &Fixture, target: &str) -> Result<Found, Status> {
        fixture.site.find(&resolve(target)?, target)
    }

    #[test]
    fn files_folders_and_indexes() {
        let fixture = fixture();
        assert!(matches!(find(&fixture, "/a.txt"),
            Ok(Found::File(file)) if file.len == 5 && file.content_type == "text/plain; charset=utf-8"));
        assert!(matches!(find(&fixture, "/in"), Ok(Found::File(file)) if file.len == 5));
        assert!(matches!(find(&fixture, "/"), Ok(Found::Listing(_))));
        assert!(matches!(find(&fixture, "/sub"), Ok(Found::MissingSlash)));
        assert!(matches!(find(&fixture, "/sub/with-index/"),
            Ok(Found::File(file)) if file.len == 3 && file.content_type == "text/html; charset=utf-8"));
        assert!(matches!(find(&fixture, "/none"), Err(Status::NotFound)));
        assert!(matches!(find(&fixture, "/a.txt/"), Err(Status::NotFound)));
        assert!(matches!(find(&fixture, "/a.txt/b"), Err(Status::NotFound)));
        let long = format!("/{}", "x".repeat(300));
        assert!(matches!(find(&fixture, &long), Err(Status::NotFound)));
    }

    #[test]
    fn nothing_outside_and_nothing_that_blocks() {
        let fixture = fixture();
        for target in ["/out", "/absolute", "/sub/magic/passwd", "/fifo"] {
            assert!(
                matches!(find(&fixture, target), Err(Status::Forbidden)),
                "{target}"
            );
        }
    }
}
