//! What all sides of a benchmark share: a scratch folder with one file of noise and one certificate.

use super::super::{Context, Failure};
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Name of the file in the folder that servers serve.
pub(crate) const FILE: &str = "noise";

/// A folder that vanishes with this value.
#[derive(Debug)]
pub(crate) struct Workload {
    scratch: tempfile::TempDir,
    file_bytes: u64,
}

impl Workload {
    /// Makes the folder with an empty site; see [`make_file`](Self::make_file).
    pub(crate) fn new(name: &str) -> Result<Workload, Failure> {
        let scratch = tempfile::Builder::new()
            .prefix(&format!("uktls-{name}-"))
            .tempdir()
            .context(|| {
                "cannot make a temporary folder (set TMPDIR to choose another place)".into()
            })?;
        let workload = Workload {
            scratch,
            file_bytes: 0,
        };
        for folder in [workload.site(), workload.logs()] {
            std::fs::create_dir(&folder).context(|| format!("cannot make {}", folder.display()))?;
        }
        workload.certificate()?;
        Ok(workload)
    }

    /// Fills the site's file with this many pseudo-random bytes and leaves it in the page cache.
    pub(crate) fn make_file(&mut self, bytes: u64) -> Result<(), Failure> {
        self.make_named(FILE, bytes)?;
        self.file_bytes = bytes;
        Ok(())
    }

    /// Waits until the file is on the disk, so that its work does not fall into the first round, and reads the file once.
    pub(crate) fn settle(&self) -> Result<(), Failure> {
        let path = self.file();
        File::open(&path)
            .and_then(|file| file.sync_all())
            .context(|| format!("cannot write {}", path.display()))?;
        self.warm()
    }

    /// Reads the file once, so that whoever sends it next finds all of it in the page cache.
    ///
    /// Before every pass, not once: a kernel that reclaims what has not been touched for seconds (`CONFIG_DAMON_RECLAIM`)
    /// takes a tenth of the file back between two passes, and the disk would be measured in place of the server.
    pub(crate) fn warm(&self) -> Result<(), Failure> {
        let path = self.file();
        File::open(&path)
            .and_then(|mut file| std::io::copy(&mut file, &mut std::io::sink()))
            .map(|_| ())
            .context(|| format!("cannot read {}", path.display()))
    }

    /// Puts a file of pseudo-random bytes into the site.
    pub(crate) fn make_named(&self, name: &str, bytes: u64) -> Result<(), Failure> {
        let path = self.site().join(name);
        let failed = || format!("cannot write {bytes} bytes to {}", path.display());
        let mut file = File::create(&path).context(failed)?;
        let mut noise = Noise::new(bytes);
        let mut piece = vec![0; 1 << 20];
        let mut left = bytes;
        while left > 0 {
            let now = left.min(piece.len() as u64) as usize;
            noise.fill(&mut piece[..now]);
            file.write_all(&piece[..now]).context(failed)?;
            left -= now as u64;
        }
        Ok(())
    }

    fn certificate(&self) -> Result<(), Failure> {
        let names = [
            "localhost",
            "127.0.0.1",
            "10.77.0.1",
            "10.77.0.2",
            "10.78.0.2",
            "10.79.0.2",
        ];
        let made = rcgen::generate_simple_self_signed(names.map(String::from).to_vec())
            .context(|| "cannot make a certificate".into())?;
        let write = |path: PathBuf, text: String| {
            std::fs::write(&path, text).context(|| format!("cannot write {}", path.display()))
        };
        write(self.cert(), made.cert.pem())?;
        write(self.key(), made.signing_key.serialize_pem())
    }

    /// The folder itself.
    pub(crate) fn folder(&self) -> &Path {
        self.scratch.path()
    }
    /// The folder to serve.
    pub(crate) fn site(&self) -> PathBuf {
        self.folder().join("site")
    }
    /// Where programs' stderr goes.
    pub(crate) fn logs(&self) -> PathBuf {
        self.folder().join("logs")
    }
    /// The file of noise in it.
    pub(crate) fn file(&self) -> PathBuf {
        self.site().join(FILE)
    }
    /// Its length.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
    /// Self-signed certificate, ECDSA P-256, for every address the benchmarks use.
    pub(crate) fn cert(&self) -> PathBuf {
        self.folder().join("cert.pem")
    }
    /// Its key.
    pub(crate) fn key(&self) -> PathBuf {
        self.folder().join("key.pem")
    }
    /// Where the file is found on a server.
    pub(crate) fn url(&self, server: SocketAddr) -> String {
        format!("https://{server}/{FILE}")
    }

    /// What kind of file system the file lies on.
    pub(crate) fn file_system(&self) -> &'static str {
        // f_type is of another width on other machines; these fit all of them.
        const TMPFS: i128 = 0x0102_1994;
        const EXT4: i128 = 0xEF53;
        const XFS: i128 = 0x5846_5342;
        const BTRFS: i128 = 0x9123_683E;
        const OVERLAY: i128 = 0x794C_7630;
        match rustix::fs::statfs(self.folder()).map(|found| i128::from(found.f_type)) {
            Ok(TMPFS) => "tmpfs",
            Ok(EXT4) => "ext4",
            Ok(XFS) => "xfs",
            Ok(BTRFS) => "btrfs",
            Ok(OVERLAY) => "overlayfs",
            _ => "another file system",
        }
    }
}

/// Bytes that look random, the same for the same seed: xorshift64*, fast and with no ambition.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_length_asked_for_and_no_period() {
        let mut workload = Workload::new("test").unwrap();
        workload.make_file(100_003).unwrap();
        let bytes = std::fs::read(workload.file()).unwrap();
        assert_eq!(bytes.len(), 100_003);
        assert_ne!(bytes[..4096], bytes[4096..8192]);
        let folder = workload.folder().to_owned();
        drop(workload);
        assert!(!folder.exists());
    }
}
