//! UDP sockets: one datagram a message, with the peer's address.
//!
//! With UDP segmentation offload one packet holds many datagrams of one length, both ways: what comes is cut here, what leaves
//! is cut behind the device.

use super::output::{Path, udp_header};
use super::{Datagram, DatagramEnd, Engine, Host};
use crate::clock::Instant;
use crate::device::{Offload, checksum};
use crate::fragment::fragment;
use crate::handle::SocketId;
use crate::packet::{self, MAX_IP_HEADER, Parsed};
use crate::socket_info::{Reason, SocketInfo, SocketKind};
use bytes::BytesMut;
use smoltcp::wire::UdpPacket;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};

/// Largest UDP payload over IPv4: 65,535 less 20 and 8.
const MAX_UDP_PAYLOAD: usize = 65_507;
pub(super) const UDP_HEADER: usize = 8;
/// Datagrams sent for one socket before others get their turn.
const PER_TURN: usize = 64;

/// A UDP socket. It lives in the engine that its port hashes to.
#[derive(Debug)]
pub(crate) struct UdpSocket<D> {
    pub(crate) id: SocketId,
    pub(crate) uid: u32,
    pub(crate) local: SocketAddr,
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) end: D,
}

/// What is left to do after a UDP socket's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UdpTurn {
    /// Nothing until the client has something.
    Rest,
    /// The client has more.
    More,
    /// The client is gone.
    Closed,
}

impl<D> UdpSocket<D> {
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

impl<H: Host> Engine<H> {
    /// Takes a UDP socket, and gives its number in this engine.
    pub(crate) fn add_udp(&mut self, socket: UdpSocket<H::Datagrams>) -> usize {
        let port = socket.local.port();
        let index = self.udp.insert(socket);
        self.udp_bound.entry(port).or_default().push(index);
        index
    }

    /// The number that the next UDP socket will have.
    pub(crate) fn next_udp(&self) -> usize {
        self.udp.vacant_key()
    }

    /// Only this peer's datagrams are delivered from now on, and datagrams without a peer go there.
    pub(crate) fn connect_udp(&mut self, index: usize, remote: SocketAddr) {
        if let Some(socket) = self.udp.get_mut(index) {
            socket.remote = Some(remote);
        }
    }

    /// A UDP socket's client end.
    pub(crate) fn udp_end(&self, index: usize) -> Option<&H::Datagrams> {
        self.udp.get(index).map(|socket| &socket.end)
    }

    /// A datagram for a socket, or for nobody.
    pub(super) fn on_udp(&mut self, parsed: Parsed, mut packet: BytesMut, offload: Offload) {
        let Ok(udp) = UdpPacket::new_checked(&packet[parsed.transport..parsed.end]) else {
            return self.settings.counters.malformed.add(1);
        };
        let (from, to) = (udp.src_port(), udp.dst_port());
        let payload = parsed.transport + UDP_HEADER..parsed.transport + usize::from(udp.len());
        let owner = self.settings.hash.owner(to, self.settings.engines);
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
        let fits = |socket: &UdpSocket<H::Datagrams>| {
            let local = socket.local.ip();
            (local == dst.ip() || (local.is_unspecified() && local.is_ipv4() == dst.is_ipv4()))
                && socket.remote.is_none_or(|remote| remote == src)
        };
        let Some(index) = bound.iter().copied().find(|&index| fits(&self.udp[index])) else {
            return;
        };
        let payload = &mut packet[payload];
        let stride = match offload.gso {
            Some(gso) if !gso.kind.is_tcp() && gso.size > 0 => usize::from(gso.size),
            _ => payload.len(),
        };
        if payload.is_empty() {
            return self.receive_datagram(index, src, payload);
        }
        for datagram in payload.chunks_mut(stride) {
            self.receive_datagram(index, src, datagram);
        }
    }

    /// Sends what a UDP socket's client wants sent, up to a bound.
    pub(crate) fn udp_turn(&mut self, now: Instant, index: usize) -> UdpTurn {
        self.now = now;
        // Room for the address in front, and for a byte too many to be seen.
        let mut buffer = std::mem::take(&mut self.udp_buffer);
        buffer.resize(crate::address::ADDRESS_LEN + MAX_UDP_PAYLOAD + 1, 0);
        let turn = self.send_datagrams(index, &mut buffer);
        self.udp_buffer = buffer;
        turn
    }

