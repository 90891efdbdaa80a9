//! Rows of the benchmark, what the rows say together, and how that stands to what was aimed at.

use super::{PagePath, Workload};
use crate::bench::stage::BypassPort;
use holdfast_lab::report::median;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

/// What the columns are, for `--help`.
pub(super) const COLUMNS: &str = "\
Columns:
  path           tcp and bypass (with its ports): Holdfast, from host to host by the one or the other; qemu: QEMU's own
                 migration to another QEMU, without TLS, on the link that tcp has; memcpy: one core
  workload       sync: all memory at once, of which half is noise that the guest wrote; the others are
                 epochs: idle, bulk (the guest sends), redis (SET and GET), noise and copies (the guest
                 writes --pages pages an epoch, of noise or of copies of 256 other pages)
  payload MiB/s  memory that was carried, by the clock: of sync what can be carried, of epochs what was
                 asked for
  pages          pages in it; one that was copied twice in an epoch is two
  wire B/page    bytes handed to the link for a page, states of devices included
  saved          of the bytes of the pages, that were not handed to the link
  MiB/s of a core, stage by stage: payload over the processor time of the stage's threads
  capture        finding and copying pages (hf-capture)
  reduce         reducing, hashing and framing them (hf-replicate)
  send           sealing and sending them (hf-link, hf-bypass); QEMU's migration, at its source
  receive        receiving and opening them (hf-link, hf-bypass of the backup)
  apply          verifying and applying them (hf-vm-*); QEMU's migration, at its target
  copy           memcpy
What kernels do with a packet on a cable between namespaces is its sender's time for the most part.";

/// Where processor time goes, in the order of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Capture,
    Reduce,
    Send,
    Receive,
    Apply,
    /// Of memcpy, which has no other.
    Copy,
    /// Whatever else the two processes did meanwhile.
    Rest,
}

impl Stage {
    pub(super) const ALL: [Self; 7] =
        [Self::Capture, Self::Reduce, Self::Send, Self::Receive, Self::Apply, Self::Copy, Self::Rest];

    const fn name(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Reduce => "reduce",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Apply => "apply",
            Self::Copy => "copy",
            Self::Rest => "rest",
        }
    }

    fn cpu_key(self) -> String {
        format!("{}_cpu_s", self.name())
    }

    fn rate_key(self) -> String {
        format!("{}_bytes_s_core", self.name())
    }
}

/// What was carried, how long it took, and whose time it took.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measured {
    pub(super) pages: u64,
    pub(super) payload_bytes: u64,
    /// None where nothing goes over a wire.
    pub(super) wire_bytes: Option<u64>,
    pub(super) took: Duration,
    pub(super) epochs: Option<u64>,
    /// Processor time of each stage that there is.
    pub(super) cpu: Vec<(Stage, Duration)>,
}

/// What a row is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct What {
    pub(super) round: u32,
    pub(super) guest_mib: u32,
    pub(super) path: PagePath,
    /// The bypass's, where it is one.
    pub(super) port: Option<BypassPort>,
    pub(super) workload: Workload,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    kind: &'static str,
    round: u32,
    guest_mib: u32,
    path: PagePath,
    bypass_port: Option<BypassPort>,
    workload: Workload,
    /// By the clock.
    seconds: f64,
    /// Committed meanwhile; none of a synchronisation.
    epochs: Option<u64>,
    pages: u64,
    payload_bytes: u64,
    payload_bytes_s: f64,
    wire_bytes: Option<u64>,
    /// None where there is no wire, or were no pages.
    wire_bytes_per_page: Option<f64>,
    /// Of the payload's bytes, that did not go over the wire; below 0 where more did.
    saved: Option<f64>,
    /// `capture_cpu_s`, `capture_bytes_s_core` and so on.
    #[serde(flatten)]
    stages: BTreeMap<String, f64>,
}

