//! Some hundred seeds in each test run; `make sim` runs as many as there is time for.

use holdfast_sim::{Scenario, run, trace};

/// SP-1, SP-2, SP-3, SP-4, OC-1: whatever the seeds think of, no invariant is violated, every stream is
/// exact, and everything comes to its end.
#[test]
fn no_seed_violates_an_invariant() {
    for seed in 1..=400 {
        if let Err(failure) = run(&Scenario::of(seed), None) {
            panic!("seed {seed}: {}\nreplay: holdfast-sim --seed {seed} --trace", failure.violation);
        }
    }
}

/// Seeds that once failed, and what was wrong.
const ONCE_FAILED: [(u64, &str); 14] = [
    (5004473, "one byte that the guest sent again was taken for a keepalive"),
    (339312, "the judge: an ACK older than what the guest has seen opens no window"),
    (304506, "the judge: a FIN beyond the client's window is sent again, like bytes"),
    (86479, "smoltcp: in CLOSING it forgets to send again, and probes kept the card from reminding it"),
    (132769, "the judge: a SYN in fragments, whose scale was known from before"),
    (143080, "the judge: a SYN in fragments that was repeated as a whole"),
    (137286, "the wire: a stranger made a reset as good as the client's"),
    (173872, "a lent scale: its flow was forgotten while what the guest had said waited"),
    (801624, "a lent scale: its flow was forgotten while the guest's last bytes were on their way"),
    (416086, "a segment beyond a window that was told in fragments moved an edge left"),
    (380979, "the judge: the guest echoed the time of a reset that it did not follow"),
    (749470, "the judge: a stranger's ACK to a guest whose SYN left in fragments"),
    (280106, "the judge: a stranger's ACK beyond the guest's window, which the guest does not look at"),
    (319883, "the judge: a stranger's ACK of a FIN beyond the guest's window"),
];

#[test]
fn seeds_that_once_failed_pass() {
    for (seed, wrong) in ONCE_FAILED {
        if let Err(failure) = run(&Scenario::of(seed), None) {
            panic!("seed {seed}: {}\n{wrong}", failure.violation);
        }
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [3, 17, 129, 223] {
        let (first, again) = (trace(&Scenario::of(seed), None), trace(&Scenario::of(seed), None));
        assert_eq!(first.1, again.1);
        assert!(first.1.len() > 20, "something happens");
    }
}

#[test]
fn the_seeds_fail_over_run_ahead_and_lend_scales() {
    let (mut failovers, mut forged, mut lent) = (0, 0, 0);
    for seed in 1..=200 {
        if let Ok(summary) = run(&Scenario::of(seed), None) {
            failovers += summary.failovers;
            forged += summary.forged;
            lent += summary.lent;
        }
    }
    let text = format!("{failovers} failovers, {forged} forged ACKs, {lent} scales lent");
    assert!(failovers > 20 && forged > 2000 && lent > 20, "{text}");
}
