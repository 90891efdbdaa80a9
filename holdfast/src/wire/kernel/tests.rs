//! Frames through the real kernel, from one end of a veth pair to the other, in mbufs of a real pool.

use super::*;
use holdfast_dataplane::frame::Frame;
use holdfast_dataplane::headers::flag;
use holdfast_dataplane::sample::{GUEST, Offloaded, Tcp, Udp};
use holdfast_lab::netns::Namespace;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const MTU: u16 = 1500;
const TAG: [u8; 4] = [0x81, 0, 0x60, 5];
const SERVICE_TAG: [u8; 4] = [0x88, 0xa8, 0x20, 9];
/// Payload of a segment: as much as fits with two tags.
const SIZE: u16 = 1400;

/// Pools last as long as the process.
fn pool(frames: u32, frame_max: u16) -> Pool {
    Pool::new(crate::wire::eal_of_tests(), frames, frame_max).unwrap_or_else(|fault| panic!("{fault}"))
}

/// With more frames than the tests hold at a time.
fn roomy() -> Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    *POOL.get_or_init(|| pool(8192, 2048))
}

/// The two ends of a veth pair, as wires, in a namespace of their own.
struct Ends {
    ours: KernelWire,
    theirs: KernelWire,
    namespace: Namespace,
}

/// With the offloads on that interfaces come with. None where the host cannot.
fn ends() -> Option<Ends> {
    ends_with(true, MTU, roomy)
}

/// The other end has a wire of that MTU, and frames of that pool.
fn ends_with(offloads: bool, mtu: u16, its_pool: impl FnOnce() -> Pool) -> Option<Ends> {
    let namespace = match Namespace::create("kernel-wire") {
        Ok(namespace) => namespace,
        Err(fault) => {
            println!("cannot run here: {fault}");
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{fault}");
            return None;
        }
    };
    namespace.add_veth(["ours", "theirs"], MTU.into(), offloads).expect("a veth pair");
    let wire = |name: &str, pool, mtu| {
        let opened = namespace.run(|| Interface::open(name)).expect("a namespace of ours");
        KernelWire::new(name.to_owned(), opened.expect("it opens"), pool, mtu)
    };
    let ours = wire("ours", roomy(), MTU);
    let theirs = wire("theirs", its_pool(), mtu);
    Some(Ends { ours, theirs, namespace })
}

impl Ends {
    /// The frames in memory of the sending wire.
    fn queue(&mut self, frames: &[Vec<u8>]) -> VecDeque<MbufFrame> {
        let mut made = VecDeque::new();
        for bytes in frames {
            let mut frame = self.ours.alloc(bytes.len()).expect("memory for a test's frames");
            frame.bytes_mut().copy_from_slice(bytes);
            made.push_back(frame);
        }
        made
    }

    /// Sends them all, in bursts of `max`.
    fn send(&mut self, frames: &[Vec<u8>], max: usize) {
        let mut waiting = self.queue(frames);
        while !waiting.is_empty() {
            let before = waiting.len();
            let sent = self.ours.tx_burst(&mut waiting, max);
            assert_eq!(before - sent, waiting.len(), "what was not sent is still there");
            assert!(sent > 0, "there is room");
        }
    }

    /// What came in now, at most so many, without what the kernel sends on its own account.
    fn look(&mut self, max: usize) -> Vec<Vec<u8>> {
        let mut out = Vec::with_capacity(max);
        let count = self.theirs.rx_burst(&mut out, max);
        assert!(count == out.len() && count <= max, "{count} of {max}");
        let bytes = out.iter().map(|frame| frame.bytes().to_vec());
        bytes.filter(|frame| frame[6..12] == GUEST).collect()
    }

    /// The next frames of the guest, taken by a few at a time.
    fn receive(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let until = Instant::now() + PATIENCE;
        while found.len() < count {
            let came = self.look(7);
            if came.is_empty() {
                let lost = self.theirs.lost();
                assert!(Instant::now() < until, "{} of {count} frames came, {lost} lost", found.len());
                wait(&self.theirs, PollTimeout::from(100u8));
            }
            found.extend(came);
        }
        found
    }

