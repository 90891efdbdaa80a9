//! Epochs over real rings: stop, cut, go on, release.

use crate::driver::GuestRam;
use crate::host::{Host, token, wait_until};
use crate::machine::{Machine, TX};
use holdfast_dataplane::{Limits, Mode, PortConfig, PortId, sample};
use holdfast_epoch::EpochId;

const PORT: [PortId; 1] = [PortId(1)];

fn frame(number: u32) -> Vec<u8> {
    let mut bytes = sample::opaque(sample::CLIENT, sample::GUEST, 64, 0);
    bytes[20..24].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// OC-1, OC-2: over checkpoints of a machine that goes on sending, nothing is on the wire before the
/// release of its epoch, and everything is there afterwards, in order.
#[test]
fn output_is_withheld_until_its_epoch_commits() {
    let ram = GuestRam::new();
    let mut host = Host::new();
    let path = host.device(1, PortConfig::default());
    host.handle.set_mode(&PORT, Mode::Commit { first: EpochId::FIRST }).expect("protected");
    let mut machine = Machine::boot(&path, &ram);
    let mut sent = 0;
    let mut cut = Vec::new();
    for epoch in 1..=20u64 {
        for _ in 0..7 {
            machine.send(&frame(sent));
            sent += 1;
        }
        // Some of it is still in the ring when the machine stops: it belongs to the next epoch.
        if epoch % 2 == 0 {
            machine.wait_taken(sent as u16);
        }
        machine.stop();
        let taken = u32::from(machine.queues[TX].used_index());
        let report = host.handle.cut(&PORT, EpochId::new(epoch), false).expect("cut");
        assert_eq!(cut.iter().sum::<u64>() + report.frames, u64::from(taken), "all that was taken");
        cut.push(report.frames);
        machine.cont();
        machine.kick();
        machine.wait_taken(sent as u16);
    }
    host.settle();
    assert!(host.peer.take().is_empty(), "nothing was committed");
    let mut seen = 0;
    for (epoch, frames) in (1..=20).zip(cut) {
        host.handle.release(&PORT, token(1, epoch)).expect("released");
        if frames > 0 {
            for bytes in host.wire(frames as usize) {
                assert_eq!(bytes, frame(seen));
                seen += 1;
            }
        }
        host.settle();
        assert!(host.peer.take().is_empty(), "no more than epoch {epoch} is committed");
    }
    assert!(seen <= sent);
}

/// RB-1: the guest's frames stay in its ring while the escrow is full, and none is lost.
#[test]
fn a_full_escrow_leaves_frames_in_the_ring() {
    let ram = GuestRam::new();
    let mut host = Host::new();
    let limits = Limits { frames: 10, ..Limits::default() };
    let path = host.device(1, PortConfig { limits, ..PortConfig::default() });
    host.handle.set_mode(&PORT, Mode::Commit { first: EpochId::FIRST }).expect("protected");
    let mut machine = Machine::boot(&path, &ram);
    (0..35).for_each(|number| machine.send(&frame(number)));
    machine.wait_taken(10);
    host.settle();
    assert_eq!(machine.queues[TX].used_index(), 10);
    let mut got = Vec::new();
    for epoch in 1..=4 {
        host.handle.cut(&PORT, EpochId::new(epoch), false).expect("cut");
        host.handle.release(&PORT, token(1, epoch)).expect("released");
        let expected = (10 * epoch as usize + 10).min(35);
        wait_until(|| {
            got.extend(host.peer.take());
            usize::from(machine.queues[TX].used_index()) == expected
        });
    }
    // What was released last is on the wire when the core has turned.
    host.settle();
    got.extend(host.peer.take());
    assert_eq!(got, (0..35).map(frame).collect::<Vec<_>>());
}

/// FO-1: a fence leaves the ring alone; the machine's frames are still there for whoever has it next.
#[test]
fn a_fenced_port_takes_nothing_from_the_ring() {
    let ram = GuestRam::new();
    let mut host = Host::new();
    let path = host.device(1, PortConfig::default());
    let mut machine = Machine::boot(&path, &ram);
    machine.send(&frame(0));
    assert_eq!(host.wire(1), [frame(0)]);
    host.handle.fence(&PORT).expect("fenced");
    machine.send(&frame(1));
    host.settle();
    assert!(host.peer.take().is_empty());
    assert_eq!(machine.queues[TX].used_index(), 1);
    machine.stop();
}
