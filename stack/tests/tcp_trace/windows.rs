//! Windows: closed, lost and found, shrunk, tuned.

use super::script::{client, open, plain};
use uktls_stack::tcp::Config;

#[test]
fn a_lost_window_update_is_found_by_a_probe() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         30 < . 1 ack 1001 win 0
         30 write 500
         // The update that the peer sent at 100 ms was lost.
         240 > . 1001:1002 ack 1
         250 < . 1 ack 1002 win 20000
         250 > . 1002:1501 ack 1
         260 < . 1 ack 1501",
    );
}

#[test]
fn a_window_update_opens_at_once() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         30 < . 1 ack 1001 win 0
         30 write 2500
         100 < . 1 ack 1001 win 20000
         100 > . 1001:3501/1000 ack 1
         110 < . 1 ack 3501",
    );
}

#[test]
fn an_old_window_update_does_not_close_what_a_new_one_opened() {
    open(
        plain(),
        "20 < . 1:101 ack 1 win 5000
         20 rwnd 5000
         // Sent before the other, arrived after it.
         30 < . 1 ack 1 win 100
         30 > . 1 ack 101
         30 rwnd 5000",
    );
}

#[test]
fn zero_window_probes_go_on_as_long_as_they_are_answered() {
    open(
        Config {
            retries: 2,
            ..plain()
        },
        "20 write 1000
         20 > . 1:1001 ack 1
         30 < . 1 ack 1001 win 0
         30 write 100
         240 > . 1001:1002 ack 1
         250 < . 1 ack 1001 win 0
         660 > . 1001:1002 ack 1
         670 < . 1 ack 1001 win 0
         1500 > . 1001:1002 ack 1
         1510 < . 1 ack 1001 win 0
         3180 > . 1001:1002 ack 1
         3190 < . 1 ack 1001 win 0
         6540 > . 1001:1002 ack 1
         6550 < . 1 ack 1001 win 0
         6550 state ESTAB",
    );
}

#[test]
fn a_fin_waits_for_the_window_to_open() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         30 < . 1 ack 1001 win 0
         30 write 500
         30 shut
         30 state FIN-WAIT-1
         100 < . 1 ack 1001 win 300
         // Less than half of the largest window: the probe's timer lets it out.
         310 > . 1001:1301 ack 1
         320 < . 1 ack 1301 win 20000
         320 > PF. 1301:1501 ack 1
         330 < . 1 ack 1502
         330 state FIN-WAIT-2",
    );
}

#[test]
fn a_fin_alone_needs_no_window() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         30 < . 1 ack 1001 win 0
         30 shut
         30 > F. 1001 ack 1
         40 < . 1 ack 1002 win 0
         40 state FIN-WAIT-2",
    );
}

#[test]
fn a_window_that_shrinks_below_what_is_out_lets_nothing_more_out() {
    open(
        plain(),
        "20 write 8000
         20 > . 1:8001/1000 ack 1
         30 < . 1 ack 2001 win 1000
         30 write 5000
         40 < . 1 ack 8001 win 3000
         40 > . 8001:11001/1000 ack 1
         50 < . 1 ack 11001 win 20000
         50 > . 11001:13001/1000 ack 1
         60 < . 1 ack 13001",
    );
}

#[test]
fn behind_a_shrunken_window_only_the_first_segment_is_repeated() {
    open(
        plain(),
        "20 write 4000
         20 > . 1:4001/1000 ack 1
         30 < . 1 ack 1001 win 0
         // The peer took its window back with three segments out.
         230 > . 1001:2001 ack 1
         240 < . 1 ack 1001 win 0
         440 state ESTAB
         650 > . 1001:2001 ack 1
         660 < . 1 ack 4001 win 20000
         660 acked 4000",
    );
}

