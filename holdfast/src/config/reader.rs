//! Reads a configuration's keys, and finds all faults in them at once.
//!
//! Serde stops at the first fault. Here each fault is noted with its key's path, the key is taken out (or,
//! where one is missing, something is put in its place), and the rest is read again, until nothing is left
//! to complain of. What was put in serves only to find the next fault: nothing is run from it.

use super::Fault;
use super::raw::RawConfig;
use serde_path_to_error::{Path, Segment};
use std::collections::HashSet;
use toml::{Table, Value};

/// More faults than this are one: it is no configuration of ours.
const MOST_FAULTS: usize = 100;

/// What reading the keys came to.
pub(super) struct Read {
    /// The raw form; none when a key that is needed is missing.
    pub(super) raw: Option<RawConfig>,
    pub(super) faults: Vec<Fault>,
}

/// Reads the raw form of a file that is TOML.
pub(super) fn read(mut document: Table) -> Read {
    let mut faults: Vec<Fault> = Vec::new();
    let mut replaced: HashSet<String> = HashSet::new();
    let mut attempts = 0;
    loop {
        let error = match serde_path_to_error::deserialize::<_, RawConfig>(document.clone()) {
            Ok(raw) => return Read { raw: replaced.is_empty().then_some(raw), faults },
            Err(error) => error,
        };
        attempts += 1;
        let message = error.inner().message().trim().to_owned();
        let mut steps: Vec<Step> = error.path().iter().filter_map(Step::of).collect();
        let mut key = name(error.path());
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        if let Some(field) = missing {
            key = if steps.is_empty() { field.to_owned() } else { format!("{key}.{field}") };
            steps.push(Step::Key(field.to_owned()));
        }
        let known = faults.iter().any(|fault| fault.key == key);
        if !known {
            faults.push(fault(&key, &message, missing));
        }
        // A value of the wrong kind may be one that stands in for a missing one: the next kind then.
        let mended = match (missing, replaced.contains(&key)) {
            (Some(_), _) => {
                replaced.insert(key);
                place(&mut document, &steps, Value::String("missing".into()))
            }
            (None, true) => next_kind(&mut document, &steps),
            (None, false) => remove(&mut document, &steps),
        };
        if !mended || attempts >= MOST_FAULTS {
            return Read { raw: None, faults };
        }
    }
}

fn fault(key: &str, message: &str, missing: Option<&str>) -> Fault {
    let (problem, mend) = match (missing, message.split_once(", expected ")) {
        (Some(field), _) => ("this key is missing".to_owned(), format!("add {field}, as in docs/examples")),
        (None, Some((unknown, known))) if unknown.starts_with("unknown field") => {
            ("there is no such key".to_owned(), format!("remove it, or use {known}"))
        }
        (None, Some((problem, expected))) => (problem.to_owned(), format!("give it {}", readable(expected))),
        (None, None) => (message.to_owned(), "correct it, as in docs/examples".to_owned()),
    };
    Fault { key: key.to_owned(), problem, mend }
}

/// Rust's names of types in an operator's words.
fn readable(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number in range",
        "a borrowed string" | "path string" => "a string",
        other => other,
    }
}

/// A step on the way to a key.
enum Step {
    Key(String),
    Index(usize),
}

impl Step {
    fn of(segment: &Segment) -> Option<Self> {
        match segment {
            Segment::Map { key } => Some(Self::Key(key.clone())),
            Segment::Seq { index } => Some(Self::Index(*index)),
            Segment::Enum { .. } | Segment::Unknown => None,
        }
    }
}

fn name(path: &Path) -> String {
    let name = path.to_string();
    if name == "." { "the file".to_owned() } else { name }
}

/// The place of the last step, and that step.
fn reach<'a, 'b>(document: &'a mut Table, steps: &'b [Step]) -> Option<(&'a mut Table, &'b str)> {
    let (last, way) = steps.split_last()?;
    let Step::Key(last) = last else { return reach(document, way) };
    let Some((Step::Key(first), rest)) = way.split_first() else { return Some((document, last)) };
    let mut at = document.get_mut(first)?;
    for step in rest {
        at = match step {
            Step::Key(key) => at.as_table_mut()?.get_mut(key)?,
            Step::Index(index) => at.as_array_mut()?.get_mut(*index)?,
        };
    }
    Some((at.as_table_mut()?, last))
}

fn remove(document: &mut Table, steps: &[Step]) -> bool {
    reach(document, steps).is_some_and(|(table, key)| table.remove(key).is_some())
}

fn place(document: &mut Table, steps: &[Step], value: Value) -> bool {
    reach(document, steps).is_some_and(|(table, key)| table.insert(key.to_owned(), value).is_none())
}

/// Tries another kind of value in the place of a missing one.
fn next_kind(document: &mut Table, steps: &[Step]) -> bool {
    let Some((table, key)) = reach(document, steps) else { return false };
    let next = match table.get(key) {
        Some(Value::String(_)) => Value::Table(Table::new()),
        Some(Value::Table(_)) => Value::Array(Vec::new()),
        _ => return false,
    };
    table.insert(key.to_owned(), next);
    true
}
