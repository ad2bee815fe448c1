//! What the end-to-end tests have in common. The tests themselves are in `tests/tests/`, a file a subject.
//!
//! Each test has a network of its own ([`Network`]: a namespace with loopback, in which programs are started), brings a
//! stack up in it ([`Daemon`], [`Serve`]) and lets real programs be the other side: curl, `openssl`, nginx on the kernel's
//! TCP. Nothing of the machine's own network is touched, and no root is needed where user namespaces are allowed.
//!
//! Rules that everything here keeps:
//!
//! - No wait without a limit, and none for a time alone: [`wait_for`] and [`Process::end`] wait for a condition.
//! - Every program is ended by its own pid when its guard goes, and by the kernel should the test be killed. The namespace
//!   ends with its last process, the folder with its guard.
//! - A failure shows what the programs said.
//!
//! Most tests let `uktls up` bring the stack up ([`Daemon`]). Where packets are to be lost on their way to the kernel, it runs in the test's own process,
//! behind a wire ([`Wired`]). What is deliberately not here: virtual time; those tests are the stack's own.

mod files;
mod namespace;
mod peers;
mod process;
mod program;
mod stack;
mod wired;

pub use files::{Folder, checksum, dense, pattern, sparse};
pub use namespace::{Network, as_root};
pub use peers::{Certificate, Nginx, SServer, openssl_options};
pub use process::{Finished, Process, tool, unprivileged};
pub use program::{example, uktls_program};
pub use stack::{Daemon, Serve};
pub use wired::Wired;

use std::time::{Duration, Instant};

/// The limit of waits that should take no time: long enough for a machine under load, short enough to be waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The stack's address, its IPv6 address, and the host's ones, as all tests have them.
pub const STACK: &str = "10.77.0.2";
/// See [`STACK`].
pub const STACK6: &str = "fd77::2";
/// See [`STACK`].
pub const HOST: &str = "10.77.0.1";
/// See [`STACK`].
pub const HOST6: &str = "fd77::1";

/// Names of the TLS versions as `uktls` and curl know them.
pub const VERSIONS: [&str; 2] = ["1.2", "1.3"];
/// Names of the record ciphers as `uktls` knows them.
pub const CIPHERS: [&str; 3] = ["aes128gcm", "aes256gcm", "chacha20"];

/// File sizes that are awkward for records of 2^14 bytes and for buffers of 64 KiB.
pub const SIZES: [usize; 10] = [
    0,
    1,
    (1 << 14) - 1,
    1 << 14,
    (1 << 14) + 1,
    (1 << 16) - 1,
    1 << 16,
    (1 << 16) + 1,
    5 << 20,
    (9 << 20) + 7,
];

/// Waits until `condition` gives something; panics with `what` if it has not within `limit`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "{what} did not happen within {limit:?}"
        );
        // Between two looks at a condition that has no descriptor to wait on.
        std::thread::sleep(Duration::from_millis(5));
    }
}
