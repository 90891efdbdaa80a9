//! Where a benchmark plays: one guest on a pair of hosts, whose mode and epochs are changed while it runs.

use crate::cli::Failure;
use crate::config::{EpochPolicy, Mode};
use clap::ValueEnum;
use holdfast_lab::agent;
use holdfast_lab::artifacts::Qemu;
use holdfast_lab::client::Client;
use holdfast_lab::emulator::{Report, WireEmulator, WireSpec};
use holdfast_lab::guest::GuestSpec;
use holdfast_lab::pair::{Pair, PairError, PairOptions, Transport};
use holdfast_lab::topology::guest_ip;
use serde::Serialize;
use serde_json::{Value, json};
use std::time::Duration;

pub(super) const VM: &str = "guest";
pub(super) const READY: Duration = Duration::from_secs(90);
/// A change of mode, with the synchronisation that protection begins with.
const CHANGE: Duration = Duration::from_secs(60);
/// What is measured is tried that often.
const ATTEMPTS: usize = 3;
/// For the stacks and buffers of hundreds of connections.
pub(super) const MEMORY_MIB: u32 = 512;

/// Each connection begins anew: what the guest remembers of a client's earlier ones, in another mode, would
/// be measured with it.
const GUEST_SETTING: (&str, &str) = ("net/ipv4/tcp_no_metrics_save", "1");

/// How the guest is treated while something is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) mode: Mode,
    /// At most, with adaptive epochs.
    pub(super) epoch_ms: u64,
    pub(super) adaptive: bool,
}

/// The kind of the ports of a bypass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub(super) enum BypassPort {
    /// DPDK's memif: memory that two processes of a machine share, with packets of 16,384 bytes.
    Memif,
    /// DPDK's af_packet, with packets of 9000 bytes.
    AfPacket,
    /// An interface as it is, with packets of 9000 bytes.
    Kernel,
}

impl BypassPort {
    /// The kind of its wire, and that one's MTU.
    const fn wire(self) -> (&'static str, u16) {
        match self {
            Self::Memif => ("memif", 16_384),
            Self::AfPacket => ("af_packet", 9000),
            Self::Kernel => ("kernel", 9000),
        }
    }

    /// The kind of its wire.
    pub(super) const fn name(self) -> &'static str {
        self.wire().0
    }

    /// Bytes of a packet, at most.
    pub(super) const fn mtu(self) -> u16 {
        self.wire().1
    }
}

/// What the stage is made from.
pub(super) struct StageSpec<'a> {
    pub(super) qemu: Qemu,
    pub(super) wire: &'a WireSpec,
    /// Of the wire's fates.
    pub(super) seed: u64,
    pub(super) first: Setting,
    /// Whether mode aware is among what is measured.
    pub(super) aware: bool,
    /// Memory of the guest.
    pub(super) memory_mib: u32,
    /// The bypass over which epochs go, if they do.
    pub(super) bypass: Option<BypassPort>,
    /// What the guest has besides.
    pub(super) shape: fn(&mut GuestSpec),
}

/// The running pair.
pub(super) struct Stage {
    pub(super) pair: Pair,
    pub(super) client: Client,
    aware: bool,
}

/// What every guest of a benchmark has; `aware` if the agent is wanted, which attaches where it is measured.
pub(super) fn dress(spec: &mut GuestSpec, aware: bool) {
    spec.sysctls.push((GUEST_SETTING.0.into(), GUEST_SETTING.1.into()));
    if !aware {
        return;
    }
    if let Err(fault) = agent::serve_shell(spec).and_then(|()| agent::serve(spec)) {
        tracing::error!("no agent in the guest: {fault}");
    }
}

impl Stage {
    /// Boots the guest, in the first setting.
    pub(super) fn start(spec: StageSpec<'_>) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let mut plan = PairOptions::new(&program, spec.qemu, spec.first.mode.name());
        plan.epoch_ms = spec.first.epoch_ms;
        plan.audit = false;
        plan.memory_mib = spec.memory_mib;
        plan.wire = spec.wire.clone();
        plan.wire_seed = spec.seed;
        if let Some(port) = spec.bypass {
            plan.transport = Transport::Bypass;
            (plan.bypass_kind, plan.topology.bypass_mtu) = port.wire();
        }
        plan.shape = spec.shape;
        let mut pair = Pair::start(plan).map_err(Failure::failed)?;
        pair.wait_ready(READY).map_err(Failure::failed)?;
        let client = Client::new(&pair.topology.client);
        Ok(Self { pair, client, aware: spec.aware })
    }

