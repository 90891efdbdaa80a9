//! What is done with a guest's output changes while it speaks.

use crate::can;
use holdfast_guest_init::protocol::STREAM_PORT;
use holdfast_lab::emulator::WireEmulator;
use holdfast_lab::pair::{Appliance, Victim};
use holdfast_lab::topology::{CLIENT_IP, guest_ip};
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well_after_the_move};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{SOON, Scene, VM, options, wait_epochs, wait_status, wait_until};
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

/// The states of the guest's streams, as `holdfast status --flows` shows them.
fn stream_states(host: &Appliance) -> Vec<String> {
    let document = host.ask(&json!({"command": "status", "vm": VM, "flows": true})).expect("a status");
    let flows = document["vms"][0]["flows"].as_array().cloned().unwrap_or_default();
    let port = format!(":{STREAM_PORT}");
    flows
        .iter()
        .filter(|flow| flow["guest"].as_str().is_some_and(|guest| guest.ends_with(&port)))
        .map(|flow| flow["state"].as_str().expect("a state").to_owned())
        .collect()
}

/// Sets the exceptions, and waits until both streams are held as they say.
fn except(host: &Appliance, what: &[String], state: &str) {
    host.ask(&json!({"command": "except", "vm": VM, "except": what})).expect("a change");
    let mut seen = Vec::new();
    wait_until(&format!("both streams {state} with the exceptions {what:?}"), SOON, || {
        let states = stream_states(host);
        if seen.last() != Some(&states) {
            seen.push(states);
        }
        seen.last().is_some_and(|states| states.len() == 2 && states.iter().all(|found| found == state))
    });
    println!("{what:?}: {seen:?}");
}

/// OC-1, SP-3 (RFC 3135 §4.1.2): a port or network is excepted from speculation and taken back while its streams
/// flow, again and again, and then the host is lost: no byte is lost, doubled or too early.
#[test]
fn streams_outlive_being_excepted_and_taken_back() {
    if !can() {
        return;
    }
    let mut scene = Scene::ready(options("speculative"), seed(122));
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    let places = [STREAM_PORT.to_string(), format!("{CLIENT_IP}/32"), "10.0.0.0/8".to_owned()];
    for round in 0..3 {
        for place in &places {
            except(&scene.pair.a, std::slice::from_ref(place), "plain");
            streams.flow(SOME / 4);
            except(&scene.pair.a, &[], "speculating");
            streams.flow(SOME / 4);
        }
        // Without a look at what became of the change before.
        for count in (0..=places.len()).rev().chain(0..places.len()) {
            let what = &places[..count];
            scene.pair.a.ask(&json!({"command": "except", "vm": VM, "except": what})).expect("a change");
            streams.flow(SOME / 32 * (round + 1));
        }
    }
    // All but one: the first that fits a flow decides.
    let all = "0.0.0.0/0".to_owned();
    except(&scene.pair.a, std::slice::from_ref(&all), "plain");
    except(&scene.pair.a, &[format!("{STREAM_PORT}=speculative"), all], "speculating");
    streams.flow(SOME / 4);
    except(&scene.pair.a, &places, "plain");
    wait_epochs(&scene.pair.a, VM, 3);
    scene.pair.kill(Victim::Host, 0).expect("killed");
    scene.taken_over(VM);
    streams.flow(SOME / 4);
    assert_eq!(scene.pair.b.vm(VM).expect("a status")["except"], json!(places));
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
