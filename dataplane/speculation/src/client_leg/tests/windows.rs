//! The client's window, rule by rule.

use std::time::Duration;

use super::bench::{Bench, CONFIG, MS, MSS, NO_SACK, again, ranges};
use crate::client_leg::{Kind, SenderState, TimeoutOutcome};

#[test]
fn nothing_leaves_beyond_the_window() {
    let mut bench = Bench::new(CONFIG);
    bench.window = 3 * MSS;
    bench.ack(0);
    bench.commit(10 * MSS);
    assert_eq!(ranges(&bench.poll()), [(0, MSS), (MSS, MSS), (2 * MSS, MSS)]);
    bench.pass(20 * MS);
    assert!(bench.ack(MSS).window_opened);
    assert_eq!(ranges(&bench.poll()), [(3 * MSS, MSS)]);
}

#[test]
fn an_older_segment_does_not_change_the_window() {
    // RFC 9293 §3.10.7.4 (WL1, WL2)
    let mut bench = Bench::new(CONFIG);
    bench.ack_with(0, |ack| (ack.seq, ack.window) = (ack.seq + 10, 2 * MSS));
    assert!(!bench.ack_with(0, |ack| ack.window = 9 * MSS).window_opened);
    bench.commit(10 * MSS);
    assert_eq!(bench.poll().len(), 2);
}

#[test]
fn a_closed_window_is_probed_with_a_byte_ever_more_rarely() {
    // RFC 9293 §3.8.6.1
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    bench.window = 0;
    bench.ack(MSS);
    bench.commit(5 * MSS);
    assert!(bench.poll().is_empty());
    let mut waits = Vec::new();
    for _ in 0..12 {
        let before = bench.now;
        assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
        let sent = bench.poll();
        assert_eq!((ranges(&sent), sent[0].kind), (vec![(MSS, 1)], Kind::Probe));
        assert!(!sent[0].ect && !sent[0].push);
        waits.push(bench.now.since(before).as_millis());
        bench.ack(MSS);
    }
    assert_eq!(waits[..4], [220, 440, 880, 1760]);
    assert_eq!(waits[9..], [60_000, 60_000, 60_000]);
    assert_eq!(bench.sender.report().state, SenderState::Persist);
    assert_eq!((bench.sender.report().probes, bench.sender.report().retransmissions), (12, 0));
}

#[test]
fn a_client_that_answers_probes_is_never_given_up() {
    // RFC 9293 §3.8.6.1: as long as it is answered, for ever.
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    bench.window = 0;
    bench.commit(MSS);
    bench.ack(MSS);
    bench.poll();
    for _ in 0..100 {
        assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
        bench.poll();
        bench.ack(MSS);
    }
    let mut silent = false;
    for _ in 0..20 {
        silent |= bench.pass_deadline() == TimeoutOutcome::Silent;
        if silent {
            break;
        }
        bench.poll();
    }
    assert!(silent, "one that does not answer is");
}

#[test]
fn when_the_window_opens_the_probes_byte_leaves_in_a_full_segment() {
    for taken in [0, 1] {
        let mut bench = Bench::measured(CONFIG, 20 * MS);
        bench.window = 0;
        bench.ack(MSS);
        bench.commit(3 * MSS);
        bench.poll();
        assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
        assert_eq!(bench.poll().len(), 1);
        bench.window = 10 * MSS;
        let progress = bench.ack(MSS + taken);
        assert!(progress.window_opened);
        let first = MSS + taken;
        let expected = [(first, MSS), (first + MSS, MSS), (first + 2 * MSS, MSS - taken)];
        assert_eq!(ranges(&bench.poll()), expected);
        bench.pass(20 * MS);
        bench.ack(4 * MSS);
        assert!(bench.sender.is_done());
    }
}

#[test]
fn a_lost_window_update_is_found_by_a_probe() {
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    bench.window = 0;
    bench.ack(MSS);
    bench.commit(MSS);
    bench.poll();
    assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
    bench.poll();
    bench.window = 5 * MSS;
    bench.ack(MSS + 1);
    assert_eq!(ranges(&bench.poll()), [(MSS + 1, MSS - 1)]);
}

