//! Whole guests on a pair of hosts: stock QEMU, a stock kernel, the program as it is shipped.
//!
//! Every test makes hosts, client and guests of its own and leaves nothing behind. Needs root and what
//! `make guest` provides.

mod applications;
mod attachment;
mod aware;
mod clock;
mod cores;
mod idle;
mod memory;
mod modes;
mod native;
mod queues;
mod rings;
mod survival;

use holdfast_lab::requirements::{Need, can_run};

/// What all of these tests need.
fn can() -> bool {
    can_run(&[Need::Root, Need::Guest])
}
