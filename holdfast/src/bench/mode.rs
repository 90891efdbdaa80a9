//! The modes that are compared: Holdfast's, and what the guest does beside them.

use crate::config::Mode as Output;
use clap::ValueEnum;
use serde::Serialize;
use std::fmt;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Passed through; the VM is not protected.
    Native,
    /// Held until the epoch in which it was sent is committed.
    Commit,
    /// As commit, with the guest's TCP running ahead of it.
    Speculative,
    /// As speculative, with the agent in the guest.
    Aware,
}

impl Mode {
    /// What Holdfast does.
    pub(crate) const fn output(self) -> Output {
        match self {
            Self::Native => Output::Native,
            Self::Commit => Output::Commit,
            Self::Speculative | Self::Aware => Output::Speculative,
        }
    }

    /// As on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Aware => "aware",
            other => other.output().name(),
        }
    }

    /// Whether the guest is replicated and its output waits.
    pub(crate) const fn protects(self) -> bool {
        self.output().protects()
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