    fn send_datagrams(&mut self, index: usize, buffer: &mut [u8]) -> UdpTurn {
        for _ in 0..PER_TURN {
            let Some(socket) = self.udp.get_mut(index) else {
                return UdpTurn::Rest;
            };
            match socket.end.pull(buffer) {
                Datagram::To(peer, payload) => {
                    let (local, connected) = (socket.local, socket.remote);
                    if let Some(remote) = peer.or(connected) {
                        self.send_one(index, local, remote, &buffer[payload]);
                    }
                }
                Datagram::Malformed => {}
                Datagram::Empty => return UdpTurn::Rest,
                Datagram::Closed => return UdpTurn::Closed,
            }
        }
        match self.udp.get(index) {
            Some(socket) if socket.end.has_more() => UdpTurn::More,
            _ => UdpTurn::Rest,
        }
    }

    /// A UDP socket's client is gone.
    pub(crate) fn remove_udp(&mut self, index: usize) {
        self.flush_records(index);
        let Some(socket) = self.udp.try_remove(index) else {
            return;
        };
        let port = socket.local.port();
        if let Some(indices) = self.udp_bound.get_mut(&port) {
            indices.retain(|&at| at != index);
            if indices.is_empty() {
                self.udp_bound.remove(&port);
            }
        }
        if let Some(mut extras) = self.udp_extras.remove(&index)
            && let Some(association) = &mut extras.association
        {
            association.outgoing.abandon();
        }
        self.host.close_datagrams(socket.end);
    }

    /// Sends a datagram that a client wrote on the socket itself.
    fn send_one(&mut self, index: usize, local: SocketAddr, remote: SocketAddr, payload: &[u8]) {
        let link = self.host.device().capabilities().mtu;
        let extras = self.udp_extras.get(&index);
        let path_mtu = extras.map_or(link, |extras| extras.path_mtu(link, self.now));
        let ip_len = if remote.is_ipv4() { 20 } else { 40 };
        if extras.is_some_and(|extras| extras.dont_fragment)
            && ip_len + UDP_HEADER + payload.len() > path_mtu
        {
            return self.settings.counters.udp_too_long.add(1);
        }
        self.send_udp(local, remote, payload, payload.len(), path_mtu);
    }

    /// Sends datagrams of `stride` bytes each, the last one maybe shorter, in as few packets as the device takes.
    pub(super) fn send_udp(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        payload: &[u8],
        stride: usize,
        path_mtu: usize,
    ) {
        let src = match local.ip() {
            ip if !ip.is_unspecified() => ip,
            _ => match self.source_for(remote.ip()) {
                Some(ip) => ip,
                None => return,
            },
        };
        let path = Path {
            local: SocketAddr::new(src, local.port()),
            remote,
        };
        let ip_len = if src.is_ipv4() { 20 } else { 40 };
        if ip_len + UDP_HEADER + stride > path_mtu {
            for datagram in payload.chunks(stride) {
                self.send_udp_fragmented(path, datagram, path_mtu);
            }
        } else {
            self.output.udp(
                &path,
                payload,
                stride,
                self.host.device(),
                &self.settings.counters,
            );
        }
    }

    fn send_udp_fragmented(&mut self, path: Path, payload: &[u8], path_mtu: usize) {
        let (src, dst) = (path.local.ip(), path.remote.ip());
        let len = UDP_HEADER + payload.len();
        let Some((mut header, mut sum)) = udp_header(&path, len) else {
            return;
        };
        sum.add(&header);
        sum.add(payload);
        header[6..].copy_from_slice(&sum.checksum_not_zero().to_be_bytes());
        let mut datagram = Vec::with_capacity(len);
        datagram.extend_from_slice(&header);
        datagram.extend_from_slice(payload);
        self.send_fragmented(src, dst, packet::UDP, &datagram, path_mtu);
    }

    /// Sends a datagram that is longer than the path's MTU, in fragments.
    pub(super) fn send_fragmented(
        &mut self,
        src: IpAddr,
        dst: IpAddr,
        protocol: u8,
        datagram: &[u8],
        mtu: usize,
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
        match fragment(
            &ip[..ip_len],
            &[IoSlice::new(datagram)],
            mtu,
            u32::from(identification),
        ) {
            Ok(fragments) => {
                for packet in fragments {
                    self.settings.counters.packets_out.add(1);
                    if self
                        .host
                        .device()
                        .send(&Offload::NONE, &packet, &[])
                        .is_err()
                    {
                        self.settings.counters.device_full.add(1);
                    }
                }
            }
            Err(error) => tracing::debug!("a datagram to {dst} is not sent: {error}"),
        }
    }
}
