//! What SYNs offer, and what comes of it.

use super::script::{client, plain, server, server_v6, stamped};
use uktls_stack::tcp::Config;

/// Everything on, as [`Config::default`] has it.
fn full() -> Config {
    Config {
        recv_buffer: 1 << 20,
        quick_acks: 0,
        ..Config::default()
    }
}

#[test]
fn the_smaller_segment_size_counts() {
    server(
        plain(),
        "0 < S 0 <mss 5000>
         0 > S. 0 ack 1 <mss 1000>
         10 < . 1 ack 1
         10 write 2000
         10 > . 1:2001/1000 ack 1
         20 < . 1 ack 2001",
    );
}

#[test]
fn a_segment_size_of_nothing_is_not_taken_seriously() {
    server(
        plain(),
        "0 < S 0 <mss 0>
         0 > S. 0 ack 1
         10 < . 1 ack 1
         10 mss 64",
    );
}

#[test]
fn without_the_option_ipv6_carries_1220() {
    server_v6(
        Config {
            mss: 1440,
            ..plain()
        },
        "0 < S 0
         0 > S. 0 ack 1 <mss 1440>
         10 < . 1 ack 1
         10 mss 1220",
    );
}

#[test]
fn timestamps_take_their_room_from_the_segment() {
    server(
        stamped(),
        "0 < S 0 <mss 1012,sackOK,ts 5 0>
         0 > S. 0 ack 1 <mss 1012,sackOK,ts 0 5>
         10 < . 1 ack 1 <ts 15 0>
         10 mss 1000
         10 write 1500
         10 > . 1:1001 ack 1 <ts 10 15>
         10 > . 1001:1501 ack 1 <ts 10 15>
         20 < . 1 ack 1501 <ts 25 10>",
    );
}

#[test]
fn timestamps_that_were_not_offered_are_not_accepted() {
    server(
        plain(),
        "0 < S 0 <mss 1000,ts 5 0>
         0 > S. 0 ack 1 <mss 1000>
         10 < . 1 ack 1 <ts 15 0>
         10 write 100
         10 > . 1:101 ack 1 <>
         20 < . 1 ack 101",
    );
}

#[test]
fn a_window_scale_beyond_14_is_14() {
    server(
        full(),
        "0 < S 0 win 1000 <mss 1460,wscale 200>
         0 > S. 0 ack 1
         10 < . 1 ack 1 win 1
         10 rwnd 16384",
    );
}

#[test]
fn a_window_scale_of_zero_is_one_all_the_same() {
    server(
        full(),
        "0 < S 0 win 1000 <mss 1460,wscale 0>
         0 > S. 0 ack 1 win 65535 <mss 1460,wscale 5>
         10 < . 1 ack 1 win 1000
         10 rwnd 1000
         // Ours is scaled: a quarter of a MiB.
         10 < . 1:2 ack 1 win 1000
         10 > . 1 ack 2 win 8192",
    );
}

#[test]
fn scaling_needs_both_sides() {
    client(
        full(),
        "0 > S 0
         10 < S. 0 ack 1 win 5000 <mss 1460>
         10 > . 1 ack 1 win 65535 <>
         20 < . 1 ack 1 win 6000
         20 rwnd 6000",
    );
}

#[test]
fn a_syns_window_is_never_scaled() {
    client(
        full(),
        "0 > S 0
         10 < S. 0 ack 1 win 5000 <mss 1460,wscale 7>
         10 rwnd 5000
         10 > . 1 ack 1
         20 < . 1 ack 1 win 50
         20 rwnd 6400",
    );
}

#[test]
fn sack_is_not_spoken_unless_permitted() {
    server(
        Config {
            sack: true,
            ..plain()
        },
        "0 < S 0 <mss 1000>
         0 > S. 0 ack 1 <mss 1000>
         10 < . 1 ack 1
         20 < . 1001:2001 ack 1
         20 > . 1 ack 1 <>",
    );
}

#[test]
fn blocks_from_a_peer_that_has_no_sack_mean_nothing() {
    client(
        plain(),
        "0 > S 0
         10 < S. 0 ack 1 <mss 1000>
         10 > . 1 ack 1
         20 write 5000
         20 > . 1:5001/1000 ack 1
         30 < . 1 ack 1 <sack 1001:5001>
         30 inflight 4000",
    );
}

