//! The document of a run: what was measured, on which machine, as JSON.
//!
//! Names carry their units. Fields that are not known are passed over, so that a newer document can be
//! read; what is `Option` may be `null` or missing. Rows carry a `kind` and keep their figures at their top
//! level. Documents whose rows have no `kind` are read as well: those of `bench bulk`, mostly without samples,
//! and those of single parts, [`COSTS`].
//!
//! ```json
//! {"bench": "paper", "machine": {…}, "configuration": {…},
//!  "rows":   [{"kind": "stream", "mode": "aware", "epoch_ms": 25, "adaptive": false, …}, …],
//!  "epochs": [{"mode": "aware", "epoch_ms": 25, "adaptive": false, "epochs": [{"number": 1, …}, …]}, …],
//!  "clock":  [{"mode": "aware", "epoch_ms": 25, "adaptive": false, "guest_clock_lag_ppm": 12000.0}, …]}
//! ```

mod costs;

pub use costs::{COSTS, Engine, Pages, Pause, Pps};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// `paper` or `bulk`, or one of [`COSTS`].
    pub bench: String,
    /// Where it was measured.
    #[serde(default)]
    pub machine: Machine,
    /// What was asked for.
    #[serde(default)]
    pub configuration: Configuration,
    /// What was measured.
    pub rows: Vec<Row>,
    /// Single epochs, of which some hundreds are kept for each recording.
    #[serde(default)]
    pub epochs: Vec<Recording>,
    /// How much slower than the world's the guest's clock went.
    #[serde(default)]
    pub clock: Vec<Clock>,
    /// Rows that could not be taken, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
}

/// What the figures depend on beside the program's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Holdfast's version.
    pub holdfast: Option<String>,
    /// The commit that it was built from, with `-dirty` if something was changed since; `unknown` without git.
    pub commit: Option<String>,
    /// QEMU's version.
    pub qemu: Option<String>,
    /// DPDK's version.
    pub dpdk: Option<String>,
    /// The hosts' kernel.
    pub kernel: Option<String>,
    /// The guest's kernel.
    pub guest_kernel: Option<String>,
    /// Versions of the applications in the guest, by their programs' names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub applications: BTreeMap<String, String>,
    /// The processor's name.
    pub cpu: Option<String>,
    /// Processors that the run could use.
    pub cores: Option<u64>,
    /// Memory of the machine, in MiB.
    pub memory_mib: Option<u64>,
    /// When the run began: RFC 3339, UTC.
    pub started: Option<String>,
    /// How long it took, in seconds.
    pub took_s: Option<f64>,
    /// What else the document says.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Configuration {
    /// Whether the run was cut short, for a first look.
    pub quick: Option<bool>,
    /// Chose the streams and the wire's fates.
    pub seed: Option<u64>,
    /// How often each row was measured.
    pub rounds: Option<u32>,
    /// The wire before the client, such as `delay=10ms`; empty for a plain cable.
    pub wire: Option<String>,
    /// Which modes.
    pub modes: Vec<Mode>,
    /// Which lengths of an epoch, in milliseconds.
    pub epochs_ms: Vec<u64>,
    /// How long each stream, or each measurement, lasted.
    pub seconds: Option<f64>,
    /// What else the document says.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// What is done with the guest's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Passed through; the VM is not protected.
    Native,
    /// Held until the commit of the epoch in which it was sent.
    Commit,
    /// As commit, with the guest's TCP running ahead of it.
    Speculative,
    /// As speculative, with the agent in the guest.
    Aware,
}

impl Mode {
    /// All of them, from none to most.
    pub const ALL: [Self; 4] = [Self::Native, Self::Commit, Self::Speculative, Self::Aware];

