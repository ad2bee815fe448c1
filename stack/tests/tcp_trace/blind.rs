//! What a stranger who cannot see the connection might try (RFC 5961), and what is merely odd.

use super::script::{client, open, plain, server};

#[test]
fn a_reset_outside_the_window_is_ignored() {
    open(
        plain(),
        "20 < R 10001
         20 < R -1
         20 state ESTAB
         20 < R 10000
         20 > . 1 ack 1",
    );
}

#[test]
fn a_reset_with_an_acknowledgement_is_a_reset() {
    open(
        plain(),
        "20 < R. 1 ack 1
         20 = RESET CLOSED",
    );
}

#[test]
fn a_reset_behind_a_gap_is_challenged() {
    open(
        plain(),
        "20 < . 1001:2001 ack 1
         20 > . 1 ack 1
         // At the end of what came, not at what is expected.
         21 < R 2001
         21 > . 1 ack 1
         21 state ESTAB
         // The peer, had it sent it, would answer the challenge so.
         22 < R 1
         22 = RESET CLOSED",
    );
}

#[test]
fn a_syn_ack_in_an_established_connection_is_challenged() {
    open(
        plain(),
        "20 < S. 700 ack 1
         20 > . 1 ack 1
         20 state ESTAB",
    );
}

#[test]
fn a_blind_syn_outside_the_window_is_challenged() {
    open(
        plain(),
        "20 < S 1000000000
         20 > . 1 ack 1
         20 state ESTAB",
    );
}

#[test]
fn blind_data_with_an_acknowledgement_of_the_future_is_refused() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         21 < . 1:501 ack 1002
         21 > . 1001 ack 1
         30 < . 1 ack 1001
         30 acked 1000",
    );
}

#[test]
fn blind_data_with_an_acknowledgement_of_the_distant_past_is_refused() {
    open(
        plain(),
        "20 < . 1:501 ack -65536
         20 > . 1 ack 1
         20 state ESTAB",
    );
}

#[test]
fn data_with_an_acknowledgement_a_little_old_is_taken() {
    open(
        plain(),
        "20 write 1000
         20 > . 1:1001 ack 1
         30 < . 1 ack 1001
         40 < . 1:501 ack 1
         40 = READABLE
         80 > . 1001 ack 501",
    );
}

#[test]
fn a_blind_fin_outside_the_window_changes_nothing() {
    open(
        plain(),
        "20 < F. 50000 ack 1
         20 > . 1 ack 1
         30 < F. -50000 ack 1
         30 > . 1 ack 1
         30 state ESTAB",
    );
}

#[test]
fn all_flags_at_once_reset_nothing_that_is_not_exact() {
    open(
        plain(),
        "20 < SFPR. 500 ack 1
         20 > . 1 ack 1
         20 state ESTAB",
    );
}

#[test]
fn no_flags_at_all_mean_nothing() {
    open(
        plain(),
        "20 < P 1:101
         30 < F 1
         100 state ESTAB",
    );
}

#[test]
fn a_different_copy_of_what_waits_changes_nothing() {
    open(
        plain(),
        "20 < . 1001:2001 ack 1
         20 > . 1 ack 1
         // Overlaps on both sides.
         21 < . 501:2501 ack 1
         21 > . 1 ack 1
         22 < . 1:501 ack 1
         22 = READABLE
         22 > . 1 ack 2501",
    );
}

#[test]
fn a_segment_that_reaches_beyond_the_window_is_cut() {
    open(
        plain(),
        "20 < . 9001:11001 ack 1
         20 > . 1 ack 1
         21 < . 1:9001 ack 1
         21 > . 1 ack 10001",
    );
}

#[test]
fn a_fin_that_the_window_cuts_off_does_not_count() {
    open(
        plain(),
        "20 hold
         20 < F. 1:12001 ack 1
         20 = READABLE
         20 > . 1 ack 10001 win 0
         20 state ESTAB",
    );
}

#[test]
fn a_reset_in_syn_received_that_is_not_exact_is_challenged() {
    server(
        plain(),
        "0 < S 0 <mss 1000>
         0 > S. 0 ack 1
         10 < R 500
         10 > . 1 ack 1
         10 state SYN-RECV
         20 < . 1 ack 1
         20 = ESTABLISHED",
    );
}

#[test]
fn a_syn_received_connection_opened_by_us_is_refused_by_a_reset() {
    client(
        plain(),
        "0 > S 0
         10 < S 0 <mss 1000>
         10 > S. 0 ack 1
         20 < R 1
         20 = REFUSED CLOSED",
    );
}

#[test]
fn a_bare_fin_does_not_open_anything() {
    client(
        plain(),
        "0 > S 0
         10 < F 0
         10 state SYN-SENT
         20 < S. 0 ack 1 <mss 1000>
         20 > . 1 ack 1",
    );
}

#[test]
fn old_data_is_always_answered_however_often() {
    let mut text = String::from("20 < . 1:101 ack 1\n 60 > . 1 ack 101\n");
    // Challenges are rationed to ten a second; lost acknowledgements must not be.
    for _ in 0..20 {
        text += "70 < . 1:101 ack 1\n 70 > . 1 ack 101\n";
    }
    open(plain(), &text);
}
