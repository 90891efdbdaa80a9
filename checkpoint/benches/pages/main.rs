//! What a page costs on its way from memory to memory, stage by stage: `cargo bench -p holdfast-checkpoint`.
//!
//! Each line is the median of several rounds over the same pages, made from a seed. One thread, no link and no guest;
//! the memory of 64 MiB is larger than a core's own caches.

use holdfast_checkpoint::image::{Image, ImageConfig};
use holdfast_checkpoint::pages::{PAGE_SIZE, PageIndex};
use holdfast_checkpoint::protocol::{BATCH_PAGES, PageBatch, PageBatchWriter};
use holdfast_checkpoint::reduction::{Reduced, Reducer, Reduction, Way, is_zero, restore};
use holdfast_epoch::{EpochId, Term};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 9;
/// Pages of a round.
const PAGES: usize = 16_384;
/// Pages that are hashed together.
const GROUP: usize = 16;

type Page = [u8; PAGE_SIZE];

/// Prints the median time of a page; `prepare` makes what a round works on, and its time does not count.
fn line<T>(stage: &str, what: &str, mut prepare: impl FnMut() -> T, mut work: impl FnMut(T)) {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let input = prepare();
            let started = Instant::now();
            work(input);
            started.elapsed().as_secs_f64() * 1e9 / PAGES as f64
        })
        .collect();
    // The first was for the caches.
    times.remove(0);
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "{stage:<8} {median:>7.0} ns a page, {:>6.0} MiB/s: {what}",
        PAGE_SIZE as f64 / median * 1e9 / 1048576.0
    );
}

