//! What ends an epoch, as an operator says it.

use clap::ValueEnum;
use holdfast_checkpoint::vm::EpochRule;
use serde::{Deserialize, Serialize};

/// Of the time, that a guest may stand still unless its operator says otherwise, in percent.
pub(crate) const DEFAULT_PAUSED_PERCENT: u64 = 40;

/// `epoch_policy` of a VM.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EpochPolicy {
    /// Epochs of `epoch_ms`.
    #[default]
    Fixed,
    /// Epochs that the guest's output ends, of `epoch_ms` at most.
    Adaptive,
}

impl EpochPolicy {
    /// The rule, for a guest that may stand still for so many percent of the time.
    pub(crate) fn rule(self, max_paused_percent: u64) -> EpochRule {
        match self {
            Self::Fixed => EpochRule::Fixed,
            Self::Adaptive => EpochRule::FollowOutput { paused_share: max_paused_percent as f64 / 100.0 },
        }
    }
}
