mod backlog;
mod ends;
mod guest_channel;
mod idle;
mod local;
mod neighbours;
mod speculation;

use super::*;
use crate::counters::{DropReason, PortCounter};
use crate::escrow::tests::token;
use crate::escrow::{EscrowError, Limits};
use crate::guest::VirtioNetHdr;
use crate::handle::{GateError, Mode, PortConfig};
use crate::heap::{HeapDriver, HeapGuest, HeapPeer, HeapWire};
use crate::kept::{KeptError, KeptPorts};
use crate::sample;
use crate::sample::Offloaded;
use holdfast_epoch::{EpochId, Term};
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

/// A core on its own thread, with one wire.
struct Running {
    handle: Handle,
    peer: HeapPeer,
    thread: Option<JoinHandle<Core<HeapWire>>>,
}

impl Running {
    fn new() -> Self {
        Self::with(4096, None)
    }

    fn with(frames: usize, audit: Option<Audit>) -> Self {
        let (wire, peer) = HeapWire::new(1500, frames, true).expect("a wire");
        let idle = IdlePolicy::Adaptive { spin: Duration::from_micros(50) };
        let (mut core, handle) = Core::new(vec![wire], idle, audit).expect("a core");
        let thread = thread::spawn(move || {
            core.run();
            core
        });
        Self { handle, peer, thread: Some(thread) }
    }

    /// Stops the core, so that a test turns it by hand.
    fn halt(&mut self) -> Core<HeapWire> {
        self.handle.stop();
        self.thread.take().expect("it runs").join().expect("the core panicked")
    }

    fn port(&self, number: u16, config: PortConfig) -> HeapDriver {
        let (guest, driver) = HeapGuest::new().expect("a guest");
        self.handle.add_port(PortId(number), Box::new(guest), config).expect("a port");
        driver
    }

    /// Waits for two whole turns of the core: what was there before has been dealt with. Several
    /// commands may be served in one turn.
    fn settle(&self) {
        for _ in 0..9 {
            drop(self.handle.status(&[]).expect("the core answers"));
        }
    }

    /// Waits until `count` frames have come out at the far end of the wire.
    fn wire(&self, count: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        wait_until(|| {
            frames.extend(self.peer.take());
            frames.len() >= count
        });
        frames
    }

    fn drops(&self, port: u16, reason: DropReason) -> u64 {
        self.handle.port_counters(PortId(port)).expect("a port").drops.get(reason)
    }

    fn count(&self, port: u16, counter: PortCounter) -> u64 {
        self.handle.port_counters(PortId(port)).expect("a port").events.get(counter)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || !matches!(ended, Some(Err(_))), "the core panicked");
    }
}

/// Turns the core until a control thread's call has returned.
fn asked<T: Send>(core: &mut Core<HeapWire>, handle: &Handle, call: impl FnOnce(&Handle) -> T + Send) -> T {
    thread::scope(|scope| {
        let asking = scope.spawn(|| call(handle));
        while !asking.is_finished() {
            core.turn();
        }
        asking.join().expect("no panic")
    })
}

/// Waits for something that another thread does, and fails when it does not happen.
fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "it did not happen in time");
        thread::yield_now();
    }
}

fn mac(guest: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, guest]
}

fn frame(from: u8, fill: u8) -> Vec<u8> {
    sample::opaque(sample::CLIENT, mac(from), 64, fill)
}

const COMMIT: Mode = Mode::Commit { first: EpochId::FIRST };
const ONE: [PortId; 1] = [PortId(1)];

/// The bell is rung once an epoch, by the first output of a protected guest, whichever port it uses.
#[test]
fn the_first_output_of_an_epoch_is_told() {
    let core = Running::new();
    let guests = [core.port(1, PortConfig::default()), core.port(2, PortConfig::default())];
    let both = [PortId(1), PortId(2)];
    let output = core.handle.output(&both).expect("a bell");
    guests[0].send(frame(1, 1));
    core.wire(1);
    assert!(output.try_recv().is_err(), "nobody waits for the output of a port that holds nothing");

    core.handle.set_mode(&both, COMMIT).expect("protected");
    for epoch in 1..4 {
        let guest = 1 + (epoch % 2) as u8;
        guests[usize::from(guest) - 1].send(frame(guest, 0));
        output.recv_timeout(Duration::from_secs(10)).expect("told");
        guests[usize::from(guest) - 1].send(frame(guest, 1));
        core.settle();
        assert!(output.try_recv().is_err(), "told once");
        let report = core.handle.cut(&both, EpochId::new(epoch), false).expect("a cut");
        assert_eq!(report.frames, 2);
    }
}

