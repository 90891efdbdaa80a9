//! What goes out of a guest's port: held, then let go, then routed.
//!
//! Owned by the polling core.

use super::monotonic_ns;
use crate::coalescing::BURST;
use crate::compact::{Compact, Waiting};
use crate::escrow::{Amount, Escrow, Limits};
use crate::frame::{Frame, Wire};
use crate::identity::{MAX_ADDRESSES, MAX_STATIONS};
use crate::segmentation::MAX_SEGMENTS;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Frames that an unprotected port may have waiting for a wire that takes none: more would only be
/// delay.
const NATIVE_BACKLOG: u64 = 512;

/// What a guest sent, until the wire has it. From the first queue to the last, order is kept (OC-2).
pub(super) struct Egress<F> {
    pub(super) escrow: Escrow<Waiting<F>>,
    /// May go, but has not been routed.
    pub(super) outbox: VecDeque<Waiting<F>>,
    /// Small frames of those two that had to wait for a commit.
    pub(super) compact: Compact,
    /// Routed, and waiting for the wire to take it; at most a burst.
    pub(super) to_wire: VecDeque<F>,
    /// What is in those two queues but the escrow.
    waiting: Amount,
    pub(super) fenced: bool,
    /// `CLOCK_MONOTONIC` in nanoseconds until which this host may transmit (FO-1).
    pub(super) lease: Arc<AtomicU64>,
}

impl<F: Frame> Egress<F> {
    /// # Errors
    /// When the host has no address space left.
    pub(super) fn new(limits: Limits, fenced: bool) -> io::Result<Self> {
        Ok(Self {
            escrow: Escrow::new(limits),
            outbox: VecDeque::with_capacity(limits.frames + 2 * MAX_SEGMENTS),
            compact: Compact::new(limits.frames)?,
            to_wire: VecDeque::with_capacity(BURST),
            waiting: Amount::default(),
            fenced,
            lease: Arc::new(AtomicU64::new(u64::MAX)),
        })
    }

    /// What may go but is still here.
    pub(super) const fn waiting(&self) -> Amount {
        self.waiting
    }

    /// Whether another frame of the guest may be taken.
    pub(super) fn has_room(&self) -> bool {
        let backlog = self.escrow.open_epoch().is_some() || self.waiting.frames < NATIVE_BACKLOG;
        !self.fenced && backlog && self.escrow.has_room(self.waiting())
    }

    /// Whether a frame may go to the wire now, past queues that are empty.
    pub(super) fn is_open(&self) -> bool {
        self.escrow.open_epoch().is_none() && self.waiting.frames == 0 && self.may_transmit(monotonic_ns)
    }

    /// Takes a captured frame: held while the port is protected (OC-1), on its way otherwise.
    pub(super) fn accept(&mut self, frame: F) {
        if self.escrow.open_epoch().is_none() {
            return self.send(frame);
        }
        if !self.hold_copy(frame.bytes(), frame.is_sound()) {
            let bytes = frame.bytes().len();
            let back = self.escrow.hold(Waiting::Frame(frame), bytes);
            debug_assert!(back.is_none(), "an epoch is open");
        }
    }

    /// Holds a copy of a frame for the commit of the epoch that is open; false, and nothing changed, if it is not a
    /// small one or there is no room for it.
    #[inline]
    fn hold_copy(&mut self, bytes: &[u8], is_sound: bool) -> bool {
        let Some(put) = self.compact.copy(bytes, is_sound) else { return false };
        // Only what is held is in the ring, so that the newest there is in the newest entry.
        if !put.follows || !self.escrow.hold_with_last(bytes.len(), Waiting::lengthen) {
            let back = self.escrow.hold(Waiting::Small(put.run()), bytes.len());
            debug_assert!(back.is_none(), "an epoch is open");
        }
        true
    }

    /// As [`Self::accept`], of a frame that is in no memory of a wire; false, and nothing changed, if there is none
    /// for it. A small one that has to wait needs none.
    #[inline]
    pub(super) fn accept_copy<W: Wire<Frame = F>>(&mut self, bytes: &[u8], wire: &mut W) -> bool {
        if self.escrow.open_epoch().is_some() && self.hold_copy(bytes, false) {
            return true;
        }
        wire.copy(bytes).map(|frame| self.accept(frame)).is_some()
    }

    /// Puts a frame that may go behind all others that may go.
    pub(super) fn send(&mut self, frame: F) {
        self.waiting.add(frame.bytes().len());
        self.outbox.push_back(Waiting::Frame(frame));
    }

    /// Counts frames that the escrow moved to the outbox.
    pub(super) fn released(&mut self, amount: Amount) {
        self.waiting.join(amount);
    }

