//! `holdfast bench`: figures as ratios taken in one run, on the client's clock.

mod bulk;
mod compare;
mod machine;
mod pages;
mod paper;
mod pause;
mod pps;
mod quick;
mod report;
mod stage;

use crate::cli::Failure;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Pause, commit latency, and throughput of plain QEMU over a TAP, of native, and of commit with epochs of
    /// fixed length and with adaptive ones.
    Quick(quick::QuickOptions),
    /// What the guest sends to the client: modes, lengths of an epoch, sizes and numbers of connections.
    Bulk(Box<bulk::BulkOptions>),
    /// The paper's evaluation again: streams, transfers, small requests and applications in all modes; a
    /// document and a page with plots.
    Paper(Box<paper::PaperOptions>),
    /// How long the guest stands still for a checkpoint, by dirty pages and by the guest's size, part by part.
    Pause(pause::PauseOptions),
    /// How fast memory goes from host to host, stage by stage, and how much of it has to go, beside QEMU's own
    /// migration and memcpy.
    Pages(pages::PagesOptions),
    /// Frames a second through the rings in each mode, beside DPDK's own vhost, driven by dpdk-testpmd.
    Pps(pps::PpsOptions),
    /// Tell two stored runs apart by their rounds: how many times as fast, and whether that is more than chance.
    Compare(compare::CompareOptions),
    /// Render stored runs as one HTML page with plots.
    Report(report::ReportOptions),
}

/// Where a benchmark's figures go besides the terminal.
#[derive(Clone, Debug, Args)]
pub(crate) struct Output {
    /// Write the rows and the run's circumstances as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl Output {
    /// Before anything is measured.
    fn check(&self) -> Result<(), Failure> {
        self.json.as_deref().map_or(Ok(()), crate::cli::check_writable)
    }
}

/// Runs a benchmark.
pub(crate) fn run(bench: &Bench) -> Result<(), Failure> {
    match bench {
        Bench::Quick(options) => crate::demo::check_host().and_then(|()| quick::run(options)),
        Bench::Bulk(options) => crate::demo::check_host().and_then(|()| bulk::run(options)),
        Bench::Paper(options) => crate::demo::check_host().and_then(|()| paper::run(options)),
        Bench::Pause(options) => crate::demo::check_host().and_then(|()| pause::run(options)),
        Bench::Pages(options) => crate::demo::check_host().and_then(|()| pages::run(options)),
        Bench::Pps(options) => pps::run(options),
        Bench::Compare(options) => compare::run(options),
        Bench::Report(options) => report::run(options),
    }
}

/// Writes `document` to `path`.
fn write_json(path: &Path, document: &serde_json::Value) -> Result<(), Failure> {
    std::fs::write(path, format!("{document:#}\n"))
        .map_err(|fault| Failure::Failed(format!("cannot write {}: {fault}", path.display())))
}
