use super::*;
use crate::heap::HeapBytes as Bytes;
use crate::sample;
use crate::sample::Offloaded;
use proptest::prelude::*;

const MTU: u16 = 1500;

fn cut(header: &VirtioNetHdr, frame: &Bytes) -> Result<Vec<Vec<u8>>, DropReason> {
    Ok(write(&Plan::new(header, frame, MTU)?, frame))
}

fn cut_received(header: &VirtioNetHdr, frame: &Bytes) -> Result<Vec<Vec<u8>>, DropReason> {
    Ok(write(&Plan::received(header, frame, MTU)?, frame))
}

fn write(plan: &Plan, frame: &Bytes) -> Vec<Vec<u8>> {
    (0..plan.frames())
        .map(|index| {
            let mut out = vec![0xee; plan.frame_len(index)];
            plan.write(index, frame, &mut out);
            out
        })
        .collect()
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn a_large_frame_becomes_the_segments_that_a_card_would_send() {
    for v6 in [false, true] {
        for tags in [vec![], vec![[0x81, 0, 0, 5]], vec![[0x88, 0xa8, 0, 5], [0x81, 0, 0, 6]]] {
            let mut whole = sample::Tcp::data(v6, payload(10_000));
            whole.tags = tags;
            whole.flags = flag::ACK | flag::PSH | flag::FIN | flag::CWR;
            let (header, bytes) = whole.offloaded(1400);
            let segments = cut(&header, &Bytes(bytes)).expect("an honest frame");
            assert_eq!(segments.len(), 8);
            for (index, segment) in segments.iter().enumerate() {
                let mut expected = whole.clone();
                expected.identification = whole.identification + index as u16;
                expected.sequence = whole.sequence.wrapping_add(1400 * index as u32);
                expected.payload = whole.payload[1400 * index..(1400 * (index + 1)).min(10_000)].to_vec();
                expected.flags = match index {
                    0 => flag::ACK | flag::CWR,
                    7 => flag::ACK | flag::PSH | flag::FIN,
                    _ => flag::ACK,
                };
                assert_eq!(*segment, expected.bytes(), "segment {index}");
            }
        }
    }
}

#[test]
fn a_checksum_that_the_guest_left_open_is_completed() {
    for v6 in [false, true] {
        let whole = sample::Tcp::data(v6, payload(999));
        let (header, bytes) = whole.offloaded(0);
        assert_eq!(cut(&header, &Bytes(bytes)).expect("an honest frame"), [whole.bytes()]);
    }
}

#[test]
fn large_udp_from_a_kernel_becomes_the_datagrams_that_a_card_would_send() {
    for v6 in [false, true] {
        for tags in [vec![], vec![[0x81, 0, 0, 5]]] {
            // The last datagram has an odd length, so that its sum is padded.
            let whole = sample::Udp { v6, tags, identification: 0xfffe, payload: payload(4901) };
            let (header, bytes) = whole.offloaded(1400);
            let bytes = Bytes(bytes);
            let datagrams = cut_received(&header, &bytes).expect("an honest frame");
            assert_eq!(datagrams.len(), 4);
            for (index, datagram) in datagrams.iter().enumerate() {
                let expected = sample::Udp {
                    identification: whole.identification.wrapping_add(index as u16),
                    payload: whole.payload[1400 * index..(1400 * (index + 1)).min(4901)].to_vec(),
                    ..whole.clone()
                };
                assert_eq!(*datagram, expected.bytes(), "datagram {index}, IPv6: {v6}");
                assert!(sample::adds_up(datagram, whole.transport(), v6, 17));
            }
            let verified = VirtioNetHdr { flags: 2, csum_start: 0, csum_offset: 0, ..header };
            assert_eq!(cut_received(&verified, &bytes).expect("an honest frame"), datagrams);
            // A guest was never offered it.
            assert_eq!(cut(&header, &bytes).err(), Some(DropReason::Offload));
        }
    }
}

#[test]
fn large_udp_whose_header_lies_is_dropped() {
    use DropReason::{Offload, Oversize, Segments};
    let (good, bytes) =
        sample::Udp { v6: false, tags: vec![], identification: 1, payload: payload(4000) }.offloaded(1400);
    let (_, tcp) = sample::Tcp::data(false, payload(4000)).offloaded(1400);
    let with = |change: fn(&mut VirtioNetHdr)| {
        let mut header = good;
        change(&mut header);
        header
    };
    let mut fragment = bytes.clone();
    fragment[20] |= 0x20;
    let cases: Vec<(&str, VirtioNetHdr, Vec<u8>, DropReason)> = vec![
        ("datagrams of nothing", with(|h| h.gso_size = 0), bytes.clone(), Offload),
        ("nobody vouches for it", with(|h| h.flags = 0), bytes.clone(), Offload),
        ("checksum begins elsewhere", with(|h| h.csum_start = 20), bytes.clone(), Offload),
        ("checksum is put elsewhere", with(|h| h.csum_offset = 16), bytes.clone(), Offload),
        ("called TCP", with(|h| h.gso_type = 1), bytes.clone(), Offload),
        ("TCP called UDP", with(|h| h.csum_offset = 16), tcp, Offload),
        ("a fragment", good, fragment, Offload),
        ("no payload", good, bytes[..42].to_vec(), Offload),
        ("half a header", good, bytes[..40].to_vec(), Offload),
        ("datagrams beyond the MTU", with(|h| h.gso_size = 1473), bytes.clone(), Oversize),
        ("too many datagrams", with(|h| h.gso_size = 2), bytes.clone(), Segments),
    ];
    for (what, header, bytes, reason) in cases {
        assert_eq!(cut_received(&header, &Bytes(bytes)).err(), Some(reason), "{what}");
    }
}

/// The kernel leaves the checksum of SCTP open as that of TCP, but it is another one.
#[test]
fn an_sctp_checksum_that_was_left_open_is_a_crc32c() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of the polynomial");
    for v6 in [false, true] {
        let udp = sample::Udp { v6, tags: vec![], identification: 1, payload: payload(60) };
        let at = udp.transport();
        let mut bytes = udp.bytes();
        bytes[if v6 { at - 34 } else { at - 11 }] = 132;
        bytes[at + 8..at + 12].fill(0xee);
        let header =
            VirtioNetHdr { flags: 1, csum_start: at as u16, csum_offset: 8, ..VirtioNetHdr::default() };
        let frames = cut(&header, &Bytes(bytes.clone())).expect("an honest frame");
        bytes[at + 8..at + 12].fill(0);
        let sum = crc32c(&bytes[at..]);
        bytes[at + 8..at + 12].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(frames, [bytes.clone()]);
        bytes.truncate(at + 11);
        assert_eq!(cut(&header, &Bytes(bytes)).err(), Some(DropReason::Offload), "half a checksum");
    }
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_all_ones() {
    let mut bytes = sample::opaque(sample::CLIENT, sample::GUEST, 14, 0);
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes.extend([0x45, 0, 0, 30, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 9]);
    // Pseudo header and header, then two bytes chosen so that everything adds up to 0xffff.
    let partial = Sum::ZERO.pseudo(&[10, 0, 0, 2], &[10, 0, 0, 9], 17, 10).fold();
    bytes.extend([0, 53, 0, 53, 0, 10]);
    bytes.extend(partial.to_be_bytes());
    let open = Sum::ZERO.bytes(&bytes[34..]).finish();
    bytes.extend(open.to_be_bytes());
    let header = VirtioNetHdr { flags: 1, csum_start: 34, csum_offset: 6, ..VirtioNetHdr::default() };
    let frames = cut(&header, &Bytes(bytes)).expect("an honest frame");
    assert_eq!(frames[0][40..42], [0xff, 0xff]);
}

#[test]
fn a_frame_without_offload_is_taken_as_it_is() {
    let bytes = sample::opaque(sample::CLIENT, sample::GUEST, 60, 3);
    let frames = cut(&VirtioNetHdr::default(), &Bytes(bytes.clone())).expect("a plain frame");
    assert_eq!(frames, [bytes]);
}

/// RB-1: an offload header that contradicts the frame costs the guest this frame, by a counted reason.
#[test]
fn a_header_that_lies_is_a_counted_drop() {
    use DropReason::{Offload, Oversize, Runt, Segments};
    let whole = sample::Tcp::data(false, payload(9000));
    let (good, bytes) = whole.offloaded(1400);
    let (_, v6) = sample::Tcp::data(true, payload(9000)).offloaded(1400);
    let with = |change: fn(&mut VirtioNetHdr)| {
        let mut header = good;
        change(&mut header);
        header
    };
    let mut syn = bytes.clone();
    syn[47] |= flag::SYN;
    let mut fragment = bytes.clone();
    fragment[20] |= 0x20;
    let mut long_header = bytes.clone();
    long_header[46] = 0xf0;
    long_header.truncate(80);
    let huge = vec![0; MAX_GUEST_FRAME + 1];
    let cases: Vec<(&str, VirtioNetHdr, Vec<u8>, DropReason)> = vec![
        ("segments of nothing", with(|h| h.gso_size = 0), bytes.clone(), Offload),
        ("no checksum wanted", with(|h| h.flags = 0), bytes.clone(), Offload),
        ("checksum begins elsewhere", with(|h| h.csum_start = 20), bytes.clone(), Offload),
        ("checksum is put elsewhere", with(|h| h.csum_offset = 6), bytes.clone(), Offload),
        ("IPv6 called IPv4", good, v6, Offload),
        ("IPv4 called IPv6", with(|h| h.gso_type = 4), bytes.clone(), Offload),
        ("UDP fragmentation", with(|h| h.gso_type = 3), bytes.clone(), Offload),
        ("unknown segmentation", with(|h| h.gso_type = 77), bytes.clone(), Offload),
        ("a SYN in segments", good, syn, Offload),
        ("a fragment in segments", good, fragment, Offload),
        ("no payload", good, bytes[..66].to_vec(), Offload),
        ("a TCP header beyond the end", good, long_header, Offload),
        ("segments beyond the MTU", with(|h| h.gso_size = 1480), bytes.clone(), Oversize),
        ("no segmentation of a long frame", with(|h| h.gso_type = 0), bytes.clone(), Oversize),
        ("longer than a packet can be", with(|h| h.gso_type = 0), huge, Oversize),
        ("too many segments", with(|h| h.gso_size = 6), bytes.clone(), Segments),
        ("half a link header", VirtioNetHdr::default(), vec![0; 13], Runt),
        (
            "a checksum beyond the end",
            VirtioNetHdr { flags: 1, csum_start: 34, csum_offset: 25, ..VirtioNetHdr::default() },
            vec![0; 60],
            Offload,
        ),
        (
            "a checksum in the link header",
            VirtioNetHdr { flags: 1, csum_start: 2, csum_offset: 2, ..VirtioNetHdr::default() },
            vec![0; 60],
            Offload,
        ),
    ];
    for (what, header, bytes, reason) in cases {
        assert_eq!(cut(&header, &Bytes(bytes)).err(), Some(reason), "{what}");
    }
}

proptest! {
    /// RB-1: no offload header and no bytes make the segmentation panic or write frames that a wire
    /// could not carry.
    #[test]
    fn no_header_and_no_bytes_make_segmentation_panic(
        flags in any::<u8>(),
        gso_type in prop::sample::select(vec![0u8, 1, 3, 4, 0x81, 0x84, 5]),
        gso_size in any::<u16>(),
        csum_start in prop_oneof![0u16..100, any::<u16>()],
        csum_offset in prop_oneof![0u16..20, any::<u16>()],
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let header =
            VirtioNetHdr { flags, gso_type, hdr_len: 0, gso_size, csum_start, csum_offset, num_buffers: 0 };
        if let Ok(frames) = cut_received(&header, &Bytes(bytes)) {
            prop_assert!(frames.len() <= MAX_SEGMENTS);
            prop_assert!(frames.iter().all(|frame| frame.len() <= usize::from(MTU) + 22));
        }
    }

    /// The payload of the segments is the payload of the frame, and each segment adds up.
    #[test]
    fn segments_carry_the_payload_whole_and_add_up(
        v6 in any::<bool>(),
        len in 1usize..20_000,
        size in 64u16..1420,
        sequence in any::<u32>(),
    ) {
        let mut whole = sample::Tcp::data(v6, payload(len));
        whole.sequence = sequence;
        let (header, bytes) = whole.offloaded(size);
        let segments = cut(&header, &Bytes(bytes)).expect("an honest frame");
        let mut carried = Vec::new();
        for segment in &segments {
            prop_assert!(sample::adds_up(segment, whole.transport(), v6, 6));
            carried.extend_from_slice(&segment[whole.headers()..]);
        }
        prop_assert_eq!(carried, whole.payload);
    }
}
