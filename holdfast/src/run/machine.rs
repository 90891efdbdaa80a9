//! One VM of the appliance: its NICs, its gate, and its supervisor when it is to be protected.

use super::Link;
use super::dataplane::Dataplane;
use crate::cli::Failure;
use crate::config::{Config, EpochPolicy, Exception, Mode, Nic, Role, Socket, Vm};
use crate::gate::PortGate;
use crate::memory::DeviceMemory;
use crate::status::FlowRow;
use crate::treatment::Output;
use holdfast_checkpoint::arbiter::FileArbiter;
use holdfast_checkpoint::qemu::InspectSettings;
use holdfast_checkpoint::standby::StandbyConfig;
use holdfast_checkpoint::transport::{TcpTransport, Transport};
use holdfast_checkpoint::vm::{
    BackupConfig, CommandError, FirstRole, Parts, QemuHypervisor, QemuSettings, Role as SupervisorRole,
    VmConfig, VmHandle, spawn,
};
use holdfast_dataplane::{Card, EngineConfig, FlowReport, Handle, LedgerLimits, Limits, PortConfig, PortId};
use holdfast_vhost_user::{
    Device, DeviceConfig, DeviceSnapshot, MemoryFiles, SocketAccess, SocketRole, SpawnError, features,
};
use nix::unistd::Group;
use serde_json::{Value, json};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes that the state of a flow takes at most, beside those that are held of it.
const FLOW_STATE: u64 = 512;

/// Epochs' pages that the backup may have to hold beside the image, as a share of the guest's memory.
const STAGING_SHARE: u64 = 2;

/// An agent asks each second of its guest's time, which is slow.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);

/// How long a standby QEMU may take to start.
const STANDBY_START: Duration = Duration::from_secs(10);

/// A VM as the appliance runs it.
pub(crate) struct Machine {
    vm: Vm,
    output: Arc<Output>,
    /// One change of mode at a time.
    changing: Mutex<()>,
    handle: Handle,
    ports: Vec<PortId>,
    devices: Vec<Arc<Device>>,
    /// None for a VM that has neither peer nor arbiter: its output passes through.
    supervisor: Option<VmHandle>,
}

impl Machine {
    /// Opens the VM's NICs and starts its supervisor; `first_port` numbers its ports.
    pub(crate) fn start(
        config: &Config,
        vm: &Vm,
        dataplane: &Dataplane,
        link: Option<&Link>,
        first_port: u16,
    ) -> Result<Self, Failure> {
        let files = MemoryFiles::default();
        let supervised = config.replication.as_ref().zip(config.arbiter.as_ref()).zip(link);
        // The configuration was checked: all NICs of a VM are one core's.
        let handle = dataplane.handle(vm.nics.first().map_or(0, |nic| dataplane.wire(&nic.wire).core));
        let mut devices = Vec::new();
        let mut ports = Vec::new();
        for (index, nic) in vm.nics.iter().enumerate() {
            let port = PortId(first_port + index as u16);
            devices.push(Arc::new(plug(vm, index, nic, port, dataplane, &files, supervised.is_some())?));
            ports.push(port);
        }
        let output = Output::new(handle, ports.clone(), vm.mode, &vm.speculation.except)
            .map_err(|fault| Failure::Failed(format!("VM {}: {fault}", vm.name)))?;
        let output = Arc::new(output);
        let supervisor = supervised
            .map(|((replication, arbiter), link)| {
                let transport = replication.peer.map(|peer| {
                    let transport = TcpTransport::new(peer, link.security.clone());
                    Arc::new(transport.over(link.bypass.clone())) as Arc<dyn Transport>
                });
                let fault = |what: String| Failure::Failed(format!("VM {}: {what}", vm.name));
                let parts = Parts {
                    gate: Box::new(
                        PortGate::new(
                            &vm.name,
                            handle,
                            ports.clone(),
                            &vm.nics.iter().map(|nic| nic.queue_pairs).collect::<Vec<_>>(),
                            &vec![Some(kept_limits(vm)); ports.len()],
                            Arc::clone(&output),
                        )
                        .map_err(|error| fault(error.to_string()))?,
                    ),
                    memory: Box::new(DeviceMemory::new(devices.clone())),
                    hypervisor: Box::new(QemuHypervisor::new(qemu_settings(vm))),
                    arbiter: Box::new(
                        FileArbiter::open(arbiter)
                            .map_err(|error| Failure::Usage(format!("arbiter.directory: {error}")))?,
                    ),
                    transport,
                    incoming: link.listener.as_ref().map(|listener| listener.route(&vm.name)),
                };
                spawn(vm_config(config, vm), parts).map_err(|error| fault(error.to_string()))
            })
            .transpose()?;
        let (vm, handle, changing) = (vm.clone(), handle.clone(), Mutex::default());
        Ok(Self { vm, output, changing, handle, ports, devices, supervisor })
    }

