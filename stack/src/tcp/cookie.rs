//! SYN cookies (RFC 4987 §3.6): when a listener's backlog is full of half-open connections, the SYN-ACK carries all that
//! has to be known about the connection, and nothing is kept until its acknowledgement brings it back.
//!
//! The initial sequence number is the cookie: five bits of a clock that ticks every 64 s, three bits that index a table of
//! segment sizes, 24 bits of a keyed hash over these, the addresses, the peer's number and the options. Window scale,
//! SACK and ECN fit the low six bits of our timestamp, which the peer echoes; a peer without timestamps goes without them.
//!
//! What it costs: the segment size is rounded down to one of eight, a lost SYN-ACK is not repeated by us, the first round
//! trip is not measured. So cookies are for a full backlog only.

use super::config::Config;
use super::connection::Connection;
use super::isn::{IsnGenerator, Label};
use super::options::Options;
use super::segment::{Flags, FlowKey, Segment, Transmit};
use super::seq::SeqNumber;
use super::timestamp;
use crate::clock::{Duration, Instant};

/// How long a tick of the cookies' clock is.
const TICK_SECS: u64 = 64;
/// Ticks after which a cookie is stale: it holds for one to two of them.
const MAX_AGE: u32 = 1;
/// The segment sizes a cookie can tell apart, ascending: the defaults of both families, and what tunnels and jumbo
/// frames leave of a frame.
const SIZES: [u16; 8] = [536, 1220, 1300, 1360, 1400, 1440, 1460, 8940];
/// No window scale option; real ones are at most 14.
const NO_SCALE: u32 = 15;
const OPTION_BITS: u32 = 0x3f;
const SACK_BIT: u32 = 1 << 4;
const ECN_BIT: u32 = 1 << 5;

/// How long after the last cookie an acknowledgement may still bring one back.
pub const COOKIE_LIFE: Duration = Duration::from_secs((MAX_AGE as u64 + 1) * TICK_SECS);

/// The low bits of our timestamp for a SYN with these properties.
fn option_bits(syn: &Segment) -> u32 {
    let ecn = syn.flags.contains(Flags::ECE | Flags::CWR);
    syn.options
        .window_scale
        .map_or(NO_SCALE, |shift| u32::from(shift.min(14)))
        | if syn.options.sack_permitted {
            SACK_BIT
        } else {
            0
        }
        | if ecn { ECN_BIT } else { 0 }
}

/// The SYN as the cookie will tell of it.
fn remembered(syn: &Segment, size: u16, timestamps: bool) -> Segment {
    let mut syn = *syn;
    syn.options.mss = Some(size);
    if !timestamps {
        syn.options = Options {
            mss: Some(size),
            ..Options::default()
        };
        syn.flags = Flags::SYN;
    }
    syn
}

impl IsnGenerator {
    fn cookie(&self, key: &FlowKey, irs: SeqNumber, tick: u32, index: u32, bits: u32) -> SeqNumber {
        let words = [irs.0, tick, index, bits];
        let hash = self.hash(Label::Cookie, key, &words) as u32 & 0xff_ffff;
        SeqNumber((tick & 31) << 27 | index << 24 | hash)
    }

    /// The SYN-ACK for a `syn` of which nothing is kept.
    pub fn cookie_reply(
        &self,
        config: &Config,
        key: &FlowKey,
        syn: &Segment,
        now: Instant,
    ) -> Option<Transmit> {
        let default = if key.remote.is_ipv4() { 536 } else { 1220 };
        let mss = syn.options.mss.unwrap_or(default);
        let index = SIZES.partition_point(|&size| size <= mss).saturating_sub(1);
        let timestamps = config.timestamps && syn.options.timestamps.is_some();
        let bits = if timestamps {
            option_bits(syn)
        } else {
            OPTION_BITS
        };
        let syn = remembered(syn, SIZES[index].min(mss), timestamps);
        // The clock's low bits are all that is in the cookie.
        let tick = (now.as_nanos() / 1_000_000_000 / TICK_SECS) as u32;
        let isn = self.cookie(key, syn.seq, tick, index as u32, bits);
        let mut half_open = Connection::accept(config, *key, &syn, isn, self.ts_offset(key), now);
        let mut reply = half_open.transmit(now)?;
        if let Some((tsval, _)) = &mut reply.options.timestamps {
            let marked = *tsval & !OPTION_BITS | bits;
            // Not ahead of the clock: later timestamps must not be smaller.
            let ahead = marked.wrapping_sub(*tsval) as i32 > 0;
            *tsval = marked.wrapping_sub(if ahead { OPTION_BITS + 1 } else { 0 });
        }
        Some(reply)
    }

