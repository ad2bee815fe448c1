//! Our TCP against smoltcp's, an independent peer, in the simulator: under every fault of
//! [`presets::faults`](uktls_stack::sim::presets::faults), and on much worse links, with our settings drawn from the seed. Every byte
//! must arrive both ways, whoever connects, and both ends must close.
//!
//! `UKTLS_SEEDS` says how many seeds, as everywhere. What is known of smoltcp 0.14 and how it is lived with here:
//!
//! | smoltcp | here |
//! | --- | --- |
//! | with a receive buffer of 64 KiB or more its window arithmetic can panic | its buffers hold 32 KiB, so it scales no window |
//! | its retransmission timeout is never below 1 s, and doubles | virtual time costs nothing; no run may take more than two hours of it |
//! | two of its ends that both lose a burst of acknowledgements wait for good | one end is ours, which probes |
//! | it leaves TIME-WAIT after 10 s and answers what comes later with a reset | by then both ends have everything, which is what is asserted |

use bytes::BytesMut;
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uktls_stack::clock::{Duration, Instant};
use uktls_stack::sim::link::{Dice, Knobs, Loss};
use uktls_stack::sim::random::{Chance, Stream};
use uktls_stack::sim::{self, Host, Net, RawHost, Runs, TcpListener, TcpStream, presets};
use uktls_stack::tcp::{Config, CongestionKind};

/// What a run may take in virtual time.
const LIMIT: Duration = Duration::from_secs(2 * 3600);
const PORT: u16 = 80;

/// smoltcp's device: the raw host's packets.
struct Port {
    host: RawHost,
    arrived: VecDeque<BytesMut>,
}

struct Arrived(BytesMut);
struct Leaving<'a>(&'a RawHost);

impl phy::RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.send(&packet);
        result
    }
}