fn noise() -> Vec<u8> {
    let mut bytes = vec![0; PAGES * PAGE_SIZE];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// Pages of words: about as dense as a guest's own.
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

fn numbered(bytes: &[u8]) -> impl Iterator<Item = (PageIndex, &[u8])> {
    (0..).map(PageIndex).zip(bytes.chunks_exact(PAGE_SIZE))
}

fn reducer(ways: &[Way]) -> Reducer {
    let reduction = Reduction { ways: ways.to_vec(), adaptive: false, ..Reduction::default() };
    Reducer::new(&reduction, (PAGES * PAGE_SIZE) as u64)
}

/// A reducer that has sent these pages.
fn after(ways: &[Way], sent: &[u8]) -> Reducer {
    let mut reducer = reducer(ways);
    for (page, bytes) in numbered(sent) {
        black_box(reducer.reduce(page, bytes));
    }
    reducer
}

fn reduce(mut reducer: Reducer, first: u64, bytes: &[u8]) {
    for (page, bytes) in numbered(bytes) {
        black_box(reducer.reduce(PageIndex(first + page.0), bytes));
    }
}

/// Batches as they travel.
fn batches(reducer: &mut Reducer, bytes: &[u8]) -> Vec<PageBatch> {
    let pages: Vec<_> = numbered(bytes).collect();
    let batch = |pages: &[(PageIndex, &[u8])]| {
        let mut body = Vec::new();
        let mut writer = PageBatchWriter::new(&mut body);
        for (page, bytes) in pages {
            writer.add(*page, reducer.reduce(*page, bytes));
        }
        PageBatch::from_bytes(body)
    };
    pages.chunks(BATCH_PAGES as usize).map(batch).collect()
}

/// Reads records and restores their pages; what they refer to is in `held`.
fn decode(batches: &[PageBatch], held: &[u8]) {
    let mut out: Page = [0; PAGE_SIZE];
    for record in batches.iter().flat_map(|batch| batch.records(PAGES as u64)) {
        let (page, reduced) = record.expect("our own");
        let recall = |page: PageIndex, into: &mut Page| {
            into.copy_from_slice(&held[page.0 as usize * PAGE_SIZE..][..PAGE_SIZE]);
            true
        };
        restore(page, reduced, recall, &mut out).expect("our own");
        black_box(&out);
    }
}

fn image(dir: &tempfile::TempDir) -> Image {
    let file = |name: &str| dir.path().join(name);
    let len = (PAGES * PAGE_SIZE) as u64;
    let config = ImageConfig { vm: "bench".into(), memory: file("memory"), record: file("record"), len };
    let mut image = Image::create(config).expect("room in /dev/shm");
    image.begin_sync(Term::new(1), EpochId::FIRST).expect("a fresh image");
    image
}

fn main() {
    let (noise, text) = (noise(), text());
    let zeros = vec![0; PAGES * PAGE_SIZE];
    let mut near = noise.clone();
    near.chunks_exact_mut(PAGE_SIZE).for_each(|page| page[1000] ^= 1);

    let mut chunk = vec![0; BATCH_PAGES as usize * PAGE_SIZE];
    line(
        "capture",
        "copied into a chunk",
        || (),
        |()| {
            for bytes in noise.chunks_exact(chunk.len()) {
                chunk.copy_from_slice(black_box(bytes));
            }
        },
    );
    for (what, bytes, is_blank) in
        [("all zeros is seen", &zeros, true), ("not all zeros is seen", &noise, false)]
    {
        let look =
            |()| assert!(black_box(bytes).chunks_exact(PAGE_SIZE).all(|page| is_zero(page) == is_blank));
        line("reduce", what, || (), look);
    }
    line("reduce", "unchanged", || after(&[Way::Unchanged], &noise), |from| reduce(from, 0, &noise));
    line(
        "reduce",
        "equal to another",
        || after(&[Way::Equal], &noise),
        |from| reduce(from, PAGES as u64, &noise),
    );
    line("reduce", "equal to none, and kept", || reducer(&[Way::Equal]), |from| reduce(from, 0, &noise));
    line("reduce", "delta", || after(&[Way::Delta], &noise), |from| reduce(from, 0, &near));
    line("reduce", "compressed", || reducer(&[Way::Compress]), |from| reduce(from, 0, &text));
    line(
        "reduce",
        "not compressed for all that",
        || reducer(&[Way::Compress]),
        |from| reduce(from, 0, &noise),
    );

    let mut body = Vec::with_capacity(2 << 20);
    line(
        "encode",
        "as it is",
        || (),
        |()| {
            for pages in noise.chunks_exact(BATCH_PAGES as usize * PAGE_SIZE) {
                body.clear();
                let mut writer = PageBatchWriter::new(&mut body);
                for (page, bytes) in numbered(pages) {
                    writer.add(page, Reduced::Raw(bytes));
                }
                black_box(&body);
            }
        },
    );
    for (what, way, sent, held) in [
        ("as it is", Way::Zero, &noise, &noise),
        ("of a delta", Way::Delta, &near, &noise),
        ("of a compressed page", Way::Compress, &text, &noise),
    ] {
        let batches = batches(&mut after(&[way], held), sent);
        line("decode", what, || (), |()| decode(&batches, held));
    }
    for (what, pages) in [("one page at a time", 1), ("sixteen at a time", GROUP)] {
        line(
            "digest",
            what,
            || (),
            |()| {
                let mut hasher = blake3::Hasher::new();
                noise.chunks(pages * PAGE_SIZE).for_each(|bytes| {
                    hasher.update(bytes);
                });
                black_box(hasher.finalize());
            },
        );
    }
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let mut image = image(&dir);
    let write = |image: &mut Image, bytes: &[u8]| {
        for (page, bytes) in numbered(bytes) {
            let bytes: &Page = bytes.try_into().expect("a page");
            image.write_base(page, (!is_zero(bytes)).then_some(bytes)).expect("within the image");
        }
    };
    line("apply", "written to the image", || (), |()| write(&mut image, &noise));
    write(&mut image, &zeros);
    line("apply", "of zeros, over zeros", || (), |()| write(&mut image, &zeros));
}
