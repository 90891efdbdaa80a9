//! Plots of how a figure grows: a line for each of what is told apart, a dot a place, the axis of places
//! logarithmic.

use super::plot::{Axis, Colour, Plot};
use super::series::colours;
use super::{HALF, figure};
use crate::statistics::median;
use maud::{Markup, html};
use std::collections::BTreeMap;

/// Told apart by the colour-blind as well.
pub(super) const PALETTE: [Colour; 7] = [
    Colour(0x2E, 0x86, 0xC8),
    Colour(0xD5, 0x5E, 0x00),
    Colour(0x00, 0x9E, 0x73),
    Colour(0xB0, 0x5C, 0x96),
    Colour(0xB8, 0x86, 0x0B),
    Colour(0x7A, 0x80, 0x8C),
    Colour(0x5B, 0x4B, 0xB5),
];

/// The colour of the one at this place of a list.
pub(super) const fn colour(at: usize) -> Colour {
    PALETTE[at % PALETTE.len()]
}

/// One line of a plot.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) colour: Colour,
    pub(super) points: Vec<(u64, f64)>,
}

/// A line for each key, in their order, through the medians of what was measured at each place. How one
/// looks depends on its number and its key.
pub(super) fn lines<K: Ord>(
    figures: impl IntoIterator<Item = (K, u64, f64)>,
    look: impl Fn(usize, &K) -> (String, Colour),
) -> Vec<Line> {
    let mut found: BTreeMap<K, BTreeMap<u64, Vec<f64>>> = BTreeMap::new();
    for (key, place, figure) in figures {
        found.entry(key).or_default().entry(place).or_default().push(figure);
    }
    let line = |(nth, (key, places)): (usize, (K, BTreeMap<u64, Vec<f64>>))| {
        let (name, colour) = look(nth, &key);
        let points = places.into_iter().filter_map(|(at, figures)| Some((at, median(&figures)?))).collect();
        Line { name, colour, points }
    };
    found.into_iter().enumerate().map(line).collect()
}

/// Whether any of them has more than one place: else there is nothing that grows.
pub(super) fn grow(lines: &[Line]) -> bool {
    lines.iter().any(|line| line.points.len() > 1)
}

/// Which line is which.
pub(super) fn legend(lines: &[Line]) -> Markup {
    let keys = lines.iter().map(|line| (line.name.as_str(), line.colour));
    colours(&keys.collect::<Vec<_>>())
}

/// What the places are, and how one is said.
pub(super) type Places = (&'static str, fn(u64) -> String);

/// Plots side by side, each of its own heading, axis and lines, over the same places.
pub(super) fn plots(places: Places, plots: &[(&str, Scale, &[Line])]) -> Markup {
    html! {
        div.plots {
            @for (heading, scale, lines) in plots {
                (one(places, heading, *scale, lines))
            }
        }
    }
}

/// A single one.
pub(super) fn one(places: Places, heading: &str, scale: Scale, lines: &[Line]) -> Markup {
    figure(heading, &plot(places, scale, lines))
}

/// The axis of figures.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scale {
    /// From 0 on, with this label.
    FromZero(&'static str),
    /// Logarithmic.
    Log(&'static str),
}

fn plot((label, name): Places, scale: Scale, lines: &[Line]) -> Plot {
    let mut ticks: Vec<u64> = lines.iter().flat_map(|line| line.points.iter().map(|(at, _)| *at)).collect();
    ticks.sort_unstable();
    ticks.dedup();
    let ticks = ticks.into_iter().map(|at| (at as f64, name(at))).collect();
    let figures = lines.iter().flat_map(|line| line.points.iter().map(|(_, figure)| *figure));
    let y = match scale {
        Scale::FromZero(label) => Axis::from_zero(label, figures),
        Scale::Log(label) => Axis::log(label, figures),
    };
    let mut plot = Plot::new(Axis::log_at(label, ticks), y, HALF);
    for line in lines {
        let points: Vec<(f64, f64)> = line.points.iter().map(|(at, figure)| (*at as f64, *figure)).collect();
        for point in &points {
            plot.dot(*point, line.colour, 4, 1.0);
        }
        plot.line(points, line.colour, false);
    }
    plot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_through_the_medians_of_its_places() {
        let figures = [(2, 200, 5.0), (1, 200, 3.0), (2, 100, 4.0), (2, 200, 7.0), (2, 200, 60.0)];
        let found = lines(figures, |nth, key| (format!("the {key}"), colour(nth)));
        let line = |name: &str, nth, points: &[(u64, f64)]| Line {
            name: name.into(),
            colour: colour(nth),
            points: points.to_vec(),
        };
        assert_eq!(found, [line("the 1", 0, &[(200, 3.0)]), line("the 2", 1, &[(100, 4.0), (200, 7.0)])]);
        assert!(grow(&found) && !grow(&found[..1]));
    }
}
