//! Runs as one page: HTML with its style and its plots inside, nothing from elsewhere, no script.
//!
//! A section a file. Each says in one sentence what its plot shows and how to read it. A section of a guest's
//! traffic for which such a run has nothing says so; one of what single parts cost is there with its rows alone.
//! Several runs follow each other: no figure of one is mixed with another's.

mod applications;
mod clock;
mod completion;
mod connections;
mod dirty;
mod flows;
mod growth;
mod headlines;
mod latency;
mod machine;
mod pages;
mod pause;
mod plot;
mod pps;
mod published;
mod series;
mod style;
mod throughput;
mod timeline;
pub(crate) mod words;

use crate::run::Run;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use plot::Plot;
use std::slice;

/// Plots of which two stand side by side.
const HALF: (u32, u32) = (520, 320);

/// One section: its anchor, its heading, of which runs it is, and what makes it.
struct Section {
    anchor: &'static str,
    heading: &'static str,
    is_of: fn(&Run) -> bool,
    make: fn(&Run) -> Markup,
}

impl Section {
    const fn new(
        anchor: &'static str,
        heading: &'static str,
        is_of: fn(&Run) -> bool,
        make: fn(&Run) -> Markup,
    ) -> Self {
        Self { anchor, heading, is_of, make }
    }
}

const TRAFFIC: fn(&Run) -> bool = |run| !run.is_of_costs();
const ALL: fn(&Run) -> bool = |_| true;

static SECTIONS: [Section; 15] = [
    Section::new("headlines", "Headline figures", TRAFFIC, headlines::section),
    Section::new("machine", "Machine and configuration", ALL, machine::section),
    Section::new("throughput", "Throughput by epoch", TRAFFIC, throughput::section),
    Section::new("connections", "Throughput by connections", connections::grow, connections::section),
    Section::new("completion", "Completion time by size", TRAFFIC, completion::section),
    Section::new("latency", "Latency of requests", TRAFFIC, latency::section),
    Section::new("applications", "Applications", TRAFFIC, applications::section),
    Section::new("timeline", "Epochs on a time line", TRAFFIC, timeline::section),
    Section::new("dirty", "Dirty pages of an epoch", TRAFFIC, dirty::section),
    Section::new("clock", "Lag of the guest's clock", TRAFFIC, clock::section),
    Section::new("pause", "Pause", |run| run.pauses().next().is_some(), pause::section),
    Section::new("pps", "Frames a second", |run| run.pps().next().is_some(), pps::section),
    Section::new("pages", "Pages to the other host", |run| run.pages().next().is_some(), pages::section),
    Section::new("flows", "Work by flows", |run| run.engine().next().is_some(), flows::section),
    Section::new("published", "Side by side with what others published", TRAFFIC, published::section),
];

/// The page of a run.
pub fn render(run: &Run) -> String {
    render_all(slice::from_ref(run))
}

/// The page of several runs, one after the other.
pub fn render_all(runs: &[Run]) -> String {
    let names: Vec<String> = runs.iter().map(|run| format!("bench {}", run.bench)).collect();
    let title = format!("Holdfast: {}", names.join(", "));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(style::CSS)) }
            }
            body {
                h1 { (title) }
                p.soft {
                    "Mode native is the guest without protection, commit holds its output until the commit of its epoch, "
                    "speculative acknowledges its TCP ahead of it, aware is speculative with the agent in the guest."
                }
                @if let [run] = runs {
                    (of_run(run, ""))
                } @else {
                    @for (nth, (run, name)) in (1..).zip(runs.iter().zip(&names)) {
                        h2.run { (name) }
                        (of_run(run, &format!("-{nth}")))
                    }
                }
            }
        }
    };
    page.into_string()
}

/// What there is of a run; `nth` tells its anchors from those of others.
fn of_run(run: &Run, nth: &str) -> Markup {
    let when = run.machine.started.as_deref().unwrap_or("at an unknown time");
    let sections: Vec<&Section> = SECTIONS.iter().filter(|section| (section.is_of)(run)).collect();
    html! {
        p.soft { "Measured " (when) "." }
        @for warning in warnings(run) { p.warning { (warning) } }
        nav { @for section in &sections { a href={ "#" (section.anchor) (nth) } { (section.heading) } } }
        @for section in &sections {
            section id={ (section.anchor) (nth) } {
                h2 { (section.heading) }
                ((section.make)(run))
            }
        }
    }
}

/// What a reader has to know before all figures.
fn warnings(run: &Run) -> Vec<String> {
    let mut warnings = Vec::new();
    let inexact = run.streams().chain(run.transfers()).filter(|row| !row.stream_exact).count();
    if inexact > 0 {
        warnings
            .push(format!("In {inexact} row(s) the stream was not exact: this run is of a broken Holdfast."));
    }
    if run.configuration.quick == Some(true) {
        warnings.push("A quick run: few samples, for a first look.".to_owned());
    }
    if !run.refused.is_empty() {
        warnings.push(format!("Not everything could be measured: {}.", run.refused.join("; ")));
    }
    if run.unknown_rows() > 0 {
        warnings.push(format!(
            "{} row(s) are of a kind that this version of Holdfast does not know; they are left out.",
            run.unknown_rows()
        ));
    }
    warnings
}

/// A plot with a heading; the heading is also what is read out for it.
fn figure(heading: &str, plot: &Plot) -> Markup {
    html! {
        figure {
            h3 { (heading) }
            div role="img" aria-label=(heading) { (PreEscaped(plot.svg())) }
        }
    }
}

/// Of a section for which the run has nothing.
fn nothing(what: &str) -> Markup {
    html! { p.note { "This run has no " (what) "." } }
}
