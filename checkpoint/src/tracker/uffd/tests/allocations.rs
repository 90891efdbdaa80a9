//! What a scan costs in a pause: no memory, whatever it finds, and no thread.

use super::*;
use holdfast_counting::{allocations_here, allocations_of, in_process_of_its_own};

const SCANS: usize = 60;
/// The thread itself, and what all its waits use, which the first that does not end at once makes.
const A_THREAD: u64 = 4;

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn a_scan_allocates_nothing_and_starts_no_thread() {
    if !can_track() {
        return;
    }
    let name = "tracker::uffd::tests::allocations::a_scan_allocates_nothing_and_starts_no_thread";
    if !in_process_of_its_own(name) {
        return;
    }
    let part = PART_BYTES as u64 / PAGE;
    let memory = Tracked::new(2 * part + 300);
    let mut writer = spawn_writer(&memory.path, &memory.whole());
    let len = (2 * part + 300) * PAGE;
    let mut tracker = UffdTracker::attach_with(3, writer.pid(), memory.identity(), len).unwrap();
    let mut set = memory.none();
    let (threads_before, before) = (threads(), allocations_here());
    let mut own = 0;
    // Runs of one page each, near each other and far apart, more than one step of a scan has room for.
    let shapes = [(1, 1), (200, 2), (500, 600), (3 * RUNS as u64, 2), (16, 1)];
    for (count, step) in shapes.into_iter().cycle().take(SCANS) {
        for first in [0, part, 2 * part] {
            let count = count.min((2 * part + 300 - first).div_ceil(step));
            writer.ask(&format!("write-many 0 {} {count} {}", first * PAGE, step * PAGE));
        }
        set.clear();
        let at = allocations_here();
        let stats = tracker.collect(&mut set).unwrap();
        own += allocations_here() - at;
        assert!(stats.pages > count, "{stats:?}");
    }
    let others = allocations_of("hf-scan");
    println!(
        "{SCANS} scans: {own} allocations of the thread that asked, {others} of two others; {before} before"
    );
    assert!(own <= A_THREAD && others <= 2 * A_THREAD, "{own} and {others}");
    assert_eq!((threads(), tracker.thread_ids().len()), (threads_before, 2));
}
