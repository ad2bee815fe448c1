//! `SOCK_DGRAM`: an association with the peer of a UDP socket, and its end, on which a message is a record.

use super::options::{Get, Options, Part, Set};
use super::{KtlsFlags, KtlsReceived, KtlsType, Way};
use crate::client::UdpSocket;
use crate::client::scm;
use crate::client::udp::gone;
use crate::protocol::{
    BoundedBytes, DatagramRequest, DtlsStat, EpochKeyBytes, MAX_RX_BYTES, Reply, Request,
    SocketRequest,
};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use uktls_record::dtls::EpochKeys;
use uktls_record::header::MAX_PLAINTEXT;
use uktls_record::{CipherSuite, ContentType};
use uktls_stack::dtls::end::{NOTE, read_note};
use uktls_stack::mark::{MAX_FILE_RANGE, Mark, SendfileResult};
use zeroize::Zeroizing;

/// What a datagram socket is bound to.
#[derive(Debug)]
pub(super) struct Association {
    under: UdpSocket,
    pub(super) peer: SocketAddr,
    end: OwnedFd,
    options: Mutex<Options>,
}

impl Association {
    pub(super) fn new(under: &UdpSocket, cipher: CipherSuite) -> io::Result<Association> {
        let peer = under.peer_addr()?;
        let under = under.try_clone()?;
        let request = Request::AttachDtls { peer };
        let end = match under.daemon.ask(&request, Some(under.as_fd()))? {
            (Reply::Association, Some(end)) => end,
            _ => return Err(under.daemon.nonsense().into()),
        };
        let association = Association {
            under,
            peer,
            end,
            options: Mutex::new(Options::new(KtlsType::Datagram, cipher)),
        };
        // What the UDP socket holds unread goes through the association once more; its own comes back to it.
        for (from, datagram) in association.under.drain()? {
            if let Some(datagram) = BoundedBytes::<MAX_RX_BYTES>::new(datagram) {
                association.act(DatagramRequest::GiveBack { from, datagram })?;
            }
        }
        Ok(association)
    }

    /// The association's end.
    pub(super) fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    pub(super) fn detach(&self) -> io::Result<()> {
        self.act(DatagramRequest::Detach)
    }

