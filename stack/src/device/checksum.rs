//! The Internet checksum (RFC 1071) over slices, at the speed of memory.
//!
//! A [`Sum`] is a one's-complement sum that has not been folded yet. Pieces are added one after the other and may have
//! odd lengths; the result is that of their concatenation. [`Sum::fold`] gives the 16-bit sum (what a *partial*
//! checksum field holds, for a device to complete), [`Sum::checksum`] its complement (what goes over the wire).
//!
//! smoltcp has a checksum of its own, which its packet views use; it takes one contiguous slice. Here a segment's payload lies
//! in several pieces of an arena, and super-segments make the loop worth having wide.

use super::{CsumRequest, Malformed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A running one's-complement sum over a byte stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Sum of the stream's 16-bit words as this machine reads them from memory; byte order is put right once, in `fold`
    /// (RFC 1071 §2 (B): the sum does not depend on it but for a swap of its two bytes). Every addition leaves at most 2³² behind, so none can overflow.
    accumulated: u64,
    /// An odd number of bytes went in so far: the next piece's bytes sit in the other half of their words.
    odd: bool,
}

impl Sum {
    /// The sum of no bytes.
    pub const fn new() -> Self {
        Sum {
            accumulated: 0,
            odd: false,
        }
    }

    /// Adds `bytes` behind what was added before.
    pub fn add(&mut self, bytes: &[u8]) {
        let sum = u64::from(fold_to_16(sum_native(bytes)));
        // RFC 1071 §2 (A): bytes that start at an odd place contribute their sum with its bytes swapped.
        let sum = if self.odd {
            u64::from((sum as u16).swap_bytes())
        } else {
            sum
        };
        self.accumulated = u64::from(fold_to_32(self.accumulated)) + sum;
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Adds one 16-bit word in network byte order. The stream must have even length so far.
    pub fn add_word(&mut self, word: u16) {
        debug_assert!(!self.odd, "a word in the middle of another word");
        self.accumulated = u64::from(fold_to_32(self.accumulated)) + u64::from(word.to_be());
    }

    /// Adds one 32-bit word in network byte order. The stream must have even length so far.
    pub fn add_double_word(&mut self, word: u32) {
        self.add_word((word >> 16) as u16);
        self.add_word(word as u16);
    }

    /// The folded sum, not complemented: 0xffff over data whose own checksum field is included and right.
    pub fn fold(self) -> u16 {
        u16::from_be(fold_to_16(self.accumulated))
    }

    /// The checksum as a header field carries it: the sum's complement.
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The checksum as a UDP header carries it. RFC 768: "If the computed checksum is zero, it is transmitted as all
    /// ones"; zero there means that no checksum was made. In TCP both mean the same, so this suits either.
    pub fn checksum_not_zero(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

/// The sum of `bytes` as native-endian words, a last odd byte padded with zero behind it.
fn sum_native(bytes: &[u8]) -> u64 {
    // 32-bit words into four 64-bit lanes: carries collect in the upper halves (room for 2³² additions; a slice of more
    // than 64 GiB is no packet), and the compiler turns the loop into vector instructions.
    let mut lanes = [0u64; 4];
    let (blocks, rest) = bytes.as_chunks::<16>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut sum: u64 = lanes.iter().map(|&lane| u64::from(fold_to_32(lane))).sum();
    let (words, last) = rest.as_chunks::<2>();
    for word in words {
        sum += u64::from(u16::from_ne_bytes(*word));
    }
    if let [byte] = last {
        sum += u64::from(u16::from_ne_bytes([*byte, 0]));
    }
    sum
}

/// One's-complement fold of 64 bits to 32.
const fn fold_to_32(sum: u64) -> u32 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    ((sum >> 32) + (sum & 0xffff_ffff)) as u32
}

/// One's-complement fold of 64 bits to 16.
const fn fold_to_16(sum: u64) -> u16 {
    let sum = fold_to_32(sum);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// The checksum of one contiguous slice, complemented: an IPv4 header's when its field is zero.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = Sum::new();
    sum.add(bytes);
    sum.checksum()
}

/// The sum of IPv4's pseudo header (RFC 9293 §3.1): addresses, protocol, length of transport header and payload.
pub fn pseudo_header_v4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, length: u32) -> Sum {
    let mut sum = Sum::new();
    sum.add(&src.octets());
    sum.add(&dst.octets());
    sum.add_word(u16::from(protocol));
    sum.add_double_word(length);
    sum
}

/// The sum of IPv6's pseudo header (RFC 8200 §8.1). `protocol` is the upper layer's, behind all extension headers.
pub fn pseudo_header_v6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, length: u32) -> Sum {
    let mut sum = Sum::new();
    sum.add(&src.octets());
    sum.add(&dst.octets());
    sum.add_word(u16::from(protocol));
    sum.add_double_word(length);
    sum
}