    /// As in the document.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Commit => "commit",
            Self::Speculative => "speculative",
            Self::Aware => "aware",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One row of figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Row {
    /// Bytes without end from the guest to the client, for `seconds`.
    Stream(Bulk),
    /// Transfers of `bytes` from the guest to the client.
    Transfer(Bulk),
    /// A program in the guest under load.
    Application(Application),
    /// Small requests that the guest answers, one after the other.
    Latency(Latency),
    /// Pauses by dirty pages and the guest's size.
    Pause(Pause),
    /// Frames a second through the rings.
    Pps(Pps),
    /// Pages by their way and the guest's work.
    Pages(Pages),
    /// A function of the speculation engine.
    Engine(Engine),
    /// Of a newer document: passed over.
    #[serde(other)]
    Unknown,
}

/// Streams or transfers, as `bench bulk` measures them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bulk {
    /// What was done with the guest's output.
    pub mode: Mode,
    /// The epoch's length, or the longest when they follow the output. Of mode native: of the rows beside
    /// which it was measured.
    pub epoch_ms: u64,
    /// Whether epochs followed the guest's output.
    #[serde(default)]
    pub adaptive: bool,
    /// Of each transfer; none of streams.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Whether each transfer had a connection of its own, set up within its time; none of streams.
    #[serde(default)]
    pub setup: Option<bool>,
    /// How long the streams lasted; none of transfers.
    #[serde(default)]
    pub seconds: Option<u64>,
    /// How many at the same time.
    pub connections: u64,
    /// Of streams: of all connections together. Of transfers: of the median one.
    pub throughput_mbit_s: f64,
    /// From the request (or the connection's beginning) to the last byte.
    #[serde(default)]
    pub completion_p50_ms: Option<f64>,
    /// As above.
    #[serde(default)]
    pub completion_p90_ms: Option<f64>,
    /// Jain's index over the connections.
    #[serde(default)]
    pub fairness: Option<f64>,
    /// Whether every byte arrived, and was right.
    pub stream_exact: bool,
    /// Completion times of all transfers in `ms`, or rates of each second or round in `mbit_s`.
    #[serde(default)]
    pub samples: Vec<f64>,
    /// Of `samples`; may be none when there are none.
    #[serde(default)]
    pub samples_unit: Option<Unit>,
    /// What each round found: of streams the rate, of transfers the median time.
    #[serde(default)]
    pub rounds: Vec<Round>,
}

impl Bulk {
    /// One connection of which nothing is known yet, and nothing wrong.
    pub const fn new(mode: Mode, epoch_ms: u64, adaptive: bool) -> Self {
        Self {
            mode,
            epoch_ms,
            adaptive,
            bytes: None,
            setup: None,
            seconds: None,
            connections: 1,
            throughput_mbit_s: 0.0,
            completion_p50_ms: None,
            completion_p90_ms: None,
            fairness: None,
            stream_exact: true,
            samples: Vec::new(),
            samples_unit: None,
            rounds: Vec::new(),
        }
    }
}

/// What one round found of a row: what two runs are compared by, as the seconds and requests of a round share
/// its fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Round {
    /// Of streams, and of applications of which nothing else is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mbit_s: Option<f64>,
    /// Of applications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_s: Option<f64>,
    /// Of transfers or requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// Of requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
}

/// A program in the guest under load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Application {
    /// `nginx`, `redis`, `shuffle`, `rsync`, `iperf3` or another.
    pub app: String,
    /// What was done with the guest's output.
    pub mode: Mode,
    /// As in [`Bulk::epoch_ms`].
    pub epoch_ms: u64,
    /// Whether epochs followed the guest's output.
    #[serde(default)]
    pub adaptive: bool,
    /// Requests (transfers, rounds of a shuffle) a second; none where a rate of bytes is all there is.
    #[serde(default)]
    pub requests_s: Option<f64>,
    /// How long a request took.
    #[serde(default)]
    pub p50_ms: Option<f64>,
    /// As above.
    #[serde(default)]
    pub p99_ms: Option<f64>,
    /// Of the answers' bytes.
    #[serde(default)]
    pub mbit_s: Option<f64>,
    /// Of each load: requests a second; Mbit/s where there is no `requests_s`.
    #[serde(default)]
    pub samples: Vec<f64>,
    /// What each round found: the rate, and how long requests took.
    #[serde(default)]
    pub rounds: Vec<Round>,
    /// Requests that failed.
    #[serde(default)]
    pub errors: u64,
    /// Of all requests, in microseconds, as [`crate::histogram::encode`] writes it.
    #[serde(default)]
    pub latency: Option<String>,
}

