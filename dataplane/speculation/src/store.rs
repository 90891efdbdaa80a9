//! The bytes of all flows of a port, in blocks.
//!
//! A flow's bytes are a queue of blocks, linked by 32-bit numbers. Blocks begin at sequence numbers
//! that are multiples of their length, so that the place of a byte follows from its number, and the
//! blocks that a window needs can be counted before a byte of it is here.
//!
//! Everything is allocated once. Appending, reading and freeing cost what is copied, and a walk over
//! the blocks before the place if the cursor is not near: retransmissions alone walk.

use crate::boundary::Payload;
use crate::seq::SeqNum;
use holdfast_packet::checksum::Sum;

/// Bytes of a block.
pub(crate) const BLOCK: u32 = 2048;

/// No block.
const NONE: u32 = u32::MAX;

/// The blocks of a port.
#[derive(Debug)]
pub(crate) struct Store {
    bytes: Vec<u8>,
    links: Vec<u32>,
    free: u32,
    free_blocks: u32,
    /// Blocks promised to flows by their windows; see [`Store::reserve`].
    reserved: u64,
    /// Flows with such a promise.
    windows: u32,
    /// Queues that hold something.
    holding: u32,
    held: usize,
}

/// A place in a queue where reading goes on.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    block: u32,
    start: SeqNum,
}

/// The held bytes of one flow: those from `base` up to `end`.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    head: u32,
    tail: u32,
    base: SeqNum,
    end: SeqNum,
    cursors: [Cursor; 2],
    /// Blocks that its window may take.
    reserved: u32,
}

/// Who reads: each has a cursor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reader {
    /// The stream to the backup, and comparisons.
    Stream,
    /// The client leg.
    Leg,
}

impl Queue {
    /// An empty queue that begins at `base`.
    pub(crate) const fn new(base: SeqNum) -> Self {
        let cursor = Cursor { block: NONE, start: base };
        Self { head: NONE, tail: NONE, base, end: base, cursors: [cursor; 2], reserved: 0 }
    }

    /// First byte held.
    pub(crate) const fn base(&self) -> SeqNum {
        self.base
    }

    /// First byte beyond those held.
    pub(crate) const fn end(&self) -> SeqNum {
        self.end
    }

    /// Bytes held.
    pub(crate) const fn len(&self) -> u32 {
        self.end.bytes_since(self.base)
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.base == self.end
    }

    /// Blocks that it may take.
    pub(crate) const fn reserved(&self) -> u32 {
        self.reserved
    }
}

/// Blocks that the bytes from `base` up to `edge` lie in.
pub(crate) fn blocks(base: SeqNum, edge: SeqNum) -> u32 {
    match edge.bytes_since(base) {
        0 => 0,
        bytes => ((base.get() % BLOCK) + bytes).div_ceil(BLOCK),
    }
}

/// Blocks of a store of at least `bytes` bytes.
pub(crate) fn block_count(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK as usize).clamp(1, NONE as usize - 1)
}

fn start_of(seq: SeqNum) -> SeqNum {
    seq - seq.get() % BLOCK
}

