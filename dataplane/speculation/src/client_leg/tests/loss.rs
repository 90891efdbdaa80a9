//! Loss detection and recovery, rule by rule.

use std::time::Duration;

use super::bench::{Bench, CONFIG, MS, MSS, NO_SACK, again, ranges};
use crate::client_leg::{Congestion, Kind, SenderConfig, SenderState};

/// Ten segments on their way, sent 20 ms ago on a path of 20 ms.
fn ten_on_their_way(config: SenderConfig) -> Bench {
    let mut bench = Bench::measured(config, 20 * MS);
    bench.commit(10 * MSS);
    assert_eq!(bench.poll().len(), 10);
    bench.pass(20 * MS);
    bench
}

/// Offsets within the ten.
const fn at(segment: u32) -> u32 {
    MSS + segment * MSS
}

#[test]
fn three_segments_sacked_behind_a_hole_start_its_retransmission() {
    // RFC 8985 §6.2: without reordering seen, DupThresh closes the reordering window.
    let mut bench = ten_on_their_way(CONFIG);
    bench.sack(at(0), &[(at(1), at(2))]);
    assert!(again(&bench.poll()).is_empty());
    bench.sack(at(0), &[(at(1), at(3))]);
    assert!(again(&bench.poll()).is_empty());
    bench.sack(at(0), &[(at(1), at(4))]);
    assert_eq!(again(&bench.poll()), [at(0)]);
    assert_eq!(bench.sender.report().state, SenderState::Recovery);
}

#[test]
fn one_segment_sacked_behind_a_hole_is_enough_after_a_quarter_of_the_rtt() {
    // RFC 8985 §6.2: min_RTT / 4.
    let mut bench = ten_on_their_way(CONFIG);
    bench.sack(at(0), &[(at(1), at(2))]);
    assert!(bench.run(4 * MS).is_empty());
    let sent = bench.run(2 * MS);
    assert_eq!(sent[0].1.seq.bytes_since(super::bench::START), at(0));
    assert_eq!(sent[0].1.kind, Kind::Retransmission);
}

#[test]
fn a_reordered_segment_is_not_sent_again() {
    // RFC 8985 §3.3.1
    let mut bench = ten_on_their_way(CONFIG);
    bench.sack(at(0), &[(at(1), at(3))]);
    bench.pass(2 * MS);
    bench.ack(at(3));
    let sent = bench.run(3 * MS);
    assert!(sent.iter().all(|(_, segment)| segment.kind == Kind::New));
    assert_eq!(bench.sender.report().retransmissions, 0);
    // Reordering was seen: DupThresh counts no more.
    bench.sack(at(3), &[(at(4), at(9))]);
    assert!(again(&bench.poll()).is_empty());
}

#[test]
fn a_dsack_makes_the_reordering_window_larger() {
    // RFC 8985 §6.2 step 4, RFC 2883 §4
    let mut bench = ten_on_their_way(CONFIG);
    bench.sack(at(0), &[(at(1), at(3))]);
    bench.ack(at(3));
    bench.sack(at(3), &[(at(1), at(2))]);
    bench.sack(at(3), &[(at(4), at(5))]);
    // Two quarters of 20 ms instead of one.
    assert!(again(&bench.run(9 * MS).into_iter().map(|sent| sent.1).collect::<Vec<_>>()).is_empty());
    assert!(!bench.run(2 * MS).is_empty());
}

