//! Frames a second through the rings: by their size and what is done with them, and by queues.

use super::figure;
use super::growth::{self, Places, Scale};
use super::plot::{Axis, Colour, Plot};
use super::series::{self, colours};
use super::words;
use crate::run::{Mode, Pps, Run};
use crate::statistics::{median, quantile};
use maud::{Markup, html};
use std::collections::BTreeMap;

const SIZE: (u32, u32) = (1060, 340);
/// Of a group's place, filled with bars.
const FILLED: f64 = 0.84;
const BY_QUEUES: Places = ("queue pairs of a port", |queues| queues.to_string());

/// A backend, and what it does with frames: others than Holdfast first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    mode: Option<Mode>,
    name: String,
}

impl Series {
    fn of(row: &Pps) -> Self {
        let mode = Mode::ALL.into_iter().find(|mode| row.backend == "holdfast" && mode.name() == row.mode);
        let name = if mode.is_some() { row.mode.clone() } else { format!("{} {}", row.backend, row.mode) };
        Self { mode, name }
    }

    fn colour(&self) -> Colour {
        self.mode.map_or(Colour(0xB0, 0x5C, 0x96), |mode| series::Series::of(mode, false).colour())
    }
}

/// What is measured with each backend: ring, queue pairs, bytes of a frame.
type Case = (String, u64, u64);
/// Of each case the rates of each backend, a round each.
type Rates = BTreeMap<Case, BTreeMap<Series, Vec<f64>>>;

fn rates(run: &Run) -> Rates {
    let mut rates = Rates::new();
    for row in run.pps() {
        let case = (row.ring.clone(), row.queue_pairs(), row.frame_bytes);
        rates.entry(case).or_default().entry(Series::of(row)).or_default().push(row.mpps);
    }
    rates
}

pub(super) fn section(run: &Run) -> Markup {
    let rates = rates(run);
    let mut all: Vec<&Series> = rates.values().flat_map(BTreeMap::keys).collect();
    all.sort_unstable();
    all.dedup();
    let keys: Vec<(&str, Colour)> = all.iter().map(|of| (of.name.as_str(), of.colour())).collect();
    let mut plots: Vec<(&str, u64)> =
        rates.keys().map(|(ring, queues, _)| (ring.as_str(), *queues)).collect();
    plots.dedup();
    html! {
        p { "Through two ports of one backend, both directions together, at which nothing was lost. Bars are medians over the "
            "rounds, the pale lines from the least to the greatest. testpmd is DPDK's own vhost, on the same cores." }
        (colours(&keys))
        @for (ring, queues) in plots {
            (figure(&heading(ring, queues), &plot(&rates, ring, queues)))
        }
        (by_queues(run))
        (table(&rates))
    }
}

fn heading(ring: &str, queues: u64) -> String {
    match queues {
        1 => format!("{ring} rings"),
        pairs => format!("{ring} rings, {pairs} queue pairs"),
    }
}

fn plot(rates: &Rates, ring: &str, queues: u64) -> Plot {
    let cases: Vec<(u64, &BTreeMap<Series, Vec<f64>>)> = rates
        .iter()
        .filter(|((of, pairs, _), _)| (of.as_str(), *pairs) == (ring, queues))
        .map(|((.., bytes), found)| (*bytes, found))
        .collect();
    let names: Vec<String> = cases.iter().map(|(bytes, _)| format!("{bytes} bytes")).collect();
    let values = cases.iter().flat_map(|(_, found)| found.values().flatten().map(|mpps| mpps * 1.06));
    let mut plot = Plot::new(Axis::names("", &names), Axis::from_zero("Mpps", values), SIZE);
    let widest = cases.iter().map(|(_, found)| found.len()).max().unwrap_or(1);
    let width = FILLED / widest as f64;
    for (group, (_, found)) in cases.iter().enumerate() {
        for (at, (series, rounds)) in found.iter().enumerate() {
            let Some(mpps) = median(rounds) else { continue };
            let left = group as f64 - FILLED / 2.0 + width * at as f64;
            let right = left + width * 0.9;
            let middle = f64::midpoint(left, right);
            plot.bar((left, 0.0), (right, mpps), series.colour(), 1.0);
            let (least, greatest) = spread(rounds).unwrap_or((mpps, mpps));
            if least < greatest {
                plot.whisker((middle, least), (middle, greatest), super::plot::INK);
            }
            plot.text_above((middle, greatest), words::number(mpps));
        }
    }
    plot
}

