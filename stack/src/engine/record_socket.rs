//! DTLS over UDP sockets: attaching associations, their turns, and the requests that act on them.

use super::udp_socket::UDP_HEADER;
use super::{DatagramEnd, Engine, Host};
use crate::client_fd::ClientFd;
use crate::clock::Instant;
use crate::dtls::association::{Association, Piece, Retired};
use crate::dtls::end::{RecordEnd, RecordEvent};
use crate::dtls::outgoing::{ROOM, Run, RunLimits, Then};
use crate::dtls::taken::Staging;
use crate::emit::job::Helped;
use crate::handle::{Direction, SocketId, SocketOp, SocketReply};
use rustix::io::Errno;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use uktls_record::dtls::DiscardKind;

/// Runs sent for one association before others get their turn.
const PER_TURN: usize = 16;

/// Turns in a row for an association that goes away, or whose client asks for something: more than an end holds.
const MOST_TURNS: usize = 256;

/// How long a path MTU that a router reported is believed (RFC 1191 §6.3 suggests ten minutes).
const PATH_MTU_AGE: Duration = Duration::from_secs(600);

/// What a UDP socket has beyond addresses and an end: nothing, mostly.
#[derive(Debug)]
pub(super) struct UdpExtras<E> {
    pub(super) association: Option<Association<E>>,
    retired: Option<Retired>,
    /// Datagrams longer than the path's MTU are not sent, rather than fragmented.
    pub(super) dont_fragment: bool,
    /// What a router reported, and until when it is believed.
    path_mtu: Option<(usize, Instant)>,
}

impl<E> Default for UdpExtras<E> {
    fn default() -> Self {
        UdpExtras {
            association: None,
            retired: None,
            dont_fragment: false,
            path_mtu: None,
        }
    }
}

impl<E> UdpExtras<E> {
    /// The path's MTU, where the link's is `link`.
    pub(super) fn path_mtu(&self, link: usize, now: Instant) -> usize {
        match self.path_mtu {
            Some((mtu, until)) if now < until => mtu.min(link),
            _ => link,
        }
    }
}

impl<H: Host> Engine<H> {
    /// The UDP socket with this number, and its place.
    pub(crate) fn udp_index(&self, id: SocketId) -> Option<usize> {
        self.udp
            .iter()
            .find(|(_, socket)| socket.id == id)
            .map(|(index, _)| index)
    }

    /// Attaches an association with `peer` to a UDP socket. The peer's records go to `end` from now on.
    ///
    /// # Errors
    /// `EINVAL` when there is one already, or the socket is another peer's; `EAFNOSUPPORT` for a peer of the other family.
    pub(crate) fn attach_records(
        &mut self,
        now: Instant,
        index: usize,
        peer: SocketAddr,
        end: H::Records,
    ) -> Result<(), Errno> {
        let socket = self.udp.get(index).ok_or(Errno::BADF)?;
        if socket.local.is_ipv4() != peer.is_ipv4() {
            return Err(Errno::AFNOSUPPORT);
        }
        if socket.remote.is_some_and(|remote| remote != peer) || peer.port() == 0 {
            return Err(Errno::INVAL);
        }
        let extras = self.udp_extras.entry(index).or_default();
        if extras.association.is_some() {
            return Err(Errno::INVAL);
        }
        let retired = extras
            .retired
            .take()
            .and_then(|retired| retired.for_peer(peer, now));
        extras.association = Some(Association::new(peer, end, retired));
        self.queue_records(index);
        Ok(())
    }

    /// Gives the peer's records back to the UDP socket. Its epoch is still opened for a while if keys of a later one follow.
    fn detach_records(&mut self, now: Instant, index: usize) -> Result<(), Errno> {
        let extras = self.udp_extras.get_mut(&index).ok_or(Errno::INVAL)?;
        let mut association = extras.association.take().ok_or(Errno::INVAL)?;
        association.outgoing.abandon();
        extras.retired = Retired::of(association, now);
        Ok(())
    }

    /// An association's end has something for us, or was closed, which taking from it tells. (It may be an earlier one's.)
    pub(crate) fn on_records_client(&mut self, index: usize) {
        self.queue_records(index);
    }

    fn association(&mut self, index: usize) -> Option<&mut Association<H::Records>> {
        self.udp_extras.get_mut(&index)?.association.as_mut()
    }

    fn queue_records(&mut self, index: usize) {
        if let Some(association) = self.association(index)
            && !association.queued
        {
            association.queued = true;
            self.record_turns.push_back(index);
        }
    }

    /// A helper finished its work on this file for the association of this UDP socket.
    pub(super) fn on_records_helped(&mut self, id: SocketId, file: &Arc<ClientFd>, helped: Helped) {
        let Some(index) = self.udp_index(id) else {
            return;
        };
        if let Some(association) = self.association(index) {
            association.outgoing.helped(file, helped);
            self.queue_records(index);
        }
    }