#[test]
fn a_lost_retransmission_is_found_without_a_timeout_and_counts_again() {
    // RFC 8985 §3.2; RFC 5681 §4.3: it is a second sign of congestion.
    let mut bench = ten_on_their_way(CONFIG);
    bench.commit(20 * MSS);
    bench.sack(at(0), &[(at(1), at(5))]);
    assert_eq!(again(&bench.poll()), [at(0)]);
    let once = bench.sender.report().ssthresh_bytes;
    bench.pass(5 * MS);
    bench.sack(at(0), &[(at(1), at(9))]);
    let sent = bench.poll();
    assert!(sent.iter().any(|segment| segment.kind == Kind::New), "new data after it");
    let (first, len) = ranges(&sent)[0];
    bench.pass(20 * MS);
    bench.sack(at(0), &[(at(1), at(9)), (first, first + len)]);
    assert_eq!(again(&bench.run(MS).into_iter().map(|sent| sent.1).collect::<Vec<_>>())[0], at(0));
    assert!(bench.sender.report().ssthresh_bytes < once);
    assert_eq!(bench.sender.report().timeouts, 0);
}

#[test]
fn one_window_with_many_losses_is_one_sign_of_congestion() {
    // RFC 5681 §3.1, RFC 6675 §5
    let mut bench = ten_on_their_way(CONFIG);
    let before = bench.sender.report().cwnd_bytes;
    bench.sack(at(0), &[(at(1), at(4))]);
    bench.sack(at(0), &[(at(5), at(8)), (at(1), at(4))]);
    bench.sack(at(0), &[(at(9), at(10)), (at(5), at(8)), (at(1), at(4))]);
    let report = bench.sender.report();
    assert_eq!(report.cwnd_bytes, (f64::from(before) * 0.7).round() as u32);
    assert_eq!(again(&bench.poll()), [at(0), at(4), at(8)]);
    bench.pass(20 * MS);
    bench.ack(at(10));
    assert_eq!(bench.sender.report().state, SenderState::Open);
    assert_eq!(bench.sender.report().cwnd_bytes, report.cwnd_bytes);
}

#[test]
fn a_tail_that_stays_unanswered_is_probed_after_two_rtts() {
    // RFC 8985 §7.2, §7.3
    let mut bench = ten_on_their_way(CONFIG);
    assert!(bench.run(19 * MS).is_empty());
    let sent = bench.run(2 * MS);
    assert_eq!(sent.len(), 1);
    assert_eq!((again(&[sent[0].1]), sent[0].1.len), (vec![at(9)], MSS));
    // One probe only; then the RTO has to help.
    assert!(bench.run(200 * MS).is_empty());
    assert!(!bench.run(30 * MS).is_empty());
    assert_eq!(bench.sender.report().timeouts, 1);
}

#[test]
fn a_tail_probe_takes_new_data_where_there_is_some() {
    // RFC 8985 §7.3
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    // As many as the congestion window takes, and more.
    bench.commit(40 * MSS);
    let before: u32 = bench.run(10 * MS).len() as u32;
    let sent = bench.run(60 * MS);
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!((ranges(&[sent[0].1]), sent[0].1.kind), (vec![(at(before), MSS)], Kind::New));
}

#[test]
fn a_probe_that_repairs_a_loss_is_answered_by_congestion_control() {
    // RFC 8985 §7.4.2: the last segment was lost, and the probe has brought it.
    let mut bench = ten_on_their_way(CONFIG);
    bench.ack(at(9));
    let before = bench.sender.report().cwnd_bytes;
    let sent = bench.run(100 * MS);
    assert_eq!(again(&[sent[0].1]), [at(9)]);
    bench.commit(MSS);
    bench.poll();
    bench.pass(20 * MS);
    bench.ack(at(11));
    assert!(bench.sender.report().cwnd_bytes < before);
}

#[test]
fn a_probe_that_was_needless_is_not() {
    // RFC 8985 §7.4.2, case 1: a DSACK says that both came.
    let mut bench = ten_on_their_way(CONFIG);
    bench.ack(at(9));
    let before = bench.sender.report().cwnd_bytes;
    bench.run(100 * MS);
    bench.sack(at(10), &[(at(9), at(10))]);
    bench.commit(MSS);
    bench.poll();
    bench.pass(20 * MS);
    bench.ack(at(11));
    assert!(bench.sender.report().cwnd_bytes >= before);
}