fn spread(rounds: &[f64]) -> Option<(f64, f64)> {
    quantile(rounds, 0.0).zip(quantile(rounds, 1.0))
}

/// What more queues bring, where there were more.
fn by_queues(run: &Run) -> Markup {
    let mut cases: Vec<(&str, u64)> = run.pps().map(|row| (row.ring.as_str(), row.frame_bytes)).collect();
    cases.sort_unstable();
    cases.dedup();
    let grown = cases.into_iter().filter_map(|(ring, bytes)| {
        let rows = run.pps().filter(|row| (row.ring.as_str(), row.frame_bytes) == (ring, bytes));
        let figures = rows.map(|row| (Series::of(row), row.queue_pairs(), row.mpps));
        let lines = growth::lines(figures, |_, series| (series.name.clone(), series.colour()));
        growth::grow(&lines).then(|| (format!("{ring} rings, frames of {bytes} bytes, by queues"), lines))
    });
    let grown: Vec<(String, Vec<growth::Line>)> = grown.collect();
    let plots: Vec<(&str, Scale, &[growth::Line])> = grown
        .iter()
        .map(|(heading, lines)| (heading.as_str(), Scale::FromZero("Mpps"), &lines[..]))
        .collect();
    growth::plots(BY_QUEUES, &plots)
}

fn table(rates: &Rates) -> Markup {
    let beside = |found: &BTreeMap<Series, Vec<f64>>| {
        let reference = found.iter().find(|(series, _)| series.mode.is_none());
        reference.and_then(|(_, rounds)| median(rounds)).filter(|mpps| *mpps > 0.0)
    };
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "rings" } th.figure { "queue pairs" } th.figure { "frame" } th { "backend" } th.figure { "Mpps" }
                        th.figure { "single rounds" } th.figure { "Gbit/s" } th.figure { "ns a frame" } th.figure { "to testpmd" }
                    }
                }
                tbody {
                    @for ((ring, queues, bytes), found) in rates {
                        @for (series, rounds) in found {
                            @let mpps = median(rounds);
                            tr {
                                td { (ring) } td.figure { (queues) } td.figure { (bytes) " B" } td { (series.name) }
                                td.figure { (words::number_or_dash(mpps)) }
                                td.figure { (spread(rounds).filter(|_| rounds.len() > 1).map_or_else(
                                    || "-".into(),
                                    |(least, most)| format!("{} to {}", words::number(least), words::number(most)),
                                )) }
                                td.figure { (words::number_or_dash(mpps.map(|mpps| gbit_s(mpps, *bytes)))) }
                                td.figure { (words::number_or_dash(mpps.filter(|mpps| *mpps > 0.0).map(|mpps| 1000.0 / mpps))) }
                                td.figure { (words::number_or_dash(mpps.zip(beside(found)).map(|(mpps, of)| mpps / of))) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Bits of the frames themselves, without preambles and gaps.
fn gbit_s(mpps: f64, frame_bytes: u64) -> f64 {
    mpps * frame_bytes as f64 * 8.0 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(backend: &str, mode: &str, queues: Option<u64>, mpps: f64) -> Pps {
        let (backend, mode, ring) = (backend.into(), mode.into(), "split".into());
        Pps { backend, mode, ring, frame_bytes: 64, queues, mpps }
    }

    #[test]
    fn rounds_of_one_backend_are_told_from_others() {
        let rows = [
            row("holdfast", "commit", None, 4.0),
            row("testpmd", "io", Some(1), 14.0),
            row("holdfast", "commit", Some(1), 6.0),
            row("holdfast", "commit", Some(2), 7.0),
        ];
        let run = Run { rows: rows.into_iter().map(crate::run::Row::Pps).collect(), ..Run::default() };
        let rates = rates(&run);
        let one = &rates[&("split".to_owned(), 1, 64)];
        let told: Vec<_> =
            one.iter().map(|(series, rounds)| (series.name.as_str(), median(rounds))).collect();
        assert_eq!(told, [("testpmd io", Some(14.0)), ("commit", Some(5.0))]);
        assert_eq!(rates.len(), 2);
        let shown = by_queues(&run).into_string();
        assert_eq!(shown.matches("<svg").count(), 1);
    }
}
