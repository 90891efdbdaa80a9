//! Streams without end: a line a mode, a plot for each number of connections.

use super::plot::{Axis, Plot};
use super::series::{Lines, Series, aside, legend, places};
use super::words;
use super::{HALF, figure, nothing};
use crate::run::{Run, Unit};
use maud::{Markup, html};
use std::collections::BTreeMap;

pub(super) fn section(run: &Run) -> Markup {
    let mut plots: BTreeMap<u64, Lines> = BTreeMap::new();
    for row in run.streams() {
        let lines = plots.entry(row.connections).or_default();
        let line = lines.entry(Series::of(row.mode, row.adaptive)).or_default();
        let point = line.entry(row.epoch_ms).or_default();
        if row.samples_unit == Some(Unit::MbitS) {
            point.samples.extend(&row.samples);
        } else {
            point.figures.push(row.throughput_mbit_s);
        }
    }
    if plots.is_empty() {
        return nothing("streams");
    }
    html! {
        p { "From guest to client, all connections together. The line goes through the medians; the bar is from the "
            "first to the third quartile, and each faint dot is a sample. Mode native has no epochs: it was taken beside the "
            "others." }
        (legend(plots.values().flat_map(|lines| lines.keys().copied())))
        div.plots {
            @for (connections, lines) in &plots {
                (figure(&match connections { 1 => "1 connection".into(), count => format!("{count} connections") }, &plot(lines)))
            }
        }
        (table(&plots))
    }
}

fn plot(lines: &Lines) -> Plot {
    let values =
        lines.values().flat_map(BTreeMap::values).flat_map(|point| point.values().collect::<Vec<_>>());
    let ticks = places(lines).into_iter().map(|ms| (ms as f64, ms.to_string())).collect();
    let mut plot =
        Plot::new(Axis::log_at("epoch, ms", ticks), Axis::from_zero("throughput, Mbit/s", values), HALF);
    for (at, (series, line)) in lines.iter().enumerate() {
        let x = |place| aside(place, at, lines.len());
        for (place, point) in line {
            for sample in &point.samples {
                plot.dot((x(*place), *sample), series.colour(), 2, 0.35);
            }
            if let Some((low, high)) = point.spread(0.25, 0.75) {
                plot.whisker((x(*place), low), (x(*place), high), series.colour());
            }
        }
        series.draw(line, x, &mut plot);
    }
    plot
}

fn table(plots: &BTreeMap<u64, Lines>) -> Markup {
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "connections" } th { "mode" } th.figure { "epoch" } th.figure { "median, Mbit/s" }
                        th.figure { "quartiles" } th.figure { "samples" } th.figure { "to native" }
                    }
                }
                tbody {
                    @for (connections, lines) in plots {
                        @for (series, line) in lines {
                            @for (place, point) in line {
                                tr {
                                    td { (connections) } td { (series.name()) } td.figure { (place) " ms" }
                                    td.figure { (words::number_or_dash(point.centre())) }
                                    td.figure { (point.spread(0.25, 0.75).map_or_else(|| "-".into(), |(low, high)| {
                                        format!("{} to {}", words::number(low), words::number(high))
                                    })) }
                                    td.figure { (point.samples.len()) }
                                    td.figure { (words::number_or_dash(to_native(lines, *place, point.centre()))) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn to_native(lines: &Lines, place: u64, rate: Option<f64>) -> Option<f64> {
    let native = lines.get(&Series::of(crate::run::Mode::Native, false))?.get(&place)?.centre()?;
    (native > 0.0).then_some(rate? / native)
}
