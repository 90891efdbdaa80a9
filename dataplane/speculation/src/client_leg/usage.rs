//! Whether the congestion window is what limits a sender.
//!
//! A commit releases many bytes at once and then none for a while, so the moment of an ACK says little:
//! what counts is whether the window was full at any time in the flight that the ACK confirms
//! (RFC 9438 §5.8; RFC 7661 §4 for slow start).

use crate::SeqNum;

/// The use of the window over about a round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// The round ends when this is confirmed.
    until: SeqNum,
    /// The most bytes in flight in it.
    peak: u32,
    /// The window held bytes back.
    limited: bool,
}

impl Usage {
    pub(super) const fn new(start: SeqNum) -> Self {
        Self { until: start, peak: 0, limited: false }
    }

    /// A segment was sent, or (`limited`) held back by the window.
    pub(super) fn note(&mut self, una: SeqNum, nxt: SeqNum, in_flight: u32, limited: bool) {
        let over = !una.before(self.until);
        if over || limited || (!self.limited && in_flight > self.peak) {
            *self = Self { until: nxt, peak: in_flight, limited };
        }
    }

    /// Whether the window may grow: it was the limit; or, in slow start, at least half of it was used.
    pub(super) const fn is_limited(&self, window: u32, slow_start: bool) -> bool {
        self.limited || (slow_start && window / 2 < self.peak)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_was_full_counts_until_its_flight_is_confirmed() {
        // RFC 9438 §5.8
        let at = |bytes: u32| SeqNum::new(bytes);
        let mut usage = Usage::new(at(0));
        usage.note(at(0), at(10_000), 10_000, true);
        usage.note(at(5000), at(12_000), 7000, false);
        assert!(usage.is_limited(10_000, false));
        usage.note(at(10_000), at(12_500), 2500, false);
        assert!(!usage.is_limited(10_000, false));
        assert!(!usage.is_limited(10_000, true));
        assert!(usage.is_limited(4000, true));
    }
}
