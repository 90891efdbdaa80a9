//! A page made smaller for the way, and whole again at the other end.
//!
//! The first way that serves a page is taken, the cheapest first:
//!
//! | way | what travels | of which pages |
//! |---|---|---|
//! | zero | nothing | all zeroes |
//! | unchanged | nothing | the bytes are those that it had when it was sent last |
//! | equal | the number of another page | the bytes are those that the other had when it was sent last |
//! | delta | an LZ4 block of the difference | half of it or more is as it was when it was sent last |
//! | compress | an LZ4 block of the page | it shrinks |
//! | none | the page | all others |
//!
//! What *was sent last* is the last record of that page in the order of the session, be it of the full
//! synchronisation, of an earlier epoch or of this one. The sender keeps copies of some of these pages (`sent`), made
//! with the session and gone with it, and refers to no page that it has no copy of. The receiver takes up records in
//! their order, so that it holds the same: what was staged of the page in the open epoch, or else what its image has.
//! No epoch is given up but with its session, and the next session refers to nothing that was sent before it.
//!
//! Of a full synchronisation no copies are kept, unless there is room for one of every page, or as long as pages are found
//! that equal others: most would be gone before their pages are written to.
//!
//! Beside the zeroes each way is tried only as long as it pays: see `worth`.
//!
//! A reference that is wrong all the same gives other bytes than those that the epoch's digest is made of, and the
//! epoch is refused (CK-1). Decoding is bounded: whatever arrives, exactly one page comes out or an error (RB-1).
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod figures;
mod sent;
mod worth;

pub use figures::{ReductionFigures, WayFigures};
pub(crate) use worth::Price;

use crate::pages::{PAGE_SIZE, PageIndex};
use lz4_flex::block;
use sent::{SentPages, fingerprint};
use serde::{Deserialize, Serialize};
use std::time::Instant;
use thiserror::Error;
use worth::Worth;

/// Bytes of a page that are looked at as one.
const STRIDE: usize = 64;
/// A block must be at least this much shorter than the page, or the page goes as it is: decoding it
/// costs the backup more than the few bytes cost the link.
const WORTH: usize = PAGE_SIZE / 8;
/// A page of which more strides than this differ is no delta: most of it is new.
const DELTA_STRIDES: usize = PAGE_SIZE / STRIDE / 2;
/// After a page that did not shrink, so many pages are not tried: incompressible pages come in runs.
const SKIP_LIMIT: u32 = 8;

/// Tries after which it is judged whether a way pays. A page that equals another is found only if the other was
/// looked at as well, so that many in a row have to be.
const WINDOW: u32 = 64;
const WINDOW_OF_EQUAL: u32 = 1024;

/// Least and most memory for copies of sent pages that is taken unless the operator says otherwise.
const CACHE_LEAST: u64 = 64 << 20;
const CACHE_MOST: u64 = 512 << 20;
/// The same of a guest on huge pages: all pages of one that was written to are looked at.
const CACHE_MOST_HUGE: u64 = 2 << 30;

/// A way to make a page smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Written, and the same as it was sent last.
    Unchanged,
    /// All zeroes.
    Zero,
    /// The same as another page was sent last.
    Equal,
    /// Not much different from what was sent last.
    Delta,
    /// Compressed by itself.
    Compress,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Unchanged, Self::Zero, Self::Equal, Self::Delta, Self::Compress];

    /// Whether it needs copies of what was sent.
    const fn refers(self) -> bool {
        matches!(self, Self::Unchanged | Self::Equal | Self::Delta)
    }
}

/// How the pages of a machine are reduced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reduction {
    /// The ways that may be taken.
    pub ways: Vec<Way>,
    /// Bytes of sent pages that the primary keeps to refer to; none: by the guest's memory.
    pub cache: Option<u64>,
    /// Whether a way that does not pay is left out for a while.
    pub adaptive: bool,
}

impl Default for Reduction {
    fn default() -> Self {
        Self { ways: Way::ALL.to_vec(), cache: None, adaptive: true }
    }
}