    /// Name of the VM.
    pub(crate) fn name(&self) -> &str {
        &self.vm.name
    }

    /// The VM's part of the status document; with its flows and last epochs where they are asked for.
    pub(crate) fn status(&self, flows: bool, epochs: bool) -> Value {
        let mut status = match &self.supervisor {
            Some(supervisor) => json!(supervisor.status()),
            None => json!({"vm": self.vm.name, "role": "primary", "state": "native"}),
        };
        let (mode, except) = self.output.shown();
        status["mode"] = json!(mode);
        status["except"] = json!(except);
        status["nics"] = self.nics();
        status["agent"] = self.agent();
        if flows {
            status["flows"] = json!(self.flows());
        }
        if let Some(supervisor) = self.supervisor.as_ref().filter(|_| epochs) {
            status["epochs"] = json!(supervisor.epochs());
        }
        status
    }

    /// Moves the VM to the other host, or takes it over.
    pub(crate) fn fail_over(&self) -> Result<Value, String> {
        self.told(self.supervisor()?.failover())
    }

    /// Protects the VM, or ends its protection.
    pub(crate) fn protect(&self, wanted: bool) -> Result<Value, String> {
        let supervisor = self.supervisor()?;
        self.told(if wanted { supervisor.protect() } else { supervisor.unprotect() })
    }

    /// Changes the length of the VM's epochs, and what ends them where that is named.
    pub(crate) fn set_epoch(
        &self,
        epoch_ms: u64,
        policy: Option<EpochPolicy>,
        max_paused_percent: Option<u64>,
    ) -> Result<Value, String> {
        if max_paused_percent.is_some() && policy != Some(EpochPolicy::Adaptive) {
            return Err("a share of paused time is of adaptive epochs; mend: --policy adaptive".into());
        }
        let share = max_paused_percent.unwrap_or(self.vm.max_paused_percent);
        let rule = policy.map(|policy| policy.rule(share));
        self.told(self.supervisor()?.set_epoch(Duration::from_millis(epoch_ms), rule))
    }

    /// Changes what is done with the VM's output: nothing of it is lost on the way.
    pub(crate) fn set_mode(&self, mode: Mode) -> Result<Value, String> {
        let supervisor = self.supervisor()?;
        self.refuse_on_backup()?;
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // Out of speculation first, into it last: only a protected guest may run ahead.
        if !mode.speculates() {
            self.speculate(mode)?;
        }
        let answer =
            self.told(if mode.protects() { supervisor.protect() } else { supervisor.unprotect() })?;
        if mode.speculates() {
            self.speculate(mode)?;
        }
        self.output.show(mode);
        Ok(answer)
    }

    /// Sets which flows keep plain output commit where others speculate.
    pub(crate) fn set_exceptions(&self, except: &[String]) -> Result<Value, String> {
        self.refuse_on_backup()?;
        if except.len() > Exception::MOST {
            return Err(format!(
                "{} exceptions are more than the {} that are looked at; mend: name networks that hold several of them",
                except.len(),
                Exception::MOST
            ));
        }
        let parse = |text: &String| {
            text.parse().map_err(|problem| {
                format!(
                    "'{text}' {problem}; mend: ports and networks, such as 22, 10.0.0.0/8 or 443=speculative"
                )
            })
        };
        let except: Vec<Exception> = except.iter().map(parse).collect::<Result<_, _>>()?;
        self.output.set_exceptions(except).map_err(|fault| format!("VM '{}': {fault}", self.vm.name))?;
        Ok(json!("done"))
    }

