//! Where captured pages wait to be sent: one mapping of a virtual machine, in chunks that are used again and again.
//!
//! It is mapped when protection begins, so that a pause asks for no memory: on huge pages that the host has set aside, if
//! it has them to spare; else on those that the kernel makes as it goes, or on ordinary ones. Ordinary memory, and what
//! the kernel makes huge, is taken when a chunk is first written, and chunks that were used go first: a machine with
//! small epochs uses little.
//!
//! A chunk goes back when it is dropped, by whichever thread, and whatever became of its session.
#![expect(unsafe_code, reason = "chunks are exclusive pieces of one mapping")]

use crate::pages::{PAGE_SIZE, PageIndex};
use crate::primary::CHUNK_PAGES;
use crossbeam_channel::{Receiver, Sender, bounded};
use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};
use serde::Serialize;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::{fs, io};

/// Bytes of a chunk.
pub(crate) const CHUNK_BYTES: usize = CHUNK_PAGES * PAGE_SIZE;

const HUGE_PAGE_BITS: u8 = 21;
const HUGE_PAGE_BYTES: usize = 1 << HUGE_PAGE_BITS;

/// What captured pages are staged on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StagingPages {
    /// Huge pages of 2 MiB that the host had set aside.
    Huge,
    /// Huge pages that the kernel makes when it can.
    Transparent,
    /// Pages of 4 KiB.
    Ordinary,
}

/// The staging memory of one virtual machine. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Staging {
    chunks: usize,
    pages: StagingPages,
    home: Sender<Empty>,
    waiting: Receiver<Empty>,
}

impl Staging {
    /// Maps so many chunks.
    pub(crate) fn map(chunks: usize) -> io::Result<Self> {
        Self::beside(chunks, spare_huge_pages())
    }

    /// The same, where `spare` huge pages are believed to be had.
    fn beside(chunks: usize, spare: usize) -> io::Result<Self> {
        let bytes = chunks * CHUNK_BYTES;
        let (map, pages) = match on_huge_pages(bytes, spare) {
            Some(map) => (map, StagingPages::Huge),
            None => on_other_pages(bytes)?,
        };
        let map = Arc::new(MmapRaw::from(map));
        let (home, waiting) = bounded(chunks);
        for from in (0..bytes).step_by(CHUNK_BYTES) {
            let piece = Piece { map: Some(Arc::clone(&map)), from };
            home.try_send(Empty { pages: Vec::with_capacity(CHUNK_PAGES), bytes: piece })
                .expect("room for all of them");
        }
        Ok(Self { chunks, pages, home, waiting })
    }

    /// How many chunks there are.
    pub(crate) const fn chunks(&self) -> usize {
        self.chunks
    }

    /// How many of them are nobody's.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What they are on.
    pub(crate) const fn pages(&self) -> StagingPages {
        self.pages
    }

    /// A chunk that is nobody's.
    ///
    /// Costs 35 ns with its way back (`cargo bench -p holdfast-checkpoint -- capture`).
    pub(crate) fn take(&self) -> Option<Chunk> {
        self.waiting.try_recv().ok().map(|empty| self.chunk(empty))
    }

    /// A chunk that `used` has, or one that is nobody's; waits until there is one, or nobody can put one into `used`
    /// any more.
    pub(crate) fn wait(&self, used: &Receiver<Chunk>) -> Option<Chunk> {
        crossbeam_channel::select! {
            recv(used) -> chunk => chunk.ok(),
            recv(self.waiting) -> empty => empty.ok().map(|empty| self.chunk(empty)),
        }
    }

    fn chunk(&self, Empty { pages, bytes }: Empty) -> Chunk {
        Chunk { pages, bytes, home: self.home.clone() }
    }
}

/// Huge pages that are taken are missed by the next guest that is to be on some: no more than half of what is free.
fn on_huge_pages(bytes: usize, spare: usize) -> Option<MmapMut> {
    if bytes.div_ceil(HUGE_PAGE_BYTES) > spare / 2 {
        return None;
    }
    let whole = bytes.next_multiple_of(HUGE_PAGE_BYTES);
    // With a reservation, which the mapping makes: a page that is missing later would end the process.
    MmapOptions::new().len(whole).huge(Some(HUGE_PAGE_BITS)).map_anon().ok()
}

fn on_other_pages(bytes: usize) -> io::Result<(MmapMut, StagingPages)> {
    let map = MmapOptions::new().len(bytes).no_reserve_swap().map_anon()?;
    let advised = map.advise(Advice::HugePage).is_ok();
    let pages =
        if advised && makes_huge_pages() { StagingPages::Transparent } else { StagingPages::Ordinary };
    Ok((map, pages))
}

/// Whether the kernel makes huge pages where it is asked to.
fn makes_huge_pages() -> bool {
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    enabled.is_ok_and(|choice| !choice.contains("[never]"))
}