/// A wire that cuts gets large frames whole from a port that holds nothing, in their order among the others;
/// with a header that was judged, whatever the guest wrote.
#[test]
fn large_frames_pass_a_native_port_whole_where_the_wire_cuts_them() {
    let core = Running::new();
    let guest = core.port(1, PortConfig::default());
    core.peer.accept_large();
    for v6 in [false, true] {
        let segment = sample::Tcp::data(v6, vec![7; 5000]);
        let (header, bytes) = segment.offloaded(1000);
        let lying = VirtioNetHdr { hdr_len: 9, num_buffers: 3, ..header };
        guest.send_offloaded(lying, bytes.clone());
        wait_until(|| core.count(1, PortCounter::Captured) == 1 + u64::from(v6));
        core.settle();
        let expected = VirtioNetHdr { hdr_len: segment.headers() as u16, num_buffers: 0, ..header };
        assert_eq!(core.peer.take_large(), [(expected, bytes)]);
        assert_eq!(core.peer.take(), Vec::<Vec<u8>>::new());
    }
    assert_eq!(core.count(1, PortCounter::Sent), 10);

    // RB-1: what a card would not cut is dropped, and one that another port is to have is not let out.
    let (header, bytes) = sample::Tcp::data(false, vec![7; 5000]).offloaded(1000);
    guest.send_offloaded(VirtioNetHdr { gso_size: 3000, ..header }, bytes.clone());
    wait_until(|| core.drops(1, DropReason::Oversize) == 1);
    let neighbour = core.port(2, PortConfig::default());
    neighbour.send(sample::opaque(mac(9), sample::CLIENT, 64, 0));
    core.wire(1);
    guest.send_offloaded(header, bytes);
    wait_until(|| core.count(2, PortCounter::Delivered) > 0);
    assert_eq!(core.peer.take_large(), []);
}

/// OC-1, OC-2: a large frame neither leaves a port that holds nor overtakes what waits.
#[test]
fn a_large_frame_is_cut_and_waits_where_others_do() {
    let core = Running::new();
    let guest = core.port(1, PortConfig::default());
    core.peer.accept_large();
    let (header, bytes) = sample::Tcp::data(false, vec![7; 5000]).offloaded(1000);
    core.peer.set_room(Some(0));
    guest.send(frame(1, 1));
    wait_until(|| core.count(1, PortCounter::Captured) == 1);
    guest.send_offloaded(header, bytes.clone());
    wait_until(|| core.count(1, PortCounter::Captured) == 2);
    core.peer.set_room(None);
    assert_eq!(core.wire(6).len(), 6);
    assert_eq!(core.peer.take_large(), []);

    core.handle.set_mode(&ONE, COMMIT).expect("protected");
    guest.send_offloaded(header, bytes);
    wait_until(|| core.count(1, PortCounter::Captured) == 3);
    core.settle();
    assert_eq!((core.peer.take(), core.peer.take_large()), (vec![], vec![]));
    core.handle.cut(&ONE, EpochId::FIRST, false).expect("a cut");
    core.handle.release(&ONE, token(1, 1)).expect("a commit");
    assert_eq!(core.wire(5).len(), 5);
    assert_eq!(core.peer.take_large(), []);
}

#[test]
fn a_native_port_sends_at_once_and_in_bursts() {
    let core = Running::new();
    let guest = core.port(1, PortConfig::default());
    let sent: Vec<_> = (0..200).map(|nth| frame(1, nth as u8)).collect();
    sent.iter().for_each(|bytes| guest.send(bytes.clone()));
    assert_eq!(core.wire(200), sent);
    assert!(core.peer.bursts().1 <= BURST);
}

