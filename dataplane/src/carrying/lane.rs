//! A queue of frames from one core to another.
//!
//! ```text
//!  | length, flow | offload header | flow? | bytes of the frame, to a multiple of 8 | next record | ...  | pad |
//! ```
//!
//! Frames lie in a ring of bytes, each in one piece: what is left at the ring's end and too short for the next one is
//! passed over. The ring itself is `rtrb`'s, with one writer and one reader that never wait for each other.
#![expect(
    unsafe_code,
    reason = "bytes of the ring are written in place, without being zeroed for each frame"
)]

use crate::guest::VirtioNetHdr;
use rtrb::chunks::WriteChunkUninit;
use rtrb::{Consumer, Producer, RingBuffer};

/// Bytes in a lane: a few of the largest frames that a guest sends, and some 2,700 of the smallest.
const LANE_BYTES: usize = 256 * 1024;

/// Records begin at multiples of it, so that what a record begins with is always in one piece.
const ALIGN: usize = 8;

/// Bytes before those of a frame.
const HEAD: usize = 24;

const _: () = assert!(LANE_BYTES % ALIGN == 0 && HEAD == ALIGN + VirtioNetHdr::BYTES + 4);

/// In place of a frame's length: from here on so many bytes, which the next word says, are no frame's.
const PAD: u32 = u32::MAX;

/// A lane: the end at which frames go in, and that at which they come out.
pub(super) fn lane() -> (Writer, Reader) {
    let (mut producer, consumer) = RingBuffer::new(LANE_BYTES);
    // Each byte has a value from now on; and its memory is there before the first frames are.
    drop(producer.write_chunk(LANE_BYTES));
    (Writer(producer), Reader(consumer))
}

/// Where frames go in.
#[derive(Debug)]
pub(super) struct Writer(Producer<u8>);

impl Writer {
    /// Puts a frame of `len` bytes in, which `fill` writes over what there is; false, and it is not in, without room for
    /// it. `flow` is the number of its flow, where that is of use.
    ///
    /// Bound: one copy. Allocations, locks and system calls: none.
    #[inline]
    pub(super) fn push(
        &mut self,
        header: &VirtioNetHdr,
        flow: Option<u32>,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> bool {
        let size = (HEAD + len).next_multiple_of(ALIGN);
        let Ok(mut chunk) = self.0.write_chunk_uninit(size) else { return false };
        let first = first_of(&mut chunk);
        let rest = first.len();
        if rest < size {
            first[..4].copy_from_slice(&PAD.to_le_bytes());
            first[4..ALIGN].copy_from_slice(&(rest as u32).to_le_bytes());
            // SAFETY: all bytes of the ring have values.
            unsafe { chunk.commit(rest) };
            match self.0.write_chunk_uninit(size) {
                Ok(at_the_beginning) => chunk = at_the_beginning,
                Err(_) => return false,
            }
        }
        let record = first_of(&mut chunk);
        record[..4].copy_from_slice(&(len as u32).to_le_bytes());
        record[4..ALIGN].copy_from_slice(&flow.unwrap_or_default().to_le_bytes());
        record[ALIGN..HEAD - 4].copy_from_slice(&header.to_bytes());
        record[HEAD - 4] = flow.is_some().into();
        fill(&mut record[HEAD..HEAD + len]);
        // SAFETY: all bytes of the ring have values.
        unsafe { chunk.commit_all() };
        true
    }
}

/// What of a chunk lies before the ring's end.
#[inline]
fn first_of<'a>(chunk: &'a mut WriteChunkUninit<'_, u8>) -> &'a mut [u8] {
    let (first, _) = chunk.as_mut_slices();
    // SAFETY: `lane` gave every byte of the ring a value, and a byte that is written or read keeps one.
    unsafe { std::slice::from_raw_parts_mut(first.as_mut_ptr().cast(), first.len()) }
}

/// Where frames come out.
#[derive(Debug)]
pub(super) struct Reader(Consumer<u8>);

impl Reader {
    /// Offers the oldest frame to `take`, with the number of its flow if that was given; one that it does not take stays
    /// in place. None when there is no frame, otherwise whether it was taken.
    ///
    /// Bound: one frame. Allocations, locks and system calls: none.
    #[inline]
    pub(super) fn offer(
        &mut self,
        take: impl FnOnce(&VirtioNetHdr, Option<u32>, &[u8]) -> bool,
    ) -> Option<bool> {
        let len = loop {
            let chunk = self.0.read_chunk(ALIGN).ok()?;
            let (len, other) = words(chunk.as_slices().0)?;
            if len != PAD {
                break len as usize;
            }
            self.0.read_chunk(other as usize).ok()?.commit_all();
        };
        let chunk = self.0.read_chunk((HEAD + len).next_multiple_of(ALIGN)).ok()?;
        let (record, _) = chunk.as_slices();
        let (_, flow) = words(record)?;
        let header = VirtioNetHdr::parse(record[ALIGN..].first_chunk()?);
        let flow = (record[HEAD - 4] != 0).then_some(flow);
        let taken = take(&header, flow, &record[HEAD..HEAD + len]);
        if taken {
            chunk.commit_all();
        }
        Some(taken)
    }

