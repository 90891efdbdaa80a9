//! A comparison for people.

use super::{Compared, Comparison, LEVEL, Verdict};
use crate::page::words;
use crate::statistics::LEAST_ROUNDS;
use std::fmt;

/// Where runs may differ that are compared for that very reason.
const OF_THE_PROGRAM: [&str; 2] = ["machine.holdfast", "machine.commit"];

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for difference in &self.differences {
            writeln!(f, "{}: {} in A, {} in B", difference.field, difference.a, difference.b)?;
        }
        if self.differences.iter().any(|difference| !OF_THE_PROGRAM.contains(&difference.field.as_str())) {
            writeln!(f, "The runs are not of the same machine and configuration: mind what follows.")?;
        }
        if !self.differences.is_empty() {
            writeln!(f)?;
        }
        if !self.rows.is_empty() {
            writeln!(
                f,
                "{:<38} {:<5} {:<11} {:<15} {:>14} {:>14} {:>6}  {:<15} {:>8} {:>11} {:>7}  verdict",
                "row",
                "",
                "mode",
                "epochs",
                "A",
                "B",
                "B / A",
                "95 % interval",
                "p (Holm)",
                "shows from",
                "rounds"
            )?;
        }
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        for (run, only) in [("A", &self.only_in_a), ("B", &self.only_in_b)] {
            for row in only {
                writeln!(f, "only in {run}: {row}")?;
            }
        }
        self.remarks.iter().try_for_each(|remark| writeln!(f, "{remark}"))?;
        let of = |verdict| self.rows.iter().filter(|row| row.verdict == verdict).count();
        writeln!(
            f,
            "\n{} figure(s): B is faster in {}, slower in {}; no difference shown in {}, too few rounds to tell in {}",
            self.rows.len(),
            of(Verdict::Faster),
            of(Verdict::Slower),
            of(Verdict::NoDifferenceShown),
            of(Verdict::TooFewRounds),
        )?;
        if of(Verdict::RoundOfNothing) > 0 {
            writeln!(f, "A round of nothing: a figure of 0 has no ratio to any other; look at the rows.")?;
        }
        if of(Verdict::TooFewRounds) > 0 {
            writeln!(
                f,
                "Too few rounds: {LEAST_ROUNDS} of each run are the least; five or more are better (`bench paper \
                 --rounds 5`)."
            )?;
        }
        writeln!(
            f,
            "(geometric means of rounds; Welch's test on logarithms, two-sided, p below {LEVEL} after Holm's correction \
             over all figures; rounds of one run share that run's fate)"
        )
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let figure = |value: f64| format!("{} {}", words::number(value), short(self));
        write!(
            f,
            "{:<38} {:<5} {:<11} {:<15} {:>14} {:>14} {:>6}  {:<15} {:>8} {:>11} {:>7}  {}",
            format!("{} {}", self.kind, self.what),
            self.figure,
            self.mode,
            words::epochs(self.epoch_ms, self.adaptive),
            figure(self.mean_a),
            figure(self.mean_b),
            or_dash(self.ratio.map(|ratio| format!("{ratio:.3}"))),
            or_dash(self.interval.map(|[low, high]| format!("{low:.3} to {high:.3}"))),
            or_dash(self.p_corrected.map(probability)),
            or_dash(self.shows_from_percent.map(|percent| format!("{percent:.1} %"))),
            format!("{} / {}", self.rounds_a, self.rounds_b),
            self.verdict.name(),
        )
    }
}

fn probability(p: f64) -> String {
    if p < 0.0001 { "< 0.0001".to_owned() } else { format!("{p:.4}") }
}

/// The unit where room is short.
fn short(row: &Compared) -> &'static str {
    match row.unit {
        crate::run::Unit::RequestsS => "req/s",
        unit => unit.name(),
    }
}