impl Row {
    pub(super) fn new(what: What, measured: &Measured) -> Self {
        let Measured { pages, payload_bytes, wire_bytes, took, epochs, ref cpu } = *measured;
        let payload = payload_bytes as f64;
        let mut stages = BTreeMap::new();
        for (stage, time) in cpu {
            stages.insert(stage.cpu_key(), time.as_secs_f64());
            // What took no time has no rate, and the rest carries nothing.
            if !time.is_zero() && *stage != Stage::Rest {
                stages.insert(stage.rate_key(), payload / time.as_secs_f64());
            }
        }
        let over = |whole: u64| wire_bytes.filter(|_| whole > 0).map(|wire| wire as f64 / whole as f64);
        Self {
            kind: "pages",
            round: what.round,
            guest_mib: what.guest_mib,
            path: what.path,
            bypass_port: what.port,
            workload: what.workload,
            seconds: took.as_secs_f64(),
            epochs,
            pages,
            payload_bytes,
            payload_bytes_s: if took.is_zero() { 0.0 } else { payload / took.as_secs_f64() },
            wire_bytes,
            wire_bytes_per_page: over(pages),
            saved: over(payload_bytes).map(|part| 1.0 - part),
            stages,
        }
    }

    /// The path, and its ports where those may differ.
    fn way(&self) -> String {
        way(self.path, self.bypass_port)
    }

    /// What rounds have in common.
    const fn sort(&self) -> (u32, PagePath, Workload) {
        (self.guest_mib, self.path, self.workload)
    }

    /// Processor time that a stage took for a GiB.
    fn cpu_s_per_gib(&self, stage: Stage) -> Option<f64> {
        let time = self.stages.get(&stage.cpu_key())?;
        (self.payload_bytes > 0).then(|| time / self.payload_bytes as f64 * (1u64 << 30) as f64)
    }
}

fn way(path: PagePath, port: Option<BypassPort>) -> String {
    port.map_or_else(|| path.name().to_owned(), |port| format!("{}:{}", path.name(), port.name()))
}

/// Above the lines.
pub(super) fn heading() -> String {
    let stages: String = carrying().map(|stage| format!(" {:>7}", stage.name())).collect();
    format!(
        "{:<16} {:<8} {:>9} | {:>13} {:>8} {:>11} {:>7} |{stages}  MiB/s of a core\n",
        "path", "workload", "guest MiB", "payload MiB/s", "pages", "wire B/page", "saved"
    )
}

fn carrying() -> impl Iterator<Item = Stage> {
    Stage::ALL.into_iter().filter(|stage| *stage != Stage::Rest)
}

/// Rows of one sort in a line: medians over them.
pub(super) fn line(rows: &[&Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let of = |value: &dyn Fn(&Row) -> Option<f64>| {
        median(&rows.iter().filter_map(|row| value(row)).collect::<Vec<_>>())
    };
    let shown = |found: Option<f64>, decimals: usize| {
        found.map_or_else(|| "-".into(), |found| format!("{found:.decimals$}"))
    };
    let mib = |found: Option<f64>| shown(found.map(|bytes| bytes / f64::from(1 << 20)), 0);
    let stages: String = carrying()
        .map(|stage| format!(" {:>7}", mib(of(&|row: &Row| row.stages.get(&stage.rate_key()).copied()))))
        .collect();
    format!(
        "{:<16} {:<8} {:>9} | {:>13} {:>8} {:>11} {:>7} |{stages}\n",
        first.way(),
        first.workload.name(),
        first.guest_mib,
        shown(of(&|row| Some(row.payload_bytes_s / f64::from(1 << 20))), 1),
        shown(of(&|row| Some(row.pages as f64)), 0),
        shown(of(&|row| row.wire_bytes_per_page), 0),
        shown(of(&|row| row.saved.map(|saved| saved * 1e2)), 1)
            + if first.saved.is_some() { " %" } else { "" },
    )
}

/// Medians over the rounds, the account of a synchronisation, and the aims.
pub(super) fn table(rows: &[Row]) -> String {
    let mut out = heading();
    for sort in sorts(rows) {
        out += &line(&rows.iter().filter(|row| row.sort() == sort).collect::<Vec<_>>());
    }
    out += &account_table(&accounts(rows));
    for Aim { aim, at_least, found } in aims(rows) {
        let reached = if found >= at_least { "reached" } else { "MISSED" };
        writeln!(out, "{aim}: {found:.2}, aim {at_least}: {reached}").expect("a string takes all text");
    }
    out
}

/// All that there are, in the order in which they came first.
fn sorts(rows: &[Row]) -> Vec<(u32, PagePath, Workload)> {
    let mut found = Vec::new();
    for row in rows {
        if !found.contains(&row.sort()) {
            found.push(row.sort());
        }
    }
    found
}

/// Where the processor time of a GiB goes, of a synchronisation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Account {
    guest_mib: u32,
    path: PagePath,
    bypass_port: Option<BypassPort>,
    /// Seconds of a core for each GiB, by stage: medians over the rounds.
    cpu_s_per_gib: BTreeMap<&'static str, f64>,
    /// Of all stages together.
    whole_cpu_s_per_gib: f64,
    /// How many times that of memcpy it is.
    times_memcpy: Option<f64>,
}

