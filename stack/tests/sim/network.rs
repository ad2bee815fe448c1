//! Ways through the network, and what becomes of packets that have none.

use super::{echo, exchange, lossy, noise, serve, two};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration as StdDuration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uktls_stack::clock::{Duration, Instant};
use uktls_stack::sim::link::{Knobs, Rate};
use uktls_stack::sim::schedule::{Change, Knob, Schedule};
use uktls_stack::sim::{self, FailureKind, Net, Runs, TcpStream, UdpSocket, Way, presets};

fn transfer(seed: u64, percent: u32) -> sim::Report {
    let net = Net::new(seed);
    let (client, server) = two(&net, lossy(percent));
    serve(&server, "0.0.0.0:7", echo);
    client.spawn(async move {
        let bytes = noise(1, 300_000);
        let stream = TcpStream::connect("server:7").await.expect("connected");
        assert_eq!(exchange(stream, bytes.clone()).await, bytes);
    });
    net.run()
}

#[test]
fn the_same_seed_is_the_same_run_and_another_is_another() {
    let first = transfer(7, 2);
    let again = transfer(7, 2);
    assert_eq!(first, again);
    assert!(first.totals.retransmitted > 0, "nothing was lost");
    assert_ne!(first.hash, transfer(8, 2).hash);
}

#[test]
fn a_run_that_records_what_the_dice_did_can_be_replayed() {
    let first = transfer(7, 2);
    let net = Net::new(7);
    net.replay(&first.schedule);
    let (client, server) = two(&net, lossy(2));
    serve(&server, "0.0.0.0:7", echo);
    client.spawn(async move {
        let bytes = noise(1, 300_000);
        let stream = TcpStream::connect("server:7").await.expect("connected");
        assert_eq!(exchange(stream, bytes.clone()).await, bytes);
    });
    assert_eq!(net.run().hash, first.hash);
}

#[test]
fn every_seed_can_be_run_twice_and_compared() {
    Runs::from_env()
        .seeds(1, 5)
        .check_determinism(true)
        .run(|net| {
            let (client, server) = two(net, lossy(3));
            serve(&server, "0.0.0.0:7", echo);
            client.spawn(async move {
                let stream = TcpStream::connect("server:7").await.expect("connected");
                exchange(stream, noise(1, 50_000)).await;
            });
        });
}

#[test]
fn what_differs_between_two_runs_is_named() {
    let runs = Cell::new(0u8);
    let failure = Runs::from_env()
        .seeds(1, 1)
        .check_determinism(true)
        .try_run(|net| {
            let (client, server) = two(net, lossy(0));
            serve(&server, "0.0.0.0:7", echo);
            // What real randomness in a program would do.
            runs.set(runs.get() + 1);
            let byte = runs.get();
            client.spawn(async move {
                let mut stream = TcpStream::connect("server:7").await.expect("connected");
                stream.write_all(&[byte]).await.expect("written");
                stream.read_exact(&mut [0]).await.expect("echoed");
            });
        })
        .expect_err("the runs differ");
    assert_eq!(failure.kind, FailureKind::Nondeterminism);
    let detail: Vec<&str> = failure.detail.lines().collect();
    // The connection's first byte is the first that differs, and both packets are shown decoded.
    for run in ["first run: ", "second run: "] {
        let line = detail.iter().find_map(|line| line.trim().strip_prefix(run));
        let line = line.unwrap_or_else(|| panic!("no {run:?} in\n{failure}"));
        assert!(
            line.contains(" client→server TCP ") && line.contains(" len 1"),
            "{line}"
        );
    }
}

