//! One row of figures, and what the rows say together.

use holdfast_lab::report::{median, percentile};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The parts of a pause as `holdfast status --epochs --json` names them, with the words of the table. Scan and
/// copy go on beside the save.
const PARTS: [(&str, &str); 6] = [
    ("pause_stop_us", "stop"),
    ("pause_cut_us", "cut"),
    ("pause_scan_us", "scan"),
    ("pause_copy_us", "copy"),
    ("pause_save_us", "save"),
    ("pause_cont_us", "cont"),
];

/// Some epochs of one guest with one dirty set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    kind: &'static str,
    pub(super) round: u32,
    pub(super) guest_mib: u32,
    /// Pages that the guest was asked to write in an epoch.
    pub(super) dirty_pages: u32,
    pub(super) epoch_ms: u64,
    /// Epochs that were looked at.
    pub(super) epochs: usize,
    /// Pages that an epoch had.
    pub(super) dirty_pages_p50: f64,
    /// Of them copied while the guest ran, and copies made in the pause.
    pub(super) ahead_pages_p50: f64,
    pub(super) pause_pages_p50: f64,
    pub(super) pause_p50_us: f64,
    pub(super) pause_p99_us: f64,
    /// `pause_stop_p50_us`, `pause_stop_p99_us` and so on.
    #[serde(flatten)]
    pub(super) parts: BTreeMap<String, f64>,
    pub(super) commit_latency_p50_us: f64,
    pub(super) wire_bytes_p50: f64,
}

impl Row {
    /// Of these epochs; none if there are none.
    pub(super) fn of(
        (round, guest_mib, dirty_pages, epoch_ms): (u32, u32, u32, u64),
        epochs: &[&Value],
    ) -> Option<Self> {
        let values =
            |name: &str| -> Vec<f64> { epochs.iter().filter_map(|one| one[name].as_f64()).collect() };
        let at = |name: &str, fraction| percentile(&values(name), fraction);
        let mut parts = BTreeMap::new();
        for (name, _) in PARTS {
            let stem = name.trim_end_matches("_us");
            parts.insert(format!("{stem}_p50_us"), at(name, 0.5)?);
            parts.insert(format!("{stem}_p99_us"), at(name, 0.99)?);
        }
        let latency: Vec<f64> = epochs
            .iter()
            .filter_map(|one| Some(one["committed_us"].as_f64()? - one["stopped_us"].as_f64()?))
            .collect();
        Some(Self {
            kind: "pause",
            round,
            guest_mib,
            dirty_pages,
            epoch_ms,
            epochs: epochs.len(),
            dirty_pages_p50: at("dirty_pages", 0.5)?,
            ahead_pages_p50: at("ahead_pages", 0.5)?,
            pause_pages_p50: at("pause_pages", 0.5)?,
            pause_p50_us: at("pause_us", 0.5)?,
            pause_p99_us: at("pause_us", 0.99)?,
            parts,
            commit_latency_p50_us: percentile(&latency, 0.5)?,
            wire_bytes_p50: at("wire_bytes", 0.5)?,
        })
    }
}

/// A pause over another, as the median of the rounds' ratios.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Ratio {
    /// What is compared.
    pub(super) what: String,
    pub(super) pause_p50: f64,
    pub(super) pause_p99: f64,
}

/// The largest sets over that of 200 pages (or the smallest) for each guest; the largest guest over the
/// smallest for each set.
pub(super) fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let mut found = Vec::new();
    let sets = distinct(rows.iter().map(|row| row.dirty_pages));
    let guests = distinct(rows.iter().map(|row| row.guest_mib));
    let base = sets.iter().copied().find(|pages| *pages == 200).or(sets.first().copied());
    for (&guest, &pages) in guests.iter().flat_map(|guest| sets.iter().map(move |pages| (guest, pages))) {
        if let Some(base) = base.filter(|base| pages > *base) {
            let of = |pages| move |row: &&Row| row.guest_mib == guest && row.dirty_pages == pages;
            let what = format!("{pages} pages over {base}, {guest} MiB");
            found.extend(ratio(what, rows, of(pages), of(base)));
        }
    }
    if let [small, .., large] = guests[..] {
        for &pages in &sets {
            let of = |guest| move |row: &&Row| row.guest_mib == guest && row.dirty_pages == pages;
            let what = format!("{large} MiB over {small}, {pages} pages");
            found.extend(ratio(what, rows, of(large), of(small)));
        }
    }
    found
}

