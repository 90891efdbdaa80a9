//! Packed rings, against a model of the driver.

use super::driver::{END, FRONTEND, GuestRam, INDIRECT, NEXT, WRITE};
use super::marks::{changed, log, logged};
use super::{drain, memory};
use crate::features::{Features, bits};
use crate::header::VirtioNetHdr;
use crate::memory::{DirtyLog, Gpa, GuestMemory};
use crate::notifier::Notifier;
use crate::ring::{LayoutError, Queue, RingFault, RingLayout, RxRing, TxRing, Verdict};
use nix::sys::eventfd::{EfdFlags, EventFd};
use proptest::prelude::*;
use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const SENSE: u16 = 1 << 15;
const RING_AT: u64 = 0x1000;
const TABLES_AT: u64 = 0x4_0000;
const USUAL: u64 = super::USUAL | bits::RING_PACKED;

fn descriptor(gpa: u64, len: u32, id: u16, flags: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&gpa.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&id.to_le_bytes());
    bytes[14..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// A place of the ring with the sense of its flags, as drivers count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    slot: u16,
    sense: bool,
}

impl At {
    fn step(&mut self, places: u16, size: u16) {
        self.slot += places;
        if self.slot >= size {
            self.slot -= size;
            self.sense = !self.sense;
        }
    }

    fn word(self) -> u16 {
        self.slot | if self.sense { SENSE } else { 0 }
    }
}

/// A packed ring as the driver sees it (virtio 1.1, 2.7.21 and A.2).
struct PackedDriver<'r> {
    ram: &'r GuestRam,
    size: u16,
    next: At,
    used: At,
    free: u16,
    /// Numbers and places of the chains that the device has, oldest first.
    out: VecDeque<(u16, u16)>,
}

impl<'r> PackedDriver<'r> {
    fn new(ram: &'r GuestRam, size: u16, base: u16) -> Self {
        let at = At { slot: base & !SENSE, sense: base & SENSE != 0 };
        let driver = Self { ram, size, next: at, used: at, free: size, out: VecDeque::new() };
        // What lies there was used in the round before.
        for slot in 0..size {
            let sense = at.sense == (slot < at.slot);
            let flags = if sense { AVAILABLE | USED } else { 0 };
            driver.set(slot, descriptor(0, 0, 0, flags));
        }
        driver
    }

    fn driver_event(&self) -> u64 {
        RING_AT + 16 * u64::from(self.size)
    }

    fn device_event(&self) -> u64 {
        self.driver_event() + 0x1_0000
    }

    fn layout(&self) -> RingLayout {
        RingLayout {
            size: self.size,
            descriptors: FRONTEND + RING_AT,
            available: FRONTEND + self.driver_event(),
            used: FRONTEND + self.device_event(),
            used_log: None,
        }
    }

    fn set(&self, slot: u16, bytes: [u8; 16]) {
        self.ram.write(RING_AT + 16 * u64::from(slot), &bytes);
    }

    /// Makes a chain of these buffers available, if there are places for it; its first descriptor last.
    fn offer(&mut self, id: u16, flags: u16, pieces: &[(u64, u32)]) -> bool {
        let places = pieces.len() as u16;
        if places > self.free {
            return false;
        }
        for (step, (gpa, len)) in pieces.iter().enumerate().rev() {
            let mut at = self.next;
            at.step(step as u16, self.size);
            let more = if step + 1 < pieces.len() { NEXT } else { 0 };
            let sense = if at.sense { AVAILABLE } else { USED };
            self.set(at.slot, descriptor(*gpa, *len, id, flags | more | sense));
        }
        self.sent(id, places);
        true
    }

    /// The same by a table of its own.
    fn offer_table(&mut self, id: u16, flags: u16, pieces: &[(u64, u32)], table: u64) -> bool {
        if self.free == 0 {
            return false;
        }
        for (step, (gpa, len)) in (0..).zip(pieces) {
            self.ram.write(table + 16 * step, &descriptor(*gpa, *len, 0, flags));
        }
        let sense = if self.next.sense { AVAILABLE } else { USED };
        self.set(self.next.slot, descriptor(table, 16 * pieces.len() as u32, id, INDIRECT | sense));
        self.sent(id, 1);
        true
    }

