//! Which polling core has what: a wire, and all NICs on it, are one core's, and so are all NICs of a VM; pairs of a NIC's
//! queues may be carried for it by others.

use super::bypass::Bypass;
use super::checked::{Faults, Nic, Vm};
use holdfast_dpdk_config::{Checked, CoreMap, Wire};
use std::collections::BTreeSet;

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
        let has_wire = wires.iter().any(|wire| !is_bypass(wire) && cores.place(wire) == place);
        let mut pairs = vms.iter().flat_map(|vm| &vm.nics).flat_map(|nic| nic.pair_cores.iter().flatten());
        if !has_wire && !pairs.any(|core| core == processor) {
            faults.add(
                format!("cores.polling[{place}]"),
                format!("processor {processor} would poll no wire and no pair of queues"),
                format!("core = {processor} in a [[wire]], {processor} in pair_cores of a [[vm.nic]], or leave it out here"),
            );
        }
    }
    let with_wires: BTreeSet<_> =
        wires.iter().filter(|wire| !is_bypass(wire)).map(|wire| cores.place(wire)).collect();
    if has_audit && with_wires.len() > 1 {
        faults.add(
            "host.frame_audit",
            format!("it records what one polling core sends, and {} have wires", with_wires.len()),
            "give all wires one core, or remove frame_audit",
        );
    }
    for (number, vm) in vms.iter().enumerate() {
        check_vm(&format!("vm[{number}]"), vm, checked, faults);
    }
}

/// Each pair of queues needs a polling thread.
fn check_pairs(key: &str, nic: &Nic, cores: &CoreMap, faults: &mut Faults) {
    let Some(named) = &nic.pair_cores else { return };
    if named.len() != usize::from(nic.queue_pairs) {
        faults.add(
            format!("{key}.pair_cores"),
            format!("it names {} processors for {} pairs of queues", named.len(), nic.queue_pairs),
            "name one for each pair, or leave pair_cores out: all are the wire's core's then",
        );
    }
    let unknown: BTreeSet<_> =
        named.iter().filter(|processor| cores.place_of(**processor).is_none()).collect();
    for processor in unknown {
        faults.add(
            format!("{key}.pair_cores"),
            format!("processor {processor} has no polling thread"),
            format!("add {processor} to polling in [cores], or name one that is there"),
        );
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
        check_pairs(&format!("{key}.nic[{number}]"), nic, &checked.cores, faults);
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
