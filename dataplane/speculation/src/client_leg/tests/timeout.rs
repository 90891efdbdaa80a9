//! Retransmission timeouts and the client that stays silent, rule by rule.

use std::time::Duration;

use super::bench::{Bench, CONFIG, MS, MSS, NO_SACK, again, ranges};
use crate::client_leg::{Kind, SenderState, TimeoutOutcome};

#[test]
fn the_first_segment_times_out_after_a_second_then_after_two() {
    // RFC 6298 §2.1, §5.4 to §5.6. Without SACK: no tail loss probe before it.
    let mut bench = Bench::new(NO_SACK);
    bench.commit(MSS);
    bench.poll();
    assert!(bench.run(999 * MS).is_empty());
    assert_eq!(bench.run(2 * MS).len(), 1);
    assert!(bench.run(1998 * MS).is_empty());
    assert_eq!(bench.run(2 * MS).len(), 1);
    assert_eq!(bench.sender.report().timeouts, 2);
}

#[test]
fn a_new_ack_restarts_the_timer_and_the_last_stops_it() {
    // RFC 6298 §5.2, §5.3
    let mut bench = Bench::measured(NO_SACK, 20 * MS);
    bench.commit(3 * MSS);
    bench.poll();
    bench.pass(20 * MS);
    bench.ack(2 * MSS);
    assert_eq!(bench.sender.next_deadline(), Some(bench.now + bench.sender.report().rto));
    bench.pass(20 * MS);
    bench.ack(4 * MSS);
    assert_eq!(bench.sender.next_deadline(), None);
}

#[test]
fn a_segment_sent_twice_gives_no_sample_and_keeps_the_back_off() {
    // Karn's algorithm (RFC 6298 §3, §5)
    for config in [CONFIG, NO_SACK] {
        let mut bench = Bench::measured(config, 20 * MS);
        bench.commit(MSS);
        bench.poll();
        while bench.sender.report().timeouts == 0 {
            assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
            bench.poll();
        }
        let backed_off = bench.sender.report().rto;
        bench.pass(MS);
        bench.ack(2 * MSS);
        assert_eq!(bench.sender.report().srtt, Some(20 * MS));
        assert_eq!(bench.sender.report().rto, backed_off);
        bench.commit(MSS);
        bench.poll();
        bench.pass(20 * MS);
        bench.ack(3 * MSS);
        assert!(bench.sender.report().rto < backed_off);
    }
}

#[test]
fn a_cumulative_ack_of_a_repaired_hole_gives_no_sample() {
    // The segments behind the hole came long before: their age is no RTT.
    let mut bench = Bench::measured(NO_SACK, 20 * MS);
    bench.commit(5 * MSS);
    bench.poll();
    bench.pass(20 * MS);
    for _ in 0..3 {
        bench.ack(MSS);
    }
    bench.poll();
    bench.pass(100 * MS);
    bench.ack(6 * MSS);
    assert_eq!(bench.sender.report().srtt, Some(20 * MS));
}

#[test]
fn a_timeout_sends_the_first_segment_and_leaves_a_window_of_one() {
    // RFC 5681 §3.1, RFC 8985 §6.3
    for config in [CONFIG, NO_SACK] {
        let mut bench = Bench::measured(config, 20 * MS);
        bench.commit(10 * MSS);
        bench.poll();
        while bench.sender.report().timeouts == 0 {
            assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
            if bench.sender.report().timeouts == 0 {
                bench.poll();
            }
        }
        assert_eq!(again(&bench.poll()), [MSS]);
        let report = bench.sender.report();
        assert_eq!((report.cwnd_bytes, report.state), (MSS, SenderState::Timeout));
        // Slow start from there.
        bench.pass(20 * MS);
        bench.ack(2 * MSS);
        assert_eq!(ranges(&bench.poll()), [(2 * MSS, MSS), (3 * MSS, MSS)]);
        bench.pass(20 * MS);
        bench.ack(11 * MSS);
        assert_eq!(bench.sender.report().state, SenderState::Open);
        assert!(bench.sender.is_done());
    }
}

#[test]
fn the_threshold_is_held_when_the_same_segment_times_out_again() {
    // RFC 5681 §3.1
    let mut bench = Bench::measured(NO_SACK, 20 * MS);
    bench.commit(10 * MSS);
    bench.poll();
    assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
    bench.poll();
    let threshold = bench.sender.report().ssthresh_bytes;
    assert_eq!(threshold, 5 * MSS);
    assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
    assert_eq!(again(&bench.poll()), [MSS]);
    assert_eq!(bench.sender.report().ssthresh_bytes, threshold);
}

#[test]
fn a_client_silent_for_100_s_of_retransmissions_is_given_up() {
    // RFC 9293 §3.8.3
    for config in [CONFIG, NO_SACK] {
        let mut bench = Bench::measured(config, 20 * MS);
        bench.commit(3 * MSS);
        bench.poll();
        let start = bench.now;
        let outcome = loop {
            match bench.pass_deadline() {
                TimeoutOutcome::Silent => break TimeoutOutcome::Silent,
                TimeoutOutcome::Nothing => panic!("a deadline for nothing"),
                TimeoutOutcome::Poll => {
                    assert!(bench.poll().iter().all(|sent| sent.kind == Kind::Retransmission))
                }
            }
        };
        assert_eq!(outcome, TimeoutOutcome::Silent);
        let silent = bench.now.since(start);
        assert!(silent >= Duration::from_secs(100) && silent < Duration::from_secs(101), "{silent:?}");
        assert_eq!(bench.sender.report().state, SenderState::Silent);
        assert_eq!(bench.sender.next_deadline(), None);
        assert!(bench.poll().is_empty());
        bench.sender.clear(&mut bench.log);
        assert_eq!(bench.log.used(), 0);
    }
}

#[test]
fn progress_begins_r2_anew() {
    // RFC 9293 §3.8.3
    let mut bench = Bench::measured(NO_SACK, 20 * MS);
    bench.commit(50 * MSS);
    for segment in 1..10 {
        bench.run(Duration::from_secs(60));
        assert_eq!(bench.sender.report().state, SenderState::Timeout);
        bench.ack((segment + 1) * MSS);
    }
}

#[test]
fn duplicates_are_no_answer_to_a_retransmission() {
    // RFC 9293 §3.8.3: the same segment, not confirmed, though the client is alive.
    let mut bench = Bench::measured(NO_SACK, 20 * MS);
    bench.commit(MSS);
    bench.poll();
    let mut silent = false;
    for _ in 0..20 {
        if bench.pass_deadline() == TimeoutOutcome::Silent {
            silent = true;
            break;
        }
        bench.poll();
        bench.ack(MSS);
    }
    assert!(silent);
}
