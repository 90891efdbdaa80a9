//! Frames in both directions, with a driver that keeps the rules.

use super::driver::{DriverQueue, GuestRam, INDIRECT, NEXT, WRITE, descriptor};
use super::{USUAL, memory, queue, rx, tx};
use crate::features::{Features, bits};
use crate::header::VirtioNetHdr;
use crate::ring::{RxRing, TxRing, Verdict};
use proptest::prelude::*;

/// Takes everything that waits, as (header, frame).
fn take_all(ring: &mut TxRing) -> Vec<(VirtioNetHdr, Vec<u8>)> {
    let mut frames = Vec::new();
    ring.poll(usize::MAX, |header, bytes| {
        let mut frame = vec![0; bytes.len()];
        // In two steps, so that an offset into the middle is tried each time.
        let half = bytes.len() / 2;
        assert_eq!(bytes.copy_to(0, &mut frame[..half]), half);
        assert_eq!(bytes.copy_to(half, &mut frame[half..]), bytes.len() - half);
        frames.push((*header, frame));
        Verdict::Taken
    })
    .expect("a driver that keeps the rules");
    ring.flush().expect("the ring is there");
    frames
}

/// Lays `bytes` out at `gpa` in pieces of these sizes, as a chain of descriptors from `first` on, or
/// as an indirect table at `table`; returns the head.
fn lay_out(
    driver: &DriverQueue<'_>,
    first: u16,
    gpa: u64,
    pieces: &[u32],
    flags: u16,
    table: Option<u64>,
) -> u16 {
    let mut at = gpa;
    let base = if table.is_some() { 0 } else { first };
    for (step, len) in (0_u16..).zip(pieces) {
        let more = if usize::from(step) + 1 < pieces.len() { NEXT } else { 0 };
        let bytes = descriptor(at, *len, flags | more, base + step + 1);
        match table {
            Some(table) => driver.ram.write(table + 16 * u64::from(step), &bytes),
            None => driver.set_descriptor(first + step, bytes),
        }
        at += u64::from(*len);
    }
    if let Some(table) = table {
        driver.set_descriptor(first, descriptor(table, 16 * pieces.len() as u32, INDIRECT, 0));
    }
    first
}

/// Cuts `total` bytes at these places.
fn pieces(total: usize, cuts: &[usize]) -> Vec<u32> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % total).chain([0, total]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2).map(|pair| (pair[1] - pair[0]) as u32).collect()
}

const BUFFERS: [u64; 3] = [0x2_0000, 0x7_fff0, 0x1_0002_0000];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the layout (direct, indirect, cut anywhere, across regions, above 4 GiB), the frame
    /// that comes out is the frame that went in.
    #[test]
    fn a_frame_sent_comes_out_whole_however_it_is_laid_out(
        header: [u8; 12],
        frame in prop::collection::vec(any::<u8>(), 1..4000),
        cuts in prop::collection::vec(any::<usize>(), 0..6),
        indirect: bool,
        place in 0_usize..3,
        base: u16,
    ) {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let mut driver = DriverQueue::new(&ram, 0x1000, 16, base);
        let (mut ring, _) = tx(&driver, &memory, USUAL);
        let bytes = [&header[..], &frame].concat();
        let table = indirect.then_some(0x1_0000_8008);
        ram.write(BUFFERS[place], &bytes);
        let head = lay_out(&driver, 3, BUFFERS[place], &pieces(bytes.len(), &cuts), 0, table);
        driver.offer(head);
        prop_assert_eq!(take_all(&mut ring), vec![(VirtioNetHdr::parse(&header), frame)]);
        prop_assert_eq!(driver.take_used(), vec![(u32::from(head), 0)]);
    }

    /// Whatever the buffers, the frame in them is the frame that was pushed, and the used ring says
    /// how much of each buffer it took.
    #[test]
    fn a_frame_pushed_arrives_whole_in_as_many_buffers_as_it_needs(
        frame in prop::collection::vec(any::<u8>(), 1..4000),
        split in any::<usize>(),
        sizes in prop::collection::vec(1_u32..1200, 1..16),
        indirect: bool,
        base: u16,
    ) {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let mut driver = DriverQueue::new(&ram, 0x1_0000_0000, 16, base);
        let (mut ring, _) = rx(&driver, &memory, USUAL);
        let mut at = BUFFERS[1] - 700;
        let mut places = Vec::new();
        for (index, size) in (0_u16..).zip(&sizes) {
            let table = indirect.then(|| 0x1_0000_8000 + 64 * u64::from(index));
            driver.offer(lay_out(&driver, index, at, &[*size], WRITE, table));
            places.push(at);
            at += u64::from(*size);
        }
        let (first, second) = frame.split_at(split % frame.len());
        let header = VirtioNetHdr { gso_size: 77, ..VirtioNetHdr::default() };
        let need = 12 + frame.len() as u64;
        let room: u64 = sizes.iter().map(|size| u64::from(*size)).sum();
        let pushed = ring.push(&header, &[first, second]).expect("a driver that keeps the rules");
        ring.flush().expect("the ring is there");
        prop_assert_eq!(pushed, need <= room);
        let used = driver.take_used();
        prop_assert_eq!(used.iter().map(|(_, len)| u64::from(*len)).sum::<u64>(), if pushed { need } else { 0 });
        let mut arrived = Vec::new();
        for (head, len) in &used {
            arrived.extend(ram.read(places[*head as usize], *len as usize));
        }
        if pushed {
            let expected = VirtioNetHdr { num_buffers: used.len() as u16, ..header };
            prop_assert_eq!(&arrived[..12], &expected.to_bytes()[..]);
            prop_assert_eq!(&arrived[12..], &frame[..]);
        }
    }
}

