//! Pairs of queues that another core carries for the card's own: what is between the two cores.

use crate::driver::{GuestRam, descriptor};
use crate::host::{Host, SOON, device_config, token, wait_until};
use crate::machine::{Machine, RX, TX};
use holdfast_dataplane::counters::PortCounter;
use holdfast_dataplane::guest::{GuestPort, Verdict};
use holdfast_dataplane::heap::HeapWire;
use holdfast_dataplane::sample::Offloaded;
use holdfast_dataplane::{Card, Core, IdlePolicy, Limits, Mode, PortConfig, PortId, sample};
use holdfast_epoch::{EpochId, Term};
use holdfast_vhost_user::{Device, MemoryFiles};
use std::thread;
use std::time::Instant;

const PORT: [PortId; 1] = [PortId(1)];

/// The second core carries the second pair.
const SECOND: [usize; 2] = [0, 1];

/// Escrow for so few frames.
fn few() -> Limits {
    Limits { frames: 4, ..Limits::default() }
}

fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut bytes = sample::opaque(sample::CLIENT, sample::GUEST, len, 0);
    bytes[20..24].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn protected() -> (Host, std::path::PathBuf) {
    let mut host = Host::new();
    let path = host.device_over(1, &SECOND, PortConfig { limits: few(), ..PortConfig::default() });
    host.handle.set_mode(&PORT, Mode::Commit { first: EpochId::FIRST }).expect("protected");
    (host, path)
}

/// OC-1, OC-2: when the escrow is full the guest waits, and has not its buffers back; at a stop it has. What was on its way
/// when an epoch was cut and found no room is output of a later one; nothing is lost, and all of it comes in order.
#[test]
fn a_full_escrow_leaves_frames_with_the_guest() {
    const SENT: u32 = 42;
    let ram = GuestRam::new();
    let (host, path) = protected();
    let mut machine = Machine::boot_of_pairs(&path, &ram, 2);
    (0..SENT).for_each(|number| machine.send_by(1, &frame(number, 1500)));
    machine.wait_taken_by(1, 4);
    host.settle();
    machine.wait_taken_by(1, 4);
    let mut out = Vec::new();
    for epoch in 1.. {
        if out.len() as u32 == SENT {
            break;
        }
        machine.stop();
        let cut = host.handle.cut(&PORT, EpochId::new(epoch), false).expect("cut").frames;
        let left = u64::from(SENT) - out.len() as u64;
        assert_eq!(cut, left.min(4), "epoch {epoch}");
        machine.cont();
        host.settle();
        assert!(host.peer.take().is_empty(), "not committed yet");
        host.handle.release(&PORT, token(1, epoch)).expect("released");
        out.extend(host.wire(cut as usize));
        let due = (left - cut).min(4);
        wait_until(|| host.handle.status(&PORT).expect("a status")[0].held.frames >= due);
    }
    let expected: Vec<_> = (0..SENT).map(|number| frame(number, 1500)).collect();
    assert_eq!(out, expected);
    machine.wait_taken_by(1, SENT as u16);
}

/// What a driver has put into a pair before it gives that up comes out, also out of a lane.
#[test]
fn what_was_sent_before_a_carried_pair_was_disabled_still_goes_out() {
    let ram = GuestRam::new();
    let (host, path) = protected();
    let mut machine = Machine::boot_of_pairs(&path, &ram, 2);
    (0..12).for_each(|number| machine.send_by(1, &frame(number, 64)));
    machine.wait_taken_by(1, 4);
    machine.enable(1, false);
    for (epoch, held) in [(1, 4), (2, 4), (3, 0)] {
        machine.stop();
        host.handle.cut(&PORT, EpochId::new(epoch), false).expect("cut");
        machine.cont_with(&[true, false]);
        host.handle.release(&PORT, token(1, epoch)).expect("released");
        wait_until(|| host.handle.status(&PORT).expect("a status")[0].held.frames == held);
    }
    assert_eq!(host.wire(12), (0..12).map(|number| frame(number, 64)).collect::<Vec<_>>());
}