#[test]
fn a_test_that_fails_every_other_time_is_said_to_differ() {
    let runs = Cell::new(0u8);
    let differing = |fails: u8| {
        runs.set(0);
        let runs = &runs;
        Runs::from_env()
            .seeds(1, 1)
            .check_determinism(true)
            .try_run(move |net| {
                let (client, server) = two(net, lossy(0));
                serve(&server, "0.0.0.0:7", echo);
                runs.set(runs.get() + 1);
                let flaky = fails & runs.get() != 0;
                client.spawn(async move {
                    let stream = TcpStream::connect("server:7").await.expect("connected");
                    assert!(!flaky, "bad luck");
                    exchange(stream, noise(1, 1_000)).await;
                });
            })
            .expect_err("at least one of them fails")
            .kind
    };
    assert_eq!(differing(1), FailureKind::Nondeterminism);
    // Twice the same failure is that failure.
    assert!(matches!(differing(3), FailureKind::Panic(_)));
}

#[test]
fn names_resolve_and_routers_pass_packets_on_by_the_longest_prefix() {
    let net = Net::new(1);
    let wire = || Knobs {
        delay: Duration::from_millis(5),
        ..Knobs::default()
    };
    let client = net.host("client", ["10.1.0.1", "fd01::1"]);
    let server = net.host("server", ["10.2.0.1", "fd02::1"]);
    let near = net.router("near", ["10.1.0.254", "fd01::fe"]);
    let far = net.router("far", ["10.2.0.254", "fd02::fe"]);
    let detour = net.router("detour", "10.3.0.254");
    let switch = net.switch("switch");
    net.link(&client, &switch, wire());
    net.link(&switch, &near, wire());
    net.link(&near, &far, wire());
    net.link(&near, &detour, wire());
    net.link(&detour, &far, wire());
    net.link(&far, &server, wire());
    // IPv4 there goes round; everything else takes the short way.
    near.route("10.2.0.0/16", &detour);
    serve(&server, "0.0.0.0:7", echo);
    serve(&server, "[::]:7", echo);
    let timing = client.spawn(async {
        let mut taken = Vec::new();
        for address in ["10.2.0.1:7", "[fd02::1]:7", "server:7"] {
            let start = sim::now();
            let stream = TcpStream::connect(address).await.expect("connected");
            taken.push(sim::now() - start);
            exchange(stream, noise(2, 20_000)).await;
        }
        taken
    });
    net.run();
    let ms = StdDuration::from_millis;
    assert_eq!(timing.try_take().expect("ended"), [ms(45), ms(40), ms(45)]);
}

#[test]
fn a_route_in_circles_ends_with_the_hop_limit() {
    let net = Net::new(1);
    let client = net.host("client", "10.1.0.1");
    let (a, b) = (net.router("a", "10.1.0.254"), net.router("b", "10.2.0.254"));
    let nobody = net.host("nobody", "10.9.0.1");
    net.link(&client, &a, Knobs::default());
    let between = net.link(&a, &b, Knobs::default());
    net.link(&b, &nobody, Knobs::default());
    b.route("10.9.0.0/16", &a);
    client.spawn(async {
        let socket = UdpSocket::bind("0.0.0.0:0").await.expect("bound");
        socket.send_to(b"round", "nobody:9").await.expect("sent");
        sim::sleep(Duration::from_secs(1)).await;
    });
    net.run();
    let passed = between.counters(Way::There).offered + between.counters(Way::Back).offered;
    assert!((60..70).contains(&passed), "{passed} hops");
}

#[test]
fn a_smaller_mtu_on_the_way_is_found_out() {
    let net = Net::new(1);
    let (client, server) = (
        net.host("client", "10.1.0.1"),
        net.host("server", "10.2.0.1"),
    );
    let router = net.router("router", "10.1.0.254");
    net.link(&client, &router, lossy(0));
    net.link(
        &router,
        &server,
        Knobs {
            mtu: 1280,
            ..lossy(0)
        },
    );
    serve(&server, "0.0.0.0:7", echo);
    client.spawn(async {
        let bytes = noise(3, 200_000);
        let stream = TcpStream::connect("server:7").await.expect("connected");
        assert_eq!(exchange(stream, bytes.clone()).await, bytes);
    });
    let report = net.run();
    assert!(report.ended < Instant::from_secs(3), "{}", report.ended);
}

