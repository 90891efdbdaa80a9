//! What the supervisor needs of the virtual machine monitor.

use crate::gate::MemoryFacts;
use crate::qemu::Machine;
use crate::tracker::DirtyTracker;
use crossbeam_channel::Receiver;
use thiserror::Error;

/// Whose fault a failure is, for the operator to know where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The guest or its QEMU.
    Guest,
    /// The other host.
    Peer,
    /// This host.
    Host,
    /// The arbiter, or the way to it.
    Arbiter,
    /// A setting or a command.
    Operator,
}

/// Why a step with the guest's QEMU failed.
#[derive(Debug, Error)]
pub enum GuestError {
    /// No QEMU answers yet; this passes, unless its monitor is elsewhere.
    #[error("{0}")]
    NotYet(String),
    /// This guest cannot be protected as it is; the operator is at fault.
    #[error("{0}")]
    Unfit(String),
    /// QEMU is dead, or does not answer in time.
    #[error("the guest's QEMU is lost: {0}")]
    Lost(String),
    /// QEMU lives and answered, but this step failed.
    #[error("{0}")]
    Failed(String),
}

/// The virtual machine monitor of one machine on this host.
pub trait Hypervisor: Send {
    /// The guest that runs on this host, over the memory that was found.
    ///
    /// # Errors
    /// When it is not there yet, or is of a kind that cannot be protected.
    fn guest(&mut self, memory: &MemoryFacts) -> Result<Box<dyn Guest>, GuestError>;

    /// What is in the way of protecting the guest whose memory does not come, if that can be told.
    fn objections(&mut self) -> Option<String> {
        None
    }

    /// Starts the standby over the image, paused and waiting for its state.
    ///
    /// # Errors
    /// When it cannot be started.
    fn standby(&mut self) -> Result<Box<dyn Standby>, GuestError>;

    /// Ends a guest of an earlier term that may still stand on this host, before it becomes a backup.
    fn retire_old(&mut self);
}

/// A guest that runs, or stands still, on this host.
pub trait Guest: Send {
    /// Does what the next pause needs and what may be done while the guest runs.
    ///
    /// # Errors
    /// As [`Guest::stop`].
    fn prepare(&mut self) -> Result<(), GuestError>;

    /// Halts the guest; its devices are quiet and its rings parked when this returns.
    ///
    /// # Errors
    /// [`GuestError::Lost`] when QEMU is taken for dead.
    fn stop(&mut self) -> Result<(), GuestError>;

    /// State of devices and vCPUs of the halted guest.
    ///
    /// # Errors
    /// As [`Guest::stop`], or when QEMU could not save.
    fn save_devices(&mut self) -> Result<Vec<u8>, GuestError>;

    /// Lets the guest run on.
    ///
    /// # Errors
    /// As [`Guest::stop`].
    fn cont(&mut self) -> Result<(), GuestError>;

    /// Threads, by their kernel ids, on which the length of a pause depends.
    fn threads_of_pause(&mut self) -> Vec<i32> {
        Vec::new()
    }

    /// Starts to track which pages of the memory are written.
    ///
    /// # Errors
    /// When this host or this QEMU does not let it.
    fn track(&mut self, memory: &MemoryFacts) -> Result<Box<dyn DirtyTracker>, GuestError>;

    /// What the machine is made of; what [`Guest::changed`] compares with from now on.
    ///
    /// # Errors
    /// When the monitor does not tell.
    fn machine(&mut self) -> Result<Machine, GuestError>;

    /// Why the guest cannot be protected as it is made now; none while it can.
    fn objection(&mut self) -> Option<String>;

    /// In what way the machine is not the one any more that [`Guest::machine`] told of, and what mends it; `state`
    /// is that of its devices as it was just saved, if it could be.
    ///
    /// # Errors
    /// As [`Guest::stop`].
    fn changed(&mut self, state: Option<&[u8]>) -> Result<Option<String>, GuestError>;

    /// A channel that closes when QEMU ends.
    fn ended(&self) -> Receiver<()>;

    /// Gives QEMU back what was changed in it: Holdfast lets go of the guest, which runs on.
    fn leave(&mut self);

    /// Halts the guest for good and ends its QEMU.
    fn retire(self: Box<Self>);
}

/// A QEMU that waits for the state of a guest.
pub trait Standby: Send {
    /// What the machine is made of.
    ///
    /// # Errors
    /// When the monitor does not tell.
    fn machine(&mut self) -> Result<Machine, GuestError>;

    /// A channel that closes when the standby ends.
    fn ended(&self) -> Receiver<()>;

    /// Loads the state and runs the guest.
    ///
    /// # Errors
    /// When the state does not load.
    fn go_live(self: Box<Self>, devices: &[u8]) -> Result<Box<dyn Guest>, GuestError>;
}
