//! Which polling core has what: a wire, and all NICs on it, are one core's, and so are all NICs of a VM.

use super::bypass::Bypass;
use super::checked::{Faults, Vm};
use holdfast_dpdk_config::{Checked, Wire};

/// Notes what cannot be spread over the cores as it is written.
pub(super) fn check(
    checked: &Checked,
    bypass: Option<&Bypass>,
    vms: &[Vm],
    has_audit: bool,
    faults: &mut Faults,
) {
    let Checked { cores, wires, .. } = checked;
    let is_bypass = |wire: &Wire| bypass.is_some_and(|bypass| bypass.wire == wire.name);
    if wires.iter().any(|wire| is_bypass(wire) && wire.core.is_some()) {
        faults.add(
            "replication.bypass.wire",
            "its wire names a polling core, which has no part in it",
            "core = … in [replication.bypass] in place of that in the [[wire]]",
        );
    }
    for (place, processor) in cores.polling.iter().enumerate().skip(1) {
        if !wires.iter().any(|wire| !is_bypass(wire) && cores.place(wire) == place) {
            faults.add(
                format!("cores.polling[{place}]"),
                format!("processor {processor} would poll no wire"),
                format!("core = {processor} in a [[wire]], or leave it out here"),
            );
        }
    }
    if has_audit && cores.polling.len() > 1 {
        faults.add(
            "host.frame_audit",
            format!("it records what one polling core sends, and there are {}", cores.polling.len()),
            "name one processor in polling, or remove frame_audit",
        );
    }
    for (number, vm) in vms.iter().enumerate() {
        check_vm(&format!("vm[{number}]"), vm, checked, faults);
    }
}

/// A checkpoint cuts the output of all NICs of a VM at once, which one core alone can do.
fn check_vm(key: &str, vm: &Vm, checked: &Checked, faults: &mut Faults) {
    let place = |name: &str| {
        let wire = checked.wires.iter().find(|wire| wire.name == name)?;
        Some(checked.cores.place(wire))
    };
    let Some(first) = vm.nics.first() else { return };
    for (number, nic) in vm.nics.iter().enumerate() {
        // A wire that is not there is told elsewhere.
        let places = place(&nic.wire).zip(place(&first.wire));
        if places.is_some_and(|(own, of_first)| own != of_first) {
            faults.add(
                format!("{key}.nic[{number}].wire"),
                format!(
                    "wire '{}' is another polling core's than '{}' of the VM's first NIC, and the output of all NICs of \
                     a VM is cut at once",
                    nic.wire, first.wire
                ),
                "the same core in both [[wire]] sections, or wires of one core",
            );
        }
    }
}
