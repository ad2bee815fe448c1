//! TLS 1.2 handshakes by OpenSSL, over a TCP socket of the stack.
//!
//! OpenSSL reads record by record and nothing behind the peer's Finished, so what follows is still in the socket when the keys go there:
//! by Linux's kTLS calls ([`TlsSession::attach`]) or as AF_KTLS ([`TlsSession::bind`]).
//!
//! **Numbers.** The records that pass are followed in both directions: how many there were behind ChangeCipherSpec is the next sequence
//! number, and what OpenSSL put before the last one it sealed is the last explicit nonce it used. (It starts those at a random number.)
//! OpenSSL is gone once the keys are out, and can seal nothing more.
//!
//! **Alerts.** With the kTLS calls they are records of their type: [`TcpStream::recv_record`], [`TcpStream::send_record`]. An AF_KTLS
//! socket leaves the peer's on the stream, sealed as they came; [`TlsSession::control_record`] opens the one that reading stopped at.

use super::keys::{Side, key_block};
use super::wait;
use crate::TcpStream;
use crate::client::af_ktls::{
    AF_KTLS, KTLS_GET_IV_RECV, KTLS_SET_IV_RECV, KtlsAddress, KtlsSocket, KtlsType,
};
use openssl::ssl::{Ssl, SslContextBuilder, SslStream};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};
use uktls_record::tls::Opener;
use uktls_record::{ContentType, CryptoInfo};

/// Length of a record's header.
const HEADER: usize = 5;
/// And of the explicit nonce behind it.
const EXPLICIT: usize = 8;

/// A handshake that has ended.
#[derive(Debug)]
pub struct TlsSession {
    /// For what this side sends.
    pub tx: CryptoInfo,
    /// For what the peer sends.
    pub rx: CryptoInfo,
    /// OpenSSL's name of the suite.
    pub suite: &'static str,
}

impl TlsSession {
    /// Shakes hands as client. `name` is the server's, for SNI and for verification if the context asks for it.
    ///
    /// # Errors
    /// `TimedOut` after `limit`; else what OpenSSL or the socket says.
    pub fn connect(
        stream: &TcpStream,
        context: SslContextBuilder,
        name: &str,
        limit: Duration,
    ) -> io::Result<TlsSession> {
        let mut ssl = Ssl::new(&context.build())?;
        super::expect_name(&mut ssl, name)?;
        TlsSession::shake(stream, ssl, limit, SslStream::connect)
    }

