//! DTLS 1.2 handshakes by OpenSSL, over a UDP socket of the stack.
//!
//! OpenSSL shakes hands on the [`UdpSocket`] itself, in the raw: [`Session::connect`] and [`Session::accept`], the latter with a
//! cookie exchange, so that nobody is answered at length who does not answer from where they claim to be. What comes out is a
//! [`Session`], whose keys a [`KtlsSocket`] takes over ([`Session::bind`]). From then on OpenSSL is only asked about the
//! control records that arrive on the UDP socket ([`Session::peer_closed`]).
//!
//! **Numbers.** OpenSSL does not tell how many records it has sealed, and sealing one number twice would give the key away. So
//! everything it sends and receives is looked at on its way, and the keys continue behind the last number of epoch 1 that was
//! seen, retransmissions included. From then on nothing that OpenSSL seals leaves. It would seal in one case: when the peer says
//! its last flight again, because ours was lost. Then our last flight goes out once more as it was, under its old numbers. Alerts go
//! by [`KtlsSocket::send_control`], close_notify by [`close`](super::close).
//!
//! Retransmission needs no timer of ours: OpenSSL looks at its clock whenever it is asked to go on, so it is asked again each time a
//! short wait for a datagram was in vain.

use super::keys::{Side, key_block};
use super::{hmac, wait};
use crate::UdpSocket;
use crate::client::af_ktls::{KtlsAddress, KtlsSocket, KtlsType};
use openssl::hash::MessageDigest;
use openssl::ssl::{
    ErrorCode, ShutdownState, Ssl, SslContextBuilder, SslOptions, SslRef, SslStream,
};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use uktls_record::ContentType;
use uktls_record::dtls::{EpochKeys, Header};
use zeroize::Zeroizing;

/// How long OpenSSL is left waiting for a datagram before it may look at its retransmission timer.
const GLANCE: Duration = Duration::from_millis(100);

/// The epoch that a first handshake ends in.
const EPOCH: u16 = 1;

/// A handshake that has ended: the keys, and OpenSSL's side of the association.
#[derive(Debug)]
pub struct Session {
    /// For what this side sends.
    pub tx: EpochKeys,
    /// For what the peer sends.
    pub rx: EpochKeys,
    stream: SslStream<Watched<UdpSocket>>,
    closing: Option<u64>,
}

impl Session {
    /// Shakes hands as client with the socket's peer. `name` is the server's, for SNI and for verification if the context asks for it.
    ///
    /// # Errors
    /// `TimedOut` after `limit`; `ENOTCONN` when the socket has no peer; else what OpenSSL says.
    pub fn connect(
        socket: &UdpSocket,
        context: SslContextBuilder,
        name: &str,
        limit: Duration,
    ) -> io::Result<Session> {
        let peer = socket.peer_addr()?;
        let mut ssl = Ssl::new(&context.build())?;
        super::expect_name(&mut ssl, name)?;
        Session::shake(socket, peer, ssl, limit, SslStream::connect)
    }

    /// Waits for a client and shakes hands with it, cookie first. The socket is connected to the client from then on.
    ///
    /// # Errors
    /// `TimedOut` after `limit`, else what OpenSSL says.
    pub fn accept(
        socket: &UdpSocket,
        mut context: SslContextBuilder,
        limit: Duration,
    ) -> io::Result<Session> {
        if !wait(socket, limit)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (_, peer) = socket.peek_from(&mut [0; 1])?;
        socket.connect(peer)?;
        let mut secret = Zeroizing::new([0; 32]);
        openssl::rand::rand_bytes(&mut *secret)?;
        let cookie = hmac(
            MessageDigest::sha256(),
            &*secret,
            &[peer.to_string().as_bytes()],
        )?;
        let expected = cookie.clone();
        context.set_options(SslOptions::COOKIE_EXCHANGE);
        context.set_cookie_generate_cb(move |_, out| {
            out[..cookie.len()].copy_from_slice(&cookie);
            Ok(cookie.len())
        });
        context.set_cookie_verify_cb(move |_, cookie| {
            cookie.len() == expected.len() && openssl::memcmp::eq(cookie, &expected)
        });
        let ssl = Ssl::new(&context.build())?;
        Session::shake(socket, peer, ssl, limit, SslStream::accept)
    }

