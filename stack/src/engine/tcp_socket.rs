//! A TCP socket: a connection, the emission path before it, the intake behind it, and the client's end.

use super::output::{Output, Path};
use super::{ClientEnd, Cx, Host};
use crate::budget::Charge;
use crate::clock::Instant;
use crate::emit::emitter::{Emitter, Filled};
use crate::handle::{SocketId, SocketOptions};
use crate::ingress::{Flushed, Intake};
use crate::socket_info::{KeyInfo, Reason, SocketInfo, SocketKind};
use crate::tcp::{Connection, Events, FlowKey, State};
use std::time::Duration;
use uktls_record::crypto_info::CryptoInfo;
use uktls_record::error::Error;

/// Bytes that are sealed before they are sent: what four super-segments hold. They are all still in the cache then, and a
/// receiver on the same machine that wakes at the first has not slept again before the last.
const BATCH: usize = 256 * 1024;
/// Bytes that one socket may send before others get their turn.
const TURN: usize = 512 * 1024;
/// Below this congestion window, in segments, and for this many bytes after idle, the adaptive layout sends records of one segment.
const ADAPTIVE_START: u64 = 64 * 1024;
/// How long a socket waits before it asks again for memory that others hold.
const MEMORY_RETRY: Duration = Duration::from_millis(20);

/// The client's end of a socket as the engine holds it.
#[derive(Debug)]
pub(super) struct End<E> {
    pub(super) end: E,
    /// The client closed its last copy.
    pub(super) hung_up: bool,
    /// We told the client that nothing more comes.
    shut: bool,
}

impl<E> End<E> {
    pub(super) fn new(end: E) -> End<E> {
        End {
            end,
            hung_up: false,
            shut: false,
        }
    }
}

/// What is left to do with a socket after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing until something happens.
    Rest,
    /// It has more to send and gave others their turn.
    Again,
    /// Connection and client's end are both finished.
    Finished,
}

#[derive(Debug)]
pub(super) struct TcpSocket<E> {
    pub(super) id: SocketId,
    pub(super) uid: u32,
    pub(super) key: FlowKey,
    pub(super) connection: Connection,
    /// No longer in the flow table, or in it as TIME-WAIT only.
    pub(super) connection_done: bool,
    pub(super) emitter: Emitter,
    pub(super) intake: Intake,
    pub(super) end: Option<End<E>>,
    /// The listener it came from, until it is accepted.
    pub(super) listener: Option<usize>,
    pub(super) options: SocketOptions,
    pub(super) ulp: bool,
    /// An AF_KTLS socket is attached.
    pub(super) attached: bool,
    pub(super) established: bool,
    pub(super) reason: Reason,
    pub(super) armed: Option<Instant>,
    pub(super) queued: bool,
    finished_sending: bool,
    /// Stream offset at which the adaptive layout started over.
    bulk_from: u64,
    last_sent: Instant,
    charge: Charge,
    /// It has bytes to take from its client, and its user, or all together, hold as much as they may: look again then.
    short_of_memory: Option<Instant>,
}

impl<E: ClientEnd> TcpSocket<E> {
    pub(super) fn new(
        id: SocketId,
        uid: u32,
        key: FlowKey,
        connection: Connection,
        options: SocketOptions,
        charge: Charge,
    ) -> TcpSocket<E> {
        TcpSocket {
            id,
            uid,
            key,
            connection,
            connection_done: false,
            emitter: Emitter::new(),
            intake: Intake::new(),
            end: None,
            listener: None,
            options,
            ulp: false,
            attached: false,
            established: false,
            reason: Reason::Open,
            armed: None,
            queued: false,
            finished_sending: false,
            bulk_from: 0,
            last_sent: Instant::ZERO,
            charge,
            short_of_memory: None,
        }
    }

    /// Notes what the connection says happened.
    pub(super) fn on_events(&mut self, events: Events, counters: &crate::counters::Counters) {
        if events.contains(Events::ESTABLISHED) {
            self.established = true;
            if let Some(end) = &mut self.end {
                end.end.connected();
                counters.connected.add(1);
            }
        }
        let reason = [
            (Events::REFUSED, Reason::Refused),
            (Events::RESET, Reason::Reset),
            (Events::TIMED_OUT, Reason::TimedOut),
            (Events::UNREACHABLE, Reason::Unreachable),
        ];
        if let Some((_, reason)) = reason
            .into_iter()
            .find(|(event, _)| events.contains(*event))
            && matches!(self.reason, Reason::Open)
        {
            self.reason = reason;
        }
    }

    /// `TLS_RX`, or giving it up. Without a client's end nobody can have asked.
    pub(super) fn set_rx_keys(&mut self, keys: Option<&CryptoInfo>) -> Result<(), Error> {
        match &mut self.end {
            Some(end) => self.intake.set_keys(keys, &mut end.end),
            None => Ok(()),
        }
    }

    /// Whether an AF_KTLS socket may be attached: what it opens must find a client's end that is not finished.
    pub(super) fn can_attach(&self) -> bool {
        self.established && !self.connection_done && self.end.as_ref().is_some_and(|end| !end.shut)
    }

