//! UDP sockets: a message on the client's end is one datagram, with the peer's address in front.

use super::{Shard, UDP};
use crate::address::{self, ADDRESS_LEN};
use crate::device::{Offload, checksum};
use crate::fragment::fragment;
use crate::handle::SocketId;
use crate::packet::{self, MAX_IP_HEADER, Parsed};
use crate::registry::{Registry, Transport};
use crate::socket_info::{Reason, SocketInfo, SocketKind};
use bytes::BytesMut;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, sendmsg};
use smoltcp::wire::UdpPacket;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Largest UDP payload over IPv4: 65,535 less 20 and 8.
const MAX_PAYLOAD: usize = 65_507;
const UDP_HEADER: usize = 8;
/// Datagrams sent for one socket before others get their turn.
const PER_TURN: usize = 64;

/// A UDP socket. It is made by the front door and lives in the shard that its port hashes to.
#[derive(Debug)]
pub(crate) struct UdpSocket {
    pub(crate) id: SocketId,
    pub(crate) uid: u32,
    pub(crate) local: SocketAddr,
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) cookie: u64,
    pub(crate) end: OwnedFd,
    pub(crate) registry: Arc<Registry>,
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.registry.free(Transport::Udp, self.local);
        self.registry.remove(self.cookie, None);
    }
}

impl UdpSocket {
    /// What `uktls stat` shows.
    pub(super) fn info(&self, shard: usize) -> SocketInfo {
        SocketInfo {
            id: self.id.0,
            kind: SocketKind::Udp,
            shard,
            uid: self.uid,
            local: self.local,
            remote: self.remote,
            state: None,
            tcp: None,
            ulp: false,
            tx: None,
            rx: None,
            records: (0, 0),
            reason: Reason::Open,
            memory: 0,
        }
    }
}

impl Shard {
    pub(super) fn add_udp(&mut self, socket: UdpSocket) {
        let index = self.udp.vacant_key();
        if let Err(errno) = self.register(&socket.end, UDP, index) {
            tracing::error!("a UDP socket cannot be watched: {errno}");
            return;
        }
        self.udp_bound
            .entry(socket.local.port())
            .or_default()
            .push(index);
        self.udp.insert(socket);
    }

    /// A datagram for a socket, or for nobody.
    pub(super) fn on_udp(&mut self, parsed: Parsed, mut packet: BytesMut, offload: Offload) {
        let Ok(udp) = UdpPacket::new_checked(&packet[parsed.transport..parsed.end]) else {
            return self.common.counters.malformed.add(1);
        };
        let (from, to) = (udp.src_port(), udp.dst_port());
        let payload = parsed.transport + UDP_HEADER..parsed.transport + usize::from(udp.len());
        let owner = self.common.hash.owner(to, self.common.ports.len());
        if self.forwarded(owner, &mut packet, offload) {
            return;
        }
        let (src, dst) = (
            SocketAddr::new(parsed.src, from),
            SocketAddr::new(parsed.dst, to),
        );
        let bound = self
            .udp_bound
            .get(&to)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let fits = |socket: &UdpSocket| {
            let local = socket.local.ip();
            (local == dst.ip() || (local.is_unspecified() && local.is_ipv4() == dst.is_ipv4()))
                && socket.remote.is_none_or(|remote| remote == src)
        };
        let Some(socket) = bound
            .iter()
            .map(|&index| &self.udp[index])
            .find(|socket| fits(socket))
        else {
            return;
        };
        let sent = sendmsg(
            &socket.end,
            &[
                IoSlice::new(&address::encode(src)),
                IoSlice::new(&packet[payload]),
            ],
            &mut SendAncillaryBuffer::default(),
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        );
        if sent.is_err() {
            self.common.counters.udp_full.add(1);
        }
    }

