//! What the process's tracker and KVM's find, held against each other, against what was written, and against the whole
//! memory.
//!
//! | who writes | found by `UffdTracker` | found by KVM |
//! |---|---|---|
//! | a vCPU | yes | yes |
//! | the process that runs the machine, as QEMU's devices do | yes | no |
//! | another process that maps the file, as Holdfast's rings do | no | no |
//!
//! Nothing else is ever found, but for one thing that KVM may say: a page that the process wrote and that the guest
//! then only *read*. KVM maps what the process may write to for writing at once, and calls it written; everywhere else
//! the protection of `UffdTracker` keeps it from that.

mod process;

use super::dirty_ring::ENTRIES;
use super::machine::VCPUS;
use super::{Means, PAGE, PAGES, SLOTS};
use crate::host_needs;
use crate::pages::{PAGE_SIZE, PageIndex, PageSet};
use crate::tracker::puppet::Puppet;
use crate::tracker::tracked::Tracked;
use crate::tracker::{DirtyTracker, UffdTracker};
use memmap2::MmapOptions;
use process::spawn_machine;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that the guest writes to a place.
const WIDTH: u64 = 4;

/// The means by which KVM is asked; none where this host does not let us, which it says then.
fn means() -> impl Iterator<Item = Means> {
    let can = host_needs::is_root() && host_needs::has_kvm();
    Means::ALL.into_iter().filter(move |_| can)
}

/// A machine, both its trackers, and its memory as it was at the last look.
struct Lab {
    uffd: Option<UffdTracker>,
    process: Puppet,
    memory: Tracked,
    shadow: Vec<u8>,
    /// What the guest writes next, each of the bytes; nothing in the memory is like it.
    value: u8,
}

/// What was found since the last look.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    uffd: PageSet,
    kvm: PageSet,
    /// Pages whose contents differ.
    changed: PageSet,
}

impl Found {
    /// Both trackers and the memory say the same.
    fn all(pages: &PageSet) -> Self {
        Self { uffd: pages.clone(), kvm: pages.clone(), changed: pages.clone() }
    }
}

impl Lab {
    /// A machine whose memory nobody has touched, tracked from now on.
    fn new(means: Means) -> Self {
        Self::in_dir(Path::new("/dev/shm"), means)
    }

    fn in_dir(dir: &Path, means: Means) -> Self {
        let memory = Tracked::in_dir(dir, PAGES);
        let process = spawn_machine(&memory.path, means);
        let uffd = Some(memory.attach(&process).unwrap());
        Self { uffd, process, memory, shadow: vec![0; (PAGES * PAGE) as usize], value: 1 }
    }

    /// Tracks the memory anew, from now on.
    fn attach_anew(&mut self) {
        drop(self.uffd.take());
        self.uffd = Some(self.memory.attach(&self.process).unwrap());
        self.logged();
        self.changed();
        self.value += 1;
    }

    /// A vCPU writes to all the places; gives how often its ring was full.
    fn write(&mut self, vcpu: usize, offsets: &[u64]) -> u64 {
        let value = u32::from_ne_bytes([self.value; WIDTH as usize]);
        self.process.ask(&format!("write {vcpu} {value} {}", words(offsets))).parse().unwrap()
    }

    fn read(&mut self, vcpu: usize, offsets: &[u64]) {
        self.process.ask(&format!("read {vcpu} {}", words(offsets)));
    }

    /// The process itself writes.
    fn poke(&mut self, offsets: &[u64]) {
        let value = u32::from_ne_bytes([self.value; WIDTH as usize]);
        self.process.ask(&format!("poke {value} {}", words(offsets)));
    }

    /// Asks both trackers, and looks at the memory.
    fn look(&mut self) -> Found {
        let found = Found { uffd: self.scanned(), kvm: self.logged(), changed: self.changed() };
        self.value += 1;
        found
    }

    fn scanned(&mut self) -> PageSet {
        let mut found = self.memory.none();
        self.uffd.as_mut().unwrap().collect(&mut found).unwrap();
        found
    }

