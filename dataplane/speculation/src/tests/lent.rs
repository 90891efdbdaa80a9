//! Window scales lent to clients without one (RFC 7323 §2.2).

use super::world::*;
use crate::key::Side;
use crate::*;
use holdfast_packet::headers::flag::{ACK, FIN, RST, SYN};

/// MSS alone.
const NO_SCALE: [u8; 4] = [2, 4, 0x03, 0xe8];

fn syn(client_port: u16) -> Seg {
    Seg::ack(CLIENT_ISS, 0).flags(SYN).window(60_000).options(&NO_SCALE).ports(PORTS.0, client_port)
}

fn answer() -> Seg {
    Seg::ack(GUEST_ISS, C).flags(SYN | ACK).window(60_000).options(&SYN_OPTIONS)
}

/// The client's SYN was shown to the guest with a scale.
fn begun(config: EngineConfig) -> World {
    let mut world = World::of(config);
    assert_eq!(world.client_begins(&syn(PORTS.1)).scale, Some(4));
    world
}

/// A connection whose client was lent a scale.
fn open() -> World {
    let mut world = begun(config());
    world.guest_passes(&answer());
    world.epoch();
    world.client_sends(&Seg::ack(C, G).window(60_000)).expect("the guest needs it");
    world.turn();
    world.guest_got();
    world.client_got();
    world
}

/// What the client gets of the guest's answer.
fn answered(world: &mut World) -> Seen {
    world.client_got();
    world.guest_passes(&answer());
    world.epoch();
    world.client_got().pop().expect("the answer")
}

#[test]
fn a_syn_waits_for_room_to_the_guest() {
    let mut world = World::new();
    assert_eq!(world.client_sends(&syn(PORTS.1)), None);
    let mut none = Frames::with_room(0);
    world.engine.poll_guest(world.now, &mut none);
    assert!(world.engine.waits_for_guest());
    world.speak();
    world.speak();
    let got = world.guest_got();
    assert_eq!((got.len(), got[0].scale, got[0].window), (1, Some(4), 16_384));
}

#[test]
fn nothing_is_lent_where_nothing_speculates() {
    let mut world = World::new();
    world.engine.set_mode(world.now, Speculation::Hold);
    assert_eq!(world.client_sends(&syn(PORTS.1)).expect("passed").scale, None);
    let mut world = World::of(EngineConfig { flow_bytes: 65_536, ..config() });
    assert_eq!(world.client_sends(&syn(PORTS.1)).expect("passed").scale, None, "no window needs it");
}

/// RB-1: SYNs of strangers do not use up what there is for others, nor is it lost for ever.
#[test]
fn strangers_are_lent_few_scales() {
    let mut world = World::new();
    for port in 0..200 {
        world.client_sends(&syn(port));
    }
    world.speak();
    assert_eq!(world.count(Event::ScalesLent), 4, "a sixteenth of 64 places");
    // Those that were lent are not forgotten: the guest may answer yet.
    for port in 0..4 {
        world.guest_passes(&answer().ports(PORTS.0, port));
    }
    world.epoch();
    assert!(world.client_got().iter().all(|seen| seen.scale.is_none()));
    world.now = world.now + std::time::Duration::from_secs(901);
    for port in 1000..1200 {
        world.client_sends(&syn(port));
    }
    assert_eq!(world.count(Event::ScalesLent), 8);
}

#[test]
fn a_flow_with_a_lent_scale_is_not_forgotten_until_it_is_over() {
    let one = EngineConfig { max_flows: 1, ..config() };
    let mut world = begun(one);
    world.guest_passes(&answer());
    world.epoch();
    world.client_sends(&Seg::ack(C, G).window(60_000)).expect("the guest needs it");
    world.turn();
    let stranger = |world: &mut World| world.client_sends(&Seg::ack(CLIENT_ISS, 0).flags(SYN).ports(80, 7));
    stranger(&mut world);
    assert_eq!((world.count(Event::FlowsEvicted), world.flow().client.1), (0, PORTS.1));
    world.client_sends(&Seg::ack(C, G).flags(RST));
    stranger(&mut world);
    assert_eq!((world.count(Event::FlowsEvicted), world.flow().client.1), (1, 7));
}

/// A flow that was over at a failover does not keep its place on the other host.
#[test]
fn a_flow_that_is_over_is_known_to_be_after_a_failover() {
    let mut world = open();
    world.guest_gives(&Seg::ack(at(0), C).flags(FIN_ACK));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(1)).flags(FIN_ACK)).expect("a FIN");
    world.guest_passes(&Seg::ack(at(1), C + 1));
    world.epoch();
    world.fail_over();
    assert_eq!(world.flow().state, FlowState::Finished);
    world.client_sends(&Seg::ack(CLIENT_ISS + 9, 0).flags(SYN)).expect("a SYN is passed");
    assert_eq!((world.flow().state, world.count(Event::FlowsReplaced)), (FlowState::Opening, 1));
}