    /// Whether there is nothing: one load. What is passed over counts as something until it has been.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The two numbers that a record begins with.
#[inline]
fn words(record: &[u8]) -> Option<(u32, u32)> {
    let both = u64::from_le_bytes(*record.first_chunk()?);
    Some((both as u32, (both >> 32) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn header(number: usize) -> VirtioNetHdr {
        VirtioNetHdr { gso_size: number as u16, csum_offset: !number as u16, ..VirtioNetHdr::default() }
    }

    /// OC-2: frames of all sizes come out as they went in, in their order, however the ring's end falls; what finds no
    /// room goes in once there is some.
    #[test]
    fn frames_come_out_as_they_went_in() {
        let (mut writer, mut reader) = lane();
        let sizes = [0, 1, 60, 61, 1514, 9000, 65_000, 64, 63, 40_000];
        let mut inside = VecDeque::new();
        let (mut full, mut empty) = (0, 0);
        let mut number = 0_usize;
        for round in 0..40 {
            while inside.len() < [1, 7, 1000][round % 3] {
                let flow = (number % 3 > 0).then_some(number as u32);
                let len = sizes[number % sizes.len()];
                if !writer.push(&header(number), flow, len, |out| out.fill(number as u8)) {
                    full += 1;
                    break;
                }
                inside.push_back(number);
                number += 1;
            }
            while let Some(&expected) = inside.front() {
                assert_eq!(reader.offer(|_, _, _| false), Some(false));
                let took = reader.offer(|found, flow, bytes| {
                    assert_eq!(*found, header(expected));
                    assert_eq!(flow, (expected % 3 > 0).then_some(expected as u32));
                    assert_eq!(bytes, vec![expected as u8; sizes[expected % sizes.len()]]);
                    true
                });
                assert_eq!(took, Some(true));
                inside.pop_front();
                if round % 3 == 1 && inside.len() < 3 {
                    break;
                }
            }
            if inside.is_empty() {
                assert_eq!(reader.offer(|_, _, _| true), None);
                assert!(reader.is_empty());
                empty += 1;
            }
        }
        assert!(full > 5 && empty > 5 && number > 200, "{full} {empty} {number}");
    }

    /// The largest frame fits a lane that was emptied, wherever that stands.
    #[test]
    fn the_largest_frame_never_blocks_a_lane_that_is_empty() {
        let (mut writer, mut reader) = lane();
        for size in 0..2000 {
            let len = if size % 2 == 0 { size } else { 68 * 1024 };
            assert!(writer.push(&header(0), None, len, |_| {}), "after {size} frames");
            assert_eq!(reader.offer(|_, _, bytes| bytes.len() == len), Some(true));
        }
    }
}