    /// Each commit brings how the primary treats the output: what was set here would not last.
    fn refuse_on_backup(&self) -> Result<(), String> {
        let role = self.supervisor.as_ref().map(|supervisor| supervisor.status().role);
        if role != Some(SupervisorRole::Backup) {
            return Ok(());
        }
        Err(format!(
            "VM '{}': this host is the backup, which treats the output as the primary does at the last commit; mend: \
             give the command on the primary",
            self.vm.name
        ))
    }

    /// Lets the guest's flows run ahead while it is protected, or works those off that have.
    fn speculate(&self, mode: Mode) -> Result<(), String> {
        self.output.speculate(mode).map_err(|fault| format!("VM '{}': {fault}", self.vm.name))
    }

    /// The flows of all ports of the VM; none when the polling core does not tell.
    fn flows(&self) -> Vec<FlowRow> {
        let flows = self.handle.flows(&self.ports).unwrap_or_default();
        let row = |(port, flow): (PortId, FlowReport)| FlowRow {
            nic: self.ports.iter().position(|own| *own == port).unwrap_or_default(),
            guest: flow.guest.into(),
            client: flow.client.into(),
            vlan: flow.vlans.into_iter().rev().find(|vlan| *vlan != 0),
            state: flow.state.to_string(),
            ahead_bytes: flow.ahead_bytes.into(),
            escrow_bytes: flow.held_bytes.into(),
            window_bytes: flow.window_bytes.into(),
            rtt_us: flow.srtt.map(|srtt| srtt.as_micros() as u64),
            cwnd_bytes: flow.cwnd_bytes.into(),
            retransmissions: flow.retransmissions,
        };
        flows.into_iter().map(row).collect()
    }

    fn told(&self, answer: Result<String, CommandError>) -> Result<Value, String> {
        answer.map(Value::String).map_err(|refused| format!("VM '{}': {refused}", self.vm.name))
    }

    fn supervisor(&self) -> Result<&VmHandle, String> {
        self.supervisor.as_ref().ok_or_else(|| {
            format!("VM '{}' has no peer; mend: give this Holdfast [replication] and [arbiter]", self.vm.name)
        })
    }

    /// Ends the supervisor; a protected guest moves to the backup first.
    pub(crate) fn end(&self) {
        if let Some(Err(fault)) = self.supervisor.as_ref().map(VmHandle::shutdown) {
            tracing::warn!("VM {}: {fault}", self.vm.name);
        }
    }

    /// Unplugs the NICs: no socket is left behind.
    pub(crate) fn unplug(&self) {
        for device in &self.devices {
            device.close();
        }
    }

    /// Whether an agent in the guest has asked lately, by any of the NICs.
    fn agent(&self) -> Value {
        let silences = self.handle.status(&self.ports).unwrap_or_default();
        match silences.iter().filter_map(|port| port.agent_silence).min() {
            None => json!({"state": "never heard"}),
            Some(silence) => {
                let state = if silence < AGENT_PATIENCE { "present" } else { "absent" };
                json!({"state": state, "silent_ms": silence.as_millis() as u64})
            }
        }
    }

