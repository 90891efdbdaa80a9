//! A split virtqueue as the device sees it: descriptors, available ring and used ring apart.
//!
//! The available index alone says where to go on: after a park it equals the used index. Every write to the
//! used ring marks the own dirty bitmap (CK-2) and, when asked for, QEMU's log.

use super::chain::{Chain, DESCRIPTOR_BYTES, DescriptorTable, Direction, LOOK, Seen};
use super::fault::RingFault;
use super::queue::{LayoutError, MAX_RING_SIZE, Place, RingLayout, Virtqueue};
use crate::atomic::{Ordering, fence};
use crate::features::{Features, bits};
use crate::memory::{DirtyLog, Gpa, GuestMemory};

const AVAILABLE_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;
const USED_ELEMENT_BYTES: usize = 8;

/// A split virtqueue.
#[derive(Debug)]
pub(super) struct SplitQueue {
    table: DescriptorTable,
    available: Place,
    used: Place,
    used_log: Option<Gpa>,
    size: u16,
    event_idx: bool,
    /// Next entry of the available ring to look at.
    look: u16,
    /// Next one to take.
    next_available: u16,
    /// The guest's index when it was last read.
    seen_available: u16,
    /// Used index as the guest has been shown it.
    published: u16,
    /// Used elements that the guest has not been shown, as they go to memory.
    pending: Vec<u8>,
    /// Flags of the used ring as last written.
    used_flags: u16,
}

impl SplitQueue {
    /// Prepares a ring that goes on at `base`. Reads the used index from guest memory; when the two
    /// differ, chains were taken and never returned (a device that died): the used index wins, so that
    /// they are taken again.
    pub(super) fn new(
        memory: &GuestMemory,
        layout: RingLayout,
        base: u16,
        features: Features,
    ) -> Result<Self, LayoutError> {
        let RingLayout { size, .. } = layout;
        if !size.is_power_of_two() || size > MAX_RING_SIZE {
            return Err(LayoutError::Size(size));
        }
        let place = |part, address, len, align| Place::find(memory, part, address, len, align);
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
            available,
            used,
            used_log: layout.used_log.map(Gpa),
            size,
            event_idx: features.has(bits::EVENT_IDX),
            look: used_index,
            next_available: used_index,
            seen_available: used_index,
            published: used_index,
            pending: Vec::with_capacity(usize::from(size) * USED_ELEMENT_BYTES),
            used_flags,
        })
    }

    /// Chains that the guest has made available beyond those looked at.
    #[inline]
    fn waiting(&mut self) -> Result<u16, RingFault> {
        let waiting = self.seen_available.wrapping_sub(self.look);
        if waiting > 0 {
            return Ok(waiting);
        }
        // Acquire: the chains were written before the index.
        let seen = self.available.file.load_u16(self.available.offset + 2, Ordering::Acquire)?;
        // Chains that the guest has not been shown as used are still in the ring.
        if seen.wrapping_sub(self.published) > self.size {
            return Err(RingFault::AvailableJump { available: seen, used: self.published, size: self.size });
        }
        self.seen_available = seen;
        Ok(seen.wrapping_sub(self.look))
    }

    /// Reads the heads of the next chains, and has their descriptors fetched.
    #[inline]
    fn heads(&self, count: usize) -> Result<[u16; LOOK], RingFault> {
        let mut heads = [0; LOOK];
        for (ahead, head) in (0..).zip(&mut heads[..count]) {
            let slot = u64::from(self.look.wrapping_add(ahead) & (self.size - 1));
            *head = self.available.file.load_u16(self.available.offset + 4 + 2 * slot, Ordering::Relaxed)?;
        }
        for head in heads[..count].iter().filter(|head| **head < self.size) {
            self.table.prefetch(*head);
        }
        Ok(heads)
    }

    fn guest_wants_notification(&self, old: u16) -> Result<bool, RingFault> {
        if self.event_idx {
            let at = self.available.offset + 4 + 2 * u64::from(self.size);
            let event = self.available.file.load_u16(at, Ordering::Relaxed)?;
            return Ok(passes(event, old, self.published));
        }
        let flags = self.available.file.load_u16(self.available.offset, Ordering::Relaxed)?;
        Ok(flags & AVAILABLE_NO_INTERRUPT == 0)
    }

    fn write_used(&self, at: u64, bytes: &[u8], log: Option<&DirtyLog>) -> Result<(), RingFault> {
        self.used.file.write(self.used.offset + at, bytes)?;
        self.log_used(at, bytes.len() as u64, log);
        Ok(())
    }

    fn store_used(
        &self,
        at: u64,
        value: u16,
        order: Ordering,
        log: Option<&DirtyLog>,
    ) -> Result<(), RingFault> {
        self.used.file.store_u16(self.used.offset + at, value, order)?;
        self.log_used(at, 2, log);
        Ok(())
    }

    fn log_used(&self, at: u64, len: u64, log: Option<&DirtyLog>) {
        if let (Some(log), Some(gpa)) = (log, self.used_log) {
            log.mark(gpa.0.saturating_add(at), len);
        }
    }
}

