//! Rows of the benchmark: what was measured, medians, and ratios to DPDK's own vhost.

use super::{Case, RingKind};
use holdfast_lab::report::median;
use serde::Serialize;
use std::fmt;

/// Above the rows.
pub(super) const HEADING: &str =
    "round  backend         mode         ring    queues  bytes      Mpps   under way     lost at more";

/// The name of DPDK's own vhost among the backends.
const REFERENCE: &str = "testpmd";

/// One measurement, or the best of several.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    /// Millions of frames a second that came through, both directions together.
    pub(super) mpps: f64,
    /// Frames lost, by the counters of both sides.
    pub(super) lost_frames: u64,
    /// Frames under way in each direction.
    pub(super) under_way: u32,
}

impl Taken {
    /// The better one of two. One that lost frames only says how many those were.
    pub(super) fn or_better(self, other: Self) -> Self {
        let lost_frames = self.lost_frames + other.lost_frames;
        let better = if other.lost_frames == 0 && other.mpps > self.mpps { other } else { self };
        Self { lost_frames, ..better }
    }
}

/// A row as it is in the document.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    kind: &'static str,
    pub(super) round: u32,
    /// `testpmd` or `holdfast`.
    pub(super) backend: &'static str,
    /// What Holdfast does with output, or how testpmd forwards.
    pub(super) mode: String,
    pub(super) ring: RingKind,
    /// Pairs of queues of each port.
    pub(super) queues: u16,
    /// On Ethernet, with the checksum.
    pub(super) frame_bytes: u16,
    /// Millions of frames a second at which nothing was lost, both directions together.
    pub(super) mpps: f64,
    /// Frames under way in each direction at that rate.
    pub(super) under_way_frames: u32,
    /// Frames lost where others were tried; such rates do not count.
    pub(super) lost_frames_at_others: u64,
}

impl Row {
    pub(super) fn new(round: u32, case: Case, reference: &str, taken: Taken) -> Self {
        Self {
            kind: "pps",
            round,
            backend: if case.mode.is_some() { "holdfast" } else { REFERENCE },
            mode: case.mode.map_or(reference, |mode| mode.name()).to_owned(),
            ring: case.ring,
            queues: case.queues,
            frame_bytes: case.frame_bytes,
            mpps: taken.mpps,
            under_way_frames: taken.under_way,
            lost_frames_at_others: taken.lost_frames,
        }
    }

    /// What is to be compared with each other.
    fn is_like(&self, other: &Self) -> bool {
        (self.ring, self.queues, self.frame_bytes) == (other.ring, other.queues, other.frame_bytes)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ring = if self.ring == RingKind::Packed { "packed" } else { "split" };
        write!(
            f,
            "{:>5}  {:<15} {:<12} {ring:<7} {:>6}  {:>5} {:>9.3} {:>11} {:>16}",
            self.round,
            self.backend,
            self.mode,
            self.queues,
            self.frame_bytes,
            self.mpps,
            self.under_way_frames,
            self.lost_frames_at_others
        )
    }
}

/// A mode of Holdfast beside DPDK's own vhost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Ratio {
    pub(super) mode: String,
    pub(super) ring: RingKind,
    pub(super) queues: u16,
    pub(super) frame_bytes: u16,
    /// Medians over the rounds.
    pub(super) mpps: f64,
    pub(super) reference_mpps: f64,
    /// Median, least and greatest of the rounds' ratios.
    pub(super) to_reference: f64,
    pub(super) least: f64,
    pub(super) greatest: f64,
}

/// All ratios, in the order of the first round's rows.
pub(super) fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let first = rows.iter().filter(|row| row.round == 1 && row.backend != REFERENCE);
    first.filter_map(|row| ratio(rows, row)).collect()
}

fn ratio(rows: &[Row], like: &Row) -> Option<Ratio> {
    let same =
        rows.iter().filter(|row| row.is_like(like) && row.mode == like.mode && row.backend != REFERENCE);
    let mut pairs = Vec::new();
    for row in same {
        let beside =
            |other: &&Row| other.round == row.round && other.is_like(row) && other.backend == REFERENCE;
        pairs.push((row.mpps, rows.iter().find(beside)?.mpps));
    }
    let quotients: Vec<f64> = pairs.iter().filter(|(_, one)| *one > 0.0).map(|(a, b)| a / b).collect();
    let median_of = |values: Vec<f64>| median(&values);
    Some(Ratio {
        mode: like.mode.clone(),
        ring: like.ring,
        queues: like.queues,
        frame_bytes: like.frame_bytes,
        mpps: median_of(pairs.iter().map(|pair| pair.0).collect())?,
        reference_mpps: median_of(pairs.iter().map(|pair| pair.1).collect())?,
        to_reference: median_of(quotients.clone())?,
        least: quotients.iter().copied().fold(f64::INFINITY, f64::min),
        greatest: quotients.iter().copied().fold(0.0, f64::max),
    })
}

/// Medians and ratios, for people.
pub(super) fn table(rows: &[Row]) -> String {
    let mut out = String::from("\nmedians; ratios are medians of the rounds' (least to greatest)\n");
    for one in ratios(rows) {
        let ring = if one.ring == RingKind::Packed { "packed" } else { "split" };
        out += &format!(
            "{:<12} {ring:<7} {} queues {:>5} bytes: {:>7.3} Mpps, testpmd {:>7.3}: {:.2} ({:.2} to {:.2})\n",
            one.mode,
            one.queues,
            one.frame_bytes,
            one.mpps,
            one.reference_mpps,
            one.to_reference,
            one.least,
            one.greatest
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::PpsMode;
    use super::*;

    fn row(round: u32, mode: Option<PpsMode>, mpps: f64) -> Row {
        row_of(1, round, mode, mpps)
    }

    fn row_of(queues: u16, round: u32, mode: Option<PpsMode>, mpps: f64) -> Row {
        let case = Case { ring: RingKind::Split, queues, frame_bytes: 64, mode };
        Row::new(round, case, "io", Taken { mpps, lost_frames: 0, under_way: 256 })
    }

    #[test]
    fn a_rate_at_which_frames_were_lost_does_not_count() {
        let whole = Taken { mpps: 2.0, lost_frames: 0, under_way: 128 };
        let lossy = Taken { mpps: 3.0, lost_frames: 7, under_way: 512 };
        let best = Taken::default().or_better(whole).or_better(lossy);
        assert_eq!((best.mpps, best.under_way, best.lost_frames), (2.0, 128, 7));
        assert!(Taken::default().or_better(lossy).mpps <= 0.0);
    }

    #[test]
    fn ratios_are_of_rows_of_one_round() {
        let native = Some(PpsMode::Native);
        let rows = [row(1, None, 4.0), row(1, native, 2.0), row(2, None, 1.0), row(2, native, 3.0)];
        let found = ratios(&rows);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].least, found[0].greatest, found[0].to_reference), (0.5, 3.0, 1.75));
        assert_eq!((found[0].mpps, found[0].reference_mpps), (2.5, 2.5));
        assert_eq!(serde_json::to_value(&rows[0]).expect("a document")["kind"], "pps");
    }

    #[test]
    fn numbers_of_queues_are_rows_of_their_own() {
        let native = Some(PpsMode::Native);
        let rows =
            [row(1, None, 4.0), row(1, native, 2.0), row_of(2, 1, None, 3.0), row_of(2, 1, native, 3.0)];
        let found: Vec<_> = ratios(&rows).iter().map(|ratio| (ratio.queues, ratio.to_reference)).collect();
        assert_eq!(found, [(1, 0.5), (2, 1.0)]);
    }
}
