//! What the rounds of a run found, put together into rows.

use super::plan::{Step, What};
use crate::bench::stage::Setting;
use crate::config::Mode;
use holdfast_lab::apps::{App, AppFigures};
use holdfast_lab::report::{Summary, median, percentile};
use holdfast_report::histogram::{self, Histogram};
use holdfast_report::run::{self, Application, Bulk, Clock, Epoch, Latency, Recording, Round, Row, Unit};
use serde_json::Value;

/// What one step found.
#[derive(Debug)]
pub(super) enum Taken {
    /// The rate in each second, Jain's index, and whether all was right.
    Stream { mbit_s: f64, each_second: Vec<f64>, fairness: f64, exact: bool },
    /// How long each transfer took, in milliseconds.
    Transfers { completion_ms: Vec<f64>, exact: bool },
    /// How long each request took, in microseconds.
    Latency { times_us: Vec<f64> },
    /// One load after the other.
    Application(Vec<AppFigures>),
}

impl Taken {
    /// Whether every byte was right, as far as somebody looked, and nothing failed.
    pub(super) fn is_exact(&self) -> bool {
        match self {
            Self::Stream { exact, .. } | Self::Transfers { exact, .. } => *exact,
            Self::Latency { times_us } => !times_us.is_empty(),
            Self::Application(all) => all.iter().all(|one| one.errors == 0 && one.exact != Some(false)),
        }
    }
}

/// Everything that was found, step by step.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    taken: Vec<(Step, Vec<Taken>)>,
    pub(super) recordings: Vec<Recording>,
    pub(super) clock: Vec<Clock>,
    /// What was not exact or could not be measured, in words.
    pub(super) faults: Vec<String>,
}

impl Gathered {
    /// Adds what a step found in another round.
    pub(super) fn add(&mut self, step: Step, taken: Taken) {
        match self.taken.iter_mut().find(|(known, _)| *known == step) {
            Some((_, all)) => all.push(taken),
            None => self.taken.push((step, vec![taken])),
        }
    }

    /// The last epochs of a setting, as the status has them; those of the first round that has some.
    pub(super) fn record(&mut self, setting: Setting, seconds: u64, epochs: &Value) {
        let Setting { mode, epoch_ms, adaptive } = setting;
        let mode = mode.into();
        if self
            .recordings
            .iter()
            .any(|known| (known.mode, known.epoch_ms, known.adaptive) == (mode, epoch_ms, adaptive))
        {
            return;
        }
        let epochs = read_epochs(epochs, seconds);
        if !epochs.is_empty() {
            self.recordings.push(Recording { mode, epoch_ms, adaptive, epochs });
        }
    }

    /// How much slower than the world's the guest's clock went in a setting.
    pub(super) fn lag(&mut self, setting: Setting, guest_clock_lag_ppm: Option<f64>) {
        let Setting { mode, epoch_ms, adaptive } = setting;
        let row = Clock { mode: mode.into(), epoch_ms, adaptive, guest_clock_lag_ppm };
        match self
            .clock
            .iter_mut()
            .find(|known| (known.mode, known.epoch_ms, known.adaptive) == (row.mode, epoch_ms, adaptive))
        {
            Some(known) => *known = row,
            None => self.clock.push(row),
        }
    }

    /// The rows of the document.
    pub(super) fn rows(&self) -> Vec<Row> {
        self.taken.iter().map(|(step, taken)| row(*step, taken)).collect()
    }
}

impl From<Mode> for run::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Native => Self::Native,
            Mode::Commit => Self::Commit,
            Mode::Speculative => Self::Speculative,
            Mode::Aware => Self::Aware,
        }
    }
}

fn row(step: Step, taken: &[Taken]) -> Row {
    match step.what {
        What::Stream(connections) => Row::Stream(stream(step.setting, connections, taken)),
        What::Transfers { bytes, setup } => Row::Transfer(transfers(step.setting, (bytes, setup), taken)),
        What::Latency => Row::Latency(latency(step.setting, taken)),
        What::Application(app) => Row::Application(application(step.setting, app, taken)),
    }
}

fn bulk(Setting { mode, epoch_ms, adaptive }: Setting) -> Bulk {
    Bulk::new(mode.into(), epoch_ms, adaptive)
}

fn stream(setting: Setting, connections: usize, taken: &[Taken]) -> Bulk {
    let (mut rates, mut indices) = (Vec::new(), Vec::new());
    let mut row = bulk(setting);
    for one in taken {
        let Taken::Stream { mbit_s, each_second, fairness, exact } = one else { continue };
        rates.push(*mbit_s);
        indices.push(*fairness);
        row.samples.extend(each_second);
        row.rounds.push(Round { mbit_s: Some(*mbit_s), ..Round::default() });
        row.stream_exact &= exact;
        row.seconds = Some(each_second.len() as u64);
    }
    row.connections = connections as u64;
    row.throughput_mbit_s = median(&rates).unwrap_or(0.0);
    row.fairness = median(&indices);
    row.samples_unit = (!row.samples.is_empty()).then_some(Unit::MbitS);
    row
}

