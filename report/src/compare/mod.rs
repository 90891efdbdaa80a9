//! Tells two runs apart, row by row.
//!
//! Rows of the same identity (kind, mode, epoch, adaptive, and size, set-up and connections, or the
//! application) are compared in what their rounds found: the rate, the median time, the 99th percentile. A round
//! is one observation, however many seconds or requests it had, as these share its fate. For each figure: how
//! many times A's mean B's is, with an interval of 95 %, and the p-value of Welch's test on logarithms,
//! corrected by Holm's procedure over all figures that were tested. Where a run has too few rounds, figures are
//! set side by side, and nothing is concluded from them.
//!
//! What it cannot know: rounds of one run share that run's fate in turn. A difference between two runs need not
//! be one between two programs; measure each more than once, in turn.

mod rows;
mod table;

use crate::run::{Mode, Run, Unit};
use crate::statistics::{LEAST_ROUNDS, Welch, holm, median};
use rows::{Identity, Measured, of_run};
use serde::Serialize;
use serde_json::Value;

/// Below it a corrected p-value is a difference.
pub const LEVEL: f64 = 0.05;
/// Of intervals.
const CONFIDENCE: f64 = 0.95;

/// Two runs, compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Where the two machines or configurations differ.
    pub differences: Vec<Difference>,
    /// Figures that both runs have, in A's order.
    pub rows: Vec<Compared>,
    /// Figures that only A has.
    pub only_in_a: Vec<String>,
    /// Figures that only B has.
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

/// A figure of a row that both runs have.
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
    /// `rate`, `p50` or `p99`.
    pub figure: &'static str,
    /// Of the means.
    pub unit: Unit,
    /// How many rounds A has.
    pub rounds_a: usize,
    /// How many rounds B has.
    pub rounds_b: usize,
    /// The geometric mean of A's rounds.
    pub mean_a: f64,
    /// The geometric mean of B's rounds.
    pub mean_b: f64,
    /// B's by A's; none when A's is 0.
    pub ratio: Option<f64>,
    /// The ratio's interval of 95 %, lower and upper end.
    pub interval: Option<[f64; 2]>,
    /// Of Welch's test, two-sided.
    pub p: Option<f64>,
    /// As above, corrected for all figures that were tested.
    pub p_corrected: Option<f64>,
    /// How much more or less, in percent, is surely called a difference among so many figures.
    pub shows_from_percent: Option<f64>,
    /// What can be concluded.
    pub verdict: Verdict,
}

/// What can be concluded of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// B is.
    #[serde(rename = "faster")]
    Faster,
    /// B is.
    #[serde(rename = "slower")]
    Slower,
    /// There may be one, smaller than these rounds can show.
    #[serde(rename = "no difference shown")]
    NoDifferenceShown,
    /// Nothing can be said of chance.
    #[serde(rename = "too few rounds to tell")]
    TooFewRounds,
    /// A round found nothing, which is no part and no multiple of anything.
    #[serde(rename = "a round of nothing")]
    RoundOfNothing,
}

impl Verdict {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::NoDifferenceShown => "no difference shown",
            Self::TooFewRounds => "too few rounds to tell",
            Self::RoundOfNothing => "a round of nothing",
        }
    }
}

