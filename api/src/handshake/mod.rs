//! Handshakes: done in user space by real TLS libraries, ending with keys that are handed to the socket.
//!
//! [`rustls`] does TLS 1.2 and 1.3, as client and as server. With the feature `openssl`, OpenSSL does DTLS 1.2, which rustls does
//! not speak, and TLS 1.2.

#[cfg(feature = "openssl")]
pub mod openssl;
pub mod rustls;
