//! Cost of a frame in each direction: `cargo bench -p holdfast-vhost-user`.
//!
//! The device's part alone is timed: walking the ring, copying the frame, marking pages, publishing.
//! The simulated guest refills its rings between the bursts, untimed.

#[path = "../tests/driver/attach.rs"]
mod attach;
#[expect(dead_code, reason = "shared with the unit tests of the rings, which use all of it")]
#[path = "../tests/driver/mod.rs"]
mod driver;

use attach::{Attached, BASE, RING, attach, attach_as};
use driver::{DriverQueue, GuestRam, NEXT, WRITE, descriptor};
use holdfast_vhost_user::memory::{DirtyBitmap, PAGE_BYTES};
use holdfast_vhost_user::{MemoryFiles, Verdict, VirtioNetHdr};
use std::hint::black_box;
use std::time::{Duration, Instant};

const BURST: u16 = 32;
const ROUNDS: u32 = 2000;
/// What the guest receives into.
const BUFFER: u32 = 2048;

/// The guest's side of a ring, in either layout.
trait Guest {
    const LAYOUT: &'static str;
    /// Gives frame `nth` of a burst to the device, header and data in two descriptors.
    fn send(&mut self, nth: u16, frame: u32);
    /// Gives buffer `nth` to the device.
    fn room(&mut self, nth: u16);
    /// Takes back what the device has received into, and gives as much.
    fn refill(&mut self, used: usize);
}

const HEADER_AT: u64 = 0x2_0000;
const DATA_AT: u64 = 0x2_1000;

const fn buffer_at(nth: u16) -> u64 {
    0x1_0004_0000 + BUFFER as u64 * nth as u64
}

impl Guest for DriverQueue<'_> {
    const LAYOUT: &'static str = "split";

    fn send(&mut self, nth: u16, frame: u32) {
        let head = 2 * (nth % BURST);
        self.set_descriptor(head, descriptor(HEADER_AT, 12, NEXT, head + 1));
        self.set_descriptor(head + 1, descriptor(DATA_AT, frame, 0, 0));
        self.offer(head);
    }

    fn room(&mut self, nth: u16) {
        self.set_descriptor(nth, descriptor(buffer_at(nth), BUFFER, WRITE, 0));
        self.offer(nth);
    }

    fn refill(&mut self, _used: usize) {
        for (head, _) in self.take_used() {
            self.offer(head as u16);
        }
    }
}

/// A packed ring as the driver sees it.
struct Packed<'r> {
    ring: DriverQueue<'r>,
    slot: u16,
    sense: bool,
}

impl<'r> Packed<'r> {
    fn new(ring: DriverQueue<'r>) -> Self {
        Self { ring, slot: 0, sense: true }
    }

    fn put(&mut self, gpa: u64, len: u32, id: u16, flags: u16) {
        let sense = if self.sense { 1 << 7 } else { 1 << 15 };
        self.ring.set_descriptor(self.slot, descriptor(gpa, len, id, flags | sense));
        self.slot = (self.slot + 1) % RING;
        self.sense ^= self.slot == 0;
    }
}

impl Guest for Packed<'_> {
    const LAYOUT: &'static str = "packed";

    fn send(&mut self, nth: u16, frame: u32) {
        self.put(HEADER_AT, 12, nth, NEXT);
        self.put(DATA_AT, frame, nth, 0);
    }

    fn room(&mut self, nth: u16) {
        self.put(buffer_at(nth), BUFFER, nth, WRITE);
    }

    fn refill(&mut self, used: usize) {
        // They come back in their order, and each is where it was.
        for _ in 0..used {
            self.room(self.slot);
        }
    }
}

fn report(name: &str, layout: &str, frame: usize, frames: u32, spent: Duration) {
    let each = spent.as_nanos() as f64 / f64::from(frames);
    let rate = frame as f64 * 8.0 / each;
    println!("{name:<8} {layout:<6} frame_bytes={frame:<6} ns_per_frame={each:<8.0} gbit_s={rate:.1}");
}

