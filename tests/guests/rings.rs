//! Packed rings: a guest of QEMU whose card has them, and dpdk-testpmd as a driver of them.

use crate::can;
use holdfast_lab::guest::GuestSpec;
use holdfast_lab::pair::Victim;
use holdfast_lab::scratch::Scratch;
use holdfast_lab::testpmd;
use holdfast_lab::topology::{guest_ip, guest_mac};
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well, nothing_left_early, one_transmitter};
use holdfast_tests::program::{holdfast, seed};
use holdfast_tests::scene::{Scene, VM, options};
use serde_json::Value;
use std::process::Command;

const SOME: u64 = 1 << 20;

fn packed(spec: &mut GuestSpec) {
    for nic in &mut spec.nics {
        nic.packed = true;
    }
}

/// Streams pass packed rings unharmed, through hundreds of checkpoints, in each of which the rings are left and
/// gone on with where they stopped. OC-1, FO-1: the guest goes on, with the same rings, when its host is lost.
#[test]
fn a_guest_with_packed_rings_survives_the_loss_of_its_host() {
    if !can() {
        return;
    }
    for mode in ["commit", "speculative"] {
        let mut options = options(mode);
        options.shape = packed;
        let mut scene = Scene::ready(options, seed(140));
        let nic = &scene.pair.a.vm(VM).expect("a status")["nics"][0];
        assert_eq!(nic["packed_rings"], true, "{nic}");
        let streams = scene.streams(guest_ip(1), 0);
        streams.flow(4 * SOME);
        scene.pair.kill(Victim::Host, 0).expect("killed");
        println!("{}", scene.taken_over(VM));
        streams.flow(SOME);
        assert!(streams.finish_exact() < GAP_BUDGET);
        let (a, b) = scene.wires();
        nothing_left_early(&scene.pair, VM, &scene.pair.a, &scene.pair.b, &a);
        one_transmitter(guest_mac(1), &a, &b, 0);
        all_is_well(&mut scene);
    }
}

/// A driver that is not Linux's drives both kinds of rings, in every mode, and no frame is lost.
#[test]
fn testpmd_drives_both_kinds_of_rings_without_loss() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if testpmd::check_installed().is_err() || cores < 2 {
        println!("cannot run here: two processors and dpdk-testpmd are needed; mend: scripts/packages");
        return;
    }
    let scratch = Scratch::new("rings").expect("a folder");
    let document = scratch.file("pps.json");
    let ended = Command::new(holdfast())
        .args(["bench", "pps", "--rounds", "1", "--seconds", "0.3", "--rings", "split,packed"])
        .args(["--frames", "64,1518", "--under-way", "64", "--held-under-way", "4096", "--json"])
        .arg(&document)
        .env("HOLDFAST_LOG", "warn")
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    println!("{said}");
    assert!(ended.status.success(), "{said}");
    let text = std::fs::read_to_string(&document).expect("a document");
    let document: Value = serde_json::from_str(&text).expect("JSON");
    let rows = document["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2 * 2 * 4, "rings, sizes, testpmd and three modes");
    for row in rows {
        assert!(row["mpps"].as_f64().is_some_and(|rate| rate > 0.0), "{row}");
        assert_eq!(row["lost_frames_at_others"], 0, "{row}");
    }
}
