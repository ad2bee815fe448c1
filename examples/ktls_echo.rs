//! Lesson: TLS on the kTLS calls. An echo server on the stack does the handshake itself, with rustls, and then gives the keys
//! away: from `set_tls_tx` on, its writes are plaintext, and what leaves are records. A client on the kernel's TCP, with
//! OpenSSL, is in the same process for company.
//!
//! It needs a stack. `uktls run` brings one up around it:
//!
//! ```text
//! cargo build -p uktls-examples --examples
//! cargo run -- run -- target/debug/examples/ktls_echo
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "a daemon and its clients, in real time"
)]

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use std::error::Error;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use uktls::handshake::rustls::{Choice, Handshake, Identity, Progress, server_config};
use uktls::{TcpListener, TcpStream};

const ADDRESS: &str = "10.77.0.2:4433";

fn main() -> Result<(), Box<dyn Error>> {
    let address: SocketAddr = ADDRESS.parse()?;
    // A socket of the stack: `UKTLS_SOCKET` says which daemon.
    let listener = TcpListener::bind(address)?;
    let client = std::thread::spawn(move || client(address).map_err(|error| error.to_string()));

    let (mut stream, peer) = listener.accept()?;
    println!("server: {peer} is connected");

    // The handshake: plain bytes through the socket, to and from rustls.
    let identity = Identity::self_signed(vec!["localhost".into()])?;
    let config = server_config(identity, &Choice::default(), None)?;
    let mut handshake = Handshake::server(Arc::clone(&config))?;
    while handshake.step(&mut stream)? != Progress::Done {}
    let complete = handshake.complete()?;
    println!("server: handshake done, keys {:?}", complete.tx);

    // setsockopt(TCP_ULP, "tls"), setsockopt(TLS_TX), setsockopt(TLS_RX).
    stream.set_ulp_tls()?;
    stream.set_tls_tx(&complete.tx)?;
    stream.set_tls_rx(&complete.rx)?;

    // From here on the program sees plaintext only.
    let mut line = [0; 1024];
    let got = stream.read(&mut line)?;
    println!("server: read  {:?}", String::from_utf8_lossy(&line[..got]));
    line[..got].make_ascii_uppercase();
    stream.write_all(&line[..got])?;
    println!("server: wrote {:?}", String::from_utf8_lossy(&line[..got]));

    let echoed = client.join().map_err(|_| "the client panicked")??;
    println!("client: got   {echoed:?}");
    show(&stream)?;
    Ok(())
}

/// What the stack counted on this socket.
fn show(stream: &TcpStream) -> Result<(), Box<dyn Error>> {
    let stat = stream.stat()?;
    println!(
        "stack:  {} records sealed, {} opened; next record to send is number {}",
        stat.records_sent,
        stat.records_received,
        stream.tls_tx()?.rec_seq(),
    );
    Ok(())
}

/// OpenSSL on the kernel's TCP, which knows nothing of all this.
fn client(address: SocketAddr) -> Result<String, Box<dyn Error>> {
    let mut connector = SslConnector::builder(SslMethod::tls_client())?;
    // The certificate was made a moment ago; a lesson has nobody to vouch for it.
    connector.set_verify(SslVerifyMode::NONE);
    let socket = std::net::TcpStream::connect(address)?;
    let mut tls = connector.build().connect("localhost", socket)?;
    println!(
        "client: OpenSSL agreed on {} with {}",
        tls.ssl().version_str(),
        tls.ssl()
            .current_cipher()
            .map_or("?", |cipher| cipher.name())
    );
    tls.write_all(b"one line, in the clear to both programs")?;
    let mut answer = [0; 1024];
    let got = tls.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..got]).into_owned())
}
