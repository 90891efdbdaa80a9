//! What the primary does with pages before and after it makes them smaller: sets, copies, digest, framing.

#[expect(dead_code, unreachable_pub, unused_imports, reason = "the bench needs no more of it than this")]
#[path = "../../src/primary/staging.rs"]
mod staging;

use crate::delta;
use crate::digest::{EpochHasher, PageHasher};
use crate::measure::{Bench, PAGES};
use crate::memory::{Pages, numbered};
use holdfast_checkpoint::pages::{PAGE_SIZE, PageIndex, PageSet};
use holdfast_checkpoint::protocol::{BATCH_PAGES, PageBatchWriter};
use holdfast_checkpoint::reduction::{Reduced, is_zero};
use holdfast_epoch::{EpochId, Term};
use staging::Staging;
use std::hint::black_box;

/// Pages of a chunk.
const CHUNK_PAGES: usize = BATCH_PAGES as usize;
const CHUNKS: usize = PAGES / CHUNK_PAGES;
/// Chunks that a round of the running guest makes do with.
const ROUND_CHUNKS: usize = 8;
/// Pages of a GiB.
const GIB_PAGES: u64 = 1 << 18;
/// Pages that are hashed together.
const GROUP: usize = 16;
/// Bytes of the devices' state, and places where two of them differ.
const STATE: usize = 366 << 10;
const CHANGES: usize = 20;
const EPOCHS: u64 = 1000;

pub(crate) fn measure(bench: &Bench, pages: &Pages) {
    sets(bench);
    capture(bench, pages);
    digest(bench, pages);
    encode(bench, pages);
    devices(bench);
}

fn sets(bench: &Bench) {
    let step = GIB_PAGES / PAGES as u64;
    let mut set = PageSet::with_capacity(GIB_PAGES);
    let note = |set: &mut PageSet| {
        set.clear();
        (0..PAGES as u64).map(|nth| nth * step).for_each(|page| set.insert_range(page..page + 1));
    };
    bench.line("set", "noted, each by itself", || (), |()| note(&mut set));
    note(&mut set);
    bench.line(
        "set",
        "walked, each by itself",
        || (),
        |()| {
            assert_eq!(black_box(set.runs().count()), PAGES);
        },
    );
    let mut other = PageSet::with_capacity(GIB_PAGES);
    let gib = (1, "GiB of the guest", "joined with another");
    bench.line_of("set", gib, || (), |()| black_box(&mut other).union_with(&set));
}

fn capture(bench: &Bench, pages: &Pages) {
    // The kernel's huge pages would not be what a host has that has none to spare.
    let staging = Staging::map(ROUND_CHUNKS).expect("memory");
    let fill = |with: &dyn Fn(&mut [u8], &[u8])| {
        for (nth, bytes) in pages.noise.chunks_exact(CHUNK_PAGES * PAGE_SIZE).enumerate() {
            let mut chunk = staging.take().expect("all are back");
            with(&mut chunk.bytes, bytes);
            let first = (nth * CHUNK_PAGES) as u64;
            chunk.pages.extend((first..first + CHUNK_PAGES as u64).map(PageIndex));
            black_box(&chunk);
        }
    };
    bench.line("capture", "copied into chunks", || (), |()| fill(&|to, from| to.copy_from_slice(from)));
    bench.line("capture", "zeros for chunks", || (), |()| fill(&|to, _| to.fill(0)));
    bench.line_of(
        "capture",
        (CHUNKS, "chunk", "taken and given back"),
        || (),
        |()| (0..CHUNKS).for_each(|_| drop(black_box(staging.take().expect("all are back")))),
    );
}

fn digest(bench: &Bench, Pages { noise, .. }: &Pages) {
    for (what, group) in [("one page at a time", 1), ("sixteen at a time", GROUP)] {
        bench.line("digest", what, PageHasher::default, |hasher| {
            noise.chunks(group * PAGE_SIZE).for_each(|bytes| hasher.add_bytes(bytes));
            black_box(hasher.take());
        });
    }
    bench.line("digest", "a chunk at a time, with numbers", PageHasher::default, |hasher| {
        for bytes in noise.chunks(CHUNK_PAGES * PAGE_SIZE) {
            numbered(bytes).for_each(|(page, bytes)| hasher.add_index(page, is_zero(bytes)));
            hasher.add_bytes(bytes);
        }
        black_box(hasher.take());
    });
    bench.line("digest", "numbers alone", PageHasher::default, |hasher| {
        (0..PAGES as u64).for_each(|page| hasher.add_index(PageIndex(page), true));
        black_box(hasher.take());
    });
    bench.line_of("digest", (EPOCHS as usize, "epoch", "without content"), EpochHasher::default, |hasher| {
        (0..EPOCHS).for_each(|epoch| {
            black_box(hasher.take(Term::new(1), EpochId::new(epoch), None, true));
        });
    });
}

fn encode(bench: &Bench, Pages { noise, .. }: &Pages) {
    let mut body = Vec::with_capacity(2 << 20);
    let mut encode = |as_sent: fn(&[u8]) -> Reduced<'_>| {
        for pages in noise.chunks_exact(CHUNK_PAGES * PAGE_SIZE) {
            body.clear();
            let mut writer = PageBatchWriter::new(&mut body);
            for (page, bytes) in numbered(pages) {
                writer.add(page, as_sent(bytes));
            }
            black_box(&body);
        }
    };
    bench.line("encode", "as it is", || (), |()| encode(|bytes| Reduced::Raw(bytes)));
    bench.line("encode", "of zeros, in a row", || (), |()| encode(|_| Reduced::Zero));
}

fn devices(bench: &Bench) {
    let before: Vec<u8> = (0..STATE).map(|at| (at % 251) as u8).collect();
    let mut now = before.clone();
    (0..CHANGES).for_each(|nth| now[nth * (STATE / CHANGES)] ^= 1);
    let state = |what| (1, "state of 366 KiB", what);
    bench.line_of(
        "devices",
        state("what changed"),
        || (),
        |()| {
            black_box(delta::between(&before, &now));
        },
    );
    let change = delta::between(&before, &now).expect("little changed");
    bench.line_of(
        "devices",
        state("changed by it"),
        || before.clone(),
        |state| {
            delta::apply(state, &change).expect("our own");
        },
    );
}