impl Store {
    /// A store of at least `bytes` bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let count = block_count(bytes) as u32;
        let links = (1..=count).map(|next| if next == count { NONE } else { next }).collect();
        let bytes = vec![0; count as usize * BLOCK as usize];
        Self { bytes, links, free: 0, free_blocks: count, reserved: 0, windows: 0, holding: 0, held: 0 }
    }

    /// Bytes of memory that a store for `bytes` bytes takes.
    pub(crate) const fn footprint(bytes: usize) -> usize {
        bytes.div_ceil(BLOCK as usize) * (BLOCK as usize + size_of::<u32>())
    }

    /// Bytes held, over all queues.
    pub(crate) const fn held(&self) -> usize {
        self.held
    }

    /// Blocks that are not promised to any flow.
    pub(crate) fn unreserved(&self) -> u32 {
        (self.links.len() as u64).saturating_sub(self.reserved) as u32
    }

    /// Bytes of each flow if all that have a window had the same.
    pub(crate) fn fair_share(&self) -> u32 {
        let each = (self.links.len() as u32 / self.windows.max(1)).saturating_sub(1);
        each.min((1 << 30) / BLOCK) * BLOCK
    }

    /// Bytes of each flow if all that hold something had the same.
    pub(crate) fn share_of_holders(&self) -> u32 {
        (self.links.len() as u32 / self.holding.max(1)).min((1 << 30) / BLOCK) * BLOCK
    }

    /// Promises the queue blocks for the bytes up to `edge`, instead of what it was promised before.
    pub(crate) fn reserve(&mut self, queue: &mut Queue, edge: SeqNum) {
        let wanted = blocks(queue.base, edge.later(queue.end));
        self.reserved = self.reserved - u64::from(queue.reserved) + u64::from(wanted);
        self.windows = self.windows + u32::from(wanted > 0) - u32::from(queue.reserved > 0);
        queue.reserved = wanted;
    }

    /// Appends `len` bytes of `payload` from `offset` on; returns how many there was room for.
    ///
    /// Bound: `len` bytes are copied. Allocations: none.
    pub(crate) fn append(
        &mut self,
        queue: &mut Queue,
        payload: &(impl Payload + ?Sized),
        offset: usize,
        len: u32,
    ) -> u32 {
        let was_empty = queue.is_empty();
        let mut done = 0;
        while done < len {
            let within = queue.end.get() % BLOCK;
            if (within == 0 || queue.tail == NONE) && !self.add_block(queue) {
                break;
            }
            let part = (BLOCK - within).min(len - done);
            let at = queue.tail as usize * BLOCK as usize + within as usize;
            payload.copy_to(offset + done as usize, &mut self.bytes[at..at + part as usize]);
            queue.end = queue.end + part;
            done += part;
        }
        self.held += done as usize;
        self.holding += u32::from(was_empty && done > 0);
        done
    }

    fn add_block(&mut self, queue: &mut Queue) -> bool {
        if self.free == NONE {
            return false;
        }
        let block = self.free;
        self.free = std::mem::replace(&mut self.links[block as usize], NONE);
        self.free_blocks -= 1;
        match queue.tail {
            NONE => queue.head = block,
            tail => self.links[tail as usize] = block,
        }
        queue.tail = block;
        true
    }

    fn give_back(&mut self, block: u32) -> u32 {
        let next = std::mem::replace(&mut self.links[block as usize], self.free);
        self.free = block;
        self.free_blocks += 1;
        next
    }

    /// Frees the bytes before `to`.
    ///
    /// Bound: O(blocks freed). Allocations: none.
    pub(crate) fn free_to(&mut self, queue: &mut Queue, to: SeqNum) {
        assert!(!to.after(queue.end), "what is not held is not freed");
        let freed = to.bytes_since(queue.base);
        if freed == 0 {
            return;
        }
        self.held -= freed as usize;
        self.holding -= u32::from(to == queue.end);
        let whole = blocks_before(queue.base, to);
        queue.base = to;
        for _ in 0..whole {
            if queue.head != NONE {
                queue.head = self.give_back(queue.head);
            }
        }
        if queue.base == queue.end && queue.head != NONE {
            // The last block is part of no byte any more.
            self.give_back(queue.head);
            queue.head = NONE;
        }
        if queue.head == NONE {
            queue.tail = NONE;
        }
        for cursor in &mut queue.cursors {
            if cursor.start.before(start_of(to)) || queue.head == NONE {
                *cursor = Cursor { block: NONE, start: to };
            }
        }
    }

    /// Drops the bytes from `to` on, which must have been appended last.
    pub(crate) fn truncate(&mut self, queue: &mut Queue, to: SeqNum) {
        assert!(!to.before(queue.base) && !to.after(queue.end), "what is not held is not dropped");
        self.held -= queue.end.bytes_since(to) as usize;
        self.holding -= u32::from(to == queue.base && !queue.is_empty());
        let keep = blocks(queue.base, to);
        let (mut last, mut block) = (NONE, queue.head);
        for _ in 0..keep {
            last = block;
            block = self.links[block as usize];
        }
        match last {
            NONE => queue.head = NONE,
            last => self.links[last as usize] = NONE,
        }
        queue.tail = last;
        while block != NONE {
            block = self.give_back(block);
        }
        queue.end = to;
        queue.cursors = [Cursor { block: NONE, start: queue.base }; 2];
    }

    /// Drops everything that the queue holds, and its promise.
    pub(crate) fn clear(&mut self, queue: &mut Queue) {
        let end = queue.end;
        self.free_to(queue, end);
        self.reserved -= u64::from(queue.reserved);
        self.windows -= u32::from(queue.reserved > 0);
        queue.reserved = 0;
    }

    /// Shows the bytes from `seq` on, `len` of them, which must be held, piece by piece.
    ///
    /// Bound: the pieces, and the blocks before `seq` if the reader's cursor is behind it.
    pub(crate) fn read(
        &self,
        queue: &mut Queue,
        reader: Reader,
        seq: SeqNum,
        len: u32,
        mut show: impl FnMut(&[u8]),
    ) {
        if len == 0 {
            return;
        }
        assert!(
            !seq.before(queue.base) && !(seq + len).after(queue.end) && len <= queue.len(),
            "what is not held is not read"
        );
        let mut cursor = self.seek(queue, reader, seq);
        let (mut at, mut left) = (seq, len);
        loop {
            let within = at.get() % BLOCK;
            let part = (BLOCK - within).min(left);
            let place = cursor.block as usize * BLOCK as usize + within as usize;
            show(&self.bytes[place..place + part as usize]);
            at = at + part;
            left -= part;
            if left == 0 {
                break;
            }
            cursor = Cursor { block: self.links[cursor.block as usize], start: cursor.start + BLOCK };
        }
        queue.cursors[reader as usize] = cursor;
    }

    fn seek(&self, queue: &Queue, reader: Reader, seq: SeqNum) -> Cursor {
        let wanted = start_of(seq);
        let mut cursor = queue.cursors[reader as usize];
        if cursor.block == NONE || cursor.start.after(wanted) {
            cursor = Cursor { block: queue.head, start: start_of(queue.base) };
        }
        while cursor.start != wanted {
            cursor = Cursor { block: self.links[cursor.block as usize], start: cursor.start + BLOCK };
        }
        cursor
    }

    /// Copies the bytes from `seq` on into `out`.
    pub(crate) fn copy_out(&self, queue: &mut Queue, reader: Reader, seq: SeqNum, out: &mut [u8]) {
        let mut done = 0;
        self.read(queue, reader, seq, out.len() as u32, |piece| {
            out[done..done + piece.len()].copy_from_slice(piece);
            done += piece.len();
        });
    }

    /// Sum of the bytes from `seq` on, that begin at an offset of this oddness in what is summed.
    pub(crate) fn sum(&self, queue: &mut Queue, seq: SeqNum, len: u32, odd: bool) -> Sum {
        let mut sum = Sum::ZERO;
        let mut odd = odd;
        self.read(queue, Reader::Stream, seq, len, |piece| sum = add_at(sum, piece, &mut odd));
        sum
    }
}

