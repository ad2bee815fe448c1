//! The simulator: the same stack under a virtual clock, on links that lose, delay and damage packets as told.
//!
//! | module | what |
//! | --- | --- |
//! | [`random`] | one seeded stream per entity and purpose; chances in parts per million |
//! | [`link`] | one direction of a link with netem's knobs: what becomes of a packet, and when it arrives |
//! | [`distribution`] | the shapes of jitter, as integer tables |
//! | [`damage`] | flipped bits with and without repaired checksums, congestion marks |
//! | [`fault`] | targeted faults: by address, flag, content type, record, epoch |
//! | [`presets`] | links people know: wifi, 4g, 3g, leo, geo, dsl |
//! | [`schedule`] | what goes wrong in a run, as data that prints as code |
//! | [`shrink`] | the least of a schedule that still fails |
//! | [`records`] | where TLS and DTLS records begin in passing packets |
//! | [`invariant`] | what must hold in every run, checked on every packet |
//! | [`decode`] | a packet as a readable line |
//! | [`recording`] | a run as a capture file |

pub mod damage;
pub mod decode;
pub mod distribution;
pub mod fault;
pub mod invariant;
pub mod link;
#[cfg(test)]
mod packets;
pub mod presets;
pub mod random;
pub mod recording;
pub mod records;
pub mod schedule;
pub mod shrink;
mod source;
mod trace;

pub use trace::Journal;
