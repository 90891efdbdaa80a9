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

/// And each pair is another core's: the second core carries it for the first, which has the wire.
fn two_queues_on_two_cores(spec: &mut GuestSpec) {
    two_queues(spec);
    for nic in &mut spec.nics {
        nic.pair_cores = vec![0, 1];
    }
}

/// OC-1, SP-3, FO-1: streams over several pairs stay exact when the host is lost, and both hosts use every pair.
fn survives(shape: fn(&mut GuestSpec), seed: u64) -> Scene {
    let mut options = options("speculative");
    options.shape = shape;
    let mut scene = Scene::ready(options, seed);
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
    scene
}

#[test]
fn a_guest_with_several_queues_survives_the_loss_of_its_host() {
    if can() {
        survives(two_queues, seed(160));
    }
}

/// What the second core carries is cut, held and acknowledged as what the first one takes itself.
#[test]
fn a_guest_whose_queues_are_several_cores_survives_the_loss_of_its_host() {
    if !can() || !has_two_processors() {
        return;
    }
    let scene = survives(two_queues_on_two_cores, seed(162));
    let cores = scene.pair.b.status().expect("a status")["cores"].clone();
    let carried = |core: usize| cores[core]["carried_frames"].as_u64().expect("a count");
    assert!(carried(0) == 0 && carried(1) > 0, "{cores}");
}

fn has_two_processors() -> bool {
    let two = std::thread::available_parallelism().is_ok_and(|processors| processors.get() >= 2);
    if !two {
        println!("cannot run here: two processors are needed");
    }
    two
}

/// Gives a pair up and takes it again, for ever.
const TO_AND_FRO: &str = "while :; do
    /bin/ethtool -L eth0 combined 1
    /bin/sleep 0.3
    /bin/ethtool -L eth0 combined 2
    /bin/sleep 0.3
done
";

fn to_and_fro(spec: &mut GuestSpec) {
    let programs = [(ETHTOOL, "/bin/ethtool"), ("/bin/sleep", "/bin/sleep"), ("/bin/sh", "/bin/sh")];
    let parts = programs.map(|(path, inside)| Part::program(Path::new(path), inside));
    let script = Part::file("/bin/to-and-fro", TO_AND_FRO.as_bytes());
    spec.add(parts.into_iter().chain([script])).expect("an initramfs");
    spec.start_at_boot("/bin/sh", &["/bin/to-and-fro"]);
}

/// The guest's driver gives a pair up and takes it again, many times under load: what was in that pair's rings is not
/// lost, and no connection hangs.
fn survives_while_queues_change(shape: fn(&mut GuestSpec), seed: u64) {
    let mut options = options("speculative");
    options.shape = shape;
    let mut scene = Scene::ready(options, seed);
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

/// Whether guests can change their queues here; says what is missing.
fn has_ethtool() -> bool {
    let there = Path::new(ETHTOOL).exists();
    if !there {
        println!("cannot run here: ethtool is needed; mend: apt-get install ethtool");
    }
    there
}

#[test]
fn a_guest_that_changes_its_queues_all_the_time_survives_the_loss_of_its_host() {
    if can() && has_ethtool() {
        survives_while_queues_change(
            |spec| {
                two_queues(spec);
                to_and_fro(spec);
            },
            seed(161),
        );
    }
}

#[test]
fn a_guest_that_changes_queues_of_several_cores_survives_the_loss_of_its_host() {
    if can() && has_two_processors() && has_ethtool() {
        survives_while_queues_change(
            |spec| {
                two_queues_on_two_cores(spec);
                to_and_fro(spec);
            },
            seed(163),
        );
    }
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