    /// Packets that left the sending interface.
    fn packets(&self) -> u64 {
        let told = self.namespace.ip("-s -j link show ours").expect("an interface of ours");
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        told[0]["stats64"]["tx"]["packets"].as_u64().expect("a number")
    }

    fn tc(&self, words: &str) {
        let words: Vec<&str> = words.split(' ').collect();
        self.namespace.tool("tc", &words).expect("tc, and tbf in the kernel");
    }

    fn lost(&self) -> (u64, u64) {
        (self.ours.lost(), self.theirs.lost())
    }
}

#[expect(unsafe_code, reason = "a descriptor is lent to poll")]
fn wait(wire: &KernelWire, limit: PollTimeout) {
    let fd = wire.readable_fd().expect("a socket");
    // SAFETY: the wire owns the descriptor and outlives the call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], limit).expect("poll");
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 1400 * 3) as u8).collect()
}

/// A large segment, and what it becomes when it is cut.
fn large(v6: bool, len: usize, tags: &[[u8; 4]]) -> (Tcp, Vec<Vec<u8>>) {
    let whole = Tcp { tags: tags.to_vec(), ..Tcp::data(v6, payload(len)) };
    let cut = whole.payload.chunks(SIZE.into()).zip(0u16..).map(|(payload, nth)| Tcp {
        sequence: whole.sequence.wrapping_add(u32::from(nth) * u32::from(SIZE)),
        identification: whole.identification.wrapping_add(nth),
        payload: payload.to_vec(),
        ..whole.clone()
    });
    let cut = cut.map(|segment| segment.bytes()).collect();
    (whole, cut)
}

fn segments(count: usize) -> Vec<Vec<u8>> {
    large(false, count * usize::from(SIZE), &[]).1
}

/// Whoever cuts it: the kernel where the interface has no offloads, the wire at the other end where it has.
#[test]
fn merged_segments_come_out_as_they_were_with_their_tags() {
    for offloads in [false, true] {
        let Some(mut ends) = ends_with(offloads, MTU, roomy) else { return };
        for v6 in [false, true] {
            for tags in [&[][..], &[TAG], &[SERVICE_TAG, TAG]] {
                let (_, frames) = large(v6, 100 * 1400 + 333, tags);
                let before = ends.packets();
                ends.send(&frames, 64);
                let found = ends.receive(frames.len());
                assert!(found == frames, "offloads: {offloads}, IPv6: {v6}, tags: {tags:?}");
                let packets = ends.packets() - before;
                assert!(!offloads || packets < 20, "{packets} packets left, so that nothing was merged");
            }
        }
        assert_eq!(ends.lost(), (0, 0));
    }
}

/// All have one identification, which a card would count up.
#[test]
fn segments_that_would_be_cut_otherwise_are_not_merged() {
    let Some(mut ends) = ends() else { return };
    let segment = |nth| Tcp { sequence: nth * u32::from(SIZE), ..Tcp::data(false, payload(SIZE.into())) };
    let frames: Vec<Vec<u8>> = (0..8).map(|nth| segment(nth).bytes()).collect();
    ends.send(&frames, 64);
    assert!(ends.receive(frames.len()) == frames);
}

/// The kernel takes the outermost tag out of whole frames too, and tells it apart.
#[test]
fn whole_frames_keep_their_tags() {
    let Some(mut ends) = ends() else { return };
    let frames: Vec<Vec<u8>> = [vec![], vec![TAG], vec![SERVICE_TAG], vec![SERVICE_TAG, TAG]]
        .into_iter()
        .flat_map(|tags| {
            [0, 1, 500].map(|len| Udp {
                v6: false,
                tags: tags.clone(),
                identification: 7,
                payload: payload(len),
            })
        })
        .map(|datagram| datagram.bytes())
        .collect();
    ends.send(&frames, 64);
    assert_eq!(ends.receive(frames.len()), frames);
    assert_eq!(ends.lost(), (0, 0));
}

