//! The options of AF_KTLS: numbers, lengths, and when a direction is armed.

use super::{Bound, Way};
use crate::protocol::DatagramRequest;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::io;
use uktls_record::CipherSuite;
use uktls_record::dtls::{DtlsVersion, EpochKeys};
use zeroize::Zeroizing;

/// The family's number, and the level of its options.
pub const AF_KTLS: i32 = 12;
/// The same.
pub const PF_KTLS: i32 = AF_KTLS;
/// Epoch and next sequence number, receiving: 8 bytes.
pub const KTLS_SET_IV_RECV: i32 = 1;
/// Key, receiving: 16 bytes.
pub const KTLS_SET_KEY_RECV: i32 = 2;
/// Salt, receiving: 4 bytes.
pub const KTLS_SET_SALT_RECV: i32 = 3;
/// Epoch and next sequence number, sending: 8 bytes.
pub const KTLS_SET_IV_SEND: i32 = 4;
/// Key, sending: 16 bytes.
pub const KTLS_SET_KEY_SEND: i32 = 5;
/// Salt, sending: 4 bytes.
pub const KTLS_SET_SALT_SEND: i32 = 6;
/// Length of the records a file is sent in, overhead included: a `size_t`.
pub const KTLS_SET_MTU: i32 = 7;
/// Gives the socket beneath back.
pub const KTLS_UNATTACH: i32 = 8;
/// See [`KTLS_SET_IV_RECV`].
pub const KTLS_GET_IV_RECV: i32 = 11;
/// See [`KTLS_SET_KEY_RECV`].
pub const KTLS_GET_KEY_RECV: i32 = 12;
/// See [`KTLS_SET_SALT_RECV`].
pub const KTLS_GET_SALT_RECV: i32 = 13;
/// See [`KTLS_SET_IV_SEND`].
pub const KTLS_GET_IV_SEND: i32 = 14;
/// See [`KTLS_SET_KEY_SEND`].
pub const KTLS_GET_KEY_SEND: i32 = 15;
/// See [`KTLS_SET_SALT_SEND`].
pub const KTLS_GET_SALT_SEND: i32 = 16;
/// See [`KTLS_SET_MTU`].
pub const KTLS_GET_MTU: i32 = 17;
/// The module's one cipher, AES-128-GCM.
pub const KTLS_CIPHER_AES_GCM_128: u16 = 51;
/// The latest version: 1.2.
pub const KTLS_VERSION_LATEST: u16 = 0;
/// DTLS 1.2.
pub const KTLS_VERSION_1_2: u16 = 1;

/// Length of an IV option: epoch (2) and sequence number (6).
const IV_LEN: usize = 8;

/// What is set, and not readable from the daemon before the direction is armed.
#[derive(Debug)]
pub(super) struct Options {
    cipher: CipherSuite,
    send: Parts,
    receive: Parts,
    mtu: Option<usize>,
}

/// One direction's options.
#[derive(Default)]
struct Parts {
    iv: Option<[u8; IV_LEN]>,
    key: Option<Zeroizing<Vec<u8>>>,
    salt: Option<Zeroizing<Vec<u8>>>,
    armed: bool,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("iv", &self.iv.is_some())
            .field("key", &self.key.is_some())
            .field("salt", &self.salt.is_some())
            .field("armed", &self.armed)
            .finish()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Iv,
    Key,
    Salt,
}

impl Options {
    pub(super) fn new(cipher: CipherSuite) -> Options {
        Options {
            cipher,
            send: Parts::default(),
            receive: Parts::default(),
            mtu: None,
        }
    }

    /// Whether a direction has keys.
    pub(super) fn is_armed(&self, way: Way) -> bool {
        match way {
            Way::Send => self.send.armed,
            Way::Receive => self.receive.armed,
        }
    }

    /// A direction got its keys as a whole.
    pub(super) fn armed(&mut self, way: Way) {
        self.parts(way).armed = true;
    }

    /// Plaintext of the records a file is sent in.
    pub(super) fn payload(&self) -> usize {
        let most = uktls_record::header::MAX_PLAINTEXT;
        self.mtu.map_or(most, |mtu| {
            mtu.saturating_sub(DtlsVersion::Dtls12.overhead(self.cipher))
                .clamp(1, most)
        })
    }

    fn parts(&mut self, way: Way) -> &mut Parts {
        match way {
            Way::Send => &mut self.send,
            Way::Receive => &mut self.receive,
        }
    }

