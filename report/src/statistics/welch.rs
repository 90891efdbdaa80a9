//! Welch's t-test on logarithms: how many times as large is one set of figures, and is that more than chance?
//!
//! A round's figure is a mean or a median of much, and what disturbs a round disturbs it by a part of itself: so
//! the logarithms are near to normal, about as the test assumes (B. L. Welch, "The generalization of 'Student's'
//! problem when several different population variances are involved", 1947). A test by ranks would assume
//! less, and could show nothing with five rounds: its least p-value, 0.008, is none after a correction for
//! a hundred questions.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Fewer of a run show nothing: three and three that lie wholly apart do so by chance one time in ten, whatever
/// their distribution is; four and four one time in 35.
pub const LEAST_ROUNDS: usize = 4;
/// Figures are known no better than that, as a part of themselves: a histogram keeps three digits.
const RESOLUTION: f64 = 1e-3;

/// The comparison of two sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Welch {
    /// Of the logarithms' means: b's less a's.
    difference: f64,
    /// Of the difference.
    standard_error: f64,
    freedom: f64,
}

impl Welch {
    /// Compares b with a. None with fewer than [`LEAST_ROUNDS`] figures each, or with one that is not above 0.
    pub fn of(a: &[f64], b: &[f64]) -> Option<Self> {
        let (a, b) = (Logarithms::of(a)?, Logarithms::of(b)?);
        let variance = a.of_mean() + b.of_mean();
        let freedom = variance.powi(2)
            / (a.of_mean().powi(2) / (a.count - 1.0) + b.of_mean().powi(2) / (b.count - 1.0));
        Some(Self { difference: b.mean - a.mean, standard_error: variance.sqrt(), freedom })
    }

    /// How many times as large b is: the ratio of the geometric means.
    pub fn ratio(&self) -> f64 {
        self.difference.exp()
    }

    /// The two-sided p-value.
    pub fn p(&self) -> f64 {
        let t = self.difference.abs() / self.standard_error;
        (2.0 * self.student().sf(t)).clamp(0.0, 1.0)
    }

    /// Where the ratio may lie, with that confidence.
    pub fn interval(&self, confidence: f64) -> [f64; 2] {
        let reach = self.reach(1.0 - confidence);
        [(self.difference - reach).exp(), (self.difference + reach).exp()]
    }

    /// The least ratio above 1 that would have a p-value below `level`.
    pub fn least_ratio(&self, level: f64) -> f64 {
        self.reach(level).exp()
    }

    fn reach(&self, level: f64) -> f64 {
        self.student().inverse_cdf(1.0 - level / 2.0) * self.standard_error
    }

    fn student(&self) -> StudentsT {
        StudentsT::new(0.0, 1.0, self.freedom).expect("degrees of freedom are above 0")
    }
}

struct Logarithms {
    count: f64,
    mean: f64,
    variance: f64,
}

impl Logarithms {
    fn of(figures: &[f64]) -> Option<Self> {
        if figures.len() < LEAST_ROUNDS || figures.iter().any(|figure| !(figure.is_finite() && *figure > 0.0))
        {
            return None;
        }
        let count = figures.len() as f64;
        let mean = figures.iter().map(|figure| figure.ln()).sum::<f64>() / count;
        let squares: f64 = figures.iter().map(|figure| (figure.ln() - mean).powi(2)).sum();
        Some(Self { count, mean, variance: (squares / (count - 1.0)).max(RESOLUTION.powi(2)) })
    }

    /// The variance of the mean.
    fn of_mean(&self) -> f64 {
        self.variance / self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Random;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
    }

