//! Which descriptor is which socket, how many sockets each user has, and why the dead ones ended.
//!
//! One table for all shards and the socket server, under a mutex. It is touched when a socket is born, named by a
//! request, or dies; never for a packet.

use crate::handle::{Epitaph, Named, SocketId};
use crate::socket_info::Reason;
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Epitaphs that are kept; the oldest goes first.
const MAX_EPITAPHS: usize = 16_384;
/// The dynamic ports (RFC 6335 §6).
pub const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// Transport protocols have port spaces of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// Listening TCP sockets.
    Tcp,
    /// UDP sockets.
    Udp,
}

#[derive(Debug, Default)]
struct Inner {
    live: HashMap<u64, (SocketId, u32)>,
    gone: HashMap<u64, Epitaph>,
    gone_order: VecDeque<u64>,
    sockets_by_uid: HashMap<u32, usize>,
    ports: BTreeSet<(Transport, u16, IpAddr)>,
    next_port: u16,
}

/// The table.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    max_sockets: usize,
    max_sockets_per_uid: usize,
}

impl Registry {
    /// An empty table with these limits.
    pub fn new(max_sockets: usize, max_sockets_per_uid: usize) -> Registry {
        Registry {
            inner: Mutex::default(),
            max_sockets,
            max_sockets_per_uid,
        }
    }

    /// A shard that panicked must not take the others' sockets with it: every change below is complete in itself.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A socket is born.
    ///
    /// # Errors
    /// `ENFILE` when there are too many, `EMFILE` when this user has too many.
    pub fn add(&self, cookie: u64, id: SocketId, uid: u32) -> Result<(), Errno> {
        let mut inner = self.lock();
        if inner.live.len() >= self.max_sockets {
            return Err(Errno::NFILE);
        }
        let count = inner.sockets_by_uid.entry(uid).or_default();
        if *count >= self.max_sockets_per_uid {
            return Err(Errno::MFILE);
        }
        *count += 1;
        inner.live.insert(cookie, (id, uid));
        Ok(())
    }

    /// A socket died. With a reason, somebody may still hold its descriptor and ask.
    pub fn remove(&self, cookie: u64, reason: Option<Reason>) {
        let mut inner = self.lock();
        let Some((id, uid)) = inner.live.remove(&cookie) else {
            return;
        };
        if let Some(count) = inner.sockets_by_uid.get_mut(&uid) {
            *count -= 1;
            if *count == 0 {
                inner.sockets_by_uid.remove(&uid);
            }
        }
        if let Some(reason) = reason {
            inner.gone.insert(cookie, Epitaph { id, reason });
            inner.gone_order.push_back(cookie);
            if inner.gone_order.len() > MAX_EPITAPHS
                && let Some(oldest) = inner.gone_order.pop_front()
            {
                inner.gone.remove(&oldest);
            }
        }
    }

    /// What a descriptor's cookie names.
    pub fn named(&self, cookie: u64) -> Option<Named> {
        let inner = self.lock();
        match inner.live.get(&cookie) {
            Some(&(id, uid)) => Some(Named::Live { id, uid }),
            None => inner.gone.get(&cookie).map(|&epitaph| Named::Gone(epitaph)),
        }
    }

    /// Reserves a port, or finds a free one for port 0.
    ///
    /// # Errors
    /// `EADDRINUSE`.
    pub fn reserve(&self, transport: Transport, wanted: SocketAddr) -> Result<SocketAddr, Errno> {
        let mut inner = self.lock();
        let taken = |inner: &Inner, port: u16| {
            let same = |ip: &IpAddr| {
                *ip == wanted.ip()
                    || (ip.is_ipv4() == wanted.is_ipv4()
                        && (ip.is_unspecified() || wanted.ip().is_unspecified()))
            };
            let low: IpAddr = std::net::Ipv4Addr::UNSPECIFIED.into();
            inner
                .ports
                .range((transport, port, low)..)
                .take_while(|(t, p, _)| (*t, *p) == (transport, port))
                .any(|(_, _, ip)| same(ip))
        };
        let port = match wanted.port() {
            0 => {
                let span = DYNAMIC_PORTS.end() - DYNAMIC_PORTS.start() + 1;
                let start = inner.next_port;
                let free = (0..span)
                    .map(|i| DYNAMIC_PORTS.start() + (start.wrapping_add(i)) % span)
                    .find(|&port| !taken(&inner, port))
                    .ok_or(Errno::ADDRINUSE)?;
                inner.next_port = (free - DYNAMIC_PORTS.start() + 1) % span;
                free
            }
            port if taken(&inner, port) => return Err(Errno::ADDRINUSE),
            port => port,
        };
        inner.ports.insert((transport, port, wanted.ip()));
        Ok(SocketAddr::new(wanted.ip(), port))
    }

    /// Gives a port back.
    pub fn free(&self, transport: Transport, address: SocketAddr) {
        self.lock()
            .ports
            .remove(&(transport, address.port(), address.ip()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_and_the_dead_are_remembered_for_a_while() {
        let registry = Registry::new(3, 2);
        assert_eq!(registry.add(1, SocketId(1), 7), Ok(()));
        assert_eq!(registry.add(2, SocketId(2), 7), Ok(()));
        assert_eq!(registry.add(3, SocketId(3), 7), Err(Errno::MFILE));
        assert_eq!(registry.add(3, SocketId(3), 8), Ok(()));
        assert_eq!(registry.add(4, SocketId(4), 9), Err(Errno::NFILE));
        registry.remove(1, Some(Reason::Reset));
        assert_eq!(
            registry.named(1),
            Some(Named::Gone(Epitaph {
                id: SocketId(1),
                reason: Reason::Reset
            }))
        );
        registry.remove(2, None);
        assert_eq!(registry.named(2), None);
        for cookie in 100..100 + MAX_EPITAPHS as u64 {
            assert_eq!(registry.add(cookie, SocketId(cookie), 7), Ok(()));
            registry.remove(cookie, Some(Reason::TimedOut));
        }
        assert_eq!(registry.named(1), None);
    }

    #[test]
    fn an_unspecified_address_conflicts_with_every_other_of_its_family() {
        let registry = Registry::new(1, 1);
        let at = |text: &str| text.parse::<SocketAddr>().expect("literal");
        assert!(registry.reserve(Transport::Tcp, at("10.0.0.1:80")).is_ok());
        assert!(registry.reserve(Transport::Tcp, at("10.0.0.2:80")).is_ok());
        assert!(registry.reserve(Transport::Udp, at("0.0.0.0:80")).is_ok());
        assert!(registry.reserve(Transport::Tcp, at("[::]:80")).is_ok());
        assert_eq!(
            registry.reserve(Transport::Tcp, at("0.0.0.0:80")),
            Err(Errno::ADDRINUSE)
        );
        registry.free(Transport::Tcp, at("10.0.0.1:80"));
        registry.free(Transport::Tcp, at("10.0.0.2:80"));
        assert!(registry.reserve(Transport::Tcp, at("0.0.0.0:80")).is_ok());
        let a = registry
            .reserve(Transport::Tcp, at("10.0.0.1:0"))
            .expect("free ports");
        let b = registry
            .reserve(Transport::Tcp, at("10.0.0.1:0"))
            .expect("free ports");
        assert_ne!(a.port(), b.port());
    }
}
