//! A guest on huge pages of the host: what it wrote travels, and not the huge pages that are found to be written.
//!
//! Its memory is on a hugetlbfs; another process writes to it, and is tracked as QEMU is.

use super::*;
use crate::host_needs::{self, HugePageSize, HugePages};
use crate::tracker::{Puppet, Tracked, spawn_writer};
use nix::sys::statfs::fstatfs;
use std::fs::File;
use std::os::unix::fs::FileExt;

const PAGE: u64 = PAGE_SIZE as u64;

/// Memory in a file, to which nobody of this process writes.
struct InFile {
    file: File,
    facts: MemoryFacts,
}

impl GuestMemorySource for InFile {
    fn facts(&mut self) -> Result<MemoryFacts, MemoryError> {
        Ok(self.facts)
    }

    fn read(&mut self, first: PageIndex, out: &mut [u8]) -> Result<(), MemoryError> {
        Ok(self.file.read_exact_at(out, first.offset())?)
    }

    fn drain_dirty(&mut self, _into: &mut PageSet) {}
}

/// A guest on huge pages, and its replication.
struct OnHugePages {
    bench: Bench,
    writer: Puppet,
    memory: Tracked,
    len: u64,
    // Last: what is mapped goes before its file system.
    _mount: HugePages,
}

impl OnHugePages {
    /// A guest of so many bytes, of which those that `noise` says, offset and length, are noise; all of it was
    /// replicated once, to an image of this name.
    fn new(mount: HugePages, len: u64, noise: (u64, u64), image: PathBuf) -> Self {
        let memory = Tracked::in_dir(mount.path(), len / PAGE);
        let mut writer = spawn_writer(&memory.path, &memory.whole());
        writer.ask(&format!("read-into {} {}", noise.0, noise.1));
        let block = fstatfs(&memory.file).expect("a file system").block_size();
        let page_size = u64::try_from(block).expect("a size");
        let facts = MemoryFacts { identity: memory.identity(), len, page_size };
        let file = memory.file.try_clone().expect("a descriptor");
        let guest = Guest {
            facts,
            source: Box::new(InFile { file, facts }),
            tracker: Box::new(memory.attach(&writer).expect("it can be tracked")),
            image,
        };
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        // A busy machine may make a way seem not to pay.
        let reduction = Reduction { adaptive: false, ..Reduction::default() };
        let mut bench = Bench::of(guest, Memory::new(0), dir, false, CHUNKS, reduction);
        let round = bench.round(true);
        bench.seal(|_| {});
        bench.backup.gather(1);
        assert_eq!(bench.committed(), 1);
        assert!(round.recv().expect("an answer").outcome.is_ok());
        let whole = Self { bench, writer, memory, len, _mount: mount };
        assert_eq!(whole.bench.backup.image.digest(), whole.digest());
        whole
    }

    fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        let mut bytes = vec![0; 1 << 20];
        for offset in (0..self.len).step_by(bytes.len()) {
            self.memory.file.read_exact_at(&mut bytes, offset).expect("reads");
            hasher.update(&bytes);
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// Writes so many bytes at each of these offsets, and replicates the epoch `number`; pages in it, and bytes that
    /// its pages took on the way.
    fn epoch(&mut self, number: u64, offsets: &[u64], bytes: u64) -> (u64, u64) {
        let before = self.bench.told.stats.lock().unwrap().shown().reduction;
        offsets.iter().for_each(|offset| drop(self.writer.ask(&format!("read-into {offset} {bytes}"))));
        self.bench.seal(|_| {});
        self.bench.backup.gather(1);
        assert_eq!(self.bench.committed(), number);
        assert_eq!(self.bench.backup.image.digest(), self.digest(), "epoch {number}");
        let after = self.bench.told.stats.lock().unwrap().shown().reduction;
        let sent = after.wire_bytes() - before.wire_bytes();
        println!("{bytes} bytes at {} places: {} pages, {sent} bytes", offsets.len(), self.bench.captured[0]);
        (self.bench.captured[0], sent)
    }
}

/// CK-1, CK-2: of 2 MiB that are found to be written 4 KiB travel, of a word less than that, wherever it lies; and the
/// image is the memory.
#[test]
fn of_pages_of_2_mib_only_what_was_written_travels() {
    const HUGE: u64 = HugePageSize::Mib2.bytes();
    const LEN: u64 = 8 * HUGE;
    if !host_needs::is_root() {
        return;
    }
    let Some(mount) = HugePages::with_room(2 * LEN) else { return };
    // Half of the guest is noise, and half was never touched.
    let image = mount.path().join("image");
    let mut guest = OnHugePages::new(mount, LEN, (0, LEN / 2), image);
    let one_each: Vec<u64> = (0..8).map(|huge| huge * HUGE + huge * 61 * PAGE).collect();
    let heads = 8 * 64;
    let (pages, sent) = guest.epoch(2, &one_each, PAGE);
    assert_eq!(pages, LEN / PAGE, "whole huge pages are found");
    assert!((8 * PAGE..8 * PAGE + heads).contains(&sent), "{sent}");
    let (pages, sent) = guest.epoch(3, &one_each, 8);
    assert_eq!(pages, LEN / PAGE);
    assert!((8 * 8..8 * 100 + heads).contains(&sent), "{sent}");
    assert_eq!(guest.epoch(4, &[], 0), (0, 0));
}

/// The same of 1 GiB, where the host has such a page.
#[test]
fn of_a_page_of_1_gib_only_what_was_written_travels() {
    const HUGE: u64 = HugePageSize::Gib1.bytes();
    if !host_needs::is_root() {
        return;
    }
    let Some(mount) = HugePages::of_size(HugePageSize::Gib1, HUGE) else {
        println!("not run: this host has no huge page of 1 GiB to give");
        return;
    };
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let mut guest = OnHugePages::new(mount, HUGE, (HUGE / 2, 4 << 20), dir.path().join("image"));
    // A run of unchanged pages takes a head a batch.
    let heads = HUGE / PAGE / 256 * 16 + 64;
    for (number, offset) in [(2, HUGE / 2 + 77 * PAGE), (3, HUGE - PAGE)] {
        let (pages, sent) = guest.epoch(number, &[offset], PAGE);
        assert_eq!(pages, HUGE / PAGE, "the whole huge page is found");
        assert!((PAGE..PAGE + heads).contains(&sent), "{sent}");
    }
}