    /// One turn for every association that waits for one.
    pub(super) fn give_record_turns(&mut self) {
        for _ in 0..self.record_turns.len() {
            if let Some(index) = self.record_turns.pop_front()
                && self.records_turn(index)
            {
                self.queue_records(index);
            }
        }
    }

    /// Sends what an association's client has written so far: it, or the UDP socket's client, goes away or asks for something.
    pub(super) fn flush_records(&mut self, index: usize) {
        // A client that goes on writing meanwhile must not hold the others up.
        for _ in 0..MOST_TURNS {
            if !self.records_turn(index) {
                return;
            }
        }
    }

    /// Sends what an association's client wants sent, up to a bound. True when there may be more.
    fn records_turn(&mut self, index: usize) -> bool {
        let mut buffer = std::mem::take(&mut self.record_buffer);
        let mut staging = std::mem::take(&mut self.staging);
        buffer.resize(ROOM, 0);
        let then = self.send_records(index, &mut buffer, &mut staging);
        if let Some(association) = self.association(index) {
            association.outgoing.keep(&staging);
        }
        self.record_buffer = buffer;
        self.staging = staging;
        if then == Then::Closed {
            // As AF_KTLS: closing it leaves the UDP socket to its owner.
            let _ = self.detach_records(self.now, index);
        }
        matches!(then, Then::More | Then::Note(_))
    }

    /// Sends runs, and gives what the last one ended with.
    fn send_records(&mut self, index: usize, buffer: &mut [u8], staging: &mut Staging) -> Then {
        let link = self.host.device().capabilities();
        let now = self.now;
        let (Some(socket), Some(extras)) = (self.udp.get(index), self.udp_extras.get_mut(&index))
        else {
            return Then::Rest;
        };
        let (id, uid, local) = (socket.id, socket.uid, socket.local);
        let path_mtu = extras.path_mtu(link.mtu, now);
        let dont_fragment = extras.dont_fragment;
        let Some(association) = &mut extras.association else {
            return Then::Rest;
        };
        association.queued = false;
        let peer = association.peer;
        let header = if peer.is_ipv4() { 20 } else { 40 } + UDP_HEADER;
        let limits = RunLimits {
            datagram: path_mtu.saturating_sub(header),
            offload: link.uso,
        };
        let mut last = Then::Rest;
        for _ in 0..PER_TURN {
            // Borrowed anew each time round: sending needs the whole engine.
            let Some(association) = self.association(index) else {
                return Then::Rest;
            };
            let sealed = association.outgoing.sealed();
            let (Run { len, stride, .. }, then) =
                association
                    .outgoing
                    .fill(&mut association.end, staging, buffer, limits);
            let sealed = association.outgoing.sealed() - sealed;
            let job = association.outgoing.take_job();
            if let Then::Note(errno) = then {
                association.end.deliver_note(errno.raw_os_error());
            }
            if len > 0 && dont_fragment && stride > limits.datagram {
                association.stats.too_long += 1;
                association.end.deliver_note(Errno::MSGSIZE.raw_os_error());
                self.settings.counters.udp_too_long.add(1);
            } else if len > 0 {
                self.send_udp(local, peer, &buffer[..len], stride, path_mtu);
            }
            self.settings.counters.dtls_sealed.add(sealed);
            if let Some(job) = job {
                self.host.help(uid, id, job);
            }
            last = then;
            if matches!(then, Then::Rest | Then::Waiting | Then::Closed) {
                break;
            }
        }
        last
    }

    /// A datagram of some peer for the UDP socket at `index`: opened if it is an association's, delivered as it is otherwise.
    pub(super) fn receive_datagram(&mut self, index: usize, from: SocketAddr, datagram: &mut [u8]) {
        let counters = self.settings.counters.clone();
        let (now, Some(socket)) = (self.now, self.udp.get_mut(index)) else {
            return;
        };
        let association = self
            .udp_extras
            .get_mut(&index)
            .and_then(|extras| extras.association.as_mut())
            .filter(|association| association.peer == from);
        let Some(association) = association else {
            if !socket.end.deliver(from, datagram) {
                counters.udp_full.add(1);
            }
            return;
        };
        let Association {
            incoming,
            end,
            stats,
            ..
        } = association;
        incoming.take(datagram, now, |piece| match piece {
            Piece::Record(opened, plaintext) => {
                stats.opened += 1;
                counters.dtls_opened.add(1);
                end.observe(|| RecordEvent::Opened {
                    epoch: opened.epoch,
                    sequence: opened.sequence,
                    content_type: opened.content_type,
                    plaintext,
                });
                if !end.deliver(opened.content_type.0, plaintext) {
                    stats.full += 1;
                    counters.udp_full.add(1);
                }
            }
            Piece::Raw(bytes) => {
                if !socket.end.deliver(from, bytes) {
                    counters.udp_full.add(1);
                }
            }
            Piece::Dropped(discard) => {
                let kind = discard.kind();
                stats.dropped[kind as usize] += 1;
                end.observe(|| RecordEvent::Dropped(kind));
                match kind {
                    DiscardKind::Malformed => &counters.dtls_malformed,
                    DiscardKind::WrongEpoch => &counters.dtls_wrong_epoch,
                    DiscardKind::Replayed => &counters.dtls_replayed,
                    DiscardKind::TooOld => &counters.dtls_too_old,
                    DiscardKind::Unverified => &counters.dtls_unverified,
                    DiscardKind::KeyExhausted => &counters.dtls_key_exhausted,
                }
                .add(1);
            }
        });
    }

