//! TCP and UDP sockets as programs see them.

use super::{echo, exchange, lossy, noise, serve, two};
use std::io::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uktls_stack::clock::{Duration, Instant};
use uktls_stack::handle::SocketOptions;
use uktls_stack::sim::link::{Knobs, Rate};
use uktls_stack::sim::{self, Net, TcpListener, TcpStream, UdpSocket};
use uktls_stack::socket_info::Reason;

#[test]
fn a_refused_connection_says_so_and_one_to_nobody_times_out() {
    let net = Net::new(1);
    let (client, _server) = two(&net, lossy(0));
    client.spawn(async {
        let error = TcpStream::connect("server:7")
            .await
            .expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let error = TcpStream::connect("10.0.0.77:7")
            .await
            .expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let error = TcpStream::connect("nowhere:7")
            .await
            .expect_err("no such name");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    });
    let report = net.run();
    assert!(
        report.ended > Instant::from_secs(60),
        "SYNs were not sent again"
    );
}

#[test]
fn a_host_reaches_itself() {
    let net = Net::new(1);
    let alone = net.host("alone", "10.0.0.1");
    serve(&alone, "0.0.0.0:7", echo);
    alone.spawn(async {
        let stream = TcpStream::connect("alone:7").await.expect("connected");
        let bytes = noise(1, 1_000_000);
        assert_eq!(exchange(stream, bytes.clone()).await, bytes);
    });
    net.run();
}

#[test]
fn a_reader_that_waits_holds_the_writer_back() {
    let net = Net::new(1);
    let (client, server) = two(&net, lossy(0));
    server.spawn(async {
        let options = SocketOptions {
            receive_buffer: 64 * 1024,
            ..SocketOptions::default()
        };
        let listener = TcpListener::bind_with("0.0.0.0:7", 1, options)
            .await
            .expect("bound");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        sim::sleep(Duration::from_secs(100)).await;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("read");
        assert_eq!(all, noise(1, 3_000_000));
    });
    client.spawn(async {
        let mut stream = TcpStream::connect("server:7").await.expect("connected");
        stream
            .write_all(&noise(1, 3_000_000))
            .await
            .expect("written");
        assert!(sim::now() > Instant::from_secs(100), "nobody held it back");
        stream.shutdown().await.expect("shut");
    });
    net.run();
}

#[test]
fn both_ends_learn_how_it_ended() {
    let net = Net::new(1);
    let (client, server) = two(&net, lossy(0));
    server.spawn(async {
        let listener = TcpListener::bind("0.0.0.0:7").await.expect("bound");
        let (mut clean, _) = listener.accept().await.expect("the first");
        assert_eq!(clean.read(&mut [0; 9]).await.expect("the end"), 0);
        assert_eq!(clean.reason(), Reason::CleanEnd);
        drop(clean);
        let (mut torn, _) = listener.accept().await.expect("the second");
        let error = torn.read(&mut [0; 9]).await.expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(torn.reason(), Reason::Reset);
    });
    client.spawn(async {
        let mut first = TcpStream::connect("server:7").await.expect("connected");
        first.shutdown().await.expect("shut");
        assert_eq!(first.read(&mut [0; 9]).await.expect("the end"), 0);
        drop(first);
        let second = TcpStream::connect("server:7").await.expect("connected");
        sim::sleep(Duration::from_secs(1)).await;
        second.abort();
    });
    net.run();
}

#[test]
fn datagrams_come_whole_even_those_larger_than_the_mtu() {
    let net = Net::new(1);
    let client = net.host("client", ["10.0.0.1", "fd00::1"]);
    let server = net.host("server", ["10.0.0.2", "fd00::2"]);
    net.link(&client, &server, lossy(0));
    for bound in ["0.0.0.0:53", "[::]:53"] {
        server.spawn_background(async move {
            let socket = UdpSocket::bind(bound).await.expect("bound");
            let mut buffer = vec![0; 65_536];
            loop {
                let (n, from) = socket.recv_from(&mut buffer).await.expect("a datagram");
                socket.send_to(&buffer[..n], from).await.expect("sent back");
            }
        });
    }
    client.spawn(async {
        for (local, remote) in [("0.0.0.0:0", "10.0.0.2:53"), ("[::]:0", "[fd00::2]:53")] {
            let socket = UdpSocket::bind(local).await.expect("bound");
            socket.connect(remote).await.expect("connected");
            for len in [0, 1, 1400, 1473, 9000, 60_000] {
                let bytes = noise(len as u64, len);
                socket.send(&bytes).await.expect("sent");
                let mut buffer = vec![0; 65_536];
                let n = socket.recv(&mut buffer).await.expect("it comes back");
                assert_eq!(buffer[..n], bytes);
            }
            let error = socket.send(&vec![0; 65_508]).await.expect_err("too long");
            assert_eq!(error.raw_os_error(), Some(90)); // EMSGSIZE
        }
    });
    net.run();
}

#[test]
fn what_nobody_has_read_yet_is_checked_however_much_it_is() {
    let net = Net::new(1);
    let fast = Knobs {
        delay: Duration::from_millis(1),
        ..Knobs::default()
    };
    let (client, server) = two(&net, fast);
    const LEN: usize = 65 << 20;
    server.spawn(async {
        let listener = TcpListener::bind("0.0.0.0:7").await.expect("bound");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        sim::sleep(Duration::from_secs(1)).await;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.expect("read");
        assert_eq!(all.len(), LEN);
    });
    client.spawn(async {
        let stream = TcpStream::connect("server:7").await.expect("connected");
        stream.sendfile(vec![7; LEN]).await.expect("sent");
    });
    let report = net.run();
    let stream = report.streams.iter().find(|it| it.counts.handed_in > 0);
    assert_eq!(stream.expect("one carries bytes").inside, Some(0));
}

#[test]
fn ports_are_reserved_and_come_back() {
    let net = Net::new(1);
    let (client, _) = two(&net, lossy(0));
    client.spawn(async {
        for _ in 0..2 {
            let listener = TcpListener::bind("0.0.0.0:80").await.expect("bound");
            let error = TcpListener::bind("10.0.0.1:80").await.expect_err("taken");
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
            let socket = UdpSocket::bind("0.0.0.0:80").await.expect("its own ports");
            drop((listener, socket));
            sim::sleep(Duration::from_millis(1)).await;
        }
        let error = TcpListener::bind("10.0.0.2:80")
            .await
            .expect_err("not ours");
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    });
    net.run();
}

#[test]
fn a_rate_is_kept_and_idle_time_costs_nothing() {
    let net = Net::new(1);
    let (client, server) = two(
        &net,
        Knobs {
            rate: Rate::mbit(8),
            limit: 100,
            delay: Duration::from_millis(1),
            ..Knobs::default()
        },
    );
    serve(&server, "0.0.0.0:7", echo);
    client.spawn(async {
        let stream = TcpStream::connect("server:7").await.expect("connected");
        let start = sim::now();
        exchange(stream, noise(1, 2_000_000)).await;
        // 2 MB at 1 MB/s, there and back at the same time, headers and acknowledgements on top.
        let taken = sim::now() - start;
        assert!(taken > Duration::from_millis(2000), "{taken:?}");
        assert!(taken < Duration::from_millis(2700), "{taken:?}");
        sim::sleep(Duration::from_secs(3600)).await;
    });
    let report = net.run();
    assert!(report.ended > Instant::from_secs(3600));
}
