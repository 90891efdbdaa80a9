//! The Mann–Whitney test: could two sets of samples be of one distribution?

/// Up to so many samples the distribution is counted out, beyond it is close to normal.
const EXACT_UP_TO: usize = 50;

/// The two-sided p-value of the difference between these; 1 when one is empty.
///
/// Up to 50 samples it is exact, given the ties that there are: all ways to deal the ranks to the two sets are
/// counted. Beyond that it is the normal approximation, with corrections for ties and continuity.
pub fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    if a.is_empty() || b.is_empty() {
        return 1.0;
    }
    let ranks = Ranks::of(a, b);
    let p = if a.len() + b.len() <= EXACT_UP_TO { exact(&ranks, a.len()) } else { normal(&ranks, a.len()) };
    p.clamp(0.0, 1.0)
}

/// The least p-value that so many samples can give: that of two sets that do not overlap.
pub fn least_p(count_a: usize, count_b: usize) -> f64 {
    // 2 / C(a + b, a), without the factorials.
    let ways = (1..=count_a).fold(1.0, |ways, step| ways * (count_b + step) as f64 / step as f64);
    (2.0 / ways).min(1.0)
}

/// Ranks among all samples, doubled, so that the mean rank of a tie is a whole number.
struct Ranks {
    doubled: Vec<usize>,
    /// Of the first set.
    sum_doubled: usize,
    /// Sum over ties of t³ - t.
    ties: f64,
}

impl Ranks {
    fn of(a: &[f64], b: &[f64]) -> Self {
        let firsts = a.iter().map(|value| (*value, true));
        let mut all: Vec<(f64, bool)> = firsts.chain(b.iter().map(|value| (*value, false))).collect();
        all.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (mut doubled, mut sum_doubled, mut ties) = (Vec::with_capacity(all.len()), 0, 0.0);
        for tie in all.chunk_by(|one, other| one.0 == other.0) {
            // Ranks from `before + 1` to `before + tie.len()`: twice their mean.
            let rank = 2 * doubled.len() + tie.len() + 1;
            sum_doubled += rank * tie.iter().filter(|(_, first)| *first).count();
            doubled.extend(std::iter::repeat_n(rank, tie.len()));
            let size = tie.len() as f64;
            ties += size * size * size - size;
        }
        Self { doubled, sum_doubled, ties }
    }
}

fn exact(ranks: &Ranks, count_a: usize) -> f64 {
    // ways[n][s]: in how many ways n of the ranks seen so far sum up to s.
    let most = ranks.doubled.iter().sum::<usize>();
    let mut ways = vec![vec![0.0_f64; most + 1]; count_a + 1];
    ways[0][0] = 1.0;
    for rank in &ranks.doubled {
        for taken in (1..=count_a).rev() {
            let (fewer, more) = ways.split_at_mut(taken);
            for (sum, way) in more[0].iter_mut().enumerate().skip(*rank) {
                *way += fewer[taken - 1][sum - rank];
            }
        }
    }
    let of_all: f64 = ways[count_a].iter().sum();
    let at_most: f64 = ways[count_a][..=ranks.sum_doubled].iter().sum();
    let at_least: f64 = ways[count_a][ranks.sum_doubled..].iter().sum();
    2.0 * at_most.min(at_least) / of_all
}

fn normal(ranks: &Ranks, count_a: usize) -> f64 {
    let (all, a) = (ranks.doubled.len() as f64, count_a as f64);
    let b = all - a;
    let u = ranks.sum_doubled as f64 / 2.0 - a * (a + 1.0) / 2.0;
    let variance = a * b / 12.0 * (all + 1.0 - ranks.ties / (all * (all - 1.0)));
    if variance <= 0.0 {
        return 1.0;
    }
    let z = ((u - a * b / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    libm::erfc(z / std::f64::consts::SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MALES: [f64; 5] = [19.0, 22.0, 16.0, 29.0, 24.0];
    const FEMALES: [f64; 4] = [20.0, 11.0, 17.0, 12.0];

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} for {expected}");
    }

    #[test]
    fn values_are_those_that_others_compute() {
        // SciPy's documentation of mannwhitneyu: U = 17, exact p = 0.1111, asymptotic p = 0.11134688653314041.
        close(mann_whitney(&MALES, &FEMALES), 14.0 / 126.0);
        close(mann_whitney(&FEMALES, &MALES), 14.0 / 126.0);
        close(normal(&Ranks::of(&MALES, &FEMALES), 5), 0.111_346_886_533_140_41);
        // Sets that do not overlap: 2 of C(6, 3) and of C(10, 5) ways.
        close(mann_whitney(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 0.1);
        close(mann_whitney(&[1.0, 2.0, 3.0, 4.0, 5.0], &[6.0, 7.0, 8.0, 9.0, 10.0]), 2.0 / 252.0);
    }

    #[test]
    fn the_approximation_is_corrected_for_ties() {
        // By hand: ranks 2.5 and 7.5, U = 7.5 of 12.5 expected, variance 25 / 12 * (11 - 270 / 90) = 50 / 3.
        let ranks = Ranks::of(&[1.0, 1.0, 1.0, 2.0, 2.0], &[1.0, 2.0, 2.0, 2.0, 2.0]);
        close(normal(&ranks, 5), 0.270_344_140_654);
    }

    #[test]
    fn ties_are_counted_out() {
        // Of the six ways to deal {1, 2, 2, 3}, four have as low a first pair as {1, 2}, two of them lower.
        close(mann_whitney(&[1.0, 2.0], &[2.0, 3.0]), 2.0 * 2.0 / 6.0);
        close(mann_whitney(&[5.0; 4], &[5.0; 4]), 1.0);
        close(mann_whitney(&[5.0; 40], &[5.0; 40]), 1.0);
        close(mann_whitney(&[], &[1.0]), 1.0);
    }

    #[test]
    fn counted_out_and_approximated_agree_where_both_are_right() {
        let a: Vec<f64> = (0..24).map(|step| f64::from(step * 7 % 24)).collect();
        let b: Vec<f64> = (0..24).map(|step| f64::from(step * 5 % 24) + 4.5).collect();
        let ranks = Ranks::of(&a, &b);
        let (exact, normal) = (exact(&ranks, a.len()), normal(&ranks, a.len()));
        assert!((exact - normal).abs() < 0.002, "{exact} {normal}");
    }

    #[test]
    fn few_samples_cannot_show_a_difference() {
        close(least_p(3, 3), 0.1);
        close(least_p(4, 4), 2.0 / 70.0);
        close(least_p(1, 1), 1.0);
        close(least_p(0, 9), 1.0);
    }
}
