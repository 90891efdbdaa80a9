//! Cards with several pairs of queues.

use crate::driver::{DriverQueue, GuestRam, descriptor};
use crate::host::{Host, device_config, token, wait_until};
use crate::machine::{Machine, RX, TX};
use holdfast_dataplane::guest::{GuestPort, Verdict};
use holdfast_dataplane::{Card, Limits, Mode, PortConfig, PortId, sample};
use holdfast_epoch::EpochId;
use holdfast_vhost_user::{Device, MemoryFiles};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;

const PORT: [PortId; 1] = [PortId(1)];

/// Whose each of two pairs is: the port's core has both, another core carries the second, the first, or both.
const MAPS: [[usize; 2]; 4] = [[0, 0], [0, 1], [1, 0], [1, 1]];

/// A frame that tells by which pair it went, and when.
fn frame(pair: u8, number: u8) -> Vec<u8> {
    let mut bytes = sample::opaque(sample::CLIENT, sample::GUEST, 64, pair);
    bytes[40] = number;
    bytes
}

fn of_pair(frames: &[Vec<u8>], pair: u8) -> Vec<Vec<u8>> {
    frames.iter().filter(|bytes| bytes[63] == pair).cloned().collect()
}

/// A segment of the flow with this port of the guest, from the guest.
fn said(port: u16, payload: u8) -> sample::Tcp {
    sample::Tcp { ports: (port, 40000), ..sample::Tcp::data(false, vec![payload; 40]) }
}

/// A segment of the same flow to the guest.
fn answer(port: u16, payload: u8) -> Vec<u8> {
    let segment = sample::Tcp {
        destination: sample::GUEST,
        source: sample::CLIENT,
        ports: (40000, port),
        ..said(port, payload)
    };
    let mut bytes = segment.bytes();
    bytes[26..34].copy_from_slice(&[10, 0, 0, 9, 10, 0, 0, 2]);
    sample::complete(&mut bytes, segment.transport(), false);
    bytes
}

/// OC-1, OC-2: an epoch's cut holds what was taken from every pair, and what was sent by one pair leaves in its
/// order. At each stop all rings have been left where the guest expects them to go on.
#[test]
fn what_all_pairs_sent_is_one_epochs_output() {
    for map in MAPS {
        let ram = GuestRam::new();
        let mut host = Host::new();
        let path = host.device_over(1, &map, PortConfig::default());
        host.handle.set_mode(&PORT, Mode::Commit { first: EpochId::FIRST }).expect("protected");
        let mut machine = Machine::boot_of_pairs(&path, &ram, 2);
        let mut sent = [Vec::new(), Vec::new()];
        let mut cut = 0;
        for epoch in 1..=10 {
            for number in 0..6 {
                let pair = number % 2;
                let bytes = frame(pair, 10 * epoch + number);
                machine.send_by(usize::from(pair), &bytes);
                sent[usize::from(pair)].push(bytes);
            }
            // Some of it is still in the rings when the machine stops: it belongs to the next epoch.
            if epoch % 2 == 0 {
                (0..2).for_each(|pair| machine.wait_taken_by(pair, sent[pair].len() as u16));
            }
            machine.stop();
            let used: Vec<u16> = machine.queues.iter().map(DriverQueue::used_index).collect();
            assert_eq!(machine.bases(), used);
            cut += host.handle.cut(&PORT, EpochId::new(epoch.into()), false).expect("cut").frames;
            assert_eq!(cut, u64::from(used[TX] + used[2 + TX]), "all that was taken");
            machine.cont();
            machine.kick();
        }
        (0..2).for_each(|pair| machine.wait_taken_by(pair, sent[pair].len() as u16));
        host.settle();
        assert!(host.peer.take().is_empty(), "nothing was committed");
        (1..=10).for_each(|epoch| {
            host.handle.release(&PORT, token(1, epoch)).expect("released");
        });
        let out = host.wire(cut as usize);
        for (pair, sent) in (0..).zip(&sent) {
            let of_pair = of_pair(&out, pair);
            assert!(!of_pair.is_empty());
            assert_eq!(of_pair, sent[..of_pair.len()]);
        }
    }
}

