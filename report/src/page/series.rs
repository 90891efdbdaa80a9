//! The lines of a plot: a mode with epochs of fixed length, or with adaptive ones.

use super::plot::{Colour, Plot};
use super::words;
use crate::run::Mode;
use crate::statistics::{median, quantile};
use maud::{Markup, html};
use std::collections::BTreeMap;

/// A mode, and whether its epochs were adaptive; mode native has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Series {
    pub(super) mode: Mode,
    pub(super) adaptive: bool,
}

impl Series {
    pub(super) fn of(mode: Mode, adaptive: bool) -> Self {
        Self { mode, adaptive: adaptive && mode != Mode::Native }
    }

    pub(super) fn name(self) -> String {
        words::mode(self.mode, self.adaptive)
    }

    /// Of bars, which cannot be dashed.
    pub(super) const fn opacity(self) -> f64 {
        if self.adaptive { 0.55 } else { 1.0 }
    }

    /// Draws the line through the centres of its points, each a dot at `x` of its place.
    pub(super) fn draw(self, line: &BTreeMap<u64, Point>, x: impl Fn(u64) -> f64, plot: &mut Plot) {
        let centres: Vec<(f64, f64)> =
            line.iter().filter_map(|(place, point)| Some((x(*place), point.centre()?))).collect();
        for centre in &centres {
            plot.dot(*centre, self.colour(), 4, 1.0);
        }
        plot.line(centres, self.colour(), self.adaptive);
    }

    /// Told apart by the colour-blind as well.
    pub(super) const fn colour(self) -> Colour {
        match self.mode {
            Mode::Native => Colour(0x7A, 0x80, 0x8C),
            Mode::Commit => Colour(0xD5, 0x5E, 0x00),
            Mode::Speculative => Colour(0x2E, 0x86, 0xC8),
            Mode::Aware => Colour(0x00, 0x9E, 0x73),
        }
    }
}

/// What was measured at one place of a line.
#[derive(Clone, Debug, Default)]
pub(super) struct Point {
    pub(super) samples: Vec<f64>,
    /// Of rows without samples.
    pub(super) figures: Vec<f64>,
}

impl Point {
    pub(super) fn centre(&self) -> Option<f64> {
        median(&self.samples).or_else(|| median(&self.figures)).filter(|value| value.is_finite())
    }

    /// Where the samples from one quantile to another lie.
    pub(super) fn spread(&self, from: f64, to: f64) -> Option<(f64, f64)> {
        Some((quantile(&self.samples, from)?, quantile(&self.samples, to)?))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = f64> + '_ {
        self.samples.iter().chain(&self.figures).copied()
    }
}

/// Lines, each from its least place on.
pub(super) type Lines = BTreeMap<Series, BTreeMap<u64, Point>>;

/// The places of all lines, in their order.
pub(super) fn places(lines: &Lines) -> Vec<u64> {
    let mut places: Vec<u64> = lines.values().flat_map(|line| line.keys().copied()).collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// A little aside, so that marks of several lines at one place do not cover each other; for logarithmic axes.
pub(super) fn aside(place: u64, at: usize, of: usize) -> f64 {
    let steps = at as f64 - (of as f64 - 1.0) / 2.0;
    place as f64 * 1.03_f64.powf(steps)
}

/// Which line is which.
pub(super) fn legend(series: impl IntoIterator<Item = Series>) -> Markup {
    let mut series: Vec<Series> = series.into_iter().collect();
    series.sort_unstable();
    series.dedup();
    html! {
        p.legend {
            @for series in series {
                span.key {
                    svg width="28" height="10" viewBox="0 0 28 10" xmlns="http://www.w3.org/2000/svg" {
                        line x1="1" y1="5" x2="27" y2="5" stroke-width="3" stroke=(series.colour().css())
                            stroke-dasharray=(if series.adaptive { "6 4" } else { "none" }) {}
                    }
                    (series.name())
                }
            }
        }
    }
}

/// Which bar is which.
pub(super) fn swatches(series: impl IntoIterator<Item = Series>) -> Markup {
    let mut series: Vec<Series> = series.into_iter().collect();
    series.sort_unstable();
    series.dedup();
    let names: Vec<String> = series.iter().map(|of| of.name()).collect();
    let keys = series.iter().zip(&names).map(|(of, name)| (name.as_str(), of.colour(), of.opacity()));
    boxes(&keys.collect::<Vec<_>>())
}

/// Which colour is which.
pub(super) fn colours(keys: &[(&str, Colour)]) -> Markup {
    boxes(&keys.iter().map(|(name, colour)| (*name, *colour, 1.0)).collect::<Vec<_>>())
}

fn boxes(keys: &[(&str, Colour, f64)]) -> Markup {
    html! {
        p.legend {
            @for (name, colour, opacity) in keys {
                span.key {
                    svg width="14" height="10" viewBox="0 0 14 10" xmlns="http://www.w3.org/2000/svg" {
                        rect x="0" y="0" width="14" height="10" fill=(colour.css()) opacity=(opacity) {}
                    }
                    (name)
                }
            }
        }
    }
}
