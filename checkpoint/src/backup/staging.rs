//! An epoch on its way: what came of it so far.
//!
//! Records of pages are made whole as they come, in their order, since a record may refer to what came before it.

use super::{malformed, refusal};
use crate::delta;
use crate::digest::{EpochHasher, PageHasher};
use crate::image::{Image, KEPT_PAGES, StagedPages};
use crate::pages::{PAGE_SIZE, PageIndex};
use crate::protocol::{PageBatch, Payload, Refusal, RefusalCode, StateKind};
use crate::reduction::{Reduced, is_zero, restore};
use std::collections::HashMap;

/// Pages of a synchronisation that are verified and written together: side by side they are hashed three times as fast
/// as one by one, and all of them stay in the processor's nearest cache.
const GROUP: usize = 16;

/// What a record costs beside its bytes.
pub(super) const RECORD_COST: u64 = 96;

/// The epoch on its way, and before it the pages of a full synchronisation, which go to the image as they come.
#[derive(Debug, Default)]
pub struct Staging {
    pub(super) pages: StagedPages,
    /// Where the last version of each of these is: its place among those with bytes; none if it is all zeros.
    places: HashMap<PageIndex, Option<usize>>,
    pub(super) devices: Vec<u8>,
    /// What comes instead of it.
    pub(super) change: Option<Vec<u8>>,
    pub(super) gate: Vec<u8>,
    /// Bytes that were acknowledged to the guest, as they came.
    pub(super) stream: Vec<Payload>,
    pub(super) hasher: EpochHasher,
    pub(super) base: Option<PageHasher>,
    group: Group,
    pub(super) bytes: u64,
}

/// Pages of a synchronisation on their way into the image, none of them all zeros.
#[derive(Debug, Default)]
struct Group {
    pages: Vec<PageIndex>,
    bytes: Vec<u8>,
}

impl Staging {
    /// Nothing came yet of a full synchronisation.
    #[must_use]
    pub fn of_full_sync() -> Self {
        Self { base: Some(PageHasher::default()), ..Self::default() }
    }

    /// Nothing came yet of the epoch after this one, whose pages were in `pages`: what they were in and noted by is used
    /// again.
    pub(super) fn next(self, pages: StagedPages) -> Self {
        let mut places = self.places;
        places.clear();
        places.shrink_to(KEPT_PAGES);
        Self { pages, places, ..Self::default() }
    }

    /// Takes pages of a full synchronisation; they go to the image. About 0.8 us each, a third of them zeros
    /// (`holdfast bench pages --workloads sync`), of which most is the digest and the copy; no allocation.
    ///
    /// # Errors
    /// The refusal to answer with. Pages before the one that is refused were taken.
    ///
    /// # Panics
    /// When no full synchronisation is under way: the session checks.
    pub fn base(&mut self, batch: &PageBatch, image: &mut Image) -> Result<(), Refusal> {
        let pages = image.len() / PAGE_SIZE as u64;
        let taken = batch.records(pages).try_for_each(|record| {
            let (page, reduced) = record.map_err(malformed)?;
            self.take_base(page, reduced, image)
        });
        let written = self.write_group(image);
        taken.and(written)
    }

    /// Takes a page of the synchronisation, whose bytes may wait for those that follow.
    fn take_base(&mut self, page: PageIndex, reduced: Reduced<'_>, image: &mut Image) -> Result<(), Refusal> {
        // What waits is not in the image yet: what may refer to it, or overtake it, comes after it.
        if self.group.pages.len() == GROUP || reduced.refers() || self.group.pages.contains(&page) {
            self.write_group(image)?;
        }
        let mut group = std::mem::take(&mut self.group);
        let from = group.bytes.len();
        let is_content = match reduced {
            Reduced::Zero => false,
            Reduced::Raw(bytes) if bytes.len() == PAGE_SIZE => {
                group.bytes.extend_from_slice(bytes);
                !is_zero(bytes)
            }
            reduced => {
                group.bytes.resize(from + PAGE_SIZE, 0);
                let bytes: &mut [u8; PAGE_SIZE] =
                    (&mut group.bytes[from..]).try_into().expect("just made a page long");
                if let Err(refusal) = self.restore(image, page, reduced, bytes) {
                    group.bytes.truncate(from);
                    self.group = group;
                    return Err(refusal);
                }
                !is_zero(&group.bytes[from..])
            }
        };
        self.base.as_mut().expect("there from the Begin to the first seal").add_index(page, !is_content);
        match is_content {
            true => group.pages.push(page),
            false => group.bytes.truncate(from),
        }
        self.group = group;
        if is_content {
            return Ok(());
        }
        image.write_base(page, None).map_err(|fault| refusal(&fault))
    }

