//! Targeted faults: the third packet with application data, the SYN-ACK, every alert, the datagram of epoch 1.
//!
//! A [`Fault`] says which packets of a direction it means and what happens to them. Everything a packet can be
//! asked for stands in the packet, but for TLS: records begin anywhere in the byte stream, so a light [`Flow`](super::records::Flow) follows each
//! TCP connection's record headers as they pass. "The packet with content type 23" is one in which such a record *begins*; a record's
//! later segments are asked for by port, or by number.

use super::damage::Corruption;
use super::link::{Effect, Effects};
use super::random::Stream;
use super::records::{Datagram, Flows, Segment};
use super::{damage, source};
use crate::clock::{Duration, Instant};
use crate::packet::{self, TCP, UDP};
use std::fmt;
use std::net::IpAddr;

/// FIN in the TCP header's flags.
pub const FIN: u8 = 0x01;
/// SYN in the TCP header's flags.
pub const SYN: u8 = 0x02;
/// RST in the TCP header's flags.
pub const RST: u8 = 0x04;
/// PSH in the TCP header's flags.
pub const PSH: u8 = 0x08;
/// ACK in the TCP header's flags.
pub const ACK: u8 = 0x10;

/// What happens to a packet that a fault means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is lost.
    Drop,
    /// It arrives this much later; those behind it do not wait.
    Delay(Duration),
    /// It arrives twice.
    Duplicate,
    /// A random bit flips.
    Corrupt(Corruption),
    /// The bit of this number flips; see [`damage::corrupt`].
    CorruptBit(Corruption, u32),
    /// Only the first so many bytes of the IP packet arrive.
    Truncate(u32),
}

/// Which of the packets that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    All,
    /// The nth that matches; the first is 1.
    Nth(u64),
    /// The nth, the 2nth and so on.
    Every(u64),
}

/// What happens to which packets. Made by one of the actions, narrowed by the methods: all that was asked for must be so.
#[derive(Clone, PartialEq, Eq)]
pub struct Fault {
    action: Action,
    which: Which,
    from_ip: Option<IpAddr>,
    to_ip: Option<IpAddr>,
    from_port: Option<u16>,
    to_port: Option<u16>,
    protocol: Option<u8>,
    /// Flags that must be set, flags that must not.
    flags: Option<(u8, u8)>,
    payload: bool,
    content_type: Option<u8>,
    record: Option<u64>,
    epoch: Option<u16>,
    since: Instant,
    until: Instant,
}

impl Fault {
    /// A fault that means every packet until it is narrowed.
    pub const fn new(action: Action) -> Fault {
        Fault {
            action,
            which: Which::All,
            from_ip: None,
            to_ip: None,
            from_port: None,
            to_port: None,
            protocol: None,
            flags: None,
            payload: false,
            content_type: None,
            record: None,
            epoch: None,
            since: Instant::ZERO,
            until: Instant::FAR_FUTURE,
        }
    }

    /// Packets from this address.
    pub const fn from_ip(mut self, ip: IpAddr) -> Fault {
        self.from_ip = Some(ip);
        self
    }

    /// Packets to this address.
    pub const fn to_ip(mut self, ip: IpAddr) -> Fault {
        self.to_ip = Some(ip);
        self
    }

    /// Packets from this port.
    pub const fn from_port(mut self, port: u16) -> Fault {
        self.from_port = Some(port);
        self
    }

    /// Packets to this port.
    pub const fn to_port(mut self, port: u16) -> Fault {
        self.to_port = Some(port);
        self
    }

    /// Packets of TCP.
    pub const fn tcp(mut self) -> Fault {
        self.protocol = Some(TCP);
        self
    }

    /// Packets of UDP.
    pub const fn udp(mut self) -> Fault {
        self.protocol = Some(UDP);
        self
    }

    /// TCP segments with all the flags of `set` and none of `clear`: `.flags(SYN, ACK)` is an opening SYN.
    pub const fn flags(mut self, set: u8, clear: u8) -> Fault {
        self.flags = Some((set, clear));
        self
    }

    /// TCP and UDP packets that carry payload.
    pub const fn with_payload(mut self) -> Fault {
        self.payload = true;
        self
    }

