//! Rules towards the client.

use super::world::*;
use crate::key::Side;
use crate::*;
use holdfast_packet::headers::flag::{ACK, CWR, ECE, PSH, SYN};

/// An open flow with SACK and timestamps whose guest is 100 bytes ahead, nothing of it committed.
fn ahead() -> World {
    let mut world = World::new();
    world.open_with(&RICH_OPTIONS);
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)).times(200, 101));
    world.turn();
    world.guest_got();
    world
}

/// RFC 5961 §5.2, RFC 7323 §4.3, RFC 2018: what is passed to the guest fits what it was shown.
#[test]
fn a_segment_of_the_client_is_rewritten_for_a_guest_that_is_ahead() {
    let mut world = ahead();
    let data = Seg::data(C, at(0), b"data").times(150, 100).sack(at(10), at(20)).window(2);
    let passed = world.client_sends(&data).expect("data is passed");
    assert_eq!((passed.ack, passed.payload.as_slice(), passed.sack), (at(100), &b"data"[..], false));
    assert_eq!(passed.times, Some((150, 200)));
    assert!(passed.window > 100, "the window is ours");
    world.turn();
    assert_eq!(world.guest_got()[1..], [], "the ACK was on it");
}

/// SP-4: whatever the order of what the client sent, ACKs to the guest never go back.
#[test]
fn an_old_segment_of_the_client_carries_the_newest_ack() {
    let mut world = ahead();
    world.epoch();
    world.client_sends(&Seg::data(C + 4, at(100), b"two").times(151, 200)).expect("data");
    let old = world.client_sends(&Seg::data(C, at(0), b"one.").times(150, 100)).expect("data");
    assert_eq!(old.ack, at(100));
}

/// Clients' segments of taken flows are verified always.
#[test]
fn a_damaged_segment_of_the_client_says_nothing() {
    let mut world = ahead();
    world.epoch();
    let mut frame = Seg::data(C, at(100), b"data").times(150, 200).frame(Side::Client);
    let last = frame.len() - 1;
    frame[last] ^= 4;
    assert_eq!(world.engine.handle_wire(world.now, &mut frame), FromWire::Taken);
    assert_eq!((world.engine.held_bytes(), world.count(Event::WireChecksum)), (100, 1));
}

/// RFC 9293 §3.10.7.4, RFC 5961 §5: an ACK of what was never sent is dropped with its segment, as the
/// guest would accept it.
#[test]
fn an_acknowledgement_of_bytes_that_did_not_leave_is_refused() {
    let mut world = ahead();
    assert_eq!(world.client_sends(&Seg::data(C, at(50), b"x").times(150, 100)), None);
    assert_eq!((world.engine.held_bytes(), world.count(Event::WireUnacceptable)), (100, 1));
    world.epoch();
    assert_eq!(world.client_sends(&Seg::data(C, at(101), b"x").times(150, 100)), None);
    world.client_sends(&Seg::data(C, at(100), b"x").times(150, 100)).expect("this one left");
    assert_eq!(world.engine.held_bytes(), 0);
}

/// SP-3, RFC 2018 §8: a SACK frees nothing.
#[test]
fn bytes_are_freed_by_the_cumulative_ack_alone() {
    let mut world = World::new();
    world.open_with(&RICH_OPTIONS);
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 3000)).times(200, 101));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(0)).times(150, 200).sack(at(988), at(3000)));
    assert_eq!(world.engine.held_bytes(), 3000);
    world.client_sends(&Seg::ack(C, at(3000)).times(151, 200));
    assert_eq!(world.engine.held_bytes(), 0);
}

/// RFC 7323 §5.3: a passed segment of the guest that is older than what the client has seen does not take
/// its clock back, or the client would discard it.
#[test]
fn the_time_of_a_passed_segment_does_not_go_back() {
    let mut world = World::new();
    world.open_with(&RICH_OPTIONS);
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)).times(300, 101));
    world.epoch();
    assert_eq!(world.client_got().last().and_then(|seen| seen.times), Some((300, 101)));
    world.client_sends(&Seg::data(C, at(0), b"data").times(150, 100)).expect("data is passed");
    world.guest_passes(&Seg::ack(at(100), C + 4).times(250, 150));
    world.epoch();
    let sent = world.client_got();
    assert_eq!((sent[0].ack, sent[0].times), (C + 4, Some((300, 150))));
}