    fn logged(&mut self) -> PageSet {
        let mut found = self.memory.none();
        let answer = self.process.ask("collect");
        for run in answer.strip_prefix("pages").unwrap().split_whitespace() {
            let (start, end) = run.split_once('-').unwrap();
            found.insert_range(start.parse().unwrap()..end.parse().unwrap());
        }
        found
    }

    /// Compares all of the memory with the shadow, which it becomes.
    fn changed(&mut self) -> PageSet {
        let mut now = vec![0; self.shadow.len()];
        self.memory.file.read_exact_at(&mut now, 0).unwrap();
        let mut changed = self.memory.none();
        let pages = now.chunks_exact(PAGE_SIZE).zip(self.shadow.chunks_exact(PAGE_SIZE));
        for (page, (now, before)) in (0..).zip(pages) {
            if now != before {
                changed.insert(PageIndex(page));
            }
        }
        self.shadow = now;
        changed
    }
}

fn words(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

/// The pages that a write to each of the places touches.
fn pages_of(offsets: &[u64]) -> PageSet {
    let mut pages = PageSet::with_capacity(PAGES);
    for offset in offsets {
        pages.insert_range(offset / PAGE..(offset + WIDTH - 1) / PAGE + 1);
    }
    pages
}

/// The first place of each page.
fn starts(pages: impl Iterator<Item = u64>) -> Vec<u64> {
    pages.map(|page| page * PAGE).collect()
}

/// A place half of which lies before that page, and half in it.
const fn across(page: u64) -> u64 {
    page * PAGE - WIDTH / 2
}

/// CK-2: what a guest is known to write is what both trackers find, page for page and once, and what changed.
#[test]
fn known_writes_are_found_by_both_trackers_and_nothing_else_is() {
    let second = SLOTS[1].first;
    let cases = [
        ("nothing", vec![]),
        ("the first page", vec![0]),
        ("the end of the last page", vec![PAGES * PAGE - WIDTH]),
        ("one place", vec![17 * PAGE + 1234]),
        ("one page, many times", vec![7 * PAGE; 500]),
        ("both sides of the border of the slots", starts(second - 1..=second)),
        ("across the border of two pages", vec![across(5), across(second + 501)]),
        ("across the border of two words of the log", vec![across(64), across(second + 64)]),
        ("two pages that only touch", vec![across(300), 300 * PAGE]),
        ("every other page", starts((0..PAGES).step_by(2))),
        ("all pages", starts(0..PAGES)),
        ("nothing again", vec![]),
    ];
    for means in means() {
        let mut lab = Lab::new(means);
        for (vcpu, (what, offsets)) in (0..VCPUS).flat_map(|vcpu| cases.iter().map(move |case| (vcpu, case)))
        {
            lab.write(vcpu, offsets);
            let expected = Found::all(&pages_of(offsets));
            assert_eq!(lab.look(), expected, "{what}, by vCPU {vcpu}, {means:?}");
            assert_eq!(lab.look(), Found::all(&pages_of(&[])), "after {what}, by vCPU {vcpu}, {means:?}");
        }
    }
}

/// CK-2: a write that changes nothing is a write, to both trackers.
#[test]
fn a_write_of_what_is_there_already_is_found() {
    for means in means() {
        let mut lab = Lab::new(means);
        let places = [9 * PAGE, 2000 * PAGE];
        lab.write(0, &places);
        lab.look();
        lab.value -= 1;
        lab.write(1, &places);
        let (pages, none) = (pages_of(&places), pages_of(&[]));
        assert_eq!(lab.look(), Found { uffd: pages.clone(), kvm: pages, changed: none }, "{means:?}");
    }
}

/// A guest that reads writes nothing, be the pages there, there for the guest, or holes.
#[test]
fn what_a_guest_reads_is_not_found() {
    let nothing = Found::all(&pages_of(&[]));
    for means in means() {
        let mut lab = Lab::new(means);
        lab.read(0, &starts(0..PAGES));
        assert_eq!(lab.look(), nothing, "holes, {means:?}");
        lab.write(0, &starts((0..PAGES).step_by(3)));
        lab.look();
        lab.read(1, &starts(0..PAGES));
        assert_eq!(lab.look(), nothing, "pages that were written before, {means:?}");
        lab.attach_anew();
        lab.read(0, &starts(0..PAGES));
        assert_eq!(lab.look(), nothing, "after a new attach, {means:?}");
    }
}

/// CK-2: whose writes each tracker finds; see the table above.
#[test]
fn each_tracker_finds_the_writes_that_it_can_know_of() {
    let (guest, process, other) = ([3 * PAGE], [4 * PAGE, across(1500)], 5 * PAGE);
    let (both, of_guest) = (pages_of(&[guest[0], process[0], process[1]]), pages_of(&guest));
    for means in means() {
        let mut lab = Lab::new(means);
        let ours = MmapOptions::new().map_raw(&lab.memory.file).unwrap();
        for round in 0..3 {
            lab.write(0, &guest);
            lab.poke(&process);
            // SAFETY: the place lies within the mapping, of which this is the only use.
            unsafe { ours.as_mut_ptr().add(other as usize).write_bytes(lab.value, WIDTH as usize) };
            let mut changed = both.clone();
            changed.insert(PageIndex::of_offset(other));
            let expected = Found { uffd: both.clone(), kvm: of_guest.clone(), changed };
            assert_eq!(lab.look(), expected, "round {round}, {means:?}");
        }
        // What the process wrote and the guest reads: KVM may take it for written, and the other tracker has it.
        lab.poke(&process);
        lab.read(1, &process);
        let mut found = lab.look();
        assert_eq!((&found.uffd, &found.changed), (&pages_of(&process), &pages_of(&process)), "{means:?}");
        found.kvm.subtract(&pages_of(&process));
        assert!(found.kvm.is_empty(), "{:?}, {means:?}", found.kvm);
    }
}

/// CK-2: memory that KVM has mapped for the guest, to be written, is protected by an attach as by every scan.
#[test]
fn memory_that_kvm_has_mapped_is_tracked_from_an_attach_on() {
    for means in means() {
        let mut lab = Lab::new(means);
        for round in 1..4 {
            lab.write(0, &starts(0..PAGES));
            lab.attach_anew();
            assert_eq!(lab.look(), Found::all(&pages_of(&[])), "before the attach, {means:?}");
            let places = starts((0..PAGES).step_by(77 * round));
            lab.write(1, &places);
            assert_eq!(lab.look(), Found::all(&pages_of(&places)), "after the attach, {means:?}");
        }
    }
}

/// CK-2: of a vCPU that stops as its ring is full nothing is lost, nor of what it writes when it goes on.
#[test]
fn a_ring_that_is_full_loses_nothing() {
    if means().next().is_none() {
        return;
    }
    let mut lab = Lab::new(Means::Ring);
    for vcpu in [0, 1, 0] {
        let full = lab.write(vcpu, &starts(0..PAGES));
        assert!(full >= PAGES / ENTRIES as u64, "the ring was full {full} times: the test proves nothing");
        assert_eq!(lab.look(), Found::all(&pages_of(&starts(0..PAGES))), "full {full} times");
        let few = starts([1, 2, 1999].into_iter());
        assert_eq!(lab.write(vcpu, &few), 0, "a ring that was emptied has room");
        assert_eq!(lab.look(), Found::all(&pages_of(&few)), "after a full ring");
    }
}

/// Numbers without a pattern, the same in every run of a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % limit
    }

    /// Any place of a page, also across its end unless the slot ends there.
    fn place(&mut self, page: u64) -> u64 {
        let ends = SLOTS.iter().any(|slot| page + 1 == slot.first + slot.pages);
        page * PAGE + self.below(if ends { PAGE - WIDTH + 1 } else { PAGE })
    }

    /// Some places: single ones, and now and then many neighbours.
    fn places(&mut self, limit: u64) -> Vec<u64> {
        let mut places: Vec<u64> = Vec::new();
        for _ in 0..self.below(limit) {
            let page = self.below(PAGES);
            let pages = if self.below(50) == 0 { self.below(200) + 1 } else { 1 };
            places.extend((page..PAGES.min(page + pages)).map(|page| self.place(page)));
        }
        places
    }
}

