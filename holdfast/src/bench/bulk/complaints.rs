//! What tshark says of the client's captures, each of the very run that a row was measured in, row against row
//! of mode native.

use super::row::Row;
use crate::config::Mode;
use holdfast_lab::expert::{Complaints, Difference};
use holdfast_lab::report::median;
use serde::Serialize;
use std::fmt::Write;

/// The analysis of the capture of one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Listened {
    pub(super) round: u32,
    pub(super) mode: Mode,
    pub(super) epoch_ms: u64,
    /// What was measured: [`Row::kind`].
    pub(super) what: String,
    pub(super) frames: u64,
    /// Whether the capture ended before the run, with its greatest number of frames.
    pub(super) cut: bool,
    /// Frames that the capture lost: complaints of lost segments may come of it.
    pub(super) capture_lost_frames: u64,
    /// Whether a connection was still open when the capture ended.
    pub(super) left_open: bool,
    pub(super) complaints: Complaints,
    /// Those that the same row of mode native lacks, or has fewer of; none where there is no such row.
    pub(super) beyond_native: Option<Vec<Difference>>,
}

impl Listened {
    /// Whether both are of one row, but for the mode.
    fn is_beside(&self, other: &Self) -> bool {
        (self.round, self.epoch_ms, &self.what) == (other.round, other.epoch_ms, &other.what)
    }
}

/// Compares each with the row of mode native that was taken beside it.
pub(super) fn compare(listened: &mut [Listened]) {
    let natives: Vec<Listened> = listened.iter().filter(|one| one.mode == Mode::Native).cloned().collect();
    for one in listened {
        let native = natives.iter().find(|native| native.is_beside(one));
        one.beyond_native = native.map(|native| one.complaints.beyond(&native.complaints));
    }
}

/// The complaints of all rows, for people.
pub(super) fn list(listened: &[Listened]) -> String {
    let mut out = String::new();
    if listened.is_empty() {
        return out;
    }
    let mut say = |line: String| writeln!(out, "{line}").expect("a string takes all text");
    say("\nwhat tshark complains of in the captures at the client, of the runs above (n: the same row in native)".into());
    for one in listened {
        let Listened { mode, epoch_ms, what, frames, complaints, .. } = one;
        let of_native = |complaint: &str| {
            let native = |other: &&Listened| other.mode == Mode::Native && other.is_beside(one);
            let count = |native: &Listened| native.complaints.0.get(complaint).copied().unwrap_or(0);
            listened.iter().find(native).map_or_else(|| "-".into(), |native| count(native).to_string())
        };
        let each = complaints.0.iter().map(|(complaint, count)| match mode {
            Mode::Native => format!("{count} {complaint}"),
            _ => format!("{count} {complaint} (n: {})", of_native(complaint)),
        });
        let each: Vec<String> = each.collect();
        let said = if each.is_empty() { "none".into() } else { each.join("; ") };
        say(format!("{:<12} {epoch_ms:>4} ms  {what:<26} {frames:>8} frames: {said}", mode.name()));
        doubts(one).into_iter().for_each(|doubt| say(format!("{:24}{doubt}", "")));
    }
    say(lacking(listened));
    out
}

/// What makes a capture less than the whole run.
fn doubts(one: &Listened) -> Vec<String> {
    let mut found = Vec::new();
    if one.cut {
        found.push("cut: it has its greatest number of frames, and the run went on".to_owned());
    }
    if one.capture_lost_frames > 0 {
        found.push(format!(
            "the capture lost {} frames, of which complaints may come",
            one.capture_lost_frames
        ));
    }
    if one.left_open {
        found.push("a connection was still open when it ended".to_owned());
    }
    if one.beyond_native.is_none() {
        found.push("there is no row of native to compare it with".to_owned());
    }
    found
}

