//! Kernel TLS without the kernel: the socket API of a user-space TCP/UDP stack whose segments are TLS records.
//!
//! # A socket in one picture
//!
//! ```text
//!    your process                                daemon (`uktls up`)                  the network
//!   ┌────────────────────┐   Unix stream pair   ┌───────────────────────────┐
//!   │ TcpStream ── fd ───┼══════════════════════┼═ end ─ seal ─ TCP segments ┼──── TUN ──── peer
//!   │                    │  bytes and marks     │        open ─ reassembly   │
//!   │ Daemon ── control ─┼──────────────────────┼─ server ─ Stack's handle   │
//!   └────────────────────┘  requests, answers   └───────────────────────────┘
//! ```
//!
//! **The descriptor is the socket.** A [`TcpStream`] is your end of a Unix stream pair whose other end the stack reads and
//! writes. Plain bytes on it are plain bytes, so everything that works on descriptors works: `poll`, `epoll`, `dup`, `fork`,
//! passing it to another process. What is not a plain byte but has a place among them (keys are in force from here, these
//! bytes are an alert, this range of a file goes here) is a *mark*: a short message with a descriptor attached, which no
//! peer on the network can forge. So bytes, keys, records and files keep their exact order, with no round trip.
//!
//! **Everything else is a request** on a control connection, which names a socket by passing its descriptor: whoever
//! holds the descriptor may act on the socket, nobody else can name it.
//!
//! # TLS in four calls
//!
//! Handshakes are done by a real TLS library in your process; the stack only gets the keys. As with Linux's kTLS:
//!
//! ```no_run
//! # fn handshake(_: &uktls::TcpStream) -> (uktls::CryptoInfo, uktls::CryptoInfo) { unimplemented!("a TLS library's part") }
//! # fn main() -> std::io::Result<()> {
//! let stream = uktls::TcpStream::connect("10.77.0.1:443")?;
//! let (send_keys, receive_keys) = handshake(&stream);
//! stream.set_ulp_tls()?;
//! stream.set_tls_tx(&send_keys)?; // from this byte on, what is written is sealed
//! stream.set_tls_rx(&receive_keys)?; // and what is read was opened
//! let file = std::fs::File::open("page.html")?;
//! stream.sendfile(&file, None, u64::MAX)?; // page cache → records → segments, none of it in this process
//! # Ok(()) }
//! ```
//!
//! # Where to read on
//!
//! [`client`] what programs use · [`protocol`] requests and answers · [`server`] the daemon's side of them · [`paths`] where
//! they meet. The stack itself is the crate `uktls_stack`, the records are `uktls_record`.

pub mod client;
pub mod handshake;
pub mod paths;
pub mod protocol;
pub mod server;

pub use client::{Daemon, TcpListener, TcpStream, UdpSocket};
pub use uktls_record::{CipherSuite, ContentType, CryptoInfo, ProtocolVersion};
