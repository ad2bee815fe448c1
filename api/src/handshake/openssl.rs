//! DTLS 1.2 handshakes by OpenSSL, over a UDP socket of the stack (feature `openssl`).
//!
//! OpenSSL shakes hands on the [`UdpSocket`] itself, in the raw: [`Session::connect`] and [`Session::accept`], the latter with a
//! cookie exchange, so that nobody is answered at length who does not answer from where they claim to be. What comes out is a
//! [`Session`], whose keys a [`KtlsSocket`] takes over ([`Session::bind`]). From then on OpenSSL is only asked about the
//! control records that arrive on the UDP socket ([`Session::peer_closed`]).
//!
//! **Numbers.** OpenSSL does not tell how many records it has sealed, and sealing one number twice would give the key away. So
//! everything it sends and receives is looked at on its way, and the keys continue behind the last number of epoch 1 that was
//! seen, retransmissions included. After that OpenSSL must seal nothing more; alerts go by
//! [`KtlsSocket::send_control`], close_notify by [`close`].
//!
//! Retransmission needs no timer of ours: OpenSSL looks at its clock whenever it is asked to go on, so it is asked again each time a
//! short wait for a datagram was in vain.

use crate::UdpSocket;
use crate::client::af_ktls::{KtlsAddress, KtlsSocket, KtlsType};
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::ssl::{
    ErrorCode, ShutdownState, Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslRef,
    SslStream, SslVersion,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use uktls_record::dtls::{EpochKeys, Header};
use uktls_record::{CipherSuite, ContentType};
use zeroize::Zeroizing;

/// How long OpenSSL is left waiting for a datagram before it may look at its retransmission timer.
const GLANCE: Duration = Duration::from_millis(100);

/// The epoch that a first handshake ends in.
const EPOCH: u16 = 1;

/// The names by which OpenSSL knows the suites whose records the stack can make.
pub const CIPHERS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
    ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:\
    ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";

/// A context for DTLS 1.2 with the ciphers that the stack has. Certificates and verification are the caller's to set.
///
/// # Errors
/// What OpenSSL says.
pub fn context() -> io::Result<SslContextBuilder> {
    let mut context = SslContext::builder(SslMethod::dtls())?;
    context.set_min_proto_version(Some(SslVersion::DTLS1_2))?;
    context.set_max_proto_version(Some(SslVersion::DTLS1_2))?;
    context.set_cipher_list(CIPHERS)?;
    // The path's MTU is the stack's to say; a renegotiation would be a second epoch 1.
    context.set_options(SslOptions::NO_QUERY_MTU | SslOptions::NO_RENEGOTIATION);
    Ok(context)
}

/// A handshake that has ended: the keys, and OpenSSL's side of the association.
#[derive(Debug)]
pub struct Session {
    /// For what this side sends.
    pub tx: EpochKeys,
    /// For what the peer sends.
    pub rx: EpochKeys,
    stream: SslStream<Watched>,
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
        match name.parse() {
            Ok(ip) => ssl.param_mut().set_ip(ip)?,
            Err(_) => {
                ssl.set_hostname(name)?;
                ssl.param_mut().set_host(name)?;
            }
        }
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
        step: impl Fn(&mut SslStream<Watched>) -> Result<(), openssl::ssl::Error>,
    ) -> io::Result<Session> {
        let headers = if peer.is_ipv4() { 28 } else { 48 };
        let mtu = socket.path_mtu()?.saturating_sub(headers);
        ssl.set_mtu(u32::try_from(mtu).unwrap_or(u32::MAX))?;
        let watched = Watched {
            socket: socket.try_clone()?,
            sent: 0,
            received: 0,
        };
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
        let (cipher, block) = key_block(stream.ssl())?;
        let Watched { sent, received, .. } = *stream.get_ref();
        let keys = |(key, iv): &(Zeroizing<Vec<u8>>, Vec<u8>), sequence| {
            EpochKeys::dtls12(cipher, key, iv, EPOCH, sequence).map_err(io::Error::other)
        };
        let (own, peers) = if stream.ssl().is_server() {
            (&block.server, &block.client)
        } else {
            (&block.client, &block.server)
        };
        Ok(Session {
            tx: keys(own, sent)?,
            rx: keys(peers, received)?,
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

/// Sends close_notify (RFC 5246 §7.2.1), sealed by the stack.
///
/// # Errors
/// As [`KtlsSocket::send_control`].
pub fn close(ktls: &KtlsSocket) -> io::Result<()> {
    const WARNING: u8 = 1;
    const CLOSE_NOTIFY: u8 = 0;
    ktls.send_control(ContentType::ALERT, &[WARNING, CLOSE_NOTIFY])
}

/// A UDP socket as OpenSSL sees it, and what numbers have passed.
#[derive(Debug)]
struct Watched {
    socket: UdpSocket,
    /// One more than the highest number of [`EPOCH`] that left, and that came.
    sent: u64,
    received: u64,
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

impl Read for Watched {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !wait(&self.socket, Duration::ZERO)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = self.socket.recv(buf)?;
        self.received = watch(&buf[..len], self.received);
        Ok(len)
    }
}

impl Write for Watched {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.sent = watch(buf, self.sent);
        self.socket.send(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a datagram waits, or came within `limit`.
fn wait(socket: &UdpSocket, limit: Duration) -> io::Result<bool> {
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    match poll(&mut fds, Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

type KeyAndIv = (Zeroizing<Vec<u8>>, Vec<u8>);

struct KeyBlock {
    client: KeyAndIv,
    server: KeyAndIv,
}

/// RFC 5246 §6.3: the key block, from the master secret and both randoms; AEADs have no MAC keys in it.
fn key_block(ssl: &SslRef) -> io::Result<(CipherSuite, KeyBlock)> {
    let unknown = || io::Error::other("OpenSSL agreed on a cipher that the stack does not have");
    let agreed = ssl.current_cipher().ok_or_else(unknown)?;
    let cipher = match agreed.name() {
        name if name.contains("AES128-GCM") => CipherSuite::Aes128Gcm,
        name if name.contains("AES256-GCM") => CipherSuite::Aes256Gcm,
        name if name.contains("CHACHA20-POLY1305") => CipherSuite::ChaCha20Poly1305,
        _ => return Err(unknown()),
    };
    let digest = match cipher {
        CipherSuite::Aes256Gcm => MessageDigest::sha384(),
        CipherSuite::Aes128Gcm | CipherSuite::ChaCha20Poly1305 => MessageDigest::sha256(),
    };
    let session = ssl
        .session()
        .ok_or_else(|| io::Error::other("a handshake without a session"))?;
    let mut master = Zeroizing::new(vec![0; session.master_key_len()]);
    session.master_key(&mut master);
    let (mut client_random, mut server_random) = ([0; 32], [0; 32]);
    ssl.client_random(&mut client_random);
    ssl.server_random(&mut server_random);

    let iv_len = if cipher.salt_len() > 0 { 4 } else { 12 };
    let (key_len, wanted) = (cipher.key_len(), 2 * (cipher.key_len() + iv_len));
    // RFC 5246 §5: P_hash, with the label and both randoms as its seed, the server's first.
    let seed = [&b"key expansion"[..], &server_random, &client_random].concat();
    let (mut a, mut block) = (Zeroizing::new(seed.clone()), Zeroizing::new(Vec::new()));
    while block.len() < wanted {
        a = Zeroizing::new(hmac(digest, &master, &[&a])?);
        block.extend(hmac(digest, &master, &[&a, &seed])?);
    }
    let (client_key, rest) = block.split_at(key_len);
    let (server_key, rest) = rest.split_at(key_len);
    let (client_iv, rest) = rest.split_at(iv_len);
    let key = |bytes: &[u8]| Zeroizing::new(bytes.to_vec());
    let block = KeyBlock {
        client: (key(client_key), client_iv.to_vec()),
        server: (key(server_key), rest[..iv_len].to_vec()),
    };
    Ok((cipher, block))
}

fn hmac(digest: MessageDigest, key: &[u8], parts: &[&[u8]]) -> io::Result<Vec<u8>> {
    let key = PKey::hmac(key)?;
    let mut signer = Signer::new(digest, &key)?;
    for part in parts {
        signer.update(part)?;
    }
    Ok(signer.sign_to_vec()?)
}
