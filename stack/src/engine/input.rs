//! A packet's way from the device to its socket.

use super::output::Path;
use super::{Engine, Flow, Host};
use crate::clock::Instant;
use crate::device::{Offload, checksum};
use crate::fragment::Outcome;
use crate::packet::{self, Drop, Parsed};
use crate::tcp::{Events, FlowKey, Segment, TimeWaitAnswer, Transmit, Unreachable, reset_for};
use bytes::{Buf, BytesMut};
use smoltcp::wire::{Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet};
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};

impl<H: Host> Engine<H> {
    /// One IP packet from the device, or forwarded by another engine.
    pub(crate) fn on_packet(&mut self, now: Instant, packet: BytesMut, offload: Offload) {
        self.now = now;
        let (packet, offload) = match self.reassembler.push(self.now, &packet) {
            Outcome::NotFragment => (packet, offload),
            Outcome::Pending => return,
            Outcome::Complete(whole) => (BytesMut::from(&whole[..]), Offload::NONE),
            Outcome::Dropped(_) => {
                self.settings.counters.fragments_dropped.add(1);
                return;
            }
        };
        let parsed = match packet::parse(&packet) {
            Ok(parsed) => parsed,
            Err(Drop::Malformed) => return self.settings.counters.malformed.add(1),
            Err(Drop::HeaderChecksum) => return self.settings.counters.bad_checksum.add(1),
        };
        if !self.is_ours(parsed.dst) {
            return self.settings.counters.not_ours.add(1);
        }
        if !offload.verified
            && matches!(parsed.protocol, packet::TCP | packet::UDP | packet::ICMPV6)
            && !checksum::transport_is_valid(
                parsed.src,
                parsed.dst,
                parsed.protocol,
                &packet[parsed.transport..parsed.end],
            )
        {
            return self.settings.counters.bad_checksum.add(1);
        }
        match parsed.protocol {
            packet::TCP => self.on_tcp(parsed, packet, offload),
            packet::UDP => self.on_udp(parsed, packet, offload),
            packet::ICMP => self.on_icmpv4(parsed, &packet),
            packet::ICMPV6 => self.on_icmpv6(parsed, &packet),
            _ => {}
        }
    }

