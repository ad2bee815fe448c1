//! A network of this process's own: a fresh network namespace, and without root a fresh user namespace around it.
//!
//! Nothing of the machine's network can be reached from inside, and nothing has to be undone: the namespace ends with its last
//! process. Children inherit it.

use super::{Context, Failure};
use rustix::thread::UnshareFlags;
use uktls_stack::device::interface;

/// Moves the calling process into a network namespace of its own, with loopback up.
///
/// To be called before the first thread is started: the kernel lets only a process with a single thread change its user namespace.
pub(crate) fn enter() -> Result<(), Failure> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let network = UnshareFlags::NEWNET;
    let alone = uid.is_root() && unshare(network).is_ok();
    if !alone {
        // Not root, or root without CAP_SYS_ADMIN as in many containers.
        unshare(network | UnshareFlags::NEWUSER).context(|| {
            "cannot make a network namespace (is kernel.unprivileged_userns_clone or an AppArmor rule in the way?)".into()
        })?;
        let map = |file: &str, text: String| {
            std::fs::write(format!("/proc/self/{file}"), text)
                .context(|| format!("cannot set up the user namespace ({file})"))
        };
        // The kernel wants this before an unprivileged process may write its gid_map.
        map("setgroups", "deny".into())?;
        map("uid_map", format!("0 {} 1", uid.as_raw()))?;
        map("gid_map", format!("0 {} 1", gid.as_raw()))?;
    }
    interface::loopback_up().map_err(Failure::new)
}

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the danger that `unshare_unsafe` names is in UnshareFlags::FILES, which is not among the flags: no descriptor
    // table is split.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}
