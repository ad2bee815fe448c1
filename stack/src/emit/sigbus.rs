//! Mapped windows of files, and the signal that comes when a file is cut under one.
//!
//! A read of a mapped page that lies wholly behind the file's end raises SIGBUS. A window is populated before it is used, so that this
//! takes somebody to truncate the file in the very moment in which the shard seals from it. [`Window::with`] notes the window's
//! range in a thread-local while it is read; the handler that [`install`] sets puts a page of zeros over the hole,
//! notes that it did, and returns: the reading instruction goes on, sees zeros, and the caller throws its output away
//! ([`Faulted`]). A SIGBUS anywhere else goes to the handler that was there before.

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

/// Mappings are aligned to this; 4 KiB pages on x86-64, up to 64 KiB on arm64.
fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// A populated, read-only mapping of part of a file.
#[derive(Debug)]
pub struct Window {
    base: *mut c_void,
    mapped: usize,
    /// File offset of the mapping's first byte.
    start: u64,
}

// SAFETY: the mapping is plain memory of the process, owned by this value alone; nothing ties it to a thread.
unsafe impl Send for Window {}

/// The file was cut while it was read: what was read is worthless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faulted;

impl Window {
    /// Maps and populates `len` bytes at `offset`. This may wait for a disk: helper threads only.
    ///
    /// # Errors
    /// `EFAULT`: the file ends before the range does. Others: the file cannot be mapped, or not populated.
    pub fn map(file: impl AsFd, offset: u64, len: usize) -> Result<Window, Errno> {
        let start = offset - offset % page_size();
        let mapped = len + (offset - start) as usize;
        if mapped == 0 {
            return Err(Errno::INVAL);
        }
        // SAFETY: a fresh mapping at an address the kernel chooses touches no memory that anybody has.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                mapped,
                ProtFlags::READ,
                MapFlags::SHARED,
                file,
                start,
            )?
        };
        let window = Window {
            base,
            mapped,
            start,
        };
        // SAFETY: the range is the mapping just made; populating changes no content.
        unsafe { rustix::mm::madvise(base, mapped, Advice::LinuxPopulateRead)? };
        Ok(window)
    }

    /// Bytes of the window from file offset `offset` on.
    pub fn available(&self, offset: u64) -> usize {
        match offset.checked_sub(self.start) {
            Some(skip) => self.mapped.saturating_sub(skip as usize),
            None => 0,
        }
    }

    /// Hands `read` the bytes from file offset `offset` to the window's end, with the signal caught meanwhile.
    ///
    /// # Errors
    /// [`Faulted`] when a page was missing; whatever `read` made of it is to be thrown away.
    pub fn with<T>(&self, offset: u64, read: impl FnOnce(&[u8]) -> T) -> Result<T, Faulted> {
        let skip = self.mapped - self.available(offset);
        GUARDED.set((self.base as usize, self.mapped));
        FAULTED.set(false);
        // SAFETY: `base..base + mapped` is mapped readable until drop. Its content may change under the reader, as the
        // file's owner may write to it: the bytes are only ever input to a cipher or a copy, and a caller that needs
        // them stable checks the file afterwards.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.base.cast::<u8>().add(skip), self.mapped - skip)
        };
        let result = read(bytes);
        GUARDED.set((0, 0));
        if FAULTED.get() {
            Err(Faulted)
        } else {
            Ok(result)
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nobody borrows it any more. Failure leaves address space behind, no more.
        let _ = unsafe { rustix::mm::munmap(self.base, self.mapped) };
    }
}

thread_local! {
    /// The range that this thread reads right now: start and length. `const` and without destructor, so that a signal
    /// handler may use it.
    static GUARDED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
    /// A page in it was missing.
    static FAULTED: Cell<bool> = const { Cell::new(false) };
}

/// The action that was in force before [`install`].
static PREVIOUS: std::sync::OnceLock<libc::sigaction> = std::sync::OnceLock::new();

/// Sets the SIGBUS handler for the process, once. Without it a file that is cut in the wrong moment ends the process.
///
/// # Errors
/// What `sigaction` answers.
pub fn install() -> std::io::Result<()> {
    // SAFETY: all-zero is a valid `sigaction` (no flags, empty mask, default action) on Linux.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `previous` is writable and a null new action only reads the old one.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut previous) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    if PREVIOUS.set(previous).is_err() {
        return Ok(());
    }
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the three-argument signature that SA_SIGINFO asks for and only does what is
    // async-signal-safe: thread-local cells without destructors, mmap, sigaction.
    if unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands an SA_SIGINFO handler a valid siginfo; SIGBUS fills the address.
    let address = unsafe { (*info).si_addr() } as usize;
    let (base, len) = GUARDED.get();
    if address.wrapping_sub(base) < len {
        let page = rustix::param::page_size();
        let hole = address - address % page;
        // SAFETY: the page lies in this thread's own window, which stays mapped while it is guarded; it is replaced by
        // zeros in place.
        let patched = unsafe {
            libc::mmap(
                hole as *mut c_void,
                page,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if patched != libc::MAP_FAILED {
            FAULTED.set(true);
            return;
        }
    }
    chain(signal, info, context);
}

/// Not ours: what was there before decides.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(previous) = PREVIOUS.get() else {
        return;
    };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // A synchronous SIGBUS that nobody handles ends the process when the instruction runs again.
            // SAFETY: restores the action that was in force; async-signal-safe.
            unsafe { libc::sigaction(signal, previous, ptr::null_mut()) };
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the address was registered as a three-argument handler by whoever set it.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: the address was registered as a one-argument handler by whoever set it.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_cut_under_a_window_is_noticed_and_nobody_dies() {
        install().expect("a handler");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&[7; 3 * 4096]).expect("written");
        let window = Window::map(&file, 100, 3 * 4096 - 100).expect("mapped");
        assert_eq!(
            window.with(100, |bytes| (bytes.len(), bytes.iter().all(|&b| b == 7))),
            Ok((3 * 4096 - 100, true))
        );
        file.set_len(4096).expect("cut");
        assert_eq!(
            window.with(0, |bytes| bytes.iter().map(|&b| u64::from(b)).sum::<u64>()),
            Err(Faulted)
        );
        // The first page is still the file's.
        let window = Window::map(&file, 0, 4096).expect("mapped");
        assert_eq!(window.with(0, |bytes| bytes[4095]), Ok(7));
    }

    #[test]
    fn a_range_behind_the_end_is_refused() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&[7; 100]).expect("written");
        assert_eq!(Window::map(&file, 8192, 4096).err(), Some(Errno::FAULT));
    }
}
