//! By KVM's dirty rings.
//!
//! A vCPU puts an entry into its ring for each page that it writes and that is protected. Whoever empties the ring
//! marks the entries as taken, and asks KVM in one go to protect their pages anew and to use the entries again. What
//! is written between the two is in the page already when that is read, which is later.
//!
//! Some processors keep the last entries to themselves until their vCPU leaves the guest: while one runs, what it
//! wrote may come a call later than it should.

use super::{KVMIO, SLOTS, fault, report};
use crate::pages::{PAGE_SIZE, PageIndex, PageSet};
use crate::tracker::{DirtyTracker, ScanStats, TrackError};
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn, kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

nix::ioctl_none!(reset_dirty_rings, KVMIO, 0xc7);

/// Entries of a ring: as few as KVM takes where processors keep 512 of them to themselves.
pub(super) const ENTRIES: usize = 1024;

const BYTES: usize = ENTRIES * size_of::<kvm_dirty_gfn>();
/// `KVM_DIRTY_GFN_F_DIRTY`: KVM's entry, for us to take.
const WRITTEN: u32 = 1 << 0;
/// `KVM_DIRTY_GFN_F_RESET`: taken, for KVM to use again.
const TAKEN: u32 = 1 << 1;

/// Reads the rings of a machine.
pub(super) struct KvmRing {
    vm: Arc<VmFd>,
    rings: Vec<Ring>,
    /// What was in rings that were emptied since the last call of `collect`.
    kept: PageSet,
}

impl KvmRing {
    /// Gives a machine that has no vCPU yet rings instead of a log.
    pub(super) fn prepare(vm: &VmFd) -> Result<(), TrackError> {
        let args = [BYTES as u64, 0, 0, 0];
        let request = kvm_enable_cap { cap: KVM_CAP_DIRTY_LOG_RING_ACQ_REL, args, ..Default::default() };
        vm.enable_cap(&request).map_err(|error| fault("make KVM's rings")(error.into()))
    }

    /// Reads the rings of all vCPUs of the machine, which is over `pages` pages.
    pub(super) fn new<'a>(
        vm: Arc<VmFd>,
        vcpus: impl Iterator<Item = &'a VcpuFd>,
        pages: u64,
    ) -> Result<Self, TrackError> {
        let rings = vcpus.map(Ring::of).collect::<io::Result<_>>().map_err(fault("map KVM's rings"))?;
        Ok(Self { vm, rings, kept: PageSet::with_capacity(pages) })
    }

    /// Empties all rings and keeps their pages for the next call of `collect`; gives the entries that were taken.
    pub(super) fn drain(&mut self) -> Result<u64, TrackError> {
        let mut taken = 0;
        for ring in &mut self.rings {
            while let Some((slot, nth)) = ring.take() {
                self.kept.insert(page_of(slot, nth)?);
                taken += 1;
            }
        }
        if taken > 0 {
            self.reset()?;
        }
        Ok(taken)
    }

    /// Protects the pages of all entries that were taken, and lets KVM use the entries again.
    fn reset(&self) -> Result<(), TrackError> {
        loop {
            // SAFETY: the request has no argument.
            match unsafe { reset_dirty_rings(self.vm.as_raw_fd()) } {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(fault("reset KVM's rings")(errno.into())),
            }
        }
    }
}

impl DirtyTracker for KvmRing {
    fn collect(&mut self, into: &mut PageSet) -> Result<ScanStats, TrackError> {
        let began = Instant::now();
        self.drain()?;
        let stats = report(&self.kept, into, began);
        self.kept.clear();
        Ok(stats)
    }
}

/// The page of the file that an entry names.
fn page_of(slot: u32, nth: u64) -> Result<PageIndex, TrackError> {
    let slot = SLOTS.iter().find(|known| known.number == slot);
    slot.and_then(|slot| slot.page(nth))
        .ok_or_else(|| fault("understand KVM's ring")(io::ErrorKind::InvalidData.into()))
}

/// The ring of one vCPU.
struct Ring {
    map: MmapRaw,
    /// The entry that comes next.
    next: usize,
}

impl Ring {
    fn of(vcpu: &VcpuFd) -> io::Result<Self> {
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE as u64;
        let map = MmapOptions::new().offset(offset).len(BYTES).map_raw(vcpu)?;
        Ok(Self { map, next: 0 })
    }

    /// Takes the next entry: slot, and page in the slot.
    fn take(&mut self) -> Option<(u32, u64)> {
        let entry = self.map.as_mut_ptr().cast::<kvm_dirty_gfn>().wrapping_add(self.next);
        // SAFETY: `next` is less than the number of entries that are mapped; the kernel writes flags as a whole.
        let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
        if flags.load(Ordering::Acquire) & WRITTEN == 0 {
            return None;
        }
        // SAFETY: as above; the kernel leaves an entry alone from when it is marked written until it is reset.
        let found = unsafe { ((*entry).slot, (*entry).offset) };
        flags.store(TAKEN, Ordering::Release);
        self.next = (self.next + 1) % ENTRIES;
        Some(found)
    }
}
