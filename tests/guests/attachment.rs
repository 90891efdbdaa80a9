//! Ways to attach a guest.

use crate::can;
use holdfast_lab::audit::read_audit;
use holdfast_lab::guest::GuestSpec;
use holdfast_lab::pair::Victim;
use holdfast_lab::topology::{CLIENT_BRIDGE, guest_ip, guest_mac};
use holdfast_tests::oracles::{
    GAP_BUDGET, all_is_well, all_is_well_after_the_move, nothing_left_early, one_transmitter,
};
use holdfast_tests::program::seed;
use holdfast_tests::scene::{Scene, VM, options};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

const SOME: u64 = 1 << 20;
/// The second NIC's network, so that what is said to it is answered by it.
const SECOND_NET_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 1);
const SECOND_NET_GUEST: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 12);

fn on_two_networks(spec: &mut GuestSpec) {
    spec.nics[1].addresses = vec![(SECOND_NET_GUEST.into(), 24)];
    // Linux would answer on either NIC for the other's address.
    spec.sysctls.push(("net/ipv4/conf/all/arp_ignore".into(), "1".into()));
}

/// OC-1, OC-2: all NICs of a guest are cut at the same epoch and released with it; both streams stay
/// exact when the host is lost.
#[test]
fn a_guest_with_two_nics_survives_on_both() {
    if !can() {
        return;
    }
    let mut options = options("commit");
    options.vms[0].nics = 2;
    options.shape = on_two_networks;
    let mut scene = Scene::ready(options, seed(103));
    let address = format!("addr add {SECOND_NET_CLIENT}/24 dev {CLIENT_BRIDGE}");
    scene.pair.topology.client.ip(&address).expect("an address on the second network");
    let (first, second) = (scene.streams(guest_ip(1), 0), scene.streams(SECOND_NET_GUEST, 1));
    first.flow(SOME / 2);
    second.flow(SOME / 2);
    scene.pair.kill(Victim::Host, 0).expect("killed");
    scene.taken_over(VM);
    first.flow(SOME / 2);
    second.flow(SOME / 2);
    assert!(first.finish_exact() < GAP_BUDGET);
    assert!(second.finish_exact() < GAP_BUDGET);

    let (a, b) = scene.wires();
    nothing_left_early(&scene.pair, VM, &scene.pair.a, &scene.pair.b, &a);
    let audit = read_audit(&scene.pair.a.audit).expect("the audit of frames");
    let ports: BTreeSet<u16> = audit.iter().map(|record| record.port).collect();
    assert_eq!(ports.len(), 2, "both NICs sent");
    for nic in [1, 2] {
        one_transmitter(guest_mac(nic), &a, &b, 0);
    }
    all_is_well(&mut scene);
}

/// OC-1: it does not matter which side listens on the vhost-user socket; FO-1 as ever.
#[test]
fn a_guest_whose_qemu_listens_on_the_socket_survives() {
    if !can() {
        return;
    }
    let mut options = options("commit");
    options.qemu_listens = true;
    let mut scene = Scene::ready(options, seed(105));
    let streams = scene.streams(guest_ip(1), 0);
    streams.flow(SOME);
    scene.pair.kill(Victim::Holdfast, 0).expect("killed");
    scene.taken_over(VM);
    streams.flow(SOME);
    assert!(streams.finish_exact() < GAP_BUDGET);

    all_is_well_after_the_move(&mut scene);
}