/// Offers `count` receive buffers of 2 KiB.
fn fill(driver: &mut DriverQueue<'_>, count: u16) {
    for index in 0..count {
        let index = index % driver.size;
        driver.set_descriptor(index, descriptor(0x2_0000 + 2048 * u64::from(index), 2048, WRITE, 0));
        driver.offer(index);
    }
}

#[test]
fn a_refused_frame_stays_in_the_ring_and_comes_again() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = DriverQueue::new(&ram, 0x1000, 8, 0);
    let (mut ring, _) = tx(&driver, &memory, USUAL);
    for index in 0..4_u16 {
        ram.write(0x2_0000 + u64::from(index) * 64, &[index as u8; 64]);
        driver.set_descriptor(index, descriptor(0x2_0000 + u64::from(index) * 64, 64, 0, 0));
        driver.offer(index);
    }
    let mut room = 2;
    let taken = ring.poll(32, |_, _| {
        if room == 0 {
            return Verdict::Refused;
        }
        room -= 1;
        Verdict::Taken
    });
    ring.flush().expect("the ring is there");
    assert_eq!(taken, Ok(2));
    assert_eq!(driver.take_used(), [(0, 0), (1, 0)], "the refused frame keeps its buffers");
    let rest = take_all(&mut ring);
    assert_eq!(rest.iter().map(|(_, frame)| frame[0]).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_poll_takes_no_more_than_it_was_told() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = DriverQueue::new(&ram, 0x1000, 8, 65533);
    let (mut ring, _) = tx(&driver, &memory, USUAL);
    for index in 0..8 {
        driver.set_descriptor(index, descriptor(0x2_0000, 64, 0, 0));
        driver.offer(index);
    }
    assert_eq!(ring.poll(3, |_, _| Verdict::Taken), Ok(3));
    assert_eq!(driver.used_index(), 65533, "nothing is shown before the flush");
    ring.flush().expect("the ring is there");
    assert_eq!(driver.used_index(), 0);
    assert_eq!(ring.poll(8, |_, _| Verdict::Taken), Ok(5));
    ring.flush().expect("the ring is there");
    assert_eq!(driver.take_used().len(), 8);
}

#[test]
fn a_frame_without_room_takes_nothing() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = DriverQueue::new(&ram, 0x1000, 8, 0);
    let (mut ring, _) = rx(&driver, &memory, USUAL);
    fill(&mut driver, 2);
    let header = VirtioNetHdr::default();
    assert_eq!(ring.push(&header, &[&[1; 5000]]), Ok(false));
    assert_eq!(ring.push(&header, &[&[1; 4000]]), Ok(true));
    assert_eq!(ring.push(&header, &[&[1; 1]]), Ok(false));
    ring.flush().expect("the ring is there");
    assert_eq!(driver.take_used(), [(0, 2048), (1, 12 + 4000 - 2048)]);
}

