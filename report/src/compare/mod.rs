//! Tells two runs apart, row by row.
//!
//! Rows of the same identity (kind, mode, epoch, adaptive, and size, set-up and connections, or the
//! application) are compared by their samples: how many times A's median B's is, with an interval of 95 %, and
//! the p-value of the Mann–Whitney test, corrected by Holm's procedure over all rows that were tested. Rows
//! without samples are set side by side, and nothing is concluded from them.
//!
//! What it cannot know: samples of one run share that run's fate. A difference between two runs need not be
//! one between two programs; measure each more than once, in turn.

mod rows;
mod table;

use crate::run::{Mode, Run, Unit};
use crate::statistics::{holm, least_p, mann_whitney, median, ratio_of_medians};
use rows::{Identity, Measured, of_run};
use serde::Serialize;
use serde_json::Value;

/// Below it a corrected p-value is a difference.
pub const LEVEL: f64 = 0.05;

/// Two runs, compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Where the two machines or configurations differ.
    pub differences: Vec<Difference>,
    /// Rows that both runs have, in A's order.
    pub rows: Vec<Compared>,
    /// Rows that only A has.
    pub only_in_a: Vec<String>,
    /// Rows that only B has.
    pub only_in_b: Vec<String>,
    /// What else a reader has to know.
    pub remarks: Vec<String>,
}

/// One field of machine or configuration that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Such as `machine.qemu`.
    pub field: String,
    /// In A; null when it is missing.
    pub a: Value,
    /// In B; null when it is missing.
    pub b: Value,
}

/// A row that both runs have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// `stream`, `transfer`, `application` or `latency`.
    pub kind: &'static str,
    /// Size, set-up and connections, or the application.
    pub what: String,
    /// What was done with the guest's output.
    pub mode: Mode,
    /// The epoch's length.
    pub epoch_ms: u64,
    /// Whether epochs followed the guest's output.
    pub adaptive: bool,
    /// Of the medians.
    pub unit: Unit,
    /// How many samples A has.
    pub samples_a: usize,
    /// How many samples B has.
    pub samples_b: usize,
    /// A's median, or its single figure.
    pub median_a: f64,
    /// B's median, or its single figure.
    pub median_b: f64,
    /// B's by A's; none when A's is 0.
    pub ratio: Option<f64>,
    /// The ratio's interval of 95 %, lower and upper end.
    pub interval: Option<[f64; 2]>,
    /// Of the Mann–Whitney test, two-sided.
    pub p: Option<f64>,
    /// As above, corrected for all rows that were tested.
    pub p_corrected: Option<f64>,
    /// What can be concluded.
    pub verdict: Verdict,
}

/// What can be concluded of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// B is.
    #[serde(rename = "faster")]
    Faster,
    /// B is.
    #[serde(rename = "slower")]
    Slower,
    /// There may be one, smaller than these samples can show.
    #[serde(rename = "no difference shown")]
    NoDifferenceShown,
    /// However far apart they were, so few could not show it among so many rows.
    #[serde(rename = "too few samples")]
    TooFewSamples,
    /// One of the runs has no samples of it.
    #[serde(rename = "single figures, no statistics possible")]
    SingleFigures,
}

impl Verdict {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::NoDifferenceShown => "no difference shown",
            Self::TooFewSamples => "too few samples",
            Self::SingleFigures => "single figures",
        }
    }
}

/// Compares two runs; the seed chooses the draws of the intervals.
pub fn compare(a: &Run, b: &Run, seed: u64) -> Comparison {
    let (rows_a, mut rows_b) = (of_run(a), of_run(b));
    let (mut rows, mut only_in_a, mut remarks) = (Vec::new(), Vec::new(), Vec::new());
    for (identity, measured) in rows_a {
        let Some(at) = rows_b.iter().position(|(other, _)| *other == identity) else {
            only_in_a.push(identity.to_string());
            continue;
        };
        let (_, other) = rows_b.remove(at);
        match one(&identity, &measured, &other, seed) {
            Some(row) => rows.push(row),
            None => remarks.push(format!(
                "{identity}: A is in {}, B in {}; not compared",
                measured.unit.name(),
                other.unit.name()
            )),
        }
    }
    conclude(&mut rows);
    if rows.is_empty() {
        remarks.push("the runs have no row in common".to_owned());
    }
    for (name, run) in [("A", a), ("B", b)] {
        remarks.extend(faults(name, run));
    }
    let only_in_b = rows_b.into_iter().map(|(identity, _)| identity.to_string()).collect();
    Comparison { differences: differences(a, b), rows, only_in_a, only_in_b, remarks }
}

