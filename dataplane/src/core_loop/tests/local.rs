//! From guest to guest on one host: small frames have no memory of a wire, large ones have.

use super::*;
use crate::guest::Offloads;

/// A core and two guests that have said who they are.
fn neighbours(inbound: usize) -> (Running, HeapDriver, HeapDriver) {
    let core = Running::new();
    let limits = Limits { inbound, ..Limits::default() };
    let config = || PortConfig { limits, ..PortConfig::default() };
    let (a, b) = (core.port(1, config()), core.port(2, config()));
    for (guest, number) in [(&a, 1), (&b, 2)] {
        guest.send(frame(number, 0));
        core.wire(1);
    }
    core.settle();
    (core, a, b)
}

/// Frame number `nth` of the first guest: most are small and for the second one.
fn nth_frame(nth: u32) -> Vec<u8> {
    let to = if nth % 5 == 3 { sample::CLIENT } else { mac(2) };
    let len = if nth % 7 == 4 { 600 } else { 60 + nth as usize % 100 };
    let mut bytes = sample::opaque(to, mac(1), len, 0);
    bytes[20..24].copy_from_slice(&nth.to_be_bytes());
    bytes
}

fn is_for_neighbour(bytes: &[u8]) -> bool {
    bytes.starts_with(&mac(2))
}

/// OC-2: small and large frames reach a neighbour and the wire in the order in which they were sent, whatever room
/// the neighbour has, held or not.
#[test]
fn frames_for_a_neighbour_keep_their_order_whatever_room_it_has() {
    for held in [false, true] {
        let (core, a, b) = neighbours(4096);
        if held {
            core.handle.set_mode(&ONE, COMMIT).expect("protected");
        }
        b.set_room(Some(0));
        let sent: Vec<_> = (0..600).map(nth_frame).collect();
        let (mut at_neighbour, mut at_wire) = (Vec::new(), Vec::new());
        let mut epoch = 1;
        let mut rest = sent.as_slice();
        for room in [Some(3), Some(40), None, Some(0), Some(17)].into_iter().cycle() {
            if at_neighbour.len() + at_wire.len() == sent.len() {
                break;
            }
            let (now, later) = rest.split_at(rest.len().min(50));
            rest = later;
            now.iter().for_each(|bytes| a.send(bytes.clone()));
            b.set_room(room);
            core.settle();
            if held {
                core.handle.cut(&ONE, EpochId::new(epoch), false).expect("cut");
                core.handle.release(&ONE, token(1, epoch)).expect("released");
                epoch += 1;
            }
            core.settle();
            at_neighbour.extend(b.take().into_iter().map(|(_, bytes)| bytes));
            at_wire.extend(core.peer.take());
        }
        let (for_neighbour, for_wire): (Vec<_>, Vec<_>) =
            sent.into_iter().partition(|bytes| is_for_neighbour(bytes));
        assert_eq!(at_neighbour, for_neighbour, "held: {held}");
        assert_eq!(at_wire, for_wire, "held: {held}");
    }
}

/// Few that waited for long, and then many: none is lost while the queue has room, wherever in their ring the few are.
#[test]
fn a_queue_of_few_that_becomes_one_of_many_loses_none() {
    for few in 40..56 {
        let (core, a, b) = neighbours(1000);
        let mut sent = Vec::new();
        let mut send = |nth: u32| {
            let mut bytes = frame(1, 0);
            bytes[..6].copy_from_slice(&mac(2));
            bytes[20..24].copy_from_slice(&nth.to_be_bytes());
            a.send(bytes.clone());
            sent.push(bytes);
        };
        b.set_room(Some(0));
        (0..3).for_each(&mut send);
        core.settle();
        for nth in 3..few {
            send(nth);
            b.set_room(Some(1));
            core.settle();
        }
        (few..500).for_each(&mut send);
        wait_until(|| core.count(2, PortCounter::Received) == 500);
        b.set_room(None);
        let mut got = Vec::new();
        wait_until(|| {
            got.extend(b.take().into_iter().map(|(_, bytes)| bytes));
            got.len() + core.drops(2, DropReason::InboundFull) as usize >= 500
        });
        assert!(got == sent, "{few}: {} of 500", got.len());
    }
}

/// RB-1: a neighbour that takes nothing loses what its queue cannot hold, and keeps nobody from the wire.
#[test]
fn a_neighbour_that_takes_nothing_loses_what_its_queue_cannot_hold() {
    let (core, a, b) = neighbours(100);
    b.set_room(Some(0));
    for nth in 0..300 {
        let mut bytes = frame(1, 0);
        bytes[..6].copy_from_slice(&mac(2));
        bytes[20] = nth as u8;
        a.send(bytes);
    }
    a.send(frame(1, 9));
    assert_eq!(core.wire(1), [frame(1, 9)]);
    core.settle();
    assert_eq!(core.drops(2, DropReason::InboundFull), 200);
    b.set_room(None);
    let mut got = 0;
    wait_until(|| {
        got += b.take().len();
        got == 100
    });
}

/// FO-1: a fenced guest hears nothing of a neighbour.
#[test]
fn a_fenced_neighbour_is_given_nothing() {
    let (core, a, b) = neighbours(100);
    core.handle.fence(&[PortId(2)]).expect("fenced");
    let mut bytes = frame(1, 0);
    bytes[..6].copy_from_slice(&mac(2));
    a.send(bytes);
    wait_until(|| core.drops(2, DropReason::Fenced) == 1);
    assert!(b.take().is_empty());
}

/// Small frames that waited for a driver that took them as they are do not reach the next one, which does not.
#[test]
fn what_waited_for_another_driver_is_dropped() {
    let (core, a, b) = neighbours(100);
    b.set_room(Some(0));
    let mut bytes = frame(1, 0);
    bytes[..6].copy_from_slice(&mac(2));
    a.send(bytes);
    wait_until(|| core.count(2, PortCounter::Received) == 1);
    core.settle();
    b.set_offloads(Offloads { checksum: true, ..Offloads::default() });
    b.set_room(None);
    wait_until(|| core.drops(2, DropReason::Stale) == 1);
    assert!(b.take().is_empty());
}