    pub(super) fn options(&self) -> MutexGuard<'_, Options> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, request: DatagramRequest) -> io::Result<Reply> {
        self.under.ask(SocketRequest::Datagram(request))
    }

    fn act(&self, request: DatagramRequest) -> io::Result<()> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            _ => Err(self.under.daemon.nonsense().into()),
        }
    }

    pub(super) fn stat(&self) -> io::Result<DtlsStat> {
        match self.ask(DatagramRequest::Info)? {
            Reply::Dtls(stat) => Ok(*stat),
            _ => Err(self.under.daemon.nonsense().into()),
        }
    }

    /// Epoch and next sequence number of a direction that has keys.
    fn iv(&self, way: Way) -> io::Result<u64> {
        let stat = self.stat()?;
        let epoch = match way {
            Way::Send => stat.tx,
            Way::Receive => stat.rx,
        }
        .ok_or(Errno::BADMSG)?;
        Ok(epoch.epoch << 48 | epoch.sequence)
    }

    fn keys(&self, way: Way) -> io::Result<EpochKeys> {
        let request = match way {
            Way::Send => DatagramRequest::GetTx,
            Way::Receive => DatagramRequest::GetRx,
        };
        match self.ask(request)? {
            Reply::EpochKeys(keys) => Ok(keys.epoch_keys()?),
            _ => Err(self.under.daemon.nonsense().into()),
        }
    }

    pub(super) fn set(&self, option: i32, value: &[u8]) -> io::Result<()> {
        let mut options = self.options();
        match options.set(option, value)? {
            Set::Mtu(mtu) => self.act(DatagramRequest::SetMtu(u16::try_from(mtu).ok())),
            Set::Part(way) => {
                let Some(material) = options.material(way) else {
                    return Ok(());
                };
                let iv = match material.iv {
                    Some(iv) => iv,
                    None => self.iv(way)?,
                };
                let (epoch, sequence) = ((iv >> 48) as u16, iv & ((1 << 48) - 1));
                let cipher = material.cipher;
                let keys = EpochKeys::dtls12(cipher, material.key, material.salt, epoch, sequence)
                    .map_err(|_| Errno::BADMSG)?;
                self.put_in_force(way, &keys)?;
                options.armed(way);
                Ok(())
            }
        }
    }

    pub(super) fn get(&self, option: i32, room: usize) -> io::Result<Zeroizing<Vec<u8>>> {
        let value = match self.options().get(option, room)? {
            Get::Value(value) => return Ok(value),
            Get::InForce(way, Part::Iv) => self.iv(way)?.to_be_bytes().to_vec(),
            Get::InForce(way, Part::Key) => self.keys(way)?.key().to_vec(),
            Get::InForce(way, Part::Salt) => self.keys(way)?.iv().to_vec(),
        };
        Ok(Zeroizing::new(value))
    }

    /// Sets all of a direction's keys.
    pub(super) fn set_keys(&self, way: Way, keys: &EpochKeys) -> io::Result<()> {
        let mut options = self.options();
        self.put_in_force(way, keys)?;
        options.given(way, keys.cipher(), keys.key(), keys.iv());
        Ok(())
    }

    /// Puts keys in force: those for receiving at once, those for sending behind what was sent so far.
    fn put_in_force(&self, way: Way, keys: &EpochKeys) -> io::Result<()> {
        let bytes = EpochKeyBytes::from(keys);
        match way {
            Way::Receive => self.act(DatagramRequest::RxKeys(bytes)),
            Way::Send => match self.ask(DatagramRequest::StageTx(bytes))? {
                Reply::KeyId(key_id) => {
                    self.send_mark(Mark::TxKeys { key_id }, &[self.end()])?;
                    Ok(())
                }
                _ => Err(self.under.daemon.nonsense().into()),
            },
        }
    }

    /// Sends a mark, waiting for room.
    fn send_mark(&self, mark: Mark, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let bytes = mark.encode();
        loop {
            let message = [IoSlice::new(&bytes)];
            match scm::send(&self.end, &message, descriptors, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    scm::wait(&self.end, PollFlags::OUT, None)?;
                }
                Err(errno) => return Err(gone(errno)),
            }
        }
    }

    /// Sends one record, which is one datagram.
    pub(super) fn send(
        &self,
        content_type: ContentType,
        bytes: &[u8],
        flags: KtlsFlags,
    ) -> io::Result<usize> {
        if bytes.len() > MAX_PLAINTEXT {
            return Err(Errno::TOOBIG.into());
        }
        if content_type.0 == NOTE {
            return Err(Errno::INVAL.into());
        }
        let mut system = SendFlags::empty();
        if flags.contains(KtlsFlags::DONTWAIT) {
            system |= SendFlags::DONTWAIT;
        }
        let content_type = [content_type.0];
        let message = [IoSlice::new(&content_type), IoSlice::new(bytes)];
        scm::send(&self.end, &message, &[], system).map_err(gone)?;
        Ok(bytes.len())
    }

    /// Receives one record.
    pub(super) fn recv(&self, buf: &mut [u8], flags: KtlsFlags) -> io::Result<KtlsReceived> {
        let mut system = RecvFlags::empty();
        for (flag, same) in [
            (KtlsFlags::PEEK, RecvFlags::PEEK),
            (KtlsFlags::DONTWAIT, RecvFlags::DONTWAIT),
        ] {
            if flags.contains(flag) {
                system |= same;
            }
        }
        let room = buf.len();
        let mut content_type = [0];
        // A note is five bytes, and must be seen whole however small the caller's buffer is.
        let mut spill = [0; 4];
        let mut slices = [
            IoSliceMut::new(&mut content_type),
            IoSliceMut::new(buf),
            IoSliceMut::new(&mut spill),
        ];
        let received =
            scm::receive(&self.end, &mut slices, system | RecvFlags::TRUNC).map_err(gone)?;
        let len = received.len.checked_sub(1).ok_or(Errno::CONNABORTED)?;
        if content_type[0] == NOTE {
            let mut note = vec![NOTE];
            note.extend_from_slice(&buf[..room.min(len)]);
            note.extend_from_slice(&spill[..len.saturating_sub(room).min(4)]);
            if flags.contains(KtlsFlags::PEEK) {
                // An error is reported once, peeked at or not.
                scm::receive(
                    &self.end,
                    &mut [IoSliceMut::new(&mut [0; 8])],
                    RecvFlags::empty(),
                )
                .map_err(gone)?;
            }
            let errno = read_note(&note).unwrap_or(Errno::PROTO.raw_os_error());
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(KtlsReceived {
            len: if flags.contains(KtlsFlags::TRUNC) {
                len
            } else {
                len.min(room)
            },
            truncated: len > room,
            end_of_record: true,
        })
    }

    /// Whether an error is next.
    pub(super) fn error_waits(&self) -> bool {
        let mut first = [0];
        let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        scm::receive(&self.end, &mut [IoSliceMut::new(&mut first)], peek).is_ok()
            && first[0] == NOTE
    }

    /// Sends a range of a regular file; see [`KtlsSocket::sendfile`](super::KtlsSocket::sendfile).
    pub(super) fn sendfile(&self, file: &impl AsFd, offset: u64, count: u64) -> io::Result<u64> {
        let file = file.as_fd();
        let stat = fstat(file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let len = size.saturating_sub(offset).min(count).min(MAX_FILE_RANGE);
        if len == 0 {
            return Ok(0);
        }
        let mark = Mark::File {
            offset,
            len,
            reply: true,
            hold: false,
        };
        self.answered(mark, file)
    }

    /// Sends what waits in a pipe; see [`KtlsSocket::splice_from`](super::KtlsSocket::splice_from).
    pub(super) fn splice_from(&self, pipe: BorrowedFd<'_>, count: u64) -> io::Result<u64> {
        let len = count.min(MAX_FILE_RANGE);
        self.answered(Mark::Pipe { len }, pipe)
    }

    /// Sends a mark with a file, and waits for the answer.
    fn answered(&self, mark: Mark, file: BorrowedFd<'_>) -> io::Result<u64> {
        let (near, far) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        self.send_mark(mark, &[file, far.as_fd()])?;
        drop(far);
        let result = await_result(&near)?;
        match result.errno {
            0 => Ok(result.sent),
            _ if result.sent > 0 => Ok(result.sent),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// The answer to a file's mark; that there is none means that the association is gone.
fn await_result(near: &OwnedFd) -> Result<SendfileResult, Errno> {
    let mut bytes = [0; SendfileResult::LEN];
    loop {
        match rustix::net::recv(near, &mut bytes, RecvFlags::empty()) {
            Ok((_, n)) if n == bytes.len() => return Ok(SendfileResult::decode(&bytes)),
            Ok(_) => return Err(Errno::CONNABORTED),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
