//! Runs a target over its corpus and mutations of it: `holdfast-fuzz TARGET [--seconds N] [--seed N] [--keep]`,
//! or one input again: `holdfast-fuzz TARGET FILE`.

use holdfast_fuzz::{Session, TARGETS, Target, engine, target};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

const USAGE: &str = "holdfast-fuzz TARGET [--seconds N] [--seed N] [--keep] | holdfast-fuzz TARGET FILE...";

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
    let (mut seconds, mut seed, mut keep, mut files) = (60, 1, false, Vec::new());
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).ok_or(USAGE);
        match word.as_str() {
            "--seconds" => seconds = number()?,
            "--seed" => seed = number()?,
            "--keep" => keep = true,
            _ => files.push(word),
        }
    }
    if files.is_empty() { fuzz(target, seconds, seed, keep) } else { replay(target, &files) }
}

fn replay(target: Target, files: &[String]) -> Result<String, String> {
    engine::TRACE.store(true, Ordering::Relaxed);
    for file in files {
        let input = std::fs::read(file).map_err(|error| format!("{file}: {error}"))?;
        (target.run)(&input).map_err(|what| format!("{file}: {what}"))?;
    }
    Ok(format!("{} inputs, nothing found", files.len()))
}

fn fuzz(target: Target, seconds: u64, seed: u64, keep: bool) -> Result<String, String> {
    match Session::new(target, seed).run(Duration::from_secs(seconds)) {
        Ok(tally) => {
            let kept = if keep { tally.keep(&target) } else { 0 };
            let (runs, features) = (tally.runs, tally.features);
            Ok(format!("{}: {runs} runs, {features} features, {kept} kept, nothing found", target.name))
        }
        Err(finding) => {
            let path = finding.save(&target);
            Err(format!("{}, seed {seed}: {}\ninput: {}", target.name, finding.what, path.display()))
        }
    }
}
