//! Networks: hosts, switches, routers and the links between them, and what can be done to them while they run.

use super::executor::{JoinHandle, spawn_on};
use super::fault::Fault;
use super::link::{Knobs, LinkCounters};
use super::presets::Preset;
use super::raw::RawHost;
use super::recording::Secrets;
use super::route::Prefix;
use super::run::{Failure, Report, Runs};
use super::schedule::{Change, Schedule};
use super::world::{Role, World};
use crate::clock::{Duration, Instant};
use crate::counters::Counters;
use crate::stack::StackConfig;
use rustix::io::Errno;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// A network that is being built, or runs. Copies name the same one.
///
/// Built with [`Net::new`] it has one seed and runs once, by [`Net::run`]. To run the same test with many seeds, twice each, or to
/// shrink what fails, hand a closure that builds it to [`run`](super::run()) or [`Runs::run`].
#[derive(Clone)]
pub struct Net {
    pub(super) world: Rc<World>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("seed", &self.world.seed)
            .field("now", &self.world.now())
            .finish_non_exhaustive()
    }
}

impl Net {
    /// An empty network whose every random number comes from this seed.
    pub fn new(seed: u64) -> Net {
        Net {
            world: World::new(seed),
        }
    }

    /// Runs as the environment says: `UKTLS_SEED`, `UKTLS_SEEDS`, `UKTLS_CHECK_DETERMINISM`, `UKTLS_SHRINK`; see
    /// [`Runs`].
    pub fn from_env() -> Runs {
        Runs::from_env()
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.world.seed
    }

    /// The virtual time.
    pub fn now(&self) -> Instant {
        self.world.now()
    }

    /// A host with these addresses: `"10.0.0.1"`, or `["10.0.0.1/24", "fd00::1/64"]`. Others reach it by its name.
    ///
    /// # Panics
    /// When an address does not parse, or name or address are taken.
    pub fn host(&self, name: &str, addresses: impl Addresses) -> Host {
        let node = self.world.add_node(name, addresses.list(), Role::Host);
        Host {
            world: self.world.clone(),
            node,
        }
    }

    /// A host with these addresses and without a stack: a program sends and receives its packets. For another stack as the
    /// peer, a middlebox, a flood.
    ///
    /// # Panics
    /// As [`host`](Self::host).
    pub fn raw_host(&self, name: &str, addresses: impl Addresses) -> RawHost {
        let inbox = Rc::default();
        let role = Role::Raw(Rc::clone(&inbox));
        let node = self.world.add_node(name, addresses.list(), role);
        RawHost::new(self.world.clone(), node, inbox)
    }

    /// A switch: passes packets on to whichever link leads to their destination, and is not seen.
    ///
    /// # Panics
    /// When the name is taken.
    pub fn switch(&self, name: &str) -> Switch {
        let node = self.world.add_node(name, Vec::new(), Role::Switch);
        Switch {
            world: self.world.clone(),
            node,
        }
    }

    /// A router: counts hops, cuts IPv4 packets that may be cut, and answers what it cannot pass on with ICMP errors from its address of the
    /// family, if it has one.
    ///
    /// # Panics
    /// As [`host`](Self::host).
    pub fn router(&self, name: &str, addresses: impl Addresses) -> Router {
        let node = self.world.add_node(name, addresses.list(), Role::Router);
        Router {
            world: self.world.clone(),
            node,
        }
    }

    /// A link between two nodes: [`Knobs`] for both directions, a pair of them (from `a` to `b`, and back), or a
    /// [preset](super::presets) (`a` is the device).
    ///
    /// Nothing else is needed for packets to find their way: where no [static route](Router::route) says otherwise, they go the way
    /// with the fewest hops.
    pub fn link(&self, a: &impl Node, b: &impl Node, knobs: impl BothKnobs) -> Link {
        let wire = self.world.add_link(a.number(), b.number(), knobs.pair());
        Link {
            world: self.world.clone(),
            wire,
        }
    }

    /// Nothing passes between the two hosts, either way, whatever links there are. What is under way arrives.
    pub fn partition(&self, a: &Host, b: &Host) {
        let change = Change::Partition(vec![a.name()], vec![b.name()]);
        self.world.request(change);
    }

