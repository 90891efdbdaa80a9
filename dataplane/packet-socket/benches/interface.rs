//! Cost of a frame through the kernel, in each direction: `cargo bench -p holdfast-packet-socket`, as root.
//!
//! A veth pair in a namespace of its own, of which one end sends and the other receives, in one thread. What the kernel
//! does with a frame until it lies in the receiver's queue is done in its sender's time.

use holdfast_lab::netns::Namespace;
use holdfast_packet_socket::{BURST, HEADER_LEN, Interface, Sent};
use std::time::{Duration, Instant};

const FRAMES: usize = 200_000;
const PLAIN: [u8; HEADER_LEN] = [0; HEADER_LEN];
/// Local experimental EtherType: no stack takes it up.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; len];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame[12..14].copy_from_slice(&ETHERTYPE);
    frame
}

fn measure(ours: &mut Interface, theirs: &mut Interface, len: usize) {
    let frame = frame(len);
    let mut buffers = vec![vec![0; 16 << 10]; BURST];
    let (mut sending, mut receiving) = (Duration::ZERO, Duration::ZERO);
    let mut received = 0;
    for _ in 0..FRAMES / BURST {
        let began = Instant::now();
        for _ in 0..BURST {
            assert_eq!(ours.sender.send(&PLAIN, &[&frame], 1), Sent::Taken);
        }
        sending += began.elapsed();
        // One turn may find less: what the kernel says on its own account comes between.
        let (mut mine, patience) = (0, Instant::now() + Duration::from_secs(5));
        while mine < BURST {
            let began = Instant::now();
            theirs.receiver.burst(&mut buffers, |got| mine += usize::from(got.len == len));
            receiving += began.elapsed();
            assert!(Instant::now() < patience, "{mine} of {BURST} came");
        }
        received += mine;
    }
    let each = |time: Duration| time.as_nanos() as f64 / received as f64;
    println!("frame_bytes={len:<5} send_ns={:<6.0} receive_ns={:.0}", each(sending), each(receiving));
}

fn main() {
    let namespace = Namespace::create("packet-bench").expect("root, to make a network namespace");
    namespace.add_veth(["ours", "theirs"], 9000, false).expect("a veth pair");
    let open =
        |name| namespace.run(|| Interface::open(name)).expect("a namespace of ours").expect("it opens");
    let (mut ours, mut theirs) = (open("ours"), open("theirs"));
    for len in [60, 1514, 9014] {
        measure(&mut ours, &mut theirs, len);
    }
}
