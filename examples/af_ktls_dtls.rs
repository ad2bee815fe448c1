//! Lesson: AF_KTLS over UDP in forty lines. `af_ktls_dtls 10.77.0.1:4433` sends a message to a DTLS 1.2 server and prints its
//! answer: OpenSSL shakes hands, the stack seals and opens, a message is a record is a datagram. The server may be
//! `gnutls-serv --udp --echo`; the stack is one that `uktls run` brings up. (`dtls_ktls` brings a server of its own.)

use std::error::Error;
use std::time::Duration;
use uktls::client::af_ktls::{AF_KTLS, KTLS_GET_IV_SEND, KtlsFlags};
use uktls::handshake::openssl::{Session, close, context};
use uktls::{Daemon, UdpSocket};

fn main() -> Result<(), Box<dyn Error>> {
    let server = std::env::args().nth(1).ok_or("the server's address?")?;
    let limit = Duration::from_secs(20);

    // A UDP socket of the stack's with a peer, and a handshake on it in the raw.
    let udp = UdpSocket::bind_on(&Daemon::default(), "0.0.0.0:0".parse()?, None)?;
    udp.connect(server)?;
    let session = Session::connect(&udp, context()?, "localhost", limit)?;
    println!("agreed on {}", session.tx.cipher());

    // socket(AF_KTLS, SOCK_DGRAM, 0), bind to it, setsockopt(KTLS_SET_*).
    let ktls = session.bind(&udp)?;
    ktls.set_read_timeout(Some(limit))?;

    // Plaintext here, a record on the wire.
    ktls.send(b"a message, in the clear here\n", KtlsFlags::empty())?;
    let mut answer = [0; 1024];
    let len = ktls.recv(&mut answer, KtlsFlags::empty())?.len;
    print!("answered: {}", String::from_utf8_lossy(&answer[..len]));

    // The explicit nonce of the next record: epoch and number.
    let mut next = [0; 8];
    ktls.getsockopt(AF_KTLS, KTLS_GET_IV_SEND, &mut next)?;
    println!("next record: epoch {}, number {}", next[1], next[7]);

    // close_notify, sealed by the stack: OpenSSL's own numbers have been overtaken.
    close(&ktls)?;
    Ok(())
}
