//! Small frames that wait, close together: those of a guest for their commit, those of its neighbours for a guest.
//!
//! A frame of the wire lies in memory that holds the longest one: thousands of small ones that wait touch a page
//! of memory each, which no cache holds. So a small frame that has to wait is copied to the end of one ring of
//! bytes. When it goes to a wire it gets memory of that; to a guest of the same host it goes from the ring, into
//! the guest's buffers or to the end of the guest's own ring. Both ends of a ring are read and written in order, as
//! processors like it.
//!
//! ```text
//!   queue   [ Small ][ Frame ][ Small ][ Small ] ...       a frame, or where it is in the ring
//!              |                  |        |
//!   ring    [ bytes           | bytes  | bytes   |  room ]
//!            ^ head                               ^ tail
//! ```
//!
//! Owned by the polling core. The ring is allocated at start; without room in it frames stay where they are.

use crate::frame::{Frame, Wire};
use crate::guest::SMALL_FRAME_BYTES;

/// Bytes of the longest frame that is copied.
const SMALL: usize = SMALL_FRAME_BYTES;

/// A frame that waits.
#[derive(Debug)]
pub(crate) enum Waiting<F> {
    /// In its own memory.
    Frame(F),
    /// In the ring.
    Small(Small),
}

/// Where a small frame is in the ring.
#[derive(Debug)]
pub(crate) struct Small {
    at: u32,
    len: u16,
    is_sound: bool,
}

impl Small {
    fn range(&self) -> std::ops::Range<usize> {
        self.at as usize..self.at as usize + usize::from(self.len)
    }
}

impl<F: Frame> Waiting<F> {
    /// Bytes of the frame.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Frame(frame) => frame.bytes().len(),
            Self::Small(small) => usize::from(small.len),
        }
    }
}

/// The ring of bytes. What goes in first is taken out first.
#[derive(Debug)]
pub(crate) struct Compact {
    ring: Box<[u8]>,
    /// Where the oldest begins.
    head: usize,
    /// Where the newest ends. Equal to `head` only when there is none.
    tail: usize,
    frames: usize,
    /// Bytes of those that wait, and the most there have been.
    bytes: usize,
    most_bytes: usize,
}

impl Compact {
    /// With room for so many small frames; memory that is never used is never touched.
    pub(crate) fn new(frames: usize) -> Self {
        let len = (frames.saturating_add(1).saturating_mul(SMALL)).min(u32::MAX as usize);
        Self { ring: vec![0; len].into_boxed_slice(), head: 0, tail: 0, frames: 0, bytes: 0, most_bytes: 0 }
    }

    /// Takes a frame that has to wait; it is copied if it is small.
    ///
    /// Bound: one copy of [`SMALL`] bytes. Allocations: none. A frame of 60 bytes that is captured, waits here, is released and
    /// sent takes 145 ns in all (`cargo bench -p holdfast-dataplane`).
    #[inline]
    pub(crate) fn put<F: Frame>(&mut self, frame: F) -> Waiting<F> {
        match self.copy(frame.bytes()) {
            Some(small) => Waiting::Small(Small { is_sound: frame.is_sound(), ..small }),
            None => Waiting::Frame(frame),
        }
    }

    /// Copies a frame that has to wait, if it is small and there is room for it.
    #[inline]
    pub(crate) fn copy(&mut self, bytes: &[u8]) -> Option<Small> {
        let small = Small { at: self.place(bytes.len())? as u32, len: bytes.len() as u16, is_sound: false };
        self.ring[small.range()].copy_from_slice(bytes);
        self.tail = small.range().end;
        self.frames += 1;
        self.bytes += bytes.len();
        self.most_bytes = self.most_bytes.max(self.bytes);
        Some(small)
    }

    /// The bytes of a small frame.
    #[inline]
    pub(crate) fn small(&self, small: &Small) -> &[u8] {
        &self.ring[small.range()]
    }

    /// The bytes of a frame that waits.
    #[inline]
    pub(crate) fn bytes<'a, F: Frame>(&'a self, waiting: &'a Waiting<F>) -> &'a [u8] {
        match waiting {
            Waiting::Frame(frame) => frame.bytes(),
            Waiting::Small(small) => self.small(small),
        }
    }

    /// The same, to be changed.
    pub(crate) fn bytes_mut<'a, F: Frame>(&'a mut self, waiting: &'a mut Waiting<F>) -> &'a mut [u8] {
        match waiting {
            Waiting::Frame(frame) => frame.bytes_mut(),
            Waiting::Small(small) => &mut self.ring[small.range()],
        }
    }

