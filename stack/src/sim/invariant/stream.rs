//! One direction of one TCP connection, as the packets and the two ends tell it.
//!
//! What is kept is what is in flight: the bytes that were sent and not acknowledged, to hold retransmissions against; and the bytes that a program handed in
//! at one end and that did not come out at the other. Both are rings that grow to the windows' size once. Offsets count the stream's bytes from 0, behind the SYN.

use crate::sim::decode::{RecordStart, tls_header};
use crate::tcp::SeqNumber;
use std::collections::VecDeque;
use std::ops::Range;

/// Where the records of a stream begin: headers are followed from the first one on.
#[derive(Debug)]
struct Framing {
    /// Stream offset of the next header.
    at: u64,
    header: [u8; 5],
    have: usize,
    /// Number of the next record.
    number: u64,
}

/// What one direction of a connection is known to be.
#[derive(Debug)]
pub(super) struct Stream {
    /// Number of the SYN.
    pub(super) isn: SeqNumber,
    pub(super) window_scale: u8,
    /// A FIN or RST was sent: no bytes follow.
    pub(super) ends: bool,
    /// Stream offset of `sent`'s first byte: everything before it was acknowledged.
    base: u64,
    /// What was sent first, from `base` on.
    sent: VecDeque<u8>,
    framing: Option<Framing>,
    /// Where keys came into force at the sending end.
    pub(super) tx_switch: Option<u64>,
    /// Which key that is.
    pub(super) tx_key: u64,
    /// Everything from the switch to here was sealed.
    pub(super) sealed_to: u64,
    /// Where keys came into force at the receiving end.
    pub(super) rx_switch: Option<u64>,
    /// Everything from that switch to here was opened.
    pub(super) opened_to: u64,
    /// Application bytes that were verified by opening.
    pub(super) verified: u64,
    /// Somebody forged a packet of this direction.
    pub(super) forged: bool,
    /// Bytes handed in that did not come out; `None` when the two ends do not speak of the same bytes.
    inside: Option<VecDeque<u8>>,
    pub(super) counts: Counts,
}

/// What a direction has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets sent, acknowledgements among them.
    pub packets: u64,
    /// Packets with payload.
    pub data_packets: u64,
    /// Payload bytes, each time they were sent.
    pub payload: u64,
    /// Packets with bytes that had been sent before.
    pub retransmitted: u64,
    /// Records sealed into it.
    pub sealed: u64,
    /// Records opened from it.
    pub opened: u64,
    /// Bytes that programs handed in.
    pub handed_in: u64,
    /// Bytes that programs got out.
    pub handed_out: u64,
}

/// What is wrong with a stream. The numbers are stream offsets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Broken {
    Changed { at: u64, first: u8, now: u8 },
    NoRecord { at: u64, header: [u8; 5] },
    NotSealed { at: u64 },
    Other { at: u64, went_in: u8, came_out: u8 },
    Surplus { at: u64, surplus: u64 },
    NotVerified { verified: u64, out: u64 },
    Missing { at: u64, missing: usize },
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Changed { at, first, now } => write!(
                f,
                "a retransmission differs from what was sent first: stream byte {at} was {first:#04x} and is {now:#04x}"
            ),
            Broken::NoRecord { at, header } => write!(
                f,
                "plaintext behind the switch to keys: at stream byte {at}, where a record must begin, is {header:02x?}"
            ),
            Broken::NotSealed { at } => write!(
                f,
                "plaintext behind the switch to keys: stream byte {at} was sent and never sealed"
            ),
            Broken::Other {
                at,
                went_in,
                came_out,
            } => write!(
                f,
                "what comes out is not what went in: byte {at} went in as {went_in:#04x} and came out as {came_out:#04x}"
            ),
            Broken::Surplus { at, surplus } => write!(
                f,
                "more bytes come out than went in: {surplus} more than the {at} that did"
            ),
            Broken::NotVerified { verified, out } => write!(
                f,
                "delivered before its tag was verified: {out} bytes are out, {verified} were verified"
            ),
            Broken::Missing { at, missing } => write!(
                f,
                "a stream ends, and bytes that went in did not come out: {missing} behind the {at} that did"
            ),
        }
    }
}

impl Stream {
    pub(super) fn new(isn: SeqNumber) -> Stream {
        Stream {
            isn,
            window_scale: 0,
            ends: false,
            base: 0,
            sent: VecDeque::new(),
            framing: Some(Framing {
                at: 0,
                header: [0; 5],
                have: 0,
                number: 0,
            }),
            tx_switch: None,
            tx_key: 0,
            sealed_to: 0,
            rx_switch: None,
            opened_to: 0,
            verified: 0,
            forged: false,
            inside: Some(VecDeque::new()),
            counts: Counts::default(),
        }
    }

    /// The stream from its middle on: nobody saw its SYN.
    pub(super) fn joined(seq: SeqNumber) -> Stream {
        Stream {
            framing: None,
            inside: None,
            ..Stream::new(SeqNumber(seq.0.wrapping_sub(1)))
        }
    }

