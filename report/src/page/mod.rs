//! A run as one page: HTML with its style and its plots inside, nothing from elsewhere, no script.
//!
//! A section a file. Each says in one sentence what its plot shows and how to read it; a section for which a
//! run has nothing says so.

mod applications;
mod clock;
mod completion;
mod dirty;
mod headlines;
mod latency;
mod machine;
mod plot;
mod published;
mod series;
mod style;
mod throughput;
mod timeline;
pub(crate) mod words;

use crate::run::Run;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use plot::Plot;

/// Plots of which two stand side by side.
const HALF: (u32, u32) = (520, 320);

/// One section: its anchor, its heading, and what makes it.
struct Section {
    anchor: &'static str,
    heading: &'static str,
    make: fn(&Run) -> Markup,
}

const SECTIONS: [Section; 10] = [
    Section { anchor: "headlines", heading: "Headline figures", make: headlines::section },
    Section { anchor: "machine", heading: "Machine and configuration", make: machine::section },
    Section { anchor: "throughput", heading: "Throughput by epoch", make: throughput::section },
    Section { anchor: "completion", heading: "Completion time by size", make: completion::section },
    Section { anchor: "latency", heading: "Latency of requests", make: latency::section },
    Section { anchor: "applications", heading: "Applications", make: applications::section },
    Section { anchor: "timeline", heading: "Epochs on a time line", make: timeline::section },
    Section { anchor: "dirty", heading: "Dirty pages of an epoch", make: dirty::section },
    Section { anchor: "clock", heading: "Lag of the guest's clock", make: clock::section },
    Section {
        anchor: "published",
        heading: "Side by side with what others published",
        make: published::section,
    },
];

/// The page of a run.
pub fn render(run: &Run) -> String {
    let title = format!("Holdfast: bench {}", run.bench);
    let when = run.machine.started.as_deref().unwrap_or("at an unknown time");
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
                    "Measured " (when) ". Mode native is the guest without protection, commit holds its output until "
                    "the commit of its epoch, speculative acknowledges its TCP ahead of it, aware is speculative "
                    "with the agent in the guest."
                }
                @for warning in warnings(run) { p.warning { (warning) } }
                nav { @for section in &SECTIONS { a href={ "#" (section.anchor) } { (section.heading) } } }
                @for section in &SECTIONS {
                    section id=(section.anchor) {
                        h2 { (section.heading) }
                        ((section.make)(run))
                    }
                }
            }
        }
    };
    page.into_string()
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
