//! Rules towards the guest.

use super::world::*;
use crate::key::Side;
use crate::*;
use holdfast_packet::headers::flag::{ACK, ECE, PSH, RST, SYN, URG};

fn last_ack(world: &mut World) -> Seen {
    world.guest_got().pop().expect("an ACK")
}

/// SP-1: a segment with a wrong checksum is as if it had not come; what was left to the card is right.
#[test]
fn a_segment_with_a_wrong_checksum_is_neither_held_nor_acknowledged() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    for damaged in [54, 60, 153] {
        let mut frame = Seg::data(at(100), C, &pattern(100, 101)).frame(Side::Guest);
        frame[damaged] ^= 0x10;
        assert_eq!(world.guest_sends_frame(&frame, true), FromGuest::Taken);
    }
    world.turn();
    assert_eq!(last_ack(&mut world).ack, at(100));
    assert_eq!((world.engine.held_bytes(), world.count(Event::GuestChecksum)), (100, 3));
    let mut unfinished = Seg::data(at(100), C, &pattern(100, 101)).frame(Side::Guest);
    unfinished[50] ^= 0xff;
    assert_eq!(world.guest_sends_frame(&unfinished, false), FromGuest::Taken);
    world.turn();
    assert_eq!(last_ack(&mut world).ack, at(201));
    world.epoch();
    let sent = world.client_got();
    assert_eq!(sent.iter().flat_map(|seen| seen.payload.clone()).collect::<Vec<_>>(), pattern(0, 201));
}

/// SP-1, SP-2: an ACK covers what was handed to the backup's stream and no more, be it an ACK of its own
/// or on a segment of the client.
#[test]
fn bytes_that_are_not_streamed_are_not_acknowledged() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 1000)));
    let passed = world.client_sends(&Seg::data(C, at(0), b"x")).expect("data");
    assert_eq!(passed.ack, at(0));
    assert_eq!(world.engine.stream(16 + 256, &mut world.stream), 16 + 256);
    world.speak();
    assert_eq!(last_ack(&mut world).ack, at(256));
    let passed = world.client_sends(&Seg::data(C + 1, at(0), b"x")).expect("data");
    assert_eq!(passed.ack, at(256));
    // The rest is of the next epoch, and a backup that takes over lets the guest send it again.
    world.seal_as(false);
    world.commit();
    assert_eq!(world.client_got()[0].payload, pattern(0, 256), "OC-1");
    assert_eq!(world.ledger.held_bytes(), 256);
    world.fail_over();
    world.engine.set_mode(world.now, Speculation::On);
    world.seal_whole();
    world.commit_all();
    world.guest_gives(&Seg::data(at(256), C, &pattern(256, 744)));
    world.turn();
    assert_eq!(last_ack(&mut world).ack, at(1000));
}

/// SP-1: the checksum is judged over what is held, wherever the segment lies over old and new bytes.
#[test]
fn the_checksum_covers_old_and_new_bytes_of_a_segment() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 3001)));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(501)));
    // 501 bytes are freed, 2500 held, and 1000 are new; odd places everywhere.
    world.guest_gives(&Seg::data(at(3), C, &pattern(3, 3998)));
    assert_eq!(world.engine.held_bytes(), 3500);
    assert_eq!(world.count(Event::GuestChecksum), 0);
    for damaged in [54, 1000, 3000, 4051] {
        let mut frame = Seg::data(at(3), C, &pattern(3, 4998)).frame(Side::Guest);
        frame[damaged] ^= 1;
        assert_eq!(world.guest_sends_frame(&frame, true), FromGuest::Taken);
    }
    assert_eq!((world.engine.held_bytes(), world.count(Event::GuestChecksum)), (3500, 4));
    assert_eq!(world.count(Event::GuestRewroteHistory), 0, "a broken segment proves nothing");
}

/// A frame of 64 KiB, as segmentation offload makes it, is one segment here.
#[test]
fn a_large_frame_is_held_at_once_and_leaves_in_segments_of_the_clients_mss() {
    let mut world = World::new();
    world.open();
    // The window has to grow first.
    for part in 0..9 {
        world.guest_gives(&Seg::data(at(part * 8000), C, &pattern(part * 8000, 8000)));
        world.turn();
    }
    let start = 72_000;
    assert!(world.flow().window_bytes > 60_000, "{:?}", world.flow());
    world.guest_gives(&Seg::data(at(start), C, &pattern(start, 60_000)));
    world.turn();
    assert_eq!(last_ack(&mut world).ack, at(132_000));
}

