//! One peer's keys and counters, and the way in.

use super::end::RecordEnd;
use super::outgoing::Outgoing;
use crate::clock::Instant;
use bytes::BytesMut;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;
use uktls_record::dtls::{
    Discard, DiscardKind, DtlsVersion, EpochKeys, Header, Opened, Opener, UnifiedHeader,
};
use uktls_record::{CipherSuite, ContentType, Error};

/// How long records of the epoch before are still taken after new keys came.
///
/// RFC 6347 §4.1 allows old keys "for up to the default MSL specified for TCP", which is two minutes (RFC 9293 §3.4.2).
pub(crate) const EPOCH_OVERLAP: Duration = Duration::from_secs(120);

/// Datagrams that may wait for the first keys, and their bytes. They came between the handshake's end and its keys.
const MAX_EARLY: usize = 64;
const MAX_EARLY_BYTES: usize = 256 * 1024;

/// An association, attached to a UDP socket.
#[derive(Debug)]
pub(crate) struct Association<E> {
    pub(crate) peer: SocketAddr,
    pub(crate) end: E,
    pub(crate) incoming: Incoming,
    pub(crate) outgoing: Outgoing,
    pub(crate) stats: Stats,
    /// It waits for a turn already.
    pub(crate) queued: bool,
}

/// What an association did so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stats {
    pub(crate) opened: u64,
    /// By [`DiscardKind`].
    pub(crate) dropped: [u64; DiscardKind::ALL.len()],
    /// Opened, and lost because the client does not read.
    pub(crate) full: u64,
    /// Not sent, because they are longer than the path's MTU and may not be fragmented.
    pub(crate) too_long: u64,
}

/// The state of one direction, without the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochInfo {
    /// Protocol version.
    pub version: DtlsVersion,
    /// Cipher.
    pub cipher: CipherSuite,
    /// Epoch.
    pub epoch: u64,
    /// Sequence number of the next record; receiving, one more than the highest that came.
    pub sequence: u64,
}

impl From<&EpochKeys> for EpochInfo {
    fn from(keys: &EpochKeys) -> EpochInfo {
        EpochInfo {
            version: keys.version(),
            cipher: keys.cipher(),
            epoch: keys.epoch(),
            sequence: keys.sequence(),
        }
    }
}

/// What can be told of an association from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DtlsInfo {
    /// The peer.
    pub peer: SocketAddr,
    /// Keys for sending.
    pub tx: Option<EpochInfo>,
    /// Keys for receiving.
    pub rx: Option<EpochInfo>,
    /// Records sealed.
    pub sealed: u64,
    /// Records opened.
    pub opened: u64,
    /// Records dropped, by [`DiscardKind`].
    pub dropped: [u64; DiscardKind::ALL.len()],
    /// Records opened and lost because the client does not read.
    pub full: u64,
    /// Datagrams not sent because they are longer than the path's MTU and may not be fragmented.
    pub too_long: u64,
}

impl<E: RecordEnd> Association<E> {
    pub(crate) fn new(peer: SocketAddr, end: E, retired: Option<Retired>) -> Association<E> {
        Association {
            peer,
            end,
            incoming: Incoming {
                retired,
                ..Incoming::default()
            },
            outgoing: Outgoing::default(),
            stats: Stats::default(),
            queued: false,
        }
    }

    pub(crate) fn info(&self) -> DtlsInfo {
        DtlsInfo {
            peer: self.peer,
            tx: self.outgoing.latest_keys().as_ref().map(EpochInfo::from),
            rx: self.incoming.keys().as_ref().map(EpochInfo::from),
            sealed: self.outgoing.sealed(),
            opened: self.stats.opened,
            dropped: self.stats.dropped,
            full: self.stats.full,
            too_long: self.stats.too_long,
        }
    }
}

/// What is left of an association that was detached: the next one with the same peer still opens what is late.
#[derive(Debug)]
pub(crate) struct Retired {
    peer: SocketAddr,
    opener: Opener,
    until: Instant,
}

impl Retired {
    /// What a detached association leaves.
    pub(crate) fn of<E>(association: Association<E>, now: Instant) -> Option<Retired> {
        let peer = association.peer;
        let until = now + EPOCH_OVERLAP;
        association.incoming.opener.map(|opener| Retired {
            peer,
            opener,
            until,
        })
    }

    /// This, if it is of use for an association with `peer`.
    pub(crate) fn for_peer(self, peer: SocketAddr, now: Instant) -> Option<Retired> {
        (self.peer == peer && now < self.until).then_some(self)
    }
}

/// The way in.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    opener: Option<Opener>,
    /// When the opener's previous epoch goes.
    previous_until: Option<Instant>,
    retired: Option<Retired>,
    early: VecDeque<BytesMut>,
    early_bytes: usize,
}