    fn sent(&mut self, id: u16, places: u16) {
        self.next.step(places, self.size);
        self.free -= places;
        self.out.push_back((id, places));
    }

    /// Takes what the device has returned: (number, bytes written), in its order.
    fn take_used(&mut self) -> Vec<(u16, u32)> {
        let mut taken = Vec::new();
        while let Some(&(id, places)) = self.out.front() {
            let bytes = self.ram.read(RING_AT + 16 * u64::from(self.used.slot), 16);
            let flags = u16::from_le_bytes([bytes[14], bytes[15]]);
            if (flags & AVAILABLE != 0) != self.used.sense || (flags & USED != 0) != self.used.sense {
                break;
            }
            let len = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
            assert_eq!(u16::from_le_bytes([bytes[12], bytes[13]]), id, "chains come back in order");
            assert_eq!(flags & WRITE != 0, len > 0, "what was written into is said");
            taken.push((id, len));
            self.out.pop_front();
            self.used.step(places, self.size);
            self.free += places;
        }
        taken
    }

    fn wish(&self, place: u16, flags: u16) {
        self.ram.write_u16(self.driver_event(), place);
        self.ram.write_u16(self.driver_event() + 2, flags);
    }

    fn device_wish(&self) -> (u16, u16) {
        (self.ram.read_u16(self.device_event()), self.ram.read_u16(self.device_event() + 2))
    }
}

fn queue(
    driver: &PackedDriver<'_>,
    memory: &Arc<GuestMemory>,
    features: u64,
    base: u16,
    log: Option<Arc<DirtyLog>>,
) -> (Box<Queue>, Notifier) {
    let layout = RingLayout { used_log: log.as_ref().map(|_| 0), ..driver.layout() };
    let mut queue =
        Queue::new(Arc::clone(memory), log, layout, base, Features::new(features)).expect("a possible ring");
    let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    let call = File::from(OwnedFd::from(event));
    let guest = Notifier::from_peer(call.try_clone().expect("a descriptor")).expect("an eventfd");
    queue.call = Some(Notifier::from_peer(call).expect("an eventfd"));
    (Box::new(queue), guest)
}

fn tx_of(driver: &PackedDriver<'_>, memory: &Arc<GuestMemory>, features: u64) -> TxRing {
    let mut ring = TxRing::parked();
    ring.start(queue(driver, memory, features, driver.next.word(), None).0, 12);
    ring
}

fn rx_of(driver: &PackedDriver<'_>, memory: &Arc<GuestMemory>, features: u64) -> RxRing {
    let mut ring = RxRing::parked();
    let merge = Features::new(features).mrg_rxbuf();
    ring.start(queue(driver, memory, features, driver.next.word(), None).0, 12, merge);
    ring
}

/// What happens to a ring by which the guest sends.
#[derive(Clone, Debug)]
enum Step {
    /// The driver sends a frame of so many bytes, cut in so many pieces, by a table or not.
    Send {
        len: usize,
        pieces: usize,
        table: bool,
    },
    /// The device takes up to so many, and refuses the one after `room`.
    Poll {
        max: usize,
        room: usize,
    },
    Flush,
    /// The device leaves the ring, and goes on where it stopped.
    Park,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (20_usize..600, 1_usize..5, any::<bool>())
            .prop_map(|(len, pieces, table)| Step::Send { len, pieces, table }),
        3 => (0_usize..40, 0_usize..40).prop_map(|(max, room)| Step::Poll { max, room }),
        3 => Just(Step::Flush),
        1 => Just(Step::Park),
    ]
}

fn base(size: u16) -> impl Strategy<Value = u16> {
    (0..size, any::<bool>()).prop_map(|(slot, sense)| At { slot, sense }.word())
}

fn size_and_base() -> impl Strategy<Value = (u16, u16)> {
    prop_oneof![Just(1_u16), Just(2), 3_u16..40, Just(64)].prop_flat_map(|size| (Just(size), base(size)))
}

