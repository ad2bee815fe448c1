//! rustls shakes hands, the stack seals and opens.
//!
//! ```text
//!   Handshake::client / ::server ── step(socket) … ──► Complete { keys, early data, secrets }
//!                                                         │  ULP, TLS_TX, TLS_RX
//!                                                         ▼
//!                                                      TlsStream: read, write, sendfile, key_update, close_notify
//! ```
//!
//! [`Handshake`] drives rustls's *unbuffered* connection over any stream, blocking or not, and reads exactly one record
//! at a time, so that nothing behind the last handshake record is consumed: those bytes belong to `TLS_RX`. Data that
//! rustls decrypted early all the same is kept and returned first.
//!
//! [`TlsStream`] then owns the socket and rustls's *kernel* connection, which keeps the secrets that later messages
//! need: session tickets go to rustls's store, a KeyUpdate makes the next keys, alerts end the stream. What it does
//! not do: renegotiation (refused), post-handshake client authentication and 0-RTT (never offered).

mod asynchronous;
mod config;
pub mod dangerous_seeded;
mod key_log;
mod negotiate;
mod stream;

pub use config::{Choice, ConfigError, Identity, Trust, client_config, server_config};
pub use key_log::KeyLogWriter;
pub use negotiate::{Complete, Handshake, Progress};
pub use stream::{KtlsSocket, TlsStream};

#[cfg(test)]
mod tests;
