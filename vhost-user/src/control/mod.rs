//! The control thread's knowledge of a device, and when its rings run.
//!
//! A ring runs when it has a size, addresses, memory, a kick and, where the frontend speaks of
//! enabling at all, is enabled (one by which the guest sends also when it is disabled, so that
//! nothing stays in it). Every message changes what is known; [`Control::refresh`] then starts
//! or parks the ring by the mailbox. Changes that a running ring cannot take over (another memory
//! table, other features) park it, apply, and start it where it stopped.
//!
//! A ring that is stopped (GET_VRING_BASE) stays in use: QEMU stops all rings of a machine that it stops for a
//! moment, one after the other, and what is meant for one of them waits for it. QEMU says the same when a driver
//! resets the device. What the next driver does not use, QEMU then disables (SET_VRING_ENABLE), and that ring is
//! out of use, as after other features, RESET_OWNER, and the end of the connection.

mod messages;

use crate::features::{Features, bits};
use crate::mailbox::{Command, ControlSide, CoreGone, Reply};
use crate::memory::{DirtyLog, GuestMemory, LogError, MemoryFiles, RegionSpec, TableError};
use crate::notifier::NotifierError;
use crate::ring::{LayoutError, Queue};
use crate::shared::{DeviceEvent, Shared};
use crate::vring::Vring;
use std::fs::File;
use std::sync::Arc;
use thiserror::Error;