    /// A client's end became readable, or was closed.
    pub(super) fn on_udp_client(&mut self, index: usize, closed: bool) {
        let mut buffer = vec![0; ADDRESS_LEN + MAX_PAYLOAD + 1];
        for _ in 0..PER_TURN {
            let Some(socket) = self.udp.get(index) else {
                return;
            };
            match rustix::net::recv(&socket.end, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => break,
                Ok((_, n)) => {
                    let Some(peer) = address::decode(&buffer[..n]) else {
                        continue;
                    };
                    let remote = match socket.remote {
                        Some(remote) if peer.port() == 0 => remote,
                        _ => peer,
                    };
                    let local = socket.local;
                    self.send_udp(local, remote, &buffer[ADDRESS_LEN..n]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if closed {
                        break;
                    }
                    return;
                }
                Err(_) => break,
            }
        }
        let more = self
            .udp
            .get(index)
            .is_some_and(|socket| crate::emit::source::waiting(&socket.end) > 0);
        if more {
            // Edge-triggered readiness would not come again: ask for it.
            if let Some(socket) = self.udp.get(index) {
                let fd = socket.end.as_raw_fd();
                let _ = self.poll.registry().reregister(
                    &mut mio::unix::SourceFd(&fd),
                    super::token(UDP, index),
                    mio::Interest::READABLE | mio::Interest::WRITABLE,
                );
            }
            return;
        }
        if closed {
            self.remove_udp(index);
        }
    }

    fn remove_udp(&mut self, index: usize) {
        let Some(socket) = self.udp.try_remove(index) else {
            return;
        };
        let _ = self
            .poll
            .registry()
            .deregister(&mut mio::unix::SourceFd(&socket.end.as_raw_fd()));
        if let Some(indices) = self.udp_bound.get_mut(&socket.local.port()) {
            indices.retain(|&at| at != index);
            if indices.is_empty() {
                self.udp_bound.remove(&socket.local.port());
            }
        }
    }

    fn send_udp(&mut self, local: SocketAddr, remote: SocketAddr, payload: &[u8]) {
        let src = match local.ip() {
            ip if !ip.is_unspecified() => ip,
            _ => match self
                .common
                .config
                .addresses
                .iter()
                .find(|(ip, _)| ip.is_ipv4() == remote.is_ipv4())
            {
                Some((ip, _)) => *ip,
                None => return,
            },
        };
        let len = UDP_HEADER + payload.len();
        let Ok(len16) = u16::try_from(len) else {
            return;
        };
        let Some(mut sum) = checksum::pseudo_header(src, remote.ip(), packet::UDP, len as u32)
        else {
            return;
        };
        let mut datagram = Vec::with_capacity(len);
        datagram.extend_from_slice(&local.port().to_be_bytes());
        datagram.extend_from_slice(&remote.port().to_be_bytes());
        datagram.extend_from_slice(&len16.to_be_bytes());
        datagram.extend_from_slice(&[0, 0]);
        datagram.extend_from_slice(payload);
        sum.add(&datagram);
        let sum = sum.checksum_not_zero();
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        let ip_len = if src.is_ipv4() { 20 } else { 40 };
        if ip_len + len > self.device.capabilities().mtu {
            return self.send_fragmented(src, remote.ip(), packet::UDP, &datagram);
        }
        self.output.datagram(
            src,
            remote.ip(),
            packet::UDP,
            &[IoSlice::new(&datagram)],
            &mut *self.device,
            &self.common.counters,
        );
    }

    /// Sends a datagram that is longer than the MTU, in fragments.
    pub(super) fn send_fragmented(
        &mut self,
        src: IpAddr,
        dst: IpAddr,
        protocol: u8,
        datagram: &[u8],
    ) {
        let identification = self.output.identification();
        let mut ip = [0; MAX_IP_HEADER];
        let Some(ip_len) = packet::emit_header(
            src,
            dst,
            protocol,
            datagram.len(),
            identification,
            0,
            &mut ip,
        ) else {
            return;
        };
        if src.is_ipv4() {
            // Fragments may be fragmented again on the way.
            ip[6..8].fill(0);
            ip[10..12].fill(0);
            let sum = checksum::checksum(&ip[..20]);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let mtu = self.device.capabilities().mtu;
        match fragment(
            &ip[..ip_len],
            &[IoSlice::new(datagram)],
            mtu,
            u32::from(identification),
        ) {
            Ok(fragments) => {
                for packet in fragments {
                    self.common.counters.packets_out.add(1);
                    if self.device.send(&Offload::NONE, &packet, &[]).is_err() {
                        self.common.counters.device_full.add(1);
                    }
                }
            }
            Err(error) => tracing::debug!("a datagram to {dst} is not sent: {error}"),
        }
    }
}
