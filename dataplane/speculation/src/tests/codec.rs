//! The flow table on its way to the backup.

use super::world::*;
use crate::delta::{Reader, Record, VERSION, Writer};
use crate::ledger::LedgerError;
use crate::*;
use proptest::prelude::*;

fn record_of(world: &World) -> Record {
    let (_, entry) = world.engine.table.iter().next().expect("a flow");
    let crate::table::Flow::Connection(connection) = &entry.flow else { panic!("{entry:?}") };
    connection.record(&entry.key)
}

/// A world with a flow in the middle of everything, and an epoch of it that is not committed.
fn busy() -> World {
    let mut world = World::new();
    world.open_with(&RICH_OPTIONS);
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 5000)).times(200, 101));
    world.epoch();
    world.client_sends(&Seg::ack(C, at(1200)).times(120, 200));
    world.client_sends(&Seg::data(C, at(1200), b"hello").times(121, 200)).expect("data");
    world.guest_gives(&Seg::data(at(5000), C + 5, &pattern(5000, 3000)).times(201, 121));
    world.seal();
    world
}

/// A state of one flow in the first place, without bytes.
fn state_of(generation: u32, record: &Record) -> Vec<u8> {
    let mut state = Vec::new();
    let mut writer = Writer(&mut state);
    let at = writer.head(false);
    writer.u32(0);
    writer.u8(1);
    writer.u32(generation);
    writer.record(record);
    writer.set_count(at, 1);
    state
}

#[test]
fn what_is_written_of_a_flow_is_read_again() {
    let record = record_of(&busy());
    let mut bytes = Vec::new();
    Writer(&mut bytes).record(&record);
    let mut reader = Reader(&bytes);
    assert_eq!(reader.record(), Ok(record));
    assert!(reader.is_empty());
}

/// SP-2: an epoch is refused when the stream did not bring all bytes that its state speaks of, or when
/// bytes were acknowledged that are not in it. Nothing changes then.
#[test]
fn an_epoch_whose_bytes_are_not_all_here_is_refused() {
    let mut world = busy();
    let (_, state, stream) = world.sealed.remove(0);
    let before = world.ledger.held_bytes();
    for cut in [0, 16 + 984] {
        let fault = world.ledger.apply(&state, &stream[..cut]).expect_err("bytes are missing");
        assert!(matches!(fault, LedgerError::MissingBytes { .. }), "{fault}");
        assert_eq!((world.ledger.held_bytes(), world.ledger.flows()), (before, 1));
    }
    let mut other = stream.clone();
    other[4] ^= 1;
    assert!(world.ledger.apply(&state, &other).is_err(), "bytes of another incarnation are not its own");
    let mut record = record_of(&world);
    record.guest.acked = record.end + 1;
    record.guest.next = record.end + 1;
    let fault = world.ledger.apply(&state_of(1, &record), &stream).expect_err("an ACK without its byte");
    assert!(matches!(fault, LedgerError::AheadOfBytes { .. }), "{fault}");
    world.ledger.apply(&state, &stream).expect("the truth is taken");
    assert_eq!(world.ledger.held_bytes(), 6800);
}

/// SP-2: what was kept of a flow is not what a later flow in its place holds.
#[test]
fn bytes_of_the_flow_that_was_in_a_place_before_are_no_bytes_of_the_next() {
    let mut world = busy();
    let record = record_of(&world);
    let (_, state, stream) = world.sealed.remove(0);
    world.ledger.apply(&state, &stream).expect("the epoch is taken");
    world.ledger.check(&state_of(1, &record), &[]).expect("the same flow has its bytes still");
    for verdict in [Ledger::check, Ledger::apply_parts] {
        let fault =
            verdict(&mut world.ledger, &state_of(2, &record), &[]).expect_err("another flow has none");
        assert!(matches!(fault, LedgerError::MissingBytes { slot: 0, .. }), "{fault}");
        assert_eq!(world.ledger.held_bytes(), 6800);
    }
}

#[test]
fn a_state_of_another_version_or_beyond_the_limits_is_refused() {
    let mut world = busy();
    let (_, mut state, stream) = world.sealed.remove(0);
    let mut small = Ledger::new(LedgerLimits { max_flows: 1, held_bytes: 2000 });
    assert_eq!(small.apply(&[], &[]), Err(LedgerError::Malformed("it ends too early")));
    let mut whole = Vec::new();
    world.engine.cut(world.epoch, true, &mut whole);
    assert_eq!(small.apply(&whole, &[]), Err(LedgerError::TooMuch));
    let mut none = Ledger::new(LedgerLimits { max_flows: 0, held_bytes: 1 << 20 });
    assert_eq!(none.apply(&whole, &[]), Err(LedgerError::TooMuch));
    state[0] = VERSION as u8 + 1;
    let refused = world.ledger.apply(&state, &stream);
    assert_eq!(refused, Err(LedgerError::Version { found: VERSION + 1, known: VERSION }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// RB-1: whatever a peer sends instead of a state or a stream, nothing panics, nothing grows beyond
    /// the limits, and a refusal changes nothing. What is taken can be restored.
    #[test]
    fn no_bytes_of_a_peer_make_the_ledger_or_the_engine_panic(
        whole: bool,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut world = busy();
        let (_, mut state, mut stream) = world.sealed.remove(0);
        if whole {
            state.clear();
            world.engine.cut(world.epoch, true, &mut state);
        }
        for (place, byte, in_state) in edits {
            let bytes = if in_state { &mut state } else { &mut stream };
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            state.truncate(cut.index(state.len()));
        }
        let before = (world.ledger.held_bytes(), world.ledger.flows());
        match world.ledger.apply(&state, &stream) {
            Err(_) => prop_assert_eq!((world.ledger.held_bytes(), world.ledger.flows()), before),
            Ok(()) => prop_assert!(world.ledger.held_bytes() <= 6 << 20),
        }
        let mut engine = Engine::new(config());
        engine.restore(world.now, world.ledger.clone());
        let mut sink = Frames::with_room(100);
        engine.poll_guest(world.now, &mut sink);
        engine.poll_wire(world.now, 100, &mut sink);
        engine.set_mode(world.now, Speculation::On);
        engine.poll_guest(world.now, &mut sink);
        let mut out = Vec::new();
        engine.cut(world.epoch, true, &mut out);
        let mut second = Ledger::new(limits(&config()));
        prop_assert_eq!(second.apply(&out, &[]), Ok(()));
    }

    #[test]
    fn bytes_that_are_no_state_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut ledger = Ledger::new(limits(&config()));
        let mut framed = VERSION.to_le_bytes().to_vec();
        framed.extend(&bytes);
        let empty = bytes.len() == 5 && bytes[0] <= 1 && bytes[1..] == [0; 4];
        prop_assert_eq!(ledger.apply(&framed, &[]).is_ok(), empty);
    }
}
