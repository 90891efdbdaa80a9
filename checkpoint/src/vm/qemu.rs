//! A stock QEMU as the supervisor's virtual machine monitor.

use crate::gate::MemoryFacts;
use crate::qemu::{
    InspectError, InspectSettings, Known, Machine, Qemu, QemuError, RefusalKind, RunState, StateError,
    Stopped,
};
use crate::qmp::QmpError;
use crate::standby::{QemuProcess, StandbyConfig, StandbyError};
use crate::tracker::{DirtyTracker, FileIdentity, UffdTracker, mappings_of};
use crate::urgent::settle;
use crate::vm::hypervisor::{Guest, GuestError, Hypervisor, Standby};
use crate::vm::process::Watched;
use crossbeam_channel::Receiver;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a QEMU that is to end may take before it is killed.
const END_LIMIT: Duration = Duration::from_secs(2);

/// How QEMU is reached on this host.
#[derive(Clone, Debug)]
pub struct QemuSettings {
    /// QMP socket of the QEMU that the operator starts.
    pub qmp: PathBuf,
    /// How the standby is started; its guest is looked for there as well.
    pub standby: Option<StandbyConfig>,
    /// What is accepted of a guest.
    pub inspect: InspectSettings,
    /// How long QEMU may take to answer before it is taken for dead.
    pub timeout: Duration,
}

/// The QEMUs of one machine on this host.
#[derive(Debug)]
pub struct QemuHypervisor {
    settings: QemuSettings,
}

impl QemuHypervisor {
    /// QEMU as these settings say.
    #[must_use]
    pub const fn new(settings: QemuSettings) -> Self {
        Self { settings }
    }

    fn sockets(&self) -> impl Iterator<Item = &Path> {
        let standby = self.settings.standby.as_ref().map(|standby| standby.qmp_socket.as_path());
        std::iter::once(self.settings.qmp.as_path()).chain(standby)
    }

    fn connect(&self, path: &Path) -> Result<Qemu, GuestError> {
        let mut qemu = Qemu::connect(path, self.settings.timeout).map_err(|fault| match fault {
            QemuError::Qmp(QmpError::Connect { .. }) => GuestError::NotYet(fault.to_string()),
            other => GuestError::Failed(other.to_string()),
        })?;
        qemu.set_step_limit(self.settings.timeout);
        Ok(qemu)
    }
}

impl Hypervisor for QemuHypervisor {
    fn guest(&mut self, memory: &MemoryFacts) -> Result<Box<dyn Guest>, GuestError> {
        let mut fault = GuestError::NotYet("no QMP socket is configured".to_owned());
        for path in self.sockets() {
            let mut qemu = match self.connect(path) {
                Ok(qemu) => qemu,
                Err(GuestError::NotYet(text)) => {
                    if matches!(fault, GuestError::NotYet(_)) {
                        fault = GuestError::NotYet(text);
                    }
                    continue;
                }
                Err(other) => return Err(other),
            };
            if !has_memory(qemu.pid(), memory.identity) {
                fault = GuestError::Unfit(format!(
                    "the QEMU whose monitor is {} (process {}) is another one than the guest's behind \
                     Holdfast's vhost-user socket; mend: name the monitor of this machine's own QEMU as qmp",
                    path.display(),
                    qemu.pid()
                ));
                continue;
            }
            match qemu.inspect(&self.settings.inspect) {
                Ok(_) => return Ok(Box::new(QemuGuest::new(qemu, None, &self.settings.inspect)?)),
                Err(refused @ InspectError::Refused(_)) => fault = GuestError::Unfit(refused.to_string()),
                Err(InspectError::Qemu(other)) => fault = GuestError::Failed(other.to_string()),
            }
        }
        Err(fault)
    }

    fn objections(&mut self) -> Option<String> {
        let mut qemu = match self.connect(&self.settings.qmp) {
            Ok(qemu) => qemu,
            Err(GuestError::NotYet(_)) => return None,
            Err(fault) => {
                return Some(format!("{fault}; or QEMU waits for a vhost-user socket that is not there"));
            }
        };
        let InspectError::Refused(mut refusals) = qemu.inspect(&self.settings.inspect).err()? else {
            return None;
        };
        // What passes while a QEMU starts.
        refusals
            .retain(|refusal| !matches!(refusal.kind, RefusalKind::State | RefusalKind::MigrationBlocked));
        (!refusals.is_empty()).then(|| InspectError::Refused(refusals).to_string())
    }

