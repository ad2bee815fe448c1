//! The answer to a segment that no connection takes: a RST that the sender will accept.

use super::options::Options;
use super::segment::{Cause, EcnCodepoint, Flags, Segment, Transmit};

/// The reset for a segment whose connection does not exist (CLOSED), or `None` for a segment that is itself a reset.
///
/// RFC 9293 §3.10.7.1: "all data in the incoming segment is discarded. An incoming segment containing a RST is discarded.
/// An incoming segment not containing a RST causes a RST to be sent in response. ... If the ACK bit is off, sequence
/// number zero is used, <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>. If the ACK bit is on, <SEQ=SEG.ACK><CTL=RST>."
pub fn reset_for(segment: &Segment) -> Option<Transmit> {
    if segment.flags.rst() {
        return None;
    }
    let (seq, ack, flags) = if segment.flags.ack() {
        (segment.ack, None, Flags::RST)
    } else {
        (
            Default::default(),
            Some(segment.seq + segment.seg_len()),
            Flags::RST | Flags::ACK,
        )
    };
    Some(Transmit {
        seq,
        ack,
        flags,
        window: 0,
        options: Options::default(),
        payload: 0..0,
        retransmission: false,
        cause: Cause::First,
        gso_size: 0,
        ecn: EcnCodepoint::NotEct,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::seq::SeqNumber;

    fn segment(flags: Flags) -> Segment {
        Segment {
            src_port: 1,
            dst_port: 2,
            seq: SeqNumber(u32::MAX),
            ack: SeqNumber(55),
            flags,
            window: 0,
            options: Options::default(),
            header_len: 20,
            payload_len: 3,
            ecn_ce: false,
        }
    }

    #[test]
    fn answers_as_the_rfc_says() {
        assert_eq!(reset_for(&segment(Flags::RST)), None);
        assert_eq!(reset_for(&segment(Flags::RST | Flags::ACK)), None);
        let to_ack = reset_for(&segment(Flags::ACK | Flags::FIN)).expect("a reset");
        assert_eq!(
            (to_ack.seq, to_ack.ack, to_ack.flags),
            (SeqNumber(55), None, Flags::RST)
        );
        let to_syn = reset_for(&segment(Flags::SYN)).expect("a reset");
        // SEQ + three bytes + the SYN, across the wrap.
        assert_eq!(
            (to_syn.seq, to_syn.ack, to_syn.flags),
            (SeqNumber(0), Some(SeqNumber(3)), Flags::RST | Flags::ACK)
        );
    }
}
