//! Keep-alive, half-close, and what TIME-WAIT answers.

use super::script::{open, plain, server};
use std::time::Duration;
use uktls_stack::tcp::{Config, KeepAlive};

fn kept_alive() -> Config {
    let second = Duration::from_secs(1);
    Config {
        keepalive: Some(KeepAlive {
            idle: second * 10,
            interval: second,
            count: 2,
        }),
        ..plain()
    }
}

#[test]
fn whatever_comes_counts_as_a_sign_of_life() {
    open(
        kept_alive(),
        "9000 < . 1:101 ack 1
         9040 > . 1 ack 101
         19000 > . 0 ack 101
         19010 < . 101 ack 1
         29010 > . 0 ack 101",
    );
}

#[test]
fn no_keep_alive_while_data_is_in_flight() {
    open(
        Config {
            rto_max: Duration::from_secs(60),
            ..kept_alive()
        },
        "9900 write 100
         9900 > . 1:101 ack 1
         10110 > . 1:101 ack 1
         10530 > . 1:101 ack 1
         10600 < . 1 ack 101
         20600 > . 100 ack 1",
    );
}

#[test]
fn a_reset_answers_a_keep_alive_of_a_peer_that_restarted() {
    open(
        kept_alive(),
        "10010 > . 0 ack 1
         10020 < R 1
         10020 = RESET CLOSED",
    );
}

#[test]
fn keep_alive_can_be_switched_off() {
    open(
        kept_alive(),
        "5000 nokeepalive
         100000 state ESTAB",
    );
}

#[test]
fn a_peers_keep_alive_with_a_byte_of_garbage_is_answered() {
    open(
        plain(),
        "20 < . 1:101 ack 1
         60 > . 1 ack 101
         10000 < . 100:101 ack 1
         10000 > . 1 ack 101",
    );
}

#[test]
fn keep_alive_goes_on_after_we_half_closed() {
    open(
        kept_alive(),
        "20 shut
         20 > F. 1 ack 1
         30 < . 1 ack 2
         10030 > . 1 ack 1
         11030 > . 1 ack 1
         12030 = TIMED_OUT CLOSED",
    );
}

#[test]
fn the_peer_half_closes_and_we_go_on_sending() {
    open(
        plain(),
        "20 < F. 1 ack 1
         20 = PEER_FIN
         20 > . 1 ack 2
         30 write 3000
         30 > . 1:3001/1000 ack 2
         40 < . 2 ack 3001
         40 = ACKED
         50 write 10
         50 > . 3001:3011 ack 2
         50 shut
         50 > F. 3011 ack 2
         60 < . 2 ack 3012
         60 = ACKED CLOSED",
    );
}

#[test]
fn loss_is_recovered_from_after_a_half_close() {
    open(
        plain(),
        "20 < F. 1 ack 1
         20 > . 1 ack 2
         30 write 5000
         30 > . 1:5001/1000 ack 2
         40 < . 2 ack 1
         40 < . 2 ack 1
         40 < . 2 ack 1
         40 > . 1:1001 ack 2
         50 < . 2 ack 5001
         50 acked 5000",
    );
}

#[test]
fn after_our_half_close_the_window_still_opens() {
    open(
        plain(),
        "20 shut
         20 > F. 1 ack 1
         30 < . 1 ack 2
         30 hold
         40 < . 1:10001 ack 2
         40 > . 2 ack 10001 win 0
         50 read 10000
         50 > . 2 ack 10001 win 10000
         60 < . 10001:11001 ack 2
         60 < F. 11001 ack 2
         60 = PEER_FIN TIME_WAIT
         60 > . 2 ack 11002",
    );
}

#[test]
fn data_behind_the_peers_fin_is_not_taken() {
    open(
        plain(),
        "20 < F. 1:101 ack 1
         20 = READABLE PEER_FIN
         20 > . 1 ack 102
         30 < . 102:202 ack 1
         30 > . 1 ack 102
         30 state CLOSE-WAIT",
    );
}

#[test]
fn our_fin_lost_with_the_data_before_it() {
    open(
        plain(),
        "20 write 500
         20 > . 1:501 ack 1
         20 shut
         20 > F. 501 ack 1
         230 > PF. 1:501 ack 1
         240 < . 1 ack 502
         240 state FIN-WAIT-2",
    );
}

#[test]
fn simultaneous_close_with_both_fins_lost_once() {
    open(
        plain(),
        "20 shut
         20 > F. 1 ack 1
         // The peer's FIN, and ours, are sent again.
         230 > F. 1 ack 1
         235 < F. 1 ack 1
         235 = PEER_FIN
         235 > . 2 ack 2
         240 < . 2 ack 2
         240 = TIME_WAIT",
    );
}

#[test]
fn the_last_fin_is_repeated_until_it_is_acknowledged() {
    open(
        plain(),
        "20 < F. 1 ack 1
         20 > . 1 ack 2
         30 shut
         30 > F. 1 ack 2
         240 > F. 1 ack 2
         660 > F. 1 ack 2
         670 < . 2 ack 2
         670 = CLOSED",
    );
}

#[test]
fn the_last_fin_is_given_up_in_the_end() {
    open(
        Config {
            retries: 1,
            ..plain()
        },
        "20 < F. 1 ack 1
         20 > . 1 ack 2
         30 shut
         30 > F. 1 ack 2
         240 > F. 1 ack 2
         660 = TIMED_OUT CLOSED",
    );
}

#[test]
fn a_reset_in_every_closing_state_ends_it() {
    for steps in [
        "20 shut
         20 > F. 1 ack 1",
        "20 shut
         20 > F. 1 ack 1
         21 < . 1 ack 2",
        "20 shut
         20 > F. 1 ack 1
         21 < F. 1 ack 1
         21 > . 2 ack 2",
        "20 < F. 1 ack 1
         20 > . 1 ack 2",
        "20 < F. 1 ack 1
         20 > . 1 ack 2
         21 shut
         21 > F. 1 ack 2",
    ] {
        let at = if steps.contains("< F") { 2 } else { 1 };
        open(plain(), &format!("{steps}\n30 < R {at}\n30 = RESET CLOSED"));
    }
}

#[test]
fn time_wait_answers_old_data_and_ignores_resets() {
    open(
        plain(),
        "20 shut
         20 > F. 1 ack 1
         30 < F. 1 ack 2
         30 > . 2 ack 2
         40 < . -99:1 ack 2
         40 > . 2 ack 2
         50 < R 2
         50 state TIME-WAIT
         60 < . 2 ack 2
         60 state TIME-WAIT
         60030 = CLOSED",
    );
}

#[test]
fn a_fin_in_syn_received_moves_straight_on() {
    server(
        plain(),
        "0 < S 0 <mss 1000>
         0 > S. 0 ack 1
         10 < F. 1 ack 1
         10 = ESTABLISHED PEER_FIN
         10 > . 1 ack 2
         10 state CLOSE-WAIT",
    );
}

#[test]
fn closing_half_open_sends_the_fin_when_it_stands() {
    server(
        plain(),
        "0 < S 0 <mss 1000>
         0 > S. 0 ack 1
         5 shut
         10 < . 1 ack 1
         10 > F. 1 ack 1
         10 state FIN-WAIT-1",
    );
}

#[test]
fn an_abort_with_unsent_data_says_where_it_stopped() {
    open(
        plain(),
        "20 write 15000
         20 > . 1:10001/1000 ack 1
         21 abort
         21 > R. 10001 ack 1",
    );
}
