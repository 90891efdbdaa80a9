//! What tshark says of the client's captures, mode against mode.

use crate::config::Mode;
use holdfast_lab::expert::{Complaints, Difference};
use serde::Serialize;
use std::fmt::Write;

/// The analysis of one capture.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Listened {
    pub(super) mode: Mode,
    pub(super) epoch_ms: u64,
    pub(super) complaints: Complaints,
    /// Those that the same run in mode native lacks, or has fewer of.
    pub(super) beyond_native: Vec<Difference>,
    /// Frames that the capture lost: complaints of lost segments may come of it.
    pub(super) capture_lost_frames: u64,
}

/// The complaints of all runs, for people.
pub(super) fn list(listened: &[Listened]) -> String {
    let mut out = String::new();
    if !listened.is_empty() {
        out += "\nwhat tshark complains of in the client's captures (n: the same run in mode native)\n";
    }
    for one in listened {
        let Listened { mode, epoch_ms, complaints, beyond_native, capture_lost_frames } = one;
        write!(out, "{:<12} {epoch_ms:>4} ms  ", mode.name()).expect("a string takes all text");
        let sum: u64 = complaints.0.values().sum();
        match (mode, beyond_native.is_empty()) {
            (Mode::Native, _) => writeln!(out, "{sum} complaints: {:?}", complaints.0),
            (_, true) => writeln!(out, "{sum} complaints, none beyond native's"),
            (_, false) => {
                let new: Vec<String> = beyond_native
                    .iter()
                    .map(|found| format!("{} {} (n: {})", found.here, found.complaint, found.reference))
                    .collect();
                writeln!(out, "{sum} complaints, beyond native's: {}", new.join("; "))
            }
        }
        .expect("a string takes all text");
        if *capture_lost_frames > 0 {
            writeln!(out, "    the capture lost {capture_lost_frames} frames")
                .expect("a string takes all text");
        }
    }
    out
}
