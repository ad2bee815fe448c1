//! The kernel's side of a TUN: link up, MTU, queue length and addresses, over rtnetlink.
//!
//! No `ip` command is run, so nothing needs to be installed, and it works in a user namespace, where the ioctl for the
//! queue length is refused but `IFLA_TXQLEN` is not. Everything is read back: a setting that did not take is an error
//! here instead of a riddle later. Nothing removes what was set up, because the interface vanishes with its last open queue and takes its
//! addresses and routes along.
//!
//! Routes beyond those that follow from the prefixes, and interfaces other than `lo` and the one named, are the caller's business.

use super::Error;
use super::tun::check_name;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use smoltcp::wire::IpAddress;
/// An address and the length of its network's prefix.
pub use smoltcp::wire::IpCidr;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Packets that may wait between the kernel and one queue of the TUN. The default of 500 is less than one window of a fast connection, and what
/// does not fit is dropped.
pub const TX_QUEUE_LENGTH: u32 = 10_000;

/// RFC 8200 §5: "IPv6 requires that every link in the Internet have an MTU of 1280 octets or greater."
pub const MIN_MTU_V6: usize = 1280;

/// RFC 791 §3.2: "Every internet module must be able to forward a datagram of 68 octets without further fragmentation."
pub const MIN_MTU: usize = 68;

/// Longest wait for the kernel to finish what it does behind our back, and how often to look.
const ROUTE_PATIENCE: Duration = Duration::from_secs(5);
const ROUTE_POLL: Duration = Duration::from_millis(1);

/// What the kernel reports of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceState {
    /// Its index in this network namespace.
    pub index: u32,
    /// Whether it is up.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: usize,
    /// Length of the transmit queue in packets.
    pub tx_queue_length: u32,
    /// Addresses with their prefixes.
    pub addresses: Vec<IpCidr>,
}

/// Sets up the interface `name` in the network namespace of the calling thread: MTU, queue length, the host's addresses (IPv6 without
/// duplicate address detection, so that they work at once), link up; brings `lo` up too, which a fresh namespace has down.
///
/// May be called again to add addresses or change the MTU. Gives what the kernel reports afterwards.
pub fn configure(name: &str, mtu: usize, addresses: &[IpCidr]) -> Result<InterfaceState, Error> {
    check_name(name)?;
    check_mtu(mtu, addresses)?;
    let index = index_of(name)?;
    let mut netlink = Netlink::open()?;
    netlink.loopback_up()?;
    netlink.no_link_local(index);
    let attributes = vec![
        LinkAttribute::Mtu(mtu as u32),
        LinkAttribute::TxQueueLen(TX_QUEUE_LENGTH),
    ];
    netlink.request(set_link(index, attributes), 0, || {
        format!("bring the interface {name} up with an MTU of {mtu}")
    })?;
    for cidr in addresses {
        netlink.request(
            add_address(index, cidr),
            NLM_F_CREATE | NLM_F_REPLACE,
            || format!("give the interface {name} the address {cidr}"),
        )?;
    }

    for cidr in addresses {
        netlink.await_local_route(name, cidr.address())?;
    }

    let found = netlink.state(name, index)?;
    let as_wanted = found.up
        && found.mtu == mtu
        && found.tx_queue_length >= TX_QUEUE_LENGTH
        && addresses.iter().all(|cidr| found.addresses.contains(cidr));
    if !as_wanted {
        let wanted = InterfaceState {
            index,
            up: true,
            mtu,
            tx_queue_length: TX_QUEUE_LENGTH,
            addresses: addresses.to_vec(),
        };
        return Err(Error::ReadBack {
            name: name.to_owned(),
            wanted: wanted.to_string(),
            found: found.to_string(),
        });
    }
    Ok(found)
}

/// Brings `lo` up in the network namespace of the calling thread; a fresh one has it down.
pub fn loopback_up() -> Result<(), Error> {
    Netlink::open()?.loopback_up()
}

/// What the kernel reports of the interface `name` in the network namespace of the calling thread.
pub fn state(name: &str) -> Result<InterfaceState, Error> {
    check_name(name)?;
    Netlink::open()?.state(name, index_of(name)?)
}

