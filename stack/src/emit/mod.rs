//! The emission path: from a source, through the record layer, to ranges of bytes that TCP sends.
//!
//! | module | room |
//! | --- | --- |
//! | [`arena`] | sealed records, one after the other, until they are acknowledged |
//! | [`source`] | what a client's end brings: bytes, marks, files |
//! | [`file`](mod@file) | a file's bytes, mapped or read, without blocking the shard |
//! | [`job`] | what helper threads do for it |
//! | [`sigbus`] | mapped windows of files, and what happens when a file is cut under one |
//! | [`emitter`] | the walk: source, record slots, seal |
//!
//! Nothing is sealed before the peer's window and the congestion window have room for it, or for part of it: until then
//! bytes stay where the client put them, and a client that is faster than its peer waits on its own descriptor.

pub mod arena;
pub mod emitter;
pub mod file;
pub mod job;
pub mod sigbus;
pub mod source;