impl Comparison {
    /// Whether B is slower in any row, beyond chance.
    pub fn any_slower(&self) -> bool {
        self.rows.iter().any(|row| row.verdict == Verdict::Slower)
    }
}

/// A row without its correction and verdict; none when the units differ.
fn one(identity: &Identity, a: &Measured, b: &Measured, seed: u64) -> Option<Compared> {
    if a.unit != b.unit {
        return None;
    }
    let sampled = !a.samples.is_empty() && !b.samples.is_empty();
    let centre = |of: &Measured| median(&of.samples).unwrap_or(of.figure);
    let (median_a, median_b) = (centre(a), centre(b));
    let interval = sampled.then(|| ratio_of_medians(&a.samples, &b.samples, seed)).flatten();
    Some(Compared {
        kind: identity.kind,
        what: identity.what.clone(),
        mode: identity.mode,
        epoch_ms: identity.epoch_ms,
        adaptive: identity.adaptive,
        unit: a.unit,
        samples_a: a.samples.len(),
        samples_b: b.samples.len(),
        median_a,
        median_b,
        ratio: (median_a > 0.0).then(|| median_b / median_a),
        interval: interval.map(|interval| [interval.low, interval.high]),
        p: sampled.then(|| mann_whitney(&a.samples, &b.samples)),
        p_corrected: None,
        verdict: Verdict::SingleFigures,
    })
}

/// Corrects all p-values together, and says what they mean.
fn conclude(rows: &mut [Compared]) {
    // A row that could not show a difference if it were the only one asks no question.
    let (mut tested, mut p_values) = (Vec::new(), Vec::new());
    for (at, row) in rows.iter_mut().enumerate() {
        let Some(p) = row.p else { continue };
        row.verdict = Verdict::TooFewSamples;
        if least_p(row.samples_a, row.samples_b) < LEVEL {
            tested.push(at);
            p_values.push(p);
        }
    }
    let questions = tested.len() as f64;
    for (at, corrected) in tested.into_iter().zip(holm(&p_values)) {
        let row = &mut rows[at];
        row.p_corrected = Some(corrected);
        let could = least_p(row.samples_a, row.samples_b) * questions < LEVEL;
        let less = row.median_b < row.median_a;
        row.verdict = match (corrected < LEVEL && row.median_a != row.median_b, could) {
            (true, _) if less == row.unit.is_time() => Verdict::Faster,
            (true, _) => Verdict::Slower,
            (false, true) => Verdict::NoDifferenceShown,
            (false, false) => Verdict::TooFewSamples,
        };
    }
}

/// What is wrong with a run's rows themselves.
fn faults(name: &str, run: &Run) -> Vec<String> {
    let inexact = run.streams().chain(run.transfers()).filter(|row| !row.stream_exact).count();
    let errors: u64 = run.applications().map(|row| row.errors).sum();
    let mut said = Vec::new();
    if inexact > 0 {
        said.push(format!("{name}: {inexact} row(s) whose stream was not exact"));
    }
    if errors > 0 {
        said.push(format!("{name}: {errors} request(s) of applications failed"));
    }
    if run.unknown_rows() > 0 {
        said.push(format!("{name}: {} row(s) of a kind unknown to this version", run.unknown_rows()));
    }
    said
}

/// Fields that say when a run was, not what it was.
const OF_THE_HOUR: [&str; 2] = ["started", "took_s"];