    /// Stream offset behind everything that was sent.
    pub(super) fn sent_to(&self) -> u64 {
        self.base + self.sent.len() as u64
    }

    /// Bytes that were sent and not acknowledged.
    pub(super) fn in_flight(&self) -> u64 {
        self.sent.len() as u64
    }

    /// Bytes that went in and did not come out, if both ends speak of the same bytes.
    pub(super) fn inside(&self) -> Option<u64> {
        self.inside.as_ref().map(|inside| inside.len() as u64)
    }

    /// Somebody follows the records.
    pub(super) fn followed(&self) -> bool {
        self.framing.is_some()
    }

    /// The stream offset of a segment that starts at `seq`; negative before its beginning.
    fn offset(&self, seq: SeqNumber) -> i64 {
        seq.unwrap_near(self.isn, self.sent_to() + 1) - 1
    }

    /// Takes a segment's payload, tells of the records that begin in it, and says whether it had been sent before.
    pub(super) fn send(
        &mut self,
        seq: SeqNumber,
        payload: &[u8],
        mut record: impl FnMut(RecordStart),
    ) -> Result<bool, Broken> {
        let start = self.offset(seq);
        let Ok(start) = u64::try_from(start) else {
            return Ok(true); // a keep-alive's byte in front of the stream
        };
        let frontier = self.sent_to();
        if start > frontier {
            // Not our TCP, which sends in order: bytes are missing here that nobody can hold a retransmission against.
            self.sent.clear();
            self.base = start;
            self.framing = None;
        }
        let known = (self.sent_to() - start.min(self.sent_to())).min(payload.len() as u64) as usize;
        let (again, new) = payload.split_at(known);
        self.compare(start, again)?;
        if !new.is_empty() {
            let at = start + known as u64;
            if let Some(switch) = self.tx_switch
                && at + new.len() as u64 > self.sealed_to.max(switch)
            {
                return Err(Broken::NotSealed {
                    at: at.max(self.sealed_to),
                });
            }
            self.follow(at, new, &mut record)?;
            self.sent.extend(new);
        }
        Ok(known > 0)
    }

    /// Holds bytes that were sent before against what they were then.
    fn compare(&self, start: u64, again: &[u8]) -> Result<(), Broken> {
        // What was acknowledged is not kept any more.
        let skip = self.base.saturating_sub(start).min(again.len() as u64) as usize;
        let again = &again[skip..];
        let from = (start + skip as u64 - self.base.min(start + skip as u64)) as usize;
        let (left, right) = self.sent.as_slices();
        let in_left = left.len().saturating_sub(from).min(again.len());
        let (now_left, now_right) = again.split_at(in_left);
        let right_from = (from + in_left).saturating_sub(left.len());
        let equal = now_left == left.get(from..from + in_left).unwrap_or_default()
            && now_right == &right[right_from..right_from + now_right.len()];
        if equal {
            return Ok(());
        }
        let differs = |(i, byte): &(usize, &u8)| self.sent[from + i] != **byte;
        match again.iter().enumerate().find(differs) {
            Some((i, byte)) => Err(Broken::Changed {
                at: self.base + (from + i) as u64,
                first: self.sent[from + i],
                now: *byte,
            }),
            None => Ok(()),
        }
    }

    /// Follows record headers through bytes that are sent for the first time.
    fn follow(
        &mut self,
        start: u64,
        new: &[u8],
        record: &mut impl FnMut(RecordStart),
    ) -> Result<(), Broken> {
        let Some(framing) = &mut self.framing else {
            return Ok(());
        };
        let end = start + new.len() as u64;
        loop {
            // The next byte of the header that is wanted.
            let at = framing.at + framing.have as u64;
            if at >= end {
                return Ok(());
            }
            let from = (at - start) as usize;
            let take = (5 - framing.have).min(new.len() - from);
            framing.header[framing.have..framing.have + take]
                .copy_from_slice(&new[from..from + take]);
            framing.have += take;
            // Bytes that are no header are noticed as early as they can be.
            let mut so_far = [23, 3, 3, 0, 0];
            so_far[..framing.have].copy_from_slice(&framing.header[..framing.have]);
            let Some((content_type, length)) = tls_header(&so_far) else {
                let at = framing.at;
                if self.tx_switch.is_some_and(|switch| at >= switch) {
                    return Err(Broken::NoRecord {
                        at,
                        header: framing.header,
                    });
                }
                self.framing = None; // a plain protocol
                return Ok(());
            };
            if framing.have == 5 {
                record(RecordStart {
                    content_type,
                    number: framing.number,
                    length,
                });
                framing.number += 1;
                framing.at += 5 + u64::from(length);
                framing.have = 0;
            }
        }
    }

