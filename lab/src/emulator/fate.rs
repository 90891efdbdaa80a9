//! Dice that fall the same way for the same seed and frame, in whatever order they are thrown.

use holdfast_guest_init::stream;

/// What is decided about a frame, each by a throw of its own.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question {
    Loss,
    Duplication,
    Reordering,
    Corruption,
    /// Which bit.
    Bit,
    Jitter,
}

/// The dice of one direction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dice {
    seed: u64,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed: mix(seed) }
    }

    /// A number without order for the frame of that number.
    pub(super) fn throw(self, frame: u64, question: Question) -> u64 {
        mix(self.seed ^ mix(frame.wrapping_mul(8).wrapping_add(question as u64)))
    }

    /// From 0 to less than 1.
    pub(super) fn share(self, frame: u64, question: Question) -> f64 {
        (self.throw(frame, question) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Whether something of that probability happens to the frame.
    pub(super) fn happens(self, frame: u64, question: Question, probability: f64) -> bool {
        probability > 0.0 && self.share(frame, question) < probability
    }
}

/// SplitMix64: without the increment, 0 would stay 0.
fn mix(value: u64) -> u64 {
    stream::mix(value.wrapping_add(0x9e37_79b9_7f4a_7c15))
}