#[test]
fn a_client_that_reneges_is_sent_all_of_it_again_after_a_timeout() {
    // RFC 2018 §8: the cumulative ACK stops where the SACK begins.
    let mut bench = ten_on_their_way(CONFIG);
    bench.sack(at(0), &[(at(1), at(10))]);
    assert_eq!(again(&bench.poll()), [at(0)]);
    bench.pass(20 * MS);
    assert_eq!(bench.ack(at(1)).freed_to, super::bench::START + at(1));
    assert!(bench.poll().is_empty());
    let mut repaired: Vec<u32> = Vec::new();
    for round in 0..20 {
        let sent: Vec<_> = bench.run(250 * MS).into_iter().map(|sent| sent.1).collect();
        let offsets = again(&sent);
        repaired.extend(offsets.iter().copied());
        let Some(last) = offsets.last() else { break };
        assert!(round < 19);
        bench.ack(last + MSS);
    }
    assert_eq!(repaired, (1..10).map(at).collect::<Vec<_>>());
    assert!(bench.sender.is_done());
}

#[test]
fn sacks_of_what_was_never_sent_are_ignored() {
    let mut bench = ten_on_their_way(CONFIG);
    bench.sack(at(0), &[(at(5), at(50)), (at(7), at(6)), (at(20), at(30))]);
    assert_eq!(bench.sender.report().in_flight_bytes, 10 * MSS);
}

#[test]
fn without_sack_the_third_duplicate_ack_starts_a_fast_retransmit() {
    // RFC 5681 §3.2
    for congestion in [Congestion::NewReno, Congestion::Cubic] {
        let mut bench = ten_on_their_way(SenderConfig { congestion, ..NO_SACK });
        bench.ack(at(0));
        bench.ack(at(0));
        assert!(bench.poll().is_empty());
        bench.ack(at(0));
        assert_eq!(again(&bench.poll()), [at(0)]);
        assert_eq!(bench.sender.report().state, SenderState::Recovery);
    }
}

#[test]
fn the_first_two_duplicates_let_a_new_segment_leave_each() {
    // RFC 3042
    let mut bench = Bench::measured(NO_SACK, 20 * MS);
    bench.commit(40 * MSS);
    bench.run(10 * MS);
    let next = bench.sender.next();
    bench.pass(10 * MS);
    for duplicate in 1..=2 {
        bench.ack(at(0));
        assert_eq!(bench.poll().len(), 1);
        assert_eq!(bench.sender.next(), next + duplicate * MSS);
    }
}

#[test]
fn a_segment_with_data_or_another_window_is_no_duplicate_ack() {
    // RFC 5681 §2
    let mut bench = ten_on_their_way(NO_SACK);
    for _ in 0..5 {
        bench.ack_with(at(0), |ack| ack.carries_data = true);
    }
    for window in 0..5 {
        bench.ack_with(at(0), |ack| ack.window = 50_000 + window);
    }
    assert!(bench.poll().is_empty());
}

#[test]
fn a_partial_ack_shows_the_next_hole() {
    // RFC 6582 §3.2 step 3
    let mut bench = ten_on_their_way(NO_SACK);
    for _ in 0..7 {
        bench.ack(at(0));
    }
    assert_eq!(again(&bench.poll()), [at(0)]);
    bench.pass(20 * MS);
    bench.ack(at(3));
    assert_eq!(again(&bench.poll()), [at(3)]);
    assert_eq!(bench.sender.report().state, SenderState::Recovery);
    bench.pass(20 * MS);
    bench.ack(at(10));
    assert_eq!(bench.sender.report().state, SenderState::Open);
    assert_eq!(bench.sender.report().timeouts, 0);
}