/// The pseudo header's sum for a pair of addresses of one family; `None` when the families differ.
pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: u32) -> Option<Sum> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Some(pseudo_header_v4(src, dst, protocol, length)),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Some(pseudo_header_v6(src, dst, protocol, length)),
        _ => None,
    }
}

/// Completes a partial checksum as a device would: the field, which holds the pseudo header's folded sum, becomes the
/// complement of everything summed from `request.start` to the end of the packet.
pub fn complete(packet: &mut [u8], request: CsumRequest) -> Result<(), Malformed> {
    let start = usize::from(request.start);
    let field = start + usize::from(request.offset);
    if field + 2 > packet.len() {
        return Err(Malformed::ChecksumField);
    }
    let mut sum = Sum::new();
    sum.add(&packet[start..]);
    packet[field..field + 2].copy_from_slice(&sum.checksum_not_zero().to_be_bytes());
    Ok(())
}

/// Whether `packet`'s IPv4 header checksum is right. IPv6 has none, so any IPv6 header is; anything else is not.
pub fn ip_header_is_valid(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => {
            let length = usize::from(packet[0] & 0x0f) * 4;
            length >= 20
                && packet
                    .get(..length)
                    .is_some_and(|header| checksum(header) == 0)
        }
        Some(6) => packet.len() >= 40,
        _ => false,
    }
}

