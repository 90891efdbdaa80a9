//! Mutations of inputs, from a seed.

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; zero when that is zero.
    pub const fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next_number() % bound as u64) as usize }
    }
}

/// Numbers at which lengths and sequence numbers go wrong.
const EDGES: [u32; 12] =
    [0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, u32::MAX];

/// Changes `bytes` in a few places, with pieces of `other` now and then; at most `max` bytes remain.
pub fn mutate(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8], max: usize) {
    let rounds = 1 + random.below(6);
    for _ in 0..rounds {
        let at = random.below(bytes.len() + 1);
        match random.below(10) {
            0 => bytes.truncate(at),
            1 | 2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            3 | 4 if at < bytes.len() => bytes[at] = random.next_number() as u8,
            5 => bytes.insert(at, random.next_number() as u8),
            6 if at < bytes.len() => {
                bytes.remove(at);
            }
            7 => {
                let edge = EDGES[random.below(EDGES.len())].to_be_bytes();
                let len = [1, 2, 4][random.below(3)];
                for (place, byte) in bytes.iter_mut().skip(at).zip(&edge[4 - len..]) {
                    *place = *byte;
                }
            }
            8 => {
                let begin = random.below(other.len() + 1);
                let end = begin + random.below((other.len() - begin).min(64) + 1);
                bytes.splice(at..at, other[begin..end].iter().copied());
            }
            _ => {
                let end = at + random.below((bytes.len() - at).min(64) + 1);
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes.truncate(max);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_mutations_again_and_never_more_than_the_limit() {
        let (mut first, mut second) = (Random::new(7), Random::new(7));
        let (mut one, mut two) = (vec![1; 40], vec![1; 40]);
        for _ in 0..500 {
            mutate(&mut first, &mut one, &[9; 30], 100);
            mutate(&mut second, &mut two, &[9; 30], 100);
            assert_eq!(one, two);
            assert!(one.len() <= 100);
        }
    }
}
