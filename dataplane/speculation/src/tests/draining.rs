//! Modes and rules change while flows are busy; no byte is lost.

use super::world::*;
use crate::*;
use holdfast_packet::headers::flag::{ACK, RST};

fn payload(seen: &[Seen]) -> Vec<u8> {
    seen.iter().flat_map(|seen| seen.payload.clone()).collect()
}

/// SP-3: mode `native`: what is held leaves at once, in order, and then the flow is passed through.
#[test]
fn in_native_mode_held_bytes_leave_at_once_and_new_ones_behind_them() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 500)));
    world.turn();
    world.guest_got();
    world.engine.set_mode(world.now, Speculation::Off);
    world.guest_gives(&Seg::data(at(500), C, &pattern(500, 500)));
    world.turn();
    assert_eq!(world.guest_got(), [], "the guest does not run ahead any more");
    assert_eq!(payload(&world.client_got()), pattern(0, 1000));
    world.client_sends(&Seg::ack(C, at(500)));
    world.turn();
    assert_eq!(world.guest_got(), [], "it knew of those");
    world.client_sends(&Seg::ack(C, at(1000)));
    world.turn();
    let ack = world.guest_got().pop().expect("an ACK");
    assert_eq!(ack.ack, at(1000));
    world.client_sends(&Seg::ack(C, at(1000)));
    assert_eq!(world.flow().state, FlowState::Plain);
    world.guest_passes(&Seg::data(at(1000), C, &pattern(1000, 10)));
    assert_eq!(payload(&world.client_got()), pattern(1000, 10));
    assert_eq!(world.count(Event::FlowsDrained), 1);
}

/// OC-1: mode `commit`: held bytes still wait for their commit, new ones behind them too.
#[test]
fn in_commit_mode_held_bytes_leave_with_their_commit() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 500)));
    world.turn();
    world.guest_got();
    world.engine.set_mode(world.now, Speculation::Hold);
    world.guest_gives(&Seg::data(at(500), C, &pattern(500, 500)));
    world.turn();
    assert_eq!((world.guest_got().len(), world.client_got().len()), (0, 0));
    world.epoch();
    assert_eq!(payload(&world.client_got()), pattern(0, 1000));
    world.client_sends(&Seg::ack(C, at(1000)));
    world.turn();
    assert_eq!(world.guest_got().pop().expect("an ACK").ack, at(1000));
    assert_eq!(world.flow().state, FlowState::Plain);
    world.guest_passes(&Seg::data(at(1000), C, &pattern(1000, 10)));
}

/// SP-4: the window that the guest was shown is not taken back when the flow is passed through, though
/// the client's own is smaller; once the client's has caught up, nothing is rewritten any more.
#[test]
fn the_edge_shown_stays_shown_after_draining() {
    let mut world = World::new();
    world.open();
    world.client_sends(&Seg::ack(C, at(0)).window(10));
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.turn();
    let shown = world.guest_got().pop().expect("an ACK");
    let edge = shown.ack.wrapping_add(u32::from(shown.window) << 7);
    world.engine.set_mode(world.now, Speculation::Off);
    world.transmit();
    world.client_sends(&Seg::ack(C, at(100)).window(10));
    assert_eq!(world.flow().state, FlowState::Plain);
    let passed = world.client_sends(&Seg::data(C, at(100), b"x").window(10)).expect("data");
    assert!(passed.ack.wrapping_add(u32::from(passed.window) << 7).wrapping_sub(edge) < 128, "{passed:?}");
    let passed = world.client_sends(&Seg::data(C + 1, at(100), b"x").window(400)).expect("data");
    assert_eq!(passed.window, 400, "the client's own is beyond it");
}

/// A flow that was known all along begins to speculate in mid-life; what went through before is the
/// guest's to repeat until the client has confirmed it (SP-1).
#[test]
fn a_known_flow_begins_to_speculate_in_mid_life() {
    let mut world = World::new();
    world.engine.set_mode(world.now, Speculation::Hold);
    world.open_with(&RICH_OPTIONS);
    world.guest_passes(&Seg::data(at(0), C, &pattern(0, 300)).times(200, 101));
    world.epoch();
    world.engine.set_mode(world.now, Speculation::On);
    world.guest_gives(&Seg::data(at(300), C, &pattern(300, 300)).times(201, 101));
    world.turn();
    assert_eq!(world.flow().state, FlowState::Joining);
    assert_eq!(world.guest_got(), [], "bytes before are not held");
    // Its first try was lost: it goes its old way, also together with new bytes.
    world.guest_passes(&Seg::data(at(0), C, &pattern(0, 300)).times(202, 101));
    world.guest_passes(&Seg::data(at(100), C, &pattern(100, 600)).times(203, 101));
    assert_eq!(world.flow().held_bytes, 400);
    world.client_got();
    let hole = world.client_sends(&Seg::ack(C, at(100)).times(110, 200).sack(at(200), at(300)));
    assert!(hole.expect("the guest needs it").sack);
    world.epoch();
    assert_eq!(world.client_got().iter().filter(|seen| seen.seq == at(300)).count(), 0);
    let all = world.client_sends(&Seg::ack(C, at(300)).times(111, 202)).expect("the last of its kind");
    assert_eq!(all.ack, at(300));
    world.turn();
    assert_eq!(world.flow().state, FlowState::Speculating);
    assert_eq!(world.guest_got().pop().expect("an ACK").ack, at(700));
    assert_eq!(payload(&world.client_got()), pattern(300, 400));
    world.client_sends(&Seg::ack(C, at(700)).times(112, 203));
    assert_eq!(world.engine.held_bytes(), 0);
}