    /// The peer acknowledged everything in front of `ack`.
    pub(super) fn acknowledged(&mut self, ack: SeqNumber) {
        let Ok(to) = u64::try_from(self.offset(ack)) else {
            return;
        };
        // The FIN counts as a byte, and a forged number may say anything.
        let to = to.min(self.sent_to());
        if to > self.base {
            self.sent.drain(..(to - self.base) as usize);
            self.base = to;
        }
        if self.ends && self.sent.is_empty() {
            self.sent = VecDeque::new();
        }
    }

    /// Another connection has these addresses and ports now.
    pub(super) fn forget(&mut self) {
        self.sent = VecDeque::new();
        self.inside = None;
    }

    /// Keys are in force for what is sent from stream offset `at` on; `number` is the first record's.
    pub(super) fn switch_tx(&mut self, at: u64, key: u64, number: u64) -> Result<(), Broken> {
        let gap = self.tx_switch.is_some() && at != self.sealed_to;
        if self.sent_to() > at || gap {
            return Err(Broken::NotSealed { at });
        }
        self.tx_switch.get_or_insert(at);
        self.tx_key = key;
        self.sealed_to = at;
        self.framing = Some(Framing {
            at,
            header: [0; 5],
            have: 0,
            number,
        });
        Ok(())
    }

    /// Keys are in force for what is received from stream offset `at` on.
    pub(super) fn switch_rx(&mut self, at: u64) {
        if self.rx_switch.is_none() {
            self.rx_switch = Some(at);
            // Set late: what the program had read beyond is given back and becomes records.
            self.counts.handed_out = self.counts.handed_out.min(at);
        }
        self.opened_to = at;
    }

    /// A record lies at `range` of the stream.
    pub(super) fn sealed(&mut self, range: Range<u64>) -> Result<(), Broken> {
        if range.start != self.sealed_to {
            return Err(Broken::NotSealed {
                at: self.sealed_to.min(range.start),
            });
        }
        self.sealed_to = range.end;
        self.counts.sealed += 1;
        Ok(())
    }

    /// The record at `range` was verified and holds `plaintext` application bytes.
    pub(super) fn opened(&mut self, range: Range<u64>, plaintext: u64) {
        self.opened_to = range.end;
        self.verified += plaintext;
        self.counts.opened += 1;
    }

    /// Nobody will say what comes out: the receiver is a stack of its own.
    pub(super) fn nobody_tells(&mut self) {
        self.inside = None;
    }

    /// A program handed bytes in.
    pub(super) fn handed_in(&mut self, bytes: &[u8]) {
        self.counts.handed_in += bytes.len() as u64;
        if let Some(inside) = &mut self.inside {
            inside.extend(bytes);
        }
    }

    /// A program got bytes out.
    pub(super) fn handed_out(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let before = self.counts.handed_out;
        self.counts.handed_out += bytes.len() as u64;
        let out = self.counts.handed_out;
        if let Some(switch) = self.rx_switch
            && out > switch + self.verified
        {
            return Err(Broken::NotVerified {
                verified: switch + self.verified,
                out,
            });
        }
        // One end may have a TLS of its own above the socket, where the other has keys on it: then they speak of different bytes.
        let limit = |switch: Option<u64>| switch.unwrap_or(u64::MAX);
        let plain = out <= limit(self.tx_switch).min(limit(self.rx_switch));
        if !plain && self.tx_switch != self.rx_switch {
            self.inside = None;
        }
        let Some(inside) = &mut self.inside else {
            return Ok(());
        };
        if self.counts.handed_in == 0 {
            return Ok(()); // the sender is none of ours
        }
        if bytes.len() > inside.len() && !(self.forged && plain) {
            let surplus = (bytes.len() - inside.len()) as u64;
            return Err(Broken::Surplus {
                at: self.counts.handed_in,
                surplus,
            });
        }
        if bytes.len() <= inside.len() {
            let (left, right) = inside.as_slices();
            let (out_left, out_right) = bytes.split_at(left.len().min(bytes.len()));
            if out_left == &left[..out_left.len()] && out_right == &right[..out_right.len()] {
                inside.drain(..bytes.len());
                if self.ends && inside.is_empty() {
                    *inside = VecDeque::new();
                }
                return Ok(());
            }
        }
        if self.forged && plain {
            // TCP's checksum cannot tell; that is what records are for.
            self.inside = None;
            return Ok(());
        }
        let differs = |(i, byte): &(usize, &u8)| inside[*i] != **byte;
        match bytes.iter().enumerate().find(differs) {
            Some((i, byte)) => Err(Broken::Other {
                at: before + i as u64,
                went_in: inside[i],
                came_out: *byte,
            }),
            None => Ok(()),
        }
    }

    /// A program was told that nothing more comes.
    pub(super) fn ended(&self) -> Result<(), Broken> {
        // A forger may have ended it, or made a plain byte into something else.
        let comparable = !self.forged && self.tx_switch == self.rx_switch;
        match &self.inside {
            Some(inside) if comparable && !inside.is_empty() => Err(Broken::Missing {
                at: self.counts.handed_out,
                missing: inside.len(),
            }),
            _ => Ok(()),
        }
    }
}