/// Small requests that the guest answers, one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// What was done with the guest's output.
    pub mode: Mode,
    /// As in [`Bulk::epoch_ms`].
    pub epoch_ms: u64,
    /// Whether epochs followed the guest's output.
    #[serde(default)]
    pub adaptive: bool,
    /// How many were timed.
    pub requests: u64,
    /// Of the times from request to answer.
    pub p50_ms: f64,
    /// As above.
    pub p90_ms: f64,
    /// As above.
    pub p99_ms: f64,
    /// As above.
    pub max_ms: f64,
    /// Of all requests, in microseconds, as [`crate::histogram::encode`] writes it.
    #[serde(default)]
    pub histogram: Option<String>,
    /// What each round found: how long requests took.
    #[serde(default)]
    pub rounds: Vec<Round>,
}

/// What samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unit {
    /// Milliseconds: less is better.
    #[serde(rename = "ms")]
    Ms,
    /// Megabits a second: more is better.
    #[serde(rename = "mbit_s")]
    MbitS,
    /// Requests a second: more is better.
    #[serde(rename = "requests_s")]
    RequestsS,
}

impl Unit {
    /// Whether less is better.
    pub const fn is_time(self) -> bool {
        matches!(self, Self::Ms)
    }

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ms => "ms",
            Self::MbitS => "Mbit/s",
            Self::RequestsS => "requests/s",
        }
    }
}

/// Single epochs of one mode and length, in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// What was done with the guest's output.
    pub mode: Mode,
    /// As in [`Bulk::epoch_ms`].
    pub epoch_ms: u64,
    /// Whether epochs followed the guest's output.
    #[serde(default)]
    pub adaptive: bool,
    /// One after the other.
    pub epochs: Vec<Epoch>,
}

/// One epoch. All moments are microseconds since the first epoch of the recording began, and each is not
/// before the one above it:
///
/// ```text
/// began_us          pause_us           captured_us         sent_us            committed_us
///    │ the guest runs  │ it stands still   │ the next runs on  │ the backup has all  │ output leaves
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// The epoch's number.
    pub number: u64,
    /// The guest began to run in it.
    pub began_us: f64,
    /// The guest was stopped at its end: a moment, not a length.
    pub pause_us: f64,
    /// Its pages and its device state were copied aside, and the guest ran on.
    pub captured_us: f64,
    /// Its last byte was handed to the link.
    pub sent_us: f64,
    /// The backup's confirmation was there.
    pub committed_us: f64,
    /// Pages of 4 KiB that were written in it.
    pub dirty_pages: u64,
    /// What went over the link for its pages and its device state, after reduction.
    pub wire_bytes: u64,
    /// What went over the link for bytes of TCP streams that ran ahead.
    pub stream_bytes: u64,
}

impl Epoch {
    /// Whether its moments are in their order.
    pub fn is_in_order(&self) -> bool {
        let moments = [self.began_us, self.pause_us, self.captured_us, self.sent_us, self.committed_us];
        moments.iter().all(|moment| moment.is_finite()) && moments.is_sorted()
    }
}

/// How much slower than the world's the guest's clock went.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clock {
    /// What was done with the guest's output.
    pub mode: Mode,
    /// As in [`Bulk::epoch_ms`].
    pub epoch_ms: u64,
    /// Whether epochs followed the guest's output.
    #[serde(default)]
    pub adaptive: bool,
    /// Parts in a million; none when it was not measured.
    #[serde(default)]
    pub guest_clock_lag_ppm: Option<f64>,
}

/// Why a text is no run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The text is broken.
    #[error("it is no JSON: {0}; mend: name a file that a benchmark wrote with `--json FILE`, whole")]
    NoJson(#[from] serde_json::Error),
    /// It is the document of something else.
    #[error(
        "it is JSON, but no run of a benchmark ({0}); mend: name a file that one wrote with `--json FILE`"
    )]
    NoRun(&'static str),
    /// Of a benchmark whose rows are of another kind.
    #[error(
        "it is a run of `bench {0}`, whose rows are not known here; mend: name a run of `bench paper`, `bulk`, \
         `pause`, `pps` or `pages`"
    )]
    OtherBench(String),
    /// A field is missing or of another shape.
    #[error("at {path}: {fault}; it was written by another version of Holdfast, or by hand")]
    Shape {
        /// Where in the document, such as `rows[3]`.
        path: String,
        /// What is wrong there.
        fault: String,
    },
}

