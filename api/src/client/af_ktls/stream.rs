//! `SOCK_STREAM`: records in the stream of a TCP socket, on that socket's own descriptor.
//!
//! Everything has its place in the stream, so nothing needs an end of its own: keys are marks among what is sent, what the owner
//! sends directly goes between two records, and a record that is not application data arrives raw, in its place.
//!
//! Keys for sending are put in force by the first thing that needs them, since the options that they consist of come one by one,
//! and half-changed keys must seal nothing. Keys for receiving are in force at once, so that the descriptor can tell of records;
//! the stack keeps the first record under them sealed until it opens.

use super::options::{Get, Options, Part, Set, way_of};
use super::{KtlsFlags, KtlsReceived, KtlsType, Way};
use crate::client::receive::{Reader, Step};
use crate::client::send::MAX_RECORD;
use crate::client::{SendFlags, TcpStream, scm};
use crate::protocol::{KeyBytes, Reply, SocketRequest};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uktls_record::{CipherSuite, ContentType, CryptoInfo, ProtocolVersion};
use uktls_stack::mark::{Mark, SendfileResult};
use zeroize::Zeroizing;

/// How long giving a stream back waits for what the stack had opened already.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a stream socket is bound to.
#[derive(Debug)]
pub(super) struct Attachment {
    under: TcpStream,
    options: Mutex<Options>,
}

impl Attachment {
    pub(super) fn new(under: &TcpStream, cipher: CipherSuite) -> io::Result<Attachment> {
        let under = under.try_clone()?;
        under.act(SocketRequest::SetAttached(true))?;
        let attachment = Attachment {
            under,
            options: Mutex::new(Options::new(KtlsType::Stream, cipher)),
        };
        attachment.under.act(SocketRequest::SetRecordEnds(true))?;
        Ok(attachment)
    }

