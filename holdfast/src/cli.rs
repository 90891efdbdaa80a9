//! The command line: what there is, and who carries it out.

use crate::control::{self, Request};
use crate::{bench, check_host, config, demo, keys, wire_emulator};
use clap::{Args, Parser, Subcommand};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Keeps a stock QEMU virtual machine and its TCP connections alive when its host is lost.
#[derive(Debug, Parser)]
#[command(version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("HOLDFAST_COMMIT"), ")"), max_term_width = 100)]
pub(crate) struct Arguments {
    /// More log lines; twice for debugging. HOLDFAST_LOG takes filters as tracing's EnvFilter does.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What this host can do, and the line that mends each lack.
    CheckHost(check_host::Options),
    /// Run the appliance.
    Run {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Only check the configuration: exit 0 when it is sound, 2 with all faults when not.
        #[arg(long)]
        check_config: bool,
    },
    /// The state of all VMs, or of one.
    Status {
        vm: Option<String>,
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// With the TCP flows that speculate.
        #[arg(long)]
        flows: bool,
        /// With the last epochs of VMs that are protected here: each one's pause, pages, bytes and commit.
        #[arg(long)]
        epochs: bool,
        #[command(flatten)]
        socket: Socket,
    },
    /// Give a VM over to the other host: asked of the backup it takes over, asked of the primary it gives way.
    Failover {
        vm: String,
        #[command(flatten)]
        socket: Socket,
    },
    /// Replicate a VM and hold its output until each epoch is committed.
    Protect {
        vm: String,
        #[command(flatten)]
        socket: Socket,
    },
    /// Stop replicating a VM; its output passes through.
    Unprotect {
        vm: String,
        #[command(flatten)]
        socket: Socket,
    },
    /// Set the length of a VM's epochs while it runs, and what ends them.
    Epoch {
        vm: String,
        /// Milliseconds from one checkpoint to the next; at most, with adaptive epochs.
        epoch_ms: u64,
        /// What ends an epoch from now on; left as it is without it.
        #[arg(long)]
        policy: Option<config::EpochPolicy>,
        /// With adaptive epochs: of the time, that the guest may stand still; as the VM's configuration has it
        /// without.
        #[arg(long, value_name = "PERCENT", requires = "policy")]
        max_paused_percent: Option<u64>,
        #[command(flatten)]
        socket: Socket,
    },
    /// Set which ports and networks of clients keep plain output commit in modes speculative and aware, while the VM
    /// runs; no byte is lost. Without any, all flows speculate.
    Except {
        vm: String,
        /// Such as 22 or 10.0.0.0/8; with =speculative behind it, one that speculates although a later one would not
        /// let it: "443=speculative 0.0.0.0/0 ::/0". The first that fits a flow decides.
        except: Vec<String>,
        #[command(flatten)]
        socket: Socket,
    },
    /// Change what is done with a VM's output while it runs; no byte is lost.
    Mode {
        vm: String,
        #[arg(value_enum)]
        mode: config::Mode,
        #[command(flatten)]
        socket: Socket,
    },
    /// The whole story on one machine: two hosts and a client in network namespaces, a kill, a failover.
    Demo(demo::DemoOptions),
    /// The demonstration many times, each with another seed and another victim; a line a run.
    Soak(demo::SoakOptions),
    /// Figures as ratios taken in one run.
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
    },
    /// A wire with delay, loss and the like between two interfaces, for a laboratory; SIGTERM ends it, and it
    /// prints its counters as a line of JSON.
    WireEmulator(wire_emulator::Options),
    /// Write the initramfs of the demonstration guest, to attach a guest by hand.
    GuestImage {
        /// Where to write it.
        file: PathBuf,
    },
    /// Make the keys of a pair of hosts: one folder for each.
    Keys {
        /// Folder for the first host's keys; made when it is not there.
        first: PathBuf,
        /// Folder for the second host's keys.
        second: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Socket {
    /// The control socket of the Holdfast to ask.
    #[arg(long, value_name = "PATH", default_value = "/run/holdfast/control.sock")]
    socket: PathBuf,
}

/// Why a command failed; each kind has its exit code.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The command failed.
    #[error("{0}")]
    Failed(String),
    /// The command line or the configuration is at fault.
    #[error("{0}")]
    Usage(String),
    /// The host lacks something; the text names the line that mends it.
    #[error("{0}")]
    HostLacks(String),
}

impl Failure {
    /// The process's exit code.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::HostLacks(_) => 3,
        }
    }

    /// A failure of kind `Failed` from any error.
    pub(crate) fn failed(fault: impl std::fmt::Display) -> Self {
        Self::Failed(fault.to_string())
    }
}

/// Makes sure that a file can be written before it has cost time to know what; what is in it stays.
pub(crate) fn check_writable(path: &Path) -> Result<(), Failure> {
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(|fault| {
        Failure::Usage(format!(
            "cannot write {}: {fault}; mend: name a file in a folder that is there",
            path.display()
        ))
    })
}

/// Sends log lines to standard error; `HOLDFAST_LOG` overrides the level.
pub(crate) fn start_log(verbose: u8) {
    let level = ["info", "debug", "trace"][usize::from(verbose.min(2))];
    let filter = tracing_subscriber::EnvFilter::try_from_env("HOLDFAST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// Carries a command out.
pub(crate) fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::CheckHost(options) => check_host::run(&options),
        Command::Run { config, check_config } => {
            let checked = config::load(&config).map_err(|fault| Failure::Usage(fault.to_string()))?;
            if check_config {
                println!(
                    "{} is sound: {} VM(s) on host {}",
                    config.display(),
                    checked.vms.len(),
                    checked.host
                );
                return Ok(());
            }
            crate::run::run(checked)
        }
        Command::Status { vm, json, flows, epochs, socket } => {
            let document = ask(&socket, &Request::Status { vm, flows, epochs })?;
            if json {
                println!("{document:#}");
            } else {
                print!("{}", crate::status::table(&document));
            }
            Ok(())
        }
        Command::Failover { vm, socket } => ask(&socket, &Request::Failover { vm }).map(drop),
        Command::Protect { vm, socket } => ask(&socket, &Request::Protect { vm }).map(drop),
        Command::Unprotect { vm, socket } => ask(&socket, &Request::Unprotect { vm }).map(drop),
        Command::Epoch { vm, epoch_ms, policy, max_paused_percent, socket } => {
            let request = Request::Epoch { vm, epoch_ms, epoch_policy: policy, max_paused_percent };
            ask(&socket, &request).map(drop)
        }
        Command::Except { vm, except, socket } => ask(&socket, &Request::Except { vm, except }).map(drop),
        Command::Mode { vm, mode, socket } => ask(&socket, &Request::SetMode { vm, mode }).map(drop),
        Command::Demo(options) => demo::run(&options),
        Command::Soak(options) => demo::soak(&options),
        Command::Bench { bench } => bench::run(&bench),
        Command::WireEmulator(options) => wire_emulator::run(&options),
        Command::GuestImage { file } => holdfast_lab::artifacts::Artifacts::locate()
            .and_then(|artifacts| artifacts.write_initramfs(&file, &[]))
            .map_err(|fault| Failure::HostLacks(fault.to_string())),
        Command::Keys { first, second } => keys::run(&first, &second),
    }
}

fn ask(socket: &Socket, request: &Request) -> Result<serde_json::Value, Failure> {
    control::ask(&socket.socket, request).map_err(Failure::failed)
}
