//! `holdfast bench report`: stored runs as a page.

use crate::cli::Failure;
use clap::Args;
use holdfast_report::page;
use holdfast_report::run::Run;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Args)]
pub(crate) struct ReportOptions {
    /// What a benchmark wrote with --json: `bench paper`, `bulk`, `pause`, `pps` or `pages`, or the benchmark of the
    /// speculation engine. Several follow each other in the page.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Where to write the page.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Writes the page of the stored runs.
pub(super) fn run(options: &ReportOptions) -> Result<(), Failure> {
    let runs = options.runs.iter().map(|path| read_run(path)).collect::<Result<Vec<_>, _>>()?;
    write(&options.output, &page::render_all(&runs))
}

/// Reads a stored run.
pub(super) fn read_run(path: &Path) -> Result<Run, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|fault| Failure::Usage(format!("cannot read {}: {fault}", path.display())))?;
    Run::read(&text)
        .map_err(|fault| Failure::Usage(format!("{} holds no run that can be read: {fault}", path.display())))
}

/// Writes the page of `run` to `path`.
pub(super) fn write_page(path: &Path, run: &Run) -> Result<(), Failure> {
    write(path, &page::render(run))
}

fn write(path: &Path, page: &str) -> Result<(), Failure> {
    std::fs::write(path, page)
        .map_err(|fault| Failure::Failed(format!("cannot write {}: {fault}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(folder: &Path, runs: &[&str]) -> ReportOptions {
        let runs = runs.iter().map(|name| folder.join(name)).collect();
        ReportOptions { runs, output: folder.join("page") }
    }

    #[test]
    fn a_stored_run_becomes_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path(), &["run"]);
        assert_eq!(run(&options).unwrap_err().exit_code(), 2);
        std::fs::write(&options.runs[0], r#"{"bench": "bulk", "machine": {"qemu": "7.2"}, "rows": []}"#)
            .unwrap();
        run(&options).unwrap();
        let page = std::fs::read_to_string(&options.output).unwrap();
        assert!(page.contains("bench bulk") && page.contains("7.2"));
    }

    #[test]
    fn several_runs_become_one_page_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path(), &["first", "second"]);
        let row = r#"{"guest_mib": 256, "dirty_pages": 200, "epoch_ms": 50, "epochs": 9, "pause_p50_us": 3e3,
            "pause_p99_us": 9e3}"#;
        std::fs::write(&options.runs[0], r#"{"bench": "bulk", "rows": []}"#).unwrap();
        std::fs::write(&options.runs[1], r#"{"bench": "quick", "rows": []}"#).unwrap();
        let fault = run(&options).unwrap_err();
        assert!(fault.to_string().contains("second") && !options.output.exists(), "{fault}");
        std::fs::write(&options.runs[1], format!(r#"{{"bench": "pause", "rows": [{row}]}}"#)).unwrap();
        run(&options).unwrap();
        let page = std::fs::read_to_string(&options.output).unwrap();
        assert!(page.contains("bench bulk, bench pause") && page.contains("id=\"pause-2\""));
    }
}
