//! Frames through the real kernel: what is sent comes out at the other end of a veth pair, byte for byte,
//! whether the kernel had to cut it or not.

use holdfast_counting::allocations_here;
use holdfast_dataplane::coalescing::Burst;
use holdfast_dataplane::guest::Offloads;
use holdfast_dataplane::headers::flag;
use holdfast_dataplane::sample::{GUEST, Offloaded, Tcp, Udp};
use holdfast_lab::netns::Namespace;
use holdfast_packet_socket::{
    BURST, HEADER_LEN, Interface, Received, Receiver, Sender, Sent, State, Step, Tag,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const PLAIN: [u8; HEADER_LEN] = [0; HEADER_LEN];

/// Both ends of a veth pair that leaves nothing to the receiver, in a namespace of their own.
struct Ends {
    ours: Interface,
    theirs: Interface,
    namespace: Namespace,
}

/// None where the host cannot.
fn ends() -> Option<Ends> {
    ends_with_offloads(false)
}

fn ends_with_offloads(offloads: bool) -> Option<Ends> {
    let namespace = match Namespace::create("packet-socket") {
        Ok(namespace) => namespace,
        Err(fault) => {
            println!("cannot run here: {fault}");
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{fault}");
            return None;
        }
    };
    namespace.add_veth(["ours", "theirs"], 1500, offloads).expect("a veth pair");
    let open =
        |name| namespace.run(|| Interface::open(name)).expect("a namespace of ours").expect("it opens");
    Some(Ends { ours: open("ours"), theirs: open("theirs"), namespace })
}

/// The next `count` frames from the guest of the samples, whole; others, which the kernel sends on its
/// own account, are passed over.
fn receive(receiver: &mut Receiver, count: usize) -> Vec<(Vec<u8>, Received)> {
    receive_into(receiver, count, 2048)
}

fn receive_into(receiver: &mut Receiver, count: usize, buffer_len: usize) -> Vec<(Vec<u8>, Received)> {
    let mut found = Vec::new();
    let mut buffers = vec![vec![0; buffer_len]; BURST];
    let until = Instant::now() + PATIENCE;
    while found.len() < count {
        let mut told = Vec::new();
        if receiver.burst(&mut buffers, |received| told.push(received)) == 0 {
            assert!(Instant::now() < until, "{} of {count} frames came", found.len());
            wait(receiver);
        }
        for received in told {
            let mut frame = buffers[received.place][..received.len.min(buffer_len)].to_vec();
            frame.extend(receiver.overflow(&received, buffer_len));
            assert_eq!(frame.len(), received.len);
            if frame[6..12] == GUEST {
                found.push((frame, received));
            }
        }
    }
    found
}

#[expect(unsafe_code, reason = "a descriptor is lent to poll")]
fn wait(receiver: &Receiver) {
    // SAFETY: the receiver owns the descriptor and outlives the call.
    let fd = unsafe { BorrowedFd::borrow_raw(receiver.fd()) };
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(1000u16)).expect("poll");
}

/// `count` segments that follow each other, the last one shorter and with PSH.
fn train(v6: bool, count: usize, tags: &[[u8; 4]]) -> Vec<Vec<u8>> {
    (0..count)
        .map(|nth| {
            let last = nth + 1 == count;
            let len = if last { 333 } else { 1400 };
            let mut segment = Tcp::data(v6, (0..len).map(|i| (i * 7 + nth * 3) as u8).collect());
            segment.sequence = segment.sequence.wrapping_add(1400 * nth as u32);
            segment.identification = segment.identification.wrapping_add(nth as u16);
            segment.tags = tags.to_vec();
            segment.flags |= if last { flag::PSH } else { 0 };
            segment.bytes()
        })
        .collect()
}

/// Sends frames as a wire does: merged where they may be. Returns how many calls that took.
fn send_merged(sender: &mut Sender, frames: &[Vec<u8>]) -> usize {
    let mut burst = Burst::for_wire();
    let all = Offloads { checksum: true, tso4: true, tso6: true };
    burst.fill(all, &mut frames.iter().cloned());
    let mut calls = 0;
    burst.deliver(&mut |header, parts, frames| {
        calls += 1;
        let bytes = if header.gso_type == 0 { [0; 12] } else { header.to_bytes() };
        let header = bytes.first_chunk::<HEADER_LEN>().expect("longer");
        assert_eq!(sender.send(header, parts, frames), Sent::Taken);
        true
    });
    calls
}

#[test]
fn what_is_merged_comes_out_as_the_frames_that_it_was_made_of() {
    let Some(Ends { mut ours, mut theirs, .. }) = ends() else { return };
    for v6 in [false, true] {
        let frames = train(v6, 40, &[]);
        assert_eq!(send_merged(&mut ours.sender, &frames), 1, "one large frame");
        let found = receive(&mut theirs.receiver, frames.len());
        for (nth, (frame, expected)) in found.iter().zip(&frames).enumerate() {
            assert_eq!(frame.0, *expected, "frame {nth}, IPv6: {v6}");
            assert_eq!((frame.1.tag, frame.1.header), (None, PLAIN));
        }
    }
    assert_eq!(ours.sender.refused(), 0);
}

