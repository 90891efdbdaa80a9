//! The output-commit queue of one port: what the guest sent waits here for its commit.
//!
//! ```text
//!  capture --hold--> [ open bucket ] --cut k--> [ k ] [ k-1 ] ... --release(token k)--> outbox
//! ```
//!
//! Frames are in one queue in the guest's order, an entry each or several in one, and buckets are counts of it from
//! the front: the sealed ones by epoch, then the open one; no entry is in two. Only a [`ReleaseToken`] moves frames out, those of its
//! epoch and of the epochs before it (OC-1), from the front (OC-2). A token of an epoch that is not
//! sealed here, or of an older term, moves nothing (FO-1).
//!
//! Bounds: frames, bytes and sealed epochs, see [`Limits`]. At the bound the port stops taking from
//! the guest's ring, and goes on after the next release: backpressure, not loss. Queues are allocated
//! at start for their bound.
//!
//! Owned by the polling core.

use crate::segmentation::MAX_SEGMENTS;
use holdfast_epoch::{EpochId, ReleaseToken, Term};
use std::collections::VecDeque;
use thiserror::Error;

/// Epochs that are kept apart while they are sealed and not yet released.
pub const MAX_SEALED: usize = 64;

/// How much a port may hold before its guest has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frames held or waiting for the wire. One frame of the guest may exceed it by its segments.
    pub frames: usize,
    /// Bytes of those.
    pub bytes: usize,
    /// Frames that wait for the guest to take them.
    pub inbound: usize,
}

impl Default for Limits {
    /// Enough for a gigabit a second over 100 ms.
    fn default() -> Self {
        Self { frames: 16 * 1024, bytes: 24 << 20, inbound: 2048 }
    }
}

/// How many frames and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Frames.
    pub frames: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    /// One frame more, of so many bytes.
    pub(crate) const fn add(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }

    pub(crate) const fn join(&mut self, other: Self) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }

    /// So many frames and bytes less.
    pub(crate) const fn less(&mut self, frames: u64, bytes: u64) {
        self.frames -= frames;
        self.bytes -= bytes;
    }
}

/// Why the escrow did not do what it was told; nothing has changed then. The controller is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EscrowError {
    /// The token is of an older term (FO-1).
    #[error("the token of epoch {epoch} is of term {found}, but term {known} has begun; discard it")]
    StaleTerm {
        /// Epoch of the token.
        epoch: EpochId,
        /// Term of the token.
        found: Term,
        /// Newest term known here.
        known: Term,
    },
    /// The epoch is not sealed here: still open, released already, or never cut (OC-1).
    #[error("epoch {epoch} is not sealed here; cut it first, and release each epoch once")]
    NotSealed {
        /// Epoch of the token.
        epoch: EpochId,
    },
    /// Epochs are cut in order.
    #[error("epoch {epoch} cannot be cut: {open} is the open one, and epochs follow each other")]
    Order {
        /// Epoch named.
        epoch: EpochId,
        /// Epoch that is open.
        open: EpochId,
    },
    /// The port was never fenced out of a term, or not in this one (FO-1).
    #[error("term {found} cannot be begun: term {known} is the newest; obtain a newer one")]
    OldTerm {
        /// Term named.
        found: Term,
        /// Newest term known here.
        known: Term,
    },
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    epoch: EpochId,
    amount: Amount,
    /// Of the queue.
    entries: usize,
}

impl Bucket {
    const fn empty(epoch: EpochId) -> Self {
        Self { epoch, amount: Amount { frames: 0, bytes: 0 }, entries: 0 }
    }
}

/// The output-commit queue of one port.
#[derive(Debug)]
pub struct Escrow<F> {
    frames: VecDeque<F>,
    sealed: VecDeque<Bucket>,
    /// The epoch that runs, and what it has sent; none while the port is not protected.
    open: Option<Bucket>,
    held: Amount,
    term: Term,
    limits: Limits,
}

