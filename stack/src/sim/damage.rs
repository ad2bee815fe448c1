//! Damage to packets: a flipped bit with and without the checksum that would tell, lost ends, marks of congestion.
//!
//! *Wire* damage is what a bad cable does: a bit of the transport segment flips and the checksum no longer fits, so whoever verifies it
//! drops the packet. *Forged* damage is what someone on the path does: a bit of the payload flips and the checksum is made to
//! fit again, so that nothing but the AEAD can tell. Both are one bit at a given place, so that they can be repeated.

use crate::device::checksum;
use crate::packet::{self, TCP, UDP};

/// Whether the checksum gives the damage away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// The checksum is left as it was: it catches the damage.
    Wire,
    /// The checksum is repaired: only authentication catches it.
    Forged,
}

/// A packet that a link carries: bytes that it can change, cut short and send twice.
pub trait Packet: Sized {
    /// The IP packet.
    fn bytes(&self) -> &[u8];
    /// The same, to be changed in place.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Keeps the first `len` bytes.
    fn truncate(&mut self, len: usize);
    /// A second packet of the same bytes.
    fn duplicate(&self) -> Self;
}

impl Packet for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
    fn truncate(&mut self, len: usize) {
        Vec::truncate(self, len);
    }
    fn duplicate(&self) -> Self {
        self.clone()
    }
}

impl Packet for bytes::BytesMut {
    fn bytes(&self) -> &[u8] {
        self
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
    fn truncate(&mut self, len: usize) {
        bytes::BytesMut::truncate(self, len);
    }
    fn duplicate(&self) -> Self {
        self.clone()
    }
}

/// Where a packet's transport segment and its payload lie.
struct Segment {
    protocol: u8,
    transport: usize,
    payload: usize,
    end: usize,
}

impl Segment {
    /// `None` for what is not IP, a fragment that is not the first, or a transport header that is cut off.
    fn locate(packet: &[u8]) -> Option<Segment> {
        let ip = packet::parse(packet).ok()?;
        if ip.src.is_ipv4() && u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0 {
            return None;
        }
        let header = match ip.protocol {
            TCP => usize::from(packet.get(ip.transport + 12)? >> 4) * 4,
            UDP => 8,
            _ => 4,
        };
        let payload = ip.transport + header;
        (payload <= ip.end).then_some(Segment {
            protocol: ip.protocol,
            transport: ip.transport,
            payload,
            end: ip.end,
        })
    }

