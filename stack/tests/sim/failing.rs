//! What a failing run says.

use super::{echo, exchange, lossy, noise, serve, two};
use tokio::io::AsyncReadExt;
use uktls_stack::clock::Duration;
use uktls_stack::sim::{self, Failure, FailureKind, Net, Runs, TcpListener, TcpStream, UdpSocket};

#[test]
fn a_deadlock_says_who_waits_on_what() {
    let net = Net::new(1);
    let (client, server) = two(&net, lossy(0));
    server.spawn(async {
        let listener = TcpListener::bind("0.0.0.0:7").await.expect("bound");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_exact(&mut [0; 1]).await.expect("never");
    });
    client.spawn(async {
        let mut stream = TcpStream::connect("server:7").await.expect("connected");
        stream.read_exact(&mut [0; 1]).await.expect("never");
    });
    let failure = net.try_run().expect_err("both wait");
    assert_eq!(failure.kind, FailureKind::Deadlock);
    let text = failure.to_string();
    for part in [
        "task 0 on host \"server\" waits for bytes on 10.0.0.2:7 from 10.0.0.1:",
        "task 1 on host \"client\" waits for bytes on 10.0.0.1:",
        "simulation with seed 1, at ",
        ": a deadlock: tasks wait, and nothing will happen",
        "UKTLS_SEED=1 cargo test -p uktls-stack -- --exact failing::a_deadlock_says_who_waits_on_what",
        "the last packets and events:",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn every_kind_of_waiting_is_named() {
    let says = |failure: &Failure, parts: &[&str]| {
        for part in parts {
            assert!(
                failure.detail.contains(part),
                "{part:?} is missing in:\n{failure}"
            );
        }
    };
    // Without anything that time alone would end, these are a deadlock.
    let net = Net::new(1);
    let host = net.host("host", "10.0.0.1");
    let raw = net.raw_host("raw", "10.0.0.2");
    net.link(&host, &raw, lossy(0));
    host.spawn(async {
        let listener = TcpListener::bind("10.0.0.1:7").await.expect("bound");
        let _ = listener.accept().await;
    });
    host.spawn(async {
        let waiter = sim::spawn(async {
            let socket = UdpSocket::bind("10.0.0.1:9").await.expect("bound");
            let _ = socket.recv(&mut [0; 1]).await;
        });
        waiter.await.expect("never");
    });
    let own = raw.clone();
    raw.spawn(async move {
        own.recv().await;
    });
    let failure = net.try_run().expect_err("all of them wait");
    assert_eq!(failure.kind, FailureKind::Deadlock);
    says(
        &failure,
        &[
            "on host \"host\" waits for a connection on the listener 10.0.0.1:7",
            "on host \"host\" waits for a datagram on 10.0.0.1:9",
            "on host \"raw\" waits for a packet",
            " to end",
        ],
    );

    // A peer that reads nothing, and one that is silent.
    let net = Net::new(1);
    let (client, server) = two(&net, lossy(0));
    let silent = net.raw_host("silent", "10.0.0.3");
    net.link(&client, &silent, lossy(0));
    serve(&server, "0.0.0.0:7", async |_stream| {
        sim::sleep(Duration::from_secs(3600)).await;
    });
    client.spawn(async {
        let stream = TcpStream::connect("server:7").await.expect("connected");
        let _ = stream.send_all(&noise(1, 4 << 20)).await;
    });
    client.spawn(async {
        let stream = TcpStream::connect("server:7").await.expect("connected");
        let _ = stream.sendfile(noise(1, 4 << 20)).await;
    });
    client.spawn(async {
        let _ = TcpStream::connect("silent:7").await;
    });
    let failure = net
        .try_run_within(Duration::from_secs(10))
        .expect_err("all of them wait");
    assert_eq!(failure.kind, FailureKind::TimeLimit);
    says(
        &failure,
        &[
            "waits for room to write on 10.0.0.1:",
            "waits for a sendfile on 10.0.0.1:",
            "waits for a connection to 10.0.0.3:7 to stand",
        ],
    );
}

#[test]
fn a_panic_ends_the_run_with_time_place_and_packets() {
    let failure = Runs::from_env()
        .only(42, 3)
        .try_run(|net| {
            let (client, server) = two(net, lossy(0));
            serve(&server, "0.0.0.0:7", echo);
            let seed = net.seed();
            client.spawn(async move {
                let stream = TcpStream::connect("server:7").await.expect("connected");
                exchange(stream, noise(1, 1000)).await;
                sim::sleep(Duration::from_secs(5)).await;
                assert_ne!(seed, 43, "the planted bug");
            });
        })
        .expect_err("seed 43 panics");
    assert_eq!(failure.seed, 43);
    assert!(failure.detail.contains("the planted bug"), "{failure}");
    let FailureKind::Panic(place) = &failure.kind else {
        panic!("not a panic but {:?}", failure.kind);
    };
    assert!(place.contains("failing.rs"), "{place}");
    assert!(failure.at.as_millis() >= 5000);
    assert!(failure.last.len() > 5, "{failure}");
}

/// A timer that fired leaves its place to another, and must not be mistaken for it.
#[test]
fn tasks_that_sleep_until_the_same_time_all_wake() {
    let net = Net::new(1);
    let (client, _) = two(&net, lossy(0));
    for _ in 0..5 {
        client.spawn(async {
            for _ in 0..10 {
                sim::sleep(Duration::from_millis(1)).await;
            }
        });
    }
    assert_eq!(net.run().ended.as_millis(), 10);
}

#[test]
fn a_clock_that_stands_still_and_one_that_runs_on_are_both_noticed() {
    let net = Net::new(1);
    let (client, _) = two(&net, lossy(0));
    client.spawn(async {
        loop {
            sim::spawn(async {}).await.expect("it ends");
        }
    });
    let failure = net.try_run().expect_err("it never ends");
    assert_eq!(failure.kind, FailureKind::Livelock);

    let net = Net::new(1);
    let (client, _) = two(&net, lossy(0));
    client.spawn(async {
        loop {
            sim::sleep(Duration::from_secs(60)).await;
        }
    });
    let failure = net
        .try_run_within(Duration::from_secs(3600))
        .expect_err("it never ends");
    assert_eq!(failure.kind, FailureKind::TimeLimit);
    assert!(failure.detail.contains("waits for the time"), "{failure}");
}

#[test]
fn a_failing_schedule_shrinks_to_what_matters() {
    // A "bug" that shows when a certain packet is lost: the connection takes more than half a second.
    let failure = Runs::from_env()
        .only(1, 50)
        .shrink(true)
        .try_run(|net| {
            let (client, server) = two(net, lossy(4));
            serve(&server, "0.0.0.0:7", echo);
            client.spawn(async {
                let start = sim::now();
                TcpStream::connect("server:7").await.expect("connected");
                assert!(sim::now() - start < Duration::from_millis(500), "slow");
            });
        })
        .expect_err("a SYN is lost in one of them");
    let shrunk = failure.shrunk.as_ref().expect("it was asked for");
    assert_eq!(shrunk.events().len(), 1, "{shrunk}");
    // The pasted schedule fails again.
    let net = Net::new(failure.seed);
    net.replay(shrunk);
    let (client, server) = two(&net, lossy(4));
    serve(&server, "0.0.0.0:7", echo);
    client.spawn(async {
        let start = sim::now();
        TcpStream::connect("server:7").await.expect("connected");
        assert!(sim::now() - start < Duration::from_millis(500), "slow");
    });
    assert!(net.try_run().is_err());
}
