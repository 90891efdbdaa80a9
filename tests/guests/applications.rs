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
use serde_json::{Value, json};
use std::collections::HashSet;
use std::thread;
use std::time::Duration;

/// Of each load: some epochs.
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

/// The clients' ends of nginx's connections for which Holdfast speculates.
fn clients_of_nginx(scene: &Scene) -> HashSet<String> {
    let document =
        scene.pair.a.ask(&json!({"command": "status", "vm": VM, "flows": true})).expect("a status");
    let flows = document["vms"][0]["flows"].as_array().cloned().unwrap_or_default();
    let of_nginx = |flow: &&Value| flow["guest"].as_str().is_some_and(|guest| guest.ends_with(":80"));
    flows.iter().filter(of_nginx).map(|flow| flow["client"].to_string()).collect()
}

/// SP-3, OC-1: what nginx and rsync of a protected guest say is right to the last byte, Redis and iperf3 answer
/// without an error, and no request of nginx's clients fails and no byte is wrong when the host is lost under them.
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

    // Some of the shuffle's may be there yet.
    let before = clients_of_nginx(&scene);
    let theirs = client.clone();
    let loading = thread::spawn(move || load(&theirs, App::Nginx, seed, LONGER));
    wait_until("nginx's connections", SOON, || !clients_of_nginx(&scene).is_subset(&before));
    wait_epochs(&scene.pair.a, VM, 10);
    scene.pair.kill(Victim::Host, 0).expect("killed");
    scene.taken_over(VM);
    assert!(!loading.is_finished(), "the load ended before the guest had moved");
    let figures = loading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    // Whoever waited for an answer when the host was lost got it, and soon enough.
    let longest = Duration::from_micros(figures.latency.map_or(0, |latency| latency.max()));
    println!("the longest waited for {longest:?}");
    assert!(longest < GAP_BUDGET, "{longest:?}");
    load(&client, App::Rsync, seed, TIME);
    all_is_well_after_the_move(&mut scene);
}
