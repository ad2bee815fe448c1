//! Options that several subcommands share, and what their values mean.

use super::limits::LimitOptions;
use super::{Context, Failure};
use clap::ValueEnum;
use rustls::KeyLog;
use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use uktls::handshake::rustls::{Choice, KeyLogWriter};
use uktls::protocol::Capabilities;
use uktls::{CipherSuite, Daemon, ProtocolVersion};

/// The name an interface gets when none is given.
pub(crate) const DEFAULT_TUN: &str = "uktls0";
const DEFAULT_ADDRESS: Cidr = Cidr {
    ip: IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2)),
    prefix: 24,
};
/// RFC 791: every host must be able to receive 576 bytes.
const MIN_MTU: usize = 576;
/// RFC 8200 §5: every link that carries IPv6 has at least this.
const MIN_MTU_V6: usize = 1280;
/// The largest that IPv4's length field and the TUN device allow together.
const MAX_MTU: usize = 65520;

/// Which daemon a client talks to.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct SocketOption {
    /// The daemon's socket [default: $UKTLS_SOCKET, else $XDG_RUNTIME_DIR/uktls.sock, for root /run/uktls/uktls.sock]
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

impl SocketOption {
    /// A handle to the daemon, which may or may not be there.
    pub(crate) fn daemon(&self) -> Daemon {
        self.socket
            .as_ref()
            .map_or_else(Daemon::default, Daemon::at)
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// What a stack is brought up with.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Stack")]
pub(crate) struct StackOptions {
    /// Name of the TUN interface to create [default: uktls0]
    #[arg(long, value_name = "NAME")]
    pub(crate) tun: Option<String>,
    /// The stack's IPv4 address and prefix length [default: 10.77.0.2/24]
    #[arg(long, value_name = "ADDR/LEN")]
    pub(crate) addr: Option<Cidr>,
    /// The host's address on the interface [default: the lowest other one of the network, 10.77.0.1/24]
    #[arg(long, value_name = "ADDR/LEN")]
    pub(crate) host_addr: Option<Cidr>,
    /// An IPv6 address for the stack too, such as fd77::2/64
    #[arg(long, value_name = "ADDR/LEN")]
    pub(crate) addr6: Option<Cidr>,
    /// The host's IPv6 address [default: the lowest other one of the network]
    #[arg(long, value_name = "ADDR/LEN", requires = "addr6")]
    pub(crate) host_addr6: Option<Cidr>,
    /// MTU in bytes, 576 to 65520 (IPv6 needs 1280)
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    pub(crate) mtu: usize,
    /// Super-segments and checksums left to the kernel; off: a packet a segment, as a plain TUN has it
    #[arg(long, value_enum, value_name = "ON|OFF", default_value = "on")]
    pub(crate) offload: Switch,
    /// Threads that each own a queue of the device and the connections on it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) shards: u8,
    /// Write every packet to this file (pcapng), as the wire would show it, with the secrets of `serve` and `get`
    #[arg(long, value_name = "FILE")]
    pub(crate) pcap: Option<PathBuf>,
    /// Never show a socket's keys, not even to its creator
    #[arg(long)]
    pub(crate) no_key_export: bool,
    #[command(flatten)]
    pub(crate) limits: LimitOptions,
}

/// Addresses that were checked against each other: the stack's and the host's, one pair a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) pairs: Vec<Pair>,
}

/// Two ends of one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) stack: Cidr,
    pub(crate) host: Cidr,
}

impl StackOptions {
    /// Whether any option asks for a stack of the caller's own.
    pub(crate) fn any_given(&self) -> bool {
        self.tun.is_some()
            || self.addr.is_some()
            || self.host_addr.is_some()
            || self.addr6.is_some()
    }

    /// Checks everything that can be checked without a device.
    pub(crate) fn addresses(&self) -> Result<Addresses, Failure> {
        let stack = self.addr.unwrap_or(DEFAULT_ADDRESS);
        if stack.ip.is_ipv6() {
            return Err(Failure::new(format_args!(
                "--addr {stack} is an IPv6 address: give it with --addr6"
            )));
        }
        let mut pairs = vec![pair("--addr", stack, "--host-addr", self.host_addr)?];
        if let Some(stack) = self.addr6 {
            if stack.ip.is_ipv4() {
                return Err(Failure::new(format_args!(
                    "--addr6 {stack} is an IPv4 address: give it with --addr"
                )));
            }
            pairs.push(pair("--addr6", stack, "--host-addr6", self.host_addr6)?);
        }
        let min = if self.addr6.is_some() {
            MIN_MTU_V6
        } else {
            MIN_MTU
        };
        if !(min..=MAX_MTU).contains(&self.mtu) {
            let why = if self.mtu >= MIN_MTU && self.mtu < MIN_MTU_V6 {
                " (IPv6 needs 1280)"
            } else {
                ""
            };
            return Err(Failure::new(format_args!(
                "--mtu {} is out of range: {min} to {MAX_MTU}{why}",
                self.mtu
            )));
        }
        if self.offload == Switch::Off && self.shards > 1 {
            return Err(Failure::new(
                "a plain TUN has one queue: --shards needs --offload on",
            ));
        }
        Ok(Addresses { pairs })
    }
}

