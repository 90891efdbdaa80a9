use super::*;
use std::collections::HashMap;

type Page = [u8; PAGE_SIZE];

const ROOM: u64 = 64 * PAGE_SIZE as u64;

fn reduction(ways: &[Way]) -> Reduction {
    Reduction { ways: ways.to_vec(), adaptive: false, ..Reduction::default() }
}

fn reducer(ways: &[Way]) -> Reducer {
    Reducer::new(&reduction(ways), ROOM)
}

fn noise(seed: u64) -> Page {
    let mut state = seed;
    std::array::from_fn(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}

fn text() -> Page {
    let mut letters = b"all work and no play ".iter().copied().cycle();
    std::array::from_fn(|_| letters.next().expect("without end"))
}

/// Both ends of a session.
struct Ends {
    reducer: Reducer,
    held: HashMap<PageIndex, Page>,
}

impl Ends {
    fn new(ways: &[Way]) -> Self {
        Self { reducer: reducer(ways), held: HashMap::new() }
    }

    /// Sends a page, and says which way it went; it is the same at the other end.
    fn send(&mut self, page: u64, bytes: &Page) -> Option<Way> {
        let page = PageIndex(page);
        let reduced = self.reducer.reduce(page, bytes);
        let mut out = noise(99);
        let held = |page: PageIndex, into: &mut Page| {
            self.held.get(&page).map(|bytes| into.copy_from_slice(bytes)).is_some()
        };
        restore(page, reduced, held, &mut out).expect("our own pages restore");
        assert!(out == *bytes, "page {page} by {reduced:?}");
        self.held.insert(page, out);
        reduced.way()
    }
}

fn changed(page: &Page, places: &[usize]) -> Page {
    let mut page = *page;
    places.iter().for_each(|place| page[*place] ^= 0x5a);
    page
}

#[test]
fn each_page_takes_the_cheapest_way_that_serves_it() {
    let mut ends = Ends::new(&Way::ALL);
    let steps: [(u64, Page, Option<Way>); 13] = [
        (0, [0; PAGE_SIZE], Some(Way::Zero)),
        (1, noise(1), None),
        (1, noise(1), Some(Way::Unchanged)),
        (2, noise(1), Some(Way::Equal)),
        (2, noise(1), Some(Way::Equal)),
        (1, changed(&noise(1), &[7, 4000]), Some(Way::Delta)),
        // Page 1 is it no more, and of page 2 there is no copy.
        (3, noise(1), None),
        (3, text(), Some(Way::Compress)),
        (3, noise(4), None),
        (3, [0; PAGE_SIZE], Some(Way::Zero)),
        (3, noise(4), None),
        (4, noise(4), Some(Way::Equal)),
        (4, changed(&noise(4), &[9]), None),
    ];
    for (number, (page, bytes, way)) in steps.into_iter().enumerate() {
        assert_eq!(ends.send(page, &bytes), way, "step {number}");
    }
}

/// CK-1: whatever ways are off, and whatever is written in whatever order, pages come out as they went in.
#[test]
fn pages_come_out_as_they_went_in_whatever_ways_are_off() {
    for mask in 0..1u32 << Way::ALL.len() {
        let ways: Vec<_> =
            (0..).zip(Way::ALL).filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, way)| way).collect();
        let mut ends = Ends::new(&ways);
        let mut memory = vec![[0; PAGE_SIZE]; 100];
        let mut random = u64::from(mask) + 1;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((random >> 33) % below as u64) as usize
        };
        for _ in 0..600 {
            let page = next(100);
            memory[page] = match next(6) {
                0 => noise(next(1000) as u64),
                1 => memory[next(100)],
                2 => [0; PAGE_SIZE],
                3 => text(),
                4 => changed(&memory[page], &[next(PAGE_SIZE), next(PAGE_SIZE)]),
                _ => memory[page],
            };
            let way = ends.send(page as u64, &memory[page]);
            assert!(way.is_none_or(|way| ways.contains(&way)), "{way:?} of {ways:?}");
        }
    }
}

#[test]
fn a_change_of_a_few_bytes_travels_as_a_few_bytes() {
    let mut reducer = reducer(&Way::ALL);
    let page = noise(1);
    reducer.reduce(PageIndex(1), &page);
    let few = changed(&page, &[0, 1, 2000, 4095]);
    assert!(matches!(reducer.reduce(PageIndex(1), &few), Reduced::Delta(block) if block.len() < 64));
    // More than half of it is new.
    let most = [&noise(2)[..2560], &few[2560..]].concat();
    assert!(matches!(reducer.reduce(PageIndex(1), &most), Reduced::Raw(_)));
}

