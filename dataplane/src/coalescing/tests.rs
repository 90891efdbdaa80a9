use super::*;
use crate::sample;
use crate::sample::Offloaded;
use proptest::prelude::*;

const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true };

type Seen = Vec<(VirtioNetHdr, Vec<u8>, usize)>;

fn merge(offloads: Offloads, frames: Vec<Vec<u8>>) -> Seen {
    let mut burst = Burst::new();
    burst.fill(offloads, &mut frames.into_iter());
    let mut seen = Vec::new();
    burst.deliver(&mut |header, parts, frames| {
        seen.push((*header, parts.concat(), frames));
        true
    });
    assert!(burst.is_empty());
    seen
}

/// `count` segments of `size` bytes that follow each other.
fn train(v6: bool, count: usize, size: usize) -> Vec<sample::Tcp> {
    (0..count)
        .map(|nth| {
            let mut segment = sample::Tcp::data(v6, (0..size).map(|i| (i + nth * 3) as u8).collect());
            segment.sequence = segment.sequence.wrapping_add((nth * size) as u32);
            segment.identification += nth as u16;
            segment
        })
        .collect()
}

fn bytes(segments: &[sample::Tcp]) -> Vec<Vec<u8>> {
    segments.iter().map(sample::Tcp::bytes).collect()
}

#[test]
fn segments_in_order_become_the_frame_that_a_guest_would_have_sent() {
    for v6 in [false, true] {
        let mut segments = train(v6, 5, 1000);
        segments[4].payload.truncate(10);
        segments[4].flags |= flag::PSH;
        let seen = merge(ALL, bytes(&segments));
        let mut whole = segments[0].clone();
        whole.payload = segments.iter().flat_map(|segment| segment.payload.clone()).collect();
        whole.flags |= flag::PSH;
        let (header, expected) = whole.offloaded(1000);
        assert_eq!(seen, [(header, expected, 5)]);
    }
}

/// A card ends a frame with a short segment or a push: what follows is another frame.
#[test]
fn a_short_segment_or_a_push_in_the_middle_ends_a_group() {
    let counts = |segments: &[sample::Tcp]| {
        merge(ALL, bytes(segments)).iter().map(|(_, _, count)| *count).collect::<Vec<_>>()
    };
    for v6 in [false, true] {
        let mut pushed = train(v6, 5, 100);
        pushed[2].flags |= flag::PSH;
        assert_eq!(counts(&pushed), [3, 2], "a push");
        let mut short = train(v6, 5, 100);
        short[2].payload.truncate(60);
        short[3..].iter_mut().for_each(|segment| segment.sequence = segment.sequence.wrapping_sub(40));
        assert_eq!(counts(&short), [3, 2], "a short segment");
    }
}

#[test]
fn a_merged_packet_stays_within_64_kib() {
    for v6 in [false, true] {
        let seen = merge(ALL, bytes(&train(v6, 60, 1440)));
        assert_eq!(seen.len(), 2);
        assert!(seen.iter().all(|(_, bytes, _)| bytes.len() <= 14 + 65535));
        assert_eq!(seen.iter().map(|(_, _, frames)| frames).sum::<usize>(), 60);
    }
}

#[test]
fn what_differs_in_more_than_it_may_is_not_merged() {
    type Change = fn(&mut sample::Tcp);
    let cases: [(&str, Change); 12] = [
        ("a gap", |s| s.sequence = s.sequence.wrapping_add(1)),
        ("a repetition", |s| s.sequence = s.sequence.wrapping_sub(100)),
        ("another acknowledgement", |s| s.acknowledgement += 1),
        ("another window", |s| s.window += 1),
        ("another timestamp", |s| s.options[7] += 1),
        ("FIN", |s| s.flags |= flag::FIN),
        ("SYN", |s| s.flags |= flag::SYN),
        ("RST", |s| s.flags |= flag::RST),
        ("URG", |s| s.flags |= flag::URG),
        ("ECE", |s| s.flags |= flag::ECE),
        ("CWR", |s| s.flags |= flag::CWR),
        ("more payload than the first", |s| s.payload.push(0)),
    ];
    for v6 in [false, true] {
        for (what, change) in cases {
            let mut segments = train(v6, 2, 100);
            change(&mut segments[1]);
            let frames = bytes(&segments);
            let seen = merge(ALL, frames.clone());
            let plain: Vec<_> = seen.iter().map(|(_, bytes, _)| bytes.clone()).collect();
            assert_eq!(plain, frames, "{what}");
            assert!(seen.iter().all(|(header, ..)| header.gso_type == 0 && header.flags == DATA_VALID));
        }
    }
}

