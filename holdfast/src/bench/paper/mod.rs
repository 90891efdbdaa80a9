//! `holdfast bench paper`: the paper's evaluation, made again by one command.
//!
//! One guest with the applications of Debian in it, on a pair of hosts; what is done with its output and its
//! epochs is changed while it runs. Rounds go through all settings in turn, so that a machine whose speed
//! drifts favours none of them. Everything is on the client's clock. What was measured while the protection
//! was lost is measured again. The figures are a document, and a page with plots made of it.

mod gathered;
mod plan;
mod take;

use super::machine;
use super::report::write_page;
use super::stage::{MEMORY_MIB, Setting, Stage, StageSpec, dress};
use crate::cli::{Failure, check_writable};
use crate::config::Mode;
use clap::Args;
use gathered::Gathered;
use holdfast_lab::apps::{self, App};
use holdfast_lab::artifacts::{Artifacts, Qemu};
use holdfast_lab::emulator::WireSpec;
use holdfast_lab::guest::GuestSpec;
use holdfast_report::aims;
use holdfast_report::run::{Configuration, Machine, Run};
use indicatif::{ProgressBar, ProgressStyle};
use plan::{Extent, Step, What};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(Clone, Debug, Args)]
pub(crate) struct PaperOptions {
    /// A first look: fewer epochs, sizes and rounds, within ten minutes.
    #[arg(long)]
    quick: bool,
    /// Modes, in the order in which they take their turns.
    #[arg(long, value_enum, value_delimiter = ',')]
    modes: Option<Vec<Mode>>,
    /// Lengths of an epoch, in milliseconds.
    #[arg(long, value_delimiter = ',')]
    epochs: Option<Vec<u64>>,
    /// Applications: nginx, redis, shuffle, rsync, iperf3; "" for none.
    #[arg(long, value_delimiter = ',', value_parser = parse_app)]
    apps: Option<Vec<Option<App>>>,
    /// How often everything is measured.
    #[arg(long)]
    rounds: Option<u32>,
    /// The wire between the hosts and the client, such as "delay=10ms,loss=0.5%"; a plain cable without it.
    #[arg(long, value_name = "WORDS", default_value = "")]
    wire: WireSpec,
    /// Chooses the streams, what is asked of the applications, and the wire's fates.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The QEMU to use.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// Where to write the document; written anew after each round.
    #[arg(long, value_name = "FILE", default_value = "holdfast-paper.json")]
    json: PathBuf,
    /// Where to write the page.
    #[arg(long, value_name = "FILE", default_value = "holdfast-paper.html")]
    html: PathBuf,
}

fn parse_app(name: &str) -> Result<Option<App>, String> {
    if name.is_empty() {
        Ok(None)
    } else {
        name.parse().map(Some).map_err(|fault: apps::UnknownApp| fault.to_string())
    }
}

/// Runs the evaluation.
pub(super) fn run(options: &PaperOptions) -> Result<(), Failure> {
    let extent = extent(options)?;
    check_writable(&options.json).and_then(|()| check_writable(&options.html))?;
    let qemu = Qemu::at(&options.qemu).map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    let artifacts = Artifacts::locate().map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    if !extent.apps.is_empty() {
        artifacts.applications().map_err(|fault| Failure::HostLacks(fault.to_string()))?;
    }
    let steps = plan::steps(&extent);
    let first = steps.first().ok_or_else(|| Failure::Usage("nothing is to be measured".into()))?.setting;
    let mut session = Session {
        began: Instant::now(),
        machine: machine::this(&qemu, &artifacts, &extent.apps),
        options,
        stage: Stage::start(StageSpec {
            qemu,
            wire: &options.wire,
            seed: options.seed,
            first,
            aware: extent.modes.contains(&Mode::Aware),
            memory_mib: MEMORY_MIB,
            bypass: None,
            shape: if extent.apps.is_empty() { without_apps } else { with_apps },
        })?,
        progress: Progress::new(&steps, &extent),
        found: Gathered::default(),
        extent,
    };
    // What was measured before a failure is worth its while.
    let ended = session.all_rounds(&steps);
    session.write()?;
    session.progress.bar.finish_and_clear();
    session.tell();
    ended?;
    session.stage.end()?;
    match session.found.faults.len() {
        0 => Ok(()),
        count => Err(Failure::Failed(format!("{count} measurements were not exact or could not be taken"))),
    }
}

