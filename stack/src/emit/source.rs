//! Reading a client's Unix end: plain bytes straight into the caller's slices, and the [marks](crate::mark) among them.

use crate::client_fd::ClientFd;
use crate::mark::{self, MARK_LEN, Mark, MarkError};
use bytes::Bytes;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;

/// Descriptors that one mark may bring: a file, and a socket for the result.
pub const MAX_FDS: usize = 2;

/// What one read brought.
#[derive(Debug)]
pub struct Pulled {
    /// Plain bytes, now in the slices.
    pub plain: usize,
    /// What came behind them.
    pub then: Then,
}

/// What stands behind the plain bytes of one read.
#[derive(Debug)]
pub enum Then {
    /// The slices are full; there may be more.
    More,
    /// Nothing waits right now.
    Drained,
    /// A mark, with its descriptors.
    Mark(Mark, Vec<ClientFd>),
    /// Memory whose bytes go here: what `sendfile` is to a client in the same process.
    Memory(Bytes),
    /// The client shut its sending side down, or closed.
    End,
    /// The client closed with unread bytes on its side.
    Reset,
}

/// A message with a descriptor that is no mark: the client does not speak the protocol.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Not a mark.
    #[error(transparent)]
    Mark(#[from] MarkError),
    /// More descriptors than a mark has, or fewer bytes.
    #[error("a message with descriptors that is not a mark")]
    Shape,
    /// The system's answer.
    #[error("reading the client's end: {0}")]
    System(#[from] Errno),
}

/// Reads once from a non-blocking client end.
///
/// # Errors
/// [`PullError`] when what came with a descriptor is no mark; the socket is to be reset.
pub fn pull(end: impl AsFd, slices: &mut [IoSliceMut<'_>]) -> Result<Pulled, PullError> {
    let capacity: usize = slices.iter().map(|slice| slice.len()).sum();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(
            &end,
            slices,
            &mut ancillary,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(Errno::INTR) => {}
            other => break other,
        }
    };
    let n = match received {
        Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) => return Err(PullError::Shape),
        Ok(message) => message.bytes,
        Err(Errno::AGAIN) => {
            return Ok(Pulled {
                plain: 0,
                then: Then::Drained,
            });
        }
        Err(Errno::CONNRESET) => {
            return Ok(Pulled {
                plain: 0,
                then: Then::Reset,
            });
        }
        Err(errno) => return Err(errno.into()),
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights.map(ClientFd::from));
        }
    }
    if fds.is_empty() {
        let then = match n {
            0 if capacity > 0 => Then::End,
            n if n == capacity => Then::More,
            _ => Then::Drained,
        };
        return Ok(Pulled { plain: n, then });
    }
    let last = byte_at(slices, n.checked_sub(1).ok_or(PullError::Shape)?);
    let in_hand = mark::bytes_in_hand(last);
    let plain = n.checked_sub(in_hand).ok_or(PullError::Shape)?;
    let mut bytes = [0; MARK_LEN];
    for (i, byte) in bytes[..in_hand].iter_mut().enumerate() {
        *byte = byte_at(slices, plain + i);
    }
    // The rest of the message is there already: it was queued as one.
    let mut at = in_hand;
    while at < MARK_LEN {
        match rustix::net::recv(&end, &mut bytes[at..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Err(PullError::Shape),
            Ok((_, n)) => at += n,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(PullError::Shape),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(Pulled {
        plain,
        then: Then::Mark(Mark::decode(&bytes)?, fds),
    })
}

/// The byte at position `at` of what the slices hold, one behind the other.
fn byte_at(slices: &[IoSliceMut<'_>], mut at: usize) -> u8 {
    for slice in slices {
        match slice.get(at) {
            Some(&byte) => return byte,
            None => at -= slice.len(),
        }
    }
    unreachable!("the kernel does not read more bytes than the slices have room for")
}

/// Bytes that wait on the client's end, marks included.
pub fn waiting(end: impl AsFd) -> usize {
    rustix::io::ioctl_fionread(end).map_or(0, |n| n as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::OwnedFd;
    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
        SocketType,
    };
    use std::io::IoSlice;

    fn pair() -> (OwnedFd, OwnedFd) {
        rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket pair")
    }

    fn send(fd: &OwnedFd, bytes: &[u8]) {
        assert_eq!(
            rustix::net::send(fd, bytes, SendFlags::empty()),
            Ok(bytes.len())
        );
    }

    fn send_mark(fd: &OwnedFd, mark: Mark) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let sent = rustix::net::sendmsg(
            fd,
            &[IoSlice::new(&mark.encode())],
            &mut ancillary,
            SendFlags::empty(),
        );
        assert_eq!(sent, Ok(MARK_LEN));
    }

    #[test]
    fn a_mark_is_found_whatever_the_buffer_size() {
        for capacity in 1..200 {
            let (client, stack) = pair();
            send(&client, &[7; 50]);
            send_mark(&client, Mark::RecordEnd);
            send(&client, &[8; 50]);
            drop(client);
            let (mut before, mut after, mut marks) = (0, 0, 0);
            loop {
                let mut buffer = vec![0; capacity];
                let (front, back) = buffer.split_at_mut(capacity / 2);
                let pulled = pull(&stack, &mut [IoSliceMut::new(front), IoSliceMut::new(back)])
                    .expect("well-formed");
                for &byte in &buffer[..pulled.plain] {
                    assert_eq!(byte, if marks == 0 { 7 } else { 8 });
                    *(if marks == 0 { &mut before } else { &mut after }) += 1;
                }
                match pulled.then {
                    Then::Mark(mark, fds) => {
                        assert_eq!((mark, fds.len()), (Mark::RecordEnd, 1));
                        marks += 1;
                    }
                    Then::End => break,
                    _ => {}
                }
            }
            assert_eq!((before, marks, after), (50, 1, 50), "capacity {capacity}");
        }
    }

    #[test]
    fn a_descriptor_without_a_mark_is_refused() {
        let (client, stack) = pair();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [client.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(
            &client,
            &[IoSlice::new(b"no mark?")],
            &mut ancillary,
            SendFlags::empty(),
        )
        .expect("sent");
        assert!(matches!(
            pull(&stack, &mut [IoSliceMut::new(&mut [0; 100])]),
            Err(PullError::Shape)
        ));
    }
}
