//! Plots as SVG: axes, and marks between them.
//!
//! What is black on white is drawn in one colour, [`INK`], which the page's style turns for dark schemes.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

/// As in the page's style.
pub(super) const INK: Colour = Colour(0x1B, 0x1B, 0x1F);
const FONT: &str = "sans-serif";
const SMALL: u32 = 15;
/// Pixels of the narrowest plot between its axes.
const LEAST_WIDTH: f64 = 430.0;

/// Red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Colour(pub(super) u8, pub(super) u8, pub(super) u8);

impl Colour {
    /// As CSS.
    pub(super) fn css(self) -> String {
        format!("#{:02X}{:02X}{:02X}", self.0, self.1, self.2)
    }

    fn mix(self, opacity: f64) -> RGBAColor {
        RGBColor(self.0, self.1, self.2).mix(opacity)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Scale {
    Linear,
    Log,
    /// Of a share below 1: as many nines as it has.
    Nines,
}

/// One axis.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    label: String,
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
    /// Ticks are names of places, not values.
    named: bool,
}

impl Axis {
    /// From 0 to a little above the greatest of these.
    pub(super) fn from_zero(label: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let most = values.into_iter().filter(|value| value.is_finite()).fold(0.0, f64::max);
        let most = if most > 0.0 { most * 1.05 } else { 1.0 };
        let step = round_step(most / 5.0);
        let ticks = (0_i32..)
            .map(|count| f64::from(count) * step)
            .take_while(|value| *value <= most * 1.001)
            .map(|value| (value, plain(value)))
            .collect();
        Self { label: label.into(), scale: Scale::Linear, low: 0.0, high: most, ticks, named: false }
    }

    /// Logarithmic, around all of these that are above 0.
    pub(super) fn log(label: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = bounds(values);
        let (low, high) = (low / 1.25, high * 1.25);
        let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
        let steps: &[f64] = match (high / low).log10() {
            wide if wide > 3.0 => &[1.0],
            narrow if narrow < 1.0 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
            _ => &[1.0, 2.0, 5.0],
        };
        let ticks = decades
            .flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)))
            .filter(|value| (low..=high).contains(value))
            .map(|value| (value, plain(value)))
            .collect();
        Self { label: label.into(), scale: Scale::Log, low, high, ticks, named: false }
    }

    /// Logarithmic, with ticks at these values alone, from the least to the greatest. Where they lie too close
    /// for their names, some names are left out: there is room for those of a plot of half the page's width.
    pub(super) fn log_at(label: &str, ticks: Vec<(f64, String)>) -> Self {
        let (low, high) = bounds(ticks.iter().map(|(value, _)| *value));
        let mut axis = Self {
            label: label.into(),
            scale: Scale::Log,
            low: low / 1.3,
            high: high * 1.3,
            ticks: Vec::new(),
            named: false,
        };
        let half = |name: &str| (4 + 4 * name.chars().count()) as f64;
        let mut free_from = f64::NEG_INFINITY;
        for (value, name) in ticks {
            let at = axis.place(value) * LEAST_WIDTH;
            if at - half(&name) >= free_from {
                free_from = at + half(&name);
                axis.ticks.push((value, name));
            }
        }
        axis
    }

    /// Of shares from 0 to one with so many nines.
    pub(super) fn nines(label: &str, nines: f64) -> Self {
        let ticks = [
            (0.0, "min"),
            (0.5, "50 %"),
            (0.9, "90 %"),
            (0.99, "99 %"),
            (0.999, "99.9 %"),
            (0.9999, "99.99 %"),
            (0.99999, "99.999 %"),
        ];
        let high = 1.0 - 10_f64.powf(-nines.clamp(1.0, 6.0));
        // A long axis has half of it so close to its beginning that the names would touch.
        let shown = |at: f64| at <= high && (at != 0.5 || nines < 4.5);
        let ticks = ticks.into_iter().filter(|(at, _)| shown(*at));
        let ticks = ticks.map(|(at, name)| (at, name.to_owned())).collect();
        Self { label: label.into(), scale: Scale::Nines, low: 0.0, high, ticks, named: false }
    }

    /// Places with names, at 0, 1, 2 and so on.
    pub(super) fn names(label: &str, names: &[String]) -> Self {
        let ticks = names.iter().enumerate().map(|(at, name)| (at as f64, name.clone())).collect();
        let high = names.len().max(1) as f64 - 0.5;
        Self { label: label.into(), scale: Scale::Linear, low: -0.5, high, ticks, named: true }
    }

    /// Turned around: 0 is on top.
    pub(super) fn downwards(mut self) -> Self {
        std::mem::swap(&mut self.low, &mut self.high);
        self
    }

    /// Where a value lies, 0 to 1 within the axis.
    fn place(&self, value: f64) -> f64 {
        let scaled = |value: f64| match self.scale {
            Scale::Linear => value,
            Scale::Log => value.max(f64::MIN_POSITIVE).log10(),
            Scale::Nines => -(1.0 - value.min(1.0 - 1e-9)).log10(),
        };
        (scaled(value) - scaled(self.low)) / (scaled(self.high) - scaled(self.low))
    }

    /// Pixels that the tick names need beside the axis.
    fn width(&self) -> u32 {
        let longest = self.ticks.iter().map(|(_, name)| name.chars().count()).max().unwrap_or(0);
        14 + 7 * longest as u32 + if self.label.is_empty() { 0 } else { 18 }
    }
}

