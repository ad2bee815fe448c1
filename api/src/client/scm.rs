//! Messages with descriptors on Unix sockets, and waiting for them: the few system calls that both sides of a mark use.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut, Result};
use rustix::net::{
    MMsgHdr, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmmsg, sendmsg,
};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// Descriptors that one received message may carry before the kernel cuts them off.
pub(crate) const MAX_FDS: usize = 4;

/// What one `recvmsg` brought.
pub(crate) struct Received {
    /// Bytes.
    pub(crate) len: usize,
    /// Descriptors.
    pub(crate) fds: Vec<OwnedFd>,
    /// The message was longer than the buffer, or had more descriptors than fit.
    pub(crate) cut: bool,
    /// Some descriptors did not fit, in the message or in this process.
    pub(crate) fds_cut: bool,
}

/// `recvmsg` into `bufs`, descriptors close-on-exec.
pub(crate) fn receive(
    socket: impl AsFd,
    bufs: &mut [IoSliceMut<'_>],
    flags: RecvFlags,
) -> Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, bufs, &mut control, flags | RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    let fds_cut = message.flags.contains(ReturnFlags::CTRUNC);
    Ok(Received {
        len: message.bytes,
        fds,
        cut: fds_cut || message.flags.contains(ReturnFlags::TRUNC),
        fds_cut,
    })
}

/// `sendmsg` of `bytes` with `fds` attached; never raises SIGPIPE.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    sendmsg(socket, bytes, &mut control, flags | SendFlags::NOSIGNAL)
}

/// One message of a [`send_all_now`].
pub(crate) struct Outgoing<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) fd: Option<BorrowedFd<'a>>,
}

/// `sendmmsg` of up to three messages without blocking. Returns how many bytes of each went; Linux stops at the first that
/// did not go whole. Fails only if nothing of the first one went.
pub(crate) fn send_all_now(socket: impl AsFd, messages: &[Outgoing<'_>]) -> Result<[usize; 3]> {
    let mut spaces = [[MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]; 3];
    let fds: [Option<[BorrowedFd<'_>; 1]>; 3] =
        std::array::from_fn(|i| messages.get(i)?.fd.map(|fd| [fd]));
    let slices: [IoSlice<'_>; 3] =
        std::array::from_fn(|i| IoSlice::new(messages.get(i).map_or(&[], |m| m.bytes)));
    let mut controls = spaces
        .each_mut()
        .map(|space| SendAncillaryBuffer::new(space));
    for (control, fd) in controls.iter_mut().zip(&fds) {
        if let Some(fd) = fd
            && !control.push(SendAncillaryMessage::ScmRights(fd))
        {
            return Err(Errno::INVAL);
        }
    }
    let mut headers: Vec<MMsgHdr<'_>> = controls
        .iter_mut()
        .zip(&slices)
        .take(messages.len())
        .map(|(control, slice)| MMsgHdr::new(std::slice::from_ref(slice), control))
        .collect();
    let sent = sendmmsg(
        socket,
        &mut headers,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?;
    Ok(std::array::from_fn(|i| {
        if i < sent { headers[i].bytes_sent() } else { 0 }
    }))
}

/// Waits until `fd` shows one of `events`, hangs up, or the deadline passes (then nothing is shown).
pub(crate) fn wait(
    fd: impl AsFd,
    events: PollFlags,
    deadline: Option<Instant>,
) -> Result<PollFlags> {
    let mut fds = [PollFd::new(&fd, events)];
    let left =
        deadline.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
    poll(&mut fds, left.as_ref())?;
    Ok(fds[0].revents())
}

/// What `fd` shows right now of `events`.
pub(crate) fn glance(fd: impl AsFd, events: PollFlags) -> Result<PollFlags> {
    let mut fds = [PollFd::new(&fd, events)];
    poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )?;
    Ok(fds[0].revents())
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: time.as_secs().min(i64::MAX as u64) as i64,
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}
