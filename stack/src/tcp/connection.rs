//! The connection: its public face.

use bytes::BytesMut;

use super::config::{Config, Events, KeepAlive, State, Stats, Unreachable};
use super::segment::{FlowKey, Segment, Transmit};
use super::seq::SeqNumber;
use super::time_wait::TimeWait;
use crate::clock::Instant;

/// One TCP connection.
#[derive(Debug)]
pub struct Connection;

#[allow(unused_variables, missing_docs)]
impl Connection {
    pub fn connect(
        config: &Config,
        key: FlowKey,
        isn: SeqNumber,
        ts_offset: u32,
        now: Instant,
    ) -> Connection {
        unimplemented!()
    }
    pub fn accept(
        config: &Config,
        key: FlowKey,
        syn: &Segment,
        isn: SeqNumber,
        ts_offset: u32,
        now: Instant,
    ) -> Connection {
        unimplemented!()
    }
    pub fn on_segment(&mut self, now: Instant, segment: &Segment, payload: BytesMut) -> Events {
        unimplemented!()
    }
    pub fn on_timer(&mut self, now: Instant) -> Events {
        unimplemented!()
    }
    pub fn deadline(&self) -> Option<Instant> {
        unimplemented!()
    }
    /// The next segment to send, or `None`. Call until `None` after every event.
    pub fn transmit(&mut self, now: Instant) -> Option<Transmit> {
        unimplemented!()
    }
    /// How many new stream bytes, beyond those appended, the windows would let out now; 0 before the handshake is done.
    /// At least 1 when the peer's window is zero and nothing is in flight or waits: append a record (if there is one), so
    /// that the window probe has a byte to carry.
    pub fn send_room(&self) -> usize {
        unimplemented!()
    }
    pub fn append(&mut self, n: usize) {
        unimplemented!()
    }
    /// More bytes will be appended shortly: a last piece shorter than a segment may wait for them while anything is in
    /// flight.
    pub fn set_more(&mut self, more: bool) {
        unimplemented!()
    }
    pub fn appended(&self) -> u64 {
        unimplemented!()
    }
    pub fn acked(&self) -> u64 {
        unimplemented!()
    }
    pub fn shut_write(&mut self) {
        unimplemented!()
    }
    /// `shut_write`, and no reader is left: data that arrives from now on is answered by a reset.
    pub fn close(&mut self) {
        unimplemented!()
    }
    pub fn abort(&mut self) {
        unimplemented!()
    }
    pub fn take_received(&mut self) -> Option<BytesMut> {
        unimplemented!()
    }
    pub fn consumed(&mut self, n: usize) {
        unimplemented!()
    }
    pub fn receive_closed(&self) -> bool {
        unimplemented!()
    }
    pub fn state(&self) -> State {
        unimplemented!()
    }
    pub fn key(&self) -> FlowKey {
        unimplemented!()
    }
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }
    pub fn set_nodelay(&mut self, nodelay: bool) {
        unimplemented!()
    }
    pub fn set_keepalive(&mut self, keepalive: Option<KeepAlive>, now: Instant) {
        unimplemented!()
    }
    pub fn set_mtu(&mut self, mtu: u16) {
        unimplemented!()
    }
    pub fn on_icmp_unreachable(&mut self, error: Unreachable) -> Events {
        unimplemented!()
    }
    /// Whether `seq` is of something sent and not acknowledged (SYN and FIN included): what an ICMP error must quote
    /// to be believed (RFC 5927 §4.1).
    pub fn is_in_flight(&self, seq: SeqNumber) -> bool {
        unimplemented!()
    }
    pub fn into_time_wait(&self) -> TimeWait {
        unimplemented!()
    }
}