    /// The next frame to be routed, in memory of `wire`; none as well when there is no memory for it now.
    #[inline]
    pub(super) fn next<W: Wire<Frame = F>>(&mut self, wire: &mut W) -> Option<F> {
        let frame = match self.outbox.front()? {
            Waiting::Frame(_) => match self.outbox.pop_front()? {
                Waiting::Frame(frame) => frame,
                Waiting::Small(_) => return None,
            },
            // One that finds no memory stays first in line (OC-2).
            Waiting::Small(run) => {
                let frame = self.compact.frame(run, wire)?;
                self.compact.pop_front(&mut self.outbox);
                frame
            }
        };
        self.waiting.less(1, frame.bytes().len() as u64);
        Some(frame)
    }

    /// Offers the next frame to be routed, if it is a small one that had to wait, to `give`; whether that has it.
    #[inline]
    pub(super) fn offer_small(&mut self, give: impl FnOnce(&[u8]) -> bool) -> bool {
        let Some(Waiting::Small(run)) = self.outbox.front() else { return false };
        let bytes = self.compact.oldest(run);
        let len = bytes.len() as u64;
        if !give(bytes) {
            return false;
        }
        self.compact.pop_front(&mut self.outbox);
        self.waiting.less(1, len);
        true
    }

    /// Has the frame fetched that is so far behind the next one. A hint.
    #[inline]
    pub(super) fn prefetch(&self, ahead: usize) {
        // The ring is read in order, which processors see by themselves.
        if let Some(Waiting::Frame(frame)) = self.outbox.get(ahead) {
            frame.prefetch();
        }
    }

    /// Puts a routed frame behind the others that the wire is to take.
    pub(super) fn route_to_wire(&mut self, frame: F) {
        self.waiting.add(frame.bytes().len());
        self.to_wire.push_back(frame);
    }

    /// Lets `send` take frames from the front for the wire; what it took is counted and returned.
    pub(super) fn hand_over(&mut self, send: impl FnOnce(&mut VecDeque<F>) -> usize) -> Amount {
        let bytes = |queue: &VecDeque<F>| queue.iter().map(|frame| frame.bytes().len() as u64).sum::<u64>();
        let before = bytes(&self.to_wire);
        let frames = send(&mut self.to_wire) as u64;
        let sent = Amount { frames, bytes: before - bytes(&self.to_wire) };
        self.waiting.less(sent.frames, sent.bytes);
        sent
    }

    /// Whether this host may transmit for the port now (FO-1). `clock` is asked only if it matters.
    pub(super) fn may_transmit(&self, clock: impl FnOnce() -> u64) -> bool {
        let until = self.lease.load(Ordering::Acquire);
        !self.fenced && (until == u64::MAX || clock() < until)
    }

    /// Drops everything; returns how many frames that was.
    pub(super) fn discard(&mut self) -> u64 {
        let dropped = self.escrow.discard().frames + self.waiting().frames;
        self.outbox.clear();
        self.compact.clear();
        self.to_wire.clear();
        self.waiting = Amount::default();
        dropped
    }
}

