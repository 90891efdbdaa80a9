//! A guest goes on when its host is lost, and its neighbours do not notice.

use crate::can;
use holdfast_lab::artifacts::Artifacts;
use holdfast_lab::pair::{PairOptions, Victim, VmPlan};
use holdfast_lab::requirements::{Need, can_run};
use holdfast_lab::topology::{guest_ip, guest_mac};
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well, nothing_left_early, one_transmitter};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{Scene, VM, options, wait_epochs};
use std::time::Duration;

/// Bytes that flow each way before and after the fault.
const SOME: u64 = 1 << 20;
/// A neighbour of the guest that moves may be slowed by the machine's load, and by nothing else: less
/// than the lease, after which its own protection would have been touched.
const NEIGHBOUR_GAP: Duration = Duration::from_millis(1400);

fn survives(options: PairOptions, seed: u64) {
    let mut scene = Scene::ready(options, seed);
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    scene.pair.kill(Victim::Host, 0).expect("killed");
    let report = scene.taken_over(VM);
    println!("{report}");
    streams.flow(SOME);
    assert!(streams.finish_exact() < GAP_BUDGET);

    let (a, b) = scene.wires();
    nothing_left_early(&scene.pair, VM, &scene.pair.a, &scene.pair.b, &a);
    one_transmitter(guest_mac(1), &a, &b, 0);
    // What host A released was committed; the guest goes on from a commit, and from the newest.
    let last = scene.pair.commit_log(VM).expect("a log").last().expect("commits");
    assert_eq!(report["resumed_from_epoch"], last.epoch);
    assert_eq!(report["cause"], "silence");
    all_is_well(&mut scene);
}

/// OC-1: no frame of the guest left host A before its commit, so that host B can go on from the last
/// commit and both streams stay exact. FO-1: host A is silent once host B speaks.
#[test]
fn a_guest_of_the_systems_qemu_survives_the_loss_of_its_host() {
    if !can() {
        return;
    }
    for mode in ["commit", "speculative"] {
        survives(options(mode), seed(101));
    }
}

/// OC-1, FO-1: as above, with epochs that the guest's output ends.
#[test]
fn a_guest_with_adaptive_epochs_survives_the_loss_of_its_host() {
    if !can() {
        return;
    }
    for mode in ["commit", "speculative"] {
        let mut options = options(mode);
        options.vm_lines = "epoch_policy = \"adaptive\"\n".to_owned();
        survives(options, seed(132));
    }
}

/// OC-1, FO-1: as above, with the newest QEMU that is supported.
#[test]
fn a_guest_of_qemu_10_survives_the_loss_of_its_host() {
    if !can() || !can_run(&[Need::Qemu10]) {
        return;
    }
    let mut options = options("commit");
    options.qemu = Artifacts::locate().and_then(|found| found.qemu_10()).expect("QEMU 10.0");
    survives(options, seed(102));
}

/// RB-1, OC-1: the death of one guest touches no other: each one's output waited for its own commits, the
/// neighbour stays protected on host A, its session is the same, its stream flows on. FO-1 for the one that
/// moved.
#[test]
fn the_death_of_one_guest_does_not_touch_its_neighbour() {
    if !can() {
        return;
    }
    let plan = |name: &str| VmPlan { name: name.into(), nics: 1, mode: "commit".into() };
    let mut options = options("commit");
    options.vms = vec![plan("victim"), plan("neighbour")];
    options.memory_mib = 128;
    let mut scene = Scene::ready(options, seed(104));
    let (victim, neighbour) = (scene.streams(guest_ip(1), 0), scene.streams(guest_ip(2), 1));
    victim.flow(SOME / 2);
    neighbour.flow(SOME / 2);
    let before = scene.pair.a.vm("neighbour").expect("a status");

    scene.pair.kill(Victim::Qemu, 0).expect("killed");
    let report = scene.taken_over("victim");
    assert_eq!(report["cause"], "relinquished", "{report}");
    victim.flow(SOME / 2);
    neighbour.flow(SOME / 2);

    let after = wait_epochs(&scene.pair.a, "neighbour", 5);
    assert_eq!(after["state"], "protected", "{after}");
    for same in ["role", "term", "failover"] {
        assert_eq!(after[same], before[same], "{after}");
    }
    assert_eq!(after["link"]["sessions"], before["link"]["sessions"], "{after}");
    assert!(victim.finish_exact() < GAP_BUDGET);
    let gap = neighbour.finish_exact();
    assert!(gap < NEIGHBOUR_GAP, "the neighbour stood still for {gap:?}");

    let (a, b) = scene.wires();
    for vm in ["victim", "neighbour"] {
        nothing_left_early(&scene.pair, vm, &scene.pair.a, &scene.pair.b, &a);
    }
    one_transmitter(guest_mac(1), &a, &b, 0);
    assert!(b.sent_by(guest_mac(2)).is_empty(), "host B sent for the neighbour");
    all_is_well(&mut scene);
}
