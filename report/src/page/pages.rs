//! Pages on their way to the other host: how many bytes of them a second, and what is left of each on the link.

use super::growth::colour;
use super::plot::{Axis, Colour, Plot};
use super::series::colours;
use super::words;
use super::{figure, nothing};
use crate::run::{Pages, Run};
use crate::statistics::median;
use maud::{Markup, html};
use std::collections::BTreeSet;

const WIDTH: u32 = 1060;
const PAGE_BYTES: f64 = 4096.0;
const BYTES_A_MIB: f64 = 1_048_576.0;
/// What the names of stages' figures end with.
const OF_A_CORE: &str = "_bytes_s_core";

/// Rounds of one workload on one path, with a guest of one size.
struct Kind<'a> {
    path: &'a str,
    workload: &'a str,
    guest_mib: Option<u64>,
    rows: Vec<&'a Pages>,
}

impl<'a> Kind<'a> {
    /// In the order in which they are in the run, all paths of a workload together.
    fn of(run: &'a Run) -> Vec<Self> {
        let mut kinds: Vec<Self> = Vec::new();
        for row in run.pages() {
            let (path, workload, guest_mib) = (row.path.as_str(), row.workload.as_str(), row.guest_mib);
            let same =
                |kind: &&mut Self| (kind.path, kind.workload, kind.guest_mib) == (path, workload, guest_mib);
            match kinds.iter_mut().find(same) {
                Some(kind) => kind.rows.push(row),
                None => kinds.push(Self { path, workload, guest_mib, rows: vec![row] }),
            }
        }
        let workloads: Vec<&str> = kinds.iter().map(|kind| kind.workload).collect();
        kinds.sort_by_key(|kind| workloads.iter().position(|of| *of == kind.workload));
        kinds
    }

    fn median(&self, figure: impl Fn(&Pages) -> Option<f64>) -> Option<f64> {
        median(&self.rows.iter().filter_map(|row| figure(row)).collect::<Vec<_>>())
    }

    fn name(&self) -> String {
        let guest = self.guest_mib.map_or_else(String::new, |mib| format!(", {mib} MiB"));
        format!("{}, {}{guest}", self.workload, self.path)
    }

    /// Of one stage, for each second of a processor.
    fn mib_s_core(&self, stage: &str) -> Option<f64> {
        self.median(|row| Some(row.more.get(&format!("{stage}{OF_A_CORE}"))?.as_f64()? / BYTES_A_MIB))
    }

    fn payload_mib_s(&self) -> Option<f64> {
        self.median(|row| Some(row.payload_bytes_s / BYTES_A_MIB))
    }

    fn wire_bytes(&self) -> Option<f64> {
        self.median(|row| row.wire_bytes_per_page)
    }
}

pub(super) fn section(run: &Run) -> Markup {
    let (kinds, stages) = (Kind::of(run), stages(run));
    let mut paths: Vec<&str> = Vec::new();
    for kind in &kinds {
        if !paths.contains(&kind.path) {
            paths.push(kind.path);
        }
    }
    let of = |kind: &Kind<'_>| paths.iter().position(|path| *path == kind.path).map_or(colour(0), colour);
    let keys: Vec<(&str, Colour)> = paths.iter().enumerate().map(|(at, path)| (*path, colour(at))).collect();
    html! {
        p { "Bytes of pages, before they are reduced, by the way that they take and what the guest does. " code { "sync" }
            " is the full synchronisation, as fast as it goes; in the other workloads the guest writes what there is to send, so "
            "that their rate is the guest's as long as the way carries it. Medians over the rounds; the axis is logarithmic." }
        (colours(&keys))
        (figure("bytes of pages a second", &rates(&kinds, of)))
        @if kinds.iter().any(|kind| kind.wire_bytes().is_some()) {
            (figure("what a page of 4096 bytes puts on the link", &reduced(&kinds, of)))
        } @else {
            (nothing("bytes on a link"))
        }
        @if !stages.is_empty() {
            p { "The same bytes by the processor time that each stage took for them: what a whole core of each would carry." }
            (colours(&stages.iter().enumerate().map(|(at, stage)| (*stage, colour(at))).collect::<Vec<_>>()))
            (figure("bytes of pages a second and core, stage by stage", &of_a_core(&kinds, &stages)))
        }
        (table(&kinds, &stages))
    }
}

