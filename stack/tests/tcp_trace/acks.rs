//! When what arrived is acknowledged, and how much is sent at a time.

use super::script::{client, open, open_sack, plain};
use std::time::Duration;
use uktls_stack::tcp::{Config, CongestionKind};

fn quick() -> Config {
    Config {
        quick_acks: 3,
        ..plain()
    }
}

#[test]
fn at_first_every_segment_is_acknowledged_at_once() {
    open(
        quick(),
        "20 < . 1:1001 ack 1
         20 > . 1 ack 1001
         21 < . 1001:2001 ack 1
         21 > . 1 ack 2001
         22 < . 2001:3001 ack 1
         22 > . 1 ack 3001
         23 < . 3001:4001 ack 1
         63 > . 1 ack 4001",
    );
}

#[test]
fn after_a_gap_every_segment_is_acknowledged_at_once_for_a_while() {
    open(
        quick(),
        "20 < . 1:101 ack 1
         20 > . 1 ack 101
         21 < . 101:201 ack 1
         21 > . 1 ack 201
         22 < . 201:301 ack 1
         22 > . 1 ack 301
         23 < . 301:401 ack 1
         63 > . 1 ack 401
         70 < . 501:601 ack 1
         70 > . 1 ack 401
         71 < . 401:501 ack 1
         71 > . 1 ack 601
         72 < . 601:701 ack 1
         72 > . 1 ack 701
         73 < . 701:801 ack 1
         73 > . 1 ack 801",
    );
}

#[test]
fn in_a_conversation_answers_carry_the_acknowledgement() {
    open(
        quick(),
        "20 < . 1:101 ack 1
         20 > . 1 ack 101
         21 write 100
         21 > . 1:101 ack 101
         // From here on a request waits for its answer.
         40 < . 101:201 ack 101
         60 write 100
         60 > . 101:201 ack 201
         70 < . 201 ack 201
         // After a pause too.
         5000 < . 201:301 ack 201
         5020 write 100
         5020 > . 201:301 ack 301
         5030 < . 301 ack 301",
    );
}

#[test]
fn a_delay_is_bounded() {
    open(
        Config {
            delayed_ack: Duration::from_millis(10),
            ..plain()
        },
        "20 < . 1:101 ack 1
         30 > . 1 ack 101
         35 < . 101:201 ack 1
         40 < . 201:301 ack 1
         // From the first that waits.
         45 > . 1 ack 301",
    );
}

#[test]
fn a_duplicate_is_acknowledged_at_once_and_reported() {
    open_sack(
        "20 < . 1:1001 ack 1
         60 > . 1 ack 1001
         70 < . 1:1001 ack 1
         70 > . 1 ack 1001 <sack 1:1001>
         // Once.
         80 < . 1001:2001 ack 1
         81 < . 2001:3001 ack 1
         81 > . 1 ack 3001 <>",
    );
}

#[test]
fn a_duplicate_in_part_is_reported_in_part() {
    open_sack(
        "20 < . 1:1001 ack 1
         60 > . 1 ack 1001
         70 < . 501:1501 ack 1
         110 > . 1 ack 1501 <sack 501:1001>",
    );
}

#[test]
fn a_duplicate_behind_a_gap_is_reported_with_the_block_that_holds_it() {
    open_sack(
        "20 < . 1001:3001 ack 1
         20 > . 1 ack 1 <sack 1001:3001>
         21 < . 1501:2001 ack 1
         21 > . 1 ack 1 <sack 1501:2001 1001:3001>",
    );
}

#[test]
fn blocks_are_reported_latest_first_and_merge() {
    open_sack(
        "20 < . 1001:1501 ack 1
         20 > . 1 ack 1 <sack 1001:1501>
         21 < . 2001:2501 ack 1
         21 > . 1 ack 1 <sack 2001:2501 1001:1501>
         22 < . 1501:2001 ack 1
         22 > . 1 ack 1 <sack 1001:2501>
         23 < . 3001:3501 ack 1
         23 > . 1 ack 1 <sack 3001:3501 1001:2501>
         24 < . 1:1001 ack 1
         24 > . 1 ack 2501 <sack 3001:3501>",
    );
}

