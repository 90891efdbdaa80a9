//! Copies of pages as they were sent last, as many as there is room for.
//!
//! A page is found by its number, or by its bytes: a fingerprint of these leads to one candidate, which is then
//! compared in full. A guest can write pages whose fingerprints collide; it costs a comparison each, and
//! nothing is taken for equal that is not.
//!
//! Where there is no room, a page drawn at random makes it, one that was of use since the last draw seldom: a guest
//! that writes to more memory than there is room for, over and over in the same order, would find nothing of it if
//! the oldest went.
//!
//! Memory: address space for all pages at first, memory as they come; beside each page about 100 bytes, 200 at
//! the most.

use crate::pages::{PAGE_SIZE, PageIndex};
use std::collections::HashMap;

/// Pages that are drawn at the most, until one is found that was of no use.
const DRAWS: u32 = 8;

/// What is known of a copy.
struct Kept {
    page: PageIndex,
    /// None of one that cannot be found by its bytes.
    fingerprint: Option<u64>,
    /// Whether it was of use since it was drawn last.
    used: bool,
}

/// The copies.
pub(super) struct SentPages {
    /// Pages that there is room for.
    room: usize,
    bytes: Vec<u8>,
    kept: Vec<Kept>,
    places: HashMap<PageIndex, usize>,
    /// Places of pages that were forgotten.
    free: Vec<usize>,
    /// By its fingerprint: the place of a page, the last one of those that have it.
    by_bytes: HashMap<u64, usize>,
    draw: u64,
}