/// Why a message was refused.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Notifier(#[from] NotifierError),
    #[error(transparent)]
    Core(#[from] CoreGone),
    #[error("peer: ring {index} does not exist; the device has {rings}")]
    Ring { index: usize, rings: usize },
    #[error("peer: {what} of ring {index} while it runs")]
    Running { what: &'static str, index: usize },
    #[error("peer: features {0:#x} were not offered")]
    Features(u64),
    #[error("peer: {value} is no possible {what}")]
    Value { what: &'static str, value: u64 },
    #[error(
        "operator: the frontend sets an MTU of {asked}, the device is configured for {limit}; set host_mtu to at most that"
    )]
    Mtu { asked: u16, limit: u16 },
    #[error("peer: {0} is not supported and was not offered")]
    Unsupported(&'static str),
}

/// What the frontend said in this connection.
#[derive(Debug)]
struct Session {
    features: Option<Features>,
    protocol_features: u64,
    memory: Option<Arc<GuestMemory>>,
    log: Option<Arc<DirtyLog>>,
    vrings: Vec<Vring>,
}

impl Session {
    fn new(rings: usize) -> Self {
        Self {
            features: None,
            protocol_features: 0,
            memory: None,
            log: None,
            vrings: (0..rings).map(|_| Vring::default()).collect(),
        }
    }
}

/// The polling cores of a device.
pub(crate) struct Cores {
    sides: Vec<ControlSide>,
    /// For each pair, whose it is.
    of_pair: Vec<usize>,
}

impl Cores {
    /// The cores at the other ends of `sides`; `of_pair` has, for each pair, a place among them.
    pub(crate) fn new(sides: Vec<ControlSide>, of_pair: &[usize]) -> Self {
        Self { sides, of_pair: of_pair.to_vec() }
    }

    /// Hands a command to the core of the ring that it is about, and waits for its answer.
    pub(crate) fn call(&self, command: Command) -> Result<Reply, CoreGone> {
        self.sides[self.of_pair[command.index() / 2]].call(command)
    }
}

/// The state machine behind the messages of a device.
pub(crate) struct Control {
    shared: Arc<Shared>,
    cores: Cores,
    files: MemoryFiles,
    offered: u64,
    queue_pairs: u16,
    mtu_limit: Option<u16>,
    session: Session,
}

impl Control {
    pub(crate) fn new(
        shared: Arc<Shared>,
        cores: Cores,
        files: MemoryFiles,
        offered: u64,
        queue_pairs: u16,
        mtu_limit: Option<u16>,
    ) -> Self {
        let session = Session::new(usize::from(queue_pairs) * 2);
        Self { shared, cores, files, offered, queue_pairs, mtu_limit, session }
    }

    /// A frontend connected: nothing of an earlier one holds any more.
    pub(crate) fn connected(&mut self, pid: Option<i32>) {
        let mut state = self.shared.state();
        state.connected = true;
        state.peer_pid = pid;
        state.connections += 1;
        drop(state);
        tracing::info!(device = self.shared.name(), pid, "vhost-user frontend connected");
        self.shared.send(DeviceEvent::Connected { pid });
    }

    /// The connection is gone: all rings are left before this returns. `fault` says what the frontend
    /// did, when it was its fault.
    pub(crate) fn disconnected(&mut self, fault: Option<String>) {
        let parked = self.park_all();
        if let Err(error) = parked.and(self.give_up_all()) {
            tracing::debug!(device = self.shared.name(), %error, "rings were not parked");
        }
        self.session = Session::new(self.session.vrings.len());
        let mut state = self.shared.state();
        state.connected = false;
        state.peer_pid = None;
        state.features = Features::default();
        state.protocol_features = 0;
        state.mtu = None;
        state.logging = false;
        state.rings_enabled.fill(false);
        let known = fault.is_some() && state.last_peer_fault == fault;
        if let Some(fault) = &fault {
            state.peer_faults += 1;
            state.last_peer_fault = Some(fault.clone());
        }
        drop(state);
        match fault {
            Some(fault) => {
                // Somebody who is no frontend may come, or be found, again and again.
                if known {
                    tracing::debug!(device = self.shared.name(), fault, "vhost-user connection closed again");
                } else {
                    tracing::error!(device = self.shared.name(), fault, "vhost-user connection closed");
                }
                self.shared.send(DeviceEvent::PeerFault(fault));
            }
            None => tracing::info!(device = self.shared.name(), "vhost-user frontend disconnected"),
        }
        self.shared.send(DeviceEvent::Disconnected);
    }

    /// Protocol features agreed in this connection.
    pub(crate) const fn protocol_features(&self) -> u64 {
        self.session.protocol_features
    }

    /// The frontend wants the guest's address announced.
    pub(crate) fn announce(&self, mac: [u8; 6]) {
        self.shared.send(DeviceEvent::AnnounceRequested { mac });
    }

    /// The frontend tells the guest an MTU.
    pub(crate) fn set_mtu(&self, value: u64) -> Result<(), ControlError> {
        let asked = u16::try_from(value).ok().filter(|mtu| *mtu >= 68);
        let asked = asked.ok_or(ControlError::Value { what: "MTU", value })?;
        match self.mtu_limit {
            Some(limit) if asked > limit => Err(ControlError::Mtu { asked, limit }),
            _ => {
                self.shared.state().mtu = Some(asked);
                Ok(())
            }
        }
    }

    /// The frontend enables or disables a ring.
    pub(crate) fn set_enabled(&mut self, index: usize, value: u32) -> Result<(), ControlError> {
        let enabled = match value {
            0 => false,
            1 => true,
            _ => return Err(ControlError::Value { what: "state of a ring", value: u64::from(value) }),
        };
        self.vring(index)?.enabled = enabled;
        self.shared.state().rings_enabled[index] = enabled;
        self.refresh(index)?;
        if enabled { Ok(()) } else { self.give_up(index) }
    }

    fn vring(&mut self, index: usize) -> Result<&mut Vring, ControlError> {
        let rings = self.session.vrings.len();
        self.session.vrings.get_mut(index).ok_or(ControlError::Ring { index, rings })
    }

    /// A ring that must stand still for what the message changes.
    fn parked_vring(&mut self, what: &'static str, index: usize) -> Result<&mut Vring, ControlError> {
        let vring = self.vring(index)?;
        if vring.running { Err(ControlError::Running { what, index }) } else { Ok(vring) }
    }

    fn is_packed(&self) -> bool {
        self.session.features.is_some_and(|features| features.has(bits::RING_PACKED))
    }

    fn should_run(&self, index: usize) -> bool {
        let Session { features, memory, vrings, .. } = &self.session;
        let Some(features) = features else { return false };
        let vring = &vrings[index];
        // Odd rings are those by which the guest sends.
        let open = vring.is_open(index % 2 == 1) || !features.has(bits::PROTOCOL_FEATURES);
        vring.started && open && vring.layout().is_some() && memory.is_some()
    }

    /// Starts or parks the ring as what is known of it demands.
    fn refresh(&mut self, index: usize) -> Result<(), ControlError> {
        match (self.session.vrings[index].running, self.should_run(index)) {
            (false, true) => {
                let first = !self.any_running();
                self.start(index)?;
                if first {
                    self.shared.send(DeviceEvent::Started);
                }
            }
            (true, false) => self.stop(index)?,
            _ => {}
        }
        Ok(())
    }

    /// Parks a ring for good; reports it when it was the last.
    fn stop(&mut self, index: usize) -> Result<(), ControlError> {
        self.park(index)?;
        if !self.any_running() {
            self.shared.send(DeviceEvent::Stopped);
        }
        Ok(())
    }

    fn any_running(&self) -> bool {
        self.session.vrings.iter().any(|vring| vring.running)
    }

    /// The log that running rings write to now.
    fn active_log(&self) -> Option<Arc<DirtyLog>> {
        let logging = self.session.features.is_some_and(|features| features.has(bits::LOG_ALL));
        self.session.log.clone().filter(|_| logging)
    }

    fn start(&mut self, index: usize) -> Result<(), ControlError> {
        let log = self.active_log();
        let vring = &mut self.session.vrings[index];
        let (Some(layout), Some(memory), Some(features)) =
            (vring.layout(), self.session.memory.clone(), self.session.features)
        else {
            return Ok(());
        };
        let mut queue = Box::new(Queue::new(memory, log, layout, vring.base, features)?);
        queue.kick = vring.kick.take();
        queue.call = vring.call.take();
        queue.error = vring.error.take();
        vring.running = true;
        vring.in_use = true;
        self.cores.call(Command::Start { index, queue, features })?;
        Ok(())
    }

    /// Makes the core leave the ring, and takes the notifiers back. Returns when it has left.
    fn park(&mut self, index: usize) -> Result<(), ControlError> {
        let vring = &mut self.session.vrings[index];
        if !std::mem::take(&mut vring.running) {
            return Ok(());
        }
        if let Reply::Parked { queue, next_available, faulted } = self.cores.call(Command::Park { index })? {
            if let Some(next) = next_available {
                vring.base = next;
            }
            if let Some(mut queue) = queue {
                vring.kick = queue.kick.take();
                vring.call = queue.call.take();
                vring.error = queue.error.take();
            }
            // A ring that broke the rules runs again only when the driver sets it up anew.
            vring.started &= !faulted;
        }
        Ok(())
    }

    fn park_all(&mut self) -> Result<(), ControlError> {
        let was_running = self.any_running();
        // A core that is gone keeps no other from leaving its rings.
        let parked = (0..self.session.vrings.len()).map(|index| self.park(index));
        let outcome = parked.fold(Ok(()), Result::and);
        if was_running {
            self.shared.send(DeviceEvent::Stopped);
        }
        outcome
    }

    /// Tells the core that nothing is to wait for this ring.
    fn give_up(&mut self, index: usize) -> Result<(), ControlError> {
        if std::mem::take(&mut self.session.vrings[index].in_use) {
            self.cores.call(Command::GiveUp { index })?;
        }
        Ok(())
    }

    fn give_up_all(&mut self) -> Result<(), ControlError> {
        (0..self.session.vrings.len()).map(|index| self.give_up(index)).fold(Ok(()), Result::and)
    }

    /// Parks what runs, applies `change`, and starts again what may run, each where it stopped.
    fn while_parked(&mut self, change: impl FnOnce(&mut Self)) -> Result<(), ControlError> {
        let rings = 0..self.session.vrings.len();
        let ran: Vec<usize> = rings.filter(|&index| self.session.vrings[index].running).collect();
        for &index in &ran {
            self.park(index)?;
        }
        change(self);
        for &index in &ran {
            if self.should_run(index) {
                self.start(index)?;
            }
        }
        if !ran.is_empty() && !self.any_running() {
            self.shared.send(DeviceEvent::Stopped);
        }
        Ok(())
    }

    /// Takes over a memory table. One that says what the last one said changes nothing, whoever sent
    /// that: descriptors are new each time, files and places are what counts.
    fn set_memory(&mut self, table: &[(RegionSpec, File)]) -> Result<(), ControlError> {
        let mut memory = Arc::new(GuestMemory::new(&self.files, table)?);
        let known = self.shared.memory().clone().filter(|known| known.same_as(&memory));
        let changed = known.is_none();
        if let Some(known) = known {
            memory = known;
        }
        if let Some(log) = &self.session.log {
            log.covers(memory.end().0)?;
        }
        if self.session.memory.as_ref().is_some_and(|current| Arc::ptr_eq(current, &memory)) {
            return Ok(());
        }
        self.while_parked(|control| control.session.memory = Some(Arc::clone(&memory)))?;
        if changed {
            *self.shared.memory() = Some(memory);
            self.shared.send(DeviceEvent::MemoryChanged);
        }
        for index in 0..self.session.vrings.len() {
            self.refresh(index)?;
        }
        Ok(())
    }

    fn set_features(&mut self, asked: u64) -> Result<(), ControlError> {
        if asked & !self.offered != 0 {
            return Err(ControlError::Features(asked & !self.offered));
        }
        let features = Features::new(asked);
        let before = self.session.features.map(Features::bits);
        if before.is_some_and(|before| (before ^ asked) & !bits::LOG_ALL == 0) {
            self.session.features = Some(features);
            self.update_logs()?;
        } else {
            // Another driver, which takes up what it uses.
            self.give_up_all()?;
            self.while_parked(|control| control.session.features = Some(features))?;
        }
        let mut state = self.shared.state();
        state.features = features;
        state.logging = features.has(bits::LOG_ALL) && self.session.log.is_some();
        drop(state);
        for index in 0..self.session.vrings.len() {
            self.refresh(index)?;
        }
        Ok(())
    }

    fn set_log(&mut self, log: DirtyLog) -> Result<(), ControlError> {
        if let Some(memory) = &self.session.memory {
            log.covers(memory.end().0)?;
        }
        self.session.log = Some(Arc::new(log));
        self.shared.state().logging = self.active_log().is_some();
        self.update_logs()
    }

    /// Tells every running ring where to log now.
    fn update_logs(&mut self) -> Result<(), ControlError> {
        for index in 0..self.session.vrings.len() {
            let vring = &self.session.vrings[index];
            if vring.running {
                let used_log = vring.addresses.and_then(|addresses| addresses.used_log);
                self.cores.call(Command::SetLog { index, log: self.active_log(), used_log })?;
            }
        }
        Ok(())
    }
}