    /// Packets in which a TLS or DTLS record of this content type begins (20 change_cipher_spec, 21 alert, 22 handshake, 23
    /// application_data; protected records of TLS 1.3 are all 23).
    pub const fn content_type(mut self, content_type: u8) -> Fault {
        self.content_type = Some(content_type);
        self
    }

    /// Packets in which the connection's `nth` TLS record begins, or with [`Fault::content_type`] its `nth` record of that type. The first is 1. A segment
    /// sent again carries the same record as it did before. No datagram matches: DTLS numbers its records itself, and DTLS 1.3 hides the
    /// numbers; [`Fault::dtls_epoch`] with [`Fault::nth`] counts datagrams.
    pub const fn record(mut self, nth: u64) -> Fault {
        self.record = Some(nth);
        self
    }

    /// UDP packets with a DTLS record of this epoch. DTLS 1.3's unified header has its two lowest bits only.
    pub const fn dtls_epoch(mut self, epoch: u16) -> Fault {
        self.epoch = Some(epoch);
        self
    }

    /// Packets offered at `since` or later.
    pub const fn since(mut self, since: Instant) -> Fault {
        self.since = since;
        self
    }

    /// Packets offered before `until`.
    pub const fn until(mut self, until: Instant) -> Fault {
        self.until = until;
        self
    }

    /// The same from `now` on.
    pub(super) fn not_before(self, now: Instant) -> Fault {
        let since = self.since.max(now);
        self.since(since)
    }

    /// The same up to `now`.
    pub(super) fn end(&mut self, now: Instant) {
        self.until = self.until.min(now);
    }

    /// Of all those only the nth; the first is 1.
    pub const fn nth(mut self, nth: u64) -> Fault {
        self.which = Which::Nth(nth);
        self
    }

    /// Of all those only the nth, the 2nth and so on.
    pub const fn every(mut self, nth: u64) -> Fault {
        self.which = Which::Every(nth);
        self
    }

    fn asks_for_records(&self) -> bool {
        self.content_type.is_some() || self.record.is_some()
    }

    fn means(&self, now: Instant, seen: &Seen) -> bool {
        let is = |wanted: Option<u16>, found: Option<u16>| wanted.is_none() || wanted == found;
        self.since <= now
            && now < self.until
            && self.from_ip.is_none_or(|ip| ip == seen.src)
            && self.to_ip.is_none_or(|ip| ip == seen.dst)
            && is(self.from_port, seen.ports.map(|ports| ports.0))
            && is(self.to_port, seen.ports.map(|ports| ports.1))
            && self
                .protocol
                .is_none_or(|protocol| protocol == seen.protocol)
            && self.flags.is_none_or(|(set, clear)| {
                seen.flags
                    .is_some_and(|flags| flags & set == set && flags & clear == 0)
            })
            && (!self.payload || seen.payload)
            && self
                .epoch
                .is_none_or(|epoch| seen.datagram.has_epoch(epoch))
            && (!self.asks_for_records()
                || seen.segment.has(self.content_type, self.record)
                || self.record.is_none()
                    && self
                        .content_type
                        .is_some_and(|kind| seen.datagram.has_type(kind)))
    }
}

/// The Rust expression that makes it.
impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fault::new({})", source::action(&self.action))?;
        let address = |f: &mut fmt::Formatter<'_>, method: &str, ip: IpAddr| {
            write!(f, ".{method}(\"{ip}\".parse().unwrap())")
        };
        if let Some(ip) = self.from_ip {
            address(f, "from_ip", ip)?;
        }
        if let Some(ip) = self.to_ip {
            address(f, "to_ip", ip)?;
        }
        if let Some(port) = self.from_port {
            write!(f, ".from_port({port})")?;
        }
        if let Some(port) = self.to_port {
            write!(f, ".to_port({port})")?;
        }
        match self.protocol {
            Some(TCP) => write!(f, ".tcp()")?,
            Some(_) => write!(f, ".udp()")?,
            None => (),
        }
        if let Some((set, clear)) = self.flags {
            write!(f, ".flags({set:#04x}, {clear:#04x})")?;
        }
        if self.payload {
            write!(f, ".with_payload()")?;
        }
        if let Some(content_type) = self.content_type {
            write!(f, ".content_type({content_type})")?;
        }
        if let Some(nth) = self.record {
            write!(f, ".record({nth})")?;
        }
        if let Some(epoch) = self.epoch {
            write!(f, ".dtls_epoch({epoch})")?;
        }
        if self.since > Instant::ZERO {
            write!(f, ".since({})", source::instant(self.since))?;
        }
        if self.until < Instant::FAR_FUTURE {
            write!(f, ".until({})", source::instant(self.until))?;
        }
        match self.which {
            Which::All => Ok(()),
            Which::Nth(nth) => write!(f, ".nth({nth})"),
            Which::Every(nth) => write!(f, ".every({nth})"),
        }
    }
}

