//! Two devices joined back to back within one process, for tests.
//!
//! What one end sends, the other receives, in order and unchanged: super-segments and partial checksums are passed
//! through whole, as a kernel does between two programs on one machine. There is no delay, loss or rate here; the virtual link
//! of the simulator has those. The queue of each direction is bounded, and a full one says `WouldBlock`.

use super::{Capabilities, Device, MAX_PACKET, Offload};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Packets that wait in one direction.
pub const QUEUE_LENGTH: usize = 1024;

type Queue = Arc<Mutex<VecDeque<(Vec<u8>, Offload)>>>;

/// One end of a pair of joined devices.
#[derive(Debug)]
pub struct MemoryDevice {
    capabilities: Capabilities,
    outgoing: Queue,
    incoming: Queue,
}

/// Two joined devices of this MTU, both with every offload or without any.
pub fn pair(mtu: usize, offload: bool) -> (MemoryDevice, MemoryDevice) {
    let capabilities = Capabilities {
        mtu,
        tso: offload,
        uso: offload,
        checksum: offload,
        max_packet: if offload { MAX_PACKET } else { mtu },
    };
    let (there, back) = (Queue::default(), Queue::default());
    let left = MemoryDevice {
        capabilities,
        outgoing: there.clone(),
        incoming: back.clone(),
    };
    let right = MemoryDevice {
        capabilities,
        outgoing: back,
        incoming: there,
    };
    (left, right)
}

impl MemoryDevice {
    /// Packets that this end has sent and the other has not received.
    pub fn in_flight(&self) -> usize {
        lock(&self.outgoing).len()
    }
}

/// A queue holds whole packets at every moment, so one that a panicking test left behind is as good as any.
fn lock(queue: &Queue) -> MutexGuard<'_, VecDeque<(Vec<u8>, Offload)>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device for MemoryDevice {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn send(
        &mut self,
        offload: &Offload,
        headers: &[u8],
        payload: &[IoSlice<'_>],
    ) -> io::Result<()> {
        let length = super::packet_len(headers, payload);
        super::check_sendable(&self.capabilities, offload, length)?;
        let mut queue = lock(&self.outgoing);
        if queue.len() >= QUEUE_LENGTH {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut packet = Vec::with_capacity(length);
        packet.extend_from_slice(headers);
        payload
            .iter()
            .for_each(|slice| packet.extend_from_slice(slice));
        queue.push_back((
            packet,
            Offload {
                verified: offload.needs_csum.is_some(),
                ..*offload
            },
        ));
        Ok(())
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<(usize, Offload)> {
        let (sent, offload) = lock(&self.incoming)
            .pop_front()
            .ok_or(io::ErrorKind::WouldBlock)?;
        let length = sent.len().min(packet.len());
        packet[..length].copy_from_slice(&sent[..length]);
        Ok((length, offload))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CsumRequest, Gso, GsoKind};
    use super::*;

    #[test]
    fn what_one_end_sends_the_other_receives() {
        let (mut left, mut right) = pair(1500, true);
        let offload = Offload {
            needs_csum: Some(CsumRequest {
                start: 20,
                offset: 16,
            }),
            gso: Some(Gso {
                kind: GsoKind::Tcp4,
                hdr_len: 40,
                size: 1448,
            }),
            verified: false,
        };
        let (front, back) = ([7u8; 3_000], [8u8; 3_000]);
        left.send(
            &offload,
            &[0x45; 40],
            &[IoSlice::new(&front), IoSlice::new(&back)],
        )
        .unwrap();
        assert_eq!(left.in_flight(), 1);
        let mut packet = vec![0; MAX_PACKET];
        let (length, received) = right.receive(&mut packet).unwrap();
        assert_eq!(
            received,
            Offload {
                verified: true,
                ..offload
            }
        );
        assert_eq!(packet[..length], [&[0x45; 40][..], &front, &back].concat());
        assert_eq!(
            right.receive(&mut packet).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(
            left.receive(&mut packet).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }

    #[test]
    fn a_full_queue_would_block() {
        let (mut left, mut right) = pair(1500, false);
        for _ in 0..QUEUE_LENGTH {
            left.send(&Offload::NONE, &[0x45; 20], &[]).unwrap();
        }
        assert_eq!(
            left.send(&Offload::NONE, &[0x45; 20], &[])
                .unwrap_err()
                .kind(),
            io::ErrorKind::WouldBlock
        );
        right.receive(&mut [0; 1500]).unwrap();
        left.send(&Offload::NONE, &[0x45; 20], &[]).unwrap();
    }

    #[test]
    fn a_device_without_offload_refuses_what_it_cannot_do() {
        let (mut plain, _other) = pair(1500, false);
        let refused =
            |outcome: io::Result<()>| outcome.unwrap_err().kind() == io::ErrorKind::InvalidInput;
        let csum = Some(CsumRequest {
            start: 20,
            offset: 16,
        });
        let gso = Some(Gso {
            kind: GsoKind::Tcp4,
            hdr_len: 40,
            size: 1448,
        });
        assert!(refused(plain.send(
            &Offload {
                needs_csum: csum,
                ..Offload::NONE
            },
            &[0x45; 40],
            &[]
        )));
        assert!(refused(plain.send(
            &Offload {
                gso,
                ..Offload::NONE
            },
            &[0x45; 40],
            &[]
        )));
        assert!(refused(plain.send(&Offload::NONE, &[0x45; 1501], &[])));
        let (mut offloading, _other) = pair(1500, true);
        assert!(refused(offloading.send(
            &Offload {
                gso,
                ..Offload::NONE
            },
            &[0x45; 40],
            &[]
        )));
        assert!(refused(offloading.send(&Offload::NONE, &[0x45; 1501], &[])));
    }
}