/// RB-1: a frame that does not add up is neither merged nor vouched for.
#[test]
fn a_frame_that_does_not_add_up_is_passed_on_as_it_came() {
    let mut frames = bytes(&train(false, 3, 100));
    *frames[1].last_mut().expect("a payload") ^= 1;
    let seen = merge(ALL, frames.clone());
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[1].1, frames[1]);
    assert_eq!([seen[0].0.flags, seen[1].0.flags, seen[2].0.flags], [DATA_VALID, 0, DATA_VALID]);
}

#[test]
fn a_guest_without_offloads_gets_every_frame_as_it_came() {
    let cases = [
        (Offloads::default(), false),
        (Offloads { checksum: true, tso4: false, tso6: true }, false),
        (Offloads { checksum: true, tso4: true, tso6: false }, true),
    ];
    for (offloads, v6) in cases {
        let frames = bytes(&train(v6, 3, 100));
        let seen = merge(offloads, frames.clone());
        assert_eq!(seen.len(), 3);
        for ((header, seen, _), frame) in seen.iter().zip(&frames) {
            assert_eq!((seen, header.gso_type), (frame, 0));
            assert_eq!(header.flags & DATA_VALID != 0, offloads.checksum);
        }
    }
}

#[test]
fn other_frames_between_do_not_keep_a_flow_from_being_merged() {
    let mut frames = bytes(&train(false, 2, 100));
    let mut other = sample::Tcp::data(false, vec![1; 100]);
    other.ports.0 += 1;
    let mut ack = other.clone();
    ack.payload.clear();
    frames.insert(1, other.bytes());
    frames.insert(2, ack.bytes());
    frames.insert(3, sample::arp(sample::CLIENT, [10, 0, 0, 9]));
    let seen = merge(ALL, frames);
    assert_eq!(seen.iter().map(|(.., frames)| *frames).collect::<Vec<_>>(), [2, 1, 1, 1]);
}

/// OC-2: nothing of a flow passes what came before it, merged or not.
#[test]
fn a_pure_acknowledgement_keeps_its_place_in_the_flow() {
    let mut segments = train(false, 3, 100);
    let mut ack = segments[1].clone();
    ack.payload.clear();
    segments.insert(1, ack);
    let seen = merge(ALL, bytes(&segments));
    assert_eq!(seen.iter().map(|(.., frames)| *frames).collect::<Vec<_>>(), [1, 1, 2]);
}

#[test]
fn a_burst_that_the_guest_has_no_room_for_goes_on_where_it_stopped() {
    let mut frames = bytes(&train(false, 4, 100));
    frames.insert(2, sample::arp(sample::CLIENT, [10, 0, 0, 9]));
    frames.push(sample::arp(sample::CLIENT, [10, 0, 0, 8]));
    let mut burst = Burst::new();
    burst.fill(ALL, &mut frames.into_iter());
    let mut seen = Vec::new();
    for room in [1, 0, 5] {
        let until = seen.len() + room;
        burst.deliver(&mut |_, _, frames| {
            let take = seen.len() < until;
            if take {
                seen.push(frames);
            }
            take
        });
    }
    assert_eq!(seen, [4, 1, 1]);
    assert!(burst.is_empty());
}

