//! Rings against a driver that keeps the rules, and one that does not.

#[path = "../../tests/driver/mod.rs"]
mod driver;

mod malformed;
mod marks;
mod packed;
mod transfer;

use super::{Queue, RingLayout, RxRing, TxRing};
use crate::features::{Features, bits};
use crate::memory::{DirtyLog, FrontendAddress, Gpa, GuestMemory, MemoryFiles, RegionSpec};
use crate::notifier::Notifier;
use driver::{DriverQueue, FRONTEND, GuestRam, REGIONS};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

const USUAL: u64 = bits::VERSION_1 | bits::NET_MRG_RXBUF | bits::INDIRECT_DESC;

fn memory(ram: &GuestRam) -> Arc<GuestMemory> {
    let table: Vec<(RegionSpec, File)> = REGIONS
        .into_iter()
        .map(|(gpa, bytes, offset)| {
            let frontend = FrontendAddress(FRONTEND + gpa);
            (RegionSpec { gpa: Gpa(gpa), bytes, frontend, offset }, ram.descriptor())
        })
        .collect();
    Arc::new(GuestMemory::new(&MemoryFiles::default(), &table).expect("a possible table"))
}

fn layout(driver: &DriverQueue<'_>) -> RingLayout {
    RingLayout {
        size: driver.size,
        descriptors: FRONTEND + driver.at,
        available: FRONTEND + driver.available_gpa(),
        used: FRONTEND + driver.used_gpa(),
        used_log: None,
    }
}

/// A queue and the descriptor by which it notifies the guest.
fn queue(driver: &DriverQueue<'_>, memory: &Arc<GuestMemory>, features: u64) -> (Box<Queue>, Notifier) {
    queue_with_log(driver, memory, features, None, None)
}

fn queue_with_log(
    driver: &DriverQueue<'_>,
    memory: &Arc<GuestMemory>,
    features: u64,
    log: Option<Arc<DirtyLog>>,
    used_log: Option<u64>,
) -> (Box<Queue>, Notifier) {
    let layout = RingLayout { used_log, ..layout(driver) };
    let mut queue = Queue::new(Arc::clone(memory), log, layout, driver.available, Features::new(features))
        .expect("a possible ring");
    let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    let call = File::from(OwnedFd::from(event));
    let guest = Notifier::from_peer(call.try_clone().expect("a descriptor")).expect("an eventfd");
    queue.call = Some(Notifier::from_peer(call).expect("an eventfd"));
    (Box::new(queue), guest)
}

fn tx(driver: &DriverQueue<'_>, memory: &Arc<GuestMemory>, features: u64) -> (TxRing, Notifier) {
    let (queue, guest) = queue(driver, memory, features);
    let mut ring = TxRing::parked();
    ring.start(queue, Features::new(features).header_len());
    (ring, guest)
}

fn rx(driver: &DriverQueue<'_>, memory: &Arc<GuestMemory>, features: u64) -> (RxRing, Notifier) {
    let (queue, guest) = queue(driver, memory, features);
    let mut ring = RxRing::parked();
    let agreed = Features::new(features);
    ring.start(queue, agreed.header_len(), agreed.mrg_rxbuf());
    (ring, guest)
}

/// Pages that Holdfast wrote since the last time, of the one memory file.
fn drain(memory: &GuestMemory) -> Vec<u64> {
    let mut pages = Vec::new();
    memory.files()[0].drain_dirty(&mut |page| pages.push(page));
    pages
}
