//! What the simulator found: one case each, by hand.

use super::world::*;
use crate::key::Side;
use crate::*;
use holdfast_packet::headers::flag::{ACK, FIN, PSH, RST};

/// RFC 7323 §2.2: the window of a SYN is not scaled; OC-1: the client is not offered more than the guest
/// has offered.
#[test]
fn the_window_of_the_guests_syn_is_not_offered_scaled() {
    let mut world = World::new();
    world.open();
    // An ACK of the client leg says what the guest has said last, here in its SYN.
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 10)).window(400));
    world.epoch();
    for seen in world.client_got() {
        assert!(u32::from(seen.window) << 7 <= 60_000, "{seen:?}");
    }
}

/// A FIN without bytes that waits for its commit is not forgotten with its flow.
#[test]
fn a_flow_whose_fin_waits_keeps_its_place() {
    let mut world = World::of(EngineConfig { max_flows: 1, ..config() });
    world.open();
    world.guest_gives(&Seg::ack(at(0), C).flags(FIN | ACK));
    let other = Seg::ack(CLIENT_ISS, 0).flags(holdfast_packet::headers::flag::SYN).ports(80, 7);
    world.client_sends(&other).expect("a SYN is passed");
    world.epoch();
    let sent = world.client_got();
    assert!(sent.iter().any(|seen| seen.flags & FIN != 0), "{sent:?}");
}

/// RFC 5961 §3.2: a reset behind a FIN that the client has confirmed has the number behind the FIN, which is
/// committed with it.
#[test]
fn a_reset_behind_a_confirmed_fin_leaves() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::ack(at(0), C).flags(FIN | ACK));
    world.epoch();
    world.guest_gives(&Seg::ack(at(0), 0).flags(RST));
    world.client_sends(&Seg::ack(C, at(1)));
    world.client_got();
    world.epoch();
    let sent = world.client_got();
    assert!(sent.iter().any(|seen| seen.flags & RST != 0 && seen.seq == at(1)), "{sent:?}");
}

/// Retransmissions from before a flow was taken are passed; they have no new bytes to sum.
#[test]
fn what_the_guest_sends_again_from_before_its_flow_was_taken_is_passed() {
    let mut world = joining();
    world.guest_passes(&Seg::data(at(0), C, &pattern(0, 100)));
    assert_eq!(world.count(Event::GuestChecksum), 0);
}

/// SP-3: behind bytes from before the flow was taken, held ones are passed too. The client may confirm
/// them before the client leg has sent them, and is believed.
#[test]
fn the_client_is_believed_of_held_bytes_that_were_passed_with_older_ones() {
    let mut world = joining();
    world.guest_gives(&Seg::data(at(100), C, &pattern(100, 300)));
    world.guest_passes(&Seg::data(at(0), C, &pattern(0, 300)));
    world.epoch();
    world.client_got();
    world.client_sends(&Seg::ack(C, at(100)));
    // Its window lets nothing be sent: all that it has beyond came in the frame that was passed.
    world.client_sends(&Seg::ack(C, at(300)));
    world.turn();
    assert_eq!(world.count(Event::WireUnacceptable), 0);
    assert_eq!(world.engine.held_bytes(), 100);
}

/// RFC 791 §3.2: what is sent in fragments cannot be held; the flow is drained, then they are passed.
#[test]
fn a_flow_whose_guest_sends_fragments_is_drained() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 500)));
    world.turn();
    let mut fragment = Seg::data(at(500), C, &pattern(500, 500)).frame(Side::Guest);
    fragment[20] |= 0x20;
    assert_eq!(world.guest_sends_frame(&fragment, true), FromGuest::Taken, "the guest sends it again");
    world.epoch();
    world.client_sends(&Seg::ack(C, at(500)));
    world.turn();
    assert_eq!(world.guest_sends_frame(&fragment, true), FromGuest::Pass);
    assert_eq!(world.flow().state, FlowState::Plain);
    // The client confirms what was not seen.
    let passed = world.client_sends(&Seg::data(C, at(1000), b"x")).expect("data");
    assert_eq!(passed.ack, at(1000));
}

/// SP-3: a keepalive's byte may be anything (RFC 9293 §3.8.4); a client that has not got the byte in its
/// place must not take it for that.
#[test]
fn keepalives_carry_the_byte_that_the_client_may_lack() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 200)));
    world.turn();
    for _ in 0..2 {
        world.guest_passes(&Seg::data(at(199), C, &[0]).flags(ACK));
    }
    world.epoch();
    let sent = world.client_got();
    let keepalives = sent.iter().filter(|seen| seen.payload.len() == 1).collect::<Vec<_>>();
    assert_eq!(keepalives.len(), 2, "{sent:?}");
    for keepalive in keepalives {
        let place = keepalive.seq.wrapping_sub(G);
        assert!(place == u32::MAX || keepalive.payload == pattern(place, 1), "{keepalive:?}");
    }
}

