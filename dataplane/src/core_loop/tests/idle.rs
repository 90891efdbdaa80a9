//! For how long an idle core sleeps: what is due is not missed, whether it may transmit or not.
//!
//! The core is turned by hand, so that each of its sleeps can be asked for.

use super::ends::End;
use super::*;
use crate::stream::Stream;
use holdfast_speculation::EngineConfig;
use std::sync::atomic::AtomicU64;

/// As in `idle`.
const LONG: Duration = Duration::from_millis(200);
const FULL: Duration = Duration::from_micros(200);
const LEASE: Duration = Duration::from_micros(500);

/// A protected, speculating guest with one connection, on a core that turns when it is told to.
struct Still {
    core: Core<HeapWire>,
    handle: Handle,
    peer: HeapPeer,
    driver: HeapDriver,
    stream: Stream,
    lease: Arc<AtomicU64>,
    guest: End,
    client: End,
    epoch: u64,
}

impl Still {
    fn new() -> Self {
        let (wire, peer) = HeapWire::new(1500, 4096, true).expect("a wire");
        let (mut core, handle) = Core::new(vec![wire], IdlePolicy::default(), None).expect("a core");
        let (port, driver) = HeapGuest::new().expect("a guest");
        let engine = EngineConfig { max_flows: 64, held_bytes: 1 << 20, ..EngineConfig::default() };
        let config = PortConfig { speculation: Some(Box::new(engine)), ..PortConfig::default() };
        let (stream, lease) = asked(&mut core, &handle, |handle| {
            handle.add_port(PortId(1), Box::new(port), config).expect("a port");
            handle.speculate(&ONE, true).expect("wanted");
            handle.set_mode(&ONE, COMMIT).expect("protected");
            (handle.stream(&ONE).expect("a stream"), handle.lease(&ONE).expect("a lease"))
        });
        let (guest, client) = (End::new(1), End::new(11));
        let mut still = Self { core, handle, peer, driver, stream, lease, guest, client, epoch: 1 };
        still.driver.send(sample::arp(still.guest.mac, still.guest.ip));
        still.turn();
        let syn = still.client.syn(&still.guest);
        still.peer.put(&syn);
        still.turn();
        still.hear();
        let answer = still.guest.syn_ack(&still.client);
        still.driver.send(answer);
        still.commit();
        still.turn();
        still.hear();
        let confirmation = still.client.ack(&still.guest);
        still.peer.put(&confirmation);
        still.turn();
        still.hear();
        assert_eq!(still.patience(), LONG, "nothing is due");
        still
    }

    fn turn(&mut self) {
        while self.core.turn() > 0 {}
    }

    fn hear(&mut self) {
        for (_, frame) in self.driver.take() {
            self.guest.hear(&self.client, &frame);
        }
        for frame in self.peer.take() {
            self.client.hear(&self.guest, &frame);
        }
    }

    fn commit(&mut self) {
        let epoch = self.epoch;
        asked(&mut self.core, &self.handle, |handle| {
            // What the guest has sent by now belongs to it.
            (0..9).for_each(|_| drop(handle.status(&[]).expect("the core answers")));
            handle.cut(&ONE, EpochId::new(epoch), false).expect("cut");
            handle.release(&ONE, token(1, epoch)).expect("released");
        });
        self.epoch += 1;
    }

    fn send(&mut self, len: usize) {
        let data = self.guest.data(&self.client, len);
        self.driver.send(data);
    }

    fn patience(&self) -> Duration {
        self.core.patience(false, 0)
    }

    /// From now until the engine's next deadline.
    fn until_due(&self) -> Duration {
        let due = self.core.ports[0].speculating.as_ref().and_then(|speculating| speculating.due_ns());
        Duration::from_nanos(due.expect("something is due").saturating_sub(monotonic_ns()))
    }

    fn forbid(&self) {
        self.lease.store(monotonic_ns(), Ordering::Release);
    }

    fn permit(&self) {
        self.lease.store(monotonic_ns() + 3_600_000_000_000, Ordering::Release);
    }
}

/// FO-1, SP-3: a timeout that falls due while the lease has run out asks nobody anything, is looked at again
/// and again without a busy loop, and is done in the first turn after the lease came back.
#[test]
fn a_timeout_that_falls_due_without_a_lease_is_done_as_soon_as_there_is_one() {
    let mut still = Still::new();
    still.send(1000);
    still.commit();
    still.turn();
    still.hear();
    assert_eq!(still.client.got, still.guest.content(0..1000), "sent once");
    let (patience, due) = (still.patience(), still.until_due());
    assert!(patience > LEASE && patience >= due.min(LONG), "{patience:?} of {due:?}");
    still.forbid();
    let (patience, due) = (still.patience(), still.until_due());
    assert!(patience > LEASE && patience >= due.min(LONG), "nothing is due yet: {patience:?} of {due:?}");
    thread::sleep(still.until_due());
    for _ in 0..3 {
        assert_eq!(still.core.turn(), 0);
        assert_eq!(still.until_due(), Duration::ZERO, "it stays due");
        assert_eq!(still.patience(), LEASE, "neither a busy loop nor a long sleep");
        assert_eq!(still.peer.take(), Vec::<Vec<u8>>::new(), "no lease");
    }
    still.permit();
    assert_eq!(still.patience(), Duration::ZERO);
    assert!(still.core.turn() > 0);
    let again = still.peer.take();
    assert_eq!(again.len(), 1, "the first turn sends it again");
    assert_eq!(again[0][54..], still.client.got);
    assert!(still.until_due() > LEASE && still.patience() > LEASE, "and waits anew");
}

/// FO-1: what was committed while the lease had run out is looked at again soon, and leaves with the lease.
#[test]
fn what_commits_without_a_lease_leaves_as_soon_as_there_is_one() {
    let mut still = Still::new();
    still.forbid();
    still.send(1000);
    still.commit();
    still.turn();
    still.hear();
    assert!(still.client.got.is_empty());
    assert_eq!(still.patience(), LEASE);
    still.permit();
    assert!(still.patience() <= FULL);
    assert!(still.core.turn() > 0);
    still.hear();
    assert_eq!(still.client.got, still.guest.content(0..1000));
}

/// SP-2: bytes that wait for a buffer of the stream are looked at again soon; a fenced port, which may do
/// nothing, is not.
#[test]
fn a_stream_without_buffers_is_looked_at_soon_and_a_fenced_port_is_not() {
    let mut still = Still::new();
    // Each chunk waits a little for more.
    while !still.stream.chunks.is_full() {
        still.send(10);
        let chunks = still.stream.chunks.len();
        wait_until(|| {
            still.turn();
            still.stream.chunks.len() > chunks
        });
    }
    for _ in 0..10 {
        still.send(10);
        still.turn();
    }
    still.hear();
    assert!(still.guest.room() < 60_000 && still.patience() == FULL, "{:?}", still.patience());
    let chunk = still.stream.chunks.try_recv().expect("streamed");
    let acked = still.guest.acked;
    still.stream.spare.send(chunk.bytes).expect("given back");
    still.turn();
    still.hear();
    assert!(still.guest.acked > acked);
    asked(&mut still.core, &still.handle, |handle| handle.fence(&ONE).expect("fenced"));
    assert_eq!(still.patience(), LONG);
}
