//! Requests that act on one socket, with the errors and the order of checks of Linux's `setsockopt`.

use super::listener::keep_alive;
use super::{AcceptEnd, Engine, Host};
use crate::clock::Instant;
use crate::handle::{Direction, SocketId, SocketOp, SocketReply};
use crate::socket_info::SocketInfo;
use crate::tcp::State;
use rustix::io::Errno;
use uktls_record::crypto_info::CryptoInfo;
use uktls_record::suite::ProtocolVersion;

impl<H: Host> Engine<H> {
    pub(crate) fn list(&self) -> Vec<SocketInfo> {
        let tcp = self
            .sockets
            .iter()
            .map(|(_, socket)| socket.info(self.settings.index));
        // Every engine knows every listener; the one that its number names tells of it.
        let listeners = self
            .listeners
            .iter()
            .filter(|(_, listener)| listener.end.listening().id.shard() == self.settings.index)
            .map(|(_, listener)| listener.info(self.settings.index));
        let udp = self
            .udp
            .iter()
            .map(|(_, socket)| socket.info(self.settings.index));
        tcp.chain(listeners).chain(udp).collect()
    }

    pub(crate) fn act(
        &mut self,
        now: Instant,
        id: SocketId,
        op: SocketOp,
    ) -> Result<SocketReply, Errno> {
        self.now = now;
        let Some(index) = self.index_of(id) else {
            return match self.udp_index(id) {
                Some(index) => self.act_on_udp(now, index, op),
                None => self.act_on_listener(id, &op),
            };
        };
        let counters = self.settings.counters.clone();
        let socket = &mut self.sockets[index];
        let reply = match op {
            SocketOp::SetUlp => {
                // linux-ktls.md: EEXIST when there is one already, ENOTCONN unless established.
                if socket.ulp || socket.attached {
                    return Err(Errno::EXIST);
                }
                if socket.connection.state() != State::Established {
                    return Err(Errno::NOTCONN);
                }
                socket.ulp = true;
                SocketReply::Done
            }
            SocketOp::SetAttached(true) => {
                if socket.ulp || socket.attached {
                    return Err(Errno::INVAL);
                }
                if !socket.can_attach() {
                    return Err(Errno::NOTCONN);
                }
                socket.attached = true;
                socket.intake.attach();
                SocketReply::Done
            }
            SocketOp::SetAttached(false) => {
                if !socket.attached {
                    return Err(Errno::INVAL);
                }
                socket.attached = false;
                socket.records_resume();
                SocketReply::Released(socket.intake.release())
            }
            // An AF_KTLS socket's keys may be set at any time.
            SocketOp::StageTx(keys) if socket.attached => {
                SocketReply::KeyId(socket.emitter.stage(keys)?)
            }
            SocketOp::RxKeys(Some(keys)) if socket.attached => {
                socket.records_resume();
                socket
                    .set_rx_keys(Some(&keys))
                    .map_err(|error| Errno::from_raw_os_error(error.errno()))?;
                SocketReply::Done
            }
            SocketOp::StageTx(keys) => {
                need_ulp(socket.ulp)?;
                let current = socket.emitter.latest_keys();
                let other = socket.intake.opener().map(|opener| opener.crypto_info());
                let checked = check_keys(&keys, current.as_ref(), other.as_ref());
                if current.is_some() {
                    (if checked.is_ok() {
                        &counters.tx_rekey_ok
                    } else {
                        &counters.tx_rekey_error
                    })
                    .add(1);
                }
                checked?;
                let key_id = socket.emitter.stage(keys)?;
                if current.is_none() {
                    counters.tx.add(1);
                    counters.curr_tx.add(1);
                }
                SocketReply::KeyId(key_id)
            }
            SocketOp::RxFreeze => {
                need_ulp(socket.ulp || socket.attached)?;
                socket.intake.freeze();
                SocketReply::Done
            }
            SocketOp::RxBytes(bytes) => {
                socket.intake.give_back(&bytes)?;
                SocketReply::Done
            }
            SocketOp::RxKeys(None) => {
                socket
                    .set_rx_keys(None)
                    .map_err(|error| Errno::from_raw_os_error(error.errno()))?;
                SocketReply::Done
            }
            SocketOp::RxKeys(Some(keys)) => {
                need_ulp(socket.ulp)?;
                let current = socket.intake.opener().map(|opener| opener.crypto_info());
                let other = socket.emitter.latest_keys();
                let outcome = check_keys(&keys, current.as_ref(), other.as_ref()).and_then(|()| {
                    socket
                        .set_rx_keys(Some(&keys))
                        .map_err(|error| Errno::from_raw_os_error(error.errno()))
                });
                match (&current, outcome) {
                    (Some(_), Ok(())) => counters.rx_rekey_ok.add(1),
                    (Some(_), Err(_)) => counters.rx_rekey_error.add(1),
                    (None, Ok(())) => {
                        counters.rx.add(1);
                        counters.curr_rx.add(1);
                    }
                    (None, Err(_)) => {
                        let _ = socket.set_rx_keys(None);
                    }
                }
                self.queue(index);
                outcome?;
                SocketReply::Done
            }
            SocketOp::GetKeys(direction) => {
                need_ulp(socket.ulp || socket.attached)?;
                let keys = match direction {
                    Direction::Tx => socket.emitter.latest_keys(),
                    Direction::Rx => socket.intake.opener().map(|opener| opener.crypto_info()),
                };
                SocketReply::Keys(keys.ok_or(Errno::BUSY)?)
            }
            SocketOp::SetMaxPayload(bytes) => {
                need_ulp(socket.ulp)?;
                let least = match socket.emitter.latest_keys().map(|keys| keys.version()) {
                    Some(ProtocolVersion::Tls13) => 63,
                    _ => 64,
                };
                if !(least..=16_384).contains(&bytes) {
                    return Err(Errno::INVAL);
                }
                socket.emitter.set_max_payload(usize::from(bytes))?;
                SocketReply::Done
            }
            SocketOp::SetExpectNoPad(_) => {
                need_ulp(socket.ulp)?;
                // Padding is always looked for: the option's promise is an optimisation that needs nothing here.
                match socket.intake.opener() {
                    Some(opener) if opener.version() == ProtocolVersion::Tls13 => SocketReply::Done,
                    _ => return Err(Errno::INVAL),
                }
            }
            SocketOp::SetNoDelay(on) => {
                socket.connection.set_nodelay(on);
                SocketReply::Done
            }
            SocketOp::SetKeepAlive(idle) => {
                socket.connection.set_keepalive(idle.map(keep_alive), now);
                SocketReply::Done
            }
            SocketOp::SetRecordEnds(on) => {
                need_ulp(socket.ulp || socket.attached)?;
                socket.intake.announce_data(on);
                SocketReply::Done
            }
            SocketOp::RxHold => {
                socket.intake.await_sink();
                SocketReply::Done
            }
            SocketOp::RxRelease => {
                socket.intake.forgo_sink();
                SocketReply::Done
            }
            SocketOp::ReceiveTo(request) => {
                // Whatever is answered, the hold is over, and what waits is delivered.
                self.queue(index);
                self.sockets[index].intake.set_sink(*request)?;
                SocketReply::Done
            }
            SocketOp::SetAdaptiveRecords(on) => {
                socket.options.adaptive_records = on;
                if !on {
                    socket
                        .emitter
                        .adapt_payload(uktls_record::header::MAX_PLAINTEXT);
                }
                SocketReply::Done
            }
            SocketOp::Info => SocketReply::Info(Box::new(socket.info(self.settings.index))),
            SocketOp::Abort => {
                socket.abort(crate::socket_info::Reason::Aborted);
                SocketReply::Done
            }
            SocketOp::SetDontFragment(_)
            | SocketOp::PathMtu
            | SocketOp::DtlsAttach { .. }
            | SocketOp::DtlsDetach
            | SocketOp::DtlsStageTx(_)
            | SocketOp::DtlsRxKeys(_)
            | SocketOp::DtlsGetKeys(_)
            | SocketOp::DtlsSetMtu(_)
            | SocketOp::DtlsGiveBack { .. }
            | SocketOp::DtlsInfo => return Err(Errno::OPNOTSUPP),
        };
        self.queue(index);
        Ok(reply)
    }

