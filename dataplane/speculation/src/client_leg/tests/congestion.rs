//! Congestion windows, marks, the MSS and pacing, rule by rule.

use std::time::Duration;

use super::bench::{Bench, CONFIG, MS, MSS, NO_SACK, START, again, ranges};
use crate::client_leg::congestion::initial_window;
use crate::client_leg::{Kind, SenderConfig, SentLog, Transmit};
use crate::client_leg::{Sender, SenderState};

const ECN: SenderConfig = SenderConfig { ecn: true, ..CONFIG };

#[test]
fn the_initial_window_leaves_at_once_and_no_more() {
    // RFC 6928 §2
    let mut bench = Bench::new(CONFIG);
    bench.commit(100 * MSS);
    assert_eq!(bench.poll().len(), 10);
}

#[test]
fn slow_start_doubles_the_window_a_round() {
    // RFC 5681 §3.1
    let mut bench = Bench::new(CONFIG);
    bench.commit(200 * MSS);
    let mut sent = bench.poll().len() as u32;
    for round in 0..3 {
        bench.pass(20 * MS);
        bench.ack(sent * MSS);
        let more = bench.run(19 * MS).len() as u32;
        assert!(more >= 19 << round, "{more}");
        sent += more;
    }
    assert_eq!(bench.sender.report().cwnd_bytes, 80 * MSS);
}

#[test]
fn a_window_that_is_not_used_does_not_grow() {
    // RFC 9438 §5.8, RFC 7661 §4
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    let window = bench.sender.report().cwnd_bytes;
    for i in 1..100 {
        bench.commit(MSS);
        bench.poll();
        bench.pass(20 * MS);
        bench.ack((i + 1) * MSS);
    }
    assert_eq!(bench.sender.report().cwnd_bytes, window);
}

#[test]
fn after_an_idle_rto_the_initial_window_is_where_it_starts() {
    // RFC 5681 §4.1
    for config in [CONFIG, NO_SACK] {
        let mut bench = Bench::measured(config, 20 * MS);
        let mut offset = MSS;
        for _ in 0..4 {
            bench.commit(200 * MSS);
            offset += bench.run(19 * MS).len() as u32 * MSS;
            bench.pass(MS);
            bench.ack(offset);
        }
        while offset < bench.sender.end().bytes_since(START) {
            offset += bench.run(19 * MS).len() as u32 * MSS;
            bench.ack(offset);
        }
        let large = bench.sender.report().cwnd_bytes;
        assert!(large > 50 * MSS);
        // An epoch is not idle …
        bench.pass(200 * MS);
        bench.commit(MSS);
        bench.poll();
        bench.pass(20 * MS);
        bench.ack(offset + MSS);
        assert_eq!(bench.sender.report().cwnd_bytes, large);
        // … more than an RTO is.
        bench.pass(300 * MS);
        bench.commit(MSS);
        bench.poll();
        assert_eq!(bench.sender.report().cwnd_bytes, initial_window(MSS));
        assert!(bench.sender.report().ssthresh_bytes >= large / 4 * 3);
    }
}

#[test]
fn a_commit_on_a_known_path_is_spread_over_the_rtt() {
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    let mut offset = MSS;
    bench.commit(2000 * MSS);
    for _ in 0..6 {
        offset += bench.run(19 * MS).len() as u32 * MSS;
        bench.pass(MS);
        bench.ack(offset);
    }
    let window = bench.sender.report().cwnd_bytes / MSS;
    assert!(window > 100);
    let sent = bench.run(19 * MS);
    let at_once = sent.iter().filter(|(at, _)| *at == sent[0].0).count() as u32;
    // A millisecond's worth of twice the window an RTT, or ten segments.
    assert!(at_once <= (2 * window / 20).max(10) + 1, "{at_once} of a window of {window}");
    assert!(sent.len() as u32 >= window - at_once, "{} of {window}", sent.len());
}

#[test]
fn on_a_path_of_100_us_the_window_alone_bounds_a_burst() {
    let mut bench = Bench::measured(CONFIG, Duration::from_micros(100));
    bench.commit(100 * MSS);
    let window = bench.sender.report().cwnd_bytes / MSS;
    assert_eq!(bench.poll().len() as u32, window);
}

#[test]
fn an_echoed_mark_reduces_the_window_once_a_window_and_is_answered_by_cwr() {
    // RFC 3168 §6.1.2
    let mut bench = Bench::measured(ECN, 20 * MS);
    let before = bench.sender.report().cwnd_bytes;
    bench.commit(10 * MSS);
    let sent = bench.poll();
    assert!(sent.iter().all(|segment| segment.ect && !segment.cwr));
    bench.pass(20 * MS);
    for i in 0..5 {
        bench.ack_with((2 + i) * MSS, |ack| ack.ece = true);
    }
    let reduced = bench.sender.report().cwnd_bytes;
    assert_eq!(reduced, (f64::from(before) * 0.7).round() as u32);
    assert_eq!(bench.sender.report().state, SenderState::Open);
    bench.commit(2 * MSS);
    let sent = bench.poll();
    assert_eq!(sent.iter().map(|segment| segment.cwr).collect::<Vec<_>>(), [true, false]);
    // Still of the same window …
    bench.pass(20 * MS);
    bench.ack_with(11 * MSS, |ack| ack.ece = true);
    assert!(bench.sender.report().cwnd_bytes >= reduced);
    // … and of the next.
    bench.ack_with(13 * MSS, |ack| ack.ece = true);
    assert!(bench.sender.report().cwnd_bytes < reduced);
}