/// CK-2: what vCPUs and the process write at random is found by whom it should be, round after round, and the memory
/// changed there and nowhere else.
#[test]
fn random_writes_are_found_by_both_trackers_and_nothing_else_is() {
    for means in means() {
        for seed in 1..=2 {
            let mut random = Random(seed);
            let mut lab = Lab::new(means);
            let mut total = 0;
            for round in 0..30 {
                let mut by_guest = random.places(150);
                lab.write(0, &by_guest);
                let more = random.places(150);
                lab.write(1, &more);
                by_guest.extend(more);
                let by_process = if random.below(2) == 0 { random.places(20) } else { Vec::new() };
                lab.poke(&by_process);
                let kvm = pages_of(&by_guest);
                let mut uffd = pages_of(&by_process);
                uffd.union_with(&kvm);
                total += uffd.len();
                let expected = Found { changed: uffd.clone(), uffd, kvm };
                assert_eq!(lab.look(), expected, "round {round} of seed {seed}, {means:?}");
            }
            assert!(total > 2000, "only {total} pages: the test proves little");
        }
    }
}

/// CK-2: while vCPUs write without a break, what each tracker finds again and again, copied each time, is in the end
/// the memory; and it is never anything but what they write.
#[test]
fn no_write_falls_between_two_collections() {
    /// Collections of each tracker that find something.
    const COLLECTIONS: usize = 40;
    let places = starts((0..PAGES).step_by(2));
    let expected = pages_of(&places);
    for means in means() {
        let mut lab = Lab::new(means);
        let mut known = [Known::of(&lab), Known::of(&lab)];
        lab.process.ask(&format!("circle {}", words(&places)));
        while known.iter().any(|known| known.collections < COLLECTIONS) {
            let found = [lab.scanned(), lab.logged()];
            known.iter_mut().zip(&found).for_each(|(known, found)| known.update(found, &lab));
        }
        let laps = lab.process.ask("halt");
        let found = [lab.scanned(), lab.logged()];
        known.iter_mut().zip(&found).for_each(|(known, found)| known.update(found, &lab));
        lab.changed();
        for (known, name) in known.iter().zip(["the process's", "KVM's"]) {
            assert!(known.bytes == lab.shadow, "{name} tracker missed a write in {laps} laps, {means:?}");
            assert_eq!(known.pages, expected, "{name} tracker, {means:?}");
        }
    }
}

