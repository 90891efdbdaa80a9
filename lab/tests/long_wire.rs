//! The wire emulator between real namespaces, with the kernel's own TCP at both ends.

use holdfast_guest_init::protocol::{Direction, STREAM_PORT};
use holdfast_guest_init::stream::Stream;
use holdfast_lab::capture::{Capture, Flow};
use holdfast_lab::emulator::{Pump, Report, WireSpec};
use holdfast_lab::expert::{Complaints, complaints};
use holdfast_lab::netns::Namespace;
use holdfast_lab::requirements::{Need, can_run};
use holdfast_lab::scratch::Scratch;
use holdfast_lab::topology::{LONG_WIRE, Topology, TopologyOptions, WIRE, guest_ip};
use nix::sys::eventfd::EventFd;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A host that is a plain Linux with the guest's address, a client, and the wire between them.
struct LongWire {
    topology: Topology,
    stop: Arc<EventFd>,
    pump: JoinHandle<Report>,
}

fn lay(wire: &str, seed: u64) -> LongWire {
    let options = TopologyOptions { long_wire: true, ..TopologyOptions::default() };
    let topology = Topology::create(&options).expect("laid");
    topology.a.namespace.ip(&format!("addr add {}/24 dev {WIRE}", guest_ip(1))).expect("an address");
    let wire: WireSpec = wire.parse().expect("a wire");
    let stop = Arc::new(EventFd::new().expect("a descriptor"));
    let (switch, stopped) = (topology.switch.clone(), Arc::clone(&stop));
    let pump = thread::spawn(move || {
        let run = || {
            let mut pump = Pump::open(LONG_WIRE.0, LONG_WIRE.1, &wire, seed)?;
            pump.run(stopped.as_fd())
        };
        switch.run(run).expect("entered").expect("a wire that works")
    });
    LongWire { topology, stop, pump }
}

impl LongWire {
    fn end(self) -> Report {
        self.stop.write(1).expect("told to stop");
        let report = self.pump.join().expect("ended");
        println!("{report:?}");
        report
    }

    /// The host sends the stream of `seed`, and the client checks it; gives how long that took.
    fn download(&self, seed: u64, bytes: u64) -> Duration {
        let listener = self.topology.a.namespace.run(|| TcpListener::bind((guest_ip(1), STREAM_PORT)));
        let listener = listener.expect("entered").expect("bound");
        let sender = thread::spawn(move || {
            let (mut peer, _) = listener.accept().expect("accepted");
            let (stream, mut part) = (Stream::new(seed), vec![0; 256 << 10]);
            for offset in (0..bytes).step_by(part.len()) {
                let len = part.len().min((bytes - offset) as usize);
                stream.fill(offset, &mut part[..len]);
                peer.write_all(&part[..len]).expect("sent");
            }
            peer.shutdown(Shutdown::Write).expect("ended");
            peer.read_to_end(&mut Vec::new()).expect("the other end's end");
        });
        let began = Instant::now();
        let client = self.topology.client.run(|| TcpStream::connect((guest_ip(1), STREAM_PORT)));
        let mut client = client.expect("entered").expect("connected");
        let (stream, mut part, mut offset) = (Stream::new(seed), vec![0; 256 << 10], 0);
        loop {
            let read = client.read(&mut part).expect("read");
            if read == 0 {
                break;
            }
            assert_eq!(stream.first_difference(offset, &part[..read]), None);
            offset += read as u64;
        }
        let took = began.elapsed();
        assert_eq!(offset, bytes);
        drop(client);
        sender.join().expect("sent");
        println!("{:?}: {:.0} Mbit/s", Direction::Download, bytes as f64 * 8e-6 / took.as_secs_f64());
        took
    }
}

