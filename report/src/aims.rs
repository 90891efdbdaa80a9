//! What was aimed at, and whether a run reached it.

use crate::page::words;
use crate::run::{Bulk, Mode, Round, Run, Unit};
use crate::statistics::median;
use serde::Serialize;

/// Lengths of an epoch at which aims are set, in milliseconds; a run without them is judged at those it has.
const EPOCHS_MS: [u64; 2] = [25, 50];
const MIB: u64 = 1 << 20;
/// Bulk data, aware to native.
const BULK: f64 = 0.95;
/// 1 MiB from idle, how many times as fast aware is as speculative.
const IDLE: f64 = 1.5;
/// The 99th percentile of small requests with adaptive epochs.
const LATENCY_MS: f64 = 15.0;
/// Applications, aware to native.
const APPLICATIONS: f64 = 0.8;

/// One aim.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Aim {
    /// In words, with the epoch at which it was found.
    pub aim: String,
    /// The figure is to be this or more.
    pub at_least: Option<f64>,
    /// The figure is to be less than this.
    pub below: Option<f64>,
    /// The figure; none when it was not measured.
    pub found: Option<f64>,
    /// The least and the greatest that one round found by itself, of two rounds and more.
    pub rounds: Option<[f64; 2]>,
    /// Of the figures: nothing for a ratio.
    pub unit: &'static str,
}

impl Aim {
    /// Whether it was reached; none when it was not measured.
    pub fn reached(&self) -> Option<bool> {
        let found = self.found?;
        Some(self.at_least.is_none_or(|least| found >= least) && self.below.is_none_or(|most| found < most))
    }

    /// For people.
    pub fn verdict(&self) -> &'static str {
        match self.reached() {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "not measured",
        }
    }

    /// The bound in words.
    pub fn bound(&self) -> String {
        match (self.at_least, self.below) {
            (Some(least), _) => format!("at least {least}{}", self.unit),
            (None, Some(most)) => format!("below {most}{}", self.unit),
            (None, None) => String::new(),
        }
    }

    /// What single rounds found, in words; nothing of a single round.
    pub fn spread(&self) -> String {
        self.rounds.map_or_else(String::new, |[least, greatest]| {
            format!("{} to {}", words::number(least), words::number(greatest))
        })
    }

    fn at_least(aim: String, at_least: f64, found: Option<f64>, rounds: Option<[f64; 2]>) -> Self {
        Self { aim, at_least: Some(at_least), below: None, found, rounds, unit: "" }
    }
}

/// All aims, in the order in which they matter.
pub fn of(run: &Run) -> Vec<Aim> {
    let mut aims: Vec<Aim> = EPOCHS_MS.into_iter().map(|epoch_ms| bulk(run, epoch_ms)).collect();
    aims.extend([idle(run, false), idle(run, true), latency(run)]);
    aims.extend(applications(run));
    aims
}

/// How fast one mode's stream was, as a part of the other's; over the rows of one connection.
pub(crate) fn stream_ratio(run: &Run, epoch_ms: u64, mode: Mode, to: Mode) -> Option<f64> {
    let longest = run.streams().filter(|row| row.connections == 1).filter_map(|row| row.seconds).max();
    let rate = |mode| {
        let rows = run.streams().filter(|row| {
            row.connections == 1 && row.seconds == longest && row.mode == mode && row.epoch_ms == epoch_ms
        });
        fixed_first(rows, |row| row.adaptive, rate_mbit_s)
    };
    Some(rate(mode)? / rate(to)?)
}

fn bulk(run: &Run, epoch_ms: u64) -> Aim {
    let found = stream_ratio(run, epoch_ms, Mode::Aware, Mode::Native);
    let rounds = |mode| {
        let mut rows = run.streams().filter(|row| row.connections == 1 && !row.adaptive);
        rows.find(|row| (row.mode, row.epoch_ms) == (mode, epoch_ms)).map(|row| &row.rounds[..])
    };
    let spread = spread(rounds(Mode::Aware), rounds(Mode::Native), |round| round.mbit_s);
    Aim::at_least(format!("bulk data, epochs of {epoch_ms} ms: aware to native"), BULK, found, spread)
}