/// OC-1: nothing that a protected guest sent is on the wire before the release of its epoch, and then
/// all of that epoch is, and nothing of the next.
#[test]
fn output_is_withheld_until_its_epoch_commits() {
    let core = Running::new();
    let guest = core.port(1, PortConfig::default());
    core.handle.set_mode(&ONE, COMMIT).expect("protected");
    guest.send(frame(1, 1));
    guest.send(frame(1, 2));
    wait_until(|| core.count(1, PortCounter::Captured) == 2);
    let report = core.handle.cut(&ONE, EpochId::new(1), false).expect("cut");
    assert_eq!((report.frames, report.bytes), (2, 128));
    guest.send(frame(1, 3));
    wait_until(|| core.count(1, PortCounter::Captured) == 3);
    core.settle();
    assert_eq!(core.peer.take(), Vec::<Vec<u8>>::new(), "nothing was committed");

    let early =
        GateError::Escrow { port: PortId(1), error: EscrowError::NotSealed { epoch: EpochId::new(2) } };
    assert_eq!(core.handle.release(&ONE, token(1, 2)), Err(early));
    core.settle();
    assert_eq!(core.peer.take(), Vec::<Vec<u8>>::new(), "an early token opens nothing");

    core.handle.release(&ONE, token(1, 1)).expect("released");
    assert_eq!(core.wire(2), [frame(1, 1), frame(1, 2)]);
    core.settle();
    assert_eq!(core.peer.take(), Vec::<Vec<u8>>::new(), "epoch 2 runs");
    core.handle.cut(&ONE, EpochId::new(2), false).expect("cut");
    core.handle.release(&ONE, token(1, 2)).expect("released");
    assert_eq!(core.wire(1), [frame(1, 3)]);
}

/// OC-1: what a protected guest says to another guest of the same host waits for its commit too.
#[test]
fn output_to_a_guest_of_the_same_host_is_withheld_too() {
    let core = Running::new();
    let (a, b) = (core.port(1, PortConfig::default()), core.port(2, PortConfig::default()));
    b.send(frame(2, 0));
    core.wire(1);
    core.handle.set_mode(&ONE, COMMIT).expect("protected");
    let to_b = sample::opaque(mac(2), mac(1), 64, 9);
    a.send(to_b.clone());
    a.send(sample::arp(mac(1), [10, 0, 0, 1]));
    wait_until(|| core.count(1, PortCounter::Captured) == 2);
    core.settle();
    assert!(b.take().is_empty());
    core.handle.cut(&ONE, EpochId::new(1), false).expect("cut");
    core.handle.release(&ONE, token(1, 1)).expect("released");
    let mut got = Vec::new();
    wait_until(|| {
        got.extend(b.take().into_iter().map(|(_, bytes)| bytes));
        got.len() == 2
    });
    assert_eq!(got[0], to_b);
    assert_eq!(core.wire(1), [sample::arp(mac(1), [10, 0, 0, 1])], "only the broadcast left the host");
}

/// OC-2: a wire that is full makes frames wait, in their order, and loses none.
#[test]
fn a_full_wire_delays_frames_and_keeps_their_order() {
    let core = Running::new();
    let guest = core.port(1, PortConfig::default());
    core.handle.set_mode(&ONE, COMMIT).expect("protected");
    let sent: Vec<_> = (0..300u32)
        .map(|nth| {
            let mut bytes = frame(1, 0);
            bytes[20..24].copy_from_slice(&nth.to_be_bytes());
            guest.send(bytes.clone());
            bytes
        })
        .collect();
    wait_until(|| core.count(1, PortCounter::Captured) == 300);
    core.handle.cut(&ONE, EpochId::new(1), false).expect("cut");
    core.peer.set_room(Some(7));
    core.handle.release(&ONE, token(1, 1)).expect("released");
    let mut got = Vec::new();
    for room in [7, 0, 1, 90, 13].into_iter().cycle() {
        if got.len() == sent.len() {
            break;
        }
        core.peer.set_room(Some(room));
        core.settle();
        got.extend(core.peer.take());
    }
    assert_eq!(got, sent);
}

/// RB-1: a guest that sends without end fills its own escrow, is made to wait, and loses nothing.
#[test]
fn a_full_escrow_makes_its_guest_wait_and_loses_nothing() {
    let core = Running::new();
    let limits = Limits { frames: 50, ..Limits::default() };
    let guest = core.port(1, PortConfig { limits, ..PortConfig::default() });
    let other = core.port(2, PortConfig::default());
    core.handle.set_mode(&ONE, COMMIT).expect("protected");
    (0..120).for_each(|nth| guest.send(frame(1, nth)));
    wait_until(|| core.count(1, PortCounter::Captured) == 50);
    core.settle();
    assert_eq!(guest.unsent(), 70);
    other.send(frame(2, 77));
    assert_eq!(core.wire(1), [frame(2, 77)], "another guest is not touched");
    let mut got = Vec::new();
    for epoch in 1.. {
        core.handle.cut(&ONE, EpochId::new(epoch), false).expect("cut");
        core.handle.release(&ONE, token(1, epoch)).expect("released");
        core.settle();
        got.extend(core.peer.take());
        if got.len() == 120 {
            break;
        }
    }
    assert_eq!(got, (0..120).map(|nth| frame(1, nth)).collect::<Vec<_>>());
}