/// The guest sends frames of `frame` bytes.
fn send<G: Guest>(attached: &mut Attached, guest: &mut G, frame: usize) {
    let ring = &mut attached.endpoint.tx_rings()[0];
    let mut out = vec![0; frame];
    let mut spent = Duration::ZERO;
    for _ in 0..ROUNDS {
        for nth in 0..BURST {
            guest.send(nth, frame as u32);
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
    report("send", G::LAYOUT, frame, ROUNDS * u32::from(BURST), spent);
}

/// The guest receives frames of `frame` bytes.
fn receive<G: Guest>(attached: &mut Attached, guest: &mut G, frame: usize) {
    let ring = &mut attached.endpoint.rx_rings()[0];
    let bytes = vec![1; frame];
    let buffers = (frame + VirtioNetHdr::BYTES).div_ceil(BUFFER as usize);
    let burst = (usize::from(RING) / buffers).min(usize::from(BURST));
    let mut spent = Duration::ZERO;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..burst {
            assert_eq!(ring.push(&VirtioNetHdr::default(), &[&bytes]), Ok(true));
        }
        ring.flush().expect("a sound ring");
        spent += start.elapsed();
        guest.refill(burst * buffers);
    }
    report("receive", G::LAYOUT, frame, ROUNDS * burst as u32, spent);
}

fn both<G: Guest>(attached: &mut Attached, receiving: &mut G, sending: &mut G) {
    for nth in 0..RING {
        receiving.room(nth);
    }
    for frame in [60, 1514, 65_000] {
        send(attached, sending, frame);
        receive(attached, receiving, frame);
    }
}

/// Bytes copied out of the guest's memory, without a ring.
fn read(ram: &GuestRam) {
    let file = MemoryFiles::default().map(&ram.descriptor()).expect("maps");
    for len in [12, 60, 1514, 4096] {
        let mut out = vec![0; len];
        let start = Instant::now();
        let reads = ROUNDS * 32;
        for nth in 0..u64::from(reads) {
            file.read(nth % 256 * 4096, black_box(&mut out)).expect("inside");
        }
        report("read", "file", len, reads, start.elapsed());
    }
}

/// The bitmap of the pages that rings wrote to.
fn bitmap() {
    const MEMORY: u64 = 1 << 30;
    let pages = MEMORY / PAGE_BYTES;
    let (mut fresh, mut again, mut drained, mut empty) = Default::default();
    for _ in 0..ROUNDS / 100 {
        let bitmap = DirtyBitmap::new(MEMORY);
        // Sixteen pages apart, as buffers of a guest seldom share a word.
        let mark = || (0..pages).step_by(16).for_each(|page| bitmap.mark(black_box(page * PAGE_BYTES), 1514));
        spend(&mut fresh, mark);
        spend(&mut again, mark);
        let mut found = 0;
        spend(&mut drained, || bitmap.drain(&mut |_| found += 1));
        assert_eq!(found, pages / 16);
        spend(&mut empty, || bitmap.drain(&mut |_| found += 1));
    }
    let rounds = ROUNDS / 100;
    for (what, unit, count, spent) in [
        ("mark", "fresh page", pages / 16, fresh),
        ("mark", "page that is marked", pages / 16, again),
        ("drain", "marked page", pages / 16, drained),
        ("drain", "GiB without marks", 1, empty),
    ] {
        let each = spent.as_nanos() as f64 / (f64::from(rounds) * count as f64);
        println!("{what:<8} bitmap {each:.1} ns a {unit}");
    }
}

fn spend(spent: &mut Duration, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    *spent += start.elapsed();
}

fn main() {
    bitmap();
    let ram = GuestRam::new();
    let mut queues =
        [DriverQueue::new(&ram, 0x1000, RING, BASE), DriverQueue::new(&ram, 0x1_0000_0000, RING, BASE)];
    let mut attached = attach(&ram, &queues);
    let [receiving, sending] = &mut queues;
    both(&mut attached, receiving, sending);
    drop(attached);

    let ram = GuestRam::new();
    let rings = || [0x1000, 0x1_0000_0000].map(|at| DriverQueue::new(&ram, at, RING, 0));
    let mut attached = attach_as(&ram, &rings(), true);
    let [mut receiving, mut sending] = rings().map(Packed::new);
    both(&mut attached, &mut receiving, &mut sending);
    read(&ram);
}
