//! TCP options: MSS, window scale, SACK permitted, SACK blocks, timestamps. Others are skipped, as RFC 9293 §3.2 asks:
//! "A TCP implementation MUST (MUST-6) ignore without error any TCP Option it does not implement, assuming that the
//! option has a length field."
//!
//! smoltcp's option parser keeps three SACK blocks where four fit, and stops at a malformed option; both matter here, so
//! the five options are read by hand, strictly: an option whose length does not fit what it is makes the whole header
//! malformed.

use super::seq::SeqNumber;

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// Room that options have in a TCP header: the data offset counts at most 15 words, 5 of which are the fixed header.
pub const MAX_OPTIONS_LEN: usize = 40;

/// Up to four SACK blocks, in the order of the header; each a left edge and the number just behind its right edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SackBlocks {
    blocks: [(SeqNumber, SeqNumber); 4],
    len: u8,
}

impl SackBlocks {
    /// No blocks.
    pub const EMPTY: SackBlocks = SackBlocks {
        blocks: [(SeqNumber(0), SeqNumber(0)); 4],
        len: 0,
    };

    /// Appends a block; returns false, and leaves the blocks as they are, when there are four already.
    pub fn push(&mut self, left: SeqNumber, right: SeqNumber) -> bool {
        match self.blocks.get_mut(usize::from(self.len)) {
            Some(slot) => {
                *slot = (left, right);
                self.len += 1;
                true
            }
            None => false,
        }
    }

    /// The blocks, first one first.
    pub fn as_slice(&self) -> &[(SeqNumber, SeqNumber)] {
        &self.blocks[..usize::from(self.len)]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The options of a segment, received or to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Maximum segment size the sender of the option is ready to receive (RFC 9293 §3.7.1), on SYNs only.
    pub mss: Option<u16>,
    /// Shift count of the sender's window field (RFC 7323 §2), on SYNs only.
    pub window_scale: Option<u8>,
    /// The sender understands SACK blocks (RFC 2018 §2), on SYNs only.
    pub sack_permitted: bool,
    /// Ranges received out of order (RFC 2018 §3), or twice (RFC 2883).
    pub sack: SackBlocks,
    /// TSval and TSecr (RFC 7323 §3).
    pub timestamps: Option<(u32, u32)>,
}

/// An option's length byte contradicts its kind or the header's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedOptions;

impl Options {
    /// Reads the option bytes of a header (what lies behind its first 20 bytes).
    pub fn parse(mut bytes: &[u8]) -> Result<Options, MalformedOptions> {
        let mut options = Options::default();
        while let [kind, rest @ ..] = bytes {
            match *kind {
                END => break,
                NOP => {
                    bytes = rest;
                    continue;
                }
                _ => {}
            }
            let length = usize::from(*rest.first().ok_or(MalformedOptions)?);
            if length < 2 || length > bytes.len() {
                return Err(MalformedOptions);
            }
            let body = &bytes[2..length];
            match (*kind, body) {
                (MSS, &[a, b]) => options.mss = Some(u16::from_be_bytes([a, b])),
                (WINDOW_SCALE, &[shift]) => options.window_scale = Some(shift),
                (SACK_PERMITTED, []) => options.sack_permitted = true,
                (TIMESTAMPS, &[a, b, c, d, e, f, g, h]) => {
                    options.timestamps = Some((
                        u32::from_be_bytes([a, b, c, d]),
                        u32::from_be_bytes([e, f, g, h]),
                    ));
                }
                (SACK, blocks) if !blocks.is_empty() && blocks.len() % 8 == 0 => {
                    for block in blocks.chunks_exact(8) {
                        let edge = |at: usize| {
                            SeqNumber(u32::from_be_bytes([
                                block[at],
                                block[at + 1],
                                block[at + 2],
                                block[at + 3],
                            ]))
                        };
                        // At most four fit 40 bytes of options, so none is lost.
                        options.sack.push(edge(0), edge(4));
                    }
                }
                (MSS | WINDOW_SCALE | SACK_PERMITTED | TIMESTAMPS | SACK, _) => {
                    return Err(MalformedOptions);
                }
                _ => {}
            }
            bytes = &bytes[length..];
        }
        Ok(options)
    }

