//! A process of host A stands still, is taken for dead, and comes back.

use crate::{SOME, in_both_modes};
use holdfast_lab::topology::{guest_ip, guest_mac};
use holdfast_tests::oracles::{
    BURST, GAP_BUDGET, all_is_well, all_is_well_after_the_move, nothing_left_early, one_transmitter,
};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{Scene, VM, options, wait_state, wait_status, wait_until};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// FO-1 (faults 2 and 16): a Holdfast that was stopped for longer than its lease sends nothing new when it
/// goes on (but for one burst of committed frames at the most, which nobody can call back), finds its term
/// over, ends its guest and becomes the backup. OC-1 on both hosts, each with the other's commits.
#[test]
fn a_holdfast_that_stood_still_is_silent_and_becomes_the_backup() {
    in_both_modes(|mode| {
        let mut scene = Scene::ready(options(mode), seed(204));
        let streams = scene.streams(guest_ip(1), 0);
        streams.flow(SOME);
        let stopped = Instant::now();
        scene.pair.a.signal(Signal::SIGSTOP).expect("stopped");
        let report = scene.taken_over(VM);
        assert_eq!(report["cause"], "silence", "{report}");
        streams.flow(SOME / 2);
        wait_until("the end of the standstill", Duration::from_secs(60), || {
            stopped.elapsed() >= Duration::from_secs(3)
        });
        scene.pair.a.signal(Signal::SIGCONT).expect("goes on");

        // Where it was stopped amid a pause it hears of the new term from host B alone.
        wait_status(&scene.pair.a, VM, "a backup that knows of the new term", |status| {
            status["role"] == "backup" && status["term"].as_u64() >= report["term"].as_u64()
        });
        wait_state(&scene.pair.b, VM, "protected");
        wait_state(&scene.pair.a, VM, "ready");
        wait_until("the end of the old QEMU", Duration::from_secs(10), || {
            !scene.pair.guests[0].process.is_running()
        });
        streams.flow(SOME / 2);
        assert!(streams.finish_exact() < GAP_BUDGET);

        let (a, b) = scene.wires();
        one_transmitter(guest_mac(1), &a, &b, BURST);
        let pair = &scene.pair;
        nothing_left_early(pair, VM, &pair.a, &pair.b, &a);
        nothing_left_early(pair, VM, &pair.b, &pair.a, &b);
        all_is_well(&mut scene);
    });
}

/// FO-1 (fault 2): a QEMU that does not answer is given up: host A fences its ports, says so, and host B
/// goes on at once. What the old QEMU does when it is continued reaches nobody.
#[test]
fn a_qemu_that_stood_still_is_given_up_and_stays_silent() {
    in_both_modes(|mode| {
        let mut options = options(mode);
        options.vm_lines = "qemu_timeout_ms = 1000".into();
        let mut scene = Scene::ready(options, seed(205));
        let streams = scene.streams(guest_ip(1), 0);
        streams.flow(SOME);
        let stopped = Instant::now();
        scene.pair.guests[0].process.signal(Signal::SIGSTOP).expect("stopped");
        let report = scene.taken_over(VM);
        assert_eq!(report["cause"], "relinquished", "{report}");
        streams.flow(SOME / 2);
        wait_until("the end of the standstill", Duration::from_secs(60), || {
            stopped.elapsed() >= Duration::from_secs(5)
        });
        scene.pair.guests[0].process.signal(Signal::SIGCONT).expect("goes on");
        wait_state(&scene.pair.b, VM, "protected");
        streams.flow(SOME / 2);
        assert!(streams.finish_exact() < GAP_BUDGET);

        all_is_well_after_the_move(&mut scene);
    });
}
