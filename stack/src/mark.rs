//! Marks: what travels on a stream socket's Unix end besides plain bytes.
//!
//! A client's socket *is* its end of a Unix stream socket pair. Plain bytes on it are plain bytes. Everything that
//! has to keep its place among them — keys come into force here, the next bytes are an alert, a file's bytes go here —
//! is a **mark**: a message of [`MARK_LEN`] bytes with at least one descriptor attached by `SCM_RIGHTS`.
//!
//! Linux never glues bytes across a message that carries descriptors: a read may return earlier plain bytes in front
//! of the mark, it stops at the mark's last byte at the latest, and later bytes stay behind. What remains open is
//! whether a read whose buffer was too small stopped *inside* the mark. So every byte of a mark carries its own index
//! in its low six bits (and two bits of the mark's value in the high ones): when a descriptor arrives, the last byte
//! read is a mark's byte, its index says how much of the mark is here, and the rest is the front of the next read.
//! No escape sequence, no length prefix on plain data, no secret.
//!
//! ```text
//!  byte i of 64:   7 6 | 5 4 3 2 1 0          value, 16 bytes:  kind(1) flags(1) len(6, LE) extra(8, LE)
//!                  v v | index = i            two bits of it a byte, least significant first
//! ```
//!
//! Client → stack: [`Mark::TxKeys`], [`Mark::TxEnd`], [`Mark::Record`], [`Mark::RecordEnd`], [`Mark::RecordOpen`], [`Mark::File`],
//! [`Mark::MaxPayload`], [`Mark::Sequence`].
//! Stack → client (only once the client attached the TLS ULP or an AF_KTLS socket): [`Mark::Control`], [`Mark::Error`],
//! [`Mark::RxKeys`], [`Mark::RxEnd`]. Both ways: [`Mark::Raw`].

/// Length of an encoded mark in bytes.
pub const MARK_LEN: usize = 64;

/// Filler bytes that follow a [`Mark::File`] with `hold` set, in a message of their own right behind (one `sendmmsg`), so
/// that a read still stops at the mark's last byte: enough to make a Unix stream
/// socket with the default send buffer (208 KiB) unwritable, since Linux calls it writable while at most a quarter is used.
pub const HOLD_FILLER: usize = 96 * 1024;

/// The largest file range a mark can name.
pub const MAX_FILE_RANGE: u64 = (1 << 48) - 1;

const VALUE_LEN: usize = 16;

/// One mark. Directions are in the variants' docs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Client → stack: bytes behind this mark are sealed with the keys staged under `key_id`
    /// (see [`crate::handle::SocketOp::StageTx`]). Closes an open record first.
    TxKeys {
        /// The number that staging the keys returned.
        key_id: u32,
    },
    /// Client → stack: closes an open data record; the next `len` bytes are sent as records of type `content_type`.
    Record {
        /// TLS content type, not checked (as in Linux).
        content_type: u8,
        /// Number of plain bytes that follow and belong to it.
        len: u32,
    },
    /// Client → stack: the record ends here (`MSG_EOR`, or the end of one `send`).
    RecordEnd,
    /// Client → stack: the record stays open from here until the next [`Mark::RecordEnd`], [`Mark::Record`],
    /// [`Mark::File`] or [`Mark::TxKeys`] (`MSG_MORE`). Full records still leave.
    RecordOpen,
    /// Client → stack: `len` bytes from `offset` of the attached regular file go here.
    ///
    /// With `reply`, a second descriptor is attached: a socket to which the stack writes a [`SendfileResult`] when the
    /// last byte is sealed. With `hold`, [`HOLD_FILLER`] meaningless bytes follow, which the stack discards when the
    /// range is done: until then the client's end polls as not writable.
    File {
        /// First byte of the file.
        offset: u64,
        /// Number of bytes, at most [`MAX_FILE_RANGE`].
        len: u64,
        /// A result is awaited on the second descriptor.
        reply: bool,
        /// Filler follows.
        hold: bool,
    },
    /// Client → stack: what waits in the attached pipe goes here, up to `len` bytes. A second descriptor is attached: a socket
    /// to which the stack writes a [`SendfileResult`] when the last byte is sealed.
    Pipe {
        /// Number of bytes at most, at most [`MAX_FILE_RANGE`].
        len: u64,
    },
    /// Stack → client: a record other than application data, or of any type where the client asked for that; its `len`
    /// plaintext bytes follow. Behind an empty record comes one byte that belongs to nothing and is thrown away with it
    /// ([`bytes_behind`]): without it the socket would not poll readable once the mark is read.
    Control {
        /// TLS content type of the record.
        content_type: u8,
        /// Plaintext length; may be 0.
        len: u32,
    },
    /// Stack → client: receiving stopped here with this errno (sticky).
    Error {
        /// Linux errno value, such as 74 (`EBADMSG`).
        errno: i32,
    },
    /// Client → stack: keys for sending are in force no more; bytes behind this mark leave as they are.
    TxEnd,
    /// Client → stack: records behind this mark hold at most so many bytes. Closes an open record first.
    MaxPayload {
        /// Plaintext of a record.
        bytes: u32,
    },
    /// Client → stack: everything in front is sealed by the time that the attached socket is written a [`SendfileResult`] whose
    /// `sent` is the next record's sequence number. Without keys its `errno` is `EBADMSG`.
    Sequence,
    /// Both ways: the next `len` bytes are what they are on the wire, although keys are in force. Towards the stack, what the owner
    /// of the socket beneath sends directly; towards the client, a record that an AF_KTLS socket leaves to that owner.
    Raw {
        /// Number of bytes.
        len: u32,
    },
    /// Stack → client, AF_KTLS: the keys for receiving that were set last are in force from here, and errors before this are over.
    RxKeys,
    /// Stack → client, AF_KTLS: keys for receiving are in force no more; bytes behind this mark are what they are on the wire.
    RxEnd,
}

