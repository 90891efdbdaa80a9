//! The configuration file as it is written: every key, nothing checked yet but its type.

use super::epoch_policy::{DEFAULT_PAUSED_PERCENT, EpochPolicy};
use holdfast_checkpoint::reduction::Way;
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// A whole configuration file. `docs/examples/` has commented ones.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawConfig {
    pub(crate) host: RawHost,
    #[serde(default)]
    pub(crate) dpdk: holdfast_dpdk_config::RawDpdk,
    #[serde(default)]
    pub(crate) cores: holdfast_dpdk_config::RawCores,
    #[serde(default, rename = "wire")]
    pub(crate) wires: Vec<holdfast_dpdk_config::RawWire>,
    pub(crate) replication: Option<RawReplication>,
    pub(crate) arbiter: Option<RawArbiter>,
    #[serde(default, rename = "vm")]
    pub(crate) vms: Vec<RawVm>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawHost {
    pub(crate) name: String,
    #[serde(default = "default_control_socket")]
    pub(crate) control_socket: PathBuf,
    pub(crate) frame_audit: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawReplication {
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) keys: Option<PathBuf>,
    #[serde(default)]
    pub(crate) laboratory_plaintext: bool,
    #[serde(default)]
    pub(crate) transport: RawTransport,
    pub(crate) bypass: Option<RawBypass>,
}

/// Which way the epochs go.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawTransport {
    /// The connection between `listen` and `peer`.
    #[default]
    Tcp,
    /// A wire of its own, and the connection where that is lost.
    Bypass,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawBypass {
    pub(crate) wire: String,
    pub(crate) address: IpAddr,
    pub(crate) peer: IpAddr,
    #[serde(default = "default_bypass_port")]
    pub(crate) port: u16,
    pub(crate) peer_mac: Option<String>,
    pub(crate) core: Option<u32>,
}

const fn default_bypass_port() -> u16 {
    7401
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawArbiter {
    pub(crate) directory: PathBuf,
}

/// Which side a host takes when the arbiter has no record of the VM yet.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawRole {
    Primary,
    Backup,
}

/// What is done with the guest's output.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawMode {
    /// Passed through; the VM is not protected.
    Native,
    /// Held until the epoch in which it was sent is committed.
    #[default]
    Commit,
    /// As `Commit`, with the guest's TCP running ahead against acknowledgements given in its clients' names.
    Speculative,
    /// As `Speculative`, and the agent in the guest may attach its congestion control.
    Aware,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawVm {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) mode: RawMode,
    pub(crate) role: Option<RawRole>,
    #[serde(default = "default_epoch")]
    pub(crate) epoch_ms: u64,
    #[serde(default)]
    pub(crate) epoch_policy: EpochPolicy,
    #[serde(default = "default_paused_percent")]
    pub(crate) max_paused_percent: u64,
    #[serde(default = "default_in_flight")]
    pub(crate) epochs_in_flight: usize,
    #[serde(default = "default_lease")]
    pub(crate) lease_ms: u64,
    #[serde(default = "default_qemu_timeout")]
    pub(crate) qemu_timeout_ms: u64,
    pub(crate) qmp: Option<PathBuf>,
    #[serde(default)]
    pub(crate) accept_unreplicated_disks: bool,
    pub(crate) backup: Option<RawBackup>,
    #[serde(default)]
    pub(crate) speculation: RawSpeculation,
    #[serde(default)]
    pub(crate) reduction: RawReduction,
    #[serde(default, rename = "nic")]
    pub(crate) nics: Vec<RawNic>,
}

/// Bounds of mode `speculative`, and what does not speculate in it.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawSpeculation {
    pub(crate) escrow_mib: u32,
    pub(crate) flow_mib: u32,
    pub(crate) flows: u32,
    pub(crate) except: Vec<String>,
}

impl Default for RawSpeculation {
    fn default() -> Self {
        Self { escrow_mib: 64, flow_mib: 32, flows: 4096, except: Vec::new() }
    }
}

/// How the VM's pages are made smaller for the way.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawReduction {
    pub(crate) ways: Vec<Way>,
    pub(crate) cache_mib: Option<u64>,
    pub(crate) adaptive: bool,
}

impl Default for RawReduction {
    fn default() -> Self {
        Self { ways: Way::ALL.to_vec(), cache_mib: None, adaptive: true }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawBackup {
    pub(crate) image: PathBuf,
    pub(crate) memory: String,
    pub(crate) qmp: PathBuf,
    pub(crate) command: Vec<String>,
    pub(crate) commit_log: Option<PathBuf>,
}

/// Who listens on the vhost-user socket.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RawListen {
    /// Holdfast listens and QEMU connects (`reconnect=1` on the chardev lets it come back).
    #[default]
    Holdfast,
    /// QEMU listens (`server=on`) and Holdfast connects.
    Qemu,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNic {
    pub(crate) socket: PathBuf,
    #[serde(default)]
    pub(crate) listens: RawListen,
    /// Permission bits of a socket that Holdfast listens on, in octal as for chmod.
    pub(crate) socket_mode: Option<String>,
    /// Group of a socket that Holdfast listens on: its name or number.
    pub(crate) socket_group: Option<String>,
    pub(crate) wire: String,
    #[serde(default = "default_queue_pairs")]
    pub(crate) queue_pairs: u16,
    /// Processor of the polling thread of each pair; none: all are with the wire.
    pub(crate) pair_cores: Option<Vec<u32>>,
    #[serde(default = "default_offloads")]
    pub(crate) offloads: bool,
    #[serde(default = "default_escrow_mib")]
    pub(crate) escrow_mib: u32,
}

fn default_control_socket() -> PathBuf {
    "/run/holdfast/control.sock".into()
}

const fn default_paused_percent() -> u64 {
    DEFAULT_PAUSED_PERCENT
}

const fn default_epoch() -> u64 {
    25
}

const fn default_in_flight() -> usize {
    4
}

const fn default_lease() -> u64 {
    300
}

const fn default_qemu_timeout() -> u64 {
    2000
}

const fn default_queue_pairs() -> u16 {
    1
}

const fn default_offloads() -> bool {
    true
}

const fn default_escrow_mib() -> u32 {
    32
}
