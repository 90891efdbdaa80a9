//! An epoch that arrived whole and was verified, and is not yet applied.

use super::ImageError;
use crate::gate::GateState;
use crate::pages::{PAGE_SIZE, PageIndex};
use holdfast_epoch::{Digest, EpochId, Term};

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

    /// Takes all pages out; the room stays.
    pub fn clear(&mut self) {
        self.index.clear();
        self.bytes.clear();
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
