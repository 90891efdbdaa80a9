//! Holdfast's agent in a guest: congestion control that knows of replication.
//!
//! It asks on the link whether Holdfast is there and wants it ([`holdfast_packet::guest_channel`], mode aware).
//! While it does, the guest's default congestion control is `holdfast`, BPF programs that open each flow's window to
//! what the escrow offers (`bpf/aware.bpf.c`), or that of the connections that were chosen; otherwise the guest has
//! its own. It keeps the guest's wall clock by the host's as well ([`clock`]). One process, one thread.
//!
//! Exit codes: 0 done, 1 failed, 2 usage, 3 the guest lacks something, which is named.

mod agent;
mod channel;
mod choice;
mod clock;
mod congestion;
mod control;
mod install;
mod interfaces;
mod presence;
mod probe;
mod status;
mod step;

use choice::Choice;
use clap::{Args, Parser, Subcommand};
use clock::ClockOptions;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Holdfast's agent in a guest.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say what this guest has and lacks, what mends each lack, and who answers on the link.
    Probe {
        /// Look at the files of another system, and at nothing else.
        #[arg(long, value_name = "FOLDER", default_value = "/")]
        root: PathBuf,
        #[command(flatten)]
        choice: Choice,
    },
    /// Run until told to end: in mode aware, `holdfast` is the default congestion control, or that of
    /// chosen connections.
    Run {
        #[command(flatten)]
        options: RunOptions,
    },
    /// Say how the running agent is.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Set the wall clock to the host's, once.
    Step {
        /// By what the host's clock is seen.
        #[arg(long, value_enum, default_value = "auto")]
        clock: clock::Source,
    },
    /// Undo what an agent left that was killed.
    Undo,
    /// Install the program and its systemd unit, which runs it with these options, and start it.
    Install {
        #[command(flatten)]
        options: RunOptions,
        /// Into a system that does not run, such as an image that is mounted there.
        #[arg(long, value_name = "FOLDER", default_value = "/")]
        root: PathBuf,
    },
    /// Remove what `install` made.
    Uninstall {
        /// From a system that does not run.
        #[arg(long, value_name = "FOLDER", default_value = "/")]
        root: PathBuf,
    },
}

/// How the agent runs.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
struct RunOptions {
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    clock: ClockOptions,
}

/// Why a command ended without success.
#[derive(Debug)]
enum Failure {
    /// It failed.
    Failed(String),
    /// The guest lacks something.
    Lacks(String),
}

impl Failure {
    fn failed(fault: impl Display) -> Self {
        Self::Failed(fault.to_string())
    }

    fn lacks(fault: impl Display) -> Self {
        Self::Lacks(fault.to_string())
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Probe { root, choice } => run_probe(&root, &choice),
        Command::Run { options } => agent::run(options),
        Command::Status { json } => tell_status(json),
        Command::Step { clock } => step::step(clock),
        Command::Undo => undo(),
        Command::Install { options, root } => install::install(&root, &options),
        Command::Uninstall { root } => install::uninstall(&root),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(text)) => {
            eprintln!("holdfast-guest: {text}");
            ExitCode::from(1)
        }
        Err(Failure::Lacks(text)) => {
            eprintln!("holdfast-guest: {text}");
            ExitCode::from(3)
        }
    }
}

fn run_probe(root: &Path, choice: &Choice) -> Result<(), Failure> {
    let mut found = probe::look(root, choice);
    if root == Path::new("/") && found.iter().all(|finding| finding.mend.is_none()) {
        found.push(probe::try_programs());
        found.extend(probe::ask());
    }
    for finding in &found {
        match finding.mend {
            None => println!("good  {}", finding.text),
            Some(mend) => println!("LACK  {}\n      mend: {mend}", finding.text),
        }
    }
    match found.iter().filter(|finding| finding.mend.is_some()).count() {
        0 => Ok(()),
        count => Err(Failure::Lacks(format!("{count} of what the agent needs is missing here"))),
    }
}

fn tell_status(json: bool) -> Result<(), Failure> {
    let folder = Path::new(status::FOLDER);
    let status = status::Status::read(folder).map_err(Failure::failed)?;
    let Some(status) = status.filter(status::Status::is_of_running) else {
        return Err(Failure::Failed(
            "no agent runs; mend: systemctl start holdfast-guest, or holdfast-guest run".into(),
        ));
    };
    match json {
        true => println!("{}", serde_json::to_string(&status).map_err(Failure::failed)?),
        false => print!("{status}"),
    }
    Ok(())
}

fn undo() -> Result<(), Failure> {
    let folder = Path::new(status::FOLDER);
    let left = status::Status::read(folder).map_err(Failure::failed)?;
    if let Some(running) = left.as_ref().filter(|left| left.is_of_running()) {
        return Err(Failure::Failed(format!("the agent runs, as process {}; end it first", running.pid)));
    }
    let undone = agent::undo(left.as_ref())?;
    if left.is_some() {
        status::Status::remove(folder).map_err(Failure::failed)?;
    }
    println!("{}", if undone { "undone" } else { "nothing to undo" });
    Ok(())
}
