//! `holdfast bench pages`: how fast memory goes from host to host, stage by stage, and how much of it has to.
//!
//! ```text
//!   tcp, bypass   hf-capture > hf-replicate > hf-link (hf-bypass) ==> hf-link (hf-bypass) > hf-vm-*
//!                 capture      reduce         send                    receive              apply
//!   qemu          QEMU's own migration of the same guest ==> another QEMU
//!   memcpy        as many bytes, one core
//! ```
//!
//! All paths carry the memory of the same guest, which has filled half of it with the same noise, between the
//! same two namespaces in the same round; every other round takes them in the reverse order. A stage's rate is
//! what it carried over the processor time of its threads, by the kernel's account of each thread: what the rate
//! would be with a core for it alone. What both processes spent beside the stages is the *rest*.
//!
//! Work of the kernel on a packet is done, on a cable between namespaces, by who sent it for the most part: the
//! receiver looks cheaper here than it is over real cards, and the sender dearer.

mod holdfast;
mod reference;
mod row;

use super::stage::BypassPort;
use super::{Output, machine, write_json};
use crate::cli::Failure;
use clap::{Args, ValueEnum};
use holdfast_lab::apps::{self, App};
use holdfast_lab::artifacts::{Artifacts, Qemu};
use holdfast_lab::client::{Content, Dirty, Pace};
use holdfast_lab::guest::GuestSpec;
use row::{Measured, Row, What};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;

/// Of the epochs that Holdfast remembers, some are not committed yet.
const MOST_EPOCHS: u64 = 400;

#[derive(Clone, Debug, Args)]
#[command(after_help = row::COLUMNS)]
pub(crate) struct PagesOptions {
    /// Ways from host to host, in the order in which they take their turns. qemu and memcpy have workload sync alone.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "memcpy,qemu,tcp,bypass")]
    paths: Vec<PagePath>,
    /// What the guest does.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "sync,idle,bulk,redis,noise,copies")]
    workloads: Vec<Workload>,
    /// Sizes of the guest, in MiB. Each takes that much memory twice.
    #[arg(long, value_delimiter = ',', default_value = "1024")]
    guest_mib: Vec<u32>,
    /// Seconds of each workload that runs in epochs.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Rounds; each boots every guest anew.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Milliseconds from one checkpoint to the next.
    #[arg(long, default_value_t = 100)]
    epoch_ms: u64,
    /// Pages that the guest writes in an epoch, of noise or of copies.
    #[arg(long, default_value_t = 2000)]
    pages: u32,
    /// The bypass's ports. All but memif have the two namespaces' virtual cable between them.
    #[arg(long, value_enum, default_value = "memif")]
    bypass_port: BypassPort,
    /// The QEMU to use.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// How memory is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum PagePath {
    /// Holdfast over the kernel's TCP with TLS.
    Tcp,
    /// Holdfast over a port of its own.
    Bypass,
    /// QEMU's own migration.
    Qemu,
    /// One core.
    Memcpy,
}

impl PagePath {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Bypass => "bypass",
            Self::Qemu => "qemu",
            Self::Memcpy => "memcpy",
        }
    }

    const fn is_holdfast(self) -> bool {
        matches!(self, Self::Tcp | Self::Bypass)
    }
}

/// What the guest does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Workload {
    /// All memory is carried once: the full synchronisation.
    Sync,
    /// Nothing.
    Idle,
    /// It sends a stream without end.
    Bulk,
    /// It answers SET and GET of many clients.
    Redis,
    /// It writes pages of noise.
    Noise,
    /// It writes pages that are copies of others.
    Copies,
}

impl Workload {
    const fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Idle => "idle",
            Self::Bulk => "bulk",
            Self::Redis => "redis",
            Self::Noise => "noise",
            Self::Copies => "copies",
        }
    }
}

/// A guest with what the workloads need.
#[derive(Clone, Copy)]
struct Scene<'a> {
    options: &'a PagesOptions,
    qemu: &'a Qemu,
    artifacts: &'a Artifacts,
    round: u32,
    guest_mib: u32,
}

