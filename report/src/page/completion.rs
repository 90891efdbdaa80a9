//! Transfers of a size: a line a mode, a plot for each epoch, with and without the connection's set-up.

use super::plot::{Axis, Plot};
use super::series::{Lines, Series, aside, legend, places};
use super::words;
use super::{HALF, figure, nothing};
use crate::aims::completion_ms;
use crate::run::{Run, Unit};
use maud::{Markup, html};
use std::collections::BTreeMap;

pub(super) fn section(run: &Run) -> Markup {
    // With the set-up first, as the paper has it.
    let mut plots: BTreeMap<(u64, bool), Lines> = BTreeMap::new();
    for row in run.transfers() {
        let (Some(bytes), Some(setup)) = (row.bytes, row.setup) else { continue };
        let lines = plots.entry((row.epoch_ms, !setup)).or_default();
        let point = lines.entry(Series::of(row.mode, row.adaptive)).or_default().entry(bytes).or_default();
        if row.samples_unit == Some(Unit::Ms) {
            point.samples.extend(&row.samples);
        } else {
            point.figures.extend(completion_ms(row));
        }
    }
    if plots.is_empty() {
        return nothing("transfers");
    }
    html! {
        p { "From the request, or the connection's beginning, to the last byte. The line goes through the medians; the "
            "bar is from the 10th to the 90th percentile. Both axes are logarithmic." }
        (legend(plots.values().flat_map(|lines| lines.keys().copied())))
        div.plots {
            @for ((epoch_ms, open), lines) in &plots {
                @let how = if *open { "on an open connection" } else { "with the connection's set-up" };
                (figure(&format!("epochs of {epoch_ms} ms, {how}"), &plot(lines)))
            }
        }
    }
}

fn plot(lines: &Lines) -> Plot {
    let values = lines.values().flat_map(BTreeMap::values).flat_map(|point| {
        let (low, high) = point.spread(0.1, 0.9).unzip();
        [low, high, point.centre()].into_iter().flatten()
    });
    let ticks = places(lines).into_iter().map(|size| (size as f64, words::bytes(size))).collect();
    let mut plot = Plot::new(Axis::log_at("size", ticks), Axis::log("completion time, ms", values), HALF);
    for (at, (series, line)) in lines.iter().enumerate() {
        // Sizes lie further apart than epochs do.
        let x = |place| aside(place, at * 2, lines.len() * 2 - 1);
        for (place, point) in line {
            if let Some((low, high)) = point.spread(0.1, 0.9) {
                plot.whisker((x(*place), low), (x(*place), high), series.colour());
            }
        }
        series.draw(line, x, &mut plot);
    }
    plot
}
