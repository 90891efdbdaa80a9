//! Guests that break the rules (RB-1): their device stops, others go on, a reset brings it back.

use crate::core::Core;
use crate::driver::{GuestRam, NEXT, descriptor};
use crate::machine::{Machine, Served, TX, device, served, wait_event, wait_signal};
use holdfast_vhost_user::{DeviceEvent, MemoryFiles, RingFault, SocketRole};

/// RB-1: one device stops with a counted fault; the other, on the same core, does not notice.
#[test]
fn a_broken_ring_stops_its_device_alone_until_the_guest_resets_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let paths = [dir.path().join("good"), dir.path().join("bad")];
    let rams = [GuestRam::new(), GuestRam::new()];
    let files = MemoryFiles::default();
    let mut core = Core::new();
    let [(good, first), (bad, second)] =
        [0, 1].map(|which: usize| device(&core, SocketRole::Server(paths[which].clone()), &files));
    core.run(vec![first, second]);
    let mut kept = Machine::connect(&paths[0], &rams[0]);
    let mut broken = Machine::connect(&paths[1], &rams[1]);
    kept.start();
    broken.start();
    kept.echo(0);
    broken.echo(0);

    // A chain that loops, after a frame that is sound.
    broken.queue_frame(&[7; 80]);
    broken.queues[TX].set_descriptor(20, descriptor(0x2_0000, 64, NEXT, 20));
    broken.queues[TX].offer(20);
    broken.kick();
    wait_event(&bad, |event| *event == DeviceEvent::Fault(RingFault::ChainTooLong { limit: 32 }));
    assert!(wait_signal(&broken.errors[TX]).is_some(), "the frontend is told");
    let snapshot = bad.snapshot();
    assert_eq!(snapshot.faults, [("chain_too_long", 1)]);
    assert_eq!(snapshot.rings_running, [false, false]);
    assert!(snapshot.connected, "the connection is not the guest's fault");

    (1..50).for_each(|number| kept.echo(number));
    assert_eq!(good.snapshot().faults, []);

    // A table that is sent again must not start the broken rings.
    broken.set_memory(&crate::driver::REGIONS[..2]);
    assert_eq!(bad.snapshot().rings_running, [false, false]);

    // The driver resets the device: the frontend stops it, and starts it with fresh rings.
    let bases = broken.stop();
    assert_eq!(bases[TX], 2, "the sound frame was taken, the loop was not");
    let Machine { frontend, .. } = broken;
    drop(frontend);
    wait_event(&bad, |event| *event == DeviceEvent::Disconnected);
    let mut reset = Machine::connect(&paths[1], &rams[1]);
    reset.start();
    (0..20).for_each(|number| reset.echo(number));
    assert_eq!(bad.snapshot().faults, [("chain_too_long", 1)], "counted once, kept for good");
}

/// RB-1: QEMU stops and starts a machine with each epoch, and finds a broken ring broken each time. The log says it
/// once, and again when the driver has reset the device and breaks it anew, at the same place even.
#[test]
fn a_ring_that_stays_broken_over_stops_is_logged_once() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, core, path, .. } = &served;
    let mut machine = Machine::connect(path, &ram);
    let fault = DeviceEvent::Fault(RingFault::ChainTooLong { limit: 32 });
    for broken in 1..=2 {
        machine.start();
        machine.echo(0);
        machine.queues[TX].set_descriptor(20, descriptor(0x2_0000, 64, NEXT, 20));
        machine.queues[TX].offer(20);
        machine.kick();
        for _ in 0..5 {
            wait_event(device, |event| *event == fault);
            assert_eq!(machine.stop()[TX], 1, "the loop was not taken");
            assert_eq!(core.errors(), broken);
            machine.start();
        }
        wait_event(device, |event| *event == fault);
        machine.stop();
        machine.reset();
    }
    assert_eq!(device.snapshot().faults, [("chain_too_long", 12)], "each is counted");
    machine.start();
    machine.echo(1);
}

/// RB-1: fault after fault, none of them more than a stop.
#[test]
fn a_guest_that_never_learns_is_stopped_each_time() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, path, .. } = &served;
    let mut machine = Machine::connect(path, &ram);
    for round in 1..=20_u64 {
        machine.start();
        machine.ram.write_u16(machine.queues[TX].available_gpa() + 2, machine.queues[TX].available + 33);
        machine.kick();
        wait_event(device, |event| matches!(event, DeviceEvent::Fault(RingFault::AvailableJump { .. })));
        assert_eq!(device.snapshot().faults, [("available_jump", round)]);
        machine.stop();
        machine.ram.write_u16(machine.queues[TX].available_gpa() + 2, machine.queues[TX].available);
    }
    machine.start();
    machine.echo(1);
}