/// The least and the greatest ratio of one round's figures.
fn spread(of: Option<&[Round]>, to: Option<&[Round]>, figure: fn(&Round) -> Option<f64>) -> Option<[f64; 2]> {
    let (of, to) = (of?, to?);
    // Where a round is missing, the others do not stand beside each other.
    let ratios: Option<Vec<f64>> =
        of.iter().zip(to).map(|(of, to)| Some(figure(of)? / figure(to)?)).collect();
    range(&ratios.filter(|_| of.len() == to.len())?)
}

fn range(figures: &[f64]) -> Option<[f64; 2]> {
    let known = figures.len() > 1 && figures.iter().all(|figure| figure.is_finite());
    let least = figures.iter().copied().min_by(f64::total_cmp)?;
    let greatest = figures.iter().copied().max_by(f64::total_cmp)?;
    known.then_some([least, greatest])
}

fn idle(run: &Run, setup: bool) -> Aim {
    let time = |epoch_ms, mode| {
        let rows = run.transfers().filter(|row| {
            (row.bytes, row.setup) == (Some(MIB), Some(setup)) && row.mode == mode && row.epoch_ms == epoch_ms
        });
        fixed_first(rows, |row| row.adaptive, |row| completion_ms(row).unwrap_or(0.0))
    };
    let ratio = |epoch_ms| Some(time(epoch_ms, Mode::Speculative)? / time(epoch_ms, Mode::Aware)?);
    let worst = worst(judged(run.transfers().map(|row| row.epoch_ms)), ratio);
    let rounds = |mode| {
        let mut rows = run.transfers().filter(|row| {
            (row.bytes, row.setup) == (Some(MIB), Some(setup)) && row.mode == mode && !row.adaptive
        });
        rows.find(|row| worst.is_some_and(|(epoch_ms, _)| epoch_ms == row.epoch_ms))
            .map(|row| &row.rounds[..])
    };
    let how = if setup { "a new" } else { "an idle" };
    Aim::at_least(
        format!("1 MiB on {how} connection{}: time of speculative to aware", at(worst)),
        IDLE,
        worst.map(|(_, ratio)| ratio),
        spread(rounds(Mode::Speculative), rounds(Mode::Aware), |round| round.p50_ms),
    )
}

fn latency(run: &Run) -> Aim {
    let worst = run
        .latencies()
        .filter(|row| row.adaptive && row.mode != Mode::Native)
        .max_by(|one, other| one.p99_ms.total_cmp(&other.p99_ms));
    let of = worst.map_or_else(String::new, |row| format!(" (the worst: {}, {} ms)", row.mode, row.epoch_ms));
    Aim {
        aim: format!("requests' latency p99, adaptive epochs{of}"),
        at_least: None,
        below: Some(LATENCY_MS),
        found: worst.map(|row| row.p99_ms),
        rounds: worst
            .and_then(|row| range(&row.rounds.iter().filter_map(|round| round.p99_ms).collect::<Vec<_>>())),
        unit: " ms",
    }
}

