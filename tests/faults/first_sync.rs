//! The primary is lost before the backup holds anything: an outage, told as one, and no half guest.

use crate::{SOME, can};
use holdfast_lab::pair::{Appliance, Victim};
use holdfast_lab::topology::{guest_ip, guest_mac};
use holdfast_tests::oracles::all_is_well;
use holdfast_tests::program::seed;
use holdfast_tests::scene::{Scene, Streams, VM, options, wait_state, wait_status};
use std::time::{Duration, Instant};

/// The first synchronisation takes many seconds at this rate.
const SLOW: &str = "20mbit";

/// A pair in the midst of its first synchronisation, and streams, whose output passes.
fn amid_the_first_sync(seed: u64) -> (Scene, Streams) {
    let mut options = options("native");
    // The backup shall have time to do the wrong thing.
    options.lease_ms = 300;
    let scene = Scene::ready(options, seed);
    scene.throttle(&scene.pair.a, SLOW);
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    Scene::ask(&scene.pair.a, "protect", VM).expect("protection is wanted");
    wait_state(&scene.pair.a, VM, "syncing");
    wait_state(&scene.pair.b, VM, "syncing");
    (scene, streams)
}

/// Host B has half an image: it stays where it is for longer than any lease, and says so when asked.
fn refuses_to_go_live(b: &Appliance) {
    wait_status(b, VM, "decided and without a session", |status| {
        status["role"] != "undecided" && status["link"]["connected"] == false
    });
    let until = Instant::now() + Duration::from_millis(1200);
    while Instant::now() < until {
        let status = b.vm(VM).expect("a status");
        assert_eq!((&status["role"], &status["failover"]), (&"backup".into(), &().into()), "{status}");
    }
    assert_eq!(b.vm(VM).expect("a status")["state"], "waiting");
    let refused = Scene::ask(b, "failover", VM).expect_err("half an image cannot go live").to_string();
    assert!(refused.contains("no committed checkpoint"), "{refused}");
}

fn ends_well(mut scene: Scene) {
    let (_, b) = scene.wires();
    assert!(b.sent_by(guest_mac(1)).is_empty(), "host B sent for the guest");
    assert_eq!(scene.pair.commit_log(VM).expect("a log").commits(), [], "nothing was committed");
    all_is_well(&mut scene);
}

/// CK-1, FO-2 (faults 1 and 8): with QEMU dead and no checkpoint anywhere, host A says that the machine is
/// down, and host B does not go live with half of it.
#[test]
fn qemu_killed_before_the_first_commit_is_an_outage_that_is_told() {
    if !can() {
        return;
    }
    let (mut scene, streams) = amid_the_first_sync(seed(201));
    scene.pair.kill(Victim::Qemu, 0).expect("killed");
    let down = wait_state(&scene.pair.a, VM, "down");
    assert!(down["trouble"]["text"].as_str().is_some_and(|text| text.contains("QEMU")), "{down}");
    refuses_to_go_live(&scene.pair.b);
    streams.abandon();
    ends_well(scene);
}

/// CK-1, FO-2 (faults 1, 8 and 13): with host A's Holdfast dead, host B does not go live with half an image,
/// nor after a restart of its own; a new Holdfast on host A serves the guest again.
#[test]
fn holdfast_killed_before_the_first_commit_leaves_the_guest_where_it_is() {
    if !can() {
        return;
    }
    let (mut scene, streams) = amid_the_first_sync(seed(202));
    scene.pair.kill(Victim::Holdfast, 0).expect("killed");
    refuses_to_go_live(&scene.pair.b);
    scene.pair.b.kill().expect("killed");
    scene.pair.b.start().expect("started again");
    refuses_to_go_live(&scene.pair.b);
    scene.pair.a.start().expect("started again");
    wait_state(&scene.pair.a, VM, "native");
    streams.flow(SOME);
    streams.finish_exact();
    ends_well(scene);
}

/// CK-1, FO-2 (faults 1 and 8): with all of host A dead, host B does not go live with half an image.
#[test]
fn the_host_lost_before_the_first_commit_is_an_outage_that_is_told() {
    if !can() {
        return;
    }
    let (mut scene, streams) = amid_the_first_sync(seed(203));
    scene.pair.kill(Victim::Host, 0).expect("killed");
    refuses_to_go_live(&scene.pair.b);
    let status = scene.pair.b.vm(VM).expect("a status");
    assert!(status["trouble"]["text"].as_str().is_some_and(|text| text.contains("ended")), "{status}");
    streams.abandon();
    ends_well(scene);
}
