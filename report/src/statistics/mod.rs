//! What can be said of two sets of rounds: how many times as large one is, where that ratio may lie, the chance
//! of seeing such a difference without one, and a correction for asking many times.

mod holm;
mod random;
mod welch;

pub use holm::holm;
pub use random::Random;
pub use welch::{LEAST_ROUNDS, Welch};

/// The median of these values; of an even count the mean of the two in the middle. None of none.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The value at a quantile of 0 to 1, between two values in proportion. None of none; values that are no
/// numbers do not count.
pub fn quantile(values: &[f64], quantile: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let at = quantile.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(if low == high { low } else { low + (high - low) * at.fract() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_values_in_proportion() {
        let values = [4.0, 1.0, f64::NAN, 3.0, 2.0];
        assert_eq!(median(&values), Some(2.5));
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&values, 1.0), Some(4.0));
        assert_eq!(quantile(&values, 0.25), Some(1.75));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
    }
}
