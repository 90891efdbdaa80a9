//! Walking descriptor chains. Each descriptor is read once into an owned value and judged there: the
//! guest may change it meanwhile (RB-1).
//!
//! Chains are looked at in bursts, ahead of their use, so that the memory they name can be fetched into the
//! cache meanwhile: [`Seen`] holds what was read of them.

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

/// Chains that one look takes, at most.
pub(super) const LOOK: usize = 32;

/// A chain of descriptors that was looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    /// By which the guest knows it: its first descriptor, or the number of its buffer.
    pub(super) id: u16,
    /// Places of the ring that it takes.
    pub(super) places: u16,
    /// Its first segment, and the one behind its last, among all that are seen.
    begin: u32,
    end: u32,
    /// Bytes of its buffers.
    pub(super) bytes: u64,
}

/// Chains that were looked at and not taken yet, the oldest first.
#[derive(Debug)]
pub(super) struct Seen {
    chains: Vec<Chain>,
    segments: Vec<Segment>,
    /// Chains before this one are taken.
    next: usize,
}

impl Seen {
    /// With room for [`MAX_CHAIN`] chains and looks beyond, so that it never grows.
    pub(super) fn new() -> Self {
        Self {
            chains: Vec::with_capacity(MAX_CHAIN + LOOK),
            segments: Vec::with_capacity(2 * MAX_CHAIN + LOOK),
            next: 0,
        }
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.chains.clear();
        self.segments.clear();
        self.next = 0;
    }

    /// How many there are.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.chains.len() - self.next
    }

    /// The one that is `ahead` behind the oldest.
    #[inline]
    pub(super) fn get(&self, ahead: usize) -> Option<Chain> {
        self.chains.get(self.next + ahead).copied()
    }

    /// Segments of the chains from the oldest on, `count` of them, one after the other.
    #[inline]
    pub(super) fn segments(&self, count: usize) -> &[Segment] {
        let chains = &self.chains[self.next..self.next + count];
        match (chains.first(), chains.last()) {
            (Some(first), Some(last)) => &self.segments[first.begin as usize..last.end as usize],
            _ => &[],
        }
    }

    /// Segments of the chain that is `ahead` behind the oldest.
    #[inline]
    pub(super) fn segments_at(&self, ahead: usize) -> &[Segment] {
        match self.chains.get(self.next + ahead) {
            Some(chain) => &self.segments[chain.begin as usize..chain.end as usize],
            None => &[],
        }
    }

    /// The oldest are taken, so many of them.
    #[inline]
    pub(super) fn take(&mut self, count: usize) {
        self.next += count;
        if self.next == self.chains.len() {
            self.clear();
        }
    }

    /// Room for one more chain of any length; what was taken is given up for that.
    #[inline]
    pub(super) fn has_room(&mut self) -> bool {
        let fits = |this: &Self| {
            this.chains.len() < this.chains.capacity()
                && this.segments.len() + MAX_CHAIN <= this.segments.capacity()
        };
        fits(self) || {
            self.give_up_taken();
            fits(self)
        }
    }

    #[cold]
    fn give_up_taken(&mut self) {
        let begin = self.get(0).map_or(self.segments.len() as u32, |oldest| oldest.begin);
        self.segments.drain(..begin as usize);
        self.chains.drain(..self.next);
        self.next = 0;
        for chain in &mut self.chains {
            chain.begin -= begin;
            chain.end -= begin;
        }
    }

    /// Begins a chain; its segments follow.
    #[inline]
    pub(super) fn begin(&mut self) -> &mut Vec<Segment> {
        &mut self.segments
    }

    /// Adds a chain whose segments are those from `begin` on.
    #[inline]
    pub(super) fn add(&mut self, id: u16, places: u16, begin: usize, bytes: u64) {
        let end = self.segments.len() as u32;
        self.chains.push(Chain { id, places, begin: begin as u32, end, bytes });
    }

    /// Forgets segments from `begin` on: their chain is broken.
    pub(super) fn break_off(&mut self, begin: usize) {
        self.segments.truncate(begin);
    }

    /// Segments so far.
    #[inline]
    pub(super) fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// The first segment of each of the last `count` chains: where their bytes begin.
    pub(super) fn heads(&self, count: usize) -> impl Iterator<Item = &Segment> {
        let from = self.chains.len() - count.min(self.chains.len());
        self.chains[from..].iter().filter_map(|chain| self.segments.get(chain.begin as usize))
    }
}

