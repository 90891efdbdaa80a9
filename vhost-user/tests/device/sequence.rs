//! The sequence of an epoch: stop, capture, cont, many times a second.

use crate::core::Core;
use crate::driver::GuestRam;
use crate::machine::{Machine, RX, Served, TX, device, served, wait_event, wait_signal};
use holdfast_vhost_user::{DeviceEvent, MemoryFiles, SocketRole, Verdict};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::TryRecvError;
use vhost::vhost_user::VhostUserFrontend;

#[test]
fn frames_flow_both_ways_and_wake_both_sides() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, path, .. } = &served;
    let mut machine = Machine::connect(path, &ram);
    machine.start();
    (0..200).for_each(|number| machine.echo(number));
    let snapshot = device.snapshot();
    assert!(snapshot.connected && snapshot.rings_running == [true, true], "{snapshot:?}");
    assert_eq!(snapshot.peer_pid, Some(std::process::id() as i32));
    assert_eq!(snapshot.faults, []);
}

/// CK-2: when GET_VRING_BASE is answered, the core has left the ring: the indices agree, all that was
/// written is marked, and nothing is written until the start.
#[test]
fn a_stop_is_answered_when_the_core_has_left_the_rings() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, path, .. } = &served;
    let mut machine = Machine::connect(path, &ram);
    machine.start();
    machine.echo(0);
    wait_event(device, |event| *event == DeviceEvent::Started);
    let memory = device.memory().expect("memory is known");
    let mut sent = 1;
    for _ in 0..60 {
        // Frames are under way while the machine stops.
        for _ in 0..5 {
            machine.send(&u32::to_be_bytes(sent).repeat(20));
            sent += 1;
        }
        let bases = machine.stop();
        assert_eq!(bases, [RX, TX].map(|ring| machine.queues[ring].used_index()));
        memory.files()[0].drain_dirty(&mut |_| {});
        let standing = ram.image();
        machine.kick();
        assert!(ram.image() == standing, "guest memory stands still");
        memory.files()[0].drain_dirty(&mut |page| panic!("page {page} was written in the stop"));
        machine.start();
        let now = device.memory().expect("memory is known");
        assert!(Arc::ptr_eq(&memory, &now), "an unchanged table keeps the mappings");
        // Whatever was in the ring at the stop comes out after it, once and in order.
        while machine.collect() < 5 {
            wait_signal(&machine.calls[RX]).expect("the echo of what was in the ring");
        }
        for number in sent - 5..sent {
            assert_eq!(machine.receive(), u32::to_be_bytes(number).repeat(20));
        }
    }
    assert_eq!(usize::from(machine.stop()[TX]), sent as usize);
    let seen = wait_event(device, |event| *event == DeviceEvent::Stopped);
    assert!(!seen.contains(&DeviceEvent::MemoryChanged), "{seen:?}");
}

/// CK-2: a burst that was taken and not yet flushed is shown to the guest before the ring is left.
#[test]
fn a_ring_is_left_with_its_last_burst_published() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("net0");
    let ram = GuestRam::new();
    let core = Core::new();
    let (_device, mut endpoint) = device(&core, SocketRole::Server(path.clone()), &MemoryFiles::default());
    let (frames, taken) = std::sync::mpsc::channel();
    let (alive, test) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        // Dropped at the end of the test, however it ends.
        let _alive = alive;
        scope.spawn(move || {
            while test.try_recv() == Err(TryRecvError::Empty) {
                endpoint.poll_control();
                let count = endpoint.tx_rings()[0].poll(8, |_, _| Verdict::Taken);
                (0..count.expect("a sound ring")).for_each(|_| frames.send(()).expect("the test listens"));
                std::thread::yield_now();
            }
        });
        let mut machine = Machine::connect(&path, &ram);
        machine.start();
        (0..5).for_each(|byte| machine.send(&[byte; 80]));
        (0..5).for_each(|_| taken.recv().expect("the core takes the frame"));
        assert_eq!(machine.queues[TX].used_index(), 0, "this core does not flush");
        assert_eq!(machine.stop()[TX], 5);
        assert_eq!(machine.queues[TX].used_index(), 5);
    });
}

