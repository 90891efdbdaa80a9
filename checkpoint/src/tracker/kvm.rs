//! Which pages a guest wrote, as KVM itself knows it: what the product's tracker is held against (CK-2).
//!
//! Only the process that made a virtual machine may ask KVM about it, and Holdfast's guests are QEMU's. So these
//! trackers are for small machines that the tests make, and no part of the program. There are two:
//!
//! - [`KvmLog`] reads a bitmap for each slot of the guest's memory. KVM protects what it reports in the same step,
//!   or, with manual protection, the tracker says afterwards which pages it took.
//! - [`KvmRing`] reads a ring of entries for each vCPU. A vCPU whose ring is full stops until the ring was emptied.
//!
//! Both know what vCPUs write and nothing else. What the process writes through its own mapping, as QEMU's
//! devices do, they miss; the product's tracker does not, as it asks the kernel's page tables. On the guest's own
//! writes they must agree page for page.
//!
//! ```text
//!  the test                              a process of its own
//! ┌────────────────────┐  lines        ┌───────────────────────────────────────────────┐
//! │ what was written   │ ────────────► │ write, read, collect    machine: two vCPUs    │
//! │ UffdTracker ───────┼─── attached ─►│ memory file, mapped ──► two slots of memory   │
//! │ memory and shadow  │               │ KvmLog or KvmRing  ◄─── KVM                   │
//! └────────────────────┘               └───────────────────────────────────────────────┘
//! ```
#![expect(unsafe_code, reason = "ioctl requests of KVM that nobody wraps, and memory that a guest shares")]

mod dirty_log;
mod dirty_ring;
mod machine;
mod tests;

use super::{DirtyTracker, ScanStats, TrackError};
use crate::pages::{PAGE_SIZE, PageIndex, PageSet};
use dirty_log::KvmLog;
use dirty_ring::KvmRing;
use std::io;
use std::time::Instant;

/// The number that KVM's requests have in common.
const KVMIO: u8 = 0xae;

const PAGE: u64 = PAGE_SIZE as u64;

/// Pages of the memory file.
const PAGES: u64 = SLOTS[0].pages + SLOTS[1].pages;

/// The guest's memory, one below and one above 4 GiB as QEMU lays it out. Neither is a multiple of 64 pages, the word of
/// KVM's bitmaps: a page of the second slot has another bit there than in a set over the file.
const SLOTS: [Slot; 2] = [
    Slot { number: 0, first: 0, pages: 1000, guest_address: 0 },
    Slot { number: 1, first: 1000, pages: 2072, guest_address: 4 << 30 },
];

/// A piece of the guest's memory: `pages` pages of the file from page `first` on.
#[derive(Clone, Copy, Debug)]
struct Slot {
    number: u32,
    first: u64,
    pages: u64,
    guest_address: u64,
}

impl Slot {
    const fn bytes(&self) -> u64 {
        self.pages * PAGE
    }

    /// The page of the file that is page `nth` of the slot.
    fn page(&self, nth: u64) -> Option<PageIndex> {
        (nth < self.pages).then_some(PageIndex(self.first + nth))
    }

    /// The guest's address of an offset in the file, if it lies in this slot.
    fn address_of(&self, offset: u64) -> Option<u64> {
        let within = offset.checked_sub(self.first * PAGE)?;
        (within < self.bytes()).then_some(self.guest_address + within)
    }
}

/// How KVM is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// By its log, which KVM protects anew as it hands it over.
    Log,
    /// By its log, which the tracker protects anew.
    ManualLog,
    /// By a ring for each vCPU.
    Ring,
}

impl Means {
    const ALL: [Self; 3] = [Self::Log, Self::ManualLog, Self::Ring];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|means| format!("{means:?}") == name)
    }
}

/// One of KVM's trackers.
enum KvmTracker {
    Log(KvmLog),
    Ring(KvmRing),
}

impl KvmTracker {
    /// Makes room in the ring of a vCPU that stopped because it is full; gives the entries that were taken out.
    fn make_room(&mut self) -> Result<u64, TrackError> {
        match self {
            Self::Log(_) => Err(fault("make room in a ring")(io::ErrorKind::Unsupported.into())),
            Self::Ring(ring) => ring.drain(),
        }
    }
}

impl DirtyTracker for KvmTracker {
    fn collect(&mut self, into: &mut PageSet) -> Result<ScanStats, TrackError> {
        match self {
            Self::Log(log) => log.collect(into),
            Self::Ring(ring) => ring.collect(into),
        }
    }
}

/// Adds what was found to `into`.
fn report(found: &PageSet, into: &mut PageSet, began: Instant) -> ScanStats {
    into.union_with(found);
    ScanStats { pages: found.len(), runs: found.runs().count() as u64, took: began.elapsed() }
}

/// What KVM refused to the process that this is.
fn fault(what: &'static str) -> impl Fn(io::Error) -> TrackError {
    let pid = nix::unistd::getpid().as_raw();
    move |source| TrackError::Kernel { pid, what, source }
}