/// FO-1: behind a fence nothing is taken from a guest, nor does a carrying core wake up for it again and again. What a
/// guest that is gone had in a lane never comes out, when the fence falls for another one.
#[test]
fn what_a_lost_guest_said_does_not_come_out_behind_the_fence() {
    let mut host = Host::new();
    let path = host.device_over(1, &SECOND, PortConfig { limits: few(), ..PortConfig::default() });
    host.handle.set_mode(&PORT, Mode::Commit { first: EpochId::FIRST }).expect("protected");
    let old = GuestRam::new();
    let mut machine = Machine::boot_of_pairs(&path, &old, 2);
    (0..9).for_each(|number| machine.send_by(1, &frame(number, 64)));
    machine.wait_taken_by(1, 4);
    host.settle();
    host.handle.fence(&PORT).expect("fenced");
    // What was in the lane is dropped there, and its buffers go back.
    machine.wait_taken_by(1, 9);
    machine.send_by(1, &frame(9, 64));
    host.settle();
    host.wait_asleep();
    machine.wait_taken_by(1, 9);
    assert_eq!(host.carried()[0], 9, "the tenth stays with its guest");
    drop(machine);
    wait_until(|| host.devices[0].snapshot().rings_running == [false; 4]);
    let new = GuestRam::new();
    let mut machine = Machine::boot_of_pairs(&path, &new, 2);
    host.handle.unfence(&PORT, Term::new(2)).expect("admitted");
    host.handle.set_mode(&PORT, Mode::Native).expect("alone");
    machine.send_by(1, &frame(10, 64));
    assert_eq!(host.wire(1), [frame(10, 64)]);
}

/// OC-2: Linux takes a flow to another pair when nothing of it is in a queue any more. What is in a lane is.
#[test]
fn a_frame_in_a_lane_is_in_the_guests_queue_still() {
    let ram = GuestRam::new();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("net1");
    let new_core = || Core::<HeapWire>::new(Vec::new(), IdlePolicy::Poll, None).expect("a core");
    let ((_core, handle), (mut second, carrying)) = (new_core(), new_core());
    let thread = thread::spawn(move || second.run());
    let config = device_config(&path, 1, &MemoryFiles::default());
    let wakers = vec![handle.waker(), carrying.waker()];
    let (device, mut endpoints) = Device::spawn_over(config, wakers, &[1]).expect("a device");
    let ends = carrying.carry(endpoints.remove(1), &handle).expect("carried");
    let mut card = Card::new(endpoints.remove(0)).with_carried(ends);
    let mut machine = Machine::boot(&path, &ram);
    machine.send(&frame(1, 64));
    machine.send(&frame(2, 64));
    wait_until(|| carrying.counters().core.get("carried_frames") == 2);
    for taken in 1..=2 {
        // Two whole turns of the carrying core.
        (0..9).for_each(|_| drop(carrying.status(&[]).expect("the core answers")));
        assert_eq!(machine.queues[TX].used_index(), taken - 1, "nobody has taken it yet");
        card.capture(1, &mut |_, _| Verdict::Taken);
        card.flush();
        machine.wait_taken(taken);
    }
    drop((card, machine, device));
    carrying.stop();
    thread.join().expect("it ends");
}

/// A core that is gone keeps no other from leaving its rings when the connection ends.
#[test]
fn all_rings_are_left_though_the_cards_core_is_gone() {
    let ram = GuestRam::new();
    let mut host = Host::new();
    let path = host.device_over(1, &SECOND, PortConfig::default());
    let machine = Machine::boot_of_pairs(&path, &ram, 2);
    host.handle.remove_ports(&PORT).expect("removed");
    drop(machine);
    wait_until(|| host.devices[0].snapshot().rings_running == [false; 4]);
}

/// RB-1: a guest that breaks rings of two cores at once, and is stopped and started, is found broken each time.
#[test]
fn faults_on_two_cores_at_once_stop_the_device() {
    for map in [SECOND, [1, 0]] {
        let ram = GuestRam::new();
        let mut host = Host::new();
        let path = host.device_over(1, &map, PortConfig::default());
        let mut machine = Machine::boot_of_pairs(&path, &ram, 2);
        for pair in 0..2 {
            machine.queues[2 * pair + TX].set_descriptor(0, descriptor(1 << 60, 64, 0, 0));
            machine.queues[2 * pair + TX].offer(0);
        }
        machine.kick();
        for _ in 0..50 {
            wait_until(|| host.devices[0].snapshot().rings_running == [false; 4]);
            machine.stop();
            machine.cont();
            machine.kick();
        }
    }
}

/// A client's segments of one flow that the guest receives by the second pair, as one large frame when it takes those.
fn segments(host: &Host) -> sample::Tcp {
    let mut whole = sample::Tcp::data(false, vec![7; 20 * 1400]);
    (whole.source, whole.destination) = (sample::CLIENT, sample::GUEST);
    for (nth, chunk) in whole.payload.chunks(1400).enumerate() {
        let mut segment = whole.clone();
        segment.sequence = whole.sequence.wrapping_add(1400 * nth as u32);
        segment.payload = chunk.to_vec();
        assert!(host.peer.put(&segment.bytes()), "memory for frames");
    }
    whole
}

