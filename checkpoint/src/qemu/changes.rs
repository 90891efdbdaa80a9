//! Whether a guest is still the machine that its standby was compared with.
//!
//! A device that is plugged in or out while the guest is protected makes checkpoints that the standby cannot
//! load, or a guest that misses a device after a failover. QEMU tells of devices that went, not of those that
//! came. So each saved state is compared with the one before by its [`Layout`], and QEMU is asked only when
//! that has changed, when it told of something, and once a second for devices that have no state at all.

use super::layout::{KeptLayout, Layout};
use super::machine::{Device, Machine};
use super::{InspectError, InspectSettings, Qemu, RefusalKind};
use crate::qmp::{Event, QmpError};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// How long a device without state may go unnoticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The machine, as the standby was compared with it.
#[derive(Clone, Debug)]
pub struct Known {
    machine: Machine,
    devices: Vec<Device>,
    /// Of the last state, once one was found to be of this machine.
    layout: Option<KeptLayout>,
    looked: Instant,
}

impl Known {
    /// What the standby was, or is to be, compared with.
    #[must_use]
    pub const fn machine(&self) -> &Machine {
        &self.machine
    }
}

impl Qemu {
    /// Describes the machine, for comparisons from now on.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn known(&mut self) -> Result<Known, QmpError> {
        let devices = self.devices()?;
        Ok(Known { machine: self.machine()?, devices, layout: None, looked: Instant::now() })
    }

    /// Says in what way the machine is not the known one any more, and what mends it. `state` is that of its
    /// devices as it was just saved; without one, QEMU is asked.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn changed(
        &mut self,
        known: &mut Known,
        settings: &InspectSettings,
        state: Option<&[u8]>,
    ) -> Result<Option<String>, QmpError> {
        let layout = state.and_then(Layout::of);
        let told = self.told_of_change();
        let same = match (&known.layout, &layout) {
            (Some(known), Some(layout)) => known.is(layout),
            _ => false,
        };
        if same && !told && known.looked.elapsed() < LOOK_EVERY {
            return Ok(None);
        }
        known.looked = Instant::now();
        if same && !told {
            let devices = self.devices()?;
            return if devices == known.devices { Ok(None) } else { self.difference(known, None) };
        }
        if let Some(text) = self.objection(settings)? {
            return Ok(Some(text));
        }
        if let Some(text) = self.difference(known, layout.as_ref())? {
            return Ok(Some(text));
        }
        known.layout = layout.as_ref().map(Layout::keep);
        Ok(None)
    }

    /// Why this guest cannot be protected as it is made; none while it can.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub fn objection(&mut self, settings: &InspectSettings) -> Result<Option<String>, QmpError> {
        match self.inspect(settings) {
            Ok(_) => Ok(None),
            Err(InspectError::Refused(mut refusals)) => {
                // Whether it stands still or runs is not what it is made of.
                refusals.retain(|refusal| refusal.kind != RefusalKind::State);
                Ok((!refusals.is_empty()).then(|| InspectError::Refused(refusals).to_string()))
            }
            Err(InspectError::Qemu(super::QemuError::Qmp(fault))) => Err(fault),
            Err(InspectError::Qemu(other)) => Ok(Some(other.to_string())),
        }
    }

    fn difference(&mut self, known: &Known, layout: Option<&Layout<'_>>) -> Result<Option<String>, QmpError> {
        let (devices, machine) = (self.devices()?, self.machine()?);
        let came = missing(&devices, &known.devices);
        let went = missing(&known.devices, &devices);
        if !came.is_empty() || !went.is_empty() {
            return Ok(Some(unlike_standby(&of_devices(&came, &went))));
        }
        if machine != known.machine {
            let (was, is) = (&known.machine.text, &machine.text);
            return Ok(Some(unlike_standby(&format!("it was {was}, and is {is}"))));
        }
        let names = known.layout.as_ref().zip(layout).map(|(known, layout)| known.names_apart(layout));
        Ok(match names {
            None => None,
            Some(Some((came, went))) if came.is_empty() && went.is_empty() => None,
            Some(Some((came, went))) => Some(unlike_standby(&of_devices(&came, &went))),
            Some(None) => Some("what QEMU saves of it is of a form that Holdfast does not know".to_owned()),
        })
    }

    /// Whether QEMU reported since the last call that a device went, or that a medium may have been changed.
    fn told_of_change(&mut self) -> bool {
        let tells = |event: &Event| {
            matches!(
                event.name.as_str(),
                "DEVICE_DELETED" | "DEVICE_TRAY_MOVED" | "MEMORY_DEVICE_SIZE_CHANGE"
            )
        };
        let mut told = false;
        while self.qmp.take_event(tells).is_some() {
            told = true;
        }
        told
    }
}

/// Those of `all` that are not in `others`.
fn missing(all: &[Device], others: &[Device]) -> Vec<String> {
    all.iter().filter(|device| !others.contains(device)).map(ToString::to_string).collect()
}

fn unlike_standby(what: &str) -> String {
    format!(
        "{what}; the standby is not like that, and could not load what follows; mend: undo it, or change \
         `command` in [vm.backup] of the other host in the same way"
    )
}