fn pair(name: &str, stack: Cidr, host_name: &str, host: Option<Cidr>) -> Result<Pair, Failure> {
    usable(name, stack)?;
    let host = match host {
        Some(host) => host,
        None => stack.lowest_other().ok_or_else(|| {
            Failure::new(format_args!(
                "the network of {name} {stack} has no room for the host: use a shorter prefix"
            ))
        })?,
    };
    if host.ip.is_ipv4() != stack.ip.is_ipv4() {
        return Err(Failure::new(format_args!(
            "{name} {stack} and {host_name} {host} are of different families"
        )));
    }
    usable(host_name, host)?;
    if host.ip == stack.ip {
        return Err(Failure::new(format_args!(
            "{name} and {host_name} are the same address: {}",
            host.ip
        )));
    }
    if host.prefix != stack.prefix || host.network() != stack.network() {
        return Err(Failure::new(format_args!(
            "{name} {stack} and {host_name} {host} are in different networks"
        )));
    }
    Ok(Pair { stack, host })
}

fn usable(name: &str, cidr: Cidr) -> Result<(), Failure> {
    let ip = cidr.ip;
    let broadcast = ip.is_ipv4()
        && cidr.prefix < 31
        && (cidr.bits() == cidr.network() || cidr.bits() == cidr.last());
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast {
        return Err(Failure::new(format_args!(
            "{name} {cidr} cannot be the address of a host"
        )));
    }
    Ok(())
}

/// An address and the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
}

impl Cidr {
    fn width(self) -> u8 {
        if self.ip.is_ipv4() { 32 } else { 128 }
    }

    fn bits(self) -> u128 {
        match self.ip {
            IpAddr::V4(ip) => u128::from(u32::from(ip)),
            IpAddr::V6(ip) => u128::from(ip),
        }
    }

    fn host_mask(self) -> u128 {
        let host_bits = u32::from(self.width() - self.prefix);
        1u128
            .checked_shl(host_bits)
            .map_or(u128::MAX, |bit| bit - 1)
    }

    fn network(self) -> u128 {
        self.bits() & !self.host_mask()
    }

    fn last(self) -> u128 {
        self.bits() | self.host_mask()
    }

    /// The lowest address of the network that a host can have and this is not.
    fn lowest_other(self) -> Option<Cidr> {
        let first = if self.host_mask() <= 1 {
            self.network()
        } else {
            self.network() + 1
        };
        let other = if first == self.bits() {
            first.checked_add(1)?
        } else {
            first
        };
        if other > self.last() {
            return None;
        }
        let ip = if self.ip.is_ipv4() {
            IpAddr::V4(Ipv4Addr::from(u32::try_from(other).ok()?))
        } else {
            IpAddr::V6(Ipv6Addr::from(other))
        };
        Some(Cidr {
            ip,
            prefix: self.prefix,
        })
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Cidr, String> {
        let (ip, prefix) = text
            .split_once('/')
            .ok_or("an address needs its prefix length, as in 10.77.0.2/24")?;
        let ip: IpAddr = ip.parse().map_err(|_| format!("{ip:?} is no IP address"))?;
        let width = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix
            .parse()
            .ok()
            .filter(|&prefix| (1..=width).contains(&prefix));
        Ok(Cidr {
            ip,
            prefix: prefix.ok_or(format!("the prefix length must be 1 to {width}"))?,
        })
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// TLS versions by the names people use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Versions {
    #[value(name = "1.2")]
    Tls12,
    #[value(name = "1.3")]
    Tls13,
    Both,
}

/// Record ciphers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cipher {
    Aes128gcm,
    Aes256gcm,
    Chacha20,
}

/// What TLS may negotiate, and who may look.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsOptions {
    /// TLS versions to allow
    #[arg(long, value_enum, value_name = "VERSION", default_value = "both")]
    pub(crate) tls: Versions,
    /// Ciphers to allow, the preferred one first [default: all]
    #[arg(long, value_enum, value_name = "CIPHER", value_delimiter = ',')]
    pub(crate) cipher: Vec<Cipher>,
    #[command(flatten)]
    pub(crate) key_log: KeyLogOption,
}

/// Who may look.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct KeyLogOption {
    /// Append the secrets of every handshake to this file, so that Wireshark can decrypt a capture [default: $SSLKEYLOGFILE].
    /// The daemon's capture (`--pcap`) gets them without it
    #[arg(long, value_name = "FILE")]
    pub(crate) keylog: Option<PathBuf>,
}

impl From<Cipher> for CipherSuite {
    fn from(cipher: Cipher) -> CipherSuite {
        match cipher {
            Cipher::Aes128gcm => CipherSuite::Aes128Gcm,
            Cipher::Aes256gcm => CipherSuite::Aes256Gcm,
            Cipher::Chacha20 => CipherSuite::ChaCha20Poly1305,
        }
    }
}

