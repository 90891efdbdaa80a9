//! RB-1: whatever comes in.

use super::world::*;
use crate::key::Side;
use crate::*;
use proptest::prelude::*;

/// A frame that is nearly right.
#[derive(Clone, Debug)]
struct Nearly {
    from_guest: bool,
    v6: bool,
    seq: i32,
    ack: i32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    len: usize,
    checksum_done: bool,
    edits: Vec<(prop::sample::Index, u8)>,
    cut: Option<prop::sample::Index>,
}

fn nearly() -> impl Strategy<Value = Nearly> {
    let options = prop_oneof![
        Just(crate::options::timestamps(300, 101).to_vec()),
        Just(RICH_OPTIONS.to_vec()),
        Just(vec![]),
        prop::collection::vec(any::<u8>(), 0..41).prop_map(|mut bytes| {
            bytes.truncate(bytes.len() / 4 * 4);
            bytes
        }),
    ];
    let near = || prop_oneof![4 => -3000..3000, 1 => any::<i32>()];
    let flags = prop_oneof![
        6 => Just(0x10u8), 2 => Just(0x18u8), 1 => Just(0x11u8), 1 => Just(0x14u8),
        1 => Just(2u8), 1 => Just(0x12u8), 2 => any::<u8>(),
    ];
    let len = prop_oneof![Just(0usize), 1usize..1500, Just(40_000usize)];
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let first = (any::<bool>(), any::<bool>(), near(), near(), flags, any::<u16>());
    let second =
        (options, len, any::<bool>(), edits, prop::option::weighted(0.1, any::<prop::sample::Index>()));
    (first, second).prop_map(|(first, (options, len, checksum_done, edits, cut))| {
        let (from_guest, v6, seq, ack, flags, window) = first;
        Nearly { from_guest, v6, seq, ack, flags, window, options, len, checksum_done, edits, cut }
    })
}

impl Nearly {
    fn frame(&self) -> Vec<u8> {
        let (seq, ack) = if self.from_guest { (G, C) } else { (C, G) };
        let segment = Seg {
            v6: self.v6,
            seq: seq.wrapping_add(self.seq as u32),
            ack: ack.wrapping_add(self.ack as u32),
            flags: self.flags,
            window: self.window,
            options: self.options.clone(),
            payload: pattern(self.seq as u32, self.len),
            ..Seg::ack(0, 0)
        };
        let mut frame = segment.frame(if self.from_guest { Side::Guest } else { Side::Client });
        for (place, byte) in &self.edits {
            let place = place.index(frame.len().min(120));
            frame[place] = *byte;
        }
        if let Some(cut) = self.cut {
            frame.truncate(cut.index(frame.len()));
        }
        frame
    }
}