    /// A router between here and `remote` reported the path's MTU for a datagram from `local`.
    ///
    /// Datagrams carry nothing that a blind attacker must guess but the ports, so what is reported is believed for a while
    /// only, for a socket that does send there, and not below what every path carries.
    pub(super) fn on_udp_path_mtu(&mut self, local: SocketAddr, remote: SocketAddr, mtu: u16) {
        let least = if local.is_ipv4() { 576 } else { 1280 };
        let until = self.now + PATH_MTU_AGE;
        let bound = self.udp_bound.get(&local.port()).cloned();
        for index in bound.unwrap_or_default() {
            let fixed = self.udp.get(index).and_then(|socket| socket.remote);
            let extras = self.udp_extras.get(&index);
            let associated = extras
                .and_then(|extras| extras.association.as_ref())
                .map(|association| association.peer);
            if fixed == Some(remote) || associated == Some(remote) {
                let extras = self.udp_extras.entry(index).or_default();
                extras.path_mtu = Some((usize::from(mtu).max(least), until));
            }
        }
    }

    /// A request that acts on a UDP socket.
    pub(super) fn act_on_udp(
        &mut self,
        now: Instant,
        index: usize,
        op: SocketOp,
    ) -> Result<SocketReply, Errno> {
        // reference/af-ktls.md: what is asked of a socket that is not bound is EBADMSG.
        let unbound = Errno::BADMSG;
        Ok(match op {
            SocketOp::Info => {
                let socket = self.udp.get(index).ok_or(Errno::BADF)?;
                let mut info = socket.info(self.settings.index);
                if let Some(association) = self.association(index) {
                    info.ulp = true;
                    info.remote = Some(association.peer);
                    info.records = (association.outgoing.sealed(), association.stats.opened);
                    info.memory = association.incoming.memory() + association.outgoing.memory();
                }
                SocketReply::Info(Box::new(info))
            }
            SocketOp::SetDontFragment(on) => {
                self.udp_extras.entry(index).or_default().dont_fragment = on;
                SocketReply::Done
            }
            SocketOp::PathMtu => {
                let link = self.host.device().capabilities().mtu;
                let mtu = self
                    .udp_extras
                    .get(&index)
                    .map_or(link, |extras| extras.path_mtu(link, now));
                SocketReply::PathMtu(mtu)
            }
            SocketOp::DtlsDetach => {
                self.flush_records(index);
                self.detach_records(now, index).map_err(|_| unbound)?;
                SocketReply::Done
            }
            SocketOp::DtlsStageTx(keys) => {
                let association = self.association(index).ok_or(unbound)?;
                SocketReply::KeyId(association.outgoing.stage(keys)?)
            }
            SocketOp::DtlsRxKeys(keys) => {
                let association = self.association(index).ok_or(unbound)?;
                let peer = association.peer;
                let early = association
                    .incoming
                    .set_keys(&keys, now)
                    .map_err(|error| Errno::from_raw_os_error(error.errno()))?;
                for mut datagram in early {
                    self.receive_datagram(index, peer, &mut datagram);
                }
                SocketReply::Done
            }
            SocketOp::DtlsGetKeys(direction) => {
                let association = self.association(index).ok_or(unbound)?;
                let keys = match direction {
                    Direction::Tx => association.outgoing.latest_keys(),
                    Direction::Rx => association.incoming.keys(),
                };
                SocketReply::EpochKeys(keys.ok_or(unbound)?)
            }
            SocketOp::DtlsSetMtu(mtu) => {
                let association = self.association(index).ok_or(unbound)?;
                association.outgoing.set_mtu(mtu);
                SocketReply::Done
            }
            SocketOp::DtlsGiveBack { from, datagram } => {
                let mut datagram = datagram;
                self.receive_datagram(index, from, &mut datagram);
                SocketReply::Done
            }
            SocketOp::DtlsInfo => {
                self.flush_records(index);
                let association = self.association(index).ok_or(unbound)?;
                SocketReply::Dtls(Box::new(association.info()))
            }
            SocketOp::SetUlp => return Err(Errno::NOTCONN),
            _ => return Err(Errno::OPNOTSUPP),
        })
    }
}