fn transfers(setting: Setting, (bytes, setup): (u64, bool), taken: &[Taken]) -> Bulk {
    let mut row = bulk(setting);
    for one in taken {
        let Taken::Transfers { completion_ms, exact } = one else { continue };
        row.samples.extend(completion_ms);
        row.rounds.push(Round { p50_ms: percentile(completion_ms, 0.5), ..Round::default() });
        row.stream_exact &= exact;
    }
    (row.bytes, row.setup) = (Some(bytes), Some(setup));
    row.completion_p50_ms = percentile(&row.samples, 0.5);
    row.completion_p90_ms = percentile(&row.samples, 0.9);
    row.throughput_mbit_s = row.completion_p50_ms.map_or(0.0, |ms| bytes as f64 * 8e-3 / ms);
    row.samples_unit = (!row.samples.is_empty()).then_some(Unit::Ms);
    row
}

fn latency(Setting { mode, epoch_ms, adaptive }: Setting, taken: &[Taken]) -> Latency {
    let (mut all_us, mut rounds) = (Vec::new(), Vec::new());
    for one in taken {
        let Taken::Latency { times_us } = one else { continue };
        let Summary { p50, p99, .. } = Summary::of(times_us);
        rounds.push(Round { p50_ms: Some(p50 / 1e3), p99_ms: Some(p99 / 1e3), ..Round::default() });
        all_us.extend(times_us);
    }
    let Summary { p50, p90, p99, max, .. } = Summary::of(&all_us);
    Latency {
        mode: mode.into(),
        epoch_ms,
        adaptive,
        requests: all_us.len() as u64,
        p50_ms: p50 / 1e3,
        p90_ms: p90 / 1e3,
        p99_ms: p99 / 1e3,
        max_ms: max / 1e3,
        histogram: Some(histogram::encode(&histogram::of(all_us.iter().map(|us| us.round() as u64)))),
        rounds,
    }
}

fn application(Setting { mode, epoch_ms, adaptive }: Setting, app: App, taken: &[Taken]) -> Application {
    let of_rounds: Vec<Vec<&AppFigures>> = taken
        .iter()
        .filter_map(
            |one| if let Taken::Application(loads) = one { Some(loads.iter().collect()) } else { None },
        )
        .collect();
    let figures = of_rounds.concat();
    let whole = Loads::of(&figures);
    let rounds = of_rounds.iter().map(|loads| Loads::of(loads).round()).collect();
    let requests_s = all(&figures, |one| one.requests_s);
    let latency = (!whole.latency.is_empty()).then(|| histogram::encode(&whole.latency));
    let Round { mbit_s, requests_s: rate, p50_ms, p99_ms } = whole.round();
    Application {
        app: app.name().to_owned(),
        mode: mode.into(),
        epoch_ms,
        adaptive,
        requests_s: rate,
        p50_ms,
        p99_ms,
        mbit_s,
        samples: if requests_s.is_empty() { all(&figures, |one| one.mbit_s) } else { requests_s },
        rounds,
        errors: figures.iter().map(|one| one.errors).sum(),
        latency,
    }
}

fn all(figures: &[&AppFigures], value: fn(&AppFigures) -> Option<f64>) -> Vec<f64> {
    figures.iter().filter_map(|one| value(one)).collect()
}

/// Loads of an application, and how long all their requests took, in microseconds.
struct Loads<'a> {
    figures: &'a [&'a AppFigures],
    latency: Histogram<u64>,
}

impl<'a> Loads<'a> {
    fn of(figures: &'a [&'a AppFigures]) -> Self {
        let mut latency = histogram::empty();
        for one in figures.iter().filter_map(|one| one.latency.as_ref()) {
            for step in one.iter_recorded() {
                latency.saturating_record_n(step.value_iterated_to(), step.count_at_value());
            }
        }
        Self { figures, latency }
    }

    /// What they found together.
    fn round(&self) -> Round {
        // Where only the program's own percentiles are known, their median.
        let at = |quantile, known| match self.latency.is_empty() {
            false => Some(self.latency.value_at_quantile(quantile) as f64 / 1e3),
            true => median(&all(self.figures, known)),
        };
        Round {
            mbit_s: median(&all(self.figures, |one| one.mbit_s)),
            requests_s: median(&all(self.figures, |one| one.requests_s)),
            p50_ms: at(0.5, |one| one.p50_ms),
            p99_ms: at(0.99, |one| one.p99_ms),
        }
    }
}

