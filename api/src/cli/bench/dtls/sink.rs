//! A UDP socket of the kernel that throws away what comes, and counts it.
//!
//! Both sides of the benchmark send to this one program. It drains one socket with one thread, copies nothing
//! (`MSG_TRUNC`: the datagram goes, its length is told), and counts datagrams, so that what is measured is the sender.
//!
//! **`UDP_GRO`.** A super-datagram that is for this machine is cut by the receiving half of the kernel's UDP, unless the
//! socket says that it takes it whole: then the length of each datagram comes beside the bytes, and the reader
//! cuts. Receivers that are after speed say so (QUIC's do), and for datagrams from a network card the kernel puts them together
//! for the same purpose. The cut costs more than sealing does, and since delivery to a local socket happens inside the
//! sender's system call, it is the sender's time. It is no part of sending: a card would cut, or the reader. So the sinks
//! say `UDP_GRO`, both sides' alike (it changes nothing for a sender of single datagrams), and the figures for a sink that
//! does not are printed beside.

use super::super::super::{Context, Failure};
use rustix::net::sockopt;
use std::io;
use std::net::{SocketAddr, UdpSocket as KernelSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a sink asks for as its receive buffer.
const BUFFER: usize = 16 << 20;

/// A running sink. It ends when it is dropped.
pub(super) struct Sink {
    pub(super) address: SocketAddr,
    received: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// Drains this socket from now on; `gro`: super-datagrams are taken whole.
    pub(super) fn start(socket: KernelSocket, gro: bool) -> Result<Sink, Failure> {
        let failed = || "cannot set up the sink".into();
        // Beyond what the system lets everybody have, where we may.
        if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, BUFFER).context(failed)?;
        }
        if gro {
            take_whole(&socket).context(failed)?;
        }
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .context(failed)?;
        let address = socket.local_addr().context(failed)?;
        let (received, ended) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (count, end) = (received.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                if let Ok(datagrams) = drain(&socket) {
                    count.fetch_add(datagrams, Ordering::Relaxed);
                }
            }
        });
        Ok(Sink {
            address,
            received,
            ended,
            thread: Some(thread),
        })
    }

    /// How many datagrams have come.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// How many have come once no more do.
    pub(super) fn settled(&self) -> u64 {
        let mut before = self.received();
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.received();
            if now == before {
                return now;
            }
            before = now;
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets the kernel hand over super-datagrams uncut (udp(7), `UDP_GRO`).
fn take_whole(socket: &KernelSocket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, whose address and length are given; the call keeps neither.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_GRO,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes what is first in line, and gives the number of datagrams that it was.
fn drain(socket: &KernelSocket) -> io::Result<u64> {
    let mut nothing = [0_u8; 1];
    let mut slice = libc::iovec {
        iov_base: nothing.as_mut_ptr().cast(),
        iov_len: nothing.len(),
    };
    // Room for one control message of an int, aligned as its header has to be.
    let mut control = [0_u64; 4];
    // SAFETY: all zero is a msghdr that says nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message names one slice and one control buffer, both alive and as long as it says.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_TRUNC) };
    let Ok(length) = u64::try_from(length) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: recvmsg has set the length of the control buffer to what it wrote there.
    let stride = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null()
            || ((*header).cmsg_level, (*header).cmsg_type) != (libc::SOL_UDP, libc::UDP_GRO)
        {
            None
        } else {
            Some(
                libc::CMSG_DATA(header)
                    .cast::<libc::c_int>()
                    .read_unaligned(),
            )
        }
    };
    Ok(match stride.and_then(|stride| u64::try_from(stride).ok()) {
        Some(stride) if stride > 0 => length.div_ceil(stride),
        _ => 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datagram_is_counted() {
        for gro in [false, true] {
            let sink = KernelSocket::bind("127.0.0.1:0").expect("a socket");
            let sink = Sink::start(sink, gro).expect("a sink");
            let sender = KernelSocket::bind("127.0.0.1:0").expect("a socket");
            sender.connect(sink.address).expect("an address");
            // One super-datagram of three and a half, cut by the kernel or by the sink, and one alone.
            let size: libc::c_int = 100;
            // SAFETY: the option takes an int, whose address and length are given; the call keeps neither.
            let set = unsafe {
                libc::setsockopt(
                    sender.as_raw_fd(),
                    libc::SOL_UDP,
                    libc::UDP_SEGMENT,
                    (&raw const size).cast(),
                    size_of_val(&size) as libc::socklen_t,
                )
            };
            assert_eq!(set, 0, "UDP_SEGMENT");
            sender.send(&[7; 350]).expect("sent");
            sender.send(&[7; 100]).expect("sent");
            while sink.received() < 5 {
                std::thread::yield_now();
            }
            assert_eq!(sink.settled(), 5, "gro {gro}");
        }
    }
}