/// FO-1: when the call of the fence returns nothing is transmitted any more, whatever was held,
/// released or is in the guest's ring; and only a newer term ends that.
#[test]
fn a_fenced_port_is_silent_until_a_newer_term() {
    let core = Running::new();
    let guest = core.port(1, PortConfig { fenced: true, ..PortConfig::default() });
    guest.send(frame(1, 1));
    core.settle();
    assert!(core.peer.take().is_empty(), "a standby's port begins silent");
    core.handle.unfence(&ONE, Term::new(3)).expect("a newer term");
    assert_eq!(core.wire(1), [frame(1, 1)]);

    core.handle.set_mode(&ONE, COMMIT).expect("protected");
    guest.send(frame(1, 2));
    wait_until(|| core.count(1, PortCounter::Captured) == 2);
    core.handle.cut(&ONE, EpochId::new(1), false).expect("cut");
    core.peer.set_room(Some(0));
    core.handle.release(&ONE, token(3, 1)).expect("released");
    let stranger = core.handle.fence(&[PortId(7), PortId(1)]).expect_err("there is no port 7");
    assert_eq!(stranger, GateError::UnknownPort { port: PortId(7) }, "and port 1 is fenced all the same");
    core.peer.set_room(None);
    guest.send(frame(1, 3));
    core.peer.put(&sample::opaque(mac(1), sample::CLIENT, 64, 5));
    core.handle.announce(&ONE).expect("asked");
    core.settle();
    assert!(core.peer.take().is_empty());
    assert!(guest.take().is_empty());
    assert_eq!(core.drops(1, DropReason::Fenced), 2, "one of the guest's, one for it");

    let old = EscrowError::OldTerm { found: Term::new(3), known: Term::new(3) };
    assert_eq!(
        core.handle.unfence(&ONE, Term::new(3)),
        Err(GateError::Escrow { port: PortId(1), error: old })
    );
    core.handle.unfence(&ONE, Term::new(4)).expect("a newer term");
    core.handle.set_mode(&ONE, Mode::Native).expect("solo");
    assert_eq!(core.wire(1), [frame(1, 3)], "only what the guest still had in its ring");
}

/// FO-1: a lease that has run out keeps everything back, native or released, until it is extended.
#[test]
fn a_port_whose_lease_has_run_out_is_silent() {
    let core = Running::new();
    let guest = core.port(1, PortConfig::default());
    let lease = core.handle.lease(&ONE).expect("a lease");
    guest.send(frame(1, 1));
    core.wire(1);
    lease.store(monotonic_ns(), Ordering::Release);
    guest.send(frame(1, 2));
    wait_until(|| core.count(1, PortCounter::LeaseHolds) > 0);
    core.settle();
    assert!(core.peer.take().is_empty());
    lease.store(monotonic_ns() + 60_000_000_000, Ordering::Release);
    assert_eq!(core.wire(1), [frame(1, 2)]);
}

/// RB-1: a guest that sends from another guest's MAC is not heard, and gets none of its frames.
#[test]
fn a_guest_cannot_speak_or_listen_in_anothers_name() {
    let core = Running::new();
    let (a, b) = (core.port(1, PortConfig::default()), core.port(2, PortConfig::default()));
    a.send(frame(1, 1));
    core.wire(1);
    b.send(frame(1, 66));
    b.send(sample::opaque(sample::CLIENT, [0xff; 6], 64, 67));
    wait_until(|| core.drops(2, DropReason::Spoofed) == 2);
    b.send(frame(2, 2));
    assert_eq!(core.wire(1), [frame(2, 2)]);
    core.peer.put(&sample::opaque(mac(1), sample::CLIENT, 64, 5));
    wait_until(|| a.take().len() == 1);
    assert!(b.take().is_empty());
}

