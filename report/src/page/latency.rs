//! Latency distributions: the axis stretches with the nines, so that the tail can be seen.

use super::plot::{Axis, Plot};
use super::series::{Series, legend};
use super::words;
use super::{HALF, figure, nothing};
use crate::histogram::{decode, quantile_ms};
use crate::run::Run;
use hdrhistogram::Histogram;
use maud::{Markup, html};
use std::collections::BTreeMap;

/// Where the aim is, drawn into the plots of small requests.
const AIM_MS: f64 = 15.0;
/// Points of a line for each nine.
const STEPS: u32 = 24;

type Distributions = BTreeMap<Series, Histogram<u64>>;

pub(super) fn section(run: &Run) -> Markup {
    let mut broken = Vec::new();
    let mut take = |text: Option<&str>, what: String| -> Option<Histogram<u64>> {
        decode(text?).inspect_err(|fault| broken.push(format!("{what}: {fault}"))).ok()
    };
    let mut requests: BTreeMap<u64, Distributions> = BTreeMap::new();
    for row in run.latencies() {
        let series = Series::of(row.mode, row.adaptive);
        if let Some(histogram) = take(row.histogram.as_deref(), format!("requests, {}", series.name())) {
            add(requests.entry(row.epoch_ms).or_default(), series, &histogram);
        }
    }
    let mut applications: BTreeMap<(String, u64), Distributions> = BTreeMap::new();
    for row in run.applications() {
        let series = Series::of(row.mode, row.adaptive);
        if let Some(histogram) = take(row.latency.as_deref(), format!("{}, {}", row.app, series.name())) {
            let plot = applications.entry((row.app.clone(), row.epoch_ms)).or_default();
            add(plot, series, &histogram);
        }
    }
    if requests.is_empty() && applications.is_empty() && run.latencies().next().is_none() {
        return nothing("latencies");
    }
    let all = requests.values().chain(applications.values());
    html! {
        p { "How long requests took, from the fastest on the left to the slowest on the right: at 99 % is the time that "
            "one request in a hundred exceeds. The dashed level is the aim for the 99th percentile with adaptive "
            "epochs." }
        @for fault in &broken { p.warning { (fault) } }
        (legend(all.flat_map(|plot| plot.keys().copied())))
        div.plots {
            @for (epoch_ms, plot) in &requests {
                (figure(&format!("small requests, epochs of {epoch_ms} ms"), &percentiles(plot, Some(AIM_MS))))
            }
            @for ((app, epoch_ms), plot) in &applications {
                (figure(&format!("{app}, epochs of {epoch_ms} ms"), &percentiles(plot, None)))
            }
        }
        (table(run))
    }
}

fn add(plot: &mut Distributions, series: Series, histogram: &Histogram<u64>) {
    match plot.get_mut(&series) {
        // Of other bounds it cannot be: both grow as they must.
        Some(so_far) => drop(so_far.add(histogram)),
        None => drop(plot.insert(series, histogram.clone())),
    }
}

fn percentiles(distributions: &Distributions, aim: Option<f64>) -> Plot {
    let most = distributions.values().map(Histogram::len).max().unwrap_or(1);
    let nines = (most.max(10) as f64).log10();
    let lines: Vec<(Series, Vec<(f64, f64)>)> =
        distributions.iter().map(|(series, histogram)| (*series, line(histogram))).collect();
    let values = lines.iter().flat_map(|(_, line)| line.iter().map(|(_, ms)| *ms)).chain(aim);
    let mut plot = Plot::new(Axis::nines("share of requests", nines), Axis::log("latency, ms", values), HALF);
    if let Some(aim) = aim {
        plot.level(aim);
    }
    for (series, line) in lines {
        plot.line(line, series.colour(), series.adaptive);
    }
    plot
}

fn line(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let nines = (histogram.len().max(1) as f64).log10();
    let steps = (nines * f64::from(STEPS)).floor() as u32;
    (0..=steps)
        .map(|step| 1.0 - 10_f64.powf(-f64::from(step) / f64::from(STEPS)))
        .map(|share| (share, quantile_ms(histogram, share)))
        .collect()
}

fn table(run: &Run) -> Markup {
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "mode" } th.figure { "epoch" } th.figure { "requests" } th.figure { "p50, ms" }
                        th.figure { "p90, ms" } th.figure { "p99, ms" } th.figure { "greatest, ms" }
                    }
                }
                tbody {
                    @for row in run.latencies() {
                        tr {
                            td { (words::mode(row.mode, row.adaptive)) } td.figure { (row.epoch_ms) " ms" }
                            td.figure { (row.requests) }
                            @for figure in [row.p50_ms, row.p90_ms, row.p99_ms, row.max_ms] {
                                td.figure { (words::number(figure)) }
                            }
                        }
                    }
                }
            }
        }
    }
}