    /// Shakes hands as server.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn accept(
        stream: &TcpStream,
        context: SslContextBuilder,
        limit: Duration,
    ) -> io::Result<TlsSession> {
        let ssl = Ssl::new(&context.build())?;
        TlsSession::shake(stream, ssl, limit, SslStream::accept)
    }

    fn shake<'a>(
        stream: &'a TcpStream,
        ssl: Ssl,
        limit: Duration,
        shake: impl Fn(&mut SslStream<Followed<'a>>) -> Result<(), openssl::ssl::Error>,
    ) -> io::Result<TlsSession> {
        let followed = Followed {
            stream,
            deadline: Instant::now() + limit,
            sent: Records::default(),
            received: Records::default(),
        };
        let mut stream = SslStream::new(ssl, followed)?;
        shake(&mut stream)
            .map_err(|error| error.into_io_error().unwrap_or_else(io::Error::other))?;
        let block = key_block(stream.ssl())?;
        let own = Side::of(stream.ssl());
        let suite = stream
            .ssl()
            .current_cipher()
            .map_or("", |cipher| cipher.name());
        let Followed { sent, received, .. } = stream.get_ref();
        if sent.at > 0 || received.at > 0 {
            return Err(io::Error::other(
                "OpenSSL stopped in the middle of a record",
            ));
        }
        let keys = |side, records: &Records| {
            block.tls(side, records.sealed, records.explicit.wrapping_add(1))
        };
        Ok(TlsSession {
            tx: keys(own, sent)?,
            rx: keys(own.other(), received)?,
            suite,
        })
    }

    /// Hands the keys over by Linux's calls: `TCP_ULP`, `TLS_TX`, `TLS_RX`.
    ///
    /// # Errors
    /// As [`TcpStream::set_ulp_tls`] and the others.
    pub fn attach(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_ulp_tls()?;
        stream.set_tls_tx(&self.tx)?;
        stream.set_tls_rx(&self.rx)
    }

    /// A KTLS socket over the stream, with this session's keys.
    ///
    /// # Errors
    /// As [`KtlsSocket::bind`].
    pub fn bind(&self, stream: &TcpStream) -> io::Result<KtlsSocket> {
        let mut ktls = KtlsSocket::new(KtlsType::Stream, 0)?;
        let address = KtlsAddress {
            cipher: self.tx.cipher().linux_id(),
            ..KtlsAddress::LATEST
        };
        ktls.bind(stream, address)?;
        ktls.set_send_keys(&self.tx)?;
        ktls.set_receive_keys(&self.rx)?;
        Ok(ktls)
    }

    /// Takes the record off the stream that the KTLS socket's reading stopped at, with `EBADMSG`, and opens it: an alert, mostly. Reading
    /// goes on behind it.
    ///
    /// # Errors
    /// `EBADMSG` when it does not open; and as reading the stream.
    pub fn control_record(
        &self,
        mut stream: &TcpStream,
        ktls: &mut KtlsSocket,
    ) -> io::Result<(ContentType, Vec<u8>)> {
        let bad = || io::Error::from(rustix::io::Errno::BADMSG);
        let mut number = [0; 8];
        ktls.getsockopt(AF_KTLS, KTLS_GET_IV_RECV, &mut number)?;
        let number = u64::from_be_bytes(number);
        let mut record = vec![0; HEADER];
        stream.read_exact(&mut record)?;
        let len = usize::from(u16::from_be_bytes([record[3], record[4]]));
        record.resize(HEADER + len, 0);
        stream.read_exact(&mut record[HEADER..])?;
        let keys = CryptoInfo::new(
            self.rx.version(),
            self.rx.cipher(),
            self.rx.key(),
            self.rx.salt(),
            self.rx.iv(),
            number,
        );
        let mut opener = keys
            .and_then(|keys| Opener::new(&keys))
            .map_err(io::Error::other)?;
        let opened = opener.open_in_place(&mut record).map_err(|_| bad())?;
        let next = number.checked_add(1).ok_or_else(bad)?;
        ktls.setsockopt(AF_KTLS, KTLS_SET_IV_RECV, &next.to_be_bytes())?;
        Ok((opened.content_type, record[opened.plaintext].to_vec()))
    }
}

/// The stream as OpenSSL sees it.
#[derive(Debug)]
struct Followed<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
    sent: Records,
    received: Records,
}

impl Read for Followed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if !wait(self.stream, left)? && left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match self.stream.read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => {
                    let len = outcome?;
                    self.received.follow(&buf[..len]);
                    return Ok(len);
                }
            }
        }
    }
}

impl Write for Followed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let len = self.stream.write(buf)?;
        self.sent.follow(&buf[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// One direction of a stream, followed from record to record.
#[derive(Debug, Default)]
struct Records {
    /// The front of the record under way.
    front: [u8; HEADER + EXPLICIT],
    /// How much of it has passed; 0 between records.
    at: usize,
    /// ChangeCipherSpec has passed.
    changed: bool,
    /// Records behind it.
    sealed: u64,
    /// The explicit nonce of the last of them.
    explicit: u64,
}

impl Records {
    fn follow(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(place) = self.front.get_mut(self.at) {
                *place = byte;
            }
            self.at += 1;
            let [content_type, _, _, high, low, explicit @ ..] = self.front;
            let len = HEADER + usize::from(u16::from_be_bytes([high, low]));
            if self.at >= HEADER && self.at == len {
                if self.changed {
                    self.sealed += 1;
                    self.explicit = u64::from_be_bytes(explicit);
                }
                self.changed |= content_type == ContentType::CHANGE_CIPHER_SPEC.0;
                self.at = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_behind_change_cipher_spec_however_they_are_cut() {
        let mut bytes = vec![22, 3, 3, 0, 2, 9, 9];
        bytes.extend([20, 3, 3, 0, 1, 1]);
        for number in [0xFE, 0xFF] {
            bytes.extend([22, 3, 3, 0, 12, 0, 0, 0, 0, 0, 0, 0, number, 1, 2, 3, 4]);
        }
        for piece in [1, 2, 3, 7, bytes.len()] {
            let mut records = Records::default();
            for piece in bytes.chunks(piece) {
                records.follow(piece);
            }
            assert_eq!((records.sealed, records.explicit, records.at), (2, 0xFF, 0));
        }
        let mut records = Records::default();
        records.follow(&bytes[..bytes.len() - 1]);
        assert_eq!((records.sealed, records.at), (1, 16));
    }
}