/// Bytes that follow a [`Mark::Control`] whose record has a plaintext of `len` bytes.
pub const fn bytes_behind(len: usize) -> usize {
    if len == 0 { 1 } else { len }
}

const KIND_TX_KEYS: u8 = 1;
const KIND_RECORD: u8 = 2;
const KIND_RECORD_END: u8 = 3;
const KIND_RECORD_OPEN: u8 = 4;
const KIND_FILE: u8 = 5;
const KIND_CONTROL: u8 = 6;
const KIND_ERROR: u8 = 7;
const KIND_TX_END: u8 = 8;
const KIND_MAX_PAYLOAD: u8 = 9;
const KIND_SEQUENCE: u8 = 10;
const KIND_RAW: u8 = 11;
const KIND_RX_KEYS: u8 = 12;
const KIND_RX_END: u8 = 13;
const KIND_PIPE: u8 = 14;

const FLAG_REPLY: u8 = 1;
const FLAG_HOLD: u8 = 2;

/// Why bytes were not a mark. Only a client that builds marks by hand can cause it; its socket is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// Byte `at` does not carry the index `at`.
    #[error(
        "byte {at} of a mark carries index {found}; a message with a descriptor must be a mark of 64 bytes"
    )]
    Index {
        /// Position in the mark.
        at: usize,
        /// Index found there.
        found: u8,
    },
    /// No mark of this kind exists.
    #[error("unknown mark kind {0}; the client library is newer than the daemon, or not uktls's")]
    Kind(u8),
}

/// How many bytes of a mark are in hand when `last` is the last byte that came with a descriptor (1 to [`MARK_LEN`]).
pub fn bytes_in_hand(last: u8) -> usize {
    usize::from(last & 0x3f) + 1
}

impl Mark {
    /// The mark's bytes as they go on the socket.
    pub fn encode(&self) -> [u8; MARK_LEN] {
        let (kind, flags, len, extra) = match *self {
            Mark::TxKeys { key_id } => (KIND_TX_KEYS, 0, 0, u64::from(key_id)),
            Mark::Record { content_type, len } => {
                (KIND_RECORD, 0, u64::from(len), u64::from(content_type))
            }
            Mark::RecordEnd => (KIND_RECORD_END, 0, 0, 0),
            Mark::RecordOpen => (KIND_RECORD_OPEN, 0, 0, 0),
            Mark::File {
                offset,
                len,
                reply,
                hold,
            } => {
                let flags = if reply { FLAG_REPLY } else { 0 } | if hold { FLAG_HOLD } else { 0 };
                (KIND_FILE, flags, len.min(MAX_FILE_RANGE), offset)
            }
            Mark::Control { content_type, len } => {
                (KIND_CONTROL, 0, u64::from(len), u64::from(content_type))
            }
            Mark::Error { errno } => (KIND_ERROR, 0, 0, u64::from(errno as u32)),
            Mark::TxEnd => (KIND_TX_END, 0, 0, 0),
            Mark::MaxPayload { bytes } => (KIND_MAX_PAYLOAD, 0, u64::from(bytes), 0),
            Mark::Sequence => (KIND_SEQUENCE, 0, 0, 0),
            Mark::Raw { len } => (KIND_RAW, 0, u64::from(len), 0),
            Mark::RxKeys => (KIND_RX_KEYS, 0, 0, 0),
            Mark::RxEnd => (KIND_RX_END, 0, 0, 0),
            Mark::Pipe { len } => (KIND_PIPE, 0, len.min(MAX_FILE_RANGE), 0),
        };
        let mut value = [0u8; VALUE_LEN];
        value[0] = kind;
        value[1] = flags;
        value[2..8].copy_from_slice(&len.to_le_bytes()[..6]);
        value[8..].copy_from_slice(&extra.to_le_bytes());
        core::array::from_fn(|i| {
            let pair = (value[i / 4] >> (2 * (i % 4))) & 0b11;
            (pair << 6) | i as u8
        })
    }

