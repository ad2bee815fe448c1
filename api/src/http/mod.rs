//! The HTTP/1.1 that `uktls serve` speaks (RFC 9110 and 9112), as functions from bytes to bytes.
//!
//! [`request`] parses heads, [`target`] turns a request target into a path beneath the served folder, [`site`] opens
//! what it names and [`answer`] decides on the response. No sockets here: the event loop in `cli::serve` moves the
//! bytes. Deliberately missing: everything that changes files (answered 405), several ranges at once (answered with
//! the whole file, which RFC 9110 §14.2 allows) and HTTP/2.

pub(crate) mod answer;
pub(crate) mod listing;
pub(crate) mod range;
pub(crate) mod request;
pub(crate) mod response;
pub(crate) mod site;
pub(crate) mod status;
pub(crate) mod target;