/// The kernel takes the outermost tag out of what is received and tells it apart.
#[test]
fn tagged_frames_are_cut_too_and_keep_their_tags() {
    let Some(Ends { mut ours, mut theirs, .. }) = ends() else { return };
    for v6 in [false, true] {
        let frames = train(v6, 20, &[[0x81, 0, 0x60, 5]]);
        assert_eq!(send_merged(&mut ours.sender, &frames), 1, "one large frame");
        for (nth, ((frame, received), expected)) in
            receive(&mut theirs.receiver, frames.len()).into_iter().zip(&frames).enumerate()
        {
            assert_eq!(received.tag, Some(Tag { kind: 0x8100, control: 0x6005 }), "frame {nth}");
            assert_eq!((&frame[..12], &frame[12..]), (&expected[..12], &expected[16..]), "frame {nth}");
        }
    }
}

#[test]
fn whole_frames_go_both_ways_and_nobody_hears_himself() {
    let Some(Ends { mut ours, mut theirs, .. }) = ends() else { return };
    let frames: Vec<Vec<u8>> =
        (0..200).map(|nth| Tcp::data(nth % 2 == 0, vec![nth as u8; 1 + nth * 7]).bytes()).collect();
    for (from, to) in [(&mut ours.sender, &mut theirs.receiver), (&mut theirs.sender, &mut ours.receiver)] {
        for frame in &frames {
            let (head, rest) = frame.split_at(20);
            assert_eq!(from.send(&PLAIN, &[head, rest], 1), Sent::Taken);
        }
        let found: Vec<Vec<u8>> = receive(to, frames.len()).into_iter().map(|(frame, _)| frame).collect();
        assert_eq!(found, frames);
    }
    // Each end has sent all and received all: whatever is left would be its own.
    for receiver in [&mut ours.receiver, &mut theirs.receiver] {
        let mut buffers = vec![vec![0; 2048]; BURST];
        let mut own = 0;
        let mut told = Vec::new();
        while receiver.burst(&mut buffers, |received| told.push(received)) > 0 {
            own += told.drain(..).filter(|received| buffers[received.place][6..12] == GUEST).count();
        }
        assert_eq!(own, 0, "frames of its own side were heard");
    }
}

/// With offloads on, as interfaces come, nobody cuts: the receiver gets it as it was sent, in its buffer
/// and beyond.
#[test]
fn a_large_frame_is_received_whole_with_its_header() {
    let Some(Ends { mut ours, mut theirs, .. }) = ends_with_offloads(true) else { return };
    for (v6, gso_type) in [(false, 1), (true, 4)] {
        let frames = train(v6, 40, &[]);
        assert_eq!(send_merged(&mut ours.sender, &frames), 1);
        let (frame, received) = receive_into(&mut theirs.receiver, 1, 600).remove(0);
        let headers = if v6 { 86 } else { 66 };
        let payload: Vec<u8> = frames.iter().flat_map(|frame| &frame[headers..]).copied().collect();
        assert_eq!(frame[headers..], payload);
        let word = |at: usize| u16::from_le_bytes([received.header[at], received.header[at + 1]]);
        let size = u16::try_from(1400).expect("short");
        let transport = if v6 { 54 } else { 34 };
        assert_eq!((received.header[0], received.header[1]), (1, gso_type));
        assert_eq!((word(4), word(6), word(8)), (size, transport, 16));
    }
    assert_eq!(theirs.receiver.oversized(), 0);
}

/// A large frame of datagrams, with its offload header: what a program that uses `UDP_SEGMENT` makes.
fn datagrams(v6: bool) -> ([u8; HEADER_LEN], Vec<u8>) {
    let payload = (0..4901).map(|i| (i * 7) as u8).collect();
    let (header, bytes) = Udp { v6, tags: vec![], identification: 7, payload }.offloaded(1400);
    (*header.to_bytes().first_chunk().expect("longer"), bytes)
}

/// The header's form of large UDP is as old as Linux 6.2.
#[test]
fn large_udp_is_received_whole_with_its_header() {
    let Some(Ends { mut ours, mut theirs, .. }) = ends_with_offloads(true) else { return };
    for v6 in [false, true] {
        let (header, bytes) = datagrams(v6);
        assert_eq!(ours.sender.send(&header, &[&bytes], 4), Sent::Taken);
        let (frame, received) = receive_into(&mut theirs.receiver, 1, 600).remove(0);
        assert_eq!(frame, bytes);
        assert_eq!(received.header, header);
    }
}