#[test]
fn without_merged_buffers_a_frame_takes_one_or_none() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = DriverQueue::new(&ram, 0x1000, 8, 0);
    let (mut ring, _) = rx(&driver, &memory, bits::VERSION_1);
    fill(&mut driver, 4);
    assert_eq!(ring.push(&VirtioNetHdr::default(), &[&[1; 2037]]), Ok(false));
    assert_eq!(ring.push(&VirtioNetHdr::default(), &[&[1; 2036]]), Ok(true));
    ring.flush().expect("the ring is there");
    assert_eq!(driver.take_used(), [(0, 2048)]);
    assert_eq!(ram.read(0x2_0000 + 10, 2), [1, 0], "virtio 1 wants num_buffers to be 1");
}

#[test]
fn an_old_driver_gets_and_gives_headers_of_ten_bytes() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    assert_eq!(Features::new(0).header_len(), 10);
    let mut sender = DriverQueue::new(&ram, 0x1000, 8, 0);
    let mut receiver = DriverQueue::new(&ram, 0x8000, 8, 0);
    let (mut out, _) = tx(&sender, &memory, 0);
    let (mut back, _) = rx(&receiver, &memory, 0);
    ram.write(0x2_0000, &[7; 74]);
    sender.set_descriptor(0, descriptor(0x2_0000, 74, 0, 0));
    sender.offer(0);
    assert_eq!(take_all(&mut out)[0].1, [7; 64]);
    fill(&mut receiver, 1);
    assert_eq!(back.push(&VirtioNetHdr::default(), &[&[9; 64]]), Ok(true));
    back.flush().expect("the ring is there");
    assert_eq!(receiver.take_used(), [(0, 74)]);
    assert_eq!(ram.read(0x2_0000 + 9, 3), [0, 9, 9]);
}

#[test]
fn a_parked_ring_gives_nothing_and_has_no_room() {
    let mut out = TxRing::parked();
    assert_eq!(out.poll(8, |_, _| Verdict::Taken), Ok(0));
    assert_eq!((out.flush(), out.want_kick(true)), (Ok(()), Ok(false)));
    let mut back = RxRing::parked();
    assert_eq!(back.push(&VirtioNetHdr::default(), &[&[0; 64]]), Ok(false));
    assert_eq!((back.flush(), back.want_kick(true)), (Ok(()), Ok(false)));
}

#[test]
fn a_burst_is_notified_once_and_only_when_the_guest_asked() {
    for (features, label) in [(USUAL, "flag"), (USUAL | bits::EVENT_IDX, "index")] {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let mut driver = DriverQueue::new(&ram, 0x1000, 8, 65530);
        let (mut ring, guest) = rx(&driver, &memory, features);
        fill(&mut driver, 8);
        let burst = |count: usize, ring: &mut RxRing| {
            for _ in 0..count {
                assert_eq!(ring.push(&VirtioNetHdr::default(), &[&[0; 64]]), Ok(true));
            }
            ring.flush().expect("the ring is there");
            guest.clear()
        };
        // The guest asks to be told at the next entry.
        driver.set_used_event(65530);
        assert!(burst(3, &mut ring), "{label}: asked");
        // It is still busy with that: by flag, or by an index that lies behind.
        if features & bits::EVENT_IDX == 0 {
            ram.write_u16(driver.available_gpa(), 1);
        }
        assert!(!burst(2, &mut ring), "{label}: not asked");
        ram.write_u16(driver.available_gpa(), 0);
        driver.set_used_event(65536_u32.wrapping_sub(1) as u16);
        assert!(burst(2, &mut ring), "{label}: asked again, across the wrap");
        assert!(!burst(0, &mut ring), "{label}: nothing was shown");
    }
}