    /// Where the checksum is, in protocols whose checksum a forger must repair.
    fn checksum_field(&self) -> Option<usize> {
        match self.protocol {
            TCP => Some(self.transport + 16),
            UDP => Some(self.transport + 6),
            _ => None,
        }
    }
}

/// How many bits there are to choose from for this kind of damage: those of the transport segment, or of a TCP or UDP payload.
/// Zero when the packet has none, and then nothing can be damaged.
pub fn damageable_bits(packet: &[u8], corruption: Corruption) -> u64 {
    let Some(segment) = Segment::locate(packet) else {
        return 0;
    };
    let bytes = match corruption {
        Corruption::Wire => segment.end - segment.transport,
        Corruption::Forged if segment.checksum_field().is_some() => segment.end - segment.payload,
        Corruption::Forged => 0,
    };
    bytes as u64 * 8
}

/// Flips bit number `bit` of those that [`damageable_bits`] counts; a larger number counts round. Says whether there was one.
///
/// A wire bit that falls on the checksum field of UDP goes to the byte behind or in front of the field: a flip there could make it zero, which means "no checksum".
pub fn corrupt(packet: &mut [u8], corruption: Corruption, bit: u32) -> bool {
    let bits = damageable_bits(packet, corruption);
    let (Some(segment), true) = (Segment::locate(packet), bits > 0) else {
        return false;
    };
    let bit = u64::from(bit) % bits;
    let mask = 0x80 >> (bit % 8);
    let mut at = (bit / 8) as usize
        + match corruption {
            Corruption::Wire => segment.transport,
            Corruption::Forged => segment.payload,
        };
    match (corruption, segment.checksum_field()) {
        (Corruption::Wire, Some(field))
            if segment.protocol == UDP && (field..field + 2).contains(&at) =>
        {
            at = field - 1;
            packet[at] ^= mask;
        }
        (Corruption::Forged, Some(field)) => {
            // UDP over IPv4 may go without a checksum (RFC 768); then there is none to repair.
            let absent = segment.protocol == UDP && packet[field..field + 2] == [0, 0];
            let before = word_at(packet, segment.transport, at, segment.end);
            packet[at] ^= mask;
            let after = word_at(packet, segment.transport, at, segment.end);
            if !absent {
                replace_word(packet, field, before, after, segment.protocol == UDP);
            }
        }
        _ => packet[at] ^= mask,
    }
    true
}

/// The 16-bit word of the checksummed area (from `start` to `end`, padded with zero) in which the byte `at` lies.
fn word_at(packet: &[u8], start: usize, at: usize, end: usize) -> u16 {
    let first = at - (at - start) % 2;
    let second = if first + 1 < end {
        packet[first + 1]
    } else {
        0
    };
    u16::from_be_bytes([packet[first], second])
}

/// RFC 1624's incremental update, "HC' = ~(~HC + ~m + m')", of the checksum at `field` for one word that changed.
fn replace_word(packet: &mut [u8], field: usize, before: u16, after: u16, zero_means_none: bool) {
    let old = u16::from_be_bytes([packet[field], packet[field + 1]]);
    let mut sum = u32::from(!old) + u32::from(!before) + u32::from(after);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let new = match !(sum as u16) {
        0 if zero_means_none => 0xffff,
        new => new,
    };
    packet[field..field + 2].copy_from_slice(&new.to_be_bytes());
}

/// Sets *congestion experienced* on a packet of an ECN-capable transport (RFC 3168 §5) and says whether it is one.
pub fn mark_congestion(packet: &mut [u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 && packet[1] & 3 != 0 => {
            let before = u16::from_be_bytes([packet[0], packet[1]]);
            packet[1] |= 3;
            replace_word(packet, 10, before, before | 3, false);
            true
        }
        Some(6) if packet.len() >= 40 && packet[1] & 0x30 != 0 => {
            packet[1] |= 0x30;
            true
        }
        _ => false,
    }
}

/// Whether a receiver that verifies checksums would take the packet: IP header and transport.
pub fn is_intact(packet: &[u8]) -> bool {
    packet::parse(packet).is_ok_and(|ip| {
        checksum::transport_is_valid(ip.src, ip.dst, ip.protocol, &packet[ip.transport..ip.end])
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    /// A TCP segment or UDP datagram between port 40,000 and port 443, with all checksums.
    pub(crate) fn packet(v6: bool, protocol: u8, seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let (src, dst): (IpAddr, IpAddr) = if v6 {
            (
                [0xfd00, 0, 0, 0, 0, 0, 0, 1].into(),
                [0xfd00, 0, 0, 0, 0, 0, 0, 2].into(),
            )
        } else {
            ([10, 0, 0, 1].into(), [10, 0, 0, 2].into())
        };
        let mut segment = vec![0; if protocol == TCP { 20 } else { 8 }];
        segment[..4].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]);
        let field = if protocol == TCP {
            segment[4..8].copy_from_slice(&seq.to_be_bytes());
            segment[12] = 5 << 4;
            segment[13] = flags;
            16
        } else {
            segment[4..6].copy_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
            6
        };
        segment.extend_from_slice(payload);
        let mut sum =
            checksum::pseudo_header(src, dst, protocol, segment.len() as u32).expect("one family");
        sum.add(&segment);
        segment[field..field + 2].copy_from_slice(&sum.checksum_not_zero().to_be_bytes());
        let mut header = [0; packet::MAX_IP_HEADER];
        let length = packet::emit_header(src, dst, protocol, segment.len(), 1, 2, &mut header)
            .expect("one family");
        [&header[..length], &segment].concat()
    }

    proptest! {
        #[test]
        fn wire_damage_is_one_bit_that_the_checksum_catches(v6: bool, tcp: bool, bit: u32, payload in prop::collection::vec(any::<u8>(), 0..100)) {
            let intact = packet(v6, if tcp { TCP } else { UDP }, 7, 0x10, &payload);
            let mut damaged = intact.clone();
            prop_assert!(is_intact(&intact));
            prop_assert!(corrupt(&mut damaged, Corruption::Wire, bit));
            prop_assert!(!is_intact(&damaged));
            let flipped: u32 = intact.iter().zip(&damaged).map(|(a, b)| (a ^ b).count_ones()).sum();
            prop_assert_eq!(flipped, 1);
        }

        #[test]
        fn forged_damage_is_one_payload_bit_and_a_valid_checksum(v6: bool, tcp: bool, bit: u32, payload in prop::collection::vec(any::<u8>(), 1..100)) {
            let protocol = if tcp { TCP } else { UDP };
            let intact = packet(v6, protocol, 7, 0x10, &payload);
            let mut damaged = intact.clone();
            prop_assert!(corrupt(&mut damaged, Corruption::Forged, bit));
            prop_assert!(is_intact(&damaged));
            let start = intact.len() - payload.len();
            let flipped: u32 = intact[start..].iter().zip(&damaged[start..]).map(|(a, b)| (a ^ b).count_ones()).sum();
            prop_assert_eq!(flipped, 1);
            let field = Segment::locate(&intact).and_then(|segment| segment.checksum_field()).expect("has one");
            for at in 0..start {
                prop_assert!(intact[at] == damaged[at] || (field..field + 2).contains(&at));
            }
        }

        #[test]
        fn a_congestion_mark_leaves_the_packet_valid(v6: bool, payload in prop::collection::vec(any::<u8>(), 0..50)) {
            let mut marked = packet(v6, TCP, 7, 0x10, &payload);
            prop_assert!(mark_congestion(&mut marked));
            prop_assert!(packet::parse(&marked).is_ok_and(|ip| ip.ecn_ce));
            prop_assert!(is_intact(&marked));
        }

        #[test]
        fn garbage_is_left_alone_or_damaged_and_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..120), bit: u32, forged: bool) {
            let corruption = if forged { Corruption::Forged } else { Corruption::Wire };
            let possible = damageable_bits(&bytes, corruption) > 0;
            prop_assert_eq!(corrupt(&mut bytes, corruption, bit), possible);
            mark_congestion(&mut bytes);
        }
    }

    #[test]
    fn nothing_to_forge_in_a_bare_acknowledgement() {
        let mut bare = packet(false, TCP, 7, 0x10, &[]);
        assert!(!corrupt(&mut bare, Corruption::Forged, 3));
        assert!(is_intact(&bare));
        assert!(corrupt(&mut bare, Corruption::Wire, 3));
    }

    #[test]
    fn a_datagram_without_checksum_stays_without_one_when_forged() {
        let mut datagram = packet(false, UDP, 0, 0, b"datagram");
        datagram[26..28].fill(0);
        assert!(corrupt(&mut datagram, Corruption::Forged, 0));
        assert_eq!(datagram[26..28], [0, 0]);
    }

    #[test]
    fn packets_of_other_transports_are_not_marked() {
        let mut plain = packet(false, TCP, 7, 0x10, &[]);
        plain[1] &= !3;
        assert!(!mark_congestion(&mut plain));
    }
}
