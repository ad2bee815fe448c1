//! The retransmission timer: how long it is, when it starts over, and what happens when it runs out.

use super::script::{client, open, open_sack, plain};
use std::time::Duration;
use uktls_stack::tcp::Config;

#[test]
fn back_off_ends_with_progress() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         230 > . 1:1001 ack 1
         650 > . 1:1001 ack 1
         660 < . 1 ack 1001
         700 write 1000
         700 > . 1001:2001 ack 1
         910 > . 1001:2001 ack 1
         920 < . 1 ack 2001",
    );
}

#[test]
fn a_repeated_segment_gives_no_round_trip() {
    // RFC 6298 §3, Karn: the acknowledgement at 231 ms may be of either copy.
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         230 > . 1:1001 ack 1
         231 < . 1 ack 1001
         300 write 1000
         300 > . 1001:2001 ack 1
         510 > . 1001:2001 ack 1",
    );
}

#[test]
fn the_timeout_follows_the_round_trip() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         // SRTT: 7/8 * 10 + 1/8 * 209 = 34.875; RTTVAR: 3/4 * 5 + 1/4 * 199 = 53.5; together 34.875 + 4 * 53.5.
         229 < . 1 ack 1001
         300 write 1000
         300 > . 1001:2001 ack 1
         548.875 > . 1001:2001 ack 1",
    );
}

#[test]
fn the_back_off_has_a_ceiling() {
    open(
        Config {
            rto_max: Duration::from_millis(500),
            ..plain()
        },
        "20 write 100
         20 > . 1:101 ack 1
         230 > . 1:101 ack 1
         650 > . 1:101 ack 1
         1150 > . 1:101 ack 1
         1650 > . 1:101 ack 1
         1660 < . 1 ack 101",
    );
}

#[test]
fn the_timer_stops_when_all_is_acknowledged() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         30 < . 1 ack 1001
         100000 state ESTAB",
    );
}

#[test]
fn each_acknowledgement_starts_it_over_while_more_is_to_come() {
    open(
        plain(),
        "20 write 12000
         20 > . 1:10001/1000 ack 1
         220 < . 1 ack 1001
         220 > . 10001:12001/1000 ack 1
         // The timer has gone off for none of the first ten, though they were sent 300 ms ago.
         320 < . 1 ack 9001
         330 < . 1 ack 12001
         330 timeouts 0",
    );
}

#[test]
fn with_little_out_and_nothing_to_follow_it_runs_from_the_oldest_segment() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         25 write 1000
         25 > . 1001:2001 ack 1
         30 < . 1 ack 1001
         // RFC 7765: 210 ms after it was sent, not after the acknowledgement of the other.
         235 > . 1001:2001 ack 1
         245 < . 1 ack 2001",
    );
}

#[test]
fn slow_start_after_a_timeout_ends_where_the_trouble_was() {
    open(
        plain(),
        "20 write 10000
         20 > . 1:10001/1000 ack 1
         230 > . 1:1001 ack 1
         230 ssthresh 7000
         240 < . 1 ack 1001
         240 cwnd 2000
         240 > . 1001:3001/1000 ack 1
         250 < . 1 ack 3001
         250 cwnd 4000
         250 > . 3001:7001/1000 ack 1
         260 < . 1 ack 7001
         260 > . 7001:10001/1000 ack 1
         270 < . 1 ack 10001",
    );
}

#[test]
fn a_user_timeout_ends_it_early() {
    open(
        Config {
            user_timeout: Some(Duration::from_millis(500)),
            ..plain()
        },
        "20 write 1000
         20 > . 1:1001 ack 1
         230 > . 1:1001 ack 1
         650 = TIMED_OUT CLOSED",
    );
}

#[test]
fn a_user_timeout_counts_from_the_last_progress() {
    open(
        Config {
            user_timeout: Some(Duration::from_millis(500)),
            ..plain()
        },
        "20 write 5000
         20 > . 1:5001/1000 ack 1
         220 < . 1 ack 4001
         // Half a second after the write it still waits; half a second after the acknowledgement no more.
         258.75 > . 4001:5001 ack 1
         736.25 = TIMED_OUT CLOSED",
    );
}

#[test]
fn what_the_windows_holds_is_repeated_by_timeout_with_sack_too() {
    open_sack(
        "20 write 5000
         20 > . 1:5001/1000 ack 1
         40 > . 4001:5001 ack 1
         250 > . 1:1001 ack 1
         // What the peer reports is not repeated.
         260 < . 1 ack 1001 <sack 3001:5001>
         260 > . 1001:3001/1000 ack 1
         270 < . 1 ack 5001",
    );
}

#[test]
fn a_timeout_in_recovery_does_not_reduce_ssthresh_again() {
    open_sack(
        "20 write 10000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 1 <sack 1001:5001>
         30 > . 1:1001 ack 1
         30 ssthresh 7000
         240 > . 1:1001 ack 1
         240 ssthresh 7000
         250 < . 1 ack 10001",
    );
}

#[test]
fn the_syns_round_trip_is_measured_unless_it_was_repeated() {
    client(
        plain(),
        "0 > S 0
         1000 > S 0
         1010 < S. 0 ack 1 <mss 1000>
         1010 > . 1 ack 1
         // Without a measurement it is still a second, and the window one segment (RFC 6298 §5.7, RFC 5681 §3.1).
         1020 write 2000
         1020 > . 1:1001 ack 1
         2020 > . 1:1001 ack 1
         2030 < . 1 ack 1001
         2030 > . 1001:2001 ack 1
         2040 < . 1 ack 2001",
    );
}
