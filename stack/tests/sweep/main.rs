//! Random networks, faults and transfers, one for each seed: every run ends with all bytes delivered, or with the error that its
//! faults justify, and no invariant is broken. Datagrams, plain and DTLS, go beside the streams; some hosts have little memory.
//!
//! A few seeds run by default. The full sweep is
//!
//! ```text
//! UKTLS_SEEDS=10000 cargo test --release -p uktls-stack --test sweep
//! ```
//!
//! A failure says which seed; `UKTLS_SEED=n UKTLS_SHRINK=1` makes its schedule small.

mod datagrams;

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use uktls_record::crypto_info::CryptoInfo;
use uktls_record::header::ContentType;
use uktls_record::suite::{CipherSuite, ProtocolVersion};
use uktls_stack::clock::{Duration, Instant};
use uktls_stack::handle::SocketOptions;
use uktls_stack::sim::damage::Corruption;
use uktls_stack::sim::distribution::Distribution;
use uktls_stack::sim::fault::{ACK, Action, FIN, Fault, SYN};
use uktls_stack::sim::link::{Dice, Knobs, Loss, Rate, Reorder};
use uktls_stack::sim::random::{Chance, Stream};
use uktls_stack::sim::{self, Host, Link, Net, Runs, TcpListener, TcpStream, Way};
use uktls_stack::socket_info::Reason;
use uktls_stack::tcp::CongestionKind;

/// Seeds that run when nobody says how many.
const USUAL: u64 = 150;
/// A transfer that takes longer than this stalls: outages are over long before, and every link can carry its load in it.
const PATIENCE: Duration = Duration::from_secs(3 * 3600);
/// How long an end may wait for a peer whose host crashed, and which it will never hear of.
const ORPHAN: Duration = Duration::from_secs(3600);

/// Choices of one run.
struct Choices(Stream);

