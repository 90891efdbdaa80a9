//! Messages that the `vhost` crate does not know, and frontends that break the rules (RB-1).

use crate::core::Core;
use crate::driver::GuestRam;
use crate::machine::{Machine, RX, Served, device, region, served, wait_event};
use holdfast_vhost_user::{DeviceEvent, MemoryFiles, SocketRole};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use vhost::{VhostBackend, VringConfigData};

const NET_SET_MTU: u32 = 20;
const SEND_RARP: u32 = 19;

fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = [request, flags, body.len() as u32].map(u32::to_ne_bytes).concat();
    bytes.extend_from_slice(body);
    bytes
}

/// Sends a message that wants an acknowledgement; what it says.
fn ask(stream: &mut UnixStream, request: u32, body: u64) -> u64 {
    stream.write_all(&message(request, 1 | 8, &body.to_ne_bytes())).expect("sends");
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).expect("answers");
    assert_eq!(reply[..12], message(request, 1 | 4, &[0; 8])[..12]);
    u64::from_ne_bytes(reply[12..].try_into().expect("eight bytes"))
}

#[test]
fn an_mtu_is_checked_and_an_announcement_is_passed_on() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, path, .. } = &served;
    let mut stream = UnixStream::connect(path).expect("connects");
    let mut machine = Machine::boot(stream.try_clone().expect("a second descriptor"), &ram);
    assert_eq!(ask(&mut stream, NET_SET_MTU, 1400), 0);
    assert_eq!(device.snapshot().mtu, Some(1400));
    machine.start();
    machine.echo(0);
    let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    let body = u64::from_ne_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], 0, 0]);
    assert_eq!(ask(&mut stream, SEND_RARP, body), 0);
    wait_event(device, |event| *event == DeviceEvent::AnnounceRequested { mac });
    // The device is configured for 1500.
    assert_eq!(ask(&mut stream, NET_SET_MTU, 9000), 1);
    let seen = wait_event(device, |event| matches!(event, DeviceEvent::PeerFault(_)));
    let Some(DeviceEvent::PeerFault(text)) = seen.last() else { unreachable!() };
    assert!(text.contains("9000") && text.contains("host_mtu"), "{text}");
}

/// RB-1: whatever bytes come, the connection ends, it is counted, and the next frontend is served.
#[test]
fn broken_messages_end_their_connection_alone() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, path, .. } = &served;
    let broken: &[(&str, Vec<u8>)] = &[
        ("noise", vec![0xff; 300]),
        ("zeroes", vec![0; 64]),
        ("a request that does not exist", message(999, 1, &[])),
        ("a wrong version", message(1, 2, &[])),
        ("a body of 4 GiB", [3_u32, 1, u32::MAX].map(u32::to_ne_bytes).concat()),
        ("features that were not offered", message(2, 1, &u64::MAX.to_ne_bytes())),
        ("a ring that does not exist", message(8, 1, &[77, 0, 0, 0, 1, 1, 0, 0])),
        ("a ring size that does not fit", message(8, 1, &[0, 0, 0, 0, 0, 0, 1, 0])),
        ("a base that does not fit", message(10, 1, &[0, 0, 0, 0, 0, 0, 1, 0])),
        ("a table without descriptors", message(5, 1, &[1, 0, 0, 0, 0, 0, 0, 0])),
        ("a kick without its descriptor", message(12, 1, &0_u64.to_ne_bytes())),
        ("a log without its descriptor", message(6, 1, &[1; 16])),
        ("an MTU of 3", message(NET_SET_MTU, 1, &3_u64.to_ne_bytes())),
        ("an MTU message of another size", message(NET_SET_MTU, 1, &[0; 4])),
        ("a ring enabled by half", message(18, 1, &[0, 0, 0, 0, 2, 0, 0, 0])),
        ("a reply out of the blue", message(1, 1 | 4, &[0; 8])),
    ];
    for (count, (name, bytes)) in (1..).zip(broken) {
        let mut stream = UnixStream::connect(path).expect("connects");
        stream.write_all(bytes).expect("sends");
        let mut rest = Vec::new();
        // Closed by the device, with bytes of ours unread or not.
        drop(stream.read_to_end(&mut rest));
        wait_event(device, |event| *event == DeviceEvent::Disconnected);
        assert_eq!(device.snapshot().peer_faults, count, "{name}");
    }
    // A frontend that dies amid a header or a body is no fault.
    for cut in [1, 11, 15] {
        let mut stream = UnixStream::connect(path).expect("connects");
        stream.write_all(&message(NET_SET_MTU, 1, &[0; 8])[..cut]).expect("sends");
        drop(stream);
        wait_event(device, |event| *event == DeviceEvent::Disconnected);
    }
    let mut machine = Machine::connect(path, &ram);
    machine.start();
    machine.echo(0);
    assert_eq!(device.snapshot().peer_faults, broken.len() as u64);
}