/// Whether the transport checksum is right of the `segment` (transport header and payload) that an IP packet carried
/// between these addresses. For TCP (6), ICMPv6 (58) and UDP (17), where UDP over IPv4 may go without (RFC 768) and over IPv6 must not
/// (RFC 8200 §8.1). ICMP (1) has no pseudo header. Protocols this stack does not speak count as valid: nobody reads them.
pub fn transport_is_valid(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> bool {
    let Ok(length) = u32::try_from(segment.len()) else {
        return false;
    };
    match protocol {
        1 => checksum(segment) == 0,
        6 | 17 | 58 => {
            if protocol == 17 && src.is_ipv4() && segment.get(6..8) == Some(&[0, 0]) {
                return true;
            }
            if protocol == 17 && segment.get(6..8) == Some(&[0, 0]) {
                return false;
            }
            pseudo_header(src, dst, protocol, length).is_some_and(|mut sum| {
                sum.add(segment);
                sum.checksum() == 0
            })
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smoltcp::wire::{IpAddress, TcpPacket, UdpPacket};

    /// RFC 1071 to the letter: word by word, carries added at the end.
    fn by_the_book(bytes: &[u8]) -> u16 {
        let word =
            |pair: &[u8]| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low));
        let mut sum: u64 = bytes.chunks(2).map(word).sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }

    #[test]
    fn example_of_rfc_1071() {
        // RFC 1071 §3: the words 0001 f203 f4f5 f6f7 sum to ddf2.
        let mut sum = Sum::new();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
    }

    #[test]
    fn longest_packet_of_ones_does_not_overflow() {
        let ones = vec![0xff; 65_536];
        let mut sum = Sum::new();
        for _ in 0..1_000 {
            sum.add(&ones);
        }
        assert_eq!(sum.fold(), 0xffff);
    }

    #[test]
    fn partial_field_outside_the_packet_is_refused() {
        let mut packet = [0u8; 30];
        for request in [
            CsumRequest {
                start: 20,
                offset: 9,
            },
            CsumRequest {
                start: 65_535,
                offset: 65_535,
            },
        ] {
            assert_eq!(
                complete(&mut packet, request),
                Err(Malformed::ChecksumField)
            );
        }
        assert_eq!(
            complete(
                &mut packet,
                CsumRequest {
                    start: 20,
                    offset: 8
                }
            ),
            Ok(())
        );
    }

    #[test]
    fn udp_without_checksum_is_valid_over_v4_only() {
        let segment = [0, 1, 0, 2, 0, 8, 0, 0];
        assert!(transport_is_valid(
            Ipv4Addr::LOCALHOST.into(),
            Ipv4Addr::LOCALHOST.into(),
            17,
            &segment
        ));
        assert!(!transport_is_valid(
            Ipv6Addr::LOCALHOST.into(),
            Ipv6Addr::LOCALHOST.into(),
            17,
            &segment
        ));
    }

    proptest! {
        #[test]
        fn pieces_sum_like_their_concatenation(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..8)) {
            let mut sum = Sum::new();
            for piece in &pieces {
                sum.add(piece);
            }
            prop_assert_eq!(sum.fold(), by_the_book(&pieces.concat()));
        }

        #[test]
        fn long_slices_sum_by_the_book(bytes in prop::collection::vec(any::<u8>(), 0..5_000)) {
            prop_assert_eq!(checksum(&bytes), !by_the_book(&bytes));
        }

        #[test]
        fn smoltcp_agrees_on_tcp(src in any::<u32>(), dst in any::<u32>(), src6 in any::<u128>(), dst6 in any::<u128>(), payload in prop::collection::vec(any::<u8>(), 0..300)) {
            for (src, dst) in [
                (IpAddr::V4(src.into()), IpAddr::V4(dst.into())),
                (IpAddr::V6(src6.into()), IpAddr::V6(dst6.into())),
            ] {
                let mut segment = vec![0; 20];
                segment[12] = 5 << 4;
                segment.extend_from_slice(&payload);
                TcpPacket::new_unchecked(&mut segment).fill_checksum(&IpAddress::from(src), &IpAddress::from(dst));
                prop_assert!(transport_is_valid(src, dst, 6, &segment));
                let filled = segment[16..18].to_vec();
                let partial = pseudo_header(src, dst, 6, segment.len() as u32).expect("one family").fold();
                segment[16..18].copy_from_slice(&partial.to_be_bytes());
                complete(&mut segment, CsumRequest { start: 0, offset: 16 }).expect("the field is inside");
                // 0 and 0xffff are the same number in one's complement; this side never writes 0.
                let same = segment[16..18] == filled[..] || filled == [0, 0] && segment[16..18] == [0xff, 0xff];
                prop_assert!(same);
                segment[4] ^= 1;
                prop_assert!(!transport_is_valid(src, dst, 6, &segment));
            }
        }

        #[test]
        fn smoltcp_verifies_completed_udp(src in any::<u32>(), dst in any::<u32>(), payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let (src, dst) = (Ipv4Addr::from(src), Ipv4Addr::from(dst));
            let length = (8 + payload.len()) as u16;
            let mut segment = vec![0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0];
            segment[4..6].copy_from_slice(&length.to_be_bytes());
            segment.extend_from_slice(&payload);
            let partial = pseudo_header_v4(src, dst, 17, u32::from(length)).fold();
            segment[6..8].copy_from_slice(&partial.to_be_bytes());
            complete(&mut segment, CsumRequest { start: 0, offset: 6 }).expect("the field is inside");
            let udp = UdpPacket::new_checked(&segment[..]).expect("well formed");
            prop_assert!(udp.verify_checksum(&IpAddress::Ipv4(src), &IpAddress::Ipv4(dst)));
            prop_assert!(transport_is_valid(src.into(), dst.into(), 17, &segment));
        }
    }
}