/// CK-2: what is received by any pair is in the own dirty bitmap.
#[test]
fn a_flow_is_received_by_the_pair_on_which_the_guest_sends_it() {
    for map in MAPS {
        let ram = GuestRam::new();
        let mut host = Host::new();
        let path = host.device_over(1, &map, PortConfig::default());
        let mut machine = Machine::boot_of_pairs(&path, &ram, 2);
        let memory = host.devices[0].memory().expect("memory is known");
        for port in 5000..5008 {
            for (pair, payload) in [(1, 1), (0, 2), (1, 3)] {
                machine.send_by(pair, &said(port, payload).bytes());
                host.wire(1);
                memory.files()[0].drain_dirty(&mut |_| {});
                let before = ram.image();
                host.peer.put(&answer(port, payload));
                let (_, bytes) = machine.receive_by(pair);
                assert!(bytes.ends_with(&[payload; 40]), "port {port}");
                machine.stop();
                let mut marked = BTreeSet::new();
                memory.files()[0].drain_dirty(&mut |page| marked.extend([page as usize]));
                let buffers = GuestRam::offset(0x1_0004_0000 + 0x2_0000 * pair as u64) as usize;
                let after = ram.image();
                for at in (buffers..buffers + 0x2_0000).step_by(4096) {
                    let is_written = before[at..at + 4096] != after[at..at + 4096];
                    assert!(!is_written || marked.contains(&(at / 4096)), "page {at:#x} of pair {pair}");
                }
                assert!(!marked.is_empty());
                machine.cont();
            }
        }
        // The driver uses one pair for a while.
        machine.enable(1, false);
        host.peer.put(&answer(5000, 7));
        assert!(machine.receive_by(0).1.ends_with(&[7; 40]));
        machine.enable(1, true);
        host.peer.put(&answer(5000, 8));
        assert!(machine.receive_by(1).1.ends_with(&[8; 40]));
        let frames = host.devices[0].snapshot().ring_frames;
        assert_eq!(frames, [8 + 1, 8, 16 + 1, 16]);
    }
}

/// OC-2: QEMU stops the rings of a machine one after the other, and starts them likewise. What comes in meanwhile
/// waits for the pair that it is for: by another it would overtake what that pair still holds.
#[test]
fn a_flow_stays_with_its_pair_while_the_machine_is_stopped_for_a_moment() {
    for map in MAPS {
        let ram = GuestRam::new();
        let mut host = Host::new();
        let path = host.device_over(1, &map, PortConfig::default());
        let mut machine = Machine::boot_of_pairs(&path, &ram, 2);
        machine.send_by(1, &said(5000, 1).bytes());
        host.wire(1);
        let received = |machine: &Machine<'_>, pair: usize| machine.queues[2 * pair + RX].used_index();
        let before = received(&machine, 0);
        for payload in 0..20 {
            machine.stop_pair(1);
            host.peer.put(&answer(5000, payload));
            host.settle();
            assert_eq!(received(&machine, 0), before, "the other pair still runs");
            machine.stop_pair(0);
            machine.cont_pair(0);
            host.settle();
            assert_eq!(received(&machine, 0), before, "the other pair runs again");
            machine.cont_pair(1);
            assert!(machine.receive_by(1).1.ends_with(&[payload; 40]));
        }
    }
}

/// What was said of a pair counts until its driver gives it up, which may be while the machine stands still.
#[test]
fn a_pair_that_is_given_up_in_a_stop_is_not_waited_for() {
    for map in MAPS {
        let ram = GuestRam::new();
        let mut host = Host::new();
        let path = host.device_over(1, &map, PortConfig::default());
        let mut machine = Machine::boot_of_pairs(&path, &ram, 2);
        machine.send_by(1, &said(5000, 1).bytes());
        host.wire(1);
        // A reset: QEMU stops all rings, and says of the next driver, before it starts them, which pairs it uses.
        machine.stop();
        machine.enable(1, false);
        machine.cont_pair(0);
        host.peer.put(&answer(5000, 2));
        assert!(machine.receive_by(0).1.ends_with(&[2; 40]));
        // Another driver that is known by its features.
        machine.enable(1, true);
        machine.cont_pair(1);
        host.peer.put(&answer(5000, 3));
        assert!(machine.receive_by(1).1.ends_with(&[3; 40]));
        machine.stop();
        machine.forget_offloads();
        machine.cont_pair(0);
        host.peer.put(&answer(5000, 4));
        assert!(machine.receive_by(0).1.ends_with(&[4; 40]));
    }
}