    fn nics(&self) -> Value {
        let counters = self.handle.counters();
        let rows = self.vm.nics.iter().zip(&self.devices).zip(&self.ports).map(|((nic, device), port)| {
            let snapshot = device.snapshot();
            let (Socket::Listen(path) | Socket::Connect(path)) = &nic.socket;
            let mut row = json!({
                "socket": path,
                "wire": nic.wire,
                "connected": snapshot.connected,
                "running": snapshot.rings_running.iter().any(|running| *running),
                "packed_rings": snapshot.features.has(features::bits::RING_PACKED),
                "queue_pairs": queue_pairs(&snapshot),
                "guest_faults": snapshot.faults.iter().map(|(name, count)| (name.to_string(), json!(count)))
                    .collect::<serde_json::Map<_, _>>(),
                "frontend_faults": snapshot.peer_faults,
                "last_frontend_fault": snapshot.last_peer_fault,
            });
            if let Some((_, events, drops)) = counters.ports.iter().find(|(id, ..)| id == port) {
                for (name, value) in &events.0 {
                    row[*name] = json!(value);
                }
                row["dropped_frames"] = json!(drops.0.iter().map(|(_, value)| value).sum::<u64>());
                row["drops"] = drops
                    .0
                    .iter()
                    .filter(|(_, value)| *value > 0)
                    .map(|(name, value)| (name.to_string(), json!(value)))
                    .collect::<serde_json::Map<_, _>>()
                    .into();
            }
            row
        });
        Value::Array(rows.collect())
    }
}

/// The pairs of queues of a NIC: which of them the guest's driver uses, and what passed each.
fn queue_pairs(nic: &DeviceSnapshot) -> Value {
    let pairs = nic.rings_enabled.chunks(2).zip(nic.ring_frames.chunks(2));
    let rows = pairs.map(|(enabled, frames)| {
        json!({"enabled": enabled[0], "captured_frames": frames[1], "delivered_frames": frames[0]})
    });
    Value::Array(rows.collect())
}

/// The supervisor's settings of a VM.
fn vm_config(config: &Config, vm: &Vm) -> VmConfig {
    let first_role = match vm.role {
        Role::Primary => FirstRole::Primary,
        Role::Backup => FirstRole::Backup,
    };
    let mut settings = VmConfig::new(&vm.name, &config.host, first_role);
    settings.protect = vm.mode.protects();
    settings.epoch = vm.epoch;
    settings.in_flight = vm.epochs_in_flight;
    settings.epoch_rule = vm.epoch_rule;
    settings.lease = vm.lease;
    settings.lease_margin = vm.lease / 3;
    settings.heartbeat = vm.lease / 6;
    settings.qemu_timeout = vm.qemu_timeout;
    settings.reduction = vm.reduction.clone();
    settings.backup = vm.backup.as_ref().map(|backup| BackupConfig {
        image: backup.image.clone(),
        memory: backup.memory_bytes,
        commit_log: backup.commit_log.clone(),
        staging_limit: backup.memory_bytes * STAGING_SHARE + kept_bytes(vm),
    });
    settings
}

/// How the VM's QEMU is reached, and the standby started.
fn qemu_settings(vm: &Vm) -> QemuSettings {
    QemuSettings {
        qmp: vm.qmp.clone().unwrap_or_default(),
        standby: vm.backup.as_ref().map(|backup| StandbyConfig {
            argv: backup.command.clone(),
            qmp_socket: backup.qmp.clone(),
            start_limit: STANDBY_START,
        }),
        inspect: InspectSettings {
            accept_unreplicated_disks: vm.accept_unreplicated_disks,
            vhost_user_sockets: vm
                .nics
                .iter()
                .map(|nic| match &nic.socket {
                    Socket::Listen(path) | Socket::Connect(path) => path.clone(),
                })
                .collect(),
        },
        timeout: vm.qemu_timeout,
    }
}

/// How the flows of a port of the VM speculate when they do.
fn engine_config(vm: &Vm, mtu: u16, port: PortId) -> EngineConfig {
    let defaults = EngineConfig::default();
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u16(port.0);
    EngineConfig {
        max_flows: vm.speculation.flows,
        held_bytes: vm.speculation.escrow_bytes,
        flow_bytes: vm.speculation.flow_bytes,
        mtu,
        // Whoever sends must not be able to foresee the places in the flow table.
        seed: hasher.finish(),
        ..defaults
    }
}

/// What is kept of the flows of a port, while the VM runs on the other host: as much as is held there.
fn kept_limits(vm: &Vm) -> LedgerLimits {
    LedgerLimits { max_flows: vm.speculation.flows, held_bytes: vm.speculation.escrow_bytes }
}

