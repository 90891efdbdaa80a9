//! Guests that are not protected: Holdfast as a switch port that comes and goes.

use crate::can;
use holdfast_lab::guest::{Backend, Guest};
use holdfast_lab::pair::Victim;
use holdfast_lab::topology::{guest_ip, guest_ip6, guest_mac};
use holdfast_tests::oracles::{GAP_BUDGET, all_is_well, migrate, one_transmitter};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{SOON, Scene, VM, options, wait_state, wait_until};
use serde_json::{Value, json};
use std::net::IpAddr;

const SOME: u64 = 4 << 20;

/// RB-1: the rings outlive the Holdfast that served them: a new one takes them up where the old one
/// was killed, and the streams that were under way go on.
#[test]
fn a_guest_goes_on_when_holdfast_is_killed_and_started_again() {
    if !can() {
        return;
    }
    let mut scene = Scene::ready(options("native"), seed(106));
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    scene.pair.kill(Victim::Holdfast, 0).expect("killed");
    scene.pair.a.start().expect("started again");
    wait_state(&scene.pair.a, VM, "native");
    streams.flow(SOME);
    assert!(streams.finish_exact() < GAP_BUDGET);

    let again = scene.streams(guest_ip(1), 1);
    again.flow(SOME);
    again.finish_exact();
    let nic = &scene.pair.a.vm(VM).expect("a status")["nics"][0];
    assert_eq!((&nic["connected"], &nic["running"]), (&json!(true), &json!(true)), "{nic}");
    assert_eq!(nic["guest_faults"], json!({}), "{nic}");
    all_is_well(&mut scene);
}

/// OC-2: IPv6 streams of a guest pass, in order and whole, with checksums and segments made for the wire.
#[test]
fn an_ipv6_stream_passes_unharmed() {
    if !can() {
        return;
    }
    let mut scene = Scene::ready(options("native"), seed(107));
    let streams = scene.streams(guest_ip6(1), 0);
    streams.flow(SOME);
    streams.finish_exact();
    all_is_well(&mut scene);
}

/// An interface may be used as it is, with offloads that hand Holdfast segments of 64 KiB and checksums
/// that are not made yet.
#[test]
fn streams_pass_a_wire_whose_offloads_are_on() {
    if !can() {
        return;
    }
    let mut options = options("native");
    options.topology.wire_offloads = true;
    let mut scene = Scene::ready(options, seed(130));
    for address in [IpAddr::from(guest_ip(1)), IpAddr::from(guest_ip6(1))] {
        let streams = scene.streams(address, 0);
        streams.flow(SOME);
        streams.finish_exact();
    }
    assert_eq!(
        scene.pair.a.ask(&json!({"command": "status"})).expect("a status")["core"]["wire_lost_frames"],
        0
    );
    all_is_well(&mut scene);
}

/// The packet socket of DPDK's own carries a guest as well as ours does.
#[test]
fn streams_pass_a_wire_of_dpdks_packet_driver() {
    if !can() {
        return;
    }
    let mut options = options("native");
    options.wire_kind = "af_packet";
    let mut scene = Scene::ready(options, seed(131));
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    streams.finish_exact();
    all_is_well(&mut scene);
}

/// CK-2: pages that Holdfast writes are in QEMU's own dirty log (LOG_ALL) as well: a live migration of
/// the ordinary kind, with QEMU copying all memory, carries streams that are under way, unharmed.
#[test]
fn a_guest_migrates_live_from_one_holdfast_to_another() {
    if !can() {
        return;
    }
    let mut options = options("native");
    options.paired = false;
    let mut scene = Scene::ready(options, seed(108));
    let pair = &scene.pair;
    let backend = Backend::VhostUser { socket: pair.nic_socket(&pair.b, 1) };
    let spec = pair.guests[0].spec.standby("arrival", &pair.scratch.memory("arrival.ram"), vec![backend]);
    let arrival: Guest = spec.start(&pair.topology.b.namespace).expect("a QEMU on host B");
    wait_until("the monitor of host B's QEMU", SOON, || arrival.spec.lab_qmp().exists());
    let uri = format!("unix:{}", pair.scratch.file("migration").display());
    let mut there = arrival.monitor().expect("a monitor");
    there.execute("migrate-incoming", json!({ "uri": uri })).expect("host B's QEMU waits");
    let mut here = pair.guests[0].monitor().expect("a monitor");
    here.execute("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 30, "downtime-limit": 1000 }))
        .expect("a fast migration");

    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    migrate(&mut here, &uri, SOON);
    wait_until("the guest on host B", SOON, || {
        there.execute("query-status", Value::Null).expect("a state")["status"] == "running"
    });
    streams.flow(SOME);
    assert!(streams.finish_exact() < GAP_BUDGET);

    let (a, b) = scene.wires();
    one_transmitter(guest_mac(1), &a, &b, 0);
    all_is_well(&mut scene);
}
