//! The engine allocates nothing once it is made: a counting allocator watches epochs of a busy flow.
#![expect(unsafe_code, reason = "an allocator that counts")]

#[path = "../benches/traffic/mod.rs"]
mod traffic;

use holdfast_speculation::{Event, Time};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use traffic::Traffic;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches only a
// thread-local number without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Segments of an epoch.
const SEGMENTS: u32 = 20;

#[test]
fn a_busy_flow_allocates_nothing() {
    let mut traffic = Traffic::new();
    let mut counted = 0;
    for epoch in 0..200 {
        // Frames are made beforehand: theirs are the guest's and the client's allocations.
        let frames = traffic.guest_frames(SEGMENTS);
        let mut acks = traffic.client_acks(SEGMENTS);
        let before = ALLOCATIONS.with(Cell::get);
        traffic.take(&frames);
        traffic.stream_and_acknowledge();
        traffic.seal_and_commit();
        traffic.send();
        traffic.confirm(&mut acks);
        traffic.advance(Time::from_ns(50_000_000 * (epoch + 1)));
        // The first epochs let the caller's own buffers grow.
        if epoch > 5 {
            counted += ALLOCATIONS.with(Cell::get) - before;
        }
    }
    assert_eq!(counted, 0);
    let counters = traffic.engine.counters();
    assert_eq!(counters.get(Event::GuestSegments), u64::from(200 * SEGMENTS + 200));
    assert!(counters.get(Event::LegSegments) >= u64::from(190 * SEGMENTS));
    assert!(counters.get(Event::ForgedAcks) >= 190);
}
