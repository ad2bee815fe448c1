//! The options of the three commands.

use super::super::Failure;
use super::super::limits::parse_bytes;
use super::super::options::{Cipher, KeyLogOption, SocketOption, StackOptions};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Send a file by DTLS, a record a datagram, sealed in the stack.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  openssl s_server -dtls1_2 -quiet -accept 10.77.0.1:4433 -cert c.pem -key k.pem > got &
  uktls dtls-send --connect 10.77.0.1:4433 --insecure FILE
  uktls dtls-send --listen 10.77.0.2:4433 FILE        waits for a client to send it to

The peer sees the file as the payloads of records, one behind the other, and close_notify at
its end. Nothing is sent again: what the path or the peer loses is lost, hence --rate.")]
pub(crate) struct SendArgs {
    /// The file
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Bytes of the file a second, with K, M or G; 0: as fast as the stack seals, which most receivers are not
    #[arg(long, value_name = "BYTES", default_value = "16M", value_parser = rate)]
    pub(super) rate: u64,
    /// Bytes of the file in a record, at most 16384 [default: as many as the path's MTU has room for]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1..=16384))]
    pub(super) payload: Option<u16>,
    #[command(flatten)]
    pub(super) peer: PeerOptions,
}

/// Receive what a DTLS peer sends, opened in the stack.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  uktls dtls-recv --listen 10.77.0.2:4433 -o got
  uktls dtls-recv --connect 10.77.0.1:4433 --insecure --size 1M --sha256 HEX -o got

Payloads are written one behind the other as they come, until close_notify. Datagrams may be
lost: how many records came, and how many numbers were missing among them, is said at the end.
With --size or --sha256 anything else than that is an error, and without close_notify too.")]
pub(crate) struct RecvArgs {
    /// Where it goes; - is stdout
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub(super) output: PathBuf,
    /// How many bytes it must be, with K, M or G
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub(super) size: Option<u64>,
    /// What its SHA-256 must be
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    pub(super) sha256: Option<[u8; 32]>,
    #[command(flatten)]
    pub(super) peer: PeerOptions,
}

/// Send back what DTLS peers send, record by record.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  uktls dtls-echo --listen 10.77.0.2:4433 &
  openssl s_client -dtls1_2 -connect 10.77.0.2:4433

As a server it takes one peer after the other, until Ctrl-C; as a client it ends with its peer.")]
pub(crate) struct EchoArgs {
    #[command(flatten)]
    pub(super) peer: PeerOptions,
}

/// Who the peer is, and how it is talked to.
#[derive(Debug, clap::Args)]
pub(super) struct PeerOptions {
    #[command(flatten)]
    pub(super) socket: SocketOption,
    #[command(flatten)]
    pub(super) role: Role,
    /// Server: the certificate chain in PEM form [default: a fresh self-signed one]
    #[arg(
        long,
        value_name = "FILE",
        requires = "key",
        conflicts_with = "connect"
    )]
    pub(super) cert: Option<PathBuf>,
    /// Server: the certificate's private key in PEM form
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(super) key: Option<PathBuf>,
    /// Server: write the self-signed certificate here
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cert", "connect"])]
    pub(super) cert_out: Option<PathBuf>,
    /// Client: accept any certificate
    #[arg(short = 'k', long, conflicts_with_all = ["cacert", "listen"])]
    pub(super) insecure: bool,
    /// Client: accept certificates signed by those in this PEM file, and no others
    #[arg(long, value_name = "FILE", conflicts_with = "listen")]
    pub(super) cacert: Option<PathBuf>,
    /// Ciphers to allow, the preferred one first [default: all]
    #[arg(long, value_enum, value_name = "CIPHER", value_delimiter = ',')]
    pub(super) cipher: Vec<Cipher>,
    #[command(flatten)]
    pub(super) key_log: KeyLogOption,
    /// Seconds to wait for a handshake, and for each further record
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) timeout: u64,
    /// Say that it listens, and how each association ended, as lines of JSON (on stderr when stdout is taken)
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) stack: StackOptions,
}

/// Server or client.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct Role {
    /// Be the server at this address of the stack
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) listen: Option<SocketAddr>,
    /// Be the client of the server at this address
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) connect: Option<String>,
}

fn rate(text: &str) -> Result<u64, Failure> {
    match text {
        "0" => Ok(0),
        text => parse_bytes(text),
    }
}

/// As [`rate`], where 0 is the length of an empty file.
fn size(text: &str) -> Result<u64, Failure> {
    rate(text)
}

fn sha256(text: &str) -> Result<[u8; 32], String> {
    let digits = text.as_bytes();
    let mut digest = [0; 32];
    if digits.len() != 64 {
        return Err(format!("64 hexadecimal digits, not {}", digits.len()));
    }
    for (byte, pair) in digest.iter_mut().zip(digits.chunks(2)) {
        *byte = std::str::from_utf8(pair)
            .ok()
            .filter(|pair| !pair.starts_with('+'))
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or("64 hexadecimal digits")?;
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_64_hexadecimal_digits() {
        let text = "00ff".repeat(16);
        assert_eq!(
            sha256(&text).map(|digest| digest[..2].to_vec()),
            Ok(vec![0, 255])
        );
        for wrong in [
            "",
            "00",
            &"0g".repeat(32),
            &"+f".repeat(32),
            &"ä".repeat(32),
        ] {
            assert!(sha256(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_rate_of_nothing_is_no_limit() {
        assert_eq!((rate("0"), rate("3K")), (Ok(0), Ok(3072)));
        assert!(rate("fast").is_err());
    }
}
