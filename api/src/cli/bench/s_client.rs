//! A handshake by OpenSSL that ends in a bare socket.
//!
//! The program `openssl s_client` shakes hands and seals the request; it is connected to this process, which passes its
//! bytes on to the server and the server's back. The first record of application data is the request: it is not passed on but given
//! to the caller, to be sent when the clock has started. From then on OpenSSL is out of the way, and what the server answers is read
//! off the socket by nobody else.
//!
//! The library would do the same in fewer lines, but then everybody who builds `uktls` would need its headers for the sake
//! of a benchmark.

use super::super::supervise::program;
use super::super::{Context, Failure};
use super::client::SILENCE;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

/// TLS 1.2 with AES-128-GCM, whatever kind of certificate the server has.
const CIPHERS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256";

/// RFC 5246 §6.2.1: type, version and length.
const HEADER: usize = 5;
/// RFC 5246 §6.2.1: `application_data(23)`.
const APPLICATION_DATA: u8 = 23;

/// Shakes hands with the server at the other end of `server`, and gives `request` as the record to send it in.
pub(super) fn sealed_request(server: &mut TcpStream, request: &[u8]) -> Result<Vec<u8>, Failure> {
    let failed = || "cannot shake hands by openssl s_client".to_string();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context(failed)?;
    let address = listener.local_addr().context(failed)?;
    let mut command = Command::new(program("openssl", "openssl")?);
    command
        .args(["s_client", "-quiet", "-tls1_2"])
        .args(["-cipher", CIPHERS, "-connect", &address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // It remarks on every self-signed certificate.
        .stderr(Stdio::null());
    let mut openssl = Guard(command.spawn().context(failed)?);
    if let Some(mut stdin) = openssl.0.stdin.take() {
        stdin.write_all(request).context(failed)?;
    }
    readable(&[&listener], "openssl s_client does not connect")?;
    let (mut client, _) = listener.accept().context(failed)?;
    client.set_nodelay(true).context(failed)?;

    let mut from_client = Vec::new();
    let mut piece = [0; 16_384];
    loop {
        let ready = readable(&[&*server, &client], "the handshake does not go on")?;
        if ready[0] {
            match server.read(&mut piece).context(failed)? {
                0 => return Err(Failure::new("the server closed within the handshake")),
                length => client.write_all(&piece[..length]).context(failed)?,
            }
        }
        if ready[1] {
            match client.read(&mut piece).context(failed)? {
                0 => return Err(Failure::new("openssl s_client gave the handshake up")),
                length => from_client.extend_from_slice(&piece[..length]),
            }
        }
        while let Some(record) = whole_record(&mut from_client) {
            if record[0] == APPLICATION_DATA {
                return Ok(record);
            }
            server.write_all(&record).context(failed)?;
        }
    }
}

/// Takes the first record off the front, if all of it is there.
fn whole_record(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = bytes.get(3..HEADER)?;
    let end = HEADER + usize::from(u16::from_be_bytes([length[0], length[1]]));
    (bytes.len() >= end).then(|| bytes.drain(..end).collect())
}

/// Which of the sockets can be read (or have ended); an error when none can for [`SILENCE`].
fn readable<const N: usize>(
    sockets: &[&dyn AsFd; N],
    otherwise: &'static str,
) -> Result<[bool; N], Failure> {
    let mut fds = sockets.map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
    let limit = Timespec {
        tv_sec: SILENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&limit)).context(|| "cannot wait".into())? {
        0 => Err(Failure::new(otherwise)),
        _ => Ok(fds.map(|fd| !fd.revents().is_empty())),
    }
}

/// Ends the program. Should this process be ended first, the program ends with its connection.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_one_by_one_and_whole() {
        let mut bytes = vec![22, 3, 3, 0, 2, 7, 8, 23, 3, 3, 0];
        assert_eq!(whole_record(&mut bytes), Some(vec![22, 3, 3, 0, 2, 7, 8]));
        assert_eq!(whole_record(&mut bytes), None);
        bytes.extend([1, 9, 21]);
        assert_eq!(whole_record(&mut bytes), Some(vec![23, 3, 3, 0, 1, 9]));
        assert_eq!(whole_record(&mut bytes), None);
        assert_eq!(bytes, [21]);
    }

    #[test]
    fn openssl_agrees_with_a_server_and_the_request_comes_as_its_first_record() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = std::thread::spawn(move || {
            let socket = listener.accept().unwrap().0;
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            let connection = rustls::ServerConnection::new(config.into()).unwrap();
            let mut tls = rustls::StreamOwned::new(connection, socket);
            let mut request = [0; 100];
            let length = tls.read(&mut request).unwrap();
            let suite = tls.conn.negotiated_cipher_suite().unwrap().suite();
            (request[..length].to_vec(), suite)
        });
        let record = sealed_request(&mut client, b"GET / HTTP/1.1\r\n\r\n").unwrap();
        client.write_all(&record).unwrap();
        let (request, suite) = server.join().unwrap();
        assert_eq!(request, b"GET / HTTP/1.1\r\n\r\n");
        assert_eq!(
            suite,
            rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        );
    }
}