    fn standby(&mut self) -> Result<Box<dyn Standby>, GuestError> {
        let config = self.settings.standby.as_ref().ok_or_else(|| {
            GuestError::Unfit("no standby command is configured: add `command` to [vm.backup]".to_owned())
        })?;
        let standby = crate::standby::Standby::start(config).map_err(|fault| from_standby(&fault))?;
        let watched = watch(standby.process().pid())?;
        let inspect = self.settings.inspect.clone();
        Ok(Box::new(QemuStandby { standby, watched, limit: self.settings.timeout, inspect }))
    }

    fn retire_old(&mut self) {
        for path in self.sockets() {
            let Ok(qemu) = self.connect(path) else { continue };
            tracing::warn!(path = %path.display(), "ending a guest of an earlier term");
            match QemuGuest::new(qemu, None, &self.settings.inspect) {
                Ok(guest) => Box::new(guest).retire(),
                Err(fault) => tracing::error!(%fault, "it could not be ended"),
            }
        }
    }
}

/// Whether the process maps that file. One that may not be looked at is taken at its word: what follows
/// says what it lacks.
fn has_memory(pid: i32, file: FileIdentity) -> bool {
    mappings_of(pid).map_or(true, |mappings| mappings.iter().any(|mapping| mapping.file == file))
}

/// Without it nobody could tell whether a checkpoint fits the standby.
fn undescribed(fault: &QmpError) -> GuestError {
    GuestError::Failed(format!("QEMU does not say what its machine is made of: {fault}"))
}

fn watch(pid: i32) -> Result<Watched, GuestError> {
    Watched::begin(pid).map_err(|error| GuestError::Lost(format!("process {pid} cannot be watched: {error}")))
}

struct QemuGuest {
    qemu: Qemu,
    watched: Watched,
    /// Kept for its last words and its reaping.
    _process: Option<QemuProcess>,
    /// Whether the last stop was ours: what the operator stopped is not continued.
    stopped: bool,
    /// Threads of QEMU that serve its monitor, and others that do not run the guest.
    serving: Vec<i32>,
    /// State of the devices of a guest that its operator halted. QEMU saves it once and refuses from then
    /// on ("paused due to previous migration"); until the guest has run again it stays the same.
    halted: Option<Vec<u8>>,
    /// What is accepted of it.
    inspect: InspectSettings,
    /// What the standby was last compared with.
    known: Option<Known>,
}

impl QemuGuest {
    fn new(qemu: Qemu, process: Option<QemuProcess>, inspect: &InspectSettings) -> Result<Self, GuestError> {
        let watched = watch(qemu.pid())?;
        Ok(Self::watched(qemu, watched, process, inspect.clone()))
    }

    fn watched(
        mut qemu: Qemu,
        watched: Watched,
        process: Option<QemuProcess>,
        inspect: InspectSettings,
    ) -> Self {
        // The main thread makes the one that saves the state, which inherits its standing.
        let serving = qemu.serving_threads().unwrap_or_else(|fault| {
            tracing::debug!(%fault, "the threads of QEMU are not known");
            Vec::new()
        });
        settle(&serving);
        let (stopped, halted, known) = (false, None, None);
        Self { qemu, watched, _process: process, stopped, serving, halted, inspect, known }
    }
}

impl Guest for QemuGuest {
    fn prepare(&mut self) -> Result<(), GuestError> {
        self.qemu.prepare().map_err(|fault| from_qemu(&fault))
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        // Without an answer it may stop yet, and it is ours to continue.
        self.stopped = true;
        let stopped = self.qemu.stop().map_err(|fault| from_qemu(&fault))?;
        self.stopped = stopped == Stopped::ByUs;
        if self.stopped {
            self.halted = None;
        }
        Ok(())
    }

