//! Whether driver and device can both fall asleep: the rings as they are, against a driver as the specification has
//! it, in every order of their steps and with every value that a load may see.
//!
//! Loom sees the numbers by which the two meet: indices, entries and used elements of a split ring, descriptors of a
//! packed one, and the wishes of both. The descriptor table of a split ring is in plain memory here, and does not
//! change.

use super::{Queue, RingLayout, TxRing, Verdict};
use crate::atomic::{Ordering, fence};
use crate::features::{Features, bits};
use crate::memory::{FrontendAddress, Gpa, GuestMemory, MemoryFile, MemoryFiles, RegionSpec};
use crate::notifier::Notifier;
use loom::thread;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
// Of the test, not of the model.
use std::sync::atomic::AtomicBool;

const SIZE: u16 = 2;
const DESCRIPTORS: u64 = 0;
/// The available ring, or a packed driver's wish.
const AVAILABLE: u64 = 0x1000;
/// The used ring, or a packed device's wish.
const USED: u64 = 0x2000;
const BUFFER: u64 = 0x3000;
const BYTES: u64 = 0x4000;
const FRAME: u32 = 64;

const SPLIT: u64 = bits::VERSION_1;
const PACKED: u64 = bits::VERSION_1 | bits::RING_PACKED;

/// Chains that go through a ring.
const CHAINS: u16 = 2;

/// The driver's side of a ring.
trait Driver: Send + 'static {
    /// Lays a ring out, with no chain available.
    fn new(file: &Arc<MemoryFile>, event_idx: bool) -> Self;
    /// Makes the next chain available; whether the device is to be kicked.
    fn offer(&mut self) -> bool;
    /// Asks to be told of the next chain that comes back; whether it is back already.
    fn arm(&mut self) -> bool;
    /// Takes it, and asks not to be told.
    fn take(&mut self);
}

/// What drivers do with the numbers that loom sees.
struct Numbers(Arc<MemoryFile>);

impl Numbers {
    fn load(&self, offset: u64, order: Ordering) -> u64 {
        self.0.modelled().load(offset, order).expect("a number that was named")
    }

    fn store(&self, offset: u64, value: u64, order: Ordering) {
        assert!(self.0.modelled().store(offset, value, order), "a number that was named");
    }
}

/// Virtio 1.1, 2.6.
struct Split {
    numbers: Numbers,
    event_idx: bool,
    offered: u16,
    taken: u16,
}

const NO_INTERRUPT: u64 = 1;
const NO_NOTIFY: u64 = 1;
const USED_EVENT: u64 = AVAILABLE + 4 + 2 * SIZE as u64;
const AVAILABLE_EVENT: u64 = USED + 4 + 8 * SIZE as u64;

impl Split {
    const fn entry(slot: u16) -> u64 {
        AVAILABLE + 4 + 2 * slot as u64
    }

    const fn element(slot: u16) -> u64 {
        USED + 4 + 8 * slot as u64
    }
}

impl Driver for Split {
    fn new(file: &Arc<MemoryFile>, event_idx: bool) -> Self {
        for slot in 0..SIZE {
            let at = DESCRIPTORS + 16 * u64::from(slot);
            file.write(at, &BUFFER.to_le_bytes()).expect("inside");
            file.write(at + 8, &u64::from(FRAME).to_le_bytes()).expect("inside");
            // No descriptor that there is.
            file.modelled().name(Self::entry(slot), u16::MAX.into());
            file.modelled().name(Self::element(slot), u64::MAX);
        }
        for number in [AVAILABLE, AVAILABLE + 2, USED_EVENT, USED, USED + 2, AVAILABLE_EVENT] {
            file.modelled().name(number, 0);
        }
        Self { numbers: Numbers(Arc::clone(file)), event_idx, offered: 0, taken: 0 }
    }

    fn offer(&mut self) -> bool {
        self.numbers.store(Self::entry(self.offered), self.offered.into(), Ordering::Relaxed);
        self.offered += 1;
        self.numbers.store(AVAILABLE + 2, self.offered.into(), Ordering::Release);
        fence(Ordering::SeqCst);
        match self.event_idx {
            true => self.numbers.load(AVAILABLE_EVENT, Ordering::Relaxed) + 1 == u64::from(self.offered),
            false => self.numbers.load(USED, Ordering::Relaxed) & NO_NOTIFY == 0,
        }
    }

    fn arm(&mut self) -> bool {
        match self.event_idx {
            true => self.numbers.store(USED_EVENT, self.taken.into(), Ordering::Relaxed),
            false => self.numbers.store(AVAILABLE, 0, Ordering::Relaxed),
        }
        fence(Ordering::SeqCst);
        self.numbers.load(USED + 2, Ordering::Acquire) != u64::from(self.taken)
    }