impl Virtqueue for SplitQueue {
    #[inline]
    fn look(
        &mut self,
        memory: &GuestMemory,
        max: usize,
        direction: Direction,
        seen: &mut Seen,
    ) -> Result<(), RingFault> {
        let count = usize::from(self.waiting()?).min(max);
        let heads = self.heads(count)?;
        for head in &heads[..count] {
            if !seen.has_room() {
                break;
            }
            let begin = seen.segment_count();
            match self.table.walk(memory, *head, direction, seen.begin()) {
                Ok(bytes) => seen.add(*head, 1, begin, bytes),
                Err(fault) => {
                    seen.break_off(begin);
                    return Err(fault);
                }
            }
            self.look = self.look.wrapping_add(1);
        }
        Ok(())
    }

    fn look_again(&mut self) {
        self.look = self.next_available;
    }

    #[inline]
    fn complete(&mut self, chain: &Chain, written: u32) {
        let element = u64::from(chain.id) | u64::from(written) << 32;
        self.pending.extend_from_slice(&element.to_le_bytes());
        self.next_available = self.next_available.wrapping_add(1);
    }

    fn pending(&self) -> usize {
        self.pending.len() / USED_ELEMENT_BYTES
    }

    fn publish(&mut self, kept: usize, log: Option<&DirtyLog>) -> Result<bool, RingFault> {
        let count = self.pending() - kept;
        let slot = usize::from(self.published & (self.size - 1));
        let until_wrap = (usize::from(self.size) - slot).min(count) * USED_ELEMENT_BYTES;
        let (first, wrapped) = self.pending[..count * USED_ELEMENT_BYTES].split_at(until_wrap);
        self.write_used(4 + (slot * USED_ELEMENT_BYTES) as u64, first, log)?;
        if !wrapped.is_empty() {
            self.write_used(4, wrapped, log)?;
        }
        let old = self.published;
        // At most `size` elements are pending, so this does not truncate.
        self.published = old.wrapping_add(count as u16);
        self.pending.drain(..count * USED_ELEMENT_BYTES);
        // Release: the elements are written before the index.
        self.store_used(2, self.published, Ordering::Release, log)?;
        // The index must be visible before the guest's wish is read, or both sides could fall asleep.
        fence(Ordering::SeqCst);
        self.guest_wants_notification(old)
    }

    fn want_kick(&mut self, wanted: bool, log: Option<&DirtyLog>) -> Result<bool, RingFault> {
        if self.event_idx {
            if wanted {
                let at = 4 + (USED_ELEMENT_BYTES as u64) * u64::from(self.size);
                self.store_used(at, self.look, Ordering::Relaxed, log)?;
            }
        } else {
            let flags = if wanted { 0 } else { USED_NO_NOTIFY };
            if flags != self.used_flags {
                self.used_flags = flags;
                self.store_used(0, flags, Ordering::Relaxed, log)?;
            }
        }
        // The wish must be visible before the index is read, or both sides could fall asleep.
        fence(Ordering::SeqCst);
        self.seen_available = self.look;
        Ok(self.waiting()? > 0)
    }

    fn base(&self) -> u16 {
        self.next_available
    }

    fn set_used_log(&mut self, used_log: Option<Gpa>) {
        self.used_log = used_log;
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