/// The complaints that native's row lacks altogether.
fn lacking(listened: &[Listened]) -> String {
    let mut lines = Vec::new();
    for one in listened {
        for found in one.beyond_native.iter().flatten().filter(|found| found.reference == 0) {
            let Listened { mode, epoch_ms, what, .. } = one;
            lines.push(format!("\n    {mode}, {epoch_ms} ms, {what}: {} {}", found.here, found.complaint));
        }
    }
    match lines.len() {
        0 => "complaints that native's row lacks: none".into(),
        count => format!("complaints that native's row lacks: {count}{}", lines.concat()),
    }
}

/// What the captures cost: rows beside the same ones without a capture, as medians over rounds.
pub(super) fn cost(rows: &[Row]) -> String {
    let mut out = String::new();
    let of = |row: &Row| (row.mode, row.epoch_ms, row.kind());
    let parts = |row: &Row| {
        let without = row.uncaptured_mbit_s.filter(|rate| *rate > 0.0)?;
        Some(row.throughput_mbit_s / without)
    };
    let mut seen = Vec::new();
    for row in rows.iter().filter(|row| parts(row).is_some()) {
        let (mode, epoch_ms, what) = of(row);
        if seen.contains(&of(row)) {
            continue;
        }
        seen.push(of(row));
        let ratios: Vec<f64> = rows.iter().filter(|other| of(other) == of(row)).filter_map(parts).collect();
        let Some(middle) = median(&ratios) else { continue };
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = ratios.iter().copied().fold(0.0, f64::max);
        if out.is_empty() {
            out += "\nwhat the captures cost: throughput with one, as a part of that without; median, and single rounds\n";
        }
        writeln!(
            out,
            "{:<12} {epoch_ms:>4} ms  {what:<26} {middle:>6.2}   {least:.2} to {greatest:.2}",
            mode.name()
        )
        .expect("a string takes all text");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listened(mode: Mode, what: &str, complaints: &[(&str, u64)]) -> Listened {
        Listened {
            round: 1,
            mode,
            epoch_ms: 50,
            what: what.into(),
            frames: 100,
            cut: false,
            capture_lost_frames: 0,
            left_open: false,
            complaints: Complaints(complaints.iter().map(|(text, count)| ((*text).into(), *count)).collect()),
            beyond_native: None,
        }
    }

    #[test]
    fn rows_are_compared_with_the_same_row_of_native() {
        let mut all = [
            listened(Mode::Commit, "64 KiB", &[("Zero Window", 2)]),
            listened(Mode::Native, "1 MiB", &[("Zero Window", 5)]),
            listened(Mode::Native, "64 KiB", &[("Duplicate ACK", 1)]),
            listened(Mode::Commit, "1 MiB", &[("Zero Window", 2)]),
            listened(Mode::Commit, "16 MiB", &[]),
        ];
        compare(&mut all);
        let lacks = |one: &Listened| one.beyond_native.as_ref().map(Vec::len);
        assert_eq!(all.each_ref().map(lacks), [Some(1), Some(0), Some(0), Some(0), None]);
        all[3].cut = true;
        let said = list(&all);
        assert!(said.contains("2 Zero Window (n: 0)") && said.contains("2 Zero Window (n: 5)"), "{said}");
        assert!(said.contains("lacks: 1\n    commit, 50 ms, 64 KiB: 2 Zero Window\n"), "{said}");
        assert_eq!(said.matches("cut:").count(), 1, "{said}");
        assert_eq!(said.matches("no row of native").count(), 1, "{said}");
        assert_eq!(list(&[]), "");
    }

    #[test]
    fn what_a_capture_costs_is_said_of_rows_that_were_taken_both_ways() {
        let mut row = Row::new(Mode::Native, 50);
        row.throughput_mbit_s = 90.0;
        assert_eq!(cost(&[row.clone()]), "");
        row.uncaptured_mbit_s = Some(100.0);
        let mut worse = row.clone();
        (worse.round, worse.uncaptured_mbit_s) = (2, Some(180.0));
        let said = cost(&[row, worse]);
        assert!(said.contains("0.70   0.50 to 0.90") && said.lines().count() == 3, "{said}");
    }
}
