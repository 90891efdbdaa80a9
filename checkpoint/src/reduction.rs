//! A page made smaller for the way: nothing for a page of zeroes, an LZ4 block where that pays, the
//! page as it is otherwise.
//!
//! Decoding is bounded: whatever arrives, exactly one page comes out or an error (RB-1).

use crate::pages::PAGE_SIZE;
use lz4_flex::block;
use thiserror::Error;

/// Words of zeroes that a page is compared with at a time.
const STRIDE: usize = 64;
/// A block must be at least this much shorter than the page, or the page goes as it is: decoding it
/// costs the backup more than the few bytes cost the link.
const WORTH: usize = PAGE_SIZE / 8;
/// After a page that did not shrink, so many pages are not tried: incompressible pages come in runs.
const SKIP_LIMIT: u32 = 8;

/// A page on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduced<'a> {
    /// All zeroes.
    Zero,
    /// As it is.
    Raw(&'a [u8]),
    /// An LZ4 block that holds one page.
    Lz4(&'a [u8]),
}

/// Whether every byte is zero. About 15 ns for a page in the cache; a page that is not zero is mostly
/// recognised by its first bytes.
#[must_use]
pub fn is_zero(page: &[u8]) -> bool {
    let mut strides = page.chunks_exact(STRIDE);
    strides.all(|stride| stride.iter().fold(0u8, |joined, &byte| joined | byte) == 0)
        && page.chunks_exact(STRIDE).remainder().iter().all(|&byte| byte == 0)
}

/// Reduces pages one after the other; keeps its buffers.
pub struct Reducer {
    block: Vec<u8>,
    table: block::CompressTable,
    compress: bool,
    misses: u32,
    skip: u32,
}

impl Reducer {
    /// A reducer that compresses, or one that only drops pages of zeroes.
    #[must_use]
    pub fn new(compress: bool) -> Self {
        let room = block::get_maximum_output_size(PAGE_SIZE);
        Self { block: vec![0; room], table: block::CompressTable::default(), compress, misses: 0, skip: 0 }
    }

    /// Reduces one page.
    ///
    /// # Panics
    /// When `page` is not one page long.
    pub fn reduce<'a>(&'a mut self, page: &'a [u8]) -> Reduced<'a> {
        if is_zero(page) { Reduced::Zero } else { self.reduce_bytes(page) }
    }

    /// As [`Reducer::reduce`], for a page that is known not to be zero.
    pub(crate) fn reduce_bytes<'a>(&'a mut self, page: &'a [u8]) -> Reduced<'a> {
        assert_eq!(page.len(), PAGE_SIZE, "one page at a time");
        if !self.compress {
            return Reduced::Raw(page);
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Reduced::Raw(page);
        }
        let len = block::compress_into_with_table(page, &mut self.block, &mut self.table)
            .expect("the buffer has the largest size that a block can have");
        if len + WORTH <= PAGE_SIZE {
            self.misses = 0;
            return Reduced::Lz4(&self.block[..len]);
        }
        self.misses = (self.misses + 1).min(SKIP_LIMIT);
        self.skip = self.misses;
        Reduced::Raw(page)
    }
}

impl std::fmt::Debug for Reducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reducer").field("compress", &self.compress).finish_non_exhaustive()
    }
}

/// Why a page cannot be restored; the peer is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// Not an LZ4 block, or one of another length.
    #[error("a compressed page does not decode to one page")]
    Block,
    /// A page as it is, of another length.
    #[error("a page is not {PAGE_SIZE} bytes long")]
    Length,
}

/// Writes the page into `out`, which is one page long.
///
/// # Errors
/// When it does not yield exactly one page.
pub fn restore(reduced: Reduced<'_>, out: &mut [u8]) -> Result<(), RestoreError> {
    match reduced {
        Reduced::Zero => out.fill(0),
        Reduced::Raw(bytes) if bytes.len() == out.len() => out.copy_from_slice(bytes),
        Reduced::Raw(_) => return Err(RestoreError::Length),
        Reduced::Lz4(bytes) => match block::decompress_into(bytes, out) {
            Ok(len) if len == out.len() => {}
            _ => return Err(RestoreError::Block),
        },
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(page: &[u8]) -> Vec<u8> {
        let mut out = vec![0xee; PAGE_SIZE];
        restore(Reducer::new(true).reduce(page), &mut out).expect("our own pages restore");
        out
    }

    fn noise(seed: u64) -> Vec<u8> {
        let mut state = seed;
        (0..PAGE_SIZE)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect()
    }

    #[test]
    fn pages_of_every_kind_come_back_as_they_were() {
        let text: Vec<u8> = b"all work and no play ".iter().copied().cycle().take(PAGE_SIZE).collect();
        let mut almost_zero = vec![0; PAGE_SIZE];
        almost_zero[PAGE_SIZE - 1] = 1;
        for page in [vec![0; PAGE_SIZE], text, almost_zero, noise(1)] {
            assert_eq!(there_and_back(&page), page);
        }
    }

    #[test]
    fn the_cheapest_form_is_chosen() {
        let mut reducer = Reducer::new(true);
        assert_eq!(reducer.reduce(&[0; PAGE_SIZE]), Reduced::Zero);
        assert!(matches!(reducer.reduce(&[5; PAGE_SIZE]), Reduced::Lz4(block) if block.len() < 100));
        let noise = noise(2);
        assert_eq!(reducer.reduce(&noise), Reduced::Raw(&noise));
        assert!(matches!(Reducer::new(false).reduce(&[5; PAGE_SIZE]), Reduced::Raw(_)));
    }

    /// Incompressible runs are not compressed page after page, and compressible ones are found again.
    #[test]
    fn compression_is_given_up_for_a_while_only() {
        let (mut reducer, noise) = (Reducer::new(true), noise(3));
        (0..100).for_each(|_| assert!(matches!(reducer.reduce(&noise), Reduced::Raw(_))));
        let tried = (0..=SKIP_LIMIT).find(|_| matches!(reducer.reduce(&[5; PAGE_SIZE]), Reduced::Lz4(_)));
        assert!(tried.is_some());
    }

    /// RB-1: a block that decodes to less or more than a page, or to nothing, is refused.
    #[test]
    fn blocks_that_are_not_one_page_are_refused() {
        let long = block::compress(&[7; 2 * PAGE_SIZE]);
        let short = block::compress(&[7; PAGE_SIZE - 1]);
        let mut out = vec![0; PAGE_SIZE];
        for bytes in [&long[..], &short, &[], &[0xff; 40], &noise(4)] {
            assert_eq!(restore(Reduced::Lz4(bytes), &mut out), Err(RestoreError::Block));
        }
        assert_eq!(restore(Reduced::Raw(&[1; 9]), &mut out), Err(RestoreError::Length));
    }
}
