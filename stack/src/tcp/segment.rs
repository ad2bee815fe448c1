//! The TCP header on the wire: [`Segment`] is what came in, [`Transmit`] what goes out.
//!
//! A parsed segment holds no payload; the payload travels beside it as a slice of the device's buffer. Likewise
//! a [`Transmit`] names the *range* of the sealed stream that it carries: the bytes lie in the socket's arena, and the
//! device gathers them from there. Checksums are the business of whoever knows the IP header and what the device
//! offloads: here the field is neither verified nor filled.

use core::fmt;
use core::net::SocketAddr;
use core::ops::{BitOr, BitOrAssign, Range};

use super::options::{MAX_OPTIONS_LEN, Options};
use super::seq::SeqNumber;

/// Length of a TCP header without options.
pub const HEADER_LEN: usize = 20;

/// The longest TCP header: 15 words of four bytes.
pub const MAX_HEADER_LEN: usize = HEADER_LEN + MAX_OPTIONS_LEN;

/// The control bits of a TCP header (RFC 9293 §3.1), as a set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Flags(u8);

impl Flags {
    /// No bit set.
    pub const NONE: Flags = Flags(0);
    /// No more bytes from the sender.
    pub const FIN: Flags = Flags(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Flags = Flags(0x02);
    /// Reset the connection.
    pub const RST: Flags = Flags(0x04);
    /// Push.
    pub const PSH: Flags = Flags(0x08);
    /// The acknowledgement field is valid.
    pub const ACK: Flags = Flags(0x10);
    /// The urgent pointer is valid; this stack ignores it.
    pub const URG: Flags = Flags(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Flags = Flags(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Flags = Flags(0x80);

    /// The set whose bits are those of a header's byte 13.
    pub const fn from_bits(bits: u8) -> Flags {
        Flags(bits)
    }

    /// Byte 13 of a header.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `other`'s bits are set here.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other`'s bits is set here.
    pub const fn intersects(self, other: Flags) -> bool {
        self.0 & other.0 != 0
    }

    /// SYN is set.
    pub const fn syn(self) -> bool {
        self.contains(Flags::SYN)
    }

    /// ACK is set.
    pub const fn ack(self) -> bool {
        self.contains(Flags::ACK)
    }

    /// FIN is set.
    pub const fn fin(self) -> bool {
        self.contains(Flags::FIN)
    }

    /// RST is set.
    pub const fn rst(self) -> bool {
        self.contains(Flags::RST)
    }
}

impl BitOr for Flags {
    type Output = Flags;
    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Flags) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let mut first = true;
        for (bit, name) in names.iter().enumerate() {
            if self.0 & (1 << bit) != 0 {
                if !first {
                    f.write_str("|")?;
                }
                f.write_str(name)?;
                first = false;
            }
        }
        if first {
            f.write_str("none")?;
        }
        Ok(())
    }
}

/// Why bytes are not a TCP segment. The sender of the packet is at fault in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fewer than the 20 bytes of a header.
    #[error("TCP header needs 20 bytes, the packet has {0}")]
    TooShort(usize),
    /// The data offset is less than five words or points behind the packet's end.
    #[error("TCP data offset of {0} bytes does not fit the packet")]
    DataOffset(usize),
    /// An option's length contradicts its kind or the header's end.
    #[error("TCP option with a wrong length")]
    Option,
}

/// A received segment: its header, and how long its payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Number of the first byte (or of the SYN).
    pub seq: SeqNumber,
    /// Acknowledgement number; means nothing unless [`Flags::ACK`] is set.
    pub ack: SeqNumber,
    /// Control bits.
    pub flags: Flags,
    /// The window field as sent, before scaling.
    pub window: u16,
    /// Options.
    pub options: Options,
    /// Header length with options: the payload starts there.
    pub header_len: usize,
    /// Payload bytes. More than an MSS when the device handed over a super-segment.
    pub payload_len: usize,
    /// The IP header carried *congestion experienced*. [`Segment::parse`] sees no IP header and sets false.
    pub ecn_ce: bool,
}

impl Segment {
    /// Reads the header of a TCP segment from the bytes behind the IP header. The checksum is not looked at.
    pub fn parse(tcp_bytes: &[u8]) -> Result<Segment, Malformed> {
        let Some(header) = tcp_bytes.first_chunk::<HEADER_LEN>() else {
            return Err(Malformed::TooShort(tcp_bytes.len()));
        };
        let header_len = usize::from(header[12] >> 4) * 4;
        let Some(options) = tcp_bytes.get(HEADER_LEN..header_len) else {
            return Err(Malformed::DataOffset(header_len));
        };
        let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        Ok(Segment {
            src_port: half(0),
            dst_port: half(2),
            seq: SeqNumber(word(4)),
            ack: SeqNumber(word(8)),
            flags: Flags::from_bits(header[13]),
            window: half(14),
            options: Options::parse(options).map_err(|_| Malformed::Option)?,
            header_len,
            payload_len: tcp_bytes.len() - header_len,
            ecn_ce: false,
        })
    }

    /// SEG.LEN of RFC 9293 §3.3.1: "the number of octets occupied by the data in the segment (counting SYN and FIN)".
    pub fn seg_len(&self) -> u32 {
        // An IP packet, super-segment or not, has at most 65,535 bytes.
        self.payload_len as u32 + u32::from(self.flags.syn()) + u32::from(self.flags.fin())
    }
}