#[test]
fn a_large_frame_comes_in_as_segments_with_their_tags() {
    let Some(mut ends) = ends() else { return };
    for v6 in [false, true] {
        for tags in [&[][..], &[TAG], &[SERVICE_TAG, TAG]] {
            let (whole, cut) = large(v6, 20_001, tags);
            let (header, bytes) = whole.offloaded(SIZE);
            assert!(ends.ours.tx_large(&header, &bytes, cut.len()));
            assert!(ends.receive(cut.len()) == cut, "IPv6: {v6}, tags: {tags:?}");
        }
    }
    assert_eq!(ends.lost(), (0, 0));
}

#[test]
fn large_udp_comes_in_as_datagrams_with_their_tags() {
    let Some(mut ends) = ends() else { return };
    for v6 in [false, true] {
        for tags in [vec![], vec![TAG]] {
            let whole = Udp { v6, tags, identification: 7, payload: payload(4901) };
            let (header, bytes) = whole.offloaded(SIZE);
            assert_eq!(ends.ours.sender.send(&offload_header(&header), &[&bytes], 4), Sent::Taken);
            let expected: Vec<Vec<u8>> = (whole.payload.chunks(SIZE.into()).zip(7..))
                .map(|(payload, identification)| Udp {
                    identification,
                    payload: payload.to_vec(),
                    ..whole.clone()
                })
                .map(|datagram| datagram.bytes())
                .collect();
            assert!(ends.receive(expected.len()) == expected, "IPv6: {v6}, tags: {:?}", whole.tags);
        }
    }
    assert_eq!(ends.lost(), (0, 0));
}

/// As a program at the other end sends them, whose kernel leaves checksums to the card.
#[test]
fn a_checksum_that_was_left_to_the_card_is_made() {
    let Some(mut ends) = ends() else { return };
    for tags in [vec![], vec![TAG]] {
        let datagram = Udp { v6: true, tags, identification: 7, payload: payload(900) };
        let (header, bytes) = datagram.offloaded(0);
        let header = *header.to_bytes().first_chunk().expect("longer");
        assert_eq!(ends.ours.sender.send(&header, &[&bytes], 1), Sent::Taken);
        assert_eq!(ends.receive(1), [datagram.bytes()]);
    }
}

/// OC-2: what there is no room for stays, nothing is lost, and nothing overtakes.
#[test]
fn what_there_is_no_room_for_waits_in_order() {
    let Some(mut ends) = ends() else { return };
    // Slower than any test is patient.
    ends.tc("qdisc add dev ours root tbf rate 8kbit burst 70kb limit 200kb");
    let frames = segments(320);
    let mut waiting = ends.queue(&frames);
    while ends.ours.tx_burst(&mut waiting, 64) == 64 {}
    assert_eq!(ends.ours.tx_burst(&mut waiting, 64), 0, "there is no room");
    let left: Vec<&[u8]> = waiting.iter().map(MbufFrame::bytes).collect();
    assert!(!left.is_empty() && left == frames[frames.len() - left.len()..], "{} wait", left.len());
    let (whole, _) = large(false, 60_000, &[]);
    let (header, bytes) = whole.offloaded(SIZE);
    assert!(!ends.ours.tx_large(&header, &bytes, 43), "nor for a large one");
    assert_eq!(ends.lost(), (0, 0));

    ends.tc("qdisc change dev ours root tbf rate 1gbit burst 70kb limit 200kb");
    let mut found = Vec::new();
    let until = Instant::now() + PATIENCE;
    while found.len() < frames.len() {
        assert!(Instant::now() < until, "{} of {} frames came", found.len(), frames.len());
        ends.ours.tx_burst(&mut waiting, 64);
        let came = ends.look(64);
        if came.is_empty() {
            wait(&ends.theirs, PollTimeout::from(10u8));
        }
        found.extend(came);
    }
    assert!(found == frames, "the same frames in the same order");
    assert_eq!(ends.lost(), (0, 0));
}

#[test]
fn a_queue_that_is_longer_than_a_burst_is_sent_burst_by_burst() {
    let Some(mut ends) = ends() else { return };
    let frames = segments(300);
    ends.send(&frames, usize::MAX);
    assert!(ends.receive(frames.len()) == frames);
}

