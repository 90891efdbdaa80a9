//! A run's rows as what is compared: an identity, and samples or a single figure.

use crate::histogram;
use crate::page::words;
use crate::run::{Bulk, Mode, Row, Run, Unit};
use hdrhistogram::Histogram;
use std::fmt;

/// What a file claims to have measured is not believed without bound.
const MOST_SAMPLES: u64 = 1_000_000;

/// What makes two rows the same row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) kind: &'static str,
    pub(super) what: String,
    pub(super) mode: Mode,
    pub(super) epoch_ms: u64,
    pub(super) adaptive: bool,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epochs = words::epochs(self.epoch_ms, self.adaptive);
        write!(f, "{} {}, {}, {epochs}", self.kind, self.what, self.mode)
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measured {
    pub(super) samples: Vec<f64>,
    pub(super) unit: Unit,
    /// Where there are no samples.
    pub(super) figure: f64,
}

/// All rows in their order; rows of one identity are one, with the samples of all.
pub(super) fn of_run(run: &Run) -> Vec<(Identity, Measured)> {
    let mut found: Vec<(Identity, Measured)> = Vec::new();
    for (identity, mut measured) in run.rows.iter().filter_map(of_row) {
        measured.samples.retain(|sample| sample.is_finite());
        match found.iter_mut().find(|(known, so_far)| *known == identity && so_far.unit == measured.unit) {
            Some((_, so_far)) => so_far.samples.append(&mut measured.samples),
            None => found.push((identity, measured)),
        }
    }
    found
}

fn of_row(row: &Row) -> Option<(Identity, Measured)> {
    let (kind, what, mode, epoch_ms, adaptive, measured) = match row {
        Row::Stream(row) => {
            ("stream", words::bulk(row), row.mode, row.epoch_ms, row.adaptive, bulk(row, Unit::MbitS))
        }
        Row::Transfer(row) => {
            ("transfer", words::bulk(row), row.mode, row.epoch_ms, row.adaptive, bulk(row, Unit::Ms))
        }
        Row::Application(row) => {
            let (figure, unit) = row.rate();
            let measured = Measured { samples: row.samples.clone(), unit, figure };
            ("application", row.app.clone(), row.mode, row.epoch_ms, row.adaptive, measured)
        }
        Row::Latency(row) => {
            let histogram = row.histogram.as_deref().and_then(|text| histogram::decode(text).ok());
            let samples = histogram.map_or_else(Vec::new, |histogram| spread(&histogram));
            let measured = Measured { samples, unit: Unit::Ms, figure: row.p50_ms };
            ("latency", "requests".to_owned(), row.mode, row.epoch_ms, row.adaptive, measured)
        }
        Row::Unknown => return None,
    };
    Some((Identity { kind, what, mode, epoch_ms, adaptive }, measured))
}

/// The samples of a distribution; of a very large one evenly fewer.
fn spread(histogram: &Histogram<u64>) -> Vec<f64> {
    let each = histogram.len() / MOST_SAMPLES + 1;
    histogram::counts_ms(histogram)
        .flat_map(|(value, count)| std::iter::repeat_n(value, count.div_ceil(each) as usize))
        .collect()
}

fn bulk(row: &Bulk, usual: Unit) -> Measured {
    let unit = row.samples_unit.unwrap_or(usual);
    let figure = match unit {
        Unit::Ms => row.completion_p50_ms.unwrap_or(0.0),
        Unit::MbitS | Unit::RequestsS => row.throughput_mbit_s,
    };
    Measured { samples: row.samples.clone(), unit, figure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_of_any_size_becomes_samples() {
        let mut histogram = histogram::of([1000, 1800, 1800, 2000]);
        assert_eq!(spread(&histogram), [1.0, 1.8, 1.8, 2.0]);
        histogram.record_n(1500, 1 << 60).unwrap();
        let samples = spread(&histogram);
        assert!((900_000..1_100_000).contains(&samples.len()), "{}", samples.len());
        assert_eq!(crate::statistics::median(&samples), Some(1.5));
    }
}
