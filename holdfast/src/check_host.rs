//! `holdfast check-host`: what this host can do, and the line that mends each lack.

use crate::cli::Failure;
use clap::Args;
use holdfast_hugepages_setup::{Report, Root, Versions, Wish, inspect, reserve};

/// Rows without which Holdfast cannot protect a guest, or the laboratory cannot run.
const NEEDED: [&str; 5] = ["userfaultfd", "pagemap_scan", "ptrace", "dpdk", "qemu"];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Reserve huge pages where there are too few, and say what changed.
    #[arg(long)]
    apply: bool,
    /// With --apply: how many huge pages of 2 MiB there shall be at least.
    #[arg(long, value_name = "PAGES", default_value_t = 256)]
    huge_pages: u64,
}

/// Prints the report, after reserving huge pages where that was asked for. Exit code 3 when the host
/// lacks something that Holdfast cannot do without, or has fewer huge pages to give than asked for.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let root = Root::default();
    let mut short = None;
    if options.apply {
        let wish = Wish { page_bytes: 2 << 20, pages: options.huge_pages };
        let applied = reserve(&root, wish).map_err(|fault| Failure::HostLacks(fault.to_string()))?;
        eprintln!("{applied}");
        if !applied.is_whole() {
            short = Some(format!("{} of {} huge pages could be had", applied.got(), options.huge_pages));
        }
    }
    let report = look();
    println!("{}", if options.json { report.to_json() } else { report.to_table() });
    let mut lacks = lacks_of(&report);
    lacks.extend(short);
    if lacks.is_empty() { Ok(()) } else { Err(Failure::HostLacks(lacks.join("\n"))) }
}

/// What keeps the laboratory from running on this host; a line each, with its mend.
pub(crate) fn lacks_for_demo() -> Vec<String> {
    lacks_of(&look())
}

fn look() -> Report {
    let versions = Versions { dpdk: Some(holdfast_dpdk::Eal::version().to_owned()), ..Versions::default() };
    inspect(&Root::default(), &versions)
}

fn lacks_of(report: &Report) -> Vec<String> {
    report
        .missing()
        .filter(|row| NEEDED.contains(&row.id))
        .map(|row| {
            format!("{}: {}; mend: {}", row.name, row.found, row.mend.as_deref().unwrap_or("none known"))
        })
        .collect()
}
