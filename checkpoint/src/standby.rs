//! The standby: a QEMU on the backup that waits for a guest's state.
//!
//! It is started beforehand, for starting a process takes longer than loading a guest into it: same
//! machine as the primary's, memory mapped on the image, `-incoming defer`. [`Standby::load`] gives it the
//! state of the last committed checkpoint, [`Standby::resume`] lets it run.
//!
//! Until then it lives and dies with Holdfast: it is killed on drop, and by the kernel when Holdfast dies
//! in any other way. From then on it carries the guest, and lives on when Holdfast does not.
//!
//! A keeper thread starts the process, in the network namespace of the thread that asked for it, passes what
//! it says on standard error on to the log, keeps the last lines for error messages, and reaps it.

mod process;

pub use process::QemuProcess;

use crate::qemu::{Machine, Qemu, QemuError, RunState, StateError};
use crate::qmp::QmpError;
use process::Keeper;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long somebody who holds our socket may take to say what he is.
const OCCUPANT_LIMIT: Duration = Duration::from_secs(2);

/// How often a process that starts is asked whether its monitor is there; its end is noticed at once.
const START_STEP: Duration = Duration::from_millis(5);

/// How a standby is started.
#[derive(Clone, Debug)]
pub struct StandbyConfig {
    /// Program and arguments. `-incoming defer` and `-qmp` are added when they are not there.
    pub argv: Vec<String>,
    /// Where its monitor is to listen.
    pub qmp_socket: PathBuf,
    /// How long it may take to start.
    pub start_limit: Duration,
}

/// Why a standby could not be started or brought to life.
#[derive(Debug, Error)]
pub enum StandbyError {
    /// The operator: no command, or one that is not there.
    #[error("cannot start the standby {program:?}: {source}; install QEMU or correct the standby's command")]
    Spawn {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// The standby ended.
    #[error("the standby QEMU has ended ({status}); its last words:\n{words}")]
    Ended {
        /// How it ended.
        status: String,
        /// What it said on standard error.
        words: String,
    },
    /// The standby did not come up.
    #[error("the standby QEMU has no monitor at {} after {limit:?}; its last words:\n{words}", path.display())]
    NoMonitor {
        /// Where it should listen.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
        /// What it said on standard error.
        words: String,
    },
    /// The operator: another QEMU is there.
    #[error(
        "process {pid} already serves {} and is {state:?}, not a standby: \
         end it, or give this VM's standby a socket of its own",
        path.display()
    )]
    Occupied {
        /// The socket.
        path: PathBuf,
        /// Who serves it.
        pid: i32,
        /// What it does.
        state: RunState,
    },
    /// The operator: the command started QEMU as its child.
    #[error(
        "the standby's command is process {started} but its monitor belongs to process {serving}: \
         let the command become QEMU (exec), so that it ends when it must"
    )]
    NotExec {
        /// The process that was started.
        started: i32,
        /// The process that serves the monitor.
        serving: i32,
    },
    /// The operator: it does not wait for a state.
    #[error(
        "the standby QEMU is {state:?} instead of waiting for a guest: its command needs -incoming defer"
    )]
    NotWaiting {
        /// What it does.
        state: RunState,
    },
    /// It could not be driven.
    #[error("{fault}{}", said(words))]
    Qemu {
        /// What failed.
        #[source]
        fault: QemuError,
        /// What it said on standard error.
        words: String,
    },
}

fn said(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!("; the standby's last words:\n{words}") }
}

/// A QEMU that waits for a guest's state.
#[derive(Debug)]
pub struct Standby {
    qemu: Qemu,
    process: QemuProcess,
}

impl Standby {
    /// Starts it and waits until it is ready for a state.
    ///
    /// # Errors
    /// When it does not start, ends, or is not what was asked for; it is ended then.
    pub fn start(config: &StandbyConfig) -> Result<Self, StandbyError> {
        clear_socket(&config.qmp_socket)?;
        let process = Keeper::start(complete(config))?;
        let mut qemu = connect(config, &process)?;
        let (started, serving) = (process.pid(), qemu.pid());
        if started != serving {
            return Err(StandbyError::NotExec { started, serving });
        }
        let prepared = qemu.run_state().and_then(|state| qemu.set_up().map(|()| state));
        match prepared.map_err(|fault| process.fault(fault))? {
            RunState::Inmigrate => Ok(Self { qemu, process }),
            state => Err(StandbyError::NotWaiting { state }),
        }
    }

    /// What the machine is made of.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn machine(&mut self) -> Result<Machine, QmpError> {
        self.qemu.machine()
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &QemuProcess {
        &self.process
    }

    /// Fails if it has ended; a standby that has must be started anew before it is needed.
    ///
    /// # Errors
    /// [`StandbyError::Ended`] with its last words.
    pub fn check(&self) -> Result<(), StandbyError> {
        self.process.check()
    }

