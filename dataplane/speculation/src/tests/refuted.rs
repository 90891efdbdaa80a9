//! What a hostile peer, a gap in a lease or a full table must not do.

use super::world::*;
use crate::delta::Writer;
use crate::ledger::Kept;
use crate::*;
use holdfast_packet::headers::flag::RST;
use holdfast_packet::headers::flag::{ACK, SYN};
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

/// A world with a connection for each of `count` ports of the client.
fn many(config: EngineConfig, count: u16, bytes: usize) -> World {
    let mut world = World::of(config);
    for n in 0..count {
        let (guest, client) = (80, 1000 + n);
        let syn = |seq, ack| Seg::ack(seq, ack).window(60000).options(&SYN_OPTIONS).ports(guest, client);
        world.client_sends(&syn(CLIENT_ISS, 0).flags(SYN));
        world.guest_passes(&syn(GUEST_ISS, C).flags(SYN | ACK));
        world.client_sends(&Seg::ack(C, G).ports(guest, client));
        world.turn();
        world.guest_gives(&Seg::data(at(0), C, &pattern(0, bytes)).ports(guest, client));
        world.turn();
    }
    world.seal_whole();
    world
}

fn large() -> EngineConfig {
    EngineConfig { held_bytes: 64 << 20, ..config() }
}

fn small() -> EngineConfig {
    EngineConfig { held_bytes: 32 << 10, flow_bytes: 16 << 10, ..config() }
}

/// RB-1, SP-2: a backup confirms nothing that it could not restore, and bytes lie in whole blocks.
#[test]
fn a_ledger_counts_blocks_as_the_store_will_need_them() {
    let world = many(large(), 40, 1);
    let (_, state, _) = &world.sealed[0];
    let of = |held_bytes| LedgerLimits { max_flows: 64, held_bytes };
    let mut ledger = Ledger::new(of(small().held_bytes));
    assert_eq!(ledger.apply(state, &[]), Err(LedgerError::TooMuch));
    assert_eq!(ledger.flows(), 0, "nothing has changed");
    assert_eq!(Ledger::new(of(40 * 2048)).apply(state, &[]), Ok(()));
}

/// RB-1: a place that the table of an engine of the same limits does not have is refused.
#[test]
fn a_ledger_takes_no_flow_beyond_its_places() {
    let world = many(large(), 10, 1);
    let (_, state, _) = &world.sealed[0];
    let mut state = state.clone();
    // The first flow's place.
    state[7..11].copy_from_slice(&64u32.to_le_bytes());
    let mut ledger = Ledger::new(LedgerLimits { max_flows: 64, held_bytes: 1 << 20 });
    assert_eq!(ledger.apply(&state, &[]), Err(LedgerError::TooMuch));
}

/// RB-1: an engine that is smaller than the ledger resets the guests whose bytes it has no room for,
/// whatever the peer says of them, and goes on.
#[test]
fn bytes_without_room_at_a_failover_reset_their_flow() {
    for confirmed in [false, true] {
        let mut world = many(large(), 40, 1);
        world.commit_all();
        let mut state = Vec::new();
        let mut writer = Writer(&mut state);
        let count_at = writer.head(true);
        for (slot, kept) in (0..).zip(world.ledger.kept()) {
            let Kept { generation, row, bytes } = kept.clone();
            let mut record = row.record().expect("a connection").clone();
            if confirmed {
                record.client.real = record.end;
            }
            writer.u32(slot);
            writer.u8(1);
            writer.u32(generation);
            writer.record(&record);
            writer.0.extend(bytes);
        }
        writer.set_count(count_at, 40);
        let mut ledger = Ledger::new(limits(&large()));
        ledger.apply(&state, &[]).expect("a ledger that is large enough");
        let mut engine = Engine::new(small());
        engine.restore(world.now, ledger);
        let mut sink = Frames::with_room(1000);
        engine.poll_guest(world.now, &mut sink);
        let got: Vec<_> = sink.taken.iter().map(|(_, frame)| see(frame, crate::key::Side::Client)).collect();
        assert_eq!(resets(&got), 24, "16 blocks hold 16 flows");
        engine.poll_wire(world.now, 1000, &mut sink);
        engine.set_mode(world.now, Speculation::On);
        engine.cut(world.epoch, true, &mut Vec::new());
        engine.discard();
        assert_eq!(engine.held_bytes(), 0);
    }
}

/// RB-1: flows that find no place at a failover take no room for good.
#[test]
fn flows_without_a_place_take_no_blocks() {
    let mut world = many(config(), 10, 2000);
    world.commit_all();
    let mut engine = Engine::new(EngineConfig { max_flows: 4, ..config() });
    engine.restore(world.now, world.ledger.clone());
    assert_eq!(engine.counters().get(Event::FlowsUnplaced), 6);
    assert_eq!(engine.held_bytes(), 4 * 2000);
    engine.discard();
    assert_eq!(engine.held_bytes(), 0);
}

