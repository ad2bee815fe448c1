//! The stream after the handshake: data goes through, everything else is dealt with.

use super::negotiate::{Complete, Handshake, Kernel, Progress, refused};
use crate::client::{RecvFlags, SendFlags, TcpStream};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, HandshakeType, ServerConfig};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use uktls_record::{CipherSuite, ContentType, CryptoInfo, ProtocolVersion};

/// What [`TlsStream`] needs of a socket: plain reads and writes, and Linux's kTLS calls.
pub trait KtlsSocket: Read + Write {
    /// `setsockopt(TCP_ULP, "tls")`.
    ///
    /// # Errors
    /// As [`TcpStream::set_ulp_tls`].
    fn attach(&self) -> io::Result<()>;
    /// `setsockopt(TLS_TX)`.
    ///
    /// # Errors
    /// As [`TcpStream::set_tls_tx`].
    fn set_tx(&self, keys: &CryptoInfo) -> io::Result<()>;
    /// `setsockopt(TLS_RX)`.
    ///
    /// # Errors
    /// As [`TcpStream::set_tls_rx`].
    fn set_rx(&self, keys: &CryptoInfo) -> io::Result<()>;
    /// One whole record of a type other than data.
    ///
    /// # Errors
    /// As [`TcpStream::send_record`].
    fn send_control(&self, content_type: ContentType, bytes: &[u8]) -> io::Result<usize>;
    /// Data, or (a part of) one record of another type.
    ///
    /// # Errors
    /// As [`TcpStream::recv_record`].
    fn receive(&self, buf: &mut [u8]) -> io::Result<(ContentType, usize)>;
}

impl KtlsSocket for TcpStream {
    fn attach(&self) -> io::Result<()> {
        self.set_ulp_tls()
    }
    fn set_tx(&self, keys: &CryptoInfo) -> io::Result<()> {
        self.set_tls_tx(keys)
    }
    fn set_rx(&self, keys: &CryptoInfo) -> io::Result<()> {
        self.set_tls_rx(keys)
    }
    fn send_control(&self, content_type: ContentType, bytes: &[u8]) -> io::Result<usize> {
        self.send_record(content_type, bytes, SendFlags::empty())
    }
    fn receive(&self, buf: &mut [u8]) -> io::Result<(ContentType, usize)> {
        let received = self.recv_record(buf, RecvFlags::empty())?;
        Ok((
            received
                .content_type
                .unwrap_or(ContentType::APPLICATION_DATA),
            received.len,
        ))
    }
}

/// Linux's errno for a control record that a plain read meets.
const EIO: i32 = 5;
/// Linux's errno for a read behind a KeyUpdate before the new keys are set.
const EKEYEXPIRED: i32 = 127;
/// RFC 8446 §5.1: the largest record, and so the largest control record.
const MAX_PLAINTEXT: usize = 1 << 14;
/// Handshake messages after the handshake are tickets and key updates; a ticket is at most 64 KiB long, by its format.
const MAX_HANDSHAKE_MESSAGE: usize = (1 << 16) + 1024;
/// Control records in a row without data. A peer that sends nothing else is up to no good.
const MAX_CONTROL_RECORDS: usize = 64;

/// A TLS stream whose records the stack seals and opens.
///
/// `read` gives 0 after the peer's close_notify only; a stream that ends without one is an `UnexpectedEof`, since bytes
/// may have been cut off. Non-blocking sockets give `WouldBlock` as ever.
pub struct TlsStream<S = TcpStream> {
    socket: S,
    /// Boxed: an idle connection should be small, and 1.2 needs little of it.
    kernel: Box<Kernel>,
    /// Data decrypted during the handshake; usually no allocation.
    early: Vec<u8>,
    /// The front of a handshake message that is not complete.
    message: Vec<u8>,
    control_records: usize,
    /// Answers that found no room in a non-blocking socket, oldest first.
    owed: Vec<Owed>,
    received_close_notify: bool,
    sent_close_notify: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    /// A KeyUpdate, and the new keys for sending behind it; with the peer asked to do the same or not.
    KeyUpdate {
        ask_peer: bool,
    },
    Alert([u8; 2]),
}

impl<S> std::fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream")
            .field("received_close_notify", &self.received_close_notify)
            .field("sent_close_notify", &self.sent_close_notify)
            .finish_non_exhaustive()
    }
}

impl<S: KtlsSocket> TlsStream<S> {
    /// Shakes hands as client over a blocking socket.
    ///
    /// # Errors
    /// As [`Handshake::step`] and [`new`](Self::new).
    pub fn connect(
        mut socket: S,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let mut handshake = Handshake::client(config, name)?;
        blocking(&mut handshake, &mut socket)?;
        TlsStream::new(socket, handshake.complete()?)
    }

