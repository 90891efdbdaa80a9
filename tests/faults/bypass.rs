//! The epochs' way past the kernel is bad, or lost.

use crate::{SOME, can};
use holdfast_lab::pair::{PairOptions, Transport, Victim};
use holdfast_lab::topology::{guest_ip, guest_mac};
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well, nothing_left_early, one_transmitter};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{Scene, VM, options, wait_epochs, wait_status};

fn over_bypass(mode: &str) -> PairOptions {
    PairOptions { transport: Transport::Bypass, ..options(mode) }
}

fn used(status: &serde_json::Value) -> bool {
    status["link"]["over_bypass"] == true
}

/// OC-1, SP-3 (faults 3 and 4): a bypass that loses, reorders, doubles and flips is slower and nothing else, and
/// the guest survives its host.
#[test]
fn a_bad_bypass_is_slower_and_nothing_else() {
    if !can() {
        return;
    }
    let bypass_wire = "loss=2%,reorder=2%,duplicate=1%,corrupt=1%".parse().expect("a wire");
    let options = PairOptions { bypass_wire, ..over_bypass("speculative") };
    let mut scene = Scene::ready(options, seed(401));
    wait_status(&scene.pair.a, VM, "over the bypass", used);
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(4 * SOME);
    let status = wait_epochs(&scene.pair.a, VM, 20);
    assert!(used(&status), "{}", status["link"]);
    let port = scene.pair.b.status().expect("a status")["bypass"].clone();
    assert!(port["refused_datagrams"].as_u64() > Some(0), "nothing was flipped: {port}");
    scene.pair.kill(Victim::Host, 0).expect("killed");
    scene.taken_over(VM);
    streams.flow(SOME);
    assert!(streams.finish_exact() < GAP_BUDGET);
    let (a, b) = scene.wires();
    one_transmitter(guest_mac(1), &a, &b, 0);
    nothing_left_early(&scene.pair, VM, &scene.pair.a, &scene.pair.b, &a);
    all_is_well(&mut scene);
}

/// OC-1, FO-1 (fault 3): a bypass that is cut costs no session and no epoch, and is used again once it is back.
#[test]
fn a_bypass_that_is_cut_costs_no_epoch_and_is_used_again() {
    if !can() {
        return;
    }
    let mut scene = Scene::ready(over_bypass("speculative"), seed(402));
    let (a, b) = (&scene.pair.a, &scene.pair.b);
    wait_status(a, VM, "over the bypass", used);
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    scene.pair.topology.set_bypass(false).expect("cut");
    wait_status(a, VM, "back on the connection", |status| !used(status));
    wait_epochs(a, VM, 20);
    streams.flow(SOME);
    scene.pair.topology.set_bypass(true).expect("mended");
    wait_status(a, VM, "over the bypass again", used);
    let status = wait_epochs(a, VM, 20);
    wait_status(b, VM, "over the bypass too", used);
    let link = &status["link"];
    assert_eq!((&link["sessions"], &link["bypass_returns"]), (&1.into(), &1.into()), "{link}");
    assert_eq!(status["stats"]["epochs_aborted"], 0, "{}", status["stats"]);
    streams.flow(SOME);
    assert!(streams.finish_exact() < GAP_BUDGET);
    let (a, _) = scene.wires();
    nothing_left_early(&scene.pair, VM, &scene.pair.a, &scene.pair.b, &a);
    all_is_well(&mut scene);
}
