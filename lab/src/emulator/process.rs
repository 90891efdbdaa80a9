//! The emulator as a process in a namespace, and its report.

use super::profile::WireSpec;
use super::pump::{READY_LINE, Report};
use crate::netns::Namespace;
use crate::process::{Process, ProcessError, ProcessSpec};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// A running emulator; dropping it ends it.
#[derive(Debug)]
pub struct WireEmulator {
    process: Process,
}

impl WireEmulator {
    /// Starts `program wire-emulator` in `namespace` between two of its interfaces; frames pass when this
    /// returns. What it says goes to `log`.
    ///
    /// # Errors
    /// When it does not start, with its words.
    pub fn start(
        program: &Path,
        namespace: &Namespace,
        (left, right): (&str, &str),
        (wire, seed): (&WireSpec, u64),
        log: &Path,
    ) -> Result<Self, ProcessError> {
        let mut process = ProcessSpec::new("wire emulator", program, log)
            .args(["wire-emulator", "--left", left, "--right", right])
            .args(["--wire", wire.words(), "--seed", &seed.to_string()])
            .namespace(namespace)
            .spawn()?;
        process.wait_for_log(READY_LINE, PATIENCE)?;
        Ok(Self { process })
    }

    /// Ends it and gives its report.
    ///
    /// # Errors
    /// When it had ended before, or gives none.
    pub fn stop(mut self) -> Result<Report, ProcessError> {
        let status = self.process.terminate(PATIENCE)?;
        let words = fs::read_to_string(self.process.log()).unwrap_or_default();
        let report = words.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        report.ok_or_else(|| ProcessError::System {
            name: self.process.name().into(),
            step: "read its report",
            source: io::Error::other(format!("{status}; its log ends:\n{}", self.process.log_tail(5))),
        })
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }
}