/// CK-2: the answer waits for the core, however long that takes.
#[test]
fn a_stop_waits_for_a_core_that_is_busy() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, core, path, .. } = &served;
    let mut machine = Machine::connect(path, &ram);
    machine.start();
    machine.echo(0);
    let answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let held = core.hold();
        let stop = scope.spawn(|| {
            let bases = machine.stop();
            answered.store(true, Ordering::SeqCst);
            bases
        });
        // The request has been read by the device when its bytes are gone; give it time to be wrong.
        std::thread::park_timeout(std::time::Duration::from_millis(200));
        assert!(!answered.load(Ordering::SeqCst), "answered although the core is in its turn");
        assert!(device.snapshot().rings_running[0], "the ring is not left");
        drop(held);
        assert_eq!(stop.join().expect("answered"), [1, 1]);
    });
}

#[test]
fn a_memory_table_that_changes_under_running_rings_takes_effect() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, path, .. } = &served;
    let mut machine = Machine::connect(path, &ram);
    machine.start();
    machine.echo(0);
    let before = device.memory().expect("memory is known");
    // The low region loses its end, as when a BIOS shadows its ROM.
    let mut regions = crate::driver::REGIONS;
    regions[0].1 -= 0x1000;
    machine.set_memory(&regions);
    let after = device.memory().expect("memory is known");
    assert!(!Arc::ptr_eq(&before, &after));
    assert!(Arc::ptr_eq(&before.files()[0], &after.files()[0]), "the file stays mapped, its bitmap stays");
    assert_eq!(after.regions()[0].spec().bytes, 0x7_f000);
    (1..50).for_each(|number| machine.echo(number));
    let events = device.events();
    let changes = events.try_iter().filter(|event| *event == DeviceEvent::MemoryChanged).count();
    assert_eq!(changes, 2, "the first table and the second");
}

#[test]
fn an_exchanged_call_descriptor_loses_no_interrupt() {
    let ram = GuestRam::new();
    let served = served();
    let Served { path, .. } = &served;
    let mut machine = Machine::connect(path, &ram);
    machine.start();
    for number in 0..100 {
        machine.send(&u32::to_be_bytes(number).repeat(20));
        let fresh =
            vmm_sys_util::eventfd::EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).expect("an eventfd");
        vhost::VhostBackend::set_vring_call(&machine.frontend, RX, &fresh).expect("call");
        // Whatever was signalled by the old descriptor, the new one has been signalled once.
        assert!(wait_signal(&fresh).is_some());
        machine.calls[RX] = fresh;
        assert_eq!(machine.receive(), u32::to_be_bytes(number).repeat(20));
    }
}

/// Nor anything after it is disabled. One by which the guest sends passes what is in it.
#[test]
fn a_ring_gives_the_guest_nothing_until_it_is_enabled() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, path, .. } = &served;
    let mut machine = Machine::connect(path, &ram);
    machine.start_with(&[TX]);
    assert_eq!(device.snapshot().rings_running, [false, true]);
    machine.send(&[5; 80]);
    machine.frontend.set_vring_enable(RX, true).expect("enable");
    assert_eq!(machine.receive(), [5; 80], "what came meanwhile is given now");
    machine.frontend.set_vring_enable(RX, false).expect("disable");
    let snapshot = device.snapshot();
    assert_eq!((snapshot.rings_running, snapshot.rings_enabled), (vec![false, true], vec![false, true]));
}

/// A driver that gives a pair up has put frames into its ring before: they come out, through stops as well.
#[test]
fn a_ring_that_is_disabled_is_emptied() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, path, .. } = &served;
    let mut machine = Machine::connect(path, &ram);
    machine.start();
    machine.echo(0);
    machine.stop();
    machine.frontend.set_vring_enable(TX, false).expect("disable");
    machine.queue_frame(&[6; 80]);
    machine.start_with(&[RX]);
    assert_eq!(device.snapshot().rings_running, [true, true]);
    assert_eq!(machine.receive(), [6; 80]);
}

#[test]
fn a_dropped_device_leaves_its_rings_and_removes_its_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("net0");
    let ram = GuestRam::new();
    let core = Core::new();
    let (device, mut endpoint) = device(&core, SocketRole::Server(path.clone()), &MemoryFiles::default());
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // Dropped at the end of the test, however it ends.
        let done = done;
        let turning = scope.spawn(move || {
            while finished.try_recv() == Err(TryRecvError::Empty) {
                endpoint.poll_control();
                std::thread::yield_now();
            }
            endpoint.poll_control();
            endpoint.is_running()
        });
        let mut machine = Machine::connect(&path, &ram);
        machine.start();
        wait_event(&device, |event| *event == DeviceEvent::Started);
        drop(device);
        assert!(!path.exists());
        done.send(()).expect("the core turns");
        assert!(!turning.join().expect("the core turns"));
    });
}
