//! A socket that closes and comes back, from either side.

use crate::core::Core;
use crate::driver::GuestRam;
use crate::machine::{Machine, RX, Served, TX, device, served, wait_event};
use holdfast_vhost_user::{DeviceEvent, MemoryFiles, SocketAccess, SocketRole, SpawnError};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use vhost::vhost_user::VhostUserFrontend;

fn is_gone(event: &DeviceEvent) -> bool {
    *event == DeviceEvent::Disconnected
}

/// Fault 13: indices stay consistent, no frame is taken twice, no dirty page is forgotten (CK-2).
#[test]
fn a_frontend_that_comes_back_goes_on_where_it_was() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, path, .. } = &served;
    let mut machine = Machine::connect(path, &ram);
    let mut number = 0;
    let mut first = None;
    for round in 1..=10 {
        machine.start();
        for _ in 0..7 {
            machine.echo(number);
            number += 1;
        }
        let memory = device.memory().expect("memory is known");
        let first = first.get_or_insert_with(|| Arc::clone(&memory));
        assert!(Arc::ptr_eq(first, &memory), "the mapping outlives the connection");
        memory.files()[0].drain_dirty(&mut |_| {});
        machine.echo(number);
        number += 1;
        // Closed amid everything, as when the frontend is killed.
        machine.frontend = vhost::vhost_user::Frontend::from_stream(UnixStream::pair().expect("a pair").0, 2);
        wait_event(device, is_gone);
        let snapshot = device.snapshot();
        assert!(!snapshot.connected && snapshot.rings_running == [false, false], "{snapshot:?}");
        assert_eq!(snapshot.connections, round);
        assert_eq!(machine.queues[TX].used_index(), number as u16);
        let mut dirty = 0;
        memory.files()[0].drain_dirty(&mut |_| dirty += 1);
        assert!(dirty > 0, "what was written before the loss is still marked after it");
        machine = machine.reconnect(UnixStream::connect(path).expect("connects"));
    }
}

/// A frontend that comes back says nothing of a ring that its driver had disabled; what the driver has put there
/// before comes out.
#[test]
fn a_ring_that_was_disabled_is_emptied_after_a_reconnection() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, path, .. } = &served;
    let mut machine = Machine::connect(path, &ram);
    machine.start();
    machine.echo(0);
    machine.frontend.set_vring_enable(TX, false).expect("disable");
    machine.frontend = vhost::vhost_user::Frontend::from_stream(UnixStream::pair().expect("a pair").0, 2);
    wait_event(device, is_gone);
    machine.queue_frame(&[6; 80]);
    machine = machine.reconnect(UnixStream::connect(path).expect("connects"));
    machine.start_with(&[RX]);
    assert_eq!(machine.receive(), [6; 80]);
    assert_eq!(device.snapshot().rings_enabled, [true, false]);
}

#[test]
fn a_client_connects_as_soon_and_as_often_as_the_frontend_listens() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("qemu");
    let ram = GuestRam::new();
    let mut core = Core::new();
    let (device, endpoint) = device(&core, SocketRole::Client(path.clone()), &MemoryFiles::default());
    core.run(vec![endpoint]);
    let mut carried: Option<Machine<'_>> = None;
    for round in 0..3 {
        let listener = UnixListener::bind(&path).expect("listens");
        let (stream, _) = listener.accept().expect("the device connects");
        let mut machine = match carried.take() {
            Some(machine) => machine.reconnect(stream),
            None => Machine::boot(stream, &ram),
        };
        machine.start();
        machine.echo(round);
        machine.stop();
        drop(listener);
        std::fs::remove_file(&path).expect("removes the socket");
        machine.frontend = vhost::vhost_user::Frontend::from_stream(UnixStream::pair().expect("a pair").0, 2);
        wait_event(&device, is_gone);
        carried = Some(machine);
    }
}

#[test]
fn a_device_can_be_dropped_while_it_waits() {
    let dir = tempfile::tempdir().expect("a directory");
    let core = Core::new();
    for role in [SocketRole::Server(dir.path().join("a")), SocketRole::Client(dir.path().join("b"))] {
        let (device, endpoint) = device(&core, role, &MemoryFiles::default());
        drop(device);
        drop(endpoint);
    }
}

/// Who holds the device as well does not keep its socket there.
#[test]
fn a_closed_device_leaves_no_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("net0");
    let core = Core::new();
    let (device, _endpoint) = device(&core, SocketRole::Server(path.clone()), &MemoryFiles::default());
    assert!(path.exists());
    device.close();
    assert!(!path.exists());
    assert!(!device.snapshot().connected);
    // And what another made there since is not this one's.
    std::fs::write(&path, "precious").expect("writes");
    drop(device);
    assert!(path.exists());
}

#[test]
fn a_socket_is_for_those_who_were_given_access() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("net0");
    let core = Core::new();
    let spawn = |access| {
        holdfast_vhost_user::Device::spawn(
            holdfast_vhost_user::DeviceConfig {
                name: "net0".to_owned(),
                socket: SocketRole::Server(path.clone()),
                access,
                queue_pairs: 1,
                offloads: false,
                mtu: None,
                files: MemoryFiles::default(),
            },
            core.waker(),
        )
    };
    let own = std::fs::metadata(dir.path()).expect("a directory").gid();
    let root = nix::unistd::geteuid().is_root();
    // Only root may give a file to any group.
    let group = if root { 65_534 } else { own };
    for mode in [0o660, 0o666] {
        let _device = spawn(SocketAccess { mode: Some(mode), group: Some(group) }).expect("a device");
        let meta = std::fs::metadata(&path).expect("a socket");
        assert_eq!((meta.mode() & 0o7777, meta.gid()), (mode, group));
    }
    if !root {
        let refused = spawn(SocketAccess { mode: None, group: Some(0) });
        assert!(matches!(refused, Err(SpawnError::Access { .. })), "{refused:?}");
        assert!(!path.exists(), "what cannot be used is not left behind");
    }
}

#[test]
fn a_device_can_be_dropped_while_its_core_does_not_answer() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("net0");
    let ram = GuestRam::new();
    let core = Core::new();
    let (device, endpoint) = device(&core, SocketRole::Server(path.clone()), &MemoryFiles::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let outcome = std::panic::catch_unwind(|| Machine::connect(&path, &ram).start());
            assert!(outcome.is_err(), "nobody answers the start");
        });
        wait_event(&device, |event| matches!(event, DeviceEvent::MemoryChanged));
        drop(device);
    });
    assert!(!endpoint.is_running());
}

#[test]
fn a_stale_socket_is_taken_over_and_a_served_one_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("net0");
    drop(UnixListener::bind(&path).expect("listens"));
    let core = Core::new();
    let spawn = |path: &std::path::Path| {
        holdfast_vhost_user::Device::spawn(
            holdfast_vhost_user::DeviceConfig {
                name: "net1".to_owned(),
                socket: SocketRole::Server(path.to_owned()),
                access: SocketAccess::default(),
                queue_pairs: 1,
                offloads: false,
                mtu: None,
                files: MemoryFiles::default(),
            },
            core.waker(),
        )
    };
    let first = spawn(&path).expect("a socket that nobody serves is removed");
    assert!(matches!(spawn(&path), Err(SpawnError::SocketInUse(_))));
    let plain = dir.path().join("file");
    std::fs::write(&plain, "precious").expect("writes");
    assert!(matches!(spawn(&plain), Err(SpawnError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&plain).expect("reads"), "precious");
    assert!(matches!(spawn(&dir.path().join("no/such")), Err(SpawnError::Listen { .. })));
    drop(first);
}
