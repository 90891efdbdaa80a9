//! An allocator that counts by thread, for tests of what a steady state costs. A program that asks for a count has it.
#![expect(unsafe_code, reason = "an allocator that counts")]

use nix::unistd::gettid;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

/// Threads that are told apart, at most; what others allocate is not counted.
const THREADS: usize = 1024;

struct Place {
    thread: AtomicI32,
    count: AtomicU64,
    bytes: AtomicU64,
}

static PLACES: [Place; THREADS] =
    [const { Place { thread: AtomicI32::new(0), count: AtomicU64::new(0), bytes: AtomicU64::new(0) } };
        THREADS];
static TAKEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static OWN: Cell<Option<usize>> = const { Cell::new(None) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches only numbers, and allocates
// nothing itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(bytes: usize) {
    if let Some(place) = PLACES.get(own()) {
        place.count.fetch_add(1, Ordering::Relaxed);
        place.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The place of this thread.
fn own() -> usize {
    OWN.with(|own| match own.get() {
        Some(place) => place,
        None => {
            let taken = TAKEN.fetch_add(1, Ordering::Relaxed);
            if let Some(place) = PLACES.get(taken) {
                place.thread.store(gettid().as_raw(), Ordering::Release);
            }
            own.set(Some(taken));
            taken
        }
    })
}

/// Says that a process is one of its own.
const ALONE: &str = "HOLDFAST_TEST_COUNTS_ALLOCATIONS";

/// Whether this process has nothing but the calling test in it; if not, one is started for it, which must succeed.
/// Threads are told apart by their names, and other tests have such threads too.
///
/// # Panics
/// When that process fails.
#[must_use]
pub fn in_process_of_its_own(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let tests = std::env::current_exe().expect("this program");
    let status = Command::new(tests).args(["--exact", test, "--nocapture"]).env(ALONE, "1").status();
    assert!(status.expect("it starts").success(), "the process of its own has the reason");
    false
}

/// Allocations of this thread so far; one that grows counts as well.
#[must_use]
pub fn allocations_here() -> u64 {
    PLACES.get(own()).map_or(0, |place| place.count.load(Ordering::Relaxed))
}

/// Bytes of those.
#[must_use]
pub fn bytes_here() -> u64 {
    PLACES.get(own()).map_or(0, |place| place.bytes.load(Ordering::Relaxed))
}

/// Allocations of all threads so far.
#[must_use]
pub fn allocations() -> u64 {
    PLACES.iter().map(|place| place.count.load(Ordering::Relaxed)).sum()
}

/// Allocations so far of all threads of this process that have this name.
#[must_use]
pub fn allocations_of(name: &str) -> u64 {
    let is_named = |thread: i32| {
        fs::read_to_string(format!("/proc/self/task/{thread}/comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let named = PLACES.iter().filter(|place| is_named(place.thread.load(Ordering::Acquire)));
    named.map(|place| place.count.load(Ordering::Relaxed)).sum()
}
