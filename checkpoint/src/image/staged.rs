//! An epoch that arrived whole and was verified, and is not yet applied.

use super::ImageError;
use crate::gate::GateState;
use crate::pages::{PAGE_SIZE, PageIndex};
use holdfast_epoch::{Digest, EpochId, Term};

/// Pages for which room is kept from one epoch to the next, 64 MiB: memory that a process gets anew has to be found and
/// cleared, which takes longer than all else that is done with a page as it is. A larger epoch's is given back.
pub(crate) const KEPT_PAGES: usize = 16 * 1024;

/// The pages of an epoch, in the order in which they came; of two copies of a page the later one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StagedPages {
    /// Each page and whether it has bytes; without, it is all zeros.
    index: Vec<(PageIndex, bool)>,
    bytes: Vec<u8>,
}

impl StagedPages {
    /// No pages.
    #[must_use]
    pub const fn new() -> Self {
        Self { index: Vec::new(), bytes: Vec::new() }
    }

    /// No pages, with room for `pages` of them that are not zero.
    #[must_use]
    pub fn with_capacity(pages: usize) -> Self {
        Self { index: Vec::with_capacity(pages), bytes: Vec::with_capacity(pages * PAGE_SIZE) }
    }

    /// Adds a page.
    ///
    /// Its cost is in that of [`Staging::pages`](crate::backup::Staging::pages).
    pub fn push(&mut self, page: PageIndex, bytes: &[u8; PAGE_SIZE]) {
        self.index.push((page, true));
        self.bytes.extend_from_slice(bytes);
    }

    /// Pages with bytes that came so far.
    pub(crate) fn with_bytes(&self) -> usize {
        self.bytes.len() / PAGE_SIZE
    }

    /// The bytes of a page, by its place among those that have any.
    ///
    /// # Panics
    /// When there are not so many.
    pub(crate) fn bytes_at(&self, place: usize) -> &[u8] {
        &self.bytes[place * PAGE_SIZE..(place + 1) * PAGE_SIZE]
    }

    /// Adds a page of zeros.
    pub fn push_zero(&mut self, page: PageIndex) {
        self.index.push((page, false));
    }

    /// Pages that came.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether none came.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Takes all pages out; the room stays, up to that for [`KEPT_PAGES`].
    pub fn clear(&mut self) {
        self.index.clear();
        self.bytes.clear();
        self.index.shrink_to(KEPT_PAGES);
        self.bytes.shrink_to(KEPT_PAGES * PAGE_SIZE);
    }

    /// The pages in the order in which they came; `None` is all zeros.
    pub fn iter(&self) -> impl Iterator<Item = (PageIndex, Option<&[u8; PAGE_SIZE]>)> {
        let mut chunks = self.bytes.chunks_exact(PAGE_SIZE);
        self.index.iter().map(move |&(page, has_bytes)| {
            let found = has_bytes.then(|| {
                let bytes = chunks.next().expect("a page with bytes has them");
                bytes.try_into().expect("chunks are of a page's size")
            });
            (page, found)
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn index(&self) -> &[(PageIndex, bool)] {
        &self.index
    }

    pub(super) fn from_parts(index: Vec<(PageIndex, bool)>, bytes: Vec<u8>) -> Self {
        let with_bytes = index.iter().filter(|&&(_, has_bytes)| has_bytes).count();
        assert_eq!(with_bytes * PAGE_SIZE, bytes.len(), "each page has its bytes");
        Self { index, bytes }
    }
}

/// An epoch whose bytes are those that the primary promised.
#[derive(Debug)]
pub struct StagedEpoch {
    pub(super) term: Term,
    pub(super) id: EpochId,
    pub(super) pages: StagedPages,
    pub(super) device_state: Vec<u8>,
    pub(super) gate_state: GateState,
}

impl StagedEpoch {
    /// Takes an epoch for whole if the digest that was computed over what arrived is the one that was
    /// promised (CK-1).
    ///
    /// # Errors
    /// [`ImageError::Damaged`] when it is not.
    pub fn verified(
        (term, id): (Term, EpochId),
        pages: StagedPages,
        device_state: Vec<u8>,
        gate_state: GateState,
        promised: &Digest,
        computed: &Digest,
    ) -> Result<Self, ImageError> {
        if promised == computed {
            Ok(Self { term, id, pages, device_state, gate_state })
        } else {
            Err(ImageError::Damaged { term, epoch: id })
        }
    }

    /// The epoch.
    #[must_use]
    pub const fn id(&self) -> EpochId {
        self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_for_the_next_epoch_but_not_all_of_a_large_ones() {
        let full = |count: usize| {
            let mut pages = StagedPages::new();
            (0..count as u64).for_each(|page| pages.push(PageIndex(page), &[1; PAGE_SIZE]));
            pages
        };
        for (count, kept) in [(100, 100), (KEPT_PAGES + 100, KEPT_PAGES)] {
            let mut pages = full(count);
            let at = pages.bytes.as_ptr();
            pages.clear();
            assert!(pages.is_empty() && pages.with_bytes() == 0);
            assert!(pages.bytes.capacity() >= kept * PAGE_SIZE, "{count} pages");
            assert!(pages.bytes.capacity() <= (2 * kept + 8) * PAGE_SIZE, "{count} pages");
            if count < KEPT_PAGES {
                pages.push(PageIndex(7), &[2; PAGE_SIZE]);
                assert_eq!(pages.bytes.as_ptr(), at, "it is the same room");
            }
        }
    }
}