#[test]
fn duplicates_of_a_recovered_window_start_no_second_recovery() {
    // RFC 6582 §3.2 step 1
    let mut bench = ten_on_their_way(NO_SACK);
    for _ in 0..3 {
        bench.ack(at(0));
    }
    bench.poll();
    bench.pass(20 * MS);
    bench.ack(at(10));
    let window = bench.sender.report().cwnd_bytes;
    bench.commit(3 * MSS);
    bench.poll();
    for _ in 0..5 {
        bench.ack(at(10));
    }
    assert!(again(&bench.poll()).is_empty());
    assert_eq!(bench.sender.report().cwnd_bytes, window);
}

#[test]
fn on_a_path_of_100_us_a_tail_is_not_probed_before_10_ms() {
    let mut bench = Bench::measured(CONFIG, Duration::from_micros(100));
    bench.commit(5 * MSS);
    assert_eq!(bench.run(9 * MS).len(), 5);
    assert_eq!(bench.run(2 * MS).len(), 1);
}

#[test]
fn the_rtt_of_the_handshake_serves_until_there_is_another() {
    // RFC 6298 §2.2; RFC 8985 §7.2
    let mut bench = Bench::new(CONFIG);
    bench.sender.set_rtt(bench.now, 20 * MS);
    bench.commit(5 * MSS);
    assert_eq!(bench.poll().len(), 5);
    assert_eq!(bench.sender.next_deadline(), Some(bench.now + 40 * MS));
    bench.pass(40 * MS);
    bench.ack(5 * MSS);
    let measured = bench.sender.report().srtt;
    bench.sender.set_rtt(bench.now, MS);
    assert_eq!(bench.sender.report().srtt, measured);
}

#[test]
fn an_answer_too_soon_for_a_retransmission_loses_nothing_else() {
    // RFC 8985 §6.2 step 2: it is the first transmission that was late.
    let mut bench = ten_on_their_way(CONFIG);
    bench.sack(at(0), &[(at(1), at(4))]);
    assert_eq!(again(&bench.poll()), [at(0)]);
    bench.pass(MS);
    bench.ack(at(4));
    let sent: Vec<_> = bench.run(4 * MS).into_iter().map(|sent| sent.1).collect();
    assert!(again(&sent).is_empty(), "{sent:?}");
}

#[test]
fn a_dsack_with_the_ack_of_later_data_tells_of_a_needless_probe_too() {
    // RFC 8985 §7.4.2, case 1
    let mut bench = ten_on_their_way(CONFIG);
    bench.ack(at(9));
    let before = bench.sender.report().cwnd_bytes;
    bench.run(100 * MS);
    bench.commit(MSS);
    bench.poll();
    bench.pass(20 * MS);
    bench.sack(at(11), &[(at(9), at(10))]);
    assert!(bench.sender.report().cwnd_bytes >= before);
}

#[test]
fn no_second_probe_leaves_before_an_rtt_was_measured() {
    // RFC 8985 §7.3
    let mut bench = ten_on_their_way(CONFIG);
    bench.ack(at(9));
    assert_eq!(bench.run(100 * MS).len(), 1);
    bench.sack(at(10), &[(at(9), at(10))]);
    bench.commit(3 * MSS);
    assert_eq!(bench.run(100 * MS).len(), 3);
    bench.ack(at(13));
    bench.commit(3 * MSS);
    let sent: Vec<_> = bench.run(230 * MS).into_iter().map(|sent| sent.1).collect();
    assert_eq!(again(&sent), [at(15)]);
}

#[test]
fn a_mark_and_a_loss_in_one_window_are_one_sign() {
    // RFC 3168 §6.1.2
    let mut bench = ten_on_their_way(SenderConfig { ecn: true, ..CONFIG });
    bench.ack_with(at(1), |ack| ack.ece = true);
    let reduced = bench.sender.report().cwnd_bytes;
    bench.sack(at(1), &[(at(2), at(6))]);
    assert_eq!(bench.sender.report().state, SenderState::Recovery);
    assert_eq!(bench.sender.report().cwnd_bytes, reduced);
}
