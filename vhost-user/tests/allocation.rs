//! The hot path allocates nothing: a counting allocator watches the polling core's thread.

#![expect(unsafe_code, reason = "a global allocator is an unsafe trait")]

#[path = "driver/attach.rs"]
mod attach;
#[expect(dead_code, reason = "shared with the unit tests of the rings, which use all of it")]
mod driver;

use attach::{BASE, RING, attach};
use driver::{DriverQueue, GuestRam, WRITE, descriptor};
use holdfast_vhost_user::{Endpoint, Verdict, VirtioNetHdr};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged; the counter is a plain number
// of the thread and allocates nothing itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One turn of a core that echoes: the whole hot path, with copies into buffers made beforehand.
fn turn(endpoint: &mut Endpoint, buffer: &mut [u8]) -> u32 {
    let mut frames = 0;
    endpoint.poll_control();
    endpoint.drain_kicks();
    let (tx, rx) = endpoint.rings();
    let (tx, rx) = (&mut tx[0], &mut rx[0]);
    tx.poll(32, |header, bytes| {
        let len = bytes.copy_to(0, buffer);
        assert_eq!(rx.push(header, &[&buffer[..len]]), Ok(true));
        frames += 1;
        Verdict::Taken
    })
    .expect("a sound ring");
    assert_eq!(rx.push(&VirtioNetHdr::default(), &[&buffer[..4000]]), Ok(true));
    tx.flush().expect("a sound ring");
    rx.flush().expect("a sound ring");
    tx.want_kick(true).expect("a sound ring");
    tx.want_kick(false).expect("a sound ring");
    frames
}

#[test]
fn the_hot_path_allocates_nothing() {
    let ram = GuestRam::new();
    let mut queues =
        [DriverQueue::new(&ram, 0x1000, RING, BASE), DriverQueue::new(&ram, 0x1_0000_0000, RING, BASE)];
    let mut attached = attach(&ram, &queues);
    let mut buffer = vec![7; 4096];
    for slot in 0..RING {
        let gpa = 0x1_0004_0000 + 2048 * u64::from(slot);
        queues[0].set_descriptor(slot, descriptor(gpa, 2048, WRITE, 0));
        queues[0].offer(slot);
        queues[1].set_descriptor(slot, descriptor(0x2_0000 + 512 * u64::from(slot), 512, 0, 0));
    }
    let mut frames = 0;
    for round in 0..200_u16 {
        for slot in 0..20 {
            queues[1].offer((round * 20 + slot) % RING);
        }
        let before = ALLOCATIONS.with(Cell::get);
        frames += turn(&mut attached.endpoint, &mut buffer);
        assert_eq!(ALLOCATIONS.with(Cell::get), before, "round {round} allocated");
        queues[1].take_used();
        for (head, _) in queues[0].take_used() {
            queues[0].offer(head as u16);
        }
    }
    assert_eq!(frames, 4000);
}