impl std::fmt::Display for InterfaceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let up = if self.up { "up" } else { "down" };
        write!(
            f,
            "{up}, MTU {}, queue length {}",
            self.mtu, self.tx_queue_length
        )?;
        self.addresses
            .iter()
            .try_for_each(|cidr| write!(f, ", {cidr}"))
    }
}

fn check_mtu(mtu: usize, addresses: &[IpCidr]) -> Result<(), Error> {
    let has_v6 = addresses.iter().any(|cidr| matches!(cidr, IpCidr::Ipv6(_)));
    if mtu < MIN_MTU {
        Err(Error::Mtu {
            mtu,
            reason: "IPv4 needs 68 bytes",
        })
    } else if mtu > super::MAX_PACKET {
        Err(Error::Mtu {
            mtu,
            reason: "an IP packet has at most 65535 bytes",
        })
    } else if has_v6 && mtu < MIN_MTU_V6 {
        Err(Error::Mtu {
            mtu,
            reason: "IPv6 needs 1280 bytes",
        })
    } else {
        Ok(())
    }
}

fn index_of(name: &str) -> Result<u32, Error> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
    socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .and_then(|socket| netdevice::name_to_index(&socket, name))
    .map_err(|errno| match errno {
        Errno::NODEV => Error::NoInterface {
            name: name.to_owned(),
        },
        errno => Error::system(format!("look up the interface {name}"), errno.into()),
    })
}

/// RTM_NEWLINK: up, with these attributes.
fn set_link(index: u32, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = attributes;
    RouteNetlinkMessage::SetLink(link)
}

/// RTM_NEWADDR.
fn add_address(index: u32, cidr: &IpCidr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = cidr.prefix_len();
    message
        .attributes
        .push(AddressAttribute::Address(cidr.address().into()));
    match cidr {
        IpCidr::Ipv4(cidr) => {
            message.header.family = AddressFamily::Inet;
            message
                .attributes
                .push(AddressAttribute::Local(cidr.address().into()));
            // RFC 3021 (/31) and single hosts have no broadcast address.
            if cidr.prefix_len() < 31 {
                let host_bits = u32::MAX >> cidr.prefix_len();
                let broadcast = Ipv4Addr::from(u32::from(cidr.address()) | host_bits);
                message
                    .attributes
                    .push(AddressAttribute::Broadcast(broadcast));
            }
        }
        IpCidr::Ipv6(_) => {
            message.header.family = AddressFamily::Inet6;
            message.header.flags = AddressHeaderFlags::Nodad;
        }
    }
    RouteNetlinkMessage::NewAddress(message)
}