/// SP-1: only contiguous bytes are acknowledged. RFC 5681 §3.2: duplicates tell the guest of a gap.
#[test]
fn a_segment_behind_a_gap_is_not_held_and_brings_duplicate_acks() {
    let mut world = World::new();
    world.open();
    for part in 1..6 {
        world.guest_gives(&Seg::data(at(part * 100), C, &pattern(part * 100, 100)));
    }
    world.turn();
    let acks = world.guest_got();
    assert_eq!(acks.iter().map(|seen| seen.ack).collect::<Vec<_>>(), [at(0); 3]);
    assert_eq!((world.engine.held_bytes(), world.count(Event::GuestGaps)), (0, 5));
}

/// SP-1: a gap of a single byte is a gap.
#[test]
fn a_segment_that_is_one_byte_ahead_is_not_held() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(1), C, &pattern(1, 99)));
    world.turn();
    assert_eq!(world.guest_got().iter().map(|seen| seen.ack).collect::<Vec<_>>(), [at(0)]);
    assert_eq!((world.engine.held_bytes(), world.count(Event::GuestGaps)), (0, 1));
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.epoch();
    let sent = world.client_got();
    assert_eq!((sent[0].seq, &sent[0].payload), (at(0), &pattern(0, 100)));
}

/// RFC 9293 §3.10.7.4: what came before is acknowledged again and trimmed; SP-3: it is not sent twice.
#[test]
fn a_retransmission_of_the_guest_is_acknowledged_again_and_released_once() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 600)));
    world.turn();
    world.guest_got();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 600)));
    world.turn();
    assert_eq!(last_ack(&mut world).ack, at(600));
    world.guest_gives(&Seg::data(at(300), C, &pattern(300, 600)));
    world.turn();
    assert_eq!(last_ack(&mut world).ack, at(900));
    assert_eq!(world.engine.held_bytes(), 900);
    world.epoch();
    world.client_sends(&Seg::ack(C, at(900)));
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 600)));
    world.epoch();
    let sent = world.client_got();
    assert_eq!(sent.iter().flat_map(|seen| seen.payload.clone()).collect::<Vec<_>>(), pattern(0, 900));
    assert_eq!(world.count(Event::GuestRetransmissions), 2);
}

/// SP-3: other bytes for a number that was used are an alarm; both ends are reset, the client after
/// the commit.
#[test]
fn other_bytes_for_the_same_sequence_number_reset_the_flow() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 600)));
    world.turn();
    world.guest_got();
    let mut other = pattern(0, 700);
    other[599] ^= 1;
    world.guest_gives(&Seg::data(at(0), C, &other));
    world.turn();
    assert_eq!(last_ack(&mut world).flags, RST | ACK);
    assert_eq!((world.count(Event::GuestRewroteHistory), world.client_got().len()), (1, 0));
    world.epoch();
    assert_eq!(world.client_got().len(), 1);
    world.client_sends(&Seg::ack(C, at(600)));
    world.turn();
    let sent = world.client_got();
    assert_eq!((sent.len(), sent[0].flags & RST, sent[0].seq), (1, RST, at(600)));
}

/// SP-4, RFC 9293 §3.8.6: the window is what may be held; its edge never moves left, and a guest that
/// fills it all is told of zero, answered when it probes, and told when there is room again.
#[test]
fn a_guest_that_fills_the_store_is_slowed_down_by_its_window() {
    let config = EngineConfig { held_bytes: 128 << 10, flow_bytes: 64 << 10, ..config() };
    let mut world = World::of(config);
    world.open();
    let (mut sent, mut edge) = (0, 0);
    loop {
        let flow = world.flow();
        let room = flow.window_bytes.min(1000);
        if room == 0 {
            break;
        }
        world.guest_gives(&Seg::data(at(sent), C, &pattern(sent, room as usize)));
        sent += room;
        world.turn();
        for seen in world.guest_got() {
            let shown = seen.ack.wrapping_sub(G) + (u32::from(seen.window) << 7);
            assert!(shown >= edge, "the edge moved from {edge} to {shown}");
            edge = shown;
        }
    }
    assert!((60_000..=66_000).contains(&sent), "{sent}");
    assert_eq!(edge, sent);
    // A Linux guest probes with the byte before the window, a BSD guest with the one behind it.
    for probe in [Seg::ack(at(sent - 1), C), Seg::data(at(sent), C, &[1])] {
        world.guest_gives(&probe);
        world.turn();
        let answer = last_ack(&mut world);
        assert_eq!((answer.ack, answer.window), (at(sent), 0));
    }
    assert_eq!(world.engine.held_bytes(), sent as usize);
    world.epoch();
    world.guest_got();
    for step in 1..=sent / 1000 {
        world.client_sends(&Seg::ack(C, at(step * 1000)));
        world.turn();
    }
    let opened = world.guest_got();
    assert!(!opened.is_empty() && opened.len() < 20, "{} updates", opened.len());
    let steps = opened.iter().map(|seen| u32::from(seen.window) << 7).collect::<Vec<_>>();
    assert!(steps.iter().all(|&window| window >= 1000), "no silly windows: {steps:?}");
    assert!(world.flow().window_bytes >= 16_000);
}

