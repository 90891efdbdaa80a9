//! A guest whose machine changes while it is protected.

use super::*;
use crate::qmp::{Qmp, QmpError};
use serde_json::{Value, json};

fn plug_in(qmp: &mut Qmp) {
    // QEMU lets nobody do so while a checkpoint is made.
    eventually("a moment between checkpoints", || {
        match qmp.execute("device_add", json!({ "driver": "virtio-rng-pci", "id": "new" })) {
            Ok(_) => Some(()),
            Err(QmpError::Refused { desc, .. }) if desc.contains("while migrating") => None,
            Err(fault) => panic!("{fault}"),
        }
    });
}

/// A guest that does not answer the wish loses its device with the reset.
fn take_out(qmp: &mut Qmp) {
    qmp.execute("device_del", json!({ "id": "new" })).expect("asked for");
    qmp.execute("system_reset", Value::Null).expect("reset");
    qmp.wait_event("the device's end", crate::qemu::tests::LIMIT, |event| event.name == "DEVICE_DELETED")
        .expect("taken out");
}

fn told(vm: &VmHandle) -> Trouble {
    let trouble = eventually("the reason", || {
        vm.status().trouble.filter(|trouble| trouble.text.contains("virtio-rng-pci (new) was plugged in"))
    });
    assert_eq!(trouble.fault, Fault::Operator);
    assert!(trouble.text.starts_with("protection has ended, "), "{}", trouble.text);
    assert!(trouble.text.ends_with("; then `holdfast protect web`"), "{}", trouble.text);
    trouble
}

/// CK-1, FO-2: no epoch of a machine that the standby is not gets to the backup; output passes once the arbiter
/// agreed, and without the device the guest is protected anew.
#[test]
fn a_device_that_is_plugged_in_ends_the_protection() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::protected();
    let mut qmp = couple.a.monitor();
    plug_in(&mut qmp);
    let status = wait_for(&couple.vm_a, Role::Primary, State::Native);
    assert!(!status.protect, "{status:?}");
    told(&couple.vm_a);
    assert_eq!(couple.a.gate_log().last().map(String::as_str), Some("open"));
    assert!(couple.lab.grant().solo && couple.lab.grant().holder == "a");

    // The other host says that its standby is another machine, for as long as it is.
    couple.vm_a.protect().expect("wanted again");
    let refusal = eventually("a refusal", || {
        couple.vm_a.status().trouble.filter(|trouble| trouble.text.contains("refuses"))
    });
    assert_eq!(refusal.fault, Fault::Operator, "{}", refusal.text);
    take_out(&mut qmp);
    couple.vm_a.protect().expect("wanted again");
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    wait_for_commits(&couple.vm_a, 3);
    couple.fail_over();
}

/// CK-1, OC-1, FO-2: while the arbiter is away output is held, and what goes live on the other host is the last
/// checkpoint of the machine as the standby is.
#[test]
fn a_changed_guest_without_an_arbiter_is_held_and_the_last_good_checkpoint_goes_live() {
    let Some(_turn) = can_run() else { return };
    let mut couple = Couple::protected();
    let (there, away) = (couple.lab.dir.path().join("arbiter"), couple.lab.dir.path().join("arbiter.away"));
    fs::rename(&there, &away).expect("renamed");
    plug_in(&mut couple.a.monitor());
    wait_for(&couple.vm_a, Role::Primary, State::Holding);
    assert!(!couple.a.gate_log().iter().any(|line| line == "open"), "{:?}", couple.a.gate_log());
    couple.way.mute(true, true);
    couple.qemu.kill();
    eventually("the loss on host A", || (couple.vm_a.status().role != Role::Primary).then_some(()));
    fs::rename(&away, &there).expect("renamed");
    couple.way.mute(false, false);
    let report = wait_to_go_live(&couple.vm_b, None);
    assert_resumed_from_seal(&couple.b, report.resumed_from_epoch);
}

/// A guest that changed since the last epoch is not given away: its state would not load over there.
#[test]
fn a_changed_guest_is_not_handed_over() {
    let Some(_turn) = can_run() else { return };
    let couple = Couple::start_with(|config| config.epoch = Duration::from_secs(1), |_| {});
    wait_for(&couple.vm_a, Role::Primary, State::Protected);
    let mut qmp = couple.a.monitor();
    plug_in(&mut qmp);
    let refused = couple.vm_a.failover().expect_err("it does not fit");
    assert_eq!(refused.fault, Fault::Operator, "{}", refused.text);
    wait_for(&couple.vm_a, Role::Primary, State::Native);
    told(&couple.vm_a);
    let running = qmp.execute("query-status", Value::Null).expect("a state");
    assert_eq!(running["status"], "running");
    assert_eq!(couple.lab.grant().holder, "a");
}
