//! Cutting super-segments into the packets that a wire would carry.
//!
//! What a network card does behind TSO and USO, in software, for whoever has to see or carry real packets: the capture and the virtual link. A TUN never comes here; between it and
//! a receiver on the same machine super-segments stay whole, which is the point of them.
//!
//! Each segment gets the super-segment's headers with the differences that Linux makes too: lengths, checksums, the TCP sequence number,
//! FIN and PSH on the last only, CWR on the first only, and IPv4 identifications counting up. Encapsulation and IP
//! fragments are not handled; nothing in this stack makes super-segments of them.

use super::{Malformed, Offload, checksum};
use bytes::BytesMut;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Hands `each` every packet that `packet` stands for, complete with all checksums, and gives their number.
///
/// A packet without `offload` is handed on as it is. `scratch` is what packets are built in; its contents before and after are of no meaning.
pub fn cut(
    packet: &[u8],
    offload: &Offload,
    scratch: &mut Vec<u8>,
    mut each: impl FnMut(&[u8]),
) -> Result<usize, Malformed> {
    let Some(gso) = offload.gso else {
        let Some(request) = offload.needs_csum else {
            each(packet);
            return Ok(1);
        };
        scratch.clear();
        scratch.extend_from_slice(packet);
        checksum::complete(scratch, request)?;
        each(scratch);
        return Ok(1);
    };

    let headers = Headers::locate(packet, offload)?;
    let size = usize::from(gso.size);
    if size == 0 {
        return Err(Malformed::SegmentSize);
    }
    let (header, payload) = packet.split_at(headers.length);
    // A super-segment without payload is one segment without payload, not none.
    let segments = payload.len().div_ceil(size).max(1);
    for index in 0..segments {
        let start = index * size;
        let end = payload.len().min(start + size);
        scratch.clear();
        scratch.extend_from_slice(header);
        scratch.extend_from_slice(&payload[start..end]);
        headers.finish(
            scratch,
            Place {
                index,
                offset: start,
                last: index + 1 == segments,
            },
        );
        each(scratch);
    }
    Ok(segments)
}