/// RFC 9293 §3.8.4: the guest answers the client's keepalives.
#[test]
fn a_keepalive_of_the_client_reaches_the_guest() {
    let mut world = ahead();
    let keepalive = world.client_sends(&Seg::ack(C - 1, at(0)).times(150, 100)).expect("it is passed");
    assert_eq!((keepalive.seq, keepalive.ack), (C - 1, at(100)));
    // Its answer goes out with a sequence number that the client expects.
    world.guest_passes(&Seg::ack(at(100), C).times(201, 150));
    world.client_got();
    world.epoch();
    let sent = world.client_got();
    assert_eq!((sent[0].seq, sent[0].ack), (at(0), C), "the answer leaves before the bytes do");
    assert_eq!((sent[1].seq, sent[1].payload.len()), (at(0), 100));
}

/// A pure ACK of the guest leaves with the client leg's SND.NXT, and never says less than was said.
#[test]
fn a_pure_ack_of_the_guest_is_adapted_as_it_leaves() {
    let mut world = ahead();
    world.client_sends(&Seg::data(C, at(0), &pattern(0, 40)).times(150, 100)).expect("data");
    world.guest_passes(&Seg::ack(at(100), C + 20).times(201, 150).sack(C + 30, C + 40));
    world.guest_gives(&Seg::data(at(100), C + 40, &pattern(100, 10)).times(202, 150));
    world.client_got();
    let first = world.seal();
    world.guest_passes(&Seg::ack(at(110), C + 40).times(203, 150));
    world.commit();
    let sent = world.client_got();
    assert_eq!((sent[0].seq, sent[0].ack, sent[0].sack), (at(0), C + 20, true), "as it was sent but for seq");
    assert_eq!(sent[0].times, Some((201, 150)));
    let data = &sent[1];
    assert_eq!((data.seq, data.ack, data.payload.len()), (at(0), C + 40, 110));
    assert_eq!(data.times, Some((202, 150)), "the newest committed time");
    world.seal();
    world.commit();
    let sent = world.client_got();
    assert_eq!((sent.len(), sent[0].seq, sent[0].ack), (1, at(110), C + 40), "{first} and no other ACK");
}

/// OC-1: what the guest acknowledges on data is not told before its commit; then it is, at once.
#[test]
fn acknowledgements_on_data_leave_with_their_commit() {
    let mut world = ahead();
    world.epoch();
    world.client_got();
    world.client_sends(&Seg::data(C, at(100), b"abc").times(150, 200)).expect("data");
    // The guest acknowledges on bytes that the client's window has no room for.
    world.client_sends(&Seg::ack(C + 3, at(100)).times(151, 200).window(0));
    world.guest_gives(&Seg::data(at(100), C + 3, &pattern(100, 10)).times(202, 150));
    world.turn();
    assert_eq!(world.client_got(), []);
    world.epoch();
    let sent = world.client_got();
    assert_eq!((sent.len(), sent[0].ack, sent[0].payload.len()), (1, C + 3, 0));
    assert_eq!((sent[0].seq, sent[0].times), (at(100), Some((202, 150))));
}

/// Timestamps of retransmissions are the newest committed ones, and stay behind those of open epochs.
#[test]
fn a_retransmission_has_the_newest_committed_time() {
    let mut world = ahead();
    world.epoch();
    assert_eq!(world.client_got()[0].times, Some((200, 101)));
    world.guest_gives(&Seg::data(at(100), C, &pattern(100, 10)).times(300, 101));
    world.turn();
    world.run_ms(3000);
    let again = world.client_got();
    assert!(!again.is_empty());
    assert!(again.iter().all(|seen| seen.times == Some((200, 101)) && seen.seq == at(0)), "{again:?}");
    world.epoch();
    world.run_ms(10_000);
    assert_eq!(world.client_got().last().expect("a segment").times, Some((300, 101)));
}

