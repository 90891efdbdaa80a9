//! What a frame of the bypass allocates: two times at its receiver, for the datagram type of the QUIC library. An allocator
//! that counts watches both ends, apart for each step; the bounds are what it counted, with some room.

mod pair;

use bytes::Bytes;
use holdfast_bypass::{Class, Counter, Event, PathId, Port, Token};
use holdfast_checkpoint::keys::Identity;
use holdfast_counting::allocations_here;
use pair::{identities, port};
use std::time::Instant;

const TOKEN: Token = Token([7; 32]);
const RECORD: usize = 1 << 20;
const WARM_UP_RECORDS: u64 = 64;
const RECORDS: u64 = 128;
/// Frames that a side sends before the other's turn, as a ring holds them.
const RING: usize = 256;

/// Allocations of some work.
fn spent<T>(total: &mut u64, work: impl FnOnce() -> T) -> T {
    let before = allocations_here();
    let done = work();
    *total += allocations_here() - before;
    done
}

/// Allocations by what was done.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    take_frames: u64,
    timers: u64,
    make_frames: u64,
    records: u64,
}

struct Side {
    port: Port,
    path: Option<PathId>,
    spent: Spent,
    received: u64,
}

impl Side {
    fn new(last: u8, mtu: u16, identity: &Identity) -> Self {
        let port = port(last, mtu, RECORD, identity);
        Self { port, path: None, spent: Spent::default(), received: 0 }
    }

    /// What came is handled, what is due is made.
    fn turn(&mut self, frames: &mut Vec<Vec<u8>>, out: &mut Vec<Vec<u8>>) {
        let now = Instant::now();
        let Self { port, path, spent: by, received } = self;
        for frame in frames.drain(..) {
            spent(&mut by.take_frames, || port.handle_frame(&frame, now));
        }
        spent(&mut by.timers, || port.handle_timeout(now));
        while let Some(event) = port.poll_event() {
            match event {
                Event::Up { path: up, .. } => *path = Some(up),
                Event::Lost { why, .. } => panic!("{why}"),
            }
        }
        if let Some(path) = *path {
            while spent(&mut by.records, || port.receive(path, Class::Bulk, now)).is_some() {
                *received += 1;
            }
        }
        for _ in 0..RING {
            let Some(len) = spent(&mut by.make_frames, || port.next_frame(now)) else { break };
            let mut frame = vec![0; len];
            spent(&mut by.make_frames, || port.take_frame(&mut frame));
            out.push(frame);
        }
    }

    fn frames(&self) -> [u64; 2] {
        let counters = self.port.counters();
        [counters.get(Counter::FramesIn), counters.get(Counter::FramesOut)]
    }
}

/// Sends so many records, and waits for them.
fn carry(from: &mut Side, to: &mut Side, records: u64) {
    let (mut ahead, mut back) = (Vec::new(), Vec::new());
    let body = Bytes::from(vec![0x5a; RECORD]);
    let (mut left, until) = (records, to.received + records);
    while to.received < until {
        let path = from.path.expect("up");
        while left > 0 && from.port.waiting_bytes(path) < 2 * RECORD {
            let Side { port, spent: by, .. } = from;
            spent(&mut by.records, || port.send(path, Class::Bulk, 1, body.clone()));
            left -= 1;
        }
        from.turn(&mut back, &mut ahead);
        to.turn(&mut ahead, &mut back);
    }
}

#[test]
fn a_frame_costs_the_librarys_datagram_and_a_record_its_body() {
    let [a, b] = identities();
    for mtu in [1500, 9000] {
        let (mut from, mut to) = (Side::new(1, mtu, &a), Side::new(2, mtu, &b));
        to.port.await_peer(TOKEN);
        from.port.dial(TOKEN, 1, Instant::now());
        let (mut ahead, mut back) = (Vec::new(), Vec::new());
        while from.path.is_none() || to.path.is_none() {
            from.turn(&mut back, &mut ahead);
            to.turn(&mut ahead, &mut back);
        }
        carry(&mut from, &mut to, WARM_UP_RECORDS);
        (from.spent, to.spent) = Default::default();
        let before = [from.frames(), to.frames()];
        carry(&mut from, &mut to, RECORDS);
        let [[acks, sent], [received, _]] = [(0, &from), (1, &to)]
            .map(|(side, end)| [end.frames()[0] - before[side][0], end.frames()[1] - before[side][1]]);
        println!("mtu {mtu}: {sent} frames sent {:?}, {received} received {:?}", from.spent, to.spent);
        let each = |allocations: u64, frames: u64| allocations as f64 / frames as f64;
        let (taken, acks) = (each(to.spent.take_frames, received), each(from.spent.take_frames, acks));
        let made = each(from.spent.make_frames, sent);
        println!("a frame: taken {taken:.3}, made {made:.3}, an acknowledgement taken {acks:.3}");
        // The library takes a datagram of its own, and shares it among those who keep pieces of it.
        assert!(taken <= 2.05 && acks <= 2.2, "{taken} and {acks}");
        // It notes what was sent, in lists that grow.
        assert!(made <= 0.25, "{made}");
        assert_eq!((from.spent.timers, to.spent.timers), (0, 0));
        // A head here, a body there.
        assert!(from.spent.records.max(to.spent.records) <= RECORDS + 8, "{:?} {:?}", from.spent, to.spent);
    }
}
