//! The supervisor of one virtual machine: which role this host has, and what it does in it.
//!
//! ```text
//!            the arbiter's record            fence, relinquish (guest lost, handed over)
//!   start -----------------------> primary -----------------------------------------------> backup
//!     |                               |  ^                                                     |
//!     |                 lost the term |  '------ relinquished or silent, and the arbiter ------'
//!     |                               v                    granted the term
//!     |                            fenced --- old guest ended ------------------------------> backup
//!     '-------------------------------------------------------------------------------------> backup
//! ```
//!
//! One thread decides everything about one machine; beside it run the capture thread, and for each
//! session the link's and the replication thread. A supervisor meets the world through [`Parts`], which
//! the program composes of the real dataplane, QEMU, arbiter and transport.
//!
//! FO-1: the gate begins fenced, is lifted only for a term that this host was granted, and is fenced
//! before the term is given away. FO-2: every change of the term goes through one function, the arbiter's
//! compare-and-set.

mod backup;
mod command;
mod config;
mod hypervisor;
mod primary;
mod process;
mod protection;
mod qemu;
mod status;
mod supervisor;

pub use command::{CommandError, VmHandle};
pub use config::{BackupConfig, EpochRule, FirstRole, Parts, SettingError, VmConfig};
pub use hypervisor::{Fault, Guest, GuestError, Hypervisor, Standby};
pub use qemu::{QemuHypervisor, QemuSettings};
pub use status::{FailoverReport, LinkStatus, Role, State, Trouble, VmStatus};
pub use supervisor::{SpawnError, spawn};

#[cfg(test)]
mod tests;
