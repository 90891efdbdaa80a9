//! The FIN, and ACKs that are not acceptable.

use super::bench::{Bench, CONFIG, MS, MSS, NO_SACK, START, ranges};
use crate::client_leg::{Kind, Progress, TimeoutOutcome};

#[test]
fn the_fin_rides_on_the_last_byte_or_follows_it() {
    let mut bench = Bench::new(CONFIG);
    bench.commit(2 * MSS);
    bench.sender.close();
    let sent = bench.poll();
    assert_eq!(ranges(&sent), [(0, MSS), (MSS, MSS)]);
    assert_eq!((sent[0].fin, sent[1].fin, sent[1].push), (false, true, true));
    assert_eq!(bench.sender.next(), START + 2 * MSS + 1);

    let mut bench = Bench::new(CONFIG);
    bench.commit(MSS);
    assert_eq!(bench.poll().len(), 1);
    bench.sender.close();
    let sent = bench.poll();
    assert_eq!((ranges(&sent), sent[0].fin, sent[0].push), (vec![(MSS, 0)], true, false));
}

#[test]
fn nothing_extends_the_stream_after_its_end() {
    let mut bench = Bench::new(CONFIG);
    bench.commit(MSS);
    bench.sender.close();
    bench.commit(MSS);
    assert_eq!(bench.sender.end(), START + MSS);
}

#[test]
fn the_fin_is_sent_again_until_it_is_confirmed() {
    for config in [CONFIG, NO_SACK] {
        let mut bench = Bench::measured(config, 20 * MS);
        bench.sender.close();
        assert_eq!(bench.poll().len(), 1);
        for _ in 0..3 {
            assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
            let sent = bench.poll();
            assert_eq!(
                (ranges(&sent), sent[0].fin, sent[0].kind),
                (vec![(MSS, 0)], true, Kind::Retransmission)
            );
        }
        let progress = bench.ack(MSS + 1);
        assert_eq!(progress, Progress { freed_to: START + MSS, fin_confirmed: true, window_opened: true });
        assert!(bench.sender.is_done());
        assert_eq!(bench.sender.next_deadline(), None);
    }
}

#[test]
fn an_ack_of_the_bytes_alone_leaves_the_fin_to_be_confirmed() {
    let mut bench = Bench::new(CONFIG);
    bench.commit(MSS);
    bench.sender.close();
    bench.poll();
    assert!(!bench.ack(MSS).fin_confirmed);
    assert!(!bench.sender.is_done() && bench.sender.next_deadline().is_some());
    assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
    let sent = bench.poll();
    assert_eq!((ranges(&sent), sent[0].fin), (vec![(MSS, 0)], true));
}

#[test]
fn an_ack_of_data_never_sent_changes_nothing() {
    // RFC 9293 §3.10.7.4
    let mut bench = Bench::new(CONFIG);
    bench.commit(20 * MSS);
    let sent = bench.poll().len() as u32;
    let before = format!("{:?}", bench.sender);
    bench.window = 5;
    assert_eq!(bench.ack(sent * MSS + 1).freed_to, START);
    assert_eq!(bench.ack(20 * MSS).freed_to, START);
    assert_eq!(format!("{:?}", bench.sender), before);
}

#[test]
fn an_ack_below_what_is_confirmed_changes_nothing() {
    // RFC 9293 §3.10.7.4
    let mut bench = Bench::new(CONFIG);
    bench.commit(5 * MSS);
    bench.poll();
    bench.ack(3 * MSS);
    let before = format!("{:?}", bench.sender);
    bench.window = 5;
    assert_eq!(bench.ack(2 * MSS).freed_to, START + 3 * MSS);
    assert_eq!(bench.sack(0, &[(4 * MSS, 5 * MSS)]).freed_to, START + 3 * MSS);
    assert_eq!(format!("{:?}", bench.sender), before);
}

#[test]
fn a_sack_frees_nothing() {
    // RFC 2018 §8, SP-3
    let mut bench = Bench::new(CONFIG);
    bench.commit(5 * MSS);
    bench.poll();
    assert_eq!(bench.sack(0, &[(MSS, 5 * MSS)]).freed_to, START);
    assert_eq!(bench.sender.unacked(), START);
}

#[test]
fn a_full_log_holds_new_data_back_for_a_while() {
    let mut bench = Bench::new(CONFIG);
    bench.log = crate::client_leg::SentLog::new(2);
    bench.commit(5 * MSS);
    assert_eq!(bench.poll().len(), 2);
    assert!(bench.sender.next_deadline().is_some());
    bench.ack(MSS);
    assert_eq!(ranges(&bench.poll()), [(2 * MSS, MSS)]);
    bench.ack(3 * MSS);
    assert_eq!(bench.poll().len(), 2);
}
