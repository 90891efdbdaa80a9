//! One flow from its handshake to its end.

use super::world::*;
use crate::*;
use holdfast_packet::headers::flag::{ACK, FIN, PSH, RST};

/// SP-1, OC-1, SP-3: a byte is acknowledged once it is held and streamed, leaves when its epoch is
/// committed, and is freed when the client confirms it.
#[test]
fn a_byte_is_held_streamed_acknowledged_committed_sent_and_freed() {
    let mut world = World::new();
    world.open();
    assert_eq!(world.flow().state, FlowState::Speculating);
    let bytes = pattern(0, 2500);
    world.guest_gives(&Seg::data(at(0), C, &bytes));
    world.speak();
    assert_eq!(world.guest_got(), [], "what is not streamed is not acknowledged");
    world.turn();
    let acks = world.guest_got();
    assert_eq!(acks.len(), 1, "one for the burst");
    assert_eq!((acks[0].seq, acks[0].ack, acks[0].flags), (C, at(2500), ACK));
    assert_eq!(world.client_got(), [], "nothing leaves before its commit");
    assert_eq!((world.flow().held_bytes, world.flow().ahead_bytes), (2500, 2500));
    world.seal();
    assert_eq!(world.client_got(), []);
    world.commit();
    let sent = world.client_got();
    assert_eq!(sent.iter().map(|seen| seen.payload.len()).collect::<Vec<_>>(), [1000, 1000, 500]);
    assert_eq!(sent.iter().flat_map(|seen| seen.payload.clone()).collect::<Vec<_>>(), bytes);
    assert_eq!(sent.iter().map(|seen| seen.seq).collect::<Vec<_>>(), [at(0), at(1000), at(2000)]);
    assert_eq!(sent[2].flags, ACK | PSH);
    assert_eq!(world.ledger.held_bytes(), 2500);
    assert_eq!(world.client_sends(&Seg::ack(C, at(1000))), None, "a pure ACK is consumed");
    assert_eq!(world.engine.held_bytes(), 1500);
    world.client_sends(&Seg::ack(C, at(2500)));
    assert_eq!((world.engine.held_bytes(), world.flow().ahead_bytes), (0, 0));
    world.epoch();
    assert_eq!(world.ledger.held_bytes(), 0);
}

/// The FIN of the guest leaves behind all bytes; its real ACK is relayed, none is forged.
#[test]
fn a_fin_of_the_guest_is_acknowledged_by_the_client_alone() {
    let mut world = World::new();
    world.open();
    let last = Seg::data(at(0), C, &pattern(0, 100)).flags(FIN_ACK);
    world.guest_gives(&last);
    world.turn();
    assert_eq!(world.guest_got().last().expect("an ACK").ack, at(100), "the FIN lies beyond");
    world.epoch();
    let sent = world.client_got();
    assert_eq!((sent.len(), sent[0].payload.len(), sent[0].flags & FIN), (1, 100, FIN));
    assert_eq!(world.client_sends(&Seg::ack(C, at(100))), None);
    // The guest asks again; its bytes are there, its FIN is not.
    world.guest_gives(&last);
    world.turn();
    assert_eq!(world.guest_got().last().expect("an ACK").ack, at(100));
    let relayed = world.client_sends(&Seg::ack(C, at(101))).expect("the guest needs it");
    assert_eq!((relayed.ack, relayed.seq), (at(101), C));
    assert_eq!(world.flow().state, FlowState::Finished);
    let end = world.client_sends(&Seg::ack(C, at(101)).flags(FIN_ACK)).expect("the client's FIN is passed");
    assert_eq!(end.ack, at(101));
}

/// RFC 9293 §3.6: the client may close its half first; the guest goes on speaking.
#[test]
fn a_half_closed_flow_goes_on_speculating() {
    let mut world = World::new();
    world.open();
    world.client_sends(&Seg::ack(C, at(0)).flags(FIN_ACK)).expect("a FIN is passed");
    world.guest_gives(&Seg::data(at(0), C + 1, &pattern(0, 10)));
    world.turn();
    let acks = world.guest_got();
    let forged = acks.last().expect("an ACK");
    assert_eq!((forged.seq, forged.ack), (C + 1, at(10)));
    world.epoch();
    let sent = world.client_got();
    assert!(sent.iter().any(|seen| seen.payload == pattern(0, 10) && seen.ack == C + 1), "{sent:?}");
}

