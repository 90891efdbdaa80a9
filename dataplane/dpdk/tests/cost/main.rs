//! What a burst costs: no allocation, and little time. `net_null` makes and swallows frames, so that
//! only this layer and the pool are measured.
//!
//! `cargo test --release -p holdfast-dpdk --test cost -- --nocapture` prints the figures.

#[path = "../real/support/mod.rs"]
#[expect(dead_code, reason = "made for the tests of real ports, which use all of it")]
mod support;

use holdfast_counting::allocations;
use holdfast_dpdk::{BURST, Device, Mbuf, Pool, Port, PortConfig, RegisteredThread, RxQueue, TxQueue};
use std::collections::VecDeque;
use std::time::Instant;
use support::{Memory, alone, start, wire};

/// Bursts measured.
const BURSTS: u32 = 20_000;

fn null_port() -> (Pool, RxQueue, TxQueue, RegisteredThread) {
    let checked = wire("tap", |raw| raw.iface = Some("unused".to_owned()));
    let eal = start(&checked, Memory::Ordinary);
    let registered = RegisteredThread::new(eal).expect("a slot");
    let pool = Pool::new(eal, 8192, 2048).expect("a pool");
    let device = Device::Virtual { name: "net_null0".to_owned(), arguments: "size=64".to_owned() };
    let (_, mut rx, mut tx) = Port::open(eal, &device, pool, &PortConfig::default()).expect("a port");
    (pool, rx.pop().expect("one"), tx.pop().expect("one"), registered)
}

/// Runs `burst` many times; allocations of the process meanwhile, and nanoseconds a frame.
fn cost(mut burst: impl FnMut() -> usize) -> (u64, f64) {
    for _ in 0..100 {
        burst();
    }
    let before = allocations();
    let start = Instant::now();
    let frames: usize = (0..BURSTS).map(|_| burst()).sum();
    let elapsed = start.elapsed();
    let allocations = allocations() - before;
    assert!(frames > 0);
    (allocations, elapsed.as_secs_f64() * 1e9 / frames as f64)
}

#[test]
fn bursts_in_both_directions_allocate_nothing() {
    alone(Memory::Ordinary, || {
        let (pool, mut rx, mut tx, _registered) = null_port();
        let mut received = arrayvec::ArrayVec::<Mbuf, BURST>::new();
        let mut waiting = VecDeque::with_capacity(2 * BURST);

        let (allocations, ns) = cost(|| {
            rx.burst(&mut received);
            waiting.extend(received.drain(..));
            tx.burst(&mut waiting, BURST)
        });
        println!("measured: {ns:.1} ns a frame received and sent in bursts of {BURST}");
        assert_eq!(allocations, 0);

        let (allocations, ns) = cost(|| {
            assert!(pool.alloc_burst(BURST, 1000, &mut received));
            received.drain(..).count()
        });
        println!("measured: {ns:.1} ns a frame allocated by the burst and dropped");
        assert_eq!(allocations, 0);

        let (allocations, ns) = cost(|| {
            drop(pool.alloc(1000));
            1
        });
        println!("measured: {ns:.1} ns a frame allocated alone and dropped");
        assert_eq!(allocations, 0);

        let (allocations, ns) = cost(|| pool.free_frames().min(1));
        println!("measured: {ns:.1} ns to count the free frames of a pool");
        assert_eq!(allocations, 0);
    });
}
