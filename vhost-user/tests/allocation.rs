//! The hot path allocates nothing: a counting allocator watches the polling core's thread.

#[path = "driver/attach.rs"]
mod attach;
#[expect(dead_code, reason = "shared with the unit tests of the rings, which use all of it")]
mod driver;

use attach::{BASE, RING, attach};
use driver::{DriverQueue, GuestRam, WRITE, descriptor};
use holdfast_counting::allocations_here;
use holdfast_vhost_user::{Endpoint, Verdict, VirtioNetHdr};

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
        let before = allocations_here();
        frames += turn(&mut attached.endpoint, &mut buffer);
        assert_eq!(allocations_here(), before, "round {round} allocated");
        queues[1].take_used();
        for (head, _) in queues[0].take_used() {
            queues[0].offer(head as u16);
        }
    }
    assert_eq!(frames, 4000);
}