    /// Nothing passes from `from` to `to`; the other way is open.
    pub fn partition_one_way(&self, from: &Host, to: &Host) {
        let change = Change::OneWayPartition(vec![from.name()], vec![to.name()]);
        self.world.request(change);
    }

    /// All partitions end.
    pub fn heal(&self) {
        self.world.request(Change::Heal);
    }

    /// Adds what is to go wrong: effects on packets by number, targeted faults, changes at times. Directions are called
    /// `"client>server"`. The dice of the links' knobs are rolled as well.
    pub fn schedule(&self, schedule: &Schedule) {
        self.world.schedule(schedule, false);
    }

    /// Exactly this goes wrong and nothing else: the links roll no dice, and what programs do to the network while it runs, or by
    /// [`Link::fault`], is not done. For a schedule that a failed run has printed.
    pub fn replay(&self, schedule: &Schedule) {
        self.world.schedule(schedule, true);
    }

    /// Records all packets to a capture file (pcapng) at `path`, with names, comments and the [secrets](Self::secrets). It is
    /// written when the run is over, however it ends; until then the packets are in memory.
    ///
    /// `UKTLS_PCAP=path` does the same for a test as it is.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn record(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let secrets = self.world.secrets.clone();
        self.world.watch.checker().record_to(path.as_ref(), secrets)
    }

    /// Where TLS secrets go that a recording is to be decrypted with: lines in the format of `SSLKEYLOGFILE`.
    pub fn secrets(&self) -> Secrets {
        self.world.secrets.clone()
    }

    /// Runs until every task that was [spawned](Host::spawn) has ended.
    ///
    /// # Panics
    /// When a task panics, an invariant breaks, or the tasks that are left can never end: with the seed, the virtual time, the
    /// last packets and the command that repeats it.
    pub fn run(&self) -> Report {
        match self.try_run() {
            Ok(report) => report,
            Err(failure) => panic!("{failure}"),
        }
    }

    /// As [`run`](Self::run), for tests that want a failure.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn try_run(&self) -> Result<Report, Box<Failure>> {
        super::run::run_to_end(&self.world, super::world::TIME_LIMIT)
    }

    /// As [`try_run`](Self::try_run), with a limit on the virtual time that it may take (a day otherwise).
    ///
    /// # Errors
    /// [`Failure`].
    pub fn try_run_within(&self, limit: Duration) -> Result<Report, Box<Failure>> {
        super::run::run_to_end(&self.world, limit)
    }
}

/// Something that a link can be attached to.
pub trait Node {
    #[doc(hidden)]
    fn number(&self) -> usize;
}

/// A host: it has a TCP/IP stack of its own, and programs run on it.
#[derive(Clone)]
pub struct Host {
    world: Rc<World>,
    node: usize,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Host").field(&self.name()).finish()
    }
}

impl Node for Host {
    fn number(&self) -> usize {
        self.node
    }
}

impl Host {
    /// Its name.
    pub fn name(&self) -> String {
        self.world.node_name(self.node)
    }

    /// Its addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.world.addresses(self.node)
    }

    /// Its stack's counters; they count on through crashes.
    pub fn counters(&self) -> Arc<Counters> {
        self.world.counters(self.node)
    }

    /// Changes its stack's settings, TCP's for example. To be called before anything runs on it.
    pub fn configure(&self, change: impl FnOnce(&mut StackConfig)) -> &Host {
        self.world.configure(self.node, change);
        self
    }

    /// Runs a task on it. The run ends when all such tasks have ended; a crash ends them too.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
    {
        spawn_on(&self.world, Some(self.node), false, future)
    }

    /// Runs a task on it that the run does not wait for.
    pub fn spawn_background<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
    {
        spawn_on(&self.world, Some(self.node), true, future)
    }

    /// A program that runs in the background, and starts anew each time the host does: a server, as a rule.
    pub fn program<F>(&self, program: impl Fn() -> F + 'static) -> &Host
    where
        F: Future + 'static,
    {
        let (world, node) = (Rc::downgrade(&self.world), self.node);
        self.world.add_program(
            node,
            Rc::new(move || {
                if let Some(world) = world.upgrade() {
                    spawn_on(&world, Some(node), true, program());
                }
            }),
        );
        self
    }

    /// Everything on it is gone at once: tasks, connections, what its stack knew. Nobody is told.
    pub fn crash(&self) {
        self.world.request(Change::Crash(self.name()));
    }

    /// It starts again, and its [programs](Self::program) with it.
    pub fn restart(&self) {
        self.world.request(Change::Restart(self.name()));
    }
}

