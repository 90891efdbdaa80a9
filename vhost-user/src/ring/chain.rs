//! Walking descriptor chains. Each descriptor is read once into an owned value and judged there: the
//! guest may change it meanwhile (RB-1).

use super::fault::RingFault;
use crate::memory::{Gpa, GuestMemory, MemoryFile, Segment};
use std::sync::Arc;

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR_BYTES: u64 = 16;

/// Descriptors in a chain, at most, and so segments, however large the ring or an indirect table is.
pub const MAX_CHAIN: usize = 1024;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Who writes into the buffers of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads what the guest wrote.
    FromGuest,
    /// The device writes for the guest.
    ToGuest,
}

#[derive(Clone, Copy)]
struct Descriptor {
    gpa: Gpa,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    const fn parse(halves: [u64; 2]) -> Self {
        Self {
            gpa: Gpa(halves[0]),
            len: halves[1] as u32,
            flags: (halves[1] >> 32) as u16,
            next: (halves[1] >> 48) as u16,
        }
    }
}

/// The table of descriptors of a split ring.
#[derive(Debug)]
pub(super) struct DescriptorTable {
    pub(super) file: Arc<MemoryFile>,
    pub(super) offset: u64,
    pub(super) size: u16,
    pub(super) indirect: bool,
}

impl DescriptorTable {
    /// Walks the chain that begins at `head`, appends its buffers to `segments`, and returns its bytes.
    ///
    /// Bound: `size` descriptors plus one indirect table of at most [`MAX_CHAIN`]; no allocation as
    /// long as `segments` has room for [`MAX_CHAIN`] more.
    pub(super) fn walk(
        &self,
        memory: &GuestMemory,
        head: u16,
        direction: Direction,
        segments: &mut Vec<Segment>,
    ) -> Result<u64, RingFault> {
        let begin = segments.len();
        let mut bytes = 0;
        let mut index = head;
        for _ in 0..self.size {
            if index >= self.size {
                return Err(RingFault::IndexOutOfTable { index, size: self.size });
            }
            let at = self.offset + u64::from(index) * DESCRIPTOR_BYTES;
            let descriptor = Descriptor::parse(self.file.load_16_bytes(at)?);
            if descriptor.flags & INDIRECT != 0 {
                return Ok(bytes + self.walk_indirect(memory, descriptor, direction, begin, segments)?);
            }
            bytes += add(memory, descriptor, direction, begin, segments)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(bytes);
            }
            index = descriptor.next;
        }
        Err(RingFault::ChainTooLong { limit: self.size })
    }

    fn walk_indirect(
        &self,
        memory: &GuestMemory,
        table: Descriptor,
        direction: Direction,
        begin: usize,
        segments: &mut Vec<Segment>,
    ) -> Result<u64, RingFault> {
        if !self.indirect {
            return Err(RingFault::IndirectNotNegotiated);
        }
        if table.flags & NEXT != 0 {
            return Err(RingFault::IndirectWithNext);
        }
        let entries = u64::from(table.len) / DESCRIPTOR_BYTES;
        let broken = u64::from(table.len) % DESCRIPTOR_BYTES != 0;
        if broken || entries == 0 || entries > MAX_CHAIN as u64 {
            return Err(RingFault::IndirectSize { len: table.len });
        }
        if table.gpa.0.checked_add(u64::from(table.len)).is_none() {
            return Err(RingFault::OutOfMemoryMap { gpa: table.gpa, len: table.len });
        }
        let size = entries as u16;
        let mut bytes = 0;
        let mut index = 0;
        for _ in 0..size {
            if index >= size {
                return Err(RingFault::IndexOutOfTable { index, size });
            }
            let at = Gpa(table.gpa.0 + u64::from(index) * DESCRIPTOR_BYTES);
            let halves = memory
                .load_16_bytes(at)
                .ok_or(RingFault::OutOfMemoryMap { gpa: table.gpa, len: table.len })?;
            let descriptor = Descriptor::parse(halves);
            if descriptor.flags & INDIRECT != 0 {
                return Err(RingFault::NestedIndirect);
            }
            bytes += add(memory, descriptor, direction, begin, segments)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(bytes);
            }
            index = descriptor.next;
        }
        Err(RingFault::ChainTooLong { limit: size })
    }
}

/// Appends the segments of one buffer: one, unless it crosses into the next region.
fn add(
    memory: &GuestMemory,
    descriptor: Descriptor,
    direction: Direction,
    begin: usize,
    segments: &mut Vec<Segment>,
) -> Result<u64, RingFault> {
    if descriptor.len == 0 {
        return Err(RingFault::EmptyBuffer);
    }
    if (descriptor.flags & WRITE != 0) != (direction == Direction::ToGuest) {
        return Err(RingFault::WrongDirection);
    }
    let outside = RingFault::OutOfMemoryMap { gpa: descriptor.gpa, len: descriptor.len };
    let mut gpa = descriptor.gpa;
    let mut left = descriptor.len;
    while left > 0 {
        if segments.len() - begin == MAX_CHAIN {
            return Err(RingFault::ChainTooLong { limit: MAX_CHAIN as u16 });
        }
        let segment = memory.segment(gpa, left).ok_or(outside)?;
        left -= segment.len();
        // Inside a region, whose end was checked not to wrap.
        gpa = Gpa(gpa.0 + u64::from(segment.len()));
        segments.push(segment);
    }
    Ok(u64::from(descriptor.len))
}
