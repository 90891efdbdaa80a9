//! The flow table: which flows are taken, and its bounds.

use super::world::*;
use crate::key::Side;
use crate::*;
use holdfast_packet::headers::flag::{ACK, CWR, ECE, SYN};

fn open(world: &mut World, ports: (u16, u16)) {
    let by = |segment: Seg| segment.ports(ports.0, ports.1);
    world
        .client_sends(&by(Seg::ack(CLIENT_ISS, 0).flags(SYN).window(60000).options(&SYN_OPTIONS)))
        .expect("a SYN");
    world.guest_passes(&by(Seg::ack(GUEST_ISS, C).flags(SYN | ACK).options(&SYN_OPTIONS)));
    world.client_sends(&by(Seg::ack(C, G))).expect("the end of the handshake");
}

fn is_taken(world: &mut World, ports: (u16, u16), from: u32) -> bool {
    let data = Seg::data(at(from), C, &pattern(from, 10)).ports(ports.0, ports.1);
    world.guest_sends(&data) == FromGuest::Taken
}

/// Only flows whose SYNs were seen from both sides, with nothing unknown in them, are taken.
#[test]
fn flows_with_something_unknown_in_their_handshake_stay_plain() {
    let plain = SYN_OPTIONS;
    let fast_open = [34, 2, 1, 1];
    let multipath = [30, 4, 0, 1];
    let md5 = [[19, 18].as_slice(), &[0; 16], &[1, 1]].concat();
    type Case<'a> = (&'a str, u8, &'a [u8], &'a [u8], &'a [u8], bool);
    let cases: [Case<'_>; 8] = [
        ("an ordinary one", 0, b"", &plain, &plain, true),
        ("no options at all", 0, b"", &[], &[], true),
        ("RFC 7413 Fast Open", 0, b"", &fast_open, &plain, false),
        ("RFC 8684 MPTCP", 0, b"", &multipath, &multipath, false),
        ("RFC 2385 MD5", 0, b"", &md5, &md5, false),
        ("data in the SYN", 0, b"data", &plain, &plain, false),
        ("an unknown option in the answer", 0, b"", &plain, &multipath, false),
        ("CWR alone, which is AccECN's", CWR, b"", &plain, &plain, false),
    ];
    for (case, flags, payload, syn, answer, taken) in cases {
        let mut world = World::new();
        let mut first = Seg::ack(CLIENT_ISS, 0).flags(SYN | flags).options(syn);
        first.payload = payload.to_vec();
        world.client_begins(&first);
        world.guest_passes(&Seg::ack(GUEST_ISS, C).flags(SYN | ACK).options(answer));
        world.client_sends(&Seg::ack(C, G)).expect("passed");
        assert_eq!(is_taken(&mut world, PORTS, 0), taken, "{case}");
        assert_eq!(world.count(Event::FlowsIneligible) > 0, !taken, "{case}");
    }
}

/// RFC 9768: AE in the SYN asks for AccECN.
#[test]
fn a_flow_that_asks_for_accurate_ecn_stays_plain() {
    let mut world = World::new();
    let mut frame = Seg::ack(CLIENT_ISS, 0).flags(SYN | ECE | CWR).options(&SYN_OPTIONS).frame(Side::Client);
    frame[14 + 20 + 12] |= 1;
    // The bit is in the checksum: the sum of the old word and the new one differ by 0x0100.
    let sum = u16::from_be_bytes([frame[50], frame[51]]);
    let fixed = holdfast_packet::checksum::replaced(sum, 0x70c2, 0x71c2);
    frame[50..52].copy_from_slice(&fixed.to_be_bytes());
    assert_eq!(world.engine.handle_wire(world.now, &mut frame), FromWire::Pass);
    assert_eq!((world.engine.flows().count(), world.count(Event::FlowsIneligible)), (0, 1));
}

/// An asymmetric path, or a flow of before: one side's SYN was not seen.
#[test]
fn flows_picked_up_in_mid_life_stay_plain() {
    let mut world = World::new();
    assert!(!is_taken(&mut world, PORTS, 0));
    world.guest_passes(&Seg::ack(GUEST_ISS, C).flags(SYN | ACK).options(&SYN_OPTIONS));
    world.client_sends(&Seg::ack(C, G)).expect("passed");
    assert!(!is_taken(&mut world, PORTS, 0));
    // RFC 9293 §3.5: a simultaneous open.
    world.guest_passes(&Seg::ack(GUEST_ISS, 0).flags(SYN).options(&SYN_OPTIONS));
    world.client_sends(&Seg::ack(CLIENT_ISS, 0).flags(SYN).options(&SYN_OPTIONS)).expect("passed");
    world.client_sends(&Seg::ack(C, G)).expect("passed");
    assert!(!is_taken(&mut world, PORTS, 0));
}

