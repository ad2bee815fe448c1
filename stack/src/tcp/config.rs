//! What a connection is told at birth ([`Config`]), what it tells back ([`Events`]), and how it is doing ([`Stats`]).

use core::fmt;
use core::ops::{BitOr, BitOrAssign};
use core::time::Duration;

/// Keep-alive settings (RFC 1122 §4.2.3.6); off unless given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// Silence after which the first probe goes out.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes after which the connection is given up.
    pub count: u32,
}

/// Which congestion control a connection uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CongestionKind {
    /// RFC 9438.
    #[default]
    Cubic,
    /// RFC 5681.
    Reno,
}

/// What a connection is told when it is made. Copied into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Largest segment we take and, before path MTU discovery, send: the device's MTU less 40 (IPv4) or 60 (IPv6).
    /// TCP options are not subtracted (RFC 6691).
    pub mss: u16,
    /// Bytes of the stream that may wait between the network and the reader: the window advertised at most.
    pub recv_buffer: usize,
    /// Floor of the retransmission timeout. RFC 6298 §2.4 says one second; 200 ms is what other stacks use.
    pub rto_min: Duration,
    /// Ceiling of the retransmission timeout and of the time between window probes.
    pub rto_max: Duration,
    /// Retransmission timeout before the first measurement (RFC 6298 §2.1).
    pub initial_rto: Duration,
    /// Bytes of the stream that may wait at first. From there the window follows what the reader takes in a round trip, up to
    /// [`Config::recv_buffer`].
    pub recv_initial: usize,
    /// Segments that are acknowledged at once at the beginning, after a gap and after idle, when the peer's window may be
    /// small.
    pub quick_acks: u32,
    /// How long an acknowledgement may wait for company; RFC 9293 §3.8.6.3 allows up to 500 ms.
    pub delayed_ack: Duration,
    /// Do not hold small segments back (Nagle's algorithm off).
    pub nodelay: bool,
    /// Keep-alive probes.
    pub keepalive: Option<KeepAlive>,
    /// Give up when data stays unacknowledged this long (RFC 5482), whatever [`Config::retries`] says.
    pub user_timeout: Option<Duration>,
    /// Retransmission timeouts in a row without progress after which the connection is given up.
    pub retries: u32,
    /// The same for SYN and SYN-ACK.
    pub syn_retries: u32,
    /// Congestion control.
    pub congestion: CongestionKind,
    /// Payload bytes in one super-segment; at most one MSS when the device has no segmentation offload. Rounded down
    /// to whole segments.
    pub max_gso: usize,
    /// Initial congestion window in segments (RFC 6928).
    pub initial_window: u32,
    /// How long TIME-WAIT lasts (2 MSL).
    pub time_wait: Duration,
    /// How long FIN-WAIT-2 lasts after [`close`](super::Connection::close), when no reader is left.
    pub fin_wait: Duration,
    /// Spread what is sent over the round trip, on paths where that takes a millisecond or more.
    pub pacing: bool,
    /// Offer or accept timestamps (RFC 7323).
    pub timestamps: bool,
    /// Offer or accept window scaling (RFC 7323).
    pub window_scaling: bool,
    /// Offer or accept selective acknowledgements (RFC 2018).
    pub sack: bool,
    /// Offer or accept explicit congestion notification (RFC 3168).
    pub ecn: bool,
    /// Accept it from a peer that offers, without offering it: as Linux does by default.
    pub ecn_passive: bool,
}

impl Default for Config {
    /// Ethernet over IPv4, no segmentation offload.
    fn default() -> Config {
        Config {
            mss: 1460,
            recv_buffer: 1 << 20,
            recv_initial: 256 << 10,
            quick_acks: 16,
            rto_min: Duration::from_millis(200),
            rto_max: Duration::from_secs(60),
            initial_rto: Duration::from_secs(1),
            delayed_ack: Duration::from_millis(40),
            nodelay: true,
            keepalive: None,
            user_timeout: None,
            retries: 15,
            syn_retries: 6,
            congestion: CongestionKind::Cubic,
            max_gso: 1460,
            initial_window: 10,
            time_wait: Duration::from_secs(60),
            fin_wait: Duration::from_secs(60),
            pacing: true,
            timestamps: true,
            window_scaling: true,
            sack: true,
            ecn: false,
            ecn_passive: true,
        }
    }
}