/// An axis as plotters wants it: whole numbers of pixels, and the ticks that it is given.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let place = self.place(*value).clamp(-0.02, 1.02);
        from + (place * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // There are no light lines between the ticks.
        let light = hint.weight().allow_light_points();
        self.ticks.iter().filter(|_| !light).map(|(value, _)| *value).collect()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let name = self.ticks.iter().find(|(tick, _)| tick == value);
        name.map_or_else(String::new, |(_, name)| name.clone())
    }
}

/// What is drawn between the axes.
#[derive(Clone, Debug)]
enum Mark {
    Line {
        points: Vec<(f64, f64)>,
        colour: Colour,
        dashed: bool,
        width: u32,
        opacity: f64,
    },
    Dot {
        at: (f64, f64),
        colour: Colour,
        radius: u32,
        opacity: f64,
    },
    Bar {
        from: (f64, f64),
        to: (f64, f64),
        colour: Colour,
        opacity: f64,
    },
    /// To the right of its point, or else above it.
    Text {
        at: (f64, f64),
        text: String,
        beside: bool,
    },
}

/// One plot.
#[derive(Clone, Debug)]
pub(super) struct Plot {
    x: Axis,
    y: Axis,
    size: (u32, u32),
    marks: Vec<Mark>,
}

impl Plot {
    /// An empty one, of a width and height in pixels.
    pub(super) fn new(x: Axis, y: Axis, size: (u32, u32)) -> Self {
        Self { x, y, size, marks: Vec::new() }
    }

    /// What has no place is left out.
    fn add(&mut self, mut mark: Mark) {
        let placed = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
        let drawn = match &mut mark {
            Mark::Line { points, .. } => {
                points.retain(placed);
                !points.is_empty()
            }
            Mark::Dot { at, .. } | Mark::Text { at, .. } => placed(at),
            Mark::Bar { from, to, .. } => placed(from) && placed(to),
        };
        if drawn {
            self.marks.push(mark);
        }
    }

    /// Through these points.
    pub(super) fn line(&mut self, points: Vec<(f64, f64)>, colour: Colour, dashed: bool) {
        self.add(Mark::Line { points, colour, dashed, width: 2, opacity: 1.0 });
    }

    /// A broad and pale one, for a spread.
    pub(super) fn whisker(&mut self, from: (f64, f64), to: (f64, f64), colour: Colour) {
        self.add(Mark::Line { points: vec![from, to], colour, dashed: false, width: 4, opacity: 0.4 });
    }

    /// From one end of the plot to the other, for an aim.
    pub(super) fn level(&mut self, y: f64) {
        let points = vec![(self.x.low, y), (self.x.high, y)];
        self.add(Mark::Line { points, colour: INK, dashed: true, width: 1, opacity: 0.7 });
    }

    /// A filled circle.
    pub(super) fn dot(&mut self, at: (f64, f64), colour: Colour, radius: u32, opacity: f64) {
        self.add(Mark::Dot { at, colour, radius, opacity });
    }

    /// A filled rectangle.
    pub(super) fn bar(&mut self, from: (f64, f64), to: (f64, f64), colour: Colour, opacity: f64) {
        self.add(Mark::Bar { from, to, colour, opacity });
    }

    /// Above a point.
    pub(super) fn text_above(&mut self, at: (f64, f64), text: String) {
        self.add(Mark::Text { at, text, beside: false });
    }

    /// Beside a point, to its right.
    pub(super) fn text_beside(&mut self, at: (f64, f64), text: String) {
        self.add(Mark::Text { at, text, beside: true });
    }

