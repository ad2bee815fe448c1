//! Data both ways: windows, probes, delayed acknowledgements, silly windows, Nagle.

use super::script::{open, plain};
use uktls_stack::tcp::Config;

#[test]
fn one_segment_is_acknowledged_late_and_two_at_once() {
    open(
        plain(),
        "20 < . 1:1001 ack 1
         20 = READABLE
         60 > . 1 ack 1001
         70 < . 1001:2001 ack 1
         75 < . 2001:3001 ack 1
         75 > . 1 ack 3001
         // A super-segment counts as the segments it holds.
         90 < . 3001:9001 ack 1
         90 > . 1 ack 9001",
    );
}

#[test]
fn an_acknowledgement_rides_on_data() {
    open(
        plain(),
        "20 < . 1:501 ack 1
         30 write 100
         30 > P. 1:101 ack 501
         50 < . 501 ack 101
         200 state ESTAB",
    );
}

#[test]
fn out_of_order_data_and_the_filling_of_a_gap_are_acknowledged_at_once() {
    open(
        plain(),
        "20 < . 1001:1101 ack 1
         20 > . 1 ack 1
         21 < . 1:101 ack 1
         21 > . 1 ack 101
         22 < . 101:1001 ack 1
         22 > . 1 ack 1101",
    );
}

#[test]
fn a_full_window_closes_and_opens_when_read() {
    open(
        plain(),
        "20 hold
         20 < . 1:6001 ack 1
         20 > . 1 ack 6001 win 4000
         30 < . 6001:10001 ack 1
         30 > . 1 ack 10001 win 0
         // A probe of the closed window is answered, its byte dropped.
         40 < . 10001:10002 ack 1
         40 > . 1 ack 10001 win 0
         50 read 400
         60 read 600
         60 > . 1 ack 10001 win 1000
         70 read 9000
         70 > . 1 ack 10001 win 10000",
    );
}

#[test]
fn a_closed_window_is_probed_with_back_off() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         30 < . 1 ack 1001 win 0
         30 room 1
         30 write 1000
         30 room 0
         240 > . 1001:1002 ack 1
         250 < . 1 ack 1001 win 0
         660 > . 1001:1002 ack 1
         670 < . 1 ack 1001 win 0
         1500 > . 1001:1002 ack 1
         // The update was lost; the probe's answer brings it.
         1510 < . 1 ack 1002 win 5000
         1510 = ACKED
         1510 > . 1002:2001 ack 1
         1520 < . 1 ack 2001 win 5000",
    );
}

#[test]
fn unanswered_probes_end_the_connection() {
    open(
        Config {
            retries: 2,
            ..plain()
        },
        "20 write 1000
         20 > . 1:1001 ack 1
         30 < . 1 ack 1001 win 0
         30 write 10
         240 > . 1001:1002 ack 1
         660 > . 1001:1002 ack 1
         1500 = TIMED_OUT CLOSED",
    );
}

#[test]
fn a_small_window_is_not_filled_with_small_segments() {
    open(
        plain(),
        "20 write 3000
         20 > . 1:1001 ack 1
         20 > . 1001:2001 ack 1
         20 > . 2001:3001 ack 1
         30 < . 1 ack 3001 win 300
         30 write 1000
         // Less than a segment and less than half the largest window: only the override timer lets it out.
         240 > . 3001:3301 ack 1
         250 < . 1 ack 3301 win 2000
         250 > . 3301:4001 ack 1",
    );
}

#[test]
fn a_window_that_shrinks_holds_new_data() {
    open(
        plain(),
        "20 write 2000
         20 > . 1:1001 ack 1
         20 > . 1001:2001 ack 1
         30 < . 1 ack 1001 win 500
         30 write 1000
         40 < . 1 ack 2001 win 1000
         40 > . 2001:3001 ack 1",
    );
}

#[test]
fn nagle_holds_a_small_tail_while_data_is_in_flight() {
    open(
        Config {
            nodelay: false,
            ..plain()
        },
        "20 write 100
         20 > P. 1:101 ack 1
         21 write 100
         22 write 100
         30 < . 1 ack 101
         30 > P. 101:301 ack 1
         31 write 1200
         31 > . 301:1301 ack 1
         40 < . 1 ack 1301
         40 > P. 1301:1501 ack 1",
    );
}

#[test]
fn more_to_come_holds_the_tail_until_it_comes_or_all_is_acknowledged() {
    open(
        plain(),
        "20 more
         20 write 1500
         20 > . 1:1001 ack 1
         25 write 500
         25 > . 1001:2001 ack 1
         26 write 10
         30 < . 1 ack 2001
         30 > P. 2001:2011 ack 1",
    );
}

#[test]
fn slow_start_doubles_and_an_idle_connection_starts_again() {
    open(
        plain(),
        "20 room 10000
         20 write 10000
         20 > . 1:1001 ack 1
         20 > . 1001:2001 ack 1
         20 > . 2001:3001 ack 1
         20 > . 3001:4001 ack 1
         20 > . 4001:5001 ack 1
         20 > . 5001:6001 ack 1
         20 > . 6001:7001 ack 1
         20 > . 7001:8001 ack 1
         20 > . 8001:9001 ack 1
         20 > P. 9001:10001 ack 1
         30 < . 1 ack 10001
         30 cwnd 20000
         5000 write 10
         5000 > P. 10001:10011 ack 1
         5000 cwnd 10000",
    );
}

#[test]
fn super_segments_hold_whole_segments() {
    open(
        Config {
            max_gso: 4500,
            ..plain()
        },
        "20 write 9500
         20 > . 1:4001 ack 1
         20 > . 4001:8001 ack 1
         20 > P. 8001:9501 ack 1
         30 < . 1 ack 9501
         30 = ACKED
         30 acked 9500",
    );
}