    fn take(&mut self) {
        let element = self.numbers.load(Self::element(self.taken), Ordering::Relaxed);
        assert_eq!(element, u64::from(self.taken), "what came back is there before it is shown");
        self.taken += 1;
        if !self.event_idx {
            self.numbers.store(AVAILABLE, NO_INTERRUPT, Ordering::Relaxed);
        }
    }
}

/// Virtio 1.1, 2.7. Chains go through the ring once, so that the sense of flags is that of the first round.
struct Packed {
    numbers: Numbers,
    event_idx: bool,
    offered: u16,
    taken: u16,
}

const SENSE: u64 = 1 << 15;
const AVAILABLE_FLAG: u64 = 1 << 7 << 48;
const USED_FLAG: u64 = 1 << 15 << 48;
const ENABLE: u64 = 0;
const DISABLE: u64 = 1;
const AT_PLACE: u64 = 2;

impl Packed {
    const fn address(slot: u16) -> u64 {
        DESCRIPTORS + 16 * slot as u64
    }

    const fn word(slot: u16) -> u64 {
        Self::address(slot) + 8
    }

    fn is_back(&self, slot: u16) -> bool {
        let both = AVAILABLE_FLAG | USED_FLAG;
        self.numbers.load(Self::word(slot), Ordering::Acquire) & both == both
    }
}

impl Driver for Packed {
    fn new(file: &Arc<MemoryFile>, event_idx: bool) -> Self {
        for slot in 0..SIZE {
            // Nowhere in guest memory.
            file.modelled().name(Self::address(slot), u64::MAX);
            file.modelled().name(Self::word(slot), 0);
        }
        [AVAILABLE, AVAILABLE + 2, USED, USED + 2]
            .into_iter()
            .for_each(|number| file.modelled().name(number, 0));
        Self { numbers: Numbers(Arc::clone(file)), event_idx, offered: 0, taken: 0 }
    }

    fn offer(&mut self) -> bool {
        self.numbers.store(Self::address(self.offered), BUFFER, Ordering::Relaxed);
        let word = u64::from(FRAME) | u64::from(self.offered) << 32 | AVAILABLE_FLAG;
        self.numbers.store(Self::word(self.offered), word, Ordering::Release);
        let place = u64::from(self.offered) | SENSE;
        self.offered += 1;
        fence(Ordering::SeqCst);
        // A driver reads both in one access: a place that is newer than its flags does no harm.
        match self.numbers.load(USED + 2, Ordering::Acquire) {
            AT_PLACE => self.numbers.load(USED, Ordering::Relaxed) == place,
            flags => flags == ENABLE,
        }
    }

    fn arm(&mut self) -> bool {
        if self.event_idx {
            self.numbers.store(AVAILABLE, u64::from(self.taken) | SENSE, Ordering::Relaxed);
        }
        let flags = if self.event_idx { AT_PLACE } else { ENABLE };
        self.numbers.store(AVAILABLE + 2, flags, Ordering::Release);
        fence(Ordering::SeqCst);
        self.is_back(self.taken)
    }

    fn take(&mut self) {
        self.taken += 1;
        self.numbers.store(AVAILABLE + 2, DISABLE, Ordering::Relaxed);
    }
}

/// An eventfd, by both ends.
fn event() -> (Notifier, Notifier) {
    let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    let file = File::from(OwnedFd::from(event));
    let other = Notifier::from_peer(file.try_clone().expect("a descriptor")).expect("an eventfd");
    (Notifier::from_peer(file).expect("an eventfd"), other)
}

/// A ring, its driver, and where the driver is told.
fn world<D: Driver>(features: u64, offered: u16) -> (TxRing, D, Notifier) {
    let features = Features::new(features);
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(BYTES).expect("room for guest memory");
    let region = RegionSpec { gpa: Gpa(0), bytes: BYTES, frontend: FrontendAddress(0), offset: 0 };
    let memory = GuestMemory::new(&MemoryFiles::default(), &[(region, file)]).expect("a possible table");
    let mut driver = D::new(&memory.files()[0], features.has(bits::EVENT_IDX));
    for _ in 0..offered {
        driver.offer();
    }
    let layout =
        RingLayout { size: SIZE, descriptors: DESCRIPTORS, available: AVAILABLE, used: USED, used_log: None };
    let base = if features.has(bits::RING_PACKED) { SENSE as u16 } else { 0 };
    let mut queue = Queue::new(Arc::new(memory), None, layout, base, features).expect("a possible ring");
    let (call, told) = event();
    queue.call = Some(call);
    let mut ring = TxRing::parked();
    ring.start(Box::new(queue), features.header_len());
    (ring, driver, told)
}

