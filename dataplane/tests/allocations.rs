//! The hot path allocates nothing: a counting allocator watches the turns of a core.

use holdfast_dataplane::guest::{GuestFrame, GuestPort, Offloads, Verdict, VirtioNetHdr};
use holdfast_dataplane::heap::{HeapBytes, HeapPeer, HeapWire};
use holdfast_dataplane::sample::Offloaded;
use holdfast_dataplane::{Core, EngineConfig, Handle, IdlePolicy, Limits, Mode, PortConfig, PortId, sample};
use holdfast_epoch::{Confirmation, Digest, Epoch, EpochId, ReleaseToken, Term};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Allocations of this thread while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = holdfast_counting::allocations_here();
    work();
    holdfast_counting::allocations_here() - before
}

/// A guest that sends the same frames again and again while it has an allowance, and counts what it
/// receives.
struct Replaying {
    frames: Vec<(VirtioNetHdr, HeapBytes)>,
    next: usize,
    allowance: Arc<AtomicUsize>,
    received: Arc<AtomicUsize>,
}

impl GuestPort for Replaying {
    fn poll_control(&mut self) {}

    fn is_running(&self) -> bool {
        true
    }

    fn offloads(&self) -> Offloads {
        Offloads { checksum: true, tso4: true, tso6: true }
    }

    fn capture(
        &mut self,
        max: usize,
        sink: &mut dyn FnMut(&VirtioNetHdr, &dyn GuestFrame) -> Verdict,
    ) -> usize {
        let mut taken = 0;
        while taken < max && self.allowance.load(Ordering::Relaxed) > 0 {
            let left = self.allowance.load(Ordering::Relaxed);
            let (header, frame) = &self.frames[self.next];
            if sink(header, frame) == Verdict::Refused {
                break;
            }
            self.next = (self.next + 1) % self.frames.len();
            self.allowance.store(left - 1, Ordering::Relaxed);
            taken += 1;
        }
        taken
    }

