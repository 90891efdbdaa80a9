//! Pages that refer to others, across a real link and sessions that end.

use super::*;
use crate::reduction::{ReductionFigures, Way, WayFigures};

/// A session that may keep so many pages to refer to.
fn bench(pages: u64, ways: &[Way], cache_pages: u64) -> Bench {
    let cache = Some(cache_pages * PAGE_SIZE as u64);
    let reduction = Reduction { ways: ways.to_vec(), cache, adaptive: false };
    Bench::with_reduction(pages, false, CHUNKS, reduction)
}

impl Memory {
    fn page(&self, page: u64) -> Vec<u8> {
        let from = usize::try_from(page).expect("small") * PAGE_SIZE;
        self.bytes.lock().unwrap()[from..from + PAGE_SIZE].to_vec()
    }

    /// Writes to a page, be it the bytes that it has.
    fn edit(&self, page: u64, edit: impl FnOnce(&mut [u8])) {
        let from = usize::try_from(page).expect("small") * PAGE_SIZE;
        edit(&mut self.bytes.lock().unwrap()[from..from + PAGE_SIZE]);
        self.tracked.lock().unwrap().insert(PageIndex(page));
    }

    /// Fills pages with noise, each with other noise; nobody is told.
    fn fill_with_noise(&self, pages: std::ops::Range<u64>) {
        let [from, to] =
            [pages.start, pages.end].map(|page| usize::try_from(page).expect("small") * PAGE_SIZE);
        blake3::Hasher::new().finalize_xof().fill(&mut self.bytes.lock().unwrap()[from..to]);
    }
}

impl Bench {
    fn figures(&self) -> ReductionFigures {
        self.told.stats.lock().unwrap().shown().reduction
    }
}

fn ways_of(figures: &ReductionFigures) -> [WayFigures; 6] {
    [figures.unchanged, figures.zero, figures.equal, figures.delta, figures.compress, figures.whole]
}

/// Numbers without a pattern, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// What guests do to their pages, so many times.
    fn scribble(&mut self, memory: &Memory, times: u64) {
        for _ in 0..times {
            let (page, other) = (self.below(PAGES), self.below(PAGES));
            let seed = self.below(1 << 20);
            let noise = |page: &mut [u8]| {
                blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(page);
            };
            match self.below(7) {
                0 => memory.edit(page, noise),
                1 | 2 => {
                    let copied = memory.page(other);
                    memory.edit(page, |page| page.copy_from_slice(&copied));
                }
                3 => memory.edit(page, |page| page[seed as usize % PAGE_SIZE] ^= 0x5a),
                4 => memory.edit(page, |page| page.fill(0)),
                5 => memory.edit(page, |page| page.fill(seed as u8)),
                _ => memory.edit(page, |_| {}),
            }
        }
    }
}

/// CK-1, CK-2: after each commit the image is the memory of the seal, whatever the guest wrote, copied and zeroed, and
/// whatever was given up before: pages amid their epoch, or a whole epoch in flight with its session.
#[test]
fn the_image_is_the_memory_whatever_pages_refer_to() {
    for (seed, cache_pages) in [(1, 150), (2, PAGES), (3, 0)] {
        let mut bench = bench(PAGES, &Way::ALL, cache_pages);
        let mut random = Random(seed);
        bench.memory.fill_with_noise(0..PAGES / 2);
        bench.synchronise();
        let mut next = 2;
        for _ in 0..60 {
            random.scribble(&bench.memory, 40);
            match random.below(4) {
                0 => {
                    let ahead_of = Some(EpochId::new(next));
                    let round = bench.capture.round(Round { whole: false, ahead_of });
                    assert!(round.recv_timeout(SOON).expect("an answer").outcome.is_ok());
                    bench.capture.give_up();
                }
                1 => {
                    bench.seal(|_| {});
                    // The backup has some of it, and forgets it with the session.
                    assert_eq!(bench.backup.take().0, "Pages");
                    bench.backup.link.close();
                    let Report::Ended(ending) = bench.report() else { panic!("the session ends") };
                    bench.capture.give_up();
                    ending.into_sets().for_each(|set| bench.capture.take_back(set));
                    next += 1;
                    bench.go_on(next, WINDOW);
                }
                _ => {}
            }
            random.scribble(&bench.memory, 10);
            let sealed = bench.seal(|memory| random.scribble(memory, 10));
            bench.backup.gather(1);
            assert_eq!(bench.committed(), next);
            assert_eq!(bench.backup.image.digest(), sealed, "seed {seed}, after epoch {next}");
            next += 1;
        }
        let figures = bench.figures();
        let pages = ways_of(&figures).map(|way| way.pages);
        let refers = [true, false, true, true, false, false].map(|refers| refers && cache_pages > 0);
        assert!(pages.iter().zip(refers).all(|(pages, refers)| *pages > 0 || !refers), "{pages:?}");
        assert!(figures.kept_bytes <= cache_pages * PAGE_SIZE as u64);
    }
}