fn coalesced(host: &Host) -> u64 {
    let counted = host.handle.port_counters(PortId(1)).expect("a port");
    counted.events.get(PortCounter::Coalesced)
}

/// The guest sends in the other direction of that flow, by the second pair.
fn steer(host: &Host, machine: &mut Machine<'_>) {
    let said = sample::Tcp::data(false, vec![7; 40]);
    let mut bytes = sample::Tcp { ports: (said.ports.1, said.ports.0), ..said }.bytes();
    let (source, destination): ([u8; 4], [u8; 4]) =
        (bytes[26..30].try_into().expect("an address"), bytes[30..34].try_into().expect("an address"));
    bytes[26..30].copy_from_slice(&destination);
    bytes[30..34].copy_from_slice(&source);
    machine.send_by(1, &bytes);
    host.wire(1);
}

/// Large frames go both ways. What was merged for a driver that is gone when its pair runs again is not given to the
/// next one, which cannot take it; and nothing blocks the pair.
#[test]
fn a_frame_that_was_merged_for_another_driver_is_dropped() {
    let ram = GuestRam::new();
    let mut host = Host::new();
    let path = host.device_over(1, &SECOND, PortConfig::default());
    let mut machine = Machine::boot_of_pairs(&path, &ram, 2);
    let large = sample::Tcp::data(false, vec![5; 12_000]);
    let (header, bytes) = large.offloaded(1400);
    machine.send_offloaded_by(1, &header, &bytes);
    assert_eq!(host.wire(9).iter().map(Vec::len).sum::<usize>(), 12_000 + 9 * (bytes.len() - 12_000));
    steer(&host, &mut machine);
    // They are there at once when the machine goes on, pair by pair.
    machine.stop();
    let whole = segments(&host);
    host.settle();
    machine.cont_pair(0);
    wait_until(|| coalesced(&host) == 19);
    machine.cont_pair(1);
    machine.enable(1, true);
    let (header, bytes) = machine.receive_by(1);
    assert_eq!((header.gso_size, bytes), (1400, whole.offloaded(1400).1));

    machine.stop();
    segments(&host);
    host.settle();
    machine.cont_pair(0);
    wait_until(|| coalesced(&host) == 38);
    machine.stop_pair(0);
    machine.forget_offloads();
    machine.cont();
    wait_until(|| host.carried()[1] == 1);
    let mut plain = sample::Tcp::data(false, vec![8; 40]);
    (plain.source, plain.destination) = (sample::CLIENT, sample::GUEST);
    assert!(host.peer.put(&plain.bytes()));
    // The new driver's pairs are in use once they run; a flow of which nothing is known yet may take either.
    wait_until(|| (0..2).any(|pair| machine.queues[2 * pair + RX].used_index() > 0));
}

/// A core that sleeps is woken for what the other one left. Without that it would find it when it looks around by itself,
/// five times a second: too seldom for so many rounds.
#[test]
fn a_core_that_sleeps_is_woken_by_the_other() {
    let ram = GuestRam::new();
    let mut host = Host::new();
    let path = host.device_over(1, &[1], PortConfig::default());
    let mut machine = Machine::boot(&path, &ram);
    let answer = sample::opaque(sample::GUEST, sample::CLIENT, 64, 1);
    let begin = Instant::now();
    for round in 0..200 {
        host.wait_asleep();
        machine.send(&frame(round, 64));
        assert_eq!(host.wire(1), [frame(round, 64)]);
        machine.wait_taken(round as u16 + 1);
        machine.queues[TX].take_used();
        host.wait_asleep();
        host.peer.put(&answer);
        assert_eq!(machine.receive().1, answer);
    }
    assert!(begin.elapsed() < SOON, "it took {:?}, as if nobody were woken", begin.elapsed());
}

/// RB-1: a frame for which a carried pair has no buffers does not block it for good.
#[test]
fn a_frame_that_no_buffer_of_a_carried_pair_holds_is_dropped_in_the_end() {
    let ram = GuestRam::new();
    let mut host = Host::new();
    let path = host.device_over(1, &[1], PortConfig::default());
    let mut machine = Machine::boot(&path, &ram);
    machine.send(&sample::arp(sample::GUEST, [10, 0, 0, 2]));
    host.wire(1);
    let of = |number: u8| sample::opaque(sample::GUEST, sample::CLIENT, 64, number);
    // The ring has buffers for 64 frames.
    (0..66).for_each(|number| assert!(host.peer.put(&of(number))));
    wait_until(|| host.carried()[1] == 1);
    let mut received = Vec::new();
    wait_until(|| {
        received.extend(machine.receive_small(0));
        received.len() == 65
    });
    assert_eq!(received, (0..64).chain([65]).map(of).collect::<Vec<_>>());
}
