//! Lesson: AF_KTLS over TCP in forty lines. `af_ktls_tls 10.77.0.1:4433` asks a TLS 1.2 server a line and prints its answer:
//! OpenSSL shakes hands, the stack seals and opens. The server may be `openssl s_server -tls1_2 -quiet -rev`; the stack is one
//! that `uktls run` brings up.

use std::error::Error;
use std::time::Duration;
use uktls::TcpStream;
use uktls::client::af_ktls::{AF_KTLS, KTLS_GET_IV_SEND, KtlsFlags};
use uktls::handshake::openssl::{TlsSession, close, tls_context};
use uktls_record::ContentType;

fn main() -> Result<(), Box<dyn Error>> {
    let server = std::env::args().nth(1).ok_or("the server's address?")?;

    // Any TCP connection of the stack's, and a handshake on it in the raw.
    let tcp = TcpStream::connect(server)?;
    let session = TlsSession::connect(&tcp, tls_context()?, "localhost", Duration::from_secs(20))?;
    println!("agreed on {}", session.suite);

    // socket(AF_KTLS, SOCK_STREAM, 0), bind to it, setsockopt(KTLS_SET_*).
    let mut ktls = session.bind(&tcp)?;

    // Plaintext here, records on the wire.
    ktls.send(b"a line, in the clear here\n", KtlsFlags::empty())?;
    let mut answer = [0; 1024];
    let len = ktls.recv(&mut answer, KtlsFlags::empty())?.len;
    print!("answered: {}", String::from_utf8_lossy(&answer[..len]));

    let mut next = [0; 8];
    ktls.getsockopt(AF_KTLS, KTLS_GET_IV_SEND, &mut next)?;
    println!("next record: number {}", u64::from_be_bytes(next));

    // close_notify both ways: reading stops at the peer's, which waits on the TCP socket.
    close(&ktls)?;
    while ktls.recv(&mut answer, KtlsFlags::empty()).is_ok() {}
    let (kind, bytes) = session.control_record(&tcp, &mut ktls)?;
    println!(
        "closed by alert: {}",
        kind == ContentType::ALERT && bytes == [1, 0]
    );
    Ok(())
}
