//! The stack in the test's own process, joined to a network of the kernel's by a wire with faults.

use crate::{Folder, HOST, Network, STACK};
use std::path::PathBuf;
use uktls::server::{self, Server, ServerConfig};
use uktls_stack::device::interface::{self, IpCidr};
use uktls_stack::device::plain_tun::PlainTun;
use uktls_stack::sim::link::{Direction, Knobs};
use uktls_stack::sim::wire::{self, Wire};
use uktls_stack::stack::{Limits, Stack, StackConfig};

/// ```text
///   the test, a client ══ daemon's socket ══ stack 10.77.0.2 ── wire (link model, real time) ── TUN, 10.77.0.1, in `network`
/// ```
///
/// The wire's MTU is that of both its ends, so nobody cuts anything on the way. It has no offload: what is lost are packets, not super-segments.
#[derive(Debug)]
pub struct Wired {
    /// Where the kernel's end is.
    pub network: Network,
    server: Option<server::Running>,
    stack: Option<Stack>,
    wire: Option<wire::Running>,
    socket: PathBuf,
    _folder: Folder,
}

impl Wired {
    /// A stack and a network with this wire between them, both ways alike. The dice depend on `seed`.
    #[track_caller]
    pub fn new(seed: u64, knobs: &Knobs) -> Wired {
        let (network, folder) = (Network::new(), Folder::new());
        let mtu = knobs.mtu;
        let tun = network.within(|| {
            let tun = PlainTun::open("wire", mtu).expect("a TUN");
            let address = HOST.parse().expect("an address");
            interface::configure(tun.name(), mtu, &[IpCidr::new(address, 24)]).expect("set up");
            tun
        });
        let (device, end) = wire::inside(mtu).expect("descriptors");
        let config = StackConfig {
            addresses: vec![(STACK.parse().expect("an address"), 24)],
            mtu,
            tcp: uktls_stack::tcp::Config::default(),
            limits: Limits::default(),
        };
        let stack = Stack::start(config, vec![Box::new(device)]).expect("a stack");
        let direction = |name| Direction::new(seed, name, knobs.clone());
        let wire = Wire {
            ends: [Box::new(end), Box::new(tun)],
            directions: [direction("stack>host"), direction("host>stack")],
        };
        let socket = folder.join("uktls.sock");
        let server = Server::bind(&socket, stack.handle(), ServerConfig::default());
        let server = server.and_then(Server::spawn).expect("a server");
        Wired {
            network,
            server: Some(server),
            stack: Some(stack),
            wire: Some(wire.start().expect("a thread")),
            socket,
            _folder: folder,
        }
    }

    /// The library's handle to the stack.
    pub fn client(&self) -> uktls::Daemon {
        uktls::Daemon::at(&self.socket)
    }

    /// What the wire did. Nothing passes any more.
    #[track_caller]
    pub fn cut(&mut self) -> wire::Account {
        let wire = self.wire.take().expect("it is cut once");
        wire.stop().expect("both ends are there")
    }
}

impl Drop for Wired {
    fn drop(&mut self) {
        drop(self.wire.take());
        if let Some(server) = self.server.take() {
            // A test that fails says why by itself.
            let _ = server.stop();
        }
        if let Some(stack) = self.stack.take() {
            stack.stop();
        }
    }
}