/// Of each path that synchronised.
pub(super) fn accounts(rows: &[Row]) -> Vec<Account> {
    let mut found: Vec<Account> = Vec::new();
    for sort in sorts(rows).into_iter().filter(|(.., workload)| *workload == Workload::Sync) {
        let mut cpu_s_per_gib = BTreeMap::new();
        for stage in Stage::ALL {
            let times = rows.iter().filter(|row| row.sort() == sort);
            let times: Vec<f64> = times.filter_map(|row| row.cpu_s_per_gib(stage)).collect();
            cpu_s_per_gib.extend(median(&times).map(|time| (stage.name(), time)));
        }
        let whole = cpu_s_per_gib.values().sum();
        let (guest_mib, path, _) = sort;
        let bypass_port = rows.iter().find(|row| row.sort() == sort).and_then(|row| row.bypass_port);
        found.push(Account {
            guest_mib,
            path,
            bypass_port,
            cpu_s_per_gib,
            whole_cpu_s_per_gib: whole,
            times_memcpy: None,
        });
    }
    let copies: Vec<(u32, f64)> = found
        .iter()
        .filter(|account| account.path == PagePath::Memcpy && account.whole_cpu_s_per_gib > 0.0)
        .map(|account| (account.guest_mib, account.whole_cpu_s_per_gib))
        .collect();
    for account in &mut found {
        let copy = copies.iter().find(|(guest_mib, _)| *guest_mib == account.guest_mib);
        account.times_memcpy = copy.map(|(_, copy)| account.whole_cpu_s_per_gib / copy);
    }
    found
}

fn account_table(accounts: &[Account]) -> String {
    if accounts.is_empty() {
        return String::new();
    }
    let stages: String = Stage::ALL.iter().map(|stage| format!(" {:>7}", stage.name())).collect();
    let mut out = format!(
        "\nsync: seconds of a core for a GiB, stage by stage\n{:<16} {:>9} |{stages} | {:>7} {:>8}\n",
        "path", "guest MiB", "all", "x memcpy"
    );
    let shown = |found: Option<f64>| found.map_or_else(|| "-".into(), |found| format!("{found:.2}"));
    for account in accounts {
        let stages: String = Stage::ALL
            .iter()
            .map(|stage| format!(" {:>7}", shown(account.cpu_s_per_gib.get(stage.name()).copied())))
            .collect();
        writeln!(
            out,
            "{:<16} {:>9} |{stages} | {:>7.2} {:>8}",
            way(account.path, account.bypass_port),
            account.guest_mib,
            account.whole_cpu_s_per_gib,
            account.times_memcpy.map_or_else(|| "-".into(), |times| format!("{times:.1}")),
        )
        .expect("a string takes all text");
    }
    out
}

/// What was aimed at, and what was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Aim {
    aim: String,
    at_least: f64,
    found: f64,
}