/// States of RFC 9293 §3.3.2. LISTEN is not among them: a listener is not a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Our SYN is out.
    SynSent,
    /// Both SYNs are known, ours is not acknowledged yet.
    SynReceived,
    /// Data flows.
    Established,
    /// Our FIN is queued or out, the peer's has not come.
    FinWait1,
    /// Our FIN is acknowledged, the peer's has not come.
    FinWait2,
    /// The peer's FIN has come, ours is not queued.
    CloseWait,
    /// Both FINs, ours is not acknowledged, the peer's came first.
    LastAck,
    /// Both FINs crossed; ours is not acknowledged.
    Closing,
    /// Both directions are done; late segments are answered.
    TimeWait,
    /// Nothing is left.
    Closed,
}

impl State {
    /// Linux's name for the state, as `ss` and `/proc/net/tcp` readers know it.
    pub fn name(self) -> &'static str {
        match self {
            State::SynSent => "SYN-SENT",
            State::SynReceived => "SYN-RECV",
            State::Established => "ESTAB",
            State::FinWait1 => "FIN-WAIT-1",
            State::FinWait2 => "FIN-WAIT-2",
            State::CloseWait => "CLOSE-WAIT",
            State::LastAck => "LAST-ACK",
            State::Closing => "CLOSING",
            State::TimeWait => "TIME-WAIT",
            State::Closed => "CLOSED",
        }
    }
}

/// What a segment or a timer changed, as a set. Each is reported once, when it happens.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Events(u16);

impl Events {
    /// Nothing happened that the socket needs to know.
    pub const NONE: Events = Events(0);
    /// The handshake is done.
    pub const ESTABLISHED: Events = Events(1 << 0);
    /// [`take_received`](super::Connection::take_received) has something.
    pub const READABLE: Events = Events(1 << 1);
    /// [`acked`](super::Connection::acked) moved.
    pub const ACKED: Events = Events(1 << 2);
    /// The peer's FIN came, and everything before it.
    pub const PEER_FIN: Events = Events(1 << 3);
    /// The peer reset an established connection, or one of ours sent a reset because its reader was gone.
    pub const RESET: Events = Events(1 << 4);
    /// The peer refused the connection, or it was found unreachable before it was established.
    pub const REFUSED: Events = Events(1 << 5);
    /// The peer did not answer in time.
    pub const TIMED_OUT: Events = Events(1 << 6);
    /// The state is CLOSED: the connection can be dropped (once [`transmit`](super::Connection::transmit) has given
    /// what it still has to say).
    pub const CLOSED: Events = Events(1 << 7);
    /// The state is TIME-WAIT: [`into_time_wait`](super::Connection::into_time_wait) can take the connection's place
    /// once what was received is taken.
    pub const TIME_WAIT: Events = Events(1 << 8);
    /// The path does not reach the peer any more (a hard ICMP error on an established connection).
    pub const UNREACHABLE: Events = Events(1 << 9);

    /// Whether all of `other` happened.
    pub const fn contains(self, other: Events) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` happened.
    pub const fn intersects(self, other: Events) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether nothing happened.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Events {
    type Output = Events;
    fn bitor(self, other: Events) -> Events {
        Events(self.0 | other.0)
    }
}

impl BitOrAssign for Events {
    fn bitor_assign(&mut self, other: Events) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            "ESTABLISHED",
            "READABLE",
            "ACKED",
            "PEER_FIN",
            "RESET",
            "REFUSED",
            "TIMED_OUT",
            "CLOSED",
            "TIME_WAIT",
            "UNREACHABLE",
        ];
        let mut set = f.debug_set();
        for (bit, name) in names.iter().enumerate() {
            if self.0 & (1 << bit) != 0 {
                set.entry(&format_args!("{name}"));
            }
        }
        set.finish()
    }
}

/// An ICMP error about a segment of this connection (RFC 5927).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// May pass: network or host unreachable, time exceeded.
    Soft,
    /// Will not pass: protocol or port unreachable, administratively prohibited.
    Hard,
}

/// A look at a connection's insides, for `stat` and for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Congestion window in bytes.
    pub cwnd: u64,
    /// Slow-start threshold in bytes; `u64::MAX` before the first loss.
    pub ssthresh: u64,
    /// Smoothed round-trip time, once there is a measurement.
    pub srtt: Option<Duration>,
    /// Its variation.
    pub rttvar: Duration,
    /// Retransmission timeout, back-off included.
    pub rto: Duration,
    /// The peer's window in bytes.
    pub rwnd: u64,
    /// Bytes thought to be in the network.
    pub in_flight: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Times that loss recovery was found to have been for nothing, and undone.
    pub undone: u64,
    /// Segments taken in, super-segments counted as one.
    pub segments_in: u64,
    /// Segments sent, super-segments counted by their pieces.
    pub segments_out: u64,
    /// Stream bytes received in order.
    pub bytes_in: u64,
    /// Stream bytes sent, those sent again included.
    pub bytes_out: u64,
    /// Payload of a full segment sent, options subtracted.
    pub mss: u16,
}
