//! The other host goes on.

use super::world::*;
use crate::*;
use holdfast_packet::headers::flag::{ACK, FIN, RST};

fn payload(seen: &[Seen]) -> Vec<u8> {
    seen.iter().flat_map(|seen| seen.payload.clone()).collect()
}

/// SP-3: the bytes of the last committed epoch, from the last confirmed one on, are sent again by the
/// other host, and the guest goes on behind them.
#[test]
fn the_other_host_goes_on_exactly_where_the_last_committed_epoch_ended() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 3000)));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(1000)));
    world.guest_gives(&Seg::data(at(3000), C, &pattern(3000, 500)));
    world.epoch();
    // Of the next epoch the other host knows nothing, and neither does its guest.
    world.guest_gives(&Seg::data(at(3500), C, &pattern(3500, 500)));
    world.seal();
    world.fail_over();
    assert_eq!(world.flow().held_bytes, 2500);
    let sent = world.client_got();
    assert_eq!((sent[0].seq, payload(&sent)), (at(1000), pattern(1000, 2500)));
    // The guest at its cut had bytes beyond: it sends them again, and they are new here.
    world.engine.set_mode(world.now, Speculation::On);
    world.seal_whole();
    world.commit_all();
    world.guest_gives(&Seg::data(at(3500), C, &pattern(3500, 500)));
    world.turn();
    assert_eq!(world.guest_got().last().expect("an ACK").ack, at(4000));
    world.client_sends(&Seg::ack(C, at(3500)));
    world.epoch();
    assert_eq!(payload(&world.client_got()), pattern(3500, 500));
    world.client_sends(&Seg::ack(C, at(4000)));
    assert_eq!(world.engine.held_bytes(), 0);
}

/// SP-2: what an epoch's state speaks of is what was streamed before its cut.
#[test]
fn a_cut_without_the_last_bytes_of_the_stream_leaves_them_to_the_next_epoch() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 300)).flags(FIN_ACK));
    world.seal_as(false);
    world.turn();
    world.commit();
    assert_eq!((world.ledger.held_bytes(), payload(&world.client_got())), (0, vec![]));
    world.epoch();
    assert_eq!(payload(&world.client_got()), pattern(0, 300));
}

/// The client may be ahead of what this leg has sent: its answer tells, and it is believed.
#[test]
fn a_client_that_is_ahead_of_the_new_leg_is_believed() {
    let mut world = World::new();
    world.open();
    world.client_sends(&Seg::ack(C, at(0)).window(5000));
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 15_000)));
    world.epoch();
    world.fail_over();
    let first = payload(&world.client_got()).len();
    assert!(first < 15_000, "an initial window");
    assert_eq!(world.client_sends(&Seg::ack(C, at(14_000)).window(5000)), None);
    assert_eq!(world.engine.held_bytes(), 1000);
    world.turn();
    world.run_ms(2000);
    let rest = world.client_got();
    assert_eq!(rest.last().map(|seen| (seen.seq, seen.payload.len())), Some((at(14_000), 1000)));
    assert_eq!(world.client_sends(&Seg::data(C, at(15_001), b"x")), None, "beyond what is held");
}

/// SP-3 across two failovers, with the FIN at the end.
#[test]
fn a_fin_is_delivered_after_two_failovers() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 700)).flags(FIN_ACK));
    world.epoch();
    for _ in 0..2 {
        world.fail_over();
        let sent = world.client_got();
        let last = sent.last().expect("a segment");
        assert_eq!((payload(&sent), last.flags & FIN), (pattern(0, 700), FIN));
        world.engine.set_mode(world.now, Speculation::On);
        world.seal_whole();
        world.commit_all();
    }
    // The guest does not know that its FIN arrived: it sends it again.
    world.guest_gives(&Seg::ack(at(700), C).flags(FIN_ACK));
    let relayed = world.client_sends(&Seg::ack(C, at(701))).expect("the guest needs it");
    assert_eq!(relayed.ack, at(701));
    assert_eq!(world.flow().state, FlowState::Finished);
}

/// A reset that waits for its bytes survives, too.
#[test]
fn a_reset_is_delivered_after_a_failover() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.guest_gives(&Seg::ack(at(100), C).flags(RST | ACK));
    world.epoch();
    world.fail_over();
    assert_eq!(payload(&world.client_got()), pattern(0, 100));
    world.client_sends(&Seg::ack(C, at(100)));
    world.transmit();
    assert_eq!(world.client_got().last().expect("a reset").flags & RST, RST);
}

/// Without a backup the new host lets the flow drain: bytes of its guest leave without a commit, are
/// not acknowledged before the client has them, and then it is passed through.
#[test]
fn without_a_backup_a_restored_flow_drains() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.epoch();
    world.fail_over();
    assert_eq!(world.flow().state, FlowState::Draining);
    world.guest_gives(&Seg::data(at(100), C, &pattern(100, 50)));
    world.turn();
    world.client_sends(&Seg::ack(C, at(100)));
    world.turn();
    assert_eq!(payload(&world.client_got()), pattern(0, 150));
    assert!(world.guest_got().iter().all(|seen| seen.ack == at(100)));
    world.client_sends(&Seg::ack(C, at(150)));
    world.turn();
    assert_eq!(world.guest_got().last().expect("an ACK").ack, at(150));
    world.client_sends(&Seg::ack(C, at(150)));
    assert_eq!(world.flow().state, FlowState::Plain);
    world.guest_passes(&Seg::data(at(150), C, &pattern(150, 50)));
}

/// TSval does not go back for the client, nor TSval and the window for the guest.
#[test]
fn times_and_windows_go_on_after_a_failover() {
    let mut world = World::new();
    world.open_with(&RICH_OPTIONS);
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)).times(300, 101));
    world.epoch();
    let told = world.client_got();
    let edge = {
        let ack = world.guest_got().pop().expect("an ACK");
        ack.ack.wrapping_add(u32::from(ack.window) << 7)
    };
    world.fail_over();
    let again = world.client_got();
    assert_eq!((again[0].times, again[0].ack, again[0].window), (told[0].times, told[0].ack, told[0].window));
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)).times(301, 101));
    world.turn();
    let ack = world.guest_got().pop().expect("an ACK");
    assert_eq!((ack.ack, ack.times), (at(100), Some((101, 301))));
    assert!(ack.ack.wrapping_add(u32::from(ack.window) << 7).wrapping_sub(edge) < 1 << 20);
}

/// The first state of a session has all bytes with it; chunks before it are not needed.
#[test]
fn a_new_backup_gets_all_that_is_held() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 3000)));
    world.turn();
    world.ledger = Ledger::new(limits(&config()));
    world.stream.clear();
    world.guest_gives(&Seg::data(at(3000), C, &pattern(3000, 100)));
    world.seal_whole();
    world.turn();
    assert_eq!(world.guest_got().last().expect("an ACK").ack, at(3100), "the state has the rest");
    world.guest_gives(&Seg::data(at(3100), C, &pattern(3100, 100)));
    world.commit();
    assert_eq!(world.ledger.held_bytes(), 3100);
    world.epoch();
    assert_eq!(world.ledger.held_bytes(), 3200);
    world.fail_over();
    assert_eq!(payload(&world.client_got()), pattern(0, 3200));
}
