//! DTLS on UDP sockets: datagrams sealed in the buffer they leave from, and opened in the buffer they came in.
//!
//! An *association* is attached to a UDP socket and names one peer. From then on that peer's datagrams are looked at record
//! by record: application data is opened and goes to the association's own end, everything else (handshakes, alerts) stays
//! on the UDP socket as it came, for the library that shakes hands there. So two descriptors speak to one peer: the UDP
//! socket in the raw, the association's end in plaintext. That is how AF_KTLS is used: bind over a connected socket, and go on
//! using that socket for control messages.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`end`] | the messages on an association's end, which the client library speaks |
//! | `association` | one peer's keys and counters; the way in |
//! | [`taken`] | messages on their way from an end into a run |
//! | `outgoing` | the way out: records one behind the other into one super-datagram, from messages and from files |
//!
//! Nothing here paces or retransmits: what does not fit on its way is lost, as datagrams are. What is dropped is counted by
//! kind, for the association and for the whole stack, and costs one look at a header or one AEAD operation.

pub(crate) mod association;
pub mod end;
pub(crate) mod outgoing;
pub mod taken;

pub use association::{DtlsInfo, EpochInfo};