fn applications(run: &Run) -> Vec<Aim> {
    let mut apps: Vec<&str> = Vec::new();
    for row in run.applications() {
        if !apps.contains(&row.app.as_str()) {
            apps.push(&row.app);
        }
    }
    let mut aims = Vec::new();
    for app in apps {
        for adaptive in [false, true] {
            let epochs = judged(run.applications().map(|row| row.epoch_ms));
            let worst =
                worst(epochs, |epoch_ms| application_ratio(run, app, epoch_ms, Mode::Aware, adaptive));
            let rounds = |mode| {
                let mut rows = run.applications().filter(|row| row.app == app && row.adaptive == adaptive);
                let at = worst.map(|(epoch_ms, _)| epoch_ms)?;
                rows.find(|row| (row.mode, row.epoch_ms) == (mode, at)).map(|row| &row.rounds[..])
            };
            let spread =
                spread(rounds(Mode::Aware), rounds(Mode::Native), |round| round.requests_s.or(round.mbit_s));
            let how = if adaptive { ", adaptive" } else { "" };
            aims.push(Aim::at_least(
                format!("{app}{}: aware{how} to native", at(worst)),
                APPLICATIONS,
                worst.map(|(_, ratio)| ratio),
                spread,
            ));
        }
    }
    aims
}

/// An application's rate as a part of native's beside it.
pub(crate) fn application_ratio(
    run: &Run,
    app: &str,
    epoch_ms: u64,
    mode: Mode,
    adaptive: bool,
) -> Option<f64> {
    let of = move |mode| {
        run.applications().filter(move |row| row.app == app && row.epoch_ms == epoch_ms && row.mode == mode)
    };
    let rates: Vec<f64> = of(mode).filter(|row| row.adaptive == adaptive).map(|row| row.rate().0).collect();
    let beside: Vec<f64> =
        of(Mode::Native).filter(|row| row.adaptive == adaptive).map(|row| row.rate().0).collect();
    let native = median(&beside).or_else(|| {
        let any: Vec<f64> = of(Mode::Native).map(|row| row.rate().0).collect();
        median(&any)
    })?;
    (native > 0.0).then_some(median(&rates)? / native)
}

/// The median rate of a stream, as the page's own table has it.
fn rate_mbit_s(row: &Bulk) -> f64 {
    let sampled = row.samples_unit == Some(Unit::MbitS);
    sampled.then(|| median(&row.samples)).flatten().unwrap_or(row.throughput_mbit_s)
}

/// The median time of a transfer.
pub(crate) fn completion_ms(row: &Bulk) -> Option<f64> {
    let sampled = row.samples_unit.is_some_and(Unit::is_time);
    sampled.then(|| median(&row.samples)).flatten().or(row.completion_p50_ms)
}

/// The median over rows with epochs of fixed length, or over adaptive ones when there are no others; none
/// unless it is above 0.
fn fixed_first<'a, T: 'a>(
    rows: impl Iterator<Item = &'a T>,
    adaptive: impl Fn(&T) -> bool,
    value: impl Fn(&T) -> f64,
) -> Option<f64> {
    let (of_adaptive, of_fixed): (Vec<&T>, Vec<&T>) = rows.partition(|row| adaptive(row));
    let rows = if of_fixed.is_empty() { of_adaptive } else { of_fixed };
    let values: Vec<f64> = rows.into_iter().map(value).collect();
    median(&values).filter(|value| *value > 0.0)
}

/// The epochs at which is judged.
fn judged(epochs: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut epochs: Vec<u64> = epochs.collect();
    epochs.sort_unstable();
    epochs.dedup();
    let aimed: Vec<u64> = epochs.iter().copied().filter(|epoch| EPOCHS_MS.contains(epoch)).collect();
    if aimed.is_empty() { epochs } else { aimed }
}

fn worst(epochs: Vec<u64>, ratio: impl Fn(u64) -> Option<f64>) -> Option<(u64, f64)> {
    let found = epochs.into_iter().filter_map(|epoch_ms| Some((epoch_ms, ratio(epoch_ms)?)));
    found.min_by(|one, other| one.1.total_cmp(&other.1))
}

