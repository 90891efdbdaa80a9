//! The guest is moved by command, there and back.

use crate::{SOME, in_both_modes};
use holdfast_lab::topology::{guest_ip, guest_mac};
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well, nothing_left_early, silent_meanwhile};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{Scene, VM, options, wait_state, wait_status};

/// OC-1, FO-1 (fault 17): host A gives the guest to host B and becomes its backup, and host B gives it
/// back, under traffic. Each host's output waited for the other's commits, and never did both send.
#[test]
fn a_guest_moves_from_a_to_b_and_back_under_traffic() {
    in_both_modes(|mode| {
        let mut scene = Scene::ready(options(mode), seed(211));
        let streams = scene.streams(guest_ip(1), 0);
        streams.flow(SOME);
        Scene::ask(&scene.pair.a, "failover", VM).expect("given away");
        let first = scene.taken_over(VM);
        assert_eq!(first["cause"], "relinquished", "{first}");
        wait_state(&scene.pair.b, VM, "protected");
        wait_state(&scene.pair.a, VM, "ready");
        streams.flow(SOME);
        // This time the backup is asked.
        Scene::ask(&scene.pair.a, "failover", VM).expect("asked for");
        let back = wait_status(&scene.pair.a, VM, "back", |status| status["failover"].is_object());
        assert!(back["term"].as_u64() > first["term"].as_u64(), "{back}");
        wait_state(&scene.pair.a, VM, "protected");
        streams.flow(SOME);
        assert!(streams.finish_exact() < GAP_BUDGET);

        let (a, b) = scene.wires();
        let pair = &scene.pair;
        nothing_left_early(pair, VM, &pair.a, &pair.b, &a);
        nothing_left_early(pair, VM, &pair.b, &pair.a, &b);
        silent_meanwhile(guest_mac(1), &a, &b);
        all_is_well(&mut scene);
    });
}
