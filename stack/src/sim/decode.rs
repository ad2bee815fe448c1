//! One packet as one readable line: what failure output, packet dumps and capture comments show.
//!
//! ```text
//! 0.012345678 client→server TCP 40000→443 [P.] seq 1:1449 ack 1 win 65536 | TLS data #3 16401
//! ```
//!
//! Reading is tolerant on purpose, because what is shown is often what a fault made of a packet: checksums are not looked at, and a
//! header that makes no sense is said to be one. What a packet alone cannot tell (numbers relative to the start of the connection, the window's
//! scale, where records begin when they do not begin with the payload) comes in as a [`Context`].

use crate::clock::Instant;
use crate::tcp::{FlowKey, Segment, SeqNumber};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use uktls_record::ContentType;
use uktls_record::dtls::{DTLS12_HEADER_LEN, Header, UnifiedHeader};
use uktls_record::suite::TAG_LEN;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
/// Hop-by-hop, routing, destination options: stepped over.
const EXTENSIONS: [u8; 3] = [0, 43, 60];

const TLS_HEADER: usize = 5;
/// RFC 5246 §6.2.3: "The length MUST NOT exceed 2^14 + 2048."
const MAX_FRAGMENT: usize = (1 << 14) + 2048;

/// Names of hosts by their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names(BTreeMap<IpAddr, String>);

impl Names {
    /// `address` is a host's that is called `name`.
    pub fn add(&mut self, address: IpAddr, name: &str) {
        self.0.insert(address, name.to_owned());
    }

    /// All of them, by address.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &str)> {
        self.0
            .iter()
            .map(|(address, name)| (*address, name.as_str()))
    }

    /// Both ends of a connection, the local one first.
    pub fn connection(&self, flow: &FlowKey) -> String {
        let (from, to) = (self.show(flow.local.ip()), self.show(flow.remote.ip()));
        let (port, to_port) = (flow.local.port(), flow.remote.port());
        format!("{from}:{port}→{to}:{to_port}")
    }

    /// Whose packet this is, by its source address.
    pub(super) fn sender(&self, packet: &[u8]) -> String {
        View::parse(packet).map_or_else(|| "?".to_owned(), |view| self.show(view.src))
    }

    /// The host's name, or the address itself.
    fn show(&self, address: IpAddr) -> String {
        self.0
            .get(&address)
            .cloned()
            .unwrap_or_else(|| address.to_string())
    }
}

/// Where a fragment lies in its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// Which datagram.
    pub identification: u32,
    /// First byte.
    pub offset: u32,
    /// More follow.
    pub more: bool,
}

/// What an IP packet holds, as far as its header can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View<'a> {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Transport protocol.
    pub protocol: u8,
    /// Set when this is not a whole datagram.
    pub fragment: Option<Fragment>,
    /// Congestion was experienced on the way.
    pub ecn_ce: bool,
    /// Transport header and payload; shorter than the header says when the packet was cut.
    pub transport: &'a [u8],
    /// Bytes of transport header and payload, as the IP header has it.
    pub transport_len: usize,
}

