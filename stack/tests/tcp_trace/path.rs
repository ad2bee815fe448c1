//! The path: ICMP errors, an MTU that shrinks, black holes.

use super::script::{client, open, open_sack, plain, server};
use std::time::Duration;
use uktls_stack::tcp::Config;

#[test]
fn a_hard_error_ends_an_attempt_to_connect() {
    client(
        plain(),
        "0 > S 0
         10 icmp hard
         10 = REFUSED CLOSED",
    );
}

#[test]
fn a_soft_error_does_not() {
    client(
        plain(),
        "0 > S 0
         10 icmp soft
         10 state SYN-SENT
         1000 > S 0
         1010 < S. 0 ack 1 <mss 1000>
         1010 > . 1 ack 1",
    );
}

#[test]
fn a_hard_error_ends_a_half_open_connection() {
    server(
        plain(),
        "0 < S 0 <mss 1000>
         0 > S. 0 ack 1
         10 icmp hard
         10 = REFUSED CLOSED",
    );
}

#[test]
fn no_error_ends_an_established_connection() {
    open(
        plain(),
        "20 icmp hard
         20 icmp soft
         20 state ESTAB
         20 write 100
         20 > . 1:101 ack 1
         20 icmp hard
         30 < . 1 ack 101
         30 acked 100",
    );
}

#[test]
fn errors_are_believed_about_what_is_in_flight_only() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         20 outstanding 1
         20 outstanding 1000
         20 forgotten 0
         20 forgotten 1001
         20 forgotten 70000
         30 < . 1 ack 1001
         30 forgotten 1",
    );
}

#[test]
fn a_syn_can_be_quoted() {
    client(
        plain(),
        "0 > S 0
         0 outstanding 0
         0 forgotten 1
         10 < S. 0 ack 1 <mss 1000>
         10 > . 1 ack 1
         10 forgotten 0",
    );
}

#[test]
fn an_mtu_that_is_no_smaller_changes_nothing() {
    open(
        plain(),
        "20 write 2000
         20 > . 1:2001/1000 ack 1
         21 mtu 1500
         21 mtu 1040
         21 mss 1000
         30 < . 1 ack 2001",
    );
}

#[test]
fn an_mtu_of_nothing_is_not_taken_seriously() {
    open(
        plain(),
        "20 mtu 10
         20 mss 64
         20 cwnd 640",
    );
}

#[test]
fn a_smaller_mtu_twice() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         30 mtu 640
         30 > . 1:601 ack 1
         30 > . 601:1001 ack 1
         40 mtu 340
         40 > . 1:301 ack 1
         40 > . 301:601 ack 1
         40 > . 601:901 ack 1
         40 > . 901:1001 ack 1
         50 < . 1 ack 1001",
    );
}

#[test]
fn what_the_peer_holds_is_not_repeated_for_a_smaller_mtu() {
    open_sack(
        "20 write 3000
         20 > . 1:3001/1000 ack 1
         30 < . 1 ack 1 <sack 2001:3001>
         30 mtu 640
         30 > . 1:601 ack 1
         30 > . 601:1201 ack 1
         30 > . 1201:1801 ack 1
         30 > . 1801:2001 ack 1
         40 < . 1 ack 3001",
    );
}

#[test]
fn a_smaller_mtu_before_anything_is_sent() {
    open(
        plain(),
        "20 mtu 640
         20 write 1200
         20 > . 1:1201/600 ack 1
         30 < . 1 ack 1201",
    );
}

#[test]
fn super_segments_are_cut_smaller_after_the_mtu_shrank() {
    open(
        Config {
            max_gso: 8000,
            ..plain()
        },
        "20 write 4000
         20 > . 1:4001 ack 1 gso 1000
         30 mtu 540
         30 > . 1:4001 ack 1 gso 500
         40 < . 1 ack 4001",
    );
}

#[test]
fn a_black_hole_is_left_with_small_segments() {
    open(
        Config {
            mss: 1460,
            max_gso: 1460,
            ..plain()
        },
        "20 write 2000
         20 > . 1:1001 ack 1
         20 > . 1001:2001 ack 1
         230 > . 1:1001 ack 1
         650 > . 1:1001 ack 1
         // The third timeout in a row: it is the size.
         1490 > . 1:537 ack 1
         1490 mss 536
         1500 < . 1 ack 537
         1500 > . 537:1073 ack 1
         1500 > . 1073:1609 ack 1
         1510 < . 1 ack 2001",
    );
}

#[test]
fn small_segments_that_time_out_are_no_black_hole() {
    open(
        plain(),
        "20 write 100
         20 > . 1:101 ack 1
         230 > . 1:101 ack 1
         650 > . 1:101 ack 1
         1490 > . 1:101 ack 1
         1490 mss 1000
         1500 < . 1 ack 101",
    );
}

/// A connection whose path carries 540 bytes, ten minutes after it was found out.
const LATER: &str = "20 mtu 540
         600020 write 9000
         600020 > . 1:1001 ack 1 gso 1000
         600020 > . 1001:5001/500 ack 1 gso 500\n";

#[test]
fn ten_minutes_later_one_larger_segment_finds_out_that_all_can_be() {
    open(
        plain(),
        &format!(
            "{LATER}
             600030 < . 1 ack 1001
             600030 mss 1000
             // The window keeps its bytes: larger segments are fewer.
             600030 cwnd 6000
             600030 > . 5001:7001/1000 ack 1
             600040 < . 1 ack 7001
             600040 > . 7001:9001/1000 ack 1
             600050 < . 1 ack 9001"
        ),
    );
}

#[test]
fn a_lost_probe_is_repeated_in_pieces_and_costs_nothing() {
    client(
        Config {
            sack: true,
            ..plain()
        },
        &format!(
            "0 > S 0
             10 < S. 0 ack 1 win 20000 <mss 1000,sackOK>
             10 > . 1 ack 1
             {LATER}
             600030 < . 1 ack 1 <sack 1001:5001>
             600030 > . 1:501 ack 1
             600030 > . 501:1001 ack 1
             600030 ssthresh -1
             600030 mss 500
             600030 > . 5001:6001 ack 1 gso 1000
             600030 > . 6001:9001/500 ack 1 gso 500
             600040 < . 1 ack 9001
             600040 mss 1000"
        ),
    );
}

#[test]
fn keep_alives_notice_a_path_that_is_gone() {
    let second = Duration::from_secs(1);
    open(
        Config {
            keepalive: Some(uktls_stack::tcp::KeepAlive {
                idle: second,
                interval: second,
                count: 3,
            }),
            ..plain()
        },
        "1010 > . 0 ack 1
         2010 > . 0 ack 1
         2010 icmp soft
         3010 > . 0 ack 1
         4010 = TIMED_OUT CLOSED",
    );
}
