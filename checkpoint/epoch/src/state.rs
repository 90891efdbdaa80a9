//! The states of an epoch on the primary, consumed by value.

use crate::{EpochId, Term};
use std::collections::VecDeque;
use thiserror::Error;

/// Digest of everything an epoch carries: 32 bytes of BLAKE3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

/// One epoch of one term, in state `S`.
#[derive(Debug)]
#[must_use = "an epoch that is dropped is lost: abort it, so that its pages stay dirty"]
pub struct Epoch<S> {
    term: Term,
    id: EpochId,
    state: S,
}

/// The guest runs in this epoch.
#[derive(Debug)]
pub struct Open(());

/// The guest stood still and this epoch's state was captured; `C` is what was captured.
#[derive(Debug)]
pub struct Sealed<C>(C);

/// All of the epoch was handed to the transport; the backup has not confirmed it yet.
#[derive(Debug)]
pub struct Replicated<C> {
    carried: C,
    digest: Digest,
}

/// The backup confirmed that it holds all of the epoch.
#[derive(Debug)]
pub struct Committed(());

impl<S> Epoch<S> {
    /// Term in which the epoch was opened.
    pub const fn term(&self) -> Term {
        self.term
    }

    /// Number of the epoch.
    pub const fn id(&self) -> EpochId {
        self.id
    }
}

impl Epoch<Open> {
    /// Opens the epoch `id` of `term`: the first of a session, or the one after an aborted one.
    pub const fn open(term: Term, id: EpochId) -> Self {
        Self { term, id, state: Open(()) }
    }

    /// Seals the epoch with what was captured of it, and opens the next one.
    pub fn seal<C>(self, captured: C) -> (Epoch<Sealed<C>>, Self) {
        let next = Self::open(self.term, self.id.next());
        (Epoch { term: self.term, id: self.id, state: Sealed(captured) }, next)
    }
}

impl<C> Epoch<Sealed<C>> {
    /// What the seal captured.
    pub const fn captured(&self) -> &C {
        &self.state.0
    }

    /// All of the epoch was handed to the transport under `digest`; `carry` says what must be kept
    /// until the commit (the set of its pages, so that an abort can mark them dirty again: CK-2).
    pub fn replicated<D>(self, digest: Digest, carry: impl FnOnce(C) -> D) -> Epoch<Replicated<D>> {
        let Sealed(captured) = self.state;
        Epoch { term: self.term, id: self.id, state: Replicated { carried: carry(captured), digest } }
    }

    /// Gives the epoch up and hands back what was captured: its pages stay dirty (CK-2).
    pub fn abort(self) -> C {
        self.state.0
    }
}

impl<C> Epoch<Replicated<C>> {
    /// Takes the backup's word that it holds this epoch.
    ///
    /// # Errors
    /// When the confirmation speaks of another term, epoch or digest; the epoch comes back unharmed.
    pub fn commit(self, word: &Confirmation) -> Result<(Epoch<Committed>, C), (Self, ConfirmationError)> {
        let fault = if word.term != self.term {
            Some(ConfirmationError::Term { expected: self.term, found: word.term })
        } else if word.epoch != self.id {
            Some(ConfirmationError::Epoch { expected: self.id, found: word.epoch })
        } else if word.digest != self.state.digest {
            Some(ConfirmationError::Digest { epoch: self.id })
        } else {
            None
        };
        match fault {
            Some(fault) => Err((self, fault)),
            None => {
                let done = Epoch { term: self.term, id: self.id, state: Committed(()) };
                Ok((done, self.state.carried))
            }
        }
    }

    /// Gives the epoch up and hands back what was kept: its pages stay dirty (CK-2).
    pub fn abort(self) -> C {
        self.state.carried
    }
}

impl Epoch<Committed> {
    /// The token that opens the escrow up to this epoch.
    #[must_use]
    pub fn into_release_token(self) -> ReleaseToken {
        ReleaseToken { term: self.term, epoch: self.id }
    }
}

/// The backup's word that it holds all of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// Term of the session in which the epoch was sent.
    pub term: Term,
    /// The epoch confirmed.
    pub epoch: EpochId,
    /// Digest that the backup computed over what it holds.
    pub digest: Digest,
}

/// Why a confirmation was not accepted; the peer is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfirmationError {
    /// The confirmation belongs to another term.
    #[error("the backup confirmed term {found} while term {expected} was sent")]
    Term {
        /// Term in which the epoch was sent.
        expected: Term,
        /// Term that the backup named.
        found: Term,
    },
    /// Confirmations come in order; this one does not.
    #[error("the backup confirmed epoch {found} while epoch {expected} was next")]
    Epoch {
        /// Oldest epoch without a confirmation.
        expected: EpochId,
        /// Epoch that the backup named.
        found: EpochId,
    },
    /// The backup holds other bytes than were sent.
    #[error("the backup holds other bytes of epoch {epoch} than were sent")]
    Digest {
        /// Epoch in question.
        epoch: EpochId,
    },
    /// Nothing was waiting for a confirmation.
    #[error("the backup confirmed epoch {found} while none was in flight")]
    NothingInFlight {
        /// Epoch that the backup named.
        found: EpochId,
    },
}

