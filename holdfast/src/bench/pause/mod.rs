//! `holdfast bench pause`: how long the guest stands still for a checkpoint, and for what.
//!
//! A guest of each size writes to a set number of pages in each epoch; of the epochs of each such set the
//! spread of the pauses is taken, with their parts. An epoch is as long as the link needs for what is written in
//! it (`--mib-per-second`): with one that is too short the pause would wait for the link, and the link would
//! be what is measured. All on the clock of the host that pauses the guest.

mod row;

use super::stage::{Setting, Stage, StageSpec, dress};
use super::{Output, write_json};
use crate::cli::Failure;
use crate::config::Mode;
use clap::{Args, ValueEnum};
use holdfast_lab::artifacts::{Artifacts, Qemu};
use holdfast_lab::client::{Content, Dirty, Pace};
use holdfast_lab::emulator::WireSpec;
use holdfast_lab::topology::guest_ip;
use row::{Row, aims, heading, line, ratios, table};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Epochs after a change that are not looked at.
const SETTLING: u64 = 4;
/// Sizes of the guest, where none are named.
const GUESTS_MIB: [u32; 4] = [256, 1024, 4096, 8192];
/// Of the epochs that Holdfast remembers, some are not committed yet.
const MOST_EPOCHS: u64 = 400;

#[derive(Clone, Debug, Args)]
pub(crate) struct PauseOptions {
    /// Pages that the guest writes in an epoch.
    #[arg(long, value_delimiter = ',', default_value = "100,200,1000,5000,20000,50000")]
    pages: Vec<u32>,
    /// Sizes of the guest, in MiB. Each takes that much memory twice [default: 256, 1024, 4096 and 8192, as far as the
    /// host has memory for them].
    #[arg(long, value_delimiter = ',')]
    guest_mib: Option<Vec<u32>>,
    /// How the pages are written.
    #[arg(long, value_enum, default_value = "once")]
    writes: Writes,
    /// What is written to them.
    #[arg(long, value_enum, default_value = "noise")]
    content: Fill,
    /// Epochs of each row.
    #[arg(long, default_value_t = 60)]
    epochs: u64,
    /// Milliseconds from one checkpoint to the next, where the pages do not need longer.
    #[arg(long, default_value_t = 50)]
    epoch_ms: u64,
    /// What the link is taken to carry: epochs with more pages are longer.
    #[arg(long, default_value_t = 150)]
    mib_per_second: u64,
    /// Rounds; each boots every guest anew, every other one begins with the largest set.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// The QEMU to use.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Writes {
    /// Each page once an epoch, one after the other.
    Once,
    /// All pages four times an epoch: none of them settles.
    Again,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fill {
    /// Noise, which cannot be compressed.
    Noise,
    /// A word; the rest of the page is zero.
    Word,
}

/// What a run found.
#[derive(Default)]
struct Found {
    rows: Vec<Row>,
    /// Guests that nobody asked for by name, and for which there is no room.
    skipped: Vec<String>,
    /// Rows that could not be taken, and why.
    refused: Vec<String>,
}

impl PauseOptions {
    fn guests_mib(&self) -> &[u32] {
        self.guest_mib.as_deref().unwrap_or(&GUESTS_MIB)
    }
}

impl Found {
    fn skip(&mut self, text: String) {
        println!("{text}");
        self.skipped.push(text);
    }

