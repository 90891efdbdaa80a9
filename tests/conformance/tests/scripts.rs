//! Plays every script over each family of IP it is for, and checks that every row of the rules has a
//! script. `cargo test -p holdfast-conformance --test scripts -- WORD` plays those with WORD in their
//! path.

use holdfast_conformance::play;
use holdfast_conformance::script::Script;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut scripts = Vec::new();
    collect(&root.join("scripts"), &mut scripts);
    scripts.sort();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let listing = arguments.iter().any(|argument| argument == "--list");
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    let (mut passed, mut failures) = (0, Vec::new());
    for path in &scripts {
        let name =
            path.strip_prefix(root.join("scripts")).unwrap_or(path).with_extension("").display().to_string();
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        if listing {
            println!("{name}: test");
            continue;
        }
        match run(path, &mut rows) {
            Ok(()) => passed += 1,
            Err(what) => failures.push(format!("{name}: {what}")),
        }
    }
    if listing {
        return ExitCode::SUCCESS;
    }
    if words.is_empty() {
        failures.extend(uncovered(root, &rows));
        failures.extend(example(root).err());
    }
    for failure in &failures {
        println!("FAILED {failure}\n");
    }
    println!("{passed} scripts passed, {} failures", failures.len());
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(path: &Path, rows: &mut BTreeMap<String, usize>) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let script = Script::parse(&text).map_err(|error| error.to_string())?;
    for row in &script.rows {
        *rows.entry(row.clone()).or_default() += 1;
    }
    for family in &script.families {
        let played = std::panic::catch_unwind(|| play(&script, *family));
        match played {
            Ok(result) => result.map_err(|failure| failure.to_string())?,
            Err(_) => return Err(format!("{family:?}: the engine panicked; see above")),
        }
    }
    Ok(())
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).expect("the scripts are there");
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "pkt") {
            into.push(path);
        }
    }
}

/// Plays the script that the README shows.
fn example(root: &Path) -> Result<(), String> {
    let readme = std::fs::read_to_string(root.join("README.md")).expect("the README is there");
    let begin = readme.find("# row:").ok_or("README.md shows no script")?;
    let text = readme[begin..].split("```").next().unwrap_or_default();
    let script = Script::parse(text).map_err(|error| format!("README.md: {error}"))?;
    for family in &script.families {
        play(&script, *family).map_err(|failure| format!("README.md: {failure}"))?;
    }
    Ok(())
}

/// Rows of the table in the README without a script, and rows of scripts that are not in the table.
fn uncovered(root: &Path, rows: &BTreeMap<String, usize>) -> Vec<String> {
    let readme = std::fs::read_to_string(root.join("README.md")).expect("the README is there");
    let known: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(id, _)| id)
        .filter(|id| id.contains('/') && !id.contains([' ', '>']))
        .collect();
    assert!(known.len() > 30, "the table of rows was found");
    let bare =
        known.iter().filter(|id| !rows.contains_key(**id)).map(|id| format!("row {id}: no script shows it"));
    let strange = rows
        .keys()
        .filter(|row| !known.contains(&row.as_str()))
        .map(|row| format!("row {row}: not in the table of tests/conformance/README.md"));
    bare.chain(strange).collect()
}
