//! The hosts cannot see each other, or the arbiter.

use crate::{SOME, in_both_modes};
use holdfast_lab::pair::Victim;
use holdfast_lab::topology::{guest_ip, guest_mac};
use holdfast_tests::oracles::{
    GAP_BUDGET, all_is_well, nothing_left_early, one_transmitter, realtime_ns, silent_meanwhile,
};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{SOON, Scene, VM, options, wait_state, wait_status, wait_until};
use std::fs;
use std::time::{Duration, Instant};

/// FO-2 (fault 5): with the replication link cut and both hosts alive, the arbiter lets exactly one of them
/// go on; the other is silent. When the link is back, protection returns by itself, whoever won, and
/// then the guest survives its host.
#[test]
fn a_cut_link_has_one_winner_and_protection_returns_with_the_link() {
    in_both_modes(|mode| {
        let mut scene = Scene::ready(options(mode), seed(206));
        let streams = scene.streams(guest_ip(1), 0);
        streams.flow(SOME);
        scene.pair.topology.set_replication(false).expect("cut");
        let state = |host: &holdfast_lab::pair::Appliance| host.vm(VM).expect("a status")["state"].clone();
        wait_until("a winner", SOON, || state(&scene.pair.a) == "solo" || state(&scene.pair.b) == "solo");
        // Both have asked by then: the loser knows.
        wait_until("a loser", SOON, || {
            let loser = |state| state == "waiting" || state == "fenced";
            loser(state(&scene.pair.a)) || loser(state(&scene.pair.b))
        });
        let solo =
            [state(&scene.pair.a), state(&scene.pair.b)].iter().filter(|state| *state == "solo").count();
        assert_eq!(solo, 1, "exactly one host goes on");
        let a_won = state(&scene.pair.a) == "solo";
        println!("host {} won", if a_won { "A" } else { "B" });
        streams.flow(SOME / 2);

        scene.pair.topology.set_replication(true).expect("mended");
        let (winner, loser) =
            if a_won { (&scene.pair.a, &scene.pair.b) } else { (&scene.pair.b, &scene.pair.a) };
        wait_state(winner, VM, "protected");
        wait_state(loser, VM, "ready");
        streams.flow(SOME / 2);
        if a_won {
            scene.pair.kill(Victim::Host, 0).expect("killed");
            scene.taken_over(VM);
            streams.flow(SOME / 2);
        }
        assert!(streams.finish_exact() < GAP_BUDGET);
        let (a, b) = scene.wires();
        one_transmitter(guest_mac(1), &a, &b, 0);
        nothing_left_early(&scene.pair, VM, &scene.pair.a, &scene.pair.b, &a);
        silent_meanwhile(guest_mac(1), &a, &b);
        all_is_well(&mut scene);
    });
}

/// FO-2, OC-1 (fault 6): with the backup dead and no arbiter to ask, no timer decides: output is held, and
/// the status says why. The arbiter's answer ends that.
#[test]
fn output_is_held_while_neither_backup_nor_arbiter_answers() {
    in_both_modes(|mode| {
        let mut scene = Scene::ready(options(mode), seed(207));
        let streams = scene.streams(guest_ip(1), 0);
        streams.flow(SOME);
        let (arbiter, away) = (scene.pair.arbiter(), scene.pair.scratch.file("arbiter-away"));
        fs::rename(&arbiter, &away).expect("moved away");
        scene.pair.b.kill().expect("killed");
        let wanted = "holding its output for want of the arbiter";
        wait_status(&scene.pair.a, VM, wanted, |status| {
            status["state"] == "holding" && status["trouble"]["fault"] == "arbiter"
        });
        let (since, until) = (realtime_ns(), Instant::now() + Duration::from_secs(2));
        while Instant::now() < until {
            assert_eq!(scene.pair.a.vm(VM).expect("a status")["state"], "holding");
            assert!(streams.alive(), "a stream ended while output was held");
        }
        let until = realtime_ns();
        fs::rename(&away, &arbiter).expect("moved back");
        wait_state(&scene.pair.a, VM, "solo");
        streams.flow(SOME);
        assert!(streams.finish_exact() < GAP_BUDGET);

        let (a, b) = scene.wires();
        let sent = a.sent_by(guest_mac(1)).into_iter().filter(|at| (since..until).contains(at)).count();
        assert_eq!(sent, 0, "frames left while output was held");
        assert!(b.sent_by(guest_mac(1)).is_empty(), "host B sent for the guest");
        nothing_left_early(&scene.pair, VM, &scene.pair.a, &scene.pair.b, &a);
        all_is_well(&mut scene);
    });
}