#[test]
fn three_blocks_fit_beside_timestamps() {
    server(
        stamped(),
        "0 < S 0 <mss 1012,sackOK,ts 5 0>
         0 > S. 0 ack 1
         10 < . 1 ack 1 <ts 15 0>
         20 < . 1001:1002 ack 1 <ts 25 0>
         20 > . 1 ack 1 <ts 20 15,sack 1001:1002>
         21 < . 2001:2002 ack 1 <ts 26 0>
         21 > . 1 ack 1 <ts 21 15,sack 2001:2002 1001:1002>
         22 < . 3001:3002 ack 1 <ts 27 0>
         22 > . 1 ack 1 <ts 22 15,sack 3001:3002 2001:2002 1001:1002>
         23 < . 4001:4002 ack 1 <ts 28 0>
         23 > . 1 ack 1 <ts 23 15,sack 4001:4002 3001:3002 2001:2002>",
    );
}

#[test]
fn a_repeated_syn_ack_offers_the_same() {
    server(
        full(),
        "0 < S 0 <mss 1460,wscale 2,sackOK,ts 9 0>
         0 > S. 0 ack 1 win 65535 <mss 1460,wscale 5,sackOK,ts 0 9>
         1000 > S. 0 ack 1 win 65535 <mss 1460,wscale 5,sackOK,ts 1000 9>
         3000 > S. 0 ack 1 win 65535 <mss 1460,wscale 5,sackOK,ts 3000 9>
         3010 < . 1 ack 1 <ts 3019 3000>
         3010 = ESTABLISHED",
    );
}

#[test]
fn data_on_a_syn_is_not_taken_yet() {
    server(
        plain(),
        "0 < S 0:100 <mss 1000>
         0 > S. 0 ack 1
         10 < . 1:101 ack 1
         10 = ESTABLISHED READABLE
         50 > . 1 ack 101",
    );
}

#[test]
fn data_on_the_handshakes_last_segment_is_taken() {
    server(
        plain(),
        "0 < S 0 <mss 1000>
         0 > S. 0 ack 1
         10 < P. 1:501 ack 1
         10 = ESTABLISHED READABLE
         10 write 100
         10 > . 1:101 ack 501
         20 < . 501 ack 101",
    );
}

#[test]
fn the_lost_last_segment_of_the_handshake_is_made_up_for_by_data() {
    server(
        plain(),
        "0 < S 0 <mss 1000>
         0 > S. 0 ack 1
         // Its acknowledgement was lost; the peer talks already, and even ends.
         20 < . 1:101 ack 1
         20 = ESTABLISHED READABLE
         21 < F. 101 ack 1
         21 = PEER_FIN
         21 > . 1 ack 102",
    );
}

#[test]
fn what_is_written_before_the_handshake_is_done_waits_for_it() {
    client(
        plain(),
        "0 > S 0
         1 write 500
         1 room 0
         10 < S. 0 ack 1 <mss 1000>
         10 = ESTABLISHED
         10 > P. 1:501 ack 1
         20 < . 1 ack 501",
    );
}

#[test]
fn a_close_before_the_handshake_is_done_waits_for_it_too() {
    client(
        plain(),
        "0 > S 0
         1 write 500
         1 shut
         10 < S. 0 ack 1 <mss 1000>
         10 > PF. 1:501 ack 1
         20 < . 1 ack 502
         20 state FIN-WAIT-2",
    );
}

#[test]
fn giving_up_before_the_handshake_is_done_sends_nothing() {
    client(
        plain(),
        "0 > S 0
         1 abort
         1 state CLOSED",
    );
}

#[test]
fn giving_up_half_open_resets() {
    server(
        plain(),
        "0 < S 0 <mss 1000>
         0 > S. 0 ack 1
         1 abort
         1 > R. 1 ack 1",
    );
}

#[test]
fn a_half_open_connection_is_given_up() {
    server(
        Config {
            syn_retries: 1,
            ..plain()
        },
        "0 < S 0 <mss 1000>
         0 > S. 0 ack 1
         1000 > S. 0 ack 1
         3000 = TIMED_OUT CLOSED",
    );
}

#[test]
fn simultaneous_open_with_the_first_syn_lost() {
    client(
        plain(),
        "0 > S 0
         10 < S 0 <mss 1000>
         10 > S. 0 ack 1
         1000 > S. 0 ack 1
         1010 < . 1 ack 1
         1010 = ESTABLISHED",
    );
}

#[test]
fn a_syn_ack_again_is_acknowledged_again() {
    client(
        plain(),
        "0 > S 0
         10 < S. 0 ack 1 <mss 1000>
         10 > . 1 ack 1
         // Our acknowledgement was lost.
         1010 < S. 0 ack 1 <mss 1000>
         1010 > . 1 ack 1",
    );
}