/// Proof that an epoch was committed. It opens the escrow for every output of that epoch and of the
/// epochs before it. A copy proves the same, so several ports of a VM may each be given one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseToken {
    term: Term,
    epoch: EpochId,
}

impl ReleaseToken {
    /// Newest epoch whose outputs may go.
    #[must_use]
    pub const fn epoch(&self) -> EpochId {
        self.epoch
    }

    /// Term in which the epoch was committed.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }
}

/// Epochs that were sent and not yet confirmed, oldest first, bounded by `limit`.
#[derive(Debug)]
pub struct InFlight<C> {
    epochs: VecDeque<Epoch<Replicated<C>>>,
    limit: usize,
}

impl<C> InFlight<C> {
    /// None in flight; at most `limit` at a time.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        assert!(limit > 0, "at least one epoch must be allowed in flight");
        Self { epochs: VecDeque::with_capacity(limit), limit }
    }

    /// Epochs in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.epochs.len()
    }

    /// Whether none is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.epochs.is_empty()
    }

    /// Whether another epoch may be sent.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.epochs.len() < self.limit
    }

    /// Adds a sent epoch.
    ///
    /// # Panics
    /// When there is no room or the epoch is not the next one: both are bugs of the caller.
    pub fn push(&mut self, epoch: Epoch<Replicated<C>>) {
        assert!(self.has_room(), "no room for another epoch in flight");
        if let Some(last) = self.epochs.back() {
            assert_eq!(last.id().next(), epoch.id(), "epochs are sent in order");
        }
        self.epochs.push_back(epoch);
    }

    /// Takes the confirmation of the oldest epoch in flight; returns its token and what was kept.
    ///
    /// # Errors
    /// When the confirmation does not match the oldest epoch; nothing changes.
    pub fn confirm(&mut self, word: &Confirmation) -> Result<(ReleaseToken, C), ConfirmationError> {
        let Some(oldest) = self.epochs.pop_front() else {
            return Err(ConfirmationError::NothingInFlight { found: word.epoch });
        };
        match oldest.commit(word) {
            Ok((done, kept)) => Ok((done.into_release_token(), kept)),
            Err((oldest, fault)) => {
                self.epochs.push_front(oldest);
                Err(fault)
            }
        }
    }

    /// Gives all of them up, oldest first: what was kept comes back, so that its pages stay dirty.
    pub fn abort_all(&mut self) -> impl Iterator<Item = C> + '_ {
        self.epochs.drain(..).map(Epoch::<Replicated<C>>::abort)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: Digest = Digest([7; 32]);

    fn sent(id: u64) -> Epoch<Replicated<u64>> {
        let (sealed, _) = Epoch::open(Term::new(3), EpochId::new(id)).seal(id);
        sealed.replicated(DIGEST, |pages| pages)
    }

    fn word(term: u64, epoch: u64, digest: Digest) -> Confirmation {
        Confirmation { term: Term::new(term), epoch: EpochId::new(epoch), digest }
    }

    #[test]
    fn a_token_comes_only_from_a_matching_confirmation() {
        let mut flight = InFlight::new(2);
        flight.push(sent(1));
        flight.push(sent(2));
        assert!(!flight.has_room());
        let cases = [
            (word(2, 1, DIGEST), "term"),
            (word(3, 2, DIGEST), "epoch"),
            (word(3, 1, Digest([0; 32])), "bytes"),
        ];
        for (wrong, part) in cases {
            let fault = flight.confirm(&wrong).expect_err("a wrong word is refused");
            assert!(fault.to_string().contains(part), "{fault}");
            assert_eq!(flight.len(), 2, "a refused word changes nothing");
        }
        let (token, kept) = flight.confirm(&word(3, 1, DIGEST)).expect("the right word is taken");
        assert_eq!((token.epoch(), token.term(), kept), (EpochId::new(1), Term::new(3), 1));
    }

    #[test]
    fn an_aborted_epoch_hands_its_pages_back() {
        let mut flight = InFlight::new(4);
        (1..=3).for_each(|id| flight.push(sent(id)));
        assert_eq!(flight.abort_all().collect::<Vec<_>>(), [1, 2, 3]);
        assert!(flight.is_empty());
    }

    #[test]
    fn a_confirmation_out_of_the_blue_is_refused() {
        let mut flight = InFlight::<u64>::new(1);
        assert_eq!(
            flight.confirm(&word(1, 9, DIGEST)),
            Err(ConfirmationError::NothingInFlight { found: EpochId::new(9) })
        );
    }
}