#[test]
fn what_the_interface_cannot_carry_is_refused_and_counted() {
    let Some(Ends { mut ours, .. }) = ends() else { return };
    let frame = Tcp::data(false, vec![0; 3000]).bytes();
    assert_eq!(ours.sender.send(&PLAIN, &[&frame], 1), Sent::Refused);
    assert_eq!(ours.sender.refused(), 1);
    assert_eq!((ours.mtu, ours.mac[0] & 1), (1500, 0));
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    let fault = Interface::open("nosuch0").expect_err("nobody has it");
    assert_eq!(fault.step, Step::Find);
    let text = fault.to_string();
    assert!(text.contains("nosuch0") && text.contains("mend: "), "{text}");
}

#[test]
fn an_interface_that_is_not_ethernet_is_refused() {
    let Some(Ends { namespace, .. }) = ends() else { return };
    let opened = namespace.run(|| Interface::open("lo")).expect("a namespace of ours");
    let fault = opened.expect_err("its frames have no addresses");
    assert_eq!(fault.step, Step::Kind);
    let text = fault.to_string();
    assert!(text.contains("interface lo") && text.contains("772") && text.contains("mend: "), "{text}");
}

/// What the interface is once the watch tells of a change.
fn change(interface: &mut Interface) -> State {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut buffers = vec![vec![0; 2048]; BURST];
        interface.receiver.burst(&mut buffers, |_| {});
        let Interface { receiver, sender, link, .. } = interface;
        if let Some(state) = link.watch(receiver, sender).expect("it can be used") {
            return state;
        }
        assert!(Instant::now() < until, "nothing was told");
        wait(receiver);
    }
}

#[test]
fn an_interface_that_was_switched_off_is_told_and_carries_frames_again() {
    let Some(Ends { mut ours, mut theirs, namespace }) = ends() else { return };
    assert_eq!(ours.link.state(), State::Up);
    namespace.ip("link set ours down").expect("an interface of ours");
    let frame = Tcp::data(false, vec![1; 100]).bytes();
    // A large frame counts as those that are lost with it.
    assert_eq!(ours.sender.send(&PLAIN, &[&frame], 45), Sent::Refused);
    assert_eq!(ours.sender.refused(), 45);
    assert_eq!(change(&mut ours), State::Down);
    let late = namespace.run(|| Interface::open("ours")).expect("a namespace of ours").expect("it opens");
    assert_eq!(late.link.state(), State::Down);
    namespace.ip("link set ours up").expect("an interface of ours");
    assert_eq!(change(&mut ours), State::Up);
    assert_eq!(ours.sender.send(&PLAIN, &[&frame], 1), Sent::Taken);
    assert_eq!(receive(&mut theirs.receiver, 1)[0].0, frame);
    assert_eq!(theirs.sender.send(&PLAIN, &[&frame], 1), Sent::Taken);
    assert_eq!(receive(&mut ours.receiver, 1)[0].0, frame);
}

#[test]
fn an_interface_that_was_deleted_is_followed_when_its_name_is_there_again() {
    let Some(Ends { mut ours, namespace, .. }) = ends() else { return };
    namespace.ip("link del ours").expect("an interface of ours");
    assert_eq!(change(&mut ours), State::Gone);
    namespace.add_veth(["ours", "theirs"], 1500, false).expect("a veth pair");
    // The first look may come before it is switched on.
    while change(&mut ours) != State::Up {}
    let mut theirs =
        namespace.run(|| Interface::open("theirs")).expect("a namespace of ours").expect("it opens");
    assert_eq!(theirs.link.state(), State::Up);
    // To an address that is not the interface's own: it listens to all again.
    let frame = Tcp::data(true, vec![2; 200]).bytes();
    assert_eq!(ours.sender.send(&PLAIN, &[&frame], 1), Sent::Taken);
    assert_eq!(receive(&mut theirs.receiver, 1)[0].0, frame);
    assert_eq!(theirs.sender.send(&PLAIN, &[&frame], 1), Sent::Taken);
    assert_eq!(receive(&mut ours.receiver, 1)[0].0, frame);
    let shown = namespace.ip("-d link show ours").expect("an interface of ours");
    assert!(shown.contains("promiscuity 1"), "{shown}");
}

/// Both directions, plain and cut by the kernel.
#[test]
fn a_frame_costs_no_allocation() {
    let Some(mut ends) = ends() else { return };
    let small = Tcp::data(false, vec![5; 100]).bytes();
    let (header, large) = Tcp::data(false, vec![5; 4 * 1448]).offloaded(1448);
    let header = *header.to_bytes().first_chunk().expect("longer");
    let mut buffers = vec![vec![0; 2048]; BURST];
    let mut carry = || {
        let until = Instant::now() + PATIENCE;
        assert_eq!(ends.ours.sender.send(&PLAIN, &[&small], 1), Sent::Taken);
        assert_eq!(ends.ours.sender.send(&header, &[&large], 4), Sent::Taken);
        let mut came = 0;
        while came < 5 {
            came += ends.theirs.receiver.burst(&mut buffers, |_| {});
            assert!(Instant::now() < until, "{came} of 5 frames came");
        }
    };
    carry();
    let before = allocations_here();
    (0..50).for_each(|_| carry());
    assert_eq!(allocations_here() - before, 0);
}