    /// Whether an address is the stack's.
    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        self.settings
            .config
            .addresses
            .iter()
            .any(|(ours, _)| *ours == address)
    }

    /// Forwards a packet to its owner. True when this engine is not it.
    pub(super) fn forwarded(
        &mut self,
        owner: usize,
        packet: &mut BytesMut,
        offload: Offload,
    ) -> bool {
        if owner == self.settings.index {
            return false;
        }
        let packet = std::mem::take(packet);
        let offload = Offload {
            verified: true,
            ..offload
        };
        if !self.host.forward(owner, packet, offload) {
            self.settings.counters.forward_full.add(1);
        }
        true
    }

    fn on_tcp(&mut self, parsed: Parsed, mut packet: BytesMut, offload: Offload) {
        let Ok(mut segment) = Segment::parse(&packet[parsed.transport..parsed.end]) else {
            return self.settings.counters.malformed.add(1);
        };
        segment.ecn_ce = parsed.ecn_ce;
        let key = FlowKey {
            local: SocketAddr::new(parsed.dst, segment.dst_port),
            remote: SocketAddr::new(parsed.src, segment.src_port),
        };
        let owner = self.settings.hash.owner(key, self.settings.engines);
        if self.forwarded(owner, &mut packet, offload) {
            return;
        }
        self.settings
            .counters
            .tcp_bytes_in
            .add(segment.payload_len as u64);
        match self.flows.get_mut(&key) {
            Some(Flow::Socket(index)) => {
                let index = *index;
                packet.truncate(parsed.end);
                packet.advance(parsed.transport + segment.header_len);
                let socket = &mut self.sockets[index];
                let events = socket.connection.on_segment(self.now, &segment, packet);
                self.on_events(index, events);
            }
            Some(Flow::TimeWait(wait)) => match wait.on_segment(self.now, &segment) {
                TimeWaitAnswer::Ignore => {}
                TimeWaitAnswer::Send(answer) => self.send_alone(&key, &answer),
                TimeWaitAnswer::Reopen { isn_after } => {
                    self.flows.remove(&key);
                    self.on_syn(key, &segment, Some(isn_after));
                }
            },
            None if segment.flags.syn() && !segment.flags.ack() && !segment.flags.rst() => {
                self.on_syn(key, &segment, None);
            }
            None => {
                packet.truncate(parsed.end);
                packet.advance(parsed.transport + segment.header_len);
                self.on_stray(key, &segment, packet);
            }
        }
    }

    /// Answers a segment that belongs to nothing with a reset.
    pub(super) fn refuse(&mut self, key: &FlowKey, segment: &Segment) {
        if let Some(reset) = reset_for(segment) {
            self.settings.counters.resets_out.add(1);
            self.send_alone(key, &reset);
        }
    }

    /// Sends a segment without payload that belongs to no socket.
    pub(super) fn send_alone(&mut self, key: &FlowKey, segment: &Transmit) {
        let path = Path {
            local: key.local,
            remote: key.remote,
        };
        self.output.tcp_slices(
            &path,
            segment,
            &[],
            self.host.device(),
            &self.settings.counters,
        );
    }

    /// A connection reported something: passes it on, and gives the socket its turn.
    pub(super) fn on_events(&mut self, index: usize, events: Events) {
        let Some(socket) = self.sockets.get_mut(index) else {
            return;
        };
        socket.on_events(events, &self.settings.counters);
        if events.contains(Events::TIME_WAIT) {
            let wait = socket.connection.into_time_wait();
            socket.connection_done = true;
            let key = socket.key;
            self.flows.insert(key, Flow::TimeWait(wait));
            self.next_time_wait += 1;
            self.time_waits
                .insert((wait.deadline(), self.next_time_wait));
            self.time_wait_keys.insert(self.next_time_wait, key);
        }
        if events.contains(Events::ESTABLISHED) && self.sockets[index].listener.is_some() {
            self.accept(index);
        }
        self.queue(index);
    }

    fn on_icmpv4(&mut self, parsed: Parsed, packet: &[u8]) {
        let message = &packet[parsed.transport..parsed.end];
        let Ok(icmp) = Icmpv4Packet::new_checked(message) else {
            return self.settings.counters.malformed.add(1);
        };
        if !icmp.verify_checksum() {
            return self.settings.counters.bad_checksum.add(1);
        }
        match icmp.msg_type() {
            Icmpv4Message::EchoRequest => {
                let mut reply = message.to_vec();
                let mut icmp = Icmpv4Packet::new_unchecked(&mut reply);
                icmp.set_msg_type(Icmpv4Message::EchoReply);
                icmp.fill_checksum();
                self.send_icmp(parsed, packet::ICMP, &reply);
            }
            Icmpv4Message::DstUnreachable => {
                let (code, quoted) = (icmp.msg_code(), icmp.data());
                // RFC 1122 §4.2.3.9: codes 2 to 4 are hard errors, 0, 1 and 5 soft ones; 4 is path MTU discovery (RFC 1191).
                let mtu = (code == 4).then(|| u16::from_be_bytes([message[6], message[7]]));
                self.on_unreachable(quoted, matches!(code, 2 | 3), mtu);
            }
            _ => {}
        }
    }

    fn on_icmpv6(&mut self, parsed: Parsed, packet: &[u8]) {
        let message = &packet[parsed.transport..parsed.end];
        let Ok(icmp) = Icmpv6Packet::new_checked(message) else {
            return self.settings.counters.malformed.add(1);
        };
        match icmp.msg_type() {
            Icmpv6Message::EchoRequest => {
                let (IpAddr::V6(src), IpAddr::V6(dst)) = (parsed.dst, parsed.src) else {
                    return;
                };
                let mut reply = message.to_vec();
                let mut icmp = Icmpv6Packet::new_unchecked(&mut reply);
                icmp.set_msg_type(Icmpv6Message::EchoReply);
                icmp.fill_checksum(&src, &dst);
                self.send_icmp(parsed, packet::ICMPV6, &reply);
            }
            Icmpv6Message::DstUnreachable => {
                let hard = matches!(icmp.msg_code(), 1 | 4);
                self.on_unreachable(message.get(8..).unwrap_or_default(), hard, None);
            }
            Icmpv6Message::PktTooBig => {
                let mtu = u32::from_be_bytes([message[4], message[5], message[6], message[7]]);
                let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
                self.on_unreachable(message.get(8..).unwrap_or_default(), false, Some(mtu));
            }
            _ => {}
        }
    }

    /// An ICMP error that quotes one of our packets.
    fn on_unreachable(&mut self, quoted: &[u8], hard: bool, mtu: Option<u16>) {
        // The quotation may be cut short after 8 bytes of the transport header, so its lengths do not hold.
        let Some((src, dst, protocol, at)) = quoted_ends(quoted) else {
            return;
        };
        let Some(&[a, b, c, d, e, f, g, h]) = quoted.get(at..).and_then(<[u8]>::first_chunk::<8>)
        else {
            return;
        };
        let key = FlowKey {
            local: SocketAddr::new(src, u16::from_be_bytes([a, b])),
            remote: SocketAddr::new(dst, u16::from_be_bytes([c, d])),
        };
        if protocol == packet::UDP
            && let Some(mtu) = mtu
        {
            return self.on_udp_path_mtu(key.local, key.remote, mtu);
        }
        if protocol != packet::TCP {
            return;
        }
        let Some(&Flow::Socket(index)) = self.flows.get(&key) else {
            return;
        };
        let socket = &mut self.sockets[index];
        // RFC 5927 §4.1: the quoted sequence number must be of data in flight.
        let seq = crate::tcp::SeqNumber(u32::from_be_bytes([e, f, g, h]));
        if !socket.connection.is_in_flight(seq) {
            return;
        }
        match mtu {
            Some(mtu) => {
                let least = if src.is_ipv4() { 576 } else { 1280 };
                socket.connection.set_mtu(mtu.max(least), self.now);
                self.queue(index);
            }
            None => {
                let error = if hard {
                    Unreachable::Hard
                } else {
                    Unreachable::Soft
                };
                let events = socket.connection.on_icmp_unreachable(error);
                self.on_events(index, events);
            }
        }
    }

    fn send_icmp(&mut self, request: Parsed, protocol: u8, message: &[u8]) {
        let mtu = self.host.device().capabilities().mtu;
        if message.len() + 40 > mtu {
            return self.send_fragmented(request.dst, request.src, protocol, message, mtu);
        }
        self.output.datagram(
            request.dst,
            request.src,
            protocol,
            &[IoSlice::new(message)],
            self.host.device(),
            &self.settings.counters,
        );
    }
}

/// Addresses, protocol and transport offset of a quoted IP packet that may be cut short.
fn quoted_ends(quoted: &[u8]) -> Option<(IpAddr, IpAddr, u8, usize)> {
    match quoted.first()? >> 4 {
        4 => {
            let header = quoted.first_chunk::<20>()?;
            let octets = |at: usize| {
                IpAddr::from([header[at], header[at + 1], header[at + 2], header[at + 3]])
            };
            Some((
                octets(12),
                octets(16),
                header[9],
                usize::from(header[0] & 15) * 4,
            ))
        }
        6 => {
            let header = quoted.first_chunk::<40>()?;
            let octets = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&header[at..at + 16]);
                IpAddr::from(octets)
            };
            Some((octets(8), octets(24), header[6], 40))
        }
        _ => None,
    }
}
