//! Linux's kTLS calls on a [`TcpStream`].
//!
//! | Linux | here |
//! | --- | --- |
//! | `setsockopt(SOL_TCP, TCP_ULP, "tls")` | [`set_ulp_tls`](TcpStream::set_ulp_tls) |
//! | `setsockopt(SOL_TLS, TLS_TX / TLS_RX)` | [`set_tls_tx`](TcpStream::set_tls_tx), [`set_tls_rx`](TcpStream::set_tls_rx) |
//! | `getsockopt(SOL_TLS, TLS_TX / TLS_RX)` | [`tls_tx`](TcpStream::tls_tx), [`tls_rx`](TcpStream::tls_rx) |
//! | `TLS_TX_MAX_PAYLOAD_LEN`, `TLS_RX_EXPECT_NO_PAD` | [`set_tx_max_payload`](TcpStream::set_tx_max_payload), [`set_rx_expect_no_pad`](TcpStream::set_rx_expect_no_pad) |
//! | `sendmsg` with `TLS_SET_RECORD_TYPE` | [`send_record`](TcpStream::send_record) |
//! | `recvmsg` with room for `TLS_GET_RECORD_TYPE` | [`recv_record`](TcpStream::recv_record) |
//! | `sendfile` | [`sendfile`](TcpStream::sendfile) |

use super::receive::{Reader, Receive, Step};
use super::send::Send;
use super::tcp::TcpStream;
use super::{end, scm};
use crate::protocol::{BoundedBytes, KeyBytes, MAX_RX_BYTES, Reply, SocketRequest};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use std::io;
use std::ops::BitOr;
use uktls_record::{ContentType, CryptoInfo};

/// Flags of [`TcpStream::send`] and [`TcpStream::send_record`], with Linux's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendFlags(u32);

impl SendFlags {
    /// The record stays open for more.
    pub const MORE: Self = Self(0x8000);
    /// The record ends here; so it does without `MORE`.
    pub const EOR: Self = Self(0x80);
    /// Do not wait.
    pub const DONTWAIT: Self = Self(0x40);
    /// No SIGPIPE; never raised anyway.
    pub const NOSIGNAL: Self = Self(0x4000);

    /// No flags.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Flags as `sendmsg` takes them; unknown ones are kept, and refused when they are used.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn check(self) -> Result<(), Errno> {
        let known = Self::MORE.0 | Self::EOR.0 | Self::DONTWAIT.0 | Self::NOSIGNAL.0;
        if self.0 & !known != 0 {
            Err(Errno::OPNOTSUPP)
        } else if self.contains(Self::MORE | Self::EOR) {
            Err(Errno::INVAL)
        } else {
            Ok(())
        }
    }
}

impl SendFlags {
    const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOr for SendFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

/// Flags of [`TcpStream::recv_record`], with Linux's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecvFlags(u32);

impl RecvFlags {
    /// Leave everything queued.
    pub const PEEK: Self = Self(0x2);
    /// Do not wait.
    pub const DONTWAIT: Self = Self(0x40);
    /// Wait until the buffer is full; a record of another type, an error or the end still ends the call.
    pub const WAITALL: Self = Self(0x100);

    /// No flags.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for RecvFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What [`TcpStream::recv_record`] received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the buffer. 0 with [`ContentType::APPLICATION_DATA`] or without a type is the end of the stream (or an empty buffer).
    pub len: usize,
    /// Type of the record or records they came from; `None` before keys for receiving are set.
    pub content_type: Option<ContentType>,
    /// `MSG_EOR`: they are the last of their record. Of data records only with
    /// [`set_record_ends`](TcpStream::set_record_ends).
    pub end_of_record: bool,
}

impl TcpStream {
    /// Attaches the TLS ULP: `setsockopt(SOL_TCP, TCP_ULP, "tls")`.
    ///
    /// # Errors
    /// `ENOTCONN` unless the connection is established, `EEXIST` the second time.
    pub fn set_ulp_tls(&self) -> io::Result<()> {
        self.act(SocketRequest::SetUlp)
    }

    /// From here on, what is sent is sealed with these keys: `setsockopt(SOL_TLS, TLS_TX)`. On a TLS 1.3 stream that has keys, new
    /// ones. Bytes sent before stay what they are; there is no round trip to the byte order.
    ///
    /// # Errors
    /// As Linux: `ENOPROTOOPT` without the ULP, `EBUSY` for TLS 1.2 that has keys, `EINVAL` for keys of another version or
    /// cipher than the stream's other keys.
    pub fn set_tls_tx(&self, keys: &CryptoInfo) -> io::Result<()> {
        // The lock orders this against sends of other threads.
        let mut state = self.shared().send();
        let key_id = match self.ask(SocketRequest::StageTx(KeyBytes::from(keys)))? {
            Reply::KeyId(id) => id,
            _ => return Err(self.shared().daemon.nonsense().into()),
        };
        state
            .keys(self.as_fd(), key_id)
            .map_err(|errno| self.write_error(errno))
    }

