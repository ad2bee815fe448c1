//! Addresses as they stand in front of datagrams and accepted connections on a client's Unix end.
//!
//! ```text
//!   family (1: 4 or 6)  zero (1)  port (2, BE)  address (16; IPv4 in the first 4)      = 20 bytes
//! ```
//! A UDP socket's end is `SOCK_SEQPACKET`; each message is one address (the peer's) and the payload, so that an empty
//! datagram is not an end of file. A listening socket's end carries messages of two addresses, local then remote, with
//! the accepted connection's descriptor attached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Length of an encoded address in bytes.
pub const ADDRESS_LEN: usize = 20;

/// Length of the message that brings an accepted connection.
pub const ACCEPTED_LEN: usize = 2 * ADDRESS_LEN;

/// The address's bytes.
pub fn encode(address: SocketAddr) -> [u8; ADDRESS_LEN] {
    let mut out = [0; ADDRESS_LEN];
    out[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => {
            out[0] = 4;
            out[4..8].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out[0] = 6;
            out[4..].copy_from_slice(&ip.octets());
        }
    }
    out
}

/// The address at the front of `bytes`, or `None` where there is no well-formed one.
pub fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let bytes: &[u8; ADDRESS_LEN] = bytes.get(..ADDRESS_LEN)?.try_into().ok()?;
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    let ip = match bytes[0] {
        4 => IpAddr::V4(Ipv4Addr::new(bytes[4], bytes[5], bytes[6], bytes[7])),
        6 => {
            let octets: [u8; 16] = bytes[4..].try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_come_back_equal_and_others_are_refused() {
        for text in ["10.77.0.2:443", "[fd77::2]:65535", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().expect("a literal address");
            assert_eq!(decode(&encode(address)), Some(address));
        }
        assert_eq!(decode(&[5; ADDRESS_LEN]), None);
        assert_eq!(decode(&[4; ADDRESS_LEN - 1]), None);
    }
}
