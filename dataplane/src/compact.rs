//! Small frames that wait, close together: those of a guest for their commit, those of its neighbours for a guest.
//!
//! A frame of the wire lies in memory that holds the longest one: thousands of small ones that wait touch a page
//! of memory each, which no cache holds. So a small frame that has to wait is copied to the end of one ring of
//! bytes, behind its length. When it goes to a wire it gets memory of that; to a guest of the same host it goes from
//! the ring, into the guest's buffers or to the end of the guest's own ring. Both ends of a ring are read and written
//! in order, as processors like it, and small frames that follow each other are one entry of their queue: a [`Run`].
//!
//! ```text
//!   queue   [ Run of 3                        ][ Frame ][ Run of 1    ]
//!              |                                           |
//!   ring    [ len, bytes | len, bytes | len, bytes | len, bytes |  room ]
//!            ^ head                                            ^ tail
//! ```
//!
//! Owned by the polling core. The ring is allocated at start; without room in it frames stay where they are.

use crate::frame::{Frame, Wire};
use crate::guest::SMALL_FRAME_BYTES;
use memmap2::{Advice, MmapMut};
use std::collections::VecDeque;
use std::io;

/// Bytes of the longest frame that is copied.
const SMALL: usize = SMALL_FRAME_BYTES;

/// Bytes before each frame in the ring: its length, and whether it [is sound](Frame::is_sound).
const HEAD: usize = 4;

/// Frames that wait, one or several.
#[derive(Debug)]
pub(crate) enum Waiting<F> {
    /// One, in its own memory.
    Frame(F),
    /// Small ones, in the ring.
    Small(Run),
}

impl<F> Waiting<F> {
    /// Takes the newest small frame in, which lies behind these in the ring; false, and nothing changed, if these
    /// are not in the ring.
    #[inline]
    pub(crate) fn lengthen(&mut self) -> bool {
        let Self::Small(run) = self else { return false };
        run.frames += 1;
        true
    }
}

/// Small frames that lie one behind the other in the ring; at least one.
#[derive(Debug)]
pub(crate) struct Run {
    /// Where the oldest begins.
    at: u32,
    frames: u32,
}

/// Where a small frame was put.
#[derive(Debug)]
pub(crate) struct Put {
    at: u32,
    /// Right behind the newest of those before it.
    pub(crate) follows: bool,
}

impl Put {
    /// A run of this frame alone.
    #[inline]
    pub(crate) const fn run(self) -> Run {
        Run { at: self.at, frames: 1 }
    }
}

/// Where the frame lies whose head is at this place, and whether it is sound.
#[inline]
fn frame_at(ring: &[u8], at: u32) -> (std::ops::Range<usize>, bool) {
    let from = at as usize + HEAD;
    let [len_low, len_high, is_sound, _] =
        ring[at as usize..from].first_chunk().copied().unwrap_or([0; HEAD]);
    (from..from + usize::from(u16::from_le_bytes([len_low, len_high])), is_sound != 0)
}

/// Bytes in the ring of a frame that is so long, with its head; heads are aligned.
const fn with_head(len: usize) -> usize {
    HEAD + len.next_multiple_of(HEAD)
}

/// The ring of bytes. What goes in first is taken out first.
#[derive(Debug)]
pub(crate) struct Compact {
    ring: MmapMut,
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
    /// With room for so many small frames; memory that is never used is never touched, in steps of
    /// 2 MiB where the kernel makes huge pages, which are asked for: processors know few small ones by heart.
    ///
    /// # Errors
    /// When the host has no address space left.
    pub(crate) fn new(frames: usize) -> io::Result<Self> {
        let len = frames.saturating_add(1).saturating_mul(with_head(SMALL)).min(u32::MAX as usize);
        let ring = MmapMut::map_anon(len)?;
        ring.advise(Advice::HugePage).unwrap_or_default();
        Ok(Self { ring, head: 0, tail: 0, frames: 0, bytes: 0, most_bytes: 0 })
    }

