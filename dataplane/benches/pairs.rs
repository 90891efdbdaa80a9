//! What a frame of a guest costs the core that has its card, whose pair of queues is its own or carried by another core:
//! `cargo bench -p holdfast-dataplane --bench pairs`.
//!
//! Rings, device and cores are the real ones; the frontend of the `vhost` crate plays QEMU, a driver simulator the guest,
//! and the wire is in memory. Only the cores' turns are timed. Both cores are turned by one thread: what it takes to move a
//! lane from the caches of one processor to those of another is not in the figures.

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
use holdfast_dataplane::heap::{HeapPeer, HeapWire};
use holdfast_dataplane::{Card, Core, Handle, IdlePolicy, PortConfig, PortId, sample};
use holdfast_vhost_user::{Device, DeviceConfig, MemoryFiles, SocketAccess, SocketRole};
use machine::{Machine, TX};
use std::time::{Duration, Instant};

const ROUNDS: usize = 400;
/// Frames of a burst.
const BURST: usize = 32;

struct Bench {
    /// That of the card, and the other.
    cores: [Core<HeapWire>; 2],
    peer: HeapPeer,
}

impl Bench {
    /// Turns the cores while `work` waits for them.
    fn meanwhile<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let working = scope.spawn(work);
            while !working.is_finished() {
                for core in &mut self.cores {
                    core.turn();
                }
            }
            working.join().expect("it ends")
        })
    }

    /// Turns a core until it finds nothing, the last turn not counted.
    fn turn(&mut self, core: usize, spent: &mut Duration) {
        loop {
            let begin = Instant::now();
            if self.cores[core].turn() == 0 {
                return;
            }
            *spent += begin.elapsed();
        }
    }
}

/// Nanoseconds a frame of this length on the card's core, and on the other: from the guest, and to it.
fn costs(core_of_pair: usize, len: usize) -> [[f64; 2]; 2] {
    let (wire, peer) = HeapWire::new(1500, 4096, false).expect("a wire");
    let (core, handle) = Core::new(vec![wire], IdlePolicy::Poll, None).expect("a core");
    let (second, carrying) = Core::new(Vec::new(), IdlePolicy::Poll, None).expect("a core");
    let mut bench = Bench { cores: [core, second], peer };
    let dir = tempfile::tempdir().expect("a directory");
    let config = DeviceConfig {
        name: "net0".to_owned(),
        socket: SocketRole::Server(dir.path().join("net0")),
        access: SocketAccess::default(),
        queue_pairs: 1,
        offloads: true,
        mtu: None,
        files: MemoryFiles::default(),
    };
    let wakers = vec![handle.waker(), carrying.waker()];
    let (device, endpoints) = Device::spawn_over(config, wakers, &[core_of_pair]).expect("a device");
    let ram = GuestRam::new();
    let mut machine = bench.meanwhile(|| {
        plug(endpoints, &handle, &carrying);
        Machine::boot(&dir.path().join("net0"), &ram)
    });
    // The guest polls: it asks for no notifications.
    machine.queues.iter().for_each(|queue| queue.ram.write_u16(queue.available_gpa(), 1));
    let out = sample::opaque(sample::CLIENT, sample::GUEST, len, 1);
    let back = sample::opaque(sample::GUEST, sample::CLIENT, len, 2);
    let mut spent = [[Duration::ZERO; 2]; 2];
    for round in 0..ROUNDS {
        if round == ROUNDS / 10 {
            spent = Default::default();
        }
        (0..BURST).for_each(|_| machine.send(&out));
        bench.turn(1, &mut spent[0][1]);
        bench.turn(0, &mut spent[0][0]);
        assert_eq!(bench.peer.drop_sent(), BURST);
        machine.queues[TX].take_used();
        (0..BURST).for_each(|_| assert!(bench.peer.put(&back)));
        bench.turn(0, &mut spent[1][0]);
        bench.turn(1, &mut spent[1][1]);
        assert_eq!(machine.receive_small(0).len(), BURST);
    }
    bench.meanwhile(move || drop(device));
    let frames = (BURST * (ROUNDS - ROUNDS / 10)) as f64;
    spent.map(|way| way.map(|spent| spent.as_nanos() as f64 / frames))
}

fn plug(mut endpoints: Vec<holdfast_vhost_user::Endpoint>, handle: &Handle, carrying: &Handle) {
    let carried = carrying.carry(endpoints.remove(1), handle).expect("carried");
    let card = Card::new(endpoints.remove(0)).with_carried(carried);
    handle.add_port(PortId(1), Box::new(card), PortConfig::default()).expect("a port");
}

fn main() {
    for len in [60, 512, 1514] {
        let [own, carried] = [0, 1].map(|core| costs(core, len));
        for (way, name) in
            ["from the guest to the wire", "from the wire to the guest"].into_iter().enumerate()
        {
            println!(
                "{len:>5} bytes {name}: {:.0} ns a frame on the card's core; carried: {:.0} there, {:.0} on the carrying one",
                own[way][0], carried[way][0], carried[way][1]
            );
        }
    }
}
