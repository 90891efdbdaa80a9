//! The backup, or the session with it, is lost and comes back, while the guest works.

use crate::{SOME, in_both_modes};
use holdfast_lab::client::Dirty;
use holdfast_lab::pair::Victim;
use holdfast_lab::topology::{guest_ip, guest_mac};
use holdfast_tests::oracles::{
    GAP_BUDGET, all_is_well, all_is_well_after_the_move, halt_and_commit, image_is_the_memory,
    nothing_left_early,
};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{Scene, VM, options, wait_state, wait_status};

/// Sessions that are torn in one run.
const TORN: u64 = 5;

/// CK-1, CK-2 (fault 7): host B's Holdfast is killed amid epochs and started again. The guest runs alone
/// meanwhile, is protected again by itself, and then survives its host: no page of that time was forgotten.
#[test]
fn a_backup_that_died_and_came_back_protects_again() {
    in_both_modes(|mode| {
        let mut scene = Scene::ready(options(mode), seed(208));
        let streams = scene.streams(guest_ip(1), 0);
        let load = Dirty::words(1000, 20_000);
        scene.client().dirty(guest_ip(1).into(), load).expect("a guest that dirties");
        streams.flow(SOME);
        scene.pair.b.kill().expect("killed");
        wait_state(&scene.pair.a, VM, "solo");
        streams.flow(SOME);
        scene.pair.b.start().expect("started again");
        wait_state(&scene.pair.a, VM, "protected");
        streams.flow(SOME);
        scene.pair.kill(Victim::Host, 0).expect("killed");
        scene.taken_over(VM);
        streams.flow(SOME);
        assert!(streams.finish_exact() < GAP_BUDGET);
        all_is_well_after_the_move(&mut scene);
    });
}

/// CK-2 (fault 19): a session that is torn aborts the epochs under way; the next session goes on from the
/// last commit without a new synchronisation, and their pages are in it: the image is the memory.
#[test]
fn epochs_aborted_with_their_session_lose_no_page() {
    in_both_modes(|mode| {
        let mut scene = Scene::ready(options(mode), seed(209));
        let streams = scene.streams(guest_ip(1), 0);
        let load = Dirty::words(1000, 10_000);
        scene.client().dirty(guest_ip(1).into(), load).expect("a guest that dirties");
        let first = scene.pair.a.vm(VM).expect("a status");
        for torn in 1..=TORN {
            streams.flow(SOME / 8);
            let address = scene.pair.b.host.replication_ip.to_string();
            scene.pair.a.host.namespace.tool("ss", &["-K", "dst", &address]).expect("a session torn");
            wait_status(&scene.pair.a, VM, "protected by a new session", |status| {
                status["state"] == "protected" && status["link"]["sessions"].as_u64() > Some(torn)
            });
        }
        let last = scene.pair.a.vm(VM).expect("a status");
        assert_eq!(last["term"], first["term"], "the lease lasted: nobody had to ask the arbiter: {last}");
        assert_eq!(last["stats"]["full_syncs"], 1, "{last}");
        println!("{} epochs aborted", last["stats"]["epochs_aborted"]);

        let mut qemu = scene.pair.guests[0].monitor().expect("a monitor");
        halt_and_commit(&scene.pair.a, VM, &mut qemu);
        image_is_the_memory(&scene.pair.guests[0].spec.memory_file, &scene.pair.image(&scene.pair.b, VM));
        scene.pair.kill(Victim::Holdfast, 0).expect("killed");
        scene.taken_over(VM);
        streams.flow(SOME);
        assert!(streams.finish_exact() < GAP_BUDGET);
        all_is_well_after_the_move(&mut scene);
    });
}

/// OC-1 (faults 3 and 9): a link slower than the guest dirties makes the guest's output slow and nothing
/// else: epochs wait for each other, the lease is kept, and the guest stays protected.
#[test]
fn a_slow_link_makes_the_guest_slow_and_nothing_else() {
    in_both_modes(|mode| {
        let mut scene = Scene::ready(options(mode), seed(210));
        let streams = scene.streams(guest_ip(1), 0);
        streams.flow(SOME / 2);
        let first = scene.pair.a.vm(VM).expect("a status");
        scene.throttle(&scene.pair.a, "40mbit");
        let load = Dirty::words(2000, 20_000);
        scene.client().dirty(guest_ip(1).into(), load).expect("a guest that dirties");
        streams.flow(SOME / 4);
        let last = scene.pair.a.vm(VM).expect("a status");
        for same in ["state", "term"] {
            assert_eq!(last[same], first[same], "{last}");
        }
        assert_eq!(last["link"]["sessions"], first["link"]["sessions"], "{last}");
        scene.throttle(&scene.pair.a, "10gbit");
        scene.client().dirty(guest_ip(1).into(), Dirty::words(0, 0)).expect("a guest at rest");
        streams.flow(SOME / 4);
        assert!(streams.finish_exact() < GAP_BUDGET);
        let (a, b) = scene.wires();
        assert!(b.sent_by(guest_mac(1)).is_empty(), "host B sent for the guest");
        nothing_left_early(&scene.pair, VM, &scene.pair.a, &scene.pair.b, &a);
        all_is_well(&mut scene);
    });
}
