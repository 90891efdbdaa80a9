//! `holdfast bench compare`: what differs between two runs, and what of it is more than chance.

use super::report::read_run;
use super::{Output, write_json};
use crate::cli::Failure;
use clap::Args;
use holdfast_report::compare::{Comparison, compare};
use holdfast_report::run::Run;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Args)]
pub(crate) struct CompareOptions {
    /// The run to compare with: what `bench paper` or `bench bulk` wrote with --json.
    a: PathBuf,
    /// The run that is judged.
    b: PathBuf,
    /// Exit with 1 if B is slower in any figure, beyond chance.
    #[arg(long)]
    fail_on_slower: bool,
    #[command(flatten)]
    output: Output,
}

/// Compares two runs.
pub(super) fn run(options: &CompareOptions) -> Result<(), Failure> {
    let (a, b) = (read_traffic(&options.a)?, read_traffic(&options.b)?);
    let found = compare(&a, &b);
    println!("A: {}\nB: {}\n\n{found}", options.a.display(), options.b.display());
    if let Some(path) = &options.output.json {
        let document = json!({"bench": "compare", "a": options.a, "b": options.b, "comparison": found});
        write_json(path, &document)?;
    }
    judge(options, &found)
}

/// Reads a run whose rows are compared.
fn read_traffic(path: &Path) -> Result<Run, Failure> {
    let run = read_run(path)?;
    if run.is_of_costs() {
        return Err(Failure::Usage(format!(
            "{} is a run of `bench {}`, whose rows are not compared; mend: name a run of `bench paper` or `bench bulk`",
            path.display(),
            run.bench
        )));
    }
    Ok(run)
}

fn judge(options: &CompareOptions, found: &Comparison) -> Result<(), Failure> {
    if options.fail_on_slower && found.any_slower() {
        return Err(Failure::Failed(format!("{} is slower, see above", options.b.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of one row: five rounds of transfers of 1 MiB, of about so many milliseconds.
    fn write(folder: &Path, name: &str, ms: f64) -> PathBuf {
        let rounds: Vec<_> = (0..5).map(|at| json!({"p50_ms": ms + f64::from(at) / 10.0})).collect();
        let row = json!({"kind": "transfer", "mode": "aware", "epoch_ms": 25, "adaptive": true, "bytes": 1 << 20,
            "setup": false, "connections": 1, "throughput_mbit_s": 8388.6 / ms, "completion_p50_ms": ms,
            "stream_exact": true, "rounds": rounds});
        let path = folder.join(name);
        write_json(&path, &json!({"bench": "paper", "rows": [row]})).unwrap();
        path
    }

    fn options(a: &Path, b: &Path, fail_on_slower: bool) -> CompareOptions {
        let json = Some(a.with_extension("compared"));
        CompareOptions { a: a.into(), b: b.into(), fail_on_slower, output: Output { json } }
    }

    #[test]
    fn a_slower_run_fails_if_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let (fast, slow) = (write(folder.path(), "fast", 10.0), write(folder.path(), "slow", 20.0));
        assert!(run(&options(&fast, &slow, false)).is_ok());
        assert!(run(&options(&slow, &fast, true)).is_ok());
        assert_eq!(run(&options(&fast, &slow, true)).unwrap_err().exit_code(), 1);
        let written = std::fs::read_to_string(fast.with_extension("compared")).unwrap();
        let written: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(written["comparison"]["rows"][0]["verdict"], "slower");
        assert_eq!(written["bench"], "compare");
    }

    #[test]
    fn a_file_that_is_no_run_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let run_file = write(folder.path(), "run", 10.0);
        let file = |name| folder.path().join(name);
        let (missing, other, costs) = (file("missing"), file("other"), file("costs"));
        write_json(&other, &json!({"bench": "quick", "rows": []})).unwrap();
        write_json(&costs, &json!({"bench": "pps", "rows": []})).unwrap();
        for (a, b, said) in [
            (&run_file, &missing, "missing"),
            (&other, &run_file, "bench quick"),
            (&run_file, &costs, "bench pps"),
        ] {
            let fault = run(&options(a, b, false)).unwrap_err();
            assert_eq!(fault.exit_code(), 2);
            assert!(fault.to_string().contains(said), "{fault}");
        }
    }
}