fn differences(a: &Run, b: &Run) -> Vec<Difference> {
    let mut found = Vec::new();
    if a.bench != b.bench {
        found.push(Difference {
            field: "bench".into(),
            a: a.bench.clone().into(),
            b: b.bench.clone().into(),
        });
    }
    let value = |part: Result<Value, serde_json::Error>| part.unwrap_or_default();
    let parts = [
        ("machine", value(serde_json::to_value(&a.machine)), value(serde_json::to_value(&b.machine))),
        (
            "configuration",
            value(serde_json::to_value(&a.configuration)),
            value(serde_json::to_value(&b.configuration)),
        ),
    ];
    for (part, a, b) in &parts {
        let names = |of: &Value| of.as_object().map_or_else(Vec::new, |map| map.keys().cloned().collect());
        let mut keys: Vec<String> = names(a);
        keys.extend(names(b));
        keys.sort();
        keys.dedup();
        for key in keys.iter().filter(|key| !OF_THE_HOUR.contains(&key.as_str())) {
            if a[key] != b[key] {
                let field = format!("{part}.{key}");
                found.push(Difference { field, a: a[key].clone(), b: b[key].clone() });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(samples: &[f64], unit: &str) -> Run {
        let mut row = json!({"kind": "stream", "mode": "commit", "epoch_ms": 25, "adaptive": false, "seconds": 5,
            "connections": 1, "throughput_mbit_s": 100.0, "stream_exact": true});
        if unit == "ms" {
            (row["kind"], row["bytes"], row["setup"]) = ("transfer".into(), (1 << 20).into(), true.into());
        }
        if !samples.is_empty() {
            (row["samples"], row["samples_unit"]) = (json!(samples), unit.into());
        }
        let document = json!({"bench": "paper", "machine": {"qemu": "7.2", "started": "now"}, "rows": [row]});
        Run::read(&document.to_string()).unwrap()
    }

    fn verdict(a: &[f64], b: &[f64], unit: &str) -> Verdict {
        compare(&run(a, unit), &run(b, unit), 1).rows[0].verdict
    }

    const LOW: [f64; 6] = [10.0, 11.0, 12.0, 10.5, 11.5, 10.2];
    const HIGH: [f64; 6] = [20.0, 21.0, 22.0, 20.5, 21.5, 20.2];

    #[test]
    fn what_is_better_depends_on_the_unit() {
        assert_eq!(verdict(&LOW, &HIGH, "mbit_s"), Verdict::Faster);
        assert_eq!(verdict(&HIGH, &LOW, "mbit_s"), Verdict::Slower);
        assert_eq!(verdict(&LOW, &HIGH, "ms"), Verdict::Slower);
        assert_eq!(verdict(&HIGH, &LOW, "ms"), Verdict::Faster);
        assert!(compare(&run(&LOW, "ms"), &run(&HIGH, "ms"), 1).any_slower());
        assert!(!compare(&run(&HIGH, "ms"), &run(&LOW, "ms"), 1).any_slower());
    }

    #[test]
    fn what_cannot_be_concluded_is_not() {
        assert_eq!(verdict(&LOW, &LOW, "mbit_s"), Verdict::NoDifferenceShown);
        assert_eq!(verdict(&LOW[..3], &HIGH[..3], "mbit_s"), Verdict::TooFewSamples);
        assert_eq!(verdict(&LOW, &[], "mbit_s"), Verdict::SingleFigures);
        let row = compare(&run(&LOW, "mbit_s"), &run(&HIGH, "mbit_s"), 1).rows.remove(0);
        let [low, high] = row.interval.unwrap();
        assert!(low < 20.75 / 10.75 && 20.75 / 10.75 < high, "{row:?}");
    }

    #[test]
    fn many_rows_ask_for_more_samples() {
        let many = |samples: &[f64]| {
            let mut run = run(samples, "mbit_s");
            let row = run.rows[0].clone();
            run.rows = (1..=30)
                .map(|epoch_ms| {
                    let mut row = row.clone();
                    if let crate::run::Row::Stream(row) = &mut row {
                        row.epoch_ms = epoch_ms;
                    }
                    row
                })
                .collect();
            run
        };
        // Five and five that do not overlap: p = 0.008, which is 0.24 among thirty rows.
        let few = compare(&many(&LOW[..5]), &many(&HIGH[..5]), 1);
        assert!(few.rows.iter().all(|row| row.verdict == Verdict::TooFewSamples));
        assert!(few.rows.iter().all(|row| row.p_corrected.unwrap() > 0.2));
        let enough: (Vec<f64>, Vec<f64>) = ([LOW, LOW].concat(), [HIGH, HIGH].concat());
        let enough = compare(&many(&enough.0), &many(&enough.1), 1);
        assert!(enough.rows.iter().all(|row| row.verdict == Verdict::Faster));
    }

    #[test]
    fn runs_that_are_not_alike_are_said_to_be() {
        let (a, mut b) = (run(&LOW, "mbit_s"), run(&HIGH, "ms"));
        b.machine.qemu = Some("10.0".into());
        b.machine.started = Some("later".into());
        b.configuration.more.insert("gro".into(), true.into());
        let found = compare(&a, &b, 1);
        let fields: Vec<_> = found.differences.iter().map(|found| found.field.as_str()).collect();
        assert_eq!(fields, ["machine.qemu", "configuration.gro"]);
        assert!(found.rows.is_empty() && found.only_in_a.len() == 1 && found.only_in_b.len() == 1);
        let text = found.to_string();
        assert!(
            text.contains("machine.qemu: \"7.2\" in A, \"10.0\" in B") && text.contains("no row in common")
        );
    }
}
