//! Congestion avoidance of RFC 5681 with byte counting.

use super::Ack;

/// Bytes delivered that have not yet earned a segment's worth of window.
#[derive(Debug, Clone, Default)]
pub(super) struct Reno {
    counted: u64,
}

impl Reno {
    /// RFC 5681 §3.1: "during congestion avoidance, cwnd is incremented by roughly 1 full-sized segment per round-trip
    /// time (RTT)", here by the variant it recommends: "increase cwnd by SMSS once cwnd bytes are acknowledged".
    pub(super) fn avoid(&mut self, cwnd: u64, ack: &Ack) -> u64 {
        self.counted += ack.delivered;
        if self.counted < cwnd {
            return cwnd;
        }
        self.counted -= cwnd;
        cwnd + ack.mss
    }
}