    /// An AF_KTLS socket that had stopped at a record goes on, or gives the stream back.
    pub(super) fn records_resume(&mut self) {
        if let Reason::BadRecord(_) = self.reason {
            self.reason = Reason::Open;
        }
    }

    /// Ends the connection from this side.
    pub(super) fn abort(&mut self, reason: Reason) {
        if matches!(self.reason, Reason::Open | Reason::CleanEnd) {
            self.reason = reason;
        }
        self.connection.abort();
    }

    /// Moves whatever can be moved, both ways.
    pub(super) fn turn<H: Host>(&mut self, now: Instant, cx: &mut Cx<'_, H>) -> Turn {
        if !self.established && self.end.as_ref().is_some_and(|end| end.hung_up) {
            // The client gave up connecting.
            self.abort(Reason::Aborted);
        }
        // What was acknowledged makes room for what follows, so it goes first.
        self.emitter.release(cx.pool, self.connection.acked());
        self.receive(now, cx);
        self.settle_memory();
        self.short_of_memory = None;
        let mut again = false;
        if self.end.is_some() && self.established && !self.connection_done {
            again = self.send(now, cx);
        }
        self.transmit(now, cx);
        self.emitter.release(cx.pool, self.connection.acked());
        self.settle_memory();
        if self.connection.state() == State::Closed {
            self.connection_done = true;
        }
        if self.connection_done {
            return self.settle(cx);
        }
        if again { Turn::Again } else { Turn::Rest }
    }

    /// Bytes of memory held, both ways.
    fn memory(&self) -> usize {
        self.emitter.arena.memory() + self.intake.memory() + self.connection.received_memory()
    }

    /// Charges what is held now.
    fn settle_memory(&mut self) {
        self.charge.settle(self.memory());
        let missing = || self.intake.missing() as u64;
        let pressure = self.charge.is_full().then(missing);
        self.connection.set_memory_pressure(pressure);
    }

    /// When it wants its next turn, whatever happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [
            self.connection.deadline(),
            self.short_of_memory,
            self.intake.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Stream to client.
    fn receive<H: Host>(&mut self, now: Instant, cx: &mut Cx<'_, H>) {
        let Some(end) = &mut self.end else {
            if self.listener.is_none() {
                // Nobody will ever read it.
                while let Some(slice) = self.connection.take_received() {
                    self.connection.consumed(slice.len());
                }
            }
            return;
        };
        if !self.established {
            return;
        }
        loop {
            let mut took = false;
            while self.intake.wants() {
                let Some(slice) = self.connection.take_received() else {
                    break;
                };
                took = true;
                let before = self.intake.records();
                self.intake.feed(slice, &mut end.end);
                cx.counters
                    .records_opened
                    .add(self.intake.records() - before);
            }
            if !took && self.intake.is_idle() && self.intake.failed().is_none() {
                break;
            }
            let (flushed, credit) = self.intake.flush(&mut end.end);
            if credit > 0 {
                self.connection.consumed(credit);
            }
            if flushed == Flushed::Blocked || !took {
                break;
            }
        }
        self.drive_sink(now, cx);
        let Some(end) = &mut self.end else {
            return;
        };
        if let Some(error) = self.intake.failed()
            && self.reason == Reason::Open
        {
            self.reason = Reason::BadRecord(error.errno());
            cx.counters.decrypt_error.add(1);
        }
        // A record that failed ends the client's reading as well: who waits for readiness must meet the error.
        let over = self.connection.receive_closed() || self.intake.failure_is_final();
        // With TLS attached and no keys yet, keys may still come, and give what lies unread a meaning.
        let undecided =
            (self.ulp || self.attached) && self.intake.opener().is_none() && end.end.has_unread();
        if over && !undecided && self.intake.may_finish() && !end.shut {
            if self.reason == Reason::Open {
                self.reason = if self.intake.may_end() {
                    Reason::CleanEnd
                } else {
                    Reason::Truncated
                };
            }
            end.shut = true;
            end.end.finish();
        }
    }

    /// Gives the file that received bytes go to its turn, if there is one.
    fn drive_sink<H: Host>(&mut self, now: Instant, cx: &mut Cx<'_, H>) {
        let Some(end) = &mut self.end else {
            return;
        };
        if end.hung_up {
            // Nobody is left who wants the file.
            self.intake.end_sink();
        }
        let over = self.connection.receive_closed()
            || self.connection_done
            || self.connection.state() == State::Closed;
        let (job, finished) = self.intake.drive_sink(now, over);
        if let Some(job) = job {
            cx.host.write(self.uid, self.id, job);
        }
        if finished {
            let (_, credit) = self.intake.flush(&mut end.end);
            self.connection.consumed(credit);
        }
    }