#[test]
fn a_group_that_is_skipped_does_not_block_those_behind_it() {
    let mut frames = bytes(&train(false, 4, 100));
    frames.push(sample::arp(sample::CLIENT, [10, 0, 0, 8]));
    let mut burst = Burst::new();
    burst.fill(ALL, &mut frames.into_iter());
    burst.deliver(&mut |_, _, _| false);
    assert_eq!(burst.skip(), 4);
    let mut seen = 0;
    burst.deliver(&mut |_, _, frames| {
        seen += frames;
        true
    });
    assert_eq!((seen, burst.is_empty(), burst.skip()), (1, true, 0));
}

#[test]
fn padding_behind_the_packet_is_not_merged_into_the_stream() {
    let mut segments = train(false, 2, 4);
    segments[0].options.clear();
    segments[1].options.clear();
    let mut frames = bytes(&segments);
    frames.iter_mut().for_each(|frame| frame.resize(64, 0xee));
    let seen = merge(ALL, frames);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].1.len(), 54 + 8);
    assert_eq!(seen[0].1[54..], [0, 1, 2, 3, 3, 4, 5, 6]);
}

proptest! {
    /// RB-1: no bytes make the merging panic, and every frame comes out in one group.
    #[test]
    fn no_bytes_make_merging_panic(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..64),
    ) {
        let count = frames.len();
        let seen = merge(ALL, frames);
        prop_assert_eq!(seen.iter().map(|(.., frames)| frames).sum::<usize>(), count);
    }

    /// OC-2: whatever of several flows is merged, each flow's stream is the same as without.
    #[test]
    fn merging_keeps_the_stream_of_every_flow(
        v6 in any::<bool>(),
        picks in prop::collection::vec((0usize..3, 1usize..300, 0u8..12), 1..64),
    ) {
        let mut next = [1000u32, 2000, 0xffff_ff00];
        let mut frames = Vec::new();
        let mut sent = [vec![], vec![], vec![]];
        for (flow, len, odd) in picks {
            let len = if odd < 6 { 200 } else { len };
            let mut segment = sample::Tcp::data(v6, (0..len).map(|i| (i + flow) as u8).collect());
            segment.ports.0 = flow as u16;
            segment.sequence = next[flow];
            match odd {
                8 => segment.flags |= flag::PSH,
                9 => segment.flags |= flag::FIN,
                10 => segment.window += 1,
                _ => {}
            }
            next[flow] = next[flow].wrapping_add(len as u32);
            sent[flow].extend(segment.payload.clone());
            frames.push(segment.bytes());
        }
        let mut got = [vec![], vec![], vec![]];
        for (_, bytes, _) in merge(ALL, frames) {
            let layout = Layout::parse(&bytes).expect("a whole header");
            let Transport::Tcp(tcp) = layout.transport else { panic!("{layout:?}") };
            got[usize::from(tcp.source_port)].extend_from_slice(&bytes[tcp.offset + tcp.header_len..]);
        }
        prop_assert_eq!(got, sent);
    }

    /// What is merged and cut again at the same size is what came in.
    #[test]
    fn merging_and_segmentation_are_inverse(v6 in any::<bool>(), count in 2usize..44, size in 32usize..1440) {
        use crate::segmentation::Plan;
        let frames = bytes(&train(v6, count, size));
        let seen = merge(ALL, frames.clone());
        prop_assume!(seen.len() == 1);
        let (header, merged, _) = seen.into_iter().next().expect("one");
        let merged = crate::heap::HeapBytes(merged);
        let plan = Plan::new(&header, &merged, 9000).expect("an honest frame");
        let cut: Vec<_> = (0..plan.frames()).map(|index| {
            let mut out = vec![0; plan.frame_len(index)];
            plan.write(index, &merged, &mut out);
            out
        }).collect();
        prop_assert_eq!(cut, frames);
    }
}

struct Sound(Vec<u8>);

