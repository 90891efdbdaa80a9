//! TCP sequence numbers: 32 bits that wrap (RFC 9293 §3.4).
//!
//! They have no total order, so [`SeqNum`] has no `Ord`: what is compared is the distance, which must
//! be below 2^31 to mean anything.

use std::fmt;

/// A sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SeqNum(u32);

impl SeqNum {
    /// The number as it is in a header.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// How far this is beyond `other`; negative when it is before it.
    #[must_use]
    pub const fn minus(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }

    /// Bytes from `earlier` up to this; zero when this is before `earlier`.
    #[must_use]
    pub const fn bytes_since(self, earlier: Self) -> u32 {
        let distance = self.minus(earlier);
        if distance < 0 { 0 } else { distance as u32 }
    }

    /// Whether this comes before `other`.
    #[must_use]
    pub const fn before(self, other: Self) -> bool {
        self.minus(other) < 0
    }

    /// Whether this comes after `other`.
    #[must_use]
    pub const fn after(self, other: Self) -> bool {
        self.minus(other) > 0
    }

    /// The later of the two.
    #[must_use]
    pub const fn later(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    /// The earlier of the two.
    #[must_use]
    pub const fn earlier(self, other: Self) -> Self {
        if self.after(other) { other } else { self }
    }
}

impl std::ops::Add<u32> for SeqNum {
    type Output = Self;

    /// `bytes` further on, wrapping.
    fn add(self, bytes: u32) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl std::ops::Sub<u32> for SeqNum {
    type Output = Self;

    /// `bytes` further back, wrapping.
    fn sub(self, bytes: u32) -> Self {
        Self(self.0.wrapping_sub(bytes))
    }
}

impl fmt::Display for SeqNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HALF: u32 = 1 << 31;

    proptest! {
        #[test]
        fn before_and_after_mirror_each_other(start: u32, by in 1..HALF) {
            let (low, high) = (SeqNum::new(start), SeqNum::new(start) + by);
            prop_assert!(low.before(high) && !low.after(high));
            prop_assert!(high.after(low) && !high.before(low));
        }

        #[test]
        fn the_difference_undoes_the_sum(start: u32, by in 0..HALF) {
            let low = SeqNum::new(start);
            prop_assert_eq!((low + by).minus(low) as u32, by);
            prop_assert_eq!((low + by).bytes_since(low), by);
            prop_assert_eq!(low.bytes_since(low + by), 0);
            prop_assert_eq!((low + by) - by, low);
        }

        #[test]
        fn the_later_of_two_is_not_before_either(start: u32, by in 0..HALF) {
            let (low, high) = (SeqNum::new(start), SeqNum::new(start) + by);
            prop_assert_eq!(low.later(high), high);
            prop_assert_eq!(high.later(low), high);
            prop_assert_eq!(low.earlier(high), low);
            prop_assert_eq!(high.earlier(low), low);
        }
    }
}