/// Blocks that lie before `to` as a whole, from the one of `base` on.
fn blocks_before(base: SeqNum, to: SeqNum) -> u32 {
    start_of(to).bytes_since(start_of(base)) / BLOCK
}

/// Adds bytes that begin at an even or odd offset (RFC 1071 §2 B: a sum of swapped bytes is the
/// swapped sum).
pub(crate) fn add_at(sum: Sum, piece: &[u8], odd: &mut bool) -> Sum {
    let part = Sum::ZERO.bytes(piece).fold();
    let part = if *odd { part.swap_bytes() } else { part };
    *odd ^= piece.len() % 2 == 1;
    sum.word(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn held(store: &Store, queue: &mut Queue, reader: Reader) -> Vec<u8> {
        let mut out = vec![0; queue.len() as usize];
        let base = queue.base();
        store.copy_out(queue, reader, base, &mut out);
        out
    }

    #[test]
    fn a_store_that_is_full_takes_what_fits_and_goes_on_when_bytes_are_freed() {
        let mut store = Store::new(2 * BLOCK as usize);
        let mut queue = Queue::new(SeqNum::new(u32::MAX - 99));
        let bytes = (0..5000u32).map(|n| n as u8).collect::<Vec<_>>();
        assert_eq!(store.append(&mut queue, &bytes[..], 0, 5000), 100 + BLOCK);
        assert_eq!(held(&store, &mut queue, Reader::Leg), bytes[..100 + BLOCK as usize]);
        store.free_to(&mut queue, SeqNum::new(0));
        assert_eq!(store.append(&mut queue, &bytes[..], 100 + BLOCK as usize, 1000), 1000);
        assert_eq!(held(&store, &mut queue, Reader::Leg), bytes[100..1100 + BLOCK as usize]);
        store.clear(&mut queue);
        assert_eq!((store.held(), store.free_blocks), (0, 2));
    }

    #[test]
    fn a_window_is_promised_the_blocks_that_it_spans() {
        assert_eq!(blocks(SeqNum::new(2047), SeqNum::new(2049)), 2);
        assert_eq!(blocks(SeqNum::new(2048), SeqNum::new(4096)), 1);
        assert_eq!(blocks(SeqNum::new(5), SeqNum::new(5)), 0);
        assert_eq!(blocks(SeqNum::new(u32::MAX), SeqNum::new(1)), 2);
        let mut store = Store::new(10 * BLOCK as usize);
        let mut queue = Queue::new(SeqNum::new(100));
        store.reserve(&mut queue, SeqNum::new(100 + 3 * BLOCK));
        assert_eq!((store.unreserved(), queue.reserved()), (6, 4));
        store.clear(&mut queue);
        assert_eq!(store.unreserved(), 10);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Append(usize),
        Free(u32),
        Drop(u32),
        Look(u32, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0usize..6000).prop_map(Step::Append),
            (0u32..9000).prop_map(Step::Free),
            (0u32..3000).prop_map(Step::Drop),
            (any::<u32>(), any::<u32>()).prop_map(|(from, len)| Step::Look(from, len)),
        ]
    }

    proptest! {
        /// SP-3: what is read is what was written, whatever else happened to the queue.
        #[test]
        fn a_queue_is_the_bytes_written_to_it(start: u32, steps in prop::collection::vec(step(), 1..60)) {
            let mut store = Store::new(20 * BLOCK as usize);
            let mut queue = Queue::new(SeqNum::new(start));
            let (mut model, mut next) = (Vec::new(), 0u32);
            for step in steps {
                match step {
                    Step::Append(len) => {
                        let bytes: Vec<u8> = (0..len).map(|_| { next += 1; ((next * 31) >> 3) as u8 }).collect();
                        let taken = store.append(&mut queue, &bytes[..], 0, len as u32) as usize;
                        model.extend(&bytes[..taken]);
                    }
                    Step::Free(count) => {
                        let count = count.min(queue.len());
                        let to = queue.base() + count;
                        store.free_to(&mut queue, to);
                        model.drain(..count as usize);
                    }
                    Step::Drop(count) => {
                        let keep = queue.len() - count.min(queue.len());
                        let to = queue.base() + keep;
                        store.truncate(&mut queue, to);
                        model.truncate(keep as usize);
                    }
                    Step::Look(from, len) => {
                        let from = if queue.is_empty() { 0 } else { from % queue.len() };
                        let len = if queue.is_empty() { 0 } else { len % (queue.len() - from) };
                        let mut out = vec![0; len as usize];
                        let seq = queue.base() + from;
                        store.copy_out(&mut queue, Reader::Leg, seq, &mut out);
                        prop_assert_eq!(&out[..], &model[from as usize..(from + len) as usize]);
                        let odd = from % 2 == 1;
                        let sum = store.sum(&mut queue, seq, len, odd);
                        let mut padded = vec![0; usize::from(odd)];
                        padded.extend(&out);
                        prop_assert_eq!(sum.fold() % 0xffff, Sum::ZERO.bytes(&padded).fold() % 0xffff);
                    }
                }
                prop_assert_eq!(&held(&store, &mut queue, Reader::Stream), &model);
                prop_assert_eq!(store.held(), model.len());
                prop_assert_eq!(store.holding, u32::from(!model.is_empty()));
                prop_assert_eq!(store.links.len() as u32 - store.free_blocks, blocks(queue.base(), queue.end()));
            }
        }
    }
}