/// The memory as one tracker lets us know it.
struct Known {
    bytes: Vec<u8>,
    /// All pages that were ever found.
    pages: PageSet,
    /// How often some were.
    collections: usize,
}

impl Known {
    fn of(lab: &Lab) -> Self {
        Self { bytes: lab.shadow.clone(), pages: lab.memory.none(), collections: 0 }
    }

    fn update(&mut self, found: &PageSet, lab: &Lab) {
        for page in found.iter() {
            let at = page.offset() as usize;
            lab.memory.file.read_exact_at(&mut self.bytes[at..at + PAGE_SIZE], page.offset()).unwrap();
        }
        self.pages.union_with(found);
        self.collections += usize::from(!found.is_empty());
    }
}

/// CK-2: on huge pages the process's tracker finds the whole of each huge page of which KVM finds a part.
#[test]
fn on_huge_pages_whole_huge_pages_are_found_of_what_kvm_finds() {
    const HUGE: u64 = 512;
    for means in means() {
        let Some(mount) = host_needs::HugePages::with_room(PAGES * PAGE) else { return };
        let mut lab = Lab::in_dir(mount.path(), means);
        for pages in [vec![0], vec![600, 601, 1100], vec![1023, 1024], vec![2047, 3071], vec![]] {
            let places = starts(pages.iter().copied());
            lab.write(1, &places);
            let mut whole = lab.memory.none();
            pages.iter().for_each(|page| whole.insert_range(page / HUGE * HUGE..(page / HUGE + 1) * HUGE));
            let kvm = pages_of(&places);
            let expected = Found { uffd: whole, changed: kvm.clone(), kvm };
            assert_eq!(lab.look(), expected, "{pages:?}, {means:?}");
        }
    }
}
