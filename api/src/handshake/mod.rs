//! Handshakes: done in user space by real TLS libraries, ending with keys that are handed to the socket.
//!
//! [`rustls`] does TLS 1.2 and 1.3, as client and as server.

pub mod rustls;