    fn shake(
        socket: &UdpSocket,
        peer: SocketAddr,
        mut ssl: Ssl,
        limit: Duration,
        step: impl Fn(&mut SslStream<Watched<UdpSocket>>) -> Result<(), openssl::ssl::Error>,
    ) -> io::Result<Session> {
        let headers = if peer.is_ipv4() { 28 } else { 48 };
        let mtu = socket.path_mtu()?.saturating_sub(headers);
        ssl.set_mtu(u32::try_from(mtu).unwrap_or(u32::MAX))?;
        let watched = Watched::new(socket.try_clone()?);
        let mut stream = SslStream::new(ssl, watched)?;
        let deadline = Instant::now() + limit;
        loop {
            match step(&mut stream) {
                Ok(()) => break,
                Err(error) if error.code() == ErrorCode::WANT_READ => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    wait(socket, left.min(GLANCE))?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        let block = key_block(stream.ssl())?;
        let own = Side::of(stream.ssl());
        let watched = stream.get_mut();
        watched.established = true;
        let (sent, received) = (watched.sent, watched.received);
        Ok(Session {
            tx: block.dtls(own, EPOCH, sent)?,
            rx: block.dtls(own.other(), EPOCH, received)?,
            stream,
            closing: None,
        })
    }

    /// A KTLS socket over the UDP socket, with this session's keys.
    ///
    /// # Errors
    /// As [`KtlsSocket::bind`].
    pub fn bind(&self, socket: &UdpSocket) -> io::Result<KtlsSocket> {
        let mut ktls = KtlsSocket::new(KtlsType::Datagram, 0)?;
        let address = KtlsAddress {
            cipher: self.tx.cipher().linux_id(),
            ..KtlsAddress::LATEST
        };
        ktls.bind(socket, address)?;
        ktls.set_send_keys(&self.tx)?;
        ktls.set_receive_keys(&self.rx)?;
        Ok(ktls)
    }

    /// Whether the peer has sent close_notify. Looks at the control records that wait on the UDP socket, and waits for none.
    ///
    /// # Errors
    /// A fatal alert, or what the socket says.
    pub fn peer_closed(&mut self) -> io::Result<bool> {
        match self.stream.ssl_read(&mut [0; 1]) {
            Ok(_) => {}
            Err(error) => match error.code() {
                ErrorCode::WANT_READ | ErrorCode::ZERO_RETURN => {}
                _ => return Err(error.into_io_error().unwrap_or_else(io::Error::other)),
            },
        }
        let closed = self.stream.get_shutdown().contains(ShutdownState::RECEIVED);
        if closed && self.closing.is_none() {
            self.closing = self.stream.get_ref().received.checked_sub(1);
        }
        Ok(closed)
    }

    /// The record number of the peer's close_notify, once that has come: how many records it sent before in this epoch.
    pub fn closing_number(&self) -> Option<u64> {
        self.closing
    }

    /// What was agreed on.
    pub fn ssl(&self) -> &SslRef {
        self.stream.ssl()
    }
}

/// Where datagrams come from and go.
trait Datagrams: std::fmt::Debug {
    /// The next datagram, if one waits.
    fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize>;
    fn send(&self, datagram: &[u8]) -> io::Result<usize>;
}

impl Datagrams for UdpSocket {
    fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        UdpSocket::try_recv(self, buf)
    }

    fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        UdpSocket::send(self, datagram)
    }
}

/// How many datagrams of a flight are kept; the last ones are what matters.
const FLIGHT: usize = 16;

/// Datagrams as OpenSSL sees them, and what numbers have passed.
#[derive(Debug)]
struct Watched<D> {
    socket: D,
    /// One more than the highest number of [`EPOCH`] that left, and that came.
    sent: u64,
    received: u64,
    /// The last flight that left.
    flight: Vec<Vec<u8>>,
    /// Something came since, so what leaves next is another flight.
    answered: bool,
    /// The keys are elsewhere: nothing that is sealed here may leave.
    established: bool,
}

impl<D: Datagrams> Watched<D> {
    fn new(socket: D) -> Watched<D> {
        Watched {
            socket,
            sent: 0,
            received: 0,
            flight: Vec::new(),
            answered: false,
            established: false,
        }
    }

    fn keep(&mut self, datagram: &[u8]) {
        if std::mem::take(&mut self.answered) {
            self.flight.clear();
        }
        if self.flight.len() == FLIGHT {
            self.flight.remove(0);
        }
        self.flight.push(datagram.to_vec());
    }
}

/// One more than the highest number of [`EPOCH`] in a datagram, or `next` if that is more.
fn watch(mut datagram: &[u8], mut next: u64) -> u64 {
    while let Ok(header) = Header::parse(datagram) {
        if header.epoch == EPOCH {
            next = next.max(header.sequence + 1);
        }
        datagram = &datagram[header.record_len()..];
    }
    next
}

/// Whether a datagram begins a flight of a handshake, which is said again from its start: with a message, or ChangeCipherSpec.
fn starts_flight(datagram: &[u8]) -> bool {
    matches!(
        Header::parse(datagram),
        Ok(Header {
            content_type: ContentType::HANDSHAKE | ContentType::CHANGE_CIPHER_SPEC,
            epoch: 0,
            ..
        })
    )
}

