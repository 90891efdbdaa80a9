//! `holdfast demo` and `holdfast soak`: the whole story on one machine, in network namespaces.

mod options;
mod outcome;
mod soak;
mod story;

pub(crate) use options::{DemoOptions, check_host};
pub(crate) use soak::{SoakOptions, soak};

use crate::cli::{Failure, check_writable};
use crate::config::Mode;
use options::Kill;

/// Runs the demonstration, prints the table, writes the JSON.
pub(crate) fn run(options: &DemoOptions) -> Result<(), Failure> {
    check_host()?;
    options.json.as_deref().map_or(Ok(()), check_writable)?;
    let mut say = |line: &str| println!("{line}");
    let mut outcome = story::tell(options, &mut say)?;
    if options.mode.speculates() && !options.alone {
        println!("\nbeside it, shorter and without a kill: mode commit");
        let commit = DemoOptions {
            mode: Mode::Commit,
            duration: (options.duration / 2).max(2),
            kill: Kill::None,
            seed: Some(outcome.seed),
            ..options.clone()
        };
        outcome.beside = Some(Box::new(story::tell(&commit, &mut say)?));
    }
    println!("\n{}", outcome.table());
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&outcome).map_err(Failure::failed)?;
        std::fs::write(path, text + "\n")
            .map_err(|fault| Failure::Failed(format!("cannot write {}: {fault}", path.display())))?;
    }
    outcome.verdict()
}