    /// Loads the state of devices and vCPUs; the guest then stands still where it was sealed.
    ///
    /// # Errors
    /// When QEMU does not accept it; only a new standby helps then.
    pub fn load(&mut self, device_state: &[u8]) -> Result<(), StandbyError> {
        self.qemu.load_devices(device_state).map_err(|fault| self.process.fault(fault))
    }

    /// Lets the guest run. From now on it does not end with Holdfast any more.
    ///
    /// # Errors
    /// When QEMU does not continue; it is ended then.
    pub fn resume(mut self) -> Result<(Qemu, QemuProcess), StandbyError> {
        self.qemu.cont().map_err(|fault| self.process.fault(fault))?;
        self.process.set_free();
        Ok((self.qemu, self.process))
    }

    /// Loads the state and lets the guest run.
    ///
    /// # Errors
    /// As [`Standby::load`] and [`Standby::resume`].
    pub fn go_live(mut self, device_state: &[u8]) -> Result<(Qemu, QemuProcess), StandbyError> {
        self.load(device_state)?;
        self.resume()
    }
}

/// The command with what a standby needs.
fn complete(config: &StandbyConfig) -> Vec<String> {
    let mut argv = config.argv.clone();
    let socket = config.qmp_socket.display().to_string();
    if !argv.iter().any(|argument| argument.contains(&socket)) {
        argv.extend(["-qmp".to_owned(), format!("unix:{socket},server=on,wait=off")]);
    }
    if !argv.iter().any(|argument| matches!(argument.as_str(), "-incoming" | "--incoming")) {
        argv.extend(["-incoming".to_owned(), "defer".to_owned()]);
    }
    argv
}

/// Ends a standby that an earlier Holdfast left behind; refuses to touch a guest that runs.
fn clear_socket(path: &Path) -> Result<(), StandbyError> {
    let no_words = |fault| StandbyError::Qemu { fault, words: String::new() };
    let deadline = Instant::now() + OCCUPANT_LIMIT;
    let mut occupant = loop {
        match Qemu::connect(path, OCCUPANT_LIMIT) {
            Ok(occupant) => break occupant,
            // Nobody is there: QEMU takes the name over.
            Err(QemuError::Qmp(QmpError::Connect { source, .. })) if is_vacant(&source) => return Ok(()),
            // Somebody is on the way out.
            Err(QemuError::Qmp(QmpError::Closed)) if Instant::now() < deadline => {}
            // Somebody is there, and what he does cannot be told.
            Err(fault) => return Err(no_words(fault)),
        }
    };
    match occupant.run_state().map_err(no_words)? {
        RunState::Inmigrate => {
            // On its way out it removes the socket's name: the next one must not have taken it by then.
            let process = process::open_process(occupant.pid().unsigned_abs());
            occupant.quit().map_err(no_words)?;
            match process {
                Ok(process) if !process::has_ended(&process, OCCUPANT_LIMIT) => Err(StandbyError::Occupied {
                    path: path.to_owned(),
                    pid: occupant.pid(),
                    state: RunState::Inmigrate,
                }),
                // It has ended, before it could be looked at or since.
                _ => Ok(()),
            }
        }
        state => Err(StandbyError::Occupied { path: path.to_owned(), pid: occupant.pid(), state }),
    }
}

fn is_vacant(fault: &io::Error) -> bool {
    matches!(fault.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Waits for the monitor of a process that starts.
fn connect(config: &StandbyConfig, process: &QemuProcess) -> Result<Qemu, StandbyError> {
    let deadline = Instant::now() + config.start_limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match Qemu::connect(&config.qmp_socket, left.max(START_STEP)) {
            Ok(qemu) => return Ok(qemu),
            Err(QemuError::Qmp(QmpError::Connect { .. } | QmpError::Closed)) if !left.is_zero() => {
                process.wait_for_end(START_STEP);
                process.check()?;
            }
            Err(QemuError::Qmp(QmpError::Connect { .. } | QmpError::NoGreeting { .. })) => {
                process.check()?;
                return Err(StandbyError::NoMonitor {
                    path: config.qmp_socket.clone(),
                    limit: config.start_limit,
                    words: process.last_words(),
                });
            }
            Err(fault) => return Err(process.fault(fault)),
        }
    }
}

impl QemuProcess {
    /// The error for an operation that failed: the end of the process explains more than its silence.
    fn fault(&self, fault: QemuError) -> StandbyError {
        let ending = match &fault {
            QemuError::Qmp(fault) => matches!(fault, QmpError::Closed),
            // A QEMU that cannot load a state ends by itself.
            QemuError::State(fault) => matches!(fault, StateError::Ended { .. } | StateError::Failed { .. }),
            QemuError::NoPid { .. } => false,
        };
        let words = if ending { self.words_of_end(OCCUPANT_LIMIT) } else { self.last_words() };
        StandbyError::Qemu { fault, words }
    }
}

#[cfg(test)]
mod tests;
