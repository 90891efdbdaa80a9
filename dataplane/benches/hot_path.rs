//! Cost of the hot path, a line a function: `cargo bench -p holdfast-dataplane`.
//!
//! Each line is the median of several rounds over warm caches. The wire and the guest are in memory,
//! so that drivers and rings are not in the numbers.

use holdfast_dataplane::checksum::Sum;
use holdfast_dataplane::coalescing::Burst;
use holdfast_dataplane::escrow::Escrow;
use holdfast_dataplane::guest::{GuestFrame, GuestPort, Offloads, Verdict, VirtioNetHdr};
use holdfast_dataplane::headers::{Layout, Mac};
use holdfast_dataplane::heap::{HeapBytes, HeapPeer, HeapWire};
use holdfast_dataplane::sample::Offloaded;
use holdfast_dataplane::segmentation::Plan;
use holdfast_dataplane::steering::{Pairs, Steering};
use holdfast_dataplane::switch::Switch;
use holdfast_dataplane::{Core, Frame, Handle, IdlePolicy, Limits, Mode, PortConfig, PortId, sample};
use holdfast_epoch::{Confirmation, Digest, Epoch, EpochId, ReleaseToken, Term};
use std::collections::VecDeque;
use std::hint::black_box;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const ROUNDS: usize = 15;
const PORT: [PortId; 1] = [PortId(1)];
const OFFLOADS: Offloads = Offloads { checksum: true, tso4: true, tso6: true };
/// Segments of 1448 bytes in the large frame that all benches use.
const SEGMENTS: usize = 44;

/// Prints the median time of `work`, divided by `units`.
fn measure(name: &str, what: &str, units: usize, mut work: impl FnMut()) {
    work();
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            work();
            begin.elapsed().as_nanos() as f64 / units as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{name:<12} {:>8.1} ns a {what}", times[ROUNDS / 2]);
}

fn large() -> (VirtioNetHdr, HeapBytes) {
    let (header, bytes) = sample::Tcp::data(false, vec![5; SEGMENTS * 1448]).offloaded(1448);
    (header, HeapBytes(bytes))
}

fn segment() {
    let (header, frame) = large();
    let mut out = vec![0; 1514];
    measure("segment", "segment", SEGMENTS * 200, || {
        for _ in 0..200 {
            let plan = Plan::new(&header, &frame, 1500).expect("an honest frame");
            for index in 0..plan.frames() {
                let len = plan.frame_len(index);
                plan.write(index, &frame, &mut out[..len]);
            }
        }
    });
}

/// What is looked at of every frame.
fn headers() {
    const LOOKS: usize = 10_000;
    for (what, v6) in [("TCP over IPv4", false), ("TCP over IPv6", true)] {
        let frame = sample::Tcp::data(v6, vec![5; 6]).bytes();
        measure("headers", &format!("frame parsed, {what}"), LOOKS, || {
            for _ in 0..LOOKS {
                black_box(Layout::parse(black_box(&frame)));
            }
        });
        let layout = Layout::parse(&frame).expect("a frame");
        measure("headers", &format!("flow hashed, {what}"), LOOKS, || {
            for _ in 0..LOOKS {
                black_box(black_box(&layout).flow_hash());
            }
        });
    }
    let bytes = vec![5; 1448];
    measure("checksum", "segment of 1448 bytes", LOOKS, || {
        for _ in 0..LOOKS {
            black_box(Sum::ZERO.bytes(black_box(&bytes)));
        }
    });
    let (header, frame) = large();
    measure("segment", "large frame judged", LOOKS, || {
        for _ in 0..LOOKS {
            black_box(Plan::new(black_box(&header), &frame, 1500).expect("an honest frame"));
        }
    });
}

fn switch() {
    const LOOKS: usize = 10_000;
    let mut switch = Switch::default();
    let station = |nth: u8| Mac([2, 0, 0, 0, 0, nth]);
    for slot in 0..4 {
        switch.reserve_port();
        switch.learn(station(slot), slot.into()).expect("nobody else's");
    }
    measure("switch", "frame's destination, four guests", LOOKS, || {
        for nth in 0..LOOKS {
            black_box(switch.destination(black_box(station(nth as u8 % 5))));
        }
    });
    measure("switch", "frame's sender, four guests", LOOKS, || {
        for nth in 0..LOOKS {
            let slot = nth % 4;
            black_box(switch.learn(black_box(station(slot as u8)), slot)).expect("its own");
        }
    });
}

