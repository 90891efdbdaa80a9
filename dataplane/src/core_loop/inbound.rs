//! What came in for a guest, until it has taken it.
//!
//! Owned by the polling core.

use crate::coalescing::Burst;
use crate::compact::{Compact, Waiting};
use crate::counters::DropReason;
use crate::escrow::Limits;
use crate::frame::Frame;
use crate::guest::Offloads;
use std::collections::VecDeque;
use std::io;

/// What came in for a guest, until it has taken it.
pub(super) struct Inbound<F> {
    pub(super) queue: VecDeque<Waiting<F>>,
    /// Frames in it.
    queued: usize,
    /// Small frames of the queue that came from a neighbour.
    pub(super) compact: Compact,
    pub(super) burst: Burst<F>,
    limit: usize,
    /// Since when the guest has been standing still.
    pub(super) stopped_since_ns: Option<u64>,
    /// It has stood still for too long: nothing is kept for it.
    pub(super) away: bool,
    /// It had no buffers for the first frame of the queue, which is offered as it is.
    pub(super) plain_is_blocked: bool,
    /// Since when a running guest has had no buffers for what comes next.
    pub(super) stuck_since_ns: Option<u64>,
}

impl<F: Frame> Inbound<F> {
    /// # Errors
    /// When the host has no address space left.
    pub(super) fn new(limits: Limits) -> io::Result<Self> {
        Ok(Self {
            queue: VecDeque::with_capacity(limits.inbound),
            queued: 0,
            compact: Compact::new(limits.inbound)?,
            burst: Burst::new(),
            limit: limits.inbound,
            stopped_since_ns: None,
            away: false,
            plain_is_blocked: false,
            stuck_since_ns: None,
        })
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.burst.is_empty()
    }

    /// Whether the guest has not taken all that was offered.
    pub(super) fn is_blocked(&self) -> bool {
        !self.burst.is_empty() || (self.plain_is_blocked && !self.queue.is_empty())
    }

    /// Whether a frame that is pushed now is kept.
    pub(super) fn has_room(&self) -> bool {
        !self.away && self.queued < self.limit
    }

    /// Queues a frame, unless the queue is full or the guest away; then it is given back, with the reason.
    pub(super) fn push(&mut self, frame: F) -> Result<(), (DropReason, F)> {
        match self.refuses() {
            Some(reason) => Err((reason, frame)),
            None => {
                self.queue.push_back(Waiting::Frame(frame));
                self.queued += 1;
                Ok(())
            }
        }
    }

    /// As [`Self::push`], of a copy of a small frame; false, and nothing happened, if it cannot be kept so.
    pub(super) fn push_copy(&mut self, bytes: &[u8]) -> bool {
        if self.refuses().is_some() {
            return false;
        }
        let Some(put) = self.compact.copy(bytes, false) else { return false };
        if !put.follows || !self.queue.back_mut().is_some_and(Waiting::lengthen) {
            self.queue.push_back(Waiting::Small(put.run()));
        }
        self.queued += 1;
        true
    }

    fn refuses(&self) -> Option<DropReason> {
        match (self.away, self.has_room()) {
            (true, _) => Some(DropReason::Stale),
            (_, false) => Some(DropReason::InboundFull),
            _ => None,
        }
    }

    /// Takes up to a burst from the front for a guest that has it merged. Small frames, which came when it had another
    /// driver, are dropped; how many.
    pub(super) fn fill(&mut self, offloads: Offloads) -> usize {
        let mut stale = 0;
        while matches!(self.queue.front(), Some(Waiting::Small(_))) {
            stale += self.skip();
        }
        let Self { queue, queued, burst, .. } = self;
        let mut frames = std::iter::from_fn(|| match queue.pop_front()? {
            Waiting::Frame(frame) => {
                *queued -= 1;
                Some(frame)
            }
            small => {
                queue.push_front(small);
                None
            }
        });
        burst.fill(offloads, &mut frames);
        stale
    }

    /// Drops the next frame of the queue; how many that was.
    #[inline]
    pub(super) fn skip(&mut self) -> usize {
        let skipped = usize::from(self.compact.pop_front(&mut self.queue));
        self.queued -= skipped;
        skipped
    }

    /// Drops everything; returns how many frames that was.
    pub(super) fn discard(&mut self) -> u64 {
        let dropped = std::mem::take(&mut self.queued) + self.burst.clear();
        self.queue.clear();
        self.compact.clear();
        dropped as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small frames leave their ring whichever way they go.
    #[test]
    fn no_small_frame_stays_behind_in_the_ring() {
        let mut inbound =
            Inbound::<Vec<u8>>::new(Limits { inbound: 8, ..Limits::default() }).expect("a ring");
        for _ in 0..3 {
            assert!(inbound.push_copy(&[1; 60]));
            inbound.push(vec![2; 60]).expect("room");
        }
        assert_eq!(inbound.skip(), 1);
        assert_eq!(inbound.fill(Offloads::default()), 0);
        inbound.burst.clear();
        assert_eq!(inbound.fill(Offloads::default()), 1);
        assert!(!inbound.compact.is_empty());
        assert_eq!(inbound.skip(), 1);
        assert!(inbound.compact.is_empty());
    }
}
