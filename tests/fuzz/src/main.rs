//! Runs a target over its corpus and mutations of it: `holdfast-fuzz TARGET [--seconds N] [--seed N] [--distill]`,
//! or one input again: `holdfast-fuzz TARGET FILE`.

use holdfast_fuzz::{Finding, Session, TARGETS, Target, engine, target};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

const USAGE: &str =
    "holdfast-fuzz TARGET [--seconds N] [--seed N] [--distill] | holdfast-fuzz TARGET FILE...";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<String>) -> Result<String, String> {
    let mut words = arguments.into_iter();
    let name = words.next().ok_or(USAGE)?;
    let names = TARGETS.map(|target| target.name).join(", ");
    let target = target(&name).ok_or_else(|| format!("no target {name}; there are {names}\n{USAGE}"))?;
    let (mut seconds, mut seed, mut distill, mut files) = (60, 1, false, Vec::new());
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).ok_or(USAGE);
        match word.as_str() {
            "--seconds" => seconds = number()?,
            "--seed" => seed = number()?,
            "--distill" => distill = true,
            _ => files.push(word),
        }
    }
    if files.is_empty() { fuzz(target, seconds, seed, distill) } else { replay(target, &files) }
}

fn replay(target: Target, files: &[String]) -> Result<String, String> {
    engine::TRACE.store(true, Ordering::Relaxed);
    for file in files {
        let input = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
        (target.run)(&input).map_err(|what| format!("{file}: {what}"))?;
    }
    Ok(format!("{} inputs, nothing found", files.len()))
}

fn fuzz(target: Target, seconds: u64, seed: u64, distill: bool) -> Result<String, String> {
    let session = Session::new(target, seed);
    let run = || {
        let tally = session.run(Duration::from_secs(seconds))?;
        let corpus = if distill { session.distill(&tally.kept)? } else { tally.corpus };
        Ok(format!(
            "{}: {} runs, {} features, {corpus} inputs in the corpus, nothing found",
            target.name, tally.runs, tally.features
        ))
    };
    run().map_err(|finding: Finding| {
        let path = finding.save(&target);
        format!("{}, seed {seed}: {}\ninput: {}", target.name, finding.what, path.display())
    })
}