    /// Listeners only tell of themselves.
    fn act_on_listener(&self, id: SocketId, op: &SocketOp) -> Result<SocketReply, Errno> {
        let (_, listener) = self
            .listeners
            .iter()
            .find(|(_, listener)| listener.end.listening().id == id)
            .ok_or(Errno::BADF)?;
        let info = listener.info(self.settings.index);
        match op {
            SocketOp::Info => Ok(SocketReply::Info(Box::new(info))),
            SocketOp::SetUlp => Err(Errno::NOTCONN),
            _ => Err(Errno::OPNOTSUPP),
        }
    }
}

/// Any SOL_TLS option before the ULP.
fn need_ulp(ulp: bool) -> Result<(), Errno> {
    if ulp { Ok(()) } else { Err(Errno::NOPROTOOPT) }
}

/// Already set: TLS 1.2 → EBUSY, TLS 1.3 → a rekey that changes neither version nor cipher. The other direction must agree.
fn check_keys(
    keys: &CryptoInfo,
    current: Option<&CryptoInfo>,
    other: Option<&CryptoInfo>,
) -> Result<(), Errno> {
    if let Some(current) = current {
        if current.version() == ProtocolVersion::Tls12 {
            return Err(Errno::BUSY);
        }
        if !agree(current, keys) {
            return Err(Errno::INVAL);
        }
    }
    match other {
        Some(other) if !agree(other, keys) => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

fn agree(a: &CryptoInfo, b: &CryptoInfo) -> bool {
    (a.version(), a.cipher()) == (b.version(), b.cipher())
}
