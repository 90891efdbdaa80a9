//! Lines of the bench.

use holdfast_checkpoint::pages::PAGE_SIZE;
use std::time::{Duration, Instant};

const ROUNDS: usize = 9;
/// Pages of a round.
pub(crate) const PAGES: usize = 16_384;

/// Which lines are wanted.
pub(crate) struct Bench {
    words: Vec<String>,
}

impl Bench {
    /// Cargo passes options of its own.
    pub(crate) fn of_arguments() -> Self {
        Self { words: std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect() }
    }

    /// Whether lines of this stage may be wanted.
    pub(crate) fn wants(&self, stage: &str, what: &str) -> bool {
        let line = format!("{stage}: {what}");
        self.words.is_empty() || self.words.iter().any(|word| line.contains(word.as_str()))
    }

    /// Prints what a page takes. `prepare` makes what a round works on: neither that nor giving it up counts.
    pub(crate) fn line<T>(
        &self,
        stage: &str,
        what: &str,
        prepare: impl FnMut() -> T,
        work: impl FnMut(&mut T),
    ) {
        self.timed(stage, what, prepare, timed(work));
    }

    /// The same, where `work` takes the time itself.
    pub(crate) fn timed<T>(
        &self,
        stage: &str,
        what: &str,
        prepare: impl FnMut() -> T,
        work: impl FnMut(&mut T) -> Duration,
    ) {
        if self.wants(stage, what) {
            let each = median(prepare, work) / PAGES as f64;
            let rate = PAGE_SIZE as f64 / each * 1e9 / f64::from(1 << 20);
            println!("{stage:<8} {each:>9.1} ns a page, {rate:>7.0} MiB/s: {what}");
        }
    }

    /// Prints what one of `count` others takes.
    pub(crate) fn line_of<T>(
        &self,
        stage: &str,
        (count, unit, what): (usize, &str, &str),
        prepare: impl FnMut() -> T,
        work: impl FnMut(&mut T),
    ) {
        if self.wants(stage, what) {
            let each = median(prepare, timed(work)) / count as f64;
            println!("{stage:<8} {each:>9.1} ns for each {unit}: {what}");
        }
    }
}

fn timed<T>(mut work: impl FnMut(&mut T)) -> impl FnMut(&mut T) -> Duration {
    move |input| {
        let started = Instant::now();
        work(input);
        started.elapsed()
    }
}

/// Of a round, in nanoseconds; the first was for the caches.
fn median<T>(mut prepare: impl FnMut() -> T, mut work: impl FnMut(&mut T) -> Duration) -> f64 {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let mut input = prepare();
            work(&mut input)
        })
        .skip(1)
        .collect();
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e9
}
