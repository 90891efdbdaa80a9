//! Drivers that break the rules (RB-1): a typed fault, nothing read or written outside, no panic.

use super::driver::{DriverQueue, END, GuestRam, INDIRECT, NEXT, WRITE, descriptor};
use super::{USUAL, drain, layout, memory, rx, tx};
use crate::features::{Features, bits};
use crate::header::VirtioNetHdr;
use crate::memory::Gpa;
use crate::ring::{LayoutError, Queue, RingFault, RingLayout, Verdict};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const TABLE: u64 = 0x4_0000;

struct Case {
    name: &'static str,
    features: u64,
    /// Descriptors of the ring's table, from 0 on; the chain begins at 0.
    ring: &'static [(u64, u32, u16, u16)],
    /// Descriptors of the indirect table at `TABLE`.
    table: &'static [(u64, u32, u16, u16)],
    fault: RingFault,
}

const fn case(
    name: &'static str,
    ring: &'static [(u64, u32, u16, u16)],
    table: &'static [(u64, u32, u16, u16)],
    fault: RingFault,
) -> Case {
    Case { name, features: USUAL, ring, table, fault }
}

const fn outside(gpa: u64, len: u32) -> RingFault {
    RingFault::OutOfMemoryMap { gpa: Gpa(gpa), len }
}

const SENT: &[Case] = &[
    case("a loop of one", &[(0x2_0000, 64, NEXT, 0)], &[], RingFault::ChainTooLong { limit: 8 }),
    case(
        "a loop of two",
        &[(0x2_0000, 64, NEXT, 1), (0x2_0000, 64, NEXT, 0)],
        &[],
        RingFault::ChainTooLong { limit: 8 },
    ),
    case(
        "a next beyond the table",
        &[(0x2_0000, 64, NEXT, 8)],
        &[],
        RingFault::IndexOutOfTable { index: 8, size: 8 },
    ),
    case("an empty buffer", &[(0x2_0000, 0, 0, 0)], &[], RingFault::EmptyBuffer),
    case("a buffer to write into", &[(0x2_0000, 64, WRITE, 0)], &[], RingFault::WrongDirection),
    case("a buffer in a hole", &[(0x10_0000, 64, 0, 0)], &[], outside(0x10_0000, 64)),
    case("a buffer across the end", &[(END - 32, 64, 0, 0)], &[], outside(END - 32, 64)),
    case(
        "a buffer across the end of the numbers",
        &[(u64::MAX - 8, 64, 0, 0)],
        &[],
        outside(u64::MAX - 8, 64),
    ),
    case("a buffer of 4 GiB", &[(0x2_0000, u32::MAX, 0, 0)], &[], outside(0x2_0000, u32::MAX)),
    case("no room for the header", &[(0x2_0000, 11, 0, 0)], &[], RingFault::HeaderTooShort { len: 11 }),
    case(
        "a frame of half a megabyte",
        &[(0x0, 0x4_0000, NEXT, 1), (0x0, 0x4_0000, 0, 0)],
        &[],
        RingFault::FrameTooLong { len: 0x8_0000 },
    ),
    Case {
        name: "an indirect table without the feature",
        features: bits::VERSION_1,
        ring: &[(TABLE, 16, INDIRECT, 0)],
        table: &[(0x2_0000, 64, 0, 0)],
        fault: RingFault::IndirectNotNegotiated,
    },
    case(
        "an indirect table inside one",
        &[(TABLE, 16, INDIRECT, 0)],
        &[(TABLE, 16, INDIRECT, 0)],
        RingFault::NestedIndirect,
    ),
    case(
        "an indirect table with a next",
        &[(TABLE, 16, INDIRECT | NEXT, 1)],
        &[],
        RingFault::IndirectWithNext,
    ),
    case(
        "an indirect table of no bytes",
        &[(TABLE, 0, INDIRECT, 0)],
        &[],
        RingFault::IndirectSize { len: 0 },
    ),
    case(
        "an indirect table of odd bytes",
        &[(TABLE, 24, INDIRECT, 0)],
        &[],
        RingFault::IndirectSize { len: 24 },
    ),
    case(
        "an indirect table that is huge",
        &[(TABLE, 0x1_0000, INDIRECT, 0)],
        &[],
        RingFault::IndirectSize { len: 0x1_0000 },
    ),
    case("an indirect table in a hole", &[(0x10_0000, 32, INDIRECT, 0)], &[], outside(0x10_0000, 32)),
    case(
        "an indirect table that leaves guest memory",
        &[(END - 16, 32, INDIRECT, 0)],
        &[],
        // The one descriptor inside is all zeroes.
        RingFault::EmptyBuffer,
    ),
    case(
        "an indirect table across the end of the numbers",
        &[(u64::MAX - 15, 32, INDIRECT, 0)],
        &[],
        outside(u64::MAX - 15, 32),
    ),
    case(
        "an indirect loop",
        &[(TABLE, 32, INDIRECT, 0)],
        &[(0x2_0000, 64, NEXT, 1), (0x2_0000, 64, NEXT, 0)],
        RingFault::ChainTooLong { limit: 2 },
    ),
    case(
        "an indirect next beyond the table",
        &[(TABLE, 32, INDIRECT, 0)],
        &[(0x2_0000, 64, NEXT, 5)],
        RingFault::IndexOutOfTable { index: 5, size: 2 },
    ),
];