    /// Shakes hands as server over a blocking socket.
    ///
    /// # Errors
    /// As [`Handshake::step`] and [`new`](Self::new).
    pub fn accept(mut socket: S, config: Arc<ServerConfig>) -> io::Result<Self> {
        let mut handshake = Handshake::server(config)?;
        blocking(&mut handshake, &mut socket)?;
        TlsStream::new(socket, handshake.complete()?)
    }

    /// Hands the keys of a complete handshake to the socket.
    ///
    /// # Errors
    /// Those of the kTLS calls.
    pub fn new(socket: S, complete: Complete) -> io::Result<Self> {
        socket.attach()?;
        socket.set_tx(&complete.tx)?;
        socket.set_rx(&complete.rx)?;
        Ok(TlsStream {
            socket,
            kernel: Box::new(complete.kernel),
            early: complete.early,
            message: Vec::new(),
            control_records: 0,
            owed: Vec::new(),
            received_close_notify: false,
            sent_close_notify: false,
        })
    }

    /// The socket beneath. What is read from or written to it directly bypasses this stream's bookkeeping.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// The socket beneath, as a mutable reference (mio's `Source` asks for one).
    pub fn socket_mut(&mut self) -> &mut S {
        &mut self.socket
    }

    /// The negotiated version and cipher.
    ///
    /// # Errors
    /// None once the stream exists.
    pub fn negotiated(&self) -> io::Result<(ProtocolVersion, CipherSuite)> {
        Ok((self.kernel.version()?, self.kernel.cipher()?))
    }

    /// Whether the peer's close_notify came: everything it sent has been received.
    pub fn received_close_notify(&self) -> bool {
        self.received_close_notify
    }

    /// Tells the peer that nothing more will be sent. The TCP connection stays open.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room now: call again (or [`flush`](Write::flush)) when the socket is writable.
    pub fn close_notify(&mut self) -> io::Result<()> {
        if !self.sent_close_notify {
            self.sent_close_notify = true;
            self.owed
                .push(Owed::Alert([1, AlertDescription::CloseNotify.into()]));
        }
        self.pay()
    }

    /// TLS 1.3: from here on, new keys for sending; with `ask_peer` the peer is asked to do the same.
    ///
    /// # Errors
    /// `Unsupported` on TLS 1.2, which has no key update; as [`close_notify`](Self::close_notify).
    pub fn key_update(&mut self, ask_peer: bool) -> io::Result<()> {
        if self.kernel.version()? != ProtocolVersion::Tls13 {
            return Err(io::Error::new(
                ErrorKind::Unsupported,
                "TLS 1.2 has no key update",
            ));
        }
        self.owed.push(Owed::KeyUpdate { ask_peer });
        self.pay()
    }

    /// Sends what is owed, in order.
    fn pay(&mut self) -> io::Result<()> {
        while let Some(&owed) = self.owed.first() {
            match owed {
                Owed::Alert(alert) => drop(self.socket.send_control(ContentType::ALERT, &alert)?),
                Owed::KeyUpdate { ask_peer } => {
                    let message = [
                        u8::from(HandshakeType::KeyUpdate),
                        0,
                        0,
                        1,
                        u8::from(ask_peer),
                    ];
                    self.socket.send_control(ContentType::HANDSHAKE, &message)?;
                    let (sequence, secrets) = match &mut *self.kernel {
                        Kernel::Client(kernel) => kernel.update_tx_secret(),
                        Kernel::Server(kernel) => kernel.update_tx_secret(),
                    }
                    .map_err(refused)?;
                    let keys = self.kernel.crypto_info(sequence, &secrets)?;
                    self.socket.set_tx(&keys)?;
                }
            }
            self.owed.remove(0);
        }
        Ok(())
    }

