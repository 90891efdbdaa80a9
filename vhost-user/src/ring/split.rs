//! A split virtqueue as the device sees it, owned by one polling core.
//!
//! ```text
//!   take: next_available --> chain --> (sink | source) --> complete: pending
//!   publish: pending --> used ring, used index (release), one notification
//! ```
//!
//! Chains complete in the order in which they were taken, so that the available index alone says
//! where to go on: after a park it equals the used index. Every write to guest memory marks the own
//! dirty bitmap (CK-2) and, when asked for, QEMU's log. Whatever the guest writes into the ring, the
//! worst outcome is a [`RingFault`] (RB-1).
//!
//! Hot path: no lock, no allocation, no log line; one system call a published burst, and only when
//! the guest asked to be notified.

use super::chain::{DESCRIPTOR_BYTES, DescriptorTable, Direction};
use super::fault::RingFault;
use crate::features::{Features, bits};
use crate::memory::{DirtyLog, FrontendAddress, Gpa, GuestMemory, MemoryFile, Segment};
use crate::notifier::Notifier;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use thiserror::Error;

/// Entries in a ring, at most. QEMU allows 1024.
pub const MAX_RING_SIZE: u16 = 4096;

const AVAILABLE_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;
const USED_ELEMENT_BYTES: usize = 8;

/// What the frontend said of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingLayout {
    /// Entries; a power of two.
    pub size: u16,
    /// Descriptor table, in the frontend's address space.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
    /// Guest physical address under which writes to the used ring are logged, when they are.
    pub used_log: Option<u64>,
}

/// Why a ring cannot be started.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// The number of entries is not possible.
    #[error("peer: a ring of {0} entries; a power of two up to {MAX_RING_SIZE} is possible")]
    Size(u16),
    /// A part of the ring lies outside guest memory or is not aligned.
    #[error("peer: the {part} of a ring at {address:#x} does not lie in guest memory")]
    Place {
        /// Which part.
        part: &'static str,
        /// Its address in the frontend's address space.
        address: u64,
    },
}

#[derive(Debug)]
struct Place {
    file: Arc<MemoryFile>,
    offset: u64,
}

/// A split virtqueue.
#[derive(Debug)]
pub struct SplitQueue {
    memory: Arc<GuestMemory>,
    log: Option<Arc<DirtyLog>>,
    table: DescriptorTable,
    available: Place,
    used: Place,
    used_log: Option<Gpa>,
    size: u16,
    event_idx: bool,
    /// Next entry of the available ring to take.
    next_available: u16,
    /// The guest's index when it was last read.
    seen_available: u16,
    /// Used index as the guest has been shown it.
    published: u16,
    /// Used elements that the guest has not been shown, as they go to memory.
    pending: Vec<u8>,
    /// Flags of the used ring as last written.
    used_flags: u16,
    notify_always: bool,
    pub(crate) call: Option<Notifier>,
    pub(crate) kick: Option<Notifier>,
    pub(crate) error: Option<Notifier>,
}