/// Compares two runs.
pub fn compare(a: &Run, b: &Run) -> Comparison {
    let (rows_a, mut rows_b) = (of_run(a), of_run(b));
    let (mut rows, mut tests, mut only_in_a, mut remarks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (identity, measured) in rows_a {
        let Some(at) = rows_b.iter().position(|(other, _)| *other == identity) else {
            only_in_a.push(identity.to_string());
            continue;
        };
        let (_, other) = rows_b.remove(at);
        if measured.unit != other.unit {
            remarks.push(format!(
                "{identity}: A is in {}, B in {}; not compared",
                measured.unit.name(),
                other.unit.name()
            ));
            continue;
        }
        tests.push(Welch::of(&measured.rounds, &other.rounds));
        rows.push(side_by_side(&identity, &measured, &other));
    }
    conclude(&mut rows, &tests);
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
    /// Whether B is slower in any figure, beyond chance.
    pub fn any_slower(&self) -> bool {
        self.rows.iter().any(|row| row.verdict == Verdict::Slower)
    }
}

/// A figure of which nothing is concluded yet.
fn side_by_side(identity: &Identity, a: &Measured, b: &Measured) -> Compared {
    let (mean_a, mean_b) = (mean(&a.rounds), mean(&b.rounds));
    let enough = a.rounds.len().min(b.rounds.len()) >= LEAST_ROUNDS;
    Compared {
        kind: identity.kind,
        what: identity.what.clone(),
        mode: identity.mode,
        epoch_ms: identity.epoch_ms,
        adaptive: identity.adaptive,
        figure: identity.figure.name(),
        unit: a.unit,
        rounds_a: a.rounds.len(),
        rounds_b: b.rounds.len(),
        mean_a,
        mean_b,
        ratio: (mean_a > 0.0).then(|| mean_b / mean_a),
        interval: None,
        p: None,
        p_corrected: None,
        shows_from_percent: None,
        verdict: if enough { Verdict::RoundOfNothing } else { Verdict::TooFewRounds },
    }
}

/// The geometric mean; where there is none, or nothing to take a mean of, the median.
fn mean(rounds: &[f64]) -> f64 {
    if rounds.len() < 2 || rounds.iter().any(|figure| *figure <= 0.0) {
        return median(rounds).unwrap_or(0.0);
    }
    (rounds.iter().map(|figure| figure.ln()).sum::<f64>() / rounds.len() as f64).exp()
}

/// Corrects all p-values together, and says what they mean.
fn conclude(rows: &mut [Compared], tests: &[Option<Welch>]) {
    let tested: Vec<(usize, Welch)> =
        tests.iter().enumerate().filter_map(|(at, test)| Some((at, (*test)?))).collect();
    let p_values: Vec<f64> = tested.iter().map(|(_, test)| test.p()).collect();
    for ((at, test), (p, corrected)) in tested.iter().zip(p_values.iter().zip(holm(&p_values))) {
        let row = &mut rows[*at];
        row.ratio = Some(test.ratio());
        row.interval = Some(test.interval(CONFIDENCE));
        (row.p, row.p_corrected) = (Some(*p), Some(corrected));
        row.shows_from_percent = Some((test.least_ratio(LEVEL / tested.len() as f64) - 1.0) * 100.0);
        let less = test.ratio() < 1.0;
        row.verdict = match corrected < LEVEL {
            true if less == row.unit.is_time() => Verdict::Faster,
            true => Verdict::Slower,
            false => Verdict::NoDifferenceShown,
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
    if run.configuration.rounds.is_some_and(|rounds| rounds > 1) && !rows::keeps_rounds(run) {
        said.push(format!("{name}: from before rounds were kept; each of its rows counts as one round"));
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

    fn run(rounds: &[f64], unit: &str) -> Run {
        let mut row = json!({"kind": "stream", "mode": "commit", "epoch_ms": 25, "adaptive": false, "seconds": 5,
            "connections": 1, "throughput_mbit_s": 100.0, "completion_p50_ms": 100.0, "stream_exact": true});
        if unit == "p50_ms" {
            (row["kind"], row["bytes"], row["setup"]) = ("transfer".into(), (1 << 20).into(), true.into());
        }
        row["rounds"] = rounds.iter().map(|round| json!({unit: round})).collect();
        let document = json!({"bench": "paper", "machine": {"qemu": "7.2", "started": "now"}, "rows": [row]});
        Run::read(&document.to_string()).unwrap()
    }

    fn verdict(a: &[f64], b: &[f64], unit: &str) -> Verdict {
        compare(&run(a, unit), &run(b, unit)).rows[0].verdict
    }

    const LOW: [f64; 5] = [10.0, 10.4, 10.6, 10.5, 10.2];
    const HIGH: [f64; 5] = [20.0, 21.0, 22.0, 20.5, 20.2];

    #[test]
    fn what_is_better_depends_on_the_unit() {
        assert_eq!(verdict(&LOW, &HIGH, "mbit_s"), Verdict::Faster);
        assert_eq!(verdict(&HIGH, &LOW, "mbit_s"), Verdict::Slower);
        assert_eq!(verdict(&LOW, &HIGH, "p50_ms"), Verdict::Slower);
        assert_eq!(verdict(&HIGH, &LOW, "p50_ms"), Verdict::Faster);
        assert!(compare(&run(&LOW, "p50_ms"), &run(&HIGH, "p50_ms")).any_slower());
        assert!(!compare(&run(&HIGH, "p50_ms"), &run(&LOW, "p50_ms")).any_slower());
    }

    #[test]
    fn what_cannot_be_concluded_is_not() {
        assert_eq!(verdict(&LOW, &LOW, "mbit_s"), Verdict::NoDifferenceShown);
        // However far apart they are.
        for few in 1..LEAST_ROUNDS {
            assert_eq!(
                verdict(&[1.0, 1.001, 1.002][..few], &[9.0; 3][..few], "mbit_s"),
                Verdict::TooFewRounds
            );
        }
        assert_eq!(verdict(&LOW, &[], "mbit_s"), Verdict::TooFewRounds);
        assert_eq!(verdict(&LOW, &[0.0; 5], "mbit_s"), Verdict::RoundOfNothing);
        let row = compare(&run(&LOW, "mbit_s"), &run(&HIGH, "mbit_s")).rows.remove(0);
        let ([low, high], ratio) = (row.interval.unwrap(), row.ratio.unwrap());
        assert!(low < ratio && ratio < high && (1.95..2.05).contains(&ratio), "{row:?}");
        assert!(row.shows_from_percent.unwrap() < 10.0, "{row:?}");
        let found = compare(&run(&LOW[..2], "mbit_s"), &run(&HIGH, "mbit_s"));
        assert_eq!((found.rows[0].ratio.is_some(), found.rows[0].p), (true, None));
        assert!(found.to_string().contains("too few rounds to tell"), "{found}");
    }

    /// What is small enough for one question is chance among many.
    #[test]
    fn many_figures_ask_for_more() {
        let many = |rounds: &[f64], count: u64| {
            let mut run = run(rounds, "mbit_s");
            let row = run.rows[0].clone();
            run.rows = (1..=count)
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
        let nearly = [10.4, 11.0, 11.3, 10.9, 10.6];
        let verdict = |count| compare(&many(&LOW, count), &many(&nearly, count)).rows[0].verdict;
        assert_eq!((verdict(1), verdict(60)), (Verdict::Faster, Verdict::NoDifferenceShown));
        let found = compare(&many(&LOW, 200), &many(&HIGH, 200));
        assert!(found.rows.iter().all(|row| row.verdict == Verdict::Faster));
    }

    #[test]
    fn runs_that_are_not_alike_are_said_to_be() {
        let (a, mut b) = (run(&LOW, "mbit_s"), run(&HIGH, "p50_ms"));
        b.machine.commit = Some("0123".into());
        assert!(!compare(&a, &b).to_string().contains("mind what follows"), "two commits are to be compared");
        b.machine.qemu = Some("10.0".into());
        b.machine.started = Some("later".into());
        b.configuration.more.insert("gro".into(), true.into());
        let found = compare(&a, &b);
        let fields: Vec<_> = found.differences.iter().map(|found| found.field.as_str()).collect();
        assert_eq!(fields, ["machine.commit", "machine.qemu", "configuration.gro"]);
        assert!(found.rows.is_empty() && found.only_in_a.len() == 1 && found.only_in_b.len() == 1);
        let text = found.to_string();
        assert!(
            text.contains("machine.qemu: \"7.2\" in A, \"10.0\" in B") && text.contains("no row in common")
        );
        assert!(text.contains("mind what follows"));
    }
}