#[test]
fn an_acknowledgement_with_blocks_goes_beside_full_segments() {
    open_sack(
        "20 < . 1001:2001 ack 1
         20 > . 1 ack 1 <sack 1001:2001>
         21 write 1000
         21 > . 1:1001 ack 1 <>
         22 < . 3001:4001 ack 1001
         22 > . 1001 ack 1 <sack 3001:4001 1001:2001>",
    );
}

#[test]
fn reno_grows_by_a_segment_a_window() {
    open(
        Config {
            congestion: CongestionKind::Reno,
            ..plain()
        },
        "20 write 30000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 1
         30 > . 10001:11001 ack 1
         30 < . 1 ack 1
         30 > . 11001:12001 ack 1
         30 < . 1 ack 1
         30 > . 1:1001 ack 1
         40 < . 1 ack 12001
         40 cwnd 5000
         40 > . 12001:17001/1000 ack 1
         50 < . 1 ack 17001
         50 cwnd 6000
         50 > . 17001:23001/1000 ack 1
         60 < . 1 ack 23001
         60 cwnd 7000
         60 > . 23001:30001/1000 ack 1",
    );
}

#[test]
fn a_window_that_is_not_used_does_not_grow() {
    open(
        plain(),
        "20 write 2000
         20 > . 1:2001/1000 ack 1
         30 < . 1 ack 2001
         30 cwnd 10000
         40 write 2000
         40 > . 2001:4001/1000 ack 1
         50 < . 1 ack 4001
         50 cwnd 10000",
    );
}

#[test]
fn idle_halves_the_window_by_the_timeout_and_remembers_three_quarters() {
    open(
        plain(),
        "20 write 10000
         20 > . 1:10001/1000 ack 1
         30 < . 1 ack 10001
         30 write 20000
         30 > . 10001:30001/1000 ack 1
         40 < . 1 ack 30001
         40 cwnd 40000
         // One timeout of 210 ms later, and a bit.
         300 write 1000
         300 > . 30001:31001 ack 1
         300 cwnd 20000
         310 < . 1 ack 31001",
    );
}

#[test]
fn bursts_are_paced_on_long_paths() {
    client(
        Config {
            pacing: true,
            ..plain()
        },
        "0 > S 0
         100 < S. 0 ack 1 win 60000 <mss 1000>
         100 > . 1 ack 1
         // The first window goes at once.
         110 write 40000
         110 > . 1:10001/1000 ack 1
         // Then twice the window a round trip: two segments, the least burst, every 5 ms.
         210 < . 1 ack 10001 win 60000
         210 cwnd 20000
         210 > . 10001:11001 ack 1
         211.5 > . 11001:12001 ack 1
         214 > . 12001:13001 ack 1
         216.5 > . 13001:14001 ack 1",
    );
}

#[test]
fn short_paths_are_not_paced() {
    client(
        Config {
            pacing: true,
            ..plain()
        },
        "0 > S 0
         0.5 < S. 0 ack 1 win 60000 <mss 1000>
         0.5 > . 1 ack 1
         1 write 30000
         1 > . 1:10001/1000 ack 1
         1.5 < . 1 ack 10001 win 60000
         1.5 > . 10001:30001/1000 ack 1",
    );
}

#[test]
fn nodelay_sends_what_nagle_held() {
    open(
        Config {
            nodelay: false,
            ..plain()
        },
        "20 write 100
         20 > . 1:101 ack 1
         21 write 100
         25 nodelay
         25 > . 101:201 ack 1
         30 < . 1 ack 201",
    );
}

#[test]
fn nagle_lets_a_fin_take_the_rest_along() {
    open(
        Config {
            nodelay: false,
            ..plain()
        },
        "20 write 100
         20 > . 1:101 ack 1
         21 write 100
         22 shut
         22 > PF. 101:201 ack 1
         30 < . 1 ack 202",
    );
}

#[test]
fn after_a_pause_without_a_conversation_acknowledgements_are_quick_again() {
    open(
        quick(),
        "20 < . 1:101 ack 1
         20 > . 1 ack 101
         21 < . 101:201 ack 1
         21 > . 1 ack 201
         22 < . 201:301 ack 1
         22 > . 1 ack 301
         23 < . 301:401 ack 1
         63 > . 1 ack 401
         5000 < . 401:501 ack 1
         5000 > . 1 ack 501",
    );
}