impl SplitQueue {
    /// Prepares a ring that goes on at `base`. Reads the used index from guest memory; when the two
    /// differ, chains were taken and never returned (a device that died): the used index wins, so that
    /// they are taken again.
    ///
    /// # Errors
    /// When the ring does not lie in guest memory.
    pub fn new(
        memory: Arc<GuestMemory>,
        log: Option<Arc<DirtyLog>>,
        layout: RingLayout,
        base: u16,
        features: Features,
    ) -> Result<Self, LayoutError> {
        let RingLayout { size, .. } = layout;
        if !size.is_power_of_two() || size > MAX_RING_SIZE {
            return Err(LayoutError::Size(size));
        }
        let place = |part, address: u64, len: u64, align: u64| {
            let fault = LayoutError::Place { part, address };
            let Some((file, offset, _)) = memory.locate(FrontendAddress(address), len) else {
                return Err(fault);
            };
            // The mapping begins on a page, so that offsets and addresses are aligned alike.
            if offset % align == 0 { Ok(Place { file, offset }) } else { Err(fault) }
        };
        let entries = u64::from(size);
        let table = place("descriptor table", layout.descriptors, entries * DESCRIPTOR_BYTES, 16)?;
        let available = place("available ring", layout.available, 6 + 2 * entries, 2)?;
        let used = place("used ring", layout.used, 6 + 8 * entries, 4)?;
        let outside = |part, address| move |_| LayoutError::Place { part, address };
        let used_index = used
            .file
            .load_u16(used.offset + 2, Ordering::Acquire)
            .map_err(outside("used ring", layout.used))?;
        let used_flags =
            used.file.load_u16(used.offset, Ordering::Relaxed).map_err(outside("used ring", layout.used))?;
        if used_index != base {
            tracing::warn!(base, used_index, "ring index and used index differ: going on at the used index");
        }
        Ok(Self {
            table: DescriptorTable {
                file: table.file,
                offset: table.offset,
                size,
                indirect: features.has(bits::INDIRECT_DESC),
            },
            memory,
            log,
            available,
            used,
            used_log: layout.used_log.map(Gpa),
            size,
            event_idx: features.has(bits::EVENT_IDX),
            next_available: used_index,
            seen_available: used_index,
            published: used_index,
            pending: Vec::with_capacity(usize::from(size) * USED_ELEMENT_BYTES),
            used_flags,
            notify_always: false,
            call: None,
            kick: None,
            error: None,
        })
    }

    /// Memory that the ring's buffers lie in.
    #[inline]
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Log of a live migration, when one runs.
    #[inline]
    pub(super) fn log(&self) -> Option<&DirtyLog> {
        self.log.as_deref()
    }

    /// Next entry of the available ring to take: what GET_VRING_BASE answers.
    #[must_use]
    pub const fn next_available(&self) -> u16 {
        self.next_available
    }

    /// Switches the log of a live migration on, over or off, while the ring runs.
    pub fn set_log(&mut self, log: Option<Arc<DirtyLog>>, used_log: Option<u64>) {
        self.log = log;
        self.used_log = used_log.map(Gpa);
    }

    /// Notifies the guest whatever it asked for, now or with what is pending. Needed where
    /// notifications may have been lost: at the start, and when the guest's descriptor was exchanged.
    pub fn notify_once(&mut self) {
        if self.pending.is_empty() {
            self.notify();
        } else {
            self.notify_always = true;
        }
    }

