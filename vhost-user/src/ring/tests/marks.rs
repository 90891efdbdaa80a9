//! Every page that a ring writes is marked (CK-2), in the own bitmap and in QEMU's log.

use super::driver::{DriverQueue, END, GuestRam, REGIONS, WRITE, descriptor};
use super::{USUAL, drain, memory, queue_with_log, tx};
use crate::features::bits;
use crate::header::VirtioNetHdr;
use crate::memory::DirtyLog;
use crate::ring::{RxRing, Verdict};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A log for all of guest memory, and the file behind it.
pub(super) fn log() -> (Arc<DirtyLog>, File) {
    let file = tempfile::tempfile().expect("a temporary file");
    let bytes = END / 4096 / 8 + 1;
    file.set_len(bytes).expect("room for the log");
    (Arc::new(DirtyLog::map(&file, 0, bytes).expect("maps")), file)
}

/// Pages of the memory file that the log names.
pub(super) fn logged(file: &File) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    for (gpa, bytes, offset) in REGIONS {
        for page in (0..bytes).step_by(4096) {
            let number = (gpa + page) / 4096;
            let mut byte = [0];
            file.read_exact_at(&mut byte, number / 8).expect("reads");
            if byte[0] & (1 << (number % 8)) != 0 {
                pages.insert((offset + page) / 4096);
            }
        }
    }
    pages
}

pub(super) fn changed(before: &[u8], after: &[u8]) -> BTreeSet<u64> {
    let pages = before.chunks(4096).zip(after.chunks(4096)).enumerate();
    pages.filter(|(_, (old, new))| old != new).map(|(page, _)| page as u64).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// CK-2: what changed in guest memory, buffers and used ring alike, is what was marked, in the
    /// own bitmap and in the log; memory above 4 GiB and buffers across regions included.
    #[test]
    fn the_pages_marked_are_the_pages_written(
        lengths in prop::collection::vec(64_usize..9000, 1..6),
        place in prop_oneof![Just(0x2_0f00_u64), Just(0x7_e800), Just(0x1_0003_0801)],
        rings_at in prop_oneof![Just(0x1000_u64), Just(0x1_0000_0000)],
        event_idx: bool,
    ) {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let mut driver = DriverQueue::new(&ram, rings_at, 64, 65500);
        let features = USUAL | bits::LOG_ALL | if event_idx { bits::EVENT_IDX } else { 0 };
        let (log, file) = log();
        let used = driver.used_gpa();
        let (queue, _) = queue_with_log(&driver, &memory, features, Some(log), Some(used));
        let mut ring = RxRing::parked();
        ring.start(queue, 12, true);
        for index in 0..40_u16 {
            let gpa = place + 1600 * u64::from(index);
            driver.set_descriptor(index, descriptor(gpa, 1600, WRITE, 0));
            driver.offer(index);
        }
        let before = ram.image();
        for len in lengths {
            let frame = vec![0xa5; len];
            ring.push(&VirtioNetHdr::default(), &[&frame]).expect("a driver that keeps the rules");
        }
        ring.flush().expect("the ring is there");
        ring.want_kick(true).expect("a driver that keeps the rules");
        let written = changed(&before, &ram.image());
        let own: BTreeSet<u64> = drain(&memory).into_iter().collect();
        prop_assert!(written.is_subset(&own), "unmarked: {:?}", written.difference(&own));
        prop_assert_eq!(&own, &logged(&file), "the log names the same pages");
        prop_assert!(own.len() <= written.len() + 1, "no page beyond those written");
        prop_assert!(drain(&memory).is_empty());
    }
}

/// CK-2: a ring by which the guest sends writes only its used ring, and marks that.
#[test]
fn a_sending_ring_marks_its_used_ring() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = DriverQueue::new(&ram, 0x1000, 8, 0);
    let (mut ring, _) = tx(&driver, &memory, USUAL);
    driver.set_descriptor(0, descriptor(0x2_0000, 64, 0, 0));
    driver.offer(0);
    assert_eq!(ring.poll(8, |_, _| Verdict::Taken), Ok(1));
    assert!(drain(&memory).is_empty(), "nothing is written before the flush");
    ring.flush().expect("the ring is there");
    assert_eq!(drain(&memory), [GuestRam::offset(driver.used_gpa()) / 4096]);
}

/// The used ring is logged only where the frontend asked for it, by the address that it gave.
#[test]
fn the_used_ring_is_logged_only_when_asked() {
    for asked in [None, Some(0x9000)] {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let mut driver = DriverQueue::new(&ram, 0x1000, 8, 0);
        let (log, file) = log();
        let (queue, _) = queue_with_log(&driver, &memory, USUAL, Some(log), asked);
        let mut ring = RxRing::parked();
        ring.start(queue, 12, true);
        driver.set_descriptor(0, descriptor(0x2_0000, 2048, WRITE, 0));
        driver.offer(0);
        assert_eq!(ring.push(&VirtioNetHdr::default(), &[&[1; 64]]), Ok(true));
        ring.flush().expect("the ring is there");
        let expected: BTreeSet<u64> =
            [Some(0x2_0000), asked].into_iter().flatten().map(|gpa| GuestRam::offset(gpa) / 4096).collect();
        assert_eq!(logged(&file), expected);
    }
}

/// A log that comes while the ring runs takes effect at once, and ends at once.
#[test]
fn a_log_is_switched_while_the_ring_runs() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = DriverQueue::new(&ram, 0x1000, 8, 0);
    let (mut ring, _) = super::rx(&driver, &memory, USUAL);
    let (log, file) = log();
    let mut push = |ring: &mut RxRing, gpa: u64| {
        driver.set_descriptor(0, descriptor(gpa, 2048, WRITE, 0));
        driver.offer(0);
        assert_eq!(ring.push(&VirtioNetHdr::default(), &[&[1; 64]]), Ok(true));
        ring.flush().expect("the ring is there");
    };
    push(&mut ring, 0x2_0000);
    assert!(logged(&file).is_empty());
    ring.queue_mut().as_mut().expect("it runs").set_log(Some(log), Some(0x9000));
    push(&mut ring, 0x2_1000);
    let pages = [0x9000, 0x2_1000].map(|gpa| GuestRam::offset(gpa) / 4096);
    assert_eq!(logged(&file), BTreeSet::from(pages));
    ring.queue_mut().as_mut().expect("it runs").set_log(None, None);
    push(&mut ring, 0x2_2000);
    assert_eq!(logged(&file), BTreeSet::from(pages));
}
