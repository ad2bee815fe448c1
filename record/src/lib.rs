//! The TLS and DTLS record layer, and nothing else: bytes in, records out, and back.
//!
//! A handshake (done elsewhere, by a real TLS library) ends with keys. From there on a TLS connection is a row of
//! *records*, and this crate is what turns plaintext into records ([`Sealer`]) and records into plaintext
//! ([`Opener`]). It is the part of a TLS library that Linux moved into the kernel and called kTLS, which is why keys
//! come in as [`CryptoInfo`], the same struct that `setsockopt(TLS_TX)` takes.
//!
//! # What a record looks like
//!
//! Every record starts with the same five bytes. What follows depends on version and cipher. `[…]` is encrypted, and
//! everything the tag vouches for without encrypting it is the *additional data* (AAD).
//!
//! **TLS 1.2, AES-GCM** (RFC 5288). The nonce is 4 secret bytes (*salt*) and 8 bytes that travel in the record:
//!
//! ```text
//!  0        1          3          5                 13                     13+n           29+n
//!  +--------+----------+----------+------------------+----------------------+-------------+
//!  |  type  | 03   03  |  length  |  explicit nonce  | [ plaintext, n bytes ]|     tag     |
//!  +--------+----------+----------+------------------+----------------------+-------------+
//!   1 byte    2          2 = 24+n   8                  n ≤ 16384              16
//!
//!   nonce = salt(4) ‖ explicit nonce(8)
//!   AAD   = sequence(8) ‖ type ‖ 03 03 ‖ n(2)
//! ```
//!
//! **TLS 1.2, ChaCha20-Poly1305** (RFC 7905). Nothing explicit; the sequence number, which both ends count, is mixed in:
//!
//! ```text
//!  0        1          3          5                      5+n           21+n
//!  +--------+----------+----------+----------------------+-------------+
//!  |  type  | 03   03  |  length  | [ plaintext, n bytes ]|     tag     |
//!  +--------+----------+----------+----------------------+-------------+
//!   1 byte    2          2 = 16+n   n ≤ 16384              16
//!
//!   nonce = iv(12) XOR (0(4) ‖ sequence(8))
//!   AAD   = sequence(8) ‖ type ‖ 03 03 ‖ n(2)
//! ```
//!
//! **TLS 1.3, every cipher** (RFC 8446 §5). The real type moved inside, behind the plaintext, and zeros may follow it to
//! hide the length. On the outside every record claims to be application data of TLS 1.2:
//!
//! ```text
//!  0        1          3          5                                                5+n+1+p      22+n+p
//!  +--------+----------+----------+-------------------------------------------------+-------------+
//!  |   17   | 03   03  |  length  | [ plaintext, n bytes | type | zeros, p bytes ]   |     tag     |
//!  +--------+----------+----------+-------------------------------------------------+-------------+
//!   1 byte    2          2 = 17+n+p n ≤ 16384               1      n+p ≤ 16384        16
//!
//!   nonce = (salt ‖ iv)(12) XOR (0(4) ‖ sequence(8))
//!   AAD   = the five header bytes
//! ```
//!
//! So the *overhead* is 29, 21 or 22 bytes a record, and the receiver knows a sequence number that never travels: drop,
//! repeat or swap one record and the next tag does not verify. Datagrams are dropped, repeated and swapped all the time, so
//! DTLS records say their number; they are drawn in [`dtls`].
//!
//! # A walk
//!
//! ```
//! use uktls_record::{ContentType, CryptoInfo, CipherSuite, Opener, ProtocolVersion, Sealer};
//!
//! // What a handshake would have agreed on. (`new` takes Linux's fields: key, 4-byte salt, 8-byte iv, next sequence.)
//! let keys = CryptoInfo::new(ProtocolVersion::Tls13, CipherSuite::Aes128Gcm, &[7; 16], &[1; 4], &[2; 8], 0)?;
//!
//! // Room for header, plaintext and tag in one buffer: sealing happens where the bytes already lie.
//! let mut sealer = Sealer::new(&keys)?;
//! let mut record = vec![0; sealer.overhead() + 5];
//! record[sealer.prefix_len()..][..5].copy_from_slice(b"hello");
//! sealer.seal_in_place(ContentType::APPLICATION_DATA, &mut record)?;
//! assert_eq!(record[..5], [23, 3, 3, 0, 22]);
//! assert_eq!(sealer.sequence(), 1);
//!
//! // The other end has the same keys and opens in place, too.
//! let mut opener = Opener::new(&keys)?;
//! let opened = opener.open_in_place(&mut record)?;
//! assert_eq!(opened.content_type, ContentType::APPLICATION_DATA);
//! assert_eq!(&record[opened.plaintext], b"hello");
//! # Ok::<(), uktls_record::Error>(())
//! ```
//!
//! # The rooms
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`suite`] | versions, ciphers, their sizes, their Linux numbers, how much one key may protect |
//! | [`crypto_info`] | the keys of one direction, and Linux's `tls12_crypto_info_*` byte layout |
//! | [`header`] | content types, the five header bytes, the length rules |
//! | [`tls`] | [`Sealer`], [`SealBatch`], [`Opener`]: nonces, AAD, sequence numbers, rekey |
//! | [`dtls`] | the same for datagrams, DTLS 1.2 and 1.3: [`dtls::Sealer`], [`dtls::Opener`], epochs, what is dropped and why |
//! | [`replay`] | the window that knows which datagrams were seen |
//! | [`provider`] | where the AEAD itself comes from: aws-lc-rs, or RustCrypto in pure Rust |
//! | [`error`] | one enum: what was expected, what came, who is at fault, which errno |
//!
//! # What it deliberately does not do
//!
//! * No handshake, no alerts of its own, no key schedule: a KeyUpdate is a handshake message, and [`Sealer::rekey`] and
//!   [`Opener::rekey`] take the keys that follow from it.
//! * No I/O, no clock, no randomness. TLS 1.2's explicit nonce is a counter; nothing here needs a random byte.
//! * No buffering. In a TLS stream the caller cuts the stream into records ([`RecordHeader::parse`]) and owns every buffer; nothing is
//!   allocated per record.
//! * No CBC, no CCM, no compression, no TLS before 1.2.
//!
//! # What it promises
//!
//! * A nonce is used once. The sequence number is taken with the seal; a [`SealBatch`] takes its numbers at `commit`, and
//!   what was sealed in a batch that is not committed must never leave the caller. At the end of the sequence space, or
//!   of what the AEAD may protect, sealing stops with [`Error::LimitReached`].
//! * Plaintext is handed out only after its tag verified; after a failure the bytes are wiped.
//! * No input makes it panic: header, length and tag errors are values of [`Error`].
//! * Keys are wiped on drop and never printed.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod crypto_info;
pub mod dtls;
pub mod error;
pub mod header;
pub mod provider;
pub mod replay;
pub mod suite;
pub mod tls;

pub use crypto_info::CryptoInfo;
pub use error::Error;
pub use header::{ContentType, RecordHeader};
pub use suite::{CipherSuite, ProtocolVersion};
pub use tls::{Opened, Opener, SealBatch, Sealer};
