//! What switches and routers do to packets, and the ICMP errors of those that do not pass them on.
//!
//! There is no Ethernet, as there is none on a TUN: a switch passes packets on by their destination and is not seen; a router
//! counts hops, answers pings, cuts IPv4 packets that may be cut into fragments (RFC 791), and tells the sender when a packet is too
//! long for the next link (RFC 1191, RFC 8201), has no way to go, or has been going round.

use crate::device::checksum;
use crate::packet::{self, MAX_IP_HEADER};
use bytes::BytesMut;
use std::net::IpAddr;

/// Bytes of the cause that an ICMP error quotes: within the 576 (RFC 1812 §4.3.2.3) or 1,280 (RFC 4443 §2.4) bytes it may have.
const QUOTED: usize = 512;

/// A network: an address and the number of leading bits that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// Reads "10.0.0.0/8"; without a length every bit counts.
    pub(super) fn parse(text: &str) -> Option<Prefix> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            Some(length) => length.parse().ok().filter(|length| *length <= most)?,
            None => most,
        };
        Some(Prefix { address, length })
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        crate::engine::same_network(self.address, address, self.length)
    }

    pub(super) fn length(&self) -> u8 {
        self.length
    }

    pub(super) fn address(&self) -> IpAddr {
        self.address
    }
}

pub(super) fn is_v4(packet: &[u8]) -> bool {
    packet.first().is_some_and(|byte| byte >> 4 == 4)
}

/// Where a packet wants to go.
pub(super) fn destination(packet: &[u8]) -> Option<IpAddr> {
    let octets = |range: std::ops::Range<usize>| packet.get(range);
    match packet.first()? >> 4 {
        4 => <[u8; 4]>::try_from(octets(16..20)?).ok().map(IpAddr::from),
        6 => <[u8; 16]>::try_from(octets(24..40)?).ok().map(IpAddr::from),
        _ => None,
    }
}

/// What a router does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forward {
    /// It goes on, with one hop less.
    On,
    /// It has made all its hops.
    Expired,
    /// It is no packet.
    Malformed,
}

/// Counts a hop.
pub(super) fn forward(packet: &mut [u8]) -> Forward {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= 20 => {
            if packet[8] <= 1 {
                return Forward::Expired;
            }
            packet[8] -= 1;
            // RFC 1624 §3: "HC' = ~(~HC + ~m + m')", for the word that holds the hop count and the protocol.
            let old = u16::from_be_bytes([packet[8] + 1, packet[9]]);
            let new = u16::from_be_bytes([packet[8], packet[9]]);
            let sum = u16::from_be_bytes([packet[10], packet[11]]);
            let total = u32::from(!sum) + u32::from(!old) + u32::from(new);
            let folded = (total & 0xffff) + (total >> 16);
            let folded = (folded & 0xffff) + (folded >> 16);
            packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
            Forward::On
        }
        Some(6) if packet.len() >= 40 => {
            if packet[7] <= 1 {
                return Forward::Expired;
            }
            packet[7] -= 1;
            Forward::On
        }
        _ => Forward::Malformed,
    }
}

/// Why a packet does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Complaint {
    /// Longer than the next link's MTU.
    TooBig(usize),
    /// There is no way.
    Unreachable,
    /// The hop limit.
    TimeExceeded,
}

/// The ICMP error about `cause`, from `from`. None about an ICMP error, or to nobody.
pub(super) fn complain(from: IpAddr, cause: &[u8], complaint: Complaint) -> Option<BytesMut> {
    let parsed = packet::parse(cause).ok()?;
    // RFC 1122 §3.2.2: "An ICMP error message MUST NOT be sent as the result of receiving: an ICMP error message".
    if matches!(parsed.protocol, packet::ICMP | packet::ICMPV6) {
        return None;
    }
    let quoted = &cause[..cause.len().min(QUOTED)];
    let mut message = vec![0; 8];
    let protocol = match from {
        IpAddr::V4(_) => {
            let (kind, code, mtu) = match complaint {
                Complaint::TooBig(mtu) => (3, 4, mtu as u16),
                Complaint::Unreachable => (3, 1, 0),
                Complaint::TimeExceeded => (11, 0, 0),
            };
            message[0] = kind;
            message[1] = code;
            message[6..8].copy_from_slice(&mtu.to_be_bytes());
            packet::ICMP
        }
        IpAddr::V6(_) => {
            let (kind, code, mtu) = match complaint {
                Complaint::TooBig(mtu) => (2, 0, mtu as u32),
                Complaint::Unreachable => (1, 0, 0),
                Complaint::TimeExceeded => (3, 0, 0),
            };
            message[0] = kind;
            message[1] = code;
            message[4..8].copy_from_slice(&mtu.to_be_bytes());
            packet::ICMPV6
        }
    };
    message.extend_from_slice(quoted);
    icmp(from, parsed.src, protocol, message)
}