impl Frame for Sound {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    fn is_sound(&self) -> bool {
        true
    }
}

/// A frame whose checksums were made here is not verified again; any other is.
#[test]
fn only_frames_that_are_known_to_be_sound_are_taken_at_their_word() {
    let mut segments = bytes(&train(false, 3, 100));
    segments[1][80] ^= 1;
    let count = |count: &mut usize| *count += 1;
    let (mut trusted, mut verified) = (0, 0);
    let mut burst = Burst::for_wire();
    burst.fill(ALL, &mut segments.clone().into_iter().map(Sound));
    burst.deliver(&mut |_, _, _| {
        count(&mut trusted);
        true
    });
    let mut burst = Burst::for_wire();
    burst.fill(ALL, &mut segments.into_iter());
    burst.deliver(&mut |_, _, _| {
        count(&mut verified);
        true
    });
    assert_eq!((trusted, verified), (1, 3));
}

/// A frame merged for a wire is cut again, with identifications that count up: others must not be merged.
#[test]
fn a_wire_gets_only_frames_merged_that_become_the_same_when_cut() {
    let merged_for_wire = |segments: &[sample::Tcp]| {
        let mut burst = Burst::for_wire();
        burst.fill(ALL, &mut bytes(segments).into_iter());
        let mut counts = Vec::new();
        burst.deliver(&mut |_, _, count| {
            counts.push(count);
            true
        });
        counts
    };
    for v6 in [false, true] {
        assert_eq!(merged_for_wire(&train(v6, 5, 100)), [5]);
    }
    let mut segments = train(false, 5, 100);
    segments[3].identification += 1;
    assert_eq!(merged_for_wire(&segments), [3, 1, 1]);
    assert_eq!(merge(ALL, bytes(&segments)).len(), 1, "a guest does not see the difference");
}

/// Bits that nobody here knows are not lost in the header of another segment: reserved ones of TCP and IPv4,
/// AccECN's, and the urgent pointer.
#[test]
fn segments_with_bits_beyond_the_common_ones_are_not_merged() {
    for (at, bit) in [(34 + 12, 1), (34 + 12, 8), (34 + 18, 1), (34 + 19, 1), (14 + 6, 0x80)] {
        let segments = train(false, 3, 100);
        let mut frames = bytes(&segments);
        frames[1][at] |= bit;
        sample::complete(&mut frames[1], 34, false);
        let seen = merge(ALL, frames.clone());
        let found: Vec<Vec<u8>> = seen.iter().map(|(_, bytes, _)| bytes.clone()).collect();
        assert_eq!(found, frames, "byte {at}, bit {bit}");
    }
}

#[test]
fn what_was_not_delivered_is_given_back_in_order() {
    let (mut a, mut b) = (train(false, 4, 100), train(false, 3, 100));
    b.iter_mut().for_each(|segment| segment.ports.0 += 1);
    // a0 b0 a1 b1 a2 b2 a3: two groups.
    let mut frames = vec![a.remove(0)];
    for segment in b {
        frames.extend([segment, a.remove(0)]);
    }
    for (room, left) in [(0, vec![0, 1, 2, 3, 4, 5, 6]), (1, vec![1, 3, 5]), (2, vec![])] {
        let mut burst = Burst::for_wire();
        burst.fill(ALL, &mut bytes(&frames).into_iter());
        let mut taken = 0;
        burst.deliver(&mut |_, _, _| {
            taken += 1;
            taken <= room
        });
        let mut back: Vec<Vec<u8>> = burst.take_back().collect();
        back.reverse();
        let expected: Vec<Vec<u8>> = left.iter().map(|place: &usize| frames[*place].bytes()).collect();
        assert_eq!(back, expected, "room for {room} groups");
        assert!(burst.is_empty());
        burst.fill(ALL, &mut std::iter::empty());
        burst.deliver(&mut |_, _, _| panic!("nothing is left in it"));
    }
}
