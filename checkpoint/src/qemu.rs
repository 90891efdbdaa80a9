//! A QEMU that runs a guest, driven through its monitor.
//!
//! ```text
//!   inspect    what the guest is made of; what Holdfast cannot protect is refused with its mend
//!   prepare ─ stop ─ save_devices ─ cont        one checkpoint; only the middle part is a pause
//!   load_devices ─ cont                         the standby's way to life
//!   known ─ changed                           whether devices were plugged in or out meanwhile
//!   leave                                       gives QEMU its own settings back
//! ```
//!
//! A checkpoint of device and vCPU state is a migration into a pipe with `x-ignore-shared`: memory
//! that is a shared file stays where it is. What can be done while the guest still runs (making the pipe,
//! handing it over) is done by [`Qemu::prepare`]. Everything has a deadline, and nothing sleeps: the thread
//! waits for the monitor and the pipe at once. One thread owns a `Qemu`.

mod changes;
mod devices;
mod error;
mod inspect;
mod layout;
mod machine;

pub use error::{QemuError, StateError};
pub use inspect::{
    DiskFacts, GuestFacts, InspectError, InspectSettings, MemoryFacts, NicFacts, Refusal, RefusalKind,
};

pub use changes::Known;
pub use machine::Machine;

use crate::qmp::{Event, Qmp, QmpError};
use devices::Receiver;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long QEMU may take to stop, save its devices, load them, or go on.
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// What QEMU says it is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// The guest runs.
    Running,
    /// The guest was paused by somebody, or not started yet (`prelaunch`).
    Paused,
    /// The guest stands still for a migration, or did when it was cut off.
    Migrating,
    /// QEMU waits for a guest's state.
    Inmigrate,
    /// The guest was shut down, crashed, or hit a disk error: QEMU's own word.
    Other(String),
}

impl RunState {
    fn parse(word: &str) -> Self {
        match word {
            "running" => Self::Running,
            "paused" | "prelaunch" => Self::Paused,
            "finish-migrate" | "postmigrate" => Self::Migrating,
            "inmigrate" => Self::Inmigrate,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// What a stop found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The guest ran and stands still now.
    ByUs,
    /// The guest stood still already, by somebody else's will: it is not ours to continue.
    Already,
}

/// A QEMU and its monitor.
#[derive(Debug)]
pub struct Qemu {
    qmp: Qmp,
    path: PathBuf,
    pid: i32,
    version: (u64, u64, u64),
    /// The settings that were there before ours.
    own_settings: Option<Value>,
    /// The pipe for the next checkpoint, already handed over.
    receiver: Option<Receiver>,
    /// Size of the last device state: the next one is about as large.
    last_size: usize,
    /// How long a stop, a save or a continue may take.
    step_limit: Duration,
}

impl Qemu {
    /// Connects to the monitor at `path`; the process is the one that listens there.
    ///
    /// # Errors
    /// When the monitor does not answer, or the process cannot be told.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, QemuError> {
        let qmp = Qmp::connect(path, limit)?;
        let (pid, version) = (qmp.peer_pid()?, qmp.version()?);
        if pid <= 0 {
            return Err(QemuError::NoPid { path: path.to_owned() });
        }
        let path = path.to_owned();
        Ok(Self {
            qmp,
            path,
            pid,
            version,
            own_settings: None,
            receiver: None,
            last_size: 0,
            step_limit: STEP_LIMIT,
        })
    }

    /// From now on QEMU may take so long to stop, to save or to continue; longer, and it counts as hung.
    pub const fn set_step_limit(&mut self, limit: Duration) {
        self.step_limit = limit;
    }

    /// Process id of QEMU.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Version of QEMU: major, minor, micro.
    #[must_use]
    pub const fn version(&self) -> (u64, u64, u64) {
        self.version
    }

    /// Path of the monitor's socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The monitor itself, for what this type does not offer.
    pub const fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// What QEMU is doing.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn run_state(&mut self) -> Result<RunState, QemuError> {
        let status = self.qmp.execute("query-status", Value::Null)?;
        Ok(RunState::parse(status["status"].as_str().unwrap_or_default()))
    }

    /// Threads of QEMU, by their kernel ids, that do not run the guest's processors: the main one and that
    /// of the monitor among them.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn serving_threads(&mut self) -> Result<Vec<i32>, QemuError> {
        let processors = self.qmp.execute("query-cpus-fast", Value::Null)?;
        let runs_guest = |thread: i32| {
            processors.as_array().is_some_and(|list| list.iter().any(|one| one["thread-id"] == thread))
        };
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let threads = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
        Ok(threads.filter(|&thread| !runs_guest(thread)).collect())
    }

    /// Events that QEMU reported since the last call and that say that the guest ended, was reset or
    /// stopped by somebody else.
    ///
    /// # Errors
    /// [`QmpError::Closed`] when QEMU is gone.
    pub fn poll_guest_event(&mut self) -> Result<Option<Event>, QemuError> {
        const NAMES: [&str; 6] = ["SHUTDOWN", "RESET", "GUEST_PANICKED", "STOP", "RESUME", "BLOCK_IO_ERROR"];
        self.qmp.pump(Instant::now(), None)?;
        Ok(self.qmp.take_event(|event| NAMES.contains(&event.name.as_str())))
    }

    /// Stops the guest. When this returns, the vCPUs stand still, QEMU has drained its I/O and every
    /// vhost-user device has answered GET_VRING_BASE.
    ///
    /// # Errors
    /// When QEMU does not stop in time.
    pub fn stop(&mut self) -> Result<Stopped, QemuError> {
        // Somebody else's stop that was not read yet would be taken for ours, and be undone.
        self.qmp.pump(Instant::now(), None)?;
        self.forget_stops();
        let pending = self.qmp.begin("stop", Value::Null, None)?;
        self.qmp.finish(&pending, self.step_limit)?;
        let ours = self.qmp.take_event(|event| event.name == "STOP").is_some();
        Ok(if ours { Stopped::ByUs } else { Stopped::Already })
    }

    /// Lets the guest go on.
    ///
    /// # Errors
    /// When QEMU does not continue in time.
    pub fn cont(&mut self) -> Result<(), QemuError> {
        let deadline = Instant::now() + self.step_limit;
        loop {
            match self.qmp.execute_within("cont", Value::Null, self.step_limit) {
                Ok(_) => {
                    self.forget_stops();
                    return Ok(());
                }
                // Between the end of a migration and its clean-up QEMU answers so, for a moment; the way
                // through the monitor is the pace of asking again.
                Err(QmpError::Refused { desc, .. })
                    if desc.contains("not finalized") && Instant::now() < deadline => {}
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    /// Ends QEMU, with the guest.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn quit(&mut self) -> Result<(), QemuError> {
        match self.qmp.execute("quit", Value::Null) {
            Ok(_) | Err(QmpError::Closed) => Ok(()),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Gives QEMU the migration settings back that it had before Holdfast came, so that a live
    /// migration copies memory again.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn leave(&mut self) -> Result<(), QemuError> {
        self.receiver = None;
        if let Some(before) = self.own_settings.take() {
            let capabilities = json!({ "capabilities": before["capabilities"] });
            self.qmp.execute("migrate-set-capabilities", capabilities)?;
            self.qmp.execute("migrate-set-parameters", before["parameters"].clone())?;
        }
        Ok(())
    }

    /// Events of our own stops and continues are nobody's news.
    fn forget_stops(&mut self) {
        while self.qmp.take_event(|event| matches!(event.name.as_str(), "STOP" | "RESUME")).is_some() {}
    }
}

#[cfg(test)]
pub(crate) mod tests;