fn ratio(
    what: String,
    rows: &[Row],
    one: impl Fn(&&Row) -> bool,
    other: impl Fn(&&Row) -> bool,
) -> Option<Ratio> {
    let over = |value: fn(&Row) -> f64| {
        let of_rounds = |row: &Row| {
            let beside = rows.iter().find(|beside| other(beside) && beside.round == row.round)?;
            Some(value(row) / value(beside))
        };
        median(&rows.iter().filter(|row| one(row)).filter_map(of_rounds).collect::<Vec<_>>())
    };
    Some(Ratio { what, pause_p50: over(|row| row.pause_p50_us)?, pause_p99: over(|row| row.pause_p99_us)? })
}

/// What was aimed at, and what was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Aim {
    aim: String,
    at_most: f64,
    found: f64,
}

/// Sets up to this size have aims.
const AIMED_PAGES: u32 = 20_000;

/// The aims for which there are rows, for each size of the guest.
pub(super) fn aims(rows: &[Row]) -> Vec<Aim> {
    let mut found = Vec::new();
    let ratios = ratios(rows);
    for guest_mib in distinct(rows.iter().map(|row| row.guest_mib)) {
        found.extend(longest(rows, guest_mib).map(|found| Aim {
            aim: format!("pause of {guest_mib} MiB, p99 of the worst set of {AIMED_PAGES} pages at most, ms"),
            at_most: 10.0,
            found,
        }));
        let what = format!("{AIMED_PAGES} pages over 200, {guest_mib} MiB");
        for ratio in ratios.iter().filter(|ratio| ratio.what == what) {
            for (word, found_ratio) in [("p50", ratio.pause_p50), ("p99", ratio.pause_p99)] {
                found.push(Aim { aim: format!("pause at {what}, {word}"), at_most: 1.5, found: found_ratio });
            }
        }
    }
    found
}

/// The longest p99 of a guest's sets, each the median of its rounds, in ms.
fn longest(rows: &[Row], guest_mib: u32) -> Option<f64> {
    let aimed = |row: &&Row| row.guest_mib == guest_mib && row.dirty_pages <= AIMED_PAGES;
    let sets = distinct(rows.iter().filter(aimed).map(|row| row.dirty_pages));
    let of_set = |pages: u32| {
        let of = rows.iter().filter(aimed).filter(|row| row.dirty_pages == pages);
        median(&of.map(|row| row.pause_p99_us / 1e3).collect::<Vec<_>>())
    };
    sets.into_iter().filter_map(of_set).reduce(f64::max)
}

/// Medians over the rounds, a line for each guest and set, the ratios, and the aims.
pub(super) fn table(rows: &[Row]) -> String {
    let mut out = heading();
    let mut kinds: Vec<(u32, u32)> = rows.iter().map(|row| (row.guest_mib, row.dirty_pages)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        let of: Vec<&Row> = rows.iter().filter(|row| (row.guest_mib, row.dirty_pages) == kind).collect();
        out += &line(&of);
    }
    for ratio in ratios(rows) {
        writeln!(out, "{:<40} p50 {:.2}  p99 {:.2}", ratio.what, ratio.pause_p50, ratio.pause_p99)
            .expect("a string takes all text");
    }
    for Aim { aim, at_most, found } in aims(rows) {
        let reached = if found <= at_most { "reached" } else { "MISSED" };
        writeln!(out, "{aim}: {found:.2}, aim {at_most} at most: {reached}")
            .expect("a string takes all text");
    }
    out
}

/// Above the lines.
pub(super) fn heading() -> String {
    let parts: String = PARTS.iter().map(|(_, word)| format!(" {word:>6}")).collect();
    format!(
        "{:>9} {:>12} {:>7} {:>9} {:>10} {:>8} |{parts} ms | {:>10} {:>9}\n",
        "guest MiB", "pages asked", "seen", "epoch", "pause p50", "p99", "commit p50", "wire KiB"
    )
}

