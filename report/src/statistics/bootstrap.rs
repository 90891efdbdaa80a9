//! The interval of a ratio of medians, by drawing the samples again.

use super::{Random, median};

const CONFIDENCE: f64 = 0.95;
/// Draws of all samples of both sets together, at most: large sets need fewer, as their medians vary little.
const WORK: usize = 4_000_000;
const MOST_DRAWS: usize = 5000;
const LEAST_DRAWS: usize = 200;

/// A ratio and where it may lie, with a confidence of 95 %.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Interval {
    /// Of the samples as they are.
    pub ratio: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// The ratio of b's median to a's, with its percentile bootstrap interval; the same seed gives the same. None
/// when a set is empty or a median of `a` is not above 0.
pub fn ratio_of_medians(a: &[f64], b: &[f64], seed: u64) -> Option<Interval> {
    let ratio = median(b)? / median(a).filter(|median| *median > 0.0)?;
    let mut random = Random(seed);
    let draws = (WORK / (a.len() + b.len())).clamp(LEAST_DRAWS, MOST_DRAWS);
    let mut ratios: Vec<f64> = (0..draws)
        .map(|_| random.median_of_draw(b) / random.median_of_draw(a))
        .filter(|ratio| ratio.is_finite())
        .collect();
    ratios.sort_by(f64::total_cmp);
    let last = ratios.len().checked_sub(1)?;
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let at = |quantile: f64| ratios[(quantile * last as f64).round() as usize];
    Some(Interval { ratio, low: at(tail), high: at(1.0 - tail) })
}

impl Random {
    /// Of as many samples as there are, each drawn from all of them.
    fn median_of_draw(&mut self, values: &[f64]) -> f64 {
        let count = values.len() as u64;
        let mut drawn: Vec<f64> = (0..count).map(|_| values[(self.draw() % count) as usize]).collect();
        let middle = drawn.len() / 2;
        let (below, upper, _) = drawn.select_nth_unstable_by(middle, f64::total_cmp);
        if values.len() % 2 == 1 {
            return *upper;
        }
        f64::midpoint(below.iter().copied().fold(f64::NEG_INFINITY, f64::max), *upper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(seed: u64, count: usize, centre: f64) -> Vec<f64> {
        let mut random = Random(seed);
        (0..count).map(|_| centre * (0.9 + 0.2 * (random.draw() % 1000) as f64 / 1000.0)).collect()
    }

    #[test]
    fn a_ratio_lies_within_its_interval_and_a_seed_repeats_it() {
        let (a, b) = (samples(1, 30, 100.0), samples(2, 30, 150.0));
        let found = ratio_of_medians(&a, &b, 7).unwrap();
        assert!(found.low < 1.5 && 1.5 < found.high && found.high - found.low < 0.2, "{found:?}");
        assert!(found.low <= found.ratio && found.ratio <= found.high);
        assert_eq!(ratio_of_medians(&a, &b, 7), Some(found));
        assert_eq!(ratio_of_medians(&[], &b, 7), None);
        assert_eq!(ratio_of_medians(&[0.0], &b, 7), None);
        let same = ratio_of_medians(&[2.0], &[3.0], 7).unwrap();
        assert_eq!((same.low, same.ratio, same.high), (1.5, 1.5, 1.5));
    }

    /// Of 95 % intervals about one in twenty misses.
    #[test]
    fn intervals_hold_the_truth_about_as_often_as_they_say() {
        let held = (0..200)
            .filter(|round| {
                let (a, b) = (samples(round * 2 + 1, 25, 100.0), samples(round * 2 + 1000, 25, 120.0));
                let found = ratio_of_medians(&a, &b, *round).unwrap();
                (found.low..=found.high).contains(&1.2)
            })
            .count();
        assert!((180..=199).contains(&held), "{held} of 200");
    }
}
