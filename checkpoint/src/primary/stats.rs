//! Figures of the epochs of one virtual machine.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Duration;

/// A distribution in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SpreadUs {
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Largest.
    pub max_us: u64,
}

/// The figures at one moment, since the supervisor started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StatsSnapshot {
    /// Epochs sealed.
    pub epochs_sealed: u64,
    /// Epochs that the backup confirmed.
    pub epochs_committed: u64,
    /// Epochs given up; their pages went into a later one.
    pub epochs_aborted: u64,
    /// From `stop` to `cont`.
    pub pause: SpreadUs,
    /// Part of the pause: `stop`.
    pub pause_stop: SpreadUs,
    /// Part of the pause: ending the epoch in the gate.
    pub pause_cut: SpreadUs,
    /// Part of the pause: finding the dirty pages.
    pub pause_scan: SpreadUs,
    /// Part of the pause: copying them.
    pub pause_copy: SpreadUs,
    /// Part of the pause, beside scan and copy: saving devices and vCPUs.
    pub pause_save: SpreadUs,
    /// Part of the pause: `cont`.
    pub pause_cont: SpreadUs,
    /// From the seal to the backup's confirmation.
    pub commit_latency: SpreadUs,
    /// Pages in an epoch, median.
    pub dirty_pages_p50: u64,
    /// Pages in an epoch, 99th percentile.
    pub dirty_pages_p99: u64,
    /// Bytes of pages and states replicated, before reduction.
    pub replicated_bytes: u64,
    /// Bytes handed to the link for them.
    pub wire_bytes: u64,
    /// Full synchronisations done.
    pub full_syncs: u64,
    /// Duration of the last full synchronisation.
    pub last_sync_ms: u64,
    /// Pages sent in the last full synchronisation, rounds included.
    pub last_sync_pages: u64,
}

/// Where the figures are gathered; owned by one thread.
#[derive(Debug)]
pub(crate) struct Spread(Histogram<u64>);

impl Spread {
    /// From 1 microsecond (or page) to `2^40`, in three digits.
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, 1 << 40, 3).expect("the bounds are valid"))
    }

    pub(crate) fn add(&mut self, span: Duration) {
        self.add_count(u64::try_from(span.as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn add_count(&mut self, count: u64) {
        self.0.saturating_record(count);
    }

    pub(crate) fn at(&self, quantile: f64) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.value_at_quantile(quantile) }
    }

    pub(crate) fn shown(&self) -> SpreadUs {
        SpreadUs {
            p50_us: self.at(0.5),
            p99_us: self.at(0.99),
            max_us: if self.0.is_empty() { 0 } else { self.0.max() },
        }
    }
}
