//! What a supervisor shows of itself. Every number carries its unit in its name.

use crate::primary::{StagingPages, StatsSnapshot};
use crate::transport::Link;
use crate::vm::config::EpochRule;
use crate::vm::hypervisor::Fault;
use serde::Serialize;

/// Who this host is to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The arbiter has not been asked yet whose the machine is: this host has just started, and is silent.
    Undecided,
    /// The guest runs here.
    Primary,
    /// The peer runs the guest; its checkpoints come here.
    Backup,
    /// This host lost the machine: its guest is halted and silent.
    Fenced,
}

/// Where a supervisor is in its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Undecided: see [`Role::Undecided`].
    Starting,
    /// Primary: no QEMU, or its memory is not connected yet.
    AwaitingGuest,
    /// Primary: the guest runs, output passes, no backup is wanted.
    Native,
    /// Primary: the memory is being copied to the backup for the first time; output passes.
    /// Backup: the same, seen from the other end.
    Syncing,
    /// Primary: epochs are committed, output is held until then.
    Protected,
    /// Primary: the backup is lost and the arbiter has not answered yet; output is held.
    Holding,
    /// Primary: the arbiter granted to run without a backup; output passes.
    Solo,
    /// Primary: the guest's QEMU is dead and no backup holds a checkpoint.
    Down,
    /// Backup: no session and no checkpoint that could go live.
    Waiting,
    /// Backup: a committed checkpoint is here.
    Ready,
    /// Backup: the arbiter said yes, the guest is coming up here.
    GoingLive,
    /// Fenced: see [`Role::Fenced`].
    Fenced,
    /// The supervisor has ended.
    Ended,
}

/// How the machine came to run here, when it came from the other host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FailoverReport {
    /// What started it: `relinquished`, `silence` or `command`.
    pub cause: String,
    /// Term in which the machine runs here.
    pub term: u64,
    /// The committed epoch from which it went on.
    pub resumed_from_epoch: u64,
    /// From the peer's last sign of life (its message, or the last heartbeat) to the decision.
    pub detect_ms: f64,
    /// From the decision to the guest running and its addresses announced.
    pub resume_ms: f64,
}

/// An error as shown to the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// Whose fault it is.
    pub fault: Fault,
    /// What happened, and what mends it.
    pub text: String,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
}

/// The link to the peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LinkStatus {
    /// Whether a session stands.
    pub connected: bool,
    /// Name of the other host, once it said it.
    pub peer_host: Option<String>,
    /// Address of the other host.
    pub peer_address: Option<String>,
    /// Round trip of the last answered heartbeat.
    pub round_trip_us: Option<u64>,
    /// Sessions since the supervisor started.
    pub sessions: u64,
    /// Whether the session's messages go over the bypass.
    pub over_bypass: bool,
    /// How often they had to come back from it in this session.
    pub bypass_returns: u64,
}

impl LinkStatus {
    /// Shows which way the session's messages go.
    pub(super) fn show_way(&mut self, link: &Link) {
        self.over_bypass = link.uses_bypass();
        self.bypass_returns = link.bypass_returns();
    }
}

/// A supervisor's state at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VmStatus {
    /// Name of the machine.
    pub vm: String,
    /// Name of this host.
    pub host: String,
    /// Role of this host.
    pub role: Role,
    /// State within the role.
    pub state: State,
    /// Term that this host believes to be the current one.
    pub term: u64,
    /// Last committed epoch that this host knows of.
    pub committed_epoch: Option<u64>,
    /// Whether protection is wanted.
    pub protect: bool,
    /// Length of an epoch.
    pub epoch_ms: f64,
    /// What ends one: `epoch_policy`, and `paused_share` of one that is adaptive.
    #[serde(flatten)]
    pub epoch_rule: EpochRule,
    /// The link to the peer.
    pub link: LinkStatus,
    /// What captured pages wait on, once this host has been a primary with a backup.
    pub staging_pages: Option<StagingPages>,
    /// Figures of the primary's epochs, or of the backup's.
    pub stats: StatsSnapshot,
    /// How the machine came here.
    pub failover: Option<FailoverReport>,
    /// The last thing that went wrong.
    pub trouble: Option<Trouble>,
}