/// The name that [`Cipher`] has for a suite.
pub(crate) fn cipher_name(cipher: CipherSuite) -> &'static str {
    match cipher {
        CipherSuite::Aes128Gcm => "aes128gcm",
        CipherSuite::Aes256Gcm => "aes256gcm",
        CipherSuite::ChaCha20Poly1305 => "chacha20",
    }
}

impl TlsOptions {
    pub(crate) fn choice(&self) -> Choice {
        let versions = match self.tls {
            Versions::Tls12 => vec![ProtocolVersion::Tls12],
            Versions::Tls13 => vec![ProtocolVersion::Tls13],
            Versions::Both => Vec::new(),
        };
        Choice {
            versions,
            ciphers: self.cipher.iter().copied().map(CipherSuite::from).collect(),
        }
    }
}

impl KeyLogOption {
    /// The key log for rustls.
    pub(crate) fn for_rustls(&self, daemon: &Daemon) -> Result<Option<Arc<dyn KeyLog>>, Failure> {
        let secrets = self.secrets(daemon)?;
        Ok(secrets.map(|secrets| Arc::new(KeyLogWriter::new(secrets)) as Arc<dyn KeyLog>))
    }

    /// Where secrets go: to the file, and into the capture that the daemon may be writing.
    pub(crate) fn secrets(&self, daemon: &Daemon) -> Result<Option<Secrets>, Failure> {
        let file = self.file()?;
        let captured = daemon
            .capabilities()
            .is_ok_and(|can| can.contains(Capabilities::CAPTURE));
        if file.is_none() && !captured {
            return Ok(None);
        }
        let capture = captured.then(|| daemon.clone());
        Ok(Some(Secrets { file, capture }))
    }

    /// The key log's file, opened to append.
    fn file(&self) -> Result<Option<File>, Failure> {
        let variable = || {
            std::env::var_os("SSLKEYLOGFILE")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        };
        let Some(path) = self.keylog.clone().or_else(variable) else {
            return Ok(None);
        };
        let file = File::options().append(true).create(true).open(&path);
        file.map(Some)
            .context(|| format!("cannot open the key log {}", path.display()))
    }
}

/// Where secrets go, a line at a time.
#[derive(Debug)]
pub(crate) struct Secrets {
    file: Option<File>,
    capture: Option<Daemon>,
}

impl Write for Secrets {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(capture) = &self.capture {
            capture.record_secrets(&String::from_utf8_lossy(line))?;
        }
        if let Some(file) = &mut self.file {
            file.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        stack: StackOptions,
    }

    fn addresses(line: &str) -> Result<Addresses, String> {
        let words = std::iter::once("uktls").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.stack
            .addresses()
            .map_err(|failure| failure.to_string())
    }

    fn hosts(line: &str) -> Vec<String> {
        let found = addresses(line).expect("good addresses");
        found
            .pairs
            .iter()
            .map(|pair| pair.host.to_string())
            .collect()
    }

    #[test]
    fn the_host_gets_the_lowest_other_address() {
        assert_eq!(hosts(""), ["10.77.0.1/24"]);
        assert_eq!(hosts("--addr 10.1.2.1/30"), ["10.1.2.2/30"]);
        assert_eq!(hosts("--addr 10.1.2.1/31"), ["10.1.2.0/31"]);
        assert_eq!(hosts("--addr6 fd77::2/64"), ["10.77.0.1/24", "fd77::1/64"]);
        assert_eq!(hosts("--addr6 fd77::1/127"), ["10.77.0.1/24", "fd77::/127"]);
    }

    #[test]
    fn what_cannot_be_is_said_in_one_line() {
        for (line, want) in [
            ("--addr fd77::2/64", "--addr6"),
            ("--addr6 10.0.0.1/8", "IPv4"),
            (
                "--addr 10.0.0.1/8 --host-addr fd77::1/64",
                "different families",
            ),
            (
                "--addr 10.0.0.1/24 --host-addr 10.0.1.1/24",
                "different networks",
            ),
            ("--addr 10.0.0.1/24 --host-addr 10.0.0.1/24", "same address"),
            ("--addr 10.0.0.255/24", "cannot be the address of a host"),
            ("--addr 224.0.0.1/24", "cannot be the address of a host"),
            ("--addr 127.0.0.2/8", "cannot be the address of a host"),
            ("--addr 10.0.0.1/32", "no room for the host"),
            ("--mtu 575", "576 to 65520"),
            ("--mtu 65521", "576 to 65520"),
            (
                "--mtu 1279 --addr6 fd77::2/64",
                "1280 to 65520 (IPv6 needs 1280)",
            ),
            ("--offload off --shards 2", "--offload on"),
            ("--addr 10.0.0.1", "prefix length"),
            ("--addr 10.0.0.1/33", "1 to 32"),
            ("--addr 10.0.0/8", "no IP address"),
        ] {
            let said = addresses(line).expect_err(line);
            assert!(said.contains(want), "{line}: {said}");
        }
    }
}
