//! Losses that were none: what shows it, and what comes back.

use super::script::{open, open_sack, open_stamped, plain};
use uktls_stack::tcp::Config;

#[test]
fn a_fast_retransmission_for_nothing_is_undone_by_the_echo() {
    open_stamped(
        "20 write 10000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 1 <ts 1030 20,sack 1001:4001>
         30 > . 1:1001 ack 1 <ts 30 1030>
         30 ssthresh 7000
         // The first one was late, not lost: its own timestamp comes back.
         32 < . 1 ack 4001 <ts 1032 20>
         32 undone 1
         32 ssthresh -1
         33 < . 1 ack 10001 <ts 1033 20>
         33 acked 10000",
    );
}

#[test]
fn a_real_loss_is_not_undone() {
    open_stamped(
        "20 write 10000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 1 <ts 1030 20,sack 1001:4001>
         30 > . 1:1001 ack 1
         40 < . 1 ack 10001 <ts 1040 30>
         40 undone 0
         40 cwnd 7000",
    );
}

#[test]
fn the_echo_of_an_earlier_recovery_undoes_nothing() {
    open_stamped(
        "20 write 10000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 1 win 30000 <ts 1030 20,sack 1001:4001>
         30 > . 1:1001 ack 1
         31 write 6000
         31 < . 1 ack 1 win 30000 <ts 1031 20,sack 1001:10001>
         31 > . 10001:16001/1000 ack 1
         // The repetition is lost, and of what recovery let out the first: both are sent again in this recovery.
         41 < . 1 ack 1 win 30000 <ts 1041 20,sack 11001:14001 1001:10001>
         41 > . 1:1001 ack 1
         41 > . 10001:11001 ack 1
         // That brings the first recovery to its end, and shows a loss that begins a second one.
         51 < . 1 ack 10001 win 30000 <ts 1051 41,sack 11001:14001>
         51 > . 14001:15001 ack 1
         51 > . 15001:16001 ack 1
         // What moves SND.UNA first is what was sent again in the first.
         52 < . 1 ack 14001 win 30000 <ts 1052 41>
         52 undone 0",
    );
}

#[test]
fn duplicates_of_all_that_was_repeated_undo_without_timestamps() {
    open_sack(
        "20 write 10000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 1 <sack 2001:6001>
         30 > . 1:2001/1000 ack 1
         33 < . 1 ack 10001
         33 cwnd 7000
         // The repetitions arrive where the originals are already.
         40 < . 1 ack 10001 <sack 1:1001>
         40 undone 0
         40 < . 1 ack 10001 <sack 1001:2001>
         40 undone 1
         40 cwnd 10000",
    );
}

#[test]
fn a_duplicate_within_what_is_held_out_of_order_counts_too() {
    open_sack(
        "20 write 10000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 1 <sack 2001:5001>
         30 > . 1:2001/1000 ack 1
         // Before the second one is acknowledged, both its original and its repetition have arrived.
         31 < . 1 ack 1001 <sack 1001:2001 1001:10001>
         31 undone 0
         32 < . 1 ack 10001 <sack 1:1001>
         32 undone 1",
    );
}

#[test]
fn a_duplicate_of_one_of_two_repetitions_undoes_nothing() {
    open_sack(
        "20 write 10000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 1 <sack 2001:6001>
         30 > . 1:2001/1000 ack 1
         40 < . 1 ack 10001 <sack 1001:2001>
         50 write 1000
         50 > . 10001:11001 ack 1
         60 < . 1 ack 11001
         60 undone 0",
    );
}

#[test]
fn new_data_finds_out_about_a_timeout_for_nothing() {
    open(
        Config {
            initial_window: 4,
            ..plain()
        },
        "20 write 10000
         20 > . 1:4001/1000 ack 1
         230 > . 1:1001 ack 1
         230 cwnd 1000
         // The first acknowledgement lets out what is new, not what seems lost.
         240 < . 1 ack 1001
         240 > . 4001:6001/1000 ack 1
         // The second one is for something that was not repeated: the path was slow, and nothing was lost.
         241 < . 1 ack 2001
         241 undone 1
         241 ssthresh -1
         241 > . 6001:7001 ack 1
         242 < . 1 ack 6001
         242 > . 7001:10001/1000 ack 1",
    );
}

#[test]
fn new_data_finds_out_about_a_real_loss() {
    open(
        Config {
            initial_window: 4,
            ..plain()
        },
        "20 write 10000
         20 > . 1:4001/1000 ack 1
         230 > . 1:1001 ack 1
         240 < . 1 ack 1001
         240 > . 4001:6001/1000 ack 1
         // A duplicate: the second segment is missing.
         250 < . 1 ack 1001
         250 undone 0
         250 > . 1001:2001 ack 1
         250 < . 1 ack 1001
         250 > . 2001:3001 ack 1
         260 < . 1 ack 3001
         260 > . 3001:4001 ack 1
         260 > . 6001:7001 ack 1
         270 < . 1 ack 7001
         270 > . 7001:10001/1000 ack 1",
    );
}

#[test]
fn without_new_data_a_timeout_is_taken_at_its_word() {
    open(
        plain(),
        "20 write 4000
         20 > . 1:4001/1000 ack 1
         230 > . 1:1001 ack 1
         240 < . 1 ack 1001
         240 > . 1001:3001/1000 ack 1
         250 < . 1 ack 4001
         250 undone 0",
    );
}

#[test]
fn an_undone_timeout_lets_the_window_go_on_as_it_was() {
    open_stamped(
        "20 write 20000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 10001 <ts 1030 20>
         30 cwnd 20000
         30 > . 10001:20001/1000 ack 1
         30 write 20000
         30 > . 20001:30001/1000 ack 1
         // All of it is late by 300 ms; a probe and a timeout go out meanwhile.
         50 > . 29001:30001 ack 1
         260 > . 10001:11001 ack 1
         260 cwnd 1000
         330 < . 1 ack 11001 <ts 1330 30>
         330 undone 1
         330 cwnd 21000
         330 > . 30001:31001 ack 1
         331 < . 1 ack 31001 <ts 1331 30>
         331 > . 31001:40001/1000 ack 1",
    );
}

#[test]
fn an_old_duplicate_report_undoes_nothing() {
    open_sack(
        "20 write 3000
         20 > . 1:3001/1000 ack 1
         30 < . 1 ack 3001
         // The network made a copy.
         31 < . 1 ack 3001 <sack 1:1001>
         31 undone 0
         40 write 10000
         40 > . 3001:13001/1000 ack 1
         50 < . 1 ack 3001 <sack 4001:9001>
         50 > . 3001:4001 ack 1
         // Of the time before this recovery.
         50 < . 1 ack 3001 <sack 1001:2001 4001:9001>
         50 undone 0
         60 < . 1 ack 13001",
    );
}
