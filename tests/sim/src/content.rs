//! What the streams carry: bytes that a stream's number and the place within it determine.
//!
//! What a guest writes also depends on the *life* in which it writes: each failover begins a new one.
//! A byte that the guest wrote in an epoch that was lost differs from the one that it writes in its
//! place later, so that a byte released before its commit shows.

use crate::random::spread;

/// What was written to a stream so far: from which offset on in which life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    marks: Vec<(u64, u32)>,
}

impl History {
    /// Bytes from `offset` on are written in this life.
    pub(crate) fn mark(&mut self, offset: u64, life: u32) {
        match self.marks.last() {
            Some(&(_, last)) if last == life => {}
            _ => self.marks.push((offset, life)),
        }
    }

    /// The life in which the byte at `offset` was written, and where the next life begins.
    fn life(&self, offset: u64) -> (u32, u64) {
        let mut found = (0, u64::MAX);
        for &(start, life) in &self.marks {
            if start > offset {
                found.1 = start;
                break;
            }
            found = (life, u64::MAX);
        }
        found
    }

    /// The bytes of `stream` that begin at `offset`.
    pub(crate) fn fill(&self, stream: u64, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut left = out;
        while !left.is_empty() {
            let (life, until) = self.life(at);
            let len = left.len().min(usize::try_from(until - at).unwrap_or(usize::MAX));
            let (now, later) = left.split_at_mut(len);
            fill(spread(stream ^ (u64::from(life) << 40)), at, now);
            at += len as u64;
            left = later;
        }
    }

    /// Whether these are the bytes of `stream` that begin at `offset`; if not, where they differ first.
    pub(crate) fn check(&self, stream: u64, offset: u64, bytes: &[u8]) -> Result<(), u64> {
        let mut expected = [0; 2048];
        let mut at = offset;
        for piece in bytes.chunks(expected.len()) {
            let expected = &mut expected[..piece.len()];
            self.fill(stream, at, expected);
            if let Some(first) = piece.iter().zip(expected.iter()).position(|(a, b)| a != b) {
                return Err(at + first as u64);
            }
            at += piece.len() as u64;
        }
        Ok(())
    }
}

fn fill(key: u64, offset: u64, out: &mut [u8]) {
    let mut block = offset / 8;
    let mut skip = (offset % 8) as usize;
    let mut left = out;
    while !left.is_empty() {
        let bytes = spread(key ^ block).to_le_bytes();
        let len = left.len().min(8 - skip);
        let (now, later) = left.split_at_mut(len);
        now.copy_from_slice(&bytes[skip..skip + len]);
        (block, skip, left) = (block + 1, 0, later);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_those_of_the_whole_in_every_life() {
        let mut history = History::default();
        history.mark(0, 0);
        history.mark(100, 1);
        history.mark(777, 2);
        let mut whole = [0; 1500];
        history.fill(9, 0, &mut whole);
        for start in [0, 3, 99, 100, 776, 1000] {
            let mut piece = [0; 400];
            history.fill(9, start, &mut piece);
            assert_eq!(piece, whole[start as usize..start as usize + 400]);
            assert_eq!(history.check(9, start, &piece), Ok(()));
        }
        let mut other = History::default();
        other.mark(0, 0);
        other.mark(101, 1);
        let differs = other.check(9, 0, &whole).expect_err("another life wrote one byte");
        assert_eq!(differs, 100);
    }
}
