//! Pages of the guest's memory file, and sets of them.
//!
//! A page is 4 KiB of the *file*, counted from its start in 64 bits, whatever the guest's physical
//! map makes of it and whatever page size the file system uses: memory above 4 GiB is nothing special
//! here (CK-2). A set is a bitmap of fixed capacity: 32 KiB for each GiB of memory, and no allocation
//! after it was made.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::fmt;
use std::ops::Range;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// Number of a 4 KiB page in the guest's memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u64);

impl PageIndex {
    /// The page that holds the byte at `offset` of the file.
    #[must_use]
    pub const fn of_offset(offset: u64) -> Self {
        Self(offset / PAGE_SIZE as u64)
    }

    /// Offset of the page's first byte in the file.
    ///
    /// # Panics
    /// When the page lies beyond what 64 bits of offset can name, which no checked index does.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.0.checked_mul(PAGE_SIZE as u64).expect("a page of a file starts below 2^64")
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A set of pages of one memory file.
#[derive(Clone, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    capacity: u64,
    len: u64,
}

impl PageSet {
    /// An empty set over a file of `bytes` bytes; a last partial page counts as one.
    #[must_use]
    pub fn for_bytes(bytes: u64) -> Self {
        Self::with_capacity(bytes.div_ceil(PAGE_SIZE as u64))
    }

    /// An empty set over a file of `pages` pages.
    #[must_use]
    pub fn with_capacity(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).expect("a bitmap of the memory fits the memory");
        Self { words: vec![0; words], capacity: pages, len: 0 }
    }

    /// Pages in the file.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Pages in the set.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether no page is in the set.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the page is in the set; a page beyond the file is not.
    #[must_use]
    pub fn contains(&self, page: PageIndex) -> bool {
        page.0 < self.capacity && self.words[word_of(page)] & bit_of(page) != 0
    }

    /// Adds a page; says whether it was not there before.
    ///
    /// # Panics
    /// When the page lies beyond the file: pages from outside are checked before they get here.
    pub fn insert(&mut self, page: PageIndex) -> bool {
        assert!(page.0 < self.capacity, "page {page} lies beyond a file of {} pages", self.capacity);
        let word = &mut self.words[word_of(page)];
        let new = *word & bit_of(page) == 0;
        *word |= bit_of(page);
        self.len += u64::from(new);
        new
    }

    /// Adds the pages of a range of page numbers.
    ///
    /// Costs 3 ns for a page by itself (`cargo bench -p holdfast-checkpoint -- set`).
    ///
    /// # Panics
    /// When the range reaches beyond the file.
    pub fn insert_range(&mut self, pages: Range<u64>) {
        assert!(pages.end <= self.capacity, "page {} lies beyond {} pages", pages.end, self.capacity);
        for (number, mask) in masks(pages) {
            let word = &mut self.words[number];
            self.len += u64::from((mask & !*word).count_ones());
            *word |= mask;
        }
    }

    /// Takes the pages of a range of page numbers out.
    ///
    /// # Panics
    /// When the range reaches beyond the file.
    pub fn remove_range(&mut self, pages: Range<u64>) {
        assert!(pages.end <= self.capacity, "page {} lies beyond {} pages", pages.end, self.capacity);
        for (number, mask) in masks(pages) {
            let word = &mut self.words[number];
            self.len -= u64::from((mask & *word).count_ones());
            *word &= !mask;
        }
    }

    /// Adds every page of the file.
    pub fn insert_all(&mut self) {
        self.insert_range(0..self.capacity);
    }

    /// Takes a page out; says whether it was there.
    pub fn remove(&mut self, page: PageIndex) -> bool {
        let there = self.contains(page);
        if there {
            self.words[word_of(page)] &= !bit_of(page);
            self.len -= 1;
        }
        there
    }

    /// Adds every page of `other`.
    ///
    /// Costs 2 us for the set of a GiB, as all that join two sets (`cargo bench -p holdfast-checkpoint -- set`).
    ///
    /// # Panics
    /// When the two sets are over files of different size.
    pub fn union_with(&mut self, other: &Self) {
        assert_eq!(self.capacity, other.capacity, "sets of one file only");
        self.combine(other, |mine, theirs| mine | theirs);
    }

    /// Takes out every page of `other`.
    ///
    /// # Panics
    /// When the two sets are over files of different size.
    pub fn subtract(&mut self, other: &Self) {
        assert_eq!(self.capacity, other.capacity, "sets of one file only");
        self.combine(other, |mine, theirs| mine & !theirs);
    }

    /// Keeps the pages that are in `other` as well.
    ///
    /// # Panics
    /// When the two sets are over files of different size.
    pub fn intersect_with(&mut self, other: &Self) {
        assert_eq!(self.capacity, other.capacity, "sets of one file only");
        self.combine(other, |mine, theirs| mine & theirs);
    }

    /// Becomes the same as `other`.
    ///
    /// # Panics
    /// When the two sets are over files of different size.
    pub fn copy_from(&mut self, other: &Self) {
        assert_eq!(self.capacity, other.capacity, "sets of one file only");
        self.words.copy_from_slice(&other.words);
        self.len = other.len;
    }

    /// Takes every page out.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.len = 0;
    }

    /// The pages, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = PageIndex> + '_ {
        self.words.iter().zip(0u64..).flat_map(|(&word, number)| {
            std::iter::successors((word != 0).then_some(word), |&rest| {
                let rest = rest & (rest - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |rest| PageIndex(number * 64 + u64::from(rest.trailing_zeros())))
        })
    }

    /// The pages as runs of neighbours, lowest first.
    ///
    /// Costs 0.8 ns a page where each is by itself (`cargo bench -p holdfast-checkpoint -- set`).
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut pages = self.iter().peekable();
        std::iter::from_fn(move || {
            let start = pages.next()?.0;
            let mut end = start + 1;
            while pages.next_if_eq(&PageIndex(end)).is_some() {
                end += 1;
            }
            Some(start..end)
        })
    }

    fn combine(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        let mut len = 0;
        for (mine, &theirs) in self.words.iter_mut().zip(&other.words) {
            *mine = with(*mine, theirs);
            len += u64::from(mine.count_ones());
        }
        self.len = len;
    }
}

