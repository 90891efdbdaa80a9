//! What must be alike in a guest and its standby, for a checkpoint of the one to load in the other.
//!
//! QEMU itself notices most differences, but only when the state is loaded, which is at the failover; and
//! some it does not notice at all. So both hosts describe their machine beforehand, and compare.

use super::Qemu;
use crate::protocol::DeviceDigest;
use crate::qmp::QmpError;
use serde_json::{Value, json};
use std::fmt::{self, Write};

/// A machine in a line, and the digest of that line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Type, processors, memory, the PCI devices of the root buses by their places, the kinds of all devices and
    /// of the network's backends.
    pub text: String,
    /// For the comparison.
    pub digest: DeviceDigest,
}

impl Machine {
    fn new(text: String) -> Self {
        let digest = DeviceDigest(*blake3::hash(text.as_bytes()).as_bytes());
        Self { text, digest }
    }
}

impl Qemu {
    /// Describes the machine as it is now, with what was plugged in since its start.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn machine(&mut self) -> Result<Machine, QmpError> {
        let kind = self.qmp.execute("qom-get", json!({ "path": "/machine", "property": "type" }))?;
        let processors = self.qmp.execute("query-cpus-fast", Value::Null)?;
        let processors = processors.as_array().map_or(&[][..], Vec::as_slice);
        let model = match processors.first() {
            Some(first) => {
                self.qmp.execute("qom-get", json!({ "path": first["qom-path"], "property": "type" }))?
            }
            None => Value::Null,
        };
        let memory = self.qmp.execute("query-memory-size-summary", Value::Null)?;
        let mut text = format!(
            "{}, {} x {}, {} bytes, PCI",
            word(&kind).trim_end_matches("-machine"),
            processors.len(),
            word(&model),
            memory["base-memory"]
        );
        let buses = self.qmp.execute("query-pci", Value::Null)?;
        for bus in buses.as_array().into_iter().flatten() {
            describe(bus, &mut text);
        }
        let mut kinds: Vec<String> = self.devices()?.into_iter().map(|device| device.kind).collect();
        kinds.sort_unstable();
        text += &format!(", devices {}", kinds.join(" "));
        // One that no card uses yet may have a section of its own in a checkpoint.
        text += &format!(", networks {}", self.network_kinds()?.join(" "));
        Ok(Machine::new(text))
    }

    /// The devices that were added to the machine, at its start or later.
    pub(super) fn devices(&mut self) -> Result<Vec<Device>, QmpError> {
        let mut all = Vec::new();
        for container in ["/machine/peripheral", "/machine/peripheral-anon"] {
            let children = self.children(container)?;
            all.extend(children.into_iter().map(|(name, kind)| Device { kind, name }));
        }
        all.sort_unstable();
        Ok(all)
    }
}

/// A device of the machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Device {
    /// QEMU's name of its type.
    pub(super) kind: String,
    /// Its own name in QEMU.
    pub(super) name: String,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.kind, self.name)
    }
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Adds the devices of a root bus by their places. What lies behind a bridge is not among them: QEMU shows it
/// once the guest has given that bus a number, which no standby has done.
fn describe(bus: &Value, text: &mut String) {
    for device in bus["devices"].as_array().into_iter().flatten() {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let (slot, id) = (number(&device["slot"]), &device["id"]);
        let (vendor, kind) = (number(&id["vendor"]), number(&id["device"]));
        write!(text, " {}:{slot:x}.{} {vendor:04x}:{kind:04x}", bus["bus"], device["function"])
            .expect("a string takes all text");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::tests::{Primary, command, has_qemu, place};

    fn machine_with(more: &[&str]) -> Machine {
        let dir = place();
        let mut argv = command(dir.path(), &dir.path().join("memory"));
        argv.extend(more.iter().map(|word| (*word).to_owned()));
        Primary::start_with(dir, argv).qemu.machine().unwrap()
    }

    #[test]
    fn machines_are_alike_exactly_when_a_checkpoint_would_fit() {
        if !has_qemu() {
            return;
        }
        let usual = machine_with(&[]);
        assert_eq!(usual, machine_with(&["-name", "another"]));
        assert_eq!(usual, machine_with(&["-incoming", "defer"]));
        for more in [
            &["-device", "virtio-rng-pci"][..],
            &["-smp", "2"],
            &["-cpu", "max"],
            &["-netdev", "user,id=idle"],
            &["-device", "pci-bridge,id=b,chassis_nr=1", "-device", "virtio-rng-pci,bus=b,addr=3"],
        ] {
            let other = machine_with(more);
            assert_ne!(usual.digest, other.digest, "{more:?}: {}", other.text);
        }
        let bridge = ["-device", "pci-bridge,id=b,chassis_nr=1,addr=5"];
        let behind = machine_with(&[&bridge[..], &["-device", "virtio-rng-pci,bus=b,addr=3"]].concat());
        assert_ne!(behind.digest, machine_with(&bridge).digest, "{}", behind.text);
        assert!(
            usual.text.starts_with("pc-i440fx-") && usual.text.contains(" 0:0.0 8086:1237"),
            "{}",
            usual.text
        );
    }
}
