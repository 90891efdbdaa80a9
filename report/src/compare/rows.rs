//! A run's rows as what is compared: an identity with one of the row's figures, and what each round found.

use crate::page::words;
use crate::run::{Mode, Round, Row, Run, Unit};
use std::fmt;

/// What makes two figures the same figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) kind: &'static str,
    pub(super) what: String,
    pub(super) mode: Mode,
    pub(super) epoch_ms: u64,
    pub(super) adaptive: bool,
    pub(super) figure: Figure,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (epochs, figure) = (words::epochs(self.epoch_ms, self.adaptive), self.figure.name());
        write!(f, "{} {}, {figure}, {}, {epochs}", self.kind, self.what, self.mode)
    }
}

/// Which of a row's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    Rate,
    P50,
    P99,
}

impl Figure {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::P50 => "p50",
            Self::P99 => "p99",
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measured {
    pub(super) unit: Unit,
    pub(super) rounds: Vec<f64>,
}

/// All figures in their order. Rows of one identity are one, with the rounds of all; a row that has none is a
/// round itself.
pub(super) fn of_run(run: &Run) -> Vec<(Identity, Measured)> {
    let mut found: Vec<(Identity, Measured)> = Vec::new();
    for (identity, mut measured) in run.rows.iter().flat_map(of_row) {
        match found.iter_mut().find(|(known, so_far)| *known == identity && so_far.unit == measured.unit) {
            Some((_, so_far)) => so_far.rounds.append(&mut measured.rounds),
            None => found.push((identity, measured)),
        }
    }
    found
}

/// Whether any row says what its rounds found.
pub(super) fn keeps_rounds(run: &Run) -> bool {
    run.rows.iter().any(|row| match row {
        Row::Stream(row) | Row::Transfer(row) => !row.rounds.is_empty(),
        Row::Application(row) => !row.rounds.is_empty(),
        Row::Latency(row) => !row.rounds.is_empty(),
        Row::Pause(_) | Row::Pps(_) | Row::Pages(_) | Row::Engine(_) | Row::Unknown => false,
    })
}

type Of = fn(&Round) -> Option<f64>;
const MBIT_S: Of = |round| round.mbit_s;
const REQUESTS_S: Of = |round| round.requests_s;
const P50: Of = |round| round.p50_ms;
const P99: Of = |round| round.p99_ms;

fn of_row(row: &Row) -> Vec<(Identity, Measured)> {
    let (kind, what, mode, epoch_ms, adaptive) = match row {
        Row::Stream(row) => ("stream", words::bulk(row), row.mode, row.epoch_ms, row.adaptive),
        Row::Transfer(row) => ("transfer", words::bulk(row), row.mode, row.epoch_ms, row.adaptive),
        Row::Application(row) => ("application", row.app.clone(), row.mode, row.epoch_ms, row.adaptive),
        Row::Latency(row) => ("latency", "requests".to_owned(), row.mode, row.epoch_ms, row.adaptive),
        Row::Pause(_) | Row::Pps(_) | Row::Pages(_) | Row::Engine(_) | Row::Unknown => return Vec::new(),
    };
    let figures = figures(row).into_iter().map(|(figure, measured)| {
        let what = what.clone();
        (Identity { kind, what, mode, epoch_ms, adaptive, figure }, measured)
    });
    figures.filter(|(_, measured)| !measured.rounds.is_empty()).collect()
}

fn figures(row: &Row) -> Vec<(Figure, Measured)> {
    match row {
        Row::Stream(row) => {
            vec![(Figure::Rate, measured(Unit::MbitS, &row.rounds, MBIT_S, Some(row.throughput_mbit_s)))]
        }
        Row::Transfer(row) => {
            vec![(Figure::P50, measured(Unit::Ms, &row.rounds, P50, row.completion_p50_ms))]
        }
        Row::Application(row) => {
            let (rate, unit) = row.rate();
            let of = if unit == Unit::RequestsS { REQUESTS_S } else { MBIT_S };
            vec![
                (Figure::Rate, measured(unit, &row.rounds, of, Some(rate))),
                (Figure::P50, measured(Unit::Ms, &row.rounds, P50, row.p50_ms)),
                (Figure::P99, measured(Unit::Ms, &row.rounds, P99, row.p99_ms)),
            ]
        }
        Row::Latency(row) => vec![
            (Figure::P50, measured(Unit::Ms, &row.rounds, P50, Some(row.p50_ms))),
            (Figure::P99, measured(Unit::Ms, &row.rounds, P99, Some(row.p99_ms))),
        ],
        Row::Pause(_) | Row::Pps(_) | Row::Pages(_) | Row::Engine(_) | Row::Unknown => Vec::new(),
    }
}

fn measured(unit: Unit, rounds: &[Round], of: Of, whole: Option<f64>) -> Measured {
    let figures: Vec<f64> = match rounds.is_empty() {
        true => whole.into_iter().collect(),
        false => rounds.iter().filter_map(of).collect(),
    };
    Measured { unit, rounds: figures.into_iter().filter(|figure| figure.is_finite()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Bulk, Latency};

    #[test]
    fn rows_of_one_identity_are_rounds() {
        let row = |rate| {
            let mut row = Bulk::new(Mode::Native, 50, false);
            (row.seconds, row.throughput_mbit_s) = (Some(10), rate);
            Row::Stream(row)
        };
        let run = Run { rows: vec![row(1.0), row(2.0), row(3.0)], ..Run::default() };
        let found = of_run(&run);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1, Measured { unit: Unit::MbitS, rounds: vec![1.0, 2.0, 3.0] });
        assert!(!keeps_rounds(&run));
    }

    #[test]
    fn a_row_has_a_figure_for_each_thing_that_its_rounds_found() {
        let round = |p50| Round { p50_ms: Some(p50), p99_ms: Some(p50 * 2.0), ..Round::default() };
        let row = Latency {
            mode: Mode::Aware,
            epoch_ms: 25,
            adaptive: true,
            requests: 600,
            p50_ms: 7.0,
            p90_ms: 8.0,
            p99_ms: 14.0,
            max_ms: 20.0,
            histogram: None,
            rounds: vec![round(6.0), round(8.0)],
        };
        let found = of_run(&Run { rows: vec![Row::Latency(row)], ..Run::default() });
        let shown: Vec<_> = found.iter().map(|(of, found)| (of.figure, found.rounds.clone())).collect();
        assert_eq!(shown, [(Figure::P50, vec![6.0, 8.0]), (Figure::P99, vec![12.0, 16.0])]);
    }
}
