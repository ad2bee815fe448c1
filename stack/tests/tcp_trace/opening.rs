//! Opening: active, passive, simultaneous; options; SYNs lost and refused.

use super::script::{client, plain, server};
use uktls_stack::tcp::Config;

#[test]
fn active_open() {
    client(
        plain(),
        "0 > S 0 win 10000 <mss 1000>
         0 room 0
         30 < S. 0 ack 1 win 5000 <mss 700>
         30 > . 1 ack 1 win 10000
         30 = ESTABLISHED
         30 state ESTAB
         30 room 5000",
    );
}

#[test]
fn active_open_with_every_option() {
    client(
        Config {
            recv_buffer: 1 << 20,
            ..Config::default()
        },
        "0 > S 0 win 65535 <mss 1460,wscale 5,sackOK,ts 0 0>
         30 < S. 0 ack 1 win 1000 <mss 1460,wscale 3,sackOK,ts 700 0>
         // The window begins at a quarter of what the shift allows for.
         30 > . 1 ack 1 win 8192 <ts 30 700>
         40 < . 1 ack 1 win 1000 <ts 710 30>
         40 room 8000",
    );
}

#[test]
fn options_the_peer_does_not_offer_are_not_used() {
    server(
        Config {
            recv_buffer: 1 << 20,
            ..Config::default()
        },
        "0 < S 0 win 1000
         0 > S. 0 ack 1 win 65535 <mss 1460>
         10 < . 1 ack 1 win 1000
         10 = ESTABLISHED
         10 room 1000
         10 write 600
         // No MSS option means 536.
         10 > . 1:537 ack 1 win 65535 <>
         10 > P. 537:601 ack 1
         20 < . 1 ack 601 win 1000
         20 = ACKED",
    );
}

#[test]
fn passive_open_with_every_option() {
    server(
        Config {
            recv_buffer: 1 << 20,
            ..Config::default()
        },
        "0 < S 0 win 1000 <mss 1400,wscale 2,sackOK,ts 9 0>
         0 > S. 0 ack 1 win 65535 <mss 1460,wscale 5,sackOK,ts 0 9>
         10 < . 1 ack 1 win 1000 <ts 19 0>
         10 = ESTABLISHED
         10 room 4000",
    );
}

#[test]
fn a_lost_syn_is_repeated_with_back_off_and_then_given_up() {
    client(
        Config {
            syn_retries: 2,
            ..plain()
        },
        "0 > S 0
         1000 > S 0
         3000 > S 0
         7000 = TIMED_OUT CLOSED
         7000 state CLOSED",
    );
}

#[test]
fn a_lost_syn_ack_is_repeated_by_timer_and_by_request() {
    server(
        plain(),
        "0 < S 0 <mss 1000>
         0 > S. 0 ack 1
         500 < S 0 <mss 1000>
         500 > S. 0 ack 1
         1000 > S. 0 ack 1
         1010 < . 1 ack 1
         1010 = ESTABLISHED",
    );
}

#[test]
fn a_reset_refuses() {
    client(
        plain(),
        "0 > S 0
         10 < R. 0 ack 1
         10 = REFUSED CLOSED",
    );
}

#[test]
fn a_reset_that_does_not_acknowledge_the_syn_is_ignored() {
    client(
        plain(),
        "0 > S 0
         10 < R. 0 ack 7
         20 < R 0
         20 state SYN-SENT
         30 < S. 0 ack 1 <mss 1000>
         30 > . 1 ack 1",
    );
}

#[test]
fn an_acknowledgement_of_something_else_is_reset() {
    client(
        plain(),
        "0 > S 0
         10 < . 50 ack 300
         10 > R 300
         10 state SYN-SENT
         20 < S. 0 ack 0
         20 > R 0
         20 state SYN-SENT",
    );
}

#[test]
fn simultaneous_open() {
    client(
        plain(),
        "0 > S 0
         10 < S 0 <mss 1000>
         10 > S. 0 ack 1
         10 state SYN-RECV
         20 < S. 0 ack 1
         20 = ESTABLISHED
         20 state ESTAB",
    );
}

#[test]
fn a_wrong_acknowledgement_in_syn_received_is_reset() {
    server(
        plain(),
        "0 < S 0 <mss 1000>
         0 > S. 0 ack 1
         10 < . 1 ack 500
         10 > R 500
         10 state SYN-RECV
         20 < R 1
         20 = RESET CLOSED",
    );
}

#[test]
fn ecn_is_agreed_on() {
    client(
        Config {
            ecn: true,
            ..plain()
        },
        "0 > SEW 0
         10 < SE. 0 ack 1 <mss 1000>
         10 > . 1 ack 1
         20 write 1000
         20 > . 1:1001 ack 1
         // The peer saw congestion: once told, the window is reduced and we say so.
         30 < E. 1 ack 1001
         30 write 1000
         30 > W. 1001:2001 ack 1",
    );
}