/// What a piece of a datagram turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A record that opened, and its plaintext.
    Record(Opened, &'a [u8]),
    /// Bytes that are the UDP socket's.
    Raw(&'a [u8]),
    /// A record that was dropped.
    Dropped(Discard),
}

impl Incoming {
    pub(crate) fn keys(&self) -> Option<EpochKeys> {
        self.opener.as_ref().map(Opener::keys)
    }

    /// Bytes that wait for keys.
    pub(crate) fn memory(&self) -> usize {
        self.early_bytes
    }

    /// Puts keys in force. Those of the epoch so far stay for a while if the new ones are of a later one. Gives the datagrams
    /// that waited for keys: they are to be taken again.
    ///
    /// The keys in force may be set once more. Their replay window never goes back, whatever sequence number comes with them.
    ///
    /// # Errors
    /// When the provider lacks the cipher.
    pub(crate) fn set_keys(
        &mut self,
        keys: &EpochKeys,
        now: Instant,
    ) -> Result<VecDeque<BytesMut>, Error> {
        if self.opener.is_none()
            && let Some(Retired { opener, until, .. }) = self.retired.take()
            && now < until
        {
            self.opener = Some(opener);
        }
        match &mut self.opener {
            Some(opener)
                if opener.keys().is_same_epoch(keys) && keys.sequence() <= opener.sequence() => {}
            Some(opener) if opener.version() == keys.version() && opener.epoch() < keys.epoch() => {
                opener.install(keys)?;
                self.previous_until = Some(now + EPOCH_OVERLAP);
            }
            opener => {
                *opener = Some(Opener::new(keys)?);
                self.previous_until = None;
            }
        }
        self.early_bytes = 0;
        Ok(std::mem::take(&mut self.early))
    }

    /// Whether a record that starts with this byte is for the association, and not for the UDP socket.
    fn is_ours(&self, first: u8) -> bool {
        match self.opener.as_ref().map(Opener::version) {
            Some(DtlsVersion::Dtls13) => UnifiedHeader::starts_with(first),
            _ => first == ContentType::APPLICATION_DATA.0,
        }
    }

    /// How many bytes at the front of `datagram` belong to the UDP socket.
    fn raw_len(&self, datagram: &[u8]) -> usize {
        let mut at = 0;
        while let Some(&first) = datagram.get(at)
            && !self.is_ours(first)
        {
            match Header::parse(&datagram[at..]) {
                Ok(header) => at += header.record_len(),
                // Not a record: whoever reads the UDP socket may know what it is.
                Err(_) => return datagram.len(),
            }
        }
        at
    }

    /// Takes a datagram of the peer apart; records are opened where they lie.
    pub(crate) fn take(
        &mut self,
        datagram: &mut [u8],
        now: Instant,
        mut each: impl FnMut(Piece<'_>),
    ) {
        if self.previous_until.is_some_and(|until| until <= now) {
            self.previous_until = None;
            if let Some(opener) = &mut self.opener {
                opener.retire_previous();
            }
        }
        if datagram.is_empty() {
            return each(Piece::Raw(datagram));
        }
        let mut at = 0;
        while at < datagram.len() {
            let raw = self.raw_len(&datagram[at..]);
            if raw > 0 {
                each(Piece::Raw(&datagram[at..at + raw]));
                at += raw;
                continue;
            }
            let Some(opener) = &mut self.opener else {
                return self.keep(&datagram[at..], each);
            };
            let record = &mut datagram[at..];
            let step = opener.open_next(record);
            match step.opened {
                Ok(opened) => {
                    let plaintext = &record[opened.plaintext.clone()];
                    each(Piece::Record(opened, plaintext));
                }
                Err(discard) => each(Piece::Dropped(discard)),
            }
            at += step.len;
        }
    }

    /// Keeps what came before its keys, if there is room.
    fn keep(&mut self, datagram: &[u8], mut each: impl FnMut(Piece<'_>)) {
        if self.early.len() < MAX_EARLY && self.early_bytes + datagram.len() <= MAX_EARLY_BYTES {
            self.early_bytes += datagram.len();
            self.early.push_back(BytesMut::from(datagram));
        } else {
            let epoch = Header::parse(datagram).map_or(0, |header| u64::from(header.epoch));
            each(Piece::Dropped(Discard::WrongEpoch { epoch }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uktls_record::dtls::Sealer;

    fn keys(epoch: u16, sequence: u64) -> EpochKeys {
        let key = [epoch as u8; 16];
        EpochKeys::dtls12(CipherSuite::Aes128Gcm, &key, &[7; 4], epoch, sequence)
            .expect("lengths that fit")
    }

    fn sealed(sealer: &mut Sealer, plaintext: &[u8]) -> Vec<u8> {
        let mut record = vec![0; plaintext.len() + sealer.overhead()];
        sealer
            .seal_from(ContentType::APPLICATION_DATA, plaintext, &mut record)
            .expect("a record");
        record
    }

    /// What became of a datagram, as text.
    fn take(incoming: &mut Incoming, datagram: &[u8], now: Instant) -> Vec<String> {
        let mut seen = Vec::new();
        incoming.take(&mut datagram.to_vec(), now, |piece| {
            seen.push(match piece {
                Piece::Record(_, plaintext) => String::from_utf8_lossy(plaintext).into_owned(),
                Piece::Raw(bytes) => format!("raw {}", bytes.len()),
                Piece::Dropped(discard) => discard.kind().name().to_owned(),
            })
        });
        seen
    }

    /// A record that is a handshake's or an alert's: opaque here.
    fn control(content_type: u8) -> Vec<u8> {
        let header = Header {
            content_type: ContentType(content_type),
            epoch: 1,
            sequence: 0,
            length: 26,
        };
        [&header.emit()[..], &[0xAB; 26]].concat()
    }

    #[test]
    fn control_records_stay_on_the_udp_socket() {
        let now = Instant::ZERO;
        let mut incoming = Incoming::default();
        incoming.set_keys(&keys(1, 0), now).expect("keys");
        let mut sealer = Sealer::new(&keys(1, 0)).expect("keys");
        let data = sealed(&mut sealer, b"data");
        let alone = [control(22), control(20)].concat();
        assert_eq!(take(&mut incoming, &alone, now), ["raw 78"]);
        let mixed = [data, control(21), sealed(&mut sealer, b"more")].concat();
        assert_eq!(take(&mut incoming, &mixed, now), ["data", "raw 39", "more"]);
        for strange in [&b"STUN or whatever"[..], &[], &[22, 1]] {
            let expected = format!("raw {}", strange.len());
            assert_eq!(take(&mut incoming, strange, now), [expected]);
        }
        // What claims to be application data and is not a record is ours, to drop.
        assert_eq!(take(&mut incoming, &[23, 1, 2], now), ["malformed"]);
    }

    #[test]
    fn what_came_before_the_keys_is_kept_up_to_a_bound() {
        let now = Instant::ZERO;
        let mut incoming = Incoming::default();
        let mut sealer = Sealer::new(&keys(1, 1)).expect("keys");
        for _ in 0..MAX_EARLY {
            let early = sealed(&mut sealer, b"early");
            assert!(take(&mut incoming, &early, now).is_empty());
        }
        let late = sealed(&mut sealer, b"too many");
        assert_eq!(take(&mut incoming, &late, now), ["wrong epoch"]);
        assert!(incoming.memory() > 0);
        let early = incoming.set_keys(&keys(1, 1), now).expect("keys");
        assert_eq!((early.len(), incoming.memory()), (MAX_EARLY, 0));
        for datagram in early {
            assert_eq!(take(&mut incoming, &datagram, now), ["early"]);
        }
        assert_eq!(take(&mut incoming, &late, now), ["too many"]);
    }

    #[test]
    fn the_epoch_before_is_taken_for_a_bounded_time() {
        let now = Instant::ZERO;
        let mut incoming = Incoming::default();
        incoming.set_keys(&keys(1, 0), now).expect("keys");
        let (mut old, mut new) = (
            Sealer::new(&keys(1, 0)).expect("keys"),
            Sealer::new(&keys(2, 0)).expect("keys"),
        );
        assert_eq!(take(&mut incoming, &sealed(&mut old, b"a"), now), ["a"]);
        incoming.set_keys(&keys(2, 0), now).expect("keys");
        let just_before = now + EPOCH_OVERLAP - Duration::from_nanos(1);
        for at in [now, just_before] {
            assert_eq!(take(&mut incoming, &sealed(&mut old, b"old"), at), ["old"]);
            assert_eq!(take(&mut incoming, &sealed(&mut new, b"new"), at), ["new"]);
        }
        let after = now + EPOCH_OVERLAP;
        let late = sealed(&mut old, b"late");
        assert_eq!(take(&mut incoming, &late, after), ["wrong epoch"]);
        assert_eq!(
            take(&mut incoming, &sealed(&mut new, b"new"), after),
            ["new"]
        );
    }

    #[test]
    fn setting_the_same_keys_again_does_not_open_the_window_again() {
        let now = Instant::ZERO;
        let mut incoming = Incoming::default();
        incoming.set_keys(&keys(1, 0), now).expect("keys");
        let mut sealer = Sealer::new(&keys(1, 0)).expect("keys");
        let record = sealed(&mut sealer, b"once");
        assert_eq!(take(&mut incoming, &record, now), ["once"]);
        incoming.set_keys(&keys(1, 0), now).expect("keys");
        assert_eq!(take(&mut incoming, &record, now), ["replayed"]);
        // A later number is taken: what lies before it counts as seen.
        incoming.set_keys(&keys(1, 5), now).expect("keys");
        let skipped = sealed(&mut sealer, b"skipped");
        assert_eq!(take(&mut incoming, &skipped, now), ["replayed"]);
        // Other keys for the same epoch are another association.
        let other = EpochKeys::dtls12(CipherSuite::Aes128Gcm, &[9; 16], &[7; 4], 1, 0);
        let other = other.expect("lengths that fit");
        incoming.set_keys(&other, now).expect("keys");
        let mut sealer = Sealer::new(&other).expect("keys");
        assert_eq!(take(&mut incoming, &sealed(&mut sealer, b"x"), now), ["x"]);
    }
}