    /// Client to stream. True when there is more and others should have their turn.
    fn send<H: Host>(&mut self, now: Instant, cx: &mut Cx<'_, H>) -> bool {
        let mut sent = 0;
        loop {
            if self.finished_sending {
                return false;
            }
            let room = self.connection.send_room();
            if room == 0 {
                return false;
            }
            if sent >= TURN || self.emitter.arena.memory() >= cx.limits.memory_per_socket {
                return sent >= TURN;
            }
            if self.charge.is_full() {
                // Nobody tells when others return memory.
                self.short_of_memory = Some(now + MEMORY_RETRY);
                return false;
            }
            self.lay_out(now);
            let Some(end) = &mut self.end else {
                return false;
            };
            let hung_up = end.hung_up;
            let before = (self.emitter.arena.end(), self.emitter.records());
            let filled = self.emitter.fill(&mut end.end, cx.pool, room.min(BATCH));
            let appended = (self.emitter.arena.end() - before.0) as usize;
            cx.counters
                .records_sealed
                .add(self.emitter.records() - before.1);
            if let Some(job) = self.emitter.take_job() {
                cx.host.help(self.uid, self.id, job);
            }
            if appended > 0 {
                self.connection
                    .set_more(filled == Filled::Full && room > appended);
                self.connection.append(appended);
                self.last_sent = now;
                sent += appended;
                self.charge.settle(self.memory());
            }
            match filled {
                Filled::Full => {}
                Filled::Drained | Filled::Waiting => {
                    self.connection.set_more(false);
                    return false;
                }
                Filled::End => {
                    self.finished_sending = true;
                    self.connection.set_more(false);
                    if hung_up {
                        self.connection.close()
                    } else {
                        self.connection.shut_write()
                    }
                }
                Filled::Reset => {
                    self.finished_sending = true;
                    self.abort(Reason::Aborted);
                }
                Filled::Failed(reason) => {
                    self.finished_sending = true;
                    self.abort(reason);
                }
            }
            self.transmit(now, cx);
            self.emitter.release(cx.pool, self.connection.acked());
        }
    }

    /// The adaptive layout: a reader can use a record only when all of it is there, so the first ones fit one segment.
    fn lay_out(&mut self, now: Instant) {
        if !self.options.adaptive_records {
            return;
        }
        let Some(sealer) = self.emitter.sealer() else {
            return;
        };
        let overhead = sealer.overhead();
        let stats = self.connection.stats();
        if now.saturating_duration_since(self.last_sent) > stats.rto {
            self.bulk_from = self.emitter.arena.end();
        }
        let small = self.emitter.arena.end() - self.bulk_from < ADAPTIVE_START;
        let payload = if small {
            usize::from(stats.mss).saturating_sub(overhead).max(256)
        } else {
            uktls_record::header::MAX_PLAINTEXT
        };
        self.emitter.adapt_payload(payload);
    }

    /// Sends every segment that TCP wants to send.
    fn transmit<H: Host>(&mut self, now: Instant, cx: &mut Cx<'_, H>) {
        while let Some(segment) = self.connection.transmit(now) {
            let path = Path {
                local: self.key.local,
                remote: self.key.remote,
            };
            cx.host.about_to_send(&segment);
            cx.output.tcp(
                &path,
                &segment,
                &self.emitter.arena,
                cx.host.device(),
                cx.counters,
            );
        }
    }

    /// The connection is gone: hands over what the client may still have, then lets it know.
    fn settle<H: Host>(&mut self, cx: &mut Cx<'_, H>) -> Turn {
        self.emitter.abandon(cx.pool);
        let Some(end) = &mut self.end else {
            return Turn::Finished;
        };
        if self.established && !end.hung_up {
            let (flushed, _) = self.intake.flush(&mut end.end);
            if flushed == Flushed::Blocked || self.intake.has_sink() {
                return Turn::Rest;
            }
        }
        Turn::Finished
    }

    /// What `uktls stat` shows.
    pub(super) fn info(&self, shard: usize) -> SocketInfo {
        SocketInfo {
            id: self.id.0,
            kind: SocketKind::Tcp,
            shard,
            uid: self.uid,
            local: self.key.local,
            remote: Some(self.key.remote),
            state: Some(self.connection.state()),
            tcp: Some(self.connection.stats()),
            ulp: self.ulp,
            tx: self.emitter.sealer().map(|sealer| KeyInfo {
                version: sealer.version(),
                cipher: sealer.cipher(),
                rec_seq: sealer.crypto_info().rec_seq(),
                records_left: sealer.records_left(),
            }),
            rx: self.intake.opener().map(|opener| KeyInfo {
                version: opener.version(),
                cipher: opener.cipher(),
                rec_seq: opener.crypto_info().rec_seq(),
                records_left: u64::MAX - opener.sequence(),
            }),
            records: (self.emitter.records(), self.intake.records()),
            reason: self.reason,
            memory: self.memory(),
        }
    }
}

impl Output {
    /// Builds and sends one TCP segment or super-segment.
    pub(super) fn tcp(
        &mut self,
        path: &Path,
        segment: &crate::tcp::Transmit,
        arena: &crate::emit::arena::Arena,
        device: &mut dyn crate::device::Device,
        counters: &crate::counters::Counters,
    ) {
        let mut slices = Vec::with_capacity(4);
        arena.slices(segment.payload.clone(), &mut slices);
        self.tcp_slices(path, segment, &slices, device, counters);
    }
}
