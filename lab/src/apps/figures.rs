//! What a load was answered with, in numbers.

use hdrhistogram::Histogram;
use std::fmt;
use std::time::Duration;

/// Three digits of each time are kept.
const DIGITS: u8 = 3;

/// The figures of one application, all on the client's clock.
#[derive(Debug, Clone, Default)]
pub struct AppFigures {
    /// Requests answered in the time, as [`App::unit`](super::App::unit) counts them.
    pub requests: u64,
    /// In a second of it; none where only bytes count.
    pub requests_s: Option<f64>,
    /// Of content, in 10^6 bits a second; none where content does not count.
    pub mbit_s: Option<f64>,
    /// Half of the latencies are no greater.
    pub p50_ms: Option<f64>,
    /// 99 of 100 are no greater.
    pub p99_ms: Option<f64>,
    /// The latencies, in µs: of requests, of the shuffle's waves, of rsync's copies.
    pub latency: Option<Histogram<u64>>,
    /// Requests, connections or copies that failed.
    pub errors: u64,
    /// Whether every byte was right; none where nobody looks.
    pub exact: Option<bool>,
    /// What failed first, if anything.
    pub fault: Option<String>,
}

/// Latencies, in µs.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new(DIGITS).expect("a histogram of so many digits")
}

/// What one of several loads saw.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) bytes: u64,
    pub(super) latency: Histogram<u64>,
    pub(super) errors: u64,
    pub(super) exact: bool,
    pub(super) fault: Option<String>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self { requests: 0, bytes: 0, latency: histogram(), errors: 0, exact: true, fault: None }
    }

    pub(super) fn took(&mut self, time: Duration) {
        // Grows to hold whatever comes.
        self.latency.record(time.as_micros() as u64).expect("a histogram that grows");
    }

    pub(super) fn failed(&mut self, fault: impl ToString) {
        self.errors += 1;
        self.fault.get_or_insert_with(|| fault.to_string());
    }

    pub(super) fn wrong(&mut self, what: impl ToString) {
        self.exact = false;
        self.fault.get_or_insert_with(|| what.to_string());
    }

    pub(super) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.latency.add(other.latency).expect("a histogram that grows");
        self.errors += other.errors;
        self.exact &= other.exact;
        self.fault = self.fault.take().or(other.fault);
    }

    /// Over that time.
    pub(super) fn figures(self, time: Duration) -> AppFigures {
        let a_second = |amount: f64| if time.is_zero() { 0.0 } else { amount / time.as_secs_f64() };
        let mut figures = AppFigures {
            requests: self.requests,
            requests_s: Some(a_second(self.requests as f64)),
            mbit_s: Some(a_second(self.bytes as f64 * 8e-6)),
            errors: self.errors,
            exact: Some(self.exact),
            fault: self.fault,
            ..AppFigures::default()
        };
        figures.set_latency(self.latency);
        figures
    }
}

/// In a line, without the histogram.
impl fmt::Display for AppFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, errors, .. } = self;
        write!(f, "{requests} requests")?;
        for (figure, unit) in [
            (self.requests_s, "/s"),
            (self.mbit_s, " Mbit/s"),
            (self.p50_ms, " ms p50"),
            (self.p99_ms, " ms p99"),
        ] {
            if let Some(figure) = figure {
                write!(f, ", {figure:.1}{unit}")?;
            }
        }
        write!(f, ", {errors} errors")?;
        match (self.exact, &self.fault) {
            (Some(false), Some(fault)) => write!(f, ", not exact: {fault}"),
            (_, Some(fault)) => write!(f, ": {fault}"),
            (Some(true), None) => f.write_str(", exact"),
            (_, None) => Ok(()),
        }
    }
}

impl AppFigures {
    pub(super) fn set_latency(&mut self, latency: Histogram<u64>) {
        let at = |quantile| (!latency.is_empty()).then(|| latency.value_at_quantile(quantile) as f64 / 1e3);
        (self.p50_ms, self.p99_ms) = (at(0.5), at(0.99));
        self.latency = Some(latency);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up_and_the_first_fault_is_kept() {
        let mut all = Tally::new();
        for (number, milliseconds) in [10, 20, 30].into_iter().enumerate() {
            let mut one = Tally::new();
            (one.requests, one.bytes) = (1, 1_000_000);
            one.took(Duration::from_millis(milliseconds));
            if number > 0 {
                one.wrong(format!("wrong {number}"));
            }
            all.add(one);
        }
        let figures = all.figures(Duration::from_secs(2));
        assert_eq!((figures.requests, figures.exact), (3, Some(false)));
        assert_eq!(figures.fault.as_deref(), Some("wrong 1"));
        assert_eq!((figures.requests_s, figures.mbit_s), (Some(1.5), Some(12.0)));
        let near = |value: Option<f64>, wanted: f64| value.is_some_and(|it| (it / wanted - 1.0).abs() < 2e-3);
        assert!(near(figures.p50_ms, 20.0) && near(figures.p99_ms, 30.0), "{figures:?}");
    }
}
