//! The laboratory itself, without Holdfast: a real guest on a TAP, streams both ways, a capture.

use holdfast_guest_init::protocol::{Direction, Dirty};
use holdfast_lab::artifacts::{Artifacts, Qemu};
use holdfast_lab::capture::{Capture, Flow};
use holdfast_lab::client::{Amount, Client, SessionSpec};
use holdfast_lab::guest::{Backend, Guest, GuestSpec, Nic};
use holdfast_lab::requirements::{Need, can_run};
use holdfast_lab::scratch::Scratch;
use holdfast_lab::topology::{Topology, TopologyOptions, guest_ip, guest_ip6};
use std::net::IpAddr;
use std::time::Duration;

const BOOT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

struct Setup {
    // Dropped in this order: the guest before the namespaces and folders that it uses.
    guest: Guest,
    client: Client,
    topology: Topology,
    scratch: Scratch,
}

fn set_up(qemu: &Qemu, options: &TopologyOptions) -> Setup {
    let scratch = Scratch::new("plain").expect("folders");
    let artifacts = Artifacts::locate().expect("fetched");
    let topology = Topology::create(options).expect("laid");
    topology.a.add_tap("tap0").expect("made");
    let mut guest = GuestSpec::new("plain", qemu, &artifacts, &scratch)
        .expect("an initramfs")
        .nic(Nic::numbered(0, Backend::Tap { interface: "tap0".into() }))
        .start(&topology.a.namespace)
        .expect("started");
    guest.wait_ready(BOOT).expect("ready");
    let client = Client::new(&topology.client);
    Setup { guest, client, topology, scratch }
}

fn streams_are_exact(setup: &Setup, guest: IpAddr, bytes: u64) {
    for (direction, seed) in [(Direction::Download, 11), (Direction::Upload, 12), (Direction::Echo, 13)] {
        let bytes = if direction == Direction::Echo { bytes / 16 } else { bytes };
        let spec = SessionSpec::new(direction, guest, seed, Amount::Bytes(bytes));
        let report = setup.client.run(spec).expect("ran");
        assert!(report.exact(), "{direction:?}: {:?}", report.end);
        assert_eq!(report.bytes, bytes);
        println!(
            "{direction:?} to {guest}: {:.0} Mbit/s, longest gap {:.1} ms",
            report.throughput_mbit_s(),
            report.max_gap.as_secs_f64() * 1e3
        );
    }
}

#[test]
fn streams_through_a_plain_guest_are_exact_in_every_direction() {
    if !can_run(&[Need::Root, Need::Tun, Need::Guest]) {
        return;
    }
    let mut setup = set_up(&Qemu::system().expect("QEMU"), &TopologyOptions::default());
    let path = setup.scratch.file("wire.pcap");
    let capture = Capture::start(&setup.topology.switch, setup.topology.a.client_port, Flow::Arriving, &path);
    let capture = capture.expect("capturing");
    streams_are_exact(&setup, guest_ip(0).into(), 64 * MIB);
    streams_are_exact(&setup, guest_ip6(0).into(), 16 * MIB);

    let captured = capture.stop().expect("captured");
    let mut pcap = captured.open().expect("opened");
    let (mut frames, mut longest) = (0, 0);
    while let Some(frame) = pcap.next_frame().expect("read") {
        frames += 1;
        longest = longest.max(frame.len);
    }
    println!("{frames} frames, {} dropped by the capture", captured.dropped);
    assert_eq!(frames, captured.frames);
    assert!(frames > 64 * MIB / 1448, "the download alone has more");
    assert!(longest <= 1514, "{longest} bytes: frames on the wire are as on a cable");

    let order = Dirty::words(500, 10_000);
    setup.client.dirty(guest_ip(0).into(), order).expect("dirties");
    let times = setup.client.round_trips(guest_ip(0).into(), 64, 200).expect("timed");
    println!("round trip p50 {:.0} us, p99 {:.0} us", times.p50, times.p99);
    assert!(setup.guest.process.is_running());
    let status = setup
        .guest
        .monitor()
        .and_then(|mut monitor| monitor.execute("query-status", serde_json::Value::Null));
    assert_eq!(status.expect("answers")["status"], "running");
}

#[test]
fn a_session_without_end_is_ended_by_the_client() {
    if !can_run(&[Need::Root, Need::Tun, Need::Guest]) {
        return;
    }
    let setup = set_up(&Qemu::system().expect("QEMU"), &TopologyOptions::default());
    let guest: IpAddr = guest_ip(0).into();
    let start = |direction, seed| {
        let spec = SessionSpec::new(direction, guest, seed, Amount::UntilStopped);
        setup.client.start(spec).expect("started")
    };
    let (down, up) = (start(Direction::Download, 1), start(Direction::Upload, 2));
    while down.bytes() < 8 * MIB || up.bytes() < 8 * MIB {
        assert!(!down.is_finished() && !up.is_finished());
        std::thread::yield_now();
    }
    for session in [down, up] {
        session.stop();
        let report = session.finish();
        assert!(report.exact(), "{:?}", report.end);
        assert!(report.bytes >= 8 * MIB);
    }
}

#[test]
fn qemu_10_runs_the_same_guest() {
    if !can_run(&[Need::Root, Need::Tun, Need::Guest, Need::Qemu10]) {
        return;
    }
    let qemu = Artifacts::locate().and_then(|artifacts| artifacts.qemu_10()).expect("QEMU 10");
    let setup = set_up(&qemu, &TopologyOptions { wire_offloads: true, ..TopologyOptions::default() });
    streams_are_exact(&setup, guest_ip(0).into(), 32 * MIB);
}

#[test]
fn the_death_of_a_host_takes_all_its_processes() {
    if !can_run(&[Need::Root, Need::Tun, Need::Guest]) {
        return;
    }
    let mut setup = set_up(&Qemu::system().expect("QEMU"), &TopologyOptions::default());
    assert_eq!(setup.topology.a.namespace.processes(), [setup.guest.pid()]);
    assert_eq!(setup.topology.a.namespace.kill_all(), 1);
    assert!(!setup.guest.process.is_running());
}