/// Huge pages of 2 MiB that are free and promised to nobody.
fn spare_huge_pages() -> usize {
    let number = |name: &str| -> Option<usize> {
        fs::read_to_string(format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let free = number("free_hugepages").unwrap_or(0);
    free.saturating_sub(number("resv_hugepages").unwrap_or(0))
}

/// A chunk that is nobody's.
#[derive(Debug)]
struct Empty {
    pages: Vec<PageIndex>,
    bytes: Piece,
}

/// Some captured pages.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(super) pages: Vec<PageIndex>,
    pub(super) bytes: Piece,
    home: Sender<Empty>,
}

impl Chunk {
    pub(super) fn room(&self) -> usize {
        CHUNK_PAGES - self.pages.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PageIndex, &[u8])> {
        self.pages.iter().copied().zip(self.bytes.chunks_exact(PAGE_SIZE))
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let (mut pages, bytes) = (std::mem::take(&mut self.pages), std::mem::take(&mut self.bytes));
        pages.clear();
        // Nobody waits for it where the staging memory itself is given up.
        drop(self.home.try_send(Empty { pages, bytes }));
    }
}

/// A piece of the mapping that is one owner's alone. Empty without a mapping.
#[derive(Debug, Default)]
pub(super) struct Piece {
    map: Option<Arc<MmapRaw>>,
    from: usize,
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_ref().map_or(&[], |map| {
            // SAFETY: `from` starts one of the chunks that the mapping is long enough for, which lives as long as `map`,
            // is memory of this process alone and full of initialized bytes. `Staging::beside` makes one piece of each,
            // and a piece cannot be copied: who holds this one by reference holds these bytes.
            unsafe { std::slice::from_raw_parts(map.as_ptr().add(self.from), CHUNK_BYTES) }
        })
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.map.as_ref().map_or(&mut [], |map| {
            // SAFETY: as above, and the piece is borrowed exclusively.
            unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().add(self.from), CHUNK_BYTES) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_needs::HugePages;

    /// Takes all chunks and writes to them; there is no byte that two of them have.
    fn fill(staging: &Staging) -> Vec<Chunk> {
        let mut chunks: Vec<_> = std::iter::from_fn(|| staging.take()).collect();
        for (number, chunk) in chunks.iter_mut().enumerate() {
            chunk.bytes.fill(number as u8 + 1);
        }
        for (number, chunk) in chunks.iter().enumerate() {
            assert_eq!(chunk.bytes.len(), CHUNK_BYTES);
            assert!(chunk.bytes.iter().all(|byte| *byte == number as u8 + 1), "chunk {number}");
        }
        chunks
    }

    #[test]
    fn there_are_so_many_chunks_and_no_more_until_they_come_back() {
        let staging = Staging::map(5).expect("memory");
        let mut chunks = fill(&staging);
        assert_eq!((chunks.len(), staging.waiting()), (5, 0));
        chunks[0].pages.push(PageIndex(7));
        drop(chunks);
        assert_eq!(staging.waiting(), 5);
        let again = fill(&staging);
        assert!(again.iter().all(|chunk| chunk.room() == CHUNK_PAGES), "nothing is left in them");
    }

    #[test]
    fn a_chunk_is_waited_for_wherever_it_comes_back() {
        let staging = Staging::map(1).expect("memory");
        let (give_back, used) = bounded(1);
        let chunk = staging.take().expect("there is one");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| staging.wait(&used));
            drop(chunk);
            let chunk = waiting.join().unwrap().expect("it came home");
            let waiting = scope.spawn(|| staging.wait(&used));
            give_back.send(chunk).unwrap();
            assert!(waiting.join().unwrap().is_some());
            // The one that came is home again.
            let chunk = staging.take().expect("there is one");
            drop(give_back);
            assert!(staging.wait(&used).is_none(), "the session has ended");
            drop(chunk);
        });
    }

    #[test]
    fn chunks_outlive_the_staging_memory() {
        let staging = Staging::map(2).expect("memory");
        let mut chunk = staging.take().expect("there is one");
        drop(staging);
        chunk.bytes.fill(3);
        assert_eq!(chunk.bytes[CHUNK_BYTES - 1], 3);
    }

    /// Memory is taken when it is used: more than the host has can be mapped.
    #[test]
    fn memory_is_not_taken_before_it_is_used() {
        let before = resident_bytes();
        let staging = Staging::beside(4096, 0).expect("addresses");
        assert_eq!(staging.waiting(), 4096);
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 1 << 30, "{grown} bytes of 4 GiB are taken");
    }

    fn resident_bytes() -> usize {
        let statm = fs::read_to_string("/proc/self/statm").expect("there is a /proc");
        let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
        pages * PAGE_SIZE
    }

    #[test]
    fn without_huge_pages_of_the_host_others_do() {
        // It has none to spare, or fewer than it seemed to.
        for (chunks, spare) in [(2, 1), (2 * spare_huge_pages() + 4, usize::MAX)] {
            let staging = Staging::beside(chunks, spare).expect("memory");
            assert_ne!(staging.pages(), StagingPages::Huge, "{chunks} chunks");
            staging.take().expect("there is one").bytes.fill(1);
        }
    }

    /// Half of the free ones are left to guests.
    #[test]
    fn huge_pages_of_the_host_are_used_while_as_many_are_left() {
        let Some(_room) = HugePages::with_room(8 << 20) else { return };
        let spare = spare_huge_pages();
        assert_ne!(Staging::beside(4, 3).expect("memory").pages(), StagingPages::Huge);
        let staging = Staging::map(4).expect("memory");
        assert_eq!(staging.pages(), StagingPages::Huge);
        assert_eq!(spare_huge_pages(), spare - 2, "what may be written is reserved");
        assert_eq!(fill(&staging).len(), 4);
        drop(staging);
        assert_eq!(spare_huge_pages(), spare, "they come back");
    }
}