/// While one side of a flow is open, a SYN that looks like it is for the guest to judge (RFC 5961 §4).
#[test]
fn a_syn_does_not_end_a_flow_that_is_half_open() {
    let mut world = open();
    world.guest_gives(&Seg::ack(at(0), C).flags(FIN_ACK));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(1))).expect("the ACK of a FIN");
    assert_eq!(world.flow().state, FlowState::Finished);
    world.client_sends(&Seg::ack(CLIENT_ISS + 9, 0).flags(SYN)).expect("a SYN is passed");
    world.client_got();
    world.guest_passes(&Seg::ack(at(1), C).window(300));
    world.epoch();
    assert_eq!(world.client_got()[0].window, 38_400);
}

/// RFC 5961 §3.2: a reset ends a handshake only where it is exact.
#[test]
fn a_reset_from_elsewhere_does_not_end_a_handshake() {
    let mut world = begun(config());
    world.client_sends(&Seg::ack(C + 5, 0).flags(RST)).expect("for the guest to judge");
    // RFC 9293 §3.10.7.4: the guest refuses some stranger's ACK, and waits on.
    world.guest_passes(&Seg::ack(77, 0).flags(RST));
    assert_eq!(answered(&mut world).scale, None);
    world.client_sends(&Seg::ack(C, 0).flags(RST)).expect("for the guest");
    assert_eq!(world.engine.flows().count(), 0);
    world.epoch();
    assert_eq!(world.ledger.flows(), 0, "the backup has forgotten it");
    let mut world = begun(config());
    world.epoch();
    assert_eq!(world.ledger.flows(), 1);
    world.guest_passes(&Seg::ack(0, C).flags(RST | ACK));
    assert_eq!(world.engine.flows().count(), 0, "the guest refuses the connection");
}

/// What cannot be told of in a handshake leaves the flow plain, and its windows are rewritten.
#[test]
fn an_answer_that_is_not_understood_loses_its_scale() {
    let mut world = begun(config());
    world.guest_passes(&answer().options(&[30, 4, 0, 1]));
    world.epoch();
    assert_eq!(world.client_got().pop().expect("the answer").scale, None);
    let seen = world.client_sends(&Seg::ack(C, G).window(32_000)).expect("passed");
    assert_eq!(seen.window, 2000);
    world.guest_passes(&Seg::data(at(0), C, b"plain").window(300));
    world.epoch();
    assert_eq!(world.client_got()[0].window, 38_400);
    assert_eq!((world.flow().state, world.count(Event::FlowsEstablished)), (FlowState::Plain, 0));
}

/// The client's ACK took another way: the flow stays plain, and its windows are rewritten all the same.
#[test]
fn a_lent_scale_outlives_an_asymmetric_path() {
    let mut world = begun(config());
    answered(&mut world);
    world.guest_passes(&Seg::data(at(0), C, b"plain").window(300));
    world.epoch();
    assert_eq!(world.client_got()[0].window, 38_400);
    assert_eq!(world.flow().state, FlowState::Plain);
}

/// What comes late and tells the engine nothing is in the guest's scale as well.
#[test]
fn an_ack_that_comes_late_is_scaled_too() {
    let mut world = open();
    world.engine.set_mode(world.now, Speculation::Hold);
    world.guest_passes(&Seg::data(at(0), C, b"plain"));
    world.epoch();
    // SP-4: the edge stays where it was shown, even where that makes the very number that the client said.
    let shown = world.flow().window_bytes.div_ceil(16) as u16;
    let seen = world.client_sends(&Seg::ack(C, at(5)).window(shown)).expect("passed");
    assert_eq!((seen.ack, seen.window), (at(5), shown));
    let seen = world.client_sends(&Seg::ack(C, at(5)).window(64_000)).expect("passed");
    assert_eq!((seen.ack, seen.window), (at(5), 4000));
    let seen = world.client_sends(&Seg::ack(C, at(0)).window(32_000)).expect("passed");
    assert_eq!((seen.ack, seen.window), (at(0), 2000));
    // RFC 793 has no ACK in some segments.
    let seen = world.client_sends(&Seg::ack(C, 0).flags(0).window(16_000)).expect("passed");
    assert_eq!(seen.window, 1000);
}

fn first_fragment(segment: &Seg, side: Side, len: usize) -> Vec<u8> {
    let mut frame = segment.frame(side);
    frame.truncate(14 + 20 + len);
    frame[16..18].copy_from_slice(&(20 + len as u16).to_be_bytes());
    frame[20] |= 0x20;
    frame
}

/// Puts a segment together again whose first fragment has gone by.
fn together(fragment: &[u8], segment: &Seg, side: Side) -> Seen {
    let mut frame = segment.frame(side);
    frame[34..fragment.len()].copy_from_slice(&fragment[34..]);
    see(&frame, side)
}