    /// The TCP socket's descriptor.
    pub(super) fn end(&self) -> BorrowedFd<'_> {
        self.under.as_fd()
    }

    pub(super) fn peer(&self) -> io::Result<SocketAddr> {
        self.under.peer_addr()
    }

    pub(super) fn options(&self) -> MutexGuard<'_, Options> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the stream back, from the record with the number given on. What was opened and not read goes to `held`.
    pub(super) fn detach(&self, held: &mut Vec<u8>) -> io::Result<Option<u64>> {
        let fd = self.under.as_fd();
        {
            let mut state = self.under.shared().send();
            if state.is_attached() {
                // What it sent so far leaves under its keys, however long that takes.
                state
                    .end_keys(fd)
                    .map_err(|errno| self.under.write_error(errno))?;
            }
        }
        let mut state = self.under.shared().receive();
        let released = self.under.ask(SocketRequest::SetAttached(false));
        state.start_leaving();
        let number = match released? {
            Reply::Released(number) => number,
            _ => return Err(self.under.daemon().nonsense().into()),
        };
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        while !state.leave(fd, held)? {
            if scm::wait(fd, PollFlags::IN, Some(deadline))?.is_empty() {
                return Err(Errno::TIMEDOUT.into());
            }
        }
        Ok(number)
    }

    pub(super) fn set(&self, option: i32, value: &[u8]) -> io::Result<()> {
        let mut options = self.options();
        match options.set(option, value)? {
            Set::Mtu(_) | Set::Part(Way::Send) => Ok(()),
            Set::Part(Way::Receive) => self.commit(&mut options, Way::Receive),
        }
    }

    pub(super) fn get(&self, option: i32, room: usize) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut options = self.options();
        if way_of(option) == Some(Way::Send) {
            // Key and salt arm the direction: from then on it is the daemon that tells its keys, or does not.
            self.commit(&mut options, Way::Send)?;
        }
        let (way, part) = match options.get(option, room)? {
            Get::Value(value) => return Ok(value),
            Get::InForce(way, part) => (way, part),
        };
        let value = match part {
            Part::Iv => self.sequence(way)?.to_be_bytes().to_vec(),
            Part::Key => self.keys(way)?.key().to_vec(),
            Part::Salt => salt_of(&self.keys(way)?).to_vec(),
        };
        Ok(Zeroizing::new(value))
    }

    fn keys(&self, way: Way) -> io::Result<CryptoInfo> {
        let request = match way {
            Way::Send => SocketRequest::GetTx,
            Way::Receive => SocketRequest::GetRx,
        };
        match self.under.ask(request)? {
            Reply::Keys(keys) => Ok(keys.crypto_info()?),
            _ => Err(self.under.daemon().nonsense().into()),
        }
    }

    /// The next sequence number of a direction that has keys. Sending, that is only known once everything is sealed.
    fn sequence(&self, way: Way) -> io::Result<u64> {
        match way {
            Way::Send => {
                let SendfileResult { sent, errno } = self.under.answered(|state, fd, reply| {
                    state.with_descriptors(fd, Mark::Sequence, &[reply])
                })?;
                match errno {
                    0 => Ok(sent),
                    errno => Err(io::Error::from_raw_os_error(errno)),
                }
            }
            Way::Receive => {
                let keys = self.under.stat()?.rx.ok_or(Errno::BADMSG)?;
                Ok(keys.rec_seq)
            }
        }
    }

    /// Puts in force what was set of a direction since, if it has key and salt.
    fn commit(&self, options: &mut Options, way: Way) -> io::Result<()> {
        let Some(material) = options.material(way) else {
            return Ok(());
        };
        let iv = match material.iv {
            Some(iv) => iv,
            None => self.sequence(way)?,
        };
        let (cipher, key, salt) = (material.cipher, material.key, material.salt);
        let keys = match cipher {
            CipherSuite::ChaCha20Poly1305 => {
                CryptoInfo::new(ProtocolVersion::Tls12, cipher, key, &[], salt, iv)
            }
            // The explicit nonce is the sequence number.
            _ => CryptoInfo::tls12_gcm(cipher, key, salt, iv, iv),
        }
        .map_err(|_| Errno::BADMSG)?;
        self.put_in_force(way, &keys)?;
        options.armed(way);
        Ok(())
    }

    /// Sets all of a direction's keys.
    pub(super) fn set_keys(&self, way: Way, keys: &CryptoInfo) -> io::Result<()> {
        if keys.version() != ProtocolVersion::Tls12 {
            return Err(Errno::INVAL.into());
        }
        let mut options = self.options();
        self.put_in_force(way, keys)?;
        options.given(way, keys.cipher(), keys.key(), salt_of(keys));
        Ok(())
    }

    fn put_in_force(&self, way: Way, keys: &CryptoInfo) -> io::Result<()> {
        let bytes = KeyBytes::from(keys);
        match way {
            Way::Send => {
                let mut state = self.under.shared().send();
                let key_id = match self.under.ask(SocketRequest::StageTx(bytes))? {
                    Reply::KeyId(key_id) => key_id,
                    _ => return Err(self.under.daemon().nonsense().into()),
                };
                state
                    .attach_keys(self.under.as_fd(), key_id)
                    .map_err(|errno| self.under.write_error(errno))
            }
            Way::Receive => {
                let mut state = self.under.shared().receive();
                if state.is_attached() {
                    self.under.act(SocketRequest::RxKeys(bytes))?;
                } else {
                    self.under.open_unread(&mut state, bytes)?;
                }
                state.attach_keys();
                Ok(())
            }
        }
    }

    /// Puts in force what was set, since something is about to be sent.
    fn ready_to_send(&self) -> io::Result<()> {
        self.commit(&mut self.options(), Way::Send)
    }

    pub(super) fn send(&self, bytes: &[u8], flags: KtlsFlags) -> io::Result<usize> {
        self.ready_to_send()?;
        let more = flags.contains(KtlsFlags::MORE);
        self.under
            .sending(bytes.len(), send_flags(flags), |state, fd, at| {
                state.data(fd, &bytes[at..], more)
            })
    }

    pub(super) fn send_control(&self, content_type: ContentType, bytes: &[u8]) -> io::Result<()> {
        self.ready_to_send()?;
        for piece in bytes.chunks(MAX_RECORD) {
            self.under
                .writing(false, |state, fd| state.record(fd, content_type.0, piece))?;
        }
        Ok(())
    }

    /// Receives bytes, across records while they are there.
    pub(super) fn recv(
        &self,
        held: &Mutex<VecDeque<u8>>,
        buf: &mut [u8],
        flags: KtlsFlags,
    ) -> io::Result<KtlsReceived> {
        let peek = flags.contains(KtlsFlags::PEEK);
        let received = |len, end_of_record| KtlsReceived {
            len,
            truncated: false,
            end_of_record,
        };
        {
            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
            if !held.is_empty() {
                let len = buf.len().min(held.len());
                for (to, from) in buf.iter_mut().zip(held.iter()) {
                    *to = *from;
                }
                if !peek {
                    held.drain(..len);
                }
                return Ok(received(len, false));
            }
        }
        let mut at = 0;
        let mut end_of_record = false;
        loop {
            let dontwait = at > 0 || flags.contains(KtlsFlags::DONTWAIT);
            let step = self
                .under
                .reading(&mut buf[at..], Reader::Records, false, peek, dontwait);
            match step {
                Ok(Step::Data { len, ends_record }) => {
                    at += len;
                    end_of_record = ends_record;
                    if at == buf.len() || peek {
                        return Ok(received(at, end_of_record));
                    }
                }
                Ok(_) => return Ok(received(at, end_of_record)),
                Err(_) if at > 0 => return Ok(received(at, end_of_record)),
                Err(error) => return Err(error),
            }
        }
    }

    /// A range of a file, in records of the MTU's payload.
    pub(super) fn sendfile(
        &self,
        file: &impl AsFd,
        mut offset: u64,
        count: u64,
    ) -> io::Result<u64> {
        self.ready_to_send()?;
        let payload = self.options().payload();
        if payload == MAX_RECORD {
            return self.under.send_file(file, Some(&mut offset), count);
        }
        let set = |bytes: usize| {
            let mark = Mark::MaxPayload {
                bytes: bytes as u32, // at most MAX_RECORD
            };
            self.under.writing(false, |state, fd| state.mark(fd, mark))
        };
        set(payload)?;
        let sent = self.under.send_file(file, Some(&mut offset), count);
        set(MAX_RECORD)?;
        sent
    }

    /// What a poll shows where the descriptor shows this: a mark alone is nothing to read.
    pub(super) fn shown(&self, shown: PollFlags) -> PollFlags {
        let mut state = self.under.shared().receive();
        if !state.is_attached() || !shown.contains(PollFlags::IN) {
            return match state.attached_error() {
                Some(_) => shown | PollFlags::ERR,
                None => shown,
            };
        }
        match state.step(self.end(), &mut [0], Reader::Records, false, true) {
            Ok(Step::Nothing) => shown - PollFlags::IN,
            Ok(_) => shown,
            Err(_) => shown | PollFlags::ERR,
        }
    }

    /// Whether reading has stopped for good.
    pub(super) fn has_failed(&self) -> bool {
        self.under.shared().receive().attached_error().is_some()
    }
}

/// The part of the nonce that does not travel, as AF_KTLS has it.
fn salt_of(keys: &CryptoInfo) -> &[u8] {
    match keys.cipher() {
        CipherSuite::ChaCha20Poly1305 => keys.iv(),
        _ => keys.salt(),
    }
}

fn send_flags(flags: KtlsFlags) -> SendFlags {
    if flags.contains(KtlsFlags::DONTWAIT) {
        SendFlags::DONTWAIT
    } else {
        SendFlags::empty()
    }
}