fn names(kinds: &[&Kind<'_>]) -> Vec<String> {
    kinds.iter().map(|kind| kind.name()).collect()
}

fn size(kinds: &[&Kind<'_>]) -> (u32, u32) {
    (WIDTH, 70 + 26 * kinds.len() as u32)
}

fn rates(kinds: &[Kind<'_>], colour: impl Fn(&Kind<'_>) -> Colour) -> Plot {
    let kinds: Vec<&Kind<'_>> = kinds.iter().collect();
    let rate = |kind: &Kind<'_>| kind.payload_mib_s().filter(|rate| *rate > 0.0);
    // With room for the words beside the greatest.
    let values = kinds.iter().filter_map(|kind| rate(kind)).flat_map(|rate| [rate, rate * 1.6]);
    let axis = Axis::log("MiB/s", values);
    let mut plot = Plot::new(axis, Axis::names("", &names(&kinds)).downwards(), size(&kinds));
    for (row, kind) in kinds.iter().enumerate() {
        let Some(rate) = rate(kind) else { continue };
        plot.dot((rate, row as f64), colour(kind), 4, 1.0);
        plot.text_beside((rate, row as f64), format!("{} MiB/s", words::number(rate)));
    }
    plot
}

fn reduced(kinds: &[Kind<'_>], colour: impl Fn(&Kind<'_>) -> Colour) -> Plot {
    let kinds: Vec<&Kind<'_>> = kinds.iter().filter(|kind| kind.wire_bytes().is_some()).collect();
    let bytes = |kind: &Kind<'_>| kind.wire_bytes().unwrap_or(0.0);
    // With room for the words beside the longest.
    let values = kinds.iter().map(|kind| bytes(kind) * 1.2).chain([PAGE_BYTES]);
    let axis = Axis::from_zero("bytes on the link a page", values);
    let mut plot = Plot::new(axis, Axis::names("", &names(&kinds)).downwards(), size(&kinds));
    for (row, kind) in kinds.iter().enumerate() {
        let y = row as f64;
        plot.bar((0.0, y - 0.3), (bytes(kind), y + 0.3), colour(kind), 0.8);
        let percent = words::number(bytes(kind) / PAGE_BYTES * 100.0);
        plot.text_beside((bytes(kind), y), format!("{:.0} ({percent} %)", bytes(kind)));
    }
    plot
}

/// All stages of which a row says what they did, in the order of the way as far as it is known.
fn stages(run: &Run) -> Vec<&str> {
    const ORDER: [&str; 6] = ["capture", "reduce", "send", "receive", "apply", "copy"];
    let names = run.pages().flat_map(|row| row.more.keys()).filter_map(|name| name.strip_suffix(OF_A_CORE));
    let mut stages: Vec<&str> = names.collect::<BTreeSet<_>>().into_iter().collect();
    stages.sort_by_key(|name| ORDER.iter().position(|of| of == name).unwrap_or(ORDER.len()));
    stages
}

fn of_a_core(kinds: &[Kind<'_>], stages: &[&str]) -> Plot {
    let kinds: Vec<&Kind<'_>> =
        kinds.iter().filter(|kind| stages.iter().any(|of| kind.mib_s_core(of).is_some())).collect();
    let values = kinds.iter().flat_map(|kind| stages.iter().filter_map(|of| kind.mib_s_core(of)));
    let axis = Axis::log("MiB/s of a core", values);
    let mut plot = Plot::new(axis, Axis::names("", &names(&kinds)).downwards(), size(&kinds));
    for (row, kind) in kinds.iter().enumerate() {
        for (at, stage) in stages.iter().enumerate() {
            if let Some(rate) = kind.mib_s_core(stage).filter(|rate| *rate > 0.0) {
                plot.dot((rate, row as f64), colour(at), 6, 0.85);
            }
        }
    }
    plot
}

fn table(kinds: &[Kind<'_>], stages: &[&str]) -> Markup {
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "workload" } th { "path" } th.figure { "guest" } th.figure { "rounds" } th.figure { "MiB/s" }
                        th.figure { "on the link, bytes a page" }
                        @for stage in stages { th.figure { (stage) ", MiB/s of a core" } }
                    }
                }
                tbody {
                    @for kind in kinds {
                        tr {
                            td { (kind.workload) } td { (kind.path) }
                            td.figure { (kind.guest_mib.map_or_else(|| "-".into(), |mib| format!("{mib} MiB"))) }
                            td.figure { (kind.rows.len()) }
                            td.figure { (words::number_or_dash(kind.payload_mib_s())) }
                            td.figure { (words::number_or_dash(kind.wire_bytes())) }
                            @for stage in stages { td.figure { (words::number_or_dash(kind.mib_s_core(stage))) } }
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
    use crate::run::Row;

    fn run(rows: &[(&str, &str, f64, Option<f64>)]) -> Run {
        let row =
            |(path, workload, payload_bytes_s, wire_bytes_per_page): &(&str, &str, f64, Option<f64>)| {
                Row::Pages(Pages {
                    path: (*path).into(),
                    workload: (*workload).into(),
                    payload_bytes_s: *payload_bytes_s,
                    wire_bytes_per_page: *wire_bytes_per_page,
                    ..Pages::default()
                })
            };
        Run { rows: rows.iter().map(row).collect(), ..Run::default() }
    }

    #[test]
    fn paths_of_one_workload_stand_together() {
        let run = run(&[
            ("tcp", "sync", BYTES_A_MIB, Some(4000.0)),
            ("tcp", "idle", BYTES_A_MIB, Some(400.0)),
            ("bypass", "sync", 2.0 * BYTES_A_MIB, Some(4100.0)),
            ("tcp", "sync", 3.0 * BYTES_A_MIB, Some(4002.0)),
        ]);
        let kinds = Kind::of(&run);
        let told: Vec<_> = kinds
            .iter()
            .map(|kind| (kind.workload, kind.path, kind.payload_mib_s(), kind.wire_bytes()))
            .collect();
        assert_eq!(
            told,
            [
                ("sync", "tcp", Some(2.0), Some(4001.0)),
                ("sync", "bypass", Some(2.0), Some(4100.0)),
                ("idle", "tcp", Some(1.0), Some(400.0))
            ]
        );
    }

    #[test]
    fn a_way_without_a_link_has_no_bytes_on_one() {
        let text = section(&run(&[("memcpy", "sync", 0.0, None)])).into_string();
        assert!(text.contains("no bytes on a link"), "{text}");
    }
}
