//! A comparison for people.

use super::{Compared, Comparison, LEVEL, Verdict};
use crate::page::words;
use std::fmt;

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for difference in &self.differences {
            writeln!(f, "{}: {} in A, {} in B", difference.field, difference.a, difference.b)?;
        }
        if !self.differences.is_empty() {
            writeln!(f, "The runs are not of the same machine and configuration: mind what follows.\n")?;
        }
        if !self.rows.is_empty() {
            writeln!(
                f,
                "{:<40} {:<11} {:<15} {:>14} {:>14} {:>6}  {:<15} {:>8} {:>9}  verdict",
                "row", "mode", "epochs", "A", "B", "B / A", "95 % interval", "p (Holm)", "samples"
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
            "\n{} row(s): B is faster in {}, slower in {}; no difference shown in {}, too few samples in {}, single \
             figures in {}",
            self.rows.len(),
            of(Verdict::Faster),
            of(Verdict::Slower),
            of(Verdict::NoDifferenceShown),
            of(Verdict::TooFewSamples),
            of(Verdict::SingleFigures),
        )?;
        if of(Verdict::SingleFigures) > 0 {
            writeln!(
                f,
                "Where a run has no samples of a row, no statistics are possible: its figures say nothing of chance."
            )?;
        }
        if of(Verdict::TooFewSamples) > 0 {
            writeln!(
                f,
                "Too few samples: so few could not show a difference among so many rows, however large it is."
            )?;
        }
        writeln!(
            f,
            "(medians; Mann–Whitney, two-sided, p below {LEVEL} after Holm's correction over all rows; samples of one \
             run share that run's fate)"
        )
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let figure = |value: f64| format!("{} {}", words::number(value), short(self));
        write!(
            f,
            "{:<40} {:<11} {:<15} {:>14} {:>14} {:>6}  {:<15} {:>8} {:>9}  {}",
            format!("{} {}", self.kind, self.what),
            self.mode,
            words::epochs(self.epoch_ms, self.adaptive),
            figure(self.median_a),
            figure(self.median_b),
            or_dash(self.ratio.map(|ratio| format!("{ratio:.3}"))),
            or_dash(self.interval.map(|[low, high]| format!("{low:.3} to {high:.3}"))),
            or_dash(self.p_corrected.map(probability)),
            format!("{} / {}", self.samples_a, self.samples_b),
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
