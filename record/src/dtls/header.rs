//! The two headers: DTLS 1.2's 13 bytes, and DTLS 1.3's *unified header* of 2 to 5.
//!
//! Parsing checks what can be seen without keys: that the header is whole, its fixed bits are right and the body lies within
//! the datagram. Whether the body's length fits the cipher is for the [`Opener`](super::Opener), who knows which one it is.

use super::{DtlsVersion, Malformed};
use crate::header::ContentType;

/// Length of a DTLS 1.2 record header in bytes, and of DTLS 1.3's unprotected records.
pub const DTLS12_HEADER_LEN: usize = 13;

/// A DTLS 1.2 record header (RFC 6347 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    /// The type, in clear.
    pub content_type: ContentType,
    /// Which keys; 0 is none.
    pub epoch: u16,
    /// 48 bits.
    pub sequence: u64,
    /// How many bytes follow the header.
    pub length: u16,
}

impl Header {
    /// The header at the front of a datagram whose body lies within it.
    ///
    /// # Errors
    /// [`Malformed::Header`], [`Malformed::Version`], [`Malformed::Cut`].
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let Some(&[content_type, v0, v1, e0, e1, s0, s1, s2, s3, s4, s5, l0, l1]) =
            datagram.first_chunk::<DTLS12_HEADER_LEN>()
        else {
            return Err(Malformed::Header);
        };
        let version = u16::from_be_bytes([v0, v1]);
        if version != DtlsVersion::Dtls12.wire() {
            return Err(Malformed::Version(version));
        }
        let length = u16::from_be_bytes([l0, l1]);
        let left = datagram.len() - DTLS12_HEADER_LEN;
        if usize::from(length) > left {
            return Err(Malformed::Cut {
                length: usize::from(length),
                left,
            });
        }
        Ok(Self {
            content_type: ContentType(content_type),
            epoch: u16::from_be_bytes([e0, e1]),
            sequence: u64::from_be_bytes([0, 0, s0, s1, s2, s3, s4, s5]),
            length,
        })
    }

    /// The header as it goes on the wire. Of `sequence` the lower 48 bits count.
    pub const fn emit(&self) -> [u8; DTLS12_HEADER_LEN] {
        let [v0, v1] = DtlsVersion::Dtls12.wire().to_be_bytes();
        let [e0, e1] = self.epoch.to_be_bytes();
        let [_, _, s0, s1, s2, s3, s4, s5] = self.sequence.to_be_bytes();
        let [l0, l1] = self.length.to_be_bytes();
        [
            self.content_type.0,
            v0,
            v1,
            e0,
            e1,
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            l0,
            l1,
        ]
    }

    /// Header and body together, in bytes.
    pub const fn record_len(&self) -> usize {
        DTLS12_HEADER_LEN + self.length as usize
    }
}

/// A DTLS 1.3 unified header, its sequence number still hidden (RFC 9147 §4).
///
/// ```text
///   0 1 2 3 4 5 6 7
///  +-+-+-+-+-+-+-+-+
///  |0|0|1|C|S|L|E E|    C connection id, S 16-bit sequence number (else 8), L length present, EE epoch's last bits
///  +-+-+-+-+-+-+-+-+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnifiedHeader {
    /// Bytes of sequence number that follow the first byte: 1 or 2.
    pub sequence_len: usize,
    /// Bytes of header in all: 2 to 5.
    pub header_len: usize,
    /// The epoch's last two bits.
    pub epoch_bits: u8,
    /// Bytes behind the header, announced or up to the datagram's end.
    pub length: usize,
}

const FIXED_MASK: u8 = 0b1110_0000;
const FIXED: u8 = 0b0010_0000;
const CONNECTION_ID: u8 = 0b0001_0000;
const LONG_SEQUENCE: u8 = 0b0000_1000;
const LENGTH_PRESENT: u8 = 0b0000_0100;
const EPOCH_MASK: u8 = 0b0000_0011;

impl UnifiedHeader {
    /// Length of the form with 16-bit sequence number and length, in bytes.
    pub const LONG_LEN: usize = 5;

    /// Whether a record that starts with this byte has a unified header.
    pub const fn starts_with(byte: u8) -> bool {
        byte & FIXED_MASK == FIXED
    }