/// RFC 791 §3.2: windows in first fragments are rewritten, and the checksum with them; those that are not
/// in one with the checksum are not passed.
#[test]
fn windows_in_fragments_are_rewritten() {
    let mut world = begun(config());
    let whole = answer();
    let split = first_fragment(&whole, Side::Guest, 24);
    assert_eq!(world.guest_sends_frame(&split, true), FromGuest::Taken, "the guest sends it again");
    assert_eq!(answered(&mut world).scale, None);
    world.client_sends(&Seg::ack(C, G).window(60_000)).expect("the guest needs it");
    let data = Seg::data(at(0), C, &pattern(0, 60)).window(300);
    let mut split = first_fragment(&data, Side::Guest, 40);
    assert_eq!(world.guest_sends_frame(&split, true), FromGuest::Pass);
    world.engine.release(world.now, &mut split);
    assert_eq!(together(&split, &data, Side::Guest).window, 38_400);
    let tiny = first_fragment(&data, Side::Guest, 16);
    assert_eq!(world.guest_sends_frame(&tiny, true), FromGuest::Taken);
    let data = Seg::data(C, at(0), &pattern(0, 60)).window(32_000);
    let mut split = first_fragment(&data, Side::Client, 40);
    assert_eq!(world.engine.handle_wire(world.now, &mut split), FromWire::Pass);
    assert_eq!(together(&split, &data, Side::Client).window, 2000);
    let mut tiny = first_fragment(&data, Side::Client, 16);
    assert_eq!(world.engine.handle_wire(world.now, &mut tiny), FromWire::Taken);
}

/// OC-1: the client is offered in bytes what the guest offered in its scale, on what the client leg sends.
#[test]
fn the_client_leg_says_windows_in_bytes() {
    let mut world = open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 500)).window(400));
    world.epoch();
    let sent = world.client_got();
    assert!(sent.iter().all(|seen| seen.window == 51_200), "{sent:?}");
    world.client_sends(&Seg::ack(C, at(500)).window(60_000));
    world.guest_gives(&Seg::data(at(500), C, &pattern(500, 500)).window(60_000));
    world.epoch();
    assert_eq!(world.client_got()[0].window, u16::MAX);
}

/// A handshake in the table of one host is the same on the other.
#[test]
fn a_handshake_is_read_as_it_was_written() {
    for begun_by_guest in [false, true] {
        let mut world = World::new();
        if begun_by_guest {
            world.guest_passes(&Seg::ack(GUEST_ISS, 0).flags(SYN).options(&RICH_OPTIONS));
            world.client_begins(&Seg::ack(CLIENT_ISS, G).flags(SYN | ACK).options(&RICH_OPTIONS[8..]));
        } else {
            world.client_begins(&syn(PORTS.1));
        }
        let (_, entry) = world.engine.table.iter().next().expect("a flow");
        let crate::table::Flow::Opening(opening) = entry.flow else { panic!("{entry:?}") };
        assert_eq!(opening.guest_scale().shift(), if begun_by_guest { 7 } else { 0 });
        let mut bytes = Vec::new();
        crate::delta::Writer(&mut bytes).opening(&entry.key, &opening);
        let (key, read) = crate::delta::Reader(&bytes).opening().expect("what was written");
        assert_eq!((key, read), (entry.key, crate::opening::Opening { since: read.since, ..opening }));
        for cut in 0..bytes.len() {
            assert!(crate::delta::Reader(&bytes[..cut]).opening().is_err());
        }
    }
}

/// A FIN of the client counts once the guest has it, and the client knows.
#[test]
fn a_flow_whose_sides_have_closed_makes_room() {
    let mut world = open();
    world.guest_gives(&Seg::ack(at(0), C).flags(FIN | ACK));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(1)).flags(FIN_ACK)).expect("a FIN");
    let again = Seg::ack(CLIENT_ISS + 9, 0).flags(SYN);
    world.client_sends(&again).expect("for the guest to judge");
    assert_eq!(world.count(Event::FlowsReplaced), 0);
    world.guest_passes(&Seg::ack(at(1), C + 1).window(300));
    world.client_sends(&again);
    assert_eq!(world.count(Event::FlowsReplaced), 0, "what waits for its commit is still to be rewritten");
    world.client_got();
    world.epoch();
    assert_eq!(world.client_got()[0].window, 38_400);
    world.client_sends(&again);
    assert_eq!(world.count(Event::FlowsReplaced), 1);
}

/// RFC 9293 §3.6: behind a FIN that was passed through, the guest still sends again what its client has not,
/// and needs its windows in the scale lent.
#[test]
fn a_flow_whose_last_bytes_are_on_their_way_is_not_over() {
    let mut world = open();
    world.engine.set_mode(world.now, Speculation::Hold);
    world.guest_passes(&Seg::data(at(0), C, b"last").flags(FIN_ACK));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(0)).flags(FIN_ACK).window(60_000)).expect("a FIN");
    world.guest_passes(&Seg::ack(at(5), C + 1));
    world.epoch();
    let again = Seg::ack(CLIENT_ISS + 9, 0).flags(SYN);
    world.client_sends(&again).expect("for the guest to judge");
    assert_eq!(world.count(Event::FlowsReplaced), 0);
    let seen = world.client_sends(&Seg::ack(C + 1, at(0)).window(64_000)).expect("passed");
    assert_eq!(seen.window, 4000);
    world.client_sends(&Seg::ack(C + 1, at(5)).window(64_000)).expect("passed");
    world.client_sends(&again);
    assert_eq!(world.count(Event::FlowsReplaced), 1);
}
