//! The local control socket: one JSON request a line, one JSON answer a line.
//!
//! The socket is made with mode 0600, and each connection's credentials are checked besides: only
//! root and the user that runs Holdfast are answered.

mod client;
mod server;

pub(crate) use client::ask;
pub(crate) use server::Server;

use crate::config::{EpochPolicy, Mode};
use serde::{Deserialize, Serialize};

/// Longest request or answer, in bytes.
pub(super) const MAX_LINE: usize = 4 << 20;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Request {
    /// The state of all VMs, or of one.
    Status {
        vm: Option<String>,
        /// With the TCP flows of each VM.
        #[serde(default)]
        flows: bool,
        /// With the last epochs of each VM that is protected here.
        #[serde(default)]
        epochs: bool,
    },
    /// On the backup: go live now. On the primary: give the VM over to the backup.
    Failover { vm: String },
    /// Start to replicate the VM and hold its output.
    Protect { vm: String },
    /// Stop replicating; output passes through.
    Unprotect { vm: String },
    /// Set the epoch's length, in milliseconds, and what ends an epoch where that is named.
    Epoch {
        vm: String,
        epoch_ms: u64,
        #[serde(default)]
        epoch_policy: Option<EpochPolicy>,
        /// Of the time, that the guest may stand still with epochs that are adaptive.
        #[serde(default)]
        max_paused_percent: Option<u64>,
    },
    /// Set the ports and networks whose flows keep plain output commit; no byte is lost.
    Except { vm: String, except: Vec<String> },
    /// Change what is done with the VM's output, without losing any of it.
    SetMode { vm: String, mode: Mode },
}

/// What it gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    /// Done; with a document where one was asked for.
    Ok(serde_json::Value),
    /// Not done, and why.
    Error(String),
}
