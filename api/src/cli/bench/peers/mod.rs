//! Who the stack is compared with: servers on the kernel's own TCP over loopback.

pub(crate) mod nginx;
pub(crate) mod rustls;