/// RB-1, RFC 5961 §5.2: a client that confirms what lies far beyond its guest's window is not believed, even
/// where the guest may have sent more than was seen of it; the backup takes the epoch.
#[test]
fn a_client_that_confirms_what_was_never_sent_is_not_believed() {
    let mut world = World::new();
    world.open_with(&RICH_OPTIONS);
    let nearly = |from_guest, ack, flags, window, options: &[u8]| Nearly {
        from_guest,
        v6: false,
        seq: 0,
        ack,
        flags,
        window,
        options: options.to_vec(),
        len: 0,
        checksum_done: false,
        edits: vec![],
        cut: None,
    };
    let stamps = crate::options::timestamps(300, 101);
    // The option in the middle has a length that no option has: the flow is passed for good.
    for one in [
        nearly(false, 0, 0x10, 0, &stamps),
        nearly(true, 0, 0x11, 0, &[1, 1, 1, 2]),
        nearly(false, 2_143_134_336, 0x10, 34107, &stamps),
    ] {
        let mut frame = one.frame();
        if one.from_guest {
            let whole = GuestFrame { head: &frame, frame: &&frame[..], checksum_done: false };
            assert_eq!(world.engine.handle_guest(world.now, &whole), FromGuest::Pass);
        } else {
            let far = one.ack != 0;
            assert!(world.engine.handle_wire(world.now, &mut frame) == FromWire::Pass || !far);
        }
        world.turn();
    }
    world.epoch();
    assert_eq!(world.ledger.flows(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// RB-1: no frames of a guest or a client make the engine panic, whatever the flow has been through;
    /// what it holds stays within its bounds, and its backup takes all that it writes.
    #[test]
    fn no_frames_make_the_engine_panic(
        known: bool,
        frames in prop::collection::vec((nearly(), 0u8..10), 1..40),
    ) {
        let mut world = World::new();
        if known {
            world.open_with(&RICH_OPTIONS);
        }
        for (nearly, step) in frames {
            let mut frame = nearly.frame();
            if nearly.from_guest {
                let head = &frame[..frame.len().min(256)];
                let whole = GuestFrame { head, frame: &&frame[..], checksum_done: nearly.checksum_done };
                if world.engine.handle_guest(world.now, &whole) == FromGuest::Pass {
                    world.engine.release(world.now, &mut frame);
                }
            } else if world.engine.handle_wire(world.now, &mut frame) == FromWire::Pass {
                world.engine.release(world.now, &mut frame);
            }
            match step {
                0 => world.epoch(),
                1 => { world.seal(); }
                2 => world.run_ms(500),
                3 => world.engine.set_mode(world.now, Speculation::Hold),
                4 => world.engine.set_mode(world.now, Speculation::On),
                _ => world.turn(),
            }
            prop_assert!(world.engine.held_bytes() <= 4 << 20);
        }
        world.epoch();
        let flows = world.engine.flows().filter(|flow| flow.state != FlowState::Opening).count();
        // Of handshakes it knows those with a lent scale.
        let kept = world.ledger.kept().filter(|kept| kept.row.record().is_some()).count();
        prop_assert_eq!(kept, flows);
        world.fail_over();
        world.run_ms(1000);
    }

    #[test]
    fn no_bytes_make_the_engine_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut world = World::new();
        let mut frame = bytes.clone();
        let seen = world.engine.handle_wire(world.now, &mut frame);
        prop_assert_eq!((seen, &frame), (FromWire::Pass, &bytes));
        let whole = GuestFrame { head: &bytes[..bytes.len().min(256)], frame: &&bytes[..], checksum_done: true };
        prop_assert_eq!(world.engine.handle_guest(world.now, &whole), FromGuest::Pass);
        world.engine.release(world.now, &mut frame);
        prop_assert_eq!(&frame, &bytes);
    }
}

/// A guest that changes its memory while it is read gets what was read, and harms nobody.
#[test]
fn a_guest_that_changes_its_frame_while_it_is_read_changes_nothing_else() {
    struct Shifting(Vec<u8>, std::cell::Cell<u8>);
    impl Payload for Shifting {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn copy_to(&self, offset: usize, out: &mut [u8]) {
            self.0.as_slice().copy_to(offset, out);
            self.1.set(self.1.get().wrapping_add(1));
            out.iter_mut().for_each(|byte| *byte = byte.wrapping_add(self.1.get()));
        }
    }
    let mut world = World::new();
    world.open();
    for round in 0..8 {
        let frame = Seg::data(at(round * 100), C, &pattern(0, 500)).frame(Side::Guest);
        let head = frame[..54].to_vec();
        let shifting = Shifting(frame, std::cell::Cell::new(0));
        let whole = GuestFrame { head: &head, frame: &shifting, checksum_done: round % 2 == 0 };
        assert_eq!(world.engine.handle_guest(world.now, &whole), FromGuest::Taken);
        world.epoch();
    }
}

/// A fence drops all: nothing leaves afterwards, and the engine can be used again.
#[test]
fn a_fenced_engine_has_nothing_left() {
    let mut world = World::new();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, &pattern(0, 5000)));
    world.seal();
    world.engine.discard();
    let epoch = world.sealed[0].0;
    world.engine.commit(world.now, epoch);
    world.transmit();
    world.speak();
    assert_eq!(
        (world.engine.held_bytes(), world.engine.flows().count(), world.client_got().len()),
        (0, 0, 0)
    );
    assert_eq!(world.engine.next_deadline(), None);
    world.sealed.clear();
    world.ledger = Ledger::new(limits(&config()));
    world.seal_whole();
    world.commit_all();
    world.open();
    world.guest_gives(&Seg::data(at(0), C, b"again"));
    world.epoch();
    assert_eq!(world.client_got()[0].payload, b"again");
}
