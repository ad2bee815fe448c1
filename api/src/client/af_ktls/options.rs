//! The options of AF_KTLS: numbers, lengths, and when a direction is armed.

use super::{KtlsType, Way};
use rustix::io::Errno;
use uktls_record::header::MAX_PLAINTEXT;
use uktls_record::{CipherSuite, ProtocolVersion};
use zeroize::Zeroizing;

/// The family's number, and the level of its options.
pub const AF_KTLS: i32 = 12;
/// The same.
pub const PF_KTLS: i32 = AF_KTLS;
/// Next sequence number, receiving, under DTLS with the epoch in its upper 16 bits: 8 bytes.
pub const KTLS_SET_IV_RECV: i32 = 1;
/// Key, receiving: 16 bytes.
pub const KTLS_SET_KEY_RECV: i32 = 2;
/// Salt, receiving: 4 bytes.
pub const KTLS_SET_SALT_RECV: i32 = 3;
/// As [`KTLS_SET_IV_RECV`], sending.
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
/// Version 1.2, of TLS or DTLS.
pub const KTLS_VERSION_1_2: u16 = 1;

/// Length of an IV option: a sequence number (8), or epoch (2) and sequence number (6).
pub(super) const IV_LEN: usize = 8;

/// A nonce's length; what of it does not travel is the salt.
const NONCE_LEN: usize = 12;

/// Bytes that a record adds to its plaintext, explicit nonce aside: the header, and the tag.
const TLS_FRAME: usize = 5 + 16;
const DTLS_FRAME: usize = 13 + 16;

/// What is set on a bound socket, and not readable from the daemon before the direction is armed.
#[derive(Debug)]
pub(super) struct Options {
    kind: KtlsType,
    cipher: CipherSuite,
    send: Parts,
    receive: Parts,
    mtu: Option<usize>,
}

/// One direction's options.
#[derive(Default)]
struct Parts {
    /// As it was set, until the direction is armed with it.
    iv: Option<u64>,
    key: Option<Zeroizing<Vec<u8>>>,
    salt: Option<Zeroizing<Vec<u8>>>,
    armed: bool,
    changed: bool,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("iv", &self.iv)
            .field("key", &self.key.is_some())
            .field("salt", &self.salt.is_some())
            .field("armed", &self.armed)
            .finish_non_exhaustive()
    }
}

/// One of a direction's options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Iv,
    Key,
    Salt,
}

/// What an option that was set asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    Mtu(usize),
    Part(Way),
}

/// Where the value of an option is found.
#[derive(Debug)]
pub(super) enum Get {
    /// Here.
    Value(Zeroizing<Vec<u8>>),
    /// With the keys that are in force.
    InForce(Way, Part),
}

/// What a direction is to be armed with.
pub(super) struct Material<'a> {
    pub(super) cipher: CipherSuite,
    pub(super) key: &'a [u8],
    pub(super) salt: &'a [u8],
    /// `None`: the direction goes on with the number it has.
    pub(super) iv: Option<u64>,
}

impl Options {
    pub(super) fn new(kind: KtlsType, cipher: CipherSuite) -> Options {
        Options {
            kind,
            cipher,
            send: Parts::default(),
            receive: Parts::default(),
            mtu: None,
        }
    }

    /// Whether a direction has key and salt.
    pub(super) fn is_armed(&self, way: Way) -> bool {
        let parts = self.parts(way);
        parts.armed || (parts.key.is_some() && parts.salt.is_some())
    }

    /// A direction was given these as a whole, and they are in force.
    pub(super) fn given(&mut self, way: Way, cipher: CipherSuite, key: &[u8], salt: &[u8]) {
        self.cipher = cipher;
        let parts = self.parts_mut(way);
        parts.key = Some(Zeroizing::new(key.to_vec()));
        parts.salt = Some(Zeroizing::new(salt.to_vec()));
        self.armed(way);
    }

    /// What was set of a direction is in force.
    pub(super) fn armed(&mut self, way: Way) {
        let parts = self.parts_mut(way);
        (parts.armed, parts.changed) = (true, false);
        parts.iv = None;
    }