impl<'a> View<'a> {
    /// Reads the IP header. `None` when the bytes are not an IP packet's.
    pub fn parse(packet: &'a [u8]) -> Option<View<'a>> {
        match packet.first()? >> 4 {
            4 => View::parse_v4(packet),
            6 => View::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &'a [u8]) -> Option<View<'a>> {
        let header: &[u8; 20] = packet.first_chunk()?;
        let header_len = usize::from(header[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let rest = packet.get(header_len..)?;
        let transport_len = total.checked_sub(header_len)?;
        let at = u16::from_be_bytes([header[6], header[7]]);
        let (more, offset) = (at & 0x2000 != 0, u32::from(at & 0x1fff) * 8);
        let identification = u32::from(u16::from_be_bytes([header[4], header[5]]));
        Some(View {
            src: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            dst: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            fragment: (more || offset > 0).then_some(Fragment {
                identification,
                offset,
                more,
            }),
            ecn_ce: header[1] & 3 == 3,
            transport: &rest[..transport_len.min(rest.len())],
            transport_len,
        })
    }

    fn parse_v6(packet: &'a [u8]) -> Option<View<'a>> {
        let header: &[u8; 40] = packet.first_chunk()?;
        let mut transport_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&header[at..at + 16]);
            IpAddr::from(Ipv6Addr::from(octets))
        };
        let mut transport = &packet[40..packet.len().min(40 + transport_len)];
        let mut protocol = header[6];
        let mut fragment = None;
        // Each turn takes at least eight bytes.
        while let Some(extension) = transport.first_chunk::<8>() {
            let len = if EXTENSIONS.contains(&protocol) {
                usize::from(extension[1]) * 8 + 8
            } else if protocol == FRAGMENT {
                let at = u16::from_be_bytes([extension[2], extension[3]]);
                fragment = Some(Fragment {
                    identification: u32::from_be_bytes([
                        extension[4],
                        extension[5],
                        extension[6],
                        extension[7],
                    ]),
                    offset: u32::from(at & 0xfff8),
                    more: at & 1 != 0,
                });
                8
            } else {
                break;
            };
            protocol = extension[0];
            transport = transport.get(len..)?;
            transport_len = transport_len.checked_sub(len)?;
        }
        Some(View {
            src: address(8),
            dst: address(24),
            protocol,
            fragment,
            ecn_ce: (header[1] >> 4) & 3 == 3,
            transport,
            transport_len,
        })
    }

    /// Addresses and ports of a packet that has ports, its source being the local end.
    pub fn flow(&self) -> Option<FlowKey> {
        if !matches!(self.protocol, TCP | UDP) || self.fragment.is_some_and(|it| it.offset > 0) {
            return None;
        }
        let ports = self.transport.first_chunk::<4>()?;
        Some(FlowKey {
            local: SocketAddr::new(self.src, u16::from_be_bytes([ports[0], ports[1]])),
            remote: SocketAddr::new(self.dst, u16::from_be_bytes([ports[2], ports[3]])),
        })
    }
}

/// A TLS record that begins in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordStart {
    /// Outer content type.
    pub content_type: u8,
    /// Sequence number under its keys; without keys, how many came before it.
    pub number: u64,
    /// The header's length field.
    pub length: u16,
}

/// What a packet alone does not tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// The number of the sender's SYN.
    pub isn: Option<SeqNumber>,
    /// The number of the receiver's SYN.
    pub peer_isn: Option<SeqNumber>,
    /// How far the window field is shifted.
    pub window_scale: u8,
    /// The records that begin in it; `None` when nobody follows the stream.
    pub records: Option<&'a [RecordStart]>,
    /// More records begin than `records` holds.
    pub more_records: bool,
    /// Length of the whole packet, when only its front was kept.
    pub packet_len: Option<usize>,
    /// What is to be said besides.
    pub note: &'a str,
}

/// A packet to be shown; [`Display`](fmt::Display) writes the line, without an end of line.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// When.
    pub now: Instant,
    /// The packet, or its front.
    pub packet: &'a [u8],
    /// Who is who.
    pub names: &'a Names,
    /// What else is known.
    pub context: Context<'a>,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.now)?;
        match View::parse(self.packet) {
            Some(view) => {
                let (src, dst) = (self.names.show(view.src), self.names.show(view.dst));
                write!(f, "{src}→{dst} ")?;
                self.transport(f, &view)?;
                if view.ecn_ce {
                    f.write_str(" ce")?;
                }
            }
            None => {
                let len = self.context.packet_len.unwrap_or(self.packet.len());
                write!(f, "{len} bytes that are no IP packet:")?;
                for byte in self.packet.iter().take(16) {
                    write!(f, " {byte:02x}")?;
                }
            }
        }
        if !self.context.note.is_empty() {
            write!(f, " ({})", self.context.note)?;
        }
        Ok(())
    }
}

