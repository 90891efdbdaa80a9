//! Large frames, both ways.

use crate::driver::GuestRam;
use crate::host::Host;
use crate::machine::Machine;
use holdfast_dataplane::sample::Offloaded;
use holdfast_dataplane::{PortConfig, sample};

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn a_large_frame_of_the_guest_leaves_as_complete_segments() {
    let ram = GuestRam::new();
    let mut host = Host::new();
    let path = host.device(1, PortConfig::default());
    let mut machine = Machine::boot(&path, &ram);
    for v6 in [false, true] {
        let whole = sample::Tcp::data(v6, payload(20_000));
        let (header, bytes) = whole.offloaded(1400);
        machine.send_offloaded(&header, &bytes);
        let mut stream = Vec::new();
        for segment in host.wire(15) {
            assert!(sample::adds_up(&segment, whole.transport(), v6, 6));
            stream.extend_from_slice(&segment[whole.headers()..]);
        }
        assert_eq!(stream, whole.payload);
    }
}

#[test]
fn segments_from_the_wire_reach_the_guest_as_large_frames() {
    let ram = GuestRam::new();
    let mut host = Host::new();
    let path = host.device(1, PortConfig::default());
    let mut machine = Machine::boot(&path, &ram);
    machine.send(&sample::arp(sample::GUEST, [10, 0, 0, 2]));
    host.wire(1);
    for v6 in [false, true] {
        // The machine is paused while they come in, so that they are there at once.
        machine.stop();
        let mut whole = sample::Tcp::data(v6, payload(20 * 1400));
        (whole.source, whole.destination) = (sample::CLIENT, sample::GUEST);
        for (nth, chunk) in whole.payload.chunks(1400).enumerate() {
            let mut segment = whole.clone();
            segment.sequence = whole.sequence.wrapping_add(1400 * nth as u32);
            segment.payload = chunk.to_vec();
            host.peer.put(&segment.bytes());
        }
        host.settle();
        machine.cont();
        let (header, bytes) = machine.receive();
        let (expected_header, expected) = whole.offloaded(1400);
        assert_eq!(bytes, expected);
        assert!(header.num_buffers > 1);
        assert_eq!((header.gso_type, header.gso_size), (expected_header.gso_type, 1400));
        assert_eq!((header.csum_start, header.csum_offset), (expected_header.csum_start, 16));
    }
}
