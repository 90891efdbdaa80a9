//! What is done with a guest's output.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A VM's mode; it may change while the VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Passed through; the VM is not protected.
    Native,
    /// Held until the epoch in which it was sent is committed.
    Commit,
    /// As commit, with the guest's TCP running ahead of it.
    Speculative,
    /// As speculative, and the agent in the guest may open its flows' windows.
    Aware,
}

impl Mode {
    /// As in the configuration.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Commit => "commit",
            Self::Speculative => "speculative",
            Self::Aware => "aware",
        }
    }

    /// Whether flows run ahead of their epochs.
    pub(crate) const fn speculates(self) -> bool {
        matches!(self, Self::Speculative | Self::Aware)
    }

    /// Whether the guest is replicated and its output waits.
    pub(crate) const fn protects(self) -> bool {
        !matches!(self, Self::Native)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
