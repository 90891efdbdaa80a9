//! What of the guest's memory reaches the backup: all of it.

use crate::can;
use holdfast_guest_init::protocol::READY_LINE;
use holdfast_lab::client::{Dirty, Pace};
use holdfast_lab::pair::{Appliance, PairOptions, Victim};
use holdfast_lab::topology::guest_ip;
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well_after_the_move, halt_and_commit, image_is_the_memory};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{READY, SOON, Scene, VM, options, wait_epochs, wait_until};
use serde_json::{Value, json};
use std::fs;

const SOME: u64 = 1 << 20;
/// Memory of the machine `pc` from this offset on lies above 4 GiB.
const LOW_MEMORY: u64 = 3 << 30;
/// Pages of an epoch of which some are copied ahead.
const MUCH: u32 = 4000;

/// Pages that were copied while the guest ran, of the epochs that are remembered.
fn copied_ahead(host: &Appliance) -> u64 {
    let document = host.ask(&json!({"command": "status", "vm": VM, "epochs": true})).expect("a status");
    let epochs = document["vms"][0]["epochs"].as_array().expect("epochs");
    epochs.iter().filter_map(|epoch| epoch["ahead_pages"].as_u64()).sum()
}

/// Streams and a guest that dirties its memory; then the guest is halted, its image compared, and its
/// host killed: what comes up on host B is that image.
fn image_is_exact_and_comes_to_life(options: PairOptions, seed: u64, load: Dirty, beyond: u64) {
    let mut scene = Scene::ready(options, seed);
    let streams = scene.streams(guest_ip(1), 0);
    scene.client().dirty(guest_ip(1).into(), load).expect("a guest that dirties");
    streams.flow(SOME);
    if load.pages >= MUCH {
        wait_until("pages that were copied ahead", SOON, || copied_ahead(&scene.pair.a) > 0);
    }

    let mut qemu = scene.pair.guests[0].monitor().expect("a monitor");
    halt_and_commit(&scene.pair.a, VM, &mut qemu);
    let memory = &scene.pair.guests[0].spec.memory_file;
    let last = image_is_the_memory(memory, &scene.pair.image(&scene.pair.b, VM));
    println!("equal to the byte; the last one that is not zero is at {last:#x}");
    assert!(last >= beyond, "nothing lies beyond {beyond:#x}: the comparison says nothing of it");

    scene.pair.kill(Victim::Qemu, 0).expect("killed");
    scene.taken_over(VM);
    streams.flow(SOME);
    assert!(streams.finish_exact() < GAP_BUDGET);
    all_is_well_after_the_move(&mut scene);
}

/// CK-2: what the vCPU, QEMU's devices and Holdfast's rings wrote is in the image, byte for byte. CK-1:
/// what comes up on host B is that image.
#[test]
fn the_image_is_the_memory_whoever_wrote_it() {
    if !can() {
        return;
    }
    image_is_exact_and_comes_to_life(options("commit"), seed(109), Dirty::words(500, 20_000), 64 << 20);
}

/// CK-1, CK-2: so it is when the guest writes so much that most of it is copied while it runs.
#[test]
fn the_image_is_the_memory_although_pages_were_copied_ahead() {
    if !can() {
        return;
    }
    let mut options = options("commit");
    options.epoch_ms = 200;
    let load = Dirty { pace: Pace::Spread, ..Dirty::words(MUCH, 200_000) };
    image_is_exact_and_comes_to_life(options, seed(112), load, 64 << 20);
}

/// CK-2: memory above 4 GiB, which lies in another region than that below, is copied and tracked as well.
#[test]
fn memory_above_four_gib_is_protected_too() {
    if !can() {
        return;
    }
    let mut options = options("commit");
    options.memory_mib = 5 * 1024;
    image_is_exact_and_comes_to_life(options, seed(110), Dirty::words(500, 20_000), LOW_MEMORY);
}

/// CK-2: a reset of the machine, in which QEMU itself writes to the guest's memory and the driver comes
/// up anew, is carried like all else. OC-1 before and after.
#[test]
fn a_guest_that_reboots_stays_protected() {
    if !can() {
        return;
    }
    let mut scene = Scene::ready(options("commit"), seed(111));
    let old = scene.streams(guest_ip(1), 0);
    old.flow(SOME / 2);
    let mut qemu = scene.pair.guests[0].monitor().expect("a monitor");
    // The laboratory's guests end instead of rebooting, unless told otherwise.
    qemu.execute("set-action", json!({ "reboot": "reset" })).expect("a setting");
    qemu.execute("system_reset", Value::Null).expect("a reset");
    let console = scene.pair.guests[0].spec.console();
    wait_until("the guest's second boot", READY, || {
        fs::read_to_string(&console).is_ok_and(|text| text.matches(READY_LINE).count() == 2)
    });
    old.abandon();
    let status = wait_epochs(&scene.pair.a, VM, 5);
    assert_eq!((&status["state"], &status["link"]["sessions"]), (&json!("protected"), &json!(1)), "{status}");

    let streams = scene.streams(guest_ip(1), 1);
    streams.flow(SOME);
    scene.pair.kill(Victim::Host, 0).expect("killed");
    scene.taken_over(VM);
    streams.flow(SOME);
    assert!(streams.finish_exact() < GAP_BUDGET);
    all_is_well_after_the_move(&mut scene);
}