impl SentPages {
    /// Room for so many bytes, or for less if the host has no more.
    pub(super) fn new(bytes: u64) -> Self {
        let mut room = usize::try_from(bytes / PAGE_SIZE as u64).unwrap_or(0);
        let mut store = Vec::new();
        while room > 0 && store.try_reserve_exact(room * PAGE_SIZE).is_err() {
            room /= 2;
        }
        Self {
            room,
            bytes: store,
            kept: Vec::with_capacity(room),
            places: HashMap::with_capacity(room),
            free: Vec::new(),
            by_bytes: HashMap::with_capacity(room),
            draw: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Whether nothing is ever kept.
    pub(super) const fn has_no_room(&self) -> bool {
        self.room == 0
    }

    /// Pages that are kept.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Where the copy of a page is.
    pub(super) fn place(&self, page: PageIndex) -> Option<usize> {
        self.places.get(&page).copied()
    }

    /// The copy in a place; it was of use.
    pub(super) fn bytes(&mut self, place: usize) -> &[u8] {
        self.kept[place].used = true;
        &self.bytes[span(place)]
    }

    /// The page that was sent with these bytes, of which the fingerprint is given.
    ///
    /// Its cost is in that of [`Reducer::reduce`](super::Reducer::reduce), as of all here.
    pub(super) fn find(&mut self, bytes: &[u8], fingerprint: u64) -> Option<PageIndex> {
        let place = *self.by_bytes.get(&fingerprint)?;
        // Without the comparison a collision would be sent for an equal page.
        if self.bytes[span(place)] != *bytes {
            return None;
        }
        self.kept[place].used = true;
        Some(self.kept[place].page)
    }

    /// The page is sent with these bytes now.
    pub(super) fn keep(&mut self, page: PageIndex, bytes: &[u8], fingerprint: Option<u64>) {
        if self.room == 0 {
            return;
        }
        let known = self.place(page);
        let place = known.unwrap_or_else(|| self.make_room());
        self.leave(place);
        if place * PAGE_SIZE == self.bytes.len() {
            self.bytes.extend_from_slice(bytes);
        } else {
            self.bytes[span(place)].copy_from_slice(bytes);
        }
        self.kept[place] = Kept { page, fingerprint, used: known.is_some() };
        if known.is_none() {
            self.places.insert(page, place);
        }
        if let Some(fingerprint) = fingerprint {
            self.by_bytes.insert(fingerprint, place);
        }
    }

    /// The page is sent in a way that needs no copy now.
    pub(super) fn forget(&mut self, page: PageIndex) {
        if let Some(place) = self.places.remove(&page) {
            self.leave(place);
            self.free.push(place);
        }
    }

    /// What is in a place is not found by its bytes any more.
    fn leave(&mut self, place: usize) {
        if let Some(fingerprint) = self.kept[place].fingerprint.take() {
            if self.by_bytes.get(&fingerprint) == Some(&place) {
                self.by_bytes.remove(&fingerprint);
            }
        }
    }

    /// A place for a page that has none; one behind all others has no bytes yet.
    fn make_room(&mut self) -> usize {
        if let Some(place) = self.free.pop() {
            return place;
        }
        let place = self.kept.len();
        if place < self.room {
            self.kept.push(Kept { page: PageIndex(0), fingerprint: None, used: false });
            return place;
        }
        let mut place = self.draw();
        for _ in 1..DRAWS {
            if !std::mem::take(&mut self.kept[place].used) {
                break;
            }
            place = self.draw();
        }
        self.places.remove(&self.kept[place].page);
        place
    }

    /// Any place; without a pattern, and the same in every run.
    fn draw(&mut self) -> usize {
        self.draw = self.draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let high = self.draw >> 32;
        ((high * self.kept.len() as u64) >> 32) as usize
    }
}

const fn span(place: usize) -> std::ops::Range<usize> {
    place * PAGE_SIZE..(place + 1) * PAGE_SIZE
}

/// A number that pages of the same bytes have in common, and hardly any others.
pub(super) fn fingerprint(page: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    // Eight at a time: each step waits for the one before it in its lane only.
    let mut lanes: [u64; 8] = std::array::from_fn(|lane| lane as u64 + 1);
    for words in page.chunks_exact(64) {
        for (lane, word) in lanes.iter_mut().zip(words.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
            *lane = (*lane ^ word).wrapping_mul(FACTOR).rotate_left(31);
        }
    }
    let joined =
        lanes.iter().fold(0, |joined: u64, lane| (joined ^ lane).wrapping_mul(FACTOR).rotate_left(29));
    joined ^ (joined >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: u64 = 16;

    fn pages() -> SentPages {
        SentPages::new(ROOM * PAGE_SIZE as u64)
    }

    fn filled(byte: u8) -> [u8; PAGE_SIZE] {
        [byte; PAGE_SIZE]
    }

    /// CK-1: pages whose fingerprints collide are told apart by their bytes.
    #[test]
    fn a_fingerprint_alone_makes_no_page_equal() {
        let mut sent = pages();
        sent.keep(PageIndex(3), &filled(1), Some(7));
        assert_eq!(sent.find(&filled(1), 7), Some(PageIndex(3)));
        assert_eq!(sent.find(&filled(2), 7), None);
        sent.keep(PageIndex(4), &filled(2), Some(7));
        assert_eq!((sent.find(&filled(1), 7), sent.find(&filled(2), 7)), (None, Some(PageIndex(4))));
        // The one that was found no more leaves the other to be found.
        sent.forget(PageIndex(3));
        assert_eq!(sent.find(&filled(2), 7), Some(PageIndex(4)));
    }

    /// What a page was before it was sent again, or was forgotten, is found no more.
    #[test]
    fn only_the_last_version_of_a_page_is_found() {
        let mut sent = pages();
        sent.keep(PageIndex(3), &filled(1), Some(1));
        sent.keep(PageIndex(3), &filled(2), Some(2));
        assert_eq!((sent.find(&filled(1), 1), sent.find(&filled(2), 2)), (None, Some(PageIndex(3))));
        sent.keep(PageIndex(3), &filled(4), None);
        assert_eq!(sent.find(&filled(2), 2), None);
        assert_eq!(
            sent.place(PageIndex(3)).map(|place| sent.bytes(place).to_vec()),
            Some(filled(4).to_vec())
        );
        sent.keep(PageIndex(5), &filled(5), Some(5));
        sent.forget(PageIndex(5));
        assert_eq!((sent.find(&filled(5), 5), sent.place(PageIndex(5)), sent.len()), (None, None, 1));
        sent.keep(PageIndex(6), &filled(6), Some(6));
        assert_eq!(sent.find(&filled(6), 6), Some(PageIndex(6)), "in the place that was left");
    }

    /// RB-1: however many pages are sent, there are no more copies than there is room for, each of its page.
    #[test]
    fn the_room_is_kept_and_every_copy_is_of_its_page() {
        let mut sent = pages();
        for turn in 0..50u64 {
            for page in 0..3 * ROOM {
                let byte = (page + turn % 2) as u8;
                if (page + turn) % 11 == 0 {
                    sent.forget(PageIndex(page));
                } else {
                    sent.keep(PageIndex(page), &filled(byte), Some(fingerprint(&filled(byte))));
                }
                assert!(sent.len() <= ROOM as usize && sent.bytes.len() <= ROOM as usize * PAGE_SIZE);
            }
            let kept: Vec<_> =
                (0..3 * ROOM).filter_map(|page| Some((page, sent.place(PageIndex(page))?))).collect();
            assert!(kept.len() > ROOM as usize / 2);
            for (page, place) in kept {
                assert_eq!(sent.bytes(place)[0], (page + turn % 2) as u8, "page {page}");
            }
        }
        let mut none = SentPages::new(PAGE_SIZE as u64 - 1);
        none.keep(PageIndex(0), &filled(1), Some(1));
        assert!(none.has_no_room() && none.len() == 0 && none.find(&filled(1), 1).is_none());
    }

    /// A guest that goes over twice the room again and again finds some of it each time.
    #[test]
    fn a_guest_that_writes_more_than_there_is_room_for_still_finds_some_of_it() {
        let mut sent = SentPages::new(256 * PAGE_SIZE as u64);
        let mut found = 0;
        for _ in 0..8 {
            for page in (0..512).map(PageIndex) {
                found += u32::from(sent.place(page).is_some());
                sent.keep(page, &filled(1), None);
            }
        }
        assert!(found > 400, "{found} of 3584");
    }

    #[test]
    fn fingerprints_tell_pages_apart_that_differ_anywhere() {
        let mut seen: Vec<u64> = (0..PAGE_SIZE)
            .map(|at| {
                let mut page = filled(7);
                page[at] ^= 1;
                fingerprint(&page)
            })
            .chain([fingerprint(&filled(7)), fingerprint(&filled(0))])
            .collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), PAGE_SIZE + 2);
    }
}
