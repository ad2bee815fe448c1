//! A TCP of the project's own, sans-IO: segments, timers and the time come in as arguments, segments to send go out as
//! values.
//!
//! **What it does.** RFC 9293 with window scaling and timestamps (7323), selective acknowledgements (2018, 2883), loss
//! detection by time (RACK-TLP, 8985), PRR (6937), CUBIC (9438) with HyStart++ (9406) or Reno (5681), pacing, ECN (3168),
//! SYN cookies (4987), defences
//! against blind attacks (5961), keep-alive and window probes (1122).
//!
//! **What it does not.** It holds no bytes that are to be sent. The sealed stream lies in the socket's arena, and the
//! connection knows offsets into it: a segment, first sent or sent again, is a [range](Transmit::payload) of that
//! stream. It computes no checksums and sees no IP headers. It does not listen: a SYN for a listener becomes a connection
//! by [`Connection::accept`]. The urgent pointer is ignored.
//!
//! **How to drive it.** After every call that may change something ([`Connection::on_segment`],
//! [`Connection::on_timer`], [`Connection::append`], [`Connection::consumed`], ...) call [`Connection::transmit`] until
//! it returns `None`, and arm one timer for [`Connection::deadline`].
//!
//! | file | what |
//! | --- | --- |
//! | `seq`, `options`, `segment` | the wire |
//! | `config` | settings, states, events, statistics |
//! | `connection` | the machine: opening, closing, timers, the public face |
//! | `input`, `output` | a segment's way in (RFC 9293 §3.10.7), a segment's way out |
//! | `send`, `receive` | the two halves' sequence variables and windows |
//! | `scoreboard`, `recovery` | what is in flight, what of it is lost, how much may be sent meanwhile |
//! | `rtt`, `congestion`, `pacing`, `path_mtu` | how long, how much, how fast, how large |
//! | `isn`, `cookie`, `reset`, `time_wait` | before and after a connection |
#![forbid(unsafe_code)]

mod config;
mod congestion;
mod connection;
mod cookie;
mod input;
mod isn;
mod options;
mod output;
mod pacing;
mod path_mtu;
mod receive;
mod recovery;
mod reset;
mod rtt;
mod scoreboard;
mod segment;
mod send;
mod seq;
mod time_wait;
mod timers;

pub use config::{Config, CongestionKind, Events, KeepAlive, State, Stats, Unreachable};
pub use connection::Connection;
pub use cookie::COOKIE_LIFE;
pub use isn::IsnGenerator;
pub use options::{MAX_OPTIONS_LEN, MalformedOptions, Options, SackBlocks};
pub use reset::reset_for;
pub use segment::{
    Cause, EcnCodepoint, Flags, FlowKey, HEADER_LEN, MAX_HEADER_LEN, Malformed, Segment, Transmit,
};
pub use seq::SeqNumber;
pub use time_wait::{TimeWait, TimeWaitAnswer};

use crate::clock::Instant;

/// The timestamp clock: milliseconds, shifted by the connection's secret offset. RFC 7323 §5.4 allows 1 ms to 1 s a
/// tick.
fn timestamp(offset: u32, now: Instant) -> u32 {
    (now.as_millis() as u32).wrapping_add(offset)
}
