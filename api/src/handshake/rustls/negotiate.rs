//! The handshake itself, one record at a time.

use super::config::cipher_of;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, ConnectionTrafficSecrets, ServerConfig};
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use uktls_record::{CipherSuite, CryptoInfo, ProtocolVersion};

const HEADER_LEN: usize = 5;
/// Content types of records that may be queued in front of an alert.
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
/// RFC 5246 §6.2.3, the larger of the two versions: "The length MUST NOT exceed 2^14 + 2048."
const MAX_RECORD: usize = (1 << 14) + 2048;

/// How far a handshake has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Call [`Handshake::step`] again when the socket is readable.
    WantRead,
    /// Call [`Handshake::step`] again when the socket is writable.
    WantWrite,
    /// Call [`Handshake::complete`].
    Done,
}

/// A handshake in progress.
pub struct Handshake {
    side: Side,
    /// Records read and not yet consumed by rustls.
    incoming: Vec<u8>,
    /// Where in `incoming` the record that is being read starts.
    record_start: usize,
    /// Bytes to send, of which `flushed` are sent.
    outgoing: Vec<u8>,
    flushed: usize,
    early: Vec<u8>,
}

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// rustls's part in a connection whose records somebody else seals and opens.
pub(super) enum Kernel {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// What a finished handshake leaves: the keys to hand to the socket, and what comes with them.
pub struct Complete {
    /// Keys for sending.
    pub tx: CryptoInfo,
    /// Keys for receiving.
    pub rx: CryptoInfo,
    /// Application data that was decrypted during the handshake, to be delivered first. Nearly always empty.
    pub early: Vec<u8>,
    pub(super) kernel: Kernel,
}

impl std::fmt::Debug for Complete {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Complete")
            .field("tx", &self.tx)
            .field("rx", &self.rx)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake")
            .field("incoming", &self.incoming.len())
            .field("outgoing", &(self.outgoing.len() - self.flushed))
            .finish_non_exhaustive()
    }
}

/// What rustls wants next.
enum Wish {
    /// Everything it could do without more input is done.
    Record,
    /// Call again.
    Again,
    /// It may send application data; on a server that can be before the client's Finished.
    Traffic,
    /// The peer closed instead.
    Closed,
}

