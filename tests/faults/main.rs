//! Faults of the matrix, struck on a pair of hosts with a real guest.
//!
//! Each test names the faults that it strikes and the invariants that must hold. Needs root and what
//! `make guest` provides.

mod backup;
mod bypass;
mod first_sync;
mod moves;
mod partition;
mod plugged;
mod standstill;
mod strangers;

use holdfast_lab::requirements::{Need, can_run};

/// Bytes that flow each way before and after a fault.
const SOME: u64 = 1 << 20;

/// What all of these tests need.
fn can() -> bool {
    can_run(&[Need::Root, Need::Guest])
}

/// Runs a test with a guest that is protected in either way: in mode `speculative` there is more to lose.
fn in_both_modes(test: impl Fn(&str)) {
    if can() {
        ["commit", "speculative"].into_iter().for_each(test);
    }
}