fn cut(gpa: u64, len: usize, pieces: usize) -> Vec<(u64, u32)> {
    let each = (len / pieces).max(1);
    (0..pieces)
        .map(|nth| {
            let begin = nth * each;
            let end = if nth + 1 == pieces { len } else { begin + each };
            (gpa + begin as u64, (end - begin) as u32)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever driver and device do in turn, with rings of any size, over many rounds and across parks: frames
    /// come out whole and in order, and their chains come back in order.
    #[test]
    fn what_a_driver_sends_comes_out_in_order(
        (size, base) in size_and_base(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let mut driver = PackedDriver::new(&ram, size, base);
        let mut ring = tx_of(&driver, &memory, USUAL);
        let (mut sent, mut got, mut returned) = (Vec::new(), Vec::new(), 0);
        for (nth, step) in steps.into_iter().chain([Step::Poll { max: 99, room: 99 }, Step::Flush]).enumerate() {
            match step {
                Step::Send { len, pieces, table } => {
                    let place = 0x2_0000 + (nth as u64 % 120) * 640;
                    let bytes: Vec<u8> = (0..len).map(|at| (at + nth) as u8).collect();
                    // A driver does not write where the device still reads.
                    if driver.out.len() >= 100 {
                        continue;
                    }
                    let pieces = cut(place, len, pieces);
                    let id = (nth % usize::from(size)) as u16;
                    let offered = match table {
                        true => driver.offer_table(id, 0, &pieces, TABLES_AT + 0x100 * (nth as u64 % 120)),
                        false => driver.offer(id, 0, &pieces),
                    };
                    if offered {
                        ram.write(place, &bytes);
                        sent.push(bytes);
                    }
                }
                Step::Poll { max, room } => {
                    let mut left = room;
                    ring.poll(max, |header, frame| {
                        if left == 0 {
                            return Verdict::Refused;
                        }
                        left -= 1;
                        let mut bytes = vec![0; 12 + frame.len()];
                        bytes[..12].copy_from_slice(&header.to_bytes());
                        assert_eq!(frame.copy_to(0, &mut bytes[12..]), frame.len());
                        got.push(bytes);
                        Verdict::Taken
                    }).expect("a driver that keeps the rules");
                }
                Step::Flush => {
                    ring.flush().expect("the ring is there");
                    returned += driver.take_used().len();
                    prop_assert_eq!(returned, got.len(), "what was taken came back, and nothing else");
                }
                Step::Park => {
                    let mut left = ring.queue_mut().take().expect("it runs");
                    left.publish().expect("the ring is there");
                    ring.start(queue(&driver, &memory, USUAL, left.base(), None).0, 12);
                }
            }
        }
        prop_assert!(got.len() <= sent.len());
        prop_assert!(sent.starts_with(&got));
        prop_assert_eq!(got.len(), sent.len(), "all came out in the end");
    }

    /// Frames of any size arrive whole in buffers of any size, over many rounds; what was written is said.
    #[test]
    fn what_a_device_gives_arrives_whole(
        (size, base) in size_and_base(),
        buffers in prop::collection::vec(13_u32..700, 1..60),
        frames in prop::collection::vec(1_usize..2000, 1..60),
        table: bool,
    ) {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let mut driver = PackedDriver::new(&ram, size, base);
        let mut ring = rx_of(&driver, &memory, USUAL);
        let mut lengths = buffers.iter().cycle();
        // The buffers that the device has: places and lengths, oldest first.
        let mut there: VecDeque<(u64, u32)> = VecDeque::new();
        let mut made = 0_u64;
        for (nth, len) in frames.into_iter().enumerate() {
            while driver.free > 0 && there.len() < 200 {
                let (place, len) = (0x2_0000 + (made % 256) * 704, *lengths.next().expect("endless"));
                let id = (made % u64::from(size)) as u16;
                let one = [(place, len)];
                let offered = match table {
                    true => driver.offer_table(id, WRITE, &one, TABLES_AT + 0x2_0000 + 16 * (made % 256)),
                    false => driver.offer(id, WRITE, &one),
                };
                prop_assert!(offered);
                there.push_back((place, len));
                made += 1;
            }
            let frame: Vec<u8> = (0..len).map(|at| (3 * at + nth) as u8).collect();
            let room: u64 = there.iter().map(|(_, len)| u64::from(*len)).sum();
            let pushed = ring.push(&VirtioNetHdr::default(), &[&frame]).expect("a driver that keeps the rules");
            prop_assert_eq!(pushed, 12 + len as u64 <= room);
            ring.flush().expect("the ring is there");
            let used = driver.take_used();
            if !pushed {
                prop_assert!(used.is_empty());
                continue;
            }
            let mut arrived = Vec::new();
            for (_, written) in &used {
                let (place, len) = there.pop_front().expect("a buffer");
                prop_assert!(*written <= len);
                arrived.extend(ram.read(place, *written as usize));
            }
            let header = VirtioNetHdr { num_buffers: used.len() as u16, ..VirtioNetHdr::default() };
            prop_assert_eq!(&arrived[..12], &header.to_bytes()[..]);
            prop_assert_eq!(&arrived[12..], &frame[..]);
        }
    }

    /// CK-2: what changed in guest memory is what was marked, in the own bitmap and in QEMU's log.
    #[test]
    fn the_pages_marked_are_the_pages_written(
        lengths in prop::collection::vec(64_usize..6000, 1..6),
        (size, base) in (Just(600_u16), base(600)),
    ) {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let mut driver = PackedDriver::new(&ram, size, base);
        let (log, file) = log();
        let (queue, _) = queue(&driver, &memory, USUAL | bits::LOG_ALL, base, Some(log));
        let mut ring = RxRing::parked();
        ring.start(queue, 12, true);
        for nth in 0..40_u16 {
            prop_assert!(driver.offer(nth, WRITE, &[(0x2_0f00 + 1600 * u64::from(nth), 1600)]));
        }
        let before = ram.image();
        for len in lengths {
            ring.push(&VirtioNetHdr::default(), &[&vec![0xa5; len]]).expect("a driver that keeps the rules");
        }
        ring.flush().expect("the ring is there");
        ring.want_kick(true).expect("the ring is there");
        ring.want_kick(false).expect("the ring is there");
        let written = changed(&before, &ram.image());
        let own: BTreeSet<u64> = drain(&memory).into_iter().collect();
        prop_assert!(written.is_subset(&own), "unmarked: {:?}", written.difference(&own));
        prop_assert_eq!(&own, &logged(&file), "the log names the same pages");
        prop_assert!(own.len() <= written.len() + 2, "no page beyond those written");
    }

    /// RB-1 and CK-2: whatever the guest wrote, the device ends with frames or a fault, and every byte that it
    /// changed lies on a page that it marked.
    #[test]
    fn no_ring_makes_the_device_panic_or_write_unmarked(
        descriptors in prop::collection::vec(any_descriptor(), 8),
        table in prop::collection::vec(any_descriptor(), 8),
        base in base(8),
        features in prop_oneof![Just(USUAL), Just(USUAL | bits::EVENT_IDX), Just(bits::RING_PACKED)],
        frame in prop::collection::vec(any::<u8>(), 0..3000),
        receive: bool,
    ) {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let driver = PackedDriver::new(&ram, 8, base);
        for (slot, bytes) in (0..).zip(descriptors) {
            driver.set(slot, bytes);
        }
        for (index, bytes) in (0..).zip(table) {
            ram.write(TABLES_AT + 16 * index, &bytes);
        }
        let before = ram.image();
        if receive {
            let mut ring = rx_of(&driver, &memory, features);
            for _ in 0..100 {
                if ring.push(&VirtioNetHdr::default(), &[&frame]) != Ok(true) {
                    break;
                }
                ring.flush().expect("the ring itself is sound");
            }
            ring.want_kick(true).expect("the ring itself is sound");
        } else {
            let mut ring = tx_of(&driver, &memory, features);
            let mut out = vec![0; 70_000];
            let _outcome = ring.poll(100, |_, bytes| {
                assert_eq!(bytes.copy_to(0, &mut out), bytes.len());
                Verdict::Taken
            });
            ring.flush().expect("the ring itself is sound");
        }
        let marked: BTreeSet<u64> = drain(&memory).into_iter().collect();
        let written = changed(&before, &ram.image());
        prop_assert!(written.is_subset(&marked), "unmarked: {:?}", written.difference(&marked));
    }
}

fn any_descriptor() -> impl Strategy<Value = [u8; 16]> {
    let gpa = prop_oneof![
        0x2_0000_u64..0x3_0000,
        Just(TABLES_AT),
        (END - 64)..(END + 64),
        0x7_ffc0_u64..0x8_0040,
        any::<u64>()
    ];
    let len = prop_oneof![1_u32..64, 0_u32..5000, Just(32), any::<u32>()];
    let kind = prop_oneof![3 => Just(0), 1 => Just(NEXT), 3 => Just(WRITE), 1 => Just(WRITE | NEXT), 2 => Just(INDIRECT), 1 => any::<u16>()];
    let sense = prop_oneof![Just(AVAILABLE), Just(USED)];
    (gpa, len, any::<u16>(), kind, sense)
        .prop_map(|(gpa, len, id, kind, sense)| descriptor(gpa, len, id, kind | sense))
}

struct Case {
    name: &'static str,
    features: u64,
    /// Descriptors of the ring from 0 on: address, length, flags.
    ring: &'static [(u64, u32, u16)],
    /// Of the table at `TABLES_AT`.
    table: &'static [(u64, u32, u16)],
    fault: RingFault,
}

const fn case(
    name: &'static str,
    ring: &'static [(u64, u32, u16)],
    table: &'static [(u64, u32, u16)],
    fault: RingFault,
) -> Case {
    Case { name, features: USUAL, ring, table, fault }
}

const fn outside(gpa: u64, len: u32) -> RingFault {
    RingFault::OutOfMemoryMap { gpa: Gpa(gpa), len }
}

const BROKEN: &[Case] = &[
    case("a chain without an end", &[(0x2_0000, 64, NEXT); 4], &[], RingFault::ChainTooLong { limit: 4 }),
    case("an empty buffer", &[(0x2_0000, 0, 0)], &[], RingFault::EmptyBuffer),
    case("a buffer to write into", &[(0x2_0000, 64, WRITE)], &[], RingFault::WrongDirection),
    case("a buffer in a hole", &[(0x10_0000, 64, 0)], &[], outside(0x10_0000, 64)),
    case("a buffer across the end", &[(END - 32, 64, 0)], &[], outside(END - 32, 64)),
    case("a buffer across the end of the numbers", &[(u64::MAX - 8, 64, 0)], &[], outside(u64::MAX - 8, 64)),
    case("no room for the header", &[(0x2_0000, 11, 0)], &[], RingFault::HeaderTooShort { len: 11 }),
    case(
        "a frame of half a megabyte",
        &[(0x0, 0x4_0000, NEXT), (0x0, 0x4_0000, 0)],
        &[],
        RingFault::FrameTooLong { len: 0x8_0000 },
    ),
    Case {
        name: "a table without the feature",
        features: bits::RING_PACKED | bits::VERSION_1,
        ring: &[(TABLES_AT, 16, INDIRECT)],
        table: &[(0x2_0000, 64, 0)],
        fault: RingFault::IndirectNotNegotiated,
    },
    case(
        "a table inside a table",
        &[(TABLES_AT, 16, INDIRECT)],
        &[(TABLES_AT, 16, INDIRECT)],
        RingFault::NestedIndirect,
    ),
    case("a table with a next", &[(TABLES_AT, 16, INDIRECT | NEXT)], &[], RingFault::IndirectWithNext),
    case(
        "a table behind a buffer",
        &[(0x2_0000, 64, NEXT), (TABLES_AT, 16, INDIRECT)],
        &[(0x2_0000, 64, 0)],
        RingFault::IndirectWithNext,
    ),
    case("a table of no bytes", &[(TABLES_AT, 0, INDIRECT)], &[], RingFault::IndirectSize { len: 0 }),
    case("a table of odd bytes", &[(TABLES_AT, 24, INDIRECT)], &[], RingFault::IndirectSize { len: 24 }),
    case(
        "a table that is huge",
        &[(TABLES_AT, 0x1_0000, INDIRECT)],
        &[],
        RingFault::IndirectSize { len: 0x1_0000 },
    ),
    case("a table in a hole", &[(0x10_0000, 32, INDIRECT)], &[], outside(0x10_0000, 32)),
    case(
        "a table across the end of the numbers",
        &[(u64::MAX - 15, 32, INDIRECT)],
        &[],
        outside(u64::MAX - 15, 32),
    ),
];

/// RB-1: each broken chain is its own counted fault, and nothing of it reaches the sink.
#[test]
fn a_broken_chain_is_a_typed_fault() {
    for case in BROKEN {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let driver = PackedDriver::new(&ram, 4, SENSE);
        for (slot, &(gpa, len, flags)) in (0..).zip(case.ring) {
            driver.set(slot, descriptor(gpa, len, 0, flags | AVAILABLE));
        }
        for (index, &(gpa, len, flags)) in (0..).zip(case.table) {
            ram.write(TABLES_AT + 16 * index, &descriptor(gpa, len, 0, flags));
        }
        let mut ring = tx_of(&driver, &memory, case.features);
        let outcome = ring.poll(8, |_, _| panic!("{}: a frame came out", case.name));
        assert_eq!(outcome, Err(case.fault), "{}", case.name);
    }
}

/// RB-1: a chain that runs into descriptors that the device has already is a fault, not a frame twice.
#[test]
fn a_chain_over_others_that_were_not_returned_is_a_fault() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let driver = PackedDriver::new(&ram, 4, SENSE);
    for slot in 0..3 {
        driver.set(slot, descriptor(0x2_0000, 64, slot, AVAILABLE));
    }
    driver.set(3, descriptor(0x2_0000, 64, 3, NEXT | AVAILABLE));
    let mut ring = tx_of(&driver, &memory, USUAL);
    let mut frames = 0;
    let outcome = ring.poll(8, |_, _| {
        frames += 1;
        Verdict::Taken
    });
    assert_eq!((frames, outcome), (3, Err(RingFault::ChainTooLong { limit: 1 })));
}

/// RB-1: a ring that does not lie in guest memory, or cannot go on where it is said to, is refused.
#[test]
fn an_impossible_ring_is_refused() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let good = PackedDriver::new(&ram, 5, 0).layout();
    let start =
        |layout, base| Queue::new(Arc::clone(&memory), None, layout, base, Features::new(USUAL)).map(|_| ());
    start(good, SENSE | 4).expect("five entries are possible");
    assert!(matches!(start(good, 5), Err(LayoutError::Base { base: 5, size: 5 })));
    for size in [0, 8192] {
        assert!(matches!(start(RingLayout { size, ..good }, 0), Err(LayoutError::Size(_))), "{size}");
    }
    let end = FRONTEND + END;
    let places = [
        RingLayout { descriptors: end - 16, ..good },
        RingLayout { descriptors: good.descriptors + 8, ..good },
        RingLayout { available: end - 2, ..good },
        RingLayout { available: good.available + 2, ..good },
        RingLayout { used: u64::MAX - 8, ..good },
    ];
    for layout in places {
        assert!(matches!(start(layout, 0), Err(LayoutError::Place { .. })), "{layout:?}");
    }
}

#[test]
fn a_burst_is_notified_once_and_only_when_the_guest_asked() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    // The ring wraps in what follows.
    let mut driver = PackedDriver::new(&ram, 8, SENSE | 5);
    let (queue, guest) = queue(&driver, &memory, USUAL | bits::EVENT_IDX, driver.next.word(), None);
    let mut ring = RxRing::parked();
    ring.start(queue, 12, true);
    let mut burst = |count: u16, driver: &mut PackedDriver<'_>| {
        for nth in 0..count {
            assert!(driver.offer(nth, WRITE, &[(0x2_0000 + 2048 * u64::from(nth), 2048)]));
            assert_eq!(ring.push(&VirtioNetHdr::default(), &[&[0; 64]]), Ok(true));
        }
        ring.flush().expect("the ring is there");
        assert_eq!(driver.take_used().len(), usize::from(count));
        guest.clear()
    };
    driver.wish(0, 0);
    assert!(burst(2, &mut driver), "always");
    driver.wish(0, 1);
    assert!(!burst(2, &mut driver), "never");
    // Nine are behind: the next one lies at 1, in the other sense.
    driver.wish(3, 2);
    assert!(!burst(2, &mut driver), "not yet: places 1 and 2");
    assert!(burst(1, &mut driver), "now");
    assert!(!burst(3, &mut driver), "it lies behind");
    driver.wish(SENSE | 1, 2);
    assert!(burst(4, &mut driver), "across the end of the ring");
    assert!(!burst(0, &mut driver), "nothing was shown");
}

