//! What a frame of a guest costs the core that has its card, whose pair of queues is its own or carried by another core:
//! `cargo bench -p holdfast-dataplane --bench pairs`.
//!
//! Rings and device are the real ones; the frontend of the `vhost` crate plays QEMU, a driver simulator the guest. Timed is
//! what the card does, with one copy of each frame out and in, and the turns of the core that carries. One thread does the
//! work of both: what it takes to move a lane from the caches of one processor to those of another is not in the figures.

#[expect(dead_code, reason = "shared with the tests of the rings, which use all of it")]
#[path = "../../vhost-user/tests/driver/mod.rs"]
mod driver;
#[expect(dead_code, reason = "shared with the tests of the endpoint, which use all of it")]
#[path = "../tests/endpoint/machine.rs"]
mod machine;

/// What the machine asks of whoever has it.
mod host {
    pub(crate) fn wait_until(mut done: impl FnMut() -> bool) {
        while !done() {
            std::thread::yield_now();
        }
    }
}

use driver::GuestRam;
use holdfast_dataplane::guest::{GuestFrame, GuestPort, Verdict, VirtioNetHdr};
use holdfast_dataplane::heap::HeapWire;
use holdfast_dataplane::{Card, Core, IdlePolicy, sample};
use holdfast_vhost_user::{Device, DeviceConfig};
use machine::{Machine, TX};
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUNDS: usize = 1000;
/// Frames of a burst.
const BURST: usize = 32;

/// Time on the card's core, and on the other.
type Spent = [Duration; 2];

struct Bench {
    card: Card,
    carrying: Core<HeapWire>,
    buffer: Vec<u8>,
}

impl Bench {
    /// Does what both cores do for the device, while `work` waits for it.
    fn meanwhile<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let working = scope.spawn(work);
            while !working.is_finished() {
                self.card.poll_control();
                self.carrying.turn();
            }
            working.join().expect("it ends")
        })
    }

    fn carry(&mut self, spent: &mut Spent) {
        let begin = Instant::now();
        self.carrying.turn();
        spent[1] += begin.elapsed();
    }

    /// Takes a burst out of the guest's ring, with one copy, as the port would.
    fn capture(&mut self, spent: &mut Spent) {
        self.carry(spent);
        let begin = Instant::now();
        let Self { card, buffer, .. } = self;
        let mut taken = 0;
        card.capture(BURST, &mut |_, frame: &dyn GuestFrame| {
            frame.copy_to(0, &mut buffer[..frame.len()]);
            black_box(&buffer);
            taken += 1;
            Verdict::Taken
        });
        card.flush();
        spent[0] += begin.elapsed();
        assert_eq!(taken, BURST);
    }

    /// Puts a burst into the guest's ring.
    fn deliver(&mut self, frame: &[u8], spent: &mut Spent) {
        let begin = Instant::now();
        for _ in 0..BURST {
            assert!(self.card.deliver(&VirtioNetHdr::default(), &[frame]));
        }
        self.card.flush();
        spent[0] += begin.elapsed();
        self.carry(spent);
    }
}

/// Nanoseconds a frame of this length on the card's core, and on the other: from the guest, and to it.
fn costs(core_of_pair: usize, len: usize) -> [[f64; 2]; 2] {
    let (_core, handle) = Core::<HeapWire>::new(Vec::new(), IdlePolicy::Poll, None).expect("a core");
    let (mut carrying, second) = Core::new(Vec::new(), IdlePolicy::Poll, None).expect("a core");
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("net0");
    let config = DeviceConfig::listening(&socket, 1);
    let wakers = vec![handle.waker(), second.waker()];
    let (device, mut endpoints) = Device::spawn_over(config, wakers, &[core_of_pair]).expect("a device");
    let of_second = endpoints.remove(1);
    let carried = std::thread::scope(|scope| {
        let asked = scope.spawn(|| second.carry(of_second, &handle).expect("carried"));
        while !asked.is_finished() {
            carrying.turn();
        }
        asked.join().expect("it ends")
    });
    let card = Card::new(endpoints.remove(0)).with_carried(carried);
    let mut bench = Bench { card, carrying, buffer: vec![0; 2048] };
    let ram = GuestRam::new();
    let mut machine = bench.meanwhile(|| Machine::boot(&socket, &ram));
    // The guest polls: it asks for no notifications.
    machine.queues.iter().for_each(|queue| queue.ram.write_u16(queue.available_gpa(), 1));
    let frame = sample::opaque(sample::CLIENT, sample::GUEST, len, 1);
    let mut spent = [Spent::default(); 2];
    for round in 0..ROUNDS {
        if round == ROUNDS / 10 {
            spent = Default::default();
        }
        (0..BURST).for_each(|_| machine.send(&frame));
        bench.capture(&mut spent[0]);
        machine.queues[TX].take_used();
        bench.deliver(&frame, &mut spent[1]);
        assert_eq!(machine.receive_small(0).len(), BURST);
    }
    bench.meanwhile(move || drop(device));
    let frames = (BURST * (ROUNDS - ROUNDS / 10)) as f64;
    spent.map(|way| way.map(|spent| spent.as_nanos() as f64 / frames))
}

fn main() {
    for len in [60, 512, 1514] {
        let [own, carried] = [0, 1].map(|core| costs(core, len));
        for (way, name) in ["from the guest", "to the guest"].into_iter().enumerate() {
            println!(
                "{len:>5} bytes {name}: {:.0} ns a frame on the card's core; carried: {:.0} there, {:.0} on the other",
                own[way][0], carried[way][0], carried[way][1]
            );
        }
    }
}
