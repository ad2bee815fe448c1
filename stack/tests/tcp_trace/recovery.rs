//! Loss recovery with SACK: what is repeated, when, and how fast the window comes down.

use super::script::{client, open, open_sack, open_stamped, plain};
use uktls_stack::tcp::Config;

const TEN: &str = "20 write 10000
         20 > . 1:10001/1000 ack 1\n";

#[test]
fn head_loss() {
    open_sack(&format!(
        "{TEN}
         30 < . 1 ack 1 <sack 1001:2001>
         30 < . 1 ack 1 <sack 1001:3001>
         30 < . 1 ack 1 <sack 1001:4001>
         30 > . 1:1001 ack 1
         30 < . 1 ack 1 <sack 1001:10001>
         40 < . 1 ack 10001
         40 acked 10000"
    ));
}

#[test]
fn middle_loss() {
    open_sack(&format!(
        "{TEN}
         30 < . 1 ack 4001
         30 < . 1 ack 4001 <sack 5001:6001>
         30 < . 1 ack 4001 <sack 5001:7001>
         30 < . 1 ack 4001 <sack 5001:8001>
         30 > . 4001:5001 ack 1
         40 < . 1 ack 10001
         40 acked 10000"
    ));
}

#[test]
fn a_burst_in_the_middle_is_repeated_as_acknowledgements_come() {
    open_sack(&format!(
        "{TEN}
         30 < . 1 ack 2001
         30 < . 1 ack 2001 <sack 6001:7001>
         30 < . 1 ack 2001 <sack 6001:8001>
         30 < . 1 ack 2001 <sack 6001:9001>
         // PRR: one for each that arrived, and one more while less is in flight than is to be.
         30 > . 2001:4001/1000 ack 1
         31 < . 1 ack 2001 <sack 6001:10001>
         31 > . 4001:6001/1000 ack 1
         40 < . 1 ack 4001 <sack 6001:10001>
         41 < . 1 ack 10001
         41 cwnd 9800"
    ));
}

#[test]
fn two_holes_are_repeated_in_order() {
    open_sack(&format!(
        "{TEN}
         30 < . 1 ack 1 <sack 1001:2001>
         30 < . 1 ack 1 <sack 3001:4001 1001:2001>
         30 < . 1 ack 1 <sack 3001:10001 1001:2001>
         30 > . 1:1001 ack 1
         30 > . 2001:3001 ack 1
         40 < . 1 ack 2001 <sack 3001:10001>
         40 < . 1 ack 10001
         40 acked 10000"
    ));
}

#[test]
fn a_retransmission_lost_twice_is_sent_a_third_time() {
    open_sack(
        "20 write 20000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 1 <sack 1001:6001>
         30 > . 1:1001 ack 1
         30 > . 10001:12001/1000 ack 1
         // The new data arrives, the repetition does not.
         40 < . 1 ack 1 <sack 1001:11001>
         40 > . 1:1001 ack 1
         40 > . 12001:17001/1000 ack 1
         50 < . 1 ack 1 <sack 1001:13001>
         50 > . 1:1001 ack 1
         50 > . 17001:19001/1000 ack 1
         60 < . 1 ack 19001
         60 cwnd 7000
         60 > . 19001:20001 ack 1",
    );
}

#[test]
fn lost_acknowledgements_are_made_up_for_by_the_next() {
    open_sack(
        "20 write 20000
         20 > . 1:10001/1000 ack 1
         // Nine of them were lost.
         30 < . 1 ack 10001
         30 cwnd 20000
         30 > . 10001:20001/1000 ack 1",
    );
}

#[test]
fn new_data_follows_when_the_holes_are_repaired() {
    open_sack(
        "20 write 12000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 1 <sack 1001:4001>
         30 > . 1:1001 ack 1
         // Six segments are in flight and one more again; seven are to be.
         35 < . 1 ack 1 <sack 1001:6001>
         35 > . 10001:12001/1000 ack 1
         40 < . 1 ack 12001
         40 acked 12000",
    );
}

#[test]
fn limited_transmit_keeps_acknowledgements_coming() {
    open(
        plain(),
        "20 write 13000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 1
         30 > . 10001:11001 ack 1
         30 < . 1 ack 1
         30 > . 11001:12001 ack 1
         30 < . 1 ack 1
         30 > . 1:1001 ack 1
         40 < . 1 ack 12001
         40 > . 12001:13001 ack 1",
    );
}