/// SP-4: an ACK tells of no window, and no byte, that the guest could not have.
#[test]
fn bytes_beyond_the_window_are_not_held() {
    let mut world = World::new();
    world.open();
    let room = world.flow().window_bytes;
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, room as usize + 700)).flags(FIN_ACK));
    assert_eq!(world.engine.held_bytes(), room as usize);
    world.turn();
    assert_eq!(world.guest_got().first().expect("an ACK").ack, at(room));
    assert_eq!(world.count(Event::GuestBeyondWindow), 1);
}

/// RFC 7323 §4.3: ACKs echo the first segment that they cover; their TSval is the client's last.
#[test]
fn forged_acks_carry_times_that_the_client_and_the_guest_really_sent() {
    let mut world = World::new();
    world.open_with(&RICH_OPTIONS);
    for (nth, time) in [(0, 500), (1, 501), (2, 502)] {
        world.guest_gives(&Seg::data(at(nth * 10), C, &pattern(nth * 10, 10)).times(time, 101));
    }
    world.turn();
    let forged = last_ack(&mut world);
    assert_eq!(forged.times, Some((101, 500)), "three segments, one ACK, the first one's time");
    world.epoch();
    // A consumed ACK has told a time; one that runs ahead of what the guest has seen has not (PAWS).
    world.client_sends(&Seg::ack(C, at(10)).times(110, 500));
    world.client_sends(&Seg::ack(C + 5, at(20)).times(120, 501));
    world.guest_gives(&Seg::data(at(30), C, &pattern(30, 10)).times(503, 101));
    world.turn();
    assert_eq!(last_ack(&mut world).times, Some((110, 503)));
    let data = world.client_sends(&Seg::data(C, at(20), b"hello").times(119, 501)).expect("data");
    assert_eq!(data.times, Some((119, 503)), "an echo of the guest's time");
    world.guest_gives(&Seg::data(at(40), C + 5, &pattern(40, 10)).times(504, 119));
    world.turn();
    let forged = last_ack(&mut world);
    assert_eq!((forged.times, forged.seq), (Some((119, 504)), C + 5));
}

/// RFC 3168 §6.1.3: a forged ACK never tells of congestion.
#[test]
fn forged_acks_have_no_ece() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 10)));
    world.turn();
    let forged = last_ack(&mut world);
    assert_eq!((forged.flags & ECE, forged.ect), (0, false));
}

/// RFC 9293 §3.8.5: urgent data goes as it was sent, once all before it is delivered.
#[test]
fn an_urgent_segment_waits_until_the_flow_is_drained_and_is_passed() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.epoch();
    let urgent = Seg::data(at(100), C, b"!").flags(ACK | PSH | URG);
    world.guest_gives(&urgent);
    assert_eq!((world.flow().state, world.count(Event::GuestUnusual)), (FlowState::Draining, 1));
    world.client_sends(&Seg::ack(C, at(100)));
    assert_eq!(world.flow().state, FlowState::Plain);
    world.guest_passes(&urgent);
    world.guest_passes(&Seg::data(at(101), C, &pattern(0, 9)));
    assert_eq!(world.flow().state, FlowState::Plain, "for good");
}

