//! What the speculation engine's work costs with ever more flows.

use super::growth::{self, Line, Places, Scale};
use super::words;
use crate::run::{Engine, Run};
use maud::{Markup, html};

const BY_FLOWS: Places = ("flows", words::count);
const NS_A_US: f64 = 1000.0;

pub(super) fn section(run: &Run) -> Markup {
    let each = lines(run, |row| (!row.of_all).then_some(row.time_ns));
    let all = lines(run, |row| row.of_all.then_some(row.time_ns / NS_A_US));
    let plots: Vec<(&str, Scale, &[Line])> = [
        ("of a flow or a segment", Scale::Log("ns"), &each[..]),
        ("of all flows at once", Scale::Log("microseconds"), &all[..]),
    ]
    .into_iter()
    .filter(|(.., lines)| growth::grow(lines))
    .collect();
    html! {
        p { "One core, warm caches, medians. A cut is part of the pause, and a commit is taken between two bursts: what they "
            "take for all flows at once is what everything else waits for." }
        div.plots {
            @for (heading, scale, lines) in plots {
                div { (growth::one(BY_FLOWS, heading, scale, lines)) (growth::legend(lines)) }
            }
        }
        (table(run))
    }
}

fn lines(run: &Run, figure: impl Fn(&Engine) -> Option<f64>) -> Vec<Line> {
    let figures = run.engine().filter_map(|row| Some((row.what.as_str(), row.flows?, figure(row)?)));
    growth::lines(figures, |nth, what| ((*what).to_owned(), growth::colour(nth)))
}

fn table(run: &Run) -> Markup {
    html! {
        div.scroll {
            table {
                thead {
                    tr { th { "what" } th.figure { "flows" } th.figure { "ns" } th.figure { "a second and core" } }
                }
                tbody {
                    @for row in run.engine() {
                        tr {
                            td { (row.what) }
                            td.figure { (row.flows.map_or_else(|| "-".into(), |flows| flows.to_string())) }
                            td.figure { (words::number(row.time_ns)) }
                            td.figure { (words::number_or_dash((row.time_ns > 0.0).then(|| 1e9 / row.time_ns))) }
                        }
                    }
                }
            }
        }
    }
}
