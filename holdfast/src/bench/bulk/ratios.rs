//! Rows of one kind and epoch, mode against mode; and how that stands to what was aimed at.

use super::row::Row;
use crate::config::Mode;
use holdfast_lab::report::median;
use serde::Serialize;
use std::fmt::Write;

/// How many times as fast speculative was, of one kind of row at one epoch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Ratio {
    epoch_ms: u64,
    /// What was measured.
    kind: String,
    speculative_to_native: Option<f64>,
    speculative_to_commit: Option<f64>,
    commit_to_native: Option<f64>,
    aware_to_native: Option<f64>,
    aware_to_speculative: Option<f64>,
}

/// What was aimed at, and what was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Aim {
    aim: &'static str,
    at_least: f64,
    found: f64,
}

/// All ratios of the medians over rounds, by the median's throughput: for transfers of a size it is the ratio of times, upside down.
pub(super) fn all(rows: &[Row]) -> Vec<Ratio> {
    let mut kinds: Vec<(u64, String)> = Vec::new();
    for row in rows {
        let kind = (row.epoch_ms, row.kind());
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let rate = |mode, epoch_ms, kind: &str| {
        let of = rows.iter().filter(|row| row.mode == mode && row.epoch_ms == epoch_ms && row.kind() == kind);
        median(&of.map(|row| row.throughput_mbit_s).collect::<Vec<_>>()).filter(|rate| *rate > 0.0)
    };
    kinds
        .into_iter()
        .map(|(epoch_ms, kind)| {
            let of = |mode| rate(mode, epoch_ms, &kind);
            let over = |one, other| Some(of(one)? / of(other)?);
            Ratio {
                speculative_to_native: over(Mode::Speculative, Mode::Native),
                speculative_to_commit: over(Mode::Speculative, Mode::Commit),
                commit_to_native: over(Mode::Commit, Mode::Native),
                aware_to_native: over(Mode::Aware, Mode::Native),
                aware_to_speculative: over(Mode::Aware, Mode::Speculative),
                epoch_ms,
                kind,
            }
        })
        .collect()
}

/// The aims for which there are rows: other ones on a long wire than on a plain cable.
pub(super) fn aims(rows: &[Row], long_wire: bool) -> Vec<Aim> {
    let ratios = all(rows);
    let longest = rows.iter().filter(|row| row.connections == 1).filter_map(|row| row.seconds).max();
    let bulk = format!("{} s, 1 connection(s)", longest.unwrap_or(0));
    let of = |epoch_ms, kind: &str| {
        ratios.iter().find(|ratio| ratio.epoch_ms == epoch_ms && ratio.kind == kind).cloned()
    };
    let aim = |aim, at_least, found: Option<f64>| found.map(|found| Aim { aim, at_least, found });
    if long_wire {
        let worst = ratios
            .iter()
            .filter(|ratio| ratio.kind == bulk)
            .filter_map(|ratio| ratio.speculative_to_native)
            .min_by(f64::total_cmp);
        return aim("bulk on the long wire, at the worst epoch: speculative to native", 1.0, worst)
            .into_iter()
            .collect();
    }
    let to_native = |ratio: Option<Ratio>| ratio.and_then(|ratio| ratio.speculative_to_native);
    let to_commit = |ratio: Option<Ratio>| ratio.and_then(|ratio| ratio.speculative_to_commit);
    [
        aim("bulk at 50 ms: speculative to native", 0.9, to_native(of(50, &bulk))),
        aim("bulk at 100 ms: speculative to commit", 3.0, to_commit(of(100, &bulk))),
        aim(
            "1 MiB at 100 ms on an open connection: times as fast as commit",
            6.0,
            to_commit(of(100, "1 MiB, open connection")),
        ),
        aim(
            "1 MiB at 100 ms with the connection's set-up: times as fast as commit",
            3.0,
            to_commit(of(100, "1 MiB, with set-up")),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Both for people.
pub(super) fn table(rows: &[Row], long_wire: bool) -> String {
    let mut out = String::new();
    let ratios = all(rows);
    if ratios.iter().all(|ratio| {
        ratio.commit_to_native.is_none()
            && ratio.speculative_to_native.is_none()
            && ratio.speculative_to_commit.is_none()
            && ratio.aware_to_native.is_none()
            && ratio.aware_to_speculative.is_none()
    }) {
        return out;
    }
    let shown = |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
    let aware = rows.iter().any(|row| row.mode == Mode::Aware);
    let more = if aware { "   aware / native   aware / spec" } else { "" };
    writeln!(
        out,
        "\nepoch    what                         spec / native   spec / commit   commit / native{more}"
    )
    .expect("a string takes all text");
    for ratio in &ratios {
        writeln!(
            out,
            "{:>4} ms  {:<26} {:>15} {:>15} {:>17}{}",
            ratio.epoch_ms,
            ratio.kind,
            shown(ratio.speculative_to_native),
            shown(ratio.speculative_to_commit),
            shown(ratio.commit_to_native),
            match aware {
                true => format!(
                    " {:>16} {:>14}",
                    shown(ratio.aware_to_native),
                    shown(ratio.aware_to_speculative)
                ),
                false => String::new(),
            }
        )
        .expect("a string takes all text");
    }
    for Aim { aim, at_least, found } in aims(rows, long_wire) {
        let reached = if found >= at_least { "reached" } else { "MISSED" };
        writeln!(out, "{aim}: {found:.2}, aim {at_least}: {reached}").expect("a string takes all text");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(mode: Mode, epoch_ms: u64, seconds: Option<u64>, rate: f64) -> Row {
        let mut row = Row::new(mode, epoch_ms);
        (row.seconds, row.throughput_mbit_s) = (seconds, rate);
        if seconds.is_none() {
            (row.bytes, row.setup) = (Some(1 << 20), Some(false));
        }
        row
    }

    #[test]
    fn rows_are_compared_with_those_of_their_kind_and_epoch_alone() {
        let rows = [
            row(Mode::Native, 100, Some(10), 800.0),
            row(Mode::Commit, 100, Some(10), 100.0),
            row(Mode::Speculative, 100, Some(10), 400.0),
            row(Mode::Speculative, 50, Some(10), 600.0),
            row(Mode::Commit, 100, None, 10.0),
            row(Mode::Speculative, 100, None, 70.0),
        ];
        let found = all(&rows);
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].speculative_to_native, Some(0.5));
        assert_eq!(found[0].speculative_to_commit, Some(4.0));
        assert_eq!(found[1].speculative_to_native, None);
        let aware = [rows[2].clone(), row(Mode::Aware, 100, Some(10), 600.0)];
        assert_eq!(all(&aware)[0].aware_to_speculative, Some(1.5));
        assert!(table(&aware, false).contains("1.50") && table(&aware, false).contains("aware / spec"));
        assert!(!table(&rows, false).contains("aware"));
        let found = aims(&rows, false);
        let shown: Vec<_> = found.iter().map(|aim| (aim.at_least, aim.found)).collect();
        assert_eq!(shown, [(3.0, 4.0), (6.0, 7.0)]);
        assert!(table(&rows, false).contains("aim 3: reached"));
        assert!(table(&rows, true).contains("0.50, aim 1: MISSED"));
        assert_eq!(table(&rows[..1], false), "");
    }
}
