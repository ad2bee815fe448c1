//! Building packets: IP and transport header into one small buffer, payload as slices, one `writev`.

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