/// RB-1: tables and rings that contradict themselves are refused with a reason.
#[test]
fn impossible_tables_and_rings_are_refused_with_a_reason() {
    let ram = GuestRam::new();
    let served = served();
    let Served { device, path, .. } = &served;
    let file = ram.descriptor();
    let null = std::fs::File::open("/dev/null").expect("opens");
    let tables = [
        (vec![region(0, 0x40_0000, 0, &file)], "does not lie inside its file"),
        (vec![region(0, 0x1000, 0x2f_f001, &file)], "does not lie inside its file"),
        (vec![region(0, 0x2000, 0, &file), region(0x1000, 0x1000, 0x2000, &file)], "overlap"),
        (vec![region(0, 0x1000, 0, &null)], "not a regular file"),
    ];
    let refused = |reason: &str| {
        let seen = wait_event(device, |event| *event == DeviceEvent::Disconnected);
        let told =
            seen.iter().any(|event| matches!(event, DeviceEvent::PeerFault(text) if text.contains(reason)));
        assert!(told, "{reason}: {seen:?}");
    };
    for (table, reason) in &tables {
        let machine = Machine::connect(path, &ram);
        assert!(machine.frontend.set_mem_table(table).is_err(), "{reason}");
        refused(reason);
    }
    let machine = Machine::connect(path, &ram);
    machine.frontend.set_features(machine.features).expect("features");
    machine.set_memory(&crate::driver::REGIONS);
    machine.frontend.set_vring_num(RX, 32).expect("size");
    let nowhere = VringConfigData {
        queue_max_size: 32,
        queue_size: 32,
        flags: 0,
        desc_table_addr: 0x1000,
        used_ring_addr: 0x2000,
        avail_ring_addr: 0x3000,
        log_addr: None,
    };
    machine.frontend.set_vring_addr(RX, &nowhere).expect("addresses are judged at the start");
    vhost::vhost_user::VhostUserFrontend::set_vring_enable(&mut machine.frontend.clone(), RX, true)
        .expect("enable");
    let kick = vmm_sys_util::eventfd::EventFd::new(0).expect("an eventfd");
    assert!(machine.frontend.set_vring_kick(RX, &kick).is_err());
    refused("descriptor table");
    assert_eq!(device.snapshot().rings_running, [false, false]);
}

#[test]
fn two_cards_of_one_machine_share_its_memory_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let paths = [dir.path().join("a"), dir.path().join("b")];
    let ram = GuestRam::new();
    let files = MemoryFiles::default();
    let mut core = Core::new();
    let [(first, one), (second, two)] =
        [0, 1].map(|which: usize| device(&core, SocketRole::Server(paths[which].clone()), &files));
    core.run(vec![one, two]);
    let machines = [Machine::connect(&paths[0], &ram), Machine::connect(&paths[1], &ram)];
    for machine in &machines {
        machine.set_memory(&crate::driver::REGIONS);
    }
    let [a, b] = [&first, &second].map(|device| device.memory().expect("memory is known"));
    assert!(std::sync::Arc::ptr_eq(&a.files()[0], &b.files()[0]), "one mapping, one dirty bitmap");
}