    /// From the first byte not yet read on, what is received are records under these keys: `setsockopt(SOL_TLS, TLS_RX)`. Bytes
    /// that came before this call and were not read are opened first. On a TLS 1.3 stream that has keys, new ones, for the
    /// records behind the KeyUpdate.
    ///
    /// # Errors
    /// As [`set_tls_tx`](Self::set_tls_tx).
    pub fn set_tls_rx(&self, keys: &CryptoInfo) -> io::Result<()> {
        let mut state = self.shared().receive();
        if state.keys().is_none() {
            self.open_unread(&mut state, KeyBytes::from(keys))?;
        } else {
            self.act(SocketRequest::RxKeys(KeyBytes::from(keys)))?;
        }
        state.set_keys(keys.version());
        Ok(())
    }

    /// Sets the first keys for receiving: they open also what lies unread on the socket.
    pub(super) fn open_unread(&self, state: &mut Receive, keys: KeyBytes) -> io::Result<()> {
        self.act(SocketRequest::RxFreeze)?;
        self.hand_back(state)
            .and_then(|()| self.act(SocketRequest::RxKeys(keys)))
            .inspect_err(|_| {
                // The first error is the one to report; without a thaw the stream would stay silent.
                let _ = self.act(SocketRequest::RxThaw);
            })
    }

