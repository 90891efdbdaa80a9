//! Guests that break the rules, next to guests that do not.

use crate::driver::{GuestRam, NEXT, descriptor};
use crate::host::{Host, wait_until};
use crate::machine::{Machine, TX};
use holdfast_dataplane::{PortConfig, sample};

/// RB-1: a descriptor chain that loops, or points outside of guest memory, stops its device, is
/// counted there, and the guest next to it goes on.
#[test]
fn a_malicious_descriptor_stops_its_device_and_nothing_else() {
    let rams = [GuestRam::new(), GuestRam::new()];
    let mut host = Host::new();
    let bad_path = host.device(1, PortConfig::default());
    let good_path = host.device(2, PortConfig::default());
    let mut good = Machine::boot(&good_path, &rams[1]);
    let mut other = sample::opaque(sample::CLIENT, [2, 0, 0, 0, 0, 8], 64, 8);
    for (nth, broken) in
        [descriptor(0x2_0000, 64, NEXT, 0), descriptor(1 << 60, 64, 0, 0)].into_iter().enumerate()
    {
        let mut bad = Machine::boot(&bad_path, &rams[0]);
        bad.send(&sample::opaque(sample::CLIENT, sample::GUEST, 64, 1));
        host.wire(1);
        bad.queues[TX].set_descriptor(0, broken);
        bad.queues[TX].offer(0);
        bad.kick();
        let faults = |host: &Host| host.devices[0].snapshot().faults.iter().map(|(_, n)| n).sum::<u64>();
        wait_until(|| faults(&host) == nth as u64 + 1);
        for fill in 0..50 {
            other[40] = fill;
            good.send(&other);
            good.wait_taken((nth as u16 * 50) + u16::from(fill) + 1);
            assert_eq!(host.wire(1), [other.clone()]);
        }
        assert!(host.devices[1].snapshot().faults.is_empty());
        drop(bad);
        wait_until(|| !host.devices[0].snapshot().connected);
    }
}

/// RB-1: a machine that vanishes without a word leaves nothing behind for the next.
#[test]
fn a_machine_that_is_killed_and_comes_back_goes_on() {
    let ram = GuestRam::new();
    let mut host = Host::new();
    let path = host.device(1, PortConfig::default());
    for fill in 0..10 {
        let mut machine = Machine::boot(&path, &ram);
        let frame = sample::opaque(sample::CLIENT, sample::GUEST, 64, fill);
        machine.send(&frame);
        assert_eq!(host.wire(1), [frame]);
        host.peer.put(&sample::opaque(sample::GUEST, sample::CLIENT, 64, fill));
        assert_eq!(machine.receive().1[40], fill);
    }
}
