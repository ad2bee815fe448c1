//! The client's end → wire, and the system calls under both ways.

use super::Tcp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut, pread};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::mem::MaybeUninit;
use uktls_record::{ContentType, Sealer};
use uktls_stack::mark::{HOLD_FILLER, Mark, SendfileResult};

const MAX_RECORD: usize = 1 << 14;

/// What stands between a client's bytes and the wire.
pub(super) struct Sender<'a> {
    pub(super) from: &'a Tcp,
    pub(super) to: &'a Tcp,
    pub(super) record: Vec<u8>,
    pub(super) open: bool,
    /// Type and missing bytes of a record that was announced with both.
    pub(super) typed: Option<(u8, usize)>,
    /// Filler still to be discarded.
    pub(super) skip: usize,
}

impl Sender<'_> {
    pub(super) fn bytes(&mut self, mut bytes: &[u8]) {
        let skip = self.skip.min(bytes.len());
        self.skip -= skip;
        bytes = &bytes[skip..];
        if let Some((content_type, missing)) = &mut self.typed {
            let (content_type, take) = (*content_type, bytes.len().min(*missing));
            *missing -= take;
            let whole = *missing == 0;
            self.record.extend(&bytes[..take]);
            bytes = &bytes[take..];
            if whole {
                self.typed = None;
                self.seal(content_type);
            }
        }
        let armed = self.from.state.lock().expect("sound").sealer.is_some();
        if !armed {
            return self.to.state.lock().expect("sound").wire.extend(bytes);
        }
        for &byte in bytes {
            self.record.push(byte);
            if self.record.len() == MAX_RECORD {
                self.seal(23);
            }
        }
        let drained = rustix::io::ioctl_fionread(&self.from.end).is_ok_and(|more| more == 0);
        if !self.open && self.typed.is_none() && drained {
            self.seal(23);
        }
    }

    fn seal(&mut self, content_type: u8) {
        let plaintext = std::mem::take(&mut self.record);
        if plaintext.is_empty() {
            return;
        }
        let mut state = self.from.state.lock().expect("sound");
        let record = match &mut state.sealer {
            Some(sealer) => {
                let mut record = vec![0; plaintext.len() + sealer.overhead()];
                sealer
                    .seal_from(ContentType(content_type), &plaintext, &mut record)
                    .expect("sealed");
                state.sealed.push((content_type, plaintext.len()));
                record
            }
            None => plaintext,
        };
        drop(state);
        self.to.state.lock().expect("sound").wire.extend(record);
    }

    pub(super) fn mark(&mut self, mark: Mark, fds: &[OwnedFd]) {
        match mark {
            Mark::TxKeys { key_id } => {
                self.seal(23);
                self.open = false;
                let mut state = self.from.state.lock().expect("sound");
                let keys = state.staged[key_id as usize].clone();
                state.sealer = Some(Sealer::new(&keys).expect("keys"));
                state.in_force = key_id as usize + 1;
            }
            Mark::Record { content_type, len } => {
                self.seal(23);
                self.open = false;
                self.typed = Some((content_type, len as usize));
            }
            Mark::RecordEnd => {
                self.seal(23);
                self.open = false;
            }
            Mark::RecordOpen => self.open = true,
            Mark::File {
                offset,
                len,
                reply,
                hold,
            } => {
                self.seal(23);
                self.open = false;
                loop {
                    let state = self.from.state.lock().expect("sound");
                    if state.over {
                        return;
                    } else if !state.stalled {
                        break;
                    }
                    drop(state);
                    nap(&self.from.end, PollFlags::empty());
                }
                let (mut sent, mut errno) = (0, 0);
                while sent < len {
                    let mut piece = vec![0; (len - sent).min(MAX_RECORD as u64) as usize];
                    match pread(&fds[0], &mut piece, offset + sent) {
                        Ok(0) => break,
                        Ok(got) => {
                            self.record = piece[..got].to_vec();
                            sent += got as u64;
                            self.seal(23);
                        }
                        Err(error) => {
                            errno = error.raw_os_error();
                            break;
                        }
                    }
                }
                if reply {
                    let result = SendfileResult { sent, errno }.encode();
                    let _ = rustix::net::send(&fds[1], &result, SendFlags::NOSIGNAL);
                }
                if hold {
                    self.skip = HOLD_FILLER;
                }
            }
            Mark::Control { .. } | Mark::Error { .. } | Mark::RxKeys | Mark::RxEnd => {
                panic!("marks of the other direction")
            }
            Mark::TxEnd
            | Mark::MaxPayload { .. }
            | Mark::Sequence
            | Mark::Raw { .. }
            | Mark::Pipe { .. } => {
                unimplemented!("AF_KTLS is tested on real stacks")
            }
        }
    }
}

pub(super) fn ends(kind: SocketType) -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
}

/// Waits a millisecond at most.
pub(super) fn nap(fd: &OwnedFd, events: PollFlags) {
    let _ = poll(
        &mut [PollFd::new(fd, events)],
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        }),
    );
}

pub(super) fn hung_up(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

pub fn send(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(
        fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)),
        "room for a few"
    );
    sendmsg(
        fd,
        &[IoSlice::new(bytes)],
        &mut control,
        flags | SendFlags::NOSIGNAL,
    )
}

pub fn receive(
    fd: BorrowedFd<'_>,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        fd,
        &mut [IoSliceMut::new(bytes)],
        &mut control,
        flags | RecvFlags::CMSG_CLOEXEC,
    )?;
    let fds = control.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok((received.bytes, fds.flatten().collect()))
}