/// Bytes that all of that may come to in one epoch: the first of a session carries it whole.
fn kept_bytes(vm: &Vm) -> u64 {
    let LedgerLimits { max_flows, held_bytes } = kept_limits(vm);
    vm.nics.len() as u64 * (held_bytes as u64 + max_flows as u64 * FLOW_STATE)
}

/// Number of the group of this name, or of this number, on this host.
pub(super) fn group_number(group: &str) -> Result<u32, String> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    match Group::from_name(group) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(format!("there is no group '{group}' on this host")),
        Err(error) => Err(format!("the groups of this host cannot be read: {error}")),
    }
}

/// The polling cores that have a NIC's pairs of queues, the wire's first, and for each pair the place of its own in that
/// order.
fn cores_of(nic: &Nic, of_wire: usize, dataplane: &Dataplane) -> (Vec<usize>, Vec<usize>) {
    let mut cores = vec![of_wire];
    let named = nic.pair_cores.iter().flatten().map(|processor| dataplane.core_on(*processor));
    let of_pair = named.map(|core| {
        cores.iter().position(|known| *known == core).unwrap_or_else(|| {
            cores.push(core);
            cores.len() - 1
        })
    });
    let of_pair: Vec<usize> = of_pair.collect();
    match of_pair.is_empty() {
        true => (cores, vec![0; nic.queue_pairs.into()]),
        false => (cores, of_pair),
    }
}

/// Opens one NIC's vhost-user device and gives its endpoints to the polling cores.
fn plug(
    vm: &Vm,
    index: usize,
    nic: &Nic,
    port: PortId,
    dataplane: &Dataplane,
    files: &MemoryFiles,
    fenced: bool,
) -> Result<Device, Failure> {
    let place = dataplane.wire(&nic.wire);
    let handle = dataplane.handle(place.core);
    let (cores, of_pair) = cores_of(nic, place.core, dataplane);
    let wakers = cores.iter().map(|core| dataplane.handle(*core).waker()).collect();
    let config = DeviceConfig {
        name: format!("{}-{index}", vm.name),
        socket: match &nic.socket {
            Socket::Listen(path) => SocketRole::Server(path.clone()),
            Socket::Connect(path) => SocketRole::Client(path.clone()),
        },
        access: SocketAccess {
            mode: nic.socket_mode,
            group: nic.socket_group.as_deref().map(group_number).transpose().map_err(|problem| {
                Failure::Usage(format!("VM {}, NIC {index}: socket_group: {problem}", vm.name))
            })?,
        },
        queue_pairs: nic.queue_pairs,
        offloads: nic.offloads,
        mtu: Some(place.mtu),
        files: files.clone(),
    };
    let (device, endpoints) = Device::spawn_over(config, wakers, &of_pair).map_err(|fault| {
        let text = format!("VM {}, NIC {index}: {fault}", vm.name);
        match fault {
            SpawnError::QueuePairs(_)
            | SpawnError::SocketInUse(_)
            | SpawnError::NotASocket(_)
            | SpawnError::Access { .. }
            | SpawnError::Listen { .. } => Failure::Usage(text),
            SpawnError::Host(_) => Failure::Failed(text),
        }
    })?;
    let limits = Limits { bytes: nic.escrow_bytes, ..Limits::default() };
    // Only a VM that can be protected ever speculates.
    let speculation = fenced.then(|| Box::new(engine_config(vm, place.mtu, port)));
    let config = PortConfig { wire: place.wire, limits, fenced, speculation };
    let failed = |fault| Failure::Failed(format!("VM {}, NIC {index}: {fault}", vm.name));
    let mut endpoints = endpoints.into_iter();
    let mut card = Card::new(endpoints.next().expect("an endpoint for each core"));
    for (core, endpoint) in cores.into_iter().skip(1).zip(endpoints) {
        let carried = dataplane.handle(core).carry(endpoint, handle).map_err(failed)?;
        card = card.with_carried(carried);
    }
    handle.add_port(port, Box::new(card), config).map_err(failed)?;
    Ok(device)
}
