//! IP headers: what a received packet holds, and the header of one to be sent.

use crate::device::checksum;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6ExtHeader, Ipv6Packet};
use std::net::IpAddr;

/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// ICMP's protocol number.
pub const ICMP: u8 = 1;
/// ICMPv6's protocol number.
pub const ICMPV6: u8 = 58;

/// Longest header that [`emit_header`] writes.
pub const MAX_IP_HEADER: usize = 40;

/// Hop limit of packets that leave the stack (RFC 1700's 64).
const HOP_LIMIT: u8 = 64;

/// What an unfragmented IP packet holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Transport protocol.
    pub protocol: u8,
    /// Where the transport header starts.
    pub transport: usize,
    /// Where the packet ends (a device may pad).
    pub end: usize,
    /// Congestion was experienced on the way (RFC 3168).
    pub ecn_ce: bool,
}

/// Why a packet is dropped unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// Not IP, cut off, or a header that contradicts itself.
    Malformed,
    /// IPv4 header checksum.
    HeaderChecksum,
}

/// Reads a packet's IP header, IPv6 extension headers included.
pub fn parse(packet: &[u8]) -> Result<Parsed, Drop> {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => {
            let ip = Ipv4Packet::new_checked(packet).map_err(|_| Drop::Malformed)?;
            if !ip.verify_checksum() {
                return Err(Drop::HeaderChecksum);
            }
            Ok(Parsed {
                src: IpAddr::V4(ip.src_addr()),
                dst: IpAddr::V4(ip.dst_addr()),
                protocol: ip.next_header().into(),
                transport: usize::from(ip.header_len()),
                end: usize::from(ip.total_len()),
                ecn_ce: ip.ecn() == 3,
            })
        }
        Some(6) => {
            let ip = Ipv6Packet::new_checked(packet).map_err(|_| Drop::Malformed)?;
            let end = ip.total_len();
            let mut protocol = ip.next_header();
            let mut transport = ip.header_len();
            // RFC 8200 §4.1: "Extension headers must be processed strictly in the order they appear in the packet". Those
            // that carry nothing for an end host are stepped over; the bound is the packet's length.
            while matches!(
                protocol,
                IpProtocol::HopByHop | IpProtocol::Ipv6Route | IpProtocol::Ipv6Opts
            ) {
                let rest = packet.get(transport..end).ok_or(Drop::Malformed)?;
                let header = Ipv6ExtHeader::new_checked(rest).map_err(|_| Drop::Malformed)?;
                protocol = header.next_header();
                transport += usize::from(header.header_len()) * 8 + 8;
            }
            if transport > end {
                return Err(Drop::Malformed);
            }
            Ok(Parsed {
                src: IpAddr::V6(ip.src_addr()),
                dst: IpAddr::V6(ip.dst_addr()),
                protocol: protocol.into(),
                transport,
                end,
                ecn_ce: ip.traffic_class() & 3 == 3,
            })
        }
        _ => Err(Drop::Malformed),
    }
}

/// Writes an IP header for `payload_len` bytes of `protocol` to the front of `out`, and gives its length.
///
/// IPv4: don't-fragment is set, so the identification carries no meaning (RFC 6864 §4.1) and is what the caller counts.
/// `None` when the addresses' families differ.
pub fn emit_header(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    payload_len: usize,
    identification: u16,
    ecn: u8,
    out: &mut [u8; MAX_IP_HEADER],
) -> Option<usize> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = &mut out[..20];
            header[0] = 0x45;
            header[1] = ecn & 3;
            header[2..4].copy_from_slice(&((20 + payload_len) as u16).to_be_bytes());
            header[4..6].copy_from_slice(&identification.to_be_bytes());
            header[6..8].copy_from_slice(&[0x40, 0]);
            header[8] = HOP_LIMIT;
            header[9] = protocol;
            header[10..12].fill(0);
            header[12..16].copy_from_slice(&src.octets());
            header[16..20].copy_from_slice(&dst.octets());
            let sum = checksum::checksum(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            Some(20)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            out[0] = 0x60;
            out[1] = (ecn & 3) << 4;
            out[2..4].fill(0);
            out[4..6].copy_from_slice(&(payload_len as u16).to_be_bytes());
            out[6] = protocol;
            out[7] = HOP_LIMIT;
            out[8..24].copy_from_slice(&src.octets());
            out[24..40].copy_from_slice(&dst.octets());
            Some(40)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_back_as_written() {
        for (src, dst) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let (src, dst): (IpAddr, IpAddr) =
                (src.parse().expect("literal"), dst.parse().expect("literal"));
            let mut header = [0; MAX_IP_HEADER];
            let len = emit_header(src, dst, TCP, 3, 7, 0, &mut header).expect("one family");
            let mut packet = header[..len].to_vec();
            packet.extend_from_slice(b"abcpadding");
            let parsed = parse(&packet).expect("a packet just written");
            assert_eq!((parsed.src, parsed.dst, parsed.protocol), (src, dst, TCP));
            assert_eq!(&packet[parsed.transport..parsed.end], b"abc");
        }
    }

    #[test]
    fn a_flipped_bit_in_an_ipv4_header_is_noticed() {
        let (src, dst) = (
            "10.0.0.1".parse().expect("literal"),
            "10.0.0.2".parse().expect("literal"),
        );
        let mut header = [0; MAX_IP_HEADER];
        emit_header(src, dst, TCP, 0, 7, 0, &mut header).expect("one family");
        header[8] ^= 1;
        assert_eq!(parse(&header[..20]), Err(Drop::HeaderChecksum));
        assert_eq!(parse(&[]), Err(Drop::Malformed));
    }
}
