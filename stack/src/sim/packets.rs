//! Packets by hand, for the tests of this folder.

use crate::device::checksum;
use crate::packet::{self, MAX_IP_HEADER};
use crate::tcp::{Cause, EcnCodepoint, Flags, FlowKey, Options, SeqNumber, Transmit};
use std::net::{IpAddr, SocketAddr};

fn ip(src: IpAddr, dst: IpAddr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut header = [0; MAX_IP_HEADER];
    let len = packet::emit_header(src, dst, protocol, transport.len(), 1, 0, &mut header)
        .expect("one family");
    [&header[..len], transport].concat()
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// A segment with window 512 and these flags, ACK by `ack`.
pub(super) fn tcp(
    src: &str,
    dst: &str,
    seq: u32,
    ack: Option<u32>,
    flags: Flags,
    payload: &[u8],
) -> Vec<u8> {
    let (local, remote) = (address(src), address(dst));
    let transmit = Transmit {
        seq: SeqNumber(seq),
        ack: ack.map(SeqNumber),
        flags: if ack.is_some() {
            flags | Flags::ACK
        } else {
            flags
        },
        window: 512,
        options: Options::default(),
        payload: 0..payload.len() as u64,
        retransmission: false,
        cause: Cause::First,
        gso_size: 1448,
        ecn: EcnCodepoint::NotEct,
    };
    let mut segment = vec![0; transmit.header_len()];
    transmit.emit_header(&FlowKey { local, remote }, &mut segment);
    segment.extend_from_slice(payload);
    let mut sum = checksum::pseudo_header(local.ip(), remote.ip(), 6, segment.len() as u32)
        .expect("one family");
    sum.add(&segment);
    segment[16..18].copy_from_slice(&sum.checksum().to_be_bytes());
    ip(local.ip(), remote.ip(), packet::TCP, &segment)
}

/// A datagram without a checksum.
pub(super) fn udp(src: &str, dst: &str, payload: &[u8]) -> Vec<u8> {
    let (src, dst) = (address(src), address(dst));
    let mut datagram = Vec::new();
    datagram.extend_from_slice(&src.port().to_be_bytes());
    datagram.extend_from_slice(&dst.port().to_be_bytes());
    datagram.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    datagram.extend_from_slice(&[0; 2]);
    datagram.extend_from_slice(payload);
    ip(src.ip(), dst.ip(), packet::UDP, &datagram)
}

/// ICMP's "fragmentation needed" about `cause`.
pub(super) fn icmp_too_big(src: &str, dst: &str, mtu: u16, cause: &[u8]) -> Vec<u8> {
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend_from_slice(&mtu.to_be_bytes());
    message.extend_from_slice(&cause[..28]);
    let (src, dst) = (src.parse().expect("literal"), dst.parse().expect("literal"));
    ip(src, dst, packet::ICMP, &message)
}

/// A fragment of a UDP datagram.
pub(super) fn fragment_v6(
    src: &str,
    dst: &str,
    identification: u32,
    offset: u16,
    more: bool,
    bytes: &[u8],
) -> Vec<u8> {
    let mut payload = vec![packet::UDP, 0];
    payload.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
    payload.extend_from_slice(&identification.to_be_bytes());
    payload.extend_from_slice(bytes);
    let (src, dst) = (src.parse().expect("literal"), dst.parse().expect("literal"));
    ip(src, dst, 44, &payload)
}
