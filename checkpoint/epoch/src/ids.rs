//! Numbers that must not be mistaken for each other.

use std::fmt;

/// Number of an epoch within a term; the first is 1, and they follow each other without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochId(u64);

impl EpochId {
    /// The first epoch of a term.
    pub const FIRST: Self = Self(1);

    /// The epoch of this number, as read from a peer or a file.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The epoch after this one.
    ///
    /// # Panics
    /// After 2^64 - 1 epochs, which is a bug.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("epochs do not wrap"))
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a reign: in one term at most one host transmits for a VM (FO-1). Terms only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(u64);

impl Term {
    /// The term before any host has been granted one.
    pub const NONE: Self = Self(0);

    /// The term of this number, as read from a peer or a file.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The term after this one.
    ///
    /// # Panics
    /// After 2^64 - 1 terms, which is a bug.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("terms do not wrap"))
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
