//! Two supervisors, real links, a real arbiter and real QEMUs: losses of every kind, and what must hold.

mod lab;

use super::*;
use crate::arbiter::Arbiter;
use crate::host_needs;
use crate::qemu::tests::has_qemu;
use lab::*;
use std::time::Duration;

fn can_run() -> bool {
    has_qemu() && host_needs::is_root()
}

/// OC-1, CK-1, CK-2, FO-1: the guest goes on from the last commit when its QEMU dies, is protected anew on
/// the way back, and is moved back by command without a loss.
#[test]
fn a_guest_outlives_its_qemu_and_returns() {
    if !can_run() {
        return;
    }
    let lab = Lab::new();
    let (a, b) = (lab.site("a"), lab.site("b"));
    let mut qemu = a.start_qemu();
    let (listen_a, listen_b) = (a.listen(), b.listen());
    let vm_b = b.supervise(b.config(), &listen_b, listen_a.address());
    let vm_a = a.supervise(a.config(), &listen_a, listen_b.address());
    wait_for(&vm_a, Role::Primary, State::Protected);
    wait_for_commits(&vm_a, 20);
    qemu.kill();

    let report = wait_to_go_live(&vm_b, None);
    assert_eq!(report.cause, "relinquished");
    assert!(report.detect_ms < LEASE.as_secs_f64() * 1e3, "no lease is waited for: {report:?}");
    assert_resumed_from_seal(&b, report.resumed_from_epoch);
    assert_eq!((lab.grant().holder.as_str(), report.term > 1), ("b", true));
    assert!(assert_released_after_commit(&a) >= 20);
    let fenced = a.gate_log();
    assert_eq!(fenced.last().map(String::as_str), Some("fence"), "the old primary is silent");

    // The old primary is the backup now, and takes a whole synchronisation by itself.
    wait_for(&vm_b, Role::Primary, State::Protected);
    wait_for_commits(&vm_b, 5);
    wait_for(&vm_a, Role::Backup, State::Ready);
    vm_b.failover().expect("handed over");
    let report = wait_to_go_live(&vm_a, None);
    assert_resumed_from_seal(&a, report.resumed_from_epoch);
    assert_eq!(lab.grant().holder, "a");
    assert!(assert_released_after_commit(&b) >= 5);
    wait_for(&vm_a, Role::Primary, State::Protected);
    // Shut down, it hands the machine over once more.
    let before = vm_b.status().failover;
    vm_a.shutdown().expect("ended");
    let report = wait_to_go_live(&vm_b, before.as_ref());
    assert_resumed_from_seal(&b, report.resumed_from_epoch);
    vm_b.shutdown().expect("ended");
}
