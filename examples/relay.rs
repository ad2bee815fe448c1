//! A relay, as HAProxy and OpenConnect are: what one peer sends is opened here, and sealed again there, for another peer under
//! other keys and maybe another protocol. `relay dtls:10.77.0.1:4433 tls:10.77.0.1:4434` sits between a DTLS 1.2 and a TLS 1.2
//! server, as a client of both, and gives each what the other says.
//!
//! No plaintext passes through this program: `splice_to` moves it from one AF_KTLS socket into a pipe, `splice_from` from the pipe
//! into the other. It ends when one of the two closes, and says so to the other.
//!
//! The stack is one that `uktls run` brings up.

#![expect(
    clippy::disallowed_methods,
    reason = "a client of a daemon, in real time"
)]

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;
use uktls::client::af_ktls::KtlsSocket;
use uktls::handshake::openssl::{Session, TlsSession, close, context, tls_context};
use uktls::{Daemon, TcpStream, UdpSocket};

/// How long a peer has to shake hands.
const LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked whether a DTLS peer has closed: its alert comes on the UDP socket.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes moved at once, at most: the plaintext of a record.
const RECORD: usize = 1 << 14;

fn main() -> Result<(), Box<dyn Error>> {
    let [left, right] = [1, 2].map(|at| std::env::args().nth(at));
    let usage = "usage: relay dtls:ADDRESS:PORT|tls:ADDRESS:PORT  dtls:…|tls:…";
    let mut left = Peer::connect(&left.ok_or(usage)?)?;
    let mut right = Peer::connect(&right.ok_or(usage)?)?;
    println!("relaying");

    let (done, ended) = mpsc::channel();
    let ways = [(&left, &right, "left"), (&right, &left, "right")];
    for (from, to, name) in ways {
        let (from, to, done) = (from.ktls.clone(), to.ktls.clone(), done.clone());
        thread::spawn(move || {
            let why = copy(&from, &to);
            let _ = done.send(format!("{name} ended: {why}"));
        });
    }
    let why = loop {
        match ended.recv_timeout(LOOK) {
            Ok(why) => break why,
            Err(_) if left.has_closed()? => break "left closed".to_owned(),
            Err(_) if right.has_closed()? => break "right closed".to_owned(),
            Err(_) => {}
        }
    };
    println!("{why}");
    close(&left.ktls)?;
    close(&right.ktls)?;
    Ok(())
}

/// Moves records until there are none; gives why.
fn copy(from: &KtlsSocket, to: &KtlsSocket) -> io::Error {
    let copy = || -> io::Result<()> {
        let (reader, writer) = io::pipe()?;
        loop {
            let mut left = from.splice_to(&writer, RECORD)?;
            if left == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            while left > 0 {
                left -= to.splice_from(&reader, left)?;
            }
        }
    };
    copy()
        .err()
        .unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// A server that hands were shaken with.
struct Peer {
    ktls: Arc<KtlsSocket>,
    /// Of DTLS: where its alerts are understood.
    session: Option<Session>,
}

impl Peer {
    fn connect(name: &str) -> Result<Peer, Box<dyn Error>> {
        let (protocol, address) = name.split_once(':').ok_or("dtls:… or tls:…")?;
        let address: SocketAddr = address.parse()?;
        let (ktls, session) = match protocol {
            "tls" => {
                let tcp = TcpStream::connect(address)?;
                let session = TlsSession::connect(&tcp, tls_context()?, "localhost", LIMIT)?;
                (session.bind(&tcp)?, None)
            }
            "dtls" => {
                let any = "0.0.0.0:0".parse()?;
                let udp = UdpSocket::bind_on(&Daemon::default(), any, None)?;
                udp.connect(address)?;
                let session = Session::connect(&udp, context()?, "localhost", LIMIT)?;
                (session.bind(&udp)?, Some(session))
            }
            other => return Err(format!("{other} is neither dtls nor tls").into()),
        };
        let ktls = Arc::new(ktls);
        Ok(Peer { ktls, session })
    }

    /// Whether a DTLS peer has said close_notify. (At a TLS peer's, reading stops.)
    fn has_closed(&mut self) -> io::Result<bool> {
        self.session
            .as_mut()
            .map_or(Ok(false), Session::peer_closed)
    }
}