/// What faults can ask of one packet.
struct Seen {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    /// From, to.
    ports: Option<(u16, u16)>,
    flags: Option<u8>,
    payload: bool,
    segment: Segment,
    datagram: Datagram,
}

/// The faults of one direction, with what they have counted.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Each with how many packets it matched.
    faults: Vec<(Fault, u64)>,
    flows: Flows,
    /// Some fault asks for TLS records, so connections are followed.
    follow: bool,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.follow |= fault.asks_for_records();
        self.faults.push((fault, 0));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.faults.is_empty()
    }

    /// What all faults together do to the packet.
    pub(super) fn inspect(&mut self, now: Instant, packet: &[u8], stream: &mut Stream) -> Effects {
        let mut effects = Effects::NONE;
        let Some(seen) = self.see(packet) else {
            return effects;
        };
        for (fault, matched) in &mut self.faults {
            if !fault.means(now, &seen) {
                continue;
            }
            *matched += 1;
            let strikes = match fault.which {
                Which::All => true,
                Which::Nth(nth) => *matched == nth,
                Which::Every(nth) => nth > 0 && *matched % nth == 0,
            };
            if !strikes {
                continue;
            }
            effects.add(match fault.action {
                Action::Drop => Effect::Drop,
                Action::Delay(delay) => Effect::Delay(delay),
                Action::Duplicate => Effect::Duplicate,
                Action::CorruptBit(corruption, bit) => Effect::Corrupt(corruption, bit),
                Action::Truncate(len) => Effect::Truncate(len),
                Action::Corrupt(corruption) => {
                    let bits = damage::damageable_bits(packet, corruption);
                    Effect::Corrupt(corruption, stream.below(bits) as u32)
                }
            });
        }
        effects
    }

    /// Reads what faults can ask for. `None` for what is not IP.
    fn see(&mut self, packet: &[u8]) -> Option<Seen> {
        let ip = packet::parse(packet).ok()?;
        let transport = packet.get(ip.transport..ip.end)?;
        let word = |at: usize| {
            Some(u16::from_be_bytes([
                *transport.get(at)?,
                *transport.get(at + 1)?,
            ]))
        };
        let mut seen = Seen {
            src: ip.src,
            dst: ip.dst,
            protocol: ip.protocol,
            ports: None,
            flags: None,
            payload: false,
            segment: Segment::default(),
            datagram: Datagram::default(),
        };
        if ip.protocol == TCP || ip.protocol == UDP {
            seen.ports = word(0).zip(word(2));
        }
        match (ip.protocol, seen.ports) {
            (TCP, Some(ports)) if transport.len() >= 20 => {
                let flags = transport[13];
                let payload = transport
                    .get(usize::from(transport[12] >> 4) * 4..)
                    .unwrap_or(&[]);
                let seq =
                    u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
                seen.flags = Some(flags);
                seen.payload = !payload.is_empty();
                if self.follow {
                    let flow = (ip.src, ports.0, ip.dst, ports.1);
                    seen.segment = self.flows.pass(flow, flags & SYN != 0, seq, payload);
                }
            }
            (UDP, Some(_)) if transport.len() >= 8 => {
                seen.payload = transport.len() > 8;
                seen.datagram = Datagram::read(&transport[8..]);
            }
            _ => (),
        }
        Some(seen)
    }
}

#[cfg(test)]
mod tests;