/// RB-1: each broken chain is its own counted fault, and nothing of it reaches the sink.
#[test]
fn a_broken_chain_is_a_typed_fault() {
    for case in SENT {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let mut driver = DriverQueue::new(&ram, 0x1000, 8, 0);
        for (index, &(gpa, len, flags, next)) in (0..).zip(case.ring) {
            driver.set_descriptor(index, descriptor(gpa, len, flags, next));
        }
        for (index, &(gpa, len, flags, next)) in (0..).zip(case.table) {
            ram.write(TABLE + 16 * index, &descriptor(gpa, len, flags, next));
        }
        let (mut ring, _) = tx(&driver, &memory, case.features);
        driver.offer(0);
        let outcome = ring.poll(8, |_, _| panic!("{}: a frame came out", case.name));
        assert_eq!(outcome, Err(case.fault), "{}", case.name);
        assert!(RingFault::NAMES.contains(&case.fault.name()));
        assert!(driver.take_used().is_empty(), "{}", case.name);
    }
}

/// RB-1: the same when receiving.
#[test]
fn a_receive_buffer_that_may_not_be_written_is_a_fault() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = DriverQueue::new(&ram, 0x1000, 8, 0);
    let (mut ring, _) = rx(&driver, &memory, USUAL);
    driver.set_descriptor(0, descriptor(0x2_0000, 64, WRITE, 0));
    driver.set_descriptor(1, descriptor(0x2_0000, 2048, 0, 0));
    driver.offer(0);
    driver.offer(1);
    let outcome = ring.push(&VirtioNetHdr::default(), &[&[5; 500]]);
    assert_eq!(outcome, Err(RingFault::WrongDirection));
    assert!(drain(&memory).is_empty(), "nothing was written before the whole chain was known");
}

/// RB-1: more chains than the ring has, or a head beyond the table.
#[test]
fn an_available_index_that_jumps_is_a_fault() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = DriverQueue::new(&ram, 0x1000, 8, 65535);
    let (mut ring, _) = tx(&driver, &memory, USUAL);
    ram.write_u16(driver.available_gpa() + 2, 65535_u16.wrapping_add(9));
    let fault = RingFault::AvailableJump { available: 8, used: 65535, size: 8 };
    assert_eq!(ring.poll(8, |_, _| Verdict::Taken), Err(fault));
    assert_eq!(ring.want_kick(true), Err(fault));
    driver.offer(8);
    assert_eq!(ring.poll(8, |_, _| Verdict::Taken), Err(RingFault::IndexOutOfTable { index: 8, size: 8 }));
}

/// RB-1: of a guest that offers again what it has not been shown as used no more is taken than its ring has.
#[test]
fn chains_are_not_taken_again_before_they_are_shown() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = DriverQueue::new(&ram, 0x1000, 2, 0);
    for index in 0..2 {
        driver.set_descriptor(index, descriptor(0x2_0000, 64, 0, 0));
        driver.offer(index);
    }
    let (mut ring, _) = tx(&driver, &memory, USUAL);
    let (available, mut taken) = (driver.available_gpa() + 2, 0);
    let outcome = ring.poll(8, |_, _| {
        taken += 1;
        ram.write_u16(available, 2 + taken);
        Verdict::Taken
    });
    assert_eq!(outcome, Err(RingFault::AvailableJump { available: 4, used: 0, size: 2 }));
    assert_eq!(taken, 2);
    ring.flush().expect("the ring itself is sound");
}

/// RB-1: a ring that does not lie in guest memory is refused at the start.
#[test]
fn a_ring_that_lies_outside_guest_memory_is_refused() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let driver = DriverQueue::new(&ram, 0x1000, 8, 0);
    let good = layout(&driver);
    let start = |layout| Queue::new(Arc::clone(&memory), None, layout, 0, Features::new(USUAL)).map(|_| ());
    start(good).expect("the ring itself is possible");
    for size in [0, 3, 8192] {
        assert!(matches!(start(RingLayout { size, ..good }), Err(LayoutError::Size(_))), "{size}");
    }
    let end = super::FRONTEND + END;
    let places = [
        RingLayout { descriptors: end - 16, ..good },
        RingLayout { descriptors: good.descriptors + 8, ..good },
        RingLayout { available: end - 8, ..good },
        RingLayout { available: 1, ..good },
        RingLayout { used: u64::MAX - 8, ..good },
        RingLayout { used: good.used + 2, ..good },
        // Contiguous for the guest and the frontend, but not in the file.
        RingLayout { used: super::FRONTEND + 0x8_0000 - 8, ..good },
    ];
    for layout in places {
        assert!(matches!(start(layout), Err(LayoutError::Place { .. })), "{layout:?}");
    }
}