fn at(worst: Option<(u64, f64)>) -> String {
    worst.map_or_else(String::new, |(epoch_ms, _)| format!(", epochs of {}", words::epochs(epoch_ms, false)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(rows: &serde_json::Value) -> Vec<(String, Option<f64>, &'static str)> {
        let run = Run::read(&json!({"bench": "paper", "rows": rows}).to_string()).unwrap();
        of(&run).into_iter().map(|aim| (aim.aim.clone(), aim.found, aim.verdict())).collect()
    }

    fn row(kind: &str, mode: &str, adaptive: bool, more: serde_json::Value) -> serde_json::Value {
        let mut row = json!({"kind": kind, "mode": mode, "epoch_ms": 25, "adaptive": adaptive, "connections": 1,
            "throughput_mbit_s": 1.0, "stream_exact": true});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row
    }

    #[test]
    fn an_empty_run_reached_nothing_and_missed_nothing() {
        assert!(
            found(&json!([])).iter().all(|(_, found, verdict)| found.is_none() && *verdict == "not measured")
        );
    }

    #[test]
    fn single_rounds_are_set_beside_each_other() {
        let stream = |mode, rates: &[f64]| {
            let rounds: Vec<_> = rates.iter().map(|rate| json!({"mbit_s": rate})).collect();
            row("stream", mode, false, json!({"seconds": 5, "rounds": rounds}))
        };
        let spread = |native: &[f64], aware: &[f64]| {
            let rows = json!([stream("native", native), stream("aware", aware)]);
            let run = Run::read(&json!({"bench": "paper", "rows": rows}).to_string()).unwrap();
            of(&run)[0].rounds
        };
        assert_eq!(spread(&[100.0, 200.0, 50.0], &[50.0, 180.0, 40.0]), Some([0.5, 0.9]));
        assert_eq!(spread(&[100.0, 200.0], &[50.0]), None);
        assert_eq!(spread(&[100.0], &[50.0]), None);
        assert_eq!(spread(&[0.0, 0.0], &[50.0, 40.0]), None);
    }

    #[test]
    fn ratios_are_of_rows_that_belong_together() {
        let transfer = |mode, ms: f64| {
            row("transfer", mode, false, json!({"bytes": MIB, "setup": false, "completion_p50_ms": ms}))
        };
        let stream =
            |mode, rate: f64| row("stream", mode, false, json!({"seconds": 5, "throughput_mbit_s": rate}));
        let latency = |mode, adaptive, p99: f64| {
            row(
                "latency",
                mode,
                adaptive,
                json!({"requests": 9, "p50_ms": 1.0, "p90_ms": 1.0, "p99_ms": p99, "max_ms": 99.0}),
            )
        };
        let app = |mode, adaptive, rate: f64| {
            row("application", mode, adaptive, json!({"app": "nginx", "requests_s": rate}))
        };
        let found = found(&json!([
            stream("native", 100.0),
            row(
                "stream",
                "aware",
                false,
                json!({"seconds": 5, "throughput_mbit_s": 50.0, "samples": [95.0, 1.0, 99.0],
                "samples_unit": "mbit_s"})
            ),
            transfer("speculative", 30.0),
            transfer("aware", 24.0),
            latency("native", true, 50.0),
            latency("aware", false, 40.0),
            latency("aware", true, 14.9),
            app("native", false, 100.0),
            app("aware", false, 79.0),
            app("aware", true, 81.0),
        ]));
        let of = |about: &str| {
            let (_, found, verdict) = found.iter().find(|(aim, ..)| aim.contains(about)).unwrap();
            (*found, *verdict)
        };
        assert_eq!(of("epochs of 25 ms: aware to native"), (Some(0.95), "reached"));
        assert_eq!(of("bulk data, epochs of 50 ms"), (None, "not measured"));
        assert_eq!(of("an idle connection, epochs of 25 ms"), (Some(1.25), "MISSED"));
        assert_eq!(of("p99"), (Some(14.9), "reached"));
        assert_eq!(of("nginx, epochs of 25 ms: aware to"), (Some(0.79), "MISSED"));
        assert_eq!(of("aware, adaptive to"), (Some(0.81), "reached"));
    }
}