/// A guest that opens the connection itself is taken from its first byte on.
#[test]
fn a_flow_that_the_guest_opens_speculates() {
    use holdfast_packet::headers::flag::SYN;
    let mut world = World::new();
    let syn = Seg::ack(GUEST_ISS, 0).flags(SYN).options(&RICH_OPTIONS);
    world.guest_passes(&syn);
    world.epoch();
    let answer = Seg::ack(CLIENT_ISS, G).flags(SYN | ACK).window(65000).options(&RICH_OPTIONS);
    let passed = world.client_sends(&answer).expect("an answer is passed");
    assert!(passed.window < 65000, "the guest sees what is there for it");
    world.guest_passes(&Seg::ack(G, C).times(101, 100));
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 1000)).times(102, 100));
    world.client_got();
    world.turn();
    assert_eq!(world.guest_got().last().expect("an ACK").ack, at(1000));
    world.epoch();
    let sent = world.client_got();
    let lens = sent.iter().map(|seen| seen.payload.len()).collect::<Vec<_>>();
    assert_eq!(lens, [0, 988, 12], "the guest's own ACK, and segments with 12 bytes of timestamps");
}

/// The guest's reset leaves after its commit and after the bytes before it (RFC 9293 §3.5.2).
#[test]
fn a_reset_of_the_guest_waits_for_the_bytes_before_it() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    let reset = Seg::ack(at(100), C).flags(RST | ACK);
    world.guest_gives(&reset);
    assert_eq!(world.client_sends(&Seg::data(C, at(0), b"late")), None, "the guest is not there any more");
    world.epoch();
    assert!(world.client_got().iter().all(|seen| seen.flags & RST == 0));
    world.client_sends(&Seg::ack(C, at(100)));
    world.turn();
    let sent = world.client_got();
    assert_eq!((sent.len(), sent[0].flags & RST, sent[0].seq), (1, RST, at(100)));
    assert_eq!(world.engine.flows().count(), 0);
}

/// RFC 5961 §3.2: a reset that is not exactly at RCV.NXT is the guest's to judge; it frees nothing.
#[test]
fn a_reset_of_the_client_ends_a_flow_only_if_it_is_exact() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.turn();
    for wrong in [C + 1, C - 1, C + 400] {
        world.client_sends(&Seg::ack(wrong, at(0)).flags(RST | ACK)).expect("the guest answers it");
        assert_eq!(world.engine.held_bytes(), 100);
    }
    let passed = world.client_sends(&Seg::ack(C, at(0)).flags(RST | ACK)).expect("it is for the guest");
    assert_eq!((passed.ack, passed.flags), (at(100), RST | ACK), "the guest accepts it");
    assert_eq!((world.engine.held_bytes(), world.flow().state), (0, FlowState::Finished));
    world.epoch();
    assert_eq!(world.client_got(), []);
    assert_eq!(world.ledger.held_bytes(), 0);
}

/// RFC 9293 §3.8.3: a client that is silent beyond R2 is given up, and the guest is told.
#[test]
fn the_guest_of_a_silent_client_gets_a_reset() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.turn();
    world.epoch();
    world.guest_got();
    world.run_ms(200_000);
    assert!(world.client_got().len() > 5, "it was tried again and again");
    let told = world.guest_got();
    assert_eq!((told.len(), told[0].flags, told[0].seq), (1, RST | ACK, C));
    assert_eq!(world.count(Event::ClientsSilent), 1);
    assert_eq!(world.engine.held_bytes(), 0);
}

/// RFC 6191, RFC 9293 §3.10.7.4: a SYN of the guest ends the old incarnation; bytes never mix.
#[test]
fn a_new_connection_with_the_same_ends_begins_with_nothing() {
    use holdfast_packet::headers::flag::SYN;
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 100)));
    world.epoch();
    world.client_got();
    let again = 77_000;
    world.guest_passes(&Seg::ack(again, 0).flags(SYN).options(&SYN_OPTIONS));
    assert_eq!(world.engine.held_bytes(), 0);
    world.epoch();
    assert_eq!((world.ledger.held_bytes(), world.ledger.flows()), (0, 0));
    world.client_sends(&Seg::ack(9000, again + 1).flags(SYN | ACK).window(60000).options(&SYN_OPTIONS));
    world.guest_gives(&Seg::data(again + 1, 9001, b"new"));
    world.epoch();
    let sent = world.client_got();
    assert_eq!(sent.last().expect("a segment").payload, b"new");
    assert!(sent.iter().all(|seen| seen.payload.len() < 100));
    assert_eq!(world.count(Event::FlowsReplaced), 1);
}