impl<D: Datagrams> Read for Watched<D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.socket.try_recv(buf)?;
        self.received = watch(&buf[..len], self.received);
        self.answered = true;
        Ok(len)
    }
}

impl<D: Datagrams> Write for Watched<D> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if !self.established {
            self.sent = watch(buf, self.sent);
            self.keep(buf);
            return self.socket.send(buf);
        }
        // RFC 6347 §4.2.4: "the FINISHED state […] when in response to a retransmitted Finished from the peer, it MUST retransmit its
        // final flight". Once for what came, at the first of the datagrams that OpenSSL makes of it.
        if starts_flight(buf) && std::mem::take(&mut self.answered) {
            for datagram in &self.flight {
                self.socket.send(datagram)?;
            }
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::context;
    use super::*;
    use openssl::pkey::PKey;
    use openssl::x509::X509;
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    type Queue = Rc<RefCell<VecDeque<Vec<u8>>>>;

    /// One end of a path in memory.
    #[derive(Debug)]
    struct Memory {
        incoming: Queue,
        outgoing: Queue,
    }

    impl Datagrams for Memory {
        fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize> {
            let next = self.incoming.borrow_mut().pop_front();
            let datagram = next.ok_or(io::ErrorKind::WouldBlock)?;
            buf[..datagram.len()].copy_from_slice(&datagram);
            Ok(datagram.len())
        }

        fn send(&self, datagram: &[u8]) -> io::Result<usize> {
            self.outgoing.borrow_mut().push_back(datagram.to_vec());
            Ok(datagram.len())
        }
    }

    /// Client and server with a path between them, and what is on it to the client.
    fn pair() -> (
        SslStream<Watched<Memory>>,
        SslStream<Watched<Memory>>,
        Queue,
    ) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]);
        let made = made.expect("a certificate");
        let mut server = context().expect("OpenSSL");
        let cert = X509::from_pem(made.cert.pem().as_bytes()).expect("a certificate");
        let key = made.signing_key.serialize_pem();
        let key = PKey::private_key_from_pem(key.as_bytes()).expect("a key");
        server.set_certificate(&cert).expect("fits");
        server.set_private_key(&key).expect("fits");
        let (up, down) = (Queue::default(), Queue::default());
        let stream = |context: SslContextBuilder, incoming: &Queue, outgoing: &Queue| {
            let mut ssl = Ssl::new(&context.build()).expect("OpenSSL");
            ssl.set_mtu(1400).expect("a good size");
            let memory = Memory {
                incoming: incoming.clone(),
                outgoing: outgoing.clone(),
            };
            SslStream::new(ssl, Watched::new(memory)).expect("OpenSSL")
        };
        let client = stream(context().expect("OpenSSL"), &down, &up);
        (client, stream(server, &up, &down), down)
    }

    /// Whether the handshake has ended; panics when it failed.
    fn ended(step: Result<(), openssl::ssl::Error>) -> bool {
        match step {
            Ok(()) => true,
            Err(error) if error.code() == ErrorCode::WANT_READ => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// The server's last flight is lost when its keys are elsewhere already. The client's timer says its own again, and what it is
    /// answered are the very datagrams that were lost.
    #[test]
    fn a_lost_last_flight_goes_out_again_as_it_was() {
        let (mut client, mut server, down) = pair();
        while !ended(server.accept()) {
            assert!(!ended(client.connect()));
        }
        server.get_mut().established = true;
        let (sent, lost) = (server.get_ref().sent, down.take());
        assert!(sent > 0 && !lost.is_empty());

        let deadline = Instant::now() + Duration::from_secs(20);
        let mut again = Vec::new();
        while !ended(client.connect()) {
            assert!(Instant::now() < deadline, "the client's timer does nothing");
            // What a server asks of its session while it goes on.
            let read = server.ssl_read(&mut [0; 1]).expect_err("no data was sent");
            assert_eq!(read.code(), ErrorCode::WANT_READ);
            again.extend(down.borrow().iter().cloned());
        }
        assert_eq!(again, Vec::from(lost));
        assert_eq!(server.get_ref().sent, sent);
    }

    /// A first flight into the void is said again by the client's timer.
    #[test]
    fn a_lost_first_flight_is_sent_again() {
        let (mut client, mut server, _) = pair();
        assert!(!ended(client.connect()));
        server.get_ref().socket.incoming.borrow_mut().clear();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !(ended(client.connect()) & ended(server.accept())) {
            assert!(Instant::now() < deadline, "the client's timer does nothing");
        }
    }
}
