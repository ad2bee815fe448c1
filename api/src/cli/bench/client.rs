//! The one client of all servers: shakes hands with OpenSSL, asks for the file, and throws the answer away unread.
//!
//! `recv` with MSG_TRUNC on a TCP socket lets the kernel discard bytes without copying them (tcp(7)), so what is measured is
//! the server and the path, not a client's decryption; the client takes part in every figure the same way. Bytes are counted on
//! the wire: that there are at least as many as the file has, up to the server's close, is what shows that all of it came.

use super::super::{Context, Failure, Outcome};
use super::s_client;
use rustix::net::RecvFlags;
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uktls::handshake::rustls::{Choice, Trust, client_config};
use uktls::{CipherSuite, ProtocolVersion};

/// A server that is silent for this long has failed.
pub(super) const SILENCE: Duration = Duration::from_secs(15);

/// How much may be discarded by one call. The buffer is never touched.
const DISCARD: usize = 4 << 20;

/// Ask a server for a file and throw it away (the client of the benchmarks).
#[derive(Debug, clap::Args)]
pub(crate) struct DrainArgs {
    /// The server
    #[arg(long)]
    connect: SocketAddr,
    /// Bytes of the file
    #[arg(long)]
    bytes: u64,
    /// No TLS: one line asks, everything until the close is the answer
    #[arg(long)]
    plain: bool,
}

/// What the client saw, one line of JSON on its stdout.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drained {
    /// From the request to the last byte.
    pub(crate) seconds: f64,
    /// Received after the handshake.
    pub(crate) wire_bytes: u64,
}

/// Runs the client.
pub(crate) fn drain(args: DrainArgs) -> Outcome {
    let request = format!(
        "GET /{} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n",
        super::workload::FILE
    );
    let mut stream = connect(args.connect)?;
    let request = if args.plain {
        request.into_bytes()
    } else {
        s_client::sealed_request(&mut stream, request.as_bytes())?
    };
    let sent_at = Instant::now();
    stream
        .write_all(&request)
        .context(|| "cannot send the request".into())?;
    let (wire_bytes, last_at) = discard_all(&stream)?;
    if wire_bytes < args.bytes || wire_bytes > args.bytes + args.bytes / 20 + 65_536 {
        return Err(Failure::new(format_args!(
            "the server closed after {wire_bytes} bytes; the file alone has {}",
            args.bytes
        )));
    }
    print_json(&Drained {
        seconds: (last_at - sent_at).as_secs_f64(),
        wire_bytes,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Reads until the peer closes; how much came, and when the last of it.
fn discard_all(stream: &TcpStream) -> Result<(u64, Instant), Failure> {
    let mut room = vec![0; DISCARD];
    let mut wire_bytes = 0;
    let mut last_at = Instant::now();
    loop {
        match rustix::net::recv(stream, &mut room[..], RecvFlags::TRUNC) {
            Ok((_, 0)) => return Ok((wire_bytes, last_at)),
            Ok((_, length)) => {
                wire_bytes += length as u64;
                last_at = Instant::now();
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                return Err(Failure::new(format_args!(
                    "the server is silent since {wire_bytes} bytes"
                )));
            }
            Err(errno) => {
                return Err(errno).context(|| format!("cannot receive after {wire_bytes} bytes"));
            }
        }
    }
}

fn connect(server: SocketAddr) -> Result<TcpStream, Failure> {
    let failed = || format!("cannot connect to {server}");
    let stream = TcpStream::connect_timeout(&server, SILENCE).context(failed)?;
    stream.set_read_timeout(Some(SILENCE)).context(failed)?;
    stream.set_write_timeout(Some(SILENCE)).context(failed)?;
    stream.set_nodelay(true).context(failed)?;
    Ok(stream)
}

/// TLS 1.2 with AES-128-GCM, whoever the server is, and no session to resume: every handshake is a whole one.
fn tls12_aes128_gcm() -> Result<Arc<ClientConfig>, Failure> {
    let choice = Choice {
        versions: vec![ProtocolVersion::Tls12],
        ciphers: vec![CipherSuite::Aes128Gcm],
    };
    let config = client_config(&Trust::Anybody, &choice, None).map_err(Failure::new)?;
    let mut config = Arc::unwrap_or_clone(config);
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Open many connections and hold them (the client of `bench idle`).
#[derive(Debug, clap::Args)]
pub(crate) struct HoldArgs {
    /// The server
    #[arg(long)]
    connect: SocketAddr,
    /// How many
    #[arg(long)]
    conns: usize,
}

/// Opens the connections, each with a whole handshake, one request and its answer; says `held N`; holds them until it is ended.
///
/// With rustls, in this process: a program for each of many thousand handshakes would take minutes, and what is measured is
/// the other side's memory.
pub(crate) fn hold(args: HoldArgs) -> Outcome {
    let config = tls12_aes128_gcm()?;
    let mut held = Vec::with_capacity(args.conns);
    let mut answer = [0; 4096];
    let mut said = Instant::now();
    for number in 1..=args.conns {
        let failed = || format!("connection {number} of {}", args.conns);
        let name = args.connect.ip().into();
        let connection = ClientConnection::new(Arc::clone(&config), name).context(failed)?;
        let mut tls = StreamOwned::new(connection, connect(args.connect)?);
        tls.write_all(b"HEAD / HTTP/1.1\r\nHost: bench\r\n\r\n")
            .context(failed)?;
        let length = tls.read(&mut answer).context(failed)?;
        if !answer[..length].starts_with(b"HTTP/1.1 ") {
            return Err(Failure::new("the server's answer is not HTTP")).context(failed);
        }
        // The TLS state goes, the connection stays: this side's memory is not what is measured.
        held.push(tls.sock);
        if said.elapsed() > Duration::from_secs(1) {
            said = Instant::now();
            println!("opened {number}");
        }
    }
    println!("held {}", held.len());
    // Until the supervisor ends this process.
    loop {
        std::thread::park();
    }
}

/// Prints one line of JSON.
fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).context(|| "cannot write JSON".into())?;
    writeln!(std::io::stdout(), "{text}").context(|| "cannot write to stdout".into())
}

/// Whether a TCP server accepts connections there.
pub(crate) fn accepts(server: SocketAddr) -> bool {
    TcpStream::connect_timeout(&server, Duration::from_millis(200)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// MSG_TRUNC on TCP is what every figure rests on: all bytes are counted, none is copied.
    #[test]
    fn the_kernel_discards_what_is_asked_to() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(&vec![0x5a; 3_000_000]).unwrap();
        });
        let stream = connect(address).unwrap();
        assert_eq!(discard_all(&stream).unwrap().0, 3_000_000);
        server.join().unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let receiver = listener.accept().unwrap().0;
        sender.write_all(&[0x5a; 100]).unwrap();
        let mut room = [7; 64];
        let (_, length) = rustix::net::recv(&receiver, &mut room[..], RecvFlags::TRUNC).unwrap();
        assert_eq!(length, 64);
        assert_eq!(room, [7; 64], "nothing is written to the buffer");
    }
}