/// What a driver has put into a ring before it gives a pair up comes out of it: its buffers belong to connections
/// that would wait for them for ever.
#[test]
fn what_was_sent_before_a_pair_was_disabled_still_goes_out() {
    let ram = GuestRam::new();
    let mut host = Host::new();
    let limits = Limits { frames: 4, ..Limits::default() };
    let path = host.device_over(1, &[0, 0], PortConfig { limits, ..PortConfig::default() });
    host.handle.set_mode(&PORT, Mode::Commit { first: EpochId::FIRST }).expect("protected");
    let mut machine = Machine::boot_of_pairs(&path, &ram, 2);
    (0..10).for_each(|number| machine.send_by(1, &frame(1, number)));
    machine.wait_taken_by(1, 4);
    machine.enable(1, false);
    for epoch in 1..=2 {
        machine.stop();
        host.handle.cut(&PORT, EpochId::new(epoch), false).expect("cut");
        machine.cont_with(&[true, false]);
        host.handle.release(&PORT, token(1, epoch)).expect("released");
        machine.wait_taken_by(1, (4 * epoch as u16 + 4).min(10));
    }
    host.handle.cut(&PORT, EpochId::new(3), false).expect("cut");
    host.handle.release(&PORT, token(1, 3)).expect("released");
    assert_eq!(host.wire(10), (0..10).map(|number| frame(1, number)).collect::<Vec<_>>());
}

/// RB-1: a broken descriptor in one pair stops that device with all of its pairs, and no other.
#[test]
fn a_malicious_descriptor_in_one_pair_stops_its_device_and_nothing_else() {
    for map in MAPS {
        let rams = [GuestRam::new(), GuestRam::new()];
        let mut host = Host::new();
        let paths = [1, 2].map(|number| host.device_over(number, &map, PortConfig::default()));
        let mut bad = Machine::boot_of_pairs(&paths[0], &rams[0], 2);
        let mut good = Machine::boot_of_pairs(&paths[1], &rams[1], 2);
        bad.send_by(0, &frame(0, 1));
        host.wire(1);
        bad.queues[2 + TX].set_descriptor(0, descriptor(1 << 60, 64, 0, 0));
        bad.queues[2 + TX].offer(0);
        bad.kick();
        wait_until(|| host.devices[0].snapshot().rings_running == [false; 4]);
        assert_eq!(host.devices[0].snapshot().faults.iter().map(|(_, count)| count).sum::<u64>(), 1);
        for number in 0..20 {
            let mut bytes = sample::opaque(sample::CLIENT, [2, 0, 0, 0, 0, 8], 64, 8);
            bytes[40] = number;
            good.send_by(usize::from(number % 2), &bytes);
            assert_eq!(host.wire(1), [bytes]);
        }
        assert!(host.devices[1].snapshot().faults.is_empty());
        assert_eq!(host.devices[1].snapshot().rings_running, [true; 4]);
    }
}

/// RB-1: a pair that always has something to send does not keep the others waiting.
#[test]
fn pairs_have_their_turns() {
    let ram = GuestRam::new();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("net1");
    let config = device_config(&path, 2, &MemoryFiles::default());
    let (device, endpoint) = Device::spawn(config, Arc::new(|| {})).expect("a device");
    let mut card = Card::new(endpoint);
    thread::scope(|scope| {
        let booted = scope.spawn(|| {
            let mut machine = Machine::boot_of_pairs(&path, &ram, 2);
            (0..40).for_each(|number| machine.send_by(0, &frame(0, number)));
            (0..4).for_each(|number| machine.send_by(1, &frame(1, number)));
            machine
        });
        while !booted.is_finished() {
            card.poll_control();
            thread::yield_now();
        }
        let machine = booted.join().expect("a machine");
        let mut taken = [0; 2];
        for _ in 0..2 {
            card.capture(4, &mut |_, frame| {
                let mut last = [0];
                frame.copy_to(63, &mut last);
                taken[usize::from(last[0])] += 1;
                Verdict::Taken
            });
        }
        assert_eq!(taken, [4, 4]);
        drop(card);
        drop(machine);
    });
    drop(device);
}