impl Scene<'_> {
    fn has(&self, workload: Workload) -> bool {
        self.options.workloads.contains(&workload)
    }

    /// What makes the guest.
    fn shape(&self) -> fn(&mut GuestSpec) {
        if self.has(Workload::Redis) { with_redis } else { plain }
    }

    fn say(&self, path: PagePath, what: &str) {
        let Self { options, round, guest_mib, .. } = self;
        eprintln!("round {round} of {}: {}, {guest_mib} MiB: {what}", options.rounds, path.name());
    }
}

/// Half of a guest's memory, as noise: what its own system needs is not the benchmark's to write.
fn fill(guest_mib: u32) -> Dirty {
    let pages = (guest_mib << 7).min(Dirty::MAX_PAGES);
    Dirty { pages, interval_us: u32::MAX, pace: Pace::AtOnce, content: Content::Noise }
}

fn plain(spec: &mut GuestSpec) {
    super::stage::dress(spec, false);
}

fn with_redis(spec: &mut GuestSpec) {
    plain(spec);
    if let Err(fault) = apps::carry(spec, &[App::Redis]) {
        tracing::error!("no Redis in the guest: {fault}");
    }
}

/// What a run found.
#[derive(Default)]
struct Found {
    rows: Vec<Row>,
    /// Rows that could not be taken, and why.
    refused: Vec<String>,
}

impl Found {
    fn take(&mut self, scene: &Scene<'_>, path: PagePath, workload: Workload, measured: &Measured) {
        let port = (path == PagePath::Bypass).then_some(scene.options.bypass_port);
        let what = What { round: scene.round, guest_mib: scene.guest_mib, path, port, workload };
        let row = Row::new(what, measured);
        print!("{}", row::line(&[&row]));
        self.rows.push(row);
    }

    fn refuse(&mut self, text: String) {
        println!("{text}");
        self.refused.push(text);
    }
}

/// Runs the benchmark.
pub(super) fn run(options: &PagesOptions) -> Result<(), Failure> {
    check(options)?;
    options.output.check()?;
    let qemu = Qemu::at(&options.qemu).map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    let artifacts = Artifacts::locate().map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    let apps: &[App] = if options.workloads.contains(&Workload::Redis) { &[App::Redis] } else { &[] };
    if !apps.is_empty() {
        artifacts.applications().map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    }
    let machine = machine::this(&qemu, &artifacts, apps);
    let mut found = Found::default();
    print!("{}", row::heading());
    let rounds =
        (1..=options.rounds).flat_map(|round| options.guest_mib.iter().map(move |mib| (round, *mib)));
    let ended = rounds.into_iter().try_for_each(|(round, guest_mib)| {
        guest(&Scene { options, qemu: &qemu, artifacts: &artifacts, round, guest_mib }, &mut found)
    });
    println!();
    // What was measured before a failure is worth its while.
    print!("{}", row::table(&found.rows));
    if let Some(path) = &options.output.json {
        let document = json!({
            "bench": "pages",
            "machine": machine,
            "configuration": configuration(options),
            "rows": found.rows,
            "accounts": row::accounts(&found.rows),
            "aims": row::aims(&found.rows),
            "refused": found.refused,
        });
        write_json(path, &document)?;
    }
    ended?;
    match found.refused.len() {
        0 => Ok(()),
        count => Err(Failure::Failed(format!("{count} rows could not be taken: they are named above"))),
    }
}

fn configuration(options: &PagesOptions) -> serde_json::Value {
    json!({
        "paths": options.paths,
        "workloads": options.workloads,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "epoch_ms": options.epoch_ms,
        "pages": options.pages,
        "bypass_port": options.bypass_port,
        "accelerator": "TCG: a guest under emulation",
    })
}