#[test]
fn frames_that_go_nowhere_are_gone_and_all_of_them_are_counted() {
    let Some(mut ends) = ends() else { return };
    ends.namespace.ip("link set ours down").expect("an interface of ours");
    let mut waiting = ends.queue(&segments(40));
    assert_eq!(ends.ours.tx_burst(&mut waiting, 64), 40);
    assert_eq!((waiting.len(), ends.ours.lost()), (0, 40));
    let (whole, cut) = large(false, 60_000, &[]);
    let (header, bytes) = whole.offloaded(SIZE);
    assert!(ends.ours.tx_large(&header, &bytes, cut.len()), "it is gone too");
    assert_eq!(ends.ours.lost(), 40 + cut.len() as u64);
}

/// Without memory for frames those that come wait in the socket.
#[test]
fn frames_wait_for_memory() {
    let Some(mut ends) = ends_with(true, MTU, || pool(64, 2048)) else { return };
    let held: Vec<MbufFrame> = std::iter::from_fn(|| ends.theirs.alloc(100)).collect();
    assert_eq!((held.len(), ends.theirs.free_frames()), (64, 0));
    let frames: Vec<Vec<u8>> = (1..=10).map(|len| Tcp::data(false, payload(len)).bytes()).collect();
    ends.send(&frames, 64);
    wait(&ends.theirs, PollTimeout::NONE);
    assert!(ends.look(64).is_empty());
    drop(held);
    assert_eq!(ends.receive(frames.len()), frames);
    assert_eq!(ends.lost(), (0, 0));
}

/// RB-1: what cannot be made into frames of the wire is counted, each once, and the next frame comes as ever.
#[test]
fn what_is_too_long_for_the_wire_or_lies_is_counted() {
    let Some(mut ends) = ends_with(true, 1000, || pool(64, 1200)) else { return };
    let too_long = Tcp::data(false, payload(1300));
    let too_large = large(true, 9_000, &[TAG]).0.offloaded(SIZE);
    // What opens a connection cannot be cut; no length that fits the wire makes it honest.
    let opening = Tcp { flags: flag::SYN, ..Tcp::data(false, payload(4000)) }.offloaded(500);
    let whole = (VirtioNetHdr::default(), too_long.bytes());
    for (nth, (header, bytes)) in (1..).zip([whole, too_large, opening]) {
        assert_eq!(ends.ours.sender.send(&offload_header(&header), &[&bytes], 1), Sent::Taken);
        let sound = Tcp::data(false, payload(300 + nth)).bytes();
        ends.send(std::slice::from_ref(&sound), 1);
        assert_eq!(ends.receive(1), [sound]);
        assert_eq!(ends.lost(), (0, nth as u64));
    }
}

/// A pool that was made for frames without tags has no room for those that have one.
#[test]
fn a_frame_that_has_no_room_for_its_tag_is_counted() {
    let Some(mut ends) = ends_with(true, MTU, || pool(64, 1514)) else { return };
    let longest = |tags: &[[u8; 4]]| Tcp { tags: tags.to_vec(), ..Tcp::data(false, payload(1448)) }.bytes();
    ends.send(&[longest(&[TAG]), longest(&[])], 64);
    assert_eq!(ends.receive(1), [longest(&[])]);
    assert_eq!(ends.lost(), (0, 1));
}

#[test]
fn a_frame_in_two_places_is_copied_across_the_boundary() {
    let whole: Vec<u8> = (1..=20).collect();
    for boundary in 0..=20 {
        let (first, second) = whole.split_at(boundary);
        let pieces = Pieces(first, second);
        assert_eq!(pieces.len(), 20);
        for offset in 0..25 {
            for len in 0..25 {
                let mut out = vec![0xee; len];
                pieces.copy_to(offset, &mut out);
                let byte = |at| whole.get(at).copied().unwrap_or(0);
                let expected: Vec<u8> = (offset..offset + len).map(byte).collect();
                assert_eq!(out, expected, "boundary {boundary}, {len} bytes from {offset}");
            }
        }
    }
}