/// The aims for which there are rows, for each size of the guest.
pub(super) fn aims(rows: &[Row]) -> Vec<Aim> {
    let mut found = Vec::new();
    for guest_mib in distinct(rows.iter().map(|row| row.guest_mib)) {
        found.extend(times_qemu(rows, guest_mib).map(|found| Aim {
            aim: format!("sync of {guest_mib} MiB over bypass, times as fast as QEMU's own migration"),
            at_least: 2.0,
            found,
        }));
        for path in [PagePath::Tcp, PagePath::Bypass] {
            let copies = (guest_mib, path, Workload::Copies);
            let saved: Vec<f64> =
                rows.iter().filter(|row| row.sort() == copies).filter_map(|row| row.saved).collect();
            found.extend(median(&saved).map(|found| Aim {
                aim: format!("copies in {guest_mib} MiB over {}, part of the bytes saved", path.name()),
                at_least: 0.8,
                found,
            }));
        }
    }
    found
}

/// How many times as fast as QEMU's the synchronisation over the bypass was: median of the rounds' ratios.
fn times_qemu(rows: &[Row], guest_mib: u32) -> Option<f64> {
    let rate = |round, path| {
        let sort = (guest_mib, path, Workload::Sync);
        let row = rows.iter().find(|row| row.round == round && row.sort() == sort)?;
        Some(row.payload_bytes_s).filter(|rate| *rate > 0.0)
    };
    let ratios: Vec<f64> = distinct(rows.iter().map(|row| row.round))
        .into_iter()
        .filter_map(|round| Some(rate(round, PagePath::Bypass)? / rate(round, PagePath::Qemu)?))
        .collect();
    median(&ratios)
}

