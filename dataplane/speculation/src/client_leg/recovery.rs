//! The phases of loss recovery, and duplicate ACKs where there is no SACK (RFC 5681 §3.2, RFC 6582).

use crate::{SeqNum, Time};

/// RFC 5681 §3.2.
const DUP_THRESH: u8 = 3;

/// In which phase a sender is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No loss is known.
    Open,
    /// Fast recovery until `recover` is confirmed; the window was reduced at `reduced_at`.
    Fast { recover: SeqNum, reduced_at: Time },
    /// After a timeout with `head` at una, until `recover` is confirmed.
    Timeout { recover: SeqNum, head: SeqNum },
}

impl Phase {
    pub(super) const fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }

    pub(super) const fn is_fast(&self) -> bool {
        matches!(self, Self::Fast { .. })
    }

    /// Ends the phase when `una` has reached its end; answers whether it did.
    pub(super) fn reached(&mut self, una: SeqNum) -> bool {
        let over = match *self {
            Self::Open => false,
            Self::Fast { recover, .. } | Self::Timeout { recover, .. } => !una.before(recover),
        };
        if over {
            *self = Self::Open;
        }
        over
    }
}

/// Duplicate ACKs of a flow without SACK.
#[derive(Clone, Copy, Debug)]
pub(super) struct Duplicates {
    /// In a row.
    count: u8,
    /// Bytes that they say have left the network: a segment each, less what partial ACKs have taken back.
    credit: u32,
    /// While `guarded`, nothing at or below this starts a fast retransmit (RFC 6582 §3.2 step 1).
    recover: SeqNum,
    guarded: bool,
    /// A partial ACK has come in this recovery (RFC 6582 §3.2 step 3).
    partial: bool,
}

impl Duplicates {
    pub(super) const fn new(start: SeqNum) -> Self {
        Self { count: 0, credit: 0, recover: start, guarded: false, partial: false }
    }

    /// Bytes to be taken off those in flight: what limited transmit (RFC 3042) and the inflated window
    /// (RFC 5681 §3.2 steps 1 and 4) allow beyond the window.
    pub(super) const fn credit(&self) -> u32 {
        self.credit
    }

    /// A duplicate ACK; answers whether it is the one that starts a fast retransmit.
    pub(super) fn duplicate(&mut self, una: SeqNum, phase: &Phase, mss: u32) -> bool {
        match phase {
            // The segments sent since are not the ones that these are about.
            Phase::Timeout { .. } => return false,
            Phase::Fast { .. } => self.credit = self.credit.saturating_add(mss),
            Phase::Open => {
                self.count = self.count.saturating_add(1);
                if self.count < DUP_THRESH {
                    // RFC 3042: a new segment for each of the first two.
                    self.credit = u32::from(self.count) * mss;
                }
            }
        }
        if self.count == DUP_THRESH && phase.is_open() && (!self.guarded || una.after(self.recover)) {
            self.credit = u32::from(DUP_THRESH) * mss;
            return true;
        }
        false
    }

    /// A recovery begins.
    pub(super) fn begin(&mut self, nxt: SeqNum) {
        (self.recover, self.guarded) = (nxt, true);
        self.partial = false;
    }

    /// `bytes` were confirmed within a recovery that goes on (RFC 6582 §3.2 step 3): the window deflates
    /// by them and grows by a segment. Answers whether it was the first such ACK, the only one to restart
    /// the RTO.
    pub(super) fn partial(&mut self, bytes: u32, mss: u32) -> bool {
        self.credit = self.credit.saturating_sub(bytes.saturating_sub(mss));
        !std::mem::replace(&mut self.partial, true)
    }

    /// All before `una` is confirmed: what is beyond the guard is not to be held by it when the numbers
    /// have wrapped.
    pub(super) fn confirmed(&mut self, una: SeqNum) {
        self.guarded &= !una.after(self.recover);
    }

    /// New data was confirmed outside of a recovery, or a recovery ended.
    pub(super) fn reset(&mut self) {
        self.count = 0;
        self.credit = 0;
    }

    /// A timeout (RFC 6582 §3.2 step 4).
    pub(super) fn timeout(&mut self, nxt: SeqNum) {
        self.reset();
        (self.recover, self.guarded) = (nxt, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNA: SeqNum = SeqNum::new(100);

    #[test]
    fn the_third_duplicate_starts_a_fast_retransmit() {
        // RFC 5681 §3.2, RFC 3042
        let mut duplicates = Duplicates::new(UNA);
        assert!(!duplicates.duplicate(UNA, &Phase::Open, 1000));
        assert_eq!(duplicates.credit(), 1000);
        assert!(!duplicates.duplicate(UNA, &Phase::Open, 1000));
        assert!(duplicates.duplicate(UNA, &Phase::Open, 1000));
        assert_eq!(duplicates.credit(), 3000);
    }

    #[test]
    fn duplicates_of_an_old_window_start_none() {
        // RFC 6582 §3.2 step 1
        let mut duplicates = Duplicates::new(UNA);
        duplicates.timeout(UNA);
        assert!((0..9).all(|_| !duplicates.duplicate(UNA, &Phase::Open, 1000)));
        assert_eq!(duplicates.credit(), 2000);
        duplicates.reset();
        duplicates.confirmed(UNA + 1);
        assert_eq!((0..9).filter(|_| duplicates.duplicate(UNA + 1, &Phase::Open, 1000)).count(), 1);
    }

    #[test]
    fn a_partial_ack_deflates_the_window_and_the_first_is_told() {
        // RFC 6582 §3.2 step 3
        let mut duplicates = Duplicates::new(UNA);
        let phase = Phase::Fast { recover: UNA, reduced_at: Time::ZERO };
        for _ in 0..5 {
            duplicates.duplicate(UNA, &phase, 1000);
        }
        assert!(duplicates.partial(3000, 1000));
        assert_eq!(duplicates.credit(), 3000);
        assert!(!duplicates.partial(9000, 1000));
        assert_eq!(duplicates.credit(), 0);
    }

    #[test]
    fn a_phase_ends_when_its_end_is_confirmed() {
        let mut phase = Phase::Timeout { recover: UNA, head: UNA };
        assert!(!phase.reached(UNA - 1));
        assert!(phase.reached(UNA));
        assert!(phase.is_open());
    }
}