#[test]
fn a_core_that_wants_to_sleep_learns_of_work_that_arrived() {
    for features in [USUAL, USUAL | bits::EVENT_IDX] {
        let ram = GuestRam::new();
        let memory = memory(&ram);
        let mut driver = DriverQueue::new(&ram, 0x1000, 8, 10);
        let (mut ring, _) = tx(&driver, &memory, features);
        assert_eq!(ring.want_kick(false), Ok(false));
        if features & bits::EVENT_IDX == 0 {
            assert_eq!(ram.read_u16(driver.used_gpa()), 1, "no notifications while polling");
        }
        assert_eq!(ring.want_kick(true), Ok(false));
        assert_eq!(ram.read_u16(driver.used_gpa()), 0);
        if features & bits::EVENT_IDX != 0 {
            assert_eq!(driver.available_event(), 10, "the next chain is to notify");
        }
        driver.set_descriptor(0, descriptor(0x2_0000, 64, 0, 0));
        driver.offer(0);
        assert_eq!(ring.want_kick(true), Ok(true), "it must not sleep now");
    }
}

#[test]
fn a_ring_goes_on_at_the_used_index_where_the_two_differ() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = DriverQueue::new(&ram, 0x1000, 8, 5);
    for index in 0..3 {
        driver.set_descriptor(index, descriptor(0x2_0000, 64, 0, 0));
        driver.offer(index);
    }
    // A device that died had taken three chains and shown none.
    let (queue, _) = queue(&driver, &memory, USUAL);
    assert_eq!(queue.base(), 5);
    let mut ring = TxRing::parked();
    ring.start(queue, 12);
    assert_eq!(take_all(&mut ring).len(), 3);
    assert_eq!(driver.take_used(), [(0, 0), (1, 0), (2, 0)]);
}

/// RB-1: a small frame is what it was when its burst was looked at, whatever the guest writes there meanwhile; one that
/// was refused is read anew.
#[test]
fn a_guest_cannot_change_a_small_frame_that_was_offered() {
    let ram = GuestRam::new();
    let mut driver = DriverQueue::new(&ram, 0x1000, 8, 0);
    let memory = memory(&ram);
    let (mut ring, _guest) = tx(&driver, &memory, USUAL);
    let (at, len) = (0x8000, VirtioNetHdr::BYTES + 60);
    let head = lay_out(&driver, 0, at, &[len as u32], 0, None);
    for (fill, verdict) in [(1, Verdict::Refused), (2, Verdict::Taken)] {
        ram.write(at, &[0; VirtioNetHdr::BYTES]);
        ram.write(at + VirtioNetHdr::BYTES as u64, &[fill; 60]);
        if fill == 1 {
            driver.offer(head);
        }
        let taken = ring.poll(8, |_, bytes| {
            ram.write(at, &[0xff; VirtioNetHdr::BYTES + 60]);
            let mut copy = [0; 60];
            assert_eq!(bytes.copy_to(0, &mut copy), 60);
            assert_eq!(copy, [fill; 60]);
            assert_eq!(bytes.copied(), Some(&copy[..]));
            verdict
        });
        assert_eq!(taken, Ok(usize::from(verdict == Verdict::Taken)));
    }
}

/// OC-2: what somebody has yet to deal with is in the guest's queue still, as far as the guest knows.
#[test]
fn buffers_that_are_kept_back_come_back_later_and_in_their_order() {
    let ram = GuestRam::new();
    let memory = memory(&ram);
    let mut driver = DriverQueue::new(&ram, 0x1000, 8, 65530);
    let (mut ring, guest) = tx(&driver, &memory, USUAL);
    let mut back = Vec::new();
    for round in 0..20_u16 {
        for index in (0..3).map(|nth| (3 * round + nth) % 8) {
            driver.set_descriptor(index, descriptor(0x2_0000, 64, 0, 0));
            driver.offer(index);
        }
        assert_eq!(ring.poll(32, |_, _| Verdict::Taken), Ok(3));
        ring.flush_but(2).expect("the ring is there");
        back.extend(driver.take_used());
        assert_eq!(back.len(), usize::from(3 * round + 1));
        assert!(guest.clear());
        ring.flush_but(2).expect("the ring is there");
        ring.flush_but(9).expect("the ring is there");
        assert!(!guest.clear() && driver.take_used().is_empty(), "nothing more is shown");
    }
    ring.flush().expect("the ring is there");
    back.extend(driver.take_used());
    let sent = (0..60).map(|nth| (nth % 8, 0));
    assert!(back.into_iter().eq(sent));
}
