//! `holdfast check-host`: what this host can do, and the line that mends each lack.

use crate::cli::Failure;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Reserve huge pages where there are too few, and say what changed.
    #[arg(long)]
    apply: bool,
    /// With --apply: how many huge pages of the default size there shall be at least.
    #[arg(long, value_name = "PAGES", default_value_t = 256)]
    huge_pages: u64,
}
