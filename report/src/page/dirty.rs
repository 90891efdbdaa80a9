//! How many pages the guest writes in an epoch, and what that costs.

use super::plot::{Axis, Plot};
use super::series::Series;
use super::words;
use super::{figure, nothing};
use crate::run::{Epoch, Recording, Run};
use crate::statistics::quantile;
use maud::{Markup, html};

const WIDTH: u32 = 1060;

pub(super) fn section(run: &Run) -> Markup {
    let mut recordings: Vec<&Recording> = run.epochs.iter().filter(|of| !of.epochs.is_empty()).collect();
    recordings.sort_by_key(|of| (of.mode, of.adaptive, of.epoch_ms));
    if recordings.is_empty() {
        return nothing("recordings of epochs");
    }
    html! {
        p { "Pages of 4 KiB that were written in an epoch. The bar is from the first to the third quartile with the median in "
            "it, the pale line from the 1st to the 99th percentile, the dot is the greatest." }
        (figure("dirty pages of an epoch", &plot(&recordings)))
        (table(&recordings))
    }
}

fn name(of: &Recording) -> String {
    format!("{}, {} ms", words::mode(of.mode, of.adaptive), of.epoch_ms)
}

fn values(of: &Recording, value: impl Fn(&Epoch) -> f64) -> Vec<f64> {
    of.epochs.iter().map(value).collect()
}

fn plot(recordings: &[&Recording]) -> Plot {
    let names: Vec<String> = recordings.iter().map(|of| name(of)).collect();
    // On a logarithmic axis nothing is 0.
    let pages = |of: &Recording| values(of, |epoch| epoch.dirty_pages.max(1) as f64);
    let all = recordings.iter().flat_map(|of| {
        let pages = pages(of);
        // With room for the words beside the greatest.
        [quantile(&pages, 0.0), quantile(&pages, 1.0).map(|most| most * 1.1)].into_iter().flatten()
    });
    let height = 70 + 26 * recordings.len() as u32;
    let mut plot = Plot::new(Axis::log("pages", all), Axis::names("", &names).downwards(), (WIDTH, height));
    for (row, of) in recordings.iter().enumerate() {
        let (pages, y) = (pages(of), row as f64);
        let at = |share: f64| quantile(&pages, share).unwrap_or(1.0);
        let colour = Series::of(of.mode, of.adaptive).colour();
        plot.whisker((at(0.01), y), (at(0.99), y), colour);
        plot.bar((at(0.25), y - 0.28), (at(0.75), y + 0.28), colour, 0.6);
        plot.line(vec![(at(0.5), y - 0.28), (at(0.5), y + 0.28)], super::plot::INK, false);
        plot.dot((at(1.0), y), colour, 3, 1.0);
        plot.text_beside((at(1.0), y), format!("p50 {}", words::number(at(0.5))));
    }
    plot
}

fn table(recordings: &[&Recording]) -> Markup {
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "recording" } th.figure { "epochs" } th.figure { "pages p50" } th.figure { "p99" }
                        th.figure { "pause p50, ms" } th.figure { "p99" } th.figure { "pause to commit p50, ms" } th.figure { "p99" }
                        th.figure { "on the link p50, KiB" } th.figure { "streams ahead p50, KiB" }
                    }
                }
                tbody {
                    @for of in recordings {
                        @let pages = values(of, |epoch| epoch.dirty_pages as f64);
                        @let pause = values(of, |epoch| (epoch.captured_us - epoch.pause_us) / 1000.0);
                        @let commit = values(of, |epoch| (epoch.committed_us - epoch.pause_us) / 1000.0);
                        @let wire = values(of, |epoch| epoch.wire_bytes as f64 / 1024.0);
                        @let streams = values(of, |epoch| epoch.stream_bytes as f64 / 1024.0);
                        tr {
                            td.name { (name(of)) } td.figure { (of.epochs.len()) }
                            @for (values, share) in [(&pages, 0.5), (&pages, 0.99), (&pause, 0.5), (&pause, 0.99),
                                (&commit, 0.5), (&commit, 0.99), (&wire, 0.5), (&streams, 0.5)] {
                                td.figure { (words::number_or_dash(quantile(values, share))) }
                            }
                        }
                    }
                }
            }
        }
    }
}