    /// Copies a frame that has to wait, if it is small and there is room for it.
    ///
    /// Bound: one copy of [`SMALL`] bytes. Allocations: none. A frame of 60 bytes that is captured, waits here, is released and
    /// sent takes 100 ns in all (`cargo bench -p holdfast-dataplane`).
    #[inline]
    pub(crate) fn copy(&mut self, bytes: &[u8], is_sound: bool) -> Option<Put> {
        if bytes.is_empty() || bytes.len() > SMALL {
            return None;
        }
        let taken = with_head(bytes.len());
        let at = self.place(taken)?;
        let follows = at == self.tail && self.frames > 0;
        let [low, high] = (bytes.len() as u16).to_le_bytes();
        let to = &mut self.ring[at..at + HEAD + bytes.len()];
        to[..HEAD].copy_from_slice(&[low, high, u8::from(is_sound), 0]);
        to[HEAD..].copy_from_slice(bytes);
        self.tail = at + taken;
        self.frames += 1;
        self.bytes += taken;
        self.most_bytes = self.most_bytes.max(self.bytes);
        Some(Put { at: at as u32, follows })
    }

    /// The bytes of the oldest frame of a run.
    #[inline]
    pub(crate) fn oldest(&self, run: &Run) -> &[u8] {
        &self.ring[frame_at(&self.ring, run.at).0]
    }

    /// The bytes of the oldest frame of those that wait.
    #[inline]
    pub(crate) fn bytes<'a, F: Frame>(&'a self, waiting: &'a Waiting<F>) -> &'a [u8] {
        match waiting {
            Waiting::Frame(frame) => frame.bytes(),
            Waiting::Small(run) => self.oldest(run),
        }
    }

    /// Shows `change` the bytes of each frame of those that wait, from the oldest on.
    pub(crate) fn each_mut<F: Frame>(&mut self, waiting: &mut Waiting<F>, mut change: impl FnMut(&mut [u8])) {
        match waiting {
            Waiting::Frame(frame) => change(frame.bytes_mut()),
            Waiting::Small(run) => {
                let mut at = run.at;
                for _ in 0..run.frames {
                    let (place, _) = frame_at(&self.ring, at);
                    at += with_head(place.len()) as u32;
                    change(&mut self.ring[place]);
                }
            }
        }
    }

    /// A copy of the oldest small frame, in memory of `wire`; none if there is no memory.
    ///
    /// Bound and cost: as [`Compact::copy`]. Allocations: the wire's frame alone.
    #[inline]
    pub(crate) fn frame<W: Wire>(&self, run: &Run, wire: &mut W) -> Option<W::Frame> {
        let (place, is_sound) = frame_at(&self.ring, run.at);
        let mut frame = wire.copy(&self.ring[place])?;
        if is_sound {
            frame.set_sound();
        }
        Some(frame)
    }

    /// Drops the oldest frame of a queue whose small ones are here; whether there was one.
    #[inline]
    pub(crate) fn pop_front<F>(&mut self, queue: &mut VecDeque<Waiting<F>>) -> bool {
        let is_last = match queue.front_mut() {
            None => return false,
            Some(Waiting::Frame(_)) => true,
            Some(Waiting::Small(run)) => self.pop(run),
        };
        if is_last {
            queue.pop_front();
        }
        true
    }