/// A received frame that costs nothing to make.
#[derive(Clone, Copy)]
struct Lent(&'static [u8]);

impl Frame for Lent {
    fn bytes(&self) -> &[u8] {
        self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut []
    }
}

fn received(flows: usize) -> Vec<Lent> {
    let mut segments = Vec::new();
    for nth in 0..SEGMENTS {
        let mut segment = sample::Tcp::data(false, vec![5; 1448]);
        (segment.source, segment.destination) = (sample::CLIENT, sample::GUEST);
        segment.ports.0 += (nth % flows) as u16;
        segment.sequence = segment.sequence.wrapping_add((nth / flows * 1448) as u32);
        segments.push(Lent(segment.bytes().leak()));
    }
    segments
}

fn coalesce() {
    for flows in [1, 8, SEGMENTS] {
        let frames = received(flows);
        let mut burst = Burst::new();
        let mut merged = 0;
        measure("coalesce", &format!("segment, {flows} flows a burst"), SEGMENTS * 200, || {
            for _ in 0..200 {
                burst.fill(OFFLOADS, &mut frames.iter().copied());
                burst.deliver(&mut |_, parts, _| {
                    merged += parts.len();
                    true
                });
            }
        });
        assert!(merged > 0);
    }
}

/// A guest that sends a large frame as long as it is allowed to.
struct Replaying {
    frame: (VirtioNetHdr, HeapBytes),
    allowance: Arc<AtomicUsize>,
    buffer: Vec<u8>,
}

impl GuestPort for Replaying {
    fn poll_control(&mut self) {}

    fn is_running(&self) -> bool {
        true
    }

    fn offloads(&self) -> Offloads {
        OFFLOADS
    }

    fn capture(
        &mut self,
        max: usize,
        sink: &mut dyn FnMut(&VirtioNetHdr, &dyn GuestFrame) -> Verdict,
    ) -> usize {
        let mut taken = 0;
        while taken < max && self.allowance.load(Ordering::Relaxed) > 0 {
            if sink(&self.frame.0, &self.frame.1) == Verdict::Refused {
                break;
            }
            self.allowance.fetch_sub(1, Ordering::Relaxed);
            taken += 1;
        }
        taken
    }

    fn deliver(&mut self, _header: &VirtioNetHdr, parts: &[&[u8]]) -> bool {
        let mut at = 0;
        for part in parts {
            self.buffer[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        true
    }

    fn flush(&mut self) {}

    fn arm(&mut self, _capturing: bool, _delivering: bool) -> bool {
        false
    }

    fn disarm(&mut self) {}

    fn kick_fds<'a>(&'a self, _take: &mut dyn FnMut(BorrowedFd<'a>)) {}
}

struct Bench {
    core: Core<HeapWire>,
    handle: Handle,
    peer: HeapPeer,
    allowance: Arc<AtomicUsize>,
}

impl Bench {
    /// A guest that sends this frame.
    fn new(frame: (VirtioNetHdr, HeapBytes)) -> Self {
        let (wire, peer) = HeapWire::new(1500, 16 * 1024, false).expect("a wire");
        let (core, handle) = Core::new(vec![wire], IdlePolicy::Poll, None).expect("a core");
        let allowance: Arc<AtomicUsize> = Arc::default();
        let guest = Replaying { frame, allowance: Arc::clone(&allowance), buffer: vec![0; 1 << 17] };
        let mut bench = Self { core, handle, peer, allowance };
        bench.command(|handle| {
            handle.add_port(PortId(1), Box::new(guest), PortConfig::default()).expect("a port");
        });
        bench
    }

    /// Gives a command from another thread, as it blocks.
    fn command(&mut self, give: impl FnOnce(Handle) + Send + 'static) {
        let handle = self.handle.clone();
        let giver = std::thread::spawn(move || give(handle));
        while !giver.is_finished() {
            self.core.turn();
        }
        giver.join().expect("the command was obeyed");
    }

    fn send(&mut self, frames: usize) {
        self.allowance.store(frames, Ordering::Relaxed);
        while self.core.turn() > 0 {}
    }
}

fn token(epoch: u64) -> ReleaseToken {
    let (term, id, digest) = (Term::new(1), EpochId::new(epoch), Digest([1; 32]));
    let (sealed, _) = Epoch::open(term, id).seal(());
    let word = Confirmation { term, epoch: id, digest };
    let sent = sealed.replicated(digest, |()| ());
    let (done, ()) = sent.commit(&word).map_err(|(_, fault)| fault).expect("the right word");
    done.into_release_token()
}

fn native() {
    let mut bench = Bench::new(large());
    measure("capture", "segment, native, with routing and transmission", SEGMENTS * 100, || {
        bench.send(100);
        assert_eq!(bench.peer.drop_sent(), SEGMENTS * 100);
    });
    let frames = received(1);
    bench.core.turn();
    measure("deliver", "segment, received, merged, copied to the guest", SEGMENTS * 20, || {
        for _ in 0..20 {
            for frame in &frames {
                assert!(bench.peer.put(frame.bytes()));
            }
            while bench.core.turn() > 0 {}
        }
    });
}

/// Epochs of `frames` frames, which make `units` packets.
fn commit(what: &str, frame: (VirtioNetHdr, HeapBytes), frames: usize, units: usize) {
    let mut bench = Bench::new(frame);
    let first = EpochId::FIRST;
    bench.command(move |handle| handle.set_mode(&PORT, Mode::Commit { first }).expect("protected"));
    let mut epoch = 0;
    measure("epoch", &format!("{what}, captured, held, cut, released, sent"), units, || {
        epoch += 1;
        bench.send(frames);
        bench.command(move |handle| {
            handle.cut(&PORT, EpochId::new(epoch), false).expect("cut");
            handle.release(&PORT, token(epoch)).expect("released");
        });
        while bench.core.turn() > 0 {}
        assert_eq!(bench.peer.drop_sent(), units);
    });
}

/// A frame of 60 bytes, which waits in the ring of small ones.
fn small() -> (VirtioNetHdr, HeapBytes) {
    (VirtioNetHdr::default(), HeapBytes(sample::Tcp::data(false, vec![5; 6]).bytes()))
}

/// Handles of frames, as long as a frame's own, without the frames.
fn escrow() {
    const HELD: usize = 10_000;
    let mut escrow = Escrow::<(usize, u64)>::new(Limits::default());
    escrow.protect(EpochId::FIRST).expect("nothing is sealed");
    let mut out = VecDeque::with_capacity(HELD);
    let mut epoch = 0;
    measure("escrow", "frame, held, cut, released", HELD, || {
        epoch += 1;
        for nth in 0..HELD {
            assert!(escrow.hold((nth, 0), 60).is_none());
        }
        escrow.cut(EpochId::new(epoch)).expect("in order");
        escrow.release(&token(epoch), &mut out, &mut |_, _| {}).expect("sealed");
        out.clear();
    });
}

fn steering() {
    const FRAMES: u32 = 10_000;
    let mut steering = Steering::default();
    let takes = Pairs::from_bits(0b1111);
    for flows in [64, 4096] {
        let flow = |nth: u32| (nth % flows).wrapping_mul(0x9e37_79b9);
        measure("steering", &format!("frame sent, {flows} flows"), FRAMES as usize, || {
            for nth in 0..FRAMES {
                steering.sent(black_box(flow(nth)), 1);
            }
        });
        measure("steering", &format!("frame received, {flows} flows"), FRAMES as usize, || {
            for nth in 0..FRAMES {
                black_box(steering.pair(black_box(flow(nth)), takes));
            }
        });
    }
}

fn idle() {
    let mut bench = Bench::new(large());
    measure("idle", "turn that finds nothing", 10_000, || {
        for _ in 0..10_000 {
            bench.core.turn();
        }
    });
}

fn main() {
    headers();
    switch();
    segment();
    coalesce();
    native();
    commit("segment", large(), 100, SEGMENTS * 100);
    commit("frame of 60 bytes", small(), 4000, 4000);
    escrow();
    steering();
    idle();
}
