//! What a supervisor is told, and the parts that it is given.

use crate::arbiter::Arbiter;
use crate::gate::{GuestMemorySource, OutputGate};
use crate::reduction::Reduction;
use crate::transport::{Incoming, Transport};
use crate::vm::hypervisor::Hypervisor;
use crossbeam_channel::Receiver;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Role taken when the arbiter has no record of the machine yet; with a record, the record decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstRole {
    /// The guest runs here.
    Primary,
    /// The guest runs on the peer.
    Backup,
}

/// What ends an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "epoch_policy")]
pub enum EpochRule {
    /// Its length.
    #[serde(rename = "fixed")]
    Fixed,
    /// The guest's output, as soon as the time that it may stand still allows; its length at the latest.
    #[serde(rename = "adaptive")]
    FollowOutput {
        /// Of the time, that the guest may stand still: above 0 and below 1.
        paused_share: f64,
    },
}

/// Settings of one virtual machine. [`VmConfig::new`] fills in what most leave alone.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// Name of the machine, the same on both hosts and at the arbiter.
    pub name: String,
    /// Name of this host, as the arbiter's records call it.
    pub host: String,
    /// Role without a record.
    pub first_role: FirstRole,
    /// Whether the primary protects the guest by itself as soon as a backup answers.
    pub protect: bool,
    /// Length of an epoch, from one pause to the next; with [`EpochRule::FollowOutput`] the longest one, but
    /// for those that pay for a long pause.
    pub epoch: Duration,
    /// What ends an epoch.
    pub epoch_rule: EpochRule,
    /// Epochs that may wait for their confirmation; the next seal waits for room.
    pub in_flight: usize,
    /// How long the primary may transmit after the backup's last answer.
    pub lease: Duration,
    /// How much longer than the lease the backup keeps silent before it asks the arbiter.
    pub lease_margin: Duration,
    /// Time between heartbeats; a third of the lease at most.
    pub heartbeat: Duration,
    /// How long QEMU may take to answer before it is taken for dead.
    pub qemu_timeout: Duration,
    /// Pause between attempts to reach the backup, the arbiter or QEMU.
    pub retry: Duration,
    /// The full synchronisation pauses the guest once a round has at most this many pages left.
    pub sync_pages_left: u64,
    /// ... or after this many rounds, whatever is left.
    pub sync_rounds: u32,
    /// Most memory that captured pages may take on the primary while they wait to be sent.
    pub capture_limit: u64,
    /// How pages are made smaller for the way.
    pub reduction: Reduction,
    /// What the backup side needs; without it this host is never a backup.
    pub backup: Option<BackupConfig>,
}

/// Settings of the backup side of one virtual machine.
#[derive(Clone, Debug)]
pub struct BackupConfig {
    /// Path of the copy of the guest's memory, on tmpfs or hugetlbfs: `mem-path` of the standby QEMU.
    pub image: PathBuf,
    /// Bytes in the guest's memory.
    pub memory: u64,
    /// The commit log: one line `<epoch> <term> <CLOCK_REALTIME ns>` for each committed epoch.
    pub commit_log: PathBuf,
    /// Most memory that an epoch on its way may take; beyond it the epoch is refused.
    pub staging_limit: u64,
}

impl VmConfig {
    /// Settings with the values that most leave alone.
    #[must_use]
    pub fn new(name: impl Into<String>, host: impl Into<String>, first_role: FirstRole) -> Self {
        Self {
            name: name.into(),
            host: host.into(),
            first_role,
            protect: true,
            epoch: Duration::from_millis(25),
            epoch_rule: EpochRule::Fixed,
            in_flight: 4,
            lease: Duration::from_millis(300),
            lease_margin: Duration::from_millis(100),
            heartbeat: Duration::from_millis(50),
            qemu_timeout: Duration::from_secs(2),
            retry: Duration::from_secs(1),
            sync_pages_left: 2048,
            sync_rounds: 30,
            capture_limit: 256 << 20,
            reduction: Reduction::default(),
            backup: None,
        }
    }

    /// Checks that the settings fit each other.
    ///
    /// # Errors
    /// The first one that does not.
    pub fn check(&self) -> Result<(), SettingError> {
        let bad = |key, mend: &str| Err(SettingError { key, mend: mend.to_owned() });
        if self.name.is_empty() || self.name.len() > 64 {
            return bad("name", "1 to 64 bytes");
        }
        if self.name.contains(['/', '\0']) || self.name.starts_with('.') {
            return bad("name", "no slash, and no dot in front: the arbiter makes a folder of it");
        }
        if self.host.is_empty() || self.host.len() > 64 || self.host.contains(char::is_whitespace) {
            return bad("host", "1 to 64 bytes without white space");
        }
        if self.epoch < Duration::from_millis(1) || self.epoch > Duration::from_secs(60) {
            return bad("epoch", "between 1 ms and 60 s");
        }
        if let EpochRule::FollowOutput { paused_share } = self.epoch_rule {
            if !(0.01..=0.9).contains(&paused_share) {
                return bad("paused_share", "between 0.01 and 0.9");
            }
        }
        if self.in_flight == 0 || self.in_flight > 64 {
            return bad("in_flight", "between 1 and 64 epochs");
        }
        if self.lease < Duration::from_millis(20) || self.lease > Duration::from_secs(600) {
            return bad("lease", "between 20 ms and 600 s");
        }
        if self.heartbeat.is_zero() || self.heartbeat * 3 > self.lease {
            return bad("heartbeat", "more than nothing and at most a third of the lease");
        }
        if self.capture_limit < 4 << 20 {
            return bad("capture_limit", "at least 4 MiB");
        }
        Ok(())
    }
}

/// A setting that cannot be used; the operator is at fault.
#[derive(Debug, Error)]
#[error("setting `{key}`: {mend}")]
pub struct SettingError {
    /// Name of the setting.
    pub key: &'static str,
    /// What is accepted.
    pub mend: String,
}

/// What a supervisor works with. The program composes it of the real things, a test of others.
pub struct Parts {
    /// The machine's output.
    pub gate: Box<dyn OutputGate>,
    /// The guest's memory, as this process maps it.
    pub memory: Box<dyn GuestMemorySource>,
    /// QEMU: the one that runs the guest, and the standby.
    pub hypervisor: Box<dyn Hypervisor>,
    /// Who decides which host may go live.
    pub arbiter: Box<dyn Arbiter>,
    /// The way to the peer, for a primary; without it the guest runs unprotected.
    pub transport: Option<Arc<dyn Transport>>,
    /// Sessions of this machine that the peer opened, for a backup.
    pub incoming: Option<Receiver<Incoming>>,
}