    fn refuse(&mut self, text: String) {
        println!("{text}");
        self.refused.push(text);
    }
}

/// Runs the benchmark.
pub(super) fn run(options: &PauseOptions) -> Result<(), Failure> {
    check(options)?;
    options.output.check()?;
    let qemu = Qemu::at(&options.qemu).map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    let artifacts = Artifacts::locate().map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    let machine = super::machine::this(&qemu, &artifacts, &[]);
    let mut found = Found::default();
    print!("{}", heading());
    let rounds =
        (1..=options.rounds).flat_map(|round| options.guests_mib().iter().map(move |mib| (round, *mib)));
    let ended = rounds.into_iter().try_for_each(|(round, mib)| guest(options, &qemu, round, mib, &mut found));
    println!();
    // What was measured before a failure is worth its while.
    print!("{}", table(&found.rows));
    if let Some(path) = &options.output.json {
        let document = json!({
            "bench": "pause",
            "machine": machine,
            "configuration": {
                "writes": format!("{:?}", options.writes).to_lowercase(),
                "content": format!("{:?}", options.content).to_lowercase(),
                "rounds": options.rounds,
                "mib_per_second": options.mib_per_second,
            },
            "rows": found.rows,
            "ratios": ratios(&found.rows),
            "aims": aims(&found.rows),
            "skipped": found.skipped,
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

fn check(options: &PauseOptions) -> Result<(), Failure> {
    let usage = |what: String| Err(Failure::Usage(what));
    if !(1..=MOST_EPOCHS).contains(&options.epochs) {
        return usage(format!("--epochs: {} is not between 1 and {MOST_EPOCHS}", options.epochs));
    }
    if !(5..=10_000).contains(&options.epoch_ms) {
        return usage(format!("--epoch-ms: {} is not between 5 and 10000 ms", options.epoch_ms));
    }
    if let Some(pages) = options.pages.iter().find(|pages| !(1..=Dirty::MAX_PAGES).contains(*pages)) {
        return usage(format!("--pages: {pages} is not between 1 and {}", Dirty::MAX_PAGES));
    }
    if let Some(mib) = options.guests_mib().iter().find(|mib| !(128..=1 << 20).contains(*mib)) {
        return usage(format!("--guest-mib: {mib} is not between 128 and 1048576"));
    }
    if options.mib_per_second == 0 {
        return usage("--mib-per-second: a link that carries nothing".into());
    }
    Ok(())
}

/// All sets of one guest, in one round.
fn guest(
    options: &PauseOptions,
    qemu: &Qemu,
    round: u32,
    guest_mib: u32,
    found: &mut Found,
) -> Result<(), Failure> {
    if let Err(lack) = super::machine::check_memory(guest_mib) {
        match options.guest_mib {
            Some(_) => found.refuse(lack),
            None => found.skip(format!("skipped: {lack}")),
        }
        return Ok(());
    }
    // What the guest's own system needs is not the benchmark's to write.
    let mut sets: Vec<u32> =
        options.pages.iter().copied().filter(|pages| pages >> 8 <= guest_mib / 2).collect();
    if round % 2 == 0 {
        sets.reverse();
    }
    let stage = Stage::start(StageSpec {
        qemu: qemu.clone(),
        wire: &WireSpec::default(),
        seed: 1,
        first: Setting { mode: Mode::Commit, epoch_ms: options.epoch_ms, adaptive: false },
        aware: false,
        memory_mib: guest_mib,
        bypass: None,
        shape: |spec| dress(spec, false),
    })?;
    for pages in sets {
        match stage.guarded(Mode::Commit, |stage| measure(options, stage, round, guest_mib, pages))? {
            Ok((row, _)) => {
                print!("{}", line(&[&row]));
                found.rows.push(row);
            }
            Err(lost) => found.refuse(format!("{guest_mib} MiB, {pages} pages: {lost}")),
        }
    }
    stage.end().map(drop)
}

fn measure(
    options: &PauseOptions,
    stage: &Stage,
    round: u32,
    guest_mib: u32,
    pages: u32,
) -> Result<Row, Failure> {
    let needed_ms = u64::from(pages) * 1000 / 256 / options.mib_per_second;
    let epoch_ms = options.epoch_ms.max(needed_ms);
    stage.change(Setting { mode: Mode::Commit, epoch_ms, adaptive: false })?;
    let epoch_us = u32::try_from(epoch_ms * 1000).unwrap_or(u32::MAX);
    let (pace, interval_us) = match options.writes {
        Writes::Once => (Pace::Spread, epoch_us),
        Writes::Again => (Pace::AtOnce, epoch_us / 4),
    };
    let content = match options.content {
        Fill::Noise => Content::Noise,
        Fill::Word => Content::Word,
    };
    let order = Dirty { pages, interval_us, pace, content };
    stage.client.dirty(guest_ip(1).into(), order).map_err(Failure::failed)?;
    let epoch = Duration::from_millis(epoch_ms);
    let patience =
        |count: u64| Duration::from_secs(60) + epoch * u32::try_from(10 * count).unwrap_or(u32::MAX);
    let begun = stage.await_epochs(SETTLING, patience(SETTLING))?;
    stage.await_epochs(options.epochs, patience(options.epochs))?;
    let status = stage.status_with_epochs().map_err(Failure::failed)?;
    let all = status["epochs"].as_array().map_or(&[][..], Vec::as_slice);
    let committed = |one: &&Value| one["number"].as_u64() > Some(begun) && one["committed_us"].is_u64();
    let epochs: Vec<&Value> = all.iter().filter(committed).collect();
    Row::of((round, guest_mib, pages, epoch_ms), &epochs)
        .ok_or_else(|| Failure::Failed("no epoch was committed while it was measured".into()))
}
