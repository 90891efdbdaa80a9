//! Cards with several pairs of queues, in guests with several processors.

use crate::can;
use holdfast_lab::guest::GuestSpec;
use holdfast_lab::initramfs::Part;
use holdfast_lab::pair::{Appliance, Victim};
use holdfast_lab::scratch::Scratch;
use holdfast_lab::testpmd;
use holdfast_lab::topology::guest_ip;
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well_after_the_move};
use holdfast_tests::program::{holdfast, seed};
use holdfast_tests::scene::{Scene, Streams, VM, options, wait_status};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const SOME: u64 = 1 << 20;
const ETHTOOL: &str = "/usr/sbin/ethtool";

/// Linux uses as many pairs as it has processors.
fn two_queues(spec: &mut GuestSpec) {
    spec.vcpus = 2;
    for nic in &mut spec.nics {
        nic.queue_pairs = 2;
    }
}

/// Frames from and to the guest by each pair that its driver enabled; none for one that it did not.
fn frames(host: &Appliance) -> Vec<Option<(u64, u64)>> {
    let status = host.vm(VM).expect("a status");
    let pairs = status["nics"][0]["queue_pairs"].as_array().expect("pairs").clone();
    let of_pair = |pair: &Value| {
        let frames = |name: &str| pair[name].as_u64().expect("a count");
        (pair["enabled"] == true).then(|| (frames("captured_frames"), frames("delivered_frames")))
    };
    pairs.iter().map(of_pair).collect()
}

fn each_pair_carries_frames(host: &Appliance) {
    let frames = frames(host);
    println!("{}: {frames:?}", host.name);
    let carries = |pair: &Option<(u64, u64)>| pair.is_some_and(|(from, to)| from > 0 && to > 0);
    assert!(frames.len() == 2 && frames.iter().all(carries), "{frames:?}");
}

/// OC-1, SP-3, FO-1: streams over several pairs stay exact when the host is lost, and both hosts use every pair.
#[test]
fn a_guest_with_several_queues_survives_the_loss_of_its_host() {
    if !can() {
        return;
    }
    let mut options = options("speculative");
    options.shape = two_queues;
    let mut scene = Scene::ready(options, seed(160));
    let streams: Vec<Streams> = (0..3).map(|salt| scene.streams(guest_ip(1), salt)).collect();
    streams.iter().for_each(|streams| streams.flow(SOME));
    each_pair_carries_frames(&scene.pair.a);
    scene.pair.kill(Victim::Host, 0).expect("killed");
    println!("{}", scene.taken_over(VM));
    streams.iter().for_each(|streams| streams.flow(SOME));
    each_pair_carries_frames(&scene.pair.b);
    for streams in streams {
        assert!(streams.finish_exact() < GAP_BUDGET);
    }
    all_is_well_after_the_move(&mut scene);
}

/// Gives a pair up and takes it again, for ever.
const TO_AND_FRO: &str = "while :; do
    /bin/ethtool -L eth0 combined 1
    /bin/sleep 0.3
    /bin/ethtool -L eth0 combined 2
    /bin/sleep 0.3
done
";

/// The same in a guest whose driver gives a pair up and takes it again, many times under load: what was in that
/// pair's rings is not lost, and no connection hangs.
#[test]
fn a_guest_that_changes_its_queues_all_the_time_survives_the_loss_of_its_host() {
    if !can() {
        return;
    }
    if !Path::new(ETHTOOL).exists() {
        println!("cannot run here: ethtool is needed; mend: apt-get install ethtool");
        return;
    }
    let mut options = options("speculative");
    options.shape = |spec| {
        two_queues(spec);
        let programs = [(ETHTOOL, "/bin/ethtool"), ("/bin/sleep", "/bin/sleep"), ("/bin/sh", "/bin/sh")];
        let parts = programs.map(|(path, inside)| Part::program(Path::new(path), inside));
        let script = Part::file("/bin/to-and-fro", TO_AND_FRO.as_bytes());
        spec.add(parts.into_iter().chain([script])).expect("an initramfs");
        spec.start_at_boot("/bin/sh", &["/bin/to-and-fro"]);
    };
    let mut scene = Scene::ready(options, seed(161));
    let streams: Vec<Streams> = (0..3).map(|salt| scene.streams(guest_ip(1), salt)).collect();
    queues_change(&scene.pair.a);
    streams.iter().for_each(|streams| streams.flow(SOME));
    queues_change(&scene.pair.a);
    scene.pair.kill(Victim::Host, 0).expect("killed");
    println!("{}", scene.taken_over(VM));
    queues_change(&scene.pair.b);
    streams.iter().for_each(|streams| streams.flow(SOME));
    for streams in streams {
        assert!(streams.finish_exact() < GAP_BUDGET);
    }
    all_is_well_after_the_move(&mut scene);
}

/// Waits until the second pair has been in use, given up, and in use again.
fn queues_change(host: &Appliance) {
    for wanted in [true, false, true] {
        wait_status(host, VM, "changing its queues", |status| {
            status["nics"][0]["queue_pairs"][1]["enabled"] == wanted
        });
    }
}

/// A driver that is not Linux's drives several pairs in every mode, without loss, and so does testpmd's own vhost.
#[test]
fn testpmd_drives_several_queues_without_loss() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if testpmd::check_installed().is_err() || cores < 2 {
        println!("cannot run here: two processors and dpdk-testpmd are needed; mend: scripts/packages");
        return;
    }
    let scratch = Scratch::new("queues").expect("a folder");
    let document = scratch.file("pps.json");
    let ended = Command::new(holdfast())
        .args(["bench", "pps", "--rounds", "1", "--seconds", "0.3", "--queues", "1,2", "--frames", "64"])
        .args(["--under-way", "128", "--held-under-way", "4096", "--json"])
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
    let queues: Vec<_> = rows.iter().map(|row| row["queues"].as_u64()).collect();
    let of_a_ring = [[Some(1); 4], [Some(2); 4]].concat();
    assert_eq!(queues, of_a_ring.repeat(2), "testpmd and three modes, on either kind of ring");
    for row in rows {
        assert!(row["mpps"].as_f64().is_some_and(|rate| rate > 0.0), "{row}");
        assert_eq!(row["lost_frames_at_others"], 0, "{row}");
    }
}