    /// As SVG.
    pub(super) fn svg(&self) -> String {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, self.size).into_drawing_area();
            self.draw(&root).expect("a string takes all text");
            root.present().expect("a string takes all text");
        }
        svg
    }

    fn draw(
        &self,
        root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    ) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let bottom = if self.x.label.is_empty() { 24 } else { 44 };
        let mut chart = ChartBuilder::on(root)
            .margin_top(12)
            .margin_right(20)
            .x_label_area_size(bottom)
            .y_label_area_size(self.y.width())
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        let mut mesh = chart.configure_mesh();
        if self.x.named {
            mesh.disable_x_mesh();
        }
        if self.y.named {
            mesh.disable_y_mesh();
        }
        mesh.x_labels(self.x.ticks.len().max(1))
            .y_labels(self.y.ticks.len().max(1))
            .x_desc(self.x.label.as_str())
            .y_desc(self.y.label.as_str())
            .axis_style(INK.mix(0.6))
            .bold_line_style(INK.mix(0.12))
            .light_line_style(TRANSPARENT)
            .label_style((FONT, SMALL).into_font().color(&INK.mix(1.0)))
            .axis_desc_style((FONT, SMALL).into_font().color(&INK.mix(1.0)))
            .draw()?;
        for mark in &self.marks {
            match mark {
                Mark::Line { points, colour, dashed, width, opacity } => {
                    let points = points.iter().copied();
                    let style = colour.mix(*opacity).stroke_width(*width);
                    if *dashed {
                        chart.draw_series(DashedLineSeries::new(points, 6, 4, style))?;
                    } else {
                        chart.draw_series(LineSeries::new(points, style))?;
                    }
                }
                Mark::Dot { at, colour, radius, opacity } => {
                    chart.draw_series([Circle::new(*at, *radius, colour.mix(*opacity).filled())])?;
                }
                Mark::Bar { from, to, colour, opacity } => {
                    chart.draw_series([Rectangle::new([*from, *to], colour.mix(*opacity).filled())])?;
                }
                Mark::Text { at, text, beside } => {
                    let (anchor, gap) = match beside {
                        true => (Pos::new(HPos::Left, VPos::Center), (5, 0)),
                        false => (Pos::new(HPos::Center, VPos::Bottom), (0, -2)),
                    };
                    let style = (FONT, SMALL - 1).into_font().color(&INK.mix(1.0)).pos(anchor);
                    let label = EmptyElement::at(*at) + Text::new(text.clone(), gap, style);
                    chart.draw_series([label])?;
                }
            }
        }
        Ok(())
    }
}

/// The least and the greatest above 0; 1 and 10 when there are none.
fn bounds(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .into_iter()
        .filter(|value| value.is_finite() && *value > 0.0)
        .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    if low <= high { (low, high) } else { (1.0, 10.0) }
}

/// 1, 2 or 5 times a power of ten, near this.
fn round_step(about: f64) -> f64 {
    let decade = 10_f64.powf(about.log10().floor());
    let times = about / decade;
    decade
        * if times < 1.5 {
            1.0
        } else if times < 3.5 {
            2.0
        } else if times < 7.5 {
            5.0
        } else {
            10.0
        }
}

/// A tick's value without zeros that it does not need.
fn plain(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_axis() {
        let names = |axis: &Axis| axis.ticks.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&Axis::from_zero("", [9.0])), ["0", "2", "4", "6", "8"]);
        assert_eq!(names(&Axis::log("", [0.9, 90.0])), ["1", "2", "5", "10", "20", "50", "100"]);
        assert_eq!(names(&Axis::log("", [1.0, 20_000.0])).len(), 5);
        assert_eq!(names(&Axis::nines("", 3.2)), ["min", "50 %", "90 %", "99 %", "99.9 %"]);
        assert_eq!(names(&Axis::from_zero("", [f64::NAN])).first().map(String::as_str), Some("0"));
    }

    #[test]
    fn names_of_ticks_do_not_run_into_each_other() {
        let names = |values: &[f64]| {
            let ticks = values.iter().map(|value| (*value, plain(*value))).collect();
            let axis = Axis::log_at("", ticks);
            axis.ticks.into_iter().map(|(_, name)| name).collect::<Vec<_>>()
        };
        assert_eq!(names(&[10.0, 25.0, 50.0, 100.0, 200.0]), ["10", "25", "50", "100", "200"]);
        assert_eq!(names(&[100.0, 105.0, 5000.0, 50_000.0, 51_000.0]), ["100", "5000", "50000"]);
    }

    #[test]
    fn values_lie_where_their_scale_puts_them() {
        let log = Axis::log_at("", vec![(1.0, "1".into()), (100.0, "100".into())]);
        assert!((log.place(10.0) - 0.5).abs() < 1e-9);
        let nines = Axis::nines("", 2.0);
        assert!((nines.place(0.9) - 0.5).abs() < 1e-9);
        let named = |nines, share| Axis::nines("", nines).ticks.iter().any(|(at, _)| *at == share);
        assert!(named(2.0, 0.5) && !named(5.0, 0.5) && named(5.0, 0.9), "names keep apart");
        assert_eq!(Axis::from_zero("", [1.0]).downwards().map(&0.0, (0, 100)), 100);
    }

    #[test]
    fn a_plot_without_marks_is_whole() {
        let svg = Plot::new(Axis::log("x & y", []), Axis::names("", &["<one>".into()]), (300, 200)).svg();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("x &amp; y") && svg.contains("&lt;one&gt;") && svg.contains(&INK.css()));
    }

    #[test]
    fn what_has_no_place_is_not_drawn_at_another() {
        let empty = || Plot::new(Axis::from_zero("x", [1.0]), Axis::log("y", [1.0, 10.0]), (300, 200));
        let (none, mut plot) = (empty().svg(), empty());
        plot.dot((0.5, f64::NAN), INK, 3, 1.0);
        plot.bar((0.5, 0.0), (f64::INFINITY, 1.0), INK, 1.0);
        plot.text_above((f64::NAN, 1.0), "nowhere".into());
        plot.line(vec![(f64::NAN, 1.0)], INK, false);
        assert_eq!(plot.svg(), none);
        plot.line(vec![(0.1, 2.0), (0.2, f64::NAN), (0.3, 3.0)], INK, true);
        assert_ne!(plot.svg(), none);
    }
}