    /// Takes the oldest small frame out, into memory of `wire`; none, and nothing changed, if there is none.
    ///
    /// Bound and cost: as [`Compact::put`]. Allocations: the wire's frame alone.
    #[inline]
    pub(crate) fn take<W: Wire>(&mut self, small: &Small, wire: &mut W) -> Option<W::Frame> {
        let mut frame = wire.copy(self.small(small))?;
        if small.is_sound {
            frame.set_sound();
        }
        self.pop(small);
        Some(frame)
    }

    /// The oldest small frame is gone.
    #[inline]
    pub(crate) fn pop(&mut self, small: &Small) {
        self.head = small.range().end;
        self.frames -= 1;
        self.bytes -= small.range().len();
        if self.frames == 0 {
            self.clear();
        }
    }

    #[cfg(test)]
    pub(crate) const fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Forgets all.
    pub(crate) const fn clear(&mut self) {
        (self.head, self.tail, self.frames, self.bytes) = (0, 0, 0, 0);
    }

    /// Where so many bytes in one piece have room, behind the newest.
    fn place(&mut self, len: usize) -> Option<usize> {
        if len == 0 || len > SMALL {
            return None;
        }
        if self.tail < self.head {
            if self.head - self.tail > len {
                return Some(self.tail);
            }
            // More wait than ever did: from now on the whole ring is used.
            self.most_bytes = self.ring.len();
            return None;
        }
        // From the start again as soon as all that may come to wait fits there: what is in use is in the caches.
        let at_end = self.ring.len() - self.tail >= len;
        if at_end && self.head <= self.most_bytes + SMALL {
            return Some(self.tail);
        }
        if self.head > len { Some(0) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::HeapWire;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A queue entry is as long as a frame, or moving it would cost what the ring saves.
    #[test]
    fn an_entry_is_no_longer_than_a_frame() {
        type Frame = (std::ptr::NonNull<u8>, u64);
        assert_eq!(size_of::<Waiting<Frame>>(), size_of::<Frame>());
    }

    #[test]
    fn long_frames_and_those_without_room_stay_where_they_are() {
        let mut compact = Compact::new(1);
        assert!(matches!(compact.put(vec![1; SMALL + 1]), Waiting::Frame(_)));
        assert!(matches!(compact.put(vec![1; SMALL]), Waiting::Small(_)));
        assert!(matches!(compact.put(vec![1; SMALL]), Waiting::Small(_)));
        assert!(matches!(compact.put(vec![1; 60]), Waiting::Frame(_)));
    }

    /// What is in use stays close together, however long it goes on.
    #[test]
    fn few_that_wait_use_little_of_the_ring() {
        let mut compact = Compact::new(1000);
        let mut queue = VecDeque::from([compact.copy(&[1; 60]).expect("room")]);
        for _ in 0..10_000 {
            let small = compact.copy(&[2; 60]).expect("room");
            assert!(small.range().end < 4 * SMALL, "{small:?}");
            queue.push_back(small);
            compact.pop(&queue.pop_front().expect("two wait"));
        }
    }

    /// OC-2: a frame that finds no memory is not lost, and comes next.
    #[test]
    fn a_frame_that_finds_no_memory_waits_on() {
        let (mut wire, _peer) = HeapWire::new(1500, 1, false).expect("a wire");
        let mut compact = Compact::new(4);
        let Waiting::Small(small) = compact.put(vec![7; 60]) else { panic!("it is small") };
        let all = wire.alloc(1).expect("there is one");
        assert!(compact.take(&small, &mut wire).is_none());
        drop(all);
        assert_eq!(compact.take(&small, &mut wire).expect("memory").bytes(), [7; 60]);
    }

    proptest! {
        /// OC-2: whatever comes and goes, of whatever length, comes out as it went in, and in order.
        #[test]
        fn frames_come_out_as_they_went_in(
            steps in prop::collection::vec((1usize..300, any::<bool>()), 0..400),
            room in 0usize..8,
        ) {
            let (mut wire, _peer) = HeapWire::new(1500, 4, false).expect("a wire");
            let mut compact = Compact::new(room);
            let mut queue = VecDeque::new();
            let mut fill = 0u8;
            for (len, goes) in steps {
                if goes {
                    let Some((waiting, expected)) = queue.pop_front() else { continue };
                    let bytes = match waiting {
                        Waiting::Frame(frame) => frame,
                        Waiting::Small(small) => {
                            compact.take(&small, &mut wire).expect("memory").bytes().to_vec()
                        }
                    };
                    prop_assert_eq!(&bytes, &expected);
                } else {
                    fill = fill.wrapping_add(1);
                    let frame = vec![fill; len];
                    queue.push_back((compact.put(frame.clone()), frame));
                }
                for (waiting, expected) in &mut queue {
                    prop_assert_eq!(waiting.len(), expected.len());
                    prop_assert_eq!(&*compact.bytes_mut(waiting), &expected[..]);
                }
            }
        }
    }
}