impl Choices {
    fn new(seed: u64, entity: &str, purpose: &str) -> Choices {
        Choices(Stream::new(seed, entity, purpose))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A chance of up to `ppm`, most of the time none.
    fn seldom(&mut self, ppm: u32) -> Chance {
        if self.one_in(4) {
            Chance::ppm(self.below(u64::from(ppm)) as u32)
        } else {
            Chance::NEVER
        }
    }

    fn micros(&mut self, below: u64) -> Duration {
        Duration::from_micros(self.below(below))
    }

    fn knobs(&mut self, least_mtu: u64) -> Knobs {
        let loss = match self.below(6) {
            0 | 1 => Loss::random(Chance::ppm(self.below(50_000) as u32)),
            2 => Loss::GilbertElliott {
                to_bad: Chance::ppm(self.below(10_000) as u32),
                to_good: Chance::percent(20 + self.below(60) as u32),
                good: Chance::NEVER,
                bad: Chance::percent(30 + self.below(60) as u32),
            },
            3 => Loss::Nth(15 + self.below(200)),
            _ => Loss::None,
        };
        let ceiling = self.pick(&[0, 1_000, 20_000, 150_000]);
        Knobs {
            mtu: if self.one_in(4) {
                (least_mtu + self.below(1501 - least_mtu)) as usize
            } else {
                1500
            },
            delay: self.micros(ceiling + 1),
            jitter: if self.one_in(3) {
                self.micros(10_000)
            } else {
                Duration::ZERO
            },
            jitter_reorders: self.one_in(4),
            distribution: self.pick(&[
                Distribution::Uniform,
                Distribution::Normal,
                Distribution::Pareto,
            ]),
            loss,
            duplicate: Dice::of(self.seldom(50_000)),
            reorder: Reorder {
                dice: Dice::of(self.seldom(100_000)),
                gap: self.below(6) as u32,
                ahead: None,
            },
            corrupt: Dice::of(self.seldom(20_000)),
            truncate: Dice::of(self.seldom(20_000)),
            rate: match self.below(4) {
                0 => Rate::UNLIMITED,
                1 => Rate::kbit(500 + self.below(5_000)),
                _ => Rate::mbit(5 + self.below(995)),
            },
            limit: self.pick(&[12, 50, 200, 1_000]),
            ecn_threshold: if self.one_in(3) {
                Some(5 + self.below(40) as usize)
            } else {
                None
            },
            ..Knobs::default()
        }
    }
}

/// What is protected how.
#[derive(Debug, Clone, Copy)]
enum Protection {
    Plain,
    Tls(ProtocolVersion, CipherSuite),
}

/// One connection and what it is to carry.
#[derive(Debug, Clone)]
struct Transfer {
    number: u16,
    protection: Protection,
    /// Bytes there and back, sent at the same time.
    up: usize,
    down: usize,
    /// The server sends by sendfile.
    sendfile: bool,
    chunk: usize,
    /// A reader pauses this long after every so many bytes.
    pause: Duration,
    window: usize,
    start: Duration,
    v6: bool,
    /// Whether the client's host crashes, and the server's.
    crashes: [bool; 2],
    /// Somebody on the way changes bits so that checksums still hold.
    forged: bool,
}

impl Transfer {
    fn orphaned(&self) -> bool {
        self.crashes.contains(&true)
    }
}

/// Bytes that only this transfer's direction has.
fn noise(seed: u64, transfer: u16, direction: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Stream::new(seed, &format!("transfer {transfer}"), direction).fill(&mut bytes);
    bytes
}

fn keys(
    seed: u64,
    transfer: u16,
    direction: &str,
    version: ProtocolVersion,
    suite: CipherSuite,
) -> CryptoInfo {
    let bytes = noise(seed, transfer, direction, 64);
    let (key, rest) = bytes.split_at(suite.key_len());
    let (salt, rest) = rest.split_at(suite.salt_len());
    CryptoInfo::new(version, suite, key, salt, &rest[..suite.iv_len()], 0)
        .expect("lengths of this suite")
}

/// One end of a transfer: sends its bytes while it reads and checks the peer's.
async fn end(stream: TcpStream, seed: u64, plan: Transfer, is_client: bool) -> io::Result<()> {
    let (ours, theirs) = if is_client {
        ("up", "down")
    } else {
        ("down", "up")
    };
    let (send, expect) = if is_client {
        (plan.up, plan.down)
    } else {
        (plan.down, plan.up)
    };
    // As on Linux, the ULP goes on a connection that is open both ways. So the server greets, and the client waits for that.
    if let Protection::Tls(..) = plan.protection {
        stream.set_ulp_tls()?;
    }
    if is_client {
        let greeting = stream.recv_record(&mut [0; 1]).await?;
        if greeting.len == 0 {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    } else {
        stream.send_all(b"g").await?;
    }
    if let Protection::Tls(version, suite) = plan.protection {
        let key = |name: &str| keys(seed, plan.number, &format!("{name} keys"), version, suite);
        stream.set_tls_tx(&key(ours))?;
        stream.set_tls_rx(&key(theirs), &[])?;
    }
    let stream = Rc::new(stream);
    let writer = {
        let (stream, plan) = (stream.clone(), plan.clone());
        let bytes = noise(seed, plan.number, ours, send);
        sim::spawn(async move {
            if plan.sendfile && !is_client {
                stream.sendfile(bytes).await?;
            } else {
                for chunk in bytes.chunks(plan.chunk) {
                    stream.send_all(chunk).await?;
                }
            }
            if let Protection::Tls(..) = plan.protection {
                stream.send_record(ContentType::ALERT, &[1, 0]).await?;
            }
            stream.shutdown_write();
            Ok::<(), io::Error>(())
        })
    };
    let read = read_all(&stream, &plan, &noise(seed, plan.number, theirs, expect)).await;
    if read.is_err() {
        // As a program does that was sent a bad record: the writer must not wait for a peer that does the same.
        stream.abort();
    }
    let written = writer.await.map_err(io::Error::other)?;
    read.and(written)?;
    match stream.reason() {
        // The stack may have let go of a socket whose both directions are done.
        Reason::CleanEnd | Reason::Aborted => Ok(()),
        // It had read everything, and what it had written last the other end has forgotten, or refused.
        Reason::Reset if plan.orphaned() || plan.forged => Ok(()),
        other => panic!("transfer {} ended as {other:?}: {plan:?}", plan.number),
    }
}

async fn read_all(stream: &TcpStream, plan: &Transfer, expected: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    let (mut at, mut since_pause) = (0, 0);
    loop {
        let received = stream.recv_record(&mut buffer).await?;
        if received.content_type == ContentType::ALERT {
            continue;
        }
        if received.len == 0 {
            break;
        }
        let bytes = &buffer[..received.len];
        assert!(
            expected.get(at..at + bytes.len()) == Some(bytes),
            "transfer {} reads other bytes than were sent",
            plan.number
        );
        at += bytes.len();
        since_pause += bytes.len();
        if plan.pause > Duration::ZERO && since_pause > 100_000 {
            since_pause = 0;
            sim::sleep(plan.pause).await;
        }
    }
    assert_eq!(at, expected.len(), "transfer {} lacks bytes", plan.number);
    Ok(())
}

/// Hosts on one link, around a switch, or behind a chain of routers.
fn topology(net: &Net, choices: &mut Choices, least_mtu: u64) -> (Vec<Host>, Vec<Link>) {
    let count = 2 + choices.below(4) as u8;
    let shape = choices.below(3);
    let count = if shape == 0 { 2 } else { count };
    let hosts: Vec<Host> = (1..=count)
        .map(|n| {
            net.host(
                &format!("h{n}"),
                [format!("10.0.{n}.1").as_str(), &format!("fd00:{n}::1")],
            )
        })
        .collect();
    let mut links = Vec::new();
    match shape {
        0 => {
            let pair = (choices.knobs(least_mtu), choices.knobs(least_mtu));
            links.push(net.link(&hosts[0], &hosts[1], pair));
        }
        1 => {
            let switch = net.switch("switch");
            for host in &hosts {
                // A switch drops what is too long without a word: these MTUs are found by probing.
                let pair = (choices.knobs(least_mtu), choices.knobs(least_mtu));
                links.push(net.link(host, &switch, pair));
            }
        }
        _ => {
            let routers: Vec<_> = (1..=1 + choices.below(3) as u8)
                .map(|n| {
                    let addresses = [format!("10.1.{n}.1"), format!("fd01:{n}::1")];
                    net.router(&format!("r{n}"), addresses.each_ref().map(String::as_str))
                })
                .collect();
            for pair in routers.windows(2) {
                let knobs = (choices.knobs(least_mtu), choices.knobs(least_mtu));
                links.push(net.link(&pair[0], &pair[1], knobs));
            }
            for host in &hosts {
                let router = &routers[choices.below(routers.len() as u64) as usize];
                let knobs = (choices.knobs(least_mtu), choices.knobs(least_mtu));
                links.push(net.link(host, router, knobs));
            }
        }
    }
    // Two flipped bits in one packet, on two links, can cancel out in TCP's checksum, and nothing but a record would notice. So
    // only one link flips any.
    for link in &links[1..] {
        link.turn_both(|knobs| knobs.corrupt = Dice::default());
    }
    (hosts, links)
}

/// What happens to the network while it runs, all of it over after some seconds: the host that crashes, and whether packets vanish
/// that no link counts.
fn trouble(
    net: &Net,
    choices: &mut Choices,
    hosts: &[Host],
    links: &[Link],
) -> (Option<usize>, bool) {
    let mut uncounted = false;
    let god = net.host("god", "192.0.2.1");
    for _ in 0..choices.below(3) {
        let link = links[choices.below(links.len() as u64) as usize].clone();
        let (at, length) = (choices.micros(5_000_000), choices.micros(8_000_000));
        god.spawn(async move {
            sim::sleep(at).await;
            link.down();
            sim::sleep(length).await;
            link.up();
        });
    }
    if choices.one_in(4) && hosts.len() > 1 {
        let (a, b) = (hosts[0].clone(), hosts[1].clone());
        let (at, length) = (choices.micros(5_000_000), choices.micros(8_000_000));
        let (net, one_way) = (net.clone(), choices.one_in(2));
        uncounted = true;
        god.spawn(async move {
            sim::sleep(at).await;
            if one_way {
                net.partition_one_way(&a, &b);
            } else {
                net.partition(&a, &b);
            }
            sim::sleep(length).await;
            net.heal();
        });
    }
    if choices.one_in(5) {
        let link = links[choices.below(links.len() as u64) as usize].clone();
        let (at, mtu) = (
            choices.micros(3_000_000),
            1280 + choices.below(200) as usize,
        );
        god.spawn(async move {
            sim::sleep(at).await;
            link.turn_both(|knobs| knobs.mtu = knobs.mtu.min(mtu));
        });
        uncounted = true;
    }
    for _ in 0..choices.below(3) {
        let at = choices.below(links.len() as u64) as usize;
        let fault = aimed(choices, at == 0);
        links[at].fault(choices.pick(&[Way::There, Way::Back]), fault);
    }
    if choices.one_in(4) {
        weather(choices, &god, links);
    }
    let victim = choices.one_in(5).then(|| {
        let victim = choices.below(hosts.len() as u64) as usize;
        let host = hosts[victim].clone();
        let (at, length) = (choices.micros(5_000_000), choices.micros(5_000_000));
        god.spawn(async move {
            sim::sleep(at).await;
            host.crash();
            sim::sleep(length).await;
            host.restart();
        });
        victim
    });
    (victim, uncounted || victim.is_some())
}

/// A fault aimed at certain packets, for some seconds. Only one link may flip bits.
fn aimed(choices: &mut Choices, may_corrupt: bool) -> Fault {
    let action = match choices.below(4) {
        0 => Action::Drop,
        1 => Action::Duplicate,
        2 if may_corrupt => Action::Corrupt(Corruption::Wire),
        _ => Action::Delay(choices.micros(2_000_000)),
    };
    let aim = Fault::new(action).until(Instant::from_secs(5 + choices.below(10)));
    let aim = match choices.below(7) {
        0 => aim.flags(SYN, 0),
        1 => aim.flags(FIN, 0),
        2 => aim.tcp().with_payload(),
        3 => aim.flags(ACK, SYN),
        4 => aim.content_type(23),
        5 => aim.dtls_epoch(choices.pick(&[1, 2, 3])),
        _ => aim.udp(),
    };
    match choices.below(3) {
        0 => aim.nth(1 + choices.below(40)),
        _ => aim.every(2 + choices.below(20)),
    }
}

/// A link changes its rate and its delay, and then again.
fn weather(choices: &mut Choices, god: &Host, links: &[Link]) {
    let link = links[choices.below(links.len() as u64) as usize].clone();
    let changes: Vec<_> = (0..1 + choices.below(4))
        .map(|_| {
            let rate = Rate::kbit(choices.pick(&[600, 5_000, 100_000]));
            (choices.micros(3_000_000), rate, choices.micros(100_000))
        })
        .collect();
    god.spawn(async move {
        for (pause, rate, delay) in changes {
            sim::sleep(pause).await;
            link.turn_both(|knobs| (knobs.rate, knobs.delay) = (rate, delay));
        }
    });
}

/// Whether an end of a transfer may end so: a forged record is refused by name, and that end, or the other one, then sees the
/// connection go; a crash takes connections with it.
fn justified(plan: &Transfer, error: &io::Error) -> bool {
    // EBADMSG, EMSGSIZE and EINVAL are what a record that is none may be called (linux-ktls).
    let refused = matches!(error.raw_os_error(), Some(74 | 90 | 22));
    let gone = matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkDown
    );
    (plan.forged && (refused || gone)) || (plan.orphaned() && gone)
}

/// How an end came out: in time or not, and how then.
type Outcome = Result<Result<io::Result<()>, sim::Elapsed>, sim::Crashed>;

/// Whether the client (0) or the server (1) may wait for ever. An end with nothing left to send hears of a peer that is gone by a
/// reset alone, and a host that crashed sends none; that of a peer that refused a forged record can be lost.
fn may_wait(plan: &Transfer, at: usize, other: &Outcome) -> bool {
    let refused = matches!(other, Ok(Ok(Err(_))));
    plan.crashes[1 - at] || (plan.forged && refused)
}

fn world(net: &Net, done: &Rc<Cell<[u64; 2]>>) {
    let seed = net.seed();
    let mut choices = Choices::new(seed, "sweep", "choices");
    let v6 = choices.one_in(3);
    // RFC 8200 §5: 1,280 bytes; IPv4's smallest link here is the one that everybody must be able to take whole.
    let least_mtu = if v6 { 1280 } else { 576 };
    let (hosts, links) = topology(net, &mut choices, least_mtu);
    for host in &hosts {
        let congestion = choices.pick(&[CongestionKind::Cubic, CongestionKind::Reno]);
        let (ecn, sack, timestamps) = (choices.one_in(3), !choices.one_in(6), !choices.one_in(6));
        // Small enough to be reached by the transfers below.
        let memory = choices.one_in(4).then(|| {
            let all = choices.pick(&[64 << 10, 256 << 10, 1 << 20]);
            (choices.pick(&[32 << 10, 128 << 10]), all)
        });
        host.configure(|config| {
            if let Some((socket, all)) = memory {
                config.limits.memory_per_socket = socket;
                config.limits.memory_per_uid = all;
                config.limits.memory_total = all;
            }
            config.tcp.congestion = congestion;
            // Luck may take a dozen SYNs in a row; giving up on them is no stall.
            config.tcp.syn_retries = 30;
            (config.tcp.ecn, config.tcp.sack, config.tcp.timestamps) = (ecn, sack, timestamps);
        });
    }
    // Only records can tell a forged bit, so everything is sealed then.
    let forged = choices.one_in(6);
    if forged {
        let chance = Chance::ppm(choices.below(3_000) as u32);
        links[0].turn_both(|knobs| knobs.forge = Dice::of(chance));
    }
    let (victim, uncounted) = trouble(net, &mut choices, &hosts, &links);
    // A datagram that a router or its own host found too long is counted by no link.
    let narrow = Cell::new(false);
    for link in &links {
        link.turn_both(|knobs| narrow.set(narrow.get() || knobs.mtu < 1500));
    }
    datagrams::flows(
        net,
        &mut choices,
        &hosts,
        &links,
        victim,
        forged,
        uncounted || narrow.get(),
    );
    let judge = net.host("judge", "192.0.2.2");
    // Now and then datagrams have the network for themselves: then every one that is missing is accounted for.
    let streams = if choices.one_in(8) {
        0
    } else {
        1 + choices.below(5)
    };
    for number in 0..streams as u16 {
        let from = choices.below(hosts.len() as u64) as usize;
        let to = (from + 1 + choices.below(hosts.len() as u64 - 1) as usize) % hosts.len();
        let version = choices.pick(&[ProtocolVersion::Tls12, ProtocolVersion::Tls13]);
        let suite = choices.pick(&[
            CipherSuite::Aes128Gcm,
            CipherSuite::Aes256Gcm,
            CipherSuite::ChaCha20Poly1305,
        ]);
        let size = |choices: &mut Choices| {
            let most = choices.pick(&[1, 100, 20_000, 400_000]);
            choices.below(most) as usize
        };
        let plan = Transfer {
            number,
            protection: if choices.one_in(3) && !forged {
                Protection::Plain
            } else {
                Protection::Tls(version, suite)
            },
            up: size(&mut choices),
            down: size(&mut choices),
            sendfile: choices.one_in(2),
            chunk: choices.pick(&[7, 1_000, 16_384, 100_000]),
            pause: if choices.one_in(3) {
                choices.micros(3_000_000)
            } else {
                Duration::ZERO
            },
            window: choices.pick(&[4_096, 65_536, 1 << 20]),
            start: choices.micros(3_000_000),
            v6,
            crashes: [from, to].map(|host| victim == Some(host)),
            forged,
        };
        transfer(seed, &hosts[from], &hosts[to], &judge, plan, done.clone());
    }
}

/// Both ends of a transfer, and who judges how they ended.
fn transfer(
    seed: u64,
    client: &Host,
    server: &Host,
    judge: &Host,
    plan: Transfer,
    done: Rc<Cell<[u64; 2]>>,
) {
    let port = 1000 + plan.number;
    let patience = if plan.orphaned() { ORPHAN } else { PATIENCE };
    let options = SocketOptions {
        receive_buffer: plan.window,
        ..SocketOptions::default()
    };
    let name = server.name();
    let serving = {
        let (plan, options) = (plan.clone(), options.clone());
        server.spawn(async move {
            let any = if plan.v6 { "::" } else { "0.0.0.0" };
            let serve = async {
                let listener = TcpListener::bind_with((any, port), 4, options).await?;
                let (stream, _) = listener.accept().await?;
                end(stream, seed, plan.clone(), false).await
            };
            sim::timeout(patience, serve).await
        })
    };
    let asking = {
        let plan = plan.clone();
        let address = server.addresses()[usize::from(plan.v6)];
        client.spawn(async move {
            sim::sleep(plan.start).await;
            let ask = async {
                let stream = TcpStream::connect_with((address, port), None, options).await?;
                end(stream, seed, plan.clone(), true).await
            };
            sim::timeout(patience, ask).await
        })
    };
    let sides = format!("{} and {name}", client.name());
    judge.spawn(async move {
        let outcomes = [asking.await, serving.await];
        for (at, side) in ["client", "server"].into_iter().enumerate() {
            let mut counts = done.get();
            match &outcomes[at] {
                Ok(Ok(Ok(()))) => counts[0] += 1,
                Ok(Ok(Err(error))) if justified(&plan, error) => counts[1] += 1,
                Err(sim::Crashed) if plan.orphaned() => counts[1] += 1,
                // Nothing else excuses a stall.
                Ok(Err(sim::Elapsed)) if may_wait(&plan, at, &outcomes[1 - at]) => counts[1] += 1,
                outcome => panic!(
                    "transfer {} between {sides}: the {side} ended with {outcome:?} at {}; {plan:?}",
                    plan.number,
                    sim::now()
                ),
            }
            done.set(counts);
        }
    });
}

#[test]
fn every_run_ends_with_all_bytes_or_the_error_that_its_faults_justify() {
    let done = Rc::new(Cell::new([0, 0]));
    let runs = Runs::from_env()
        .at_least(USUAL)
        .time_limit(Duration::from_secs(10 * 3600));
    let last = runs.run(|net| world(net, &done));
    let [delivered, justified] = done.get();
    println!("{delivered} ends delivered, {justified} ended with a justified error");
    assert!(last.ended > Instant::ZERO);
    // A run or two may have no transfers, or be all trouble.
    if delivered + justified > 100 {
        assert!(delivered > justified, "most transfers have nothing to fear");
    }
}