    /// The mark that `bytes` are.
    pub fn decode(bytes: &[u8; MARK_LEN]) -> Result<Mark, MarkError> {
        let mut value = [0u8; VALUE_LEN];
        for (at, &byte) in bytes.iter().enumerate() {
            if usize::from(byte & 0x3f) != at {
                return Err(MarkError::Index {
                    at,
                    found: byte & 0x3f,
                });
            }
            value[at / 4] |= (byte >> 6) << (2 * (at % 4));
        }
        let mut len = [0u8; 8];
        len[..6].copy_from_slice(&value[2..8]);
        let len = u64::from_le_bytes(len);
        let mut extra = [0u8; 8];
        extra.copy_from_slice(&value[8..]);
        let extra = u64::from_le_bytes(extra);
        let flags = value[1];
        Ok(match value[0] {
            KIND_TX_KEYS => Mark::TxKeys {
                key_id: extra as u32,
            },
            KIND_RECORD => Mark::Record {
                content_type: extra as u8,
                len: len as u32,
            },
            KIND_RECORD_END => Mark::RecordEnd,
            KIND_RECORD_OPEN => Mark::RecordOpen,
            KIND_FILE => Mark::File {
                offset: extra,
                len,
                reply: flags & FLAG_REPLY != 0,
                hold: flags & FLAG_HOLD != 0,
            },
            KIND_CONTROL => Mark::Control {
                content_type: extra as u8,
                len: len as u32,
            },
            KIND_ERROR => Mark::Error {
                errno: extra as u32 as i32,
            },
            KIND_TX_END => Mark::TxEnd,
            KIND_MAX_PAYLOAD => Mark::MaxPayload { bytes: len as u32 },
            KIND_SEQUENCE => Mark::Sequence,
            KIND_RAW => Mark::Raw { len: len as u32 },
            KIND_RX_KEYS => Mark::RxKeys,
            KIND_RX_END => Mark::RxEnd,
            KIND_PIPE => Mark::Pipe { len },
            kind => return Err(MarkError::Kind(kind)),
        })
    }
}

/// What a [`Mark::File`] with `reply` is answered with: 16 bytes on the attached reply socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendfileResult {
    /// Bytes of the file that were sealed and belong to the stream now.
    pub sent: u64,
    /// 0, or the Linux errno that ended the transfer early.
    pub errno: i32,
}

impl SendfileResult {
    /// Length of the encoded result in bytes.
    pub const LEN: usize = 16;

    /// The result's bytes: `sent` (8, LE), `errno` (4, LE), zero (4).
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.sent.to_le_bytes());
        out[8..12].copy_from_slice(&self.errno.to_le_bytes());
        out
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8; Self::LEN]) -> SendfileResult {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *bytes;
        SendfileResult {
            sent: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            errno: i32::from_le_bytes([i, j, k, l]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Mark; 15] = [
        Mark::Pipe {
            len: MAX_FILE_RANGE,
        },
        Mark::TxKeys { key_id: u32::MAX },
        Mark::Record {
            content_type: 21,
            len: 2,
        },
        Mark::RecordEnd,
        Mark::RecordOpen,
        Mark::File {
            offset: u64::MAX,
            len: MAX_FILE_RANGE,
            reply: true,
            hold: false,
        },
        Mark::File {
            offset: 1 << 40,
            len: 0,
            reply: false,
            hold: true,
        },
        Mark::Control {
            content_type: 22,
            len: 16384,
        },
        Mark::Error { errno: 74 },
        Mark::TxEnd,
        Mark::MaxPayload { bytes: 1371 },
        Mark::Sequence,
        Mark::Raw { len: 18_437 },
        Mark::RxKeys,
        Mark::RxEnd,
    ];

    #[test]
    fn every_mark_comes_back_equal_and_tells_its_position_from_any_byte() {
        for mark in ALL {
            let bytes = mark.encode();
            assert_eq!(Mark::decode(&bytes), Ok(mark));
            for (i, &byte) in bytes.iter().enumerate() {
                assert_eq!(bytes_in_hand(byte), i + 1);
            }
        }
    }

    #[test]
    fn bytes_out_of_place_are_refused() {
        let mut bytes = Mark::RecordEnd.encode();
        bytes.swap(3, 4);
        assert_eq!(
            Mark::decode(&bytes),
            Err(MarkError::Index { at: 3, found: 4 })
        );
        let mut unknown = Mark::RecordEnd.encode();
        unknown[2] |= 0b1100_0000; // bits 4 and 5 of the kind
        assert_eq!(
            Mark::decode(&unknown),
            Err(MarkError::Kind(KIND_RECORD_END | 0b11_0000))
        );
    }

    #[test]
    fn sendfile_results_come_back_equal() {
        let result = SendfileResult {
            sent: 1 << 40,
            errno: 5,
        };
        assert_eq!(SendfileResult::decode(&result.encode()), result);
    }
}
