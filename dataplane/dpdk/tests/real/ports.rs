//! Real ports: frames go out of an interface and come back byte for byte, with and without huge pages.

use crate::support::{Memory, Opened, PATIENCE, Part, Station, alone, open, part, veth, wire};
use holdfast_dpdk::{BURST, Mbuf};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

const COUNT: usize = 300;

/// Echoes on one thread what the station sends from another, then looks at the counters.
fn exchange(mut opened: Opened, interface: &str) {
    let station = Station::on(interface);
    let longest = opened.tx.frame_max() - 4;
    thread::scope(|scope| {
        // Queues and mbufs work on a thread that DPDK did not make.
        let echo = scope.spawn(|| opened.echo(COUNT));
        station.exchange(COUNT, longest);
        echo.join().expect("the echo ends");
    });
    let stats = opened.port.stats().expect("counters");
    assert!(stats.rx_frames >= COUNT as u64 && stats.tx_frames >= COUNT as u64, "{stats:?}");
    assert_eq!(opened.rx.oversized(), 0);
    assert_eq!(opened.tx.refused(), 0);
    assert!(!opened.port.driver_stats().expect("counters").is_empty());
}

fn tap(memory: Memory) {
    let checked = wire("tap", |raw| {
        raw.iface = Some("hftap".to_owned());
        raw.mac = Some("02:00:00:00:00:01".to_owned());
    });
    let opened = open(&checked, memory);
    assert_eq!(opened.port.driver().expect("a driver"), "net_tap");
    assert_eq!(opened.port.mac().expect("an address"), [2, 0, 0, 0, 0, 1]);
    assert_eq!(opened.port.mtu().expect("an MTU"), 1500);
    assert!(opened.port.link().expect("a link").up);
    exchange(opened, "hftap");
}

#[test]
fn net_tap_carries_frames_both_ways_on_huge_pages() {
    alone(Memory::Huge, || tap(Memory::Huge));
}

#[test]
fn net_tap_carries_frames_both_ways_without_huge_pages() {
    alone(Memory::Ordinary, || {
        tap(Memory::Ordinary);
    });
}

fn af_packet(memory: Memory) {
    veth("hfours", "hftheirs");
    let checked = wire("af_packet", |raw| raw.iface = Some("hfours".to_owned()));
    let opened = open(&checked, memory);
    assert_eq!(opened.rx.interrupt_fd(), None);
    exchange(opened, "hftheirs");
}

#[test]
fn net_af_packet_carries_frames_both_ways_on_huge_pages() {
    alone(Memory::Huge, || {
        af_packet(Memory::Huge);
    });
}

#[test]
fn net_af_packet_carries_frames_both_ways_without_huge_pages() {
    alone(Memory::Ordinary, || {
        af_packet(Memory::Ordinary);
    });
}

fn af_xdp(memory: Memory) {
    veth("hfours", "hftheirs");
    let checked = wire("af_xdp", |raw| {
        raw.iface = Some("hfours".to_owned());
        raw.frames = Some(16384);
    });
    exchange(open(&checked, memory), "hftheirs");
}

#[test]
fn net_af_xdp_carries_frames_both_ways_on_huge_pages() {
    alone(Memory::Huge, || af_xdp(Memory::Huge));
}

#[test]
fn net_af_xdp_carries_frames_both_ways_without_huge_pages() {
    alone(Memory::Ordinary, || {
        af_xdp(Memory::Ordinary);
    });
}

/// DPDK's packet sockets tell of 1518 bytes at most, and carry what their rings hold.
#[test]
fn net_af_packet_carries_jumbo_frames() {
    alone(Memory::Ordinary, || {
        veth("hfours", "hftheirs");
        for end in ["hfours", "hftheirs"] {
            crate::support::run("ip", &format!("link set {end} mtu 9000"));
        }
        let checked = wire("af_packet", |raw| {
            raw.iface = Some("hfours".to_owned());
            raw.mtu = Some(9000);
            raw.frames = Some(1024);
        });
        let opened = open(&checked, Memory::Ordinary);
        assert!(opened.tx.frame_max() >= 9014);
        exchange(opened, "hftheirs");
    });
}

/// The client process sends frames and checks each echo; the server process echoes.
fn memif(memory: Memory, mtu: u16) {
    let socket = crate::support::scratch("sock");
    let socket = socket.to_str().expect("plain letters");
    let end = |role: &str| {
        wire("memif", |raw| {
            raw.role = Some(role.to_owned());
            raw.socket = Some(socket.to_owned());
            raw.mtu = Some(mtu);
            raw.frames = Some(1024);
        })
    };
    if part().is_some() {
        return memif_client(open(&end("client"), memory), mtu);
    }
    let mut opened = open(&end("server"), memory);
    assert!(!opened.port.link().expect("a link").up, "nobody is there yet");
    let client = Part::start("client");
    opened.echo(COUNT);
    client.succeed();
    // The file is gone with the port.
    drop(opened);
    assert!(!std::path::Path::new(socket).exists());
}