impl Line<'_> {
    fn transport(&self, f: &mut fmt::Formatter<'_>, view: &View<'_>) -> fmt::Result {
        if let Some(fragment) = view.fragment {
            let (from, end) = (
                fragment.offset,
                fragment.offset as usize + view.transport_len,
            );
            let more = if fragment.more { "+" } else { "" };
            let id = fragment.identification;
            write!(f, "fragment {id:#x} {from}:{end}{more} of ")?;
        }
        if view.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return write!(f, "protocol {}", view.protocol);
        }
        match view.protocol {
            TCP => self.tcp(f, view),
            UDP => udp(f, view),
            ICMP | ICMPV6 => self.icmp(f, view),
            other => write!(f, "protocol {other} len {}", view.transport_len),
        }
    }

    fn tcp(&self, f: &mut fmt::Formatter<'_>, view: &View<'_>) -> fmt::Result {
        let segment = match Segment::parse(view.transport) {
            Ok(segment) => segment,
            Err(error) => return write!(f, "{error}"),
        };
        let payload_len = view.transport_len.saturating_sub(segment.header_len);
        write!(f, "TCP {}→{} [", segment.src_port, segment.dst_port)?;
        for (bit, letter) in "FSRP.UEW".chars().enumerate() {
            if segment.flags.bits() & (1 << bit) != 0 {
                f.write_char(letter)?;
            }
        }
        f.write_str("]")?;
        let from = relative(segment.seq, self.context.isn);
        if payload_len > 0 || segment.flags.syn() || segment.flags.fin() {
            let end = from
                + payload_len as i64
                + i64::from(segment.flags.syn())
                + i64::from(segment.flags.fin());
            write!(f, " seq {from}:{end}")?;
        } else {
            write!(f, " seq {from}")?;
        }
        if segment.flags.ack() {
            write!(f, " ack {}", relative(segment.ack, self.context.peer_isn))?;
        }
        let scale = if segment.flags.syn() {
            0
        } else {
            self.context.window_scale
        };
        write!(f, " win {}", u64::from(segment.window) << scale.min(14))?;
        for (i, (left, right)) in segment.options.sack.as_slice().iter().enumerate() {
            let lead = if i == 0 { " sack " } else { "," };
            let (left, right) = (
                relative(*left, self.context.peer_isn),
                relative(*right, self.context.peer_isn),
            );
            write!(f, "{lead}{left}:{right}")?;
        }
        if let Some(mss) = segment.options.mss {
            write!(f, " mss {mss}")?;
        }
        if payload_len > 0 {
            write!(f, " len {payload_len}")?;
        }
        match self.context.records {
            Some(records) => {
                for (i, record) in records.iter().enumerate() {
                    let lead = if i == 0 { " | TLS" } else { "," };
                    let (name, number) = (content_type(record.content_type), record.number);
                    write!(f, "{lead} {name} #{number} {}", record.length)?;
                }
                if self.context.more_records {
                    f.write_str(", …")?;
                }
                Ok(())
            }
            None => {
                let payload = view.transport.get(segment.header_len..).unwrap_or_default();
                tls_at_start(f, payload)
            }
        }
    }

    fn icmp(&self, f: &mut fmt::Formatter<'_>, view: &View<'_>) -> fmt::Result {
        let Some(&[kind, code, _, _, _, _, high, low]) = view.transport.first_chunk::<8>() else {
            return write!(f, "ICMP cut to {} bytes", view.transport.len());
        };
        let mtu = u32::from(u16::from_be_bytes([high, low]));
        let v6 = view.protocol == ICMPV6;
        let quotes = match (v6, kind, code) {
            (false, 8, _) | (true, 128, _) => return f.write_str("ICMP echo request"),
            (false, 0, _) | (true, 129, _) => return f.write_str("ICMP echo reply"),
            (false, 3, 4) => write!(f, "ICMP fragmentation needed, mtu {mtu}").is_ok(),
            (true, 2, _) => write!(f, "ICMP packet too big, mtu {mtu}").is_ok(),
            (false, 3, 0) | (true, 1, 0) => write!(f, "ICMP no route").is_ok(),
            (false, 3, 1) | (true, 1, 3) => write!(f, "ICMP host unreachable").is_ok(),
            (false, 3, 3) | (true, 1, 4) => write!(f, "ICMP port unreachable").is_ok(),
            (false, 11, _) | (true, 3, _) => write!(f, "ICMP time exceeded").is_ok(),
            _ => return write!(f, "ICMP type {kind} code {code}"),
        };
        // RFC 792 and RFC 4443: behind eight bytes, the packet that caused it.
        if quotes
            && let Some(flow) = View::parse(&view.transport[8..]).and_then(|about| about.flow())
        {
            write!(f, " about {}", self.names.connection(&flow))?;
        }
        Ok(())
    }
}

fn relative(number: SeqNumber, isn: Option<SeqNumber>) -> i64 {
    match isn {
        // What is in flight lies within 2^31 of the start for the first 2 GiB; later the number wraps, as Wireshark's does.
        Some(isn) => i64::from(number.0.wrapping_sub(isn.0)),
        None => i64::from(number.0),
    }
}