    /// The oldest small frame is gone, which is the oldest of this run; whether nothing is left of the run.
    #[inline]
    fn pop(&mut self, run: &mut Run) -> bool {
        let taken = with_head(frame_at(&self.ring, run.at).0.len());
        run.at += taken as u32;
        run.frames -= 1;
        self.head = run.at as usize;
        self.frames -= 1;
        self.bytes -= taken;
        if self.frames == 0 {
            self.clear();
        }
        run.frames == 0
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
    #[inline]
    fn place(&mut self, len: usize) -> Option<usize> {
        if self.tail < self.head {
            // Where far more wait than ever did there is none, until the tail has come to the head's side again.
            return (self.head - self.tail > len).then_some(self.tail);
        }
        // From the start again where all that ever waited, and somewhat more, had room before this: what is in use is
        // in the caches, or at least in pages that were touched before.
        let at_start = self.head > len;
        let in_use = self.most_bytes + self.most_bytes / 4 + with_head(SMALL);
        let at_end = self.ring.len() - self.tail >= len;
        if at_end && !(at_start && self.tail + len > in_use) {
            return Some(self.tail);
        }
        at_start.then_some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::HeapWire;
    use proptest::prelude::*;

    /// A queue entry is as long as a frame, or moving it would cost what the ring saves.
    #[test]
    fn an_entry_is_no_longer_than_a_frame() {
        type Frame = (std::ptr::NonNull<u8>, u64);
        assert_eq!(size_of::<Waiting<Frame>>(), size_of::<Frame>());
    }

    #[test]
    fn long_frames_and_those_without_room_stay_where_they_are() {
        let mut compact = Compact::new(1).expect("a ring");
        assert!(compact.copy(&[1; SMALL + 1], false).is_none());
        assert!(compact.copy(&[1; SMALL], false).is_some());
        assert!(compact.copy(&[1; SMALL], false).is_some());
        assert!(compact.copy(&[1; 60], false).is_none());
    }

    /// What is in use stays close together, however long it goes on.
    #[test]
    fn few_that_wait_use_little_of_the_ring() {
        let mut compact = Compact::new(1000).expect("a ring");
        let mut queue = VecDeque::from([compact.copy(&[1; 60], false).expect("room").run()]);
        for _ in 0..10_000 {
            let put = compact.copy(&[2; 60], false).expect("room");
            assert!((put.at as usize) < 4 * SMALL, "{put:?}");
            queue.push_back(put.run());
            assert!(compact.pop(&mut queue.pop_front().expect("two wait")));
        }
    }

    /// When more come to wait than ever did, as much more of the ring is used as they need, and no frame is refused
    /// for long.
    #[test]
    fn more_that_wait_use_as_much_more_of_the_ring() {
        let taken = with_head(60);
        let mut compact = Compact::new(1000).expect("a ring");
        let mut queue = VecDeque::new();
        for wait in [10, 11, 30, 100, 101, 250] {
            let (mut refused, mut furthest) = (0, 0);
            // None goes before so many wait, and then one for each that comes.
            for _ in 0..20 * wait {
                let put = compact.copy(&[1; 60], false);
                refused += usize::from(put.is_none());
                if put.is_none() || queue.len() == wait {
                    assert!(compact.pop(&mut queue.pop_front().expect("some wait")));
                }
                if let Some(put) = put {
                    furthest = furthest.max(put.at as usize + taken);
                    queue.push_back(put.run());
                }
            }
            assert_eq!(queue.len(), wait);
            let bound = 2 * (wait + 1) * taken + with_head(SMALL);
            assert!(furthest <= bound, "{furthest} bytes of the ring are in use for {wait} frames that wait");
            assert!(refused <= wait, "{refused} of {} frames were refused", 20 * wait);
        }
    }

    /// OC-2: a frame that finds no memory is not lost, and comes next.
    #[test]
    fn a_frame_that_finds_no_memory_waits_on() {
        let (mut wire, _peer) = HeapWire::new(1500, 1, false).expect("a wire");
        let mut compact = Compact::new(4).expect("a ring");
        let run = compact.copy(&[7; 60], false).expect("it is small").run();
        let all = wire.alloc(1).expect("there is one");
        assert!(compact.frame(&run, &mut wire).is_none());
        drop(all);
        assert_eq!(compact.frame(&run, &mut wire).expect("memory").bytes(), [7; 60]);
    }

    /// Puts a frame at the end of a queue, as those who have a queue do.
    fn put(compact: &mut Compact, queue: &mut VecDeque<Waiting<Vec<u8>>>, frame: &[u8]) {
        let waiting = match compact.copy(frame, false) {
            Some(put) if put.follows && queue.back_mut().is_some_and(Waiting::lengthen) => return,
            Some(put) => Waiting::Small(put.run()),
            None => Waiting::Frame(frame.to_vec()),
        };
        queue.push_back(waiting);
    }

    /// The frame at the front of a queue, taken out.
    fn take(compact: &mut Compact, queue: &mut VecDeque<Waiting<Vec<u8>>>) -> Option<Vec<u8>> {
        let bytes = compact.bytes(queue.front()?).to_vec();
        compact.pop_front(queue).then_some(bytes)
    }

    proptest! {
        /// OC-2: whatever comes and goes, of whatever length, comes out as it went in, and in order.
        #[test]
        fn frames_come_out_as_they_went_in(
            steps in prop::collection::vec((1usize..700, any::<bool>()), 0..400),
            room in 0usize..8,
        ) {
            let mut compact = Compact::new(room).expect("a ring");
            let (mut queue, mut expected) = (VecDeque::new(), VecDeque::new());
            let mut fill = 0u8;
            for (len, goes) in steps {
                if goes {
                    prop_assert_eq!(take(&mut compact, &mut queue), expected.pop_front());
                } else {
                    fill = fill.wrapping_add(1);
                    let frame = vec![fill; len];
                    put(&mut compact, &mut queue, &frame);
                    expected.push_back(frame);
                }
                let mut seen = expected.iter();
                for waiting in &mut queue {
                    compact.each_mut(waiting, |bytes| assert_eq!(Some(&*bytes), seen.next().map(|frame| &frame[..])));
                }
                prop_assert_eq!(seen.next(), None);
            }
        }
    }
}
