//! `holdfast bench report`: a stored run as a page.

use crate::cli::Failure;
use clap::Args;
use holdfast_report::page;
use holdfast_report::run::Run;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Args)]
pub(crate) struct ReportOptions {
    /// What `bench paper` or `bench bulk` wrote with --json.
    run: PathBuf,
    /// Where to write the page.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Writes the page of a stored run.
pub(super) fn run(options: &ReportOptions) -> Result<(), Failure> {
    write_page(&options.output, &read_run(&options.run)?)
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
    std::fs::write(path, page::render(run))
        .map_err(|fault| Failure::Failed(format!("cannot write {}: {fault}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_run_becomes_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let options = ReportOptions { run: folder.path().join("run"), output: folder.path().join("page") };
        assert_eq!(run(&options).unwrap_err().exit_code(), 2);
        std::fs::write(&options.run, r#"{"bench": "bulk", "machine": {"qemu": "7.2"}, "rows": []}"#).unwrap();
        run(&options).unwrap();
        let page = std::fs::read_to_string(&options.output).unwrap();
        assert!(page.contains("bench bulk") && page.contains("7.2"));
    }
}
