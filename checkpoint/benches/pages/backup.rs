//! Pages at the backup: restored, verified, staged and written to the image.

use crate::measure::{Bench, PAGES};
use crate::memory::{Pages, numbered};
use crate::reduce::after;
use holdfast_checkpoint::backup::Staging;
use holdfast_checkpoint::gate::GateState;
use holdfast_checkpoint::image::{Image, ImageConfig, PreparedEpoch, StagedEpoch, StagedPages};
use holdfast_checkpoint::pages::{PAGE_SIZE, PageIndex};
use holdfast_checkpoint::protocol::{BATCH_PAGES, PageBatch, PageBatchWriter};
use holdfast_checkpoint::reduction::{Reducer, Way, is_zero, restore};
use holdfast_epoch::{Digest, EpochId, Term};
use std::cell::{Cell, RefCell};
use std::hint::black_box;

type Page = [u8; PAGE_SIZE];

const TERM: Term = Term::new(1);
/// Bytes that an epoch may take.
const LIMIT: u64 = 1 << 30;

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

/// What comes of pages in these ways, all of which came before as `held`.
fn sent(way: Way, pages: &[u8], held: &[u8]) -> Vec<PageBatch> {
    batches(&mut after(&[way], held), pages)
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
    image.begin_sync(TERM, EpochId::FIRST).expect("a fresh image");
    image
}

pub(crate) fn measure(bench: &Bench, pages: &Pages) {
    let Pages { noise, near, text, .. } = pages;
    for (what, way, bytes) in [
        ("as it is", Way::Zero, noise),
        ("of a delta", Way::Delta, near),
        ("of a compressed page", Way::Compress, text),
    ] {
        let batches = sent(way, bytes, noise);
        bench.line("decode", what, || (), |()| decode(&batches, noise));
    }
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let mut image = image(&dir);
    synchronisation(bench, pages, &mut image);
    epochs(bench, pages, &mut image);
}

fn synchronisation(bench: &Bench, Pages { zeros, noise, .. }: &Pages, image: &mut Image) {
    let write = |image: &mut Image, bytes: &[u8]| {
        for (page, bytes) in numbered(bytes) {
            let bytes: &Page = bytes.try_into().expect("a page");
            image.write_base(page, (!is_zero(bytes)).then_some(bytes)).expect("within the image");
        }
    };
    bench.line("image", "written", || (), |()| write(image, noise));
    write(image, zeros);
    let blank = |image: &mut Image| {
        (0..PAGES as u64).for_each(|page| image.write_base(PageIndex(page), None).expect("within the image"));
    };
    bench.line("image", "of zeros, over zeros", || (), |()| blank(image));
    for (what, bytes) in [("of a synchronisation", noise), ("of a synchronisation, zeros", zeros)] {
        let batches = sent(Way::Zero, bytes, bytes);
        bench.line("staged", what, Staging::of_full_sync, |staging| {
            batches.iter().for_each(|batch| staging.base(batch, image).expect("our own"));
        });
    }
    write(image, noise);
}

/// The image has pages of noise, and goes on from there.
fn epochs(bench: &Bench, Pages { noise, near, text, .. }: &Pages, image: &mut Image) {
    for (what, way, bytes) in [
        ("of an epoch, as it is", Way::Zero, noise),
        ("of an epoch, unchanged", Way::Unchanged, noise),
        ("of an epoch, equal to another", Way::Equal, noise),
        ("of an epoch, a delta", Way::Delta, near),
        ("of an epoch, compressed", Way::Compress, text),
    ] {
        let batches = sent(way, bytes, noise);
        let mut scratch = Vec::new();
        bench.line("staged", what, Staging::default, |staging| {
            for batch in &batches {
                staging.pages(batch, image, LIMIT, &mut scratch).expect("our own");
            }
        });
    }
    let (image, next) = (RefCell::new(image), Cell::new(EpochId::FIRST));
    let put_down = |epoch: &mut Option<StagedEpoch>| {
        let epoch = epoch.take().expect("made for this");
        image.borrow().prepare(epoch).expect("room for the record")
    };
    bench.line(
        "image",
        "of an epoch, put down in a record",
        || staged(next.get(), noise),
        |epoch| {
            drop(black_box(put_down(epoch)));
        },
    );
    let prepare = || Some(put_down(&mut staged(next.get(), noise)));
    bench.line("image", "of an epoch, taken over", prepare, |epoch: &mut Option<PreparedEpoch>| {
        let epoch = epoch.take().expect("made for this");
        image.borrow_mut().commit(epoch).expect("the next one");
        next.set(next.get().next());
    });
}

fn staged(epoch: EpochId, bytes: &[u8]) -> Option<StagedEpoch> {
    let mut pages = StagedPages::with_capacity(PAGES);
    for (page, bytes) in numbered(bytes) {
        pages.push(page, bytes.try_into().expect("a page"));
    }
    let digest = Digest([1; 32]);
    let state = GateState::whole(Vec::new());
    StagedEpoch::verified((TERM, epoch), pages, Vec::new(), state, &digest, &digest).ok()
}