impl fmt::Debug for PageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSet({} of {}: ", self.len, self.capacity)?;
        f.debug_list().entries(self.runs().take(16)).finish()?;
        f.write_str(")")
    }
}

/// The words of a range of page numbers, each with the bits that are in it.
fn masks(pages: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut at = pages.start;
    std::iter::from_fn(move || {
        let (from, stop) = (at, pages.end.min((at | 63) + 1));
        at = stop.max(at);
        (from < stop).then(|| (word_of(PageIndex(from)), (u64::MAX >> (64 - (stop - from))) << (from % 64)))
    })
}

fn word_of(page: PageIndex) -> usize {
    usize::try_from(page.0 / 64).expect("checked against the capacity, which is in memory")
}

const fn bit_of(page: PageIndex) -> u64 {
    1 << (page.0 % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Numbers without a pattern, the same in every run.
    fn scrambled(count: u64, below: u64) -> impl Iterator<Item = u64> {
        (1..=count).map(move |n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) % below)
    }

    #[test]
    fn a_set_of_pages_behaves_like_a_set_of_numbers() {
        let mut model = BTreeSet::new();
        let mut set = PageSet::with_capacity(1000);
        for page in scrambled(700, 1000) {
            assert_eq!(set.insert(PageIndex(page)), model.insert(page));
        }
        for page in scrambled(90, 500) {
            assert_eq!(set.remove(PageIndex(page)), model.remove(&page));
        }
        assert_eq!(set.len(), model.len() as u64);
        assert!(set.iter().map(|page| page.0).eq(model.iter().copied()));
        assert!(set.runs().flatten().eq(model.iter().copied()));
        assert!((0..1100).all(|page| set.contains(PageIndex(page)) == model.contains(&page)));
    }

    #[test]
    fn ranges_of_every_alignment_are_added_and_taken_out_whole() {
        for (start, end) in [(0, 1), (0, 64), (0, 65), (63, 64), (63, 65), (1, 300), (299, 300), (7, 7)] {
            let mut set = PageSet::with_capacity(300);
            set.insert(PageIndex(64));
            set.insert_range(start..end);
            set.remove(PageIndex(64));
            let expected = (start..end).filter(|&page| page != 64);
            assert!(set.iter().map(|page| page.0).eq(expected.clone()), "{start}..{end}");
            assert_eq!(set.len(), expected.clone().count() as u64);
            set.insert_all();
            set.remove_range(start..end);
            assert!(set.iter().all(|page| !(start..end).contains(&page.0)), "without {start}..{end}");
            assert_eq!(set.len(), 300 - (end - start));
        }
    }

    #[test]
    fn sets_are_joined_and_subtracted() {
        let mut left = PageSet::for_bytes(200 * PAGE_SIZE as u64 - 1);
        assert_eq!(left.capacity(), 200, "a partial page counts");
        let mut right = left.clone();
        left.insert_range(10..100);
        right.insert_range(90..130);
        left.union_with(&right);
        assert_eq!(left.len(), 120);
        assert!(left.runs().eq(std::iter::once(10..130)), "{left:?}");
        left.subtract(&right);
        assert_eq!(left.len(), 80);
        left.insert_range(95..100);
        right.intersect_with(&left);
        assert!(right.runs().eq(std::iter::once(95..100)), "{right:?}");
        left.copy_from(&right);
        assert_eq!(left, right);
        left.clear();
        assert!(left.is_empty() && left.iter().next().is_none());
        left.insert_all();
        assert_eq!(left.len(), 200);
    }

    /// CK-2: offsets above 4 GiB keep their page.
    #[test]
    fn pages_above_four_gib_are_told_apart_from_those_below() {
        let high = PageIndex::of_offset((5 << 30) + 123);
        let mut set = PageSet::for_bytes(6 << 30);
        set.insert(high);
        assert_eq!(high.offset(), 5 << 30);
        assert!(set.contains(high) && !set.contains(PageIndex::of_offset(1 << 30)));
        assert!(set.runs().eq(std::iter::once(high.0..high.0 + 1)), "{set:?}");
    }
}