/// A new session refers to nothing that another one sent.
#[test]
fn a_new_reducer_refers_to_nothing() {
    let page = noise(1);
    for _ in 0..2 {
        let mut reducer = reducer(&Way::ALL);
        assert_eq!(reducer.reduce(PageIndex(1), &page), Reduced::Raw(&page));
        assert_eq!(reducer.kept_bytes(), PAGE_SIZE as u64);
    }
}

#[test]
fn a_guest_of_any_size_gets_copies_within_bounds() {
    let usual = Reduction::default();
    let (mib, page, huge) = (1u64 << 20, PAGE_SIZE as u64, 2 << 20);
    for (memory, page_size, bytes) in [
        (16 * mib, page, 16 * mib),
        (256 * mib, page, 64 * mib),
        (1024 * mib, page, 128 * mib),
        (1 << 40, page, 512 * mib),
        (1024 * mib, huge, 1024 * mib),
        (1 << 40, huge, 2048 * mib),
    ] {
        assert_eq!(usual.cache_bytes(memory, page_size), bytes, "{memory} in pages of {page_size}");
    }
    let said = Reduction { cache: Some(mib), ..Reduction::default() };
    assert_eq!(said.cache_bytes(256 * mib, page), mib);
    assert_eq!(reduction(&[Way::Zero, Way::Compress]).cache_bytes(256 * mib, page), 0);
}

/// Incompressible runs are not compressed page after page, and compressible ones are found again.
#[test]
fn compression_is_given_up_for_a_while_only() {
    let mut reducer = reducer(&[Way::Zero, Way::Compress]);
    let noise = noise(3);
    let page = PageIndex(1);
    (0..100).for_each(|_| assert!(matches!(reducer.reduce(page, &noise), Reduced::Raw(_))));
    let tried = (0..=SKIP_LIMIT).find(|_| matches!(reducer.reduce(page, &[5; PAGE_SIZE]), Reduced::Lz4(_)));
    assert!(tried.is_some());
}

fn nothing_held(_: PageIndex, _: &mut Page) -> bool {
    false
}

/// RB-1: a block that decodes to less or more than a page, or to nothing, is refused, be it a page or a difference.
#[test]
fn blocks_that_are_not_one_page_are_refused() {
    let long = block::compress(&[7; 2 * PAGE_SIZE]);
    let short = block::compress(&[7; PAGE_SIZE - 1]);
    let mut out = [0; PAGE_SIZE];
    let page = PageIndex(1);
    for bytes in [&long[..], &short, &[], &[0xff; 40], &noise(4)] {
        assert_eq!(restore(page, Reduced::Lz4(bytes), nothing_held, &mut out), Err(RestoreError::Block));
        assert_eq!(restore(page, Reduced::Delta(bytes), |_, _| true, &mut out), Err(RestoreError::Block));
    }
    assert_eq!(restore(page, Reduced::Raw(&[1; 9]), nothing_held, &mut out), Err(RestoreError::Length));
}

/// RB-1: what refers to a page of which nothing was sent is refused.
#[test]
fn references_to_nothing_are_refused() {
    let block = block::compress(&[7; PAGE_SIZE]);
    for (reduced, page) in
        [(Reduced::Unchanged, 1), (Reduced::Same(PageIndex(2)), 2), (Reduced::Delta(&block), 1)]
    {
        let restored = restore(PageIndex(1), reduced, nothing_held, &mut [0; PAGE_SIZE]);
        assert_eq!(restored, Err(RestoreError::NotHeld { page: PageIndex(page) }));
    }
}

/// CK-1: a page that is sent anew in a synchronisation leaves no copy of what it was.
#[test]
fn a_synchronisation_keeps_no_copies_and_leaves_none_that_are_old() {
    let mut ends = Ends::new(&[Way::Unchanged, Way::Delta]);
    assert_eq!(ends.send(1, &noise(1)), None);
    ends.reducer.set_sparing(true);
    assert_eq!((ends.send(1, &noise(2)), ends.send(2, &noise(3))), (None, None));
    assert_eq!(ends.reducer.kept_bytes(), 0);
    ends.reducer.set_sparing(false);
    assert_eq!(ends.send(1, &changed(&noise(1), &[7])), None, "what it was before is no page to differ from");
    assert_eq!(ends.send(1, &changed(&noise(1), &[7])), Some(Way::Unchanged));
}

#[test]
fn pages_that_equal_others_are_found_in_a_synchronisation_too() {
    let mut ends = Ends::new(&[Way::Equal]);
    ends.reducer.set_sparing(true);
    let ways = [1, 2, 3].map(|page| ends.send(page, &noise(5)));
    assert_eq!(ways, [None, Some(Way::Equal), Some(Way::Equal)]);
}
