//! What a page costs on its way from memory to memory, stage by stage: `cargo bench -p holdfast-checkpoint`.
//!
//! Each line is the median of several rounds over the same pages, made from a seed; the memory of 64 MiB is larger than a
//! core's own caches. One thread and no guest, but for the link, which has both its ends here, and the scan, which tracks
//! a process that this program starts. A word leaves out all lines that do not have it: `-- reduce`. Needs 1.5 GiB of
//! memory, and root for the scan.

mod backup;
#[expect(unused_imports, reason = "of its tests")]
#[path = "../../src/delta.rs"]
mod delta;
#[expect(dead_code, reason = "the bench needs no more of it than this")]
#[path = "../../src/digest.rs"]
mod digest;
#[expect(dead_code, clippy::unwrap_used, reason = "of tests of what is measured, which are not here")]
#[path = "../../src/host_needs.rs"]
mod host_needs;
mod link;
mod measure;
mod memory;
mod primary;
mod reduce;
mod scan;

use holdfast_checkpoint::{pages, protocol, transport};
use measure::Bench;

fn main() {
    if scan::is_the_process_that_writes() {
        return;
    }
    let bench = Bench::of_arguments();
    let made = memory::Pages::new();
    scan::measure(&bench);
    primary::measure(&bench, &made);
    reduce::measure(&bench, &made);
    link::measure(&bench, &made);
    backup::measure(&bench, &made);
}