fn of_devices(came: &[String], went: &[String]) -> String {
    let mut text = String::new();
    for (devices, how) in [(came, "was plugged in"), (went, "was taken out")] {
        if !devices.is_empty() {
            let join = if text.is_empty() { "" } else { ", and " };
            write!(text, "{join}{} {how}", devices.join(", ")).expect("a string takes all text");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_needs;
    use crate::qemu::tests::{LIMIT, Primary, command, has_qemu, place};
    use serde_json::{Value, json};

    /// A guest into which much can be plugged, and its disk's file.
    fn start() -> Primary {
        let dir = place();
        std::fs::write(dir.path().join("disk"), [0; 1 << 20]).unwrap();
        let mut argv = command(dir.path(), &dir.path().join("memory"));
        argv.extend(
            ["-m", "16M,slots=2,maxmem=1G", "-usb", "-device", "virtio-serial-pci,id=serial"]
                .map(str::to_owned),
        );
        Primary::start_with(dir, argv)
    }

    struct Watch {
        primary: Primary,
        known: Known,
    }

    impl Watch {
        fn begin() -> Self {
            let mut primary = start();
            let known = primary.qemu.known().unwrap();
            let mut watch = Self { primary, known };
            assert_eq!(watch.look(), None);
            watch
        }

        /// What a checkpoint says.
        fn look(&mut self) -> Option<String> {
            let qemu = &mut self.primary.qemu;
            qemu.stop().unwrap();
            let state = qemu.save_devices().unwrap();
            qemu.cont().unwrap();
            qemu.changed(&mut self.known, &InspectSettings::default(), Some(&state)).unwrap()
        }

        fn ask(&mut self, command: &str, arguments: Value) {
            self.primary.qemu.qmp().execute(command, arguments).unwrap();
        }

        /// Takes a device out; a guest that does not answer loses it with the next reset.
        fn remove(&mut self, id: &str) {
            self.ask("device_del", json!({ "id": id }));
            self.ask("system_reset", Value::Null);
            let deadline = Instant::now() + LIMIT;
            while self.primary.qemu.devices().unwrap().iter().any(|device| device.name == id) {
                assert!(Instant::now() < deadline, "{id} stays");
            }
        }
    }

    #[test]
    fn what_is_plugged_into_a_guest_is_in_its_next_checkpoint() {
        if !has_qemu() || !host_needs::is_root() {
            return;
        }
        let mut watch = Watch::begin();
        // With a state of its own, with a little more state in another device, on another bus.
        for (device, more) in [
            ("virtio-rng-pci", json!({})),
            ("virtserialport", json!({ "bus": "serial.0", "name": "agent" })),
            ("usb-tablet", json!({})),
        ] {
            let mut arguments = more;
            arguments["driver"] = json!(device);
            arguments["id"] = json!("new");
            watch.ask("device_add", arguments);
            let text = watch.look().unwrap_or_else(|| panic!("{device} was not noticed"));
            assert!(text.starts_with(&format!("{device} (new) was plugged in; ")), "{text}");
            assert!(text.contains("mend: undo it, or change `command` in [vm.backup]"), "{text}");
            assert_ne!(watch.look(), None, "it is still there");
            watch.remove("new");
            assert_eq!(watch.look(), None, "{device} is out again");
        }
        watch.ask("netdev_add", json!({ "type": "user", "id": "idle" }));
        let text = watch.look().expect("a network that no card uses has a section");
        assert!(text.contains("networks user"), "{text}");
        watch.ask("netdev_del", json!({ "id": "idle" }));
        assert_eq!(watch.look(), None);
        // What was there from the start is missed as well.
        watch.remove("serial");
        let text = watch.look().expect("a device is missing");
        assert!(text.starts_with("virtio-serial-pci (serial) was taken out; "), "{text}");
    }

    #[test]
    fn what_is_plugged_in_and_cannot_be_protected_is_refused_with_its_mend() {
        if !has_qemu() || !host_needs::is_root() {
            return;
        }
        let mut watch = Watch::begin();
        let disk = watch.primary.dir.path().join("disk");
        let disk = json!({ "driver": "file", "node-name": "disk", "filename": disk });
        let memory = json!({ "qom-type": "memory-backend-ram", "id": "more", "size": 128 << 20 });
        let network = json!({ "type": "user", "id": "net" });
        for (first, arguments, device, reference, found) in [
            ("object-add", memory, "pc-dimm", "memdev", "gives the guest a second piece of memory"),
            ("blockdev-add", disk, "virtio-blk-pci", "drive", "the guest can write to disk"),
            ("netdev_add", network, "virtio-net-pci", "netdev", "does not pass through Holdfast"),
        ] {
            let id = arguments["id"].as_str().or(arguments["node-name"].as_str()).unwrap().to_owned();
            watch.ask(first, arguments);
            let mut device = json!({ "driver": device, "id": format!("{id}-device") });
            device[reference] = json!(id);
            watch.ask("device_add", device);
            let text = watch.look().unwrap_or_else(|| panic!("{id} was not noticed"));
            assert!(text.contains(found) && text.contains("mend: "), "{text}");
        }
    }

    /// Nothing of it is saved, so that its checkpoints can be loaded: it is found by the clock.
    #[test]
    fn a_device_without_state_is_noticed_before_long() {
        if !has_qemu() || !host_needs::is_root() {
            return;
        }
        let mut watch = Watch::begin();
        watch.ask("device_add", json!({ "driver": "pci-testdev", "id": "new" }));
        let deadline = Instant::now() + LIMIT;
        let text = loop {
            if let Some(text) = watch.look() {
                break text;
            }
            assert!(Instant::now() < deadline, "it was not noticed");
        };
        assert!(text.starts_with("pci-testdev (new) was plugged in; "), "{text}");
    }
}