#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) gpa: Gpa,
    pub(super) len: u32,
    pub(super) flags: u16,
    next: u16,
}

impl Descriptor {
    pub(super) const fn is_indirect(&self) -> bool {
        self.flags & INDIRECT != 0
    }

    pub(super) const fn has_next(&self) -> bool {
        self.flags & NEXT != 0
    }

    pub(super) const fn parse(halves: [u64; 2]) -> Self {
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
    /// Has the descriptor `index` fetched.
    #[inline]
    pub(super) fn prefetch(&self, index: u16) {
        self.file.prefetch(self.offset + u64::from(index) * DESCRIPTOR_BYTES);
    }

    /// Walks the chain that begins at `head`, appends its buffers to `segments`, and returns its bytes.
    ///
    /// Bound: `size` descriptors plus one indirect table of at most [`MAX_CHAIN`]; no allocation as
    /// long as `segments` has room for [`MAX_CHAIN`] more.
    #[inline]
    pub(super) fn walk(
        &self,
        memory: &GuestMemory,
        head: u16,
        direction: Direction,
        segments: &mut Vec<Segment>,
    ) -> Result<u64, RingFault> {
        let first = self.descriptor(head)?;
        // Most frames have one buffer.
        if first.flags & (INDIRECT | NEXT) == 0 {
            return add(memory, first, direction, segments.len(), segments);
        }
        self.walk_on(memory, first, direction, segments)
    }

    /// The same, of a chain of any length, behind its first descriptor.
    fn walk_on(
        &self,
        memory: &GuestMemory,
        first: Descriptor,
        direction: Direction,
        segments: &mut Vec<Segment>,
    ) -> Result<u64, RingFault> {
        let begin = segments.len();
        let mut bytes = 0;
        let mut descriptor = first;
        for _ in 0..self.size {
            if descriptor.is_indirect() {
                return Ok(bytes + self.walk_indirect(memory, descriptor, direction, begin, segments)?);
            }
            bytes += add(memory, descriptor, direction, begin, segments)?;
            if !descriptor.has_next() {
                return Ok(bytes);
            }
            descriptor = self.descriptor(descriptor.next)?;
        }
        Err(RingFault::ChainTooLong { limit: self.size })
    }

    #[inline]
    fn descriptor(&self, index: u16) -> Result<Descriptor, RingFault> {
        if index >= self.size {
            return Err(RingFault::IndexOutOfTable { index, size: self.size });
        }
        let at = self.offset + u64::from(index) * DESCRIPTOR_BYTES;
        Ok(Descriptor::parse(self.file.load_16_bytes(at)?))
    }

    fn walk_indirect(
        &self,
        memory: &GuestMemory,
        table: Descriptor,
        direction: Direction,
        begin: usize,
        segments: &mut Vec<Segment>,
    ) -> Result<u64, RingFault> {
        let size = check_indirect(&table, self.indirect)?;
        let mut bytes = 0;
        let mut index = 0;
        for _ in 0..size {
            if index >= size {
                return Err(RingFault::IndexOutOfTable { index, size });
            }
            let descriptor = Descriptor::parse(load_indirect(memory, &table, index)?);
            if descriptor.is_indirect() {
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

/// Descriptors in an indirect table, if one may be there.
pub(super) fn check_indirect(table: &Descriptor, negotiated: bool) -> Result<u16, RingFault> {
    if !negotiated {
        return Err(RingFault::IndirectNotNegotiated);
    }
    if table.has_next() {
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
    Ok(entries as u16)
}

/// Reads a descriptor of an indirect table that was checked.
pub(super) fn load_indirect(
    memory: &GuestMemory,
    table: &Descriptor,
    index: u16,
) -> Result<[u64; 2], RingFault> {
    let at = Gpa(table.gpa.0 + u64::from(index) * DESCRIPTOR_BYTES);
    memory.load_16_bytes(at).ok_or(RingFault::OutOfMemoryMap { gpa: table.gpa, len: table.len })
}

/// Appends the segments of one buffer: one, unless it crosses into the next region.
#[inline]
pub(super) fn add(
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