#[test]
fn a_core_that_wants_to_sleep_learns_of_work_that_arrived() {
    for (features, wish) in [(USUAL, (0, 0)), (USUAL | bits::EVENT_IDX, (SENSE | 3, 2))] {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let mut driver = PackedDriver::new(&ram, 8, SENSE | 3);
        let mut ring = tx_of(&driver, &memory, features);
        assert_eq!(ring.want_kick(false), Ok(false));
        assert_eq!(driver.device_wish().1, 1, "no notifications while polling");
        assert_eq!(ring.want_kick(true), Ok(false));
        assert_eq!(driver.device_wish(), wish);
        assert!(driver.offer(0, 0, &[(0x2_0000, 64)]));
        assert_eq!(ring.want_kick(true), Ok(true), "it must not sleep now");
    }
}

/// RB-1, CK-2: of a guest that offers again what it has not been shown as used no more is taken than its ring has.
#[test]
fn chains_are_not_taken_again_before_they_are_shown() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let at = At { slot: 0, sense: true };
    let driver = PackedDriver { ram: &ram, size: 2, next: at, used: at, free: 2, out: VecDeque::new() };
    (0..2).for_each(|slot| driver.set(slot, descriptor(0x2_0000, 64, slot, AVAILABLE)));
    let mut ring = tx_of(&driver, &memory, USUAL);
    let mut taken = 0;
    let outcome = ring.poll(8, |_, _| {
        driver.set(taken % 2, descriptor(0x2_0000, 64, taken % 2, USED));
        taken += 1;
        Verdict::Taken
    });
    assert_eq!(outcome, Ok(2), "the ring goes round once");
    ring.flush().expect("the ring itself is sound");
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
    let over = AtomicBool::new(false);
    let variants = [
        descriptor(0x2_0000, 64, 0, AVAILABLE),
        descriptor(TABLES_AT, 16, 0, INDIRECT | AVAILABLE),
        descriptor(u64::MAX, u32::MAX, 7, NEXT | AVAILABLE),
        descriptor(END - 8, 64, 1, WRITE | AVAILABLE),
        descriptor(0x7_fff0, 64, 0, AVAILABLE),
    ];
    ram.write(TABLES_AT, &descriptor(0x2_0000, 64, 0, 0));
    let (mut frames, mut faults) = (0, 0);
    std::thread::scope(|scope| {
        let (ram, over) = (&ram, &over);
        let _end = RaiseOnDrop(over);
        scope.spawn(move || {
            let at = At { slot: 0, sense: true };
            let liar = PackedDriver { ram, size: 1, next: at, used: at, free: 1, out: VecDeque::new() };
            while !over.load(Ordering::Relaxed) {
                for variant in variants {
                    liar.set(0, variant);
                }
            }
        });
        let at = At { slot: 0, sense: true };
        let driver = PackedDriver { ram, size: 1, next: at, used: at, free: 1, out: VecDeque::new() };
        let deadline = Instant::now() + Duration::from_secs(60);
        while frames < 100 || faults < 100 {
            assert!(Instant::now() < deadline, "{frames} frames, {faults} faults");
            let mut ring = tx_of(&driver, &memory, USUAL);
            let outcome = ring.poll(1, |_, bytes| {
                let mut out = [0; 256];
                assert_eq!(bytes.copy_to(0, &mut out), bytes.len());
                frames += 1;
                Verdict::Taken
            });
            faults += usize::from(outcome.is_err());
            ring.flush().expect("the ring itself is sound");
        }
    });
}

/// OC-2: as with split rings. The driver checks the order.
#[test]
fn buffers_that_are_kept_back_come_back_later() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = PackedDriver::new(&ram, 7, SENSE | 5);
    let mut ring = tx_of(&driver, &memory, USUAL);
    for round in 0..20 {
        for nth in 0..3 {
            assert!(driver.offer((3 * round + nth) % 7, 0, &[(0x2_0000, 64)]));
        }
        assert_eq!(ring.poll(32, |_, _| Verdict::Taken), Ok(3));
        ring.flush_but(2).expect("the ring is there");
        assert_eq!(driver.take_used().len(), if round == 0 { 1 } else { 3 });
        ring.flush_but(2).expect("the ring is there");
        ring.flush_but(9).expect("the ring is there");
        assert!(driver.take_used().is_empty(), "nothing more is shown");
    }
    ring.flush().expect("the ring is there");
    assert_eq!(driver.take_used().len(), 2);
}
