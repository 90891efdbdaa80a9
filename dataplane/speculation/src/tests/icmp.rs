//! ICMP messages about flows.

use super::world::*;
use crate::key::Side;
use crate::*;
use holdfast_packet::checksum::Sum;
use holdfast_packet::headers::flag::{ACK, SYN};

/// A *too big* message of a router about a frame of the guest.
fn too_big(about: &[u8], v6: bool, mtu: u16) -> Vec<u8> {
    let quoted = &about[14..][..if v6 { 60 } else { 28 }];
    let mut frame = about[6..12].to_vec();
    frame.extend(&about[..6]);
    frame.extend(&about[12..14]);
    let len = 8 + quoted.len();
    let mut icmp = if v6 { vec![2, 0, 0, 0, 0, 0] } else { vec![3, 4, 0, 0, 0, 0] };
    icmp.extend(mtu.to_be_bytes());
    icmp.extend(quoted);
    if v6 {
        let (router, guest) = ([0xfd; 16], &about[22..38]);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend((len as u16).to_be_bytes());
        frame.extend([58, 64]);
        frame.extend(router);
        frame.extend(guest);
        let sum = Sum::ZERO.pseudo(&router, guest, 58, len).bytes(&icmp).finish();
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame.extend([0x45, 0]);
        frame.extend((20 + len as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 254]);
        frame.extend(&about[26..30]);
        let sum = Sum::ZERO.bytes(&icmp).finish();
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    frame.extend(icmp);
    frame
}

fn data(v6: bool, seq: u32, payload: &[u8]) -> Seg {
    Seg { v6, ..Seg::data(seq, C, payload) }
}

fn opened(v6: bool) -> World {
    let mut world = World::new();
    let dress = |segment: Seg| Seg { v6, ..segment };
    let options = [2, 4, 0x05, 0xb4, 1, 3, 3, 7];
    world
        .client_sends(&dress(Seg::ack(CLIENT_ISS, 0).flags(SYN).window(60000).options(&options)))
        .expect("a SYN");
    world.guest_passes(&dress(Seg::ack(GUEST_ISS, C).flags(SYN | ACK).options(&options)));
    world.client_sends(&dress(Seg::ack(C, G))).expect("the end of the handshake");
    world.epoch();
    world.client_got();
    world.guest_got();
    world
}

/// RFC 5927 §4.1, RFC 1191, RFC 8201: a message about what is on its way makes segments smaller; what
/// was too large is sent again in pieces, and the guest hears of it with a number that it takes.
#[test]
fn a_path_with_a_smaller_mtu_gets_smaller_segments() {
    for v6 in [false, true] {
        let mut world = opened(v6);
        world.guest_gives(&data(v6, at(0), &pattern(0, 4000)));
        world.epoch();
        let sent = world.client_got();
        assert_eq!(sent[0].payload.len(), if v6 { 1440 } else { 1460 });
        let mut message = too_big(&data(v6, at(0), &[]).frame(Side::Guest), v6, 1400);
        assert_eq!(world.engine.handle_wire(world.now, &mut message), FromWire::Pass);
        // RFC 5927 §4.1: as if it were about what was not acknowledged to the guest.
        let quoted = if v6 { 14 + 40 + 8 + 40 } else { 14 + 20 + 8 + 20 };
        assert_eq!(message[quoted + 4..quoted + 8], at(4000).to_be_bytes());
        let (ip, sum) = message.split_at(if v6 { 54 } else { 34 });
        let pseudo = if v6 { Sum::ZERO.pseudo(&ip[22..38], &ip[38..54], 58, sum.len()) } else { Sum::ZERO };
        assert!(pseudo.bytes(sum).verifies());
        world.transmit();
        world.run_ms(2000);
        let again = world.client_got();
        assert!(again.iter().all(|seen| seen.payload.len() <= if v6 { 1340 } else { 1360 }), "{v6}");
        assert_eq!(again[0].seq, at(0));
        assert_eq!((world.count(Event::TooBig), world.guest_got().len()), (1, 1));
    }
}

/// RFC 5927 §4.1: a message that quotes nothing in flight is dropped, and one that would make segments
/// larger, or tiny, has no such effect.
#[test]
fn messages_that_quote_nothing_in_flight_are_dropped() {
    let mut world = opened(false);
    world.guest_gives(&data(false, at(0), &pattern(0, 4000)));
    world.turn();
    world.guest_got();
    let mut early = too_big(&data(false, at(0), &[]).frame(Side::Guest), false, 1400);
    assert_eq!(world.engine.handle_wire(world.now, &mut early), FromWire::Taken);
    world.epoch();
    for (seq, mtu) in [(at(4000), 1400), (at(0).wrapping_sub(1), 1400), (at(0), 1500), (at(0), 9000)] {
        let mut message = too_big(&data(false, seq, &[]).frame(Side::Guest), false, mtu);
        assert_eq!(world.engine.handle_wire(world.now, &mut message), FromWire::Taken);
    }
    assert_eq!((world.count(Event::TooBig), world.count(Event::TooBigRefused)), (0, 5));
    let mut tiny = too_big(&data(false, at(0), &[]).frame(Side::Guest), false, 68);
    assert_eq!(world.engine.handle_wire(world.now, &mut tiny), FromWire::Pass);
    world.client_got();
    world.run_ms(2000);
    assert_eq!(world.client_got()[0].payload.len(), 512, "the smallest MTU that is believed");
}

/// Messages about flows that are passed through, damaged ones and other ones are the guest's.
#[test]
fn other_messages_are_passed() {
    let mut world = opened(false);
    let about = data(false, at(0), &[]).ports(1, 2).frame(Side::Guest);
    let mut unknown = too_big(&about, false, 1400);
    assert_eq!(world.engine.handle_wire(world.now, &mut unknown), FromWire::Pass);
    world.guest_gives(&data(false, at(0), &pattern(0, 400)));
    world.epoch();
    let about = data(false, at(0), &[]).frame(Side::Guest);
    let mut damaged = too_big(&about, false, 1400);
    damaged[41] ^= 1;
    assert_eq!(world.engine.handle_wire(world.now, &mut damaged), FromWire::Pass);
    let mut unreachable = too_big(&about, false, 0);
    unreachable[35] = 1;
    assert_eq!(world.engine.handle_wire(world.now, &mut unreachable), FromWire::Pass);
    for len in 0..damaged.len() {
        let mut short = too_big(&about, false, 1400)[..len].to_vec();
        assert_eq!(world.engine.handle_wire(world.now, &mut short), FromWire::Pass, "{len}");
    }
}

/// RFC 1191 §6.5: while a flow joins, what is on its way is what the guest sent itself, and the guest
/// alone can cut it; the client leg, when it comes, cuts its segments too.
#[test]
fn a_message_about_what_the_guest_sent_itself_is_the_guests() {
    let mut world = World::new();
    world.engine.set_mode(world.now, Speculation::Hold);
    world.open();
    let first = Seg::data(at(0), C, &pattern(0, 1000));
    world.guest_passes(&first);
    world.epoch();
    world.engine.set_mode(world.now, Speculation::On);
    world.guest_gives(&Seg::data(at(1000), C, &pattern(1000, 1000)));
    assert_eq!(world.flow().state, FlowState::Joining);
    let message = too_big(&first.frame(Side::Guest), false, 600);
    let mut passed = message.clone();
    assert_eq!(world.engine.handle_wire(world.now, &mut passed), FromWire::Pass);
    assert_eq!(passed, message, "its number is one that the guest knows");
    world.epoch();
    world.client_got();
    world.client_sends(&Seg::ack(C, at(1000)));
    world.transmit();
    assert!(world.client_got().iter().all(|seen| seen.payload.len() <= 560));
}