#[test]
fn a_fin_probes_a_closed_window() {
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    bench.window = 0;
    bench.ack(MSS);
    bench.sender.close();
    assert!(bench.poll().is_empty());
    assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
    let sent = bench.poll();
    assert_eq!((sent[0].kind, sent[0].len, sent[0].fin), (Kind::Probe, 0, true));
    assert!(bench.ack(MSS + 1).fin_confirmed);
}

#[test]
fn a_window_that_shrinks_stops_new_data_and_bounds_retransmissions() {
    // RFC 9293 §3.8.6
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    bench.commit(10 * MSS);
    assert_eq!(bench.poll().len(), 10);
    bench.pass(20 * MS);
    bench.window = MSS / 2;
    assert!(!bench.ack(MSS).window_opened);
    bench.commit(5 * MSS);
    assert!(bench.poll().is_empty());
    let sent: Vec<_> = bench.run(Duration::from_secs(5)).into_iter().map(|sent| sent.1).collect();
    assert!(!sent.is_empty());
    assert!(ranges(&sent).iter().all(|&range| range == (MSS, MSS / 2)), "{sent:?}");
    // The half that was taken frees, the other half follows.
    bench.window = 20 * MSS;
    bench.ack(MSS + MSS / 2);
    assert_eq!(ranges(&bench.poll())[0], (MSS + MSS / 2, MSS / 2));
}

#[test]
fn a_window_that_closes_on_data_in_flight_ends_in_a_retransmission() {
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    bench.commit(3 * MSS);
    bench.poll();
    bench.pass(20 * MS);
    bench.window = 0;
    bench.ack(MSS);
    assert!(bench.poll().is_empty());
    assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
    assert_eq!(ranges(&bench.poll()), [(MSS, 1)]);
    bench.window = 10 * MSS;
    bench.ack(MSS);
    assert_eq!(again(&bench.poll()), [MSS, 2 * MSS, 3 * MSS]);
    assert_eq!(bench.sender.report().timeouts, 0);
}

#[test]
fn a_silly_window_is_left_alone_until_the_override() {
    // RFC 9293 §3.8.6.2.1
    let mut bench = Bench::measured(NO_SACK, 20 * MS);
    bench.window = 100;
    bench.ack(MSS);
    bench.commit(5 * MSS);
    assert!(bench.run(199 * MS).is_empty());
    let sent = bench.run(2 * MS);
    assert_eq!(ranges(&[sent[0].1]), [(MSS, 100)]);
}

#[test]
fn the_last_committed_bytes_are_never_delayed() {
    // The guest's TCP has decided already: no Nagle (RFC 9293 §3.8.6.2.1, §3.7.4).
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    for bytes in [1, 2500, 10] {
        bench.commit(bytes);
        let sent = bench.poll();
        assert_eq!(sent.iter().map(|segment| segment.len).sum::<u32>(), bytes);
        // PSH on the last of them (RFC 9293 §3.9.1.2), and only there.
        let pushed: Vec<_> = sent.iter().map(|segment| segment.push).collect();
        assert!(pushed[pushed.len() - 1] && pushed[..pushed.len() - 1].iter().all(|&push| !push));
    }
}

#[test]
fn a_lost_segment_that_a_shrunk_window_cuts_waits_behind_the_first() {
    // RFC 9293 §3.8.6: what is within the window is sent again, the first of it in part if need be.
    let mut bench = Bench::measured(NO_SACK, 20 * MS);
    bench.commit(3 * MSS);
    bench.poll();
    bench.pass(20 * MS);
    bench.window = MSS + MSS / 2;
    bench.ack(MSS);
    let sent: Vec<_> = bench.run(Duration::from_secs(1)).into_iter().map(|sent| sent.1).collect();
    assert!(!sent.is_empty());
    bench.ack(2 * MSS);
    assert_eq!(ranges(&bench.poll()), [(2 * MSS, MSS)]);
    assert!(ranges(&sent).iter().all(|&range| range == (MSS, MSS)), "{sent:?}");
}