/// A switch.
#[derive(Clone)]
pub struct Switch {
    world: Rc<World>,
    node: usize,
}

/// A router.
#[derive(Clone)]
pub struct Router {
    world: Rc<World>,
    node: usize,
}

impl Node for Switch {
    fn number(&self) -> usize {
        self.node
    }
}

impl Node for Router {
    fn number(&self) -> usize {
        self.node
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Switch")
            .field(&self.world.node_name(self.node))
            .finish()
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Router")
            .field(&self.world.node_name(self.node))
            .finish()
    }
}

/// A static route: "10.2.0.0/16" goes over the link to `via`. The longest prefix counts.
macro_rules! routes {
    ($node:ty) => {
        impl $node {
            /// A static route: packets to `prefix`, such as `"10.2.0.0/16"`, go over the link to `via`. The longest prefix
            /// counts; where none fits, the way with the fewest hops.
            ///
            /// # Panics
            /// When the prefix does not parse, or there is no link to `via`.
            pub fn route(&self, prefix: &str, via: &impl Node) -> &Self {
                let Some(prefix) = Prefix::parse(prefix) else {
                    panic!("{prefix:?} is no prefix; one looks like \"10.2.0.0/16\"");
                };
                self.world.add_route(self.node, prefix, via.number());
                self
            }
        }
    };
}

routes!(Host);
routes!(Switch);
routes!(Router);

/// A link; everything on it can be turned while the network runs.
#[derive(Clone)]
pub struct Link {
    world: Rc<World>,
    wire: usize,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Link").field(&self.wire).finish()
    }
}

/// A direction of a [`Link`]: from the first of the two nodes that it was made with, or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the first to the second.
    There,
    /// From the second to the first.
    Back,
}

impl Link {
    fn wire(&self, way: Way) -> usize {
        match way {
            Way::There => self.wire,
            Way::Back => self.wire + 1,
        }
    }

    /// Turns knobs in one direction.
    pub fn turn(&self, way: Way, turn: impl FnOnce(&mut Knobs)) {
        self.world.turn_knobs(self.wire(way), turn);
    }

    /// Turns knobs in both directions.
    pub fn turn_both(&self, turn: impl Fn(&mut Knobs)) {
        self.turn(Way::There, &turn);
        self.turn(Way::Back, &turn);
    }

    /// The link goes down: it takes nothing more. What is under way arrives.
    pub fn down(&self) {
        self.turn_both(|knobs| knobs.up = false);
    }

    /// The link comes up.
    pub fn up(&self) {
        self.turn_both(|knobs| knobs.up = true);
    }

    /// A targeted fault, from now on.
    pub fn fault(&self, way: Way, fault: Fault) {
        self.world.add_fault(self.wire(way), fault);
    }

    /// Takes all targeted faults away.
    pub fn clear_faults(&self, way: Way) {
        self.world.clear_faults(self.wire(way));
    }

    /// What has happened in one direction.
    pub fn counters(&self, way: Way) -> LinkCounters {
        self.world
            .with_wire(self.wire(way), |direction| *direction.counters())
    }
}

/// Knobs for both directions of a link.
pub trait BothKnobs {
    /// There, and back.
    fn pair(self) -> [Knobs; 2];
}

impl BothKnobs for Knobs {
    fn pair(self) -> [Knobs; 2] {
        [self.clone(), self]
    }
}

impl BothKnobs for (Knobs, Knobs) {
    fn pair(self) -> [Knobs; 2] {
        [self.0, self.1]
    }
}

impl BothKnobs for Preset {
    fn pair(self) -> [Knobs; 2] {
        [self.up, self.down]
    }
}

/// Addresses of a node, with or without the length of their network's prefix (24 and 64 bits otherwise).
pub trait Addresses {
    /// Each with its prefix length.
    fn list(self) -> Vec<(IpAddr, u8)>;
}

