//! What the agent says of itself: a file below `/run`, written anew each second.

use crate::clock::ClockStatus;
use crate::control::Counters;
use crate::presence::State;
use holdfast_packet::guest_channel::{Answer, PortMode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder of the agent's files.
pub(crate) const FOLDER: &str = "/run/holdfast-guest";

/// One moment of a running agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    /// The agent's process.
    pub(crate) pid: u32,
    /// `present`, `paused` or `absent`.
    pub(crate) state: String,
    /// Why.
    pub(crate) reason: String,
    /// Interfaces behind which Holdfast speculates.
    pub(crate) interfaces: Vec<String>,
    /// Length of an epoch.
    pub(crate) epoch_us: u32,
    /// ACKs that come within this are taken for Holdfast's own.
    pub(crate) fast_us: u32,
    /// Which connections are meant, in words.
    pub(crate) chosen: String,
    /// The congestion control that the guest had before, and has when the agent is gone.
    pub(crate) own_congestion_control: String,
    /// The wall clock.
    pub(crate) clock: ClockStatus,
    /// What the congestion control did.
    pub(crate) counters: Counters,
}

impl Status {
    /// In words: what was heard, and what follows.
    pub(crate) fn explain(state: State, newest: Option<&Answer>) -> (&'static str, &'static str) {
        let state_name = match state {
            State::Present => "present",
            State::Paused => "paused",
            State::Absent => "absent",
        };
        let reason = match (state, newest.map(|answer| answer.mode)) {
            (State::Present, _) => "Holdfast acknowledges in the clients' name",
            (_, Some(PortMode::Native)) => {
                "Holdfast passes the guest's output on: the VM is not protected now"
            }
            (_, Some(PortMode::Commit)) => {
                "Holdfast holds the guest's output without speculation (mode commit)"
            }
            (_, Some(PortMode::Speculative)) => {
                "Holdfast is here; its operator has not asked for an agent (mode speculative, not aware)"
            }
            (_, Some(PortMode::Aware)) => "Holdfast has just come back",
            (_, None) => "nobody answers: no Holdfast is on the other end",
        };
        (state_name, reason)
    }

    fn file(folder: &Path) -> PathBuf {
        folder.join("status.json")
    }

    /// Writes it.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let new = folder.join("status.json.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, Self::file(folder))
    }

    /// Reads it; none when no agent has left any.
    pub(crate) fn read(folder: &Path) -> io::Result<Option<Self>> {
        match fs::read(Self::file(folder)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Removes the file, and the folder where that may be: under systemd it is systemd's.
    pub(crate) fn remove(folder: &Path) -> io::Result<()> {
        fs::remove_file(Self::file(folder))?;
        drop(fs::remove_dir(folder));
        Ok(())
    }

    /// Whether the agent that wrote it runs.
    pub(crate) fn is_of_running(&self) -> bool {
        Path::new("/proc").join(self.pid.to_string()).exists()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.state, self.reason)?;
        if !self.interfaces.is_empty() {
            let epoch_ms = f64::from(self.epoch_us) / 1e3;
            let fast_ms = f64::from(self.fast_us) / 1e3;
            let interfaces = self.interfaces.join(", ");
            writeln!(f, "by {interfaces}, epochs of {epoch_ms:.1} ms, ACKs in time within {fast_ms:.2} ms")?;
        }
        writeln!(f, "for {}", self.chosen)?;
        writeln!(f, "the guest's own congestion control: {}", self.own_congestion_control)?;
        writeln!(f, "{}", self.clock)?;
        let Counters {
            opened_flows,
            left_late_flows,
            left_loss_flows,
            left_ecn_flows,
            opened_again_flows,
            moved_sockets,
            in_time_acks,
            late_acks,
            chosen_flows,
        } = self.counters;
        writeln!(
            f,
            "flows opened {opened_flows}, again {opened_again_flows}; left to Reno for late ACKs \
             {left_late_flows}, for loss {left_loss_flows}, for ECN {left_ecn_flows}; sockets moved {moved_sockets}, \
             chosen {chosen_flows}; ACKs in time {in_time_acks}, late {late_acks}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_back_as_written_and_gone_when_removed() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = dir.path().join("agent");
        assert_eq!(Status::read(&folder).expect("no fault"), None);
        let status = Status { pid: std::process::id(), state: "present".into(), ..Status::default() };
        status.write(&folder).expect("written");
        assert_eq!(Status::read(&folder).expect("read"), Some(status.clone()));
        assert!(status.is_of_running());
        assert!(!Status { pid: u32::MAX, ..status }.is_of_running());
        Status::remove(&folder).expect("removed");
        assert!(!folder.exists());
    }
}
