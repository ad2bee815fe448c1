//! Memory that packets are received to, used again.
//!
//! A packet's payload stays where the device wrote it until its reader has taken it, so a room may be full of packets that are still in
//! use. Then the next one is taken; it comes round again when its packets are gone. Fresh memory has to be mapped page by page, which
//! costs more than the copy into it, so rooms are kept as long as a few do.

use crate::device::MAX_PACKET;
use bytes::BytesMut;
use std::collections::VecDeque;

/// Size of a room in bytes: many small packets, or a few super-segments.
const ROOM: usize = 4 * ROOM_FOR_ONE;
/// Least that a packet is received to: the longest one, and what a device puts in front of it.
const ROOM_FOR_ONE: usize = MAX_PACKET + 64;
/// Rooms that are kept: 2 MiB.
const KEPT: usize = 8;

/// The rooms of a shard.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    current: BytesMut,
    /// Rooms that were full of packets when they were last looked at, the oldest first.
    resting: VecDeque<BytesMut>,
}

impl Rooms {
    /// Empty room for the longest packet.
    pub(super) fn next(&mut self) -> &mut BytesMut {
        if self.current.capacity() < ROOM_FOR_ONE {
            self.change();
        }
        &mut self.current
    }

    fn change(&mut self) {
        if self.current.try_reclaim(ROOM) {
            return;
        }
        self.resting.push_back(std::mem::take(&mut self.current));
        let free = self
            .resting
            .iter_mut()
            .position(|room| room.try_reclaim(ROOM));
        self.current = free
            .and_then(|at| self.resting.remove(at))
            .unwrap_or_else(|| BytesMut::with_capacity(ROOM));
        if self.resting.len() > KEPT {
            // Its memory goes with the last of its packets.
            self.resting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(rooms: &mut Rooms) -> BytesMut {
        let room = rooms.next();
        assert!(room.is_empty() && room.capacity() >= ROOM_FOR_ONE);
        room.resize(MAX_PACKET, 0);
        room.split()
    }

    #[test]
    fn rooms_come_round_when_their_packets_are_gone() {
        let mut rooms = Rooms::default();
        let mut addresses = std::collections::BTreeSet::new();
        let mut in_use = VecDeque::new();
        for _ in 0..1000 {
            let packet = packet(&mut rooms);
            addresses.insert(packet.as_ptr() as usize);
            in_use.push_back(packet);
            if in_use.len() > 8 {
                in_use.pop_front();
            }
        }
        assert!(addresses.len() <= 4 * 4, "{} places", addresses.len());
        assert!(rooms.resting.len() <= KEPT);
    }

    #[test]
    fn packets_that_nobody_takes_do_not_stop_the_next() {
        let mut rooms = Rooms::default();
        let held: Vec<BytesMut> = (0..200u8)
            .map(|i| {
                let mut packet = packet(&mut rooms);
                packet.fill(i);
                packet
            })
            .collect();
        assert!(rooms.resting.len() <= KEPT);
        for (i, packet) in held.iter().enumerate() {
            assert!(packet.iter().all(|&byte| byte == i as u8));
        }
    }
}
