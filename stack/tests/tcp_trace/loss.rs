//! Loss: timeouts, fast retransmit, SACK, the tail, and losses that were none.

use super::script::{client, open, open_sack, plain};
use uktls_stack::tcp::Config;

const FIVE: &str = "20 write 5000
         20 > . 1:1001 ack 1
         20 > . 1001:2001 ack 1
         20 > . 2001:3001 ack 1
         20 > . 3001:4001 ack 1
         20 > P. 4001:5001 ack 1\n";

#[test]
fn a_timeout_backs_off_and_gives_up() {
    open(
        Config {
            retries: 3,
            ..plain()
        },
        "20 write 100
         20 > P. 1:101 ack 1
         230 > P. 1:101 ack 1
         650 > P. 1:101 ack 1
         1490 > P. 1:101 ack 1
         3170 = TIMED_OUT CLOSED",
    );
}

#[test]
fn after_a_timeout_all_is_sent_again_from_one_segment() {
    open(
        plain(),
        &format!(
            "{FIVE}
             230 > . 1:1001 ack 1
             230 cwnd 1000
             240 < . 1 ack 1001
             240 > . 1001:2001 ack 1
             240 > . 2001:3001 ack 1
             // The rest had arrived.
             250 < . 1 ack 5001
             250 acked 5000"
        ),
    );
}

#[test]
fn three_duplicates_repeat_the_first_segment() {
    open(
        plain(),
        &format!(
            "{FIVE}
             30 < . 1 ack 1
             30 < . 1 ack 1
             30 cwnd 10000
             31 < . 1 ack 1
             31 > . 1:1001 ack 1
             40 < . 1 ack 5001
             40 cwnd 7000"
        ),
    );
}

#[test]
fn a_partial_acknowledgement_repeats_the_next_hole() {
    open(
        plain(),
        &format!(
            "{FIVE}
             30 < . 1 ack 1
             30 < . 1 ack 1
             30 < . 1 ack 1
             30 > . 1:1001 ack 1
             40 < . 1 ack 3001
             40 > . 3001:4001 ack 1
             50 < . 1 ack 5001
             50 acked 5000"
        ),
    );
}

#[test]
fn sack_repeats_exactly_the_holes() {
    open_sack(&format!(
        "{FIVE}
         30 < . 1 ack 1 <sack 1001:2001>
         30 < . 1 ack 1 <sack 3001:4001 1001:2001>
         30 < . 1 ack 1 <sack 3001:5001 1001:2001>
         30 > . 1:1001 ack 1
         30 > . 2001:3001 ack 1
         40 < . 1 ack 2001 <sack 3001:5001>
         50 < . 1 ack 5001
         50 acked 5000
         50 cwnd 7000"
    ));
}

#[test]
fn a_lost_retransmission_is_noticed_by_time() {
    open_sack(&format!(
        "{FIVE}
         30 < . 1 ack 1 <sack 2001:5001>
         30 > . 1:1001 ack 1
         30 > . 1001:2001 ack 1
         // The second retransmission arrives, the first does not.
         40 < . 1 ack 1 <sack 1001:5001>
         40 > . 1:1001 ack 1
         50 < . 1 ack 5001
         50 acked 5000"
    ));
}

#[test]
fn reordering_within_a_quarter_of_the_round_trip_is_not_loss() {
    open_sack(&format!(
        "{FIVE}
         30 < . 1 ack 1 <sack 1001:2001>
         32 < . 1 ack 2001
         33 < . 1 ack 5001
         33 cwnd 10000"
    ));
}

#[test]
fn the_reordering_timer_runs_out() {
    open_sack(
        "20 write 2000
         20 > . 1:1001 ack 1
         20 > P. 1001:2001 ack 1
         30 < . 1 ack 1 <sack 1001:2001>
         // min_rtt / 4 later.
         32.5 > . 1:1001 ack 1
         45 < . 1 ack 2001",
    );
}

#[test]
fn a_lost_tail_is_probed_before_the_timeout() {
    open_sack(&format!(
        "{FIVE}
         30 < . 1 ack 4001
         // Twice the round trip and the peer's delayed acknowledgement would come after the timeout, 210 ms after the segment was
         // sent. The probe takes its place, and the window stays.
         230 > P. 4001:5001 ack 1
         230 cwnd 10000
         240 < . 1 ack 5001
         240 acked 5000"
    ));
}

#[test]
fn a_lost_burst_at_the_end_is_found_by_the_probe() {
    open_sack(&format!(
        "{FIVE}
         30 < . 1 ack 1001
         // Two round trips later: the last segment again.
         50 > P. 4001:5001 ack 1
         60 < . 1 ack 1001 <sack 4001:5001>
         60 > . 1001:2001 ack 1
         60 > . 2001:3001 ack 1
         70 < . 1 ack 3001 <sack 4001:5001>
         70 > . 3001:4001 ack 1
         80 < . 1 ack 5001
         80 acked 5000"
    ));
}

#[test]
fn a_timeout_for_nothing_is_undone() {
    client(
        Config {
            timestamps: true,
            mss: 1012,
            max_gso: 1012,
            ..plain()
        },
        "0 > S 0
         10 < S. 0 ack 1 <mss 1012,ts 1000 0>
         10 > . 1 ack 1 <ts 10 1000>
         20 write 2000
         20 > . 1:1001 ack 1 <ts 20 1000>
         20 > P. 1001:2001 ack 1 <ts 20 1000>
         230 > . 1:1001 ack 1 <ts 230 1000>
         230 cwnd 1000
         // The originals were only late: the echo is theirs.
         235 < . 1 ack 1001 <ts 1220 20>
         235 undone 1
         236 < . 1 ack 2001 <ts 1221 20>
         236 acked 2000",
    );
}

#[test]
fn received_gaps_are_reported() {
    open_sack(
        "20 < . 1001:2001 ack 1
         20 > . 1 ack 1 <sack 1001:2001>
         21 < . 3001:4001 ack 1
         21 > . 1 ack 1 <sack 3001:4001 1001:2001>
         22 < . 1001:2001 ack 1
         22 > . 1 ack 1 <sack 1001:2001 1001:2001 3001:4001>
         23 < . 1:1001 ack 1
         23 > . 1 ack 2001 <sack 3001:4001>
         24 < . 1:1001 ack 1
         24 > . 1 ack 2001 <sack 1:1001 3001:4001>
         25 < . 2001:3001 ack 1
         25 > . 1 ack 4001 <>",
    );
}

#[test]
fn a_smaller_path_mtu_sends_smaller_segments_again() {
    open(
        plain(),
        "20 write 2000
         20 > . 1:1001 ack 1
         20 > . 1001:2001 ack 1
         30 mtu 640
         30 > . 1:601 ack 1
         30 > . 601:1201 ack 1
         30 > . 1201:1801 ack 1
         30 > . 1801:2001 ack 1
         40 < . 1 ack 2001
         40 acked 2000",
    );
}