    fn len(&self, part: Part) -> usize {
        match part {
            Part::Iv => IV_LEN,
            Part::Key => self.cipher.key_len(),
            // The part of the nonce that does not travel: GCM's salt, or the whole iv.
            Part::Salt => 12 - self.cipher.explicit_nonce_len(DtlsVersion::Dtls12.as_tls()),
        }
    }

    /// The direction's keys, if key and salt are set. Without an IV they start with number 0 of epoch 0.
    fn keys(&mut self, way: Way) -> Option<EpochKeys> {
        let cipher = self.cipher;
        let parts = self.parts(way);
        let (key, salt) = (parts.key.as_ref()?, parts.salt.as_ref()?);
        let [e0, e1, sequence @ ..] = parts.iv.unwrap_or_default();
        let sequence = sequence.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        EpochKeys::dtls12(cipher, key, salt, u16::from_be_bytes([e0, e1]), sequence).ok()
    }
}

fn meaning(option: i32) -> Option<(Way, Part)> {
    Some(match option {
        KTLS_SET_IV_RECV | KTLS_GET_IV_RECV => (Way::Receive, Part::Iv),
        KTLS_SET_KEY_RECV | KTLS_GET_KEY_RECV => (Way::Receive, Part::Key),
        KTLS_SET_SALT_RECV | KTLS_GET_SALT_RECV => (Way::Receive, Part::Salt),
        KTLS_SET_IV_SEND | KTLS_GET_IV_SEND => (Way::Send, Part::Iv),
        KTLS_SET_KEY_SEND | KTLS_GET_KEY_SEND => (Way::Send, Part::Key),
        KTLS_SET_SALT_SEND | KTLS_GET_SALT_SEND => (Way::Send, Part::Salt),
        _ => return None,
    })
}

pub(super) fn set(bound: &Bound, fd: &OwnedFd, option: i32, value: &[u8]) -> io::Result<()> {
    let mut options = bound.options();
    if option == KTLS_SET_MTU {
        let value = <[u8; size_of::<usize>()]>::try_from(value).map_err(|_| Errno::BADMSG)?;
        let mtu = usize::from_ne_bytes(value);
        let records = u16::try_from(mtu).ok();
        bound.act(DatagramRequest::SetMtu(records))?;
        options.mtu = Some(mtu);
        return Ok(());
    }
    // A number that only reads does not set.
    let (way, part) = meaning(option)
        .filter(|_| option < KTLS_UNATTACH)
        .ok_or(Errno::BADMSG)?;
    if value.len() != options.len(part) {
        return Err(Errno::BADMSG.into());
    }
    let parts = options.parts(way);
    match part {
        Part::Iv => parts.iv = value.try_into().ok(),
        Part::Key => parts.key = Some(Zeroizing::new(value.to_vec())),
        Part::Salt => parts.salt = Some(Zeroizing::new(value.to_vec())),
    }
    if let Some(keys) = options.keys(way) {
        bound.set_keys(fd, way, &keys)?;
        options.armed(way);
    }
    Ok(())
}

pub(super) fn get(bound: &Bound, option: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut options = bound.options();
    let mut give = |bytes: &[u8]| {
        let place = value.get_mut(..bytes.len()).ok_or(Errno::NOMEM)?;
        place.copy_from_slice(bytes);
        Ok::<_, io::Error>(bytes.len())
    };
    if option == KTLS_GET_MTU {
        let payload = options
            .mtu
            .unwrap_or_else(|| options.payload() + DtlsVersion::Dtls12.overhead(options.cipher));
        return give(&payload.to_ne_bytes());
    }
    let (way, part) = meaning(option)
        .filter(|_| option > KTLS_UNATTACH)
        .ok_or(Errno::BADMSG)?;
    // Too small comes first, as in the module: the length is looked at before the value.
    give(&vec![0; options.len(part)])?;
    let parts = options.parts(way);
    if !parts.armed {
        let set = match part {
            Part::Iv => parts.iv.as_ref().map(|iv| &iv[..]),
            Part::Key => parts.key.as_ref().map(|key| &key[..]),
            Part::Salt => parts.salt.as_ref().map(|salt| &salt[..]),
        };
        return give(set.ok_or(Errno::BADMSG)?);
    }
    match part {
        Part::Iv => {
            let stat = bound.stat()?;
            let epoch = match way {
                Way::Send => stat.tx,
                Way::Receive => stat.rx,
            }
            .ok_or(Errno::BADMSG)?;
            give(&(epoch.epoch << 48 | epoch.sequence).to_be_bytes())
        }
        Part::Key => give(bound.keys(way)?.key()),
        Part::Salt => give(bound.keys(way)?.iv()),
    }
}