const _: () =
    assert!(NATIVE_BACKLOG as usize + MAX_SEGMENTS + MAX_STATIONS + MAX_ADDRESSES < 2 * MAX_SEGMENTS);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::tests::token;
    use crate::heap::HeapWire;
    use holdfast_epoch::EpochId;
    use proptest::prelude::*;

    #[test]
    fn what_waits_is_counted_through_all_queues() {
        let (mut wire, _peer) = HeapWire::new(1500, 8, false).expect("a wire");
        for is_held in [false, true] {
            let mut egress =
                Egress::new(Limits { frames: 10, bytes: 1000, inbound: 1 }, false).expect("a ring");
            if is_held {
                egress.escrow.protect(EpochId::FIRST).expect("a first epoch");
            }
            for len in 1..=3 {
                let frame = wire.alloc(len).expect("memory");
                egress.accept(frame);
            }
            if is_held {
                assert_eq!(egress.waiting(), Amount::default());
                let amount = egress.escrow.open(&mut egress.outbox, &mut |_, _| {});
                egress.released(amount);
            }
            assert_eq!(egress.waiting(), Amount { frames: 3, bytes: 6 });
            while let Some(frame) = egress.next(&mut wire) {
                egress.route_to_wire(frame);
            }
            let sent = egress.hand_over(|queue| queue.drain(..2).count());
            assert_eq!(sent, Amount { frames: 2, bytes: 3 });
            assert_eq!(egress.waiting(), Amount { frames: 1, bytes: 3 });
            assert_eq!(egress.discard(), 1);
            assert_eq!(egress.waiting(), Amount::default());
        }
    }

    /// OC-2: small frames that found no memory of the wire stay first in line, before those behind them.
    #[test]
    fn a_small_frame_that_finds_no_memory_is_waited_for() {
        let (mut wire, _peer) = HeapWire::new(1500, 2, false).expect("a wire");
        let mut egress =
            Egress::new(Limits { frames: 10, bytes: 10_000, inbound: 1 }, false).expect("a ring");
        egress.escrow.protect(EpochId::FIRST).expect("a first epoch");
        for len in [60, 1000] {
            let frame = wire.alloc(len).expect("memory");
            egress.accept(frame);
        }
        let amount = egress.escrow.open(&mut egress.outbox, &mut |_, _| {});
        egress.released(amount);
        let other = wire.alloc(1).expect("that of the small frame is free");
        assert!(egress.next(&mut wire).is_none());
        drop(other);
        let lens: Vec<usize> =
            std::iter::from_fn(|| egress.next(&mut wire)).map(|frame| frame.bytes().len()).collect();
        assert_eq!(lens, [60, 1000]);
    }

    /// FO-1: a lease that has run out, and a fence, keep frames back.
    #[test]
    fn transmission_ends_with_the_lease_and_with_the_fence() {
        let mut egress = Egress::<Vec<u8>>::new(Limits::default(), false).expect("a ring");
        assert!(egress.may_transmit(|| panic!("without a lease the clock is not asked")));
        egress.lease.store(1000, Ordering::Release);
        assert!(egress.may_transmit(|| 999));
        assert!(!egress.may_transmit(|| 1000));
        egress.lease.store(u64::MAX, Ordering::Release);
        egress.fenced = true;
        assert!(!egress.may_transmit(|| 0));
        assert!(!egress.has_room(), "a fenced port takes nothing from its guest");
    }

    fn amount<'a>(frames: impl Iterator<Item = &'a Vec<u8>>) -> Amount {
        let mut amount = Amount::default();
        frames.for_each(|frame| amount.add(frame.len()));
        amount
    }

    proptest! {
        /// OC-1, OC-2: whatever a guest sends, in whatever memory it waits, and however epochs are cut and let go:
        /// each frame leaves with its epoch, none before it, all in order, and what waits is what is counted.
        #[test]
        fn frames_go_with_their_epoch_and_in_order(
            frames in 1_usize..40,
            steps in prop::collection::vec((0_u8..15, 4_usize..700), 0..300),
        ) {
            let (mut wire, _peer) = HeapWire::new(1500, 4096, false).expect("a wire");
            let mut egress = Egress::new(Limits { frames, bytes: 1 << 20, inbound: 1 }, false).expect("a ring");
            let mut open = 1;
            egress.escrow.protect(EpochId::new(open)).expect("a first epoch");
            let (mut held, mut free) = (VecDeque::<(u64, Vec<u8>)>::new(), VecDeque::<Vec<u8>>::new());
            let mut sealed = VecDeque::new();
            for (nth, (step, len)) in steps.into_iter().enumerate() {
                // Small ones are in the majority, or there would be no runs.
                let len = if step % 3 == 0 { len } else { 4 + len % 60 };
                let frame: Vec<u8> = (nth as u32).to_le_bytes().into_iter().cycle().take(len).collect();
                match step {
                    0..=3 => {
                        prop_assert!(egress.accept_copy(&frame, &mut wire));
                        held.push_back((open, frame));
                    }
                    4..=6 => {
                        egress.accept(wire.copy(&frame).expect("memory"));
                        held.push_back((open, frame));
                    }
                    7..=8 if sealed.len() < 60 => {
                        egress.escrow.cut(EpochId::new(open)).expect("the open epoch");
                        sealed.push_back(open);
                        open += 1;
                    }
                    9..=10 if !sealed.is_empty() => {
                        let epoch = sealed[len % sealed.len()];
                        let mut left = Vec::new();
                        let Egress { escrow, outbox, compact, .. } = &mut egress;
                        let released = escrow.release(&token(1, epoch), outbox, &mut |epoch, waiting| {
                            compact.each_mut(waiting, |bytes| left.push((epoch.get(), bytes.to_vec())));
                        });
                        egress.released(released.expect("it is sealed"));
                        sealed.retain(|other| *other > epoch);
                        let due = held.iter().take_while(|(of, _)| *of <= epoch).count();
                        prop_assert!(held.drain(..due).eq(left.iter().cloned()), "what leaves is of its epoch");
                        free.extend(left.into_iter().map(|(_, frame)| frame));
                    }
                    11..=13 => for _ in 0..len % 8 {
                        let (mut offered, takes) = (None, len % 2 == 0);
                        if egress.offer_small(|bytes| { offered = Some(bytes.to_vec()); takes }) {
                            prop_assert_eq!(offered, free.pop_front());
                        } else {
                            let next = egress.next(&mut wire).map(|frame| frame.bytes().to_vec());
                            prop_assert_eq!(next, free.pop_front());
                        }
                    },
                    14 if len % 8 == 0 => {
                        prop_assert_eq!(egress.discard(), (held.len() + free.len()) as u64);
                        (held, free, sealed) = Default::default();
                    }
                    _ => {}
                }
                prop_assert_eq!(egress.waiting(), amount(free.iter()));
                prop_assert_eq!(egress.escrow.held(), amount(held.iter().map(|(_, frame)| frame)));
            }
        }
    }
}
