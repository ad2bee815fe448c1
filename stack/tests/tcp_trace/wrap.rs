//! Numbers that wrap, and old duplicates that wrapping makes dangerous (PAWS, RFC 7323 §5). Every trace begins just before
//! the wrap: ours comes after 1024 bytes, the peer's after 256.

use super::script::{client, open, open_sack, open_stamped, plain, stamped};
use uktls_stack::tcp::Config;

#[test]
fn data_crosses_the_wrap_both_ways() {
    open(
        plain(),
        "20 write 3000
         20 > . 1:3001/1000 ack 1
         30 < . 1:1001 ack 3001
         30 acked 3000
         31 < . 1001:2001 ack 3001
         31 > . 3001 ack 2001",
    );
}

#[test]
fn sack_blocks_cross_the_wrap() {
    open_sack(
        "20 write 4000
         20 > . 1:4001/1000 ack 1
         30 < . 1 ack 1 <sack 1001:4001>
         30 > . 1:1001 ack 1
         40 < . 1 ack 4001
         40 acked 4000",
    );
}

#[test]
fn gaps_across_the_wrap_are_reported() {
    open_sack(
        "20 < . 201:301 ack 1
         20 > . 1 ack 1 <sack 201:301>
         21 < . 1:201 ack 1
         21 > . 1 ack 301 <>",
    );
}

#[test]
fn a_fin_right_at_the_wrap() {
    open(
        plain(),
        "20 write 1023
         20 > . 1:1001 ack 1
         20 > . 1001:1024 ack 1
         20 shut
         20 > F. 1024 ack 1
         30 < F. 1 ack 1025
         30 = ACKED PEER_FIN TIME_WAIT
         30 > . 1025 ack 2",
    );
}

#[test]
fn a_peers_fin_right_at_the_wrap() {
    open(
        plain(),
        "20 < . 1:256 ack 1
         21 < F. 256 ack 1
         21 = PEER_FIN
         21 > . 1 ack 257
         30 < F. 256 ack 1
         30 > . 1 ack 257",
    );
}

#[test]
fn a_segment_from_half_the_number_space_away_is_outside_the_window() {
    open(
        plain(),
        "20 < . 2147483000:2147483100 ack 1
         20 > . 1 ack 1
         30 < . -2147483000:-2147482900 ack 1
         30 > . 1 ack 1
         30 state ESTAB",
    );
}

#[test]
fn an_old_timestamp_is_refused_whatever_the_numbers() {
    open_stamped(
        "20 < . 1:101 ack 1 <ts 1020 10>
         60 > . 1 ack 101
         70 < . 101:201 ack 1 <ts 1019 10>
         70 > . 1 ack 101 <ts 70 1020>
         71 < F. 101 ack 1 <ts 1019 10>
         71 > . 1 ack 101
         71 state ESTAB",
    );
}

#[test]
fn an_equal_timestamp_is_fine() {
    open_stamped(
        "20 < . 1:101 ack 1 <ts 1020 10>
         20 < . 101:201 ack 1 <ts 1020 10>
         60 > . 1 ack 201 <ts 60 1020>",
    );
}

#[test]
fn a_reset_is_taken_whatever_its_timestamp() {
    open_stamped(
        "20 < . 1:101 ack 1 <ts 1020 10>
         30 < R 101 <ts 5 0>
         30 = RESET CLOSED",
    );
}

#[test]
fn the_echo_is_of_the_first_segment_that_waits_to_be_acknowledged() {
    open_stamped(
        "20 < . 1:101 ack 1 <ts 1020 10>
         30 < . 101:201 ack 1 <ts 1030 10>
         // RFC 7323 §4.3: so that the peer's round trip includes the delay.
         60 > . 1 ack 201 <ts 60 1020>",
    );
}

#[test]
fn a_segment_behind_a_gap_does_not_move_the_echo() {
    open_stamped(
        "20 < . 1001:2001 ack 1 <ts 1020 10>
         20 > . 1 ack 1 <ts 20 1010,sack 1001:2001>
         30 < . 1:1001 ack 1 <ts 1030 10>
         30 > . 1 ack 2001 <ts 30 1030>",
    );
}

#[test]
fn the_peers_clock_wraps_while_segments_wait_to_be_acknowledged() {
    client(
        stamped(),
        "0 > S 0
         10 < S. 0 ack 1 <mss 1012,sackOK,ts -11 0>
         10 > . 1 ack 1 <ts 10 -11>
         20 < . 1:101 ack 1 <ts -1 10>
         21 < . 101:201 ack 1 <ts 0 10>
         22 < . 201:301 ack 1 <ts 1 10>
         60 > . 1 ack 301 <ts 60 -1>
         70 < . 301:401 ack 1 <ts 2 10>
         110 > . 1 ack 401 <ts 110 2>
         120 < . 401:501 ack 1 <ts -1 10>
         120 > . 1 ack 401 <ts 120 2>",
    );
}

#[test]
fn without_timestamps_nothing_is_refused_for_its_age() {
    client(
        Config {
            timestamps: true,
            ..plain()
        },
        "0 > S 0
         10 < S. 0 ack 1 <mss 1000>
         10 > . 1 ack 1 <>
         20 < . 1:101 ack 1 <ts 5 5>
         30 < . 101:201 ack 1 <ts 4 5>
         60 > . 1 ack 201 <>",
    );
}