    /// Changes how the guest is treated, and waits until it is.
    pub(super) fn change(&self, setting: Setting) -> Result<(), Failure> {
        let Setting { mode, epoch_ms, adaptive } = setting;
        let host = &self.pair.a;
        let ask = |request: Value| host.ask(&request).map_err(Failure::failed);
        let policy = if adaptive { EpochPolicy::Adaptive } else { EpochPolicy::Fixed };
        ask(json!({"command": "setmode", "vm": VM, "mode": mode}))?;
        ask(json!({"command": "epoch", "vm": VM, "epoch_ms": epoch_ms, "epoch_policy": policy}))?;
        let wanted = state_of(mode);
        host.wait_for(VM, wanted, CHANGE, |status| {
            status["state"] == wanted && status["mode"] == mode.name()
        })
        .map_err(Failure::failed)?;
        if self.aware {
            let attached = mode == Mode::Aware;
            agent::wait_attached(&self.client, guest_ip(1).into(), attached, CHANGE)
                .map_err(Failure::failed)?;
        }
        Ok(())
    }

    /// Waits until so many more epochs are committed; gives the number of the last one.
    pub(super) fn await_epochs(&self, count: u64, patience: Duration) -> Result<u64, Failure> {
        let number = |status: &Value| status["committed_epoch"].as_u64().unwrap_or(0);
        let begun = number(&self.status().map_err(Failure::failed)?);
        self.pair
            .a
            .wait_for(VM, "committing epochs", patience, |status| number(status) >= begun + count)
            .map(|status| number(&status))
            .map_err(Failure::failed)
    }

    /// Measures something, again if the protection was lost meanwhile. What was measured with the epochs
    /// that were committed meanwhile; what was lost if that does not help.
    pub(super) fn guarded<T>(
        &self,
        mode: Mode,
        take: impl Fn(&Self) -> Result<T, Failure>,
    ) -> Result<Result<(T, u64), String>, Failure> {
        let mut lost = String::new();
        for _ in 0..ATTEMPTS {
            let wanted = state_of(mode);
            let before = self.pair.a.wait_state(VM, &[wanted], CHANGE).map_err(Failure::failed)?;
            let taken = take(self);
            let after = self.status().map_err(Failure::failed)?;
            if let Err(fault) = &taken {
                lost = fault.to_string();
                tracing::warn!("{lost}: once more");
                continue;
            }
            let same = |name: &str| before["link"][name] == after["link"][name];
            if after["state"] == wanted && same("sessions") && after["term"] == before["term"] {
                let epoch = |status: &Value| status["committed_epoch"].as_u64().unwrap_or(0);
                return Ok(Ok((taken?, epoch(&after).saturating_sub(epoch(&before)))));
            }
            lost = format!("{wanted} was lost ({}; {})", after["state"], after["trouble"]["text"]);
            tracing::warn!("{lost}: once more");
        }
        Ok(Err(lost))
    }

    /// What host A says of the guest.
    pub(super) fn status(&self) -> Result<Value, PairError> {
        self.pair.a.vm(VM)
    }

    /// The same with its last epochs.
    pub(super) fn status_with_epochs(&self) -> Result<Value, PairError> {
        let document = self.pair.a.ask(&json!({"command": "status", "vm": VM, "epochs": true}))?;
        Ok(document["vms"][0].clone())
    }

    /// Ends the pair; gives what the emulated wire did.
    pub(super) fn end(mut self) -> Result<Option<Report>, Failure> {
        self.pair.stop().map_err(Failure::failed)?;
        self.pair.wire.take().map(WireEmulator::stop).transpose().map_err(Failure::failed)
    }
}

fn state_of(mode: Mode) -> &'static str {
    if mode.protects() { "protected" } else { "native" }
}
