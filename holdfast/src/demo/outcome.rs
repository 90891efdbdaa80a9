//! What a run of the story came to.

use super::options::Kill;
use crate::cli::Failure;
use crate::config::Mode;
use serde::Serialize;
use std::fmt::Write;

/// The figures of one run. Every number carries its unit in its name; a figure that the run did not
/// yield is null.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) mode: Mode,
    pub(crate) kill: Kill,
    pub(crate) seed: u64,
    pub(crate) epoch_ms: u64,
    pub(crate) qemu: String,
    /// Epochs that the backup committed.
    pub(crate) epochs_committed: u64,
    pub(crate) pause_p50_us: Option<f64>,
    pub(crate) pause_p99_us: Option<f64>,
    pub(crate) commit_latency_p50_us: Option<f64>,
    pub(crate) dirty_pages_p50: Option<f64>,
    pub(crate) replicated_bytes: Option<u64>,
    /// Of the stream that the guest sends, before the kill.
    pub(crate) throughput_mbit_s: f64,
    /// Of the stream that the client sends, before the kill.
    pub(crate) upload_mbit_s: f64,
    /// The last epoch committed when the victim died.
    pub(crate) killed_at_epoch: Option<u64>,
    /// The epoch from which the guest went on.
    pub(crate) resumed_from_epoch: Option<u64>,
    /// From the last sign of life of host A to the decision to go live.
    pub(crate) detect_ms: Option<f64>,
    /// From the decision to the guest running.
    pub(crate) resume_ms: Option<f64>,
    /// Longest time without a byte at the client, in either direction.
    pub(crate) client_gap_ms: f64,
    /// Bytes of both streams.
    pub(crate) stream_bytes: u64,
    /// Whether every byte of both streams arrived, once, in order, and right.
    pub(crate) stream_exact: bool,
    /// How each stream ended.
    pub(crate) stream_ends: Vec<String>,
    /// Frames of the protected guest on the wire, joined with the commit log.
    pub(crate) frames_joined: u64,
    /// Of these, those that left before their commit (OC-1).
    pub(crate) frames_released_early: u64,
    /// Frames that the capture lost: not looked at.
    pub(crate) frames_capture_lost: u64,
    /// What the wire to the client was, in the emulator's words.
    pub(crate) wire: String,
    /// Frames that the emulated wire lost or dropped, both ways.
    pub(crate) wire_lost_frames: Option<u64>,
    /// What the epochs' way was, where it was a bypass.
    pub(crate) bypass: Option<BypassOutcome>,
    /// The shorter run in mode commit, for comparison.
    pub(crate) beside: Option<Box<Outcome>>,
}

/// What the bypass did for host A, until its end.
#[derive(Debug, Serialize)]
pub(crate) struct BypassOutcome {
    /// What its wire was, in the emulator's words.
    pub(crate) wire: String,
    /// Frames that the emulated wire lost or dropped, both ways.
    pub(crate) wire_lost_frames: Option<u64>,
    /// Whether epochs went over it when host A was seen last.
    pub(crate) in_use: bool,
    /// How often they had to come back from it to the connection.
    pub(crate) returns: u64,
    /// Frames that host A sent.
    pub(crate) sent_frames: u64,
    /// Datagrams that host A refused, as they were flipped, doubled or nobody's.
    pub(crate) refused_datagrams: u64,
}

impl BypassOutcome {
    /// In a few words.
    pub(crate) fn line(&self) -> String {
        format!(
            "bypass {}: {} frames sent, {} lost, {} refused, came back {} times",
            if self.in_use { "in use" } else { "NOT IN USE" },
            self.sent_frames,
            self.wire_lost_frames.unwrap_or(0),
            self.refused_datagrams,
            self.returns
        )
    }
}

impl Outcome {
    /// A short table for people: a column for each run.
    pub(crate) fn table(&self) -> String {
        let rows = self.rows();
        let beside = self.beside.as_ref().map(|beside| beside.rows());
        let mut out = String::new();
        for (index, (name, value)) in rows.iter().enumerate() {
            match &beside {
                None => writeln!(out, "  {name:<30} {value}"),
                Some(beside) => writeln!(out, "  {name:<30} {value:<30} {}", beside[index].1),
            }
            .expect("a string takes all text");
        }
        out
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let ms = |us: Option<f64>| us.map_or_else(|| "-".into(), |us| format!("{:.1} ms", us / 1e3));
        let count = |n: Option<f64>| n.map_or_else(|| "-".into(), |n| format!("{n:.0}"));
        let number = |n: Option<u64>| n.map_or_else(|| "-".into(), |n| n.to_string());
        let plain = |n: Option<f64>| n.map_or_else(|| "-".into(), |n| format!("{n:.0} ms"));
        let mut rows = vec![
            ("mode, epoch", format!("{}, {} ms", self.mode, self.epoch_ms)),
            ("epochs committed", self.epochs_committed.to_string()),
            ("pause p50 / p99", format!("{} / {}", ms(self.pause_p50_us), ms(self.pause_p99_us))),
            ("commit latency p50", ms(self.commit_latency_p50_us)),
            ("dirty pages p50", count(self.dirty_pages_p50)),
            ("replicated", self.replicated_bytes.map_or_else(|| "-".into(), |n| format!("{} MiB", n >> 20))),
            ("guest to client", format!("{:.1} Mbit/s", self.throughput_mbit_s)),
            ("client to guest", format!("{:.1} Mbit/s", self.upload_mbit_s)),
            ("killed at epoch", number(self.killed_at_epoch)),
            ("resumed from epoch", number(self.resumed_from_epoch)),
            ("detect / resume", format!("{} / {}", plain(self.detect_ms), plain(self.resume_ms))),
            ("longest silence at the client", format!("{:.0} ms", self.client_gap_ms)),
            ("bytes of both streams", self.stream_bytes.to_string()),
            ("streams exact", if self.stream_exact { "yes" } else { "NO" }.into()),
            (
                "frames released early",
                format!("{} of {} joined", self.frames_released_early, self.frames_joined),
            ),
        ];
        if self.wire_lost_frames.is_some() {
            rows.push(("frames lost on the wire", number(self.wire_lost_frames)));
        }
        if let Some(bypass) = &self.bypass {
            rows.push(("replication", bypass.line()));
        }
        rows
    }

    /// Whether the promise was kept; what was broken otherwise.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        let mut broken = Vec::new();
        if !self.stream_exact {
            broken.push(format!("the streams are not exact: {}", self.stream_ends.join(", ")));
        }
        if self.frames_released_early > 0 {
            broken.push(format!("{} frames left before their commit", self.frames_released_early));
        }
        if self.frames_capture_lost > 0 {
            broken.push(format!(
                "the capture lost {} frames, which nobody looked at",
                self.frames_capture_lost
            ));
        }
        if self.kill != Kill::None && self.resumed_from_epoch.is_none() {
            broken.push("the guest did not come up on host B".into());
        }
        if self.mode.protects() && self.frames_joined == 0 {
            broken.push("the capture holds no frame of the guest, so nothing was checked".into());
        }
        if self.bypass.as_ref().is_some_and(|bypass| !bypass.in_use && bypass.returns == 0) {
            broken.push("no epoch went over the bypass".into());
        }
        if let Some(Err(fault)) = self.beside.as_ref().map(|beside| beside.verdict()) {
            broken.push(format!("beside it, in mode commit: {fault}"));
        }
        if broken.is_empty() { Ok(()) } else { Err(Failure::Failed(broken.join("; "))) }
    }
}