/// A world whose client was given up while 2500 bytes were held.
fn given_up() -> World {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 2500)));
    world.epoch();
    world.run_ms(110_000);
    world.turn();
    assert_eq!(world.flow().state, FlowState::Finished);
    world
}

/// RFC 9293 §3.10.7.1, RFC 5961 §3.2: a reset can be lost, or be where the guest is not: what a guest
/// sends that was reset is answered with a reset at the number that it names.
#[test]
fn a_guest_that_missed_its_reset_is_reset_again() {
    let mut world = given_up();
    assert_eq!(resets(&world.guest_got()), 1);
    for segment in [Seg::ack(at(2500), C), Seg::data(at(2500), C, &[1; 100])] {
        world.guest_gives(&segment);
        world.turn();
        let got = world.guest_got();
        assert_eq!((got.len(), resets(&got), got[0].seq), (1, 1, C));
    }
    // The guest's own reset is answered by nobody.
    world.guest_passes(&Seg::ack(at(2500), C).flags(RST | ACK));
    world.turn();
    assert_eq!(world.guest_got(), []);
}

/// SP-2: a guest that goes on from a cut has not heard a reset that was sent after it.
#[test]
fn a_reset_that_is_owed_survives_a_failover() {
    let mut world = given_up();
    world.epoch();
    world.fail_over();
    assert_eq!(resets(&world.guest_got()), 1);
    world.guest_gives(&Seg::data(at(2500), C, &[1; 100]));
    world.turn();
    assert_eq!(resets(&world.guest_got()), 1);
}

/// A reset that finds no room in the guest's queue waits for some.
#[test]
fn a_reset_without_room_waits() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 2500)));
    world.epoch();
    while world.engine.counters().get(Event::ClientsSilent) == 0 {
        world.now = world.engine.next_deadline().expect("a timer runs");
        world.engine.handle_timeouts(world.now);
        world.transmit();
    }
    let mut full = Frames::with_room(0);
    world.engine.poll_guest(world.now, &mut full);
    assert!(world.engine.waits_for_guest());
    world.speak();
    assert!(!world.engine.waits_for_guest());
    assert_eq!(resets(&world.guest_got()), 1);
}

/// RFC 9293 §3.10.7.4: a probe of our window, with a byte or without, and a segment behind a gap may
/// carry an ACK that the client waits for.
#[test]
fn what_the_guest_says_along_with_a_probe_or_behind_a_gap_reaches_the_client() {
    for kind in 0..3 {
        let mut world = World::of(EngineConfig { max_flows: 2, ..small() });
        world.open();
        let mut sent = 0u32;
        loop {
            let left = world.flow().window_bytes.min(1000);
            if left == 0 || (kind == 2 && sent > 0) {
                break;
            }
            world.guest_gives(&Seg::data(at(sent), C, &pattern(sent, left as usize)));
            sent += left;
            world.turn();
        }
        world.epoch();
        world.client_sends(&Seg::data(C, at(0), &[1; 100]));
        world.client_got();
        let segment = match kind {
            0 => Seg::ack(at(sent - 1), C + 100),
            1 => Seg::data(at(sent - 1), C + 100, &[0]),
            _ => Seg::data(at(sent + 500), C + 100, &[0; 50]),
        };
        world.guest_gives(&segment);
        world.epoch();
        let got = world.client_got();
        assert!(got.iter().any(|seen| seen.ack == C + 100), "{kind}: the ACK was swallowed: {got:?}");
    }
}

/// RFC 9293 §3.1: of a segment whose checksum is wrong, nothing is believed.
#[test]
fn a_broken_segment_behind_a_gap_says_nothing() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.client_sends(&Seg::data(C, at(0), &[1; 100]));
    world.epoch();
    world.client_got();
    let mut frame = Seg::data(at(600), C + 100, &[0; 50]).frame(crate::key::Side::Guest);
    *frame.last_mut().expect("a byte") ^= 1;
    assert_eq!(world.guest_sends_frame(&frame, true), FromGuest::Taken);
    assert_eq!(world.count(Event::GuestChecksum), 1);
    world.epoch();
    assert!(world.client_got().iter().all(|seen| seen.ack == C));
}

fn flood(world: &mut World, ports: std::ops::Range<u16>) {
    for port in ports {
        let syn = Seg::ack(CLIENT_ISS, 0).flags(SYN).window(60000).options(&SYN_OPTIONS);
        world.client_sends(&syn.ports(80, port));
    }
}

fn speculating(world: &World) -> usize {
    world.engine.flows().filter(|flow| flow.state == FlowState::Speculating).count()
}

/// RFC 4987 §3.2 (a bound on half-open connections): SYNs of strangers take no place of a connection
/// as long as others have one.
#[test]
fn a_flood_of_syns_takes_no_speculation_away() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(100)));
    world.epoch();
    flood(&mut world, 1000..1200);
    assert_eq!(speculating(&world), 1);
    // And of idle ones no more than a share.
    let mut world = many(config(), 64, 100);
    world.commit_all();
    (0..64).for_each(|n| drop(world.client_sends(&Seg::ack(C, at(100)).ports(80, 1000 + n))));
    world.epoch();
    flood(&mut world, 2000..2200);
    assert_eq!(speculating(&world), 64 - 64 / 4);
}