/// The two addresses of a connection, as seen from this end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// The ECN field of the IP header that carries a segment (RFC 3168 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EcnCodepoint {
    /// Not ECN-capable.
    #[default]
    NotEct,
    /// ECN-capable transport, ECT(0).
    Ect0,
}

/// Why a segment is sent: what somebody who looks at a capture asks first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cause {
    /// It is its turn: new data, an acknowledgement, a change of state.
    #[default]
    First,
    /// Again, because the retransmission timer ran out (RFC 6298).
    Timeout,
    /// Again, because acknowledgements say that it is lost (RFC 8985, RFC 6582).
    Fast,
    /// To provoke an acknowledgement for the tail (RFC 8985 §7), new data or old.
    TailProbe,
    /// To learn whether the window has opened (RFC 9293 §3.8.6.1).
    WindowProbe,
}

impl Cause {
    /// In words; empty for the first time.
    pub fn note(self) -> &'static str {
        match self {
            Cause::First => "",
            Cause::Timeout => "sent again: RTO",
            Cause::Fast => "sent again: fast",
            Cause::TailProbe => "TLP",
            Cause::WindowProbe => "window probe",
        }
    }
}

/// One segment (or super-segment) to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Sequence number.
    pub seq: SeqNumber,
    /// Acknowledgement number; [`Flags::ACK`] is set in `flags` when it is there.
    pub ack: Option<SeqNumber>,
    /// Control bits.
    pub flags: Flags,
    /// The window field, already scaled.
    pub window: u16,
    /// Options.
    pub options: Options,
    /// The range of the sealed stream (offset 0 is the first byte after the SYN) that is the payload; empty for a
    /// segment without one.
    pub payload: Range<u64>,
    /// Some of the payload, or the SYN or FIN, was sent before.
    pub retransmission: bool,
    /// Why it is sent.
    pub cause: Cause,
    /// Payload bytes per segment on the wire. A payload longer than this needs segmentation offload (or must be
    /// cut by the device); every piece but the last has exactly this many bytes.
    pub gso_size: u16,
    /// ECN field for the IP header.
    pub ecn: EcnCodepoint,
}

impl Transmit {
    /// Payload length in bytes.
    pub fn payload_len(&self) -> usize {
        // At most one super-segment.
        (self.payload.end - self.payload.start) as usize
    }

    /// Length of the header that [`Transmit::emit_header`] writes.
    pub fn header_len(&self) -> usize {
        HEADER_LEN + self.options.len()
    }

    /// Writes the TCP header with its options at the start of `out`, the checksum field zero, and returns its length.
    /// The ports are `key`'s.
    ///
    /// # Panics
    /// When `out` is shorter than [`Transmit::header_len`]; [`MAX_HEADER_LEN`] bytes are always enough.
    pub fn emit_header(&self, key: &FlowKey, out: &mut [u8]) -> usize {
        let len = HEADER_LEN + self.options.emit(&mut out[HEADER_LEN..]);
        out[0..2].copy_from_slice(&key.local.port().to_be_bytes());
        out[2..4].copy_from_slice(&key.remote.port().to_be_bytes());
        out[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        out[8..12].copy_from_slice(&self.ack.unwrap_or_default().0.to_be_bytes());
        // At most 15 words.
        out[12] = ((len / 4) as u8) << 4;
        out[13] = self.flags.bits();
        out[14..16].copy_from_slice(&self.window.to_be_bytes());
        out[16..20].fill(0);
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        let key = FlowKey {
            local: "10.0.0.1:443".parse().expect("a literal address"),
            remote: "10.0.0.2:40000".parse().expect("a literal address"),
        };
        let transmit = Transmit {
            seq: SeqNumber(0xfffffff0),
            ack: Some(SeqNumber(77)),
            flags: Flags::ACK | Flags::PSH,
            window: 500,
            options: Options {
                timestamps: Some((5, 6)),
                ..Options::default()
            },
            payload: 100..103,
            retransmission: false,
            cause: Cause::First,
            gso_size: 1448,
            ecn: EcnCodepoint::NotEct,
        };
        let mut bytes = [0xff; MAX_HEADER_LEN];
        let len = transmit.emit_header(&key, &mut bytes);
        assert_eq!(len, 32);
        let segment = Segment::parse(&bytes[..len + 3]).expect("the header just written");
        assert_eq!((segment.src_port, segment.dst_port), (443, 40000));
        assert_eq!(
            (segment.seq, segment.ack),
            (SeqNumber(0xfffffff0), SeqNumber(77))
        );
        assert_eq!(
            (segment.flags, segment.window),
            (Flags::ACK | Flags::PSH, 500)
        );
        assert_eq!(segment.options, transmit.options);
        assert_eq!(
            (segment.header_len, segment.payload_len, segment.seg_len()),
            (32, 3, 3)
        );
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused() {
        assert_eq!(Segment::parse(&[0; 19]), Err(Malformed::TooShort(19)));
        let mut header = [0u8; 24];
        for (offset, expected) in [
            (0, Some(0)),
            (4, Some(16)),
            (5, None),
            (6, None),
            (7, Some(28)),
            (15, Some(60)),
        ] {
            header[12] = offset << 4;
            assert_eq!(
                Segment::parse(&header).err(),
                expected.map(Malformed::DataOffset)
            );
        }
        header[12] = 6 << 4;
        header[20] = 2;
        header[21] = 9;
        assert_eq!(Segment::parse(&header), Err(Malformed::Option));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_lengths_add_up(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(segment) = Segment::parse(&bytes) {
                prop_assert_eq!(segment.header_len + segment.payload_len, bytes.len());
            }
        }
    }
}
