//! Building packets: IP and transport header into one small buffer, payload as slices, one `writev`.

use super::udp_socket::UDP_HEADER;
use crate::counters::Counters;
use crate::device::{Capabilities, CsumRequest, Device, Gso, GsoKind, Offload, checksum};
use crate::packet::{self, MAX_IP_HEADER};
use crate::tcp::{EcnCodepoint, FlowKey, MAX_HEADER_LEN, Transmit};
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};

/// Where a packet goes from and to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// A UDP header without its checksum, and the pseudo header's sum. `None` where addresses or length do not fit.
pub(super) fn udp_header(path: &Path, len: usize) -> Option<([u8; UDP_HEADER], checksum::Sum)> {
    let len16 = u16::try_from(len).ok()?;
    let (src, dst) = (path.local.ip(), path.remote.ip());
    let sum = checksum::pseudo_header(src, dst, packet::UDP, u32::from(len16))?;
    let mut header = [0; UDP_HEADER];
    header[..2].copy_from_slice(&path.local.port().to_be_bytes());
    header[2..4].copy_from_slice(&path.remote.port().to_be_bytes());
    header[4..6].copy_from_slice(&len16.to_be_bytes());
    Some((header, sum))
}

/// The packet builder of an engine.
#[derive(Debug)]
pub(super) struct Output {
    capabilities: Capabilities,
    /// Identification of the next IPv4 packet.
    identification: u16,
}

impl Output {
    pub(super) fn new(capabilities: Capabilities) -> Output {
        Output {
            capabilities,
            identification: 1,
        }
    }

    /// A fresh IPv4 identification.
    pub(super) fn identification(&mut self) -> u16 {
        self.identification = self.identification.wrapping_add(1);
        self.identification
    }

    /// Sends a segment whose payload is `slices`.
    pub(super) fn tcp_slices(
        &mut self,
        path: &Path,
        segment: &Transmit,
        slices: &[IoSlice<'_>],
        device: &mut dyn Device,
        counters: &Counters,
    ) {
        let (src, dst) = (path.local.ip(), path.remote.ip());
        let payload_len = segment.payload_len();
        let tcp_len = segment.header_len() + payload_len;
        let ecn = if segment.ecn == EcnCodepoint::Ect0 {
            2
        } else {
            0
        };
        let pieces = payload_len
            .div_ceil(usize::from(segment.gso_size).max(1))
            .max(1);
        let mut ip = [0; MAX_IP_HEADER];
        let Some(ip_len) = packet::emit_header(
            src,
            dst,
            packet::TCP,
            tcp_len,
            self.identification,
            ecn,
            &mut ip,
        ) else {
            return;
        };
        self.identification = self.identification.wrapping_add(pieces as u16);
        let mut headers = [0; MAX_IP_HEADER + MAX_HEADER_LEN];
        headers[..ip_len].copy_from_slice(&ip[..ip_len]);
        let key = FlowKey {
            local: path.local,
            remote: path.remote,
        };
        let len = ip_len + segment.emit_header(&key, &mut headers[ip_len..]);
        let Some(mut sum) = checksum::pseudo_header(src, dst, packet::TCP, tcp_len as u32) else {
            return;
        };
        let mut offload = Offload::NONE;
        let field = ip_len + 16..ip_len + 18;
        if self.capabilities.checksum {
            headers[field].copy_from_slice(&sum.fold().to_be_bytes());
            offload.needs_csum = Some(CsumRequest {
                start: ip_len as u16,
                offset: 16,
            });
            if pieces > 1 {
                let kind = if src.is_ipv4() {
                    GsoKind::Tcp4
                } else {
                    GsoKind::Tcp6
                };
                offload.gso = Some(Gso {
                    kind,
                    hdr_len: len as u16,
                    size: segment.gso_size,
                });
            }
        } else {
            sum.add(&headers[ip_len..len]);
            for slice in slices {
                sum.add(slice);
            }
            headers[field].copy_from_slice(&sum.checksum().to_be_bytes());
        }
        counters.packets_out.add(1);
        counters.segments_out.add(pieces as u64);
        counters.tcp_bytes_out.add(payload_len as u64);
        if segment.retransmission {
            counters.retransmits.add(pieces as u64);
        }
        if device.send(&offload, &headers[..len], slices).is_err() {
            counters.device_full.add(1);
        }
    }

    /// Sends UDP datagrams of `stride` bytes, the last one maybe shorter: in one packet where the device cuts it, else in one
    /// each. None is longer than the MTU.
    pub(super) fn udp(
        &mut self,
        path: &Path,
        payload: &[u8],
        stride: usize,
        device: &mut dyn Device,
        counters: &Counters,
    ) {
        if payload.len() > stride && !self.capabilities.uso {
            for datagram in payload.chunks(stride) {
                self.udp(path, datagram, stride, device, counters);
            }
            return;
        }
        let (src, dst) = (path.local.ip(), path.remote.ip());
        let udp_len = UDP_HEADER + payload.len();
        let pieces = payload.len().div_ceil(stride.max(1)).max(1);
        let mut ip = [0; MAX_IP_HEADER];
        let (Some(ip_len), Some((mut header, mut sum))) = (
            packet::emit_header(
                src,
                dst,
                packet::UDP,
                udp_len,
                self.identification,
                0,
                &mut ip,
            ),
            udp_header(path, udp_len),
        ) else {
            return;
        };
        self.identification = self.identification.wrapping_add(pieces as u16);
        let mut offload = Offload::NONE;
        if self.capabilities.checksum {
            header[6..].copy_from_slice(&sum.fold().to_be_bytes());
            offload.needs_csum = Some(CsumRequest {
                start: ip_len as u16,
                offset: 6,
            });
            if pieces > 1 {
                let kind = if src.is_ipv4() {
                    GsoKind::Udp4
                } else {
                    GsoKind::Udp6
                };
                offload.gso = Some(Gso {
                    kind,
                    hdr_len: (ip_len + UDP_HEADER) as u16,
                    size: stride as u16,
                });
            }
        } else {
            sum.add(&header);
            sum.add(payload);
            header[6..].copy_from_slice(&sum.checksum_not_zero().to_be_bytes());
        }
        let mut headers = [0; MAX_IP_HEADER + UDP_HEADER];
        headers[..ip_len].copy_from_slice(&ip[..ip_len]);
        headers[ip_len..ip_len + UDP_HEADER].copy_from_slice(&header);
        counters.packets_out.add(1);
        let sent = device.send(
            &offload,
            &headers[..ip_len + UDP_HEADER],
            &[IoSlice::new(payload)],
        );
        if sent.is_err() {
            counters.device_full.add(1);
        }
    }

    /// Sends a datagram of another protocol in one packet; its checksum is complete already.
    pub(super) fn datagram(
        &mut self,
        src: IpAddr,
        dst: IpAddr,
        protocol: u8,
        payload: &[IoSlice<'_>],
        device: &mut dyn Device,
        counters: &Counters,
    ) {
        let len = payload.iter().map(|slice| slice.len()).sum();
        let identification = self.identification();
        let mut ip = [0; MAX_IP_HEADER];
        let Some(ip_len) = packet::emit_header(src, dst, protocol, len, identification, 0, &mut ip)
        else {
            return;
        };
        counters.packets_out.add(1);
        if device.send(&Offload::NONE, &ip[..ip_len], payload).is_err() {
            counters.device_full.add(1);
        }
    }
}
