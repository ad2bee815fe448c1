//! TCP, UDP and IP in user space, with the TLS record layer as the segment emission path.
#![warn(missing_docs)]

pub mod address;
pub mod clock;
pub mod device;
pub mod fragment;
pub mod mark;
pub mod tcp;
