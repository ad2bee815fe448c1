//! Files to transfer, and the temporary folder they are in.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// `len` bytes that differ from place to place, so that a piece in the wrong place is noticed.
pub fn pattern(len: usize) -> Vec<u8> {
    let words = len.div_ceil(8) as u64;
    let mut bytes: Vec<u8> = (1..=words)
        .flat_map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    bytes.truncate(len);
    bytes
}

/// Makes a file of `len` bytes that is cheap to make: mostly holes, with its own offset written at every MiB.
pub fn sparse(path: &Path, len: u64) {
    let file = File::create(path).expect("a file in the test's own folder");
    file.set_len(len).expect("a length");
    for at in (0..len.saturating_sub(8)).step_by(1 << 20) {
        file.write_all_at(&(at + 1).to_le_bytes(), at)
            .expect("room on the disk");
    }
}

/// Makes a file of `mib` MiB without a hole and without a zero byte, each MiB different from the others.
pub fn dense(path: &Path, mib: u64) {
    let mut file = File::create(path).expect("a file in the test's own folder");
    let mut piece: Vec<u8> = pattern(1 << 20).into_iter().map(|byte| byte | 1).collect();
    for number in 1..=mib {
        let digits = format!("{number:016}");
        piece[..16].copy_from_slice(digits.as_bytes());
        file.write_all(&piece).expect("room on the disk");
    }
}

/// SHA-256 of everything that `source` gives, and the number of bytes.
pub fn checksum(mut source: impl Read) -> (u64, [u8; 32]) {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let got = source.read(&mut buffer).expect("a readable source");
        if got == 0 {
            return (total, hash.finalize().into());
        }
        hash.update(&buffer[..got]);
        total += got as u64;
    }
}

/// A temporary folder, removed with the guard.
#[derive(Debug)]
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// A fresh one.
    #[expect(clippy::new_without_default, reason = "it touches the disk")]
    pub fn new() -> Folder {
        let folder = tempfile::Builder::new().prefix("uktls-test-").tempdir();
        Folder(folder.expect("a temporary folder"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of `name` in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Writes a file and gives its path.
    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.join(name);
        let written = File::create(&path).and_then(|mut file| file.write_all(content));
        written.expect("a file in the test's own folder");
        path
    }

    /// Writes a file `SIZE.bin` of [`pattern`] for every one of `sizes`.
    pub fn write_sizes(&self, sizes: &[usize]) {
        for &size in sizes {
            self.write(&format!("{size}.bin"), &pattern(size));
        }
    }
}