/// RFC 9293 §3.8.4: keepalives are the client's to answer, whatever byte they carry.
#[test]
fn a_keepalive_of_the_guest_is_answered_by_the_client() {
    for garbage in [&[][..], &[0x55]] {
        let mut world = World::new();
        world.open();
        world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
        world.epoch();
        world.client_got();
        world.guest_got();
        let keepalive = Seg { payload: garbage.to_vec(), ..Seg::ack(at(99), C) };
        world.guest_passes(&keepalive);
        world.turn();
        assert_eq!(world.guest_got(), [], "not answered for the client");
        assert_eq!(world.client_sends(&Seg::ack(C, at(50))), None, "no reply to what has not left");
        world.epoch();
        let sent = world.client_got();
        // Where the client has confirmed everything: its byte is none of the stream (SP-3).
        assert_eq!(sent.last().map(|seen| seen.seq), Some(at(49)));
        let reply = world.client_sends(&Seg::ack(C, at(100))).expect("the guest waits for it");
        assert_eq!(reply.ack, at(100));
        assert_eq!(world.client_sends(&Seg::ack(C, at(100))), None, "one reply");
    }
}

/// A guest that did not see the end of the handshake gets it from us.
#[test]
fn an_answer_that_the_guest_sends_again_is_answered() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::ack(GUEST_ISS, C).flags(SYN | ACK).options(&SYN_OPTIONS));
    world.turn();
    let ack = last_ack(&mut world);
    assert_eq!((ack.ack, ack.seq), (G, C));
}

/// RB-1: lengths that contradict each other drop the segment of a taken flow.
#[test]
fn a_segment_that_lies_about_its_length_is_dropped() {
    let mut world = World::new();
    world.open();
    let mut frame = Seg::data(at(0), C, &pattern(0, 100)).frame(Side::Guest);
    frame.truncate(100);
    assert_eq!(world.guest_sends_frame(&frame, false), FromGuest::Taken);
    assert_eq!((world.engine.held_bytes(), world.count(Event::GuestMalformed)), (0, 1));
}

/// RFC 9293 §3.10.4: nothing follows a FIN.
#[test]
fn bytes_behind_a_fin_are_not_held() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, b"end").flags(FIN_ACK));
    world.guest_gives(&Seg::data(at(0), C, b"end and more"));
    world.turn();
    assert_eq!((world.engine.held_bytes(), last_ack(&mut world).ack), (3, at(3)));
}

/// A segment of the client that is passed, and finds no room in the guest's queue.
fn client_loses(world: &mut World, segment: &Seg) {
    let mut frame = segment.frame(Side::Client);
    assert_eq!(world.engine.handle_wire(world.now, &mut frame), FromWire::Pass);
    world.engine.lost_to_guest(&frame);
}

/// SP-4, RFC 9293 §3.10.7.4: what rode on a segment that found no room is said again, once: the client does
/// not know of it.
#[test]
fn what_was_said_on_a_segment_that_found_no_room_is_said_again() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    while world.engine.stream(1000, &mut world.stream) > 0 {}
    let data = Seg::data(C, at(0), b"data");
    client_loses(&mut world, &data);
    assert!(world.engine.waits_for_guest());
    world.speak();
    let said = world.guest_got();
    assert_eq!((said.len(), said[0].ack, said[0].seq), (1, at(100), C + 4));
    world.speak();
    assert_eq!((world.guest_got(), world.engine.waits_for_guest()), (vec![], false), "once");
    let again = world.client_sends(&data).expect("the client sends it again");
    assert_eq!((again.ack, again.window), (said[0].ack, said[0].window), "nothing moves left");
}

/// SP-1: what is said again covers no byte that the stream has not taken.
#[test]
fn what_is_said_again_covers_no_more_than_was_streamed() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.turn();
    world.guest_gives(&Seg::data(at(100), C, &pattern(100, 100)));
    client_loses(&mut world, &Seg::data(C, at(0), b"data"));
    world.speak();
    assert_eq!(last_ack(&mut world).ack, at(100));
}

/// A guest that is passed through has only the client's words, which the client says again itself; a reset
/// that is owed stays one.
#[test]
fn nothing_is_said_again_that_is_not_the_engines_to_say() {
    let mut world = World::new();
    world.open();
    world.engine.set_mode(world.now, Speculation::Hold);
    client_loses(&mut world, &Seg::data(C, at(0), b"data"));
    world.speak();
    assert_eq!(world.guest_got(), []);
    world.engine.set_mode(world.now, Speculation::On);

    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.turn();
    world.guest_got();
    let mut passed = Seg::data(C + 4, at(0), b"more").frame(Side::Client);
    assert_eq!(world.engine.handle_wire(world.now, &mut passed), FromWire::Pass);
    world.guest_gives(&Seg::data(at(0), C, &pattern(1, 100)));
    world.engine.lost_to_guest(&passed);
    world.speak();
    let said = world.guest_got();
    assert_eq!((said.len(), said[0].flags & RST), (1, RST), "{said:?}");
}