    /// Sends what is owed as far as there is room; only real failures count.
    fn pay_if_possible(&mut self) -> io::Result<()> {
        match self.pay() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Reads records by type until there is data or an end. Gives the number of data bytes.
    fn read_by_type(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        // A control record needs room of its own: the caller's buffer may be tiny, and is the caller's.
        let mut record = vec![0; MAX_PLAINTEXT];
        loop {
            let (content_type, len) = match self.socket.receive(&mut record[..]) {
                Err(error) if error.raw_os_error() == Some(EKEYEXPIRED) => {
                    return Err(io::Error::new(
                        ErrorKind::InvalidData,
                        "data behind a KeyUpdate that was never seen",
                    ));
                }
                other => other?,
            };
            let bytes = &record[..len];
            match content_type {
                ContentType::APPLICATION_DATA if len == 0 => return Err(truncated()),
                ContentType::APPLICATION_DATA => {
                    self.control_records = 0;
                    let now = len.min(buf.len());
                    buf[..now].copy_from_slice(&bytes[..now]);
                    self.early.extend_from_slice(&bytes[now..]);
                    return Ok(now);
                }
                ContentType::ALERT => {
                    self.alert(bytes)?;
                    if self.received_close_notify {
                        return Ok(0);
                    }
                }
                ContentType::HANDSHAKE => {
                    let bytes = bytes.to_vec();
                    self.handshake_record(&bytes)?;
                }
                other => {
                    return Err(self.fail(
                        AlertDescription::UnexpectedMessage,
                        format!("unexpected {other} record"),
                    ));
                }
            }
            self.control_records += 1;
            if self.control_records > MAX_CONTROL_RECORDS {
                return Err(self.fail(
                    AlertDescription::UnexpectedMessage,
                    "too many records without data".to_owned(),
                ));
            }
        }
    }

    fn alert(&mut self, bytes: &[u8]) -> io::Result<()> {
        let &[level, description] = bytes else {
            return Err(self.fail(
                AlertDescription::DecodeError,
                "an alert that is not two bytes long".to_owned(),
            ));
        };
        let description = AlertDescription::from(description);
        // RFC 8446 §6: "all the alerts listed in Section 6.2 MUST be sent with AlertLevel=fatal and MUST be treated as
        // error alerts when received regardless of the AlertLevel in the message". 1.2 has real warnings.
        match description {
            AlertDescription::CloseNotify => self.received_close_notify = true,
            AlertDescription::UserCanceled => {}
            _ if level == 1 && self.kernel.version()? == ProtocolVersion::Tls12 => {}
            other => return Err(refused(rustls::Error::AlertReceived(other))),
        }
        Ok(())
    }

    /// Deals with the handshake messages in a record; one may span several records, several may share one.
    fn handshake_record(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut pending = std::mem::take(&mut self.message);
        pending.extend_from_slice(bytes);
        let mut rest = &pending[..];
        while let &[message_type, a, b, c, ref behind @ ..] = rest {
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            if len > MAX_HANDSHAKE_MESSAGE {
                let what = format!("a handshake message of {len} bytes");
                return Err(self.fail(AlertDescription::DecodeError, what));
            }
            let Some((body, behind)) = behind.split_at_checked(len) else {
                break;
            };
            self.handshake_message(HandshakeType::from(message_type), body, behind.is_empty())?;
            rest = behind;
        }
        self.message = rest.to_vec();
        Ok(())
    }

    fn handshake_message(
        &mut self,
        message_type: HandshakeType,
        body: &[u8],
        last: bool,
    ) -> io::Result<()> {
        let version = self.kernel.version()?;
        match (message_type, version, &mut *self.kernel) {
            (HandshakeType::NewSessionTicket, ProtocolVersion::Tls13, Kernel::Client(kernel)) => {
                kernel.handle_new_session_ticket(body).map_err(refused)
            }
            (HandshakeType::KeyUpdate, ProtocolVersion::Tls13, kernel) => {
                let ask_back = match body {
                    [0] => false,
                    [1] => true,
                    _ => {
                        return Err(self.fail(
                            AlertDescription::IllegalParameter,
                            "a malformed KeyUpdate".to_owned(),
                        ));
                    }
                };
                // RFC 8446 §5.1: "Handshake messages MUST NOT span key changes. Implementations MUST verify that all
                // messages immediately preceding a key change align with a record boundary".
                if !last {
                    let what = "a handshake message shares a record with the KeyUpdate before it"
                        .to_owned();
                    return Err(self.fail(AlertDescription::UnexpectedMessage, what));
                }
                let (sequence, secrets) = match kernel {
                    Kernel::Client(kernel) => kernel.update_rx_secret(),
                    Kernel::Server(kernel) => kernel.update_rx_secret(),
                }
                .map_err(refused)?;
                let keys = self.kernel.crypto_info(sequence, &secrets)?;
                self.socket.set_rx(&keys)?;
                // §4.6.3: "If the request_update field is set to update_requested, then the receiver MUST send a KeyUpdate
                // of its own with request_update set to update_not_requested"; several requests need one answer.
                let answer = Owed::KeyUpdate { ask_peer: false };
                if ask_back && !self.owed.contains(&answer) {
                    self.owed.push(answer);
                }
                self.pay_if_possible()
            }
            // TLS 1.2 renegotiation, from either side: RFC 5246 §7.2.2: "should respond with a no_renegotiation alert".
            (HandshakeType::HelloRequest, ProtocolVersion::Tls12, Kernel::Client(_))
            | (HandshakeType::ClientHello, ProtocolVersion::Tls12, Kernel::Server(_)) => {
                let answer = Owed::Alert([1, AlertDescription::NoRenegotiation.into()]);
                if !self.owed.contains(&answer) {
                    self.owed.push(answer);
                }
                self.pay_if_possible()
            }
            (other, ..) => {
                let what = format!("unexpected handshake message {other:?} behind the handshake");
                Err(self.fail(AlertDescription::UnexpectedMessage, what))
            }
        }
    }

    /// Sends a fatal alert, if there is room, and gives the error.
    fn fail(&mut self, alert: AlertDescription, what: String) -> io::Error {
        self.sent_close_notify = true; // nothing may follow a fatal alert
        // The error to report is the peer's.
        drop(
            self.socket
                .send_control(ContentType::ALERT, &[2, alert.into()]),
        );
        io::Error::new(ErrorKind::InvalidData, what)
    }
}

impl TlsStream<TcpStream> {
    /// [`TcpStream::sendfile`]: `count` bytes of `file` from `offset` on become records in the stack.
    ///
    /// # Errors
    /// As there.
    pub fn sendfile(
        &mut self,
        file: &impl AsFd,
        offset: Option<&mut u64>,
        count: u64,
    ) -> io::Result<u64> {
        self.pay()?;
        self.socket.sendfile(file, offset, count)
    }