/// Epochs as `holdfast status --epochs --json` has them: those of the last `seconds` that are committed.
fn read_epochs(epochs: &Value, seconds: u64) -> Vec<Epoch> {
    let rows = epochs.as_array().map_or(&[][..], Vec::as_slice);
    let us = |row: &Value, name: &str| row[name].as_f64();
    let last = rows.iter().filter_map(|row| us(row, "began_us")).fold(0.0, f64::max);
    let recent =
        rows.iter().filter(|row| us(row, "began_us").is_some_and(|at| at + seconds as f64 * 1e6 > last));
    let mut first = None;
    let read = recent.filter_map(|row| {
        let began = us(row, "began_us")?;
        let stopped = us(row, "stopped_us")?;
        let (sent, committed) = (us(row, "sent_us")?, us(row, "committed_us")?);
        let first = *first.get_or_insert(began);
        let captured = stopped + us(row, "pause_us")?;
        let count = |name: &str| row[name].as_u64().unwrap_or(0);
        Some(Epoch {
            number: row["number"].as_u64()?,
            began_us: began - first,
            pause_us: stopped - first,
            captured_us: captured - first,
            // A small epoch is on its way before its guest runs again.
            sent_us: sent.max(captured) - first,
            committed_us: committed.max(sent).max(captured) - first,
            dirty_pages: count("dirty_pages"),
            wire_bytes: count("wire_bytes"),
            stream_bytes: count("streamed_bytes"),
        })
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SETTING: Setting = Setting { mode: Mode::Aware, epoch_ms: 25, adaptive: true };

    #[test]
    fn rounds_are_put_together_and_the_document_can_be_read_back() {
        let mut found = Gathered::default();
        let mut add = |what, taken| found.add(Step { setting: SETTING, what }, taken);
        for rate in [100.0, 300.0, 200.0] {
            add(
                What::Stream(1),
                Taken::Stream { mbit_s: rate, each_second: vec![rate; 4], fairness: 1.0, exact: true },
            );
            let idle = What::Transfers { bytes: 1 << 20, setup: false };
            add(idle, Taken::Transfers { completion_ms: vec![rate / 10.0; 2], exact: rate < 250.0 });
            add(What::Latency, Taken::Latency { times_us: vec![5_000.0, rate * 10.0] });
            let latency = Some(histogram::of([1_000, 2_000]));
            let load = AppFigures { requests_s: Some(rate), errors: 1, latency, ..AppFigures::default() };
            add(What::Application(App::Nginx), Taken::Application(vec![load.clone(), load]));
        }
        let rows = found.rows();
        let document = json!({"bench": "paper", "rows": rows});
        let read = run::Run::read(&document.to_string()).expect("a run");
        assert_eq!(read.rows, rows);
        let stream = read.streams().next().expect("a stream");
        assert_eq!((stream.throughput_mbit_s, stream.samples.len(), stream.seconds), (200.0, 12, Some(4)));
        let rates: Vec<_> = stream.rounds.iter().map(|round| round.mbit_s).collect();
        assert_eq!(rates, [Some(100.0), Some(300.0), Some(200.0)], "a round is one observation");
        let transfer = read.transfers().next().expect("transfers");
        assert_eq!((transfer.completion_p50_ms, transfer.stream_exact), (Some(20.0), false));
        assert_eq!(transfer.rounds[1].p50_ms, Some(30.0));
        let latency = read.latencies().next().expect("a latency");
        assert_eq!((latency.requests, latency.max_ms), (6, 5.0));
        assert_eq!((latency.rounds.len(), latency.rounds[0].p50_ms), (3, Some(1.0)));
        let app = read.applications().next().expect("an application");
        assert_eq!((app.requests_s, app.samples.len(), app.errors), (Some(200.0), 6, 6));
        assert_eq!((app.rounds.len(), app.rounds[2].requests_s), (3, Some(200.0)));
        let close =
            |found: Option<f64>, wanted: f64| found.is_some_and(|ms| (ms / wanted - 1.0).abs() < 1e-2);
        assert!(close(app.p50_ms, 1.0) && close(app.p99_ms, 2.0), "{app:?}");
    }

    #[test]
    fn epochs_are_read_from_the_status_as_far_as_they_are_committed() {
        let epoch = |number: u64, at: u64| {
            json!({"number": number, "began_us": at, "stopped_us": at + 20_000, "pause_us": 5_000, "sent_us": at + 24_000,
                   "committed_us": at + 30_000, "dirty_pages": 7, "wire_bytes": 9, "streamed_bytes": 11})
        };
        let mut rows = vec![epoch(1, 0), epoch(2, 10_000_000), epoch(3, 10_025_000), epoch(4, 10_050_000)];
        rows[3]["committed_us"] = Value::Null;
        let read = read_epochs(&json!(rows), 5);
        assert_eq!(read.iter().map(|epoch| epoch.number).collect::<Vec<_>>(), [2, 3]);
        assert!(read.iter().all(Epoch::is_in_order));
        assert_eq!((read[0].began_us, read[1].pause_us, read[1].captured_us), (0.0, 45_000.0, 50_000.0));
        assert!(read_epochs(&Value::Null, 5).is_empty());
    }
}
