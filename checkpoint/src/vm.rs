//! The supervisor of one virtual machine.

mod config;
mod hypervisor;
mod status;

pub use config::{BackupConfig, FirstRole, Parts, SettingError, VmConfig};
pub use hypervisor::{Fault, Guest, GuestError, Hypervisor, Standby};
pub use status::{FailoverReport, LinkStatus, Role, State, Trouble, VmStatus};