/// Hands `each` every packet that a super-segment stands for, in a piece of one buffer, its checksum still partial: what
/// [`cut`] does, for a receiver that completes a checksum only if somebody will look at it.
pub fn cut_partial(
    headers: &[u8],
    payload: &[IoSlice<'_>],
    offload: &Offload,
    mut each: impl FnMut(BytesMut),
) -> Result<usize, Malformed> {
    let layout = Headers::locate(headers, offload)?;
    let size = offload.gso.map_or(0, |gso| usize::from(gso.size));
    if size == 0 || layout.length != headers.len() {
        return Err(Malformed::SegmentSize);
    }
    let total: usize = payload.iter().map(|slice| slice.len()).sum();
    let segments = total.div_ceil(size).max(1);
    let mut slices = payload.iter();
    let mut rest: &[u8] = &[];
    // One allocation for all of them.
    let mut room = BytesMut::with_capacity(segments * headers.len() + total);
    for index in 0..segments {
        let offset = index * size;
        let mut wanted = size.min(total - offset);
        room.extend_from_slice(headers);
        while wanted > 0 {
            if rest.is_empty() {
                match slices.next() {
                    Some(next) => rest = next,
                    None => break,
                }
            }
            let (piece, behind) = rest.split_at(wanted.min(rest.len()));
            room.extend_from_slice(piece);
            wanted -= piece.len();
            rest = behind;
        }
        let mut segment = room.split();
        let place = Place {
            index,
            offset,
            last: index + 1 == segments,
        };
        let (field, sum) = layout.place(&mut segment, place);
        let at = layout.transport + field;
        segment[at..at + 2].copy_from_slice(&sum.fold().to_be_bytes());
        each(segment);
    }
    Ok(segments)
}

/// Where one segment lies in its super-segment.
struct Place {
    index: usize,
    offset: usize,
    last: bool,
}

/// Where a super-segment's headers are.
struct Headers {
    v6: bool,
    protocol: u8,
    /// Start of the transport header.
    transport: usize,
    /// Length of all headers: start of the payload.
    length: usize,
}

impl Headers {
    fn locate(packet: &[u8], offload: &Offload) -> Result<Headers, Malformed> {
        let gso = offload.gso.ok_or(Malformed::Headers)?;
        let request = offload.needs_csum.ok_or(Malformed::Headers)?;
        let transport = usize::from(request.start);
        let (v6, protocol) = (gso.kind.is_v6(), if gso.kind.is_tcp() { TCP } else { UDP });
        let first = *packet.first().ok_or(Malformed::Headers)?;
        let ip_is_as_claimed = if v6 {
            // Extension headers may stand between; where they end is what the checksum request says.
            first >> 4 == 6 && transport >= 40
        } else {
            first >> 4 == 4
                && transport == usize::from(first & 0x0f) * 4
                && transport >= 20
                && packet.get(9) == Some(&protocol)
        };
        let transport_length = match protocol {
            TCP => usize::from(*packet.get(transport + 12).ok_or(Malformed::Headers)? >> 4) * 4,
            _ => 8,
        };
        let length = transport + transport_length;
        let least = if protocol == TCP { 20 } else { 8 };
        if !ip_is_as_claimed || transport_length < least || length > packet.len() {
            return Err(Malformed::Headers);
        }
        Ok(Headers {
            v6,
            protocol,
            transport,
            length,
        })
    }

    /// Makes the super-segment's headers in front of `segment` that segment's own, checksum included.
    fn finish(&self, segment: &mut [u8], place: Place) {
        let (field, mut sum) = self.place(segment, place);
        let transport = &mut segment[self.transport..];
        transport[field..field + 2].copy_from_slice(&[0, 0]);
        sum.add(transport);
        transport[field..field + 2].copy_from_slice(&sum.checksum_not_zero().to_be_bytes());
    }

    /// The same but for the checksum: where its field is, in bytes from the transport header, and the pseudo header's sum.
    fn place(&self, segment: &mut [u8], place: Place) -> (usize, checksum::Sum) {
        // At most MAX_PACKET, as the super-segment is no longer than that; a longer IPv6 one keeps its length's low bits.
        let length = segment.len() as u16;
        let (src, dst): (IpAddr, IpAddr);
        if self.v6 {
            segment[4..6].copy_from_slice(&length.wrapping_sub(40).to_be_bytes());
            src = Ipv6Addr::from(read::<16>(segment, 8)).into();
            dst = Ipv6Addr::from(read::<16>(segment, 24)).into();
        } else {
            segment[2..4].copy_from_slice(&length.to_be_bytes());
            let identification =
                u16::from_be_bytes(read(segment, 4)).wrapping_add(place.index as u16);
            segment[4..6].copy_from_slice(&identification.to_be_bytes());
            segment[10..12].copy_from_slice(&[0, 0]);
            let header_checksum = checksum::checksum(&segment[..self.transport]);
            segment[10..12].copy_from_slice(&header_checksum.to_be_bytes());
            src = Ipv4Addr::from(read::<4>(segment, 12)).into();
            dst = Ipv4Addr::from(read::<4>(segment, 16)).into();
        }

        let transport = &mut segment[self.transport..];
        let field = if self.protocol == TCP {
            let seq = u32::from_be_bytes(read(transport, 4)).wrapping_add(place.offset as u32);
            transport[4..8].copy_from_slice(&seq.to_be_bytes());
            if !place.last {
                transport[13] &= !(FIN | PSH);
            }
            if place.index > 0 {
                transport[13] &= !CWR;
            }
            16
        } else {
            let datagram = transport.len() as u16;
            transport[4..6].copy_from_slice(&datagram.to_be_bytes());
            6
        };
        let sum = checksum::pseudo_header(src, dst, self.protocol, transport.len() as u32)
            .expect("both addresses were read from one header");
        (field, sum)
    }
}

/// `N` bytes at a place that [`Headers::locate`] has found to be inside.
fn read<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use super::super::{CsumRequest, Gso, GsoKind};
    use super::*;
    use proptest::prelude::*;
    use smoltcp::wire::{IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

    const SEQ: u32 = 0xffff_ff00;

    /// A super-segment with FIN, PSH, ACK, CWR set, as the stack hands it to a device.
    fn super_segment(
        kind: GsoKind,
        options: usize,
        size: u16,
        payload: &[u8],
    ) -> (Vec<u8>, Offload) {
        let transport_length = if kind.is_tcp() { 20 + options * 4 } else { 8 };
        let transport = if kind.is_v6() { 40 } else { 20 };
        let protocol = if kind.is_tcp() { TCP } else { UDP };
        let total = transport + transport_length + payload.len();
        let mut packet = vec![0; transport + transport_length];
        if kind.is_v6() {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
            packet[6] = protocol;
            packet[7] = 64;
            packet[8..40].copy_from_slice(&[0xfd; 32]);
        } else {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            packet[4..6].copy_from_slice(&[0xff, 0xff]);
            packet[8] = 64;
            packet[9] = protocol;
            packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        }
        let header = &mut packet[transport..];
        header[..4].copy_from_slice(&[0x1f, 0x90, 0x00, 0x50]);
        if kind.is_tcp() {
            header[4..8].copy_from_slice(&SEQ.to_be_bytes());
            header[12] = (transport_length as u8 / 4) << 4;
            header[13] = FIN | PSH | 0x10 | CWR;
            header[20..].fill(1); // no-operation options
        }
        packet.extend_from_slice(payload);
        let offload = Offload {
            needs_csum: Some(CsumRequest {
                start: transport as u16,
                offset: if kind.is_tcp() { 16 } else { 6 },
            }),
            gso: Some(Gso {
                kind,
                hdr_len: (transport + transport_length) as u16,
                size,
            }),
            verified: false,
        };
        (packet, offload)
    }

    fn cut_all(packet: &[u8], offload: &Offload) -> Vec<Vec<u8>> {
        let mut segments = Vec::new();
        let count = cut(packet, offload, &mut Vec::new(), |segment| {
            segments.push(segment.to_vec())
        })
        .expect("well formed");
        assert_eq!(count, segments.len());
        segments
    }

    /// Transport header and payload of a packet that smoltcp finds valid, with its addresses.
    fn unwrap_ip(packet: &[u8]) -> (IpAddress, IpAddress, Vec<u8>) {
        if packet[0] >> 4 == 4 {
            let ip = Ipv4Packet::new_checked(packet).expect("a whole IPv4 packet");
            assert!(ip.verify_checksum());
            assert_eq!(usize::from(ip.total_len()), packet.len());
            (
                IpAddress::Ipv4(ip.src_addr()),
                IpAddress::Ipv4(ip.dst_addr()),
                ip.payload().to_vec(),
            )
        } else {
            let ip = Ipv6Packet::new_checked(packet).expect("a whole IPv6 packet");
            assert_eq!(ip.total_len(), packet.len());
            (
                IpAddress::Ipv6(ip.src_addr()),
                IpAddress::Ipv6(ip.dst_addr()),
                ip.payload().to_vec(),
            )
        }
    }

    proptest! {
        #[test]
        fn tcp_segments_carry_the_stream(v6 in any::<bool>(), options in 0usize..=10, size in 1u16..3_000, payload in prop::collection::vec(any::<u8>(), 0..9_000)) {
            let kind = if v6 { GsoKind::Tcp6 } else { GsoKind::Tcp4 };
            let (packet, offload) = super_segment(kind, options, size, &payload);
            let segments = cut_all(&packet, &offload);
            let mut stream = Vec::new();
            for (index, segment) in segments.iter().enumerate() {
                let (src, dst, transport) = unwrap_ip(segment);
                let tcp = TcpPacket::new_checked(&transport[..]).expect("a whole TCP segment");
                prop_assert!(tcp.verify_checksum(&src, &dst));
                prop_assert_eq!(tcp.seq_number().0 as u32, SEQ.wrapping_add(stream.len() as u32));
                let last = index + 1 == segments.len();
                prop_assert_eq!((tcp.fin(), tcp.psh(), tcp.ack()), (last, last, true));
                prop_assert_eq!(tcp.cwr(), index == 0);
                prop_assert!(tcp.payload().len() <= usize::from(size));
                prop_assert!(last || tcp.payload().len() == usize::from(size));
                if !v6 {
                    let ip = Ipv4Packet::new_checked(&segment[..]).expect("checked above");
                    prop_assert_eq!(ip.ident(), 0xffffu16.wrapping_add(index as u16));
                }
                stream.extend_from_slice(tcp.payload());
            }
            prop_assert_eq!(stream, payload);
        }

        #[test]
        fn partial_checksums_complete_to_the_same_packets(v6 in any::<bool>(), size in 1u16..3_000, payload in prop::collection::vec(any::<u8>(), 0..9_000), at in any::<prop::sample::Index>()) {
            let kind = if v6 { GsoKind::Tcp6 } else { GsoKind::Tcp4 };
            let (packet, offload) = super_segment(kind, 3, size, &payload);
            let (headers, payload) = packet.split_at(packet.len() - payload.len());
            let (left, right) = payload.split_at(at.index(payload.len() + 1));
            let mut segments = Vec::new();
            cut_partial(headers, &[IoSlice::new(left), IoSlice::new(right)], &offload, |mut segment| {
                checksum::complete(&mut segment, offload.needs_csum.expect("a super-segment has one")).expect("inside");
                segments.push(segment.to_vec());
            }).expect("well formed");
            let whole = cut_all(&packet, &offload);
            // Zero and all ones say the same; UDP's rule is kept by `cut` only.
            let field = if v6 { 56 } else { 36 };
            for (segment, whole) in segments.iter_mut().zip(&whole) {
                if segment[field..field + 2] == [0, 0] {
                    segment[field..field + 2].fill(0xff);
                }
                prop_assert_eq!(&*segment, whole);
            }
            prop_assert_eq!(segments.len(), whole.len());
        }

        #[test]
        fn udp_datagrams_are_whole(v6 in any::<bool>(), size in 1u16..3_000, payload in prop::collection::vec(any::<u8>(), 0..9_000)) {
            let kind = if v6 { GsoKind::Udp6 } else { GsoKind::Udp4 };
            let (packet, offload) = super_segment(kind, 0, size, &payload);
            let mut received = Vec::new();
            for segment in cut_all(&packet, &offload) {
                let (src, dst, transport) = unwrap_ip(&segment);
                let udp = UdpPacket::new_checked(&transport[..]).expect("a whole datagram");
                prop_assert!(udp.verify_checksum(&src, &dst));
                prop_assert_eq!(usize::from(udp.len()), transport.len());
                received.extend_from_slice(udp.payload());
            }
            prop_assert_eq!(received, payload);
        }

        #[test]
        fn garbage_is_cut_or_refused_and_never_panics(packet in prop::collection::vec(any::<u8>(), 0..200), start in 0u16..100, offset in any::<u16>(), size in 0u16..50, kind in 0usize..4, csum in any::<bool>(), gso in any::<bool>()) {
            let kind = [GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::Udp4, GsoKind::Udp6][kind];
            let offload = Offload {
                needs_csum: csum.then_some(CsumRequest { start, offset }),
                gso: gso.then_some(Gso { kind, hdr_len: 0, size }),
                verified: false,
            };
            let mut bytes = 0;
            if cut(&packet, &offload, &mut Vec::new(), |segment| bytes += segment.len()).is_ok() {
                prop_assert!(bytes >= packet.len());
            }
        }
    }

    #[test]
    fn a_partial_checksum_alone_is_completed() {
        let (mut packet, offload) = super_segment(GsoKind::Udp4, 0, 1_000, b"one datagram");
        let (src, dst) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let partial = checksum::pseudo_header_v4(src, dst, UDP, 8 + 12).fold();
        packet[24..26].copy_from_slice(&20u16.to_be_bytes());
        packet[26..28].copy_from_slice(&partial.to_be_bytes());
        let segments = cut_all(
            &packet,
            &Offload {
                gso: None,
                ..offload
            },
        );
        let udp = UdpPacket::new_checked(&segments[0][20..]).expect("a whole datagram");
        assert!(udp.verify_checksum(&src.into(), &dst.into()));
    }

    #[test]
    fn claims_that_the_headers_do_not_bear_out_are_refused() {
        let (packet, offload) = super_segment(GsoKind::Tcp4, 0, 100, &[7; 300]);
        let refused =
            |packet: &[u8], offload: Offload| cut(packet, &offload, &mut Vec::new(), |_| {});
        let gso = offload.gso.expect("made so");
        let other = Gso {
            kind: GsoKind::Tcp6,
            ..gso
        };
        assert_eq!(
            refused(
                &packet,
                Offload {
                    gso: Some(other),
                    ..offload
                }
            ),
            Err(Malformed::Headers)
        );
        assert_eq!(
            refused(
                &packet,
                Offload {
                    needs_csum: None,
                    ..offload
                }
            ),
            Err(Malformed::Headers)
        );
        assert_eq!(refused(&packet[..30], offload), Err(Malformed::Headers));
        let none = Gso { size: 0, ..gso };
        assert_eq!(
            refused(
                &packet,
                Offload {
                    gso: Some(none),
                    ..offload
                }
            ),
            Err(Malformed::SegmentSize)
        );
    }
}