fn memif_client(mut opened: Opened, mtu: u16) {
    let deadline = Instant::now() + PATIENCE;
    while !opened.port.link().expect("a link").up {
        assert!(Instant::now() < deadline, "the server never came");
        thread::yield_now();
    }
    let mut received = arrayvec::ArrayVec::<Mbuf, BURST>::new();
    for number in 0..COUNT {
        let longest = usize::from(mtu) + 14;
        let sent = Station::frame(
            number,
            if number % 7 == 6 { longest } else { 60 + number * 97 % longest.div_ceil(2) },
        );
        let mut frame = opened.pool.alloc(sent.len()).expect("the pool has room");
        frame.bytes_mut().copy_from_slice(&sent);
        let mut frames = VecDeque::from([frame]);
        while opened.tx.burst(&mut frames, BURST) == 0 {
            assert!(Instant::now() < deadline, "the ring stays full");
        }
        while opened.rx.burst(&mut received) == 0 {
            assert!(Instant::now() < deadline, "no echo of frame {number}");
        }
        assert_eq!(received[0].bytes()[12..], sent[12..], "frame {number}");
        assert_eq!(received[0].bytes()[..6], sent[6..12], "frame {number}");
        received.clear();
    }
}

#[test]
fn net_memif_joins_two_processes_on_huge_pages() {
    alone(Memory::Huge, || memif(Memory::Huge, 1500));
}

#[test]
fn net_memif_joins_two_processes_without_huge_pages() {
    alone(Memory::Ordinary, || memif(Memory::Ordinary, 1500));
}

/// No cable bounds them, and DPDK's number for the driver is one that it does not keep to.
#[test]
fn net_memif_carries_the_longest_frames() {
    alone(Memory::Ordinary, || memif(Memory::Ordinary, 16_384));
}

#[test]
fn frames_of_a_larger_mtu_pass_whole() {
    alone(Memory::Ordinary, || {
        veth("hfours", "hftheirs");
        crate::support::run("ip", "link set hftheirs mtu 3400");
        let checked = wire("af_xdp", |raw| {
            raw.iface = Some("hfours".to_owned());
            raw.mtu = Some(3400);
            raw.frames = Some(16384);
        });
        exchange(open(&checked, Memory::Ordinary), "hftheirs");
    });
}

#[test]
fn a_tap_wakes_its_sleeping_core_by_a_descriptor_and_by_no_signal() {
    alone(Memory::Ordinary, || {
        let checked = wire("tap", |raw| raw.iface = Some("hftap".to_owned()));
        let mut opened = open(&checked, Memory::Ordinary);
        let fd = opened.rx.interrupt_fd().expect("net_tap has one");
        let flags = nix::fcntl::fcntl(
            // The port is open, and the descriptor belongs to it.
            crate::support::borrowed(fd),
            nix::fcntl::FcntlArg::F_GETFL,
        )
        .expect("a descriptor");
        assert_eq!(flags & 0o20000, 0, "the descriptor must not raise signals");

        let station = Station::on("hftap");
        let mut received = arrayvec::ArrayVec::<Mbuf, BURST>::new();
        for number in 0..50 {
            opened.rx.arm().expect("armed");
            while opened.rx.burst(&mut received) > 0 {
                received.clear();
            }
            station.send(&Station::frame(number, 100));
            assert!(readable(crate::support::borrowed(fd)), "frame {number} wakes nobody");
            opened.rx.disarm().expect("disarmed");
            while !received.iter().any(|frame| Station::is_ours(frame.bytes())) {
                received.clear();
                assert!(opened.rx.burst(&mut received) > 0, "it was readable");
            }
            received.clear();
        }
    });
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(fd, PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(Duration::from_secs(20)).expect("short");
    poll(&mut polled, patience).expect("no signal breaks the call") == 1
}

/// RB-1: what no port can send is dropped and counted, and those behind it go out.
#[test]
fn a_frame_that_no_port_can_send_does_not_block_those_behind_it() {
    alone(Memory::Ordinary, || {
        let checked = wire("tap", |raw| raw.iface = Some("hftap".to_owned()));
        let mut opened = open(&checked, Memory::Ordinary);
        let station = Station::on("hftap");
        let max = opened.tx.frame_max();
        let mut frames = VecDeque::new();
        for (number, len) in [13, 100, 0, max + 1, 2000, 200, max + 1].into_iter().enumerate() {
            let mut frame = opened.pool.alloc(len).expect("the pool has room");
            frame.bytes_mut().copy_from_slice(&Station::frame(number, len.max(14))[..len]);
            frames.push_back(frame);
        }
        let free = opened.pool.free_frames();
        assert_eq!(opened.tx.burst(&mut frames, BURST), 7);
        assert_eq!(opened.tx.refused(), 5);
        assert_eq!(opened.pool.free_frames(), free + 7);
        assert_eq!(station.receive(PATIENCE), Some(Station::frame(1, 100)));
        assert_eq!(station.receive(PATIENCE), Some(Station::frame(5, 200)));
    });
}

#[test]
fn a_port_can_be_closed_and_opened_again() {
    alone(Memory::Ordinary, || {
        let checked = wire("tap", |raw| raw.iface = Some("hftap".to_owned()));
        let eal = crate::support::start(&checked, Memory::Ordinary);
        let wire = &checked.wires[0];
        let pool = holdfast_dpdk::Pool::new(eal, wire.frames, wire.frame_bytes()).expect("a pool");
        for _ in 0..5 {
            let opened = crate::support::open_on(eal, &checked, pool);
            exchange(opened, "hftap");
            assert_eq!(pool.free_frames(), pool.frames(), "a closed port holds no frames");
        }
    });
}
