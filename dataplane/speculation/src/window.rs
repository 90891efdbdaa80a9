//! Windows: scaled as they are in headers, unscaled in bytes.

use crate::seq::SeqNum;

/// Window scale of one side (RFC 7323 §2.3): at most 14 count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scale(u8);

/// A window as it is in a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scaled(pub(crate) u16);

impl Scale {
    /// None: windows are bytes.
    pub(crate) const NONE: Self = Self(0);

    /// The scale of an option; more than 14 counts as 14 (RFC 7323 §2.3).
    pub(crate) const fn new(shift: u8) -> Self {
        Self(if shift > 14 { 14 } else { shift })
    }

    /// The shift.
    pub(crate) const fn shift(self) -> u8 {
        self.0
    }

    /// Bytes that one step of a window stands for.
    pub(crate) const fn unit(self) -> u32 {
        1 << self.0
    }

    /// Bytes of a window.
    pub(crate) const fn bytes(self, window: Scaled) -> u32 {
        (window.0 as u32) << self.0
    }

    /// The window to be shown with `ack`, and the edge that it makes: as near to `target` as the scale
    /// allows without going beyond, but never left of `shown` (SP-4; RFC 9293 §3.8.6, RFC 7323 §2.4: a
    /// window that the scale would cut is rounded up).
    pub(crate) fn offer(self, ack: SeqNum, shown: SeqNum, target: SeqNum) -> (Scaled, SeqNum) {
        let wanted = target.bytes_since(ack) >> self.0;
        let owed = shown.bytes_since(ack).div_ceil(self.unit());
        let window = wanted.max(owed).min(u32::from(u16::MAX));
        let edge = ack + (window << self.0);
        (Scaled(window as u16), edge.later(shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// SP-4: whatever was shown before and is wanted now, the edge does not move left, and what is
        /// shown is what is counted.
        #[test]
        fn the_edge_of_an_offer_never_moves_left(
            ack: u32, shift in 0u8..20, ahead in 0u32..1 << 22, target in -5000i64..1 << 23,
        ) {
            let scale = Scale::new(shift);
            let ack = SeqNum::new(ack);
            let shown = ack + ahead.min(scale.bytes(Scaled(u16::MAX)));
            let target = ack + (target as u32);
            let (window, edge) = scale.offer(ack, shown, target);
            prop_assert!(!edge.before(shown));
            prop_assert_eq!(ack + scale.bytes(window), edge);
            let bound = target.later(shown + (scale.unit() - 1));
            prop_assert!(!edge.after(bound));
        }
    }

    #[test]
    fn a_scale_beyond_fourteen_counts_as_fourteen() {
        assert_eq!(Scale::new(15), Scale::new(14));
        assert_eq!(Scale::new(7).bytes(Scaled(502)), 64256);
        assert_eq!(Scale::NONE.unit(), 1);
    }
}