fn udp(f: &mut fmt::Formatter<'_>, view: &View<'_>) -> fmt::Result {
    let Some(&[a, b, c, d, e, g, _, _]) = view.transport.first_chunk::<8>() else {
        return write!(f, "UDP cut to {} bytes", view.transport.len());
    };
    let (src, dst) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let len = u16::from_be_bytes([e, g]).saturating_sub(8);
    write!(f, "UDP {src}→{dst} len {len}")?;
    let mut lead = " | DTLS";
    for header in dtls_records(&view.transport[8..]) {
        let name = content_type(header.content_type.0);
        let (epoch, number, length) = (header.epoch, header.sequence, header.length);
        write!(f, "{lead} {name} epoch {epoch} #{number} {length}")?;
        lead = ",";
    }
    // DTLS 1.3 hides numbers and types. One byte says little, so its records must fill the datagram for it to be believed.
    let mut sealed = &view.transport[8..];
    let mut records = Vec::new();
    while let Ok(header) = UnifiedHeader::parse(sealed)
        && header.length >= TAG_LEN
    {
        records.push((header.epoch_bits, header.length));
        sealed = &sealed[header.header_len + header.length..];
    }
    for (i, (epoch, length)) in records.iter().enumerate().filter(|_| sealed.is_empty()) {
        let lead = if i == 0 { " | DTLS 1.3" } else { "," };
        write!(f, "{lead} epoch …{epoch:02b} {length}")?;
    }
    Ok(())
}

/// The DTLS 1.2 records that a datagram begins with, as far as headers can be read; the last may be cut off.
pub(super) fn dtls_records(mut datagram: &[u8]) -> impl Iterator<Item = Header> {
    std::iter::from_fn(move || {
        let bytes = datagram.first_chunk::<DTLS12_HEADER_LEN>()?;
        let [kind, 0xfe, 0xfd | 0xff, e, f, s @ .., l, m] = *bytes else {
            return None;
        };
        let header = Header {
            content_type: ContentType(kind),
            epoch: u16::from_be_bytes([e, f]),
            sequence: s.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)),
            length: u16::from_be_bytes([l, m]),
        };
        let plausible = (20..=26).contains(&kind) && usize::from(header.length) <= MAX_FRAGMENT;
        datagram = datagram.get(header.record_len()..).unwrap_or_default();
        plausible.then_some(header)
    })
}

/// Records of a stream that nobody follows: those that begin with the payload, and right behind them.
fn tls_at_start(f: &mut fmt::Formatter<'_>, mut payload: &[u8]) -> fmt::Result {
    let mut lead = " | TLS";
    while let Some(header) = payload.first_chunk::<TLS_HEADER>()
        && let Some((kind, length)) = tls_header(header)
    {
        write!(f, "{lead} {} {length}", content_type(kind))?;
        lead = ",";
        payload = payload
            .get(TLS_HEADER + usize::from(length)..)
            .unwrap_or_default();
    }
    Ok(())
}

/// Content type and length, if these five bytes can be a TLS record's header (RFC 8446 §5.1, RFC 5246 §6.2.1).
pub(super) fn tls_header(header: &[u8; TLS_HEADER]) -> Option<(u8, u16)> {
    let length = u16::from_be_bytes([header[3], header[4]]);
    let plausible = (20..=24).contains(&header[0])
        && header[1] == 3
        && header[2] <= 4
        && usize::from(length) <= MAX_FRAGMENT;
    plausible.then_some((header[0], length))
}

