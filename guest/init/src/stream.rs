//! The seeded pseudo-random stream that is sent through the guest and checked byte for byte.
//!
//! Word `i` (8 bytes, little-endian) of the stream with seed `s` is
//!
//! ```text
//! table_s[i mod 8192]  XOR  key_s(i div 8192)
//! ```
//!
//! where `table_s` is 64 KiB of SplitMix64 output and `key_s(b)` is one SplitMix64 output for block
//! `b`. Any offset is reached at once, and a word costs one load, one XOR and one store: an emulated
//! guest must not spend its time on making bytes. A byte that is lost, doubled, moved or taken from
//! another place of the stream changes all that follow it, and no two blocks are alike.
//!
//! Pure: no I/O, no clock.

/// Bytes after which the key changes.
pub const BLOCK_BYTES: usize = 64 * 1024;
const BLOCK_WORDS: usize = BLOCK_BYTES / 8;
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// One step of SplitMix64's output function.
#[must_use]
pub const fn mix(seed: u64) -> u64 {
    let mut z = seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The stream of one seed.
#[derive(Clone)]
pub struct Stream {
    seed: u64,
    table: Box<[u64]>,
}

impl Stream {
    /// Makes the table of `seed` (64 KiB).
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let table = (1..=BLOCK_WORDS as u64).map(|i| mix(seed.wrapping_add(i.wrapping_mul(GAMMA)))).collect();
        Self { seed, table }
    }

    /// The seed that the stream was made from.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    fn key(&self, block: u64) -> u64 {
        mix(mix(self.seed ^ GAMMA).wrapping_add(block.wrapping_mul(GAMMA)))
    }

    /// Writes the bytes at `offset..offset + out.len()` into `out`. Offsets wrap at 2^64.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        for_each_part(offset, out.len(), |at, block, start, len| {
            let key = self.key(block);
            let part = &mut out[at..at + len];
            let (head, first_word, words) = split(start, len);
            for (i, byte) in part[..head].iter_mut().enumerate() {
                *byte = self.byte(key, start + i);
            }
            let body = &mut part[head..head + words * 8];
            for (bytes, word) in body.chunks_exact_mut(8).zip(&self.table[first_word..]) {
                bytes.copy_from_slice(&(word ^ key).to_le_bytes());
            }
            let done = head + words * 8;
            for (i, byte) in part[done..].iter_mut().enumerate() {
                *byte = self.byte(key, start + done + i);
            }
        });
    }

    /// The offset in the stream of the first byte of `bytes` that is not what the stream has at
    /// `offset`, if there is one.
    #[must_use]
    pub fn first_difference(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let mut found = None;
        for_each_part(offset, bytes.len(), |at, block, start, len| {
            if found.is_some() {
                return;
            }
            let key = self.key(block);
            let part = &bytes[at..at + len];
            if !self.equals(key, start, part) {
                let here = (0..len).find(|&i| part[i] != self.byte(key, start + i));
                found = here.map(|i| offset.wrapping_add((at + i) as u64));
            }
        });
        found
    }

    /// Whether `part` is what block with `key` has from byte `start` on; no early exit, so that the
    /// loop over words becomes vector instructions.
    fn equals(&self, key: u64, start: usize, part: &[u8]) -> bool {
        let (head, first_word, words) = split(start, part.len());
        let mut difference = 0u64;
        for (i, byte) in part[..head].iter().enumerate() {
            difference |= u64::from(byte ^ self.byte(key, start + i));
        }
        let body = &part[head..head + words * 8];
        for (bytes, word) in body.chunks_exact(8).zip(&self.table[first_word..]) {
            let mut have = [0; 8];
            have.copy_from_slice(bytes);
            difference |= u64::from_le_bytes(have) ^ word ^ key;
        }
        let done = head + words * 8;
        for (i, byte) in part[done..].iter().enumerate() {
            difference |= u64::from(byte ^ self.byte(key, start + done + i));
        }
        difference == 0
    }

    fn byte(&self, key: u64, at: usize) -> u8 {
        (self.table[at / 8] ^ key).to_le_bytes()[at % 8]
    }
}

/// Calls `each(index in the slice, block, start in the block, length)` for every block touched.
fn for_each_part(offset: u64, len: usize, mut each: impl FnMut(usize, u64, usize, usize)) {
    let mut at = 0;
    while at < len {
        let position = offset.wrapping_add(at as u64);
        let start = (position % BLOCK_BYTES as u64) as usize;
        let part = (BLOCK_BYTES - start).min(len - at);
        each(at, position / BLOCK_BYTES as u64, start, part);
        at += part;
    }
}

/// Bytes before the first whole word, that word's index, and how many whole words follow.
fn split(start: usize, len: usize) -> (usize, usize, usize) {
    let head = ((8 - start % 8) % 8).min(len);
    (head, (start + head) / 8, (len - head) / 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(seed: u64, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        Stream::new(seed).fill(offset, &mut out);
        out
    }

    proptest! {
        #[test]
        fn any_part_is_the_same_as_that_part_of_the_whole(from in 0usize..200_000, len in 0usize..90_000) {
            let whole = bytes(7, 0, 300_000);
            prop_assert_eq!(&whole[from..from + len], &bytes(7, from as u64, len)[..]);
        }

        #[test]
        fn one_changed_byte_is_found_where_it_is(from in 0u64..u64::MAX / 2, len in 1usize..70_000, at: prop::sample::Index) {
            let stream = Stream::new(3);
            let mut part = vec![0; len];
            stream.fill(from, &mut part);
            prop_assert_eq!(stream.first_difference(from, &part), None);
            let at = at.index(len);
            part[at] ^= 0x10;
            prop_assert_eq!(stream.first_difference(from, &part), Some(from + at as u64));
        }
    }

    #[test]
    fn streams_of_two_seeds_and_two_blocks_of_one_differ() {
        assert_ne!(bytes(1, 0, 64), bytes(2, 0, 64));
        assert_ne!(bytes(1, 0, 64), bytes(1, BLOCK_BYTES as u64, 64));
    }

    #[test]
    fn the_stream_does_not_change_between_releases() {
        let part = bytes(42, 65_530, 12);
        assert_eq!(part, bytes(42, 0, 70_000)[65_530..65_542]);
        assert_eq!(mix(GAMMA), 0xE220_A839_7B1D_CDAF, "SplitMix64's published first output for seed 0");
    }
}