/// The answer of a router to a ping, from the address that was asked; `None` for anything else.
pub(super) fn answer(packet: &[u8]) -> Option<BytesMut> {
    let parsed = packet::parse(packet).ok()?;
    let mut message = packet.get(parsed.transport..parsed.end)?.to_vec();
    let (request, reply) = match parsed.protocol {
        packet::ICMP => (8, 0),
        packet::ICMPV6 => (128, 129),
        _ => return None,
    };
    if message.len() < 8 || message[0] != request {
        return None;
    }
    message[0] = reply;
    icmp(parsed.dst, parsed.src, parsed.protocol, message)
}

/// An ICMP packet with its checksums.
fn icmp(from: IpAddr, to: IpAddr, protocol: u8, mut message: Vec<u8>) -> Option<BytesMut> {
    message[2..4].fill(0);
    let sum = match from {
        IpAddr::V4(_) => checksum::checksum(&message),
        IpAddr::V6(_) => {
            let mut sum = checksum::pseudo_header(from, to, protocol, message.len() as u32)?;
            sum.add(&message);
            sum.checksum()
        }
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut header = [0; MAX_IP_HEADER];
    let len = packet::emit_header(from, to, protocol, message.len(), 0, 0, &mut header)?;
    let mut bytes = BytesMut::with_capacity(len + message.len());
    bytes.extend_from_slice(&header[..len]);
    bytes.extend_from_slice(&message);
    Some(bytes)
}

/// Cuts an IPv4 packet into fragments of at most `mtu` bytes, which may have been a fragment before. `None` for one that says "don't
/// fragment", has options, or is IPv6, where only senders cut.
pub(super) fn cut(packet: &[u8], mtu: usize) -> Option<Vec<BytesMut>> {
    const HEADER: usize = 20;
    const DONT: u16 = 0x4000;
    const MORE: u16 = 0x2000;
    let (header, payload) = packet.split_first_chunk::<HEADER>()?;
    let flags = u16::from_be_bytes([header[6], header[7]]);
    // RFC 791 §3.2: every fragment but the last has a multiple of eight bytes.
    let step = mtu.checked_sub(HEADER)? & !7;
    if header[0] != 0x45 || flags & DONT != 0 || step == 0 {
        return None;
    }
    let last = payload.len().div_ceil(step).saturating_sub(1);
    let fragments = payload.chunks(step).enumerate().map(|(i, piece)| {
        let mut bytes = BytesMut::with_capacity(HEADER + piece.len());
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(piece);
        let more = if i < last { MORE } else { flags & MORE };
        let offset = (flags & 0x1fff) + (i * step / 8) as u16;
        bytes[2..4].copy_from_slice(&((HEADER + piece.len()) as u16).to_be_bytes());
        bytes[6..8].copy_from_slice(&(more | offset).to_be_bytes());
        bytes[10..12].fill(0);
        let sum = checksum::checksum(&bytes[..HEADER]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    });
    Some(fragments.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Instant;
    use crate::fragment::{Limits, Outcome, Reassembler};

    fn packet(len: usize) -> BytesMut {
        let (src, dst) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 1, 1]));
        let mut header = [0; MAX_IP_HEADER];
        let at =
            packet::emit_header(src, dst, packet::UDP, len, 1, 0, &mut header).expect("one family");
        let mut bytes = BytesMut::from(&header[..at]);
        bytes.resize(at + len, 0);
        bytes
    }

    #[test]
    fn a_hop_leaves_a_right_checksum_until_there_are_none_left() {
        let mut packet = packet(8);
        for _ in 1..64 {
            assert_eq!(forward(&mut packet), Forward::On);
            assert!(packet::parse(&packet).is_ok());
        }
        assert_eq!(forward(&mut packet), Forward::Expired);
    }

    #[test]
    fn errors_quote_their_cause_and_nobody_complains_of_a_complaint() {
        let router = IpAddr::from([10, 0, 0, 254]);
        let error = complain(router, &packet(1400), Complaint::TooBig(1280)).expect("an error");
        let parsed = packet::parse(&error).expect("well formed");
        assert_eq!((parsed.src, parsed.protocol), (router, packet::ICMP));
        let message = &error[parsed.transport..parsed.end];
        assert_eq!(&message[..2], &[3, 4]);
        assert_eq!(&message[6..8], &1280u16.to_be_bytes());
        assert_eq!(checksum::checksum(message), 0);
        assert_eq!(complain(router, &error, Complaint::Unreachable), None);
    }

    #[test]
    fn pings_are_answered_and_nothing_else_is() {
        for (asks, router, protocol, request, reply) in [
            ("10.0.0.1", "10.0.0.254", packet::ICMP, 8, 0),
            ("fd00::1", "fd00::fe", packet::ICMPV6, 128, 129),
        ] {
            let [asks, router]: [IpAddr; 2] =
                [asks, router].map(|address| address.parse().expect("literal"));
            let message = [&[request, 0, 0, 0, 1, 2, 0, 7][..], b"ping"].concat();
            let ping = icmp(asks, router, protocol, message).expect("one family");
            let answer = answer(&ping).expect("an answer");
            let parsed = packet::parse(&answer).expect("well formed");
            assert_eq!((parsed.src, parsed.dst), (router, asks));
            let message = &answer[parsed.transport..parsed.end];
            assert_eq!(
                (message[0], &message[4..]),
                (reply, &b"\x01\x02\0\x07ping"[..])
            );
            let valid = match router {
                IpAddr::V4(_) => checksum::checksum(message) == 0,
                IpAddr::V6(_) => {
                    checksum::transport_is_valid(router, asks, packet::ICMPV6, message)
                }
            };
            assert!(valid, "checksum");
            assert_eq!(super::answer(&answer), None);
        }
        assert_eq!(super::answer(&packet(40)), None);
    }

    #[test]
    fn what_was_cut_twice_is_put_together_again() {
        let mut whole = packet(4000);
        let at = whole.len() - 4000;
        for (i, byte) in whole[at..].iter_mut().enumerate() {
            *byte = (i / 8) as u8;
        }
        assert_eq!(cut(&whole, 1500), None, "it says \"don't fragment\"");
        whole[6] = 0;
        let twice: Vec<BytesMut> = cut(&whole, 1500)
            .expect("it may be cut")
            .iter()
            .flat_map(|fragment| cut(fragment, 577).expect("so may its fragments"))
            .collect();
        assert!(twice.iter().all(|fragment| fragment.len() <= 577));
        let mut reassembler = Reassembler::new(Limits::default());
        let mut complete = None;
        for fragment in &twice {
            if let Outcome::Complete(packet) = reassembler.push(Instant::ZERO, fragment) {
                complete = Some(packet);
            }
        }
        let complete = complete.expect("all fragments came");
        assert_eq!(complete[at..], whole[at..]);
    }

    #[test]
    fn prefixes_read_and_contain() {
        let net = Prefix::parse("10.1.0.0/16").expect("a prefix");
        assert!(net.contains(IpAddr::from([10, 1, 2, 3])));
        assert!(!net.contains(IpAddr::from([10, 2, 2, 3])));
        assert!(
            Prefix::parse("0.0.0.0/0")
                .expect("a prefix")
                .contains(IpAddr::from([8, 8, 8, 8]))
        );
        assert_eq!(Prefix::parse("10.0.0.0/33"), None);
    }
}
