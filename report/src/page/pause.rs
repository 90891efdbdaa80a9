//! How long the guest stands still for a checkpoint: by the pages that it wrote, by its size, and for what.

use super::figure;
use super::growth::{self, Places, Scale};
use super::plot::{Axis, Colour, INK, Plot};
use super::series::colours;
use super::words;
use crate::run::{Pause, Run};
use crate::statistics::median;
use maud::{Markup, html};

const WIDTH: u32 = 1060;
const US_A_MS: f64 = 1000.0;
const BY_PAGES: Places = ("pages written in an epoch", words::count);
const BY_GUEST: Places = ("guest, MiB", |mib| mib.to_string());

/// A part of the pause, and its median of one row.
type Part = (&'static str, Colour, fn(&Pause) -> Option<f64>);

const STOP: Part = ("stop", Colour(0xE6, 0x9F, 0x00), |row| row.pause_stop_p50_us);
const CUT: Part = ("cut of the output", Colour(0xB0, 0x5C, 0x96), |row| row.pause_cut_p50_us);
const SAVE: Part = ("devices saved", Colour(0x2E, 0x86, 0xC8), |row| row.pause_save_p50_us);
const CONT: Part = ("cont", Colour(0x00, 0x9E, 0x73), |row| row.pause_cont_p50_us);
const SCAN: Part = ("scans, beside the save", Colour(0x5B, 0x4B, 0xB5), |row| row.pause_scan_p50_us);
const COPY: Part = ("copies, beside the save", Colour(0xD5, 0x5E, 0x00), |row| row.pause_copy_p50_us);
/// What the pause has beyond its parts.
const REST: (&str, Colour) = ("what is left of the pause", Colour(0xB4, 0xB8, 0xC2));

pub(super) fn section(run: &Run) -> Markup {
    let by_pages = |figure: fn(&Pause) -> f64| {
        let figures = run.pauses().map(|row| (row.guest_mib, row.dirty_pages, figure(row) / US_A_MS));
        growth::lines(figures, |nth, mib| (format!("{mib} MiB"), growth::colour(nth)))
    };
    let by_guest = |figure: fn(&Pause) -> f64| {
        let figures = run.pauses().map(|row| (row.dirty_pages, row.guest_mib, figure(row) / US_A_MS));
        growth::lines(figures, |nth, pages| (format!("{} pages", words::count(*pages)), growth::colour(nth)))
    };
    let (p50, p99) = (by_pages(|row| row.pause_p50_us), by_pages(|row| row.pause_p99_us));
    let (p50_of, p99_of) = (by_guest(|row| row.pause_p50_us), by_guest(|row| row.pause_p99_us));
    html! {
        p { "From the stop of the guest to its going on, on the clock of its host: the median epoch, and the one that one in "
            "a hundred exceeds. Medians over the rounds." }
        (growth::legend(&p50))
        (growth::plots(BY_PAGES, &[
            ("median pause by dirty pages", Scale::FromZero("pause p50, ms"), &p50),
            ("99th percentile by dirty pages", Scale::FromZero("pause p99, ms"), &p99),
        ]))
        @if growth::grow(&p50_of) {
            (growth::legend(&p50_of))
            (growth::plots(BY_GUEST, &[
                ("median pause by the guest's size", Scale::FromZero("pause p50, ms"), &p50_of),
                ("99th percentile by the guest's size", Scale::FromZero("pause p99, ms"), &p99_of),
            ]))
        }
        (parts(&kinds(run)))
        (table(&kinds(run)))
    }
}

/// Rows of one set and guest, in that order: rounds of the same.
fn kinds(run: &Run) -> Vec<Vec<&Pause>> {
    let mut rows: Vec<&Pause> = run.pauses().collect();
    rows.sort_by_key(|row| (row.dirty_pages, row.guest_mib));
    let same = |one: &&Pause, other: &&Pause| {
        (one.dirty_pages, one.guest_mib) == (other.dirty_pages, other.guest_mib)
    };
    rows.chunk_by(same).map(<[&Pause]>::to_vec).collect()
}

/// The median over the rounds; none when no row has it.
fn of(rows: &[&Pause], figure: impl Fn(&Pause) -> Option<f64>) -> Option<f64> {
    median(&rows.iter().filter_map(|row| figure(row)).collect::<Vec<_>>())
}

fn ms(rows: &[&Pause], figure: impl Fn(&Pause) -> Option<f64>) -> Option<f64> {
    Some(of(rows, figure)? / US_A_MS)
}

fn parts(kinds: &[Vec<&Pause>]) -> Markup {
    let of_parts: Vec<&Vec<&Pause>> = kinds.iter().filter(|rows| of(rows, SAVE.2).is_some()).collect();
    if of_parts.is_empty() {
        return html! {};
    }
    let keys = [STOP, CUT, SAVE].map(|part| (part.0, part.1));
    let more = [REST, (CONT.0, CONT.1), (SCAN.0, SCAN.1), (COPY.0, COPY.1)];
    html! {
        p { "Of what the median pause is made. The upper bar has what comes one after the other; the lower one what another "
            "thread does from the cut on, while the devices are saved. Each part is the median of its own, so that "
            "they need not add up: the line is the pause." }
        (colours(&[&keys[..], &more[..]].concat()))
        (figure("parts of the median pause", &stacks(&of_parts)))
    }
}

fn stacks(kinds: &[&Vec<&Pause>]) -> Plot {
    let name = |rows: &&Vec<&Pause>| {
        let first = rows[0];
        format!("{} pages, {} MiB", words::count(first.dirty_pages), first.guest_mib)
    };
    let names: Vec<String> = kinds.iter().map(name).collect();
    let bars: Vec<Bars> = kinds.iter().map(|rows| Bars::of(rows)).collect();
    let ends = bars.iter().map(|bars| bars.end() * 1.12);
    let size = (WIDTH, 70 + 30 * kinds.len() as u32);
    let mut plot =
        Plot::new(Axis::from_zero("ms since the stop", ends), Axis::names("", &names).downwards(), size);
    for (at, bars) in bars.iter().enumerate() {
        let y = at as f64;
        for (from, to, colour) in &bars.after_another {
            plot.bar((*from, y - 0.36), (*to, y + 0.08), *colour, 1.0);
        }
        for (from, to, colour) in &bars.beside {
            plot.bar((*from, y + 0.12), (*to, y + 0.36), *colour, 1.0);
        }
        plot.line(vec![(bars.pause, y - 0.42), (bars.pause, y + 0.42)], INK, false);
        plot.text_beside((bars.end(), y), format!("{} ms", words::number(bars.pause)));
    }
    plot
}

/// The bars of one guest and set, each from, to, and its colour; in milliseconds.
struct Bars {
    pause: f64,
    after_another: Vec<(f64, f64, Colour)>,
    beside: Vec<(f64, f64, Colour)>,
}

impl Bars {
    fn of(rows: &[&Pause]) -> Self {
        let part = |part: Part| (ms(rows, part.2).unwrap_or(0.0), part.1);
        let pause = ms(rows, |row| Some(row.pause_p50_us)).unwrap_or(0.0);
        let told: f64 = [STOP, CUT, SAVE, CONT].map(|of| part(of).0).iter().sum();
        let rest = ((pause - told).max(0.0), REST.1);
        let stopped = part(STOP).0 + part(CUT).0;
        Self {
            pause,
            after_another: stacked(0.0, &[part(STOP), part(CUT), part(SAVE), rest, part(CONT)]),
            beside: stacked(stopped, &[part(SCAN), part(COPY)]),
        }
    }

    /// Where the last of them ends.
    fn end(&self) -> f64 {
        self.after_another.iter().chain(&self.beside).map(|bar| bar.1).fold(self.pause, f64::max)
    }
}

/// One after the other.
fn stacked(from: f64, parts: &[(f64, Colour)]) -> Vec<(f64, f64, Colour)> {
    let mut end = from;
    let bar = |(long, colour): &(f64, Colour)| {
        let from = end;
        end += long;
        (from, end, *colour)
    };
    parts.iter().map(bar).collect()
}

fn table(kinds: &[Vec<&Pause>]) -> Markup {
    let figures: [fn(&Pause) -> Option<f64>; 9] = [
        |row| Some(row.pause_p50_us),
        |row| Some(row.pause_p99_us),
        STOP.2,
        CUT.2,
        SCAN.2,
        COPY.2,
        SAVE.2,
        CONT.2,
        |row| row.commit_latency_p50_us,
    ];
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th.figure { "pages" } th.figure { "guest" } th.figure { "epoch" } th.figure { "epochs" }
                        th.figure { "copied ahead" }
                        th.figure { "pause p50, ms" } th.figure { "p99" } th.figure { "stop" } th.figure { "cut" } th.figure { "scan" }
                        th.figure { "copy" } th.figure { "save" } th.figure { "cont" } th.figure { "commit p50, ms" }
                        th.figure { "on the link, KiB" }
                    }
                }
                tbody {
                    @for rows in kinds {
                        @let first = rows[0];
                        tr {
                            td.figure { (first.dirty_pages) } td.figure { (first.guest_mib) " MiB" }
                            td.figure { (first.epoch_ms) " ms" } td.figure { (rows.iter().map(|row| row.epochs).sum::<u64>()) }
                            td.figure { (words::number_or_dash(of(rows, |row| row.ahead_pages_p50))) }
                            @for figure in figures { td.figure { (words::number_or_dash(ms(rows, figure))) } }
                            td.figure { (words::number_or_dash(of(rows, |row| Some(row.wire_bytes_p50? / 1024.0)))) }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_where_they_are_in_the_pause() {
        let row = Pause {
            pause_p50_us: 5000.0,
            pause_stop_p50_us: Some(500.0),
            pause_cut_p50_us: Some(500.0),
            pause_scan_p50_us: Some(1000.0),
            pause_copy_p50_us: Some(2000.0),
            pause_save_p50_us: Some(2000.0),
            pause_cont_p50_us: Some(500.0),
            ..Pause::default()
        };
        let spans = |bars: &[(f64, f64, Colour)]| bars.iter().map(|bar| (bar.0, bar.1)).collect::<Vec<_>>();
        let bars = Bars::of(&[&row]);
        let after = [(0.0, 0.5), (0.5, 1.0), (1.0, 3.0), (3.0, 4.5), (4.5, 5.0)];
        assert_eq!(spans(&bars.after_another), after);
        assert_eq!(spans(&bars.beside), [(1.0, 2.0), (2.0, 4.0)]);
        // Medians that add up to more than the pause leave nothing.
        let bars = Bars::of(&[&Pause { pause_p50_us: 3000.0, ..row }]);
        assert_eq!((bars.after_another[3].0, bars.after_another[3].1, bars.end()), (3.0, 3.0, 4.0));
    }

    #[test]
    fn rounds_of_one_guest_and_set_are_one_row() {
        let row = |dirty_pages, guest_mib, pause_p50_us| {
            let row = Pause { dirty_pages, guest_mib, pause_p50_us, ..Pause::default() };
            crate::run::Row::Pause(row)
        };
        let rows = vec![row(200, 1024, 4.0), row(100, 256, 1.0), row(200, 256, 2.0), row(200, 1024, 8.0)];
        let run = Run { rows, ..Run::default() };
        let found: Vec<_> = kinds(&run)
            .iter()
            .map(|rows| (rows[0].dirty_pages, of(rows, |row| Some(row.pause_p50_us))))
            .collect();
        assert_eq!(found, [(100, Some(1.0)), (200, Some(2.0)), (200, Some(6.0))]);
    }
}