/// When the table is full a handshake goes first, and connections that must stay hide none that need not.
#[test]
fn a_full_table_is_searched_beyond_the_flows_that_must_stay() {
    let mut world = many(EngineConfig { max_flows: 40, ..config() }, 39, 100);
    world.commit_all();
    // The youngest alone has nothing to lose.
    let last = Seg::ack(C, at(100)).ports(80, 1038);
    world.client_sends(&last);
    world.epoch();
    flood(&mut world, 2000..2001);
    assert_eq!(world.engine.known_flows(), 40);
    // The handshake is completed: the table is full of connections.
    let syn = |seq, ack| Seg::ack(seq, ack).window(60000).options(&SYN_OPTIONS).ports(80, 2000);
    world.guest_passes(&syn(GUEST_ISS, C).flags(SYN | ACK));
    world.client_sends(&Seg::ack(C, G).ports(80, 2000));
    world.turn();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)).ports(80, 2000));
    world.turn();
    assert_eq!(speculating(&world), 40);
    flood(&mut world, 3000..3004);
    assert_eq!(speculating(&world), 39, "one that had nothing to lose made place");
    assert_eq!(world.count(Event::FlowsEvicted), 4 - world.count(Event::FlowsUnplaced));
}

/// RB-1: a client that keeps its window closed pins the bytes of a guest that is gone for R2, not for
/// ever (RFC 9293 §3.8.3).
#[test]
fn a_client_pins_no_bytes_behind_a_guest_that_has_reset() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 8000)));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(0)).window(0));
    world.guest_gives(&Seg::ack(at(8000), C).flags(RST | ACK));
    world.epoch();
    world.client_got();
    let mut got = Vec::new();
    for _ in 0..200 {
        world.run_ms(1000);
        got = world.client_got();
        if resets(&got) > 0 {
            break;
        }
        if !got.is_empty() {
            world.client_sends(&Seg::ack(C, at(0)).window(0));
        }
    }
    assert_eq!(world.engine.held_bytes(), 0);
    // RFC 5961 §3.2: the reset is where the client is.
    assert_eq!(got.iter().find(|seen| seen.flags & RST != 0).expect("a reset").seq, at(0));
}

/// OC-1: what a frame of a committed epoch looks like is of that epoch too.
#[test]
fn frames_look_as_the_guests_did_when_their_epoch_was_cut() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.seal();
    let mut frame = Seg::data(at(100), C, &pattern(100, 100)).frame(crate::key::Side::Guest);
    // Another station: the guest's link address has changed.
    frame[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    assert_eq!(world.guest_sends_frame(&frame, true), FromGuest::Taken);
    let (epoch, state, stream) = world.sealed.remove(0);
    world.ledger.apply(&state, &stream).expect("an epoch");
    world.engine.commit(world.now, epoch);
    let mut sink = Frames::with_room(10);
    world.engine.poll_wire(world.now, 10, &mut sink);
    assert_eq!(sink.taken.len(), 1);
    assert_ne!(sink.taken[0].1[6..12], [2, 9, 9, 9, 9, 9]);
}

/// RFC 5961 §4: a SYN for a connection whose reset waits for the bytes before it is challenged.
#[test]
fn a_syn_for_a_flow_that_is_resetting_is_challenged() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.guest_gives(&Seg::ack(at(100), C).flags(RST | ACK));
    world.epoch();
    world.client_got();
    world.client_sends(&Seg::ack(777, 0).flags(SYN).options(&SYN_OPTIONS));
    world.transmit();
    let got = world.client_got();
    assert_eq!(got.len(), 1, "{got:?}");
    assert_eq!((got[0].flags, got[0].seq, got[0].ack), (ACK, at(100), C));
}

/// RFC 9293 §3.8.6: an ACK that left before goes with the window that was told with it, also when more
/// epochs wait than there are marks.
#[test]
fn a_later_ack_is_not_told_with_an_older_window() {
    let mut world = World::new();
    world.open();
    world.client_sends(&Seg::data(C, at(0), &[1; 100]));
    for k in 0..10 {
        world.guest_gives(&Seg::data(at(k * 100), C, &pattern(k * 100, 100)));
        if k == 8 {
            world.guest_passes(&Seg::ack(at(900), C + 100).window(499));
        }
        world.seal();
    }
    (0..9).for_each(|_| world.commit());
    world.client_got();
    world.run_ms(2000);
    let got = world.client_got();
    assert!(!got.is_empty());
    // 500 would be a window that was told with C.
    assert!(got.iter().all(|seen| (seen.ack, seen.window) == (C + 100, 499)), "{got:?}");
}
