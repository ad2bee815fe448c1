//! What the daemon gives up once its devices are open.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use std::io;

/// Drops every capability for good and raises the limit on open files.
///
/// Effective, permitted, inheritable and ambient capabilities go; the bounding set too, as far as `CAP_SETPCAP` allows; and
/// with `NO_NEW_PRIVS` no program that is executed later can bring any back.
///
/// Capabilities belong to a *thread*, and new threads inherit them: call this after the devices are open and before the stack's and
/// the server's threads are started.
///
/// # Errors
/// What the system says; then the process must not go on.
pub fn drop_all() -> io::Result<()> {
    raise_open_files();
    // Bounding set first: dropping from it needs a capability.
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(one) {
            Ok(true) => match remove_capability_from_bounding_set(one) {
                Ok(()) | Err(Errno::PERM) => {}
                Err(errno) => return Err(errno.into()),
            },
            Ok(false) => {}
            // Beyond the last one this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    Ok(set_no_new_privs(true)?)
}

/// A descriptor a socket and more: the soft limit of 1024 would be the daemon's first wall.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // It cannot fail for a soft limit up to the hard one; if it did, the old limit would stand.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}
