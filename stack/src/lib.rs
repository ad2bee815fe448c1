//! TCP, UDP and IP in user space, with the TLS record layer as the segment emission path.
#![warn(missing_docs)]

pub mod address;
pub mod budget;
pub mod client_fd;
pub mod clock;
pub mod counters;
pub mod device;
pub mod dtls;
pub mod emit;
pub mod engine;
pub mod fragment;
pub mod handle;
pub mod ingress;
pub mod mark;
pub mod packet;
pub mod registry;
mod shard;
pub mod sim;
pub mod socket_info;
pub mod stack;
pub mod tcp;