impl Reduction {
    /// Bytes of sent pages to keep, for a guest with so many bytes of memory in pages of such a size.
    #[must_use]
    pub fn cache_bytes(&self, memory: u64, page_size: u64) -> u64 {
        if !self.ways.iter().any(|way| way.refers()) {
            return 0;
        }
        let usual = if page_size > PAGE_SIZE as u64 {
            memory.min(CACHE_MOST_HUGE)
        } else {
            (memory / 8).clamp(CACHE_LEAST, CACHE_MOST)
        };
        self.cache.unwrap_or(usual).min(memory)
    }
}

/// A page on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduced<'a> {
    /// As it was sent last.
    Unchanged,
    /// All zeroes.
    Zero,
    /// As that page was sent last.
    Same(PageIndex),
    /// An LZ4 block that holds one page, which makes of the page as it was sent last the page as it is, by
    /// exclusive or.
    Delta(&'a [u8]),
    /// An LZ4 block that holds one page.
    Lz4(&'a [u8]),
    /// As it is.
    Raw(&'a [u8]),
}

impl Reduced<'_> {
    /// The way that it is; none for a page as it is.
    #[must_use]
    pub const fn way(&self) -> Option<Way> {
        match self {
            Self::Unchanged => Some(Way::Unchanged),
            Self::Zero => Some(Way::Zero),
            Self::Same(_) => Some(Way::Equal),
            Self::Delta(_) => Some(Way::Delta),
            Self::Lz4(_) => Some(Way::Compress),
            Self::Raw(_) => None,
        }
    }

    /// Whether it counts on what was sent of a page before.
    pub(crate) const fn refers(&self) -> bool {
        matches!(self, Self::Unchanged | Self::Same(_) | Self::Delta(_))
    }
}

/// Whether every byte is zero. Costs 35 ns, 32 for a page in the cache; a page that is not zero is mostly
/// recognised by its first bytes, for 7 ns (`cargo bench -p holdfast-checkpoint -- reduce`).
#[must_use]
pub fn is_zero(page: &[u8]) -> bool {
    let mut strides = page.chunks_exact(STRIDE);
    strides.all(|stride| stride.iter().fold(0u8, |joined, &byte| joined | byte) == 0)
        && page.chunks_exact(STRIDE).remainder().iter().all(|&byte| byte == 0)
}

/// Reduces the pages of one session, in the order in which they are sent.
pub struct Reducer {
    sent: SentPages,
    zero: bool,
    unchanged: Worth,
    equal: Worth,
    delta: Worth,
    compress: Worth,
    ns_per_byte: f64,
    block: Vec<u8>,
    difference: Vec<u8>,
    table: block::CompressTable,
    misses: u32,
    skip: u32,
    /// Whether copies are kept only of pages that others may equal.
    sparing: bool,
}

/// What a page came to; a block is in the reducer's buffer.
enum Form {
    Unchanged,
    Same(PageIndex),
    Delta(usize),
    Lz4(usize),
    Raw,
}

impl Reducer {
    /// A reducer for a new session, which may keep so many bytes of what it sent.
    #[must_use]
    pub fn new(reduction: &Reduction, cache_bytes: u64) -> Self {
        let wanted = |way| reduction.ways.contains(&way);
        let worth = |way, window| Worth::new(wanted(way), reduction.adaptive, window);
        Self {
            sent: SentPages::new(cache_bytes),
            zero: wanted(Way::Zero),
            unchanged: worth(Way::Unchanged, WINDOW),
            equal: worth(Way::Equal, WINDOW_OF_EQUAL),
            delta: worth(Way::Delta, WINDOW),
            compress: worth(Way::Compress, WINDOW),
            ns_per_byte: Price::default().ns_per_byte(),
            block: vec![0; block::get_maximum_output_size(PAGE_SIZE)],
            difference: vec![0; PAGE_SIZE],
            table: block::CompressTable::default(),
            misses: 0,
            skip: 0,
            sparing: false,
        }
    }

    /// What a byte on the way costs from now on.
    pub(crate) const fn set_price(&mut self, ns_per_byte: f64) {
        self.ns_per_byte = ns_per_byte;
    }

    /// Whether copies are kept from now on only of pages that others may equal: what is sent is a full synchronisation.
    pub(crate) const fn set_sparing(&mut self, sparing: bool) {
        self.sparing = sparing;
    }

    /// Bytes of sent pages that are kept.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.sent.len() as u64 * PAGE_SIZE as u64
    }

    /// Reduces one page, which is sent next: a page that is reduced and not sent would be referred to in vain.
    ///
    /// Costs 46 ns a page of zeros, 2.2 us one of noise where all ways are tried, 1.8 where those that do not pay are
    /// not (`cargo bench -p holdfast-checkpoint -- reduce`).
    ///
    /// # Panics
    /// When `bytes` is not one page long.
    pub fn reduce<'a>(&'a mut self, page: PageIndex, bytes: &'a [u8]) -> Reduced<'a> {
        assert_eq!(bytes.len(), PAGE_SIZE, "one page at a time");
        if self.zero && is_zero(bytes) {
            self.sent.forget(page);
            return Reduced::Zero;
        }
        match self.choose(page, bytes) {
            Form::Unchanged => Reduced::Unchanged,
            Form::Same(other) => Reduced::Same(other),
            Form::Delta(len) => Reduced::Delta(&self.block[..len]),
            Form::Lz4(len) => Reduced::Lz4(&self.block[..len]),
            Form::Raw => Reduced::Raw(bytes),
        }
    }

    /// The cheapest form of a page; what was sent of it last is these bytes then. Of equal pages one copy is enough.
    fn choose(&mut self, page: PageIndex, bytes: &[u8]) -> Form {
        let place = self.sent.place(page);
        if place.is_some_and(|place| self.is_unchanged(place, bytes)) {
            return Form::Unchanged;
        }
        let (fingerprint, equal) = self.find_equal(bytes);
        if let Some(other) = equal {
            if other != page {
                self.sent.forget(page);
            }
            return Form::Same(other);
        }
        let form = if let Some(len) = place.and_then(|place| self.differ(place, bytes)) {
            Form::Delta(len)
        } else if let Some(len) = self.pack(bytes) {
            Form::Lz4(len)
        } else {
            Form::Raw
        };
        if !self.sparing || fingerprint.is_some() {
            self.sent.keep(page, bytes, fingerprint);
        } else if place.is_some() {
            self.sent.forget(page);
        }
        form
    }

    /// Costs 350 ns, with the search for the copy (`cargo bench -p holdfast-checkpoint -- reduce`).
    fn is_unchanged(&mut self, place: usize, bytes: &[u8]) -> bool {
        if !self.unchanged.is_due() {
            return false;
        }
        let at = Instant::now();
        let is_same = self.sent.bytes(place) == bytes;
        let saved = if is_same { PAGE_SIZE } else { 0 };
        self.unchanged.tried(at.elapsed(), saved, self.ns_per_byte);
        is_same
    }

    /// A page that was sent with the same bytes; with the fingerprint of these, if equal pages are looked for.
    ///
    /// Costs 500 ns where one is found; where none is, 760 with the copy that is kept, and 2.3 us where that takes
    /// fresh memory (`cargo bench -p holdfast-checkpoint -- reduce`).
    fn find_equal(&mut self, bytes: &[u8]) -> (Option<u64>, Option<PageIndex>) {
        if self.sent.has_no_room() || !self.equal.is_due() {
            return (None, None);
        }
        let at = Instant::now();
        let fingerprint = fingerprint(bytes);
        let found = self.sent.find(bytes, fingerprint);
        let saved = if found.is_some() { PAGE_SIZE } else { 0 };
        self.equal.tried(at.elapsed(), saved, self.ns_per_byte);
        (Some(fingerprint), found)
    }

    /// The length of the block that makes the page of what was sent of it last, where most of it is the same.
    ///
    /// Costs 570 ns, 370 where too much differs, with the copy that is kept (`cargo bench -p holdfast-checkpoint --
    /// reduce`).
    fn differ(&mut self, place: usize, bytes: &[u8]) -> Option<usize> {
        if !self.delta.is_due() {
            return None;
        }
        let at = Instant::now();
        let strides = difference(self.sent.bytes(place), bytes, &mut self.difference);
        let len = (strides <= DELTA_STRIDES)
            .then(|| pack(&self.difference, &mut self.block, &mut self.table))
            .filter(|len| len + WORTH <= PAGE_SIZE);
        self.delta.tried(at.elapsed(), len.map_or(0, |len| PAGE_SIZE - len), self.ns_per_byte);
        len
    }

    /// The length of the block that holds the page, where it is worth one.
    ///
    /// Costs 5.7 us for a page of words, 0.08 for one of noise, of which one in nine is tried (`cargo bench -p
    /// holdfast-checkpoint -- reduce`).
    fn pack(&mut self, bytes: &[u8]) -> Option<usize> {
        if !self.compress.is_due() {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let at = Instant::now();
        let len = Some(pack(bytes, &mut self.block, &mut self.table)).filter(|len| len + WORTH <= PAGE_SIZE);
        self.compress.tried(at.elapsed(), len.map_or(0, |len| PAGE_SIZE - len), self.ns_per_byte);
        self.misses = if len.is_some() { 0 } else { (self.misses + 1).min(SKIP_LIMIT) };
        self.skip = self.misses;
        len
    }
}

impl std::fmt::Debug for Reducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reducer").field("sent", &self.sent.len()).finish_non_exhaustive()
    }
}