/// The least and the mean round trip of some pings from the client, in milliseconds.
fn ping(client: &Namespace) -> (f64, f64) {
    let host = guest_ip(1).to_string();
    // The first one also asks for the address.
    client.tool("ping", &["-c", "1", "-W", "5", &host]).expect("an answer");
    let said = client.tool("ping", &["-c", "20", "-i", "0.02", "-W", "5", &host]).expect("answers");
    let line = said.lines().find_map(|line| line.split_once("mdev = ")).expect("a summary").1;
    let mut times = line.split('/').map(|time| time.parse::<f64>().expect("a time"));
    (times.next().expect("the least"), times.next().expect("the mean"))
}

#[test]
fn a_round_trip_takes_both_delays_and_hardly_more() {
    if !can_run(&[Need::Root]) {
        return;
    }
    let wire = lay("down.delay=8ms,up.delay=12ms", 1);
    let (least, mean) = ping(&wire.topology.client);
    println!("round trip of at least {least} ms, {mean} ms in the mean");
    let report = wire.end();
    assert!(least >= 20.0, "{least}");
    // A busy machine may be late, but not always.
    assert!(least < 21.0, "{least}");
    assert_eq!(report.down.counters.lost_frames + report.up.counters.lost_frames, 0);
    assert!(report.up.counters.delivered_frames > 20);
}

#[test]
fn a_tcp_stream_gets_through_every_hardship_unharmed() {
    if !can_run(&[Need::Root]) {
        return;
    }
    let hardships =
        "delay=2ms,jitter=1ms,rate=500mbit,loss=1%,duplicate=1%,reorder=1%,corrupt=1%,queue=256kib";
    let wire = lay(hardships, 2);
    wire.download(21, 16 * MIB);
    let report = wire.end();
    for direction in [report.down, report.up] {
        let counters = direction.counters;
        assert!(counters.lost_frames > 0 && counters.duplicated_frames > 0, "{counters:?}");
        assert!(counters.reordered_frames > 0 && counters.corrupted_frames > 0, "{counters:?}");
        assert_eq!(
            (direction.unsent_frames, direction.unfetched_frames, direction.oversized_frames),
            (0, 0, 0)
        );
        let gone = counters.lost_frames + counters.dropped_frames;
        let on = direction.under_way_frames + counters.delivered_frames;
        assert_eq!(on, counters.frames - gone + counters.duplicated_frames);
    }
}

/// What tshark complains of in the client's capture of a download over that wire.
fn complaints_over(wire: &str) -> Complaints {
    let scratch = Scratch::new("expert").expect("folders");
    let wire = lay(wire, 6);
    let client = (&wire.topology.client, wire.topology.client_interface);
    let capture =
        Capture::start(client.0, client.1, Flow::Both, &scratch.file("client.pcap")).expect("captures");
    wire.download(23, 4 * MIB);
    let captured = capture.stop().expect("captured");
    assert_eq!(captured.dropped, 0);
    wire.end();
    let found = complaints(&captured.path, STREAM_PORT).expect("an analysis");
    println!("{found:?}");
    found
}

#[test]
fn a_lossy_wire_is_complained_of_and_a_clean_one_is_not() {
    if !can_run(&[Need::Root]) {
        return;
    }
    let clean = complaints_over("delay=1ms");
    let lossy = complaints_over("delay=1ms,loss=1%");
    let more: Vec<String> = lossy.beyond(&clean).into_iter().map(|found| found.complaint).collect();
    assert!(more.iter().any(|text| text.contains("retransmission")), "{more:?}");
    assert!(!clean.0.keys().any(|text| text.contains("retransmission")), "{clean:?}");
}

#[test]
fn a_line_keeps_its_rate() {
    if !can_run(&[Need::Root]) {
        return;
    }
    let wire = lay("down.rate=100mbit,delay=1ms,queue=20ms", 3);
    let took = wire.download(22, 24 * MIB);
    let report = wire.end();
    let line = report.down.counters.delivered_bytes as f64 * 8e-6 / took.as_secs_f64();
    println!("{line:.1} Mbit/s on the line");
    assert!(line < 100.0, "{line}: more than the line has");
    assert!(line > 50.0, "{line}: far less than the line has");
}