impl phy::Device for Port {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Arrived, Leaving<'_>)> {
        Some((Arrived(self.arrived.pop_front()?), Leaving(&self.host)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Leaving<'_>> {
        Some(Leaving(&self.host))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.host.mtu();
        capabilities
    }
}

/// smoltcp's stack on a raw host, with one socket.
struct Smoltcp {
    port: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Smoltcp {
    /// Listens, or connects to an address.
    fn new(host: RawHost, seed: u64, remote: Option<SocketAddr>) -> Smoltcp {
        let addresses = host.addresses();
        let mut port = Port {
            host,
            arrived: VecDeque::new(),
        };
        let mut config = InterfaceConfig::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut port, now());
        interface.update_ip_addrs(|cidrs| {
            for address in addresses {
                let prefix = if address.is_ipv4() { 24 } else { 64 };
                cidrs
                    .push(IpCidr::new(address.into(), prefix))
                    .expect("room");
            }
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; 32 * 1024]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        match remote {
            None => socket.listen(PORT).expect("a fresh socket listens"),
            Some(remote) => socket
                .connect(interface.context(), remote, 49_152)
                .expect("a fresh socket connects"),
        }
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Smoltcp {
            port,
            interface,
            sockets,
            handle,
        }
    }

    /// Sends everything and closes; gives what came when both directions are over.
    async fn transfer(mut self, outgoing: Rc<Vec<u8>>) -> Vec<u8> {
        let (mut sent, mut received) = (0, Vec::new());
        loop {
            self.interface
                .poll(now(), &mut self.port, &mut self.sockets);
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
            let mut moved = false;
            while socket.can_recv() {
                let take = |bytes: &mut [u8]| (bytes.len(), received.extend_from_slice(bytes));
                socket.recv(take).expect("can_recv said so");
                moved = true;
            }
            while socket.can_send() && sent < outgoing.len() {
                let room = socket.send_slice(&outgoing[sent..]);
                sent += room.expect("can_send said so");
                moved = true;
            }
            if sent == outgoing.len() && socket.may_send() {
                socket.close();
                moved = true;
            }
            let state = socket.state();
            if moved || !self.port.arrived.is_empty() {
                continue;
            }
            if matches!(state, tcp::State::Closed | tcp::State::TimeWait) {
                return received;
            }
            let wait = self.interface.poll_delay(now(), &self.sockets);
            let host = self.port.host.clone();
            let packet = match wait {
                Some(wait) => sim::timeout(wait.into(), host.recv()).await.ok(),
                None => Some(host.recv().await),
            };
            self.port.arrived.extend(packet);
            self.port
                .arrived
                .extend(std::iter::from_fn(|| host.try_recv()));
        }
    }
}

/// The virtual time in smoltcp's words.
fn now() -> SmolInstant {
    SmolInstant::from_micros((sim::now() - Instant::ZERO).as_micros() as i64)
}

/// Our program: writes all of it and shuts, while it reads until the end.
async fn exchange(stream: TcpStream, bytes: Rc<Vec<u8>>) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let writer = sim::spawn(async move {
        write.write_all(&bytes).await.expect("written");
        write.shutdown().await.expect("shut");
    });
    let mut all = Vec::new();
    read.read_to_end(&mut all).await.expect("read");
    writer.await.expect("not crashed");
    all
}

/// Bad links must not be taken for dead ones.
fn patient() -> Config {
    Config {
        retries: 100,
        syn_retries: 100,
        rto_max: Duration::from_secs(10),
        ..Config::default()
    }
}

/// Settings of ours, any of them.
fn settings(choices: &mut Stream) -> Config {
    let mut flag = |one_in| choices.below(one_in) == 0;
    let (sack, timestamps, nodelay, pacing) = (!flag(4), !flag(4), flag(2), flag(2));
    let (quick_acks, reno) = (flag(2), flag(2));
    Config {
        mss: [536, 1000, 1460][choices.below(3) as usize],
        recv_buffer: 1 << (11 + choices.below(8)),
        recv_initial: 1 << (11 + choices.below(8)),
        sack,
        timestamps,
        nodelay,
        pacing,
        quick_acks: if quick_acks { 16 } else { 0 },
        congestion: if reno {
            CongestionKind::Reno
        } else {
            CongestionKind::Cubic
        },
        ..patient()
    }
}

/// One connection over a link with these knobs, both ways at once. Who connects, how much is sent, and by which family follow from the seed.
fn transfer(net: &Net, knobs: Knobs, config: Config) {
    let mut choices = Stream::new(net.seed(), "test", "transfer");
    let ours: Host = net.host("ours", ["10.0.0.1/24", "fd00::1/64"]);
    let theirs = net.raw_host("smoltcp", ["10.0.0.2/24", "fd00::2/64"]);
    ours.configure(|stack| stack.tcp = config);
    // IPv6 wants 1,280 bytes.
    let v6 = choices.below(3) == 0 && knobs.mtu >= 1280;
    net.link(&ours, &theirs, knobs);
    let mut bytes = || {
        let mut bytes = vec![0; choices.below(200_000) as usize];
        choices.fill(&mut bytes);
        Rc::new(bytes)
    };
    let (from_ours, from_theirs) = (bytes(), bytes());
    let at =
        |v4: &str, v6_: &str| -> IpAddr { if v6 { v6_ } else { v4 }.parse().expect("an address") };
    let our_address = SocketAddr::new(at("10.0.0.1", "fd00::1"), PORT);
    let their_address = SocketAddr::new(at("10.0.0.2", "fd00::2"), PORT);
    let we_connect = choices.below(2) == 0;
    let (sent, expected) = (from_ours.clone(), from_theirs.clone());
    ours.spawn(async move {
        let stream = if we_connect {
            TcpStream::connect(their_address).await.expect("connected")
        } else {
            let listener = TcpListener::bind(our_address).await.expect("a port");
            listener.accept().await.expect("a connection").0
        };
        let got = exchange(stream, sent).await;
        assert!(got == *expected, "ours got {} bytes", got.len());
    });
    let seed = net.seed();
    let host = theirs.clone();
    theirs.spawn(async move {
        let remote = (!we_connect).then_some(our_address);
        let smoltcp = Smoltcp::new(host, seed, remote);
        let got = smoltcp.transfer(from_theirs).await;
        assert!(got == *from_ours, "smoltcp got {} bytes", got.len());
    });
}

#[test]
fn both_directions_arrive_whole_under_every_fault() {
    for (name, knobs) in presets::faults() {
        let runs = Runs::from_env().at_least(25).time_limit(LIMIT);
        let outcome = runs.try_run(|net| transfer(net, knobs.clone(), patient()));
        if let Err(failure) = outcome {
            panic!("{name}: {failure}");
        }
    }
}

#[test]
fn both_directions_arrive_whole_on_awful_links_with_any_settings() {
    Runs::from_env()
        .at_least(1_000)
        .time_limit(LIMIT)
        .run(|net| {
            let mut choices = Stream::new(net.seed(), "test", "link");
            let mut pick = |from: &[u32]| from[choices.below(from.len() as u64) as usize];
            let knobs = Knobs {
                delay: Duration::from_millis(5),
                loss: Loss::random(Chance::per_mille(pick(&[0, 10, 50, 150, 250]))),
                duplicate: Dice::of(Chance::per_mille(pick(&[0, 0, 20, 150]))),
                corrupt: Dice::of(Chance::per_mille(pick(&[0, 0, 20, 100]))),
                jitter: Duration::from_micros(pick(&[0, 200, 4_000, 20_000]).into()),
                jitter_reorders: true,
                ..Knobs::default()
            };
            transfer(net, knobs, settings(&mut choices));
        });
}

#[test]
fn a_run_with_a_foreign_stack_repeats() {
    let (name, knobs) = presets::faults().pop().expect("there are some");
    let runs = Runs::from_env().seeds(1, 4).check_determinism(true);
    let report = runs.run(|net| transfer(net, knobs.clone(), patient()));
    assert!(report.totals.retransmitted > 0, "{name} harmed nothing");
}