impl Run {
    /// Reads a document of `bench paper` or `bench bulk`, or one of [`COSTS`].
    ///
    /// # Errors
    ///
    /// What is wrong with the text, and where.
    pub fn read(text: &str) -> Result<Self, RunError> {
        let mut document: Value = serde_json::from_str(text)?;
        let fields = document.as_object_mut().ok_or(RunError::NoRun("it is no object"))?;
        let bench = fields.get("bench").and_then(Value::as_str).map(str::to_owned);
        match bench.as_deref() {
            None => return Err(RunError::NoRun("it has no field `bench`")),
            Some("paper") => {}
            Some("bulk") => read_bulk(fields),
            Some(kind) if COSTS.contains(&kind) => name_rows(fields, kind),
            Some(other) => return Err(RunError::OtherBench(other.to_owned())),
        }
        let run: Self = serde_path_to_error::deserialize(document).map_err(|fault| RunError::Shape {
            path: fault.path().to_string(),
            fault: fault.into_inner().to_string(),
        })?;
        run.check()?;
        Ok(run)
    }

    /// What the types do not say.
    fn check(&self) -> Result<(), RunError> {
        let wrong = |at: usize, fault: &str| {
            Err(RunError::Shape { path: format!("rows[{at}]"), fault: fault.to_owned() })
        };
        for (at, row) in self.rows.iter().enumerate() {
            match row {
                Row::Transfer(row) if row.bytes.is_none_or(|bytes| bytes == 0) || row.setup.is_none() => {
                    return wrong(at, "a transfer has `bytes` and `setup`");
                }
                Row::Stream(row) if row.seconds.is_none() => return wrong(at, "a stream has `seconds`"),
                Row::Stream(row) | Row::Transfer(row)
                    if !row.samples.is_empty() && row.samples_unit.is_none() =>
                {
                    return wrong(at, "`samples` have a `samples_unit`");
                }
                Row::Application(Application { requests_s: None, mbit_s: None, .. }) => {
                    return wrong(at, "an application has `requests_s` or `mbit_s`");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Rows that this version does not know.
    pub fn unknown_rows(&self) -> usize {
        self.rows.iter().filter(|row| matches!(row, Row::Unknown)).count()
    }

    /// The rows of streams.
    pub fn streams(&self) -> impl Iterator<Item = &Bulk> {
        self.rows.iter().filter_map(|row| if let Row::Stream(row) = row { Some(row) } else { None })
    }

    /// The rows of transfers.
    pub fn transfers(&self) -> impl Iterator<Item = &Bulk> {
        self.rows.iter().filter_map(|row| if let Row::Transfer(row) = row { Some(row) } else { None })
    }

    /// The rows of applications.
    pub fn applications(&self) -> impl Iterator<Item = &Application> {
        self.rows.iter().filter_map(|row| if let Row::Application(row) = row { Some(row) } else { None })
    }

    /// The rows of requests' latency.
    pub fn latencies(&self) -> impl Iterator<Item = &Latency> {
        self.rows.iter().filter_map(|row| if let Row::Latency(row) = row { Some(row) } else { None })
    }
}

impl Application {
    /// Its rate, and what of: requests where there are any.
    pub fn rate(&self) -> (f64, Unit) {
        match (self.requests_s, self.mbit_s) {
            (Some(rate), _) if rate > 0.0 || self.mbit_s.is_none() => (rate, Unit::RequestsS),
            (_, rate) => (rate.unwrap_or(0.0), Unit::MbitS),
        }
    }
}

/// Gives rows that do not say their kind that of their document.
fn name_rows(fields: &mut Map<String, Value>, kind: &str) {
    for row in fields.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(row) = row.as_object_mut() else { continue };
        row.entry("kind").or_insert_with(|| kind.into());
    }
}

/// Gives rows of `bench bulk` what rows of `bench paper` have: a kind, and whether epochs were adaptive, which
/// is said once there.
fn read_bulk(fields: &mut Map<String, Value>) {
    let adaptive = fields.get("machine").and_then(|machine| machine.get("adaptive")).cloned();
    for row in fields.get_mut("rows").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(row) = row.as_object_mut() else { continue };
        let kind = if row.get("bytes").is_some_and(|bytes| !bytes.is_null()) { "transfer" } else { "stream" };
        row.entry("kind").or_insert_with(|| kind.into());
        if let Some(adaptive) = &adaptive {
            row.entry("adaptive").or_insert_with(|| adaptive.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = r#"{"kind": "stream", "mode": "aware", "epoch_ms": 25, "adaptive": true, "bytes": null,
        "setup": null, "seconds": 5, "connections": 1, "throughput_mbit_s": 900.5, "completion_p50_ms": null,
        "completion_p90_ms": null, "fairness": 1.0, "stream_exact": true, "samples": [900.5, 901.0],
        "samples_unit": "mbit_s", "of_the_future": [1]}"#;

    fn paper(rows: &str) -> String {
        format!(r#"{{"bench": "paper", "machine": {{"cores": 2, "gpu": "none"}}, "rows": [{rows}]}}"#)
    }

    #[test]
    fn rows_keep_their_fields_at_their_top_level_and_unknown_ones_are_passed_over() {
        let run = Run::read(&paper(&format!(r#"{STREAM}, {{"kind": "of the future", "mode": 3}}"#))).unwrap();
        assert_eq!((run.unknown_rows(), run.streams().count()), (1, 1));
        assert_eq!(run.machine.more["gpu"], "none");
        let written = serde_json::to_value(&run.rows[0]).unwrap();
        assert_eq!((&written["kind"], &written["throughput_mbit_s"]), (&"stream".into(), &900.5.into()));
        assert_eq!(Run::read(&serde_json::to_string(&run).unwrap()).unwrap().rows[0], run.rows[0]);
    }

    #[test]
    fn rows_of_bench_bulk_are_told_apart_by_their_size() {
        let text = r#"{"bench": "bulk", "machine": {"adaptive": true}, "rows": [
            {"mode": "commit", "epoch_ms": 50, "bytes": 65536, "setup": true, "seconds": null, "connections": 1,
             "throughput_mbit_s": 5.0, "completion_p50_ms": 100.0, "stream_exact": true},
            {"mode": "commit", "epoch_ms": 50, "bytes": null, "setup": null, "seconds": 10, "connections": 16,
             "throughput_mbit_s": 500.0, "fairness": 0.9, "stream_exact": true}]}"#;
        let run = Run::read(text).unwrap();
        assert_eq!((run.transfers().count(), run.streams().count()), (1, 1));
        assert!(run.streams().all(|row| row.adaptive));
    }

    #[test]
    fn what_is_no_run_is_named() {
        let wrong_mode = STREAM.replace("aware", "awake");
        let no_seconds = STREAM.replace("\"seconds\": 5", "\"seconds\": null");
        let no_unit = STREAM.replace("\"mbit_s\"", "null");
        for (text, said) in [
            ("", "no JSON"),
            ("[1]", "no object"),
            ("{}", "no field `bench`"),
            (r#"{"bench": "quick", "rows": []}"#, "bench quick"),
            (r#"{"bench": "paper"}"#, "missing field `rows`"),
            (&paper(&wrong_mode), "awake"),
            (&paper(&format!("{STREAM}, {no_seconds}")), "rows[1]: a stream has `seconds`"),
            (&paper(&no_unit), "rows[0]: `samples` have"),
        ] {
            let fault = Run::read(text).unwrap_err().to_string();
            assert!(fault.contains(said), "{fault}");
        }
    }

    #[test]
    fn moments_of_an_epoch_have_an_order() {
        let mut epoch = Epoch {
            number: 1,
            began_us: 0.0,
            pause_us: 9.0,
            captured_us: 10.0,
            sent_us: 10.0,
            committed_us: 12.0,
            dirty_pages: 1,
            wire_bytes: 1,
            stream_bytes: 0,
        };
        assert!(epoch.is_in_order());
        epoch.pause_us = 11.0;
        assert!(!epoch.is_in_order());
        epoch.pause_us = f64::NAN;
        assert!(!epoch.is_in_order());
    }
}
