//! Cost of a frame in each direction: `cargo bench -p holdfast-vhost-user`.
//!
//! The device's part alone is timed: walking the ring, copying the frame, marking pages, publishing.
//! The simulated guest refills its rings between the bursts, untimed.

#[path = "../tests/driver/attach.rs"]
mod attach;
#[expect(dead_code, reason = "shared with the unit tests of the rings, which use all of it")]
#[path = "../tests/driver/mod.rs"]
mod driver;

use attach::{Attached, BASE, RING, attach};
use driver::{DriverQueue, GuestRam, NEXT, WRITE, descriptor};
use holdfast_vhost_user::{Verdict, VirtioNetHdr};
use std::time::{Duration, Instant};

const BURST: u16 = 32;
const ROUNDS: u32 = 2000;

fn report(name: &str, frame: usize, frames: u32, spent: Duration) {
    let each = spent.as_nanos() as f64 / f64::from(frames);
    let rate = frame as f64 * 8.0 / each;
    println!("{name:<8} frame_bytes={frame:<6} ns_per_frame={each:<8.0} gbit_s={rate:.1}");
}

/// The guest sends frames of `frame` bytes, header and data in two descriptors.
fn send(attached: &mut Attached, queue: &mut DriverQueue<'_>, frame: usize) {
    for slot in 0..RING / 2 {
        queue.set_descriptor(2 * slot, descriptor(0x2_0000, 12, NEXT, 2 * slot + 1));
        queue.set_descriptor(2 * slot + 1, descriptor(0x2_1000, frame as u32, 0, 0));
    }
    let ring = &mut attached.endpoint.tx_rings()[0];
    let mut out = vec![0; frame];
    let mut spent = Duration::ZERO;
    for _ in 0..ROUNDS {
        for slot in 0..BURST {
            queue.offer(2 * slot);
        }
        let start = Instant::now();
        let taken = ring.poll(usize::from(BURST), |_, bytes| {
            assert_eq!(bytes.copy_to(0, &mut out), frame);
            Verdict::Taken
        });
        ring.flush().expect("a sound ring");
        spent += start.elapsed();
        assert_eq!(taken, Ok(usize::from(BURST)));
    }
    report("send", frame, ROUNDS * u32::from(BURST), spent);
}

/// The guest receives frames of `frame` bytes into buffers of 2 KiB.
fn receive(attached: &mut Attached, queue: &mut DriverQueue<'_>, frame: usize) {
    let ring = &mut attached.endpoint.rx_rings()[0];
    let bytes = vec![1; frame];
    let burst = (usize::from(RING) * 2048 / (frame + 2048)).min(usize::from(BURST));
    let mut spent = Duration::ZERO;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..burst {
            assert_eq!(ring.push(&VirtioNetHdr::default(), &[&bytes]), Ok(true));
        }
        ring.flush().expect("a sound ring");
        spent += start.elapsed();
        for (head, _) in queue.take_used() {
            queue.offer(head as u16);
        }
    }
    report("receive", frame, ROUNDS * burst as u32, spent);
}

fn main() {
    let ram = GuestRam::new();
    let mut queues =
        [DriverQueue::new(&ram, 0x1000, RING, BASE), DriverQueue::new(&ram, 0x1_0000_0000, RING, BASE)];
    let mut attached = attach(&ram, &queues);
    for slot in 0..RING {
        let gpa = 0x1_0004_0000 + 2048 * u64::from(slot);
        queues[0].set_descriptor(slot, descriptor(gpa, 2048, WRITE, 0));
        queues[0].offer(slot);
    }
    for frame in [60, 1514, 65_000] {
        send(&mut attached, &mut queues[1], frame);
        receive(&mut attached, &mut queues[0], frame);
    }
}
