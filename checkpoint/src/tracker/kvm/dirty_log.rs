//! By KVM's dirty log.

use super::{KVMIO, SLOTS, Slot, fault, report};
use crate::pages::PageSet;
use crate::tracker::{DirtyTracker, ScanStats, TrackError};
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

nix::ioctl_readwrite!(clear_dirty_log, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Reads the log of a machine whose slots have one.
pub(super) struct KvmLog {
    vm: Arc<VmFd>,
    /// Whether KVM leaves it to us to protect anew what it reports.
    manual: bool,
}

impl KvmLog {
    pub(super) fn new(vm: Arc<VmFd>, manual: bool) -> Result<Self, TrackError> {
        if manual {
            let args = [u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE), 0, 0, 0];
            let request =
                kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, args, ..Default::default() };
            vm.enable_cap(&request).map_err(|error| fault("protect KVM's log by hand")(error.into()))?;
        }
        Ok(Self { vm, manual })
    }

    /// Takes the pages of the bitmap out of the log and protects them. What is written to them from now on is
    /// logged again; what was written since the bitmap was read is in them all the same, as they are read later.
    fn clear(&self, slot: &Slot, bitmap: &mut [u64]) -> Result<(), TrackError> {
        let mut request = kvm_clear_dirty_log {
            slot: slot.number,
            num_pages: u32::try_from(slot.pages).expect("the slots are small"),
            first_page: 0,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_mut_ptr().cast() },
        };
        // SAFETY: the argument is the structure that this request reads; the bitmap has a bit for each page of the
        // slot and outlives the call.
        let cleared = unsafe { clear_dirty_log(self.vm.as_raw_fd(), &raw mut request) };
        cleared.map(drop).map_err(|errno| fault("clear KVM's log")(errno.into()))
    }
}

impl DirtyTracker for KvmLog {
    fn collect(&mut self, into: &mut PageSet) -> Result<ScanStats, TrackError> {
        let began = Instant::now();
        let mut found = PageSet::with_capacity(into.capacity());
        for slot in &SLOTS {
            let mut bitmap = self
                .vm
                .get_dirty_log(slot.number, slot.bytes() as usize)
                .map_err(|error| fault("read KVM's log")(error.into()))?;
            if self.manual {
                self.clear(slot, &mut bitmap)?;
            }
            let written = |nth: &u64| bitmap[(nth / 64) as usize] >> (nth % 64) & 1 == 1;
            (0..slot.pages).filter(written).filter_map(|nth| slot.page(nth)).for_each(|page| {
                found.insert(page);
            });
        }
        Ok(report(&found, into, began))
    }
}