    /// Bytes these options take in a header, padding to a multiple of four included.
    ///
    /// Each group below is padded by NOPs to a multiple of four of its own, the layout other stacks use, so the
    /// numbers behind it lie aligned.
    pub fn len(&self) -> usize {
        let mut len = 0;
        if self.mss.is_some() {
            len += 4;
        }
        if self.window_scale.is_some() {
            len += 4;
        }
        if self.timestamps.is_some() {
            len += 12;
        }
        if self.sack_permitted {
            len += 4;
        }
        if !self.sack.is_empty() {
            len += 4 + 8 * self.sack.as_slice().len();
        }
        len
    }

    /// Whether the header carries no option at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the options into `out` and returns their length, [`Options::len`].
    ///
    /// # Panics
    /// When `out` is shorter than that.
    pub fn emit(&self, out: &mut [u8]) -> usize {
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        if let Some(mss) = self.mss {
            put(&[MSS, 4]);
            put(&mss.to_be_bytes());
        }
        if let Some(shift) = self.window_scale {
            put(&[NOP, WINDOW_SCALE, 3, shift]);
        }
        if self.sack_permitted {
            put(&[NOP, NOP, SACK_PERMITTED, 2]);
        }
        if let Some((tsval, tsecr)) = self.timestamps {
            put(&[NOP, NOP, TIMESTAMPS, 10]);
            put(&tsval.to_be_bytes());
            put(&tsecr.to_be_bytes());
        }
        let blocks = self.sack.as_slice();
        if !blocks.is_empty() {
            // Four blocks at most: 34 fits a byte.
            put(&[NOP, NOP, SACK, 2 + 8 * blocks.len() as u8]);
            for (left, right) in blocks {
                put(&left.0.to_be_bytes());
                put(&right.0.to_be_bytes());
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut sack = SackBlocks::EMPTY;
        for n in 0..3u32 {
            assert!(sack.push(SeqNumber(n * 100), SeqNumber(n * 100 + 50)));
        }
        let all = [
            Options {
                mss: Some(1460),
                window_scale: Some(7),
                sack_permitted: true,
                timestamps: Some((1, 2)),
                ..Options::default()
            },
            Options {
                sack,
                timestamps: Some((u32::MAX, 7)),
                ..Options::default()
            },
            Options::default(),
        ];
        for options in all {
            let mut bytes = [0xaa; MAX_OPTIONS_LEN];
            let len = options.emit(&mut bytes);
            assert_eq!(len, options.len());
            assert_eq!(len % 4, 0);
            assert_eq!(Options::parse(&bytes[..len]), Ok(options));
        }
    }

    #[test]
    fn four_blocks_fit_without_timestamps() {
        let mut sack = SackBlocks::EMPTY;
        for n in 0..4u32 {
            assert!(sack.push(SeqNumber(n), SeqNumber(n + 1)));
        }
        assert!(!sack.push(SeqNumber(9), SeqNumber(10)));
        let options = Options {
            sack,
            ..Options::default()
        };
        let mut bytes = [0; MAX_OPTIONS_LEN];
        assert_eq!(options.emit(&mut bytes), 36);
        assert_eq!(
            Options::parse(&bytes[..36]).map(|parsed| parsed.sack.as_slice().len()),
            Ok(4)
        );
    }

    #[test]
    fn unknown_options_are_skipped_and_wrong_lengths_refused() {
        assert_eq!(
            Options::parse(&[254, 4, 1, 2, 2, 4, 5, 0xb4]).map(|o| o.mss),
            Ok(Some(1460))
        );
        assert_eq!(Options::parse(&[0, 2, 9]), Ok(Options::default()));
        for bad in [
            &[2, 3, 5][..],
            &[2],
            &[2, 0],
            &[2, 1],
            &[2, 4, 1],
            &[8, 8, 0, 0, 0, 0, 0, 0],
            &[5, 2],
            &[5, 6, 0, 0, 0, 0],
        ] {
            assert_eq!(Options::parse(bad), Err(MalformedOptions), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..=MAX_OPTIONS_LEN)) {
            let _ = Options::parse(&bytes);
        }
    }
}