fn without_apps(spec: &mut GuestSpec) {
    dress(spec, true);
}

fn with_apps(spec: &mut GuestSpec) {
    dress(spec, true);
    if let Err(fault) = apps::carry(spec, &App::ALL) {
        tracing::error!("no applications in the guest: {fault}");
    }
}

/// The whole or a part, as the options have it.
fn extent(options: &PaperOptions) -> Result<Extent, Failure> {
    let mut extent = if options.quick { Extent::quick() } else { Extent::whole() };
    if let Some(epochs) = &options.epochs {
        if let Some(epoch) = epochs.iter().find(|epoch| !(5..=10_000).contains(*epoch)) {
            return Err(Failure::Usage(format!("--epochs: {epoch} is not between 5 and 10000 ms")));
        }
        extent.epochs_ms.clone_from(epochs);
    }
    if let Some(modes) = &options.modes {
        extent.modes.clone_from(modes);
    }
    if let Some(apps) = &options.apps {
        extent.apps = apps.iter().copied().flatten().collect();
    }
    match options.rounds {
        Some(0) => return Err(Failure::Usage("--rounds: at least 1".into())),
        Some(rounds) => extent.rounds = rounds,
        None => {}
    }
    Ok(extent)
}

/// A run under way.
struct Session<'a> {
    began: Instant,
    machine: Machine,
    options: &'a PaperOptions,
    extent: Extent,
    progress: Progress,
    stage: Stage,
    found: Gathered,
}

impl Session<'_> {
    fn all_rounds(&mut self, steps: &[Step]) -> Result<(), Failure> {
        for round in 1..=self.extent.rounds {
            let mut last = None;
            for (place, step) in steps.iter().enumerate() {
                self.progress.say(round, step);
                if last != Some(step.setting) {
                    self.stage.change(step.setting)?;
                    last = Some(step.setting);
                }
                self.measure(round, *step)?;
                self.progress.done(place);
            }
            self.write()?;
        }
        Ok(())
    }

    fn measure(&mut self, round: u32, step: Step) -> Result<(), Failure> {
        let seed = self.options.seed ^ u64::from(round) << 32;
        let extent = &self.extent;
        let taken = self.stage.guarded(step.setting.mode, |stage| take::take(stage, step, extent, seed))?;
        let what = || format!("{}, {}", describe(step.setting), name(step.what));
        match taken {
            Ok((taken, _)) => {
                if !taken.is_exact() {
                    self.found.faults.push(format!("{}: not exact", what()));
                }
                self.found.add(step, taken);
            }
            Err(lost) => self.found.faults.push(format!("{}: {lost}", what())),
        }
        if step.what == What::Stream(1) && step.setting.mode.protects() {
            let status = self.stage.status_with_epochs().map_err(Failure::failed)?;
            self.found.record(step.setting, self.extent.stream.as_secs(), &status["epochs"]);
            self.found.lag(step.setting, status["stats"]["guest_clock_lag_ppm"].as_f64());
        }
        Ok(())
    }

    fn run(&self) -> Run {
        let mut machine = self.machine.clone();
        machine.took_s = Some(self.began.elapsed().as_secs_f64().round());
        let extent = &self.extent;
        let mut configuration = Configuration {
            quick: Some(self.options.quick),
            seed: Some(self.options.seed),
            rounds: Some(extent.rounds),
            wire: Some(self.options.wire.to_string()),
            modes: extent.modes.iter().map(|mode| (*mode).into()).collect(),
            epochs_ms: extent.epochs_ms.clone(),
            seconds: Some(extent.stream.as_secs_f64()),
            ..Configuration::default()
        };
        let mut more =
            |name: &str, value: serde_json::Value| drop(configuration.more.insert(name.into(), value));
        more("apps", json!(extent.apps.iter().map(|app| app.name()).collect::<Vec<_>>().join(", ")));
        more("accelerator", json!("TCG: a guest under emulation"));
        more("guest", json!(describe_guest(&self.stage)));
        more(
            "transfers",
            json!(format!(
                "{} of each size at most, {} s",
                extent.transfers,
                extent.transfers_time.as_secs()
            )),
        );
        more("requests", json!(extent.requests));
        more(
            "loads of an application",
            json!(format!("{} of {} s a round", extent.loads, extent.load.as_secs())),
        );
        if !self.found.faults.is_empty() {
            more("faults", json!(self.found.faults.join("; ")));
        }
        Run {
            bench: "paper".into(),
            machine,
            configuration,
            rows: self.found.rows(),
            epochs: self.found.recordings.clone(),
            clock: self.found.clock.clone(),
            refused: Vec::new(),
        }
    }

    fn write(&self) -> Result<(), Failure> {
        let run = self.run();
        let document = serde_json::to_value(&run).map_err(Failure::failed)?;
        super::write_json(&self.options.json, &document)?;
        write_page(&self.options.html, &run)
    }

    fn tell(&self) {
        for aim in aims::of(&self.run()) {
            let found = aim.found.map_or_else(|| "-".into(), |found| format!("{found:.2}{}", aim.unit));
            let (spread, bound) = (aim.spread(), aim.bound());
            println!("{:<72} {found:>10} {spread:>14}   {bound}: {}", aim.aim, aim.verdict());
        }
        self.found.faults.iter().for_each(|fault| println!("{fault}"));
        println!("{} and {}", self.options.json.display(), self.options.html.display());
    }
}