/// RFC 7323 §2.2, §3.2: what only one side offers does not count.
#[test]
fn options_that_one_side_alone_offers_are_not_used() {
    let mut world = World::new();
    world.client_sends(&Seg::ack(CLIENT_ISS, 0).flags(SYN).options(&RICH_OPTIONS)).expect("a SYN");
    world.guest_passes(&Seg::ack(GUEST_ISS, C).flags(SYN | ACK).options(&[2, 4, 2, 0]));
    world.client_sends(&Seg::ack(C, G).window(5000)).expect("the end of the handshake");
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 1500)));
    world.turn();
    let ack = world.guest_got().pop().expect("an ACK");
    assert_eq!((ack.times, ack.ack), (None, at(1500)));
    assert!(ack.window > 2000, "bytes, not scaled: {}", ack.window);
    world.epoch();
    let data = world.client_got().pop().expect("a segment");
    assert_eq!((data.times, data.window), (None, 500));
}

/// Eviction: never of a flow whose guest is ahead; when all are needed, a new flow stays plain.
#[test]
fn a_full_table_forgets_what_is_not_needed_and_never_a_flow_that_is_ahead() {
    let mut world = World::of(EngineConfig { max_flows: 4, ..config() });
    for client in 0..4 {
        open(&mut world, (80, client));
        assert!(is_taken(&mut world, (80, client), 0));
    }
    world.turn();
    open(&mut world, (80, 9));
    assert!(!is_taken(&mut world, (80, 9), 0), "all others are ahead");
    assert_eq!((world.engine.flows().count(), world.count(Event::FlowsUnplaced)), (4, 1));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(10)).ports(80, 2));
    open(&mut world, (80, 9));
    assert!(is_taken(&mut world, (80, 9), 0), "2 has all that its guest sent");
    assert_eq!(world.count(Event::FlowsEvicted), 1);
    assert!(!is_taken(&mut world, (80, 2), 10), "it is forgotten, and so plain");
    world.epoch();
    assert_eq!(world.ledger.flows(), 4);
}

/// RB-1: SYNs alone take no more than the table, and the oldest go first.
#[test]
fn a_flood_of_syns_pushes_out_syns() {
    let mut world = World::of(EngineConfig { max_flows: 8, ..config() });
    open(&mut world, PORTS);
    assert!(is_taken(&mut world, PORTS, 0));
    for client in 0..1000 {
        let syn = Seg::ack(client, 0).flags(SYN).options(&SYN_OPTIONS).ports(80, client as u16);
        world.client_sends(&syn).expect("a SYN is passed");
    }
    assert_eq!(world.engine.flows().count(), 8);
    assert!(is_taken(&mut world, PORTS, 10));
}

/// The VLAN is part of the key: the same addresses and ports in another VLAN are another flow.
#[test]
fn flows_of_different_vlans_are_kept_apart() {
    let mut world = World::new();
    for vlan in [1, 2] {
        let dress = |segment: Seg| Seg { tags: vec![[0x81, 0, 0, vlan]], ..segment };
        world.client_sends(&dress(Seg::ack(CLIENT_ISS, 0).flags(SYN).options(&SYN_OPTIONS))).expect("a SYN");
        world.guest_passes(&dress(Seg::ack(GUEST_ISS, C).flags(SYN | ACK).options(&SYN_OPTIONS)));
        world.client_sends(&dress(Seg::ack(C, G))).expect("the end of the handshake");
        world.guest_gives(&dress(Seg::data(at(0), C, &pattern(vlan.into(), 10))));
    }
    let vlans = world.engine.flows().map(|flow| (flow.vlans, flow.held_bytes)).collect::<Vec<_>>();
    assert_eq!(vlans, [([1, 0], 10), ([2, 0], 10)]);
}