/// Rows of one kind in a line: medians over them; each part is the median of its epochs.
pub(super) fn line(rows: &[&Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let of = |value: &dyn Fn(&Row) -> f64| {
        median(&rows.iter().map(|row| value(row)).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    let parts: String = PARTS
        .iter()
        .map(|(name, _)| {
            let key = format!("{}_p50_us", name.trim_end_matches("_us"));
            format!(" {:>6.2}", of(&|row| row.parts[&key]) / 1e3)
        })
        .collect();
    format!(
        "{:>9} {:>12} {:>7.0} {:>6} ms {:>7.2} ms {:>5.2} ms |{parts} ms | {:>7.1} ms {:>9.0}\n",
        first.guest_mib,
        first.dirty_pages,
        of(&|row| row.dirty_pages_p50),
        first.epoch_ms,
        of(&|row| row.pause_p50_us) / 1e3,
        of(&|row| row.pause_p99_us) / 1e3,
        of(&|row| row.commit_latency_p50_us) / 1e3,
        of(&|row| row.wire_bytes_p50) / 1024.0,
    )
}

fn distinct(values: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut values: Vec<u32> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn epoch(pause_us: u64) -> Value {
        json!({"stopped_us": 1000, "committed_us": 4000, "pause_us": pause_us, "pause_stop_us": 400,
               "pause_cut_us": 10, "pause_scan_us": 100, "pause_copy_us": 50, "pause_save_us": 2000,
               "pause_cont_us": 300, "dirty_pages": 207, "ahead_pages": 200, "pause_pages": 9,
               "wire_bytes": 8192})
    }

    fn row(round: u32, guest_mib: u32, dirty_pages: u32, pauses: &[u64]) -> Row {
        let epochs: Vec<Value> = pauses.iter().map(|pause| epoch(*pause)).collect();
        Row::of((round, guest_mib, dirty_pages, 50), &epochs.iter().collect::<Vec<_>>()).expect("epochs")
    }

    #[test]
    fn a_row_has_the_spread_of_its_epochs_part_by_part() {
        let row = row(1, 256, 200, &[3000, 5000, 2000]);
        assert_eq!((row.pause_p50_us, row.pause_p99_us, row.epochs), (3000.0, 5000.0, 3));
        assert_eq!(row.parts["pause_save_p50_us"], 2000.0);
        assert_eq!((row.ahead_pages_p50, row.pause_pages_p50), (200.0, 9.0));
        let written = serde_json::to_value(&row).expect("a document");
        assert_eq!((&written["pause_stop_p99_us"], &written["guest_mib"]), (&json!(400.0), &json!(256)));
        assert_eq!(written["kind"], "pause");
        assert_eq!(Row::of((1, 256, 200, 50), &[]), None);
    }

    #[test]
    fn ratios_are_those_of_the_rounds() {
        let rows = [
            row(1, 256, 200, &[2000]),
            row(1, 256, 20_000, &[4000]),
            row(2, 256, 200, &[4000]),
            row(2, 256, 20_000, &[12_000]),
            row(1, 1024, 200, &[3000]),
        ];
        let found = ratios(&rows);
        let told: Vec<_> = found.iter().map(|ratio| (&*ratio.what, ratio.pause_p99)).collect();
        assert_eq!(told, [("20000 pages over 200, 256 MiB", 2.5), ("1024 MiB over 256, 200 pages", 1.5)]);
        let text = table(&rows);
        assert_eq!(text.lines().count(), 1 + 3 + 2 + 2 + 2, "{text}");
        let wide = text.lines().take(4).map(str::len).collect::<Vec<_>>();
        assert!(wide.iter().all(|len| *len == wide[0]), "{wide:?}\n{text}");
    }

    #[test]
    fn the_aims_are_a_short_pause_and_one_that_does_not_grow() {
        let rows = [
            row(1, 256, 200, &[2000]),
            row(1, 256, 5000, &[9000]),
            row(1, 256, 20_000, &[3000]),
            row(2, 256, 5000, &[11_000]),
            row(3, 256, 5000, &[30_000]),
            // Beyond the sets that have an aim, and a guest with nothing to compare.
            row(1, 256, 50_000, &[40_000]),
            row(1, 1024, 20_000, &[10_000]),
        ];
        let told: Vec<_> = aims(&rows).into_iter().map(|aim| (aim.at_most, aim.found)).collect();
        assert_eq!(told, [(10.0, 11.0), (1.5, 1.5), (1.5, 1.5), (10.0, 10.0)]);
        let text = table(&rows);
        for part in [
            "11.00, aim 10 at most: MISSED",
            "1.50, aim 1.5 at most: reached",
            "10.00, aim 10 at most: reached",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(aims(&rows[5..6]).is_empty(), "no aim for such a set");
    }
}