impl Handshake {
    /// As client of `name`. The configuration must have `enable_secret_extraction` (as
    /// [`client_config`](super::client_config)'s has).
    ///
    /// # Errors
    /// What rustls says against the configuration.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<Handshake> {
        let connection = UnbufferedClientConnection::new(config, name).map_err(refused)?;
        Ok(Handshake::new(Side::Client(connection)))
    }

    /// As server. The configuration must have `enable_secret_extraction`.
    ///
    /// # Errors
    /// What rustls says against the configuration.
    pub fn server(config: Arc<ServerConfig>) -> io::Result<Handshake> {
        let connection = UnbufferedServerConnection::new(config).map_err(refused)?;
        Ok(Handshake::new(Side::Server(connection)))
    }

    fn new(side: Side) -> Handshake {
        let (incoming, outgoing, early) = Default::default();
        Handshake {
            side,
            incoming,
            record_start: 0,
            outgoing,
            flushed: 0,
            early,
        }
    }

    /// Goes on as far as the socket allows. A blocking socket gives [`Progress::Done`] or an error.
    ///
    /// # Errors
    /// `InvalidData` around a `rustls::Error` for what the peer did wrong (an alert has been sent then, if there was
    /// room), `UnexpectedEof` when it hung up, and the socket's own.
    pub fn step(&mut self, socket: &mut (impl Read + Write)) -> io::Result<Progress> {
        loop {
            let wish = match self.advance() {
                Ok(wish) => wish,
                Err(error) => {
                    self.say_goodbye(&error, socket);
                    return Err(error);
                }
            };
            let done = matches!(wish, Wish::Traffic) && !self.is_handshaking();
            if matches!(wish, Wish::Again) {
                continue;
            }
            if matches!(wish, Wish::Closed) {
                return Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "the peer closed during the handshake",
                ));
            }
            // A whole flight leaves in one write.
            if !self.flush(socket)? {
                return Ok(Progress::WantWrite);
            }
            if done {
                return Ok(Progress::Done);
            }
            if !self.read_record(socket)? {
                return Ok(Progress::WantRead);
            }
        }
    }

    /// The keys of a handshake that is [`Progress::Done`].
    ///
    /// # Errors
    /// `InvalidInput` before that; `Unsupported` for a cipher suite that the stack has no records for.
    pub fn complete(self) -> io::Result<Complete> {
        if !self.incoming.is_empty() {
            // Reading stops at record boundaries and rustls consumes whole records; a rest means that a handshake
            // message was begun inside the last one.
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "the peer began another message behind its Finished",
            ));
        }
        let (secrets, kernel) = match self.side {
            Side::Client(connection) => {
                let (secrets, kernel) = connection
                    .dangerous_into_kernel_connection()
                    .map_err(refused)?;
                (secrets, Kernel::Client(kernel))
            }
            Side::Server(connection) => {
                let (secrets, kernel) = connection
                    .dangerous_into_kernel_connection()
                    .map_err(refused)?;
                (secrets, Kernel::Server(kernel))
            }
        };
        let tx = kernel.crypto_info(secrets.tx.0, &secrets.tx.1)?;
        let rx = kernel.crypto_info(secrets.rx.0, &secrets.rx.1)?;
        Ok(Complete {
            tx,
            rx,
            early: self.early,
            kernel,
        })
    }

    fn is_handshaking(&self) -> bool {
        match &self.side {
            Side::Client(connection) => connection.is_handshaking(),
            Side::Server(connection) => connection.is_handshaking(),
        }
    }

    /// One turn of rustls's state machine.
    fn advance(&mut self) -> io::Result<Wish> {
        let (discard, wish) = match &mut self.side {
            Side::Client(connection) => {
                let status = connection.process_tls_records(&mut self.incoming);
                obey(status, &mut self.outgoing, &mut self.early)
            }
            Side::Server(connection) => {
                let status = connection.process_tls_records(&mut self.incoming);
                obey(status, &mut self.outgoing, &mut self.early)
            }
        };
        self.incoming.drain(..discard);
        self.record_start = self.record_start.saturating_sub(discard);
        wish
    }

    /// Sends what is waiting; `false` when the socket has no room for all of it.
    fn flush(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        while self.flushed < self.outgoing.len() {
            match socket.write(&self.outgoing[self.flushed..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => self.flushed += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.outgoing.clear();
        self.flushed = 0;
        Ok(true)
    }

    /// Reads up to the end of the current record and not a byte further; `false` when the socket has no more for now.
    fn read_record(&mut self, socket: &mut impl Read) -> io::Result<bool> {
        loop {
            let here = self.incoming.len() - self.record_start;
            let wanted = match self.incoming[self.record_start..] {
                [content_type, major, _, high, low, ..] => {
                    let len = usize::from(u16::from_be_bytes([high, low]));
                    if !(20..=23).contains(&content_type) || major != 3 || len > MAX_RECORD {
                        // Not TLS: rustls says so best.
                        self.record_start = self.incoming.len();
                        return Ok(true);
                    }
                    HEADER_LEN + len
                }
                _ => HEADER_LEN,
            };
            if here >= HEADER_LEN && here == wanted {
                self.record_start = self.incoming.len();
                return Ok(true);
            }
            let end = self.incoming.len();
            self.incoming.resize(end + wanted - here, 0);
            let read = socket.read(&mut self.incoming[end..]);
            self.incoming.truncate(end + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => {
                    return Err(io::Error::new(
                        ErrorKind::UnexpectedEof,
                        "the peer hung up during the handshake",
                    ));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends the alert that rustls queued for its last error, if the socket takes it at once.
    ///
    /// What is queued comes out before more input is looked at. So rustls is asked only as long as something is queued,
    /// of which the alert is the last: input that it refused once must not be put before it again.
    fn say_goodbye(&mut self, error: &io::Error, socket: &mut impl Write) {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
        if matches!(cause, None | Some(rustls::Error::AlertReceived(_))) {
            return; // not rustls's error, or the peer's own alert: nothing is queued
        }
        loop {
            let start = self.outgoing.len();
            let more = matches!(self.advance(), Ok(Wish::Again));
            let in_front_of_it = [Some(&CHANGE_CIPHER_SPEC), Some(&HANDSHAKE)];
            if !(more && in_front_of_it.contains(&self.outgoing.get(start))) {
                break;
            }
        }
        // The error that ended the handshake is the one to report.
        drop(self.flush(socket));
    }
}

/// Does what one status asks for; gives how much input is used up, and what is next.
fn obey<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Vec<u8>,
    early: &mut Vec<u8>,
) -> (usize, io::Result<Wish>) {
    let mut discard = status.discard;
    let wish = match status.state {
        Err(error) => Err(refused(error)),
        Ok(ConnectionState::EncodeTlsData(mut data)) => encode(outgoing, |room| data.encode(room)),
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Wish::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Wish::Record),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Wish::Traffic),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    early.extend_from_slice(record.payload);
                }
                Some(Err(error)) => break Err(refused(error)),
                None => break Ok(Wish::Again),
            }
        },
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Wish::Closed),
        Ok(other) => Err(io::Error::other(format!(
            "rustls reached a state that was never asked for: {other:?}"
        ))),
    };
    (discard, wish)
}