    /// [`TcpStream::recvfile`]: up to `count` bytes of data are opened in the stack and written to `file` there, at `offset`
    /// (which is moved on) or at the file's own position. What is not data is dealt with as in `read`, 0 means the same.
    ///
    /// # Errors
    /// As there, and as `read`.
    pub fn recvfile(
        &mut self,
        file: &impl AsFd,
        mut offset: Option<&mut u64>,
        count: u64,
    ) -> io::Result<u64> {
        if count == 0 {
            return Ok(0);
        }
        if self.early.is_empty() && !self.received_close_notify {
            if !self.owed.is_empty() {
                self.pay_if_possible()?;
            }
            match self.socket.recvfile(file, offset.as_deref_mut(), count) {
                Ok(0) => return Err(truncated()),
                Ok(received) => {
                    self.control_records = 0;
                    return Ok(received);
                }
                Err(error) if error.raw_os_error() == Some(EIO) => {}
                Err(error) => return Err(error),
            }
        }
        // Data that a read finds behind other records, or that came during the handshake.
        let mut piece =
            vec![0; usize::try_from(count).map_or(MAX_PLAINTEXT, |n| n.min(MAX_PLAINTEXT))];
        let len = match self.early.is_empty() && !self.received_close_notify {
            true => self.read_by_type(&mut piece)?,
            false => self.read(&mut piece)?,
        };
        let wrote = write_to(file, offset, &piece[..len]);
        let in_file = *wrote.as_ref().unwrap_or(&0);
        self.early.splice(..0, piece[in_file..len].iter().copied());
        Ok(wrote? as u64)
    }
}

/// Writes at `offset`, which is moved on, or at the file's own position.
fn write_to(file: &impl AsFd, offset: Option<&mut u64>, bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        return Ok(0);
    }
    Ok(match offset {
        Some(offset) => {
            let wrote = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, bytes, *offset))?;
            *offset += wrote as u64;
            wrote
        }
        None => rustix::io::retry_on_intr(|| rustix::io::write(file, bytes))?,
    })
}

impl<S: KtlsSocket> Read for TlsStream<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if !self.early.is_empty() {
            let now = buf.len().min(self.early.len());
            buf[..now].copy_from_slice(&self.early[..now]);
            self.early.drain(..now);
            if self.early.is_empty() {
                self.early = Vec::new();
            }
            return Ok(now);
        }
        if self.received_close_notify {
            return Ok(0);
        }
        if !self.owed.is_empty() {
            self.pay_if_possible()?;
        }
        match self.socket.read(buf) {
            Ok(0) => Err(truncated()),
            Ok(len) => {
                self.control_records = 0;
                Ok(len)
            }
            Err(error) if error.raw_os_error() == Some(EIO) => self.read_by_type(buf),
            Err(error) => Err(error),
        }
    }
}

impl<S: KtlsSocket> Write for TlsStream<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.pay()?;
        if self.sent_close_notify {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.socket.write(buf)
    }

    /// Sends what is owed: answers to the peer's key updates, a close_notify.
    fn flush(&mut self) -> io::Result<()> {
        self.pay()?;
        self.socket.flush()
    }
}

fn blocking(handshake: &mut Handshake, socket: &mut (impl Read + Write)) -> io::Result<()> {
    match handshake.step(socket)? {
        Progress::Done => Ok(()),
        Progress::WantRead | Progress::WantWrite => Err(io::Error::new(
            ErrorKind::WouldBlock,
            "the socket is non-blocking, or its timeout ran out: drive `Handshake` instead",
        )),
    }
}

fn truncated() -> io::Error {
    io::Error::new(
        ErrorKind::UnexpectedEof,
        "the peer ended the connection without close_notify",
    )
}