/// The name of a TLS content type. Under TLS 1.3 keys it is "data" whatever the record holds.
fn content_type(kind: u8) -> &'static str {
    match kind {
        20 => "ccs",
        21 => "alert",
        22 => "handshake",
        23 => "data",
        24 => "heartbeat",
        26 => "ack",
        _ => "type?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::packets::{fragment_v6, icmp_too_big, tcp, udp};
    use crate::tcp::Flags;

    fn names() -> Names {
        let mut names = Names::default();
        names.add("10.0.0.1".parse().expect("literal"), "client");
        names.add("10.0.0.2".parse().expect("literal"), "server");
        names
    }

    fn line(packet: &[u8], context: Context<'_>) -> String {
        let (now, names) = (Instant::from_micros(1_500), names());
        let line = Line {
            now,
            packet,
            names: &names,
            context,
        };
        line.to_string()
    }

    #[test]
    fn a_segment_shows_what_it_carries() {
        let packet = tcp(
            "10.0.0.1:40000",
            "10.0.0.2:443",
            1001,
            Some(7001),
            Flags::PSH,
            &[0; 100],
        );
        let records = [RecordStart {
            content_type: 23,
            number: 3,
            length: 16_401,
        }];
        let known = Context {
            isn: Some(SeqNumber(1000)),
            peer_isn: Some(SeqNumber(7000)),
            window_scale: 7,
            records: Some(&records),
            more_records: true,
            note: "sent again: timeout",
            ..Context::default()
        };
        assert_eq!(
            line(&packet, known),
            "0.001500000 client→server TCP 40000→443 [P.] seq 1:101 ack 1 win 65536 len 100 | TLS data #3 16401, … (sent again: timeout)"
        );
        let unknown = Context::default();
        assert_eq!(
            line(&packet, unknown),
            "0.001500000 client→server TCP 40000→443 [P.] seq 1001:1101 ack 7001 win 512 len 100"
        );
    }

    #[test]
    fn records_at_the_start_are_seen_without_context() {
        let payload = [&[22, 3, 1, 0, 2, 9, 9][..], &[20, 3, 3, 0, 1, 1], b"rest"].concat();
        let packet = tcp(
            "10.0.0.1:40000",
            "10.0.0.2:443",
            0,
            None,
            Flags::NONE,
            &payload,
        );
        let shown = line(&packet, Context::default());
        assert!(
            shown.ends_with("len 17 | TLS handshake 2, ccs 1"),
            "{shown}"
        );
    }

    #[test]
    fn datagrams_show_their_dtls_records() {
        let record = [&[23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 5, 0, 3][..], b"abc"].concat();
        let packet = udp("10.0.0.1:5000", "10.0.0.2:4433", &record.repeat(2));
        assert_eq!(
            line(&packet, Context::default()),
            "0.001500000 client→server UDP 5000→4433 len 32 | DTLS data epoch 1 #5 3, data epoch 1 #5 3"
        );
    }

    #[test]
    fn datagrams_show_what_can_be_seen_of_dtls_1_3() {
        let record = [&[0b0010_1111, 7, 7, 0, 20][..], &[9; 20]].concat();
        let packet = udp("10.0.0.1:5000", "10.0.0.2:4433", &record.repeat(2));
        let shown = line(&packet, Context::default());
        assert!(
            shown.ends_with("len 50 | DTLS 1.3 epoch …11 20, epoch …11 20"),
            "{shown}"
        );
        let text = udp(
            "10.0.0.1:5000",
            "10.0.0.2:53",
            b"/ no record, though its first byte could begin one",
        );
        assert!(!line(&text, Context::default()).contains("DTLS"));
    }

    #[test]
    fn errors_name_the_packet_they_are_about() {
        let cause = tcp(
            "10.0.0.1:40000",
            "10.0.0.2:443",
            0,
            None,
            Flags::NONE,
            &[0; 50],
        );
        let packet = icmp_too_big("10.0.0.9", "10.0.0.1", 1280, &cause);
        assert_eq!(
            line(&packet, Context::default()),
            "0.001500000 10.0.0.9→client ICMP fragmentation needed, mtu 1280 about client:40000→server:443"
        );
    }

    #[test]
    fn fragments_say_where_they_lie() {
        let packet = fragment_v6("fd00::1", "fd00::2", 0xabc, 1232, true, &[0; 16]);
        let shown = line(&packet, Context::default());
        assert_eq!(
            shown,
            "0.001500000 fd00::1→fd00::2 fragment 0xabc 1232:1248+ of protocol 17"
        );
    }

    #[test]
    fn what_faults_make_of_packets_never_panics() {
        let whole = tcp(
            "10.0.0.1:40000",
            "10.0.0.2:443",
            1,
            Some(2),
            Flags::NONE,
            &[22, 3, 3, 0, 9],
        );
        for len in 0..whole.len() {
            line(&whole[..len], Context::default());
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut broken = whole.clone();
                broken[at] ^= 1 << bit;
                line(&broken, Context::default());
            }
        }
        assert!(line(&[0x99; 30], Context::default()).contains("30 bytes that are no IP packet"));
    }
}