    /// Gives what lies unread on the frozen socket back to the stack.
    fn hand_back(&self, state: &mut Receive) -> io::Result<()> {
        let mut piece = vec![0; MAX_RX_BYTES];
        loop {
            match state.step(self.as_fd(), &mut piece, Reader::Owner, false, false) {
                Ok(Step::Data { len, .. }) => {
                    let bytes = BoundedBytes::new(piece[..len].to_vec()).ok_or(Errno::MSGSIZE)?;
                    self.act(SocketRequest::RxBytes(bytes))?;
                }
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// `getsockopt(SOL_TLS, TLS_TX)`: key, salt and the current iv and record sequence.
    ///
    /// # Errors
    /// `EBUSY` when none are set, `EPERM` for another user than the socket's creator and where the daemon does not export keys.
    pub fn tls_tx(&self) -> io::Result<CryptoInfo> {
        self.keys(SocketRequest::GetTx)
    }

    /// `getsockopt(SOL_TLS, TLS_RX)`; see [`tls_tx`](Self::tls_tx).
    pub fn tls_rx(&self) -> io::Result<CryptoInfo> {
        self.keys(SocketRequest::GetRx)
    }

    fn keys(&self, which: SocketRequest) -> io::Result<CryptoInfo> {
        match self.ask(which)? {
            Reply::Keys(keys) => Ok(keys.crypto_info()?),
            _ => Err(self.shared().daemon.nonsense().into()),
        }
    }

    /// `TLS_TX_MAX_PAYLOAD_LEN`: largest plaintext of a record sent, 64 to 16384 bytes (63 under TLS 1.3).
    ///
    /// # Errors
    /// `EINVAL` outside the range, `EBUSY` while a record is open.
    pub fn set_tx_max_payload(&self, bytes: u16) -> io::Result<()> {
        self.act(SocketRequest::SetMaxPayload(bytes))
    }

    /// `TLS_RX_EXPECT_NO_PAD`: an optimisation, visible only in counters.
    ///
    /// # Errors
    /// `EINVAL` unless TLS 1.3 keys for receiving are set.
    pub fn set_rx_expect_no_pad(&self, expect: bool) -> io::Result<()> {
        self.act(SocketRequest::SetExpectNoPad(expect))
    }

    /// Records of one MSS while the window is small or after idle, full ones in bulk. An extension; Linux has no such option.
    pub fn set_adaptive_records(&self, adaptive: bool) -> io::Result<()> {
        self.act(SocketRequest::SetAdaptiveRecords(adaptive))
    }

    /// Whether [`recv_record`](Self::recv_record) tells where data records end (`MSG_EOR`), for those that are opened from now
    /// on. Linux always tells; here it costs a message a record, and most programs read a stream. Reads then bring the
    /// bytes of one record at a time.
    ///
    /// # Errors
    /// `ENOPROTOOPT` without the ULP.
    pub fn set_record_ends(&self, on: bool) -> io::Result<()> {
        self.act(SocketRequest::SetRecordEnds(on))
    }

    /// `send(2)`: on a stream with keys, closes its record at the end unless `MORE` is set. Returns how many bytes were taken.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for other flags, `EINVAL` for `MORE` with `EOR`, `EPIPE` or why the stream ended.
    pub fn send(&self, bytes: &[u8], flags: SendFlags) -> io::Result<usize> {
        flags.check()?;
        let more = flags.contains(SendFlags::MORE);
        self.sending(bytes.len(), flags, |state, fd, at| {
            if state.is_attached() {
                // Between the records of an AF_KTLS socket, as it is.
                state.raw(fd, &bytes[at..])
            } else {
                state.data(fd, &bytes[at..], more)
            }
        })
    }

    /// Repeats attempts to send what is behind position `at`, until all of `len` bytes went or the caller may not wait.
    pub(super) fn sending(
        &self,
        len: usize,
        flags: SendFlags,
        mut attempt: impl FnMut(&mut Send, BorrowedFd<'_>, usize) -> Result<usize, Errno>,
    ) -> io::Result<usize> {
        let dontwait = flags.contains(SendFlags::DONTWAIT);
        let mut at = 0;
        loop {
            match self.writing(dontwait, |state, fd| attempt(state, fd, at)) {
                Ok(sent) => at += sent,
                Err(_) if at > 0 => return Ok(at),
                Err(error) => return Err(error),
            }
            // Without waiting, what did not go at once is the caller's to send again.
            if at == len || dontwait || self.is_nonblocking()? {
                return Ok(at);
            }
        }
    }

    /// `sendmsg(2)` with `TLS_SET_RECORD_TYPE`: sends `bytes` as a record of its own, any type (more than one beyond 16384 bytes).
    /// An open data record is closed first. Nothing is sent of an empty record.
    ///
    /// # Errors
    /// `EINVAL` with `MORE`, `ENOPROTOOPT` before keys for sending are set: an alert must not leave in the clear.
    pub fn send_record(
        &self,
        content_type: ContentType,
        bytes: &[u8],
        flags: SendFlags,
    ) -> io::Result<usize> {
        flags.check()?;
        if flags.contains(SendFlags::MORE) {
            return Err(Errno::INVAL.into());
        }
        {
            let state = self.shared().send();
            if !state.armed() || state.is_attached() {
                return Err(Errno::NOPROTOOPT.into());
            }
        }
        let dontwait = flags.contains(SendFlags::DONTWAIT);
        let mut at = 0;
        while at < bytes.len() {
            match self.writing(dontwait, |state, fd| {
                state.record(fd, content_type.0, &bytes[at..])
            }) {
                Ok(sent) => at += sent,
                Err(_) if at > 0 => return Ok(at),
                Err(error) => return Err(error),
            }
        }
        Ok(at)
    }

    /// `recvmsg(2)` with room for `TLS_GET_RECORD_TYPE`: data up to the buffer's length, or bytes of one control record,
    /// never of two types. What does not fit of a control record stays queued.
    ///
    /// # Errors
    /// `EBADMSG`, `EMSGSIZE` or `EINVAL` behind the last good record, for good; `EKEYEXPIRED` behind a KeyUpdate until
    /// [`set_tls_rx`](Self::set_tls_rx); `EAGAIN`; why the stream ended.
    pub fn recv_record(&self, buf: &mut [u8], flags: RecvFlags) -> io::Result<Received> {
        let peek = flags.contains(RecvFlags::PEEK);
        let dontwait = flags.contains(RecvFlags::DONTWAIT);
        let mut at = 0;
        loop {
            let data = |len| Received {
                len,
                content_type: self.data_type(),
                end_of_record: false,
            };
            // Behind some data only more data may come: control records then meet a caller that cannot take them.
            match self.reading(&mut buf[at..], Reader::Owner, at == 0, peek, dontwait) {
                Ok(Step::Control {
                    content_type,
                    len,
                    whole,
                }) => {
                    return Ok(Received {
                        len,
                        content_type: Some(content_type),
                        end_of_record: whole,
                    });
                }
                Ok(Step::Data { len, ends_record }) => {
                    at += len;
                    if at == buf.len() || peek || !flags.contains(RecvFlags::WAITALL) {
                        return Ok(Received {
                            end_of_record: ends_record,
                            ..data(at)
                        });
                    }
                }
                Ok(Step::Nothing | Step::End) => return Ok(data(at)),
                Err(_) if at > 0 => return Ok(data(at)),
                Err(error) => return Err(error),
            }
        }
    }

    fn data_type(&self) -> Option<ContentType> {
        self.shared()
            .receive()
            .keys()
            .map(|_| ContentType::APPLICATION_DATA)
    }

    /// One read, waiting if it may. `Step::End` is an end of file; every other end is an error.
    pub(super) fn reading(
        &self,
        buf: &mut [u8],
        reader: Reader,
        types: bool,
        peek: bool,
        dontwait: bool,
    ) -> io::Result<Step> {
        let mut deadline = None;
        loop {
            let step = self
                .shared()
                .receive()
                .step(self.as_fd(), buf, reader, types, peek)?;
            match step {
                Step::Nothing => {
                    if dontwait || self.is_nonblocking()? {
                        return Err(Errno::AGAIN.into());
                    }
                    if deadline.is_none() {
                        deadline = self
                            .read_timeout()?
                            .map(|time| std::time::Instant::now() + time);
                    }
                    if scm::wait(self, rustix::event::PollFlags::IN, deadline)?.is_empty() {
                        return Err(Errno::AGAIN.into());
                    }
                }
                Step::End => {
                    return match self.shared().read_end(self)? {
                        reason if end::of_reading(reason).is_none() => Ok(Step::End),
                        reason => Err(end::of_reading(reason).unwrap_or(Errno::CONNABORTED).into()),
                    };
                }
                step => return Ok(step),
            }
        }
    }
}
