//! The kernel's TUN device without offload, through the `tun-tap` crate.
//!
//! Every packet is at most one MTU long and carries its whole checksum, both ways: what a raw TUN gives anybody. It serves where
//! the kernel refuses virtio-net headers, and as the measure that shows what they are worth. `tun-tap` opens and
//! names the interface; reading and writing then goes to its descriptor, because the crate's own `send` takes only a contiguous packet.

use super::tun::{check_name, open_error, write_gathered};
use super::{Capabilities, Device, Error, Offload};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use tun_tap::{Iface, Mode};

/// A TUN interface without offload; it has one queue.
#[derive(Debug)]
pub struct PlainTun {
    fd: OwnedFd,
    name: String,
    mtu: usize,
}

impl PlainTun {
    /// Opens the interface `name`, in the network namespace of the calling thread. An empty name lets the kernel choose one. The MTU is what
    /// [`Capabilities`] will name; [`interface::configure`](super::interface::configure) gives it to the kernel.
    pub fn open(name: &str, mtu: usize) -> Result<PlainTun, Error> {
        check_name(name)?;
        let iface =
            Iface::without_packet_info(name, Mode::Tun).map_err(|error| open_error(name, error))?;
        let name = iface.name().to_owned();
        // SAFETY: `into_raw_fd` gives up the descriptor, so that this is its only owner.
        let fd = unsafe { OwnedFd::from_raw_fd(iface.into_raw_fd()) };
        let prepare = || {
            rustix::io::ioctl_fionbio(&fd, true)?;
            rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)
        };
        prepare().map_err(|errno| {
            Error::system(
                format!("make the TUN interface {name} non-blocking"),
                errno.into(),
            )
        })?;
        Ok(PlainTun { fd, name, mtu })
    }

    /// The interface's name, as the kernel knows it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for PlainTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Device for PlainTun {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mtu: self.mtu,
            tso: false,
            uso: false,
            checksum: false,
            max_packet: self.mtu,
        }
    }

    fn send(
        &mut self,
        offload: &Offload,
        headers: &[u8],
        payload: &[IoSlice<'_>],
    ) -> io::Result<()> {
        super::check_sendable(
            &self.capabilities(),
            offload,
            super::packet_len(headers, payload),
        )?;
        write_gathered(&self.fd, &[headers], payload)
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<(usize, Offload)> {
        let length = rustix::io::read(&self.fd, packet)?;
        Ok((length, Offload::NONE))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }
}