#[test]
fn a_router_answers_pings_and_cuts_what_may_be_cut() {
    let net = Net::new(1);
    let pinger = net.raw_host("pinger", "10.1.0.9");
    let client = net.host("client", "10.1.0.1");
    let server = net.host("server", "10.2.0.1");
    let router = net.router("router", "10.1.0.254");
    let narrow = Knobs {
        mtu: 700,
        ..lossy(0)
    };
    net.link(&pinger, &router, lossy(0));
    net.link(&client, &router, lossy(0));
    net.link(&router, &server, narrow);
    let own = pinger.clone();
    pinger.spawn(async move {
        let mut ping = [
            // IPv4, 28 bytes, 64 hops, ICMP
            0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 1, 0, 9, 10, 1, 0, 254,
            // echo request 0x1234, number 1; the checksum makes the words' sum 0xffff
            8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1,
        ];
        let sum: u32 = ping[..20]
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
            .sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        ping[10..12].copy_from_slice(&sum.to_be_bytes());
        own.send(&ping);
        let answer = own.recv().await;
        assert_eq!(answer[12..16], [10, 1, 0, 254]);
        assert_eq!(answer[20..], [0, 0, 0xed, 0xca, 0x12, 0x34, 0, 1]);
    });
    let (sent, file) = (noise(4, 5000), noise(4, 5000));
    server.spawn(async move {
        let socket = UdpSocket::bind("0.0.0.0:9").await.expect("bound");
        let mut buffer = vec![0; 9000];
        let len = socket.recv(&mut buffer).await.expect("the first datagram");
        assert!(buffer[..len] == file);
    });
    client.spawn(async move {
        let socket = UdpSocket::bind("0.0.0.0:0").await.expect("bound");
        socket.send_to(&sent, "server:9").await.expect("sent");
    });
    net.run();
}

#[test]
fn a_way_that_swallows_what_is_too_large_is_found_out_by_any_segment() {
    for bytes in [1_000, 100_000] {
        let net = Net::new(1);
        let client = net.host("client", "10.0.0.1");
        let server = net.host("server", "10.0.0.2");
        let switch = net.switch("switch");
        net.link(&client, &switch, lossy(0));
        net.link(
            &switch,
            &server,
            Knobs {
                mtu: 700,
                ..lossy(0)
            },
        );
        serve(&server, "0.0.0.0:7", echo);
        client.spawn(async move {
            let stream = TcpStream::connect("server:7").await.expect("connected");
            let bytes = noise(3, bytes);
            assert_eq!(exchange(stream, bytes.clone()).await, bytes);
        });
        let report = net.run();
        assert!(report.ended < Instant::from_secs(10), "{}", report.ended);
    }
}

#[test]
fn a_partition_stops_everything_or_one_way_until_it_heals() {
    let net = Net::new(1);
    let (client, server) = two(&net, lossy(0));
    let arrived = Rc::new(Cell::new(0));
    let counted = arrived.clone();
    serve(&server, "0.0.0.0:7", move |mut stream| {
        let arrived = counted.clone();
        async move {
            let mut question = [0; 2];
            while stream.read_exact(&mut question).await.is_ok() {
                arrived.set(arrived.get() + 1);
                stream.write_all(&question).await.expect("queued");
            }
        }
    });
    let (handle, a, b) = (net.clone(), client.clone(), server.clone());
    client.spawn(async move {
        let mut stream = TcpStream::connect("server:7").await.expect("connected");
        let mut answer = [0; 2];
        for (one_way, meanwhile, afterwards) in [(true, 1, 1), (false, 1, 2)] {
            if one_way {
                handle.partition_one_way(&b, &a);
            } else {
                handle.partition(&a, &b);
            }
            stream.write_all(b"hi").await.expect("queued");
            let waited = sim::timeout(Duration::from_secs(5), stream.read_exact(&mut answer)).await;
            assert!(waited.is_err(), "a partition let something through");
            // The other way stays open.
            assert_eq!(arrived.get(), meanwhile, "one way: {one_way}");
            handle.heal();
            stream.read_exact(&mut answer).await.expect("healed");
            assert_eq!(arrived.get(), afterwards);
        }
    });
    net.run();
}