#[test]
fn a_window_update_is_no_duplicate() {
    open(
        plain(),
        "20 write 5000
         20 > . 1:5001/1000 ack 1
         30 < . 1 ack 1 win 20001
         30 < . 1 ack 1 win 20002
         30 < . 1 ack 1 win 20003
         30 < . 1 ack 1 win 20004
         31 < . 1 ack 5001
         31 cwnd 10000",
    );
}

#[test]
fn data_that_comes_back_is_no_duplicate() {
    open(
        plain(),
        "20 write 5000
         20 > . 1:5001/1000 ack 1
         30 < . 1:101 ack 1
         30 < . 101:201 ack 1
         30 < . 201:301 ack 1
         30 < . 301:401 ack 1
         40 < . 401 ack 5001
         70 > . 5001 ack 401",
    );
}

#[test]
fn blocks_that_cannot_be_are_passed_over() {
    open_sack(&format!(
        "{TEN}
         // Beyond what was sent, backwards, and before the stream.
         30 < . 1 ack 1001 <sack 10001:12001 5001:4001 -5000:-4000>
         30 inflight 9000
         31 < . 1 ack 10001"
    ));
}

#[test]
fn a_peer_that_goes_back_on_a_sack_gets_it_all_again() {
    open_sack(
        "20 write 3000
         20 > . 1:3001/1000 ack 1
         30 < . 1 ack 1 <sack 1001:3001>
         32.5 > . 1:1001 ack 1
         // It has thrown away what it had.
         42 < . 1 ack 1001
         230 > . 1001:2001 ack 1
         240 < . 1 ack 2001
         240 > . 2001:3001 ack 1
         250 < . 1 ack 3001",
    );
}

#[test]
fn reordering_is_not_loss_once_it_was_seen() {
    open_sack(&format!(
        "{TEN}
         // One segment late, within a quarter of the round trip.
         30 < . 1 ack 1 <sack 1001:3001>
         31 < . 1 ack 3001
         // From now on not even four out of order make a loss at once.
         32 < . 1 ack 3001 <sack 4001:8001>
         33 < . 1 ack 10001
         33 acked 10000"
    ));
}

#[test]
fn a_reordering_window_that_was_too_short_grows_by_duplicates() {
    open_stamped(
        "20 write 10000
         20 > . 1:10001/1000 ack 1
         // Reordering that is seen to be none of loss.
         30 < . 1 ack 1 <ts 1030 20,sack 1001:2001>
         31 < . 1 ack 2001 <ts 1030 20>
         // Now one is late by more than a quarter.
         31 < . 1 ack 2001 <ts 1030 20,sack 3001:6001>
         33.5 > . 2001:3001 ack 1
         35 < . 1 ack 6001 <ts 1030 20>
         35 undone 1
         45 < . 1 ack 10001 <ts 1045 20,sack 2001:3001>
         45 write 10000
         45 > . 10001:20001/1000 ack 1
         // Twice as long as before.
         55 < . 1 ack 10001 <ts 1055 45,sack 11001:14001>
         60 > . 10001:11001 ack 1
         70 < . 1 ack 20001 <ts 1070 60>",
    );
}

#[test]
fn the_tail_is_probed_with_new_data_where_there_is_some() {
    open_sack(
        "20 write 12000
         20 > . 1:10001/1000 ack 1
         // cwnd holds the rest back; nothing comes for two round trips, so one more goes.
         40 > . 10001:11001 ack 1
         50 < . 1 ack 11001
         50 > . 11001:12001 ack 1
         60 < . 1 ack 12001",
    );
}

#[test]
fn a_probe_that_repaired_a_loss_costs_the_window() {
    open_sack(
        "20 write 3000
         20 > . 1:3001/1000 ack 1
         30 < . 1 ack 2001
         230 > . 2001:3001 ack 1
         230 cwnd 10000
         240 write 1000
         240 > . 3001:4001 ack 1
         250 < . 1 ack 4001
         250 cwnd 7000",
    );
}

