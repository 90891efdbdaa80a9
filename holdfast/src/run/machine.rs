//! One VM of the appliance: its NICs, its gate, and its supervisor when it is to be protected.

use super::Link;
use super::dataplane::Dataplane;
use crate::cli::Failure;
use crate::config::{Config, Nic, Socket, Vm};
use holdfast_dataplane::{Handle, Limits, PortConfig, PortId};
use holdfast_vhost_user::{Device, DeviceConfig, MemoryFiles, SocketRole};
use serde_json::{Value, json};
use std::sync::Arc;

/// A VM as the appliance runs it.
pub(crate) struct Machine {
    vm: Vm,
    handle: Handle,
    ports: Vec<PortId>,
    devices: Vec<Arc<Device>>,
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
        let mut devices = Vec::new();
        let mut ports = Vec::new();
        for (index, nic) in vm.nics.iter().enumerate() {
            let port = PortId(first_port + index as u16);
            devices.push(Arc::new(plug(vm, index, nic, port, dataplane, &files, false)?));
            ports.push(port);
        }
        let _ = (config, link);
        Ok(Self { vm: vm.clone(), handle: dataplane.handle.clone(), ports, devices })
    }

    /// Name of the VM.
    pub(crate) fn name(&self) -> &str {
        &self.vm.name
    }

    /// The VM's part of the status document.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({"vm": self.vm.name, "role": "primary", "state": "native", "mode": "native"});
        status["nics"] = self.nics();
        status
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
                "guest_faults": snapshot.faults.iter().map(|(name, count)| (name.to_string(), json!(count)))
                    .collect::<serde_json::Map<_, _>>(),
                "frontend_faults": snapshot.peer_faults,
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

    pub(crate) fn fail_over(&self) -> Result<Value, String> {
        Err(self.unprotected())
    }

    pub(crate) fn protect(&self, _wanted: bool) -> Result<Value, String> {
        Err(self.unprotected())
    }

    pub(crate) fn set_epoch(&self, _epoch_ms: u64) -> Result<Value, String> {
        Err(self.unprotected())
    }

    fn unprotected(&self) -> String {
        format!(
            "VM '{}' has no backup on this host's word; mend: give it [replication] and [arbiter]",
            self.vm.name
        )
    }

    /// Ends the supervisor.
    pub(crate) fn end(&self) {}
}

/// Opens one NIC's vhost-user device and gives its endpoint to the polling core.
fn plug(
    vm: &Vm,
    index: usize,
    nic: &Nic,
    port: PortId,
    dataplane: &Dataplane,
    files: &MemoryFiles,
    fenced: bool,
) -> Result<Device, Failure> {
    let wire = dataplane.wire(&nic.wire);
    let config = DeviceConfig {
        name: format!("{}-{index}", vm.name),
        socket: match &nic.socket {
            Socket::Listen(path) => SocketRole::Server(path.clone()),
            Socket::Connect(path) => SocketRole::Client(path.clone()),
        },
        queue_pairs: nic.queue_pairs,
        offloads: nic.offloads,
        mtu: dataplane.mtu(wire),
        files: files.clone(),
    };
    let (device, endpoint) = Device::spawn(config, dataplane.handle.waker())
        .map_err(|fault| Failure::Failed(format!("VM {}, NIC {index}: {fault}", vm.name)))?;
    let limits = Limits { bytes: nic.escrow_bytes, ..Limits::default() };
    dataplane
        .handle
        .add_port(port, Box::new(endpoint), PortConfig { wire, limits, fenced })
        .map_err(|fault| Failure::Failed(format!("VM {}, NIC {index}: {fault}", vm.name)))?;
    Ok(device)
}
