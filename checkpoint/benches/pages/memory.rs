//! Pages that rounds work on.

use crate::measure::PAGES;
use holdfast_checkpoint::pages::{PAGE_SIZE, PageIndex};

/// As many pages of each kind, one after the other.
pub(crate) struct Pages {
    pub(crate) zeros: Vec<u8>,
    pub(crate) noise: Vec<u8>,
    /// Noise that differs from it in one byte a page.
    pub(crate) near: Vec<u8>,
    /// Words: about as dense as a guest's own.
    pub(crate) text: Vec<u8>,
}

impl Pages {
    pub(crate) fn new() -> Self {
        // Written to, or all of them would be one page of the kernel's.
        let mut zeros = vec![1; PAGES * PAGE_SIZE];
        zeros.fill(0);
        let mut noise = vec![0; PAGES * PAGE_SIZE];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut near = noise.clone();
        near.chunks_exact_mut(PAGE_SIZE).for_each(|page| page[1000] ^= 1);
        Self { zeros, noise, near, text: text() }
    }
}

fn text() -> Vec<u8> {
    let words = [&b"page "[..], b"guest ", b"epoch ", b"\0\0\0\0\0\0\0\0", b"commit ", b"\x7fELF"];
    let mut bytes = Vec::with_capacity(PAGES * PAGE_SIZE + 16);
    let mut state = 7u64;
    while bytes.len() < PAGES * PAGE_SIZE {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(words[(state >> 33) as usize % words.len()]);
        bytes.push((state >> 56) as u8 & 0x1f);
    }
    bytes.truncate(PAGES * PAGE_SIZE);
    bytes
}

/// Pages with their numbers.
pub(crate) fn numbered(bytes: &[u8]) -> impl Iterator<Item = (PageIndex, &[u8])> {
    (0..).map(PageIndex).zip(bytes.chunks_exact(PAGE_SIZE))
}
