//! What a hostile peer, a gap in a lease or a full table must not do.

use super::world::*;
use holdfast_packet::headers::flag::RST;
use std::time::Duration;

/// Runs timers without the right to transmit.
fn run_mute(world: &mut World, time: Duration) {
    let end = world.now + time;
    while let Some(due) = world.engine.next_deadline().filter(|&due| due <= end) {
        world.now = world.now.max(due);
        world.engine.handle_timeouts(world.now);
        world.speak();
    }
    world.now = end;
}

fn resets(seen: &[Seen]) -> usize {
    seen.iter().filter(|seen| seen.flags & RST != 0).count()
}

/// RFC 9293 §3.8.3: R2 counts from a question that left; a client that was not asked is not silent.
#[test]
fn a_gap_in_the_lease_is_not_a_silent_client() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 2500)));
    world.epoch();
    world.client_got();
    run_mute(&mut world, Duration::from_secs(150));
    world.guest_got();
    world.transmit();
    assert_eq!(world.client_got().len(), 1, "the lease is back: a retransmission leaves");
    world.engine.handle_timeouts(world.now);
    world.turn();
    assert_eq!(resets(&world.guest_got()), 0, "the guest was reset");
    assert_eq!(world.engine.held_bytes(), 2500);
    // A client that is silent then is given up, R2 after the question.
    world.run_ms(99_000);
    assert_eq!(resets(&world.guest_got()), 0);
    world.run_ms(80_000);
    assert_eq!(resets(&world.guest_got()), 1);
}

/// RFC 9293 §3.8.3: the same when the gap begins after the first retransmission, whether or not
/// timers run in it.
#[test]
fn a_gap_in_the_lease_after_a_retransmission_begins_r2_anew() {
    for timers_run in [false, true] {
        let mut world = World::new();
        world.open();
        world.guest_gives(&Seg::data(at(0), C, &pattern(0, 2500)));
        world.epoch();
        world.run_ms(10_000);
        assert!(world.client_got().len() > 3, "retransmissions");
        match timers_run {
            true => run_mute(&mut world, Duration::from_secs(150)),
            false => world.now = world.now + Duration::from_secs(150),
        }
        world.engine.handle_timeouts(world.now);
        world.transmit();
        world.speak();
        assert_eq!(resets(&world.guest_got()), 0, "the guest was reset");
        assert!(!world.client_got().is_empty(), "the client is asked again");
        world.client_sends(&Seg::ack(C, at(2500)));
        assert_eq!(world.engine.held_bytes(), 0);
    }
}