#[test]
fn a_probe_for_nothing_costs_nothing() {
    open_sack(
        "20 write 3000
         20 > . 1:3001/1000 ack 1
         30 < . 1 ack 2001
         230 > . 2001:3001 ack 1
         // The original was only late: the probe is reported as a duplicate.
         235 < . 1 ack 3001
         240 < . 1 ack 3001 <sack 2001:3001>
         240 write 1000
         240 > . 3001:4001 ack 1
         250 < . 1 ack 4001
         250 cwnd 10000",
    );
}

#[test]
fn there_is_one_probe_and_then_the_timeout() {
    open_sack(
        "20 write 3000
         20 > . 1:3001/1000 ack 1
         // Twice the round trip.
         40 > . 2001:3001 ack 1
         // The timeout counts from the probe.
         250 > . 1:1001 ack 1
         250 cwnd 1000
         260 < . 1 ack 3001",
    );
}

#[test]
fn a_lost_fin_is_probed_for() {
    open_sack(
        "20 write 1000
         20 > . 1:1001 ack 1
         20 shut
         20 > F. 1001 ack 1
         30 < . 1 ack 1001
         230 > F. 1001 ack 1
         240 < . 1 ack 1002
         240 state FIN-WAIT-2",
    );
}

#[test]
fn the_window_ends_at_ssthresh_when_recovery_does() {
    open_sack(
        "20 write 20000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 5001
         30 cwnd 15000
         30 > . 10001:20001/1000 ack 1
         40 < . 1 ack 5001 <sack 6001:10001>
         40 > . 5001:6001 ack 1
         40 ssthresh 10500
         50 < . 1 ack 20001
         50 cwnd 10500",
    );
}

#[test]
fn a_second_loss_in_the_same_window_does_not_halve_again() {
    open_sack(&format!(
        "{TEN}
         30 < . 1 ack 1 <sack 1001:4001>
         30 > . 1:1001 ack 1
         30 ssthresh 7000
         35 < . 1 ack 1 <sack 5001:10001 1001:4001>
         35 > . 4001:5001 ack 1
         35 ssthresh 7000
         45 < . 1 ack 10001
         45 cwnd 7000"
    ));
}

#[test]
fn a_loss_in_the_next_window_reduces_again() {
    open_sack(
        "20 write 30000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 1 <sack 1001:4001>
         30 ssthresh 7000
         30 > . 1:1001 ack 1
         40 < . 1 ack 10001
         40 cwnd 7000
         40 > . 10001:17001/1000 ack 1
         50 < . 1 ack 10001 <sack 11001:14001>
         50 ssthresh 4900
         50 > . 10001:11001 ack 1
         60 < . 1 ack 17001
         60 cwnd 4900
         60 > . 17001:21001/1000 ack 1",
    );
}

#[test]
fn super_segments_are_repeated_by_the_segment_that_is_missing() {
    client(
        Config {
            sack: true,
            max_gso: 5000,
            ..plain()
        },
        "0 > S 0
         10 < S. 0 ack 1 <mss 1000,sackOK>
         10 > . 1 ack 1
         20 write 10000
         20 > . 1:10001/5000 ack 1 gso 1000
         30 < . 1 ack 2001 <sack 3001:10001>
         30 > . 2001:3001 ack 1
         40 < . 1 ack 10001",
    );
}

#[test]
fn without_sack_partial_acknowledgements_walk_through_a_burst() {
    open(
        plain(),
        "20 write 8000
         20 > . 1:8001/1000 ack 1
         // The first three are lost.
         30 < . 1 ack 1
         30 < . 1 ack 1
         30 < . 1 ack 1
         30 > . 1:1001 ack 1
         30 < . 1 ack 1
         30 < . 1 ack 1
         40 < . 1 ack 1001
         40 > . 1001:2001 ack 1
         50 < . 1 ack 2001
         50 > . 2001:3001 ack 1
         60 < . 1 ack 8001
         60 acked 8000",
    );
}

#[test]
fn duplicates_after_a_timeout_begin_no_recovery() {
    open(
        plain(),
        "20 write 5000
         20 > . 1:5001/1000 ack 1
         230 > . 1:1001 ack 1
         // Of the originals, which were only late.
         231 < . 1 ack 1
         231 < . 1 ack 1
         231 < . 1 ack 1
         231 < . 1 ack 1
         240 < . 1 ack 5001
         240 acked 5000",
    );
}
