//! A flow that another host drove before.

use super::bench::{Bench, CONFIG, MS, MSS, START, ranges};
use crate::client_leg::{Kind, Sender, TimeoutOutcome};

fn resumed(fin: bool) -> Bench {
    let mut bench = Bench::new(CONFIG);
    bench.sender = Sender::resumed(CONFIG, START, START + 30 * MSS, fin, bench.window, bench.now);
    bench
}

#[test]
fn a_resumed_flow_sends_an_initial_window_from_the_last_confirmed_byte() {
    // RFC 6928 §2, RFC 6298 §2.1
    let mut bench = resumed(false);
    let sent = bench.poll();
    assert_eq!(ranges(&sent), (0..10).map(|i| (i * MSS, MSS)).collect::<Vec<_>>());
    assert!(sent.iter().all(|segment| segment.kind == Kind::Retransmission && !segment.ect));
    assert_eq!(bench.sender.report().rto.as_secs(), 1);
    assert_eq!(bench.sender.report().srtt, None);
}

#[test]
fn the_client_may_be_ahead_of_what_this_host_sent() {
    let mut bench = resumed(false);
    bench.poll();
    assert_eq!(bench.ack(25 * MSS).freed_to, START + 25 * MSS);
    assert_eq!(bench.sender.next(), START + 25 * MSS);
    assert_eq!(ranges(&bench.poll())[0], (25 * MSS, MSS));
    assert_eq!(bench.ack(30 * MSS).freed_to, START + 30 * MSS);
    assert!(bench.sender.is_done());
    // But not of what no host has sent.
    bench.commit(2 * MSS);
    assert_eq!(bench.ack(31 * MSS).freed_to, START + 30 * MSS);
    let sent = bench.poll();
    assert_eq!(sent[0].kind, Kind::New);
}

#[test]
fn the_client_may_answer_before_anything_was_sent() {
    let mut bench = resumed(true);
    assert!(bench.ack(30 * MSS + 1).fin_confirmed);
    assert!(bench.sender.is_done() && bench.poll().is_empty());
}

#[test]
fn without_a_fin_the_end_is_as_far_as_the_client_may_be() {
    let mut bench = resumed(false);
    assert_eq!(bench.ack(30 * MSS + 1).freed_to, START);
}

#[test]
fn what_another_host_may_have_sent_gives_no_rtt() {
    // RFC 6298 §3: the first answer may be to the other host's segments.
    let mut bench = resumed(false);
    bench.poll();
    bench.pass(MS);
    bench.ack(5 * MSS);
    assert_eq!(bench.sender.report().srtt, None);
    // From then on the client is known to answer this one.
    bench.poll();
    bench.pass(20 * MS);
    bench.ack(15 * MSS);
    assert_eq!(bench.sender.report().srtt, None);
    let next = bench.sender.next().bytes_since(START);
    bench.ack(next);
    assert_eq!(bench.sender.report().srtt, Some(20 * MS));
}

#[test]
fn a_resumed_flow_with_a_closed_window_probes() {
    let mut bench = resumed(false);
    bench.sender = Sender::resumed(CONFIG, START, START + MSS, false, 0, bench.now);
    assert!(bench.poll().is_empty());
    assert_eq!(bench.pass_deadline(), TimeoutOutcome::Poll);
    assert_eq!(bench.poll()[0].kind, Kind::Probe);
}