/// Appends what `encode` gives to `outgoing`; its size is what the first, too small room is refused with.
fn encode(
    outgoing: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> io::Result<Wish> {
    let start = outgoing.len();
    let mut room = 0;
    loop {
        outgoing.resize(start + room, 0);
        match encode(&mut outgoing[start..]) {
            Ok(len) => {
                outgoing.truncate(start + len);
                return Ok(Wish::Again);
            }
            Err(EncodeError::InsufficientSize(needed)) if needed.required_size > room => {
                room = needed.required_size
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

impl Kernel {
    pub(super) fn version(&self) -> io::Result<ProtocolVersion> {
        let version = match self {
            Kernel::Client(kernel) => kernel.protocol_version(),
            Kernel::Server(kernel) => kernel.protocol_version(),
        };
        match version {
            rustls::ProtocolVersion::TLSv1_2 => Ok(ProtocolVersion::Tls12),
            rustls::ProtocolVersion::TLSv1_3 => Ok(ProtocolVersion::Tls13),
            other => Err(io::Error::new(
                ErrorKind::Unsupported,
                format!("no records for {other:?}"),
            )),
        }
    }

    pub(super) fn cipher(&self) -> io::Result<CipherSuite> {
        let suite = match self {
            Kernel::Client(kernel) => kernel.negotiated_cipher_suite(),
            Kernel::Server(kernel) => kernel.negotiated_cipher_suite(),
        };
        cipher_of(suite.suite()).ok_or_else(|| {
            io::Error::new(
                ErrorKind::Unsupported,
                format!("no records for {:?}", suite.suite()),
            )
        })
    }

    /// The socket's form of a direction's secrets. The negotiated suite names the cipher.
    pub(super) fn crypto_info(
        &self,
        sequence: u64,
        secrets: &ConnectionTrafficSecrets,
    ) -> io::Result<CryptoInfo> {
        let (key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
            _ => {
                return Err(io::Error::new(
                    ErrorKind::Unsupported,
                    "no records for the negotiated cipher",
                ));
            }
        };
        CryptoInfo::from_key_and_iv(
            self.version()?,
            self.cipher()?,
            key.as_ref(),
            iv.as_ref(),
            sequence,
        )
        .map_err(io::Error::other)
    }
}

/// A TLS error as `io::Error`: the peer's data were not acceptable.
pub(super) fn refused(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}
