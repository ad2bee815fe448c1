//! Explicit congestion notification (RFC 3168), both ways.

use super::script::{client, plain, server};
use uktls_stack::tcp::Config;

fn ecn() -> Config {
    Config {
        ecn: true,
        ..plain()
    }
}

const OPEN: &str = "0 > SEW 0 noect
         10 < SE. 0 ack 1 <mss 1000>
         10 > . 1 ack 1 noect\n";

#[test]
fn new_data_is_capable_and_everything_else_is_not() {
    client(
        ecn(),
        &format!(
            "{OPEN}
             20 write 1000
             20 > . 1:1001 ack 1 ect
             230 > . 1:1001 ack 1 noect
             240 < . 1:2001 ack 1001
             240 > . 1001 ack 2001 noect
             250 shut
             250 > F. 1001 ack 2001 noect"
        ),
    );
}

#[test]
fn without_agreement_nothing_is_capable() {
    client(
        ecn(),
        "0 > SEW 0
         10 < S. 0 ack 1 <mss 1000>
         10 > . 1 ack 1
         20 write 1000
         20 > . 1:1001 ack 1 noect
         // An echo means nothing then.
         30 < E. 1 ack 1001
         30 ssthresh -1",
    );
}

#[test]
fn an_answer_that_only_repeats_our_flags_is_no_agreement() {
    client(
        ecn(),
        "0 > SEW 0
         10 < SEW. 0 ack 1 <mss 1000>
         10 > . 1 ack 1
         20 write 1000
         20 > . 1:1001 ack 1 noect
         30 < . 1 ack 1001",
    );
}

#[test]
fn a_syn_that_is_repeated_asks_no_more() {
    client(
        ecn(),
        "0 > SEW 0
         // Someone may drop what he does not know (RFC 3168 §6.1.1.1).
         1000 > S 0
         1010 < S. 0 ack 1 <mss 1000>
         1010 > . 1 ack 1",
    );
}

#[test]
fn a_peer_that_offers_is_accepted_by_default() {
    server(
        plain(),
        "0 < SEW 0 <mss 1000>
         0 > SE. 0 ack 1
         10 < . 1 ack 1
         20 write 1000
         20 > . 1:1001 ack 1 ect
         30 < . 1 ack 1001",
    );
}

#[test]
fn unless_that_is_switched_off() {
    server(
        Config {
            ecn_passive: false,
            ..plain()
        },
        "0 < SEW 0 <mss 1000>
         0 > S. 0 ack 1
         10 < . 1 ack 1",
    );
}

#[test]
fn congestion_experienced_is_echoed_until_the_peer_has_reduced() {
    client(
        ecn(),
        &format!(
            "{OPEN}
             20 < . 1:1001 ack 1 ce
             20 > E. 1 ack 1001
             30 < . 1001:3001 ack 1
             30 > E. 1 ack 3001
             40 < W. 3001:5001 ack 1
             40 > . 1 ack 5001"
        ),
    );
}

#[test]
fn a_mark_on_the_segment_that_says_reduced_begins_anew() {
    client(
        ecn(),
        &format!(
            "{OPEN}
             20 < . 1:1001 ack 1 ce
             20 > E. 1 ack 1001
             30 < W. 1001:3001 ack 1 ce
             30 > E. 1 ack 3001
             40 < W. 3001:5001 ack 1
             40 > . 1 ack 5001"
        ),
    );
}

#[test]
fn an_echo_reduces_the_window_once_a_round_trip() {
    client(
        ecn(),
        &format!(
            "{OPEN}
             20 write 10000
             20 > . 1:10001/1000 ack 1 ect
             30 < E. 1 ack 2001
             30 ssthresh 7000
             31 < E. 1 ack 4001
             32 < E. 1 ack 6001
             32 ssthresh 7000
             33 < E. 1 ack 10001
             33 cwnd 7000
             40 write 2000
             40 > W. 10001:11001 ack 1 ect
             40 > . 11001:12001 ack 1 ect
             // Of the next round: the peer had not seen that we reduced.
             50 < E. 1 ack 12001
             50 ssthresh 4900"
        ),
    );
}

#[test]
fn nothing_is_repeated_for_an_echo() {
    client(
        ecn(),
        &format!(
            "{OPEN}
             20 write 5000
             20 > . 1:5001/1000 ack 1
             30 < E. 1 ack 1001
             40 < E. 1 ack 5001
             40 acked 5000"
        ),
    );
}

#[test]
fn a_loss_is_told_as_a_reduction_too() {
    client(
        Config {
            sack: true,
            ..ecn()
        },
        "0 > SEW 0
         10 < SE. 0 ack 1 <mss 1000,sackOK>
         10 > . 1 ack 1
         20 write 5000
         20 > . 1:5001/1000 ack 1
         30 < . 1 ack 1 <sack 1001:5001>
         30 > . 1:1001 ack 1 noect
         40 < . 1 ack 5001
         50 write 1000
         50 > W. 5001:6001 ack 1 ect
         60 < . 1 ack 6001",
    );
}

#[test]
fn a_window_probe_is_not_capable() {
    client(
        ecn(),
        &format!(
            "{OPEN}
             20 write 1000
             20 > . 1:1001 ack 1
             30 < . 1 ack 1001 win 0
             30 write 100
             240 > . 1001:1002 ack 1 noect
             250 < . 1 ack 1002 win 1000
             250 > . 1002:1101 ack 1 ect"
        ),
    );
}