fn check(options: &PagesOptions) -> Result<(), Failure> {
    let usage = |what: String| Err(Failure::Usage(what));
    let epochs_alone = !options.workloads.contains(&Workload::Sync);
    if options.paths.is_empty() || options.workloads.is_empty() || options.guest_mib.is_empty() {
        return usage("no path, workload or guest is named".into());
    }
    if let Some(path) = options.paths.iter().find(|path| epochs_alone && !path.is_holdfast()) {
        let name = path.name();
        return usage(format!("--paths: {name} has workload sync alone; mend: name it among --workloads"));
    }
    if let Some(mib) = options.guest_mib.iter().find(|mib| !(128..=1 << 20).contains(*mib)) {
        return usage(format!("--guest-mib: {mib} is not between 128 and 1048576"));
    }
    let least_mib = options.guest_mib.iter().min().copied().unwrap_or(0);
    let most_pages = (least_mib << 6).min(Dirty::MAX_PAGES);
    if !(1..=most_pages).contains(&options.pages) {
        let pages = options.pages;
        return usage(format!("--pages: {pages} is not between 1 and {most_pages}, a quarter of the guest"));
    }
    if !(5..=10_000).contains(&options.epoch_ms) {
        return usage(format!("--epoch-ms: {} is not between 5 and 10000 ms", options.epoch_ms));
    }
    if !(1..=MOST_EPOCHS).contains(&epochs_of(options)) {
        return usage(format!(
            "--seconds: {} are not between 1 and {MOST_EPOCHS} epochs of {} ms, which are remembered; mend: \
             fewer seconds, or --epoch-ms",
            options.seconds, options.epoch_ms
        ));
    }
    if options.rounds == 0 {
        return usage("--rounds: at least 1".into());
    }
    Ok(())
}

/// Epochs of a workload.
const fn epochs_of(options: &PagesOptions) -> u64 {
    options.seconds.saturating_mul(1000).div_ceil(options.epoch_ms)
}

/// All paths of one guest, in one round.
fn guest(scene: &Scene<'_>, found: &mut Found) -> Result<(), Failure> {
    if let Err(lack) = machine::check_memory(scene.guest_mib) {
        found.refuse(lack);
        return Ok(());
    }
    let mut paths = scene.options.paths.clone();
    if scene.round % 2 == 0 {
        paths.reverse();
    }
    for path in paths {
        match path {
            PagePath::Memcpy => {
                scene.say(path, "copies");
                found.take(scene, path, Workload::Sync, &reference::memcpy(scene.guest_mib)?);
            }
            PagePath::Qemu => {
                let measured = reference::qemu(scene)?;
                found.take(scene, path, Workload::Sync, &measured);
            }
            PagePath::Tcp | PagePath::Bypass => holdfast::all(scene, path, found)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: PagesOptions,
    }

    fn checked(words: &[&str]) -> Result<(), Failure> {
        let line = Line::try_parse_from([&["pages"][..], words].concat()).expect("words that are known");
        check(&line.options)
    }

    #[test]
    fn what_cannot_be_measured_is_refused_with_its_option() {
        checked(&[]).expect("what it does without options");
        checked(&["--paths", "tcp", "--workloads", "idle", "--guest-mib", "128"]).expect("a narrow one");
        for (words, said) in [
            (&["--paths", "qemu", "--workloads", "idle"][..], "qemu has workload sync alone"),
            (&["--guest-mib", "512,64"], "--guest-mib: 64"),
            (&["--guest-mib", "128", "--pages", "8193"], "between 1 and 8192"),
            (&["--pages", "0"], "--pages: 0"),
            (&["--epoch-ms", "0"], "--epoch-ms: 0"),
            (&["--seconds", "0"], "--seconds: 0"),
            (&["--seconds", "41"], "--seconds: 41"),
            (&["--rounds", "0"], "--rounds"),
        ] {
            let fault = checked(words).expect_err(said);
            assert_eq!(fault.exit_code(), 2);
            assert!(fault.to_string().contains(said), "{fault}");
        }
        for words in [["--paths", "tap"], ["--workloads", "busy"], ["--bypass-port", "pci"]] {
            Line::try_parse_from([&["pages"][..], &words].concat()).expect_err("an unknown word");
        }
    }

    #[test]
    fn a_guest_fills_half_of_its_memory_and_no_more_than_it_takes_orders_for() {
        assert_eq!(fill(512).pages, 65_536);
        assert_eq!(fill(1 << 20).pages, Dirty::MAX_PAGES);
    }
}