/// An address that is likely to be near something.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        0_u64..0x10_0000,
        0x1_0000_0000_u64..END,
        (END - 64)..(END + 64),
        0x7_ffc0_u64..0x8_0040,
        any::<u64>(),
    ]
}

fn any_descriptor() -> impl Strategy<Value = [u8; 16]> {
    let len = prop_oneof![0_u32..64, 0_u32..5000, any::<u32>()];
    let flags =
        prop_oneof![Just(0), Just(NEXT), Just(WRITE), Just(WRITE | NEXT), Just(INDIRECT), any::<u16>()];
    (address(), len, flags, 0_u16..10).prop_map(|(gpa, len, flags, next)| descriptor(gpa, len, flags, next))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// RB-1 and CK-2: whatever the guest wrote, the device ends with frames or a fault, and every
    /// byte that it changed lies on a page that it marked.
    #[test]
    fn no_descriptor_table_makes_the_device_panic_or_write_unmarked(
        descriptors in prop::collection::vec(any_descriptor(), 8),
        indirect in prop::collection::vec(any_descriptor(), 8),
        heads in prop::collection::vec(0_u16..9, 0..10),
        features in prop_oneof![Just(USUAL), Just(USUAL | bits::EVENT_IDX), Just(0)],
        frame in prop::collection::vec(any::<u8>(), 0..3000),
        receive: bool,
    ) {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let mut driver = DriverQueue::new(&ram, 0x1000, 8, 65530);
        for (index, bytes) in (0..).zip(descriptors) {
            driver.set_descriptor(index, bytes);
        }
        for (index, bytes) in (0..).zip(indirect) {
            ram.write(TABLE + 16 * index, &bytes);
        }
        for head in heads {
            driver.offer(head);
        }
        let before = ram.image();
        if receive {
            let (mut ring, _) = rx(&driver, &memory, features);
            while let Ok(true) = ring.push(&VirtioNetHdr::default(), &[&frame]) {}
            ring.flush().expect("the ring itself is sound");
        } else {
            let (mut ring, _) = tx(&driver, &memory, features);
            let mut out = vec![0; 70_000];
            let _outcome = ring.poll(16, |_, bytes| {
                assert_eq!(bytes.copy_to(0, &mut out), bytes.len());
                Verdict::Taken
            });
            ring.flush().expect("the ring itself is sound");
        }
        let after = ram.image();
        let marked: BTreeSet<u64> = drain(&memory).into_iter().collect();
        for (page, (old, new)) in before.chunks(4096).zip(after.chunks(4096)).enumerate() {
            prop_assert!(old == new || marked.contains(&(page as u64)), "page {} changed unmarked", page);
        }
    }
}

/// Ends the liar however the test ends.
struct RaiseOnDrop<'a>(&'a AtomicBool);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// RB-1: a guest that rewrites its descriptors while they are read gets frames or a fault.
#[test]
fn descriptors_that_change_while_they_are_read_do_no_harm() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = DriverQueue::new(&ram, 0x1000, 8, 0);
    let (mut ring, _) = tx(&driver, &memory, USUAL);
    let over = AtomicBool::new(false);
    let variants = [
        descriptor(0x2_0000, 64, 0, 0),
        descriptor(TABLE, 16, INDIRECT, 0),
        descriptor(u64::MAX, u32::MAX, NEXT, 7),
        descriptor(END - 8, 64, WRITE, 1),
        descriptor(0x7_fff0, 64, 0, 0),
    ];
    ram.write(TABLE, &descriptor(0x2_0000, 64, 0, 0));
    let (mut frames, mut faults) = (0, 0);
    std::thread::scope(|scope| {
        let ram = &ram;
        let over = &over;
        let _end = RaiseOnDrop(over);
        scope.spawn(move || {
            let liar = DriverQueue { ram, at: 0x1000, size: 8, available: 0, seen: 0 };
            while !over.load(Ordering::Relaxed) {
                for variant in variants {
                    liar.set_descriptor(0, variant);
                }
            }
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut rounds = 0;
        // On a busy machine the liar may not have run in all of these: on until both have happened.
        while rounds < 2000 || frames == 0 || faults == 0 {
            if rounds >= 2000 {
                assert!(Instant::now() < deadline, "{frames} frames, {faults} faults in {rounds} rounds");
                std::thread::yield_now();
            }
            rounds += 1;
            driver.offer(0);
            let outcome = ring.poll(1, |_, bytes| {
                let mut out = [0; 256];
                assert_eq!(bytes.copy_to(0, &mut out), bytes.len());
                frames += 1;
                Verdict::Taken
            });
            if outcome.is_err() {
                faults += 1;
                // Start over, as after a reset of the driver.
                driver = DriverQueue::new(ram, 0x1000, 8, 0);
                ring = tx(&driver, &memory, USUAL).0;
            }
            ring.flush().expect("the ring itself is sound");
        }
    });
    assert!(frames > 0 && faults > 0, "both happened: {frames} frames, {faults} faults");
}