impl<F> Escrow<F> {
    /// An empty escrow of a port that is not protected.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            frames: VecDeque::with_capacity(limits.frames + MAX_SEGMENTS),
            sealed: VecDeque::with_capacity(MAX_SEALED),
            open: None,
            held: Amount::default(),
            term: Term::NONE,
            limits,
        }
    }

    /// The epoch in which frames are captured now; none while the port is not protected.
    #[must_use]
    pub fn open_epoch(&self) -> Option<EpochId> {
        self.open.map(|bucket| bucket.epoch)
    }

    /// Newest term that was heard of.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// What is held, sealed or open.
    #[must_use]
    pub const fn held(&self) -> Amount {
        self.held
    }

    /// Whether another frame of the guest may be captured while `waiting` frames and bytes of it
    /// wait for the wire.
    #[must_use]
    pub fn has_room(&self, waiting: Amount) -> bool {
        self.held.frames + waiting.frames < self.limits.frames as u64
            && self.held.bytes + waiting.bytes < self.limits.bytes as u64
    }

    /// Holds a frame of so many bytes until the commit of the open epoch; gives it back when the port is not
    /// protected.
    ///
    /// Bound: O(1). Allocations: none below the limits. With its part of the cut and the release: 5 ns a frame
    /// (`cargo bench -p holdfast-dataplane`).
    #[must_use = "a frame that comes back is to be sent"]
    pub fn hold(&mut self, frame: F, bytes: usize) -> Option<F> {
        let Some(open) = &mut self.open else { return Some(frame) };
        open.amount.add(bytes);
        open.entries += 1;
        self.held.add(bytes);
        self.frames.push_back(frame);
        None
    }

    /// Holds a frame of so many bytes in the entry of the one before it, if that is of the open epoch and `lengthen`
    /// takes it in; whether it did.
    ///
    /// Bound, allocations and cost: as [`Escrow::hold`].
    #[inline]
    pub fn hold_with_last(&mut self, bytes: usize, lengthen: impl FnOnce(&mut F) -> bool) -> bool {
        let Some(open) = self.open.as_mut().filter(|open| open.entries > 0) else { return false };
        if !self.frames.back_mut().is_some_and(lengthen) {
            return false;
        }
        open.amount.add(bytes);
        self.held.add(bytes);
        true
    }

    /// From now on output is held; `first` is the epoch that runs. What is held already stays held.
    ///
    /// # Errors
    /// [`EscrowError::Order`] when `first` is not beyond the sealed epochs.
    pub fn protect(&mut self, first: EpochId) -> Result<(), EscrowError> {
        self.may_protect(first)?;
        let open = self.open.unwrap_or(Bucket::empty(first));
        self.open = Some(Bucket { epoch: first, ..open });
        Ok(())
    }

    /// Whether [`Escrow::protect`] would do it.
    ///
    /// # Errors
    /// Those of [`Escrow::protect`].
    pub fn may_protect(&self, first: EpochId) -> Result<(), EscrowError> {
        match self.sealed.back().filter(|last| first <= last.epoch) {
            Some(last) => Err(EscrowError::Order { epoch: first, open: last.epoch.next() }),
            None => Ok(()),
        }
    }

    /// Seals the open bucket: all that it holds belongs to `epoch`, and the next epoch is open.
    /// Epochs may be skipped (they were aborted, and `epoch` carries what they had). Where too many are sealed
    /// already the two oldest become one, of the later of them: far fewer are on their way, so that these were
    /// aborted with their sessions, and go out with a later one (OC-1).
    ///
    /// Bound: O(1), whatever is held. Allocations: none.
    ///
    /// # Errors
    /// [`EscrowError::Order`].
    pub fn cut(&mut self, epoch: EpochId) -> Result<Amount, EscrowError> {
        self.may_cut(epoch)?;
        let Some(open) = self.open else { return Ok(Amount::default()) };
        if self.sealed.len() == MAX_SEALED {
            if let Some(oldest) = self.sealed.pop_front() {
                self.sealed[0].amount.join(oldest.amount);
                self.sealed[0].entries += oldest.entries;
            }
        }
        self.sealed.push_back(Bucket { epoch, ..open });
        self.open = Some(Bucket::empty(epoch.next()));
        Ok(open.amount)
    }

    /// Whether [`Escrow::cut`] would do it.
    ///
    /// # Errors
    /// Those of [`Escrow::cut`].
    pub fn may_cut(&self, epoch: EpochId) -> Result<(), EscrowError> {
        match self.open {
            Some(open) if epoch < open.epoch => Err(EscrowError::Order { epoch, open: open.epoch }),
            _ => Ok(()),
        }
    }

    /// Moves the frames of the token's epoch, and of the epochs before it, to `out`, in order; `adapt` sees
    /// each on its way, with its epoch.
    ///
    /// Bound: O(frames released). Allocations: none when `out` has room. Its cost is in that of [`Escrow::hold`].
    ///
    /// # Errors
    /// [`EscrowError::StaleTerm`] or [`EscrowError::NotSealed`]; nothing is moved then.
    pub fn release(
        &mut self,
        token: &ReleaseToken,
        out: &mut VecDeque<F>,
        adapt: &mut dyn FnMut(EpochId, &mut F),
    ) -> Result<Amount, EscrowError> {
        let epoch = token.epoch();
        self.may_release(token)?;
        self.term = token.term();
        let mut released = Amount::default();
        while let Some(&bucket) = self.sealed.front().filter(|bucket| bucket.epoch <= epoch) {
            self.sealed.pop_front();
            self.move_out(bucket, out, adapt);
            released.join(bucket.amount);
        }
        Ok(released)
    }

    /// Whether [`Escrow::release`] would do it.
    ///
    /// # Errors
    /// Those of [`Escrow::release`].
    pub fn may_release(&self, token: &ReleaseToken) -> Result<(), EscrowError> {
        let epoch = token.epoch();
        if token.term() < self.term {
            return Err(EscrowError::StaleTerm { epoch, found: token.term(), known: self.term });
        }
        // A port that is not protected holds nothing: there is nothing to release early.
        let sealed = self.sealed.iter().any(|bucket| bucket.epoch == epoch);
        if self.open.is_some() && !sealed {
            return Err(EscrowError::NotSealed { epoch });
        }
        Ok(())
    }

    /// The port is not protected any more: everything held moves to `out`, in order. Only for a VM
    /// that the arbiter let run alone, or whose protection its operator ended (the exception of OC-1).
    /// `adapt` as for [`Escrow::release`].
    pub fn open(&mut self, out: &mut VecDeque<F>, adapt: &mut dyn FnMut(EpochId, &mut F)) -> Amount {
        let released = self.held;
        while let Some(bucket) = self.sealed.pop_front().or_else(|| self.open.take()) {
            self.move_out(bucket, out, adapt);
        }
        released
    }

    /// Drops everything that is held; the open epoch stays open.
    pub fn discard(&mut self) -> Amount {
        let dropped = std::mem::take(&mut self.held);
        self.frames.clear();
        self.sealed.clear();
        if let Some(open) = &mut self.open {
            *open = Bucket::empty(open.epoch);
        }
        dropped
    }

    /// Begins a term; the caller has it from the arbiter.
    ///
    /// # Errors
    /// [`EscrowError::OldTerm`] when it is not newer than the newest known (FO-1).
    pub fn begin_term(&mut self, term: Term) -> Result<(), EscrowError> {
        self.may_begin(term)?;
        self.term = term;
        Ok(())
    }

    /// Whether [`Escrow::begin_term`] would do it.
    ///
    /// # Errors
    /// Those of [`Escrow::begin_term`].
    pub fn may_begin(&self, term: Term) -> Result<(), EscrowError> {
        if term <= self.term {
            return Err(EscrowError::OldTerm { found: term, known: self.term });
        }
        Ok(())
    }

    fn move_out(
        &mut self,
        Bucket { epoch, amount, entries }: Bucket,
        out: &mut VecDeque<F>,
        adapt: &mut dyn FnMut(EpochId, &mut F),
    ) {
        out.extend(self.frames.drain(..entries).map(|mut frame| {
            adapt(epoch, &mut frame);
            frame
        }));
        self.held.less(amount.frames, amount.bytes);
    }
}

#[cfg(test)]
pub(crate) mod tests;