fn distinct(values: impl Iterator<Item = u32>) -> BTreeSet<u32> {
    values.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MIB: u64 = 1 << 20;

    fn row(round: u32, path: PagePath, workload: Workload, millis: u64, wire_mib: Option<u64>) -> Row {
        let cpu = match path {
            PagePath::Memcpy => vec![(Stage::Copy, Duration::from_millis(millis))],
            _ => vec![
                (Stage::Capture, Duration::from_millis(100)),
                (Stage::Reduce, Duration::from_millis(400)),
                (Stage::Rest, Duration::from_millis(50)),
                (Stage::Apply, Duration::ZERO),
            ],
        };
        let measured = Measured {
            pages: 256 * 256,
            payload_bytes: 256 * MIB,
            wire_bytes: wire_mib.map(|mib| mib * MIB),
            took: Duration::from_millis(millis),
            epochs: (workload != Workload::Sync).then_some(40),
            cpu,
        };
        let port = (path == PagePath::Bypass).then_some(BypassPort::Memif);
        Row::new(What { round, guest_mib: 512, path, port, workload }, &measured)
    }

    #[test]
    fn a_row_has_what_was_carried_over_the_clock_the_wire_and_each_stage() {
        let row = row(1, PagePath::Bypass, Workload::Copies, 500, Some(64));
        let written = serde_json::to_value(&row).expect("a document");
        for (name, expected) in [
            ("kind", json!("pages")),
            ("path", json!("bypass")),
            ("bypass_port", json!("memif")),
            ("workload", json!("copies")),
            ("guest_mib", json!(512)),
            ("epochs", json!(40)),
            ("payload_bytes_s", json!((512 * MIB) as f64)),
            ("wire_bytes_per_page", json!(1024.0)),
            ("saved", json!(0.75)),
            ("capture_cpu_s", json!(0.1)),
            ("capture_bytes_s_core", json!((2560 * MIB) as f64)),
            ("reduce_bytes_s_core", json!((640 * MIB) as f64)),
            ("rest_cpu_s", json!(0.05)),
            ("apply_cpu_s", json!(0.0)),
            ("apply_bytes_s_core", json!(null)),
            ("rest_bytes_s_core", json!(null)),
        ] {
            assert_eq!(written[name], expected, "{name}");
        }
    }

    #[test]
    fn what_has_no_wire_or_no_pages_has_no_bytes_for_a_page() {
        let copied = row(1, PagePath::Memcpy, Workload::Sync, 100, None);
        assert_eq!((copied.wire_bytes_per_page, copied.saved), (None, None));
        let nothing = Measured {
            pages: 0,
            payload_bytes: 0,
            wire_bytes: Some(900),
            took: Duration::ZERO,
            epochs: Some(1),
            cpu: vec![(Stage::Send, Duration::from_millis(1))],
        };
        let what =
            What { round: 1, guest_mib: 512, path: PagePath::Tcp, port: None, workload: Workload::Idle };
        let nothing = Row::new(what, &nothing);
        assert_eq!((nothing.wire_bytes_per_page, nothing.saved, nothing.payload_bytes_s), (None, None, 0.0));
        assert!(line(&[&nothing]).contains(" - "));
    }

    #[test]
    fn the_aims_are_those_of_the_rounds_ratios_and_say_whether_they_are_reached() {
        use PagePath::{Bypass, Qemu, Tcp};
        let rows = [
            row(1, Qemu, Workload::Sync, 1000, Some(130)),
            row(1, Bypass, Workload::Sync, 250, Some(130)),
            row(2, Bypass, Workload::Sync, 1000, Some(130)),
            row(2, Qemu, Workload::Sync, 500, Some(130)),
            row(3, Bypass, Workload::Sync, 500, Some(130)),
            row(3, Qemu, Workload::Sync, 1000, Some(130)),
            // A round that has only one of them does not count.
            row(4, Bypass, Workload::Sync, 125, Some(130)),
            row(1, Tcp, Workload::Copies, 1000, Some(16)),
            row(1, Bypass, Workload::Copies, 1000, Some(128)),
            row(1, Bypass, Workload::Noise, 1000, Some(257)),
        ];
        let told: Vec<_> = aims(&rows).into_iter().map(|aim| (aim.at_least, aim.found)).collect();
        assert_eq!(told, [(2.0, 2.0), (0.8, 0.9375), (0.8, 0.5)]);
        let text = table(&rows);
        for part in ["2.00, aim 2: reached", "0.94, aim 0.8: reached", "0.50, aim 0.8: MISSED", "-0.4 %"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(aims(&rows[6..7]).is_empty(), "nothing to compare with");
    }

    #[test]
    fn the_account_of_a_synchronisation_adds_its_stages_up_beside_memcpy() {
        let rows = [
            row(1, PagePath::Memcpy, Workload::Sync, 50, None),
            row(1, PagePath::Tcp, Workload::Sync, 900, Some(130)),
            row(1, PagePath::Tcp, Workload::Noise, 900, Some(257)),
        ];
        let found = accounts(&rows);
        assert_eq!(found.len(), 2);
        let near = |one: f64, other: f64| assert!((one - other).abs() < 1e-9, "{one} {other}");
        near(found[0].whole_cpu_s_per_gib, 0.2);
        near(found[1].cpu_s_per_gib["reduce"], 1.6);
        // Four times 0.1, 0.4 and 0.05 s.
        near(found[1].whole_cpu_s_per_gib, 2.2);
        near(found[1].times_memcpy.expect("memcpy is there"), 11.0);
        assert_eq!(accounts(&rows[1..])[0].times_memcpy, None);
    }

    #[test]
    fn lines_are_as_wide_as_their_heading_says() {
        let rows = [
            row(1, PagePath::Memcpy, Workload::Sync, 50, None),
            row(1, PagePath::Bypass, Workload::Copies, 900, Some(60)),
        ];
        let wide = heading().find("  MiB/s of a core").expect("a heading");
        for row in &rows {
            assert_eq!(line(&[row]).trim_end_matches('\n').len(), wide, "{}", line(&[row]));
        }
        let text = table(&rows[..1]);
        assert_eq!(text.lines().count(), 2 + 4, "{text}");
    }
}
