//! Closing, in every order.

use super::script::{open, plain};
use uktls_stack::tcp::{Config, KeepAlive};

#[test]
fn we_close_first() {
    open(
        plain(),
        "20 shut
         20 > F. 1 ack 1
         20 state FIN-WAIT-1
         30 < . 1 ack 2
         30 state FIN-WAIT-2
         40 < F. 1 ack 2
         40 = PEER_FIN TIME_WAIT
         40 > . 2 ack 2
         40 eof
         // Its FIN again: our acknowledgement was lost. TIME-WAIT begins anew.
         30040 < F. 1 ack 2
         30040 > . 2 ack 2
         90039 state TIME-WAIT
         90040 = CLOSED",
    );
}

#[test]
fn the_peer_closes_first() {
    open(
        plain(),
        "20 < F. 1 ack 1
         20 = PEER_FIN
         20 > . 1 ack 2
         20 state CLOSE-WAIT
         20 eof
         30 write 500
         30 > P. 1:501 ack 2
         30 shut
         30 > F. 501 ack 2
         30 state LAST-ACK
         40 < . 2 ack 502
         40 = ACKED CLOSED",
    );
}

#[test]
fn simultaneous_close() {
    open(
        plain(),
        "20 shut
         20 > F. 1 ack 1
         25 < F. 1 ack 1
         25 = PEER_FIN
         25 > . 2 ack 2
         25 state CLOSING
         30 < . 2 ack 2
         30 = TIME_WAIT",
    );
}

#[test]
fn fin_and_its_acknowledgement_in_one() {
    open(
        plain(),
        "20 shut
         20 > F. 1 ack 1
         30 < F. 1 ack 2
         30 = PEER_FIN TIME_WAIT
         30 > . 2 ack 2",
    );
}

#[test]
fn half_close_keeps_receiving() {
    open(
        plain(),
        "20 shut
         20 > F. 1 ack 1
         30 < . 1 ack 2
         40 < P. 1:2001 ack 2
         40 = READABLE
         40 > . 2 ack 2001
         50 < F. 2001 ack 2
         50 = PEER_FIN TIME_WAIT
         50 > . 2 ack 2002",
    );
}

#[test]
fn a_fin_rides_on_the_last_data_and_is_repeated_with_it() {
    open(
        plain(),
        "20 write 100
         20 > P. 1:101 ack 1
         30 < . 1 ack 101
         40 more
         40 shut
         40 > F. 101 ack 1
         250 > F. 101 ack 1
         260 < . 1 ack 102
         260 state FIN-WAIT-2",
    );
}

#[test]
fn a_fin_out_of_order_waits_for_the_data_before_it() {
    open(
        plain(),
        "20 < F. 1001:1501 ack 1
         20 > . 1 ack 1
         20 state ESTAB
         30 < . 1:1001 ack 1
         30 = READABLE PEER_FIN
         30 > . 1 ack 1502
         30 state CLOSE-WAIT",
    );
}

#[test]
fn a_reader_that_is_gone_resets() {
    open(
        plain(),
        "20 close
         20 > F. 1 ack 1
         30 < . 1 ack 2
         40 < P. 1:101 ack 2
         40 = RESET CLOSED
         40 > R. 2 ack 1",
    );
}

#[test]
fn fin_wait_2_without_a_reader_ends() {
    open(
        plain(),
        "20 close
         20 > F. 1 ack 1
         30 < . 1 ack 2
         60029 state FIN-WAIT-2
         60030 = CLOSED",
    );
}

#[test]
fn abort_resets() {
    open(
        plain(),
        "20 write 100
         20 > P. 1:101 ack 1
         25 abort
         25 > R. 101 ack 1
         25 state CLOSED",
    );
}

#[test]
fn keep_alive_probes_and_gives_up() {
    let second = std::time::Duration::from_secs(1);
    let keepalive = KeepAlive {
        idle: second * 10,
        interval: second,
        count: 2,
    };
    open(
        Config {
            keepalive: Some(keepalive),
            ..plain()
        },
        "10010 > . 0 ack 1
         10020 < . 1 ack 1
         20020 > . 0 ack 1
         21020 > . 0 ack 1
         22020 = TIMED_OUT CLOSED",
    );
}

#[test]
fn a_keep_alive_probe_is_answered() {
    open(
        plain(),
        "10000 < . 0 ack 1
         10000 > . 1 ack 1",
    );
}
