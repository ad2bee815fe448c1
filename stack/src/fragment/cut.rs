//! Cutting a packet of this host's own into fragments.

use super::{
    DONT_FRAGMENT, FRAGMENT, MAX_LENGTH, MORE_FRAGMENTS, V4_HEADER, V6_HEADER, set_length,
};
use std::io::IoSlice;

/// Why a packet cannot be cut into fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotFragment {
    /// Its IPv4 header says "don't fragment": `EMSGSIZE` at the socket API.
    #[error("the packet must not be fragmented and is longer than the MTU")]
    DontFragment,
    /// No bare IPv4 or IPv6 header at its start.
    #[error("the packet does not start with an IPv4 header without options or an IPv6 header")]
    Headers,
    /// Longer than IP can say.
    #[error("the packet is longer than an IP packet can be")]
    TooLong,
    /// An MTU without room for headers and eight bytes.
    #[error("the MTU has no room for a fragment")]
    Mtu,
}

/// The packets that [`fragment`] cuts one into.
#[derive(Clone, Debug)]
pub struct Fragments {
    /// IP header of each, but for lengths and offset; with the fragment header if there is one.
    header: Vec<u8>,
    /// What is cut: transport header and payload.
    payload: Vec<u8>,
    sent: usize,
    /// Payload bytes in each fragment but the last; a multiple of eight unless all fits in one packet.
    step: usize,
}

/// Cuts the IP packet `headers` ‖ `payload` (as for [`Device::send`](crate::device::Device::send)) into packets of at most `mtu` bytes; one that fits comes out whole.
///
/// The transport checksum must be complete. The IP header's own lengths and checksum need not be right; they will be. `id` must differ between datagrams that are
/// on their way at the same time between the same hosts (RFC 8200 §4.5, RFC 6864 §4.1); IPv4 uses its lower 16 bits.
pub fn fragment(
    headers: &[u8],
    payload: &[IoSlice<'_>],
    mtu: usize,
    id: u32,
) -> Result<Fragments, CannotFragment> {
    let v6 = match headers.first() {
        Some(0x45) => false,
        Some(first) if first >> 4 == 6 => true,
        _ => return Err(CannotFragment::Headers),
    };
    let header_length = if v6 { V6_HEADER } else { V4_HEADER };
    let (header, transport) = headers
        .split_at_checked(header_length)
        .ok_or(CannotFragment::Headers)?;
    let mut header = header.to_vec();
    let mut whole = transport.to_vec();
    payload
        .iter()
        .for_each(|slice| whole.extend_from_slice(slice));
    if whole.len() + if v6 { 0 } else { V4_HEADER } > MAX_LENGTH {
        return Err(CannotFragment::TooLong);
    }
    if !v6 {
        header[4..6].copy_from_slice(&(id as u16).to_be_bytes());
    }
    if header_length + whole.len() <= mtu {
        let step = whole.len();
        return Ok(Fragments {
            header,
            payload: whole,
            sent: 0,
            step,
        });
    }

    if v6 {
        let next = std::mem::replace(&mut header[6], FRAGMENT);
        header.extend_from_slice(&[next, 0, 0, 0]);
        header.extend_from_slice(&id.to_be_bytes());
    } else if u16::from_be_bytes([header[6], header[7]]) & DONT_FRAGMENT != 0 {
        return Err(CannotFragment::DontFragment);
    }
    let step = mtu.saturating_sub(header.len()) & !7;
    if step == 0 {
        return Err(CannotFragment::Mtu);
    }
    Ok(Fragments {
        header,
        payload: whole,
        sent: 0,
        step,
    })
}

impl Iterator for Fragments {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        // A packet without any payload is one packet all the same; its header is taken to mark it as sent.
        if self.header.is_empty() || self.sent > 0 && self.sent >= self.payload.len() {
            return None;
        }
        let end = self.payload.len().min(self.sent + self.step);
        let more = end < self.payload.len();
        let mut packet = if more || self.sent > 0 {
            let mut packet = self.header.clone();
            let offset = self.sent as u16;
            if packet[0] >> 4 == 6 {
                let field = offset | u16::from(more);
                packet[V6_HEADER + 2..V6_HEADER + 4].copy_from_slice(&field.to_be_bytes());
            } else {
                let field = (offset / 8) | if more { MORE_FRAGMENTS } else { 0 };
                packet[6..8].copy_from_slice(&field.to_be_bytes());
            }
            packet
        } else {
            std::mem::take(&mut self.header)
        };
        set_length(&mut packet, end - self.sent);
        packet.extend_from_slice(&self.payload[self.sent..end]);
        self.sent = end;
        Some(packet)
    }
}