fn take(ring: &mut TxRing, max: usize) -> usize {
    let taken = ring.poll(max, |_, _| Verdict::Taken).expect("a driver that keeps the rules");
    ring.flush().expect("a sound ring");
    taken
}

/// Chains come back one by one; a driver that has gone to sleep before the last one is told.
fn a_driver_that_sleeps_is_told<D: Driver>(features: u64) {
    loom::model(move || {
        let (mut ring, mut driver, told) = world::<D>(features, CHAINS);
        let device = thread::spawn(move || (0..CHAINS).for_each(|_| assert_eq!(take(&mut ring, 1), 1)));
        for back in 0..CHAINS {
            // What it was told before it looked does not count.
            told.clear();
            if !driver.arm() {
                device.join().expect("it ends");
                assert!(told.clear(), "asleep with {back} chains of {CHAINS}, and not told of more");
                return;
            }
            driver.take();
        }
        device.join().expect("it ends");
    });
}

/// Chains are offered one by one; a device that has gone to sleep before the last one is kicked.
fn a_device_that_sleeps_is_kicked<D: Driver>(features: u64) {
    loom::model(move || {
        let (mut ring, mut driver, _told) = world::<D>(features, 0);
        let (kick, kicked) = event();
        let guest = thread::spawn(move || {
            for _ in 0..CHAINS {
                if driver.offer() {
                    kick.signal();
                }
            }
        });
        let mut taken = 0;
        while taken < usize::from(CHAINS) {
            kicked.clear();
            if !ring.want_kick(true).expect("a sound ring") {
                guest.join().expect("it ends");
                assert!(kicked.clear(), "asleep with {taken} chains of {CHAINS}, and not kicked for more");
                return;
            }
            ring.want_kick(false).expect("a sound ring");
            let found = take(&mut ring, usize::from(CHAINS));
            assert!(found > 0, "there was something");
            taken += found;
        }
        guest.join().expect("it ends");
    });
}

/// The descriptors of a burst are returned first one last, and seen so: who sees that one sees all.
///
/// The driver looks once and does not wait: after a yield loom gives no value that was seen before it. And it is the
/// driver that has a thread of its own, as loom tries a look against the last access to a number: the device's write,
/// and not its look before that.
#[test]
fn a_burst_of_a_packed_ring_is_seen_whole_or_not_at_all() {
    let seen = Arc::new([const { AtomicBool::new(false) }; 2]);
    let outcomes = Arc::clone(&seen);
    loom::model(move || {
        let (mut ring, driver, _told) = world::<Packed>(PACKED, CHAINS);
        let outcomes = Arc::clone(&outcomes);
        let guest = thread::spawn(move || {
            let is_back = driver.is_back(0);
            outcomes[usize::from(is_back)].store(true, Ordering::Relaxed);
            let all = (1..CHAINS).all(|slot| driver.is_back(slot));
            assert!(all || !is_back, "the first of a burst is shown last");
        });
        let burst = usize::from(CHAINS);
        assert_eq!(take(&mut ring, burst), burst);
        guest.join().expect("it ends");
    });
    assert!(seen.iter().all(|one| one.load(Ordering::Relaxed)), "too early, and late enough: {seen:?}");
}

#[test]
fn a_driver_of_a_split_ring_is_told() {
    a_driver_that_sleeps_is_told::<Split>(SPLIT);
}

#[test]
fn a_driver_of_a_split_ring_with_events_is_told() {
    a_driver_that_sleeps_is_told::<Split>(SPLIT | bits::EVENT_IDX);
}

#[test]
fn a_driver_of_a_packed_ring_is_told() {
    a_driver_that_sleeps_is_told::<Packed>(PACKED);
}

#[test]
fn a_driver_of_a_packed_ring_with_events_is_told() {
    a_driver_that_sleeps_is_told::<Packed>(PACKED | bits::EVENT_IDX);
}

#[test]
fn a_device_of_a_split_ring_is_kicked() {
    a_device_that_sleeps_is_kicked::<Split>(SPLIT);
}

#[test]
fn a_device_of_a_split_ring_with_events_is_kicked() {
    a_device_that_sleeps_is_kicked::<Split>(SPLIT | bits::EVENT_IDX);
}

#[test]
fn a_device_of_a_packed_ring_is_kicked() {
    a_device_that_sleeps_is_kicked::<Packed>(PACKED);
}

#[test]
fn a_device_of_a_packed_ring_with_events_is_kicked() {
    a_device_that_sleeps_is_kicked::<Packed>(PACKED | bits::EVENT_IDX);
}