    fn deliver(&mut self, _header: &VirtioNetHdr, parts: &[&[u8]]) -> bool {
        assert!(!parts.is_empty());
        self.received.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn flush(&mut self) {}

    fn arm(&mut self, _capturing: bool, _delivering: bool) -> bool {
        false
    }

    fn disarm(&mut self) {}

    fn kick_fds<'a>(&'a self, _take: &mut dyn FnMut(BorrowedFd<'a>)) {}
}

const PORT: [PortId; 1] = [PortId(1)];

struct Bench {
    core: Core<HeapWire>,
    handle: Handle,
    peer: HeapPeer,
    allowance: Arc<AtomicUsize>,
    received: Arc<AtomicUsize>,
}

impl Bench {
    fn new(frames: Vec<(VirtioNetHdr, HeapBytes)>) -> Self {
        Self::with(frames, None)
    }

    fn with(frames: Vec<(VirtioNetHdr, HeapBytes)>, speculation: Option<Box<EngineConfig>>) -> Self {
        let (wire, peer) = HeapWire::new(1500, 16 * 1024, false).expect("a wire");
        let (core, handle) = Core::new(vec![wire], IdlePolicy::Poll, None).expect("a core");
        let (allowance, received) = (Arc::default(), Arc::default());
        let guest =
            Replaying { frames, next: 0, allowance: Arc::clone(&allowance), received: Arc::clone(&received) };
        let mut bench = Self { core, handle, peer, allowance, received };
        let limits = Limits { frames: 12 * 1024, ..Limits::default() };
        let config = PortConfig { limits, speculation, ..PortConfig::default() };
        bench.command(move |handle| handle.add_port(PortId(1), Box::new(guest), config).expect("a port"));
        bench
    }

    /// Gives a command from another thread, as it blocks; returns the core's allocations for it.
    fn command(&mut self, give: impl FnOnce(Handle) + Send + 'static) -> u64 {
        let handle = self.handle.clone();
        let giver = std::thread::spawn(move || give(handle));
        let mut allocated = 0;
        while !giver.is_finished() {
            let core = &mut self.core;
            allocated += allocations(|| {
                core.turn();
            });
        }
        giver.join().expect("the command was obeyed");
        allocated
    }

    /// Lets the guest send `frames` frames and the core turn until nothing happens; returns its
    /// allocations.
    fn send(&mut self, frames: usize) -> u64 {
        self.allowance.store(frames, Ordering::Relaxed);
        let core = &mut self.core;
        allocations(|| while core.turn() > 0 {})
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

fn traffic() -> Vec<(VirtioNetHdr, HeapBytes)> {
    let large = |v6| {
        let (header, bytes) = sample::Tcp::data(v6, vec![5; 60_000]).offloaded(1400);
        (header, HeapBytes(bytes))
    };
    let small = sample::opaque(sample::CLIENT, sample::GUEST, 100, 1);
    let arp = sample::arp(sample::GUEST, [10, 0, 0, 2]);
    let plain = |bytes| (VirtioNetHdr::default(), HeapBytes(bytes));
    vec![large(false), plain(small), large(true), plain(arp)]
}

#[test]
fn capture_and_transmission_allocate_nothing() {
    let mut bench = Bench::new(traffic());
    bench.send(8);
    bench.peer.drop_sent();
    assert_eq!(bench.send(400), 0);
    assert!(bench.peer.drop_sent() > 8_000);
}

#[test]
fn escrow_allocates_nothing_and_a_release_no_more_for_many_frames_than_for_few() {
    let mut bench = Bench::new(traffic());
    bench
        .command(|handle| handle.set_mode(&PORT, Mode::Commit { first: EpochId::FIRST }).expect("protected"));
    bench.send(4);
    let mut spent = Vec::new();
    for (epoch, frames) in [(1, 4), (2, 4), (3, 400), (4, 4)] {
        if epoch > 1 {
            assert_eq!(bench.send(frames), 0, "capture into the escrow");
        }
        let cut = bench.command(move |handle| {
            handle.cut(&PORT, EpochId::new(epoch), false).expect("cut");
        });
        assert_eq!(bench.peer.drop_sent(), 0);
        let release = bench.command(move |handle| {
            handle.release(&PORT, token(epoch)).expect("released");
        });
        assert_eq!(bench.send(0), 0, "transmission of what was released");
        assert!(bench.peer.drop_sent() >= 2 * frames);
        spent.push((cut, release));
    }
    assert_eq!(spent[1], spent[2], "a release of 100 times the frames");
    assert!(spent[2].0 + spent[2].1 < 20, "{spent:?}");
}

#[test]
fn merging_and_delivery_allocate_nothing() {
    let mut bench = Bench::new(traffic());
    bench.send(4);
    let mut segment = sample::Tcp::data(false, vec![3; 1400]);
    (segment.source, segment.destination) = (sample::CLIENT, sample::GUEST);
    let mut round = |bench: &mut Bench| {
        for _ in 0..500 {
            assert!(bench.peer.put(&segment.bytes()));
            segment.sequence = segment.sequence.wrapping_add(1400);
        }
        bench.send(0)
    };
    round(&mut bench);
    let before = bench.received.load(Ordering::Relaxed);
    assert_eq!(round(&mut bench), 0);
    let frames = bench.received.load(Ordering::Relaxed) - before;
    assert!((8..100).contains(&frames), "{frames} frames for 500 segments");
}

const GUEST_ISS: u32 = 1000;
const CLIENT_ISS: u32 = 7000;

/// What a guest that serves one client sends: its half of the handshake, then a stream of segments.
fn serving(segments: u32) -> Vec<(VirtioNetHdr, HeapBytes)> {
    let base =
        sample::Tcp { acknowledgement: CLIENT_ISS + 1, options: vec![], ..sample::Tcp::data(false, vec![]) };
    let hello = sample::Tcp { flags: 0x12, sequence: GUEST_ISS, options: vec![2, 4, 5, 180], ..base.clone() };
    let data = |nth: u32| {
        let sequence = GUEST_ISS + 1 + nth * 1000;
        sample::Tcp { sequence, payload: vec![nth as u8; 1000], ..base.clone() }.bytes()
    };
    let plain = |bytes| (VirtioNetHdr::default(), HeapBytes(bytes));
    std::iter::once(plain(sample::arp(sample::GUEST, [10, 0, 0, 2])))
        .chain(std::iter::once(plain(hello.bytes())))
        .chain((0..segments).map(|nth| plain(data(nth))))
        .collect()
}

/// A segment of that guest's client.
fn of_client(flags: u8, sequence: u32, acknowledgement: u32) -> Vec<u8> {
    let options = if flags & 2 != 0 { vec![2, 4, 5, 180] } else { vec![] };
    let guest = sample::Tcp::data(false, vec![]);
    let segment = sample::Tcp {
        flags,
        sequence,
        acknowledgement,
        options,
        window: 65535,
        destination: guest.source,
        source: guest.destination,
        ports: (guest.ports.1, guest.ports.0),
        ..guest
    };
    let mut bytes = segment.bytes();
    bytes[26..34].copy_from_slice(&[10, 0, 0, 9, 10, 0, 0, 2]);
    sample::complete(&mut bytes, segment.transport(), false);
    bytes
}

/// The whole way of a speculating flow: taken, streamed, acknowledged, sent, confirmed.
#[test]
fn a_speculating_flow_allocates_nothing() {
    let mut bench = Bench::with(serving(120), Some(Box::default()));
    let (give, take) = std::sync::mpsc::channel();
    bench.command(move |handle| {
        give.send(handle.stream(&PORT).expect("a stream")).expect("taken");
        handle.speculate(&PORT, true).expect("wanted");
        handle.set_mode(&PORT, Mode::Commit { first: EpochId::FIRST }).expect("protected");
    });
    let stream = take.recv().expect("a stream");
    bench.send(1);
    assert!(bench.peer.put(&of_client(2, CLIENT_ISS, 0)));
    bench.send(1);
    let mut spent = 0;
    for epoch in 1..=12u32 {
        bench.command(move |handle| {
            handle.cut(&PORT, EpochId::new(epoch.into()), false).expect("cut");
        });
        bench.command(move |handle| {
            handle.release(&PORT, token(epoch.into())).expect("released");
        });
        let confirmed = GUEST_ISS + 1 + (epoch - 1) * 10_000;
        // Ten segments of the guest are seven of the wire; they are paced by the clock.
        let (mut sent, began) = (0, Instant::now());
        while sent < if epoch == 1 { 2 } else { 7 } {
            spent += bench.send(0);
            sent += bench.peer.drop_sent();
            assert!(began.elapsed() < Duration::from_secs(10), "{sent} frames in epoch {epoch}");
        }
        assert!(bench.peer.put(&of_client(0x10, CLIENT_ISS + 1, confirmed)));
        let before = bench.received.load(Ordering::Relaxed);
        spent += bench.send(10);
        assert!(bench.received.load(Ordering::Relaxed) > before, "nothing was acknowledged in epoch {epoch}");
        for chunk in stream.chunks.try_iter() {
            stream.spare.try_send(chunk.bytes).expect("room for what came from there");
        }
        // The first rounds fill what is kept for later.
        if epoch == 2 {
            spent = 0;
        }
    }
    assert_eq!(spent, 0);
}