/// Windows are promises: their sum never exceeds the store, and whoever waits gets room as it comes.
#[test]
fn windows_shown_are_never_more_than_the_store_can_hold() {
    let held_bytes = 256 << 10;
    let mut world = World::of(EngineConfig { max_flows: 16, held_bytes, flow_bytes: 256 << 10, ..config() });
    let mut sent = [0u32; 8];
    for client in 0..8u16 {
        open(&mut world, (80, client));
    }
    for round in 0..400 {
        let client = round % 8;
        let flow = world.engine.flows().find(|flow| flow.client.1 == client as u16).expect("it is known");
        let len = flow.window_bytes.min(3000);
        if len > 0 && flow.state == FlowState::Speculating {
            let data = Seg::data(at(sent[client]), C, &pattern(sent[client], len as usize));
            world.guest_gives(&data.ports(80, client as u16));
            sent[client] += len;
        }
        world.turn();
        let promised: usize = {
            let taken = |flow: &FlowReport| flow.state == FlowState::Speculating;
            let flows = world.engine.flows().filter(taken);
            flows.map(|flow| (flow.held_bytes + flow.window_bytes) as usize).sum()
        };
        assert!(promised <= held_bytes, "{promised} bytes are promised");
        assert_eq!(world.count(Event::GuestNoRoom), 0);
    }
    assert!(world.engine.held_bytes() > held_bytes * 3 / 4, "{}", world.engine.held_bytes());
    assert!(sent.iter().all(|&sent| sent >= 4096), "everybody got some: {sent:?}");
    world.epoch();
    world.guest_got();
    // All room comes back with one client, and the others are told.
    let biggest = (0..8).max_by_key(|&client| sent[client]).expect("there are some");
    let mut has = 0;
    for _ in 0..40 {
        let got = world.client_got();
        let ends = got.iter().filter(|seen| seen.ports.1 == biggest as u16 && !seen.payload.is_empty());
        let ends = ends.map(|seen| seen.seq.wrapping_sub(G) + seen.payload.len() as u32);
        has = ends.max().unwrap_or(0).max(has);
        world.client_sends(&Seg::ack(C, at(has)).ports(80, biggest as u16));
        world.transmit();
        world.run_ms(10);
    }
    let reached = world.engine.flows().find(|flow| flow.client.1 == biggest as u16).expect("it is known");
    assert_eq!(reached.held_bytes, 0, "{reached:?}");
    world.turn();
    world.turn();
    let others = world.guest_got().iter().filter(|seen| seen.ports.1 != biggest as u16).count();
    assert!(others > 0, "somebody else was told");
}

/// 64 Ki flows in bounded memory: what an engine takes is known before, and nothing grows.
#[test]
fn sixty_four_thousand_flows_take_a_bounded_memory() {
    let config = EngineConfig { max_flows: 64 << 10, held_bytes: 256 << 20, ..EngineConfig::default() };
    let table = Engine::footprint(&config) - crate::store::Store::footprint(config.held_bytes);
    let flow = table / config.max_flows;
    assert!(flow <= 1700, "{flow} bytes a flow");
    assert!(table <= 110 << 20, "{} MiB besides the held bytes", table >> 20);
}

/// New flows beyond the table's bound are plain, and the others do not suffer.
#[test]
fn flows_beyond_the_bound_are_plain() {
    let bound = 4096;
    let mut world = World::of(EngineConfig { max_flows: bound, held_bytes: 64 << 20, ..config() });
    for client in 0..bound as u16 + 50 {
        open(&mut world, (80, client));
        let taken = is_taken(&mut world, (80, client), 0);
        assert_eq!(taken, usize::from(client) < bound, "{client}");
    }
    assert_eq!(world.count(Event::FlowsUnplaced), 50);
    world.epoch();
    assert_eq!(world.ledger.flows(), bound);
    let sent = world.client_got();
    assert_eq!(sent.iter().filter(|seen| !seen.payload.is_empty()).count(), bound + 50);
}

/// SP-4, RB-1: a client that confirms what the guest of a plain flow has not sent is not believed.
#[test]
fn an_ack_of_what_a_plain_flow_never_sent_is_not_believed() {
    let mut world = World::new();
    world.engine.set_mode(world.now, Speculation::Hold);
    world.open();
    world.client_sends(&Seg::ack(C, at(1000))).expect("the guest judges it");
    world.engine.set_mode(world.now, Speculation::On);
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.turn();
    assert_eq!(world.guest_got().last().map(|seen| seen.ack), Some(at(100)));
    world.epoch();
    assert_eq!(world.client_got().last().map(|seen| seen.payload.clone()), Some(pattern(0, 100)));
}