    /// What a direction is to be armed with, if it has key and salt, and something was set since it was.
    pub(super) fn material(&self, way: Way) -> Option<Material<'_>> {
        let parts = self.parts(way);
        let (key, salt) = (parts.key.as_ref()?, parts.salt.as_ref()?);
        parts.changed.then_some(Material {
            cipher: self.cipher,
            key,
            salt,
            // Without an IV, numbers start with 0.
            iv: parts.iv.or((!parts.armed).then_some(0)),
        })
    }

    /// Plaintext of the records that files and pipes are sent in.
    pub(super) fn payload(&self) -> usize {
        self.mtu.map_or(MAX_PLAINTEXT, |mtu| {
            mtu.saturating_sub(self.overhead()).clamp(1, MAX_PLAINTEXT)
        })
    }

    fn overhead(&self) -> usize {
        let frame = match self.kind {
            KtlsType::Stream => TLS_FRAME,
            KtlsType::Datagram => DTLS_FRAME,
        };
        frame + NONCE_LEN - self.salt_len()
    }

    /// The part of the nonce that does not travel: GCM's salt, or the whole iv.
    fn salt_len(&self) -> usize {
        NONCE_LEN - self.cipher.explicit_nonce_len(ProtocolVersion::Tls12)
    }

    fn parts(&self, way: Way) -> &Parts {
        match way {
            Way::Send => &self.send,
            Way::Receive => &self.receive,
        }
    }

    fn parts_mut(&mut self, way: Way) -> &mut Parts {
        match way {
            Way::Send => &mut self.send,
            Way::Receive => &mut self.receive,
        }
    }

    fn len(&self, part: Part) -> usize {
        match part {
            Part::Iv => IV_LEN,
            Part::Key => self.cipher.key_len(),
            Part::Salt => self.salt_len(),
        }
    }

    /// `setsockopt`, as far as it is about values.
    pub(super) fn set(&mut self, option: i32, value: &[u8]) -> Result<Set, Errno> {
        if option == KTLS_SET_MTU {
            let value = <[u8; size_of::<usize>()]>::try_from(value).map_err(|_| Errno::BADMSG)?;
            let mtu = usize::from_ne_bytes(value);
            self.mtu = Some(mtu);
            return Ok(Set::Mtu(mtu));
        }
        // A number that only reads does not set.
        let (way, part) = meaning(option)
            .filter(|_| option < KTLS_UNATTACH)
            .ok_or(Errno::BADMSG)?;
        if value.len() != self.len(part) {
            return Err(Errno::BADMSG);
        }
        let parts = self.parts_mut(way);
        parts.changed = true;
        match part {
            Part::Iv => parts.iv = value.try_into().ok().map(u64::from_be_bytes),
            Part::Key => parts.key = Some(Zeroizing::new(value.to_vec())),
            Part::Salt => parts.salt = Some(Zeroizing::new(value.to_vec())),
        }
        Ok(Set::Part(way))
    }

    /// `getsockopt` into `room` bytes, as far as it is known here.
    pub(super) fn get(&self, option: i32, room: usize) -> Result<Get, Errno> {
        // Too small comes first, as in the module: the length is looked at before the value.
        let need = |len| {
            if room < len {
                Err(Errno::NOMEM)
            } else {
                Ok(())
            }
        };
        if option == KTLS_GET_MTU {
            need(size_of::<usize>())?;
            let mtu = self.mtu.unwrap_or(MAX_PLAINTEXT + self.overhead());
            return Ok(Get::Value(Zeroizing::new(mtu.to_ne_bytes().to_vec())));
        }
        let (way, part) = meaning(option)
            .filter(|_| option > KTLS_UNATTACH)
            .ok_or(Errno::BADMSG)?;
        need(self.len(part))?;
        let parts = self.parts(way);
        if parts.armed {
            return Ok(Get::InForce(way, part));
        }
        let set = match part {
            Part::Iv => parts.iv.map(|iv| Zeroizing::new(iv.to_be_bytes().to_vec())),
            Part::Key => parts.key.clone(),
            Part::Salt => parts.salt.clone(),
        };
        set.map(Get::Value).ok_or(Errno::BADMSG)
    }
}

/// The direction that an option is about, if it is about one.
pub(super) fn way_of(option: i32) -> Option<Way> {
    meaning(option).map(|(way, _)| way)
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