/// RB-1: a guest that has used up its stations, of which later ones are not learned, still cannot speak in
/// another's name.
#[test]
fn a_guest_of_many_stations_cannot_speak_in_anothers_name() {
    let core = Running::new();
    let (a, b) = (core.port(1, PortConfig::default()), core.port(2, PortConfig::default()));
    a.send(frame(1, 1));
    core.wire(1);
    let many = crate::identity::MAX_STATIONS + 3;
    for nth in 0..many {
        b.send(sample::opaque(sample::CLIENT, [2, 7, 7, 7, 7, nth as u8], 64, 2));
    }
    core.wire(many);
    b.send(frame(1, 66));
    wait_until(|| core.drops(2, DropReason::Spoofed) == 1);
    b.send(frame(2, 3));
    assert_eq!(core.wire(1), [frame(2, 3)], "a station of its own is heard");
    core.peer.put(&sample::opaque(mac(1), sample::CLIENT, 64, 5));
    wait_until(|| a.take().len() == 1);
    assert!(b.take().is_empty());
}

/// RB-1: lies in offload headers cost a guest those frames, by counted reasons, and nothing else.
#[test]
fn a_guest_that_lies_loses_only_its_own_frames() {
    let core = Running::new();
    let guest = core.port(1, PortConfig::default());
    let (mut header, bytes) = sample::Tcp::data(false, vec![7; 5000]).offloaded(1000);
    header.csum_start = 3;
    guest.send_offloaded(header, bytes.clone());
    header.csum_start = 34;
    header.gso_size = 2;
    guest.send_offloaded(header, bytes.clone());
    guest.send(vec![1; 5]);
    guest.send(frame(1, 0).repeat(40));
    header.gso_size = 1000;
    guest.send_offloaded(header, bytes);
    assert_eq!(core.wire(5).len(), 5);
    for reason in [DropReason::Offload, DropReason::Segments, DropReason::Runt, DropReason::Oversize] {
        assert_eq!(core.drops(1, reason), 1, "{reason:?}");
    }
}

#[test]
fn frames_from_the_wire_reach_the_guest_that_they_are_for() {
    let core = Running::new();
    let (a, b) = (core.port(1, PortConfig::default()), core.port(2, PortConfig::default()));
    a.send(frame(1, 1));
    core.wire(1);
    let to = |destination| sample::opaque(destination, sample::CLIENT, 64, 3);
    core.peer.put(&to(mac(1)));
    core.peer.put(&to([0xff; 6]));
    core.peer.put(&to(mac(9)));
    let mut got = (Vec::new(), Vec::new());
    wait_until(|| {
        got.0.extend(a.take().into_iter().map(|(_, bytes)| bytes));
        got.1.extend(b.take().into_iter().map(|(_, bytes)| bytes));
        got.1.len() == 2
    });
    assert_eq!(got.0, [to(mac(1)), to([0xff; 6])]);
    assert_eq!(got.1, [to([0xff; 6]), to(mac(9))], "a guest that has not spoken yet may be meant");
    b.send(frame(2, 2));
    core.wire(1);
    core.peer.put(&to(mac(9)));
    wait_until(|| core.handle.counters().core.get("wire_unknown_frames") == 1);
}

#[test]
fn what_comes_in_waits_for_a_guest_that_is_paused_and_is_merged_when_it_runs() {
    let core = Running::new();
    let guest = core.port(1, PortConfig::default());
    guest.set_offloads(crate::guest::Offloads { checksum: true, tso4: true, tso6: true });
    let mut hello = sample::Tcp::data(false, vec![]);
    guest.send(hello.bytes());
    core.wire(1);
    guest.set_running(false);
    core.settle();
    std::mem::swap(&mut hello.source, &mut hello.destination);
    let mut stream = Vec::new();
    for nth in 0..40u32 {
        let mut segment = hello.clone();
        segment.payload = vec![nth as u8; 1400];
        segment.sequence = hello.sequence.wrapping_add(nth * 1400);
        stream.extend(segment.payload.clone());
        core.peer.put(&segment.bytes());
    }
    wait_until(|| core.count(1, PortCounter::Received) == 40);
    core.settle();
    assert!(guest.take().is_empty());
    guest.set_running(true);
    let mut got = Vec::new();
    wait_until(|| {
        got.extend(guest.take());
        got.iter().map(|(_, bytes)| bytes.len() - hello.headers()).sum::<usize>() == stream.len()
    });
    assert_eq!(got.len(), 1, "forty segments became one frame");
    assert_eq!(got[0].1[hello.headers()..], stream);
    assert_eq!(core.count(1, PortCounter::Coalesced), 39);
}