#[test]
fn without_ecn_an_echo_means_nothing() {
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    bench.commit(10 * MSS);
    assert!(bench.poll().iter().all(|segment| !segment.ect));
    let before = bench.sender.report().cwnd_bytes;
    bench.ack_with(5 * MSS, |ack| ack.ece = true);
    assert!(bench.sender.report().cwnd_bytes >= before);
}

#[test]
fn a_retransmission_is_not_ect_and_has_no_cwr() {
    // RFC 3168 §6.1.5
    let mut bench = Bench::measured(ECN, 20 * MS);
    bench.commit(10 * MSS);
    bench.poll();
    bench.commit(5 * MSS);
    bench.pass(20 * MS);
    bench.sack(MSS, &[(2 * MSS, 11 * MSS)]);
    let sent = bench.poll();
    let (old, new): (Vec<Transmit>, Vec<Transmit>) =
        sent.iter().copied().partition(|sent| sent.kind == Kind::Retransmission);
    assert!(!old.is_empty() && old.iter().all(|segment| !segment.ect && !segment.cwr));
    // The loss is told to the client by the next new segment (RFC 3168 §6.1.2).
    assert!(!new.is_empty() && new[0].cwr && new.iter().all(|segment| segment.ect));
}

#[test]
fn a_smaller_mss_sends_what_is_in_flight_again_in_pieces() {
    // RFC 1191 §6.5: and it is no sign of congestion.
    for config in [CONFIG, NO_SACK] {
        let mut bench = Bench::measured(config, 20 * MS);
        bench.commit(3 * MSS);
        bench.poll();
        let before = bench.sender.report().cwnd_bytes;
        bench.sender.set_mss(600);
        let sent: Vec<_> = bench.run(5 * MS).into_iter().map(|sent| sent.1).collect();
        let expected = [(0, 600), (600, 400), (1000, 600), (1600, 400), (2000, 600), (2600, 400)];
        assert_eq!(ranges(&sent), expected.map(|(seq, len)| (MSS + seq, len)));
        assert!(sent.iter().all(|segment| segment.kind == Kind::Retransmission));
        assert_eq!(bench.sender.report().cwnd_bytes, before);
        bench.pass(20 * MS);
        bench.ack(4 * MSS);
        assert!(bench.sender.is_done());
        assert_eq!(bench.sender.report().state, SenderState::Open);
    }
}

#[test]
fn a_smaller_mss_works_with_a_full_log_too() {
    let mut bench = Bench::new(CONFIG);
    bench.log = SentLog::new(3);
    bench.commit(3 * MSS);
    bench.poll();
    bench.sender.set_mss(600);
    assert_eq!(ranges(&bench.poll()), [(0, 600), (MSS, 600), (2 * MSS, 600)]);
    bench.ack(600);
    assert_eq!(ranges(&bench.poll()), [(600, 400)]);
    bench.ack(MSS + 600);
    assert_eq!(ranges(&bench.poll()), [(MSS + 600, 400)]);
    bench.ack(2 * MSS + 600);
    bench.poll();
    bench.ack(3 * MSS);
    assert!(bench.sender.is_done());
}

#[test]
fn a_larger_mss_counts_for_new_segments() {
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    bench.sender.set_mss(1400);
    bench.commit(2800);
    assert_eq!(ranges(&bench.poll()), [(MSS, 1400), (MSS + 1400, 1400)]);
}

#[test]
fn retransmissions_go_before_new_data() {
    let mut bench = Bench::measured(CONFIG, 20 * MS);
    bench.commit(10 * MSS);
    bench.poll();
    bench.commit(10 * MSS);
    bench.pass(20 * MS);
    bench.sack(MSS, &[(3 * MSS, 11 * MSS)]);
    let sent = bench.poll();
    assert_eq!(again(&sent[..2]), [MSS, 2 * MSS]);
    assert!(sent[2..].iter().all(|segment| segment.kind == Kind::New));
}

#[test]
fn a_loss_counts_again_when_the_sequence_numbers_have_gone_half_way_round() {
    const LARGE: u32 = u16::MAX as u32;
    for config in [CONFIG, NO_SACK] {
        let mut bench = Bench::new(SenderConfig { mss: u16::MAX, ..config });
        bench.window = 1 << 30;
        let sent = |bench: &Bench| bench.sender.next().get().wrapping_sub(START.get());
        // At the second loss, three gigabytes lie behind the first.
        for rounds in [100, 9000] {
            for _ in 0..rounds {
                bench.commit(5 * LARGE);
                while !bench.sender.is_done() {
                    bench.run(20 * MS);
                    bench.ack(sent(&bench));
                }
            }
            let at = sent(&bench);
            let before = bench.sender.report().cwnd_bytes;
            bench.commit(5 * LARGE);
            assert_eq!(bench.run(19 * MS).len(), 5);
            bench.pass(MS);
            for sacked in 2..=4 {
                bench.sack(at, &[(at.wrapping_add(LARGE), at.wrapping_add(sacked * LARGE))]);
            }
            assert!(bench.sender.report().cwnd_bytes < before, "after {rounds} rounds");
            assert_eq!(again(&bench.poll()).len(), 1);
            bench.pass(20 * MS);
            bench.ack(sent(&bench));
            assert!(bench.sender.is_done());
        }
    }
}

#[test]
fn a_sender_is_small() {
    assert!(size_of::<Sender>() < 400, "{}", size_of::<Sender>());
}
