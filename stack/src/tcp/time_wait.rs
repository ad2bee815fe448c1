//! TIME-WAIT in tens of bytes: what is left of a connection when both directions are done.
//!
//! It answers what may still arrive from the peer (its FIN again, when our acknowledgement was lost), and keeps the
//! pair of addresses from being taken by a new connection that old segments could disturb, unless the new SYN is
//! provably newer.

use core::time::Duration;

use super::options::Options;
use super::segment::{Cause, EcnCodepoint, Flags, Segment, Transmit};
use super::seq::SeqNumber;
use crate::clock::Instant;

/// A connection in TIME-WAIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeWait {
    /// SND.NXT: the number behind our FIN.
    pub(super) snd_nxt: SeqNumber,
    /// RCV.NXT: the number behind the peer's FIN.
    pub(super) rcv_nxt: SeqNumber,
    /// The window field we sent last.
    pub(super) window: u16,
    /// TS.Recent and our timestamp offset, when timestamps are in use.
    pub(super) timestamps: Option<(u32, u32)>,
    pub(super) deadline: Instant,
    pub(super) duration: Duration,
}

/// What to do about a segment that met a [`TimeWait`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimeWaitAnswer {
    /// Nothing.
    Ignore,
    /// Send this.
    Send(Transmit),
    /// A SYN that begins a new connection: drop the [`TimeWait`] and treat the segment as if it had not been there.
    /// The new connection's initial sequence number must be after `isn_after`.
    Reopen {
        /// The last number the old connection used.
        isn_after: SeqNumber,
    },
}

impl TimeWait {
    /// When it is over and can be dropped.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// A segment for the old connection arrived.
    pub fn on_segment(&mut self, now: Instant, segment: &Segment) -> TimeWaitAnswer {
        if segment.flags.rst() {
            // RFC 1337: a RST in TIME-WAIT is ignored, so that it cannot be assassinated by an old duplicate.
            return TimeWaitAnswer::Ignore;
        }
        let newer_timestamp = match (self.timestamps, segment.options.timestamps) {
            (Some((recent, _)), Some((tsval, _))) => Some(tsval.wrapping_sub(recent) as i32 > 0),
            _ => None,
        };
        if segment.flags.syn() && !segment.flags.ack() {
            // RFC 6191 §2: "If the Timestamp ... is larger than the last timestamp seen on the previous incarnation,
            // honor the connection request"; RFC 1122 §4.2.2.13, without timestamps: "it ... MAY accept a new SYN ... if
            // ... its initial sequence number ... is larger than the largest sequence number it used".
            if newer_timestamp.unwrap_or(false) || segment.seq.gt(self.rcv_nxt) {
                return TimeWaitAnswer::Reopen {
                    isn_after: self.snd_nxt,
                };
            }
            return TimeWaitAnswer::Send(self.acknowledgement(now));
        }
        let acceptable_ack = segment.flags.ack() && segment.ack.le(self.snd_nxt);
        if segment.flags.fin() && acceptable_ack && newer_timestamp != Some(false)
            || segment.flags.fin() && segment.seq + segment.seg_len() == self.rcv_nxt
        {
            // RFC 9293 §3.10.7.4: "TIME-WAIT STATE ... The only thing that can arrive in this state is a retransmission of
            // the remote FIN. Acknowledge it, and restart the 2 MSL timeout."
            self.deadline = now + self.duration;
            return TimeWaitAnswer::Send(self.acknowledgement(now));
        }
        if segment.seg_len() > 0 {
            return TimeWaitAnswer::Send(self.acknowledgement(now));
        }
        TimeWaitAnswer::Ignore
    }

    fn acknowledgement(&self, now: Instant) -> Transmit {
        Transmit {
            seq: self.snd_nxt,
            ack: Some(self.rcv_nxt),
            flags: Flags::ACK,
            window: self.window,
            options: Options {
                timestamps: self
                    .timestamps
                    .map(|(recent, offset)| (super::timestamp(offset, now), recent)),
                ..Options::default()
            },
            payload: 0..0,
            retransmission: false,
            cause: Cause::First,
            gso_size: 0,
            ecn: EcnCodepoint::NotEct,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time_wait() -> TimeWait {
        TimeWait {
            snd_nxt: SeqNumber(500),
            rcv_nxt: SeqNumber(u32::MAX),
            window: 9,
            timestamps: None,
            deadline: Instant::from_secs(60),
            duration: Duration::from_secs(60),
        }
    }

    fn segment(flags: Flags, seq: SeqNumber, tsval: Option<u32>) -> Segment {
        Segment {
            src_port: 1,
            dst_port: 2,
            seq,
            ack: SeqNumber(500),
            flags,
            window: 0,
            options: Options {
                timestamps: tsval.map(|tsval| (tsval, 0)),
                ..Options::default()
            },
            header_len: 20,
            payload_len: 0,
            ecn_ce: false,
        }
    }

    #[test]
    fn the_peers_fin_is_acknowledged_again_and_time_starts_anew() {
        let mut old = time_wait();
        let fin = segment(Flags::FIN | Flags::ACK, SeqNumber(u32::MAX - 1), None);
        let TimeWaitAnswer::Send(ack) = old.on_segment(Instant::from_secs(30), &fin) else {
            panic!("no answer")
        };
        assert_eq!(
            (ack.seq, ack.ack, ack.flags),
            (SeqNumber(500), Some(SeqNumber(u32::MAX)), Flags::ACK)
        );
        assert_eq!(old.deadline(), Instant::from_secs(90));
    }

    #[test]
    fn a_reset_does_not_end_it_and_an_acknowledgement_says_nothing() {
        let mut old = time_wait();
        for flags in [Flags::RST, Flags::RST | Flags::ACK, Flags::ACK] {
            let answer = old.on_segment(Instant::ZERO, &segment(flags, SeqNumber(u32::MAX), None));
            assert_eq!(answer, TimeWaitAnswer::Ignore, "{flags:?}");
        }
        assert_eq!(old, time_wait());
    }

    #[test]
    fn only_a_newer_syn_reopens() {
        let reopen = TimeWaitAnswer::Reopen {
            isn_after: SeqNumber(500),
        };
        let mut old = time_wait();
        assert_eq!(
            old.on_segment(Instant::ZERO, &segment(Flags::SYN, SeqNumber(7), None)),
            reopen
        );
        let earlier = segment(Flags::SYN, SeqNumber(u32::MAX - 9), None);
        assert!(matches!(
            old.on_segment(Instant::ZERO, &earlier),
            TimeWaitAnswer::Send(_)
        ));
        // With timestamps, a newer one makes up for an earlier number.
        old.timestamps = Some((1000, 0));
        let newer = segment(Flags::SYN, SeqNumber(u32::MAX - 9), Some(1001));
        assert_eq!(old.on_segment(Instant::ZERO, &newer), reopen);
        let older = segment(Flags::SYN, SeqNumber(u32::MAX - 9), Some(999));
        assert!(matches!(
            old.on_segment(Instant::ZERO, &older),
            TimeWaitAnswer::Send(_)
        ));
    }

    #[test]
    fn it_costs_tens_of_bytes() {
        assert!(size_of::<TimeWait>() <= 64, "{}", size_of::<TimeWait>());
    }
}