    /// Its cost is in that of [`Staging::base`].
    fn write_group(&mut self, image: &mut Image) -> Result<(), Refusal> {
        let Group { pages, bytes } = &mut self.group;
        self.base.as_mut().expect("there from the Begin to the first seal").add_bytes(bytes);
        for (page, bytes) in pages.drain(..).zip(bytes.chunks_exact(PAGE_SIZE)) {
            let bytes = bytes.try_into().expect("a page long");
            image.write_base(page, Some(bytes)).map_err(|fault| refusal(&fault))?;
        }
        bytes.clear();
        Ok(())
    }

    /// Takes pages of the epoch, which may take `limit` bytes; `scratch` is room to work in. The image stays as it is
    /// (CK-1).
    ///
    /// Costs 2.4 us for a page as it is, most of it the first write to fresh memory, which all but an epoch larger than
    /// those before it do without; 0.7 us for one that is unchanged,
    /// 4.4 for a delta, 3.5 for a compressed one (`cargo bench -p holdfast-checkpoint -- staged`).
    ///
    /// # Errors
    /// The refusal to answer with. Pages before the one that is refused were taken.
    ///
    /// # Panics
    /// Never: a page that was made room for is as long as one.
    pub fn pages(
        &mut self,
        batch: &PageBatch,
        image: &Image,
        limit: u64,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let pages = image.len() / PAGE_SIZE as u64;
        scratch.clear();
        for record in batch.records(pages) {
            let (page, reduced) = record.map_err(malformed)?;
            let has_bytes = !matches!(reduced, Reduced::Unchanged | Reduced::Zero);
            self.bytes += RECORD_COST + if has_bytes { PAGE_SIZE as u64 } else { 0 };
            self.check_room(limit)?;
            let from = scratch.len();
            scratch.resize(from + PAGE_SIZE, 0);
            let bytes: &mut [u8; PAGE_SIZE] =
                (&mut scratch[from..]).try_into().expect("just made a page long");
            self.restore(image, page, reduced, bytes)?;
            let content = (!is_zero(bytes)).then_some(&*bytes);
            self.hasher.pages.add_index(page, content.is_none());
            if reduced != Reduced::Unchanged {
                self.push(page, content);
            }
            if content.is_none() {
                scratch.truncate(from);
            }
        }
        // All at once: hashing single pages is half as fast.
        self.hasher.pages.add_bytes(scratch);
        Ok(())
    }

    pub(super) fn check_room(&self, limit: u64) -> Result<(), Refusal> {
        if self.bytes <= limit {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalCode::NoRoom,
            format!(
                "an epoch needs more than the {} MiB that the backup keeps for one: raise its staging limit, \
                 or shorten the epochs",
                limit >> 20
            ),
        ))
    }

    /// Writes a page as it was before it was reduced.
    fn restore(
        &self,
        image: &Image,
        page: PageIndex,
        reduced: Reduced<'_>,
        out: &mut [u8; PAGE_SIZE],
    ) -> Result<(), Refusal> {
        restore(page, reduced, |page, into| self.recall(image, page, into), out).map_err(malformed)
    }

    /// What was sent of a page last; says whether anything was.
    pub fn recall(&self, image: &Image, page: PageIndex, into: &mut [u8; PAGE_SIZE]) -> bool {
        match self.places.get(&page) {
            Some(None) => into.fill(0),
            Some(Some(place)) => into.copy_from_slice(self.pages.bytes_at(*place)),
            None => return image.has_page(page) && image.read_page(page, into).is_ok(),
        }
        true
    }

    fn push(&mut self, page: PageIndex, content: Option<&[u8; PAGE_SIZE]>) {
        self.places.insert(page, content.map(|_| self.pages.with_bytes()));
        match content {
            Some(bytes) => self.pages.push(page, bytes),
            None => self.pages.push_zero(page),
        }
    }

    /// Makes the state of the devices of the one before, where only what changed came.
    pub(super) fn complete_devices(&mut self, image: &Image) -> Result<(), Refusal> {
        let Some(change) = self.change.take() else { return Ok(()) };
        if !self.devices.is_empty() {
            let text = "a state of the devices came both whole and as what changed";
            return Err(Refusal::new(RefusalCode::Malformed, text));
        }
        self.devices.extend_from_slice(devices_of(image));
        delta::apply(&mut self.devices, &change).map_err(malformed)?;
        self.hasher.add_state(StateKind::Devices, &self.devices);
        Ok(())
    }
}

/// State of the devices in the epoch before the one that comes; nothing before a session's first.
pub(super) fn devices_of(image: &Image) -> &[u8] {
    image.last().map_or(&[], |checkpoint| &checkpoint.device_state)
}
