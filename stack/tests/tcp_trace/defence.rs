//! What must not disturb a connection: RFC 5961, PAWS, old and strange segments.

use super::script::{client, open, plain};
use uktls_stack::tcp::Config;

#[test]
fn a_reset_counts_only_at_the_exact_number() {
    open(
        plain(),
        "20 < R 500
         20 > . 1 ack 1
         20 state ESTAB
         30 < R 50000
         30 state ESTAB
         40 < R 1
         40 = RESET CLOSED",
    );
}

#[test]
fn a_syn_in_an_established_connection_is_challenged() {
    open(
        plain(),
        "20 < S 700
         20 > . 1 ack 1
         30 < S 0
         30 > . 1 ack 1
         30 state ESTAB",
    );
}

#[test]
fn data_with_an_impossible_acknowledgement_is_not_taken() {
    open(
        plain(),
        "20 < . 1:101 ack 5000
         20 > . 1 ack 1
         30 < . 1:101 ack -70000
         30 > . 1 ack 1
         40 < . 1:101 ack 1
         40 = READABLE
         80 > . 1 ack 101",
    );
}

#[test]
fn challenges_are_rationed() {
    open(
        plain(),
        "20 < R 500
         20 > . 1 ack 1
         20 < R 500
         20 > . 1 ack 1
         20 < R 500
         20 > . 1 ack 1
         20 < R 500
         20 > . 1 ack 1
         20 < R 500
         20 > . 1 ack 1
         20 < R 500
         20 > . 1 ack 1
         20 < R 500
         20 > . 1 ack 1
         20 < R 500
         20 > . 1 ack 1
         20 < R 500
         20 > . 1 ack 1
         20 < R 500
         20 > . 1 ack 1
         20 < R 500
         500 < R 500
         1020 < R 500
         1020 > . 1 ack 1",
    );
}

#[test]
fn data_outside_the_window_is_answered_and_dropped() {
    open(
        plain(),
        "20 < . 20001:20101 ack 1
         20 > . 1 ack 1
         30 < . -99:1 ack 1
         30 > . 1 ack 1
         // Half old, half new; and beyond the window's end.
         40 < . -99:101 ack 1
         80 > . 1 ack 101
         90 < . 101:20001 ack 1
         90 = READABLE
         // The window's end stays until it can move by a segment.
         90 > . 1 ack 10001 win 10000",
    );
}

#[test]
fn a_segment_without_ack_is_dropped() {
    open(plain(), "20 < P 1:101\n 200 state ESTAB");
}

#[test]
fn paws() {
    client(
        Config {
            timestamps: true,
            ..plain()
        },
        "0 > S 0 <mss 1000,ts 0 0>
         10 < S. 0 ack 1 <mss 1000,ts 1000 0>
         10 > . 1 ack 1 <ts 10 1000>
         20 < . 1:101 ack 1 <ts 1010 10>
         60 > . 1 ack 101 <ts 60 1010>
         // An old duplicate whose number fits again.
         70 < . 101:201 ack 1 <ts 900 10>
         70 > . 1 ack 101 <ts 70 1010>
         // Without the option it is dropped in silence.
         80 < . 101:201 ack 1
         90 < . 101:201 ack 1 <ts 1011 10>
         90 = READABLE
         130 > . 1 ack 201 <ts 130 1011>
         // After 24 days TS.Recent says nothing any more.
         2073700000 < . 201:301 ack 1 <ts 900 10>
         2073700000 = READABLE
         2073700040 > . 1 ack 301",
    );
}

#[test]
fn a_timestamp_clock_may_wrap() {
    client(
        Config {
            timestamps: true,
            ..plain()
        },
        "0 > S 0
         10 < S. 0 ack 1 <mss 1000,ts -5 0>
         10 > . 1 ack 1 <ts 10 -5>
         20 < . 1:101 ack 1 <ts 5 10>
         60 > . 1 ack 101 <ts 60 5>",
    );
}