/// RB-1: what comes in for a guest that takes nothing is bounded.
#[test]
fn a_guest_without_buffers_loses_what_its_queue_cannot_hold() {
    let core = Running::new();
    let limits = Limits { inbound: 100, ..Limits::default() };
    let guest = core.port(1, PortConfig { limits, ..PortConfig::default() });
    guest.set_room(Some(0));
    for _ in 0..300 {
        core.peer.put(&sample::opaque(mac(1), sample::CLIENT, 64, 3));
    }
    wait_until(|| core.drops(1, DropReason::InboundFull) >= 100);
    guest.set_room(None);
    let mut got = 0;
    wait_until(|| {
        got += guest.take().len() as u64;
        got + core.drops(1, DropReason::InboundFull) == 300
    });
}

#[test]
fn a_guest_is_announced_on_its_new_host_with_all_that_it_was_known_by() {
    let old = Running::new();
    let guest = old.port(1, PortConfig::default());
    guest.send(sample::arp(mac(1), [10, 0, 0, 7]));
    old.wire(1);
    old.handle.set_mode(&ONE, COMMIT).expect("protected");
    let state = old.handle.cut(&ONE, EpochId::new(1), false).expect("cut").port_state;

    let new = Running::new();
    let _guest = new.port(9, PortConfig { fenced: true, ..PortConfig::default() });
    let ports = [PortId(9)];
    let mut kept = KeptPorts::new(&[None]);
    kept.apply(&state, &[]).expect("the state of one port");
    new.handle.restore(&ports, &mut kept).expect("restored");
    new.handle.announce(&ports).expect("asked");
    new.settle();
    assert!(new.peer.take().is_empty(), "a fenced port announces nothing");
    new.handle.unfence(&ports, Term::new(2)).expect("a newer term");
    new.handle.announce(&ports).expect("asked");
    let said = new.wire(4);
    let kinds: Vec<_> = said.iter().map(|bytes| u16::from_be_bytes([bytes[12], bytes[13]])).collect();
    assert_eq!(kinds[..4], [0x8035, 0x0806, 0x8035, 0x0806], "more than once");
    assert!(said.iter().all(|bytes| bytes[6..12] == mac(1)));
    let error = kept.apply(&state[..state.len() - 1], &[]).expect_err("cut off");
    assert!(matches!(error, KeptError::State(GateError::State(_))), "{error}");
}

#[test]
fn a_removed_port_leaves_the_others_where_they_were() {
    let core = Running::new();
    let (a, b) = (core.port(1, PortConfig::default()), core.port(2, PortConfig::default()));
    a.send(frame(1, 1));
    b.send(frame(2, 2));
    core.wire(2);
    core.handle.remove_ports(&ONE).expect("removed");
    core.peer.put(&sample::opaque(mac(2), sample::CLIENT, 64, 3));
    wait_until(|| b.take().len() == 1);
    assert_eq!(core.handle.cut(&ONE, EpochId::FIRST, false), Err(GateError::UnknownPort { port: PortId(1) }));
    let again = core.port(1, PortConfig::default());
    again.send(frame(1, 3));
    assert_eq!(core.wire(1), [frame(1, 3)]);
}

#[test]
fn a_command_for_several_ports_holds_for_all_or_none() {
    let core = Running::new();
    let (a, _b) = (core.port(1, PortConfig::default()), core.port(2, PortConfig::default()));
    let both = [PortId(1), PortId(2)];
    core.handle.set_mode(&both, COMMIT).expect("protected");
    a.send(frame(1, 1));
    wait_until(|| core.count(1, PortCounter::Captured) == 1);
    core.handle.cut(&ONE, EpochId::new(1), false).expect("cut");
    let error = core.handle.release(&both, token(1, 1)).expect_err("port 2 has nothing sealed");
    assert!(matches!(error, GateError::Escrow { port: PortId(2), .. }), "{error}");
    core.settle();
    assert!(core.peer.take().is_empty());
}