/// RFC 9293 §3.8.4 has a keepalive one before SND.NXT; Linux has it one before SND.UNA.
#[test]
fn a_keepalive_one_before_what_was_acknowledged_is_answered_too() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(100)));
    world.client_got();
    // It has sent more, which was lost on its way here.
    world.guest_passes(&Seg::ack(at(150), C));
    world.guest_passes(&Seg::ack(at(99), C));
    world.epoch();
    let sent = world.client_got();
    assert!(sent.iter().any(|seen| seen.seq == at(99)), "{sent:?}");
}

/// RFC 9293 §3.8.6.2.2: however large the client's MSS, a window that was shut opens again.
#[test]
fn a_shut_window_opens_for_a_client_of_a_large_mss() {
    let config = EngineConfig { mtu: 9000, held_bytes: 128 << 10, max_flows: 32, ..config() };
    let mut world = World::of(config);
    world.open_with(&[2, 4, 0x22, 0xf4]);
    let room = world.flow().window_bytes;
    assert!(room < 8948, "{room}");
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, room as usize)));
    world.epoch();
    let mut sent = room;
    for _ in 0..20 {
        let more = world.flow().window_bytes.min(4096);
        world.guest_gives(&Seg::data(at(sent), C, &pattern(sent, more as usize)));
        sent += more;
        world.epoch();
        world.client_sends(&Seg::ack(C, at(sent)).window(60_000));
        world.turn();
        assert!(world.flow().window_bytes > 0, "after {sent} bytes");
    }
}

/// RFC 9293 §3.10.7.4: a guest need not look at a segment of which it has everything. What such a segment
/// says of windows does not count as said.
#[test]
fn a_window_on_a_keepalive_of_the_client_is_said_again() {
    let mut world = World::of(EngineConfig { held_bytes: 256 << 10, flow_bytes: 8 << 10, ..config() });
    world.open();
    let mut sent = 0;
    while world.flow().window_bytes > 0 {
        let room = world.flow().window_bytes;
        world.guest_gives(&Seg::data(at(sent), C, &pattern(sent, room as usize)));
        sent += room;
        world.turn();
    }
    world.epoch();
    world.guest_got();
    let keepalive = world.client_sends(&Seg::ack(C - 1, at(sent))).expect("a keepalive is for the guest");
    assert_eq!(edge(&keepalive), sent, "nothing new is said with it");
    world.turn();
    let opened = world.guest_got().iter().filter(|seen| seen.seq == C).map(edge).max();
    assert!(opened.is_some_and(|opened| opened > sent), "{opened:?} after {sent}");
}

/// What waited for the guest at the cut is lost with its host: it is told again.
#[test]
fn after_a_failover_the_guest_is_told_again_what_it_may_not_have_heard() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 500)));
    world.epoch();
    world.fail_over();
    let said = world.guest_got();
    assert!(said.iter().any(|seen| seen.ack == at(500)), "{said:?}");
}

/// The store holds whole blocks, and so must the backup be allowed to.
#[test]
fn the_ledger_takes_what_a_primary_of_the_same_limits_may_hold() {
    let config = EngineConfig { held_bytes: 20_000, flow_bytes: 64 << 10, max_flows: 1, ..config() };
    let mut world = World::of(config.clone());
    world.ledger = Ledger::new(LedgerLimits { max_flows: 1, held_bytes: config.held_bytes });
    world.seal_whole();
    world.commit_all();
    world.open();
    let mut sent = 0;
    loop {
        let room = world.flow().window_bytes.min(1000);
        if room == 0 {
            break;
        }
        world.guest_gives(&Seg::data(at(sent), C, &pattern(sent, room as usize)));
        sent += room;
        world.turn();
    }
    world.epoch();
    assert_eq!(world.ledger.held_bytes(), sent as usize);
}

/// The window of a flow that is passed through takes no room from others, however wide it is.
#[test]
fn a_flow_that_has_ended_takes_no_room() {
    let mut world = World::of(EngineConfig { held_bytes: 64 << 10, max_flows: 4, ..config() });
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)).flags(FIN | PSH | ACK));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(101)).window(2000));
    world.client_sends(&Seg::ack(C, at(101)).window(2000));
    world.turn();
    assert_eq!(world.flow().state, FlowState::Finished);
    assert_eq!(world.engine.shared.room(), 64 << 10);
}

/// A flow that began to speculate in mid-life, with 100 bytes before that the client has not confirmed.
fn joining() -> World {
    let mut world = World::new();
    world.open();
    world.engine.set_mode(world.now, Speculation::Hold);
    world.client_sends(&Seg::ack(C, at(0)));
    world.turn();
    world.guest_passes(&Seg::data(at(0), C, &pattern(0, 100)));
    world.engine.set_mode(world.now, Speculation::On);
    world.guest_gives(&Seg::data(at(100), C, &pattern(100, 100)));
    assert_eq!(world.flow().state, FlowState::Joining);
    world
}

fn edge(seen: &Seen) -> u32 {
    seen.ack.wrapping_sub(G).wrapping_add(u32::from(seen.window) << 7)
}