fn pack(page: &[u8], block: &mut [u8], table: &mut block::CompressTable) -> usize {
    block::compress_into_with_table(page, block, table)
        .expect("the buffer has the largest size that a block can have")
}

/// Writes the exclusive or of two pages; says in how many strides they differ.
fn difference(old: &[u8], new: &[u8], out: &mut [u8]) -> usize {
    let mut strides = 0;
    let pages = out.chunks_exact_mut(STRIDE).zip(old.chunks_exact(STRIDE)).zip(new.chunks_exact(STRIDE));
    for ((out, old), new) in pages {
        let mut joined = 0;
        for ((out, old), new) in out.iter_mut().zip(old).zip(new) {
            *out = old ^ new;
            joined |= *out;
        }
        strides += usize::from(joined != 0);
    }
    strides
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
    /// It refers to a page of which nothing is here.
    #[error("it refers to page {page}, of which nothing was sent")]
    NotHeld {
        /// Page referred to.
        page: PageIndex,
    },
}

/// Writes the page into `out`. `held` writes what was sent of a page last; it says whether anything was.
///
/// Costs 130 ns for a page as it is, 2.1 us for a delta, 1.2 for a compressed one, with the reading of its record
/// (`cargo bench -p holdfast-checkpoint -- decode`).
///
/// # Errors
/// When it does not yield exactly one page, or refers to one of which nothing was sent.
pub fn restore(
    page: PageIndex,
    reduced: Reduced<'_>,
    held: impl FnOnce(PageIndex, &mut [u8; PAGE_SIZE]) -> bool,
    out: &mut [u8; PAGE_SIZE],
) -> Result<(), RestoreError> {
    let recall = |page, into: &mut [u8; PAGE_SIZE]| {
        if held(page, into) { Ok(()) } else { Err(RestoreError::NotHeld { page }) }
    };
    match reduced {
        Reduced::Unchanged => recall(page, out),
        Reduced::Zero => {
            out.fill(0);
            Ok(())
        }
        Reduced::Same(other) => recall(other, out),
        Reduced::Delta(block) => {
            let mut before = [0; PAGE_SIZE];
            recall(page, &mut before)?;
            unpack(block, out)?;
            out.iter_mut().zip(before).for_each(|(out, before)| *out ^= before);
            Ok(())
        }
        Reduced::Lz4(block) => unpack(block, out),
        Reduced::Raw(bytes) if bytes.len() == out.len() => {
            out.copy_from_slice(bytes);
            Ok(())
        }
        Reduced::Raw(_) => Err(RestoreError::Length),
    }
}

fn unpack(block: &[u8], out: &mut [u8; PAGE_SIZE]) -> Result<(), RestoreError> {
    match block::decompress_into(block, out) {
        Ok(len) if len == out.len() => Ok(()),
        _ => Err(RestoreError::Block),
    }
}

#[cfg(test)]
mod tests;