/// A tracker that sees huge pages names all 512 pages of one: what was written of it travels, and nothing else.
#[test]
fn of_a_huge_page_only_what_was_written_travels() {
    for ways in [&Way::ALL[..], &[Way::Unchanged]] {
        let mut bench = bench(1024, ways, 1024);
        bench.memory.fill_with_noise(0..1024);
        bench.synchronise();
        let before = bench.figures();
        bench.memory.edit(700, |page| page[100] ^= 1);
        bench.memory.tracked.lock().unwrap().insert_range(512..1024);
        let sealed = bench.seal(|_| {});
        bench.backup.gather(1);
        assert_eq!(bench.committed(), 2);
        assert_eq!(bench.backup.image.digest(), sealed);
        let after = bench.figures();
        assert_eq!(bench.captured[0], 512, "the epoch has them all");
        assert_eq!(after.unchanged.pages - before.unchanged.pages, 511);
        let bytes = after.wire_bytes() - before.wire_bytes();
        assert!(bytes < PAGE_SIZE as u64 + 100, "{bytes}");
    }
}

/// What is kept to refer to goes with its session, and is not shown beyond it.
#[test]
fn a_session_that_ended_keeps_no_copies() {
    let mut bench = bench(PAGES, &Way::ALL, PAGES);
    bench.memory.fill_with_noise(0..PAGES);
    bench.synchronise();
    let whole = bench.figures();
    assert_eq!(whole.kept_bytes, PAGES * PAGE_SIZE as u64);
    bench.backup.link.close();
    let Report::Ended(_) = bench.report() else { panic!("the session ends") };
    assert_eq!(bench.figures(), ReductionFigures { kept_bytes: 0, ..whole });
    bench.go_on(2, WINDOW);
    bench.memory.edit(1, |page| page[0] ^= 1);
    bench.seal(|_| {});
    bench.backup.gather(1);
    assert_eq!(bench.committed(), 2);
    assert_eq!(bench.figures().kept_bytes, PAGE_SIZE as u64);
}

/// Copies of what the guest has, as of files in its page cache, take less than a fifth of their bytes.
#[test]
fn copies_of_pages_take_less_than_a_fifth_of_their_bytes() {
    let mut bench = bench(2 * PAGES, &Way::ALL, PAGES);
    bench.memory.fill_with_noise(0..PAGES);
    bench.synchronise();
    let before = bench.figures();
    for page in 0..PAGES {
        let copied = bench.memory.page(page);
        bench.memory.edit(PAGES + page, |page| page.copy_from_slice(&copied));
    }
    let sealed = bench.seal(|_| {});
    bench.backup.gather(1);
    assert_eq!(bench.committed(), 2);
    assert_eq!(bench.backup.image.digest(), sealed);
    let bytes = bench.figures().wire_bytes() - before.wire_bytes();
    println!("{:.2} % of the bytes", bytes as f64 * 100.0 / (PAGES * PAGE_SIZE as u64) as f64);
    assert!(bytes * 5 < PAGES * PAGE_SIZE as u64, "{bytes}");
}

/// Each way can be switched off, and no page takes it then.
#[test]
fn a_way_that_is_off_is_not_taken() {
    for (off, way) in Way::ALL.into_iter().enumerate() {
        let ways: Vec<_> = Way::ALL.into_iter().filter(|on| *on != way).collect();
        let mut bench = bench(PAGES, &ways, PAGES);
        bench.memory.fill_with_noise(0..PAGES / 2);
        bench.synchronise();
        let mut random = Random(7);
        for epoch in 2..6 {
            random.scribble(&bench.memory, 100);
            let sealed = bench.seal(|_| {});
            bench.backup.gather(1);
            assert_eq!(bench.committed(), epoch);
            assert_eq!(bench.backup.image.digest(), sealed, "without {way:?}");
        }
        let pages = ways_of(&bench.figures()).map(|way| way.pages);
        assert!(
            pages.iter().enumerate().all(|(place, pages)| (*pages == 0) == (place == off)),
            "{way:?}: {pages:?}"
        );
    }
}