    /// Chains that the guest has made available beyond the next `ahead` ones.
    #[inline]
    pub(super) fn available_after(&mut self, ahead: u16) -> Result<u16, RingFault> {
        let waiting = self.seen_available.wrapping_sub(self.next_available);
        if waiting > ahead {
            return Ok(waiting - ahead);
        }
        // Acquire: the chains were written before the index.
        let seen = self.available.file.load_u16(self.available.offset + 2, Ordering::Acquire)?;
        let waiting = seen.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(RingFault::AvailableJump {
                available: seen,
                next: self.next_available,
                size: self.size,
            });
        }
        self.seen_available = seen;
        Ok(waiting.saturating_sub(ahead))
    }

    /// Walks the chain that is `ahead` entries after the next one, appends its buffers to `segments`,
    /// and returns its head and its bytes. The chain stays available until [`Self::complete`].
    #[inline]
    pub(super) fn peek(
        &self,
        ahead: u16,
        direction: Direction,
        segments: &mut Vec<Segment>,
    ) -> Result<(u16, u64), RingFault> {
        let slot = u64::from(self.next_available.wrapping_add(ahead) & (self.size - 1));
        let head = self.available.file.load_u16(self.available.offset + 4 + 2 * slot, Ordering::Relaxed)?;
        Ok((head, self.table.walk(&self.memory, head, direction, segments)?))
    }

    /// Takes the next chain and returns it to the guest with `written` bytes, at the next publish.
    #[inline]
    pub(super) fn complete(&mut self, head: u16, written: u32) -> Result<(), RingFault> {
        if self.pending.len() == usize::from(self.size) * USED_ELEMENT_BYTES {
            self.publish()?;
        }
        self.pending.extend_from_slice(&u32::from(head).to_le_bytes());
        self.pending.extend_from_slice(&written.to_le_bytes());
        self.next_available = self.next_available.wrapping_add(1);
        Ok(())
    }

    /// Shows the guest everything completed since the last time, and notifies it once if it asked.
    pub(crate) fn publish(&mut self) -> Result<(), RingFault> {
        let count = self.pending.len() / USED_ELEMENT_BYTES;
        if count == 0 {
            return Ok(());
        }
        let slot = usize::from(self.published & (self.size - 1));
        let until_wrap = (usize::from(self.size) - slot).min(count) * USED_ELEMENT_BYTES;
        let (first, wrapped) = self.pending.split_at(until_wrap);
        self.write_used(4 + (slot * USED_ELEMENT_BYTES) as u64, first)?;
        if !wrapped.is_empty() {
            self.write_used(4, wrapped)?;
        }
        let old = self.published;
        // At most `size` elements are pending, so this does not truncate.
        self.published = old.wrapping_add(count as u16);
        self.pending.clear();
        // Release: the elements are written before the index.
        self.store_used(2, self.published, Ordering::Release)?;
        // The index must be visible before the guest's wish is read, or both sides could fall asleep.
        fence(Ordering::SeqCst);
        if self.guest_wants_notification(old)? {
            self.notify();
        }
        Ok(())
    }

    fn guest_wants_notification(&mut self, old: u16) -> Result<bool, RingFault> {
        if std::mem::take(&mut self.notify_always) {
            return Ok(true);
        }
        if self.event_idx {
            let at = self.available.offset + 4 + 2 * u64::from(self.size);
            let event = self.available.file.load_u16(at, Ordering::Relaxed)?;
            return Ok(passes(event, old, self.published));
        }
        let flags = self.available.file.load_u16(self.available.offset, Ordering::Relaxed)?;
        Ok(flags & AVAILABLE_NO_INTERRUPT == 0)
    }

    fn notify(&self) {
        if let Some(call) = &self.call {
            call.signal();
        }
    }

    /// Asks the guest to notify (`true`, before the core sleeps) or not to (`false`, while it polls).
    /// Returns whether chains are available now: if so, the core must not sleep.
    ///
    /// # Errors
    /// When the guest's index is not possible.
    pub fn want_kick(&mut self, wanted: bool) -> Result<bool, RingFault> {
        if self.event_idx {
            if wanted {
                let at = 4 + (USED_ELEMENT_BYTES as u64) * u64::from(self.size);
                self.store_used(at, self.next_available, Ordering::Relaxed)?;
            }
        } else {
            let flags = if wanted { 0 } else { USED_NO_NOTIFY };
            if flags != self.used_flags {
                self.used_flags = flags;
                self.store_used(0, flags, Ordering::Relaxed)?;
            }
        }
        // The wish must be visible before the index is read, or both sides could fall asleep.
        fence(Ordering::SeqCst);
        self.seen_available = self.next_available;
        Ok(self.available_after(0)? > 0)
    }

    fn write_used(&self, at: u64, bytes: &[u8]) -> Result<(), RingFault> {
        self.used.file.write(self.used.offset + at, bytes)?;
        self.log_used(at, bytes.len() as u64);
        Ok(())
    }

    fn store_used(&self, at: u64, value: u16, order: Ordering) -> Result<(), RingFault> {
        self.used.file.store_u16(self.used.offset + at, value, order)?;
        self.log_used(at, 2);
        Ok(())
    }

    fn log_used(&self, at: u64, len: u64) {
        if let (Some(log), Some(gpa)) = (&self.log, self.used_log) {
            log.mark(gpa.0.saturating_add(at), len);
        }
    }
}

/// Whether going from `old` to `new` passes `event`: the specification's `vring_need_event`.
const fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_event_is_passed_when_one_of_the_new_entries_is_it(old: u16, count in 0_u16..=4096, event: u16) {
            let expected = (0..count).any(|step| old.wrapping_add(step) == event);
            prop_assert_eq!(passes(event, old, old.wrapping_add(count)), expected);
        }
    }
}
