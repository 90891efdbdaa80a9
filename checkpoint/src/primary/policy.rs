//! When the next epoch ends.

use std::time::Duration;

/// Decides how long the guest runs before the next seal.
pub trait EpochPolicy: Send {
    /// How long the guest runs after a pause of `pause` in which `pages` pages were captured.
    fn run_for(&mut self, pause: Duration, pages: u64) -> Duration;

    /// The operator wants epochs of this length.
    fn set_length(&mut self, length: Duration);

    /// Length of an epoch now, from one pause to the next.
    fn length(&self) -> Duration;
}

/// Epochs of a fixed length, from one pause to the next; but the guest runs for a quarter of it at
/// least, so that long pauses cannot starve it.
#[derive(Clone, Copy, Debug)]
pub struct FixedLength(Duration);

impl FixedLength {
    /// Epochs of this length.
    #[must_use]
    pub const fn new(length: Duration) -> Self {
        Self(length)
    }
}

impl EpochPolicy for FixedLength {
    fn run_for(&mut self, pause: Duration, _pages: u64) -> Duration {
        self.0.saturating_sub(pause).max(self.0 / 4)
    }

    fn set_length(&mut self, length: Duration) {
        self.0 = length;
    }

    fn length(&self) -> Duration {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_counts_as_part_of_the_epoch_and_the_guest_is_not_starved() {
        let ms = Duration::from_millis;
        let mut policy = FixedLength::new(ms(20));
        assert_eq!(policy.run_for(ms(5), 1), ms(15));
        assert_eq!(policy.run_for(ms(100), 1), ms(5));
    }
}