/// A socket to the kernel's routing tables, in the network namespace it was opened in.
struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    fn open() -> Result<Netlink, Error> {
        let connect = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        match connect() {
            Ok(socket) => Ok(Netlink {
                socket,
                sequence: 0,
            }),
            Err(source) => Err(Error::system("open a netlink socket", source)),
        }
    }

    /// Sends one request that changes something and waits for its acknowledgement.
    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        self.exchange(message, NLM_F_ACK | flags, |_| {})
            .map_err(|source| Error::system(action(), source))
    }

    fn loopback_up(&mut self) -> Result<(), Error> {
        self.request(set_link(index_of("lo")?, Vec::new()), 0, || {
            "bring the interface lo up".into()
        })
    }

    /// Asks IPv6 to make no link-local address: a TUN has no use for it, and without it there are no router solicitations to
    /// litter a capture with. A kernel without IPv6 refuses, which is as good.
    fn no_link_local(&mut self, index: u32) {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let mode = vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)];
        link.attributes
            .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(mode)]));
        if let Err(error) = self.exchange(RouteNetlinkMessage::SetLink(link), NLM_F_ACK, |_| {}) {
            tracing::debug!(%error, "IPv6 address generation left as it is");
        }
    }

    /// Waits until packets to `address` are taken in. The kernel gives an IPv6 address its local route from a work queue, some time
    /// after it acknowledged the address (seen, some microseconds to milliseconds); until then packets to it are dropped.
    #[expect(
        clippy::disallowed_methods,
        reason = "the kernel says when it is done only to who asks again"
    )]
    fn await_local_route(&mut self, name: &str, address: IpAddress) -> Result<(), Error> {
        let IpAddress::Ipv6(v6) = address else {
            return Ok(());
        };
        let failed = |source| {
            Error::system(
                format!("find the route to {address} on the interface {name}"),
                source,
            )
        };
        let deadline = Instant::now() + ROUTE_PATIENCE;
        loop {
            let mut query = RouteMessage::default();
            query.header.address_family = AddressFamily::Inet6;
            query.header.destination_prefix_length = 128;
            query
                .attributes
                .push(RouteAttribute::Destination(RouteAddress::Inet6(v6)));
            let mut local = false;
            let outcome = self.exchange(RouteNetlinkMessage::GetRoute(query), NLM_F_ACK, |reply| {
                if let RouteNetlinkMessage::NewRoute(route) = reply {
                    local |= route.header.kind == RouteType::Local;
                }
            });
            match outcome.map_err(|error| error.raw_os_error().map(Errno::from_raw_os_error)) {
                Ok(()) if local => return Ok(()),
                Ok(()) | Err(Some(Errno::NETUNREACH | Errno::HOSTUNREACH)) => {}
                Err(Some(errno)) => return Err(failed(errno.into())),
                Err(None) => return Err(failed(io::ErrorKind::InvalidData.into())),
            }
            if Instant::now() >= deadline {
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(ROUTE_POLL);
        }
    }

    fn state(&mut self, name: &str, index: u32) -> Result<InterfaceState, Error> {
        let failed =
            |source| Error::system(format!("read the state of the interface {name}"), source);
        let mut found = InterfaceState {
            index,
            up: false,
            mtu: 0,
            tx_queue_length: 0,
            addresses: Vec::new(),
        };
        let mut query = LinkMessage::default();
        query.header.index = index;
        self.exchange(RouteNetlinkMessage::GetLink(query), NLM_F_ACK, |reply| {
            if let RouteNetlinkMessage::NewLink(link) = reply
                && link.header.index == index
            {
                found.up = link.header.flags.contains(LinkFlags::Up);
                for attribute in &link.attributes {
                    match attribute {
                        LinkAttribute::Mtu(mtu) => found.mtu = *mtu as usize,
                        LinkAttribute::TxQueueLen(length) => found.tx_queue_length = *length,
                        _ => {}
                    }
                }
            }
        })
        .map_err(failed)?;
        let query = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.exchange(query, NLM_F_DUMP, |reply| {
            if let RouteNetlinkMessage::NewAddress(message) = reply
                && message.header.index == index
            {
                found.addresses.extend(cidr_of(&message));
            }
        })
        .map_err(failed)?;
        Ok(found)
    }

    /// Sends one request and hands every answer to `reply`, until the kernel acknowledges, refuses, or says that this was all.
    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut reply: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.sequence += 1;
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let answer =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|error| {
                        io::Error::new(io::ErrorKind::InvalidData, error.to_string())
                    })?;
                // Messages in one datagram start at multiples of four (NLMSG_ALIGN).
                let length = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(length.max(16)..).unwrap_or(&[]);
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::InnerMessage(message) => reply(message),
                    _ => {}
                }
            }
        }
    }
}

/// The address and prefix that an RTM_NEWADDR names. On a point-to-point link `Local` is ours and `Address` the peer's.
fn cidr_of(message: &AddressMessage) -> Option<IpCidr> {
    let mut address: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => address = Some(*local),
            AddressAttribute::Address(other) => address = address.or(Some(*other)),
            _ => {}
        }
    }
    Some(IpCidr::new(
        IpAddress::from(address?),
        message.header.prefix_len,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_mtus_are_refused_with_their_reason() {
        let v4: IpCidr = "10.0.0.1/24".parse().unwrap();
        let v6: IpCidr = "fd00::1/64".parse().unwrap();
        assert!(check_mtu(576, &[v4]).is_ok());
        assert!(check_mtu(1280, &[v4, v6]).is_ok());
        for (mtu, addresses) in [(67, [v4]), (65_536, [v4]), (1279, [v6])] {
            assert!(
                matches!(check_mtu(mtu, &addresses), Err(Error::Mtu { .. })),
                "{mtu}"
            );
        }
    }

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let error = configure("uktls-none", 1500, &[]).unwrap_err();
        assert!(matches!(error, Error::NoInterface { .. }), "{error}");
    }
}
