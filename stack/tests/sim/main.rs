//! The simulator itself: that it repeats, that it differs, and that what it shows of failures is what a person needs.

mod dtls;
mod environment;
mod failing;
mod network;
mod recording;
mod shrinking;
mod sockets;
mod tls;

use std::future::Future;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uktls_stack::clock::Duration;
use uktls_stack::sim::link::{Knobs, Loss, Rate};
use uktls_stack::sim::random::{Chance, Stream};
use uktls_stack::sim::{self, Host, Net, TcpListener, TcpStream};

/// Bytes that only this seed gives.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Stream::new(seed, "test", "noise").fill(&mut bytes);
    bytes
}

/// A link of 50 Mbit/s, 10 ms each way, that loses so much.
pub fn lossy(percent: u32) -> Knobs {
    Knobs {
        rate: Rate::mbit(50),
        delay: Duration::from_millis(10),
        loss: Loss::random(Chance::percent(percent)),
        ..Knobs::default()
    }
}

/// Two hosts on a link.
pub fn two(net: &Net, knobs: Knobs) -> (Host, Host) {
    let client = net.host("client", "10.0.0.1");
    let server = net.host("server", "10.0.0.2");
    net.link(&client, &server, knobs);
    (client, server)
}

/// Serves every connection on an address with the same program, which must not fail.
pub fn serve<F>(
    host: &Host,
    address: &'static str,
    serve: impl Fn(TcpStream) -> F + Clone + 'static,
) where
    F: Future<Output = ()> + 'static,
{
    host.program(move || {
        let serve = serve.clone();
        async move {
            let listener = TcpListener::bind(address).await.expect("a port");
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                sim::spawn_background(serve(stream));
            }
        }
    });
}

/// Sends everything back.
pub async fn echo(stream: TcpStream) {
    let (mut read, mut write) = tokio::io::split(stream);
    tokio::io::copy(&mut read, &mut write)
        .await
        .expect("copied");
    write.shutdown().await.expect("shut");
}

/// Writes all of it and shuts, while reading until the end.
pub async fn exchange(stream: TcpStream, bytes: Vec<u8>) -> Vec<u8> {
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