/// A client that got held bytes by frames that were passed has confirmed them all the same.
#[test]
fn bytes_that_were_passed_and_held_are_freed_when_the_client_has_them() {
    let mut world = World::new();
    world.engine.set_mode(world.now, Speculation::Hold);
    world.open();
    world.guest_passes(&Seg::data(at(0), C, &pattern(0, 300)));
    world.engine.set_mode(world.now, Speculation::On);
    world.guest_gives(&Seg::data(at(300), C, &pattern(300, 300)));
    world.guest_passes(&Seg::data(at(0), C, &pattern(0, 500)));
    world.epoch();
    world.client_got();
    world.client_sends(&Seg::ack(C, at(500))).expect("joining");
    world.turn();
    assert_eq!(world.engine.held_bytes(), 100);
    assert_eq!(payload(&world.client_got()), pattern(500, 100));
}

/// While joining nothing held was acknowledged: a reset of the guest goes at once.
#[test]
fn a_guest_that_resets_while_joining_gives_up_its_bytes() {
    let mut world = World::new();
    world.engine.set_mode(world.now, Speculation::Hold);
    world.open();
    world.guest_passes(&Seg::data(at(0), C, &pattern(0, 300)));
    world.engine.set_mode(world.now, Speculation::On);
    world.guest_gives(&Seg::data(at(300), C, &pattern(300, 300)));
    world.guest_passes(&Seg::ack(at(600), C).flags(RST | ACK));
    assert_eq!((world.engine.held_bytes(), world.flow().state), (0, FlowState::Finished));
}

/// RFC 3135 §4.1.2: rules keep flows end to end, and take effect at run time.
#[test]
fn rules_for_ports_and_prefixes_are_changed_at_run_time() {
    let never = |port: u16| {
        Rules::new([Rule {
            guest_ports: Some(port..=port),
            client_ports: None,
            client: None,
            speculate: false,
        }])
    };
    let mut world = World::of(EngineConfig { rules: never(PORTS.0), ..config() });
    world.open();
    world.guest_passes(&Seg::data(at(0), C, &pattern(0, 100)));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(100))).expect("passed");
    world.engine.set_rules(world.now, never(1));
    world.guest_gives(&Seg::data(at(100), C, &pattern(100, 100)));
    world.turn();
    assert_eq!(world.flow().state, FlowState::Speculating);
    world.engine.set_rules(world.now, never(PORTS.0));
    assert_eq!(world.flow().state, FlowState::Draining);
    world.epoch();
    world.client_sends(&Seg::ack(C, at(200)));
    assert_eq!(world.flow().state, FlowState::Plain);
    world.client_got();
    world.guest_passes(&Seg::data(at(200), C, &pattern(200, 100)));
}

/// A draining flow that may speculate again does so at once.
#[test]
fn a_draining_flow_speculates_again_when_the_mode_comes_back() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.turn();
    world.engine.set_mode(world.now, Speculation::Hold);
    world.guest_gives(&Seg::data(at(100), C, &pattern(100, 100)));
    world.turn();
    world.engine.set_mode(world.now, Speculation::On);
    world.turn();
    assert_eq!(world.guest_got().pop().expect("an ACK").ack, at(200));
}

/// SP-4: a guest may have opened its window in fragments, which are not heard. A segment beyond what was
/// heard of it tells us nothing, but moves no edge left that the guest was shown.
#[test]
fn a_segment_beyond_the_window_that_was_heard_moves_no_edge_left() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.turn();
    let shown = world.guest_got().pop().expect("an ACK");
    let edge = shown.ack.wrapping_add(u32::from(shown.window) << 7);
    world.epoch();
    assert_eq!(world.client_sends(&Seg::ack(C, at(100)).window(2)), None);
    world.engine.set_mode(world.now, Speculation::Hold);
    assert_eq!(world.flow().state, FlowState::Plain);
    for beyond in [0, 100_000] {
        let data = Seg::data(C + beyond, at(100), b"x").window(2);
        let passed = world.client_sends(&data).expect("for the guest to judge");
        let seen = passed.ack.wrapping_add(u32::from(passed.window) << 7);
        assert!(seen.wrapping_sub(edge) < 128, "{beyond}: an edge at {seen}, once at {edge}");
        assert_eq!(passed.ack, at(100));
    }
    let larger = world.client_sends(&Seg::data(C + 100_000, at(100), b"x").window(60_000)).expect("passed");
    assert_eq!(larger.window, 60_000);
}

/// A flow is taken up only if all of the window that its guest was shown can be filled, to the block.
#[test]
fn a_window_that_there_is_no_room_for_is_not_taken_up() {
    let most = 65_536;
    let mut world = World::of(EngineConfig { max_flows: 1, held_bytes: most, flow_bytes: most, ..config() });
    world.engine.set_mode(world.now, Speculation::Hold);
    world.open();
    world.client_sends(&Seg::ack(C, G).window(512)).expect("the client's own window");
    world.engine.set_mode(world.now, Speculation::On);
    for from in (0..most as u32).step_by(8192) {
        let frame = Seg::data(at(from), C, &pattern(from, 8192)).frame(crate::key::Side::Guest);
        let taken = world.guest_sends_frame(&frame, true) == FromGuest::Taken;
        assert!(!taken || from > 0, "the whole window lies in one block more than there are");
    }
    assert_eq!(world.count(Event::GuestNoRoom), 0);
}