    /// Normal logarithms by Box and Muller.
    fn figures(random: &mut Random, count: usize, centre: f64, noise: f64) -> Vec<f64> {
        let mut share = || ((random.draw() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        (0..count)
            .map(|_| {
                let (radius, angle) = (share(), share());
                let normal = (-2.0 * radius.ln()).sqrt() * (2.0 * std::f64::consts::PI * angle).cos();
                centre * (noise * normal).exp()
            })
            .collect()
    }

    #[test]
    fn values_are_those_of_the_formula() {
        // By hand: logarithms 0 1 2 3 and 2 3 4 5 6: means 1.5 and 4, variances 5/3 and 5/2; of the means
        // 5/12 and 1/2: t = 2.5 / sqrt(11/12), freedom (11/12)^2 / ((5/12)^2 / 3 + (1/2)^2 / 4).
        let power = |from: i32, to: i32| (from..=to).map(|at| f64::from(at).exp()).collect::<Vec<_>>();
        let found = Welch::of(&power(0, 3), &power(2, 6)).unwrap();
        close(found.difference, 2.5);
        close(found.standard_error, (11.0_f64 / 12.0).sqrt());
        close(found.freedom, (121.0 / 144.0) / (25.0 / 432.0 + 1.0 / 16.0));
        close(found.ratio(), 2.5_f64.exp());
    }

    #[test]
    fn probabilities_are_those_of_published_tables() {
        // Student's t with 8 degrees of freedom: two-sided 0.05 at 2.306, 0.01 at 3.355, 0.001 at 5.041.
        for (t, p) in [(2.306_004, 0.05), (3.355_387, 0.01), (5.041_305, 0.001)] {
            let found = Welch { difference: t, standard_error: 1.0, freedom: 8.0 };
            close(found.p(), p);
            assert!((found.least_ratio(p).ln() - t).abs() < 1e-4, "{}", found.least_ratio(p).ln());
            let [low, high] = found.interval(1.0 - p);
            assert!((low - 1.0).abs() < 1e-4 && (high.ln() - 2.0 * t).abs() < 1e-4, "{low} {high}");
        }
    }

    #[test]
    fn few_rounds_and_figures_that_have_no_ratio_show_nothing() {
        let (fast, slow) = ([20.0; 5], [10.0; 5]);
        assert!(Welch::of(&slow[..LEAST_ROUNDS - 1], &fast).is_none());
        assert!(Welch::of(&slow, &fast[..LEAST_ROUNDS - 1]).is_none());
        assert!(Welch::of(&[10.0, 10.0, 10.0, 0.0], &fast).is_none());
        assert!(Welch::of(&[10.0, 10.0, 10.0, f64::NAN], &fast).is_none());
        // Figures to the same digit are not known without an error.
        assert_eq!(Welch::of(&slow, &slow).unwrap().p(), 1.0);
        assert!(Welch::of(&slow, &[10.001; 5]).unwrap().p() > 0.05);
        assert!(Welch::of(&slow, &fast).unwrap().p() < 1e-6);
    }

    /// A level of 5 %, and a confidence of 95 %, are what they say they are.
    #[test]
    fn rounds_of_one_distribution_differ_as_often_as_is_stated() {
        for (count, noise) in [(LEAST_ROUNDS, 0.03), (5, 0.03), (5, 0.3), (9, 0.1)] {
            let (mut alarms, mut held) = (0, 0);
            for seed in 1..=1000 {
                let random = &mut Random(seed << 32 | count as u64);
                let (a, b) = (figures(random, count, 100.0, noise), figures(random, count, 100.0, noise));
                let found = Welch::of(&a, &b).unwrap();
                alarms += usize::from(found.p() < 0.05);
                let [low, high] = found.interval(0.95);
                held += usize::from((low..=high).contains(&1.0));
            }
            // Welch's test keeps its level a little better than it says where rounds are few.
            assert!(
                (25..=70).contains(&alarms),
                "{alarms} of 1000 with {count} rounds and a noise of {noise}"
            );
            assert_eq!(alarms + held, 1000, "what is outside its interval is a difference, and nothing else");
        }
    }

    #[test]
    fn a_fifth_more_is_found_by_five_rounds_with_three_percent_of_noise() {
        let p_values: Vec<f64> = (1..=1000)
            .map(|seed| {
                let random = &mut Random(seed << 32);
                let (a, b) = (figures(random, 5, 100.0, 0.03), figures(random, 5, 120.0, 0.03));
                Welch::of(&a, &b).unwrap().p()
            })
            .collect();
        let below = |level| p_values.iter().filter(|p| **p < level).count();
        assert!(below(0.05) >= 995, "{} of 1000", below(0.05));
        // The only one among a hundred questions.
        assert!(below(0.05 / 100.0) >= 900, "{} of 1000", below(0.05 / 100.0));
    }
}
