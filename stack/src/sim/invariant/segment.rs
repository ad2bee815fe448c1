//! The few fields of a TCP segment that are looked at on every packet, read with as little work as can be.
//!
//! Addresses are numbers here: comparing and copying `SocketAddr`s costs more than all the rest of reading a header.

use crate::tcp::{Flags, FlowKey, SeqNumber};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// A sender and a receiver: addresses (IPv4 as mapped IPv6) and ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    src: u128,
    dst: u128,
    /// The sender's in the upper half.
    ports: u32,
}

/// `::ffff:0:0/96`
const MAPPED: u128 = 0xffff_0000_0000;

impl Ends {
    pub(super) fn reverse(self) -> Ends {
        Ends {
            src: self.dst,
            dst: self.src,
            ports: self.ports.rotate_left(16),
        }
    }

    /// A small number that differs between most flows, and is cheap.
    pub(super) fn spread(self) -> usize {
        (self.ports ^ self.ports >> 13 ^ self.src as u32) as usize
    }
}

impl From<&FlowKey> for Ends {
    /// The local end sends.
    fn from(flow: &FlowKey) -> Ends {
        let number = |address: SocketAddr| match address.ip() {
            IpAddr::V4(v4) => MAPPED | u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        Ends {
            src: number(flow.local),
            dst: number(flow.remote),
            ports: u32::from(flow.local.port()) << 16 | u32::from(flow.remote.port()),
        }
    }
}

impl From<Ends> for FlowKey {
    fn from(ends: Ends) -> FlowKey {
        let address = |number: u128, port: u32| {
            let ip = Ipv6Addr::from_bits(number).to_canonical();
            SocketAddr::new(ip, port as u16)
        };
        FlowKey {
            local: address(ends.src, ends.ports >> 16),
            remote: address(ends.dst, ends.ports & 0xffff),
        }
    }
}

/// A TCP segment, its checksum not looked at.
pub(super) struct TcpHeader<'a> {
    pub(super) ends: Ends,
    pub(super) seq: SeqNumber,
    pub(super) ack: SeqNumber,
    pub(super) flags: Flags,
    pub(super) payload: &'a [u8],
    /// Header and payload.
    pub(super) segment: &'a [u8],
}

impl<'a> TcpHeader<'a> {
    /// `None` for everything that is no whole TCP segment right behind an IP header.
    #[inline]
    pub(super) fn read(packet: &'a [u8]) -> Option<TcpHeader<'a>> {
        let word = |bytes: &[u8], at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (src, dst, segment) = match packet.first()? >> 4 {
            4 => {
                let header: &[u8; 20] = packet.first_chunk()?;
                let whole = word(header, 4) & 0x3fff == 0; // neither an offset nor more fragments
                if header[9] != 6 || !whole {
                    return None;
                }
                let header_len = usize::from(header[0] & 15) * 4;
                let end = (word(header, 0) & 0xffff) as usize;
                let segment = packet.get(header_len..end)?;
                let address = |at| MAPPED | u128::from(word(header, at));
                (address(12), address(16), segment)
            }
            6 => {
                let header: &[u8; 40] = packet.first_chunk()?;
                if header[6] != 6 {
                    return None;
                }
                let end = 40 + (word(header, 4) >> 16) as usize;
                let address = |at: usize| {
                    let mut octets = [0; 16];
                    octets.copy_from_slice(&header[at..at + 16]);
                    u128::from_be_bytes(octets)
                };
                (address(8), address(24), packet.get(40..end)?)
            }
            _ => return None,
        };
        let header: &[u8; 20] = segment.first_chunk()?;
        let header_len = usize::from(header[12] >> 4) * 4;
        let payload = segment.get(header_len..)?;
        if header_len < 20 {
            return None;
        }
        Some(TcpHeader {
            ends: Ends {
                src,
                dst,
                ports: word(header, 0),
            },
            seq: SeqNumber(word(header, 4)),
            ack: SeqNumber(word(header, 8)),
            flags: Flags::from_bits(header[13]),
            payload,
            segment,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::decode::View;
    use crate::sim::packets::{fragment_v6, tcp, udp};

    #[test]
    fn reads_what_the_thorough_reader_reads() {
        for (src, dst) in [
            ("10.0.0.1:40000", "10.0.0.2:443"),
            ("[fd00::1]:40000", "[fd00::2]:443"),
        ] {
            let packet = tcp(src, dst, 77, Some(88), Flags::PSH, b"payload");
            let read = TcpHeader::read(&packet).expect("a segment");
            let view = View::parse(&packet).expect("a packet");
            let flow = view.flow().expect("it has ports");
            assert_eq!(
                (read.ends, FlowKey::from(read.ends)),
                (Ends::from(&flow), flow)
            );
            let reversed = FlowKey::from(read.ends.reverse());
            assert_eq!((reversed.local, reversed.remote), (flow.remote, flow.local));
            assert_eq!((read.seq, read.ack), (SeqNumber(77), SeqNumber(88)));
            assert_eq!(read.flags, Flags::PSH | Flags::ACK);
            assert_eq!(
                (read.payload, read.segment),
                (&b"payload"[..], view.transport)
            );
            for len in 0..packet.len() {
                assert!(TcpHeader::read(&packet[..len]).is_none());
            }
        }
        assert!(TcpHeader::read(&udp("10.0.0.1:1", "10.0.0.2:2", &[0; 40])).is_none());
        assert!(
            TcpHeader::read(&fragment_v6("fd00::1", "fd00::2", 1, 8, true, &[0; 40])).is_none()
        );
        let mut fragment = tcp("10.0.0.1:1", "10.0.0.2:2", 0, None, Flags::NONE, b"");
        fragment[6] = 0x20;
        assert!(TcpHeader::read(&fragment).is_none());
    }
}