fn describe_guest(stage: &Stage) -> String {
    let spec = &stage.pair.guests[0].spec;
    format!("{} vCPU {}, {} MiB, machine {}", spec.vcpus, spec.cpu, spec.memory_mib, spec.machine)
}

fn describe(Setting { mode, epoch_ms, adaptive }: Setting) -> String {
    if adaptive { format!("{mode}, adaptive epochs") } else { format!("{mode}, epochs of {epoch_ms} ms") }
}

fn name(what: What) -> String {
    match what {
        What::Stream(1) => "a stream".into(),
        What::Stream(count) => format!("{count} streams"),
        What::Transfers { bytes, setup: true } => format!("{} KiB with set-up", bytes >> 10),
        What::Transfers { bytes, setup: false } => format!("{} KiB from idle", bytes >> 10),
        What::Latency => "small requests".into(),
        What::Application(app) => app.name().into(),
    }
}

/// A bar, with the time left by what was planned and how the machine keeps to it.
struct Progress {
    bar: ProgressBar,
    began: Instant,
    /// Of each step of a round.
    expected: Vec<Duration>,
    whole: Duration,
    done: Duration,
}

impl Progress {
    fn new(steps: &[Step], extent: &Extent) -> Self {
        let expected = plan::expected(steps, extent);
        let whole = expected.iter().sum::<Duration>() * extent.rounds;
        let bar = ProgressBar::new(whole.as_millis() as u64);
        let style = ProgressStyle::with_template("{wide_bar} {percent:>3} %  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, began: Instant::now(), expected, whole, done: Duration::ZERO }
    }

    fn say(&self, round: u32, step: &Step) {
        let spent = self.began.elapsed().as_secs_f64();
        let pace = if self.done.is_zero() { 1.0 } else { spent / self.done.as_secs_f64() };
        let left = Duration::from_secs((self.whole.saturating_sub(self.done).as_secs_f64() * pace) as u64);
        let (left, setting) = (humantime::format_duration(left), describe(step.setting));
        let text = format!("{left} left; round {round}: {setting}, {}", name(step.what));
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.set_message(text);
        }
    }

    /// The step at that place of the round is done.
    fn done(&mut self, place: usize) {
        self.done += self.expected[place];
        self.bar.set_position(self.done.as_millis() as u64);
    }
}