/// RFC 3168 §6.1: the client leg answers ECE, the guest does not hear of it; new data alone is ECT.
#[test]
fn congestion_marks_are_between_the_client_and_the_client_leg() {
    let mut world = World::new();
    let syn = Seg::ack(CLIENT_ISS, 0).flags(SYN | ECE | CWR).window(60000).options(&SYN_OPTIONS);
    world.client_sends(&syn).expect("a SYN is passed");
    world.guest_passes(&Seg::ack(GUEST_ISS, C).flags(SYN | ACK | ECE).options(&SYN_OPTIONS));
    world.epoch();
    world.client_sends(&Seg::ack(C, G)).expect("the end of the handshake");
    world.client_got();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 500)).flags(ACK | PSH | CWR));
    world.epoch();
    let sent = world.client_got();
    assert!(sent[0].ect && sent[0].flags & (CWR | ECE) == 0, "the guest's CWR answers nothing of ours");
    let passed = world.client_sends(&Seg::data(C, at(500), b"x").flags(ACK | ECE | CWR)).expect("data");
    assert_eq!(passed.flags & (ECE | CWR), CWR, "its own CWR is for the guest");
    world.guest_gives(&Seg::data(at(500), C + 1, &pattern(500, 500)).flags(ACK | ECE));
    world.epoch();
    let sent = world.client_got();
    let data = sent.last().expect("a segment");
    assert_eq!(data.flags & (CWR | ECE), CWR | ECE, "CWR is the leg's, ECE the guest's");
    world.run_ms(5000);
    let again = world.client_got();
    assert!(!again.is_empty() && again.iter().all(|seen| !seen.ect), "{again:?}");
}

/// The client's window bounds what leaves, in its scale (RFC 7323 §2.3).
#[test]
fn the_window_of_the_client_bounds_what_leaves() {
    let mut world = World::new();
    world.open();
    world.client_sends(&Seg::ack(C, at(0)).window(16));
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 9000)));
    world.epoch();
    let sent = world.client_got();
    assert_eq!(sent.iter().map(|seen| seen.payload.len()).sum::<usize>(), 2000, "2048 bytes, less the rest");
}

/// Headers to the client are those of the guest: hops, service, addresses, link.
#[test]
fn segments_to_the_client_look_like_the_guests_own() {
    for v6 in [false, true] {
        let mut world = World::new();
        let tags = vec![[0x81, 0, 0x60, 5]];
        let dress = |segment: Seg| Seg { v6, tags: tags.clone(), ..segment };
        world.client_sends(&dress(Seg::ack(CLIENT_ISS, 0).flags(SYN).options(&SYN_OPTIONS))).expect("a SYN");
        world.guest_passes(&dress(Seg::ack(GUEST_ISS, C).flags(SYN | ACK).options(&SYN_OPTIONS)));
        world.epoch();
        world.client_sends(&dress(Seg::ack(C, G))).expect("the end of the handshake");
        let data = dress(Seg::data(at(0), C, &pattern(0, 10)));
        world.guest_gives(&data);
        while world.engine.stream(1000, &mut world.stream) > 0 {}
        let mut sink = Frames::with_room(9);
        world.engine.poll_guest(world.now, &mut sink);
        let ack = &sink.taken[0].1;
        let model = dress(Seg::ack(C, at(10))).frame(Side::Client);
        assert_eq!((ack.len(), &ack[..20]), (model.len(), &model[..20]), "link headers are swapped");
        let (epoch, state, stream) = {
            world.seal_as(false);
            world.sealed.remove(0)
        };
        world.ledger.apply(&state, &stream).expect("a state");
        world.engine.commit(world.now, epoch);
        let mut sink = Frames::with_room(9);
        world.engine.poll_wire(world.now, 9, &mut sink);
        let mut sent = sink.taken[0].1.clone();
        let model = data.frame(Side::Guest);
        if !v6 {
            // Identification and the header's checksum are ours.
            for at in [22, 23, 28, 29] {
                sent[at] = model[at];
            }
        }
        assert_eq!(sent, model);
        assert_eq!(sink.taken[0].0, Some(epoch));
    }
}

/// A sink without room loses nothing: the segment that did not fit is the next one.
#[test]
fn a_full_wire_makes_segments_wait() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 9000)));
    world.turn();
    world.seal();
    let (epoch, ..) = world.sealed[0];
    world.committed = Some(epoch);
    world.engine.commit(world.now, epoch);
    let mut got = Vec::new();
    for round in 0..20 {
        let mut sink = Frames::with_room(round % 2);
        world.engine.poll_wire(world.now, 100, &mut sink);
        got.extend(sink.taken.iter().flat_map(|(_, frame)| see(frame, Side::Guest).payload));
    }
    assert_eq!(got, pattern(0, 9000));
}

/// RFC 9293 §3.10.7.4: what does not lie in the guest's window is the guest's to answer.
#[test]
fn a_segment_outside_of_the_guests_window_tells_the_client_leg_nothing() {
    let mut world = ahead();
    world.epoch();
    world.client_sends(&Seg::data(C + (1 << 25), at(100), b"x").times(150, 200)).expect("it is passed");
    assert_eq!(world.engine.held_bytes(), 100);
}