#[test]
fn memory_for_frames_that_runs_out_makes_guests_wait() {
    let core = Running::with(1100, None);
    let guest = core.port(1, PortConfig::default());
    core.handle.set_mode(&ONE, COMMIT).expect("protected");
    for nth in 0..1000u32 {
        let mut long = frame(1, nth as u8);
        // Small ones take no memory of the wire while they wait.
        long.resize(1000, 0);
        guest.send(long);
    }
    wait_until(|| core.peer.free_frames() < 600);
    core.settle();
    assert!(guest.unsent() > 0, "the rest waits in the guest's ring");
    let mut got = Vec::new();
    for epoch in 1.. {
        core.handle.cut(&ONE, EpochId::new(epoch), false).expect("cut");
        core.handle.release(&ONE, token(1, epoch)).expect("released");
        core.settle();
        got.extend(core.peer.take());
        if got.len() == 1000 {
            break;
        }
    }
    assert!(got.iter().enumerate().all(|(nth, bytes)| bytes[20] == nth as u8));
    assert_eq!(core.drops(1, DropReason::NoFrames), 0);
}

/// RB-1: a guest that takes nothing of what floods it does not use up the memory by which output leaves: small frames
/// that waited need some, and hold up what waits behind them.
#[test]
fn output_leaves_however_much_comes_in_for_a_guest_that_takes_nothing() {
    let core = Running::with(1100, None);
    let (guest, silent) = (core.port(1, PortConfig::default()), core.port(2, PortConfig::default()));
    silent.send(frame(2, 0));
    core.wire(1);
    silent.set_room(Some(0));
    core.handle.set_mode(&ONE, COMMIT).expect("protected");
    guest.send(frame(1, 0));
    for nth in 1..1000u32 {
        let mut long = frame(1, nth as u8);
        long.resize(1000, 0);
        guest.send(long);
    }
    wait_until(|| core.peer.free_frames() < 600);
    core.settle();
    // As much as comes, and more.
    let mut flood = frame(9, 0);
    flood[..6].copy_from_slice(&frame(2, 0)[6..12]);
    wait_until(|| {
        while core.peer.put(&flood) {}
        core.drops(2, DropReason::NoFrames) > 2000
    });
    let left = guest.unsent();
    core.handle.cut(&ONE, EpochId::FIRST, false).expect("cut");
    core.handle.release(&ONE, token(1, 1)).expect("released");
    let got = core.wire(1000 - left);
    assert!(got.iter().enumerate().all(|(nth, bytes)| bytes[20] == nth as u8));
}

/// OC-1: the audit log names the epoch in which each frame was captured.
#[test]
fn captured_frames_are_recorded_before_they_are_held() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("audit");
    let core = Running::with(4096, Some(Audit::create(&path, 100).expect("a log")));
    let guest = core.port(1, PortConfig::default());
    guest.send(frame(1, 1));
    core.wire(1);
    core.handle.set_mode(&ONE, Mode::Commit { first: EpochId::new(5) }).expect("protected");
    guest.send(frame(1, 2));
    wait_until(|| core.count(1, PortCounter::Captured) == 2);
    let records = crate::audit::read(&path).expect("a log");
    let seen: Vec<_> = records.iter().map(|record| (record.hash, record.epoch, record.flags)).collect();
    let hash = |fill| crate::audit::hash(&frame(1, fill));
    assert_eq!(seen, [(hash(1), 0, 0), (hash(2), 5, crate::audit::PROTECTED)]);
}

#[test]
fn a_core_without_work_sleeps_and_wakes_for_everybody() {
    for tells in [true, false] {
        let (wire, peer) = HeapWire::new(1500, 2048, tells).expect("a wire");
        let idle = IdlePolicy::Adaptive { spin: Duration::ZERO };
        let (mut core, handle) = Core::new(vec![wire], idle, None).expect("a core");
        let thread = thread::spawn(move || {
            core.run();
            core
        });
        let core = Running { handle, peer, thread: Some(thread) };
        let guest = core.port(1, PortConfig::default());
        let sleeps = || core.handle.counters().core.get("sleeps");
        for nth in 0..20 {
            let before = sleeps();
            guest.send(frame(1, nth));
            assert_eq!(core.wire(1), [frame(1, nth)]);
            core.peer.put(&sample::opaque(mac(1), sample::CLIENT, 64, nth));
            wait_until(|| guest.take().len() == 1);
            wait_until(|| sleeps() > before);
        }
        // An idle core with a wire that tells hardly turns.
        if tells {
            let turns = || core.handle.counters().core.get("turns");
            core.settle();
            let (before, slept) = (turns(), sleeps());
            // It looks around by itself now and then.
            wait_until(|| sleeps() > slept + 2);
            assert!(turns() - before < 20, "{} turns while nothing was to do", turns() - before);
        }
    }
}
