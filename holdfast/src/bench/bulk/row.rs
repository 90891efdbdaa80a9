//! One row of figures.

use super::size::Size;
use crate::config::Mode;
use serde::Serialize;
use std::fmt;

/// Above the rows.
pub(super) const HEADING: &str = "mode         epoch   what                          throughput     completion p50 / \
     p90     fairness   iperf3         exact";

/// Transfers of a size (`bytes`, `setup`, `completion_*`) or streams for a time (`seconds`, `fairness`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) round: u32,
    pub(crate) mode: Mode,
    /// Of mode native: of the rows beside which it was taken.
    pub(crate) epoch_ms: u64,
    /// Of each transfer.
    pub(crate) bytes: Option<u64>,
    /// Whether the connection's set-up is part of each transfer, or it was open.
    pub(crate) setup: Option<bool>,
    pub(crate) seconds: Option<u64>,
    pub(crate) connections: usize,
    /// Of transfers: of the median one.
    pub(crate) throughput_mbit_s: f64,
    /// From the request (or the connection's beginning) to the last byte.
    pub(crate) completion_p50_ms: Option<f64>,
    pub(crate) completion_p90_ms: Option<f64>,
    /// How many were timed.
    pub(crate) transfers: Option<usize>,
    /// Jain's index over the connections.
    pub(crate) fairness: Option<f64>,
    /// By iperf3, right after: it checks no bytes.
    pub(crate) iperf3_mbit_s: Option<f64>,
    /// The same without a capture beside it, with `--capture-cost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uncaptured_mbit_s: Option<f64>,
    /// While the row was taken.
    pub(crate) epochs_committed: u64,
    /// Whether every byte of the stream was right.
    pub(crate) stream_exact: bool,
}

impl Row {
    /// A row of nothing yet.
    pub(super) fn new(mode: Mode, epoch_ms: u64) -> Self {
        Self {
            round: 1,
            mode,
            epoch_ms,
            bytes: None,
            setup: None,
            seconds: None,
            connections: 1,
            throughput_mbit_s: 0.0,
            completion_p50_ms: None,
            completion_p90_ms: None,
            transfers: None,
            fairness: None,
            iperf3_mbit_s: None,
            uncaptured_mbit_s: None,
            epochs_committed: 0,
            stream_exact: false,
        }
    }

    /// What was measured, in words: rows of one kind are compared.
    pub(super) fn kind(&self) -> String {
        match (self.bytes, self.seconds) {
            (Some(bytes), _) => {
                let how = if self.setup == Some(true) { "with set-up" } else { "open connection" };
                format!("{}, {how}", Size(bytes))
            }
            (None, seconds) => format!("{} s, {} connection(s)", seconds.unwrap_or(0), self.connections),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let completion = self.completion_p50_ms.zip(self.completion_p90_ms);
        write!(
            f,
            "{:<12} {:>4} ms {:<26} {:>8.1} Mbit/s {:>24} {:>11} {:>10} {:>13}",
            self.mode.name(),
            self.epoch_ms,
            self.kind(),
            self.throughput_mbit_s,
            or_dash(completion.map(|(p50, p90)| format!("{p50:.1} / {p90:.1} ms"))),
            or_dash(self.fairness.map(|index| format!("{index:.3}"))),
            or_dash(self.iperf3_mbit_s.map(|rate| format!("{rate:.1}"))),
            if self.stream_exact { "yes" } else { "NO" }
        )
    }
}