    fn save_devices(&mut self) -> Result<Vec<u8>, GuestError> {
        if !self.stopped {
            // Halted, continued and halted once more since: then QEMU calls it paused, not migrated.
            let saved = self.qemu.run_state().map_err(|fault| from_qemu(&fault))? == RunState::Migrating;
            if let Some(state) = self.halted.as_ref().filter(|_| saved) {
                return Ok(state.clone());
            }
        }
        let state = self.qemu.save_devices().map_err(|fault| from_qemu(&fault))?;
        self.halted = (!self.stopped).then(|| state.clone());
        Ok(state)
    }

    fn cont(&mut self) -> Result<(), GuestError> {
        if self.stopped {
            self.qemu.cont().map_err(|fault| from_qemu(&fault))?;
            self.stopped = false;
        }
        Ok(())
    }

    fn threads_of_pause(&mut self) -> Vec<i32> {
        self.serving.clone()
    }

    fn track(&mut self, memory: &MemoryFacts) -> Result<Box<dyn DirtyTracker>, GuestError> {
        let tracker = UffdTracker::attach(self.qemu.pid(), memory.identity, memory.len)
            .map_err(|fault| GuestError::Unfit(fault.to_string()))?;
        self.prepare()?;
        Ok(Box::new(tracker))
    }

    fn machine(&mut self) -> Result<Machine, GuestError> {
        let known = self.qemu.known().map_err(|fault| undescribed(&fault))?;
        Ok(self.known.insert(known).machine().clone())
    }

    fn objection(&mut self) -> Option<String> {
        // Without an answer nobody knows what it is.
        self.qemu.objection(&self.inspect).unwrap_or_else(|fault| Some(undescribed(&fault).to_string()))
    }

    fn changed(&mut self, state: Option<&[u8]>) -> Result<Option<String>, GuestError> {
        let Some(known) = &mut self.known else { return Ok(None) };
        self.qemu.changed(known, &self.inspect, state).map_err(|fault| from_qemu(&fault.into()))
    }

    fn ended(&self) -> Receiver<()> {
        self.watched.ended()
    }

    fn leave(&mut self) {
        if let Err(fault) = self.qemu.leave() {
            tracing::warn!(%fault, "QEMU did not take its own migration settings back");
        }
    }

    fn retire(mut self: Box<Self>) {
        let asked = self.qemu.stop().map(drop).and_then(|()| self.qemu.quit());
        if asked.is_err() || !self.watched.wait_for_end(END_LIMIT) {
            self.watched.kill();
            if !self.watched.wait_for_end(END_LIMIT) {
                tracing::error!(pid = self.qemu.pid(), "a QEMU of an earlier term does not end");
            }
        }
    }
}

struct QemuStandby {
    standby: crate::standby::Standby,
    watched: Watched,
    limit: Duration,
    inspect: InspectSettings,
}

impl Standby for QemuStandby {
    fn machine(&mut self) -> Result<Machine, GuestError> {
        self.standby.machine().map_err(|fault| undescribed(&fault))
    }

    fn ended(&self) -> Receiver<()> {
        self.watched.ended()
    }

    fn go_live(self: Box<Self>, devices: &[u8]) -> Result<Box<dyn Guest>, GuestError> {
        let Self { standby, watched, limit, inspect } = *self;
        let (mut qemu, process) = standby.go_live(devices).map_err(|fault| from_standby(&fault))?;
        qemu.set_step_limit(limit);
        Ok(Box::new(QemuGuest::watched(qemu, watched, Some(process), inspect)))
    }
}

fn from_qemu(fault: &QemuError) -> GuestError {
    let text = fault.to_string();
    match fault {
        QemuError::Qmp(QmpError::Refused { .. })
        | QemuError::NoPid { .. }
        | QemuError::State(StateError::Failed { .. } | StateError::TooLarge { .. }) => {
            GuestError::Failed(text)
        }
        _ => GuestError::Lost(text),
    }
}

fn from_standby(fault: &StandbyError) -> GuestError {
    let text = fault.to_string();
    match fault {
        StandbyError::Spawn { .. }
        | StandbyError::NoMonitor { .. }
        | StandbyError::Occupied { .. }
        | StandbyError::NotExec { .. }
        | StandbyError::NotWaiting { .. } => GuestError::Unfit(text),
        StandbyError::Ended { .. } | StandbyError::Qemu { .. } => GuestError::Failed(text),
    }
}
