//! Applications: bars relative to native, and the figures themselves.

use super::plot::{Axis, Plot};
use super::series::{Series, swatches};
use super::words;
use super::{figure, nothing};
use crate::aims::application_ratio;
use crate::run::{Mode, Run};
use maud::{Markup, html};

/// Where the aim is.
const AIM: f64 = 0.8;
const SIZE: (u32, u32) = (1060, 340);
/// Of a group's place, filled with bars.
const FILLED: f64 = 0.84;

pub(super) fn section(run: &Run) -> Markup {
    if run.applications().next().is_none() {
        return nothing("applications");
    }
    let mut epochs: Vec<u64> = run.applications().map(|row| row.epoch_ms).collect();
    epochs.sort_unstable();
    epochs.dedup();
    let shown = run.applications().filter(|row| row.mode != Mode::Native);
    html! {
        p { "Requests a second (for iperf3, and where an application has no requests, Mbit/s), as a part of what the same "
            "application did in mode native beside it. Adaptive epochs are the paler bars; the dashed levels "
            "are native and the aim." }
        (swatches(shown.map(|row| Series::of(row.mode, row.adaptive))))
        @for epoch_ms in &epochs {
            (figure(&format!("epochs of {epoch_ms} ms"), &plot(run, *epoch_ms)))
        }
        (table(run))
    }
}

fn plot(run: &Run, epoch_ms: u64) -> Plot {
    let rows = || run.applications().filter(move |row| row.epoch_ms == epoch_ms);
    let mut apps: Vec<String> = Vec::new();
    let mut series: Vec<Series> = Vec::new();
    for row in rows() {
        if !apps.contains(&row.app) {
            apps.push(row.app.clone());
        }
        let of = Series::of(row.mode, row.adaptive);
        if row.mode != Mode::Native && !series.contains(&of) {
            series.push(of);
        }
    }
    series.sort_unstable();
    let mut bars = Vec::new();
    for (group, app) in apps.iter().enumerate() {
        for (at, of) in series.iter().enumerate() {
            if let Some(ratio) = application_ratio(run, app, epoch_ms, of.mode, of.adaptive) {
                bars.push((group, at, *of, ratio));
            }
        }
    }
    let values = bars.iter().map(|bar| bar.3 * 1.06).chain([1.05]);
    let mut plot = Plot::new(Axis::names("", &apps), Axis::from_zero("relative to native", values), SIZE);
    plot.level(1.0);
    plot.level(AIM);
    let width = FILLED / series.len().max(1) as f64;
    for (group, at, of, ratio) in bars {
        let left = group as f64 - FILLED / 2.0 + width * at as f64;
        let right = left + width * 0.9;
        plot.bar((left, 0.0), (right, ratio), of.colour(), of.opacity());
        plot.text_above((f64::midpoint(left, right), ratio), format!("{ratio:.2}"));
    }
    plot
}

fn table(run: &Run) -> Markup {
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "application" } th { "mode" } th.figure { "epoch" } th.figure { "rate" } th.figure { "to native" }
                        th.figure { "p50, ms" } th.figure { "p99, ms" } th.figure { "Mbit/s" } th.figure { "errors" }
                    }
                }
                tbody {
                    @for row in run.applications() {
                        @let (rate, unit) = row.rate();
                        tr {
                            td { (row.app) } td { (words::mode(row.mode, row.adaptive)) } td.figure { (row.epoch_ms) " ms" }
                            td.figure { (words::number(rate)) " " (unit.name()) }
                            td.figure { (words::number_or_dash(
                                application_ratio(run, &row.app, row.epoch_ms, row.mode, row.adaptive)
                            )) }
                            @for figure in [row.p50_ms, row.p99_ms, row.mbit_s] {
                                td.figure { (words::number_or_dash(figure)) }
                            }
                            td.figure class=(if row.errors > 0 { "figure missed" } else { "figure" }) { (row.errors) }
                        }
                    }
                }
            }
        }
    }
}