    /// The connection whose SYN-ACK was a cookie that `ack` brings back, or `None` when it is no cookie of ours or too old.
    /// It is in SYN-RECEIVED: hand it `ack` next.
    pub fn cookie_accept(
        &self,
        config: &Config,
        key: &FlowKey,
        ack: &Segment,
        now: Instant,
    ) -> Option<Connection> {
        if !ack.flags.ack() || ack.flags.syn() || ack.flags.rst() {
            return None;
        }
        let isn = SeqNumber(ack.ack.0.wrapping_sub(1));
        let irs = SeqNumber(ack.seq.0.wrapping_sub(1));
        let ts_offset = self.ts_offset(key);
        let echo = ack.options.timestamps.filter(|_| config.timestamps);
        let bits = echo.map_or(OPTION_BITS, |(_, tsecr)| tsecr & OPTION_BITS);
        let now_tick = (now.as_nanos() / 1_000_000_000 / TICK_SECS) as u32;
        let age = now_tick.wrapping_sub(isn.0 >> 27) & 31;
        let index = isn.0 >> 24 & 7;
        let expected = self.cookie(key, irs, now_tick.wrapping_sub(age), index, bits);
        if age > MAX_AGE || isn != expected {
            return None;
        }
        if let Some((_, tsecr)) = echo
            && timestamp(ts_offset, now).wrapping_sub(tsecr) > COOKIE_LIFE.as_millis() as u32
        {
            return None;
        }
        let scale = bits & 15;
        let syn = Segment {
            seq: irs,
            flags: if echo.is_some() && bits & ECN_BIT != 0 {
                Flags::SYN | Flags::ECE | Flags::CWR
            } else {
                Flags::SYN
            },
            options: Options {
                mss: Some(SIZES[index as usize]),
                window_scale: (scale != NO_SCALE).then_some(scale as u8),
                sack_permitted: echo.is_some() && bits & SACK_BIT != 0,
                timestamps: echo.map(|_| ack.options.timestamps.unwrap_or_default()),
                ..Options::default()
            },
            payload_len: 0,
            ..*ack
        };
        Some(Connection::accepted_by_cookie(
            config, *key, &syn, isn, ts_offset, now,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::{Events, State};
    use bytes::BytesMut;

    fn key() -> FlowKey {
        FlowKey {
            local: ([10, 0, 0, 1], 443).into(),
            remote: ([10, 0, 0, 2], 5000).into(),
        }
    }

    fn segment(flags: Flags, options: Options) -> Segment {
        Segment {
            src_port: 5000,
            dst_port: 443,
            seq: SeqNumber(u32::MAX),
            ack: SeqNumber(0),
            flags,
            window: 1000,
            options,
            header_len: 20,
            payload_len: 0,
            ecn_ce: false,
        }
    }

    /// What the peer answers to a SYN-ACK.
    fn answer(reply: &Transmit) -> Segment {
        let mut ack = segment(Flags::ACK, Options::default());
        ack.seq = reply.ack.expect("a SYN-ACK acknowledges");
        ack.ack = reply.seq + 1;
        ack.options.timestamps = reply.options.timestamps.map(|(tsval, _)| (701, tsval));
        ack
    }

    fn full() -> Options {
        Options {
            mss: Some(1412),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some((700, 0)),
            ..Options::default()
        }
    }

    #[test]
    fn a_cookie_brings_the_connection_back() {
        let generator = IsnGenerator::new([3; 16]);
        let config = Config {
            ecn: true,
            ..Config::default()
        };
        let syn = segment(Flags::SYN | Flags::ECE | Flags::CWR, full());
        let sent_at = Instant::from_secs(630);
        let reply = generator
            .cookie_reply(&config, &key(), &syn, sent_at)
            .expect("a SYN-ACK");
        assert!(reply.flags.contains(Flags::SYN | Flags::ACK | Flags::ECE));
        assert_eq!(reply.options.window_scale, Some(5));
        let now = sent_at + Duration::from_millis(80);
        let ack = answer(&reply);
        let mut connection = generator
            .cookie_accept(&config, &key(), &ack, now)
            .expect("the cookie is genuine");
        let events = connection.on_segment(now, &ack, BytesMut::new());
        assert!(events.contains(Events::ESTABLISHED));
        let stats = connection.stats();
        // 1400 is the next smaller size of the table; timestamps take 12.
        assert_eq!((stats.mss, stats.rwnd), (1388, 1000 << 7));
        assert_eq!(stats.cwnd / u64::from(stats.mss), 10);
        assert_eq!(stats.srtt, None);
    }

    #[test]
    fn without_timestamps_only_the_segment_size_is_remembered() {
        let generator = IsnGenerator::new([3; 16]);
        let config = Config::default();
        let plain = Options {
            timestamps: None,
            ..full()
        };
        let reply = generator
            .cookie_reply(&config, &key(), &segment(Flags::SYN, plain), Instant::ZERO)
            .expect("a SYN-ACK");
        assert_eq!(
            (reply.options.window_scale, reply.options.sack_permitted),
            (None, false)
        );
        let mut connection = generator
            .cookie_accept(&config, &key(), &answer(&reply), Instant::from_secs(1))
            .expect("the cookie is genuine");
        connection.on_segment(Instant::from_secs(1), &answer(&reply), BytesMut::new());
        assert_eq!(connection.state(), State::Established);
        assert_eq!(
            (connection.stats().mss, connection.stats().rwnd),
            (1400, 1000)
        );
    }

    #[test]
    fn forgeries_and_old_cookies_are_refused() {
        let generator = IsnGenerator::new([3; 16]);
        let config = Config::default();
        let at = Instant::from_secs(64 * 40);
        let syn = segment(Flags::SYN, full());
        let reply = generator
            .cookie_reply(&config, &key(), &syn, at)
            .expect("a SYN-ACK");
        let genuine = answer(&reply);
        let accepts =
            |ack: &Segment, at| generator.cookie_accept(&config, &key(), ack, at).is_some();
        assert!(accepts(&genuine, at + Duration::from_secs(60)));
        assert!(accepts(&genuine, at + Duration::from_secs(127)));
        assert!(!accepts(&genuine, at + COOKIE_LIFE));
        for bit in 0..32 {
            let forged = Segment {
                ack: SeqNumber((genuine.ack.0.wrapping_sub(1) ^ 1 << bit).wrapping_add(1)),
                ..genuine
            };
            assert!(!accepts(&forged, at), "bit {bit}");
        }
        let other_number = Segment {
            seq: genuine.seq + 1,
            ..genuine
        };
        assert!(!accepts(&other_number, at));
        let mut other_options = genuine;
        other_options.options.timestamps = genuine.options.timestamps.map(|(a, b)| (a, b ^ 1));
        assert!(!accepts(&other_options, at));
        let elsewhere = FlowKey {
            remote: ([10, 0, 0, 3], 5000).into(),
            ..key()
        };
        assert!(
            generator
                .cookie_accept(&config, &elsewhere, &genuine, at)
                .is_none()
        );
        assert!(!accepts(
            &Segment {
                flags: Flags::RST | Flags::ACK,
                ..genuine
            },
            at
        ));
    }
}
