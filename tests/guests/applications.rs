//! Real applications in a protected guest, under real load.

use crate::can;
use holdfast_lab::apps::{self, App, AppFigures};
use holdfast_lab::client::Client;
use holdfast_lab::guest::GuestSpec;
use holdfast_lab::pair::Victim;
use holdfast_lab::requirements::{Need, can_run};
use holdfast_lab::topology::guest_ip;
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well_after_the_move};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{Scene, VM, options, wait_epochs, wait_until};
use serde_json::json;
use std::thread;
use std::time::Duration;

/// Of each load: some epochs, and less than the lease.
const TIME: Duration = Duration::from_secs(1);
/// Of the load under which the host is lost: far longer than it takes to see that it is under way.
const LONGER: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(30);

fn carry_all(spec: &mut GuestSpec) {
    apps::carry(spec, &App::ALL).expect("applications for the guest");
}

fn load(client: &Client, app: App, seed: u64, time: Duration) -> AppFigures {
    let measured = apps::measure(app, client, guest_ip(1).into(), seed, time);
    let figures = measured.unwrap_or_else(|fault| panic!("{app}: {fault}"));
    println!("{app}: {figures}");
    assert!(figures.requests > 0 && figures.errors == 0, "{app}: {figures}");
    assert_ne!(figures.exact, Some(false), "{app}: {figures}");
    figures
}

/// How many of nginx's connections Holdfast speculates for.
fn flows_of_nginx(scene: &Scene) -> usize {
    let document =
        scene.pair.a.ask(&json!({"command": "status", "vm": VM, "flows": true})).expect("a status");
    let flows = document["vms"][0]["flows"].as_array().cloned().unwrap_or_default();
    flows.iter().filter(|flow| flow["guest"].as_str().is_some_and(|guest| guest.ends_with(":80"))).count()
}

/// SP-3, OC-1: what nginx, Redis, rsync and iperf3 of a protected guest say is right to the last byte; and no
/// request of nginx's clients fails, and no byte of its answers is wrong, when its host is lost under them.
#[test]
fn applications_answer_exactly_and_outlive_their_host() {
    if !can() || !can_run(&[Need::Applications]) {
        return;
    }
    let mut options = options("speculative");
    options.memory_mib = 512;
    options.shape = carry_all;
    let seed = seed(140);
    let mut scene = Scene::ready(options, seed);
    let client = scene.client();
    for app in App::ALL {
        let figures = load(&client, app, seed, TIME);
        let checked = matches!(app, App::Nginx | App::Shuffle | App::Rsync);
        assert_eq!(figures.exact.is_some(), checked, "{app}");
        assert_eq!(figures.latency.is_some_and(|latency| !latency.is_empty()), app != App::Iperf3, "{app}");
    }

    let before = flows_of_nginx(&scene);
    let theirs = client.clone();
    let loading = thread::spawn(move || load(&theirs, App::Nginx, seed, LONGER));
    wait_until("nginx's connections", SOON, || flows_of_nginx(&scene) > before);
    wait_epochs(&scene.pair.a, VM, 10);
    scene.pair.kill(Victim::Host, 0).expect("killed");
    scene.taken_over(VM);
    assert!(!loading.is_finished(), "the load ended before the guest had moved");
    let figures = loading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    // Whoever waited for an answer when the host was lost had to wait for the lease to end, and got it.
    let longest = Duration::from_micros(figures.latency.map_or(0, |latency| latency.max()));
    println!("the longest waited for {longest:?}");
    assert!(longest > TIME && longest < GAP_BUDGET, "{longest:?}");
    load(&client, App::Rsync, seed, TIME);
    all_is_well_after_the_move(&mut scene);
}
