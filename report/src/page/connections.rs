//! Streams by how many there are at the same time: their rate together, and whether they share it evenly.

use super::plot::{Axis, Plot};
use super::series::{Lines, Series, aside, legend, places};
use super::{HALF, figure};
use crate::run::{Bulk, Run};
use maud::{Markup, html};
use std::collections::{BTreeMap, BTreeSet};

/// Whether the run has more than one number of connections: else there is nothing that grows.
pub(super) fn grow(run: &Run) -> bool {
    run.streams().map(|row| row.connections).collect::<BTreeSet<_>>().len() > 1
}

pub(super) fn section(run: &Run) -> Markup {
    let rates = by_epoch(run, |row| Some(row.throughput_mbit_s));
    let fairness = by_epoch(run, |row| row.fairness.filter(|_| row.connections > 1));
    html! {
        p { "From guest to client, by connections at the same time. Fairness is Jain's index over them: 1 when all are "
            "equally fast, and one divided by their number when a single one has all." }
        (legend(rates.values().flat_map(|lines| lines.keys().copied())))
        div.plots {
            @for (epoch_ms, lines) in &rates {
                @let values = lines.values().flat_map(|line| line.values().filter_map(|point| point.centre()));
                @let axis = Axis::from_zero("throughput, Mbit/s", values);
                (figure(&format!("throughput, epochs of {epoch_ms} ms"), &plot(lines, axis)))
                @if let Some(lines) = fairness.get(epoch_ms) {
                    @let axis = Axis::from_zero("fairness", [1.0]);
                    (figure(&format!("fairness, epochs of {epoch_ms} ms"), &plot(lines, axis)))
                }
            }
        }
    }
}

fn by_epoch(run: &Run, figure: impl Fn(&Bulk) -> Option<f64>) -> BTreeMap<u64, Lines> {
    let mut found: BTreeMap<u64, Lines> = BTreeMap::new();
    for row in run.streams() {
        let Some(figure) = figure(row) else { continue };
        let line =
            found.entry(row.epoch_ms).or_default().entry(Series::of(row.mode, row.adaptive)).or_default();
        line.entry(row.connections).or_default().figures.push(figure);
    }
    found
}

fn plot(lines: &Lines, y: Axis) -> Plot {
    let ticks = places(lines).into_iter().map(|count| (count as f64, count.to_string())).collect();
    let mut plot = Plot::new(Axis::log_at("connections", ticks), y, HALF);
    for (at, (series, line)) in lines.iter().enumerate() {
        series.draw(line, |place| aside(place, at, lines.len()), &mut plot);
    }
    plot
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Mode, Row};

    #[test]
    fn one_number_of_connections_grows_nothing() {
        let row = |connections, fairness| {
            let bulk = Bulk { connections, fairness, seconds: Some(5), ..Bulk::new(Mode::Commit, 50, false) };
            Row::Stream(bulk)
        };
        let mut run = Run { rows: vec![row(16, Some(1.0)), row(16, Some(0.5))], ..Run::default() };
        assert!(!grow(&run));
        run.rows.push(row(1, Some(1.0)));
        assert!(grow(&run));
        let found = by_epoch(&run, |row| row.fairness);
        let line = &found[&50][&Series::of(Mode::Commit, false)];
        assert_eq!((line[&1].centre(), line[&16].centre()), (Some(1.0), Some(0.75)));
    }
}