#[test]
fn changes_of_a_schedule_come_at_their_times() {
    let net = Net::new(1);
    net.schedule(
        &Schedule::new()
            .at(
                Instant::from_secs(1),
                Change::Knob(
                    "client>server".into(),
                    Knob::Delay(Duration::from_millis(100)),
                ),
            )
            .at(Instant::from_secs(2), Change::Crash("server".into()))
            .at(Instant::from_secs(3), Change::Restart("server".into())),
    );
    let (client, server) = two(&net, lossy(0));
    serve(&server, "0.0.0.0:7", echo);
    client.spawn(async {
        let ask = async || {
            let start = sim::now();
            let stream = TcpStream::connect("server:7").await.expect("connected");
            let taken = sim::now() - start;
            exchange(stream, vec![1]).await;
            taken
        };
        assert!(ask().await < Duration::from_millis(25));
        sim::sleep_until(Instant::from_millis(1500)).await;
        assert!(ask().await > Duration::from_millis(100));
        sim::sleep_until(Instant::from_millis(2500)).await;
        // The SYN is sent again until somebody listens.
        ask().await;
        assert!(sim::now() > Instant::from_secs(3));
    });
    net.run();
}

#[test]
fn a_host_that_crashed_knows_nothing_of_its_connections() {
    let net = Net::new(1);
    let (client, server) = two(&net, lossy(0));
    serve(&server, "0.0.0.0:7", echo);
    let held = server.clone();
    client.spawn(async move {
        let mut stream = TcpStream::connect("server:7").await.expect("connected");
        stream.write_all(b"one").await.expect("written");
        stream.read_exact(&mut [0; 3]).await.expect("echoed");
        held.crash();
        sim::sleep(Duration::from_secs(1)).await;
        held.restart();
        stream.write_all(b"two").await.expect("queued");
        let error = stream.read_exact(&mut [0; 3]).await.expect_err("gone");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        // The program runs again.
        let stream = TcpStream::connect("server:7").await.expect("connected");
        exchange(stream, vec![7; 10]).await;
    });
    net.run();
}

#[test]
fn a_link_that_is_down_takes_nothing_and_presets_carry() {
    let net = Net::new(1);
    let client = net.host("client", "10.0.0.1");
    let server = net.host("server", "10.0.0.2");
    let link = net.link(&client, &server, presets::umts());
    serve(&server, "0.0.0.0:7", echo);
    client.spawn(async move {
        let mut stream = TcpStream::connect("server:7").await.expect("connected");
        link.down();
        stream.write_all(b"late").await.expect("queued");
        sim::sleep(Duration::from_secs(2)).await;
        link.up();
        link.turn(Way::There, |knobs| knobs.rate = Rate::mbit(1));
        stream.read_exact(&mut [0; 4]).await.expect("came back");
    });
    let report = net.run();
    assert!(report.totals.retransmitted > 0);
}

#[test]
fn a_queue_that_marks_slows_a_sender_down_without_a_loss() {
    let net = Net::new(1);
    let client = net.host("client", "10.0.0.1");
    let server = net.host("server", "10.0.0.2");
    for host in [&client, &server] {
        host.configure(|config| config.tcp.ecn = true);
    }
    let marking = Knobs {
        ecn_threshold: Some(20),
        ..lossy(0)
    };
    let link = net.link(&client, &server, marking);
    serve(&server, "0.0.0.0:7", echo);
    client.spawn(async {
        let bytes = noise(3, 2_000_000);
        let stream = TcpStream::connect("server:7").await.expect("connected");
        assert!(exchange(stream, bytes.clone()).await == bytes);
    });
    let report = net.run();
    let counters = link.counters(Way::There);
    assert!(counters.marked > 0, "{counters:?}");
    assert_eq!(counters.overflowed, 0, "{counters:?}");
    assert_eq!(report.totals.retransmitted, 0, "{report}");
}
