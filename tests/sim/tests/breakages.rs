//! What is broken on purpose is noticed: each test would fail if the simulator looked away.

use holdfast_sim::{Breakage, Scenario, run, shrink};

/// Seeds within which a breakage must show.
const SEEDS: u64 = 1000;

fn is_noticed(breakage: Breakage) {
    let failure = (1..=SEEDS)
        .find_map(|seed| run(&Scenario::of(seed), Some(breakage)).err())
        .unwrap_or_else(|| panic!("{breakage} is not noticed within {SEEDS} seeds"));
    let rule = failure.violation.rule;
    assert!(breakage.rules().contains(&rule), "{breakage} is noticed as {}", failure.violation);
}

/// SP-1
#[test]
fn an_ack_of_a_byte_that_is_not_held_is_noticed() {
    is_noticed(Breakage::AckBeyondHeld);
}

/// SP-2
#[test]
fn a_confirmation_without_all_acknowledged_bytes_is_noticed() {
    is_noticed(Breakage::StreamLost);
}

/// SP-3
#[test]
fn a_changed_byte_is_noticed_on_the_wire_and_behind_a_failover() {
    is_noticed(Breakage::ByteChanged);
    is_noticed(Breakage::StreamChanged);
}

/// SP-4
#[test]
fn a_window_that_moves_left_and_an_invented_timestamp_are_noticed() {
    is_noticed(Breakage::EdgeMovesLeft);
    is_noticed(Breakage::InventedTimestamp);
}

/// OC-1
#[test]
fn what_leaves_before_its_commit_is_noticed() {
    is_noticed(Breakage::EarlyCommit);
    is_noticed(Breakage::EarlyRelease);
}

#[test]
fn a_failure_shrinks_to_a_smaller_scenario_that_fails_alike() {
    let breakage = Some(Breakage::EarlyRelease);
    let failure = (1..50)
        .filter_map(|seed| run(&Scenario::of(seed), breakage).err())
        .find(|failure| failure.scenario.connections.len() > 1)
        .expect("many scenarios fail");
    let (before, rule) = (failure.scenario.clone(), failure.violation.rule);
    let (smallest, cuts) = shrink(failure, breakage);
    assert_eq!(smallest.violation.rule, rule);
    assert_eq!(smallest.scenario.connections.len(), 1);
    let mut replayed = *before;
    for cut in &cuts {
        replayed = shrink::apply(&replayed, cut).expect("a cut that was made");
    }
    let again = run(&replayed, breakage).expect_err("the same cuts make the same failure");
    assert_eq!(again.violation, smallest.violation);
}