#[test]
fn a_window_smaller_than_a_segment_still_moves_data() {
    client(
        plain(),
        "0 > S 0
         10 < S. 0 ack 1 win 400 <mss 1000>
         10 > . 1 ack 1
         20 write 1000
         // The largest window ever offered: half of it is worth a segment.
         20 > . 1:401 ack 1
         30 < . 1 ack 401 win 400
         30 > . 401:801 ack 1
         40 < . 1 ack 801 win 400
         40 > . 801:1001 ack 1
         50 < . 1 ack 1001 win 400",
    );
}

#[test]
fn the_window_is_not_opened_byte_by_byte() {
    open(
        plain(),
        "20 hold
         20 < . 1:10001 ack 1
         20 > . 1 ack 10001 win 0
         30 read 100
         31 read 100
         32 read 700
         33 read 99
         34 read 1
         34 > . 1 ack 10001 win 1000",
    );
}

#[test]
fn what_is_offered_is_never_taken_back() {
    open(
        plain(),
        "20 hold
         20 < . 1:501 ack 1
         60 > . 1 ack 501 win 9500
         70 < . 501:1001 ack 1
         110 > . 1 ack 1001 win 9000
         120 read 1000
         // Half a segment more could be offered after each; the edge moves by whole ones.
         130 < . 1001:1501 ack 1
         170 > . 1 ack 1501 win 9500",
    );
}

#[test]
fn a_probe_of_our_closed_window_is_answered_and_its_byte_taken_when_there_is_room() {
    open(
        plain(),
        "20 hold
         20 < . 1:10001 ack 1
         20 > . 1 ack 10001 win 0
         300 < . 10001:10002 ack 1
         300 > . 1 ack 10001 win 0
         310 read 10000
         310 > . 1 ack 10001 win 10000
         // That update was lost; the next probe fits.
         700 < . 10001:10002 ack 1
         740 > . 1 ack 10002 win 9999",
    );
}

#[test]
fn acknowledgements_and_resets_count_although_our_window_is_closed() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         20 hold
         21 < . 1:10001 ack 1
         21 > . 1001 ack 10001 win 0
         30 < . 10001 ack 1001
         30 = ACKED
         40 < R 10001
         40 = RESET CLOSED",
    );
}

#[test]
fn the_window_follows_what_the_reader_takes() {
    open(
        Config {
            recv_buffer: 60_000,
            recv_initial: 10_000,
            ..plain()
        },
        "20 < . 1:9001 ack 1
         20 > . 1 ack 9001 win 10000
         // 9000 bytes in 11 ms are 8181 in a round trip, more than before: room for four times that, and told at once.
         31 < . 9001:10001 ack 1
         31 > . 1 ack 10001 win 32724",
    );
}

#[test]
fn a_reader_that_takes_nothing_gets_no_larger_window() {
    open(
        Config {
            recv_buffer: 60_000,
            recv_initial: 10_000,
            ..plain()
        },
        "20 hold
         20 < . 1:5001 ack 1
         20 > . 1 ack 5001 win 5000
         40 < . 5001:10001 ack 1
         40 > . 1 ack 10001 win 0",
    );
}

#[test]
fn a_slow_trickle_needs_no_larger_window() {
    open(
        Config {
            recv_buffer: 60_000,
            recv_initial: 10_000,
            ..plain()
        },
        "20 < . 1:1001 ack 1
         60 > . 1 ack 1001 win 10000
         500 < . 1001:2001 ack 1
         540 > . 1 ack 2001 win 10000
         1000 < . 2001:3001 ack 1
         1040 > . 1 ack 3001 win 10000",
    );
}

#[test]
fn the_room_offered_to_the_sealer_is_what_the_windows_leave() {
    open(
        plain(),
        "20 room 10000
         20 write 4000
         20 > . 1:4001/1000 ack 1
         20 room 6000
         30 < . 1 ack 4001 win 500
         30 room 500
         30 write 400
         30 > . 4001:4401 ack 1
         30 room 100",
    );
}