impl Addresses for &str {
    fn list(self) -> Vec<(IpAddr, u8)> {
        let Some(prefix) = Prefix::parse(self) else {
            panic!("{self:?} is no address; one looks like \"10.0.0.1\" or \"fd00::1/64\"");
        };
        let address = prefix.address();
        let usual = if address.is_ipv4() { 24 } else { 64 };
        let length = if self.contains('/') {
            prefix.length()
        } else {
            usual
        };
        vec![(address, length)]
    }
}

impl Addresses for IpAddr {
    fn list(self) -> Vec<(IpAddr, u8)> {
        vec![(self, if self.is_ipv4() { 24 } else { 64 })]
    }
}

impl<A: Addresses, const N: usize> Addresses for [A; N] {
    fn list(self) -> Vec<(IpAddr, u8)> {
        self.into_iter().flat_map(Addresses::list).collect()
    }
}

impl<A: Addresses> Addresses for Vec<A> {
    fn list(self) -> Vec<(IpAddr, u8)> {
        self.into_iter().flat_map(Addresses::list).collect()
    }
}

/// Who can be named in a run.
#[derive(Debug, Clone, Copy)]
pub struct Resolver<'a> {
    net: &'a Net,
    from: Option<usize>,
}

impl Resolver<'_> {
    /// The address of a host's name, of a family that the asking host has.
    ///
    /// # Errors
    /// `EINVAL` when nobody is called so.
    pub fn address_of(&self, name: &str) -> io::Result<IpAddr> {
        let world = &self.net.world;
        let unknown = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("no host is called {name:?}, and it is no address"),
            )
        };
        let node = world.node_named(name).ok_or_else(unknown)?;
        let addresses = world.addresses(node);
        let ours = self.from.map(|from| world.addresses(from));
        addresses
            .iter()
            .find(|address| {
                ours.as_ref()
                    .is_none_or(|ours| ours.iter().any(|own| own.is_ipv4() == address.is_ipv4()))
            })
            .copied()
            .ok_or_else(unknown)
    }
}

/// Anything that names an address and a port: `"server:443"`, `("server", 443)`, or an address as such.
pub trait ToAddress {
    /// The address it names.
    ///
    /// # Errors
    /// `EINVAL` for what names nothing.
    fn resolve(&self, resolver: &Resolver<'_>) -> io::Result<SocketAddr>;

    #[doc(hidden)]
    #[expect(private_interfaces, reason = "called by sockets only")]
    fn to_address(&self, world: &Rc<World>, from: Option<usize>) -> io::Result<SocketAddr> {
        let net = Net {
            world: world.clone(),
        };
        self.resolve(&Resolver { net: &net, from })
    }
}

impl ToAddress for str {
    fn resolve(&self, resolver: &Resolver<'_>) -> io::Result<SocketAddr> {
        if let Ok(address) = self.parse() {
            return Ok(address);
        }
        let (name, port) = self
            .rsplit_once(':')
            .and_then(|(name, port)| Some((name, port.parse::<u16>().ok()?)))
            .ok_or_else(|| io::Error::from_raw_os_error(Errno::INVAL.raw_os_error()))?;
        (name, port).resolve(resolver)
    }
}

impl ToAddress for String {
    fn resolve(&self, resolver: &Resolver<'_>) -> io::Result<SocketAddr> {
        self.as_str().resolve(resolver)
    }
}

impl ToAddress for SocketAddr {
    fn resolve(&self, _: &Resolver<'_>) -> io::Result<SocketAddr> {
        Ok(*self)
    }
}

impl ToAddress for (&str, u16) {
    fn resolve(&self, resolver: &Resolver<'_>) -> io::Result<SocketAddr> {
        let (name, port) = *self;
        let address = match name.parse::<IpAddr>() {
            Ok(address) => address,
            Err(_) => resolver.address_of(name)?,
        };
        Ok(SocketAddr::new(address, port))
    }
}

macro_rules! address_and_port {
    ($($address:ty),*) => {
        $(impl ToAddress for ($address, u16) {
            fn resolve(&self, _: &Resolver<'_>) -> io::Result<SocketAddr> {
                Ok(SocketAddr::new(self.0.into(), self.1))
            }
        })*
    };
}

address_and_port!(IpAddr, Ipv4Addr, Ipv6Addr);

impl<T: ToAddress + ?Sized> ToAddress for &T {
    fn resolve(&self, resolver: &Resolver<'_>) -> io::Result<SocketAddr> {
        (**self).resolve(resolver)
    }
}