    /// The header at the front of a datagram whose body lies within it.
    ///
    /// # Errors
    /// [`Malformed::Header`], [`Malformed::FirstByte`], [`Malformed::ConnectionId`], [`Malformed::Cut`].
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let &flags = datagram.first().ok_or(Malformed::Header)?;
        if !Self::starts_with(flags) {
            return Err(Malformed::FirstByte(flags));
        }
        if flags & CONNECTION_ID != 0 {
            return Err(Malformed::ConnectionId);
        }
        let sequence_len = if flags & LONG_SEQUENCE != 0 { 2 } else { 1 };
        let length_len = if flags & LENGTH_PRESENT != 0 { 2 } else { 0 };
        let header_len = 1 + sequence_len + length_len;
        let Some((header, body)) = datagram.split_at_checked(header_len) else {
            return Err(Malformed::Header);
        };
        // RFC 9147 §4: without a length "the record consumes the entire rest of the datagram".
        let length = match header[1 + sequence_len..] {
            [high, low] => usize::from(u16::from_be_bytes([high, low])),
            _ => body.len(),
        };
        if length > body.len() {
            return Err(Malformed::Cut {
                length,
                left: body.len(),
            });
        }
        Ok(Self {
            sequence_len,
            header_len,
            epoch_bits: flags & EPOCH_MASK,
            length,
        })
    }

    /// The long form as it is before its sequence number is hidden.
    pub const fn emit(epoch: u64, sequence: u64, length: u16) -> [u8; Self::LONG_LEN] {
        let flags = FIXED | LONG_SEQUENCE | LENGTH_PRESENT | (epoch as u8 & EPOCH_MASK);
        let [s0, s1] = (sequence as u16).to_be_bytes();
        let [l0, l1] = length.to_be_bytes();
        [flags, s0, s1, l0, l1]
    }

    /// Header and body together, in bytes.
    pub const fn record_len(&self) -> usize {
        self.header_len + self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtls12_parse_and_emit_are_inverse() {
        for (epoch, sequence, length) in [
            (0, 0, 0),
            (1, 0x0102_0304_0506, 40),
            (0xFFFF, (1 << 48) - 1, 700),
        ] {
            let header = Header {
                content_type: ContentType::APPLICATION_DATA,
                epoch,
                sequence,
                length,
            };
            let mut datagram = header.emit().to_vec();
            datagram.resize(header.record_len() + 3, 0xAB);
            assert_eq!(Header::parse(&datagram), Ok(header));
            assert_eq!(header.record_len(), 13 + usize::from(length));
        }
    }

    #[test]
    fn dtls12_every_cut_and_every_other_version_is_named() {
        let header = Header {
            content_type: ContentType::ALERT,
            epoch: 1,
            sequence: 2,
            length: 10,
        };
        let mut datagram = header.emit().to_vec();
        datagram.resize(23, 0);
        for len in 0..23 {
            let expected = match len {
                0..13 => Malformed::Header,
                _ => Malformed::Cut {
                    length: 10,
                    left: len - 13,
                },
            };
            assert_eq!(Header::parse(&datagram[..len]), Err(expected));
        }
        for version in (0..=u16::MAX).filter(|version| *version != 0xFEFD) {
            datagram[1..3].copy_from_slice(&version.to_be_bytes());
            assert_eq!(Header::parse(&datagram), Err(Malformed::Version(version)));
        }
    }

    #[test]
    fn every_first_byte_of_dtls13_is_understood_or_named() {
        for first in 0..=u8::MAX {
            let datagram = [first, 1, 2, 0, 3, 4, 5, 6, 7];
            let parsed = UnifiedHeader::parse(&datagram);
            let expected = match first {
                0x20..=0x2F => {
                    let (sequence_len, with_length) =
                        (1 + usize::from(first >> 3 & 1), first & 4 != 0);
                    let header_len = 1 + sequence_len + if with_length { 2 } else { 0 };
                    let length = match (with_length, sequence_len) {
                        (false, _) => 9 - header_len,
                        (true, 2) => 3,
                        // The length field is where the long form has its sequence number's end.
                        (true, _) => 0x0200,
                    };
                    if length > 9 - header_len {
                        Err(Malformed::Cut {
                            length,
                            left: 9 - header_len,
                        })
                    } else {
                        Ok(UnifiedHeader {
                            sequence_len,
                            header_len,
                            epoch_bits: first & 3,
                            length,
                        })
                    }
                }
                0x30..=0x3F => Err(Malformed::ConnectionId),
                _ => Err(Malformed::FirstByte(first)),
            };
            assert_eq!(parsed, expected, "{first:#04x}");
        }
    }

    #[test]
    fn dtls13_emit_is_parsed() {
        let header = UnifiedHeader::emit(7, 0x0001_2345, 3);
        assert_eq!(header, [0x2F, 0x23, 0x45, 0, 3]);
        let parsed = UnifiedHeader::parse(&[&header[..], &[0; 3]].concat()).unwrap();
        assert_eq!((parsed.epoch_bits, parsed.record_len()), (3, 8));
        for len in 0..5 {
            assert_eq!(UnifiedHeader::parse(&header[..len]), Err(Malformed::Header));
        }
        assert_eq!(
            UnifiedHeader::parse(&header),
            Err(Malformed::Cut { length: 3, left: 0 })
        );
    }
}
