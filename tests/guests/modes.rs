//! What is done with a guest's output changes while it speaks.

use crate::can;
use holdfast_lab::emulator::WireEmulator;
use holdfast_lab::pair::{Appliance, Victim};
use holdfast_lab::topology::guest_ip;
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well_after_the_move};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{Scene, VM, options, wait_epochs, wait_status};
use serde_json::json;

const SOME: u64 = 1 << 20;

fn change(host: &Appliance, mode: &str) {
    host.ask(&json!({"command": "setmode", "vm": VM, "mode": mode})).expect("a change of mode");
    let state = if mode == "native" { "native" } else { "protected" };
    wait_status(host, VM, state, |status| status["mode"] == mode && status["state"] == state);
}

/// OC-1, SP-3: no byte is lost, doubled or too early, whatever the mode changes to under the streams; and
/// what it is at last protects, and comes with the guest to a host that was configured otherwise.
#[test]
fn streams_outlive_every_change_of_mode() {
    if !can() {
        return;
    }
    let mut scene = Scene::ready(options("commit"), seed(120));
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    for mode in
        ["speculative", "commit", "speculative", "native", "speculative", "native", "commit", "speculative"]
    {
        change(&scene.pair.a, mode);
        streams.flow(SOME / 2);
    }
    let except = ["22", "192.0.2.0/24"];
    scene.pair.a.ask(&json!({"command": "except", "vm": VM, "except": except})).expect("a change");
    wait_epochs(&scene.pair.a, VM, 3);
    // The backup says what it would go on with, and takes no other word for it.
    wait_status(&scene.pair.b, VM, "told", |status| {
        (&status["mode"], &status["except"]) == (&json!("speculative"), &json!(except))
    });
    for request in [
        json!({"command": "setmode", "vm": VM, "mode": "commit"}),
        json!({"command": "except", "vm": VM, "except": []}),
    ] {
        let refused = scene.pair.b.ask(&request).expect_err("it is the backup").to_string();
        assert!(refused.contains("mend: give the command on the primary"), "{refused}");
    }
    scene.pair.kill(Victim::Host, 0).expect("killed");
    scene.taken_over(VM);
    let status = scene.pair.b.vm(VM).expect("a status");
    assert_eq!((&status["mode"], &status["except"]), (&json!("speculative"), &json!(except)), "{status}");
    streams.flow(SOME);
    assert!(streams.finish_exact() < GAP_BUDGET);

    all_is_well_after_the_move(&mut scene);
}

/// OC-1, SP-3: a wire that delays, loses, doubles, reorders and changes frames harms no byte, before the loss
/// of the host and after it.
#[test]
fn a_guest_behind_a_bad_wire_survives() {
    if !can() {
        return;
    }
    let mut options = options("speculative");
    options.wire =
        "delay=2ms,jitter=1ms,loss=0.5%,duplicate=0.5%,reorder=0.5%,corrupt=0.5%".parse().expect("a wire");
    options.wire_seed = seed(121);
    let mut scene = Scene::ready(options, seed(121));
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    scene.pair.kill(Victim::Host, 0).expect("killed");
    scene.taken_over(VM);
    streams.flow(SOME);
    assert!(streams.finish_exact() < 2 * GAP_BUDGET);

    let wire = scene.pair.wire.take().map(WireEmulator::stop).expect("a wire").expect("its report");
    assert!(wire.down.counters.lost_frames > 0 && wire.up.counters.lost_frames > 0, "{wire:?}");
    all_is_well_after_the_move(&mut scene);
}
