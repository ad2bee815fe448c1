//! An association's end: a `SOCK_SEQPACKET` Unix socket, read a batch at a time.
//!
//! A client writes a message a record, and a system call a message would cost more than sealing it. `recvmmsg` takes
//! what waits with one call. `libc` is needed for it; nothing else here is unsafe.

use super::ends::send;
use crate::client_fd::ClientFd;
use crate::dtls::end::{self, FromClient, RecordEnd};
use crate::dtls::taken::{BATCH, Staging, Taken};
use crate::emit::source::MAX_FDS;
use crate::mark::MARK_LEN;
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::SendAncillaryBuffer;
use std::io::IoSlice;

/// The stack's side of an association's end. It leaves epoll with its descriptor, some time after it is dropped.
#[derive(Debug)]
pub(super) struct RecordsEnd {
    fd: ClientFd,
}

impl RecordsEnd {
    pub(super) fn new(fd: ClientFd) -> RecordsEnd {
        RecordsEnd { fd }
    }
}

impl RecordEnd for RecordsEnd {
    fn pull_batch(&mut self, staging: &mut Staging, taken: &mut Taken) {
        let mut headers = [Header::EMPTY; BATCH];
        let mut slices = [EMPTY_SLICE; BATCH];
        let mut rights = [Rights::default(); BATCH];
        for (((header, slice), rights), slot) in headers
            .iter_mut()
            .zip(&mut slices)
            .zip(&mut rights)
            .zip(staging.slots())
        {
            slice.iov_base = slot.as_mut_ptr().cast();
            slice.iov_len = slot.len();
            header.0.msg_hdr.msg_iov = slice;
            header.0.msg_hdr.msg_iovlen = 1;
            header.0.msg_hdr.msg_control = (&raw mut rights.0).cast();
            header.0.msg_hdr.msg_controllen = size_of::<Rights>();
        }
        let count = loop {
            // SAFETY: there are BATCH headers, which are mmsghdrs. Each names a slot of `staging`, which is
            // exclusively borrowed, and a control buffer,
            // both as long as it says and alive beyond the call.
            let count = unsafe {
                libc::recvmmsg(
                    self.fd.as_raw_fd(),
                    headers.as_mut_ptr().cast(),
                    BATCH as libc::c_uint,
                    libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
                    std::ptr::null_mut(),
                )
            };
            match usize::try_from(count) {
                Ok(count) => break count,
                Err(_) => match Errno::from_io_error(&std::io::Error::last_os_error()) {
                    Some(Errno::INTR) => {}
                    Some(Errno::AGAIN) => return taken.push_other(FromClient::Empty),
                    _ => return taken.push_other(FromClient::Closed),
                },
            }
        };
        for (slot, (header, room)) in headers[..count].iter().zip(staging.slots()).enumerate() {
            let len = header.0.msg_len as usize;
            // SAFETY: recvmmsg has filled in this header, and its control buffer is alive.
            let fds = unsafe { descriptors(&header.0.msg_hdr) };
            let cut = header.0.msg_hdr.msg_flags & libc::MSG_CTRUNC != 0;
            match len {
                0 if fds.is_empty() => taken.push_other(FromClient::Closed),
                1.. if fds.is_empty() && !cut => taken.push_record(slot, len),
                1..=MARK_LEN if !cut => taken.push_other(end::mark_of(&room[..len], fds)),
                _ => taken.push_other(FromClient::Malformed),
            }
        }
    }

    fn deliver(&mut self, content_type: u8, plaintext: &[u8]) -> bool {
        let content_type = [content_type];
        let message = [IoSlice::new(&content_type), IoSlice::new(plaintext)];
        send(&self.fd, &message, &mut SendAncillaryBuffer::default()).is_ok()
    }

    fn deliver_note(&mut self, errno: i32) {
        let note = end::note(errno);
        let message = [IoSlice::new(&note)];
        let _ = send(&self.fd, &message, &mut SendAncillaryBuffer::default());
    }
}

/// A header for `recvmmsg`, of which an array is made at once.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Header(libc::mmsghdr);

impl Header {
    // SAFETY: all zero is a header without address, slices and control messages.
    const EMPTY: Header = unsafe { std::mem::zeroed() };
}

const EMPTY_SLICE: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Room for one control message with the descriptors of a mark, aligned as its header has to be.
#[derive(Clone, Copy, Default)]
struct Rights([u64; RIGHTS_LEN.div_ceil(size_of::<u64>())]);

/// What that message takes.
const RIGHTS_LEN: usize =
    // SAFETY: a computation on its argument.
    unsafe { libc::CMSG_SPACE((MAX_FDS * size_of::<libc::c_int>()) as libc::c_uint) } as usize;

/// Takes over the descriptors that came with a message.
///
/// # Safety
/// The kernel must have filled in the header just now, its control buffer must be alive, and this may be done once only.
unsafe fn descriptors(header: &libc::msghdr) -> Vec<ClientFd> {
    let mut fds = Vec::new();
    // SAFETY: the caller's promise; the kernel has set the length of the control buffer to what it wrote there.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !control.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers that lie in the control buffer, and so does what they say is
        // behind them.
        unsafe {
            if ((*control).cmsg_level, (*control).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS)
            {
                let bytes = (*control).cmsg_len - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(control).cast::<libc::c_int>();
                for i in 0..bytes / size_of::<libc::c_int>() {
                    // The kernel has made these descriptors for us; nobody else closes them.
                    fds.push(OwnedFd::from_raw_fd(first.add(i).read_unaligned()).into());
                }
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    fds
}
